"""Owns the calibration of one X-ray view from a bead phantom: source, detector, pose and distortion, and their error.

Refuses too few beads for the numbers asked for, and beads that do not cover the picture.  The C-arm frame is that of
``navsrv.kernel.projection``; two views together place a point in the phantom's frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from calibration.bead_phantom import BeadMatch, BeadPhantom, NominalArm, match_beads
from calibration.beads import Beads, Tone, find_beads
from calibration.distortion import Bending, Distortion, displacement
from calibration.poses import MAD_TO_SIGMA, Findings
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import CARM, Array, Frame, Rigid, frozen_array
from navsrv.kernel.projection import ProjectionModel
from navsrv.kernel.registration import Verdict

Mask = NDArray[np.bool_]

PHANTOM: Final = Frame("phantom")
CENTRE_FLOOR_PX: Final = 0.003
"""No centre is believed to less."""
OUTLIER_SIGMAS: Final = 4.5
ROUNDS: Final = 3
SPARE: Final = 2.0
"""Equations that are needed for each unknown."""
POSE, CAMERA = 6, 5
CENTRE_PRIOR: Final = 0.1
BENDING_PRIOR: Final = 0.2
"""One sigma of the distortion's centre and factors, in half sides: no intensifier bends more, and a flat panel does not
determine where its centre is."""


@dataclass(frozen=True, slots=True)
class CarmLimits:
    """Thresholds of the verdict on a view: at most ``accept`` is accepted, above ``refuse`` is refused."""

    residual_accept_px: float = 0.3
    residual_refuse_px: float = 1.5
    source_sigma_accept_mm: float = 1.0
    source_sigma_refuse_mm: float = 5.0
    point_sigma_accept_mm: float = 0.15
    point_sigma_refuse_mm: float = 0.5
    left_out_accept_percent: float = 10.0
    left_out_refuse_percent: float = 35.0
    coverage_accept_percent: float = 50.0
    coverage_refuse_percent: float = 20.0


@dataclass(frozen=True, slots=True, eq=False)
class CarmView:
    """One calibrated view.

    Attributes
    ----------
    model : ProjectionModel
        Of the ideal picture, ``T_carm_from_phantom``.
    distortion : Distortion
    parameters, covariance : (P,), (P, P)
        Pose (rotation vector, translation in mm), camera (focal lengths, skew, principal point in pixels), distortion.
        The camera's numbers that were held have no variance.
    bead_indices : (N,) int
        Beads of the phantom that were used.
    centres_px, residuals_px : (N, 2)
        Where they were seen, and seen less predicted.
    residual_px : float
        Root mean square per axis.
    bead_depths_mm : (N,)
        Of the beads used, from the source along the detector's normal.
    source_sigma_mm : float
        Predicted rms error of the source's place in the phantom.
    point_sigma_mm : float
        Predicted rms error of the ray through the phantom's middle there, across the ray, calibration alone.
    verdict : Verdict
    reason : str
    details : tuple of (str, float)
    """

    model: ProjectionModel
    distortion: Distortion
    parameters: Array
    covariance: Array
    bead_indices: NDArray[np.intp]
    centres_px: Array
    residuals_px: Array
    bead_depths_mm: Array
    residual_px: float
    source_sigma_mm: float
    point_sigma_mm: float
    verdict: Verdict
    reason: str
    details: tuple[tuple[str, float], ...]

    def undistort(self, image: ArrayLike) -> Array:
        """Return the ideal picture of a seen one (rows, columns)."""
        return np.asarray(self.distortion.undistort(image), dtype=np.float64)

    @property
    def source_covariance_mm2(self) -> Array:
        """Covariance (3, 3) of the source's place in the phantom's frame."""
        jacobian = _derivative(_source, self.parameters[:POSE])
        covariance: Array = jacobian @ self.covariance[:POSE, :POSE] @ jacobian.T
        return covariance


def calibrate_view(
    image: ArrayLike,
    phantom: BeadPhantom,
    arm: NominalArm,
    *,
    bending: Bending = Bending.INTENSIFIER,
    tone: Tone = Tone.COUNTS,
    limits: CarmLimits | None = None,
) -> CarmView:
    """Return the calibration of one X-ray of a bead phantom.

    Raises
    ------
    CalibrationError
        No picture, no phantom in it, a mirrored one, or too few beads.
    """
    found = find_beads(image, phantom.radii_px(arm.sdd_mm, arm.pixel_mm), tone=tone)
    return solve_view(found, match_beads(found, phantom, arm), phantom, arm, bending=bending, limits=limits)


def solve_view(
    found: Beads,
    match: BeadMatch,
    phantom: BeadPhantom,
    arm: NominalArm,
    *,
    bending: Bending = Bending.INTENSIFIER,
    limits: CarmLimits | None = None,
) -> CarmView:
    """Return the view that a match of shadows to beads speaks for.

    Weighted least squares over pose, camera and distortion; a bead's error of making counts at its magnification.
    Pixels are square and not sheared unless the distortion is a polynomial, which would hide both.

    Raises
    ------
    CalibrationError
        Fewer than ``SPARE`` equations for each unknown.
    """
    limits = limits or CarmLimits()
    free = _free(bending)
    points, seen = phantom.beads_mm[match.beads], found.centres_px[match.shadows]
    if 2 * len(points) < SPARE * free.sum():
        raise CalibrationError(
            f"{len(points)} beads for {int(free.sum())} unknowns of a {bending.value} view, at least "
            f"{int(np.ceil(SPARE * free.sum() / 2))} needed"
        )
    spread = phantom.made_to_mm * arm.focal_px / max(float(match.camera[5]), 1.0)
    sigmas = np.sqrt(found.sigmas_px[match.shadows] ** 2 + spread**2 + CENTRE_FLOOR_PX**2)
    focal = float(match.camera[6])
    start = np.concatenate([match.camera[:6], [focal, 1.0, 0.0], match.camera[7:9], np.zeros(bending.parameters)])
    if bending is Bending.INTENSIFIER:
        half = max(arm.columns, arm.rows) / 2.0
        start[POSE + CAMERA + 2] = float(match.camera[9]) * (half / focal) ** 2
    keep = np.ones(len(points), dtype=np.bool_)
    parameters = start
    for _ in range(ROUNDS):
        parameters = _fitted(parameters, free, points[keep], seen[keep], sigmas[keep], bending, arm)
        misses = (seen - _seen(parameters[None], points, bending, arm)[0]) / sigmas[:, None]
        scale = max(MAD_TO_SIGMA * float(np.median(np.abs(misses[keep]))), 1.0)
        now = np.abs(misses).max(axis=1) <= OUTLIER_SIGMAS * scale
        if (now == keep).all() or 2 * now.sum() < SPARE * free.sum():
            break
        keep = now
    return _judged(parameters, free, points, seen, sigmas, keep, match, found, phantom, arm, bending, limits)


def triangulate(models: list[ProjectionModel], pixels: ArrayLike, sigma_px: float = 0.1) -> tuple[Array, Array]:
    """Return the point (3,) that two or more views see at (V, 2) ideal pixels, and its covariance by pixel noise alone.

    Gauss-Newton on the distances in the pictures, from the point nearest to all rays.

    Raises
    ------
    CalibrationError
        Fewer than two views, views of different frames, or rays that are nearly parallel.
    """
    places = np.asarray(pixels, dtype=np.float64)
    if len(models) < 2 or places.shape != (len(models), 2):
        raise CalibrationError(f"{len(models)} views and pixels of shape {places.shape}: two views or more, (V, 2)")
    if len({model.T_carm_from_object.frm for model in models}) > 1:
        raise CalibrationError("the views stand in different frames")
    sources = np.array([model.source_mm for model in models])
    rays = np.array([model.directions @ (*place, 1.0) for model, place in zip(models, places, strict=True)])
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    across = np.eye(3) - rays[:, :, None] * rays[:, None, :]
    if np.linalg.eigvalsh(across.sum(axis=0))[0] < 0.01:
        raise CalibrationError("the views look along nearly the same line: turn the C-arm further between them")
    point = np.linalg.solve(across.sum(axis=0), np.einsum("vij,vj->i", across, sources))
    for _ in range(10):
        jacobian = np.concatenate([_derivative(m.project, point) for m in models])
        left = np.concatenate([place - m.project(point) for m, place in zip(models, places, strict=True)])
        step = np.linalg.lstsq(jacobian, left, rcond=None)[0]
        point = point + step
        if float(np.abs(step).max()) < 1e-9:
            break
    return point, np.linalg.inv(jacobian.T @ jacobian) * sigma_px**2


def predicted_point_covariance(views: list[CarmView], point_mm: ArrayLike, sigma_px: float = 0.1) -> Array:
    """Return the covariance (3, 3) of a point (3,) triangulated from calibrated views: pixel noise and calibrations.

    First order: ``G (sigma^2 I + B C B^T) G^T`` with B the picture's derivative by a view's parameters, C their
    covariance, and G the least-squares inverse of its derivative by the point.
    """
    point = np.asarray(point_mm, dtype=np.float64)
    by_point, noise = [], []
    for view in views:
        arm = NominalArm(1000.0, 1.0, view.model.columns, view.model.rows)
        seen = partial(_seen, points=point[None], bending=view.distortion.kind, arm=arm)
        by_point.append(_derivative(view.model.project, point))
        by_view = _derivative(seen, view.parameters)
        noise.append(by_view @ view.covariance @ by_view.T + np.eye(2) * sigma_px**2)
    jacobian = np.concatenate(by_point)
    gain = np.linalg.pinv(jacobian)
    block = np.zeros((2 * len(views), 2 * len(views)))
    for i, one in enumerate(noise):
        block[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = one
    covariance: Array = gain @ block @ gain.T
    return covariance


def _free(bending: Bending) -> Mask:
    """Return which parameters are fitted: aspect and skew only where a polynomial would hide them."""
    free = np.ones(POSE + CAMERA + bending.parameters, dtype=np.bool_)
    free[POSE + 1 : POSE + 3] = bending is Bending.POLYNOMIAL
    return free


def _source(p: Array) -> Array:
    """Return the sources (V, 3) in the phantom of poses (V, 6)."""
    source: Array = -Rotation.from_rotvec(p[:, :3]).inv().apply(p[:, 3:6])
    return source


def _seen(p: Array, points: Array, bending: Bending, arm: NominalArm) -> Array:
    """Return where points (N, 3) of the phantom are seen (V, N, 2) by views (V, P) of those parameters."""
    turns = Rotation.from_rotvec(p[:, :3]).as_matrix()
    at = points @ turns.transpose(0, 2, 1) + p[:, None, 3:6]
    x, y = at[..., 0] / at[..., 2], at[..., 1] / at[..., 2]
    focal, aspect, skew = (p[:, POSE + i, None] for i in range(3))
    ideal = np.stack([focal * (x + skew * y), focal * aspect * y], axis=-1) + p[:, None, POSE + 3 : POSE + 5]
    half = max(arm.columns, arm.rows) / 2.0
    places: Array = ideal + half * displacement(bending, p[:, POSE + CAMERA :], (ideal - arm.middle_px) / half)
    return places


def _prior(bending: Bending) -> Array:
    """Return one sigma (P,) of each parameter beforehand; infinite where nothing is known."""
    sigmas = np.full(POSE + CAMERA + bending.parameters, np.inf)
    if bending is Bending.INTENSIFIER:
        sigmas[POSE + CAMERA : POSE + CAMERA + 2] = CENTRE_PRIOR
        sigmas[POSE + CAMERA + 2 :] = BENDING_PRIOR
    elif bending is Bending.POLYNOMIAL:
        sigmas[POSE + CAMERA :] = BENDING_PRIOR
    return sigmas


def _fitted(
    start: Array, free: Mask, points: Array, seen: Array, sigmas: Array, bending: Bending, arm: NominalArm
) -> Array:
    """Return the parameters of least squares."""
    prior = _prior(bending)[free]
    known = np.isfinite(prior)

    def off(values: Array) -> Array:
        """Return the scaled misses (V, 2 N + K) of values (V, F)."""
        views = np.tile(start, (len(values), 1))
        views[:, free] = values
        misses = (seen - _seen(views, points, bending, arm)) / sigmas[:, None]
        return np.concatenate([misses.reshape(len(values), -1), values[:, known] / prior[known]], axis=1)

    found = least_squares(
        lambda values: off(values[None])[0],
        start[free],
        jac=lambda values: _derivative(off, values),
        x_scale="jac",
        max_nfev=60,
        xtol=1e-10,
        ftol=1e-9,
    )
    fitted = start.copy()
    fitted[free] = found.x
    return fitted


def _judged(
    p: Array,
    free: Mask,
    points: Array,
    seen: Array,
    sigmas: Array,
    keep: Mask,
    match: BeadMatch,
    found: Beads,
    phantom: BeadPhantom,
    arm: NominalArm,
    bending: Bending,
    limits: CarmLimits,
) -> CarmView:
    """Return the view with covariance and verdict."""
    residuals = seen - _seen(p[None], points, bending, arm)[0]
    jacobian = _derivative(lambda values: _seen(values, points[keep], bending, arm), p)[:, free]
    weighted = jacobian / np.repeat(sigmas[keep], 2)[:, None]
    prior = _prior(bending)[free]
    information = weighted.T @ weighted + np.diag(np.where(np.isfinite(prior), 1.0 / prior**2, 0.0))
    dof = 2 * int(keep.sum()) - int(free.sum())
    chi_square = float(((residuals[keep] / sigmas[keep, None]) ** 2).sum())
    inflation = max(1.0, chi_square / dof)
    sizes = 1.0 / np.sqrt(np.diag(information))
    covariance = np.zeros((len(p), len(p)))
    covariance[np.ix_(free, free)] = np.linalg.inv(information * np.outer(sizes, sizes)) * np.outer(sizes, sizes)
    covariance *= inflation
    focal, aspect, skew = p[POSE : POSE + 3]
    intrinsics = np.array([[focal, focal * skew, p[POSE + 3]], [0.0, focal * aspect, p[POSE + 4]], [0.0, 0.0, 1.0]])
    pose = Rigid(CARM, PHANTOM, Rotation.from_rotvec(p[:3]).as_matrix(), p[3:6])
    model = ProjectionModel(intrinsics, arm.columns, arm.rows, pose)
    middle = phantom.beads_mm.mean(axis=0)
    by_source = _derivative(_source, p[:POSE])
    source_sigma = float(np.sqrt(np.trace(by_source @ covariance[:POSE, :POSE] @ by_source.T)))
    by_all = _derivative(lambda values: _seen(values, middle[None], bending, arm), p)
    depth = float(pose.apply(middle)[2])
    point_sigma = float(np.sqrt(np.trace(by_all @ covariance @ by_all.T))) * depth / float(focal)
    spans = np.ptp(seen[keep], axis=0) / (arm.columns, arm.rows)
    figures = {
        "shadows": float(len(found.centres_px)),
        "beads_matched": float(len(points)),
        "beads_used": float(keep.sum()),
        "left_out_percent": 100.0 * float((~keep).mean()),
        "agreement": match.agreement,
        "rival_share": match.rival_share,
        "coverage_percent": 100.0 * float(spans.prod()),
        "residual_px": float(np.sqrt((residuals[keep] ** 2).mean())),
        "residual_max_px": float(np.linalg.norm(residuals[keep], axis=1).max()),
        "inflation": inflation,
        "centre_sigma_px": float(np.median(found.sigmas_px[match.shadows])),
        "sdd_mm": float(focal) * arm.pixel_mm,
        "sdd_sigma_mm": float(np.sqrt(covariance[POSE, POSE])) * arm.pixel_mm,
        "principal_column_px": float(p[POSE + 3]),
        "principal_row_px": float(p[POSE + 4]),
        "source_sigma_mm": source_sigma,
        "point_sigma_mm": point_sigma,
        "bending_max_px": _largest_bend(Distortion(bending, p[POSE + CAMERA :], arm.columns, arm.rows)),
    }
    verdict, reason = _judge(limits, figures)
    used = np.flatnonzero(keep)
    return CarmView(
        model,
        Distortion(bending, p[POSE + CAMERA :], arm.columns, arm.rows),
        frozen_array(p, p.shape),
        frozen_array(covariance, covariance.shape),
        match.beads[used].astype(np.intp),
        frozen_array(seen[used], (len(used), 2)),
        frozen_array(residuals[used], (len(used), 2)),
        frozen_array(pose.apply(points[used])[:, 2], (len(used),)),
        figures["residual_px"],
        source_sigma,
        point_sigma,
        verdict,
        reason,
        tuple(figures.items()),
    )


def _largest_bend(distortion: Distortion) -> float:
    """Return the largest displacement in pixels on a circle of nine tenths of the picture."""
    turn = np.linspace(0.0, 2.0 * np.pi, 36, endpoint=False)
    ring = 0.45 * min(distortion.columns, distortion.rows) * np.column_stack([np.cos(turn), np.sin(turn)])
    ring += np.array([(distortion.columns - 1) / 2.0, (distortion.rows - 1) / 2.0])
    return float(np.linalg.norm(distortion.bent(ring) - ring, axis=1).max())


def _derivative(function: Callable[[Array], Array], at: Array) -> Array:
    """Return the derivative (M, P) at (P,) of a function of (V, P) to (V, ...) by central differences, in one call."""
    sizes = 1e-6 * np.maximum(1.0, np.abs(at))
    values = np.asarray(function(np.concatenate([at + np.diag(sizes), at - np.diag(sizes)]))).reshape(2 * len(at), -1)
    derivative: Array = ((values[: len(at)] - values[len(at) :]) / (2.0 * sizes[:, None])).T
    return derivative


def _judge(limits: CarmLimits, figures: dict[str, float]) -> tuple[Verdict, str]:
    """Return the verdict and the numbers that decided it."""
    found = Findings()
    source, point = figures["source_sigma_mm"], figures["point_sigma_mm"]
    what = "reprojection residual per axis"
    found.grade(what, figures["residual_px"], limits.residual_accept_px, limits.residual_refuse_px, "px")
    what = "predicted error of the source (rms)"
    found.grade(what, source, limits.source_sigma_accept_mm, limits.source_sigma_refuse_mm, "mm")
    what = "predicted error of a ray at the phantom (rms)"
    found.grade(what, point, limits.point_sigma_accept_mm, limits.point_sigma_refuse_mm, "mm")
    what = "beads that do not agree:"
    found.grade(what, figures["left_out_percent"], limits.left_out_accept_percent, limits.left_out_refuse_percent, "%")
    covered = figures["coverage_percent"]
    if covered < limits.coverage_refuse_percent:
        found.refuse.append(f"beads cover {covered:.0f} % of the picture, below {limits.coverage_refuse_percent:g} %")
    elif covered < limits.coverage_accept_percent:
        found.doubt.append(f"beads cover {covered:.0f} % of the picture, below {limits.coverage_accept_percent:g} %")
    return found.verdict(f"predicted error of the source {source:.2f} mm, of a ray at the phantom {point:.3f} mm (rms)")
