"""Owns the similarity and its derivatives: correlation of values whose mean over each tile has been removed.

The intraoperative volume is cut into tiles of some centimetres.  Within a tile an unknown offset is removed, one gain
is shared by all tiles; so offset, scale and slow shading (cupping) cost nothing, and a tile without structure has no
say.  The pose is refined by Levenberg-Marquardt on the least-squares form of that correlation, the gain being
eliminated at each step (variable projection).  All sums are kept per tile: subsets of tiles are independent
refinements for free, which is where the covariance comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from navsrv.kernel.frames import Array, rotation_from_vector, skew
from navsrv.registration.images import Grid, Voxels

MIN_TILE_POINTS: Final = 12
Weigh = Callable[[Array], NDArray[np.float32]]
SUMS: Final = 46
"""Of each tile: count; sums of w, wv, wc, wvv, wcc, wvc; wJ (6); upper triangle of wJJ' (21); wJc (6); wJv (6)."""


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator,unused-ignore]
def _tile_sums(
    ct: Voxels,
    valid: NDArray[np.bool_],
    to_index: Array,
    points: NDArray[np.float32],
    values: NDArray[np.float32],
    weights: NDArray[np.float32],
    starts: NDArray[np.int64],
    pose: Array,
    centre: Array,
    derivatives: bool,
    out: Array,
) -> None:
    """Accumulate the sums of every tile at ``pose`` (3, 4); ``to_index`` (3, 4) maps CT mm to CT index (i, j, k)."""
    nk, nj, ni = ct.shape
    jac = np.zeros(6)
    for tile in range(len(starts) - 1):
        s = out[tile]
        s[:] = 0.0
        for p in range(starts[tile], starts[tile + 1]):
            x, y, z = points[p, 0], points[p, 1], points[p, 2]
            px = pose[0, 0] * x + pose[0, 1] * y + pose[0, 2] * z + pose[0, 3]
            py = pose[1, 0] * x + pose[1, 1] * y + pose[1, 2] * z + pose[1, 3]
            pz = pose[2, 0] * x + pose[2, 1] * y + pose[2, 2] * z + pose[2, 3]
            fi = to_index[0, 0] * px + to_index[0, 1] * py + to_index[0, 2] * pz + to_index[0, 3]
            fj = to_index[1, 0] * px + to_index[1, 1] * py + to_index[1, 2] * pz + to_index[1, 3]
            fk = to_index[2, 0] * px + to_index[2, 1] * py + to_index[2, 2] * pz + to_index[2, 3]
            if not (0.0 <= fi < ni - 1 and 0.0 <= fj < nj - 1 and 0.0 <= fk < nk - 1):
                continue
            i, j, k = int(fi), int(fj), int(fk)
            if not valid[k, j, i]:
                continue
            a, b, c = fi - i, fj - j, fk - k
            c000, c001 = ct[k, j, i], ct[k, j, i + 1]
            c010, c011 = ct[k, j + 1, i], ct[k, j + 1, i + 1]
            c100, c101 = ct[k + 1, j, i], ct[k + 1, j, i + 1]
            c110, c111 = ct[k + 1, j + 1, i], ct[k + 1, j + 1, i + 1]
            c00, c01 = c000 + a * (c001 - c000), c010 + a * (c011 - c010)
            c10, c11 = c100 + a * (c101 - c100), c110 + a * (c111 - c110)
            c0, c1 = c00 + b * (c01 - c00), c10 + b * (c11 - c10)
            m = c0 + c * (c1 - c0)
            w, v = weights[p], values[p]
            s[0] += 1.0
            s[1] += w
            s[2] += w * v
            s[3] += w * m
            s[4] += w * v * v
            s[5] += w * m * m
            s[6] += w * v * m
            if not derivatives:
                continue
            gi = (1 - c) * ((1 - b) * (c001 - c000) + b * (c011 - c010)) + c * (
                (1 - b) * (c101 - c100) + b * (c111 - c110)
            )
            gj = (1 - c) * (c01 - c00) + c * (c11 - c10)
            gk = c1 - c0
            gx = gi * to_index[0, 0] + gj * to_index[1, 0] + gk * to_index[2, 0]
            gy = gi * to_index[0, 1] + gj * to_index[1, 1] + gk * to_index[2, 1]
            gz = gi * to_index[0, 2] + gj * to_index[1, 2] + gk * to_index[2, 2]
            qx, qy, qz = px - centre[0], py - centre[1], pz - centre[2]
            # d m / d w = g . (w x q) = w . (q x g)
            jac[0] = qy * gz - qz * gy
            jac[1] = qz * gx - qx * gz
            jac[2] = qx * gy - qy * gx
            jac[3], jac[4], jac[5] = gx, gy, gz
            at = 13
            for r in range(6):
                wj = w * jac[r]
                s[7 + r] += wj
                s[34 + r] += wj * m
                s[40 + r] += wj * v
                for q in range(r, 6):
                    s[at] += wj * jac[q]
                    at += 1


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """Sample points of a volume, grouped by tile.

    Attributes
    ----------
    points_mm : (N, 3) float32
        In the volume's frame, sorted by tile.
    values, weights : (N,) float32
    starts : (T + 1,) int64
        Tile t holds points ``starts[t]`` to ``starts[t + 1]``.
    centres_mm : (T, 3)
    """

    points_mm: NDArray[np.float32]
    values: NDArray[np.float32]
    weights: NDArray[np.float32]
    starts: NDArray[np.int64]
    centres_mm: Array

    @property
    def centre_mm(self) -> Array:
        """Mean of the points (3,) in the volume's frame."""
        centre: Array = self.points_mm.mean(axis=0, dtype=np.float64)
        return centre


