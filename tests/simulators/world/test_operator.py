"""The operator's hand and needle: spectra, beams integrated step by step, and where insertions go."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from navsrv.kernel.errors import InputError
from simulators.world.batches import rotations_along
from simulators.world.bending import Bending
from simulators.world.insertion import NeedlePlan
from simulators.world.operator import Excursion, Hand, Insertion
from simulators.world.tremor import Tremor
from tests.simulators.conftest import ENTRY, TARGET

PLAN = NeedlePlan(ENTRY, TARGET)
DEPTH = float(np.linalg.norm(TARGET - ENTRY))
STEADY = Hand(tremor_mm=0.0, sway_mm=0.0, aim_deg=0.0, pauses=0, final_mm=0.0)


def order(phases: list[str]) -> list[str]:
    return [p for n, p in enumerate(phases) if n == 0 or p != phases[n - 1]]


def test_tremor_has_its_size_in_8_to_12_hz_and_sway_below() -> None:
    rate, t = 200.0, np.arange(0.0, 100.0, 1.0 / 200.0)
    move = Tremor.from_seed(3, 0.08, 0.3).at(t)
    power = (np.abs(np.fft.rfft(move, axis=0)) ** 2).sum(axis=1) * 2.0 / len(t) ** 2
    hz = np.fft.rfftfreq(len(t), 1.0 / rate)
    fast, slow = (hz > 7.5) & (hz < 12.5), hz < 2.0
    assert np.sqrt(power[fast].sum()) == pytest.approx(0.08, rel=0.05)
    assert np.sqrt(power[slow].sum()) == pytest.approx(0.3, rel=0.1)
    assert power[~fast & ~slow].sum() < 1e-3 * power.sum()


def test_a_needle_bends_as_a_beam_that_is_integrated_along_its_length() -> None:
    bending = Bending(20, (0.05, 0.0, 0.0), full_load_depth_mm=50.0)
    rotation = rotations_along(np.array([[0.0, -1.0, 0.0]]))
    stiffness = 193_000.0 * np.pi * 0.908**4 / 64.0

    def beam(x: float, y: np.ndarray) -> list[float]:
        return [float(y[1]), 0.05 * (80.0 - x) / stiffness]

    solved = solve_ivp(beam, (0.0, 80.0), [0.0, 0.0], t_eval=[20.0, 50.0, 80.0], rtol=1e-9, atol=1e-12).y
    bent, slope = bending.shape(rotation, np.array([80.0]), np.array([20.0, 50.0, 80.0]) / 80.0)
    assert solved[0, 2] > 1.0
    # The limit for large deflections takes a little of every one.
    assert bent[0, :, 0] == pytest.approx(solved[0], rel=0.005)
    assert slope[0, :, 0] == pytest.approx(solved[1], rel=0.005)
    assert np.abs(bent[0, :, 1:]).max() < 1e-12
    assert np.linalg.norm(Bending(11, (0.05, 0.0, 0.0)).shape(rotation, np.array([80.0]), np.ones(1))[0]) < 0.02
    shallow = bending.shape(rotation, np.array([-5.0]), np.ones(1))[0]
    assert np.abs(shallow).max() == 0.0


def test_a_bevel_pulls_to_its_side_and_turns_with_the_needle_and_no_needle_bends_beyond_its_theory() -> None:
    for roll in (0.0, 1.0):
        rotation = rotations_along(np.array([[0.0, -1.0, 0.0]]), roll)
        bent, _ = Bending(22, bevel=1.0).shape(rotation, np.array([100.0]), np.ones(1))
        assert bent[0, 0] @ rotation[0, :, 0] == pytest.approx(5.0, rel=0.02)
        assert abs(bent[0, 0] @ rotation[0, :, 1]) < 1e-9
    far, _ = Bending(22, (0.0, 0.0, 50.0)).shape(rotation, np.array([100.0]), np.ones(1))
    assert 25.0 < np.linalg.norm(far) < 30.0
    with pytest.raises(InputError, match="gauge 9: expected one of 8, 10"):
        Bending(9)


def test_a_steady_hand_goes_straight_to_the_target() -> None:
    insertion = Insertion.from_seed(1, PLAN, STEADY)
    truth = insertion.sample(np.linspace(-1.0, insertion.duration_s + 1.0, 400))
    off = truth.tip_ct_mm - ENTRY
    across = off - np.outer(off @ PLAN.direction, PLAN.direction)
    assert np.abs(across).max() < 1e-9
    assert truth.tip_ct_mm[-1] == pytest.approx(TARGET)
    assert truth.axis_ct == pytest.approx(np.tile(PLAN.direction, (400, 1)))
    assert order(truth.phase) == ["hover", "approach", "entry", "advance", "target", "finished"]
    assert truth.depth_mm[-1] == pytest.approx(DEPTH)


def test_an_operator_pauses_redirects_and_ends_near_the_target() -> None:
    ends, longest = [], 0.0
    for seed in range(12):
        insertion = Insertion.from_seed(seed, PLAN, Hand(redirections=2, pauses=2))
        t = np.arange(0.0, insertion.duration_s + 1.0, 1.0 / 60.0)
        truth = insertion.sample(t)
        phases = order(truth.phase)
        assert (phases.count("redirect"), phases.count("pause")) == (2, 2)
        before = truth.tip_ct_mm[[p == "redirect" for p in truth.phase]][0]
        assert (before - ENTRY) @ PLAN.direction < 0.5 * DEPTH
        ends.append(np.linalg.norm(truth.tip_ct_mm[-1] - TARGET))
        longest = max(longest, float(np.linalg.norm(np.diff(truth.tip_ct_mm, axis=0), axis=1).max()) * 60.0)
    assert 0.2 < np.mean(ends) < 1.0
    assert longest < 40.0


def test_an_excursion_reaches_its_place_and_comes_back() -> None:
    place = np.array([18.0, 45.0, -322.0])
    insertion = Insertion.from_seed(1, PLAN, STEADY, excursions=(Excursion(30.0, place),))
    truth = insertion.sample(np.arange(0.0, insertion.duration_s + 1.0, 0.01))
    assert np.linalg.norm(truth.tip_ct_mm - place, axis=1).min() < 1e-9
    assert truth.tip_ct_mm[-1] == pytest.approx(TARGET)


def test_the_bent_tip_is_the_end_of_the_bent_shaft_and_differs_from_what_the_hub_says() -> None:
    bending = Bending.from_seed(2, 20)
    insertion = Insertion.from_seed(2, PLAN, bending=bending)
    truth = insertion.sample(np.array([0.0, insertion.duration_s]))
    straight = truth.T_ct_from_tool[:, :3, 3]
    assert truth.tip_ct_mm[0] == pytest.approx(straight[0], abs=1e-12)
    off = truth.tip_ct_mm[1] - straight[1]
    assert 0.3 < np.linalg.norm(off) < 15.0
    shaft = truth.shaft_ct_mm(301)
    assert shaft[:, -1] == pytest.approx(truth.tip_ct_mm)
    assert np.linalg.norm(shaft[:, 0] - straight, axis=1) == pytest.approx([150.0, 150.0])
    last = shaft[1, -1] - shaft[1, -2]
    assert last @ truth.axis_ct[1] / np.linalg.norm(last) > 0.99999


def test_one_time_alone_is_as_in_bulk_and_a_seed_is_itself_again() -> None:
    hand = Hand(redirections=1)
    a, b = (Insertion.from_seed(7, PLAN, hand, Bending.from_seed(7)) for _ in range(2))
    t = np.linspace(0.0, 40.0, 50)
    bulk = a.sample(t)
    for n in (0, 17, 49):
        assert np.array_equal(b.sample(t[n : n + 1]).tip_ct_mm[0], bulk.tip_ct_mm[n])
    assert not np.allclose(Insertion.from_seed(8, PLAN, hand).sample(t).tip_ct_mm, bulk.tip_ct_mm, atol=0.05)
