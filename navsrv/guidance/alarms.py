"""Owns the alarm table: which conditions there are, what each signals, and how an alarm lives, as data to be printed.

``RULES`` says what each condition is, ``TRANSITIONS`` how any alarm lives, ``SIGNALS`` what is seen and heard, and
``TABLE`` is all of them in one: (condition, phase, event) to (phase, signal), cell by cell.  The ideas are those of
IEC 60601-1-8 (three priorities, latching, acknowledgement, a timed and visible pause of sounds); no claim of conformity
is made.  Refuses to decide what holds (``conditions.py``) and to carry it out (``alarm_life.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import product
from types import MappingProxyType
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
    CLOSING_FAST = "closing_fast"
    UNCERTAIN = "uncertain"
    OUTSIDE_CORRIDOR = "outside_corridor"
    TARGET_REACHED = "target_reached"
    TOOL_LOST = "tool_lost"
    REFERENCE_LOST = "reference_lost"
    REFERENCE_MOVED = "reference_moved"
    SOURCE_STALE = "source_stale"
    LINK_DOWN = "link_down"
    RATE_LOW = "rate_low"
    CLOCK_JUMP = "clock_jump"
    UNREGISTERED = "unregistered"
    REGISTRATION_REJECTED = "registration_rejected"
    REGISTRATION_EXPIRED = "registration_expired"
    REGISTRATION_DRIFTING = "registration_drifting"
    UNVERIFIED = "unverified"
    DEADLINE_MISSED = "deadline_missed"
    RECORDER_FAILING = "recorder_failing"
    DISPLAY_GONE = "display_gone"
    TEMPERATURE = "temperature"
    TEMPERATURE_UNKNOWN = "temperature_unknown"
    FAULT = "fault"


class Scope(Enum):
    """What an alarm is about: a tool's structures, one tool, or the room: one acknowledgement counts for all tools."""

    STRUCTURE = "structure"
    TOOL = "tool"
    ROOM = "room"


@dataclass(frozen=True, slots=True)
class Rule:
    """What one condition is and signals.

    Attributes
    ----------
    clear_after_ns : int
        How long the condition must be gone before the alarm goes.  Raising is never delayed.
    state : str
        The best state of the frame in which the condition can hold: what is lost is never shown as OK.
    when, clears : str
        What raises it, and what must hold before its clearing begins, for the reader of the table.
    action : str
        What the operator can do; a condition without one has no place here.
    escalates : bool
        High while the instrument was within a warning distance when the condition came: see ``conditions.py``.
    """

    priority: Priority
    scope: Scope
    latching: bool
    clear_after_ns: int
    state: str
    when: str
    clears: str
    action: str
    escalates: bool = False


_S: Final = 1_000_000_000
_HIGH, _MEDIUM, _LOW = Priority.HIGH, Priority.MEDIUM, Priority.LOW
_STRUCTURE, _TOOL, _ROOM = Scope.STRUCTURE, Scope.TOOL, Scope.ROOM
_LEVEL_CLEARS: Final = "bound above the limit by hysteresis_mm for clear_after_ms, and not falling"

