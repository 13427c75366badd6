"""Owns how the patient truly moves: breathing, drift, shifts, bones against each other, a reference that is knocked.

How to use it: name the bones, say what happens, and ask for poses at any times, in any order, thousands at once::

    patient = Patient.of_scene(scene, bones=("sacrum", "left ilium"), motions=(
        Respiration(amplitude_mm=4.0, seed=7),
        SlowDrift(move_mm_per_min=(0.0, -0.5, 0.2), begins_s=30.0),
        Shift(at_s=60.0, move_mm=(3.0, 0.0, 0.0), body="left ilium"),
        Shift(at_s=90.0, move_mm=(0.0, 2.0, 0.0), turn_deg=(0.0, 0.0, 3.0), body=REFERENCE_BODY),
    ))
    patient.T_world_from_reference(t_s)         # (N, 4, 4) what a tracker would be shown
    patient.T_world_from_bone("sacrum", t_s)    # where the bone's CT coordinates are
    patient.T_bone_from_reference("sacrum", t_s)  # the registration that would be true for this bone now

Everything is a function of its arguments: no state, no clock.  World is the frame in which the tracker stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import CT, REFERENCE, Array, Rigid
from simulators.world.batches import about, inverse
from simulators.world.scene import Scene, Stream

PATIENT: Final = "patient"
"""The whole patient: every bone, and the reference with the bone that it is clamped to."""
REFERENCE_BODY: Final = "reference"
"""The reference against the bone that it is clamped to."""

Vector = tuple[float, float, float]
STILL: Final[Vector] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Respiration:
    """Breathing of a prone patient, as irregular as people breathe.

    The displacement is ``amplitude (1 - cos^4(pi phase))``: long at exhale, short at inhale (Lujan 1999).  Phase and
    amplitude wander by sums of slow sines, so that any time can be asked for.

    Attributes
    ----------
    amplitude_mm : float
        From exhale to the top of a mean breath.
    direction : (3,)
        Of the rise, in CT (LPS): posterior, and a little towards the head.
    tilt_deg : float
        Turn about the patient's left axis at the top of a mean breath.
    irregularity : float
        0 for a ventilator; 0.15 lets amplitude and period wander by about 15 % (one standard deviation).
    holds : tuple of (begins_s, lasts_s)
        Breath held: the phase stands still.
    share : float
        Of the motion that the body takes part in.
    """

    amplitude_mm: float
    period_s: float = 4.0
    direction: Vector = (0.0, 1.0, 0.25)
    tilt_deg: float = 0.0
    irregularity: float = 0.0
    holds: tuple[tuple[float, float], ...] = ()
    seed: int = 0
    share: float = 1.0
    body: str = PATIENT

    def rise(self, t_s: Array) -> Array:
        """Return how far the chest has risen (N,): 0 at exhale, 1 at the top of a mean breath."""
        t = np.asarray(t_s, dtype=np.float64)
        for begins, lasts in self.holds:
            t = t - np.clip(np.asarray(t_s) - begins, 0.0, lasts)
        phase, size = t / self.period_s, np.ones_like(t)
        if self.irregularity > 0.0:
            rng = np.random.default_rng([self.seed, int(Stream.BREATH)])
            per_breath = rng.uniform(0.06, 0.3, (2, 4)) / self.period_s
            start = rng.uniform(0.0, 2.0 * np.pi, (2, 4))
            waves = np.sin(2.0 * np.pi * t[..., None, None] * per_breath + start) * np.sqrt(0.5)
            # A wander of the phase whose slope is the wander of the rate, to the same standard deviation.
            rate = 1.0 / (2.0 * np.pi * per_breath[0] * self.period_s)
            phase = phase + self.irregularity * (waves[..., 0, :] * rate).sum(axis=-1)
            size = np.maximum(size + self.irregularity * waves[..., 1, :].sum(axis=-1), 0.1)
        result: Array = size * (1.0 - np.cos(np.pi * phase) ** 4)
        return result

    def motion(self, t_s: Array, centre_mm: Array) -> Array:
        """Return the displacement of the body (N, 4, 4)."""
        rise = self.share * self.rise(t_s)[:, None]
        towards = np.array(self.direction) / np.linalg.norm(self.direction)
        turn = rise * np.array([np.radians(self.tilt_deg), 0.0, 0.0])
        return about(turn, centre_mm, rise * self.amplitude_mm * towards)


@dataclass(frozen=True, slots=True)
class SlowDrift:
    """A body that creeps: muscles that relax, a table that sags."""

    move_mm_per_min: Vector = STILL
    turn_deg_per_min: Vector = STILL
    begins_s: float = 0.0
    ends_s: float = np.inf
    body: str = PATIENT

    def motion(self, t_s: Array, centre_mm: Array) -> Array:
        """Return the displacement of the body (N, 4, 4)."""
        minutes = (np.clip(t_s, self.begins_s, self.ends_s) - self.begins_s)[:, None] / 60.0
        turn = minutes * np.radians(self.turn_deg_per_min)
        return about(turn, centre_mm, minutes * np.array(self.move_mm_per_min))


@dataclass(frozen=True, slots=True)
class Shift:
    """A body that moves once and stays: a patient who coughs, a bone that is levered, a reference that is knocked.

    ``over_s`` is how long the move takes (smooth); the turn is a rotation vector in degrees.
    """

    at_s: float
    move_mm: Vector = STILL
    turn_deg: Vector = STILL
    over_s: float = 0.2
    body: str = PATIENT

    def motion(self, t_s: Array, centre_mm: Array) -> Array:
        """Return the displacement of the body (N, 4, 4)."""
        done = np.clip((t_s - self.at_s) / max(self.over_s, 1e-9), 0.0, 1.0)[:, None]
        done = done * done * (3.0 - 2.0 * done)
        return about(done * np.radians(self.turn_deg), centre_mm, done * np.array(self.move_mm))


BodyMotion = Respiration | SlowDrift | Shift


@dataclass(frozen=True, slots=True, eq=False)
class Patient:
    """The patient with bones and reference, and what happens to them.

    Attributes
    ----------
    T_world_from_ct : Rigid
        The patient at rest.
    T_ct_from_ref : Rigid
        The reference at rest: the registration that is true when it is made at rest.
    bones : tuple of str
        Those that can move by themselves; the first is the one that the reference is clamped to.
    motions : tuple of BodyMotion
        Of the patient, of a bone or of the reference.  Moves are in CT (LPS) axes, the reference's in its own.  Those
        of one body follow each other: the last named is nearest to the body.
    centre_ct_mm : (3,)
        What patient and bones turn about; the reference turns about its own origin.
    """

    T_world_from_ct: Rigid
    T_ct_from_ref: Rigid
    bones: tuple[str, ...]
    motions: tuple[BodyMotion, ...]
    centre_ct_mm: Array

    def __post_init__(self) -> None:
        bodies = (PATIENT, REFERENCE_BODY, *self.bones)
        for motion in self.motions:
            if motion.body not in bodies:
                raise InputError(f"patient: nothing moves {motion.body!r}; expected one of {', '.join(bodies)}")

    @classmethod
    def of_scene(
        cls,
        scene: Scene,
        motions: Sequence[BodyMotion] = (),
        bones: Sequence[str] = ("bone",),
        centre_ct_mm: ArrayLike = STILL,
    ) -> Patient:
        """Return the patient of a room; its breathing, where it has any, goes before the motions given."""
        breath = scene.breathing
        first = () if breath is None else (Respiration(breath.amplitude_mm, breath.period_s, (0.0, 1.0, 0.0)),)
        centre = np.asarray(centre_ct_mm, dtype=np.float64)
        return cls(scene.T_tracker_from_ct, scene.T_ct_from_ref, tuple(bones), (*first, *motions), centre)

    def T_ct_from_bone(self, bone: str, t_s: Array) -> Array:
        """Return (N, 4, 4): where a point of the CT on this bone is now, in CT coordinates of the patient at rest."""
        if bone not in self.bones:
            raise InputError(f"patient: no bone {bone!r}; expected one of {', '.join(self.bones)}")
        return self._moved(PATIENT, t_s, self.centre_ct_mm) @ self._moved(bone, t_s, self.centre_ct_mm)

    def T_world_from_bone(self, bone: str, t_s: Array) -> Array:
        """Return (N, 4, 4): where the CT coordinates of this bone are in the world."""
        result: Array = self.T_world_from_ct.matrix @ self.T_ct_from_bone(bone, t_s)
        return result

    def T_world_from_reference(self, t_s: Array) -> Array:
        """Return (N, 4, 4): the reference body in the world."""
        host = self.T_world_from_bone(self.bones[0], t_s)
        result: Array = host @ self.T_ct_from_ref.matrix @ self._moved(REFERENCE_BODY, t_s, np.zeros(3))
        return result

    def T_bone_from_reference(self, bone: str, t_s: Array) -> Array:
        """Return (N, 4, 4): the T_ct_from_ref that would be true now for what is fixed to this bone."""
        result: Array = inverse(self.T_world_from_bone(bone, t_s)) @ self.T_world_from_reference(t_s)
        return result

    def reference_at(self, t_s: float) -> Rigid:
        """Return the reference in the world at one time."""
        matrix = self.T_world_from_reference(np.array([t_s]))[0]
        return Rigid.from_matrix(self.T_world_from_ct.to, REFERENCE, matrix)

    def bone_at(self, bone: str, t_s: float) -> Rigid:
        """Return a bone's CT coordinates in the world at one time."""
        matrix = self.T_world_from_bone(bone, np.array([t_s]))[0]
        return Rigid.from_matrix(self.T_world_from_ct.to, CT, matrix)

    def _moved(self, body: str, t_s: Array, centre_mm: Array) -> Array:
        moved = np.broadcast_to(np.eye(4), (len(t_s), 4, 4))
        for motion in self.motions:
            if motion.body == body:
                moved = moved @ motion.motion(t_s, centre_mm)
        return moved
