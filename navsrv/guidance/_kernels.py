"""Owns the compiled step: tip and shaft against every structure in one call.  Refuses to remember anything.

Shaft outside a structure: the exact distance between segment and triangles, by the same tree as for points.  Shaft
inside: the deepest point of the axis, by branch and bound.  Over an interval with nearest surface points ``x_a`` and
``x_b`` of its ends, the depth at ``p`` is at most ``min(|p - x_a|, |p - x_b|)`` and, where an end lies outside, at most
half of (signed depths + length), as a signed distance is 1-Lipschitz (Piyavskii 1972).  The first bound is of second
order, so that a needle along the middle of a tube needs hundreds of samples and not a hundred thousand.
"""
# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

import math
from typing import Final

import numpy as np

from navsrv.anatomy._kernels import (
    FAR,
    clamp01,
    compiled,
    inlined,
    inside_by_normal,
    nearest_to_point,
    push_children,
    relaxed,
    slot_point,
    winding_number,
)

TOUCH2: Final = 1e-18
"""Squared distance (mm^2) of axis and surface below which the axis is taken to enter the structure."""
DEPTH_TOLERANCE_MM: Final = 9e-4
ZONE_MM: Final = 15.0
"""Within this distance a search stays exact to 1e-3 mm for four times ``VISITS``."""
VISITS: Final = 1024
"""Visits of nodes and leaves after which a search is content with less: see ``relaxed``."""
SAMPLES: Final = 400
"""Most samples of the depth along one shaft."""
SAMPLE_VISITS: Final = 8192
"""Most visits of all samples of one shaft."""


@inlined
def clamp_to(s, low, high):
    """Return ``s`` limited to ``low`` .. ``high``."""
    s = s if s > low else low
    return s if s < high else high


@inlined
def segment_edge(ex, ey, ez, ux, uy, uz, uu, wx, wy, wz, length):
    """Return (squared distance, s, t) of the segment ``s w`` (0 to length, w unit) and the edge ``e + t u``."""
    b = wx * ux + wy * uy + wz * uz
    c = -(wx * ex + wy * ey + wz * ez)
    f = -(ux * ex + uy * ey + uz * ez)
    safe = uu if uu > 1e-290 else 1.0
    denominator = uu - b * b
    skew = denominator > 1e-12 * uu
    s = (b * f - c * uu) / (denominator if skew else 1.0)
    s = clamp_to(s if skew else 0.0, 0.0, length)
    t = clamp01((b * s + f) / safe)
    s = clamp_to(b * t - c, 0.0, length)
    x, y, z = ex + t * ux - s * wx, ey + t * uy - s * wy, ez + t * uz - s * wz
    return x * x + y * y + z * z, s, t


