"""Owns what a registration by X-rays thinks of itself: covariance, figures, verdict.  Refuses to move the pose.

The covariance comes from disjoint groups of tiles, as in ``cbct``, with the disagreement of the views and a floor for
what no image tells (calibration of the C-arm) added.  It describes the error within the right place; a wrong place is
the verdict's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from navsrv.kernel.frames import CT, Array, Frame, Rigid, frozen_array
from navsrv.kernel.registration import RegistrationResult, Verdict, tre_rms_mm
from navsrv.registration.fluoro_stretch import Stretch
from navsrv.registration.fluoro_views import Fit, Level, Normal, PosePrior, normal_equations
from navsrv.registration.tiles import covariance_about_origin

GROUPS: Final = 8
INFLATION: Final = 2.0
CALIBRATION_MM: Final = 0.5
CALIBRATION_RAD: Final = 0.004
"""Standard deviation per axis across each beam, and of the turn, that no image tells: with a source 1-2 mm and a
principal point 1-3 pixels off the calibration, images and views agree as well as ever and the bone is elsewhere."""
ASIDE_MM: Final = 1.5
"""How far the bone is moved to see how much of the score is lost."""
ALONE_MM: Final = 15.0
ALONE_RAD: Final = 0.14
"""One sigma per axis to which one view alone is held where all views put the bone."""
SHALLOW_MM: Final = 3.0
"""Standard deviation that is added along the beam where no second view crosses it: how much larger a bone looks is
told by its blurred rim alone, and by the C-arm's focal length."""


@dataclass(frozen=True, slots=True)
class FluoroLimits:
    """Thresholds of the verdict: (accept, refuse) of each figure; where they come from: docs/registration.md."""

    score: tuple[float, float] = (0.30, 0.22)
    view_score: tuple[float, float] = (0.20, 0.10)
    margin: tuple[float, float] = (0.10, 0.03)
    stretch: tuple[float, float] = (0.018, 0.05)
    stretch_gain: tuple[float, float] = (0.008, 0.03)
    sharpness: tuple[float, float] = (0.16, 0.05)
    displaced_mm: tuple[float, float] = (0.8, 2.5)
    views_mm: tuple[float, float] = (0.7, 2.0)
    view_turn_deg: tuple[float, float] = (0.4, 1.5)
    view_depth_mm: tuple[float, float] = (2.5, 10.0)
    tre_mm: tuple[float, float] = (1.05, 4.0)


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """The result at full resolution, and what the search's resolution says of it and of other places.

    ``stretch`` and ``sharpness`` are None where they were not asked: see ``worth_asking``.
    """

    final: Fit
    here: float
    other: float
    displaced_mm: float
    agreeing: float
    stretch: Stretch | None
    sharpness: float | None
    levels: int
    deep: bool
    prior: PosePrior | None


