"""Owns how parallel planes make one volume: their order, and what keeps them from being one.

Refuses to guess: planes of several orientations or sizes, two at one place, a missing one.  A gantry tilt (steps that
are not perpendicular to the planes) is told, and ``straighten`` resamples it away within the planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.frames import Array, frozen_array
from navsrv.wire.dicom.attributes import DicomFault
from navsrv.wire.dicom.planes import Plane

STEP_TOLERANCE: Final = 0.02
"""Largest part of the slice distance by which a step may differ from the others."""
OFF_LINE_PX: Final = 0.1
"""Largest distance, in pixels, of a slice's corner from the line through the others."""
TILT_PX: Final = 0.1
"""Drift of the corner within its plane over the whole stack, in pixels, from which on it is a tilt and no rounding."""
SAME_PLACE: Final = 0.01
"""Part of the usual step below which two slices lie at one place."""
ANGLE_TOLERANCE: Final = 2e-3
"""Radians by which the orientations of one volume may differ: decimals of direction cosines, never another plane."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The places of one volume's voxels.

    Attributes
    ----------
    order : tuple of int
        Index of the plane that becomes slice k; k increases along the planes' normal, so the axes are right-handed.
    matrix : (4, 4)
        Index (i, j, k, 1) of a voxel's centre to LPS mm; i counts columns, j rows.  With a tilt it shears.
    tilt_rad : float
        Angle between the step and the normal; 0 where it is rounding.
    """

    order: tuple[int, ...]
    matrix: Array
    tilt_rad: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", frozen_array(self.matrix, (4, 4)))


def stack(planes: Sequence[Plane], names: Sequence[str]) -> Grid:
    """Return the grid of parallel planes in any order.

    Parameters
    ----------
    names : sequence of str
        What each plane is called in a fault: a file, an instance number.

    Raises
    ------
    DicomFault
        Fewer than two planes; mixed sizes, spacings or orientations; two at one place; uneven steps; off the line.
    """
    if len(planes) < 2:
        raise DicomFault("one slice only; expected a volume of at least two")
    first = planes[0]
    for plane, name in zip(planes, names, strict=True):
        _require_like(first, names[0], plane, name)
    normal = first.normal
    positions = np.array([plane.position_mm for plane in planes])
    along = positions @ normal
    order = tuple(int(n) for n in np.argsort(along, kind="stable"))
    names = [names[n] for n in order]
    positions = positions[list(order)]
    _require_even_steps(along[list(order)], names)
    step = (positions[-1] - positions[0]) / (len(planes) - 1)
    k = np.arange(len(planes))[:, None]
    off = np.linalg.norm(positions - (positions[0] + k * step), axis=1)
    worst = int(off.argmax())
    if off[worst] > max(OFF_LINE_PX * float(first.spacing_mm.min()), STEP_TOLERANCE * float(step @ normal)):
        raise DicomFault(f"slice {names[worst]} lies {off[worst]:.2f} mm off the line of the others")
    across = np.array([step @ first.along_row, step @ first.along_column])
    tilted = bool((np.abs(across) * (len(planes) - 1) > TILT_PX * first.spacing_mm).any())
    if not tilted:
        step = normal * float(step @ normal)
    matrix = np.eye(4)
    matrix[:3, 0] = first.along_row * first.spacing_mm[0]
    matrix[:3, 1] = first.along_column * first.spacing_mm[1]
    matrix[:3, 2] = step
    matrix[:3, 3] = positions[0]
    tilt = float(np.arctan2(np.linalg.norm(across), step @ normal)) if tilted else 0.0
    return Grid(order, matrix, tilt)


