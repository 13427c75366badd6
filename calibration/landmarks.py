"""Owns paired-landmark registration: points touched in one frame, the same points picked in another.

Refuses points that cannot carry a rotation (too few, coincident, collinear), an order that two permutations explain
equally well, and to call FRE accuracy: the verdict rests on the TRE predicted at the target, on leave-one-out errors
and on the worst residual.

FLE, FRE and TRE are root-mean-square *lengths* in three dimensions: for isotropic noise of standard deviation s per
axis FLE = s * sqrt(3).  FLE is that of the pair, both localisations together.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi2
from scipy.stats import f as fisher_f

from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import CT, Array, Frame, Rigid, frozen_array, nearest_rotation, skew
from navsrv.kernel.registration import RegistrationResult, Verdict, tre_rms_mm

MIN_POINTS: Final = 3
MAX_MATCH_POINTS: Final = 6
COINCIDENT_MM: Final = 2.0
COLLINEAR_RATIO: Final = 0.05
"""Smallest rms distance from the best line, as a fraction of the rms extent along it."""
COLLINEAR_MM: Final = 3.0
FLE_FLOOR_MM: Final = 0.05
"""An FRE of zero from few points is luck, not a perfect tracker."""
AMBIGUOUS_P: Final = 1e-2
UNSURE_P: Final = 1e-3
"""Chance that noise alone makes the next best order this much worse; above the first it is refused, above the second
the result is in doubt."""
ORDER_MARGIN_MM: Final = 1.0
MIRROR_EXCESS_MM: Final = 3.0
"""An FRE this far above the one with a reflection allowed is named: left and right, or RAS and LPS, are exchanged."""


@dataclass(frozen=True, slots=True)
class LandmarkLimits:
    """Thresholds of the verdict, millimetres: at most ``accept`` is accepted, above ``refuse`` is refused."""

    tre_accept_mm: float = 2.0
    tre_refuse_mm: float = 4.0
    residual_accept_mm: float = 3.0
    residual_refuse_mm: float = 6.0
    leave_one_out_accept_mm: float = 4.0
    leave_one_out_refuse_mm: float = 8.0


@dataclass(frozen=True, slots=True)
class Match:
    """An order of correspondence: point ``i`` of the first set belongs to point ``order[i]`` of the second."""

    order: tuple[int, ...]
    fre_mm: float
    next_fre_mm: float
    """FRE of the best order that differs; the margin is ``next_fre_mm - fre_mm``."""
    chance: float
    """p of the F test that the two orders fit equally well; the smaller, the surer."""


def fit_rigid(points_from_mm: Array, points_to_mm: Array) -> tuple[Array, Array]:
    """Return rotation (3, 3) and translation (3,) that map the first set (N, 3) onto the second, least squares.

    Arun, Huang, Blostein, IEEE PAMI 9 (1987), with the sign of the determinant kept proper (Umeyama 1991).
    """
    centre_from, centre_to = points_from_mm.mean(axis=0), points_to_mm.mean(axis=0)
    rotation = nearest_rotation((points_to_mm - centre_to).T @ (points_from_mm - centre_from))
    return rotation, centre_to - rotation @ centre_from


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


def landmark_covariance(points_to_mm: Array, fle_mm: float) -> Array:
    """Return the (6, 6) covariance of (rotation_rad, translation_mm) as ``Rigid`` defines it, isotropic FLE.

    First order: each point measures ``w x p + t`` with variance FLE^2 / 3 per axis.
    """
    centre = points_to_mm.mean(axis=0)
    information = np.zeros((6, 6))
    for point in points_to_mm - centre:
        jacobian = np.hstack([-skew(point), np.eye(3)])
        information += jacobian.T @ jacobian
    shift = np.eye(6)
    shift[3:, :3] = skew(centre)  # w x (p - c) + t' = w x p + (t' + c x w)
    covariance: Array = shift @ np.linalg.inv(information) @ shift.T * (fle_mm**2 / 3.0)
    return 0.5 * (covariance + covariance.T)


def match_landmarks(points_from_mm: ArrayLike, points_to_mm: ArrayLike) -> Match:
    """Return the order of correspondence with the smallest FRE, for at most six points, by trying every one.

    Raises
    ------
    CalibrationError
        More than six points, or a second order explains the points nearly as well (a symmetric arrangement).
    """
    a, b = _checked_sets(points_from_mm, points_to_mm)
    if len(a) > MAX_MATCH_POINTS:
        raise CalibrationError(f"{len(a)} landmarks in unknown order: at most {MAX_MATCH_POINTS} can be matched")
    scored = sorted((_fre_mm(a, b[list(order)]), order) for order in permutations(range(len(a))))
    (fre, order), (next_fre, next_order) = scored[0], scored[1]
    dof = 3 * len(a) - 6
    chance = float(fisher_f.sf((next_fre / max(fre, FLE_FLOOR_MM)) ** 2, dof, dof))
    if chance > AMBIGUOUS_P or next_fre - fre < ORDER_MARGIN_MM:
        raise CalibrationError(
            f"the order of the landmarks is ambiguous: FRE {fre:.2f} mm with order {_order_text(order)}, "
            f"{next_fre:.2f} mm with {_order_text(next_order)}; touch them in the order of the plan"
        )
    return Match(order, fre, next_fre, chance)


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """A least-squares fit with what is known of its noise."""

    points_from_mm: Array
    points_to_mm: Array
    residuals_mm: Array
    leave_one_out_mm: Array | None
    stated_fle_mm: float | None
    match: Match | None

    @property
    def dof(self) -> int:
        return 3 * len(self.residuals_mm) - 6

    @property
    def fre_mm(self) -> float:
        return float(np.sqrt((self.residuals_mm**2).mean()))

    @property
    def fle_mm(self) -> float:
        """The stated FLE, else its estimate from ``E[FRE^2] = (1 - 2/N) FLE^2``."""
        if self.stated_fle_mm is not None:
            return self.stated_fle_mm
        return max(self.fre_mm / float(np.sqrt(1.0 - 2.0 / len(self.residuals_mm))), FLE_FLOOR_MM)

    @property
    def fle_bound(self) -> float:
        """Factor to the upper 95 % bound of the FLE: 1 when it is stated, 1.9 for four landmarks, 2.9 for three."""
        return 1.0 if self.stated_fle_mm is not None else float(np.sqrt(self.dof / chi2.ppf(0.05, self.dof)))

    def details(self) -> tuple[tuple[str, float], ...]:
        """Return the figures for the operator and the record."""
        rows = [("points", float(len(self.residuals_mm))), ("fre_mm", self.fre_mm), ("fle_mm", self.fle_mm)]
        rows += [("fle_estimated", float(self.stated_fle_mm is None))]
        rows += [(f"residual_{i + 1}_mm", float(r)) for i, r in enumerate(self.residuals_mm)]
        if self.leave_one_out_mm is not None:
            loo = self.leave_one_out_mm
            rows += [("leave_one_out_rms_mm", float(np.sqrt((loo**2).mean())))]
            rows += [(f"leave_one_out_{i + 1}_mm", float(error)) for i, error in enumerate(loo)]
        if self.match is not None:
            moved = sum(i != j for i, j in enumerate(self.match.order))
            rows += [("order_changed", float(moved)), ("order_next_fre_mm", self.match.next_fre_mm)]
            rows += [(f"partner_of_{i + 1}", float(j + 1)) for i, j in enumerate(self.match.order)]
        return tuple(rows)


def solve_landmarks(
    points_from_mm: ArrayLike,
    points_ct_mm: ArrayLike,
    *,
    frm: Frame,
    target_ct_mm: ArrayLike,
    to: Frame = CT,
    fle_mm: float | None = None,
    match: bool = False,
    limits: LandmarkLimits | None = None,
) -> RegistrationResult:
    """Return ``T_<to>_from_<frm>`` of paired landmarks with residuals, covariance, TRE at the target and a verdict.

    Parameters
    ----------
    points_from_mm : (N, 3)
        Landmarks as touched, in ``frm``.
    points_ct_mm : (N, 3)
        The same landmarks in ``to``, in the same order (any order with ``match`` and N <= 6).
    target_ct_mm : (3,)
        Where the error matters, in ``to``.
    fle_mm : float or None
        Root-mean-square length of the localisation error of a pair; None estimates it from FRE, and the verdict then
        uses its upper 95 % bound, because few points say little about their own noise.

    Raises
    ------
    CalibrationError
        Unequal counts, fewer than three points, coincident or collinear points, numbers that are not finite, an
        ambiguous order.
    """
    a, b = _checked_sets(points_from_mm, points_ct_mm)
    target = np.asarray(target_ct_mm, dtype=np.float64)
    if target.shape != (3,) or not np.isfinite(target).all():
        raise CalibrationError(f"target must be three finite millimetres, got {target_ct_mm!r}")
    if fle_mm is not None and not (np.isfinite(fle_mm) and fle_mm > 0):
        raise CalibrationError(f"FLE must be a positive length in millimetres, got {fle_mm}")
    found = match_landmarks(a, b) if match else None
    if found is not None:
        b = b[list(found.order)]
    rotation, translation = fit_rigid(a, b)
    residuals = np.linalg.norm(b - a @ rotation.T - translation, axis=1)
    fit = _Fit(a, b, residuals, leave_one_out_mm(a, b), fle_mm, found)
    transform = Rigid(to, frm, rotation, translation, landmark_covariance(b, fit.fle_mm))
    tre = tre_rms_mm(transform, target)
    verdict, reason = _judge(limits or LandmarkLimits(), fit, tre * fit.fle_bound)
    details = (
        *fit.details(),
        ("tre_upper95_mm", tre * fit.fle_bound),
        ("tre_fitzpatrick_mm", fitzpatrick_tre_mm(b, target, fit.fle_mm)),
    )
    return RegistrationResult(
        "landmarks", transform, frozen_array(target, (3,)), tre, fit.fre_mm, verdict, reason, details
    )


def leave_one_out_mm(points_from_mm: Array, points_to_mm: Array) -> Array | None:
    """Return for each point (N,) its distance from where the other points put it; None for N = 3."""
    if len(points_from_mm) <= MIN_POINTS:
        return None
    errors = np.empty(len(points_from_mm))
    for i in range(len(points_from_mm)):
        keep = np.arange(len(points_from_mm)) != i
        rotation, translation = fit_rigid(points_from_mm[keep], points_to_mm[keep])
        errors[i] = np.linalg.norm(points_to_mm[i] - rotation @ points_from_mm[i] - translation)
    return errors


def _order_text(order: tuple[int, ...]) -> str:
    """Return an order as people count, from one."""
    return " ".join(str(i + 1) for i in order)


def _fre_mm(a: Array, b: Array) -> float:
    """Return the rms residual of the best rigid fit."""
    rotation, translation = fit_rigid(a, b)
    return float(np.sqrt(((b - a @ rotation.T - translation) ** 2).sum(axis=1).mean()))


def _checked_sets(points_from_mm: ArrayLike, points_to_mm: ArrayLike) -> tuple[Array, Array]:
    """Return both sets as (N, 3) float64, or refuse them with the number that forbids a fit."""
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


def _judge(limits: LandmarkLimits, fit: _Fit, tre_bound_mm: float) -> tuple[Verdict, str]:
    """Return the verdict and the number that decided it; the worst finding wins."""
    refuse: list[str] = []
    doubt: list[str] = []

    def grade(what: str, value: float, accept: float, refusal: float) -> None:
        if value > refusal:
            refuse.append(f"{what} {value:.2f} mm, above {refusal:g} mm")
        elif value > accept:
            doubt.append(f"{what} {value:.2f} mm, above {accept:g} mm")

    mirror_gain_mm = fit.fre_mm - _fre_mm(fit.points_from_mm * (-1.0, 1.0, 1.0), fit.points_to_mm)
    if mirror_gain_mm > MIRROR_EXCESS_MM:
        refuse.append(f"a mirror image fits {mirror_gain_mm:.1f} mm better: left and right, or RAS and LPS, exchanged")
    grade("predicted TRE at the target", tre_bound_mm, limits.tre_accept_mm, limits.tre_refuse_mm)
    worst, loo = int(fit.residuals_mm.argmax()), fit.leave_one_out_mm
    what = f"landmark {worst + 1} misses by"
    grade(what, float(fit.residuals_mm[worst]), limits.residual_accept_mm, limits.residual_refuse_mm)
    if loo is None:
        doubt.append("three landmarks leave nothing to check them with: touch a fourth")
    else:
        worst = int(loo.argmax())
        what = f"the others put landmark {worst + 1} off by"
        grade(what, float(loo[worst]), limits.leave_one_out_accept_mm, limits.leave_one_out_refuse_mm)
    if fit.stated_fle_mm is not None:
        tail = float(chi2.sf(3.0 * (fit.residuals_mm**2).sum() / fit.stated_fle_mm**2, fit.dof))
        if tail < UNSURE_P:
            doubt.append(
                f"FRE {fit.fre_mm:.2f} mm does not fit the stated FLE {fit.stated_fle_mm:.2f} mm (p {tail:.0e})"
            )
    if fit.match is not None and fit.match.chance > UNSURE_P:
        doubt.append(f"another order fits with FRE {fit.match.next_fre_mm:.2f} mm against {fit.fre_mm:.2f} mm")
    if refuse or doubt:
        return (Verdict.REFUSE if refuse else Verdict.DOUBT), "; ".join(refuse or doubt)
    return Verdict.ACCEPT, f"predicted TRE at the target {tre_bound_mm:.2f} mm (upper 95 % bound)"
