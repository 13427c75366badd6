"""A needle in a volume: within its own covariance, and refused with the reason where the volume does not tell."""

import numpy as np
import pytest
from scipy.stats import chi2

from navsrv.imaging.found import TIP_SHAPE, NeedleError, Why
from navsrv.imaging.in_volume import FLOOR_VOXELS, find_in_volume
from tests.imaging.scenes import DIAMETER_MM, off, unit, volume

TIP, AXIS = np.array([4.0, -6.0, 3.0]), unit(0.15, -0.85, 0.5)
THROUGH = 200.0
"""Long enough to leave the volume."""


def test_needles_are_found_within_their_covariance_as_a_distribution() -> None:
    """A covariance twice or half as large as it should be fails.

    What no volume shows is drawn as large as the finder allows for it: how far the point is from where the metal is
    seen to end, and a tenth of a voxel of distortion.
    """
    squares, errors = [], []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        tip, axis = rng.uniform(-12, 12, 3), unit(*rng.normal(size=3))
        voxels, matrix = volume([(tip, axis, THROUGH)], rng)
        errors.append(float(np.linalg.norm(find_in_volume(voxels, matrix, DIAMETER_MM).tip_mm - tip)))
        matrix[:3, 3] += rng.normal(0.0, FLOOR_VOXELS, 3)
        point = tip + rng.normal(0.0, TIP_SHAPE * DIAMETER_MM) * axis
        squares.append(off(find_in_volume(voxels, matrix, DIAMETER_MM), point, axis))
    assert max(errors) < 0.7
    assert np.median(errors) < 0.35
    assert max(squares) < chi2.ppf(0.9999, 5)
    # Below five: slopes, and what streaks do to an end, are allowed for and not drawn.
    assert 1.9 < np.mean(squares) < 3.9


def refused(needles: list[tuple[np.ndarray, np.ndarray, float]], **more: object) -> NeedleError:
    with pytest.raises(NeedleError) as caught:
        find_in_volume(*volume(needles, np.random.default_rng(1)), DIAMETER_MM, **more)  # type: ignore[arg-type]
    return caught.value


def test_bone_is_no_needle() -> None:
    assert refused([]).why is Why.NO_NEEDLE


def test_two_needles_are_refused_until_somebody_points_at_one() -> None:
    other = (np.add(TIP, (18.0, 3.0, -12.0)), unit(0.1, -0.8, 0.4), THROUGH)
    error = refused([(TIP, AXIS, THROUGH), other])
    assert error.why is Why.SEVERAL
    scan = volume([(TIP, AXIS, THROUGH), other], np.random.default_rng(1))
    for tip, _, _ in ((TIP, AXIS, 0.0), other):
        needle = find_in_volume(*scan, DIAMETER_MM, near_mm=tip + 2.0)
        assert np.linalg.norm(needle.tip_mm - tip) < 1.5


def test_both_ends_in_the_volume_need_a_plan() -> None:
    assert refused([(TIP, AXIS, 30.0)]).why is Why.UNDIRECTED
    scan = volume([(TIP, AXIS, 30.0)], np.random.default_rng(1))
    for sign, tip in ((1.0, TIP), (-1.0, TIP - 30.0 * AXIS)):
        needle = find_in_volume(*scan, DIAMETER_MM, heading=sign * unit(0, -1, 0.2))
        assert np.linalg.norm(needle.tip_mm - tip) < 1.5


def test_a_needle_from_edge_to_edge_has_no_tip() -> None:
    assert "edge to edge" in str(refused([(TIP + 150.0 * AXIS, AXIS, 400.0)]))


def test_an_implant_is_no_needle() -> None:
    voxels, matrix = volume([], np.random.default_rng(1))
    voxels[20:60, 20:60, 20:60] = 3071
    with pytest.raises(NeedleError) as caught:
        find_in_volume(voxels, matrix, DIAMETER_MM)
    assert caught.value.why is Why.NO_NEEDLE
