"""The tracker simulator among clients that are not ours, and its log of the truth against closed forms."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyigtl
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from simulators.__main__ import main as simulators_main
from tests.server.peers import running as program
from tests.simulators.conftest import MiniCase
from tests.simulators.processes import Simulator, running
from tests.simulators.test_tracker import Wire, speak_version_2

pytestmark = pytest.mark.realtime

Array = NDArray[np.float64]
TOOLS = ("Needle", "Reference", "Stylus")
NUMBER = r"(-?[\d.]+(?:e-?\d+)?)"


@contextmanager
def tracker(tmp_path: Path, *options: object) -> Iterator[tuple[Simulator, int, Callable[[], list[dict[str, Any]]]]]:
    """Run the simulator; yield it, its port, and what ends it and returns the log without its first line."""
    truth = tmp_path / "truth.jsonl"
    with running("tracker", "--truth", truth, *options) as simulator:

        def ended() -> list[dict[str, Any]]:
            simulator.end()
            assert simulator.process.returncode == 0
            return [json.loads(line) for line in truth.read_text().splitlines()][1:]

        yield simulator, simulator.event()["port"], ended


def matrix(record: dict[str, Any], tool: str, which: str = "sent") -> Array:
    return np.reshape(record["tools"][tool][which], (4, 4))


def known(records: list[dict[str, Any]], tool: str, shown: Array, places: slice = np.s_[:3]) -> bool:
    """Say whether this very matrix was sent for a tool, to what a C++ stream prints."""
    sent = np.array([matrix(r, tool) for r in records])[:, places]
    return bool((np.abs(sent - shown).max(axis=(1, 2)) < 0.01).any())


def test_the_cpp_receiver_prints_what_the_log_says_was_sent(
    tmp_path: Path, require_program: Callable[[str], Path]
) -> None:
    receiver = require_program("ReceiveClient")
    with tracker(tmp_path, "--tools", ",".join(TOOLS), "--camera", "vega") as (_, port, ended):
        with program(tmp_path / "out", receiver, "127.0.0.1", port) as client:
            text = client.wait_for(lambda t: t.count("TRANSFORM data type") > 12)
        records = ended()
    blocks = re.findall(r"TRANSFORM data type\.\s+=+\n(.*?)\n=+", text, re.DOTALL)[:12]
    shown = [np.array([[float(v) for v in line.split(",")] for line in b.splitlines()])[:3] for b in blocks]
    for n, m in enumerate(shown):
        assert known(records, TOOLS[n % 3], m), (n, m)


def test_the_cpp_receiver_reads_positions(tmp_path: Path, require_program: Callable[[str], Path]) -> None:
    receiver = require_program("ReceiveClient")
    with tracker(tmp_path, "--message", "POSITION", "--tools", ",".join(TOOLS)) as (_, port, ended):
        with program(tmp_path / "out", receiver, "127.0.0.1", port) as client:
            text = client.wait_for(lambda t: t.count("quaternion = (") > 12)
        records = ended()
    places, turns = (re.findall(rf"{word} += \((.*)\)", text)[:12] for word in ("position", "quaternion"))
    for n, (place, turn) in enumerate(zip(places, turns, strict=True)):
        q = [float(v) for v in turn.split(",")]
        pose = np.column_stack([Rotation.from_quat(q).as_matrix(), [float(v) for v in place.split(",")]])
        assert known(records, TOOLS[n % 3], pose), (n, pose)


@pytest.mark.parametrize("kind", ["TDATA", "QTDATA"])
def test_the_cpp_tracking_clients_start_their_stream_and_read_every_tool(
    kind: str, tmp_path: Path, require_program: Callable[[str], Path]
) -> None:
    name = {"TDATA": "TrackingDataClient", "QTDATA": "QuaternionTrackingDataClient"}[kind]
    options = ("--message", "none", "--tools", ",".join(TOOLS))
    with tracker(tmp_path, *options) as (_, port, ended):
        with program(tmp_path / "out", require_program(name), "127.0.0.1", port, 30) as client:
            # The ninth list makes it stop the stream; what comes after that is none.
            text = client.wait_for(lambda t: f"STP_{kind}" in t)
        records = ended()
    assert f"Receiving : RTS_{kind}" in text
    elements = re.split(r"=+ Element #(\d) =+", text)[1:]
    assert len(elements) >= 2 * 3 * 5
    for number, body in zip(elements[::2], elements[1::2], strict=True):
        tool = TOOLS[int(number)]
        assert f"{tool}ToTracker" in body
        if kind == "TDATA":
            rows = [[float(v) for v in r] for r in re.findall(", ".join([NUMBER] * 4), body)][:3]
            assert known(records, tool, np.array(rows))
        else:
            place = [float(v) for v in re.findall(r"Position\s+: (.*)", body)[0].split(",")]
            q = [float(v) for v in re.findall(r"Quaternion : (.*)", body)[0].split(",")]
            pose = np.column_stack([Rotation.from_quat(q).as_matrix(), place])
            assert known(records, tool, pose)


def test_pyigtl_reads_every_tool_by_name(tmp_path: Path) -> None:
    """Of POSITION it can read nothing (its class is a list of points), so the C++ receiver is the judge of that."""
    with tracker(tmp_path, "--tools", ",".join(TOOLS)) as (_, port, ended):
        client = pyigtl.OpenIGTLinkClient("127.0.0.1", port)
        try:
            got = {tool: client.wait_for_message(f"{tool}ToTracker", timeout=5) for tool in TOOLS}
        finally:
            client.stop()
        records = ended()
    for tool, message in got.items():
        assert message.message_type == "TRANSFORM"
        assert known(records, tool, message.matrix[:3])


def query(sock: socket.socket, kind: str, content: bytes = b"", device: str = "") -> None:
    """Ask with header 2, packed by hand; the check sum is pyigtl's."""
    body = struct.pack(">HHII", 12, 2, 0, 7) + content + b"\0\0"
    crc = pyigtl.messages.CRC64(body)
    sock.sendall(struct.pack(">H12s20sQQQ", 2, kind.encode(), device.encode(), 0, len(body), crc) + body)


