"""Owns the printed form of the alarm table: a page for people, cells for programs, both made of the tables alone."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from navsrv.guidance.alarms import (
    AUDIO,
    AUDIO_PAUSE_MAX_S,
    OF_GEOMETRY,
    RULES,
    SIGNALS,
    TABLE,
    TRANSITIONS,
    Audio,
    AudioEvent,
    Event,
    Phase,
    Priority,
    Rule,
)
from navsrv.guidance.conditions import LIMIT_SOURCES, SiteLimits
from navsrv.guidance.levels import Limits

MADE_BY: Final = "navsrv alarms > docs/alarms.md"

_HEAD: Final = f"""# Alarms

Made by `{MADE_BY}` from the tables that the server runs (`navsrv/guidance/alarms.py`, `conditions.py`,
`levels.py`); a test says when it is out of date. `navsrv alarms --json` prints every cell (condition, phase, event)
of the table.

The ideas are those of IEC 60601-1-8: three priorities, latching, acknowledgement, a timed and visible pause of
sounds. No claim of conformity is made: a browser cannot promise how loud or how bright it is. **Every limit is a
default, to be confirmed at each site.** Levels are judged on the one-sided 95 % lower bound of a clearance, for the
instrument's surface.
"""

_DELAYS: Final = """## Delays

- **Raising is never delayed.** The frame of the pose that crosses a limit carries the alarm; nothing on this path
  is smoothed. How long that frame takes from the pose to a display is measured in `latency.md`. The browser display
  looks at least every 50 ms; its sound begins with the same look.
- **Minimum durations delay only the clearing**, and while an alarm is held by one its text says that it is over.
- What a source calls lost is lost at once. A source that falls silent is stale after 100 ms or 3 periods and lost
  after 500 ms, whichever is longer; a link that closes is told at once, a half-open one within about a second.
- A loss stays **low for its first second** (`brief_loss_ms`), then has the priority of its rule; where frames come
  only from timers, every 100 ms, that is 1.0 to 1.1 s.
- Rates are judged over 1 s. Expiry is judged with every frame. A display that leaves is told within 100 ms; one
  whose page hangs counts as gone after 3 s. A display that hears nothing for 300 ms says FAULT by itself.

## Priorities that depend on the situation

- Rules marked *escalates* become **high when the instrument was within a warning distance, or nearer, as it began**
  (for losses: after the first second). It stays so until it ends: whoever is blind there must act at once.
- The loss of a tool that is **parked** or was last seen farther than `away_mm` from every structure stays low, and
  so does every loss while no registration is in use. A parked tool raises nothing high; if it comes within a
  warning distance or closes fast, it counts as in use again, which is logged.
- Contact after *contact possible*, and a priority that grew, undo an acknowledgement; figures that tremble do not.

## What is inactive is seen

- An **acknowledgement** ends flash and sound of one alarm. With several tools, `acknowledge_alarm` of an alarm that
  more than one of them shows needs `tool`; what all share (scope *room*) is acknowledged once.
- A **pause of sounds** is for the whole room and for a time; every frame says how long it lasts still. It ends by
  itself, by command, and when an alarm of high priority is raised that was not there.
- An **exception** (`except_structure`) takes one structure that the plan crosses on purpose out of one tool's
  alarms; its rows keep their numbers, every frame and the display list it. Refused where the planned path stays
  beyond the structure's caution distance, for then it is a mistaken name. It ends by command, with the phase, and
  with every change of the registration (accepted, confirmed, in doubt, rejected, expired). It hides nothing of any
  other structure.

## What is noticed of a reference that moved, and what is not

- Noticed from the reference alone: a jump of more than `jump_mm` within 50 ms (faster than 100 mm/s at the
  default), and a new place more than `gap_mm` away after it was not seen for 250 ms or longer. Table, patient or
  camera moved that fast look the same: the registration is then *unverified*, geometry goes on as DEGRADED, and the
  operator confirms it.
- Noticed only against a **witness** (`role = "witness"`, a second body on patient or table): a slow slip. Judged at
  the planned target as the mean of 0.5 s since the registration was accepted or confirmed; half of `moved_mm` is
  told as drifting, `moved_mm` puts the registration in doubt. A witness on the skin breathes: widen `moved_mm` for
  it.
- Not noticed: a slow slip without a witness; a jump within a change of connection, which may be another camera;
  anything while the registration is a benchmark's preset.

## The log

