"""Owns the doubt of a clearance: one sigma and one lower bound for each structure and part, from what is known.

First order: each term is the standard deviation of the distance, along the direction ``n`` from the structure's nearest
point to the instrument's point ``p``.  Terms have causes of their own and add in squares.  What has one cause is one
term, with its effects added before they are squared: a turn of the registration and its shift (one 6x6), a body's turn
over the lever to ``p`` (not to the tip, and from there to ``p``).

- registration: ``n^T J C J^T n`` with ``J = [-[p]x, I]`` and C the covariance of ``T_ct_from_ref``, inflated by what
  held-out registrations of its method show (docs/doubt.md);
- tracker, of tool and reference: translation, and rotation about the body's origin: ``noise |lever x n|``;
- calibration of the tool: tip, and the axis' angle, as a turn about the tip;
- bending across the shaft, most at the tip (``guidance/bending.py``);
- time: what is unknown of it times the velocity of ``p``, and what the patient moved between the poses of a pair;
- the structure: its segmentation, and its motion against the bone that it follows.

Where the point lies on the surface there is no direction: the worst stands in.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from navsrv.kernel.frames import Array

Z95: Final = 1.6448536269514722
"""One-sided 95 % quantile of the normal distribution."""
TURN: Final = 0.25
"""How far a motion may leave its direction within the unknown time: a quarter of its way, 14 degrees."""

TOOL_MM: Final = 0
TOOL_RAD: Final = 1
REFERENCE_MM: Final = 2
REFERENCE_RAD: Final = 3
TIP_MM: Final = 4
AXIS_RAD: Final = 5
BENDING_MM: Final = 6
LENGTH_MM: Final = 7
INFLATION: Final = 8
UNKNOWN_S: Final = 9
DRIFT_MM: Final = 10
TERMS: Final = 11
"""Places in the ``terms`` of ``propagate``: 1 sigma in each axis; the free length; the factor on the registration;
the time (s) that the pose may be older than now; and how far (mm) the patient moved between the poses of a pair."""

TIP_AT: Final = 0
AXIS_AT: Final = 3
TOOL_AT: Final = 6
REFERENCE_AT: Final = 9
POSE: Final = 12
"""Places in ``pose``: the tip, the unit axis from hub to tip, the origins of the tool's body and of the reference."""


@njit(cache=True, nogil=True)
def registration_variance(px: float, py: float, pz: float, nx: float, ny: float, nz: float, covariance: Array) -> float:
    """Return the variance (mm2) along a unit vector n of a point p whose frame is moved by (6, 6) ``covariance``."""
    # n . (w x p) = w . (p x n): the row n^T J
    row = (py * nz - pz * ny, pz * nx - px * nz, px * ny - py * nx, nx, ny, nz)
    variance = 0.0
    for a in range(6):
        for b in range(6):
            variance += row[a] * covariance[a, b] * row[b]
    return variance


@njit(cache=True, nogil=True)
def _lever2(px: float, py: float, pz: float, nx: float, ny: float, nz: float, pose: Array, origin: int) -> float:
    """Return how far (squared, mm2) a turn of 1 rad per axis about an origin moves p along n; |lever|^2 for n = 0."""
    x, y, z = px - pose[origin], py - pose[origin + 1], pz - pose[origin + 2]
    along = x * nx + y * ny + z * nz
    return float(max(0.0, x * x + y * y + z * z - along * along))


