"""Owns the compiled step from numbers that came over a wire to a rotation; every pose passes here.

Apart from ``frames``, because importing it imports a compiler.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from navsrv.kernel.frames import RIGIDITY_TOLERANCE, ROUNDING, Array


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
