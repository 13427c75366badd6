"""``navsrv simulate``: stand-alone simulators for any client; they run as a program of their own."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, NoReturn


def add_parser(subparsers: Any) -> None:
    """Add ``simulate``; its arguments belong to ``python -m simulators``."""
    parser = subparsers.add_parser(
        "simulate",
        help="stand-alone simulators for any client",
        epilog="example: navsrv simulate tracker --case sacrum --port 18944",
        add_help=False,
    )
    parser.add_argument("rest", nargs=argparse.REMAINDER)


def run(args: argparse.Namespace) -> int:
    """Become the simulator."""
    become(args.rest)


def become(arguments: list[str]) -> NoReturn:
    """Replace this process by ``python -m simulators``: the server's packages never import simulators."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "simulators", *arguments])
