"""``navsrv campaign``: thousands of insertions in virtual time, run as a program of their own."""

from __future__ import annotations

import argparse

from navsrv.server.commands.simulate import become


def run(args: argparse.Namespace) -> int:
    """Become the campaign."""
    become(["campaign", *args.rest])
