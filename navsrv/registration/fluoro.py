"""Owns the registration of X-ray views to the CT: the way from a rough pose to a result.

The path: over a lattice of rotations about the start, render the bone (with what is beside it) in every view, correlate
with the X-rays at all shifts by FFT, and find the common translation in CT that suits all views; refine the best of
different places; move the leader by one vertebra or sacral segment either way and refine again (neighbours resemble
each other: this, not noise, is how such registrations fail); refine the bone alone, and the leader at full resolution;
then look back (``fluoro_verdict``).  No level is coarser than 128 pixels: blurred images prefer the wrong vertebra.

One view tells where the bone is across the beam and how it is turned, and next to nothing of depth: that comes from a
prior (the covariance of the start: C-arm geometry, tracker, an earlier registration) or stays unknown and is said so.
Same inputs, same result: no random numbers, sums in fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navsrv.kernel.errors import RegistrationError
from navsrv.kernel.frames import CT, Array, Rigid, skew
from navsrv.kernel.registration import RegistrationResult
from navsrv.registration.aside import Aside
from navsrv.registration.drr import DrrVolume, bone_volume
from navsrv.registration.fluoro_search import FluoroSearch, search_poses
from navsrv.registration.fluoro_stretch import fit_stretch
from navsrv.registration.fluoro_verdict import (
    Findings,
    FluoroLimits,
    conclude,
    score_scale,
    sharpness,
    worth_asking,
)
from navsrv.registration.fluoro_views import Fit, FixedView, Level, PosePrior, XrayView, check_views
from navsrv.registration.images import CtImage
from navsrv.registration.tiles import moved

__all__ = [
    "FluoroLimits",
    "FluoroSearch",
    "PreparedBone",
    "axis_shifts",
    "level_shifts",
    "prepare_bone",
    "register_fluoro",
]

FINE_MM: Final = 1.0
COARSE_MM: Final = 2.0
SEARCH_PX: Final = 128
FINE_PX: Final = 256
SEARCH_TILE_PX: Final = 16
FINE_TILE_PX: Final = 28
PLACES: Final = 6
"""Best places of the search that are refined."""
BRIEF: Final = 6
"""Iterations after which places are compared."""
ARRIVAL: Final = 10
"""More iterations for a rival, and for a displaced start."""
RIVALS: Final = 3
CONTENDER: Final = 0.85
"""A rival with this share of the leader's score is compared with it at full resolution."""
SAME_PLACE_MM: Final = 6.0
SHALLOW_SCALE: Final = 4.0
"""How much less than its curvature says one view is believed beside a prior: its error is blur and calibration."""
JOINT_DEG: Final = 3.0
JOINT_MM: Final = 2.0
"""One sigma per axis of how a bone may have moved against its neighbours since the CT."""
AGREEING_MM: Final = 4.0
MIN_ANGLE_DEG: Final = 20.0
"""Between the beams of the two views furthest apart: below it their depths are hardly told apart."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedBone:
    """A bone (or bones that move together) made ready once per case.

    Attributes
    ----------
    fine, coarse : DrrVolume
    wide : DrrVolume
        The coarse bone with what lies beside it: what is searched for, since more is less easily mistaken.
    points_ct_mm : (N, 3)
        Some hundred points of the bone: distances between poses are judged on them.
    level_shifts_ct_mm : (H, 3)
        By how much the bone may be mistaken for its neighbours: one vertebra or sacral segment up and down.
    """

    fine: DrrVolume
    coarse: DrrVolume
    wide: DrrVolume
    points_ct_mm: Array
    level_shifts_ct_mm: Array


def prepare_bone(
    ct: CtImage,
    mask: NDArray[np.bool_],
    level_shifts_ct_mm: ArrayLike = (),
    beside: NDArray[np.bool_] | None = None,
) -> PreparedBone:
    """Return the bone inside a mask (k, j, i) ready for any number of registrations.

    Parameters
    ----------
    level_shifts_ct_mm : (H, 3)
        Without them no result is accepted: nothing else tells a bone from the like of it next to it.
    beside : (k, j, i) bool or None
        Bones that lie nearly as in the CT (the vertebrae above and below): searched for together with the bone, then
        left out.
    """
    fine, coarse = bone_volume(ct, mask, FINE_MM), bone_volume(ct, mask, COARSE_MM)
    wide = coarse if beside is None or not beside.any() else bone_volume(ct, mask | beside, COARSE_MM)
    index = np.argwhere(coarse.values > 0.3 * float(coarse.values.max()))
    index = index[:: max(1, len(index) // 400), ::-1]
    points = index @ coarse.index_to_ct_mm[:3, :3].T + coarse.index_to_ct_mm[:3, 3]
    shifts = np.asarray(level_shifts_ct_mm, dtype=np.float64).reshape(-1, 3)
    return PreparedBone(fine, coarse, wide, points, shifts)


def level_shifts(centroids_ct_mm: ArrayLike) -> Array:
    """Return the shifts (2 (L - 1), 3) between neighbours of a row of vertebrae, given by centroids (L, 3) in order."""
    steps = np.diff(np.asarray(centroids_ct_mm, dtype=np.float64).reshape(-1, 3), axis=0)
    return np.concatenate((steps, -steps))


def axis_shifts(axis_ct: ArrayLike, pitches_mm: ArrayLike) -> Array:
    """Return shifts (2 P, 3) along a spine's axis (3,) by pitches (P,), both ways: for a sacrum, or one vertebra."""
    axis = np.asarray(axis_ct, dtype=np.float64)
    steps = np.outer(np.atleast_1d(np.asarray(pitches_mm, dtype=np.float64)), axis / np.linalg.norm(axis))
    return np.concatenate((steps, -steps))


