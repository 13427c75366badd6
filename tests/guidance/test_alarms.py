"""The alarm table against one written by hand, cell by cell, and the life of alarms over random histories."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from navsrv.guidance.alarm_life import (
    NO_ALARMS,
    AlarmTable,
    Change,
    Present,
    acknowledge,
    audio_of,
    step_alarms,
    step_audio,
)
from navsrv.guidance.alarm_page import MADE_BY, alarm_cells, alarm_page
from navsrv.guidance.alarms import (
    AUDIO,
    AUDIO_PAUSE_MAX_S,
    OF_GEOMETRY,
    OF_STRUCTURES,
    RULES,
    SIGNALS,
    TABLE,
    TRANSITIONS,
    Audio,
    AudioEvent,
    Condition,
    Event,
    Phase,
    Priority,
)
from navsrv.guidance.conditions import LIMIT_SOURCES

S = 1_000_000_000
CELLS = list(itertools.product(Condition, Phase, Event))

# Condition: priority, scope, latching, minimum duration (ms), best state of the frame, whether it escalates.
RULES_BY_HAND = {
    "breach": ("high", "structure", True, 0, "OK", False),
    "warning": ("medium", "structure", False, 0, "OK", False),
    "caution": ("low", "structure", False, 0, "OK", False),
    "closing_fast": ("medium", "structure", False, 500, "OK", False),
    "uncertain": ("medium", "tool", False, 500, "OK", False),
    "outside_corridor": ("low", "tool", False, 500, "OK", False),
    "target_reached": ("low", "tool", False, 500, "OK", False),
    "tool_lost": ("medium", "tool", False, 0, "LOST", True),
    "reference_lost": ("medium", "room", False, 0, "LOST", True),
    "reference_moved": ("medium", "room", False, 0, "DEGRADED", True),
    "source_stale": ("medium", "room", False, 1000, "STALE", True),
    "link_down": ("medium", "room", False, 0, "LOST", True),
    "rate_low": ("low", "room", False, 2000, "OK", False),
    "clock_jump": ("medium", "room", False, 5000, "OK", False),
    "unregistered": ("low", "room", False, 0, "UNREGISTERED", False),
    "registration_rejected": ("low", "room", False, 0, "UNREGISTERED", False),
    "registration_expired": ("medium", "room", False, 0, "UNREGISTERED", False),
    "registration_drifting": ("low", "room", False, 2000, "OK", False),
    "unverified": ("medium", "room", False, 0, "DEGRADED", False),
    "deadline_missed": ("low", "room", False, 2000, "OK", False),
    "recorder_failing": ("medium", "room", True, 5000, "OK", False),
    "display_gone": ("medium", "room", False, 0, "OK", False),
    "temperature": ("medium", "room", False, 2000, "OK", False),
    "temperature_unknown": ("medium", "room", False, 2000, "OK", False),
    "fault": ("high", "tool", True, 0, "FAULT", False),
}

# (phase, event): what comes of a latching alarm, and of one that does not latch.
LIFE_BY_HAND = {
    ("inactive", "present"): ("active", "active"),
    ("inactive", "worsened"): ("active", "active"),
    ("inactive", "gone"): ("inactive", "inactive"),
    ("inactive", "acknowledge"): ("inactive", "inactive"),
    ("active", "present"): ("active", "active"),
    ("active", "worsened"): ("active", "active"),
    ("active", "gone"): ("latched", "inactive"),
    ("active", "acknowledge"): ("acknowledged", "acknowledged"),
    ("latched", "present"): ("active", "active"),
    ("latched", "worsened"): ("active", "active"),
    ("latched", "gone"): ("latched", "inactive"),
    ("latched", "acknowledge"): ("inactive", "inactive"),
    ("acknowledged", "present"): ("acknowledged", "acknowledged"),
    ("acknowledged", "worsened"): ("active", "active"),
    ("acknowledged", "gone"): ("inactive", "inactive"),
    ("acknowledged", "acknowledge"): ("acknowledged", "acknowledged"),
}

# (priority, phase): colour, flashes a second, sound.
SIGNALS_BY_HAND = {
    ("high", "active"): ("red", 2.0, "high"),
    ("high", "latched"): ("red", 2.0, "high"),
    ("high", "acknowledged"): ("red", 0.0, None),
    ("medium", "active"): ("yellow", 0.6, "medium"),
    ("medium", "latched"): ("yellow", 0.6, "medium"),
    ("medium", "acknowledged"): ("yellow", 0.0, None),
    ("low", "active"): ("cyan", 0.0, "low"),
    ("low", "latched"): ("cyan", 0.0, "low"),
    ("low", "acknowledged"): ("cyan", 0.0, None),
} | {(priority, "inactive"): ("none", 0.0, None) for priority in ("high", "medium", "low")}

AUDIO_BY_HAND = {
    ("on", "pause"): "paused",
    ("on", "resume"): "on",
    ("on", "elapsed"): "on",
    ("on", "new_high"): "on",
    ("paused", "pause"): "paused",
    ("paused", "resume"): "on",
    ("paused", "elapsed"): "on",
    ("paused", "new_high"): "on",
}


def by_hand(condition: Condition, phase: Phase, event: Event) -> str:
    latched, not_latched = LIFE_BY_HAND[phase.value, event.value]
    return latched if RULES_BY_HAND[condition.value][2] else not_latched


# -- the tables ------------------------------------------------------------------------------------------------


def test_every_rule_is_as_written_by_hand() -> None:
    found = {
        c.value: (r.priority.value, r.scope.value, r.latching, r.clear_after_ns / 1e6, r.state, r.escalates)
        for c, r in RULES.items()
    }
    assert found == RULES_BY_HAND
    assert set(RULES) == set(Condition)


def test_every_rule_says_what_raises_it_what_ends_it_and_what_to_do() -> None:
    for rule in RULES.values():
        assert rule.when
        assert rule.clears
        assert rule.action.endswith(".")


def test_what_high_and_latching_are_for() -> None:
    high = {c for c, r in RULES.items() if r.priority is Priority.HIGH}
    assert all(RULES[c].latching for c in high)  # nobody may miss one that came and went
    assert {c for c, r in RULES.items() if r.latching} == high | {Condition.RECORDER_FAILING}
    assert OF_STRUCTURES < OF_GEOMETRY < set(Condition)
    assert all(RULES[c].state == "OK" for c in OF_GEOMETRY)


@pytest.mark.parametrize(("condition", "phase", "event"), CELLS, ids=lambda v: v.value)
def test_every_cell_is_as_written_by_hand(condition: Condition, phase: Phase, event: Event) -> None:
    cell = TABLE[condition, phase, event]
    assert cell.phase.value == by_hand(condition, phase, event)
    priority = RULES_BY_HAND[condition.value][0]
    signal = (cell.signal.colour, cell.signal.flash_hz, cell.signal.sound)
    assert signal == SIGNALS_BY_HAND[priority, cell.phase.value]


def test_the_tables_have_every_cell() -> None:
    assert set(TABLE) == set(CELLS)
    assert set(TRANSITIONS) == set(itertools.product(Phase, Event))
    assert {(p.value, f.value) for p, f in SIGNALS} == set(SIGNALS_BY_HAND)
    assert {(a.value, e.value) for a, e in AUDIO} == set(AUDIO_BY_HAND)


def test_the_printed_page_is_that_of_the_tables() -> None:
    page = Path(__file__).parents[2] / "docs" / "alarms.md"
    assert page.read_text("utf-8") == alarm_page(), f"out of date: {MADE_BY}"
    for rule in RULES.values():
        assert rule.action in alarm_page()
    assert len(alarm_cells()["cells"]) == len(CELLS)
    assert set(LIMIT_SOURCES) == set(alarm_cells()["limits"])


def test_signals_stay_within_what_the_standard_is_quoted_for() -> None:
    flashes = {p: {s.flash_hz for (q, f), s in SIGNALS.items() if q is p} - {0.0} for p in Priority}
    assert all(1.4 <= hz <= 2.8 for hz in flashes[Priority.HIGH])
    assert all(0.4 <= hz <= 0.8 for hz in flashes[Priority.MEDIUM])
    assert not flashes[Priority.LOW]
    assert len({s.sound for s in SIGNALS.values()} - {None}) <= 4
    for (_, phase), signal in SIGNALS.items():
        if phase in (Phase.ACTIVE, Phase.LATCHED):
            assert signal.sound is not None  # only the operator's word takes a sound away


# -- the life of one alarm -------------------------------------------------------------------------------------


def present(
    condition: Condition, text: str = "text", priority: Priority | None = None, grade: int = 0
) -> dict[str, Present]:
    one = Present(condition, "X", text, priority, grade, past="past")
    return {one.id: one}


def stepped(
    table: AlarmTable, holds: dict[str, Present], now_ns: int, unjudged: frozenset[Condition] = frozenset()
) -> AlarmTable:
    return step_alarms(table, holds, now_ns, unjudged)[0]


def acknowledged(table: AlarmTable, alarm_id: str) -> AlarmTable:
    return acknowledge(table, alarm_id)[0]


def in_phase(condition: Condition, phase: Phase) -> AlarmTable:
    """Return a table with one alarm brought to a phase by events alone; empty for inactive."""
    table: AlarmTable = NO_ALARMS
    if phase is Phase.INACTIVE:
        return table
    table = stepped(table, present(condition), 100)
    if phase is Phase.ACKNOWLEDGED:
        table = acknowledged(table, f"{condition.value}:X")
    if phase is Phase.LATCHED:
        table = stepped(table, {}, 200)
        table = stepped(table, {}, 200 + RULES[condition].clear_after_ns)
    return table


def phase_in(table: AlarmTable) -> Phase:
    return next((alarm.phase for alarm in table.values()), Phase.INACTIVE)


def graver(condition: Condition, text: str = "graver") -> dict[str, Present]:
    return present(condition, text, grade=1)


@pytest.mark.parametrize(("condition", "phase", "event"), CELLS, ids=lambda v: v.value)
def test_every_cell_as_the_alarm_lives_it(condition: Condition, phase: Phase, event: Event) -> None:
    table = in_phase(condition, phase)
    if phase is Phase.LATCHED and not RULES[condition].latching:
        assert table == {}  # a phase that it never gets to
        return
    assert phase_in(table) is phase
    later = 100 * S
    said: list[Change] = []
    match event:
        case Event.PRESENT | Event.WORSENED:
            make: Callable[[Condition, str], dict[str, Present]] = present if event is Event.PRESENT else graver
            after, changes = step_alarms(table, make(condition, "new"), later)
            said += changes
            assert all(alarm.present.text == "new" for alarm in after.values())
        case Event.GONE:
            after, changes = step_alarms(table, {}, later)
            said += changes
            after, changes = step_alarms(after, {}, later + RULES[condition].clear_after_ns)
            said += changes
        case Event.ACKNOWLEDGE:
            if phase is Phase.INACTIVE:
                with pytest.raises(KeyError):
                    acknowledge(table, f"{condition.value}:X")
                return
            after, change = acknowledge(table, f"{condition.value}:X")
            said.append(change)
    assert phase_in(after).value == by_hand(condition, phase, event)
    if phase_in(after) is not phase:
        assert len(said) == 1  # every transition is told, once


@pytest.mark.parametrize("condition", Condition, ids=lambda c: c.value)
def test_raising_is_immediate_and_the_minimum_duration_delays_only_the_clearing(condition: Condition) -> None:
    hold = RULES[condition].clear_after_ns
    table = stepped(NO_ALARMS, present(condition), 7)
    (alarm,) = table.values()
    assert (alarm.phase, alarm.since_ns) == (Phase.ACTIVE, 7)
    if not hold:
        assert phase_in(stepped(table, {}, 8)) is (Phase.LATCHED if RULES[condition].latching else Phase.INACTIVE)
        return
    going = stepped(table, {}, 1000)
    assert phase_in(stepped(going, {}, 1000 + hold - 1)) is Phase.ACTIVE
    assert phase_in(stepped(going, {}, 1000 + hold)) in (Phase.LATCHED, Phase.INACTIVE)
    back = stepped(stepped(going, present(condition), 2000), {}, 3000)  # present again: the time starts anew
    assert phase_in(stepped(back, {}, 3000 + hold - 1)) is Phase.ACTIVE


@pytest.mark.parametrize("condition", Condition, ids=lambda c: c.value)
def test_what_is_over_says_no_figure_of_then(condition: Condition) -> None:
    table = stepped(NO_ALARMS, present(condition, "3.2 mm"), 0)
    for alarm in stepped(table, {}, 1).values():
        assert alarm.present.text == "past"


def test_what_nobody_can_judge_goes_without_delay_but_stays_latched() -> None:
    held = stepped(NO_ALARMS, present(Condition.OUTSIDE_CORRIDOR, "3.2 mm beside"), 0)
    assert stepped(held, {}, 1) != {}
    assert stepped(held, {}, 1, OF_GEOMETRY) == {}
    breach = stepped(NO_ALARMS, present(Condition.BREACH), 0)
    assert phase_in(stepped(breach, {}, 1, OF_GEOMETRY)) is Phase.LATCHED
    clock = stepped(NO_ALARMS, present(Condition.CLOCK_JUMP), 0)
    assert phase_in(stepped(clock, {}, 1, OF_GEOMETRY)) is Phase.ACTIVE


def test_a_latched_alarm_that_comes_back_is_a_new_event() -> None:
    table = in_phase(Condition.BREACH, Phase.LATCHED)
    after, (change,) = step_alarms(table, present(Condition.BREACH), 9 * S)
    (alarm,) = after.values()
    assert (alarm.phase, alarm.since_ns, change.what) == (Phase.ACTIVE, 9 * S, "raised")


def test_an_alarm_that_goes_on_keeps_its_start_and_its_acknowledgement() -> None:
    table = acknowledged(stepped(NO_ALARMS, present(Condition.WARNING), 5), "warning:X")
    (alarm,) = stepped(table, present(Condition.WARNING, "nearer"), 6).values()
    assert (alarm.phase, alarm.since_ns, alarm.present.text) == (Phase.ACKNOWLEDGED, 5, "nearer")


def test_contact_after_an_acknowledged_possibility_asks_again_and_trembling_does_not() -> None:
    possible, contact = present(Condition.BREACH), present(Condition.BREACH, "contact", grade=1)
    table = acknowledged(stepped(NO_ALARMS, possible, 1), "breach:X")
    table, (change,) = step_alarms(table, contact, 2)
    assert (phase_in(table), change.what, change.is_new_high) == (Phase.ACTIVE, "worsened", True)
    table = acknowledged(table, "breach:X")
    for step in range(10):
        table, changes = step_alarms(table, contact if step % 2 else possible, 3 + step)
        assert phase_in(table) is Phase.ACKNOWLEDGED
        assert not changes


def test_a_priority_that_grows_asks_again() -> None:
    brief, long = present(Condition.TOOL_LOST, priority=Priority.LOW), present(Condition.TOOL_LOST)
    table = acknowledged(stepped(NO_ALARMS, brief, 0), "tool_lost:X")
    table, (change,) = step_alarms(table, long, 2 * S)
    (alarm,) = table.values()
    assert (alarm.phase, alarm.priority, alarm.since_ns) == (Phase.ACTIVE, Priority.MEDIUM, 0)
    assert (change.what, change.is_new_high) == ("worsened", False)
    table, (change,) = step_alarms(table, brief, 3 * S)
    assert change.what == "eased"
    table, (change,) = step_alarms(acknowledged(table, "tool_lost:X"), long, 4 * S)
    assert (phase_in(table), change.what) == (Phase.ACKNOWLEDGED, "restored")


def test_the_same_table_comes_back_when_nothing_changed() -> None:
    table = stepped(NO_ALARMS, present(Condition.WARNING), 5)
    assert stepped(table, present(Condition.WARNING), 6) is table
    assert stepped(table, present(Condition.WARNING, "nearer"), 6) is not table
    assert stepped(NO_ALARMS, {}, 7) is NO_ALARMS
    held = stepped(stepped(NO_ALARMS, present(Condition.CLOCK_JUMP), 0), {}, 1)
    assert stepped(held, {}, 2) is held


def test_acknowledging_one_leaves_the_others() -> None:
    both = present(Condition.WARNING) | present(Condition.TOOL_LOST)
    table = acknowledged(stepped(NO_ALARMS, both, 0), "warning:X")
    assert {k: a.phase for k, a in table.items()} == {"warning:X": Phase.ACKNOWLEDGED, "tool_lost:X": Phase.ACTIVE}


# -- the pause of sounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("audio", "event"), list(itertools.product(Audio, AudioEvent)), ids=lambda v: v.value)
def test_every_cell_of_the_pause(audio: Audio, event: AudioEvent) -> None:
    assert AUDIO[audio, event].value == AUDIO_BY_HAND[audio.value, event.value]
    until = 0 if audio is Audio.ON else 50 * S
    after = step_audio(until, event, 10 * S, pause_ns=20 * S)
    assert audio_of(after, 10 * S) is AUDIO[audio, event]


@given(st.lists(st.tuples(st.sampled_from(AudioEvent), st.integers(0, 60 * S), st.floats(0.0, AUDIO_PAUSE_MAX_S))))
def test_a_pause_always_ends(history: list[tuple[AudioEvent, int, float]]) -> None:
    until = now = asked = 0
    for event, wait, seconds in history:
        now += wait
        until = step_audio(until, event, now, int(seconds * 1e9))
        if event is AudioEvent.PAUSE:
            asked = now + int(seconds * 1e9)
        assert until <= asked  # nothing prolongs a pause but another command
    assert audio_of(until, now + int(AUDIO_PAUSE_MAX_S * 1e9)) is Audio.ON


# -- over random histories -------------------------------------------------------------------------------------

HELD = st.dictionaries(
    st.sampled_from(Condition), st.tuples(st.sampled_from([None, *Priority]), st.integers(0, 1)), max_size=8
)
STEP = st.tuples(HELD, st.sets(st.sampled_from(Condition)), st.sampled_from([1, S // 4, 3 * S]), st.booleans())


@given(st.lists(STEP, max_size=40))
def test_over_any_history_every_transition_is_told_and_nothing_stays_or_goes_without_a_reason(
    history: list[tuple[dict[Condition, tuple[Priority | None, int]], set[Condition], int, bool]],
) -> None:
    table: AlarmTable = NO_ALARMS
    now = 0
    last_present: dict[Condition, int] = {}
    for holds, acknowledges, wait, judged in history:
        now += wait
        last_present.update(dict.fromkeys(holds, now))
        before = table
        unjudged = frozenset() if judged else OF_GEOMETRY
        said = {k: p for c, (priority, grade) in holds.items() for k, p in present(c, "", priority, grade).items()}
        table, changes = step_alarms(table, said, now, unjudged)
        told = {c.alarm.present.id: c for c in changes}
        assert set(said) <= set(table)
        for key in {*before, *table}:
            was, now_is = before.get(key), table.get(key)
            if (was and was.phase) is not (now_is and now_is.phase):
                assert key in told
            if was is not None and was.phase is Phase.ACKNOWLEDGED and key in said:
                # Acknowledged is left only for something graver than was acknowledged, and that is told.
                assert now_is is not None
                assert (now_is.phase is Phase.ACTIVE) is (said[key].gravity > was.worst)
            if was is not None and was.phase is Phase.ACKNOWLEDGED and now_is is None:
                assert told[key].what == "cleared"
        for key, alarm in table.items():
            assert alarm.phase is not Phase.INACTIVE
            if key in said:
                assert alarm.phase in (Phase.ACTIVE, Phase.ACKNOWLEDGED)
            elif alarm.phase is Phase.LATCHED:
                assert RULES[alarm.present.condition].latching
            else:
                gone_for = now - last_present[alarm.present.condition]
                assert gone_for <= RULES[alarm.present.condition].clear_after_ns + 3 * S
                assert alarm.present.condition not in unjudged
        for condition in acknowledges:
            if f"{condition.value}:X" in table:
                table = acknowledged(table, f"{condition.value}:X")
