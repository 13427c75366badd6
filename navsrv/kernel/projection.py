"""Owns what an X-ray view *is*: a pinhole whose rays run from the source to the centres of the detector's pixels.

C-arm frame: origin at the X-ray source, +z along the normal of the detector and towards it, +x along image columns,
+y along rows.  Pixel centres are at integer (column, row); pixel (0, 0) covers -0.5 to 0.5.  Refuses pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from navsrv.kernel.errors import FrameMismatch, InputError
from navsrv.kernel.frames import CARM, Array, Frame, Rigid, frozen_array, nearest_rotation

MAX_SHEAR: Final = 0.01
"""Largest shear, relative to the focal length, of a matrix that is taken as that of a real detector."""


@dataclass(frozen=True, slots=True, eq=False)
class ProjectionModel:
    """One X-ray view.

    Attributes
    ----------
    intrinsics : (3, 3) float64
        K: homogeneous (column, row, 1) of a point (x, y, z) in the C-arm frame; upper triangular, K[2, 2] = 1.
    columns, rows : int
        Size of the detector in pixels.
    T_carm_from_object : Rigid
        Where the view stands to the frame whose points it projects (``ref``, ``ct`` ...).
    """

    intrinsics: Array
    columns: int
    rows: int
    T_carm_from_object: Rigid = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "intrinsics", frozen_array(self.intrinsics, (3, 3)))
        k = self.intrinsics
        if not np.isfinite(k).all() or k[0, 0] <= 0 or k[1, 1] <= 0:
            raise ValueError("intrinsics: the two focal lengths are positive and every number is finite")
        if k[1, 0] != 0 or k[2].tolist() != [0.0, 0.0, 1.0]:
            raise ValueError("intrinsics: upper triangular with a last row of 0 0 1")
        if self.columns < 1 or self.rows < 1:
            raise ValueError(f"a detector of {self.columns} x {self.rows} pixels")
        if self.T_carm_from_object.to != CARM:
            raise FrameMismatch(f"a view stands in the frame {CARM}, not {self.T_carm_from_object.to}")

    @classmethod
    def flat(
        cls,
        T_carm_from_object: Rigid,
        size_px: tuple[int, int],
        sdd_mm: float,
        pixel_mm: float | tuple[float, float],
        principal_px: Sequence[float] | None = None,
    ) -> ProjectionModel:
        """Return the view of a flat detector.

        Parameters
        ----------
        size_px : (columns, rows)
        sdd_mm : float
            Source to detector along its normal.
        pixel_mm : float or (along columns, along rows)
        principal_px : (column, row) or None
            Where the normal through the source meets the detector; None: the middle.
        """
        columns, rows = size_px
        across, down = (pixel_mm, pixel_mm) if isinstance(pixel_mm, float | int) else pixel_mm
        u, v = ((columns - 1) / 2, (rows - 1) / 2) if principal_px is None else principal_px
        k = np.array([[sdd_mm / across, 0.0, u], [0.0, sdd_mm / down, v], [0.0, 0.0, 1.0]])
        return cls(k, columns, rows, T_carm_from_object)

    @classmethod
    def from_matrix(
        cls, matrix: ArrayLike, size_px: tuple[int, int], object_frame: Frame, seen_mm: ArrayLike
    ) -> ProjectionModel:
        """Return the view of a (3, 4) projection matrix, known up to a factor.

        Parameters
        ----------
        matrix : (3, 4)
            Maps homogeneous object points to homogeneous (column, row, 1).
        seen_mm : (3,)
            A point of the object that is known to lie between source and detector.  A matrix says nothing of its own
            sign; without such a point a mirrored image would pass for one seen from behind.

        Raises
        ------
        InputError
            Not the matrix of a view, or of a mirrored image.
        """
        p = np.asarray(matrix, dtype=np.float64)
        if p.shape != (3, 4) or not np.isfinite(p).all():
            raise InputError(f"a projection matrix has 3 x 4 finite numbers, this one has shape {p.shape}")
        determinant = float(np.linalg.det(p[:, :3]))
        if abs(determinant) < 1e-12 * float(np.abs(p[:, :3]).max()) ** 3:
            raise InputError("the projection matrix is singular: its source lies at infinity")
        p = p * np.sign(determinant)
        k, rotation = _rq(p[:, :3])
        translation = np.linalg.solve(k, p[:, 3])
        if float(rotation[2] @ np.asarray(seen_mm, dtype=np.float64) + translation[2]) <= 0.0:
            raise InputError("the projection matrix is that of a mirrored image: flip the image and its matrix")
        k /= k[2, 2]
        if abs(k[0, 1]) > MAX_SHEAR * k[0, 0]:
            raise InputError(f"the projection matrix shears its pixels by {k[0, 1] / k[0, 0]:.3g}: no flat detector")
        k[2], k[1, 0] = (0.0, 0.0, 1.0), 0.0
        return cls(k, *size_px, Rigid(CARM, object_frame, nearest_rotation(rotation), translation))

    @property
    def matrix(self) -> Array:
        """(3, 4) projection matrix: object millimetres to homogeneous (column, row, 1)."""
        p: Array = self.intrinsics @ self.T_carm_from_object.matrix[:3]
        return p

    @property
    def source_mm(self) -> Array:
        """The X-ray source (3,) in the object's frame."""
        pose = self.T_carm_from_object
        source: Array = -pose.rotation.T @ pose.translation_mm
        return source

    @property
    def directions(self) -> Array:
        """(3, 3): ``directions @ (column, row, 1)`` runs from the source through that pixel, in the object's frame."""
        d: Array = self.T_carm_from_object.rotation.T @ np.linalg.inv(self.intrinsics)
        return d

    def project(self, points_mm: ArrayLike) -> Array:
        """Return (column, row), (N, 2) or (2,), of points (N, 3) or (3,) in the object's frame."""
        seen = self.T_carm_from_object.apply(points_mm) @ self.intrinsics.T
        pixels: Array = seen[..., :2] / seen[..., 2:]
        return pixels

    def seen_from(self, T_object_from_other: Rigid) -> ProjectionModel:
        """Return the view as it stands to another frame; names meet or FrameMismatch."""
        return ProjectionModel(self.intrinsics, self.columns, self.rows, self.T_carm_from_object @ T_object_from_other)

    def binned(self, factor: int) -> ProjectionModel:
        """Return the view of the image averaged over blocks of ``factor`` by ``factor`` pixels; a rest is left out."""
        k = self.intrinsics.copy()
        # The first block's centre lies between its pixels.
        k[:2, 2] = (k[:2, 2] - (factor - 1) / 2) / factor
        k[:2, :2] /= factor
        return ProjectionModel(k, self.columns // factor, self.rows // factor, self.T_carm_from_object)


def _rq(m: Array) -> tuple[Array, Array]:
    """Return upper triangular K with a positive diagonal and the rotation R of ``m = K R``."""
    q, r = np.linalg.qr(m[::-1].T)
    k, rotation = r.T[::-1, ::-1].copy(), q.T[::-1].copy()
    signs = np.sign(np.diag(k))
    return k * signs, rotation * signs[:, None]
