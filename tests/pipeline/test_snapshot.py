"""An instrument that only images show: its frames against what a tracked one at the same place says."""

from typing import Any

import numpy as np
import pytest

from navsrv.kernel.frames import Array
from navsrv.pipeline.inputs import FoundIn, Input, NeedleIn, decode_input, encode_input
from navsrv.pipeline.setup import ReferenceSetup
from navsrv.wire.guidance import GuidanceFrame
from tests.pipeline.room import EPOCH_NS, MS, Room, at, make_setup, needle, preset

DOWN = (0.0, 0.0, -1.0)
S = 1000 * MS


def still(**more: Any) -> Room:
    """Return a room without a tracker: one needle that images show."""
    values: dict[str, Any] = {"sources": (), "tools": (), "reference": None, "snapshots": (needle(source="images"),)}
    return Room(make_setup(**(values | more)))


def image(room: Room, tip: tuple[float, float, float], taken_ns: int | None = None, **more: Any) -> GuidanceFrame:
    """Give what an image taken at ``taken_ns`` (default: now) showed; return the frame that answers it."""
    covariance = np.diag([0.04] * 3 + [1e-6] * 3)
    taken = room.now_ns if taken_ns is None else taken_ns
    values: dict[str, Any] = {
        "text": "two views",
        "found": FoundIn(tip, DOWN, tuple(covariance.ravel().tolist())),
    }
    item = NeedleIn(room.now_ns, "Needle", "carm", EPOCH_NS + taken, taken, 0, **(values | more))
    (frame,) = room.give(item)
    return frame


def accepted(room: Room, matrix: Array | None = None) -> Room:
    room.propose("r1", np.eye(4) if matrix is None else matrix)
    assert room.command("accept_registration", id="r1").ok
    return room


def test_before_any_image_nothing_is_known() -> None:
    room = accepted(still())
    (frame,) = room.tick_when_due()
    assert (frame.state, frame.tip_ct_mm) == ("LOST", None)
    assert "no image" in frame.reason
    assert all(row.level == "unknown" for row in frame.structures)


def test_an_image_gives_the_clearances_of_a_tracked_needle_and_says_its_time() -> None:
    room = accepted(still())
    room.wait(83_000)
    frame = image(room, (3.0, 1.0, 40.0), taken_ns=room.now_ns - 2 * S)
    assert (frame.state, frame.reason) == ("SNAPSHOT", "image at 01:22")
    assert frame.age_ms == pytest.approx(2000.0)
    assert frame.pose_time_ns == EPOCH_NS + room.now_ns - 2 * S
    tracked = Room(make_setup(preset=preset())).pair(at(3.0, 1.0, 40.0))
    assert frame.tip_ct_mm == pytest.approx(tracked.tip_ct_mm)
    assert frame.axis_ct == pytest.approx(tracked.axis_ct)
    for row, other in zip(frame.structures, tracked.structures, strict=True):
        assert (row.name, row.part, row.distance_mm) == (other.name, other.part, pytest.approx(other.distance_mm))
        assert row.sigma_mm is not None
        assert row.sigma_mm > 0.2, "the doubt of the image counts"
    assert frame.trajectory == tracked.trajectory


def test_it_stays_still_for_ever_at_the_declared_rate_with_its_age() -> None:
    room = accepted(still())
    image(room, (0.0, 0.0, 40.0))
    began = room.now_ns
    for _ in range(20):
        (frame,) = room.tick_when_due()
        assert frame.state == "SNAPSHOT"
        assert frame.age_ms == pytest.approx((room.now_ns - began) / 1e6)
        assert all(row.closing_mm_s is None for row in frame.structures), "a still needle has no speed"
    assert room.now_ns - began <= 2.1 * S


def test_alarms_are_those_of_a_tracked_needle() -> None:
    room = accepted(still())
    frame = image(room, (0.0, 0.0, 12.0))
    assert {a.condition for a in frame.alarms} >= {"warning"}
    frame = image(room, (0.0, 0.0, 9.0))
    assert [a.text for a in frame.alarms if a.condition == "breach"]


def test_without_an_accepted_registration_there_is_no_geometry() -> None:
    room = still()
    frame = image(room, (0.0, 0.0, 40.0))
    assert (frame.state, frame.tip_ct_mm) == ("UNREGISTERED", None)


