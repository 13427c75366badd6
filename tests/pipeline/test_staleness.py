"""A source whose age trembles about its limit, and one that repeats a pose to the last bit under new stamps."""

from dataclasses import replace

import numpy as np
import pytest

from devices.health import FreshnessRule
from navsrv.kernel.frames import Array
from navsrv.wire.guidance import GuidanceFrame
from tests.pipeline.room import IDENTITY, Room, at, make_setup, preset, source

FAR = at(0.0, 0.0, 120.0)
RULE = FreshnessRule.for_rate(100.0)


def room(frozen_ms: float | None = None) -> Room:
    frozen_ns = None if frozen_ms is None else int(1e6 * frozen_ms)
    return Room(make_setup(preset=preset(), sources=(replace(source(), rule=replace(RULE, frozen_ns=frozen_ns)),)))


def shaken(matrix: Array, n: int) -> Array:
    """The pose with the noise of a tracker: the last bits of a float differ, and no more."""
    noisy = matrix.copy()
    noisy[:3, 3] += 1e-4 * np.random.default_rng(n).normal(size=3)
    return noisy


def stale(frame: GuidanceFrame) -> tuple[str, str] | None:
    """Return (priority, text) of the alarm."""
    return next(((a.priority, a.text) for a in frame.alarms if a.condition == "source_stale"), None)


def tremble(live: Room, times: int) -> list[GuidanceFrame]:
    """Let poses come so that the newest is 101 ms old when the next one comes."""
    for n in range(times):
        live.pair(shaken(FAR, n), shaken(IDENTITY, n))
        live.wait(101)
        live.tick()
    return live.frames


def test_an_age_that_trembles_about_its_limit_is_one_alarm_and_not_brief() -> None:
    live = room()
    frames = tremble(live, 30)
    assert {"OK", "STALE"} <= {f.state for f in frames}  # the state says what is
    changes = [n.event for n in live.notes if n.fields.get("condition") == "source_stale"]
    assert changes.count("alarm_raised") == 2  # of the tool and of the reference
    assert "alarm_cleared" not in changes
    first = next(f for f in frames if stale(f) is not None)
    assert first.state == "STALE"  # raised with the first stale frame
    found = stale(frames[-1])
    assert found is not None
    assert (stale(first) or ("", ""))[0] == "low"
    assert found[0] == "medium"


def test_while_held_it_says_that_it_is_over_and_a_second_later_it_goes() -> None:
    live = room()
    tremble(live, 1)
    for n in range(120):
        live.wait(10)
        frame = live.pair(shaken(FAR, n), shaken(IDENTITY, n))
        assert frame.state == "OK"
        held = stale(frame)
        assert (held is not None) == (n < 100)
        assert held is None or "no fresh pose came for a moment" in held[1]


@pytest.mark.parametrize("still", ["needle", "reference"])
def test_a_pose_that_repeats_to_the_last_bit_is_stale_where_that_is_declared(still: str) -> None:
    live = room(frozen_ms=300.0)
    for n in range(60):
        live.wait(10)
        needle = FAR if still == "needle" else shaken(FAR, n)
        reference = IDENTITY if still == "reference" else shaken(IDENTITY, n)
        frame = live.pair(needle, reference)
        assert frame.state == ("OK" if n <= 30 else "STALE"), n
    assert "one pose to the last bit for 590 ms: the tracker may be frozen" in frame.reason
    assert frame.tip_ct_mm is None
    assert stale(frame) is not None
    (report,) = live.pipeline.report_sources(live.now_ns)
    assert report.counts["identical"] == 59
    live.wait(10)
    assert live.pair(shaken(FAR, 1), shaken(IDENTITY, 1)).state == "OK"


def test_a_source_without_noise_may_stand_still_where_nothing_is_declared() -> None:
    live = room()
    for _ in range(200):
        live.wait(10)
        assert live.pair(FAR).state == "OK"
    (report,) = live.pipeline.report_sources(live.now_ns)
    assert report.counts["identical"] == 2 * 199


def test_noise_alone_is_no_standstill() -> None:
    live = room(frozen_ms=100.0)
    for n in range(500):
        live.wait(10)
        assert live.pair(shaken(FAR, n), shaken(IDENTITY, n + 1000)).state == "OK"
