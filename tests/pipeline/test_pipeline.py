"""The path of one pose, judged by the bytes that go in and the frames that come out."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from devices.openigtlink import Stamps
from navsrv.guidance.alarms import OF_GEOMETRY
from navsrv.kernel.errors import ConfigError
from navsrv.kernel.frames import Array
from navsrv.pipeline.inputs import Reply, Tick, decode_input, encode_input
from navsrv.pipeline.setup import ReferenceSetup
from navsrv.wire.guidance import GEOMETRY_STATES, GuidanceFrame, encode_frame
from navsrv.wire.openigtlink import Message, Metadata, TData, TDataElement, encode, timestamp_from_ns
from tests.pipeline.room import (
    EPOCH_NS,
    IDENTITY,
    MS,
    NERVE,
    VESSEL,
    Room,
    at,
    make_setup,
    needle,
    pose_bytes,
    preset,
    rot,
    source,
)

FAR = at(0.0, 0.0, 60.0)
LEVELS = {"caution", "warning", "breach"}
SEEN = "OK"
HIDDEN = "OUT_OF_VIEW"


@pytest.fixture
def room() -> Room:
    """A connected room with an accepted registration that is the identity."""
    return Room(make_setup(preset=preset()))


def check_honest(frame: GuidanceFrame) -> None:
    """Assert what holds of every frame: never current when not valid, and then an alarm that says why."""
    valid = frame.state in GEOMETRY_STATES
    assert (frame.tip_ct_mm is not None) is valid
    assert (frame.axis_ct is not None) is valid
    assert (frame.q_wxyz_ct_from_tip is not None) is valid
    assert valid or frame.trajectory is None
    assert (frame.reason == "") is (frame.state == "OK")
    for row in frame.structures:
        values = (row.distance_mm, row.sigma_mm, row.lower_mm, row.nearest_ct_mm)
        assert all((v is not None) is valid for v in values)
        assert valid or row.closing_mm_s is None
        assert (row.level == "unknown") is not valid
    if not valid:
        assert any(a.phase != "latched" and a.text == frame.reason for a in frame.alarms)
        of_geometry = {c.value for c in OF_GEOMETRY}
        assert all(a.phase == "latched" for a in frame.alarms if a.condition in of_geometry)


def conditions(frame: GuidanceFrame) -> set[str]:
    return {a.condition for a in frame.alarms}


def level(frame: GuidanceFrame, name: str = "Nerve", part: str = "tip") -> str:
    return next(r.level for r in frame.structures if (r.name, r.part) == (name, part))


# -- one frame for each needle pose ----------------------------------------------------------------------------


def test_one_frame_for_each_needle_pose_and_none_for_anything_else(room: Room) -> None:
    assert room.read(room.pose("Reference")) == []
    assert len(room.read(room.pose("Needle", FAR))) == 1
    room.wait(10)
    assert room.read(room.pose("Reference"), room.pose("Stylus")) == []
    stamps = [EPOCH_NS + room.now_ns + i * MS for i in range(3)]
    frames = room.read(*[pose_bytes("NeedleToTracker", FAR, t) for t in stamps])
    assert [f.pose_time_ns for f in frames] == stamps
    assert [f.seq for f in room.frames] == [1, 2, 3, 4]
    assert {f.received_ns for f in frames} == {room.now_ns}
    assert {f.sent_ns for f in room.frames} == {0}  # the shell's to fill


def test_frames_of_each_tool_have_their_own_seq_and_come_in_the_order_of_their_poses() -> None:
    room = Room(make_setup(tools=(needle(), needle("Probe")), preset=preset()))
    for _ in range(5):
        room.wait(10)
        tools = [room.pose("Needle", FAR), room.pose("Probe", FAR)]
        room.read(room.pose("Reference"), *tools)
    for tool in ("Needle", "Probe"):
        mine = [f for f in room.frames if f.tool == tool]
        assert [f.seq for f in mine] == [1, 2, 3, 4, 5]
        assert all(a.pose_time_ns < b.pose_time_ns for a, b in pairwise(mine) if a.pose_time_ns and b.pose_time_ns)


def test_a_burst_in_one_read_keeps_the_newest_and_counts_the_rest(room: Room) -> None:
    room.read(room.pose("Reference"), room.pose("Needle", FAR))
    room.wait(200)
    stamps = [EPOCH_NS + room.now_ns - (21 - i) * MS // 10 for i in range(22)]
    parts = [pose_bytes(f"{name}ToTracker", IDENTITY, t) for t in stamps for name in ("Needle", "Reference")]
    frames = room.read(*parts)
    assert [f.pose_time_ns for f in frames] == stamps[-16:]
    assert [f.seq for f in frames] == list(range(2, 18))
    assert {f.skipped_poses for f in frames} == {6}
    assert {f.state for f in frames} == {"OK"}  # each with the reference of its own stamp


def test_one_tdata_with_both_tools_is_one_frame(room: Room) -> None:
    body = TData((TDataElement("NeedleToTracker", FAR), TDataElement("ReferenceToTracker", IDENTITY)))
    stamp = timestamp_from_ns(EPOCH_NS + room.now_ns)
    (frame,) = room.read(encode(Message("tools", stamp, body, metadata=(Metadata("Status", "OK"),))))
    assert (frame.state, frame.tip_ct_mm) == ("OK", (0.0, 0.0, 60.0))


# -- where the tool stands -------------------------------------------------------------------------------------

TURNS = [(axis, degrees) for axis in "xyz" for degrees in (-170.0, -90.0, -35.0, 20.0, 90.0, 180.0)]


@pytest.mark.parametrize(("axis", "degrees"), TURNS)
@pytest.mark.parametrize("tool_axis", [(0.0, 0.0, 1.0), (0.0, 0.0, -1.0), (0.6, 0.0, 0.8)])
def test_a_tool_turned_about_every_axis_stands_where_an_independent_chain_says(
    axis: str, degrees: float, tool_axis: tuple[float, ...]
) -> None:
    ct_from_ref, tracker_from_ref, tracker_from_tool = np.eye(4), np.eye(4), np.eye(4)
    ct_from_ref[:3, :3], ct_from_ref[:3, 3] = rot("y", 25.0) @ rot("x", -40.0), (15.0, -60.0, 200.0)
    tracker_from_ref[:3, :3], tracker_from_ref[:3, 3] = rot("z", 130.0) @ rot("x", 10.0), (-300.0, 120.0, -1500.0)
    tracker_from_tool[:3, :3], tracker_from_tool[:3, 3] = rot(axis, degrees), (-250.0, 160.0, -1400.0)
    tip_tool = np.array([7.0, -3.0, 110.0])
    tool = needle(tip_mm=tip_tool, axis=np.array(tool_axis))
    room = Room(make_setup(tools=(tool,), preset=preset(ct_from_ref)))
    frame = room.pair(tracker_from_tool, tracker_from_ref)
    check_honest(frame)
    assert frame.tip_ct_mm is not None
    assert frame.axis_ct is not None
    # The wire carries float32: half a unit in the last place at 1500 mm is 6e-5 mm.
    chain = ct_from_ref @ np.linalg.inv(tracker_from_ref) @ tracker_from_tool
    np.testing.assert_allclose(frame.tip_ct_mm, (chain @ [*tip_tool, 1.0])[:3], atol=5e-4)
    np.testing.assert_allclose(frame.axis_ct, chain[:3, :3] @ tool_axis, atol=1e-6)
    w, x, y, z = frame.q_wxyz_ct_from_tip or (0.0,) * 4
    tip_frame = Rotation.from_quat([x, y, z, w]).as_matrix()
    np.testing.assert_allclose(tip_frame[:, 2], frame.axis_ct, atol=1e-6)
    if tool_axis == (0.0, 0.0, 1.0):
        np.testing.assert_allclose(tip_frame, chain[:3, :3], atol=1e-6)


def test_distances_are_those_of_a_sphere_for_tip_and_shaft(room: Room) -> None:
    frame = room.pair(at(0.0, 0.0, 25.0))
    rows = {(r.name, r.part): r for r in frame.structures}
    assert rows["Nerve", "tip"].distance_mm == pytest.approx(15.0, abs=1e-9)
    assert rows["Nerve", "shaft"].distance_mm == pytest.approx(14.0, abs=1e-9)
    assert rows["Bone", "tip"].distance_mm == pytest.approx(-5.0, abs=0.2)  # a sphere of triangles
    assert rows["Nerve", "tip"].nearest_ct_mm == pytest.approx((0.0, 0.0, 10.0), abs=1e-9)
    for row in rows.values():
        assert row.lower_mm == pytest.approx((row.distance_mm or 0.0) - 1.6448536 * (row.sigma_mm or 0.0), abs=1e-6)
    assert rows["Bone", "tip"].level == "none"


def test_the_reference_may_be_called_as_its_source_calls_it() -> None:
    shift = np.eye(4)
    shift[0, 3] = 5.0
    named = make_setup(reference=ReferenceSetup("main", "PatientToTracker"), preset=preset(shift))
    room = Room(named)
    (frame,) = room.read(room.pose("Patient"), room.pose("Needle", FAR))
    assert frame.tip_ct_mm == (5.0, 0.0, 60.0)
    room.propose(matrix=IDENTITY)
    room.command("accept_registration", id="r1")
    assert room.frames[-1].tip_ct_mm == (0.0, 0.0, 60.0)


def test_the_patient_may_move_without_moving_the_tool_in_ct(room: Room) -> None:
    first = room.pair(at(3.0, 4.0, 60.0))
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = rot("x", 30.0), (100.0, -50.0, 20.0)
    room.wait(10)
    second = room.pair(moved @ at(3.0, 4.0, 60.0), moved)
    assert first.tip_ct_mm is not None
    assert second.tip_ct_mm == pytest.approx(first.tip_ct_mm, abs=1e-4)


def test_trajectory_is_that_of_the_plan(room: Room) -> None:
    frame = room.pair(at(4.0, 0.0, 80.0))
    assert frame.trajectory is not None
    assert frame.trajectory.lateral_mm == pytest.approx(4.0)
    assert frame.trajectory.depth_to_target_mm == pytest.approx(30.0)
    assert "outside_corridor" in conditions(frame)
    room.wait(1000)
    assert "target_reached" in conditions(room.pair(at(0.0, 0.0, 50.0)))


# -- pairing ---------------------------------------------------------------------------------------------------


def shifted(x: float) -> Array:
    matrix = np.eye(4)
    matrix[0, 3] = x
    return matrix


def test_poses_of_one_stamp_are_paired_in_any_order_of_one_read(room: Room) -> None:
    (frame,) = room.read(
        room.pose("Needle", FAR),
        room.pose("Reference", shifted(99.0), late_ms=10),
        room.pose("Reference", shifted(7.0)),
    )
    assert frame.tip_ct_mm == (-7.0, 0.0, 60.0)
    assert frame.state == "OK"


def test_an_older_needle_pose_finds_the_reference_of_its_stamp(room: Room) -> None:
    room.read(room.pose("Reference", shifted(1.0)))
    early = room.pose("Needle", FAR)
    room.wait(10)
    room.read(room.pose("Reference", shifted(2.0)))
    (frame,) = room.read(early)
    assert frame.tip_ct_mm == (-1.0, 0.0, 60.0)
    assert frame.age_ms == 10.0  # of the older of the two


def breathing(skew_ms: float) -> list[GuidanceFrame]:
    """Return frames of a needle that rests in a patient who moves at 20 mm/s, its reference older by the skew."""
    room = Room(make_setup(preset=preset()))
    frames = []
    for i in range(40):
        room.wait(10)
        late = shifted(0.2 * (i - skew_ms / 10.0))
        frames += room.read(room.pose("Reference", late, late_ms=skew_ms), room.pose("Needle", shifted(0.2 * i) @ FAR))
    return frames


def test_without_a_reference_of_its_stamp_the_skew_goes_to_sigma() -> None:
    """The tool seems to rest in CT, so only the patient's own speed can tell what the skew does."""
    paired, skewed = breathing(0.0)[-1], breathing(10.0)[-1]
    assert {paired.state, skewed.state} == {"OK"}
    assert skewed.tip_ct_mm is not None
    assert skewed.tip_ct_mm[0] == pytest.approx(0.2, abs=1e-5)  # the error that breathing makes
    for before, after in zip(paired.structures, skewed.structures, strict=True):
        added = np.sqrt((after.sigma_mm or 0.0) ** 2 - (before.sigma_mm or 0.0) ** 2)
        assert added == pytest.approx(20.0 * 0.010, rel=0.1)


