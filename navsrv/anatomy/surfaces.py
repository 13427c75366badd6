"""Owns how surfaces are made: from a label, a CT at a HU threshold, any field of numbers, a surface file.

Every surface that leaves here is in LPS mm, closed and outward (counter-clockwise seen from outside).  Refuses files
(``surface_files``).

A label is drawn voxel by voxel, so its border is a staircase.  It is blurred with a Gaussian not quite as wide as the
voxel is long, and cut not at one half but at the value that keeps the label's volume: a plain blur shrinks every round
thing, and a thin nerve most, which is the unsafe side.  Parts that the blur would lose or fill by more than a voxel are
put back.  How far the result lies from the voxels' faces is measured, never assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy.case import Volume
from navsrv.anatomy.mesh import Mesh
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array

BLUR: Final = 0.6
"""Standard deviation of the blur of a label, in longest voxel edges."""

LEVELS: Final = (0.15, 0.55)
"""Where a blurred label is cut, at most."""

VOLUME_TOLERANCE: Final = 0.01
VOLUME_STEPS: Final = 6

SHORTEST_STEP: Final = 1e-3
"""A surface never comes closer to a grid point than this part of the step: no degenerate triangles."""

DEVIATION_SAMPLES: Final = 4000


@dataclass(frozen=True, slots=True)
class LabelSurface:
    """A label's surface with what the smoothing did to it: distance from the voxels' faces in mm, and the volumes."""

    mesh: Mesh
    deviation_rms_mm: float
    deviation_max_mm: float
    label_volume_mm3: float


def field_surface(
    field: NDArray[Any], level: float, volume: Volume, corner_ijk: tuple[int, int, int] = (0, 0, 0)
) -> Mesh:
    """Return the closed surface around all points where an interpolated field is at least ``level``.

    Parameters
    ----------
    field : (nz, ny, nx)
        Values at voxel centres.  Beyond its edge the field counts as far below the level: the surface closes there.
    volume : Volume
        Gives origin, spacing and direction; its voxels are not looked at.
    corner_ijk : (i, j, k)
        Index in ``volume`` of the field's first value, for a field on a part of the grid.

    Raises
    ------
    InputError
        The field never reaches the level.
    """
    highest = float(field.max())
    if highest <= level:
        raise InputError(f"surface: the highest value is {highest:g}; no surface at {level:g}")
    drop = max(highest - level, level - float(field.min()))
    padded = np.pad(
        field.astype(np.float64 if field.dtype == np.float64 else np.float32), 1, constant_values=level - drop
    )
    _keep_off_grid_points(padded, level)
    points, triangles = _flying_edges(padded, level)
    mesh = Mesh(volume.ct_from_index(points - 1.0 + np.asarray(corner_ijk)), triangles)
    return mesh if signed_volume_mm3(mesh) > 0 else Mesh(mesh.vertices_mm, mesh.triangles[:, ::-1])


def isosurface(ct: Volume, level_hu: float) -> Mesh:
    """Return the closed surface around all of a CT at or above ``level_hu``, to a part of a voxel."""
    low, high = int(ct.voxels.min()), int(ct.voxels.max())
    if not low < level_hu <= high:
        raise InputError(f"threshold {level_hu:g} HU: the CT has {low} to {high} HU, so there is no surface at it")
    return field_surface(ct.voxels, level_hu, ct)


def label_surface(labels: Volume, label: int, blur_mm: float | None = None) -> LabelSurface:
    """Return the smooth closed surface of one label, of the same volume as its voxels.

    Parameters
    ----------
    labels : Volume
    label : int
    blur_mm : float, optional
        Standard deviation of the Gaussian; default ``BLUR`` times the longest voxel edge.

    Raises
    ------
    InputError
        The label map has no such label, or too few voxels of it to carry a surface.
    """
    return mask_surface(labels.voxels == label, labels, blur_mm, f"label {label}")


def mask_surface(
    mask: NDArray[np.bool_], grid: Volume, blur_mm: float | None = None, what: str = "mask"
) -> LabelSurface:
    """Return the smooth closed surface of a mask (nz, ny, nx) on the grid of ``grid``; see ``label_surface``."""
    from scipy import ndimage

    boxes = ndimage.find_objects(mask.astype(np.uint8))
    if not boxes:
        raise InputError(f"{what}: not in the label map")
    sigma = (blur_mm if blur_mm is not None else BLUR * float(grid.spacing_mm.max())) / grid.spacing_mm[::-1]
    margin = np.ceil(4 * sigma).astype(int) + 1
    inside = np.ascontiguousarray(mask[boxes[0]])
    part = np.pad(inside, [(int(m), int(m)) for m in margin])
    field = ndimage.gaussian_filter(part.astype(np.float32), sigma, truncate=4.0, mode="constant")
    voxels = int(inside.sum())
    above = np.partition(field.ravel(), field.size - voxels)[field.size - voxels]
    level = float(np.clip(above, *LEVELS))
    if field.max() <= level:
        raise InputError(f"{what}: {voxels} voxels are too few for a surface; expected a part of several voxels")
    corner = tuple(int(s.start - m) for s, m in zip(boxes[0][::-1], margin[::-1], strict=True))
    _hold(field, part, level)
    place = (corner[0], corner[1], corner[2])
    volume = voxels * float(np.prod(grid.spacing_mm))
    mesh, level = _surface_of_volume(field, level, grid, place, volume)
    # Pockets of background inside the label that the blur closed are no border of the structure.
    solid = part | (ndimage.binary_fill_holes(part) & (field >= level))
    faces = grid.ct_from_index(_face_centres(solid) + np.asarray(corner))
    distance = distance_to_surface(mesh, faces)
    return LabelSurface(mesh, float(np.sqrt(np.mean(distance**2))), float(distance.max()), volume)


def _surface_of_volume(
    field: NDArray[np.float32], level: float, grid: Volume, corner_ijk: tuple[int, int, int], volume_mm3: float
) -> tuple[Mesh, float]:
    """Return the surface of a field that encloses ``volume_mm3`` to 1 %, and its level, by halving intervals."""
    low, high = LEVELS
    for _ in range(VOLUME_STEPS):
        mesh = field_surface(field, level, grid, corner_ijk)
        excess = signed_volume_mm3(mesh) / volume_mm3 - 1.0
        if abs(excess) < VOLUME_TOLERANCE:
            break
        low, high = (level, high) if excess > 0 else (low, level)
        level = 0.5 * (low + high)
    return mesh, level


def require_within(mesh: Mesh, ct: Volume, what: str) -> None:
    """Raise InputError when a surface does not meet the box of the CT: then its space or its units are wrong."""
    low, high = ct.bounds_mm()
    mesh_low, mesh_high = mesh.vertices_mm.min(axis=0), mesh.vertices_mm.max(axis=0)
    if (mesh_low <= high).all() and (mesh_high >= low).all():
        return
    raise InputError(
        f"{what}: the surface lies outside the CT: {_box_text(mesh_low, mesh_high)}, the CT"
        f" {_box_text(low, high)} (LPS mm); is its space the other of LPS and RAS, or its unit not mm?"
    )


def signed_volume_mm3(mesh: Mesh) -> float:
    """Return the volume that a closed surface encloses; negative when it is inside out."""
    a, b, c = (mesh.vertices_mm[mesh.triangles[:, i]] - mesh.vertices_mm[0] for i in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c))) / 6.0


def open_edges(mesh: Mesh) -> int:
    """Return how many edges have no triangle on the other side; vertices at the same place count as one."""
    _, index = np.unique(mesh.vertices_mm, axis=0, return_inverse=True)
    corners = index.reshape(-1)[mesh.triangles]
    start, end = corners.ravel(), np.roll(corners, -1, axis=1).ravel()
    real = start != end
    low, high = np.minimum(start, end)[real], np.maximum(start, end)[real]
    sense = np.where(start < end, 1, -1)[real]
    _, which = np.unique(low.astype(np.int64) * len(mesh.vertices_mm) + high, return_inverse=True)
    return int(np.count_nonzero(np.bincount(which, weights=sense)))


def distance_to_surface(mesh: Mesh, points_ct_mm: Array) -> Array:
    """Return the unsigned distance (N,) in mm from points (N, 3) to a surface, by VTK's cell locator."""
    from vtkmodules.vtkCommonCore import reference
    from vtkmodules.vtkCommonDataModel import vtkGenericCell, vtkStaticCellLocator

    locator: Any = vtkStaticCellLocator()
    locator.SetDataSet(to_polydata(mesh))
    locator.BuildLocator()
    cell, cell_id, sub_id, squared = vtkGenericCell(), reference(0), reference(0), reference(0.0)
    nearest = [0.0, 0.0, 0.0]
    result = np.empty(len(points_ct_mm))
    for n, point in enumerate(points_ct_mm):
        locator.FindClosestPoint(point, nearest, cell, cell_id, sub_id, squared)
        result[n] = np.sqrt(squared.get())
    return result


