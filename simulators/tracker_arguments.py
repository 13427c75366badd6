"""Owns what the command lines of the tracker simulators share: the stage, the tracker that watches it, its manners."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from navsrv.anatomy.builtin import ensure_case
from navsrv.anatomy.case import Case
from navsrv.kernel.errors import InputError
from simulators.arguments import CASE, Parser, breathing_of, number, plan_of, whole
from simulators.exposures import Settings, Tracker
from simulators.stages import MAGNETIC_CENTRE_MM, NEEDLE, REFERENCE, Circling, Procedure, Stage
from simulators.world.bending import GAUGE_MM, Bending
from simulators.world.drift import story_for_case
from simulators.world.insertion import Needle
from simulators.world.markers import Camera, Coils, Jittered, Magnetic, Optical, Watcher
from simulators.world.patient import Patient, Respiration
from simulators.world.scene import Scene
from simulators.world.truth import Truth

CAMERAS: Final = {
    "vega": Camera(0.03, systematic_mm=0.08, placement_mm=0.05),
    "spectra": Camera(0.06, systematic_mm=0.15, placement_mm=0.08),
}
"""Noise of one marker that gives about the figures reported for these cameras: jitter near 0.1 and 0.2 mm at 1.5 m,
volumetric error near 0.12 and 0.25 mm."""
NOISE_MM: Final = 0.1
NOISE_DEG: Final = 0.03
MAX_NAME: Final = 20 - len("ToTracker")
ORDERS: Final = (
    "Orders, one JSON object a line on standard input; the end of standard input stops it:\n"
    '  {"do":"insert"}                               begin the insertion (with --case)\n'
    '  {"do":"hide","tool":"Needle","seconds":3}     out of view\n'
    '  {"do":"block","tool":"Needle","seconds":3}    an arm in its line of sight (with --camera)\n'
    '  {"do":"carry","tool":"Needle","away_mm":2000} farther from the camera, out of its volume\n'
    '  {"do":"unplug","tool":"Needle"}  {"do":"plug","tool":"Needle"}\n'
    '  {"do":"knock","mm":[0,3,0]}                   the reference, in its own axes (with --case)\n'
    '  {"do":"shift","mm":[0,0,5]}                   the patient, in CT axes (with --case)\n'
)


def add_stage(parser: Parser) -> None:
    """Add the arguments of what happens and of who watches."""
    parser.add_argument("--case", type=ensure_case, metavar="CASE", help=f"{CASE}; without it the tools circle")
    parser.add_argument(
        "--seed", type=whole(0, 2**63), default=0, help="decides everything drawn, and a case's room (0)"
    )
    parser.add_argument(
        "--tools", default=f"{NEEDLE},{REFERENCE}", metavar="A,B", help="tools, NAMEToTracker each (%(default)s)"
    )
    parser.add_argument("--rate-hz", type=number(1.0, 1000.0, "Hz"), default=60.0, help="exposures per second (60)")
    parser.add_argument("--speed", type=number(0.1, 20.0), default=1.0, help="how fast the story of a case goes (1)")
    parser.add_argument(
        "--breathing-mm", type=number(0.0, 50.0, "mm"), default=0.0, help="rise of the back in a case (0: none)"
    )
    parser.add_argument("--irregular", type=number(0.0, 0.5), default=0.0, help="how irregular breaths are (0; 0.15)")
    parser.add_argument(
        "--gauge", type=int, choices=tuple(GAUGE_MM), help="let the needle of a case bend as this gauge does"
    )
    parser.add_argument(
        "--camera",
        choices=(*CAMERAS, "aurora"),
        help="noise of each marker, lines of sight, volume (default: pose noise)",
    )
    parser.add_argument("--noise-mm", type=number(0.0, 10.0, "mm"), help=f"rms position noise of a pose ({NOISE_MM:g})")
    parser.add_argument(
        "--noise-deg", type=number(0.0, 10.0, "deg"), help=f"rms rotation noise of a pose ({NOISE_DEG:g})"
    )
    parser.add_argument(
        "--truth", type=Path, metavar="FILE", help="write the true poses beside those sent (JSON lines)"
    )


def _names(parser: Parser, args: argparse.Namespace) -> tuple[str, ...]:
    """Return the tools' names; complains where OpenIGTLink or PLUS could not carry one."""
    names = tuple(name.strip() for name in args.tools.split(","))
    for name in names:
        if not name.isascii() or not name.isidentifier() or len(name) > MAX_NAME:
            parser.error(f"--tools {args.tools}: {name!r}: expected letters and digits, at most {MAX_NAME}")
    if len(set(names)) < len(names) or len(names) > 12:
        parser.error(f"--tools {args.tools}: expected at most 12 different names")
    return names


