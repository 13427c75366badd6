"""A cannula with inserts: whose tip is guided, how sure it is, and that the change is an act of somebody."""

import numpy as np
import pytest

from navsrv.pipeline.setup import InsertSetup, ZoneSetup
from tests.pipeline.room import Room, at, make_setup, needle, preset

STYLET = InsertSetup("Stylet", 0.0, 0.1)
PROBE = InsertSetup("Probe", 22.0, 0.4, ZoneSetup(8.0, 12.0, -6.0))


def room() -> Room:
    cannula = needle(axis_sigma_rad=0.01, inserts=(STYLET, PROBE))
    return Room(make_setup(tools=(cannula,), preset=preset()))


def test_the_first_insert_is_in_the_cannula_and_every_frame_says_so() -> None:
    frame = room().pair(at(0.0, 0.0, 60.0))
    assert (frame.insert, frame.tip_ct_mm) == ("Stylet", pytest.approx((0.0, 0.0, 60.0)))


def test_a_tool_that_takes_no_insert_says_none() -> None:
    plain = Room(make_setup(preset=preset()))
    assert plain.pair(at(0.0, 0.0, 60.0)).insert is None
    assert "no insert 'Probe'" in plain.command("change_insert", tool="Needle", insert="Probe", seated=True).value


def test_the_guided_tip_is_that_of_the_insert_with_its_own_doubt_and_zone() -> None:
    live = room()
    before = live.pair(at(0.0, 0.0, 60.0))
    assert live.command("change_insert", tool="Needle", insert="Probe", seated=True).ok
    live.wait(10)
    after = live.pair(at(0.0, 0.0, 60.0))
    assert (after.insert, after.tip_ct_mm) == ("Probe", pytest.approx((0.0, 0.0, 38.0)))
    assert after.axis_ct == pytest.approx(before.axis_ct)
    rows = {(row.name, row.part): row for row in after.structures}
    was = {(row.name, row.part): row for row in before.structures}
    assert rows["Nerve", "tip"].distance_mm == pytest.approx(28.0, abs=0.1)
    # Along the axis: the cannula's tip, its axis over the reach (across, but one sigma stands for all) and the insert.
    own = np.array([was["Nerve", "tip"].sigma_mm, 0.1, 0.1])
    base = own[0] ** 2 - own[1] ** 2 - own[2] ** 2
    assert rows["Nerve", "tip"].sigma_mm == pytest.approx(np.sqrt(base + 0.1**2 + 0.22**2 + 0.4**2), rel=1e-3)
    assert {part for _, part in rows} == {"tip", "shaft", "zone"}
    assert {part for _, part in was} == {"tip", "shaft"}


def test_the_change_is_logged_with_who_and_from_what() -> None:
    live = room()
    live.pair(at(0.0, 0.0, 60.0))
    live.command("change_insert", tool="Needle", insert="Probe", seated=True)
    (note,) = [n for n in live.notes if n.event == "insert_changed"]
    assert (note.fields["before"], note.fields["insert"], note.fields["by"]) == ("Stylet", "Probe", "operator")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"insert": "Probe", "seated": False}, "depth stop"),
        ({"insert": "Drill", "seated": True}, "one of Stylet, Probe"),
        ({"insert": "Probe"}, "args.seated"),
    ],
)
def test_an_insert_that_is_not_seated_or_not_known_changes_nothing(args: dict[str, object], said: str) -> None:
    live = room()
    live.pair(at(0.0, 0.0, 60.0))
    reply = live.command("change_insert", tool="Needle", **args)
    assert not reply.ok
    assert said in reply.value
    live.wait(10)
    assert live.pair(at(0.0, 0.0, 60.0)).insert == "Stylet"


def test_a_longer_insert_raises_the_alarm_at_once() -> None:
    live = room()
    assert not live.pair(at(0.0, 0.0, 30.0)).alarms
    live.command("change_insert", tool="Needle", insert="Probe", seated=True)
    assert {a.condition for a in live.frames[-1].alarms} >= {"breach"}
