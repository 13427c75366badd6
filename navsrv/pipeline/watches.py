"""Owns what is noticed over time: a rate below the declared one, a reference that moved, deadlines missed in a row.

Each watch is fed by what arrives and told the time; none refuses a pose, they only say what they saw.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

import numpy as np

from navsrv.guidance.conditions import SiteLimits
from navsrv.kernel.frames import Array
from navsrv.kernel.samples import PoseSample

RATE_WINDOW_NS: Final = 1_000_000_000
JUMP_WINDOW_NS: Final = 50_000_000
GAP_NS: Final = 250_000_000
"""Poses farther apart than this (slow sources: 3 periods) are of before and after a loss."""
MEAN_NS: Final = 500_000_000
"""Time constant of the mean that movement against the witness is judged on, and the time until its baseline stands."""
MISS_WINDOW_NS: Final = 10_000_000_000


class RateWatch:
    """Says whether a stream delivers clearly fewer poses than its source declared, valid or not.

    Judged over 1 s (slow sources: 5 periods) and only once a stream has gone on for that long: what comes back after
    a silence is not slow.
    """

    def __init__(self, rate_hz: float, fraction: float) -> None:
        self.rate_hz = rate_hz
        self.window_ns = int(max(RATE_WINDOW_NS, 5e9 / rate_hz))
        self._gap_ns = self.window_ns // 2
        needed = max(2, math.ceil(fraction * rate_hz * self.window_ns / 1e9))
        self._arrivals: deque[int] = deque(maxlen=needed)
        self._started_ns = 0

    def add(self, now_ns: int) -> None:
        """Take note of one pose."""
        arrivals = self._arrivals
        if not arrivals or now_ns - arrivals[-1] > self._gap_ns:
            arrivals.clear()
            self._started_ns = now_ns
        arrivals.append(now_ns)

    def forget(self) -> None:
        """Begin anew, as at a new connection."""
        self._arrivals.clear()

    def is_low(self, now_ns: int) -> bool:
        """Say whether too few came in the window before ``now_ns``; False while nobody can know."""
        arrivals = self._arrivals
        since_ns = now_ns - self.window_ns
        if not arrivals or self._started_ns > since_ns:
            return False
        return len(arrivals) < (arrivals.maxlen or 0) or arrivals[0] <= since_ns

    def seen_hz(self, now_ns: int) -> float:
        """Return how many poses a second came in the window before ``now_ns``, as far as they are remembered."""
        since_ns = now_ns - self.window_ns
        return sum(t > since_ns for t in self._arrivals) / (self.window_ns / 1e9)


class JumpWatch:
    """Says whether the reference jumped in the tracker's frame, as no patient does.

    A jump is more than ``jump_mm`` within 50 ms (100 mm/s; slow sources: within one period, scaled), or more than
    ``gap_mm`` between the last pose before a loss and the first after it.  The whole patient, the table or the camera
    moved that fast looks the same; a slow slip on the bone is not seen here at all (``SlipWatch`` sees it).
    """

    def __init__(self, rate_hz: float, site: SiteLimits) -> None:
        period_ns = 1e9 / rate_hz
        self._window_ns = max(JUMP_WINDOW_NS, int(1.5 * period_ns))
        self._gap_ns = max(GAP_NS, int(3 * period_ns))
        self._jump_mm = site.jump_mm * self._window_ns / JUMP_WINDOW_NS
        self._gap_mm = site.gap_mm
        self._poses: deque[tuple[int, list[float]]] = deque()

    def forget(self) -> None:
        """Begin anew: poses of another connection may be of another camera."""
        self._poses.clear()

    def step(self, sample: PoseSample) -> str | None:
        """Take the reference's newest sample; return what happened in words if it jumped."""
        if sample.pose is None:
            return None
        time_ns, place_mm = sample.due_ns, sample.pose.translation_mm.tolist()
        poses = self._poses
        while len(poses) > 1 and time_ns - poses[0][0] > self._window_ns:
            poses.popleft()
        said = None
        if poses:
            moved_mm = math.dist(place_mm, poses[0][1])
            if time_ns - poses[-1][0] > self._gap_ns:
                if moved_mm > self._gap_mm:
                    said = f"the reference moved {moved_mm:.1f} mm while it was not seen"
                poses.clear()
            elif moved_mm > self._jump_mm:
                elapsed_ms = (time_ns - poses[0][0]) / 1e6
                said = f"the reference jumped {moved_mm:.1f} mm in {elapsed_ms:.0f} ms"
                poses.clear()
        poses.append((time_ns, place_mm))
        return said


class SlipWatch:
    """Measures how far the reference moved against a second body (the witness) since the registration was trusted.

    Judged at one point of the patient, the planned target where there is one, as the mean of about 0.5 s: neither
    camera nor table nor patient moves it, but a witness on the skin breathes.
    """

    def __init__(self) -> None:
        self.moved_mm: float | None = None
        self._point_mm = np.zeros(3)
        self._base: Array | None = None
        self._mean: Array | None = None
        self._since_ns = 0
        self._last_ns = 0

    def rebase(self, point_ref_mm: Array) -> None:
        """Trust the present arrangement: what follows is measured against the next half second."""
        self._point_mm = np.asarray(point_ref_mm, dtype=float)
        self._base = self._mean = self.moved_mm = None

    def step(self, reference: PoseSample, witness: PoseSample) -> float | None:
        """Take a pair of poses; return how far (mm) the point moved in the witness's frame, None while not known."""
        if reference.pose is None or witness.pose is None:
            return self.moved_mm
        time_ns = reference.due_ns
        place = (witness.pose.inverse() @ reference.pose).apply(self._point_mm)
        if self._mean is None or time_ns < self._last_ns:
            self._mean, self._since_ns = place, time_ns
        else:
            share = 1.0 - math.exp((self._last_ns - time_ns) / MEAN_NS)
            self._mean = self._mean + share * (place - self._mean)
        self._last_ns = time_ns
        if self._base is None and time_ns - self._since_ns >= MEAN_NS:
            self._base = self._mean
        self.moved_mm = None if self._base is None else float(np.linalg.norm(self._mean - self._base))
        return self.moved_mm


class MissWatch:
    """Says whether misses are more than single ones: at least ``count`` in 10 s."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._misses: deque[int] = deque(maxlen=count)
        self._total = 0

    def step(self, total: int, now_ns: int) -> bool:
        """Take the total since the start; say whether the newest misses make too many."""
        new = total - self._total
        self._total = total
        self._misses.extend([now_ns] * min(max(new, 0), self._count))
        full = len(self._misses) == self._count
        return new > 0 and full and now_ns - self._misses[0] <= MISS_WINDOW_NS
