"""Owns the list of commands: what each does, what it needs, and its JSON Schema.

One table serves the command port, the WebSocket, the check of arguments and the listing for programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

LARGEST: Final = 1e6
"""No number of a command is larger: points are millimetres, pauses seconds.  NaN fails the comparison."""

_SCHEMA: Final[Mapping[str, dict[str, Any]]] = {
    "text": {"type": "string"},
    "flag": {"type": "boolean"},
    "point": {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3},
    "number": {"type": "number"},
}


class Refused(Exception):
    """A command that cannot be carried out, with the reason for the one who sent it."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One command: what it does, its arguments (name to kind), who carries it out, arguments that may be left out."""

    does: str
    args: Mapping[str, str]
    by: str
    optional: Mapping[str, str] = field(default_factory=dict)

    def fault(self, args: object) -> str | None:
        """Return what is wrong with the arguments, in one line, or None."""
        if not isinstance(args, dict):
            return "args: expected a map"
        known = {**self.args, **self.optional}
        for name in args:
            if name not in known:
                return f"args.{name}: unknown; expected {', '.join(known) or 'none'}"
        for name, kind in self.args.items():
            if name not in args:
                return f"args.{name}: missing; expected a {kind}"
        for name, value in args.items():
            if not _fits(known[name], value):
                return f"args.{name}: {value!r}; expected a {known[name]}"
        return None

    def schema(self, name: str) -> dict[str, Any]:
        """Return the JSON Schema of the whole request."""
        return {
            "type": "object",
            "description": self.does,
            "properties": {
                "id": {"type": ["string", "integer"]},
                "op": {"const": name},
                "args": {
                    "type": "object",
                    "properties": {arg: _SCHEMA[kind] for arg, kind in (*self.args.items(), *self.optional.items())},
                    "required": list(self.args),
                    "additionalProperties": False,
                },
                "token": {"type": "string"},
            },
            "required": ["id", "op", "args"] if self.args else ["id", "op"],
        }


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def _fits(kind: str, value: object) -> bool:
    if kind == "text":
        return isinstance(value, str)
    if kind == "flag":
        return isinstance(value, bool)
    if kind == "number":
        return _is_number(value)
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(map(_is_number, value))


OPERATIONS: Final[Mapping[str, Operation]] = {
    "list_operations": Operation("Return this list as JSON Schemas.", {}, "session"),
    "acknowledge_alarm": Operation(
        "Acknowledge one alarm by its id; of the tool that is named, which must be said where several tools show it.",
        {"id": "text"},
        "loop",
        {"tool": "text"},
    ),
    "except_structure": Operation(
        "Except a critical structure that the plan crosses on purpose from a tool's alarms, with a reason, or watch it"
        " again. It ends by itself with the phase and with every change of the registration.",
        {"structure": "text", "reason": "text", "on": "flag"},
        "loop",
        {"tool": "text"},
    ),
    "accept_registration": Operation("Use the proposed registration from now on.", {"id": "text"}, "loop"),
    "reject_registration": Operation("Drop a proposed registration, or stop using it.", {"id": "text"}, "loop"),
    "doubt_registration": Operation(
        "Put the registration in use in doubt: geometry goes on, DEGRADED, until it is confirmed.",
        {"id": "text", "reason": "text"},
        "loop",
    ),
    "check_landmark": Operation(
        "Compare where a tool's tip touches a landmark (its place in the CT, LPS mm) with where the registration in use"
        " puts it. A disagreement beyond the limit makes it unverified, a large one expired; sigma_mm is that of the"
        " touch per axis, 0.5 unless given.",
        {"tool": "text", "point_ct_mm": "point"},
        "loop",
        {"sigma_mm": "number"},
    ),
    "confirm_registration": Operation(
        "Trust an unverified or expired registration again: the operator has checked it.", {"id": "text"}, "loop"
    ),
    "describe_registration": Operation(
        "Return a registration's transform (16 numbers, row by row), covariance (36), verdict and reason.",
        {"id": "text"},
        "loop",
    ),
    "pause_audio": Operation(
        "Pause alarm sounds for some seconds (at most 120); 0 ends the pause, so does a new alarm of high priority.",
        {"seconds": "number"},
        "loop",
    ),
    "set_phase": Operation("Set the phase of the procedure.", {"phase": "text"}, "loop"),
    "park_tool": Operation(
        "Say that a tool is parked on purpose, or in use again.", {"tool": "text", "parked": "flag"}, "loop"
    ),
    "change_insert": Operation(
        "Say which insert is in a cannula; seated: true says that the operator saw it sit against its depth stop.",
        {"tool": "text", "insert": "text", "seated": "flag"},
        "loop",
    ),
    "forget_needle": Operation(
        "Stop showing where an image saw a tool, because it was moved since.", {"tool": "text"}, "loop"
    ),
    "register_xrays": Operation(
        "Register the newest two X-rays of a C-arm to the CT and propose the result; seen says about how the last one"
        " sees the patient: ap, pa, to_left or to_right, the head at the top.",
        {"seen": "text"},
        "session",
        {"source": "text"},
    ),
    "find_needle": Operation(
        "Look again for a tool in its newest images; near a point of the CT (LPS mm) where they show several needles.",
        {},
        "session",
        {"tool": "text", "near_ct_mm": "point"},
    ),
    "patient_turned": Operation(
        "Say that the patient was turned: soft tissue is doubted more until the anatomy is confirmed.", {}, "loop"
    ),
    "anatomy_confirmed": Operation(
        "Say that soft tissue was seen since the patient was turned, and lies as segmented.", {}, "loop"
    ),
    "collect_landmark": Operation(
        "Touch a landmark: pair the tool's tip now with a point of the CT (LPS mm).",
        {"tool": "text", "name": "text", "point_ct_mm": "point"},
        "session",
    ),
    "clear_landmarks": Operation("Forget the collected landmarks.", {}, "session"),
    "register_landmarks": Operation("Register the collected landmarks and propose the result.", {}, "session"),
}


def listing() -> dict[str, Any]:
    """Return every operation's JSON Schema by name."""
    return {name: operation.schema(name) for name, operation in OPERATIONS.items()}