def test_a_skew_beyond_two_periods_is_degraded_and_says_so() -> None:
    assert breathing(20.0)[-1].state == "OK"
    frame = breathing(21.0)[-1]
    assert frame.state == "DEGRADED"
    assert "21 ms" in frame.reason


@pytest.mark.parametrize(("late_ms", "state"), [(15, "OK"), (60, "DEGRADED"), (150, "STALE"), (700, "LOST")])
def test_a_pose_that_was_held_up_on_its_way_is_as_old_as_its_stamp_says(room: Room, late_ms: int, state: str) -> None:
    for _ in range(20):
        room.wait(10)
        room.read(room.pose("Reference"), room.pose("Needle", FAR))
    room.wait(late_ms + 5)
    frames = room.read(room.pose("Reference", late_ms=late_ms), room.pose("Needle", FAR, late_ms=late_ms))
    frame = frames[-1]
    assert frame.state == state, frame.reason
    assert frame.age_ms == pytest.approx(late_ms, abs=0.5)
    assert (frame.tip_ct_mm is None) == (state in ("STALE", "LOST"))
    assert state == "OK" or f"held up by {late_ms} ms" in frame.reason


def test_unknown_latency_counts_as_the_tools_speed() -> None:
    sigmas = []
    for unknown_s in (0.0, 0.05):
        room = Room(make_setup(sources=(source(unknown_latency_s=unknown_s),), preset=preset()))
        for i in range(30):
            room.wait(10)
            frame = room.pair(at(0.0, 0.0, 100.0 - 0.1 * i))  # 10 mm/s
        sigmas.append(frame.structures[0].sigma_mm or 0.0)
    assert np.sqrt(sigmas[1] ** 2 - sigmas[0] ** 2) == pytest.approx(10.0 * 0.05, rel=0.05)
    closing = frame.structures[0].closing_mm_s
    assert closing == pytest.approx(10.0, rel=0.02)


