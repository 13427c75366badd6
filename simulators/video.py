"""Owns the stand-alone video simulator: a C-arm's console with its video output, told what to do line by line.

The truth about the screen is printed whenever it changes, for whoever judges.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import cv2

from navsrv.kernel.errors import InputError
from simulators.arguments import Parser, number, whole
from simulators.link import Loop, emit
from simulators.video_out import VideoFile, VideoServer
from simulators.world.video import SIGNALS, Console, Screen, Truth, bones, marker_picture

EXPECTED: Final = (
    "expected expose or rest, show (mirrored, quarters, tilt_deg, zoom, inverted, interlaced, quantum, digitiser, "
    f"pulse_frames, signal: {'|'.join(SIGNALS)}), call (number), cut, garble, or stop"
)
_SHOWN: Final = {
    "mirrored": bool,
    "quarters": int,
    "tilt_deg": float,
    "zoom": float,
    "inverted": bool,
    "interlaced": bool,
    "quantum": float,
    "digitiser": float,
    "pulse_frames": int,
    "signal": str,
}


class Video:
    """A console, its output, and what it is told."""

    def __init__(self, console: Console, server: VideoServer, rate_hz: float) -> None:
        self.console, self._server = console, server
        self._truth: dict[str, Any] = {}
        self._until: int | None = None
        self._garble = False
        self.loop = Loop("video", rate_hz, self._tick, self._command)

    def _tick(self, deadline_ns: int) -> None:
        if self._until is not None and self.console.frame >= self._until:
            self.console.exposing, self._until = False, None
        frame, truth = self.console.next()
        if self._garble:
            self._garble = False
            self._server.send(bytes(range(256)) * 40)
        else:
            self._server.show(frame)
        self._tell(truth)

    def _tell(self, truth: Truth) -> None:
        """Print what is true of the screen when it is not what it was."""
        now = {k: v for k, v in asdict(truth).items() if k not in ("frame", "pulse")}
        if now != self._truth:
            self._truth = now
            emit({"event": "screen", **asdict(truth), "time_ns": str(time.time_ns())})

    def _command(self, order: dict[str, Any]) -> None:
        match order:
            case {"do": "expose", **more} if not more or set(more) == {"frames"}:
                self.console.exposing = True
                frames = more.get("frames")
                if frames is not None and (not isinstance(frames, int) or frames < 1):
                    raise InputError(f"frames: {frames!r}; expected a whole number from 1")
                self._until = None if frames is None else self.console.frame + frames
            case {"do": "rest"}:
                self.console.exposing = False
            case {"do": "call", "number": int(which)}:
                self.console.scene = bones(self.console.screen.size, which)
                self.console.call()
            case {"do": "cut"}:
                self._server.cut()
            case {"do": "garble"}:
                self._garble = True
            case {"do": "show"}:
                self.console.change(**shown(order))
            case _:
                raise InputError(EXPECTED)


def shown(order: dict[str, Any]) -> dict[str, Any]:
    """Return how an order wants the screen shown; InputError, with what would be right, for what is none."""
    how = {key: value for key, value in order.items() if key != "do"}
    for key, value in how.items():
        kind = _SHOWN.get(key)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            how[key] = value = float(value)
        if kind is None or type(value) is not kind or (key == "signal" and value not in SIGNALS):
            raise InputError(f"{key}: {value!r}; {EXPECTED}")
    return how


def arguments() -> Parser:
    """Return the command line of the video simulator."""
    parser = Parser(
        "video",
        "A C-arm's console with a video output, for frame grabbers: MJPEG by HTTP (or bare, to a client that does not\n"
        'ask) on --port. {"do":"expose"} on standard input lights the beam ("frames":N for so long), {"do":"rest"}\n'
        'holds the last image; {"do":"show","quarters":1,"mirrored":true,...} turns the picture at the console, and\n'
        '"signal":"black|blue|stuck|picture" is the cable; {"do":"call","number":2} calls up a stored picture,\n'
        '{"do":"cut"} cuts connections, {"do":"garble"} sends bytes that are no picture. {"do":"stop"} or the end of\n'
        "standard input stops it. With --file it writes N frames, the beam on for the first half, and ends.",
        '(echo \'{"do":"expose"}\'; sleep 60) | navsrv simulate video --port 8090 --marker marker.png',
    )
    add = parser.add_argument
    add("--port", type=whole(0, 65535), default=0, help="where to serve, on 127.0.0.1 (0: any free port)")
    add("--rate-hz", type=number(1.0, 120.0, "Hz"), default=25.0, help="frames a second (25)")
    add("--size", type=whole(64, 1024), default=512, metavar="PIXELS", help="side of the picture in the frame (512)")
    add("--seed", type=whole(0, 2**31), default=0, help="decides anatomy and noise (0)")
    add("--marker", type=Path, metavar="FILE", help="write the lead marker's shadow there, as cut out of a picture")
    add("--file", type=Path, help="write into a file in place of serving")
    add("--frames", type=whole(1, 100_000), default=100, metavar="N", help="with --file: how many (100)")
    return parser


def main(argv: list[str]) -> int:
    """Run the video until it is stopped; return the exit status."""
    args = arguments().parse_args(argv)
    size = args.size
    screen = Screen(size + 288, size + 88, (144, 44), size)
    scene = bones(size, args.seed)
    console = Console(screen, args.seed, scene)
    marker, at = marker_picture(scene)
    if args.marker is not None and not cv2.imwrite(str(args.marker), marker):
        raise InputError(f"{args.marker}: cannot be written; expected a place for a file such as marker.png")
    facts = {"crop": [*screen.corner, size, size], "marker_at": list(at)}
    if args.file is not None:
        out = VideoFile(args.file, args.rate_hz, (screen.width, screen.height))
        for n in range(args.frames):
            console.exposing = n < args.frames // 2
            out.show(console.next()[0])
        out.close()
        emit({"event": "written", "file": str(args.file), "frames": args.frames, **facts})
        return 0
    server = VideoServer(args.port)
    video = Video(console, server, args.rate_hz)
    try:
        emit({"ready": True, "port": server.port, **facts})
        video.loop.run()
    finally:
        server.close()
        video.loop.close()
    return 0
