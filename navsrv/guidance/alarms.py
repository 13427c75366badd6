"""Owns alarms: which conditions there are, what each signals, and how one lives.

Two tables, both printable and tested cell by cell: ``RULES`` (condition to priority, latching, delay of clearing)
and ``TRANSITIONS`` ((phase, event) to phase).  The ideas are those of IEC 60601-1-8: three priorities, latching,
acknowledgement; no claim of conformity is made.  Refuses to wait: time is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final


class Priority(Enum):
    """High: act at once (red).  Medium: act soon (yellow).  Low: be aware (cyan)."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Condition(Enum):
    """What can be wrong, or worth saying."""

    BREACH = "breach"
    WARNING = "warning"
    CAUTION = "caution"
    TOOL_LOST = "tool_lost"
    REFERENCE_LOST = "reference_lost"
    SOURCE_STALE = "source_stale"
    LINK_DOWN = "link_down"
    UNREGISTERED = "unregistered"
    UNVERIFIED = "unverified"
    CLOCK_JUMP = "clock_jump"
    DEADLINE_MISSED = "deadline_missed"
    RECORDER_FAILING = "recorder_failing"
    OUTSIDE_CORRIDOR = "outside_corridor"
    TARGET_REACHED = "target_reached"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Rule:
    """What one condition signals."""

    priority: Priority
    latching: bool
    clear_after_ns: int
    """How long the condition must be gone before the alarm goes: delays only the clearing."""


_S: Final = 1_000_000_000

