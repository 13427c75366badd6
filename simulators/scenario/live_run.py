"""Owns the playing of a scenario against the real server: its process, its sockets, its ports, in real time.

The tracker is a listening socket here; a fault acts on the bytes that it writes, on its connection, or by the system's
means on a process of the server.  The operator touches landmarks and accepts the registration, as one would.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import zmq
from numpy.typing import NDArray

from navsrv.kernel.frames import Array
from navsrv.wire.guidance import decode_frame
from navsrv.wire.openigtlink import Image, Message, Metadata, Transform, encode, timestamp_from_ns
from simulators.fault_line import FaultLine
from simulators.faults import Episode, FaultOrder, episodes_of
from simulators.packets import encode_poses
from simulators.room import Commander, DemoFailed, Part, Watcher
from simulators.scenario.phantom import phantom_ct
from simulators.scenario.stage import Stage
from simulators.scenario.watched import Shown
from simulators.world.batches import rigid
from simulators.world.imaging import OarmProtocol, OarmVolume, reconstruct
from simulators.world.scene import Stream, stream

SOURCE: Final = "main"
START_TIMEOUT_S: Final = 120.0
LANDMARK_MM: Final = 40.0
TOUCHES: Final = 8
TOUCH_NOISE_MM: Final = 0.02
"""Exposures for which the needle rests on a landmark."""
SETTLE_S: Final = 0.3
END_S: Final = 0.3
OTHER_PATIENT: Final = 2
OARM_HZ: Final = 10.0
OARM: Final = OarmProtocol(150.0, 110.0, 1.5, noise_hu=30.0)
_SO_ATTACH_FILTER: Final = 26
_SO_DETACH_FILTER: Final = 27


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """What came of a story: the frames of a display, the stamps of the exposures, the server's recording."""

    shown: list[Shown]
    stamps_ns: NDArray[np.int64]
    recording: str | None


def play_live(stage: Stage, folder: Path, out: Path) -> Played:
    """Return what a display was shown; every process and socket is gone afterwards.

    Raises
    ------
    DemoFailed
        The server did not start, or refused what every story begins with.
    """
    scenario = stage.scenario
    volumes = [_volume(stage, i) for i in range(len(scenario.images))]
    with _Tracker() as tracker, _Room(stage, folder / scenario.config, out, tracker.port) as room:
        tracker.wait()
        registration_id = _register(stage, tracker, room.commander) if scenario.registered else ""
        with contextlib.ExitStack() as stack:
            oarm = None
            if volumes:
                oarm = stack.enter_context(_Oarm(room.ready["ports"]["devices"], stage))
                time.sleep(SETTLE_S)
            start_ns, stamps_ns = _story(stage, tracker, room, oarm, volumes, registration_id)
        time.sleep(END_S)
        frames = [(at, decode_frame(payload)) for at, payload in room.watcher.received]
    shown = [Shown((at - start_ns) / 1e9, frame) for at, frame in frames if start_ns <= at]
    return Played(shown, stamps_ns, room.ready["recording"])


class _Room:
    """The server's process, a display that takes every frame, and the operator's command channel."""

    def __init__(self, stage: Stage, config: Path, out: Path, tracker_port: int) -> None:
        overrides = [
            f'server.case="{stage.composition.case.folder}"',
            f"trackers.{SOURCE}.port={tracker_port}",
            f'recording.folder="{out}"',
        ]
        words = [word for override in overrides for word in ("--set", override)]
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._server = Part("server", ["navsrv.server.cli", "serve", str(config), *words])
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> Self:
        try:
            self.ready = self._server.wait_for("ready", START_TIMEOUT_S)
        except DemoFailed:
            self._server.stop()
            raise
        self.watcher = Watcher(self._context, self.ready["ports"]["zmq"])
        self.commander = Commander(self._context, self.ready["ports"]["commands"])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.watcher.stop()
        self.commander.close()
        self._context.term()
        self._server.stop()

    def child(self, name: str) -> int:
        """Return the process id of a part of the server; DemoFailed when there is none."""
        pid = self._server.process.pid
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                if f"navsrv.server.{name}" in Path(f"/proc/{child}/cmdline").read_text():
                    return int(child)
        raise DemoFailed(f"the server has no process {name!r}")


