"""Owns a needle's tip and axis without pivoting: from two points on its shaft, or from a template of known geometry.

A template is a tracked block in which the needle rests, its tip at a known point and its shaft along a known line.  The
same mean of a transform that should not change serves the gantry (``calibration.hand_eye``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from calibration.poses import (
    Findings,
    checked_poses,
    fresh_rows,
    jackknife_covariance,
    rms,
    time_blocks,
)
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array, Frame, Rigid, frozen_array, nearest_rotation, skew
from navsrv.kernel.registration import Verdict

MIN_TIP_GAP_MM: Final = 20.0
MIN_VIEWS: Final = 10
MIN_SIGMA_MM: Final = 0.02


@dataclass(frozen=True, slots=True)
class NeedleLimits:
    """Thresholds of the verdict: at most ``accept`` is accepted, above ``refuse`` is refused."""

    tip_sigma_accept_mm: float = 0.5
    tip_sigma_refuse_mm: float = 1.5
    axis_sigma_accept_deg: float = 0.3
    axis_sigma_refuse_deg: float = 1.0
    residual_accept_mm: float = 0.6
    residual_refuse_mm: float = 3.0
    residual_accept_deg: float = 0.5
    residual_refuse_deg: float = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class NeedleResult:
    """Tip and axis of a needle in its tool's frame.

    Attributes
    ----------
    tip_tool_mm, axis_tool : (3,)
        The axis is a unit vector toward the tip.
    tip_covariance_mm2, axis_covariance_rad2 : (3, 3)
    residual_mm : float
        Root mean square per axis at the tip over the views; 0 for two tips, which leave none.
    verdict : Verdict
    reason : str
    details : tuple of (str, float)
    """

    tip_tool_mm: Array
    tip_covariance_mm2: Array
    axis_tool: Array
    axis_covariance_rad2: Array
    residual_mm: float
    verdict: Verdict
    reason: str
    details: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, eq=False)
class MeanTransform:
    """The mean of a transform that should not change, its covariance, and each view's error as (rotation, mm)."""

    transform: Rigid
    errors: Array
    """(N, 6): small rotation in radians and translation in mm, left, in ``transform.to``."""
    blocks: int


def axis_from_tips(
    tip_tool_mm: ArrayLike,
    tip_covariance_mm2: ArrayLike,
    other_tool_mm: ArrayLike,
    other_covariance_mm2: ArrayLike,
    *,
    limits: NeedleLimits | None = None,
) -> NeedleResult:
    """Return the axis through two points of one shaft: the tip, and a second tip nearer to the hub.

    The second may be a shorter stylet's tip or the cannula's rim, each found by its own pivot calibration.

    Parameters
    ----------
    tip_tool_mm, other_tool_mm : (3,)
    tip_covariance_mm2, other_covariance_mm2 : (3, 3)
        As the pivot calibrations give them; taken as independent.

    Raises
    ------
    CalibrationError
        Numbers that are not finite, or points closer than ``MIN_TIP_GAP_MM``.
    """
    limits = limits or NeedleLimits()
    tip, other = _checked_point(tip_tool_mm, "tip"), _checked_point(other_tool_mm, "second tip")
    tip_covariance = _checked_covariance(tip_covariance_mm2, "tip")
    other_covariance = _checked_covariance(other_covariance_mm2, "second tip")
    gap = float(np.linalg.norm(tip - other))
    if gap < MIN_TIP_GAP_MM:
        raise CalibrationError(
            f"the two tips are {gap:.2f} mm apart, at least {MIN_TIP_GAP_MM:g} mm needed for an axis"
        )
    axis = (tip - other) / gap
    across = np.eye(3) - np.outer(axis, axis)
    axis_covariance = across @ (tip_covariance + other_covariance) @ across / gap**2
    figures = {"gap_mm": gap, **_sigmas(tip_covariance, axis_covariance)}
    verdict, reason = _judge(limits, figures)
    return NeedleResult(
        frozen_array(tip, (3,)),
        frozen_array(tip_covariance, (3, 3)),
        frozen_array(axis, (3,)),
        frozen_array(axis_covariance, (3, 3)),
        0.0,
        verdict,
        reason,
        tuple(figures.items()),
    )


