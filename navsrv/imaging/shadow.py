"""Owns the shadow of a needle in one X-ray: a straight dark band, where its middle runs and where it ends.

Ridges as wide as the needle's shadow can be (second derivatives, Lindeberg, IJCV 30:117, 1998) vote for lines (Hough);
profiles across the best line give its course to parts of a pixel, and the depth of the shadow along it its ends.
Which end is the tip, and which of several bands is the needle's, one picture does not say.  Refuses pictures without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, map_coordinates

from navsrv.imaging.found import NeedleError, Why
from navsrv.imaging.profiles import (
    METAL_SHARE,
    goes_on,
    middles_of,
    neighbour_share,
    profiles_across,
    width_at_half,
    without_background,
)
from navsrv.kernel.frames import Array
from navsrv.kernel.projection import ProjectionModel

RIDGE_SHARE: Final = 0.1
"""Of the strongest ridges; weaker ones are no metal."""
RIDGE_NOISES: Final = 8.0
VOTES_DEG: Final = 1.0
SAME_DEG: Final = 10.0
SAME_LINE_DEG: Final = 3.0
NEAR_WIDTHS: Final = 0.45
"""Ridge points within so many widths of a line belong to it."""
RIVAL: Final = 0.45
"""A second band that is this share as good as the best makes the picture ambiguous."""
MOST_BANDS: Final = 6
"""Candidates that are looked at: edges of shutters and tables may come before the needle."""
GAP_WIDTHS: Final = 6.0
"""A band may be broken so far, as by another shadow across it."""
MIN_WIDTHS: Final = 6.0
"""Shorter than so many widths, a band has no direction worth its name."""
POINTS_APART: Final = 3.0
"""Neighbouring profiles share noise: of so many one counts, at most."""
FLOOR_PX: Final = 0.1
END_FLOOR: Final = 0.1
"""Of the width: how far the end of a shadow is from where a point's would be, because the shaft is cut obliquely."""
BORDER_PX: Final = 2.0
STEP_PX: Final = 0.5
BEFORE_WIDTHS: Final = 5.0
STAY_WIDTHS: Final = 2.0
"""The shadow has ended where it stays away for so long."""
WIDEST: Final = 1.4
UNSURE_WIDTHS: Final = 0.8
"""An end that is less sure than so many widths is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Radiograph:
    """An X-ray image and where it was taken.

    Attributes
    ----------
    pixels : (rows, columns)
        Linear in the logarithm of the intensity.
    projection : ProjectionModel
        From the frame that the views share; pixels as in ``pixels``, without distortion.
    bright_air : bool
        Air is bright and metal dark, as detectors give it; False: metal is bright.
    """

    pixels: NDArray[np.generic]
    projection: ProjectionModel
    bright_air: bool = True

    def __post_init__(self) -> None:
        shape = (self.projection.rows, self.projection.columns)
        if np.shape(self.pixels) != shape:
            raise NeedleError(Why.UNUSABLE, f"an image of {np.shape(self.pixels)} pixels for a detector of {shape}")


@dataclass(frozen=True, slots=True)
class End:
    """One end of a shadow: ``(column, row)``, one sigma along the band, and what the picture shows of it.

    ``inside``: the end itself; ``clear``: nothing else as dark near it, so that it is the end of this needle.
    """

    place_px: tuple[float, float]
    sigma_px: float
    inside: bool
    clear: bool


@dataclass(frozen=True, slots=True, eq=False)
class Shadow:
    """A needle's band.

    Attributes
    ----------
    point_px, direction : (2,)
        The line: its point in the middle of the band, and a unit vector.
    covariance : (2, 2)
        Of (offset across in pixels at ``point_px``, angle in radians).
    ends : (End, End)
        Against ``direction`` first.
    width_px, length_px : float
    depth : float
        How much darker it is than what is beside it, in standard deviations of the picture.
    residual_px : float
        Root mean square of the profiles' middles about the line.
    bow_px : float
        How far the middle strays from the chord of the ends: a bent needle, or more than one.
    beside : bool
        Another band runs close along this one.
    """

    point_px: Array
    direction: Array
    covariance: Array
    ends: tuple[End, End]
    width_px: float
    length_px: float
    depth: float
    residual_px: float
    bow_px: float
    beside: bool

    @property
    def quality(self) -> float:
        """How much it is like metal and how straight it is: bones' edges are neither."""
        return self.depth / (self.residual_px + FLOOR_PX)


