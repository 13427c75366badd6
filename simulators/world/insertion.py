"""Owns the story of one insertion: where the needle truly is at any time, as a pure function.

Along the plan, off it towards a structure until the true clearance is a few millimetres, back, out of sight, and on to
the target.  Where exactly it goes wrong is found by ``drift``.  Refuses clocks and sockets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import CT, TIP, Array, Rigid
from simulators.world.batches import rigid, rotations_along
from simulators.world.route import Leg, Route, stay, travel
from simulators.world.scene import Stream, stream
from simulators.world.tremor import Tremor

HOVER_MM: Final = 70.0
GRIP_MM: Final = 60.0
"""The hand turns the needle about a point this far above the skin along the plan."""
APPROACH_MM_S: Final = 25.0
DRIFT_MM_S: Final = 4.0
WITHDRAW_MM_S: Final = 6.0
ADVANCE_MM_S: Final = (5.0, 8.0)
STORY_S: Final = 42.0
OCCLUDED_S: Final = 2.0
AT_TARGET_S: Final = 2.0
TREMOR_RMS_MM: Final = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class Needle:
    """The instrument: shaft length and radius (mm)."""

    length_mm: float = 150.0
    radius_mm: float = 0.75


@dataclass(frozen=True, slots=True, eq=False)
class NeedlePlan:
    """The straight way from the skin to the target, in CT LPS mm."""

    entry_ct_mm: Array
    target_ct_mm: Array

    def __post_init__(self) -> None:
        if not 20.0 <= self.depth_mm <= 250.0:
            raise InputError(f"plan: depth {self.depth_mm:.1f} mm; expected 20 to 250 mm from entry to target")

    @property
    def depth_mm(self) -> float:
        """Length of the plan (mm)."""
        return float(np.linalg.norm(self.target_ct_mm - self.entry_ct_mm))

    @property
    def direction(self) -> Array:
        """Unit vector from entry to target."""
        result: Array = (self.target_ct_mm - self.entry_ct_mm) / self.depth_mm
        return result

    def point(self, depth_mm: float) -> Array:
        """Return the point (3,) of the plan at a depth below the skin; negative above it."""
        result: Array = self.entry_ct_mm + depth_mm * self.direction
        return result

    def axis_at(self, tips_mm: Array) -> Array:
        """Return the shaft's direction (N, 3) with the tip at given points: the hand stays above the entry."""
        rel = tips_mm - self.entry_ct_mm
        depth = rel @ self.direction
        lateral = rel - depth[:, None] * self.direction
        axis = (np.maximum(depth, 0.0) + GRIP_MM)[:, None] * self.direction + lateral
        result: Array = axis / np.linalg.norm(axis, axis=1, keepdims=True)
        return result


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """Where the needle goes wrong.

    Attributes
    ----------
    structure : str
    leave_depth_mm : float
        Depth at which the tip leaves the plan.
    closest_ct_mm : (3,)
        The tip at its closest.
    clearance_mm : float
        True clearance there, without tremor.
    """

    structure: str
    leave_depth_mm: float
    closest_ct_mm: Array
    clearance_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """The truth at one time."""

    T_ct_from_tip: Rigid
    visible: bool
    phase: str


def _legs(plan: NeedlePlan, drift: Drift, advance_mm_s: float, hover_s: float = 1.0) -> tuple[Leg, ...]:
    """Return the story, piece by piece."""
    hover, leave, target = plan.point(-HOVER_MM), plan.point(drift.leave_depth_mm), plan.target_ct_mm
    back = plan.point(max(drift.leave_depth_mm - 5.0, 3.0))
    remaining = plan.depth_mm - float((back - plan.entry_ct_mm) @ plan.direction)
    hide = back + 0.4 * remaining * plan.direction
    return (
        stay("hover", hover, hover_s),
        travel("approach", hover, plan.entry_ct_mm, APPROACH_MM_S),
        stay("entry", plan.entry_ct_mm, 0.7),
        travel("advance", plan.entry_ct_mm, leave, advance_mm_s),
        travel("drift", leave, drift.closest_ct_mm, DRIFT_MM_S),
        stay("closest", drift.closest_ct_mm, 1.0),
        travel("withdraw", drift.closest_ct_mm, back, WITHDRAW_MM_S),
        stay("redirect", back, 1.0),
        travel("advance", back, hide, advance_mm_s),
        stay("occluded", hide, OCCLUDED_S, visible=False),
        stay("returned", hide, 1.0),
        travel("advance", hide, target, advance_mm_s),
        stay("target", target, AT_TARGET_S),
    )


