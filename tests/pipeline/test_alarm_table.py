"""The alarm table lived through the real pipeline: each condition brought about by what a room does, in every state.

What is expected stands in tables written by hand; the room is made of bytes, ticks, commands and reports alone.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.thermometer import ProbeSpec
from navsrv.guidance.alarms import Condition
from navsrv.guidance.conditions import SiteLimits
from navsrv.guidance.levels import Limits
from navsrv.kernel.frames import Array
from navsrv.pipeline.inputs import Note, SensorIn, ShellReport
from navsrv.pipeline.setup import ProbeSetup, ReferenceSetup
from navsrv.wire.guidance import STATES, AlarmState, GuidanceFrame
from tests.pipeline.room import EPOCH_NS, IDENTITY, MS, NERVE, VESSEL, Room, at, make_setup, needle, pose_bytes, rot

FAR = at(0.0, 0.0, 75.0)
HIDDEN = "OUT_OF_VIEW"


def shifted(x: float) -> Array:
    matrix = np.eye(4)
    matrix[0, 3] = x
    return matrix


def registered(**more: Any) -> Room:
    """Return a room whose registration an operator accepted, with a pose shown."""
    room = Room(make_setup(**more))
    room.pair(FAR)
    room.propose()
    assert room.command("accept_registration", id="r1").ok
    return room


def alarm(frame: GuidanceFrame, condition: str) -> AlarmState | None:
    return next((a for a in frame.alarms if a.condition == condition), None)


def stream(room: Room, seconds: float, matrix: Array = FAR, every_ms: float = 10.0, **more: Any) -> GuidanceFrame:
    """Give pairs at a rate for a time; return the last frame."""
    for _ in range(round(1e3 * seconds / every_ms)):
        room.wait(every_ms)
        frame = room.pair(matrix, **more)
    return frame


# -- each condition, brought about -----------------------------------------------------------------------------


def approach(z: float) -> Callable[[Room], None]:
    """Come slowly, so that nothing but the level is said."""

    def come(room: Room) -> None:
        room.wait(10_000)
        room.pair(at(0.0, 0.0, z))

    return come


def rush(room: Room) -> None:
    for step in range(25):
        room.wait(10)
        room.pair(at(0.0, 0.0, 40.0 - 0.4 * step))  # 40 mm/s


def doubtful(room: Room) -> None:
    room.wait(10_000)
    room.pair(at(0.0, 0.0, 36.0))
    assert room.setup.tools[0].tip_sigma_mm > 3.0


def beside(room: Room) -> None:
    room.wait(10_000)
    room.pair(at(4.0, 0.0, 80.0))


def arrive(room: Room) -> None:
    room.wait(10_000)
    room.pair(at(0.0, 0.0, 51.0))


def hide(name: str) -> Callable[[Room], None]:
    def act(room: Room) -> None:
        for _ in range(120):
            room.wait(10)
            status = {"Reference": "OK", "Needle": "OK", name: HIDDEN}
            room.read(*[room.pose(n, FAR if n == "Needle" else IDENTITY, s) for n, s in status.items()])

    return act


def knock(room: Room) -> None:
    room.wait(10)
    room.pair(FAR)
    room.wait(10)
    room.pair(shifted(6.0) @ FAR, shifted(6.0))


def fall_silent(room: Room) -> None:
    room.wait(101)
    room.tick()


def slow_down(room: Room) -> None:
    stream(room, 2.0, every_ms=15.0)


def jump_clock(room: Room) -> None:
    room.wait(10)
    room.read(room.pose("Reference", late_ms=-3000))
    room.wait(10)
    room.read(room.pose("Reference", late_ms=-3000), room.pose("Needle", FAR, late_ms=-3000))


def drift(room: Room) -> None:
    witness = ("WitnessToTracker", IDENTITY)
    for step in range(400):
        room.wait(10)
        moved = shifted(0.0 if step < 100 else 1.5)
        room.read(pose_bytes(*witness, EPOCH_NS + room.now_ns), room.pose("Reference", moved), room.pose("Needle", FAR))


def expire(room: Room) -> None:
    room.wait(61_000)
    room.pair(FAR)


def lose_display(room: Room) -> None:
    for count in (1, 0):
        room.give(ShellReport(room.now_ns, 0, 0, count))
    room.wait(10)
    room.pair(FAR)


def report(missed: int, lost: int) -> Callable[[Room], None]:
    def act(room: Room) -> None:
        room.report(missed, lost)
        room.wait(10)
        room.pair(FAR)

    return act


def absurd(room: Room) -> None:
    matrix = np.eye(4)
    matrix[0, 3] = 1e300
    room.propose("r9", matrix)
    room.command("accept_registration", id="r9")


def command(op: str, **args: Any) -> Callable[[Room], None]:
    def act(room: Room) -> None:
        assert room.command(op, **args).ok

    return act


@dataclass(frozen=True)
class Story:
    """How a condition comes about, and what must be seen of it: priority, state of the frame, subject of its id."""

    act: Callable[[Room], None]
    priority: str
    state: str
    subject: str | None = None
    setup: tuple[tuple[str, Any], ...] = ()


def heat(*celsius_or_status: float) -> Callable[[Room], None]:
    """A probe reads a temperature; then, where one is given, its device says a status."""

    def act(room: Room) -> None:
        celsius, *status = celsius_or_status
        for n, said in enumerate([0, *status]):
            room.give(SensorIn(room.now_ns, "Thermo", EPOCH_NS + room.now_ns + n, (celsius,), 0, int(said)))
        room.wait(5)
        room.pair(FAR)

    return act


PROBED = ("probes", (ProbeSetup(ProbeSpec("Nerve 1", "Thermo", 0, 2.0), 42.0, 45.0, 15.0, 10.0),))
UNSURE = needle(tip_sigma_mm=3.3)
WITNESSED = ("witness", ReferenceSetup("main", "WitnessToTracker"))
STORIES = {
    "caution": Story(approach(19.0), "low", "OK", "Nerve"),
    "warning": Story(approach(14.0), "medium", "OK", "Nerve"),
    "breach": Story(approach(9.0), "high", "OK", "Nerve"),
    "closing_fast": Story(rush, "medium", "OK", "Nerve"),
    "uncertain": Story(doubtful, "medium", "OK", None, (("tools", (UNSURE,)),)),
    "outside_corridor": Story(beside, "low", "OK"),
    "target_reached": Story(arrive, "low", "OK"),
    "tool_lost": Story(hide("Needle"), "medium", "LOST", "Needle"),
    "reference_lost": Story(hide("Reference"), "medium", "LOST", "Reference"),
    "reference_moved": Story(knock, "medium", "DEGRADED"),
    "source_stale": Story(fall_silent, "low", "STALE", "Reference"),
    "link_down": Story(lambda room: room.down() and None, "medium", "LOST", "main"),
    "rate_low": Story(slow_down, "low", "OK", "Reference"),
    "clock_jump": Story(jump_clock, "medium", "OK", "main"),
    "unregistered": Story(lambda room: None, "low", "UNREGISTERED"),
    "registration_rejected": Story(command("reject_registration", id="r1"), "low", "UNREGISTERED"),
    "registration_expired": Story(
        expire, "medium", "UNREGISTERED", None, (("registration_max_age_ns", 60_000_000_000),)
    ),
    "registration_drifting": Story(drift, "low", "OK", None, (WITNESSED,)),
    "unverified": Story(command("doubt_registration", id="r1", reason="landmark 4 mm off"), "medium", "DEGRADED"),
    "deadline_missed": Story(report(3, 0), "low", "OK"),
    "recorder_failing": Story(report(0, 1), "medium", "OK"),
    "display_gone": Story(lose_display, "medium", "OK"),
    "temperature": Story(heat(46.0), "medium", "OK", "Nerve 1", (PROBED,)),
    "temperature_unknown": Story(heat(37.0, 13), "low", "OK", "Nerve 1", (PROBED,)),
    "fault": Story(absurd, "high", "FAULT", "Needle"),
}


def told(condition: str, **more: Any) -> Room:
    story = STORIES[condition]
    setup = dict(story.setup) | more
    room = Room(make_setup(**setup)) if condition == "unregistered" else registered(**setup)
    if condition == "unregistered":
        room.pair(FAR)
    story.act(room)
    return room


def test_every_condition_has_a_story() -> None:
    assert set(STORIES) == {c.value for c in Condition}


@pytest.mark.parametrize("condition", STORIES)
def test_each_condition_is_raised_by_what_brings_it_about_and_logged(condition: str) -> None:
    story = STORIES[condition]
    room = told(condition)
    frame = room.frames[-1]
    found = alarm(frame, condition)
    assert found is not None, frame
    assert (found.priority, found.phase, frame.state) == (story.priority, "active", story.state)
    assert found.id == (condition if story.subject is None else f"{condition}:{story.subject}")
    assert found.structure == (story.subject if story.subject == "Nerve" else None)
    assert found.text
    assert found.action
    raised = [n for n in room.notes if n.event == "alarm_raised" and n.fields["id"] == found.id]
    assert len(raised) == 1
    fields = raised[0].fields
    assert (fields["tool"], fields["condition"], fields["since_ns"]) == ("Needle", condition, found.since_ns)
    assert fields["priority"] in ("high", "medium", "low")
    if story.subject == "Nerve":
        assert {"distance_mm", "sigma_mm", "lower_mm", "part"} <= set(fields)
        assert fields["lower_mm"] < fields["distance_mm"]


@pytest.mark.parametrize("condition", STORIES)
def test_each_condition_can_be_acknowledged_and_that_is_logged(condition: str) -> None:
    room = told(condition)
    found = alarm(room.frames[-1], condition)
    assert found is not None
    assert room.command("acknowledge_alarm", id=found.id).ok
    after = alarm(room.frames[-1], condition)
    assert after is not None
    assert after.phase == "acknowledged"
    notes = [n for n in room.notes if n.event == "alarm_acknowledged"]
    assert [(n.fields["id"], n.fields["by"]) for n in notes] == [(found.id, "operator")]


# -- every state with every condition --------------------------------------------------------------------------

# What each state does to conditions that were there: geometry's figures go, other things stand for themselves.
INTO_STATE: dict[str, Callable[[Room], None]] = {
    "OK": lambda room: None,
    "DEGRADED": lambda room: (room.wait(25), room.tick())[0],
    "STALE": lambda room: (room.wait(150), room.tick())[0],
    "LOST": lambda room: room.down() and None,
    "UNREGISTERED": lambda room: room.command("reject_registration", id="r1") and None,
    "FAULT": absurd,
}
OF_GEOMETRY = {
    "caution",
    "warning",
    "breach",
    "closing_fast",
    "uncertain",
    "outside_corridor",
    "target_reached",
}
IMPLIED = {"tool_lost": "LOST", "reference_lost": "LOST", "link_down": "LOST", "source_stale": "STALE"}
LATCHING = {"breach", "recorder_failing", "fault"}
VALID = {"OK", "DEGRADED", "SNAPSHOT"}


@pytest.mark.parametrize(("state", "condition"), list(itertools.product(INTO_STATE, STORIES)))
def test_every_condition_in_every_state(state: str, condition: str) -> None:
    """A figure of geometry is never current while geometry is not valid; what is bad implies a state as bad."""
    room = told(condition)
    INTO_STATE[state](room)
    frame = room.frames[-1]
    if state == "FAULT" and condition in IMPLIED:  # numbers that nobody computes cannot be wrong
        assert frame.state == IMPLIED[condition]
    else:
        assert STATES.index(frame.state) >= STATES.index(state)
    valid = frame.state in VALID
    for row in frame.structures:
        assert (row.level == "unknown") is not valid
    found = alarm(frame, condition)
    if condition in OF_GEOMETRY and not valid:
        assert found is None or (found.phase == "latched" and condition in LATCHING)
        assert found is None or "mm" not in found.text
    if found is not None and found.phase != "latched" and condition not in OF_GEOMETRY:
        assert STATES.index(frame.state) >= STATES.index(IMPLIED.get(condition, "OK"))
    if not valid:
        assert any(a.text == frame.reason and a.phase != "latched" for a in frame.alarms)


def test_every_state_of_a_tracked_tool_has_a_row() -> None:
    """SNAPSHOT is the state of a tool that only images show: tests/pipeline/test_snapshot.py."""
    assert set(STATES) - set(INTO_STATE) == {"SNAPSHOT"}


# -- clearing: delays and hysteresis ---------------------------------------------------------------------------


def test_closing_fast_needs_to_be_clearly_slower_to_end() -> None:
    room = registered()
    rush(room)
    z, seen = 30.0, []
    for speed in (18.0, 18.0, 10.0):
        for _ in range(50):
            room.wait(10)
            z -= speed * 0.01
            frame = room.pair(at(0.0, 0.0, z))
        seen.append(alarm(frame, "closing_fast") is not None)
        z += speed  # a new approach of the same kind: what counts is the speed, not the place
    assert seen[0]  # 18 mm/s would not raise it, and does not end it
    assert alarm(stream(room, 1.0), "closing_fast") is None


def test_a_tool_that_rushes_far_away_says_nothing() -> None:
    room = registered(path=None)
    for step in range(100):
        room.wait(10)
        frame = room.pair(at(0.0, 0.0, 300.0 - 2.5 * step))  # 250 mm/s, down to 50 mm
        assert not frame.alarms, frame.alarms


def test_the_corridor_has_slack_and_holds_half_a_second() -> None:
    room = registered()
    seen = [[a.text for a in stream(room, 0.6, at(x, 0.0, 80.0)).alarms] for x in (2.9, 3.1, 2.9, 2.7)]
    assert seen == [[], ["3.1 mm beside the planned path"], ["2.9 mm beside the planned path"], []]
    room.wait(10)
    room.pair(at(3.1, 0.0, 80.0))
    room.wait(10)
    (held,) = room.pair(at(0.0, 0.0, 80.0)).alarms
    assert held.text == "Was beside the planned path"


@pytest.mark.parametrize(("x", "z"), [(4.0, 151.0), (31.0, 80.0)])
def test_a_tool_that_does_not_follow_the_path_is_not_told_that_it_is_beside_it(x: float, z: float) -> None:
    room = registered()
    room.wait(10_000)
    assert alarm(room.pair(at(x, 0.0, z)), "outside_corridor") is None


# -- what is lost ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", ["Needle", "Reference"])
@pytest.mark.parametrize(("z", "last"), [(75.0, "medium"), (14.0, "high"), (20.0, "medium")])
def test_a_loss_is_low_for_a_second_then_grave_by_where_the_tool_was(hidden: str, z: float, last: str) -> None:
    room = registered()
    stream(room, 0.3, at(0.0, 0.0, z))
    condition = "tool_lost" if hidden == "Needle" else "reference_lost"
    priorities = []
    for _ in range(150):
        room.wait(10)
        status = {"Reference": "OK", "Needle": "OK", hidden: HIDDEN}
        (frame,) = room.read(*[room.pose(n, FAR if n == "Needle" else IDENTITY, s) for n, s in status.items()])
        found = alarm(frame, condition)
        assert found is not None
        priorities.append(found.priority)
    assert priorities == ["low"] * 100 + [last] * 50


def test_a_tool_outside_the_volume_and_a_parked_one_stay_low() -> None:
    room = registered()
    stream(room, 0.3, at(0.0, 0.0, 300.0))
    hide("Needle")(room)
    assert {a.priority for a in room.frames[-1].alarms} == {"low"}
    room = registered()
    stream(room, 0.3, at(0.0, 0.0, 14.0))
    assert room.command("park_tool", tool="Needle", parked=True).ok
    hide("Needle")(room)
    frame = room.frames[-1]
    # Within a warning distance it is not parked, whatever was said: the word is taken back, and that is logged.
    assert (frame.parked, [n.event for n in room.notes if n.event == "parking_ended"]) == (False, ["parking_ended"])
    room = registered()
    assert room.command("park_tool", tool="Needle", parked=True).ok
    hide("Needle")(room)
    assert (room.frames[-1].parked, {a.priority for a in room.frames[-1].alarms}) == (True, {"low"})


def test_a_parked_tool_that_comes_near_is_in_use() -> None:
    room = registered()
    room.command("park_tool", tool="Needle", parked=True)
    assert room.frames[-1].parked
    frame = stream(room, 0.02, at(0.0, 0.0, 9.0))
    found = alarm(frame, "breach")
    assert found is not None
    assert (found.priority, frame.parked) == ("high", False)


# -- the reference ---------------------------------------------------------------------------------------------


def test_a_knocked_reference_puts_the_registration_in_doubt_with_the_number_until_it_is_confirmed() -> None:
    room = registered()
    stream(room, 0.5)
    knock(room)
    frame = room.frames[-1]
    assert (frame.state, frame.registration.state) == ("DEGRADED", "unverified")
    assert "6.0 mm" in frame.reason
    assert frame.tip_ct_mm is not None  # geometry goes on, and every display says that it is in doubt
    (note,) = [n for n in room.notes if n.event == "registration_unverified"]
    assert note.fields["jump_mm"] == 5.0
    frame = stream(room, 3.0, shifted(6.0) @ FAR, reference=shifted(6.0))
    assert alarm(frame, "reference_moved") is not None  # it does not go away by waiting
    assert room.command("confirm_registration", id="r1").ok
    frame = room.frames[-1]
    assert (frame.state, frame.registration.state, frame.alarms) == ("OK", "accepted", [])
    assert not room.command("confirm_registration", id="r1").ok


@pytest.mark.parametrize(
    ("mm_s", "rate_hz", "moved"),
    [(80.0, 100.0, False), (130.0, 100.0, True), (20.0, 100.0, False), (130.0, 250.0, True)],
)
def test_a_patient_who_breathes_or_is_moved_gently_did_not_knock_it(mm_s: float, rate_hz: float, moved: bool) -> None:
    room = registered()
    for step in range(60):
        room.wait(1e3 / rate_hz)
        there = shifted(mm_s * step / rate_hz)
        frame = room.pair(there @ FAR, there)
    assert (alarm(frame, "reference_moved") is not None) is moved


@pytest.mark.parametrize(("mm", "moved"), [(19.0, False), (21.0, True)])
def test_a_reference_that_comes_back_elsewhere_moved_while_nobody_saw(mm: float, moved: bool) -> None:
    room = registered()
    stream(room, 0.2)
    hide("Reference")(room)
    room.wait(10)
    frame = room.pair(shifted(mm) @ FAR, shifted(mm))
    assert (alarm(frame, "reference_moved") is not None) is moved


def test_another_connection_may_be_another_camera() -> None:
    room = registered()
    stream(room, 0.2)
    room.down()
    room.up()
    room.wait(10)
    assert room.pair(shifted(500.0) @ FAR, shifted(500.0)).state == "OK"


def witnessed(room: Room, seconds: float, reference: Array, witness: Array = IDENTITY) -> GuidanceFrame:
    for _ in range(round(100 * seconds)):
        room.wait(10)
        noise = shifted(0.1 * (-1) ** (room.now_ns // (10 * MS)))
        stamp = EPOCH_NS + room.now_ns
        poses = pose_bytes("WitnessToTracker", witness, stamp), room.pose("Reference", reference @ noise)
        (frame,) = room.read(*poses, room.pose("Needle", FAR))
    return frame


def test_a_slow_slip_is_seen_against_the_witness_only() -> None:
    room = registered(witness=ReferenceSetup("main", "WitnessToTracker"))
    assert witnessed(room, 1.0, IDENTITY).alarms == []
    turned = np.eye(4)
    turned[:3, :3] = rot("x", 2.0)
    frame = witnessed(room, 3.0, turned)  # its origin did not move: the target did, by 1.7 mm
    assert {a.condition for a in frame.alarms} == {"registration_drifting"}
    assert frame.state == "OK"
    turned[:3, :3] = rot("x", 3.0)
    frame = witnessed(room, 3.0, turned)
    assert {a.condition for a in frame.alarms} - {"outside_corridor"} == {"reference_moved"}
    assert "moved against the witness, at the target by 2.0 mm, above 2.0 mm" in frame.reason
    turned[:3, :3] = rot("x", 7.0)
    frame = witnessed(room, 3.0, turned)
    assert "registration_expired" in {a.condition for a in frame.alarms}
    assert frame.state == "UNREGISTERED"  # no distance rests on what is five millimetres off
    assert frame.tip_ct_mm is None
    alone = registered()
    assert alarm(stream(alone, 3.0, reference=turned), "reference_moved") is None  # not detectable without one


def test_camera_and_table_move_without_moving_the_reference_against_its_witness() -> None:
    room = registered(witness=ReferenceSetup("main", "WitnessToTracker"))
    witnessed(room, 1.0, IDENTITY)
    for step in range(20):
        both = shifted(0.4 * step)
        frame = witnessed(room, 0.05, both, both)
    assert {a.condition for a in frame.alarms} <= {"outside_corridor"}


# -- rate, deadlines, displays ---------------------------------------------------------------------------------


def test_a_rate_is_judged_over_a_second_and_not_after_a_silence() -> None:
    room = registered()
    assert stream(room, 3.0).alarms == []
    assert stream(room, 0.5, every_ms=14.0).alarms == []
    frame = stream(room, 1.0, every_ms=14.0)
    found = alarm(frame, "rate_low")
    assert found is not None
    assert "of 100 declared" in found.text
    assert stream(room, 4.0).alarms == []
    room.wait(5000)
    for _ in range(300):
        room.wait(10)
        assert alarm(room.pair(FAR), "rate_low") is None


def test_a_tool_out_of_view_still_delivers_its_rate() -> None:
    room = registered()
    hide("Needle")(room)
    assert {a.condition for a in room.frames[-1].alarms} == {"tool_lost"}


def test_single_misses_are_counted_and_many_are_an_alarm() -> None:
    room = registered()
    for missed in (1, 2):
        room.wait(100)
        room.report(missed, 0)
        assert room.pair(FAR).alarms == []
    room.wait(11_000)
    room.pair(FAR)
    room.report(3, 0)
    room.wait(10)
    assert room.pair(FAR).alarms == []  # the first two are long ago
    for missed in (4, 5):
        room.report(missed, 0)
    room.wait(10)
    assert alarm(room.pair(FAR), "deadline_missed") is not None


@pytest.mark.parametrize(
    ("counts", "phase", "wanted", "raised"),
    [
        ((1, 0), "navigation", True, True),
        ((2, 1), "navigation", True, False),
        ((1, 0, 1), "navigation", True, False),
        ((0,), "navigation", True, False),
        ((1, 0), "cement", True, True),
        ((1, 0), "verification", True, False),
        ((1, 0), "navigation", False, False),
    ],
)
def test_the_last_display_that_leaves(counts: tuple[int, ...], phase: str, wanted: bool, raised: bool) -> None:
    room = registered(site=SiteLimits(display_gone=wanted))
    room.command("set_phase", phase=phase)
    for count in counts:
        room.give(ShellReport(room.now_ns, 0, 0, count))
    room.wait(10)
    assert (alarm(room.pair(FAR), "display_gone") is not None) is raised


# -- exceptions ------------------------------------------------------------------------------------------------

CROSSED = replace(NERVE, name="Crossed")
BESIDE = replace(VESSEL, name="Beside")


def crossing_room(**more: Any) -> Room:
    """The plan runs down to z = 50; a sphere there is crossed, one 60 mm beside it is not."""
    near = replace(CROSSED, limits=Limits(caution_mm=45.0, warning_mm=42.0))
    return registered(structures=(near, replace(VESSEL, limits=Limits(caution_mm=6.0))), **more)


def test_an_excepted_structure_keeps_its_numbers_and_raises_nothing_while_others_do() -> None:
    room = crossing_room()
    frame = stream(room, 0.1, at(0.0, 0.0, 51.0))
    assert {r.level for r in frame.structures if r.name == "Crossed"} == {"warning"}
    assert room.command("except_structure", structure="Crossed", reason="transforaminal access", on=True).ok
    frame = room.frames[-1]
    rows = [r for r in frame.structures if r.name == "Crossed"]
    assert {r.level for r in rows} == {"none"}
    assert all(r.lower_mm is not None for r in rows)
    assert [a.id for a in frame.alarms if a.structure == "Crossed"] == []
    (shown,) = frame.exceptions
    assert (shown.structure, shown.reason, shown.by) == ("Crossed", "transforaminal access", "operator")
    assert shown.planned_mm == pytest.approx(39.0, abs=0.01)
    (note,) = [n for n in room.notes if n.event == "exception_begun"]
    assert note.fields["reason"] == "transforaminal access"
    room.wait(10_000)
    frame = room.pair(at(0.0, 60.0, 3.0))  # into the other one
    assert alarm(frame, "breach") is not None
    assert [a.structure for a in frame.alarms if a.condition == "breach"] == ["Vessel"]
    assert room.command("except_structure", structure="Crossed", reason="", on=False).ok
    assert room.frames[-1].exceptions == []
    room.wait(10_000)
    assert level_of(room.pair(at(0.0, 0.0, 51.0)), "Crossed") == "warning"


def level_of(frame: GuidanceFrame, name: str) -> str:
    return next(r.level for r in frame.structures if r.name == name)


ENDS: list[tuple[str, Callable[[Room], Any]]] = [
    ("phase", command("set_phase", phase="ablation")),
    ("doubt", command("doubt_registration", id="r1", reason="landmark off")),
    ("rejected", command("reject_registration", id="r1")),
    ("knocked", knock),
    ("another", lambda room: (room.propose("r2"), room.command("accept_registration", id="r2"))),
]


@pytest.mark.parametrize(("why", "act"), ENDS, ids=[why for why, _ in ENDS])
def test_an_exception_ends_with_what_it_was_made_under(why: str, act: Callable[[Room], Any]) -> None:
    room = crossing_room()
    assert room.command("except_structure", structure="Crossed", reason="planned", on=True).ok
    act(room)
    assert room.frames[-1].exceptions == []
    assert [n.event for n in room.notes].count("exception_ended") == 1


@pytest.mark.parametrize(
    ("structure", "reason", "more", "words"),
    [
        ("Vessel", "planned", {}, "the plan does not cross 'Vessel'"),
        ("Crossed", " ", {}, "args.reason"),
        ("Moon", "planned", {}, "no critical structure 'Moon'; one of Crossed, Vessel"),
        ("Crossed", "planned", {"path": None}, "there is no plan"),
    ],
)
def test_an_exception_of_what_the_plan_does_not_cross_is_refused(
    structure: str, reason: str, more: dict[str, Any], words: str
) -> None:
    room = crossing_room(**more)
    reply = room.command("except_structure", structure=structure, reason=reason, on=True)
    assert not reply.ok
    assert words in reply.value
    assert room.frames[-1].exceptions == []


# -- two tools -------------------------------------------------------------------------------------------------


def two_in_breach() -> Room:
    room = Room(make_setup(tools=(needle(), needle("Probe"))))
    room.propose()
    room.command("accept_registration", id="r1")
    room.wait(10)
    room.read(room.pose("Reference"), room.pose("Needle", at(0, 0, 9.0)), room.pose("Probe", at(0, 0, 9.0)))
    return room


def phases(room: Room, alarm_id: str) -> dict[str, str | None]:
    newest = {f.tool: f for f in room.frames}
    return {t: next((a.phase for a in f.alarms if a.id == alarm_id), None) for t, f in newest.items()}


def test_two_tools_in_one_structure_are_acknowledged_each_for_itself() -> None:
    room = two_in_breach()
    reply = room.command("acknowledge_alarm", id="breach:Nerve")
    assert not reply.ok
    assert "Needle, Probe" in reply.value
    assert room.command("acknowledge_alarm", id="breach:Nerve", tool="Probe").ok
    assert phases(room, "breach:Nerve") == {"Needle": "active", "Probe": "acknowledged"}
    assert not room.command("acknowledge_alarm", id="breach:Nerve", tool="Saw").ok
    assert room.command("acknowledge_alarm", id="breach:Nerve", tool="Needle").ok
    assert phases(room, "breach:Nerve") == {"Needle": "acknowledged", "Probe": "acknowledged"}


def test_what_all_tools_share_is_acknowledged_once() -> None:
    room = two_in_breach()
    room.report(0, 1)
    room.wait(10)
    room.read(room.pose("Reference"), room.pose("Needle", FAR), room.pose("Probe", FAR))
    assert room.command("acknowledge_alarm", id="recorder_failing").ok
    assert phases(room, "recorder_failing") == {"Needle": "acknowledged", "Probe": "acknowledged"}


def test_with_two_tools_an_exception_says_for_which() -> None:
    near = replace(CROSSED, limits=Limits(caution_mm=45.0, warning_mm=42.0))
    room = Room(make_setup(tools=(needle(), needle("Probe")), structures=(near,)))
    assert not room.command("except_structure", structure="Crossed", reason="planned", on=True).ok
    assert room.command("except_structure", structure="Crossed", reason="planned", on=True, tool="Probe").ok
    assert {f.tool: len(f.exceptions) for f in room.frames} == {"Needle": 0, "Probe": 1}


# -- the pause of sounds ---------------------------------------------------------------------------------------


def test_a_pause_is_shown_ends_by_itself_and_gives_way_to_a_new_high_alarm() -> None:
    room = registered()
    assert room.command("pause_audio", seconds=30).ok
    assert room.frames[-1].audio_paused_s == 30.0
    assert stream(room, 1.0, at(0.0, 0.0, 19.0)).audio_paused_s == pytest.approx(29.0)
    room.wait(10_000)
    assert room.pair(at(0.0, 0.0, 9.0)).alarms
    room.wait(10)
    assert room.pair(at(0.0, 0.0, 9.0)).audio_paused_s == 0.0
    assert [n.fields["why"] for n in room.notes if n.event == "audio_resumed"] == ["a new alarm of high priority"]
    assert room.command("pause_audio", seconds=30).ok
    room.wait(10)
    assert room.pair(at(0.0, 0.0, 9.0)).audio_paused_s > 29.0  # the alarm that was there does not end it
    room.wait(30_000)
    assert room.pair(at(0.0, 0.0, 9.0)).audio_paused_s == 0.0
    assert [n.fields["why"] for n in room.notes if n.event == "audio_resumed"][1:] == ["the time is over"]


# -- expiry ----------------------------------------------------------------------------------------------------


def test_a_registration_expires_when_the_site_says_so_and_is_trusted_again_by_the_operator() -> None:
    room = told("registration_expired")
    frame = room.frames[-1]
    assert (frame.state, frame.registration.state) == ("UNREGISTERED", "expired")
    assert "more than 1 min ago" in frame.reason
    assert [n.event for n in room.notes].count("registration_expired") == 1
    assert room.command("confirm_registration", id="r1").ok
    assert (room.frames[-1].state, room.frames[-1].registration.state) == ("OK", "accepted")
    assert stream(room, 0.5).state == "OK"


# -- over random histories -------------------------------------------------------------------------------------

MOVE = st.tuples(st.just("pair"), st.floats(5.0, 40.0), st.sampled_from(["OK", "OK", "OK", HIDDEN]))
DEED = st.tuples(
    st.sampled_from(["ack", "pause", "except", "unexcept", "park", "doubt", "confirm", "down", "up", "tick", "knock"])
)
HISTORY = st.lists(
    st.tuples(st.one_of(MOVE, MOVE, DEED), st.sampled_from([4, 10, 10, 40, 150, 600, 1200])), max_size=60
)
ORDER = ["none", "caution", "warning", "breach"]


def play(room: Room, history: list[tuple[tuple[Any, ...], int]]) -> None:
    for deed, ms in history:
        room.wait(ms)
        match deed:
            case ("pair", z, status):
                room.read(room.pose("Reference"), room.pose("Needle", at(0.0, 0.0, z), status))
            case ("ack",):
                for one in list(room.frames[-1].alarms):
                    room.command("acknowledge_alarm", id=one.id)
            case ("pause",):
                room.command("pause_audio", seconds=len(room.inputs) % 121)
            case ("except" | "unexcept" as op,):
                room.command("except_structure", structure="Near", reason="planned", on=op == "except")
            case ("park",):
                room.command("park_tool", tool="Needle", parked=len(room.inputs) % 2 == 0)
            case ("doubt",):
                room.command("doubt_registration", id="r1", reason="a touch was off")
            case ("confirm",):
                room.command("confirm_registration", id="r1")
            case ("knock",):
                room.read(room.pose("Reference", shifted(float(len(room.inputs) % 30))))
            case ("down",):
                room.down()
            case ("up",):
                room.up()
            case ("tick",):
                room.tick_when_due()


@settings(max_examples=120)
@given(HISTORY)
def test_over_any_history_alarms_tell_the_truth(history: list[tuple[tuple[Any, ...], int]]) -> None:
    near = replace(NERVE, name="Near", limits=Limits(caution_mm=45.0, warning_mm=12.0))
    room = registered(structures=(NERVE, near))
    play(room, history)
    logged = {(n.now_ns, n.event, n.fields.get("id")) for n in room.notes}
    lower: dict[tuple[str, str], tuple[float, str]] = {}
    phases_before: dict[str, str] = {}
    for frame in room.frames:
        valid = frame.state in VALID
        phases_now = {a.id: a.phase for a in frame.alarms}
        excepted = {e.structure for e in frame.exceptions}
        for row in frame.structures:
            key = row.name, row.part
            if row.lower_mm is None or row.name in excepted:
                lower.pop(key, None)
                continue
            bound, level = lower.get(key, (np.inf, "none"))
            assert row.lower_mm >= bound or ORDER.index(row.level) >= ORDER.index(level)
            lower[key] = (row.lower_mm, row.level)
            if row.level != "none":
                shown = {a.condition for a in frame.alarms if a.structure == row.name and a.phase != "latched"}
                assert max(ORDER.index(c) for c in shown & set(ORDER)) >= ORDER.index(row.level)
        for one in frame.alarms:
            assert one.phase == "latched" or valid or one.condition not in OF_GEOMETRY
            assert one.structure not in excepted or one.phase == "latched" or one.condition == "closing_fast"
            assert one.since_ns <= frame.received_ns
        for key, phase in phases_before.items():
            if phase == "acknowledged" and phases_now.get(key) != "acknowledged":
                what = "alarm_worsened" if key in phases_now else "alarm_cleared"
                assert (frame.received_ns, what, key) in logged
        assert (frame.reason == "") is (frame.state == "OK")
        phases_before = phases_now
    room.wait(120_001)
    (last,) = room.tick()[-1:] or [room.frames[-1]]
    assert last.audio_paused_s == 0.0


def test_every_note_can_be_recorded() -> None:
    room = registered()
    rush(room)
    knock(room)
    assert {"alarm_raised", "registration_unverified", "command"} <= {n.event for n in room.notes}
    for note in room.notes:
        assert msgspec.json.decode(msgspec.json.encode(note), type=Note) == note