def register_fluoro(
    bone: PreparedBone,
    views: list[XrayView],
    initial: Rigid,
    *,
    target_ct_mm: ArrayLike | None = None,
    search: FluoroSearch | None = None,
    limits: FluoroLimits | None = None,
    aside: Aside | None = None,
) -> RegistrationResult:
    """Return ``T_ct_from_<frame of the views>`` with covariance, predicted TRE and a verdict.

    Parameters
    ----------
    bone : PreparedBone
    views : list of XrayView
        Their projections from one common frame.  One, or several less than ``MIN_ANGLE_DEG`` apart, say nothing of
        depth: see ``initial``.
    initial : Rigid
        A rough pose, CT from the views' frame, within what ``search`` covers.  Where the views do not tell depth, its
        covariance (if it has one) is the prior that does; without one the result is refused, its depth sigma honest.
    target_ct_mm : (3,) or None
        Where the error matters; None takes the middle of the bone.
    search : FluoroSearch or None
        None: ``FluoroSearch()``.
    aside : Aside or None
        Who looks at the views beyond the first meanwhile; the result is the same.

    Raises
    ------
    RegistrationError
        No view, frames that do not meet, an image without content, the bone outside every view.
    """
    check_views(views)
    frame = views[0].projection.T_carm_from_object.frm
    if (initial.to, initial.frm) != (CT, frame):
        raise RegistrationError(f"the start is {initial.to} from {initial.frm}, the views need ct from {frame}")
    deep = angle_between_deg(views) >= MIN_ANGLE_DEG
    coarse_views = [FixedView.of(v, SEARCH_PX) for v in views]
    wide = Level(bone.wide, coarse_views, SEARCH_TILE_PX, aside)
    coarse = wide if bone.wide is bone.coarse else Level(bone.coarse, coarse_views, SEARCH_TILE_PX, aside)
    fine = Level(bone.fine, [FixedView.of(v, FINE_PX) for v in views], FINE_TILE_PX, aside)
    starts = _distinct(bone, search_poses(wide, initial.matrix, search or FluoroSearch(), 4 * PLACES, deep))
    briefly = [wide.refine(pose, BRIEF) for pose in starts]
    places = _places(bone, wide, briefly)
    outside = None if deep else _prior(fine, places[0].pose, initial)
    contenders = [place for n, place in enumerate(places) if not n or place.score > CONTENDER * places[0].score]
    ends = [_alone(bone, coarse, fine, place, outside) for place in contenders]
    best = max(range(len(ends)), key=lambda n: ends[n][0].score + places[n].score)  # the finer image has its say
    final, prior = ends[best]
    others = [p.score for n, p in enumerate(places) if n != best]
    here, other, bounds = places[best].score, max([0.0, *others]), limits or FluoroLimits()
    asked = worth_asking(final.score, here, other, bounds)
    findings = Findings(
        final=final,
        here=here,
        other=other,
        displaced_mm=displaced_mm(bone, coarse, coarse.refine(final.pose, prior=prior), prior),
        agreeing=_agreeing(bone, briefly, places[best]),
        stretch=fit_stretch(fine, final.pose, score_scale(fine, final.pose)) if asked and deep else None,
        sharpness=sharpness(fine, final.pose) if asked else None,
        levels=len(bone.level_shifts_ct_mm),
        deep=deep,
        prior=prior,
    )
    return conclude(fine, findings, frame, target_ct_mm, bounds)


