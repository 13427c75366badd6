"""What the solvers share: leaving out in closed form against doing it, and blocks against known correlation."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.poses import Findings, jackknife_covariance, left_out_shifts, rotation_spread, time_blocks
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.registration import Verdict


def test_left_out_shifts_are_what_leaving_out_does() -> None:
    rng = np.random.default_rng(1)
    jacobian, measured = rng.normal(size=(20, 3, 4)), rng.normal(size=(20, 3))
    blocks = np.arange(20) // 3
    flat = jacobian.reshape(-1, 4)
    whole = np.linalg.lstsq(flat, measured.ravel(), rcond=None)[0]
    shifts = left_out_shifts(jacobian, measured - jacobian @ whole, blocks)
    for block in range(7):
        keep = blocks != block
        left = np.linalg.lstsq(jacobian[keep].reshape(-1, 4), measured[keep].ravel(), rcond=None)[0]
        assert np.allclose(left - whole, shifts[block], atol=1e-12)


def test_a_parameter_that_rests_on_one_block_is_refused() -> None:
    jacobian = np.random.default_rng(2).normal(size=(20, 3, 2))
    jacobian[:15, :, 1] = 0.0
    with pytest.raises(CalibrationError, match=r"block 4 of 4 .* alone carries a parameter"):
        left_out_shifts(jacobian, np.ones((20, 3)), np.arange(20) // 5)


def test_jackknife_of_a_mean_is_its_textbook_variance() -> None:
    values = np.random.default_rng(3).normal(size=(50, 1))
    left = (values.sum() - values) / 49.0
    assert jackknife_covariance(left)[0, 0] == pytest.approx(values.var(ddof=1) / 50.0)


def test_blocks_give_back_the_variance_of_a_correlated_mean() -> None:
    """Noise that lasts about 9 samples makes the mean of 600 as unsure as that of 67."""
    rng = np.random.default_rng(4)
    said, means = [], []
    for _ in range(200):
        noise = rng.normal(size=(600, 1))
        for i in range(1, 600):
            noise[i] = 0.8 * noise[i - 1] + 0.6 * noise[i]
        blocks, owed = time_blocks(noise)
        left = np.array([noise[blocks != b].mean(axis=0) for b in range(int(blocks.max()) + 1)])
        said.append(jackknife_covariance(left)[0, 0] * owed)
        means.append(float(noise.mean()))
    assert np.mean(said) == pytest.approx(np.var(means), rel=0.25)
    assert np.mean(said) > 5.0 / 600.0


def test_spread_knows_the_axis_that_was_turned_about() -> None:
    angles = np.linspace(-0.5, 0.5, 101)
    turns = np.zeros((101, 3, 3))
    turns[:, 2, 2] = 1.0
    turns[:, 0, 0] = turns[:, 1, 1] = np.cos(angles)
    turns[:, 1, 0], turns[:, 0, 1] = np.sin(angles), -np.sin(angles)
    spread, directions = rotation_spread(turns)
    assert spread[0] == pytest.approx(0.0, abs=1e-7)
    assert spread[1] == pytest.approx(np.std(angles), rel=0.03)
    assert abs(directions[2, 0]) == pytest.approx(1.0)


def test_a_figure_that_is_not_a_number_is_refused() -> None:
    found = Findings()
    found.grade("sigma", float("nan"), 1.0, 2.0, "mm")
    assert found.verdict("fine")[0] is Verdict.REFUSE
