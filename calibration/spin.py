"""Owns spin calibration: where a tool's shaft points, from poses of the tool while it was turned about the shaft.

Refuses a recording without enough turning, or one whose turning has no single axis.  Position is not used: the shaft
may slide along itself and the tip may wander.
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
    rotation_spread,
    time_blocks,
)
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array, frozen_array
from navsrv.kernel.registration import Verdict

MIN_POSES: Final = 12


@dataclass(frozen=True, slots=True)
class SpinLimits:
    """Thresholds: what is not called accept is refused as bad data, or refused by the verdict."""

    turn_refuse_deg: float = 20.0
    """Smallest rms turn about the shaft (70 deg of arc)."""
    wobble_ratio_refuse: float = 0.3
    """Largest rms tilt of the best axis as a fraction of the turn: above it there is no single axis."""
    wobble_accept_deg: float = 1.0
    wobble_refuse_deg: float = 5.0
    axis_sigma_accept_deg: float = 0.3
    axis_sigma_refuse_deg: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class SpinResult:
    """Where the shaft points.

    Attributes
    ----------
    axis_tool : (3,)
        Unit vector along the shaft; from the tool's origin toward the tip where a tip was given.
    covariance_rad2 : (3, 3)
        Of ``axis_tool``; its null vector is the axis.
    axis_tracker : (3,)
        The axis as the tracker saw it, on the mean.
    residuals_rad : (N,)
        Angle between each pose's axis and the mean one; NaN for a repeated pose.
    wobble_rad : float
        Root mean square of ``residuals_rad``.
    verdict : Verdict
    reason : str
    details : tuple of (str, float)
    """

    axis_tool: Array
    covariance_rad2: Array
    axis_tracker: Array
    residuals_rad: Array
    wobble_rad: float
    verdict: Verdict
    reason: str
    details: tuple[tuple[str, float], ...]

    @property
    def axis_sigma_rad(self) -> float:
        """Predicted root-mean-square angle between the axis and the true one."""
        return float(np.sqrt(np.trace(self.covariance_rad2)))


def solve_spin(
    poses: ArrayLike, *, tip_tool_mm: ArrayLike | None = None, limits: SpinLimits | None = None
) -> SpinResult:
    """Return the shaft's direction in the tool's frame with covariance and verdict.

    The axis ``a`` minimises ``sum |R_i a - mean(R a)|^2``: the direction that the recording moves least.

    Parameters
    ----------
    poses : (N, 4, 4)
        ``T_tracker_from_tool`` in the order of time.
    tip_tool_mm : (3,) or None
        From a pivot calibration: says which end of the axis is the tip.  Without it the sign is the larger component's,
        and the verdict says so.

    Raises
    ------
    CalibrationError
        Bad poses (as for a pivot), too little turning, no single axis.
    """
    limits = limits or SpinLimits()
    given = checked_poses(poses, "spin recording", MIN_POSES)
    fresh = fresh_rows(given, what="spin recording", at_least=MIN_POSES)
    rotations = given[fresh, :3, :3]
    spread, directions = rotation_spread(rotations)
    turn_deg, wobble_deg = float(np.rad2deg(spread[1])), float(np.rad2deg(spread[0]))
    if turn_deg < limits.turn_refuse_deg:
        raise CalibrationError(
            f"spin recording: turned {turn_deg:.1f} deg (rms) about the shaft, at least {limits.turn_refuse_deg:g} deg "
            "needed; turn the tool through a quarter turn or more"
        )
    if wobble_deg > limits.wobble_ratio_refuse * turn_deg:
        raise CalibrationError(
            f"spin recording: the best axis tilts {wobble_deg:.1f} deg (rms) against {turn_deg:.1f} deg of turning: "
            "there is no single axis; turn the tool about its shaft only"
        )
    tip = None if tip_tool_mm is None else _checked_tip(tip_tool_mm)
    axis = _toward_tip(directions[:, 0], tip)
    shifts, residuals, owed = _left_out(rotations, axis)
    covariance = _across(axis) @ jackknife_covariance(shifts) @ _across(axis) * owed
    figures = {
        "poses": float(len(given)),
        "repeated": float((~fresh).sum()),
        "turn_deg": turn_deg,
        "wobble_deg": float(np.rad2deg(rms(residuals))),
        "axis_sigma_deg": float(np.rad2deg(np.sqrt(np.trace(covariance)))),
        "blocks": float(len(shifts)),
        "tip_known": float(tip is not None),
    }
    if tip is not None:
        figures["tip_angle_deg"] = float(np.rad2deg(np.arccos(np.clip(axis @ tip / np.linalg.norm(tip), -1.0, 1.0))))
    verdict, reason = _judge(limits, figures)
    mean_axis = rotations.mean(axis=0) @ axis
    all_residuals = np.full(len(given), np.nan)
    all_residuals[fresh] = residuals
    return SpinResult(
        frozen_array(axis, (3,)),
        frozen_array(0.5 * (covariance + covariance.T), (3, 3)),
        frozen_array(mean_axis / np.linalg.norm(mean_axis), (3,)),
        frozen_array(all_residuals, (len(given),)),
        rms(residuals),
        verdict,
        reason,
        tuple(figures.items()),
    )


def _left_out(rotations: Array, axis: Array) -> tuple[Array, Array, float]:
    """Return the axis' shifts (G, 3) without each block of time, the poses' angles (N,), the covariance's factor."""
    seen = rotations @ axis
    mean = seen.mean(axis=0) / np.linalg.norm(seen.mean(axis=0))
    off = seen - mean
    blocks, owed = time_blocks(off)
    shifts = np.empty((int(blocks.max()) + 1, 3))
    for block in range(len(shifts)):
        left = rotation_spread(rotations[blocks != block])[1][:, 0]
        shifts[block] = left * np.sign(left @ axis) - axis
    return shifts, np.asarray(np.arccos(np.clip(seen @ mean, -1.0, 1.0))), owed


