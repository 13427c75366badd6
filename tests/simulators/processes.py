"""Simulators as a user starts them: own processes, their ready line, their exit status."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

from pyigtl.messages import MessageBase

ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0


class Simulator:
    """A running simulator: the JSON lines it prints, and a way to tell it what to do."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: Queue[str] = Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def event(self, timeout_s: float = START_S) -> dict[str, Any]:
        """Return the next JSON line; queue.Empty when none comes in time."""
        result: dict[str, Any] = json.loads(self._lines.get(timeout=timeout_s))
        return result

    def wait_for(self, name: str, timeout_s: float = START_S) -> dict[str, Any]:
        """Return the next line whose event has this name."""
        while True:
            event = self.event(timeout_s)
            if event.get("event") == name:
                return event

    def tell(self, **order: object) -> None:
        """Send one command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Close standard input, kill if that does not stop it, and collect everything."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if not self.process.stdin.closed:
            self.process.stdin.close()
        try:
            self.process.wait(30.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        self.process.stdout.close()


def command(*arguments: object) -> list[str]:
    """Return the command line of a simulator."""
    return [sys.executable, "-m", "simulators", *(str(a) for a in arguments)]


@contextmanager
def running(*arguments: object) -> Iterator[Simulator]:
    """Run a simulator within a block."""
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    simulator = Simulator(process)
    try:
        yield simulator
    finally:
        simulator.end()


def refused(*arguments: object) -> str:
    """Run a simulator that must refuse its input, and return what it said: one line, exit status 2, nothing else."""
    done = subprocess.run(
        command(*arguments),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


class Peer:
    """The server's end of one connection, decoded with pyigtl, which shares no code with the simulators."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(START_S)

    def message(self) -> MessageBase:
        """Return the next message."""
        header = MessageBase.parse_header(self._take(MessageBase.IGTL_HEADER_SIZE))
        message = MessageBase.create_message(header["message_type"])
        message.unpack(header, self._take(header["body_size"]))
        return message

    def wait_for(self, device: str) -> MessageBase:
        """Return the next message of a device."""
        while (message := self.message()).device_name != device:
            pass
        return message

    def _take(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            assert piece, "the simulator closed the connection"
            data += piece
        return bytes(data)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


@contextmanager
def listening(port: int = 0) -> Iterator[socket.socket]:
    """Listen for a simulator within a block."""
    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(START_S)
        yield server


def accepted(server: socket.socket) -> Peer:
    """Return the next simulator that connects."""
    return Peer(server.accept()[0])
