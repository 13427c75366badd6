"""Owns surface registration: points that a tracked tip brushed over bone, onto the bone's surface in the CT.

A fit that looks good in the wrong place is this method's failure: the verdict rests on how much worse the next place
fits, on whether the points hold every direction, on the residual, and on landmarks that must not move.  Refuses point
sets that slide (a plane, a tube, a ball) and fits that another start contradicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from calibration.paired import about_origin, fit_rigid, point_jacobians, residuals_of
from calibration.poses import MAD_TO_SIGMA, Findings, jackknife_covariance, left_out_shifts, time_blocks
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import CT, Array, Rigid, frozen_array, nearest_rotation, rotation_from_vector
from navsrv.kernel.registration import RegistrationResult, Verdict, tre_rms_mm

Mask = NDArray[np.bool_]

MIN_POINTS: Final = 30
SAMPLE_MM: Final = 1.2
"""Distance between samples of the surface; between them it is taken as flat."""
MAX_SAMPLES: Final = 400_000
NEAR_MM: Final = 60.0
"""Samples further than this from every start's points are left aside."""
STARTS: Final = 32
START_MM: Final = 12.0
START_DEG: Final = 12.0
COARSE_POINTS: Final = 250
COARSE_STEPS: Final = 25
FINE_STEPS: Final = 40
FINALISTS: Final = 6
KEEP: Final = 0.9
"""Share of the points that starts are judged by: those that lie nearest (trimmed ICP, Chetverikov 2005)."""
OUTLIER_SIGMAS: Final = 3.5
"""The last fit uses what lies nearer: a fixed share would throw good points away, and cost a third of the accuracy."""
NOISE_FLOOR_MM: Final = 0.03
SAME_MM: Final = 1.0
"""Fits that put the points closer to one another than this are one place."""
SEED: Final = 7


@dataclass(frozen=True, slots=True)
class SurfaceLimits:
    """Thresholds of the verdict: up to ``accept`` is accepted, beyond ``refuse`` is refused."""

    residual_accept_mm: float = 1.5
    residual_refuse_mm: float = 3.0
    tre_accept_mm: float = 2.0
    tre_refuse_mm: float = 4.0
    margin_accept: float = 1.3
    """Least ratio of the next place's trimmed rms to the best one's."""
    margin_refuse: float = 1.08
    hold_accept: float = 0.10
    """Least rms motion of the points against the surface in the direction it holds worst, per unit of their motion."""
    hold_refuse: float = 0.04
    landmark_accept_mm: float = 2.5
    landmark_refuse_mm: float = 5.0
    moved_accept_mm: float = 15.0
    """Largest move of the points from where the start put them."""
    moved_refuse_mm: float = 40.0
    agree_accept: float = 0.25
    """Least share of the starts that end in the best place."""


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """Samples of a surface (N, 3) with unit normals (N, 3), in the CT, LPS mm."""

    points_mm: Array
    normals: Array

    @classmethod
    def of_mesh(cls, vertices_mm: ArrayLike, triangles: ArrayLike) -> Surface:
        """Return samples ``SAMPLE_MM`` apart on triangles (M, 3) of vertices (N, 3); larger ones are divided evenly.

        Raises
        ------
        CalibrationError
            No triangle with an area.
        """
        corners = np.asarray(vertices_mm, dtype=np.float64)[np.asarray(triangles)]
        cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        areas = 0.5 * np.linalg.norm(cross, axis=1)
        real = areas > 1e-9
        if not real.any():
            raise CalibrationError("the surface has no triangle with an area")
        corners, normals, areas = corners[real], cross[real] / (2.0 * areas[real, None]), areas[real]
        wanted = min(MAX_SAMPLES, max(int(areas.sum() / (0.5 * SAMPLE_MM**2)), 1000))
        # The same share of the area between one sample and the next; places in the triangle by a lattice.
        at = (np.arange(wanted) + 0.5) * (areas.sum() / wanted)
        which = np.searchsorted(np.cumsum(areas), at).clip(0, len(areas) - 1)
        r1, r2 = (np.arange(wanted) * 0.7548776662) % 1.0, (np.arange(wanted) * 0.5698402910) % 1.0
        root = np.sqrt(r1)[:, None]
        chosen = corners[which]
        points = (1 - root) * chosen[:, 0] + root * (1 - r2[:, None]) * chosen[:, 1] + root * r2[:, None] * chosen[:, 2]
        return cls(frozen_array(points, points.shape), frozen_array(normals[which], points.shape))


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """Where one start ended."""

    rotation: Array
    translation: Array
    rms_mm: float
    used: Mask

    def apply(self, points: Array) -> Array:
        moved: Array = points @ self.rotation.T + self.translation
        return moved