def test_a_declared_latency_counts_in_the_age_and_the_doubt_but_is_no_fault() -> None:
    """A Vega's 14 ms are no reason for DEGRADED, yet the tip moved on since."""
    seen = []
    for latency_s in (0.0, 0.014):
        room = Room(make_setup(sources=(source(latency_s=latency_s),), preset=preset()))
        for i in range(30):
            room.wait(4)
            frame = room.pair(at(0.0, 0.0, 100.0 - 0.2 * i))  # 50 mm/s
        assert frame.state == "OK"
        seen.append((frame.age_ms or 0.0, frame.structures[0].sigma_mm or 0.0))
    assert seen[1][0] - seen[0][0] == pytest.approx(14.0, abs=0.01)
    assert np.sqrt(seen[1][1] ** 2 - seen[0][1] ** 2) == pytest.approx(50.0 * 0.014, rel=0.05)


def test_a_pose_shown_again_is_less_sure_than_it_was() -> None:
    room = Room(make_setup(preset=preset()))
    for i in range(30):
        room.wait(10)
        frame = room.pair(at(0.0, 0.0, 100.0 - 0.5 * i))
    (again,) = room.tick_when_due()
    assert again.state == "DEGRADED"
    assert again.tip_ct_mm == frame.tip_ct_mm
    assert (again.structures[0].sigma_mm or 0.0) > (frame.structures[0].sigma_mm or 0.0) + 0.5


def test_stamps_of_two_sources_are_never_compared() -> None:
    two = (source(), source("other"))
    room = Room(make_setup(sources=two, reference=ReferenceSetup("other", "ReferenceToTracker"), preset=preset()))
    room.read(pose_bytes("ReferenceToTracker", shifted(3.0), EPOCH_NS + 77), source="other")
    room.wait(5)
    room.read(pose_bytes("ReferenceToTracker", shifted(4.0), EPOCH_NS + 99 * MS), source="other")
    room.wait(5)
    (frame,) = room.read(pose_bytes("NeedleToTracker", FAR, EPOCH_NS + 77))
    assert frame.tip_ct_mm == (-4.0, 0.0, 60.0)  # the newest, not the one whose stamp happens to be equal
    assert (frame.state, frame.age_ms) == ("OK", 5.0)


def test_poses_of_an_earlier_connection_pair_with_none_of_this_one(room: Room) -> None:
    needle_now = room.pose("Needle", FAR)
    room.read(room.pose("Reference", shifted(9.0)))
    room.down()
    room.up()
    room.read(pose_bytes("ReferenceToTracker", shifted(1.0), EPOCH_NS + room.now_ns + 5 * MS))
    (frame,) = room.read(needle_now)
    assert frame.tip_ct_mm == (-1.0, 0.0, 60.0)


def test_receipt_stamps_are_flagged_and_take_the_wall_clock() -> None:
    room = Room(make_setup(sources=(source(stamps=Stamps.RECEIPT),), preset=preset()))
    frame = room.pair(FAR)
    assert (frame.pose_time_ns, frame.pose_time_source) == (EPOCH_NS + room.now_ns, "receipt")


# -- states ----------------------------------------------------------------------------------------------------


