"""Owns ``navsrv bench latency``: from the tracker's send to a frame's arrival at a local ZeroMQ subscriber.

Each row is one run of the real server (``navsrv serve examples/bench.toml``) at one rate with one number of displays,
with the floor of the same rate, frame size and number of ZeroMQ subscribers right after it: a process that reads the
tracker's bytes and publishes as many bytes as a frame has.  The peer chain follows at 250 Hz with one display.  The
machine's other load falls on all of them: ratios within a run say more than times.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from navsrv.kernel.errors import InputError
from simulators.arguments import Parser, number, whole
from simulators.room import DemoFailed, Part, example_path

LEAD_S: Final = 1.0
"""Poses of the first second are sent but not counted: sockets and caches settle."""
TAIL_S: Final = 0.5
"""Receivers stay this much longer than the tracker."""
PATIENCE_S: Final = 60.0
PEER_HZ: Final = 250.0
_TICK_S: Final = 1.0 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Mix:
    """How many displays of each kind; one stalls where there is more than one."""

    zeromq: int
    websocket: int
    openigtlink: int

    @classmethod
    def of(cls, displays: int) -> Self:
        """Return the mix: of 50 displays 40 ZeroMQ, 8 WebSocket, 2 OpenIGTLink; of fewer about the same shares."""
        websocket, openigtlink = round(displays * 0.16), round(displays * 0.04)
        return cls(displays - websocket - openigtlink, websocket, openigtlink)

    def stalled(self, kind: str) -> dict[str, int]:
        """Return how many of each kind stall: one of ``kind``, of ZeroMQ where there is none of that kind."""
        if self.zeromq + self.websocket + self.openigtlink < 2:
            kind = ""
        elif getattr(self, kind) == 0:
            kind = "zeromq"
        return {name: int(name == kind) for name in ("zeromq", "websocket", "openigtlink")}


class Chain:
    """A tracker, what is measured, and its displays; each a process of its own."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        self.parts: dict[str, Part] = {}

    def part(self, name: str, module: str, *arguments: str) -> Part:
        """Start one process."""
        self.parts[name] = part = Part(name, [module, *arguments])
        return part

    def bench_part(self, name: str, program: str = "parts", function: str = "", **arguments: Any) -> Part:
        """Start one of the bench's own processes."""
        return self.part(name, f"simulators.bench.{program}", function or name, json.dumps(arguments))

    def out(self, name: str) -> str:
        """Return the file that a part writes."""
        return str(self.folder / name)

    def go(self, receivers: dict[str, Part], tracker: Part) -> None:
        """Let the tracker send for the lead and the measured time; wait until all have ended."""
        end_ns = time.monotonic_ns() + int((LEAD_S + self.seconds) * 1e9)
        for receiver in receivers.values():
            tell(receiver, end_ns + int(TAIL_S * 1e9))
        tell(tracker, end_ns)

    def latencies(self) -> tuple[Any, Any]:
        """Return (stamps sent in the measured time, latency in ms of each, infinity where none arrived)."""
        sent = np.load(self.out("sent.npy"))
        got = {stamp: arrived for stamp, arrived, *_ in np.load(self.out("meter.npy")).tolist()}
        sent = sent[sent[:, 1] >= sent[0, 1] + int(LEAD_S * 1e9)]
        arrived = [got.get(stamp) for stamp in sent[:, 0].tolist()]
        delays = [np.inf if a is None else (a - s) / 1e6 for a, s in zip(arrived, sent[:, 1].tolist(), strict=True)]
        return sent[:, 0], np.array(delays)

    def stages(self) -> dict[str, float]:
        """Return medians (ms) of the way: from the tracker to the loop, within the loop, to the subscriber.

        All processes read the same monotonic clock.
        """
        sent = dict(np.load(self.out("sent.npy")).tolist())
        rows = [(sent[s], r, o, a) for s, a, r, o in np.load(self.out("meter.npy")).tolist() if s in sent and r]
        steps = np.median(np.diff(np.array(rows)[len(rows) // 4 :], axis=1), axis=0) / 1e6
        return dict(zip(("to_loop_ms", "in_loop_ms", "to_subscriber_ms"), steps.tolist(), strict=True))

    def stop(self) -> None:
        """End all that still runs."""
        for part in self.parts.values():
            part.stop()


def tell(part: Part, end_ns: int) -> None:
    """Send the time at which to end."""
    assert part.process.stdin is not None
    part.process.stdin.write(f"{end_ns}\n")
    part.process.stdin.flush()


@contextlib.contextmanager
def chain(seconds: float) -> Iterator[Chain]:
    """Yield an empty chain; end its processes and remove its files."""
    with tempfile.TemporaryDirectory(prefix="navsrv-bench-") as folder:
        made = Chain(Path(folder), seconds)
        try:
            yield made
        finally:
            made.stop()


def spread(latency_ms: Any) -> dict[str, float]:
    """Return median, tails and maximum (ms) of what arrived, and the share that did."""
    arrived = latency_ms[np.isfinite(latency_ms)]
    if not len(arrived):
        raise DemoFailed("no frame arrived")
    p50, p99, p999 = np.percentile(arrived, (50, 99, 99.9)).tolist()
    share = len(arrived) / len(latency_ms)
    return {"p50_ms": p50, "p99_ms": p99, "p99.9_ms": p999, "max_ms": float(arrived.max()), "delivered": share}


# -- ours ----------------------------------------------------------------------------------------------------------


def ours(
    rate_hz: float, displays: int, seconds: float, stalled_kind: str, config: Path | None = None
) -> dict[str, Any]:
    """Return the figures of the real server, on ``examples/bench.toml`` unless told otherwise."""
    mix = Mix.of(displays)
    stalled = mix.stalled(stalled_kind)
    with chain(seconds) as c:
        tracker = c.bench_part("tracker", rate_hz=rate_hz, out=c.out("sent.npy"))
        port = tracker.wait_for("port", PATIENCE_S)["port"]
        settings: dict[str, Any] = {
            **{f"ports.{name}": 0 for name in ("openigtlink", "devices", "zmq", "commands", "http")},
            "trackers.main.port": port,
            "trackers.main.rate_hz": rate_hz,
            "recording.folder": json.dumps(str(c.folder)),
        }
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        server = c.part("server", "navsrv.server.cli", "serve", str(config or example_path("bench.toml")), *words)
        ports = server.wait_for("ready", 120.0)["ports"]
        tracker.wait_for("linked", PATIENCE_S)
        receivers = {"meter": c.bench_part("meter", port=ports["zmq"], out=c.out("meter.npy"))}
        counts = {"zeromq": mix.zeromq - 1, "websocket": mix.websocket, "openigtlink": mix.openigtlink}
        where = {"zeromq": ports["zmq"], "websocket": ports["http"], "openigtlink": ports["openigtlink"]}
        for name, count in counts.items():
            if count:
                receivers[name] = c.bench_part(
                    name, port=where[name], count=count, stalled=stalled[name], out=c.out(f"{name}.npz")
                )
        for receiver in receivers.values():
            receiver.wait_for("ready", PATIENCE_S)
        usage = LoopUsage(server.process.pid)
        c.go(receivers, tracker)
        time.sleep(LEAD_S)
        usage.begin()
        time.sleep(seconds)
        cpu = usage.end()
        tracker.wait_for("sent", PATIENCE_S)
        seen = receivers["meter"].wait_for("frames", PATIENCE_S)
        for name, receiver in receivers.items():
            if name != "meter":
                receiver.wait_for("displays", PATIENCE_S)
        stamps, latency_ms = c.latencies()
        figures = {**spread(latency_ms), **c.stages(), **cpu, "frame_bytes": seen["bytes"]}
        figures.update({name: seen[name] for name in ("skipped_poses", "missed_deadlines")})
        shares = {name: shares_of(c.out(f"{name}.npz"), stamps) for name in receivers if name != "meter"}
    worst = min([figures["delivered"], *shares.get("zeromq", [])])
    others = {name: min(found, default=None) for name, found in shares.items() if name != "zeromq"}
    return {**figures, "delivered_worst_zeromq": worst, "delivered_worst_other": others, "stalled": stalled}


def shares_of(path: str, stamps: Any) -> list[float]:
    """Return the share of the sent stamps that each display saw."""
    with np.load(path) as held:
        return [float(np.isin(stamps, held[name]).mean()) for name in held.files]


class LoopUsage:
    """CPU time and memory of the server's loop, as the kernel counts them."""

    def __init__(self, server_pid: int) -> None:
        children = Path(f"/proc/{server_pid}/task/{server_pid}/children").read_text().split()
        loops = [p for p in children if b"navsrv.server.loop" in Path(f"/proc/{p}/cmdline").read_bytes()]
        if not loops:
            raise DemoFailed("the server has no loop process")
        self._process = Path(f"/proc/{loops[0]}")
        self._then = (0.0, 0.0)

    def _cpu_s(self) -> float:
        fields = (self._process / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_S

    def begin(self) -> None:
        """Count from here."""
        self._then = (time.monotonic(), self._cpu_s())

    def end(self) -> dict[str, float]:
        """Return the share of one core since ``begin``, and the resident memory now."""
        share = (self._cpu_s() - self._then[1]) / (time.monotonic() - self._then[0])
        resident = int((self._process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return {"loop_cpu": share, "loop_resident_mb": resident / 1e6}


# -- floor and peer ------------------------------------------------------------------------------------------------


def floor(rate_hz: float, subscribers: int, seconds: float, frame_bytes: int) -> dict[str, float]:
    """Return the figures of a process that only reads and publishes: TCP one way, ZeroMQ one way, the same sizes."""
    with chain(seconds) as c:
        tracker = c.bench_part("tracker", rate_hz=rate_hz, out=c.out("sent.npy"))
        relay = c.bench_part("relay", port=tracker.wait_for("port", PATIENCE_S)["port"], payload_bytes=frame_bytes)
        port = relay.wait_for("zmq", PATIENCE_S)["zmq"]
        tracker.wait_for("linked", PATIENCE_S)
        receivers = {"meter": c.bench_part("meter", port=port, out=c.out("meter.npy"))}
        if subscribers > 1:
            receivers["zeromq"] = c.bench_part(
                "zeromq", port=port, count=subscribers - 1, stalled=0, out=c.out("zeromq.npz")
            )
        for receiver in receivers.values():
            receiver.wait_for("ready", PATIENCE_S)
        c.go(receivers, tracker)
        tracker.wait_for("sent", PATIENCE_S + seconds)
        receivers["meter"].wait_for("frames", PATIENCE_S)
        return spread(c.latencies()[1])


def ping_pong(rate_hz: float, seconds: float) -> dict[str, float]:
    """Return round trips (ms) of a tracker's 300 bytes over TCP at a rate."""
    with chain(seconds) as c, socket.create_server(("127.0.0.1", 0)) as listener:
        c.bench_part("echo", port=listener.getsockname()[1])
        link, _ = listener.accept()
        with link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            trips: list[float] = []
            start = time.monotonic()
            while (due := start + len(trips) / rate_hz) < start + seconds:
                time.sleep(max(0.0, due - time.monotonic()))
                begin = time.monotonic_ns()
                link.sendall(bytes(300))
                left = 300
                while left:
                    left -= len(link.recv(left))
                trips.append((time.monotonic_ns() - begin) / 1e6)
    return spread(np.array(trips))


def peer(wait: bool, seconds: float) -> dict[str, float]:
    """Return the figures of the pyigtl, VTK and ZeroMQ chain, reading as documented or by tight polling."""
    with chain(seconds) as c:
        tracker = c.bench_part("tracker", "peer", rate_hz=PEER_HZ, out=c.out("sent.npy"))
        guide = c.bench_part("guide", "peer", port=tracker.wait_for("port", PATIENCE_S)["port"], wait=wait)
        zmq_port = guide.wait_for("zmq", PATIENCE_S)["zmq"]
        tracker.wait_for("linked", PATIENCE_S)
        meter = c.bench_part("meter", port=zmq_port, out=c.out("meter.npy"))
        meter.wait_for("ready", PATIENCE_S)
        c.go({"meter": meter}, tracker)
        tracker.wait_for("sent", PATIENCE_S + seconds)
        meter.wait_for("frames", PATIENCE_S)
        return spread(c.latencies()[1])


# -- the run -------------------------------------------------------------------------------------------------------


def measure(rates: list[float], displays: list[int], seconds: float, stalled: str, with_peer: bool) -> dict[str, Any]:
    """Return all figures."""
    rows: list[dict[str, Any]] = []
    for rate in rates:
        for count in displays:
            row: dict[str, Any] = {"rate_hz": rate, "displays": count, "ours": ours(rate, count, seconds, stalled)}
            subscribers = Mix.of(count).zeromq + 1  # and the hub
            row["floor"] = floor(rate, subscribers, seconds, int(row["ours"]["frame_bytes"]))
            row["ours_over_floor_p50"] = row["ours"]["p50_ms"] / row["floor"]["p50_ms"]
            row["ours_over_floor_p99"] = row["ours"]["p99_ms"] / row["floor"]["p99_ms"]
            rows.append(row)
            note(f"{rate:g} Hz, {count} displays: p50 {row['ours']['p50_ms']:.3f} ms")
    result: dict[str, Any] = {"machine": machine(), "seconds": seconds, "rows": rows}
    result["tcp_round_trip"] = ping_pong(PEER_HZ, min(seconds, 3.0))
    if with_peer:
        result["peer"] = {name: peer(wait, seconds) for name, wait in (("poll", False), ("wait", True))}
        result["peer_over_ours_p50"] = {
            f"{row['rate_hz']:g} Hz, {row['displays']} displays": min(p["p50_ms"] for p in result["peer"].values())
            / row["ours"]["p50_ms"]
            for row in rows
            if row["rate_hz"] == PEER_HZ
        }
    return result


def note(text: str) -> None:
    """Show progress on a terminal; say nothing in a pipe."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


def machine() -> dict[str, Any]:
    """Return what it ran on, and how busy that was."""
    model = "unknown"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def table(result: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    m = result["machine"]
    lines = [
        f"{m['cpu']}, {m['cores']} cores, {m['system']}, Python {m['python']}, load {m['load_before']:.1f} before;"
        f" {result['seconds']:g} s a row",
        "",
        "| rate, displays | p50 | p99 | p99.9 | max ms | delivered (worst ZeroMQ) | others | loop CPU | floor p50, p99"
        " | ours / floor p50, p99 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        o, f = row["ours"], row["floor"]
        others = ", ".join(f"{n} {s:.1%}" for n, s in o["delivered_worst_other"].items() if s is not None)
        lines.append(
            f"| {row['rate_hz']:g} Hz, {row['displays']} | {times(o)} | {o['delivered_worst_zeromq']:.2%} | {others}"
            f" | {o['loop_cpu']:.0%} | {f['p50_ms']:.3f}, {f['p99_ms']:.3f}"
            f" | {row['ours_over_floor_p50']:.1f}, {row['ours_over_floor_p99']:.1f} |"
        )
    for name, p in result.get("peer", {}).items():
        lines.append(f"| peer ({name}) {PEER_HZ:g} Hz, 1 | {times(p)} | {p['delivered']:.1%} | | | | |")
    trip = result["tcp_round_trip"]
    lines += ["", f"A TCP round trip of 300 bytes: p50 {trip['p50_ms']:.3f} ms, p99 {trip['p99_ms']:.3f} ms."]
    return "\n".join(lines)


def times(figures: dict[str, float]) -> str:
    """Return the four times of a row."""
    return " | ".join(f"{figures[key]:.3f}" for key in ("p50_ms", "p99_ms", "p99.9_ms", "max_ms"))


def listed(text: str, convert: Any) -> list[Any]:
    """Return the values of a list with commas."""
    return [convert(word) for word in text.split(",")]


def main(argv: list[str]) -> int:
    """Run from the command line."""
    parser = Parser("bench latency", __doc__ or "", "navsrv bench latency --rates 250 --displays 1,50 --seconds 5")
    rate, count = number(1.0, 5000.0, "Hz"), whole(1, 200)
    parser.add_argument("--rates", type=lambda t: listed(t, rate), default=[60.0, 250.0, 1000.0], metavar="HZ,...")
    parser.add_argument("--displays", type=lambda t: listed(t, count), default=[1, 10, 50], metavar="N,...")
    parser.add_argument("--seconds", type=number(0.5, 3600.0, "s"), default=5.0, help="measured time of a row (5)")
    parser.add_argument("--stalled", choices=("zeromq", "websocket", "openigtlink"), default="websocket")
    parser.add_argument("--no-peer", action="store_true", help="leave the peer chain out")
    parser.add_argument("--repeat", type=whole(1, 100), default=1, help="take the run with the median p50 of so many")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    args = parser.parse_args(argv)
    try:
        runs = [
            measure(args.rates, args.displays, args.seconds, args.stalled, not args.no_peer) for _ in range(args.repeat)
        ]
    except DemoFailed as error:
        raise InputError(str(error)) from None
    middle = statistics.median_low([sum(row["ours"]["p50_ms"] for row in run["rows"]) for run in runs])
    result = next(run for run in runs if sum(row["ours"]["p50_ms"] for row in run["rows"]) == middle)
    print(json.dumps(result) if args.json else table(result))
    return 0
