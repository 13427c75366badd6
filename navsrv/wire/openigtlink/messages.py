"""Owns the envelope: header, metadata, and the message around a body.

A message is a value: who sent it (``device``), when by the sender's clock (``timestamp``, raw), what (``body``), and
what is said about it (``metadata``).  Reading and writing bytes is the codec's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Final

from navsrv.wire.openigtlink.control import Capability, Command, Query, Sensor, Status, String
from navsrv.wire.openigtlink.fields import ASCII, Buffer, fault, field_of, text_of
from navsrv.wire.openigtlink.images import Image, NdArray
from navsrv.wire.openigtlink.listings import ColorTable, ImageMeta, LabelMeta, VideoMeta
from navsrv.wire.openigtlink.points import Point, Trajectory
from navsrv.wire.openigtlink.poses import Position, QTData, TData, Transform
from navsrv.wire.openigtlink.surfaces import PolyData
from navsrv.wire.openigtlink.timestamps import ns_from_timestamp

HEADER_SIZE: Final = 58
_HEADER: Final = struct.Struct(">H12s20sQQQ")


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed header: everything that is known before the body has come."""

    version: int
    type_name: str
    device: str
    timestamp: int
    body_size: int
    crc: int

    @classmethod
    def parse(cls, data: Buffer, at: int = 0) -> Header:
        """Return the header in ``data`` from ``at`` (58 bytes); refuse versions and type names that cannot be."""
        version, kind, device, timestamp, body_size, crc = _HEADER.unpack_from(data, at)
        if version not in (1, 2):
            fault(f"header version {version}; known are 1 and 2")
        type_name = _TYPE_NAMES.get(kind) or parse_type_name(kind)
        return cls(version, type_name, text_of(device), timestamp, body_size, crc)

    def encode(self) -> bytes:
        kind, device = field_of(self.type_name, 12, "type name"), field_of(self.device, 20, "device name")
        return _HEADER.pack(self.version, kind, device, self.timestamp, self.body_size, self.crc)


_TYPE_NAMES: Final = {
    name.encode().ljust(12, b"\0"): name
    for name in ("TRANSFORM", "TDATA", "QTDATA", "POSITION", "STATUS", "STRING", "IMAGE", "SENSOR", "COMMAND", "POINT")
}
"""The usual names, so that a pose costs no decoding."""


def parse_type_name(kind: bytes) -> str:
    """Return the message type of its 12-byte field; refuse what is no name."""
    raw = kind.partition(b"\0")[0]
    if not raw or not raw.isascii() or not raw.decode("ascii").isprintable():
        fault(f"message type {kind!r} is no name")
    return raw.decode("ascii")


@dataclass(frozen=True, slots=True)
class Metadata:
    """One key and value; bytes where ``encoding`` (IANA MIBenum) is unknown here or not what the value is in."""

    key: str
    value: str | bytes
    encoding: int = ASCII


@dataclass(frozen=True, slots=True)
class Raw:
    """A body that is not read here: of a type unknown, or empty, which is how a peer says that it has none to give."""

    type_name: str
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class BindChild:
    """One message inside a BIND."""

    device: str
    body: Body


@dataclass(frozen=True, slots=True)
class Bind:
    """BIND: messages that belong together under one stamp.  A BIND inside a BIND stays ``Raw``."""

    type_name: ClassVar[str] = "BIND"
    children: tuple[BindChild, ...]


Body = (
    Transform
    | TData
    | QTData
    | Position
    | Status
    | String
    | Sensor
    | Image
    | NdArray
    | Point
    | Trajectory
    | PolyData
    | ColorTable
    | ImageMeta
    | LabelMeta
    | VideoMeta
    | Command
    | Capability
    | Query
    | Bind
    | Raw
)


@dataclass(frozen=True, slots=True)
class Message:
    """One OpenIGTLink message.

    Attributes
    ----------
    device : str
        At most 20 bytes.
    timestamp : int
        Raw 32.32 seconds since the Unix epoch by the sender's clock; 0 when it gave none.
    version : int
        Of the header: 2 has metadata and ``message_id``, 1 has neither.
    """

    device: str
    timestamp: int
    body: Body
    version: int = 2
    metadata: tuple[Metadata, ...] = ()
    message_id: int = 0

    @property
    def type_name(self) -> str:
        return self.body.type_name

    @property
    def time_ns(self) -> int | None:
        """The sender's stamp in ns since the Unix epoch; None when it gave none."""
        return ns_from_timestamp(self.timestamp) if self.timestamp else None

    def meta(self, key: str) -> str | None:
        """Return the last value under ``key`` as text; None when there is none."""
        for item in reversed(self.metadata):
            if item.key == key:
                return item.value if isinstance(item.value, str) else item.value.decode("utf-8", "replace")
        return None
