"""A real server in a process of its own, and a tracker of the test's own that it connects to.

The frames are read with plain msgpack, not with the server's types.
"""

import json
import re
import select
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
import zmq
from numpy.typing import ArrayLike

from navsrv.wire.openigtlink import Message, Metadata, Transform, encode, timestamp_from_ns

PATIENCE_S = 60.0
PORTS = ("openigtlink", "devices", "zmq", "commands", "http")


class Tracker:
    """An OpenIGTLink server with one client: the navigation server."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._link: socket.socket | None = None
        self._stamp_ns = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()
        self._listener.close()

    def accept(self) -> None:
        """Wait for the server's connection."""
        self._listener.settimeout(PATIENCE_S)
        self._link, _ = self._listener.accept()
        self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def drop(self) -> None:
        """Close the connection."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def stamp(self) -> int:
        """Return a stamp (ns) later than the last by at least a microsecond, as it will read after the wire."""
        self._stamp_ns = max(self._stamp_ns + 1000, time.time_ns())
        return self._stamp_ns

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        assert self._link is not None
        self._link.sendall(data)

    def pose(
        self,
        needle: ArrayLike | None,
        reference: ArrayLike | None = None,
        status: str | None = "OK",
        time_ns: int | None = None,
    ) -> int:
        """Send needle and reference (identity by default) with one stamp in one write; return the stamp (ns)."""
        stamp = self.stamp() if time_ns is None else time_ns
        said = () if status is None else (Metadata("TransformStatus", status),)
        poses = [] if needle is None else [("NeedleToTracker", needle)]
        poses.append(("ReferenceToTracker", np.eye(4) if reference is None else reference))
        raw = timestamp_from_ns(stamp)
        self.send(b"".join(encode(Message(name, raw, Transform(np.asarray(m)), metadata=said)) for name, m in poses))
        return stamp


class LiveServer:
    """``navsrv serve`` as a user would start it, all ports free ones."""

    def __init__(self, config: Path, home: Path, overrides: Sequence[str] = ()) -> None:
        settings = [*overrides, *(f"ports.{name}=0" for name in PORTS)]
        arguments = [word for text in settings for word in ("--set", text)]
        self._errors = home / "server.err"
        with self._errors.open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "navsrv.server.cli", "serve", str(config), *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], PATIENCE_S)[0]:
            self.stop()
            raise AssertionError(f"the server was not ready within {PATIENCE_S} s")
        line = self.process.stdout.readline()
        if not line:
            self.process.wait(PATIENCE_S)
            raise AssertionError(f"the server did not start: {self.errors()}")
        self.ready: dict[str, Any] = json.loads(line)
        self.ports: dict[str, int] = self.ready["ports"]
        self.subscriber = self.context.socket(zmq.SUB)
        self.subscriber.setsockopt(zmq.SUBSCRIBE, b"guidance")
        self.subscriber.setsockopt(zmq.RCVHWM, 100_000)
        self.subscriber.connect(f"tcp://127.0.0.1:{self.ports['zmq']}")
        self.commander = self.context.socket(zmq.DEALER)
        self.commander.setsockopt(zmq.LINGER, 0)
        self.commander.connect(f"tcp://127.0.0.1:{self.ports['commands']}")
        self._next = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> int:
        """End the server as a service manager would; return its exit status."""
        self.context.destroy(linger=0)
        self.process.terminate()
        status = self.process.wait(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def errors(self) -> str:
        """What it wrote to standard error so far."""
        return self._errors.read_text()

    def frame(self, fits: Callable[[dict[str, Any]], bool] = lambda frame: True) -> dict[str, Any]:
        """Return the next frame that fits; AssertionError after ``PATIENCE_S``."""
        end = time.monotonic() + PATIENCE_S
        last: dict[str, Any] = {}
        while time.monotonic() < end:
            if self.subscriber.poll(500):
                payload = self.subscriber.recv()
                assert payload[:8] == b"guidance"
                last = msgspec.msgpack.decode(payload[8:])
                if fits(last):
                    return last
        raise AssertionError(f"no such frame within {PATIENCE_S} s; the last: {last}; {self.errors()}")

    def frame_of(self, stamp_ns: int) -> dict[str, Any]:
        """Return the first frame of a pose by its stamp, to the microsecond that survives the wire."""
        return self.frame(lambda f: f["pose_time_ns"] is not None and abs(f["pose_time_ns"] - stamp_ns) < 500)

    def ask(self, op: str, **args: Any) -> dict[str, Any]:
        """Return the answer to one command."""
        self._next += 1
        return self.request({"id": self._next, "op": op, "args": args})

    def request(self, request: Any) -> dict[str, Any]:
        """Return the answer to one request as it is (bytes are sent as they are)."""
        self.commander.send(request if isinstance(request, bytes) else msgspec.msgpack.encode(request))
        assert self.commander.poll(int(1000 * PATIENCE_S)), f"no answer to {request}"
        answer: dict[str, Any] = msgspec.msgpack.decode(self.commander.recv())
        return answer


def metric(server: LiveServer, name: str, labels: str = 'source="main"') -> float:
    """Return a figure of the metrics page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports['http']}/metrics", timeout=10.0) as page:
        found = re.search(rf"^{name}{{{labels}}} (\S+)$", page.read().decode(), re.MULTILINE)
    assert found is not None, name
    return float(found[1])