def straighten(voxels: NDArray[Any], grid: Grid, outside: float) -> tuple[NDArray[Any], Array]:
    """Return a volume without gantry tilt: (voxels, matrix), slices perpendicular to their step.

    Each slice is shifted within its own plane, linearly between pixels; the slices grow so that nothing is cut off.

    Parameters
    ----------
    voxels : (k, j, i)
        In the grid's order.
    outside : float
        What stands where no slice reaches.
    """
    matrix = np.array(grid.matrix)
    if grid.tilt_rad == 0.0:
        return voxels, matrix
    spacing = np.linalg.norm(matrix[:3, :2], axis=0)
    axes = matrix[:3, :2] / spacing
    drift = (axes.T @ matrix[:3, 2]) / spacing  # pixels from slice to slice, along i and j
    slices, rows, columns = voxels.shape
    ends = drift * (slices - 1)
    low = np.floor(np.minimum(ends, 0.0)).astype(int)
    high = np.ceil(np.maximum(ends, 0.0)).astype(int)
    grown_columns, grown_rows = np.array((columns, rows)) + high - low
    out = np.full((slices, grown_rows, grown_columns), outside, dtype=np.float32)
    for k in range(slices):
        shift = drift * k - low
        whole = np.floor(shift).astype(int)
        fine = shift - whole
        slab = np.full((rows + 2, columns + 2), outside, dtype=np.float32)
        slab[1:-1, 1:-1] = voxels[k]
        # A pixel at x lands at x + shift: its neighbours share it by how near they are.
        slab = (1.0 - fine[0]) * slab[:, 1:] + fine[0] * slab[:, :-1]
        slab = (1.0 - fine[1]) * slab[1:] + fine[1] * slab[:-1]
        j, i = whole[1], whole[0]
        height, width = min(rows + 1, grown_rows - j), min(columns + 1, grown_columns - i)
        out[k, j : j + height, i : i + width] = slab[:height, :width]
    normal = np.cross(axes[:, 0], axes[:, 1])
    matrix[:3, 3] += matrix[:3, :2] @ low
    matrix[:3, 2] = normal * float(matrix[:3, 2] @ normal)
    if voxels.dtype.kind in "iu":
        out = np.rint(out)
    return out.astype(voxels.dtype), matrix


def _require_like(first: Plane, first_name: str, plane: Plane, name: str) -> None:
    if (plane.columns, plane.rows) != (first.columns, first.rows):
        sizes = f"{plane.columns} x {plane.rows} and {first.columns} x {first.rows}"
        raise DicomFault(f"slices {name} and {first_name} have {sizes} pixels; expected one size")
    if np.abs(plane.spacing_mm / first.spacing_mm - 1.0).max() > 1e-3:
        pixels = f"{plane.spacing_mm.round(4).tolist()} and {first.spacing_mm.round(4).tolist()}"
        raise DicomFault(f"slices {name} and {first_name} have pixels of {pixels} mm; expected one spacing")
    turn = max(
        float(np.linalg.norm(plane.along_row - first.along_row)),
        float(np.linalg.norm(plane.along_column - first.along_column)),
    )
    if turn > ANGLE_TOLERANCE:
        angle = np.degrees(2.0 * np.arcsin(min(turn / 2.0, 1.0)))
        raise DicomFault(
            f"slices of several orientations: {name} is turned by {angle:.1f} degrees against {first_name};"
            " is it a localizer?"
        )


def _require_even_steps(along_mm: Array, names: Sequence[str]) -> None:
    steps = np.diff(along_mm)
    usual = float(np.median(steps))
    nearest = int(steps.argmin())
    if steps[nearest] <= max(SAME_PLACE * usual, 1e-4):
        raise DicomFault(
            f"slices {names[nearest]} and {names[nearest + 1]} lie at one place; are these several phases?"
        )
    odd = np.flatnonzero(np.abs(steps - usual) > STEP_TOLERANCE * usual)
    if len(odd):
        n = int(odd[0])
        raise DicomFault(
            f"slices {names[n]} and {names[n + 1]} lie {steps[n]:.3f} mm apart, the others {usual:.3f} mm;"
            " is a slice missing?"
        )
