"""``navsrv bench``: measurements from outside; they run as a program of their own, as the simulators do."""

from __future__ import annotations

import argparse

from navsrv.server.commands.simulate import become


def run(args: argparse.Namespace) -> int:
    """Become the measurement; make the case first, with progress, where the server will need it."""
    if args.rest[:1] == ["latency"] and not {"-h", "--help"} & set(args.rest):
        from navsrv.server.fetching import ensure_case
        from navsrv.server.progress import terminal_progress

        with terminal_progress() as progress:
            ensure_case("bench", progress)
    become(["bench", *args.rest])
