"""A source whose clock is off, and steps, as an outsider sees it: frames, and the metrics page."""

import time
from pathlib import Path

import numpy as np
import pytest

from tests.server.live import LiveServer, Tracker, metric

OFF_S = 7200.0
"""The tracker's computer is two hours wrong."""


@pytest.mark.realtime
def test_a_stepping_clock_is_reported_and_survived_and_its_offset_is_known(balls: Path, tmp_path: Path) -> None:
    with Tracker() as tracker:
        overrides = [f"trackers.main.port={tracker.port}", "recording.on=false"]
        with LiveServer(balls, tmp_path, overrides) as server:
            tracker.accept()

            def stream(seconds: float, off_s: float) -> None:
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    tracker.pose(np.eye(4), time_ns=time.time_ns() + int(off_s * 1e9))
                    time.sleep(1 / 60)

            stream(2.5, OFF_S)
            assert server.frame_of(tracker.pose(np.eye(4), time_ns=time.time_ns() + int(OFF_S * 1e9)))["state"] == "OK"
            stream(0.1, OFF_S + 1.0)
            jumped = server.frame(lambda f: any(a["condition"] == "clock_jump" for a in f["alarms"]))
            assert jumped["state"] == "LOST"
            assert "jumped by +1.0" in jumped["reason"]
            stream(2.5, OFF_S + 1.0)
            after = server.frame(lambda f: f["state"] == "OK" and f["pose_time_ns"] > time.time_ns() + 7200e9)
            assert after["age_ms"] < 20.0
            while server.subscriber.poll(0):
                server.subscriber.recv()
            stream(0.1, OFF_S + 1.0)
            truth_s = (time.monotonic_ns() - time.time_ns()) / 1e9 - OFF_S - 1.0
            assert metric(server, "navsrv_source_clock_offset_seconds") == pytest.approx(truth_s, abs=0.02)
            assert 0.0 < metric(server, "navsrv_source_clock_offset_sigma_seconds") < 0.02
            assert abs(metric(server, "navsrv_source_clock_drift_ppm")) < 500.0
            assert metric(server, "navsrv_source_samples", 'source="main",what="clock_jumps"') == 1.0
            assert metric(server, "navsrv_source_connected") == 1.0
