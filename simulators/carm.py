"""Owns the C-arm simulator: pushes its pose at 30 Hz and, when told to shoot, moves to a view and takes an X-ray image.

The image comes with the stamp of the exposure, and with the poses of C-arm and detector at that stamp.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from navsrv.anatomy.case import Case, Volume
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array, Rigid, rotation_from_vector
from navsrv.wire.openigtlink import Image, Message, Metadata, Transform, encode, timestamp_from_ns
from simulators.arguments import Parser, add_room, add_server, breathing_of, number, plan_of
from simulators.link import Client, Jobs, Loop, emit, parse_address
from simulators.world.imaging import (
    VIEWS,
    Detector,
    Exposure,
    Projector,
    SteelNeedle,
    carm_pose,
    expose,
    steel_integrals,
)
from simulators.world.scene import Scene, Stream, stream

RATE_HZ: Final = 30.0
STATUS_OK: Final = (Metadata("TransformStatus", "OK"),)


@dataclass(frozen=True, slots=True, eq=False)
class Stand:
    """How the C-arm stands at the table: isocentre in CT and its turn, with the patient at rest."""

    iso_ct_mm: Array
    turn: Array

    @classmethod
    def from_seed(cls, seed: int, target_ct_mm: Array) -> Stand:
        """Return a stand that staff centred to 12 mm and squared to 4 degrees."""
        rng = stream(seed, Stream.CARM)
        turn = rotation_from_vector(rng.uniform(-1.0, 1.0, 3) * np.radians(4.0))
        return cls(target_ct_mm + rng.uniform(-12.0, 12.0, 3), turn)


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """An exposure that is wanted: the view, and the needle in the beam if its true pose was given."""

    view: str
    needle: SteelNeedle | None


class Carm:
    """The gantry, its patient, and the link to the server."""

    def __init__(
        self, scene: Scene, ct: Volume, stand: Stand, orbit_deg_s: float, address: tuple[str, int], detector: Detector
    ) -> None:
        self._scene, self._stand, self._speed, self._detector = scene, stand, orbit_deg_s, detector
        self._projector = Projector(ct)
        self._rng = stream(scene.seed, Stream.NOISE)
        self._orbit_deg = 0.0
        self._shots: list[Shot] = []
        self._jobs = Jobs()
        self.loop = Loop("carm", RATE_HZ, self._tick, self._command)
        self._client = Client(self.loop, *address)

    def warm_up(self) -> None:
        """Compile and touch everything that an exposure needs, before anybody waits for one."""
        self._expose(Shot("ap", None), self._pose(), time.time_ns())

    def close(self) -> None:
        """Let go of sockets and thread."""
        self._client.close()
        self._jobs.close()
        self.loop.close()

    def _pose(self) -> Rigid:
        """Return T_tracker_from_carm: the gantry stands in the room, whatever the patient does."""
        pose = carm_pose(self._orbit_deg, self._stand.iso_ct_mm, self._detector, self._stand.turn)
        return self._scene.T_tracker_from_ct @ pose

    def _tick(self, deadline_ns: int) -> None:
        self._client.tick()
        time_ns = time.time_ns()
        if self._shots:
            wanted = VIEWS[self._shots[0].view]
            reach = self._speed / RATE_HZ
            self._orbit_deg += min(max(wanted - self._orbit_deg, -reach), reach)
        pose = self._pose()
        self._client.offer(encode_pose(pose, time_ns))
        if self._shots and self._orbit_deg == VIEWS[self._shots[0].view]:
            shot = self._shots.pop(0)
            self._jobs.submit(lambda: self._expose(shot, pose, time_ns))
        for data in self._jobs.done():
            self._client.push(data)
            emit({"event": "image", "bytes": len(data)})

    def _command(self, order: dict[str, Any]) -> None:
        if order.get("do") != "shoot" or order.get("view") not in VIEWS:
            raise InputError(f'expected {{"do":"shoot","view":one of {", ".join(VIEWS)}}} or {{"do":"stop"}}')
        self._shots.append(Shot(order["view"], _needle(order.get("needle"))))

    def _expose(self, shot: Shot, pose: Rigid, time_ns: int) -> bytes:
        """Return C-arm pose, detector pose and image of one exposure, all with its stamp."""
        T_ct_from_carm = self._scene.T_tracker_from_ct_at(time_ns * 1e-9).inverse() @ pose
        integrals = self._projector.line_integrals(T_ct_from_carm, self._detector).astype(np.float64)
        if shot.needle is not None:
            integrals += steel_integrals(shot.needle, T_ct_from_carm, self._detector)
        exposure = Exposure()
        pixels = expose(integrals, exposure, self._rng)
        return encode_pose(pose, time_ns) + encode_shot(pixels, self._detector, exposure, shot.view, time_ns)


def encode_pose(pose: Rigid, time_ns: int) -> bytes:
    """Return CarmToTracker."""
    return encode(Message("CarmToTracker", timestamp_from_ns(time_ns), Transform(pose.matrix), 2, STATUS_OK))


def encode_shot(pixels: Any, detector: Detector, exposure: Exposure, view: str, time_ns: int) -> bytes:
    """Return ImageToCarm and the image, whose own matrix is its spacing with pixel (0, 0) at the image's origin."""
    stamp = timestamp_from_ns(time_ns)
    spacing = np.diag([detector.pixel_mm, detector.pixel_mm, 1.0, 1.0])
    about = (
        Metadata("View", view),
        Metadata("PixelIntensity", f"value = {exposure.gain:g} * ({exposure.offset:g} + ln(I / I0))"),
    )
    place = Transform(detector.T_carm_from_image.matrix)
    return encode(Message("ImageToCarm", stamp, place, 2, STATUS_OK)) + encode(
        Message("CarmImage", stamp, Image(pixels[None], spacing, "LPS"), 2, about)
    )


