"""Owns how the two images of a registration are prepared: clipped, reduced, blurred, masked.  Refuses poses.

CT values are Hounsfield units; the intraoperative volume may have any linear scale, shading and a reconstructed
region outside of which its values are one constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from navsrv.kernel.errors import RegistrationError
from navsrv.kernel.frames import Array

Voxels = NDArray[np.float32]
_ONE: Final = np.ones((1, 1), np.float32)

CT_LOW_HU: Final = -250.0
CT_HIGH_HU: Final = 1600.0
"""Air, gas and the table say nothing of where bone is; metal says the wrong thing."""
OUTSIDE_HU: Final = -1500.0
"""Below this a CT has no data (scanners pad with -2048 or -3024 outside their field)."""
BONE_HU: Final = 160.0
BONE_REACH_MM: Final = 5.0
FINE_MM: Final = 1.2
"""Voxels are averaged in whole blocks up to about this size before anything else."""


@dataclass(frozen=True, slots=True, eq=False)
class CtImage:
    """A CT as registration reads it.

    Attributes
    ----------
    voxels : (k, j, i) Hounsfield units
    index_to_ct_mm : (4, 4)
        Maps (i, j, k, 1) of a voxel's centre to CT millimetres (LPS).
    """

    voxels: NDArray[np.generic]
    index_to_ct_mm: Array


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Values (k, j, i) float32 with the map of voxel centres to millimetres, and where they are valid."""

    values: Voxels
    index_to_mm: Array
    valid: NDArray[np.bool_]

    @property
    def spacing_mm(self) -> Array:
        """Voxel size along i, j, k (3,)."""
        spacing: Array = np.linalg.norm(self.index_to_mm[:3, :3], axis=0)
        return spacing

    @property
    def centre_mm(self) -> Array:
        """Centroid of the valid voxels (3,)."""
        counts = [self.valid.sum(axis=tuple(a for a in range(3) if a != 2 - axis)) for axis in range(3)]
        index = np.array([(c * np.arange(len(c))).sum() / max(c.sum(), 1) for c in counts])
        centre: Array = self.index_to_mm[:3, :3] @ index + self.index_to_mm[:3, 3]
        return centre

    def points_mm(self, index_kji: NDArray[np.int64]) -> Array:
        """Return the centres (N, 3) of voxels given by index (N, 3) in k, j, i order."""
        points: Array = index_kji[:, ::-1] @ self.index_to_mm[:3, :3].T + self.index_to_mm[:3, 3]
        return points


