"""Owns what the simulators' command lines share: one clear line and exit 2 on bad input, and the room's arguments."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from typing import Final, NoReturn

from navsrv.anatomy.builtin import ensure_case
from navsrv.anatomy.case import Case, Plan
from navsrv.kernel.errors import InputError
from simulators.world.scene import Breathing


class Parser(argparse.ArgumentParser):
    """An argument parser that complains in one line."""

    def __init__(self, name: str, description: str, example: str) -> None:
        super().__init__(
            prog=f"navsrv simulate {name}",
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        print(f"{self.prog}: {message} (see --help)", file=sys.stderr)
        raise SystemExit(2)


def number(low: float, high: float, unit: str = "") -> Callable[[str], float]:
    """Return a converter of an argument to a float within ``low`` to ``high``, both allowed."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text}: expected a number from {low:g} to {high:g} {unit}".rstrip())
        return value

    return convert


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return a converter of an argument to an int within ``low`` to ``high``, both allowed."""

    def convert(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number from {low} to {high}")
        return int(text)

    return convert


CASE: Final = "sacrum, thoracolumbar, or a case folder"
"""What ``--case`` takes."""


def add_room(parser: Parser) -> None:
    """Add the arguments that decide the room, the same for every simulator of one room."""
    parser.add_argument("--case", required=True, type=ensure_case, metavar="CASE", help=CASE)
    parser.add_argument(
        "--seed", type=whole(0, 2**63), default=0, help="decides the whole room; the same for each simulator (0)"
    )
    parser.add_argument(
        "--breathing-mm", type=number(0.0, 50.0, "mm"), default=0.0, help="rise of the back while breathing (0: none)"
    )


def add_server(parser: Parser) -> None:
    """Add the address that a simulator pushes to."""
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="where to push (the devices port)")


def add_dicom(parser: Parser, called: str, calling: str) -> None:
    """Add where a simulator's images go by DICOM as well."""
    parser.add_argument("--dicom", metavar="HOST:PORT", help="send each image by C-STORE too (not sent)")
    parser.add_argument("--aet", default=called, metavar="TITLE", help=f"AE title that is called ({called})")
    parser.add_argument("--calling-aet", default=calling, metavar="TITLE", help=f"AE title of the caller ({calling})")


def breathing_of(args: argparse.Namespace) -> Breathing | None:
    """Return the breathing that the arguments ask for."""
    return Breathing(args.breathing_mm) if args.breathing_mm > 0.0 else None


def plan_of(case: Case) -> Plan:
    """Return the plan of a case; InputError when it has none."""
    if case.plan is None:
        raise InputError(f"{case.folder}: the case has no plan; simulators need its entry and target")
    return case.plan