def _needle(given: object) -> SteelNeedle | None:
    """Return the needle of a command's ``needle``; InputError when it is not two triples."""
    if given is None:
        return None
    right = '"needle": expected {"tip_ct_mm":[x,y,z],"axis_ct":[x,y,z]}'
    if not isinstance(given, dict):
        raise InputError(right)
    try:
        tip = np.array(given["tip_ct_mm"], dtype=np.float64)
        axis = np.array(given["axis_ct"], dtype=np.float64)
    except (KeyError, TypeError, ValueError):
        raise InputError(right) from None
    norm = float(np.linalg.norm(axis))
    if tip.shape != (3,) or axis.shape != (3,) or not np.isfinite(tip).all() or not 0.0 < norm < np.inf:
        raise InputError(right)
    return SteelNeedle(tip, axis / norm)


def arguments() -> Parser:
    """Return the command line of the C-arm."""
    parser = Parser(
        "carm",
        "A C-arm: an OpenIGTLink client that pushes CarmToTracker at 30 Hz and, for each\n"
        f'{{"do":"shoot","view":"{"|".join(VIEWS)}"}} on standard input, moves there and pushes ImageToCarm and\n'
        'an IMAGE (CarmImage, uint16). With "needle":{"tip_ct_mm":[..],"axis_ct":[..]} a steel needle is in the beam.\n'
        '{"do":"stop"} or the end of standard input stops it.',
        'echo \'{"do":"shoot","view":"ap"}\' | cat - /dev/tty |'
        " python -m simulators carm --case DIR --server 127.0.0.1:18945",
    )
    add_room(parser)
    add_server(parser)
    parser.add_argument(
        "--orbit-deg-s", type=number(1.0, 10_000.0, "deg/s"), default=60.0, help="how fast the gantry turns (60)"
    )
    return parser


def main(argv: list[str]) -> int:
    """Run the C-arm until it is stopped; return the exit status."""
    args = arguments().parse_args(argv)
    address = parse_address(args.server)
    case = Case.load(args.case)
    target = plan_of(case).target_ct_mm
    scene = Scene.from_seed(args.seed, target, breathing_of(args))
    carm = Carm(scene, case.ct(), Stand.from_seed(args.seed, target), args.orbit_deg_s, address, Detector())
    try:
        carm.warm_up()
        emit({"ready": True})
        carm.loop.run()
    finally:
        carm.close()
    return 0
