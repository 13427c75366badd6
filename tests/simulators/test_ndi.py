"""The NDI simulator as NDI's clients see it, each in a process of its own, and as our driver does, on real lines."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from devices.ndi import NdiTracker
from devices.ndi_protocol import Binary as BinaryReply
from devices.ndi_protocol import Option, ReplyFramer, Text, decode_bx, decode_tx, encode_command
from devices.ndi_readings import NdiCounts, NdiSpec, NdiTool
from devices.ndi_rom import RomFile, read_rom
from devices.ndi_states import State
from devices.source import Send
from navsrv.kernel.errors import DeviceError
from navsrv.kernel.frames import rotation_from_quaternion_wxyz, rotation_from_vector
from navsrv.kernel.samples import PoseSample, Tracking
from simulators.exposures import Shown
from simulators.ndi import circling
from simulators.ndi_device import Device, standard_rom
from simulators.ndi_wire import USED, Seen, crc16, encode_bx, encode_tx
from tests.simulators.conftest import MiniCase
from tests.simulators.ndi_shell import Shell
from tests.simulators.processes import Simulator, refused, running

RATE = 60.0
WHERE = circling(RATE)
NO_MARKERS = np.zeros(0, np.bool_)
ALL = Option.TRANSFORMS | Option.MARKERS | Option.OUT_OF_VOLUME
TX_ROUNDING = {"q": 0.00005 + 1e-9, "mm": 0.005 + 1e-9}


def needs(module: str) -> None:
    """Skip aloud without a client; with CI=true fail."""
    if importlib.util.find_spec(module) is None:
        message = f"the independent client {module} is not installed: make test installs it"
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(message)
        pytest.skip(message)


def client(code: str, *arguments: object, path: Path | None = None) -> list[Any]:
    """Run a client program in a process of its own; return the JSON lines it printed."""
    environment = dict(os.environ)
    if path is not None:
        environment["PATH"] = f"{path}{os.pathsep}{environment.get('PATH', os.defpath)}"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60.0, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "["))]


def truth_log(path: Path) -> dict[int, dict[str, NDArray[np.float64]]]:
    """Return the poses behind each frame that was asked for."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["frame"]: {n: np.reshape(t["sent"], (4, 4)) for n, t in row["tools"].items()} for row in rows}


def rotation_error(q_wxyz: list[float], rotation: NDArray[np.float64]) -> float:
    """Return the largest difference between a quaternion's rotation and a matrix."""
    return float(np.abs(rotation_from_quaternion_wxyz(q_wxyz) - rotation).max())


# An error in reply to BX is left out: the client itself cannot take one, and ends with a segmentation fault.
NDICAPI = """
import json, sys, ndicapy as n
line, roms = sys.argv[1], sys.argv[2:]
serial = line.startswith("/")
say = lambda **what: print(json.dumps(what), flush=True)
if serial:
    say(probe=n.ndiProbe(line))
d = n.ndiOpen(line) if serial else n.ndiOpenNetwork("127.0.0.1", int(line))
said = [n.ndiCommand(d, "INIT:")]
if serial:
    said.append(n.ndiCommand(d, "COMM:50000"))
handles = []
for rom in roms:
    n.ndiCommand(d, "PHRQ:*********1****")
    h = n.ndiGetPHRQHandle(d)
    handles.append(h)
    n.ndiPVWRFromFile(d, h, rom)
    said.append(n.ndiCommand(d, "PINIT:%02X" % h))
    said.append(n.ndiCommand(d, "PENA:%02XD" % h))
n.ndiCommand(d, "PHSR:04")
say(said=said, handles=handles, enabled=[n.ndiGetPHSRHandle(d, i) for i in range(n.ndiGetPHSRNumberOfHandles(d))])
n.ndiCommand(d, "TSTART:")
for mode in ("0801", "0803"):
    for get, kind in ((n.ndiGetTXTransform, "TX"), (n.ndiGetBXTransform, "BX")):
        n.ndiCommand(d, kind + ":" + mode)
        frame = getattr(n, "ndiGet%sFrame" % kind)
        status = getattr(n, "ndiGet%sPortStatus" % kind)
        for h in handles:
            c = bytes([h])
            say(kind=kind, handle=h, pose=get(d, c), frame=frame(d, c), status=status(d, c))
n.ndiCommand(d, "TSTOP:")
errors = []
for command in ("FOO:", "PINIT:77", "TX:0001", "PENA:%02XQ" % handles[0], "INIT:1"):
    try:
        n.ndiCommand(d, command)
        errors.append("")
    except OSError as e:
        errors.append(str(e))
say(errors=errors)
(n.ndiClose if serial else n.ndiCloseNetwork)(d)
"""


