"""Owns the compiled loops of the DRR: line integrals by Joseph's method, and what their derivatives are made of.

The volume is laid out with the axis nearest to the beam (c) contiguous, so that a ray reads along memory, and each
entry holds the four voxels of its cell in (a, b) as 16-bit integers: one load for a sample, not four.  On each plane k
of that axis the ray meets (a, b) = (a0 + k qa, b0 + k qb), and the value there is bilinear; its slopes in a and b come
from the same four voxels.  A motion of the view moves a and b by amounts that are linear in k, so that four sums beside
the integral (slopes, and slopes times k) give all six derivatives, exact for the sum that was computed.

Eight planes at a time are skipped where an occupancy map says that nothing is near.  One thread renders one view;
views and hypotheses are what runs in parallel, since forking over rows costs more than it gains on a busy machine.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numba import njit, prange

BLOCK: Final = 8
"""Planes that are skipped or summed together."""


@njit(cache=True, nogil=True, fastmath=True, inline="always")  # type: ignore[untyped-decorator,unused-ignore]
def range_of(origin, slope, top, low, high):  # type: ignore[no-untyped-def]
    """Narrow planes [low, high] to where ``0 <= origin + k slope <= top``."""
    if abs(slope) < 1e-9:
        return (low, high) if 0.0 <= origin <= top else (1.0, 0.0)
    first, last = -origin / slope, (top - origin) / slope
    if first > last:
        first, last = last, first
    return (first if first > low else low), (last if last < high else high)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator,unused-ignore]
def _image_of(matrix, vector):  # type: ignore[no-untyped-def]
    """Return the product of a (3, 3) and a (3,)."""
    out = np.empty(3)
    for i in range(3):
        out[i] = matrix[i, 0] * vector[0] + matrix[i, 1] * vector[1] + matrix[i, 2] * vector[2]
    return out


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator,unused-ignore]
def place_view(to_index, corners, rotation, translation, k, size, centre, generators, view, window):  # type: ignore[no-untyped-def]
    """Fill ``view`` (24, 3) and ``window`` (4,) as ``render_view`` takes them; return the axis nearest to the beam.

    ``to_index`` (4, 4) maps object mm to (i, j, k), ``corners`` (8, 3) are those of the box in object mm, ``rotation``
    and ``translation`` take object mm to the C-arm's, ``k`` (3, 3) are its intrinsics, ``size`` columns and rows,
    ``generators`` (3, 3, 3) the linear maps about ``centre`` of the first three derivatives.  Returned with it is the
    steepest slope of a ray; the axis is -1 when the source stands in or behind the box, -2 when the cone is too wide.
    """
    low_u, high_u, low_v, high_v = np.inf, -np.inf, np.inf, -np.inf
    for n in range(8):
        seen = _image_of(rotation, corners[n]) + translation
        if seen[2] <= 1.0:
            return -1, 0.0
        u = (k[0, 0] * seen[0] + k[0, 1] * seen[1]) / seen[2] + k[0, 2]
        v = k[1, 1] * seen[1] / seen[2] + k[1, 2]
        low_u, high_u, low_v, high_v = min(low_u, u), max(high_u, u), min(low_v, v), max(high_v, v)
    columns, rows = float(size[0]), float(size[1])
    window[0] = int(min(max(np.floor(low_u), 0.0), columns))
    window[1] = int(min(max(np.ceil(high_u) + 1.0, 0.0), columns))
    window[2] = int(min(max(np.floor(low_v), 0.0), rows))
    window[3] = int(min(max(np.ceil(high_v) + 1.0, 0.0), rows))
    rays = np.empty((3, 3))  # columns of (column, row, 1), object mm: rotation' inverse(k)
    fx, fy = 1.0 / k[0, 0], 1.0 / k[1, 1]
    shear = -k[0, 1] * fx * fy
    for i in range(3):
        x, y, z = rotation[0, i], rotation[1, i], rotation[2, i]
        rays[i, 0] = x * fx
        rays[i, 1] = x * shear + y * fy
        rays[i, 2] = z - k[0, 2] * rays[i, 0] - k[1, 2] * rays[i, 1]
    linear = to_index[:3, :3]
    source = -_image_of(rotation.T, translation)
    # The corners of what is seen: the steepest ray is one of them.
    d = np.empty((4, 3))
    n = 0
    for u in (window[0], window[1]):
        for v in (window[2], window[3]):
            d[n] = _image_of(linear, rays[:, 0] * u + rays[:, 1] * v + rays[:, 2])
            n += 1
    mean = np.abs(d[0] + d[1] + d[2] + d[3])
    axis = int(np.argmax(mean))
    a, b = (2, 1) if axis == 0 else ((2, 0) if axis == 1 else (1, 0))
    steepest = 0.0
    for n in range(4):
        if d[n, axis] * d[0, axis] <= 0.0:
            return -2, 0.0
        steepest = max(steepest, abs(d[n, a] / d[n, axis]), abs(d[n, b] / d[n, axis]))
    out = np.zeros((24, 3))
    out[0] = _image_of(linear, source) + to_index[:3, 3]
    for i in range(3):
        out[1 + i] = _image_of(linear, rays[:, i])
        for p in range(3):
            out[7 + 3 * p + i] = _image_of(linear, _image_of(generators[p], rays[:, i]))
        out[16 + i] = _image_of(linear, _image_of(generators[i], source - centre))
        out[19 + i] = linear[:, i]
    for n in range(22):
        view[n, 0], view[n, 1], view[n, 2] = out[n, a], out[n, b], out[n, axis]
    for i in range(3):
        view[4 + i] = rays[:, i]
    return axis, steepest


@njit(cache=True, nogil=True, fastmath=True)  # type: ignore[untyped-decorator,unused-ignore]
def _read(flat, nb, nc, k, a, b, qa, qb, places, ras, rbs, nears, fars):  # type: ignore[no-untyped-def]
    """Read the cells that a ray meets on the planes from k on: in three loops, so that two of them run in vectors."""
    sheet = np.int32(nb * nc)
    row = np.int32(nc)
    for m in range(places.shape[0]):
        fa, fb = a + np.float32(m) * qa, b + np.float32(m) * qb
        ia, ib = np.int32(fa), np.int32(fb)
        ras[m], rbs[m] = fa - np.float32(ia), fb - np.float32(ib)
        places[m] = np.int32(ia * sheet + ib * row + np.int32(k + m))
    for m in range(places.shape[0]):
        cell = flat[np.uint32(places[m])]
        nears[m], fars[m] = np.int32(cell), np.int32(cell >> np.int64(32))


@njit(cache=True, nogil=True, fastmath=True)  # type: ignore[untyped-decorator,unused-ignore]
def _values(ras, rbs, nears, fars, count):  # type: ignore[no-untyped-def]
    """Return the sum over the ``count`` planes that were read."""
    total = np.float32(0.0)
    sixteen = np.int32(16)
    for m in range(count):
        ra, rb = ras[m], rbs[m]
        near, far = nears[m], fars[m]
        c00, c01 = np.float32(np.int32(near << sixteen) >> sixteen), np.float32(near >> sixteen)
        c10, c11 = np.float32(np.int32(far << sixteen) >> sixteen), np.float32(far >> sixteen)
        low, high = c00 + rb * (c01 - c00), c10 + rb * (c11 - c10)
        total += low + ra * (high - low)
    return total


@njit(cache=True, nogil=True, fastmath=True)  # type: ignore[untyped-decorator,unused-ignore]
def _slopes(ras, rbs, nears, fars, count):  # type: ignore[no-untyped-def]
    """Return the sums of value, slope in a, slope in b, and both slopes times the plane's number in the run."""
    total, sa, sb = np.float32(0.0), np.float32(0.0), np.float32(0.0)
    ta, tb = np.float32(0.0), np.float32(0.0)
    sixteen = np.int32(16)
    for m in range(count):
        ra, rb = ras[m], rbs[m]
        near, far = nears[m], fars[m]
        c00, c01 = np.float32(np.int32(near << sixteen) >> sixteen), np.float32(near >> sixteen)
        c10, c11 = np.float32(np.int32(far << sixteen) >> sixteen), np.float32(far >> sixteen)
        low, high = c00 + rb * (c01 - c00), c10 + rb * (c11 - c10)
        ga = high - low
        gb = (c01 - c00) + ra * ((c11 - c10) - (c01 - c00))
        total += low + ra * ga
        sa += ga
        sb += gb
        ta += np.float32(m) * ga
        tb += np.float32(m) * gb
    return total, sa, sb, ta, tb