@inlined
def segment_triangle(ax, ay, az, bx, by, bz, cx, cy, cz, wx, wy, wz, length):
    """Return (squared distance, s, nearest point x, y, z) of the segment ``s w`` and the triangle a b c.

    The least of: three pairs of segment and edge, either end over the face, and 0 where the segment crosses the face.
    Coordinates are relative to the segment's beginning.
    """
    ux, uy, uz = bx - ax, by - ay, bz - az
    vx, vy, vz = cx - bx, cy - by, cz - bz
    tx, ty, tz = ax - cx, ay - cy, az - cz
    uu, vv, tt = ux * ux + uy * uy + uz * uz, vx * vx + vy * vy + vz * vz, tx * tx + ty * ty + tz * tz
    d2, s, q = segment_edge(ax, ay, az, ux, uy, uz, uu, wx, wy, wz, length)
    x, y, z = ax + q * ux, ay + q * uy, az + q * uz
    d21, s1, q1 = segment_edge(bx, by, bz, vx, vy, vz, vv, wx, wy, wz, length)
    better = d21 < d2
    d2, s, x = d21 if better else d2, s1 if better else s, bx + q1 * vx if better else x
    y, z = by + q1 * vy if better else y, bz + q1 * vz if better else z
    d22, s2, q2 = segment_edge(cx, cy, cz, tx, ty, tz, tt, wx, wy, wz, length)
    better = d22 < d2
    d2, s, x = d22 if better else d2, s2 if better else s, cx + q2 * tx if better else x
    y, z = cy + q2 * ty if better else y, cz + q2 * tz if better else z

    nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    n2 = nx * nx + ny * ny + nz * nz
    longest = uu if uu > vv else vv
    longest = longest if longest > tt else tt
    plane = n2 > 1e-16 * longest * longest
    safe = n2 if plane else 1.0
    gx, gy, gz = uy * nz - uz * ny, uz * nx - ux * nz, ux * ny - uy * nx
    hx, hy, hz = vy * nz - vz * ny, vz * nx - vx * nz, vx * ny - vy * nx
    kx, ky, kz = ty * nz - tz * ny, tz * nx - tx * nz, tx * ny - ty * nx
    e0, e1, e2 = gx * ax + gy * ay + gz * az, hx * bx + hy * by + hz * bz, kx * cx + ky * cy + kz * cz
    f0, f1, f2 = gx * wx + gy * wy + gz * wz, hx * wx + hy * wy + hz * wz, kx * wx + ky * wy + kz * wz
    rise = nx * wx + ny * wy + nz * wz
    h0 = nx * ax + ny * ay + nz * az
    h1 = h0 - length * rise
    i0, i1, i2 = e0 - length * f0, e1 - length * f1, e2 - length * f2

    q = h0 / safe
    better = plane & (e0 >= 0.0) & (e1 >= 0.0) & (e2 >= 0.0) & (h0 * q < d2)
    d2, s = h0 * q if better else d2, 0.0 if better else s
    x, y, z = q * nx if better else x, q * ny if better else y, q * nz if better else z
    q = h1 / safe
    better = plane & (i0 >= 0.0) & (i1 >= 0.0) & (i2 >= 0.0) & (h1 * q < d2)
    d2, s = h1 * q if better else d2, length if better else s
    x = length * wx + q * nx if better else x
    y = length * wy + q * ny if better else y
    z = length * wz + q * nz if better else z
    crosses = plane & (((h0 >= 0.0) & (h1 <= 0.0)) | ((h0 <= 0.0) & (h1 >= 0.0))) & (rise != 0.0)
    q = clamp_to(h0 / (rise if crosses else 1.0), 0.0, length)
    better = crosses & (e0 - q * f0 >= 0.0) & (e1 - q * f1 >= 0.0) & (e2 - q * f2 >= 0.0)
    d2, s = 0.0 if better else d2, q if better else s
    x, y, z = q * wx if better else x, q * wy if better else y, q * wz if better else z
    return d2, s, x, y, z


@inlined
def slot_segment(leaf_xyz, leaf, k, px, py, pz, wx, wy, wz, length):
    """Return ``segment_triangle`` of the triangle at (leaf, k) and the segment that begins at p."""
    return segment_triangle(
        leaf_xyz[leaf, 0, k] - px,
        leaf_xyz[leaf, 1, k] - py,
        leaf_xyz[leaf, 2, k] - pz,
        leaf_xyz[leaf, 3, k] - px,
        leaf_xyz[leaf, 4, k] - py,
        leaf_xyz[leaf, 5, k] - pz,
        leaf_xyz[leaf, 6, k] - px,
        leaf_xyz[leaf, 7, k] - py,
        leaf_xyz[leaf, 8, k] - pz,
        wx,
        wy,
        wz,
        length,
    )


@compiled
def nearest_to_segment(
    node_frame,
    node_child,
    leaf_xyz,
    root,
    px,
    py,
    pz,
    wx,
    wy,
    wz,
    length,
    best2,
    slot,
    seed,
    stack_node,
    stack_lb,
    lane,
):
    """Return (squared distance, slot, visits, lower bound squared) of the triangle nearest to the segment p + s w.

    ``best2`` and ``slot`` are an upper bound already known, ``seed`` a slot whose leaf is tried first.  A box's bound
    is the tangent to its squared distance, convex in s, over the stretch of s that can be nearest to the box.
    """
    stack_node[0], stack_lb[0] = root, 0.0
    stack_node[1], stack_lb[1] = -1 - seed // 8, 0.0
    sp, visits, keep = 2, 0, 1.0
    while sp > 0 and best2 > TOUCH2:
        sp -= 1
        if visits >= VISITS:
            keep = relaxed(best2, ZONE_MM * ZONE_MM, visits, VISITS)
        if stack_lb[sp] >= best2 * keep:
            continue
        visits += 1
        node = stack_node[sp]
        if node < 0:
            leaf = -1 - node
            for k in range(lane.size):
                lane[k] = slot_segment(leaf_xyz, leaf, k, px, py, pz, wx, wy, wz, length)[0]
            for k in range(8):
                if lane[k] < best2:
                    best2, slot = lane[k], leaf * 8 + k
            continue
        for k in range(lane.size):
            x = node_frame[node, 0, k] * px + node_frame[node, 1, k] * py + node_frame[node, 2, k] * pz
            y = node_frame[node, 3, k] * px + node_frame[node, 4, k] * py + node_frame[node, 5, k] * pz
            z = node_frame[node, 6, k] * px + node_frame[node, 7, k] * py + node_frame[node, 8, k] * pz
            x, y, z = x - node_frame[node, 9, k], y - node_frame[node, 10, k], z - node_frame[node, 11, k]
            ux = node_frame[node, 0, k] * wx + node_frame[node, 1, k] * wy + node_frame[node, 2, k] * wz
            uy = node_frame[node, 3, k] * wx + node_frame[node, 4, k] * wy + node_frame[node, 5, k] * wz
            uz = node_frame[node, 6, k] * wx + node_frame[node, 7, k] * wy + node_frame[node, 8, k] * wz
            hx, hy, hz = node_frame[node, 12, k], node_frame[node, 13, k], node_frame[node, 14, k]
            s = clamp_to(-(x * ux + y * uy + z * uz), 0.0, length)
            reach = 1.000001 * (math.fabs(ux) * hx + math.fabs(uy) * hy + math.fabs(uz) * hz) + 1e-3
            x, y, z = x + s * ux, y + s * uy, z + s * uz
            x, y, z = x - clamp_to(x, -hx, hx), y - clamp_to(y, -hy, hy), z - clamp_to(z, -hz, hz)
            slope = 2.0 * (x * ux + y * uy + z * uz)
            back = clamp_to(s - reach, 0.0, length) - s
            forth = clamp_to(s + reach, 0.0, length) - s
            lane[k] = x * x + y * y + z * z + slope * (back if slope > 0.0 else forth)
        sp = push_children(node_child, node, lane, best2 * keep, stack_node, stack_lb, sp)
    return best2, slot, visits, best2 * keep


