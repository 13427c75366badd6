"""Owns the bytes of NDI's Combined API: commands, replies in text and binary, CRCs, errors in words.

Refuses state and time: what a reply means for a session is ``devices.ndi``'s.  A reply is text that ends with CR, or
(only to BX) binary that begins with C4 A5, which no text can; so the framer need not know what was asked.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import Final

from navsrv.kernel.errors import RemoteProtocolError

MAX_TEXT_BYTES: Final = 8192
"""Longer than any reply to a command that is sent here; what does not end by then is no reply."""
BINARY_START: Final = b"\xc4\xa5"
_BINARY_HEADER: Final = struct.Struct("<2sHH")
_TRANSFORM: Final = struct.Struct("<8f")
_STATUS: Final = struct.Struct("<II")
_MARKER_BYTES: Final = 10
_TX_POSE: Final = re.compile(r"([+-]\d{5})" * 4 + r"([+-]\d{6})" * 3 + r"([+-]\d{5})")
_WARNING: Final = re.compile(r"WARNING[0-9A-Fa-f]{0,4}")
_HEX: Final = re.compile(r"[0-9A-Fa-f]+")


BAUD_CODES: Final = {
    9600: "0",
    14400: "1",
    19200: "2",
    38400: "3",
    57600: "4",
    115200: "5",
    921600: "6",
    1228739: "7",
    230400: "A",
}


class Port(IntFlag):
    """Bits of a port's status."""

    TOOL = 0x01
    SWITCH_1 = 0x02
    SWITCH_2 = 0x04
    SWITCH_3 = 0x08
    INITIALISED = 0x10
    ENABLED = 0x20
    OUT_OF_VOLUME = 0x40
    PARTLY_OUT = 0x80


class System(IntFlag):
    """Bits of the system's status, in each reply to TX and BX."""

    SYNC_ERROR = 0x0001
    INFRARED = 0x0002
    CRC_ERROR = 0x0004
    RECOVERABLE = 0x0008
    HARDWARE_FAILURE = 0x0010
    HARDWARE_CHANGE = 0x0020
    PORT_OCCUPIED = 0x0040
    PORT_UNOCCUPIED = 0x0080


SYSTEM_WORDS: Final = {
    System.SYNC_ERROR: "communication synchronisation error",
    System.INFRARED: "too much infrared light",
    System.CRC_ERROR: "communication CRC error",
    System.RECOVERABLE: "recoverable processing exception",
    System.HARDWARE_FAILURE: "hardware failure",
    System.HARDWARE_CHANGE: "hardware change",
    System.PORT_OCCUPIED: "a tool was plugged in",
    System.PORT_UNOCCUPIED: "a tool was unplugged",
}


class Option(IntFlag):
    """Bits of the reply option of TX and BX that are understood here."""

    TRANSFORMS = 0x0001
    MARKERS = 0x0002
    OUT_OF_VOLUME = 0x0800


class HandleState(Enum):
    """What a reply to TX or BX says of one port handle."""

    VALID = "valid"
    MISSING = "missing"
    DISABLED = "disabled"
    UNOCCUPIED = "unoccupied"


@dataclass(frozen=True, slots=True)
class HandleReading:
    """One port handle of one reply, as on the wire.

    Attributes
    ----------
    q_wxyz : tuple of four floats
        As received, so not of length one; meaningless unless VALID, like the two that follow.
    translation_mm : tuple of three floats
        Origin of the tool in the tracker's frame.
    error_mm : float
        The device's own root-mean-square residual of the markers.
    port : Port or None
        None where the reply has no more than the state.
    frame : int or None
        Frame number, 32 bits.
    tool_info : int or None
        Bits: 01 bad fit, 02 too few markers, 70 face in use.  None when not asked for.
    markers : tuple of int
        Nibble of each marker from A: 0 missing, 1 beyond the angle, 2 beyond the error, 3 used.
    """

    handle: int
    state: HandleState
    q_wxyz: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    translation_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    error_mm: float = 0.0
    port: Port | None = None
    frame: int | None = None
    tool_info: int | None = None
    markers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Readings:
    """A whole reply to TX or BX."""

    handles: tuple[HandleReading, ...]
    system: System


@dataclass(frozen=True, slots=True)
class Text:
    """A text reply with its CRC checked and taken off."""

    text: str

    @property
    def error(self) -> int | None:
        """The error's number, None when the reply is none."""
        if not self.text.startswith("ERROR"):
            return None
        digits = self.text[5:7]
        return int(digits, 16) if _HEX.fullmatch(digits) else 0

    @property
    def is_warning(self) -> bool:
        """Whether the device did what it was told and warns of something: the word, and a number on newer devices."""
        return _WARNING.fullmatch(self.text) is not None


