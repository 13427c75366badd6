"""Owns the connection to an NDI tracker, over a serial line or TCP: opening with backoff, writing, line rates, breaks.

What is said on it and when is the driver's business (``devices.ndi``): it asks, the loop passes on.  Refuses to wait.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from typing import Final

import serial

from devices.source import Break, Effect, Send, SetLine
from navsrv.kernel.errors import DeviceError
from navsrv.server.config_tables import TrackerConfig
from navsrv.server.tracker_client import BACKOFF_FIRST_S, BACKOFF_LAST_S, JITTER, TrackerClient

BREAK_NS: Final = 250_000_000
"""How long a break is held: NDI devices reset on one."""
FIRST_BAUD: Final = 9600


class NdiSocket(TrackerClient):
    """An NDI tracker at a TCP port; nothing is said but what the driver asks for."""

    def _say(self) -> None:
        """A STATUS of another protocol would be a command that it does not know."""


class NdiLine:
    """An NDI tracker on a serial line: opens it again and again until it is there, as after a plug was pulled."""

    def __init__(self, name: str, device: str) -> None:
        self.name = name
        self.device = device
        self.socket: serial.Serial | None = None
        self.connected = False
        self.retry_ns = 0
        self.heard_ns = 0
        self._break_until_ns = 0
        self._backoff_s = BACKOFF_FIRST_S

    def begin(self) -> serial.Serial:
        """Open the line; DeviceError when it cannot be."""
        try:
            self.socket = serial.Serial(self.device, FIRST_BAUD, timeout=0, write_timeout=0, exclusive=True)
        except (serial.SerialException, OSError, ValueError) as error:
            said = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            raise DeviceError(f"cannot open {self.device}: {said}") from None
        return self.socket

    def established(self) -> str | None:
        """Return None: a line that is open is ready."""
        self.connected = True
        self._backoff_s = BACKOFF_FIRST_S
        return None

    def read(self, size: int) -> bytes:
        """Return what came, nothing at its end; BlockingIOError when nothing did, OSError when the line is gone."""
        assert self.socket is not None
        return os.read(self.socket.fileno(), size)

    def ask(self, now_ns: int) -> None:
        """End a break that was held for long enough."""
        if self._break_until_ns and now_ns >= self._break_until_ns and self.socket is not None:
            self._break_until_ns = 0
            with contextlib.suppress(OSError):
                self.socket.break_condition = False

    def obey(self, effect: Effect) -> None:
        """Do what the driver asks.  A line that is gone has its reason, and reading tells it."""
        if self.socket is None:
            return
        with contextlib.suppress(OSError, serial.SerialException):
            match effect:
                case Send(data):
                    self.socket.write(data)
                case SetLine(baud):
                    self.socket.baudrate = baud
                case Break():
                    self.socket.baudrate = FIRST_BAUD
                    self.socket.break_condition = True
                    self._break_until_ns = time.monotonic_ns() + BREAK_NS

    def drop(self, now_ns: int) -> None:
        """Close, and set the time of the next attempt."""
        self.close()
        self.retry_ns = now_ns + int(1e9 * self._backoff_s * random.uniform(1.0 - JITTER, 1.0 + JITTER))
        self._backoff_s = min(2.0 * self._backoff_s, BACKOFF_LAST_S)

    def close(self) -> None:
        """Leave the line."""
        if self.socket is not None:
            with contextlib.suppress(OSError, serial.SerialException):
                self.socket.close()
        self.socket, self.connected = None, False


Line = TrackerClient | NdiLine


def open_line(name: str, tracker: TrackerConfig) -> Line:
    """Return the connection that a tracker's configuration asks for."""
    if tracker.ndi is None:
        return TrackerClient(name, tracker)
    return NdiSocket(name, tracker) if tracker.ndi.device is None else NdiLine(name, tracker.ndi.device)
