"""Owns straight ways with stops, travelled as a hand travels them: a trapezoid of speed on each piece.

A ``Route`` is made of ``Leg``s and asked for places at any times, thousands at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.frames import Array

ACCELERATION_MM_S2: Final = 25.0


@dataclass(frozen=True, slots=True, eq=False)
class Leg:
    """A straight piece of a way, or a stay where both ends are equal."""

    phase: str
    start_mm: Array
    end_mm: Array
    speed_mm_s: float
    duration_s: float
    visible: bool = True


def travel(phase: str, start_mm: Array, end_mm: Array, speed_mm_s: float) -> Leg:
    """Return the leg between two points, at most at a speed, as fast as the acceleration allows."""
    length = float(np.linalg.norm(end_mm - start_mm))
    if length < 1e-6:
        return stay(phase, end_mm, 0.0)
    speed = min(speed_mm_s, float(np.sqrt(length * ACCELERATION_MM_S2)))
    return Leg(phase, start_mm, end_mm, speed, length / speed + speed / ACCELERATION_MM_S2)


def stay(phase: str, at_mm: Array, seconds: float, visible: bool = True) -> Leg:
    """Return a stay."""
    return Leg(phase, at_mm, at_mm, 0.0, seconds, visible)


class Route:
    """Legs in their order; before the first the place is its start, after the last its end."""

    def __init__(self, legs: Sequence[Leg]) -> None:
        self.legs = tuple(legs)
        self.phases = (*(leg.phase for leg in legs), "finished")
        """By number of leg; the last is what comes after them."""
        self._ends_s = np.cumsum([leg.duration_s for leg in legs])
        self._start = np.array([leg.start_mm for leg in legs])
        way = np.array([leg.end_mm for leg in legs]) - self._start
        length = np.linalg.norm(way, axis=1)
        self._towards = way / np.where(length > 0.0, length, 1.0)[:, None]
        self._length = length
        self._speed = np.array([leg.speed_mm_s for leg in legs])
        self._lasts = np.array([leg.duration_s for leg in legs])
        self._visible = np.array([*(leg.visible for leg in legs), True])

    @property
    def duration_s(self) -> float:
        """How long all legs last."""
        return float(self._ends_s[-1])

    def leg_at(self, t_s: Array) -> NDArray[np.intp]:
        """Return the number of the leg at times (N,); as many as there are legs once all are over."""
        return np.searchsorted(self._ends_s, t_s, side="right")

    def visible(self, leg: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return whether the tool is in sight on legs (N,)."""
        result: NDArray[np.bool_] = self._visible[leg]
        return result

    def at(self, t_s: Array) -> Array:
        """Return the place (N, 3) at times (N,)."""
        n = np.minimum(self.leg_at(t_s), len(self.legs) - 1)
        length, speed, lasts = self._length[n], self._speed[n], self._lasts[n]
        t = np.clip(t_s - (self._ends_s[n] - lasts), 0.0, lasts)
        moving = length > 0.0
        ramp = np.where(moving, lasts - length / np.where(moving, speed, 1.0), 1.0)
        fast = speed * (t - 0.5 * ramp)
        begun = 0.5 * speed * t * t / ramp
        ending = length - 0.5 * speed * (lasts - t) ** 2 / ramp
        done = np.where(t < ramp, begun, np.where(t > lasts - ramp, ending, fast))
        result: Array = self._start[n] + np.where(moving, done, 0.0)[:, None] * self._towards[n]
        return result
