"""Owns what becomes of an accepted registration with time: which findings put it in doubt, which end it, and why.

Each finding is one number against two limits: beyond the first the registration is ``unverified`` (used on, DEGRADED,
until somebody confirms it), beyond the second ``expired`` (no longer used).  A rule only ever lets the state fall; only
an operator lifts it.  A number that is not known counts for as much as the limit that it cannot be shown to keep:
unknown is never healthy.  Pure: no clock, no devices; whoever measures says the number.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, assert_never

import numpy as np
from numpy.typing import ArrayLike

from navsrv.kernel.frames import Array, Rigid, frozen_array
from navsrv.kernel.registration import RegistrationResult, Verdict, tre_rms_mm

ONE_SIDED_95: Final = 1.645


class Health(Enum):
    """What a registration is worth after a finding; the worse wins."""

    ACCEPTED = "accepted"
    UNVERIFIED = "unverified"
    EXPIRED = "expired"


class Source(Enum):
    """What found it."""

    REFERENCE_MOVED = "reference_moved"
    PATIENT_MOVED = "patient_moved"
    CHECK_SHOT = "check_shot"
    LANDMARK = "landmark"


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """Limits (mm) of each finding: from which it is unverified, from which expired.

    Attributes
    ----------
    moved_mm
        Of the reference or the patient, at the target.
    disagreement_mm
        Of a check shot or a landmark with what the registration says, beyond what both may be wrong by.
    """

    moved_mm: tuple[float, float] = (1.0, 5.0)
    disagreement_mm: tuple[float, float] = (1.5, 6.0)

    def __post_init__(self) -> None:
        for name in ("moved_mm", "disagreement_mm"):
            low, high = getattr(self, name)
            if not 0.0 < low < high:
                raise ValueError(f"{name}: ({low}, {high}); expected two limits above 0, the lower one first")


@dataclass(frozen=True, slots=True)
class Finding:
    """One look at an accepted registration.

    Attributes
    ----------
    value_mm : float
        What was measured; not a number where it could not be.
    sigma_mm : float
        One sigma of that measurement with what the registration itself says it may be wrong by.
    """

    source: Source
    value_mm: float
    sigma_mm: float
    limit_mm: float
    health: Health
    reason: str


def judge_motion(source: Source, moved_mm: float, limits: HealthLimits | None = None) -> Finding:
    """Return what a motion of the reference or the patient against the other makes of the registration.

    ``moved_mm``: at the target, since the registration was accepted.
    """
    against = {Source.REFERENCE_MOVED: "the reference moved against the witness",
               Source.PATIENT_MOVED: "the patient moved against the reference"}.get(source)  # fmt: skip
    if against is None:
        raise ValueError(f"{source.value} is no motion")
    return _finding(source, moved_mm, 0.0, (limits or HealthLimits()).moved_mm, f"{against}, at the target by")


def judge_landmark(
    transform: Rigid,
    planned_ct_mm: ArrayLike,
    touched_mm: ArrayLike,
    touch_sigma_mm: float,
    limits: HealthLimits | None = None,
) -> Finding:
    """Return what a landmark that was touched again makes of the registration.

    Parameters
    ----------
    transform : Rigid
        ``T_ct_from_<reference>`` in use, with its covariance.
    planned_ct_mm : (3,)
        Where the landmark is in the CT.
    touched_mm : (3,)
        Where the tip was, in the transform's ``frm``.
    touch_sigma_mm : float
        One sigma per axis of placing the tip and of the landmark in the CT.
    """
    planned, touched = frozen_array(planned_ct_mm, (3,)), frozen_array(touched_mm, (3,))
    apart = float(np.linalg.norm(transform.apply(touched) - planned))
    sigma = _with(tre_rms_mm(transform, planned), np.sqrt(3.0) * touch_sigma_mm)
    return _finding(
        Source.LANDMARK, apart, sigma, (limits or HealthLimits()).disagreement_mm, "the landmark lies away by"
    )


def judge_check_shot(in_use: Rigid, check: RegistrationResult, limits: HealthLimits | None = None) -> Finding:
    """Return what a second registration, made to check the one in use, makes of it.

    A check that its own verdict refuses says nothing of the registration but that it was not verified.

    Raises
    ------
    ValueError
        The two are not from the same frame.
    """
    bounds = (limits or HealthLimits()).disagreement_mm
    if (in_use.to, in_use.frm) != (check.transform.to, check.transform.frm):
        raise ValueError(f"{check.transform.to} from {check.transform.frm} cannot check {in_use.to} from {in_use.frm}")
    match check.verdict:
        case Verdict.REFUSE:
            reason = f"the check shot could not be registered: {check.reason}"
            return Finding(Source.CHECK_SHOT, float("nan"), float("nan"), bounds[0], Health.UNVERIFIED, reason)
        case Verdict.ACCEPT | Verdict.DOUBT:
            target: Array = check.target_ct_mm
            there = in_use.apply(check.transform.inverse().apply(target))
            apart = float(np.linalg.norm(there - target))
            sigma = _with(tre_rms_mm(in_use, target), check.tre_mm)
            return _finding(Source.CHECK_SHOT, apart, sigma, bounds, "the check shot disagrees at the target by")
        case _:
            assert_never(check.verdict)


def _finding(source: Source, value_mm: float, sigma_mm: float, bounds: tuple[float, float], words: str) -> Finding:
    """Return the finding of a number; what both sides may be wrong by widens the limits."""
    allowed = ONE_SIDED_95 * sigma_mm if np.isfinite(sigma_mm) else 0.0
    low, high = bounds[0] + allowed, bounds[1] + allowed
    if not np.isfinite(value_mm):
        return Finding(source, value_mm, sigma_mm, low, Health.UNVERIFIED, f"{words} an unknown distance")
    for bound, health in ((high, Health.EXPIRED), (low, Health.UNVERIFIED)):
        if value_mm > bound:
            return Finding(
                source, value_mm, sigma_mm, bound, health, f"{words} {value_mm:.1f} mm, above {bound:.1f} mm"
            )
    return Finding(source, value_mm, sigma_mm, low, Health.ACCEPTED, f"{words} {value_mm:.1f} mm, within {low:.1f} mm")


def _with(a_mm: float, b_mm: float) -> float:
    """Return the root of the sum of squares; what is not known leaves the rest."""
    known = [x for x in (a_mm, b_mm) if np.isfinite(x)]
    return float(np.linalg.norm(known)) if known else float("nan")
