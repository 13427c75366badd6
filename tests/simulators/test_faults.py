"""Each fault at the bytes: what leaves the line, and when."""

from typing import Any

import numpy as np
import pytest

from navsrv.kernel.errors import RemoteProtocolError
from navsrv.wire.openigtlink import Framer, Message, Transform
from simulators.fault_line import Delivery, FaultLine
from simulators.faults import FAULTS, FaultName, FaultOrder, Place, episodes_of
from simulators.packets import encode_poses

MS = 1_000_000
PERIOD_NS = 10 * MS
EPOCH_NS = 1_700_000_000_000_000_000
BEGIN_NS, END_NS = 100 * MS, 200 * MS


def exposure(n: int) -> list[bytes]:
    """Return needle and reference of exposure ``n``: x says which exposure, y which tool."""
    made = []
    for y, name in enumerate(("NeedleToTracker", "ReferenceToTracker")):
        pose = np.eye(4)
        pose[:2, 3] = n, y
        made.append(encode_poses(name, pose[None], np.array([EPOCH_NS + n * PERIOD_NS]))[0].tobytes())
    return made


def through(fault: FaultName, count: int = 30, **more: Any) -> list[Delivery]:
    order = FaultOrder(fault, at_s=BEGIN_NS / 1e9, for_s=(END_NS - BEGIN_NS) / 1e9, **more)
    line = FaultLine(episodes_of((order,), 0, 1.0, np.random.default_rng(0)))
    return [delivery for n in range(count) for delivery in line.exposure(n * PERIOD_NS, exposure(n))]


def read(deliveries: list[Delivery]) -> list[tuple[int, str, float, float, int]]:
    """Return (arrival ms, name, x, y, stamp ms) of every message; what breaks the protocol raises."""
    framer, found = Framer(), []
    for delivery in deliveries:
        for message in framer.feed(delivery.data):
            assert isinstance(message, Message)
            assert isinstance(message.body, Transform)
            x, y = message.body.matrix[:2, 3].tolist()
            stamp = round(((message.time_ns or 0) - EPOCH_NS) / MS)
            found.append((delivery.at_ns // MS, message.device, x, y, stamp))
    return found


def needles(deliveries: list[Delivery]) -> list[tuple[int, str, float, float, int]]:
    return [row for row in read(deliveries) if row[1] == "NeedleToTracker"]


def during(rows: list[tuple[int, str, float, float, int]]) -> list[tuple[int, str, float, float, int]]:
    return [row for row in rows if BEGIN_NS // MS <= row[0] < END_NS // MS]


@pytest.mark.parametrize("fault", [f for f, rule in FAULTS.items() if rule.place in (Place.MESSAGE, Place.BYTES)])
def test_before_its_time_a_fault_changes_no_byte(fault: FaultName) -> None:
    early = [d for d in through(fault) if d.at_ns < BEGIN_NS]
    assert [(d.at_ns, d.data) for d in early] == [(n * PERIOD_NS, b"".join(exposure(n))) for n in range(10)]


def test_drop_out_sends_nothing_or_nothing_of_one_tool() -> None:
    assert during(read(through("drop_out"))) == []
    assert {row[1] for row in during(read(through("drop_out", tool="Needle")))} == {"ReferenceToTracker"}
    assert needles(through("drop_out"))[-1][2] == 29.0


def test_freeze_repeats_the_last_pose_under_new_stamps() -> None:
    rows = during(needles(through("freeze")))
    assert [row[2] for row in rows] == [9.0] * 10
    assert [row[4] for row in rows] == [10 * n for n in range(10, 20)]
    assert needles(through("freeze"))[20][2] == 20.0


def test_jump_moves_the_named_tool_by_the_amount() -> None:
    rows = during(read(through("jump", tool="Reference", amount=7.0)))
    assert [row[2] - row[4] / 10 for row in rows] == [0.0, 7.0] * 10


def test_swapped_tools_go_under_each_other_s_names() -> None:
    assert {(row[1], row[3]) for row in during(read(through("swapped_tools")))} == {
        ("NeedleToTracker", 1.0),
        ("ReferenceToTracker", 0.0),
    }


def test_late_comes_later_in_order_and_never_overtakes() -> None:
    rows = needles(through("late", amount=55.0))
    assert [row[0] - row[4] for row in rows[10:20]] == [55] * 10
    assert [row[4] for row in rows] == sorted(row[4] for row in rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_out_of_order_swaps_two_by_two_and_loses_none() -> None:
    stamps = [row[4] for row in needles(through("out_of_order"))]
    assert stamps[10:14] == [110, 100, 130, 120]
    assert sorted(stamps) == [10 * n for n in range(30)]


def test_a_slow_link_holds_up_and_lets_go() -> None:
    size = len(b"".join(exposure(0)))
    rows = needles(through("slow_link", count=60, amount=size / 0.02))
    assert rows[19][0] - rows[19][4] == pytest.approx(110, abs=12), "half of what is sent passes"
    assert rows[-1][0] == rows[-1][4]
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


@pytest.mark.parametrize("fault", ["torn_packet", "bad_crc", "oversized_length"])
def test_one_broken_message_breaks_the_stream_and_the_next_ones_are_whole(fault: FaultName) -> None:
    deliveries = through(fault)
    with pytest.raises(RemoteProtocolError):
        read(deliveries)
    broken = [n for n, d in enumerate(deliveries) if d.data != b"".join(exposure(n))]
    assert broken == [10]


def test_a_clock_steps_and_comes_back_or_drifts_from_nothing() -> None:
    stepped = needles(through("clock_step", amount=2.0))
    assert [row[4] - row[0] for row in stepped] == [0] * 10 + [2000] * 10 + [0] * 10
    drifted = needles(through("clock_drift", amount=1e5))
    assert [row[4] - row[0] for row in drifted[10:20]] == [n for n in range(10)]
    assert drifted[25][4] == drifted[25][0]


def test_a_restart_leaves_another_clock_behind() -> None:
    rows = needles(through("restart", amount=-3600.0))
    assert {row[4] - row[0] for row in rows if row[0] >= END_NS // MS} == {-3_600_000}


def test_faults_at_a_rate_come_as_often_as_they_say_and_the_same_for_the_same_seed() -> None:
    order = FaultOrder("drop_out", rate_per_min=6.0, for_s=0.1)
    counts = [len(episodes_of((order,), 0, 600.0, np.random.default_rng(seed))) for seed in range(40)]
    assert 55 < np.mean(counts) < 65
    one, same = (episodes_of((order,), 0, 600.0, np.random.default_rng(1)) for _ in range(2))
    assert one == same
