"""Owns the compiled geometry of distance structures: nearest triangle, sign, winding number.  Refuses to hold state.

Every function here is a pure function of its arguments: no hint survives from one call to the next, so that a replayed
pose gives the same bits whatever came before it.  Arithmetic is float64 without fast-math, hence no contraction and the
same bits on every IEEE machine.

Layout: a node has eight children in columns (structure of arrays), a leaf eight triangles; loops over them run
to ``lane.size`` and not to 8, since a known count would be unrolled before it could become vector instructions.
A *slot* is ``leaf * 8 + lane``.
"""
# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, cast

from numba import njit

STACK: Final = 512
"""Room of a traversal stack: seven waiting children for each level, and a tree of 2**31 triangles has 11 levels."""
FAR: Final = 1e300
ACCURACY: Final = 2.0
"""Distance over radius beyond which a cluster of triangles counts as one dipole (Barill et al. 2018 use 2)."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` compiled at its first call and cached on disk."""
    return cast(Callable[..., Any], njit(cache=True, error_model="numpy", nogil=True)(function))


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` for use inside compiled loops, always inlined so that the loop can become vectors."""
    return cast(Callable[..., Any], njit(cache=True, error_model="numpy", nogil=True, forceinline=True)(function))


@inlined
def clamp01(t):
    """Return ``t`` limited to 0..1."""
    t = t if t > 0.0 else 0.0
    return t if t < 1.0 else 1.0


@inlined
def origin_triangle(ax, ay, az, bx, by, bz, cx, cy, cz):
    """Return (squared distance, nearest point x, y, z, feature) of the origin to the triangle a b c.

    Feature: 0 face, 1..3 edge ab, bc, ca, 4..6 vertex a, b, c.  No branches: selects only.  The plane is used only
    where the normal is trustworthy (height over longest edge above 1e-8); a thinner sliver is its three edges.
    """
    ux, uy, uz = bx - ax, by - ay, bz - az
    vx, vy, vz = cx - bx, cy - by, cz - bz
    wx, wy, wz = ax - cx, ay - cy, az - cz
    nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    uu, vv, ww = ux * ux + uy * uy + uz * uz, vx * vx + vy * vy + vz * vz, wx * wx + wy * wy + wz * wz
    n2 = nx * nx + ny * ny + nz * nz
    e0 = (uy * nz - uz * ny) * ax + (uz * nx - ux * nz) * ay + (ux * ny - uy * nx) * az
    e1 = (vy * nz - vz * ny) * bx + (vz * nx - vx * nz) * by + (vx * ny - vy * nx) * bz
    e2 = (wy * nz - wz * ny) * cx + (wz * nx - wx * nz) * cy + (wx * ny - wy * nx) * cz
    longest = uu if uu > vv else vv
    longest = longest if longest > ww else ww
    inside = (e0 >= 0.0) & (e1 >= 0.0) & (e2 >= 0.0) & (n2 > 1e-16 * longest * longest)
    t0 = clamp01(-(ax * ux + ay * uy + az * uz) / (uu if uu > 1e-290 else 1.0))
    t1 = clamp01(-(bx * vx + by * vy + bz * vz) / (vv if vv > 1e-290 else 1.0))
    t2 = clamp01(-(cx * wx + cy * wy + cz * wz) / (ww if ww > 1e-290 else 1.0))
    x, y, z = ax + t0 * ux, ay + t0 * uy, az + t0 * uz
    d2 = x * x + y * y + z * z
    t, edge = t0, 1
    x1, y1, z1 = bx + t1 * vx, by + t1 * vy, bz + t1 * vz
    d21 = x1 * x1 + y1 * y1 + z1 * z1
    better = d21 < d2
    d2, x, y, z = d21 if better else d2, x1 if better else x, y1 if better else y, z1 if better else z
    t, edge = t1 if better else t, 2 if better else edge
    x2, y2, z2 = cx + t2 * wx, cy + t2 * wy, cz + t2 * wz
    d22 = x2 * x2 + y2 * y2 + z2 * z2
    better = d22 < d2
    d2, x, y, z = d22 if better else d2, x2 if better else x, y2 if better else y, z2 if better else z
    t, edge = t2 if better else t, 3 if better else edge
    feature = edge
    feature = 3 + edge if t == 0.0 else feature
    feature = 4 + edge % 3 if t == 1.0 else feature
    height = nx * ax + ny * ay + nz * az
    f = height / (n2 if n2 > 1e-290 else 1.0)
    d2 = height * f if inside else d2
    x, y, z = f * nx if inside else x, f * ny if inside else y, f * nz if inside else z
    feature = 0 if inside else feature
    return d2, x, y, z, feature


@inlined
def slot_point(leaf_xyz, leaf, k, px, py, pz):
    """Return ``origin_triangle`` of the triangle at (leaf, k) seen from p; the nearest point is relative to p."""
    return origin_triangle(
        leaf_xyz[leaf, 0, k] - px,
        leaf_xyz[leaf, 1, k] - py,
        leaf_xyz[leaf, 2, k] - pz,
        leaf_xyz[leaf, 3, k] - px,
        leaf_xyz[leaf, 4, k] - py,
        leaf_xyz[leaf, 5, k] - pz,
        leaf_xyz[leaf, 6, k] - px,
        leaf_xyz[leaf, 7, k] - py,
        leaf_xyz[leaf, 8, k] - pz,
    )


@inlined
def relaxed(best2, zone2, visits, limit):
    """Return the part of ``best2`` below which a box must come to be searched still, after too many ``visits``.

    Beyond the zone the distance may then be too long by 1 %, by 20 % from twice ``limit``, and four times ``limit`` is
    the end.  Within the zone all this comes three times ``limit`` later, and 1e-3 mm before it.  Only few boxes can lie
    within a part of their distance from one point, whatever the number of triangles, so that the end is not met.
    """
    if best2 <= zone2:
        visits -= 3 * limit
        if visits < limit:
            return max(0.0, 1.0 - 1e-3 / math.sqrt(max(best2, 1e-12))) ** 2
    if visits < 2 * limit:
        return 0.99 * 0.99
    return 0.8 * 0.8 if visits < 4 * limit else 0.0


@inlined
def push_children(node_child, node, lbs, best2, stack_node, stack_lb, sp):
    """Push the children of ``node`` whose bound is below ``best2``, nearest on top; return the new stack height."""
    base = sp
    for k in range(8):
        lb = lbs[k]
        if lb < best2:
            j = sp
            while j > base and stack_lb[j - 1] < lb:
                stack_lb[j] = stack_lb[j - 1]
                stack_node[j] = stack_node[j - 1]
                j -= 1
            stack_lb[j] = lb
            stack_node[j] = node_child[node, k]
            sp += 1
    return sp


@compiled
def nearest_to_point(
    node_frame, node_child, leaf_xyz, root, px, py, pz, seed, zone2, limit, stack_node, stack_lb, lane
):
    """Return (squared distance, slot, visits, lower bound squared) of the triangle nearest to p.

    ``seed`` is a slot whose leaf gives the first upper bound.  Beyond ``limit`` visits only what is closer by more than
    ``relaxed`` allows is still searched; the last value then says so, else it equals the first.
    """
    best2, slot = FAR, seed
    stack_node[0], stack_lb[0] = root, 0.0
    stack_node[1], stack_lb[1] = -1 - seed // 8, 0.0
    sp, visits, keep = 2, 0, 1.0
    while sp > 0:
        sp -= 1
        if visits >= limit:
            keep = relaxed(best2, zone2, visits, limit)
        if stack_lb[sp] >= best2 * keep:
            continue
        visits += 1
        node = stack_node[sp]
        if node < 0:
            leaf = -1 - node
            for k in range(lane.size):
                lane[k] = slot_point(leaf_xyz, leaf, k, px, py, pz)[0]
            for k in range(8):
                if lane[k] < best2:
                    best2, slot = lane[k], leaf * 8 + k
            continue
        for k in range(lane.size):
            u = (
                math.fabs(
                    node_frame[node, 0, k] * px
                    + node_frame[node, 1, k] * py
                    + node_frame[node, 2, k] * pz
                    - node_frame[node, 9, k]
                )
                - node_frame[node, 12, k]
            )
            v = (
                math.fabs(
                    node_frame[node, 3, k] * px
                    + node_frame[node, 4, k] * py
                    + node_frame[node, 5, k] * pz
                    - node_frame[node, 10, k]
                )
                - node_frame[node, 13, k]
            )
            w = (
                math.fabs(
                    node_frame[node, 6, k] * px
                    + node_frame[node, 7, k] * py
                    + node_frame[node, 8, k] * pz
                    - node_frame[node, 11, k]
                )
                - node_frame[node, 14, k]
            )
            u, v, w = u if u > 0.0 else 0.0, v if v > 0.0 else 0.0, w if w > 0.0 else 0.0
            lane[k] = u * u + v * v + w * w
        sp = push_children(node_child, node, lane, best2 * keep, stack_node, stack_lb, sp)
    return best2, slot, visits, best2 * keep


@inlined
def slot_normal(leaf_xyz, slot):
    """Return the unit normal (x, y, z) of the triangle of ``slot``; zero if its plane is not trustworthy."""
    leaf, k = slot // 8, slot % 8
    ux, uy, uz = (
        leaf_xyz[leaf, 3, k] - leaf_xyz[leaf, 0, k],
        leaf_xyz[leaf, 4, k] - leaf_xyz[leaf, 1, k],
        leaf_xyz[leaf, 5, k] - leaf_xyz[leaf, 2, k],
    )
    vx, vy, vz = (
        leaf_xyz[leaf, 6, k] - leaf_xyz[leaf, 0, k],
        leaf_xyz[leaf, 7, k] - leaf_xyz[leaf, 1, k],
        leaf_xyz[leaf, 8, k] - leaf_xyz[leaf, 2, k],
    )
    nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    n = math.sqrt(nx * nx + ny * ny + nz * nz)
    f = 1.0 / n if n > 1e-290 else 0.0
    return nx * f, ny * f, nz * f


@compiled
def inside_by_normal(leaf_xyz, leaf_neighbour, leaf_vertex, vertex_normal, slot, feature, x, y, z):
    """Return whether a point is inside, given its nearest triangle and (x, y, z) from the point to the surface.

    Angle-weighted pseudonormal of the nearest feature (Baerentzen and Aanaes 2005): right for every closed manifold.
    """
    leaf, k = slot // 8, slot % 8
    if feature > 3:
        v = leaf_vertex[leaf, feature - 4, k]
        return x * vertex_normal[v, 0] + y * vertex_normal[v, 1] + z * vertex_normal[v, 2] > 0.0
    nx, ny, nz = slot_normal(leaf_xyz, slot)
    if feature > 0:
        mx, my, mz = slot_normal(leaf_xyz, leaf_neighbour[leaf, feature - 1, k])
        nx, ny, nz = nx + mx, ny + my, nz + mz
    return x * nx + y * ny + z * nz > 0.0


@inlined
def solid_angle(ax, ay, az, bx, by, bz, cx, cy, cz):
    """Return the signed solid angle of triangle a b c from the origin, positive from behind (van Oosterom 1983)."""
    la = math.sqrt(ax * ax + ay * ay + az * az)
    lb = math.sqrt(bx * bx + by * by + bz * bz)
    lc = math.sqrt(cx * cx + cy * cy + cz * cz)
    det = ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx)
    ab, bc, ca = ax * bx + ay * by + az * bz, bx * cx + by * cy + bz * cz, cx * ax + cy * ay + cz * az
    return 2.0 * math.atan2(det, la * lb * lc + ab * lc + bc * la + ca * lb)


@compiled
def winding_number(node_child, leaf_xyz, leaf_triangle, dipole, shift, root, px, py, pz, stack_node):
    """Return the generalised winding number of p: 1 inside a closed surface, 0 outside (Jacobson et al. 2013).

    Clusters further away than ``ACCURACY`` times their radius count as dipoles (Barill et al. 2018), triangles that
    are near are exact.  Row ``node - shift`` of ``dipole`` (N, 7, 8) is normal times area, centre, squared radius
    (-1: absent) of each child.
    """
    total = 0.0
    stack_node[0], sp = root, 1
    while sp > 0:
        sp -= 1
        node = stack_node[sp]
        if node < 0:
            leaf = -1 - node
            for k in range(8):
                if leaf_triangle[leaf, k] >= 0:
                    total += solid_angle(
                        leaf_xyz[leaf, 0, k] - px,
                        leaf_xyz[leaf, 1, k] - py,
                        leaf_xyz[leaf, 2, k] - pz,
                        leaf_xyz[leaf, 3, k] - px,
                        leaf_xyz[leaf, 4, k] - py,
                        leaf_xyz[leaf, 5, k] - pz,
                        leaf_xyz[leaf, 6, k] - px,
                        leaf_xyz[leaf, 7, k] - py,
                        leaf_xyz[leaf, 8, k] - pz,
                    )
            continue
        row = node - shift
        for k in range(8):
            if dipole[row, 6, k] < 0.0:
                continue
            x, y, z = dipole[row, 3, k] - px, dipole[row, 4, k] - py, dipole[row, 5, k] - pz
            d2 = x * x + y * y + z * z
            if d2 > ACCURACY * ACCURACY * dipole[row, 6, k]:
                dot = dipole[row, 0, k] * x + dipole[row, 1, k] * y + dipole[row, 2, k] * z
                total += dot / (d2 * math.sqrt(d2))
            else:
                stack_node[sp] = node_child[node, k]
                sp += 1
    return total / (4.0 * math.pi)
