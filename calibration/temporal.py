"""Owns temporal calibration: by how much one stream's stamps lag another's, and whether their clocks drift apart.

Two streams saw one motion, periodic or free: poses (of any rigidly joined bodies, in any frames) or numbers.  The
second is fitted as a linear function of the first at shifted times: no frame, lever arm or unit need be known.
Refuses streams that share too little motion, and motion that fits a second offset as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import BSpline, make_lsq_spline

from calibration.poses import (
    MAD_TO_SIGMA,
    Findings,
    checked_poses,
    jackknife_covariance,
    left_out_shifts,
    scores,
    time_blocks,
)
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array, frozen_array
from navsrv.kernel.registration import Verdict

MIN_SAMPLES: Final = 60
MIN_OVERLAP_S: Final = 3.0
KNOT_SAMPLES: Final = 4
"""Samples of the first stream a knot of its spline: averages noise, follows motion to about a tenth of the rate."""
ARM_MM: Final = 100.0
"""Rotation entries are multiplied by it to weigh like millimetres."""
PERIOD_SHARE: Final = 0.01
"""No stamp is believed to a smaller part of the time between samples: noise in the spline moves the offset so much."""
COARSE_SAMPLES: Final = 400
OUTLIER_MEDIANS: Final = 6.0
GAP_PERIODS: Final = 4.0
STEPS: Final = 12
MOST_FLAT: Final = 30.0
"""A sum of squares that is flatter tells no time; the error that comes of it is refused by its size."""


@dataclass(frozen=True, slots=True)
class TemporalLimits:
    """Thresholds; shared motion and ambiguity below their refusal are bad data, the others decide the verdict."""

    explained_refuse: float = 0.5
    explained_accept: float = 0.9
    ambiguous_refuse: float = 1.2
    """Smallest ratio of the next best offset's sum of squares to the best one's."""
    ambiguous_accept: float = 2.0
    offset_sigma_accept_ms: float = 2.0
    offset_sigma_refuse_ms: float = 10.0
    drift_accept_ppm: float = 1000.0
    drift_refuse_ppm: float = 20000.0
    outliers_accept_percent: float = 5.0
    outliers_refuse_percent: float = 30.0


@dataclass(frozen=True, slots=True, eq=False)
class TemporalResult:
    """How stamps of stream B become stamps of stream A: ``t_a = t_b + offset + drift * (t_b - at)``.

    Attributes
    ----------
    offset_ns : int
        At ``at_ns`` of B's clock, the middle of the recording.
    drift : float
        Seconds a second; positive when B's clock runs slow against A's.
    covariance : (2, 2)
        Of (offset in seconds, drift).
    at_ns : int
    residuals : (M,)
        Weighted rms residual of each sample of B that was used, in units of its channels' noise.
    verdict : Verdict
    reason : str
    details : tuple of (str, float)
    """

    offset_ns: int
    drift: float
    covariance: Array
    at_ns: int
    residuals: Array
    verdict: Verdict
    reason: str
    details: tuple[tuple[str, float], ...]

    @property
    def offset_sigma_ns(self) -> float:
        """One sigma of the offset at ``at_ns``."""
        return 1e9 * float(np.sqrt(self.covariance[0, 0]))

    @property
    def drift_sigma(self) -> float:
        """One sigma of the drift."""
        return float(np.sqrt(self.covariance[1, 1]))


def solve_temporal(
    times_a_ns: ArrayLike,
    values_a: ArrayLike,
    times_b_ns: ArrayLike,
    values_b: ArrayLike,
    *,
    max_offset_s: float = 1.0,
    limits: TemporalLimits | None = None,
) -> TemporalResult:
    """Return the offset and drift between two streams' stamps with covariance and verdict.

    Parameters
    ----------
    times_a_ns, times_b_ns : (N,), (M,) int
        Stamps, each by its own clock, ascending.
    values_a, values_b : (N, 4, 4) or (N, k) or (N,)
        Poses, or numbers such as a feature's position in an image; the kinds may differ.
    max_offset_s : float
        Offsets to either side are searched so far.  Motion that repeats sooner is ambiguous.

    Raises
    ------
    CalibrationError
        Stamps that go back, numbers that are not finite, too few samples or too little overlap, too little shared
        motion, a second offset that fits as well.
    """
    limits = limits or TemporalLimits()
    if not 0.0 < max_offset_s <= 60.0:
        raise CalibrationError(f"largest offset {max_offset_s} s: more than 0 and at most 60 s can be searched")
    a, b = _Stream.checked(times_a_ns, values_a, "first"), _Stream.checked(times_b_ns, values_b, "second")
    if a.values.shape[1] < b.values.shape[1]:
        # The richer stream is the one to explain the other by.
        return _swapped(_solve(b, a, max_offset_s, limits))
    return _solve(a, b, max_offset_s, limits)


@dataclass(frozen=True, slots=True, eq=False)
class _Stream:
    """Stamps (N,) int and the values (N, k) that they belong to."""

    times_ns: NDArray[np.int64]
    values: Array
    repeated: int

    @classmethod
    def checked(cls, times_ns: ArrayLike, values: ArrayLike, which: str) -> _Stream:
        """Return a stream of distinct stamps, or refuse it with the row that is wrong."""
        what = f"{which} stream"
        stamps = np.asarray(times_ns)
        if stamps.ndim != 1 or stamps.dtype.kind not in "iu":
            raise CalibrationError(f"{what}: stamps must be (N,) whole nanoseconds, got {stamps.dtype} {stamps.shape}")
        t = stamps.astype(np.int64)
        v = np.asarray(values, dtype=np.float64)
        if v.ndim == 3:
            poses = checked_poses(v, what, MIN_SAMPLES)
            v = np.concatenate([poses[:, :3, 3], ARM_MM * poses[:, :3, :3].reshape(-1, 9)], axis=1)
        v = v.reshape(len(v), -1) if v.ndim in (1, 2) else v
        if v.ndim != 2 or len(v) != len(t):
            raise CalibrationError(f"{what}: {len(t)} stamps against values of shape {np.shape(values)}")
        if not np.isfinite(v).all():
            row = int(np.flatnonzero(~np.isfinite(v).all(axis=1))[0]) + 1
            raise CalibrationError(f"{what}: sample {row} holds a number that is not finite")
        steps = np.diff(t)
        if (steps < 0).any():
            row = int(np.flatnonzero(steps < 0)[0]) + 2
            raise CalibrationError(f"{what}: stamp {row} goes back by {-int(steps[row - 2]) / 1e6:.3f} ms")
        distinct = np.concatenate([[True], steps > 0])
        if int(distinct.sum()) < MIN_SAMPLES:
            raise CalibrationError(f"{what}: {int(distinct.sum())} distinct stamps, at least {MIN_SAMPLES} are needed")
        return cls(t[distinct], v[distinct], int((~distinct).sum()))

    @property
    def period_s(self) -> float:
        """Median time between samples."""
        return float(np.median(np.diff(self.times_ns))) * 1e-9


class _Explainer:
    """Fits stream B as a linear function of stream A's spline at shifted times, by variable projection."""

    def __init__(self, a: _Stream, b: _Stream, max_offset_s: float) -> None:
        self.at_ns = (max(int(a.times_ns[0]), int(b.times_ns[0])) + min(int(a.times_ns[-1]), int(b.times_ns[-1]))) // 2
        self.times_a = (a.times_ns - self.at_ns) * 1e-9
        times_b = (b.times_ns - self.at_ns) * 1e-9
        first, last = self.times_a[0] + max_offset_s, self.times_a[-1] - max_offset_s
        inside = (times_b >= first) & (times_b <= last)
        span = min(last, times_b[-1]) - max(first, times_b[0])
        if span < MIN_OVERLAP_S or int(inside.sum()) < MIN_SAMPLES:
            raise CalibrationError(
                f"the streams overlap by {max(span, 0.0):.2f} s ({int(inside.sum())} samples) less the search, "
                f"at least {MIN_OVERLAP_S:g} s and {MIN_SAMPLES} samples needed; record longer, or search less"
            )
        self.times_b, self.values_b = times_b[inside], b.values[inside]
        self.values_b = self.values_b - self.values_b.mean(axis=0)
        moving = self.values_b.std(axis=0) > 1e-9
        if not moving.any():
            raise CalibrationError("the second stream does not move at all: rms motion 0")
        self.values_b = self.values_b[:, moving] / self.values_b[:, moving].std()
        self.weights = np.ones(self.values_b.shape[1])
        self.gap_s = GAP_PERIODS * KNOT_SAMPLES * a.period_s
        self.spline = self._spline(a)
        self.slope = self.spline.derivative()

    def _spline(self, a: _Stream) -> BSpline:
        """Return A's moving components as one smoothing spline."""
        t = self.times_a
        knots = np.concatenate([[t[0]] * 4, t[KNOT_SAMPLES:-KNOT_SAMPLES:KNOT_SAMPLES], [t[-1]] * 4])
        smooth = make_lsq_spline(t, a.values - a.values.mean(axis=0), knots, k=3)
        seen = smooth(t)
        _, sizes, components = np.linalg.svd(seen - seen.mean(axis=0), full_matrices=False)
        kept = sizes > max(1e-6 * float(sizes[0]), 1e-9)
        if not kept.any():
            raise CalibrationError("the first stream does not move at all: rms motion 0")
        scaled = components[kept].T / sizes[kept] * np.sqrt(len(t))
        return BSpline(smooth.t, smooth.c @ scaled, 3)

    @property
    def unknowns(self) -> int:
        """Parameters that explain one channel of B."""
        return int(self.spline.c.shape[1]) + 3

    def residuals(self, offset_s: float, drift: float, rows: NDArray[np.bool_] | slice) -> tuple[Array, Array]:
        """Return residuals (M, q) and their derivatives (M, q, 2) by offset and drift, both weighted by channel."""
        times = self.times_b[rows]
        shifted = times + offset_s + drift * times
        features = np.column_stack([self.spline(shifted), np.ones(len(times))])
        q, _ = np.linalg.qr(features)
        wanted = self.values_b[rows] * self.weights
        mix = np.linalg.lstsq(features, wanted, rcond=1e-9)[0]
        residuals = wanted - features @ mix
        speed = self.slope(shifted) @ mix[:-1]
        derivatives = np.stack([speed, speed * times[:, None]], axis=2)
        flat = derivatives.reshape(len(times), -1)
        return residuals, (flat - q @ (q.T @ flat)).reshape(derivatives.shape)

    def cost(self, offset_s: float, rows: NDArray[np.bool_] | slice) -> float:
        """Return the sum of squares at an offset."""
        times = self.times_b[rows] + offset_s
        q, _ = np.linalg.qr(np.column_stack([self.spline(times), np.ones(len(times))]))
        wanted = self.values_b[rows] * self.weights
        return float((wanted**2).sum() - ((q.T @ wanted) ** 2).sum())

    def away_from_gaps(self, offset_s: float) -> NDArray[np.bool_]:
        """Return B's samples (M,) at whose shifted times A was recording."""
        after = np.clip(np.searchsorted(self.times_a, self.times_b + offset_s), 1, len(self.times_a) - 1)
        near: NDArray[np.bool_] = self.times_a[after] - self.times_a[after - 1] <= self.gap_s
        return near


