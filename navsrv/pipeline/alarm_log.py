"""Owns the words of the log: every transition of an alarm and of the pause of sounds, with limits and values."""

from __future__ import annotations

from navsrv.guidance.alarm_life import Change
from navsrv.pipeline.inputs import Note


def alarm_note(now_ns: int, tool: str, change: Change, by: str | None = None) -> Note:
    """Return the log's entry of one transition; ``by`` says who acknowledged."""
    alarm = change.alarm
    present = alarm.present
    fields = {
        "tool": tool,
        "id": present.id,
        "condition": present.condition.value,
        "priority": alarm.priority.value,
        "phase": "inactive" if change.what == "cleared" else alarm.phase.value,
        "structure": present.subject if present.subject and "distance_mm" in present.measured else None,
        "since_ns": alarm.since_ns,
        **present.measured,
    }
    if by is not None:
        fields["by"] = by
    who = "" if by is None else f" by {by}"
    text = f"{tool}: {alarm.priority.value} alarm {present.id} {change.what}{who}: {present.text}"
    return Note(now_ns, f"alarm_{change.what}", text, fields)


def audio_note(now_ns: int, why: str) -> Note:
    """Return the log's entry of the end of a pause."""
    return Note(now_ns, "audio_resumed", f"alarm sounds may be heard again: {why}", {"why": why})
