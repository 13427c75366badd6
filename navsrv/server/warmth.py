"""Owns keeping the path of a pose warm while nothing arrives.

A step that takes 180 us in a tight loop takes 300 to 400 us when the loop slept for 4 ms before it, in all its parts
alike: meanwhile others used its core, and its code and data have left the caches (docs/latency.md).  So shortly before
a pose is expected, the last one is run once more through a pipeline of its own, over the same distance structures.
What it says is thrown away: the live pipeline knows nothing of it, and replay neither.
"""

from __future__ import annotations

import time
from typing import Final

from navsrv.pipeline.inputs import BytesIn, CommandIn, Input, LinkDown, LinkUp, RegistrationIn
from navsrv.pipeline.pipeline import Pipeline
from navsrv.wire.guidance import GuidanceFrame, encode_frame

NEVER_NS: Final = 1 << 62
LEAD_NS: Final = 500_000
"""A rehearsal begins this long before the next pose is due; it takes 0.2 to 0.35 ms."""
SHORTEST_NS: Final = 2_500_000
"""Poses that follow one another faster than this keep the path warm themselves."""
LONGEST_NS: Final = 100_000_000
"""After a longer gap nobody can say when the next pose comes."""
MAX_BYTES: Final = 4096


class Rehearsal:
    """Runs the newest bytes again, at a time when the next are due soon."""

    def __init__(self, live: Pipeline) -> None:
        self._pipeline = Pipeline(live.setup, live.engine)
        self._newest: dict[str, bytes] = {}
        self._arrived_ns: dict[str, int] = {}
        self.due_ns = NEVER_NS
        """When to call ``run``."""

    def follow(self, item: Input) -> None:
        """Take note of an input that the live pipeline has had."""
        match item:
            case BytesIn():
                self._arrived(item)
            case CommandIn() | RegistrationIn():
                self._pipeline.handle(item)
            case LinkDown():
                self._newest.pop(item.source, None)
                self.due_ns = NEVER_NS
            case _:
                self.due_ns = NEVER_NS

    def _arrived(self, item: BytesIn) -> None:
        period_ns = item.received_ns - self._arrived_ns.get(item.source, 0)
        self._arrived_ns[item.source] = item.received_ns
        self._newest[item.source] = item.data
        wanted = SHORTEST_NS <= period_ns <= LONGEST_NS and len(item.data) <= MAX_BYTES
        self.due_ns = item.received_ns + period_ns - LEAD_NS if wanted else NEVER_NS

    def run(self) -> None:
        """Rehearse once; the next time is set by the next bytes."""
        self.due_ns = NEVER_NS
        now_ns, wall_ns = time.monotonic_ns(), time.time_ns()
        for source, data in self._newest.items():
            self._pipeline.handle(LinkUp(now_ns, source))  # else its stamps would be repeated ones
            for output in self._pipeline.handle(BytesIn(source, now_ns, wall_ns, data)):
                if isinstance(output, GuidanceFrame):
                    encode_frame(output)