def header(wire: Wire) -> tuple[str, str, bytes]:
    """Return type, device and body of the next message."""
    _, kind, device, _, _, size, _ = struct.unpack(">H12s20sIIQQ", wire._take(58))
    return kind.rstrip(b"\0").decode(), device.rstrip(b"\0").decode(), wire._take(size)


def answer(wire: Wire, kind: str) -> tuple[str, bytes]:
    while True:
        found, device, body = header(wire)
        if found == kind:
            return device, body


def test_whoever_asks_gets_an_answer_and_status_of_each_tool(tmp_path: Path) -> None:
    with (
        tracker(tmp_path, "--message", "none", "--tools", "Needle,Reference") as (simulator, port, _),
        Wire(port) as wire,
    ):
        query(wire.sock, "STT_TDATA", struct.pack(">I32s", 0, b"Patient"))
        assert answer(wire, "RTS_TDATA")[1][12:13] == b"\0"
        _, body = answer(wire, "TDATA")
        assert body.endswith(b"NeedleToTrackerStatusOKReferenceToTrackerStatusOK")
        assert struct.unpack(">HHII", body[:12])[:2] == (12, 2 + 2 * 8)
        simulator.tell(do="hide", tool="Needle", seconds=30)
        while b"NeedleToTrackerStatusOUT_OF_VIEW" not in answer(wire, "TDATA")[1]:
            pass
        query(wire.sock, "STP_TDATA")
        answer(wire, "RTS_TDATA")
        query(wire.sock, "GET_TRANS", device="ReferenceToTracker")
        kind, device, body = header(wire)
        assert (kind, device) == ("TRANSFORM", "ReferenceToTracker")
        assert body.endswith(b"TransformValidTrueTransformStatusOK")
        query(wire.sock, "GET_POSITION", device="PointerToTracker")
        assert struct.unpack(">H", answer(wire, "STATUS")[1][12:14])[0] == 4
        query(wire.sock, "STT_IMAGE")
        assert answer(wire, "RTS_IMAGE")[1][12:13] == b"\1"
        query(wire.sock, "GET_STATUS")
        assert struct.unpack(">H", answer(wire, "STATUS")[1][12:14])[0] == 1
        query(wire.sock, "GET_CAPABIL")
        assert b"QTDATA" in answer(wire, "CAPABILITY")[1]


