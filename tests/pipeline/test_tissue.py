"""Soft tissue after the patient was turned, through the pipeline: what the operator and the displays see."""

from dataclasses import replace

import pytest

from navsrv.wire.guidance import GuidanceFrame
from tests.pipeline.room import BONE, NERVE, VESSEL, Room, at, make_setup, preset

SOFT = (NERVE, replace(VESSEL, motion_mm=1.0, turned_mm=6.0), BONE)


def sigmas(frame: GuidanceFrame) -> dict[str, float]:
    return {row.name: row.sigma_mm or 0.0 for row in frame.structures if row.part == "tip"}


def room(seen: bool = True) -> Room:
    made = Room(make_setup(structures=SOFT, preset=preset(), tissue_seen=seen))
    made.wait(10)
    return made


def test_turning_the_patient_degrades_and_confirming_the_anatomy_ends_it() -> None:
    r = room()
    before = r.pair(at(0.0, 0.0, 60.0))
    assert before.state == "OK"
    assert r.command("patient_turned").ok
    r.wait(10)
    turned = r.pair(at(0.0, 0.0, 60.0))
    assert turned.state == "DEGRADED"
    assert turned.reason == "soft tissue not seen since the patient was turned: Vessel"
    grown = sigmas(turned)
    assert grown["Vessel"] ** 2 - sigmas(before)["Vessel"] ** 2 == pytest.approx(6.0**2 - 1.0**2, rel=1e-6)
    assert {n: grown[n] for n in ("Nerve", "Bone")} == {n: sigmas(before)[n] for n in ("Nerve", "Bone")}
    assert r.command("anatomy_confirmed").ok
    r.wait(10)
    after = r.pair(at(0.0, 0.0, 60.0))
    assert after.state == "OK"
    assert sigmas(after) == sigmas(before)


def test_levels_follow_the_larger_doubt_at_once() -> None:
    r = room()
    near = r.pair(at(0.0, 78.0, 0.0))
    r.command("patient_turned")
    levels = [next(row.level for row in f.structures if row.name == "Vessel") for f in (near, r.frames[-1])]
    assert levels == ["none", "warning"]


def test_a_patient_who_lies_otherwise_than_in_the_ct_begins_degraded() -> None:
    r = room(seen=False)
    assert r.pair(at(0.0, 0.0, 60.0)).state == "DEGRADED"
    assert r.command("anatomy_confirmed").ok
    assert r.frames[-1].state == "OK"


def test_a_confirmation_of_what_nobody_doubts_is_refused() -> None:
    reply = room().command("anatomy_confirmed")
    assert not reply.ok
    assert "not in doubt" in str(reply.value)


def test_a_case_of_bone_alone_is_not_degraded() -> None:
    r = Room(make_setup(preset=preset()))
    r.wait(10)
    r.command("patient_turned")
    r.wait(10)
    assert r.pair(at(0.0, 0.0, 60.0)).state == "OK"


def test_bending_and_the_methods_inflation_reach_the_sigma() -> None:
    found = []
    for bending_mm, factor in ((0.0, 1.0), (2.0, 1.0), (0.0, 3.0)):
        setup = make_setup(preset=preset(), inflation={"bench": factor, "cbct": 9.0})
        tool = replace(setup.tools[0], bending_sigma_mm=bending_mm)
        r = Room(replace(setup, tools=(tool,)))
        r.wait(10)
        found.append(sigmas(r.pair(at(60.0, 0.0, 0.0)))["Nerve"])  # beside it: the bend is across the shaft
    assert found[1] ** 2 - found[0] ** 2 == pytest.approx(2.0**2, rel=1e-3)
    plain = found[2] ** 2 - found[0] ** 2
    variance = 1e-6 * (1.0 + 0.0)  # of the preset, at a lever along the direction
    assert plain == pytest.approx((3.0**2 - 1.0) * variance, rel=1e-2)
