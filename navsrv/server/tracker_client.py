"""Owns the connection to one pose source: attempts with backoff and jitter, forever.  Refuses to read or to wait."""

from __future__ import annotations

import os
import random
import socket
from typing import Final

from devices.openigtlink import encode_hello
from navsrv.server.config import TrackerConfig

BACKOFF_FIRST_S: Final = 0.2
BACKOFF_LAST_S: Final = 2.0


class TrackerClient:
    """One connection to a pose source: connects without blocking, with backoff and jitter, forever."""

    def __init__(self, name: str, tracker: TrackerConfig) -> None:
        self.name = name
        self.address = (tracker.host, tracker.port)
        self.socket: socket.socket | None = None
        self.connected = False
        self.retry_ns = 0
        self._backoff_s = BACKOFF_FIRST_S

    def begin(self) -> socket.socket:
        """Start a connection attempt and return its socket, to be watched for writing."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
        self._backoff_s = BACKOFF_FIRST_S
        self.socket.send(encode_hello())
        return None

    def drop(self, now_ns: int) -> None:
        """Close, and set the time of the next attempt."""
        if self.socket is not None:
            self.socket.close()
        self.socket, self.connected = None, False
        self.retry_ns = now_ns + int(1e9 * self._backoff_s * random.uniform(0.8, 1.2))
        self._backoff_s = min(2.0 * self._backoff_s, BACKOFF_LAST_S)