def test_the_needle_stays_with_the_bone_when_the_registration_is_refined() -> None:
    room = accepted(still())
    image(room, (0.0, 0.0, 40.0))
    shift = np.eye(4)
    shift[:3, 3] = 1.0, 2.0, 3.0
    frame = accepted(room, shift).frames[-1]
    assert frame.tip_ct_mm == pytest.approx((1.0, 2.0, 43.0))


def test_a_registration_in_doubt_is_said_beside_the_image() -> None:
    room = accepted(still())
    image(room, (0.0, 0.0, 40.0))
    assert room.command("doubt_registration", id="r1", reason="bumped").ok
    frame = room.frames[-1]
    assert frame.state == "SNAPSHOT"
    assert "bumped" in frame.reason
    assert {a.condition for a in frame.alarms} >= {"unverified"}


def test_a_newer_image_that_does_not_tell_is_said_and_the_older_keeps_its_time() -> None:
    room = accepted(still())
    image(room, (0.0, 0.0, 40.0))
    room.wait(60_000)
    for _ in range(2):
        frame = image(room, (0.0, 0.0, 0.0), found=None, text="2 needles")
    assert frame.state == "SNAPSHOT"
    assert frame.reason == "image at 00:01; a newer image at 01:01 does not tell: 2 needles"
    assert frame.age_ms == pytest.approx(60_000.0)


def test_an_operator_who_moved_the_needle_ends_it() -> None:
    room = accepted(still())
    assert not room.command("forget_needle", tool="Needle").ok
    image(room, (0.0, 0.0, 40.0))
    assert room.command("forget_needle", tool="Needle").ok
    frame = room.frames[-1]
    assert (frame.state, frame.tip_ct_mm) == ("LOST", None)
    assert "moved" in frame.reason
    assert {a.condition for a in frame.alarms} >= {"tool_lost"}
    assert image(room, (0.0, 0.0, 41.0)).state == "SNAPSHOT"


def test_a_tracked_tool_can_be_moved_but_not_forgotten() -> None:
    room = Room(make_setup(preset=preset()))
    assert "no tool that images show" in room.command("forget_needle", tool="Needle").value


def test_a_tracked_needle_stays_live_beside_one_that_images_show() -> None:
    room = accepted(Room(make_setup(snapshots=(needle("Probe", source="images"),))))
    assert room.pair(at(0.0, 0.0, 40.0)).state == "OK"
    item = NeedleIn(room.now_ns, "Probe", "carm", EPOCH_NS, room.now_ns, 0, "", FoundIn((0, 0, 50), DOWN, (0.0,) * 36))
    (frame,) = room.give(item)
    assert (frame.tool, frame.state, frame.tip_ct_mm) == ("Probe", "SNAPSHOT", pytest.approx((0.0, 0.0, 50.0)))
    room.wait(10)
    assert room.pair(at(0.0, 0.0, 40.0)).state == "OK"


@pytest.mark.parametrize("found", [((np.nan, 0, 0), DOWN), ((0, 0, 0), (0.0, 0.0, 2.0)), ((0, 0), DOWN)])
def test_what_is_no_needle_is_noted_and_changes_nothing(found: Any) -> None:
    room = accepted(still())
    image(room, (0.0, 0.0, 40.0))
    item = NeedleIn(room.now_ns, "Needle", "carm", 0, room.now_ns, 0, "", FoundIn(*found, (0.0,) * 36))
    assert room.give(item) == []
    assert room.notes[-1].event == "needle_unusable"
    assert room.tick_when_due()[0].tip_ct_mm == pytest.approx((0.0, 0.0, 40.0))


def test_a_recording_of_it_replays_to_the_same_frames() -> None:
    room = accepted(still(reference=ReferenceSetup("main", "ReferenceToTracker"), sources=make_setup().sources))
    image(room, (0.0, 0.0, 40.0))
    room.tick_when_due()
    again = Room(room.setup, connected=False)
    inputs: list[Input] = [decode_input(encode_input(item)) for item in room.inputs]
    for item in inputs:
        again.give(item)
    assert again.frames == room.frames
