"""Owns the compiled distance of an ellipsoid zone to a structure.  Refuses to remember anything.

All in the ellipsoid's own frame: axes along x, y, z, the centre at the origin.  The signed distance ``g`` of a point to
a convex body is convex, so at any point its tangent is a bound from below for a whole box or triangle: a certified
search, of first order in the size of what is left and of second order where the ellipsoid is smooth.
"""
# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

import math
from typing import Final

import numpy as np

from navsrv.anatomy._kernels import FAR, compiled, inlined, push_children
from navsrv.anatomy.bvh import ABSENT
from navsrv.guidance._kernels import grid_index, sample

TOLERANCE_MM: Final = 8e-4
"""A search ends when nothing that is left can be nearer than what was found by more than this."""
BOX_ROUNDING_MM: Final = 1e-3
"""Boxes are float32; their middles, computed back, are off by less."""
OFF_PLANE_MM: Final = 1e-9
"""Points in a plane of symmetry are moved by this: there the nearest point of the ellipsoid is not unique."""
STEPS: Final = 40
PIECES: Final = 96
VISITS: Final = 1536
"""Visits of nodes and leaves after which a search ends with what it has, and says by how much it may be off."""


@compiled
def signed_distance(x, y, z, r, normal):
    """Return the signed distance (mm, negative inside) of a point to the ellipsoid, and set the outward ``normal``.

    The nearest point is ``r_i^2 p_i / (t + r_i^2)`` with t the largest root of ``sum (r_i p_i / (t + r_i^2))^2 = 1``
    (Eberly, Distance from a Point to an Ellipse, an Ellipsoid, or a Hyperellipsoid, 2013); the root by Newton steps on
    ``1 - 1 / sqrt(sum)``, almost a line in t (More and Sorensen 1983), kept between known bounds.
    """
    a, b, c = max(math.fabs(x), OFF_PLANE_MM), max(math.fabs(y), OFF_PLANE_MM), max(math.fabs(z), OFF_PLANE_MM)
    a2, b2, c2 = r[0] * r[0], r[1] * r[1], r[2] * r[2]
    u, v, w = r[0] * a, r[1] * b, r[2] * c
    low = max(u - a2, max(v - b2, w - c2))
    high = math.sqrt(u * u + v * v + w * w) - min(a2, min(b2, c2))
    t = low
    for _ in range(STEPS):
        p, q, s = u / (t + a2), v / (t + b2), w / (t + c2)
        total = p * p + q * q + s * s
        if total >= 1.0:
            low = t
        else:
            high = t
        root = math.sqrt(total)
        slope = (p * p / (t + a2) + q * q / (t + b2) + s * s / (t + c2)) / (total * root)
        step = (1.0 - 1.0 / root) / slope
        after = t + step
        if not low < after < high:
            after = 0.5 * (low + high)
        if math.fabs(after - t) <= 1e-13 * (math.fabs(t) + a2 + b2 + c2):
            break
        t = after
    na, nb, nc = a2 * a / (t + a2), b2 * b / (t + b2), c2 * c / (t + c2)
    da, db, dc = a - na, b - nb, c - nc
    d = math.sqrt(da * da + db * db + dc * dc)
    na, nb, nc = na / a2, nb / b2, nc / c2
    size = math.sqrt(na * na + nb * nb + nc * nc)
    normal[0] = math.copysign(na / size, x)
    normal[1] = math.copysign(nb / size, y)
    normal[2] = math.copysign(nc / size, z)
    inside = (a / r[0]) ** 2 + (b / r[1]) ** 2 + (c / r[2]) ** 2 < 1.0
    return -d if inside else d


@inlined
def support(x, y, z, r):
    """Return (b, nx, ny, nz): a unit direction and the half space of it that holds the ellipsoid.

    ``n p - h(n)``, with ``h(n) = sqrt(sum (r_i n_i)^2)``, is at most ``g(p)`` for every p and every n (a convex body is
    the intersection of its half spaces), and ``b`` is that at x, y, z.  The direction is that of an estimate of t.
    """
    a2, b2, c2 = r[0] * r[0], r[1] * r[1], r[2] * r[2]
    least = min(a2, min(b2, c2))
    u, v, w = x / a2, y / b2, z / c2
    s = math.sqrt(x * u + y * v + z * w + 1e-24)
    t = (s - 1.0) * math.sqrt(x * x + y * y + z * z + 1e-24) / math.sqrt(u * u + v * v + w * w + 1e-24)
    t = max(t, -0.99 * least)
    u, v, w = x / (t + a2), y / (t + b2), z / (t + c2)
    size = math.sqrt(u * u + v * v + w * w)
    if size < 1e-12:
        u, v, w, size = 1.0, 0.0, 0.0, 1.0
    u, v, w = u / size, v / size, w / size
    return u * x + v * y + w * z - math.sqrt(a2 * u * u + b2 * v * v + c2 * w * w), u, v, w


