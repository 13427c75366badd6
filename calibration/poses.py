"""Owns what every solver here asks of recorded poses and of its own fit: clean input, spread, leaving out, a verdict.

Refuses poses that are not finite, mirrored, not rigid or too few, with the row and the number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import RIGIDITY_TOLERANCE, Array
from navsrv.kernel.registration import Verdict

Labels = NDArray[np.int64]

REPEAT_MM: Final = 1e-9
REPEATED_SHARE: Final = 0.5
"""A recording of which more repeats the pose before it is a source that stood still, not a slower one."""
MIN_BLOCKS: Final = 15
"""Blocks of time to leave out one by one; fewer say too little about the covariance."""
MAX_BLOCKS: Final = 120
MAD_TO_SIGMA: Final = 1.4826
"""Standard deviation of a normal variable over its median absolute deviation."""


@dataclass(slots=True)
class Findings:
    """Collects what is wrong with a result; the worst decides the verdict."""

    refuse: list[str] = field(default_factory=list)
    doubt: list[str] = field(default_factory=list)

    def grade(self, what: str, value: float, accept: float, refuse: float, unit: str) -> None:
        """Add a finding when ``value`` is above ``accept``, a refusal above ``refuse`` or when it is not a number."""
        if not value <= refuse:
            self.refuse.append(f"{what} {value:.3g} {unit}, above {refuse:g} {unit}")
        elif value > accept:
            self.doubt.append(f"{what} {value:.3g} {unit}, above {accept:g} {unit}")

    def verdict(self, when_good: str) -> tuple[Verdict, str]:
        """Return the verdict and its reason in one line."""
        if self.refuse:
            return Verdict.REFUSE, "; ".join(self.refuse + self.doubt)
        if self.doubt:
            return Verdict.DOUBT, "; ".join(self.doubt)
        return Verdict.ACCEPT, when_good


def checked_poses(poses: ArrayLike, what: str, at_least: int) -> Array:
    """Return poses (N, 4, 4) as float64 without the rounding of their rotations, or refuse them with the row at fault.

    Raises
    ------
    CalibrationError
        Wrong shape, too few, a number that is not finite, a mirror, a matrix that is not rigid.
    """
    p = np.array(poses, dtype=np.float64)
    if p.ndim != 3 or p.shape[1:] != (4, 4):
        raise CalibrationError(f"{what}: shape {p.shape}, expected (N, 4, 4)")
    if len(p) < at_least:
        raise CalibrationError(f"{what}: {len(p)} poses, at least {at_least} are needed")
    finite = np.isfinite(p).all(axis=(1, 2))
    if not finite.all():
        raise CalibrationError(f"{what}: pose {int(np.flatnonzero(~finite)[0]) + 1} holds a number that is not finite")
    last_row = (p[:, 3] != (0.0, 0.0, 0.0, 1.0)).any(axis=1)
    rotations = p[:, :3, :3]
    gaps = np.abs(np.swapaxes(rotations, 1, 2) @ rotations - np.eye(3)).max(axis=(1, 2))
    determinants = np.linalg.det(rotations)
    bad = last_row | (gaps > RIGIDITY_TOLERANCE) | (determinants <= 0.0)
    if bad.any():
        i = int(bad.argmax())
        if last_row[i]:
            raise CalibrationError(f"{what}: pose {i + 1} has the last row {p[i, 3].tolist()}, expected 0 0 0 1")
        fault = "mirrors" if determinants[i] < 0.0 else "is not rigid"
        raise CalibrationError(
            f"{what}: pose {i + 1} {fault}: determinant {determinants[i]:.3f}, |R^T R - I| = {gaps[i]:.2g}"
        )
    # Newton-Schulz (Higham 1986): each step squares what rounding left.
    for _ in range(2):
        rotations = 0.5 * rotations @ (3.0 * np.eye(3) - np.swapaxes(rotations, 1, 2) @ rotations)
    p[:, :3, :3] = rotations
    return p


def fresh_rows(*poses: Array, what: str, at_least: int) -> NDArray[np.bool_]:
    """Return which rows (N,) differ from the row before; a repeated pose is no new measurement.

    Raises
    ------
    CalibrationError
        More than half of the rows repeat, or too few are left.
    """
    fresh = np.ones(len(poses[0]), dtype=np.bool_)
    moved = np.zeros(len(poses[0]) - 1, dtype=np.bool_)
    for p in poses:
        moved |= np.abs(np.diff(p, axis=0)).max(axis=(1, 2)) > REPEAT_MM
    fresh[1:] = moved
    repeated = int((~fresh).sum())
    if repeated > REPEATED_SHARE * len(fresh):
        raise CalibrationError(
            f"{what}: {repeated} of {len(fresh)} poses repeat the one before: the source stood still"
        )
    if int(fresh.sum()) < at_least:
        raise CalibrationError(f"{what}: {int(fresh.sum())} different poses, at least {at_least} are needed")
    return fresh


def rotation_spread(rotations: Array) -> tuple[Array, Array]:
    """Return the rms motion (3,) of a unit vector of the tool, smallest first, and its directions as columns (3, 3).

    Root eigenvalues of ``mean((R - mean R)^T (R - mean R)) = I - (mean R)^T (mean R)``.  The first is 0 for a tool that
    stands still or turns about one axis, else the rms turn in radians about all but that direction.
    """
    mean = rotations.mean(axis=0)
    values, directions = np.linalg.eigh(np.eye(3) - mean.T @ mean)
    return np.sqrt(np.maximum(values, 0.0)), directions


def least_spread_deg(rotations: Array, blocks: Labels | None = None) -> float:
    """Return the smallest of ``rotation_spread`` in degrees; with blocks, what is left without the weightiest block."""
    if blocks is None:
        return float(np.rad2deg(rotation_spread(rotations)[0][0]))
    return min(least_spread_deg(rotations[blocks != block]) for block in np.unique(blocks))


def time_blocks(residuals: Array) -> tuple[Labels, float]:
    """Return a block of time for each row of residuals or scores (N, m), and the factor that short blocks owe.

    A block spans twice the integrated autocorrelation time, but there are at least ``MIN_BLOCKS``.  Blocks shorter than
    the correlation hide a part of it from leaving out: the factor gives it back.
    """
    n = len(residuals)
    centred = residuals - residuals.mean(axis=0)
    power = max(float((centred**2).sum()), 1e-300)
    lags: list[float] = []
    for lag in range(1, n // 4):
        correlation = float((centred[lag:] * centred[:-lag]).sum()) / power
        if correlation < 2.0 / np.sqrt(residuals.size):
            break
        lags.append(correlation)
    time = 1.0 + 2.0 * sum(lags)
    length = int(np.ceil(2.0 * time)) if lags else 1
    count = min(n, max(MIN_BLOCKS, min(MAX_BLOCKS, n // length)))
    blocks: Labels = (np.arange(n) * count) // n
    seen = 1.0 + 2.0 * sum(c * (1.0 - k * count / n) for k, c in enumerate(lags, 1) if k * count < n)
    return blocks, max(1.0, time / seen)


def scores(jacobian: Array, residuals: Array) -> Array:
    """Return what each row (N, m, p), (N, m) says of each parameter (N, p), scaled to unit rms.

    It is their correlation in time that widens a covariance, not that of the residuals.
    """
    weight = np.einsum("nmp,nm->np", jacobian, residuals)
    result: Array = weight / np.maximum(np.sqrt((weight**2).mean(axis=0)), 1e-300)
    return result


def left_out_shifts(jacobian: Array, residuals: Array, blocks: Labels) -> Array:
    """Return how far a linear least-squares solution moves (G, p) when one block of rows after another is left out.

    Closed form, exact for a linear model: ``(J^T J)^-1 J_b^T (I - H_bb)^-1 r_b``.

    Parameters
    ----------
    jacobian : (N, m, p)
        Derivatives of the model's m values a row.
    residuals : (N, m)
        Measured less model.
    blocks : (N,) int
    """
    p = jacobian.shape[2]
    names, inverse = np.unique(blocks, return_inverse=True)
    information, pull = np.zeros((len(names), p, p)), np.zeros((len(names), p))
    np.add.at(information, inverse, np.einsum("nmp,nmq->npq", jacobian, jacobian))
    np.add.at(pull, inverse, np.einsum("nmp,nm->np", jacobian, residuals))
    bread = np.linalg.inv(information.sum(axis=0))
    kept = np.eye(p) - information @ bread  # the push-through form is p x p, however long the block
    worst = int(np.linalg.cond(kept).argmax())
    if np.linalg.cond(kept[worst]) > 1e12:
        raise CalibrationError(f"block {worst + 1} of {len(names)} of the recording alone carries a parameter")
    shifts = -np.linalg.solve(kept, pull[:, :, None])[:, :, 0] @ bread
    return np.asarray(shifts, dtype=np.float64)


def jackknife_covariance(shifts: Array) -> Array:
    """Return the covariance (p, p) from the shifts (G, p) of leaving out each of G blocks.

    Holds for noise that is not Gaussian, differs between directions and poses, or is correlated within a block
    (delete-a-group jackknife).
    """
    g = len(shifts)
    centred = shifts - shifts.mean(axis=0)
    covariance: Array = centred.T @ centred * ((g - 1) / g)
    return covariance


def rms(values: Array) -> float:
    """Return the root mean square of all entries."""
    return float(np.sqrt((values**2).mean()))
