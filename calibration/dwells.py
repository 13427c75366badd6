"""Owns the places of a recording where a tip rested: which rows, where, and at which hole of a block.

Refuses recordings in which nothing rests, and to call a place sure about which the tip wandered: what a wrong tip makes
of the tool's turning goes into the mean.  Resting is of the tip: the tool may turn about it all the while.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from calibration.poses import Findings
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array, frozen_array
from navsrv.kernel.registration import Verdict

STILL_MM_S: Final = 20.0
"""A resting tip seems to move no faster: noise, and the tip's own error while the tool turns."""
RADIUS_MM: Final = 3.0
LEAST_S: Final = 0.5
SMOOTH_S: Final = 0.15
SAME_HOLE_MM: Final = 3.0
WANDER_ACCEPT_MM: Final = 0.5
WANDER_REFUSE_MM: Final = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Dwell:
    """Rows ``start`` to ``stop`` (exclusive) in which the tip rested at ``place_mm`` (3,), their mean."""

    start: int
    stop: int
    place_mm: Array


def find_dwells(times_ns: NDArray[np.int64], tips_mm: Array) -> list[Dwell]:
    """Return where the tip (N, 3) rested, in the order of time.

    Raises
    ------
    CalibrationError
        Nowhere.
    """
    seconds = (times_ns - times_ns[0]) * 1e-9
    period = max(float(np.median(np.diff(seconds))), 1e-6)
    reach = max(1, round(SMOOTH_S / period))
    speeds = np.full(len(tips_mm), np.inf)
    speeds[reach:-reach] = np.linalg.norm(tips_mm[2 * reach :] - tips_mm[: -2 * reach], axis=1) / np.maximum(
        seconds[2 * reach :] - seconds[: -2 * reach], 1e-6
    )
    still = speeds <= STILL_MM_S
    edges = np.flatnonzero(np.diff(np.concatenate([[False], still, [False]]).astype(int)))
    dwells = []
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        near = np.linalg.norm(tips_mm[first:last] - np.median(tips_mm[first:last], axis=0), axis=1) <= RADIUS_MM
        if not near.any():
            continue
        # The way in and out is slow at its end: its last and first moments are not of the hole.
        start, stop = int(first + near.argmax()) + reach, int(last - near[::-1].argmax()) - reach
        if stop - start < 2:
            continue
        if near[start - first : stop - first].all() and seconds[stop - 1] - seconds[start] >= LEAST_S:
            dwells.append(Dwell(start, stop, frozen_array(tips_mm[start:stop].mean(axis=0), (3,))))
    if not dwells:
        raise CalibrationError(
            f"the tip rests nowhere for {LEAST_S:g} s within {RADIUS_MM:g} mm: touch holes, and hold on"
        )
    return dwells


def places_of(dwells: list[Dwell]) -> list[list[int]]:
    """Return which dwells were at one place, the places in the order of their first dwell."""
    places: list[list[int]] = []
    for i, dwell in enumerate(dwells):
        for place in places:
            if float(np.linalg.norm(dwells[place[0]].place_mm - dwell.place_mm)) <= SAME_HOLE_MM:
                place.append(i)
                break
        else:
            places.append([i])
    return places


@dataclass(frozen=True, slots=True, eq=False)
class Touches:
    """Points that a tip touched one after another.

    Attributes
    ----------
    places_mm : (T, 3)
        Means over the part of each rest that counts.
    from_s, seconds : (T,)
        Since the recording's first pose, and how long the tip rested.
    wander_mm : (T,)
        Rms distance of the tip from its place.
    verdict : Verdict
    reason : str
    details : tuple of (str, float)
    """

    places_mm: Array
    from_s: Array
    seconds: Array
    wander_mm: Array
    verdict: Verdict
    reason: str
    details: tuple[tuple[str, float], ...]


def touched_points(
    times_ns: NDArray[np.int64], poses: Array, tip_tool_mm: Array, *, first_s: float | None = None
) -> Touches:
    """Return where the tip of a recorded tool rested, in the order of time.

    Parameters
    ----------
    times_ns : (N,)
    poses : (N, 4, 4)
        ``T_<to>_from_tool``; the places are in ``to``.
    tip_tool_mm : (3,)
    first_s : float or None
        Count only so many seconds from the start of each rest; None counts all of it.

    Raises
    ------
    CalibrationError
        The tip rests nowhere, or a part that is none.
    """
    if first_s is not None and not first_s > 0.0:
        raise CalibrationError(f"the first {first_s} s of a rest: more than 0 s are needed")
    tips = poses[:, :3, :3] @ np.asarray(tip_tool_mm, dtype=np.float64) + poses[:, :3, 3]
    dwells = find_dwells(times_ns, tips)
    seconds = (times_ns - times_ns[0]) * 1e-9
    places, wander = [], []
    for dwell in dwells:
        part = tips[dwell.start : dwell.stop]
        if first_s is not None:
            part = part[seconds[dwell.start : dwell.stop] <= seconds[dwell.start] + first_s]
        places.append(part.mean(axis=0))
        wander.append(float(np.sqrt(((part - places[-1]) ** 2).sum(axis=1).mean())))
    found = Findings()
    what = f"touch {int(np.argmax(wander)) + 1}: the tip wanders while it rests (rms)"
    found.grade(what, max(wander), WANDER_ACCEPT_MM, WANDER_REFUSE_MM, "mm")
    verdict, reason = found.verdict(f"{len(places)} touches; the tip wanders by {max(wander):.2f} mm (rms) at most")
    n = len(places)
    starts = seconds[[dwell.start for dwell in dwells]]
    return Touches(
        frozen_array(np.array(places), (n, 3)),
        frozen_array(starts, (n,)),
        frozen_array(seconds[[dwell.stop - 1 for dwell in dwells]] - starts, (n,)),
        frozen_array(np.array(wander), (n,)),
        verdict,
        reason,
        (("touches", float(n)), ("wander_max_mm", max(wander))),
    )
