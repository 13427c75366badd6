"""Owns where one tool's instrument is in CT, how far it is from each structure, and how sure that is.

One call for one valid pair of poses.  Refuses to judge validity: whoever calls has done that.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from typing import Final

import numpy as np

from navsrv.guidance.clearance import ClearanceEngine, Clearances
from navsrv.guidance.doubt import Z95, propagate_sigma
from navsrv.guidance.levels import LevelState, step_level, step_unknown
from navsrv.guidance.trajectory import Deviation, deviation
from navsrv.kernel.frames import Array, Rigid, quaternion_wxyz, rotation_z_onto
from navsrv.kernel.samples import PoseSample
from navsrv.pipeline.links import SHORTEST_NS, SPEED_WINDOW_NS, PoseLink
from navsrv.pipeline.registrations import Registration
from navsrv.pipeline.setup import Setup, SourceSetup, ToolSetup
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
        Tip rows of all structures, then shaft rows.
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


@dataclass(frozen=True, slots=True, eq=False)
class _Moment:
    """One measured pose: its time by its source's clock or ours, the tip in CT (3,), distances (2S,)."""

    time_ns: int
    stamp_source: str
    tip_ct_mm: Array
    distances_mm: Array


class Placement:
    """Measures one tool's instrument; remembers only levels and the motion of the last 0.2 s."""

    def __init__(
        self, setup: Setup, tool: ToolSetup, source: SourceSetup, reference: PoseLink | None, engine: ClearanceEngine
    ) -> None:
        self._tool = tool
        self._source = source
        self._reference = reference
        self._structures = setup.structures
        self._path = setup.path
        self._engine = engine
        self._R_tool_from_tip = rotation_z_onto(tool.axis)
        count = len(setup.structures)
        self._clearances = Clearances(count)
        self._points, self._nearest = np.empty((2 * count, 3)), np.empty((2 * count, 3))
        self._offsets, self._sigma = np.zeros(2 * count), np.empty(2 * count)
        self._segmentation = np.array([s.sigma_mm for s in setup.structures] * 2)
        self._levels: list[LevelState] = [LevelState()] * (2 * count)
        self._moments: deque[_Moment] = deque(maxlen=256)
        noisy = source if reference is None else reference.source
        self._noise = np.array(
            [
                source.noise_mm,
                source.noise_rad,
                noisy.noise_mm,
                noisy.noise_rad,
                tool.tip_sigma_mm,
                tool.axis_sigma_rad,
                float(np.linalg.norm(tool.tip_mm)),
                0.0,
            ]
        )

    def place(self, now_ns: int, pair: Pair, accepted: Registration) -> Placed:
        """Return the instrument of a pair of poses, in CT, at ``now_ns``.

        Raises
        ------
        NotPlaced
            A number is not finite: the registration or a pose is absurd.
        """
        T_ct_from_tracker = accepted.T_ct_from_ref @ _pose(pair.reference).inverse()
        T_ct_from_tool = T_ct_from_tracker @ _pose(pair.tool)
        tip = T_ct_from_tool.apply(self._tool.tip_mm)
        axis = T_ct_from_tool.rotation @ self._tool.axis
        if not max(map(abs, tip.tolist())) < FARTHEST_MM:
            raise NotPlaced(f"tip at {tip.tolist()} mm")
        try:
            self._engine.measure(tip, axis, self._tool.length_mm, self._tool.radius_mm, self._clearances)
        except ValueError as refusal:
            raise NotPlaced(str(refusal)) from None
        motion_mm = self._motion_mm(now_ns, pair, tip, accepted)
        self._doubt(tip, axis, motion_mm, accepted)
        distances = np.concatenate((self._clearances.tip_distance_mm, self._clearances.shaft_distance_mm))
        closing = self._closing_mm_s(pair.tool, tip, distances)
        rows, ranks = self._rows(now_ns, distances, closing)
        q_wxyz = quaternion_wxyz(T_ct_from_tool.rotation @ self._R_tool_from_tip)
        path = self._path
        return Placed(tip, axis, q_wxyz, rows, ranks, None if path is None else deviation(path, tip, axis))

    def forget(self, now_ns: int) -> None:
        """Take note that geometry is not valid: motion begins anew, levels wait."""
        self._levels = [step_unknown(level, now_ns) for level in self._levels]
        self._moments.clear()

    # -- doubt -------------------------------------------------------------------------------------------------

    def _motion_mm(self, now_ns: int, pair: Pair, tip: Array, accepted: Registration) -> float:
        """Return how far (mm) tip and anatomy may be apart for reasons of time alone.

        The tool moved on since its pose (unknown latency, and the age of a pose shown again); and between the two
        poses of a pair the patient moved with the reference, whether or not the tool seems to move against it.
        """
        age_ns = max(0, now_ns - pair.tool.taken_ns) + pair.tool.unknown_ns
        moved = self._speed_mm_s(pair.tool, tip) * age_ns / 1e9
        if pair.skew_s == 0.0 or self._reference is None:
            return moved
        tip_ref = accepted.T_ct_from_ref.inverse().apply(tip)
        drifted = self._reference.speed_mm_s(tip_ref) * pair.skew_s
        return float(np.hypot(moved, drifted))

    def _doubt(self, tip: Array, axis: Array, motion_mm: float, accepted: Registration) -> None:
        c, n = self._clearances, len(self._structures)
        self._points[:n] = tip
        self._points[n:] = tip - c.shaft_axis_offset_mm[:, None] * axis
        self._nearest[:n], self._nearest[n:] = c.tip_nearest_mm, c.shaft_nearest_mm
        self._offsets[n:] = c.shaft_axis_offset_mm
        self._noise[7] = motion_mm
        propagate_sigma(
            self._points,
            self._nearest,
            self._offsets,
            accepted.covariance,
            self._segmentation,
            self._noise,
            accepted.T_ct_from_ref.translation_mm,
            self._sigma,
        )
        # What the bound on time left uncertain counts as doubt; it is zero wherever a level could depend on it.
        self._sigma[:n] += c.tip_error_mm / Z95
        self._sigma[n:] += c.shaft_error_mm / Z95

    # -- rows --------------------------------------------------------------------------------------------------

    def _rows(self, now_ns: int, distances: Array, closing: Array | None) -> tuple[list[StructureRow], list[int]]:
        rows: list[StructureRow] = []
        ranks: list[int] = []
        n = len(self._structures)
        speeds: list[float | None] = [None] * (2 * n) if closing is None else closing.tolist()
        values = zip(
            chain(self._structures, self._structures),
            distances.tolist(),
            self._sigma.tolist(),
            self._nearest.tolist(),
            speeds,
            strict=True,
        )
        for i, (structure, distance, sigma, (x, y, z), speed) in enumerate(values):
            lower = distance - Z95 * sigma
            if not isfinite(lower):
                raise NotPlaced(f"{structure.name}: distance {distance} mm, sigma {sigma} mm")
            level = LevelState()
            if structure.kind == "critical":
                level = self._levels[i] = step_level(self._levels[i], lower, structure.limits, now_ns)
            part = "tip" if i < n else "shaft"
            rows.append(
                StructureRow(
                    structure.name, structure.kind, part, distance, sigma, lower, (x, y, z), speed, level.level
                )
            )
            ranks.append(level.rank)
        return rows, ranks

    # -- motion ------------------------------------------------------------------------------------------------

    def _speed_mm_s(self, sample: PoseSample, tip: Array) -> float:
        """Return the tip's mean speed (mm/s) in CT since the oldest remembered moment, 0 while none is old enough."""
        if not self._moments or self._moments[0].stamp_source != sample.stamp_source:
            return 0.0
        then = self._moments[0]
        elapsed_ns = sample.pose_time_ns - then.time_ns
        return float(np.linalg.norm(tip - then.tip_ct_mm)) / (elapsed_ns / 1e9) if elapsed_ns >= SHORTEST_NS else 0.0

    def _closing_mm_s(self, sample: PoseSample, tip: Array, distances: Array) -> Array | None:
        """Return the closing speed (2S,), positive when coming nearer: mean over at most 0.2 s, so delayed by 0.1 s."""
        moments, time_ns = self._moments, sample.pose_time_ns
        if moments and (time_ns < moments[-1].time_ns or sample.stamp_source != moments[-1].stamp_source):
            moments.clear()
        if not moments or time_ns > moments[-1].time_ns:
            moments.append(_Moment(time_ns, sample.stamp_source, tip, distances))
        while time_ns - moments[0].time_ns > SPEED_WINDOW_NS:
            moments.popleft()
        then = moments[0]
        elapsed_ns = time_ns - then.time_ns
        return (then.distances_mm - distances) / (elapsed_ns / 1e9) if elapsed_ns >= SHORTEST_NS else None


def _pose(sample: PoseSample) -> Rigid:
    assert sample.pose is not None  # a pair is of valid poses
    return sample.pose
