"""Owns OpenIGTLink pose sources: bytes in, typed samples out.  Refuses sockets, clocks and the patient.

Names are parsed once, status words of every known spelling are understood, and a pose without status is
*unknown*: only a source that its configuration calls ``trusted`` is believed without one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import numpy as np

from devices.clock import SourceClock
from devices.settling import rigid_of
from devices.source import UnaskedSource
from navsrv.kernel.errors import RemoteProtocolError
from navsrv.kernel.frames import Array, Frame, Rigid, rotation_from_quaternion_wxyz
from navsrv.kernel.samples import PoseSample, Tracking
from navsrv.wire.openigtlink import (
    Framer,
    Message,
    Position,
    QTData,
    Query,
    Sensor,
    Status,
    TData,
    Transform,
    encode,
    ns_from_timestamp,
)

STATUS_KEYS: Final = ("TransformStatus", "Status", "TransformValid")
OK_WORDS: Final = frozenset(("OK", "VALID", "TRUE", "1", "TOOL_OK"))
MAX_MESSAGE_BYTES: Final = 1 << 20
"""A pose source has no business sending more than a megabyte in one message."""
MAX_NAMES: Final = 256
"""Names that one connection may bring: what it invents beyond them is not kept."""
MAX_TRANSLATION_MM: Final = 100_000.0
"""A tool 100 m away is a broken number, not a tool."""
MAX_STATUS_CHARACTERS: Final = 40
CONFIRMING: Final = 3
"""Poses of one name, each newer than the one before but older than the newest, that show a clock set back."""
ABSENT_NS: Final = 1_000_000_000
"""A gap as long as this is an absence, which states and alarms tell of; shorter ones are lost poses."""
_NO_ROTATION: Final = np.zeros(4)
_NAME: Final = re.compile(r"(?P<frm>.+)To(?P<to>[A-Z].*)", re.DOTALL)


class Stamps(Enum):
    """What a source's stamps mean."""

    DEVICE = "device"
    """Seconds since the Unix epoch by the device's clock."""
    RECEIPT = "receipt"
    """Nothing: the wall clock at receipt stands in, and the frame says so."""


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """What the configuration declares of one pose source."""

    name: str
    rate_hz: float
    trusted: bool = False
    stamps: Stamps = Stamps.DEVICE
    names: Mapping[str, str] = field(default_factory=dict)
    """Device name on the wire to transform name, where the two differ."""
    latency_ns: int = 0
    """Declared time from a measurement to its stamp, or to its receipt where stamps mean nothing."""
    unknown_latency_ns: int = 0
    """How much longer it may have been: no one-way stamp can tell."""


@dataclass(slots=True)
class SourceCounts:
    """What happened to the samples of a source since the start."""

    accepted: int = 0
    invalid: int = 0
    not_rigid: int = 0
    repeated: int = 0
    out_of_order: int = 0
    lost: int = 0
    """Poses that did not come, by the stamps and the declared rate."""
    clock_jumps: int = 0
    unknown_names: int = 0


def parse_transform_name(name: str) -> tuple[Frame, Frame] | None:
    """Return (to, from) of a name as PLUS writes it, ``NeedleToTracker``; None if it is not one.

    The last ``To`` before a capital divides, so that ``NeedleToTool`` is understood.
    """
    found = _NAME.fullmatch(name)
    return None if found is None else (Frame(found["to"].lower()), Frame(found["frm"].lower()))


def encode_hello(version: int = 2) -> bytes:
    """Return the STATUS to send on connecting: PLUS sends metadata only to clients that spoke header version 2."""
    return encode(Message("navsrv", 0, Status(1, 0, "", "navsrv"), version))


def encode_start(subject: str, interval_ns: int, version: int = 2) -> bytes:
    """Return the STT_ message that asks for TDATA or QTDATA, one each ``interval_ns``."""
    return encode(Message("navsrv", 0, Query.start(subject, interval_ns), version))


def encode_stop(subject: str, version: int = 2) -> bytes:
    """Return the STP_ message that ends it."""
    return encode(Message("navsrv", 0, Query(f"STP_{subject}"), version))


