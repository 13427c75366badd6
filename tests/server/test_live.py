"""The running server from outside: frames, states, commands, displays, bad peers, and what replay says afterwards."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pyigtl
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from navsrv.wire.openigtlink import Framer, Message, Query, Raw, Status, encode
from tests.server.conftest import BALLS
from tests.server.live import LiveServer, Tracker

pytestmark = pytest.mark.realtime

RADIUS_MM = 3.05 / 2
T_CT_FROM_REF = np.array([[0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1.0]])

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def room(balls: Path) -> Iterator[tuple[LiveServer, Tracker]]:
    with Tracker() as tracker, LiveServer(balls, balls.parent, [f"trackers.main.port={tracker.port}"]) as server:
        tracker.accept()
        yield server, tracker


@pytest.fixture
def linked(room: tuple[LiveServer, Tracker]) -> tuple[LiveServer, Tracker]:
    """The room with a pose just answered: OK, whatever the test before did."""
    server, tracker = room
    server.frame_of(tracker.pose(np.eye(4)))
    return server, tracker


def needle_pose(angles_deg: tuple[float, float, float], position: tuple[float, float, float]) -> Array:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix()
    pose[:3, 3] = position
    return pose


def ball_distance(point: Array, name: str) -> float:
    centre, radius = BALLS[name]
    return float(np.linalg.norm(point - np.array(centre)) - radius)


POSES = [
    ((0, 0, 0), (25.0, -8.0, 4.0)),
    ((90, 0, 0), (40.0, 0, 0)),
    ((0, 90, 0), (5.0, 30, 0)),
    ((0, 0, 90), (5, 5, 50)),
]
POSES += [((31, -47, 112), (20.0, 25.0, -30.0)), ((-170, 80, 5), (-40.0, 10.0, 20.0)), ((10, 20, 179), (1.0, 2.0, 3.0))]


@pytest.mark.parametrize(("angles", "position"), POSES)
def test_tip_axis_and_distance_are_those_of_the_chain(
    linked: tuple[LiveServer, Tracker], angles: tuple[float, float, float], position: tuple[float, float, float]
) -> None:
    """The frame of a tool rotated about every axis, with a moved and turned reference, against plain 4x4 products."""
    server, tracker = linked
    needle, reference = needle_pose(angles, position), needle_pose((12, -33, 71), (3.0, -7.0, 11.0))
    frame = server.frame_of(tracker.pose(needle, reference))
    expected = T_CT_FROM_REF @ np.linalg.inv(reference) @ needle
    assert frame["state"] == "OK", frame["reason"]
    np.testing.assert_allclose(frame["tip_ct_mm"], expected[:3, 3], atol=1e-4)
    np.testing.assert_allclose(frame["axis_ct"], expected[:3, 2], atol=1e-6)
    w, x, y, z = frame["q_wxyz_ct_from_tip"]
    np.testing.assert_allclose(Rotation.from_quat([x, y, z, w]).as_matrix(), expected[:3, :3], atol=1e-6)
    rows = {(row["name"], row["part"]): row for row in frame["structures"]}
    along = np.linspace(0.0, 100.0, 4001)
    for name in BALLS:
        tip = ball_distance(expected[:3, 3], name)
        axis = expected[:3, 3] - along[:, None] * expected[:3, 2]
        shaft = min(ball_distance(p, name) for p in axis) - RADIUS_MM
        # A ball of 96 x 96 facets lies at most 0.03 mm inside its sphere.
        assert rows[name, "tip"]["distance_mm"] == pytest.approx(tip, abs=0.05)
        assert rows[name, "shaft"]["distance_mm"] == pytest.approx(shaft, abs=0.05)
        for part in ("tip", "shaft"):
            row = rows[name, part]
            assert row["sigma_mm"] > 0
            assert row["lower_mm"] == pytest.approx(row["distance_mm"] - 1.645 * row["sigma_mm"], abs=1e-3)


def test_another_program_shows_the_needle_where_the_server_says(linked: tuple[LiveServer, Tracker]) -> None:
    """A pyigtl client, for which TRANSFORM is RAS: F T, and the tool's own frame untouched."""
    server, tracker = linked
    client = pyigtl.OpenIGTLinkClient("127.0.0.1", server.ports["openigtlink"])
    try:
        flip = np.diag([-1.0, -1.0, 1.0, 1.0])
        for angles, position in POSES:
            needle = needle_pose(angles, position)
            end = time.monotonic() + 20.0
            while True:
                server.frame_of(tracker.pose(needle))
                message = client.wait_for_message("NeedleTipToCT", timeout=1)
                if message is not None and np.allclose(message.matrix, flip @ T_CT_FROM_REF @ needle, atol=1e-3):
                    break
                assert time.monotonic() < end, f"{message.matrix if message is not None else None}"
    finally:
        client.stop()


