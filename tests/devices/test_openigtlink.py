"""The driver is judged at its bytes: what a tracker sends, and what is believed of it."""

from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from devices.openigtlink import (
    MAX_MESSAGE_BYTES,
    MAX_NAMES,
    OpenIgtLinkSource,
    SourceCounts,
    SourceSpec,
    Stamps,
    encode_hello,
    parse_transform_name,
)
from navsrv.kernel.errors import RemoteProtocolError
from navsrv.kernel.frames import Array, Frame
from navsrv.kernel.samples import PoseSample, Tracking
from navsrv.wire.openigtlink import (
    Body,
    Framer,
    Message,
    Metadata,
    Position,
    QTData,
    QTDataElement,
    Status,
    String,
    TData,
    TDataElement,
    Transform,
    encode,
    timestamp_from_ns,
)

MS = 1_000_000
S = 1_000_000_000
T0 = 1_700_000_000 * S
MATRIX = np.array([[0.0, -1.0, 0.0, 10.0], [1.0, 0.0, 0.0, -20.0], [0.0, 0.0, 1.0, 30.0], [0.0, 0.0, 0.0, 1.0]])


class Source:
    """A driver, with a clock of ours that the test moves."""

    def __init__(self, **spec: Any) -> None:
        self.counts = SourceCounts()
        self.driver = OpenIgtLinkSource(SourceSpec("main", 100.0, **spec), self.counts)
        self.now_ns = 0

    def read(self, *messages: bytes) -> list[PoseSample]:
        return self.driver.feed(b"".join(messages), 5 * S + self.now_ns, T0 + self.now_ns)

    def one(self, message: bytes) -> PoseSample:
        (sample,) = self.read(message)
        return sample


def message(body: Body, at_ns: int | None = T0, name: str = "NeedleToTracker", **metadata: str) -> bytes:
    stamp = 0 if at_ns is None else timestamp_from_ns(at_ns)
    return encode(Message(name, stamp, body, metadata=tuple(Metadata(k, v) for k, v in metadata.items())))


def transform(at_ns: int | None = T0, matrix: Array = MATRIX, name: str = "NeedleToTracker") -> bytes:
    return message(Transform(matrix), at_ns, name, TransformStatus="OK")


# -- status ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["TransformStatus", "Status", "TransformValid"])
@pytest.mark.parametrize("word", ["OK", "ok", " OK ", "TOOL_OK", "VALID", "true", "1"])
def test_words_that_mean_ok(key: str, word: str) -> None:
    source = Source()
    sample = source.one(message(Transform(MATRIX), T0, **{key: word}))
    assert (sample.tracking, sample.reason) == (Tracking.OK, "")
    assert sample.pose is not None
    assert (sample.pose.to, sample.pose.frm) == (Frame("tracker"), Frame("needle"))
    np.testing.assert_allclose(sample.pose.matrix, MATRIX, atol=1e-12)
    assert source.counts == SourceCounts(accepted=1)


@pytest.mark.parametrize("key", ["TransformStatus", "Status", "TransformValid"])
@pytest.mark.parametrize(
    "word",
    [
        *("OUT_OF_VIEW", "OUTOFVIEW", "MISSING", "INVALID", "UNKNOWN", "DISABLED", "TOOL_MISSING", "TOOL_OUT_OF_VIEW"),
        *("TOOL_OUT_OF_VOLUME", "TOOL_INVALID", "REQ_TIMEOUT", "false", "0", "", " ", "okay?"),
    ],
)
def test_every_other_word_means_missing_and_is_quoted(key: str, word: str) -> None:
    source = Source(trusted=True)  # a status that was given counts, trusted or not
    sample = source.one(message(Transform(MATRIX), T0, **{key: word}))
    assert (sample.tracking, sample.pose) == (Tracking.MISSING, None)
    assert sample.reason == f"NeedleToTracker: {word.strip() or 'empty status'}"
    assert source.counts == SourceCounts(invalid=1)


def test_no_status_is_unknown_and_names_the_key_that_would_help() -> None:
    sample = Source().one(message(Transform(MATRIX)))
    assert (sample.tracking, sample.pose) == (Tracking.UNKNOWN, None)
    assert "trackers.main.trusted" in sample.reason


def test_a_trusted_source_is_believed_without_status() -> None:
    sample = Source(trusted=True).one(message(Transform(MATRIX)))
    assert sample.tracking is Tracking.OK
    assert sample.pose is not None


