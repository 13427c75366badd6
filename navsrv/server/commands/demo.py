"""``navsrv demo``: the whole job on simulators, which are programs of their own."""

from __future__ import annotations

import argparse
import time

from navsrv.server.commands.simulate import become


def run(args: argparse.Namespace) -> int:
    """Make the case, with progress, and become the demo."""
    from navsrv.server.fetching import ensure_case
    from navsrv.server.progress import terminal_progress

    started = time.monotonic()
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--case", default="sacrum")
    chosen, rest = own.parse_known_args(args.rest)
    if "-h" in rest or "--help" in rest:
        become(["demo", "--help"])
    with terminal_progress() as progress:
        folder = ensure_case(chosen.case, progress)
    become(["demo", "--case", str(folder), "--started", f"{started:.3f}", *rest])
