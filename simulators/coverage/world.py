"""Owns a room that errs as rooms err: tails heavier than a normal distribution's, biases, one cause of many errors.

Nothing here knows what the server assumes.  Chains are written as products of 4x4 matrices, needles as beams that are
integrated, noise as Student's t and as smooth fields over the volume; what is drawn once per trial stays for all of it.
Refuses the code that it judges: no import from guidance, pipeline, registration or calibration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.spatial.transform import Rotation

from navsrv.kernel.frames import Array

DEPTH_FACTOR: Final = 1.6
"""A camera sees depth worse than the two other axes."""
FIELD_WAVE_MM: Final = 350.0
"""How fast what the tracker gets wrong by position changes."""
DEGREES_OF_FREEDOM: Final = 4.0
"""Of Student's t: one draw in 500 is beyond four of its own standard deviations, one in 16,000 if it were normal."""


@dataclass(frozen=True, slots=True)
class Errors:
    """How wrong the room is: standard deviations of what is drawn, unless it says otherwise.

    Attributes
    ----------
    jitter_mm, jitter_deg : float
        Of one pose, each axis.
    field_mm, field_deg : float
        Of what the tracker gets wrong by position, the same whenever it is asked there.
    seat_mm : float
        How far the seat of a pivot calibration gives way during the recording.
    picked_mm : tuple
        Of a landmark in the CT, by axis: slices are thicker than pixels.
    touched_mm, knocked_mm : float
        Of touching a landmark, each axis; and how far off one of them is.
    push_n : float
        Lateral load at the needle's tip, each axis.
    speed_mm_s : float
        The fastest approach; retreats are half as fast.
    late_s, late_spread_s : float
        From a pose to its receipt, where 14 ms are declared.
    breath_mm : float
        Amplitude of the patient's motion in the tracker, each axis.
    torn : float
        How often the reference's message of the last pose comes too late.
    small_mm, segmented_mm : float
        By how much segmentations are too small on the whole, and how they vary.
    following_mm, free_mm : float
        Motion of tissue that follows a bone, and of tissue that does not, each axis.
    """

    jitter_mm: float = 0.10
    jitter_deg: float = 0.02
    field_mm: float = 0.12
    field_deg: float = 0.015
    seat_mm: float = 0.05
    picked_mm: tuple[float, float, float] = (0.3, 0.3, 0.6)
    touched_mm: float = 0.4
    knocked_mm: float = 1.5
    push_n: float = 0.05
    speed_mm_s: float = 30.0
    late_s: float = 0.016
    late_spread_s: float = 0.004
    breath_mm: float = 1.5
    torn: float = 0.25
    small_mm: float = 0.1
    segmented_mm: float = 0.28
    following_mm: float = 0.35
    free_mm: float = 1.8


def heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return draws of unit variance with heavy tails."""
    spread = np.sqrt(DEGREES_OF_FREEDOM / (DEGREES_OF_FREEDOM - 2.0))
    result: Array = rng.standard_t(DEGREES_OF_FREEDOM, shape) / spread
    return result


def rigid(rotation: Array, translation_mm: Array) -> Array:
    """Return the (4, 4) of a rotation and a translation."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, translation_mm
    return matrix


def turned(vector_rad: Array) -> Array:
    """Return the (3, 3) of a rotation vector."""
    result: Array = Rotation.from_rotvec(vector_rad).as_matrix()
    return result


class Tracker:
    """A tracker with jitter and with a distortion of its volume, both of one trial."""

    def __init__(self, rng: np.random.Generator, errors: Errors) -> None:
        self._rng, self._errors = rng, errors
        self._wave = rng.normal(size=(6, 4, 3)) / FIELD_WAVE_MM * 2.0 * np.pi / np.sqrt(3.0)
        self._phase = rng.uniform(0.0, 2.0 * np.pi, (6, 4))
        self._jitter = np.array([1.0, 1.0, DEPTH_FACTOR]) * errors.jitter_mm / np.sqrt((2.0 + DEPTH_FACTOR**2) / 3.0)

    def sees(self, true_poses: Array) -> Array:
        """Return poses (N, 4, 4) as they are measured: wrong by position, and noisy."""
        at = true_poses[:, :3, 3]
        field = np.sin(np.einsum("awk,nk->naw", self._wave, at) + self._phase).sum(axis=2) / np.sqrt(2.0)
        count = len(true_poses)
        e = self._errors
        angles = np.radians(e.jitter_deg * heavy(self._rng, (count, 3)) + e.field_deg * field[:, 3:])
        seen = true_poses.copy()
        seen[:, :3, :3] = Rotation.from_rotvec(angles).as_matrix() @ true_poses[:, :3, :3]
        seen[:, :3, 3] += self._jitter * heavy(self._rng, (count, 3)) + e.field_mm * field[:, :3]
        return seen


@dataclass(frozen=True, slots=True, eq=False)
class Needle:
    """An instrument as it is.

    Attributes
    ----------
    tip_tool_mm, axis_tool : (3,)
        Where tip and axis are in the tracked body, unbent.
    diameter_mm, length_mm : float
    push_n : (3,)
        Lateral load at the tip, CT axes; what of it is along the needle does not bend it.
    """

    tip_tool_mm: Array
    axis_tool: Array
    diameter_mm: float
    length_mm: float
    push_n: Array

    def curve(self, tip_ct_mm: Array, axis_ct: Array, along_mm: Array) -> Array:
        """Return points (P, 3) of the bent needle, ``along_mm`` (P,) behind the tip; tip and axis are the unbent.

        A beam clamped at the hub, solid with its stylet in: ``y'' = M / (E I)``, integrated in small steps.
        """
        stiffness = 193_000.0 * np.pi / 64.0 * self.diameter_mm**4
        push = self.push_n - (self.push_n @ axis_ct) * axis_ct
        x = np.linspace(0.0, self.length_mm, 400)
        step = x[1] - x[0]
        slope = np.concatenate([[0.0], np.cumsum(self.length_mm - 0.5 * (x[1:] + x[:-1]))]) * step / stiffness
        shape = np.concatenate([[0.0], np.cumsum(0.5 * (slope[1:] + slope[:-1]))]) * step
        share = np.interp(self.length_mm - along_mm, x, shape)
        result: Array = tip_ct_mm - along_mm[:, None] * axis_ct + share[:, None] * push
        return result