@inlined
def grid_index(meta_f, meta_i, i, x, y, z):
    """Return (flat cell of structure i at or next to the point, distance of the point from its centre)."""
    ox, oy, oz, cell = meta_f[i, 0], meta_f[i, 1], meta_f[i, 2], meta_f[i, 3]
    nx, ny, nz = meta_i[i, 3], meta_i[i, 4], meta_i[i, 5]
    gx = math.floor(clamp_to((x - ox) / cell, 0.0, nx - 1.0))
    gy = math.floor(clamp_to((y - oy) / cell, 0.0, ny - 1.0))
    gz = math.floor(clamp_to((z - oz) / cell, 0.0, nz - 1.0))
    dx, dy, dz = x - (ox + (gx + 0.5) * cell), y - (oy + (gy + 0.5) * cell), z - (oz + (gz + 0.5) * cell)
    flat = meta_i[i, 2] + (np.int64(gx) * ny + np.int64(gy)) * nz + np.int64(gz)
    return flat, math.sqrt(dx * dx + dy * dy + dz * dz)


@compiled
def sample(meta_i, i, trees, signs, slot, px, py, pz, zone2, limit, known_side, stack_node, stack_lb, lane):
    """Return (signed distance, slot, x, y, z to the surface, visits, lower bound of the unsigned distance) at a point.

    ``slot`` seeds the search; ``known_side`` is -1 inside, 1 outside, 0 to find out.
    """
    node_frame, node_child, leaf_xyz, leaf_triangle = trees
    leaf_neighbour, leaf_vertex, vertex_normal, dipole = signs
    root = meta_i[i, 0]
    d2, slot, visits, rest2 = nearest_to_point(
        node_frame, node_child, leaf_xyz, root, px, py, pz, slot, zone2, limit, stack_node, stack_lb, lane
    )
    _, x, y, z, feature = slot_point(leaf_xyz, slot // 8, slot % 8, px, py, pz)
    if known_side != 0:
        inside = known_side < 0
    elif meta_i[i, 1] == 0:
        inside = inside_by_normal(leaf_xyz, leaf_neighbour, leaf_vertex, vertex_normal, slot, feature, x, y, z)
    else:
        inside = (
            winding_number(node_child, leaf_xyz, leaf_triangle, dipole, meta_i[i, 6], root, px, py, pz, stack_node)
            > 0.5
        )
    d = math.sqrt(d2)
    return -d if inside else d, slot, x, y, z, visits, math.sqrt(rest2)


@compiled
def bound_interval(iv, j, wx, wy, wz):
    """Set ``iv[j, 10]``, the most depth that interval j can hold, and ``iv[j, 11]``, where to sample it next."""
    a, b, ga, gb = iv[j, 0], iv[j, 1], iv[j, 2], iv[j, 3]
    sa = iv[j, 4] * wx + iv[j, 5] * wy + iv[j, 6] * wz
    sb = iv[j, 7] * wx + iv[j, 8] * wy + iv[j, 9] * wz
    qa = iv[j, 4] * iv[j, 4] + iv[j, 5] * iv[j, 5] + iv[j, 6] * iv[j, 6]
    qb = iv[j, 7] * iv[j, 7] + iv[j, 8] * iv[j, 8] + iv[j, 9] * iv[j, 9]
    s = (qa - qb) / (2.0 * (sa - sb)) if sa != sb else 0.5 * (a + b)
    s = clamp_to(s, a, b)
    bound = math.sqrt(max(max(ga * ga, gb * gb), s * s - 2.0 * s * sa + qa))
    if ga <= 0.0 or gb <= 0.0:
        slope_bound = 0.5 * (ga + gb + b - a)
        if slope_bound < bound:
            bound, s = slope_bound, 0.5 * (a + b + gb - ga)
    iv[j, 10], iv[j, 11] = bound, clamp_to(s, a + 0.1 * (b - a), b - 0.1 * (b - a))


@compiled
def deepest(meta_i, i, trees, signs, px, py, pz, wx, wy, wz, length, iv, iv_slot, parts, stack_node, stack_lb, lane):
    """Return (depth, s, x, y, z, upper bound of the depth, visits) of the deepest point of the axis p + s w.

    ``iv[:parts]`` holds the first intervals with everything but their bounds; x, y, z is the nearest surface point
    relative to p.  Depths are positive inside.
    """
    best, best_s, bx, by, bz = iv[0, 2], iv[0, 0], iv[0, 4], iv[0, 5], iv[0, 6]
    for j in range(parts):
        bound_interval(iv, j, wx, wy, wz)
        if iv[j, 3] > best:
            best, best_s, bx, by, bz = iv[j, 3], iv[j, 1], iv[j, 7], iv[j, 8], iv[j, 9]
    visits, top, zero, endless = 0, best, np.int64(0), np.int64(1 << 40)
    for _ in range(SAMPLES):
        j, top = -1, max(best, 0.0) + DEPTH_TOLERANCE_MM
        for m in range(parts):
            if iv[m, 10] > top:
                j, top = m, iv[m, 10]
        if j < 0 or visits >= SAMPLE_VISITS or parts + 1 >= iv.shape[0]:
            break
        s = iv[j, 11]
        side = zero
        if s - iv[j, 0] < math.fabs(iv[j, 2]):
            side = np.int64(-1 if iv[j, 2] > 0.0 else 1)
        elif iv[j, 1] - s < math.fabs(iv[j, 3]):
            side = np.int64(-1 if iv[j, 3] > 0.0 else 1)
        nearer = 0 if s - iv[j, 0] < iv[j, 1] - s else 1
        d, slot, x, y, z, n, _ = sample(
            meta_i,
            i,
            trees,
            signs,
            iv_slot[j, nearer],
            px + s * wx,
            py + s * wy,
            pz + s * wz,
            FAR,
            endless,
            side,
            stack_node,
            stack_lb,
            lane,
        )
        visits += n
        x, y, z = x + s * wx, y + s * wy, z + s * wz
        if -d > best:
            best, best_s, bx, by, bz = -d, s, x, y, z
        for c in range(10):
            iv[parts, c] = iv[j, c]
        iv[j, 1], iv[j, 3], iv[j, 7], iv[j, 8], iv[j, 9] = s, -d, x, y, z
        iv[parts, 0], iv[parts, 2], iv[parts, 4], iv[parts, 5], iv[parts, 6] = s, -d, x, y, z
        iv_slot[parts, 0], iv_slot[parts, 1], iv_slot[j, 1] = slot, iv_slot[j, 1], slot
        bound_interval(iv, j, wx, wy, wz)
        bound_interval(iv, parts, wx, wy, wz)
        parts += 1
    top = max(best, 0.0)
    for m in range(parts):
        top = max(top, iv[m, 10])
    return best, best_s, bx, by, bz, top, visits


@compiled
def measure_all(pose, meta_f, meta_i, trees, signs, grid_slot, grid_distance, work, iv_slot, out, visits):
    """Fill ``out`` (11 S,) and ``visits`` (2 S,) for a pose: tip (3), unit axis (3), length, radius.

    Returns False, everything untouched, for numbers that are not finite, an axis that is not unit, negative sizes.

    Rows of ``out``: tip distance, its uncertainty, shaft distance, its uncertainty, offset on the axis; then flat
    (S, 3) nearest points of tip and shaft.
    """
    for value in pose:
        if not math.isfinite(value):
            return False
    if math.fabs(pose[3] ** 2 + pose[4] ** 2 + pose[5] ** 2 - 1.0) > 1e-6 or pose[6] < 0.0 or pose[7] < 0.0:
        return False
    stack_node, stack_lb, lane, iv = work
    px, py, pz, length, radius = pose[0], pose[1], pose[2], pose[6], pose[7]
    wx, wy, wz = -pose[3], -pose[4], -pose[5]
    count = meta_i.shape[0]
    zero, limit, zone2, endless = np.int64(0), np.int64(VISITS), ZONE_MM * ZONE_MM, np.int64(1 << 40)
    tip_at, shaft_at = 5 * count, 8 * count
    for i in range(count):
        # the tip
        flat, off = grid_index(meta_f, meta_i, i, px, py, pz)
        tip, tip_slot, tx, ty, tz, n, rest = sample(
            meta_i,
            i,
            trees,
            signs,
            np.int64(grid_slot[flat]),
            px,
            py,
            pz,
            zone2,
            limit,
            zero,
            stack_node,
            stack_lb,
            lane,
        )
        size = math.fabs(tip)
        rest = max(rest, min(grid_distance[flat] - off, size))
        out[i], out[count + i], visits[i] = tip, size - rest, n
        out[tip_at + 3 * i], out[tip_at + 3 * i + 1], out[tip_at + 3 * i + 2] = px + tx, py + ty, pz + tz

        # the shaft from outside: straight to the triangles
        inside, s, x, y, z = tip < 0.0, 0.0, tx, ty, tz
        value, doubt, n, slot, parts = tip, 0.0, 0, tip_slot, 1
        if not inside:
            least, seed, floor = 1e300, tip_slot, 1e300
            step = meta_f[i, 3]
            steps = np.int64(math.ceil(length / step))
            for j in range(steps + 1):
                at = length * j / max(steps, 1)
                flat, off = grid_index(meta_f, meta_i, i, px + at * wx, py + at * wy, pz + at * wz)
                floor = min(floor, grid_distance[flat] - off - 0.5 * step)
                if grid_distance[flat] + off < least:
                    least, seed = grid_distance[flat] + off, np.int64(grid_slot[flat])
            node_frame, node_child, leaf_xyz, _ = trees
            d2, slot, n, rest2 = nearest_to_segment(
                node_frame,
                node_child,
                leaf_xyz,
                meta_i[i, 0],
                px,
                py,
                pz,
                wx,
                wy,
                wz,
                length,
                tip * tip,
                tip_slot,
                seed,
                stack_node,
                stack_lb,
                lane,
            )
            d2, s, x, y, z = slot_segment(leaf_xyz, slot // 8, slot % 8, px, py, pz, wx, wy, wz, length)
            value = math.sqrt(d2)
            doubt = max(0.0, value - max(math.sqrt(min(rest2, d2)), floor))
            inside = d2 <= TOUCH2

        # the shaft inside, or through a hole of a surface that is not closed: the deepest point
        if inside or meta_i[i, 7] == 0:
            iv[0, 0], iv[0, 2], iv[0, 4], iv[0, 5], iv[0, 6] = 0.0, -tip, tx, ty, tz
            iv_slot[0, 0] = tip_slot
            if tip >= 0.0 and inside and 0.0 < s < length:
                iv[0, 1], iv[0, 3], iv[0, 7], iv[0, 8], iv[0, 9] = s, 0.0, x, y, z
                iv[1, 0], iv[1, 2], iv[1, 4], iv[1, 5], iv[1, 6] = s, 0.0, x, y, z
                iv_slot[0, 1], iv_slot[1, 0], parts = slot, slot, 2
            hub, hub_slot, hx, hy, hz, m, _ = sample(
                meta_i,
                i,
                trees,
                signs,
                slot,
                px + length * wx,
                py + length * wy,
                pz + length * wz,
                zone2,
                endless,
                zero,
                stack_node,
                stack_lb,
                lane,
            )
            last = parts - 1
            iv[last, 1], iv[last, 3], iv_slot[last, 1] = length, -hub, hub_slot
            iv[last, 7], iv[last, 8], iv[last, 9] = hx + length * wx, hy + length * wy, hz + length * wz
            depth, at, x1, y1, z1, top, k = deepest(
                meta_i, i, trees, signs, px, py, pz, wx, wy, wz, length, iv, iv_slot, parts, stack_node, stack_lb, lane
            )
            n += m + k
            if depth >= 0.0:
                value, s, x, y, z, doubt = -depth, at, x1, y1, z1, top - depth
            elif inside:
                doubt = top
        out[2 * count + i], out[3 * count + i], out[4 * count + i] = value - radius, doubt, s
        out[shaft_at + 3 * i], out[shaft_at + 3 * i + 1], out[shaft_at + 3 * i + 2] = px + x, py + y, pz + z
        visits[count + i] = n
    return True
