"""Owns the tracker simulator: an OpenIGTLink server as PLUS would be, with a needle, a reference and a story.

Each tick is one camera exposure: both tools with one stamp, in one write to each client.  Metadata goes only to clients
that have sent a message of version 2, as PLUS does.  Commands come as JSON lines on standard input.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TextIO

import numpy as np

from navsrv.anatomy.case import Case
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array, Rigid
from navsrv.wire.openigtlink import Message, Metadata, Transform, encode, timestamp_from_ns
from simulators.arguments import Parser, add_room, breathing_of, number, plan_of, whole
from simulators.link import Loop, Server, emit
from simulators.world.drift import story_for_case
from simulators.world.insertion import Needle, Story
from simulators.world.scene import Scene, Stream, TruthRecord, jitter, log_header, stream
from simulators.world.truth import Truth

TOOLS: Final = ("Needle", "Reference")
HIDDEN: Final = ("identity", "last", "silent")


@dataclass(frozen=True, slots=True)
class Settings:
    """How the tracker behaves.

    Attributes
    ----------
    rate_hz, speed : float
    latency_ns : int
        From the exposure to the write; the stamp is the exposure's.
    noise_mm, noise_rad : float
        Root-mean-square lengths of the pose noise, at the tool's origin.
    hidden : str
        What is sent for a tool out of view: ``identity``, its ``last`` pose, or nothing (``silent``).
    insert_after_s : float or None
        Start the story by itself.
    """

    rate_hz: float
    speed: float
    latency_ns: int
    noise_mm: float
    noise_rad: float
    hidden: str
    insert_after_s: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """One tool of one exposure as it goes out: ``T_tracker_from_tool`` and whether it is seen."""

    name: str
    matrix: Array
    visible: bool


class Tracker:
    """State between exposures: when the story began, what is hidden until when, the last seen poses."""

    def __init__(self, scene: Scene, story: Story, settings: Settings) -> None:
        self.scene, self.story, self.settings = scene, story, settings
        self._rng = stream(scene.seed, Stream.NOISE)
        self._insert_ns: int | None = None
        self._hidden_until_ns = dict.fromkeys(TOOLS, 0)
        self._last = {name: np.eye(4) for name in TOOLS}
        self._first_ns: int | None = None
        self._phase = ""

    @property
    def story_s(self) -> float:
        """How long one insertion lasts at this speed; a new one starts again from above the skin."""
        return self.story.duration_s / self.settings.speed

    def command(self, order: dict[str, Any], now_ns: int) -> None:
        """Obey ``insert`` or ``hide``; InputError for anything else."""
        match order:
            case {"do": "insert"}:
                if self._insert_ns is not None and now_ns - self._insert_ns < 1e9 * self.story_s:
                    raise InputError("an insertion is going on; the next may begin when it has ended")
                self._insert_ns = now_ns
            case {"do": "hide", "tool": str(tool), "seconds": int() | float() as seconds} if tool in TOOLS:
                self._hidden_until_ns[tool] = now_ns + round(seconds * 1e9)
            case _:
                raise InputError(
                    'expected {"do":"insert"}, {"do":"hide","tool":"Needle"|"Reference","seconds":3} or {"do":"stop"}'
                )

    def expose(self, pose_ns: int, pose_time_ns: int) -> tuple[tuple[Shown, ...], TruthRecord]:
        """Return the tools as sent and the truth, for an exposure at monotonic ``pose_ns`` stamped ``pose_time_ns``."""
        if self._first_ns is None:
            self._first_ns = pose_ns
        after = self.settings.insert_after_s
        if self._insert_ns is None and after is not None and pose_ns - self._first_ns >= after * 1e9:
            self._insert_ns = pose_ns
        running_s = (pose_ns - self._first_ns) * 1e-9
        story_s = 0.0 if self._insert_ns is None else (pose_ns - self._insert_ns) * 1e-9 * self.settings.speed
        moment = self.story.at(story_s, running_s)
        T_tracker_from_ct = self.scene.T_tracker_from_ct_at(pose_time_ns * 1e-9)
        truth = {
            "Needle": (T_tracker_from_ct @ moment.T_ct_from_tip, moment.visible),
            "Reference": (T_tracker_from_ct @ self.scene.T_ct_from_ref, True),
        }
        shown = tuple(self._show(name, *truth[name], pose_ns) for name in TOOLS)
        if self._insert_ns is not None and moment.phase != self._phase:
            self._phase = moment.phase
            emit({"event": "phase", "phase": moment.phase, "pose_time_ns": pose_time_ns})
        pose = moment.T_ct_from_tip
        seen = {tool.name: tool.visible for tool in shown}
        return shown, TruthRecord(
            pose_time_ns, 0, moment.phase, seen["Needle"], seen["Reference"], pose.translation_mm, pose.rotation[:, 2]
        )

    def _show(self, name: str, truth: Rigid, seen: bool, pose_ns: int) -> Shown:
        # The noise is drawn for a hidden tool too, so that hiding one does not change the other's.
        pose = jitter(self._rng, truth, self.settings.noise_mm, self.settings.noise_rad)
        if seen and pose_ns >= self._hidden_until_ns[name]:
            self._last[name] = pose.matrix
            return Shown(name, self._last[name], True)
        return Shown(name, np.eye(4) if self.settings.hidden == "identity" else self._last[name], False)


def encode_exposure(tools: tuple[Shown, ...], pose_time_ns: int, version: int, silent: bool = False) -> bytes:
    """Return the messages of one exposure as one bytes object; header 1 has no metadata and so cannot say a status."""
    stamp = timestamp_from_ns(pose_time_ns)
    parts = []
    for tool in tools:
        if silent and not tool.visible:
            continue
        status = Metadata("TransformStatus", "OK" if tool.visible else "OUT_OF_VIEW")
        metadata = (status,) if version >= 2 else ()
        parts.append(encode(Message(f"{tool.name}ToTracker", stamp, Transform(tool.matrix), version, metadata)))
    return b"".join(parts)


class TruthWriter:
    """Writes the truth log line by line beside its final name, and gives it that name when it is whole."""

    def __init__(self, path: Path, header: str) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        try:
            self._file: TextIO = self._part.open("w", encoding="utf-8")
        except OSError as e:
            raise InputError(f"--truth {path}: {e.strerror}; expected a file in a folder that can be written") from e
        self._file.write(header + "\n")

    def write(self, record: TruthRecord) -> None:
        """Add one line."""
        self._file.write(record.to_json() + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None:
            self._part.replace(self._path)


def arguments() -> Parser:
    """Return the command line of the tracker."""
    parser = Parser(
        "tracker",
        "An optical tracker as PLUS would serve it: an OpenIGTLink server with NeedleToTracker and ReferenceToTracker.",
        "python -m simulators tracker --case DIR --seed 7 --port 18944 --insert-after-s 5\n\n"
        'Commands, one JSON object a line on standard input: {"do":"insert"}, {"do":"stop"},\n'
        '{"do":"hide","tool":"Needle","seconds":3}. The end of standard input stops it too.',
    )
    add_room(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=whole(0, 65535), default=0, help="port to listen on (0: any free one)")
    parser.add_argument("--rate-hz", type=number(1.0, 1000.0, "Hz"), default=60.0, help="exposures per second (60)")
    parser.add_argument("--speed", type=number(0.1, 20.0), default=1.0, help="how fast the story goes (1)")
    parser.add_argument("--latency-ms", type=number(0.0, 1000.0, "ms"), default=0.0, help="exposure to write (0)")
    parser.add_argument("--noise-mm", type=number(0.0, 10.0, "mm"), default=0.1, help="rms position noise (0.1)")
    parser.add_argument("--noise-deg", type=number(0.0, 10.0, "deg"), default=0.03, help="rms rotation noise (0.03)")
    parser.add_argument("--hidden", choices=HIDDEN, default="identity", help="what is sent for a tool out of view")
    parser.add_argument("--insert-after-s", type=number(0.0, 3600.0, "s"), help="start the insertion by itself")
    parser.add_argument("--truth", type=Path, metavar="FILE", help="write the true poses here (JSON lines)")
    return parser


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the settings that the arguments ask for."""
    return Settings(
        args.rate_hz,
        args.speed,
        round(args.latency_ms * 1e6),
        args.noise_mm,
        float(np.radians(args.noise_deg)),
        args.hidden,
        args.insert_after_s,
    )