def pivot_recording(rng: np.random.Generator, tracker: Tracker, needle: Needle, poses: int, seat_mm: float) -> Array:
    """Return poses (N, 4, 4) of the tool seen while it was swung about its resting tip."""
    seat = np.array([20.0, -40.0, -1400.0]) + rng.normal(0.0, 60.0, 3)
    away = np.linspace(0.0, 6.0 * np.pi, poses)
    tilt = np.radians(rng.uniform(18.0, 32.0)) * np.sin(away / 4.7 + rng.uniform(0.0, 6.0))
    swing = np.stack([tilt * np.cos(away), tilt * np.sin(away), 0.2 * np.sin(away / 3.0)], axis=1)
    rotations = Rotation.from_rotvec(swing).as_matrix() @ turned(rng.normal(0.0, 0.5, 3))
    slip = seat_mm * np.cumsum(rng.normal(size=(poses, 3)), axis=0) / np.sqrt(poses)
    true = np.tile(np.eye(4), (poses, 1, 1))
    true[:, :3, :3] = rotations
    true[:, :3, 3] = seat + slip - rotations @ needle.tip_tool_mm
    return tracker.sees(true)


def spin_recording(rng: np.random.Generator, tracker: Tracker, needle: Needle, poses: int) -> Array:
    """Return poses (N, 4, 4) of the tool seen while it was turned about its shaft in a guide with a little play."""
    turn = np.linspace(0.0, np.radians(rng.uniform(120.0, 300.0)), poses)
    start = turned(rng.normal(0.0, 0.5, 3))
    spin = Rotation.from_rotvec(turn[:, None] * needle.axis_tool).as_matrix()
    play = np.radians(0.05) * np.cumsum(rng.normal(size=(poses, 3)), axis=0) / np.sqrt(poses)
    true = np.tile(np.eye(4), (poses, 1, 1))
    true[:, :3, :3] = Rotation.from_rotvec(play).as_matrix() @ start @ spin
    true[:, :3, 3] = np.array([20.0, -40.0, -1400.0]) + rng.normal(0.0, 60.0, 3)
    return tracker.sees(true)


@dataclass(frozen=True, slots=True, eq=False)
class Patient:
    """Where the patient is, and how.

    Attributes
    ----------
    T_ct_from_ref : (4, 4)
    T_tracker_from_ct : (4, 4)
        At rest.
    breath_mm : (3,)
        Amplitude in the tracker, of bone and reference together.
    """

    T_ct_from_ref: Array
    T_tracker_from_ct: Array
    breath_mm: Array
    breath_s: float
    phase: float

    @classmethod
    def lying(cls, rng: np.random.Generator, target_ct_mm: Array, breath_mm: float) -> Patient:
        """Return a patient whose reference is fixed to bone, 60 to 120 mm from the target."""
        away = rng.normal(size=3) * [1.0, 0.4, 1.0]
        away *= rng.uniform(60.0, 120.0) / np.linalg.norm(away)
        T_ct_from_ref = rigid(turned(rng.normal(0.0, 1.0, 3)), target_ct_mm + away)
        rotation = turned(rng.normal(0.0, 0.6, 3))
        lies = rigid(rotation, np.array([0.0, 0.0, -1400.0]) + rng.normal(0.0, 80.0, 3) - rotation @ target_ct_mm)
        return cls(
            T_ct_from_ref,
            lies,
            rng.normal(0.0, breath_mm, 3),
            float(rng.uniform(3.0, 5.0)),
            float(rng.uniform(0.0, 6.3)),
        )

    def at(self, t_s: Array) -> Array:
        """Return ``T_tracker_from_ct`` (N, 4, 4) at times (N,)."""
        poses = np.tile(self.T_tracker_from_ct, (len(t_s), 1, 1))
        wave = np.sin(2.0 * np.pi * t_s / self.breath_s + self.phase)
        poses[:, :3, 3] += wave[:, None] * self.breath_mm
        return poses


@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """How structures differ from what was segmented: by a bias along the surface's normal, and by where they moved."""

    bias_mm: dict[str, float]
    shift_ct_mm: dict[str, Array]

    @classmethod
    def of_today(cls, rng: np.random.Generator, errors: Errors, free: dict[str, bool]) -> Anatomy:
        """Return what happened to structures (name: whether it follows no bone).

        Neighbours that follow a bone share half of their motion, which has a direction: tissue sags.
        """
        bias = {name: errors.small_mm + errors.segmented_mm * float(heavy(rng, (1,))[0]) for name in free}
        half = errors.following_mm / np.sqrt(2.0)
        common = half * (heavy(rng, (3,)) + np.array([0.0, -0.8, 0.0]))
        shift = {
            name: errors.free_mm * heavy(rng, (3,)) if loose else common + half * heavy(rng, (3,))
            for name, loose in free.items()
        }
        return cls(bias, shift)
