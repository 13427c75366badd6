"""Owns the NDI simulator: a tracker that speaks the Combined API on a pseudo-terminal, on TCP, or on both.

With a case the tools move in the room that every simulator of that seed shares; without one a needle circles beside a
reference.  Commands come as JSON lines on standard input.
"""

from __future__ import annotations

import argparse
import json
import math
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

from navsrv.anatomy.case import Case
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array, rotation_from_vector
from simulators.arguments import Parser, breathing_of, number, plan_of, whole
from simulators.link import Loop, emit
from simulators.ndi_device import MODELS, Device, Where, standard_rom
from simulators.tracker import TOOLS, Settings, Tracker
from simulators.world.drift import story_for_case
from simulators.world.insertion import Needle
from simulators.world.scene import Scene
from simulators.world.truth import Truth

CHUNK: Final = 65_536
MAX_WAITING: Final = 1 << 20
"""Bytes that a peer may leave unread before it is given up."""
ORBIT_MM: Final = 80.0
ORBIT_S: Final = 6.0
CENTRE_MM: Final = (50.0, -30.0, -1500.0)


def circling(rate_hz: float) -> Where:
    """Return a needle that circles about and turns with a reference at rest, as a function of the frame alone."""

    def where(frame: int) -> Mapping[str, tuple[Array, bool]]:
        angle = 2.0 * math.pi * frame / (ORBIT_S * rate_hz)
        needle, reference = np.eye(4), np.eye(4)
        needle[:3, :3] = rotation_from_vector(np.array([0.3, 0.2, 1.0]) * math.remainder(angle, 2.0 * math.pi))
        needle[:3, 3] = np.array(CENTRE_MM) + ORBIT_MM * np.array([math.cos(angle), math.sin(angle), 0.2])
        reference[:3, :3] = rotation_from_vector([0.1, -0.4, 0.2])
        reference[:3, 3] = np.array(CENTRE_MM) + np.array([-150.0, 60.0, 40.0])
        return {"Needle": (needle, True), "Reference": (reference, True)}

    return where


class Room:
    """The tools with what whoever runs the simulator does to them: hidden, carried out of the volume."""

    def __init__(self, where: Where, rate_hz: float) -> None:
        self._where, self._rate_hz = where, rate_hz
        self.frame = 0
        self._hidden_until = dict.fromkeys(TOOLS, 0)
        self._away_mm = dict.fromkeys(TOOLS, 0.0)

    def hide(self, tool: str, seconds: float) -> None:
        """Hide a tool from the frame that has been reached."""
        self._hidden_until[tool] = self.frame + round(seconds * self._rate_hz)

    def carry(self, tool: str, away_mm: float) -> None:
        """Show a tool so much farther away than it is."""
        self._away_mm[tool] = away_mm

    def at(self, frame: int) -> Mapping[str, tuple[Array, bool]]:
        """Return the tools of a frame."""
        shown = {}
        for name, (matrix, visible) in self._where(frame).items():
            moved = matrix.copy()
            moved[2, 3] -= self._away_mm[name]
            shown[name] = (moved, visible and frame >= self._hidden_until[name])
        return shown


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

    def __init__(self, device: Device, room: Room, rate_hz: float, truth: TextIO | None) -> None:
        self.device, self.room = device, room
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
            case {"do": "hide", "tool": str(tool), "seconds": int() | float() as seconds} if tool in TOOLS:
                self.room.hide(tool, seconds)
            case {"do": "carry", "tool": str(tool), "away_mm": int() | float() as away_mm} if tool in TOOLS:
                self.room.carry(tool, away_mm)
            case {"do": "plug" | "unplug" as what, "tool": str(tool)}:
                self.device.plug(tool, what == "plug")
            case {"do": "fail", "command": str(name), "error": int(error)}:
                self.device.fail(name, error)
            case {"do": "garble", "count": int(count)}:
                self.device.garble(count)
            case {"do": "reset"}:
                self._everywhere(self.device.reset())
            case _:
                raise InputError("expected hide, carry, plug, unplug, fail, garble, reset or stop (see --help)")
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
            self._first_ns = deadline_ns
        # By the clock, not by counting ticks: a late tick must not slow the device's time.
        self.device.frame = self.room.frame = round((deadline_ns - self._first_ns) / self._period_ns) + 1

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
        tools = {name: {"matrix": m.tolist(), "visible": seen} for name, (m, seen) in shown.items()}
        self._truth.write(json.dumps({"frame": frame, "tools": tools}) + "\n")
        self._truth.flush()