def test_an_asked_stream_keeps_to_its_interval_and_unseen_tools_are_not_listed_under_header_1(tmp_path: Path) -> None:
    with tracker(tmp_path, "--rate-hz", 200, "--message", "none") as (simulator, port, ended), Wire(port) as wire:
        simulator.tell(do="hide", tool="Needle", seconds=60)
        body = struct.pack(">I32s", 50, b"")
        crc = pyigtl.messages.CRC64(body)
        wire.sock.sendall(struct.pack(">H12s20sQQQ", 1, b"STT_TDATA", b"", 0, len(body), crc) + body)
        while len(answer(wire, "TDATA")[1]) != 70:
            pass
        begins = time.monotonic()
        lists = [answer(wire, "TDATA")[1] for _ in range(10)]
        assert time.monotonic() - begins > 0.35
        assert all(len(content) == 70 and content.startswith(b"ReferenceToTracker") for content in lists)
        assert len(ended()) > 20


def test_the_logged_truth_is_the_circle_and_what_was_sent_has_the_cameras_noise(tmp_path: Path) -> None:
    with tracker(tmp_path, "--rate-hz", 500, "--camera", "spectra") as (_, port, ended), Wire(port) as wire:
        for _ in range(1600):
            wire.receive()
        records = ended()
    stamps = np.array([r["pose_time_ns"] for r in records]) * 1e-9
    true = np.array([matrix(r, "Needle", "true") for r in records])
    away = true[:, :3, 3] - (50.0, -30.0, -1500.0)
    assert np.hypot(away[:, 0], away[:, 1]) == pytest.approx(np.full(len(away), 80.0))
    assert away[:, 2] == pytest.approx(np.full(len(away), 16.0))
    angle = np.unwrap(np.arctan2(away[:, 1], away[:, 0]))
    assert (angle - angle[0]) == pytest.approx(2.0 * np.pi / 6.0 * (stamps - stamps[0]), abs=1e-5)
    for tool, limits in (("Needle", (0.2, 1.5)), ("Reference", (0.05, 0.5))):
        sent = np.array([matrix(r, tool) for r in records])
        off = np.linalg.norm((sent - np.array([matrix(r, tool, "true") for r in records]))[:, :3, 3], axis=1)
        assert limits[0] < np.sqrt((off**2).mean()) < limits[1]


def test_an_arm_in_the_line_of_sight_hides_the_tool_behind_it(tmp_path: Path) -> None:
    with tracker(tmp_path, "--camera", "vega") as (simulator, port, ended), Wire(port) as wire:
        wire.receive()
        simulator.tell(do="block", tool="Reference", seconds=0.4)
        simulator.wait_for("done")
        for _ in range(120):
            wire.receive()
        status = [r["tools"]["Reference"]["status"] for r in ended()]
    hidden = np.flatnonzero(np.array(status) == "OUT_OF_VIEW")
    assert 22 <= len(hidden) <= 26
    assert hidden[-1] - hidden[0] == len(hidden) - 1


