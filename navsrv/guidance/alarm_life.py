"""Owns the life of alarms: which ones there are after each step, by ``alarms.TABLE`` and nothing else.

Refuses to wait (time is an argument), to judge what holds, and to forget: every transition comes back as a ``Change``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Final

from navsrv.guidance.alarms import (
    AUDIO,
    RULES,
    TABLE,
    Audio,
    AudioEvent,
    Condition,
    Event,
    Phase,
    Priority,
)

_GRAVITY: Final = {Priority.LOW: 0, Priority.MEDIUM: 10, Priority.HIGH: 20}

Measured = Mapping[str, float | str | None]


@dataclass(frozen=True, slots=True)
class Present:
    """A condition that holds now, for one structure or for the tool as a whole.

    Attributes
    ----------
    priority : Priority or None
        Overrides the rule's priority where the situation says so (a brief loss, a parked tool, a loss close by).
    grade : int
        Graver of two of one priority: contact (1) after contact possible (0).
    past : str or None
        What is said once the condition is gone while the alarm is latched or held: no figure of then may look like
        one of now.
    measured : mapping
        Values and limits, for the log alone.
    """

    condition: Condition
    subject: str | None
    text: str
    priority: Priority | None = None
    grade: int = 0
    past: str | None = None
    measured: Measured = field(default_factory=dict, compare=False)

    @property
    def id(self) -> str:
        """Stable identity: the same condition of the same subject is the same alarm of its tool."""
        return self.condition.value if self.subject is None else f"{self.condition.value}:{self.subject}"

    @property
    def signalled(self) -> Priority:
        """The priority that it signals."""
        return self.priority or RULES[self.condition].priority

    @property
    def gravity(self) -> int:
        """How grave it is: by priority, then by grade."""
        return _GRAVITY[self.signalled] + self.grade


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm that is not inactive.

    ``worst`` is the greatest gravity since it was raised: only what exceeds it undoes an acknowledgement, so that a
    figure that trembles about a limit does not sound again and again.
    """

    present: Present
    phase: Phase
    since_ns: int
    worst: int
    gone_since_ns: int | None = None

    @property
    def priority(self) -> Priority:
        """The priority that it signals now."""
        return self.present.signalled


@dataclass(frozen=True, slots=True)
class Change:
    """One transition: what happened (raised, worsened, eased, latched, cleared, acknowledged) to which alarm."""

    what: str
    alarm: Alarm
    """After the change; of a cleared one as it was."""

    @property
    def is_new_high(self) -> bool:
        """Whether it asks for attention at high priority that nothing asked for before."""
        return self.what in ("raised", "worsened") and self.alarm.priority is Priority.HIGH


AlarmTable = Mapping[str, Alarm]
NO_ALARMS: Final[AlarmTable] = {}
NO_CHANGES: Final[Sequence[Change]] = ()


def step_alarms(
    table: AlarmTable,
    present: Mapping[str, Present],
    now_ns: int,
    unjudged: AbstractSet[Condition] = frozenset(),
) -> tuple[AlarmTable, Sequence[Change]]:
    """Return the alarms after the conditions that hold at ``now_ns`` (by id), and what changed.

    Alarms of ``unjudged`` conditions that are not present go without delay, for what they say may no longer be true;
    latched ones stay latched.  The same table object comes back when nothing changed: a caller can tell cheaply.
    """
    if not table and not present:
        return table, NO_CHANGES
    after: dict[str, Alarm] = {}
    changes: list[Change] = []
    same = True
    for key, alarm in table.items():
        holds = present.get(key)
        moved = _without(alarm, now_ns, unjudged, changes) if holds is None else _with(alarm, holds, now_ns, changes)
        same = same and moved is alarm
        if moved is not None:
            after[key] = moved
    for key, holds in present.items():
        if key not in table:
            phase = TABLE[holds.condition, Phase.INACTIVE, Event.PRESENT].phase
            after[key] = Alarm(holds, phase, now_ns, holds.gravity)
            changes.append(Change("raised", after[key]))
            same = False
    return (table if same else after), changes


def _with(alarm: Alarm, holds: Present, now_ns: int, changes: list[Change]) -> Alarm:
    """Return an alarm whose condition holds."""
    worse = holds.gravity > alarm.worst
    event = Event.WORSENED if worse else Event.PRESENT
    phase = TABLE[holds.condition, alarm.phase, event].phase
    if phase is alarm.phase and not worse and alarm.gone_since_ns is None and holds == alarm.present:
        return alarm
    if alarm.phase is Phase.LATCHED:
        raised = Alarm(holds, phase, now_ns, holds.gravity)
        changes.append(Change("raised", raised))
        return raised
    moved = Alarm(holds, phase, alarm.since_ns, max(alarm.worst, holds.gravity))
    if worse:
        changes.append(Change("worsened", moved))
    elif moved.priority is not alarm.priority:
        eased = _GRAVITY[moved.priority] < _GRAVITY[alarm.priority]
        changes.append(Change("eased" if eased else "restored", moved))
    return moved


def _without(alarm: Alarm, now_ns: int, unjudged: AbstractSet[Condition], changes: list[Change]) -> Alarm | None:
    """Return an alarm whose condition does not hold; None when it is over."""
    condition = alarm.present.condition
    gone_since = alarm.gone_since_ns if alarm.gone_since_ns is not None else now_ns
    hold_ns = 0 if condition in unjudged else RULES[condition].clear_after_ns
    phase = alarm.phase
    if now_ns - gone_since >= hold_ns:
        phase = TABLE[condition, alarm.phase, Event.GONE].phase
    if phase is alarm.phase and alarm.gone_since_ns is not None:
        return alarm
    if phase is Phase.INACTIVE:
        changes.append(Change("cleared", alarm))
        return None
    said = alarm.present if alarm.present.past is None else replace(alarm.present, text=alarm.present.past)
    moved = Alarm(said, phase, alarm.since_ns, alarm.worst, gone_since)
    if phase is not alarm.phase:
        changes.append(Change("latched", moved))
    return moved


def acknowledge(table: AlarmTable, alarm_id: str) -> tuple[AlarmTable, Change]:
    """Return the alarms after the operator acknowledged one, and the change; KeyError if it is not present."""
    alarm = table[alarm_id]
    phase = TABLE[alarm.present.condition, alarm.phase, Event.ACKNOWLEDGE].phase
    after = dict(table)
    if phase is Phase.INACTIVE:
        del after[alarm_id]
        return after, Change("acknowledged", alarm)
    after[alarm_id] = replace(alarm, phase=phase)
    return after, Change("acknowledged", after[alarm_id])


def audio_of(paused_until_ns: int, now_ns: int) -> Audio:
    """Return whether sounds are paused at ``now_ns``."""
    return Audio.PAUSED if now_ns < paused_until_ns else Audio.ON


def step_audio(paused_until_ns: int, event: AudioEvent, now_ns: int, pause_ns: int = 0) -> int:
    """Return until when (ns) sounds are paused after an event, 0 when they are not; ``pause_ns`` with PAUSE alone."""
    before = audio_of(paused_until_ns, now_ns)
    if AUDIO[before, event] is Audio.ON:
        return 0
    return now_ns + pause_ns if event is AudioEvent.PAUSE else paused_until_ns
