"""Owns what a needle found in images *is*, and the reasons why there is none to be had."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np

from navsrv.kernel.errors import NavsrvError
from navsrv.kernel.frames import Array, frozen_array

TIP_SHAPE: Final = 0.12
"""One sigma, as a share of the diameter, of how far the point itself is from where the metal is seen to end: bevels."""


class Why(Enum):
    """Why no needle can be told."""

    NO_NEEDLE = "no_needle"
    SEVERAL = "several"
    PARALLEL = "parallel"
    DISAGREE = "disagree"
    TOUCHING = "touching"
    BENT = "bent"
    UNDIRECTED = "undirected"
    UNUSABLE = "unusable"


class NeedleError(NavsrvError):
    """The images do not tell where the needle is; ``why`` for programs, the text for the operator, who can act."""

    def __init__(self, why: Why, text: str) -> None:
        super().__init__(text)
        self.why = why


@dataclass(frozen=True, slots=True, eq=False)
class FoundNeedle:
    """A needle in the frame that the images share.

    Attributes
    ----------
    tip_mm, axis : (3,)
        Axis: unit vector from hub to tip.
    covariance : (6, 6)
        Of (tip_mm, axis), first order; the axis has no variance along itself.
    residual_mm : float
        What the images leave over: how far the two views' tips are apart, or the rms of a volume's slices.
    length_mm : float
        How much of the shaft was seen, at least.
    text : str
        The figures in one line.
    """

    tip_mm: Array
    axis: Array
    covariance: Array
    residual_mm: float
    length_mm: float
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "tip_mm", frozen_array(self.tip_mm, (3,)))
        object.__setattr__(self, "axis", frozen_array(self.axis, (3,)))
        object.__setattr__(self, "covariance", frozen_array(self.covariance, (6, 6)))
        object.__setattr__(self, "residual_mm", float(self.residual_mm))
        object.__setattr__(self, "length_mm", float(self.length_mm))
        if abs(float(np.linalg.norm(self.axis)) - 1.0) > 1e-9:
            raise ValueError(f"axis {self.axis.tolist()}: expected a unit vector")

    @property
    def tip_sigma_mm(self) -> float:
        """One sigma of the tip along its worst direction."""
        return float(np.sqrt(np.linalg.eigvalsh(self.covariance[:3, :3])[-1]))

    @property
    def axis_sigma_rad(self) -> float:
        """One sigma of the axis about its worst one."""
        return float(np.sqrt(np.linalg.eigvalsh(self.covariance[3:, 3:])[-1]))