def test_a_lost_needle_leaves_a_display_that_knows_no_status(linked: tuple[LiveServer, Tracker]) -> None:
    server, tracker = linked
    client = pyigtl.OpenIGTLinkClient("127.0.0.1", server.ports["openigtlink"])
    try:
        end = time.monotonic() + 20.0
        while True:
            tracker.pose(np.eye(4), status="OUT_OF_VIEW")
            message = client.wait_for_message("NeedleTipToCT", timeout=1)
            if message is not None and message.metadata.get("TransformStatus") == "MISSING":
                break
            assert time.monotonic() < end
        np.testing.assert_allclose(message.matrix[:3, 3], (0, 0, 10_000))
    finally:
        client.stop()


@pytest.mark.parametrize("status", [None, "OUT_OF_VIEW", "OUTOFVIEW", "MISSING", "whatever"])
def test_a_pose_that_is_not_said_to_be_ok_is_lost(linked: tuple[LiveServer, Tracker], status: str | None) -> None:
    server, tracker = linked
    frame = server.frame_of(tracker.pose(np.eye(4), status=status))
    assert frame["state"] == "LOST"
    assert frame["tip_ct_mm"] is None
    assert {row["level"] for row in frame["structures"]} == {"unknown"}
    assert all(row["distance_mm"] is None for row in frame["structures"])
    assert any(alarm["condition"] == "tool_lost" for alarm in frame["alarms"])
    assert ("trackers.main.trusted" in frame["reason"]) == (status is None)


def test_silence_becomes_degraded_then_stale_then_lost_and_frames_go_on(linked: tuple[LiveServer, Tracker]) -> None:
    server, tracker = linked
    server.frame_of(tracker.pose(np.eye(4)))
    seen: list[dict[str, Any]] = []
    while not seen or seen[-1]["state"] != "LOST":
        seen.append(server.frame())
    order = [state for i, state in enumerate(f["state"] for f in seen) if i == 0 or state != seen[i - 1]["state"]]
    assert [s for s in order if s != "OK"] == ["DEGRADED", "STALE", "LOST"]
    first = {state: next(f for f in seen if f["state"] == state) for state in ("DEGRADED", "STALE", "LOST")}
    assert first["DEGRADED"]["tip_ct_mm"] is not None
    assert first["DEGRADED"]["age_ms"] >= 2000 / 60
    assert first["STALE"]["age_ms"] >= 100
    assert first["LOST"]["age_ms"] >= 500
    assert first["STALE"]["tip_ct_mm"] is None
    assert any(alarm["condition"] == "source_stale" for alarm in first["STALE"]["alarms"])
    assert [f["seq"] for f in seen] == list(range(seen[0]["seq"], seen[0]["seq"] + len(seen)))
    later = [server.frame() for _ in range(5)]
    gaps_ms = np.diff([f["received_ns"] for f in later]) / 1e6
    assert (gaps_ms < 200).all(), gaps_ms  # 10 Hz when no pose arrives