@dataclass(frozen=True, slots=True)
class Binary:
    """The body of a binary reply, its CRCs checked and taken off."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Garbled:
    """Bytes that cannot be trusted, and why; whatever follows them on the line cannot be told apart from them."""

    why: str


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC_TABLE: Final = _crc_table()


def crc16(data: bytes) -> int:
    """Return the CRC of bytes: x^16 + x^15 + x^2 + 1 reflected, starting from 0 (CRC-16/ARC)."""
    crc = 0
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc


def encode_command(text: str) -> bytes:
    """Return the bytes of a command such as ``INIT:`` or ``PINIT:0A``, with CRC and CR."""
    data = text.encode("ascii")
    return b"%s%04X\r" % (data, crc16(data))


class ReplyFramer:
    """Cuts a stream of bytes into replies, in whatever pieces they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """How many bytes of an unfinished reply are held."""
        return len(self._buffer)

    def clear(self) -> None:
        """Forget what was begun."""
        self._buffer.clear()

    def feed(self, data: bytes | memoryview) -> list[Text | Binary | Garbled]:
        """Return the replies that these bytes complete; after a Garbled the rest is dropped."""
        self._buffer += data
        replies: list[Text | Binary | Garbled] = []
        while (reply := self._next()) is not None:
            replies.append(reply)
            if isinstance(reply, Garbled):
                self._buffer.clear()
        return replies

    def _next(self) -> Text | Binary | Garbled | None:
        buffer = self._buffer
        if not buffer:
            return None
        if buffer[0] == BINARY_START[0]:
            return self._binary()
        end = buffer.find(b"\r", 0, MAX_TEXT_BYTES)
        if end < 0:
            return Garbled(f"no end within {MAX_TEXT_BYTES} bytes") if len(buffer) >= MAX_TEXT_BYTES else None
        line = bytes(buffer[:end])
        del buffer[: end + 1]
        text, crc = line[:-4], line[-4:]
        if not line.isascii() or len(line) < 4 or not _HEX.fullmatch(crc.decode()):
            return Garbled("text without a CRC")
        return Text(text.decode()) if int(crc, 16) == crc16(text) else Garbled("text with a wrong CRC")

    def _binary(self) -> Binary | Garbled | None:
        buffer = self._buffer
        if len(buffer) < _BINARY_HEADER.size:
            return None
        start, length, header_crc = _BINARY_HEADER.unpack_from(buffer)
        # Before the length is believed.
        if start != BINARY_START or crc16(bytes(buffer[:4])) != header_crc:
            return Garbled("a binary header with a wrong CRC")
        whole = _BINARY_HEADER.size + length + 2
        if len(buffer) < whole:
            return None
        body = bytes(buffer[_BINARY_HEADER.size : whole - 2])
        crc = int.from_bytes(buffer[whole - 2 : whole], "little")
        del buffer[:whole]
        return Binary(body) if crc == crc16(body) else Garbled("a binary reply with a wrong CRC")


def decode_bx(body: bytes, option: Option) -> Readings:
    """Return what the body of a reply to BX says; ``option`` is what was asked for.

    Raises
    ------
    RemoteProtocolError
        The body is shorter or longer than its own counts say, or a handle's state is none.
    """
    try:
        count, at = body[0], 1
        handles = []
        for _ in range(count):
            reading, at = _bx_handle(body, at, option)
            handles.append(reading)
        (system,) = struct.unpack_from("<H", body, at)
    except (struct.error, IndexError) as e:
        raise RemoteProtocolError(f"BX reply of {len(body)} bytes ends before its {count} handles do") from e
    if at + 2 != len(body):
        raise RemoteProtocolError(f"BX reply has {len(body) - at - 2} bytes more than its {count} handles need")
    return Readings(tuple(handles), System(system))


_BX_STATES: Final = {1: HandleState.VALID, 2: HandleState.MISSING, 4: HandleState.DISABLED}


def _bx_handle(body: bytes, at: int, option: Option) -> tuple[HandleReading, int]:
    """Return one handle's reading that begins at an offset, and the offset behind it."""
    handle, status = body[at], body[at + 1]
    state = _BX_STATES.get(status)
    at += 2
    if state is None:
        raise RemoteProtocolError(f"BX reply: handle {handle:02X} has state {status:02X}, expected 01, 02 or 04")
    if state is HandleState.DISABLED:
        return HandleReading(handle, state), at
    values: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    if state is HandleState.VALID:
        values = _TRANSFORM.unpack_from(body, at)
        at += _TRANSFORM.size
    port, frame = _STATUS.unpack_from(body, at)
    at += _STATUS.size
    info: int | None = None
    markers: tuple[int, ...] = ()
    if option & Option.MARKERS:
        info = body[at]
        markers = _markers(body[at + 1 : at + 1 + _MARKER_BYTES].hex())
        at += 1 + _MARKER_BYTES
    q, t, error = values[:4], values[4:7], values[7]
    return (
        HandleReading(
            handle, state, (q[0], q[1], q[2], q[3]), (t[0], t[1], t[2]), error, Port(port), frame, info, markers
        ),
        at,
    )