RULES: Final[Mapping[Condition, Rule]] = MappingProxyType(
    {
        Condition.BREACH: Rule(
            _HIGH,
            _STRUCTURE,
            True,
            0,
            "OK",
            "lower bound of the clearance <= 0 (contact possible), or the distance itself (contact)",
            _LEVEL_CLEARS,
            "Stop. Withdraw along the path, then check with an image.",
        ),
        Condition.WARNING: Rule(
            _MEDIUM,
            _STRUCTURE,
            False,
            0,
            "OK",
            "lower bound < warning_mm",
            _LEVEL_CLEARS,
            "Stop advancing; correct the path or withdraw.",
        ),
        Condition.CAUTION: Rule(
            _LOW,
            _STRUCTURE,
            False,
            0,
            "OK",
            "lower bound < caution_mm",
            _LEVEL_CLEARS,
            "Advance slowly and watch the distance.",
        ),
        Condition.CLOSING_FAST: Rule(
            _MEDIUM,
            _STRUCTURE,
            False,
            _S // 2,
            "OK",
            "within near_mm, closing at closing_mm_s or faster, lower bound reached in contact_s or less",
            "slower than 0.8 of the speed, or later than 1.25 of the time",
            "Slow down.",
        ),
        Condition.UNCERTAIN: Rule(
            _MEDIUM,
            _TOOL,
            False,
            _S // 2,
            "OK",
            "1.645 sigma of the nearest critical structure > margin_mm, while within near_mm",
            "below 0.9 of the limit",
            "Hold still; if it stays, check tool and reference and register again.",
        ),
        Condition.OUTSIDE_CORRIDOR: Rule(
            _LOW,
            _TOOL,
            False,
            _S // 2,
            "OK",
            "tip past the entry and beside the path by more than the plan's corridor, up to corridor_watch_mm",
            "inside the corridor by corridor_hysteresis_mm",
            "Correct the path, or stop following this plan.",
        ),
        Condition.TARGET_REACHED: Rule(
            _LOW,
            _TOOL,
            False,
            _S // 2,
            "OK",
            "inside the corridor, target within target_reached_mm along the path",
            "beyond target_reached_mm by 1 mm",
            "Stop advancing; confirm with an image.",
        ),
        Condition.TOOL_LOST: Rule(
            _MEDIUM,
            _TOOL,
            False,
            0,
            "LOST",
            "the source says so, or no pose for 500 ms (slow sources: 3 periods)",
            "seen again",
            "Clear the camera's view of the tool; do not advance. Park the tool if it is put away.",
            escalates=True,
        ),
        Condition.REFERENCE_LOST: Rule(
            _MEDIUM,
            _ROOM,
            False,
            0,
            "LOST",
            "the source says so, or no pose for 500 ms (slow sources: 3 periods)",
            "seen again",
            "Clear the camera's view of the reference; do not advance.",
            escalates=True,
        ),
        Condition.REFERENCE_MOVED: Rule(
            _MEDIUM,
            _ROOM,
            False,
            0,
            "DEGRADED",
            "reference jumped by more than jump_mm within 50 ms, or by more than gap_mm while it was not seen, or"
            " moved against the witness by more than moved_mm",
            "the registration was confirmed, or another accepted",
            "Stop. Touch a landmark; confirm the registration or register again.",
            escalates=True,
        ),
        Condition.SOURCE_STALE: Rule(
            _MEDIUM,
            _ROOM,
            False,
            _S,
            "STALE",
            "newest pose of tool or reference older than 100 ms (slow sources: 3 periods), or, where frozen_ms is set,"
            " repeated to the last bit for so long",
            "a fresh pose",
            "Do not advance; check the tracker.",
            escalates=True,
        ),
        Condition.LINK_DOWN: Rule(
            _MEDIUM,
            _ROOM,
            False,
            0,
            "LOST",
            "no connection to a pose source",
            "connected and seen again",
            "Check the tracker's power, cable and address; do not advance.",
            escalates=True,
        ),
        Condition.RATE_LOW: Rule(
            _LOW,
            _ROOM,
            False,
            2 * _S,
            "OK",
            "fewer than rate_fraction of the declared poses in 1 s (slow sources: 5 periods)",
            "as many as declared again",
            "Check the tracker's load and number of tools, or declare its true rate.",
        ),
        Condition.CLOCK_JUMP: Rule(
            _MEDIUM,
            _ROOM,
            False,
            5 * _S,
            "OK",
            "a source's clock jumped against ours by more than 500 ms",
            "no further jump",
            "Check the time settings of the tracker's computer.",
        ),
        Condition.UNREGISTERED: Rule(
            _LOW,
            _ROOM,
            False,
            0,
            "UNREGISTERED",
            "no registration was accepted yet",
            "accepted",
            "Register, check the overlay and accept.",
        ),
        Condition.REGISTRATION_REJECTED: Rule(
            _LOW,
            _ROOM,
            False,
            0,
            "UNREGISTERED",
            "the newest registration was rejected by the operator, and none is accepted",
            "another one proposed or accepted",
            "Register again and accept.",
        ),
        Condition.REGISTRATION_EXPIRED: Rule(
            _MEDIUM,
            _ROOM,
            False,
            0,
            "UNREGISTERED",
            "the registration is older than registration.max_age_min, where that is set; or a check disagrees, or the"
            " reference moved against the witness, by more than it may be used with in doubt (2.5 times moved_mm)",
            "confirmed, or another one accepted",
            "Touch a landmark; confirm the registration or register again.",
        ),
        Condition.REGISTRATION_DRIFTING: Rule(
            _LOW,
            _ROOM,
            False,
            2 * _S,
            "OK",
            "reference moved against the witness by more than half of moved_mm (mean of 0.5 s)",
            "below 0.4 of moved_mm",
            "Touch a landmark soon; confirm the registration or register again.",
        ),
        Condition.UNVERIFIED: Rule(
            _MEDIUM,
            _ROOM,
            False,
            0,
            "DEGRADED",
            "an operator or a check put the registration in doubt",
            "confirmed, or another one accepted",
            "Touch a landmark; confirm the registration or register again.",
        ),
        Condition.DEADLINE_MISSED: Rule(
            _LOW,
            _ROOM,
            False,
            2 * _S,
            "OK",
            "deadline_misses frames in 10 s left later than server.deadline_ms after their pose",
            "no further miss",
            "Close other programs on the server's machine.",
        ),
        Condition.RECORDER_FAILING: Rule(
            _MEDIUM,
            _ROOM,
            True,
            5 * _S,
            "OK",
            "records were lost, or the recorder ended",
            "no further loss",
            "Free disk space; note that the recording is not complete. Guidance goes on.",
        ),
        Condition.DISPLAY_GONE: Rule(
            _MEDIUM,
            _ROOM,
            False,
            0,
            "OK",
            "the last browser or OpenIGTLink display left, in navigation, ablation or cement (display_gone = true)",
            "a display is connected",
            "Stop until a display shows guidance again.",
        ),
        Condition.TEMPERATURE: Rule(
            _MEDIUM,
            _ROOM,
            False,
            2 * _S,
            "OK",
            "a probe reads warning_c or more, or cold_warning_c or less; low in priority at caution_c, cold_caution_c",
            "within the limits",
            "Stop heating or cooling; protect what the probe lies at.",
        ),
        Condition.TEMPERATURE_UNKNOWN: Rule(
            _MEDIUM,
            _ROOM,
            False,
            2 * _S,
            "OK",
            "no reading of a probe is believed any more; in ablation and cement, of one that was never read too. Low in"
            " priority in other phases",
            "a reading that is believed",
            "Check the probe and its cable; do not heat or cool without it.",
        ),
        Condition.FAULT: Rule(
            _HIGH,
            _TOOL,
            True,
            0,
            "FAULT",
            "numbers came out that no display may show",
            "numbers are sound again",
            "Stop using navigation; register again or restart the server.",
        ),
    }
)

