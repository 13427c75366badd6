"""Owns the bodies of words and numbers: STATUS, STRING, SENSOR, COMMAND, CAPABILITY, and what asks for others
(GET_, STT_, STP_, RTS_).

A stream is asked for in two ways: STT_TDATA and STT_QTDATA carry milliseconds and a coordinate system's name; STT_BIND
and STT_POLYDATA carry the shortest interval as a 32.32 stamp.  STT_VIDEO has eight bytes of
its own (codec, milliseconds), kept as ``data``.  The protocol defines no body for the other STT_ forms; an eight-byte
one is read as such an interval, so that any stream can be asked for at a rate.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import ClassVar, Final

from navsrv.kernel.errors import LocalProtocolError
from navsrv.wire.openigtlink.fields import (
    ASCII,
    Buffer,
    FloatArray,
    encode_text,
    fault,
    field_of,
    frozen,
    need,
    need_elements,
    parse_text,
    settle,
    text_of,
)
from navsrv.wire.openigtlink.timestamps import ns_from_timestamp, timestamp_from_ns

_STATUS: Final = struct.Struct(">Hq20s")
_STRING: Final = struct.Struct(">HH")
_SENSOR: Final = struct.Struct(">BBQ")
_COMMAND: Final = struct.Struct(">I128sHI")
_STT_TOOLS: Final = struct.Struct(">I32s")


class StatusCode(IntEnum):
    """Codes of STATUS; a peer may send others."""

    INVALID = 0
    OK = 1
    UNKNOWN_ERROR = 2
    PANIC_MODE = 3
    NOT_FOUND = 4
    ACCESS_DENIED = 5
    BUSY = 6
    TIME_OUT = 7
    OVERFLOW = 8
    CHECKSUM_ERROR = 9
    CONFIG_ERROR = 10
    RESOURCE_ERROR = 11
    UNKNOWN_INSTRUCTION = 12
    NOT_READY = 13
    MANUAL_MODE = 14
    DISABLED = 15
    NOT_PRESENT = 16
    UNKNOWN_VERSION = 17
    HARDWARE_FAILURE = 18
    SHUT_DOWN = 19


@dataclass(frozen=True, slots=True)
class Status:
    """STATUS: how a device is.  ``code`` is one of ``StatusCode`` or the peer's own; ``subcode`` is the device's."""

    type_name: ClassVar[str] = "STATUS"
    code: int
    subcode: int = 0
    error_name: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class String:
    """STRING: text (at most 65,535 bytes) and its character set (IANA MIBenum: 3 ASCII, 106 UTF-8)."""

    type_name: ClassVar[str] = "STRING"
    text: str
    encoding: int = ASCII


@dataclass(frozen=True, slots=True, eq=False)
class Sensor:
    """SENSOR: at most 255 readings (n,) float64 in a unit packed by the protocol's unit table (0: not said)."""

    type_name: ClassVar[str] = "SENSOR"
    values: FloatArray
    unit: int = 0
    status: int = 0

    def __post_init__(self) -> None:
        settle(self, "values", frozen(self.values, (None,), "values"))


@dataclass(frozen=True, slots=True)
class Command:
    """COMMAND, or its answer RTS_COMMAND (same layout; ``name`` is then the error's name)."""

    command_id: int
    name: str
    text: str
    encoding: int = ASCII
    type_name: str = "COMMAND"


@dataclass(frozen=True, slots=True)
class Capability:
    """CAPABILITY: the message types that a program understands."""

    type_name: ClassVar[str] = "CAPABILITY"
    types: tuple[str, ...]


class Verb(StrEnum):
    """What a query asks: one message, start a stream, stop it; or how it went."""

    GET = "GET"
    START = "STT"
    STOP = "STP"
    RETURN = "RTS"


SHORT_SUBJECTS: Final = {"TRANSFORM": "TRANS", "CAPABILITY": "CAPABIL", "COLORTABLE": "COLORT", "VIDEOMETA": "VMETA"}
"""Types whose queries are spelled shorter, because a type name ends at twelve letters."""
_LONG_SUBJECTS: Final = {short: long for long, short in SHORT_SUBJECTS.items()}
_TOOL_SUBJECTS: Final = ("TDATA", "QTDATA")


