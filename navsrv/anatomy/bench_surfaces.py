"""Owns six made-up organ surfaces for measurements and demonstrations.  Refuses to pass for anatomy.

Closed, smooth, bumpy and apart from one another, within about 200 mm of the origin; the same bytes at every call.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy.mesh import Mesh

Array = NDArray[np.float64]


def bench_meshes(triangles: int = 100_000) -> dict[str, Mesh]:
    """Return six closed surfaces of about ``triangles`` triangles each, by name."""
    return {
        "sacrum": _ellipsoid(triangles, (0, 20, 0), (52, 14, 58), bend=0.006, noise=(0.06, 5)),
        "rectum": _tube(triangles, (0, -32, 0), radius=17, height=140, sway=(5, 4), noise=(0.10, 7)),
        "bladder": _ellipsoid(triangles, (0, -95, -20), (42, 36, 34), bend=0.0, noise=(0.05, 3)),
        "iliac vessel left": _tube(triangles, (62, -45, 20), radius=5.5, height=150, sway=(9, 6), noise=(0.06, 5)),
        "iliac vessel right": _tube(triangles, (-62, -45, 20), radius=5.0, height=150, sway=(-9, 7), noise=(0.06, 4)),
        "uterus": _ellipsoid(triangles, (0, -85, 65), (30, 25, 38), bend=-0.002, noise=(0.12, 4)),
    }


def _closed(grid: Array, first_pole: Array, last_pole: Array) -> Mesh:
    """Return the surface of rings ``grid`` (rings, round, 3), closed by a fan to a pole at either end."""
    rings, around = grid.shape[:2]
    here = np.arange(rings * around).reshape(rings, around)
    after = np.roll(here, -1, axis=1)
    a, b, c, d = here[:-1].ravel(), after[:-1].ravel(), here[1:].ravel(), after[1:].ravel()
    first, last = rings * around, rings * around + 1
    faces = [
        np.column_stack([a, d, b]),
        np.column_stack([a, c, d]),
        np.column_stack([np.full(around, first), here[0], after[0]]),
        np.column_stack([np.full(around, last), after[-1], here[-1]]),
    ]
    vertices = np.vstack([grid.reshape(-1, 3), first_pole, last_pole])
    return Mesh(vertices, np.vstack(faces).astype(np.int32))


def _bumps(theta: Array, phi: Array, amount: float, waves: int) -> Array:
    """Return a smooth relative radius (around 1), periodic in ``phi`` and calm at the poles ``theta`` = 0, pi."""
    calm = np.sin(theta) ** 2
    wave = np.sin(waves * theta + 0.7) * np.cos(2 * phi + 0.3) + 0.5 * np.cos((2 * waves - 1) * theta) * np.sin(3 * phi)
    fine = 0.15 * np.sin(9 * waves * theta) * np.cos(5 * waves * phi)
    return 1.0 + amount * calm * (wave + fine)


def _ellipsoid(
    triangles: int,
    centre: tuple[float, float, float],
    axes: tuple[float, float, float],
    bend: float,
    noise: tuple[float, int],
) -> Mesh:
    """Return a bumpy ellipsoid, bent along x and z by ``bend`` (1/mm) towards -y as a sacrum is."""
    rings = max(4, int(np.sqrt(triangles / 4)))
    around = max(8, triangles // (2 * rings))
    theta = np.pi * np.arange(1, rings + 1)[:, None] / (rings + 1)
    phi = 2 * np.pi * np.arange(around)[None, :] / around
    radius = _bumps(theta + 0 * phi, phi + 0 * theta, *noise)
    unit = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta) + 0 * phi], axis=-1)
    points = np.concatenate([(radius[..., None] * unit).reshape(-1, 3), [[0, 0, 1], [0, 0, -1]]]) * np.array(axes)
    points[:, 1] -= bend * (points[:, 0] ** 2 + points[:, 2] ** 2)
    points += np.array(centre, dtype=float)
    return _closed(points[:-2].reshape(rings, around, 3), points[-2], points[-1])


def _tube(
    triangles: int,
    centre: tuple[float, float, float],
    radius: float,
    height: float,
    sway: tuple[float, float],
    noise: tuple[float, int],
) -> Mesh:
    """Return a bumpy tube along z with round ends, its middle line swaying by ``sway`` (x, y) mm."""
    around = max(8, int(np.sqrt(triangles / 2 * 2 * np.pi * radius / height)))
    rings = max(4, triangles // (2 * around))
    theta = np.pi * np.arange(1, rings + 1)[:, None] / (rings + 1)
    phi = 2 * np.pi * np.arange(around)[None, :] / around
    along = 1 - 2 * theta / np.pi
    profile = (1 - along**8) ** 0.5 * radius * _bumps(theta + 0 * phi, phi + 0 * theta, *noise)
    line = np.stack(
        [sway[0] * np.sin(2.2 * along), sway[1] * np.cos(2.9 * along), 0.5 * height * along], axis=-1
    ) + np.array(centre, dtype=float)
    ring = np.stack([np.cos(phi) + 0 * theta, np.sin(phi) + 0 * theta, 0 * (theta + phi)], axis=-1)
    ends = [[s * sway[0] * np.sin(2.2), sway[1] * np.cos(2.9), s * 0.5 * height] for s in (1, -1)]
    poles = np.array(ends) + np.array(centre, dtype=float)
    return _closed(line + profile[..., None] * ring, poles[0], poles[1])
