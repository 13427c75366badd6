"""A registration that ages: what a touch or a newer image finds makes the state fall, with the number in the reason."""

import numpy as np
import pytest

from navsrv.kernel.frames import Array
from tests.pipeline.room import Room, at, make_setup

TIP = np.array([0.0, 0.0, 60.0])


def shifted(*by_mm: float) -> Array:
    matrix = np.eye(4)
    matrix[:3, 3] = by_mm
    return matrix


def room() -> Room:
    r = Room(make_setup())
    r.wait(10)
    r.propose("r1")
    assert r.command("accept_registration", id="r1").ok
    r.wait(10)
    assert r.pair(at(*TIP)).state == "OK"
    return r


@pytest.mark.parametrize(
    ("off_mm", "health", "state"),
    [(1.0, "accepted", "OK"), (4.0, "unverified", "DEGRADED"), (12.0, "expired", "UNREGISTERED")],
)
def test_a_landmark_touched_again_lets_the_state_fall_by_its_distance(off_mm: float, health: str, state: str) -> None:
    """Catches a check in the wrong frame, a limit that is never reached, a fall that the frame does not show."""
    r = room()
    reply = r.command("check_landmark", tool="Needle", point_ct_mm=[off_mm, 0.0, 60.0])
    assert reply.ok, reply.value
    assert reply.value["away_mm"] == pytest.approx(off_mm, abs=1e-3)
    assert reply.value["state"] == health
    r.wait(10)
    frame = r.pair(at(*TIP))
    assert frame.state == state
    if health != "accepted":
        assert f"{off_mm:.1f} mm" in reply.value["reason"]
        assert any(f"{off_mm:.1f} mm" in note.text for note in r.notes)
    if health == "unverified":
        assert f"{off_mm:.1f} mm" in frame.reason
    if state == "UNREGISTERED":
        assert frame.tip_ct_mm is None


def test_only_an_operator_lifts_what_a_rule_let_fall() -> None:
    """Catches a later good touch that heals by itself."""
    r = room()
    r.command("check_landmark", tool="Needle", point_ct_mm=[4.0, 0.0, 60.0])
    assert r.command("check_landmark", tool="Needle", point_ct_mm=[0.0, 0.0, 60.0]).value["state"] == "accepted"
    r.wait(10)
    assert r.pair(at(*TIP)).state == "DEGRADED"
    assert r.command("confirm_registration", id="r1").ok
    r.wait(10)
    assert r.pair(at(*TIP)).state == "OK"


@pytest.mark.parametrize(
    ("method", "verdict", "off_mm", "state"),
    [
        ("cbct", "accept", 0.5, "OK"),
        ("fluoro", "accept", 5.0, "DEGRADED"),
        ("cbct", "accept", 20.0, "UNREGISTERED"),
        ("fluoro", "refuse", 0.0, "DEGRADED"),
        ("landmarks", "accept", 5.0, "OK"),
    ],
)
def test_a_newer_image_checks_the_registration_in_use(method: str, verdict: str, off_mm: float, state: str) -> None:
    """Catches a check shot that disagrees and is only proposed, and one that could not be registered passing for fine.

    Landmarks are no check: they are proposed when somebody means to register anew.
    """
    r = room()
    r.propose("r2", shifted(0.0, off_mm, 0.0), method=method, verdict=verdict, reason="as told")
    r.wait(10)
    frame = r.pair(at(*TIP))
    assert frame.state == state
    assert frame.proposal is not None
    assert frame.proposal.id == "r2"
    if state == "DEGRADED":
        assert ("5.0 mm" if off_mm else "as told") in frame.reason


def test_there_is_nothing_to_check_before_a_registration_is_in_use() -> None:
    r = Room(make_setup())
    r.wait(10)
    r.pair(at(*TIP))
    reply = r.command("check_landmark", tool="Needle", point_ct_mm=[0.0, 0.0, 60.0])
    assert not reply.ok
    assert "no registration is in use" in str(reply.value)
