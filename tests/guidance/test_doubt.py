"""Sigma is held against instruments that are really perturbed: no formula of the code under test is used."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from navsrv.guidance import doubt
from navsrv.guidance.doubt import Z95, propagate
from navsrv.kernel.frames import Array

RNG = np.random.default_rng(11)
TIP = np.array([80.0, 5.0, -60.0])
AXIS = np.array([0.48, -0.6, 0.64])
TOOL_ORIGIN = TIP - 130.0 * AXIS + np.array([6.0, -4.0, 9.0])
REFERENCE = np.array([40.0, 60.0, -20.0])
POSE = np.concatenate([TIP, AXIS, TOOL_ORIGIN, REFERENCE])
LENGTH_MM = 120.0
TOWARDS = Rotation.random(5, rng=RNG).as_matrix()[:, :, 2]
"""From the structures to the instrument."""
OFFSETS = np.array([0.0, 10.0, 50.0, 90.0, 120.0])
SPREAD = 15.0 * RNG.standard_normal((5, 3))
"""From the tip to the points of a zone."""
BEHIND = np.concatenate([np.zeros(5), OFFSETS, -SPREAD @ AXIS])
"""How far behind the tip each row's point is, along the axis."""
STILL = np.zeros(6)
EXACT = np.zeros((6, 6))
HALF = np.diag([1e-3] * 3 + [0.4] * 3) @ (np.eye(6) + 0.4 * RNG.standard_normal((6, 6)))
COVARIANCE = HALF @ HALF.T
NAMES = {
    "tool_mm": doubt.TOOL_MM,
    "tool_rad": doubt.TOOL_RAD,
    "reference_mm": doubt.REFERENCE_MM,
    "reference_rad": doubt.REFERENCE_RAD,
    "tip_mm": doubt.TIP_MM,
    "axis_rad": doubt.AXIS_RAD,
    "bending_mm": doubt.BENDING_MM,
    "unknown_s": doubt.UNKNOWN_S,
    "drift_mm": doubt.DRIFT_MM,
}


def points() -> Array:
    return np.vstack([np.tile(TIP, (5, 1)), TIP - OFFSETS[:, None] * AXIS, TIP + SPREAD])


def found(
    covariance: Array = EXACT,
    velocity: Array = STILL,
    towards: Array = TOWARDS,
    gap_mm: float = 7.0,
    structure_mm: float = 0.0,
    error_mm: float = 0.0,
    inflation: float = 1.0,
    **terms: float,
) -> Array:
    """Return (3, 15): distance, sigma, bound of five rows of the tip, five of the shaft and five of a zone."""
    values = np.zeros(doubt.TERMS)
    for name, value in terms.items():
        values[NAMES[name]] = value
    values[doubt.LENGTH_MM], values[doubt.INFLATION] = LENGTH_MM, inflation
    gaps, errors, p = np.full(5, gap_mm), np.full(5, error_mm), points()
    out = np.full((3, 15), np.nan)
    tip = (gaps, errors, p[:5] - gap_mm * towards)
    shaft = (gaps, errors, p[5:10] - gap_mm * towards, OFFSETS)
    zone = (gaps, errors, p[10:] - gap_mm * towards, p[10:])
    bad = propagate(tip, shaft, zone, POSE, velocity, covariance, values, np.full(5, structure_mm), out)
    assert (bad < 0) == bool(np.isfinite(out).all())
    return out


def sigma(*args: Array, **more: float) -> Array:
    result: Array = found(*args, **more)[1]  # type: ignore[arg-type]
    return result


def along(moved: Array) -> Array:
    """Return the standard deviation of perturbed points (N, 15, 3) along their directions."""
    result: Array = np.einsum("nij,ij->ni", moved - points(), np.vstack([TOWARDS, TOWARDS, TOWARDS])).std(axis=0)
    return result


def test_z95_is_the_one_sided_quantile() -> None:
    assert (RNG.standard_normal(1_000_000) < Z95).mean() == pytest.approx(0.95, abs=0.001)


def test_the_bound_is_the_distance_less_the_quantile_of_sigma() -> None:
    distance, s, lower = found(tool_mm=0.3, error_mm=0.2)
    np.testing.assert_allclose(distance, 7.0)
    np.testing.assert_allclose(s, 0.3 + 0.2 / Z95)
    np.testing.assert_allclose(lower, 7.0 - Z95 * s)


@pytest.mark.parametrize("inflation", [1.0, 1.7])
def test_registration_against_perturbed_points(inflation: float) -> None:
    xi = inflation * RNG.multivariate_normal(np.zeros(6), COVARIANCE, 100_000)
    turned = np.einsum("nij,kj->nki", Rotation.from_rotvec(xi[:, :3]).as_matrix(), points())
    np.testing.assert_allclose(sigma(COVARIANCE, inflation=inflation), along(turned + xi[:, None, 3:]), rtol=0.015)


