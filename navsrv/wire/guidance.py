"""Owns the guidance frame: what every display reads, as one msgpack map on ZeroMQ and as JSON elsewhere.

The frame carries the whole state, so that a display that misses frames loses nothing but smoothness.  In JSON
every ``*_ns`` is a decimal string, because JavaScript's numbers end at 2**53.  ``guidance.schema.json`` beside
this file is the JSON Schema of that form (``frame_schema``); a test holds the two together.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, Final

import msgspec

TOPIC: Final = b"guidance"
VERSION: Final = 1

STATES: Final = ("OK", "DEGRADED", "SNAPSHOT", "STALE", "LOST", "UNREGISTERED", "FAULT")
"""From best to worst; the worst wins."""
GEOMETRY_STATES: Final = frozenset(("OK", "DEGRADED", "SNAPSHOT"))
"""States in which geometry is given; in all others it is null and levels are ``unknown``."""
PHASES: Final = ("setup", "registration", "verification", "navigation", "ablation", "cement", "finished")


class StructureRow(msgspec.Struct, frozen=True, gc=False):
    """One structure and part; distances to the instrument's surface, LPS millimetres, positive outside."""

    name: str
    kind: str
    part: str
    distance_mm: float | None
    sigma_mm: float | None
    lower_mm: float | None
    nearest_ct_mm: tuple[float, float, float] | None
    closing_mm_s: float | None
    level: str
    contact_s: float | None = None


class TrajectoryState(msgspec.Struct, frozen=True, gc=False):
    """The tool against the plan: lateral offset of the tip, angle of the axes, signed depth left to the target.

    ``miss_mm``, ``reach_mm``, ``aim_ct_mm``, ``on_target``: where its axis, extended, passes the target.
    """

    lateral_mm: float
    angle_deg: float
    depth_to_target_mm: float
    inside_corridor: bool
    miss_mm: float
    reach_mm: float
    aim_ct_mm: tuple[float, float, float]
    on_target: bool


class ZoneState(msgspec.Struct, frozen=True, gc=False):
    """A predicted ablation zone against the target."""

    device: str
    margin_mm: float
    covered_fraction: float


class AlarmState(msgspec.Struct, frozen=True, gc=False):
    """One alarm that is present; ``since_ns`` is this server's monotonic clock."""

    id: str
    condition: str
    priority: str
    phase: str
    since_ns: int
    structure: str | None
    text: str
    action: str = ""


class ExceptionState(msgspec.Struct, frozen=True, gc=False):
    """A critical structure that this tool's alarms leave out, because the plan crosses it on purpose."""

    structure: str
    reason: str
    by: str
    since_ns: int
    planned_mm: float


class RegistrationState(msgspec.Struct, frozen=True, gc=False):
    """The registration that geometry rests on, or the proposal that waits for the operator."""

    id: str | None
    method: str | None
    state: str
    verdict: str | None
    tre_mm: float | None
    age_s: float | None


class Temperature(msgspec.Struct, frozen=True, gc=False):
    """One temperature probe; its validity is its own.  ``age_ms`` is null before the first reading that counts."""

    name: str
    celsius: float | None
    rate_c_s: float | None
    age_ms: float | None
    level: str


class GuidanceFrame(msgspec.Struct, gc=False):
    """One frame for one tool.  Not frozen for one reason: ``sent_ns`` is stamped at the moment of sending."""

    v: int
    seq: int
    session: str
    pose_time_ns: int | None
    pose_time_source: str | None
    received_ns: int
    sent_ns: int
    age_ms: float | None
    state: str
    reason: str
    phase: str
    tool: str
    tip_ct_mm: tuple[float, float, float] | None
    axis_ct: tuple[float, float, float] | None
    q_wxyz_ct_from_tip: tuple[float, float, float, float] | None
    structures: list[StructureRow]
    trajectory: TrajectoryState | None
    zone: ZoneState | None
    alarms: list[AlarmState]
    registration: RegistrationState
    proposal: RegistrationState | None
    temperatures: list[Temperature]
    missed_deadlines: int
    skipped_poses: int
    audio_paused_s: float
    parked: bool = False
    exceptions: list[ExceptionState] = []
    insert: str | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(GuidanceFrame)
_json = msgspec.json.Encoder()


def encode_frame(frame: GuidanceFrame) -> bytes:
    """Return the frame as it goes out on ZeroMQ: the topic bytes ``guidance`` followed by one msgpack map."""
    return TOPIC + _encoder.encode(frame)


def decode_frame(payload: bytes | memoryview) -> GuidanceFrame:
    """Return the frame of one ZeroMQ part; ``msgspec.ValidationError`` or ``ValueError`` if it is not one."""
    if bytes(payload[: len(TOPIC)]) != TOPIC:
        raise ValueError("not a guidance frame: the part does not begin with 'guidance'")
    return _decoder.decode(payload[len(TOPIC) :])


def json_ready(frame: GuidanceFrame) -> dict[str, Any]:
    """Return the frame as built-in types with every ``*_ns`` as a decimal string."""
    data: dict[str, Any] = msgspec.to_builtins(frame)
    for key in ("pose_time_ns", "received_ns", "sent_ns"):
        if data[key] is not None:
            data[key] = str(data[key])
    for entry in (*data["alarms"], *data["exceptions"]):
        entry["since_ns"] = str(entry["since_ns"])
    return data


def encode_json(frame: GuidanceFrame) -> bytes:
    """Return the frame as UTF-8 JSON, as WebSocket and OpenIGTLink displays get it."""
    return _json.encode(json_ready(frame))


def frame_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a frame's JSON form."""
    schema: dict[str, Any] = json.loads(files(__package__).joinpath("guidance.schema.json").read_text("utf-8"))
    return schema
