"""Owns the NDI simulator: a tracker that speaks the Combined API on a pseudo-terminal, on TCP, or on both.

With a case the tools move in the room that every simulator of that seed shares; without one a needle circles beside a
reference.  Commands come as JSON lines on standard input.
"""

from __future__ import annotations

import os
import pty
import selectors
import socket
import termios
import time
import tty
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np

from navsrv.kernel.errors import InputError
from simulators.arguments import Parser, number, whole
from simulators.exposures import Exposure, Shown, Tracker
from simulators.link import Loop, emit
from simulators.ndi_device import MODELS, VOLUMES, Device, Where, standard_rom
from simulators.stages import NEEDLE, REFERENCE, Circling
from simulators.tracker_arguments import ORDERS, add_stage, require_case, tracker_of
from simulators.truth_log import json_line, tools_record

CHUNK: Final = 65_536
MAX_WAITING: Final = 1 << 20
"""Bytes that a peer may leave unread before it is given up."""


def circling(rate_hz: float, tools: tuple[str, ...] = (NEEDLE, REFERENCE)) -> Where:
    """Return tools that circle about one at rest, without noise, as a function of the frame alone."""
    stage = Circling(tools)

    def where(frame: int) -> Mapping[str, Shown]:
        none = np.zeros(1)
        poses = stage.at(np.array([frame / rate_hz]), none, none).poses
        return {name: Shown(name, p[0], "OK", p[0], np.zeros(0, np.bool_), 0.0) for name, p in poses.items()}

    return where


def watched(tracker: Tracker) -> Where:
    """Return the tools as a tracker sees them, as a function of frames that only rise."""
    newest: list[Exposure] = []

    def where(frame: int) -> Mapping[str, Shown]:
        # Two questions within one frame are one exposure; the device's frames begin again with some of its commands.
        if not newest or newest[0].frame != frame:
            newest[:] = [tracker.expose(frame)]
        return {tool.name: tool for tool in newest[0].tools}

    return where


