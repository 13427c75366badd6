"""Owns the filling of planar contours: which voxel centres lie inside.

A voxel is inside when a ray from its centre crosses the contours of its plane an odd number of times (even-odd rule):
holes drawn as contours of their own and keyhole outlines, whose channel runs there and back, come out alike.  So does
what overlaps by mistake: programs that join the contours of a slice fill such a hole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy.case import Volume
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array

Contour = Array
"""(N, 3) points in LPS mm; the last is joined to the first."""

PLANAR: Final = 0.1
"""Largest extent of a contour across the slices, in slice distances."""
SAME_PLANE: Final = 0.05
"""Distance, in slices, below which two contours lie in one plane."""
OWN_SLICE: Final = 0.5
"""A contour holds the slice whose centre lies no further away than this, in slices."""
WIDE: Final = 1.5
"""A gap of more than this many usual distances between contours is one that was meant."""


def rasterise(contours: Sequence[Contour], ct: Volume) -> NDArray[np.bool_]:
    """Return which voxels of a CT lie inside an ROI's contours, (nz, ny, nx).

    Each slice takes the contours of the nearest plane: its own within half a slice; where contours were drawn on every
    second or third slice only, those between take the nearer neighbour's.  Nothing is added beyond the last plane.

    Raises
    ------
    InputError
        A contour is not planar along any axis of the CT.
    """
    mask = np.zeros(ct.voxels.shape, dtype=np.bool_)
    if not contours:
        return mask
    indices = [ct.index_from_ct(contour)[:, ::-1] for contour in contours]  # in the order of ``voxels``: k, j, i
    axis = _slice_axis(indices)
    across = [n for n in range(3) if n != axis]
    places = np.array([float(points[:, axis].mean()) for points in indices])
    planes = _planes(places)
    slices: NDArray[np.bool_] = np.moveaxis(mask, axis, 0)
    for k, plane in _assigned(planes, len(slices)):
        edges = [indices[n][:, across] for n in np.flatnonzero(np.abs(places - plane) <= SAME_PLANE)]
        slices[k] = fill_even_odd(edges, slices[k].shape)
    return mask


def fill_even_odd(contours: Sequence[Array], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which pixel centres lie inside closed contours.

    Parameters
    ----------
    contours : sequence of (N, 2)
        Points as (row, column); pixel centres are at whole numbers.
    shape : (rows, columns)

    Notes
    -----
    An edge is crossed by a row when exactly one of its ends lies on or above the row: corners count once.  A centre on
    an edge belongs to the side of growing column.
    """
    rows, columns = shape
    start = np.concatenate(contours)
    end = np.concatenate([np.roll(contour, -1, axis=0) for contour in contours])
    # From the upper end to the lower one, so that an edge and the same edge back cross each row at the same place.
    back = (start[:, 0] > end[:, 0])[:, None]
    start, end = np.where(back, end, start), np.where(back, start, end)
    first = np.clip(np.ceil(start[:, 0]), 0, rows).astype(int)
    last = np.clip(np.ceil(end[:, 0]), 0, rows).astype(int)  # exclusive: the row of the lower end is the next edge's
    counts = last - first
    edge = np.repeat(np.arange(len(counts)), counts)
    row = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + first[edge]
    slope = (end[edge, 1] - start[edge, 1]) / (end[edge, 0] - start[edge, 0])
    column = start[edge, 1] + slope * (row - start[edge, 0])
    crossings = np.zeros((rows, columns + 1), dtype=np.int32)
    np.add.at(crossings, (row, np.clip(np.ceil(column), 0, columns).astype(int)), 1)
    inside: NDArray[np.bool_] = (crossings[:, :columns].cumsum(axis=1) & 1).astype(np.bool_)
    return inside


def _slice_axis(indices: Sequence[Array]) -> int:
    """Return the axis across which every contour is flat."""
    extents = np.array([np.ptp(points, axis=0) for points in indices]).max(axis=0)
    axis = int(extents.argmin())
    if extents[axis] > PLANAR:
        raise InputError(
            f"contours leave their slice by {extents[axis]:.2f} slices; expected planes of the CT's slices"
        )
    return axis


def _planes(places: Array) -> Array:
    """Return where there are contours, each place once, increasing."""
    ordered = np.sort(places)
    starts = np.concatenate([[True], np.diff(ordered) > SAME_PLANE])
    planes: Array = ordered[starts]
    return planes


def _assigned(planes: Array, count: int) -> list[tuple[int, float]]:
    """Return each slice that has a plane, with it."""
    gaps = np.diff(planes)
    usual = float(np.median(gaps)) if len(gaps) else 1.0
    found = []
    for k in range(count):
        nearest = int(np.abs(planes - k).argmin())
        own = abs(planes[nearest] - k) <= OWN_SLICE + 1e-6
        above = int(np.searchsorted(planes, k))
        between = 0 < above < len(planes) and planes[above] - planes[above - 1] <= WIDE * usual
        if own or between:
            found.append((k, float(planes[nearest])))
    return found
