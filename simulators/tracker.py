"""Owns the tracker simulator: an OpenIGTLink server as PLUS would be, for any client.

Each tick is one camera exposure: all tools with one stamp, in one write to each client.  Metadata goes only to clients
that have sent a message of version 2, as PLUS does.  What is sent without being asked is an option; TDATA, QTDATA,
TRANSFORM and POSITION can be asked for besides (STT_, STP_, GET_).  Orders come as JSON lines on standard input.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from navsrv.kernel.frames import Array, quaternion_wxyz
from navsrv.wire.openigtlink import (
    Body,
    Capability,
    Message,
    Metadata,
    Position,
    QTData,
    QTDataElement,
    Query,
    Status,
    StatusCode,
    TData,
    TDataElement,
    Transform,
    Verb,
    encode,
    timestamp_from_ns,
)
from simulators.arguments import Parser, number, whole
from simulators.exposures import HIDDEN, Batch, Exposure, Shown, Tracker
from simulators.link import Connection, Loop, Server, emit
from simulators.stages import Procedure
from simulators.tracker_arguments import ORDERS, add_stage, require_case, tracker_of
from simulators.truth_log import TruthWriter, header, record
from simulators.world.scene import log_header

KINDS: Final = ("TRANSFORM", "TDATA", "QTDATA", "POSITION")
CAPABILITIES: Final = (*KINDS, "STATUS", "CAPABILITY", "STT_TDATA", "STP_TDATA", "STT_QTDATA", "STP_QTDATA")
DEVICE: Final = "Tracker"
"""Who sends what is not of one tool."""
EARLY: Final = 0.25
"""Part of a period by which an exposure may come before the interval asked for is over, and still be sent."""


def encode_exposure(
    tools: tuple[Shown, ...], frame: int, pose_time_ns: int, version: int, kind: str = "TRANSFORM", silent: bool = False
) -> bytes:
    """Return the messages of one exposure as one bytes object, the frame's number as their message id.

    Header 1 has no metadata and so cannot say a status; a tool that is not seen is left out of its lists, as it is
    everywhere when ``silent``.
    """
    stamp = timestamp_from_ns(pose_time_ns)
    number = frame & 0xFFFFFFFF if version >= 2 else 0
    if kind in ("TDATA", "QTDATA"):
        listed = tuple(t for t in tools if t.visible or (version >= 2 and not silent))
        metadata = tuple(Metadata(f"{t.name}ToTrackerStatus", t.status) for t in listed) if version >= 2 else ()
        body: Body = TData(tuple(TDataElement(f"{t.name}ToTracker", t.matrix) for t in listed))
        if kind == "QTDATA":
            body = QTData(
                tuple(QTDataElement(f"{t.name}ToTracker", t.matrix[:3, 3], _q_xyzw(t.matrix)) for t in listed)
            )
        return encode(Message(DEVICE, stamp, body, version, metadata, number))
    parts = []
    for tool in tools:
        if silent and not tool.visible:
            continue
        metadata = ()
        if version >= 2:
            metadata = (Metadata("TransformValid", str(tool.visible)), Metadata("TransformStatus", tool.status))
        body = Transform(tool.matrix)
        if kind == "POSITION":
            body = Position(tool.matrix[:3, 3], _q_xyzw(tool.matrix))
        parts.append(encode(Message(f"{tool.name}ToTracker", stamp, body, version, metadata, number)))
    return b"".join(parts)


def _q_xyzw(matrix: Array) -> Array:
    w, x, y, z = quaternion_wxyz(matrix[:3, :3])
    return np.array([x, y, z, w])


@dataclass(slots=True)
class Wishes:
    """What one client has asked for: shortest interval (ns) of each kind, and the stamp that it got last."""

    interval_ns: dict[str, int] = field(default_factory=dict)
    last_ns: dict[str, int] = field(default_factory=dict)

    def due(self, pose_time_ns: int, period_ns: int) -> list[str]:
        """Return the kinds that this exposure is due to, and note them as sent."""
        early = round(EARLY * period_ns)
        kinds = [k for k, i in self.interval_ns.items() if pose_time_ns - self.last_ns.get(k, 0) >= i - early]
        for kind in kinds:
            self.last_ns[kind] = pose_time_ns
        return kinds


class Service:
    """What the clients of one tracker get: exposures as they asked, and answers.

    Parameters
    ----------
    time_ns_of : function of the frame's number
        The stamp of an exposure.
    """

    def __init__(self, tracker: Tracker, unasked: str, time_ns_of: Callable[[int], int]) -> None:
        self._tracker, self._time_ns_of = tracker, time_ns_of
        self._period_ns = round(1e9 / tracker.settings.rate_hz)
        self._silent = tracker.settings.hidden == "silent"
        self._unasked = {unasked: 0} if unasked != "none" else {}
        self._wishes: dict[Connection, Wishes] = {}
        self._batch: Batch | None = None
        self._encoded: dict[tuple[str, int], list[bytes]] = {}
        self._newest: Exposure | None = None

    def show(self, exposure: Exposure, server: Server) -> None:
        """Send an exposure to every client that it is due to."""
        self._newest = exposure
        pose_time_ns = self._time_ns_of(exposure.frame)
        if len(self._wishes) > len(server.clients):
            self._wishes = {c: w for c, w in self._wishes.items() if c in server.clients}

        def due(client: Connection) -> bytes:
            version = 2 if client.spoke_version_2 else 1
            kinds = self._wishes_of(client).due(pose_time_ns, self._period_ns)
            return b"".join(self._ready(kind, version, exposure.frame) for kind in kinds)

        server.offer(due)

    def prepare(self, frame: int, server: Server) -> None:
        """Encode ahead, while there is time, what the clients will get."""
        if self._tracker.batch_of(frame) is self._batch:
            return
        for client in server.clients:
            for kind in self._wishes_of(client).interval_ns:
                self._ready(kind, 2 if client.spoke_version_2 else 1, frame)

    def _ready(self, kind: str, version: int, frame: int) -> bytes:
        """Return the messages of an exposure; those of a whole batch are encoded at once, which costs half."""
        batch = self._tracker.batch_of(frame)
        if batch is not self._batch:
            self._batch, self._encoded = batch, {}
        if (kind, version) not in self._encoded:
            self._encoded[kind, version] = [self._encode(exposure, kind, version) for exposure in batch.exposures]
        return self._encoded[kind, version][frame - batch.first]

    def _encode(self, exposure: Exposure, kind: str, version: int, device: str = "") -> bytes:
        """Return the messages of an exposure, or of one device of it; nothing where it has none of that name."""
        tools = exposure.tools
        if device not in ("", DEVICE):
            tools = tuple(t for t in tools if f"{t.name}ToTracker" == device)
            if not tools:
                return b""
        time_ns = self._time_ns_of(exposure.frame)
        return encode_exposure(tools, exposure.frame, time_ns, version, kind, self._silent)

    def hear(self, client: Connection, message: Message) -> None:
        """Answer a client."""
        query = message.body
        if not isinstance(query, Query):
            return
        kind, version = query.subject, 2 if client.spoke_version_2 else 1
        wishes = self._wishes_of(client)
        match query.verb:
            case Verb.START:
                if kind in KINDS:
                    wishes.interval_ns[kind] = query.interval_ns or 0
                self._answer(client, Query.answer(query, kind in KINDS))
            case Verb.STOP:
                known = wishes.interval_ns.pop(kind, None) is not None
                self._answer(client, Query.answer(query, known))
            case Verb.GET if kind == "STATUS":
                self._answer(client, Status(StatusCode.OK))
            case Verb.GET if kind == "CAPABILITY":
                self._answer(client, Capability(CAPABILITIES))
            case Verb.GET:
                newest = self._newest
                data = (
                    b"" if newest is None or kind not in KINDS else self._encode(newest, kind, version, message.device)
                )
                if data:
                    client.push(data)
                else:
                    text = f"nothing of type {kind} is called {message.device!r}"
                    self._answer(client, Status(StatusCode.NOT_FOUND, 0, "NOT_FOUND", text))
            case _:
                pass

    def _wishes_of(self, client: Connection) -> Wishes:
        if client not in self._wishes:
            self._wishes[client] = Wishes(dict(self._unasked))
        return self._wishes[client]

    def _answer(self, client: Connection, body: Body) -> None:
        version = 2 if client.spoke_version_2 else 1
        client.push(encode(Message(DEVICE, timestamp_from_ns(time.time_ns()), body, version)))


def arguments() -> Parser:
    """Return the command line of the tracker."""
    parser = Parser(
        "tracker",
        "A tracker as PLUS would serve it: an OpenIGTLink server with NeedleToTracker and ReferenceToTracker.",
        "navsrv simulate tracker --port 18944 --tools Needle,Reference,Stylus --camera vega\n"
        "  navsrv simulate tracker --case sacrum --seed 7 --port 18944 --insert-after-s 5\n\n"
        + ORDERS
        + '  {"do":"stop"}',
    )
    add_stage(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=whole(0, 65535), default=0, help="port to listen on (0: any free one)")
    parser.add_argument(
        "--message", choices=(*KINDS, "none"), default="TRANSFORM", help="what is sent unasked (TRANSFORM)"
    )
    parser.add_argument("--latency-ms", type=number(0.0, 1000.0, "ms"), default=0.0, help="exposure to write (0)")
    parser.add_argument(
        "--jitter-ms", type=number(0.0, 100.0, "ms"), default=0.0, help="mean of an exponential delay besides (0)"
    )
    parser.add_argument("--hidden", choices=HIDDEN, default="identity", help="what is sent for a tool out of view")
    parser.add_argument("--insert-after-s", type=number(0.0, 3600.0, "s"), help="start the insertion by itself")
    return parser


def delays(seed: int, jitter_ms: float, rate_hz: float) -> Callable[[int], int] | None:
    """Return how late (ns) each tick is on purpose: exponential, and less than a period; None for never."""
    if jitter_ms == 0.0:
        return None
    drawn = np.random.default_rng([seed, 1]).exponential(jitter_ms * 1e6, 4096)
    late = np.minimum(drawn, 0.9e9 / rate_hz).astype(np.int64)
    return lambda count: int(late[count % len(late)])


def main(argv: list[str]) -> int:
    """Run the tracker until it is stopped; return the exit status."""
    parser = arguments()
    args = parser.parse_args(argv)
    require_case(args)
    tracker = tracker_of(parser, args, args.hidden)
    stage = tracker.stage
    first = header(args.rate_hz, stage.tools)
    if isinstance(stage, Procedure):
        first = log_header(stage.scene, args.rate_hz)
    with contextlib.ExitStack() as stack:
        log = None if args.truth is None else stack.enter_context(TruthWriter(args.truth, first)).write
        serve(tracker, args, log)
    return 0


def serve(tracker: Tracker, args: argparse.Namespace, log: Callable[[dict[str, Any]], None] | None) -> None:
    """Serve exposures on a socket until stopped."""
    # One offset for the whole run: stamps stay as regular as the monotonic clock that paces them.
    wall_from_monotonic_ns = time.time_ns() - time.monotonic_ns()
    latency_ns: int = round(args.latency_ms * 1e6)
    zero_ns, phase, newest = 0, "", -1

    def time_ns_of(frame: int) -> int:
        return zero_ns + frame * loop.period_ns - latency_ns + wall_from_monotonic_ns

    def tick(deadline_ns: int) -> None:
        nonlocal zero_ns, phase, newest
        if newest < 0:
            zero_ns = deadline_ns
            tracker.wall_s = time_ns_of(0) * 1e-9
        frame = newest = round((deadline_ns - zero_ns) / loop.period_ns)
        exposure = tracker.expose(frame)
        sent_ns = time.monotonic_ns()
        service.show(exposure, server)
        if log is not None:
            log(record(exposure, time_ns_of(frame), sent_ns))
        if tracker.inserting(frame) and exposure.phase != phase:
            phase = exposure.phase
            emit({"event": "phase", "phase": phase, "pose_time_ns": time_ns_of(frame)})
        service.prepare(frame + 1, server)

    def obey(order: dict[str, Any]) -> None:
        tracker.command(order, newest + 1)
        emit({"event": "done", "do": order["do"], "frame": newest + 1})

    loop = Loop("tracker", args.rate_hz, tick, obey, delays(args.seed, args.jitter_ms, args.rate_hz))
    service = Service(tracker, args.message, time_ns_of)
    try:
        server = Server(loop, args.host, args.port, service.hear)
    except Exception:
        loop.close()
        raise
    try:
        emit({"ready": True, "port": server.port, "story_s": round(tracker.story_s, 3)})
        loop.run()
    finally:
        server.close()
        loop.close()
