"""The frame's JSON form against its schema: the same fields, and every state as the pipeline really sends it."""

from copy import deepcopy
from typing import Any, get_args

import jsonschema
import msgspec
import numpy as np
import pytest

from navsrv.guidance.alarms import Condition, Phase, Priority
from navsrv.guidance.levels import LEVELS
from navsrv.kernel.registration import Verdict
from navsrv.wire import guidance
from navsrv.wire.guidance import (
    GuidanceFrame,
    RegistrationState,
    Temperature,
    ZoneState,
    decode_frame,
    encode_frame,
    encode_json,
    frame_schema,
    json_ready,
)
from tests.pipeline.room import Room, at, make_setup, preset

SCHEMA = frame_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
BIG_NS = 2**53 + 1
FRACTION = 1234.5678


@pytest.fixture(scope="module")
def frames() -> list[GuidanceFrame]:
    """Many frames of each state that this version can reach, from a pipeline that was led there."""
    room = Room(make_setup())
    for z in (9.0, 14.0, 60.0):
        room.wait(10)
        room.pair(at(0.0, 0.0, z))
    room.propose()
    room.command("accept_registration", id="r1")
    room.report(2, 1)
    for z in (60.0, 40.0, 19.0, 14.0, 11.2, 9.0, 30.0, 80.0):
        room.wait(10)
        frame = room.pair(at(1.0, 2.0, z))
        for alarm in frame.alarms:
            if alarm.condition in ("caution", "recorder_failing"):
                room.command("acknowledge_alarm", id=alarm.id)
    for _ in range(20):
        room.tick_when_due()
    room.read(room.pose("Needle", at(0.0, 0.0, 60.0), status=None), room.pose("Reference", status="MISSING"))
    room.wait(10)
    room.read(room.pose("Needle", late_ms=-5000))
    room.propose("r2", verdict="doubt")
    room.command("acknowledge_alarm", id="breach:Nerve")
    room.command("reject_registration", id="r1")
    room.down()
    absurd = np.eye(4)
    absurd[0, 3] = 1e300
    broken = Room(make_setup())
    broken.propose(matrix=absurd)
    broken.command("accept_registration", id="r1")
    broken.pair(at(0.0, 0.0, 60.0))
    bench = Room(make_setup(preset=preset()), connected=False)
    bench.tick()
    found = room.frames + broken.frames + bench.frames
    for frame in found:
        frame.sent_ns = frame.received_ns + 150_000
    return found


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_frames_of_every_state_fit(frames: list[GuidanceFrame]) -> None:
    assert {f.state for f in frames} == {"OK", "DEGRADED", "STALE", "LOST", "UNREGISTERED", "FAULT"}
    assert {a.phase for f in frames for a in f.alarms} == {"active", "latched", "acknowledged"}
    assert {r.level for f in frames for r in f.structures} == {*LEVELS, "unknown"}
    for frame in frames:
        VALIDATOR.validate(msgspec.json.decode(encode_json(frame)))


def test_what_later_versions_fill_fits_too(frames: list[GuidanceFrame]) -> None:
    frame = next(f for f in frames if f.state == "OK")
    filled = msgspec.structs.replace(
        frame,
        state="SNAPSHOT",
        reason="two views of 10:42:07",
        zone=ZoneState("probe", 4.0, 0.93),
        temperatures=[
            Temperature("S1 left", 41.5, 0.2, 12.0, "caution"),
            Temperature("S2", None, None, 900.0, "unknown"),
        ],
        registration=RegistrationState("r1", "fluoro", "unverified", "doubt", 1.4, 3.0),
    )
    VALIDATOR.validate(msgspec.json.decode(encode_json(filled)))


# -- the schema and the structs are one list ----------------------------------------------------------------------

STRUCTS = ["StructureRow", "TrajectoryState", "ZoneState", "AlarmState", "RegistrationState", "Temperature"]


@pytest.mark.parametrize("name", ["GuidanceFrame", *STRUCTS])
def test_schema_and_struct_list_the_same_fields_in_the_same_order(name: str) -> None:
    struct: type[msgspec.Struct] = getattr(guidance, name)
    part = SCHEMA if name == "GuidanceFrame" else SCHEMA["$defs"][name]
    assert list(part["properties"]) == list(struct.__struct_fields__)
    assert part["required"] == list(struct.__struct_fields__)
    assert part["additionalProperties"] is False
    for field in msgspec.structs.fields(struct):
        nullable = type(None) in get_args(field.type)
        assert _takes_null(part["properties"][field.name]) is nullable, field.name


def _takes_null(schema: dict[str, Any]) -> bool:
    return bool(jsonschema.Draft202012Validator({**schema, "$defs": SCHEMA["$defs"]}).is_valid(None))