def to_polydata(mesh: Mesh) -> Any:
    """Return the mesh as vtkPolyData with float64 points."""
    from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray
    from vtkmodules.vtkCommonCore import vtkPoints
    from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkPolyData

    points: Any = vtkPoints()
    points.SetData(numpy_to_vtk(mesh.vertices_mm, deep=True))
    cells: Any = vtkCellArray()
    offsets = np.arange(0, 3 * len(mesh.triangles) + 1, 3, dtype=np.int64)
    connectivity = np.ascontiguousarray(mesh.triangles.ravel(), dtype=np.int64)
    cells.SetData(numpy_to_vtkIdTypeArray(offsets, deep=True), numpy_to_vtkIdTypeArray(connectivity, deep=True))
    polydata: Any = vtkPolyData()
    polydata.SetPoints(points)
    polydata.SetPolys(cells)
    return polydata


def from_polydata(polydata: Any) -> tuple[Array, NDArray[np.int32]]:
    """Return vertices (N, 3) and triangles (M, 3) of a vtkPolyData that holds only triangles."""
    from vtkmodules.util.numpy_support import vtk_to_numpy

    if polydata.GetNumberOfPoints() == 0 or polydata.GetNumberOfPolys() == 0:
        return np.zeros((0, 3)), np.zeros((0, 3), np.int32)
    points = vtk_to_numpy(polydata.GetPoints().GetData()).astype(np.float64)
    triangles = vtk_to_numpy(polydata.GetPolys().GetConnectivityArray()).reshape(-1, 3).astype(np.int32)
    return points, triangles


