"""Owns freshness: one rule, from the declared rate, for real and simulated sources alike."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Freshness(IntEnum):
    """How old a pose is, against what its source declared; higher is worse."""

    FRESH = 0
    DEGRADED = 1
    STALE = 2
    LOST = 3


@dataclass(frozen=True, slots=True)
class FreshnessRule:
    """Ages (ns) beyond which a pose is degraded, stale, lost.

    ``for_rate`` gives the contract's defaults: 2 periods; 100 ms or 3 periods, whichever is longer; 500 ms
    (never below stale).

    ``frozen_ns``: a pose that repeats to the last bit for longer than this under new stamps is as stale, for the noise
    of a real tracker never does that; None for a source that has no noise, or may round it away.
    """

    degraded_ns: int
    stale_ns: int
    lost_ns: int
    frozen_ns: int | None = None

    @classmethod
    def for_rate(
        cls, rate_hz: float, stale_ms: float = 100.0, lost_ms: float = 500.0, degraded_periods: float = 2.0
    ) -> FreshnessRule:
        """Return the rule of a source that declares ``rate_hz`` poses per second."""
        period_ns = 1e9 / rate_hz
        stale = max(stale_ms * 1e6, 3 * period_ns)
        return cls(int(degraded_periods * period_ns), int(stale), int(max(lost_ms * 1e6, stale)))

    def judge(self, age_ns: int) -> Freshness:
        """Return the freshness of a pose of this age; each limit itself still belongs to the better side."""
        if age_ns > self.lost_ns:
            return Freshness.LOST
        if age_ns > self.stale_ns:
            return Freshness.STALE
        return Freshness.DEGRADED if age_ns > self.degraded_ns else Freshness.FRESH

    def is_frozen(self, repeated_ns: int) -> bool:
        """Say whether a pose that has repeated for this long is no measurement of now."""
        return self.frozen_ns is not None and repeated_ns > self.frozen_ns

    def next_change_ns(self, age_ns: int) -> int | None:
        """Return the age at which the judgement gets worse next, or None when it cannot."""
        for limit in (self.degraded_ns, self.stale_ns, self.lost_ns):
            if age_ns <= limit:
                return limit + 1
        return None
