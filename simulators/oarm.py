"""Owns the O-arm simulator: pushes its volume's pose at 10 Hz and, when told to spin, a volume of the patient.

The gantry knows where its volume is in the tracker; where the patient lies in it, only the image tells.
"""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np

from navsrv.anatomy.case import Case, Volume
from navsrv.kernel.errors import InputError
from navsrv.wire.openigtlink import Image, Message, Metadata, Transform, encode, timestamp_from_ns
from simulators.arguments import Parser, add_room, add_server, breathing_of, number, plan_of
from simulators.link import Client, Jobs, Loop, emit, parse_address
from simulators.world.imaging import OarmProtocol, reconstruct
from simulators.world.scene import Scene, Stream, stream

RATE_HZ: Final = 10.0
STATUS_OK: Final = (Metadata("TransformStatus", "OK"),)


class Oarm:
    """The gantry, its patient, and the link to the server."""

    def __init__(self, scene: Scene, ct: Volume, protocol: OarmProtocol, address: tuple[str, int]) -> None:
        self._scene, self._ct, self._protocol = scene, ct, protocol
        self._rng = stream(scene.seed, Stream.OARM)
        self._jobs = Jobs()
        self.loop = Loop("oarm", RATE_HZ, self._tick, self._command)
        self._client = Client(self.loop, *address)

    def close(self) -> None:
        """Let go of sockets and thread."""
        self._client.close()
        self._jobs.close()
        self.loop.close()

    def _tick(self, deadline_ns: int) -> None:
        self._client.tick()
        self._client.offer(self._pose(time.time_ns()))
        for data in self._jobs.done():
            self._client.push(data)
            emit({"event": "volume", "bytes": len(data)})

    def _command(self, order: dict[str, Any]) -> None:
        if order != {"do": "spin"}:
            raise InputError('expected {"do":"spin"} or {"do":"stop"}')
        time_ns = time.time_ns()
        self._jobs.submit(lambda: self._spin(time_ns))

    def _pose(self, time_ns: int) -> bytes:
        pose = Transform(self._scene.T_tracker_from_volume.matrix)
        return encode(Message("VolumeToTracker", timestamp_from_ns(time_ns), pose, 2, STATUS_OK))

    def _spin(self, time_ns: int) -> bytes:
        """Return the pose and the volume, both with the stamp of the spin."""
        scene = self._scene
        T_ct_from_volume = scene.T_tracker_from_ct_at(time_ns * 1e-9).inverse() @ scene.T_tracker_from_volume
        volume = reconstruct(self._ct, T_ct_from_volume, self._protocol, self._rng)
        image = Image(volume.voxels, volume.index_to_volume_mm, "LPS")
        return self._pose(time_ns) + encode(Message("OArm", timestamp_from_ns(time_ns), image, 2))


def arguments() -> Parser:
    """Return the command line of the O-arm."""
    parser = Parser(
        "oarm",
        "An O-arm: an OpenIGTLink client that pushes VolumeToTracker at 10 Hz, and an IMAGE (OArm, int16 HU, LPS)\n"
        'in the volume\'s own frame for each {"do":"spin"} on standard input. {"do":"stop"} or its end stops it.',
        'echo \'{"do":"spin"}\' | cat - /dev/tty | python -m simulators oarm --case DIR --server 127.0.0.1:18945',
    )
    add_room(parser)
    add_server(parser)
    default = OarmProtocol()
    parser.add_argument(
        "--voxel-mm", type=number(0.3, 5.0, "mm"), default=default.voxel_mm, help=f"voxel size ({default.voxel_mm:g})"
    )
    parser.add_argument(
        "--diameter-mm",
        type=number(50.0, 400.0, "mm"),
        default=default.diameter_mm,
        help=f"field of view ({default.diameter_mm:g})",
    )
    parser.add_argument(
        "--height-mm",
        type=number(30.0, 400.0, "mm"),
        default=default.height_mm,
        help=f"field of view along the patient ({default.height_mm:g})",
    )
    parser.add_argument(
        "--noise-hu", type=number(0.0, 500.0, "HU"), default=default.noise_hu, help=f"noise ({default.noise_hu:g})"
    )
    return parser


def main(argv: list[str]) -> int:
    """Run the O-arm until it is stopped; return the exit status."""
    args = arguments().parse_args(argv)
    address = parse_address(args.server)
    protocol = OarmProtocol(args.diameter_mm, args.height_mm, args.voxel_mm, noise_hu=args.noise_hu)
    case = Case.load(args.case)
    scene = Scene.from_seed(args.seed, plan_of(case).target_ct_mm, breathing_of(args))
    oarm = Oarm(scene, case.ct(), protocol, address)
    try:
        emit({"ready": True, "T_ct_from_volume": np.round(scene.T_ct_from_volume.matrix, 6).tolist()})
        oarm.loop.run()
    finally:
        oarm.close()
    return 0
