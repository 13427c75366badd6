"""Owns the states of a session with an NDI tracker as a table that can be printed.

``devices.ndi`` fills the rows with commands; refuses bytes and time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class State(Enum):
    """Where a session is."""

    IDLE = "idle"
    INITIALISING = "initialising"
    RESETTING = "resetting"
    SETTING_LINE = "setting the line"
    FREEING = "freeing handles"
    LOADING = "loading tools"
    PREPARING = "preparing tools"
    ENABLING = "enabling tools"
    STARTING = "starting"
    TRACKING = "tracking"
    PAUSING = "pausing"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table: what is sent in a state, and where it goes when all of that was answered."""

    sends: str
    then: State | None
    otherwise: str = "error: FAILED"


STATES: Final = {
    State.IDLE: Rule("nothing", State.INITIALISING, ""),
    State.INITIALISING: Rule("INIT:", State.SETTING_LINE, "silence on a serial line: RESETTING, once"),
    State.RESETTING: Rule("a break, for RESETBE6F", State.INITIALISING),
    State.SETTING_LINE: Rule("COMM:b0000, on a serial line with another rate than 9600", State.FREEING),
    State.FREEING: Rule("PHSR:01 (00 without wired tools), PHF for each", State.LOADING, "handle gone: goes on"),
    State.LOADING: Rule("for each .rom PHRQ, 16 x PVWR", State.PREPARING),
    State.PREPARING: Rule("PHSR:02, PINIT for each (again while new ones come)", State.ENABLING, "wired: left out"),
    State.ENABLING: Rule("PHSR:03, PHINF for wired ones, PENA for each wanted", State.STARTING),
    State.STARTING: Rule("TSTART:", State.TRACKING),
    State.TRACKING: Rule("BX or TX, at the poll rate", None, "not initialised: INITIALISING; tool plugged: PAUSING"),
    State.PAUSING: Rule("TSTOP:, PHSR:01, PHF for each", State.PREPARING),
    State.STOPPING: Rule("TSTOP:", State.STOPPED),
    State.STOPPED: Rule("nothing", None, ""),
    State.FAILED: Rule("nothing", None, ""),
}


def state_table() -> str:
    """Return the table of states as lines of text."""
    rows = [("state", "sends", "then", "otherwise")]
    rows += [(s.value, r.sends, r.then.value if r.then else "-", r.otherwise or "-") for s, r in STATES.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
