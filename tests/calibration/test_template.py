"""Needle axis from two tips, and tip and axis from a template: truth within the covariance, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import chi2
from scipy.stats import f as fisher_f

from calibration.template import axis_from_tips, solve_template
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array
from navsrv.kernel.registration import Verdict

TIP, OTHER = np.array([3.0, -4.0, 160.0]), np.array([1.0, -2.0, 60.0])
AXIS = (TIP - OTHER) / np.linalg.norm(TIP - OTHER)
TIP_COVARIANCE = np.array([[0.04, 0.01, 0.0], [0.01, 0.09, 0.0], [0.0, 0.0, 0.2]])
OTHER_COVARIANCE = np.diag([0.02, 0.02, 0.05])
TOOL_FROM_TEMPLATE = np.eye(4)
TOOL_FROM_TEMPLATE[:3, :3] = Rotation.from_rotvec([0.2, -0.4, 1.0]).as_matrix()
TOOL_FROM_TEMPLATE[:3, 3] = (20.0, 5.0, 120.0)
HOLE, HOLE_AXIS = np.array([10.0, 40.0, -15.0]), np.array([0.0, 0.0, -2.0])


def test_axis_of_two_tips_lies_within_its_covariance() -> None:
    rng = np.random.default_rng(8)
    distances = []
    for _ in range(1000):
        result = axis_from_tips(
            rng.multivariate_normal(TIP, TIP_COVARIANCE),
            TIP_COVARIANCE,
            rng.multivariate_normal(OTHER, OTHER_COVARIANCE),
            OTHER_COVARIANCE,
        )
        off = result.axis_tool - AXIS
        distances.append(float(off @ np.linalg.pinv(result.axis_covariance_rad2, rcond=1e-6, hermitian=True) @ off))
    assert 0.93 < np.mean(np.array(distances) < chi2.ppf(0.95, 2)) < 0.97
    assert np.mean(distances) == pytest.approx(2.0, rel=0.12)


@pytest.mark.parametrize(
    ("other", "covariance", "complaint"),
    [
        (TIP - (0.0, 0.0, 5.0), OTHER_COVARIANCE, r"5\.00 mm apart, at least 20 mm"),
        (np.array([np.inf, 0.0, 0.0]), OTHER_COVARIANCE, "three finite"),
        (OTHER, np.zeros((3, 3)), "at least 0.02 mm"),
        (OTHER, np.diag([1.0, 1.0, -0.5]), r"smallest variance -0\.5"),
    ],
)
def test_two_tips_that_make_no_axis_are_refused(other: Array, covariance: Array, complaint: str) -> None:
    with pytest.raises(CalibrationError, match=complaint):
        axis_from_tips(TIP, TIP_COVARIANCE, other, covariance)


def views(rng: np.random.Generator, n: int, turn_rad: float, shift_mm: float) -> tuple[Array, Array]:
    """Return tool and template poses (N, 4, 4) of a template that is moved about, the tool's with noise."""
    template = np.tile(np.eye(4), (n, 1, 1))
    template[:, :3, :3] = Rotation.from_rotvec(rng.uniform(-0.4, 0.4, (n, 3))).as_matrix()
    template[:, :3, 3] = rng.uniform((-50.0, -50.0, -950.0), (50.0, 50.0, -850.0), (n, 3))
    noise = np.tile(np.eye(4), (n, 1, 1))
    noise[:, :3, :3] = Rotation.from_rotvec(turn_rad * rng.standard_t(5, (n, 3))).as_matrix()
    noise[:, :3, 3] = rng.normal(0.0, shift_mm, (n, 3))
    return template @ np.linalg.inv(TOOL_FROM_TEMPLATE) @ noise, template


def test_template_finds_tip_and_axis_within_their_covariance() -> None:
    rng = np.random.default_rng(9)
    tip = TOOL_FROM_TEMPLATE[:3, :3] @ HOLE + TOOL_FROM_TEMPLATE[:3, 3]
    axis = TOOL_FROM_TEMPLATE[:3, :3] @ HOLE_AXIS / 2.0
    tips = axes = 0
    for _ in range(200):
        made = rng.normal(0.0, 0.1, 3)
        tools, templates = views(rng, 60, 0.002, 0.25)
        result = solve_template(tools, templates, tip_template_mm=HOLE + made, axis_template=HOLE_AXIS, made_to_mm=0.1)
        off = result.tip_tool_mm - tip
        tips += off @ np.linalg.solve(result.tip_covariance_mm2, off) < 3 * 59 / 57 * fisher_f.ppf(0.95, 3, 57)
        off = result.axis_tool - axis
        inverse = np.linalg.pinv(result.axis_covariance_rad2, rcond=1e-6, hermitian=True)
        axes += off @ inverse @ off < 2 * 59 / 58 * fisher_f.ppf(0.95, 2, 58)
    assert 178 <= tips <= 199
    assert 178 <= axes <= 199
    assert result.verdict is Verdict.ACCEPT


def test_the_template_cannot_be_averaged_better_than_it_is_made() -> None:
    tools, templates = views(np.random.default_rng(1), 400, 0.0005, 0.05)
    result = solve_template(tools, templates, tip_template_mm=HOLE, axis_template=HOLE_AXIS, made_to_mm=0.6)
    assert dict(result.details)["tip_sigma_mm"] > 1.0
    assert result.verdict is Verdict.DOUBT


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda a, b: (a[:5], b[:5]), "5 poses"),
        (lambda a, b: (a, b[:-1]), "each needs its partner"),
        (lambda a, b: (a, b * np.nan), "not finite"),
        (lambda a, b: (np.repeat(a[:1], 30, 0), np.repeat(b[:1], 30, 0)), "29 of 30 poses repeat"),
        (lambda a, b: (a @ np.diag([1.0, -1.0, 1.0, 1.0]), b), "mirrors"),
    ],
)
def test_bad_views_are_refused(change: object, complaint: str) -> None:
    assert callable(change)
    tools, templates = change(*views(np.random.default_rng(1), 30, 0.001, 0.1))
    with pytest.raises(CalibrationError, match=complaint):
        solve_template(tools, templates, tip_template_mm=HOLE, axis_template=HOLE_AXIS, made_to_mm=0.1)
    tools, templates = views(np.random.default_rng(1), 30, 0.001, 0.1)
    with pytest.raises(CalibrationError, match="length 0"):
        solve_template(tools, templates, tip_template_mm=HOLE, axis_template=(0, 0, 0), made_to_mm=0.1)
