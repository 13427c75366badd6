"""Owns what the C-arm is told and what its camera makes of it: orders, and pictures of the case by either model.

The quick model (one energy, no scatter) keeps the demo quick; the full one is ``world.xray``.  Refuses motion and
sockets.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy.case import Case, Volume
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Rigid
from navsrv.kernel.projection import ProjectionModel
from simulators.arguments import plan_of
from simulators.carm_motion import Position
from simulators.in_beam import parse_needle, parse_solids
from simulators.world.detector import Collimator, Receptor, intensifier
from simulators.world.imaging import VIEWS, Detector, Exposure, Projector, SteelNeedle, expose, steel_integrals
from simulators.world.scene import Stream, stream
from simulators.world.xray import Radiographer, Technique
from simulators.world.xray_solids import Solid, table_top

II_FIELD_MM: Final = 115.0
"""Radius of the image intensifier's screen: 9 inches."""

ORBIT_DEG: Final = 200.0
TILT_DEG: Final = 60.0
"""How far the angles go to either side."""


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """An order: where to go and, unless it is only to move, what to call the image and what lies in the beam."""

    to: Position
    view: str | None
    solids: Solid = ()
    needle: SteelNeedle | None = None


def parse_order(order: dict[str, Any]) -> Shot:
    """Return what a command asks for; InputError in one line otherwise."""
    expected = f'expected {{"do":"shoot","view":one of {", ".join(VIEWS)}}}, angles instead of the view, or "move"'
    if order.get("do") not in ("shoot", "move"):
        raise InputError(f'{expected}, or {{"do":"stop"}}')
    if "view" in order:
        if order["view"] not in VIEWS:
            raise InputError(expected)
        to, view = Position(VIEWS[order["view"]]), str(order["view"])
    elif "orbit_deg" in order:
        to = Position(_angle(order, "orbit_deg", ORBIT_DEG), _angle(order, "tilt_deg", TILT_DEG))
        view = f"orbit {to.orbit_deg:g} tilt {to.tilt_deg:g}"
    else:
        raise InputError(expected)
    if order["do"] == "move":
        return Shot(to, None)
    if order.get("needle") is None:
        return Shot(to, view, parse_solids(order.get("solids", [])))
    pieces = parse_needle(order["needle"])
    tip, axis = (np.array(order["needle"][key], dtype=np.float64) for key in ("tip_ct_mm", "axis_ct"))
    quick = SteelNeedle(tip, axis / np.linalg.norm(axis))
    return Shot(to, view, (*pieces, *parse_solids(order.get("solids", []))), quick)


def _angle(order: dict[str, Any], key: str, most: float) -> float:
    value = order.get(key, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -most <= value <= most:
        raise InputError(f"{key}: {value!r}; expected degrees from {-most:g} to {most:g}")
    return float(value)


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image as it is sent, and how its values are to be read."""

    pixels: NDArray[np.uint16]
    intensity: str
    kvp: float
    bits: int
    logarithmic: bool


Camera = Callable[[ProjectionModel, Rigid, Detector, Shot, int], Picture]
"""Takes a picture: the true view, T_ct_from_carm and detector behind it, what is in the beam, the picture's number."""


def quick_camera(ct: Volume, seed: int) -> Camera:
    """Return the camera of the demo: one energy, no scatter, a needle as the only solid."""
    projector, exposure, rng = Projector(ct), Exposure(), stream(seed, Stream.NOISE)

    def take(view: ProjectionModel, pose: Rigid, detector: Detector, shot: Shot, count: int) -> Picture:
        integrals = projector.line_integrals(pose, detector).astype(np.float64)
        if shot.needle is not None:
            integrals += steel_integrals(shot.needle, pose, detector)
        meaning = f"value = {exposure.gain:g} * ({exposure.offset:g} + ln(I / I0))"
        return Picture(expose(integrals, exposure, rng), meaning, 60.0, 16, True)

    return take


def full_camera(ct: Volume | None, seed: int, technique: Technique, receptor: Receptor, table: Solid) -> Camera:
    """Return the camera with the physics of ``world.xray``."""
    radiographer = Radiographer(ct)

    def take(view: ProjectionModel, pose: Rigid, detector: Detector, shot: Shot, count: int) -> Picture:
        noise = (seed, int(Stream.NOISE), count)
        image = radiographer.shoot(view, (*table, *shot.solids), technique, receptor, noise)
        used, top = image.receptor, 2**image.receptor.bits - 1
        if used.logarithmic:
            meaning = f"value = {top} * (1 + log10(I / I0 / {used.white:g}) / {used.decades:g})"
        else:
            meaning = f"value = {top / used.white:.6g} * I / I0"
        return Picture(image.pixels, meaning, technique.kvp, used.bits, used.logarithmic)

    return take


def receptor_of(args: argparse.Namespace) -> tuple[Receptor, Detector]:
    """Return the receptor that the arguments ask for, and the detector's geometry."""
    size = args.size
    if args.receptor == "intensifier":
        receptor = intensifier(size, size, II_FIELD_MM)
        return receptor, Detector(size, size, receptor.pixel_mm, principal_px=(0.5 * (size - 1),) * 2)
    standard = Detector()
    pixel_mm = standard.pixel_mm * standard.columns / size
    share = standard.columns / size
    principal = tuple((p + 0.5) / share - 0.5 for p in standard.principal_px)
    detector = Detector(size, size, pixel_mm, principal_px=(principal[0], principal[1]))
    return Receptor(pixel_mm), detector


def camera_of(args: argparse.Namespace, case: Case, receptor: Receptor) -> Camera:
    """Return the camera that the arguments ask for."""
    if args.fidelity == "quick":
        if args.receptor != "panel" or args.no_patient or args.iris_mm or args.brightness:
            raise InputError("--fidelity quick has a flat panel, a patient and no collimator; leave the others out")
        return quick_camera(case.ct(), args.seed)
    technique = Technique(args.kvp, quanta_per_mm2=args.dose, automatic_per_mm2=args.brightness)
    if args.iris_mm is not None:
        technique = replace(technique, collimator=Collimator(iris_mm=args.iris_mm))
    ct = None if args.no_patient else case.ct()
    table: Solid = ()
    if ct is not None and not args.no_table:
        middle = plan_of(case).target_ct_mm
        table = table_top(np.array([middle[0], ct.bounds_mm()[0, 1] - 14.0, middle[2]]))
    return full_camera(ct, args.seed, technique, receptor, table)
