"""Time of one DRR of vertebrae, with and without pose derivatives, beside RTK and plastimatch in the same run.

``masked``: bone alone; ``derivatives``: the same with its six derivatives; ``box``: the whole box of voxels, which is
what the peers project: box against box is the ratio that compares projectors.  Methods take turns within one run;
plastimatch, a program, follows each view.  Ours runs on one thread, RTK on all cores: the ratio of CPU times is the
fair one and stands beside that of wall times.  A graphics card, where there is one, draws the box, too, copies to and
from it included.  Milliseconds.  Peers that are not installed are named as missing.

    navsrv bench drr --json
    navsrv bench drr --case thoracolumbar --labels 30 31 32 33
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from navsrv.kernel.frames import CARM, CT, Rigid
from navsrv.kernel.projection import ProjectionModel
from navsrv.registration._drr_cuda import CudaVolume, present
from navsrv.registration.drr import DrrVolume, bone_volume
from navsrv.registration.images import CtImage
from simulators.bench.drr_peers import PLATE_MM, likeness, plastimatch_ms, rtk_projector

SDD_MM, SOURCE_ISO_MM = 1020.0, 700.0
RAYS: Final[dict[str, list[float]]] = {"ap": [0.0, 1.0, 0.0], "lateral": [1.0, 0.0, 0.0], "oblique": [0.57, 0.82, 0.0]}
KINDS: Final = ("wall_min_ms", "cpu_min_ms")


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
    if label_map is None:
        raise SystemExit(f"navsrv bench drr: {case}: a case with a label map is needed")
    place = np.eye(4)
    place[:3, :3], place[:3, 3] = ct.direction * ct.spacing_mm, ct.origin_mm
    return bone_volume(CtImage(ct.voxels, place), np.isin(label_map.voxels, labels))


def view(volume: DrrVolume, ray: list[float], pixels: int) -> ProjectionModel:
    """Return a square view along ``ray`` with image rows running to the feet."""
    beam = np.array(ray) / np.linalg.norm(ray)
    rows = np.array([0.0, 0.0, -1.0])
    rotation = np.stack([np.cross(rows, beam), rows, beam], axis=1)
    pose = Rigid(CT, CARM, rotation, volume.centre_ct_mm - SOURCE_ISO_MM * beam)
    return ProjectionModel.flat(pose.inverse(), (pixels, pixels), SDD_MM, PLATE_MM / pixels)


def timed(methods: dict[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
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


def measure(masked: DrrVolume, box: DrrVolume, model: ProjectionModel, rounds: int, peer_rounds: int) -> dict[str, Any]:
    """Return all figures of one view."""
    one = np.empty((1, 1, model.rows, model.columns), np.float32)
    seven = np.empty((1, 7, model.rows, model.columns), np.float32)
    methods: dict[str, Callable[[], object]] = {
        "masked": lambda: masked.render_into(one, [model]),
        "derivatives": lambda: masked.render_into(seven, [model]),
        "box": lambda: box.render_into(one, [model]),
    }
    ours = box.render([model])[0, 0]
    figures: dict[str, Any] = {"peers": {}}
    if present():
        card = CudaVolume(box)
        methods["gpu"] = lambda: card.render([model])
        methods["gpu derivatives"] = lambda: card.render([model], derivatives=True)
        figures["peers"]["gpu"] = likeness(ours, card.render([model])[0, 0])
    rtk = rtk_projector(box, model, SOURCE_ISO_MM)
    if rtk is not None:
        methods["rtk"] = rtk
        figures["peers"]["rtk"] = likeness(ours, rtk())
    figures |= timed(methods, rounds)
    found = plastimatch_ms(box, model, SOURCE_ISO_MM, peer_rounds)
    if found is not None:
        figures["peers"]["plastimatch"] = likeness(ours, found[1])
        if found[0] is not None:
            figures["plastimatch"] = found[0]
    for name, facts in figures["peers"].items():
        for kind in KINDS if name in figures else ():
            facts[f"{kind[:-7]}_over_box"] = figures[name][kind] / figures["box"][kind]
    return figures


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return every figure."""
    masked = bones(args.case, args.labels)
    box = DrrVolume(masked.values, masked.index_to_ct_mm, skip_empty=False)
    report: dict[str, Any] = {
        "voxels": list(masked.values.shape),
        "bone_voxels": int((masked.values > 0).sum()),
        "rounds": args.rounds,
        "load": list(os.getloadavg()),
        "views": {
            f"{name} {pixels}": measure(masked, box, view(masked, RAYS[name], pixels), args.rounds, args.peer_rounds)
            for pixels in args.pixels
            for name in args.views
        },
    }
    first = next(iter(report["views"].values()))
    report["missing"] = [peer for peer in ("rtk", "plastimatch") if peer not in first["peers"]]
    report["missing"] += [] if present() else ["a graphics card"]
    return report


def as_text(report: dict[str, Any]) -> str:
    """Return the figures as a table."""
    names = ["masked", "derivatives", "box", "rtk", "plastimatch", *(("gpu", "gpu derivatives") if present() else ())]
    lines = [
        f"{report['voxels']} voxels, {report['bone_voxels']} of bone; load {report['load'][0]:.1f};"
        " minimum of wall / CPU, ms",
        f"{'view':<14}" + "".join(f"{name:>16}" for name in names),
    ]
    for view_name, figures in report["views"].items():
        cells = [
            f"{figures[n]['wall_min_ms']:.2f} / {figures[n]['cpu_min_ms']:.2f}" if n in figures else "-" for n in names
        ]
        lines.append(f"{view_name:<14}" + "".join(f"{cell:>16}" for cell in cells))
        for peer, facts in figures["peers"].items():
            times = "too much load to be timed"
            if peer in figures:
                times = f"wall {facts['wall_over_box']:.1f}, CPU {facts['cpu_over_box']:.1f}"
            lines.append(
                f"    {peer} over box: {times};"
                f" pictures correlate {facts['correlation']:.5f}, means {facts['mean_ratio']:.4f}"
            )
    if report["missing"]:
        lines.append(f"not installed: {', '.join(report['missing'])}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="navsrv bench drr", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", help="a case with label map; default: made-up vertebrae")
    parser.add_argument("--labels", type=int, nargs="+", default=[30, 31, 32, 33], help="bones of the case")
    parser.add_argument("--pixels", type=int, nargs="+", default=[128, 256, 512], help="sides of the square detector")
    parser.add_argument("--views", nargs="+", choices=sorted(RAYS), default=["ap", "lateral", "oblique"])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--peer-rounds", type=int, default=3, help="calls of plastimatch (default %(default)s)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    report = run(args)
    print(json.dumps(report) if args.json else as_text(report))
    return 0
