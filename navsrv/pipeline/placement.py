"""Owns where one tool's instrument is in CT, how far it is from each structure, and how sure that is.

One call for one valid pair of poses: chain, search, motion and doubt are compiled calls over arrays made once; only the
rows of the frame are new.  Refuses to judge validity: whoever calls has done that.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot
from typing import Final

import numpy as np

from navsrv.guidance.clearance import ClearanceEngine, Clearances, Zone, ZoneClearances
from navsrv.guidance.doubt import (
    AXIS_AT,
    AXIS_RAD,
    BENDING_MM,
    DRIFT_MM,
    INFLATION,
    LENGTH_MM,
    POSE,
    REFERENCE_MM,
    REFERENCE_RAD,
    TERMS,
    TIP_MM,
    TOOL_MM,
    TOOL_RAD,
    UNKNOWN_S,
    propagate,
)
from navsrv.guidance.levels import LevelState, Limits, step_level, step_unknown
from navsrv.guidance.motion import Motion
from navsrv.guidance.trajectory import Deviation, deviation_of
from navsrv.kernel.errors import FrameMismatch
from navsrv.kernel.frames import Array, Rigid, rotation_z_onto
from navsrv.kernel.samples import PoseSample
from navsrv.pipeline.chain import place_instrument
from navsrv.pipeline.links import PoseLink
from navsrv.pipeline.registrations import Registration
from navsrv.pipeline.setup import Setup, SourceSetup, StructureSetup, ToolSetup, ZoneSetup
from navsrv.wire.guidance import StructureRow

FARTHEST_MM: Final = 1e6
"""A tip a kilometre from the CT's origin is a broken number; squares of larger ones overflow in the search."""


