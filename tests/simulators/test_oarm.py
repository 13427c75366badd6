"""The O-arm simulator, as a server sees it whose decoder is pyigtl's."""

from __future__ import annotations

import numpy as np
import pytest

from navsrv.anatomy.case import Case
from navsrv.kernel.frames import TRACKER, VOLUME, Rigid
from simulators.world.scene import Scene
from tests.simulators.conftest import TARGET, MiniCase
from tests.simulators.processes import accepted, listening, running


@pytest.mark.realtime
def test_a_spin_sends_the_patient_where_the_gantry_and_the_truth_say(mini_case: MiniCase) -> None:
    scene = Scene.from_seed(6, TARGET)
    with listening() as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        options = ("--case", mini_case.folder, "--seed", 6, "--server", address, "--voxel-mm", 1.5, "--noise-hu", 10)
        options += ("--fidelity", "quick")
        with running("oarm", *options) as oarm, accepted(server) as peer:
            assert oarm.event()["ready"] is True
            pose = peer.wait_for("VolumeToTracker")
            assert pose.metadata == {"TransformStatus": "OK"}
            oarm.tell(do="spin")
            image = peer.wait_for("OArm")
            oarm.tell(do="stop")
            assert oarm.process.wait(10.0) == 0
    assert np.allclose(pose.matrix, scene.T_tracker_from_volume.matrix, atol=1e-3)
    assert image.world_coordinate_system == "lps"
    assert image.image.dtype == np.int16
    # A bone ball of the case, found in the image at the place that the sent poses and the room's truth give.
    T_tracker_from_volume = Rigid.from_matrix(TRACKER, VOLUME, pose.matrix)
    ball = (T_tracker_from_volume.inverse() @ scene.T_tracker_from_ct).apply([-30.0, 20.0, -290.0])
    i, j, k = np.linalg.solve(image.ijk_to_world_matrix, [*ball, 1.0])[:3]
    voxels = image.image.reshape(image.image.shape[:3])
    ks, js, iss = np.nonzero(voxels > 850)
    near = (np.abs(np.stack([iss - i, js - j, ks - k])) < 12.0).all(axis=0)
    found = np.array([iss[near].mean(), js[near].mean(), ks[near].mean()])
    assert near.sum() > 500
    assert np.linalg.norm(found - [i, j, k]) * 1.5 < 0.5
    assert Case.load(mini_case.folder).ct().voxels.max() == 1200


@pytest.mark.realtime
def test_it_waits_for_a_server_that_comes_late_and_returns_after_a_restart(mini_case: MiniCase) -> None:
    with listening() as probe:
        port = probe.getsockname()[1]
    with running(
        "oarm", "--case", mini_case.folder, "--server", f"127.0.0.1:{port}", "--voxel-mm", 4, "--views", 60
    ) as oarm:
        assert oarm.event()["ready"] is True
        oarm.tell(do="spin")
        assert oarm.wait_for("volume")["bytes"] > 10_000
        with listening(port) as server, accepted(server) as peer:
            # The volume was made before there was anybody to take it.
            assert peer.wait_for("OArm").image.size > 10_000
        assert oarm.wait_for("disconnected")
        with listening(port) as server, accepted(server) as peer:
            assert peer.wait_for("VolumeToTracker").timestamp > 0
    assert oarm.process.returncode == 0
