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
from navsrv.kernel.projection import ProjectionModel
from navsrv.kernel.registration import RegistrationResult, Verdict, tre_rms_mm
from navsrv.registration.fluoro_stretch import Stretch
from navsrv.registration.fluoro_views import MIN_TILE_PIXELS, Fit, Level, Normal, PosePrior, normal_equations
from navsrv.registration.tiles import covariance_about_origin

GROUPS: Final = 8
INFLATION: Final = 2.0
CALIBRATION_MM: Final = 0.5
CALIBRATION_RAD: Final = 0.004
"""Standard deviation per axis across each beam, and of the turn, that no image tells: with a source 1-2 mm and a
principal point 1-3 pixels off the calibration, images and views agree as well as ever and the bone is elsewhere."""
SHALLOW_MM: Final = 3.0
"""Standard deviation that is added along the beam where no second view crosses it: how much larger a bone looks is
told by its blurred rim alone, and by the C-arm's focal length."""


@dataclass(frozen=True, slots=True)
class FluoroLimits:
    """Thresholds of the verdict: (accept, refuse) of each figure."""

    score: tuple[float, float] = (0.28, 0.22)
    view_score: tuple[float, float] = (0.20, 0.10)
    margin: tuple[float, float] = (0.15, 0.03)
    stretch: tuple[float, float] = (0.02, 0.05)
    stretch_gain: tuple[float, float] = (0.01, 0.03)
    displaced_mm: tuple[float, float] = (0.8, 2.5)
    views_mm: tuple[float, float] = (0.7, 2.0)
    tre_mm: tuple[float, float] = (1.2, 4.0)


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """The result at full resolution, and what the search's resolution says of it and of other places.

    ``stretch`` is None where it was not asked: see ``worth_stretching``.
    """

    final: Fit
    here: float
    other: float
    displaced_mm: float
    agreeing: float
    stretch: Stretch | None
    stand_out: list[tuple[float, float]]
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
    apart = [_wanted_mm(n, level.seen(final.pose, v)) for n, v in zip(normals, level.views, strict=True)]
    scale = INFLATION**2 * _scale(np.concatenate(per_view), whole)
    beam = level.seen(final.pose, level.views[0]).T_carm_from_object.rotation[2]
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
        "bend_mm": _bend_mm(per_view, level, final.pose),
        "scatter_mm": float(np.sqrt(np.trace(about[3:, 3:]))),
        "depth_sigma_mm": float(np.sqrt(beam @ (about + systematic)[3:, 3:] @ beam)),
    }
    for n, (normal, mm, (peak, rival)) in enumerate(zip(normals, apart, found.stand_out, strict=True)):
        figures[f"view{n}_score"], figures[f"view{n}_residual_mm"] = normal.score, mm
        figures[f"view{n}_peak"], figures[f"view{n}_rival"] = peak, rival
    if found.stretch is not None:
        figures |= {f"longer_{axis}": float(share) for axis, share in zip("xyz", found.stretch.longer, strict=True)}
        figures |= {"stretch": found.stretch.most, "stretch_gain": found.stretch.gain}
    verdict, reason = _judge(figures, max(apart), tre, limits, found.deep)
    if not found.deep and found.prior is None:
        depth = figures["depth_sigma_mm"]
        shallow = f"the views tell where the bone is across the beam, not its depth (sigma {depth:.1f} mm at best)"
        verdict, reason = Verdict.REFUSE, f"{shallow}: take another view, or say where the C-arm stands"
    details = tuple(figures.items())
    return RegistrationResult(
        "fluoro", transform, frozen_array(target, (3,)), tre, max(apart), verdict, reason, details
    )


def worth_stretching(score: float, here: float, other: float, limits: FluoroLimits) -> bool:
    """Return whether a result may be accepted at all: only then it is worth the time to ask for the bone's size."""
    return score >= limits.score[0] and here - other >= limits.margin[0] * max(here, 1e-6)


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


def _bend_mm(tiles: list[Array], level: Level, pose: Array) -> float:
    """Return by how much single tiles would shift the bone across the beam (mm, weighted median of lengths).

    The right bone fits everywhere at once; another bone, or another patient's, fits here only at the cost of there.
    """
    lengths: list[Array] = []
    weights: list[Array] = []
    for sums, view in zip(tiles, level.views, strict=True):
        s = sums[(sums[:, 0] >= 2 * MIN_TILE_PIXELS) & (sums[:, 2] > 0.0) & (sums[:, 1] > 0.0)]
        if not len(s):
            continue
        across = np.zeros((6, 2))
        across[3:] = level.seen(pose, view).T_carm_from_object.rotation[:2].T
        rows, columns = np.triu_indices(6)
        jj = np.zeros((len(s), 6, 6))
        jj[:, rows, columns] = s[:, 16:] / s[:, 2:3]
        jj[:, columns, rows] = jj[:, rows, columns]
        norm, mj = np.sqrt(s[:, 1] * s[:, 2])[:, None], s[:, 10:16] / s[:, 2:3]
        ncc = s[:, 3:4] / norm
        gradient = (s[:, 4:10] / norm - ncc * mj) @ across
        hessian = across.T @ (jj - mj[:, :, None] * mj[:, None, :]) @ across
        trace = np.trace(hessian, axis1=1, axis2=2)[:, None, None]
        # The curvature of a tile that hardly correlates is that of a tile that does: its wish counts for less.
        steps = np.linalg.solve(hessian + 0.05 * trace * np.eye(2), gradient[:, :, None])[:, :, 0]
        lengths.append(np.linalg.norm(steps, axis=1) / np.maximum(ncc[:, 0], 0.1))
        weights.append(np.sqrt(s[:, 2]))
    if not lengths:
        return float("inf")
    length, weight = np.concatenate(lengths), np.concatenate(weights)
    order = np.argsort(length)
    return float(length[order][np.searchsorted(np.cumsum(weight[order]), 0.5 * weight.sum())])


def score_scale(level: Level, pose: Array) -> float:
    """Return what turns the score's curvature at a pose into information: variance of a step times curvature."""
    sums = np.concatenate(level.sums(pose))
    return INFLATION**2 * _scale(sums, normal_equations(sums))


def _wanted_mm(normal: Normal, model: ProjectionModel) -> float:
    """Return how far (mm, across the beam) one view alone would move the bone: what the views disagree by."""
    across = np.zeros((6, 2))
    across[3:] = model.T_carm_from_object.rotation[:2].T
    step = np.linalg.solve(across.T @ normal.hessian @ across + 1e-9 * np.eye(2), across.T @ normal.gradient)
    return float(np.linalg.norm(step))


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
    figures: dict[str, float], views_mm: float, tre_mm: float, limits: FluoroLimits, sized: bool = True
) -> tuple[Verdict, str]:
    """Return the verdict and the numbers that decided it; the worst finding wins.

    ``sized``: the views can tell the bone's size, so that it must have been asked for.
    """
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
