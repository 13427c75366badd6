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
    """Check; silent faults do not exist: ConfigError lists them all.

    A built-in case that has not been made yet is not made here; that its structures fit is then said to be open.
    """
    from navsrv.anatomy.builtin import built_case
    from navsrv.anatomy.case import Case
    from navsrv.server.config import load_config, resolved
    from navsrv.server.setup import check_structures

    config = resolved(load_config(args.config, args.overrides))
    folder = built_case(config.server.case)
    if folder is None:
        said = f"{config.server.case} (made on first use; its structures are checked then)"
    else:
        case = Case.load(folder)
        check_structures(config, case)
        said = f"{case.name} ({len(case.structures)} structures)"
    print(f"{args.config}: ok; case {said}, {len(config.trackers)} trackers, {len(config.tools)} tools")
    return 0