def test_without_a_reference_each_needle_pose_is_lost(room: Room) -> None:
    (frame,) = room.read(room.pose("Needle", FAR))
    check_honest(frame)
    assert (frame.state, frame.reason) == ("LOST", "Reference has not been seen yet")
    assert conditions(frame) == {"reference_lost"}
    assert frame.pose_time_ns == EPOCH_NS + room.now_ns


def test_without_a_configured_reference_too() -> None:
    room = Room(make_setup(reference=None, preset=preset()))
    (frame,) = room.read(room.pose("Needle", FAR))
    check_honest(frame)
    assert (frame.state, frame.reason) == ("LOST", "no reference is configured")


def test_without_a_status_the_reason_names_the_key(room: Room) -> None:
    (frame,) = room.read(room.pose("Reference"), room.pose("Needle", FAR, status=None))
    check_honest(frame)
    assert frame.state == "LOST"
    assert "trackers.main.trusted" in frame.reason
    trusted = Room(make_setup(sources=(source(trusted=True),), preset=preset()))
    (frame,) = trusted.read(trusted.pose("Reference", status=None), trusted.pose("Needle", FAR, status=None))
    assert frame.state == "OK"


@pytest.mark.parametrize(
    ("hidden", "condition", "reason"),
    [
        ("Needle", "tool_lost", "NeedleToTracker: OUT_OF_VIEW"),
        ("Reference", "reference_lost", "ReferenceToTracker: OUT_OF_VIEW"),
    ],
)
def test_what_the_source_calls_lost_is_lost_at_once_and_back_at_once(
    room: Room, hidden: str, condition: str, reason: str
) -> None:
    assert room.pair(FAR).state == "OK"
    room.wait(10)
    status = {"Needle": SEEN, "Reference": SEEN, hidden: HIDDEN}
    (frame,) = room.read(*[room.pose(n, FAR, status=s) for n, s in status.items()])
    check_honest(frame)
    assert (frame.state, frame.reason, conditions(frame)) == ("LOST", reason, {condition})
    assert {a.structure for a in frame.alarms} == {None}
    room.wait(10)
    frame = room.pair(FAR)
    assert (frame.state, frame.alarms) == ("OK", [])


def test_a_lost_reference_is_told_as_such_though_the_tool_is_late(room: Room) -> None:
    room.pair(FAR)
    room.wait(30)  # the needle's pose is degraded by now
    room.read(room.pose("Reference", status=HIDDEN))
    (frame,) = room.tick_when_due()
    assert (frame.state, conditions(frame)) == ("LOST", {"reference_lost"})


def test_both_lost_are_both_told(room: Room) -> None:
    (frame,) = room.read(room.pose("Reference", status=HIDDEN), room.pose("Needle", status=HIDDEN))
    assert conditions(frame) == {"tool_lost", "reference_lost"}


# By rate: the ages (ms) beyond which a silent source is DEGRADED, STALE and LOST.
SILENCE = [(250.0, 8, 100, 500), (100.0, 20, 100, 500), (60.0, 33.333333, 100, 500), (20.0, 100, 150, 500)]


@pytest.mark.parametrize(("rate_hz", "degraded_ms", "stale_ms", "lost_ms"), SILENCE)
def test_a_silent_source_by_the_clock(rate_hz: float, degraded_ms: float, stale_ms: float, lost_ms: float) -> None:
    room = Room(make_setup(sources=(source(rate_hz=rate_hz),), preset=preset()))
    start = room.now_ns
    room.pair(FAR)
    changes = [("OK", 0.0)]
    while room.now_ns < start + 800 * MS:
        (frame,) = room.tick_when_due()
        check_honest(frame)
        if frame.state != changes[-1][0]:
            changes.append((frame.state, (room.now_ns - start) / MS))
    assert [state for state, _ in changes] == ["OK", "DEGRADED", "STALE", "LOST"]
    for (_, ms), limit in zip(changes[1:], (degraded_ms, stale_ms, lost_ms), strict=True):
        assert limit < ms <= limit + 1e-5  # at the first nanosecond beyond, not at the next idle frame
    assert frame.age_ms == pytest.approx((room.now_ns - start) / MS)
    assert conditions(frame) == {"tool_lost", "reference_lost"}


def test_a_stale_reference_alone_is_stale(room: Room) -> None:
    room.read(room.pose("Reference"), room.pose("Needle", FAR))
    states = []
    for _ in range(60):
        room.wait(10)
        (frame,) = room.read(room.pose("Needle", FAR))
        check_honest(frame)
        states.append(frame.state)
    assert states == ["OK"] * 2 + ["DEGRADED"] * 8 + ["STALE"] * 40 + ["LOST"] * 10
    assert frame.reason == "Reference: the newest pose is 600 ms old"
    assert conditions(frame) == {"reference_lost"}


@pytest.mark.parametrize("start", ["never seen", "lost", "silent", "down", "unregistered"])
def test_frames_keep_coming_at_10_hz_when_nothing_arrives(start: str) -> None:
    room = Room(make_setup(preset=None if start == "unregistered" else preset()), connected=start != "down")
    if start not in ("never seen", "down"):
        room.read(room.pose("Reference"), room.pose("Needle", FAR, status=HIDDEN if start == "lost" else SEEN))
    room.wait(1000)
    room.tick()
    times = []
    for _ in range(20):
        (frame,) = room.tick_when_due()
        times.append(room.now_ns)
        check_honest(frame)
    assert {b - a for a, b in pairwise(times)} == {100 * MS}
    assert [f.seq for f in room.frames] == list(range(1, len(room.frames) + 1))


def test_a_tick_that_is_not_due_yields_nothing(room: Room) -> None:
    room.pair(FAR)
    room.wait(1)
    assert room.tick() == []