class _Tracker:
    """A tracker's socket: one client at a time, cut and deaf as the story wants it."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None
        self._link: socket.socket | None = None
        self.port = 0
        self._listen()

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=4)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for sock in (self._link, self._listener):
            if sock is not None:
                sock.close()

    def wait(self) -> None:
        """Wait for the server's connection."""
        end = time.monotonic() + START_TIMEOUT_S
        while self._link is None and time.monotonic() < end:
            assert self._listener is not None
            select.select([self._listener], [], [], 0.2)
            self.poll()

    def poll(self) -> None:
        """Accept who waits, and read away what the client says."""
        if self._listener is not None:
            with contextlib.suppress(BlockingIOError):
                link, _ = self._listener.accept()
                link.setblocking(False)
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._drop()
                self._link = link
        if self._link is not None:
            try:
                if not self._link.recv(65_536):
                    self._drop()
            except BlockingIOError:
                pass
            except OSError:
                self._drop()

    def send(self, data: bytes) -> None:
        """Write to the client, if there is one; what it does not take is lost, as a stream's is."""
        if self._link is None:
            return
        try:
            self._link.sendall(data)
        except OSError:
            self._drop()

    def cut(self) -> None:
        """Close the connection, and listen no more."""
        self._drop()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def back(self) -> None:
        """Listen again at the same port."""
        if self._listener is None:
            self._listen()

    def vanish(self) -> None:
        """Hear nothing any more, not even what the system would acknowledge: a filter drops every packet that comes."""
        for sock in (self._link, self._listener):
            if sock is not None:
                _deafen(sock)

    def reappear(self) -> None:
        """Hear again; the connection of before is forgotten."""
        if self._listener is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        self._drop()

    def _drop(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None


class _Filter(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Filter)))


def _deafen(sock: socket.socket) -> None:
    """Let the kernel drop every segment for a socket: the classic BPF program ``ret #0``."""
    nothing = _Filter(0x06, 0, 0, 0)
    program = _Program(1, ctypes.pointer(nothing))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(program))


# -- before the story ------------------------------------------------------------------------------------------------


def _register(stage: Stage, tracker: _Tracker, commander: Commander) -> str:
    """Touch landmarks around the target with the needle's tip, register by them, and accept; return its id."""
    plan = stage.composition.case.plan
    assert plan is not None
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [-1, -1, -1]]) * LANDMARK_MM
    corners *= np.array([1.0, 0.5, 1.0]) * [1.0, 1.0, 0.9]
    rng = stream(stage.scenario.seed, Stream.REFERENCE)
    for n, offset in enumerate(corners):
        point = plan.target_ct_mm + offset + rng.uniform(-5.0, 5.0, 3)
        _touch(stage, tracker, point, rng)
        commander.ask("collect_landmark", tool=_tool(stage).name, name=f"L{n + 1}", point_ct_mm=point.tolist())
    found = commander.ask("register_landmarks")
    commander.ask("accept_registration", id=found["id"])
    return str(found["id"])


def _tool(stage: Stage) -> Any:
    return stage.composition.setup.tools[0]


def _touch(stage: Stage, tracker: _Tracker, point: Array, rng: np.random.Generator) -> None:
    """Send exposures of the needle's tip resting on a point of the patient, each with noise as a tracker has it."""
    tool, reference = _tool(stage), stage.composition.setup.reference
    assert reference is not None
    rotation = np.diag([1.0, -1.0, -1.0])
    body = rigid(rotation, point - rotation @ tool.tip_mm)[0]
    patient = stage.scene.T_tracker_from_ct.matrix
    poses = {tool.transform: patient @ body, reference.transform: patient @ stage.scene.T_ct_from_ref.matrix}
    period_s, latency_ns = 1.0 / stage.scenario.tracker.rate_hz, round(stage.scenario.tracker.latency_ms * 1e6)
    for _ in range(TOUCHES):
        stamp = np.array([time.time_ns() - latency_ns], dtype=np.int64)
        seen = {name: pose.copy() for name, pose in poses.items()}
        for pose in seen.values():
            pose[:3, 3] += rng.normal(0.0, TOUCH_NOISE_MM, 3)
        tracker.send(b"".join(encode_poses(name, pose[None], stamp)[0].tobytes() for name, pose in seen.items()))
        tracker.poll()
        time.sleep(period_s)


def _volume(stage: Stage, index: int) -> bytes:
    """Return the O-arm's image of one spin, with the faults that images can have."""
    scenario, scene = stage.scenario, stage.scene
    at_s = scenario.images[index].at_s
    faults = {f.fault for f in scenario.faults if f.at_s is not None and f.at_s <= at_s < f.at_s + f.for_s}
    ct = phantom_ct(OTHER_PATIENT) if "wrong_series" in faults else stage.composition.case.ct()
    rng = np.random.default_rng([scenario.seed, 0x0A, index])
    volume: OarmVolume = reconstruct(ct, scene.T_ct_from_volume, OARM, rng)
    matrix = volume.index_to_volume_mm
    if "wrong_orientation" in faults:
        matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    return encode(Message("OArm", 0, Image(volume.voxels, matrix, "LPS"), 2))


class _Oarm:
    """An O-arm in a thread of its own: its volume's pose ten times a second, and an image when it is told."""

    def __init__(self, port: int, stage: Stage) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._pose = Transform(stage.scene.T_tracker_from_volume.matrix)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while not self._stop.wait(1.0 / OARM_HZ):
            with self._lock, contextlib.suppress(OSError):
                self._socket.sendall(self._pose_now(time.time_ns()))

    def _pose_now(self, time_ns: int) -> bytes:
        ok = (Metadata("TransformStatus", "OK"),)
        return encode(Message("VolumeToTracker", timestamp_from_ns(time_ns), self._pose, 2, ok))

    def spin(self, image: bytes) -> None:
        """Send the pose and the image with one stamp."""
        now_ns = time.time_ns()
        raw = timestamp_from_ns(now_ns).to_bytes(8)
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(self._pose_now(now_ns) + image[:34] + raw + image[42:])