def _tremor(seed: int, rms_mm: float) -> Tremor:
    """Return slow sway and a little fast tremor."""
    rng = stream(seed, Stream.TREMOR)
    hz = np.concatenate([rng.uniform(0.3, 1.5, (3, 4)), rng.uniform(8.0, 11.0, (3, 1))], axis=1)
    weight = np.array([1.0, 1.0, 1.0, 1.0, 0.15])
    # A sine of amplitude a has rms a / sqrt 2; three axes add in squares.
    amplitude = weight * rms_mm * np.sqrt(2.0 / 3.0) / np.linalg.norm(weight)
    return Tremor(hz, rng.uniform(0.0, 2.0 * np.pi, hz.shape), np.broadcast_to(amplitude, hz.shape))


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """The truth at N times.

    Attributes
    ----------
    T_ct_from_tip : (N, 4, 4)
    visible : (N,) bool
    leg : (N,) int
        Number in ``phases``.
    """

    T_ct_from_tip: Array
    visible: NDArray[np.bool_]
    leg: NDArray[np.intp]
    phases: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Story:
    """One insertion; ``at(t)`` for any t, also before the start (hover) and after the end (at the target)."""

    plan: NeedlePlan
    drift: Drift
    seed: int
    tremor_rms_mm: float = TREMOR_RMS_MM
    _route: Route = field(init=False, repr=False)
    _tremor: Tremor = field(init=False, repr=False)
    _roll_rad: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        speed = self._advance_speed()
        spare = STORY_S - sum(leg.duration_s for leg in _legs(self.plan, self.drift, speed))
        legs = _legs(self.plan, self.drift, speed, 1.0 + min(max(spare, 0.0), 4.0))
        object.__setattr__(self, "_route", Route(legs))
        object.__setattr__(self, "_tremor", _tremor(self.seed, self.tremor_rms_mm))
        object.__setattr__(self, "_roll_rad", float(stream(self.seed, Stream.TREMOR).uniform(-np.pi, np.pi)))

    def _advance_speed(self) -> float:
        """Return the advance speed (mm/s), 5 to 8, for which the story lasts closest to ``STORY_S``."""
        speeds = np.linspace(*ADVANCE_MM_S, 31)
        lasts = [sum(leg.duration_s for leg in _legs(self.plan, self.drift, float(v))) for v in speeds]
        return float(speeds[int(np.argmin(np.abs(np.array(lasts) - STORY_S)))])

    @property
    def duration_s(self) -> float:
        """How long the story lasts at speed 1."""
        return self._route.duration_s

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases in their order."""
        return self._route.phases[:-1]

    def sample(self, t_s: Array, hand_s: Array | None = None) -> Moments:
        """Return where the needle truly is at times (N,) in seconds after the start.

        ``hand_s`` is the time of the hand's tremor, by default the same: a caller who lets the needle hover until it is
        told to start, or who speeds the story up, gives the hand a clock of its own, so that it never jumps.
        """
        tips = self._route.at(t_s) + self._tremor.at(t_s if hand_s is None else hand_s)
        poses = rigid(rotations_along(self.plan.axis_at(tips), self._roll_rad), tips)
        leg = self._route.leg_at(t_s)
        return Moments(poses, self._route.visible(leg), leg, self._route.phases)

    def at(self, t_s: float, hand_s: float | None = None) -> Moment:
        """Return where the needle truly is at one time; as ``sample``."""
        moments = self.sample(np.array([t_s]), None if hand_s is None else np.array([hand_s]))
        pose = Rigid.from_matrix(CT, TIP, moments.T_ct_from_tip[0])
        return Moment(pose, bool(moments.visible[0]), moments.phases[moments.leg[0]])


def rotation_along(axis: Array, roll_rad: float = 0.0) -> Array:
    """Return a rotation (3, 3) whose third column is the unit vector ``axis`` (3,), rolled about it.

    As ``rotations_along``, for one axis.
    """
    result: Array = rotations_along(axis[None], roll_rad)[0]
    return result


def hubs(plan: NeedlePlan, tips_mm: Array, needle: Needle) -> Array:
    """Return the shaft's far end (N, 3) for tips (N, 3) held as the story holds them."""
    result: Array = tips_mm - needle.length_mm * plan.axis_at(tips_mm)
    return result