def conclude(
    level: Level, found: Findings, frame: Frame, target_ct_mm: ArrayLike | None, limits: FluoroLimits
) -> RegistrationResult:
    """Return the result with its covariance about the CT's origin and the verdict."""
    centre, final = level.centre_ct_mm, found.final
    target = centre if target_ct_mm is None else np.asarray(target_ct_mm, dtype=np.float64)
    per_view = level.sums(final.pose)
    whole = normal_equations(np.concatenate(per_view))
    normals = [normal_equations(sums) for sums in per_view]
    beams = [level.seen(final.pose, view).T_carm_from_object.rotation for view in level.views]
    wanted = [_wanted(sums, R) for sums, R in zip(per_view, beams, strict=True)]
    apart = [one.across_mm for one in wanted]
    scale = INFLATION**2 * _scale(np.concatenate(per_view), whole)
    beam = beams[0][2]
    about = np.linalg.inv(whole.hessian / scale + 1e-9 * np.trace(whole.hessian) / scale * np.eye(6))
    if not found.deep:
        about[3:, 3:] += SHALLOW_MM**2 * np.outer(beam, beam)
    if found.prior is not None:
        about = np.linalg.inv(np.linalg.inv(about) + found.prior.weight / found.prior.scale)
    systematic = _systematic(level, final.pose, max(apart))
    covariance = covariance_about_origin(about + systematic, centre)
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
        "starts_agreeing": found.agreeing,
        "scatter_mm": float(np.sqrt(np.trace(about[3:, 3:]))),
        "depth_sigma_mm": float(np.sqrt(beam @ (about + systematic)[3:, 3:] @ beam)),
    }
    for n, (normal, one) in enumerate(zip(normals, wanted, strict=True)):
        figures[f"view{n}_score"], figures[f"view{n}_residual_mm"] = normal.score, one.across_mm
        figures[f"view{n}_turn_deg"], figures[f"view{n}_depth_mm"] = one.turn_deg, one.depth_mm
    if found.sharpness is not None:
        figures["sharpness"] = found.sharpness
    if found.stretch is not None:
        figures |= {f"longer_{axis}": float(share) for axis, share in zip("xyz", found.stretch.longer, strict=True)}
        figures |= {"stretch": found.stretch.most, "stretch_gain": found.stretch.gain}
    verdict, reason = _judge(figures, wanted, tre, limits, found.deep)
    if not found.deep and found.prior is None:
        depth = figures["depth_sigma_mm"]
        shallow = f"the views tell where the bone is across the beam, not its depth (sigma {depth:.1f} mm at best)"
        verdict, reason = Verdict.REFUSE, f"{shallow}: take another view, or say where the C-arm stands"
    details = tuple(figures.items())
    return RegistrationResult(
        "fluoro", transform, frozen_array(target, (3,)), tre, max(apart), verdict, reason, details
    )


def worth_asking(score: float, here: float, other: float, limits: FluoroLimits) -> bool:
    """Return whether a result may be accepted at all: only then the dearer questions are worth their time."""
    return score >= limits.score[0] and here - other >= limits.margin[0] * max(here, 1e-6)


def sharpness(level: Level, pose: Array) -> float:
    """Return the share of the score that is lost when the bone is moved across the beams by ``ASIDE_MM``.

    The mean over views and four ways each.  The edges of the right bone lie on those of the X-ray, and a small step
    takes them off; another bone's run along them here and there, and lose little.
    """

    def lost(n: int) -> float:
        alone, across = level.only(n), level.seen(pose, level.views[n]).T_carm_from_object.rotation[:2]
        asides = [pose.copy() for _ in range(4)]
        for aside, way in zip(asides, (*across, *-across), strict=True):
            aside[:3, 3] += ASIDE_MM * way
        return 1.0 - float(np.mean([alone.score(aside) for aside in asides])) / max(alone.score(pose), 1e-3)

    return float(np.mean(level.of_each(lost)))


def _systematic(level: Level, pose: Array, views_mm: float) -> Array:
    """Return the covariance (6, 6) about the centre of what calibration may be wrong by.

    Each view tells two directions, to ``CALIBRATION_MM`` or as well as the views agree; where the beams nearly coincide
    the third is told badly.
    """
    sigma2 = CALIBRATION_MM**2 + views_mm**2 / 3.0
    told = np.zeros((3, 3))
    for view in level.views:
        across = level.seen(pose, view).T_carm_from_object.rotation[:2]
        told += across.T @ across / sigma2
    weakest = np.linalg.eigvalsh(told)[0]
    result = np.zeros((6, 6))
    result[:3, :3] = np.eye(3) * CALIBRATION_RAD**2
    # One direction of view says nothing of depth: that is no matter of calibration.
    result[3:, 3:] = np.linalg.inv(told) if weakest * sigma2 > 0.05 else sigma2 * np.eye(3)
    return result


def score_scale(level: Level, pose: Array) -> float:
    """Return what turns the score's curvature at a pose into information: variance of a step times curvature."""
    sums = np.concatenate(level.sums(pose))
    return INFLATION**2 * _scale(sums, normal_equations(sums))


@dataclass(frozen=True, slots=True)
class Wanted:
    """How one view alone would move the bone: across its beam, along it (mm), and turn it (degrees)."""

    across_mm: float
    depth_mm: float
    turn_deg: float


