"""Owns what a registration result *is*, so that calibration, registration, the pipeline and the server share it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from navsrv.kernel.frames import Array, Rigid, skew


class Verdict(Enum):
    """What the algorithm thinks of its own result; the operator decides."""

    ACCEPT = "accept"
    DOUBT = "doubt"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True, eq=False)
class RegistrationResult:
    """Where the patient is, with an honest error.

    Attributes
    ----------
    method : str
        ``cbct``, ``landmarks``, ``surface``, ``fluoro``, ``bench``.
    transform : Rigid
        ``T_ct_from_<frm>`` with its covariance.
    tre_mm : float
        Predicted root-mean-square target registration error at ``target_ct_mm``.
    residual_mm : float or None
        FRE for landmarks; never shown as accuracy.
    verdict : Verdict
    reason : str
        The number that decided, in one line.
    details : tuple of (str, float)
        Figures for the operator and the record (similarity, overlap, spread of starts ...).
    """

    method: str
    transform: Rigid
    target_ct_mm: Array
    tre_mm: float
    residual_mm: float | None
    verdict: Verdict
    reason: str
    details: tuple[tuple[str, float], ...] = ()


def tre_rms_mm(transform: Rigid, point_to_mm: Array) -> float:
    """Return the root-mean-square error (mm) that ``transform.covariance`` predicts at a point (3,) given in ``to``.

    First order: the error of a point p under a left perturbation is ``w x p + t``.
    """
    if transform.covariance is None:
        return float("nan")
    jacobian = np.hstack([-skew(point_to_mm), np.eye(3)])
    return float(np.sqrt(np.trace(jacobian @ transform.covariance @ jacobian.T)))
