import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from navsrv.guidance.alarms import (
    OF_GEOMETRY,
    OF_STRUCTURES,
    PARKABLE,
    RULES,
    TRANSITIONS,
    Alarm,
    AlarmTable,
    Condition,
    Event,
    Phase,
    Present,
    Priority,
    acknowledge,
    next_phase,
    step_alarms,
)

S = 1_000_000_000
CELLS = list(itertools.product(Phase, Event, Condition))

# The life of an alarm, written down a second time and by hand: what a reader of IEC 60601-1-8's ideas expects.
EXPECTED = {
    "latching": {
        ("inactive", "present"): "active",
        ("inactive", "gone"): "inactive",
        ("inactive", "acknowledge"): "inactive",
        ("active", "present"): "active",
        ("active", "gone"): "latched",
        ("active", "acknowledge"): "acknowledged",
        ("latched", "present"): "active",
        ("latched", "gone"): "latched",
        ("latched", "acknowledge"): "inactive",
        ("acknowledged", "present"): "acknowledged",
        ("acknowledged", "gone"): "inactive",
        ("acknowledged", "acknowledge"): "acknowledged",
    },
    "not latching": {("active", "gone"): "inactive"},
}


def present(condition: Condition, text: str = "text", priority: Priority | None = None) -> dict[str, Present]:
    one = Present(condition, "X", text, priority)
    return {one.id: one}


def in_phase(condition: Condition, phase: Phase) -> AlarmTable:
    """Return a table with one alarm brought to a phase by events alone; empty for inactive."""
    table: AlarmTable = {}
    if phase is Phase.INACTIVE:
        return table
    table = step_alarms(table, present(condition), 100)
    if phase is Phase.ACKNOWLEDGED:
        table = acknowledge(table, f"{condition.value}:X")
    if phase is Phase.LATCHED:
        table = step_alarms(table, {}, 200)
        table = step_alarms(table, {}, 200 + RULES[condition].clear_after_ns)
    return table


def phase_in(table: AlarmTable) -> Phase:
    return next((alarm.phase for alarm in table.values()), Phase.INACTIVE)


def test_the_tables_are_complete() -> None:
    assert set(RULES) == set(Condition)
    assert set(TRANSITIONS) == set(itertools.product(Phase, Event))
    assert OF_STRUCTURES < OF_GEOMETRY < set(Condition)
    assert not PARKABLE & OF_GEOMETRY


def test_what_each_condition_signals() -> None:
    high = {c for c, r in RULES.items() if r.priority is Priority.HIGH}
    assert high == {Condition.BREACH, Condition.FAULT}
    assert all(RULES[c].latching for c in high)  # nobody may miss one that came and went
    assert {c for c, r in RULES.items() if r.latching} == high | {Condition.RECORDER_FAILING}
    assert RULES[Condition.WARNING].priority is Priority.MEDIUM
    assert RULES[Condition.CAUTION].priority is Priority.LOW
    assert all(r.clear_after_ns >= 0 for r in RULES.values())


@pytest.mark.parametrize(("phase", "event", "condition"), CELLS, ids=lambda v: v.value)
def test_every_cell_by_its_table(phase: Phase, event: Event, condition: Condition) -> None:
    rule = RULES[condition]
    cell = (phase.value, event.value)
    by_hand = (
        EXPECTED["latching"][cell] if rule.latching else EXPECTED["not latching"].get(cell, EXPECTED["latching"][cell])
    )
    if phase is Phase.LATCHED and not rule.latching:
        by_hand = {"present": "active", "gone": "inactive", "acknowledge": "inactive"}[event.value]
    assert next_phase(phase, event, rule.latching).value == by_hand


@pytest.mark.parametrize(("phase", "event", "condition"), CELLS, ids=lambda v: v.value)
def test_every_cell_as_the_alarm_lives_it(phase: Phase, event: Event, condition: Condition) -> None:
    rule = RULES[condition]
    if phase is Phase.LATCHED and not rule.latching:
        assert in_phase(condition, phase) == {}
        return
    table = in_phase(condition, phase)
    assert phase_in(table) is phase
    expected = EXPECTED["latching"][phase.value, event.value]
    if not rule.latching:
        expected = EXPECTED["not latching"].get((phase.value, event.value), expected)
    later = 100 * S
    match event:
        case Event.PRESENT:
            after = step_alarms(table, present(condition, "new"), later)
            assert all(alarm.present.text == "new" for alarm in after.values())
        case Event.GONE:
            after = step_alarms(step_alarms(table, {}, later), {}, later + rule.clear_after_ns)
        case Event.ACKNOWLEDGE:
            if phase is Phase.INACTIVE:
                with pytest.raises(KeyError):
                    acknowledge(table, f"{condition.value}:X")
                return
            after = acknowledge(table, f"{condition.value}:X")
    assert phase_in(after).value == expected


