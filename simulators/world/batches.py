"""Owns rigid motions in bulk: thousands of (4, 4) matrices at once, for truth that is sampled over time.

Column vectors, mm.  What the frames are is said by the names of the arrays; ``Rigid`` proves single poses where one
leaves the simulators' world.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from navsrv.kernel.frames import Array


def rigid(rotation: ArrayLike, translation_mm: ArrayLike) -> Array:
    """Return (N, 4, 4) of rotations (N, 3, 3) or (3, 3) and translations (N, 3) or (3,)."""
    r, t = np.asarray(rotation, dtype=np.float64), np.asarray(translation_mm, dtype=np.float64)
    count = max(r.shape[0] if r.ndim == 3 else 1, t.shape[0] if t.ndim == 2 else 1)
    made = np.zeros((count, 4, 4))
    made[:, :3, :3], made[:, :3, 3], made[:, 3, 3] = r, t, 1.0
    return made


def inverse(matrices: Array) -> Array:
    """Return the inverses (N, 4, 4) of rigid motions."""
    turned = np.swapaxes(matrices[:, :3, :3], 1, 2)
    return rigid(turned, -np.einsum("nij,nj->ni", turned, matrices[:, :3, 3]))


def moved(matrices: Array, points_mm: Array) -> Array:
    """Return points (N, M, 3): the same points (M, 3) moved by each of (N, 4, 4)."""
    result: Array = points_mm @ np.swapaxes(matrices[:, :3, :3], 1, 2) + matrices[:, None, :3, 3]
    return result


def rotations(vectors_rad: Array) -> Array:
    """Return rotations (N, 3, 3) of rotation vectors (N, 3) in radians (Rodrigues)."""
    angle = np.linalg.norm(vectors_rad, axis=1)
    x, y, z = np.moveaxis(vectors_rad, 1, 0)
    nothing = np.zeros_like(x)
    k = np.stack([nothing, -z, y, z, nothing, -x, -y, x, nothing], axis=1).reshape(-1, 3, 3)
    # sinc(u) is sin(pi u) / (pi u): both factors are smooth through zero.
    first = np.sinc(angle / np.pi)
    second = 0.5 * np.sinc(angle / (2.0 * np.pi)) ** 2
    result: Array = np.eye(3) + first[:, None, None] * k + second[:, None, None] * (k @ k)
    return result


def about(vectors_rad: Array, centre_mm: Array, moves_mm: Array) -> Array:
    """Return the motions (N, 4, 4) that turn about a fixed centre (3,) and then move: ``R (p - c) + c + d``."""
    turn = rotations(vectors_rad)
    return rigid(turn, moves_mm + centre_mm - turn @ centre_mm)


def rotations_along(axes: Array, roll_rad: ArrayLike = 0.0) -> Array:
    """Return rotations (N, 3, 3) whose third columns are unit vectors (N, 3), rolled about them by (N,) or one angle.

    The first column varies smoothly except where an axis is along the patient's superior axis, where no needle goes.
    """
    side = np.stack([-axes[:, 1], axes[:, 0], np.zeros(len(axes))], axis=1)
    norm = np.linalg.norm(side, axis=1)
    lost = norm < 1e-6
    side[lost], norm[lost] = (1.0, 0.0, 0.0), 1.0
    x = side / norm[:, None]
    y = np.cross(axes, x)
    roll = np.broadcast_to(np.asarray(roll_rad, dtype=np.float64), norm.shape)[:, None]
    c, s = np.cos(roll), np.sin(roll)
    return np.stack([c * x + s * y, c * y - s * x, axes], axis=2)
