"""Owns a needle from its shadows in two X-rays: axis from the two planes, tip from both views' ends, and the doubt.

Each shadow and its view's source span a plane; the planes meet in the axis (Hartley and Zisserman, Multiple View
Geometry, 2nd ed., 8.1).  Tip and axis are then fitted to all that was measured, two lines and two ends, weighted by
their own sigmas: five unknowns, six measurements, of which the last is the views' agreement on the tip.  Calibration
enters as a small unknown motion of each view.  Refuses planes that are nearly one, and ends that no point explains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from navsrv.imaging.found import FoundNeedle, NeedleError, Why
from navsrv.imaging.shadow import Radiograph, Shadow, find_shadow
from navsrv.kernel.frames import Array, rotation_from_vector, skew
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
STEPS: Final = 12


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
    _check_apart(first.projection, second.projection)
    middle = _looked_at(first.projection, second.projection)
    shadows = [
        find_shadow(
            image,
            _widths_px(image.projection, middle, diameter_mm),
            None if near_mm is None else image.projection.project(near_mm),
        )
        for image in images
    ]
    return triangulate((first.projection, second.projection), (shadows[0], shadows[1]), doubt, heading, near_mm)


def triangulate(
    views: tuple[ProjectionModel, ProjectionModel],
    shadows: tuple[Shadow, Shadow],
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
    candidates = []
    for which in product((0, 1), repeat=2):
        ends = [shadow.ends[n] for shadow, n in zip(shadows, which, strict=True)]
        if all(end.inside for end in ends):
            problem = _Problem(views, shadows, which)
            fit = problem.solve(_start(views, problem.ends_px, axis))
            hub = _hubwards(views, shadows, which, fit)
            candidates.append((problem, _Fit(fit.tip_mm, fit.axis if fit.axis @ hub < 0.0 else -fit.axis)))
    if not candidates:
        raise NeedleError(Why.NO_NEEDLE, "the needle's tip is not in both pictures")
    doubt = doubt or ViewDoubt()
    agreeing = [(p, f) for p, f in candidates if p.apart_mm(f) <= AGREE_MM or p.contradiction(f, doubt) <= AGREE_SIGMA]
    if not agreeing:
        apart = min(p.apart_mm(f) for p, f in candidates)
        text = f"the two views' tips are {apart:.1f} mm apart: another needle, or something moved between them"
        raise NeedleError(Why.DISAGREE, text)
    problem, fit = _directed(agreeing, heading, near_mm)
    covariance = problem.covariance(fit, doubt)
    apart = problem.apart_mm(fit)
    length = problem.seen_mm(fit)
    text = f"two views, planes at {angle:.0f} degrees, tips {apart:.2f} mm apart"
    return FoundNeedle(fit.tip_mm, fit.axis, covariance, apart, length, text)


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


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    tip_mm: Array
    axis: Array


class _Problem:
    """What two shadows measure of a needle, one end of each taken as the tip."""

    def __init__(
        self,
        views: tuple[ProjectionModel, ProjectionModel],
        shadows: tuple[Shadow, Shadow],
        which: tuple[int, ...],
    ) -> None:
        self._views, self._shadows = views, shadows
        self._ends = [shadow.ends[n] for shadow, n in zip(shadows, which, strict=True)]
        self.ends_px = [np.array(end.place_px) for end in self._ends]
        blocks = []
        for shadow, end in zip(shadows, self._ends, strict=True):
            block = np.zeros((3, 3))
            block[:2, :2] = np.linalg.inv(shadow.covariance)
            block[2, 2] = 1.0 / end.sigma_px**2
            blocks.append(block)
        self._weight = np.zeros((6, 6))
        self._weight[:3, :3], self._weight[3:, 3:] = blocks

    def residual(self, tip: Array, axis: Array, motions: Array | None = None) -> Array:
        """Return (6,): offset across and angle of each line, and its end along it, seen less measured.

        ``motions`` (2, 6): how the views' places are off, (rotation about the tip, translation) of the needle.
        """
        found = []
        for n, (view, shadow, end) in enumerate(zip(self._views, self._shadows, self.ends_px, strict=True)):
            p, d = tip, axis
            if motions is not None:
                p, d = tip + motions[n, 3:], rotation_from_vector(motions[n, :3]) @ axis
            seen, back = view.project(p), view.project(p - 10.0 * d)
            line = seen - back
            line = line / np.linalg.norm(line)
            if line @ shadow.direction < 0.0:
                line = -line
            across = np.array([-shadow.direction[1], shadow.direction[0]])
            turned = float(np.arctan2(line @ across, line @ shadow.direction))
            offset = float((seen - shadow.point_px) @ across)
            offset -= np.tan(turned) * float((seen - shadow.point_px) @ shadow.direction)
            found += [offset, turned, float((seen - end) @ shadow.direction)]
        return np.array(found)

    def solve(self, start: _Fit) -> _Fit:
        """Return the needle of least weighted squares (Gauss-Newton)."""
        tip, axis = start.tip_mm, start.axis
        for _ in range(STEPS):
            basis = _across(axis)
            jacobian = self._jacobian(tip, axis, basis)
            normal = jacobian.T @ self._weight @ jacobian
            step = np.linalg.solve(normal, -jacobian.T @ self._weight @ self.residual(tip, axis))
            tip = tip + step[:3]
            axis = axis + basis @ step[3:]
            axis = axis / np.linalg.norm(axis)
            if float(np.abs(step).max()) < 1e-7:
                break
        return _Fit(tip, axis)

    def covariance(self, fit: _Fit, doubt: ViewDoubt) -> Array:
        """Return (6, 6) of (tip, axis): of what was measured, and of the views' places."""
        basis = _across(fit.axis)
        jacobian = self._jacobian(fit.tip_mm, fit.axis, basis)
        inverse = np.linalg.inv(jacobian.T @ self._weight @ jacobian)
        gain = inverse @ jacobian.T @ self._weight
        total = inverse
        for moved in self._moved(fit):
            effect = gain @ moved
            total = total + effect * doubt.variances @ effect.T
        wide = np.zeros((6, 5))
        wide[:3, :3], wide[3:, 3:] = np.eye(3), basis
        result: Array = wide @ total @ wide.T
        return result

    def _moved(self, fit: _Fit) -> list[Array]:
        """Return for each view how its motion (rotation about the tip, translation) moves what was measured, (6, 6)."""
        found = []
        for view in range(2):
            moved = np.zeros((6, 6))
            for k in range(6):
                step = 1e-5 if k < 3 else 1e-3
                motions = np.zeros((2, 6))
                motions[view, k] = step
                ahead = self.residual(fit.tip_mm, fit.axis, motions)
                moved[:, k] = (ahead - self.residual(fit.tip_mm, fit.axis, -motions)) / (2.0 * step)
            found.append(moved)
        return found

    def apart_mm(self, fit: _Fit) -> float:
        """Return how far apart the two views' tips lie along the needle."""
        (a, _), (b, _) = self._along(fit)
        return abs(a - b)

    def contradiction(self, fit: _Fit, doubt: ViewDoubt) -> float:
        """Return by how many sigmas the sixth measurement contradicts the other five.

        Of what was measured, one combination no needle could change; its sigma is that of shadows and views' places.
        """
        jacobian = self._jacobian(fit.tip_mm, fit.axis, _across(fit.axis))
        unmoved = np.linalg.svd(jacobian)[0][:, 5]
        total = np.asarray(np.linalg.inv(self._weight), dtype=np.float64)
        for effect in self._moved(fit):
            total = total + effect * doubt.variances @ effect.T
        sigma = float(np.sqrt(unmoved @ total @ unmoved))
        return abs(float(unmoved @ self.residual(fit.tip_mm, fit.axis))) / sigma

    def seen_mm(self, fit: _Fit) -> float:
        """Return how much of the shaft both pictures show."""
        lengths = []
        for view, shadow in zip(self._views, self._shadows, strict=True):
            lengths.append(shadow.length_px / max(self._pixels_per_mm(view, fit), 1e-6))
        return min(lengths)

    def _along(self, fit: _Fit) -> list[tuple[float, float]]:
        """Return for each view where its end lies along the fitted axis (mm ahead of the tip), and one sigma."""
        found = []
        for view, shadow, end, px in zip(self._views, self._shadows, self._ends, self.ends_px, strict=True):
            scale = self._pixels_per_mm(view, fit)
            sign = np.sign(float((view.project(fit.tip_mm + fit.axis) - view.project(fit.tip_mm)) @ shadow.direction))
            ahead = float((px - view.project(fit.tip_mm)) @ shadow.direction) * sign
            found.append((ahead / max(scale, 1e-6), end.sigma_px / max(scale, 1e-6)))
        return found

    @staticmethod
    def _pixels_per_mm(view: ProjectionModel, fit: _Fit) -> float:
        return float(np.linalg.norm(view.project(fit.tip_mm + fit.axis) - view.project(fit.tip_mm)))

    def _jacobian(self, tip: Array, axis: Array, basis: Array) -> Array:
        columns = []
        for k in range(5):
            step = 1e-4 if k < 3 else 1e-6
            move, turn = np.zeros(3), np.zeros(3)
            if k < 3:
                move[k] = step
            else:
                turn = step * basis[:, k - 3]
            ahead, behind = self.residual(tip + move, axis + turn), self.residual(tip - move, axis - turn)
            columns.append((ahead - behind) / (2.0 * step))
        return np.column_stack(columns)