@pytest.mark.parametrize(("name", "origin"), [("tool_rad", TOOL_ORIGIN), ("reference_rad", REFERENCE)])
def test_a_body_that_turns_moves_each_point_by_its_own_lever(name: str, origin: Array) -> None:
    """A lever across the direction counts in full, one along it not at all, and one turn counts once."""
    turns = Rotation.from_rotvec(2e-3 * RNG.standard_normal((100_000, 3))).as_matrix()
    moved = np.einsum("nij,kj->nki", turns, points() - origin) + origin
    np.testing.assert_allclose(sigma(**{name: 2e-3}), along(moved), rtol=0.015)


@pytest.mark.parametrize("name", ["tool_mm", "reference_mm", "tip_mm", "drift_mm"])
def test_translations_count_as_they_are(name: str) -> None:
    np.testing.assert_allclose(sigma(**{name: 0.3}), 0.3)


def test_the_structures_own_doubt_counts_as_it_is() -> None:
    np.testing.assert_allclose(found(structure_mm=0.7)[1], 0.7)


def test_an_axis_that_is_off_turns_the_shaft_about_the_tip() -> None:
    turns = Rotation.from_rotvec(3e-3 * RNG.standard_normal((100_000, 3))).as_matrix()
    moved = np.einsum("nij,kj->nki", turns, points() - TIP) + TIP
    np.testing.assert_allclose(sigma(axis_rad=3e-3), along(moved), rtol=0.015, atol=1e-9)


def test_a_bent_needle_is_a_cantilever_held_at_the_hub() -> None:
    """The shape by integrating the moment of a load at the tip twice, from the hub on."""
    x = np.linspace(0.0, LENGTH_MM, 20001)
    slope = np.concatenate([[0.0], np.cumsum((LENGTH_MM - x[:-1]) * np.diff(x))])
    shape = np.concatenate([[0.0], np.cumsum(slope[:-1] * np.diff(x))])
    share = np.interp(LENGTH_MM - BEHIND, x, shape / shape[-1])
    share += np.maximum(0.0, -BEHIND) * slope[-1] / shape[-1]
    push = RNG.standard_normal((100_000, 3))
    push -= (push @ AXIS)[:, None] * AXIS
    moved = points() + 1.5 * push[:, None, :] * share[:, None]
    np.testing.assert_allclose(sigma(bending_mm=1.5), along(moved), rtol=0.015, atol=1e-3)


def test_what_moves_on_in_an_unknown_time_counts_where_it_goes() -> None:
    """A tool that swings about its tip moves its hub only; the way it goes counts in full, any other by a quarter."""
    velocity = np.array([20.0, -30.0, 10.0, 0.2, 0.1, -0.3])
    moving = velocity[:3] - BEHIND[:, None] * velocity[3:]
    way = np.abs(np.einsum("ij,ij->i", moving, np.vstack([TOWARDS, TOWARDS, TOWARDS])))
    speed = np.linalg.norm(moving, axis=1)
    given = found(velocity=velocity, unknown_s=0.05)[1]
    np.testing.assert_allclose(given, 0.05 * np.hypot(way, 0.25 * speed), rtol=1e-9)


TERMS = {
    "tool_mm": 0.2,
    "tool_rad": 1e-3,
    "reference_mm": 0.1,
    "reference_rad": 2e-3,
    "tip_mm": 0.3,
    "axis_rad": 3e-3,
    "bending_mm": 0.5,
    "drift_mm": 0.7,
}


def test_independent_terms_add_in_squares() -> None:
    velocity = np.array([20.0, -30.0, 10.0, 0.2, 0.1, -0.3])
    singles = [found(COVARIANCE)[1], found(structure_mm=0.4)[1], found(velocity=velocity, unknown_s=0.02)[1]]
    singles += [sigma(**{name: value}) for name, value in TERMS.items()]
    together = found(COVARIANCE, velocity, structure_mm=0.4, unknown_s=0.02, **TERMS)[1]
    np.testing.assert_allclose(together, np.sqrt(np.square(singles).sum(axis=0)), rtol=1e-12)


def test_points_that_touch_are_never_too_sure() -> None:
    """On the surface there is no direction: no direction may be worse than what is given."""
    velocity = np.array([20.0, -30.0, 10.0, 0.2, 0.1, -0.3])
    touching = found(COVARIANCE, velocity, gap_mm=0.0, unknown_s=0.02, **TERMS)[1]
    for direction in Rotation.random(200, rng=RNG).as_matrix()[:, :, 2]:
        towards = np.tile(direction, (5, 1))
        assert (touching >= 0.999 * found(COVARIANCE, velocity, towards, unknown_s=0.02, **TERMS)[1]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_first_row_that_is_no_number_is_told(bad: float) -> None:
    velocity = STILL.copy()
    velocity[3] = bad
    out = found(velocity=velocity, unknown_s=0.02)
    assert not np.isfinite(out[2]).all()
