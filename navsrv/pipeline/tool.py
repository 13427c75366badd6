"""Owns one guided tool: from its newest pose to one guidance frame.

The frame is built from what is valid *now*: a missing or expired link gives a frame that says so, with geometry
null, at full rate.  The last good value is never shown as current.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from navsrv.guidance.alarms import (
    BRIEF_LOSS_NS,
    OF_GEOMETRY,
    OF_STRUCTURES,
    PARKABLE,
    AlarmTable,
    Condition,
    Present,
    Priority,
    step_alarms,
)
from navsrv.guidance.clearance import ClearanceEngine
from navsrv.guidance.trajectory import Deviation
from navsrv.kernel.frames import Array
from navsrv.pipeline.links import GOOD, PoseLink, Standing
from navsrv.pipeline.placement import NotPlaced, Pair, Placed, Placement
from navsrv.pipeline.registrations import Registrations
from navsrv.pipeline.setup import Setup, ToolSetup
from navsrv.wire.guidance import (
    GEOMETRY_STATES,
    STATES,
    VERSION,
    AlarmState,
    GuidanceFrame,
    StructureRow,
    TrajectoryState,
)

_RANK = {state: rank for rank, state in enumerate(STATES)}
_LEVEL_CONDITION = {1: Condition.CAUTION, 2: Condition.WARNING, 3: Condition.BREACH}
_LOSSES = frozenset((Condition.TOOL_LOST, Condition.REFERENCE_LOST, Condition.SOURCE_STALE, Condition.LINK_DOWN))
_NO_REFERENCE = Standing("LOST", "no reference is configured", Condition.REFERENCE_LOST, "Reference")


@dataclass(slots=True)
class RoomFacts:
    """Facts of the whole room that every tool's frame shows."""

    session: str
    phase: str = "setup"
    missed_deadlines: int = 0
    lost_records: int = 0
    audio_paused_until_ns: int = 0
    happened: dict[str, tuple[int, Present]] = field(default_factory=dict)
    """Momentary facts by the id of their alarm: how often each happened, and what to say of the last time."""

    def tell(self, fact: Present) -> None:
        """Keep a momentary fact until each tool's next frame has shown it."""
        count, _ = self.happened.get(fact.id, (0, fact))
        self.happened[fact.id] = (count + 1, fact)