def test_the_schemas_words_are_the_codes_words() -> None:
    alarm, row = SCHEMA["$defs"]["AlarmState"]["properties"], SCHEMA["$defs"]["StructureRow"]["properties"]
    assert SCHEMA["properties"]["state"]["enum"] == list(guidance.STATES)
    assert SCHEMA["properties"]["phase"]["enum"] == list(guidance.PHASES)
    assert SCHEMA["properties"]["v"]["const"] == guidance.VERSION
    assert set(SCHEMA["allOf"][0]["if"]["properties"]["state"]["enum"]) == guidance.GEOMETRY_STATES
    assert alarm["priority"]["enum"] == [p.value for p in Priority]
    assert alarm["phase"]["enum"] == [p.value for p in Phase if p is not Phase.INACTIVE]
    assert SCHEMA["$defs"]["level"]["enum"] == [*LEVELS, "unknown"]
    assert row["level"] == {"$ref": "#/$defs/level"}
    assert SCHEMA["$defs"]["RegistrationState"]["properties"]["verdict"]["enum"] == [*[v.value for v in Verdict], None]
    for condition in Condition:
        jsonschema.validate(condition.value, alarm["condition"])


# -- what it refuses ----------------------------------------------------------------------------------------------


def _put(path: str, value: Any, data: dict[str, Any]) -> dict[str, Any]:
    changed: Any = deepcopy(data)
    *keys, last = [int(k) if k.isdigit() else k for k in path.split(".")]
    place = changed
    for key in keys:
        place = place[key]
    place[last] = value
    result: dict[str, Any] = changed
    return result


@pytest.mark.parametrize(
    ("state", "path", "value"),
    [
        ("OK", "received_ns", 12345),
        ("OK", "received_ns", "12.5"),
        ("OK", "extra", 1),
        ("OK", "structures.0.extra", 1),
        ("OK", "state", "ok"),
        ("OK", "reason", "but"),
        ("OK", "tip_ct_mm", None),
        ("OK", "tip_ct_mm", [1.0, 2.0]),
        ("OK", "structures.0.lower_mm", None),
        ("OK", "structures.0.level", "unknown"),
        ("OK", "structures.0.kind", "nerve"),
        ("LOST", "tip_ct_mm", [1.0, 2.0, 3.0]),
        ("LOST", "structures.0.distance_mm", 4.0),
        ("LOST", "structures.0.level", "none"),
        ("LOST", "reason", ""),
        ("LOST", "alarms", []),
        ("LOST", "alarms.0.since_ns", 5),
        ("LOST", "alarms.0.phase", "inactive"),
    ],
)
def test_frames_that_break_the_contract_do_not_fit(
    frames: list[GuidanceFrame], state: str, path: str, value: Any
) -> None:
    data = msgspec.json.decode(encode_json(next(f for f in frames if f.state == state)))
    VALIDATOR.validate(data)
    assert not VALIDATOR.is_valid(_put(path, value, data))


# -- the two encodings ---------------------------------------------------------------------------------------------


def test_msgpack_goes_there_and_back_behind_its_topic(frames: list[GuidanceFrame]) -> None:
    for frame in frames:
        payload = encode_frame(frame)
        assert payload.startswith(b"guidance")
        assert decode_frame(payload) == frame
        assert decode_frame(memoryview(payload)) == frame
        plain = msgspec.msgpack.decode(payload[len("guidance") :])
        assert list(plain) == list(GuidanceFrame.__struct_fields__)
        assert isinstance(plain["received_ns"], int)


@pytest.mark.parametrize("payload", [b"", b"guidance", b"guide", b"guidance\x80", b"state\x80"])
def test_what_is_no_frame_is_refused(payload: bytes) -> None:
    with pytest.raises((ValueError, msgspec.DecodeError)):
        decode_frame(payload)


def test_every_ns_is_a_decimal_string_in_json_and_nothing_else_changes(frames: list[GuidanceFrame]) -> None:
    frame = next(f for f in frames if f.state == "OK" and f.alarms)
    frame = msgspec.structs.replace(frame, pose_time_ns=BIG_NS, received_ns=BIG_NS, sent_ns=BIG_NS, age_ms=FRACTION)
    data = msgspec.json.decode(encode_json(frame))
    plain = msgspec.to_builtins(frame)
    _check_strings(data, plain)
    assert data["pose_time_ns"] == str(BIG_NS)
    assert json_ready(msgspec.structs.replace(frame, pose_time_ns=None))["pose_time_ns"] is None


def _check_strings(data: Any, plain: Any) -> None:
    if isinstance(data, dict):
        assert data.keys() == plain.keys()
        for key, value in data.items():
            if key.endswith("_ns"):
                assert value == str(plain[key])
            else:
                _check_strings(value, plain[key])
    elif isinstance(data, list):
        for one, other in zip(data, plain, strict=True):
            _check_strings(one, other)
    else:
        assert data == plain
