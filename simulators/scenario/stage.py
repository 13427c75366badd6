"""Owns the world of a scenario and what its tracker would send, exposure by exposure, before any fault."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy.builtin import ensure_case
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array
from navsrv.pipeline.setup import ToolSetup
from simulators.campaign.insertion import covariance_about
from simulators.composition import Composition
from simulators.packets import encode_poses
from simulators.scenario.phantom import phantom_case
from simulators.scenario.spec import NeedleStory, Scenario
from simulators.world.batches import rigid
from simulators.world.insertion import NeedlePlan
from simulators.world.markers import Jittered
from simulators.world.operator import Excursion, Hand, Insertion
from simulators.world.patient import REFERENCE_BODY, Patient, Respiration, Shift
from simulators.world.route import Route, stay
from simulators.world.scene import Scene, Stream
from simulators.world.solids import TubeStructures
from simulators.world.tremor import Tremor
from simulators.world.truth import Truth

SPARE_S: Final = 2.0
"""The tracker goes on a little longer than the story."""
SEARCH: Final = 200

Times = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A scenario's world over its exposures, at times from the start of the story.

    Attributes
    ----------
    exposed_s : (N,)
    poses : dict
        ``T_tracker_from_tool`` (N, 4, 4) as measured, by transform name.
    seen : dict
        (N,) by transform name.
    tips_ct_mm, hubs_ct_mm : (N, 3)
        In the CT of the bone: where the needle truly is in the patient.
    clearance_mm : (N, S)
    T_ct_from_ref : (4, 4)
        The registration that the server is given.
    covariance : (6, 6)
    """

    scenario: Scenario
    composition: Composition
    scene: Scene
    structures: TubeStructures
    exposed_s: Array
    poses: dict[str, Array]
    seen: dict[str, NDArray[np.bool_]]
    tips_ct_mm: Array
    hubs_ct_mm: Array
    clearance_mm: Array
    T_ct_from_ref: Array
    covariance: Array

    def messages(self, stamps_ns: Times) -> list[list[bytes]]:
        """Return the messages of each exposure, stamped; a tool that is not seen says so."""
        columns = []
        for name, poses in self.poses.items():
            ok = encode_poses(name, poses, stamps_ns)
            hidden = encode_poses(name, np.tile(np.eye(4), (len(poses), 1, 1)), stamps_ns, "OUT_OF_VIEW")
            seen = self.seen[name].tolist()
            columns.append([(ok if s else hidden)[i].tobytes() for i, s in enumerate(seen)])
        return [list(row) for row in zip(*columns, strict=True)]


def case_folder(name: str) -> Path:
    """Return the folder of a scenario's case: the phantom, a built-in, or a folder."""
    return phantom_case() if name == "phantom" else ensure_case(name)


def make_stage(scenario: Scenario, folder: Path) -> Stage:
    """Return the world of a scenario; ``folder`` is where its file lies, for the configuration named there.

    Raises
    ------
    InputError
        The case has no plan, the room no reference, or the needle cannot be led where the story wants it.
    """
    composition = Composition.load(folder / scenario.config, case_folder(scenario.case))
    setup, case = composition.setup, composition.case
    if case.plan is None or setup.reference is None:
        raise InputError(f"{case.folder}: a scenario needs a case with a plan, and a room with a reference")
    plan = NeedlePlan(case.plan.entry_ct_mm, case.plan.target_ct_mm)
    names = tuple(s.name for s in setup.structures if s.kind == "critical")
    structures = TubeStructures.of(Truth.from_case(case.folder), names)
    scene = Scene.from_seed(scenario.seed, plan.target_ct_mm)
    tool = setup.tools[0]
    period_s = 1.0 / scenario.tracker.rate_hz
    t_s: Array = np.arange(0.0, scenario.duration_s + SPARE_S, period_s)
    truth = _way(scenario, plan, structures, tool).sample(t_s)
    rotation = truth.T_ct_from_tool[:, :3, :3]
    tips = truth.T_ct_from_tool[:, :3, 3]
    hubs = tips - tool.length_mm * rotation[:, :, 2]
    patient = _patient(scenario, scene, plan)
    T_tracker_from_bone = patient.T_world_from_bone("bone", t_s)
    bodies = _bodies(tool, rotation, tips)
    reference = patient.T_world_from_reference(t_s)
    noise = Jittered(scenario.seed, scenario.tracker.noise_mm, np.radians(scenario.tracker.noise_deg))
    frames = np.arange(len(t_s), dtype=np.int64)
    true = {tool.transform: T_tracker_from_bone @ bodies, setup.reference.transform: reference}
    poses = {name: noise.observe(name, frames, matrices).poses for name, matrices in true.items()}
    shaft = structures.shaft_distance(tips, hubs, tool.radius_mm)
    clearance = np.minimum(shaft, structures.tip_distance(tips))
    T_ct_from_ref, covariance = _registration(scenario, scene, plan)
    seen = {name: _seen(scenario, name, t_s) for name in poses}
    return Stage(
        scenario, composition, scene, structures, t_s, poses, seen, tips, hubs, clearance, T_ct_from_ref, covariance
    )