def main(argv: list[str]) -> int:
    """Run the tracker until it is stopped; return the exit status."""
    args = arguments().parse_args(argv)
    settings = settings_of(args)
    case = Case.load(args.case)
    scene = Scene.from_seed(args.seed, plan_of(case).target_ct_mm, breathing_of(args))
    tracker = Tracker(scene, story_for_case(case, Truth.from_case(args.case), Needle(), args.seed), settings)
    if args.truth is None:
        serve(tracker, args.host, args.port, None)
    else:
        with TruthWriter(args.truth, log_header(scene, settings.rate_hz)) as truth:
            serve(tracker, args.host, args.port, truth.write)
    return 0


def serve(tracker: Tracker, host: str, port: int, log: Callable[[TruthRecord], None] | None) -> None:
    """Serve exposures on a socket until stopped."""
    settings = tracker.settings
    # One offset for the whole run: stamps stay as regular as the monotonic clock that paces them.
    wall_from_monotonic_ns = time.time_ns() - time.monotonic_ns()

    def tick(deadline_ns: int) -> None:
        pose_ns = deadline_ns - settings.latency_ns
        pose_time_ns = pose_ns + wall_from_monotonic_ns
        tools, record = tracker.expose(pose_ns, pose_time_ns)
        sent_ns = time.monotonic_ns()
        server.offer(lambda version: encode_exposure(tools, pose_time_ns, version, settings.hidden == "silent"))
        if log is not None:
            log(
                TruthRecord(
                    record.pose_time_ns,
                    sent_ns,
                    record.phase,
                    record.visible,
                    record.reference_visible,
                    record.tip_ct_mm,
                    record.axis_ct,
                )
            )

    loop = Loop("tracker", settings.rate_hz, tick, lambda order: tracker.command(order, time.monotonic_ns()))
    try:
        server = Server(loop, host, port)
    except InputError:
        loop.close()
        raise
    try:
        emit({"ready": True, "port": server.port, "story_s": round(tracker.story_s, 3)})
        loop.run()
    finally:
        server.close()
        loop.close()
