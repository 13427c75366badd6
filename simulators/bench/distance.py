"""Time of one step (tip and shaft against six structures) beside vtkImplicitPolyDataDistance, in one run.

``hot``: our step alone in a loop.  ``paced``: at 250 Hz, asleep in between, as in a server.  ``interleaved``: the
methods take turns at every pose and push each other out of the caches, worse than a server's other work would.  VTK
measures the six tips, and 64 samples of each shaft (at fewer poses, since it takes long).  Times are wall time in
microseconds; run it on a quiet machine.

    navsrv bench distance --json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy.bench_surfaces import bench_meshes
from navsrv.anatomy.bvh import DistanceStructure
from navsrv.anatomy.mesh import Mesh
from navsrv.guidance.clearance import ClearanceEngine, Clearances, warm_up

Array = NDArray[np.float64]
LENGTH_MM, RADIUS_MM, SAMPLES = 120.0, 0.75, 64


def insertions(steps: int) -> tuple[Array, Array]:
    """Return tips (P, 3) and unit axes (P, 3) of a smooth path past and into the structures, about 0.1 mm a step."""
    t = np.linspace(0, 1, steps)
    tips = np.stack([70 * np.sin(3 * t + 1), -60 + 50 * np.cos(2.3 * t), 60 - 100 * t], axis=1)
    axes = np.stack([0.3 + 0.2 * np.sin(2 * t), 0.8 + 0 * t, -0.5 + 0.3 * np.cos(3 * t)], axis=1)
    return tips, axes / np.linalg.norm(axes, axis=1)[:, None]


def vtk_distance(mesh: Mesh) -> Any:
    """Return a vtkImplicitPolyDataDistance of ``mesh``."""
    from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray
    from vtkmodules.vtkCommonCore import vtkPoints
    from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkPolyData
    from vtkmodules.vtkFiltersCore import vtkImplicitPolyDataDistance

    cells = np.hstack([np.full((len(mesh.triangles), 1), 3), mesh.triangles]).astype(np.int64)
    points, polys, data = vtkPoints(), vtkCellArray(), vtkPolyData()
    points.SetData(numpy_to_vtk(mesh.vertices_mm.copy(), deep=True))
    polys.ImportLegacyFormat(numpy_to_vtkIdTypeArray(cells.ravel(), deep=True))
    data.SetPoints(points)
    data.SetPolys(polys)
    distance = vtkImplicitPolyDataDistance()
    distance.SetInput(data)
    distance.EvaluateFunction(0.0, 0.0, 0.0)
    return distance


def spread(us: list[float]) -> dict[str, float]:
    """Return median, 99th percentile and maximum (us)."""
    return {"p50": float(np.median(us)), "p99": float(np.percentile(us, 99)), "max": float(np.max(us))}


def timed(us: list[float], begin_ns: int) -> None:
    """Append the time since ``begin_ns`` to ``us``."""
    us.append((time.perf_counter_ns() - begin_ns) / 1e3)


def run(triangles: int, steps: int, vtk_every: int) -> dict[str, Any]:
    """Return all figures of one run."""
    begin = time.perf_counter()
    warm_up()
    result: dict[str, Any] = {"warm_up_s": time.perf_counter() - begin}
    meshes = list(bench_meshes(triangles).values())
    begin = time.perf_counter()
    structures = [DistanceStructure.build(mesh) for mesh in meshes]
    result["build_six_s"] = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:
        for i, structure in enumerate(structures):
            structure.save(Path(folder) / f"{i}.npz")
        begin = time.perf_counter()
        for i in range(len(structures)):
            DistanceStructure.load(Path(folder) / f"{i}.npz")
        result["load_six_s"] = time.perf_counter() - begin
    result["bytes_per_triangle"] = sum(s.nbytes for s in structures) / sum(len(m.triangles) for m in meshes)
    engine, out = ClearanceEngine(structures), Clearances(len(structures))
    result.update(compare(engine, out, [vtk_distance(mesh) for mesh in meshes], steps, vtk_every))
    return result


def compare(engine: ClearanceEngine, out: Clearances, judges: list[Any], steps: int, vtk_every: int) -> dict[str, Any]:
    """Return times of our step and of VTK's, and their largest differences."""
    tips, axes = insertions(steps)
    hot: list[float] = []
    visits: list[int] = []
    for tip, axis in zip(tips, axes, strict=True):
        begin = time.perf_counter_ns()
        engine.measure(tip, axis, LENGTH_MM, RADIUS_MM, out)
        timed(hot, begin)
        visits.append(int(out.tip_visits.sum() + out.shaft_visits.sum()))
    paced: list[float] = []
    for tip, axis in zip(tips[:1000], axes[:1000], strict=True):
        time.sleep(0.004)
        begin = time.perf_counter_ns()
        engine.measure(tip, axis, LENGTH_MM, RADIUS_MM, out)
        timed(paced, begin)
    ours: list[float] = []
    vtk_tips: list[float] = []
    vtk_shafts: list[float] = []
    tip_error, shaft_excess = 0.0, []
    along = np.linspace(0, LENGTH_MM, SAMPLES)
    for tip, axis in zip(tips[::vtk_every], axes[::vtk_every], strict=True):
        begin = time.perf_counter_ns()
        engine.measure(tip, axis, LENGTH_MM, RADIUS_MM, out)
        timed(ours, begin)
        x, y, z = tip.tolist()
        begin = time.perf_counter_ns()
        theirs = [judge.EvaluateFunction(x, y, z) for judge in judges]
        timed(vtk_tips, begin)
        samples = (tip - along[:, None] * axis).tolist()
        begin = time.perf_counter_ns()
        shafts = [min(judge.EvaluateFunction(a, b, c) for a, b, c in samples) for judge in judges]
        timed(vtk_shafts, begin)
        tip_error = max(tip_error, float(np.abs(np.array(theirs) - out.tip_distance_mm).max()))
        shaft_excess.append(np.array(shafts) - RADIUS_MM - out.shaft_distance_mm)
    step, rival = spread(ours), spread([a + b for a, b in zip(vtk_tips, vtk_shafts, strict=True)])
    return {
        "poses": {"hot": len(hot), "interleaved": len(ours)},
        "visits": spread([float(v) for v in visits]),
        "hot_us": spread(hot),
        "paced_us": spread(paced),
        "interleaved_us": step,
        "vtk_six_tips_us": spread(vtk_tips),
        "vtk_64_sample_shafts_us": spread(vtk_shafts),
        "vtk_over_ours_p50": rival["p50"] / step["p50"],
        "largest_tip_difference_mm": tip_error,
        "shaft_of_vtk_samples_minus_ours_mm": {
            "least": float(np.min(shaft_excess)),
            "mean": float(np.mean(shaft_excess)),
            "most": float(np.max(shaft_excess)),
        },
    }


def main(argv: list[str]) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triangles", type=int, default=100_000, help="of each structure (default %(default)s)")
    parser.add_argument("--steps", type=int, default=4000, help="poses of the hot loop (default %(default)s)")
    parser.add_argument("--vtk-every", type=int, default=40, help="every so many poses VTK too (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    arguments = parser.parse_args(argv)
    result = run(arguments.triangles, arguments.steps, arguments.vtk_every)
    if arguments.json:
        print(json.dumps(result))
        return 0
    for name, value in result.items():
        shown = value.items() if isinstance(value, dict) else [("", value)]
        print(f"{name:36s}", "  ".join(f"{k} {v:.4g}".strip() for k, v in shown))
    return 0