class NotPlaced(Exception):
    """Numbers came out that no display may show; the text says which."""


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """What was computed for one pair of poses.

    Attributes
    ----------
    tip_ct_mm, axis_ct : (3,)
    q_wxyz : tuple
        ``R_ct_from_tip``: the tip frame has +z from hub to tip.
    rows : list of StructureRow
        Tip rows of all structures, then shaft rows, then those of the zone if the tool has one.
    ranks : list of int
        Level (0 to 3) of each row.
    """

    tip_ct_mm: Array
    axis_ct: Array
    q_wxyz: tuple[float, float, float, float]
    rows: list[StructureRow]
    ranks: list[int]
    deviation: Deviation | None


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A tool's pose and the reference's pose that it is taken with, both valid, and the time (s) between them."""

    tool: PoseSample
    reference: PoseSample
    skew_s: float


class Placement:
    """Measures one tool's instrument; remembers only levels and the motion of the last 0.2 s."""

    def __init__(
        self, setup: Setup, tool: ToolSetup, source: SourceSetup, reference: PoseLink | None, engine: ClearanceEngine
    ) -> None:
        self._tool = tool
        self._reference = reference
        self._path = setup.path
        self._engine = engine
        self._R_tool_from_tip = rotation_z_onto(tool.axis)
        self._tip_tool_mm = np.array(tool.tip_mm, dtype=np.float64)
        count = len(setup.structures)
        self._clearances = c = Clearances(count)
        z = self._zone_clearances = ZoneClearances(0 if tool.zone is None else count)
        self._zone_rows = (z.distance_mm, z.error_mm, z.nearest_mm, z.zone_nearest_mm)
        self._tip_rows = (c.tip_distance_mm, c.tip_error_mm, c.tip_nearest_mm)
        self._shaft_rows = (c.shaft_distance_mm, c.shaft_error_mm, c.shaft_nearest_mm, c.shaft_axis_offset_mm)
        self._motion = Motion(count, source.spec.rate_hz, zone=tool.zone is not None)
        self._pose = np.zeros(POSE)
        parts = parts_of(tool)
        self._found = np.zeros((3, len(parts) * count))
        self._structure_mm = np.array([hypot(s.sigma_mm, s.motion_mm) for s in setup.structures])
        self._turned_mm = np.array([hypot(s.sigma_mm, max(s.motion_mm, s.turned_mm)) for s in setup.structures])
        self._inflation = setup.inflation
        self._terms = np.zeros(TERMS)
        noisy = source if reference is None else reference.source
        self._terms[[TOOL_MM, TOOL_RAD]] = source.noise_mm, source.noise_rad
        self._terms[[REFERENCE_MM, REFERENCE_RAD]] = noisy.noise_mm, noisy.noise_rad
        self._terms[[TIP_MM, AXIS_RAD]] = tool.tip_sigma_mm, tool.axis_sigma_rad
        self._terms[[BENDING_MM, LENGTH_MM]] = tool.bending_sigma_mm, tool.length_mm
        self._levels: list[LevelState] = [LevelState()] * (len(parts) * count)
        self._row_of: list[tuple[str, str, str, Limits | None]] = [
            (s.name, s.kind, part, s.limits if judged(s, part) else None) for part in parts for s in setup.structures
        ]
        self._in_use = 2 * count
        """Rows that levels are given to: those of a zone only while it is made."""

    def place(
        self, now_ns: int, pair: Pair, accepted: Registration, tissue_seen: bool = True, ablating: bool = False
    ) -> Placed:
        """Return the instrument of a pair of poses, in CT, at ``now_ns``.

        ``tissue_seen``: soft tissue was seen since the patient was turned; if not, its motion is doubted more.
        ``ablating``: the zone is meant, and has levels.

        Raises
        ------
        NotPlaced
            A number is not finite: the registration or a pose is absurd.
        """
        pose, clearances = self._pose, self._clearances
        tool, reference = _pose(pair.tool), _pose(pair.reference)
        T_ct_from_ref = accepted.T_ct_from_ref
        if tool.to != reference.to or T_ct_from_ref.frm != reference.frm:
            raise FrameMismatch(f"{T_ct_from_ref.frm}, {reference.to} from {reference.frm}, {tool.to} from {tool.frm}")
        largest, q_wxyz = place_instrument(
            (T_ct_from_ref.rotation, T_ct_from_ref.translation_mm),
            (reference.rotation, reference.translation_mm),
            (tool.rotation, tool.translation_mm),
            self._R_tool_from_tip,
            self._tip_tool_mm,
            pose,
        )
        tip, axis = pose[:AXIS_AT].copy(), pose[AXIS_AT : AXIS_AT + 3].copy()
        if not largest < FARTHEST_MM:
            raise NotPlaced(f"tip at {tip.tolist()} mm")
        try:
            self._engine.measure(tip, axis, self._tool.length_mm, self._tool.radius_mm, clearances)
            if self._tool.zone is not None:
                self._measure_zone(self._tool.zone, tip, axis)
        except ValueError as refusal:
            raise NotPlaced(str(refusal)) from None
        self._motion.step(
            pair.tool.pose_time_ns,
            pair.tool.stamp_source,
            pose,
            clearances.tip_distance_mm,
            clearances.shaft_distance_mm,
            self._zone_clearances.distance_mm,
        )
        self._doubt(now_ns, pair, accepted, tip, tissue_seen)
        self._in_use = len(self._row_of) if ablating else 2 * self._engine.count
        rows, ranks = self._rows(now_ns)
        path = self._path
        return Placed(tip, axis, q_wxyz, rows, ranks, None if path is None else deviation_of(path, pose))

    def forget(self, now_ns: int) -> None:
        """Take note that geometry is not valid: motion begins anew, levels wait."""
        self._levels = [step_unknown(level, now_ns) for level in self._levels]
        self._motion.forget()

    def _measure_zone(self, zone: ZoneSetup, tip: Array, axis: Array) -> None:
        semi_axes_mm = np.array([zone.across_mm, zone.across_mm, zone.along_mm])
        centre = tip + zone.ahead_mm * axis
        self._engine.measure_zone(Zone(centre, rotation_z_onto(axis), semi_axes_mm), self._zone_clearances)

    def _doubt(self, now_ns: int, pair: Pair, accepted: Registration, tip: Array, tissue_seen: bool) -> None:
        """Fill in distances, sigmas and bounds."""
        terms = self._terms
        terms[INFLATION] = self._inflation.get(accepted.method, 1.0)
        # The tool moved on since its pose: by the age of one shown again, and by the latency that nobody knows.
        terms[UNKNOWN_S] = (max(0, now_ns - pair.tool.taken_ns) + pair.tool.unknown_ns) / 1e9
        terms[DRIFT_MM] = 0.0
        if pair.skew_s != 0.0 and self._reference is not None:
            # The patient moved with the reference, whether or not the tool seems to move against it.
            tip_ref = accepted.T_ct_from_ref.inverse().apply(tip)
            terms[DRIFT_MM] = self._reference.speed_mm_s(tip_ref) * pair.skew_s
        bad = propagate(
            self._tip_rows,
            self._shaft_rows,
            self._zone_rows,
            self._pose,
            self._motion.velocity,
            accepted.covariance,
            terms,
            self._structure_mm if tissue_seen else self._turned_mm,
            self._found,
        )
        if bad >= 0:
            distance, sigma, _ = self._found[:, bad].tolist()
            raise NotPlaced(f"{self._row_of[bad][0]}: distance {distance} mm, sigma {sigma} mm")

    def _rows(self, now_ns: int) -> tuple[list[StructureRow], list[int]]:
        rows: list[StructureRow] = []
        ranks: list[int] = []
        levels, in_use = self._levels, self._in_use
        nearest = self._clearances.tip_nearest_mm.tolist() + self._clearances.shaft_nearest_mm.tolist()
        values = zip(
            self._row_of,
            *self._found.tolist(),
            nearest + self._zone_clearances.nearest_mm.tolist(),
            self._motion.closing_mm_s.tolist(),
            self._motion.contact_s.tolist(),
            levels,
            strict=True,
        )
        for (name, kind, part, limits), distance, sigma, lower, (x, y, z), closing, contact, level in values:
            if limits is not None and (level.rank or lower < limits.caution_mm):
                if len(rows) < in_use:
                    level = levels[len(rows)] = step_level(level, lower, limits, now_ns)
                elif level.rank:
                    level = levels[len(rows)] = LevelState()
            ranks.append(level.rank)
            speed, soon = closing if closing == closing else None, contact if contact == contact else None
            rows.append(StructureRow(name, kind, part, distance, sigma, lower, (x, y, z), speed, level.level, soon))
        return rows, ranks


def parts_of(tool: ToolSetup) -> tuple[str, ...]:
    """Return the parts of a tool that have rows."""
    return ("tip", "shaft") if tool.zone is None else ("tip", "shaft", "zone")


def judged(structure: StructureSetup, part: str) -> bool:
    """Say whether a structure's row has levels: one of a critical structure, or of skin that a zone could burn."""
    return structure.kind == "critical" or (structure.kind == "skin" and part == "zone")


def _pose(sample: PoseSample) -> Rigid:
    assert sample.pose is not None  # a pair is of valid poses
    return sample.pose
