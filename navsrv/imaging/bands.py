"""Owns rough bands in one X-ray: dark ridges as wide as a needle's shadow can be, and the lines that they lie on.

Ridges by second derivatives (Lindeberg, IJCV 30:117, 1998) vote for lines (Hough).  Refuses to say what a band is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from navsrv.kernel.frames import Array

RIDGE_SHARE: Final = 0.1
"""Of the strongest ridges; weaker ones are no metal."""
RIDGE_NOISES: Final = 8.0
VOTES_DEG: Final = 1.0
SAME_DEG: Final = 10.0
NEAR_WIDTHS: Final = 0.45
"""Ridge points within so many widths of a line belong to it."""
MOST_BANDS: Final = 6
"""Candidates that are looked at: edges of shutters and tables may come before the needle."""
GAP_WIDTHS: Final = 6.0
"""A band may be broken so far, as by another shadow across it."""
MIN_WIDTHS: Final = 6.0
"""Shorter than so many widths, a band has no direction worth its name."""


@dataclass(frozen=True, slots=True, eq=False)
class Ridges:
    """Points of ridges: (N, 2) column and row, (N,) angle of the band there, (N,) strength."""

    points: Array
    angles: Array
    strengths: Array


NO_RIDGES: Final = Ridges(np.zeros((0, 2)), np.zeros(0), np.zeros(0))


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """A rough line: middle and direction (2,), half its length, and its support."""

    middle: Array
    direction: Array
    half_px: float
    support: float


def find_bands(dark: NDArray[np.float32], blind: NDArray[np.bool_], widths_px: tuple[float, float]) -> list[Band]:
    """Return the straight bands by support, the best first; all that stand up to it.

    Parameters
    ----------
    dark, blind : (rows, columns)
        Metal is large; where nothing can be seen.
    widths_px : (least, largest)
        Of the bands.
    """
    ridges, width_px = _ridges(dark, blind, widths_px), widths_px[1]
    left = np.ones(len(ridges.points), dtype=bool)
    bands: list[Band] = []
    while left.sum() >= MIN_WIDTHS * width_px and len(bands) < MOST_BANDS:
        band, used = _best_band(ridges, left, width_px)
        if band is None:
            break
        bands.append(band)
        # What runs along the same line further out, or beside it, is the same needle.
        offset = ridges.points - band.middle
        across = np.abs(offset[:, 0] * band.direction[1] - offset[:, 1] * band.direction[0])
        left &= ~used & (across > 0.8 * width_px)
    return bands


def _ridges(dark: NDArray[np.float32], blind: NDArray[np.bool_], widths_px: tuple[float, float]) -> Ridges:
    """Return the crests of dark ridges as wide as a needle, thinned to single points."""
    sigma = 0.5 * float(np.sqrt(widths_px[0] * widths_px[1])) / np.sqrt(2.0) + 0.3
    kernel = 2 * int(np.ceil(4.0 * sigma)) + 1
    smooth = cv2.GaussianBlur(dark, (kernel, kernel), sigma, borderType=cv2.BORDER_REFLECT)
    gy, gx = np.gradient(smooth)
    gxy, gxx = np.gradient(gx)
    gyy = np.gradient(gy, axis=0)
    half_trace, spread = 0.5 * (gxx + gyy), np.hypot(0.5 * (gxx - gyy), gxy)
    # The smallest eigenvalue is the bend across a dark ridge; what bends the other way too is a spot or a saddle.
    bend, other = half_trace - spread, half_trace + spread
    strength = np.maximum(-bend - np.abs(other), 0.0) * sigma**2
    across = 0.5 * np.arctan2(-2.0 * gxy, gyy - gxx)  # direction of the strongest bend
    margin = int(np.ceil(2.0 * sigma))
    strength[:margin] = strength[-margin:] = 0.0
    strength[:, :margin] = strength[:, -margin:] = 0.0
    # A dark field's rim is a border too; beside clipped white, metal is seen to where it is white itself.
    rim = (blind & (dark > np.median(dark[~blind]))).astype(np.uint8)
    strength[blind | (cv2.dilate(rim, np.ones((2 * margin + 1,) * 2, np.uint8)) > 0)] = 0.0
    nx, ny = np.cos(across), np.sin(across)
    rows, columns = np.nonzero(strength > 0.0)
    if not len(rows):
        return NO_RIDGES
    height = strength[rows, columns]
    noise = float(np.median(height)) / 0.6745
    limit = max(RIDGE_NOISES * noise, RIDGE_SHARE * float(np.quantile(height, 0.999)))
    keep = height > limit
    rows, columns, height = rows[keep], columns[keep], height[keep]
    crest = np.ones(len(rows), dtype=bool)
    for way in (-1.0, 1.0):
        beside = map_coordinates(strength, [rows + way * ny[rows, columns], columns + way * nx[rows, columns]], order=1)
        crest &= height >= beside
    rows, columns, height = rows[crest], columns[crest], height[crest]
    # A ridge is dark against both sides; a step is so against one.
    beside = [
        map_coordinates(
            smooth,
            [rows + way * widths_px[1] * ny[rows, columns], columns + way * widths_px[1] * nx[rows, columns]],
            order=1,
            mode="nearest",
        )
        for way in (-1.0, 1.0)
    ]
    depth = smooth[rows, columns] - np.maximum(beside[0], beside[1])
    keep = depth > 0.0
    rows, columns, depth = rows[keep], columns[keep], depth[keep]
    if not len(rows):
        return NO_RIDGES
    points = np.column_stack([columns, rows]).astype(np.float64)
    angles = np.mod(across[rows, columns] + np.pi / 2, np.pi)
    return Ridges(points, angles, np.minimum(depth, 2.0 * float(np.median(depth))))


def _best_band(ridges: Ridges, left: NDArray[np.bool_], width_px: float) -> tuple[Band | None, NDArray[np.bool_]]:
    points, angles, strengths = ridges.points[left], ridges.angles[left], ridges.strengths[left]
    near = max(NEAR_WIDTHS * width_px, 1.5)
    bins = round(180.0 / VOTES_DEG)
    base = np.round(np.degrees(angles) / VOTES_DEG).astype(int)
    radius = float(np.abs(points).max()) * 1.5
    cells = int(np.ceil(2.0 * radius / near)) + 1
    votes = np.zeros((bins, cells))
    for turn in range(-4, 5):
        bin_ = np.mod(base + turn, bins)
        angle = np.radians(bin_ * VOTES_DEG)
        rho = -np.sin(angle) * points[:, 0] + np.cos(angle) * points[:, 1]
        np.add.at(votes, (bin_, ((rho + radius) / near).astype(int)), strengths)
    votes[:, 1:] += votes[:, :-1].copy()
    peak = np.unravel_index(int(votes.argmax()), votes.shape)
    angle = float(np.radians(peak[0] * VOTES_DEG))
    direction = np.array([np.cos(angle), np.sin(angle)])
    middle = np.array([-np.sin(angle), np.cos(angle)]) * (float(peak[1]) * near - radius)
    chosen = np.zeros(len(points), dtype=bool)
    for _ in range(4):
        offset = points - middle
        across = offset[:, 1] * direction[0] - offset[:, 0] * direction[1]
        turned = np.abs(np.mod(angles - np.arctan2(direction[1], direction[0]) + np.pi / 2, np.pi) - np.pi / 2)
        chosen = (np.abs(across) <= near) & (turned < np.radians(SAME_DEG))
        if chosen.sum() < MIN_WIDTHS:
            return None, left
        weight = strengths[chosen] / strengths[chosen].sum()
        middle = weight @ points[chosen]
        spread = (points[chosen] - middle).T * weight @ (points[chosen] - middle)
        found = np.linalg.eigh(spread)[1][:, 1]
        direction = found if found @ direction >= 0.0 else -found
    along = (points - middle) @ direction
    low, high, support = _longest_run(along[chosen], strengths[chosen], GAP_WIDTHS * width_px)
    if high - low < MIN_WIDTHS * width_px:
        return None, left
    used = np.zeros(len(left), dtype=bool)
    used[np.flatnonzero(left)[chosen]] = True
    centre = middle + 0.5 * (low + high) * direction
    return Band(centre, direction, 0.5 * (high - low), support), used


def _longest_run(along: Array, strengths: Array, gap: float) -> tuple[float, float, float]:
    """Return (first, last, support) of the run of points with the most support between gaps."""
    order = np.argsort(along)
    places, weights = along[order], strengths[order]
    cuts = np.flatnonzero(np.diff(places) > gap) + 1
    runs = list(zip(np.split(places, cuts), np.split(weights, cuts), strict=True))
    best, weight = max(runs, key=lambda run: float(run[1].sum()))
    return float(best[0]), float(best[-1]), float(weight.sum())