def _across(axis: Array) -> Array:
    """Return the projector (3, 3) onto the plane across a unit vector."""
    return np.eye(3) - np.outer(axis, axis)


def _toward_tip(axis: Array, tip_tool_mm: Array | None) -> Array:
    """Return the axis with its sign toward the tip, else with its largest component positive."""
    along = axis[int(np.abs(axis).argmax())] if tip_tool_mm is None else axis @ tip_tool_mm
    return axis if along >= 0.0 else -axis


def _checked_tip(tip_tool_mm: ArrayLike) -> Array:
    """Return the tip (3,), which must not be the tool's origin: it could not tell the shaft's ends apart."""
    tip = np.asarray(tip_tool_mm, dtype=np.float64)
    if tip.shape != (3,) or not np.isfinite(tip).all():
        raise CalibrationError(f"tip must be three finite millimetres, got {tip_tool_mm!r}")
    if float(np.linalg.norm(tip)) < 1.0:
        raise CalibrationError(
            f"the tip lies {float(np.linalg.norm(tip)):.2f} mm from the tool's origin, at least 1 mm needed "
            "to tell the shaft's ends apart"
        )
    return tip


def _judge(limits: SpinLimits, figures: dict[str, float]) -> tuple[Verdict, str]:
    """Return the verdict and the numbers that decided it."""
    found = Findings()
    sigma = figures["axis_sigma_deg"]
    what = "the shaft wobbles (rms)"
    found.grade(what, figures["wobble_deg"], limits.wobble_accept_deg, limits.wobble_refuse_deg, "deg")
    what = "predicted error of the axis (rms)"
    found.grade(what, sigma, limits.axis_sigma_accept_deg, limits.axis_sigma_refuse_deg, "deg")
    if not figures["tip_known"]:
        found.doubt.append("no tip was given: which end of the axis it is at is not known")
    elif figures["tip_angle_deg"] > 80.0:
        found.doubt.append(f"the tip lies {figures['tip_angle_deg']:.0f} deg off the axis: its end is not sure")
    return found.verdict(f"predicted error of the axis {sigma:.2f} deg (rms)")
