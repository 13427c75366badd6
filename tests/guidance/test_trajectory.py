import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from navsrv.guidance.trajectory import PlannedPath, deviation

PATH = PlannedPath(np.array([10.0, 20.0, 130.0]), np.array([10.0, 20.0, 30.0]), 3.0)
DOWN = np.array([0.0, 0.0, -1.0])
COORDINATE = st.floats(-200.0, 200.0)


@pytest.mark.parametrize(
    ("tip", "lateral", "depth", "inside"),
    [
        ((10.0, 20.0, 130.0), 0.0, 100.0, True),
        ((10.0, 20.0, 30.0), 0.0, 0.0, True),
        ((10.0, 20.0, 25.0), 0.0, -5.0, True),  # beyond the target
        ((13.0, 20.0, 80.0), 3.0, 50.0, True),  # on the corridor's wall
        ((10.0, 16.9, 80.0), 3.1, 50.0, False),
        ((13.0, 24.0, 150.0), 5.0, 120.0, False),
    ],
)
def test_lateral_and_signed_depth(tip: tuple[float, ...], lateral: float, depth: float, inside: bool) -> None:
    found = deviation(PATH, np.array(tip), DOWN)
    assert found.lateral_mm == pytest.approx(lateral, abs=1e-12)
    assert found.depth_to_target_mm == pytest.approx(depth, abs=1e-12)
    assert found.inside_corridor is inside
    assert found.angle_deg == 0.0


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 5.0, 90.0, 179.9999, 180.0])
def test_angle_is_that_of_the_axes_at_every_size(degrees: float) -> None:
    axis = Rotation.from_euler("x", degrees, degrees=True).apply(DOWN)
    assert deviation(PATH, np.zeros(3), axis).angle_deg == pytest.approx(degrees, abs=1e-9)


@given(st.tuples(*[COORDINATE] * 9), st.tuples(*[st.floats(-3.0, 3.0)] * 3))
def test_nothing_depends_on_where_the_patient_lies(numbers: tuple[float, ...], turn: tuple[float, ...]) -> None:
    entry, target, tip = np.array(numbers).reshape(3, 3)
    if np.linalg.norm(target - entry) < 1.0:
        return
    R, shift = Rotation.from_rotvec(turn), np.array([7.0, -300.0, 41.0])
    axis = np.array([0.6, 0.0, 0.8])
    here = deviation(PlannedPath(entry, target, 3.0), tip, axis)
    moved = PlannedPath(R.apply(entry) + shift, R.apply(target) + shift, 3.0)
    there = deviation(moved, R.apply(tip) + shift, R.apply(axis))
    assert there.lateral_mm == pytest.approx(here.lateral_mm, abs=1e-6)
    assert there.depth_to_target_mm == pytest.approx(here.depth_to_target_mm, abs=1e-6)
    assert there.angle_deg == pytest.approx(here.angle_deg, abs=1e-5)
    whole = float(np.linalg.norm(target - tip))
    assert math.hypot(here.lateral_mm, here.depth_to_target_mm) == pytest.approx(whole, abs=1e-6)


def test_a_small_offset_far_away_is_not_lost_to_rounding() -> None:
    found = deviation(PATH, np.array([10.0 + 1e-6, 20.0, 1e5]), DOWN)
    assert found.lateral_mm == pytest.approx(1e-6, rel=1e-4)


@pytest.mark.parametrize("target", [(1.0, 2.0, 3.0), (math.nan, 0.0, 0.0), (math.inf, 0.0, 0.0)])
def test_a_path_without_direction_is_refused(target: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="no direction"):
        PlannedPath(np.array([1.0, 2.0, 3.0]), np.array(target), 3.0)


def test_a_path_keeps_its_own_points() -> None:
    entry = np.zeros(3)
    path = PlannedPath(entry, np.array([0.0, 0.0, 10.0]), 1.0)
    entry[0] = 5.0
    assert path.entry_ct_mm[0] == 0.0
    assert path.direction_ct.tolist() == [0.0, 0.0, 1.0]
