"""Temporal: offset and drift within 2 ms and within the stated covariance; motion that says nothing of time."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from calibration.temporal import solve_temporal
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array
from navsrv.kernel.registration import Verdict

Stamps = NDArray[np.int64]
EPOCH = 1_700_000_000_000_000_000
TOOL = Rotation.from_rotvec([0.3, -1.0, 0.5])
ARM = np.array([30.0, -20.0, 100.0])
ROOM = Rotation.from_rotvec([1.0, 0.2, 0.5])


def free_motion(t: Array) -> tuple[Rotation, Array]:
    phase = 2.0 * np.pi * np.outer(t, (0.31, 0.43, 0.57)) + (0.0, 1.0, 2.0)
    turn = 0.2 * np.sin(2.0 * np.pi * np.outer(t, (0.37, 0.29, 0.5)) + (0.0, 1.0, 2.0))
    return Rotation.from_rotvec(turn), np.sin(phase) * (60.0, 50.0, 30.0)


def breathing(t: Array) -> Array:
    """Periodic, as a person breathes: no two breaths alike."""
    return np.asarray(20.0 * np.sin(2.0 * np.pi * 0.4 * t) * (1.0 + 0.2 * np.sin(0.7 * t)) + 3.0 * np.sin(1.1 * t))


def ns(seconds: Array) -> Stamps:
    stamps: Stamps = EPOCH + np.round(seconds * 1e9).astype(np.int64)
    return stamps


def poses(turns: Rotation, shifts_mm: Array, rng: np.random.Generator, noise: float) -> Array:
    n = len(shifts_mm)
    stack = np.tile(np.eye(4), (n, 1, 1))
    stack[:, :3, :3] = (Rotation.from_rotvec(0.001 * noise * rng.normal(size=(n, 3))) * turns).as_matrix()
    stack[:, :3, 3] = shifts_mm + 0.2 * noise * rng.standard_t(4, (n, 3))
    return stack


def joined(
    rng: np.random.Generator, offset_s: float, drift: float = 0.0, seconds: float = 10.0, noise: float = 1.0
) -> tuple[Stamps, Array, Stamps, Array]:
    """Return two streams at 60 Hz of two bodies on one arm, each in its own tracker's frame."""
    at_a = np.arange(0.0, seconds, 1.0 / 60.0)
    stamps_b = at_a + rng.uniform(0.0, 1.0 / 60.0)
    at_b = stamps_b + offset_s + drift * stamps_b
    turns, shifts = free_motion(at_a)
    a = poses(turns, shifts, rng, noise)
    turns, shifts = free_motion(at_b)
    b = poses(ROOM * turns * TOOL, (ROOM * turns).apply(ARM) + ROOM.apply(shifts) + (5.0, 6.0, 7.0), rng, noise)
    return ns(at_a), a, ns(stamps_b), b


def true_offset_s(at_ns: int, offset_s: float, drift: float) -> float:
    return offset_s + drift * (at_ns - EPOCH) * 1e-9


def test_poses_give_offset_and_drift_within_2_ms_and_their_covariance() -> None:
    """Catches a sign, a half-sample bias of interpolation, noise of A taken for none."""
    rng = np.random.default_rng(10)
    errors, scaled = [], []
    for _ in range(100):
        offset, drift = rng.uniform(-0.1, 0.1), rng.normal(0.0, 1e-4)
        result = solve_temporal(*joined(rng, offset, drift, seconds=7.0), max_offset_s=0.2)
        off = np.array([result.offset_ns * 1e-9 - true_offset_s(result.at_ns, offset, drift), result.drift - drift])
        errors.append(1e3 * abs(off[0]))
        scaled.append(float(off @ np.linalg.solve(result.covariance, off)))
        assert result.offset_sigma_ns < 1e6
    assert max(errors) < 2.0
    assert np.percentile(errors, 95) < 1.0
    assert 0.88 <= np.mean(np.array(scaled) < 5.99) <= 1.0  # chi-square, two degrees of freedom
    assert np.mean(scaled) > 1.0, f"{np.mean(scaled):.2f} claims little"


def test_numbers_of_periodic_motion_give_their_offset() -> None:
    """Two scalars of other units, the second at 25 Hz, with noise that is large enough to be the limit."""
    rng = np.random.default_rng(11)
    errors, scaled = [], []
    for _ in range(120):
        offset = rng.uniform(-0.3, 0.3)
        at_a, at_b = np.arange(0.0, 20.0, 1.0 / 60.0), np.arange(0.0, 20.0, 0.04)
        a = breathing(at_a) + rng.normal(0.0, 0.5, len(at_a))
        b = -3.0 * (breathing(at_b + offset) + rng.standard_t(4, len(at_b))) + 100.0
        result = solve_temporal(ns(at_a), a, ns(at_b), b, max_offset_s=0.6)
        errors.append(result.offset_ns * 1e-9 - offset)
        scaled.append(errors[-1] / (result.offset_sigma_ns * 1e-9))
    assert 0.88 <= np.mean(np.abs(scaled) < 1.96) <= 1.0
    assert 0.75 < np.std(scaled) < 1.2
    assert abs(np.mean(errors)) < 5e-4


