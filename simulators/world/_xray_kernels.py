"""Owns the compiled loops of ``xray_paths``: one ray after the other through voxels and solids.

Every function takes plain arrays; ``body`` is (HU, index_from_ct, origin, step, beyond), ``pieces`` (shapes, materials,
centres, inverses, fine), ``work`` the scratch arrays of one ray.  Beyond its first and last slice the CT goes on as in
a mirror.  Refuses materials' physics but for the exponential.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit, prange

MAX_MET: Final = 64
"""Pieces that one ray may meet; more are refused."""

EDGE: Final = 0.02
"""Rays of one pixel that differ less in their logarithm are taken as one."""


@njit(nogil=True, cache=True, fastmath=True, inline="always")
def _mirrored(x, last):  # type: ignore[no-untyped-def]
    """A continuous index reflected into 0 to ``last``; it lies at most ``last`` outside."""
    return last - abs(last - abs(x))


@njit(nogil=True, cache=True, fastmath=True, inline="always")
def _clip(source, direction, size, beyond):  # type: ignore[no-untyped-def]
    """Parameters at which a line of index space enters and leaves the tissue; leave < enter when it misses."""
    enter, leave = 0.0, np.inf
    for axis in range(3):
        d, s, first, last = direction[axis], source[axis], 0.0, size[axis] - 1.0
        if axis == 2:
            first, last = -beyond, last + beyond
        if abs(d) < 1e-12:
            if s < first or s > last:
                leave = -1.0
        else:
            a, b = (first - s) / d, (last - s) / d
            enter, leave = max(enter, min(a, b)), min(leave, max(a, b))
    return enter, leave


@njit(nogil=True, cache=True, fastmath=True)
def _tissue(hu, limit, source, direction, enter, leave, step):  # type: ignore[no-untyped-def]
    """Integrals over a stretch of a ray of max(HU + 1000, 0) and max(HU - limit, 0), HU mm; parameters in mm."""
    nk, nj, ni = hu.shape
    count = max(int(np.ceil((leave - enter) / step)), 1)
    dt = (leave - enter) / count
    x0 = np.float32(source[0] + (enter + 0.5 * dt) * direction[0])
    y0 = np.float32(source[1] + (enter + 0.5 * dt) * direction[1])
    z0 = np.float32(source[2] + (enter + 0.5 * dt) * direction[2])
    dx, dy, dz = np.float32(dt * direction[0]), np.float32(dt * direction[1]), np.float32(dt * direction[2])
    one, zero, soft = np.float32(1.0), np.float32(0.0), np.float32(limit)
    last = np.float32(nk - 1)
    a = zero
    b = zero
    for n in range(count):
        f = np.float32(n)
        x, y, z = x0 + f * dx, y0 + f * dy, _mirrored(z0 + f * dz, last)
        i, j, k = min(max(int(x), 0), ni - 2), min(max(int(y), 0), nj - 2), min(max(int(z), 0), nk - 2)
        fx, fy, fz = x - np.float32(i), y - np.float32(j), z - np.float32(k)
        gx, gy = one - fx, one - fy
        low = (np.float32(hu[k, j, i]) * gx + np.float32(hu[k, j, i + 1]) * fx) * gy
        low += (np.float32(hu[k, j + 1, i]) * gx + np.float32(hu[k, j + 1, i + 1]) * fx) * fy
        high = (np.float32(hu[k + 1, j, i]) * gx + np.float32(hu[k + 1, j, i + 1]) * fx) * gy
        high += (np.float32(hu[k + 1, j + 1, i]) * gx + np.float32(hu[k + 1, j + 1, i + 1]) * fx) * fy
        value = low * (one - fz) + high * fz
        a += value
        b += max(value - soft, zero)
    return (a + np.float64(1000.0) * count) * dt, b * dt


@njit(nogil=True, cache=True, fastmath=True)
def _through(hu, limit, source, direction, enter, leave):  # type: ignore[no-untyped-def]
    """The integrals of ``_tissue`` over a whole ray, sampled on those planes of voxels that it crosses most often.

    There trilinear interpolation needs four voxels instead of eight (Joseph, IEEE TMI 1:192, 1982).
    """
    nk, nj, ni = hu.shape
    strides = (1, ni, ni * nj)
    sizes = (ni, nj, nk)
    main = 0
    for axis in (1, 2):
        if abs(direction[axis]) > abs(direction[main]):
            main = axis
    one_axis, other = (main + 1) % 3, (main + 2) % 3
    at_enter, at_leave = source[main] + enter * direction[main], source[main] + leave * direction[main]
    first, last = int(np.ceil(min(at_enter, at_leave))), int(np.floor(max(at_enter, at_leave)))
    dt = 1.0 / abs(direction[main])
    slope_u, slope_v = direction[one_axis] / direction[main], direction[other] / direction[main]
    u0 = np.float32(source[one_axis] + (first - source[main]) * slope_u)
    v0 = np.float32(source[other] + (first - source[main]) * slope_v)
    du, dv = np.float32(slope_u), np.float32(slope_v)
    # 32-bit indices that are known not to be negative: a quarter of the time.
    su, sv, sm = np.int32(strides[one_axis]), np.int32(strides[other]), np.int32(strides[main])
    top_m, top_u, top_v = np.int32(sizes[main] - 1), np.float32(sizes[one_axis] - 1), np.float32(sizes[other] - 1)
    last_u, last_v = np.float32(sizes[one_axis] - 1.0005), np.float32(sizes[other] - 1.0005)
    flat = hu.reshape(-1)
    zero, soft, start = np.float32(0.0), np.float32(limit), np.int32(first)
    a, b = zero, zero
    for n in range(np.int32(last - first + 1)):
        step = np.int32(n)
        u = min(_mirrored(u0 + np.float32(step) * du, top_u), last_u)
        v = min(_mirrored(v0 + np.float32(step) * dv, top_v), last_v)
        iu, iv = np.int32(u), np.int32(v)
        fu, fv = u - np.float32(iu), v - np.float32(iv)
        plane = np.int32(top_m - abs(top_m - abs(np.int32(start + step))))
        base = np.int32(plane * sm + iu * su + iv * sv)
        h00, h10 = np.float32(flat[np.uint32(base)]), np.float32(flat[np.uint32(base + su)])
        h01, h11 = np.float32(flat[np.uint32(base + sv)]), np.float32(flat[np.uint32(base + su + sv)])
        low, high = h00 + fu * (h10 - h00), h01 + fu * (h11 - h01)
        value = low + fv * (high - low)
        a += value
        b += max(value - soft, zero)
    return (a + 1000.0 * max(last - first + 1, 0)) * dt, b * dt


@njit(nogil=True, cache=True)
def _meets(shape, centre, inverse, source, direction):  # type: ignore[no-untyped-def]
    """Parameters (mm) at which a ray enters and leaves a piece; leave <= enter when it misses."""
    sx, sy, sz = source[0] - centre[0], source[1] - centre[1], source[2] - centre[2]
    px = inverse[0, 0] * sx + inverse[0, 1] * sy + inverse[0, 2] * sz
    py = inverse[1, 0] * sx + inverse[1, 1] * sy + inverse[1, 2] * sz
    pz = inverse[2, 0] * sx + inverse[2, 1] * sy + inverse[2, 2] * sz
    dx = inverse[0, 0] * direction[0] + inverse[0, 1] * direction[1] + inverse[0, 2] * direction[2]
    dy = inverse[1, 0] * direction[0] + inverse[1, 1] * direction[1] + inverse[1, 2] * direction[2]
    dz = inverse[2, 0] * direction[0] + inverse[2, 1] * direction[1] + inverse[2, 2] * direction[2]
    enter, leave = 0.0, np.inf
    if shape != 2:
        # The ray's point nearest to the body's middle, then half the chord: no cancellation far from the source.
        if shape == 1:
            qz, ez = 0.0, 0.0
        else:
            qz, ez = pz, dz
        dd = dx * dx + dy * dy + ez * ez
        pp = px * px + py * py + qz * qz
        if dd < 1e-30:
            if pp > 1.0:
                return 0.0, -1.0
        else:
            middle = -(px * dx + py * dy + qz * ez) / dd
            nx, ny, nz = px + middle * dx, py + middle * dy, qz + middle * ez
            off = nx * nx + ny * ny + nz * nz
            if off >= 1.0:
                return 0.0, -1.0
            half = np.sqrt((1.0 - off) / dd)
            enter, leave = max(enter, middle - half), middle + half
        if shape == 0:
            return enter, leave
    for axis in range(3):
        if shape == 1 and axis < 2:
            continue
        p = px if axis == 0 else (py if axis == 1 else pz)
        d = dx if axis == 0 else (dy if axis == 1 else dz)
        if abs(d) < 1e-15:
            if abs(p) > 1.0:
                return 0.0, -1.0
        else:
            a, b = (-1.0 - p) / d, (1.0 - p) / d
            enter, leave = max(enter, min(a, b)), min(leave, max(a, b))
    return enter, leave


@njit(nogil=True, cache=True)
def _met(pieces, active, count, source, direction, enters, leaves, which):  # type: ignore[no-untyped-def]
    """Fill the intervals of the pieces that a ray meets, in order of displacement; return how many, -1: too many."""
    shapes, _, centres, inverses, _ = pieces
    met = 0
    for n in range(count):
        m = active[n]
        enter, leave = _meets(shapes[m], centres[m], inverses[m], source, direction)
        if leave > enter:
            if met == enters.shape[0]:
                return -1
            enters[met], leaves[met], which[met] = enter, leave, m
            met += 1
    return met


@njit(nogil=True, cache=True)
def _segments(met, enters, leaves, which, cuts, tops):  # type: ignore[no-untyped-def]
    """Cut the ray at every entry and exit; give each stretch the last piece that holds it (-1: none); return cuts."""
    for n in range(2 * met):
        value = enters[n // 2] if n % 2 == 0 else leaves[n // 2]
        place = n
        while place > 0 and cuts[place - 1] > value:
            cuts[place] = cuts[place - 1]
            place -= 1
        cuts[place] = value
    for s in range(2 * met - 1):
        middle = 0.5 * (cuts[s] + cuts[s + 1])
        tops[s] = -1
        for n in range(met - 1, -1, -1):
            if enters[n] < middle < leaves[n]:
                tops[s] = which[n]
                break
    return 2 * met


@njit(nogil=True, cache=True)
def _turned(matrix, v):  # type: ignore[no-untyped-def]
    return (
        matrix[0, 0] * v[0] + matrix[0, 1] * v[1] + matrix[0, 2] * v[2],
        matrix[1, 0] * v[0] + matrix[1, 1] * v[1] + matrix[1, 2] * v[2],
        matrix[2, 0] * v[0] + matrix[2, 1] * v[1] + matrix[2, 2] * v[2],
    )


@njit(nogil=True, cache=True)
def _displace(body, mixture, pieces, origin, direction, span, met, work, lengths):  # type: ignore[no-untyped-def]
    """Take the tissue within solids off ``lengths`` and add the solids' own millimetres."""
    hu, index_from_ct, _, step, _ = body
    limit, soft_per_a, soft_per_b, bone_per_b = mixture
    along = _turned(index_from_ct, direction)
    enters, leaves, which, cuts, tops = work
    count = _segments(met, enters, leaves, which, cuts, tops)
    for s in range(count - 1):
        top = tops[s]
        if top < 0 or cuts[s + 1] <= cuts[s]:
            continue
        lengths[pieces[1][top]] += cuts[s + 1] - cuts[s]
        enter, leave = max(cuts[s], span[0]), min(cuts[s + 1], span[1])
        if leave > enter:
            a, b = _tissue(hu, limit, origin, along, enter, leave, step)
            lengths[1] -= a * soft_per_a - b * soft_per_b
            lengths[2] -= b * bone_per_b


