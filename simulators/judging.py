"""Owns what a run is judged by: the frames that a display received, held against the simulator's truth.

The truth comes from the tracker simulator's log and from ``simulators.world.truth``; neither shares code with the
guidance that is judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from navsrv.kernel.frames import Array, Rigid, rotation_angle_rad
from navsrv.wire.guidance import GEOMETRY_STATES, GuidanceFrame
from simulators.world.scene import TruthLog
from simulators.world.truth import Surface, Truth, Union

RANK: Final = {"none": 0, "unknown": 0, "caution": 1, "warning": 2, "breach": 3}
NEAR_MM: Final = 1.0
SAMPLE_MM: Final = 3.0
REACH_MM: Final = 20.0
"""Beyond the largest limit and the longest edge: a triangle farther away is nearest to no needle that is judged."""
JUDGED_POSES: Final = 150
JUDGED_POSES_OF_MESHES: Final = 40
"""Brute force over triangles takes half a second a pose."""
LATE_MM: Final = 0.5
"""An alarm is late when the true distance is below its threshold by more than this and the level is not there."""


@dataclass(frozen=True, slots=True)
class Received:
    """One frame as a display got it, with the monotonic time (ns) of its arrival."""

    arrival_ns: int
    frame: GuidanceFrame


@dataclass(frozen=True, slots=True)
class Shaft:
    """The needle's shaft, mm."""

    length_mm: float
    radius_mm: float


def registration_error_mm(estimate: Rigid, truth: Rigid, target_ct_mm: Array) -> tuple[float, float]:
    """Return the error (mm) at a target (3,) of ``T_ct_from_ref``, and the rotation error (degrees)."""
    error = estimate @ truth.inverse()
    distance = float(np.linalg.norm(error.apply(target_ct_mm) - target_ct_mm))
    return distance, float(np.degrees(rotation_angle_rad(error.rotation)))


def judge(
    received: list[Received], log: TruthLog, truth: Truth, limits_mm: dict[str, tuple[float, float]], shaft: Shaft
) -> dict[str, Any]:
    """Return the figures of a run.

    Parameters
    ----------
    limits_mm : mapping
        Caution and warning of each critical structure.
    """
    truth_at = {r.pose_time_ns: i for i, r in enumerate(log.records)}
    first: dict[int, Received] = {}
    for item in received:
        if item.frame.pose_time_ns is not None and item.frame.pose_time_ns in truth_at:
            first.setdefault(item.frame.pose_time_ns, item)
    near = {name: near_poses(truth, name, log, shaft, limit[0] + NEAR_MM) for name, limit in limits_mm.items()}
    clearance = {name: true_clearance(truth, name, log, shaft, poses) for name, poses in near.items()}
    late, worst_error = _late_alarms(first, truth_at, clearance, limits_mm)
    latencies = [(item.arrival_ns - log.records[truth_at[t]].sent_monotonic_ns) / 1e6 for t, item in first.items()]
    alerts = _alert_latencies(received, log, truth_at)
    return {
        "poses_sent": len(log.records),
        "poses_answered": len(first),
        "frame_latency_ms": _spread(latencies),
        "worst_alert_latency_ms": max(alerts) if alerts else None,
        "alerts": len(alerts),
        "late_alarms": late,
        "poses_judged": sum(len(found) for found in clearance.values()),
        "largest_clearance_error_mm": worst_error,
        "minimum_clearance_mm": _minimum(received, clearance),
        "states": _states(received),
    }


def near_poses(truth: Truth, name: str, log: TruthLog, shaft: Shaft, reach_mm: float) -> NDArray[np.int64]:
    """Return which poses (indices into the log) may be nearer to a structure than ``reach_mm``; none is left out.

    The shaft is sampled: a distance changes by at most 1 mm per mm, so between samples SAMPLE_MM apart nothing is
    nearer than the nearest sample less half of that.
    """
    along = np.arange(0.0, shaft.length_mm + SAMPLE_MM, SAMPLE_MM)
    points = log.tip_ct_mm[:, None, :] - along[None, :, None] * log.axis_ct[:, None, :]
    bound = _lower_bound(truth.shapes[name], points.reshape(-1, 3)).reshape(len(points), -1).min(axis=1)
    return np.flatnonzero(bound - SAMPLE_MM / 2.0 - shaft.radius_mm < reach_mm)


def _lower_bound(shape: Union | Surface, points: Array) -> Array:
    """Return a distance (N,) that the true one is not below: exact for solids; for triangles by their corners."""
    if isinstance(shape, Union):
        return shape.distance(points)[0]
    corners = shape.vertices[shape.triangles]
    longest = float(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max())
    to_corner: Array = cKDTree(shape.vertices).query(points)[0]
    return to_corner - longest


