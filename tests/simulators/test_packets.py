"""Messages as bytes: bulk encoding is the codec's, whatever is changed is sealed again, streams are cut anywhere."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from navsrv.wire.openigtlink import Framer, Message, Metadata, Transform, encode, timestamp_from_ns
from simulators.packets import Packet, PacketCutter, encode_poses

NOW_NS = 1_700_000_000_123_456_789


def poses(count: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    matrices = np.tile(np.eye(4), (count, 1, 1))
    matrices[:, :3, :3] = np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]
    matrices[:, :3, 3] = rng.normal(scale=300.0, size=(count, 3))
    return matrices


def test_bulk_messages_are_the_codec_s_to_the_byte() -> None:
    matrices = poses(50)
    times = NOW_NS + np.arange(50, dtype=np.int64) * 16_666_667
    for status in ("OK", "OUT_OF_VIEW"):
        made = encode_poses("NeedleToTracker", matrices, times, status)
        for row, matrix, at in zip(made, matrices, times.tolist(), strict=True):
            metadata = (Metadata("TransformStatus", status),)
            one = Message("NeedleToTracker", timestamp_from_ns(at), Transform(matrix), metadata=metadata)
            assert row.tobytes() == encode(one)


def test_a_changed_packet_is_a_right_message_that_says_what_was_changed() -> None:
    before = poses(2)
    raw = encode_poses("NeedleToTracker", before[:1], np.array([NOW_NS]))[0].tobytes()
    packet = Packet.parse(raw)
    assert packet.sealed() == raw
    changed = packet.with_matrix(before[1]).with_stamp_moved(2_000_000_000)
    (message,) = Framer().feed(changed.sealed())
    assert isinstance(message, Message)
    assert isinstance(message.body, Transform)
    assert np.allclose(message.body.matrix, before[1], atol=1e-4)
    assert message.time_ns is not None
    assert abs(message.time_ns - NOW_NS - 2_000_000_000) <= 1
    assert message.meta("TransformStatus") == "OK"


@given(st.lists(st.integers(1, 400), max_size=30))
def test_a_stream_is_cut_into_the_same_messages_whatever_the_chunks(sizes: list[int]) -> None:
    messages = [m.tobytes() for m in encode_poses("NeedleToTracker", poses(5), np.full(5, NOW_NS))]
    stream, cutter, found, at = b"".join(messages), PacketCutter(), [], 0
    for size in [*sizes, len(stream)]:
        found += cutter.feed(stream[at : at + size])
        at += size
    assert found == messages
