"""Owns the registration of two or more X-ray views to the CT: pose, covariance, and a verdict on its own work.

The path: over a lattice of rotations about the start, render the bone in every view, correlate with the X-rays at all
shifts by FFT, and find the common translation in CT that suits all views; refine the best of different places; move
the leader by one vertebra or sacral segment either way and refine again (neighbours resemble each other: this, not
noise, is how such registrations fail); refine the leader at full resolution; then look back.  No level
is coarser than 128 pixels: blurred images prefer the wrong vertebra.

The covariance comes from disjoint groups of tiles, as in ``cbct``, with the disagreement of the views and a floor for
what no image tells (calibration of the C-arm) added.  It describes the error within the right place; a wrong place is
the verdict's business.  Same inputs, same result: no random numbers, sums in fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, ndimage

from navsrv.kernel.errors import RegistrationError
from navsrv.kernel.frames import CT, Array, Frame, Rigid, frozen_array
from navsrv.kernel.projection import ProjectionModel
from navsrv.kernel.registration import RegistrationResult, Verdict, tre_rms_mm
from navsrv.registration._fluoro_kernels import best_shifts
from navsrv.registration.drr import DrrVolume, Image, bone_volume
from navsrv.registration.fluoro_views import (
    Fit,
    FixedView,
    Level,
    Normal,
    XrayView,
    check_views,
    normal_equations,
)
from navsrv.registration.images import CtImage
from navsrv.registration.search import rotation_lattice
from navsrv.registration.tiles import covariance_about_origin, moved

FINE_MM: Final = 1.0
COARSE_MM: Final = 1.6
SEARCH_PX: Final = 128
FINE_PX: Final = 256
SEARCH_TILE_PX: Final = 16
FINE_TILE_PX: Final = 28
ROTATION_STEP_DEG: Final = 11.0
"""Side of the cell of the body-centred lattice of rotations: none is more than 6.2 degrees away."""
SHIFT_STEP_MM: Final = 2.5
PLACES: Final = 6
"""Best places of the search that are refined."""
BRIEF: Final = 6
"""Iterations after which places are compared."""
RIVALS: Final = 3
CONTENDER: Final = 0.75
"""A rival with this share of the leader's score is compared with it at full resolution."""
SAME_PLACE_MM: Final = 6.0
MIN_ANGLE_DEG: Final = 20.0
"""Between the beams of the two views furthest apart: below it their depths are hardly told apart."""
GROUPS: Final = 8
INFLATION: Final = 2.0
FLOOR_MM: Final = 0.4
FLOOR_RAD: Final = 0.004
"""Standard deviation per axis that no image tells: a C-arm whose source stands 1-2 mm, whose principal point 1-3 pixels
off its calibration moves the bone by 0.5-0.8 mm while images and views agree as well as ever."""


@dataclass(frozen=True, slots=True)
class FluoroLimits:
    """Thresholds of the verdict: (accept, refuse) of each figure."""

    score: tuple[float, float] = (0.36, 0.26)
    view_score: tuple[float, float] = (0.28, 0.15)
    margin: tuple[float, float] = (0.15, 0.06)
    displaced_mm: tuple[float, float] = (0.5, 1.5)
    views_mm: tuple[float, float] = (0.7, 2.0)
    tre_mm: tuple[float, float] = (1.5, 4.0)


@dataclass(frozen=True, slots=True)
class FluoroSearch:
    """How far from the start the patient is looked for: any direction each."""

    rotation_deg: float = 22.0
    shift_mm: float = 30.0


WIDEN_BELOW: Final = 0.4
"""A leader with a lower score, at the search's resolution, is worth a second and wider search."""
WIDER: Final = FluoroSearch(rotation_deg=36.0, shift_mm=40.0)


@dataclass(frozen=True, slots=True, eq=False)
class PreparedBone:
    """A bone (or bones that move together) made ready once per case.

    Attributes
    ----------
    fine, coarse : DrrVolume
    points_ct_mm : (N, 3)
        Some hundred points of the bone: distances between poses are judged on them.
    level_shifts_ct_mm : (H, 3)
        By how much the bone may be mistaken for its neighbours: one vertebra or sacral segment up and down.
    """

    fine: DrrVolume
    coarse: DrrVolume
    points_ct_mm: Array
    level_shifts_ct_mm: Array


