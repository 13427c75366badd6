"""One contract for every driver, each on its real line against its simulator: what a source must never make believe.

The tables of rooms are ``contract_rooms.ROOMS`` and ``contract_lines.LINES``; a new driver is one more row.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.devices.contract_lines import LINES
from tests.devices.contract_rooms import ROOMS, Room, Seen

pytestmark = pytest.mark.realtime
EVERY = {**ROOMS, **LINES}


@pytest.fixture(scope="module", params=EVERY)
def room(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    room = EVERY[request.param](tmp_path_factory.mktemp("room"))
    yield room
    room.close()


def usable(seen: Seen) -> bool:
    return seen.usable


def refused(seen: Seen) -> bool:
    return not seen.usable


def test_a_healthy_device_is_believed_and_its_time_goes_on(room: Room) -> None:
    for name in room.names:
        times = [room.next(lambda seen, name=name: seen.usable and seen.name == name).time_ns for _ in range(4)]
        assert None not in times
        assert all(after > before for before, after in pairwise(t for t in times if t is not None))


def test_what_the_device_cannot_tell_is_never_usable_and_says_why(room: Room) -> None:
    room.lose()
    lost = room.next(refused)
    assert room.loses in lost.reason
    assert "\n" not in lost.reason
    assert room.next(lambda seen: seen.usable and seen.name == lost.name)


def test_what_nobody_vouches_for_is_not_usable(room: Room) -> None:
    """No status on the wire, out of the measured volume, no scale of its values: unknown is not well."""
    room.doubt()
    assert len(room.next(refused).reason) > 10
    room.vouch()
    assert room.next(usable)


def test_silence_says_nothing_new(room: Room) -> None:
    """A device that hangs with its line open: what it said before must not come again as if it were fresh."""
    room.next(usable)
    room.freeze(True)
    try:
        room.said_within(0.3)  # what was on its way
        assert room.said_within(0.4) == []
    finally:
        room.freeze(False)
    assert room.next(usable)


def test_noise_is_counted_and_is_no_sample(room: Room) -> None:
    room.next(usable)
    before, known = room.noise_counted(), set(room.names)
    room.garble()
    last = room.next(usable)
    assert room.next(usable).name in known
    assert room.noise_counted() > before
    assert last.time_ns is not None


def test_every_sample_is_counted(room: Room) -> None:
    """After all of the above: nothing was dropped or said twice without a count."""
    room.next(usable)
    assert room.counted() == room.heard()


def test_a_device_that_is_gone_is_known_to_be_and_one_that_returns_is_used(room: Room) -> None:
    before = room.next(usable).time_ns
    room.unplug()
    assert room.down()
    room.replug()
    after = room.next(usable).time_ns
    assert before is not None
    assert after is not None
    assert after > before
    room.unplug()
