"""Owns a needle from its shadows in two X-rays: axis from the two planes, tip from both views' ends, and the doubt.

Each shadow and its view's source span a plane; the planes meet in the axis (Hartley and Zisserman, Multiple View
Geometry, 2nd ed., 8.1).  Tip and axis are then fitted to all that was measured, two lines and two ends, weighted by
their own sigmas: five unknowns, six measurements, of which the last is the views' agreement on the tip.  Calibration
enters as a small unknown motion of each view.  Refuses planes that are nearly one, and ends that no point explains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import numpy as np

from navsrv.imaging.found import TIP_SHAPE, FoundNeedle, NeedleError, Why
from navsrv.imaging.shadow import Radiograph, Shadow, find_shadows
from navsrv.imaging.two_lines import NeedleFit, TwoShadows, started
from navsrv.kernel.frames import Array
from navsrv.kernel.projection import ProjectionModel

MIN_VIEWS_DEG: Final = 20.0
"""Between the directions in which the two views see the needle."""
MIN_PLANES_DEG: Final = 15.0
"""Between the two planes; below, the axis is hardly fixed along the line of sight."""
REACH_MM: Final = 150.0
"""The needle is this near the point where the views look, at most."""
AGREE_MM: Final = 3.0
AGREE_SIGMA: Final = 3.5
"""The views' tips may be apart by so much, or by so many sigma; more is another needle, or a patient who moved."""
APART_MM: Final = 8.0
"""However unsure the ends or the views' places: farther apart, the pictures do not tell."""
SAME_WIDTH: Final = (0.7, 1.1)
RIVAL_WIDTH: Final = (0.6, 1.6)
"""What a shadow may be wider or narrower than the needle's to be it, or to be taken for it."""
BLUR_PX: Final = 0.5
HALF_DEPTH: Final = 3.0**0.5 / 2.0
EATEN: Final = 1.0
MOST_EATEN_PX: Final = 1.5
EATEN_SHARE: Final = 0.25
"""One sigma of what is eaten, as a share of it."""
MAX_BOW_MM: Final = 0.7
MAX_BOW_RAD: Final = 0.06
"""Of the tip's direction against the chord's."""
LONGER: Final = (1.4, 8.0)
"""One picture may show so many times as much of a needle, and so many mm, as another that shows it all."""
NEAR_MM: Final = 10.0
"""A tip farther from the point that was pointed at is another's."""
NEARER: Final = 1.5


@dataclass(frozen=True, slots=True)
class ViewDoubt:
    """One sigma, per axis, of a view's place: of a turn about the needle, and of a shift."""

    rotation_rad: float = 0.0
    translation_mm: float = 0.0

    @property
    def variances(self) -> Array:
        """Of (rotation, translation), (6,)."""
        return np.array([self.rotation_rad**2] * 3 + [self.translation_mm**2] * 3)


def find_in_views(
    images: Sequence[Radiograph],
    diameter_mm: float,
    doubt: ViewDoubt | None = None,
    heading: Array | None = None,
    near_mm: Array | None = None,
) -> FoundNeedle:
    """Return the needle that two X-rays show.

    Parameters
    ----------
    images : two Radiographs
        In one frame.
    diameter_mm : float
        Outer diameter of the shaft.
    heading : (3,) or None
        About where a needle points, hub to tip, in that frame: decides which end is the tip where both are in the
        pictures.  Within 90 degrees is enough.
    near_mm : (3,) or None
        A point near the tip, where several needles are in the pictures.

    Raises
    ------
    NeedleError
        No needle, several, views too parallel, ends that do not agree, both ends seen and no heading.
    """
    first, second = images
    views = (first.projection, second.projection)
    _check_apart(*views)
    middle = _looked_at(*views)
    bands = [find_shadows(image, _widths_px(image.projection, middle, diameter_mm)) for image in images]
    found: list[tuple[tuple[Shadow, Shadow], FoundNeedle]] = []
    faults: list[NeedleError] = []
    for pair in product(bands[0], bands[1]):
        try:
            found.append((pair, triangulate(views, pair, diameter_mm, doubt, heading, near_mm)))
        except NeedleError as fault:
            faults.append(fault)
    if near_mm is not None:
        pair, needle = _nearest(found, near_mm, faults)
        alike = [_alike(v, band, needle, diameter_mm) for v, band in zip(views, bands, strict=True)]
        if len(alike[0]) != len(alike[1]):
            text = f"one picture shows {len(alike[0])} needles, the other {len(alike[1])}: which is which is not told"
            raise NeedleError(Why.SEVERAL, f"{text}; turn the C-arm until they are apart")
        if not all(_plainly_nearest(*one, needle, near_mm) for one in zip(views, alike, pair, strict=True)):
            text = "another needle's end is as near to the point in a picture: point more exactly, or turn the C-arm"
            raise NeedleError(Why.SEVERAL, text)
        return needle
    rivals = 0
    if found:
        pair, needle = found[0]
        rivals = max(len(_alike(v, band, needle, diameter_mm)) for v, band in zip(views, bands, strict=True)) - 1
    if len(found) > 1 or rivals:
        places = " or ".join("({:.0f}, {:.0f}, {:.0f})".format(*needle.tip_mm) for _, needle in found)
        text = f"{1 + max(rivals, 1)} needles or more in the pictures, a tip about {places} mm: say which one"
        raise NeedleError(Why.SEVERAL, text)
    if not found:
        raise faults[0]
    return found[0][1]


