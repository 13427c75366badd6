"""Owns the truth of a distance: exact signed distances from a point or a needle to every structure of a case.

Reads the case's plain files (``primitives.json``, else the surfaces) and computes with formulas of its own: nothing
here is shared with the anatomy or the guidance that it judges.  Positive outside, negative inside, LPS mm.  Made for
logs after the fact: vectorised, not fast.  Refuses approximations that do not say so: ``is_exact`` tells where a
depth is only a bound.

Theory.  A tube is a union of capsules, and a round cone the union of the balls between its ends: from outside, the
distance to a union is the least over its parts, exact.  Inside, each containing part guarantees its own depth, the
deepest part wins, and that depth is exact when the point of its wall that is nearest lies on the union's own wall,
not inside another part.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navsrv.kernel.errors import InputError

Array = NDArray[np.float64]

WALL_TOLERANCE_MM: Final = 1e-6
SHAFT_STEP_MM: Final = 1.0
CHUNK: Final = 2_000_000
"""Point-triangle pairs worked on at once: about 400 MB."""


class Solid(ABC):
    """A simple solid: signed distance, and the nearest point of its wall."""

    @abstractmethod
    def nearest(self, points: Array) -> tuple[Array, Array]:
        """Return signed distances (N,) and nearest wall points (N, 3) of points (N, 3)."""


@dataclass(frozen=True, slots=True, eq=False)
class BallChain(Solid):
    """The union of the balls whose centre and radius run linearly between two ends: capsule or round cone."""

    start: Array
    end: Array
    start_radius: float
    end_radius: float

    def nearest(self, points: Array) -> tuple[Array, Array]:
        """Minimise ``|p - c(t)| - r(t)`` over t in [0, 1]: convex in t, its stationary point known in closed form."""
        axis = self.end - self.start
        length = float(np.linalg.norm(axis))
        unit = axis / length
        fall = (self.start_radius - self.end_radius) / length
        offset = points - self.start
        along = offset @ unit
        off = np.linalg.norm(offset - along[:, None] * unit, axis=1)
        # d/da of hypot(along - a, off) + fall * a is zero where the ball's normal leans by asin(fall).
        centre = np.clip(along - off * fall / np.sqrt(1.0 - fall * fall), 0.0, length)
        radius = self.start_radius - fall * centre
        middle = self.start + centre[:, None] * unit
        ray = points - middle
        reach = np.linalg.norm(ray, axis=1)
        safe = np.where(reach[:, None] > 1e-12, ray / np.maximum(reach, 1e-12)[:, None], _square_to(unit))
        return reach - radius, middle + radius[:, None] * safe


@dataclass(frozen=True, slots=True, eq=False)
class Ellipsoid(Solid):
    """Semi-axes along the columns of a rotation about a centre."""

    center: Array
    axes: Array
    rotation: Array

    def nearest(self, points: Array) -> tuple[Array, Array]:
        """Bisect for the multiplier of the nearest-point condition in the ellipsoid's own axes."""
        local = (points - self.center) @ self.rotation
        foot = _foot_on_ellipse(local, self.axes)
        distance = np.linalg.norm(local - foot, axis=1)
        inside = ((local / self.axes) ** 2).sum(axis=1) < 1.0
        return np.where(inside, -distance, distance), foot @ self.rotation.T + self.center


@dataclass(frozen=True, slots=True, eq=False)
class EllipticCylinder(Solid):
    """Semi-axes along x and y, flat ends along z."""

    center: Array
    axes: Array
    half_length: float

    def nearest(self, points: Array) -> tuple[Array, Array]:
        """Compare the side wall with the two ends; outside both, the rim."""
        local = points - self.center
        side_foot = _foot_on_ellipse(local[:, :2], self.axes)
        in_ellipse = ((local[:, :2] / self.axes) ** 2).sum(axis=1) <= 1.0
        to_side = np.linalg.norm(local[:, :2] - side_foot, axis=1)
        to_end = self.half_length - np.abs(local[:, 2])
        end_z = np.copysign(self.half_length, local[:, 2])
        inside = in_ellipse & (to_end >= 0.0)
        foot = np.empty_like(local)
        foot[:, :2] = np.where(in_ellipse[:, None], local[:, :2], side_foot)
        foot[:, 2] = np.clip(local[:, 2], -self.half_length, self.half_length)
        through_end = inside & (to_end < to_side)
        through_side = inside & ~through_end
        foot[through_end, 2] = end_z[through_end]
        foot[through_side, :2] = side_foot[through_side]
        distance = np.linalg.norm(local - foot, axis=1)
        return np.where(inside, -distance, distance), foot + self.center