class OpenIgtLinkSource(UnaskedSource):
    """One connection's worth of an OpenIGTLink pose source; make a new one for each connection."""

    def __init__(self, spec: SourceSpec, counts: SourceCounts) -> None:
        self.spec = spec
        self.counts = counts
        self.jumped = False
        """Whether the last ``feed`` saw the device's clock jump against ours."""
        self.readings: list[tuple[str, int | None, Sensor]] = []
        """SENSOR messages of the last ``feed``: device, its stamp (ns since the epoch), None without one, and body."""
        self._framer = Framer(max_body_bytes=MAX_MESSAGE_BYTES)
        self._frames: dict[str, tuple[Frame, Frame] | None] = {}
        self._last_stamp: dict[str, int] = {}
        self._behind: dict[str, tuple[int, int]] = {}
        self._period_ns = int(1e9 / spec.rate_hz)
        self.clock = SourceClock(self._period_ns)

    def feed(self, data: bytes | memoryview, received_ns: int, wall_ns: int) -> list[PoseSample]:
        """Return the samples that these bytes complete.

        Parameters
        ----------
        received_ns : int
            Monotonic time of the read.
        wall_ns : int
            Wall clock of the read, since the Unix epoch; stands in for stamps that mean nothing.

        Raises
        ------
        RemoteProtocolError
            The connection must end; the samples of whole messages before the fault are in its ``messages``.
        """
        self.jumped = False
        try:
            messages = self._framer.feed(data)
        except RemoteProtocolError as fault:
            whole = [m for m in fault.messages if isinstance(m, Message)]
            fault.messages = list(self._samples(whole, received_ns, wall_ns))
            raise
        return self._samples(messages, received_ns, wall_ns)

    def _samples(self, messages: list[Message], received_ns: int, wall_ns: int) -> list[PoseSample]:
        samples: list[PoseSample] = []
        self.readings = [(m.device, self._stamp(m.timestamp), m.body) for m in messages if isinstance(m.body, Sensor)]
        for message in messages:
            for name, matrix in poses_of(message):
                sample = self._sample(message, name, matrix, received_ns, wall_ns)
                if sample is not None:
                    samples.append(sample)
        return samples

    def _sample(
        self, message: Message, wire_name: str, matrix: Array, received_ns: int, wall_ns: int
    ) -> PoseSample | None:
        spec = self.spec
        name = spec.names.get(wire_name, wire_name)
        frames = self._frames_of(name)
        if frames is None:
            self.counts.unknown_names += 1
            return None
        stamp = self._stamp(message.timestamp)
        jump_ns = 0
        if stamp is not None:
            jump_ns = self.clock.observe(stamp, received_ns) or self._stepped_back(name, stamp, received_ns)
            if jump_ns:
                self.counts.clock_jumps += 1
                self.jumped = True
                self._last_stamp.clear()
                self._behind.clear()
            if not self._in_order(name, stamp):
                return None
        trust_key = None if spec.trusted else f"trackers.{spec.name}.trusted"
        tracking, reason = tracking_of(message, name, trust_key)
        if jump_ns:
            # A late message looks like a clock set back, and its pose may be old: the next one has to confirm it.
            tracking, reason = Tracking.MISSING, f"{name}: the clock of its source jumped by {jump_ns / 1e9:+.2f} s"
        pose = None
        if tracking is Tracking.OK:
            pose, fault = _pose(frames, matrix)
            if pose is None:
                self.counts.not_rigid += 1
                tracking, reason = Tracking.MISSING, f"{name}: {fault}"
            else:
                self.counts.accepted += 1
        else:
            self.counts.invalid += 1
        pose_time_ns = wall_ns if stamp is None else stamp
        late_ns, unknown_ns = (
            0 if stamp is None else self.clock.late_ns,
            spec.unknown_latency_ns + self.clock.shifted_ns,
        )
        return PoseSample(
            name, pose, tracking, reason, stamp, pose_time_ns, received_ns, late_ns, spec.latency_ns, unknown_ns
        )

    def _frames_of(self, name: str) -> tuple[Frame, Frame] | None:
        if name not in self._frames:
            if len(self._frames) >= MAX_NAMES:
                return None
            self._frames[name] = parse_transform_name(name)
        return self._frames[name]

    def _stamp(self, timestamp: int) -> int | None:
        """Return the stamp (ns since the Unix epoch), or None when it means nothing."""
        return None if self.spec.stamps is Stamps.RECEIPT or timestamp == 0 else ns_from_timestamp(timestamp)

    def _stepped_back(self, name: str, stamp: int, received_ns: int) -> int:
        """Return by how much (ns) the clock was set back, if this stamp confirms that; else 0.

        One pose that comes after a newer one was overtaken; when several in a row are older than the newest and in
        order among themselves, it is their clock.
        """
        if stamp >= self._last_stamp.get(name, stamp):
            self._behind.pop(name, None)
            return 0
        before, count = self._behind.get(name, (stamp, 0))
        count = count + 1 if stamp > before else 1
        self._behind[name] = (stamp, count)
        return self.clock.stepped_back(stamp, received_ns) if count >= CONFIRMING else 0

    def _in_order(self, name: str, stamp: int) -> bool:
        """Say whether a stamp is newer than the last of its name: a repeated or late pose must not look fresh."""
        last = self._last_stamp.get(name)
        if last is not None and stamp <= last:
            if stamp == last:
                self.counts.repeated += 1
            else:
                self.counts.out_of_order += 1
                self.counts.lost = max(0, self.counts.lost - 1)  # it was on its way
            return False
        if last is not None and 1.5 * self._period_ns < stamp - last < ABSENT_NS:
            self.counts.lost += round((stamp - last) / self._period_ns) - 1
        self._last_stamp[name] = stamp
        return True