def _markers(digits: str) -> tuple[int, ...]:
    """Return the nibbles of a marker field from marker A, whose nibble is the last: the field is one big number."""
    return tuple(int(digit, 16) for digit in reversed(digits))


def decode_tx(text: str, option: Option) -> Readings:
    """Return what a reply to TX (its CRC off) says; RemoteProtocolError when it is not one."""
    reader = _Reader(text)
    handles = tuple(_tx_handle(reader, option) for _ in range(reader.number(2)))
    system = System(reader.number(4))
    if reader.rest:
        raise RemoteProtocolError(f"TX reply: {len(reader.rest)} characters behind the system's status")
    return Readings(handles, system)


class _Reader:
    """A text with a place in it."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    @property
    def rest(self) -> str:
        return self.text[self.at :]

    def number(self, digits: int) -> int:
        """Return the next hexadecimal number of so many digits."""
        piece = self.text[self.at : self.at + digits]
        if len(piece) != digits or not _HEX.fullmatch(piece):
            raise RemoteProtocolError(f"TX reply: {piece!r} at {self.at}, expected {digits} hexadecimal digits")
        self.at += digits
        return int(piece, 16)

    def skip(self, word: str) -> bool:
        """Go behind a word if it comes next."""
        found = self.text.startswith(word, self.at)
        self.at += len(word) if found else 0
        return found


def _tx_handle(reader: _Reader, option: Option) -> HandleReading:
    handle = reader.number(2)
    if reader.skip("UNOCCUPIED"):
        # Sources differ on whether anything follows.
        if re.match(r"[0-9A-Fa-f]{16}\n", reader.rest):
            reader.number(16)
        reader.skip("\n")
        return HandleReading(handle, HandleState.UNOCCUPIED)
    values = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    if reader.skip("MISSING"):
        state = HandleState.MISSING
    elif reader.skip("DISABLED"):
        state = HandleState.DISABLED
    else:
        state = HandleState.VALID
        found = _TX_POSE.match(reader.text, reader.at)
        if found is None:
            raise RemoteProtocolError(f"TX reply: handle {handle:02X} has neither a pose nor MISSING or DISABLED")
        reader.at = found.end()
        q0, qx, qy, qz, tx, ty, tz, error = map(int, found.groups())
        values = (q0 / 1e4, qx / 1e4, qy / 1e4, qz / 1e4, tx / 1e2, ty / 1e2, tz / 1e2, error / 1e4)
    port, frame = Port(reader.number(8)), reader.number(8)
    info: int | None = None
    markers: tuple[int, ...] = ()
    if option & Option.MARKERS:
        digits = _HEX.match(reader.text, reader.at)
        if digits is None or len(digits[0]) < 2:
            raise RemoteProtocolError(f"TX reply: handle {handle:02X} has no marker information, which was asked for")
        reader.at = digits.end()
        info, markers = int(digits[0][:2], 16), _markers(digits[0][2:])
    if not reader.skip("\n"):
        raise RemoteProtocolError(f"TX reply: handle {handle:02X} does not end with a line feed")
    return HandleReading(handle, state, values[:4], values[4:7], values[7], port, frame, info, markers)


def decode_handle(text: str, what: str) -> int:
    """Return the port handle that a reply consists of."""
    try:
        return struct.unpack(">B", bytes.fromhex(text))[0]  # type: ignore[no-any-return]
    except (ValueError, struct.error) as e:
        raise RemoteProtocolError(f"{what} was answered {text[:40]!r}, expected two hexadecimal digits") from e


def decode_phsr(text: str) -> list[tuple[int, Port]]:
    """Return (handle, status) of each port of a reply to PHSR."""
    try:
        count = int(text[:2], 16)
        if len(text) != 2 + 5 * count:
            raise ValueError
        return [(int(text[i : i + 2], 16), Port(int(text[i + 2 : i + 5], 16))) for i in range(2, len(text), 5)]
    except ValueError as e:
        raise RemoteProtocolError(f"PHSR was answered {text[:40]!r}, expected a count and five digits each") from e