@njit(cache=True, nogil=True)
def _sigma(
    point: tuple[float, float, float],
    nearest: Array,
    pose: Array,
    velocity: Array,
    covariance: Array,
    terms: Array,
    structure_mm: float,
) -> float:
    """Return the sigma (mm) of a ``point`` that moves with the instrument against the point ``nearest``."""
    ax, ay, az = pose[3], pose[4], pose[5]
    px, py, pz = point
    offset = ax * (pose[0] - px) + ay * (pose[1] - py) + az * (pose[2] - pz)
    nx, ny, nz = px - nearest[0], py - nearest[1], pz - nearest[2]
    norm = np.sqrt(nx * nx + ny * ny + nz * nz)
    if norm < 1e-9:
        nx, ny, nz = 0.0, 0.0, 0.0
        registration = (
            registration_variance(px, py, pz, 1.0, 0.0, 0.0, covariance)
            + registration_variance(px, py, pz, 0.0, 1.0, 0.0, covariance)
            + registration_variance(px, py, pz, 0.0, 0.0, 1.0, covariance)
        )
    else:
        nx, ny, nz = nx / norm, ny / norm, nz / norm
        registration = registration_variance(px, py, pz, nx, ny, nz, covariance)
    variance = registration * terms[INFLATION] ** 2
    variance += terms[TOOL_MM] ** 2 + terms[TOOL_RAD] ** 2 * _lever2(px, py, pz, nx, ny, nz, pose, TOOL_AT)
    variance += terms[REFERENCE_MM] ** 2
    variance += terms[REFERENCE_RAD] ** 2 * _lever2(px, py, pz, nx, ny, nz, pose, REFERENCE_AT)
    left = 1.0 - offset / terms[LENGTH_MM] if terms[LENGTH_MM] > 0.0 else 0.0
    # Beyond the tip a zone is carried on straight.
    bent = terms[BENDING_MM] * (0.5 * left * left * (3.0 - left) if left <= 1.0 else 1.5 * left - 0.5)
    across = max(0.0, 1.0 - (nx * ax + ny * ay + nz * az) ** 2)
    variance += terms[TIP_MM] ** 2 + terms[AXIS_RAD] ** 2 * _lever2(px, py, pz, nx, ny, nz, pose, TIP_AT)
    variance += across * bent * bent
    vx = velocity[0] - offset * velocity[3]
    vy = velocity[1] - offset * velocity[4]
    vz = velocity[2] - offset * velocity[5]
    straight, speed2 = vx * nx + vy * ny + vz * nz, vx * vx + vy * vy + vz * vz
    speed2 *= TURN * TURN if norm >= 1e-9 else 1.0
    variance += (straight * straight + speed2) * terms[UNKNOWN_S] ** 2 + terms[DRIFT_MM] ** 2
    variance += structure_mm * structure_mm
    if variance < 0.0:  # rounding; what is not a number stays so, to be seen
        variance = 0.0
    return float(np.sqrt(variance))


@njit(cache=True, nogil=True)
def propagate(
    tip: tuple[Array, Array, Array],
    shaft: tuple[Array, Array, Array, Array],
    zone: tuple[Array, Array, Array, Array],
    pose: Array,
    velocity: Array,
    covariance: Array,
    terms: Array,
    structure_mm: Array,
    out: Array,
) -> int:
    """Fill ``out`` for the rows of tip, shaft and zone; return the first row that is no number, or -1.

    Parameters
    ----------
    tip : (S,), (S,), (S, 3)
        Distances (mm), by how much they can miss the truth, nearest points of the structures in CT.
    shaft : (S,), (S,), (S, 3), (S,)
        The same, and how far (mm) behind the tip the nearest point of the axis is.
    zone : (S,), (S,), (S, 3), (S, 3)
        The same, and the zone's nearest points; all empty without a zone.
    pose : (12,)
        See ``TIP_AT`` and following: CT, mm.
    velocity : (6,)
        Of the tip (mm/s) and of the axis (1/s).
    covariance : (6, 6)
        Of ``T_ct_from_ref``: (rotation_rad, translation_mm), left perturbation in CT.
    terms : (11,)
        See ``TOOL_MM`` and following.
    structure_mm : (S,)
        Sigma of each structure by itself: segmentation and motion.
    out : (3, 2 S) or (3, 3 S)
        Distance, sigma, lower bound, mm.
    """
    count = structure_mm.size
    bad = -1
    for i in range(out.shape[1]):
        k = i % count
        if i < count:
            distance, error, nearest = tip[0][k], tip[1][k], tip[2][k]
            point = (pose[0], pose[1], pose[2])
        elif i < 2 * count:
            distance, error, nearest = shaft[0][k], shaft[1][k], shaft[2][k]
            offset = shaft[3][k]
            point = (pose[0] - offset * pose[3], pose[1] - offset * pose[4], pose[2] - offset * pose[5])
        else:
            distance, error, nearest = zone[0][k], zone[1][k], zone[2][k]
            point = (zone[3][k, 0], zone[3][k, 1], zone[3][k, 2])
        sigma = _sigma(point, nearest, pose, velocity, covariance, terms, structure_mm[k])
        # What the bound on time left uncertain counts as doubt; it is zero wherever a level could depend on it.
        sigma += error / Z95
        out[0, i], out[1, i], out[2, i] = distance, sigma, distance - Z95 * sigma
        if bad < 0 and not np.isfinite(out[2, i]):
            bad = i
    return bad
