"""Owns the command ``navsrv``: which commands there are, and how bad input is answered.

Modules of a command are imported when it runs, so that ``--help`` is quick and a display's machine needs no solver.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

from navsrv.kernel.errors import CalibrationError, ConfigError, InputError, RegistrationError

COMMANDS: Final = {
    "demo": "the whole job on simulators over real sockets",
    "serve": "the server",
    "check": "every fault of a configuration at once",
    "case": "build, show, export or fetch a case",
    "register": "register landmarks or a volume, offline on files",
    "calibrate": "calibrate from recorded poses, offline on files",
    "replay": "a recording's input through the same code",
    "simulate": "stand-alone simulators for any client",
    "campaign": "thousands of simulated insertions, judged against the truth",
    "bench": "what the server costs, with a peer and a floor beside it",
    "alarms": "the alarm table that this version runs",
    "doctor": "what this machine can do",
}
"""Each lives in ``navsrv.server.commands.<name>`` with ``add_parser(subparsers)`` (but for those passed on) and
``run(args) -> int``."""

PASSED_ON: Final = ("demo", "simulate", "campaign", "bench")
"""Their arguments belong to ``python -m simulators``, a program of its own."""

BAD_INPUT: Final = 2


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Exit with 2 after one line."""
        raise InputError(f"{self.prog}: {message}; see {self.prog} --help")


def build_parser(wanted: str | None) -> argparse.ArgumentParser:
    """Return the parser; only the wanted command's module is imported, the others are one line of help each."""
    parser = _Parser(
        prog="navsrv",
        description="Navigation and guidance server for procedures in sacrum, pelvis and spine."
        " Research software, not a medical device.",
        epilog="example: navsrv demo --headless --json",
    )
    parser.add_argument("--version", action="version", version=f"navsrv {version('navsrv')}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        if name == wanted and name not in PASSED_ON:
            importlib.import_module(f"navsrv.server.commands.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; bad input of any kind is one clear line and status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    wanted = next((a for a in arguments if not a.startswith("-")), None)
    try:
        if wanted in PASSED_ON:
            rest = arguments[arguments.index(wanted) + 1 :]
            args = argparse.Namespace(command=wanted, rest=rest)
        else:
            args = build_parser(wanted).parse_args(arguments)
        status: int = importlib.import_module(f"navsrv.server.commands.{args.command}").run(args)
    except ConfigError as error:
        for fault in error.faults:
            print(f"navsrv: {fault}", file=sys.stderr)
        return BAD_INPUT
    except (InputError, CalibrationError, RegistrationError) as error:
        print(f"navsrv: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


if __name__ == "__main__":
    sys.exit(main())
