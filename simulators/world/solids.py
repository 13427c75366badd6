"""Owns the truth of a needle's clearance for thousands of poses at once: least distances of points and segments to
chains of balls, compiled.

The second of two truths: ``truth`` computes any solid slowly; this one computes tubes and round cones exactly and
fast, by formulas of its own.  Neither shares code with the guidance that they judge, and a test holds them to each
other and to VTK.  Positive outside, negative inside, LPS mm.

Theory.  A tube or round cone is a union of balls centred on a segment with a radius that runs linearly.  The distance
of a shaft (a segment) to it is the least of ``|p(t) - c(a)| - r(a)`` over both parameters, a convex function.  With one
radius it is the distance of two segments less the radius (Ericson 2004, 5.1.9); else the least over ``a`` is known in
closed form and the least over ``t`` is found by golden-section search (Kiefer 1953).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array
from simulators.world.truth import BallChain, Surface, Truth, Union

_SEARCH_STEPS: Final = 40
_GOLDEN: Final = 0.5 * (5.0**0.5 - 1.0)
"""Each step leaves this share of the segment: in the end 5e-9 of it."""


@dataclass(frozen=True, slots=True, eq=False)
class TubeStructures:
    """Structures that are unions of tubes and round cones.

    Attributes
    ----------
    names : tuple of str
    chains : (M, 8)
        Start (3), end (3), radius at the start, radius at the end, mm.
    first : (S + 1,)
        Structure ``s`` owns the rows ``first[s]`` to ``first[s + 1]``.
    """

    names: tuple[str, ...]
    chains: Array
    first: NDArray[np.int64]

    @classmethod
    def of(cls, truth: Truth, names: tuple[str, ...]) -> TubeStructures:
        """Return the named structures of a case's truth; InputError for one that is not made of tubes and cones."""
        rows: list[list[float]] = []
        first = [0]
        for name in names:
            rows += [_row(name, solid) for solid in _solids(truth.shapes, name)]
            first.append(len(rows))
        return cls(names, np.array(rows, dtype=np.float64).reshape(-1, 8), np.array(first, dtype=np.int64))

    def tip_distance(self, tips_mm: Array) -> Array:
        """Return the signed distances (N, S) of points (N, 3); inside, the depth in the deepest tube."""
        result = np.empty((len(tips_mm), len(self.names)))
        tips = np.ascontiguousarray(tips_mm)
        _least(tips, tips, self.chains, self.first, result)
        return result

    def shaft_distance(self, tips_mm: Array, hubs_mm: Array, radius_mm: float) -> Array:
        """Return the least signed distances (N, S) of the axes from hubs (N, 3) to tips (N, 3), less the radius."""
        result = np.empty((len(tips_mm), len(self.names)))
        _least(np.ascontiguousarray(tips_mm), np.ascontiguousarray(hubs_mm), self.chains, self.first, result)
        result -= radius_mm
        return result