Every transition is a note in the recording (it survives the end of the server; it does not survive the loss of
power for what was not yet written): `alarm_raised`, `alarm_worsened`, `alarm_eased`, `alarm_restored`,
`alarm_latched`, `alarm_cleared`, `alarm_acknowledged`, each with tool, id, condition, priority, phase, structure,
since, and the values and limits it was judged on (for structures part, distance, sigma, lower bound, threshold).
`audio_resumed`, `exception_begun`, `exception_ended`, `parking_ended`, `registration_unverified`,
`registration_expired` and every command with its role stand beside them.
"""


def alarm_page() -> str:
    """Return the alarm table as a page of Markdown."""
    return "\n".join([_HEAD, _conditions(), _life(), _signals(), _limits(), _DELAYS])


def alarm_cells() -> dict[str, Any]:
    """Return every rule, and every cell (condition, phase, event) with where it leads and what it signals."""
    return {
        "rules": {c.value: _rule(rule) for c, rule in RULES.items()},
        "cells": [
            {
                "condition": c.value,
                "phase": phase.value,
                "event": event.value,
                "after": cell.phase.value,
                "colour": cell.signal.colour,
                "flash_hz": cell.signal.flash_hz,
                "sound": cell.signal.sound,
            }
            for (c, phase, event), cell in TABLE.items()
        ],
        "limits": {field.name: getattr(limits, field.name) for limits in _DEFAULTS for field in fields(limits)},
    }


_DEFAULTS: Final[tuple[Limits, SiteLimits]] = (Limits(), SiteLimits())


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "priority": rule.priority.value,
        "scope": rule.scope.value,
        "latching": rule.latching,
        "escalates": rule.escalates,
        "raise_delay_ms": 0.0,
        "clear_after_ms": rule.clear_after_ns / 1e6,
        "best_state": rule.state,
        "raised_when": rule.when,
        "clears_when": rule.clears,
        "action": rule.action,
    }


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _conditions() -> str:
    rows: list[tuple[str, ...]] = []
    for condition, rule in RULES.items():
        marks = [rule.scope.value]
        marks += ["latches"] if rule.latching else []
        marks += ["escalates"] if rule.escalates else []
        marks += ["only while geometry is valid"] if condition in OF_GEOMETRY else []
        marks += [f"state {rule.state} or worse"] if rule.state != "OK" else []
        held = f"{rule.clear_after_ns / 1e9:g} s" if rule.clear_after_ns else "–"
        rows.append(
            (
                f"`{condition.value}`",
                rule.priority.value,
                rule.when,
                rule.clears,
                held,
                "; ".join(marks),
                rule.action,
            )
        )
    head = ("condition", "priority", "raised when", "clearing begins when", "held for", "nature", "what to do")
    return "## Conditions\n\n" + _table(head, rows)


def _life() -> str:
    rows: list[tuple[str, ...]] = []
    for phase in Phase:
        cells = [phase.value]
        for event in Event:
            after = TRANSITIONS[phase, event]
            cells.append("latched, or inactive if it does not latch" if after is Phase.LATCHED else after.value)
        rows.append(tuple(cells))
    return "## How an alarm lives\n\n" + _table(("phase \\ event", *(e.value for e in Event)), rows)


def _signals() -> str:
    rows: list[tuple[str, ...]] = [
        (
            priority.value,
            phase.value,
            signal.colour,
            f"{signal.flash_hz:g} Hz" if signal.flash_hz else "steady",
            signal.sound or "none",
        )
        for (priority, phase), signal in SIGNALS.items()
        if phase is not Phase.INACTIVE
    ]
    audio: list[tuple[str, ...]] = [(a.value, *(AUDIO[a, e].value for e in AudioEvent)) for a in Audio]
    return (
        "## What is seen and heard\n\n"
        + _table(("priority", "phase", "colour", "flashes", "sound"), rows)
        + f"\nOne sound at a time, of {len(Priority)} in all: that of the highest priority that is not acknowledged."
        + f" A pause lasts at most {AUDIO_PAUSE_MAX_S:g} s:\n\n"
        + _table(("sounds \\ event", *(e.value.replace("_", " ") for e in AudioEvent)), audio)
    )


def _limits() -> str:
    structures, site = _DEFAULTS
    rows = [*_limit_rows("[alarms.limits], [alarms.structures.NAME]", structures), *_limit_rows("[alarms.site]", site)]
    return "## Limits and where they come from\n\n" + _table(("limit", "default", "set in", "source"), rows)


def _limit_rows(table: str, limits: Limits | SiteLimits) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for field in fields(limits):
        name, value = field.name, getattr(limits, field.name)
        key, shown = (name[:-3] + "_ms", value / 1e6) if name.endswith("_ns") else (name, value)
        where = "fixed" if name == "breach_mm" else f"`{table}`"
        text = str(shown).lower() if isinstance(shown, bool) else f"{shown:g}"
        rows.append((f"`{key}`", text, where, LIMIT_SOURCES[name]))
    return rows