@dataclass(frozen=True, slots=True, eq=False)
class Union:
    """Solids taken together."""

    solids: tuple[Solid, ...]

    def distance(self, points: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Return signed distances (N,) and whether each is exact; where not, the depth is at least that much."""
        answers = [solid.nearest(points) for solid in self.solids]
        distances = np.stack([d for d, _ in answers])
        best = distances.argmin(axis=0)
        result = distances.min(axis=0)
        exact = result >= 0.0
        inner = np.flatnonzero(~exact)
        if len(inner):
            feet = np.stack([f for _, f in answers])[best[inner], inner]
            at_foot = np.min([solid.nearest(feet)[0] for solid in self.solids], axis=0)
            exact[inner] = at_foot > -WALL_TOLERANCE_MM
        return result, exact


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """A closed triangle surface: brute-force closest point, sign by the solid angle that it fills."""

    vertices: Array
    triangles: NDArray[np.int64]

    def distance(self, points: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Return signed distances (N,) to the triangles as they are; always exact."""
        corners = self.vertices[self.triangles]
        result = np.empty(len(points))
        size = max(1, CHUNK // max(1, len(corners)))
        for first in range(0, len(points), size):
            some = points[first : first + size]
            squared = np.full(len(some), np.inf)
            turns = np.zeros(len(some))
            for begin in range(0, len(corners), CHUNK):
                part = corners[begin : begin + CHUNK]
                squared = np.minimum(squared, _squared_to_triangles(some, part).min(axis=1))
                turns += _solid_angles(some, part).sum(axis=1)
            inside = np.abs(turns) / (4.0 * np.pi) > 0.5
            result[first : first + size] = np.where(inside, -1.0, 1.0) * np.sqrt(squared)
        return result, np.ones(len(points), dtype=np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The exact geometry of a case, by structure."""

    shapes: Mapping[str, Union | Surface]

    @classmethod
    def from_case(cls, folder: str | Path) -> Truth:
        """Return the truth of a case folder: exact solids where ``primitives.json`` states them, triangles elsewhere.

        Raises
        ------
        InputError
            A file is missing, is not JSON, or states a solid that is not known here.
        """
        root = Path(folder)
        record = _read_json(root / "case.json")
        shapes: dict[str, Union | Surface] = {}
        if record.get("primitives"):
            shapes.update(read_primitives(root / str(record["primitives"])))
        for structure in record.get("structures", ()):
            if structure["name"] not in shapes:
                shapes[structure["name"]] = _read_surface(root / structure["surface"])
        return cls(shapes)

    @classmethod
    def from_primitives(cls, path: str | Path) -> Truth:
        """Return the truth of one ``primitives.json``; InputError as above."""
        return cls(read_primitives(Path(path)))

    def distance(self, point_mm: ArrayLike, names: tuple[str, ...] | None = None) -> dict[str, Array]:
        """Return, by structure, signed distances: () for a point (3,), (N,) for points (N, 3), LPS mm."""
        points, single = _points(point_mm)
        found = {name: self.shapes[name].distance(points)[0] for name in names or tuple(self.shapes)}
        return {name: (d[0] if single else d) for name, d in found.items()}

    def is_exact(self, point_mm: ArrayLike, names: tuple[str, ...] | None = None) -> dict[str, NDArray[np.bool_]]:
        """Return, by structure, whether ``distance`` is exact; where not, the point is at least that deep inside."""
        points, single = _points(point_mm)
        found = {name: self.shapes[name].distance(points)[1] for name in names or tuple(self.shapes)}
        return {name: (e[0] if single else e) for name, e in found.items()}

    def shaft_distance(
        self, tip_mm: ArrayLike, hub_mm: ArrayLike, radius_mm: float, names: tuple[str, ...] | None = None
    ) -> dict[str, Array]:
        """Return, by structure, the least signed distance along the axis from tip to hub, less the radius.

        Parameters
        ----------
        tip_mm, hub_mm : (3,) or (N, 3)
            LPS mm; N needles at once.
        radius_mm : float
            Of the shaft.
        """
        tips, single = _points(tip_mm)
        hubs, _ = _points(hub_mm)
        found: dict[str, Array] = {}
        for name in names or tuple(self.shapes):
            found[name] = _least_along(self.shapes[name], tips, hubs) - radius_mm
        return {name: (d[0] if single else d) for name, d in found.items()}


def read_primitives(path: Path) -> dict[str, Union | Surface]:
    """Return the solids of a ``primitives.json`` by structure; InputError that names the file and the place."""
    record = _read_json(path)
    if record.get("frame") != "LPS" or record.get("units") != "mm":
        raise InputError(f"{path}: frame {record.get('frame')!r}, units {record.get('units')!r}; expected 'LPS', 'mm'")
    shapes: dict[str, Union | Surface] = {}
    for name, structure in record.get("structures", {}).items():
        try:
            solids = [solid for item in structure["primitives"] for solid in _solids(item)]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: structures.{name}: {error!r}; expected solids in plain numbers") from None
        shapes[name] = Union(tuple(solids))
    return shapes


def _solids(item: Mapping[str, Any]) -> list[Solid]:
    def numbers(key: str) -> Array:
        return np.asarray(item[key], dtype=np.float64)

    match item["type"]:
        case "tube":
            points, radius = numbers("points_mm"), float(item["radius_mm"])
            return [BallChain(a, b, radius, radius) for a, b in pairwise(points)]
        case "round_cone":
            ends = numbers("start_mm"), numbers("end_mm")
            return [BallChain(*ends, float(item["start_radius_mm"]), float(item["end_radius_mm"]))]
        case "ellipsoid":
            return [Ellipsoid(numbers("center_mm"), numbers("axes_mm"), numbers("rotation"))]
        case "elliptic_cylinder":
            return [EllipticCylinder(numbers("center_mm"), numbers("axes_mm"), float(item["half_length_mm"]))]
        case other:
            raise ValueError(f"unknown solid {other!r}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a file of a case folder") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise InputError(f"{path}: expected an object at top level, found {type(record).__name__}")
    return record


def _read_surface(path: Path) -> Surface:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Surface(arrays["vertices_mm"].astype(np.float64), arrays["triangles"].astype(np.int64))
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: not a surface of a case: {error}") from None


def _points(values: ArrayLike) -> tuple[Array, bool]:
    points = np.asarray(values, dtype=np.float64)
    if points.shape[-1:] != (3,) or points.ndim > 2:
        raise ValueError(f"points of shape {points.shape}; expected (3,) or (N, 3)")
    return np.atleast_2d(points), points.ndim == 1


def _square_to(unit: Array) -> Array:
    """Any unit vector square to another one."""
    helper = np.eye(3)[int(np.abs(unit).argmin())]
    square = np.cross(unit, helper)
    result: Array = square / np.linalg.norm(square)
    return result


def _foot_on_ellipse(local: Array, axes: Array) -> Array:
    """Nearest points on the wall of an axis-aligned ellipse or ellipsoid, for points (N, n) in its own axes.

    The foot q satisfies p - q = m * gradient, so q_i = p_i / (1 + m / a_i^2), and m makes q lie on the wall: the sum of
    (p_i a_i / (a_i^2 + m))^2 falls from above 1 to below 1 over m in (-a_min^2, |p| a_max], where bisection finds it.
    """
    points = np.abs(local)
    square = axes**2
    points[:, square == square.min()] = np.maximum(points[:, square == square.min()], 1e-10)
    # Written as n = m + a_min^2 > 0 and halved in the logarithm, so that the flat of the medial axis keeps its digits.
    gap = square - square.min()
    low = np.full(len(points), 1e-14)
    high = np.linalg.norm(points, axis=1) * axes.max() + square.max()
    for _ in range(110):
        middle = np.sqrt(low * high)
        beyond = ((points * axes / (gap + middle[:, None])) ** 2).sum(axis=1) > 1.0
        low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
    foot = points * square / (gap + np.sqrt(low * high)[:, None])
    result: Array = np.copysign(foot, local)
    return result


def _least_along(shape: Union | Surface, tips: Array, hubs: Array) -> Array:
    """Least distance on each segment: sample, then halve every interval that may still hold a lesser one.

    A signed distance changes by at most 1 mm per mm: samples h apart whose mean lies h / 2 above the least found so far
    cannot hide a lesser one between them.  Intervals are halved until that bound closes to a micrometre, or to 2 ** -12
    of the first step.
    """
    lengths = np.linalg.norm(hubs - tips, axis=1)
    result = np.empty(len(tips))
    for n in range(len(tips)):
        count = max(2, int(np.ceil(lengths[n] / SHAFT_STEP_MM)) + 1)
        t = np.linspace(0.0, 1.0, count)
        d = shape.distance(tips[n] + t[:, None] * (hubs[n] - tips[n]))[0]
        low, high, d_low, d_high = t[:-1], t[1:], d[:-1], d[1:]
        best = float(d.min())
        for _ in range(12):
            width = (high - low) * lengths[n]
            open_ = (d_low + d_high - width) / 2.0 < best - 1e-6
            low, high, d_low, d_high = low[open_], high[open_], d_low[open_], d_high[open_]
            if len(low) == 0:
                break
            middle = (low + high) / 2.0
            d_middle = shape.distance(tips[n] + middle[:, None] * (hubs[n] - tips[n]))[0]
            best = min(best, float(d_middle.min()))
            low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
            d_low, d_high = np.concatenate([d_low, d_middle]), np.concatenate([d_middle, d_high])
        result[n] = best
    return result


def _squared_to_triangles(points: Array, corners: Array) -> Array:
    """Squared distances (N, M) of points (N, 3) to triangles (M, 3, 3): to the plane, or to the edges."""
    edge = np.roll(corners, -1, axis=1) - corners
    normal = np.cross(edge[:, 0], edge[:, 1])
    area = np.maximum(np.einsum("mi,mi->m", normal, normal), 1e-300)
    to = points[:, None, None, :] - corners[None]
    best = np.full(to.shape[:2], np.inf)
    within = np.ones(to.shape[:2], dtype=np.bool_)
    for i in range(3):
        length = np.maximum(np.einsum("mi,mi->m", edge[:, i], edge[:, i]), 1e-300)
        t = np.clip(np.einsum("nmi,mi->nm", to[:, :, i], edge[:, i]) / length, 0.0, 1.0)
        rest = to[:, :, i] - t[:, :, None] * edge[None, :, i]
        best = np.minimum(best, np.einsum("nmi,nmi->nm", rest, rest))
        within &= np.einsum("nmi,mi->nm", to[:, :, i], np.cross(normal, edge[:, i])) >= 0.0
    height = np.einsum("nmi,mi->nm", to[:, :, 0], normal)
    result: Array = np.where(within, height * height / area, best)
    return result


def _solid_angles(points: Array, corners: Array) -> Array:
    """Signed solid angles (N, M) of triangles seen from points (van Oosterom and Strackee 1983)."""
    a, b, c = (corners[None, :, i] - points[:, None, :] for i in range(3))
    la, lb, lc = (np.linalg.norm(v, axis=2) for v in (a, b, c))
    triple = np.einsum("nmi,nmi->nm", a, np.cross(b, c))
    ab, bc, ca = (np.einsum("nmi,nmi->nm", u, v) for u, v in ((a, b), (b, c), (c, a)))
    result: Array = 2.0 * np.arctan2(triple, la * lb * lc + ab * lc + bc * la + ca * lb)
    return result
