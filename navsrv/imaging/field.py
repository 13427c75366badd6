"""Owns where an X-ray shows nothing: beyond its field's rim or a shutter, and in air that is clipped white.

What carries no noise carries no X-rays' message: flat places larger than a needle are blind, at whatever grey.  What is
round a field may be noisy, as video is: it is of one level from corner to corner, or dark to the picture's edge, which
metal across a needle is not.  Refuses to say why a place is blind: a shaft that ends there may go on all the same.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from navsrv.imaging.profiles import profiles_across
from navsrv.kernel.frames import Array

FLAT: Final = 5e-4
"""Of the picture's span of brightness, one sigma: an eighth of a level of 256, fifty times less than quanta make."""
LEVEL: Final = 5e-3
"""Of the span: as equal are the picture's corners where a field leaves them out; what so joins them is as blind."""
SAME_CORNERS: Final = 3
BLIND_WIDTHS: Final = 1.5
"""What is flat is this wide at least: more than a needle, which may be black throughout."""
AHEAD_WIDTHS: Final = (-0.5, 3.0)
BESIDE_WIDTHS: Final = 1.8
BLIND_SHARE: Final = 0.25
"""Of the surroundings of an end, in these widths along and across."""
RIM_WIDTHS: Final = 1.0
RIM_SHARE: Final = 0.9
"""From so far beyond an end to the picture's edge, so much is dark: a rim or a shutter."""


def blind_places(dark: NDArray[np.float32], width_px: float) -> NDArray[np.bool_]:
    """Return where (rows, columns) a picture is flat, or as its corners are, over more than a needle's width."""
    low, high = np.percentile(dark[::3, ::3], (1.0, 99.0))
    span = float(high - low)
    size = 2 * int(np.ceil(0.5 * BLIND_WIDTHS * width_px)) + 1
    values = dark.astype(np.float64)
    mean: Array = np.asarray(cv2.boxFilter(values, -1, (size, size), borderType=cv2.BORDER_REFLECT), np.float64)
    square = cv2.sqrBoxFilter(values, -1, (size, size), borderType=cv2.BORDER_REFLECT)
    flat = (square - mean**2 <= (FLAT * span) ** 2) | _round_field(mean, float(low), span, size)
    blind: NDArray[np.bool_] = cv2.dilate(flat.astype(np.uint8), np.ones((size, size), np.uint8)) > 0
    return blind


def _round_field(mean: Array, white: float, span: float, size: int) -> NDArray[np.bool_]:
    """Return what is round the field (rows, columns): joined to the corners, of their level, darker than air.

    ``mean``: of the darkness over windows of ``size`` pixels.
    """
    rows, columns = ((size // 2, n - 1 - size // 2) for n in mean.shape)
    corners = [(r, c) for r in rows for c in columns]
    levels = np.array([mean[corner] for corner in corners])
    level = float(np.median(levels))
    alike = np.abs(levels - level) <= LEVEL * span
    if alike.sum() < SAME_CORNERS or level <= white + 4.0 * LEVEL * span:
        return np.zeros(mean.shape, dtype=bool)
    labels = cv2.connectedComponents((np.abs(mean - level) <= LEVEL * span).astype(np.uint8))[1]
    found: NDArray[np.bool_] = np.isin(labels, [labels[c] for c, one in zip(corners, alike, strict=True) if one])
    return found


def cut_off(
    dark: NDArray[np.float32], blind: NDArray[np.bool_], end: Array, heading: Array, width: float, level: float
) -> bool:
    """Say whether a band ends only because the picture shows no more there.

    Parameters
    ----------
    end, heading : (2,)
        Where the band ends, in pixels, and the unit vector that leaves it.
    level : float
        What is darker than this is no longer the field.
    """
    stations = np.arange(AHEAD_WIDTHS[0] * width, AHEAD_WIDTHS[1] * width, 1.0)
    around, _ = profiles_across(blind.astype(np.float32), end, heading, stations, BESIDE_WIDTHS * width)
    if float(around.mean()) > BLIND_SHARE:
        return True
    size = np.array(dark.shape[::-1]) - 1.0
    with np.errstate(divide="ignore"):
        room = float(np.min(np.where(heading > 0.0, size - end, -end) / heading))
    beyond, _ = profiles_across(
        dark, end, heading, np.arange(RIM_WIDTHS * width, max(room, 2.0 * RIM_WIDTHS * width), 1.0), 0.5 * width
    )
    return float((beyond > level).mean()) > RIM_SHARE