def find_shadows(image: Radiograph, widths_px: tuple[float, float]) -> list[Shadow]:
    """Return the bands that may be the needle's, the best first: those that are at all as good as it.

    Parameters
    ----------
    widths_px : (least, largest)
        How wide the shadow can be: the needle's diameter, magnified.

    Raises
    ------
    NeedleError
        No such band.
    """
    dark = _darkness(image)
    ridges = _ridges(dark, widths_px)
    measured = [_measured(dark, band, widths_px) for band in _bands(ridges, widths_px[1])]
    shadows = sorted((s for s in measured if s is not None), key=lambda s: -s.length_px * s.quality)
    if not shadows:
        text = "no straight metal shadow of the needle's width; a bent one, one seen end on or two that touch cast none"
        raise NeedleError(Why.NO_NEEDLE, text)
    found: list[Shadow] = []
    for shadow in shadows:
        if shadow.quality > RIVAL * shadows[0].quality and not any(_same(shadow, other) for other in found):
            found.append(shadow)
    return found


def _same(a: Shadow, b: Shadow) -> bool:
    """Say whether two bands are one: on one line."""
    turned = abs(float(a.direction[0] * b.direction[1] - a.direction[1] * b.direction[0]))
    offset = a.point_px - b.point_px
    beside = abs(float(offset[0] * b.direction[1] - offset[1] * b.direction[0]))
    return turned < np.sin(np.radians(SAME_LINE_DEG)) and beside < 0.5 * b.width_px


@dataclass(frozen=True, slots=True, eq=False)
class _Ridges:
    """Points of ridges: (N, 2) column and row, (N,) angle of the band there, (N,) strength."""

    points: Array
    angles: Array
    strengths: Array


_NO_RIDGES: Final = _Ridges(np.zeros((0, 2)), np.zeros(0), np.zeros(0))


@dataclass(frozen=True, slots=True, eq=False)
class _Band:
    """A rough line: middle and direction (2,), half its length, and its support."""

    middle: Array
    direction: Array
    half_px: float
    support: float


def _darkness(image: Radiograph) -> NDArray[np.float32]:
    pixels = np.asarray(image.pixels, dtype=np.float32)
    if not np.isfinite(pixels).all() or float(np.ptp(pixels)) == 0.0:
        raise NeedleError(Why.UNUSABLE, "the X-ray is constant, or has pixels that are no numbers")
    dark = -pixels if image.bright_air else pixels
    result: NDArray[np.float32] = (dark - np.float32(np.median(dark))) / np.float32(max(float(pixels.std()), 1e-6))
    return result


def _ridges(dark: NDArray[np.float32], widths_px: tuple[float, float]) -> _Ridges:
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
    nx, ny = np.cos(across), np.sin(across)
    rows, columns = np.nonzero(strength > 0.0)
    if not len(rows):
        return _NO_RIDGES
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
        return _NO_RIDGES
    points = np.column_stack([columns, rows]).astype(np.float64)
    angles = np.mod(across[rows, columns] + np.pi / 2, np.pi)
    return _Ridges(points, angles, np.minimum(depth, 2.0 * float(np.median(depth))))


def _bands(ridges: _Ridges, width_px: float) -> list[_Band]:
    """Return the straight bands by support, the best first; all that stand up to it."""
    left = np.ones(len(ridges.points), dtype=bool)
    bands: list[_Band] = []
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


def _best_band(ridges: _Ridges, left: NDArray[np.bool_], width_px: float) -> tuple[_Band | None, NDArray[np.bool_]]:
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
    return _Band(centre, direction, 0.5 * (high - low), support), used


def _longest_run(along: Array, strengths: Array, gap: float) -> tuple[float, float, float]:
    """Return (first, last, support) of the run of points with the most support between gaps."""
    order = np.argsort(along)
    places, weights = along[order], strengths[order]
    cuts = np.flatnonzero(np.diff(places) > gap) + 1
    runs = list(zip(np.split(places, cuts), np.split(weights, cuts), strict=True))
    best, weight = max(runs, key=lambda run: float(run[1].sum()))
    return float(best[0]), float(best[-1]), float(weight.sum())


def _measured(dark: NDArray[np.float32], band: _Band, widths_px: tuple[float, float]) -> Shadow | None:
    """Return the band's line and ends to parts of a pixel; None for one that is no metal of about the width."""
    middle, direction, half = band.middle, band.direction, band.half_px
    stations = np.arange(-half, half + 0.5, 1.0)
    width = widths_px[1]
    for _ in range(4):
        profiles, t = profiles_across(dark, middle, direction, stations, 1.8 * width)
        offsets, weights = middles_of(profiles, t, 0.8 * width)
        line = _straight(stations, offsets, weights)
        if line is None:
            return None
        level, slope, good = line
        across = np.array([-direction[1], direction[0]])
        middle = middle + level * across
        direction = direction + slope * across
        direction /= np.linalg.norm(direction)
        width = width_at_half(profiles[good], t)
        if not 0.6 * widths_px[0] - 1.0 <= width <= WIDEST * widths_px[1] + 1.5:
            return None
    residual = offsets[good] - level - slope * stations[good]
    rms = float(np.sqrt((residual**2).mean()))
    bow = _bow(stations, offsets, weights, half)
    design = np.column_stack([np.ones(int(good.sum())), stations[good]])
    covariance = np.linalg.inv(design.T @ design) * (rms**2 * _points_alike(residual))
    covariance += np.diag([FLOOR_PX**2 + bow**2 / 4.0, (FLOOR_PX / half) ** 2 + (2.0 * bow / half) ** 2])
    ends = tuple(_end(dark, middle, direction, way, half, width) for way in (-1.0, 1.0))
    length = float(np.hypot(*np.subtract(ends[1].place_px, ends[0].place_px)))
    above = without_background(profiles[good], t, 0.8 * width)
    depth = float(np.median(above[:, np.abs(t) <= 0.3 * width]))
    beside = neighbour_share(dark, middle, direction, stations, width) > METAL_SHARE
    return Shadow(middle, direction, covariance, (ends[0], ends[1]), width, length, depth, rms, bow, beside)


