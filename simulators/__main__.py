"""Owns ``python -m simulators NAME``: each simulator is a process of its own, for this server or any other client."""

from __future__ import annotations

import importlib
import sys
from typing import Final

from navsrv.kernel.errors import InputError

NAMES: Final = {
    "tracker": "an optical tracker with needle and reference, as PLUS would serve it over OpenIGTLink",
    "ndi": "an NDI tracker on a pseudo-terminal or TCP, by the Combined API",
    "carm": "a C-arm that pushes its pose and X-ray images",
    "encoders": "the encoders of a C-arm on a pseudo-terminal",
    "thermometer": "temperature probes that push OpenIGTLink SENSOR",
    "oarm": "an O-arm that pushes its volume's pose and a volume",
    "video": "a C-arm's console with a video output, for frame grabbers",
    "demo": "the whole room at once",
    "scenario": "a story with faults, judged (navsrv simulate SCENARIO.toml)",
    "campaign": "thousands of insertions with sampled parameters, in virtual time (navsrv campaign)",
    "bench": "measurements of the server from outside (navsrv bench)",
}
HELP: Final = (
    "usage: python -m simulators NAME [options]\n\n"
    + "".join(f"  {name:13}{what}\n" for name, what in NAMES.items())
    + "\nexample:\n  python -m simulators tracker --help"
)


def main(argv: list[str]) -> int:
    """Run one simulator; return the exit status."""
    if argv and argv[0].endswith(".toml"):
        argv = ["scenario", *argv]
    if not argv or argv[0] not in NAMES:
        if argv and argv[0] in ("-h", "--help"):
            print(HELP)
            return 0
        asked = f"{argv[0]!r} is none" if argv else "which simulator?"
        print(f"python -m simulators: {asked}; expected one of {', '.join(NAMES)} (see --help)", file=sys.stderr)
        return 2
    # Only the one that runs is imported: a tracker need not wait for the compiler of X-rays.
    module = importlib.import_module(f"simulators.{argv[0]}")
    try:
        return int(module.main(argv[1:]))
    except InputError as e:
        print(f"navsrv {said(argv[0])}: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


def said(name: str) -> str:
    """Return how a simulator is called by those who use ``navsrv``."""
    return name if name in ("campaign", "bench") else "simulate" if name == "scenario" else f"simulate {name}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