@pytest.mark.realtime
@pytest.mark.parametrize("line", ["pty", "port"])
def test_ndicapi_loads_tools_and_gets_the_true_poses(line: str, tmp_path: Path) -> None:
    needs("ndicapy")
    truth = tmp_path / "truth.jsonl"
    with running("ndi", "--pty", "--port", 0, "--roms", tmp_path, "--truth", truth) as simulator:
        where = simulator.event()[line]
        lines = client(NDICAPI, where, tmp_path / "needle.rom", tmp_path / "reference.rom")
    if line == "pty":
        assert lines.pop(0) == {"probe": 0}
    opened, *poses, last = lines
    assert set(opened["said"]) == {"OKAY"}
    assert opened["enabled"] == opened["handles"] == [0x0A, 0x0B]
    log = truth_log(truth)
    assert len(poses) == 8
    for row in poses:
        matrix = log[row["frame"]]["Needle" if row["handle"] == 0x0A else "Reference"]
        assert row["status"] == 0x31
        limit = TX_ROUNDING["mm"] if row["kind"] == "TX" else 1e-4
        assert np.abs(np.array(row["pose"][4:7]) - matrix[:3, 3]).max() < limit
        assert rotation_error(row["pose"][:4], matrix[:3, :3]) < (4e-4 if row["kind"] == "TX" else 1e-6)
        assert row["pose"][7] == pytest.approx(0.05)
    for error, number in zip(last["errors"], ("0x01", "0x2B", "0x0C", "0x09", "0x07"), strict=True):
        assert f"POLARIS {number}".lower() in error.lower()


SKSURGERY = """
import json, sys
from sksurgerynditracker.nditracker import NDITracker
line, roms = sys.argv[1], sys.argv[2:]
where = {"tracker type": "polaris", "serial port": line}
if not line.startswith("/"):
    where = {"tracker type": "vega", "ip address": "127.0.0.1", "port": int(line)}
tracker = NDITracker({**where, "romfiles": roms, "use quaternions": True})
tracker.start_tracking()
print(json.dumps({"capture": tracker._capture_string}))
for _ in range(5):
    ports, _, frames, poses, quality = tracker.get_frame()
    print(json.dumps([ports, frames, [p.ravel().tolist() for p in poses], quality]))
tracker.stop_tracking()
tracker.close()
"""


@pytest.mark.realtime
@pytest.mark.parametrize(
    ("line", "model", "kind"), [("pty", "polaris", "BX"), ("pty", "TX", "TX"), ("port", "vega", "BX")]
)
def test_scikit_surgerynditracker_tracks(line: str, model: str, kind: str, tmp_path: Path) -> None:
    needs("sksurgerynditracker")
    # It calls ping before TCP, which is neither part of the protocol nor on every machine.
    ping = tmp_path / "ping"
    ping.write_text("#!/bin/sh\nexit 0\n")
    ping.chmod(0o755)
    truth = tmp_path / "truth.jsonl"
    says = ["--freeze-tag", "Polaris Vega 008"] if model == "TX" else ["--model", model]
    with running("ndi", "--pty", "--port", 0, "--roms", tmp_path, "--truth", truth, *says) as simulator:
        where = simulator.event()[line]
        capture, *rows = client(SKSURGERY, where, tmp_path / "needle.rom", tmp_path / "reference.rom", path=tmp_path)
    assert capture["capture"] == f"{kind}:0801"
    log = truth_log(truth)
    assert len(rows) == 5
    for ports, frames, poses, quality in rows:
        assert ports == [0x0A, 0x0B]
        assert quality == pytest.approx([0.05, 0.05])
        for name, frame, pose in zip(("Needle", "Reference"), frames, poses, strict=True):
            matrix = log[round(frame)][name]
            assert np.abs(np.array(pose[4:7]) - matrix[:3, 3]).max() < TX_ROUNDING["mm"]
            assert rotation_error(pose[:4], matrix[:3, :3]) < 4e-4


# Our driver on real lines.


