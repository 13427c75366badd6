"""Owns pivot calibration: where a tool's tip is, from poses of the tool while its tip stood in one place.

Refuses a recording that cannot carry it (static, about one axis, resting on a few poses) before it fits anything: its
residual would be small too.  The residual is never the tip's accuracy; the covariance is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.poses import (
    Findings,
    checked_poses,
    fresh_rows,
    jackknife_covariance,
    least_spread_deg,
    left_out_shifts,
    rms,
    scores,
    time_blocks,
)
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array, frozen_array
from navsrv.kernel.registration import Verdict

MIN_POSES: Final = 12
SAMPLES: Final = 200
SAMPLE_POSES: Final = 4
SEED: Final = 20
CHI3_MEDIAN: Final = 1.5382
"""Median length of a 3-D normal vector of unit standard deviation."""
OUTLIER_SIGMAS: Final = 4.5
"""A 3-D normal vector is longer once in 7,000 times."""
NOISE_FLOOR_MM: Final = 0.01
"""Below it no pose is called an outlier: no tracker is better."""


class PivotMethod(Enum):
    """How the tip is found.  ALGEBRAIC takes every pose, RANSAC those that agree, SPHERE trusts positions alone."""

    ALGEBRAIC = "algebraic"
    RANSAC = "ransac"
    SPHERE = "sphere"


@dataclass(frozen=True, slots=True)
class PivotLimits:
    """Thresholds: spread below ``spread_refuse_deg`` is refused as bad data, the others decide the verdict."""

    spread_refuse_deg: float = 4.0
    spread_accept_deg: float = 8.0
    residual_accept_mm: float = 0.6
    residual_refuse_mm: float = 3.0
    tip_sigma_accept_mm: float = 0.5
    tip_sigma_refuse_mm: float = 1.5
    leave_out_accept_mm: float = 0.5
    leave_out_refuse_mm: float = 2.0
    outliers_accept_percent: float = 5.0
    outliers_refuse_percent: float = 40.0
    disagreement_accept_mm: float = 0.5
    disagreement_refuse_mm: float = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class PivotResult:
    """Where the tip is.

    Attributes
    ----------
    method : PivotMethod
    tip_tool_mm : (3,)
    covariance_mm2 : (3, 3)
        Of ``tip_tool_mm``, from leaving out blocks of time.
    pivot_tracker_mm : (3,)
        Where the tip stood.
    residuals_mm : (N, 3)
        Of every pose, outliers too: pivot less tip, in the tracker's frame; NaN for a repeated pose.
    inliers : (N,) bool
        The poses that the fit used.
    residual_mm : float
        Root mean square per axis over the poses used; their rms length is sqrt(3) times that.
    verdict : Verdict
    reason : str
    details : tuple of (str, float)
    """

    method: PivotMethod
    tip_tool_mm: Array
    covariance_mm2: Array
    pivot_tracker_mm: Array
    residuals_mm: Array
    inliers: NDArray[np.bool_]
    residual_mm: float
    verdict: Verdict
    reason: str
    details: tuple[tuple[str, float], ...]

    @property
    def tip_sigma_mm(self) -> float:
        """Predicted root-mean-square length of the tip's error."""
        return float(np.sqrt(np.trace(self.covariance_mm2)))


