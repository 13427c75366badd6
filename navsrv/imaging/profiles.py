"""Owns profiles across a band in an X-ray: background, middle, width; what else is dark beside it or beyond its end.

Refuses to say what a band is: one straight needle, two that touch, or a screw, is told by whoever knows the diameter.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from navsrv.kernel.frames import Array

NEIGHBOUR: Final = (0.95, 2.6)
"""Widths from a band's middle within which another counts as beside it."""
NEIGHBOUR_WIDTHS: Final = 8.0
"""A band is looked at in pieces of so many widths: one across it is beside it for less."""
FAN_DEG: Final = 70.0
FAN_WIDTHS: Final = (1.8, 2.4, 3.0, 3.6)
FAN_RINGS: Final = 3
"""Metal on so many arcs ahead of an end goes on: bent, or another's."""
METAL_SHARE: Final = 0.45
"""Of a band's own depth: what is as dark is metal, which bones' edges are not."""


def profiles_across(
    dark: NDArray[np.float32], middle: Array, direction: Array, stations: Array, reach: float
) -> tuple[Array, Array]:
    """Return profiles (stations, T) across a line, and their places (T,) across it."""
    t = np.arange(-reach, reach + 0.25, 0.5)
    columns = middle[0] + stations[:, None] * direction[0] - t * direction[1]
    rows = middle[1] + stations[:, None] * direction[1] + t * direction[0]
    return _sampled(dark, columns, rows), t


def without_background(profiles: Array, t: Array, beyond: float) -> Array:
    """Return profiles without their background: the straight line through what lies on both sides of the band."""
    left, right = t < -beyond, t > beyond
    a, b = np.median(profiles[:, left], axis=1), np.median(profiles[:, right], axis=1)
    ta, tb = float(np.median(t[left])), float(np.median(t[right]))
    result: Array = profiles - (a[:, None] + (b - a)[:, None] * (t - ta) / (tb - ta))
    return result


def middles_of(profiles: Array, t: Array, beyond: float) -> tuple[Array, Array]:
    """Return the middle of the band in each profile, and its weight: 0 where there is no clear band."""
    above = np.maximum(without_background(profiles, t, beyond), 0.0)
    above[:, np.abs(t) > beyond] = 0.0
    mass = above.sum(axis=1)
    middles = (above @ t) / np.maximum(mass, 1e-9)
    weights = np.where(mass > 0.35 * np.median(mass), 1.0, 0.0)
    return middles, weights


def width_at_half(profiles: Array, t: Array) -> float:
    """Return the full width at half depth of the mean profile, between samples."""
    mean = without_background(profiles, t, 0.75 * float(t[-1])).mean(axis=0)
    half = 0.5 * float(mean[np.abs(t) <= 1.0].max())
    top = int(np.argmin(np.abs(t)))
    reach = []
    for side in (mean[top::-1], mean[top:]):
        below = np.flatnonzero(side < half)
        if not len(below):
            return float(t[-1] - t[0])
        n = max(int(below[0]), 1)
        fall = float(side[n - 1] - side[n])
        reach.append(n - 1 + (float(side[n - 1]) - half) / fall if fall > 0.0 else float(n))
    return float(sum(reach)) * float(t[1] - t[0])


def neighbour_share(dark: NDArray[np.float32], middle: Array, direction: Array, stations: Array, width: float) -> float:
    """Return how dark the darkest thing along a band is, beside it, as a share of the band's own depth."""
    profiles, t = profiles_across(dark, middle, direction, stations, 3.4 * width)
    above = without_background(profiles, t, NEIGHBOUR[1] * width)
    pieces = np.array_split(above, max(int(len(stations) / (NEIGHBOUR_WIDTHS * width)), 1))
    beside = (np.abs(t) > NEIGHBOUR[0] * width) & (np.abs(t) < NEIGHBOUR[1] * width)
    own = float(np.median(above[:, np.abs(t) <= 0.3 * width]))
    worst = max(float(np.median(piece, axis=0)[beside].max()) for piece in pieces)
    return worst / max(own, 1e-9)


def goes_on(
    dark: NDArray[np.float32], end: Array, heading: Array, width: float, background: float, depth: float
) -> bool:
    """Say whether metal goes on from a band's end, on arcs ahead of it and to its sides.

    Parameters
    ----------
    background, depth : float
        Of the picture beside the band shortly before its end, and how much darker the band was.
    """
    turn = np.radians(np.arange(-FAN_DEG, FAN_DEG + 0.1, 2.0))
    cos, sin = np.cos(turn), np.sin(turn)
    ways = np.column_stack([cos * heading[0] - sin * heading[1], sin * heading[0] + cos * heading[1]])
    hit = 0
    for radius in FAN_WIDTHS:
        places = end + radius * width * ways
        inside = (places >= 0.0).all(axis=1) & (places <= np.array(dark.shape[::-1]) - 1.0).all(axis=1)
        values = _sampled(dark, places[:, 0], places[:, 1])
        hit += bool((values[inside] > background + METAL_SHARE * depth).any())
    return hit >= FAN_RINGS


def _sampled(dark: NDArray[np.float32], columns: Array, rows: Array) -> Array:
    found: Array = map_coordinates(dark, [rows, columns], order=1, mode="nearest").astype(np.float64)
    return found
