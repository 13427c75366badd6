"""Owns ``navsrv bench imagers``: what a simulated X-ray and a simulated O-arm volume of a case cost.

The X-ray is a C-arm's, with tissue, needle and table, scatter, noise and blur; the volume is projected and
reconstructed whole.  Beside them a yardstick: a loop of plain Python that does the same on every machine, by whose
time a busy or slow one is known.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from navsrv.anatomy.builtin import ensure_case
from navsrv.anatomy.case import Case
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import CARM, CT, VOLUME, Rigid
from navsrv.kernel.projection import ProjectionModel
from simulators.arguments import Parser, whole
from simulators.world.reconstruction import SpinProtocol, spin
from simulators.world.xray import Radiographer
from simulators.world.xray_solids import needle

XRAY_LIMIT_S: Final = 0.5
VOLUME_LIMIT_S: Final = 60.0
XRAY_PIXELS: Final = 512
VOLUME_VOXELS: Final = 256
SDD_MM: Final = 1020.0
PIXEL_MM: Final = 0.58
SOURCE_MM: Final = 640.0
YARD: Final = 3_000_000


def arguments() -> Parser:
    """Return the command line."""
    parser = Parser(
        "bench imagers", "What a simulated X-ray and a simulated volume cost.", "navsrv bench imagers --no-volume"
    )
    parser.prog = "navsrv bench imagers"
    parser.add_argument("--case", default="sacrum", help="a built-in case or a folder (sacrum)")
    parser.add_argument("--images", type=whole(1, 1000), default=7, help="X-rays, from all around (7)")
    parser.add_argument("--no-volume", action="store_true", help="the X-rays only")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    return parser


def main(argv: list[str]) -> int:
    """Measure and tell; return 1 when the median X-ray or the volume costs more than it may."""
    args = arguments().parse_args(argv)
    case = Case.load(ensure_case(args.case))
    if case.plan is None:
        raise InputError(f"{case.folder}: the case has no plan; images are taken of its target")
    radiographer = Radiographer(case.ct())
    target = case.plan.target_ct_mm
    found: dict[str, Any] = {
        "case": case.name,
        "load_average": round(os.getloadavg()[0], 2),
        "yardstick": timed(yardstick),
        "xray": {"pixels": XRAY_PIXELS, "images": xrays(radiographer, target, args.images)},
    }
    median = float(np.median([image["wall_s"] for image in found["xray"]["images"]]))
    found["xray"]["median_wall_s"] = round(median, 3)
    over = median > XRAY_LIMIT_S
    if not args.no_volume:
        protocol = replace(SpinProtocol(), size=(VOLUME_VOXELS,) * 3)
        place = Rigid(CT, VOLUME, np.eye(3), target)
        volume = timed(lambda: spin(radiographer, place, protocol, 1))
        found["volume"] = {"voxels": VOLUME_VOXELS, "views": protocol.gantry.views, **volume}
        over = over or volume["wall_s"] > VOLUME_LIMIT_S
    print(json.dumps(found) if args.json else table(found), flush=True)
    return int(over)


def xrays(radiographer: Radiographer, target_ct_mm: np.ndarray[Any, Any], count: int) -> list[dict[str, float]]:
    """Return the cost of X-rays from all around the target, after one that is not counted."""
    metal = needle(target_ct_mm, np.array([0.0, -1.0, 0.0]))
    result = []
    for number in range(count + 1):
        c, s = np.cos(2.0 * np.pi * number / count), np.sin(2.0 * np.pi * number / count)
        towards = np.array([[-s, c, 0.0], [0.0, 0.0, -1.0], [-c, -s, 0.0]])
        pose = Rigid(CARM, CT, towards, np.array([0.0, 0.0, SOURCE_MM]) - towards @ target_ct_mm)
        view = ProjectionModel.flat(pose, (XRAY_PIXELS, XRAY_PIXELS), SDD_MM, PIXEL_MM)
        result.append(timed(lambda v=view, n=number: radiographer.shoot(v, metal, seed=n)))  # type: ignore[misc]
    return result[1:]


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Return wall time and processor time (s, all threads) of some work."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {
        "wall_s": round(time.perf_counter() - wall, 3),
        "cpu_s": round(time.process_time() - cpu, 3),
    }


def yardstick() -> int:
    """Add numbers up, one by one: what plain Python does in a tenth of a second or two on a quiet machine."""
    total = 0
    for number in range(YARD):
        total += number
    return total


def table(found: dict[str, Any]) -> str:
    """Return the figures for a person."""
    images = found["xray"]["images"]
    cpu = float(np.median([image["cpu_s"] for image in images]))
    lines = [
        f"case {found['case']}; load average {found['load_average']}; yardstick {found['yardstick']['cpu_s']:.2f} s",
        f"X-ray {XRAY_PIXELS} x {XRAY_PIXELS}: median of {len(images)} {found['xray']['median_wall_s']:.2f} s wall,"
        f" {cpu:.2f} s of processors",
    ]
    if "volume" in found:
        volume = found["volume"]
        lines.append(
            f"volume {VOLUME_VOXELS}^3 of {volume['views']} views: {volume['wall_s']:.1f} s wall,"
            f" {volume['cpu_s']:.1f} s of processors"
        )
    return "\n".join(lines)
