"""Owns virtual time: a shell around the real pipeline that never waits.

It does what the server's loop does, with the clock as a number: bytes go in when they are due, a ``Tick`` whenever the
pipeline asks for one before that, a link that the pipeline ends is lost and connected to anew after the loop's backoff.
Refuses to decide anything: frames, alarms and states come from ``navsrv.pipeline`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from navsrv.pipeline.inputs import BytesIn, EndLink, Input, LinkDown, LinkUp, Tick, input_time_ns
from navsrv.pipeline.pipeline import Output, Pipeline

RETRY_NS: Final = 200_000_000
"""The loop's first pause before it connects again."""
LAST_RETRY_NS: Final = 2_000_000_000
NEVER_NS: Final = 1 << 62

Sink = Callable[[Input, Sequence[Output]], None]
"""Takes each input with what came of it, in order."""


@dataclass(slots=True)
class _Link:
    """One source as the shell sees it: connected or not, and when it tries again."""

    up: bool = False
    retry_ns: int | None = None
    pause_ns: int = RETRY_NS


@dataclass(slots=True)
class VirtualShell:
    """Drives one pipeline; inputs must come in the order of their times.

    Attributes
    ----------
    sink : callable
    ended : list of EndLink
        Links that the pipeline ended because their peer broke the protocol.
    away : mapping
        By source, (begin, end) of the times at which attempts to connect are refused.
    """

    pipeline: Pipeline
    sink: Sink
    ended: list[EndLink] = field(default_factory=list)
    away: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    _links: dict[str, _Link] = field(default_factory=dict)
    _next_retry: tuple[int, str] = (NEVER_NS, "")
    _now_ns: int = 0

    def run(self, inputs: Iterable[Input], until_ns: int | None = None) -> None:
        """Give every input at its time, and the ticks between; then let time pass until ``until_ns``."""
        for item in inputs:
            at_ns = input_time_ns(item)
            self._pass_time(at_ns)
            match item:
                case BytesIn():
                    link = self._links.get(item.source)
                    if link is None or not link.up:
                        continue
                    link.pause_ns = RETRY_NS
                    self._give(item)
                case LinkUp():
                    self._connect(item.source, item.now_ns)
                case LinkDown():
                    self._lose(item.source, item.now_ns, item.reason)
                case _:
                    self._give(item)
        if until_ns is not None:
            self._pass_time(until_ns)

    def _link(self, source: str) -> _Link:
        return self._links.setdefault(source, _Link())

    def _pass_time(self, until_ns: int) -> None:
        """Give the ticks, and make the attempts to connect, that are due before a time."""
        while True:
            due = self.pipeline.next_due_ns()
            retry_ns, source = self._next_retry
            if retry_ns < min(due, until_ns):
                self._attempt(source, retry_ns)
            elif due < until_ns:
                self._give(Tick(max(due, self._now_ns)))
            else:
                return

    def _attempt(self, source: str, at_ns: int) -> None:
        link = self._link(source)
        if not any(begin <= at_ns < end for begin, end in self.away.get(source, ())):
            self._connect(source, at_ns)
            return
        link.pause_ns = min(2 * link.pause_ns, LAST_RETRY_NS)
        link.retry_ns = at_ns + link.pause_ns
        self._plan_retry()
        self._give(LinkDown(at_ns, source, "cannot connect: Connection refused"))

    def _connect(self, source: str, at_ns: int) -> None:
        link = self._link(source)
        if not link.up:
            link.up, link.retry_ns = True, None
            self._plan_retry()
            self._give(LinkUp(at_ns, source))

    def _lose(self, source: str, at_ns: int, reason: str) -> None:
        link = self._link(source)
        link.up, link.retry_ns = False, at_ns + link.pause_ns
        self._plan_retry()
        self._give(LinkDown(at_ns, source, reason))

    def _plan_retry(self) -> None:
        waiting = [(link.retry_ns, name) for name, link in self._links.items() if link.retry_ns is not None]
        self._next_retry = min(waiting, default=(NEVER_NS, ""))

    def _give(self, item: Input) -> None:
        self._now_ns = input_time_ns(item)
        outputs = self.pipeline.handle(item)
        self.sink(item, outputs)
        for output in outputs:
            if isinstance(output, EndLink):
                self.ended.append(output)
                self._lose(output.source, self._now_ns, f"protocol: {output.reason}")
