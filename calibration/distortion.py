"""Owns what an image intensifier does to a straight line: pincushion, S, or any smooth bending, and how to undo it.

The model runs from the ideal picture to the seen one, so that undoing a picture needs no inverse.  Lengths are in units
of half the picture's longer side about its middle.  Refuses terms that a pose or a principal point could play as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array, frozen_array

INVERSE_STEPS: Final = 30
FOLD_HALVES: Final = 2.0
"""A step so far, in half sides, does not come back."""
POLYNOMIAL_ORDER: Final = 5


class Bending(Enum):
    """Kinds of distortion.  INTENSIFIER: pincushion and S about a centre; POLYNOMIAL: any smooth one, many beads."""

    NONE = "none"
    INTENSIFIER = "intensifier"
    POLYNOMIAL = "polynomial"

    @property
    def parameters(self) -> int:
        """How many numbers describe it."""
        match self:
            case Bending.NONE:
                return 0
            case Bending.INTENSIFIER:
                return 8
            case Bending.POLYNOMIAL:
                return 4 + 2 * sum(order + 1 for order in range(3, POLYNOMIAL_ORDER + 1))


@dataclass(frozen=True, slots=True, eq=False)
class Distortion:
    """How far each place of an ideal picture is moved in the one that was seen.

    Attributes
    ----------
    kind : Bending
    coefficients : (kind.parameters,)
        INTENSIFIER: centre (2), the radial displacement's factors of r^2, r^4 and r^6, and those of the rotation.
        POLYNOMIAL: four terms of second order, then every monomial of third to fifth order for columns, then rows.
        Of the six terms of second order two are those of a tilted detector: a pose plays them as well, so that they are
        left to the camera.
    columns, rows : int
    """

    kind: Bending
    coefficients: Array
    columns: int
    rows: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "coefficients", frozen_array(self.coefficients, (self.kind.parameters,)))

    @property
    def _middle(self) -> Array:
        return np.array([(self.columns - 1) / 2.0, (self.rows - 1) / 2.0])

    @property
    def _half(self) -> float:
        return max(self.columns, self.rows) / 2.0

    def bent(self, points_px: ArrayLike) -> Array:
        """Return where ideal places (N, 2) (column, row) are seen."""
        points = np.asarray(points_px, dtype=np.float64)
        x = (points - self._middle) / self._half
        seen: Array = points + self._half * displacement(self.kind, self.coefficients, x)
        return seen

    def straightened(self, points_px: ArrayLike) -> Array:
        """Return the ideal places (N, 2) of seen ones, by fixed-point iteration.

        Raises
        ------
        CalibrationError
            The distortion folds the picture there: no ideal place leads to it.
        """
        seen = np.asarray(points_px, dtype=np.float64)
        ideal = seen.copy()
        for _ in range(INVERSE_STEPS):
            step = seen - self.bent(ideal)
            if len(seen) and not float(np.abs(step).max()) < FOLD_HALVES * self._half:
                break
            ideal = ideal + step
        if len(seen) and not float(np.abs(step).max()) < 1e-3:
            raise CalibrationError("distortion: it folds the picture, and cannot be undone there")
        return ideal

    def undistort(self, image: ArrayLike) -> NDArray[np.float32]:
        """Return the ideal picture of a seen one (rows, columns); 0 where the seen one says nothing.

        Raises
        ------
        CalibrationError
            A picture of another size than the one that was calibrated.
        """
        pixels = np.asarray(image)
        if pixels.shape != (self.rows, self.columns):
            raise CalibrationError(
                f"picture of {pixels.shape[::-1]} pixels, calibrated were {self.columns} x {self.rows}"
            )
        v, u = np.mgrid[0 : self.rows, 0 : self.columns]
        at = self.bent(np.column_stack([u.ravel(), v.ravel()])).astype(np.float32).reshape(self.rows, self.columns, 2)
        flat: NDArray[np.float32] = cv2.remap(
            pixels.astype(np.float32), at[..., 0], at[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_CONSTANT
        ).astype(np.float32)
        return flat


def displacement(kind: Bending, coefficients: Array, x: Array) -> Array:
    """Return displacements (..., N, 2) by coefficients (..., C) at places (..., N, 2), both in half sides."""
    match kind:
        case Bending.NONE:
            return np.zeros_like(x)
        case Bending.INTENSIFIER:
            c = [coefficients[..., None, i, None] for i in range(kind.parameters)]
            d = x - coefficients[..., None, :2]
            r2 = (d**2).sum(axis=-1, keepdims=True)
            across = np.stack([-d[..., 1], d[..., 0]], axis=-1)
            radial = r2 * (c[2] + r2 * (c[3] + r2 * c[4]))
            turning = r2 * (c[5] + r2 * (c[6] + r2 * c[7]))
            moved: Array = radial * d + turning * across
            return moved
        case Bending.POLYNOMIAL:
            return _polynomial(coefficients, x)


def _polynomial(coefficients: Array, x: Array) -> Array:
    """Return the displacements of a polynomial; the second order lacks (x^2, xy) and (xy, y^2)."""
    a, b = x[..., 0], x[..., 1]
    c = [coefficients[..., None, i] for i in range(4)]
    columns = c[0] * b * b + c[2] * a * a - c[3] * a * b
    rows = c[1] * a * a - c[2] * a * b + c[3] * b * b
    monomials = np.stack(
        [a**i * b ** (order - i) for order in range(3, POLYNOMIAL_ORDER + 1) for i in range(order + 1)], axis=-1
    )
    higher = coefficients[..., 4:].reshape(*coefficients.shape[:-1], 2, monomials.shape[-1])
    moved: Array = np.stack([columns, rows], axis=-1) + monomials @ np.swapaxes(higher, -1, -2)
    return moved