def test_levels_rise_at_once_and_an_alarm_is_acknowledged(linked: tuple[LiveServer, Tracker]) -> None:
    server, tracker = linked
    inverse = np.linalg.inv(T_CT_FROM_REF)

    def at(x_mm: float) -> Array:
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler("y", -90, degrees=True).as_matrix()  # shaft away from the ball, along +x
        pose[:3, 3] = (x_mm, 0.0, 0.0)
        return inverse @ pose

    levels = []
    for distance in (15.0, 9.0, 4.0, -1.0):
        frame = server.frame_of(tracker.pose(at(10.0 + distance)))
        row = next(r for r in frame["structures"] if r["name"] == "Nerve" and r["part"] == "tip")
        levels.append(row["level"])
    assert levels == ["none", "caution", "warning", "breach"]
    alarm = next(a for a in frame["alarms"] if a["id"] == "breach:Nerve")
    assert (alarm["structure"], alarm["priority"], alarm["phase"]) == ("Nerve", "high", "active")
    assert alarm["text"].startswith("Contact")
    assert server.ask("acknowledge_alarm", id=alarm["id"])["ok"]
    frame = server.frame_of(tracker.pose(at(9.0)))
    assert next(a for a in frame["alarms"] if a["id"] == alarm["id"])["phase"] == "acknowledged"


def test_bad_commands_are_answered_with_one_line(room: tuple[LiveServer, Tracker]) -> None:
    server, _ = room
    for request, part in [
        (b"\xc1not msgpack", "not msgpack"),
        (b"\x81\xa2\xff\xfe\x01", "not msgpack"),
        (b"\x91" * 1000, "not msgpack"),
        ([1, 2], "expected a map"),
        ({"id": 1, "op": "explode"}, "unknown operation 'explode'"),
        ({"id": 2, "op": "acknowledge_alarm", "args": {}}, "args.id: missing"),
        ({"id": 3, "op": "acknowledge_alarm", "args": {"id": 5}}, "expected a text"),
        ({"id": 4, "op": "acknowledge_alarm", "args": {"id": "no such"}}, "no alarm 'no such'"),
        ({"id": 5, "op": "accept_registration", "args": {"id": "R99"}}, "R99"),
        ({"id": 6, "op": "set_phase", "args": {"phase": "lunch"}}, "unknown phase"),
        (
            {"id": 8, "op": "collect_landmark", "args": {"tool": "Needle", "name": "a", "point_ct_mm": [1e308, 0, 0]}},
            "point",
        ),
        (
            {
                "id": 9,
                "op": "collect_landmark",
                "args": {"tool": "Needle", "name": "a", "point_ct_mm": [float("nan"), 0, 0]},
            },
            "point",
        ),
        ({"id": 10, "op": "pause_audio", "args": {"seconds": 1e9}}, "seconds"),
        ({"id": 7, "op": "park_tool", "args": {"tool": "Hammer", "parked": True}}, "Hammer"),
    ]:
        answer = server.request(request)
        assert answer["ok"] is False
        assert part in answer["error"]
        assert "\n" not in answer["error"]
    listed = server.ask("list_operations")["result"]
    assert listed["acknowledge_alarm"]["properties"]["args"]["required"] == ["id"]


@pytest.mark.parametrize("port", ["openigtlink", "devices"])
def test_a_peer_that_breaks_the_protocol_ends_alone(linked: tuple[LiveServer, Tracker], port: str) -> None:
    server, tracker = linked
    good = socket.create_connection(("127.0.0.1", server.ports[port]), timeout=20.0)
    bad = socket.create_connection(("127.0.0.1", server.ports[port]), timeout=20.0)
    with good, bad:
        whole = bytearray(encode(Message("x", 0, Status(1, 0, "", "hello"))))
        whole[-1] ^= 1  # a flipped bit: the CRC no longer fits
        bad.sendall(whole)
        end = time.monotonic() + 20.0
        while True:  # what was on its way comes first; then the connection ends
            assert time.monotonic() < end
            try:
                if not bad.recv(65536):
                    break
            except ConnectionError:
                break
        if port == "openigtlink":
            good.sendall(encode(Message("x", 0, Query("GET_CAPABIL"))))
            framer, found = Framer(), []
            while not any(m.type_name == "CAPABILITY" for m in found):
                found += framer.feed(good.recv(65536))
        else:
            good.recv(65536)  # the server's hello
            good.settimeout(0.2)
            with pytest.raises(TimeoutError):
                good.recv(65536)  # and then silence, not an end
    assert server.frame_of(tracker.pose(np.eye(4)))["state"] == "OK"


