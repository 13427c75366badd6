"""Paired landmarks: known motion, predicted error against Monte Carlo, refusals, and the real pelvis phantom."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from calibration.landmarks import solve_landmarks
from calibration.matching import match_landmarks
from calibration.paired import fitzpatrick_tre_mm
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import TRACKER, Array
from navsrv.kernel.registration import Verdict, tre_rms_mm

POINTS_MM = np.array(
    [
        [0.0, 0.0, 0.0],
        [90.0, 10.0, 5.0],
        [30.0, 110.0, -10.0],
        [70.0, 60.0, 40.0],
        [-40.0, 50.0, 25.0],
        [5.0, 80.0, 60.0],
    ]
)
TARGET_MM = np.array([40.0, -60.0, 70.0])


def moved(points_mm: Array, seed: int = 3) -> tuple[Array, Array, Array]:
    """Return points seen from another frame, and the rotation and translation that bring them back."""
    rng = np.random.default_rng(seed)
    rotation = Rotation.random(rng=rng).as_matrix()
    translation = rng.uniform(-800, 800, 3)
    return (points_mm - translation) @ rotation, rotation, translation


def test_exact_points_give_back_the_motion() -> None:
    seen, rotation, translation = moved(POINTS_MM)
    result = solve_landmarks(seen, POINTS_MM, frm=TRACKER, target_ct_mm=TARGET_MM, fle_mm=0.3)
    assert np.abs(result.transform.rotation - rotation).max() < 1e-9
    assert np.abs(result.transform.translation_mm - translation).max() < 1e-6
    assert (str(result.transform.to), str(result.transform.frm)) == ("ct", "tracker")
    assert result.verdict is Verdict.ACCEPT


def test_predicted_tre_agrees_with_fitzpatrick_and_with_monte_carlo() -> None:
    """Catches a covariance in the wrong frame, a swapped rotation/translation block, or FLE read per axis."""
    sigma = 0.4
    fle = sigma * np.sqrt(3.0)
    rng = np.random.default_rng(11)
    seen, rotation, translation = moved(POINTS_MM)
    target_seen = (TARGET_MM - translation) @ rotation
    errors, twists, fres = [], [], []
    for _ in range(900):
        noisy = seen + rng.normal(0, sigma, seen.shape)
        result = solve_landmarks(noisy, POINTS_MM, frm=TRACKER, target_ct_mm=TARGET_MM, fle_mm=fle)
        errors.append(result.transform.apply(target_seen) - TARGET_MM)
        turn = result.transform.rotation @ rotation.T
        twists.append(
            np.r_[Rotation.from_matrix(turn).as_rotvec(), result.transform.translation_mm - turn @ translation]
        )
        fres.append(result.residual_mm or 0.0)
    actual = np.sqrt((np.array(errors) ** 2).sum(axis=1).mean())
    assert tre_rms_mm(result.transform, TARGET_MM) == pytest.approx(actual, rel=0.07)
    assert fitzpatrick_tre_mm(POINTS_MM, TARGET_MM, fle) == pytest.approx(result.tre_mm, rel=1e-2)
    assert np.mean(np.square(fres)) == pytest.approx((1 - 2 / len(POINTS_MM)) * fle**2, rel=0.06)
    predicted = result.transform.covariance
    assert predicted is not None
    whitened = np.array(twists) @ np.linalg.inv(np.linalg.cholesky(predicted)).T
    assert np.abs(np.cov(whitened.T) - np.eye(6)).max() < 0.2


def test_estimated_fle_is_right_on_average_and_its_bound_covers() -> None:
    """With five points FLE is estimated from FRE: unbiased in the square, and the 95 % bound holds about that often."""
    sigma, rng = 0.5, np.random.default_rng(5)
    seen, _, _ = moved(POINTS_MM[:5])
    true_tre = fitzpatrick_tre_mm(POINTS_MM[:5], TARGET_MM, sigma * np.sqrt(3))
    rows = []
    for _ in range(400):
        noisy = seen + rng.normal(0, sigma, seen.shape)
        details = dict(solve_landmarks(noisy, POINTS_MM[:5], frm=TRACKER, target_ct_mm=TARGET_MM).details)
        rows.append((details["fle_mm"], details["tre_upper95_mm"]))
    fle, upper = np.array(rows).T
    assert np.mean(fle**2) == pytest.approx(3 * sigma**2, rel=0.08)
    assert 0.91 < np.mean(upper >= true_tre) < 0.98


@pytest.mark.parametrize(
    ("points", "complaint"),
    [
        (POINTS_MM[:2], "2 landmarks"),
        (np.array([[0.0, 0, 0], [50, 0.5, 0], [100, 0, 0.5], [150, -0.5, 0]]), "rms distance from it 0."),
        (np.array([[0.0, 0, 0], [0.4, 0, 0], [50, 60, 0], [0, 70, 9]]), "landmarks 1 and 2 .* 0.40 mm"),
        (np.array([[0.0, 0, 0], [50, np.nan, 0], [0, 70, 9]]), "landmark 2 .* not finite"),
    ],
)
def test_points_that_cannot_carry_a_rotation_are_refused_with_the_number(points: Array, complaint: str) -> None:
    with pytest.raises(CalibrationError, match=complaint):
        solve_landmarks(points, points, frm=TRACKER, target_ct_mm=TARGET_MM)


def test_unequal_counts_and_bad_fle_are_refused() -> None:
    with pytest.raises(CalibrationError, match="6 landmarks against 5"):
        solve_landmarks(POINTS_MM, POINTS_MM[:5], frm=TRACKER, target_ct_mm=TARGET_MM)
    with pytest.raises(CalibrationError, match="FLE"):
        solve_landmarks(POINTS_MM, POINTS_MM, frm=TRACKER, target_ct_mm=TARGET_MM, fle_mm=0.0)


def test_one_displaced_landmark_is_named_and_not_accepted() -> None:
    seen, _, _ = moved(POINTS_MM)
    seen[2] += (9.0, 0.0, 0.0)
    result = solve_landmarks(seen, POINTS_MM, frm=TRACKER, target_ct_mm=TARGET_MM)
    assert result.verdict is not Verdict.ACCEPT
    assert "landmark 3" in result.reason


def test_a_far_target_is_not_accepted_though_the_residuals_are_the_same() -> None:
    """The same FRE near and far: only TRE tells them apart."""
    seen, _, _ = moved(POINTS_MM)
    noisy = seen + np.random.default_rng(1).normal(0, 0.5, seen.shape)
    near = solve_landmarks(noisy, POINTS_MM, frm=TRACKER, target_ct_mm=POINTS_MM.mean(axis=0), fle_mm=0.9)
    far = solve_landmarks(noisy, POINTS_MM, frm=TRACKER, target_ct_mm=[0, 0, 900.0], fle_mm=0.9)
    assert near.residual_mm == far.residual_mm
    assert near.verdict is Verdict.ACCEPT
    assert far.verdict is Verdict.REFUSE


def test_left_and_right_exchanged_is_refused_and_said() -> None:
    seen, _, _ = moved(POINTS_MM * np.array([-1.0, 1.0, 1.0]))
    result = solve_landmarks(seen, POINTS_MM, frm=TRACKER, target_ct_mm=TARGET_MM)
    assert result.verdict is Verdict.REFUSE
    assert "mirror" in result.reason


def test_three_landmarks_are_never_accepted_without_a_check() -> None:
    seen, _, _ = moved(POINTS_MM[:3])
    result = solve_landmarks(seen, POINTS_MM[:3], frm=TRACKER, target_ct_mm=POINTS_MM[0], fle_mm=0.1)
    assert result.verdict is Verdict.DOUBT


@pytest.mark.parametrize("seed", range(5))
def test_any_order_is_put_right(seed: int) -> None:
    rng = np.random.default_rng(seed)
    seen, _, translation = moved(POINTS_MM, seed)
    order = rng.permutation(len(seen))
    noisy = seen[order] + rng.normal(0, 0.3, seen.shape)
    assert match_landmarks(noisy, POINTS_MM).order == tuple(order)
    result = solve_landmarks(noisy, POINTS_MM, frm=TRACKER, target_ct_mm=TARGET_MM, match=True)
    assert np.linalg.norm(result.transform.translation_mm - translation) < 10.0


def test_a_symmetric_arrangement_in_unknown_order_is_refused() -> None:
    square = np.array([[0.0, 0, 0], [80, 0, 0], [80, 80, 0], [0, 80, 0]])
    with pytest.raises(CalibrationError, match="ambiguous"):
        solve_landmarks(square, square, frm=TRACKER, target_ct_mm=TARGET_MM, match=True)


@pytest.mark.data
def test_pelvis_phantom_fiducials(data_dir: Path) -> None:
    """Real scanner, real optical tracker: FRE rms 0.651 mm; the files' orders correspond."""
    folder = data_dir / "pelvis_phantom"
    tracked = np.loadtxt(folder / "Tracker_Fiducial_Markers.txt")
    ct = np.loadtxt(folder / "pelvis_nii_ct_fiducial_markers.txt") + np.array([-222.543, -361.543, 11.5])
    result = solve_landmarks(tracked, ct, frm=TRACKER, target_ct_mm=ct.mean(axis=0))
    details = dict(result.details)
    assert result.residual_mm == pytest.approx(0.651, abs=0.001)
    assert details["leave_one_out_rms_mm"] == pytest.approx(1.19, abs=0.01)
    assert result.verdict is Verdict.ACCEPT
    matched = solve_landmarks(tracked, ct, frm=TRACKER, target_ct_mm=ct.mean(axis=0), match=True)
    assert dict(matched.details)["order_changed"] == 0.0
    # The phantom is nearly symmetric under half a turn: the exchanged order fits with 1.9 mm, and that is said.
    assert matched.verdict is Verdict.DOUBT
    assert "another order" in matched.reason