def _alike(view: ProjectionModel, band: list[Shadow], needle: FoundNeedle, diameter_mm: float) -> list[Shadow]:
    """Return the bands that might be such a needle's as was found, itself among them: screws are too wide."""
    return [s for s in band if _wrong_width(view, s, needle.tip_mm, diameter_mm, RIVAL_WIDTH) is None]


def _nearest(
    found: list[tuple[tuple[Shadow, Shadow], FoundNeedle]], near_mm: Array, faults: list[NeedleError]
) -> tuple[tuple[Shadow, Shadow], FoundNeedle]:
    """Return the needle whose tip is by far the nearest to a point, and its shadows."""
    ranked = sorted((float(np.linalg.norm(n.tip_mm - near_mm)), i) for i, (_, n) in enumerate(found))
    near = [i for distance, i in ranked if distance <= min(NEAR_MM, NEARER * ranked[0][0] + AGREE_MM)]
    if not near:
        if faults:
            raise faults[0]
        text = f"no needle's tip within {NEAR_MM:g} mm of the point; the next is {ranked[0][0]:.0f} mm off"
        raise NeedleError(Why.NO_NEEDLE, text)
    if len(near) > 1:
        text = f"{len(near)} needles' tips are about as near to the point: point more exactly, or turn the C-arm"
        raise NeedleError(Why.SEVERAL, text)
    return found[near[0]]


def _plainly_nearest(
    view: ProjectionModel, alike: list[Shadow], own: Shadow, needle: FoundNeedle, near_mm: Array
) -> bool:
    """Say whether in a picture no other such band ends about as near to the point as the chosen needle does."""
    point = view.project(near_mm)
    px_per_mm = _magnified(view, needle.tip_mm)
    reach = NEARER * float(np.hypot(*(view.project(needle.tip_mm) - point))) + AGREE_MM * px_per_mm
    for end in (end for shadow in alike if shadow is not own for end in shadow.ends):
        # What goes on beyond its end, or is cut off there, may end anywhere near.
        limit = reach if end.clear else max(reach, NEAR_MM * px_per_mm)
        if float(np.hypot(*(end.place_px - point))) <= limit:
            return False
    return True


def triangulate(
    views: tuple[ProjectionModel, ProjectionModel],
    shadows: tuple[Shadow, Shadow],
    diameter_mm: float,
    doubt: ViewDoubt | None = None,
    heading: Array | None = None,
    near_mm: Array | None = None,
) -> FoundNeedle:
    """Return the needle of two shadows; see ``find_in_views``."""
    planes = [_plane(view, shadow) for view, shadow in zip(views, shadows, strict=True)]
    cross = np.cross(planes[0], planes[1])
    angle = float(np.degrees(np.arcsin(min(float(np.linalg.norm(cross)), 1.0))))
    if angle < MIN_PLANES_DEG:
        text = f"the planes through the needle and the two sources meet at {angle:.0f} degrees only"
        raise NeedleError(Why.PARALLEL, f"{text}; at least {MIN_PLANES_DEG:g} needed: turn the C-arm")
    axis = cross / np.linalg.norm(cross)
    candidates: list[tuple[TwoShadows, NeedleFit]] = []
    faults: list[NeedleError] = []
    for which in product((0, 1), repeat=2):
        ends = [shadow.ends[n] for shadow, n in zip(shadows, which, strict=True)]
        if all(end.inside for end in ends):
            problem = TwoShadows(views, shadows, which)
            try:
                fit = problem.solve(started(views, problem.ends_px, axis))
            except NeedleError as fault:
                faults.append(fault)
                continue
            hub = _hubwards(views, shadows, which, fit)
            candidates.append((problem, NeedleFit(fit.tip_mm, fit.axis if fit.axis @ hub < 0.0 else -fit.axis)))
    if not candidates:
        if faults:
            raise faults[0]
        raise NeedleError(
            Why.NO_NEEDLE, "the needle's tip is not in both pictures, or is at a field's rim or white air"
        )
    variances = (doubt or ViewDoubt()).variances
    agreeing = [
        (p, f)
        for p, f in candidates
        if p.apart_mm(f) <= AGREE_MM or (p.apart_mm(f) <= APART_MM and p.contradiction(f, variances) <= AGREE_SIGMA)
    ]
    if not agreeing:
        apart = min(p.apart_mm(f) for p, f in candidates)
        text = f"the two views' tips are {apart:.1f} mm apart: another needle, or something moved between them"
        raise NeedleError(Why.DISAGREE, text)
    problem, fit = _directed(agreeing, heading, near_mm)
    _check_shape(views, shadows, problem, fit, diameter_mm)
    whole = [_unblurred(v, shadow, fit.tip_mm, diameter_mm) for v, shadow in zip(views, shadows, strict=True)]
    problem = TwoShadows(views, (whole[0], whole[1]), problem.which)
    fit = problem.solve(fit)
    covariance = problem.covariance(fit, variances)
    covariance[:3, :3] += (TIP_SHAPE * diameter_mm) ** 2 * np.outer(fit.axis, fit.axis)
    apart = problem.apart_mm(fit)
    length = min(problem.lengths_mm(fit))
    text = f"two views, planes at {angle:.0f} degrees, tips {apart:.2f} mm apart"
    return FoundNeedle(fit.tip_mm, fit.axis, covariance, apart, length, text)