OF_STRUCTURES: Final = frozenset(c for c, r in RULES.items() if r.scope is Scope.STRUCTURE)
"""Conditions whose subject is a structure of the case."""

OF_GEOMETRY: Final = OF_STRUCTURES | {Condition.UNCERTAIN, Condition.OUTSIDE_CORRIDOR, Condition.TARGET_REACHED}
"""Conditions that nobody can judge while geometry is not valid."""


class Phase(Enum):
    """Where an alarm is in its life."""

    INACTIVE = "inactive"
    ACTIVE = "active"
    LATCHED = "latched"
    ACKNOWLEDGED = "acknowledged"


class Event(Enum):
    """What can happen to an alarm."""

    PRESENT = "present"
    WORSENED = "worsened"
    """Present, and graver than at any time since it was raised: of higher priority, or contact itself."""
    GONE = "gone"
    """Not present for as long as its rule asks."""
    ACKNOWLEDGE = "acknowledge"


TRANSITIONS: Final[Mapping[tuple[Phase, Event], Phase]] = MappingProxyType(
    {
        (Phase.INACTIVE, Event.PRESENT): Phase.ACTIVE,
        (Phase.INACTIVE, Event.WORSENED): Phase.ACTIVE,
        (Phase.INACTIVE, Event.GONE): Phase.INACTIVE,
        (Phase.INACTIVE, Event.ACKNOWLEDGE): Phase.INACTIVE,
        (Phase.ACTIVE, Event.PRESENT): Phase.ACTIVE,
        (Phase.ACTIVE, Event.WORSENED): Phase.ACTIVE,
        (Phase.ACTIVE, Event.GONE): Phase.LATCHED,
        (Phase.ACTIVE, Event.ACKNOWLEDGE): Phase.ACKNOWLEDGED,
        (Phase.LATCHED, Event.PRESENT): Phase.ACTIVE,
        (Phase.LATCHED, Event.WORSENED): Phase.ACTIVE,
        (Phase.LATCHED, Event.GONE): Phase.LATCHED,
        (Phase.LATCHED, Event.ACKNOWLEDGE): Phase.INACTIVE,
        (Phase.ACKNOWLEDGED, Event.PRESENT): Phase.ACKNOWLEDGED,
        (Phase.ACKNOWLEDGED, Event.WORSENED): Phase.ACTIVE,
        (Phase.ACKNOWLEDGED, Event.GONE): Phase.INACTIVE,
        (Phase.ACKNOWLEDGED, Event.ACKNOWLEDGE): Phase.ACKNOWLEDGED,
    }
)
"""How a latching alarm lives; one that does not latch goes to INACTIVE wherever this says LATCHED."""