def solve_pivot(
    poses: ArrayLike, *, method: PivotMethod = PivotMethod.ALGEBRAIC, limits: PivotLimits | None = None
) -> PivotResult:
    """Return the tip in the tool's frame with covariance and verdict.

    Parameters
    ----------
    poses : (N, 4, 4)
        ``T_tracker_from_tool`` (or any fixed frame in place of the tracker) in the order of time, millimetres.

    Raises
    ------
    CalibrationError
        Poses that are not finite, mirrored, not rigid, too few or repeated; rotations that spread too little.
    """
    limits = limits or PivotLimits()
    given = checked_poses(poses, "pivot recording", MIN_POSES)
    fresh = fresh_rows(given, what="pivot recording", at_least=MIN_POSES)
    rotations, positions = given[fresh, :3, :3], given[fresh, :3, 3]
    _check_spread(rotations, limits)
    agreeing = _consensus(rotations, positions)
    used = agreeing if method is PivotMethod.RANSAC else np.ones(len(rotations), dtype=np.bool_)
    spread_deg = _check_spread(rotations[used], limits)
    tips = {
        PivotMethod.ALGEBRAIC: _algebraic(rotations, positions)[0],
        PivotMethod.RANSAC: _algebraic(rotations[agreeing], positions[agreeing])[0],
        PivotMethod.SPHERE: _sphere(rotations, positions)[0],
    }
    solve = _sphere if method is PivotMethod.SPHERE else _algebraic
    tip, pivot = solve(rotations[used], positions[used])
    residuals = pivot - (rotations @ tip + positions)
    jacobian = np.concatenate([rotations[used], np.broadcast_to(-np.eye(3), rotations[used].shape)], axis=2)
    blocks, owed = time_blocks(scores(jacobian, residuals[used]))
    left_deg = least_spread_deg(rotations[used], blocks)
    if left_deg < limits.spread_refuse_deg:
        raise CalibrationError(
            f"pivot recording: without {len(blocks) // (int(blocks.max()) + 1)} of its {len(blocks)} poses the "
            f"rotations spread {left_deg:.2f} deg about the weakest axis, at least "
            f"{limits.spread_refuse_deg:g} deg needed; keep moving the tool during the whole recording"
        )
    if method is PivotMethod.SPHERE:
        left = [blocks != block for block in range(int(blocks.max()) + 1)]
        shifts = np.array([_sphere(rotations[used][keep], positions[used][keep])[0] - tip for keep in left])
    else:
        shifts = left_out_shifts(jacobian, residuals[used], blocks)[:, :3]
    covariance = jackknife_covariance(shifts) * owed
    residual = float(np.sqrt((residuals[used] ** 2).sum() / (3 * used.sum())))
    figures = {
        "poses": float(len(given)),
        "repeated": float((~fresh).sum()),
        "outliers_percent": 100.0 * float((~agreeing).mean()),
        "spread_deg": spread_deg,
        "residual_axis_mm": residual,
        "residual_length_mean_mm": float(np.linalg.norm(residuals[used], axis=1).mean()),
        "residual_length_max_mm": float(np.linalg.norm(residuals[used], axis=1).max()),
        "tip_sigma_mm": float(np.sqrt(np.trace(covariance))),
        "blocks": float(len(shifts)),
        "leave_out_mm": float(np.linalg.norm(shifts, axis=1).max()),
        "ransac_off_mm": float(np.linalg.norm(tips[PivotMethod.RANSAC] - tip)),
        "sphere_off_mm": float(np.linalg.norm(tips[PivotMethod.SPHERE] - tip)),
        "algebraic_off_mm": float(np.linalg.norm(tips[PivotMethod.ALGEBRAIC] - tip)),
    }
    verdict, reason = _judge(limits, method, figures)
    all_residuals = np.full((len(given), 3), np.nan)
    all_residuals[fresh] = residuals
    inliers = np.zeros(len(given), dtype=np.bool_)
    inliers[fresh] = used
    for mask in (all_residuals, inliers):
        mask.flags.writeable = False
    return PivotResult(
        method,
        frozen_array(tip, (3,)),
        frozen_array(covariance, (3, 3)),
        frozen_array(pivot, (3,)),
        all_residuals,
        inliers,
        residual,
        verdict,
        reason,
        tuple(figures.items()),
    )


def _algebraic(rotations: Array, positions: Array) -> tuple[Array, Array]:
    """Return tip and pivot (3,) that minimise ``|R_i tip + p_i - pivot|^2``."""
    mean_rotation, mean_position = rotations.mean(axis=0), positions.mean(axis=0)
    a = (rotations - mean_rotation).reshape(-1, 3)
    tip: Array = np.linalg.lstsq(a, -(positions - mean_position).ravel(), rcond=None)[0]
    return tip, mean_rotation @ tip + mean_position


