"""Owns the motions by which people calibrate: pivot, spin, touched landmarks, painted surfaces, stations, waves.

How to use it: each function returns true poses of a tracked tool as a ``ToolMotion``, by seed and rate; give them to a
``markers`` watcher for what a tracker would report of them::

    motion = pivot(seed, tip_tool_mm, point_world_mm, seconds=20.0)
    seen = Optical(seed, Camera(), {"Stylus": body}).observe("Stylus", motion.frames, motion.T_world_from_tool)

The truth is in the arguments (tip, axis, points) and in the poses; what a hand adds (slips, touch error, wobble) is
drawn from the seed and is in the poses, never in the arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navsrv.kernel.frames import Array
from simulators.world.batches import inverse, rigid, rotations, rotations_along
from simulators.world.route import Route, stay, travel
from simulators.world.scene import Stream
from simulators.world.tremor import Tremor

HOLD: Final = rotations(np.array([[2.6, 0.4, 0.3]]))[0]
"""How a tool is held on average: turned down towards the patient, in the tracker's axes."""
BETWEEN: Final = -1
"""What is touched while nothing is."""


@dataclass(frozen=True, slots=True, eq=False)
class ToolMotion:
    """True poses of one tool.

    Attributes
    ----------
    t_s : (N,)
        Evenly spaced, from 0.
    T_world_from_tool : (N, 4, 4)
    touching : (N,) int
        Which point is being touched; ``BETWEEN`` on the way.
    """

    t_s: Array
    T_world_from_tool: Array
    touching: NDArray[np.int64]

    @property
    def frames(self) -> NDArray[np.int64]:
        """(N,) numbers of the frames."""
        return np.arange(len(self.t_s))

    def tip_world_mm(self, tip_tool_mm: ArrayLike) -> Array:
        """Return where a point (3,) of the tool truly is, (N, 3)."""
        result: Array = self.T_world_from_tool[:, :3, :3] @ np.asarray(tip_tool_mm) + self.T_world_from_tool[:, :3, 3]
        return result


def _generator(seed: int, what: int) -> np.random.Generator:
    return np.random.default_rng([seed, int(Stream.MOTION), what])


def _times(seconds: float, rate_hz: float) -> Array:
    return np.arange(max(round(seconds * rate_hz), 1)) / rate_hz


def _wander(rng: np.random.Generator, t_s: Array, hz: tuple[float, float], count: int) -> Array:
    """Return ``count`` smooth functions (N, count) of unit root-mean-square."""
    f = rng.uniform(*hz, (count, 3))
    start = rng.uniform(0.0, 2.0 * np.pi, (count, 3))
    result: Array = np.sin(2.0 * np.pi * t_s[:, None, None] * f + start).sum(axis=2) * np.sqrt(2.0 / 3.0)
    return result


def _held_at(turn: Array, point_tool_mm: Array, at_mm: Array) -> Array:
    """Return the poses (N, 4, 4) with rotations (N, 3, 3) that hold a point (3,) of the tool at places (N, 3)."""
    return rigid(turn, at_mm - turn @ point_tool_mm)


def pivot(
    seed: int,
    tip_tool_mm: ArrayLike,
    point_world_mm: ArrayLike,
    seconds: float = 20.0,
    rate_hz: float = 60.0,
    cone_deg: float = 30.0,
    slip_mm: float = 0.0,
    slips: int = 0,
) -> ToolMotion:
    """Return a tool that is swung about its tip, out to ``cone_deg`` in every direction and turned about itself.

    The tip rests in a divot that gives by ``slip_mm`` (root-mean-square length, slowly wandering); ``slips`` times it
    jumps out for half a second, by 5 to 15 mm.
    """
    rng, t = _generator(seed, 1), _times(seconds, rate_hz)
    tip, point = np.asarray(tip_tool_mm, np.float64), np.asarray(point_world_mm, np.float64)
    # A spiral that opens and closes covers the cone; the handle turns slowly with it.
    circle = 2.0 * np.pi * (rng.uniform(0.35, 0.45) * t + rng.uniform())
    out = np.radians(cone_deg) * np.abs(np.sin(2.0 * np.pi * (t / rng.uniform(9.0, 13.0) + rng.uniform())))
    lean = out[:, None] * np.stack([np.cos(circle), np.sin(circle), np.zeros_like(t)], axis=1)
    twist = 0.5 * _wander(rng, t, (0.03, 0.12), 1) * np.array([0.0, 0.0, 1.0])
    at = point + slip_mm / np.sqrt(3.0) * _wander(rng, t, (0.05, 0.8), 3)
    for begins in rng.uniform(0.0, max(seconds - 0.5, 0.0), slips):
        away = rng.normal(size=3)
        away *= rng.uniform(5.0, 15.0) / np.linalg.norm(away)
        at = at + ((t >= begins) & (t < begins + 0.5))[:, None] * away
    return ToolMotion(t, _held_at(rotations(lean) @ HOLD @ rotations(twist), tip, at), np.zeros(len(t), np.int64))


