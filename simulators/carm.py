"""Owns the C-arm simulator: pushes its pose at 30 Hz and, when told to shoot, moves there and takes an X-ray image.

The image comes with the stamp of the exposure, and with the poses of C-arm and detector at that stamp, as the encoders
tell them; or angles go over a serial line, or a tracker sees a body on the C (``carm_links``); or images are shown on a
screen with a video output (``carm_video``).  The truth, with sag and play, is printed for whoever judges.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from navsrv.anatomy.case import Case
from navsrv.kernel.frames import CT, Array, Rigid, rotation_from_vector
from navsrv.wire.openigtlink import Image, Message, Metadata, Transform, encode, timestamp_from_ns
from simulators.arguments import Parser, add_dicom, add_room, add_server, breathing_of, number, plan_of, whole
from simulators.carm_camera import Camera, Picture, Shot, camera_of, parse_order, receptor_of
from simulators.carm_links import T_CARM_FROM_BODY, EncoderPort, Sightings
from simulators.carm_motion import EXACT, STAND, STIFF, Flex, Gantry, Position, nominal_pose, view_of
from simulators.carm_video import ScreenPort
from simulators.dicom_out import DicomSender, Study, positioner_angles_deg, xray_object
from simulators.link import Client, Jobs, Loop, emit, parse_address
from simulators.world.imaging import VIEWS, Detector
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

    @property
    def T_ct_from_stand(self) -> Rigid:
        """The base, in the CT of the patient at rest."""
        return Rigid(CT, STAND, self.turn, self.iso_ct_mm)


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """What does not change while the simulator runs."""

    scene: Scene
    stand: Stand
    camera: Camera
    speed_deg_s: float
    hold_hz: float = 0.0
    study: Study | None = None


class Carm:
    """The gantry, its patient, and the link to the server."""

    def __init__(
        self, setup: Setup, gantry: Gantry, address: tuple[str, int], dicom: DicomSender | None = None
    ) -> None:
        self._setup, self._gantry, self._dicom = setup, gantry, dicom
        self._encoders: EncoderPort | None = None
        self._sightings: Sightings | None = None
        self._screen: ScreenPort | None = None
        self._rng = stream(setup.scene.seed, Stream.CARM)
        self._shots: list[Shot] = []
        self._count = 0
        self._held: tuple[bytes, int] | None = None
        self._told: deque[dict[str, Any]] = deque()
        self._jobs = Jobs()
        self.loop = Loop("carm", RATE_HZ, self._tick, self._command)
        self._client = Client(self.loop, *address)

    def open_encoders(self) -> str:
        """Tell angles over a serial line in place of poses; return the terminal that clients open."""
        self._encoders = EncoderPort()
        return self._encoders.path

    def open_tracker(self, port: int) -> int:
        """Let a tracker see the reference and a body on the C in place of poses; return the port it serves."""
        self._sightings = Sightings(self.loop, port, self._setup.scene)
        return self._sightings.port

    def open_video(self, port: int, marker: Path | None) -> dict[str, Any]:
        """Show images on a screen with a video output in place of pushing them; return the port, and where they are."""
        size = self._gantry.detector.columns
        self._screen = ScreenPort(port, size, self._setup.scene.seed, marker)
        return self._screen.facts

    def warm_up(self) -> None:
        """Compile and touch everything that an exposure needs, before anybody waits for one."""
        self._picture(Shot(Position(), "ap"), self._gantry, time.time_ns())
        self._count = 0

    def close(self) -> None:
        """Let go of sockets and thread."""
        self._client.close()
        for link in (self._encoders, self._sightings, self._screen):
            if link is not None:
                link.close()
        self._jobs.close()
        if self._dicom is not None:
            self._dicom.close()
        self.loop.close()

    def _pose(self, gantry: Gantry) -> Rigid:
        """Return T_tracker_from_carm as the C-arm tells it: it stands in the room, whatever the patient does."""
        return self._setup.scene.T_tracker_from_ct @ self._setup.stand.T_ct_from_stand @ gantry.nominal()

    def _tell_pose(self, gantry: Gantry, time_ns: int) -> None:
        if self._encoders is not None:
            self._encoders.say(gantry.encoders.read(gantry.drive))
        elif self._sightings is not None:
            hung = nominal_pose(gantry.c, gantry.detector.source_iso_mm)
            room = self._setup.scene.T_tracker_from_ct @ self._setup.stand.T_ct_from_stand
            self._sightings.see(room @ hung, time_ns)
        else:
            # A video says nothing of the detector, so that its place goes with every pose.
            place = b"" if self._screen is None else encode_place(gantry.detector, time_ns)
            self._client.offer(encode_pose(self._pose(gantry), time_ns) + place)

    def _tick(self, deadline_ns: int) -> None:
        self._client.tick()
        time_ns = time.time_ns()
        if self._shots and not (self._screen is not None and self._screen.busy):
            self._gantry = self._gantry.moved(_towards(self._gantry.drive, self._shots[0].to, self._reach_deg))
        gantry = self._gantry
        self._tell_pose(gantry, time_ns)
        if self._shots and gantry.drive == self._shots[0].to:
            shot = self._shots.pop(0)
            if self._screen is not None and shot.view is not None:
                self._screen.await_picture()
            if shot.view is None:
                emit({"event": "moved", "orbit_deg": gantry.drive.orbit_deg, "tilt_deg": gantry.drive.tilt_deg})
            else:
                self._jobs.submit(lambda: self._expose(shot, gantry, time_ns))
        for data in self._jobs.done():
            emit(self._told.popleft())
            if data:
                self._client.push(data)
                emit({"event": "image", "bytes": len(data)})
        if self._held is not None and self._setup.hold_hz > 0.0:
            data, due_ns = self._held
            if time_ns >= due_ns:
                self._client.offer(data)
                self._held = data, time_ns + round(1e9 / self._setup.hold_hz)
        for event in [] if self._dicom is None else self._dicom.done():
            emit(event)

    @property
    def _reach_deg(self) -> float:
        return self._setup.speed_deg_s / RATE_HZ

    def _command(self, order: dict[str, Any]) -> None:
        if self._screen is not None and order["do"] == "show":
            self._screen.command(order)
            return
        self._shots.append(parse_order(order))

    def _picture(self, shot: Shot, gantry: Gantry, time_ns: int) -> tuple[Picture, dict[str, Any]]:
        """Return the picture and the truth about it."""
        scene, base = self._setup.scene, self._setup.stand.T_ct_from_stand
        truth = gantry.true(self._rng)
        # The base stands in the room; the patient has moved beneath it.
        T_ct_from_stand = scene.T_tracker_from_ct_at(time_ns * 1e-9).inverse() @ scene.T_tracker_from_ct @ base
        view = view_of(truth, T_ct_from_stand)
        self._count += 1
        pose = T_ct_from_stand @ truth.T_stand_from_carm
        picture = self._setup.camera(view, pose, truth.detector, shot, self._count)
        return picture, {
            "event": "exposed",
            "view": shot.view,
            "time_ns": str(time_ns),
            "orbit_deg": gantry.c.orbit_deg,
            "tilt_deg": gantry.c.tilt_deg,
            "projection_ct": np.round(view.matrix, 9).tolist(),
        }

    def _expose(self, shot: Shot, gantry: Gantry, time_ns: int) -> bytes:
        """Return C-arm pose, detector pose and image of one exposure, all with its stamp."""
        assert shot.view is not None
        picture, truth = self._picture(shot, gantry, time_ns)
        self._told.append(truth)
        nominal = gantry.detector
        image = encode_image(picture, nominal, shot.view, time_ns)
        if self._setup.hold_hz > 0.0:
            held = encode_image(picture, nominal, shot.view, time_ns, held=True)
            self._held = held, time_ns + round(1e9 / self._setup.hold_hz)
        if self._dicom is not None and self._setup.study is not None:
            angles = positioner_angles_deg(gantry.drive.orbit_deg, gantry.drive.tilt_deg)
            stored = picture.bits, picture.logarithmic
            study = self._setup.study
            self._dicom.submit(
                [xray_object(picture.pixels, nominal, angles, picture.kvp, stored, study, self._count, time_ns)]
            )
        if self._screen is not None:
            self._screen.expose(picture.pixels)
            return b""
        if self._encoders is not None or self._sightings is not None:
            return image
        return encode_pose(self._pose(gantry), time_ns) + encode_place(nominal, time_ns) + image


def _towards(at: Position, to: Position, reach_deg: float) -> Position:
    """Return the position after one step of at most ``reach_deg`` in each angle."""
    return Position(
        at.orbit_deg + min(max(to.orbit_deg - at.orbit_deg, -reach_deg), reach_deg),
        at.tilt_deg + min(max(to.tilt_deg - at.tilt_deg, -reach_deg), reach_deg),
    )


def encode_pose(pose: Rigid, time_ns: int) -> bytes:
    """Return CarmToTracker."""
    return encode(Message("CarmToTracker", timestamp_from_ns(time_ns), Transform(pose.matrix), 2, STATUS_OK))


def encode_place(detector: Detector, time_ns: int) -> bytes:
    """Return ImageToCarm."""
    place = Transform(detector.T_carm_from_image.matrix)
    return encode(Message("ImageToCarm", timestamp_from_ns(time_ns), place, 2, STATUS_OK))


def encode_image(picture: Picture, detector: Detector, view: str, time_ns: int, held: bool = False) -> bytes:
    """Return the image, whose own matrix is its spacing with pixel (0, 0) at the image's origin.

    ``held``: shown again after the exposure (last-image-hold), with the stamp of the exposure.
    """
    spacing = np.diag([detector.pixel_mm, detector.pixel_mm, 1.0, 1.0])
    about = [Metadata("View", view), Metadata("PixelIntensity", picture.intensity)]
    if held:
        about.append(Metadata("LastImageHold", "true"))
    content = Image(picture.pixels[None], spacing, "LPS")
    return encode(Message("CarmImage", timestamp_from_ns(time_ns), content, 2, tuple(about)))


def arguments() -> Parser:
    """Return the command line of the C-arm."""
    parser = Parser(
        "carm",
        "A C-arm: an OpenIGTLink client that pushes CarmToTracker at 30 Hz and, for each\n"
        f'{{"do":"shoot","view":"{"|".join(VIEWS)}"}} on standard input, moves there and pushes ImageToCarm and\n'
        'an IMAGE (CarmImage, uint16); "orbit_deg" and "tilt_deg" instead of a view go anywhere, "do":"move" only\n'
        'moves. With "needle":{"tip_ct_mm":[..],"axis_ct":[..]} a steel needle is in the beam,\n'
        'with "solids":[{"kind":"screw|cannula|needle|cement|table|rings|grid",..}] more (docs/simulators.md).\n'
        '{"do":"stop"} or the end of standard input stops it. With --dicom each image is also sent as XA.\n'
        "With --encoders or --tracked only the image is pushed; how its pose goes is printed with the ready line.\n"
        'With --video, {"do":"show",..} turns the picture at the console as in navsrv simulate video.\n'
        "The true projection of each image (3 x 4, CT millimetres to pixels) is printed.",
        '(echo \'{"do":"shoot","view":"ap"}\'; sleep 20) | navsrv simulate carm --case sacrum --server 127.0.0.1:18945',
    )
    add_room(parser)
    add_server(parser)
    add_dicom(parser, "NAVSRV", "CARM")
    add = parser.add_argument
    add("--orbit-deg-s", type=number(1.0, 10_000.0, "deg/s"), default=60.0, help="how fast the gantry turns (60)")
    add("--fidelity", choices=("quick", "full"), default="full", help="quick: one energy, no scatter (full)")
    add("--receptor", choices=("panel", "intensifier"), default="panel", help="flat panel, or distorting tube (panel)")
    add("--size", type=whole(64, 2048), default=512, metavar="PIXELS", help="rows and columns (512)")
    add("--kvp", type=number(50.0, 140.0, "kVp"), default=80.0, help="tube voltage (80)")
    add("--dose", type=number(1e2, 1e8), default=4e5, metavar="PHOTONS", help="per mm2 of the open field (4e5)")
    add("--brightness", type=number(1e1, 1e6), metavar="PHOTONS", help="per mm2 behind the patient, kept by control")
    add("--iris-mm", type=number(5.0, 300.0, "mm"), help="collimator: radius of the field on the detector (open)")
    add("--flex", type=number(0.0, 5.0), default=0.0, help="sag of the C; 1 is usual (0: rigid, as its poses say)")
    add("--play-deg", type=number(0.0, 5.0, "deg"), default=0.0, help="play between drive and C (0)")
    add("--encoder-deg", type=number(0.0, 5.0, "deg"), default=0.0, help="step of the encoders (0: exact)")
    add("--encoders", action="store_true", help="angles over a pseudo-terminal (docs/carm_encoders.md), no poses")
    add("--tracked", type=whole(0, 65535), metavar="PORT", help="serve ReferenceToTracker and CarmBodyToTracker there")
    add("--video", type=whole(0, 65535), metavar="PORT", help="show images by MJPEG there, live, then held")
    add("--video-marker", type=Path, metavar="FILE", help="write the lead marker's shadow in that video there")
    add("--hold-hz", type=number(0.0, 30.0, "Hz"), default=0.0, help="last-image-hold: send the image again (0: off)")
    add("--no-table", action="store_true", help="no table top in the beam")
    add("--no-patient", action="store_true", help="nobody on the table: for phantoms")
    return parser


def main(argv: list[str]) -> int:
    """Run the C-arm until it is stopped; return the exit status."""
    parser = arguments()
    args = parser.parse_args(argv)
    if args.encoders and args.tracked is not None:
        parser.error("--encoders and --tracked: the one or the other")
    address = parse_address(args.server)
    dicom = None if args.dicom is None else DicomSender(args.dicom, args.aet, args.calling_aet)
    case = Case.load(args.case)
    target = plan_of(case).target_ct_mm
    receptor, detector = receptor_of(args)
    scene = Scene.from_seed(args.seed, target, breathing_of(args))
    setup = Setup(
        scene,
        Stand.from_seed(args.seed, target),
        camera_of(args, case, receptor),
        args.orbit_deg_s,
        args.hold_hz,
        Study.started(args.seed, time.time_ns()),
    )
    encoders = replace(EXACT, step_deg=args.encoder_deg, play_deg=args.play_deg)
    carm = Carm(setup, Gantry(detector, scaled(args.flex), encoders), address, dicom)
    try:
        ready: dict[str, object] = {"ready": True}
        if args.encoders:
            ready["pty"] = carm.open_encoders()
        if args.tracked is not None:
            ready["port"] = carm.open_tracker(args.tracked)
            ready["T_pose_from_image"] = T_CARM_FROM_BODY.inverse().matrix.tolist()
            ready["T_carm_from_image"] = detector.T_carm_from_image.matrix.tolist()
        if args.video is not None:
            ready |= carm.open_video(args.video, args.video_marker)
        carm.warm_up()
        emit(ready)
        carm.loop.run()
    finally:
        carm.close()
    return 0


def scaled(share: float) -> Flex:
    """Return the usual sag times ``share``."""
    if share == 0.0:
        return STIFF
    usual = Flex()
    source, detector, turn = (
        (share * v[0], share * v[1], share * v[2]) for v in (usual.source_mm, usual.detector_mm, usual.detector_deg)
    )
    return Flex(source, detector, turn, share * usual.scatter_mm)