def tracking_of(message: Message, name: str, trust_key: str | None) -> tuple[Tracking, str]:
    """Return (tracking, reason) of a pose by its metadata.

    Where several keys speak, all must say OK.  ``trust_key`` is the configuration key that would make a pose without
    status usable; None when that was said.
    """
    words = [word for key in STATUS_KEYS if (word := message.meta(key)) is not None] if message.metadata else []
    for word in words:
        if word not in OK_WORDS and word.strip().upper() not in OK_WORDS:
            return Tracking.MISSING, f"{name}: {_shown(word)}"
    if words:
        return Tracking.OK, ""
    if trust_key is None:
        return Tracking.OK, ""
    return Tracking.UNKNOWN, f"{name}: no status on the wire; if this source sends valid poses only, set {trust_key}"


def _shown(word: str) -> str:
    """Return a peer's status word as a display can show it: short, on one line."""
    text = "".join(c if c.isprintable() else " " for c in word[:MAX_STATUS_CHARACTERS]).strip()
    return text or "empty status"


def _pose(frames: tuple[Frame, Frame], matrix: Array) -> tuple[Rigid | None, str]:
    """Return the pose of a (4, 4) matrix, or None and why it cannot be one."""
    try:
        pose = rigid_of(frames[0], frames[1], matrix)
    except ValueError:
        return None, "the matrix is not a rigid motion"
    if max(map(abs, pose.translation_mm.tolist())) > MAX_TRANSLATION_MM:
        return None, f"more than {MAX_TRANSLATION_MM / 1e3:.0f} m away"
    return pose, ""


def poses_of(message: Message) -> list[tuple[str, Array]]:
    """Return (name on the wire, (4, 4) matrix) of each pose that a message carries."""
    body = message.body
    match body:
        case Transform():
            return [(message.device, body.matrix)]
        case TData():
            return [(element.name, element.matrix) for element in body.elements]
        case QTData():
            return [(e.name, matrix_from_quaternion(e.q_xyzw, e.position_mm)) for e in body.elements]
        case Position():
            q_xyzw = body.q_unit_xyzw
            return [
                (message.device, matrix_from_quaternion(_NO_ROTATION if q_xyzw is None else q_xyzw, body.position_mm))
            ]
        case _:
            return []


def matrix_from_quaternion(q_xyzw: Array, position_mm: Array) -> Array:
    """Return the (4, 4) matrix of a quaternion (x, y, z, w) and a position; rounding on the wire is normalised.

    A quaternion whose length is not near one gives a matrix that is not rigid, which the caller refuses.
    """
    m = np.eye(4)
    m[:3, 3] = position_mm
    x, y, z, w = q_xyzw.tolist()
    length = math.sqrt(x * x + y * y + z * z + w * w)
    m[:3, :3] = rotation_from_quaternion_wxyz((w, x, y, z)) if 0.9 < length < 1.1 else 0.0
    return m
