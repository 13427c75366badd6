"""``navsrv doctor``: what this machine can do, one line each."""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import socket
from collections.abc import Iterator
from typing import Any

from navsrv.server.config_tables import PortsConfig


def add_parser(subparsers: Any) -> None:
    """Add ``doctor``."""
    subparsers.add_parser("doctor", help="what this machine can do", epilog="example: navsrv doctor")


def run(args: argparse.Namespace) -> int:
    """Print one line for each ability; nothing here is required to run."""
    for name, word, text in findings():
        print(f"{name:<20} {word:<8} {text}")
    return 0


def findings() -> Iterator[tuple[str, str, str]]:
    """Yield (what, yes | no | busy, words)."""
    yield "python", "yes", f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores"
    yield _real_time()
    yield _memory_lock()
    yield _affinity()
    free = shutil.disk_usage(os.path.expanduser("~")).free / 2**30
    yield "disk", "yes" if free > 5 else "no", f"{free:.0f} GiB free for recordings; 5 or more are wanted"
    gpu = os.path.exists("/dev/nvidia0")
    yield (
        "gpu",
        "yes" if gpu else "no",
        "NVIDIA device present" if gpu else "no NVIDIA device; everything runs on the CPU",
    )
    ports = PortsConfig()
    for name in ("openigtlink", "devices", "zmq", "commands", "http"):
        yield _port(name, ports.host, getattr(ports, name))


def _real_time() -> tuple[str, str, str]:
    limit = resource.getrlimit(resource.RLIMIT_RTPRIO)[0]
    able = os.geteuid() == 0 or limit > 0
    return "real-time priority", "yes" if able else "no", "SCHED_FIFO may be set" if able else "RLIMIT_RTPRIO is 0"


def _memory_lock() -> tuple[str, str, str]:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    able = os.geteuid() == 0 or limit == resource.RLIM_INFINITY
    return "memory locking", "yes" if able else "no", "mlockall may be called" if able else f"limit is {limit} bytes"


def _affinity() -> tuple[str, str, str]:
    if not hasattr(os, "sched_getaffinity"):
        return "cpu affinity", "no", "this system has no call for it"
    cores = sorted(os.sched_getaffinity(0))
    return "cpu affinity", "yes", f"server.loop_cpu may be one of {', '.join(map(str, cores))}"


def _port(name: str, host: str, port: int) -> tuple[str, str, str]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return f"port {name}", "busy", f"{host}:{port}: {error.strerror}"
    return f"port {name}", "yes", f"{host}:{port} is free"
