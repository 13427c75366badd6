"""Owns what happens in front of a simulated tracker: which tools there are, and where each truly is at any time.

``Circling`` needs nothing but names; ``Procedure`` is the room of a case, with the patient's motion and the story of an
insertion.  Truth only: what a tracker makes of it is the watcher's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array, rotation_from_vector
from simulators.world.batches import about, rigid, rotations
from simulators.world.bending import Bending
from simulators.world.insertion import Story
from simulators.world.markers import NEEDLE_MARKERS, REFERENCE_MARKERS, MarkerBody
from simulators.world.patient import REFERENCE_BODY, BodyMotion, Patient, Shift, Vector
from simulators.world.scene import Scene
from simulators.world.sight import Flags
from simulators.world.tremor import Tremor

NEEDLE: Final = "Needle"
REFERENCE: Final = "Reference"
CENTRE_MM: Final = (50.0, -30.0, -1500.0)
"""What everything circles about where there is no case; an optical camera's middle."""
MAGNETIC_CENTRE_MM: Final = (0.0, 0.0, -280.0)
ORBIT_MM: Final = 80.0
ORBIT_S: Final = 6.0
FACING: Final = np.array([1.0, 0.0, 0.0])
"""The side of the standard bodies that their markers stand on."""


@dataclass(frozen=True, slots=True, eq=False)
class Truths:
    """What is true at N times.

    Attributes
    ----------
    poses : name to (N, 4, 4)
        ``T_tracker_from_tool``.
    visible : name to (N,) bool
        Whether the story lets it be seen; what stands in the way for other reasons is not in it.
    phases : N texts
    tip_ct_mm, axis_ct : (N, 3) or None
        Of the needle in the patient, bent if it bends; None without a patient.
    """

    poses: Mapping[str, Array]
    visible: Mapping[str, Flags]
    phases: tuple[str, ...]
    tip_ct_mm: Array | None = None
    axis_ct: Array | None = None


class Stage(Protocol):
    """What happens in front of a tracker."""

    @property
    def tools(self) -> tuple[str, ...]:
        """Their names, in the order in which they are sent."""
        ...

    @property
    def bodies(self) -> Mapping[str, MarkerBody]:
        """What the tracker sees of each."""
        ...

    @property
    def story_s(self) -> float:
        """How long an insertion lasts; 0 where there is none."""
        ...

    def at(self, running_s: Array, since_insert_s: Array, wall_s: Array) -> Truths:
        """Return the truth at N times: since the start, since the insertion began, and of the wall clock."""
        ...

    def push(self, body: str, wall_s: float, move_mm: Vector) -> None:
        """Let a body move once and stay; InputError when there is nothing to push."""
        ...


class Circling:
    """The first tool circles about and turns, the second lies still, the others circle beside them."""

    def __init__(self, tools: tuple[str, ...], centre_mm: Vector = CENTRE_MM, size: float = 1.0) -> None:
        self.tools = tools
        self.bodies = {name: REFERENCE_MARKERS if name == REFERENCE else NEEDLE_MARKERS for name in tools}
        self.story_s = 0.0
        self._centre, self._size = np.array(centre_mm), size

    def at(self, running_s: Array, since_insert_s: Array, wall_s: Array) -> Truths:
        """Return the truth at N times."""
        count = len(running_s)
        poses = {name: self._pose(n, running_s) for n, name in enumerate(self.tools)}
        return Truths(poses, {name: np.ones(count, np.bool_) for name in self.tools}, ("",) * count)

    def push(self, body: str, wall_s: float, move_mm: Vector) -> None:
        """Refuse: nobody lies there."""
        raise InputError("without a case there is no patient to push; expected --case CASE")

    def _pose(self, n: int, t_s: Array) -> Array:
        if n == 1:
            still = rotation_from_vector([0.1, -0.4, 0.2])
            place = self._centre + self._size * np.array([-150.0, 60.0, 40.0])
            return np.broadcast_to(rigid(still, place), (len(t_s), 4, 4))
        angle = 2.0 * np.pi * t_s / (ORBIT_S * (1.0 + 0.3 * n)) + 0.9 * n
        circle = np.stack([np.cos(angle), np.sin(angle), np.full_like(angle, 0.2)], axis=1)
        aside = np.array([0.0, -70.0, 50.0]) * (n > 0) * math.sqrt(n)
        place = self._centre + self._size * (ORBIT_MM * circle + aside)
        turn = np.remainder(angle + np.pi, 2.0 * np.pi) - np.pi
        return rigid(rotations(turn[:, None] * np.array([0.3, 0.2, 1.0])), place)


