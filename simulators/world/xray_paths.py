"""Owns the way of each ray through tissue and solids: millimetres of every material, and the photons that are left.

Tissue is sampled at the CT's own resolution by trilinear interpolation of HU at equal steps; solids are met exactly.
Where solids are, the tissue that they displace is taken off the ray again.  Refuses noise, blur and pixels' values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy.case import Volume
from navsrv.kernel.frames import Array
from navsrv.kernel.projection import ProjectionModel
from simulators.world._xray_kernels import MAX_MET, lengths_image, signal_image
from simulators.world.xray_materials import SOFT_LIMIT_HU, Material, tissue_model
from simulators.world.xray_solids import PieceTable

EMPTY_HU: Final = -900
"""Below, a voxel is air or beyond the scanner's field: it absorbs nothing."""

MATERIALS: Final = len(Material)

_FINE_MM: Final = 150.0
"""Larger pieces (a table, a phantom's plate) are not worth several rays in a pixel."""


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
        Slices by which the patient goes on beyond both ends of the CT, as in a mirror.
    """

    hu: NDArray[np.int16] = field(repr=False)
    index_from_ct: Array
    origin_ct_mm: Array
    step_mm: float
    beyond: float = 0.0

    @classmethod
    def from_ct(cls, ct: Volume, beyond_mm: float = 0.0) -> Tissue:
        """Return the tissue of a CT in HU; it goes on for ``beyond_mm`` past the first and the last slice.

        At most by as many slices as there are.
        """
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
        inverse = np.linalg.inv(ct.direction * ct.spacing_mm).astype(np.float64)
        beyond = min(beyond_mm / float(ct.spacing_mm[2]), hu.shape[0] - 1.0)
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
    lengths_image(_packed(tissue, table, rays), windows(rays, table), out, status)
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
    signal_image(
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
    pieces = (table.shapes, table.materials, table.centres_mm, table.inverses, table.reach_mm < _FINE_MM)
    return body, mixture, pieces, rays.source_mm, rays.directions


def _check(status: NDArray[np.int64]) -> None:
    if status.any():
        raise ValueError(f"a ray meets more than {MAX_MET} solids: leave some out")
