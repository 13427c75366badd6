"""Owns the doubt of a clearance: one sigma for each structure and part, from the terms that are known.

First order, independent terms, each along the direction ``n`` from the structure's nearest point to the
instrument:

- registration: ``n^T J C J^T n`` with ``J = [-[p]x, I]`` and C the (6, 6) covariance of ``T_ct_from_ref``;
- tracker: translation noise of tool and reference, and rotation noise times lever (tool: from its body's origin
  to the point; reference: from the reference to the point);
- tool calibration: tip, and along the shaft the axis angle times the distance from the tip;
- segmentation of the structure;
- time: how far things may have moved in the time that nobody knows (the caller's ``motion_mm``).

Where the point lies on the surface there is no direction: the sum over all three stands in, which is never too small.
Correlations that matter more (a common registration error for all structures) are the subject of a later issue.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from navsrv.kernel.frames import Array

Z95: Final = 1.6448536269514722
"""One-sided 95 % quantile of the normal distribution."""


@njit(cache=True, nogil=True)
def _along(px: float, py: float, pz: float, nx: float, ny: float, nz: float, covariance: Array) -> float:
    """Return the variance (mm2) along a unit vector n of a point p whose frame is moved by (6, 6) ``covariance``."""
    # n . (w x p) = w . (p x n): the row n^T J
    row = (py * nz - pz * ny, pz * nx - px * nz, px * ny - py * nx, nx, ny, nz)
    variance = 0.0
    for a in range(6):
        for b in range(6):
            variance += row[a] * covariance[a, b] * row[b]
    return variance


@njit(cache=True, nogil=True)
def propagate_sigma(
    points_mm: Array,
    nearest_mm: Array,
    offsets_mm: Array,
    covariance: Array,
    segmentation_mm: Array,
    noise: Array,
    reference_ct_mm: Array,
    sigma_mm: Array,
) -> None:
    """Fill ``sigma_mm`` (N,) for N points of the instrument.

    Parameters
    ----------
    points_mm, nearest_mm : (N, 3)
        Point of the instrument and nearest point of the structure, CT.
    offsets_mm : (N,)
        Distance of the point from the tip along the shaft.
    covariance : (6, 6)
        Of ``T_ct_from_ref``: (rotation_rad, translation_mm), left perturbation in CT.
    segmentation_mm : (N,)
    noise : (8,)
        tool_t_mm, tool_r_rad, ref_t_mm, ref_r_rad, tip_mm, axis_rad, tool_lever_mm, motion_mm.
    reference_ct_mm : (3,)
    """
    for i in range(points_mm.shape[0]):
        px, py, pz = points_mm[i, 0], points_mm[i, 1], points_mm[i, 2]
        nx, ny, nz = px - nearest_mm[i, 0], py - nearest_mm[i, 1], pz - nearest_mm[i, 2]
        norm = np.sqrt(nx * nx + ny * ny + nz * nz)
        if norm < 1e-9:
            variance = (
                _along(px, py, pz, 1.0, 0.0, 0.0, covariance)
                + _along(px, py, pz, 0.0, 1.0, 0.0, covariance)
                + _along(px, py, pz, 0.0, 0.0, 1.0, covariance)
            )
        else:
            variance = _along(px, py, pz, nx / norm, ny / norm, nz / norm, covariance)
        dx, dy, dz = px - reference_ct_mm[0], py - reference_ct_mm[1], pz - reference_ct_mm[2]
        lever_ref2 = dx * dx + dy * dy + dz * dz
        lever_tool = noise[6] + offsets_mm[i]
        variance += noise[0] ** 2 + (noise[1] * lever_tool) ** 2
        variance += noise[2] ** 2 + noise[3] ** 2 * lever_ref2
        variance += noise[4] ** 2 + (noise[5] * offsets_mm[i]) ** 2 + noise[7] ** 2
        variance += segmentation_mm[i] ** 2
        if variance < 0.0:  # rounding; what is not a number stays so, to be seen
            variance = 0.0
        sigma_mm[i] = np.sqrt(variance)
