"""Trackers at marker level, against Fitzpatrick's formulas, SciPy's alignment, and lines of sight walked along."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from simulators.world.markers import (
    NEEDLE_MARKERS,
    REFERENCE_MARKERS,
    Camera,
    Coils,
    Field,
    Jittered,
    Magnetic,
    MarkerBody,
    Optical,
    Sight,
    solve_poses,
)
from simulators.world.sight import LENSES_MM, POLARIS_VEGA, Blocker, hidden_behind

Array = NDArray[np.float64]
PLAIN = Camera(0.1, 1.0, growth=0.0, volume=None)
"""Isotropic noise of 0.1 mm along each axis, everywhere."""


def at(*place_mm: float, turn: tuple[float, float, float] = (0.3, -0.2, 0.5), count: int = 1) -> Array:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec(turn).as_matrix()
    pose[:3, 3] = place_mm
    return np.repeat(pose[None], count, axis=0)


def fitzpatrick_tre2(markers: Array, target: Array, fle2: float) -> float:
    """Return E[TRE^2] (Fitzpatrick, West, Maurer 1998): from distances to the principal axes."""
    centred = markers - markers.mean(axis=0)
    axes = np.linalg.svd(centred)[2]
    to_target = (target - markers.mean(axis=0)) @ axes.T
    ratio = 0.0
    for k in range(3):
        others = [j for j in range(3) if j != k]
        ratio += (to_target[others] ** 2).sum() / ((centred @ axes.T)[:, others] ** 2).sum(axis=1).mean()
    return fle2 / len(markers) * (1.0 + ratio / 3.0)


@pytest.mark.parametrize("body", [NEEDLE_MARKERS, REFERENCE_MARKERS])
@pytest.mark.parametrize("target", [(0.0, 0.0, 0.0), (60.0, -20.0, -150.0)])
def test_the_error_at_a_target_is_fitzpatricks(body: MarkerBody, target: tuple[float, float, float]) -> None:
    true = at(50.0, -30.0, -1600.0, count=20_000)
    seen = Optical(2, PLAIN, {"Tool": body}).observe("Tool", np.arange(len(true)), true)
    point = np.array([*target, 1.0])
    error = ((seen.poses - true) @ point)[:, :3]
    fle2 = 3 * 0.1**2
    assert (error**2).sum(axis=1).mean() == pytest.approx(fitzpatrick_tre2(body.markers_mm, point[:3], fle2), rel=0.03)
    assert np.abs(error.mean(axis=0)).max() < 0.01
    assert (seen.error_mm**2).mean() == pytest.approx((1 - 2 / len(body.markers_mm)) * fle2, rel=0.03)


def test_solved_poses_are_those_of_another_solver_whatever_markers_are_left() -> None:
    rng = np.random.default_rng(4)
    for _ in range(60):
        count = int(rng.integers(3, 7))
        model = rng.normal(size=(count, 3)) * 40.0 * (1.0, 1.0, rng.choice([0.0, 1.0]))
        turn, place = Rotation.random(random_state=rng), rng.normal(size=3) * 1000.0
        measured = turn.apply(model) + place + rng.normal(size=model.shape) * rng.choice([0.0, 0.3])
        used = np.ones(count, np.bool_)
        used[3 : 3 + int(rng.integers(0, count - 2))] = False
        poses, error = solve_poses(model, measured[None], used[None])
        a, b = model[used], measured[used]
        best, _ = Rotation.align_vectors(b - b.mean(axis=0), a - a.mean(axis=0))
        assert np.abs(poses[0, :3, :3] - best.as_matrix()).max() < 1e-6
        assert poses[0, :3, 3] == pytest.approx(b.mean(axis=0) - best.apply(a.mean(axis=0)), abs=1e-4)
        left = best.apply(a - a.mean(axis=0)) - (b - b.mean(axis=0))
        assert error[0] == pytest.approx(np.sqrt((left**2).sum(axis=1).mean()), abs=1e-6)


def test_noise_is_worse_along_the_line_of_sight_and_grows_with_distance() -> None:
    rng = np.random.default_rng(5)
    for place in ([0.0, 0.0, -1500.0], [600.0, -300.0, -2400.0]):
        point = np.array(place)
        noise = Camera(0.05, 3.0, at_mm=1500.0).error(np.broadcast_to(point, (40_000, 3)), rng.normal(size=(40_000, 3)))
        distance = np.linalg.norm(point)
        along = noise @ (point / distance)
        across = np.sqrt(((noise**2).sum(axis=1) - along**2).mean() / 2.0)
        assert across == pytest.approx(0.05 * distance / 1500.0, rel=0.02)
        assert along.std() == pytest.approx(0.15 * (distance / 1500.0) ** 2, rel=0.02)


def test_what_is_drawn_depends_on_the_frame_alone() -> None:
    true = at(0.0, 0.0, -1500.0, count=300)
    frames = np.arange(1000, 1300)
    for watcher in (
        Optical(1, Camera(), {"Tool": NEEDLE_MARKERS}),
        Jittered(1, 0.1, 0.001),
        Magnetic(1, Coils(volume=None)),
    ):
        whole = watcher.observe("Tool", frames, true).poses
        for first, last in ((0, 1), (63, 65), (250, 300)):
            part = watcher.observe("Tool", frames[first:last], true[first:last]).poses
            assert np.abs(part - whole[first:last]).max() < 1e-9
        assert len({pose.tobytes() for pose in whole}) == len(whole)


def test_lines_of_sight_are_cut_where_walking_along_them_meets_something() -> None:
    rng = np.random.default_rng(6)
    points = rng.normal(size=(200, 1, 3)) * 80.0 + (0.0, 0.0, -1500.0)
    start = rng.normal(size=(200, 3)) * 120.0 + (0.0, 0.0, -900.0)
    end = np.where(rng.uniform(size=(200, 1)) < 0.3, start, start + rng.normal(size=(200, 3)) * 150.0)
    hidden = hidden_behind(points, [Blocker(start, end, 60.0)])[:, 0]
    steps = np.linspace(0.0, 1.0, 801)[:, None]
    closest = np.full(200, np.inf)
    for n in range(200):
        axis = start[n] + np.linspace(0.0, 1.0, 201)[:, None] * (end[n] - start[n])
        for lens in LENSES_MM:
            ray = points[n] + steps * (lens - points[n])
            closest[n] = min(closest[n], np.sqrt(((ray[:, None] - axis) ** 2).sum(axis=2).min()))
    sure = np.abs(closest - 60.0) > 0.5
    assert np.array_equal(hidden[sure], closest[sure] < 60.0)
    assert 20 < hidden.sum() < 180


def test_a_tool_with_two_markers_left_is_out_of_view_and_with_three_is_not() -> None:
    camera = Optical(1, PLAIN, {"Tool": NEEDLE_MARKERS})
    true = at(0.0, 0.0, -1500.0, turn=(0.0, 1.5, 0.0))
    seen = true[0, :3, :3] @ NEEDLE_MARKERS.markers_mm.T + true[0, :3, 3:]
    balls = [Blocker(0.9 * m + 0.1 * LENSES_MM[0], 0.9 * m + 0.1 * LENSES_MM[0], 1.0) for m in seen.T]
    for hidden in range(4):
        sighting = camera.observe("Tool", np.zeros(1, int), true, balls[:hidden])
        assert sighting.sight[0] == (Sight.OK if hidden <= 1 else Sight.OUT_OF_VIEW)
        assert sighting.used[0].tolist() == [hidden <= 1 and n >= hidden for n in range(4)]
        assert (sighting.poses[0] == np.eye(4)).all() == (hidden > 1)


def test_a_body_turned_away_and_one_seen_edge_on_are_not_seen() -> None:
    facing = MarkerBody(NEEDLE_MARKERS.markers_mm, np.tile([1.0, 0.0, 0.0], (4, 1)), half_angle_deg=60.0)
    camera = Optical(1, PLAIN, {"Tool": facing})
    for degrees, sight in ((0, Sight.OK), (55, Sight.OK), (65, Sight.OUT_OF_VIEW), (180, Sight.OUT_OF_VIEW)):
        # Turned by -90 degrees about y, the tool's +x is the camera's +z: it looks straight back at the camera.
        turn = Rotation.from_euler("yx", [-90.0, degrees], degrees=True)
        true = at(0.0, 0.0, -1500.0, turn=tuple(turn.as_rotvec()))
        assert camera.observe("Tool", np.zeros(1, int), true).sight[0] == sight, degrees
    row = MarkerBody(np.array([[0.0, 0.0, 0.0], [0.0, 3.0, -60.0], [0.0, 6.0, -120.0], [50.0, 0.0, 0.0]]))
    behind = Optical(1, PLAIN, {"Row": row}).observe(
        "Row", np.zeros(1, int), at(0.0, 0.0, -1500.0, turn=(0.0, 0.0, 0.0))
    )
    assert behind.sight[0] == Sight.OK
    in_line = Optical(1, PLAIN, {"Row": row}).observe(
        "Row", np.zeros(1, int), at(250.0, -5.0, -1500.0, turn=(0.0, 0.0, 0.0))
    )
    assert in_line.used[0].tolist() != [True] * 4


def test_the_volume_of_a_vega_ends_where_it_is_said_to() -> None:
    camera = Optical(1, Camera(volume=POLARIS_VEGA), {"Tool": REFERENCE_MARKERS})
    inside, outside = [(0, 0, -1500), (0, 0, -2900), (600, 0, -2400)], [(0, 0, -800), (0, 0, -3100), (900, 0, -2400)]
    for place in (*inside, *outside):
        sight = camera.observe("Tool", np.zeros(1, int), at(*map(float, place))).sight[0]
        assert sight == (Sight.OK if place in inside else Sight.OUT_OF_VOLUME), place


def test_systematic_errors_have_their_size_and_do_not_change_from_frame_to_frame() -> None:
    still = Optical(3, Camera(0.0, systematic_mm=0.2, placement_mm=0.1), {"Tool": NEEDLE_MARKERS})
    poses = still.observe("Tool", np.arange(50), at(0.0, 0.0, -1500.0, count=50)).poses
    assert np.ptp(poses, axis=0).max() == 0.0
    assert np.abs(poses[0] - at(0.0, 0.0, -1500.0)[0]).max() > 1e-3
    rng = np.random.default_rng(1)
    sizes = []
    for seed in range(40):
        field = Field.from_seed((seed,), 0.2)
        points = rng.uniform(-3000.0, 3000.0, (500, 3))
        sizes.append((field.at(points) ** 2).sum(axis=1).mean())
        assert np.linalg.norm(field.at(points + 10.0) - field.at(points), axis=1).max() < 0.06
    assert np.sqrt(np.mean(sizes)) == pytest.approx(0.2, rel=0.05)


def test_a_magnetic_tracker_gets_worse_with_the_third_power_of_distance_and_has_a_cube() -> None:
    spread = []
    for distance in (125.0, 250.0, 500.0):
        true = at(0.0, 0.0, -distance, count=4000)
        poses = Magnetic(1, Coils(0.08, 0.05)).observe("Tool", np.arange(4000), true).poses
        spread.append(poses[:, :3, 3].std(axis=0).mean())
    assert spread == pytest.approx([0.01, 0.08, 0.64], rel=0.04)
    assert Magnetic(1).observe("Tool", np.zeros(1, int), at(0.0, 0.0, -600.0)).sight[0] == Sight.OUT_OF_VOLUME