def spin(
    seed: int,
    axis_tool: ArrayLike,
    through_tool_mm: ArrayLike,
    at_world_mm: ArrayLike,
    seconds: float = 15.0,
    rate_hz: float = 60.0,
    turns: float = 2.0,
    wobble_deg: float = 0.0,
    wobble_mm: float = 0.0,
) -> ToolMotion:
    """Return a tool that is turned about an axis of its own while the axis rests in a V-block, to a wobble (rms)."""
    rng, t = _generator(seed, 2), _times(seconds, rate_hz)
    axis = np.asarray(axis_tool, np.float64) / np.linalg.norm(np.asarray(axis_tool, np.float64))
    angle = 2.0 * np.pi * turns * (t / seconds) + 0.2 * _wander(rng, t, (0.1, 0.6), 1)[:, 0]
    wobble = np.radians(wobble_deg) / np.sqrt(3.0) * _wander(rng, t, (0.3, 2.0), 3)
    at = np.asarray(at_world_mm, np.float64) + wobble_mm / np.sqrt(3.0) * _wander(rng, t, (0.3, 2.0), 3)
    turn = rotations(wobble) @ HOLD @ rotations(angle[:, None] * axis)
    return ToolMotion(t, _held_at(turn, np.asarray(through_tool_mm, np.float64), at), np.zeros(len(t), np.int64))


def touch(
    seed: int,
    points_world_mm: Array,
    tip_tool_mm: ArrayLike,
    touch_error_mm: float = 0.3,
    dwell_s: float = 2.0,
    rate_hz: float = 60.0,
    speed_mm_s: float = 80.0,
    lean_deg: float = 15.0,
) -> ToolMotion:
    """Return a stylus that touches points (K, 3) one after the other, each for a while, leaning differently.

    Each touch misses its point by an error of its own (root-mean-square length ``touch_error_mm``) and trembles.
    Between two points the tip is lifted by 30 mm towards the tracker.
    """
    rng = _generator(seed, 3)
    points = np.asarray(points_world_mm, np.float64)
    met = points + touch_error_mm / np.sqrt(3.0) * rng.normal(size=points.shape)
    lift = np.array([0.0, 0.0, 30.0])
    legs, of_leg = [], []
    for k, point in enumerate(met):
        if k > 0:
            legs.append(travel("way", met[k - 1] + lift, point + lift, speed_mm_s))
        legs += [travel("down", point + lift, point, speed_mm_s), stay("touch", point, dwell_s)]
        legs.append(travel("up", point, point + lift, speed_mm_s))
        of_leg += [BETWEEN] * (k > 0) + [BETWEEN, k, BETWEEN]
    route = Route(legs)
    t = _times(route.duration_s, rate_hz)
    tip = route.at(t) + Tremor.from_seed(seed, 0.03, 0.05, Stream.MOTION, 3).at(t)
    turn = rotations(np.radians(lean_deg) * _wander(rng, t, (0.05, 0.3), 3)) @ HOLD
    touching = np.array([*of_leg, BETWEEN])[route.leg_at(t)]
    return ToolMotion(t, _held_at(turn, np.asarray(tip_tool_mm, np.float64), tip), touching)


