"""Owns how work is handed to somebody beside: the caller says who, since this room starts no threads of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Aside = Callable[[Callable[[], Any]], Callable[[], Any]]
"""Begins a job elsewhere and returns what waits for its answer: ``lambda job: pool.submit(job).result``, say."""


def begun(aside: Aside | None, job: Callable[[], T]) -> Callable[[], T]:
    """Return what gives the answer of a job: begun aside, or with nobody there, done when it is asked for."""
    return job if aside is None else aside(job)
