"""An NDI tracker on a terminal and on TCP, as the server meets it: poses, blocked tools, a pulled plug, replay."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navsrv.server.cli import main
from tests.server.live import LiveServer, metric
from tests.server.peers import T_CT_FROM_REF
from tests.simulators.processes import Simulator, running
from tests.simulators.test_ndi import truth_log

pytestmark = pytest.mark.realtime


def ndi(roms: Path, *more: str) -> list[str]:
    return [
        f'trackers.main.ndi.tools={{NeedleToTracker="{roms}/needle.rom", ReferenceToTracker="{roms}/reference.rom"}}',
        *more,
    ]


def seen(server: LiveServer) -> dict[str, Any]:
    return server.frame(lambda f: f["state"] in ("OK", "DEGRADED") and f["tip_ct_mm"] is not None)


def tips_ct_mm(truth: Path) -> np.ndarray[Any, Any]:
    """Every tip (N, 3) in CT that the simulator's record of the truth allows."""
    log = truth_log(truth)
    return np.array([(T_CT_FROM_REF @ np.linalg.inv(t["Reference"]) @ t["Needle"])[:3, 3] for t in log.values()])


@pytest.mark.parametrize("line", ["terminal", "tcp"])
def test_an_ndi_tracker_is_followed_lost_and_found_again(balls: Path, tmp_path: Path, line: str) -> None:
    recordings = tmp_path / "recordings"
    how = ("--pty",) if line == "terminal" else ("--port", 0)
    truth = tmp_path / "truth.jsonl"
    with running("ndi", *how, "--roms", tmp_path, "--truth", truth) as simulator:
        ready = simulator.event()
        where = (
            f'trackers.main.ndi.device="{ready["pty"]}"'
            if line == "terminal"
            else f"trackers.main.port={ready['port']}"
        )
        overrides = ndi(tmp_path, where, f'recording.folder="{recordings}"')
        with LiveServer(balls, tmp_path, overrides) as server:
            frames = [seen(server) for _ in range(30)]
            assert frames[-1]["pose_time_source"] == "device"
            stamps = np.array([f["pose_time_ns"] for f in frames if f["state"] == "OK"])
            steps = np.diff(stamps) / (1e9 / 60.0)
            assert np.abs(steps - np.round(steps)).max() < 1e-3  # frame numbers are the time base
            tips = tips_ct_mm(truth)
            assert np.ptp([f["tip_ct_mm"] for f in frames], axis=0).max() > 5.0
            assert all(np.linalg.norm(tips - f["tip_ct_mm"], axis=1).min() < 1e-3 for f in frames)
            blocked(server, simulator)
        (recording,) = recordings.glob("*.mcap")
    assert main(["replay", str(recording), "--verify"]) == 0


def blocked(server: LiveServer, simulator: Simulator) -> None:
    simulator.tell(do="hide", tool="Needle", seconds=0.7)
    lost = server.frame(lambda f: f["state"] == "LOST" and "not in view" in f["reason"])
    assert lost["tip_ct_mm"] is None
    seen(server)
    simulator.tell(do="report", status=0x10)
    broken = server.frame(lambda f: f["state"] == "LOST" and "the tracker reports a hardware failure" in f["reason"])
    assert broken["tip_ct_mm"] is None
    simulator.tell(do="report", status=0)
    seen(server)
    simulator.tell(do="reset")
    restarts = 'source="main",what="restarts"'
    while metric(server, "navsrv_source_samples", restarts) < 1.0:
        seen(server)
    seen(server)


def test_a_pulled_plug_is_said_and_a_tracker_that_returns_is_used(balls: Path, tmp_path: Path) -> None:
    with running("ndi", "--port", 0, "--roms", tmp_path) as simulator:
        port = simulator.event()["port"]
        server = LiveServer(balls, tmp_path, ndi(tmp_path, f"trackers.main.port={port}", "recording.on=false"))
        with server:
            seen(server)
            simulator.end()
            gone = server.frame(lambda f: f["state"] == "LOST" and "is down" in f["reason"])
            assert any(a["condition"] == "link_down" for a in gone["alarms"])
            with running("ndi", "--port", port, "--roms", tmp_path):
                seen(server)


def test_a_line_that_is_not_there_is_named(balls: Path, tmp_path: Path) -> None:
    with running("ndi", "--port", 0, "--roms", tmp_path):
        device = tmp_path / "no-such-line"
        with LiveServer(balls, tmp_path, ndi(tmp_path, f'trackers.main.ndi.device="{device}"')) as server:
            frame = server.frame(lambda f: "cannot open" in f["reason"])
            assert str(device) in frame["reason"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ('trackers.main.ndi.tools.NeedleToTracker="absent.rom"', "absent.rom"),
        ("trackers.main.ndi.baud=1200", "1200"),
        ('trackers.main.connect="listener"', "listener"),
        ('trackers.main.ndi.wired.NeedleToTracker="X"', "also in tools"),
        ('tools.Needle.transform="OtherToTracker"', "no tool of trackers.main.ndi"),
    ],
)
def test_a_wrong_ndi_table_is_one_clear_line(
    balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, says: str
) -> None:
    with running("ndi", "--port", 0, "--roms", tmp_path):
        words = [word for text in [*ndi(tmp_path), override] for word in ("--set", text)]
        assert main(["check", str(balls), *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any(says in line and "expected" in line for line in lines), lines
