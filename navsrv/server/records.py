"""Owns what goes to the recorder: one byte that says what it is, wall time (ns), and the content.

The recorder writes them to MCAP channels of the same names; replay reads them back.
"""

from __future__ import annotations

import struct
import time
from typing import Final

import zmq

INPUT: Final = b"i"
FRAME: Final = b"f"
NOTE: Final = b"n"
IMAGE: Final = b"m"
STOP: Final = b"x"
CHANNELS: Final = {INPUT: "input", FRAME: "guidance", NOTE: "note", IMAGE: "image"}

_STAMP: Final = struct.Struct("<Q")


def pack(kind: bytes, content: bytes) -> bytes:
    """Return a record stamped with the wall clock."""
    return kind + _STAMP.pack(time.time_ns()) + content


def unpack(record: bytes) -> tuple[bytes, int, bytes]:
    """Return (kind, wall time in ns, content)."""
    return record[:1], _STAMP.unpack_from(record, 1)[0], record[1 + _STAMP.size :]


class RecordSink:
    """The sending end, never blocking: what the recorder cannot take is counted as lost, and an alarm says so."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str | None) -> None:
        self.lost = 0
        self._socket: zmq.Socket[bytes] | None = None
        if endpoint is not None:
            self._socket = context.socket(zmq.PUSH)
            self._socket.setsockopt(zmq.SNDHWM, 200_000)
            self._socket.setsockopt(zmq.LINGER, 2000)
            self._socket.connect(endpoint)

    def put(self, kind: bytes, content: bytes) -> None:
        """Hand one record over."""
        if self._socket is None:
            return
        try:
            self._socket.send(pack(kind, content), zmq.NOBLOCK)
        except zmq.Again:
            self.lost += 1

    def close(self) -> None:
        """Flush what is queued, for at most two seconds."""
        if self._socket is not None:
            self._socket.close()
