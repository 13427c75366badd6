"""What the metrics count of sources of every kind: each fault is made to happen at the running server."""

from __future__ import annotations

import os
import pty
import re
import socket
import time
import tty
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from navsrv.wire.openigtlink import (
    Body,
    Image,
    Message,
    Metadata,
    Sensor,
    Transform,
    encode,
    timestamp_from_ns,
)
from tests.devices.test_carm_encoders import line
from tests.server.live import LiveServer, Tracker

pytestmark = pytest.mark.realtime
MORE = """
[probes.Nerve]
device = "Thermo"
rate_hz = 10.0
[imaging.carm]
kind = "projection"
image = "CarmImage"
pose = "CarmToStand"
[imaging.carm.encoders]
device = "{terminal}"
[imaging.oarm]
kind = "volume"
image = "OArm"
pose = "GantryToTracker"
register = false
"""
MS = 1_000_000
SHEARED = np.array([[1.0, 0.3, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


@dataclass
class Room:
    """The server, and the other end of each of its lines."""

    server: LiveServer
    tracker: Tracker
    terminal: int
    device: socket.socket
    counter: int = 0

    def push(self, name: str, body: Body, time_ns: int, status: str | None = "OK") -> None:
        said = () if status is None else (Metadata("TransformStatus", status),)
        self.device.sendall(encode(Message(name, timestamp_from_ns(time_ns), body, 2, said)))

    def pose(self, matrix: np.ndarray, time_ns: int, status: str | None = "OK") -> None:
        self.push("GantryToTracker", Transform(matrix), time_ns, status)

    def sensor(self, celsius: float, time_ns: int) -> None:
        self.push("Thermo", Sensor(np.array([celsius])), time_ns, None)

    def image(self, shape: tuple[int, ...], time_ns: int) -> None:
        self.push("OArm", Image(np.zeros(shape, dtype=np.int16), np.eye(4), "LPS"), time_ns, None)

    def angles(self, skip: int = 0, status: str = "OK", again: int = 0) -> None:
        self.counter += 1 + skip
        for _ in range(1 + again):
            os.write(self.terminal, line(self.counter, 10.0, 0.0, status))

    def counts(self) -> dict[tuple[str, str], float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.server.ports['http']}/metrics", timeout=10.0) as page:
            found = re.findall(r'^navsrv_source_samples{source="(.*)",what="(.*)"} (\S+)$', page.read().decode(), re.M)
        return {(source, what): float(value) for source, what, value in found}


@pytest.fixture
def room(balls: Path, tmp_path: Path) -> Iterator[Room]:
    master, slave = pty.openpty()
    tty.setraw(slave)
    config = tmp_path / "room.toml"
    config.write_text(balls.read_text() + MORE.format(terminal=os.ttyname(slave)))
    with Tracker() as tracker, LiveServer(config, tmp_path, [f"trackers.main.port={tracker.port}"]) as server:
        tracker.accept()
        with socket.create_connection(("127.0.0.1", server.ports["devices"])) as device:
            yield Room(server, tracker, master, device)
    os.close(master)
    os.close(slave)


def now() -> int:
    return time.time_ns()


def twice(room: Room) -> None:
    stamp = room.tracker.pose(np.eye(4))
    room.tracker.pose(np.eye(4), time_ns=stamp)


def overtaken(room: Room) -> None:
    stamp = room.tracker.pose(np.eye(4))
    room.tracker.pose(np.eye(4), time_ns=stamp - 5 * MS)


def gap(room: Room) -> None:
    stamp = room.tracker.pose(np.eye(4))
    room.tracker.pose(np.eye(4), time_ns=stamp + 100 * MS)
    time.sleep(0.12)


def pushed(*offsets_ms: int) -> Callable[[Room], None]:
    def act(room: Room) -> None:
        stamp = now()
        for offset in offsets_ms:
            room.pose(np.eye(4), stamp + offset * MS)

    return act


def read(*offsets_ms: int) -> Callable[[Room], None]:
    def act(room: Room) -> None:
        stamp = now()
        for offset in offsets_ms:
            room.sensor(37.0, stamp + offset * MS)

    return act


def imaged(
    shape: tuple[int, ...], times: int = 1, posed: bool = True, referenced: bool = True
) -> Callable[[Room], None]:
    def act(room: Room) -> None:
        stamp = now() if posed else now() - 100_000 * MS
        for offset in (-10, 10) if posed else ():
            room.pose(np.eye(4), stamp + offset * MS)
            if referenced:
                room.tracker.pose(np.eye(4), time_ns=stamp + offset * MS)
        for _ in range(times):
            room.image(shape, stamp)

    return act


FAULTS: dict[tuple[str, str], Callable[[Room], None]] = {
    ("main", "accepted"): lambda room: room.tracker.pose(np.eye(4)) and None,
    ("main", "refused"): lambda room: room.tracker.pose(np.eye(4), status="MISSING") and None,
    ("main", "not_rigid"): lambda room: room.tracker.pose(SHEARED) and None,
    ("main", "repeated"): twice,
    ("main", "late"): overtaken,
    ("main", "lost"): gap,
    ("encoders carm", "accepted"): lambda room: room.angles(),
    ("encoders carm", "refused"): lambda room: room.angles(status="FAULT"),
    ("encoders carm", "lost"): lambda room: room.angles(skip=3),
    ("encoders carm", "repeated"): lambda room: room.angles(again=1),
    ("encoders carm", "late"): lambda room: os.write(room.terminal, line(room.counter - 1)) and None,
    ("encoders carm", "garbled"): lambda room: os.write(room.terminal, b"$CARM,1,2\r\n") and None,
    ("probe Nerve", "accepted"): read(0),
    ("probe Nerve", "refused"): lambda room: room.sensor(float("nan"), now()),
    ("probe Nerve", "repeated"): read(0, 0),
    ("probe Nerve", "late"): read(0, -5),
    ("images oarm", "poses_accepted"): pushed(0),
    ("images oarm", "poses_refused"): lambda room: room.pose(np.eye(4), now(), None),
    ("images oarm", "poses_not_rigid"): lambda room: room.pose(SHEARED, now()),
    ("images oarm", "poses_repeated"): pushed(0, 0),
    ("images oarm", "poses_late"): pushed(0, -5),
    ("images oarm", "accepted"): imaged((2, 3, 4)),
    ("images oarm", "refused"): imaged((2, 3, 4, 3)),
    ("images oarm", "repeated"): imaged((2, 3, 4), times=2),
    ("images oarm", "without_pose"): imaged((2, 3, 4), posed=False),
    ("images oarm", "without_reference"): imaged((2, 3, 4), referenced=False),
}


def test_each_fault_of_each_kind_of_source_is_counted(room: Room) -> None:
    """All are made to happen, and again what a busy machine swallowed: the metrics are renewed each second."""
    room.angles()  # the line of encoders is open, and in the middle of its numbers
    before, missing = room.counts(), list(FAULTS)
    end = time.monotonic() + 60.0
    while missing:
        assert time.monotonic() < end, missing
        for fault in missing:
            if fault == ("images oarm", "without_reference"):
                time.sleep(0.4)  # the reference's poses are no longer near
            FAULTS[fault](room)
            room.angles()
        time.sleep(1.3)
        now_counted = room.counts()
        missing = [fault for fault in missing if now_counted.get(fault, 0.0) <= before.get(fault, 0.0)]
