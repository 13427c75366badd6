from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from navsrv.kernel.errors import LocalProtocolError
from navsrv.wire.openigtlink import Message, Raw, ns_from_timestamp, timestamp_from_ns

LATEST_NS = (1 << 32) * 1_000_000_000 - 1


@given(st.integers(0, LATEST_NS))
def test_every_nanosecond_comes_back(time_ns: int) -> None:
    assert ns_from_timestamp(timestamp_from_ns(time_ns)) == time_ns


@given(st.integers(0, (1 << 64) - 1))
def test_any_stamp_is_read_to_the_nearest_nanosecond_and_is_stable_there(stamp: int) -> None:
    time_ns = ns_from_timestamp(stamp)
    assert abs(time_ns * (1 << 32) - stamp * 1_000_000_000) <= (1 << 32) // 2
    assert ns_from_timestamp(timestamp_from_ns(time_ns)) == time_ns


def test_half_a_second_is_the_top_bit_of_the_fraction() -> None:
    assert timestamp_from_ns(1_234_567_890_500_000_000) == (1234567890 << 32) | (1 << 31)


@pytest.mark.parametrize("time_ns", [-1, LATEST_NS + 2])
def test_refuses_what_a_stamp_cannot_say(time_ns: int) -> None:
    with pytest.raises(LocalProtocolError, match="outside what a stamp can say"):
        timestamp_from_ns(time_ns)


def test_stamp_zero_is_no_time() -> None:
    assert Message("Tracker", 0, Raw("STATUS")).time_ns is None
    assert Message("Tracker", timestamp_from_ns(7), Raw("STATUS")).time_ns == 7
