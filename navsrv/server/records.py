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

NEVER_NS: Final = 1 << 62
KEEP_NS: Final = 20_000_000
"""So much of a recording is lost when the loop's process is killed."""
KEEP_MOST: Final = 64
"""Records in one message; they are a few hundred kilobytes at most."""

_STAMP: Final = struct.Struct("<Q")


def pack(kind: bytes, content: bytes) -> bytes:
    """Return a record stamped with the wall clock."""
    return kind + _STAMP.pack(time.time_ns()) + content


def unpack(record: bytes) -> tuple[bytes, int, bytes]:
    """Return (kind, wall time in ns, content)."""
    return record[:1], _STAMP.unpack_from(record, 1)[0], record[1 + _STAMP.size :]


class RecordSink:
    """The sending end, never blocking: what the recorder cannot take is counted as lost, and an alarm says so.

    The loop keeps what belongs to a pose and sends it in one message a little later: while a frame is on its way, the
    recorder's waking up would take a core from those who wait for that frame.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str | None) -> None:
        self.lost = 0
        self.due_ns = NEVER_NS
        """Monotonic time by which to ``flush``."""
        self._kept: list[bytes] = []
        self._socket: zmq.Socket[bytes] | None = None
        if endpoint is not None:
            self._socket = context.socket(zmq.PUSH)
            self._socket.setsockopt(zmq.SNDHWM, 200_000)
            self._socket.setsockopt(zmq.LINGER, 2000)
            self._socket.connect(endpoint)

    def put(self, kind: bytes, content: bytes) -> None:
        """Hand one record over, after those that are kept."""
        if self._socket is not None:
            self._kept.append(pack(kind, content))
            self.flush()

    def keep(self, kind: bytes, content: bytes) -> None:
        """Take one record, to be sent at ``due_ns`` or before."""
        if self._socket is None:
            return
        self._kept.append(pack(kind, content))
        if len(self._kept) == 1:
            self.due_ns = time.monotonic_ns() + KEEP_NS
        elif len(self._kept) >= KEEP_MOST:
            self.flush()

    def flush(self) -> None:
        """Send what is kept, as one message."""
        self.due_ns = NEVER_NS
        kept, self._kept = self._kept, []
        if self._socket is None or not kept:
            return
        try:
            self._socket.send_multipart(kept, zmq.NOBLOCK)
        except zmq.Again:
            self.lost += len(kept)

    def close(self) -> None:
        """Flush what is kept and queued, for at most two seconds."""
        self.flush()
        if self._socket is not None:
            self._socket.close()
