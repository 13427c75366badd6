"""A zone through the whole pipeline: its rows, its doubt, and that it is judged while it is made and no sooner."""

import numpy as np
import pytest

from navsrv.guidance.levels import Limits
from navsrv.pipeline.setup import StructureSetup, ZoneSetup
from navsrv.wire.guidance import GuidanceFrame, StructureRow
from tests.pipeline.room import BONE, NERVE, VESSEL, Room, at, make_setup, needle, preset, sphere

SKIN = StructureSetup("Skin", "skin", 0.1, Limits(), sphere(80.0, 0.0, 0.0, 8.0))
NERVE_MM = 10.0


def room(zone: ZoneSetup) -> Room:
    structures = (NERVE, VESSEL, BONE, SKIN)
    return Room(make_setup(tools=(needle(zone=zone),), structures=structures, preset=preset()))


def rows(frame: GuidanceFrame) -> dict[str, StructureRow]:
    return {row.name: row for row in frame.structures if row.part == "zone"}


@pytest.mark.parametrize("turn", [0.0, 0.7])
def test_a_sphere_at_the_tip_is_that_much_nearer_than_the_tip(turn: float) -> None:
    """Turned or not; the tip points down z, so that its centre lies 4 mm below."""
    pose = at(0.0, 0.0, 40.0)
    pose[:2, :2] = np.array([[np.cos(turn), np.sin(turn)], [np.sin(turn), -np.cos(turn)]])
    frame = room(ZoneSetup(12.0, 12.0, 4.0)).pair(pose)
    nerve = rows(frame)["Nerve"]
    assert [row.part for row in frame.structures] == ["tip"] * 4 + ["shaft"] * 4 + ["zone"] * 4
    assert nerve.distance_mm == pytest.approx(40.0 - 4.0 - 12.0 - NERVE_MM, abs=0.1)
    assert nerve.nearest_ct_mm == pytest.approx((0.0, 0.0, NERVE_MM), abs=0.5)
    assert nerve.sigma_mm is not None
    assert nerve.lower_mm == pytest.approx(nerve.distance_mm - 1.644854 * nerve.sigma_mm)


def test_a_long_zone_reaches_ahead_and_a_flat_one_sideways() -> None:
    """Half extents 20 along and 5 across, and the other way round; the vessel of 5 mm lies 60 mm beside."""
    along = rows(room(ZoneSetup(5.0, 20.0, 0.0)).pair(at(0.0, 0.0, 40.0)))["Nerve"]
    assert along.distance_mm == pytest.approx(40.0 - 20.0 - NERVE_MM, abs=0.1)
    across = rows(room(ZoneSetup(20.0, 5.0, 0.0)).pair(at(0.0, 20.0, 0.0)))["Vessel"]
    assert across.distance_mm == pytest.approx(40.0 - 20.0 - 5.0, abs=0.1)


def test_a_zone_has_levels_and_alarms_while_ablating_only() -> None:
    """The nerve is reached by the zone and not by the tip; bone is none that a level is for; skin is, for a zone."""
    there = room(ZoneSetup(25.0, 25.0, 0.0))
    before = there.pair(at(42.0, 0.0, 0.0))
    assert rows(before)["Nerve"].level == "none"
    assert not before.alarms
    there.command("set_phase", phase="ablation")
    there.wait(10)
    during = there.pair(at(42.0, 0.0, 0.0))
    levels = {name: row.level for name, row in rows(during).items()}
    assert levels == {"Nerve": "caution", "Vessel": "none", "Bone": "none", "Skin": "warning"}
    assert any(a.id == "caution:Nerve" and "(zone)" in a.text for a in during.alarms)
    there.command("set_phase", phase="navigation")
    for _ in range(80):
        there.wait(10)
        after = there.pair(at(42.0, 0.0, 0.0))
    assert rows(after)["Nerve"].level == "none"
    assert not [a for a in after.alarms if a.phase != "latched"]


def test_an_unknown_zone_is_shown_as_unknown() -> None:
    there = room(ZoneSetup(25.0, 25.0, 0.0))
    there.pair(at(42.0, 0.0, 0.0))
    there.wait(600)
    (frame,) = there.tick()
    assert {(r.level, r.distance_mm, r.lower_mm) for r in rows(frame).values()} == {("unknown", None, None)}


def test_a_zone_that_closes_in_says_when() -> None:
    """The tip sinks at 10 mm/s towards the nerve; the zone's surface is there 12 mm sooner."""
    there = room(ZoneSetup(12.0, 12.0, 0.0))
    for i in range(40):
        there.wait(10)
        frame = there.pair(at(0.0, 0.0, 60.0 - 0.1 * i))
    nerve = rows(frame)["Nerve"]
    assert nerve.closing_mm_s == pytest.approx(10.0, abs=0.1)
    assert nerve.contact_s == pytest.approx((60.0 - 3.9 - 12.0 - NERVE_MM) / 10.0, abs=0.05)
