"""Owns what a camera can see of markers: its measurement volume, and lines of sight past what stands in the way.

Everything is in the tracker's frame, mm: the camera looks along -z, its lenses are at z = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.frames import Array

Flags = NDArray[np.bool_]

LENSES_MM: Final = np.array([[-250.0, 0.0, 0.0], [250.0, 0.0, 0.0]])
"""Where the two lenses of a Polaris Vega are, to a few centimetres."""


@dataclass(frozen=True, slots=True, eq=False)
class Frustum:
    """A measurement volume: rectangles across the line of sight, linear between given depths.

    Attributes
    ----------
    depth_mm : (K,)
        Rising distances in front of the camera.
    half_mm : (K, 2)
        Half-width and half-height at each.
    """

    depth_mm: Array
    half_mm: Array

    def contains(self, points_mm: Array) -> Flags:
        """Say of points (..., 3) whether they are inside."""
        depth = -points_mm[..., 2]
        wide = np.abs(points_mm[..., 0]) <= np.interp(depth, self.depth_mm, self.half_mm[:, 0])
        high = np.abs(points_mm[..., 1]) <= np.interp(depth, self.depth_mm, self.half_mm[:, 1])
        result: Flags = wide & high & (depth >= self.depth_mm[0]) & (depth <= self.depth_mm[-1])
        return result


POLARIS_VEGA: Final = Frustum(
    np.array([950.0, 2400.0, 3000.0]), np.array([[240.0, 224.0], [783.0, 656.0], [928.0, 735.0]])
)
"""The extended pyramid.  Depths as the maker states them; widths from memory of its brochure and not verified."""

AURORA: Final = Frustum(np.array([50.0, 550.0]), np.array([[250.0, 250.0], [250.0, 250.0]]))
"""The cube in front of a planar field generator, 500 mm along each side."""


@dataclass(frozen=True, slots=True, eq=False)
class Blocker:
    """Something that stands in the way: a capsule (an arm, a shaft), or a ball (a head) when both ends are one.

    Attributes
    ----------
    start_mm, end_mm : (3,) or (N, 3)
        Ends of its axis, at rest or for each exposure, in the tracker.
    radius_mm : float
    """

    start_mm: Array
    end_mm: Array
    radius_mm: float


def hidden_behind(points_mm: Array, blockers: Sequence[Blocker], lenses_mm: Array = LENSES_MM) -> Flags:
    """Say of points (N, M, 3) whether something cuts the line of sight to any of the lenses (L, 3)."""
    hidden = np.zeros(points_mm.shape[:2], dtype=np.bool_)
    for blocker in blockers:
        start, end = (np.atleast_2d(e)[:, None] for e in (blocker.start_mm, blocker.end_mm))
        for lens in lenses_mm:
            hidden |= segment_distance(points_mm, lens - points_mm, start, end - start) < blocker.radius_mm
    return hidden


def segment_distance(p: Array, along_p: Array, q: Array, along_q: Array) -> Array:
    """Return the smallest distance (...) between segments ``p + s along_p`` and ``q + t along_q``, 0 <= s, t <= 1.

    All (..., 3), broadcast.  The unconstrained optimum is clamped, first along q, then along p (Ericson, Real-Time
    Collision Detection, 5.1.9); a segment along q without length is a point.
    """
    r = p - q
    a, e = np.sum(along_p * along_p, axis=-1), np.sum(along_q * along_q, axis=-1)
    b, c, f = (np.sum(u * v, axis=-1) for u, v in ((along_p, along_q), (along_p, r), (along_q, r)))
    shape = np.broadcast_shapes(a.shape, b.shape, e.shape)
    a, b, c, e, f = (np.broadcast_to(v, shape) for v in (a, b, c, e, f))
    denominator = a * e - b * b
    crossing = denominator > 1e-12 * a * np.maximum(e, 1e-12)
    s = np.where(crossing, np.clip((b * f - c * e) / np.where(crossing, denominator, 1.0), 0.0, 1.0), 0.0)
    t = np.clip(np.where(e > 0.0, (b * s + f) / np.where(e > 0.0, e, 1.0), 0.0), 0.0, 1.0)
    s = np.clip((b * t - c) / a, 0.0, 1.0)
    result: Array = np.linalg.norm(r + s[..., None] * along_p - t[..., None] * along_q, axis=-1)
    return result


def turned_away(points_mm: Array, facing: Array, half_angle_rad: float) -> Flags:
    """Say of markers (N, M, 3) that face (N, M, 3) whether the camera is outside their cone; facing 0 never is."""
    length = np.linalg.norm(points_mm, axis=-1)
    towards = -np.sum(facing * points_mm, axis=-1)
    result: Flags = (towards < np.cos(half_angle_rad) * length) & (np.abs(facing).max(axis=-1) > 0.0)
    return result


def overlapped(points_mm: Array, diameter_mm: float, lenses_mm: Array = LENSES_MM) -> Flags:
    """Say of markers (N, M, 3) of one body whether, for a lens, the middle of their image lies in a nearer one's."""
    hidden = np.zeros(points_mm.shape[:2], dtype=np.bool_)
    for lens in lenses_mm:
        rays = points_mm - lens
        distance = np.linalg.norm(rays, axis=-1)
        rays = rays / distance[..., None]
        cosine = rays @ np.swapaxes(rays, 1, 2)
        nearer = distance[:, None, :] < distance[:, :, None]
        radius = 0.5 * diameter_mm / distance
        hidden |= (nearer & (cosine > np.cos(radius)[:, None, :])).any(axis=2)
    return hidden
