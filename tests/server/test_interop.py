"""The server among programs that are not ours: the C++ library's examples, pyigtl, and a source like PLUS.

Each row of the interoperability list is a test with the real program; `make peers` compiles the C++ ones.
"""

import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyigtl
import pytest
from scipy.spatial.transform import Rotation

from navsrv.wire.openigtlink import Framer, Message
from tests.server.conftest import CONFIG
from tests.server.live import LiveServer, Tracker
from tests.server.peers import FLIP, PATIENCE_S, T_CT_FROM_REF, Array, Feed, free_port, running, usable
from tests.simulators.conftest import MiniCase, mini_case  # noqa: F401  # a fixture
from tests.simulators.processes import running as simulator

pytestmark = [pytest.mark.realtime, pytest.mark.peer]

Find = Callable[[str], Path]

TRACKER_BY_NAME = ['trackers.main.names={Tracker="NeedleToTracker"}', "trackers.main.trusted=true"]
REFERENCE_APART = ["trackers.ref.rate_hz=60", "tools.Reference.tracker=ref"]
SECOND_NEEDLE = ["tools.Second.tracker=other", "tools.Second.transform=NeedleToTracker", "tools.Second.gauge=11"]

NEEDLE = np.eye(4)
NEEDLE[:3, :3] = Rotation.from_euler("xyz", (31, -47, 112), degrees=True).as_matrix()
NEEDLE[:3, 3] = (20.0, 25.0, -30.0)
SHOWN = FLIP @ T_CT_FROM_REF @ NEEDLE


def tip_in_tracker(frame: dict[str, Any]) -> Array:
    """The tip of a frame (CT) seen from a tracker whose reference lies at its origin."""
    tip: Array = (np.linalg.inv(T_CT_FROM_REF) @ [*frame["tip_ct_mm"], 1.0])[:3]
    return tip


def is_on_the_examples_path(point: Array) -> bool:
    """The C++ trackers move on (50 cos t, 50 sin t, 50 cos t)."""
    return bool(abs(point[0] - point[2]) < 1e-2 and abs(np.hypot(point[0], point[1]) - 50.0) < 1e-2)


# -- trackers that are not ours --------------------------------------------------------------------------------


def test_cpp_tracker_server_is_usable_when_trusted_by_name_and_lost_otherwise(
    balls: Path, tmp_path: Path, require_program: Find
) -> None:
    """Header 1, stamp 0, device `Tracker`, no status.  After 100 poses it hangs up: the server comes back by itself."""
    program = require_program("TrackerServer")
    ports = free_port(), free_port()
    with (
        running(tmp_path / "trusted", program, ports[0], 60),
        running(tmp_path / "other", program, ports[1], 60),
        Tracker() as reference,
    ):
        overrides = [
            *TRACKER_BY_NAME,
            *REFERENCE_APART,
            *SECOND_NEEDLE,
            f"trackers.main.port={ports[0]}",
            f"trackers.ref.port={reference.port}",
            "trackers.other.rate_hz=60",
            f"trackers.other.port={ports[1]}",
            'trackers.other.names={Tracker="NeedleToTracker"}',
        ]
        with LiveServer(balls, tmp_path, overrides) as server:
            reference.accept()
            with Feed(reference, 60.0, None):
                frames = [usable(server) for _ in range(20)]
                assert len({tuple(f["tip_ct_mm"]) for f in frames}) > 10  # a late pose is shown again
                assert all(is_on_the_examples_path(tip_in_tracker(f)) for f in frames)
                assert {f["pose_time_source"] for f in frames} == {"receipt"}
                lost = server.frame(lambda f: f["tool"] == "Second" and "no status" in f["reason"])
                assert (lost["state"], lost["tip_ct_mm"]) == ("LOST", None)
                assert "trackers.other.trusted" in lost["reason"]
                server.frame(lambda f: f["tool"] == "Needle" and "main is down" in f["reason"])
                again = usable(server)
                assert is_on_the_examples_path(tip_in_tracker(again))


def test_cpp_tracking_data_server_streams_when_asked_to(balls: Path, tmp_path: Path, require_program: Find) -> None:
    """Header 1, nothing before an STT_TDATA, then at the interval asked for three channels in one message."""
    program, port = require_program("TrackingDataServer"), free_port()
    with running(tmp_path / "tracker", program, port):
        overrides = [
            f"trackers.main.port={port}",
            "trackers.main.rate_hz=50",
            "trackers.main.stream=TDATA",
            "trackers.main.header=1",
            "trackers.main.trusted=true",
            'trackers.main.names={"Channel 0"="NeedleToTracker", "Channel 1"="ReferenceToTracker"}',
        ]
        with LiveServer(balls, tmp_path, overrides) as server:
            frames = [usable(server) for _ in range(20)]
            assert len({tuple(f["tip_ct_mm"]) for f in frames}) > 10  # a late pose is shown again
            apart_ms = np.diff([f["received_ns"] for f in frames]) / 1e6
            assert 15.0 < np.median(apart_ms) < 35.0


