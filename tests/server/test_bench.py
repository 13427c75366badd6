"""The bench measures what it says it measures."""

from pathlib import Path

import numpy as np
import pytest

from navsrv.wire.guidance import encode_frame
from simulators.bench import latency
from simulators.bench.parts import path_poses, stamp_in
from tests.pipeline.room import EPOCH_NS, MS, Room, at, make_setup, preset


def test_fifty_displays_are_forty_eight_and_two_with_one_stalled() -> None:
    mix = latency.Mix.of(50)
    assert (mix.zeromq, mix.websocket, mix.openigtlink) == (40, 8, 2)
    assert mix.stalled("websocket") == {"zeromq": 0, "websocket": 1, "openigtlink": 0}
    assert sum(latency.Mix.of(1).stalled("websocket").values()) == 0
    assert latency.Mix.of(2).stalled("openigtlink")["zeromq"] == 1


def test_the_stamp_is_found_in_a_real_frame_and_not_in_one_without_a_pose() -> None:
    room = Room(make_setup(preset=preset()))
    room.wait(4)
    frame = room.pair(at(0.0, 0.0, 60.0))
    assert stamp_in(encode_frame(frame)) == frame.pose_time_ns
    assert frame.pose_time_ns is not None
    assert abs(frame.pose_time_ns - EPOCH_NS - room.now_ns) < MS
    assert stamp_in(encode_frame(Room(make_setup()).tick_when_due()[0])) is None


def test_a_frame_that_never_came_lowers_the_share_and_not_the_times() -> None:
    """Catches lost frames that would count as quick ones, or hide in the percentiles."""
    figures = latency.spread(np.array([1.0, 2.0, np.inf, 3.0]))
    assert figures["delivered"] == 0.75
    assert (figures["p50_ms"], figures["max_ms"]) == (2.0, 3.0)


def test_the_path_is_of_rigid_poses_that_move_smoothly() -> None:
    poses = np.array(path_poses(4000))
    rotations = poses[:, :3, :3]
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (4000, 3, 3)), atol=1e-9
    )
    assert np.linalg.det(rotations).min() > 0.99
    assert np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).max() < 0.2


@pytest.mark.realtime
def test_the_real_server_is_measured_with_displays_of_every_kind(balls: Path) -> None:
    """A run over sockets: every pose arrives, after it was sent, by way of the loop; a stalled display is left out."""
    found = latency.ours(100.0, 13, 1.0, "websocket", balls)
    assert found["delivered_worst_zeromq"] == 1.0
    assert found["stalled"] == {"zeromq": 0, "websocket": 1, "openigtlink": 0}
    assert 0.0 < found["to_loop_ms"] < found["p50_ms"]
    assert 0.0 < found["in_loop_ms"] < found["p50_ms"]
    assert found["delivered_worst_other"]["websocket"] > 0.0
    assert found["delivered_worst_other"]["openigtlink"] > 0.0
    assert 0.0 < found["loop_cpu"] < 1.0


@pytest.mark.realtime
def test_the_floor_has_the_sizes_and_loses_nothing() -> None:
    figures = latency.floor(100.0, 3, 0.5, 2700)
    assert figures["delivered"] == 1.0
    assert 0.0 < figures["p50_ms"] < 50.0