def _points_alike(residual: Array) -> float:
    """Return how many neighbouring profiles err alike (the integrated autocorrelation): bones' edges pull many along.

    Summed until the correlation first falls below zero (Geyer, Stat Sci 7:473, 1992), not below ``POINTS_APART``.
    """
    n = len(residual)
    spectrum = np.abs(np.fft.rfft(residual - residual.mean(), 2 * n)) ** 2
    correlation = np.fft.irfft(spectrum)[: n // 2]
    correlation /= max(float(correlation[0]), 1e-12)
    negative = np.flatnonzero(correlation < 0.0)
    stop = int(negative[0]) if len(negative) else len(correlation)
    return max(POINTS_APART, 2.0 * float(correlation[:stop].sum()) - 1.0)


def _bow(stations: Array, offsets: Array, weights: Array, half: float) -> float:
    """Return how far the band's middle strays from the chord of its ends (a parabola's height)."""
    good = weights > 0.0
    return abs(float(np.polyfit(stations[good], offsets[good], 2)[0])) * half**2


def _straight(stations: Array, offsets: Array, weights: Array) -> tuple[float, float, NDArray[np.bool_]] | None:
    """Return (offset, slope) of a line through profiles' middles, and which it goes through; None where too few do."""
    good = weights > 0.0
    level = slope = 0.0
    for _ in range(4):
        if good.sum() < MIN_WIDTHS:
            return None
        slope, level = np.polyfit(stations[good], offsets[good], 1)
        rest = np.abs(offsets - level - slope * stations)
        good = (weights > 0.0) & (rest <= max(3.0 * 1.4826 * float(np.median(rest[good])), 0.15))
    return float(level), float(slope), good


def _end(dark: NDArray[np.float32], middle: Array, direction: Array, way: float, half: float, width: float) -> End:
    """Return where the band ends, going ``way`` from the middle: where the shadow falls to half the depth it had.

    The depth that it had is the median of the last few widths, because another shadow across it changes it.
    """
    heading = way * direction
    rows, columns = dark.shape
    size = np.array([columns, rows]) - 1.0
    with np.errstate(divide="ignore"):
        room = np.where(heading > 0.0, size - BORDER_PX - middle, BORDER_PX - middle) / heading
    reach = float(np.min(room))
    stations = np.arange(0.0, max(reach, 1.0), STEP_PX)
    profiles, t = profiles_across(dark, middle, heading, stations, 1.8 * width)
    above = without_background(profiles, t, 0.8 * width)
    depth = gaussian_filter1d(above[:, np.abs(t) <= 0.3 * width].mean(axis=1), 0.15 * width / STEP_PX)
    before, stay = int(BEFORE_WIDTHS * width / STEP_PX), int(STAY_WIDTHS * width / STEP_PX)
    for n in range(int(0.5 * half / STEP_PX), len(stations) - stay // 2):
        had = depth[max(n - before, 0) : max(n - stay // 2, 1)]
        full = float(np.median(had))
        if (depth[n : n + stay] < 0.5 * full).all():
            fall = float(depth[n - 1] - depth[n])
            share = float(np.clip((depth[n - 1] - 0.5 * full) / fall, 0.0, 1.0)) if fall > 0.0 else 0.5
            place = middle + (stations[n - 1] + STEP_PX * share) * heading
            steep = float(depth[max(n - 4, 0)] - depth[min(n + 4, len(depth) - 1)]) / (8.0 * STEP_PX)
            noise = float(had.std()) / max(steep, 1e-6)
            last = profiles[max(n - before, 0) : max(n - stay // 2, 1)]
            background = float(np.median(last[:, np.abs(t) > 0.8 * width]))
            sigma = float(np.hypot(noise, END_FLOOR * width))
            clear = sigma < UNSURE_WIDTHS * width and not goes_on(dark, place, heading, width, background, full)
            return End((float(place[0]), float(place[1])), sigma, True, clear)
    place = middle + reach * heading
    return End((float(place[0]), float(place[1])), float("inf"), False, False)