@njit(cache=True, nogil=True, fastmath=True, inline="always")  # type: ignore[untyped-decorator,unused-ignore]
def write_pixel(out, view, scale, column, row, qa, qb, dc, sums, derivatives):  # type: ignore[no-untyped-def]
    """Write a pixel of ``out`` (1 or 7, rows, columns) from the sums along its ray.

    ``sums``: of values, of slopes in a and b, of those times the plane's number.  ``qa``, ``qb``: how far aside the ray
    moves per plane; ``dc``: its direction's part across the planes.
    """
    total, ga, gb, ha, hb = sums
    mx = view[4, 0] * column + view[5, 0] * row + view[6, 0]
    my = view[4, 1] * column + view[5, 1] * row + view[6, 1]
    mz = view[4, 2] * column + view[5, 2] * row + view[6, 2]
    step = scale * math.sqrt(mx * mx + my * my + mz * mz) / abs(dc)
    out[0, row, column] = total * step
    if derivatives:
        # Slopes times (k - source), which is how far a turn of the ray has carried it.
        ha -= view[0, 2] * ga
        hb -= view[0, 2] * gb
        inverse = 1.0 / dc
        for p in range(6):
            za, zb, zc = view[16 + p, 0], view[16 + p, 1], view[16 + p, 2]
            change = ga * (za - zc * qa) + gb * (zb - zc * qb)
            if p < 3:
                r = 7 + 3 * p
                ea = view[r, 0] * column + view[r + 1, 0] * row + view[r + 2, 0]
                eb = view[r, 1] * column + view[r + 1, 1] * row + view[r + 2, 1]
                ec = view[r, 2] * column + view[r + 1, 2] * row + view[r + 2, 2]
                change += (ha * (ea - qa * ec) + hb * (eb - qb * ec) - total * ec) * inverse
            out[1 + p, row, column] = change * step