@compiled
def lowest_of_triangle(corners, r, best, nearest, normal, pieces):
    """Return the least ``g`` over a triangle (9,), or ``best`` if it is not lower; ``nearest`` is set where it is.

    Pieces are halved along their longest edge until the tangent at the middle leaves no room for anything lower.
    """
    pieces[0, :] = corners
    count = 1
    while count > 0:
        count -= 1
        ax, ay, az = pieces[count, 0], pieces[count, 1], pieces[count, 2]
        bx, by, bz = pieces[count, 3], pieces[count, 4], pieces[count, 5]
        cx, cy, cz = pieces[count, 6], pieces[count, 7], pieces[count, 8]
        mx, my, mz = (ax + bx + cx) / 3.0, (ay + by + cy) / 3.0, (az + bz + cz) / 3.0
        g, u, v, w = support(mx, my, mz, r)
        ga = u * (ax - mx) + v * (ay - my) + w * (az - mz)
        gb = u * (bx - mx) + v * (by - my) + w * (bz - mz)
        gc = u * (cx - mx) + v * (cy - my) + w * (cz - mz)
        if g + min(ga, min(gb, gc)) >= best - TOLERANCE_MM:
            continue
        g = signed_distance(mx, my, mz, r, normal)
        ga = normal[0] * (ax - mx) + normal[1] * (ay - my) + normal[2] * (az - mz)
        gb = normal[0] * (bx - mx) + normal[1] * (by - my) + normal[2] * (bz - mz)
        gc = normal[0] * (cx - mx) + normal[1] * (cy - my) + normal[2] * (cz - mz)
        if g < best:
            best = g
            nearest[0], nearest[1], nearest[2] = mx, my, mz
        if g + min(ga, min(gb, gc)) >= best - TOLERANCE_MM:
            continue
        # the corner that the tangent likes best: often the answer itself
        px, py, pz = (ax, ay, az) if ga <= gb and ga <= gc else ((bx, by, bz) if gb <= gc else (cx, cy, cz))
        g = signed_distance(px, py, pz, r, normal)
        if g < best:
            best = g
            nearest[0], nearest[1], nearest[2] = px, py, pz
        if count + 2 > pieces.shape[0]:
            continue
        ab = (ax - bx) ** 2 + (ay - by) ** 2 + (az - bz) ** 2
        bc = (bx - cx) ** 2 + (by - cy) ** 2 + (bz - cz) ** 2
        ca = (cx - ax) ** 2 + (cy - ay) ** 2 + (cz - az) ** 2
        if ca > bc and ca >= ab:
            ax, ay, az, bx, by, bz, cx, cy, cz = bx, by, bz, cx, cy, cz, ax, ay, az
        elif ab > bc:
            ax, ay, az, bx, by, bz, cx, cy, cz = cx, cy, cz, ax, ay, az, bx, by, bz
        hx, hy, hz = 0.5 * (bx + cx), 0.5 * (by + cy), 0.5 * (bz + cz)
        pieces[count, 0], pieces[count, 1], pieces[count, 2] = ax, ay, az
        pieces[count, 3], pieces[count, 4], pieces[count, 5] = bx, by, bz
        pieces[count, 6], pieces[count, 7], pieces[count, 8] = hx, hy, hz
        count += 1
        pieces[count, 0], pieces[count, 1], pieces[count, 2] = ax, ay, az
        pieces[count, 3], pieces[count, 4], pieces[count, 5] = hx, hy, hz
        pieces[count, 6], pieces[count, 7], pieces[count, 8] = cx, cy, cz
        count += 1
    return best