def test_a_tracker_that_breaks_the_protocol_is_dropped_and_may_come_back(linked: tuple[LiveServer, Tracker]) -> None:
    server, tracker = linked
    tracker.send(encode(Message("x", 0, Raw("NONSENSE", b"x" * 10)))[:-5] + b"\xff" * 200)
    frame = server.frame(lambda f: f["state"] == "LOST" and "protocol" in f["reason"])
    assert any(alarm["condition"] == "link_down" for alarm in frame["alarms"])
    tracker.drop()
    tracker.accept()
    assert server.frame_of(tracker.pose(np.eye(4)))["state"] == "OK"


def test_a_pose_held_up_on_the_way_is_not_shown_as_current(linked: tuple[LiveServer, Tracker]) -> None:
    server, tracker = linked
    for _ in range(5):
        server.frame_of(tracker.pose(np.eye(4)))
    held_up = time.time_ns()
    time.sleep(0.9)
    frame = server.frame_of(tracker.pose(np.eye(4), time_ns=held_up))
    assert frame["state"] == "LOST"
    assert frame["age_ms"] > 850
    assert "held up" in frame["reason"]
    assert frame["tip_ct_mm"] is None


def test_a_browser_gets_the_same_frames_and_at_most_eight_unacknowledged(linked: tuple[LiveServer, Tracker]) -> None:
    server, tracker = linked

    async def watch() -> None:
        base = f"http://127.0.0.1:{server.ports['http']}"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{base}/health") as page:
                assert (await page.json())["states"] == {"Needle": "OK"}
            async with session.get(f"{base}/metrics") as page:
                assert "navsrv_frames_seen_total" in await page.text()
            async with session.ws_connect(f"{base}/ws", headers={"Origin": "http://elsewhere.example"}) as ws:
                raise AssertionError(f"a foreign page may not speak here: {ws}")

    async def rebound() -> int:
        base = f"http://127.0.0.1:{server.ports['http']}"
        headers = {"Host": "evil.example:80", "Origin": "http://evil.example:80"}
        async with aiohttp.ClientSession() as session, session.get(f"{base}/ws", headers=headers) as answer:
            return answer.status

    assert asyncio.run(rebound()) == 403
    with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
        asyncio.run(watch())
    assert refusal.value.status == 403

    async def stall_and_wake() -> None:
        url = f"http://127.0.0.1:{server.ports['http']}/ws"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as ws:
            unacknowledged = []
            stamps = [tracker.pose(np.eye(4)) for _ in range(30)]
            for _ in range(8):
                unacknowledged.append(json.loads((await ws.receive()).data))
                tracker.pose(np.eye(4))
            assert all(isinstance(f["received_ns"], str) for f in unacknowledged)
            with pytest.raises(TimeoutError):
                await ws.receive(timeout=0.5)
            last = tracker.pose(np.eye(4))
            await asyncio.to_thread(server.frame_of, last)
            await ws.send_json({"ack": unacknowledged[-1]["seq"], "t_client": 12.5})
            answers = [json.loads((await ws.receive(timeout=10)).data) for _ in range(2)]
            clock = next(a for a in answers if "t_client" in a)
            frame = next(a for a in answers if "seq" in a)
            assert clock["t_client"] == 12.5
            assert abs(int(clock["server_ns"]) - time.monotonic_ns()) < 5e9
            assert frame["seq"] > unacknowledged[-1]["seq"]
            assert int(frame["pose_time_ns"]) >= last - 1000 >= stamps[-1] - 1000
            await ws.send_json({"id": "a", "op": "park_tool", "args": {"tool": "Needle", "parked": False}})
            while (answer := json.loads((await ws.receive(timeout=10)).data)).get("id") != "a":
                await ws.send_json({"ack": answer.get("seq"), "t_client": 0})
            assert answer["ok"] is True

    asyncio.run(stall_and_wake())


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "navsrv.server.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def test_replay_makes_the_same_frames_and_notices_a_changed_one(balls: Path) -> None:
    with Tracker() as tracker, LiveServer(balls, balls.parent, [f"trackers.main.port={tracker.port}"]) as server:
        tracker.accept()
        for i in range(40):
            server.frame_of(tracker.pose(needle_pose((i, 2 * i, 0), (30.0 - i, i, 0))))
        server.ask("park_tool", tool="Needle", parked=True)
        tracker.pose(np.eye(4), status="MISSING")
        tracker.drop()
        server.frame(lambda f: f["state"] == "LOST" and "down" in f["reason"])
        recording = Path(server.ready["recording"])
        assert server.stop() == 0
    verified = run_cli("replay", str(recording), "--verify")
    assert (verified.returncode, verified.stderr) == (0, "")
    assert "frames identical" in verified.stdout
    count = int(verified.stdout.split(": ")[1].split()[0])
    assert count > 45

    from mcap.reader import make_reader
    from mcap.writer import Writer

    other = recording.with_name("changed.mcap")
    with recording.open("rb") as source, other.open("wb") as target:
        reader, writer = make_reader(source), Writer(target)
        writer.start()
        for meta in reader.iter_metadata():
            writer.add_metadata(meta.name, meta.metadata)
        channels: dict[str, int] = {}
        frames = 0
        for _, channel, message in reader.iter_messages(log_time_order=False):
            if channel.topic not in channels:
                channels[channel.topic] = writer.register_channel(channel.topic, channel.message_encoding, 0)
            data = message.data
            if channel.topic == "guidance":
                frames += 1
                data = data.replace(b"caution", b"c4ution") if b"caution" in data else data
            writer.add_message(channels[channel.topic], message.log_time, data, message.publish_time)
        writer.finish()
    changed = run_cli("replay", str(other), "--verify")
    assert changed.returncode == 1
    assert "differs" in changed.stdout

    torn = recording.with_name("torn.mcap")
    torn.write_bytes(recording.read_bytes()[: recording.stat().st_size // 2])
    half = run_cli("replay", str(torn), "--verify")
    assert half.returncode == 0
    assert "torn" in half.stderr


def test_bad_input_is_one_line_and_exit_2(balls: Path, tmp_path: Path) -> None:
    text = balls.read_text()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        used = taken.getsockname()[1]
        (tmp_path / "torn.toml").write_text(text[:100])
        (tmp_path / "unknown.toml").write_text(text.replace("rate_hz", "rate_herz"))
        (tmp_path / "nocase.toml").write_text(text.replace('case"', 'no-such-case"'))
        (tmp_path / "empty.mcap").write_bytes(b"")
        (tmp_path / "not.mcap").write_bytes(b"hello" * 100)
        ports = [
            w for name in ("openigtlink", "devices", "zmq", "commands", "http") for w in ("--set", f"ports.{name}=0")
        ]
        rows: list[tuple[list[str], str]] = [
            (["serve", str(tmp_path / "none.toml")], "no such file"),
            (["serve", str(tmp_path / "torn.toml")], "not TOML"),
            (["check", str(tmp_path / "nocase.toml"), "--set", "ports.http=-1"], "out of range"),
            (["serve", str(tmp_path / "nocase.toml"), *ports], "no-such-case"),
            (["replay", str(tmp_path / "empty.mcap")], "empty"),
            (["replay", str(tmp_path / "not.mcap")], "not a recording"),
            (["replay", str(tmp_path / "none.mcap")], "No such file"),
            (["explode"], "invalid choice"),
            (["simulate", "explode"], "expected one of"),
        ]
        rows += [(["serve", str(balls), *ports, "--set", f"ports.{n}={used}"], f"ports.{n}") for n in ("http", "zmq")]
        rows += [
            (["serve", str(balls), *ports, "--set", f"ports.{n}={used}"], str(used)) for n in ("commands", "devices")
        ]
        for arguments, part in rows:
            done = run_cli(*arguments)
            assert done.returncode == 2, (arguments, done.stderr)
            assert part in done.stderr, (arguments, done.stderr)
            assert done.stderr.count("\n") == 1, (arguments, done.stderr)
            assert done.stdout == ""
    checked = run_cli("check", str(tmp_path / "unknown.toml"))
    assert checked.returncode == 2
    assert "trackers.main.rate_herz: unknown key; expected 'rate_hz'?" in checked.stderr
    assert "trackers.main.rate_hz: missing" in checked.stderr


def test_a_recorder_that_dies_is_an_alarm_and_guidance_goes_on(balls: Path) -> None:
    with Tracker() as tracker, LiveServer(balls, balls.parent, [f"trackers.main.port={tracker.port}"]) as server:
        tracker.accept()
        server.frame_of(tracker.pose(np.eye(4)))
        listed = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(server.process.pid)], capture_output=True, text=True, check=True
        )
        recorder = next(line.split()[0] for line in listed.stdout.splitlines() if "navsrv.server.recorder" in line)
        os.kill(int(recorder), 9)
        end = time.monotonic() + 20.0
        while True:
            frame = server.frame_of(tracker.pose(np.eye(4)))
            if any(alarm["condition"] == "recorder_failing" for alarm in frame["alarms"]):
                break
            assert time.monotonic() < end
        assert frame["state"] == "OK"
        assert "recorder ended by itself" in server.errors()