def _keep_off_grid_points(field: NDArray[Any], level: float) -> None:
    """Move, in place, values that all but equal the level: where they do, a cell would yield triangles without area."""
    close = np.argwhere(np.abs(field - level) < SHORTEST_STEP * (field.max() - field.min()))
    close = close[((close > 0) & (close < np.array(field.shape) - 1)).all(axis=1)]
    if len(close) == 0:
        return
    here = field[tuple(close.T)]
    steps = np.zeros(len(close))
    for axis in range(3):
        for side in (-1, 1):
            beside = close.copy()
            beside[:, axis] += side
            steps = np.maximum(steps, np.abs(field[tuple(beside.T)].astype(np.float64) - here))
    least = SHORTEST_STEP * steps
    moved = np.where(here >= level, np.maximum(here, level + least), np.minimum(here, level - least))
    field[tuple(close.T)] = moved


def _hold(field: NDArray[np.float32], mask: NDArray[np.bool_], level: float) -> None:
    """Put back, in place, what lies over a voxel beyond the blurred border: thin spurs lost, narrow gaps filled."""
    from scipy import ndimage

    near = np.ones((3, 3, 3), bool)
    above = field >= level
    lost = mask & ~ndimage.binary_dilation(above, near)
    filled = above & ~ndimage.binary_dilation(mask, near)
    field[lost] = 1.0
    field[filled] = 0.0


def _flying_edges(field: NDArray[Any], level: float) -> tuple[Array, NDArray[np.int32]]:
    """Return vertices (N, 3) in indices (i, j, k) of ``field``, and triangles (M, 3)."""
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkFiltersCore import vtkFlyingEdges3D

    image: Any = vtkImageData()
    image.SetDimensions(*field.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(field).ravel(), deep=False))
    cutter: Any = vtkFlyingEdges3D()
    cutter.SetInputData(image)
    cutter.SetValue(0, level)
    cutter.ComputeNormalsOff()
    cutter.ComputeGradientsOff()
    cutter.ComputeScalarsOff()
    cutter.Update()
    return from_polydata(cutter.GetOutput())


def _face_centres(mask: NDArray[np.bool_]) -> Array:
    """Return indices (i, j, k), (N, 3), of the centres of at most ``DEVIATION_SAMPLES`` faces on the mask's border."""
    centres = []
    for axis in range(3):
        low = np.argwhere(np.diff(mask.astype(np.int8), axis=axis) != 0).astype(np.float64)
        low[:, axis] += 0.5
        centres.append(low[:, ::-1])
    every = np.concatenate(centres)
    return every[:: max(1, len(every) // DEVIATION_SAMPLES)]


def _box_text(low: Array, high: Array) -> str:
    return " ".join(f"{axis} {a:.0f} to {b:.0f}" for axis, a, b in zip("xyz", low, high, strict=True))