def prepare_bone(ct: CtImage, mask: NDArray[np.bool_], level_shifts_ct_mm: ArrayLike = ()) -> PreparedBone:
    """Return the bone inside a mask (k, j, i) ready for any number of registrations.

    Without ``level_shifts_ct_mm`` no result is accepted: nothing else tells a bone from the like of it next to it.
    """
    fine, coarse = bone_volume(ct, mask, FINE_MM), bone_volume(ct, mask, COARSE_MM)
    index = np.argwhere(coarse.values > 0.3 * float(coarse.values.max()))
    index = index[:: max(1, len(index) // 400), ::-1]
    points = index @ coarse.index_to_ct_mm[:3, :3].T + coarse.index_to_ct_mm[:3, 3]
    shifts = np.asarray(level_shifts_ct_mm, dtype=np.float64).reshape(-1, 3)
    return PreparedBone(fine, coarse, points, shifts)


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
) -> RegistrationResult:
    """Return ``T_ct_from_<frame of the views>`` with covariance, predicted TRE and a verdict.

    Parameters
    ----------
    bone : PreparedBone
    views : list of XrayView
        Two or more, at least ``MIN_ANGLE_DEG`` apart, their projections from one common frame.
    initial : Rigid
        A rough pose, CT from the views' frame, within what ``search`` covers.
    target_ct_mm : (3,) or None
        Where the error matters; None takes the middle of the bone.
    search : FluoroSearch or None
        None: as far as ``FluoroSearch()`` covers, and again as far as ``WIDER`` if nothing convincing lies there.

    Raises
    ------
    RegistrationError
        Fewer than two views or too small an angle between them, frames that do not meet, an image without content,
        the bone outside every view.
    """
    check_views(views)
    frame = views[0].projection.T_carm_from_object.frm
    if (initial.to, initial.frm) != (CT, frame):
        raise RegistrationError(f"the start is {initial.to} from {initial.frm}, the views need ct from {frame}")
    _check_angle(views)
    coarse = Level(bone.coarse, [FixedView.of(v, SEARCH_PX) for v in views], SEARCH_TILE_PX)
    fine = Level(bone.fine, [FixedView.of(v, FINE_PX) for v in views], FINE_TILE_PX)
    places = _places(bone, coarse, _search(coarse, initial.matrix, search or FluoroSearch()))
    if search is None and places[0].score < WIDEN_BELOW:
        wider = _places(bone, coarse, _search(coarse, initial.matrix, WIDER))
        places = max(places, wider, key=lambda found: found[0].score)
    final = fine.refine(places[0].pose)
    for near in (p for p in places[1:] if p.score > CONTENDER * places[0].score):
        contender = fine.refine(near.pose)
        if contender.score > final.score:  # the finer image decides
            final = contender
    here = coarse.refine(final.pose)
    others = [p.score for p in places if _apart_mm(bone, p.pose, final.pose) > SAME_PLACE_MM]
    levels = len(bone.level_shifts_ct_mm)
    findings = _Findings(final, here.score, max([0.0, *others]), _displaced(bone, coarse, here), levels)
    return _result(fine, findings, frame, target_ct_mm, limits or FluoroLimits())


@dataclass(frozen=True, slots=True, eq=False)
class _Findings:
    """The result at full resolution, and what the search's resolution says of it and of other places."""

    final: Fit
    here: float
    other: float
    displaced_mm: float
    levels: int


def _check_angle(views: list[XrayView]) -> None:
    """Raise unless two beams are far enough apart to tell depth."""
    beams = np.array([v.projection.T_carm_from_object.rotation[2] for v in views])
    cosine = float(np.abs(beams @ beams.T).min())
    if len(views) < 2 or np.degrees(np.arccos(min(cosine, 1.0))) < MIN_ANGLE_DEG:
        raise RegistrationError(
            f"{len(views)} view(s) less than {MIN_ANGLE_DEG:g} degrees apart say too little of depth: take another"
        )


def _search(level: Level, start: Array, reach: FluoroSearch) -> list[Array]:
    """Return poses (4, 4), the likeliest first: rotations about the bone's middle, shifts common to all views."""
    centre = level.centre_ct_mm
    zero = np.zeros(3)
    turns = []
    for rotation in rotation_lattice(reach.rotation_deg, ROTATION_STEP_DEG):
        pose = moved(start, np.zeros(6), zero)
        pose[:3, :3] = rotation @ start[:3, :3]
        pose[:3, 3] = rotation @ (start[:3, 3] - centre) + centre
        turns.append(pose)
    maps, jacobians = [], []
    for view in level.views:
        models = [level.seen(pose, view) for pose in turns]
        maps.append(_correlations(level.volume.render(models)[:, 0], view))
        jacobians.append([_pixels_per_mm(model, centre) for model in models])
    found = np.empty((len(turns), 2, 4))
    cells = int(reach.shift_mm / SHIFT_STEP_MM)
    for n in range(len(turns)):
        stack = np.stack([m[n] for m in maps])
        best_shifts(stack, np.array([j[n] for j in jacobians]), cells, SHIFT_STEP_MM, 4, 2, found[n])
    order = np.argsort(-found[:, :, 0].ravel(), kind="stable")
    poses = []
    for at in order[: 4 * PLACES]:
        pose = turns[at // 2].copy()
        pose[:3, 3] += found[at // 2, at % 2, 1:]
        poses.append(pose)
    return poses


def _correlations(drrs: Image, view: FixedView) -> Image:
    """Return (N, n, n): correlation of gradients at cyclic shifts (row, column) of N images over the X-ray's.

    The X-ray's gradients are evened out locally first, so that the denominator is the same everywhere.
    """
    fx, fy = view.gradient
    power = ndimage.uniform_filter(fx * fx + fy * fy, 31, mode="nearest")
    even = (fx + 1j * fy) / np.sqrt(power + 0.05 * float(power.mean()))
    size = fft.next_fast_len(int(1.3 * max(drrs.shape[1:])))
    f_fixed = fft.fft2(even.astype(np.complex64), (size, size))
    gradient = np.zeros((len(drrs), size, size), dtype=np.complex64)
    rows, columns = drrs.shape[1:]
    gradient.real[:, :rows, 1 : columns - 1] = drrs[:, :, 2:] - drrs[:, :, :-2]
    gradient.imag[:, 1 : rows - 1, :columns] = drrs[:, 2:] - drrs[:, :-2]
    size2 = gradient.real**2 + gradient.imag**2
    norm = np.sqrt(size2.sum(axis=(1, 2)) * np.maximum((size2 > 0).sum(axis=(1, 2)), 1))
    product = np.conj(fft.fft2(gradient, workers=2)) * f_fixed
    maps: Image = fft.ifft2(product, workers=2).real / np.maximum(norm, 1e-12)[:, None, None]
    return maps.astype(np.float32)


def _pixels_per_mm(model: ProjectionModel, centre_ct_mm: Array) -> Array:
    """Return (2, 3): pixels that the image of the bone moves when the *view* is shifted in CT."""
    base = model.project(centre_ct_mm)
    result: Array = -(model.project(centre_ct_mm + np.eye(3)) - base).T
    return result


def _apart_mm(bone: PreparedBone, a: Array, b: Array) -> float:
    """Return how far apart (mm, mean over the bone) two poses (4, 4) put it."""
    inverse = np.linalg.inv(b)
    there = bone.points_ct_mm @ inverse[:3, :3].T + inverse[:3, 3]
    return float(np.linalg.norm(there @ a[:3, :3].T + a[:3, 3] - bone.points_ct_mm, axis=1).mean())


def _places(bone: PreparedBone, level: Level, starts: list[Array]) -> list[Fit]:
    """Return the places where refinements end, the best first, neighbours of the leader by one level among them."""
    chosen: list[Array] = []
    for pose in starts:
        if all(_apart_mm(bone, pose, other) > 4.0 for other in chosen):
            chosen.append(pose)
        if len(chosen) == PLACES:
            break
    ends = [level.refine(pose, BRIEF) for pose in chosen]
    leader = level.refine(max(ends, key=lambda e: e.score).pose)
    tried: list[Array] = []
    for _ in range(3):  # a leader that its neighbour beats was one level off: ask that one's neighbours, too
        tried.append(leader.pose)
        ends.append(leader)
        for shift in bone.level_shifts_ct_mm:
            pose = leader.pose.copy()
            pose[:3, 3] += shift
            ends.append(level.refine(pose, BRIEF))
        best = max(ends, key=lambda e: e.score)
        if any(_apart_mm(bone, best.pose, t) < SAME_PLACE_MM for t in tried):
            break
        leader = level.refine(best.pose)
    places: list[Fit] = []
    for end in sorted(ends, key=lambda e: -e.score):
        if len(places) > RIVALS:
            break
        if all(_apart_mm(bone, end.pose, p.pose) > SAME_PLACE_MM for p in places):
            # A slow descent into the leader's place must not pass for a rival: let each arrive.
            arrived = end if end is leader else level.refine(end.pose)
            if all(_apart_mm(bone, arrived.pose, p.pose) > SAME_PLACE_MM for p in places):
                places.append(arrived)
    return sorted(places, key=lambda p: -p.score)


def _displaced(bone: PreparedBone, level: Level, here: Fit) -> float:
    """Return how far (mm) from the result a displaced start ends, refined the same way."""
    step = np.array([0.05, -0.04, 0.05, 2.5, -2.5, 2.5])
    end = level.refine(moved(here.pose, step, level.centre_ct_mm))
    return _apart_mm(bone, end.pose, here.pose)


def _result(
    level: Level, found: _Findings, frame: Frame, target_ct_mm: ArrayLike | None, limits: FluoroLimits
) -> RegistrationResult:
    """Return the result with its covariance about the CT's origin and the verdict."""
    centre, final = level.centre_ct_mm, found.final
    target = centre if target_ct_mm is None else np.asarray(target_ct_mm, dtype=np.float64)
    per_view = level.sums(final.pose)
    whole = normal_equations(np.concatenate(per_view))
    normals = [normal_equations(sums) for sums in per_view]
    apart = [_wanted_mm(n, level.seen(final.pose, v)) for n, v in zip(normals, level.views, strict=True)]
    scatter = _scatter(np.concatenate(per_view), whole)
    systematic = np.zeros((6, 6))
    systematic[:3, :3] = np.eye(3) * FLOOR_RAD**2
    systematic[3:, 3:] = np.eye(3) * (FLOOR_MM**2 + max(apart) ** 2 / 3.0)
    covariance = covariance_about_origin(INFLATION**2 * scatter + systematic, centre)
    transform = Rigid.from_matrix(CT, frame, final.pose, 0.5 * (covariance + covariance.T))
    tre = tre_rms_mm(transform, target)
    figures = {
        "score": final.score,
        "search_score": found.here,
        "next_place_score": found.other,
        "margin": (found.here - found.other) / max(found.here, 1e-6),
        "levels_tried": float(found.levels),
        "lowest_view_score": min(n.score for n in normals),
        "displaced_start_mm": found.displaced_mm,
    }
    for n, (normal, mm) in enumerate(zip(normals, apart, strict=True)):
        figures[f"view{n}_score"], figures[f"view{n}_residual_mm"] = normal.score, mm
    verdict, reason = _judge(figures, max(apart), tre, limits)
    details = tuple(figures.items())
    return RegistrationResult(
        "fluoro", transform, frozen_array(target, (3,)), tre, max(apart), verdict, reason, details
    )


def _wanted_mm(normal: Normal, model: ProjectionModel) -> float:
    """Return how far (mm, across the beam) one view alone would move the bone: what the views disagree by."""
    across = np.zeros((6, 2))
    across[3:] = model.T_carm_from_object.rotation[:2].T
    step = np.linalg.solve(across.T @ normal.hessian @ across + 1e-9 * np.eye(2), across.T @ normal.gradient)
    return float(np.linalg.norm(step))


def _scatter(tiles: Array, whole: Normal) -> Array:
    """Return the covariance (6, 6) about the centre from the steps that disjoint groups of tiles ask for."""
    kept = tiles[tiles[:, 0] > 0]
    steps = []
    for group in range(GROUPS):
        part = normal_equations(kept[group::GROUPS])
        steps.append(np.linalg.solve(part.hessian + 0.02 * whole.hessian, part.gradient))
    spread = np.array(steps) - np.mean(steps, axis=0)
    sandwich = spread.T @ spread / (GROUPS - 1) / GROUPS
    # Eight groups carry too few numbers for 21 of a covariance: keep the shape of the curvature, take the scale.
    shape = np.linalg.inv(whole.hessian + 1e-9 * np.trace(whole.hessian) * np.eye(6))
    scale = float(np.trace(np.linalg.solve(shape, sandwich)) / 6.0)
    result: Array = scale * shape
    return result


def _judge(figures: dict[str, float], views_mm: float, tre_mm: float, limits: FluoroLimits) -> tuple[Verdict, str]:
    """Return the verdict and the numbers that decided it; the worst finding wins."""
    refuse: list[str] = []
    doubt: list[str] = []

    def ask(what: str, value: float, bounds: tuple[float, float], unit: str = "") -> None:
        sign, side = (1.0, "below") if bounds[0] > bounds[1] else (-1.0, "above")
        for bound, findings in ((bounds[1], refuse), (bounds[0], doubt)):
            if not sign * value >= sign * bound:  # what is not a number fails, too
                findings.append(f"{what} {value:.2f}{unit}, {side} {bound:g}{unit}")
                break

    ask("the images agree with score", figures["score"], limits.score)
    ask("the worst view agrees with score", figures["lowest_view_score"], limits.view_score)
    ask("lead over the next best place", figures["margin"], limits.margin)
    ask("the views disagree by", views_mm, limits.views_mm, " mm")
    ask("a displaced start ends away by", figures["displaced_start_mm"], limits.displaced_mm, " mm")
    ask("predicted TRE at the target", tre_mm, limits.tre_mm, " mm")
    if not figures["levels_tried"]:
        doubt.append("no neighbouring level was tried: this may be one")
    if refuse or doubt:
        return (Verdict.REFUSE if refuse else Verdict.DOUBT), "; ".join(refuse or doubt)
    return (
        Verdict.ACCEPT,
        f"score {figures['score']:.2f}, {figures['margin']:.0%} ahead of the next best place, "
        f"views agree to {views_mm:.2f} mm, predicted TRE at the target {tre_mm:.2f} mm",
    )
