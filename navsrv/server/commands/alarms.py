"""``navsrv alarms``: the alarm table, as a page or as cells."""

from __future__ import annotations

import argparse
import json
from typing import Any

from navsrv.guidance.alarm_page import alarm_cells, alarm_page


def add_parser(subparsers: Any) -> None:
    """Add ``alarms``."""
    parser = subparsers.add_parser("alarms", help="the alarm table", epilog="example: navsrv alarms --json")
    parser.add_argument("--json", action="store_true", help="every cell (condition, phase, event) for programs")


def run(args: argparse.Namespace) -> int:
    """Print the table that this version runs."""
    print(json.dumps(alarm_cells(), indent=1) if args.json else alarm_page(), end="\n" if args.json else "")
    return 0
