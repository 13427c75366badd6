"""Owns the question whether a video frame shows a new picture or the one before it again, by the noise between them.

Each X-ray picture has quantum noise of its own; a picture that a C-arm holds on its screen is the same in every frame
but for what the digitiser adds.  So the noise of the difference of two frames tells them apart, where equality cannot:
an analogue input never gives the same frame twice.  The picture's grain is the second witness: a held picture keeps
that of its last pulse, however noisy the cable.  Refuses time and memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from devices.frame_grabber_picture import Grey, block_means
from navsrv.kernel.frames import Array

NEW_RATIO: Final = 2.0
SAME_RATIO: Final = 1.5
"""Noise of a difference over that of the digitiser: a new picture from the first on, the same one below the second."""
GRAIN_KEPT: Final = 0.6
"""Correlation of the finest detail of two frames from which on they are not two pictures."""
QUIETER: Final = 25.0
"""Percentile of blocks for what must not be anatomy: its edges are the same in every picture."""
FIELD_LEVELS: Final = (30.0, 245.0)
"""Means of blocks that X-rays reach and that are not saturated."""
DARK_LEVELS: Final = 24.0
DARK_SHARE: Final = 0.05
"""So much of a picture has to be dark for the digitiser's noise to be read there."""
CLIPPED: Final = 0.58
"""Standard deviation of noise about black of which the screen cannot show the lower half: sqrt(1/2 - 1/(2 pi))."""
FEWEST_BLOCKS: Final = 8
MOVED_LEVELS: Final = 6.0
QUANTISED: Final = 1.0 / 12.0
"""Variance that rounding to whole levels adds."""


class Novelty(Enum):
    """What a frame is to the one before it."""

    NEW = "new"
    SAME = "same"
    UNSURE = "unsure"
    """The two witnesses disagree, or there is too little picture to tell."""


@dataclass(frozen=True, slots=True)
class Change:
    """How two frames differ.

    Attributes
    ----------
    noise : float
        Standard deviation (grey levels) of one frame about what both show, in the middle of the picture's blocks.
    digitiser : float
        The same of what the digitiser adds: as declared, or as seen in the dark where that is more.
    grain : float
        Correlation of their finest detail, where that is least: 0 for two pictures, towards 1 for one picture twice.
    moved_share : float
        Share of blocks that became brighter or darker than the rest did.
    """

    novelty: Novelty
    noise: float
    digitiser: float
    grain: float
    moved_share: float


def change(before: Grey, after: Grey, declared_noise: float) -> Change:
    """Return how a frame differs from the one before it, both (rows, columns).

    Within each block the difference is judged after what a change of brightness and contrast explains (its regression
    on the mean of both) is taken away: a window that is turned makes no new picture.  The median over the blocks that
    X-rays reach leaves out what moves or blinks in a few.

    Parameters
    ----------
    declared_noise : float
        Standard deviation (grey levels) that the digitiser adds.
    """
    a, b = before.astype(np.float32), after.astype(np.float32)
    difference, mean = b - a, 0.5 * (a + b)
    d, m = block_means(difference), block_means(mean)
    residual = _residual(difference, mean, d, m)
    field = (m > FIELD_LEVELS[0]) & (m < FIELD_LEVELS[1])
    digitiser = max(float(np.hypot(declared_noise, np.sqrt(QUANTISED))), _dark_noise(residual, m, declared_noise))
    if np.count_nonzero(field) < FEWEST_BLOCKS:
        return Change(Novelty.UNSURE, 0.0, digitiser, 0.0, 0.0)
    noise = float(np.sqrt(0.5 * np.median(residual[field])))
    moved = float(np.mean(np.abs(d[field] - np.median(d[field])) > MOVED_LEVELS))
    grain = float(np.percentile(_grain(a, b)[field], QUIETER))
    novelty = Novelty.UNSURE
    if noise < SAME_RATIO * digitiser:
        novelty = Novelty.SAME
    elif noise >= NEW_RATIO * digitiser and grain < GRAIN_KEPT:
        novelty = Novelty.NEW
    return Change(novelty, noise, digitiser, grain, moved)


def _grain(a: NDArray[Any], b: NDArray[Any]) -> Array:
    """Return each block's correlation of what remains of two frames beside their neighbours' mean."""
    fine_a, fine_b = cv2.Laplacian(a, cv2.CV_32F), cv2.Laplacian(b, cv2.CV_32F)
    power = block_means(fine_a * fine_a) * block_means(fine_b * fine_b)
    correlation: Array = block_means(fine_a * fine_b) / np.sqrt(np.maximum(power, 1e-6))
    return correlation


def _residual(difference: NDArray[Any], mean: NDArray[Any], d: Array, m: Array) -> Array:
    """Return each block's variance of the difference that the block's own picture does not explain."""
    var_d = block_means(difference * difference) - d * d
    var_m = block_means(mean * mean) - m * m
    covariance = block_means(difference * mean) - d * m
    residual: Array = np.maximum(var_d - covariance**2 / np.maximum(var_m, 1e-3), 0.0)
    return residual


def _dark_noise(residual: Array, m: Array, declared_noise: float) -> float:
    """Return the digitiser's noise as the dark beside the X-ray field shows it; 0 where there is none.

    Of the dark blocks the quieter ones: others may be dense anatomy, with quantum noise.
    """
    dark = m < DARK_LEVELS
    if np.count_nonzero(dark) < max(FEWEST_BLOCKS, DARK_SHARE * m.size):
        return 0.0
    quiet = dark & (residual <= np.percentile(residual[dark], QUIETER))
    seen = float(np.sqrt(0.5 * np.median(residual[quiet])))
    clipped = float(np.min(m[quiet])) < 2.0 * max(declared_noise, seen)
    return seen / CLIPPED if clipped else seen
