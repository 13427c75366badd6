"""Owns the compiled loops of fluoroscopy: sums of image gradients over tiles, and the search of translations."""

from __future__ import annotations

import numpy as np
from numba import njit


def sums_of(parameters: int) -> int:
    """Return how many sums a tile has: count; FF, MM, FM; FJ (P); MJ (P); upper triangle of JJ' (P (P + 1) / 2)."""
    return 4 + 2 * parameters + parameters * (parameters + 1) // 2


@njit(cache=True, nogil=True, fastmath=True)  # type: ignore[untyped-decorator,unused-ignore]
def tile_sums(moving, fixed, beside, window, tile, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` (tile rows, tile columns, ``sums_of(P)``) with sums of gradients where the DRR has any.

    ``moving`` (1 + P, rows, columns): the DRR and its derivatives; ``fixed`` (2, rows, columns): gradient along
    columns and rows; both by central differences.  ``beside`` (rows, columns, or empty): an image that is added to the
    DRR where the DRR has edges of its own.  ``window``: first and end column, first and end row.
    """
    channels, rows, columns = moving.shape
    count, alone = channels - 1, beside.size == 0
    jx, jy = np.empty(count, np.float32), np.empty(count, np.float32)
    for row in range(max(window[2], 1), min(window[3], rows - 1)):
        for column in range(max(window[0], 1), min(window[1], columns - 1)):
            mx = moving[0, row, column + 1] - moving[0, row, column - 1]
            my = moving[0, row + 1, column] - moving[0, row - 1, column]
            if mx == 0.0 and my == 0.0:
                continue
            if not alone:
                mx += beside[row, column + 1] - beside[row, column - 1]
                my += beside[row + 1, column] - beside[row - 1, column]
            fx, fy = fixed[0, row, column], fixed[1, row, column]
            s = out[row // tile, column // tile]
            s[0] += 1.0
            s[1] += fx * fx + fy * fy
            s[2] += mx * mx + my * my
            s[3] += fx * mx + fy * my
            for p in range(count):
                jx[p] = moving[1 + p, row, column + 1] - moving[1 + p, row, column - 1]
                jy[p] = moving[1 + p, row + 1, column] - moving[1 + p, row - 1, column]
            at = 4 + 2 * count
            for p in range(count):
                s[4 + p] += fx * jx[p] + fy * jy[p]
                s[4 + count + p] += mx * jx[p] + my * jy[p]
                for q in range(p, count):
                    s[at] += jx[p] * jx[q] + jy[p] * jy[q]
                    at += 1


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator,unused-ignore]
def edges_of(images, gradient):  # type: ignore[no-untyped-def]
    """Fill ``gradient`` (N, n, n) complex64 with the gradients (column + i row) of images (N, rows, columns).

    Return of each what its correlation is divided by: the length of the gradient times the root of how many pixels
    have one.
    """
    count, rows, columns = images.shape
    norm = np.zeros(count, np.float32)
    for n in range(count):
        total, filled = 0.0, 0
        for row in range(rows):
            for column in range(columns):
                gx = gy = np.float32(0.0)
                if 0 < column < columns - 1:
                    gx = images[n, row, column + 1] - images[n, row, column - 1]
                if 0 < row < rows - 1:
                    gy = images[n, row + 1, column] - images[n, row - 1, column]
                if gx != 0.0 or gy != 0.0:
                    gradient[n, row, column] = complex(gx, gy)
                    total += float(gx * gx + gy * gy)
                    filled += 1
        norm[n] = np.sqrt(total * max(filled, 1))
    return norm


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator,unused-ignore]
def best_shifts(maps, jacobians, reach, step_mm, apart, found):  # type: ignore[no-untyped-def]
    """Fill ``found`` (keep, 4) with the best scores and shifts (mm) of a grid, at least ``apart`` cells apart.

    ``maps`` (V, n, n): each view's correlation at cyclic shifts (row, column) of its image; ``jacobians`` (V, 2, 3):
    pixels (column, row) that the image moves per mm along the grid's axes; ``reach`` (3,): cells either way.
    """
    nx, ny, nz = 2 * reach[0] + 1, 2 * reach[1] + 1, 2 * reach[2] + 1
    size = maps.shape[1]
    score = np.zeros((nx, ny, nz), np.float32)
    for x in range(nx):
        for y in range(ny):
            for v in range(len(maps)):
                j = jacobians[v]
                dx, dy = (x - reach[0]) * step_mm, (y - reach[1]) * step_mm
                u0, w0 = j[0, 0] * dx + j[0, 1] * dy, j[1, 0] * dx + j[1, 1] * dy
                for z in range(nz):
                    dz = (z - reach[2]) * step_mm
                    u, w = u0 + j[0, 2] * dz, w0 + j[1, 2] * dz
                    if abs(u) > size // 2 - 1 or abs(w) > size // 2 - 1:
                        score[x, y, z] -= np.float32(1.0)
                        continue
                    score[x, y, z] += maps[v, int(np.floor(w + 0.5)) % size, int(np.floor(u + 0.5)) % size]
    for k in range(len(found)):
        at = np.argmax(score.reshape(-1))
        x, y, z = at // (ny * nz), (at // nz) % ny, at % nz
        found[k, 0] = score[x, y, z]
        found[k, 1], found[k, 2] = (x - reach[0]) * step_mm, (y - reach[1]) * step_mm
        found[k, 3] = (z - reach[2]) * step_mm
        score[
            max(x - apart, 0) : x + apart + 1, max(y - apart, 0) : y + apart + 1, max(z - apart, 0) : z + apart + 1
        ] = -9.0
