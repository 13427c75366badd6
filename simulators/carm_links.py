"""Owns the other ways in which a C-arm's pose leaves it: encoders on a serial line, a body on it that a tracker sees.

Refuses motion: angles and poses are handed in, as they are at a moment.
"""

from __future__ import annotations

import contextlib
import os
import pty
import termios
import tty
from typing import Final

import numpy as np

from navsrv.kernel.frames import CARM, TRACKER, Array, Frame, Rigid, rotation_from_vector
from navsrv.wire.openigtlink import Message, Metadata, Transform, encode, timestamp_from_ns
from simulators.carm_motion import Position
from simulators.link import Connection, Loop, Server
from simulators.world.scene import Scene, Stream, jitter, stream

BODY: Final = Frame("carmbody")
T_CARM_FROM_BODY: Final = Rigid(CARM, BODY, rotation_from_vector([0.4, 2.1, -0.7]), np.array([140.0, -190.0, 780.0]))
"""The tracked body is screwed to the detector's housing, turned towards the camera."""
NOISE_MM: Final = 0.1
NOISE_RAD: Final = float(np.radians(0.03))
"""Of a body's pose, root mean square."""
BEFORE_NS: Final = 11_000_000
"""By how much the camera's exposures come before the C-arm's: nothing makes the two agree."""


class EncoderPort:
    """The C-arm's end of a serial line (docs/carm_encoders.md): a pseudo-terminal that clients may open and leave."""

    def __init__(self) -> None:
        self._own, self._theirs = pty.openpty()
        tty.setraw(self._theirs, termios.TCSANOW)
        os.set_blocking(self._own, False)
        self.path = os.ttyname(self._theirs)
        self.status = "OK"
        self._counter = 0

    def say(self, read: Position) -> None:
        """Write the line of angles as the encoders read them; a line that nobody reads is lost."""
        line = encode_line(self._counter, read, self.status)
        self._counter = (self._counter + 1) % (1 << 32)
        with contextlib.suppress(BlockingIOError):
            os.write(self._own, line)

    def put(self, data: bytes) -> None:
        """Write bytes as they are, as a bad line does."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._own, data)

    def close(self) -> None:
        """Let go of both ends."""
        os.close(self._own)
        os.close(self._theirs)


def encode_line(counter: int, read: Position, status: str = "OK") -> bytes:
    """Return one line of the protocol."""
    body = f"CARM,{counter},{read.orbit_deg:.4f},{read.tilt_deg:.4f},{status}".encode()
    total = 0
    for byte in body:
        total ^= byte
    return b"$%s*%02X\r\n" % (body, total)


class Sightings:
    """A tracker that sees the reference and the body on the C-arm: an OpenIGTLink server, as PLUS would be."""

    def __init__(self, loop: Loop, port: int, scene: Scene) -> None:
        self._server = Server(loop, "127.0.0.1", port)
        self._scene, self._rng = scene, stream(scene.seed, Stream.CAMERA)
        self.port = self._server.port

    def see(self, T_tracker_from_carm: Rigid, time_ns: int) -> None:
        """Send what the camera saw just before a moment (ns since the epoch)."""
        seen_ns = time_ns - BEFORE_NS
        patient = self._scene.T_tracker_from_ct_at(seen_ns * 1e-9) @ self._scene.T_ct_from_ref
        poses = {"ReferenceToTracker": patient, "CarmBodyToTracker": T_tracker_from_carm @ T_CARM_FROM_BODY}
        assert all(pose.to == TRACKER for pose in poses.values())
        noisy = {name: jitter(self._rng, pose, NOISE_MM, NOISE_RAD).matrix for name, pose in poses.items()}
        self._server.offer(lambda client: encode_seen(noisy, seen_ns, client))

    def close(self) -> None:
        """Close the sockets."""
        self._server.close()


def encode_seen(poses: dict[str, Array], time_ns: int, client: Connection) -> bytes:
    """Return one exposure's poses; only a client that spoke version 2 gets their status, as PLUS has it."""
    version = 2 if client.spoke_version_2 else 1
    said = (Metadata("TransformStatus", "OK"),) if version == 2 else ()
    stamp = timestamp_from_ns(time_ns)
    return b"".join(encode(Message(n, stamp, Transform(matrix), version, said)) for n, matrix in poses.items())