def solve_surface(
    points_mm: ArrayLike,
    surface: Surface,
    start: Rigid,
    *,
    target_ct_mm: ArrayLike,
    surface_sigma_mm: float = 0.5,
    starts: int = STARTS,
    landmarks: tuple[ArrayLike, ArrayLike] | None = None,
    limits: SurfaceLimits | None = None,
) -> RegistrationResult:
    """Return ``T_ct_from_<frm>`` that lays brushed points on a surface, with covariance, TRE at the target and verdict.

    Trimmed point-to-plane ICP from the given start and others about it.

    Parameters
    ----------
    points_mm : (N, 3)
        Tips in the frame that ``start`` comes from, in the order of brushing.
    surface : Surface
    start : Rigid
        ``T_ct_from_<frm>`` to about a centimetre and ten degrees: landmarks, or an earlier registration.
    target_ct_mm : (3,)
        Where the error matters.
    surface_sigma_mm : float
        One sigma of how far the whole surface lies out or in: the threshold it was cut at, the ball of the tip.  No
        number of points averages it out, and points on one side of a bone follow it.
    starts : int
        How many others: fewer see fewer wrong places.
    landmarks : (touched (M, 3), planned (M, 3)) or None
        Points that are known in both frames: not fitted, but they must stay where they are.

    Raises
    ------
    CalibrationError
        Too few points, numbers that are not finite, points far from the surface, a start of other frames.
    """
    limits = limits or SurfaceLimits()
    points, target, pairs = _checked(points_mm, target_ct_mm, landmarks, start)
    if not (np.isfinite(surface_sigma_mm) and surface_sigma_mm >= 0.0):
        raise CalibrationError(f"the surface's error must not be negative, got {surface_sigma_mm} mm")
    near = cKDTree(start.apply(points)).query(surface.points_mm, distance_upper_bound=NEAR_MM)[0] < np.inf
    if near.sum() < 100:
        raise CalibrationError(
            f"the points lie more than {NEAR_MM:g} mm from the surface where the start puts them; is it the right bone?"
        )
    model = _Model(surface.points_mm[near], surface.normals[near])
    ended = _from_all_starts(points, model, start, starts)
    best, others = _refined(points, model, ended[0], FINE_STEPS, trim=False), ended[1:]
    at = best.apply(points)
    places = [float(np.sqrt(((one.apply(points) - at) ** 2).sum(axis=1).mean())) for one in others]
    rivals = [one for one, off in zip(others, places, strict=True) if off > SAME_MM]
    finalists = [_refined(points, model, one, FINE_STEPS) for one in _distinct(rivals, points)[:FINALISTS]]
    apart = [one for one in finalists if _rms_gap(one, best, points) > SAME_MM]
    margin = min((one.rms_mm for one in apart), default=np.inf) / max(best.rms_mm, 0.05)
    jacobians, residuals = _linear(points[best.used], model, best)
    covariance, centre = _covariance(jacobians, residuals, best.apply(points[best.used]))
    shared = np.linalg.lstsq(jacobians, np.full(len(residuals), surface_sigma_mm), rcond=None)[0]
    covariance = covariance + np.outer(shared, shared)
    transform = Rigid(CT, start.frm, best.rotation, best.translation, about_origin(covariance, centre))
    hold, slide = _hold(jacobians)
    tre = tre_rms_mm(transform, target)
    figures = {
        "points": float(len(points)),
        "used": float(best.used.sum()),
        "residual_mm": best.rms_mm,
        "median_mm": float(np.median(np.abs(model.distances(at)))),
        "margin": float(min(margin, 99.0)),
        "starts": float(len(ended)),
        "starts_agree": (1.0 + sum(off <= SAME_MM for off in places)) / len(ended),
        "hold": hold,
        "surface_sigma_mm": surface_sigma_mm,
        "moved_mm": float(np.sqrt(((at - start.apply(points)) ** 2).sum(axis=1).mean())),
        "tre_mm": tre,
    }
    if pairs is not None:
        left = np.linalg.norm(residuals_of(*pairs, (best.rotation, best.translation)), axis=1)
        alone = np.linalg.norm(residuals_of(*pairs, fit_rigid(*pairs)), axis=1) if len(left) >= 3 else np.zeros(1)
        figures |= {"landmarks": float(len(left)), "landmark_fre_mm": float(np.sqrt((left**2).mean()))}
        figures |= {"landmark_max_mm": float(left.max()), "landmark_own_fre_mm": float(np.sqrt((alone**2).mean()))}
    verdict, reason = _judge(limits, figures, slide)
    return RegistrationResult(
        "surface",
        transform,
        frozen_array(target, (3,)),
        tre,
        best.rms_mm,
        verdict,
        reason,
        tuple(figures.items()),
    )


