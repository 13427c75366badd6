"""Owns the shadow of a needle in one X-ray: a straight dark band, where its middle runs and where it ends.

Profiles across a rough band give its course to parts of a pixel, and the depth of the shadow along it its ends: where
the metal ends, or only the picture of it, as at the rim of a round field, at a shutter and in clipped white.  Which end
is the tip, and which of several bands is the needle's, one picture does not say.  Refuses pictures without a band.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from navsrv.imaging.bands import MIN_WIDTHS, Band, find_bands
from navsrv.imaging.field import blind_places, cut_off
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

SAME_LINE_DEG: Final = 3.0
RIVAL: Final = 0.45
"""A second band that is this share as good as the best makes the picture ambiguous."""
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
CUT_DEPTH: Final = 0.5
"""What is darker than the needle's surroundings by this share of its depth, to the picture's edge, is no field."""
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

    ``inside``: the end itself, not where the picture, its field or its range of brightness cuts the needle off;
    ``clear``: nothing else as dark near it, so that it is the end of this needle.
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
    blind = blind_places(dark, widths_px[1])
    measured = [_measured(dark, blind, band, widths_px) for band in find_bands(dark, blind, widths_px)]
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


def _darkness(image: Radiograph) -> NDArray[np.float32]:
    pixels = np.asarray(image.pixels, dtype=np.float32)
    if not np.isfinite(pixels).all() or float(np.ptp(pixels)) == 0.0:
        raise NeedleError(Why.UNUSABLE, "the X-ray is constant, or has pixels that are no numbers")
    dark = -pixels if image.bright_air else pixels
    result: NDArray[np.float32] = (dark - np.float32(np.median(dark))) / np.float32(max(float(pixels.std()), 1e-6))
    return result


def _measured(
    dark: NDArray[np.float32], blind: NDArray[np.bool_], band: Band, widths_px: tuple[float, float]
) -> Shadow | None:
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
    ends = tuple(_end(dark, blind, middle, way * direction, half, width) for way in (-1.0, 1.0))
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


def _end(
    dark: NDArray[np.float32], blind: NDArray[np.bool_], middle: Array, heading: Array, half: float, width: float
) -> End:
    """Return where the band ends, going from the middle: where the shadow falls to half the depth it had.

    The depth that it had is the median of the last few widths, because another shadow across it changes it.
    """
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
            if cut_off(dark, blind, place, heading, width, background + CUT_DEPTH * full):
                break
            sigma = float(np.hypot(noise, END_FLOOR * width))
            clear = sigma < UNSURE_WIDTHS * width and not goes_on(dark, place, heading, width, background, full)
            return End((float(place[0]), float(place[1])), sigma, True, clear)
    else:
        place = middle + reach * heading
    return End((float(place[0]), float(place[1])), float("inf"), False, False)
