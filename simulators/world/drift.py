"""Owns the search for where an insertion goes wrong: off the plan, to a few true millimetres of a critical structure.

Searches with points on the case's surfaces, which is quick, and measures what it found with the exact truth.  Shares
no code with the distances of the server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from navsrv.anatomy.case import Case, Kind
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array
from simulators.world.insertion import Drift, Needle, NeedlePlan, Story, hubs
from simulators.world.scene import ExactDistance

Clearances = Callable[[Array, Array], Mapping[str, Array]]
"""``(tips_mm (N, 3), hubs_mm (N, 3)) -> {structure: (N,)}``: true signed distance of tip or shaft, the smaller one."""

MOST_DRIFT_MM: Final = 45.0
NEAR_MM: Final = 60.0
"""What is farther from the needle than this plays no part in the story."""


@dataclass(frozen=True, slots=True, eq=False)
class DriftGoal:
    """How close a drift comes: to its structure (true mm), and at most to every other critical structure.

    A root lies in its foramen, so that who aims at the root comes closer to the foramen; nothing is ever touched.
    """

    structure: str
    closest_mm: float
    others_mm: float


def find_drift(
    plan: NeedlePlan, needle: Needle, goal: DriftGoal, surface_mm: Array, clearances: Clearances
) -> Drift | None:
    """Return the shortest way off the plan that brings the needle to the goal, or None.

    From a point of the plan a straight line goes to the nearest vertex (N, 3) of the structure's surface; along it the
    first place with the true clearance wanted is found.  Points of the plan nearer to the structure are tried first.
    """

    def true(tips_mm: Array) -> Mapping[str, Array]:
        return clearances(tips_mm, hubs(plan, tips_mm, needle))

    depths = np.linspace(0.4, 1.0, 13) * plan.depth_mm
    starts = [plan.point(float(depth)) for depth in depths]
    nearest = [surface_mm[int(np.argmin(np.linalg.norm(surface_mm - start, axis=1)))] for start in starts]
    reach = [float(np.linalg.norm(end - start)) for start, end in zip(starts, nearest, strict=True)]
    best, shortest = None, MOST_DRIFT_MM
    for n in np.argsort(reach):
        if reach[n] - goal.closest_mm - 2.0 > shortest:
            break
        closest = _first_at(lambda tips: true(tips)[goal.structure], starts[n], nearest[n], goal.closest_mm)
        if closest is None:
            continue
        travel = float(np.linalg.norm(closest - starts[n]))
        leave = float(depths[n]) - max(1.2 * travel, 6.0)
        if travel > shortest or leave < 5.0:
            continue
        on_the_way = true(np.linspace(plan.point(leave), closest, 10))
        mine = on_the_way[goal.structure]
        others = [float(c.min()) for name, c in on_the_way.items() if name != goal.structure]
        if (
            mine[0] > goal.closest_mm + 2.0
            and mine.min() > goal.closest_mm - 0.2
            and min(others, default=np.inf) > goal.others_mm
        ):
            shortest, best = travel, Drift(goal.structure, leave, closest, float(mine[-1]))
    return best


def _first_at(clearance: Callable[[Array], Array], start: Array, end: Array, wanted_mm: float) -> Array | None:
    """Return the first point (3,) from start to end with the clearance wanted, to a few hundredths of mm, or None."""
    for count in (13, 9, 9):
        way = np.linspace(start, end, count)
        below = np.flatnonzero(clearance(way) < wanted_mm)
        if len(below) == 0 or below[0] == 0:
            return None
        start, end = way[below[0] - 1], way[below[0]]
    return start


def choose_drift(
    plan: NeedlePlan,
    needle: Needle,
    surfaces_mm: Mapping[str, Array],
    clearances: Clearances,
    preferred: str | None = None,
) -> Drift:
    """Return a drift towards the preferred structure, else towards the nearest critical one that can be approached.

    Raises
    ------
    InputError
        No critical structure can be approached from this plan without coming closer to another.
    """
    way = np.linspace(plan.point(0.4 * plan.depth_mm), plan.target_ct_mm, 9)
    near = {n: min(float(np.linalg.norm(v - p, axis=1).min()) for p in way) for n, v in surfaces_mm.items()}
    goals = [DriftGoal(name, 3.6, 4.0) for name in sorted(near, key=lambda n: near[n])]
    if preferred is not None and preferred in surfaces_mm:
        goals.insert(0, DriftGoal(preferred, 4.6, 1.3))
    for goal in goals:
        drift = find_drift(plan, needle, goal, surfaces_mm[goal.structure], clearances)
        if drift is not None:
            return drift
    listed = ", ".join(f"{n} {near[n]:.0f} mm" for n in sorted(near, key=lambda n: near[n])[:5])
    raise InputError(f"plan: no critical structure can be approached closely from it (nearest: {listed})")


def surface_points(vertices_mm: Array, triangles: NDArray[np.int32], plan: NeedlePlan, step_mm: float = 1.0) -> Array:
    """Return points (N, 3) that lie at most about ``step_mm`` apart on the part of a surface that is near the plan."""
    corners = vertices_mm[triangles]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1)
    depth = np.clip((corners.mean(axis=1) - plan.entry_ct_mm) @ plan.direction, 0.0, plan.depth_mm)
    away = np.linalg.norm(corners.mean(axis=1) - plan.entry_ct_mm - depth[:, None] * plan.direction, axis=1)
    near = away - longest < NEAR_MM
    corners, parts = corners[near], np.ceil(longest[near] / step_mm).astype(int)
    points = [np.empty((0, 3))]
    for n in np.unique(parts):
        a, b = (grid.ravel() for grid in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
        weights = np.stack([a, b, n - a - b], axis=1)[a + b <= n] / n
        points.append(np.einsum("wc,tcx->twx", weights, corners[parts == n]).reshape(-1, 3))
    return np.concatenate(points)


def sampled_clearances(surfaces_mm: Mapping[str, Array], needle: Needle) -> Clearances:
    """Return clearances from points on the surfaces, for the search: a few hundredths of mm too large, and quick.

    Exact distances to a hundred thousand triangles take seconds for one shaft; the drift that is found is measured
    with them once.
    """
    trees = {name: cKDTree(points) for name, points in surfaces_mm.items()}
    along = np.linspace(0.0, 1.0, round(needle.length_mm) + 1)[:, None, None]

    def clearances(tips_mm: Array, hubs_mm: Array) -> dict[str, Array]:
        shaft = tips_mm + along * (hubs_mm - tips_mm)
        found = {}
        for name, tree in trees.items():
            distance, _ = tree.query(shaft, distance_upper_bound=NEAR_MM)
            found[name] = np.minimum(distance[0], distance.min(axis=0) - needle.radius_mm)
        return found

    return clearances


def measured(truth: ExactDistance, plan: NeedlePlan, needle: Needle, drift: Drift) -> Drift:
    """Return a drift with its exact clearance; InputError when that is not what the search was after."""
    tips = drift.closest_ct_mm[None]
    names = (drift.structure,)
    tip = truth.distance(tips, names)[drift.structure]
    shaft = truth.shaft_distance(tips, hubs(plan, tips, needle), needle.radius_mm, names)[drift.structure]
    clearance = float(min(tip[0], shaft[0]))
    if not 2.5 < clearance < 5.0:
        raise InputError(
            f"{drift.structure}: true clearance of the drift is {clearance:.2f} mm, {drift.clearance_mm:.2f} mm by its"
            " surface; expected 2.5 to 5 mm. Does the surface belong to this case?"
        )
    return replace(drift, clearance_mm=clearance)


def story_for_case(case: Case, truth: ExactDistance, needle: Needle, seed: int) -> Story:
    """Return the insertion along the case's plan, with a drift towards one of its critical structures.

    A generated case says in its provenance (``drift_structure``) which one is meant.
    """
    if case.plan is None:
        raise InputError(f"{case.folder}: the case has no plan; the story needs its entry and target")
    plan = NeedlePlan(case.plan.entry_ct_mm, case.plan.target_ct_mm)
    meshes = {s.name: case.mesh(s.name) for s in case.structures if s.kind is Kind.CRITICAL}
    sampled = {name: surface_points(m.vertices_mm, m.triangles, plan) for name, m in meshes.items()}
    near = {name: points for name, points in sampled.items() if len(points) > 0}
    meant = case.provenance.get("parameters", {}).get("drift_structure")
    drift = choose_drift(plan, needle, near, sampled_clearances(near, needle), meant)
    return Story(plan, measured(truth, plan, needle, drift), seed)