@dataclass(frozen=True, slots=True)
class Query:
    """A GET_, STT_, STP_ or RTS_ message.

    Attributes
    ----------
    type_name : str
        As on the wire, ``STT_TDATA``.
    resolution : int or None
        STT_ only, raw: milliseconds for TDATA and QTDATA, else a 32.32 interval.  ``interval_ns`` reads both.
    coordinate : str
        STT_TDATA and STT_QTDATA: the coordinate system asked for; empty for the sender's own.
    status : int or None
        RTS_ only: 0 is success.
    children : tuple of (type, device name)
        GET_BIND and STT_BIND: the children asked for; empty for all.
    data : bytes
        A body for which the protocol has no form, kept as it came.
    """

    type_name: str
    resolution: int | None = None
    coordinate: str = ""
    status: int | None = None
    children: tuple[tuple[str, str], ...] = ()
    data: bytes = b""

    @classmethod
    def start(cls, subject: str, interval_ns: int | None = None, coordinate: str = "") -> Query:
        """Return the STT_ query for a message type, at most one message each ``interval_ns``."""
        tools = subject in _TOOL_SUBJECTS
        if interval_ns is None:
            resolution = 0 if tools else None
        else:
            resolution = -(-interval_ns // 1_000_000) if tools else timestamp_from_ns(interval_ns)
        return cls(f"STT_{SHORT_SUBJECTS.get(subject, subject)}", resolution=resolution, coordinate=coordinate)

    @classmethod
    def answer(cls, query: Query, ok: bool) -> Query:
        """Return the RTS_ answer to ``query``."""
        return cls(f"RTS_{query.type_name[4:]}", status=0 if ok else 1)

    @property
    def verb(self) -> Verb:
        return Verb(self.type_name[:3])

    @property
    def subject(self) -> str:
        """The message type in question, in full: ``TRANSFORM`` of ``GET_TRANS``."""
        short = self.type_name[4:]
        return _LONG_SUBJECTS.get(short, short)

    @property
    def interval_ns(self) -> int | None:
        """The shortest interval asked for; None when the query names none."""
        if self.resolution is None:
            return None
        return self.resolution * 1_000_000 if self.subject in _TOOL_SUBJECTS else ns_from_timestamp(self.resolution)


def encode_status(body: Status) -> bytes:
    """Return the content of a STATUS."""
    if "\0" in body.message:
        raise LocalProtocolError("the text of a STATUS cannot hold a null")
    return _STATUS.pack(body.code, body.subcode, field_of(body.error_name, 20, "error name")) + (
        body.message.encode() + b"\0"
    )


def parse_status(content: Buffer) -> Status:
    """Return the STATUS of its content."""
    if len(content) < _STATUS.size:
        fault(f"STATUS: {len(content)} bytes of content where at least {_STATUS.size} belong")
    code, subcode, name = _STATUS.unpack_from(content)
    return Status(code, subcode, text_of(name), text_of(bytes(content[_STATUS.size :])))


def encode_string(body: String) -> bytes:
    """Return the content of a STRING."""
    raw, encoding = encode_text(body.text, body.encoding)
    if len(raw) > 0xFFFF:
        raise LocalProtocolError(f"a STRING holds at most 65535 bytes, not {len(raw)}")
    return _STRING.pack(encoding, len(raw)) + raw


def parse_string(content: Buffer) -> String:
    """Return the STRING of its content."""
    if len(content) < _STRING.size:
        fault(f"STRING: {len(content)} bytes of content where at least {_STRING.size} belong")
    encoding, length = _STRING.unpack_from(content)
    need(content, _STRING.size + length, "STRING")
    return String(*parse_text(bytes(content[_STRING.size :]), encoding))


def encode_sensor(body: Sensor) -> bytes:
    """Return the content of a SENSOR."""
    if body.values.size > 255:
        raise LocalProtocolError(f"a SENSOR holds at most 255 readings, not {body.values.size}")
    return _SENSOR.pack(body.values.size, body.status, body.unit) + body.values.astype(">f8").tobytes()


def parse_sensor(content: Buffer) -> Sensor:
    """Return the SENSOR of its content."""
    if len(content) < _SENSOR.size:
        fault(f"SENSOR: {len(content)} bytes of content where at least {_SENSOR.size} belong")
    count, status, unit = _SENSOR.unpack_from(content)
    need(content, _SENSOR.size + 8 * count, "SENSOR")
    return Sensor(struct.unpack_from(f">{count}d", content, _SENSOR.size), unit, status)  # type: ignore[arg-type]


def encode_command(body: Command) -> bytes:
    """Return the content of a COMMAND."""
    raw, encoding = encode_text(body.text, body.encoding)
    return _COMMAND.pack(body.command_id, field_of(body.name, 128, "command name"), encoding, len(raw)) + raw


def parse_command(content: Buffer, type_name: str = "COMMAND") -> Command:
    """Return the COMMAND of its content."""
    if len(content) < _COMMAND.size:
        fault(f"{type_name}: {len(content)} bytes of content where at least {_COMMAND.size} belong")
    command_id, name, encoding, length = _COMMAND.unpack_from(content)
    need(content, _COMMAND.size + length, type_name)
    text, encoding = parse_text(bytes(content[_COMMAND.size :]), encoding)
    return Command(command_id, text_of(name), text, encoding, type_name)


def encode_capability(body: Capability) -> bytes:
    """Return the content of a CAPABILITY."""
    return b"".join(field_of(name, 12, "type name").ljust(12, b"\0") for name in body.types)


def parse_capability(content: Buffer) -> Capability:
    """Return the CAPABILITY of its content."""
    need_elements(content, 12, "CAPABILITY")
    return Capability(tuple(text_of(bytes(content[at : at + 12])) for at in range(0, len(content), 12)))


def encode_children(children: tuple[tuple[str, str], ...]) -> bytes:
    """Return the selection of GET_BIND and STT_BIND: types, then the table of names."""
    if len(children) > 0xFFFF:
        raise LocalProtocolError(f"a BIND holds at most 65535 children, not {len(children)}")
    kinds = b"".join(field_of(kind, 12, "type name").ljust(12, b"\0") for kind, _ in children)
    return struct.pack(">H", len(children)) + kinds + encode_names(tuple(name for _, name in children))


def parse_children(content: bytes, what: str) -> tuple[tuple[str, str], ...]:
    """Return the children that a GET_BIND or STT_BIND asks for."""
    if len(content) < 2:
        fault(f"{what}: {len(content)} bytes where a count of children belongs")
    count = int.from_bytes(content[:2])
    end = 2 + 12 * count
    if len(content) < end:
        fault(f"{what}: {count} children do not fit in {len(content)} bytes")
    names, rest = parse_names(content[end:], count, what)
    need(rest, 0, f"{what} after its names")
    return tuple((text_of(content[2 + 12 * i : 14 + 12 * i]), name) for i, name in enumerate(names))


def encode_names(names: tuple[str, ...]) -> bytes:
    """Return a table of null-ended names, padded to an even length, after its length."""
    table = b"".join(field_of(name, 20, "child name") + b"\0" for name in names)
    table += b"\0" * (len(table) % 2)
    if len(table) > 0xFFFF:
        raise LocalProtocolError(f"a table of names holds at most 65535 bytes, not {len(table)}")
    return struct.pack(">H", len(table)) + table


def parse_names(content: bytes, count: int, what: str) -> tuple[tuple[str, ...], bytes]:
    """Return ``count`` names and the bytes after their table."""
    size = int.from_bytes(content[:2]) if len(content) >= 2 else -1
    if size < 0 or size % 2 or len(content) < 2 + size:
        fault(f"{what}: the table of names is cut short or of odd length")
    table, rest = content[2 : 2 + size], content[2 + size :]
    pieces = table.split(b"\0", count)
    if len(pieces) != count + 1 or len(pieces[-1]) > 1 or pieces[-1].strip(b"\0"):
        fault(f"{what}: the table of names does not hold {count} null-ended names")
    return tuple(text_of(piece) for piece in pieces[:count]), rest


def encode_query(body: Query) -> bytes:
    """Return the content of a query."""
    if body.data:
        return body.data
    match body.verb:
        case Verb.RETURN:
            return b"" if body.status is None else struct.pack(">B", body.status)
        case Verb.START if body.subject in _TOOL_SUBJECTS:
            return _STT_TOOLS.pack(body.resolution or 0, field_of(body.coordinate, 32, "coordinate system"))
        case Verb.START:
            interval = b"" if body.resolution is None else struct.pack(">Q", body.resolution)
            return interval + (encode_children(body.children) if body.children else b"")
        case Verb.GET if body.children:
            return encode_children(body.children)
        case _:
            return b""


def parse_query(content: Buffer, type_name: str) -> Query:
    """Return the query of its content."""
    raw = bytes(content)
    verb, subject = type_name[:3], type_name[4:]
    if not raw:
        return Query(type_name)
    if verb == Verb.RETURN and len(raw) == 1:
        return Query(type_name, status=raw[0])
    if verb == Verb.START and subject in _TOOL_SUBJECTS:
        if len(raw) == 4:  # the coordinate system may be left out
            return Query(type_name, resolution=int.from_bytes(raw))
        need(raw, _STT_TOOLS.size, type_name)
        resolution, coordinate = _STT_TOOLS.unpack(raw)
        return Query(type_name, resolution=resolution, coordinate=text_of(coordinate))
    if subject == "BIND" and verb == Verb.GET:
        return Query(type_name, children=parse_children(raw, type_name))
    if verb == Verb.START and subject != "VIDEO" and len(raw) >= 8 and (subject == "BIND" or len(raw) == 8):
        children = parse_children(raw[8:], type_name) if len(raw) > 8 else ()
        return Query(type_name, resolution=int.from_bytes(raw[:8]), children=children)
    return Query(type_name, data=raw)