def _way(scenario: Scenario, plan: NeedlePlan, structures: TubeStructures, tool: ToolSetup) -> Insertion:
    needle = scenario.needle
    hand = Hand(
        advance_mm_s=needle.speed_mm_s,
        excursion_mm_s=needle.speed_mm_s,
        tremor_mm=needle.tremor_mm,
        aim_deg=0.0,
        pauses=0,
        final_mm=0.0,
    )
    if needle.way == "hold":
        route = Route([stay("hold", plan.point(needle.depth_mm), scenario.duration_s + SPARE_S)])
        tip, hub = (Tremor.from_seed(scenario.seed, needle.tremor_mm, 0.2, Stream.HAND, part) for part in (1, 2))
        return Insertion(plan, route, (tip, hub), length_mm=tool.length_mm)
    excursions = []
    if needle.towards is not None:
        closest = _closest(needle, plan, structures, tool)
        excursions.append(Excursion(needle.leave_depth_mm, closest))
    return Insertion.from_seed(scenario.seed, plan, hand, excursions=excursions, length_mm=tool.length_mm)


def _closest(needle: NeedleStory, plan: NeedlePlan, structures: TubeStructures, tool: ToolSetup) -> Array:
    """Return the tip's place on the straight way to the nearest ball of the structure where the clearance is wanted."""
    if needle.towards not in structures.names:
        listed = ", ".join(structures.names)
        raise InputError(f"needle.towards: {needle.towards!r} is not critical in this case; expected one of {listed}")
    index = structures.names.index(needle.towards)
    chains = structures.chains[structures.first[index] : structures.first[index + 1]]
    leave = plan.point(needle.leave_depth_mm)
    along = np.linspace(0.0, 1.0, 21)[:, None, None]
    centres = (chains[:, 0:3] + along * (chains[:, 3:6] - chains[:, 0:3])).reshape(-1, 3)
    way = np.linspace(leave, centres[np.linalg.norm(centres - leave, axis=1).argmin()], SEARCH)
    hubs = way - tool.length_mm * plan.axis_at(way)
    clearance = np.minimum(structures.shaft_distance(way, hubs, tool.radius_mm), structures.tip_distance(way))[:, index]
    below = np.flatnonzero(clearance < needle.closest_mm)
    if not len(below):
        raise InputError(
            f"needle.closest_mm: {needle.towards} is not approached to {needle.closest_mm:g} mm from there"
        )
    result: Array = way[below[0]]
    return result


def _bodies(tool: ToolSetup, rotation: Array, tips: Array) -> Array:
    """Return ``T_ct_from_body`` (N, 4, 4) of the tracked body; the calibration of a scenario's needle is right."""
    if tool.axis[2] < 1.0 - 1e-9:
        raise InputError(f"tools.{tool.name}.axis: {tool.axis.tolist()}; scenarios expect +z of the body")
    return rigid(rotation, tips - rotation @ tool.tip_mm)


def _patient(scenario: Scenario, scene: Scene, plan: NeedlePlan) -> Patient:
    story = scenario.patient
    motions: list[Respiration | Shift] = []
    if story.breathing_mm > 0.0:
        motions.append(Respiration(story.breathing_mm, seed=scenario.seed, irregularity=0.1))
    for shift in story.shifts:
        move, turn = (tuple(v) for v in (shift.move_mm, shift.turn_deg))
        body = {"body": REFERENCE_BODY} if shift.body == "reference" else {}
        motions.append(Shift(shift.at_s, move, turn, **body))  # type: ignore[arg-type]
    return Patient.of_scene(scene, motions, centre_ct_mm=plan.target_ct_mm)


def _registration(scenario: Scenario, scene: Scene, plan: NeedlePlan) -> tuple[Array, Array]:
    """Return the ``T_ct_from_ref`` that the server is given, off by ``registration_mm``, and its covariance."""
    rng = np.random.default_rng([scenario.seed, 0x5C])
    shift = rng.normal(size=3)
    error = np.eye(4)
    error[:3, 3] = scenario.registration_mm * shift / np.linalg.norm(shift)
    sigma_mm = max(scenario.registration_mm, 0.1) / np.sqrt(3.0)
    return error @ scene.T_ct_from_ref.matrix, covariance_about(plan.target_ct_mm, np.radians(0.15), sigma_mm)


def _seen(scenario: Scenario, transform: str, t_s: Array) -> NDArray[np.bool_]:
    seen = np.ones(len(t_s), dtype=np.bool_)
    for hidden in scenario.hidden:
        if transform.startswith(f"{hidden.tool}To"):
            seen &= ~((t_s >= hidden.at_s) & (t_s < hidden.at_s + hidden.for_s))
    return seen