def test_a_link_that_goes_is_told_at_once_and_once(room: Room) -> None:
    room.pair(FAR)
    room.wait(5)
    (frame,) = room.down("the device closed the connection")
    check_honest(frame)
    assert (frame.state, conditions(frame)) == ("LOST", {"link_down"})
    assert frame.reason == "Needle: source main is down: the device closed the connection"
    assert frame.pose_time_ns is None  # there is no pose that this frame is about
    notes = len(room.notes)
    assert room.down("the device closed the connection") == []
    assert len(room.notes) == notes
    assert len(room.down("connection refused")) == 1
    room.up()
    room.wait(10)
    assert room.pair(FAR).state == "OK"


def test_a_source_of_another_tool_that_goes_leaves_this_one_alone() -> None:
    two = (source(), source("other"))
    probe = needle("Probe", source="other")
    room = Room(make_setup(sources=two, tools=(needle(), probe), preset=preset()))
    room.pair(FAR)
    frames = {f.tool: f for f in room.down("gone", source="other")}
    assert (frames["Needle"].state, frames["Probe"].state) == ("OK", "LOST")


# -- registration ----------------------------------------------------------------------------------------------


def test_unregistered_until_an_operator_accepts() -> None:
    room = Room(make_setup())

    def now() -> GuidanceFrame:
        room.wait(10)
        frame = room.pair(FAR)
        check_honest(frame)
        return frame

    assert (now().state, now().reason, now().phase) == ("UNREGISTERED", "no registration yet", "setup")
    assert conditions(now()) == {"unregistered"}
    (frame,) = room.propose()
    check_honest(frame)
    assert (frame.state, frame.reason, frame.phase) == (
        "UNREGISTERED",
        "a registration waits for acceptance",
        "registration",
    )
    assert frame.proposal is not None
    assert (frame.proposal.id, frame.proposal.tre_mm, frame.proposal.verdict) == ("r1", 0.8, "accept")
    assert not room.command("accept_registration", id="r2").ok
    assert now().state == "UNREGISTERED"
    assert room.command("accept_registration", id="r1").ok
    assert room.frames[-1].state == "OK"
    assert (now().state, now().phase, now().proposal) == ("OK", "navigation", None)
    assert (now().registration.state, now().registration.method) == ("accepted", "landmarks")
    room.propose("r3", shifted(5.0))
    assert now().tip_ct_mm == (0.0, 0.0, 60.0)  # a proposal moves nothing
    assert room.command("reject_registration", id="r3").ok
    assert now().state == "OK"
    assert room.command("reject_registration", id="r1").ok
    assert (now().state, now().reason) == ("UNREGISTERED", "registration rejected")
    room.propose("r4", shifted(5.0))
    assert room.command("accept_registration", id="r4").ok
    assert now().tip_ct_mm == (5.0, 0.0, 60.0)


def test_accepting_during_a_procedure_does_not_send_it_back() -> None:
    room = Room(make_setup(preset=preset()))
    assert room.command("set_phase", phase="ablation").ok
    room.propose()
    assert room.command("accept_registration", id="r1").ok
    assert room.frames[-1].phase == "ablation"


def test_a_registration_that_refuses_itself_cannot_be_accepted() -> None:
    room = Room(make_setup())
    room.propose(verdict="refuse", reason="overlap 0.2")
    reply = room.command("accept_registration", id="r1")
    assert not reply.ok
    assert "overlap 0.2" in reply.value
    assert room.pair(FAR).state == "UNREGISTERED"


@pytest.mark.parametrize(
    "bad",
    [
        {"T_ct_from_ref": tuple(np.diag([1.0, 1.0, -1.0, 1.0]).ravel())},
        {"T_ct_from_ref": (1.0, 2.0)},
        {"covariance": (np.nan,) * 36},
        {"covariance": ()},
    ],
    ids=["mirror", "short", "nan", "no covariance"],
)
def test_a_registration_that_is_none_is_noted_and_changes_nothing(room: Room, bad: dict[str, Any]) -> None:
    room.pair(FAR)
    assert room.propose(**bad) == []
    assert room.notes[-1].event == "registration_unusable"
    assert not room.command("accept_registration", id="r1").ok
    room.wait(5)
    assert room.pair(FAR).state == "OK"


def test_numbers_that_no_display_may_show_are_a_fault() -> None:
    room = Room(make_setup())
    absurd = np.eye(4)
    absurd[0, 3] = 1e300
    room.propose(matrix=absurd)
    room.command("accept_registration", id="r1")
    frame = room.pair(FAR)
    check_honest(frame)
    assert frame.state == "FAULT"
    assert [a.priority for a in frame.alarms] == ["high"]


# -- the worst wins, and hides nothing -------------------------------------------------------------------------


def test_the_worst_state_wins() -> None:
    room = Room(make_setup())
    room.pair(FAR)
    (frame,) = room.read(room.pose("Needle", FAR, status=HIDDEN, late_ms=-1))
    assert (frame.state, conditions(frame)) == ("UNREGISTERED", {"unregistered", "tool_lost"})
    assert {a.priority for a in frame.alarms} == {"low"}  # nobody navigates yet
    room.propose()
    room.command("accept_registration", id="r1")
    assert room.frames[-1].state == "LOST"
    room.wait(20)
    room.read(room.pose("Needle", FAR))
    room.wait(150)
    room.read(room.pose("Needle", FAR))
    assert room.frames[-1].state == "STALE"  # by the reference, though the needle is fresh
    (frame,) = room.read(room.pose("Needle", FAR, status=HIDDEN, late_ms=-1))
    assert frame.state == "LOST"
    assert conditions(frame) == {"tool_lost", "source_stale"}


# -- alarms ----------------------------------------------------------------------------------------------------