def test_cpp_clients_push_to_the_devices_port(balls: Path, tmp_path: Path, require_program: Find) -> None:
    """One after the other, each the tracker from then on; those that send no pose disturb nobody."""
    overrides = [
        "trackers.main.connect=listener",
        'trackers.main.names={Tracker="NeedleToTracker",Needle="NeedleToTracker"}',
        "trackers.main.trusted=true",
        *REFERENCE_APART,
    ]
    with Tracker() as reference:
        overrides.append(f"trackers.ref.port={reference.port}")
        with LiveServer(balls, tmp_path, overrides) as server:
            reference.accept()
            address = ("127.0.0.1", server.ports["devices"])
            with Feed(reference, 60.0, None):
                with running(tmp_path / "push", require_program("TrackerClient"), *address, 60):
                    frames = [usable(server) for _ in range(10)]
                    assert all(is_on_the_examples_path(tip_in_tracker(f)) for f in frames)
                    assert {f["pose_time_source"] for f in frames} == {"device"}
                    with (
                        running(tmp_path / "status", require_program("StatusClient"), *address),
                        running(tmp_path / "text", require_program("StringClient"), *address, 20),
                        running(tmp_path / "able", require_program("CapabilityClient"), *address) as capability,
                    ):
                        capability.process.wait(PATIENCE_S)
                        stamps = [usable(server)["pose_time_ns"] for _ in range(60)]
                        assert len(set(stamps)) > 20
                server.frame(lambda f: f["state"] == "LOST" and "main is down" in f["reason"])
                # POSITION, without a stamp.
                with running(tmp_path / "position", require_program("TrackerClient2"), *address, 60):
                    frame = server.frame(lambda f: f["pose_time_source"] == "receipt" and f["tip_ct_mm"] is not None)
                    assert is_on_the_examples_path(tip_in_tracker(frame))
                server.frame(lambda f: f["state"] == "LOST" and "main is down" in f["reason"])
                with running(tmp_path / "several", require_program("TrackerClient3"), *address, 60, "Other", "Needle"):
                    assert abs(tip_in_tracker(usable(server))).max() < 100.0


PYIGTL_TRACKER = """
import sys, time
import numpy as np, pyigtl
server = pyigtl.OpenIGTLinkServer(port=int(sys.argv[1]), local_server=True)
print("ready", flush=True)
pose = np.eye(4); pose[:3, 3] = (20.0, 25.0, -30.0)
while True:
    for name, matrix in (("ReferenceToTracker", np.eye(4)), ("NeedleToTracker", pose)):
        message = pyigtl.TransformMessage(matrix, device_name=name)
        if sys.argv[2] == "says":
            message.header_version = 2
            message.metadata = {"TransformStatus": "OK"}
        message.timestamp = time.time()
        server.send_message(message)
    time.sleep(0.02)
"""


def test_pyigtl_server_as_tracker_is_believed_only_with_status(balls: Path, tmp_path: Path) -> None:
    ports = free_port(), free_port()
    start = [sys.executable, "-c", PYIGTL_TRACKER]
    overrides = [
        *SECOND_NEEDLE,
        f"trackers.main.port={ports[0]}",
        "trackers.main.rate_hz=30",
        "trackers.other.rate_hz=30",
        f"trackers.other.port={ports[1]}",
    ]
    with (
        running(tmp_path / "says", *start, ports[0], "says"),
        running(tmp_path / "bare", *start, ports[1], "bare"),
        LiveServer(balls, tmp_path, overrides) as server,
    ):
        np.testing.assert_allclose(tip_in_tracker(usable(server)), (20.0, 25.0, -30.0), atol=1e-3)
        lost = server.frame(lambda f: f["tool"] == "Second" and "no status" in f["reason"])
        assert lost["state"] == "LOST"
        assert "trackers.other.trusted" in lost["reason"]


def test_a_source_like_plus_says_its_status_to_those_who_speak_version_2(
    mini_case: MiniCase,  # noqa: F811
    tmp_path: Path,
) -> None:
    """PLUS keeps its metadata from clients that never spoke version 2; without the hello every pose were LOST."""
    config = tmp_path / "plus.toml"
    config.write_text(CONFIG.format(case=mini_case.folder, folder=tmp_path))
    with simulator("tracker", "--case", mini_case.folder, "--seed", 3, "--rate-hz", 60) as plus:
        port = plus.event()["port"]
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as mute:
            framer, heard = Framer(), list[Message]()
            while len(heard) < 4:
                heard += framer.feed(mute.recv(65536))
        assert {(m.version, m.metadata) for m in heard} == {(1, ())}
        with LiveServer(config, tmp_path, [f"trackers.main.port={port}"]) as server:
            assert usable(server)["state"] in ("OK", "DEGRADED")
            plus.tell(do="hide", tool="Needle", seconds=1)
            lost = server.frame(lambda f: f["state"] == "LOST")
            assert "OUT_OF_VIEW" in lost["reason"]
            usable(server)


