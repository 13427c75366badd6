"""Owns the tool against the plan: lateral and angular deviation, depth to target, corridor."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

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


@dataclass(frozen=True, slots=True)
class Deviation:
    """Lateral offset (mm) and angle (deg) from the path; signed depth left along it (mm); inside the corridor."""

    lateral_mm: float
    angle_deg: float
    depth_to_target_mm: float
    inside_corridor: bool


def deviation(path: PlannedPath, tip_ct_mm: Array, axis_ct: Array) -> Deviation:
    """Return how a tip (3,) and its axis (3,) (unit, hub to tip) stand to the path; depth is negative beyond it."""
    d = path.direction_ct
    rest = path.target_ct_mm - tip_ct_mm
    depth = float(rest @ d)
    lateral = float(np.linalg.norm(rest - depth * d))
    angle = math.degrees(math.atan2(float(np.linalg.norm(np.cross(axis_ct, d))), float(axis_ct @ d)))
    return Deviation(lateral, angle, depth, lateral <= path.corridor_mm)