class Line:
    """One open line, a terminal's or a socket's file descriptor: what could not be written yet waits."""

    def __init__(self, loop: Loop, fd: int, device: Device, closed: Any, wrote: Any) -> None:
        self.fd = fd
        self._loop, self._device, self._closed, self._wrote = loop, device, closed, wrote
        self._waiting: deque[bytes] = deque()
        loop.selector.register(fd, selectors.EVENT_READ, self._ready)

    def send(self, data: bytes) -> None:
        """Write what the line takes, keep the rest."""
        self._waiting.append(data)
        self._flush()

    def _ready(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush()
        if mask & selectors.EVENT_READ:
            try:
                data = os.read(self.fd, CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._closed(self)
                return
            answer = self._device.feed(data)
            self._wrote()
            if answer:
                self.send(answer)

    def _flush(self) -> None:
        try:
            while self._waiting:
                piece = self._waiting[0]
                count = os.write(self.fd, piece)
                if count < len(piece):
                    self._waiting[0] = piece[count:]
                    break
                self._waiting.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._closed(self)
            return
        if sum(map(len, self._waiting)) > MAX_WAITING:
            self._closed(self)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._waiting else 0)
        self._loop.selector.modify(self.fd, events, self._ready)


class Shell:
    """The terminal, the socket, the truth log and the orders around one device."""

    def __init__(self, device: Device, tracker: Tracker, truth: TextIO | None) -> None:
        rate_hz = tracker.settings.rate_hz
        self.device, self.tracker = device, tracker
        self._truth = truth
        self._logged = -1
        self.loop = Loop("ndi", rate_hz, self._tick, self.command)
        self._first_ns: int | None = None
        self._period_ns = 1e9 / rate_hz
        self._terminal: tuple[Line, int] | None = None
        self._listener: socket.socket | None = None
        self._client: tuple[Line, socket.socket] | None = None

    def open_terminal(self) -> str:
        """Open a pseudo-terminal and return the path of the end that clients open."""
        own, theirs = pty.openpty()
        # Raw from the start; and held open, so that a client may come and go.
        tty.setraw(theirs, termios.TCSANOW)
        os.set_blocking(own, False)
        self._terminal = (Line(self.loop, own, self.device, lambda line: None, self._log), theirs)
        return os.ttyname(theirs)

    def listen(self, host: str, port: int) -> int:
        """Listen and return the port."""
        try:
            self._listener = socket.create_server((host, port), backlog=4)
        except OSError as e:
            raise InputError(f"port {port} on {host}: {e.strerror}; choose another, or 0 for any free one") from e
        self._listener.setblocking(False)
        self.loop.selector.register(self._listener, selectors.EVENT_READ, self._accept)
        return int(self._listener.getsockname()[1])

    def command(self, order: dict[str, Any]) -> None:
        """Obey one JSON line; InputError when it is none."""
        match order:
            case {"do": "plug" | "unplug" as what, "tool": str(tool)}:
                self.device.plug(tool, what == "plug")
            case {"do": "fail", "command": str(name), "error": int(error)}:
                self.device.fail(name, error)
            case {"do": "garble", "count": int(count)}:
                self.device.garble(count)
            case {"do": "report", "status": int(status)}:
                self.device.report(status)
            case {"do": "reset"}:
                self._everywhere(self.device.reset())
            case _:
                self.tracker.command(order, self.device.frame + 1)
        emit({"event": "done", "do": order["do"], "frame": self.device.reported})

    def close(self) -> None:
        """Close everything."""
        if self._client is not None:
            self._hang_up(self._client[0])
        if self._listener is not None:
            self._listener.close()
        if self._terminal is not None:
            line, theirs = self._terminal
            os.close(line.fd)
            os.close(theirs)
        self.loop.close()

    def _everywhere(self, data: bytes) -> None:
        if self._terminal is not None:
            self._terminal[0].send(data)
        if self._client is not None:
            self._client[0].send(data)

    def _tick(self, deadline_ns: int) -> None:
        if self._first_ns is None:
            self._first_ns, self.tracker.wall_s = deadline_ns, time.time()
        # By the clock, not by counting ticks: a late tick must not slow the device's time.
        self.device.frame = round((deadline_ns - self._first_ns) / self._period_ns) + 1

    def _accept(self, mask: int) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if self._client is not None and _gone(self._client[1]):
            # Its end has not been read yet.
            self._hang_up(self._client[0])
        if self._client is not None:
            # One master at a time, as the device has it.
            sock.close()
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client = (Line(self.loop, sock.fileno(), self.device, self._hang_up, self._log), sock)

    def _hang_up(self, line: Line) -> None:
        if self._client is not None and self._client[0] is line:
            self.loop.selector.unregister(line.fd)
            self._client[1].close()
            self._client = None

    def _log(self) -> None:
        frame, shown = self.device.reported, self.device.shown
        if self._truth is None or frame == self._logged or not shown or not self.device.tracking:
            return
        self._logged = frame
        self._truth.write(json_line({"frame": frame, "tools": tools_record(shown.values())}) + "\n")
        self._truth.flush()


def arguments() -> Parser:
    """Return the command line of the NDI simulator."""
    parser = Parser(
        "ndi",
        "An NDI tracker (Polaris, Vega, Aurora) by the Combined API, on a pseudo-terminal or on TCP.",
        "navsrv simulate ndi --pty --roms /tmp/roms\n"
        "  navsrv simulate ndi --port 8765 --camera vega --case sacrum --seed 7\n\n"
        + ORDERS
        + '  {"do":"fail","command":"PINIT","error":19}    answer the next PINIT with ERROR13\n'
        '  {"do":"report","status":16}  in every reply: 1 sync, 2 infrared, 4 CRC, 8 recoverable, 16 hardware\n'
        '  {"do":"garble","count":2}  {"do":"reset"}  {"do":"stop"}    plug and unplug only with --wired',
    )
    add_stage(parser)
    parser.add_argument("--pty", action="store_true", help="open a pseudo-terminal; its path is printed")
    parser.add_argument("--port", type=whole(0, 65535), help="listen on TCP (a Vega has 8765; 0: any free one)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--model", choices=MODELS, default="vega", help="what VER says it is (vega)")
    parser.add_argument("--freeze-tag", help="what VER says word for word; some clients choose TX by it")
    parser.add_argument("--wired", action="store_true", help="tools are plugged in and need no .rom")
    parser.add_argument(
        "--insert-after-s", type=number(0.0, 3600.0, "s"), help="when the insertion of a case begins (5)"
    )
    parser.add_argument(
        "--roms", type=Path, metavar="DIR", help="write needle.rom, reference.rom ... here, for clients"
    )
    return parser


def main(argv: list[str]) -> int:
    """Run the simulator until it is stopped; return the exit status."""
    parser = arguments()
    args = parser.parse_args(argv)
    if not args.pty and args.port is None:
        parser.error("expected --pty, --port or both")
    require_case(args)
    if args.case is not None and args.insert_after_s is None:
        args.insert_after_s = 5.0
    if args.model == "aurora" and args.case is None and args.camera is None:
        args.camera = "aurora"
    tracker = tracker_of(parser, args)
    if args.roms is not None:
        _write_roms(args.roms, tracker.stage.tools)
    tag = args.freeze_tag or MODELS[args.model]
    device = Device(watched(tracker), tracker.stage.tools, tag, args.wired, VOLUMES[args.model])
    truth = _open_log(args.truth)
    shell = Shell(device, tracker, truth)
    try:
        ready: dict[str, object] = {"ready": True}
        if args.pty:
            ready["pty"] = shell.open_terminal()
        if args.port is not None:
            ready["port"] = shell.listen(args.host, args.port)
        emit(ready)
        shell.loop.run()
    finally:
        shell.close()
        if truth is not None:
            truth.close()
    return 0


def _gone(sock: socket.socket) -> bool:
    """Say whether the peer of a socket has closed it and nothing of its is left to read."""
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _write_roms(folder: Path, tools: tuple[str, ...]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for tool in tools:
            (folder / f"{tool.lower()}.rom").write_bytes(standard_rom(tool))
    except OSError as e:
        raise InputError(f"--roms {folder}: {e.strerror}; expected a folder that can be written") from e


def _open_log(path: Path | None) -> TextIO | None:
    try:
        return None if path is None else path.open("w", encoding="utf-8")
    except OSError as e:
        raise InputError(f"--truth {path}: {e.strerror}; expected a file in a folder that can be written") from e
