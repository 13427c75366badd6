"""Owns the long run: the real server for an hour at a high rate, and whether its processes keep their size.

``python -m simulators.bench.soak --minutes 60 --rate 1000 --report docs/soak.md``.  One process sends and receives, and
keeps nothing of what passes; every ten seconds it reads what the kernel says of the server's processes.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import zmq

from navsrv.kernel.errors import InputError
from navsrv.wire.openigtlink import Message, Metadata, Transform, encode, timestamp_from_ns
from simulators.arguments import Parser, number
from simulators.bench.latency import chain, machine
from simulators.bench.parts import STAMP_AT, path_poses, subscribe
from simulators.room import example_path

SAMPLE_S: Final = 10.0
SETTLED_S: Final = 60.0
"""Sizes of the first minute are those of caches that fill: growth is counted from its end."""
PROCESSES: Final = ("loop", "hub", "recorder", "session")


@dataclass
class Soak:
    """What was seen.

    Attributes
    ----------
    sizes_mb : dict
        For each process a list of (seconds since the start, resident MB).
    """

    sent: int = 0
    frames: int = 0
    missed_deadlines: int = 0
    skipped_poses: int = 0
    seconds: float = 0.0
    sizes_mb: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return the figures of the report."""
        grown = {name: growth(sizes) for name, sizes in self.sizes_mb.items()}
        return {
            "minutes": self.seconds / 60.0,
            "sent": self.sent,
            "frames": self.frames,
            "missed_deadlines": self.missed_deadlines,
            "skipped_poses": self.skipped_poses,
            "processes": grown,
        }


def growth(sizes: list[tuple[float, float]]) -> dict[str, float]:
    """Return size at the first minute, at the end, the largest (MB), and the slope (MB an hour) by least squares."""
    settled = np.array([(t, mb) for t, mb in sizes if t >= SETTLED_S] or sizes)
    slope = float(np.polyfit(settled[:, 0], settled[:, 1], 1)[0]) * 3600.0 if len(settled) > 2 else float("nan")
    first, last = float(settled[0, 1]), float(settled[-1, 1])
    return {"first_mb": first, "last_mb": last, "largest_mb": float(settled[:, 1].max()), "mb_per_hour": slope}


def processes_of(server_pid: int) -> dict[str, Path]:
    """Return the server's processes by name, as folders of /proc."""
    children = Path(f"/proc/{server_pid}/task/{server_pid}/children").read_text().split()
    found = {"session": Path(f"/proc/{server_pid}")}
    for child in children:
        words = Path(f"/proc/{child}/cmdline").read_bytes()
        found.update({name: Path(f"/proc/{child}") for name in PROCESSES if f"navsrv.server.{name}".encode() in words})
    return found


def resident_mb(process: Path) -> float:
    """Return the resident memory of a process in MB."""
    return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def pairs() -> Iterator[bytearray]:
    """Yield needle and reference in one write, round and round; the stamps are to be written into them."""
    ok = (Metadata("TransformStatus", "OK"),)
    reference = encode(Message("ReferenceToTracker", 0, Transform(np.eye(4)), metadata=ok))
    needles = [encode(Message("NeedleToTracker", 0, Transform(p), metadata=ok)) for p in path_poses(4000)]
    while True:
        for needle in needles:
            yield bytearray(needle + reference)


