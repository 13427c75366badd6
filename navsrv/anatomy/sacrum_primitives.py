"""Owns the analytic solids of the built-in sacrum case and their exact signed distances.

Positive outside, negative inside.  A union is the minimum over its parts: exact outside; inside it is a lower bound
of the depth, since the nearest wall of one part may lie inside another; its zero set is exact everywhere, which is
what surfaces and label maps need.  Refuses composite bone, whose shape is only approximate (``sacrum_bones``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navsrv.kernel.frames import Array, frozen_array

NEWTON_STEPS: Final = 40
"""Enough for full float64 precision from any point at which a needle or a voxel can be."""


def _plain(values: Array) -> Any:
    return [round(float(v), 6) for v in values] if values.ndim == 1 else [_plain(row) for row in values]


@dataclass(frozen=True, slots=True, eq=False)
class Tube:
    """All points within ``radius_mm`` of the polyline ``points_mm`` (N, 3)."""

    points_mm: Array
    radius_mm: float

    def __post_init__(self) -> None:
        points = np.asarray(self.points_mm, dtype=np.float64)
        object.__setattr__(self, "points_mm", frozen_array(points, points.shape))

    def signed_distance(self, x: Array, y: Array, z: Array) -> Array:
        """Return the signed distance in mm at broadcastable coordinates x, y, z (LPS mm)."""
        nearest: Array | None = None
        for a, b in zip(self.points_mm[:-1], self.points_mm[1:], strict=True):
            squared = _squared_distance_to_segment(x, y, z, a, b)
            nearest = squared if nearest is None else np.minimum(nearest, squared)
        assert nearest is not None
        result: Array = np.sqrt(nearest) - self.radius_mm
        return result

    def bounds_mm(self) -> Array:
        """Return the (2, 3) box around the solid."""
        return np.stack([self.points_mm.min(axis=0) - self.radius_mm, self.points_mm.max(axis=0) + self.radius_mm])

    def smallest_radius_mm(self) -> float:
        """Return the smallest radius of curvature across the solid, for choosing a grid."""
        return self.radius_mm

    def record(self) -> dict[str, Any]:
        """Return the plain numbers of ``primitives.json``."""
        return {"type": "tube", "points_mm": _plain(self.points_mm), "radius_mm": round(self.radius_mm, 6)}


@dataclass(frozen=True, slots=True, eq=False)
class RoundCone:
    """The convex hull of two balls: at ``start_mm`` with ``start_radius_mm``, at ``end_mm`` with ``end_radius_mm``."""

    start_mm: Array
    end_mm: Array
    start_radius_mm: float
    end_radius_mm: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "start_mm", frozen_array(self.start_mm, (3,)))
        object.__setattr__(self, "end_mm", frozen_array(self.end_mm, (3,)))
        if self.length_mm <= abs(self.start_radius_mm - self.end_radius_mm):
            raise ValueError("a round cone needs its ends farther apart than their radii differ")

    @property
    def length_mm(self) -> float:
        """Distance between the two centres."""
        return float(np.linalg.norm(self.end_mm - self.start_mm))

    def signed_distance(self, x: Array, y: Array, z: Array) -> Array:
        """Return the signed distance in mm at broadcastable coordinates x, y, z (LPS mm)."""
        # In the half plane (along, off) of the axis the wall is a straight line whose normal leans by the cone's angle.
        axis = (self.end_mm - self.start_mm) / self.length_mm
        dx, dy, dz = x - self.start_mm[0], y - self.start_mm[1], z - self.start_mm[2]
        along = dx * axis[0] + dy * axis[1] + dz * axis[2]
        off = np.sqrt(np.maximum(dx * dx + dy * dy + dz * dz - along * along, 0.0))
        sine = (self.start_radius_mm - self.end_radius_mm) / self.length_mm
        cosine = np.sqrt(1.0 - sine * sine)
        wall = off * cosine + along * sine - self.start_radius_mm
        start_ball = np.hypot(along, off) - self.start_radius_mm
        end_ball = np.hypot(along - self.length_mm, off) - self.end_radius_mm
        foot = along - off * sine / cosine
        result: Array = np.where(foot < 0.0, start_ball, np.where(foot > self.length_mm, end_ball, wall))
        return result

    def bounds_mm(self) -> Array:
        """Return the (2, 3) box around the solid."""
        low = np.minimum(self.start_mm - self.start_radius_mm, self.end_mm - self.end_radius_mm)
        high = np.maximum(self.start_mm + self.start_radius_mm, self.end_mm + self.end_radius_mm)
        return np.stack([low, high])

    def smallest_radius_mm(self) -> float:
        """Return the smallest radius of curvature across the solid, for choosing a grid."""
        return min(self.start_radius_mm, self.end_radius_mm)

    def record(self) -> dict[str, Any]:
        """Return the plain numbers of ``primitives.json``."""
        return {
            "type": "round_cone",
            "start_mm": _plain(self.start_mm),
            "end_mm": _plain(self.end_mm),
            "start_radius_mm": round(self.start_radius_mm, 6),
            "end_radius_mm": round(self.end_radius_mm, 6),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Ellipsoid:
    """Semi-axes ``axes_mm`` (3,) along the columns of ``rotation`` (3, 3) about ``center_mm`` (3,)."""

    center_mm: Array
    axes_mm: Array
    rotation: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "center_mm", frozen_array(self.center_mm, (3,)))
        object.__setattr__(self, "axes_mm", frozen_array(self.axes_mm, (3,)))
        object.__setattr__(self, "rotation", frozen_array(self.rotation, (3, 3)))

    def signed_distance(self, x: Array, y: Array, z: Array) -> Array:
        """Return the signed distance in mm at broadcastable coordinates x, y, z (LPS mm)."""
        return signed_distance_to_ellipse(self.local(x, y, z), self.axes_mm)

    def contains(self, x: Array, y: Array, z: Array) -> NDArray[np.bool_]:
        """Return whether points are inside: cheaper than the distance, for large boxes of voxels."""
        p = self.local(x, y, z)
        result: NDArray[np.bool_] = sum((q / a) ** 2 for q, a in zip(p, self.axes_mm, strict=True)) < 1.0
        return result

    def local(self, x: Array, y: Array, z: Array) -> list[Array]:
        """Return coordinates along the semi-axes, mm from the centre."""
        dx, dy, dz = x - self.center_mm[0], y - self.center_mm[1], z - self.center_mm[2]
        r = self.rotation
        return [dx * r[0, i] + dy * r[1, i] + dz * r[2, i] for i in range(3)]

    def bounds_mm(self) -> Array:
        """Return the (2, 3) box around the solid."""
        half = np.sqrt(((self.rotation * self.axes_mm) ** 2).sum(axis=1))
        return np.stack([self.center_mm - half, self.center_mm + half])

    def smallest_radius_mm(self) -> float:
        """Return the smallest radius of curvature across the solid, for choosing a grid."""
        return float(self.axes_mm.min() ** 2 / self.axes_mm.max())

    def record(self) -> dict[str, Any]:
        """Return the plain numbers of ``primitives.json``."""
        return {
            "type": "ellipsoid",
            "center_mm": _plain(self.center_mm),
            "axes_mm": _plain(self.axes_mm),
            "rotation": [[float(v) for v in row] for row in self.rotation],
        }


@dataclass(frozen=True, slots=True, eq=False)
class EllipticCylinder:
    """Semi-axes ``axes_mm`` (2,) along x and y about ``center_mm`` (3,), flat ends ``half_length_mm`` away along z."""

    center_mm: Array
    axes_mm: Array
    half_length_mm: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "center_mm", frozen_array(self.center_mm, (3,)))
        object.__setattr__(self, "axes_mm", frozen_array(self.axes_mm, (2,)))

    def signed_distance(self, x: Array, y: Array, z: Array) -> Array:
        """Return the signed distance in mm at broadcastable coordinates x, y, z (LPS mm)."""
        side = signed_distance_to_ellipse([x - self.center_mm[0], y - self.center_mm[1]], self.axes_mm)
        end = np.abs(z - self.center_mm[2]) - self.half_length_mm
        outside = np.hypot(np.maximum(side, 0.0), np.maximum(end, 0.0))
        result: Array = outside + np.minimum(np.maximum(side, end), 0.0)
        return result

    def bounds_mm(self) -> Array:
        """Return the (2, 3) box around the solid."""
        half = np.array([*self.axes_mm, self.half_length_mm])
        return np.stack([self.center_mm - half, self.center_mm + half])

    def smallest_radius_mm(self) -> float:
        """Return the smallest radius of curvature across the solid, for choosing a grid."""
        return float(self.axes_mm.min() ** 2 / self.axes_mm.max())

    def record(self) -> dict[str, Any]:
        """Return the plain numbers of ``primitives.json``."""
        return {
            "type": "elliptic_cylinder",
            "center_mm": _plain(self.center_mm),
            "axes_mm": _plain(self.axes_mm),
            "half_length_mm": round(self.half_length_mm, 6),
        }


Primitive = Tube | RoundCone | Ellipsoid | EllipticCylinder


def union_distance(primitives: tuple[Primitive, ...], points_mm: ArrayLike) -> Array:
    """Return the signed distance (N,) in mm of a union at points (N, 3), LPS mm; inside, a lower bound of the depth."""
    x, y, z = np.asarray(points_mm, dtype=np.float64).T
    result: Array = np.min([p.signed_distance(x, y, z) for p in primitives], axis=0)
    return result


def union_bounds_mm(primitives: tuple[Primitive, ...]) -> Array:
    """Return the (2, 3) box around a union."""
    boxes = np.stack([p.bounds_mm() for p in primitives])
    return np.stack([boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)])


def signed_distance_to_ellipse(local: list[Array], axes: Array) -> Array:
    """Return the signed distance to an ellipse or ellipsoid from points in its own axes (one array for each axis).

    The foot of the perpendicular is axes**2 * p / (t + axes**2) with t the largest root of
    sum((axes * p / (t + axes**2))**2) = 1 (Eberly, "Distance from a Point to an Ellipse, an Ellipsoid,
    or a Hyperellipsoid").  The unknown here is
    s = t + min(axes)**2, which keeps its digits near the flat of the medial axis; the sum is convex and falls in s, so
    Newton's method from a start below the root climbs to it without overshoot.
    """
    shortest = float(np.min(axes)) ** 2
    gaps = [float(a) ** 2 - shortest for a in axes]
    p = [np.maximum(np.abs(q), 1e-9) for q in np.broadcast_arrays(*local)]
    s = np.maximum.reduce([float(a) * q - gap for a, q, gap in zip(axes, p, gaps, strict=True)])
    for _ in range(NEWTON_STEPS):
        value, slope = -np.ones_like(s), np.zeros_like(s)
        for a, q, gap in zip(axes, p, gaps, strict=True):
            term = (float(a) * q / (s + gap)) ** 2
            value += term
            slope += term / (s + gap)
        step = value / (2.0 * slope)
        s = s + step
        if float(np.max(np.abs(step) / s, initial=0.0)) < 1e-13:
            break
    squared = np.zeros_like(s)
    inside = -np.ones_like(s)
    for a, q, gap in zip(axes, p, gaps, strict=True):
        squared += (q * (1.0 - float(a) ** 2 / (s + gap))) ** 2
        inside += (q / float(a)) ** 2
    result: Array = np.sqrt(squared) * np.sign(inside)
    return result


def _squared_distance_to_segment(x: Array, y: Array, z: Array, a: Array, b: Array) -> Array:
    axis = b - a
    dx, dy, dz = x - a[0], y - a[1], z - a[2]
    t = np.clip((dx * axis[0] + dy * axis[1] + dz * axis[2]) / float(axis @ axis), 0.0, 1.0)
    result: Array = (dx - t * axis[0]) ** 2 + (dy - t * axis[1]) ** 2 + (dz - t * axis[2]) ** 2
    return result
