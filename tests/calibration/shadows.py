"""X-rays of bead phantoms for tests: exact path lengths through spheres, blurred, with Poisson noise.

Shares no code with what it judges: rays run from the source through each subpixel of a bent picture, whose bending is
given from the seen picture to the ideal one (the calibration's model runs the other way).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]
MU_STEEL = 0.21  # 1/mm at about 60 keV, and hardened
MU_ACRYLIC = 0.022


@dataclass(frozen=True)
class Room:
    """One view: where the source and the flat ideal detector stand to the phantom."""

    source: Array
    corner: Array  # centre of pixel (0, 0)
    along_column: Array  # one column further, in mm
    along_row: Array
    columns: int
    rows: int
    pincushion: float = 0.0  # ideal = seen * (1 - pincushion r^2), r in half sides
    turning: float = 0.0  # and turned by turning r^2 - half of it r^4
    centre: tuple[float, float] = (0.0, 0.0)
    extra: tuple[float, float] = field(default=(0.0, 0.0))  # a bend of third order that is not round

    def ideal(self, seen: Array) -> Array:
        """Return the ideal place of seen ones (N, 2)."""
        middle = np.array([(self.columns - 1) / 2, (self.rows - 1) / 2])
        half = max(self.columns, self.rows) / 2
        x = (seen - middle) / half - np.array(self.centre)
        r2 = (x**2).sum(axis=1)
        angle = self.turning * (r2 - 0.5 * r2**2)
        turned = np.column_stack(
            [np.cos(angle) * x[:, 0] - np.sin(angle) * x[:, 1], np.sin(angle) * x[:, 0] + np.cos(angle) * x[:, 1]]
        )
        bent = turned * (1 - self.pincushion * r2)[:, None]
        bent = bent + np.column_stack([self.extra[0] * x[:, 0] ** 2 * x[:, 1], self.extra[1] * x[:, 1] ** 3])
        return (bent + np.array(self.centre)) * half + middle

    def seen(self, ideal: Array) -> Array:
        """Return where ideal places (N, 2) are seen, by Newton's steps."""
        at = ideal.copy()
        for _ in range(50):
            at = at - (self.ideal(at) - ideal)
        return at

    def shadow(self, points: Array) -> Array:
        """Return the seen place (N, 2) of points (N, 3): where their ray meets the detector's plane, bent."""
        normal = np.cross(self.along_column, self.along_row)
        rays = points - self.source
        reach = ((self.corner - self.source) @ normal) / (rays @ normal)
        hits = self.source + rays * reach[:, None] - self.corner
        axes = np.column_stack([self.along_column, self.along_row])
        return self.seen(np.linalg.lstsq(axes, hits.T, rcond=None)[0].T)

    def picture(
        self, beads: Array, radii: Array, rng: np.random.Generator, *, photons: float = 20000.0, blur_px: float = 0.8
    ) -> Array:
        """Return counts (rows, columns)."""
        paths = np.zeros((self.rows, self.columns))
        places = self.shadow(beads)
        for bead, radius, place in zip(beads, radii, places, strict=True):
            reach = 3 + int(
                2.2 * radius / np.linalg.norm(self.along_column) / 0.45
            )  # never magnified more than 1 / 0.45
            left, top = (round(float(c)) - reach for c in place)
            u0, u1 = max(left, 0), min(left + 2 * reach + 1, self.columns)
            v0, v1 = max(top, 0), min(top + 2 * reach + 1, self.rows)
            if u0 >= u1 or v0 >= v1:
                continue
            fine = 4
            u = u0 - 0.5 + (np.arange((u1 - u0) * fine) + 0.5) / fine
            v = v0 - 0.5 + (np.arange((v1 - v0) * fine) + 0.5) / fine
            grid = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
            flat = self.ideal(grid)
            points = self.corner + flat[:, :1] * self.along_column + flat[:, 1:] * self.along_row
            rays = points - self.source
            rays /= np.linalg.norm(rays, axis=1, keepdims=True)
            off2 = (np.cross(bead - self.source, rays) ** 2).sum(axis=1)
            path = 2 * np.sqrt(np.maximum(radius**2 - off2, 0.0))
            block = path.reshape(v1 - v0, fine, u1 - u0, fine)
            paths[v0:v1, u0:u1] += block.mean(axis=(1, 3))
        v, u = np.mgrid[0 : self.rows, 0 : self.columns] / max(self.columns, self.rows)
        acrylic = 12.0 + 8.0 * np.exp(-(((u - 0.4) / 0.5) ** 2))  # the phantom's body, smooth
        clean = photons * np.exp(-MU_STEEL * paths - MU_ACRYLIC * acrylic) * (1.0 - 0.3 * (u - 0.5) ** 2)
        return rng.poisson(np.maximum(gaussian_filter(clean, blur_px), 0.0)).astype(float)


