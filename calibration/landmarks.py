"""Owns paired-landmark registration: points touched in one frame, the same points picked in another.

Refuses points that cannot carry a rotation, an order that two permutations explain equally well, and to call FRE
accuracy: the verdict rests on the TRE predicted at the target, on leave-one-out errors and on the worst residual.  An
outlier is proposed, never left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi2
from scipy.stats import f as fisher_f

from calibration.matching import Match, match_landmarks
from calibration.paired import (
    MIN_POINTS,
    MIN_SIGMA_MM,
    checked_covariances,
    checked_sets,
    fit_rigid,
    fit_rigid_weighted,
    fitzpatrick_tre_mm,
    landmark_covariance,
    leave_one_out_mm,
    residuals_of,
    rms_residual_mm,
)
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import CT, Array, Frame, Rigid, frozen_array
from navsrv.kernel.registration import RegistrationResult, Verdict, tre_rms_mm

FLE_FLOOR_MM: Final = 0.05
"""An FRE of zero from few points is luck, not a perfect tracker."""
UNSURE_P: Final = 1e-3
"""Below it a stated FLE does not explain the residuals; above it another order is not excluded."""
OUTLIER_P: Final = 1e-2
"""Chance, over all landmarks, that noise alone lets the fit gain so much by leaving one out."""
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
class Outlier:
    """A landmark that the others speak against: to be touched again."""

    index: int
    fre_without_mm: float
    chance: float
    """That noise alone makes the worst of the landmarks stand out so."""


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """A least-squares fit with what is known of its noise."""

    points_from_mm: Array
    points_to_mm: Array
    motion: tuple[Array, Array]
    covariance: Array
    stated_fle_mm: float | None
    chi_square: float | None
    """Of the residuals against the stated noise; None where none is stated."""
    match: Match | None

    @property
    def residuals_mm(self) -> Array:
        left: Array = np.linalg.norm(residuals_of(self.points_from_mm, self.points_to_mm, self.motion), axis=1)
        return left

    @property
    def dof(self) -> int:
        return 3 * len(self.points_to_mm) - 6

    @property
    def fre_mm(self) -> float:
        return float(np.sqrt((self.residuals_mm**2).mean()))

    @property
    def fle_mm(self) -> float:
        """The stated FLE, else its estimate."""
        return (
            estimated_fle_mm(self.fre_mm, len(self.points_to_mm))
            if self.stated_fle_mm is None
            else (self.stated_fle_mm)
        )

    @property
    def fle_bound(self) -> float:
        """Factor to the upper 95 % bound of the FLE: 1 when it is stated, 1.9 for four landmarks, 2.9 for three."""
        return 1.0 if self.stated_fle_mm is not None else float(np.sqrt(self.dof / chi2.ppf(0.05, self.dof)))

    def details(self, loo_mm: Array | None, outlier: Outlier | None) -> tuple[tuple[str, float], ...]:
        """Return the figures for the operator and the record."""
        residuals = self.residuals_mm
        rows = [("points", float(len(residuals))), ("fre_mm", self.fre_mm), ("fle_mm", self.fle_mm)]
        rows += [("fle_estimated", float(self.stated_fle_mm is None))]
        rows += [(f"residual_{i + 1}_mm", float(r)) for i, r in enumerate(residuals)]
        if loo_mm is not None:
            rows += [("leave_one_out_rms_mm", float(np.sqrt((loo_mm**2).mean())))]
            rows += [(f"leave_one_out_{i + 1}_mm", float(error)) for i, error in enumerate(loo_mm)]
        if outlier is not None:
            rows += [("outlier_proposed", float(outlier.index + 1)), ("fre_without_it_mm", outlier.fre_without_mm)]
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
    noise_from_mm2: ArrayLike | None = None,
    noise_ct_mm2: ArrayLike | None = None,
    match: bool = False,
    limits: LandmarkLimits | None = None,
) -> RegistrationResult:
    """Return ``T_<to>_from_<frm>`` of paired landmarks with residuals, covariance, TRE at the target and a verdict.

    Parameters
    ----------
    points_from_mm : (N, 3)
        Landmarks as touched, in ``frm``.
    points_ct_mm : (N, 3)
        The same landmarks in ``to``, in the same order (any order with ``match`` and N <= 10).
    target_ct_mm : (3,)
        Where the error matters, in ``to``.
    fle_mm : float or None
        Root-mean-square length of the localisation error of a pair; None estimates it from FRE, and the verdict then
        uses its upper 95 % bound, because few points say little about their own noise.
    noise_from_mm2, noise_ct_mm2 : (3, 3) or (N, 3, 3) or None
        In place of ``fle_mm``: covariance of the localisation in ``frm`` and in ``to``, where it differs between axes
        (a camera sees depth worst) or points.  The fit is then weighted by it.

    Raises
    ------
    CalibrationError
        Unequal counts, fewer than three points, coincident or collinear points, numbers that are not finite, an
        ambiguous order.
    """
    a, b = checked_sets(points_from_mm, points_ct_mm)
    target = np.asarray(target_ct_mm, dtype=np.float64)
    if target.shape != (3,) or not np.isfinite(target).all():
        raise CalibrationError(f"target must be three finite millimetres, got {target_ct_mm!r}")
    anisotropic = noise_from_mm2 is not None or noise_ct_mm2 is not None
    if fle_mm is not None and (anisotropic or not (np.isfinite(fle_mm) and fle_mm > 0)):
        raise CalibrationError(
            f"FLE must be a positive length in millimetres, stated alone or as covariances, got {fle_mm}"
        )
    found = match_landmarks(a, b) if match else None
    if found is not None:
        b = b[list(found.order)]
    fit = _weighted(a, b, noise_from_mm2, noise_ct_mm2, found) if anisotropic else _plain(a, b, fle_mm, found)
    transform = Rigid(to, frm, *fit.motion, fit.covariance)
    tre = tre_rms_mm(transform, target)
    loo, outlier = leave_one_out_mm(a, b), proposed_outlier(a, b, fit.stated_fle_mm)
    verdict, reason = _judge(limits or LandmarkLimits(), fit, tre * fit.fle_bound, loo, outlier)
    details = (
        *fit.details(loo, outlier),
        ("tre_upper95_mm", tre * fit.fle_bound),
        ("tre_fitzpatrick_mm", fitzpatrick_tre_mm(b, target, fit.fle_mm)),
    )
    return RegistrationResult(
        "landmarks", transform, frozen_array(target, (3,)), tre, fit.fre_mm, verdict, reason, details
    )


def estimated_fle_mm(fre_mm: float, count: int) -> float:
    """Return the FLE that an FRE of so many landmarks speaks for: ``E[FRE^2] = (1 - 2/N) FLE^2`` (Sibson 1979)."""
    return max(fre_mm / float(np.sqrt(1.0 - 2.0 / count)), FLE_FLOOR_MM)


def proposed_outlier(points_from_mm: Array, points_to_mm: Array, fle_mm: float | None = None) -> Outlier | None:
    """Return the landmark whose leaving out gains more than noise explains, if there is one; None below four landmarks.

    An F test of the three equations that a landmark adds against what the others leave (chi-square where FLE is
    stated), times the number of landmarks that could have been the worst (Bonferroni).
    """
    n = len(points_from_mm)
    if n <= MIN_POINTS:
        return None
    whole = n * rms_residual_mm(points_from_mm, points_to_mm) ** 2
    without = []
    for i in range(n):
        keep = np.arange(n) != i
        without.append((n - 1) * rms_residual_mm(points_from_mm[keep], points_to_mm[keep]) ** 2)
    worst = int(np.argmin(without))
    rest, dof = without[worst], 3 * (n - 1) - 6
    if fle_mm is None:
        rest_or_floor = max(rest, dof * FLE_FLOOR_MM**2 / 3.0)
        chance = float(fisher_f.sf((whole - rest) / 3.0 / (rest_or_floor / dof), 3, dof))
    else:
        chance = float(chi2.sf(3.0 * (whole - rest) / fle_mm**2, 3))
    chance = min(1.0, n * chance)
    return Outlier(worst, float(np.sqrt(rest / (n - 1))), chance) if chance < OUTLIER_P else None


def _plain(a: Array, b: Array, fle_mm: float | None, found: Match | None) -> _Fit:
    """Return the fit for noise that is alike in all directions."""
    motion = fit_rigid(a, b)
    squares = float((residuals_of(a, b, motion) ** 2).sum())
    fle = estimated_fle_mm(float(np.sqrt(squares / len(a))), len(a)) if fle_mm is None else fle_mm
    chi_square = None if fle_mm is None else 3.0 * squares / fle_mm**2
    return _Fit(a, b, motion, landmark_covariance(b, fle), fle_mm, chi_square, found)


def _weighted(
    a: Array, b: Array, noise_from_mm2: ArrayLike | None, noise_to_mm2: ArrayLike | None, found: Match | None
) -> _Fit:
    """Return the fit weighted by the stated noise."""
    from_mm2 = checked_covariances(noise_from_mm2, len(a), "first")
    to_mm2 = checked_covariances(noise_to_mm2, len(b), "second")
    if found is not None:
        to_mm2 = to_mm2[list(found.order)]
    least = float((np.linalg.eigvalsh(from_mm2)[:, 0] + np.linalg.eigvalsh(to_mm2)[:, 0]).min())
    if least < MIN_SIGMA_MM**2:
        raise CalibrationError(
            f"noise of the landmarks: {np.sqrt(max(least, 0.0)):.3g} mm along some axis, at least {MIN_SIGMA_MM:g} mm "
            "are believed"
        )
    rotation, translation, covariance, chi_square = fit_rigid_weighted(a, b, from_mm2, to_mm2)
    fle = float(np.sqrt(np.trace(from_mm2 + to_mm2, axis1=1, axis2=2).mean()))
    return _Fit(a, b, (rotation, translation), covariance, fle, chi_square, found)


def _judge(
    limits: LandmarkLimits, fit: _Fit, tre_bound_mm: float, loo: Array | None, outlier: Outlier | None
) -> tuple[Verdict, str]:
    """Return the verdict and the number that decided it; the worst finding wins."""
    refuse: list[str] = []
    doubt: list[str] = []

    def grade(what: str, value: float, accept: float, refusal: float) -> None:
        if value > refusal:
            refuse.append(f"{what} {value:.2f} mm, above {refusal:g} mm")
        elif value > accept:
            doubt.append(f"{what} {value:.2f} mm, above {accept:g} mm")

    mirror_gain_mm = fit.fre_mm - rms_residual_mm(fit.points_from_mm * (-1.0, 1.0, 1.0), fit.points_to_mm)
    if mirror_gain_mm > MIRROR_EXCESS_MM:
        refuse.append(f"a mirror image fits {mirror_gain_mm:.1f} mm better: left and right, or RAS and LPS, exchanged")
    grade("predicted TRE at the target", tre_bound_mm, limits.tre_accept_mm, limits.tre_refuse_mm)
    worst = int(fit.residuals_mm.argmax())
    what = f"landmark {worst + 1} misses by"
    grade(what, float(fit.residuals_mm[worst]), limits.residual_accept_mm, limits.residual_refuse_mm)
    if loo is None:
        doubt.append("three landmarks leave nothing to check them with: touch a fourth")
    else:
        worst = int(loo.argmax())
        what = f"the others put landmark {worst + 1} off by"
        grade(what, float(loo[worst]), limits.leave_one_out_accept_mm, limits.leave_one_out_refuse_mm)
    if outlier is not None:
        doubt.append(
            f"without landmark {outlier.index + 1} FRE falls from {fit.fre_mm:.2f} to {outlier.fre_without_mm:.2f} mm: "
            "touch it again"
        )
    if fit.chi_square is not None and float(chi2.sf(fit.chi_square, fit.dof)) < UNSURE_P:
        tail = float(chi2.sf(fit.chi_square, fit.dof))
        doubt.append(f"FRE {fit.fre_mm:.2f} mm does not fit the stated FLE {fit.fle_mm:.2f} mm (p {tail:.0e})")
    if fit.match is not None and fit.match.chance > UNSURE_P:
        doubt.append(f"another order fits with FRE {fit.match.next_fre_mm:.2f} mm against {fit.fre_mm:.2f} mm")
    if refuse or doubt:
        return (Verdict.REFUSE if refuse else Verdict.DOUBT), "; ".join(refuse + doubt)
    return Verdict.ACCEPT, f"predicted TRE at the target {tre_bound_mm:.2f} mm (upper 95 % bound)"
