"""Owns what trials add up to: coverage by structure and pooled with 95 % intervals, and the factor that was held out.

Rows of one trial share its calibration and its registration and are not independent: every interval is over trials, by
resampling them whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from navsrv.guidance.doubt import Z95
from simulators.coverage.trial import Row, Trial

LOW: Final = 0.94
HIGH: Final = 0.995
"""Between these the whole 95 % interval of a coverage has to lie."""
RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True)
class Coverage:
    """How often the bounds of one kind held, with the 95 % interval, and what they were made of (mm)."""

    what: str
    count: int
    share: float
    low: float
    high: float
    bias_mm: float
    error_mm: float
    sigma_mm: float

    @property
    def within(self) -> bool:
        """Whether the whole interval lies where it has to."""
        return self.low >= LOW and self.high <= HIGH


def coverage(trials: Sequence[Trial], what: str, chosen: Callable[[Row], bool] = lambda row: True) -> Coverage:
    """Return the coverage of the chosen rows."""
    rows = [[row for row in trial.rows if chosen(row)] for trial in trials]
    held = np.array([sum(row.covered for row in some) for some in rows], dtype=np.float64)
    counts = np.array([len(some) for some in rows], dtype=np.float64)
    held, counts = held[counts > 0], counts[counts > 0]
    share = float(held.sum() / counts.sum())
    rng = np.random.default_rng(7)
    drawn = rng.integers(0, len(held), (RESAMPLES, len(held)))
    shares = held[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = (float(v) for v in np.percentile(shares, [2.5, 97.5]))
    errors = np.array([row.true_mm - row.distance_mm for some in rows for row in some])
    sigma = float(np.median([row.sigma_mm for some in rows for row in some]))
    return Coverage(what, int(counts.sum()), share, low, high, float(errors.mean()), float(errors.std()), sigma)


def tables(trials: Sequence[Trial]) -> list[Coverage]:
    """Return the coverage pooled, by method, by part, and by structure."""
    methods = sorted({trial.method for trial in trials})
    parts = list(dict.fromkeys(row.part for trial in trials for row in trial.rows))
    names = list(dict.fromkeys(row.structure for trial in trials for row in trial.rows))
    found = [coverage(trials, "all")]
    found += [coverage([t for t in trials if t.method == method], f"registered by {method}") for method in methods]
    found += [coverage(trials, f"part: {part}", _of("part", part)) for part in parts]
    found += [coverage(trials, name, _of("structure", name)) for name in names]
    return found


def _of(field: str, value: str) -> Callable[[Row], bool]:
    return lambda row: getattr(row, field) == value


def held_out_factor(trials: Sequence[Trial], method: str) -> tuple[float, float, float]:
    """Return by what a method's own sigma has to be multiplied so that 95 % of its errors are bounded; 95 % interval.

    Along random directions both signs are alike: the 90 % quantile of the size is the one-sided 95 % one.  Trials that
    drew the same registration are resampled together.
    """
    groups: dict[int, list[float]] = {}
    for trial in trials:
        if trial.method == method:
            groups.setdefault(trial.drawn, []).extend(map(abs, trial.registration_z))
    z = [np.array(sizes) for sizes in groups.values()]
    rng = np.random.default_rng(8)
    factors = [
        np.percentile(np.concatenate([z[i] for i in rng.integers(0, len(z), len(z))]), 90.0) / Z95
        for _ in range(RESAMPLES // 10)
    ]
    low, high = (float(v) for v in np.percentile(factors, [2.5, 97.5]))
    return float(np.percentile(np.concatenate(z), 90.0)) / Z95, low, high
