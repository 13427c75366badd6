"""Owns the least squares of a needle in two X-rays: what two shadows measure of it, and how sure tip and axis are.

Tip and axis are fitted to two lines and two ends, weighted by their own sigmas: five unknowns, six measurements.  What
calibration leaves enters as a small unknown motion of each view.  Refuses to say which end is the tip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from navsrv.imaging.found import NeedleError, Why
from navsrv.imaging.shadow import Shadow
from navsrv.kernel.frames import Array, rotation_from_vector, skew
from navsrv.kernel.projection import ProjectionModel

STEPS: Final = 12


@dataclass(frozen=True, slots=True, eq=False)
class NeedleFit:
    """A needle: tip (3,) and unit axis (3,), hub to tip once it is directed."""

    tip_mm: Array
    axis: Array


class TwoShadows:
    """What two shadows measure of a needle, one end of each taken as the tip."""

    def __init__(
        self,
        views: tuple[ProjectionModel, ProjectionModel],
        shadows: tuple[Shadow, Shadow],
        which: tuple[int, ...],
    ) -> None:
        self._views, self._shadows, self.which = views, shadows, which
        self.ends = [shadow.ends[n] for shadow, n in zip(shadows, which, strict=True)]
        self.ends_px = [np.array(end.place_px) for end in self.ends]
        blocks = []
        for shadow, end in zip(shadows, self.ends, strict=True):
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

    def solve(self, start: NeedleFit) -> NeedleFit:
        """Return the needle of least weighted squares (Gauss-Newton).

        Raises
        ------
        NeedleError
            No needle is near what the shadows show: the steps run off.
        """
        tip, axis = start.tip_mm, start.axis
        for _ in range(STEPS):
            basis = across_of(axis)
            jacobian = self._jacobian(tip, axis, basis)
            normal = jacobian.T @ self._weight @ jacobian
            step = _solved(normal, -jacobian.T @ self._weight @ self.residual(tip, axis))
            tip = tip + step[:3]
            axis = axis + basis @ step[3:]
            axis = axis / np.linalg.norm(axis)
            if float(np.abs(step).max()) < 1e-7:
                break
        return NeedleFit(tip, axis)

    def covariance(self, fit: NeedleFit, doubt: Array) -> Array:
        """Return (6, 6) of (tip, axis): of what was measured, and of the views' places.

        ``doubt`` (6,): the variances of each view's turn about the tip and of its shift.
        """
        basis = across_of(fit.axis)
        jacobian = self._jacobian(fit.tip_mm, fit.axis, basis)
        inverse = np.linalg.inv(jacobian.T @ self._weight @ jacobian)
        gain = inverse @ jacobian.T @ self._weight
        total = inverse
        for moved in self._moved(fit):
            effect = gain @ moved
            total = total + effect * doubt @ effect.T
        wide = np.zeros((6, 5))
        wide[:3, :3], wide[3:, 3:] = np.eye(3), basis
        result: Array = wide @ total @ wide.T
        return result

    def _moved(self, fit: NeedleFit) -> list[Array]:
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

    def apart_mm(self, fit: NeedleFit) -> float:
        """Return how far apart the two views' tips lie along the needle."""
        (a, _), (b, _) = self._along(fit)
        return abs(a - b)

    def contradiction(self, fit: NeedleFit, doubt: Array) -> float:
        """Return by how many sigmas the sixth measurement contradicts the other five.

        Of what was measured, one combination no needle could change; its sigma is that of shadows and views' places.
        """
        jacobian = self._jacobian(fit.tip_mm, fit.axis, across_of(fit.axis))
        unmoved = np.linalg.svd(jacobian)[0][:, 5]
        total = np.asarray(np.linalg.inv(self._weight), dtype=np.float64)
        for effect in self._moved(fit):
            total = total + effect * doubt @ effect.T
        sigma = float(np.sqrt(unmoved @ total @ unmoved))
        return abs(float(unmoved @ self.residual(fit.tip_mm, fit.axis))) / sigma

    def lengths_mm(self, fit: NeedleFit) -> list[float]:
        """Return how much of the shaft each picture shows."""
        return [
            shadow.length_px / max(self._pixels_per_mm(view, fit), 1e-6)
            for view, shadow in zip(self._views, self._shadows, strict=True)
        ]

    def _along(self, fit: NeedleFit) -> list[tuple[float, float]]:
        """Return for each view where its end lies along the fitted axis (mm ahead of the tip), and one sigma."""
        found = []
        for view, shadow, end, px in zip(self._views, self._shadows, self.ends, self.ends_px, strict=True):
            scale = self._pixels_per_mm(view, fit)
            sign = np.sign(float((view.project(fit.tip_mm + fit.axis) - view.project(fit.tip_mm)) @ shadow.direction))
            ahead = float((px - view.project(fit.tip_mm)) @ shadow.direction) * sign
            found.append((ahead / max(scale, 1e-6), end.sigma_px / max(scale, 1e-6)))
        return found

    @staticmethod
    def _pixels_per_mm(view: ProjectionModel, fit: NeedleFit) -> float:
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


def _solved(normal: Array, right: Array) -> Array:
    try:
        step = np.asarray(np.linalg.solve(normal, right), dtype=np.float64)
    except np.linalg.LinAlgError:
        step = np.full(len(right), np.nan)
    if not np.isfinite(step).all():
        raise NeedleError(Why.DISAGREE, "no straight needle casts the shadows of both views: another, or a bent one")
    return step


def across_of(axis: Array) -> Array:
    """Return (3, 2): an orthonormal basis across a unit vector."""
    basis: Array = np.linalg.svd(skew(axis))[0][:, :2]
    return basis


def started(views: Sequence[ProjectionModel], ends_px: Sequence[Array], axis: Array) -> NeedleFit:
    """Return the point nearest to the two rays through the ends."""
    matrix, right = np.zeros((3, 3)), np.zeros(3)
    for view, end in zip(views, ends_px, strict=True):
        ray = view.directions @ [*end, 1.0]
        across = np.eye(3) - np.outer(ray, ray) / (ray @ ray)
        matrix += across
        right += across @ view.source_mm
    return NeedleFit(np.asarray(np.linalg.solve(matrix, right), dtype=np.float64), axis)
