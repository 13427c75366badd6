"""Hand-eye, robot-world and gantry: truth within the stated covariance, both starts, refusals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import f as fisher_f

from calibration.hand_eye import HandEyeResult, solve_gantry, solve_hand_eye, solve_robot_world
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array, Frame, Rigid
from navsrv.kernel.registration import Verdict


def pose(vector_rad: tuple[float, ...], shift_mm: tuple[float, ...]) -> Array:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(vector_rad).as_matrix()
    matrix[:3, 3] = shift_mm
    return matrix


X = pose((0.4, -0.7, 1.1), (40.0, -25.0, 60.0))
Z = pose((1.4, 0.7, 0.2), (-300.0, 150.0, -900.0))
BASE, HAND, EYE, WORLD = Frame("base"), Frame("hand"), Frame("eye"), Frame("world")


def poses(turns: Rotation, shifts_mm: Array) -> Array:
    stack = np.tile(np.eye(4), (len(turns), 1, 1))
    stack[:, :3, :3] = turns.as_matrix()
    stack[:, :3, 3] = shifts_mm
    return stack


def exact(rng: np.random.Generator, n: int = 60) -> tuple[Array, Array]:
    """Return hand and eye poses (N, 4, 4) without noise, by the definition of both unknowns."""
    hand = poses(
        Rotation.from_rotvec(rng.uniform(-0.5, 0.5, (n, 3))), rng.uniform((-100, -100, -900), (100, 100, -700), (n, 3))
    )
    return hand, np.linalg.inv(hand @ X) @ Z


def shaken(stack: Array, rng: np.random.Generator, heavy: bool) -> Array:
    n = len(stack)
    noise = rng.standard_t(4, (n, 6)) / np.sqrt(2.0) if heavy else rng.normal(size=(n, 6))
    return poses(
        Rotation.from_rotvec(0.001 * noise[:, :3]) * Rotation.from_matrix(stack[:, :3, :3]),
        stack[:, :3, 3] + 0.2 * noise[:, 3:],
    )


Solver = Callable[..., HandEyeResult]


def solved(solver: Solver, hand: Array, eye: Array) -> HandEyeResult:
    return solver(hand, eye, base=BASE, hand=HAND, eye=EYE, world=WORLD)


def twist(found: Rigid, truth: Array) -> Array:
    """Return the left perturbation (6,) from truth to found."""
    turn = found.rotation @ truth[:3, :3].T
    return np.r_[Rotation.from_matrix(turn).as_rotvec(), found.translation_mm - turn @ truth[:3, 3]]


@pytest.mark.parametrize("solver", [solve_hand_eye, solve_robot_world])
@pytest.mark.parametrize("heavy", [False, True])
def test_both_transforms_lie_within_their_covariance(solver: Solver, heavy: bool) -> None:
    """Catches a wrong side of the perturbation, swapped blocks, or noise of one kind given the other's weight."""
    rng = np.random.default_rng(6)
    n, trials = 60, 100
    inside = np.zeros(2)
    sizes = []
    for _ in range(trials):
        hand, eye = exact(rng, n)
        result = solved(solver, shaken(hand, rng, heavy), shaken(eye, rng, heavy))
        for i, (found, truth) in enumerate(((result.hand_from_eye, X), (result.base_from_world, Z))):
            off = twist(found, truth)
            assert found.covariance is not None
            inside[i] += off @ np.linalg.solve(found.covariance, off) < (
                6 * (n - 1) / (n - 6) * fisher_f.ppf(0.95, 6, n - 6)
            )
        off = result.hand_from_eye.translation_mm - X[:3, 3]
        sizes.append(float(off @ off) / dict(result.details)["eye_sigma_mm"] ** 2)
    assert (inside / trials >= 0.87).all()
    assert (inside / trials <= 1.0).all()
    assert 0.67 < np.mean(sizes) < 1.45


@pytest.mark.parametrize("solver", [solve_hand_eye, solve_robot_world])
def test_exact_poses_give_back_both_transforms_and_their_frames(solver: Solver) -> None:
    result = solved(solver, *exact(np.random.default_rng(1)))
    assert np.abs(result.hand_from_eye.matrix - X).max() < 1e-6
    assert np.abs(result.base_from_world.matrix - Z).max() < 1e-5
    assert (result.hand_from_eye.to, result.hand_from_eye.frm) == (HAND, EYE)
    assert (result.base_from_world.to, result.base_from_world.frm) == (BASE, WORLD)
    assert result.verdict is Verdict.ACCEPT


def test_a_slipped_marker_is_not_accepted() -> None:
    rng = np.random.default_rng(2)
    hand, eye = exact(rng, 80)
    hand[40:] = hand[40:] @ pose((0.0, 0.05, 0.0), (5.0, 0.0, 0.0))
    result = solved(solve_hand_eye, shaken(hand, rng, False), eye)
    assert result.verdict is not Verdict.ACCEPT


