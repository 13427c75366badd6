"""Time of one DRR of vertebrae, with and without pose derivatives, beside RTK's Joseph projector where it is installed.

Bone alone (``masked``), the same with its six derivatives, and the whole box of voxels (``box``), which is what RTK
projects; box against box is the ratio that compares projectors.  The methods take turns within one run.  Ours runs on
one thread; RTK uses all cores, so that CPU time is the fair figure: the ratio of CPU times is given as well.  Times in
milliseconds, minimum and median.

    python benchmarks/drr.py --json
    python benchmarks/drr.py --case thoracolumbar --labels 30 31 32 33 --peer rtk
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.frames import CARM, CT, Rigid
from navsrv.kernel.projection import ProjectionModel
from navsrv.registration.drr import DrrVolume, bone_volume
from navsrv.registration.images import CtImage

Array = NDArray[np.float64]
SDD_MM, SOURCE_ISO_MM, FIELD_MM = 1020.0, 700.0, 300.0
RAYS: dict[str, list[float]] = {"ap": [0.0, 1.0, 0.0], "lateral": [1.0, 0.0, 0.0], "oblique": [0.57, 0.82, 0.0]}


def phantom() -> CtImage:
    """Return four made-up vertebrae (HU), so that the benchmark needs no data."""
    k, j, i = np.indices((134, 110, 90), dtype=np.float32)
    hu = np.full(k.shape, 40.0)
    for level in range(4):
        z = k - 18 - 33 * level
        for cx, cy, rx, ry, rz in ((45, 35, 22, 16, 13), (45, 80, 3, 22, 8), (45, 55, 38, 6, 5)):
            r = ((i - cx) / rx) ** 2 + ((j - cy) / ry) ** 2 + (z / rz) ** 2
            hu = np.where(r < 1.0, 700.0 - 400.0 * (r < 0.75), hu)
    return CtImage(hu.astype(np.int16), np.eye(4))


def bones(case: str | None, labels: list[int]) -> DrrVolume:
    """Return the bone of a case's labels, or of the phantom, on voxels of 1 mm."""
    if case is None:
        image = phantom()
        return bone_volume(image, np.asarray(image.voxels) > 100)
    from navsrv.anatomy.builtin import ensure_case
    from navsrv.anatomy.case import Case

    loaded = Case.load(ensure_case(case))
    ct, label_map = loaded.ct(), loaded.labels()
    if ct is None or label_map is None:
        raise SystemExit(f"{case}: a case with a CT and a label map is needed")
    place = np.eye(4)
    place[:3, :3], place[:3, 3] = ct.direction * ct.spacing_mm, ct.origin_mm
    return bone_volume(CtImage(ct.voxels, place), np.isin(label_map.voxels, labels))


def view(volume: DrrVolume, ray: list[float], pixels: int) -> ProjectionModel:
    """Return a square view along ``ray`` with image rows running to the feet."""
    beam = np.array(ray) / np.linalg.norm(ray)
    rows = np.array([0.0, 0.0, -1.0])
    rotation = np.stack([np.cross(rows, beam), rows, beam], axis=1)
    pose = Rigid(CT, CARM, rotation, volume.centre_ct_mm - SOURCE_ISO_MM * beam)
    return ProjectionModel.flat(pose.inverse(), (pixels, pixels), SDD_MM, FIELD_MM / pixels)


def rtk_projector(volume: DrrVolume, model: ProjectionModel) -> Callable[[], Array]:
    """Return a function that projects the box with RTK's CPU Joseph filter."""
    import itk  # type: ignore[import-not-found,unused-ignore]
    from itk import RTK as rtk  # type: ignore[import-not-found,unused-ignore]

    image = itk.image_view_from_array(np.ascontiguousarray(volume.values))
    image.SetSpacing(np.linalg.norm(volume.index_to_ct_mm[:3, :3], axis=0).tolist())
    # RTK turns about its own isocentre: the volume is put where the C-arm sees it, the source on RTK's +z.
    pose, size = model.T_carm_from_object, model.columns
    to_rtk = np.diag([1.0, -1.0, -1.0])
    rotation = to_rtk @ pose.rotation
    corner = to_rtk @ pose.apply(volume.index_to_ct_mm[:3, 3]) + np.array([0.0, 0.0, SOURCE_ISO_MM])
    axes = rotation @ (volume.index_to_ct_mm[:3, :3] / np.linalg.norm(volume.index_to_ct_mm[:3, :3], axis=0))
    image.SetDirection(np.ascontiguousarray(axes))
    image.SetOrigin(corner.tolist())
    geometry = rtk.ThreeDCircularProjectionGeometry.New()
    geometry.AddProjection(SOURCE_ISO_MM, SDD_MM, 0.0)
    empty = rtk.constant_image_source(
        size=[size, size, 1],
        spacing=[FIELD_MM / size] * 2 + [1.0],
        origin=[-(size - 1) / 2 * FIELD_MM / size] * 2 + [0.0],
        ttype=[itk.Image[itk.F, 3]],
    )
    kind = itk.Image[itk.F, 3]
    projector = rtk.JosephForwardProjectionImageFilter[kind, kind].New()
    projector.SetInput(0, empty)
    projector.SetInput(1, image)
    projector.SetGeometry(geometry)
    projector.InPlaceOff()

    def project() -> Array:
        projector.Modified()
        projector.Update()
        # RTK's rows run up.
        result: Array = itk.array_view_from_image(projector.GetOutput())[0, ::-1]
        return result

    return project


