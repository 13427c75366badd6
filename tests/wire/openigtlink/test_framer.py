from __future__ import annotations

import struct
import tracemalloc
from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from navsrv.wire import openigtlink as igtl


def pose(number: int) -> bytes:
    body = igtl.Transform(np.diag([1.0, 1.0, 1.0, 1.0]) + np.eye(4, k=3) * number)
    return igtl.encode(igtl.Message(f"Tool{number}", number << 32, body, 1 + number % 2))


def claim(size: int) -> bytes:
    """A header that promises a body of ``size`` bytes."""
    return struct.pack(">H12s20sQQQ", 1, b"IMAGE", b"CT", 0, size, 0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_any_cutting_of_a_stream_gives_the_same_messages(fuzz: ModuleType, data: st.DataObject) -> None:
    whole = [igtl.encode(message) for message in fuzz.messages()]
    raws = data.draw(st.lists(st.sampled_from(whole), min_size=1, max_size=12))
    stream = b"".join(raws)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=40)))
    framer, got = igtl.Framer(), list[igtl.Message]()
    for start, stop in pairwise([0, *cuts, len(stream)]):
        got += framer.feed(memoryview(stream)[start:stop])
    assert [igtl.encode(message) for message in got] == raws
    assert framer.pending_bytes == 0


def test_one_byte_at_a_time() -> None:
    stream = b"".join(pose(n) for n in range(5))
    framer = igtl.Framer()
    got = [message for byte in stream for message in framer.feed(bytes([byte]))]
    assert [message.device for message in got] == [f"Tool{n}" for n in range(5)]


def test_a_message_comes_as_soon_as_its_last_byte_has() -> None:
    framer, raw = igtl.Framer(), pose(1)
    assert framer.feed(raw[:-1]) == []
    assert framer.pending_bytes == len(raw) - 1
    assert len(framer.feed(raw[-1:])) == 1


@pytest.mark.parametrize("cut", [0, 10, 58, 80, 106, 150])
def test_messages_before_a_fault_are_kept_and_nothing_after_it_is_read(cut: int) -> None:
    bad = bytearray(pose(2))
    bad[-1] ^= 1
    stream = pose(0) + pose(1) + bytes(bad) + pose(3)
    framer = igtl.Framer()
    before = framer.feed(stream[:cut])
    with pytest.raises(igtl.RemoteProtocolError, match=r"TRANSFORM 'Tool2': check sum") as caught:
        framer.feed(stream[cut:])
    kept = [*before, *caught.value.messages]
    assert [message.device for message in kept if isinstance(message, igtl.Message)] == ["Tool0", "Tool1"]
    with pytest.raises(igtl.RemoteProtocolError, match="broke earlier: TRANSFORM 'Tool2'") as again:
        framer.feed(pose(4))
    assert again.value.messages == []


def test_a_size_above_the_cap_is_refused_with_its_header_and_the_cap_itself_is_taken() -> None:
    with pytest.raises(igtl.RemoteProtocolError, match="a body of 1001 bytes; at most 1000"):
        igtl.Framer(1000).feed(claim(1001))
    framer = igtl.Framer(1000)
    assert framer.feed(claim(1000)) == []
    with pytest.raises(igtl.RemoteProtocolError, match="18446744073709551615 bytes"):
        igtl.Framer().feed(claim((1 << 64) - 1))


def test_a_promised_body_costs_nothing_until_it_comes() -> None:
    framer = igtl.Framer()
    tracemalloc.start()
    try:
        framer.feed(claim(64 * 1024 * 1024))
        for _ in range(10):
            framer.feed(bytes(1000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000
    assert framer.pending_bytes == 58 + 10_000


def test_counts_in_a_body_allocate_nothing_that_the_bytes_do_not_hold() -> None:
    content = struct.pack(">10I", 0x0AAAAAAA, *[0] * 9) + bytes(100)
    raw = struct.pack(">H12s20sQQQ", 1, b"POLYDATA", b"", 0, len(content), igtl.crc64(content)) + content
    tracemalloc.start()
    try:
        with pytest.raises(igtl.RemoteProtocolError):
            igtl.Framer().feed(raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_feeding_nothing_gives_nothing() -> None:
    assert igtl.Framer().feed(b"") == []


def test_a_header_in_pieces_is_judged_as_a_whole_one() -> None:
    raw = bytearray(pose(0))
    raw[0:2] = b"\0\7"
    framer = igtl.Framer()
    for byte in raw[:57]:
        assert framer.feed(bytes([byte])) == []
    with pytest.raises(igtl.RemoteProtocolError, match="header version 7"):
        framer.feed(raw[57:])
