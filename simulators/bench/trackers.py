"""Owns ``navsrv bench trackers``: what a tracker simulator costs, with a client connected, beside a floor.

The floor is a process that wakes at the same rate and sends the same number of bytes, and does nothing else: on a busy
or slow machine both rise, and what lies between them is the simulator's own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from navsrv.wire.openigtlink import Framer, Message, Status, encode
from simulators.arguments import Parser, number, whole
from simulators.bench.parts import say

SETTLE_S: Final = 1.0
NAMES: Final = ("Needle", "Reference", "Stylus", "Probe", "Saw", "Drill", "Awl", "Clamp")
LIMIT_PERCENT: Final = 5.0


@dataclass(frozen=True, slots=True)
class Load:
    """What one process cost while a client read what it sent.

    Attributes
    ----------
    cpu_percent : float
        Of one core, by the kernel's count of its time on a processor.
    exposures_hz : float
        Whole exposures that the client received.
    """

    name: str
    cpu_percent: float
    exposures_hz: float
    bytes_each: float


def on_processor_s(pid: int) -> float:
    """Return how long a process has been on a processor, all threads, in s."""
    return sum(float(p.read_text().split()[0]) for p in Path(f"/proc/{pid}/task").glob("*/schedstat")) * 1e-9


def watch(name: str, command: list[str], tools: int, seconds: float) -> Load:
    """Start a sender, read from it for a while, and return what that cost it."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(json.loads(process.stdout.readline())["port"])
        with socket.create_connection(("127.0.0.1", port), timeout=10.0) as sock:
            # Metadata, as the server gets it, goes to those who speak version 2.
            sock.sendall(encode(Message("bench", 0, Status(1), 2)))
            framer, messages, size = Framer(), 0, 0
            settled = time.monotonic() + SETTLE_S
            while time.monotonic() < settled:
                framer.feed(sock.recv(1 << 16))
            begins, used = time.monotonic(), on_processor_s(process.pid)
            while (lasted := time.monotonic() - begins) < seconds:
                data = sock.recv(1 << 16)
                size += len(data)
                messages += len(framer.feed(data))
            used = on_processor_s(process.pid) - used
        process.stdin.close()
    exposures = messages / tools
    return Load(name, round(100.0 * used / lasted, 2), round(exposures / lasted, 1), round(size / exposures, 0))


def floor(rate_hz: float, size: int) -> None:
    """Send messages of about a size in all, at absolute deadlines, until standard input ends."""
    one = encode(Message("Floor", 0, Status(1, 0, "", "x" * max(size - 180, 1))))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        say(port=listener.getsockname()[1])
        sock, _ = listener.accept()
    start, count = time.monotonic(), 0
    while True:
        count += 1
        time.sleep(max(start + count / rate_hz - time.monotonic(), 0.0))
        try:
            sock.sendall(one)
        except OSError:
            return


def arguments() -> Parser:
    """Return the command line."""
    parser = Parser("bench trackers", "What a tracker simulator costs.", "navsrv bench trackers --seconds 5")
    parser.prog = "navsrv bench trackers"
    parser.add_argument("--seconds", type=number(1.0, 600.0, "s"), default=20.0, help="how long each is watched (20)")
    parser.add_argument("--rate-hz", type=number(1.0, 1000.0, "Hz"), default=250.0, help="exposures per second (250)")
    parser.add_argument("--tools", type=whole(1, len(NAMES)), default=4, help="how many tools (4)")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    return parser


def main(argv: list[str]) -> int:
    """Measure and tell; return 1 when a tracker costs more than it may."""
    if argv[:1] == ["--floor"]:
        floor(float(argv[1]), int(argv[2]))
        return 0
    args = arguments().parse_args(argv)
    tools = ",".join(NAMES[: args.tools])
    sender = [sys.executable, "-m", "simulators", "tracker", "--rate-hz", f"{args.rate_hz:g}", "--tools", tools]
    loads = [
        watch("pose noise", sender, args.tools, args.seconds),
        watch("markers (vega)", [*sender, "--camera", "vega"], args.tools, args.seconds),
    ]
    size = str(round(loads[0].bytes_each))
    least = [sys.executable, "-m", "simulators.bench.trackers", "--floor", f"{args.rate_hz:g}", size]
    loads.append(watch("floor", least, 1, args.seconds))
    found: dict[str, Any] = {
        "rate_hz": args.rate_hz,
        "tools": args.tools,
        "seconds": args.seconds,
        "load_average": round(os.getloadavg()[0], 2),
        "loads": [asdict(load) for load in loads],
    }
    print(json.dumps(found) if args.json else table(found), flush=True)
    return int(max(load.cpu_percent for load in loads[:2]) > LIMIT_PERCENT)


def table(found: dict[str, Any]) -> str:
    """Return the figures for a person."""
    lines = [
        f"{found['tools']} tools at {found['rate_hz']:g} Hz, {found['seconds']:g} s each, one client; "
        f"load average {found['load_average']:.2f}",
        f"{'':16}{'CPU of one core':>16}{'exposures/s':>13}",
    ]
    lines += [f"{x['name']:16}{x['cpu_percent']:>15.2f}%{x['exposures_hz']:>13.1f}" for x in found["loads"]]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