def _sphere(rotations: Array, positions: Array) -> tuple[Array, Array]:
    """Return tip and pivot (3,): the pivot is the centre of the positions' sphere, the tip its mean in the tool."""
    origin = positions.mean(axis=0)
    p = positions - origin
    scale = max(rms(p), 1e-9)
    a = np.column_stack([2.0 * p, np.full(len(p), scale)])
    centre = np.linalg.lstsq(a, (p**2).sum(axis=1), rcond=None)[0][:3]
    tip: Array = np.einsum("nji,nj->ni", rotations, centre - p).mean(axis=0)
    return tip, centre + origin


def _consensus(rotations: Array, positions: Array) -> NDArray[np.bool_]:
    """Return the poses (N,) that agree with the tip that most agree with.

    Random samples, the one with the least median residual (Rousseeuw 1984) gives the scale, then trimmed refits.
    """
    n = len(rotations)
    rng = np.random.default_rng(SEED)
    picks = rng.integers(0, n, (SAMPLES, SAMPLE_POSES))
    r, p = rotations[picks], positions[picks]
    a = (r - r.mean(axis=1, keepdims=True)).reshape(SAMPLES, -1, 3)
    b = -(p - p.mean(axis=1, keepdims=True)).reshape(SAMPLES, -1, 1)
    inverse = np.linalg.pinv(a.transpose(0, 2, 1) @ a, rcond=1e-6, hermitian=True)
    tips = (inverse @ (a.transpose(0, 2, 1) @ b))[:, :, 0]
    pivots = np.einsum("sij,sj->si", r.mean(axis=1), tips) + p.mean(axis=1)
    lengths = np.linalg.norm(np.einsum("nij,sj->sni", rotations, tips) + positions - pivots[:, None], axis=2)
    medians = np.median(lengths, axis=1)
    best = lengths[int(medians.argmin())]
    keep: NDArray[np.bool_] = best <= max(np.median(best), NOISE_FLOOR_MM)
    for _ in range(10):
        tip, pivot = _algebraic(rotations[keep], positions[keep])
        length = np.linalg.norm(rotations @ tip + positions - pivot, axis=1)
        sigma = max(float(np.median(length)) / CHI3_MEDIAN, NOISE_FLOOR_MM)
        now = length <= OUTLIER_SIGMAS * sigma
        if (now == keep).all():
            break
        keep = now
    return keep


def _check_spread(rotations: Array, limits: PivotLimits) -> float:
    """Return the rotations' spread about the weakest axis in degrees; refuse too little."""
    spread_deg = least_spread_deg(rotations)
    if spread_deg < limits.spread_refuse_deg:
        raise CalibrationError(
            f"pivot recording: the rotations spread {spread_deg:.2f} deg about the weakest axis, at least "
            f"{limits.spread_refuse_deg:g} deg needed; tilt the tool in all directions about its resting tip"
        )
    return spread_deg


def _judge(limits: PivotLimits, method: PivotMethod, figures: dict[str, float]) -> tuple[Verdict, str]:
    """Return the verdict and the numbers that decided it."""
    found = Findings()
    figure = figures.__getitem__
    found.grade(
        "noisy: residual per axis",
        figure("residual_axis_mm"),
        limits.residual_accept_mm,
        limits.residual_refuse_mm,
        "mm",
    )
    found.grade(
        "predicted error of the tip (rms)",
        figure("tip_sigma_mm"),
        limits.tip_sigma_accept_mm,
        limits.tip_sigma_refuse_mm,
        "mm",
    )
    what = "the tip moves when part of the recording is left out:"
    found.grade(what, figure("leave_out_mm"), limits.leave_out_accept_mm, limits.leave_out_refuse_mm, "mm")
    what = "poses that do not agree:"
    found.grade(what, figure("outliers_percent"), limits.outliers_accept_percent, limits.outliers_refuse_percent, "%")
    if method is not PivotMethod.RANSAC:
        what = "the poses that agree (ransac) put the tip off by"
        found.grade(what, figure("ransac_off_mm"), limits.disagreement_accept_mm, limits.disagreement_refuse_mm, "mm")
    if figure("spread_deg") < limits.spread_accept_deg:
        found.doubt.append(f"rotations spread {figure('spread_deg'):.1f} deg, below {limits.spread_accept_deg:g} deg")
    return found.verdict(f"predicted error of the tip {figure('tip_sigma_mm'):.2f} mm (rms)")
