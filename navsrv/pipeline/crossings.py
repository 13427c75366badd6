"""Owns structures that the plan crosses on purpose: excepted from one tool's alarms by name, visibly, with a reason.

An exception silences the levels of that structure alone and hides none of its numbers.  It ends by command, with the
phase of the procedure, and with every change of the registration that it was made under.
"""

from __future__ import annotations

from dataclasses import dataclass

from navsrv.guidance.clearance import ClearanceEngine, Clearances
from navsrv.pipeline.inputs import Note
from navsrv.pipeline.setup import Setup, ToolSetup
from navsrv.wire.guidance import ExceptionState


@dataclass(frozen=True, slots=True)
class Crossing:
    """One exception: which structure, why, by whom, since when, and how near the plan itself comes."""

    structure: str
    reason: str
    by: str
    since_ns: int
    planned_mm: float

    def shown(self) -> ExceptionState:
        """Return it as the frame says it."""
        return ExceptionState(self.structure, self.reason, self.by, self.since_ns, self.planned_mm)


class Crossings:
    """The exceptions of one tool."""

    def __init__(self, setup: Setup, tool: ToolSetup, engine: ClearanceEngine) -> None:
        self._setup, self._tool, self._engine = setup, tool, engine
        self._of: dict[str, Crossing] = {}
        self.shown: list[ExceptionState] = []
        """As every frame carries them."""

    def __contains__(self, structure: str) -> bool:
        return structure in self._of

    def __bool__(self) -> bool:
        return bool(self._of)

    def begin(self, structure: str, reason: str, by: str, now_ns: int) -> Note:
        """Except a structure.

        Raises
        ------
        ValueError
            No such critical structure, no reason, or the plan does not come within its caution distance: a mistaken
            name must not silence the structure beside the path.
        """
        if not reason.strip():
            raise ValueError("args.reason: empty; expected why the plan crosses it")
        planned_mm = self._planned_mm(structure)
        crossing = Crossing(structure, reason.strip(), by, now_ns, planned_mm)
        self._of[structure] = crossing
        self._changed()
        text = f"{self._tool.name}: {structure} is excepted from alarms by {by}: {crossing.reason}"
        return self._note(now_ns, "exception_begun", text, crossing)

    def end(self, structure: str, why: str, now_ns: int) -> Note:
        """End an exception; ValueError if there is none of this name."""
        crossing = self._of.pop(structure, None)
        if crossing is None:
            raise ValueError(f"{structure!r} is not excepted for {self._tool.name}")
        self._changed()
        text = f"{self._tool.name}: {structure} is watched again: {why}"
        return self._note(now_ns, "exception_ended", text, crossing)

    def end_all(self, why: str, now_ns: int) -> list[Note]:
        """End every exception."""
        return [self.end(structure, why, now_ns) for structure in list(self._of)]

    def _planned_mm(self, structure: str) -> float:
        """Return the distance (mm) of the tool's surface from a structure on its planned way in."""
        found = [(i, s) for i, s in enumerate(self._setup.structures) if s.name == structure and s.kind == "critical"]
        if not found:
            names = ", ".join(s.name for s in self._setup.structures if s.kind == "critical")
            raise ValueError(f"there is no critical structure {structure!r}; one of {names or 'none'}")
        path = self._setup.path
        if path is None:
            raise ValueError("there is no plan that could cross a structure")
        ((index, of_case),) = found
        measured = Clearances(len(self._setup.structures))
        way = path.target_ct_mm - path.entry_ct_mm
        length_mm = float((way @ way) ** 0.5)
        self._engine.measure(path.target_ct_mm, path.direction_ct, length_mm, self._tool.radius_mm, measured)
        planned_mm = float(measured.shaft_distance_mm[index])
        if planned_mm >= of_case.limits.caution_mm:
            limit = f"its caution distance is {of_case.limits.caution_mm:g} mm"
            raise ValueError(f"the plan does not cross {structure!r}: it passes {planned_mm:.1f} mm away, {limit}")
        return planned_mm

    def _changed(self) -> None:
        self.shown = [crossing.shown() for crossing in self._of.values()]

    def _note(self, now_ns: int, event: str, text: str, crossing: Crossing) -> Note:
        fields = {
            "tool": self._tool.name,
            "structure": crossing.structure,
            "reason": crossing.reason,
            "by": crossing.by,
            "since_ns": crossing.since_ns,
            "planned_mm": crossing.planned_mm,
        }
        return Note(now_ns, event, text, fields)