def one_axis(hand: Array, eye: Array) -> tuple[Array, Array]:
    turned = poses(Rotation.from_rotvec(np.linspace(-1, 1, len(hand))[:, None] * [0.0, 0.6, 0.8]), hand[:, :3, 3])
    return turned, np.linalg.inv(turned @ X) @ Z


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda a, b: (a[:6], b[:6]), "6 poses, at least 10"),
        (lambda a, b: (a, b[1:]), "60 hand poses against 59 eye poses"),
        (one_axis, r"spread 0\.00 deg about the weakest axis"),
        (lambda a, b: (np.tile(a[:1], (60, 1, 1)), b), r"spread 0\.00 deg"),
        (lambda a, b: (np.tile(a[:1], (60, 1, 1)), np.tile(b[:1], (60, 1, 1))), "59 of 60 poses repeat"),
        (lambda a, b: (a, np.full_like(b, np.nan)), "eye poses: pose 1 .* not finite"),
        (lambda a, b: (a, b @ np.diag([1.0, 1.0, -1.0, 1.0])), "eye poses: pose 1 mirrors"),
        (lambda a, b: (a, np.roll(b, 7, axis=0)), r"differ by \d+\.\d deg"),
    ],
)
def test_bad_data_is_refused_with_its_number(
    change: Callable[[Array, Array], tuple[Array, Array]], complaint: str
) -> None:
    hand, eye = change(*exact(np.random.default_rng(3)))
    for solver in (solve_hand_eye, solve_robot_world):
        with pytest.raises(CalibrationError, match=complaint):
            solved(solver, hand, eye)


def test_poses_given_the_other_way_round_are_not_accepted() -> None:
    """World-from-eye in place of eye-from-world turns by the same angles, but nothing fits it."""
    hand, eye = exact(np.random.default_rng(3))
    assert solved(solve_hand_eye, hand, np.linalg.inv(eye)).verdict is Verdict.REFUSE


GANTRY_FROM_VOLUME = pose((0.1, 1.5, -0.2), (350.0, -80.0, 20.0))
TARGET = np.array([10.0, -20.0, 30.0])


def scans(rng: np.random.Generator, n: int, noise: float) -> tuple[Array, Array, Array]:
    gantry = poses(
        Rotation.from_rotvec(rng.uniform(-0.05, 0.05, (n, 3))), rng.uniform((-20, -20, -1500), (20, 20, -1400), (n, 3))
    )
    reference = poses(Rotation.from_rotvec(rng.uniform(-0.5, 0.5, (n, 3))), rng.uniform(-1200, -1100, (n, 3)))
    volume_from_reference = np.linalg.inv(gantry @ GANTRY_FROM_VOLUME) @ reference
    shake = poses(Rotation.from_rotvec(rng.normal(0, 0.002 * noise, (n, 3))), rng.normal(0, 0.3 * noise, (n, 3)))
    return gantry, reference, shake @ volume_from_reference


def test_gantry_finds_its_volume_and_predicts_its_error() -> None:
    rng = np.random.default_rng(4)
    truth = GANTRY_FROM_VOLUME[:3, :3] @ TARGET + GANTRY_FROM_VOLUME[:3, 3]
    errors, predicted = [], []
    inside, n, trials = 0, 12, 150
    for _ in range(trials):
        result = solve_gantry(
            *scans(rng, 6, 1.0), gantry=Frame("gantry"), volume=Frame("volume"), target_volume_mm=TARGET
        )
        errors.append(float(((result.gantry_from_volume.apply(TARGET) - truth) ** 2).sum()))
        predicted.append(result.tre_mm**2)
        more = solve_gantry(
            *scans(rng, n, 1.0), gantry=Frame("gantry"), volume=Frame("volume"), target_volume_mm=TARGET
        )
        off, covariance = twist(more.gantry_from_volume, GANTRY_FROM_VOLUME), more.gantry_from_volume.covariance
        assert covariance is not None
        # Hotelling: twelve scans say little about twenty-one variances.
        inside += off @ np.linalg.solve(covariance, off) < 6 * (n - 1) / (n - 6) * fisher_f.ppf(0.95, 6, n - 6)
    assert 0.6 < np.mean(errors) / np.mean(predicted) < 1.1  # six scans owe a margin
    assert 0.88 <= inside / trials <= 0.995
    assert result.verdict is Verdict.ACCEPT


def test_gantry_refuses_what_is_no_set_of_scans() -> None:
    gantry, reference, registered = scans(np.random.default_rng(5), 6, 0.0)
    frames = {"gantry": Frame("gantry"), "volume": Frame("volume")}
    result = solve_gantry(gantry, reference, registered, target_volume_mm=TARGET, **frames)
    assert np.abs(result.gantry_from_volume.matrix - GANTRY_FROM_VOLUME).max() < 1e-6
    with pytest.raises(CalibrationError, match="6 different gantry poses against 5"):
        solve_gantry(gantry, reference, registered[:5], target_volume_mm=TARGET, **frames)
    bumped = registered.copy()
    bumped[3, :3, 3] += (0.0, 9.0, 0.0)
    result = solve_gantry(gantry, reference, bumped, target_volume_mm=TARGET, **frames)
    assert result.verdict is Verdict.REFUSE
    assert "a scan misses the mean" in result.reason
