"""Owns the rigid motion of paired points and the theory of its error: fits, covariances, TRE.

Refuses points that cannot carry a rotation: too few, coincident, on a line, not finite.  FLE, FRE and TRE are
root-mean-square *lengths* in three dimensions: for isotropic noise of standard deviation s per axis FLE = s * sqrt(3).
FLE is that of the pair, both localisations together.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array, nearest_rotation, rotation_from_vector, skew

MIN_POINTS: Final = 3
COINCIDENT_MM: Final = 2.0
COLLINEAR_RATIO: Final = 0.05
"""Smallest rms distance from the best line, as a fraction of the rms extent along it."""
COLLINEAR_MM: Final = 3.0
MIN_SIGMA_MM: Final = 0.01
WEIGHTED_STEPS: Final = 20


def fit_rigid(points_from_mm: Array, points_to_mm: Array) -> tuple[Array, Array]:
    """Return rotation (3, 3) and translation (3,) that map the first set (N, 3) onto the second, least squares.

    Arun, Huang, Blostein, IEEE PAMI 9 (1987), with the sign of the determinant kept proper (Umeyama 1991).
    """
    centre_from, centre_to = points_from_mm.mean(axis=0), points_to_mm.mean(axis=0)
    rotation = nearest_rotation((points_to_mm - centre_to).T @ (points_from_mm - centre_from))
    return rotation, centre_to - rotation @ centre_from


def residuals_of(points_from_mm: Array, points_to_mm: Array, motion: tuple[Array, Array]) -> Array:
    """Return what a motion (rotation, translation) leaves of each pair (N, 3), in the second frame."""
    rotation, translation = motion
    left: Array = points_to_mm - points_from_mm @ rotation.T - translation
    return left


def fit_rigid_weighted(
    points_from_mm: Array, points_to_mm: Array, covariances_from_mm2: Array, covariances_to_mm2: Array
) -> tuple[Array, Array, Array, float]:
    """Return rotation, translation, their covariance (6, 6) and chi-square for noise that differs by point and axis.

    Gauss-Newton on ``sum e_i^T (R S_i R^T + U_i)^-1 e_i``, the weights turned with the motion found so far; the
    covariance is the inverse of the information (Danilchenko and Fitzpatrick, IEEE TMI 30, 2011, ideal weighting).

    Parameters
    ----------
    points_from_mm, points_to_mm : (N, 3)
    covariances_from_mm2, covariances_to_mm2 : (N, 3, 3)
        Of each localisation, in its own frame.
    """
    rotation, translation = fit_rigid(points_from_mm, points_to_mm)
    centre = points_to_mm.mean(axis=0)
    for _ in range(WEIGHTED_STEPS):
        left = residuals_of(points_from_mm, points_to_mm, (rotation, translation))
        weights = np.linalg.inv(rotation @ covariances_from_mm2 @ rotation.T + covariances_to_mm2)
        jacobians = point_jacobians(points_to_mm - left - centre)
        information = np.einsum("nki,nkl,nlj->ij", jacobians, weights, jacobians)
        step = np.linalg.solve(information, np.einsum("nki,nkl,nl->i", jacobians, weights, left))
        turn = rotation_from_vector(step[:3])
        rotation = nearest_rotation(turn @ rotation)
        translation = turn @ (translation - centre) + centre + step[3:]
        if float(np.abs(step[:3]).max()) < 1e-12 and float(np.abs(step[3:]).max()) < 1e-9:
            break
    left = residuals_of(points_from_mm, points_to_mm, (rotation, translation))
    chi_square = float(np.einsum("ni,nij,nj->", left, weights, left))
    return rotation, translation, about_origin(np.linalg.inv(information), centre), chi_square


def point_jacobians(points_mm: Array) -> Array:
    """Return how points (N, 3) move (N, 3, 6) under a left perturbation (rotation_rad, translation_mm)."""
    jacobians = np.zeros((len(points_mm), 3, 6))
    jacobians[:, :, 3:] = np.eye(3)
    x, y, z = points_mm.T
    jacobians[:, 0, 1], jacobians[:, 0, 2] = z, -y
    jacobians[:, 1, 0], jacobians[:, 1, 2] = -z, x
    jacobians[:, 2, 0], jacobians[:, 2, 1] = y, -x
    return jacobians


def about_origin(covariance: Array, centre_mm: Array) -> Array:
    """Return a covariance (6, 6) of a motion about ``centre_mm`` as that of the motion about the origin."""
    shift = np.eye(6)
    shift[3:, :3] = skew(centre_mm)  # w x (p - c) + t' = w x p + (t' + c x w)
    moved: Array = shift @ covariance @ shift.T
    return 0.5 * (moved + moved.T)


def landmark_covariance(points_to_mm: Array, fle_mm: float) -> Array:
    """Return the (6, 6) covariance of (rotation_rad, translation_mm) as ``Rigid`` defines it, isotropic FLE.

    First order: each point measures ``w x p + t`` with variance FLE^2 / 3 per axis.
    """
    centre = points_to_mm.mean(axis=0)
    jacobians = point_jacobians(points_to_mm - centre)
    information = np.einsum("nki,nkj->ij", jacobians, jacobians)
    return about_origin(np.linalg.inv(information) * (fle_mm**2 / 3.0), centre)


def fitzpatrick_tre_mm(points_mm: Array, target_mm: Array, fle_mm: float) -> float:
    """Return the rms TRE at a target (3,) for landmarks (N, 3) of isotropic FLE (Fitzpatrick, West, Maurer 1998).

    ``TRE^2 = FLE^2 / N * (1 + 1/3 sum_k d_k^2 / f_k^2)`` over the three principal axes of the landmarks, with d_k the
    target's and f_k the landmarks' rms distance from axis k.
    """
    centred = points_mm - points_mm.mean(axis=0)
    _, _, axes = np.linalg.svd(centred)
    along, target = centred @ axes.T, (target_mm - points_mm.mean(axis=0)) @ axes.T
    f2 = (along**2).sum(axis=1).mean() - (along**2).mean(axis=0)
    d2 = (target**2).sum() - target**2
    return float(np.sqrt(fle_mm**2 / len(points_mm) * (1.0 + (d2 / f2).sum() / 3.0)))


def leave_one_out_mm(points_from_mm: Array, points_to_mm: Array) -> Array | None:
    """Return for each point (N,) its distance from where the other points put it; None for N = 3."""
    if len(points_from_mm) <= MIN_POINTS:
        return None
    errors = np.empty(len(points_from_mm))
    for i in range(len(points_from_mm)):
        keep = np.arange(len(points_from_mm)) != i
        motion = fit_rigid(points_from_mm[keep], points_to_mm[keep])
        errors[i] = np.linalg.norm(residuals_of(points_from_mm[i : i + 1], points_to_mm[i : i + 1], motion))
    return errors


def rms_residual_mm(points_from_mm: Array, points_to_mm: Array) -> float:
    """Return the rms residual (FRE) of the best rigid fit."""
    left = residuals_of(points_from_mm, points_to_mm, fit_rigid(points_from_mm, points_to_mm))
    return float(np.sqrt((left**2).sum(axis=1).mean()))


def checked_sets(points_from_mm: ArrayLike, points_to_mm: ArrayLike) -> tuple[Array, Array]:
    """Return both sets as (N, 3) float64, or refuse them with the number that forbids a fit.

    Raises
    ------
    CalibrationError
        Wrong shape, unequal counts, fewer than three, not finite, coincident, on a line.
    """
    a, b = np.asarray(points_from_mm, dtype=np.float64), np.asarray(points_to_mm, dtype=np.float64)
    for name, points in (("first", a), ("second", b)):
        if points.ndim != 2 or points.shape[1] != 3:
            raise CalibrationError(f"the {name} set of landmarks has shape {points.shape}, expected (N, 3)")
    if len(a) != len(b):
        raise CalibrationError(f"{len(a)} landmarks against {len(b)}: each needs its partner")
    if len(a) < MIN_POINTS:
        raise CalibrationError(f"{len(a)} landmarks: at least {MIN_POINTS} are needed")
    for name, points in (("first", a), ("second", b)):
        _check_spread(name, points)
    return a, b


def checked_covariances(covariance_mm2: ArrayLike | None, count: int, which: str) -> Array:
    """Return covariances (N, 3, 3) of one (3, 3) for all or of one for each point; zero where none is stated.

    Raises
    ------
    CalibrationError
        Wrong shape, not symmetric, not finite, or with a negative variance.
    """
    if covariance_mm2 is None:
        return np.zeros((count, 3, 3))
    c = np.asarray(covariance_mm2, dtype=np.float64)
    if c.shape == (3, 3):
        c = np.tile(c, (count, 1, 1))
    if c.shape != (count, 3, 3) or not np.isfinite(c).all() or np.abs(c - c.transpose(0, 2, 1)).max() > 1e-9:
        raise CalibrationError(
            f"noise of the {which} set: symmetric, finite (3, 3) or ({count}, 3, 3) needed, got shape {c.shape}"
        )
    least = float(np.linalg.eigvalsh(c)[:, 0].min())
    if least < -1e-12:
        raise CalibrationError(f"noise of the {which} set: smallest variance {least:.3g} mm^2, none may be negative")
    return c


def _check_spread(name: str, points: Array) -> None:
    """Refuse points that are not finite, coincide, or lie on a line."""
    if not np.isfinite(points).all():
        row = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0]) + 1
        raise CalibrationError(f"landmark {row} of the {name} set is not finite")
    gaps = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(len(points), np.inf))
    i, j = np.unravel_index(int(gaps.argmin()), gaps.shape)
    if gaps[i, j] < COINCIDENT_MM:
        raise CalibrationError(
            f"landmarks {min(i, j) + 1} and {max(i, j) + 1} of the {name} set coincide: {gaps[i, j]:.2f} mm apart, "
            f"at least {COINCIDENT_MM:g} mm needed"
        )
    spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False) / np.sqrt(len(points))
    off_line = float(np.hypot(spread[1], spread[2]))
    if off_line < max(COLLINEAR_MM, COLLINEAR_RATIO * spread[0]):
        raise CalibrationError(
            f"the {name} set of landmarks lies on a line: rms distance from it {off_line:.2f} mm, "
            f"at least {max(COLLINEAR_MM, COLLINEAR_RATIO * spread[0]):.2f} mm needed; touch one away from it"
        )
