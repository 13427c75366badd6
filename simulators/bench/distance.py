"""Time of one step (tip and shaft against six structures) beside other ways to the same distances, in one run.

``hot``: our step alone in a loop.  ``paced``: at 250 Hz, asleep in between, as in a server.  ``beside``: the methods
take turns at every pose and push each other out of the caches, worse than a server's other work would; each of the
others measures the six tips and 64 samples of each shaft, ``vtk rebuilt`` its tips alone, once for each structure.
``times_ours`` is over our step of the same turn, ``times_hot`` over our step alone: the others are as long either way.
``growth``: our hot step with more triangles and with more structures.  ``zone``: an ellipsoid of 15 x 15 x 20 mm at the
tip.  Times are wall time in microseconds; run it on a quiet machine.  Open3D is measured where it is installed.

    navsrv bench distance --json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy.bench_surfaces import bench_meshes
from navsrv.anatomy.bvh import DistanceStructure
from navsrv.anatomy.mesh import Mesh
from navsrv.guidance.clearance import ClearanceEngine, Clearances, Zone, ZoneClearances, warm_up
from navsrv.kernel.frames import rotation_z_onto
from simulators.bench.surface_peers import distance_grid, open3d_scene, vtk_kept, vtk_rebuilt

Array = NDArray[np.float64]
LENGTH_MM, RADIUS_MM, SAMPLES = 120.0, 0.75, 64
PEERS: Final = {
    "vtk kept": (vtk_kept, True),
    "vtk rebuilt": (vtk_rebuilt, False),
    "open3d": (open3d_scene, True),
    "grid 1 mm": (distance_grid, True),
}
"""Each with whether it is asked for the shafts too."""
REBUILDS: Final = 5
"""Poses at which a structure is built anew."""
GROWTH_TRIANGLES: Final = (10_000, 100_000, 1_000_000)
GROWTH_STRUCTURES: Final = (1, 6, 24)
APART_MM: Final = 40.0
"""Between the copies that make more structures: all of them stay within reach."""


def insertions(steps: int) -> tuple[Array, Array]:
    """Return tips (P, 3) and unit axes (P, 3) of a smooth path past and into the structures, about 0.1 mm a step."""
    t = np.linspace(0, 1, steps)
    tips = np.stack([70 * np.sin(3 * t + 1), -60 + 50 * np.cos(2.3 * t), 60 - 100 * t], axis=1)
    axes = np.stack([0.3 + 0.2 * np.sin(2 * t), 0.8 + 0 * t, -0.5 + 0.3 * np.cos(3 * t)], axis=1)
    return tips, axes / np.linalg.norm(axes, axis=1)[:, None]


def spread(us: list[float]) -> dict[str, float]:
    """Return median, 99th percentile and maximum (us)."""
    return {"p50": float(np.median(us)), "p99": float(np.percentile(us, 99)), "max": float(np.max(us))}


def timed(us: list[float], begin_ns: int) -> None:
    """Append the time since ``begin_ns`` to ``us``."""
    us.append((time.perf_counter_ns() - begin_ns) / 1e3)


def run(triangles: int, steps: int, every: int, growth: bool) -> dict[str, Any]:
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
    hot = hot_steps(engine, steps)
    result["hot_us"], result["visits"] = spread(hot[0]), spread(hot[1])
    result["paced_us"] = spread(paced_steps(engine, min(steps, 1000)))
    result["zone_us"] = spread(zone_steps(engine, min(steps, 1000)))
    result["beside"] = compare(engine, out, meshes, insertions(steps), every)
    for entry in result["beside"].values():
        if isinstance(entry, dict):
            entry["times_hot_p50"] = entry["us"]["p50"] / result["hot_us"]["p50"]
    if growth:
        result["growth"] = grown(structures, meshes, steps)
    return result


def hot_steps(engine: ClearanceEngine, steps: int) -> tuple[list[float], list[float]]:
    """Return the time (us) of each step alone in a loop, and its visits."""
    out = Clearances(engine.count)
    us: list[float] = []
    visits: list[float] = []
    for tip, axis in zip(*insertions(steps), strict=True):
        begin = time.perf_counter_ns()
        engine.measure(tip, axis, LENGTH_MM, RADIUS_MM, out)
        timed(us, begin)
        visits.append(float(out.tip_visits.sum() + out.shaft_visits.sum()))
    return us, visits


def paced_steps(engine: ClearanceEngine, steps: int) -> list[float]:
    """Return the time (us) of each step after 4 ms of sleep."""
    out = Clearances(engine.count)
    us: list[float] = []
    for tip, axis in zip(*insertions(steps), strict=True):
        time.sleep(0.004)
        begin = time.perf_counter_ns()
        engine.measure(tip, axis, LENGTH_MM, RADIUS_MM, out)
        timed(us, begin)
    return us


def zone_steps(engine: ClearanceEngine, steps: int) -> list[float]:
    """Return the time (us) of each step of a zone alone in a loop."""
    out, semi_axes_mm = ZoneClearances(engine.count), np.array([15.0, 15.0, 20.0])
    us: list[float] = []
    for tip, axis in zip(*insertions(steps), strict=True):
        zone = Zone(tip, rotation_z_onto(axis), semi_axes_mm)
        begin = time.perf_counter_ns()
        engine.measure_zone(zone, out)
        timed(us, begin)
    return us[1:]  # the first compiles


def compare(
    engine: ClearanceEngine, out: Clearances, meshes: list[Mesh], path: tuple[Array, Array], every: int
) -> dict[str, Any]:
    """Return the times of our step and of the others at the same poses, and by how much they differ."""
    result: dict[str, Any] = {}
    along = np.linspace(0, LENGTH_MM, SAMPLES)
    poses = list(zip(path[0][::every], path[1][::every], strict=True))
    for name, (make, shafts) in PEERS.items():
        begin = time.perf_counter()
        try:
            peers = [make(mesh) for mesh in meshes]
        except ImportError:
            result[name] = "not installed"
            continue
        entry: dict[str, Any] = {"build_six_s": time.perf_counter() - begin}
        ours: list[float] = []
        theirs: list[float] = []
        tip_off: list[Array] = []
        shaft_off: list[Array] = []
        for tip, axis in poses if shafts else poses[:: max(1, len(poses) // REBUILDS)]:
            begin_ns = time.perf_counter_ns()
            engine.measure(tip, axis, LENGTH_MM, RADIUS_MM, out)
            timed(ours, begin_ns)
            points = tip - along[:, None] * axis if shafts else tip[None]
            begin_ns = time.perf_counter_ns()
            found = np.array([peer(points) for peer in peers])
            timed(theirs, begin_ns)
            tip_off.append(np.abs(found[:, 0] - out.tip_distance_mm))
            if shafts:
                shaft_off.append(found.min(axis=1) - RADIUS_MM - out.shaft_distance_mm)
        entry |= {"poses": len(ours), "ours_us": spread(ours), "us": spread(theirs)}
        entry["times_ours_p50"] = entry["us"]["p50"] / entry["ours_us"]["p50"]
        entry["tip_error_mm"] = _error(np.array(tip_off))
        if shafts:
            entry["shaft_too_far_mm"] = _error(np.array(shaft_off))
        result[name] = entry
    return result


def _error(off: Array) -> dict[str, float]:
    """Return least, median and most of what is known, and the share that is not (outside a grid)."""
    known = off[np.isfinite(off)]
    return {
        "least": float(known.min()),
        "median": float(np.median(known)),
        "most": float(known.max()),
        "unknown_share": float(1.0 - known.size / off.size),
    }


def grown(structures: list[DistanceStructure], meshes: list[Mesh], steps: int) -> dict[str, Any]:
    """Return our hot step with more triangles, and with more structures."""
    result: dict[str, Any] = {"triangles": {}, "structures": {}}
    for triangles in GROWTH_TRIANGLES:
        begin = time.perf_counter()
        built = [DistanceStructure.build(mesh) for mesh in bench_meshes(triangles).values()]
        build_s = time.perf_counter() - begin
        us = spread(hot_steps(ClearanceEngine(built), steps)[0])
        result["triangles"][str(triangles)] = us | {"build_six_s": build_s}
    figures = [entry["p50"] for entry in result["triangles"].values()]
    result["triangles_most_over_least_p50"] = figures[-1] / figures[0]
    for count in GROWTH_STRUCTURES:
        many = list(structures[:count])
        for copy in range(1, -(-count // len(meshes))):
            shift = APART_MM * copy * np.array([1.0, -1.0, 0.5])
            many += [DistanceStructure.build(Mesh(m.vertices_mm + shift, m.triangles)) for m in meshes]
        result["structures"][str(count)] = spread(hot_steps(ClearanceEngine(many[:count]), steps)[0])
    return result


def main(argv: list[str]) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triangles", type=int, default=100_000, help="of each structure (default %(default)s)")
    parser.add_argument("--steps", type=int, default=4000, help="poses of the hot loop (default %(default)s)")
    parser.add_argument(
        "--every", type=int, default=40, help="every so many poses the others too (default %(default)s)"
    )
    parser.add_argument("--no-growth", action="store_true", help="leave out what takes longest")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    arguments = parser.parse_args(argv)
    result = run(arguments.triangles, arguments.steps, arguments.every, not arguments.no_growth)
    if arguments.json:
        print(json.dumps(result))
        return 0
    _print("", result)
    return 0


def _print(indent: str, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict) and any(isinstance(v, dict) for v in value.values()):
            print(f"{indent}{name}")
            _print(indent + "  ", value)
        else:
            shown = value.items() if isinstance(value, dict) else [("", value)]
            words = (f"{k} {v:.4g}" if isinstance(v, int | float) else f"{k} {v}" for k, v in shown)
            print(f"{indent + name:36s}", "  ".join(w.strip() for w in words))