RULES: Final[Mapping[Condition, Rule]] = {
    Condition.BREACH: Rule(Priority.HIGH, True, 0),
    Condition.WARNING: Rule(Priority.MEDIUM, False, 0),
    Condition.CAUTION: Rule(Priority.LOW, False, 0),
    Condition.TOOL_LOST: Rule(Priority.MEDIUM, False, 0),
    Condition.REFERENCE_LOST: Rule(Priority.MEDIUM, False, 0),
    Condition.SOURCE_STALE: Rule(Priority.MEDIUM, False, 0),
    Condition.LINK_DOWN: Rule(Priority.MEDIUM, False, 0),
    Condition.UNREGISTERED: Rule(Priority.LOW, False, 0),
    Condition.UNVERIFIED: Rule(Priority.MEDIUM, False, 0),
    Condition.CLOCK_JUMP: Rule(Priority.MEDIUM, False, 5 * _S),
    Condition.DEADLINE_MISSED: Rule(Priority.LOW, False, 2 * _S),
    Condition.RECORDER_FAILING: Rule(Priority.MEDIUM, True, 0),
    Condition.OUTSIDE_CORRIDOR: Rule(Priority.LOW, False, _S // 2),
    Condition.TARGET_REACHED: Rule(Priority.LOW, False, _S // 2),
    Condition.FAULT: Rule(Priority.HIGH, True, 0),
}

BRIEF_LOSS_NS: Final = _S
"""A loss of line of sight shorter than this stays low in priority: nobody can act on a blip."""

OF_STRUCTURES: Final = frozenset((Condition.BREACH, Condition.WARNING, Condition.CAUTION))
"""Conditions whose subject is a structure of the case."""

OF_GEOMETRY: Final = OF_STRUCTURES | {Condition.OUTSIDE_CORRIDOR, Condition.TARGET_REACHED}
"""Conditions that nobody can judge while geometry is not valid."""

PARKABLE: Final = frozenset((Condition.TOOL_LOST, Condition.SOURCE_STALE))
"""Conditions that stay low in priority while their tool is parked on purpose."""


class Phase(Enum):
    """Where an alarm is in its life."""

    INACTIVE = "inactive"
    ACTIVE = "active"
    LATCHED = "latched"
    ACKNOWLEDGED = "acknowledged"


class Event(Enum):
    """What can happen to an alarm."""

    PRESENT = "present"
    GONE = "gone"
    ACKNOWLEDGE = "acknowledge"


TRANSITIONS: Final[Mapping[tuple[Phase, Event], Phase]] = {
    (Phase.INACTIVE, Event.PRESENT): Phase.ACTIVE,
    (Phase.INACTIVE, Event.GONE): Phase.INACTIVE,
    (Phase.INACTIVE, Event.ACKNOWLEDGE): Phase.INACTIVE,
    (Phase.ACTIVE, Event.PRESENT): Phase.ACTIVE,
    (Phase.ACTIVE, Event.GONE): Phase.LATCHED,
    (Phase.ACTIVE, Event.ACKNOWLEDGE): Phase.ACKNOWLEDGED,
    (Phase.LATCHED, Event.PRESENT): Phase.ACTIVE,
    (Phase.LATCHED, Event.GONE): Phase.LATCHED,
    (Phase.LATCHED, Event.ACKNOWLEDGE): Phase.INACTIVE,
    (Phase.ACKNOWLEDGED, Event.PRESENT): Phase.ACKNOWLEDGED,
    (Phase.ACKNOWLEDGED, Event.GONE): Phase.INACTIVE,
    (Phase.ACKNOWLEDGED, Event.ACKNOWLEDGE): Phase.ACKNOWLEDGED,
}


def next_phase(phase: Phase, event: Event, latching: bool) -> Phase:
    """Return the phase after an event, by ``TRANSITIONS``; a gone alarm latches only if its rule says so."""
    after = TRANSITIONS[phase, event]
    return Phase.INACTIVE if after is Phase.LATCHED and not latching else after


@dataclass(frozen=True, slots=True)
class Present:
    """A condition that holds now, for one structure or for the tool as a whole."""

    condition: Condition
    subject: str | None
    text: str
    priority: Priority | None = None
    """Overrides the rule's priority where the situation says so (a brief loss, a parked tool)."""
    past: str | None = None
    """What a latched alarm says once the condition is gone: no figure of then may look like one of now."""

    @property
    def id(self) -> str:
        """Stable identity: the same condition of the same subject is the same alarm."""
        return self.condition.value if self.subject is None else f"{self.condition.value}:{self.subject}"


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm that is not inactive."""

    present: Present
    phase: Phase
    since_ns: int
    gone_since_ns: int | None = None

    @property
    def priority(self) -> Priority:
        """The priority that it signals now."""
        return self.present.priority or RULES[self.present.condition].priority


AlarmTable = Mapping[str, Alarm]


def step_alarms(
    table: AlarmTable,
    present: Mapping[str, Present],
    now_ns: int,
    unjudged: AbstractSet[Condition] = frozenset(),
) -> AlarmTable:
    """Return the alarms after the conditions that hold at ``now_ns`` (by id); nothing else decides.

    Alarms of ``unjudged`` conditions that are not present go without delay, for what they say may no longer be true;
    latched ones stay latched.  The same table object comes back when nothing changed: a caller can tell cheaply.
    """
    if not table and not present:
        return table
    after: dict[str, Alarm] = {}
    for key, alarm in table.items():
        moved = _move(alarm, present.get(key), now_ns, unjudged)
        if moved is not None:
            after[key] = moved
    for key, condition in present.items():
        if key not in table:
            after[key] = Alarm(condition, TRANSITIONS[Phase.INACTIVE, Event.PRESENT], now_ns)
    return table if after == table else after


def _move(alarm: Alarm, present: Present | None, now_ns: int, unjudged: AbstractSet[Condition]) -> Alarm | None:
    rule = RULES[alarm.present.condition]
    if present is not None:
        phase = next_phase(alarm.phase, Event.PRESENT, rule.latching)
        since = now_ns if alarm.phase is Phase.LATCHED else alarm.since_ns
        return Alarm(present, phase, since)
    gone_since = alarm.gone_since_ns if alarm.gone_since_ns is not None else now_ns
    hold_ns = 0 if alarm.present.condition in unjudged else rule.clear_after_ns
    if now_ns - gone_since < hold_ns:
        return Alarm(alarm.present, alarm.phase, alarm.since_ns, gone_since)
    phase = next_phase(alarm.phase, Event.GONE, rule.latching)
    if phase is Phase.INACTIVE:
        return None
    said = alarm.present
    if phase is Phase.LATCHED and said.past is not None:
        said = replace(said, text=said.past)
    return Alarm(said, phase, alarm.since_ns, gone_since)


def acknowledge(table: AlarmTable, alarm_id: str) -> AlarmTable:
    """Return the alarms after the operator acknowledged one; KeyError if it is not present."""
    alarm = table[alarm_id]
    rule = RULES[alarm.present.condition]
    phase = next_phase(alarm.phase, Event.ACKNOWLEDGE, rule.latching)
    after = dict(table)
    if phase is Phase.INACTIVE:
        del after[alarm_id]
    else:
        after[alarm_id] = Alarm(alarm.present, phase, alarm.since_ns, alarm.gone_since_ns)
    return after
