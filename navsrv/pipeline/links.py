"""Owns the newest poses: pairing of tool and reference, their ages, and what follows for the state."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from devices.health import Freshness
from navsrv.kernel.samples import PoseSample, Tracking
from navsrv.pipeline.setup import SourceSetup

_STATE_OF = {
    Freshness.DEGRADED: "DEGRADED",
    Freshness.STALE: "STALE",
    Freshness.LOST: "LOST",
}


@dataclass(slots=True)
class PoseLink:
    """One stream of poses (a tool or the reference): its newest sample and a short history of valid ones."""

    label: str
    source: SourceSetup
    history: deque[PoseSample]
    last: PoseSample | None = None
    link_down: str | None = "not connected yet"
    lost_since_ns: int | None = field(default=None)

    def add(self, sample: PoseSample) -> None:
        """Take a sample; the newest wins."""
        self.last = sample
        if sample.pose is not None:
            self.history.append(sample)

    def judge(self, now_ns: int) -> tuple[str, str]:
        """Return (state, reason) of this link alone at ``now_ns``."""
        if self.link_down is not None:
            return "LOST", f"{self.label}: source {self.source.spec.name} is down: {self.link_down}"
        if self.last is None:
            return "LOST", f"{self.label} has not been seen yet"
        if self.last.pose is None:
            return "LOST", self.last.reason
        age_ns = now_ns - self.last.received_ns
        freshness = self.source.rule.judge(age_ns)
        if freshness is Freshness.FRESH:
            return "OK", ""
        return _STATE_OF[freshness], f"{self.label}: no pose for {age_ns / 1e6:.0f} ms"

    def next_change_ns(self, after_ns: int) -> int | None:
        """Return when the judgement gets worse by itself next, counted from a judgement at ``after_ns``."""
        if self.last is None or self.last.pose is None or self.link_down is not None:
            return None
        age = self.source.rule.next_change_ns(after_ns - self.last.received_ns)
        return None if age is None else self.last.received_ns + age

    def paired_with(self, tool: PoseSample) -> PoseSample | None:
        """Return the reference pose for a tool's pose: the one of the same device stamp, else the newest."""
        if tool.device_time_ns is not None:
            for sample in reversed(self.history):
                if sample.device_time_ns == tool.device_time_ns:
                    return sample
                if sample.device_time_ns is None or sample.device_time_ns < tool.device_time_ns:
                    break
        return self.last if self.last is not None and self.last.tracking is Tracking.OK else None


def skew_s(tool: PoseSample, reference: PoseSample) -> float:
    """Return the time (s) between the two poses of a pair: by device stamps where both have one, else by receipt."""
    if tool.device_time_ns is not None and reference.device_time_ns is not None:
        return abs(tool.device_time_ns - reference.device_time_ns) / 1e9
    return abs(tool.received_ns - reference.received_ns) / 1e9
