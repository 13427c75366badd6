"""Owns ``navsrv bench``: what the server and its compiled parts cost, beside a peer and a floor in the same run.

It stands among the simulators and not in the server because it is an outsider: it drives the real server over its
sockets as a tracker and as displays do, and shares the wire's codec with it and nothing else.
"""

from __future__ import annotations

import importlib
import sys
from typing import Final

NAMES: Final = {
    "latency": "from a tracker's send to a frame's arrival, through the real server, with displays",
    "distance": "one step of tip and shaft against six structures",
    "drr": "one DRR of vertebrae with its derivatives, beside RTK and plastimatch",
    "register": "registration by X-rays and by a cone-beam volume, beside SimpleITK",
    "trackers": "what a simulated tracker costs",
    "imagers": "what a simulated X-ray and a simulated O-arm volume cost",
    "insertion": "what an insertion of 60 s costs in virtual time",
}


def main(argv: list[str]) -> int:
    """Run one measurement; return the exit status."""
    if argv and argv[0] in NAMES:
        return int(importlib.import_module(f"simulators.bench.{argv[0]}").main(argv[1:]))
    usage = "usage: navsrv bench NAME [options]\n\n" + "".join(f"  {n:10}{what}\n" for n, what in NAMES.items())
    if argv and argv[0] in ("-h", "--help"):
        print(f"{usage}\nexample:\n  navsrv bench latency --rates 250 --displays 1 --seconds 3")
        return 0
    asked = f"{argv[0]!r} is none" if argv else "which measurement?"
    print(f"navsrv bench: {asked}; expected one of {', '.join(NAMES)} (see --help)", file=sys.stderr)
    return 2
