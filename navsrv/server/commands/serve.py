"""``navsrv serve``: run the server until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import logging
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add ``serve``."""
    parser = subparsers.add_parser(
        "serve", help="the server", epilog="example: navsrv serve examples/demo.toml --set ports.http=0"
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="key=value")
    parser.add_argument("--verbose", action="store_true", help="log what happens to standard error")


def run(args: argparse.Namespace) -> int:
    """Serve; print one JSON line once ready."""
    from navsrv.anatomy.case import Case
    from navsrv.server.config import load_config
    from navsrv.server.fetching import ensure_case
    from navsrv.server.progress import terminal_progress
    from navsrv.server.session import serve

    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING, format="%(asctime)s %(name)s %(message)s"
    )
    config = load_config(args.config, args.overrides)
    with terminal_progress() as progress:
        folder = ensure_case(config.server.case, progress)
    return asyncio.run(serve(config, Case.load(folder)))
