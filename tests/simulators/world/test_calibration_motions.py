"""Motions of calibrations: what must rest, rests; what must be met, is met, to what the arguments say."""

from __future__ import annotations

import numpy as np
import pytest

from simulators.world.calibration_motions import (
    BETWEEN,
    ToolMotion,
    freely,
    paint,
    pivot,
    spin,
    stations,
    touch,
    waves,
)

TIP = np.array([-14.0, 30.0, 180.0])
POINT = np.array([40.0, -20.0, -1700.0])


def axes(motion: ToolMotion, direction: tuple[float, float, float]) -> np.ndarray:
    return motion.T_world_from_tool[:, :3, :3] @ direction


def rms(away: np.ndarray) -> float:
    return float(np.sqrt((away**2).sum(axis=1).mean()))


def test_a_pivoted_tip_rests_and_its_handle_covers_the_cone() -> None:
    still = pivot(1, TIP, POINT)
    assert np.abs(still.tip_world_mm(TIP) - POINT).max() < 1e-9
    lean = np.degrees(np.arccos(np.clip(axes(still, (0, 0, 1)) @ axes(still, (0, 0, 1)).T, -1, 1)))
    assert 50.0 < lean.max() < 70.0
    slipping = pivot(1, TIP, POINT, seconds=60.0, slip_mm=0.5)
    assert 0.3 < rms(slipping.tip_world_mm(TIP) - POINT) < 0.8
    jumping = np.linalg.norm(pivot(1, TIP, POINT, slips=2).tip_world_mm(TIP) - POINT, axis=1)
    assert 30 <= (jumping > 4.9).sum() <= 62


def test_a_spun_axis_rests_while_the_tool_turns() -> None:
    motion = spin(2, (0.0, 0.6, 0.8), TIP, POINT, turns=2.0)
    assert np.abs(motion.tip_world_mm(TIP) - POINT).max() < 1e-9
    assert np.ptp(axes(motion, (0.0, 0.6, 0.8)), axis=0).max() < 1e-12
    assert axes(motion, (1.0, 0.0, 0.0)).min(axis=0)[0] < -0.9 < 0.9 < axes(motion, (1.0, 0.0, 0.0)).max(axis=0)[0]
    wobbling = spin(2, (0.0, 0.6, 0.8), TIP, POINT, seconds=60.0, wobble_mm=0.3)
    assert 0.2 < rms(wobbling.tip_world_mm(TIP) - POINT) < 0.4


def test_every_landmark_is_touched_in_its_turn_with_the_error_asked_for() -> None:
    points = np.random.default_rng(1).uniform(-60.0, 60.0, (8, 3)) + POINT
    missed = []
    for seed in range(20):
        motion = touch(seed, points, TIP, touch_error_mm=0.4, dwell_s=1.0, rate_hz=30.0)
        tips = motion.tip_world_mm(TIP)
        seen = [int(k) for n, k in enumerate(motion.touching) if k != BETWEEN and motion.touching[n - 1] != k]
        assert seen == list(range(8))
        missed += [tips[motion.touching == k].mean(axis=0) - points[k] for k in range(8)]
        lifted = tips[motion.touching == BETWEEN]
        assert np.linalg.norm(lifted[:, None] - points, axis=2).min(axis=1).max() > 25.0
    assert rms(np.array(missed)) == pytest.approx(0.4, rel=0.15)


def test_a_painted_surface_is_followed_at_a_hands_speed_and_lift_offs_are_said() -> None:
    normals = np.random.default_rng(2).normal(size=(3000, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    motion = paint(3, POINT + 50.0 * normals, normals, TIP, press_mm=0.1)
    tips = motion.tip_world_mm(TIP)
    height = np.linalg.norm(tips - POINT, axis=1) - 50.0
    on = motion.touching != BETWEEN
    # Chords between points that are a few mm apart lie a little below the ball.
    assert np.abs(height[on]).max() < 1.0
    assert height[~on].max() > 8.0
    assert np.ptp(tips, axis=0).min() > 30.0
    assert 30.0 < np.median(np.linalg.norm(np.diff(tips, axis=0), axis=1)) * 60.0 < 50.0


def test_stations_close_the_loop_of_two_devices() -> None:
    x, y = np.eye(4), np.eye(4)
    x[:3, 3], y[:3, 3] = (10.0, 20.0, 30.0), (-500.0, 100.0, 900.0)
    x[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    found = stations(4, x, y, count=12)
    for a, b in zip(found.T_a_from_x, found.T_b_from_y, strict=True):
        assert np.linalg.inv(y) @ a @ x == pytest.approx(b, abs=1e-9)
    turn = found.T_a_from_x[:, :3, :3]
    assert np.degrees(np.arccos(np.clip((np.trace(turn[0].T @ turn, axis1=1, axis2=2) - 1) / 2, -1, 1))).max() > 30.0


def test_waves_are_nearly_periodic_and_free_motion_is_not() -> None:
    rhythm = []
    for motion in (waves(5, seconds=60.0, period_s=2.0), freely(5, seconds=60.0)):
        place = motion.T_world_from_tool[:, :3, 3]
        speed = np.linalg.norm(np.diff(place, axis=0), axis=1) * 60.0
        assert 20.0 < np.median(speed) < 300.0
        power = (np.abs(np.fft.rfft(place - place.mean(axis=0), axis=0)) ** 2).sum(axis=1)
        hz = np.fft.rfftfreq(len(place), 1.0 / 60.0)
        rhythm.append(power[(hz > 0.4) & (hz < 0.6)].sum() / power.sum())
    assert rhythm[0] > 0.65
    assert rhythm[1] < 0.4
