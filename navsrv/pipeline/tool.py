"""Owns one guided tool: from its newest pose to one guidance frame.

The frame is built from what is valid *now*: a missing or expired link gives a frame that says so, with geometry
null, at full rate.  The last good value is never shown as current.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from navsrv.guidance.alarms import (
    BRIEF_LOSS_NS,
    PARKABLE,
    AlarmTable,
    Condition,
    Present,
    Priority,
    step_alarms,
)
from navsrv.guidance.clearance import ClearanceEngine, Clearances
from navsrv.guidance.doubt import Z95, propagate_sigma
from navsrv.guidance.levels import LevelState, step_level
from navsrv.guidance.trajectory import Deviation, deviation
from navsrv.kernel.frames import Array, Rigid, quaternion_wxyz, rotation_z_onto
from navsrv.kernel.samples import PoseSample
from navsrv.pipeline.links import PoseLink, skew_s
from navsrv.pipeline.registrations import Registration, Registrations
from navsrv.pipeline.setup import Setup, ToolSetup
from navsrv.wire.guidance import GEOMETRY_STATES, STATES, AlarmState, GuidanceFrame, StructureRow, TrajectoryState

_RANK = {state: rank for rank, state in enumerate(STATES)}
_LEVEL_CONDITION = {1: Condition.CAUTION, 2: Condition.WARNING, 3: Condition.BREACH}
_MOTION_WINDOW_NS = 200_000_000


@dataclass(slots=True)
class RoomFacts:
    """Facts of the whole room that every tool's frame shows."""

    session: str
    phase: str = "setup"
    missed_deadlines: int = 0
    lost_records: int = 0
    deadline_missed_now: bool = False
    recorder_failing: bool = False
    clock_jumped: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """What was computed for one valid pose."""

    tip_ct_mm: Array
    axis_ct: Array
    q_wxyz: tuple[float, float, float, float]
    rows: list[StructureRow]
    deviation: Deviation | None


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
        self.pose: PoseSample | None = None
        """The sample that the next frame is about."""
        self._setup = setup
        self._tool_from_tip = rotation_z_onto(tool.axis)
        self._engine = engine
        self._clearances = Clearances(len(setup.structures))
        count = len(setup.structures)
        self._points, self._nearest = np.empty((2 * count, 3)), np.empty((2 * count, 3))
        self._offsets, self._sigma = np.zeros(2 * count), np.empty(2 * count)
        self._segmentation = np.array([s.sigma_mm for s in setup.structures] * 2)
        self._levels: list[LevelState] = [LevelState()] * (2 * count)
        self._motion: deque[tuple[int, Array, Array]] = deque(maxlen=256)
        self._invalid_since_ns: int | None = None

    # -- one frame ---------------------------------------------------------------------------------------------

    def frame(self, now_ns: int, room: RoomFacts, registrations: Registrations) -> GuidanceFrame:
        """Return the next frame of this tool at ``now_ns``; ``sent_ns`` is left 0 for the shell."""
        state, reason = self._state(now_ns, registrations)
        geometry = None
        if state in GEOMETRY_STATES:
            geometry, skew_reason = self._geometry(now_ns, registrations.accepted)
            if skew_reason and state == "OK":
                state, reason = "DEGRADED", skew_reason
        if geometry is None:
            self._forget(now_ns)
        else:
            self._invalid_since_ns = None
        self.alarms = step_alarms(self.alarms, self._present(now_ns, state, reason, room, geometry), now_ns)
        sample = self.pose
        self.seq += 1
        self.last_frame_ns = now_ns
        return GuidanceFrame(
            v=1,
            seq=self.seq,
            session=room.session,
            pose_time_ns=None if sample is None else sample.pose_time_ns,
            pose_time_source=None if sample is None else sample.stamp_source,
            received_ns=now_ns,
            sent_ns=0,
            age_ms=self._age_ms(now_ns),
            state=state,
            reason=reason,
            phase=room.phase,
            tool=self.tool.name,
            tip_ct_mm=None if geometry is None else _triple(geometry.tip_ct_mm),
            axis_ct=None if geometry is None else _triple(geometry.axis_ct),
            q_wxyz_ct_from_tip=None if geometry is None else geometry.q_wxyz,
            structures=self._unknown_rows() if geometry is None else geometry.rows,
            trajectory=_trajectory(geometry),
            zone=None,
            alarms=_shown(self.alarms),
            registration=registrations.shown(now_ns),
            proposal=registrations.shown_proposal(now_ns),
            temperatures=[],
            missed_deadlines=room.missed_deadlines,
            skipped_poses=self.skipped,
        )

    def next_due_ns(self, idle_frame_ns: int) -> int:
        """Return when this tool needs a frame even if nothing arrives."""
        due = self.last_frame_ns + idle_frame_ns
        for link in (self.link, self.reference):
            change = None if link is None else link.next_change_ns(self.last_frame_ns)
            if change is not None and change < due:
                due = change
        return due

    # -- validity ----------------------------------------------------------------------------------------------

    def _state(self, now_ns: int, registrations: Registrations) -> tuple[str, str]:
        candidates = [self.link.judge(now_ns)]
        if self.reference is None:
            candidates.append(("LOST", "no reference is configured"))
        else:
            candidates.append(self.reference.judge(now_ns))
        accepted = registrations.accepted
        if accepted is None:
            shown = registrations.shown(now_ns)
            why = {"none": "no registration yet", "proposed": "a registration waits for acceptance"}
            candidates.append(("UNREGISTERED", why.get(shown.state, f"registration {shown.state}")))
        elif accepted.state == "unverified":
            candidates.append(("DEGRADED", f"registration unverified: {accepted.reason}"))
        return max(candidates, key=lambda c: _RANK[c[0]])

    def _age_ms(self, now_ns: int) -> float | None:
        ages = [
            now_ns - link.last.received_ns
            for link in (self.link, self.reference)
            if link is not None and link.last is not None
        ]
        return max(ages) / 1e6 if ages else None

    def _forget(self, now_ns: int) -> None:
        self._levels = [LevelState()] * len(self._levels)
        self._motion.clear()
        if self._invalid_since_ns is None:
            self._invalid_since_ns = now_ns

    # -- geometry ----------------------------------------------------------------------------------------------

    def tip_in_reference(self) -> tuple[Array, Array, Rigid] | None:
        """Return tip (3,), axis (3,) and ``T_ref_from_tool`` of the newest valid pair, or None."""
        sample = self.link.last
        if sample is None or sample.pose is None or self.reference is None:
            return None
        paired = self.reference.paired_with(sample)
        if paired is None or paired.pose is None:
            return None
        T_ref_from_tool = paired.pose.inverse() @ sample.pose
        return T_ref_from_tool.apply(self.tool.tip_mm), T_ref_from_tool.rotation @ self.tool.axis, T_ref_from_tool

    def _geometry(self, now_ns: int, accepted: Registration | None) -> tuple[Geometry | None, str]:
        sample = self.link.last
        if accepted is None or self.reference is None or sample is None or sample.pose is None:
            return None, ""
        paired = self.reference.paired_with(sample)
        if paired is None or paired.pose is None:
            return None, ""
        T_ct_from_tracker = accepted.T_ct_from_ref @ paired.pose.inverse()
        T_ct_from_tool = T_ct_from_tracker @ sample.pose
        tip, axis = T_ct_from_tool.apply(self.tool.tip_mm), T_ct_from_tool.rotation @ self.tool.axis
        skew = skew_s(sample, paired)
        rows = self._rows(now_ns, sample, tip, axis, accepted, skew)
        path = self._setup.path
        period_s = 1.0 / self.link.source.spec.rate_hz
        reason = f"tool and reference are {1e3 * skew:.0f} ms apart" if skew > 2.0 * period_s else ""
        q_wxyz = quaternion_wxyz(T_ct_from_tool.rotation @ self._tool_from_tip)
        return Geometry(tip, axis, q_wxyz, rows, None if path is None else deviation(path, tip, axis)), reason

    def _rows(
        self, now_ns: int, sample: PoseSample, tip: Array, axis: Array, accepted: Registration, skew: float
    ) -> list[StructureRow]:
        c, tool = self._clearances, self.tool
        self._engine.measure(tip, axis, tool.length_mm, tool.radius_mm, c)
        n = len(self._setup.structures)
        speed = self._speed_mm_s(sample, tip)
        self._points[:n] = tip
        self._points[n:] = tip - c.shaft_axis_offset_mm[:, None] * axis
        self._nearest[:n], self._nearest[n:] = c.tip_nearest_mm, c.shaft_nearest_mm
        self._offsets[n:] = c.shaft_axis_offset_mm
        unknown_s = skew + self.link.source.unknown_latency_s
        noise = self._noise(speed * unknown_s)
        reference_ct = accepted.T_ct_from_ref.translation_mm
        propagate_sigma(
            self._points,
            self._nearest,
            self._offsets,
            accepted.covariance,
            self._segmentation,
            noise,
            reference_ct,
            self._sigma,
        )
        # What the bound on time left uncertain counts as doubt; it is zero wherever a level could depend on it.
        self._sigma += np.concatenate((c.tip_error_mm, c.shaft_error_mm)) / Z95
        distances = np.concatenate((c.tip_distance_mm, c.shaft_distance_mm))
        closing = self._closing_mm_s(sample.received_ns, tip, distances)
        return self._build_rows(now_ns, distances, closing)

    def _noise(self, motion_mm: float) -> Array:
        tool_source = self.link.source
        reference_source = tool_source if self.reference is None else self.reference.source
        return np.array(
            [
                tool_source.noise_mm,
                tool_source.noise_rad,
                reference_source.noise_mm,
                reference_source.noise_rad,
                self.tool.tip_sigma_mm,
                self.tool.axis_sigma_rad,
                float(np.linalg.norm(self.tool.tip_mm)),
                motion_mm,
            ]
        )

    def _build_rows(self, now_ns: int, distances: Array, closing: Array | None) -> list[StructureRow]:
        rows: list[StructureRow] = []
        n = len(self._setup.structures)
        speeds: list[float | None] = [None] * (2 * n) if closing is None else closing.tolist()
        values = zip(distances.tolist(), self._sigma.tolist(), self._nearest.tolist(), speeds, strict=True)
        for i, (distance, sigma, (x, y, z), speed) in enumerate(values):
            structure = self._setup.structures[i % n]
            lower = distance - Z95 * sigma
            level = "none"
            if structure.kind == "critical":
                self._levels[i] = step_level(self._levels[i], lower, structure.limits, now_ns)
                level = self._levels[i].level
            part = "tip" if i < n else "shaft"
            rows.append(
                StructureRow(structure.name, structure.kind, part, distance, sigma, lower, (x, y, z), speed, level)
            )
        return rows

    def _unknown_rows(self) -> list[StructureRow]:
        return [
            StructureRow(s.name, s.kind, part, None, None, None, None, None, "unknown")
            for part in ("tip", "shaft")
            for s in self._setup.structures
        ]

    # -- motion ------------------------------------------------------------------------------------------------

    def _speed_mm_s(self, sample: PoseSample, tip: Array) -> float:
        """Return the tip's mean speed (mm/s) against CT over the motion window, for the time terms of sigma."""
        if not self._motion:
            return 0.0
        then_ns, then_tip, _ = self._motion[0]
        elapsed_s = (sample.received_ns - then_ns) / 1e9
        return float(np.linalg.norm(tip - then_tip)) / elapsed_s if elapsed_s > 0.02 else 0.0

    def _closing_mm_s(self, received_ns: int, tip: Array, distances: Array) -> Array | None:
        """Return the closing speed (2S,), positive when coming nearer: mean over at most 0.2 s, so delayed by 0.1 s."""
        motion = self._motion
        if not motion or received_ns > motion[-1][0]:
            motion.append((received_ns, tip, distances))
        while received_ns - motion[0][0] > _MOTION_WINDOW_NS:
            motion.popleft()
        then_ns, _, then = motion[0]
        elapsed_s = (received_ns - then_ns) / 1e9
        return (then - distances) / elapsed_s if elapsed_s > 0.02 else None

    # -- alarms ------------------------------------------------------------------------------------------------

    def _present(
        self, now_ns: int, state: str, reason: str, room: RoomFacts, geometry: Geometry | None
    ) -> dict[str, Present]:
        found = list(self._structure_alarms(geometry.rows)) if geometry is not None else []
        found += self._validity_alarms(now_ns, state, reason)
        if geometry is not None and geometry.deviation is not None:
            found += self._path_alarms(geometry.deviation)
        if room.deadline_missed_now:
            text = f"{room.missed_deadlines} deadlines missed since the start"
            found.append(Present(Condition.DEADLINE_MISSED, None, text))
        if room.recorder_failing:
            found.append(Present(Condition.RECORDER_FAILING, None, f"recording: {room.lost_records} records lost"))
        if room.clock_jumped is not None:
            found.append(Present(Condition.CLOCK_JUMP, room.clock_jumped, f"clock of {room.clock_jumped} jumped"))
        return {p.id: p for p in found}

    def _structure_alarms(self, rows: list[StructureRow]) -> list[Present]:
        worst: dict[str, tuple[int, StructureRow]] = {}
        for row, level in zip(rows, self._levels, strict=True):
            held = worst.get(row.name)
            if level.rank and (held is None or level.rank > held[0]):
                worst[row.name] = (level.rank, row)
        return [
            Present(_LEVEL_CONDITION[rank], name, _clearance_text(rank, row)) for name, (rank, row) in worst.items()
        ]

    def _validity_alarms(self, now_ns: int, state: str, reason: str) -> list[Present]:
        if state == "UNREGISTERED":
            return [Present(Condition.UNREGISTERED, None, reason)]
        if state == "DEGRADED" and reason.startswith("registration"):
            return [Present(Condition.UNVERIFIED, None, reason)]
        if state in GEOMETRY_STATES:
            return []
        lost_by_reference = self.link.judge(now_ns)[0] == "OK"
        if state == "STALE":
            condition = Condition.SOURCE_STALE
        elif self.link.link_down is not None:
            condition = Condition.LINK_DOWN
        else:
            condition = Condition.REFERENCE_LOST if lost_by_reference else Condition.TOOL_LOST
        since = self._invalid_since_ns if self._invalid_since_ns is not None else now_ns
        quiet = self.parked and condition in PARKABLE
        brief = condition is not Condition.LINK_DOWN and now_ns - since < BRIEF_LOSS_NS
        return [Present(condition, self.tool.name, reason, Priority.LOW if quiet or brief else None)]

    def _path_alarms(self, d: Deviation) -> list[Present]:
        found = []
        if not d.inside_corridor:
            text = f"{d.lateral_mm:.1f} mm beside the planned path"
            found.append(Present(Condition.OUTSIDE_CORRIDOR, None, text))
        elif abs(d.depth_to_target_mm) <= self._setup.target_reached_mm:
            found.append(Present(Condition.TARGET_REACHED, None, "target reached"))
        return found


def _triple(values: Array) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return (x, y, z)


def _clearance_text(rank: int, row: StructureRow) -> str:
    distance, lower = row.distance_mm or 0.0, row.lower_mm or 0.0
    where = f"{row.name} ({row.part})"
    if rank == 3:
        fact = "contact" if distance <= 0.0 else "contact possible"
        return f"{where}: {fact}, {distance:.1f} mm, at least {lower:.1f} mm"
    return f"{where}: {distance:.1f} mm, at least {lower:.1f} mm"


def _trajectory(geometry: Geometry | None) -> TrajectoryState | None:
    if geometry is None or geometry.deviation is None:
        return None
    d = geometry.deviation
    return TrajectoryState(d.lateral_mm, d.angle_deg, d.depth_to_target_mm, d.inside_corridor)


def _shown(table: AlarmTable) -> list[AlarmState]:
    return [
        AlarmState(
            key,
            alarm.present.condition.value,
            alarm.priority.value,
            alarm.phase.value,
            alarm.since_ns,
            alarm.present.subject,
            alarm.present.text,
        )
        for key, alarm in table.items()
    ]