def cut_tiles(grid: Grid, spacing_mm: float, tile_mm: float, limit: int, weigh: Weigh | None = None) -> Tiles:
    """Return sample points about ``spacing_mm`` apart in cubic tiles, the tiles with the most structure first to stay.

    At most ``limit`` points are kept: whole tiles, by falling weighted variance, so that bone edges stay and plain
    tissue goes.  ``weigh`` gives weights (N,) for points (N, 3) in the volume's frame; those of weight 0 are dropped.
    """
    steps = np.maximum(1, np.rint(spacing_mm / grid.spacing_mm).astype(int))
    first = steps // 2
    chosen = grid.valid[first[2] :: steps[2], first[1] :: steps[1], first[0] :: steps[0]]
    index = np.argwhere(chosen) * steps[::-1] + first[::-1]
    weights = np.ones(len(index), np.float32) if weigh is None else weigh(grid.points_mm(index))
    index, weights = index[weights > 0.0], weights[weights > 0.0]
    values = grid.values[index[:, 0], index[:, 1], index[:, 2]].astype(np.float64)
    side = np.maximum(1, np.rint(tile_mm / grid.spacing_mm).astype(int))[::-1]
    shape = np.array(grid.values.shape) // side + 1
    label = np.ravel_multi_index(tuple((index // side).T), tuple(shape))
    _, tile, count = np.unique(label, return_inverse=True, return_counts=True)
    mean = np.bincount(tile, values) / count
    energy = np.bincount(tile, weights * (values - mean[tile]) ** 2)
    energy[count < MIN_TILE_POINTS] = -1.0
    ranked = np.argsort(-energy, kind="stable")
    kept = ranked[(np.cumsum(count[ranked]) <= limit) & (energy[ranked] > 0.0)]
    rank = np.full(len(count), -1)
    rank[np.sort(kept)] = np.arange(len(kept))
    order = np.argsort(rank[tile], kind="stable")
    order = order[rank[tile[order]] >= 0]
    points = grid.points_mm(index[order])
    counts = count[np.sort(kept)]
    starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    centres = np.add.reduceat(points, starts[:-1]) / counts[:, None] if len(kept) else np.zeros((0, 3))
    return Tiles(points.astype(np.float32), values[order].astype(np.float32), weights[order], starts, centres)


@dataclass(frozen=True, slots=True, eq=False)
class Normal:
    """The normal equations at a pose, summed over tiles (or a subset of them)."""

    hessian: Array
    gradient: Array
    correlation: float
    residual: float
    """Sum of squares left after the best gain."""
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One level of refinement: CT blurred to the level, and the volume's sample points."""

    ct: Grid
    ct_to_index: Array
    tiles: Tiles

    @classmethod
    def make(cls, ct: Grid, tiles: Tiles) -> Level:
        """Return the level with what the kernel needs laid out once."""
        return cls(ct, np.ascontiguousarray(np.linalg.inv(ct.index_to_mm)[:3]), tiles)

    def sums(self, pose: Array, centre_ct_mm: Array, derivatives: bool = True) -> Array:
        """Return the sums of each tile (T, 46) at a pose (4, 4)."""
        out = np.empty((len(self.tiles.starts) - 1, SUMS))
        t = self.tiles
        _tile_sums(
            self.ct.values, self.ct.valid, self.ct_to_index, t.points_mm, t.values, t.weights, t.starts,
            np.ascontiguousarray(pose[:3]), centre_ct_mm, derivatives, out,
        )  # fmt: skip
        return out


def demeaned(sums: Array) -> Array:
    """Return the sums of each tile with the tile's means removed; tiles with hardly a point in the CT are zero."""
    s = sums.copy()
    s[s[:, 0] < MIN_TILE_POINTS] = 0.0
    w = np.maximum(s[:, 1], 1e-9)[:, None]
    v, m, jac = s[:, 2:3] / w, s[:, 3:4] / w, s[:, 7:13] / w
    s[:, 4:5] -= w * v * v
    s[:, 5:6] -= w * m * m
    s[:, 6:7] -= w * v * m
    rows, cols = np.triu_indices(6)
    s[:, 13:34] -= w * jac[:, rows] * jac[:, cols]
    s[:, 34:40] -= w * jac * m
    s[:, 40:46] -= w * jac * v
    return s


def normal_equations(tile_sums: Array) -> Normal:
    """Return the normal equations of de-meaned tile sums (T, 46), the gain eliminated."""
    s = tile_sums.sum(axis=0)
    vv, mm, vm = s[4], max(s[5], 1e-12), s[6]
    gain = vm / mm
    rows, cols = np.triu_indices(6)
    jj = np.zeros((6, 6))
    jj[rows, cols] = s[13:34]
    jj[cols, rows] = s[13:34]
    jm, jv = s[34:40], s[40:46]
    hessian = gain**2 * (jj - np.outer(jm, jm) / mm)
    gradient = gain * (jv - gain * jm)
    correlation = float(vm / np.sqrt(max(vv * mm, 1e-24)))
    return Normal(hessian, gradient, correlation, float(max(vv - gain * vm, 0.0)), float(s[1]))


def moved(pose: Array, step: Array, centre_mm: Array) -> Array:
    """Return ``exp(step) @ pose`` (4, 4) for a step (rotation_rad, translation_mm) about a centre in the CT."""
    turn = rotation_from_vector(step[:3])
    result = np.eye(4)
    result[:3, :3] = turn @ pose[:3, :3]
    result[:3, 3] = turn @ (pose[:3, 3] - centre_mm) + centre_mm + step[3:]
    u, _, vt = np.linalg.svd(result[:3, :3])
    result[:3, :3] = u @ vt
    return result


def covariance_about_origin(covariance: Array, centre_mm: Array) -> Array:
    """Return the (6, 6) covariance of a perturbation about a centre as one about the CT's origin."""
    shift = np.eye(6)
    shift[3:, :3] = skew(centre_mm)
    result: Array = shift @ covariance @ shift.T
    return result


@dataclass(frozen=True, slots=True, eq=False)
class Refined:
    """A pose (4, 4) that the refinement ended at, with its correlation and share of weight inside the CT."""

    pose: Array
    correlation: float
    overlap: float


def refine(level: Level, pose: Array, iterations: int = 30, tolerance_mm: float = 0.01) -> Refined:
    """Return the pose that Levenberg-Marquardt reaches from ``pose`` (4, 4, CT from volume)."""
    centre_volume = level.tiles.centre_mm
    total = float(level.tiles.weights.sum(dtype=np.float64))
    damping = 1e-3

    def at(candidate: Array) -> tuple[Normal, Array]:
        centre = candidate[:3, :3] @ centre_volume + candidate[:3, 3]
        return normal_equations(demeaned(level.sums(candidate, centre))), centre

    best, centre = at(pose)
    for _ in range(iterations):
        scaled = best.hessian + np.diag(damping * np.diag(best.hessian) + 1e-9)
        step = np.asarray(np.linalg.solve(scaled, best.gradient), dtype=np.float64)
        length = float(np.linalg.norm(step[3:]) + 60.0 * np.linalg.norm(step[:3]))
        if length > 15.0:
            step *= 15.0 / length
        trial = moved(pose, step, centre)
        found, trial_centre = at(trial)
        if found.correlation > best.correlation and found.weight > 0.5 * best.weight:
            pose, best, centre = trial, found, trial_centre
            damping = max(damping * 0.3, 1e-4)
            if length < tolerance_mm:
                break
        else:
            damping *= 8.0
            if damping > 1e4 or length < tolerance_mm:
                break
    return Refined(pose, best.correlation, best.weight / max(total, 1e-9))