def test_a_failed_start_leaves_no_recording(balls: Path) -> None:
    before = set(balls.parent.glob("*.mcap"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [w for name in ("openigtlink", "devices", "zmq", "commands") for w in ("--set", f"ports.{name}=0")]
        done = run_cli("serve", str(balls), *ports, "--set", f"ports.http={taken.getsockname()[1]}")
    assert done.returncode == 2
    assert set(balls.parent.glob("*.mcap")) == before


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("trackers.main.host=no.such.host.invalid", "trackers.main.host"),
        ("registration.preset.T_ct_from_ref=[[1,0,0,inf],[0,1,0,0],[0,0,1,0],[0,0,0,1]]", "not finite"),
        ("tools.Needle.tip_mm=[1e300,0,0]", "out of range"),
        ("tools.Needle.transform=NeedleToReference", "different frames"),
        ("tools.Reference.transform=NeedleToTracker", "that of tools"),
        ("server.case=nope", "no such case folder"),
        ("ports.host=::1", "not loopback"),
        ("alarms.structures.Nothing.caution_mm=9", "no such structure"),
        ("x=" + "[" * 5000, "unknown key"),
    ],
)
def test_check_finds_what_would_stop_the_server(balls: Path, override: str, part: str) -> None:
    done = run_cli("check", str(balls), "--set", override)
    assert done.returncode == 2, done.stdout
    assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_check_lists_faults_of_all_kinds_at_once(balls: Path) -> None:
    overrides = ["trackers.main.rate_hz=-1", "tools.Needle.axis=[0,0,2]", "ports.host=0.0.0.0", "recordings=1"]
    done = run_cli("check", str(balls), *(word for o in overrides for word in ("--set", o)))
    assert done.returncode == 2
    for part in ("rate_hz", "tools.Needle.axis", "ports.host", "recordings: unknown key"):
        assert part in done.stderr, done.stderr


def test_nothing_is_left_behind(balls: Path) -> None:
    """A server told to end takes its children with it, and its recording is whole."""
    with Tracker() as tracker, LiveServer(balls, balls.parent, [f"trackers.main.port={tracker.port}"]) as server:
        device = socket.create_connection(("127.0.0.1", server.ports["devices"]), timeout=20.0)
        device.recv(65536)
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        assert len(children) >= 3
        assert server.stop() == 0
        device.close()
        assert "Traceback" not in server.errors()
    end = time.monotonic() + 5.0
    while left := [pid for pid in children if os.path.exists(f"/proc/{pid}")]:
        assert time.monotonic() < end, left
        time.sleep(0.05)