def _wanted(tiles: Array, rotation: Array) -> Wanted:
    """Return the step that one view alone asks for, of six degrees of freedom, loosely held to where the bone is.

    ``rotation`` (3, 3): of the view's frame from the CT's.  Across the beam it is what is left beside its own turn and
    depth; with the true geometry all three are next to nothing, while one view's geometry told wrong can be made up for
    by a place that suits all pictures moderately, and turns them against each other.
    """
    normal = normal_equations(tiles)
    scale = INFLATION**2 * _scale(tiles, normal)
    held = np.diag(scale / np.repeat([ALONE_RAD**2, ALONE_MM**2], 3))
    step = np.linalg.solve(normal.hessian + held, normal.gradient)
    shift = rotation @ step[3:]
    across = rotation[:2].T
    here = across.T @ normal.hessian[3:, 3:] @ across + 1e-9 * np.eye(2)
    alone = np.linalg.solve(here, across.T @ normal.gradient[3:])
    return Wanted(float(np.linalg.norm(alone)), abs(float(shift[2])), float(np.degrees(np.linalg.norm(step[:3]))))


def _scale(tiles: Array, whole: Normal) -> float:
    """Return how much the steps that disjoint groups of tiles ask for scatter, in units of the inverse curvature."""
    kept = tiles[tiles[:, 0] > 0]
    steps = []
    for group in range(GROUPS):
        part = normal_equations(kept[group::GROUPS])
        steps.append(np.linalg.solve(part.hessian + 0.02 * whole.hessian, part.gradient))
    spread = np.array(steps) - np.mean(steps, axis=0)
    sandwich = spread.T @ spread / (GROUPS - 1) / GROUPS
    # Eight groups carry too few numbers for 21 of a covariance: keep the shape of the curvature, take the scale.
    return max(float(np.trace(whole.hessian @ sandwich) / 6.0), 1e-12)


def _judge(
    figures: dict[str, float], wanted: list[Wanted], tre_mm: float, limits: FluoroLimits, sized: bool = True
) -> tuple[Verdict, str]:
    """Return the verdict and the numbers that decided it; the worst finding wins.

    ``sized``: the views can tell the bone's size, so that it must have been asked for.
    """
    refuse: list[str] = []
    doubt: list[str] = []
    views_mm, depth_mm, turn_deg = (
        max(getattr(one, name) for one in wanted) for name in ("across_mm", "depth_mm", "turn_deg")
    )

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
    ask("one view alone would turn the bone by", turn_deg, limits.view_turn_deg, " degrees")
    if sized:
        ask("one view alone would move the bone along its beam by", depth_mm, limits.view_depth_mm, " mm")
    ask("a displaced start ends away by", figures["displaced_start_mm"], limits.displaced_mm, " mm")
    ask("predicted TRE at the target", tre_mm, limits.tre_mm, " mm")
    if "sharpness" in figures:
        ask(f"moved by {ASIDE_MM:g} mm the score would fall by a share of", figures["sharpness"], limits.sharpness)
    if "stretch" in figures:
        percent = (100.0 * limits.stretch[0], 100.0 * limits.stretch[1])
        ask("the bone is longer or shorter than in the CT by", 100.0 * figures["stretch"], percent, " %")
        ask("stretched, the bone would gain a score of", figures["stretch_gain"], limits.stretch_gain)
    elif sized and not refuse and not doubt:
        doubt.append("the size of the bone was not compared with the CT's")
    if not figures["levels_tried"]:
        doubt.append("no neighbouring level was tried: this may be one")
    if refuse or doubt:
        return (Verdict.REFUSE if refuse else Verdict.DOUBT), "; ".join(refuse or doubt)
    return (
        Verdict.ACCEPT,
        f"score {figures['score']:.2f}, {figures['margin']:.0%} ahead of the next best place, "
        f"views agree to {views_mm:.2f} mm, predicted TRE at the target {tre_mm:.2f} mm",
    )
