"""The tracker simulator, as other programs see it: pyigtl on its port, a user on its command line."""

from __future__ import annotations

import io
import signal
import socket
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyigtl
import pytest

from navsrv.kernel.frames import TIP, TRACKER, Rigid
from simulators.__main__ import main as simulators_main
from simulators.exposures import Settings, Tracker
from simulators.stages import Procedure
from simulators.world.insertion import Drift, NeedlePlan, Story
from simulators.world.markers import Jittered
from simulators.world.scene import Scene, read_truth_log
from tests.simulators.conftest import MiniCase
from tests.simulators.processes import refused, running

HEADER = struct.Struct(">H12s20sIIQQ")


class Wire:
    """A bare client with a parser of its own: header, content, and metadata by the protocol's text."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=5.0)

    def receive(self) -> tuple[int, str, int, np.ndarray[Any, Any], str]:
        """Return header version, device name, stamp in ns, matrix (4, 4) and metadata of the next TRANSFORM."""
        version, _, name, seconds, fraction, size, _ = HEADER.unpack(self._take(HEADER.size))
        body = self._take(size)
        start = struct.unpack(">H", body[:2])[0] if version == 2 else 0
        numbers = struct.unpack(">12f", body[start : start + 48])
        matrix = np.eye(4)
        matrix[:3] = np.array(numbers).reshape(4, 3).T
        stamp = seconds * 10**9 + round(fraction * 10**9 / 2**32)
        return version, name.rstrip(b"\0").decode(), stamp, matrix, body[start + 48 :].decode("latin-1")

    def _take(self, count: int) -> bytes:
        data = io.BytesIO()
        while data.tell() < count:
            piece = self.sock.recv(count - data.tell())
            assert piece, "the simulator closed the connection"
            data.write(piece)
        return data.getvalue()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def speak_version_2(sock: socket.socket) -> None:
    """Send a message with header 2, as the navigation server does when it connects."""
    hello = pyigtl.TransformMessage(np.eye(4), device_name="Hello")
    hello.header_version = 2
    hello.metadata = {"a": "b"}
    sock.sendall(hello.pack())


@pytest.mark.realtime
def test_pyigtl_receives_poses_that_match_the_truth_within_the_noise(mini_case: MiniCase, tmp_path: Path) -> None:
    truth_file = tmp_path / "truth.jsonl"
    with running("tracker", "--case", mini_case.folder, "--seed", 5, "--truth", truth_file) as tracker:
        ready = tracker.event()
        assert ready["ready"] is True
        client = pyigtl.OpenIGTLinkClient("127.0.0.1", ready["port"])
        try:
            received = []
            for _ in range(40):
                message = client.wait_for_message("NeedleToTracker", timeout=5)
                assert message is not None
                received.append((round(message.timestamp * 1e9), np.array(message.matrix)))
        finally:
            client.stop()
    assert tracker.process.returncode == 0
    log = read_truth_log(truth_file)
    stamps = np.array([r.pose_time_ns for r in log.records])
    moves, turns = [], []
    for stamp, matrix in received:
        record = log.records[int(np.argmin(np.abs(stamps - stamp)))]
        assert abs(record.pose_time_ns - stamp) < 2_000  # pyigtl keeps stamps as float seconds
        pose = Rigid.from_matrix(TRACKER, TIP, matrix)
        moves.append(pose.translation_mm - log.T_tracker_from_ct.apply(record.tip_ct_mm))
        axis = log.T_tracker_from_ct.rotation @ record.axis_ct
        turns.append(np.degrees(np.arccos(np.clip(pose.rotation[:, 2] @ axis, -1.0, 1.0))))
    assert 0.05 < np.sqrt((np.array(moves) ** 2).sum(axis=1).mean()) < 0.16
    assert 0.005 < np.sqrt((np.array(turns) ** 2).mean()) < 0.06


@pytest.mark.realtime
def test_both_tools_come_with_one_stamp_and_metadata_only_after_version_2_was_spoken(mini_case: MiniCase) -> None:
    with (
        running("tracker", "--case", mini_case.folder, "--rate-hz", 100) as tracker,
        Wire(tracker.event()["port"]) as wire,
    ):
        needle, reference = wire.receive(), wire.receive()
        assert (needle[1], reference[1]) == ("NeedleToTracker", "ReferenceToTracker")
        assert needle[2] == reference[2]
        assert abs(needle[2] - time.time_ns()) < 2e9
        assert needle[0] == reference[0] == 1
        speak_version_2(wire.sock)
        while (needle := wire.receive())[0] == 1:
            assert needle[4] == ""
        assert "TransformStatus" in needle[4]
        assert needle[4].endswith("OK")


@pytest.mark.realtime
def test_stamps_keep_the_declared_rate_without_drift(mini_case: MiniCase, tmp_path: Path) -> None:
    truth_file = tmp_path / "truth.jsonl"
    with running("tracker", "--case", mini_case.folder, "--rate-hz", 200, "--truth", truth_file) as tracker:
        with Wire(tracker.event()["port"]) as wire:
            stamps = [wire.receive()[2] for _ in range(400)][::2]
        tracker.tell(do="stop")
        assert tracker.process.wait(10.0) == 0
    periods = np.diff(stamps) / 5e6
    # Every stamp is on the grid of the rate; a loaded machine may leave some out.
    assert np.abs(periods - np.rint(periods)).max() < 1e-3
    assert np.median(periods) == pytest.approx(1.0)
    log = read_truth_log(truth_file)
    assert {r.pose_time_ns for r in log.records} >= set(stamps)


@pytest.mark.realtime
def test_a_hidden_tool_is_out_of_view_for_as_long_as_told_and_the_other_stays(mini_case: MiniCase) -> None:
    with running("tracker", "--case", mini_case.folder) as tracker, Wire(tracker.event()["port"]) as wire:
        speak_version_2(wire.sock)
        while "OK" not in wire.receive()[4]:
            pass
        tracker.tell(do="hide", tool="Needle", seconds=0.5)
        hidden, reference = [], []
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline:
            _, name, stamp, matrix, metadata = wire.receive()
            if name == "ReferenceToTracker":
                reference.append(metadata.endswith("OK"))
            elif metadata.endswith("OUT_OF_VIEW"):
                hidden.append(stamp)
                assert np.array_equal(matrix, np.eye(4))
            elif hidden:
                break
        assert 0.4 < (hidden[-1] - hidden[0]) * 1e-9 < 0.6
        assert all(reference)


@pytest.mark.realtime
def test_a_client_that_reads_nothing_delays_nobody(mini_case: MiniCase) -> None:
    with running("tracker", "--case", mini_case.folder, "--rate-hz", 1000) as tracker:
        port = tracker.event()["port"]
        with socket.socket() as stuck, Wire(port) as wire:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect(("127.0.0.1", port))
            ages = []
            for _ in range(3000):
                _, name, stamp, _, _ = wire.receive()
                if name == "NeedleToTracker":
                    ages.append(time.time_ns() - stamp)
            assert np.median(ages[-500:]) < 50e6


@pytest.mark.realtime
def test_the_story_begins_when_told_and_the_truth_says_its_phases(mini_case: MiniCase, tmp_path: Path) -> None:
    truth_file = tmp_path / "truth.jsonl"
    with running("tracker", "--case", mini_case.folder, "--speed", 20, "--truth", truth_file) as tracker:
        tracker.event()
        tracker.tell(do="insert")
        while tracker.wait_for("phase")["phase"] != "finished":
            pass
        tracker.process.send_signal(signal.SIGTERM)
        assert tracker.process.wait(10.0) == 0
    log = read_truth_log(truth_file)
    phases = [r.phase for r in log.records]
    assert [p for n, p in enumerate(phases) if n == 0 or p != phases[n - 1]][-3:] == ["advance", "target", "finished"]
    assert {r.visible for r in log.records if r.phase == "occluded"} == {False}
    assert not truth_file.with_name("truth.jsonl.part").exists()


def test_bad_input_is_one_clear_line_and_exit_2(
    mini_case: MiniCase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such case folder" in refused("tracker", "--case", tmp_path / "none")

    def said(*arguments: object) -> str:
        try:
            status = simulators_main([str(a) for a in arguments])
        except SystemExit as e:
            status = e.code
        out, err = capsys.readouterr()
        assert status == 2
        assert out == ""
        assert err.count("\n") == 1, err
        return err

    assert "expected a number from 1 to 1000 Hz" in said("tracker", "--case", mini_case.folder, "--rate-hz", "fast")
    assert "expected one of tracker, " in said("radar")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} on 127.0.0.1" in said("tracker", "--case", mini_case.folder, "--port", port)
    missing = tmp_path / "missing" / "truth.jsonl"
    assert "--truth" in said("tracker", "--case", mini_case.folder, "--truth", missing)
    for server in ("nowhere", "127.0.0.1:0", "127.0.0.1:http", ":18945"):
        assert "expected HOST:PORT" in said("oarm", "--case", mini_case.folder, "--server", server)
        assert "expected HOST:PORT" in said("carm", "--case", mini_case.folder, "--server", server)


def test_the_noise_of_one_tool_is_independent_of_hiding_the_other() -> None:
    """A run with a fault must differ from the same run without it in nothing but the fault."""
    plan = NeedlePlan(np.zeros(3), np.array([0.0, -60.0, 0.0]))
    story = Story(plan, Drift("Nerve", 30.0, np.array([8.0, -45.0, 0.0]), 3.6), 1)
    scene = Scene.from_seed(1, plan.target_ct_mm)
    free, hidden = (Tracker(Procedure(scene, story), Jittered(1, 0.1, 0.001), Settings(60.0)) for _ in range(2))
    hidden.command({"do": "hide", "tool": "Needle", "seconds": 0.1}, 2)
    for n in range(20):
        seen, dark = free.expose(n).tools, hidden.expose(n).tools
        assert dark[0].visible == (n < 2 or n >= 8)
        assert np.array_equal(seen[1].matrix, dark[1].matrix)