# -- the story -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Timeline:
    """What happens when, on the monotonic clock; ``do`` runs what is due."""

    items: list[tuple[int, int, Callable[[], None]]] = field(default_factory=list)

    def add(self, at_ns: int, act: Callable[[], None]) -> None:
        self.items.append((at_ns, len(self.items), act))

    def sorted(self) -> list[tuple[int, int, Callable[[], None]]]:
        return sorted(self.items, key=lambda item: item[:2])


def _story(
    stage: Stage, tracker: _Tracker, room: _Room, oarm: _Oarm | None, volumes: list[bytes], registration_id: str
) -> tuple[int, NDArray[np.int64]]:
    """Play the story; return when it began (monotonic ns) and the stamps of its exposures."""
    scenario = stage.scenario
    wall_from_monotonic_ns = time.time_ns() - time.monotonic_ns()
    began_ns = time.monotonic_ns()
    stage.messages(np.round(stage.exposed_s * 1e9).astype(np.int64))
    # What is rehearsed here is done once more below, before the first exposure is due.
    start_ns = time.monotonic_ns() + 300_000_000 + 2 * (time.monotonic_ns() - began_ns)
    exposed_ns = start_ns + np.round(stage.exposed_s * 1e9).astype(np.int64)
    stamps_ns = exposed_ns + wall_from_monotonic_ns
    episodes = episodes_of(scenario.faults, start_ns, scenario.duration_s, np.random.default_rng([scenario.seed, 0xFA]))
    line = FaultLine(tuple(e for e in episodes if e.order.device == SOURCE))
    timeline = _Timeline()
    end_ns = start_ns + round(scenario.duration_s * 1e9)
    away = [(e.begin_ns, e.end_ns) for e in line.episodes if e.order.fault in ("link_cut", "restart", "half_open")]
    _plan_stream(timeline, stage, tracker, line, exposed_ns, stamps_ns, end_ns, away)
    for episode in episodes:
        _plan_episode(timeline, episode, tracker, room)
    for command in scenario.commands:
        timeline.add(
            start_ns + round(command.at_s * 1e9),
            lambda c=command: room.commander.ask(c.op, **c.args(registration_id)),  # type: ignore[misc]
        )
    for image, data in zip(scenario.images, volumes, strict=True):
        assert oarm is not None
        timeline.add(start_ns + round(image.at_s * 1e9), lambda d=data: oarm.spin(d))  # type: ignore[misc]
    for at_ns, _, act in timeline.sorted():
        _sleep_until(at_ns, tracker)
        act()
    _sleep_until(end_ns, tracker)
    return start_ns, stamps_ns


def _plan_stream(
    timeline: _Timeline,
    stage: Stage,
    tracker: _Tracker,
    line: FaultLine,
    exposed_ns: NDArray[np.int64],
    stamps_ns: NDArray[np.int64],
    end_ns: int,
    away: list[tuple[int, int]],
) -> None:
    latency_ns = round(stage.scenario.tracker.latency_ms * 1e6)
    for at_ns, messages in zip((exposed_ns + latency_ns).tolist(), stage.messages(stamps_ns), strict=True):
        if at_ns >= end_ns or any(begin <= at_ns < end for begin, end in away):
            continue
        for delivery in line.exposure(at_ns, messages):
            timeline.add(delivery.at_ns, lambda d=delivery.data: tracker.send(d))  # type: ignore[misc]


def _plan_episode(timeline: _Timeline, episode: Episode, tracker: _Tracker, room: _Room) -> None:
    begin_ns, end_ns = episode.begin_ns, episode.end_ns
    match episode.order.fault:
        case "link_cut" | "restart":
            timeline.add(begin_ns, tracker.cut)
            timeline.add(end_ns, tracker.back)
        case "half_open":
            timeline.add(begin_ns, tracker.vanish)
            timeline.add(end_ns, tracker.reappear)
        case "disk_full":
            timeline.add(begin_ns, lambda: _fill_disk(room, episode.order))
        case "killed_process":
            timeline.add(begin_ns, lambda: os.kill(room.child(episode.order.device), signal.SIGKILL))


def _fill_disk(room: _Room, order: FaultOrder) -> None:
    """Let a process write no more: its files may not grow, as on a disk that is full."""
    pid = room.child(order.device)
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))


def _sleep_until(at_ns: int, tracker: _Tracker) -> None:
    """Wait, and let the tracker accept and hear meanwhile."""
    tracker.poll()
    while (left_ns := at_ns - time.monotonic_ns()) > 0:
        time.sleep(min(left_ns, 5_000_000) / 1e9)
        tracker.poll()