@compiled
def lowest_of_structure(i, centre, R, r, meta_i, trees, slot, stack_node, stack_lb, lane, nearest, normal, pieces):
    """Return (least ``g`` over the surface of structure i, bound from below); ``nearest`` is in the ellipsoid's frame.

    ``R`` (3, 3) has the ellipsoid's axes in CT as columns; ``slot`` is a triangle close by, tried first.
    """
    node_frame, node_child, leaf_xyz, _ = trees
    cx, cy, cz = centre[0], centre[1], centre[2]
    r_max = max(r[0], max(r[1], r[2]))
    corners, found = np.empty(9), np.empty(3)
    best, visits = FAR, 0
    stack_node[0], stack_lb[0] = meta_i[i, 0], -FAR
    stack_node[1], stack_lb[1] = -1 - slot // 8, -FAR
    sp = 2
    while sp > 0:
        sp -= 1
        if stack_lb[sp] >= best - TOLERANCE_MM:
            continue
        if visits >= VISITS:
            lowest = stack_lb[sp]
            for k in range(sp):
                lowest = min(lowest, stack_lb[k])
            return best, lowest
        visits += 1
        node = stack_node[sp]
        if node < 0:
            leaf = -1 - node
            for k in range(8):
                for v in range(3):
                    x = leaf_xyz[leaf, 3 * v, k] - cx
                    y = leaf_xyz[leaf, 3 * v + 1, k] - cy
                    z = leaf_xyz[leaf, 3 * v + 2, k] - cz
                    for m in range(3):
                        corners[3 * v + m] = R[0, m] * x + R[1, m] * y + R[2, m] * z
                least = lowest_of_triangle(corners, r, best, found, normal, pieces)
                if least < best:
                    best = least
                    nearest[:] = found
            continue
        for k in range(8):
            lane[k] = FAR
            if node_child[node, k] == ABSENT:
                continue
            x, y, z = -cx, -cy, -cz
            for m in range(3):
                middle = node_frame[node, 9 + m, k]
                x += node_frame[node, 3 * m, k] * middle
                y += node_frame[node, 3 * m + 1, k] * middle
                z += node_frame[node, 3 * m + 2, k] * middle
            hx, hy, hz = node_frame[node, 12, k], node_frame[node, 13, k], node_frame[node, 14, k]
            lane[k] = math.sqrt(x * x + y * y + z * z) - math.sqrt(hx * hx + hy * hy + hz * hz) - r_max
            if lane[k] >= best:
                continue
            u = R[0, 0] * x + R[1, 0] * y + R[2, 0] * z
            v = R[0, 1] * x + R[1, 1] * y + R[2, 1] * z
            w = R[0, 2] * x + R[1, 2] * y + R[2, 2] * z
            g, u, v, w = support(u, v, w, r)
            nx = R[0, 0] * u + R[0, 1] * v + R[0, 2] * w
            ny = R[1, 0] * u + R[1, 1] * v + R[1, 2] * w
            nz = R[2, 0] * u + R[2, 1] * v + R[2, 2] * w
            for m in range(3):
                slope = (
                    node_frame[node, 3 * m, k] * nx
                    + node_frame[node, 3 * m + 1, k] * ny
                    + node_frame[node, 3 * m + 2, k] * nz
                )
                g -= math.fabs(slope) * node_frame[node, 12 + m, k]
            lane[k] = g - BOX_ROUNDING_MM
        sp = push_children(node_child, node, lane, best - TOLERANCE_MM, stack_node, stack_lb, sp)
    return best, best - TOLERANCE_MM


@compiled
def measure_zone(centre, R, r, meta_f, meta_i, trees, signs, grid_slot, work, pieces, out):
    """Fill ``out`` (S, 8); False for absurd numbers.

    Distance; how much lower the truth can be; the surface's nearest point (3); the ellipsoid's nearest to that (3).
    """
    for k in range(3):
        if not (math.isfinite(centre[k]) and r[k] > 0.0 and math.isfinite(r[k])):
            return False
    stack_node, stack_lb, lane, _ = work
    nearest, normal = np.empty(3), np.empty(3)
    zero, endless = np.int64(0), np.int64(1 << 40)
    r_min = min(r[0], min(r[1], r[2]))
    for i in range(meta_i.shape[0]):
        x, y, z = centre[0], centre[1], centre[2]
        flat, _ = grid_index(meta_f, meta_i, i, x, y, z)
        middle, slot, _, _, _, _, _ = sample(
            meta_i, i, trees, signs, np.int64(grid_slot[flat]), x, y, z, FAR, endless, zero, stack_node, stack_lb, lane
        )
        least, low = lowest_of_structure(
            i, centre, R, r, meta_i, trees, slot, stack_node, stack_lb, lane, nearest, normal, pieces
        )
        # Whose middle lies inside has all that was measured behind it, and twice its smallest half axis before that.
        out[i, 0] = -(2.0 * r_min + least) if middle < 0.0 else least
        out[i, 1] = least - low
        g = signed_distance(nearest[0], nearest[1], nearest[2], r, normal)
        for m in range(3):
            out[i, 2 + m] = centre[m] + R[m, 0] * nearest[0] + R[m, 1] * nearest[1] + R[m, 2] * nearest[2]
            out[i, 5 + m] = out[i, 2 + m] - g * (R[m, 0] * normal[0] + R[m, 1] * normal[1] + R[m, 2] * normal[2])
    return True