def arm(
    angle_rad: float,
    *,
    columns: int = 512,
    pixel: float = 0.45,
    sdd: float = 1000.0,
    sid: float = 620.0,
    principal: tuple[float, float] = (4.0, -3.0),
    flex: float = 0.0,
    **bending: object,
) -> Room:
    """Return the view of a C-arm turned about the phantom's z by an angle, sagging with it by ``flex`` mm."""
    turn = Rotation.from_rotvec([0.0, 0.0, angle_rad]) * Rotation.from_rotvec([-np.pi / 2 + 0.02, 0.0, 0.05])
    sag = flex * np.array([0.3 * np.sin(angle_rad), 0.2 * np.sin(2 * angle_rad), np.cos(angle_rad)])
    across, down, along = turn.as_matrix().T
    source = -sid * along + np.array([3.0, -5.0, 8.0]) + sag
    tilt = Rotation.from_rotvec(flex * 0.001 * np.array([np.cos(angle_rad), np.sin(angle_rad), 0.0]))
    across, down, along = tilt.apply(across), tilt.apply(down), tilt.apply(along)
    foot = source + (sdd + 0.5 * flex * np.sin(angle_rad)) * along
    u, v = (columns - 1) / 2 + principal[0], (columns - 1) / 2 + principal[1]
    corner = foot - u * pixel * across - v * pixel * down
    return Room(source, corner, pixel * across, pixel * down, columns, columns, **bending)  # type: ignore[arg-type]


def helix(count: int = 40, code: int = 9, radius: float = 55.0, height: float = 130.0) -> tuple[Array, Array]:
    """Return beads (N, 3) and diameters (N,) on a helix about z, ``code`` of them big, no two gaps alike."""
    t = np.linspace(0.0, 1.0, count)
    angle = 2 * np.pi * 2.15 * t
    beads = np.column_stack([radius * np.cos(angle), radius * np.sin(angle), height * (t - 0.5)])
    diameters = np.full(count, 2.0)
    places = np.cumsum([2, 3, 5, 4, 6, 3, 7, 2, 5, 4, 3, 6])[:code]
    diameters[places[places < count]] = 3.5
    return beads, diameters


def plates(rows: int = 8) -> tuple[Array, Array]:
    """Return beads of two plates: a fine grid near the detector, a coarse one near the source, with big beads."""
    grid = (np.arange(rows) - (rows - 1) / 2) * (108.0 / (rows - 1))
    x, z = (a.ravel() for a in np.meshgrid(grid, grid))
    far = np.column_stack([x, np.full_like(x, 45.0), z])
    diameters = np.full(len(far), 2.0)
    diameters[[10, 30, 52]] = 3.5
    ring = np.array([0.0, 0.8, 1.9, 2.6, 3.5, 4.6, 5.5])
    big = np.column_stack([38 * np.cos(ring), np.full_like(ring, -60.0), 30 * np.sin(ring)])
    more = np.column_stack([18 * np.cos(ring + 0.4), np.full_like(ring, -60.0), 18 * np.sin(ring + 0.4)])
    beads = np.concatenate([far, big, more])
    return beads, np.concatenate(
        [diameters, np.where(np.arange(len(ring)) % 3 == 0, 2.0, 3.5), np.full(len(more), 2.0)]
    )