# -- displays that are not ours --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def room(balls: Path) -> Iterator[LiveServer]:
    """A server whose needle stands still, fed 60 times a second; with a port for silent displays of version 1."""
    overrides = ["ports.openigtlink_1=0"]
    with (
        Tracker() as tracker,
        LiveServer(balls, balls.parent, [f"trackers.main.port={tracker.port}", *overrides]) as server,
    ):
        tracker.accept()
        with Feed(tracker, 60.0, NEEDLE):
            usable(server)
            yield server


def matrices(text: str) -> list[Array]:
    """The 4x4 matrices that a C++ example printed whole."""
    row = r"\s*(\S+), (\S+), (\S+), (\S+)\n"
    found = []
    for rows in re.findall(row * 4, text):
        try:
            found.append(np.array(rows, dtype=float).reshape(4, 4))
        except ValueError:
            continue  # the end of one buffer within a line
    return found


def shows_the_needle(text: str) -> bool:
    return sum(np.allclose(m, SHOWN, atol=1e-3) for m in matrices(text)) >= 5


def test_cpp_receive_client_shows_the_needle(room: LiveServer, tmp_path: Path, require_program: Find) -> None:
    """It says nothing and reads header 1 only: at the first message of version 2 it would lose its place for good."""
    program = require_program("ReceiveClient")
    with running(tmp_path / "display", program, "127.0.0.1", room.ports["openigtlink_1"]) as display:
        text = display.wait_for(lambda t: shows_the_needle(t) and '"state":"OK"' in t and "Needle OK" in t)
    assert "Receiving TRANSFORM data type." in text


def test_cpp_tracking_data_client_starts_a_stream(room: LiveServer, tmp_path: Path, require_program: Find) -> None:
    program = require_program("TrackingDataClient")
    with running(tmp_path / "tdata", program, "127.0.0.1", room.ports["openigtlink"], 50) as display:
        # It asks once and stops the stream after ten messages of any kind: few matrices, all of them ours.
        text = display.wait_for(lambda t: "Sending STP_TDATA" in t)
        assert "Name       : NeedleTipToCT" in text
        display.wait_for(lambda t: t.count("RTS_TDATA") >= 2)


def test_cpp_quaternion_client_sees_position_and_quaternion(
    room: LiveServer, tmp_path: Path, require_program: Find
) -> None:
    program = require_program("QuaternionTrackingDataClient")
    with running(tmp_path / "qtdata", program, "127.0.0.1", room.ports["openigtlink"], 50) as display:
        text = display.wait_for(lambda t: "Name       : NeedleTipToCT" in t and t.count("Sending STP_QTDATA") >= 3)
    assert "RTS_QTDATA" in text


def test_cpp_polydata_client_takes_the_next_message_for_the_answer(
    room: LiveServer, tmp_path: Path, require_program: Find
) -> None:
    """It leaves when the message after its question is anything but POLYDATA: a heartbeat between would end it."""
    program = require_program("PolyDataClient")
    with running(tmp_path / "structures", program, "127.0.0.1", room.ports["openigtlink"]) as display:
        text = display.wait_for(lambda t: t.count("PolyData Contents") >= 4 or "Invalid" in t)
    assert "Invalid response" not in text
    # The sphere about the origin, radius 10: its poles are among the points.
    assert re.search(r"point\[\d+\] = \(-?0, -?0, 10\)", text)


def test_cpp_clients_that_talk_to_the_display_port_disturb_nobody(
    room: LiveServer, tmp_path: Path, require_program: Find
) -> None:
    address = ("127.0.0.1", room.ports["openigtlink"])
    watcher = require_program("ReceiveClient")
    with (
        running(tmp_path / "watch", watcher, "127.0.0.1", room.ports["openigtlink_1"]) as display,
        running(tmp_path / "status", require_program("StatusClient"), *address),
        running(tmp_path / "text", require_program("StringClient"), *address, 100),
        running(tmp_path / "pose", require_program("TrackerClient"), *address, 100),
        running(tmp_path / "able", require_program("CapabilityClient"), *address) as capability,
    ):
        capability.process.wait(PATIENCE_S)
        display.wait_for(shows_the_needle)
        # None of the poses that came from outside became the needle's.
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            np.testing.assert_allclose(usable(room)["tip_ct_mm"], (T_CT_FROM_REF @ NEEDLE)[:3, 3], atol=1e-3)