def _solve(a: _Stream, b: _Stream, max_offset_s: float, limits: TemporalLimits) -> TemporalResult:
    """Return stamps of B in A's clock; A has at least as many channels as B."""
    explainer = _Explainer(a, b, max_offset_s)
    start_s, ambiguity = _coarse(explainer, max_offset_s, min(a.period_s, b.period_s), limits)
    rows = explainer.away_from_gaps(start_s)
    offset, drift = start_s, 0.0
    outliers = np.zeros(len(rows), dtype=np.bool_)
    for robust in (False, True):
        for _ in range(STEPS):
            residuals, derivatives = explainer.residuals(offset, drift, rows)
            # The median, so that a few wild samples do not make their channel look worthless.
            noise = MAD_TO_SIGMA * np.median(np.abs(residuals), axis=0)
            explainer.weights = explainer.weights / np.maximum(noise, 1e-6)
            residuals, derivatives = explainer.residuals(offset, drift, rows)
            step = _step(residuals, derivatives)
            offset, drift = float(offset + step[0]), float(drift + step[1])
            if abs(step[0]) < 1e-6:
                break
        if not robust:
            lengths = np.sqrt((residuals**2).mean(axis=1))
            outliers[rows] = lengths > OUTLIER_MEDIANS * max(float(np.median(lengths)), 1e-12)
            rows = rows & ~outliers
    if abs(offset - start_s) > 0.5 * max_offset_s or abs(offset) > max_offset_s:
        raise CalibrationError(
            f"no offset within {max_offset_s:g} s explains the second stream: it leaves toward {offset:.3f} s"
        )
    residuals, derivatives = explainer.residuals(offset, drift, rows)
    lengths = np.sqrt((residuals**2).mean(axis=1))
    blocks, owed = time_blocks(scores(derivatives, residuals))
    count = int(blocks.max()) + 1
    # Correlated noise is as good as one number a block, and the linear map took some of it for motion.
    owed *= count / max(count - explainer.unknowns, 0.25 * count)
    covariance = jackknife_covariance(left_out_shifts(derivatives, residuals, blocks)) * owed
    covariance *= _flatter(explainer, offset, derivatives, rows, min(a.period_s, b.period_s)) ** 2
    floor_s = PERIOD_SHARE * max(a.period_s, b.period_s)
    covariance += np.diag([floor_s, floor_s / float(explainer.times_b[rows].std())]) ** 2
    wanted = explainer.values_b[rows] * explainer.weights
    figures = {
        "samples": float(rows.sum()),
        "repeated": float(a.repeated + b.repeated),
        "outliers_percent": 100.0 * float(outliers.mean()),
        "explained": 1.0 - float((residuals**2).sum() / ((wanted - wanted.mean(axis=0)) ** 2).sum()),
        "next_offset_ratio": ambiguity,
        "offset_ms": 1e3 * offset,
        "offset_sigma_ms": 1e3 * float(np.sqrt(covariance[0, 0])),
        "drift_ppm": 1e6 * drift,
        "drift_sigma_ppm": 1e6 * float(np.sqrt(covariance[1, 1])),
        "blocks": float(count),
    }
    verdict, reason = _judge(limits, figures)
    return TemporalResult(
        round(1e9 * offset),
        drift,
        frozen_array(0.5 * (covariance + covariance.T), (2, 2)),
        explainer.at_ns,
        frozen_array(lengths, lengths.shape),
        verdict,
        reason,
        tuple(figures.items()),
    )