def _across(axis: Array) -> Array:
    """Return (3, 2): an orthonormal basis across a unit vector."""
    basis: Array = np.linalg.svd(skew(axis))[0][:, :2]
    return basis


def _start(views: Sequence[ProjectionModel], ends_px: Sequence[Array], axis: Array) -> _Fit:
    """Return the point nearest to the two rays through the ends."""
    matrix, right = np.zeros((3, 3)), np.zeros(3)
    for view, end in zip(views, ends_px, strict=True):
        ray = view.directions @ [*end, 1.0]
        across = np.eye(3) - np.outer(ray, ray) / (ray @ ray)
        matrix += across
        right += across @ view.source_mm
    return _Fit(np.asarray(np.linalg.solve(matrix, right), dtype=np.float64), axis)


def _hubwards(views: Sequence[ProjectionModel], shadows: Sequence[Shadow], which: Sequence[int], fit: _Fit) -> Array:
    """Return about where the rest of the needle lies from this end, (3,)."""
    view, shadow = views[0], shadows[0]
    rest = np.array(shadow.ends[1 - which[0]].place_px) - np.array(shadow.ends[which[0]].place_px)
    ahead = view.project(fit.tip_mm + fit.axis) - view.project(fit.tip_mm)
    hub: Array = fit.axis if float(ahead @ rest) > 0.0 else -fit.axis
    return hub


def _directed(
    agreeing: list[tuple[_Problem, _Fit]], heading: Array | None, near_mm: Array | None
) -> tuple[_Problem, _Fit]:
    """Return the end that is the tip."""
    if near_mm is not None:
        return min(agreeing, key=lambda one: float(np.linalg.norm(one[1].tip_mm - near_mm)))
    if heading is not None:
        return max(agreeing, key=lambda one: float(one[1].axis @ heading))
    if len(agreeing) > 1:
        text = "both ends of the needle are in the pictures: which is the tip, the plan or a point near it must tell"
        raise NeedleError(Why.UNDIRECTED, text)
    return agreeing[0]
