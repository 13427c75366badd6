"""Owns the similarity of DRRs with X-ray images, and its refinement: gradient correlation tile by tile.

Within a tile the gradient images of DRR and X-ray are compared up to a factor of that tile's own, so that exposure,
beam hardening, scatter and the soft tissue's slow shading cost nothing; tiles have their say by the strength of the
DRR's edges, so that a needle or a collimator in the X-ray has none where no bone is expected.  The pose is refined by
Levenberg-Marquardt on analytic derivatives.  Refuses search and verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from navsrv.kernel.errors import RegistrationError
from navsrv.kernel.frames import CARM, CT, Array, Rigid, rotation_angle_rad
from navsrv.kernel.projection import ProjectionModel
from navsrv.registration._fluoro_kernels import sums_of, tile_sums
from navsrv.registration.aside import Aside, begun
from navsrv.registration.drr import DrrVolume, Image
from navsrv.registration.tiles import moved

MIN_TILE_PIXELS: Final = 20
COMPRESSION: Final = 1.5
"""Gradients of more than so many medians are those of metal and shutters: direction counts, size hardly."""
BLUR_PX: Final = 0.5
_NOTHING_BESIDE: Final = np.zeros((0, 0), dtype=np.float32)
LEAST_GAIN: Final = 1e-5
"""Of the score by a step, below which there is no next one."""
MOST_DAMPING: Final = 100.0
ARM_MM: Final = 50.0
"""Distance at which a rotation is weighed against a translation."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class XrayView:
    """One X-ray image and where it was taken.

    Attributes
    ----------
    pixels : (rows, columns)
        Linear in the logarithm of the intensity, or nearly.
    projection : ProjectionModel
        ``T_carm_from_object`` from the frame that the views share (``ref``); pixels as in ``pixels``.
    bright_air : bool
        Air is bright and bone dark, as detectors give it; False: bone is bright.
    """

    pixels: NDArray[np.generic]
    projection: ProjectionModel
    bright_air: bool = True

    def __post_init__(self) -> None:
        shape = (self.projection.rows, self.projection.columns)
        if np.shape(self.pixels) != shape:
            raise RegistrationError(f"an image of {np.shape(self.pixels)} pixels for a detector of {shape}")


@dataclass(frozen=True, slots=True, eq=False)
class FixedView:
    """An X-ray at one resolution: gradients (2, rows, columns) along columns and rows, and its view."""

    gradient: Image
    projection: ProjectionModel

    @classmethod
    def of(cls, view: XrayView, across_px: int, blur_px: float = BLUR_PX) -> FixedView:
        """Return the view averaged in blocks to about ``across_px`` columns, blurred, its gradients compressed."""
        factor = max(1, round(view.projection.columns / across_px))
        model = view.projection.binned(factor)
        whole = np.asarray(view.pixels)[: model.rows * factor, : model.columns * factor].astype(np.float32)
        if not np.isfinite(whole).all() or np.ptp(whole) == 0.0:
            raise RegistrationError("an X-ray image is constant, or has pixels that are no numbers")
        image = whole.reshape(model.rows, factor, model.columns, factor).mean(axis=(1, 3))
        image = ndimage.gaussian_filter(-image if view.bright_air else image, blur_px)
        gradient = np.zeros((2, model.rows, model.columns), dtype=np.float32)
        gradient[0, :, 1:-1] = image[:, 2:] - image[:, :-2]
        gradient[1, 1:-1] = image[2:] - image[:-2]
        size = np.hypot(gradient[0], gradient[1])
        middle = COMPRESSION * float(np.median(size[size > 0.0]))
        gradient /= np.sqrt(size * size + middle * middle)
        return cls(gradient, model)


