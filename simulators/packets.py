"""Owns OpenIGTLink messages as bytes on their way: cutting a stream into them, changing one, making many at once.

Faults act here, behind the device and before its client, so that neither can know.  What is changed is sealed again
with a right check sum, for a wrong one is a fault of its own.  Refuses to know why anything is changed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from navsrv.kernel.frames import Array
from navsrv.wire.openigtlink import Message, Metadata, Transform, encode
from navsrv.wire.openigtlink.crc64 import crc64

HEADER: Final = struct.Struct(">H12s20sQQQ")
STAMP_AT: Final = 34
CRC_AT: Final = 50
EXTENDED: Final = 12
_MATRIX: Final = struct.Struct(">12f")
POLYNOMIAL: Final = 0x42F0E1EBA9EA3693
"""ECMA-182, as the header's check sum uses it."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One whole message: its header's fields and its body as it travels."""

    version: int
    kind: bytes
    device: bytes
    stamp: int
    body: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Packet:
        """Return the packet of one whole message."""
        version, kind, device, stamp, _, _ = HEADER.unpack_from(raw)
        return cls(version, kind, device, stamp, raw[HEADER.size :])

    def sealed(self) -> bytes:
        """Return its bytes with the check sum that belongs to them."""
        body = self.body
        head = HEADER.pack(self.version, self.kind, self.device, self.stamp, len(body), crc64(body))
        return head + body

    @property
    def name(self) -> str:
        """The device name."""
        return self.device.rstrip(b"\0").decode("latin-1")

    @property
    def is_pose(self) -> bool:
        """Whether it carries one TRANSFORM."""
        return self.kind.startswith(b"TRANSFORM\0")

    @property
    def _content_at(self) -> int:
        return int.from_bytes(self.body[:2]) if self.version >= 2 else 0

    @property
    def matrix(self) -> Array:
        """The (4, 4) of a TRANSFORM."""
        numbers = _MATRIX.unpack_from(self.body, self._content_at)
        matrix = np.eye(4)
        matrix[:3] = np.array(numbers).reshape(4, 3).T
        return matrix

    def with_matrix(self, matrix: Array) -> Packet:
        """Return it with another (4, 4)."""
        return self.with_content(_MATRIX.pack(*matrix[:3].T.ravel().tolist()))

    def with_content(self, content: bytes, at: int = 0) -> Packet:
        """Return it with bytes of its content replaced, from ``at`` on."""
        start = self._content_at + at
        return replace(self, body=self.body[:start] + content + self.body[start + len(content) :])

    def with_stamp_moved(self, by_ns: int) -> Packet:
        """Return it stamped later (or earlier) by so many ns; a packet without a stamp keeps none."""
        moved = self.stamp + round(by_ns * (1 << 32) / 1e9)
        return self if self.stamp == 0 else replace(self, stamp=max(1, moved))


class PacketCutter:
    """Cuts a device's stream, which is trusted to be right, into whole messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the whole messages that ``data`` completes."""
        self._buffer += data
        whole: list[bytes] = []
        while len(self._buffer) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(self._buffer)[4]
            if len(self._buffer) < end:
                break
            whole.append(bytes(self._buffer[:end]))
            del self._buffer[:end]
        return whole


def encode_poses(name: str, matrices: Array, times_ns: NDArray[np.int64], status: str = "OK") -> NDArray[np.uint8]:
    """Return the TRANSFORM messages (N, length) of poses (N, 4, 4) stamped ``times_ns`` (N,), header 2 with a status.

    Message by message they are what ``encode`` gives; a test holds the two to each other.
    """
    metadata = (Metadata("TransformStatus", status),)
    model = np.frombuffer(encode(Message(name, 0, Transform(np.eye(4)), metadata=metadata)), np.uint8)
    out = np.tile(model, (len(matrices), 1))
    numbers = matrices[:, :3, :].transpose(0, 2, 1).reshape(-1, 12).astype(">f4")
    content = HEADER.size + EXTENDED
    out[:, content : content + 48] = np.frombuffer(numbers.tobytes(), np.uint8).reshape(-1, 48)
    out[:, STAMP_AT : STAMP_AT + 8] = np.frombuffer(_stamps(times_ns).astype(">u8").tobytes(), np.uint8).reshape(-1, 8)
    sums = _sums(out, HEADER.size, _table())
    out[:, CRC_AT : CRC_AT + 8] = np.frombuffer(sums.astype(">u8").tobytes(), np.uint8).reshape(-1, 8)
    return out


def _stamps(times_ns: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return 32.32 fixed-point seconds, to the nearest unit, of times since the epoch."""
    seconds, rest = np.divmod(times_ns.astype(np.uint64), np.uint64(1_000_000_000))
    unit = (rest << np.uint64(32)) + np.uint64(500_000_000)
    result: NDArray[np.uint64] = (seconds << np.uint64(32)) + unit // np.uint64(1_000_000_000)
    return result


@lru_cache(maxsize=1)
def _table() -> NDArray[np.uint64]:
    rows = []
    for byte in range(256):
        crc = byte << 56
        for _ in range(8):
            crc = ((crc << 1) ^ (POLYNOMIAL if crc >> 63 else 0)) & ((1 << 64) - 1)
        rows.append(crc)
    return np.array(rows, dtype=np.uint64)


@njit(cache=True, nogil=True)
def _sums(rows, start, table):  # type: ignore[no-untyped-def]
    out = np.zeros(rows.shape[0], np.uint64)
    for n in range(rows.shape[0]):
        crc = np.uint64(0)
        for i in range(start, rows.shape[1]):
            crc = (crc << np.uint64(8)) ^ table[np.uint8(crc >> np.uint64(56)) ^ rows[n, i]]
        out[n] = crc
    return out