def angle_between_deg(views: list[XrayView]) -> float:
    """Return the angle between the beams furthest apart (0 to 90 degrees)."""
    beams = np.array([v.projection.T_carm_from_object.rotation[2] for v in views])
    return float(np.degrees(np.arccos(min(float(np.abs(beams @ beams.T).min()), 1.0))))


def apart_mm(bone: PreparedBone, a: Array, b: Array) -> float:
    """Return how far apart (mm, mean over the bone) two poses (4, 4) put it."""
    inverse = np.linalg.inv(b)
    there = bone.points_ct_mm @ inverse[:3, :3].T + inverse[:3, 3]
    return float(np.linalg.norm(there @ a[:3, :3].T + a[:3, 3] - bone.points_ct_mm, axis=1).mean())


def _prior(level: Level, pose: Array, initial: Rigid) -> PosePrior | None:
    """Return the start as a prior in units of the score; None where its covariance is not known."""
    if initial.covariance is None:
        return None
    # The covariance is about the CT's origin: bring it to the bone's middle.
    shift = np.eye(6)
    shift[3:, :3] = -skew(level.centre_ct_mm)
    covariance = shift @ initial.covariance @ shift.T
    scale = SHALLOW_SCALE * score_scale(level, pose)
    weight = scale * np.linalg.inv(covariance + 1e-9 * np.eye(6))
    return PosePrior(initial.matrix, 0.5 * (weight + weight.T), scale)


def _alone(
    bone: PreparedBone, coarse: Level, fine: Level, place: Fit, outside: PosePrior | None
) -> tuple[Fit, PosePrior | None]:
    """Return where the bone alone ends from a place found with its neighbours, and the prior that held it there.

    The neighbours say where the bone can be, to what joints allow: with little contrast it might wander off alone.
    """
    prior = outside
    if prior is None and bone.wide is not bone.coarse:
        variances = np.repeat([np.radians(JOINT_DEG) ** 2, JOINT_MM**2], 3)
        scale = score_scale(fine, place.pose)
        prior = PosePrior(place.pose, np.diag(scale / variances), scale)
    return fine.refine(coarse.refine(place.pose, prior=prior).pose, prior=prior), prior


def _distinct(bone: PreparedBone, poses: list[Array]) -> list[Array]:
    chosen: list[Array] = []
    for pose in poses:
        if all(apart_mm(bone, pose, other) > 4.0 for other in chosen):
            chosen.append(pose)
        if len(chosen) == PLACES:
            break
    return chosen


def _places(bone: PreparedBone, wide: Level, briefly: list[Fit]) -> list[Fit]:
    """Return the places where refinements end, the best first, neighbours of the leader by one level among them."""
    ends = list(briefly)
    leader = wide.refine(max(ends, key=lambda e: e.score).pose)
    tried: list[Array] = []
    for _ in range(3):  # a leader that its neighbour beats was one level off: ask that one's neighbours, too
        tried.append(leader.pose)
        ends.append(leader)
        for shift in bone.level_shifts_ct_mm:
            pose = leader.pose.copy()
            pose[:3, 3] += shift
            ends.append(wide.refine(pose, BRIEF))
        best = max(ends, key=lambda e: e.score)
        if any(apart_mm(bone, best.pose, t) < SAME_PLACE_MM for t in tried):
            break
        leader = wide.refine(best.pose)
    places: list[Fit] = []
    for end in sorted(ends, key=lambda e: -e.score):
        if len(places) > RIVALS:
            break
        if all(apart_mm(bone, end.pose, p.pose) > SAME_PLACE_MM for p in places):
            # A slow descent into the leader's place must not pass for a rival: let each arrive.
            arrived = end if end is leader else wide.refine(end.pose, ARRIVAL)
            if all(apart_mm(bone, arrived.pose, p.pose) > SAME_PLACE_MM for p in places):
                places.append(arrived)
    return sorted(places, key=lambda p: -p.score)


def displaced_mm(bone: PreparedBone, level: Level, here: Fit, prior: PosePrior | None) -> float:
    """Return how far (mm) from the result a displaced start ends, refined the same way."""
    step = np.array([0.05, -0.04, 0.05, 2.0, -2.0, 2.0])
    end = level.refine(moved(here.pose, step, level.centre_ct_mm), 2 * ARRIVAL, prior=prior)
    return apart_mm(bone, end.pose, here.pose)


def _agreeing(bone: PreparedBone, briefly: list[Fit], place: Fit) -> float:
    """Return the share of the search's four likeliest poses from which a brief refinement comes near the place."""
    near = [apart_mm(bone, end.pose, place.pose) < AGREEING_MM for end in briefly[:4]]
    return sum(near) / max(len(near), 1)
