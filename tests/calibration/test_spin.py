"""Spin: the axis within its stated covariance, its sign, and turning that has no axis."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import f as fisher_f

from calibration.spin import solve_spin
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array
from navsrv.kernel.registration import Verdict

AXIS = np.array([0.1, -0.2, 0.97]) / np.linalg.norm([0.1, -0.2, 0.97])
TIP = 150.0 * AXIS + (3.0, 0.0, 0.0)
LIE = Rotation.from_rotvec([0.5, -0.9, 0.3])


def recording(angles_rad: Array, shake: Rotation | None = None) -> Array:
    """Return poses (N, 4, 4) of a tool turned about its shaft while it lies somewhere in the room."""
    turns = LIE * Rotation.from_rotvec(angles_rad[:, None] * AXIS)
    poses = np.tile(np.eye(4), (len(angles_rad), 1, 1))
    poses[:, :3, :3] = (turns if shake is None else shake * turns).as_matrix()
    poses[:, :3, 3] = (100.0, -20.0, -900.0)
    return poses


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("span_rad", [1.8, 6.0])
def test_truth_lies_within_the_stated_covariance(heavy: bool, span_rad: float) -> None:
    rng = np.random.default_rng(4)
    trials, inside, ratios = 150, 0, []
    for _ in range(trials):
        noise = rng.standard_t(4, (100, 3)) / np.sqrt(2.0) if heavy else rng.normal(size=(100, 3))
        result = solve_spin(
            recording(np.linspace(0.0, span_rad, 100), Rotation.from_rotvec(0.004 * noise)), tip_tool_mm=TIP
        )
        off = result.axis_tool - AXIS
        distance = float(off @ np.linalg.pinv(result.covariance_rad2, rcond=1e-6, hermitian=True) @ off)
        blocks = dict(result.details)["blocks"]
        inside += distance < 2 * (blocks - 1) / (blocks - 2) * fisher_f.ppf(0.95, 2, blocks - 2)
        ratios.append(float(off @ off) / result.axis_sigma_rad**2)
    assert 0.89 <= inside / trials <= 0.995
    assert 0.7 < np.mean(ratios) < 1.4


def test_axis_points_to_the_tip_and_back_when_the_tip_is_behind() -> None:
    angles = np.linspace(0.0, 2.5, 60)
    assert np.allclose(solve_spin(recording(angles), tip_tool_mm=TIP).axis_tool, AXIS, atol=1e-6)
    assert np.allclose(solve_spin(recording(angles), tip_tool_mm=-TIP).axis_tool, -AXIS, atol=1e-6)


def test_axis_in_the_tracker_is_where_the_tool_lay() -> None:
    result = solve_spin(recording(np.linspace(0.0, 2.5, 60)), tip_tool_mm=TIP)
    assert np.allclose(result.axis_tracker, LIE.apply(AXIS), atol=1e-6)
    assert result.verdict is Verdict.ACCEPT


def test_without_a_tip_the_end_is_in_doubt() -> None:
    result = solve_spin(recording(np.linspace(0.0, 2.5, 60)))
    assert result.verdict is Verdict.DOUBT
    assert "which end" in result.reason


def test_a_wobbling_shaft_is_not_accepted() -> None:
    wobble = 0.06 * np.column_stack([np.cos(np.arange(80) / 3), np.sin(np.arange(80) / 3), np.zeros(80)])
    result = solve_spin(recording(np.linspace(0.0, 6.0, 80), Rotation.from_rotvec(wobble)), tip_tool_mm=TIP)
    assert result.verdict is not Verdict.ACCEPT
    assert "wobbles" in result.reason


TUMBLING = np.tile(np.eye(4), (100, 1, 1))
TUMBLING[:, :3, :3] = Rotation.random(100, rng=np.random.default_rng(1)).as_matrix()


@pytest.mark.parametrize(
    ("poses", "tip", "complaint"),
    [
        (recording(np.linspace(0.0, 0.4, 60)), TIP, r"turned 6\.\d deg .* at least 20 deg"),
        (TUMBLING, TIP, "no single axis"),
        (recording(np.linspace(0.0, 2.0, 5)), TIP, "5 poses"),
        (recording(np.linspace(0.0, 2.0, 60)) @ np.diag([1.0, 1.0, -1.0, 1.0]), TIP, "mirrors"),
        (recording(np.full(60, 1.0)), TIP, "59 of 60 poses repeat"),
        (np.full((60, 4, 4), np.nan), TIP, "pose 1 .* not finite"),
        (recording(np.linspace(0.0, 2.0, 60)), np.zeros(3), r"tip lies 0\.00 mm"),
        (recording(np.linspace(0.0, 2.0, 60)), np.array([np.nan, 0.0, 1.0]), "three finite"),
    ],
)
def test_bad_data_is_refused_with_its_number(poses: Array, tip: Array, complaint: str) -> None:
    with pytest.raises(CalibrationError, match=complaint):
        solve_spin(poses, tip_tool_mm=tip)