def _check_shape(
    views: tuple[ProjectionModel, ProjectionModel],
    shadows: tuple[Shadow, Shadow],
    problem: TwoShadows,
    fit: NeedleFit,
    diameter_mm: float,
) -> None:
    """Refuse what is not one straight needle of the diameter, its end clear of other metal, in either view."""
    for view, shadow, end in zip(views, shadows, problem.ends, strict=True):
        px_per_mm = _magnified(view, fit.tip_mm)
        if shadow.beside:
            text = "two needles touch in a picture, or lie too close to tell: turn the C-arm until they are apart"
            raise NeedleError(Why.TOUCHING, text)
        wrong = _wrong_width(view, shadow, fit.tip_mm, diameter_mm, SAME_WIDTH)
        if wrong is not None:
            text = f"the metal is {wrong:.1f} mm wide in a picture, the needle {diameter_mm:.1f} mm"
            raise NeedleError(Why.TOUCHING, f"{text}: two that touch, or a screw")
        if shadow.bow_px / px_per_mm > MAX_BOW_MM or 4.0 * shadow.bow_px > MAX_BOW_RAD * shadow.length_px:
            text = f"the needle is bent by {shadow.bow_px / px_per_mm:.1f} mm in a picture (or two touch)"
            raise NeedleError(Why.BENT, f"{text}: at most {MAX_BOW_MM:g} mm tell where it points")
        if not end.clear:
            text = "other metal reaches the needle's tip in a picture: two needles that touch or cross, or it is bent"
            raise NeedleError(Why.TOUCHING, f"{text}; turn the C-arm")
    lengths = problem.lengths_mm(fit)
    whole = [length for length, shadow in zip(lengths, shadows, strict=True) if all(e.inside for e in shadow.ends)]
    if whole and max(lengths) > LONGER[0] * min(whole) + LONGER[1]:
        text = f"{min(whole):.0f} mm of needle in one picture, {max(lengths):.0f} mm in the other: not the same needle"
        raise NeedleError(Why.DISAGREE, f"{text}, or hidden in part")


def _wrong_width(
    view: ProjectionModel, shadow: Shadow, place_mm: Array, diameter_mm: float, allowed: tuple[float, float]
) -> float | None:
    """Return how many mm of metal a shadow is wide if that is no needle's at a place, else None.

    Half of the depth of a round shaft's shadow is 0.87 of its width; what blurs it is within ``BLUR_PX``.
    """
    expected = HALF_DEPTH * diameter_mm * _magnified(view, place_mm)
    if allowed[0] * expected - BLUR_PX <= shadow.width_px <= allowed[1] * expected + BLUR_PX:
        return None
    return shadow.width_px / expected * diameter_mm