def test_levels_and_alarms_rise_at_once_and_fall_late(room: Room) -> None:
    seen = []
    for z in (60.0, 20.0, 14.9, 11.0, 9.0, 14.9, 60.0):
        room.wait(10)
        frame = room.pair(at(0.0, 0.0, z))
        found = {a.condition for a in frame.alarms if a.structure == "Nerve" and a.condition in LEVELS}
        seen.append((level(frame), level(frame, part="shaft"), found))
    # The tip is 10 mm above, the shaft's wall 1 mm nearer; breach is on the bound, 0.33 mm nearer still.
    assert seen == [
        ("none", "none", set()),
        ("caution", "caution", {"caution"}),
        ("warning", "warning", {"warning"}),
        ("warning", "breach", {"breach"}),
        ("breach", "breach", {"breach"}),
        ("breach", "breach", {"breach"}),
        ("breach", "breach", {"breach"}),
    ]
    for _ in range(60):
        room.wait(10)
        frame = room.pair(FAR)
    assert (level(frame), level(frame, part="shaft")) == ("none", "none")
    (alarm,) = [a for a in frame.alarms if a.structure == "Nerve"]
    assert (alarm.condition, alarm.phase, alarm.priority) == ("breach", "latched", "high")
    assert room.command("acknowledge_alarm", id=alarm.id).ok
    assert room.frames[-1].alarms == []
    assert not room.command("acknowledge_alarm", id=alarm.id).ok


def test_hysteresis_survives_a_blip_and_what_geometry_said_does_not_stay(room: Room) -> None:
    assert level(room.pair(at(4.0, 0.0, 14.0))) == "warning"
    room.wait(10)
    (frame,) = room.read(room.pose("Reference"), room.pose("Needle", status=HIDDEN))
    assert conditions(frame) == {"tool_lost"}  # neither the corridor's nor the nerve's figures of before
    room.wait(600)
    frame = room.pair(at(0.0, 0.0, 15.6))
    assert frame.structures[0].lower_mm == pytest.approx(5.27, abs=0.01)
    assert level(frame) == "warning"
    room.wait(10)
    room.read(room.pose("Reference"), room.pose("Needle", status=HIDDEN))
    room.wait(600)
    assert level(room.pair(at(0.0, 0.0, 16.0))) == "caution"


def test_contact_and_contact_possible_are_different_texts(room: Room) -> None:
    texts = {}
    for z, part in ((11.2, "possible"), (10.5, "contact")):
        room.wait(10)
        (alarm,) = [a for a in room.pair(at(0.0, 0.0, z)).alarms if a.structure == "Nerve"]
        texts[part] = alarm.text
    assert texts["possible"].startswith("Contact possible: Nerve (shaft), 0.2 mm, at least -0.1 mm")
    assert texts["contact"].startswith("Contact: Nerve (shaft), -0.5 mm")


def test_a_latched_contact_says_no_figure_of_then(room: Room) -> None:
    room.wait(10)
    room.pair(at(0.0, 0.0, 10.5))
    room.wait(10)
    (gone,) = room.read(room.pose("Reference"), room.pose("Needle", status=HIDDEN))
    (alarm,) = [a for a in gone.alarms if a.structure == "Nerve"]
    assert (alarm.phase, alarm.text) == ("latched", "Contact was shown: Nerve (shaft)")


def test_of_equally_bad_parts_the_nearer_speaks(room: Room) -> None:
    (alarm,) = [a for a in room.pair(at(0.0, 0.0, 14.0)).alarms if a.structure == "Nerve"]
    assert alarm.text.startswith("Nerve (shaft): 3.0 mm")


def test_a_brief_loss_stays_low_and_a_parked_tool_too(room: Room) -> None:
    room.pair(FAR)
    priorities = []
    for _ in range(12):
        room.wait(100)
        (frame,) = room.read(room.pose("Reference"), room.pose("Needle", status=HIDDEN))
        priorities += [a.priority for a in frame.alarms if a.condition == "tool_lost"]
    assert priorities == ["low"] * 10 + ["medium"] * 2
    assert room.command("park_tool", tool="Needle", parked=True).ok
    assert [a.priority for a in room.frames[-1].alarms if a.condition == "tool_lost"] == ["low"]
    assert room.command("park_tool", tool="Needle", parked=False).ok
    assert [a.priority for a in room.frames[-1].alarms if a.condition == "tool_lost"] == ["medium"]


def test_what_the_shell_reports_is_shown_by_the_next_frame_of_each_tool_and_then_clears() -> None:
    room = Room(make_setup(tools=(needle(), needle("Probe")), preset=preset()))
    room.pair(FAR)
    room.report(3, 0)
    room.wait(5)
    room.read(room.pose("Reference"))  # a read without a frame must not use the fact up
    room.wait(5)
    frame = room.pair(FAR)
    assert "deadline_missed" in conditions(frame)
    assert frame.missed_deadlines == 3
    room.wait(5)
    (probe,) = room.read(room.pose("Probe", FAR))
    assert "deadline_missed" in conditions(probe)
    room.wait(5)
    assert "deadline_missed" in conditions(room.pair(FAR))
    room.wait(1990)
    assert "deadline_missed" in conditions(room.pair(FAR))
    room.wait(10)
    frame = room.pair(FAR)
    assert "deadline_missed" not in conditions(frame)
    assert frame.missed_deadlines == 3
    room.report(3, 1)
    room.wait(5)
    assert "recorder_failing" in conditions(room.pair(FAR))


def test_a_clock_jump_that_only_the_reference_shows_is_told(room: Room) -> None:
    room.pair(FAR)
    room.wait(10)
    assert room.read(room.pose("Reference", late_ms=-3000)) == []
    assert room.notes[-1].event == "clock_jump"
    room.wait(10)
    frame = room.pair(FAR)
    assert "clock_jump" in conditions(frame)
    assert next(a.structure for a in frame.alarms if a.condition == "clock_jump") is None


# -- faults of the protocol ------------------------------------------------------------------------------------


