"""Owns what an operator truly does with a needle: insertions along a plan, with all that a hand adds.

How to use it: draw an insertion from a seed and ask for its truth at any times, thousands at once::

    insertion = Insertion.from_seed(seed, NeedlePlan(entry, target), Hand(redirections=1), Bending.from_seed(seed))
    truth = insertion.sample(t_s)                 # (N,) seconds since the start
    truth.T_ct_from_tool                          # (N, 4, 4) the straight needle: what a tracker on its hub follows
    truth.tip_ct_mm, truth.axis_ct                # (N, 3) where the bent tip truly is and points
    truth.shaft_ct_mm(20)                         # (N, 20, 3) the bent shaft, from the hub to the tip

``excursions`` drive the tip off the plan to a given place and back, for drift towards a structure or into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.frames import Array
from simulators.world.batches import rigid, rotations_along
from simulators.world.bending import Bending
from simulators.world.insertion import NeedlePlan
from simulators.world.route import Leg, Route, stay, travel
from simulators.world.scene import Stream
from simulators.world.tremor import Tremor

HOVER_MM: Final = 60.0
STIFF: Final = Bending(8)
"""A needle that does not bend."""
HELD_MM: Final = 20.0
"""Depth at which tissue has halved what of the tremor reaches the tip."""


@dataclass(frozen=True, slots=True)
class Hand:
    """How an operator works.

    Attributes
    ----------
    tremor_mm, sway_mm : float
        Root-mean-square displacement in 8 to 12 Hz, and slower.
    aim_deg : float
        Standard deviation, about each of two axes, of the first aim; each redirection leaves a third of it.
    redirections : int
        How often the needle is drawn back by half and aimed anew.
    pauses : int
        How often the advance stops, for 0.5 s to ``pause_s``.
    final_mm : float
        Standard deviation of where the tip ends, along each of three axes.
    """

    advance_mm_s: float = 6.0
    withdraw_mm_s: float = 8.0
    excursion_mm_s: float = 4.0
    approach_mm_s: float = 25.0
    tremor_mm: float = 0.06
    sway_mm: float = 0.2
    aim_deg: float = 1.5
    redirections: int = 0
    pauses: int = 1
    pause_s: float = 3.0
    hover_s: float = 1.0
    final_mm: float = 0.3
    at_target_s: float = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Excursion:
    """A way off the plan: from a depth to a place, a wait there, and back to the plan 5 mm before that depth."""

    leave_depth_mm: float
    to_ct_mm: Array
    wait_s: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class NeedleTruth:
    """A needle at N times.

    Attributes
    ----------
    T_ct_from_tool : (N, 4, 4)
        The straight needle: origin where a stiff one would have its tip, +z from hub to tip.
    tip_ct_mm, axis_ct : (N, 3)
        Where the tip truly is and points.
    depth_mm : (N,)
        Inserted length of the straight needle; negative above the skin.
    leg : (N,)
        Number in ``phases``.
    """

    T_ct_from_tool: Array
    tip_ct_mm: Array
    axis_ct: Array
    depth_mm: Array
    leg: NDArray[np.intp]
    phases: tuple[str, ...]
    length_mm: float
    bending: Bending

    @property
    def phase(self) -> list[str]:
        """The phase at each time."""
        return [self.phases[n] for n in self.leg]

    def shaft_ct_mm(self, count: int) -> Array:
        """Return points (N, count, 3) on the middle of the bent shaft, evenly from its hub to its tip."""
        back = self.length_mm * np.linspace(1.0, 0.0, count)
        tips, rotation = self.T_ct_from_tool[:, :3, 3], self.T_ct_from_tool[:, :3, :3]
        straight = tips[:, None] - back[:, None] * rotation[:, None, :, 2]
        depth = np.maximum(self.depth_mm, 1e-9)[:, None]
        bent, _ = self.bending.shape(rotation, self.depth_mm, np.clip(1.0 - back / depth, 0.0, 1.0))
        result: Array = straight + bent
        return result


@dataclass(frozen=True, slots=True, eq=False)
class Insertion:
    """One insertion as a function of time; before its start the needle hovers, after its end it rests."""

    plan: NeedlePlan
    route: Route
    tremor: tuple[Tremor, Tremor]
    """Of the tip, and of the hub."""
    bending: Bending = STIFF
    length_mm: float = 150.0
    roll_rad: float = 0.0

    @classmethod
    def from_seed(
        cls,
        seed: int,
        plan: NeedlePlan,
        hand: Hand = Hand(),
        bending: Bending = STIFF,
        excursions: Sequence[Excursion] = (),
        length_mm: float = 150.0,
    ) -> Insertion:
        """Return the insertion of a seed; the same seed gives the same, whatever else is simulated."""
        rng = np.random.default_rng([seed, int(Stream.HAND)])
        route = Route(_legs(rng, plan, hand, sorted(excursions, key=lambda e: e.leave_depth_mm)))
        tip, hub = (Tremor.from_seed(seed, hand.tremor_mm, hand.sway_mm, Stream.HAND, part) for part in (1, 2))
        return cls(plan, route, (tip, hub), bending, length_mm, float(rng.uniform(-np.pi, np.pi)))

    @property
    def duration_s(self) -> float:
        """From the hover to the rest at the target."""
        return self.route.duration_s

    def sample(self, t_s: Array, hand_s: Array | None = None) -> NeedleTruth:
        """Return the truth at times (N,) since the start.

        ``hand_s`` is the hand's own clock, by default the same: who lets the needle hover until it is told to start
        gives the hand a clock that never stops.
        """
        clock = t_s if hand_s is None else hand_s
        path = self.route.at(t_s)
        depth = (path - self.plan.entry_ct_mm) @ self.plan.direction
        held = 1.0 / (1.0 + np.maximum(depth, 0.0) / HELD_MM)
        straight = path + held[:, None] * self.tremor[0].at(clock)
        hub = path - self.length_mm * self.plan.axis_at(path) + self.tremor[1].at(clock)
        axis = straight - hub
        axis /= np.linalg.norm(axis, axis=1, keepdims=True)
        rotation = rotations_along(axis, self.roll_rad)
        bent, slope = self.bending.shape(rotation, depth, np.ones(1))
        towards = axis + slope[:, 0]
        towards /= np.linalg.norm(towards, axis=1, keepdims=True)
        poses = rigid(rotation, straight)
        leg = self.route.leg_at(t_s)
        return NeedleTruth(
            poses, straight + bent[:, 0], towards, depth, leg, self.route.phases, self.length_mm, self.bending
        )


def _legs(rng: np.random.Generator, plan: NeedlePlan, hand: Hand, excursions: Sequence[Excursion]) -> list[Leg]:
    """Return the way of the straight tip."""
    across = np.linalg.svd(plan.direction[None])[2][1:]
    aim = np.tan(np.radians(hand.aim_deg * rng.normal(size=2))) @ across
    end = plan.target_ct_mm + hand.final_mm * rng.normal(size=3)
    turns = np.sort(rng.uniform(0.4, 0.85, hand.redirections)) * plan.depth_mm
    stops = rng.uniform(0.2, 0.95, hand.pauses) * plan.depth_mm
    pauses = dict(zip(np.sort(stops).tolist(), rng.uniform(0.5, max(hand.pause_s, 0.5), hand.pauses), strict=True))
    hover = plan.point(-HOVER_MM)
    legs = [
        stay("hover", hover, hand.hover_s),
        travel("approach", hover, plan.entry_ct_mm, hand.approach_mm_s),
        stay("entry", plan.entry_ct_mm, 0.7),
    ]
    at = plan.entry_ct_mm

    def aimed(depth: float) -> Array:
        point: Array = plan.point(depth) + depth * aim
        return point

    def go(phase: str, to: Array, speed: float) -> None:
        nonlocal at
        legs.append(travel(phase, at, to, speed))
        at = to

    events = [*((float(d), None) for d in turns), *((e.leave_depth_mm, e) for e in excursions)]
    events += [(d, None) for d in pauses]
    for depth, excursion in sorted(events, key=lambda event: event[0]):
        go("advance", aimed(depth), hand.advance_mm_s)
        if excursion is not None:
            go("drift", excursion.to_ct_mm, hand.excursion_mm_s)
            legs.append(stay("closest", at, excursion.wait_s))
            go("withdraw", aimed(max(depth - 5.0, 2.0)), hand.withdraw_mm_s)
        elif depth in pauses:
            legs.append(stay("pause", at, float(pauses[depth])))
        else:
            go("withdraw", aimed(0.5 * depth), hand.withdraw_mm_s)
            aim = aim / 3.0
            go("redirect", aimed(0.5 * depth), hand.excursion_mm_s)
    go("advance", end, hand.advance_mm_s)
    return [*legs, stay("target", end, hand.at_target_s)]