def _unblurred(view: ProjectionModel, shadow: Shadow, place_mm: Array, diameter_mm: float) -> Shadow:
    """Return the shadow with its ends where they are before blur: light that spreads eats at dark things' rims.

    In the logarithm it takes as much from the end as from the sides, whose true place the diameter tells; times
    ``EATEN``, found by blurring cylinders' shadows of 5 to 8 px and an absorption of 1 to 4.5.
    """
    short = 0.5 * (HALF_DEPTH * diameter_mm * _magnified(view, place_mm) - shadow.width_px)
    grow = EATEN * min(max(short, 0.0), MOST_EATEN_PX)
    first, last = (
        replace(
            end,
            place_px=tuple(np.add(end.place_px, way * grow * shadow.direction).tolist()),
            sigma_px=float(np.hypot(end.sigma_px, EATEN_SHARE * grow)),
        )
        for way, end in zip((-1.0, 1.0), shadow.ends, strict=True)
    )
    return replace(shadow, ends=(first, last))


def _magnified(view: ProjectionModel, place_mm: Array) -> float:
    """Return the pixels per mm across a ray at a place."""
    focal = float(np.sqrt(view.intrinsics[0, 0] * view.intrinsics[1, 1]))
    return focal / float(view.T_carm_from_object.apply(place_mm)[2])


def angle_between_deg(a: ProjectionModel, b: ProjectionModel) -> float:
    """Return the angle between two views, as seen from the point where both look; 0 to 180."""
    middle = _looked_at(a, b)
    u, v = middle - a.source_mm, middle - b.source_mm
    return float(np.degrees(np.arccos(np.clip(u @ v / (np.linalg.norm(u) * np.linalg.norm(v)), -1.0, 1.0))))


def _check_apart(a: ProjectionModel, b: ProjectionModel) -> None:
    angle = angle_between_deg(a, b)
    if min(angle, 180.0 - angle) < MIN_VIEWS_DEG:
        text = f"the two views are {angle:.0f} degrees apart"
        raise NeedleError(Why.PARALLEL, f"{text}; {MIN_VIEWS_DEG:g} to {180.0 - MIN_VIEWS_DEG:g} needed")


def _looked_at(a: ProjectionModel, b: ProjectionModel) -> Array:
    """Return the point (3,) nearest to both views' middle rays."""
    rays = [view.directions @ [0.5 * (view.columns - 1), 0.5 * (view.rows - 1), 1.0] for view in (a, b)]
    across = [np.eye(3) - np.outer(r, r) / (r @ r) for r in rays]
    right = across[0] @ a.source_mm + across[1] @ b.source_mm
    return np.asarray(np.linalg.lstsq(across[0] + across[1], right, rcond=None)[0], dtype=np.float64)


def _widths_px(view: ProjectionModel, middle: Array, diameter_mm: float) -> tuple[float, float]:
    focal = float(np.sqrt(view.intrinsics[0, 0] * view.intrinsics[1, 1]))
    depth = float(view.T_carm_from_object.apply(middle)[2])
    return diameter_mm * focal / (depth + REACH_MM), diameter_mm * focal / max(depth - REACH_MM, 0.3 * depth)


def _plane(view: ProjectionModel, shadow: Shadow) -> Array:
    """Return the unit normal (3,) of the plane through the source and the shadow's line."""
    a = view.directions @ [*shadow.point_px, 1.0]
    b = view.directions @ [*(shadow.point_px + 50.0 * shadow.direction), 1.0]
    normal = np.cross(a, b)
    result: Array = normal / np.linalg.norm(normal)
    return result


def _hubwards(
    views: Sequence[ProjectionModel], shadows: Sequence[Shadow], which: Sequence[int], fit: NeedleFit
) -> Array:
    """Return about where the rest of the needle lies from this end, (3,)."""
    view, shadow = views[0], shadows[0]
    rest = np.array(shadow.ends[1 - which[0]].place_px) - np.array(shadow.ends[which[0]].place_px)
    ahead = view.project(fit.tip_mm + fit.axis) - view.project(fit.tip_mm)
    hub: Array = fit.axis if float(ahead @ rest) > 0.0 else -fit.axis
    return hub


def _directed(
    agreeing: list[tuple[TwoShadows, NeedleFit]], heading: Array | None, near_mm: Array | None
) -> tuple[TwoShadows, NeedleFit]:
    """Return the end that is the tip."""
    if near_mm is not None:
        return min(agreeing, key=lambda one: float(np.linalg.norm(one[1].tip_mm - near_mm)))
    if heading is not None:
        best = max(agreeing, key=lambda one: float(one[1].axis @ heading))
        if float(best[1].axis @ heading) <= 0.0:
            raise NeedleError(Why.NO_NEEDLE, "only the needle's hub end is in both pictures, by where it should point")
        return best
    if len(agreeing) > 1:
        text = "both ends of the needle are in the pictures: which is the tip, the plan or a point near it must tell"
        raise NeedleError(Why.UNDIRECTED, text)
    return agreeing[0]