class _Model:
    """The surface with a tree to find its nearest sample."""

    def __init__(self, points: Array, normals: Array) -> None:
        self.points, self.normals = points, normals
        self.tree = cKDTree(points)

    def nearest(self, at: Array) -> tuple[Array, Array]:
        """Return signed distances (N,) from the nearest sample's plane, and its normals (N, 3)."""
        index = self.tree.query(at)[1]
        normals = self.normals[index]
        return ((at - self.points[index]) * normals).sum(axis=1), normals

    def distances(self, at: Array) -> Array:
        """Return distances (N,) from the nearest sample: never small where only a far plane is near."""
        gaps, index = self.tree.query(at)
        along = ((at - self.points[index]) * self.normals[index]).sum(axis=1)
        # Beside the sample within its own patch the plane counts, further off the gap.
        near: Array = np.where(gaps**2 - along**2 <= (1.5 * SAMPLE_MM) ** 2, np.abs(along), gaps)
        return near


def _checked(
    points_mm: ArrayLike, target_ct_mm: ArrayLike, landmarks: tuple[ArrayLike, ArrayLike] | None, start: Rigid
) -> tuple[Array, Array, tuple[Array, Array] | None]:
    """Return the inputs as arrays, or refuse them."""
    points = np.asarray(points_mm, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise CalibrationError(f"brushed points: shape {points.shape}, expected (N, 3)")
    if len(points) < MIN_POINTS:
        raise CalibrationError(f"{len(points)} brushed points, at least {MIN_POINTS} are needed")
    if not np.isfinite(points).all():
        row = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0]) + 1
        raise CalibrationError(f"brushed point {row} is not finite")
    target = np.asarray(target_ct_mm, dtype=np.float64)
    if target.shape != (3,) or not np.isfinite(target).all():
        raise CalibrationError(f"target must be three finite millimetres, got {target_ct_mm!r}")
    if start.to != CT:
        raise CalibrationError(f"the start leads to the frame {start.to}, the surface is in {CT}")
    if landmarks is None:
        return points, target, None
    touched, planned = (np.asarray(one, dtype=np.float64).reshape(-1, 3) for one in landmarks)
    if len(touched) != len(planned) or not len(touched) or not (np.isfinite([*touched, *planned]).all()):
        raise CalibrationError(f"{len(touched)} landmarks against {len(planned)}: each finite, with its partner")
    return points, target, (touched, planned)


