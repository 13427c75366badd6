"""Owns what a sequence of images says of motion: a few numbers a frame, for ``calibration.temporal``.

The fit takes them for linear in the motion, so it matters which: the place of what moves before a background at rest (a
needle in fluoroscopy), else the shift of the whole picture (anatomy that fills it), else the main ways in which pixels
change (motion smaller than what moves).  Refuses sequences in which nothing changes.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.poses import MAD_TO_SIGMA
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array

MIN_FRAMES: Final = 20
SIDE_PX: Final = 128
"""Frames are made this small: noise averages out, places keep a hundredth of a pixel of theirs."""
COMPONENTS: Final = 2
OVER_NOISE: Final = 3.0
"""A component varies so many times as much as the median one, which is noise."""
CHANGE_NOISES: Final = 6.0
"""A pixel that differs from its own median by so many times its noise shows something else."""
LEAST_FRAMES: Final = 0.5
"""Share of frames in which something must stand out from the background for its place to mean anything."""
MOST_PIXELS: Final = 0.3
"""Share of the pixels that may differ from a background at rest: of more, the background itself moves."""
ALIKE: Final = 0.8
"""Least correlation of two pictures where the shift between them is undone: else it was no shift."""
ECC_STEPS: Final = 30


class Shown(Enum):
    """What the numbers of a sequence are."""

    PLACE = "place of what moves before a background at rest"
    SHIFT = "shift of the whole picture"
    CHANGE = "main changes of the pixels"


def image_motion(images: ArrayLike) -> tuple[Array, Shown]:
    """Return numbers (N, k) of unit variance that follow the motion in frames (N, rows, columns), and what they are.

    Raises
    ------
    CalibrationError
        Wrong shape, too few frames, pixels that are not finite, nothing that changes.
    """
    frames = np.asarray(images)
    if frames.ndim != 3 or min(frames.shape[1:]) < 16:
        raise CalibrationError(f"images: shape {frames.shape}, expected (frames, rows, columns) of 16 pixels or more")
    if len(frames) < MIN_FRAMES:
        raise CalibrationError(f"images: {len(frames)} frames, at least {MIN_FRAMES} are needed")
    scale = min(1.0, SIDE_PX / max(frames.shape[1:]))
    size = (max(16, round(frames.shape[2] * scale)), max(16, round(frames.shape[1] * scale)))
    small = np.stack([cv2.resize(frame.astype(np.float32), size, interpolation=cv2.INTER_AREA) for frame in frames])
    if not np.isfinite(small).all():
        frame = int(np.flatnonzero(~np.isfinite(small).all(axis=(1, 2)))[0]) + 1
        raise CalibrationError(f"images: frame {frame} holds a pixel that is not finite")
    if float(np.ptp(small, axis=0).max()) <= 0.0:
        raise CalibrationError("images: no pixel changes; the sequence shows one picture")
    place, shift = _place(small), None
    if place is None:
        shift = _shifts(small)
    if place is not None:
        values, shown = place, Shown.PLACE
    elif shift is not None:
        values, shown = shift, Shown.SHIFT
    else:
        values, shown = _components(small), Shown.CHANGE
    spread = values.std(axis=0)
    moving = spread > 1e-6 * max(float(spread.max()), 1e-12)
    result: Array = (values[:, moving] - values[:, moving].mean(axis=0)) / spread[moving]
    return result, shown


def _components(small: NDArray[np.float32]) -> Array:
    """Return the first principal components (N, k) of the pixels: linear in motion that is small."""
    centred = small.reshape(len(small), -1).astype(np.float64)
    centred -= centred.mean(axis=0)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    keep = values[-COMPONENTS:] > OVER_NOISE * max(float(np.median(values)), 1e-9 * float(values[-1]))
    if not keep.any():
        raise CalibrationError("images: nothing changes but noise; move what they show, or what shows them")
    scaled: Array = (vectors[:, -COMPONENTS:] * np.sqrt(np.maximum(values[-COMPONENTS:], 0.0)))[:, keep][:, ::-1]
    return scaled


def _noise(small: NDArray[np.float32], axis: int) -> float:
    """Return one sigma of a pixel's noise by second differences, to which motion or structure add."""
    return MAD_TO_SIGMA * float(np.median(np.abs(np.diff(small, n=2, axis=axis)))) / float(np.sqrt(6.0))


def _shifts(small: NDArray[np.float32]) -> Array | None:
    """Return how far (N, 2) each picture lies from the middle one; None for pictures that are not one that was shifted.

    Enhanced correlation (Evangelidis and Psarakis 2008), each frame from where its neighbour was found.
    """
    middle = len(small) // 2
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ECC_STEPS, 1e-4)
    shifts, alike = np.zeros((len(small), 2)), np.zeros(len(small))
    for order in (range(middle, len(small)), range(middle - 1, -1, -1)):
        warp: Any = np.eye(2, 3, dtype=np.float32)
        for i in order:
            try:
                alike[i], warp = cv2.findTransformECC(small[middle], small[i], warp, cv2.MOTION_TRANSLATION, stop)
            except cv2.error:
                return None
            shifts[i] = warp[:, 2]
    return shifts if float(np.median(alike)) >= ALIKE else None


def _place(small: NDArray[np.float32]) -> Array | None:
    """Return the middle (N, 2) of what stands before the background at rest; None where nothing does.

    The background is each pixel's median, which what covers it less than half of the time does not reach.
    """
    background = np.median(small, axis=0)
    noise = min(_noise(small, 0), _noise(small, 2))
    off = np.abs(small - background)
    weight = np.where(off > CHANGE_NOISES * max(noise, 1e-6 * float(np.abs(background).max())), off, 0.0)
    mass = weight.sum(axis=(1, 2))
    clear = mass > 0.1 * np.percentile(mass, 90)
    if not mass.any() or clear.mean() < LEAST_FRAMES or np.median((weight > 0.0).mean(axis=(1, 2))) > MOST_PIXELS:
        return None
    rows, columns = np.mgrid[0 : small.shape[1], 0 : small.shape[2]]
    total = np.maximum(mass, 1e-12)
    places = np.column_stack([(weight * columns).sum(axis=(1, 2)) / total, (weight * rows).sum(axis=(1, 2)) / total])
    # Where it stands still where it mostly is, it is part of the background: its place is not known then.
    at = np.arange(len(small))
    filled: Array = np.column_stack([np.interp(at, at[clear], places[clear, i]) for i in range(2)])
    return filled