@njit(cache=True, nogil=True, fastmath=True)  # type: ignore[untyped-decorator,unused-ignore]
def render_view(volume, near, scale, view, window, derivatives, out):  # type: ignore[no-untyped-def]
    """Render one view into ``out`` (1 or 7, rows, columns): the integral, then its derivatives by (w, t).

    ``volume`` (na, nb, nc) int64, four voxels each, in units of ``scale``.  ``near`` (na, nb, blocks) uint8: 0 where no
    ray that passes the middle of a block meets anything in it; without entries, nothing is skipped.  ``view`` (24, 3),
    all in indices (a, b, c): row 0 the source, 1-3 the direction as columns of (column, row, 1), 4-6 the same in mm,
    7-15 the direction's change by three linear maps (rotations about x, y, z), 16-21 the source's change by all six.
    ``window``: first and end column, first and end row.
    """
    na, nb, nc = volume.shape
    flat, whole = volume.reshape(-1), near.size == 0
    places = np.empty(nc, dtype=np.int32)
    ras, rbs = np.empty(nc, dtype=np.float32), np.empty(nc, dtype=np.float32)
    nears, fars = np.empty(nc, dtype=np.int32), np.empty(nc, dtype=np.int32)
    sa, sb, sc = view[0, 0], view[0, 1], view[0, 2]
    # Pixel after pixel along b: rays read lines of memory that lie side by side, mostly of one sheet.
    down = abs(view[1, 0]) > abs(view[2, 0])
    outer, inner = (0, 2) if down else (2, 0)
    for first_index in range(window[outer], window[outer + 1]):
        for second_index in range(window[inner], window[inner + 1]):
            column, row = (first_index, second_index) if down else (second_index, first_index)
            da = view[1, 0] * column + view[2, 0] * row + view[3, 0]
            db = view[1, 1] * column + view[2, 1] * row + view[3, 1]
            dc = view[1, 2] * column + view[2, 2] * row + view[3, 2]
            qa, qb = da / dc, db / dc
            a0, b0 = sa - sc * qa, sb - sc * qb
            low, high = range_of(a0, qa, na - 1.001, 0.0, nc - 1.0)
            low, high = range_of(b0, qb, nb - 1.001, low, high)
            if high < low:
                continue
            first, last = int(np.ceil(low)), int(np.floor(high))
            if last < first:  # it passes between two planes
                continue
            total, ga, gb, ha, hb = 0.0, 0.0, 0.0, 0.0, 0.0
            block, end = first // BLOCK, last // BLOCK + 1
            while block < end:
                # A run of blocks in which something is near.
                begin = -1
                if whole:
                    begin, stop, block = first, last + 1, end
                while block < end:
                    start, stop = max(block * BLOCK, first), min(block * BLOCK + BLOCK, last + 1)
                    middle = 0.5 * (start + stop - 1)
                    hit = near[int(a0 + middle * qa), int(b0 + middle * qb), block] != 0
                    block += 1
                    if hit and begin < 0:
                        begin = start
                    if not hit:
                        if begin >= 0:
                            stop = start
                            break
                        continue
                if begin < 0:
                    break
                a, b = np.float32(a0 + begin * qa), np.float32(b0 + begin * qb)
                count = stop - begin
                _read(flat, nb, nc, begin, a, b, np.float32(qa), np.float32(qb), places[:count], ras, rbs, nears, fars)
                if derivatives:
                    v, x, y, tx, ty = _slopes(ras, rbs, nears, fars, count)
                    ga += x
                    gb += y
                    ha += tx + begin * x
                    hb += ty + begin * y
                    total += v
                else:
                    total += _values(ras, rbs, nears, fars, count)
            if total == 0.0 and ga == 0.0 and gb == 0.0:
                continue
            sums = (total, ga, gb, ha, hb)
            write_pixel(out, view, scale, column, row, qa, qb, dc, sums, derivatives)


@njit(cache=True, nogil=True, parallel=True)  # type: ignore[untyped-decorator,unused-ignore]
def render_views(volumes, nears, scale, axes, images, views, windows, derivatives, out):  # type: ignore[no-untyped-def]
    """Render jobs side by side: job n draws its window of image ``images[n]``, which is zero before.

    ``axes[n]`` says along which axis its volume is laid out.
    """
    for n in prange(len(axes)):
        image = out[images[n]]
        if axes[n] == 0:
            render_view(volumes[0], nears[0], scale, views[n], windows[n], derivatives, image)
        elif axes[n] == 1:
            render_view(volumes[1], nears[1], scale, views[n], windows[n], derivatives, image)
        else:
            render_view(volumes[2], nears[2], scale, views[n], windows[n], derivatives, image)
