"""Owns the encoders of a C-arm on a serial line: angles in, poses out, by a geometry that is handed in.

The line says, about ``rate_hz`` times a second and unasked (docs/carm_encoders.md)::

    $CARM,<counter>,<orbit>,<tilt>,<status>*<checksum>\\r\\n

decimal counter from 0 to 4294967295, angles in degrees, a status word, and the exclusive or of all characters between
``$`` and ``*`` as two hexadecimal digits.  A line whose checksum is wrong is dropped and counted; many in a row are no
encoders (a wrong baud rate) and end the connection.  Only the status ``OK`` is believed.  The counter shows what was
lost and what was said twice; there are no stamps, so that a pose is as old as its receipt.  Refuses ports and clocks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from devices.clock import SourceClock
from devices.source import UnaskedSource
from navsrv.kernel.errors import CalibrationError, RemoteProtocolError
from navsrv.kernel.frames import Rigid
from navsrv.kernel.samples import PoseSample, Tracking

LONGEST_LINE: Final = 96
MOST_BAD: Final = 20
"""So many bad lines in a row are no noise."""
COUNTERS: Final = 1 << 32
FARTHEST_DEG: Final = 400.0
_LINE: Final = re.compile(
    rb"\$(?P<body>CARM,(?P<counter>\d{1,10}),(?P<orbit>[+-]?\d{1,4}(\.\d{1,6})?),(?P<tilt>[+-]?\d{1,4}(\.\d{1,6})?),"
    rb"(?P<status>[A-Z_]{1,16}))\*(?P<sum>[0-9A-Fa-f]{2})"
)

PoseOfAngles = Callable[[float, float], Rigid]
"""T_stand_from_carm at (orbit_deg, tilt_deg); CalibrationError where the geometry does not say."""


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What the configuration declares of one C-arm's encoders; ``transform`` is the pose that they give."""

    name: str
    transform: str
    rate_hz: float
    pose_of: PoseOfAngles
    latency_ns: int = 0
    unknown_latency_ns: int = 0


@dataclass(slots=True)
class EncoderCounts:
    """What happened to the lines since the start."""

    accepted: int = 0
    invalid: int = 0
    garbled: int = 0
    repeated: int = 0
    out_of_order: int = 0
    lost: int = 0


class CarmEncoders(UnaskedSource):
    """One connection's worth of encoders (``devices.source.PoseSource``)."""

    def __init__(self, spec: EncoderSpec, counts: EncoderCounts) -> None:
        self.spec, self.counts = spec, counts
        self.jumped = False
        self.clock = SourceClock(int(1e9 / spec.rate_hz))
        self._rest = b""
        self._skipping = True
        """Until the end of a line has been seen: the first one may be half."""
        self._counter: int | None = None
        self._bad = 0

    def feed(self, data: bytes | memoryview, received_ns: int, wall_ns: int) -> list[PoseSample]:
        """Return the poses of the lines that these bytes complete.

        Raises
        ------
        RemoteProtocolError
            Nothing but bad lines: these are no such encoders.  Poses before the fault are in its ``messages``.
        """
        *lines, self._rest = (self._rest + bytes(data)).split(b"\n")
        samples: list[PoseSample] = []
        for line in lines:
            if self._skipping:
                self._skipping = False
                if not line.startswith(b"$"):
                    continue
            sample = self._line(line.rstrip(b"\r"), received_ns, wall_ns)
            if sample is not None:
                samples.append(sample)
            if self._bad >= MOST_BAD:
                self._refuse(samples, f"{self._bad} lines in a row without the encoders' form and checksum")
        if len(self._rest) > LONGEST_LINE:
            self._rest, self._skipping = b"", True
            self._count_bad()
            if self._bad >= MOST_BAD:
                self._refuse(samples, "no line ends where one must; is the baud rate right?")
        return samples

    def _refuse(self, samples: list[PoseSample], text: str) -> None:
        fault = RemoteProtocolError(text)
        fault.messages = list(samples)
        raise fault

    def _count_bad(self) -> None:
        self.counts.garbled += 1
        self._bad += 1

    def _line(self, line: bytes, received_ns: int, wall_ns: int) -> PoseSample | None:
        found = _LINE.fullmatch(line)
        if found is None or checksum(found["body"]) != int(found["sum"], 16):
            self._count_bad()
            return None
        self._bad = 0
        if not self._follows(int(found["counter"])):
            return None
        status, orbit, tilt = found["status"].decode(), float(found["orbit"]), float(found["tilt"])
        pose, reason = self._pose(status, orbit, tilt)
        if pose is None:
            self.counts.invalid += 1
        else:
            self.counts.accepted += 1
        spec = self.spec
        return PoseSample(
            spec.transform,
            pose,
            Tracking.MISSING if pose is None else Tracking.OK,
            reason,
            None,
            wall_ns,
            received_ns,
            latency_ns=spec.latency_ns,
            unknown_ns=spec.unknown_latency_ns,
        )

    def _follows(self, counter: int) -> bool:
        """Say whether a counter is newer than the last; what it passed over was lost."""
        if self._counter is None:
            self._counter = counter
            return True
        ahead = (counter - self._counter) % COUNTERS
        if ahead == 0:
            self.counts.repeated += 1
            return False
        if ahead > COUNTERS // 2:
            self.counts.out_of_order += 1
            if counter != 0:  # a counter that begins again is a C-arm that was switched off and on
                return False
            ahead = 1
        self.counts.lost += ahead - 1
        self._counter = counter
        return True

    def _pose(self, status: str, orbit_deg: float, tilt_deg: float) -> tuple[Rigid | None, str]:
        name = self.spec.transform
        if status != "OK":
            return None, f"{name}: the C-arm's encoders say {status}"
        if max(abs(orbit_deg), abs(tilt_deg)) > FARTHEST_DEG:
            return None, f"{name}: angles {orbit_deg:g} and {tilt_deg:g} are none that a C-arm has"
        try:
            return self.spec.pose_of(orbit_deg, tilt_deg), ""
        except CalibrationError as refusal:
            return None, f"{name}: {refusal}"


def checksum(body: bytes) -> int:
    """Return the exclusive or of the characters between ``$`` and ``*``."""
    total = 0
    for byte in body:
        total ^= byte
    return total


def nominal_pose(orbit_deg: float, tilt_deg: float, source_iso_mm: float) -> tuple[list[list[float]], list[float]]:
    """Return (rotation (3, 3), translation_mm (3,)) of T_stand_from_carm for a C that does not bend.

    Stand frame: origin at the isocentre, z the axis of the orbit, x that of the tilt; at orbit and tilt 0 the beam runs
    along +y and the image's rows along -z.  The orbit turns the beam from +y towards +x, the tilt turns the whole C
    about +x.
    """
    a, b = math.radians(orbit_deg), math.radians(tilt_deg)
    ca, sa, cb, sb = math.cos(a), math.sin(a), math.cos(b), math.sin(b)
    # Columns of the level C: x = rows x beam, y = rows (0, 0, -1), z = beam (sa, ca, 0); then turned about x by b.
    level = [[ca, 0.0, sa], [-sa, 0.0, ca], [0.0, -1.0, 0.0]]
    tilt = [[1.0, 0.0, 0.0], [0.0, cb, -sb], [0.0, sb, cb]]
    rotation = [[sum(tilt[i][k] * level[k][j] for k in range(3)) for j in range(3)] for i in range(3)]
    return rotation, [-source_iso_mm * rotation[i][2] for i in range(3)]
