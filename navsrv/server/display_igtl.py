"""Owns OpenIGTLink displays: any number at once, newest frame wins, in RAS as displays expect.

A display that does not read is skipped: what waits for it is one frame of each kind, or one piece of anatomy that it
asked for, and while it does not read, nothing is read from it either.  One that takes nothing for a second is
disconnected; one that is being sent anatomy is given longer, as long as it goes on taking.  Malformed bytes end that
one connection.

A display that has said nothing is spoken to in header version 2; one that speaks version 1 is answered in it.
Programs made with version 1 of the library lose their place in the stream at the first message of version 2, and the
silent ones among them cannot be told from others: they have a port of their own.  Version 1 has no metadata, so its
poses carry no status, and only the far place of a lost tool, STATUS and the text of the frame tell it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from navsrv.kernel.errors import RemoteProtocolError
from navsrv.server.display_messages import (
    guidance_message,
    structure_bytes,
    tip_message,
    tracking_message,
    transform_name,
    volume_bytes,
)
from navsrv.server.half_open import notice_half_open
from navsrv.server.scenery import Scenery
from navsrv.wire.openigtlink import (
    Capability,
    Framer,
    Message,
    Query,
    Status,
    StatusCode,
    Verb,
    encode,
    timestamp_from_ns,
)

if TYPE_CHECKING:
    from navsrv.server.hub import FrameBoard

log = logging.getLogger("navsrv.displays")

DEFAULT_INTERVAL_NS: Final = 1_000_000_000 // 30
HEARTBEAT_S: Final = 0.125
"""Half of the 250 ms that displays are promised, so that one late beat is not a missing one."""
FIRST_WORD_S: Final = 0.1
"""How long a new display may ask before it is shown what it did not ask for."""
QUESTIONS_S: Final = 1.0
"""How long a version-1 client that began by asking for anatomy is left to its questions; see ``Display._listen``."""
UNWRITABLE_S: Final = 1.0
ANATOMY_UNWRITABLE_S: Final = 10.0
"""A display that is drawing one structure may leave the next waiting for so long."""
SEND_BUFFER_BYTES: Final = 16 * 1024
PER_TOOL: Final = ("TRANSFORM", "STRING")
ALL_TOOLS: Final = ("TDATA", "QTDATA")
STREAMS: Final = PER_TOOL + ALL_TOOLS
TYPES: Final = ("STATUS", "CAPABILITY", *STREAMS, "POLYDATA", "IMAGE")
QUERIES: Final = (
    *("GET_STATUS", "GET_CAPABIL", "GET_TRANS", "GET_STRING", "GET_TDATA", "GET_QTDATA", "GET_POLYDATA", "GET_IMAGE"),
    *(f"{verb}_{stream}" for verb in ("STT", "STP") for stream in ("TRANS", "STRING", "TDATA", "QTDATA", "POLYDATA")),
    *(f"RTS_{stream}" for stream in ("TRANS", "STRING", "TDATA", "QTDATA", "POLYDATA")),
)

Anatomy: TypeAlias = int | None
"""The index of a structure, or None for the CT."""


class IgtlDisplays:
    """The OpenIGTLink server for displays."""

    def __init__(self, board: FrameBoard, scenery: Scenery) -> None:
        self.board = board
        self.scenery = scenery
        self.displays: set[Display] = set()
        self._servers: list[asyncio.Server] = []
        self._encoded: dict[tuple[str, str, int], tuple[tuple[int, ...], bytes]] = {}
        self._anatomy: dict[tuple[Anatomy, int], asyncio.Future[bytes | None]] = {}

    async def start(self, host: str, port: int, version: int = 2) -> int:
        """Start listening for displays and return the port; OSError if it is in use.

        Parameters
        ----------
        version : int
            Header version for displays of this port that have said nothing.
        """
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Display(self, version), host, port)
        if not self._servers:
            self.board.watchers.add(self._posted)
            self._timer = loop.call_later(HEARTBEAT_S, self._heartbeat)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        """Disconnect all displays."""
        self._timer.cancel()
        for server in self._servers:
            server.close()
        self.board.watchers.discard(self._posted)
        for display in list(self.displays):
            display.end("the server stops")

    def shown(self, stream: str, tool: str, version: int) -> bytes:
        """Return the newest message of a stream, made once for all displays; ``tool`` is empty for all tools."""
        board = self.board
        mark = self.mark(tool)
        held = self._encoded.get((stream, tool, version))
        if held is not None and held[0] == mark:
            return held[1]
        if stream == "TRANSFORM":
            message = tip_message(board.newest[tool], version)
        elif stream == "STRING":
            message = guidance_message(board.newest[tool], board.json(tool), version)
        else:
            message = tracking_message(stream, board.newest.values(), version)
        data = encode(message)
        self._encoded[stream, tool, version] = (mark, data)
        return data

    def mark(self, tool: str) -> tuple[int, ...]:
        """Return what changes when a newer frame of this tool, or of any if it is empty, is there."""
        newest = self.board.newest
        return (newest[tool].seq,) if tool else tuple(frame.seq for frame in newest.values())

    async def anatomy(self, what: Anatomy, version: int) -> bytes | None:
        """Return a structure or the CT as a message, made once and away from the loop; None if there is none."""
        key = (what, version)
        if key not in self._anatomy:
            make: Callable[[], bytes | None] = (
                (lambda: volume_bytes(self.scenery, version))
                if what is None
                else (lambda: structure_bytes(self.scenery, what, version))
            )
            self._anatomy[key] = asyncio.ensure_future(asyncio.to_thread(make))
        # Shielded: one display that leaves must not end what others wait for.
        return await asyncio.shield(self._anatomy[key])

    def _posted(self) -> None:
        for display in self.displays:
            display.offer()

    def _heartbeat(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._heartbeat)
        for display in list(self.displays):
            display.heartbeat()


class Display(asyncio.Protocol):
    """One connected display."""

    def __init__(self, room: IgtlDisplays, version: int) -> None:
        self._room = room
        self._framer = Framer(max_body_bytes=1 << 16)
        self._version = version
        self._interval_ns = dict.fromkeys(STREAMS, DEFAULT_INTERVAL_NS)
        self._stopped: set[str] = set(ALL_TOOLS)
        self._sent_ns: dict[tuple[str, str], int] = {}
        self._sent: dict[tuple[str, str], tuple[int, ...]] = {}
        self._spoken = False
        self._questions = False
        self._quiet_until = time.monotonic() + FIRST_WORD_S
        self._writable = asyncio.Event()
        self._writable.set()
        self._taken_at = 0.0
        self._waiting_bytes = 0
        self._patience_s = UNWRITABLE_S
        self._asked: list[Anatomy] = []
        self._sending: asyncio.Task[None] | None = None
        self._due: asyncio.TimerHandle | None = None

    # -- the connection ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what can pile up on the way to this display."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._be_patient(UNWRITABLE_S)
        transport.set_write_buffer_limits(high=0)
        self._room.displays.add(self)
        self._look_again(FIRST_WORD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._room.displays.discard(self)
        if self._due is not None:
            self._due.cancel()
        if self._sending is not None:
            self._sending.cancel()

    def pause_writing(self) -> None:
        """The kernel's buffer is full: skip frames until it drains, and hear no more wishes."""
        self._writable.clear()
        self._taken_at = time.monotonic()
        self._waiting_bytes = self._transport.get_write_buffer_size()
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Writable again: the newest frame is the next."""
        self._writable.set()
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self.offer()

    def end(self, reason: str) -> None:
        """Disconnect this display and say why."""
        log.info("display %s: %s", self._transport.get_extra_info("peername"), reason)
        self._transport.abort()

    def _be_patient(self, seconds: float) -> None:
        self._patience_s = seconds
        notice_half_open(self._socket, round(1000 * seconds))

    def _is_quiet(self) -> bool:
        return not self._writable.is_set() or self._transport.is_closing() or time.monotonic() < self._quiet_until

    # -- sending -----------------------------------------------------------------------------------------------

    def offer(self) -> None:
        """Send what is due of the newest frames; what is not due yet is looked at again in time."""
        if self._is_quiet():
            return
        now_ns, next_ns = time.monotonic_ns(), None
        for stream in STREAMS:
            if stream in self._stopped:
                continue
            for tool in tuple(self._room.board.newest) if stream in PER_TOOL else ("",):
                due_ns = self._offer_one(stream, tool, now_ns)
                if due_ns is not None:
                    next_ns = due_ns if next_ns is None else min(next_ns, due_ns)
        if next_ns is not None:
            self._look_again((next_ns - now_ns) / 1e9)

    def _offer_one(self, stream: str, tool: str, now_ns: int) -> int | None:
        """Send one message if it is new and due; return when it is due if it is new and not due yet."""
        key, mark = (stream, tool), self._room.mark(tool)
        if not mark or self._sent.get(key) == mark:
            return None
        interval_ns = self._interval_ns[stream]
        due_ns = self._sent_ns.get(key, 0) + interval_ns
        if due_ns > now_ns:
            return due_ns
        self._sent[key] = mark
        # A message that came late does not push the next ones back: the asked rate is kept in the mean.
        self._sent_ns[key] = max(due_ns, now_ns - interval_ns // 2)
        self._transport.write(self._room.shown(stream, tool, self._version))
        return None

    def _look_again(self, seconds: float) -> None:
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(seconds, self._again)

    def _again(self) -> None:
        self._due = None
        self.offer()

    def _write(self, message: Message) -> None:
        if not self._transport.is_closing():
            self._transport.write(encode(message))

    def heartbeat(self) -> None:
        """Send STATUS; end a display that has taken nothing for too long."""
        if not self._writable.is_set():
            waiting, now = self._transport.get_write_buffer_size(), time.monotonic()
            if waiting < self._waiting_bytes:
                self._taken_at = now
            self._waiting_bytes = waiting
            if now - self._taken_at > self._patience_s:
                self.end(f"unwritable for {self._patience_s:g} s")
        elif not self._is_quiet():
            self._write(self._status())

    def _status(self) -> Message:
        board = self._room.board
        alive = board.frames and time.monotonic_ns() - board.received_ns < 1_000_000_000
        states = ", ".join(f"{tool} {frame.state}" for tool, frame in board.newest.items())
        if alive:
            body = Status(StatusCode.OK, 0, "", states)
        else:
            body = Status(StatusCode.NOT_READY, 0, "NoFrames", "no guidance frame for 1 s")
        return self._from_us(body)

    def _from_us(self, body: Status | Capability | Query) -> Message:
        return Message("navsrv", timestamp_from_ns(time.time_ns()), body, self._version)

    def _send_anatomy(self, wanted: list[Anatomy]) -> None:
        """Queue anatomy, each piece once however often it is asked for before it is sent."""
        self._asked += [what for what in wanted if what not in self._asked]
        if self._sending is None:
            self._sending = asyncio.ensure_future(self._send_asked())

    async def _send_asked(self) -> None:
        """Send what was asked for piece by piece, frames and heartbeats between them."""
        self._be_patient(ANATOMY_UNWRITABLE_S)
        while self._asked and not self._transport.is_closing():
            what = self._asked.pop(0)
            data = await self._room.anatomy(what, self._version)
            await self._writable.wait()
            if data is None:
                self._write(self._from_us(Status(StatusCode.NOT_FOUND, 0, "NoImage", "this case has no CT")))
            elif not self._transport.is_closing():
                self._transport.write(data)
            await self._writable.wait()
        self._sending = None
        self._be_patient(UNWRITABLE_S)

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
            self._listen(message)
            if isinstance(message.body, Query):
                self._query(message.device, message.body)
        self.offer()

    def _listen(self, message: Message) -> None:
        """Decide whether this client wants to be shown things or to ask for them.

        The oldest clients of the protocol ask for a structure and take the very next message for the answer.  Who
        begins like that, in header 1 and before it was sent anything, hears only answers until it asks no more.
        """
        body = message.body
        asks = isinstance(body, Query) and body.type_name in ("GET_POLYDATA", "GET_IMAGE") and message.version == 1
        now = time.monotonic()
        if not self._spoken:
            self._questions = asks and now < self._quiet_until
            self._spoken = True
        if self._questions and asks and now < self._quiet_until:
            self._quiet_until = now + QUESTIONS_S
        elif not self._questions:
            self._quiet_until = 0.0

    def _query(self, device: str, query: Query) -> None:
        match query.verb:
            case Verb.START:
                known = query.subject in (*STREAMS, "POLYDATA")
                self._write(self._from_us(Query.answer(query, known)))
                if query.subject in STREAMS:
                    self._stopped.discard(query.subject)
                    asked = query.interval_ns
                    self._interval_ns[query.subject] = DEFAULT_INTERVAL_NS if asked is None else asked
                elif known:  # structures never change: their stream is the one time
                    self._send_anatomy(self._structures(device))
            case Verb.STOP:
                known = query.subject in (*STREAMS, "POLYDATA")
                if query.subject in STREAMS:
                    self._stopped.add(query.subject)
                self._write(self._from_us(Query.answer(query, known)))
            case Verb.GET:
                self._get(device, query)
            case Verb.RETURN:
                pass

    def _get(self, device: str, query: Query) -> None:
        match query.subject:
            case "STATUS":
                self._write(self._status())
            case "CAPABILITY":
                self._write(self._from_us(Capability(TYPES + QUERIES)))
            case "TRANSFORM" | "STRING" | "TDATA" | "QTDATA" if not self._room.board.newest:
                self._write(self._from_us(Status(StatusCode.NOT_READY, 0, "NoFrames", "no guidance frame yet")))
            case "TRANSFORM" | "STRING":
                tools = list(self._room.board.newest)
                for tool in [t for t in tools if transform_name(t) == device] or tools:
                    self._transport.write(self._room.shown(query.subject, tool, self._version))
            case "TDATA" | "QTDATA":
                self._transport.write(self._room.shown(query.subject, "", self._version))
            case "POLYDATA":
                self._send_anatomy(self._structures(device))
            case "IMAGE":
                self._send_anatomy([None])
            case _:
                text = f"{query.type_name} is not served"
                self._write(self._from_us(Status(StatusCode.UNKNOWN_INSTRUCTION, 0, "Unknown", text)))

    def _structures(self, device: str) -> list[Anatomy]:
        """Return the structure that ``device`` names, or all of them when it names none."""
        structures = self._room.scenery.case.structures
        return [i for i, s in enumerate(structures) if device in (s.name, s.name[:20])] or list(range(len(structures)))
