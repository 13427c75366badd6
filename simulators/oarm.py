"""Owns the O-arm simulator: pushes its volume's pose at 10 Hz and, when told to spin, a volume of the patient.

The gantry knows where its volume is in the tracker; where the patient lies in it, only the image tells.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from scipy.ndimage import gaussian_filter

from navsrv.anatomy.case import Case
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Rigid
from navsrv.wire.openigtlink import Image, Message, Metadata, Transform, encode, timestamp_from_ns
from simulators.arguments import Parser, add_dicom, add_room, add_server, breathing_of, number, plan_of, whole
from simulators.dicom_out import DicomSender, Study, volume_objects
from simulators.in_beam import parse_solids
from simulators.link import Client, Jobs, Loop, emit, parse_address
from simulators.world.imaging import OarmProtocol, OarmVolume, reconstruct
from simulators.world.reconstruction import SpinProtocol, spin
from simulators.world.scene import Scene, Stream, stream
from simulators.world.xray import Radiographer
from simulators.world.xray_materials import Material
from simulators.world.xray_solids import Shape, Solid, moved, table_top

RATE_HZ: Final = 10.0
STATUS_OK: Final = (Metadata("TransformStatus", "OK"),)
STEEL_HU: Final = 12000.0
"""What the quick scanner makes of steel, before it clips."""
TURN_S: Final = 13.0
"""How long the source takes for a turn."""

Scanner = Callable[[Rigid, Callable[[float], Rigid], Solid, int], OarmVolume]
"""Makes a volume: T_ct_from_volume as it begins and at each share of the turn, what lies in the beam, its number."""


def quick_scanner(case: Case, seed: int, protocol: OarmProtocol) -> Scanner:
    """Return the scanner of the demo: the CT resampled, with noise and shading put on."""
    ct, rng = case.ct(), stream(seed, Stream.OARM)

    def scan(begins: Rigid, course: Callable[[float], Rigid], solids: Solid, count: int) -> OarmVolume:
        return with_steel(reconstruct(ct, begins, protocol, rng), moved(solids, begins.inverse()), protocol.blur_mm)

    return scan


def with_steel(volume: OarmVolume, solids: Solid, blur_mm: float) -> OarmVolume:
    """Return the volume with the steel cylinders of ``solids`` (in its frame) in it, blurred and clipped as it is."""
    voxels = volume.voxels.astype(np.float32)
    back = np.linalg.inv(volume.index_to_volume_mm)
    spacing = 1.0 / float(np.linalg.norm(back[0, :3]))
    for piece in solids:
        if piece.shape is not Shape.CYLINDER or piece.material is not Material.STEEL:
            continue
        middle = back[:3, :3] @ piece.centre_mm + back[:3, 3]
        reach = np.abs(back[:3, :3] @ piece.axes_mm).sum(axis=1) + 5.0
        low = np.clip(np.floor(middle - reach), 0, voxels.shape[::-1]).astype(int)
        high = np.clip(np.ceil(middle + reach), low, voxels.shape[::-1]).astype(int)
        k, j, i = np.meshgrid(*(np.arange(low[a], high[a]) for a in (2, 1, 0)), indexing="ij")
        points = np.stack([i, j, k], axis=-1) @ volume.index_to_volume_mm[:3, :3].T + volume.index_to_volume_mm[:3, 3]
        unit = (points - piece.centre_mm) @ np.linalg.inv(piece.axes_mm).T
        half = np.linalg.norm(piece.axes_mm, axis=0)
        across = (np.hypot(unit[..., 0], unit[..., 1]) - 1.0) * half[0]
        beyond = (np.abs(unit[..., 2]) - 1.0) * half[2]
        share = np.clip(0.5 - np.maximum(across, beyond) / spacing, 0.0, 1.0).astype(np.float32)
        voxels[low[2] : high[2], low[1] : high[1], low[0] : high[0]] += STEEL_HU * gaussian_filter(
            share, blur_mm / spacing
        )
    return OarmVolume(np.clip(voxels, -1024, 3071).astype(np.int16), volume.index_to_volume_mm)


def full_scanner(case: Case, seed: int, protocol: SpinProtocol) -> Scanner:
    """Return the scanner that reconstructs projections."""
    ct = case.ct()
    radiographer = Radiographer(ct)
    middle = plan_of(case).target_ct_mm
    table = table_top(np.array([middle[0], ct.bounds_mm()[0, 1] - 14.0, middle[2]]), rails=False)

    def scan(begins: Rigid, course: Callable[[float], Rigid], solids: Solid, count: int) -> OarmVolume:
        return spin(radiographer, course, protocol, (seed, int(Stream.OARM), count), (*table, *solids))

    return scan


@dataclass(frozen=True, slots=True)
class Sending:
    """Where volumes go by DICOM as well, and where the gantry's origin lies in their patient's coordinates."""

    sender: DicomSender
    study: Study
    shift_mm: tuple[float, float, float]


class Oarm:
    """The gantry, its patient, and the link to the server."""

    def __init__(
        self, scene: Scene, scanner: Scanner, address: tuple[str, int], sending: Sending | None = None
    ) -> None:
        self._scene, self._scanner, self._sending = scene, scanner, sending
        self._count = 0
        self._told: deque[dict[str, Any]] = deque()
        self._jobs = Jobs()
        self.loop = Loop("oarm", RATE_HZ, self._tick, self._command)
        self._client = Client(self.loop, *address)

    def close(self) -> None:
        """Let go of sockets and thread."""
        self._client.close()
        self._jobs.close()
        if self._sending is not None:
            self._sending.sender.close()
        self.loop.close()

    def _tick(self, deadline_ns: int) -> None:
        self._client.tick()
        self._client.offer(self._pose(time.time_ns()))
        for data in self._jobs.done():
            emit(self._told.popleft())
            self._client.push(data)
            emit({"event": "volume", "bytes": len(data)})
        for event in [] if self._sending is None else self._sending.sender.done():
            emit(event)

    def _command(self, order: dict[str, Any]) -> None:
        if order.get("do") != "spin" or set(order) - {"do", "solids"}:
            raise InputError('expected {"do":"spin"}, with "solids" or without, or {"do":"stop"}')
        solids = parse_solids(order.get("solids", []))
        time_ns = time.time_ns()
        self._jobs.submit(lambda: self._spin(time_ns, solids))

    def _pose(self, time_ns: int) -> bytes:
        pose = Transform(self._scene.T_tracker_from_volume.matrix)
        return encode(Message("VolumeToTracker", timestamp_from_ns(time_ns), pose, 2, STATUS_OK))

    def _spin(self, time_ns: int, solids: Solid) -> bytes:
        """Return the pose and the volume, both with the stamp of the spin."""
        scene = self._scene

        def course(share: float) -> Rigid:
            at = scene.T_tracker_from_ct_at(time_ns * 1e-9 + share * TURN_S)
            return at.inverse() @ scene.T_tracker_from_volume

        self._count += 1
        start = time.monotonic()
        volume = self._scanner(course(0.0), course, solids, self._count)
        self._told.append(
            {
                "event": "scanned",
                "time_ns": str(time_ns),
                "seconds": round(time.monotonic() - start, 2),
                "T_ct_from_volume": np.round(course(0.0).matrix, 6).tolist(),
            }
        )
        image = Image(volume.voxels, volume.index_to_volume_mm, "LPS")
        if self._sending is not None:
            sending = self._sending
            sending.sender.submit(
                volume_objects(
                    volume.voxels, volume.index_to_volume_mm, sending.study, self._count, time_ns, sending.shift_mm
                )
            )
        return self._pose(time_ns) + encode(Message("OArm", timestamp_from_ns(time_ns), image, 2))


def arguments() -> Parser:
    """Return the command line of the O-arm."""
    parser = Parser(
        "oarm",
        "An O-arm: an OpenIGTLink client that pushes VolumeToTracker at 10 Hz, and an IMAGE (OArm, int16 HU, LPS)\n"
        'in the volume\'s own frame for each {"do":"spin"} on standard input. {"do":"stop"} or its end stops it.\n'
        '"solids":[{"kind":"screw|cannula|needle|cement|table",..}] lie in the beam (docs/simulators.md). The full\n'
        "scanner reconstructs simulated projections, which takes most of a minute. With --dicom each volume is\n"
        "also sent as a CT series, with (0028,9520) from the patient's coordinates to those of VolumeToTracker.",
        '(echo \'{"do":"spin"}\'; sleep 90) | navsrv simulate oarm --case sacrum --server 127.0.0.1:18945',
    )
    add_room(parser)
    add_server(parser)
    add_dicom(parser, "NAVSRV", "OARM")
    quick, full = OarmProtocol(), SpinProtocol()
    add = parser.add_argument
    add("--fidelity", choices=("quick", "full"), default="full", help="quick: the CT resampled, no projections (full)")
    add(
        "--voxel-mm", type=number(0.3, 5.0, "mm"), metavar="MM",
        help=f"voxel size (full {full.voxel_mm:g}, quick {quick.voxel_mm:g})",
    )  # fmt: skip
    add(
        "--diameter-mm", type=number(50.0, 400.0, "mm"), metavar="MM",
        help=f"quick: field of view ({quick.diameter_mm:g}); the full scanner's is its detector's",
    )  # fmt: skip
    add(
        "--height-mm", type=number(30.0, 400.0, "mm"), default=quick.height_mm, metavar="MM",
        help=f"field of view along the patient ({quick.height_mm:g})",
    )  # fmt: skip
    add("--noise-hu", type=number(0.0, 500.0, "HU"), metavar="HU", help=f"quick: noise ({quick.noise_hu:g})")
    add("--views", type=whole(60, 1000), metavar="N", help=f"full: projections ({full.gantry.views})")
    add("--dose", type=number(1e2, 1e8), metavar="PHOTONS", help="full: per mm2 of the open field and view (2.5e5)")
    add(
        "--dicom-shift-mm", type=number(-1e4, 1e4, "mm"), nargs=3, default=[0.0, 0.0, 0.0], metavar=("X", "Y", "Z"),
        help="where the gantry's origin lies in the DICOM patient's coordinates (0 0 0)",
    )  # fmt: skip
    return parser


def scanner_of(args: argparse.Namespace, case: Case) -> Scanner:
    """Return the scanner that the arguments ask for; InputError for an option of the other one."""
    other = ("views", "dose") if args.fidelity == "quick" else ("diameter_mm", "noise_hu")
    for name in other:
        if getattr(args, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} is not an option of --fidelity {args.fidelity}")
    if args.fidelity == "quick":
        quick = OarmProtocol(height_mm=args.height_mm)
        given = {"diameter_mm": args.diameter_mm, "voxel_mm": args.voxel_mm, "noise_hu": args.noise_hu}
        return quick_scanner(case, args.seed, replace(quick, **{k: v for k, v in given.items() if v is not None}))
    full = SpinProtocol()
    voxel = full.voxel_mm if args.voxel_mm is None else args.voxel_mm
    gantry = full.gantry if args.views is None else replace(full.gantry, views=args.views)
    dose = full.technique.quanta_per_mm2 if args.dose is None else args.dose
    across, along = round(gantry.field_mm / voxel) + 2, round(args.height_mm / voxel) + 1
    technique = replace(full.technique, quanta_per_mm2=dose)
    protocol = replace(full, gantry=gantry, technique=technique, size=(across, across, along), voxel_mm=voxel)
    return full_scanner(case, args.seed, protocol)


def main(argv: list[str]) -> int:
    """Run the O-arm until it is stopped; return the exit status."""
    args = arguments().parse_args(argv)
    address = parse_address(args.server)
    sending = None
    if args.dicom is not None:
        sender = DicomSender(args.dicom, args.aet, args.calling_aet)
        x, y, z = args.dicom_shift_mm
        sending = Sending(sender, Study.started(args.seed, time.time_ns()), (x, y, z))
    case = Case.load(args.case)
    scene = Scene.from_seed(args.seed, plan_of(case).target_ct_mm, breathing_of(args))
    oarm = Oarm(scene, scanner_of(args, case), address, sending)
    try:
        emit({"ready": True, "T_ct_from_volume": np.round(scene.T_ct_from_volume.matrix, 6).tolist()})
        oarm.loop.run()
    finally:
        oarm.close()
    return 0