def tools(folder: Path) -> tuple[NdiTool, ...]:
    """Return both tools of the room by the files that the simulator wrote, the reference first."""
    return (
        NdiTool("ReferenceToTracker", read_rom(folder / "reference.rom"), mode="S"),
        NdiTool("NeedleToTracker", read_rom(folder / "needle.rom")),
    )


@pytest.mark.realtime
@pytest.mark.parametrize("line", ["pty", "port"])
@pytest.mark.parametrize("binary", [True, False])
def test_driver_tracks_and_its_poses_are_the_truth(line: str, binary: bool, tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    with running("ndi", "--pty", "--port", 0, "--roms", tmp_path, "--truth", truth) as simulator:
        where = simulator.event()[line]
        baud = 115200 if line == "pty" else None
        counts = NdiCounts()
        tracker = NdiTracker(NdiSpec("ndi", tools(tmp_path), baud=baud, binary=binary), counts)
        with Shell(tracker, where) as shell:
            shell.run(lambda: len(shell.samples) >= 40)
            assert shell.bauds == ([115200] if line == "pty" else [])
    log = truth_log(truth)
    for sample in shell.samples:
        assert sample.tracking is Tracking.OK, sample.reason
    by_name = {name: [s for s in shell.samples if s.name == name] for name in ("NeedleToTracker", "ReferenceToTracker")}
    for needle, reference in zip(*by_name.values(), strict=False):
        assert needle.device_time_ns == reference.device_time_ns
    first_frame, first = min(log), by_name["NeedleToTracker"][0]
    for name, samples in by_name.items():
        for s in samples:
            # The stamp tells the frame, whatever the line was doing meanwhile.
            frame = first_frame + round((s.pose_time_ns - first.pose_time_ns) * RATE / 1e9)
            matrix = log[frame][name.removesuffix("ToTracker")]
            assert s.pose is not None
            assert np.abs(s.pose.translation_mm - matrix[:3, 3]).max() < (1e-4 if binary else TX_ROUNDING["mm"])
            assert np.abs(s.pose.rotation - matrix[:3, :3]).max() < (1e-6 if binary else 4e-4)
    assert (counts.garbled, counts.timeouts, counts.errors, counts.unasked) == (0, 0, 0, 0)


def reported(name: str, why: str) -> Callable[[PoseSample], bool]:
    """Return whether a sample is this tool's and its reason has these words; no words ask for a pose."""
    return lambda s: s.name == f"{name}ToTracker" and (why in s.reason if why else s.tracking is Tracking.OK)


@pytest.mark.realtime
def test_driver_sees_what_happens_to_a_tool_and_survives_a_bad_line(tmp_path: Path) -> None:
    with running("ndi", "--pty", "--roms", tmp_path) as simulator:
        pty = simulator.event()["pty"]
        tracker = NdiTracker(NdiSpec("ndi", tools(tmp_path), baud=115200), NdiCounts())
        with Shell(tracker, pty) as shell:
            shell.wait(reported("Needle", ""))
            simulator.tell(do="hide", tool="Needle", seconds=0.3)
            hidden = shell.wait(reported("Needle", "not in view (too few markers in view)"))
            assert (hidden.pose, hidden.tracking) == (None, Tracking.MISSING)
            shell.wait(reported("Reference", ""))
            shell.wait(reported("Needle", ""))
            simulator.tell(do="carry", tool="Needle", away_mm=2000.0)
            shell.wait(reported("Needle", "out of the measurement volume"))
            simulator.tell(do="carry", tool="Needle", away_mm=0.0)
            shell.wait(reported("Needle", ""))
            simulator.tell(do="garble", count=3)
            shell.run(lambda: tracker.counts.garbled >= 3)
            shell.wait(reported("Needle", ""))
            simulator.tell(do="reset")
            shell.run(lambda: tracker.counts.restarts == 1)
            shell.wait(reported("Needle", ""))
            assert shell.bauds == [115200, 9600, 115200]


@pytest.mark.realtime
def test_driver_sees_a_wired_tool_unplugged_and_plugged_in_again(tmp_path: Path) -> None:
    wired = (NdiTool("NeedleToTracker", identity="NAVSRV-NEEDLE"), NdiTool("ReferenceToTracker", identity="0000000B"))
    for binary in (True, False):
        with running("ndi", "--port", 0, "--wired", "--model", "aurora") as simulator:
            tracker = NdiTracker(NdiSpec("aurora", wired, binary=binary), NdiCounts())
            with Shell(tracker, simulator.event()["port"]) as shell:
                shell.wait(reported("Needle", ""))
                simulator.tell(do="unplug", tool="Needle")
                shell.wait(reported("Needle", "unplugged"))
                shell.wait(reported("Reference", ""))
                simulator.tell(do="plug", tool="Needle")
                shell.wait(reported("Needle", ""))
                shell.wait(reported("Reference", ""))
                assert tracker.counts.replugged == 1


@pytest.mark.parametrize("lose", [lambda data: b"", lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_driver_finds_a_tool_that_was_plugged_in_while_a_reply_was_lost(lose: Callable[[bytes], bytes]) -> None:
    device = Device(WHERE, ("Needle",), wired=True)
    tracker = NdiTracker(NdiSpec("aurora", (NdiTool("NeedleToTracker", identity="NAVSRV-NEEDLE"),)), NdiCounts())
    now = 0
    tracker.start(now)

    def until(found: Callable[[PoseSample], bool], losing: int = 0) -> None:
        nonlocal now
        for _ in range(2000):
            for effect in tracker.take_effects():
                assert isinstance(effect, Send)
                device.frame = now * 60 // 10**9
                data = device.feed(effect.data)
                losing -= 1
                if any(map(found, tracker.feed(lose(data) if losing >= 0 else data, now, now))):
                    return
            now += 5_000_000
            tracker.tick(now)
        pytest.fail(f"not found: {tracker.state}, {tracker.counts}")

    until(reported("Needle", ""))
    device.plug("Needle", False)
    until(reported("Needle", "unplugged"))
    now += 10_000_000
    tracker.tick(now)
    device.plug("Needle", True)
    until(reported("Needle", ""), losing=1)
    assert tracker.counts.replugged == 1


@pytest.mark.realtime
def test_driver_ends_with_the_devices_own_words(tmp_path: Path) -> None:
    with running("ndi", "--port", 0, "--roms", tmp_path) as simulator:
        port = simulator.event()["port"]
        simulator.tell(do="fail", command="PINIT", error=0x13)
        simulator.wait_for("done")
        tracker = NdiTracker(NdiSpec("ndi", tools(tmp_path)), NdiCounts())
        with pytest.raises(DeviceError, match="ERROR13, the tool in that port could not be initialised"):  # noqa: SIM117
            with Shell(tracker, port) as shell:
                shell.run(lambda: False)


@pytest.mark.realtime
def test_driver_tracks_in_the_room_of_a_case(mini_case: MiniCase, tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    quiet = ("--noise-mm", 0, "--noise-deg", 0, "--insert-after-s", 0)
    case = ("--case", mini_case.folder, "--seed", 7)
    with running("ndi", "--port", 0, "--roms", tmp_path, "--truth", truth, *case, *quiet) as simulator:
        port = simulator.event()["port"]
        tracker = NdiTracker(NdiSpec("ndi", tools(tmp_path)), NdiCounts())
        with Shell(tracker, port) as shell:
            shell.run(lambda: sum(s.tracking is Tracking.OK for s in shell.samples) >= 20)
    poses = {n: np.array([t[n] for t in truth_log(truth).values()]) for n in ("Needle", "Reference")}
    for sample in shell.samples:
        if sample.pose is not None:
            known = poses[sample.name.removesuffix("ToTracker")]
            assert np.abs(known - sample.pose.matrix).max(axis=(1, 2)).min() < 1e-3
    assert {s.name for s in shell.samples if s.pose is not None} == {"NeedleToTracker", "ReferenceToTracker"}


# The device alone.


class Bench:
    """A device in this process, spoken to by our encoder."""

    def __init__(self, wired: bool = False) -> None:
        self.device = Device(WHERE, ("Needle", "Reference"), wired=wired)

    def ask(self, text: str) -> str | bytes:
        """Return the answer to a command, its CRC checked and taken off."""
        (answer,) = ReplyFramer().feed(self.device.feed(encode_command(text)))
        if isinstance(answer, BinaryReply):
            return answer.body
        assert isinstance(answer, Text), answer
        return answer.text

    def load(self, rom: bytes) -> str:
        """Return the handle of a tool definition that was written."""
        handle = str(self.ask("PHRQ:*********1****"))
        for address in range(0, 1024, 64):
            piece = rom.ljust(1024, b"\0")[address : address + 64].hex().upper()
            assert self.ask(f"PVWR:{handle}{address:04X}{piece}") == "OKAY"
        return handle


def test_the_device_answers_with_the_protocols_errors() -> None:
    bench = Bench()
    assert bench.ask("PHSR:00") == "ERROR10"
    assert bench.device.feed(b"INIT:E3A5\r") == b"OKAYA896\r"
    assert bench.device.feed(b"INIT:E3A6\r")[:7] == b"ERROR04"
    assert bench.device.feed(b"INIT \r") == b"OKAYA896\r"
    assert bench.device.feed(b"INIT:\r")[:7] == b"ERROR03"
    assert bench.device.feed(b"A" * 2000)[:7] == b"ERROR02"
    rom = standard_rom("Needle")
    handle = bench.load(rom)
    empty = str(bench.ask("PHRQ:*********1****"))
    answers = {
        "NONE:": "ERROR01",
        "INIT:1": "ERROR07",
        "COMM:5000": "ERROR07",
        "COMM:90000": "ERROR23",
        "COMM:A0001": "OKAY",
        "BEEP:0": "ERROR23",
        "BEEP:1": "1",
        "PHRQ:1": "ERROR07",
        "PINIT:77": "ERROR2B",
        f"PINIT:{empty}": "ERROR0D",
        f"PENA:{handle}D": "ERROR0E",
        f"PVWR:{handle}0000": "ERROR07",
        f"PVWR:{handle}0001" + 128 * "0": "ERROR23",
        f"PVWR:{handle}0400" + 128 * "0": "ERROR23",
        f"PINIT:{handle}": "OKAY",
        f"PENA:{handle}X": "ERROR09",
        f"PDIS:{empty}": "ERROR0E",
        "PHSR:05": "ERROR23",
        "TX:0001": "ERROR0C",
        "TSTOP:1": "ERROR0C",
        f"PHF:{empty}": "OKAY",
        "PHSR:02": "00",
        "PHSR:03": f"01{handle}011",
        f"PENA:{handle}S": "OKAY",
        "PHSR:04": f"01{handle}031",
        "TSTART:11": "ERROR23",
        "TSTART:80": "OKAY",
        "PHSR:00": "ERROR0C",
        "BX:0008": "ERROR09",
        "BX:1": "ERROR07",
        "TSTOP:": "OKAY",
    }
    for command, answer in answers.items():
        assert bench.ask(command) == answer, command


def test_the_device_refuses_a_damaged_tool_definition() -> None:
    bench = Bench()
    bench.ask("INIT:")
    good = standard_rom("Needle")
    many = bytearray(good)
    struct.pack_into("<I", many, 0x1C, 21)
    struct.pack_into("<H", many, 4, sum(many[6:]) & 0xFFFF)
    for rom, answer in ((good, "OKAY"), (good[:80] + b"\x07" + good[81:], "ERROR40"), (bytes(many), "ERROR41")):
        assert bench.ask(f"PINIT:{bench.load(rom)}") == answer


def test_the_device_has_no_more_handles_than_it_has() -> None:
    bench = Bench()
    bench.ask("INIT:")
    handles = [bench.ask("PHRQ:*********1****") for _ in range(15)]
    assert len(set(handles)) == 15
    assert bench.ask("PHRQ:*********1****") == "ERROR2D"
    assert bench.ask(f"PHF:{handles[3]!s}") == "OKAY"
    assert str(bench.ask("PHRQ:*********1****")) not in set(handles) - {handles[3]}


def test_a_tool_at_the_edge_of_the_volume_is_partly_out_and_beyond_it_out() -> None:
    at = [np.eye(4)]
    device = Device(lambda frame: {"Needle": Shown("Needle", at[0], "OK", at[0], NO_MARKERS, 0.05)}, ("Needle",))
    bench = Bench()
    bench.device = device
    bench.ask("INIT:")
    handle = bench.load(standard_rom("Needle"))
    assert [bench.ask(f"{c}:{handle}{m}") for c, m in (("PINIT", ""), ("PENA", "D"))] == ["OKAY", "OKAY"]
    bench.ask("TSTART:")
    seen = []
    for z in (-1500.0, -2780.0, -3500.0):
        at[0] = np.eye(4)
        at[0][2, 3] = z
        body = bench.ask("BX:0803")
        assert isinstance(body, bytes)
        (reading,) = decode_bx(body, ALL).handles
        seen.append((int(reading.port or 0), reading.state.value))
    assert seen == [(0x31, "valid"), (0xB1, "valid"), (0x71, "valid")]
    body = bench.ask("BX:0001")
    assert isinstance(body, bytes)
    assert decode_bx(body, Option.TRANSFORMS).handles[0].state.value == "missing"


def test_both_encodings_say_the_same_as_what_was_meant() -> None:
    rng = np.random.default_rng(11)
    for _ in range(50):
        matrix = np.eye(4)
        matrix[:3, :3] = rotation_from_vector(rng.normal(size=3))
        matrix[:3, 3] = rng.uniform(-3000.0, 3000.0, 3)
        markers = (USED, 0, 1, 2) + (0,) * 16
        tool = Seen(0x0A, "valid", matrix, 0.1234, 0x31, 0xFFFFFFFE, markers, 0)
        for readings in (
            decode_tx(encode_tx((tool,), 0x0004, 0x0003), Option.TRANSFORMS | Option.MARKERS),
            decode_bx(encode_bx((tool,), 0x0004, 0x0003)[6:-2], Option.TRANSFORMS | Option.MARKERS),
        ):
            (reading,) = readings.handles
            assert np.abs(np.array(reading.translation_mm) - matrix[:3, 3]).max() < TX_ROUNDING["mm"]
            assert rotation_error(list(reading.q_wxyz), matrix[:3, :3]) < 4e-4
            assert (reading.frame, reading.markers, int(readings.system)) == (0xFFFFFFFE, markers, 0x0004)
            assert reading.error_mm == pytest.approx(0.1234, abs=6e-5)


def test_the_simulators_crc_is_the_published_one() -> None:
    assert crc16(b"123456789") == 0xBB3D
    assert crc16(b"INIT:") == 0xE3A5


def test_driver_against_the_device_in_virtual_time_for_an_hour_of_frames() -> None:
    device = Device(WHERE, ("Needle", "Reference"))
    counts = NdiCounts()
    rom = RomFile.parse(standard_rom("Needle"), "needle.rom")
    tracker = NdiTracker(NdiSpec("ndi", (NdiTool("NeedleToTracker", rom),)), counts)
    now, wall = 0, 1_790_000_000 * 10**9
    tracker.start(now)
    got: list[PoseSample] = []
    # One question a second, so that an hour is cheap: every 60th frame.
    while now < 3600 * 10**9:
        for effect in tracker.take_effects():
            assert isinstance(effect, Send)
            device.frame = now * 60 // 10**9
            got += tracker.feed(device.feed(effect.data), now, wall + now)
        now += 10**9 if tracker.state is State.TRACKING else 10**6
        tracker.tick(now)
    assert len(got) > 3500
    assert all(s.tracking is Tracking.OK for s in got)
    assert max(abs(s.pose_time_ns - wall - s.received_ns) for s in got) < 20_000_000
    assert counts.clock_jumps == 0


# The command line.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "expected --pty, --port or both"),
        (("--pty", "--rate-hz", "0"), "--rate-hz"),
        (("--pty", "--case", "/none"), "/none"),
        (("--port", "70000"), "70000"),
        (("--pty", "--truth", "/none/x"), "--truth"),
    ],
)
def test_bad_arguments_are_told_in_one_line(arguments: tuple[str, ...], words: str) -> None:
    assert words in refused("ndi", *arguments)


@pytest.mark.realtime
def test_a_second_client_is_turned_away_and_a_later_one_is_served(tmp_path: Path) -> None:
    with running("ndi", "--port", 0, "--roms", tmp_path) as simulator:
        port = simulator.event()["port"]
        for _ in range(2):
            tracker = NdiTracker(NdiSpec("ndi", tools(tmp_path)), NdiCounts())
            with Shell(tracker, port) as shell:
                shell.wait(reported("Needle", ""))
                second = Shell(NdiTracker(NdiSpec("ndi", tools(tmp_path)), NdiCounts()), port)
                with pytest.raises((AssertionError, OSError)), second:
                    second.run(lambda: False, seconds=5.0)
                shell.wait(reported("Needle", ""))


def stops(simulator: Simulator) -> int:
    """Return the exit status after a stop."""
    simulator.tell(do="stop")
    return simulator.process.wait(10.0)


@pytest.mark.realtime
def test_stop_ends_it_cleanly() -> None:
    with running("ndi", "--pty") as simulator:
        assert simulator.event()["ready"] is True
        assert stops(simulator) == 0
