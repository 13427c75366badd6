"""Owns a tracker's acceptance in the manner of ASTM F2554: one point, turning about it, distances between points.

It judges the tracker and its pointer as they measured a block of known holes: no registration, no image, no motion, and
no claim of compliance with the standard, whose block, sites and counts are the tester's to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2

from calibration.dwells import find_dwells, places_of
from calibration.matching import match_landmarks
from calibration.poses import Findings, checked_poses, fresh_rows, least_spread_deg
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array
from navsrv.kernel.registration import Verdict

MIN_READINGS: Final = 10
MIN_POINTS: Final = 4
MIN_TURN_DEG: Final = 4.0
MIN_DISTANCE_MM: Final = 5.0


@dataclass(frozen=True, slots=True)
class AcceptanceLimits:
    """Thresholds of the verdict, millimetres: at most ``accept`` is accepted, above ``refuse`` is refused.

    Starting points, not the standard's: it asks for figures and sets no limits.
    """

    repeat_accept_mm: float = 0.3
    repeat_refuse_mm: float = 1.0
    turning_accept_mm: float = 1.0
    turning_refuse_mm: float = 3.0
    distance_accept_mm: float = 0.5
    distance_refuse_mm: float = 1.5


@dataclass(frozen=True, slots=True)
class AcceptanceResult:
    """Figures of one test, in millimetres.

    Attributes
    ----------
    test : str
        ``single point``, ``rotation``, ``distance``.
    count : int
        Readings, or pairs of points.
    mean_mm, rms_mm, largest_mm : float
        Of the distances from the mean point; for ``distance`` of measured less true distance (mean signed, largest
        unsigned); for ``rotation`` the largest is the span between any two readings.
    upper95_rms_mm : float
        Bound that the true rms exceeds once in twenty, were the errors independent and Gaussian.
    verdict : Verdict
    reason : str
    """

    test: str
    count: int
    mean_mm: float
    rms_mm: float
    largest_mm: float
    upper95_rms_mm: float
    verdict: Verdict
    reason: str


def judge_single_point(tips_mm: ArrayLike, *, limits: AcceptanceLimits | None = None) -> AcceptanceResult:
    """Return how well one hole is found again: tips (N, 3) of separate touches with the pointer held alike.

    Raises
    ------
    CalibrationError
        Fewer than ``MIN_READINGS``, numbers that are not finite, readings that repeat.
    """
    limits = limits or AcceptanceLimits()
    tips = _checked_points(tips_mm, "tips", MIN_READINGS)
    if len(np.unique(tips, axis=0)) < len(tips) / 2:
        raise CalibrationError(
            f"{len(np.unique(tips, axis=0))} different tips of {len(tips)}: touch the hole anew each time"
        )
    distances = np.linalg.norm(tips - tips.mean(axis=0), axis=1)
    bound = _upper95(distances, 3 * len(tips) - 3)
    found = Findings()
    what = "single point: rms distance from the mean (upper 95 % bound)"
    found.grade(what, bound, limits.repeat_accept_mm, limits.repeat_refuse_mm, "mm")
    verdict, reason = found.verdict(f"single point: rms {bound:.2f} mm at most (95 %)")
    return AcceptanceResult(
        "single point",
        len(tips),
        float(distances.mean()),
        _rms(distances),
        float(distances.max()),
        bound,
        verdict,
        reason,
    )


def judge_rotation(
    poses: ArrayLike, tip_tool_mm: ArrayLike, *, limits: AcceptanceLimits | None = None
) -> AcceptanceResult:
    """Return how far the tip seems to move when the pointer turns about it: poses (N, 4, 4), calibrated tip (3,).

    The tip must come from another recording: one fitted to this one would hide its own error.

    Raises
    ------
    CalibrationError
        Bad poses, or a pointer that hardly turned.
    """
    limits = limits or AcceptanceLimits()
    given = checked_poses(poses, "rotation about the tip", MIN_READINGS)
    given = given[fresh_rows(given, what="rotation about the tip", at_least=MIN_READINGS)]
    tip = _checked_points(np.atleast_2d(np.asarray(tip_tool_mm, dtype=np.float64)), "tip", 1)[0]
    turned_deg = least_spread_deg(given[:, :3, :3])
    if turned_deg < MIN_TURN_DEG:
        raise CalibrationError(
            f"rotation about the tip: the rotations spread {turned_deg:.2f} deg about the weakest axis, at least "
            f"{MIN_TURN_DEG:g} deg needed"
        )
    tips = given[:, :3, :3] @ tip + given[:, :3, 3]
    distances = np.linalg.norm(tips - tips.mean(axis=0), axis=1)
    span = max(float(np.linalg.norm(tips - one, axis=1).max()) for one in tips)
    found = Findings()
    what = "rotation: span of the tip"
    found.grade(what, span, limits.turning_accept_mm, limits.turning_refuse_mm, "mm")
    verdict, reason = found.verdict(f"rotation: the tip spans {span:.2f} mm over {turned_deg:.0f} deg (rms)")
    bound = _upper95(distances, 3 * len(tips) - 3)
    return AcceptanceResult(
        "rotation", len(tips), float(distances.mean()), _rms(distances), span, bound, verdict, reason
    )


def judge_distances(
    measured_mm: ArrayLike, true_mm: ArrayLike, *, limits: AcceptanceLimits | None = None
) -> AcceptanceResult:
    """Return how true distances between holes are: points (N, 3) as measured and as the block was made, in order.

    No registration enters: distances are the same in every frame.

    Raises
    ------
    CalibrationError
        Fewer than ``MIN_POINTS``, unequal counts, numbers that are not finite, holes closer than ``MIN_DISTANCE_MM``.
    """
    limits = limits or AcceptanceLimits()
    measured, true = _checked_points(measured_mm, "measured", MIN_POINTS), _checked_points(true_mm, "true", MIN_POINTS)
    if len(measured) != len(true):
        raise CalibrationError(f"{len(measured)} measured points against {len(true)} true ones: each needs its partner")
    pairs = list(combinations(range(len(true)), 2))
    lengths = np.array([np.linalg.norm(true[i] - true[j]) for i, j in pairs])
    if float(lengths.min()) < MIN_DISTANCE_MM:
        i, j = pairs[int(lengths.argmin())]
        raise CalibrationError(
            f"true points {i + 1} and {j + 1} are {lengths.min():.2f} mm apart, at least {MIN_DISTANCE_MM:g} mm needed"
        )
    errors = np.array([np.linalg.norm(measured[i] - measured[j]) for i, j in pairs]) - lengths
    worst = int(np.abs(errors).argmax())
    bound = _upper95(errors, 3 * len(true) - 6)
    found = Findings()
    what = "distance: rms error (upper 95 % bound)"
    found.grade(what, bound, limits.distance_accept_mm, limits.distance_refuse_mm, "mm")
    names = " and ".join(str(index + 1) for index in pairs[worst])
    verdict, reason = found.verdict(
        f"distance: rms error {bound:.2f} mm at most (95 %), worst {errors[worst]:+.2f} mm of points {names}"
    )
    return AcceptanceResult(
        "distance", len(pairs), float(errors.mean()), _rms(errors), float(np.abs(errors).max()), bound, verdict, reason
    )


def judge_recording(
    times_ns: NDArray[np.int64],
    poses: ArrayLike,
    tip_tool_mm: ArrayLike,
    holes_mm: ArrayLike | None = None,
    *,
    limits: AcceptanceLimits | None = None,
) -> tuple[list[AcceptanceResult], list[str]]:
    """Return the tests that a recording of touched holes allows, and a line for each that it does not.

    Single point: the hole that was touched most often, each touch its mean.  Rotation: each hole in which the pointer
    turned.  Distance: the block's holes, which may be touched in any order (``calibration.matching``), up to ten.

    Parameters
    ----------
    times_ns : (N,)
    poses : (N, 4, 4)
        ``T_reference_from_tool``: against a reference on the block, or the tracker if the block stood still.
    tip_tool_mm : (3,)
        Of another recording.
    holes_mm : (M, 3) or None
        The block as it was made.

    Raises
    ------
    CalibrationError
        Bad poses, or a tip that rests nowhere.
    """
    given = checked_poses(poses, "recording", MIN_READINGS)
    tip = _checked_points(np.atleast_2d(np.asarray(tip_tool_mm, dtype=np.float64)), "tip", 1)[0]
    tips = given[:, :3, :3] @ tip + given[:, :3, 3]
    dwells = find_dwells(times_ns, tips)
    places = places_of(dwells)
    results, missing = [], []
    most = max(places, key=len)
    if len(most) >= MIN_READINGS:
        results.append(judge_single_point([dwells[i].place_mm for i in most], limits=limits))
    else:
        missing.append(
            f"single point: no hole was touched {MIN_READINGS} times, the most is {len(most)} of {len(places)} holes"
        )
    turned = set()
    for i, dwell in enumerate(dwells):
        part = given[dwell.start : dwell.stop]
        if len(part) >= MIN_READINGS and least_spread_deg(part[:, :3, :3]) >= MIN_TURN_DEG:
            turned.add(i)
            results.append(replace(judge_rotation(part, tip, limits=limits), test=f"rotation {i + 1}"))
    if not turned:
        missing.append(f"rotation: in none of {len(dwells)} touches did the pointer turn by {MIN_TURN_DEG:g} deg (rms)")
    try:
        # Where the pointer lay unturned among holes in which it turned, it rested on the table.
        holes = [place for place in places if turned & set(place)] or places
        results.append(_distances_of([dwells[place[0]].place_mm for place in holes], holes_mm, limits))
    except CalibrationError as reason:
        missing.append(f"distance: {reason}")
    return results, missing


def _distances_of(
    places_mm: list[Array], holes_mm: ArrayLike | None, limits: AcceptanceLimits | None
) -> AcceptanceResult:
    """Return the test of distances between touched places and the block's holes, whichever is which."""
    if holes_mm is None:
        raise CalibrationError("the block's holes were not given")
    holes = _checked_points(holes_mm, "holes", MIN_POINTS)
    touched = np.array(places_mm)
    if len(touched) != len(holes):
        raise CalibrationError(f"{len(touched)} places were touched, the block has {len(holes)} holes")
    order = match_landmarks(touched, holes).order
    return judge_distances(touched, holes[list(order)], limits=limits)


