"""Owns the encoders of a C-arm by themselves: a pseudo-terminal that tells angles, for drivers and their tests.

The C-arm with pictures is ``carm``; this one needs no case, swings slowly and can be told to fail.
"""

from __future__ import annotations

import time
from typing import Any, Final

from navsrv.kernel.errors import InputError
from simulators.arguments import Parser, number
from simulators.carm_links import EncoderPort
from simulators.carm_motion import Position
from simulators.link import Loop, emit

SWING_DEG: Final = 30.0
SWING_S: Final = 20.0
MAX_WORD: Final = 16


class Swing:
    """A C that swings to and fro, and says so."""

    def __init__(self, rate_hz: float) -> None:
        self._port = EncoderPort()
        self._until_ns = 0
        self._word = "OK"
        self.loop = Loop("encoders", rate_hz, self._tick, self._command)

    @property
    def path(self) -> str:
        """The terminal that clients open."""
        return self._port.path

    def close(self) -> None:
        """Let go of the terminal."""
        self._port.close()
        self.loop.close()

    def _tick(self, deadline_ns: int) -> None:
        if self._until_ns and time.monotonic_ns() >= self._until_ns:
            self._until_ns, self._word = 0, "OK"
        self._port.status = self._word
        share = (deadline_ns / 1e9 / SWING_S) % 1.0
        self._port.say(Position(SWING_DEG * (4.0 * abs(share - 0.5) - 1.0), 0.0))

    def _command(self, order: dict[str, Any]) -> None:
        match order:
            case {"do": "say", "status": str(word)} if 0 < len(word) <= MAX_WORD and word.replace("_", "A").isupper():
                seconds = order.get("seconds", 0.0)
                if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0.0 <= seconds <= 3600.0:
                    raise InputError(f"seconds: {seconds!r}; expected 0 to 3600")
                self._word = word
                self._until_ns = time.monotonic_ns() + int(seconds * 1e9) if seconds else 0
            case _:
                raise InputError('expected {"do":"say","status":"FAULT","seconds":1}, or {"do":"stop"}')


def arguments() -> Parser:
    """Return the command line."""
    parser = Parser(
        "encoders",
        "The encoders of a C-arm on a pseudo-terminal (docs/carm_encoders.md), swinging 30 degrees to either side.\n"
        'On standard input {"do":"say","status":"FAULT","seconds":1} makes them say another word, for a time or for\n'
        'good; {"do":"stop"} or the end of standard input stops them.',
        "navsrv simulate encoders --rate-hz 30",
    )
    parser.add_argument("--rate-hz", type=number(0.5, 200.0, "Hz"), default=30.0, help="lines per second (30)")
    return parser


def main(argv: list[str]) -> int:
    """Run until stopped; return the exit status."""
    args = arguments().parse_args(argv)
    swing = Swing(args.rate_hz)
    try:
        emit({"ready": True, "pty": swing.path})
        swing.loop.run()
    finally:
        swing.close()
    return 0