@dataclass(frozen=True, slots=True)
class Signal:
    """What is seen and heard of an alarm: a colour, how often it flashes (0: steady), and the name of a sound."""

    colour: str
    flash_hz: float
    sound: str | None


NO_SIGNAL: Final = Signal("none", 0.0, None)

FLASH_HZ: Final[Mapping[Priority, float]] = MappingProxyType({_HIGH: 2.0, _MEDIUM: 0.6, _LOW: 0.0})
"""Within the bands that makers' manuals quote of the standard: high 1.4 to 2.8 Hz, medium 0.4 to 0.8 Hz, low steady."""
COLOUR: Final[Mapping[Priority, str]] = MappingProxyType({_HIGH: "red", _MEDIUM: "yellow", _LOW: "cyan"})

SIGNALS: Final[Mapping[tuple[Priority, Phase], Signal]] = MappingProxyType(
    {
        (priority, phase): {
            Phase.INACTIVE: NO_SIGNAL,
            Phase.ACTIVE: Signal(COLOUR[priority], FLASH_HZ[priority], priority.value),
            Phase.LATCHED: Signal(COLOUR[priority], FLASH_HZ[priority], priority.value),
            Phase.ACKNOWLEDGED: Signal(COLOUR[priority], 0.0, None),
        }[phase]
        for priority, phase in product(Priority, Phase)
    }
)
"""One sound for each priority; of several alarms only that of the highest is heard."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Where an event leads, and what is signalled then, at the priority of the rule."""

    phase: Phase
    signal: Signal


def _cell(condition: Condition, phase: Phase, event: Event) -> Cell:
    rule = RULES[condition]
    after = TRANSITIONS[phase, event]
    if after is Phase.LATCHED and not rule.latching:
        after = Phase.INACTIVE
    return Cell(after, SIGNALS[rule.priority, after])


TABLE: Final[Mapping[tuple[Condition, Phase, Event], Cell]] = MappingProxyType(
    {cell: _cell(*cell) for cell in product(Condition, Phase, Event)}
)


class Audio(Enum):
    """Whether alarm sounds may be heard in the room; a pause is always for a time."""

    ON = "on"
    PAUSED = "paused"


class AudioEvent(Enum):
    """What can happen to a pause of sounds."""

    PAUSE = "pause"
    RESUME = "resume"
    ELAPSED = "elapsed"
    NEW_HIGH = "new_high"
    """An alarm of high priority was raised, or grew to it: the pause was for those that were there."""


AUDIO: Final[Mapping[tuple[Audio, AudioEvent], Audio]] = MappingProxyType(
    {
        (Audio.ON, AudioEvent.PAUSE): Audio.PAUSED,
        (Audio.ON, AudioEvent.RESUME): Audio.ON,
        (Audio.ON, AudioEvent.ELAPSED): Audio.ON,
        (Audio.ON, AudioEvent.NEW_HIGH): Audio.ON,
        (Audio.PAUSED, AudioEvent.PAUSE): Audio.PAUSED,
        (Audio.PAUSED, AudioEvent.RESUME): Audio.ON,
        (Audio.PAUSED, AudioEvent.ELAPSED): Audio.ON,
        (Audio.PAUSED, AudioEvent.NEW_HIGH): Audio.ON,
    }
)
AUDIO_PAUSE_MAX_S: Final = 120.0
"""Longest pause of alarm sounds by one command."""