CAMERA_MM2 = np.diag([0.15, 0.15, 0.9]) ** 2


def test_noise_that_differs_between_axes_is_weighed_and_predicted() -> None:
    """Catches weights that are not turned into the other frame, and a covariance of the unweighted fit."""
    rng = np.random.default_rng(21)
    seen, rotation, translation = moved(POINTS_MM)
    target_seen = (TARGET_MM - translation) @ rotation
    picking_mm2 = np.diag([0.2, 0.2, 0.4]) ** 2
    distances, plain, weighted = [], [], []
    for _ in range(300):
        noisy = seen + rng.multivariate_normal(np.zeros(3), CAMERA_MM2, len(seen))
        planned = POINTS_MM + rng.multivariate_normal(np.zeros(3), picking_mm2, len(seen))
        result = solve_landmarks(
            noisy, planned, frm=TRACKER, target_ct_mm=TARGET_MM, noise_from_mm2=CAMERA_MM2, noise_ct_mm2=picking_mm2
        )
        turn = result.transform.rotation @ rotation.T
        off = np.r_[Rotation.from_matrix(turn).as_rotvec(), result.transform.translation_mm - turn @ translation]
        assert result.transform.covariance is not None
        distances.append(float(off @ np.linalg.solve(result.transform.covariance, off)))
        weighted.append(float(((result.transform.apply(target_seen) - TARGET_MM) ** 2).sum()))
        other = solve_landmarks(noisy, planned, frm=TRACKER, target_ct_mm=TARGET_MM, fle_mm=1.0)
        plain.append(float(((other.transform.apply(target_seen) - TARGET_MM) ** 2).sum()))
    assert np.mean(distances) == pytest.approx(6.0, rel=0.15)
    assert 0.92 <= np.mean(np.array(distances) < chi2.ppf(0.95, 6)) <= 0.98
    assert result.tre_mm**2 == pytest.approx(np.mean(weighted), rel=0.2)
    assert np.mean(weighted) < 0.9 * np.mean(plain)  # knowing the noise is worth something


