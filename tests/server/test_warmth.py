"""Rehearsals: they touch the structures, at the right time, and change nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np

from navsrv.pipeline.inputs import BytesIn, Input, LinkDown
from navsrv.server.warmth import LEAD_NS, NEVER_NS, Rehearsal
from navsrv.wire.guidance import encode_frame
from tests.pipeline.room import EPOCH_NS, IDENTITY, MS, Room, at, make_setup, preset


def run_room(between: Callable[[Room, Input], None]) -> list[bytes]:
    """Return the frames of forty poses that go into the structures and out; ``between`` is called after each."""
    room = Room(make_setup(preset=preset()))
    frames = []
    for step in range(40):
        room.wait(4)
        frames.append(encode_frame(room.pair(at(0.0, 0.3 * step, abs(30.0 - 2.0 * step)))))
        between(room, room.inputs[-1])
    return frames


def test_rehearsing_changes_no_frame() -> None:
    """Catches anything that a rehearsal would share with the live pipeline but the structures."""
    rehearsals: dict[int, Rehearsal] = {}

    def rehearse(room: Room, item: Input) -> None:
        rehearsal = rehearsals.setdefault(id(room), Rehearsal(room.pipeline))
        rehearsal.follow(item)
        rehearsal.run()

    assert run_room(rehearse) == run_room(lambda room, item: None)


def counted(room: Room, monkeypatch: Any) -> list[Any]:
    calls: list[Any] = []
    measure = room.pipeline.engine.measure

    def counting(tip: Any, *rest: Any) -> None:
        calls.append(tip)
        measure(tip, *rest)

    monkeypatch.setattr(room.pipeline.engine, "measure", counting)
    return calls


def test_a_rehearsal_searches_the_live_structures_at_the_newest_pose(monkeypatch: Any) -> None:
    """Catches rehearsals that stop early (a repeated stamp, no registration) and so warm nothing."""
    room = Room(make_setup(preset=preset()))
    rehearsal, calls = Rehearsal(room.pipeline), counted(room, monkeypatch)
    for step in range(3):
        room.wait(4)
        room.pair(at(1.0, 2.0, 60.0 + step))
        rehearsal.follow(room.inputs[-1])
        rehearsal.run()
        np.testing.assert_allclose(calls[-1], (1.0, 2.0, 60.0 + step), atol=1e-4)
    assert len(calls) == 6


def test_rehearsals_follow_an_accepted_registration(monkeypatch: Any) -> None:
    room = Room(make_setup())
    rehearsal, calls = Rehearsal(room.pipeline), counted(room, monkeypatch)
    room.propose("r1", IDENTITY)
    rehearsal.follow(room.inputs[-1])
    room.command("accept_registration", id="r1")
    rehearsal.follow(room.inputs[-1])
    room.wait(4)
    room.pair(at(1.0, 2.0, 60.0))
    rehearsal.follow(room.inputs[-1])
    rehearsal.run()
    assert len(calls) == 2


def bytes_at(now_ns: int) -> BytesIn:
    return BytesIn("main", now_ns, EPOCH_NS + now_ns, b"")


def test_a_rehearsal_is_due_shortly_before_the_next_pose_and_once() -> None:
    rehearsal = Rehearsal(Room(make_setup()).pipeline)
    rehearsal.follow(bytes_at(1000 * MS))
    assert rehearsal.due_ns == NEVER_NS  # one read tells no rate
    rehearsal.follow(bytes_at(1004 * MS))
    assert rehearsal.due_ns == 1008 * MS - LEAD_NS
    rehearsal.run()
    assert rehearsal.due_ns == NEVER_NS


def test_fast_slow_and_lost_sources_are_not_rehearsed() -> None:
    """Catches a rehearsal that holds up the next pose of a fast source, or runs on after the source is gone."""
    for period_ms in (1, 500):
        rehearsal = Rehearsal(Room(make_setup()).pipeline)
        rehearsal.follow(bytes_at(1000 * MS))
        rehearsal.follow(bytes_at((1000 + period_ms) * MS))
        assert rehearsal.due_ns == NEVER_NS
    rehearsal = Rehearsal(Room(make_setup()).pipeline)
    rehearsal.follow(bytes_at(1000 * MS))
    rehearsal.follow(bytes_at(1004 * MS))
    rehearsal.follow(LinkDown(1005 * MS, "main", "gone"))
    assert rehearsal.due_ns == NEVER_NS