def _from_all_starts(points: Array, model: _Model, start: Rigid, starts: int) -> list[_Fit]:
    """Return where every start ended, the best first and refined with all points."""
    rng = np.random.default_rng(SEED)
    some = points[np.unique(np.linspace(0, len(points) - 1, COARSE_POINTS).astype(int))]
    centre = start.apply(points).mean(axis=0)
    ended = []
    for i in range(starts + 1):
        shift, turn = np.zeros(3), np.zeros(3)
        if i:
            shift = START_MM * _direction(rng) * np.cbrt(rng.uniform(0.1, 1.0))
            turn = np.deg2rad(START_DEG) * _direction(rng) * np.cbrt(rng.uniform(0.1, 1.0))
        rotation = rotation_from_vector(turn) @ start.rotation
        translation = rotation_from_vector(turn) @ (start.translation_mm - centre) + centre + shift
        begun = _Fit(rotation, translation, np.inf, np.ones(len(some), dtype=np.bool_))
        ended.append(_refined(some, model, begun, COARSE_STEPS))
    ended.sort(key=lambda one: one.rms_mm)
    leaders = [_refined(points, model, one, FINE_STEPS) for one in _distinct(ended, points)[:3]]
    leaders.sort(key=lambda one: one.rms_mm)
    best = leaders[0]
    # The coarse copy of the best one is replaced by it; the others stay as witnesses.
    rest = sorted(ended, key=lambda one: _rms_gap(one, best, points))
    return [best, *rest[1:]]


def _direction(rng: np.random.Generator) -> Array:
    v = rng.normal(size=3)
    unit: Array = v / np.linalg.norm(v)
    return unit


def _distinct(fits: list[_Fit], points: Array) -> list[_Fit]:
    """Return fits of different places, each the best of its place, the best first."""
    kept: list[_Fit] = []
    for one in sorted(fits, key=lambda fit: fit.rms_mm):
        if all(_rms_gap(one, other, points) > SAME_MM for other in kept):
            kept.append(one)
    return kept


def _rms_gap(one: _Fit, other: _Fit, points: Array) -> float:
    """Return how far two fits put the points apart, rms."""
    return float(np.sqrt(((one.apply(points) - other.apply(points)) ** 2).sum(axis=1).mean()))


def _refined(points: Array, model: _Model, start: _Fit, steps: int, *, trim: bool = True) -> _Fit:
    """Return where point-to-plane ICP ends from a start, trimmed to a share or to what noise explains."""
    rotation, translation = start.rotation, start.translation
    count = int(np.ceil(KEEP * len(points)))
    for _ in range(steps):
        at = points @ rotation.T + translation
        off, normals = model.nearest(at)
        used = _nearest(np.abs(off), count) if trim else _within_noise(off)
        centre = at[used].mean(axis=0)
        rows = np.einsum("ni,nij->nj", normals[used], point_jacobians(at[used] - centre))
        step = np.linalg.lstsq(rows, -off[used], rcond=1e-6)[0]
        # A long step leaves the planes it was made for.
        reach = max(1.0, float(np.linalg.norm(step[3:])) / 5.0, float(np.linalg.norm(step[:3])) / 0.1)
        turn = rotation_from_vector(step[:3] / reach)
        rotation = nearest_rotation(turn @ rotation)
        translation = turn @ (translation - centre) + centre + step[3:] / reach
        if float(np.abs(step[:3]).max()) < 1e-5 and float(np.abs(step[3:]).max()) < 1e-3:
            break
    distances = model.distances(points @ rotation.T + translation)
    nearest = _nearest(distances, count)
    used = nearest if trim else _within_noise(distances)
    return _Fit(rotation, translation, float(np.sqrt((distances[nearest] ** 2).mean())), used)


def _nearest(distances: Array, count: int) -> Mask:
    """Return which points are the ``count`` nearest."""
    used = np.zeros(len(distances), dtype=np.bool_)
    used[np.argpartition(distances, count - 1)[:count]] = True
    return used