def _solids(shapes: Mapping[str, Union | Surface], name: str) -> tuple[BallChain, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise InputError(f"{name}: the case has no such structure; it has {', '.join(shapes)}")
    solids = shape.solids if isinstance(shape, Union) else ()
    chains = tuple(solid for solid in solids if isinstance(solid, BallChain))
    if not chains or len(chains) != len(solids):
        raise InputError(f"{name}: is not made of tubes and round cones only; a campaign's truth needs that")
    return chains


def _row(name: str, solid: BallChain) -> list[float]:
    return [*solid.start.tolist(), *solid.end.tolist(), solid.start_radius, solid.end_radius]


@njit(cache=True, nogil=True)
def _least(tips, hubs, chains, first, out):  # type: ignore[no-untyped-def]
    """Least distances; from one needle to the next none shrinks by more than the farther-moved end moved."""
    bound = np.full(chains.shape[0], -np.inf)
    for n in range(tips.shape[0]):
        if n > 0:
            bound -= max(_apart(tips[n], tips[n - 1]), _apart(hubs[n], hubs[n - 1]))
        for s in range(first.shape[0] - 1):
            nearest = first[s] + np.argmin(bound[first[s] : first[s + 1]])
            best = bound[nearest] = _to_chain(tips[n], hubs[n], chains[nearest], np.inf)
            for m in range(first[s], first[s + 1]):
                if bound[m] < best:
                    bound[m] = _to_chain(tips[n], hubs[n], chains[m], best)
                    best = min(best, bound[m])
            out[n, s] = best


@njit(cache=True, nogil=True)
def _to_chain(tip, hub, chain, best):  # type: ignore[no-untyped-def]
    """Distance of a needle to a chain, or a lower bound of it that is not below ``best``."""
    d = _segments(tip, hub, chain[0:3], chain[3:6]) - max(chain[6], chain[7])
    if d < best and chain[6] != chain[7]:
        d = _to_cone(tip, hub, chain)
    return d


@njit(cache=True, nogil=True)
def _apart(a, b):  # type: ignore[no-untyped-def]
    return np.sqrt((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2)


@njit(cache=True, nogil=True)
def _segments(p1, q1, p2, q2):  # type: ignore[no-untyped-def]
    """Distance of two segments (Ericson 2004, 5.1.9); either may be a point."""
    a = e = f = b = c = 0.0
    for i in range(3):
        d1, d2, r = q1[i] - p1[i], q2[i] - p2[i], p1[i] - p2[i]
        a += d1 * d1
        e += d2 * d2
        f += d2 * r
        b += d1 * d2
        c += d1 * r
    if a < 1e-18 and e < 1e-18:
        s, t = 0.0, 0.0
    elif a < 1e-18:
        s, t = 0.0, min(max(f / e, 0.0), 1.0)
    elif e < 1e-18:
        s, t = min(max(-c / a, 0.0), 1.0), 0.0
    else:
        denominator = a * e - b * b
        s = min(max((b * f - c * e) / denominator, 0.0), 1.0) if denominator > 1e-12 * a * e else 0.0
        t = (b * s + f) / e
        if t < 0.0:
            t, s = 0.0, min(max(-c / a, 0.0), 1.0)
        elif t > 1.0:
            t, s = 1.0, min(max((b - c) / a, 0.0), 1.0)
    total = 0.0
    for i in range(3):
        d = p1[i] + s * (q1[i] - p1[i]) - p2[i] - t * (q2[i] - p2[i])
        total += d * d
    return np.sqrt(total)


@njit(cache=True, nogil=True)
def _point_to_cone(x, y, z, chain):  # type: ignore[no-untyped-def]
    """Least of ``|p - c(a)| - r(a)`` over the segment: stationary where the ball's normal leans by asin(fall)."""
    ux, uy, uz = chain[3] - chain[0], chain[4] - chain[1], chain[5] - chain[2]
    length = np.sqrt(ux * ux + uy * uy + uz * uz)
    ux, uy, uz = ux / length, uy / length, uz / length
    fall = (chain[6] - chain[7]) / length
    ox, oy, oz = x - chain[0], y - chain[1], z - chain[2]
    along = ox * ux + oy * uy + oz * uz
    off = np.sqrt(max(ox * ox + oy * oy + oz * oz - along * along, 0.0))
    a = min(max(along - off * fall / np.sqrt(1.0 - fall * fall), 0.0), length)
    return np.sqrt((along - a) ** 2 + off * off) - (chain[6] - fall * a)


@njit(cache=True, nogil=True)
def _to_cone(tip, hub, chain):  # type: ignore[no-untyped-def]
    low, high = 0.0, 1.0
    dx, dy, dz = hub[0] - tip[0], hub[1] - tip[1], hub[2] - tip[2]
    if dx * dx + dy * dy + dz * dz < 1e-18:
        return _point_to_cone(tip[0], tip[1], tip[2], chain)
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_a = _point_to_cone(tip[0] + a * dx, tip[1] + a * dy, tip[2] + a * dz, chain)
    at_b = _point_to_cone(tip[0] + b * dx, tip[1] + b * dy, tip[2] + b * dz, chain)
    for _ in range(_SEARCH_STEPS):
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - _GOLDEN * (high - low)
            at_a = _point_to_cone(tip[0] + a * dx, tip[1] + a * dy, tip[2] + a * dz, chain)
        else:
            low, a, at_a = a, b, at_b
            b = low + _GOLDEN * (high - low)
            at_b = _point_to_cone(tip[0] + b * dx, tip[1] + b * dy, tip[2] + b * dz, chain)
    return min(at_a, at_b)
