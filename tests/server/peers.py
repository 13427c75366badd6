"""Other programs around a running server: a feed of poses, a plain display, and foreign programs as processes."""

import contextlib
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from navsrv.wire.openigtlink import Framer, Message, Query, encode
from tests.server.live import LiveServer, Tracker

T_CT_FROM_REF = np.array([[0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1.0]])
"""As the configuration of ``conftest`` presets it."""
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
PATIENCE_S = 30.0
IDENTITY = np.eye(4)

Array = NDArray[np.float64]


class Feed:
    """Sends the reference's and a needle's pose (if any) at a rate from a thread of its own, within a block."""

    def __init__(self, tracker: Tracker, rate_hz: float, needle: Array | None = IDENTITY, status: str = "OK") -> None:
        self._tracker, self._period_s, self._status = tracker, 1.0 / rate_hz, status
        self._needle = needle
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._end.wait(max(0.0, due - time.monotonic())):
            with contextlib.suppress(OSError):
                self._tracker.pose(self._needle, status=self._status)
            due += self._period_s

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()


class Display:
    """A plain display: asks, and collects whole messages with the time of their arrival."""

    def __init__(self, port: int, version: int = 2, receive_buffer: int | None = None) -> None:
        self.version = version
        self.sock = socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(("127.0.0.1", port))
        self.framer = Framer()
        self.heard: list[tuple[float, Message]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def ask(self, query: Query, device: str = "") -> None:
        self.sock.sendall(encode(Message(device, 0, query, self.version)))

    def read(self, size: int = 1 << 16) -> bool:
        """Take what is there; False at the end of the connection."""
        data = self.sock.recv(size)
        now = time.monotonic()
        self.heard += [(now, message) for message in self.framer.feed(data)]
        return bool(data)

    def for_seconds(self, seconds: float) -> list[tuple[float, Message]]:
        """Return what arrives within a time."""
        self.heard.clear()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self.sock], [], [], left)[0]:
                assert self.read(), "the server ended the connection"
        return list(self.heard)

    def until(self, fits: Callable[[Message], bool]) -> Message:
        """Return the first message that fits, in what was heard before or comes now."""
        end = time.monotonic() + PATIENCE_S
        while True:
            found = [message for _, message in self.heard if fits(message)]
            if found:
                self.heard.clear()
                return found[0]
            assert time.monotonic() < end, [m.type_name for _, m in self.heard]
            assert self.read(), "the server ended the connection"


def free_port() -> int:
    """Return a port that was free a moment ago, for programs that cannot choose one themselves."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


class Program:
    """A foreign program as a process, with what it wrote so far."""

    def __init__(self, process: "subprocess.Popen[bytes]", written: Path) -> None:
        self.process, self._written = process, written

    def text(self) -> str:
        return self._written.read_text(errors="replace")

    def wait_for(self, fits: Callable[[str], bool]) -> str:
        """Return what it wrote as soon as that fits."""
        end = time.monotonic() + PATIENCE_S
        while not fits(text := self.text()):
            assert time.monotonic() < end, f"after {PATIENCE_S} s: {text[-2000:]}"
            time.sleep(0.05)
        return text


@contextlib.contextmanager
def running(written: Path, *command: object) -> Iterator[Program]:
    """Run a program within a block; both its outputs go to one file."""
    with written.open("wb") as output:
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=subprocess.STDOUT)
    try:
        yield Program(process, written)
    finally:
        process.kill()
        process.wait()


def usable(server: LiveServer, tool: str = "Needle") -> dict[str, Any]:
    """Return the next frame of a tool that gives its place."""
    return server.frame(lambda f: f["tool"] == tool and f["tip_ct_mm"] is not None)