def test_several_pyigtl_clients_at_once_each_show_the_needle(room: LiveServer) -> None:
    clients = [pyigtl.OpenIGTLinkClient("127.0.0.1", room.ports["openigtlink"]) for _ in range(4)]
    try:
        for client in clients:
            end = time.monotonic() + PATIENCE_S
            while (message := client.wait_for_message("NeedleTipToCT", timeout=1)) is None:
                assert time.monotonic() < end
            np.testing.assert_allclose(message.matrix, SHOWN, atol=1e-3)
            assert message.metadata["TransformStatus"] == "OK"
    finally:
        for client in clients:
            client.stop()


# -- the examples that are shipped -----------------------------------------------------------------------------

CLIENTS = Path(__file__).resolve().parents[2] / "examples" / "clients"


def test_the_zeromq_example_shows_the_closest_structure_and_says_fault_in_silence(balls: Path, tmp_path: Path) -> None:
    """Frames that waited in a queue must not pass for current ones, nor silence for calm."""
    with Tracker() as tracker, LiveServer(balls, tmp_path, [f"trackers.main.port={tracker.port}"]) as server:
        tracker.accept()
        words = [sys.executable, CLIENTS / "zmq_client.py", "--port", server.ports["zmq"]]
        with running(tmp_path / "shown", *words) as client:
            with Feed(tracker, 60.0):
                # The needle at the reference's origin, in CT (10, 20, 30): nearest is the ball at the origin.
                text = client.wait_for(lambda t: t.count("OK") > 3)
                assert re.search(r"OK\s+Needle\s+Nerve (tip|shaft)\s+\d+\.\d mm", text), text
                assert "FAULT" not in text.partition("OK")[2]
            client.wait_for(lambda t: "LOST" in t)
            server.stop()
            text = client.wait_for(lambda t: t.rstrip().endswith("no frame for more than 300 ms"))
            assert text.rstrip().splitlines()[-1].startswith("FAULT")


def test_the_zeromq_example_drops_frames_that_are_older_than_its_limit(room: LiveServer, tmp_path: Path) -> None:
    """Stopped for a second as a busy machine would, it wakes to a queue of old frames and shows none of them."""
    words = [sys.executable, CLIENTS / "zmq_client.py", "--port", room.ports["zmq"], "--limit-ms", 200, "--every"]
    with running(tmp_path / "shown", *words) as client:
        client.wait_for(lambda t: t.count("OK") > 20)
        client.process.send_signal(19)
        time.sleep(1.0)
        client.process.send_signal(18)
        before = client.text().count("\n")
        text = client.wait_for(lambda t: re.search(r"dropped [1-9]", t) is not None and t.count("\n") > before + 20)
    ages = [float(age) for age in re.findall(r"age (\d+\.\d) ms", text)]
    assert len(ages) > 40
    assert max(ages) <= 200.0
    dropped = max(int(n) for n in re.findall(r"dropped (\d+)", text))
    assert dropped >= 20


def test_the_openigtlink_example_shows_the_needle(room: LiveServer, tmp_path: Path) -> None:
    words = [sys.executable, CLIENTS / "openigtlink_client.py", "--port", room.ports["openigtlink"]]
    x, y, z = SHOWN[:3, 3]
    with running(tmp_path / "shown", *words) as client:
        client.wait_for(lambda t: f"OK  tip R {x:.1f} A {y:.1f} S {z:.1f} mm" in t)


def test_the_examples_share_no_code_with_the_server() -> None:
    for path in CLIENTS.glob("*.py"):
        assert not re.search(r"^\s*(from|import) (navsrv|devices|calibration|simulators)\b", path.read_text(), re.M)
    with pytest.raises(subprocess.CalledProcessError) as failure:
        subprocess.run(
            [sys.executable, CLIENTS / "zmq_client.py", "--port", "nonsense"], check=True, capture_output=True
        )
    assert failure.value.returncode == 2


def test_select_is_all_that_a_display_needs(room: LiveServer) -> None:
    """Twenty connections at once, none of which says a word: each is shown frames, and heartbeats between them."""
    socks = [socket.create_connection(("127.0.0.1", room.ports["openigtlink"])) for _ in range(20)]
    framers = {sock: (Framer(), set[str]()) for sock in socks}
    try:
        end = time.monotonic() + PATIENCE_S
        while any(kinds != {"TRANSFORM", "STRING", "STATUS"} for _, kinds in framers.values()):
            assert time.monotonic() < end, [kinds for _, kinds in framers.values()]
            for sock in select.select(socks, [], [], 1.0)[0]:
                framer, kinds = framers[sock]
                kinds |= {m.type_name for m in framer.feed(sock.recv(65536))}
    finally:
        for sock in socks:
            sock.close()
