"""The compiled truth against the slow one and against VTK, which share nothing with it."""

from pathlib import Path

import numpy as np
import pytest
from vtkmodules.vtkCommonCore import vtkPoints
from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkPolyData
from vtkmodules.vtkFiltersCore import vtkImplicitPolyDataDistance

from navsrv.anatomy.case import Case
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array
from simulators.world.solids import TubeStructures
from simulators.world.truth import BallChain, Truth, Union

RADIUS_MM = 1.5


def chain(rng: np.random.Generator, cone: bool) -> BallChain:
    start, end = rng.uniform(-30.0, 30.0, (2, 3))
    first = float(rng.uniform(1.0, 6.0))
    # A round cone whose one ball lies within the other is no cone: the radii differ by less than the length.
    other = first + 0.5 * float(rng.uniform(-1.0, 1.0)) * min(first, float(np.linalg.norm(end - start)))
    return BallChain(start, end, first, other if cone else first)


def needles(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Return needles anywhere, then one that goes little by little: what is far is passed over from pose to pose."""
    tips, axes = rng.uniform(-40.0, 40.0, (count, 3)), rng.normal(size=(count, 3))
    tips[count // 2 :] = tips[0] + np.linspace(0.0, 1.0, count - count // 2)[:, None] * (tips[1] - tips[0])
    axes[count // 2 :] = axes[0]
    return tips, tips - 120.0 * axes / np.linalg.norm(axes, axis=1, keepdims=True)


def test_least_distances_of_tips_and_shafts_are_those_of_the_slow_truth() -> None:
    rng = np.random.default_rng(5)
    shapes = {
        "tubes": Union(tuple(chain(rng, False) for _ in range(6))),
        "cones": Union(tuple(chain(rng, True) for _ in range(6))),
    }
    truth, names = Truth(shapes), ("tubes", "cones")
    fast = TubeStructures.of(truth, names)
    tips, hubs = needles(rng, 60)
    slow_tip, slow_shaft = truth.distance(tips), truth.shaft_distance(tips, hubs, RADIUS_MM)
    shaft = fast.shaft_distance(tips, hubs, RADIUS_MM)
    assert (shaft < 0.0).any(axis=0).all(), "no needle touches: the inside would go untested"
    for s, name in enumerate(names):
        assert np.abs(fast.tip_distance(tips)[:, s] - slow_tip[name]).max() < 1e-9
        assert np.abs(shaft[:, s] - slow_shaft[name]).max() < 2e-5


def vtk_distance(case: Case, name: str, points: Array) -> Array:
    mesh = case.mesh(name)
    data, vertices, cells = vtkPolyData(), vtkPoints(), vtkCellArray()
    for vertex in mesh.vertices_mm.tolist():
        vertices.InsertNextPoint(vertex)
    for triangle in mesh.triangles.tolist():
        cells.InsertNextCell(3, triangle)
    data.SetPoints(vertices)
    data.SetPolys(cells)
    distance = vtkImplicitPolyDataDistance()
    distance.SetInput(data)
    return np.array([distance.EvaluateFunction(point) for point in points.tolist()])


def test_the_truth_of_the_phantom_is_what_vtk_finds_on_its_surfaces(phantom: Path) -> None:
    # The surfaces were made from the solids on a grid: they lie within a tenth of a millimetre of them.
    case, truth = Case.load(phantom), Truth.from_case(phantom)
    fast = TubeStructures.of(truth, ("Nerve", "Vessel"))
    rng = np.random.default_rng(6)
    tips = rng.uniform([-30.0, 0.0, -30.0], [30.0, 40.0, 30.0], (12, 3))
    hubs = tips + 60.0 * np.array([0.1, 0.99, 0.05])
    along = np.linspace(0.0, 1.0, 241)[:, None]
    shaft = fast.shaft_distance(tips, hubs, RADIUS_MM)
    for s, name in enumerate(fast.names):
        assert np.abs(vtk_distance(case, name, tips) - fast.tip_distance(tips)[:, s]).max() < 0.1
        found = [vtk_distance(case, name, t + along * (h - t)).min() for t, h in zip(tips, hubs, strict=True)]
        assert np.abs(np.array(found) - RADIUS_MM - shaft[:, s]).max() < 0.1


def test_what_is_not_made_of_tubes_is_refused(phantom: Path) -> None:
    with pytest.raises(InputError, match="Target: is not made of tubes"):
        TubeStructures.of(Truth.from_case(phantom), ("Target",))
    with pytest.raises(InputError, match="Liver: the case has no such structure"):
        TubeStructures.of(Truth.from_case(phantom), ("Liver",))
