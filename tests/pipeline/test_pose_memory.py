"""Where a body was when an image was taken: between two poses, beside the last, or nobody knows."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from navsrv.kernel.frames import Array
from navsrv.pipeline.pose_memory import Noise, PoseMemory

MS = 1_000_000


def pose(rotation: Rotation, x: float) -> Array:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation.as_matrix()
    matrix[0, 3] = x
    return matrix


def moving(count: int = 600, seconds: float = 0.0, n: int = 20) -> PoseMemory:
    """A body at 100 mm/s, a pose each 10 ms."""
    memory = PoseMemory(count, seconds)
    for i in range(n):
        memory.add(10 * i * MS, pose(Rotation.identity(), float(i)))
    return memory


@pytest.mark.parametrize("angle_deg", [0.001, 1.0, 40.0, 179.0])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_between_two_poses_it_turns_and_moves_evenly(angle_deg: float, share: float) -> None:
    ends = Rotation.from_rotvec([[0.3, -1.0, 0.2], [0.0, 0.0, 0.0]])
    axis = np.array([1.0, 2.0, -2.0]) / 3.0
    ends = Rotation.concatenate([ends[0], Rotation.from_rotvec(np.radians(angle_deg) * axis) * ends[0]])
    memory = PoseMemory(10)
    memory.add(0, pose(ends[0], 2.0))
    memory.add(100 * MS, pose(ends[1], 12.0))
    found = memory.then(int(100 * MS * share), 60 * MS)
    assert found is not None
    assert found.matrix[0, 3] == pytest.approx(2.0 + 10.0 * share)
    assert found.matrix[:3, :3] == pytest.approx(Slerp([0, 1], ends)(share).as_matrix(), abs=1e-6)
    unseen = np.sqrt(share * (1 - share) / 3)
    assert found.sigma_mm == pytest.approx(10.0 * unseen)
    assert found.sigma_rad == pytest.approx(np.radians(angle_deg) * unseen, rel=1e-6)


def test_the_doubt_is_that_of_a_step_at_an_unknown_moment() -> None:
    """By many such bodies: rms error of what is between, each axis, against the sigma that is said of it."""
    rng = np.random.default_rng(1)
    steps = rng.uniform(0, 100, 20_000)
    for at in (10, 50, 80):
        memory = moving(n=0)
        memory.add(0, pose(Rotation.identity(), 0.0))
        memory.add(100 * MS, pose(Rotation.identity(), 9.0))
        found = memory.then(at * MS, 60 * MS)
        assert found is not None
        truth = np.where(steps <= at, 9.0, 0.0)
        rms = np.sqrt(np.mean((truth - found.matrix[0, 3]) ** 2) / 3)
        assert rms == pytest.approx(found.sigma_mm, rel=0.05)


def test_a_latency_that_nobody_knows_is_doubted_by_the_speed() -> None:
    memory = PoseMemory(10)
    for i in range(5):
        memory.add(10 * i * MS, pose(Rotation.identity(), float(i)), unknown_ns=30 * MS)
    for at in (10, 45):
        found = memory.then(at * MS, 60 * MS)
        assert found is not None
        assert found.sigma_mm > 100.0 * 0.03 / 3**0.5 * 0.99


def test_a_place_with_a_scale_of_its_own_is_blended() -> None:
    memory = PoseMemory(10)
    for at, scale in ((0, 1.5), (10, 1.7)):
        memory.add(at * MS, np.diag([scale, scale, 1.0, 1.0]))
    found = memory.then(5 * MS, 60 * MS)
    assert found is not None
    assert found.matrix == pytest.approx(np.diag([1.6, 1.6, 1.0, 1.0]))


def test_rest_under_noise_is_no_motion() -> None:
    memory = PoseMemory(10)
    memory.add(0, pose(Rotation.identity(), 0.0))
    memory.add(20 * MS, pose(Rotation.identity(), 0.4))
    found = memory.then(10 * MS, 60 * MS, Noise(0.25, 1e-3))
    assert found is not None
    assert (found.sigma_mm, found.sigma_rad) == (0.0, 0.0)


def test_one_pose_far_away_or_of_unknown_speed_is_none() -> None:
    assert PoseMemory(10).then(0, 100 * MS) is None
    assert moving().then(190 * MS + 101 * MS, 100 * MS) is None
    assert moving().then(-101 * MS, 100 * MS) is None
    alone = moving(n=1)
    assert alone.then(5 * MS, 100 * MS) is None
    exact = alone.then(0, 100 * MS)
    assert exact is not None
    assert exact.sigma_mm == 0.0


def test_a_body_that_was_not_seen_for_long_is_not_guessed_across_the_gap() -> None:
    memory = moving(n=3)
    memory.add(900 * MS, pose(Rotation.identity(), 90.0))
    assert memory.then(450 * MS, 100 * MS) is None


def test_a_body_that_was_said_to_be_unseen_is_not_carried_on() -> None:
    memory = moving()
    assert memory.then(220 * MS, 100 * MS) is not None
    memory.lose(200 * MS)
    assert memory.then(220 * MS, 100 * MS) is None
    assert memory.then(195 * MS, 100 * MS) is not None
    memory.add(230 * MS, pose(Rotation.identity(), 23.0))  # seen again: on both sides of the moment
    assert memory.then(220 * MS, 100 * MS) is not None


def test_late_images_find_their_pose_long_after_the_newest_ones_are_gone() -> None:
    memory = moving(count=50, seconds=10.0, n=900)
    found = memory.then(1_005 * MS, 100 * MS)
    assert found is not None
    assert found.between
    assert found.matrix[0, 3] == pytest.approx(100.5)
    assert moving(count=50, n=900).then(1_005 * MS, 100 * MS) is None
