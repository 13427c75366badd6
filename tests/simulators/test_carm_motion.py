"""The C-arm's bending against plain geometry: source and detector as points in space."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from navsrv.kernel.frames import CT, Rigid, rotation_from_vector
from simulators.carm_motion import EXACT, STAND, Encoders, Flex, Gantry, Position, bent, nominal_pose, view_of
from simulators.world.imaging import VIEWS, Detector, carm_pose

DETECTOR = Detector()
FLEX = Flex(scatter_mm=0.0)
BASE = Rigid(CT, STAND, rotation_from_vector([0.05, -0.02, 0.03]), [20.0, -35.0, 110.0])


@pytest.mark.parametrize("view", VIEWS)
def test_a_stiff_c_stands_where_the_quick_camera_puts_it(view: str) -> None:
    pose = BASE @ nominal_pose(Position(VIEWS[view]), DETECTOR.source_iso_mm)
    other = carm_pose(VIEWS[view], np.asarray(BASE.translation_mm), DETECTOR, np.asarray(BASE.rotation))
    assert np.allclose(pose.matrix, other.matrix)


def test_tilt_brings_the_detector_to_the_head_and_keeps_the_isocentre() -> None:
    for orbit in (0.0, 40.0):
        pose = nominal_pose(Position(orbit, 20.0), DETECTOR.source_iso_mm)
        assert np.allclose(pose.apply([0.0, 0.0, DETECTOR.source_iso_mm]), 0.0, atol=1e-9)
        assert pose.rotation[2, 2] == pytest.approx(np.sin(np.radians(20.0)) * np.cos(np.radians(orbit)))


@pytest.mark.parametrize("position", [Position(0.0), Position(37.0, 12.0), Position(90.0), Position(-60.0, -15.0)])
def test_a_bent_c_projects_as_its_sunken_source_and_detector_do(position: Position) -> None:
    """Intersect rays with the moved detector in space, with scipy's rotations; nothing of the tested code."""
    orbit, tilt = np.radians([position.orbit_deg, position.tilt_deg])
    turn = Rotation.from_rotvec([tilt, 0.0, 0.0])
    beam = turn.apply([np.sin(orbit), np.cos(orbit), 0.0])
    rows = turn.apply([0.0, 0.0, -1.0])
    axes = np.stack([np.cross(rows, beam), rows, beam])
    down = np.array([0.0, -1.0, 0.0])
    load = axes @ down - np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]) @ down
    source = -530.0 * beam + (np.array(FLEX.source_mm) * load) @ axes
    sag = (np.array(FLEX.detector_mm) * load) @ axes
    swing = Rotation.from_rotvec(np.radians(FLEX.detector_deg) * load)
    across, along = (swing.apply(e) @ axes for e in np.eye(3)[:2])
    middle = (1020.0 - 530.0) * beam + sag
    corner = middle + swing.apply([-258.7 * 0.58, -253.1 * 0.58, 0.0]) @ axes
    normal = np.cross(across, along)
    view = view_of(bent(position, DETECTOR, FLEX, None), BASE)
    for point in np.array([[0.0, 0.0, 0.0], [40.0, -20.0, 30.0], [-35.0, 25.0, -10.0]]):
        ray = point - source
        hit = source + ray * ((corner - source) @ normal / (ray @ normal)) - corner
        pixel = np.array([hit @ across, hit @ along]) / 0.58
        assert np.allclose(view.project(BASE.apply(point)), pixel, atol=1e-6)


def test_sag_repeats_and_is_nothing_where_the_drawing_holds() -> None:
    level, side = (bent(Position(a), DETECTOR, FLEX, None) for a in (0.0, 90.0))
    assert np.allclose(level.T_stand_from_carm.matrix, nominal_pose(Position(), DETECTOR.source_iso_mm).matrix)
    assert np.hypot(*(np.subtract(side.detector.principal_px, DETECTOR.principal_px))) * DETECTOR.pixel_mm > 3.0
    rng = np.random.default_rng(4)
    loose = Flex(scatter_mm=0.2)
    sources = [bent(Position(90.0), DETECTOR, loose, rng).T_stand_from_carm.translation_mm for _ in range(400)]
    assert np.std(sources, axis=0) == pytest.approx(0.2, rel=0.15)


def test_play_lets_the_c_lag_after_a_reversal_while_the_encoders_see_nothing() -> None:
    gantry = Gantry(DETECTOR, encoders=Encoders(0.0, (0.0, 0.0), 0.6))
    forth = gantry.moved(Position(30.0))
    assert forth.c.orbit_deg == pytest.approx(29.7)
    back = forth.moved(Position(29.8))
    assert back.c.orbit_deg == pytest.approx(29.7)
    assert back.moved(Position(20.0)).c.orbit_deg == pytest.approx(20.3)
    for state in (forth, back):
        assert state.encoders.read(state.drive) == state.drive
        assert np.allclose(state.nominal().matrix, nominal_pose(state.drive, DETECTOR.source_iso_mm).matrix)


def test_encoders_tell_steps_and_their_zeros_error() -> None:
    coarse = Encoders(0.5, (0.2, -0.1), 0.0)
    assert coarse.read(Position(10.1, 5.0)) == Position(10.5, 5.0)
    assert EXACT.read(Position(10.123, -5.456)) == Position(10.123, -5.456)
