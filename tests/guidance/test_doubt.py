"""Sigma is held against poses that are really perturbed: no formula of the code under test is used."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from navsrv.guidance.doubt import Z95, propagate_sigma
from navsrv.kernel.frames import Array

RNG = np.random.default_rng(11)
POINTS = np.array([[10.0, -20.0, 30.0], [80.0, 5.0, -60.0], [0.5, 0.25, 0.125], [-150.0, 90.0, 40.0]])
NEAREST = POINTS - np.array([[3.0, 0.0, 4.0], [-1.0, 2.0, 2.0], [0.0, 0.0, 7.0], [5.0, -5.0, 1.0]])
DIRECTIONS = (POINTS - NEAREST) / np.linalg.norm(POINTS - NEAREST, axis=1)[:, None]
REFERENCE = np.array([40.0, 60.0, -20.0])
QUIET = np.zeros(8)
EXACT = np.zeros((6, 6))
HALF = np.diag([1e-3] * 3 + [0.4] * 3) @ (np.eye(6) + 0.4 * RNG.standard_normal((6, 6)))
COVARIANCE = HALF @ HALF.T


def sigma(
    covariance: Array = EXACT,
    noise: Array = QUIET,
    offsets: Array | None = None,
    segmentation: Array | None = None,
    nearest: Array = NEAREST,
) -> Array:
    found = np.full(len(POINTS), np.nan)
    zeros = np.zeros(len(POINTS))
    propagate_sigma(
        POINTS,
        nearest,
        zeros if offsets is None else offsets,
        covariance,
        zeros if segmentation is None else segmentation,
        noise,
        REFERENCE,
        found,
    )
    return found


def noise(**terms: float) -> Array:
    names = ("tool_t", "tool_r", "ref_t", "ref_r", "tip", "axis", "lever", "motion")
    return np.array([terms.get(name, 0.0) for name in names])


def test_z95_is_the_one_sided_quantile() -> None:
    assert (RNG.standard_normal(1_000_000) < Z95).mean() == pytest.approx(0.95, abs=0.001)


def test_registration_against_perturbed_points() -> None:
    xi = RNG.multivariate_normal(np.zeros(6), COVARIANCE, 200_000)
    moved = Rotation.from_rotvec(xi[:, :3]).as_matrix() @ POINTS.T + xi[:, 3:, None]
    along = np.einsum("nij,ji->nj", moved - POINTS.T, DIRECTIONS)
    np.testing.assert_allclose(sigma(COVARIANCE), along.std(axis=0), rtol=0.01)


def test_registration_of_points_that_touch_is_never_too_small() -> None:
    """On the surface there is no direction: no direction may be worse than what is given."""
    touching = sigma(COVARIANCE, nearest=POINTS.copy())
    for direction in Rotation.random(300, rng=RNG).as_matrix()[:, :, 2]:
        assert (touching >= sigma(COVARIANCE, nearest=POINTS - direction)).all()


@pytest.mark.parametrize("term", ["tool_t", "ref_t", "tip", "motion"])
def test_translations_count_as_they_are(term: str) -> None:
    np.testing.assert_allclose(sigma(noise=noise(**{term: 0.3})), 0.3)


def test_rotation_of_the_reference_is_a_lever_that_is_not_too_small() -> None:
    """Real turns about the reference: at most what is given, and all of it where the lever lies across."""
    turns = Rotation.from_rotvec(2e-3 * RNG.standard_normal((100_000, 3))).as_matrix()
    given = sigma(noise=noise(ref_r=2e-3))
    levers = POINTS - REFERENCE
    np.testing.assert_allclose(given, 2e-3 * np.linalg.norm(levers, axis=1))
    moved = turns @ levers.T - levers.T
    assert (np.einsum("nij,ji->nj", moved, DIRECTIONS).std(axis=0) <= 1.01 * given).all()
    across = np.cross(levers, [0.3, -0.5, 0.9])
    across /= np.linalg.norm(across, axis=1)[:, None]
    np.testing.assert_allclose(np.einsum("nij,ji->nj", moved, across).std(axis=0), given, rtol=0.01)


def test_levers_of_the_tool_grow_towards_the_hub() -> None:
    offsets = np.array([0.0, 10.0, 50.0, 120.0])
    np.testing.assert_allclose(sigma(noise=noise(tool_r=1e-3, lever=30.0), offsets=offsets), 1e-3 * (30.0 + offsets))
    np.testing.assert_allclose(sigma(noise=noise(axis=2e-3), offsets=offsets), 2e-3 * offsets)


def test_independent_terms_add_in_squares() -> None:
    offsets, segmentation = np.array([0.0, 5.0, 20.0, 80.0]), np.array([0.1, 0.5, 1.0, 0.0])
    values = {
        "tool_t": 0.2,
        "tool_r": 1e-3,
        "ref_t": 0.1,
        "ref_r": 2e-3,
        "tip": 0.3,
        "axis": 3e-3,
        "lever": 25.0,
        "motion": 0.7,
    }
    singles = [sigma(COVARIANCE), sigma(segmentation=segmentation)]
    for name, value in values.items():
        one = {name: value} if name != "tool_r" else {name: value, "lever": 25.0}
        singles.append(sigma(noise=noise(**one), offsets=offsets))
    together = sigma(COVARIANCE, noise(**values), offsets, segmentation)
    np.testing.assert_allclose(together, np.sqrt(np.square(singles).sum(axis=0)), rtol=1e-12)


def test_what_is_not_a_number_stays_so() -> None:
    assert np.isnan(sigma(COVARIANCE * np.nan)).all()
    assert (sigma(-1e-12 * np.eye(6)) == 0.0).all()
