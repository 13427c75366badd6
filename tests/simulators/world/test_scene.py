"""The room of a seed: what every simulator process must agree on, and the log of the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import CT, TIP, Rigid, rotation_angle_rad
from simulators.world.scene import Breathing, Scene, TruthRecord, jitter, log_header, read_truth_log

TARGET = np.array([10.0, -20.0, -300.0])


def test_processes_with_the_same_seed_share_one_room_and_another_seed_is_another_room() -> None:
    a, b, c = (Scene.from_seed(seed, TARGET) for seed in (4, 4, 5))
    for name in ("T_tracker_from_ct", "T_ct_from_ref", "T_tracker_from_volume"):
        assert np.array_equal(getattr(a, name).matrix, getattr(b, name).matrix), name
        assert not np.allclose(getattr(a, name).matrix, getattr(c, name).matrix), name


def test_every_room_is_one_that_a_camera_and_an_oarm_could_see() -> None:
    angles = []
    for seed in range(60):
        scene = Scene.from_seed(seed, TARGET)
        seen = scene.T_tracker_from_ct.apply(TARGET)
        assert -2001.0 < seen[2] < -1499.0
        # Prone: the back is turned up, to the camera's side, which is at +z of the scene.
        assert scene.T_tracker_from_ct.rotation[2, 1] > 0.1
        assert 80.0 < np.linalg.norm(scene.T_ct_from_ref.translation_mm - TARGET) < 200.0
        assert np.abs(scene.T_ct_from_volume.translation_mm - TARGET).max() <= 20.0
        assert np.degrees(rotation_angle_rad(scene.T_ct_from_volume.rotation)) <= 8.0 * np.sqrt(3.0)
        angles.append(np.degrees(rotation_angle_rad(scene.T_tracker_from_ct.rotation)))
    assert max(angles) > 150.0


def test_breathing_raises_the_back_and_carries_the_reference_with_it() -> None:
    scene = Scene.from_seed(1, TARGET, Breathing(10.0, 4.0))
    exhale, inhale = (scene.T_tracker_from_ct_at(t) for t in (4.0, 6.0))
    moved = exhale.inverse().apply(inhale.apply(TARGET)) - TARGET
    assert np.allclose(moved, [0.0, 10.0, 0.0], atol=1e-9)
    assert np.array_equal(exhale.rotation, inhale.rotation)


def test_pose_noise_has_the_root_mean_square_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    pose = Scene.from_seed(2, TARGET).T_tracker_from_ct
    noisy = [jitter(rng, pose, 0.2, np.radians(0.1)) for _ in range(4000)]
    move = np.array([n.translation_mm - pose.translation_mm for n in noisy])
    turn = np.array([rotation_angle_rad(pose.rotation.T @ n.rotation) for n in noisy])
    assert np.sqrt((move**2).sum(axis=1).mean()) == pytest.approx(0.2, rel=0.04)
    assert np.degrees(np.sqrt((turn**2).mean())) == pytest.approx(0.1, rel=0.04)


def test_a_log_reads_back_and_a_torn_one_is_refused_with_its_line(tmp_path: Path) -> None:
    scene = Scene.from_seed(3, TARGET)
    tip = Rigid.identity(CT, TIP)
    records = [TruthRecord(10**18 + n, n, "drift", n == 0, True, tip.translation_mm + n, np.eye(3)[2]) for n in (0, 1)]
    lines = [log_header(scene, 60.0), *(r.to_json() for r in records)]
    path = tmp_path / "truth.jsonl"
    path.write_text("\n".join(lines) + "\n")
    log = read_truth_log(path)
    assert [r.pose_time_ns for r in log.records] == [10**18, 10**18 + 1]
    assert np.array_equal(log.tip_ct_mm, [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert np.allclose(log.T_ct_from_ref.matrix, scene.T_ct_from_ref.matrix)
    path.write_text("\n".join(lines)[:-10])
    with pytest.raises(InputError, match=r"truth\.jsonl: line 3 "):
        read_truth_log(path)