def true_clearance(truth: Truth, name: str, log: TruthLog, shaft: Shaft, poses: NDArray[np.int64]) -> dict[int, float]:
    """Return the true clearance (mm) of tip or shaft by pose; of many near poses, some evenly spread ones."""
    most = JUDGED_POSES if isinstance(truth.shapes[name], Union) else JUDGED_POSES_OF_MESHES
    chosen = poses[np.unique(np.linspace(0, len(poses) - 1, most).astype(int))] if len(poses) else poses
    tips, axes = log.tip_ct_mm[chosen], log.axis_ct[chosen]
    if not len(tips):
        return {}
    hubs = tips - shaft.length_mm * axes
    of_tip = truth.distance(tips, (name,))[name]
    patch = Truth({name: _within_reach(truth.shapes[name], tips, axes, shaft)})
    of_shaft = patch.shaft_distance(tips, hubs, shaft.radius_mm)[name]
    # A patch has no inside: what might touch it or be inside is asked of the whole.
    unsure = np.flatnonzero((of_shaft + shaft.radius_mm < 0.5) | (of_tip < 0.5))
    if len(unsure):
        of_shaft[unsure] = truth.shaft_distance(tips[unsure], hubs[unsure], shaft.radius_mm, (name,))[name]
    return dict(zip(chosen.tolist(), np.minimum(of_tip, of_shaft).tolist(), strict=True))


def _within_reach(shape: Union | Surface, tips: Array, axes: Array, shaft: Shaft) -> Union | Surface:
    """Return the shape; of a surface only the triangles within REACH_MM of any of the needles, if there are any."""
    if isinstance(shape, Union):
        return shape
    along = np.arange(0.0, shaft.length_mm + SAMPLE_MM, SAMPLE_MM)
    points = (tips[:, None, :] - along[None, :, None] * axes[:, None, :]).reshape(-1, 3)
    reached = cKDTree(points).query(shape.vertices, distance_upper_bound=REACH_MM)[0] < REACH_MM
    patch = shape.triangles[reached[shape.triangles].any(axis=1)]
    return Surface(shape.vertices, patch) if len(patch) else shape


def _late_alarms(
    first: dict[int, Received],
    truth_at: dict[int, int],
    clearance: dict[str, dict[int, float]],
    limits_mm: dict[str, tuple[float, float]],
) -> tuple[int, float]:
    """Return how often a level was missing though the truth was LATE_MM beyond it, and the largest error (mm)."""
    late, worst = 0, 0.0
    for time_ns, item in first.items():
        if item.frame.state not in GEOMETRY_STATES:
            continue
        ranks: dict[str, int] = {}
        shown: dict[str, float] = {}
        for row in item.frame.structures:
            ranks[row.name] = max(ranks.get(row.name, 0), RANK[row.level])
            if row.distance_mm is not None:
                shown[row.name] = min(shown.get(row.name, np.inf), row.distance_mm)
        for name, (caution, warning) in limits_mm.items():
            true = clearance[name].get(truth_at[time_ns])
            if true is None:
                continue
            worst = max(worst, abs(shown[name] - true))
            wanted = 2 if true < warning - LATE_MM else 1 if true < caution - LATE_MM else 0
            late += ranks[name] < wanted
    return late, worst


def _alert_latencies(received: list[Received], log: TruthLog, truth_at: dict[int, int]) -> list[float]:
    """Return, for each first appearance of a structure's alarm, the time (ms) from the pose's send to its arrival."""
    known: set[str] = set()
    found = []
    for item in received:
        now = {a.id for a in item.frame.alarms if a.structure is not None}
        sent = truth_at.get(item.frame.pose_time_ns) if item.frame.pose_time_ns is not None else None
        if now - known and sent is not None and item.frame.state in GEOMETRY_STATES:
            found.append((item.arrival_ns - log.records[sent].sent_monotonic_ns) / 1e6)
        known = now
    return found


def _minimum(received: list[Received], clearance: dict[str, dict[int, float]]) -> dict[str, dict[str, float | None]]:
    """Return the least clearance of each structure as shown and in truth (None: never near), the nearest first."""
    shown: dict[str, float] = {}
    for item in received:
        for row in item.frame.structures:
            if row.name in clearance and row.distance_mm is not None:
                shown[row.name] = min(shown.get(row.name, np.inf), row.distance_mm)
    return {
        name: {"shown": round(value, 3), "true": round(min(clearance[name].values()), 3) if clearance[name] else None}
        for name, value in sorted(shown.items(), key=lambda pair: pair[1])
    }


def _states(received: list[Received]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in received:
        counts[item.frame.state] = counts.get(item.frame.state, 0) + 1
    return counts


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    p50, p99, top = np.percentile(values, [50, 99, 100]).tolist()
    return {"p50": round(p50, 3), "p99": round(p99, 3), "max": round(top, 3)}