class Procedure:
    """The room of a case: needle and reference as the story has them, other tools held near by."""

    def __init__(
        self,
        scene: Scene,
        story: Story,
        patient: Patient | None = None,
        tools: tuple[str, ...] = (NEEDLE, REFERENCE),
        bending: Bending | None = None,
    ) -> None:
        for name in (NEEDLE, REFERENCE):
            if name not in tools:
                raise InputError(f"tools: {name} is missing; a case needs {NEEDLE} and {REFERENCE}")
        self.scene, self.story, self.tools = scene, story, tools
        self.patient = Patient.of_scene(scene, centre_ct_mm=story.plan.target_ct_mm) if patient is None else patient
        self.story_s = story.duration_s
        self._bending = bending
        self._sway = {name: Tremor.from_seed(scene.seed, 0.1, 15.0, part=n) for n, name in enumerate(tools)}
        truths = self.at(np.zeros(1), np.zeros(1), np.zeros(1))
        self.bodies = {name: _mounted(name, truths.poses[name][0]) for name in tools}

    def at(self, running_s: Array, since_insert_s: Array, wall_s: Array) -> Truths:
        """Return the truth at N times."""
        moments = self.story.sample(since_insert_s, running_s)
        poses_ct = moments.T_ct_from_tip
        tip, axis = poses_ct[:, :3, 3], poses_ct[:, :3, 2]
        if self._bending is not None:
            plan = self.story.plan
            depth = (tip - plan.entry_ct_mm) @ plan.direction
            bent, slope = self._bending.shape(poses_ct[:, :3, :3], depth, np.ones(1))
            tip, axis = tip + bent[:, 0], axis + slope[:, 0]
            axis = axis / np.linalg.norm(axis, axis=1, keepdims=True)
        T_tracker_from_ct = self.patient.T_world_from_bone(self.patient.bones[0], wall_s)
        seen = np.ones(len(running_s), np.bool_)
        poses = {NEEDLE: T_tracker_from_ct @ poses_ct, REFERENCE: self.patient.T_world_from_reference(wall_s)}
        poses |= {name: self._held(n, name, running_s) for n, name in enumerate(self.tools) if name not in poses}
        visible = {name: moments.visible if name == NEEDLE else seen for name in self.tools}
        phases = tuple(moments.phases[n] for n in moments.leg)
        return Truths({name: poses[name] for name in self.tools}, visible, phases, tip, axis)

    def push(self, body: str, wall_s: float, move_mm: Vector) -> None:
        """Let the patient, a bone or the reference move once and stay."""
        motions: tuple[BodyMotion, ...] = (*self.patient.motions, Shift(wall_s, move_mm, body=body))
        p = self.patient
        self.patient = Patient(p.T_world_from_ct, p.T_ct_from_ref, p.bones, motions, p.centre_ct_mm)

    def _held(self, n: int, name: str, t_s: Array) -> Array:
        """Return a tool in a hand that hovers over the back, beside the needle."""
        above = self.story.plan.entry_ct_mm + np.array([60.0 * (n - 1), 80.0, 40.0])
        rest = self.scene.T_tracker_from_ct
        tilt = rest.rotation @ rotation_from_vector([1.7, 0.2 * n, 0.0])
        place = rest.apply(above)
        sway = about(0.01 * self._sway[name].at(t_s), place, self._sway[name].at(t_s))
        result: Array = sway @ rigid(tilt, place)
        return result


def knocked(body: str) -> str:
    """Return the patient's name of a body that an order names: ``Reference`` is the reference against its bone."""
    return REFERENCE_BODY if body == REFERENCE else body


def _mounted(name: str, T_tracker_from_tool: Array) -> MarkerBody:
    """Return a tool's body, turned on the tool so that its markers face the camera as staff would have it.

    A reference is turned anyhow; the handle of any other tool only about its shaft.
    """
    to_camera = -T_tracker_from_tool[:3, :3].T @ T_tracker_from_tool[:3, 3]
    to_camera /= np.linalg.norm(to_camera)
    standard = REFERENCE_MARKERS if name == REFERENCE else NEEDLE_MARKERS
    body = MarkerBody(standard.markers_mm, np.broadcast_to(FACING, standard.markers_mm.shape))
    if name == REFERENCE:
        y = np.cross([0.0, 0.0, 1.0], to_camera)
        y /= np.linalg.norm(y)
        return body.turned(np.stack([to_camera, y, np.cross(to_camera, y)], axis=1))
    return body.turned(rotation_from_vector([0.0, 0.0, math.atan2(to_camera[1], to_camera[0])]))
