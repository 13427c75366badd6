"""Owns the configuration of doubt that is no tracker's and no tool's: motion of tissue, registrations held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from navsrv.anatomy.case import Case, Kind, Structure
from navsrv.kernel.checking import Checker, rule

REGISTRATION_INFLATION: Final[Mapping[str, float]] = {
    "landmarks": 1.0,
    "surface": 1.5,
    "fluoro": 1.5,
    "cbct": 1.5,
    "bench": 1.0,
}
"""Factor on the sigma that a registration says of itself, by method: what held-out ones show (docs/doubt.md)."""


@dataclass(frozen=True, slots=True)
class TissueConfig:
    """How far (mm, one sigma) structures move against the bone that the reference is fixed to.

    Defaults are defaults: confirm them locally.  ``structures`` says it of single ones, by name; ``seen`` whether the
    CT was made in the position of the procedure.
    """

    following_mm: float = rule(0.5, low=0.0, high=50.0)
    """Soft tissue that follows a bone: roots, vessels on the sacrum's wall, the contents of its canals."""
    free_mm: float = rule(2.0, low=0.0, high=50.0)
    """Soft tissue that follows none, such as bowel; skin too."""
    other_bone_mm: float = rule(1.5, low=0.0, high=50.0)
    """Another bone than the one that ``bone`` of the reference names, and what follows it."""
    turned_following_mm: float = rule(2.0, low=0.0, high=50.0)
    turned_free_mm: float = rule(8.0, low=0.0, high=50.0)
    """The same, while tissue has not been seen since the patient was turned."""
    seen: bool = True
    structures: dict[str, float] = rule(factory=dict, low=0.0, high=50.0)

    def motion_mm(self, structure: Structure, reference_bone: str | None) -> tuple[float, float]:
        """Return one sigma (mm) of a structure's motion: seen, and not seen since the patient was turned."""
        bone = structure.name if structure.kind is Kind.BONE else structure.follows
        apart = self.other_bone_mm if reference_bone is not None and bone not in (None, reference_bone) else 0.0
        if structure.kind is Kind.BONE:
            own, turned = 0.0, 0.0
        elif structure.follows is None:
            own, turned = self.free_mm, self.turned_free_mm
        else:
            own, turned = self.following_mm, self.turned_following_mm
        stated = self.structures.get(structure.name)
        if stated is not None:
            own, turned = stated, max(stated, turned) if stated > 0.0 else 0.0
        return (own**2 + apart**2) ** 0.5, (turned**2 + apart**2) ** 0.5 if turned > 0.0 else 0.0


def structure_faults(tissue: TissueConfig, reference_bone: str | None, case: Case) -> list[str]:
    """Return what the configuration names and the case does not have."""
    names = [s.name for s in case.structures]
    bones = [s.name for s in case.structures if s.kind is Kind.BONE]
    faults = [
        f"tissue.structures.{name}: no such structure in case {case.name}; expected one of {', '.join(names)}"
        for name in tissue.structures
        if name not in names
    ]
    if reference_bone is not None and reference_bone not in bones:
        right = f"expected one of {', '.join(bones) or 'none: the case has no bone'}"
        faults.append(f"tools: the reference's bone {reference_bone!r} is no bone of case {case.name}; {right}")
    return faults


def check_inflation(checker: Checker, inflation: object) -> None:
    """Note methods of registration that there are not."""
    for method in inflation if isinstance(inflation, dict) else ():
        if method not in REGISTRATION_INFLATION:
            checker.fault(
                f"registration.inflation.{method}", "no such method", "one of " + ", ".join(REGISTRATION_INFLATION)
            )