def arguments() -> Parser:
    """Return the command line of the NDI simulator."""
    parser = Parser(
        "ndi",
        "An NDI tracker (Polaris, Vega, Aurora) by the Combined API, on a pseudo-terminal or on TCP.",
        "python -m simulators ndi --pty --roms /tmp/roms\n"
        "  python -m simulators ndi --port 8765 --case DIR --seed 7\n\n"
        "Commands, one JSON object a line on standard input; the end of standard input stops it:\n"
        '  {"do":"hide","tool":"Needle","seconds":3}     out of view\n'
        '  {"do":"carry","tool":"Needle","away_mm":2000} farther from the camera, out of its volume\n'
        '  {"do":"unplug","tool":"Needle"}  {"do":"plug","tool":"Needle"}   with --wired\n'
        '  {"do":"fail","command":"PINIT","error":19}    answer the next PINIT with ERROR13\n'
        '  {"do":"garble","count":2}  {"do":"reset"}  {"do":"stop"}',
    )
    parser.add_argument("--case", type=Path, metavar="DIR", help="case folder; without it a needle circles")
    parser.add_argument("--seed", type=whole(0, 2**63), default=0, help="decides the whole room of a case (0)")
    parser.add_argument(
        "--breathing-mm", type=number(0.0, 50.0, "mm"), default=0.0, help="rise of the back in a case (0: none)"
    )
    parser.add_argument("--pty", action="store_true", help="open a pseudo-terminal; its path is printed")
    parser.add_argument("--port", type=whole(0, 65535), help="listen on TCP (a Vega has 8765; 0: any free one)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--rate-hz", type=number(1.0, 1000.0, "Hz"), default=60.0, help="frames per second (60)")
    parser.add_argument("--model", choices=MODELS, default="vega", help="what VER says it is (vega)")
    parser.add_argument("--freeze-tag", help="what VER says word for word; some clients choose TX by it")
    parser.add_argument("--wired", action="store_true", help="tools are plugged in and need no .rom")
    parser.add_argument("--noise-mm", type=number(0.0, 10.0, "mm"), default=0.1, help="rms position noise (0.1)")
    parser.add_argument("--noise-deg", type=number(0.0, 10.0, "deg"), default=0.03, help="rms rotation noise (0.03)")
    parser.add_argument("--speed", type=number(0.1, 20.0), default=1.0, help="how fast the story of a case goes (1)")
    parser.add_argument("--insert-after-s", type=number(0.0, 3600.0, "s"), default=5.0, help="when it begins (5)")
    parser.add_argument("--roms", type=Path, metavar="DIR", help="write needle.rom and reference.rom here, for clients")
    parser.add_argument("--truth", type=Path, metavar="FILE", help="write the poses behind each reply (JSON lines)")
    return parser


def main(argv: list[str]) -> int:
    """Run the simulator until it is stopped; return the exit status."""
    parser = arguments()
    args = parser.parse_args(argv)
    if not args.pty and args.port is None:
        parser.error("expected --pty, --port or both")
    if args.roms is not None:
        _write_roms(args.roms)
    where = circling(args.rate_hz) if args.case is None else in_case(args)
    room = Room(where, args.rate_hz)
    device = Device(room.at, TOOLS, args.freeze_tag or MODELS[args.model], args.wired)
    truth = _open_log(args.truth)
    shell = Shell(device, room, args.rate_hz, truth)
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


def in_case(args: argparse.Namespace) -> Where:
    """Return the needle and the reference of the case's story, as the other tracker simulator shows them."""
    case = Case.load(args.case)
    scene = Scene.from_seed(args.seed, plan_of(case).target_ct_mm, breathing_of(args))
    noise_rad = float(np.radians(args.noise_deg))
    settings = Settings(args.rate_hz, args.speed, 0, args.noise_mm, noise_rad, "last", args.insert_after_s)
    tracker = Tracker(scene, story_for_case(case, Truth.from_case(args.case), Needle(), args.seed), settings)
    period_ns, wall_ns = 1e9 / args.rate_hz, time.time_ns()
    newest: list[tuple[int, Mapping[str, tuple[Array, bool]]]] = []

    def where(frame: int) -> Mapping[str, tuple[Array, bool]]:
        # Two questions within one frame must not draw its noise twice.
        if not newest or newest[0][0] != frame:
            at_ns = round(frame * period_ns)
            tools, _ = tracker.expose(at_ns, wall_ns + at_ns)
            newest[:] = [(frame, {tool.name: (tool.matrix, tool.visible) for tool in tools})]
        return newest[0][1]

    return where


def _gone(sock: socket.socket) -> bool:
    """Say whether the peer of a socket has closed it and nothing of its is left to read."""
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _write_roms(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for tool in TOOLS:
            (folder / f"{tool.lower()}.rom").write_bytes(standard_rom(tool))
    except OSError as e:
        raise InputError(f"--roms {folder}: {e.strerror}; expected a folder that can be written") from e


def _open_log(path: Path | None) -> TextIO | None:
    try:
        return None if path is None else path.open("w", encoding="utf-8")
    except OSError as e:
        raise InputError(f"--truth {path}: {e.strerror}; expected a file in a folder that can be written") from e