@njit(nogil=True, cache=True)
def _ray_body(body, mixture, origin, direction, lengths):  # type: ignore[no-untyped-def]
    """Write the tissue of a whole ray (unit ``direction``) into ``lengths``; return where it enters and leaves, mm."""
    hu, index_from_ct, _, _, beyond = body
    limit, soft_per_a, soft_per_b, bone_per_b = mixture
    along = _turned(index_from_ct, direction)
    enter, leave = _clip(origin, along, (hu.shape[2], hu.shape[1], hu.shape[0]), beyond)
    lengths[:] = 0.0
    if leave > enter:
        a, b = _through(hu, limit, origin, along, enter, leave)
        lengths[1] = a * soft_per_a - b * soft_per_b
        lengths[2] = b * bone_per_b
    return enter, leave


@njit(nogil=True, cache=True)
def _any_fine(active, count, fine):  # type: ignore[no-untyped-def]
    found = False
    for n in range(count):
        found |= fine[active[n]]
    return found


@njit(nogil=True, cache=True)
def _within(middle, spread, part, parts, direction):  # type: ignore[no-untyped-def]
    """Write the unit direction of one of ``parts`` by ``parts`` rays of a pixel."""
    across = (part % parts + 0.5) / parts - 0.5
    down = (part // parts + 0.5) / parts - 0.5
    for axis in range(3):
        direction[axis] = middle[axis] + across * spread[axis, 0] + down * spread[axis, 1]
    _normalise(direction)


@njit(nogil=True, cache=True)
def _normalise(v):  # type: ignore[no-untyped-def]
    length = np.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
    v[0], v[1], v[2] = v[0] / length, v[1] / length, v[2] / length


@njit(nogil=True, cache=True)
def _opacity(met, pieces, work, mu):  # type: ignore[no-untyped-def]
    """What the pieces that a ray meets take from a photon of middle energy."""
    if met <= 0:
        return 0.0
    enters, leaves, which, cuts, tops = work
    count = _segments(met, enters, leaves, which, cuts, tops)
    total = 0.0
    for s in range(count - 1):
        if tops[s] >= 0:
            total += mu[pieces[1][tops[s]], mu.shape[1] // 2] * (cuts[s + 1] - cuts[s])
    return total


@njit(nogil=True, cache=True)
def _active_in_row(row, windows, active):  # type: ignore[no-untyped-def]
    count = 0
    for n in range(windows.shape[0]):
        if windows[n, 0] <= row <= windows[n, 1]:
            active[count] = n
            count += 1
    return count


@njit(nogil=True, cache=True)
def _active_in_pixel(column, windows, in_row, rows, active):  # type: ignore[no-untyped-def]
    count = 0
    for n in range(rows):
        if windows[in_row[n], 2] <= column <= windows[in_row[n], 3]:
            active[count] = in_row[n]
            count += 1
    return count


@njit(parallel=True, nogil=True, cache=True)
def lengths_image(scene, windows, out, status):  # type: ignore[no-untyped-def]
    body, mixture, pieces, source, directions = scene
    origin = body[1] @ (source - body[2])
    for row in prange(out.shape[0]):
        in_row, active = np.empty(len(windows), np.int64), np.empty(len(windows), np.int64)
        work = (
            np.empty(MAX_MET), np.empty(MAX_MET), np.empty(MAX_MET, np.int64),
            np.empty(2 * MAX_MET), np.empty(2 * MAX_MET, np.int64),
        )  # fmt: skip
        direction = np.empty(3)
        rows = _active_in_row(row, windows, in_row)
        for column in range(out.shape[1]):
            d = directions[row, column]
            direction[0], direction[1], direction[2] = d[0], d[1], d[2]
            _normalise(direction)
            span = _ray_body(body, mixture, origin, direction, out[row, column])
            count = _active_in_pixel(column, windows, in_row, rows, active)
            met = _met(pieces, active, count, source, direction, work[0], work[1], work[2])
            if met < 0:
                status[row] = 1
            elif met > 0:
                _displace(body, mixture, pieces, origin, direction, span, met, work, out[row, column])


@njit(parallel=True, nogil=True, cache=True)
def signal_image(  # type: ignore[no-untyped-def]
    scene, windows, spread, beam, parts, first_out, second_out, status
):
    body, mixture, pieces, source, directions = scene
    origin = body[1] @ (source - body[2])
    first, second, mu = beam
    bins = len(first)
    for row in prange(first_out.shape[0]):
        in_row, active = np.empty(len(windows), np.int64), np.empty(len(windows), np.int64)
        work = (
            np.empty(MAX_MET), np.empty(MAX_MET), np.empty(MAX_MET, np.int64),
            np.empty(2 * MAX_MET), np.empty(2 * MAX_MET, np.int64),
        )  # fmt: skip
        direction = np.empty(3)
        tissue, lengths, present = np.empty(len(mu)), np.empty(len(mu)), np.empty(len(mu), np.int64)
        rows = _active_in_row(row, windows, in_row)
        for column in range(first_out.shape[1]):
            d = directions[row, column]
            direction[0], direction[1], direction[2] = d[0], d[1], d[2]
            _normalise(direction)
            span = _ray_body(body, mixture, origin, direction, tissue)
            count = _active_in_pixel(column, windows, in_row, rows, active)
            signal, variance = 0.0, 0.0
            if count == 0:
                for e in range(bins):
                    left = np.exp(-(mu[1, e] * tissue[1] + mu[2, e] * tissue[2]))
                    signal += first[e] * left
                    variance += second[e] * left
            else:
                # Rays within a pixel differ only where an edge runs through it; elsewhere the middle one is enough.
                least, most = np.inf, -np.inf
                looks = parts * parts if _any_fine(active, count, pieces[4]) else 0
                for part in range(looks):
                    _within(d, spread, part, parts, direction)
                    met = _met(pieces, active, count, source, direction, work[0], work[1], work[2])
                    if met < 0:
                        status[row] = 1
                    opacity = _opacity(met, pieces, work, mu)
                    least, most = min(least, opacity), max(most, opacity)
                rays = parts if most - least > EDGE else 1
                for part in range(rays * rays):
                    _within(d, spread, part, rays, direction)
                    lengths[:] = tissue
                    met = _met(pieces, active, count, source, direction, work[0], work[1], work[2])
                    if met > 0:
                        _displace(body, mixture, pieces, origin, direction, span, met, work, lengths)
                    used = 0
                    for m in range(mu.shape[0]):
                        if lengths[m] != 0.0:
                            present[used] = m
                            used += 1
                    for e in range(bins):
                        total = 0.0
                        for m in range(used):
                            total += mu[present[m], e] * lengths[present[m]]
                        left = np.exp(-total) / (rays * rays)
                        signal += first[e] * left
                        variance += second[e] * left
            first_out[row, column] = signal
            second_out[row, column] = variance
