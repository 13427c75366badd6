"""Pivot: truth within its stated covariance, three methods, recordings that cannot carry a tip, two real recordings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import f as fisher_f

from calibration.pivot import PivotMethod, solve_pivot
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array
from navsrv.kernel.registration import Verdict

TIP = np.array([5.0, -12.0, 180.0])
PIVOT = np.array([100.0, 50.0, -900.0])


def rotations(n: int) -> Rotation:
    """Return tilts of some 20 deg in all directions, as a hand makes them."""
    phase = np.linspace(0.0, 6.0 * np.pi, n)
    tilt = np.column_stack([0.4 * np.cos(phase), 0.4 * np.sin(1.3 * phase), 0.3 * np.sin(0.4 * phase)])
    return Rotation.from_rotvec(tilt)


def recording(turns: Rotation, shake_mm: Array | float = 0.0) -> Array:
    """Return poses (N, 4, 4) of a tool about its resting tip, their positions shaken."""
    poses = np.tile(np.eye(4), (len(turns), 1, 1))
    poses[:, :3, :3] = turns.as_matrix()
    poses[:, :3, 3] = PIVOT - turns.apply(TIP) + shake_mm
    return poses


def gaussian(rng: np.random.Generator, n: int) -> Array:
    return recording(rotations(n), rng.normal(0.0, 0.3, (n, 3)))


def heavy_tailed(rng: np.random.Generator, n: int) -> Array:
    return recording(rotations(n), 0.2 * rng.standard_t(3, (n, 3)))


def anisotropic(rng: np.random.Generator, n: int) -> Array:
    """A camera sees depth worst."""
    return recording(rotations(n), rng.normal(0.0, (0.1, 0.1, 0.6), (n, 3)))


def shaken_rotation(rng: np.random.Generator, n: int) -> Array:
    poses = recording(rotations(n))
    poses[:, :3, :3] = Rotation.from_rotvec(rng.normal(0.0, 0.002, (n, 3))).as_matrix() @ poses[:, :3, :3]
    return poses


def correlated(rng: np.random.Generator, n: int) -> Array:
    """Noise that lasts 10 samples, as filters and a slow hand make it."""
    noise = rng.normal(0.0, 0.3, (n, 3))
    for i in range(1, n):
        noise[i] = 0.8 * noise[i - 1] + 0.6 * noise[i]
    return recording(rotations(n), noise)


@pytest.mark.parametrize(
    ("noise", "method"),
    [
        (gaussian, PivotMethod.ALGEBRAIC),
        (gaussian, PivotMethod.RANSAC),
        (heavy_tailed, PivotMethod.ALGEBRAIC),
        (anisotropic, PivotMethod.ALGEBRAIC),
        (shaken_rotation, PivotMethod.RANSAC),
        (correlated, PivotMethod.ALGEBRAIC),
    ],
)
def test_truth_lies_within_the_stated_covariance(
    noise: Callable[[np.random.Generator, int], Array], method: PivotMethod
) -> None:
    """Catches a covariance that counts correlated samples as new ones, or takes the tip's lever arm for none."""
    rng = np.random.default_rng(5)
    trials, inside, ratios = 150, 0, []
    for _ in range(trials):
        result = solve_pivot(noise(rng, 100), method=method)
        off = result.tip_tool_mm - TIP
        distance = float(off @ np.linalg.solve(result.covariance_mm2, off))
        blocks = dict(result.details)["blocks"]
        # Hotelling: the covariance is itself an estimate from so many blocks.
        inside += distance < 3 * (blocks - 1) / (blocks - 3) * fisher_f.ppf(0.95, 3, blocks - 3)
        ratios.append(float(off @ off) / result.tip_sigma_mm**2)
    assert 0.89 <= inside / trials <= 0.995
    assert 0.65 < np.mean(ratios) < 1.4  # neither claims too much nor hides behind a large covariance


def test_exact_poses_give_back_tip_and_pivot_by_every_method() -> None:
    for method in PivotMethod:
        result = solve_pivot(recording(rotations(60)), method=method)
        assert np.abs(result.tip_tool_mm - TIP).max() < 1e-6
        assert np.abs(result.pivot_tracker_mm - PIVOT).max() < 1e-6
        assert result.verdict is Verdict.ACCEPT


