"""Other ways to a distance from a surface, as rooms use them; each of one mesh, asked for points (N, 3) at a time.

vtkImplicitPolyDataDistance kept, and built anew at every pose (as an open module that warns of breaches does);
Open3D's ray casting scene; a grid of distances (voxels of 1 mm, trilinear between them).  Refuses to be fast for them:
each is called as its documentation shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy.mesh import Mesh

Array = NDArray[np.float64]
Distance = Callable[[Array], Array]
GRID_MM: Final = 1.0
MARGIN_MM: Final = 40.0
"""How far a grid goes beyond its surface; beyond that it knows nothing."""


def poly_data(mesh: Mesh) -> Any:
    """Return a mesh as vtkPolyData."""
    from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray
    from vtkmodules.vtkCommonCore import vtkPoints
    from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkPolyData

    cells = np.hstack([np.full((len(mesh.triangles), 1), 3), mesh.triangles]).astype(np.int64)
    points, polys, data = vtkPoints(), vtkCellArray(), vtkPolyData()
    points.SetData(numpy_to_vtk(mesh.vertices_mm.copy(), deep=True))
    polys.ImportLegacyFormat(numpy_to_vtkIdTypeArray(cells.ravel(), deep=True))
    data.SetPoints(points)
    data.SetPolys(polys)
    return data


def vtk_kept(mesh: Mesh) -> Distance:
    """Return the distance by a vtkImplicitPolyDataDistance that was built once."""
    judge = implicit_distance(poly_data(mesh))
    judge.EvaluateFunction(0.0, 0.0, 0.0)  # builds it

    def ask(points: Array) -> Array:
        return np.array([judge.EvaluateFunction(x, y, z) for x, y, z in points.tolist()])

    return ask


def vtk_rebuilt(mesh: Mesh) -> Distance:
    """Return the distance by a vtkImplicitPolyDataDistance that is built at every call."""
    data = poly_data(mesh)

    def ask(points: Array) -> Array:
        judge = implicit_distance(data)
        return np.array([judge.EvaluateFunction(x, y, z) for x, y, z in points.tolist()])

    return ask


def implicit_distance(data: Any) -> Any:
    """Return a vtkImplicitPolyDataDistance, which is built at its first use."""
    from vtkmodules.vtkFiltersCore import vtkImplicitPolyDataDistance

    judge = vtkImplicitPolyDataDistance()
    judge.SetInput(data)
    return judge


def open3d_scene(mesh: Mesh) -> Distance:
    """Return the distance by Open3D; ImportError where it is not installed."""
    import open3d

    scene = open3d.t.geometry.RaycastingScene()
    surface = open3d.t.geometry.TriangleMesh()
    surface.vertex.positions = open3d.core.Tensor(mesh.vertices_mm.astype(np.float32))
    surface.triangle.indices = open3d.core.Tensor(mesh.triangles.astype(np.int32))
    scene.add_triangles(surface)

    def ask(points: Array) -> Array:
        found = scene.compute_signed_distance(open3d.core.Tensor(points.astype(np.float32)))
        return np.asarray(found.numpy(), np.float64)

    ask(np.zeros((1, 3)))
    return ask


def distance_grid(mesh: Mesh) -> Distance:
    """Return the distance by a grid: the surface as voxels, their signed distance map, trilinear between them."""
    import SimpleITK as sitk
    from scipy.ndimage import map_coordinates
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkImagingStencil import vtkImageStencilToImage, vtkPolyDataToImageStencil

    low = np.floor(mesh.vertices_mm.min(axis=0) - MARGIN_MM)
    shape = np.ceil((mesh.vertices_mm.max(axis=0) + MARGIN_MM - low) / GRID_MM).astype(int) + 1
    stencil, image = vtkPolyDataToImageStencil(), vtkImageStencilToImage()
    stencil.SetInputData(poly_data(mesh))
    stencil.SetOutputOrigin(low.tolist())
    stencil.SetOutputSpacing(GRID_MM, GRID_MM, GRID_MM)
    stencil.SetOutputWholeExtent(0, shape[0] - 1, 0, shape[1] - 1, 0, shape[2] - 1)
    image.SetInputConnection(stencil.GetOutputPort())
    image.SetInsideValue(1)
    image.SetOutsideValue(0)
    image.SetOutputScalarTypeToUnsignedChar()
    image.Update()
    inside = vtk_to_numpy(image.GetOutput().GetPointData().GetScalars()).reshape(shape[::-1])
    voxels = sitk.GetImageFromArray(np.ascontiguousarray(inside))
    voxels.SetSpacing([GRID_MM] * 3)  # type: ignore[no-untyped-call]
    signed = sitk.SignedMaurerDistanceMap(voxels, False, False, True)  # type: ignore[no-untyped-call]
    field = sitk.GetArrayFromImage(signed).astype(np.float64)

    def ask(points: Array) -> Array:
        places = ((points - low) / GRID_MM).T[::-1]
        found: Array = map_coordinates(field, places, order=1, mode="constant", cval=np.nan)
        return found

    return ask
