"""``navsrv simulate``: stand-alone simulators for any client; they run as a program of their own."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn


def run(args: argparse.Namespace) -> int:
    """Become the simulator."""
    become(args.rest)


def become(arguments: list[str]) -> NoReturn:
    """Replace this process by ``python -m simulators``: the server's packages never import simulators."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "simulators", *arguments])