def paint(
    seed: int,
    surface_world_mm: Array,
    normals_world: Array,
    tip_tool_mm: ArrayLike,
    seconds: float = 20.0,
    rate_hz: float = 60.0,
    lift_offs: int = 2,
    press_mm: float = 0.1,
    speed_mm_s: float = 40.0,
) -> ToolMotion:
    """Return a stylus whose tip is drawn over a surface: from each point (P, 3) to a near one, at a hand's speed.

    ``press_mm`` is the root-mean-square by which the tip presses in or floats along the normals (P, 3).  ``lift_offs``
    times it leaves the surface for half a second by 10 mm: ``touching`` says so.  The stylus leans along the normal.
    """
    rng, t = _generator(seed, 4), _times(seconds, rate_hz)
    points, normals = np.asarray(surface_world_mm, np.float64), np.asarray(normals_world, np.float64)
    order = [int(rng.integers(len(points)))]
    way = [0.0]
    while way[-1] < speed_mm_s * seconds + 1.0:
        step = np.linalg.norm(points - points[order[-1]], axis=1)
        near = np.flatnonzero((step > 0.0) & (step <= max(np.partition(step, min(6, len(step) - 1))[:7].max(), 1e-9)))
        # Onwards rather than back: a hand draws strokes.
        before = points[order[-1]] - points[order[max(len(order) - 3, 0)]]
        onwards = (points[near] - points[order[-1]]) @ before + 0.7 * np.linalg.norm(before) * rng.normal(
            size=len(near)
        )
        order.append(int(near[np.argmax(onwards)]) if len(order) > 2 else int(rng.choice(near)))
        way.append(way[-1] + float(step[order[-1]]))
    along = speed_mm_s * t
    tip, normal = (np.stack([np.interp(along, way, v[order, k]) for k in range(3)], axis=1) for v in (points, normals))
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    height = press_mm * _wander(rng, t, (0.2, 2.0), 1)[:, 0]
    touching = np.zeros(len(t), np.int64)
    for begins in rng.uniform(0.0, max(seconds - 0.5, 0.0), lift_offs):
        off = (t >= begins) & (t < begins + 0.5)
        height[off] += 10.0 * np.sin(np.pi * (t[off] - begins) / 0.5)
        touching[off] = BETWEEN
    turn = rotations(0.15 * _wander(rng, t, (0.05, 0.3), 3)) @ rotations_along(-normal)
    return ToolMotion(t, _held_at(turn, np.asarray(tip_tool_mm, np.float64), tip + height[:, None] * normal), touching)


@dataclass(frozen=True, slots=True, eq=False)
class Stations:
    """Two bodies that are fixed to each other, seen in K places each by its own device.

    ``T_a_from_x`` and ``T_b_from_y`` (K, 4, 4) obey ``T_a_from_x @ T_x_from_y = T_a_from_b @ T_b_from_y``.
    """

    T_a_from_x: Array
    T_b_from_y: Array


def stations(
    seed: int, T_x_from_y: Array, T_a_from_b: Array, count: int = 15, turn_deg: float = 40.0, move_mm: float = 150.0
) -> Stations:
    """Return true poses for hand-eye and robot-world: a body moved to places spread about ``a``'s working distance.

    ``T_x_from_y`` (4, 4) joins the two bodies, ``T_a_from_b`` (4, 4) the two devices.
    """
    rng = _generator(seed, 5)
    turn = rng.uniform(-1.0, 1.0, (count, 3)) * np.radians(turn_deg)
    place = np.array([0.0, 0.0, -1700.0]) + rng.uniform(-move_mm, move_mm, (count, 3))
    first = rigid(rotations(turn) @ HOLD, place)
    return Stations(first, inverse(np.asarray(T_a_from_b)[None]) @ first @ np.asarray(T_x_from_y))


def waves(
    seed: int, seconds: float = 15.0, rate_hz: float = 60.0, amplitude_mm: float = 40.0, period_s: float = 1.5
) -> ToolMotion:
    """Return a tool moved to and fro by hand along one direction, quasi-periodically, for temporal calibration."""
    rng, t = _generator(seed, 6), _times(seconds, rate_hz)
    phase = 2.0 * np.pi * (t / period_s + 0.08 * _wander(rng, t, (0.05, 0.3), 1)[:, 0] + rng.uniform())
    size = amplitude_mm * (1.0 + 0.1 * _wander(rng, t, (0.05, 0.3), 1))
    direction = rng.normal(size=3)
    place = np.array([0.0, 0.0, -1700.0]) + size * np.sin(phase)[:, None] * direction / np.linalg.norm(direction)
    turn = rotations(0.05 * _wander(rng, t, (0.1, 0.6), 3)) @ HOLD
    return ToolMotion(t, rigid(turn, place), np.zeros(len(t), np.int64))


def freely(seed: int, seconds: float = 15.0, rate_hz: float = 60.0, move_mm: float = 50.0) -> ToolMotion:
    """Return a tool carried about freely, in no rhythm."""
    rng, t = _generator(seed, 7), _times(seconds, rate_hz)
    place = np.array([0.0, 0.0, -1700.0]) + move_mm * _wander(rng, t, (0.05, 0.4), 3)
    return ToolMotion(
        t, rigid(rotations(0.35 * _wander(rng, t, (0.05, 0.5), 3)) @ HOLD, place), np.zeros(len(t), np.int64)
    )
