"""Owns the search for where a volume may lie: masked correlation by FFT over a grid of rotations and all translations.

Refuses to decide: it returns the best candidates of different basins for refinement.  The correlation is that of
band-passed images (bone is what is left) over the overlap of the two valid regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from navsrv.kernel.frames import Array, rotation_angle_rad, rotation_from_vector
from navsrv.registration.images import Grid, Voxels, blur, reduce_to

COARSE_MM: Final = 8.0
HIGH_PASS_MM: Final = 24.0
ROTATION_RANGE_DEG: Final = 27.0
ROTATION_STEP_DEG: Final = 20.0
"""Side of the cubic cell of a body-centred lattice of rotation vectors: no rotation is more than 11.2 degrees away."""
MIN_OVERLAP: Final = 0.35
FLIPS: Final = (np.eye(3), np.diag([-1.0, -1.0, 1.0]), np.diag([1.0, -1.0, -1.0]), np.diag([-1.0, 1.0, -1.0]))
"""As planned, or the patient half turned about the long axis (prone), the left-right or the front-back axis."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A pose (4, 4), CT from volume, and its correlation at the coarse level."""

    pose: Array
    score: float


def rotation_lattice(range_deg: float, step_deg: float) -> list[Array]:
    """Return rotations (3, 3) of a body-centred lattice of rotation vectors within a ball, the identity first."""
    reach = int(np.ceil(range_deg / step_deg))
    axis = np.arange(-reach, reach + 1, dtype=np.float64)
    cells = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    vectors = np.concatenate((cells, cells + 0.5)) * step_deg
    lengths = np.linalg.norm(vectors, axis=1)
    order = np.lexsort((vectors[:, 2], vectors[:, 1], vectors[:, 0], np.round(lengths, 6)))
    return [rotation_from_vector(np.deg2rad(vectors[i])) for i in order if lengths[i] <= range_deg + 1e-9]


def band_pass(grid: Grid) -> Grid:
    """Return the grid at the coarse spacing with slow changes removed; 0 where not valid."""
    coarse = blur(reduce_to(grid, COARSE_MM), 0.35 * COARSE_MM)
    slow = blur(coarse, HIGH_PASS_MM)
    values = np.where(coarse.valid, coarse.values - slow.values, 0.0).astype(np.float32)
    return Grid(values, coarse.index_to_mm, coarse.valid)


def isotropic(grid: Grid, spacing_mm: float) -> Grid:
    """Return the grid resampled to cubic voxels along the axes of its own millimetre frame."""
    shape = np.array(grid.values.shape)
    corners = np.array([[i, j, k] for i in (0, shape[2] - 1) for j in (0, shape[1] - 1) for k in (0, shape[0] - 1)])
    corners_mm = corners @ grid.index_to_mm[:3, :3].T + grid.index_to_mm[:3, 3]
    low, high = corners_mm.min(axis=0), corners_mm.max(axis=0)
    size = np.floor((high - low) / spacing_mm).astype(int) + 1
    matrix = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    matrix[:3, 3] = low
    to_source = np.asarray(np.linalg.inv(grid.index_to_mm) @ matrix, dtype=np.float64)
    values, valid = _sample(grid, to_source, tuple(size[::-1]))
    return Grid(values, matrix, valid)


def _sample(grid: Grid, to_source: Array, shape: tuple[int, ...]) -> tuple[Voxels, NDArray[np.bool_]]:
    """Return values and validity on a new lattice; ``to_source`` (4, 4) maps its (i, j, k) to the grid's."""
    matrix = to_source[:3, :3][::-1, ::-1]
    offset = to_source[:3, 3][::-1]
    values = ndimage.affine_transform(grid.values, matrix, offset, shape, order=1, mode="constant", cval=0.0)
    inside = ndimage.affine_transform(
        grid.valid.astype(np.float32), matrix, offset, shape, order=1, mode="constant", cval=0.0
    )
    valid = inside > 0.6
    values[~valid] = 0.0
    return values, valid


