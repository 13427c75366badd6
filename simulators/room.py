"""Owns the demo's room: the processes on this machine, a display that takes every frame, and a command channel.

Everything is known by its public face: the ready lines, the frames, the command port (docs/decisions/0003).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import urllib.request
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from queue import Empty, Queue
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import zmq

from navsrv.anatomy.case import Case
from navsrv.wire.guidance import GuidanceFrame, decode_frame

START_TIMEOUT_S: Final = 120.0
RATE_HZ: Final = 60.0


class DemoFailed(Exception):
    """The demo could not go on; its text says where it stopped."""


def example_path(name: str) -> Path:
    """Return a shipped example configuration: in the installed package, or in the checkout beside it."""
    installed = Path(str(files("navsrv") / "examples" / name))
    return installed if installed.is_file() else Path(str(files("navsrv"))).parent / "examples" / name


class Part:
    """One process of the room: JSON lines out, JSON lines in."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        self.name = name
        self.lines: Queue[dict[str, Any] | None] = Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put(None)

    def wait_for(self, key: str, timeout_s: float) -> dict[str, Any]:
        """Return the next line that has ``key``; DemoFailed when the process ends or is silent."""
        end = time.monotonic() + timeout_s
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, end - time.monotonic()))
            except Empty:
                raise DemoFailed(f"the {self.name} said nothing of {key!r} within {timeout_s:g} s") from None
            if line is None:
                raise DemoFailed(f"the {self.name} ended by itself (exit status {self.process.wait()})")
            if key in line:
                return line

    def tell(self, **order: Any) -> None:
        """Send one order."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        """End the process and wait for it."""
        self.process.terminate()
        try:
            self.process.wait(20.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class Watcher:
    """A display that takes every frame the moment it comes, in a thread of its own."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], port: int) -> None:
        self._context = context
        self.received: list[tuple[int, bytes]] = []
        self._port = port
        self._news = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        subscriber = self._context.socket(zmq.SUB)
        subscriber.setsockopt(zmq.SUBSCRIBE, b"guidance")
        subscriber.setsockopt(zmq.RCVHWM, 100_000)
        subscriber.connect(f"tcp://127.0.0.1:{self._port}")
        while not self._stop.is_set():
            if subscriber.poll(200):
                payload = subscriber.recv()
                with self._news:
                    self.received.append((time.monotonic_ns(), payload))
                    self._news.notify_all()
        subscriber.close(linger=0)

    @property
    def newest(self) -> GuidanceFrame | None:
        """The newest frame."""
        return decode_frame(self.received[-1][1]) if self.received else None

    def wait(self, seconds: float, until: Callable[[GuidanceFrame], bool] | None = None) -> GuidanceFrame | None:
        """Return the first frame from now on that fits, or None after ``seconds``."""
        end, seen = time.monotonic() + seconds, len(self.received)
        while (left := end - time.monotonic()) > 0:
            with self._news:
                self._news.wait(left)
            for _, payload in self.received[seen:] if until is not None else ():
                seen += 1
                frame = decode_frame(payload)
                if until is not None and until(frame):
                    return frame
        return None

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()


class Commander:
    """The operator's command channel."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], port: int) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(f"tcp://127.0.0.1:{port}")
        self._next = 0

    def close(self) -> None:
        """End the channel."""
        self._socket.close(linger=0)

    def ask(self, op: str, **args: Any) -> Any:
        """Return the result of one command; DemoFailed when it is refused."""
        self._next += 1
        self._socket.send(msgspec.msgpack.encode({"id": self._next, "op": op, "args": args}))
        if not self._socket.poll(5000):
            raise DemoFailed(f"{op}: the server did not answer")
        answer = msgspec.msgpack.decode(self._socket.recv())
        if not answer["ok"]:
            raise DemoFailed(f"{op}: {answer['error']}")
        return answer["result"]


class Room:
    """All processes of the demo."""

    def __init__(self, case: Case, args: argparse.Namespace) -> None:
        self.case, self.args = case, args
        self.started = time.monotonic() if args.started is None else args.started
        self.folder = Path(tempfile.mkdtemp(prefix="navsrv-demo-"))
        self.truth_file = self.folder / "truth.jsonl"
        self.accepted: dict[str, Any] = {}
        self.timeline_s: dict[str, float] = {}
        self.watcher: Watcher | None = None
        self.commander: Commander | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._parts: list[Part] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.truth_file.unlink(missing_ok=True)
        self.folder.rmdir()

    def mark(self, what: str) -> None:
        """Note when something was reached, in seconds since the start."""
        self.timeline_s[what] = round(time.monotonic() - self.started, 2)

    def part(self, name: str, *arguments: str) -> Part:
        """Start one process."""
        part = Part(name, list(arguments))
        self._parts.append(part)
        return part

    @property
    def received(self) -> list[tuple[int, bytes]]:
        """Every frame that came, with its arrival (monotonic ns)."""
        return [] if self.watcher is None else self.watcher.received

    def stop(self) -> None:
        """End the server first, then the simulators."""
        if self.watcher is not None:
            self.watcher.stop()
        if self.commander is not None:
            self.commander.close()
        self._context.term()
        for part in reversed(self._parts):
            part.stop()
        self._parts.clear()

    def start(self) -> None:
        """Start the simulators and the server side by side, and wait for tracker and server to be ready."""
        config = example_path("demo.toml")
        room = ["--case", str(self.case.folder), "--seed", str(self.args.seed)]
        port = free_port()
        overrides = [f"trackers.main.port={port}", f'server.case="{self.case.folder}"']
        devices = int(tomllib.loads(config.read_text("utf-8"))["ports"]["devices"])
        if self.args.headless:
            devices = free_port()
            overrides += [f"ports.{name}=0" for name in ("openigtlink", "zmq", "commands", "http")]
            overrides.append(f"ports.devices={devices}")
        settings = [word for override in overrides for word in ("--set", override)]
        self.server = self.part("server", "navsrv.server.cli", "serve", str(config), *settings)
        self.tracker = self.part(
            "tracker", "simulators", "tracker", *room, "--rate-hz", f"{RATE_HZ:g}", "--latency-ms", "14",
            "--speed", f"{self.args.speed:g}", "--truth", str(self.truth_file), "--port", str(port),
        )  # fmt: skip
        self.oarm = self.part(
            "O-arm", "simulators", "oarm", *room, "--server", f"127.0.0.1:{devices}", "--fidelity", "quick"
        )
        self.carm = self.part(
            "C-arm", "simulators", "carm", *room, "--server", f"127.0.0.1:{devices}", "--fidelity", "quick"
        )
        self.ready = self.server.wait_for("ready", START_TIMEOUT_S)
        self.mark("server ready")
        self.watcher = Watcher(self._context, self.ready["ports"]["zmq"])
        self.tracker_story_s = float(self.tracker.wait_for("ready", START_TIMEOUT_S)["story_s"])
        self.mark("tracker ready")
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ready['ports']['http']}/api/case", timeout=60.0) as page:
            self.scenery: dict[str, Any] = json.load(page)
        self.commander = Commander(self._context, self.ready["ports"]["commands"])


def free_port() -> int:
    """Return a TCP port that is free now, so that processes that need each other's can start side by side."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