def solve_template(
    tracker_from_tool: ArrayLike,
    tracker_from_template: ArrayLike,
    *,
    tip_template_mm: ArrayLike,
    axis_template: ArrayLike,
    made_to_mm: float,
    made_to_deg: float = 0.0,
    limits: NeedleLimits | None = None,
) -> NeedleResult:
    """Return tip and axis of a needle that rests in a tracked template.

    Parameters
    ----------
    tracker_from_tool, tracker_from_template : (N, 4, 4)
        Row by row of one instant; moving the template between views averages the tracker's own error.
    tip_template_mm : (3,)
        Where the tip rests.
    axis_template : (3,)
        The shaft's direction toward the tip, of any length.
    made_to_mm, made_to_deg : float
        The template's own error (one sigma an axis), which no number of views averages out.

    Raises
    ------
    CalibrationError
        Bad poses, unequal counts, a direction of no length.
    """
    limits = limits or NeedleLimits()
    tip_template = _checked_point(tip_template_mm, "tip in the template")
    direction = _checked_point(axis_template, "axis in the template")
    length = float(np.linalg.norm(direction))
    if length < 1e-9:
        raise CalibrationError(f"axis in the template: length {length:g}, a direction is needed")
    if not (made_to_mm >= 0.0 and made_to_deg >= 0.0):
        raise CalibrationError(f"the template's error must not be negative, got {made_to_mm} mm and {made_to_deg} deg")
    tools, templates = paired_poses(tracker_from_tool, tracker_from_template, ("tool", "template"), MIN_VIEWS)
    mean = mean_transform(np.linalg.inv(tools) @ templates, to=Frame("tool"), frm=Frame("template"))
    tip, axis = mean.transform.apply(tip_template), mean.transform.rotation @ (direction / length)
    to_tip = np.hstack([-skew(tip), np.eye(3)])
    to_axis = np.hstack([-skew(axis), np.zeros((3, 3))])
    covariance = mean.transform.covariance
    assert covariance is not None
    tip_covariance = to_tip @ covariance @ to_tip.T + np.eye(3) * made_to_mm**2
    across = np.eye(3) - np.outer(axis, axis)
    axis_covariance = to_axis @ covariance @ to_axis.T + across * np.deg2rad(made_to_deg) ** 2
    residual = rms(mean.errors @ to_tip.T)
    figures = {
        "views": float(len(mean.errors)),
        "blocks": float(mean.blocks),
        "residual_mm": residual,
        "residual_deg": float(np.rad2deg(rms(mean.errors[:, :3]))),
        **_sigmas(tip_covariance, axis_covariance),
    }
    verdict, reason = _judge(limits, figures)
    return NeedleResult(
        frozen_array(tip, (3,)),
        frozen_array(0.5 * (tip_covariance + tip_covariance.T), (3, 3)),
        frozen_array(axis, (3,)),
        frozen_array(0.5 * (axis_covariance + axis_covariance.T), (3, 3)),
        residual,
        verdict,
        reason,
        tuple(figures.items()),
    )


def paired_poses(first: ArrayLike, second: ArrayLike, names: tuple[str, str], at_least: int) -> tuple[Array, Array]:
    """Return two pose recordings (N, 4, 4) of the same instants, without rows in which neither moved.

    Raises
    ------
    CalibrationError
        Bad poses, or unequal counts.
    """
    a, b = checked_poses(first, f"{names[0]} poses", at_least), checked_poses(second, f"{names[1]} poses", at_least)
    if len(a) != len(b):
        raise CalibrationError(f"{len(a)} {names[0]} poses against {len(b)} {names[1]} poses: each needs its partner")
    fresh = fresh_rows(a, b, what=f"{names[0]} and {names[1]} poses", at_least=at_least)
    return a[fresh], b[fresh]