class MaskedCorrelation:
    """Correlation of a rotated volume with the CT at every translation, over the overlap of their valid regions."""

    def __init__(self, ct: Grid, reach: int) -> None:
        """Transform the CT (cubic voxels) once; ``reach`` is the side in voxels of the rotated volume's lattice."""
        self.ct = ct
        self.reach = reach
        self.shape = tuple(fft.next_fast_len(n + reach, real=True) for n in ct.values.shape)
        self.f_value = fft.rfftn(ct.values, self.shape)
        self.f_square = fft.rfftn(ct.values**2, self.shape)
        self.f_valid = fft.rfftn(ct.valid.astype(np.float32), self.shape)

    def score(self, values: Voxels, valid: NDArray[np.bool_]) -> Voxels:
        """Return the correlation at every cyclic shift (k, j, i); -1 where too little overlaps."""
        mask = valid.astype(np.float32)
        f_values = np.conj(fft.rfftn(values, self.shape, workers=2))
        f_mask = np.conj(fft.rfftn(mask, self.shape, workers=2))
        f_square = np.conj(fft.rfftn(values**2, self.shape, workers=2))

        def back(product: NDArray[np.complex64]) -> Voxels:
            result: Voxels = fft.irfftn(product, self.shape, workers=2)
            return result

        cross, count = back(self.f_value * f_values), back(self.f_valid * f_mask)
        ct_energy, energy = back(self.f_square * f_mask), back(self.f_valid * f_square)
        enough = (count > MIN_OVERLAP * mask.sum()) & (energy > 0.3 * (values**2).sum())
        floor = 0.05 * float((self.ct.values**2).mean()) * np.maximum(count, 1.0)
        score = np.where(enough, cross / np.sqrt(np.maximum(ct_energy, floor) * np.maximum(energy, 1e-9)), -1.0)
        return score.astype(np.float32)


def search(ct: Grid, coarse: Grid, orientations: list[Array], keep: int, peaks: int = 4) -> list[Candidate]:
    """Return the ``keep`` best candidates over rotations about each orientation (3, 3) and all translations.

    Parameters
    ----------
    ct : Grid
        It is band-passed and reduced here.
    coarse : Grid
        The volume, as ``band_pass`` returns it.
    orientations : list of (3, 3)
        Rotations, CT from volume, about which the lattice of rotations is laid.
    """
    coarse_ct = isotropic(band_pass(ct), COARSE_MM)
    centre = coarse.centre_mm
    occupied = coarse.points_mm(np.argwhere(coarse.valid)) - centre
    reach = int(2 * np.ceil(np.linalg.norm(occupied, axis=1).max() / COARSE_MM)) + 3
    engine = MaskedCorrelation(coarse_ct, reach)
    found: list[Candidate] = []
    for orientation in orientations:
        for turn in rotation_lattice(ROTATION_RANGE_DEG, ROTATION_STEP_DEG):
            found += _best_shifts(engine, coarse, turn @ orientation, centre, peaks)
    found.sort(key=lambda c: -c.score)
    return _distinct(found, centre, keep)


def _best_shifts(
    engine: MaskedCorrelation, volume: Grid, rotation: Array, centre: Array, peaks: int
) -> list[Candidate]:
    """Return the best translations of one rotation, each a local maximum."""
    n = engine.reach
    to_volume = np.eye(4)
    to_volume[:3, :3] = rotation.T * COARSE_MM
    to_volume[:3, 3] = centre - to_volume[:3, :3] @ np.full(3, (n - 1) / 2)
    values, valid = _sample(volume, np.linalg.inv(volume.index_to_mm) @ to_volume, (n, n, n))
    score = engine.score(values, valid)
    peak = score >= ndimage.maximum_filter(score, 3, mode="wrap")
    where = np.argwhere(peak & (score > 0.0))
    order = np.argsort(-score[tuple(where.T)], kind="stable")[:peaks]
    result = []
    for k, j, i in where[order]:
        shift = np.array([i, j, k], dtype=np.float64)
        size = np.array(engine.shape[::-1])
        shift = np.where(shift >= np.array(engine.ct.values.shape[::-1]), shift - size, shift)
        middle = engine.ct.index_to_mm[:3, 3] + COARSE_MM * (shift + (n - 1) / 2)
        pose = np.eye(4)
        pose[:3, :3] = rotation
        pose[:3, 3] = middle - rotation @ centre
        result.append(Candidate(pose, float(score[k, j, i])))
    return result


def pose_distance_mm(a: Array, b: Array, centre_volume_mm: Array, arm_mm: float = 50.0) -> float:
    """Return how far two poses lie apart: shift of the volume's centre and rotation at an arm, root of squares."""
    shift = (a[:3, :3] - b[:3, :3]) @ centre_volume_mm + a[:3, 3] - b[:3, 3]
    return float(np.hypot(np.linalg.norm(shift), arm_mm * rotation_angle_rad(a[:3, :3] @ b[:3, :3].T)))


def _distinct(candidates: list[Candidate], centre: Array, keep: int) -> list[Candidate]:
    """Return the best candidates of which no two lie within a coarse voxel or so of each other."""
    kept: list[Candidate] = []
    for candidate in candidates:
        if all(pose_distance_mm(candidate.pose, other.pose, centre) > 1.2 * COARSE_MM for other in kept):
            kept.append(candidate)
            if len(kept) == keep:
                break
    return kept