def timed(methods: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Return wall and CPU time (ms) of methods that take turns."""
    wall: dict[str, list[float]] = {name: [] for name in methods}
    cpu: dict[str, list[float]] = {name: [] for name in methods}
    for method in methods.values():
        method()
    for _ in range(rounds):
        for name, method in methods.items():
            w, c = time.perf_counter(), time.process_time()
            method()
            wall[name].append((time.perf_counter() - w) * 1e3)
            cpu[name].append((time.process_time() - c) * 1e3)
    return {
        name: {
            "wall_min_ms": min(wall[name]),
            "wall_median_ms": statistics.median(wall[name]),
            "cpu_min_ms": min(cpu[name]),
            "cpu_median_ms": statistics.median(cpu[name]),
        }
        for name in methods
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return every figure."""
    masked = bones(args.case, args.labels)
    box = DrrVolume(masked.values, masked.index_to_ct_mm, skip_empty=False)
    report: dict[str, Any] = {
        "voxels": list(masked.values.shape),
        "bone_voxels": int((masked.values > 0).sum()),
        "rounds": args.rounds,
        "views": {},
    }
    for pixels in args.pixels:
        for name in args.views:
            model = view(masked, RAYS[name], pixels)
            out1 = np.empty((1, 1, pixels, pixels), np.float32)
            out7 = np.empty((1, 7, pixels, pixels), np.float32)
            methods: dict[str, Callable[[], object]] = {
                "masked": lambda m=model, o=out1: masked.render_into(o, [m]),  # type: ignore[misc]
                "derivatives": lambda m=model, o=out7: masked.render_into(o, [m]),  # type: ignore[misc]
                "box": lambda m=model, o=out1: box.render_into(o, [m]),  # type: ignore[misc]
            }
            figures: dict[str, Any] = {}
            if args.peer == "rtk":
                project = rtk_projector(masked, model)
                methods["rtk"] = project
                ours = box.render([model])[0, 0]
                figures["rtk_correlation"] = float(np.corrcoef(ours.ravel(), project().ravel())[0, 1])
                figures["rtk_mean_ratio"] = float(project().mean() / ours.mean())
            figures |= timed(methods, args.rounds)
            if args.peer == "rtk":
                for kind in ("wall_min_ms", "cpu_min_ms"):
                    figures[f"rtk_over_box_{kind[:-3]}"] = figures["rtk"][kind] / figures["box"][kind]
            report["views"][f"{name} {pixels}"] = figures
    return report


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", help="a case with label map; default: made-up vertebrae")
    parser.add_argument("--labels", type=int, nargs="+", default=[30, 31, 32, 33], help="bones of the case")
    parser.add_argument("--pixels", type=int, nargs="+", default=[128, 256, 512], help="sides of the square detector")
    parser.add_argument("--views", nargs="+", choices=sorted(RAYS), default=["ap", "lateral", "oblique"])
    parser.add_argument("--peer", choices=["rtk"], help="compare with RTK (itk-rtk must be installed beside navsrv)")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="print JSON, or write it to FILE")
    args = parser.parse_args()
    report = run(args)
    if args.json and args.json != "-":
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")
    elif args.json:
        print(json.dumps(report, indent=2))
    else:
        print(f"{report['voxels']} voxels, {report['bone_voxels']} of bone; minimum (median) wall, minimum CPU, ms")
        for name, figures in report["views"].items():
            print(name, end="")
            for method in ("masked", "derivatives", "box", "rtk"):
                if method in figures:
                    f = figures[method]
                    print(
                        f"  {method} {f['wall_min_ms']:.2f} ({f['wall_median_ms']:.2f}) {f['cpu_min_ms']:.2f}", end=""
                    )
            print("".join(f"  {k} {v:.4g}" for k, v in figures.items() if k.startswith("rtk_")))


if __name__ == "__main__":
    main()
