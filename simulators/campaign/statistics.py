"""Owns the confidence of a campaign's figures: intervals of shares, of rates, and by resampling whole insertions.

95 % throughout.  What happens within one insertion is not independent (one registration error lasts for all of it), so
figures over frames are resampled by insertion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.stats import beta, chi2

from navsrv.kernel.frames import Array

ALPHA: Final = 0.05
RESAMPLES: Final = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def told(self) -> dict[str, float | None]:
        """Return it as plain numbers; null where there was nothing to judge."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: value if math.isfinite(value) else None for name, value in numbers.items()}

    def text(self, form: str = ".3g", scale: float = 1.0, unit: str = "") -> str:
        """Return it for a person."""
        value, low, high = (format(scale * x, form) for x in (self.value, self.low, self.high))
        return f"{value}{unit} ({low} to {high})"


def share(count: int, of: int) -> Estimate:
    """Return a share with its exact interval (Clopper and Pearson 1934)."""
    if of == 0:
        return Estimate(float("nan"), 0.0, 1.0)
    low = 0.0 if count == 0 else float(beta.ppf(ALPHA / 2.0, count, of - count + 1))
    high = 1.0 if count == of else float(beta.ppf(1.0 - ALPHA / 2.0, count + 1, of - count))
    return Estimate(count / of, low, high)


def rate(count: int, exposure: float) -> Estimate:
    """Return events per unit of exposure with the exact interval of a Poisson count (Garwood 1936)."""
    if exposure <= 0.0:
        return Estimate(float("nan"), 0.0, float("inf"))
    low = 0.0 if count == 0 else float(chi2.ppf(ALPHA / 2.0, 2 * count)) / 2.0
    high = float(chi2.ppf(1.0 - ALPHA / 2.0, 2 * count + 2)) / 2.0
    return Estimate(count / exposure, low / exposure, high / exposure)


def resampled(rows: Array, figure: Callable[[Array], float], seed: int = 0) -> Estimate:
    """Return a figure of rows (N,) or (N, K), one for each insertion, with its percentile bootstrap interval."""
    if len(rows) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    drawn = [figure(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return Estimate(figure(rows), float(low), float(high))
