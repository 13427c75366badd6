"""Owns what a source's stamps tell of its clock: offset and drift against ours, with their uncertainty, and jumps.

The time from a stamp to our receipt is the offset between two clocks plus the time on the way, and the way is never
shorter than some constant.  So the smallest of each second lies on a line, the offset with its drift, and what lies
above the line was held up.  One-way stamps cannot tell the constant from the offset: it has to be declared or
calibrated.  All times are arguments; ours are monotonic.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

BLOCK_NS: Final = 1_000_000_000
"""The quickest message of each such time enters the line."""
MEMORY: Final = 120
"""Seconds of a source's past that the line is made of."""
DRIFT_PRIOR: Final = 1e-4
"""Standard deviation of the drift between two clocks of which nothing is known (100 ppm, ordinary crystals)."""
KEPT_DRIFT: Final = 5e-6
"""Standard deviation of the drift after a jump: the crystal is the same, its temperature perhaps not."""
NOISE_NS: Final = 50_000.0
"""By how much the quickest ways of each second are taken to differ before any was seen."""
LATE_NS: Final = 5_000_000.0
"""A second whose quickest message is later than this, beyond doubt, says nothing of the clock."""
SHIFT_BLOCKS: Final = 5
JUMP_NS: Final = 100_000_000
FIRST_JUMP_NS: Final = 500_000_000
"""Before a second has been seen, nobody knows how long the way is: the first messages may have waited for us."""


@dataclass(frozen=True, slots=True)
class ClockEstimate:
    """A source's clock against ours.

    Attributes
    ----------
    offset_ns : int
        Our monotonic time less the source's stamp, at ``at_ns``; the shortest way is part of it.
    offset_sigma_ns : float
        Of the offset, without what no one-way stamp can tell.
    drift_ppm, drift_sigma_ppm : float
        How much faster the source's clock runs than ours.
    shifted_ns : int
        Sudden shifts taken in: of the clock or of the way, nobody can say.  They belong to what is unknown.
    """

    at_ns: int
    offset_ns: int
    offset_sigma_ns: float
    drift_ppm: float
    drift_sigma_ppm: float
    shifted_ns: int


class _Line(NamedTuple):
    """The shortest way against our time: ``start_ns`` at ``at_ns``, its slope, their variances and its scatter."""

    at_ns: int
    start_ns: int
    drift: float
    start_variance: float
    drift_variance: float
    noise_ns: float

    def way_ns(self, now_ns: int) -> int:
        return self.start_ns + round(self.drift * (now_ns - self.at_ns))

    def sigma_ns(self, now_ns: int) -> float:
        """The quickest ways scatter about the line, so the shortest is known no better than they scatter."""
        return math.sqrt(self.start_variance + self.drift_variance * (now_ns - self.at_ns) ** 2 + self.noise_ns**2)