def _coarse(explainer: _Explainer, max_offset_s: float, period_s: float, limits: TemporalLimits) -> tuple[float, float]:
    """Return the best offset on a grid, and the ratio of the next best minimum's sum of squares to its own."""
    rows = slice(None, None, max(1, len(explainer.times_b) // COARSE_SAMPLES))
    count = max(8, int(np.ceil(max_offset_s / period_s)))
    offsets = np.linspace(-max_offset_s, max_offset_s, 2 * count + 1)
    costs = np.array([explainer.cost(float(offset), rows) for offset in offsets])
    explained = 1.0 - costs / float((explainer.values_b[rows] ** 2).sum())
    best = int(costs.argmin())
    if explained[best] < limits.explained_refuse:
        raise CalibrationError(
            f"the streams share too little motion: {100 * explained[best]:.0f} % of the second is explained by the "
            f"first, at least {100 * limits.explained_refuse:.0f} % needed; move both together, a few cm to and fro"
        )
    inner = np.flatnonzero((costs[1:-1] < costs[:-2]) & (costs[1:-1] <= costs[2:])) + 1
    if best not in inner:
        raise CalibrationError(
            f"no offset within {max_offset_s:g} s explains the second stream best: it leaves at {offsets[best]:.3f} s; "
            "record a motion that reverses, or search further"
        )
    fine = {int(i): _valley(explainer, offsets, int(i), rows) for i in inner}
    others = [cost for i, (_, cost) in fine.items() if abs(i - best) > 1]
    ratio = min(others) / max(fine[best][1], 1e-12) if others else float("inf")
    if ratio < limits.ambiguous_refuse:
        other = min((i for i in fine if abs(i - best) > 1), key=lambda i: fine[i][1])
        raise CalibrationError(
            f"two offsets explain the streams: {fine[best][0]:.3f} s and {fine[other][0]:.3f} s, the sum of squares of "
            f"the second {ratio:.2f} times the first's, {limits.ambiguous_refuse:g} needed; move less regularly"
        )
    return fine[best][0], min(ratio, 1e6)


def _valley(explainer: _Explainer, offsets: Array, index: int, rows: slice) -> tuple[float, float]:
    """Return the bottom of a minimum of the grid and its sum of squares, by golden section."""
    low, high = float(offsets[index - 1]), float(offsets[index + 1])
    golden = (np.sqrt(5.0) - 1.0) / 2.0
    for _ in range(10):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if explainer.cost(left, rows) < explainer.cost(right, rows):
            high = right
        else:
            low = left
    bottom = 0.5 * (low + high)
    return bottom, explainer.cost(bottom, rows)


def _flatter(
    explainer: _Explainer, offset: float, derivatives: Array, rows: NDArray[np.bool_], period_s: float
) -> float:
    """Return how many times less curved the sum of squares is than its derivatives say: noise in A makes those steep.

    The information that was observed, not that of Gauss and Newton, decides (Huber's sandwich, 1967).
    """
    step = 0.5 * period_s
    costs = [explainer.cost(offset + way * step, rows) for way in (-1.0, 0.0, 1.0)]
    curved = 0.5 * (costs[0] - 2.0 * costs[1] + costs[2]) / step**2
    said = float((derivatives[:, :, 0] ** 2).sum())
    return float(np.clip(said / max(curved, 1e-12 * said), 1.0, MOST_FLAT))


def _step(residuals: Array, derivatives: Array) -> Array:
    """Return the Gauss-Newton step (2,); refuse motion that says nothing of time."""
    flat = derivatives.reshape(-1, 2)
    sizes = np.linalg.norm(flat, axis=0)
    least = float(sizes.min())
    if least < 1e-6 * float(np.linalg.norm(residuals)) or least == 0.0:
        raise CalibrationError(
            f"the shared motion says nothing of time: sensitivity {least:.3g}; record a motion that reverses"
        )
    step: Array = np.linalg.lstsq(flat / sizes, residuals.ravel(), rcond=None)[0] / sizes
    return step


def _swapped(result: TemporalResult) -> TemporalResult:
    """Return the result with the streams exchanged: from ``t_a = t_b + o + d (t_b - at)`` to B's stamps of A's."""
    at_ns = result.at_ns + result.offset_ns
    stretch = 1.0 / (1.0 + result.drift)
    scale = np.diag([-1.0, -(stretch**2)])
    details = dict(result.details)
    details |= {"offset_ms": -details["offset_ms"], "drift_ppm": 1e6 * (stretch - 1.0)}
    return TemporalResult(
        -result.offset_ns,
        stretch - 1.0,
        frozen_array(scale @ result.covariance @ scale, (2, 2)),
        at_ns,
        result.residuals,
        result.verdict,
        result.reason,
        tuple(details.items()),
    )


def _judge(limits: TemporalLimits, figures: dict[str, float]) -> tuple[Verdict, str]:
    """Return the verdict and the numbers that decided it."""
    found = Findings()
    sigma = figures["offset_sigma_ms"]
    what = "predicted error of the offset"
    found.grade(what, sigma, limits.offset_sigma_accept_ms, limits.offset_sigma_refuse_ms, "ms")
    found.grade("drift", abs(figures["drift_ppm"]), limits.drift_accept_ppm, limits.drift_refuse_ppm, "ppm")
    what = "samples that do not agree:"
    found.grade(what, figures["outliers_percent"], limits.outliers_accept_percent, limits.outliers_refuse_percent, "%")
    if figures["explained"] < limits.explained_accept:
        found.doubt.append(
            f"{100 * figures['explained']:.0f} % of the motion is shared, below {100 * limits.explained_accept:.0f} %"
        )
    if figures["next_offset_ratio"] < limits.ambiguous_accept:
        found.doubt.append(f"another offset fits {figures['next_offset_ratio']:.2f} times as badly only")
    return found.verdict(f"predicted error of the offset {sigma:.2f} ms (one sigma)")