class ToolGuide:
    """Turns the poses of one tool into frames; all state of the tool lives here."""

    def __init__(
        self, setup: Setup, tool: ToolSetup, link: PoseLink, reference: PoseLink | None, engine: ClearanceEngine
    ) -> None:
        self.tool = tool
        self.link = link
        self.reference = reference
        self.parked = False
        self.alarms: AlarmTable = {}
        self.seq = 0
        self.skipped = 0
        self.last_frame_ns = 0
        self._setup = setup
        self._placement = Placement(setup, tool, link.source, reference, engine)
        self._told: dict[str, int] = {}
        self._lost_since_ns: dict[int, int] = {}

    # -- one frame ---------------------------------------------------------------------------------------------

    def frame(self, now_ns: int, room: RoomFacts, registrations: Registrations) -> GuidanceFrame:
        """Return the next frame of this tool at ``now_ns``; ``sent_ns`` is left 0 for the shell."""
        sample, pair = self.link.last, self.pair()
        standings = self._standings(now_ns, pair, registrations)
        placed = None
        if pair is not None and registrations.accepted is not None and _worst(standings).state in GEOMETRY_STATES:
            try:
                placed = self._placement.place(now_ns, pair, registrations.accepted)
            except NotPlaced as fault:
                reason = f"clearance cannot be computed: {fault}"
                standings.append(Standing("FAULT", reason, Condition.FAULT, self.tool.name))
        if placed is None:
            self._placement.forget(now_ns)
        worst = _worst(standings)
        present = self._present(now_ns, standings, room, placed)
        self.alarms = step_alarms(self.alarms, present, now_ns, frozenset() if placed else OF_GEOMETRY)
        self.seq += 1
        self.last_frame_ns = now_ns
        return GuidanceFrame(
            v=VERSION,
            seq=self.seq,
            session=room.session,
            pose_time_ns=None if sample is None else sample.pose_time_ns,
            pose_time_source=None if sample is None else sample.stamp_source,
            received_ns=now_ns,
            sent_ns=0,
            age_ms=self._age_ms(now_ns, pair),
            state=worst.state,
            reason=worst.reason,
            phase=room.phase,
            tool=self.tool.name,
            tip_ct_mm=None if placed is None else _triple(placed.tip_ct_mm),
            axis_ct=None if placed is None else _triple(placed.axis_ct),
            q_wxyz_ct_from_tip=None if placed is None else placed.q_wxyz,
            structures=self._unknown_rows() if placed is None else placed.rows,
            trajectory=None if placed is None else _trajectory(placed.deviation),
            zone=None,
            alarms=_shown(self.alarms),
            registration=registrations.shown(now_ns),
            proposal=registrations.shown_proposal(now_ns),
            temperatures=[],
            missed_deadlines=room.missed_deadlines,
            skipped_poses=self.skipped,
            audio_paused_s=max(0.0, (room.audio_paused_until_ns - now_ns) / 1e9),
        )

    def next_due_ns(self, idle_frame_ns: int) -> int:
        """Return when this tool needs a frame even if nothing arrives."""
        due = self.last_frame_ns + idle_frame_ns
        for link in (self.link, self.reference):
            change = None if link is None else link.next_change_ns(self.last_frame_ns)
            if change is not None and change < due:
                due = change
        return due

    def pair(self) -> Pair | None:
        """Return the tool's newest pose with the reference's pose that belongs to it; None while either is lost."""
        sample, reference = self.link.last, self.reference
        if sample is None or sample.pose is None or reference is None:
            return None
        source = self.tool.source
        paired = reference.paired_with(sample, source)
        return None if paired is None else Pair(sample, paired, reference.skew_s(sample, source, paired))

    def tip_ref_mm(self, pair: Pair) -> Array:
        """Return the tip (3,) of a pair in the reference's frame."""
        assert pair.tool.pose is not None
        assert pair.reference.pose is not None
        return (pair.reference.pose.inverse() @ pair.tool.pose).apply(self.tool.tip_mm)

    # -- validity ----------------------------------------------------------------------------------------------

    def _standings(self, now_ns: int, pair: Pair | None, registrations: Registrations) -> list[Standing]:
        """Return how everything stands that geometry depends on; of equally bad ones the first gives the reason."""
        found = [
            self.link.judge(now_ns),
            _NO_REFERENCE if self.reference is None else self.reference.judge(now_ns),
            _registered(registrations, now_ns),
        ]
        period_s = 1.0 / self.link.source.spec.rate_hz
        if pair is not None and pair.skew_s > 2.0 * period_s:
            found.append(Standing("DEGRADED", f"tool and reference are {1e3 * pair.skew_s:.0f} ms apart"))
        return found

    def _age_ms(self, now_ns: int, pair: Pair | None) -> float | None:
        """Return the age (ms) of the older of the two poses that the result depends on, or would."""
        if pair is not None:
            return (now_ns - min(pair.tool.taken_ns, pair.reference.taken_ns)) / 1e6
        links = (self.link, self.reference)
        seen = [link.last.taken_ns for link in links if link is not None and link.last is not None]
        return (now_ns - min(seen)) / 1e6 if seen else None

    def _unknown_rows(self) -> list[StructureRow]:
        return [
            StructureRow(s.name, s.kind, part, None, None, None, None, None, "unknown")
            for part in ("tip", "shaft")
            for s in self._setup.structures
        ]

    # -- alarms ------------------------------------------------------------------------------------------------

    def _present(
        self, now_ns: int, standings: list[Standing], room: RoomFacts, placed: Placed | None
    ) -> dict[str, Present]:
        found = self._validity_alarms(now_ns, standings)
        if placed is not None:
            found += _structure_alarms(placed)
            if placed.deviation is not None:
                found += _path_alarms(placed.deviation, self._setup.target_reached_mm)
        for key, (count, fact) in room.happened.items():
            if count > self._told.get(key, 0):
                self._told[key] = count
                found.append(fact)
        return {p.id: p for p in reversed(found)}  # of one id, the first speaks

    def _validity_alarms(self, now_ns: int, standings: list[Standing]) -> list[Present]:
        """Return an alarm for each thing that stands badly, not for the worst alone: none hides another."""
        unregistered = any(s.condition is Condition.UNREGISTERED for s in standings)
        lost_since: dict[int, int] = {}
        found = []
        for place, standing in enumerate(standings):
            if standing.condition is None:
                continue
            priority = None
            if standing.condition in _LOSSES:
                since = lost_since[place] = self._lost_since_ns.get(place, now_ns)
                brief = standing.condition is not Condition.LINK_DOWN and now_ns - since < BRIEF_LOSS_NS
                quiet = self.parked and standing.condition in PARKABLE
                priority = Priority.LOW if brief or quiet or unregistered else None
            found.append(Present(standing.condition, standing.subject, standing.reason, priority))
        self._lost_since_ns = lost_since
        return found