def test_poses_and_a_number_may_be_mixed_either_way_round() -> None:
    """An image's feature against a tracker: exchanging the streams negates offset and drift."""
    rng = np.random.default_rng(12)
    times_a, a, times_b, b = joined(rng, 0.12)
    feature = b[:, 0, 3] * 0.7 + 40.0
    forth = solve_temporal(times_a, a, times_b, feature, max_offset_s=0.5)
    back = solve_temporal(times_b, feature, times_a, a, max_offset_s=0.5)
    assert abs(forth.offset_ns / 1e6 - 120.0) < 2.0
    assert abs(back.offset_ns / 1e6 + 120.0) < 2.0
    assert dict(back.details)["offset_ms"] == pytest.approx(back.offset_ns / 1e6, abs=1e-5)
    assert forth.verdict is back.verdict is Verdict.ACCEPT


def test_outliers_gaps_and_repeats_do_not_move_the_offset() -> None:
    rng = np.random.default_rng(13)
    times_a, a, times_b, b = joined(rng, -0.15)
    b[rng.choice(len(b), 15, replace=False), :3, 3] += 80.0
    keep = np.ones(len(a), dtype=bool)
    keep[200:260] = False
    result = solve_temporal(np.repeat(times_a[keep], 2), np.repeat(a[keep], 2, axis=0), times_b, b, max_offset_s=0.5)
    assert abs(result.offset_ns / 1e6 + 150.0) < 2.0
    assert dict(result.details)["outliers_percent"] > 1.0
    assert dict(result.details)["repeated"] == keep.sum()


def test_a_clock_that_runs_away_is_told() -> None:
    result = solve_temporal(*joined(np.random.default_rng(14), 0.02, drift=3e-3), max_offset_s=0.4)
    assert result.drift == pytest.approx(3e-3, abs=3e-4)
    assert result.verdict is Verdict.DOUBT
    assert "drift" in result.reason


def still(rng: np.random.Generator) -> tuple[Stamps, Array, Stamps, Array]:
    at = np.arange(0.0, 10.0, 1.0 / 60.0)
    nothing = Rotation.from_rotvec(np.zeros((len(at), 3)))
    lying = np.zeros((len(at), 3))
    return ns(at), poses(nothing, lying, rng, 1.0), ns(at), poses(nothing, lying, rng, 1.0)


def unrelated(rng: np.random.Generator) -> tuple[Stamps, Array, Stamps, Array]:
    at = np.arange(0.0, 10.0, 1.0 / 60.0)
    return ns(at), breathing(at), ns(at), np.cumsum(rng.normal(size=len(at)))


def metronome(rng: np.random.Generator) -> tuple[Stamps, Array, Stamps, Array]:
    at = np.arange(0.0, 10.0, 1.0 / 60.0)
    a, b = np.sin(2.0 * np.pi * 2.0 * at), np.sin(2.0 * np.pi * 2.0 * (at + 0.1))
    return ns(at), a + rng.normal(0.0, 0.02, len(at)), ns(at), b + rng.normal(0.0, 0.02, len(at))


def ramp(rng: np.random.Generator) -> tuple[Stamps, Array, Stamps, Array]:
    at = np.arange(0.0, 10.0, 1.0 / 60.0)
    return ns(at), 10.0 * at + rng.normal(0.0, 0.1, len(at)), ns(at), 10.0 * at + rng.normal(0.0, 0.1, len(at))


@pytest.mark.parametrize(
    ("streams", "complaint"),
    [
        (still, r"share too little motion: \d+ %"),
        (unrelated, "too little motion|no offset within"),
        (metronome, r"two offsets explain the streams: .* 1\.\d+ times"),
        (ramp, "no offset within|says nothing of time|two offsets"),
    ],
)
def test_motion_that_says_nothing_of_time_is_refused(streams: object, complaint: str) -> None:
    assert callable(streams)
    with pytest.raises(CalibrationError, match=complaint):
        solve_temporal(*streams(np.random.default_rng(15)))


def test_slow_curves_that_only_resemble_each_other_are_never_accepted() -> None:
    """Six random walks explain a seventh to 99 %; the stated error must say that it means nothing."""
    rng = np.random.default_rng(17)
    times, judged = ns(np.arange(600) / 60.0), 0
    for _ in range(20):
        walks = rng.normal(size=(600, 7)).cumsum(axis=0).cumsum(axis=0)
        try:
            result = solve_temporal(times, walks[:, :6], times, walks[:, 6])
        except CalibrationError:
            continue
        judged += 1
        assert result.verdict is not Verdict.ACCEPT
        assert result.offset_sigma_ns > 5e6
    assert judged > 2


def test_rows_that_are_wrong_are_refused_with_their_number() -> None:
    times_a, a, times_b, b = joined(np.random.default_rng(16), 0.0)
    back = times_b.copy()
    back[[30, 31]] = back[[31, 30]]
    broken = b.copy()
    broken[4, 0, 0] = np.nan
    cases: list[tuple[object, object, str]] = [
        (back, b, r"second stream: stamp 32 goes back by 16\.\d+ ms"),
        (times_b, broken, "second stream: pose 5 holds a number"),
        (times_b, b @ np.diag([-1.0, 1.0, 1.0, 1.0]), "pose 1 mirrors"),
        (times_b[:50], b[:50], "50 poses, at least 60"),
        (times_b, b[1:], "600 stamps against values"),
        (times_b.astype(np.float64), b, "whole nanoseconds"),
        (times_b + 9_000_000_000, b, r"overlap by 0\.00 s"),
        (times_b, np.ones(len(b)), "does not move at all"),
    ]
    for times, values, complaint in cases:
        with pytest.raises(CalibrationError, match=complaint):
            solve_temporal(times_a, a, times, values)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="largest offset 0"):
        solve_temporal(times_a, a, times_b, b, max_offset_s=0.0)
