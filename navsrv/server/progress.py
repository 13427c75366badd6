"""Owns progress on a terminal: one line on standard error that is written over; silent in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TextIO

from navsrv.anatomy.build import Progress, silent

WIDTH: Final = 78
CLEAR: Final = "\r\x1b[K"


@contextmanager
def terminal_progress(stream: TextIO | None = None) -> Iterator[Progress]:
    """Yield a progress that rewrites one line of ``stream`` (standard error) if it is a terminal, else a silent one."""
    out = sys.stderr if stream is None else stream
    if not out.isatty():
        yield silent
        return

    def show(text: str, fraction: float) -> None:
        line = f"{min(max(fraction, 0.0), 1.0):4.0%}  {text}"
        out.write(CLEAR + (line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."))
        out.flush()

    try:
        yield show
    finally:
        # Whatever comes next, an error's one line as well, begins on a clean line.
        out.write(CLEAR)
        out.flush()
