"""The story of an insertion, judged with balls whose distances are known in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from navsrv.anatomy.case import Case
from navsrv.kernel.errors import InputError
from simulators.world.drift import choose_drift, story_for_case
from simulators.world.insertion import Needle, NeedlePlan, Story, rotation_along
from simulators.world.scene import Scene, TruthRecord, log_header, read_truth_log, truth_distances
from tests.simulators.conftest import ENTRY, NERVE, NERVE_RADIUS_MM, TARGET, VESSEL, MiniCase

Array = NDArray[np.float64]
BALLS = {"Nerve": (NERVE, NERVE_RADIUS_MM), "Vessel": (VESSEL, 6.0)}
NEEDLE = Needle()


class Balls:
    """Exact distances to balls."""

    def distance(self, point_mm: Array, names: tuple[str, ...] | None = None) -> Mapping[str, Array]:
        return {name: np.linalg.norm(point_mm - centre, axis=1) - radius for name, (centre, radius) in BALLS.items()}

    def shaft_distance(
        self, tip_mm: Array, hub_mm: Array, radius_mm: float, names: tuple[str, ...] | None = None
    ) -> Mapping[str, Array]:
        along = tip_mm - hub_mm
        result = {}
        for name, (centre, ball) in BALLS.items():
            at = np.clip(np.sum((centre - hub_mm) * along, axis=1) / np.sum(along**2, axis=1), 0.0, 1.0)
            result[name] = np.linalg.norm(hub_mm + at[:, None] * along - centre, axis=1) - ball - radius_mm
        return result


@pytest.fixture(scope="module")
def story(mini_case: MiniCase) -> Story:
    return story_for_case(Case.load(mini_case.folder), Balls(), NEEDLE, 11)


def sampled(story: Story, hz: float = 60.0) -> tuple[Array, Array, Array, list[str], NDArray[np.bool_]]:
    """Return times, tips, axes, phases and visibility of the whole story."""
    times = np.arange(-0.5, story.duration_s + 1.0, 1.0 / hz)
    moments = [story.at(float(t)) for t in times]
    tips = np.array([m.T_ct_from_tip.translation_mm for m in moments])
    axes = np.array([m.T_ct_from_tip.rotation[:, 2] for m in moments])
    return times, tips, axes, [m.phase for m in moments], np.array([m.visible for m in moments])


def clearance(tips: Array, axes: Array, name: str) -> Array:
    """Return the true clearance of tip or shaft to a ball."""
    shaft = Balls().shaft_distance(tips, tips - NEEDLE.length_mm * axes, NEEDLE.radius_mm)[name]
    return np.minimum(Balls().distance(tips)[name], shaft)


def test_the_drift_comes_within_five_millimetres_of_the_nerve_and_never_touches_anything(story: Story) -> None:
    _, tips, axes, phases, _ = sampled(story)
    assert story.drift.structure == "Nerve"
    nerve = clearance(tips, axes, "Nerve")
    assert 2.0 < nerve.min() < 5.0
    assert phases[int(np.argmin(nerve))] in ("drift", "closest", "withdraw")
    on_plan = np.isin(phases, ["advance", "occluded", "returned", "target"])
    assert nerve[on_plan].min() > 10.0
    assert clearance(tips, axes, "Vessel").min() > 30.0


def test_the_needle_moves_as_a_hand_moves_it(story: Story) -> None:
    times, tips, axes, phases, _ = sampled(story)
    speed = np.linalg.norm(np.diff(tips, axis=0), axis=1) / np.diff(times)
    assert speed.max() < 30.0
    drifting = np.array(phases[1:]) == "drift"
    assert 3.0 < np.median(speed[drifting]) < 5.0
    advancing = np.array(phases[1:]) == "advance"
    assert 4.5 < np.median(speed[advancing]) < 8.5
    turning = np.degrees(np.linalg.norm(np.diff(axes, axis=0), axis=1)) / np.diff(times)
    assert turning.max() < 15.0


def test_the_tremor_is_a_fifth_of_a_millimetre_and_the_same_for_the_same_seed(story: Story) -> None:
    still = Story(story.plan, story.drift, 11, tremor_rms_mm=0.0)
    times = np.arange(0.0, story.duration_s, 0.02)
    off = np.array([story.at(t).T_ct_from_tip.translation_mm - still.at(t).T_ct_from_tip.translation_mm for t in times])
    assert 0.1 < np.sqrt((off**2).sum(axis=1).mean()) < 0.3
    again = Story(story.plan, story.drift, 11)
    assert np.array_equal(again.at(7.3).T_ct_from_tip.matrix, story.at(7.3).T_ct_from_tip.matrix)


def test_the_story_hovers_loses_sight_returns_and_ends_at_the_target(story: Story) -> None:
    times, tips, axes, phases, visible = sampled(story)
    assert 38.0 < story.duration_s < 46.0
    height = np.linalg.norm(tips[0] - ENTRY)
    assert 60.0 < height < 80.0
    order = [p for n, p in enumerate(phases) if n == 0 or p != phases[n - 1]]
    assert order[:6] == ["hover", "approach", "entry", "advance", "drift", "closest"]
    assert order[-2:] == ["target", "finished"]
    hidden = times[~visible]
    assert hidden[-1] - hidden[0] == pytest.approx(2.0, abs=0.05)
    assert phases.index("drift") < int(np.flatnonzero(~visible)[0]) < phases.index("target")
    assert np.linalg.norm(tips[-1] - TARGET) < 1.0
    assert axes[-1] @ (TARGET - ENTRY) / np.linalg.norm(TARGET - ENTRY) > 0.999


def test_a_hand_with_a_clock_of_its_own_does_not_jump_when_the_insertion_begins(story: Story) -> None:
    before = story.at(0.0, 123.4).T_ct_from_tip.translation_mm
    after = story.at(0.001, 123.401).T_ct_from_tip.translation_mm
    assert np.linalg.norm(after - before) < 0.02
    assert np.linalg.norm(story.at(0.0, 50.0).T_ct_from_tip.translation_mm - before) > 0.02


def test_the_tool_frame_is_right_handed_with_z_from_hub_to_tip() -> None:
    axis = np.array([0.3, -0.9, 0.1]) / np.linalg.norm([0.3, -0.9, 0.1])
    rotation = rotation_along(axis, 0.7)
    assert np.allclose(rotation[:, 2], axis)
    assert np.allclose(rotation.T @ rotation, np.eye(3))
    assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_a_plan_without_anything_critical_in_reach_is_refused_with_the_distances() -> None:
    far = np.array([[300.0, 0.0, 0.0], [301.0, 0.0, 0.0]])
    plan = NeedlePlan(ENTRY, TARGET)

    def clear(tips: Array, hubs: Array) -> Mapping[str, Array]:
        return {"Far": np.linalg.norm(tips - far[0], axis=1)}

    with pytest.raises(InputError, match=r"no critical structure .*Far \d+ mm"):
        choose_drift(plan, NEEDLE, {"Far": far}, clear)
    with pytest.raises(InputError, match=r"depth 5\.0 mm; expected 20"):
        NeedlePlan(ENTRY, ENTRY - np.array([0.0, 5.0, 0.0]))


def test_the_truth_of_a_log_is_that_of_its_tips_and_shafts(story: Story, tmp_path: Path) -> None:
    """A hub on the wrong side of the tip, or a radius forgotten, shows as a shaft that is too far away."""
    scene = Scene.from_seed(1, TARGET)
    poses = [story.at(t).T_ct_from_tip for t in (20.0, 25.0)]
    records = [TruthRecord(n, n, "x", True, True, p.translation_mm, p.rotation[:, 2]) for n, p in enumerate(poses)]
    path = tmp_path / "truth.jsonl"
    path.write_text("\n".join([log_header(scene, 60.0), *(r.to_json() for r in records)]))
    found = truth_distances(read_truth_log(path), Balls(), NEEDLE.radius_mm, NEEDLE.length_mm)
    for n, pose in enumerate(poses):
        along = np.stack([pose.apply([0.0, 0.0, -z]) for z in np.linspace(0.0, NEEDLE.length_mm, 3001)])
        for name, (centre, radius) in BALLS.items():
            away = np.linalg.norm(along - centre, axis=1) - radius
            assert found[name].tip_mm[n] == pytest.approx(away[0], abs=1e-5)
            assert found[name].shaft_mm[n] == pytest.approx(away.min() - NEEDLE.radius_mm, abs=1e-3)
