"""Owns the question how a C-arm's console shows its picture: as calibrated, turned, mirrored, or nobody knows how.

A lead marker on the detector's housing casts its shadow at the same place of every picture, whatever lies in the beam.
Where the shadow is, and how it lies, tells which of the eight ways (quarter turns and mirrorings) the picture is shown;
a shadow beside its place says that the picture was shifted, zoomed or turned by another angle.  Lead lets the same
share through whatever lies behind it, so that its shadow is the same in the logarithm, less what is about it.  Refuses
to correct: a picture that is not shown as calibrated is not measured in.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from devices.frame_grabber_picture import Grey

ALIKE: Final = 0.6
"""Correlation from which on a shadow is the marker's."""
CLEARLY: Final = 0.2
"""By how much it must exceed that of every other way."""
ABOUT: Final = 0.33
"""Side of the square that a shadow is compared with, as a share of the template's shorter side."""
DARKEST: Final = 8.0
"""Grey levels that are added before the logarithm is taken: black has noise, too."""
BEYOND_PX: Final = 6
"""How far beyond the slack the shadow is looked for, only to say where it went."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One of the eight ways to show a square picture: mirrored left to right first, then turned clockwise."""

    mirrored: bool
    quarters: int

    def shown(self, picture: NDArray[Any]) -> NDArray[Any]:
        """Return a picture (rows, columns) as it looks this way."""
        first = picture[:, ::-1] if self.mirrored else picture
        return np.ascontiguousarray(np.rot90(first, -self.quarters))

    def place(self, at: tuple[int, int], shape: tuple[int, int], size: int) -> tuple[int, int]:
        """Return where the upper left corner (x, y) of a part comes to lie in a picture of ``size`` squared.

        Parameters
        ----------
        at : (x, y)
            Where it is in the upright picture.
        shape : (rows, columns)
            Of the part, upright.
        """
        xs, ys = (at[0], at[0] + shape[1] - 1), (at[1], at[1] + shape[0] - 1)
        if self.mirrored:
            xs = (size - 1 - xs[1], size - 1 - xs[0])
        for _ in range(self.quarters):
            xs, ys = (size - 1 - ys[1], size - 1 - ys[0]), xs
        return xs[0], ys[0]

    @property
    def words(self) -> str:
        """How an operator would say it."""
        if not self.mirrored:
            return ("as calibrated", "turned right by 90 deg", "turned by 180 deg", "turned left by 90 deg")[
                self.quarters
            ]
        ways = ("left to right", "about a diagonal", "top to bottom", "about a diagonal")
        return f"mirrored {ways[self.quarters]}"


UPRIGHT: Final = Turn(False, 0)
TURNS: Final = tuple(Turn(mirrored, quarters) for mirrored, quarters in product((False, True), range(4)))


@dataclass(frozen=True, slots=True, eq=False)
class Marker:
    """The marker's shadow in a picture as calibrated.

    Attributes
    ----------
    template : (rows, columns) uint8
        Cut out of such a picture.
    at : (x, y)
        The place of its upper left corner there.
    slack_px : int
        How far from its place it may be found.
    """

    template: Grey
    at: tuple[int, int]
    slack_px: int = 3

    def fault(self, size: int) -> str:
        """Return why this marker cannot tell the eight ways in a picture of ``size`` squared; empty if it can."""
        rows, columns = self.template.shape
        if self.at[0] + columns > size or self.at[1] + rows > size:
            return f"reaches to {self.at[0] + columns}, {self.at[1] + rows}, beyond the picture of {size} x {size}"
        if float(self.template.std()) < 8.0:
            return f"its grey values differ by {self.template.std():.1f} only"
        upright = self.template.astype(np.float32)
        for turn in TURNS[1:]:
            turned = turn.shown(upright)
            x, y = turn.place(self.at, (rows, columns), size)
            near = max(abs(x - self.at[0]), abs(y - self.at[1])) <= 2 * self.slack_px
            if near and turned.shape == upright.shape and _correlation(upright, turned) > ALIKE - CLEARLY:
                return f"lies where it would, and looks as it would, in a picture {turn.words}"
        return ""


@dataclass(frozen=True, slots=True)
class Facing:
    """How a picture is shown: the way if it is known, else why not, in words for the operator."""

    turn: Turn | None
    reason: str
    score: float
    """Correlation of the best way."""

    @property
    def upright(self) -> bool:
        """Whether it is known to be shown as calibrated."""
        return self.turn == UPRIGHT


def facing(picture: NDArray[Any], marker: Marker) -> Facing:
    """Return how a square picture is shown."""
    about = max(round(ABOUT * min(marker.template.shape)), 3)
    relief, template = _relief(picture, about), _relief(marker.template, about)
    found = sorted(((_look(relief, template, marker, turn), turn) for turn in TURNS), key=lambda f: -f[0].best)
    (best, turn), (second, _) = found[0], found[1]
    if best.best < ALIKE:
        if min(look.worst for look, _ in found) <= -ALIKE:
            return Facing(None, "orientation unknown: black and white are swapped", best.best)
        return Facing(None, f"orientation unknown: the marker is not seen (correlation {best.best:.2f})", best.best)
    if best.best - second.best < CLEARLY:
        return Facing(None, "orientation unknown: the marker is seen at two places", best.best)
    if best.off_px > marker.slack_px:
        why = "the picture is shifted, zoomed or turned by a few degrees"
        return Facing(None, f"orientation unknown: the marker is {best.off_px} px from its place, {why}", best.best)
    return Facing(turn, "" if turn == UPRIGHT else f"the picture is {turn.words}; show it as calibrated", best.best)


@dataclass(frozen=True, slots=True)
class _Look:
    best: float
    worst: float
    off_px: int


def _relief(picture: NDArray[Any], about: int) -> NDArray[np.float32]:
    """Return the logarithm of a picture less its mean over squares of side ``about``."""
    smooth = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 1.0)
    logarithm = np.log(smooth + np.float32(DARKEST))
    return np.asarray(logarithm - cv2.blur(logarithm, (about, about)), dtype=np.float32)


def _look(relief: NDArray[Any], upright: NDArray[Any], marker: Marker, turn: Turn) -> _Look:
    """Return the marker's correlation about the place where it would be, and how far from it the best is."""
    template = turn.shown(upright)
    rows, columns = template.shape
    x, y = turn.place(marker.at, upright.shape, relief.shape[0])
    reach = marker.slack_px + BEYOND_PX
    left, top = max(x - reach, 0), max(y - reach, 0)
    region = relief[top : y + rows + reach, left : x + columns + reach]
    if region.shape[0] < rows or region.shape[1] < columns:
        return _Look(0.0, 0.0, 0)
    scores = cv2.matchTemplate(np.ascontiguousarray(region), template, cv2.TM_CCOEFF_NORMED)
    worst, best, _, (at_x, at_y) = cv2.minMaxLoc(np.nan_to_num(scores, posinf=0.0, neginf=0.0))
    patch = region[at_y : at_y + rows, at_x : at_x + columns]
    if float(patch.std()) < 0.25 * float(template.std()):  # flat: a correlation of nothing
        best = 0.0
    return _Look(float(best), float(worst), max(abs(left + at_x - x), abs(top + at_y - y)))


def _correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
