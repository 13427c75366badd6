"""Owns the simulated temperature probes: an OpenIGTLink client that pushes SENSOR, heats up when told, and fails.

Refuses tissue: a temperature goes where it is told, at the rate it is told.
"""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np

from navsrv.kernel.errors import InputError
from navsrv.wire.openigtlink import Message, Sensor, encode, timestamp_from_ns
from simulators.arguments import Parser, add_server, number, whole
from simulators.link import Client, Loop, emit, parse_address

BODY_C: Final = 37.0
NOISE_C: Final = 0.05
ORDERS: Final = (
    '{"do":"heat","celsius":60,"rate_c_s":2}, {"do":"fail","status":13,"seconds":1} or {"do":"wire","broken":true}'
)


class Thermometer:
    """One device with some channels, all at one temperature but for their noise."""

    def __init__(self, address: tuple[str, int], device: str, channels: int, rate_hz: float) -> None:
        self._device, self._channels, self._period_s = device, channels, 1.0 / rate_hz
        self._rng = np.random.default_rng(1)
        self._celsius = self._goal_c = BODY_C
        self._step_c = 0.0
        self._status, self._failing_until_ns, self._broken = 0, 0, False
        self.loop = Loop("thermometer", rate_hz, self._tick, self._command)
        self._client = Client(self.loop, *address)

    def close(self) -> None:
        """Let go of the socket."""
        self._client.close()
        self.loop.close()

    def _tick(self, deadline_ns: int) -> None:
        self._client.tick()
        left = self._goal_c - self._celsius
        self._celsius += min(max(left, -self._step_c), self._step_c)
        if self._failing_until_ns and time.monotonic_ns() >= self._failing_until_ns:
            self._failing_until_ns, self._status = 0, 0
        values = self._celsius + self._rng.normal(0.0, NOISE_C, self._channels)
        if self._broken:
            values[:] = np.nan
        stamp = timestamp_from_ns(time.time_ns())
        self._client.offer(encode(Message(self._device, stamp, Sensor(values, 0, self._status), 2)))

    def _command(self, order: dict[str, Any]) -> None:
        match order:
            case {"do": "heat", "celsius": int() | float() as goal, "rate_c_s": int() | float() as rate} if rate > 0:
                self._goal_c, self._step_c = float(goal), float(rate) * self._period_s
            case {"do": "fail", "status": int(status), "seconds": int() | float() as seconds} if 0 < status < 256:
                self._status, self._failing_until_ns = status, time.monotonic_ns() + int(seconds * 1e9)
            case {"do": "wire", "broken": bool(broken)}:
                self._broken = broken
            case _:
                raise InputError(f"expected {ORDERS}")


def arguments() -> Parser:
    """Return the command line."""
    parser = Parser(
        "thermometer",
        f"Temperature probes: an OpenIGTLink client that pushes SENSOR. Orders on standard input:\n  {ORDERS}\n"
        '{"do":"stop"} or the end of standard input stops it.',
        "navsrv simulate thermometer --server 127.0.0.1:18945 --device Thermo --channels 2",
    )
    add_server(parser)
    parser.add_argument("--device", default="Thermo", help="device name (Thermo)")
    parser.add_argument("--channels", type=whole(1, 32), default=1, help="readings in each message (1)")
    parser.add_argument("--rate-hz", type=number(0.1, 100.0, "Hz"), default=2.0, help="messages per second (2)")
    return parser


def main(argv: list[str]) -> int:
    """Run until stopped; return the exit status."""
    args = arguments().parse_args(argv)
    if not args.device.isascii() or not 0 < len(args.device) <= 20:
        raise InputError(f"--device {args.device!r}: expected 1 to 20 ASCII characters")
    thermometer = Thermometer(parse_address(args.server), args.device, args.channels, args.rate_hz)
    try:
        emit({"ready": True})
        thermometer.loop.run()
    finally:
        thermometer.close()
    return 0