def run(minutes: float, rate_hz: float, recording: bool) -> Soak:
    """Drive the real server and return what was seen."""
    soak = Soak()
    listener = socket.create_server(("127.0.0.1", 0))
    with chain(1.0) as c, listener:
        settings: dict[str, Any] = {
            **{f"ports.{name}": 0 for name in ("openigtlink", "devices", "zmq", "commands", "http")},
            "trackers.main.port": listener.getsockname()[1],
            "trackers.main.rate_hz": rate_hz,
            "recording.on": "true" if recording else "false",
            "recording.folder": json.dumps(str(c.folder)),
        }
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        server = c.part("server", "navsrv.server.cli", "serve", str(example_path("bench.toml")), *words)
        ports = server.wait_for("ready", 120.0)["ports"]
        link, _ = listener.accept()
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        subscriber = subscribe(context, ports["zmq"])
        watched = processes_of(server.process.pid)
        begun, period_s = time.monotonic(), 1.0 / rate_hz
        sample_due, payload = 0.0, b""
        for pair in pairs():
            elapsed = time.monotonic() - begun
            if elapsed >= 60.0 * minutes:
                break
            if elapsed >= sample_due:
                sample_due += SAMPLE_S
                for name, process in watched.items():
                    soak.sizes_mb.setdefault(name, []).append((elapsed, resident_mb(process)))
                tell(soak, elapsed, minutes)
            wait_s = soak.sent * period_s - elapsed
            if wait_s > 0.0:
                time.sleep(wait_s)
            raw = timestamp_from_ns(time.time_ns()).to_bytes(8)
            half = len(pair) // 2  # both names and statuses are of the same length, but for the name in a fixed field
            pair[STAMP_AT : STAMP_AT + 8] = raw
            pair[half + STAMP_AT : half + STAMP_AT + 8] = raw
            link.sendall(pair)
            soak.sent += 1
            while subscriber.poll(0):
                payload = subscriber.recv()
                soak.frames += 1
        soak.seconds = time.monotonic() - begun
        time.sleep(0.5)
        while subscriber.poll(0):
            payload = subscriber.recv()
            soak.frames += 1
        last = msgspec.msgpack.decode(payload[len(b"guidance") :])
        soak.missed_deadlines, soak.skipped_poses = last["missed_deadlines"], last["skipped_poses"]
        context.destroy(linger=0)
        link.close()
    return soak


def tell(soak: Soak, elapsed_s: float, minutes: float) -> None:
    """Show progress on a terminal."""
    if sys.stderr.isatty():
        loop = soak.sizes_mb["loop"][-1][1]
        print(f"\r{elapsed_s / 60:5.1f} of {minutes:g} min, loop {loop:.1f} MB ", end="", file=sys.stderr, flush=True)


def report(summary: dict[str, Any], command: str) -> str:
    """Return the report as Markdown."""
    of = summary["machine"]
    lines = [
        "# Memory over a long run",
        "",
        f"    {command}",
        "",
        f"{of['cpu']}, {of['cores']} cores, Python {of['python']}, {of['system']}.",
        "",
        f"{summary['minutes']:.1f} minutes at {summary['rate_hz']:g} Hz: {summary['sent']:,} poses sent, "
        f"{summary['frames']:,} frames received, {summary['skipped_poses']} poses skipped, "
        f"{summary['missed_deadlines']} deadlines missed; recording {'on' if summary['recording'] else 'off'}.",
        "",
        "Resident memory in MB, counted from the first minute on; the slope is by least squares.",
        "",
        "| process | first | last | largest | MB an hour |",
        "|---|---|---|---|---|",
    ]
    for name, grown in summary["processes"].items():
        values = (grown["first_mb"], grown["last_mb"], grown["largest_mb"])
        lines.append(f"| {name} | " + " | ".join(f"{v:.1f}" for v in values) + f" | {grown['mb_per_hour']:+.2f} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Run as ``python -m simulators.bench.soak``."""
    parser = Parser(
        "bench.soak",
        "The real server for an hour, its processes weighed every ten seconds.",
        "python -m simulators.bench.soak --minutes 60 --rate 1000 --report docs/soak.md",
    )
    parser.add_argument("--minutes", type=number(0.01, 6000.0), default=60.0)
    parser.add_argument("--rate", type=number(1.0, 5000.0, "Hz"), default=1000.0, help="poses a second (Hz)")
    parser.add_argument("--no-recording", action="store_true", help="without the recorder")
    parser.add_argument("--report", type=Path, help="write the report to this Markdown file")
    args = parser.parse_args(argv)
    if args.report is not None and not args.report.parent.is_dir():
        raise InputError(f"--report {args.report}: no such folder {args.report.parent}")
    before = machine()
    soak = run(args.minutes, args.rate, not args.no_recording)
    summary = {**soak.summary(), "rate_hz": args.rate, "recording": not args.no_recording, "machine": before}
    print(json.dumps(summary))
    if args.report is not None:
        words = f"--minutes {args.minutes:g} --rate {args.rate:g}{' --no-recording' if args.no_recording else ''}"
        args.report.write_text(report(summary, f"python -m simulators.bench.soak {words}"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
