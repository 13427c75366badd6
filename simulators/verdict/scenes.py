"""Owns what is photographed: a patient whose bones have moved against each other, and X-rays of him from two sides.

The CT is carried along with its bones at the scanner's own resolution (rigid inside each bone, blended between), so
that the X-rays show another posture than the CT.  What the C-arm says of itself is wrong by what calibrations are wrong
by, when asked.  Everything follows from a seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from scipy import ndimage

from navsrv.anatomy.case import Volume
from navsrv.kernel.frames import CARM, CT, REFERENCE, Array, Rigid, rotation_from_vector
from navsrv.kernel.projection import ProjectionModel
from navsrv.registration.fluoro_views import XrayView
from simulators.verdict.patients import Patient
from simulators.verdict.patients import patient as named
from simulators.verdict.radiographs import Radiographs, furnish
from simulators.world.imaging import Detector, carm_pose

GRID_MM: Final = 4.0
"""Of the field that carries the CT along."""
PAIRS: Final = ((0.0, 90.0), (0.0, 55.0), (-35.0, 35.0), (15.0, -70.0), (-20.0, 60.0), (0.0, -40.0))
"""Orbits of two views, degrees."""


@dataclass(frozen=True, slots=True)
class SceneSpec:
    """What decides a scene.

    Attributes
    ----------
    calibrated : bool
        The C-arm's own account of its geometry is exact.
    turn_deg, shift_mm : float
        One sigma per axis of what each bone beside the main one has moved against it.
    offset_mm : float
        How far along the spine the main bone lies from the middle of the picture, either way.
    """

    patient: str
    seed: int
    orbits: tuple[float, ...]
    calibrated: bool = True
    turn_deg: float = 1.5
    shift_mm: float = 0.8
    offset_mm: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """X-rays with what the C-arm says of them, and where the main bone truly is."""

    spec: SceneSpec
    views: list[XrayView]
    T_ct_from_ref: Rigid
    motions: dict[int, Rigid]
    """Of each bone beside the main one: where its points, given in the CT, lie in the CT carried along."""


def make_scene(patient: Patient, spec: SceneSpec) -> Scene:
    """Return the scene of a specification; the same each time."""
    rng = np.random.default_rng([spec.seed, 4711])
    motions = {label: _motion(patient, label, spec, rng) for label in patient.others}
    T_ct_from_ref = Rigid(CT, REFERENCE, rotation_from_vector(rng.uniform(-1.5, 1.5, 3)), rng.uniform(-200, 200, 3))
    detector = Detector()
    middle = patient.centre_ct_mm()
    iso = middle + rng.normal(0.0, 6.0, 3) + np.array([0.0, 0.0, spec.offset_mm])
    askew = rotation_from_vector(np.radians(rng.normal(0.0, 4.0, 3)))
    poses = [carm_pose(orbit + rng.normal(0.0, 3.0), iso + rng.normal(0, 3.0, 3), detector, askew)
             for orbit in spec.orbits]  # fmt: skip
    radiographs = Radiographs(carry(patient, motions), furnish(middle, rng))
    views = []
    for pose in poses:
        exact = told(pose, detector, Rigid.identity(CT, CT), None)
        pixels = radiographs.expose(exact, detector, rng)
        views.append(XrayView(pixels, told(pose, detector, T_ct_from_ref, None if spec.calibrated else rng)))
    return Scene(spec, views, T_ct_from_ref, motions)


def told(pose: Rigid, detector: Detector, T_ct_from_ref: Rigid, rng: np.random.Generator | None) -> ProjectionModel:
    """Return what the C-arm says of a view; with ``rng`` it errs as calibrated C-arms err.

    The source stands 1-2 mm, the principal point 1-3 pixels off; the pose 0.3 mm and 0.2 degrees about the isocentre.
    """
    T_carm_from_ct, sdd, principal = pose.inverse(), detector.sdd_mm, np.array(detector.principal_px)
    if rng is not None:
        sdd += float(rng.uniform(1.0, 2.0) * rng.choice([-1, 1]))
        principal = principal + _direction(rng, 2) * rng.uniform(1.0, 3.0)
        turn = rotation_from_vector(np.radians(0.2) * _direction(rng, 3))
        middle = np.array([0.0, 0.0, detector.source_iso_mm])
        shift = turn @ (T_carm_from_ct.translation_mm - middle) + middle + 0.3 * _direction(rng, 3)
        T_carm_from_ct = Rigid(CARM, CT, turn @ T_carm_from_ct.rotation, shift)
    size = (detector.columns, detector.rows)
    return ProjectionModel.flat(T_carm_from_ct @ T_ct_from_ref, size, sdd, detector.pixel_mm, principal.tolist())


def carry(patient: Patient, motions: dict[int, Rigid]) -> Volume:
    """Return the CT with bones where ``motions`` put them; the main bone stays."""
    ct = patient.ct
    size = np.array(ct.voxels.shape[::-1])
    step = np.maximum(1, np.rint(GRID_MM / ct.spacing_mm)).astype(int)
    coarse = tuple(int(n) for n in (-(-size // step) + 2)[::-1])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in coarse), indexing="ij"), axis=-1)[..., ::-1] * step
    place = ct.direction * ct.spacing_mm
    points = index @ place.T + ct.origin_mm
    total = np.full(coarse, 1.0 / 40.0**2)  # what no bone holds stays where it is
    moved = np.zeros((*coarse, 3))
    for label, motion in {patient.main: Rigid.identity(CT, CT), **motions}.items():
        back = motion.inverse().apply(points.reshape(-1, 3)).reshape(points.shape)
        weight = 1.0 / (_distance_mm(patient, label, back) + 0.2) ** 3
        total += weight
        moved += weight[..., None] * (back - points)
    shift = (moved / total[..., None]) @ np.linalg.inv(place).T
    shape = tuple(int(n) for n in size[::-1])
    voxels = np.empty(shape, np.int16)
    _carried(ct.voxels, shift.astype(np.float32), step, voxels)
    return replace(ct, voxels=voxels)


@njit(parallel=True, nogil=True, cache=True)
def _carried(ct, shift, step, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` with the CT read where a coarse field of shifts (k, j, i, 3: voxels i, j, k) says."""
    nk, nj, ni = ct.shape
    for k in prange(out.shape[0]):
        u = k // step[2]
        c = (k - u * step[2]) / step[2]
        for j in range(out.shape[1]):
            v = j // step[1]
            b = (j - v * step[1]) / step[1]
            for i in range(out.shape[2]):
                w = i // step[0]
                a = (i - w * step[0]) / step[0]
                x, y, z = float(i), float(j), float(k)
                for du in range(2):
                    for dv in range(2):
                        for dw in range(2):
                            share = (c if du else 1 - c) * (b if dv else 1 - b) * (a if dw else 1 - a)
                            x += share * shift[u + du, v + dv, w + dw, 0]
                            y += share * shift[u + du, v + dv, w + dw, 1]
                            z += share * shift[u + du, v + dv, w + dw, 2]
                x, y, z = min(max(x, 0.0), ni - 1.001), min(max(y, 0.0), nj - 1.001), min(max(z, 0.0), nk - 1.001)
                p, q, r = int(x), int(y), int(z)
                fx, fy, fz = x - p, y - q, z - r
                low = (ct[r, q, p] * (1 - fx) + ct[r, q, p + 1] * fx) * (1 - fy)
                low += (ct[r, q + 1, p] * (1 - fx) + ct[r, q + 1, p + 1] * fx) * fy
                high = (ct[r + 1, q, p] * (1 - fx) + ct[r + 1, q, p + 1] * fx) * (1 - fy)
                high += (ct[r + 1, q + 1, p] * (1 - fx) + ct[r + 1, q + 1, p + 1] * fx) * fy
                out[k, j, i] = int(np.rint(low * (1 - fz) + high * fz))


