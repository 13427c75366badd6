"""Owns the way of each ray through tissue and solids: millimetres of every material, and the photons that are left.

Tissue is sampled at the CT's own resolution by trilinear interpolation of HU at equal steps; solids are met exactly.
Where solids are, the tissue that they displace is taken off the ray again.  Refuses noise, blur and pixels' values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from navsrv.anatomy.case import Volume
from navsrv.kernel.frames import Array
from navsrv.kernel.projection import ProjectionModel
from simulators.world.xray_materials import SOFT_LIMIT_HU, Material, tissue_model
from simulators.world.xray_solids import PieceTable

EMPTY_HU: Final = -900
"""Below, a voxel is air or beyond the scanner's field: it absorbs nothing."""

MATERIALS: Final = len(Material)
_MAX_MET: Final = 64
"""Pieces that one ray may meet; more are refused."""


@dataclass(frozen=True, slots=True, eq=False)
class Tissue:
    """The CT as rays see it: HU cropped to what absorbs, and the map to its indices.

    Attributes
    ----------
    hu : (k, j, i) int16
    index_from_ct : (3, 3), origin_ct_mm : (3,)
        Continuous index (i, j, k) = ``index_from_ct @ (point - origin)``.
    step_mm : float
        Between samples along a ray: the smallest spacing.
    beyond : float
        Slices by which the patient goes on, unchanged, beyond both ends of the CT.
    """

    hu: NDArray[np.int16] = field(repr=False)
    index_from_ct: Array
    origin_ct_mm: Array
    step_mm: float
    beyond: float = 0.0

    @classmethod
    def from_ct(cls, ct: Volume, beyond_mm: float = 0.0) -> Tissue:
        """Return the tissue of a CT in HU; it goes on for ``beyond_mm`` past the first and the last slice."""
        occupied = ct.voxels > EMPTY_HU
        box = []
        for axis in range(3):
            if axis == 0 and beyond_mm > 0.0:
                box.append(slice(0, ct.voxels.shape[0]))
                continue
            inside = np.flatnonzero(occupied.any(axis=tuple(a for a in range(3) if a != axis)))
            low, high = (int(inside[0]), int(inside[-1])) if len(inside) else (0, 0)
            # One more voxel of air all around, and never fewer than two: interpolation needs both neighbours.
            low, high = max(low - 1, 0), min(high + 2, ct.voxels.shape[axis])
            box.append(slice(max(min(low, high - 2), 0), high))
        cut = ct.voxels[tuple(box)]
        hu = np.where(cut > EMPTY_HU, np.clip(cut, -1000, 32000), -1000).astype(np.int16)
        if min(hu.shape) < 2:
            hu = np.pad(hu, [(0, max(0, 2 - n)) for n in hu.shape], constant_values=-1000)
        origin = ct.ct_from_index([box[2].start, box[1].start, box[0].start])
        inverse = np.linalg.inv(ct.direction * ct.spacing_mm)
        beyond = beyond_mm / float(ct.spacing_mm[2])
        return cls(np.ascontiguousarray(hu), inverse, origin, float(ct.spacing_mm.min()), beyond)

    @classmethod
    def none(cls) -> Tissue:
        """Return no patient at all."""
        return cls(np.full((2, 2, 2), -1000, np.int16), np.eye(3), np.full(3, 1e6), 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Beam:
    """What compiled code needs of the spectrum: bins, and the attenuation of every material in each.

    Attributes
    ----------
    first, second : (N,)
        What a photon of each bin adds to the signal and to its variance, sums 1 and the noise factor.
    mu_per_mm : (materials, N)
    """

    first: Array
    second: Array
    mu_per_mm: Array


@dataclass(frozen=True, slots=True, eq=False)
class Rays:
    """From one source to a grid of points of the detector.

    Attributes
    ----------
    source_mm : (3,)
    directions : (rows, columns, 3)
        From the source; any length.
    spread : (3, 2)
        How a direction changes over one column and one row, for rays within a pixel.
    """

    source_mm: Array
    directions: Array = field(repr=False)
    spread: Array


def rays_of(view: ProjectionModel, undistorted_px: Array | None = None) -> Rays:
    """Return the rays of a view, to the pixels' centres or to ``undistorted_px`` (rows, columns, 2)."""
    if undistorted_px is None:
        column, row = np.meshgrid(np.arange(view.columns, dtype=np.float64), np.arange(view.rows, dtype=np.float64))
    else:
        column, row = undistorted_px[..., 0], undistorted_px[..., 1]
    m = view.directions
    directions = column[..., None] * m[:, 0] + row[..., None] * m[:, 1] + m[:, 2]
    return Rays(view.source_mm, directions, np.ascontiguousarray(m[:, :2]))


def windows(rays: Rays, table: PieceTable) -> NDArray[np.int64]:
    """Return (N, 4) first and last row, first and last column, in which a piece's ball may be met."""
    found = np.zeros((len(table.shapes), 4), dtype=np.int64)
    unit = rays.directions / np.linalg.norm(rays.directions, axis=-1, keepdims=True)
    margin = 2.0 * float(np.linalg.norm(rays.spread)) / float(np.linalg.norm(rays.directions, axis=-1).min())
    coarse = unit[::_COARSE, ::_COARSE]
    for n in range(len(found)):
        offset = table.centres_mm[n] - rays.source_mm
        distance = float(np.linalg.norm(offset))
        if distance <= table.reach_mm[n]:
            found[n] = (0, unit.shape[0] - 1, 0, unit.shape[1] - 1)
            continue
        angle = np.arcsin(table.reach_mm[n] / distance) + _COARSE * margin
        met = coarse @ (offset / distance) > np.cos(min(angle, np.pi))
        rows, columns = np.flatnonzero(met.any(axis=1)), np.flatnonzero(met.any(axis=0))
        if len(rows) == 0:
            found[n] = (0, -1, 0, -1)
        else:
            found[n] = (
                max(rows[0] * _COARSE - _COARSE, 0),
                min(rows[-1] * _COARSE + _COARSE, unit.shape[0] - 1),
                max(columns[0] * _COARSE - _COARSE, 0),
                min(columns[-1] * _COARSE + _COARSE, unit.shape[1] - 1),
            )
    return found


_COARSE: Final = 8


def path_lengths(tissue: Tissue, table: PieceTable, rays: Rays) -> NDArray[np.float64]:
    """Return (rows, columns, materials) mm along the ray to each pixel's centre."""
    shape = rays.directions.shape[:2]
    out = np.zeros((*shape, MATERIALS))
    status = np.zeros(shape[0], dtype=np.int64)
    _lengths_image(_packed(tissue, table, rays), windows(rays, table), out, status)
    _check(status)
    return out


def transmit(
    tissue: Tissue, table: PieceTable, rays: Rays, beam: Beam, parts: int = 2
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (rows, columns) of the primary signal, 1 in the open field, and of its variance for one photon.

    Pixels that solids touch are averaged over ``parts`` by ``parts`` rays, so that edges have their true place.
    """
    shape = rays.directions.shape[:2]
    first, second = np.empty(shape, np.float32), np.empty(shape, np.float32)
    status = np.zeros(shape[0], dtype=np.int64)
    _signal_image(
        _packed(tissue, table, rays),
        windows(rays, table),
        rays.spread,
        (beam.first, beam.second, beam.mu_per_mm),
        parts,
        first,
        second,
        status,
    )
    _check(status)
    return first, second


def _packed(tissue: Tissue, table: PieceTable, rays: Rays) -> tuple[Any, ...]:
    """Return body, mixture, pieces, source and directions for compiled code."""
    model = tissue_model()
    mixture = (float(SOFT_LIMIT_HU), model.soft_per_a, model.soft_per_b, model.bone_per_b)
    body = (tissue.hu, tissue.index_from_ct, tissue.origin_ct_mm, tissue.step_mm, tissue.beyond)
    pieces = (table.shapes, table.materials, table.centres_mm, table.inverses)
    return body, mixture, pieces, rays.source_mm, rays.directions


def _check(status: NDArray[np.int64]) -> None:
    if status.any():
        raise ValueError(f"a ray meets more than {_MAX_MET} solids: leave some out")


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
        x, y, z = x0 + f * dx, y0 + f * dy, min(max(z0 + f * dz, zero), last)
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
    shapes, _, centres, inverses = pieces
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
    for n in range(met):
        cuts[2 * n], cuts[2 * n + 1] = enters[n], leaves[n]
    cuts[: 2 * met].sort()
    for s in range(2 * met - 1):
        middle = 0.5 * (cuts[s] + cuts[s + 1])
        tops[s] = -1
        for n in range(met - 1, -1, -1):
            if enters[n] < middle < leaves[n]:
                tops[s] = which[n]
                break
    return 2 * met


@njit(nogil=True, cache=True)
def _displace(body, mixture, pieces, origin, direction, span, met, work, lengths):  # type: ignore[no-untyped-def]
    """Take the tissue within solids off ``lengths`` and add the solids' own millimetres."""
    hu, index_from_ct, _, step, _ = body
    limit, soft_per_a, soft_per_b, bone_per_b = mixture
    index_direction = index_from_ct @ direction
    enters, leaves, which, cuts, tops = work
    count = _segments(met, enters, leaves, which, cuts, tops)
    for s in range(count - 1):
        top = tops[s]
        if top < 0 or cuts[s + 1] <= cuts[s]:
            continue
        lengths[pieces[1][top]] += cuts[s + 1] - cuts[s]
        enter, leave = max(cuts[s], span[0]), min(cuts[s + 1], span[1])
        if leave > enter:
            a, b = _tissue(hu, limit, origin, index_direction, enter, leave, step)
            lengths[1] -= a * soft_per_a - b * soft_per_b
            lengths[2] -= b * bone_per_b


@njit(nogil=True, cache=True)
def _ray_body(body, mixture, origin, direction, index_direction, lengths):  # type: ignore[no-untyped-def]
    """Write the tissue of a whole ray (unit ``direction``) into ``lengths``; return where it enters and leaves, mm."""
    hu, index_from_ct, _, step, beyond = body
    limit, soft_per_a, soft_per_b, bone_per_b = mixture
    for axis in range(3):
        index_direction[axis] = (
            index_from_ct[axis, 0] * direction[0]
            + index_from_ct[axis, 1] * direction[1]
            + index_from_ct[axis, 2] * direction[2]
        )
    enter, leave = _clip(origin, index_direction, (hu.shape[2], hu.shape[1], hu.shape[0]), beyond)
    lengths[:] = 0.0
    if leave > enter:
        a, b = _tissue(hu, limit, origin, index_direction, enter, leave, step)
        lengths[1] = a * soft_per_a - b * soft_per_b
        lengths[2] = b * bone_per_b
    return enter, leave


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
def _lengths_image(scene, windows, out, status):  # type: ignore[no-untyped-def]
    body, mixture, pieces, source, directions = scene
    origin = body[1] @ (source - body[2])
    for row in prange(out.shape[0]):
        in_row, active = np.empty(len(windows), np.int64), np.empty(len(windows), np.int64)
        work = (
            np.empty(_MAX_MET), np.empty(_MAX_MET), np.empty(_MAX_MET, np.int64),
            np.empty(2 * _MAX_MET), np.empty(2 * _MAX_MET, np.int64),
        )  # fmt: skip
        direction, along = np.empty(3), np.empty(3)
        rows = _active_in_row(row, windows, in_row)
        for column in range(out.shape[1]):
            d = directions[row, column]
            direction[:] = d / np.sqrt(d[0] ** 2 + d[1] ** 2 + d[2] ** 2)
            span = _ray_body(body, mixture, origin, direction, along, out[row, column])
            count = _active_in_pixel(column, windows, in_row, rows, active)
            met = _met(pieces, active, count, source, direction, work[0], work[1], work[2])
            if met < 0:
                status[row] = 1
            elif met > 0:
                _displace(body, mixture, pieces, origin, direction, span, met, work, out[row, column])


@njit(parallel=True, nogil=True, cache=True)
def _signal_image(  # type: ignore[no-untyped-def]
    scene, windows, spread, beam, parts, first_out, second_out, status
):
    body, mixture, pieces, source, directions = scene
    origin = body[1] @ (source - body[2])
    first, second, mu = beam
    bins = len(first)
    for row in prange(first_out.shape[0]):
        in_row, active = np.empty(len(windows), np.int64), np.empty(len(windows), np.int64)
        work = (
            np.empty(_MAX_MET), np.empty(_MAX_MET), np.empty(_MAX_MET, np.int64),
            np.empty(2 * _MAX_MET), np.empty(2 * _MAX_MET, np.int64),
        )  # fmt: skip
        direction, along = np.empty(3), np.empty(3)
        tissue, lengths = np.empty(mu.shape[0]), np.empty(mu.shape[0])
        rows = _active_in_row(row, windows, in_row)
        for column in range(first_out.shape[1]):
            d = directions[row, column]
            direction[:] = d / np.sqrt(d[0] ** 2 + d[1] ** 2 + d[2] ** 2)
            span = _ray_body(body, mixture, origin, direction, along, tissue)
            count = _active_in_pixel(column, windows, in_row, rows, active)
            signal, variance = 0.0, 0.0
            if count == 0:
                for e in range(bins):
                    left = np.exp(-(mu[1, e] * tissue[1] + mu[2, e] * tissue[2]))
                    signal += first[e] * left
                    variance += second[e] * left
            else:
                for part in range(parts * parts):
                    across = (part % parts + 0.5) / parts - 0.5
                    down = (part // parts + 0.5) / parts - 0.5
                    direction[:] = d + across * spread[:, 0] + down * spread[:, 1]
                    direction /= np.sqrt(direction[0] ** 2 + direction[1] ** 2 + direction[2] ** 2)
                    lengths[:] = tissue
                    met = _met(pieces, active, count, source, direction, work[0], work[1], work[2])
                    if met < 0:
                        status[row] = 1
                    elif met > 0:
                        _displace(body, mixture, pieces, origin, direction, span, met, work, lengths)
                    for e in range(bins):
                        total = 0.0
                        for m in range(mu.shape[0]):
                            total += mu[m, e] * lengths[m]
                        left = np.exp(-total) / (parts * parts)
                        signal += first[e] * left
                        variance += second[e] * left
            first_out[row, column] = signal
            second_out[row, column] = variance
