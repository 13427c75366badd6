"""Owns the chain of transforms from a pair of poses to the instrument in CT, in one compiled call.

``T_ct_from_tool = T_ct_from_ref @ inverse(T_tracker_from_ref) @ T_tracker_from_tool``.  Refuses nothing: the ``Rigid``
whose numbers come here was refused if it was not rigid, and frames whose names never meet when the server began.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from navsrv.guidance.doubt import AXIS_AT, REFERENCE_AT, TIP_AT, TOOL_AT
from navsrv.kernel.frames import Array


@njit(cache=True, nogil=True)
def place_instrument(
    ct_from_ref: tuple[Array, Array],
    tracker_from_ref: tuple[Array, Array],
    tracker_from_tool: tuple[Array, Array],
    R_tool_from_tip: Array,
    tip_tool_mm: Array,
    pose: Array,
) -> tuple[float, tuple[float, float, float, float]]:
    """Fill ``pose``; return the tip's largest coordinate by size (infinite if one is no number), and ``q_wxyz``.

    Parameters
    ----------
    ct_from_ref, tracker_from_ref, tracker_from_tool : (3, 3) and (3,)
        Rotation and translation (mm) of each pose.
    R_tool_from_tip : (3, 3)
        Its third column is the axis in the tool.
    tip_tool_mm : (3,)
    pose : (12,)
        Filled as ``guidance.doubt`` says: tip, axis, origins of tool and reference in CT.
    """
    R_tracker_from_ref, R_ct_from_ref = tracker_from_ref[0], ct_from_ref[0]
    apart = np.empty(3)
    for i in range(3):
        apart[i] = tracker_from_tool[1][i] - tracker_from_ref[1][i]
    R_ref_from_tracker = R_tracker_from_ref.T
    R_ct_from_tool = _product(R_ct_from_ref, _product(R_ref_from_tracker, tracker_from_tool[0]))
    R_ct_from_tip = _product(R_ct_from_tool, R_tool_from_tip)
    largest = 0.0
    for i in range(3):
        origin, tip = ct_from_ref[1][i], 0.0
        for k in range(3):
            in_ref = R_ref_from_tracker[k, 0] * apart[0]
            in_ref += R_ref_from_tracker[k, 1] * apart[1] + R_ref_from_tracker[k, 2] * apart[2]
            origin += R_ct_from_ref[i, k] * in_ref
            tip += R_ct_from_tool[i, k] * tip_tool_mm[k]
        tip += origin
        pose[TIP_AT + i], pose[AXIS_AT + i] = tip, R_ct_from_tip[i, 2]
        pose[TOOL_AT + i], pose[REFERENCE_AT + i] = origin, ct_from_ref[1][i]
        largest = max(largest, abs(tip)) if math.isfinite(tip) else math.inf
    return largest, _quaternion_wxyz(R_ct_from_tip)


@njit(cache=True, nogil=True)
def _product(a: Array, b: Array) -> Array:
    c = np.empty((3, 3))
    for i in range(3):
        for j in range(3):
            c[i, j] = a[i, 0] * b[0, j] + a[i, 1] * b[1, j] + a[i, 2] * b[2, j]
    return c


@njit(cache=True, nogil=True)
def _quaternion_wxyz(m: Array) -> tuple[float, float, float, float]:
    """Return the unit quaternion with w >= 0 of a rotation (3, 3) (Shepperd 1978), as ``kernel.frames`` does."""
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    x2, y2, z2 = m[0, 0], m[1, 1], m[2, 2]
    wx, wy, wz = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    xy, xz, yz = m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1]
    if trace >= max(x2, y2, z2):
        w, x, y, z = 1.0 + trace, wx, wy, wz
    elif x2 >= max(y2, z2):
        w, x, y, z = wx, 1.0 + x2 - y2 - z2, xy, xz
    elif y2 >= z2:
        w, x, y, z = wy, xy, 1.0 - x2 + y2 - z2, yz
    else:
        w, x, y, z = wz, xz, yz, 1.0 - x2 - y2 + z2
    scale = math.copysign(1.0 / math.sqrt(w * w + x * x + y * y + z * z), w if w != 0.0 else 1.0)
    return w * scale, x * scale, y * scale, z * scale
