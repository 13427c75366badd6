"""Owns the tool against the plan: lateral and angular deviation, depth to target, corridor, and where it points."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from navsrv.kernel.frames import Array, frozen_array


@dataclass(frozen=True, slots=True, eq=False)
class PlannedPath:
    """A straight path from the entry on the skin to the target, and its corridor.

    Attributes
    ----------
    entry_ct_mm, target_ct_mm : (3,) float64
        LPS mm in CT; ValueError where both are one point.
    corridor_mm : float
        Radius of the corridor.
    direction_ct : (3,) float64
        Unit vector from entry to target.
    """

    entry_ct_mm: Array
    target_ct_mm: Array
    corridor_mm: float
    direction_ct: Array = field(init=False)

    def __post_init__(self) -> None:
        for name in ("entry_ct_mm", "target_ct_mm"):
            object.__setattr__(self, name, frozen_array(getattr(self, name), (3,)))
        way = self.target_ct_mm - self.entry_ct_mm
        length = float(np.linalg.norm(way))
        if not 0.0 < length < math.inf:
            raise ValueError(f"a path from {self.entry_ct_mm} to {self.target_ct_mm} has no direction")
        object.__setattr__(self, "direction_ct", frozen_array(way / length, (3,)))


class Deviation(NamedTuple):
    """How the tool stands to the plan, and where it goes if it is pushed on along its present axis.

    Attributes
    ----------
    lateral_mm : float
        Of the tip from the line of the path.
    angle_deg : float
        Between the axes, 0 to 180.
    depth_to_target_mm : float
        Left along the path; negative beyond the target.
    inside_corridor : bool
        The tip is within the corridor's radius of the line.
    miss_mm : float
        How far from the target the present axis passes that is extended both ways.
    reach_mm : float
        How far ahead of the tip, along the axis, it passes nearest to the target; negative where that is behind.
    aim_ct_mm : tuple
        That point in CT.
    on_target : bool
        Pushed on as it points, the tip comes to the target within the corridor's radius: it lies ahead.
    """

    lateral_mm: float
    angle_deg: float
    depth_to_target_mm: float
    inside_corridor: bool
    miss_mm: float
    reach_mm: float
    aim_ct_mm: tuple[float, float, float]
    on_target: bool


def deviation(path: PlannedPath, tip_ct_mm: ArrayLike, axis_ct: ArrayLike) -> Deviation:
    """Return how a tip (3,) and its axis (3,) (unit, hub to tip) stand to the path and its target."""
    pose = np.concatenate((np.asarray(tip_ct_mm, dtype=np.float64), np.asarray(axis_ct, dtype=np.float64)))
    return deviation_of(path, pose)


def deviation_of(path: PlannedPath, pose: Array) -> Deviation:
    """Return the same for a ``pose`` that begins with tip and axis (6 or more numbers): one compiled call."""
    lateral, angle, depth, miss, reach, aim = _stand(path.target_ct_mm, path.direction_ct, pose)
    corridor = path.corridor_mm
    return Deviation(
        lateral, angle, depth, lateral <= corridor, miss, reach, aim, miss <= corridor and reach >= -corridor
    )


@njit(cache=True, nogil=True)
def _stand(
    target: Array, direction: Array, pose: Array
) -> tuple[float, float, float, float, float, tuple[float, float, float]]:
    rx, ry, rz = target[0] - pose[0], target[1] - pose[1], target[2] - pose[2]
    ax, ay, az = pose[3], pose[4], pose[5]
    dx, dy, dz = direction[0], direction[1], direction[2]
    depth = rx * dx + ry * dy + rz * dz
    lateral = math.sqrt((rx - depth * dx) ** 2 + (ry - depth * dy) ** 2 + (rz - depth * dz) ** 2)
    cx, cy, cz = ay * dz - az * dy, az * dx - ax * dz, ax * dy - ay * dx
    angle = math.degrees(math.atan2(math.sqrt(cx * cx + cy * cy + cz * cz), ax * dx + ay * dy + az * dz))
    reach = rx * ax + ry * ay + rz * az
    miss = math.sqrt((rx - reach * ax) ** 2 + (ry - reach * ay) ** 2 + (rz - reach * az) ** 2)
    aim = (pose[0] + reach * ax, pose[1] + reach * ay, pose[2] + reach * az)
    return lateral, angle, depth, miss, reach, aim