@dataclass(frozen=True, slots=True, eq=False)
class Normal:
    """The normal equations of a pose: of (rotation_rad, translation_mm) about a centre, and the score."""

    hessian: Array
    gradient: Array
    score: float
    """Mean gradient correlation over tiles, weighted by the DRR's edges: -1 to 1."""
    pixels: float


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A pose (4, 4), CT from the views' frame, that a refinement ended at, and its score."""

    pose: Array
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class PosePrior:
    """What is known of a pose beside the images: it pulls the refinement, most where the images say least.

    Attributes
    ----------
    pose : (4, 4)
        CT from the views' frame.
    weight : (6, 6)
        Inverse covariance of (rotation_rad, translation_mm) about the bone's centre times ``scale``: in units of the
        score.
    scale : float
        What the score's curvature is divided by to be information.
    """

    pose: Array
    weight: Array
    scale: float

    def offset(self, pose: Array, centre_mm: Array) -> Array:
        """Return the step (6,) about a centre that leads from the prior's pose to ``pose``."""
        turn = pose[:3, :3] @ self.pose[:3, :3].T
        angle = rotation_angle_rad(turn)
        axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
        vector = axis * (0.5 if angle < 1e-6 else 0.5 * angle / max(np.sin(angle), 1e-9))
        shift = pose[:3, 3] - turn @ (self.pose[:3, 3] - centre_mm) - centre_mm
        return np.concatenate((vector, shift))