def report(results: list[AcceptanceResult], missing: Sequence[str] = ()) -> str:
    """Return the figures as a table for a person, which says what they are not, and what was not tested."""
    lines = [
        "tracker acceptance in the manner of ASTM F2554; no claim of compliance, nothing of registration or imaging"
    ]
    lines.append(f"{'test':<14}{'count':>6}{'mean':>8}{'rms':>8}{'max':>8}{'rms 95%':>9}  verdict (mm)")
    for one in results:
        figures = f"{one.mean_mm:8.3f}{one.rms_mm:8.3f}{one.largest_mm:8.3f}{one.upper95_rms_mm:9.3f}"
        lines.append(f"{one.test:<14}{one.count:6d}{figures}  {one.verdict.value}: {one.reason}")
    lines += [f"not tested: {line}" for line in missing]
    return "\n".join(lines)


def markdown(results: list[AcceptanceResult], missing: Sequence[str], what: str) -> str:
    """Return the same as a page in Markdown; ``what`` says what was recorded."""
    lines = ["# Tracker acceptance in the manner of ASTM F2554", "", what, ""]
    lines += [
        "No claim of compliance with the standard; nothing of registration, imaging or moving tools. Figures in mm;",
        "*rms 95 %* is the bound that the true rms exceeds once in twenty were errors independent and Gaussian.",
        "",
        "| test | count | mean | rms | largest | rms 95 % | verdict | reason |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        figures = f"{one.mean_mm:.3f} | {one.rms_mm:.3f} | {one.largest_mm:.3f} | {one.upper95_rms_mm:.3f}"
        lines.append(f"| {one.test} | {one.count} | {figures} | {one.verdict.value} | {one.reason} |")
    lines += ["", *(f"- not tested: {line}" for line in missing)]
    return "\n".join(lines).rstrip() + "\n"


def worst(results: list[AcceptanceResult], missing: Sequence[str]) -> tuple[Verdict, str]:
    """Return the verdict on all tests: the worst one's, and never accept while one was not made."""
    order = (Verdict.REFUSE, Verdict.DOUBT)
    for verdict in order:
        named = [one.reason for one in results if one.verdict is verdict]
        if named:
            return verdict, "; ".join(named)
    if missing:
        return Verdict.DOUBT, "not tested: " + "; ".join(missing)
    return Verdict.ACCEPT, "; ".join(one.reason for one in results)


def _rms(values: Array) -> float:
    return float(np.sqrt((values**2).mean()))


def _upper95(values: Array, dof: int) -> float:
    """Return the upper 95 % bound of an rms that rests on ``dof`` independent numbers."""
    return _rms(values) * float(np.sqrt(dof / chi2.ppf(0.05, dof)))


def _checked_points(points_mm: ArrayLike, what: str, at_least: int) -> Array:
    """Return finite points (N, 3), or refuse them with the number."""
    points = np.asarray(points_mm, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise CalibrationError(f"{what}: shape {points.shape}, expected (N, 3)")
    if len(points) < at_least:
        raise CalibrationError(f"{what}: {len(points)} points, at least {at_least} are needed")
    if not np.isfinite(points).all():
        row = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0]) + 1
        raise CalibrationError(f"{what}: point {row} is not finite")
    return points