def mean_transform(views: Array, *, to: Frame, frm: Frame) -> MeanTransform:
    """Return the mean of views (N, 4, 4) of one transform, with covariance from leaving out blocks of time.

    Translation is averaged at the mean of the views, rotation in the Frobenius norm.
    """
    rotation = nearest_rotation(views[:, :3, :3].sum(axis=0))
    translation = views[:, :3, 3].mean(axis=0)
    errors = np.empty((len(views), 6))
    turned = views[:, :3, :3] @ rotation.T
    errors[:, :3] = 0.5 * np.stack(
        [turned[:, 2, 1] - turned[:, 1, 2], turned[:, 0, 2] - turned[:, 2, 0], turned[:, 1, 0] - turned[:, 0, 1]],
        axis=1,
    )
    # A left perturbation moves a point p by w x p + t: at the origin of ``frm`` that is w x translation + t.
    errors[:, 3:] = views[:, :3, 3] - translation - np.cross(errors[:, :3], translation)
    blocks, owed = time_blocks(errors / np.maximum(errors.std(axis=0), 1e-12))
    count = int(blocks.max()) + 1
    shifts = np.array([errors[blocks != block].mean(axis=0) for block in range(count)])
    covariance = jackknife_covariance(shifts) * owed
    return MeanTransform(Rigid(to, frm, rotation, translation, 0.5 * (covariance + covariance.T)), errors, count)


def _sigmas(tip_covariance: Array, axis_covariance: Array) -> dict[str, float]:
    """Return the predicted rms errors of tip and axis."""
    return {
        "tip_sigma_mm": float(np.sqrt(np.trace(tip_covariance))),
        "axis_sigma_deg": float(np.rad2deg(np.sqrt(np.trace(axis_covariance)))),
    }


def _checked_point(point: ArrayLike, what: str) -> Array:
    """Return three finite numbers or refuse them."""
    p = np.asarray(point, dtype=np.float64)
    if p.shape != (3,) or not np.isfinite(p).all():
        raise CalibrationError(f"{what} must be three finite numbers, got {point!r}")
    return p


def _checked_covariance(covariance: ArrayLike, what: str) -> Array:
    """Return a covariance (3, 3), or refuse one that claims less than any tracker can."""
    c = np.asarray(covariance, dtype=np.float64)
    if c.shape != (3, 3) or not np.isfinite(c).all() or np.abs(c - c.T).max() > 1e-9 * np.abs(c).max():
        raise CalibrationError(f"covariance of the {what}: a symmetric, finite (3, 3) matrix is needed")
    least = float(np.linalg.eigvalsh(c)[0])
    size = float(np.sqrt(max(np.trace(c), 0.0)))
    if least < -1e-9 * size**2 or size < MIN_SIGMA_MM:
        raise CalibrationError(
            f"covariance of the {what}: rms {size:.3g} mm, smallest variance {least:.3g}; "
            f"at least {MIN_SIGMA_MM:g} mm and no negative variance are believed"
        )
    return c


def _judge(limits: NeedleLimits, figures: dict[str, float]) -> tuple[Verdict, str]:
    """Return the verdict and the numbers that decided it."""
    found = Findings()
    rows = (
        (
            "predicted error of the tip (rms)",
            "tip_sigma_mm",
            "mm",
            limits.tip_sigma_accept_mm,
            limits.tip_sigma_refuse_mm,
        ),
        (
            "predicted error of the axis (rms)",
            "axis_sigma_deg",
            "deg",
            limits.axis_sigma_accept_deg,
            limits.axis_sigma_refuse_deg,
        ),
        ("noisy: residual per axis", "residual_mm", "mm", limits.residual_accept_mm, limits.residual_refuse_mm),
        ("noisy: rotation per axis", "residual_deg", "deg", limits.residual_accept_deg, limits.residual_refuse_deg),
    )
    for what, name, unit, accept, refuse in rows:
        if name in figures:
            found.grade(what, figures[name], accept, refuse, unit)
    tip, axis = figures["tip_sigma_mm"], figures["axis_sigma_deg"]
    return found.verdict(f"predicted error of the tip {tip:.2f} mm, of the axis {axis:.2f} deg (rms)")
