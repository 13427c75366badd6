"""Owns the search for where a bone may lie in X-rays: correlation of edges at all shifts by FFT, over rotations.

Refuses to decide: it returns the likeliest poses for refinement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import fft, ndimage

from navsrv.kernel.frames import Array
from navsrv.kernel.projection import ProjectionModel
from navsrv.registration._fluoro_kernels import best_shifts, edges_of
from navsrv.registration.drr import Image
from navsrv.registration.fluoro_views import FixedView, Level
from navsrv.registration.search import rotation_lattice
from navsrv.registration.tiles import moved

ROTATION_STEP_DEG: Final = 11.0
"""Side of the cell of the body-centred lattice of rotations: none is more than 6.2 degrees away."""
SHIFT_STEP_MM: Final = 2.5


@dataclass(frozen=True, slots=True)
class FluoroSearch:
    """How far from the start the patient is looked for: any direction each."""

    rotation_deg: float = 22.0
    shift_mm: float = 40.0


def search_poses(level: Level, start: Array, reach: FluoroSearch, keep: int, along_beam: bool = True) -> list[Array]:
    """Return ``keep`` poses (4, 4), the likeliest first: rotations about the bone's middle, shifts common to all views.

    Without ``along_beam`` nothing is shifted along the first view's beam: one view cannot tell.
    """
    centre = level.centre_ct_mm
    turns = []
    for rotation in rotation_lattice(reach.rotation_deg, ROTATION_STEP_DEG):
        pose = moved(start, np.zeros(6), np.zeros(3))
        pose[:3, :3] = rotation @ start[:3, :3]
        pose[:3, 3] = rotation @ (start[:3, 3] - centre) + centre
        turns.append(pose)
    axes = np.eye(3)
    if not along_beam:
        axes = level.seen(start, level.views[0]).T_carm_from_object.rotation.T
    maps, jacobians = [], []
    for view in level.views:
        models = [level.seen(pose, view) for pose in turns]
        maps.append(correlations(level.volume.render(models)[:, 0], view))
        jacobians.append([pixels_per_mm(model, centre) @ axes for model in models])
    cells = int(reach.shift_mm / SHIFT_STEP_MM)
    grid = np.array([cells, cells, cells if along_beam else 0])
    found = np.empty((len(turns), 2, 4))
    for n in range(len(turns)):
        stack = np.stack([m[n] for m in maps])
        best_shifts(stack, np.array([j[n] for j in jacobians]), grid, SHIFT_STEP_MM, 4, found[n])
    order = np.argsort(-found[:, :, 0].ravel(), kind="stable")
    poses = []
    for at in order[:keep]:
        pose = turns[at // 2].copy()
        pose[:3, 3] += axes @ found[at // 2, at % 2, 1:]
        poses.append(pose)
    return poses


def correlations(drrs: Image, view: FixedView) -> Image:
    """Return (N, n, n): correlation of gradients at cyclic shifts (row, column) of N images over the X-ray's.

    The X-ray's gradients are evened out locally first, so that the denominator is the same everywhere.
    """
    fx, fy = view.gradient
    power = ndimage.uniform_filter(fx * fx + fy * fy, 31, mode="nearest")
    even = (fx + 1j * fy) / np.sqrt(power + 0.05 * float(power.mean()))
    size = fft.next_fast_len(int(1.3 * max(drrs.shape[1:])))
    f_fixed = fft.fft2(even.astype(np.complex64), (size, size))
    gradient = np.zeros((len(drrs), size, size), dtype=np.complex64)
    norm = edges_of(drrs, gradient)
    product = fft.fft2(gradient, workers=2, overwrite_x=True)
    np.conj(product, out=product)
    product *= f_fixed
    maps: Image = fft.ifft2(product, workers=2, overwrite_x=True).real / np.maximum(norm, 1e-12)[:, None, None]
    return maps


def pixels_per_mm(model: ProjectionModel, centre_ct_mm: Array) -> Array:
    """Return (2, 3): pixels that the image of the bone moves when the *view* is shifted in CT."""
    base = model.project(centre_ct_mm)
    result: Array = -(model.project(centre_ct_mm + np.eye(3)) - base).T
    return result
