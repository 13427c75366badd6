"""Owns the newest poses: pairing of tool and reference, their ages, and what follows for the state."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np

from devices.health import Freshness
from navsrv.guidance.alarms import Condition
from navsrv.kernel.frames import Array
from navsrv.kernel.samples import PoseSample
from navsrv.pipeline.pose_memory import PoseMemory
from navsrv.pipeline.setup import SourceSetup

HELD_UP_NS: Final = 5_000_000
"""A delay beyond the usual that is worth saying."""
SPEED_WINDOW_NS: Final = 200_000_000
"""Speeds are means over this time, or over two periods of a slow source."""
SHORTEST_NS: Final = 20_000_000
"""Two poses nearer in time than this say more about noise than about speed."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How one thing that a frame depends on stands: its state, why, and the alarm that says so, if one does."""

    state: str
    reason: str
    condition: Condition | None = None
    subject: str | None = None


GOOD: Final = Standing("OK", "")


@dataclass(slots=True)
class PoseLink:
    """One stream of poses (a tool or the reference): its newest sample and a history of valid ones.

    Attributes
    ----------
    label : str
        What operators call it.
    lost_condition : Condition
        The alarm of this stream's loss.
    """

    label: str
    source: SourceSetup
    lost_condition: Condition
    history: deque[PoseSample]
    last: PoseSample | None = None
    link_down: str | None = "not connected yet"
    identical: int = 0
    """Poses that were those of before to the last bit, under new stamps, since the start."""
    same_since_ns: int = 0
    memory: PoseMemory | None = None
    """Of a body that images are held against."""

    def connect(self) -> None:
        """Begin anew: poses of an earlier connection pair with none of this one, their clocks may differ."""
        self.link_down, self.last = None, None
        self.history.clear()
        if self.memory is not None:
            self.memory.clear()

    def disconnect(self, reason: str) -> None:
        """Forget the newest pose; the history still answers for exposures of before."""
        self.link_down, self.last = reason, None

    def add(self, sample: PoseSample) -> None:
        """Take a sample; the newest wins."""
        before, self.last = self.last, sample
        if before is not None and before.pose is not None and _repeats(sample, before):
            self.identical += 1
        else:
            self.same_since_ns = sample.received_ns
        if sample.pose is not None:
            self.history.append(sample)
        if self.memory is not None:
            time_ns = sample.pose_time_ns - sample.latency_ns
            if sample.pose is None:
                self.memory.lose(time_ns)
            else:
                self.memory.add(time_ns, sample.pose, sample.unknown_ns)

    def judge(self, now_ns: int) -> Standing:
        """Return how this link alone stands at ``now_ns``."""
        name = self.source.spec.name
        if self.link_down is not None:
            reason = f"{self.label}: source {name} is down: {self.link_down}"
            return Standing("LOST", reason, Condition.LINK_DOWN, name)
        if self.last is None:
            return Standing("LOST", f"{self.label} has not been seen yet", self.lost_condition, self.label)
        if self.last.pose is None:
            return Standing("LOST", self.last.reason, self.lost_condition, self.label)
        age_ns = now_ns - self.last.due_ns
        freshness = self.source.rule.judge(age_ns)
        same_ns = self.last.received_ns - self.same_since_ns
        if freshness < Freshness.STALE and self.source.rule.is_frozen(same_ns):
            reason = f"{self.label}: one pose to the last bit for {same_ns / 1e6:.0f} ms: the tracker may be frozen"
            return Standing("STALE", reason, Condition.SOURCE_STALE, self.label)
        if freshness is Freshness.FRESH:
            return GOOD
        held_up = f", held up by {self.last.late_ns / 1e6:.0f} ms" if self.last.late_ns > HELD_UP_NS else ""
        reason = f"{self.label}: the newest pose is {age_ns / 1e6:.0f} ms old{held_up}"
        if freshness is Freshness.DEGRADED:
            return Standing("DEGRADED", reason)
        if freshness is Freshness.STALE:
            return Standing("STALE", reason, Condition.SOURCE_STALE, self.label)
        return Standing("LOST", reason, self.lost_condition, self.label)

    def next_change_ns(self, after_ns: int) -> int | None:
        """Return when the judgement gets worse by itself next, counted from a judgement at ``after_ns``."""
        if self.last is None or self.last.pose is None or self.link_down is not None:
            return None
        age = self.source.rule.next_change_ns(after_ns - self.last.due_ns)
        return None if age is None else self.last.due_ns + age

    def paired_with(self, tool: PoseSample, tool_source: str) -> PoseSample | None:
        """Return the reference pose for a tool's pose: the one of the same device stamp, else the newest; None if lost.

        Stamps of two sources come from two clocks: they are not compared.
        """
        if tool.device_time_ns is not None and tool_source == self.source.spec.name:
            for sample in reversed(self.history):
                if sample.device_time_ns == tool.device_time_ns:
                    return sample
                if sample.device_time_ns is None or sample.device_time_ns < tool.device_time_ns:
                    break
        return self.last if self.last is not None and self.last.pose is not None else None

    def skew_s(self, tool: PoseSample, tool_source: str, reference: PoseSample) -> float:
        """Return the time (s) between the poses of a pair: by stamps of one clock, else by when they were due."""
        if tool_source == self.source.spec.name and None not in (tool.device_time_ns, reference.device_time_ns):
            return abs(tool.pose_time_ns - reference.pose_time_ns) / 1e9
        return abs(tool.taken_ns - reference.taken_ns) / 1e9

    def speed_mm_s(self, point_mm: Array) -> float:
        """Return the mean speed (mm/s), in the tracker, of a point (3,) fixed to the body, from the newest poses.

        0 while fewer than two poses are known.
        """
        if not self.history:
            return 0.0
        newest = self.history[-1]
        window_ns = max(SPEED_WINDOW_NS, 2e9 / self.source.spec.rate_hz)
        oldest, elapsed_ns = newest, 0
        for sample in reversed(self.history):
            back_ns = newest.pose_time_ns - sample.pose_time_ns
            if sample.stamp_source != newest.stamp_source or not elapsed_ns <= back_ns <= window_ns:
                break
            oldest, elapsed_ns = sample, back_ns
        if elapsed_ns < SHORTEST_NS or newest.pose is None or oldest.pose is None:
            return 0.0
        way = newest.pose.apply(point_mm) - oldest.pose.apply(point_mm)
        return float(np.linalg.norm(way)) / (elapsed_ns / 1e9)


def _repeats(sample: PoseSample, before: PoseSample) -> bool:
    """Say whether a pose is that of before to the last bit; noise tells at the first number."""
    one, other = sample.pose, before.pose
    if one is None or other is None or one.translation_mm[0] != other.translation_mm[0]:
        return False
    return bool((one.translation_mm == other.translation_mm).all() and (one.rotation == other.rotation).all())