def test_a_protocol_fault_ends_that_link_and_nothing_else() -> None:
    two = (source(), source("other"))
    room = Room(make_setup(sources=two, tools=(needle(), needle("Probe", source="other")), preset=preset()))
    room.pair(FAR)
    room.wait(5)
    torn = bytearray(room.pose("Probe", FAR))
    torn[-1] ^= 0xFF
    (frame,) = room.read(room.pose("Probe", FAR, late_ms=1), bytes(torn), source="other")
    assert (frame.tool, frame.state) == ("Probe", "OK")  # the whole message before the fault counts
    assert [e.source for e in room.ended] == ["other"]
    assert "check sum" in room.ended[0].reason
    assert room.read(room.pose("Probe", FAR), source="other") == []  # what still comes is not read
    assert len(room.ended) == 1
    assert room.pair(FAR).state == "OK"
    room.down("protocol", source="other")
    room.up(source="other")
    room.wait(5)
    room.read(room.pose("Reference"))
    (frame,) = room.read(room.pose("Probe", FAR), source="other")
    assert frame.state == "OK"


def test_bytes_before_their_link_are_noted_and_not_read() -> None:
    room = Room(make_setup(preset=preset()), connected=False)
    assert room.read(room.pose("Needle", FAR)) == []
    assert room.notes[-1].event == "bytes_without_link"


# -- commands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "args", "words"),
    [
        ("fly", {}, "unknown operation 'fly'"),
        ("acknowledge_alarm", {"id": "breach:Nerve"}, "no alarm 'breach:Nerve'"),
        ("acknowledge_alarm", {}, "args.id"),
        ("acknowledge_alarm", {"id": ["x"]}, "args.id"),
        ("accept_registration", {"id": "r9"}, "no registration 'r9'"),
        ("reject_registration", {"id": "r9"}, "no registration 'r9'"),
        ("describe_registration", {"id": "r9"}, "no registration 'r9'"),
        ("set_phase", {"phase": "lunch"}, "unknown phase 'lunch'"),
        ("park_tool", {"tool": "Saw", "parked": True}, "no tool 'Saw'; one of Needle"),
        ("park_tool", {"tool": "Needle", "parked": "yes"}, "args.parked"),
        ("sample_tip", {"tool": "Needle"}, "Needle has not been seen yet"),
        ("reference_at", {"time_ns": "soon"}, "args.time_ns"),
        ("reference_at", {"time_ns": "0"}, "the reference has not been seen"),
    ],
)
def test_a_command_that_cannot_be_carried_out_says_why(room: Room, op: str, args: dict[str, Any], words: str) -> None:
    reply = room.command(op, **args)
    assert not reply.ok
    assert words in reply.value


def test_sampling_a_landmark_gives_the_tip_against_the_reference() -> None:
    room = Room(make_setup(tools=(needle(tip_mm=np.array([0.0, 0.0, 10.0])),)))
    room.pair(at(30.0, 0.0, 60.0), shifted(20.0))
    reply = room.command("sample_tip", tool="Needle")
    assert reply.ok
    assert reply.value["tip_ref_mm"] == pytest.approx([10.0, 0.0, 50.0])
    room.wait(101)
    assert "the newest pose is 101 ms old" in room.command("sample_tip", tool="Needle").value


def test_the_reference_at_an_exposure_is_between_its_neighbours_or_refused(room: Room) -> None:
    for i in range(20):
        room.pair(FAR, shifted(float(i)))
        room.wait(10)
    stamp = EPOCH_NS + 1_000_000_000 + 72 * MS
    reply = room.command("reference_at", time_ns=str(stamp))
    assert reply.ok
    assert np.reshape(reply.value["T_tracker_from_ref"], (4, 4))[0, 3] == pytest.approx(7.2, abs=1e-6)
    assert reply.value["off_ms"] == pytest.approx(2.0)
    assert reply.value["between"] is True
    late = room.command("reference_at", time_ns=str(stamp + 150 * MS))
    assert np.reshape(late.value["T_tracker_from_ref"], (4, 4))[0, 3] == 19.0
    assert late.value["between"] is False
    # The way of 32 ms at 100 mm/s, which nobody saw, as one sigma each axis.
    assert late.value["sigma_mm"] == pytest.approx(3.2 / 3**0.5, rel=1e-2)
    assert "away from the exposure" in room.command("reference_at", time_ns=str(stamp - 900 * MS)).value


def test_a_body_that_no_tool_uses_is_logged_when_it_is_lost_and_found() -> None:
    """Between images nobody asks for it; the log tells when it went, why, and when it came back."""
    room = Room(
        make_setup(
            bodies=(ReferenceSetup("main", "GantryToTracker"),), witness=ReferenceSetup("main", "WitnessToTracker")
        )
    )

    def told() -> list[tuple[str, str]]:
        found = [(n.event, n.text) for n in room.notes if n.event.startswith("body_")]
        room.outputs.clear()
        return found

    def see(**status: str) -> None:
        room.wait(10)
        room.read(*(room.pose(name, shifted(float(room.now_ns % 97)), said) for name, said in status.items()))

    see(Gantry="OK", Witness="OK")
    assert told() == [("body_found", "the body GantryToTracker is seen"), ("body_found", "Witness is seen")]
    see(Gantry="OK", Witness="OK")
    assert told() == []
    # One sample between two frames is enough.
    see(Gantry="OUT_OF_VIEW", Witness="OK")
    assert told() == [("body_lost", "GantryToTracker: OUT_OF_VIEW")]
    see(Gantry="MISSING", Witness="OK")
    assert told() == []
    see(Gantry="OK", Witness="OK")
    assert told() == [("body_found", "the body GantryToTracker is seen")]
    # Silence tells by itself, first of one that is old and then of one that is gone.
    while room.pipeline.next_due_ns() < room.now_ns + 2_000 * MS and len(room.frames) < 12:
        room.tick_when_due()
    lost = told()
    assert [event for event, _ in lost] == ["body_lost"] * 4
    assert {text.split(":")[0] for _, text in lost} == {"the body GantryToTracker", "Witness"}