def block_mean(grid: Grid, factors_ijk: tuple[int, int, int]) -> Grid:
    """Return the grid averaged over whole blocks; a block is valid when all of its voxels are."""
    if factors_ijk == (1, 1, 1):
        return grid
    fk, fj, fi = factors_ijk[::-1]
    nk, nj, ni = (n // f for n, f in zip(grid.values.shape, (fk, fj, fi), strict=True))
    values = np.zeros((nk, nj, ni), dtype=np.float32)
    valid = np.ones((nk, nj, ni), dtype=np.bool_)
    for k in range(fk):
        for j in range(fj):
            for i in range(fi):
                part = (slice(k, nk * fk, fk), slice(j, nj * fj, fj), slice(i, ni * fi, fi))
                values += grid.values[part]
                valid &= grid.valid[part]
    values *= np.float32(1.0 / (fk * fj * fi))
    matrix = grid.index_to_mm.copy()
    factors = np.array([fi, fj, fk], dtype=np.float64)
    matrix[:3, 3] += matrix[:3, :3] @ ((factors - 1) / 2)
    matrix[:3, :3] *= factors
    return Grid(values, matrix, valid)


def reduce_to(grid: Grid, size_mm: float) -> Grid:
    """Return the grid with blocks averaged so that its voxels are about ``size_mm``, never much larger."""
    i, j, k = (max(1, int(size_mm / s + 0.35)) for s in grid.spacing_mm)
    return block_mean(grid, (i, j, k))


def blur(grid: Grid, sigma_mm: float) -> Grid:
    """Return the grid blurred by a Gaussian that does not let invalid voxels leak in."""
    sigma = (sigma_mm / grid.spacing_mm)[::-1]
    if grid.valid.all():
        return Grid(_smooth(grid.values, sigma, cv2.BORDER_REPLICATE), grid.index_to_mm, grid.valid)
    inside = grid.valid.astype(np.float32)
    weight = _smooth(inside, sigma, cv2.BORDER_CONSTANT)
    total = _smooth(grid.values * inside, sigma, cv2.BORDER_CONSTANT)
    np.maximum(weight, 1e-3, out=weight)
    total /= weight
    total *= inside
    return Grid(total, grid.index_to_mm, grid.valid)


def _smooth(values: Voxels, sigma: Array, border: int) -> Voxels:
    """Return values (k, j, i) blurred by Gaussians of sigma (3,) voxels, cut off at three of them."""
    kernels = [cv2.getGaussianKernel(2 * int(3.0 * s + 0.5) + 1, float(s), cv2.CV_32F) for s in sigma]
    out = np.empty(values.shape, np.float32)
    for sheet, blurred in zip(values, out, strict=True):
        cv2.sepFilter2D(sheet, cv2.CV_32F, kernels[2], kernels[1], dst=blurred, borderType=border)
    for j in range(values.shape[1]):
        out[:, j] = cv2.sepFilter2D(out[:, j], cv2.CV_32F, _ONE, kernels[0], borderType=border)
    return out


def trim(grid: Grid, margin_mm: float) -> Grid:
    """Return the grid with a margin made invalid: there the volume's blur has seen what the CT has not."""
    valid = np.zeros_like(grid.valid)
    margin = [int(np.ceil(margin_mm / s)) for s in grid.spacing_mm[::-1]]
    inner = tuple(slice(m, n - m) for m, n in zip(margin, grid.values.shape, strict=True))
    valid[inner] = grid.valid[inner]
    return Grid(grid.values, grid.index_to_mm, valid)


def ct_grid(ct: CtImage) -> Grid:
    """Return the CT clipped to tissue and bone, about 1.2 mm fine, in units of 1000 HU; 0 is the fill value."""
    voxels = np.asarray(ct.voxels)
    raw = voxels.astype(np.float32)
    valid = raw > OUTSIDE_HU
    np.nan_to_num(raw, copy=False, nan=-1000.0)
    np.clip(raw, CT_LOW_HU, CT_HIGH_HU, out=raw)
    raw *= np.float32(1e-3)
    return reduce_to(Grid(raw, np.asarray(ct.index_to_ct_mm, dtype=np.float64), valid), FINE_MM)


def bone_weight(fine: Grid) -> Grid:
    """Return 1 in and near bone and 0.1 far from it, about 2.4 mm fine: soft tissue moves, bone does not."""
    coarse = reduce_to(fine, 2.0 * FINE_MM)
    distance = ndimage.distance_transform_edt(coarse.values < BONE_HU * 1e-3, sampling=coarse.spacing_mm[::-1])
    weight = np.where(distance <= BONE_REACH_MM, 1.0, 0.1).astype(np.float32)
    return Grid(weight, coarse.index_to_mm, coarse.valid)


def reconstructed_region(voxels: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Return where a volume was reconstructed: all but the constant outside, shrunk by two voxels.

    The constant is what most corners hold; a volume whose corners differ fills its box.
    """
    corners = np.array([voxels[k, j, i] for k in (0, -1) for j in (0, -1) for i in (0, -1)], dtype=np.float64)
    values, counts = np.unique(corners[np.isfinite(corners)], return_counts=True)
    inside = np.isfinite(voxels) if np.issubdtype(voxels.dtype, np.floating) else np.ones(voxels.shape, np.bool_)
    if len(values) and counts.max() >= 3:
        inside &= voxels != voxels.dtype.type(values[counts.argmax()])
    # Two voxels off on all sides; beyond the box nothing was reconstructed.
    for axis in range(3):
        inside = ndimage.minimum_filter1d(inside.view(np.uint8), 5, axis=axis, mode="constant", cval=0).view(np.bool_)
    return inside


def volume_grid(voxels: NDArray[np.generic], index_to_volume_mm: Array) -> Grid:
    """Return the volume about 1.2 mm fine, outliers clipped, scaled to unit spread, invalid where not reconstructed.

    Raises
    ------
    RegistrationError
        The volume is not three-dimensional, or holds nothing but a constant.
    """
    if voxels.ndim != 3 or min(voxels.shape) < 8:
        raise RegistrationError(
            f"a volume of shape {voxels.shape} cannot be registered: three axes of 8 voxels or more"
        )
    valid = reconstructed_region(voxels)
    sample = voxels[valid][::7].astype(np.float64)
    if sample.size < 1000:
        raise RegistrationError(f"the volume has {int(valid.sum())} voxels inside its reconstructed region: too few")
    low, high = (np.float32(bound) for bound in np.percentile(sample, (1.0, 99.9)))
    if not high > low:
        raise RegistrationError(f"the volume is constant ({low:g}): nothing to register")
    raw = np.clip(np.where(valid, voxels, low).astype(np.float32), low, high)
    raw = (raw - low) * (np.float32(1.0) / (high - low))
    return reduce_to(Grid(raw, np.asarray(index_to_volume_mm, dtype=np.float64), valid), FINE_MM)