class SourceClock:
    """The clock of one connection.

    Parameters
    ----------
    period_ns : int
        Between the source's poses, as declared: a lasting shift by less than that may be a clock set back, since its
        stamps still grow.  It is taken in after 5 s and counted as unknown; a longer one stays a delay.
    """

    __slots__ = (
        "_block",
        "_late_blocks",
        "_line",
        "_minima",
        "_newest",
        "_period_ns",
        "_previous",
        "_prior",
        "late_ns",
        "shifted_ns",
    )

    def __init__(self, period_ns: int) -> None:
        self.late_ns = 0
        """How much longer the last message was on its way than the quickest."""
        self.shifted_ns = 0
        self._period_ns = period_ns
        self._prior = (0.0, DRIFT_PRIOR**2)
        self._newest: int | None = None
        self._previous = 0
        self._minima: deque[tuple[int, int]] = deque(maxlen=MEMORY)
        self._late_blocks: deque[tuple[int, int]] = deque(maxlen=SHIFT_BLOCKS)
        self._block = (0, 0, 0)
        self._line = _Line(0, 0, 0.0, 0.0, 0.0, 0.0)

    def observe(self, stamp_ns: int, received_ns: int) -> int:
        """Take the stamp of a message and when it was received; return by how much (ns) the clock jumped, mostly 0.

        A late message makes the source's clock seem to lag, but its stamp still grows: so a jump ahead is a way
        shorter than any before, at once, and a jump back is a stamp far older than the newest.
        """
        way = received_ns - stamp_ns
        if self._newest is None:
            self._restart(stamp_ns, received_ns, way)
            return 0
        line = self._line
        late = way - line.start_ns - line.drift * (received_ns - line.at_ns)
        limit = JUMP_NS if self._minima else FIRST_JUMP_NS
        back = stamp_ns - self._newest
        if back < -FIRST_JUMP_NS or (late < -limit and way - self._previous < -limit):
            self._restart(stamp_ns, received_ns, way)
            return int(-late)
        if back > 0:
            self._newest = stamp_ns
        self._previous = way
        self.late_ns = int(late) if late > 0.0 else 0
        begun, least, _ = self._block
        if way < least:
            self._block = (begun, way, received_ns)
            if late < 0.0 and not self._minima:
                self._line = line._replace(at_ns=received_ns, start_ns=way)
        if received_ns - begun >= BLOCK_NS:
            self._close(received_ns, way)
        return 0

    def restart(self, stamp_ns: int, received_ns: int) -> None:
        """Begin anew at a stamp: the source's time base is a new one."""
        self._restart(stamp_ns, received_ns, received_ns - stamp_ns)

    def forget(self) -> None:
        """Wait for the first stamp of a new time base."""
        self._newest, self.late_ns = None, 0
        self._minima.clear()

    def stepped_back(self, stamp_ns: int, received_ns: int) -> int:
        """Begin anew at a stamp that others have confirmed to be older than the newest; return the jump (ns)."""
        way = received_ns - stamp_ns
        jump = self._line.way_ns(received_ns) - way
        self._restart(stamp_ns, received_ns, way)
        return jump

    def estimate(self, now_ns: int) -> ClockEstimate | None:
        """Return the clock at ``now_ns``; None before anything was seen."""
        if self._newest is None:
            return None
        line = self._line
        ppm = math.sqrt(line.drift_variance) * 1e6
        return ClockEstimate(
            now_ns, line.way_ns(now_ns), line.sigma_ns(now_ns), -line.drift * 1e6, ppm, self.shifted_ns
        )

    def _restart(self, stamp_ns: int, received_ns: int, way: int) -> None:
        """Forget the line, but not the drift: the crystal is the same."""
        if self._minima:
            self._prior = (self._line.drift, max(self._line.drift_variance, KEPT_DRIFT**2))
        self._newest, self._previous, self.late_ns = stamp_ns, way, 0
        self._minima.clear()
        self._late_blocks.clear()
        self._block = (received_ns, way, received_ns)
        self._line = _Line(received_ns, way, self._prior[0], 0.0, self._prior[1], LATE_NS)

    def _close(self, received_ns: int, way: int) -> None:
        """End a second: its quickest message enters the line, unless all of it was held up."""
        _, least, when = self._block
        self._block = (received_ns, way, received_ns)
        late, limit = least - self._line.way_ns(when), max(LATE_NS, 6.0 * self._line.sigma_ns(when))
        if self._minima and late > limit:
            self._late_blocks.append((when, least))
            self._take_in(late)
            return
        self._late_blocks.clear()
        if self._minima and late < -limit:
            self._minima.clear()  # all ways so far were longer than need be, or the clock went ahead a little
        self._minima.append((when, least))
        self._fit()

    def _take_in(self, late: int) -> None:
        """Make a lasting shift, too small to be a stamp set back, part of the line and of what is unknown."""
        ways = [least for _, least in self._late_blocks]
        if len(ways) < SHIFT_BLOCKS or late > self._period_ns or max(ways) - min(ways) > LATE_NS:
            return
        self.shifted_ns += late
        self._minima.clear()
        self._minima.extend(self._late_blocks)
        self._late_blocks.clear()
        self._fit()

    def _fit(self) -> None:
        """Fit the line by least squares, with what is known of the drift beforehand as one more observation of it."""
        count, (last_ns, base) = len(self._minima), self._minima[-1]
        t = np.array([when - last_ns for when, _ in self._minima], np.float64)
        y = np.array([least - base for _, least in self._minima], np.float64)
        mean_t, mean_y = float(t.mean()), float(y.mean())
        t -= mean_t
        y -= mean_y
        spread, product = float(t @ t), float(t @ y)
        rest = float(y @ y) - product**2 / spread if count > 2 else 0.0
        # As if two seconds of ordinary scatter had been seen before.
        variance = (max(rest, 0.0) + 2.0 * NOISE_NS**2) / (max(count - 2, 0) + 2)
        prior_drift, prior_variance = self._prior
        weight = variance / prior_variance
        drift = (product + weight * prior_drift) / (spread + weight)
        middle = last_ns + int(mean_t)
        self._line = _Line(
            middle, base + int(mean_y), drift, variance / count, variance / (spread + weight), math.sqrt(variance)
        )