def test_header_version_1_carries_no_status() -> None:
    sample = Source().one(encode(Message("NeedleToTracker", timestamp_from_ns(T0), Transform(MATRIX), version=1)))
    assert sample.tracking is Tracking.UNKNOWN


def test_status_keys_that_disagree_are_not_ok() -> None:
    for first, second in (("OK", "MISSING"), ("MISSING", "OK")):
        sample = Source().one(message(Transform(MATRIX), TransformStatus=first, Status=second))
        assert (sample.tracking, sample.reason) == (Tracking.MISSING, "NeedleToTracker: MISSING")


def test_a_peers_status_text_reaches_displays_short_and_on_one_line() -> None:
    sample = Source().one(message(Transform(MATRIX), Status="LOST\nalarm: all is well\x07" + "x" * 100_000))
    assert len(sample.reason) < 80
    assert sample.reason.isprintable()


# -- bodies ----------------------------------------------------------------------------------------------------


def test_tdata_carries_several_tools_of_one_moment() -> None:
    other = MATRIX.copy()
    other[:3, 3] = 1.0, 2.0, 3.0
    body = TData((TDataElement("NeedleToTracker", MATRIX), TDataElement("ReferenceToTracker", other)))
    samples = Source().read(message(body, name="tools", Status="OK"))
    assert [s.name for s in samples] == ["NeedleToTracker", "ReferenceToTracker"]
    assert {s.device_time_ns for s in samples} == {T0}
    for sample, matrix in zip(samples, (MATRIX, other), strict=True):
        assert sample.pose is not None
        np.testing.assert_allclose(sample.pose.matrix, matrix, atol=1e-12)


def test_qtdata_and_position_turn_the_way_scipy_does() -> None:
    turn = Rotation.from_rotvec([0.4, -1.1, 0.7])
    q_xyzw = turn.as_quat()
    place = np.array([1.5, -2.5, 3.5])
    bodies: list[Body] = [
        QTData((QTDataElement("NeedleToTracker", place, q_xyzw),)),
        Position(place, q_xyzw),
        Position(place, (q_xyzw * np.sign(q_xyzw[3]))[:3]),  # w not sent: the non-negative root
    ]
    for body in bodies:
        sample = Source().one(message(body, Status="OK"))
        assert sample.pose is not None
        np.testing.assert_allclose(sample.pose.rotation, turn.as_matrix(), atol=1e-6)
        np.testing.assert_allclose(sample.pose.translation_mm, place)


@pytest.mark.parametrize(
    "body",
    [
        Position([1.0, 2.0, 3.0]),  # type: ignore[arg-type]
        QTData((QTDataElement("NeedleToTracker", np.zeros(3), np.zeros(4)),)),
        QTData((QTDataElement("NeedleToTracker", np.zeros(3), np.array([0.0, 0.0, 0.0, 0.5])),)),
        QTData((QTDataElement("NeedleToTracker", np.zeros(3), np.array([0.0, 0.0, np.nan, 1.0])),)),
        Transform(np.diag([1.0, 1.0, -1.0, 1.0])),
        Transform(np.diag([0.001, 0.001, 0.001, 1.0])),
        Transform(np.diag([0.0, 0.0, 0.0, 1.0])),
        Transform(np.diag([np.nan, 1.0, 1.0, 1.0])),
    ],
    ids=["no rotation", "zero quaternion", "half quaternion", "nan quaternion", "mirror", "metres", "zero", "nan"],
)
def test_what_is_not_rigid_is_missing(body: Body) -> None:
    source = Source(trusted=True)
    sample = source.one(message(body))
    assert (sample.tracking, sample.pose) == (Tracking.MISSING, None)
    assert sample.reason == "NeedleToTracker: the matrix is not a rigid motion"
    assert source.counts == SourceCounts(not_rigid=1)


def test_float32_rounding_is_removed() -> None:
    rotation = Rotation.from_rotvec([1.0, 2.0, 3.0]).as_matrix().astype(np.float32)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    sample = Source().one(transform(matrix=matrix))
    assert sample.pose is not None
    assert np.abs(sample.pose.rotation.T @ sample.pose.rotation - np.eye(3)).max() < 1e-14