def test_the_true_tip_in_the_patient_is_that_of_the_true_poses_until_the_reference_is_knocked(
    mini_case: MiniCase, tmp_path: Path
) -> None:
    truth = tmp_path / "truth.jsonl"
    options = (
        "--breathing-mm",
        6,
        "--irregular",
        0.15,
        "--insert-after-s",
        0,
        "--speed",
        15,
        "--tools",
        "Needle,Reference,Probe",
    )
    with tracker(tmp_path, "--case", mini_case.folder, *options) as (simulator, _, ended):
        while simulator.wait_for("phase")["phase"] != "drift":
            pass
        simulator.tell(do="knock", mm=[0.0, 3.0, 4.0])
        while simulator.wait_for("phase")["phase"] != "finished":
            pass
        records = ended()
    T_ct_from_ref = np.array(json.loads(truth.read_text().splitlines()[0])["T_ct_from_ref"])
    apart = np.array(
        [
            (T_ct_from_ref @ np.linalg.inv(matrix(r, "Reference", "true")) @ matrix(r, "Needle", "true"))[:3, 3]
            - r["tip_ct_mm"]
            for r in records
        ]
    )
    knocked = np.linalg.norm(apart, axis=1)
    assert knocked[:20] == pytest.approx(np.zeros(20), abs=1e-6)
    assert knocked[-1] == pytest.approx(5.0, abs=1e-6)
    places = np.array([matrix(r, "Reference", "true")[:3, 3] for r in records])
    assert np.linalg.norm(places - places[0], axis=1).max() > 2.0


def test_a_bent_needle_sends_its_straight_axis_and_the_log_has_its_tip(mini_case: MiniCase, tmp_path: Path) -> None:
    options = ("--case", mini_case.folder, "--gauge", 20, "--insert-after-s", 0, "--speed", 20)
    with tracker(tmp_path, *options) as (simulator, _, ended):
        while simulator.wait_for("phase")["phase"] != "finished":
            pass
        records = ended()
    T_ct_from_ref = np.array(json.loads((tmp_path / "truth.jsonl").read_text().splitlines()[0])["T_ct_from_ref"])
    last = records[-1]
    straight = T_ct_from_ref @ np.linalg.inv(matrix(last, "Reference", "true")) @ matrix(last, "Needle", "true")
    off = np.array(last["tip_ct_mm"]) - straight[:3, 3]
    assert 0.2 < np.linalg.norm(off) < 20.0
    assert abs(off @ straight[:3, 2]) < 1e-6


def test_delivery_jitters_while_stamps_do_not(tmp_path: Path) -> None:
    with (
        tracker(tmp_path, "--rate-hz", 100, "--jitter-ms", 3, "--latency-ms", 14) as (_, port, ended),
        Wire(port) as wire,
    ):
        for _ in range(300):
            wire.receive()
        records = ended()
    stamps = np.array([r["pose_time_ns"] for r in records])
    late = np.array([r["sent_monotonic_ns"] for r in records]) - stamps
    periods = np.diff(stamps) / 1e7
    assert np.abs(periods - np.rint(periods)).max() < 1e-3
    assert np.std(late) > 1e6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tools", "Needle,Needle"), "expected at most 12 different names"),
        (("--tools", "A needle"), "expected letters and digits"),
        (("--tools", "AVeryLongToolName"), "at most 11"),
        (("--breathing-mm", 3), "--breathing-mm needs --case"),
        (("--insert-after-s", 3), "--insert-after-s needs --case"),
        (("--camera", "vega", "--noise-mm", 1), "leave out --noise-mm"),
    ],
)
def test_options_that_contradict_each_other_are_refused_in_one_line(
    options: tuple[object, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = simulators_main(["tracker", *map(str, options)])
    except SystemExit as e:
        status = e.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_an_order_that_cannot_be_obeyed_changes_nothing(tmp_path: Path) -> None:
    with tracker(tmp_path) as (simulator, port, _), Wire(port) as wire:
        speak_version_2(wire.sock)
        for order in (
            {"do": "insert"},
            {"do": "hide", "tool": "Probe", "seconds": 1},
            {"do": "shift", "mm": [1, 2, 3]},
            {},
        ):
            simulator.tell(**order)
        time.sleep(0.3)
        assert simulator.process.poll() is None
        while not wire.receive()[4].endswith("TransformStatusOK"):
            pass
