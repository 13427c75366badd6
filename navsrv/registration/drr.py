"""Owns digitally reconstructed radiographs: line integrals of a volume in any view, with their six pose derivatives.

Voxel centres are at integer indices, pixel centres at integer (column, row).  Between voxel centres the volume is
linear, beyond its outermost ones it falls to zero within one voxel.  Derivatives are those by a left perturbation in
the CT of where the view stands, ``T_ct_from_carm = exp(xi) T0`` with ``xi = (rotation_rad, translation_mm)`` as in
``kernel.frames``, about a centre that the caller chooses.  Refuses similarity and search.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from navsrv.kernel.errors import RegistrationError
from navsrv.kernel.frames import Array, skew
from navsrv.kernel.projection import ProjectionModel
from navsrv.registration._drr_kernels import BLOCK, place_view, render_view, render_views
from navsrv.registration.images import CtImage

Image = NDArray[np.float32]

SLOPES: Final = (0.28, 0.57, 1.1, 2.4)
"""Steepest rays (voxels aside per plane) that each occupancy map is made for."""
PARALLEL_FROM: Final = 4
"""Views of one call from which threads are used: joining them costs a time slice where a core is busy."""
MU_WATER_PER_MM: Final = 0.0206
"""At 60 keV."""
SOFT_TISSUE_HU: Final = 60.0
"""What surrounds bone: only what bone adds to it has edges that belong to bone."""
ROTATIONS: Final = np.stack([skew(axis) for axis in np.eye(3)])
"""(3, 3, 3): the linear maps that turn about x, y and z."""
_NOTHING: Final = np.zeros((1, 1, 1), dtype=np.int64)
_NOWHERE: Final = np.zeros((1, 1, 1), dtype=np.uint8)
_EVERYWHERE: Final = np.zeros((0, 0, 0), dtype=np.uint8)


class DrrVolume:
    """A volume ready to be projected: per axis a copy laid out along it, made when first needed.

    Parameters
    ----------
    values : (k, j, i) float32
        What is integrated, per mm.
    index_to_ct_mm : (4, 4)
        Maps (i, j, k, 1) of a voxel's centre to the object's millimetres.
    skip_empty : bool
        Leave out blocks of zeros.  False visits the whole box: the same image, slower; for comparison.
    """

    def __init__(self, values: NDArray[np.floating], index_to_ct_mm: Array, *, skip_empty: bool = True) -> None:
        if values.ndim != 3 or min(values.shape) < 1:
            raise RegistrationError(f"a volume of shape {values.shape} cannot be projected: three axes are needed")
        if skip_empty:
            values, index_to_ct_mm = _cropped(values, index_to_ct_mm)
        # One voxel of zeros around: the volume's edge is a slope like any other.
        self.values: Image = np.pad(np.asarray(values, dtype=np.float32), 1)
        self.index_to_ct_mm: Array = np.array(index_to_ct_mm, dtype=np.float64)
        self.index_to_ct_mm[:3, 3] -= self.index_to_ct_mm[:3, :3].sum(axis=1)
        self._settle()
        self._skip_empty = skip_empty
        self._laid: list[NDArray[np.int64]] = [_NOTHING] * 3
        self.scale = max(float(np.abs(self.values).max()), 1e-30) / 32767.0
        self._near: dict[tuple[int, int], NDArray[np.uint8]] = {}

    def _settle(self) -> None:
        """Work out what follows from the place of the voxels."""
        self._to_index: Array = np.ascontiguousarray(np.linalg.inv(self.index_to_ct_mm))
        ends = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
        box = ends * (np.array(self.values.shape[::-1]) - 1)
        self._corners: Array = box @ self.index_to_ct_mm[:3, :3].T + self.index_to_ct_mm[:3, 3]

    @property
    def centre_ct_mm(self) -> Array:
        """Centroid of the absolute values (3,)."""
        weight = np.abs(self.values)
        sums = [weight.sum(axis=tuple(a for a in range(3) if a != 2 - axis), dtype=np.float64) for axis in range(3)]
        index = np.array([(s * np.arange(len(s))).sum() / max(float(s.sum()), 1e-30) for s in sums])
        centre: Array = self.index_to_ct_mm[:3, :3] @ index + self.index_to_ct_mm[:3, 3]
        return centre

    def stretched(self, factors: Array, centre_ct_mm: Array) -> DrrVolume:
        """Return the volume stretched by three factors along the object's axes about a centre; it shares the voxels."""
        other = copy(self)
        other.index_to_ct_mm = self.index_to_ct_mm.copy()
        other.index_to_ct_mm[:3] *= factors[:, None]
        other.index_to_ct_mm[:3, 3] += (1.0 - factors) * centre_ct_mm
        other._settle()
        return other

    def laid_along(self, axis: int) -> NDArray[np.int64]:
        """Return the cells (a, b, c) with axis c (0: i, 1: j, 2: k) contiguous and a, b the others in falling order.

        A C-arm's beam, across the patient, slants along the slice (b) and hardly out of it (a).  Each cell holds, from
        its lowest 16 bits up, the voxels (a, b), (a, b + 1), (a + 1, b), (a + 1, b + 1).
        """
        if self._laid[axis].size == _NOTHING.size:
            a, b = (n for n in (2, 1, 0) if n != axis)
            whole = np.rint(self.values.transpose(2 - a, 2 - b, 2 - axis) * (1.0 / self.scale)).astype(np.int16)
            four = np.zeros((*whole.shape, 4), dtype="<i2")
            four[..., 0] = whole
            four[:, :-1, :, 1] = whole[:, 1:]
            four[:-1, :, :, 2] = whole[1:]
            four[:-1, :-1, :, 3] = whole[1:, 1:]
            self._laid[axis] = four.view("<i8")[..., 0]
        return self._laid[axis]

    def near(self, axis: int, steepest: float) -> NDArray[np.uint8]:
        """Return the occupancy map (a, b, block) for rays that move at most ``steepest`` voxels aside per plane."""
        level = int(np.searchsorted(SLOPES, steepest))
        if level == len(SLOPES):
            raise RegistrationError(f"rays move {steepest:.1f} voxels aside per plane: the cone is too wide")
        if not self._skip_empty:
            return _EVERYWHERE
        key = (axis, level)
        if key not in self._near:
            laid = self.laid_along(axis)
            blocks = -(-laid.shape[2] // BLOCK)
            filled: NDArray[np.bool_] = np.pad(laid != 0, ((0, 0), (0, 0), (0, blocks * BLOCK - laid.shape[2])))
            some = filled.reshape(*laid.shape[:2], blocks, BLOCK).max(axis=3)
            # Half a block's drift aside, and one voxel of rounding down; the cells know their neighbours.
            reach = 2 * int(np.ceil(0.5 * (BLOCK - 1) * SLOPES[level])) + 1
            self._near[key] = ndimage.maximum_filter(some.astype(np.uint8), (reach, reach, 1))
        return self._near[key]

    def placed(
        self, view: ProjectionModel, centre_ct_mm: Array, generators: Array = ROTATIONS
    ) -> tuple[int, float, Array, NDArray[np.int64]]:
        """Return the axis nearest to the beam, the steepest slope, and the kernel's ``view`` and ``window``.

        ``view.T_carm_from_object`` is ``T_carm_from_ct``.
        """
        pose, size = view.T_carm_from_object, np.array([view.columns, view.rows])
        out, window = np.zeros((24, 3)), np.zeros(4, np.int64)
        axis, steepest = place_view(
            self._to_index, self._corners, pose.rotation, pose.translation_mm, view.intrinsics, size, centre_ct_mm,
            generators, out, window,
        )  # fmt: skip
        if axis < 0:
            raise RegistrationError(
                "the source stands inside the volume, or the volume behind it"
                if axis == -1
                else "the view's cone is too wide, or the source stands inside the volume"
            )
        return axis, steepest, out, window

    def render(
        self, views: Sequence[ProjectionModel], *, derivatives: bool = False, centre_ct_mm: Array | None = None
    ) -> Image:
        """Return (V, 1 or 7, rows, columns): line integrals and, asked for, their derivatives.

        Channel 0 is the integral (no unit), 1-3 its derivatives by rotation about x, y, z (per rad), 4-6 by translation
        (per mm), about ``centre_ct_mm`` (None: the origin of CT).  Views of one call share their detector's size.
        """
        shape = (views[0].rows, views[0].columns)
        if any((v.rows, v.columns) != shape for v in views):
            raise ValueError("the views of one call have detectors of one size")
        out = np.empty((len(views), 7 if derivatives else 1, *shape), dtype=np.float32)
        self.render_into(out, views, centre_ct_mm)
        return out

    def render_into(
        self,
        out: Image,
        views: Sequence[ProjectionModel],
        centre_ct_mm: Array | None = None,
        generators: Array = ROTATIONS,
    ) -> list[NDArray[np.int64]]:
        """Render into an array (V, 1 or 7, rows, columns) that the caller keeps; return what part of each was drawn.

        ``generators`` (3, 3, 3): the linear maps about the centre that channels 1-3 are derivatives by.  The parts are
        windows: first and end column, first and end row; outside all is zero.
        """
        centre = np.zeros(3) if centre_ct_mm is None else centre_ct_mm
        placed = [self.placed(view, centre, generators) for view in views]
        nears = [_NOWHERE] * 3
        for axis in {p[0] for p in placed}:
            nears[axis] = self.near(axis, max(p[1] for p in placed if p[0] == axis))
            self.laid_along(axis)
        derivatives = out.shape[1] == 7
        out[:] = 0.0
        if len(views) < PARALLEL_FROM:
            for image, (axis, _, view, window) in zip(out, placed, strict=True):
                render_view(self._laid[axis], nears[axis], self.scale, view, window, derivatives, image)
            return [p[3] for p in placed]
        axes, images = np.array([p[0] for p in placed]), np.arange(len(views))
        stacked, windows = np.stack([p[2] for p in placed]), np.stack([p[3] for p in placed])
        render_views(tuple(self._laid), tuple(nears), self.scale, axes, images, stacked, windows, derivatives, out)
        return [p[3] for p in placed]


def bone_volume(ct: CtImage, mask: NDArray[np.bool_], spacing_mm: float = 1.0, reach_mm: float = 1.5) -> DrrVolume:
    """Return what bone adds to the attenuation of soft tissue, per mm, on cubic voxels; zero outside the bone.

    Parameters
    ----------
    ct : CtImage
        HU.
    mask : (k, j, i) bool
        The bones that move together.
    spacing_mm : float
        Size of the voxels.
    reach_mm : float
        How far beyond the mask bone is looked for: segmentations cut corners.
    """
    if mask.shape != np.shape(ct.voxels):
        raise RegistrationError(f"a mask of shape {mask.shape} does not fit a CT of {np.shape(ct.voxels)}")
    if not mask.any():
        raise RegistrationError("the mask of bones is empty: nothing to register to")
    matrix = np.asarray(ct.index_to_ct_mm, dtype=np.float64)
    size = np.linalg.norm(matrix[:3, :3], axis=0)
    margin = np.ceil((reach_mm + 2.0 * spacing_mm) / size).astype(int)[::-1] + 1
    where = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    box = tuple(
        slice(max(int(w[0]) - m, 0), min(int(w[-1]) + m + 1, n))
        for w, m, n in zip(where, margin, mask.shape, strict=True)
    )
    distance = ndimage.distance_transform_edt(~mask[box], sampling=size[::-1])
    # The mask's edge is feathered over half a voxel either way, or its staircase would be an edge of its own.
    weight = np.clip(0.5 + (reach_mm - distance) / float(size.max()), 0.0, 1.0)
    added = np.clip(np.asarray(ct.voxels)[box].astype(np.float32) - SOFT_TISSUE_HU, 0.0, 3000.0)
    bone = added * weight.astype(np.float32) * np.float32(MU_WATER_PER_MM * 1e-3)
    place = matrix.copy()
    place[:3, 3] += matrix[:3, :3] @ np.array([s.start for s in box[::-1]])
    ratio = spacing_mm / size
    # What is reduced is averaged first: a voxel stands for its whole extent.
    smooth = ndimage.gaussian_filter(bone, np.where(ratio > 1.2, 0.35 * ratio, 0.0)[::-1], truncate=3.0)
    shape = tuple(int((n - 1) / r) + 1 for n, r in zip(bone.shape, ratio[::-1], strict=True))
    values = ndimage.affine_transform(smooth, ratio[::-1], output_shape=shape, order=1, mode="nearest")
    values[values < 1e-5] = 0.0
    place[:3, :3] = place[:3, :3] * ratio
    return DrrVolume(values, place)


def _cropped(values: NDArray[np.floating], index_to_ct_mm: Array) -> tuple[NDArray[np.floating], Array]:
    """Return the box of what is not zero, with its place."""
    where = [np.flatnonzero(values.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    if not len(where[0]):
        raise RegistrationError("the volume holds nothing but zeros: nothing to project")
    place = np.array(index_to_ct_mm, dtype=np.float64)
    place[:3, 3] += place[:3, :3] @ np.array([w[0] for w in where[::-1]], dtype=np.float64)
    return values[tuple(slice(int(w[0]), int(w[-1]) + 1) for w in where)], place
