"""Temperature probes, an insert and a C-arm's encoders at the running server: over TCP and a pseudo-terminal."""

import contextlib
import json
import os
import pty
import socket
import threading
import time
import tty
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navsrv.wire.openigtlink import Image, Message, Sensor, encode, timestamp_from_ns
from simulators.carm_motion import Gantry, Position
from simulators.world.imaging import Detector
from tests.devices.test_carm_encoders import line
from tests.server.live import LiveServer, Tracker, metric

pytestmark = pytest.mark.realtime
MORE = """
[tools.Needle.inserts.Stylet]
stop_mm = 100.0
[tools.Needle.inserts.Probe]
stop_mm = 122.0
[probes.Nerve]
device = "Thermo"
channel = 1
rate_hz = 10.0
[imaging.carm]
kind = "projection"
image = "CarmImage"
pose = "CarmToStand"
detector = "ImageToCarm"
[imaging.carm.encoders]
device = "{terminal}"
rate_hz = 30.0
pixel_mm = 0.58
principal_px = [258.7, 253.1]
"""
DETECTOR = Detector()


@pytest.fixture
def room(balls: Path, tmp_path: Path) -> Iterator[tuple[LiveServer, Tracker, int]]:
    """A server, its tracker, and the C-arm's end of the serial line."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    config = tmp_path / "room.toml"
    config.write_text(balls.read_text() + MORE.format(terminal=os.ttyname(slave)))
    with Tracker() as tracker, LiveServer(config, tmp_path, [f"trackers.main.port={tracker.port}"]) as server:
        tracker.accept()
        yield server, tracker, master
    os.close(master)
    os.close(slave)


def test_probes_inserts_and_encoders(room: tuple[LiveServer, Tracker, int]) -> None:
    server, tracker, terminal = room
    end = threading.Event()
    gantry = Gantry(DETECTOR).moved(Position(35.0, -5.0))

    def run() -> None:
        count = 0
        while not end.wait(1 / 30):
            tracker.pose(np.eye(4))
            os.write(terminal, line(count, gantry.drive.orbit_deg, gantry.drive.tilt_deg))
            count += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with socket.create_connection(("127.0.0.1", server.ports["devices"])) as device:
            _probe(server, device)
            _insert(server)
            _xray(server, device, gantry)
    finally:
        end.set()
        thread.join()


def _probe(server: LiveServer, device: socket.socket) -> None:
    assert server.frame()["temperatures"] == [
        {"name": "Nerve", "celsius": None, "rate_c_s": None, "age_ms": None, "level": "unknown"}
    ]
    device.sendall(encode(Message("Thermo", timestamp_from_ns(time.time_ns()), Sensor(np.array([20.0, 43.5])), 2)))
    warm = server.frame(lambda f: f["temperatures"][0]["celsius"] is not None)["temperatures"][0]
    assert (warm["celsius"], warm["level"]) == (43.5, "caution")
    assert metric(server, "navsrv_temperature_celsius", 'probe="Nerve"') == 43.5
    silent = server.frame(lambda f: f["temperatures"][0]["level"] == "unknown")["temperatures"][0]
    assert silent["celsius"] is None
    assert silent["age_ms"] > 2000.0


def _insert(server: LiveServer) -> None:
    before = server.frame(lambda f: f["tip_ct_mm"] is not None)
    assert before["insert"] == "Stylet"
    assert not server.ask("change_insert", tool="Needle", insert="Probe", seated=False)["ok"]
    assert server.ask("change_insert", tool="Needle", insert="Probe", seated=True)["ok"]
    after = server.frame(lambda f: f["insert"] == "Probe")
    reach = np.subtract(after["tip_ct_mm"], before["tip_ct_mm"])
    assert reach == pytest.approx(22.0 * np.array(before["axis_ct"]), abs=1e-3)


def _xray(server: LiveServer, device: socket.socket, gantry: Gantry) -> None:
    """An image that comes by the network is placed by the angles that came by the serial line."""
    spacing = np.diag([DETECTOR.pixel_mm, DETECTOR.pixel_mm, 1.0, 1.0])
    pixels = np.random.default_rng(1).integers(0, 4000, (1, 512, 512), dtype=np.uint16)
    facts: dict[str, Any] = {}
    deadline = time.monotonic() + 60.0
    while not facts:
        assert time.monotonic() < deadline, server.errors()
        device.sendall(
            encode(Message("CarmImage", timestamp_from_ns(time.time_ns()), Image(pixels, spacing, "LPS"), 2))
        )
        time.sleep(0.5)
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{server.ports['http']}/api/fluoro/latest", timeout=10) as page,
        ):
            facts.update(json.load(page))
    # The reference stands in the tracker's frame as the identity, which here is the stand's.
    assert np.reshape(facts["T_ref_from_carm"], (4, 4)) == pytest.approx(gantry.nominal().matrix, abs=1e-4)
    corner = np.reshape(facts["T_carm_from_index"], (4, 4)) @ [258.7, 253.1, 0.0, 1.0]
    assert corner == pytest.approx([0.0, 0.0, DETECTOR.sdd_mm, 1.0], abs=1e-4)
    assert metric(server, "navsrv_source_samples", 'source="encoders carm",what="accepted"') > 0
    assert metric(server, "navsrv_source_samples", 'source="encoders carm",what="garbled"') == 0