@pytest.mark.parametrize("x", [1e6, -3e38, np.inf, np.nan])
def test_a_tool_that_is_nowhere_near_is_missing(x: float) -> None:
    matrix = np.eye(4)
    matrix[0, 3] = x
    sample = Source().one(transform(matrix=matrix))
    assert (sample.tracking, sample.pose) == (Tracking.MISSING, None)
    assert sample.reason.endswith("100 m away" if np.isfinite(x) else "not a rigid motion")


def test_other_messages_are_no_samples() -> None:
    source = Source()
    assert source.read(message(String("hello")), message(Status(1, 0, "", ""))) == []
    assert source.counts == SourceCounts()


# -- names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("NeedleToTracker", ("tracker", "needle")),
        ("StylusTipToStylus", ("stylus", "stylustip")),
        ("NeedleToTool", ("tool", "needle")),
        ("ToolToTracker", ("tracker", "tool")),
        ("AToB", ("b", "a")),
        ("TopToTorso", ("torso", "top")),
        ("Needle", None),
        ("ToTracker", None),
        ("NeedleTo", None),
        ("Needletotracker", None),
        ("Stone", None),
        ("", None),
    ],
)
def test_names_as_plus_writes_them(name: str, frames: tuple[str, str] | None) -> None:
    assert parse_transform_name(name) == (None if frames is None else (Frame(frames[0]), Frame(frames[1])))


def test_names_are_mapped_and_unknown_ones_counted() -> None:
    source = Source(names={"Tool-01": "NeedleToTracker"})
    assert source.one(transform(name="Tool-01")).name == "NeedleToTracker"
    assert source.read(transform(name="Tool-02"), transform(name="Tool-02")) == []
    assert source.counts == SourceCounts(accepted=1, unknown_names=2)


def test_invented_names_do_not_pile_up() -> None:
    source = Source()
    made = source.read(*[transform(name=f"N{i}ToTracker") for i in range(MAX_NAMES + 50)])
    assert len(made) == MAX_NAMES
    assert source.counts.unknown_names == 50


# -- stamps ----------------------------------------------------------------------------------------------------


def test_a_stamp_is_the_devices_to_the_nanosecond() -> None:
    sample = Source().one(transform(T0 + 123_456_789))
    assert (sample.device_time_ns, sample.pose_time_ns) == (T0 + 123_456_789,) * 2
    assert (sample.stamp_source, sample.received_ns) == ("device", 5 * S)


@pytest.mark.parametrize("stamps", list(Stamps))
def test_stamp_0_and_stamps_that_mean_nothing_take_the_wall_clock(stamps: Stamps) -> None:
    source = Source(stamps=stamps)
    source.now_ns = 7 * MS
    sample = source.one(transform(None if stamps is Stamps.DEVICE else 12 * S))
    assert (sample.device_time_ns, sample.pose_time_ns, sample.stamp_source) == (None, T0 + 7 * MS, "receipt")
    assert not source.driver.jumped


def test_receipt_stamps_are_never_repeated_late_or_jumping() -> None:
    source = Source(stamps=Stamps.RECEIPT)
    assert len(source.read(transform(12 * S), transform(12 * S), transform(5 * S), transform(900 * S))) == 4
    assert source.counts == SourceCounts(accepted=4)


def test_repeated_and_late_poses_are_dropped_and_counted_by_name() -> None:
    source = Source()
    source.read(transform(T0), transform(T0, name="ReferenceToTracker"))
    source.now_ns = 20 * MS
    kept = source.read(
        transform(T0),
        transform(T0 - 10 * MS),
        transform(T0 + 10 * MS),
        transform(T0 + 10 * MS, name="ReferenceToTracker"),
    )
    assert [(s.name, s.device_time_ns) for s in kept] == [
        ("NeedleToTracker", T0 + 10 * MS),
        ("ReferenceToTracker", T0 + 10 * MS),
    ]
    assert source.counts == SourceCounts(accepted=4, repeated=1, out_of_order=1)


@pytest.mark.parametrize("jump_s", [-3600.0, -0.6, 0.6, 3600.0])
def test_a_clock_jump_is_told_and_the_next_pose_confirms_it(jump_s: float) -> None:
    source = Source()
    source.one(transform(T0))
    for step, believed in ((1, False), (2, True), (3, True)):
        source.now_ns = step * 10 * MS
        sample = source.one(transform(T0 + source.now_ns + int(jump_s * S)))
        assert source.driver.jumped is not believed
        assert (sample.pose is not None) is believed
        assert ("clock" in sample.reason) is not believed
    assert source.counts == SourceCounts(accepted=3, invalid=1, clock_jumps=1)


