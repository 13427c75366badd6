"""A thin shell around the NDI driver for tests: a terminal or a socket, waited on with select and deadlines."""

from __future__ import annotations

import os
import select
import socket
import termios
import time
import tty
from collections.abc import Callable

from devices.ndi import NdiTracker
from devices.ndi_states import State
from devices.source import Break, Send, SetLine
from navsrv.kernel.samples import PoseSample

SPEEDS = {9600: termios.B9600, 115200: termios.B115200}


class Shell:
    """The driver on an open line."""

    def __init__(self, tracker: NdiTracker, line: str | int) -> None:
        """Open a terminal (its path) or a socket (a port of this machine)."""
        self.tracker = tracker
        self.samples: list[PoseSample] = []
        self.bauds: list[int] = []
        self._socket: socket.socket | None = None
        if isinstance(line, str):
            self.fd = os.open(line, os.O_RDWR | os.O_NOCTTY)
            tty.setraw(self.fd, termios.TCSANOW)
        else:
            self._socket = socket.create_connection(("127.0.0.1", line), timeout=5.0)
            self.fd = self._socket.fileno()

    def run(self, until: Callable[[], bool], seconds: float = 20.0) -> None:
        """Serve the line until something holds."""
        end = time.monotonic() + seconds
        self.tracker.start(time.monotonic_ns())
        while True:
            for effect in self.tracker.take_effects():
                match effect:
                    case Send(data):
                        assert os.write(self.fd, data) == len(data)
                    case SetLine(baud):
                        self.bauds.append(baud)
                        settings = termios.tcgetattr(self.fd)
                        settings[4] = settings[5] = SPEEDS[baud]
                        termios.tcsetattr(self.fd, termios.TCSADRAIN, settings)
                    case Break():
                        raise AssertionError("a break cannot be seen on a pseudo-terminal")
            if until():
                return
            assert time.monotonic() < end, f"not in time: {self.tracker.state}, {self.tracker.counts}"
            due = self.tracker.next_due_ns()
            left = 1.0 if due is None else (due - time.monotonic_ns()) / 1e9
            if select.select([self.fd], [], [], max(0.0, min(left, 1.0)))[0]:
                data = os.read(self.fd, 4096)
                assert data, "the simulator closed the line"
                self.samples += self.tracker.feed(data, time.monotonic_ns(), time.time_ns())
            else:
                self.tracker.tick(time.monotonic_ns())

    def wait(self, found: Callable[[PoseSample], bool]) -> PoseSample:
        """Return the next sample of which something holds."""
        start = len(self.samples)
        self.run(lambda: any(found(s) for s in self.samples[start:]))
        return next(s for s in self.samples[start:] if found(s))

    def close(self) -> None:
        """Stop the tracker and close the line."""
        if self.tracker.state is not State.FAILED:
            self.tracker.stop(time.monotonic_ns())
            self.run(lambda: self.tracker.state is State.STOPPED)
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self.fd)

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._socket is not None:
            self._socket.close()
        else:
            os.close(self.fd)