@pytest.mark.parametrize("condition", Condition, ids=lambda c: c.value)
def test_raising_is_immediate_and_the_minimum_duration_delays_only_the_clearing(condition: Condition) -> None:
    hold = RULES[condition].clear_after_ns
    table = step_alarms({}, present(condition), 7)
    (alarm,) = table.values()
    assert (alarm.phase, alarm.since_ns) == (Phase.ACTIVE, 7)
    if not hold:
        assert phase_in(step_alarms(table, {}, 8)) is (Phase.LATCHED if RULES[condition].latching else Phase.INACTIVE)
        return
    going = step_alarms(table, {}, 1000)
    assert phase_in(step_alarms(going, {}, 1000 + hold - 1)) is Phase.ACTIVE
    assert phase_in(step_alarms(going, {}, 1000 + hold)) in (Phase.LATCHED, Phase.INACTIVE)
    back = step_alarms(step_alarms(going, present(condition), 2000), {}, 3000)  # present again: the time starts anew
    assert phase_in(step_alarms(back, {}, 3000 + hold - 1)) is Phase.ACTIVE


def test_what_nobody_can_judge_goes_without_delay_but_stays_latched() -> None:
    held = step_alarms({}, present(Condition.OUTSIDE_CORRIDOR, "3.2 mm beside"), 0)
    assert step_alarms(held, {}, 1) != {}
    assert step_alarms(held, {}, 1, OF_GEOMETRY) == {}
    breach = step_alarms({}, present(Condition.BREACH), 0)
    assert phase_in(step_alarms(breach, {}, 1, OF_GEOMETRY)) is Phase.LATCHED
    clock = step_alarms({}, present(Condition.CLOCK_JUMP), 0)
    assert phase_in(step_alarms(clock, {}, 1, OF_GEOMETRY)) is Phase.ACTIVE


def test_a_latched_alarm_that_comes_back_is_a_new_event() -> None:
    table = in_phase(Condition.BREACH, Phase.LATCHED)
    (alarm,) = step_alarms(table, present(Condition.BREACH), 9 * S).values()
    assert (alarm.phase, alarm.since_ns) == (Phase.ACTIVE, 9 * S)


def test_an_alarm_that_goes_on_keeps_its_start_and_its_acknowledgement() -> None:
    table = acknowledge(step_alarms({}, present(Condition.WARNING), 5), "warning:X")
    (alarm,) = step_alarms(table, present(Condition.WARNING, "nearer"), 6).values()
    assert (alarm.phase, alarm.since_ns, alarm.present.text) == (Phase.ACKNOWLEDGED, 5, "nearer")


def test_the_same_table_comes_back_when_nothing_changed() -> None:
    table = step_alarms({}, present(Condition.WARNING), 5)
    assert step_alarms(table, present(Condition.WARNING), 6) is table
    assert step_alarms(table, present(Condition.WARNING, "nearer"), 6) is not table
    empty: AlarmTable = {}
    assert step_alarms(empty, {}, 7) is empty


def test_a_situation_may_lower_the_priority() -> None:
    (alarm,) = step_alarms({}, present(Condition.TOOL_LOST, priority=Priority.LOW), 0).values()
    assert alarm.priority is Priority.LOW
    (alarm,) = step_alarms({"tool_lost:X": alarm}, present(Condition.TOOL_LOST), 2 * S).values()
    assert (alarm.priority, alarm.since_ns) == (Priority.MEDIUM, 0)


def test_acknowledging_one_leaves_the_others() -> None:
    both = present(Condition.WARNING) | present(Condition.TOOL_LOST)
    table = acknowledge(step_alarms({}, both, 0), "warning:X")
    assert {k: a.phase for k, a in table.items()} == {"warning:X": Phase.ACKNOWLEDGED, "tool_lost:X": Phase.ACTIVE}


STEP = st.tuples(
    st.sets(st.sampled_from(Condition)), st.sets(st.sampled_from(Condition)), st.sampled_from([1, S // 4, 3 * S])
)


@given(st.lists(STEP, max_size=40))
def test_over_any_history_present_is_shown_and_nothing_stays_without_a_reason(
    history: list[tuple[set[Condition], set[Condition], int]],
) -> None:
    table: AlarmTable = {}
    now = 0
    last_present: dict[Condition, int] = {}
    for holds, acknowledged, wait in history:
        now += wait
        last_present.update(dict.fromkeys(holds, now))
        table = step_alarms(table, {k: p for c in holds for k, p in present(c).items()}, now)
        shown = {alarm.present.condition: alarm for alarm in table.values()}
        assert holds <= set(shown)
        for condition, alarm in shown.items():
            _check(condition, alarm, condition in holds, now - last_present[condition])
        for condition in acknowledged & set(shown):
            table = acknowledge(table, f"{condition.value}:X")


def _check(condition: Condition, alarm: Alarm, holds: bool, gone_ns: int) -> None:
    rule = RULES[condition]
    assert alarm.phase is not Phase.INACTIVE
    if holds:
        assert alarm.phase in (Phase.ACTIVE, Phase.ACKNOWLEDGED)
    elif alarm.phase is Phase.LATCHED:
        assert rule.latching
    else:
        assert rule.clear_after_ns > 0  # held: it goes as soon as it was seen gone for that long
        assert alarm.gone_since_ns is not None