class Level:
    """One resolution: the bone, the X-rays, and buffers that are used again.

    ``beside`` may hold, for each view, an image of what else is in the picture (other bones where they are known to
    be): it is added to what is rendered, so that their edges are not taken for the bone's.  ``aside``: who looks at the
    views beyond the first while the caller looks at that one; None: one after the other.
    """

    def __init__(self, volume: DrrVolume, views: list[FixedView], tile_px: int, aside: Aside | None = None) -> None:
        self.volume = volume
        self._aside = aside
        self.views = views
        self.centre_ct_mm = volume.centre_ct_mm
        self.beside: list[Image] = [_NOTHING_BESIDE] * len(views)
        self.tile_px = tile_px
        self._buffers = [
            np.zeros((1, channels, v.projection.rows, v.projection.columns), np.float32)
            for v in views
            for channels in (1, 7)
        ]

    def seen(self, pose: Array, view: FixedView) -> ProjectionModel:
        """Return the view as it stands to the CT at a pose (4, 4), CT from the views' frame."""
        frame = view.projection.T_carm_from_object.frm
        inverse = np.eye(4)
        inverse[:3, :3] = pose[:3, :3].T
        inverse[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
        return view.projection.seen_from(Rigid.from_matrix(frame, CT, inverse))

    def only(self, n: int) -> Level:
        """Return the level with one of its views alone; it shares the buffers."""
        other = copy(self)
        other.views, other.beside = [self.views[n]], [self.beside[n]]
        other._buffers = self._buffers[2 * n : 2 * n + 2]
        return other

    def sums(self, pose: Array, derivatives: bool = True) -> list[Array]:
        """Return each view's sums of each tile (T, 37) at a pose."""
        return self.of_each(lambda n: self._sums_of(n, pose, derivatives))

    def of_each(self, look: Callable[[int], T]) -> list[T]:
        """Return ``look`` of each view's number, side by side where there is somebody to help."""
        later = [begun(self._aside, partial(look, n)) for n in range(1, len(self.views))]
        return [look(0), *(answer() for answer in later)]

    def _sums_of(self, n: int, pose: Array, derivatives: bool) -> Array:
        """Return the sums of each tile (T, 37) of view ``n``."""
        view, buffer = self.views[n], self._buffers[2 * n + int(derivatives)]
        model = self.seen(pose, view)
        (window,) = self.volume.render_into(buffer, [model], self.centre_ct_mm)
        tiles = (-(-model.rows // self.tile_px), -(-model.columns // self.tile_px))
        out = np.zeros((*tiles, sums_of(len(buffer[0]) - 1)))
        tile_sums(buffer[0], view.gradient, self.beside[n], window, self.tile_px, out)
        return out.reshape(-1, out.shape[2])

    def score(self, pose: Array) -> float:
        """Return the score of a pose."""
        return normal_equations(np.concatenate(self.sums(pose, False))).score

    def equations(self, pose: Array, prior: PosePrior | None = None) -> Normal:
        """Return the normal equations of all views at a pose, a prior's pull included."""
        found = normal_equations(np.concatenate(self.sums(pose)))
        if prior is None:
            return found
        offset = prior.offset(pose, self.centre_ct_mm)
        pull = prior.weight @ offset
        score = found.score - 0.5 * float(offset @ pull)
        return Normal(found.hessian + prior.weight, found.gradient - pull, score, found.pixels)

    def refine(
        self, pose: Array, iterations: int = 25, tolerance_mm: float = 0.03, prior: PosePrior | None = None
    ) -> Fit:
        """Return where Levenberg-Marquardt ends from ``pose`` (4, 4); the score is without the prior's share."""
        best = self.equations(pose, prior)
        damping = 1e-2
        for _ in range(iterations):
            scaled = best.hessian + np.diag(damping * np.diag(best.hessian) + 1e-9)
            step = np.asarray(np.linalg.solve(scaled, best.gradient), dtype=np.float64)
            length = float(np.linalg.norm(step[3:]) + ARM_MM * np.linalg.norm(step[:3]))
            if length > 8.0:
                step *= 8.0 / length
            trial = moved(pose, step, self.centre_ct_mm)
            found = self.equations(trial, prior)
            if found.score > best.score and found.pixels > 0.5 * best.pixels:
                gained, pose, best = found.score - best.score, trial, found
                damping = max(damping * 0.2, 1e-4)
                if length < tolerance_mm or gained < LEAST_GAIN:
                    break
            else:
                damping *= 10.0
                if damping > MOST_DAMPING or length < tolerance_mm:
                    break
        return Fit(pose, best.score if prior is None else self.score(pose))


def normal_equations(tiles: Array) -> Normal:
    """Return the normal equations of tile sums (T, ``sums_of(P)``): least squares of unit gradients, tile by tile.

    With f = F / |F| and m = M / |M| over a tile, ``|f - m|^2 / 2 = 1 - NCC``; tiles count by |M|.
    """
    p = parameters_of(tiles)
    s = tiles[(tiles[:, 0] >= MIN_TILE_PIXELS) & (tiles[:, 2] > 0.0) & (tiles[:, 1] > 0.0)]
    if not len(s):
        return Normal(np.eye(p), np.zeros(p), -1.0, 0.0)
    weight = np.sqrt(s[:, 2])
    weight = weight / weight.sum()
    norm = np.sqrt(s[:, 1] * s[:, 2])
    ncc = s[:, 3] / norm
    fj, mj = s[:, 4 : 4 + p] / norm[:, None], s[:, 4 + p : 4 + 2 * p] / s[:, 2:3]
    gradient = weight @ (fj - ncc[:, None] * mj)
    rows, columns = np.triu_indices(p)
    jj = np.zeros((p, p))
    jj[rows, columns] = (weight / s[:, 2]) @ s[:, 4 + 2 * p :]
    jj[columns, rows] = jj[rows, columns]
    hessian = jj - (mj * weight[:, None]).T @ mj
    return Normal(hessian, gradient, float(weight @ ncc), float(s[:, 0].sum()))


def parameters_of(tiles: Array) -> int:
    """Return P of tile sums (T, ``sums_of(P)``)."""
    width = tiles.shape[1]
    return next(p for p in range(width) if sums_of(p) == width)


def check_views(views: list[XrayView]) -> None:
    """Raise RegistrationError unless there are views and they stand in one frame."""
    if not views:
        raise RegistrationError("no X-ray view: two or more are needed")
    frames = {str(view.projection.T_carm_from_object.frm) for view in views}
    if len(frames) > 1:
        raise RegistrationError(f"the views stand in different frames ({', '.join(sorted(frames))}), not in one")
    assert all(view.projection.T_carm_from_object.to == CARM for view in views)
