"""Owns OpenIGTLink displays: any number at once, newest frame wins, in RAS as displays expect.

A display that does not read is skipped, and after one second unwritable it is disconnected.  Malformed bytes end that
one connection.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from navsrv.kernel.errors import RemoteProtocolError
from navsrv.kernel.frames import Array, flip_lps_ras, points_ras_from_lps, rotation_from_quaternion_wxyz
from navsrv.server.scenery import Scenery
from navsrv.wire.guidance import GEOMETRY_STATES, GuidanceFrame
from navsrv.wire.openigtlink import (
    Capability,
    Framer,
    Image,
    Message,
    Metadata,
    PolyData,
    Query,
    Status,
    StatusCode,
    String,
    Transform,
    Verb,
    encode,
    timestamp_from_ns,
)

if TYPE_CHECKING:
    from navsrv.server.hub import FrameBoard

log = logging.getLogger("navsrv.displays")

DEFAULT_INTERVAL_NS: Final = 1_000_000_000 // 30
HEARTBEAT_S: Final = 0.2
UNWRITABLE_S: Final = 1.0
SEND_BUFFER_BYTES: Final = 16 * 1024
GONE_MM: Final = 10_000.0
"""Where the needle is sent when its place is not known, so that it leaves a display that knows no status."""
STREAMS: Final = ("TRANSFORM", "STRING")
ANSWERS: Final = ("GET_STATUS", "GET_CAPABIL", "GET_TRANS", "GET_STRING", "GET_POLYDATA", "GET_IMAGE")
UTF8: Final = 106


def tip_message(frame: GuidanceFrame, version: int = 2) -> Message:
    """Return ``<Tool>TipToCT``: F @ T_ct_from_tip, F on the anatomical side only, with its status in the metadata."""
    matrix = np.eye(4)
    valid = frame.state in GEOMETRY_STATES and frame.tip_ct_mm is not None and frame.q_wxyz_ct_from_tip is not None
    if valid:
        matrix[:3, :3] = rotation_from_quaternion_wxyz(frame.q_wxyz_ct_from_tip or ())
        matrix[:3, 3] = frame.tip_ct_mm or ()
        matrix = flip_lps_ras(matrix)
    else:
        matrix[2, 3] = GONE_MM
    said = (
        Metadata("TransformStatus", "OK" if valid else "MISSING"),
        Metadata("GuidanceState", frame.state),
        Metadata("Convention", "RAS from tip: diag(-1,-1,1,1) on the left of the LPS transform, tool frame untouched"),
    )
    return Message(f"{frame.tool}TipToCT"[:20], _stamp(frame), Transform(matrix), version, said if version == 2 else ())


def _stamp(frame: GuidanceFrame) -> int:
    return timestamp_from_ns(frame.pose_time_ns if frame.pose_time_ns is not None else time.time_ns())


class IgtlDisplays:
    """The OpenIGTLink server for displays."""

    def __init__(self, board: FrameBoard, scenery: Scenery) -> None:
        self.board = board
        self.scenery = scenery
        self.displays: set[Display] = set()

    async def start(self, host: str, port: int) -> int:
        """Start listening and return the port; OSError if it is in use."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Display(self), host, port)
        self.board.watchers.add(self._posted)
        self._timer = loop.call_later(HEARTBEAT_S, self._heartbeat)
        return int(self._server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        """Disconnect all displays."""
        self._timer.cancel()
        self._server.close()
        self.board.watchers.discard(self._posted)
        for display in list(self.displays):
            display.end("the server stops")

    def _posted(self) -> None:
        for display in self.displays:
            display.offer()

    def _heartbeat(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._heartbeat)
        for display in list(self.displays):
            display.heartbeat()


class Display(asyncio.Protocol):
    """One connected display."""

    def __init__(self, room: IgtlDisplays) -> None:
        self._room = room
        self._framer = Framer(max_body_bytes=1 << 16)
        self._version = 2
        self._interval_ns = dict.fromkeys(STREAMS, DEFAULT_INTERVAL_NS)
        self._stopped: set[str] = set()
        self._sent_ns: dict[tuple[str, str], int] = {}
        self._sent_seq: dict[tuple[str, str], int] = {}
        self._blocked_since: float | None = None
        self._patience_s = UNWRITABLE_S
        self._due: asyncio.TimerHandle | None = None

    # -- the connection ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what can pile up on the way to this display."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=0)
        self._room.displays.add(self)
        self.offer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._room.displays.discard(self)
        if self._due is not None:
            self._due.cancel()

    def pause_writing(self) -> None:
        """The kernel's buffer is full: skip frames until it drains."""
        self._blocked_since = time.monotonic()

    def resume_writing(self) -> None:
        """Writable again: the newest frame is the next."""
        self._blocked_since = None
        self._patience_s = UNWRITABLE_S
        self.offer()

    def end(self, reason: str) -> None:
        """Disconnect this display and say why."""
        log.info("display %s: %s", self._transport.get_extra_info("peername"), reason)
        self._transport.abort()

    # -- sending -----------------------------------------------------------------------------------------------

    def offer(self) -> None:
        """Send what is due of the newest frames; what is not due yet is looked at again in time."""
        if self._blocked_since is not None or self._transport.is_closing():
            return
        now_ns, next_ns = time.monotonic_ns(), None
        for tool, frame in self._room.board.newest.items():
            for stream in STREAMS:
                key = (tool, stream)
                if stream in self._stopped or self._sent_seq.get(key) == frame.seq:
                    continue
                due_ns = self._sent_ns.get(key, 0) + self._interval_ns[stream]
                if due_ns > now_ns:
                    next_ns = due_ns if next_ns is None else min(next_ns, due_ns)
                    continue
                self._sent_seq[key] = frame.seq
                self._sent_ns[key] = max(due_ns, now_ns - self._interval_ns[stream] // 2)
                self._write(self._message(stream, tool, frame))
        if next_ns is not None and self._due is None:
            self._due = asyncio.get_running_loop().call_later((next_ns - now_ns) / 1e9, self._again)

    def _again(self) -> None:
        self._due = None
        self.offer()

    def _message(self, stream: str, tool: str, frame: GuidanceFrame) -> Message:
        if stream == "TRANSFORM":
            return tip_message(frame, self._version)
        text = self._room.board.json(tool).decode()
        return Message("Guidance", _stamp(frame), String(text, UTF8), self._version)

    def _write(self, message: Message) -> None:
        self._transport.write(encode(message))

    def heartbeat(self) -> None:
        """Send STATUS; end a display that has been unwritable for too long."""
        if self._blocked_since is not None:
            if time.monotonic() - self._blocked_since > self._patience_s:
                self.end(f"unwritable for {self._patience_s:g} s")
            return
        if not self._transport.is_closing():
            self._write(self._status())

    def _status(self) -> Message:
        board = self._room.board
        alive = board.frames and time.monotonic_ns() - board.received_ns < 1_000_000_000
        states = ", ".join(f"{tool} {frame.state}" for tool, frame in board.newest.items())
        if alive:
            body = Status(StatusCode.OK, 0, "", states)
        else:
            body = Status(StatusCode.NOT_READY, 0, "NoFrames", "no guidance frame for 1 s")
        return Message("navsrv", timestamp_from_ns(time.time_ns()), body, self._version)

    # -- queries -----------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Answer what the display asks for; bytes that break the protocol end this connection."""
        try:
            messages = self._framer.feed(data)
        except RemoteProtocolError as fault:
            self.end(f"protocol: {fault}")
            return
        for message in messages:
            self._version = message.version
            if isinstance(message.body, Query):
                self._query(message.device, message.body)

    def _query(self, device: str, query: Query) -> None:
        match query.verb:
            case Verb.START:
                known = query.subject in STREAMS
                if known:
                    self._stopped.discard(query.subject)
                    asked = query.interval_ns
                    self._interval_ns[query.subject] = DEFAULT_INTERVAL_NS if asked is None else asked
                self._answer(Query.answer(query, known))
                self.offer()
            case Verb.STOP:
                known = query.subject in STREAMS
                if known:
                    self._stopped.add(query.subject)
                self._answer(Query.answer(query, known))
            case Verb.GET:
                self._get(device, query)
            case Verb.RETURN:
                pass

    def _answer(self, body: Query) -> None:
        self._write(Message("navsrv", timestamp_from_ns(time.time_ns()), body, self._version))

    def _get(self, device: str, query: Query) -> None:
        board, now = self._room.board, timestamp_from_ns(time.time_ns())
        match query.subject:
            case "STATUS":
                self._write(self._status())
            case "CAPABILITY":
                types = ("STATUS", "CAPABILITY", "TRANSFORM", "STRING", "POLYDATA", "IMAGE", *ANSWERS)
                self._write(Message("navsrv", now, Capability(types), self._version))
            case "TRANSFORM" | "STRING":
                for tool, frame in board.newest.items():
                    self._write(self._message(query.subject, tool, frame))
            case "POLYDATA":
                self._polydata(device, now)
            case "IMAGE":
                self._image(now)
            case _:
                body = Status(StatusCode.UNKNOWN_INSTRUCTION, 0, "Unknown", f"{query.type_name} is not served")
                self._write(Message("navsrv", now, body, self._version))

    def _polydata(self, device: str, now: int) -> None:
        """Send the structure that ``device`` names; all of them when it names none."""
        structures = self._room.scenery.case.structures
        wanted = [i for i, s in enumerate(structures) if device in (s.name, s.name[:20])] or list(
            range(len(structures))
        )
        self._patience_s = 30.0
        for index in wanted:
            mesh = self._room.scenery.mesh(index)
            body = PolyData.of_triangles(points_ras_from_lps(mesh.vertices_mm), mesh.triangles)
            self._write(Message(structures[index].name[:20], now, body, self._version))

    def _image(self, now: int) -> None:
        found = self._room.scenery.volume()
        if found is None:
            body = Status(StatusCode.NOT_FOUND, 0, "NoImage", "this case has no CT")
            self._write(Message("navsrv", now, body, self._version))
            return
        voxels, matrix = found
        ras: Array = flip_lps_ras(matrix)
        self._patience_s = 30.0
        image = Image(voxels.astype(np.int16), ras, coordinate="RAS")
        self._write(Message("CT", now, image, self._version))