def test_an_outlier_is_proposed_by_name_and_noise_alone_seldom_is() -> None:
    rng = np.random.default_rng(22)
    seen, _, _ = moved(POINTS_MM)
    named = alarms = 0
    for _ in range(200):
        noisy = seen + rng.normal(0.0, 0.4, seen.shape)
        result = solve_landmarks(noisy, POINTS_MM, frm=TRACKER, target_ct_mm=TARGET_MM)
        alarms += "outlier_proposed" in dict(result.details)
        noisy[3] += (0.0, 5.0, 0.0)
        result = solve_landmarks(noisy, POINTS_MM, frm=TRACKER, target_ct_mm=TARGET_MM)
        named += dict(result.details).get("outlier_proposed") == 4.0
        assert result.verdict is not Verdict.ACCEPT or "outlier_proposed" not in dict(result.details)
    assert named > 180
    assert alarms <= 7  # 1 % of 200, and its own chance


@pytest.mark.parametrize("seed", range(4))
def test_ten_landmarks_in_any_order_are_put_right(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    points = rng.uniform(-80.0, 80.0, (10, 3))
    seen, _, _ = moved(points, seed)
    order = rng.permutation(10)
    match = match_landmarks(seen[order] + rng.normal(0.0, 0.5, (10, 3)), points)
    assert match.order == tuple(order)
    assert match.chance < 1e-3


def test_order_agrees_with_trying_every_one() -> None:
    """An independent exhaustive search says which order is best and which next; so must the pruned one."""
    rng = np.random.default_rng(23)
    for _ in range(5):
        points = rng.uniform(-60.0, 60.0, (5, 3))
        seen, _, _ = moved(points, int(rng.integers(100)))
        seen = seen[rng.permutation(5)] + rng.normal(0.0, 2.0, (5, 3))
        costs = []
        for order in permutations(range(5)):
            found = Rotation.align_vectors(points[list(order)] - points.mean(axis=0), seen - seen.mean(axis=0))
            costs.append((float(found[1]) / np.sqrt(5), order))
        costs.sort()
        try:
            match = match_landmarks(seen, points)
        except CalibrationError:
            assert costs[1][0] < 3.5 * costs[0][0] or costs[1][0] - costs[0][0] < 1.0
            continue
        assert match.order == costs[0][1]
        assert match.fre_mm == pytest.approx(costs[0][0], abs=1e-6)
        assert match.next_fre_mm <= costs[1][0] + 1e-6


def test_points_that_are_not_the_same_and_too_many_are_refused() -> None:
    rng = np.random.default_rng(24)
    with pytest.raises(CalibrationError, match=r"no order of the 6 landmarks fits|stays open"):
        match_landmarks(rng.uniform(-300.0, 300.0, (6, 3)), POINTS_MM)
    with pytest.raises(CalibrationError, match="11 landmarks in unknown order"):
        match_landmarks(rng.uniform(-99, 99, (11, 3)), rng.uniform(-99, 99, (11, 3)))
    ring = np.array([(60 * np.cos(t), 60 * np.sin(t), 5.0 * (i % 2)) for i, t in enumerate(np.arange(10) * np.pi / 5)])
    with pytest.raises(CalibrationError, match="ambiguous"):
        match_landmarks(ring, ring)