def _stage(parser: Parser, args: argparse.Namespace) -> Stage:
    """Return what happens in front of the tracker."""
    names = _names(parser, args)
    if args.case is None:
        for option in ("breathing_mm", "irregular", "gauge"):
            if getattr(args, option):
                parser.error(f"--{option.replace('_', '-')} needs --case CASE: without it nobody lies there")
        if args.camera == "aurora":
            return Circling(names, MAGNETIC_CENTRE_MM, 0.6)
        return Circling(names)
    if args.camera == "aurora":
        parser.error("--camera aurora: a case's room has an optical camera 2 m away; leave out --case")
    case = Case.load(args.case)
    plan = plan_of(case)
    scene = Scene.from_seed(args.seed, plan.target_ct_mm, breathing_of(args))
    story = story_for_case(case, Truth.from_case(args.case), Needle(), args.seed)
    bending = None if args.gauge is None else Bending.from_seed(args.seed, args.gauge)
    return Procedure(scene, story, _patient(scene, args, plan.target_ct_mm), names, bending)


def _patient(scene: Scene, args: argparse.Namespace, target_ct_mm: np.ndarray) -> Patient:
    if not args.irregular or scene.breathing is None:
        return Patient.of_scene(scene, centre_ct_mm=target_ct_mm)
    breath = Respiration(
        args.breathing_mm, scene.breathing.period_s, (0.0, 1.0, 0.0), irregularity=args.irregular, seed=args.seed
    )
    return Patient(scene.T_tracker_from_ct, scene.T_ct_from_ref, ("bone",), (breath,), target_ct_mm)


def _watcher(parser: Parser, args: argparse.Namespace, stage: Stage, bounded: bool = True) -> Watcher:
    """Return what watches the stage; unless ``bounded``, its volume is left to the device."""
    if args.camera is not None and (args.noise_mm is not None or args.noise_deg is not None):
        parser.error("--camera has the noise of its markers; leave out --noise-mm and --noise-deg")
    if args.camera == "aurora":
        return Magnetic(args.seed, Coils() if bounded else Coils(volume=None))
    if args.camera is not None:
        camera = CAMERAS[args.camera]
        return Optical(args.seed, camera if bounded else replace(camera, volume=None), stage.bodies)
    noise_deg = NOISE_DEG if args.noise_deg is None else args.noise_deg
    return Jittered(args.seed, NOISE_MM if args.noise_mm is None else args.noise_mm, float(np.radians(noise_deg)))


def tracker_of(parser: Parser, args: argparse.Namespace, hidden: str | None = None) -> Tracker:
    """Return the tracker that the arguments ask for; without ``hidden`` for a device that judges its own volume."""
    stage = _stage(parser, args)
    settings = Settings(args.rate_hz, args.speed, "last" if hidden is None else hidden, args.insert_after_s)
    return Tracker(stage, _watcher(parser, args, stage, hidden is not None), settings)


def require_case(args: argparse.Namespace) -> None:
    """Refuse to begin an insertion where there is no case."""
    if args.case is None and args.insert_after_s is not None:
        raise InputError("--insert-after-s needs --case CASE: without it there is nothing to insert into")