def _within_noise(distances: Array) -> Mask:
    """Return which points lie within what the middle of them says of the noise."""
    sigma = max(MAD_TO_SIGMA * float(np.median(np.abs(distances))), NOISE_FLOOR_MM)
    near: Mask = np.abs(distances) <= OUTLIER_SIGMAS * sigma
    return near


def _linear(points: Array, model: _Model, fit: _Fit) -> tuple[Array, Array]:
    """Return derivatives (N, 6) of the signed distances about the points' middle, and the residuals (N,)."""
    at = fit.apply(points)
    off, normals = model.nearest(at)
    return np.einsum("ni,nij->nj", normals, point_jacobians(at - at.mean(axis=0))), -off


def _covariance(jacobians: Array, residuals: Array, at: Array) -> tuple[Array, Array]:
    """Return the covariance (6, 6) about the points' middle, from leaving out stretches of the brushing."""
    weight = jacobians * residuals[:, None]
    blocks, owed = time_blocks(weight / np.maximum(np.sqrt((weight**2).mean(axis=0)), 1e-300))
    shifts = left_out_shifts(jacobians[:, None], residuals[:, None], blocks)
    covariance = jackknife_covariance(shifts) * owed
    return 0.5 * (covariance + covariance.T), at.mean(axis=0)


def _hold(jacobians: Array) -> tuple[float, str]:
    """Return how firmly the surface holds the points in the direction that it holds worst, and that direction in words.

    Rotations are scaled so that they move the points by as much as a translation (Gelfand et al., 3DIM 2003): 1 would
    be a surface that meets every motion head on, 0 one that the points slide along.
    """
    scaled = jacobians.copy()
    size = max(float(np.sqrt((scaled[:, :3] ** 2).sum(axis=1).mean() / 2.0)), 1e-9)
    scaled[:, :3] /= size
    values, vectors = np.linalg.eigh(scaled.T @ scaled / len(scaled))
    worst = vectors[:, 0]
    kind = "turning" if np.linalg.norm(worst[:3]) > np.linalg.norm(worst[3:]) else "sliding"
    part = worst[:3] if kind == "turning" else worst[3:]
    axis = ["left-right", "front-back", "head-foot"][int(np.abs(part).argmax())]
    return float(np.sqrt(max(values[0], 0.0))), f"{kind} {'about' if kind == 'turning' else 'along'} {axis}"


def _judge(limits: SurfaceLimits, figures: dict[str, float], slide: str) -> tuple[Verdict, str]:
    """Return the verdict and the numbers that decided it."""
    found = Findings()
    grade = found.grade
    if "landmark_max_mm" in figures:
        what = "the fit moves a landmark by"
        grade(what, figures["landmark_max_mm"], limits.landmark_accept_mm, limits.landmark_refuse_mm, "mm")
    what = "residual (rms of the nearest 90 %)"
    grade(what, figures["residual_mm"], limits.residual_accept_mm, limits.residual_refuse_mm, "mm")
    grade("predicted TRE at the target", figures["tre_mm"], limits.tre_accept_mm, limits.tre_refuse_mm, "mm")
    what = "the points moved from the start by"
    grade(what, figures["moved_mm"], limits.moved_accept_mm, limits.moved_refuse_mm, "mm")
    for what, name, accept, refuse in (
        (
            "another place fits as well: its residual is larger by the factor",
            "margin",
            limits.margin_accept,
            limits.margin_refuse,
        ),
        (f"little holds the points against {slide}:", "hold", limits.hold_accept, limits.hold_refuse),
        ("starts that end in this place: a share of", "starts_agree", limits.agree_accept, -1.0),
    ):
        value = figures[name]
        if value < refuse:
            found.refuse.append(f"{what} {value:.3g}, below {refuse:g}")
        elif value < accept:
            found.doubt.append(f"{what} {value:.3g}, below {accept:g}")
    return found.verdict(
        f"residual {figures['residual_mm']:.2f} mm, predicted TRE {figures['tre_mm']:.2f} mm, next place "
        f"{figures['margin']:.1f} times as far off"
    )
