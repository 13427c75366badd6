"""Owns the step from the numbers of a pose on the wire to a rigid transform, compiled: every pose passes here.

``Rigid.from_matrix`` does the same in numpy, slower; the kernel does not import a compiler.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from navsrv.kernel.frames import LAST_ROW, RIGIDITY_TOLERANCE, Array, Frame, Rigid

ROUNDING: Final = 1e-6
"""A defect that one step leaves below the rounding of float64."""


def rigid_of(to: Frame, frm: Frame, matrix: Array) -> Rigid:
    """Return the transform of a (4, 4) matrix; ValueError if it is no rigid motion."""
    m = np.ascontiguousarray(matrix, dtype=np.float64)
    rotation, translation = np.empty((3, 3)), np.empty(3)
    if m.shape != (4, 4) or m[3].tolist() != LAST_ROW or not settle_rigid(m, rotation, translation):
        return Rigid.from_matrix(to, frm, matrix)  # which says what is wrong
    return Rigid.of_proven(to, frm, rotation, translation)


@njit(cache=True, nogil=True)
def settle_rigid(matrix: Array, rotation: Array, translation_mm: Array) -> bool:
    """Fill the rotation (3, 3) nearest to that of a (4, 4), and its translation (3,); say whether it is one at all.

    Newton-Schulz steps (Higham 1986), each of which squares the error: a defect of ``RIGIDITY_TOLERANCE`` leaves less
    than 1e-12 after two, float32 rounding leaves nothing after the first.
    """
    worst = 0.0
    for i in range(3):
        translation_mm[i] = matrix[i, 3]
        if not np.isfinite(matrix[i, 3]):
            return False
        for j in range(3):
            rotation[i, j] = matrix[i, j]
            product = matrix[0, i] * matrix[0, j] + matrix[1, i] * matrix[1, j] + matrix[2, i] * matrix[2, j]
            defect = abs(product - (1.0 if i == j else 0.0))
            if not defect <= RIGIDITY_TOLERANCE:
                return False
            worst = max(worst, defect)
    r = rotation
    determinant = (
        r[0, 0] * (r[1, 1] * r[2, 2] - r[1, 2] * r[2, 1])
        - r[0, 1] * (r[1, 0] * r[2, 2] - r[1, 2] * r[2, 0])
        + r[0, 2] * (r[1, 0] * r[2, 1] - r[1, 1] * r[2, 0])
    )
    if determinant <= 0.0:
        return False
    before, product = np.empty((3, 3)), np.empty((3, 3))
    for _ in range(1 if worst <= ROUNDING else 2):
        before[:] = rotation
        for i in range(3):
            for j in range(3):
                square = before[0, i] * before[0, j] + before[1, i] * before[1, j] + before[2, i] * before[2, j]
                product[i, j] = (1.5 if i == j else 0.0) - 0.5 * square
        for i in range(3):
            for j in range(3):
                rotation[i, j] = (
                    before[i, 0] * product[0, j] + before[i, 1] * product[1, j] + before[i, 2] * product[2, j]
                )
    return True
