"""The patient's motion, against formulas written again here and against following single points."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from navsrv.kernel.errors import InputError
from simulators.world.patient import PATIENT, REFERENCE_BODY, Patient, Respiration, Shift, SlowDrift
from simulators.world.scene import Breathing, Scene

CENTRE = np.array([6.0, 14.0, -318.0])


def test_a_regular_breath_is_the_one_that_every_simulator_of_a_room_shares() -> None:
    scene = Scene.from_seed(3, CENTRE, Breathing(8.0, 3.7))
    patient = Patient.of_scene(scene, centre_ct_mm=CENTRE)
    t = 1.79e9 + np.linspace(0.0, 20.0, 41)
    shared = np.array([scene.T_tracker_from_ct_at(float(s)).matrix for s in t])
    assert np.abs(patient.T_world_from_bone("bone", t) - shared).max() < 1e-5
    assert np.abs(patient.T_bone_from_reference("bone", t) - scene.T_ct_from_ref.matrix).max() < 1e-6


def test_irregular_breaths_vary_as_much_as_said_in_length_and_depth() -> None:
    t = np.arange(0.0, 4000.0, 0.02)
    periods, tops = [], []
    for seed in range(5):
        rise = Respiration(1.0, 4.0, irregularity=0.15, seed=seed).rise(t)
        assert np.abs(np.diff(rise)).max() < 0.08
        low = rise < 0.3
        begins = np.flatnonzero(low[:-1] & ~low[1:])
        periods += (np.diff(begins) * 0.02).tolist()
        tops += [float(rise[a:b].max()) for a, b in pairwise(begins)]
    assert np.mean(periods) == pytest.approx(4.0, rel=0.03)
    assert 0.08 < np.std(periods) / 4.0 < 0.3
    assert np.mean(tops) == pytest.approx(1.0, rel=0.05)
    assert 0.08 < np.std(tops) < 0.25


def test_a_held_breath_stands_still_and_goes_on_from_there() -> None:
    free, held = Respiration(1.0, 4.0), Respiration(1.0, 4.0, holds=((10.0, 5.0),))
    t = np.linspace(0.0, 30.0, 601)
    assert np.array_equal(held.rise(t[t <= 10.0]), free.rise(t[t <= 10.0]))
    assert np.ptp(held.rise(t[(t >= 10.0) & (t <= 15.0)])) < 1e-12
    assert held.rise(t[t >= 15.0]) == pytest.approx(free.rise(t[t >= 15.0] - 5.0), abs=1e-9)


def test_each_body_moves_what_hangs_on_it_and_nothing_else() -> None:
    scene = Scene.from_seed(5, CENTRE)
    patient = Patient.of_scene(
        scene,
        (
            SlowDrift((0.0, -3.0, 0.0), begins_s=10.0, ends_s=70.0),
            Shift(20.0, (1.0, 0.0, 0.0), (0.0, 0.0, 10.0), body="ilium"),
            Shift(30.0, (0.0, 0.0, 4.0), (5.0, 0.0, 0.0), body=REFERENCE_BODY),
        ),
        ("sacrum", "ilium"),
        CENTRE,
    )
    point = np.array([20.0, 30.0, -300.0])

    def seen(bone: str, t_s: float) -> np.ndarray:
        return patient.T_ct_from_bone(bone, np.array([t_s]))[0] @ [*point, 1.0]

    down = np.array([0.0, -3.0, 0.0])
    levered = Rotation.from_euler("z", 10.0, degrees=True).apply(point - CENTRE) + CENTRE + [1.0, 0.0, 0.0]
    assert seen("sacrum", 5.0)[:3] == pytest.approx(point)
    assert seen("sacrum", 40.0)[:3] == pytest.approx(point + 0.5 * down)
    assert seen("sacrum", 500.0)[:3] == pytest.approx(point + down)
    assert seen("ilium", 19.9)[:3] == pytest.approx(seen("sacrum", 19.9)[:3])
    assert seen("ilium", 40.0)[:3] == pytest.approx(levered + 0.5 * down)

    rest = scene.T_ct_from_ref
    at_5, at_25, at_40 = (patient.T_bone_from_reference("sacrum", np.array([t]))[0] for t in (5.0, 25.0, 40.0))
    assert at_5 == pytest.approx(rest.matrix)
    assert at_25 == pytest.approx(rest.matrix)
    turned = Rotation.from_euler("x", 5.0, degrees=True).apply([10.0, 20.0, 30.0])
    knocked = rest.apply(turned + np.array([0.0, 0.0, 4.0]))
    assert (at_40 @ [10.0, 20.0, 30.0, 1.0])[:3] == pytest.approx(knocked)
    # For the other bone what was true before is wrong by how far that was levered.
    ilium = np.linalg.inv(patient.T_bone_from_reference("ilium", np.array([25.0]))[0])
    assert (rest.matrix @ ilium @ [*point, 1.0])[:3] == pytest.approx(levered)


def test_times_may_be_asked_for_one_by_one_and_in_any_order() -> None:
    motions = (
        Respiration(5.0, irregularity=0.2, seed=1, tilt_deg=2.0),
        Shift(3.0, (0.0, 1.0, 0.0), body=REFERENCE_BODY),
    )
    patient = Patient.of_scene(Scene.from_seed(1, CENTRE), motions, centre_ct_mm=CENTRE)
    t = np.array([9.0, 1.0, 3.1, 100.0])
    bulk = patient.T_world_from_reference(t)
    for n, s in enumerate(t):
        assert patient.reference_at(float(s)).matrix == pytest.approx(bulk[n], abs=1e-12)
    assert patient.bone_at("bone", 9.0).matrix == pytest.approx(patient.T_world_from_bone("bone", t)[0], abs=1e-12)


def test_a_body_that_is_not_there_is_refused_with_those_that_are() -> None:
    scene = Scene.from_seed(1, CENTRE)
    with pytest.raises(InputError, match=f"'femur'; expected one of {PATIENT}, {REFERENCE_BODY}, bone"):
        Patient.of_scene(scene, (Shift(1.0, body="femur"),))
    with pytest.raises(InputError, match="no bone 'femur'"):
        Patient.of_scene(scene).T_ct_from_bone("femur", np.zeros(1))