def _distance_mm(patient: Patient, label: int, points: Array) -> Array:
    """Return the distance of CT points (k, j, i, 3) to a bone, 0 inside."""
    ct, (inside, start, thin) = patient.ct, _near_bone(patient.name, label)
    index = ((points - ct.origin_mm) @ np.linalg.inv(ct.direction * ct.spacing_mm).T)[..., ::-1]
    index = np.moveaxis((index - start) / thin, -1, 0).astype(np.float32)
    result: Array = ndimage.map_coordinates(inside, index, order=1, mode="nearest", prefilter=False)
    return result


@lru_cache(maxsize=60)
def _near_bone(name: str, label: int) -> tuple[NDArray[np.float32], Array, Array]:
    """Return the distance map of a bone in a box about it, the box's first voxel and its step in voxels (k, j, i)."""
    who = named(name)
    ct, mask = who.ct, who.labels == label
    where = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    thin = (2, 2, 2) if min(ct.spacing_mm) < 1.0 else (1, 1, 1)
    margin = [int(35.0 / s) for s in ct.spacing_mm[::-1]]
    box = tuple(
        slice(max(int(w[0]) - m, 0), int(w[-1]) + m + 1, t) for w, m, t in zip(where, margin, thin, strict=True)
    )
    distance = ndimage.distance_transform_edt(~mask[box], sampling=ct.spacing_mm[::-1] * thin)
    return distance.astype(np.float32), np.array([b.start for b in box], float), np.array(thin, float)


def _motion(patient: Patient, label: int, spec: SceneSpec, rng: np.random.Generator) -> Rigid:
    """Return a small motion of a bone about the middle between it and the main bone."""
    hinge = 0.5 * (patient.centre_ct_mm(label) + patient.centre_ct_mm())
    turn = rotation_from_vector(np.radians(rng.normal(0.0, spec.turn_deg, 3)))
    return Rigid(CT, CT, turn, hinge - turn @ hinge + rng.normal(0.0, spec.shift_mm, 3))


def _direction(rng: np.random.Generator, axes: int) -> Array:
    v = rng.normal(size=axes)
    result: Array = v / np.linalg.norm(v)
    return result
