"""Owns whether the bone in the X-rays has the size of the CT's: a stretch along each axis, fitted beside the pose.

Another patient's bone, or a neighbour, finds a place that suits it well enough; but stretched a little it suits much
better.  The right bone gains nothing, and asks for no more than what a C-arm's focal length is wrong by.  This shows at
full resolution only: at half of it, a vertebra's end plates are drawn to those of its neighbours, and seem 4 per cent
further apart.
Refuses to move the pose: what it fits is thrown away but for its numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from navsrv.kernel.frames import Array
from navsrv.registration._fluoro_kernels import sums_of, tile_sums
from navsrv.registration.fluoro_views import Level, Normal, normal_equations
from navsrv.registration.tiles import moved

STRETCHES: Final = np.stack([np.diag(axis) for axis in np.eye(3)])
"""(3, 3, 3): the linear maps that stretch along x, y and z of the CT."""
ITERATIONS: Final = 6
STEP: Final = 0.04
"""Largest stretch, and ``STEP_MM`` the largest shift, of one step."""
STEP_MM: Final = 3.0
HELD: Final = 0.10
"""One sigma of a stretch before the images are asked: people differ by so much."""


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """How much longer (share, (3,) along x, y, z) the bone in the X-rays is, and what the score gains by it."""

    longer: Array
    gain: float

    @property
    def most(self) -> float:
        """The largest of the three, either way."""
        return float(np.abs(self.longer).max())


def fit_stretch(level: Level, pose: Array, scale: float) -> Stretch:
    """Return the stretch that suits the X-rays best, with a pose of its own that starts at ``pose`` (4, 4).

    ``scale`` turns the score's curvature into information: see ``score_scale``.
    """
    start = level.score(pose)
    longer, held = np.zeros(3), scale / HELD**2
    best, best_total, damping = _equations(level, pose, longer), -np.inf, 1e-2
    best_total = best.score
    for _ in range(ITERATIONS):
        hessian, gradient = best.hessian.copy(), best.gradient.copy()
        hessian[6:, 6:] += held * np.eye(3)
        # The derivative is by a stretch of the rays, which makes the bone shorter.
        gradient[6:] += held * longer
        scaled = hessian + np.diag(damping * np.diag(hessian) + 1e-9)
        step = np.asarray(np.linalg.solve(scaled, gradient), dtype=np.float64)
        step *= min(1.0, STEP_MM / max(float(np.linalg.norm(step[3:6])), 1e-9))
        step *= min(1.0, STEP / max(float(np.abs(step[6:]).max()), 1e-9))
        trial, longer_there = moved(pose, step[:6], level.centre_ct_mm), longer - step[6:]
        found = _equations(level, trial, longer_there)
        total = found.score - 0.5 * held * float(longer_there @ longer_there)
        if total > best_total and found.pixels > 0.5 * best.pixels:
            gained = total - best_total
            pose, longer, best, best_total, damping = trial, longer_there, found, total, damping * 0.2
            if gained < 1e-4:
                break
        else:
            damping *= 10.0
    return Stretch(longer, best.score - start)


def _equations(level: Level, pose: Array, longer: Array) -> Normal:
    """Return the normal equations of pose and stretch (9) where the bone is ``longer`` by (3,)."""
    bone = level.volume.stretched(1.0 + longer, level.centre_ct_mm)

    def sums(n: int) -> Array:
        model, view = level.seen(pose, level.views[n]), level.views[n]
        moving = np.empty((10, model.rows, model.columns), np.float32)
        shapes = np.empty((1, 7, model.rows, model.columns), np.float32)
        bone.render_into(shapes, [model], level.centre_ct_mm, STRETCHES)
        moving[7:] = shapes[0, 1:4]
        (window,) = bone.render_into(shapes, [model], level.centre_ct_mm)
        moving[:7] = shapes[0]
        tiles = (-(-model.rows // level.tile_px), -(-model.columns // level.tile_px))
        out = np.zeros((*tiles, sums_of(9)))
        tile_sums(moving, view.gradient, level.beside[n], window, level.tile_px, out)
        return out.reshape(-1, out.shape[2])

    return normal_equations(np.concatenate(level.of_each(sums)))