def _worst(standings: list[Standing]) -> Standing:
    return max(standings, key=lambda s: _RANK[s.state])


def _registered(registrations: Registrations, now_ns: int) -> Standing:
    accepted = registrations.accepted
    if accepted is None:
        state = registrations.shown(now_ns).state
        why = {"none": "no registration yet", "proposed": "a registration waits for acceptance"}
        return Standing("UNREGISTERED", why.get(state, f"registration {state}"), Condition.UNREGISTERED)
    if accepted.state == "unverified":
        return Standing("DEGRADED", f"registration unverified: {accepted.reason}", Condition.UNVERIFIED)
    return GOOD


def _structure_alarms(placed: Placed) -> list[Present]:
    """Return one alarm for each structure with a level: of its parts the worst, of equally bad ones the nearest."""
    worst: dict[str, tuple[int, StructureRow]] = {}
    for row, rank in zip(placed.rows, placed.ranks, strict=True):
        held = worst.get(row.name)
        if rank and (held is None or (rank, -_lower(row)) > (held[0], -_lower(held[1]))):
            worst[row.name] = (rank, row)
    return [
        Present(_LEVEL_CONDITION[rank], name, _clearance_text(rank, row), past=_past_text(rank, row))
        for name, (rank, row) in worst.items()
    ]


def _lower(row: StructureRow) -> float:
    return 0.0 if row.lower_mm is None else row.lower_mm


def _clearance_text(rank: int, row: StructureRow) -> str:
    distance, lower = row.distance_mm or 0.0, _lower(row)
    figures = f"{distance:.1f} mm, at least {lower:.1f} mm"
    where = f"{row.name} ({row.part})"
    if rank < 3:
        return f"{where}: {figures}"
    fact = "contact" if distance <= 0.0 else "contact possible" if lower <= 0.0 else "leaving contact"
    # The fact stands first: a display short of room cuts the end, and "contact" must not be left of "contact possible".
    return f"{fact.capitalize()}: {where}, {figures}"


def _past_text(rank: int, row: StructureRow) -> str | None:
    if rank < 3:
        return None
    touched = row.distance_mm is not None and row.distance_mm <= 0.0
    return f"Contact was {'shown' if touched else 'possible'}: {row.name} ({row.part})"


def _path_alarms(d: Deviation, target_reached_mm: float) -> list[Present]:
    if not d.inside_corridor:
        return [Present(Condition.OUTSIDE_CORRIDOR, None, f"{d.lateral_mm:.1f} mm beside the planned path")]
    if abs(d.depth_to_target_mm) <= target_reached_mm:
        return [Present(Condition.TARGET_REACHED, None, "target reached")]
    return []


def _trajectory(d: Deviation | None) -> TrajectoryState | None:
    return None if d is None else TrajectoryState(d.lateral_mm, d.angle_deg, d.depth_to_target_mm, d.inside_corridor)


def _triple(values: Array) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return (x, y, z)


def _shown(table: AlarmTable) -> list[AlarmState]:
    return [
        AlarmState(
            key,
            alarm.present.condition.value,
            alarm.priority.value,
            alarm.phase.value,
            alarm.since_ns,
            alarm.present.subject if alarm.present.condition in OF_STRUCTURES else None,
            alarm.present.text,
        )
        for key, alarm in table.items()
    ]
