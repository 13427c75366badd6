"""Owns the connection to one pose source: attempts with backoff and jitter, forever.  Refuses to read or to wait.

A source that falls silent is asked once, by a STATUS that its kernel has to acknowledge: a source that has nothing to
say stays connected, one that is gone is noticed within a second and connected to anew.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from typing import Final

from devices.openigtlink import encode_hello, encode_start, encode_stop
from devices.source import Effect, Send
from navsrv.server.config_tables import TrackerConfig
from navsrv.server.half_open import CONNECT_MS, NOTICE_MS, notice_half_open

BACKOFF_FIRST_S: Final = 0.2
BACKOFF_LAST_S: Final = 2.0
JITTER: Final = 0.2
"""Share of a pause by which it is drawn shorter or longer, so that many clients do not come back in step."""
SILENT_NS: Final = 250_000_000
"""Silence after which a source is asked, or three periods of a slow one."""


class TrackerClient:
    """One connection to a pose source: connects without blocking, with backoff and jitter, forever."""

    def __init__(self, name: str, tracker: TrackerConfig) -> None:
        self.name = name
        self.address = (tracker.host, tracker.port)
        self.socket: socket.socket | None = None
        self.connected = False
        self.retry_ns = 0
        self.heard_ns = 0
        """When bytes came last, monotonic; whoever reads writes it here."""
        self._stream, self._header = tracker.stream, tracker.header
        self._period_ns = int(1e9 / tracker.rate_hz)
        self._silent_ns = max(SILENT_NS, int(3e9 / tracker.rate_hz))
        self._asked_ns = 0
        self._heard_before_ns = 0
        self._backoff_s = BACKOFF_FIRST_S

    def begin(self) -> socket.socket:
        """Start a connection attempt and return its socket, to be watched for writing.

        An attempt that nobody answers ends after ``CONNECT_MS`` as one that failed: ``established`` says so.
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        notice_half_open(sock, CONNECT_MS)
        sock.connect_ex(self.address)
        self.socket = sock
        return sock

    def established(self) -> str | None:
        """Return None when the attempt succeeded, else why not."""
        assert self.socket is not None
        error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            return f"cannot connect to {self.address[0]}:{self.address[1]}: {os.strerror(error)}"
        self.connected = True
        self._heard_before_ns = self.heard_ns
        notice_half_open(self.socket, NOTICE_MS)
        self._say()
        if self._stream is not None:
            self._send(encode_start(self._stream, self._period_ns, self._header))
        return None

    def read(self, size: int) -> bytes:
        """Return what came, nothing at the end; BlockingIOError when nothing did, OSError when the peer is gone."""
        assert self.socket is not None
        return self.socket.recv(size)

    def obey(self, effect: Effect) -> None:
        """Write what a driver asks for."""
        if isinstance(effect, Send):
            self._send(effect.data)

    def ask(self, now_ns: int) -> None:
        """Say something to a source that has been silent for too long; once for each silence.

        Once, because a source that never reads would fill up, and a connection that is full looks like a dead one.
        """
        if self.connected and now_ns - self.heard_ns >= self._silent_ns and self._asked_ns <= self.heard_ns:
            self._asked_ns = now_ns
            self._say()

    def _say(self) -> None:
        self._send(encode_hello(self._header))

    def _send(self, data: bytes) -> None:
        # A socket that cannot take it has its reason, and reading tells it.
        with contextlib.suppress(OSError):
            if self.socket is not None:
                self.socket.send(data)

    def close(self) -> None:
        """Leave for good; a source that was asked to stream is asked to stop."""
        if self.socket is not None:
            if self.connected and self._stream is not None:
                self._send(encode_stop(self._stream, self._header))
            self.socket.close()
            self.socket = None

    def drop(self, now_ns: int) -> None:
        """Close, and set the time of the next attempt: 0.2 s, doubling to 2 s while the source sends nothing."""
        if self.socket is not None:
            self.socket.close()
        if self.connected and self.heard_ns != self._heard_before_ns:
            self._backoff_s = BACKOFF_FIRST_S
        self.socket, self.connected = None, False
        self.retry_ns = now_ns + int(1e9 * self._backoff_s * random.uniform(1.0 - JITTER, 1.0 + JITTER))
        self._backoff_s = min(2.0 * self._backoff_s, BACKOFF_LAST_S)