@pytest.mark.parametrize("set_back_ms", [40, 300])
def test_a_clock_set_back_a_little_is_known_by_the_third_pose_in_a_row(set_back_ms: int) -> None:
    """Until then they look like poses that newer ones overtook; after that nothing is late for ever."""
    source = Source()
    for step in range(1, 300):
        source.now_ns = step * 10 * MS
        samples = source.read(transform(T0 + source.now_ns - (set_back_ms * MS if step >= 150 else 0)))
        assert source.driver.jumped == (step == 152)
        if step in (150, 151):
            assert samples == []
        elif step == 152:
            assert f"jumped by -{set_back_ms / 1e3:.2f} s" in samples[0].reason
        else:
            assert samples[0].pose is not None
            assert samples[0].late_ns < MS
    assert source.counts == SourceCounts(accepted=296, invalid=1, out_of_order=2, clock_jumps=1)


def test_a_pose_that_was_overtaken_is_no_clock_set_back() -> None:
    source = Source()
    order = [i + 1 if i % 10 == 5 else i - 1 if i % 10 == 6 else i for i in range(200)]
    for place, number in enumerate(order):
        source.now_ns = place * 10 * MS
        source.read(transform(T0 + number * 10 * MS))
    assert source.counts == SourceCounts(accepted=180, out_of_order=20)


def test_one_pose_that_is_a_second_late_is_never_believed() -> None:
    source = Source()
    source.one(transform(T0))
    source.now_ns = 10 * MS
    assert source.one(transform(T0 - S)).pose is None
    source.now_ns = 20 * MS
    assert source.one(transform(T0 + 20 * MS)).pose is None  # which of the two clocks is right is not known yet
    source.now_ns = 30 * MS
    assert source.one(transform(T0 + 30 * MS)).pose is not None


def test_a_stalled_network_is_no_clock_jump() -> None:
    source = Source()
    source.one(transform(T0))
    source.now_ns = 2 * S  # everything that was sent meanwhile comes at once
    burst = source.read(*[transform(T0 + i * 10 * MS) for i in range(1, 201)])
    assert len(burst) == 200
    source.now_ns = 3 * S  # one alone that was held up, and the next one that was not
    source.one(transform(T0 + 2 * S + 10 * MS))
    source.now_ns = 3 * S + 10 * MS
    source.one(transform(T0 + source.now_ns))
    assert source.counts == SourceCounts(accepted=203)


def test_drift_is_no_clock_jump() -> None:
    source = Source()
    for minute in range(120):  # 200 ppm, two hours
        source.now_ns = minute * 60 * S
        source.one(transform(T0 + int(source.now_ns * 1.0002)))
    assert source.counts == SourceCounts(accepted=120)


# -- the stream ------------------------------------------------------------------------------------------------


def test_any_chunking_gives_the_same_samples() -> None:
    stream = b"".join(transform(T0 + i * 10 * MS) for i in range(5))
    for size in (1, 7, 58, len(stream)):
        source = Source()
        samples = [s for i in range(0, len(stream), size) for s in source.read(stream[i : i + size])]
        assert [s.device_time_ns for s in samples] == [T0 + i * 10 * MS for i in range(5)]


def test_whole_messages_before_a_fault_are_kept() -> None:
    torn = bytearray(transform(T0 + 10 * MS))
    torn[-1] ^= 1
    source = Source()
    with pytest.raises(RemoteProtocolError) as caught:
        source.read(transform(T0), bytes(torn), transform(T0 + 20 * MS))
    (sample,) = caught.value.messages
    assert isinstance(sample, PoseSample)
    assert sample.device_time_ns == T0


def test_a_pose_source_cannot_announce_megabytes() -> None:
    big = encode(Message("X", 0, TData((TDataElement("NeedleToTracker", MATRIX),) * (MAX_MESSAGE_BYTES // 70 + 1))))
    with pytest.raises(RemoteProtocolError, match="at most"):
        Source().read(big[:58])


def test_hello_is_a_version_2_status() -> None:
    (hello,) = Framer().feed(encode_hello())
    assert hello.version == 2
    assert isinstance(hello.body, Status)
