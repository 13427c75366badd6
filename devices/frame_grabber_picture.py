"""Owns what is cut out of a video frame: its grey values, the declared rectangle, one field or both, square pixels.

It also says whether a frame shows a picture at all, and whether its two fields are of different moments (combing).
Refuses time and memory: each function is of the frames that it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.frames import Array

Grey = NDArray[np.uint8]

BLOCK: Final = 16
"""Side (pixels) of the squares that noise and combing are judged on."""
FLAT_LEVELS: Final = 12.0
"""A frame whose blocks lie closer together than this shows no picture: black, blue, any one colour."""
COLOURED_LEVELS: Final = 24.0
"""X-rays are grey: where most of a frame is farther from grey than this, it is a screen saver or another input."""
COMB_RATIO: Final = 1.5
COMBED_SHARE: Final = 0.005
UNCOMBED_SHARE: Final = 0.001
"""Of a picture's blocks: so many with combing are none that noise makes; so few are none."""


class Scan(Enum):
    """How a frame's rows came about, and which of them make the picture."""

    PROGRESSIVE = "progressive"
    """All rows are of one moment."""
    TOP = "top"
    """Interlaced: rows 0, 2, ... are taken, and those between are made of their neighbours."""
    BOTTOM = "bottom"
    """Interlaced: rows 1, 3, ... are taken."""
    BLEND = "blend"
    """Interlaced: both fields are averaged, which blurs what moves and halves the noise of what does not."""


@dataclass(frozen=True, slots=True)
class Framing:
    """Where the picture is in a frame.

    Attributes
    ----------
    crop : (x, y, width, height)
        Pixels of the frame.
    frame : (width, height) or None
        The size that a frame must have; None takes any that holds the crop.
    size : int or None
        Rows and columns that the picture is scaled to, so that its pixels become square; None leaves it as cropped.
    """

    crop: tuple[int, int, int, int]
    scan: Scan = Scan.PROGRESSIVE
    frame: tuple[int, int] | None = None
    size: int | None = None

    def fault(self, frame: NDArray[Any]) -> str:
        """Return why a frame cannot be what was declared, in words for the operator; empty if it can."""
        height, width = frame.shape[:2]
        if self.frame is not None and (width, height) != self.frame:
            return f"the frame is {width} x {height}, declared {self.frame[0]} x {self.frame[1]}"
        x, y, across, down = self.crop
        if x + across > width or y + down > height:
            return f"the crop reaches to {x + across}, {y + down}, beyond the frame of {width} x {height}"
        return ""

    def cut(self, frame: NDArray[Any]) -> Grey:
        """Return the declared rectangle's grey values, rows as they came."""
        x, y, across, down = self.crop
        return grey(frame[y : y + down, x : x + across])

    def made(self, cut: NDArray[Any]) -> NDArray[Any]:
        """Return the picture of a rectangle as ``cut`` gave it: of its fields, with square pixels."""
        y = self.crop[1]
        match self.scan:
            case Scan.PROGRESSIVE:
                picture = cut
            case Scan.TOP:
                picture = one_field(cut, y % 2)
            case Scan.BOTTOM:
                picture = one_field(cut, (y + 1) % 2)
            case Scan.BLEND:
                picture = cv2.sepFilter2D(
                    cut, -1, np.ones(1), np.array([0.25, 0.5, 0.25]), borderType=cv2.BORDER_REFLECT
                )
        if self.size is None:
            return picture
        shrinks = self.size < min(picture.shape)
        scaled = cv2.resize(picture, (self.size,) * 2, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        return np.asarray(scaled)


def grey(frame: NDArray[Any]) -> Grey:
    """Return (rows, columns) grey values of a frame, grey already or of blue, green and red."""
    if frame.ndim == 2:
        return np.ascontiguousarray(frame, dtype=np.uint8)
    if frame.shape[2] == 1:
        return np.ascontiguousarray(frame[..., 0], dtype=np.uint8)
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_BGR2GRAY), dtype=np.uint8)


def one_field(picture: NDArray[Any], first: int) -> NDArray[Any]:
    """Return a picture of the field whose rows are ``first``, ``first + 2``, ...; the others are made of these.

    Rows keep their places, so that a point of the picture is shown where it was.
    """
    rows = picture[first::2].astype(np.float32)
    made = picture.copy()
    between = 0.5 * (rows[:-1] + rows[1:])
    made[first + 1 : first + 2 * len(rows) - 1 : 2] = between if picture.dtype.kind == "f" else np.rint(between)
    if first:
        made[0] = picture[1]
    if (len(picture) - first) % 2 == 0:
        made[-1] = picture[-2]
    return made


def no_picture(frame: NDArray[Any]) -> str:
    """Return why a frame shows no picture, in words for the operator; empty if it shows one."""
    if frame.ndim == 3 and frame.shape[2] >= 3:
        small = block_means(frame.astype(np.float32))
        colour = small.max(axis=2) - small.min(axis=2)
        if float(np.median(colour)) > COLOURED_LEVELS:
            return "no signal: the screen is coloured, and X-rays are grey"
        values = small.mean(axis=2)
    else:
        values = block_means(grey(frame).astype(np.float32))
    low, high = np.percentile(values, (5.0, 95.0))
    if high - low < FLAT_LEVELS:
        return f"no signal: the screen is {'black' if high < 32.0 else 'blank'}"
    return ""


def combed_share(picture: Grey) -> float:
    """Return the share of a picture's blocks in which rows differ more from the next than from the next but one.

    In noise the two differences are alike and in any shape the second is the larger, but where two fields show two
    moments the first is.
    """
    values = picture.astype(np.float32)
    near = block_means((values[1:-1] - values[2:]) ** 2)
    far = block_means((values[:-2] - values[2:]) ** 2)
    return float(np.mean(near > COMB_RATIO * far + 1.0))


def block_means(values: NDArray[Any]) -> Array:
    """Return the means of whole blocks."""
    rows, columns = values.shape[0] // BLOCK, values.shape[1] // BLOCK
    if rows == 0 or columns == 0:
        return np.asarray(values, dtype=np.float64)
    whole = values[: rows * BLOCK, : columns * BLOCK]
    return np.asarray(cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA))