def test_outliers_are_left_out_by_ransac_and_told_by_algebraic() -> None:
    rng = np.random.default_rng(2)
    poses = recording(rotations(100), rng.normal(0.0, 0.2, (100, 3)))
    bad = rng.choice(100, 30, replace=False)
    poses[bad, :3, 3] += rng.uniform(5.0, 30.0, (30, 3))
    robust = solve_pivot(poses, method=PivotMethod.RANSAC)
    assert np.linalg.norm(robust.tip_tool_mm - TIP) < 0.5
    assert not robust.inliers[bad].any()
    assert robust.inliers.sum() >= 68
    assert robust.verdict is Verdict.DOUBT
    assert "30 %" in robust.reason
    plain = solve_pivot(poses)
    assert plain.verdict is Verdict.REFUSE
    assert plain.inliers.all()


def test_a_tip_that_slips_is_not_accepted() -> None:
    """Half way through, the tip leaves its divot by 4 mm: each half fits, the whole must not pass."""
    rng = np.random.default_rng(3)
    poses = recording(rotations(200), rng.normal(0.0, 0.1, (200, 3)))
    poses[100:, :3, 3] += (4.0, 0.0, 0.0)
    result = solve_pivot(poses)
    assert result.verdict is not Verdict.ACCEPT
    assert "noisy" in result.reason


def one_axis(n: int) -> Rotation:
    return Rotation.from_rotvec(np.linspace(-0.8, 0.8, n)[:, None] * [0.6, 0.0, 0.8])


def with_row(row: int, value: Array | float) -> Array:
    poses = recording(rotations(40))
    poses[row] = value
    return poses


MIRRORED = recording(rotations(40)) @ np.diag([-1.0, 1.0, 1.0, 1.0])
STATIC = recording(
    Rotation.from_rotvec(np.random.default_rng(1).normal(0, 0.002, (200, 3))),
    np.random.default_rng(2).normal(0, 0.3, (200, 3)),
)
LONE = np.concatenate([STATIC, recording(rotations(60))[[10, 30]]])
FEW_TILTS = recording(
    Rotation.from_rotvec([*(0.001 * np.random.default_rng(6).normal(size=(12, 3))), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)])
)
REPEATED = np.repeat(recording(rotations(20)), 5, axis=0)


@pytest.mark.parametrize(
    ("poses", "complaint"),
    [
        (STATIC, r"spread 0\.\d+ deg .* at least 4 deg"),
        (recording(one_axis(100), np.random.default_rng(3).normal(0, 0.3, (100, 3))), r"spread 0\.\d+ deg"),
        (LONE, r"spread \d\.\d+ deg"),
        (FEW_TILTS, r"without 1 of its 14 poses the rotations spread [0-3]\.\d+ deg"),
        (recording(rotations(8)), "8 poses, at least 12"),
        (with_row(6, np.nan), "pose 7 holds a number that is not finite"),
        (with_row(6, np.diag([1.0, 1.1, 1.0, 1.0])), r"pose 7 is not rigid: determinant 1\.100"),
        (MIRRORED, r"pose 1 mirrors: determinant -1\.000"),
        (REPEATED, "80 of 100 poses repeat"),
        (recording(rotations(40)).transpose(0, 2, 1), "pose 1 has the last row"),
        (recording(rotations(40))[:, :3], r"shape \(40, 3, 4\)"),
    ],
)
def test_a_recording_that_cannot_carry_a_tip_is_refused_with_its_number(poses: Array, complaint: str) -> None:
    for method in PivotMethod:
        with pytest.raises(CalibrationError, match=complaint):
            solve_pivot(poses, method=method)


def test_repeated_poses_are_no_new_measurements() -> None:
    """A source polled faster than it measures must not make the tip look surer."""
    rng = np.random.default_rng(7)
    poses = recording(rotations(100), rng.normal(0.0, 0.3, (100, 3)))
    once, polled = solve_pivot(poses), solve_pivot(np.repeat(poses, 2, axis=0)[:-1])
    assert polled.tip_sigma_mm == pytest.approx(once.tip_sigma_mm)
    assert dict(polled.details)["repeated"] == 99
    assert int(np.isnan(polled.residuals_mm).any(axis=1).sum()) == 99


@pytest.mark.data
def test_real_optical_recording_is_called_noisy(data_dir: Path) -> None:
    table = np.loadtxt(data_dir / "pivot" / "pivot_57_poses.csv", delimiter=",", skiprows=1)
    poses = table[:, 1:].reshape(-1, 4, 4)
    result = solve_pivot(poses)
    assert np.abs(result.tip_tool_mm - (-14.473, 394.634, -7.407)).max() < 2e-3
    assert np.abs(result.pivot_tracker_mm - (-804.742, -85.474, -2112.131)).max() < 2e-3
    assert result.residual_mm == pytest.approx(1.761, abs=5e-4)
    assert result.verdict is Verdict.REFUSE
    assert "noisy: residual per axis 1.76 mm" in result.reason
    assert 1.0 < result.tip_sigma_mm < 2.5