# -- a setup that cannot work ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tools": ()}, "no needle"),
        ({"tools": (needle(transform="Needle"),)}, "'Needle'; expected a name such as"),
        ({"tools": (needle(), needle("Probe", transform="NeedleToTracker"))}, "already the pose of tools.Needle"),
        ({"tools": (needle(transform="NeedleToCamera"),)}, "never meet"),
    ],
)
def test_poses_that_never_meet_are_refused_before_the_first(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_setup(**change)


# -- properties over random histories --------------------------------------------------------------------------

EVENT = st.one_of(
    st.tuples(
        st.just("pair"),
        st.sampled_from([SEEN, SEEN, SEEN, HIDDEN, None]),
        st.sampled_from([SEEN, SEEN, SEEN, HIDDEN, None]),
        st.floats(5.0, 60.0),
        st.sampled_from([0.0, 4.0]),
    ),
    st.tuples(st.just("needle"), st.floats(5.0, 30.0), st.sampled_from([0.0, 10.0, 700.0])),
    st.tuples(st.just("reference"), st.sampled_from([0.0, 10.0, 700.0])),
    st.tuples(st.sampled_from(["tick", "down", "up", "propose", "accept", "reject", "report", "torn", "ack", "park"])),
)
HISTORY = st.lists(st.tuples(EVENT, st.sampled_from([0, 1, 10, 10, 25, 110, 600, 1200])), max_size=40)


def play(room: Room, history: list[tuple[tuple[Any, ...], int]]) -> None:
    for event, ms in history:
        room.wait(ms)
        match event:
            case ("pair", of_needle, of_reference, z, x):
                room.read(room.pose("Reference", status=of_reference), room.pose("Needle", at(x, 0, z), of_needle))
            case ("needle", z, late_ms):
                room.read(room.pose("Needle", at(0, 0, z), late_ms=late_ms))
            case ("reference", late_ms):
                room.read(room.pose("Reference", late_ms=late_ms))
            case ("torn",):
                room.read(b"\0" * 58)
            case ("tick",):
                room.tick_when_due()
            case ("down",):
                room.down()
            case ("up",):
                room.up()
            case ("propose",):
                room.propose(f"r{room.now_ns}", shifted(room.now_ns % 7))
            case ("report",):
                room.report(len(room.inputs), 0)
            case ("park",):
                room.command("park_tool", tool="Needle", parked=len(room.inputs) % 2 == 0)
            case ("ack",):
                for alarm in list(room.frames[-1].alarms if room.frames else []):
                    room.command("acknowledge_alarm", id=alarm.id)
            case ("accept" | "reject" as op,):
                last = room.frames[-1] if room.frames else None
                known = last and (last.proposal or last.registration)
                room.command(f"{op}_registration", id=(known and known.id) or "none")


@settings(max_examples=150)
@given(HISTORY, st.booleans())
def test_over_any_history_frames_are_honest(history: list[tuple[tuple[Any, ...], int]], registered: bool) -> None:
    room = Room(make_setup(preset=preset() if registered else None))
    play(room, history)
    assert [f.seq for f in room.frames] == list(range(1, len(room.frames) + 1))
    last: dict[tuple[str, str], tuple[float, str]] = {}
    order = ["none", "caution", "warning", "breach"]
    for frame in room.frames:
        check_honest(frame)
        for row in frame.structures:
            if row.lower_mm is None or row.kind != "critical":
                continue
            lower, before = last.get((row.name, row.part), (np.inf, "none"))
            assert row.lower_mm >= lower or order.index(row.level) >= order.index(before)
            last[row.name, row.part] = (row.lower_mm, row.level)
            shown = {a.condition for a in frame.alarms if a.structure == row.name and a.phase != "latched"} & LEVELS
            assert row.level == "none" or max(order.index(c) for c in shown) >= order.index(row.level)
    assert all(b.received_ns >= a.received_ns for a, b in pairwise(room.frames))


@settings(max_examples=60)
@given(HISTORY)
def test_the_same_inputs_give_the_same_frames_bit_for_bit(history: list[tuple[tuple[Any, ...], int]]) -> None:
    room = Room(make_setup(preset=preset()))
    play(room, history)
    for frame in room.frames:
        frame.sent_ns = 123  # the shell stamps it live; replay does not
    again = Room(make_setup(preset=preset()), connected=False)
    for item in room.inputs:
        again.give(decode_input(encode_input(item)))
    for live, replayed in zip(room.frames, again.frames, strict=True):
        live.sent_ns = 0
        assert encode_frame(live) == encode_frame(replayed)
    others = [[o for o in r.outputs if not isinstance(o, GuidanceFrame)] for r in (room, again)]
    assert msgspec.msgpack.encode(others[0]) == msgspec.msgpack.encode(others[1])


def test_a_room_that_ran_before_leaves_no_trace_in_another() -> None:
    """Engines, kernels and defaults share nothing: the server warms up with a pipeline of its own."""
    first = Room(make_setup(preset=preset()))
    for z in (12.0, 30.0, 11.0):
        first.wait(10)
        first.pair(at(0.0, 0.0, z))
    fresh, used = Room(make_setup(preset=preset())), Room(first.setup)
    assert encode_frame(fresh.pair(FAR)) == encode_frame(used.pair(FAR))


def test_a_room_without_structures_still_guides() -> None:
    room = Room(make_setup(structures=(), preset=preset()))
    frame = room.pair(FAR)
    assert (frame.state, frame.structures, frame.tip_ct_mm) == ("OK", [], (0.0, 0.0, 60.0))


def test_limits_are_those_of_each_structure() -> None:
    wide = replace(VESSEL, limits=replace(VESSEL.limits, caution_mm=80.0, warning_mm=70.0))
    room = Room(make_setup(structures=(NERVE, wide), preset=preset()))
    frame = room.pair(at(0.0, 0.0, 30.0))
    assert (level(frame, "Nerve"), level(frame, "Vessel")) == ("none", "warning")


def test_inputs_have_a_time_and_survive_their_record() -> None:
    tick = Tick(5)
    assert decode_input(encode_input(tick)) == tick
    with pytest.raises(msgspec.ValidationError):
        decode_input(msgspec.msgpack.encode({"type": "tick", "now_ns": "soon"}))
    assert isinstance(Reply("a", True, None), Reply)
