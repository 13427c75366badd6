"""Owns the tool against the plan: lateral and angular deviation, depth to target, corridor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from navsrv.kernel.frames import Array


@dataclass(frozen=True, slots=True, eq=False)
class PlannedPath:
    """A straight path from the entry on the skin to the target, LPS mm in CT, and its corridor's radius."""

    entry_ct_mm: Array
    target_ct_mm: Array
    corridor_mm: float

    @property
    def direction_ct(self) -> Array:
        """Unit vector (3,) from entry to target."""
        d = np.asarray(self.target_ct_mm, dtype=np.float64) - np.asarray(self.entry_ct_mm, dtype=np.float64)
        result: Array = d / np.linalg.norm(d)
        return result


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
    rest = np.asarray(path.target_ct_mm, dtype=np.float64) - tip_ct_mm
    depth = float(rest @ d)
    lateral = math.sqrt(max(float(rest @ rest) - depth * depth, 0.0))
    angle = math.degrees(math.atan2(float(np.linalg.norm(np.cross(axis_ct, d))), float(axis_ct @ d)))
    return Deviation(lateral, angle, depth, lateral <= path.corridor_mm)
