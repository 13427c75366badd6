"""Owns the bytes of a simulated NDI device: CRC, replies to TX and BX, tool definition files.

Written from the protocol and apart from the server's own driver, so that each is a check of the other; both answer to
NDI's real clients.
"""

from __future__ import annotations

import binascii
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from navsrv.kernel.frames import Array, quaternion_wxyz

USED: Final = 3
"""A marker's nibble when it took part in the pose."""
ROM_SIZE: Final = 752
_REVERSED: Final = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the device says of one port handle in one frame.

    Attributes
    ----------
    state : str
        ``valid``, ``missing``, ``disabled`` or ``unoccupied``.
    matrix : (4, 4)
        ``T_tracker_from_tool``.
    error_mm : float
    status : int
        The port's status bits.
    markers : tuple of int
        A nibble for each of 20 markers, from A.
    tool_info : int
    """

    handle: int
    state: str
    matrix: Array
    error_mm: float
    status: int
    frame: int
    markers: tuple[int, ...]
    tool_info: int


def crc16(data: bytes) -> int:
    """Return the CRC of bytes (CRC-16/ARC).

    By division of the mirrored bits, which is slow, but not the way of the driver that is tested against this.
    """
    remainder = 0
    for byte in data:
        remainder ^= _REVERSED[byte] << 8
        for _ in range(8):
            remainder <<= 1
            if remainder & 0x10000:
                remainder ^= 0x18005
    return int(f"{remainder:016b}"[::-1], 2)


def reply(text: str) -> bytes:
    """Return a text reply with its CRC."""
    data = text.encode("ascii")
    return data + f"{crc16(data):04X}\r".encode()


def encode_tx(tools: tuple[Seen, ...], system: int, option: int) -> str:
    """Return the text of a reply to TX, without its CRC."""
    parts = [f"{len(tools):02X}"]
    for tool in tools:
        parts.append(f"{tool.handle:02X}")
        if tool.state == "unoccupied":
            # Without the line feed: the clients that this must serve do not step over one here.
            parts.append("UNOCCUPIED")
            continue
        if option & 0x0001:
            parts.append(_tx_pose(tool) if tool.state == "valid" else tool.state.upper())
            parts.append(f"{tool.status:08X}{tool.frame & 0xFFFFFFFF:08X}")
        if option & 0x0002:
            parts.append(f"{tool.tool_info:02X}" + _nibbles(tool.markers))
        if option & 0x0004:
            parts.append("DISABLED" if tool.state == "disabled" else "MISSING")
        parts.append("\n")
    if option & 0x1000:
        parts.append("00")
    return "".join(parts) + f"{system:04X}"


def _tx_pose(tool: Seen) -> str:
    q = [f"{round(v * 1e4):+06d}" for v in quaternion_wxyz(tool.matrix[:3, :3])]
    t = [f"{round(float(v) * 1e2):+07d}" for v in tool.matrix[:3, 3]]
    return "".join(q + t) + f"{round(tool.error_mm * 1e4):+06d}"


def _nibbles(markers: tuple[int, ...]) -> str:
    """Return 20 digits: one big number, marker A its lowest nibble."""
    return "".join(f"{m:X}" for m in reversed(markers))


def encode_bx(tools: tuple[Seen, ...], system: int, option: int) -> bytes:
    """Return a whole reply to BX, with both CRCs."""
    body = bytearray([len(tools)])
    for tool in tools:
        state = {"valid": 1, "missing": 2}.get(tool.state, 4)
        body += bytes([tool.handle, state])
        if state == 4:
            continue
        if option & 0x0001:
            if state == 1:
                q, t = quaternion_wxyz(tool.matrix[:3, :3]), tool.matrix[:3, 3]
                body += np.array([*q, *t, tool.error_mm]).astype("<f4").tobytes()
            body += struct.pack("<II", tool.status, tool.frame & 0xFFFFFFFF)
        if option & 0x0002:
            body += bytes([tool.tool_info]) + binascii.unhexlify(_nibbles(tool.markers))
        if option & 0x0004:
            body += b"\0"
    if option & 0x1000:
        body += b"\0"
    body += struct.pack("<H", system)
    head = struct.pack("<HH", 0xA5C4, len(body))
    return head + struct.pack("<H", crc16(head)) + bytes(body) + struct.pack("<H", crc16(bytes(body)))


def build_rom(part_number: str, markers_mm: Array, kind: int = 2) -> bytes:
    """Return a tool definition file: passive spheres at ``markers_mm`` (n, 3), seen from anywhere."""
    count = len(markers_mm)
    rom = bytearray(ROM_SIZE)
    rom[0:4] = b"NDI\0"
    rom[0x08], rom[0x0F] = 1, kind
    struct.pack_into("<IIIf", rom, 0x18, 90, count, min(3, count), 2.0)
    struct.pack_into("<f", rom, 0x40, 10.0)
    rom[0x48 : 0x48 + 12 * count] = np.asarray(markers_mm).astype("<f4").tobytes()
    rom[0x228 : 0x228 + count] = bytes(range(count))
    rom[0x23C : 0x23C + count] = b"\x1f" * count
    rom[0x240] = 9
    rom[0x244:0x250] = b"navsrv".ljust(12, b"\0")
    rom[0x250:0x264] = part_number.encode("ascii")[:20].ljust(20, b"\0")
    rom[0x28D], rom[0x28F] = 0x80, 0x29
    struct.pack_into("<H", rom, 4, sum(rom[6:]) & 0xFFFF)
    return bytes(rom)


def rom_fault(rom: bytes) -> int:
    """Return the error (0 when none) with which the device refuses a tool definition: 40 damaged, 41 too much."""
    if rom[:4] != b"NDI\0" or struct.unpack_from("<H", rom, 4)[0] != sum(rom[6:]) & 0xFFFF:
        return 0x40
    count, least = struct.unpack_from("<II", rom, 0x1C)
    return 0 if 1 <= count <= 20 and 1 <= least <= count else 0x41


def rom_markers(rom: bytes) -> Array:
    """Return the markers (n, 3) of a tool definition that ``rom_fault`` passes."""
    (count,) = struct.unpack_from("<I", rom, 0x1C)
    return np.frombuffer(rom, "<f4", 3 * count, 0x48).reshape(-1, 3).astype(np.float64)
