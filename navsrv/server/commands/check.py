"""``navsrv check``: every fault of a configuration at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add ``check``."""
    parser = subparsers.add_parser(
        "check", help="every fault of a configuration at once", epilog="example: navsrv check examples/demo.toml"
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="key=value")


def run(args: argparse.Namespace) -> int:
    """Check; silent faults do not exist: ConfigError lists them all."""
    from navsrv.server.config import load_config

    config = load_config(args.config, args.overrides)
    print(f"{args.config}: ok; case {config.server.case}, {len(config.trackers)} trackers, {len(config.tools)} tools")
    return 0
