"""Speeds are held against motions that are known; noise against ten thousand noisy approaches."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from navsrv.guidance.motion import Motion
from navsrv.kernel.frames import Array

MS = 1_000_000
RNG = np.random.default_rng(5)


def play(
    distance: Any, rate_hz: float = 60.0, seconds: float = 0.5, sigma_mm: float = 0.0, start_ns: int = 10**18
) -> Motion:
    """Return the motion after poses whose tip is ``distance(t)`` above a plane, moving straight along -z."""
    motion = Motion(1, rate_hz)
    for i in range(int(seconds * rate_hz) + 1):
        gap = distance(i / rate_hz) + sigma_mm * RNG.standard_normal()
        pose = np.array([1.0, 2.0, gap, 0.0, 0.0, -1.0])
        motion.step(start_ns + round(i * 1e9 / rate_hz), "device", pose, np.array([gap]), np.array([gap - 1.0]))
    return motion


@pytest.mark.parametrize("rate_hz", [10.0, 60.0, 250.0, 1000.0])
def test_a_steady_approach_has_its_speed_and_its_time(rate_hz: float) -> None:
    motion = play(lambda t: 50.0 - 30.0 * t, rate_hz)
    np.testing.assert_allclose(motion.closing_mm_s, 30.0, rtol=1e-6)
    np.testing.assert_allclose(motion.velocity, [0.0, 0.0, -30.0, 0.0, 0.0, 0.0], atol=1e-4)
    np.testing.assert_allclose(motion.contact_s, [(50.0 - 15.0) / 30.0, (49.0 - 15.0) / 30.0], rtol=1e-6)


def test_the_delay_is_half_the_window() -> None:
    """Under constant acceleration the slope is the speed of 0.1 s ago, as docs/doubt.md says."""
    motion = play(lambda t: 80.0 - 0.5 * 100.0 * t * t, rate_hz=100.0, seconds=1.0)
    assert motion.closing_mm_s[0] == pytest.approx(100.0 * (1.0 - 0.1), rel=1e-6)


def test_the_noise_of_a_speed_is_what_the_text_says() -> None:
    speeds = [play(lambda t: 50.0 - 20.0 * t, sigma_mm=0.25, seconds=0.3).closing_mm_s[0] for _ in range(2000)]
    poses, dt = 13, 1.0 / 60.0
    assert np.mean(speeds) == pytest.approx(20.0, abs=0.15)
    assert np.std(speeds) == pytest.approx(0.25 * math.sqrt(12.0 / (poses * (poses**2 - 1))) / dt, rel=0.06)
    assert np.std(speeds) < 0.7 * 0.25 * math.sqrt(2.0) / 0.2  # the end points alone


def test_a_tool_that_stands_still_is_seldom_said_to_close_in() -> None:
    told = [play(lambda t: 5.0, sigma_mm=0.25, seconds=0.3).contact_s[0] for _ in range(1000)]
    assert np.isfinite(told).mean() < 0.06


def test_a_brisk_approach_is_told_in_spite_of_noise() -> None:
    told = [play(lambda t: 30.0 - 50.0 * t, sigma_mm=0.25, seconds=0.3).contact_s[0] for _ in range(200)]
    assert np.isfinite(told).all()
    assert np.median(told) == pytest.approx((30.0 - 15.0) / 50.0, rel=0.03)


@pytest.mark.parametrize("distance", [lambda t: 20.0 + 30.0 * t, lambda t: 20.0, lambda t: 20.0 - 0.1 * t])
def test_what_leaves_rests_or_creeps_has_no_time_to_contact(distance: Any) -> None:
    assert np.isnan(play(distance).contact_s).all()


def test_in_contact_the_time_is_zero_even_on_the_way_out() -> None:
    assert play(lambda t: -5.0 + 4.0 * t).contact_s.tolist() == [0.0, 0.0]


def test_the_axis_turns_while_the_tip_rests() -> None:
    motion = Motion(1, 100.0)
    for i in range(30):
        angle = 0.4 * i / 100.0
        pose = np.array([1.0, 2.0, 3.0, math.sin(angle), 0.0, math.cos(angle)])
        motion.step(i * 10 * MS, "device", pose, np.array([9.0]), np.array([8.0]))
    np.testing.assert_allclose(motion.velocity[:3], 0.0, atol=1e-9)
    middle = 0.4 * (0.29 - 0.1)
    np.testing.assert_allclose(motion.velocity[3:], [0.4 * math.cos(middle), 0, -0.4 * math.sin(middle)], atol=1e-3)


def known(motion: Motion) -> bool:
    return bool(np.isfinite(motion.closing_mm_s).all())


def one(motion: Motion, time_ns: int, gap: float = 9.0, clock: str = "device") -> None:
    motion.step(time_ns, clock, np.array([0.0, 0.0, gap, 0.0, 0.0, 1.0]), np.array([gap]), np.array([gap]))


def test_it_begins_anew_after_a_gap_a_step_back_another_clock_or_a_loss() -> None:
    for case in ("gap", "back", "clock", "loss"):
        motion = Motion(1, 100.0)
        for i in range(20):
            one(motion, i * 10 * MS, 50.0 - i)
        assert known(motion)
        if case == "loss":
            motion.forget()
        one(
            motion,
            {"gap": 2000 * MS, "back": 5 * MS}.get(case, 200 * MS),
            clock="receipt" if case == "clock" else "device",
        )
        assert not known(motion), case
        assert motion.velocity.tolist() == [0.0] * 6
        assert np.isnan(motion.contact_s).all()


def test_a_pose_shown_again_changes_nothing() -> None:
    motion = Motion(1, 100.0)
    for i in range(20):
        one(motion, i * 10 * MS, 50.0 - i)
    before: Array = motion.closing_mm_s.copy()
    one(motion, 190 * MS, 31.0)
    assert motion.closing_mm_s.tolist() == before.tolist()


@given(
    st.lists(
        st.tuples(st.integers(0, 400 * MS), st.floats(-100.0, 100.0)),
        min_size=2,
        max_size=120,
    )
)
def test_over_any_poses_it_is_the_line_through_those_of_the_window(steps: list[tuple[int, float]]) -> None:
    """Against numpy's own least squares over the poses of the last 0.2 s, no more than sixty of them."""
    motion, times, gaps = Motion(1, 100.0), [0], [3.0]
    one(motion, 0, 3.0)
    for dt, gap in steps:
        if dt < 4 * MS:  # so near that some are left out: another test
            continue
        times.append(times[-1] + dt)
        gaps.append(gap)
        one(motion, times[-1], gap)
    recent = [(t, g) for t, g in zip(times, gaps, strict=True) if times[-1] - t <= 200 * MS]
    if recent[-1][0] - recent[0][0] < 20 * MS:
        assert not known(motion)
        return
    t, g = np.array([r[0] for r in recent]) / 1e9, np.array([r[1] for r in recent])
    slope = float(np.polyfit(t - t.mean(), g, 1)[0])
    assert motion.closing_mm_s[0] == pytest.approx(-slope, rel=1e-6, abs=1e-6)
    assert motion.closing_mm_s[0] > 0.0 or math.isnan(motion.contact_s[0]) or gaps[-1] <= 0.0
