"""Owns frames and rigid transforms.  Refuses poses without frames and matrices that are not rigid.

Convention: ``T_<to>_from_<from>`` maps coordinates of a point in *from* to coordinates of the same point in *to*;
column vectors, millimetres, right-handed.  The covariance is that of a small left (``to``-side) perturbation
``T = exp(xi) T0`` with ``xi = (rotation_rad (3), translation_mm (3))``, both expressed in the frame ``to``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navsrv.kernel.errors import FrameMismatch

Array = NDArray[np.float64]

RIGIDITY_TOLERANCE: Final = 1e-3
"""Largest entry of ``R^T R - I`` that is taken as rounding on the wire (float32, NDI's four decimals)."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A named coordinate frame.  Anatomical frames (CT) are LPS; device frames keep their device's own axes."""

    name: str

    def __str__(self) -> str:
        return self.name


CT: Final = Frame("ct")
TRACKER: Final = Frame("tracker")
REFERENCE: Final = Frame("reference")
VOLUME: Final = Frame("volume")
CARM: Final = Frame("carm")
TIP: Final = Frame("tip")


def frozen_array(values: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Return a read-only float64 copy of ``values`` with exactly ``shape``; ValueError otherwise."""
    array: Array = np.array(values, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"shape {array.shape}, expected {shape}")
    array.flags.writeable = False
    return array


def rotation_defect(rotation: Array) -> float:
    """Return the largest entry of ``|R^T R - I|``, or infinity for a mirror or numbers that are not finite.

    In plain floats: on nine numbers this is several times cheaper than numpy, and every pose passes here.
    """
    (a, b, c), (d, e, f), (g, h, i) = rotation.tolist()
    worst = max(
        abs(a * a + d * d + g * g - 1.0),
        abs(b * b + e * e + h * h - 1.0),
        abs(c * c + f * f + i * i - 1.0),
        abs(a * b + d * e + g * h),
        abs(a * c + d * f + g * i),
        abs(b * c + e * f + h * i),
    )
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return worst if determinant > 0.0 and math.isfinite(worst) else math.inf


def nearest_rotation(matrix: Array) -> Array:
    """Return the rotation (3, 3) nearest to ``matrix`` in the Frobenius norm (Arun 1987, by SVD)."""
    u, _, vt = np.linalg.svd(matrix)
    d = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    result: Array = u @ d @ vt
    return result


def polished_rotation(rotation: Array) -> Array:
    """Return the rotation nearest to an almost orthonormal (3, 3), by two Newton-Schulz steps (Higham 1986).

    Each step squares the error: a defect of ``RIGIDITY_TOLERANCE`` leaves less than 1e-12, float32 rounding leaves
    nothing.
    """
    for _ in range(2):
        rotation = rotation @ (1.5 * np.eye(3) - 0.5 * (rotation.T @ rotation))
    return rotation


LAST_ROW: Final = [0.0, 0.0, 0.0, 1.0]


@dataclass(frozen=True, slots=True, eq=False)
class Rigid:
    """``T_to_from_frm``: a proper rigid motion between two frames.

    Parameters
    ----------
    to, frm : Frame
        The frames; inner names must meet in a product.
    rotation : (3, 3) float64
    translation_mm : (3,) float64
        Origin of ``frm`` in ``to``.
    covariance : (6, 6) float64 or None
        Of (rotation_rad, translation_mm), left perturbation in ``to``; None means that it is not known.

    Raises
    ------
    ValueError
        The rotation is not orthonormal within ``RIGIDITY_TOLERANCE``, or mirrors; a number is not finite; the
        covariance is not one (not symmetric, or a negative variance).
    """

    to: Frame
    frm: Frame
    rotation: Array = field(repr=False)
    translation_mm: Array
    covariance: Array | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rotation", frozen_array(self.rotation, (3, 3)))
        object.__setattr__(self, "translation_mm", frozen_array(self.translation_mm, (3,)))
        defect = rotation_defect(self.rotation)
        if defect > RIGIDITY_TOLERANCE:
            raise ValueError(f"not a rigid transform {self.to} from {self.frm}: |R^T R - I| = {defect:.3g}")
        if not all(map(math.isfinite, self.translation_mm.tolist())):
            raise ValueError(f"not a rigid transform {self.to} from {self.frm}: translation {self.translation_mm}")
        if self.covariance is not None:
            object.__setattr__(self, "covariance", frozen_array(self.covariance, (6, 6)))
            _check_covariance(self.covariance, f"{self.to} from {self.frm}")

    @classmethod
    def from_matrix(cls, to: Frame, frm: Frame, matrix: ArrayLike, covariance: Array | None = None) -> Rigid:
        """Return the transform of a (4, 4) homogeneous matrix; rounding of the rotation is removed."""
        m = np.asarray(matrix, dtype=np.float64)
        if m.shape != (4, 4) or m[3].tolist() != LAST_ROW:
            raise ValueError(f"not a homogeneous 4x4 matrix for {to} from {frm}")
        rotation = m[:3, :3]
        # What is too far from a rotation goes on as it is, to be refused with its true defect.
        near = rotation_defect(rotation) <= RIGIDITY_TOLERANCE
        return cls(to, frm, polished_rotation(rotation) if near else rotation, m[:3, 3], covariance)

    @classmethod
    def of_proven(cls, to: Frame, frm: Frame, rotation: Array, translation_mm: Array) -> Rigid:
        """Return the transform of arrays that are its own and need no proof: every pose passes here several times.

        Products and inverses of rotations are rotations; what is proven once is not proven again.
        """
        made = object.__new__(cls)
        rotation.flags.writeable = translation_mm.flags.writeable = False
        _set(made, "to", to)
        _set(made, "frm", frm)
        _set(made, "rotation", rotation)
        _set(made, "translation_mm", translation_mm)
        _set(made, "covariance", None)
        return made

    @classmethod
    def identity(cls, to: Frame, frm: Frame) -> Rigid:
        """Return the transform whose frames coincide."""
        return cls(to, frm, np.eye(3), np.zeros(3))

    @property
    def matrix(self) -> Array:
        """(4, 4) homogeneous matrix, a fresh copy."""
        m = np.eye(4)
        m[:3, :3] = self.rotation
        m[:3, 3] = self.translation_mm
        return m

    def adjoint(self) -> Array:
        """Return the (6, 6) map of a perturbation in ``frm`` to the same perturbation seen from ``to``."""
        ad = np.zeros((6, 6))
        ad[:3, :3] = self.rotation
        ad[3:, 3:] = self.rotation
        ad[3:, :3] = skew(self.translation_mm) @ self.rotation
        return ad

    def inverse(self) -> Rigid:
        """Return ``T_frm_from_to``, its covariance carried along."""
        rt = self.rotation.T
        if self.covariance is None:
            return Rigid.of_proven(self.frm, self.to, rt.copy(), -(rt @ self.translation_mm))
        inv = Rigid(self.frm, self.to, rt, -rt @ self.translation_mm)
        ad = inv.adjoint()
        return Rigid(self.frm, self.to, rt, inv.translation_mm, ad @ self.covariance @ ad.T)

    def __matmul__(self, other: Rigid) -> Rigid:
        """Return ``T_self.to_from_other.frm``; covariances add as independent when both are known."""
        if self.frm != other.to:
            raise FrameMismatch(
                f"T_{self.to}_from_{self.frm} @ T_{other.to}_from_{other.frm}: {self.frm} does not meet {other.to}"
            )
        rotation = self.rotation @ other.rotation
        translation = self.rotation @ other.translation_mm + self.translation_mm
        if self.covariance is None or other.covariance is None:
            return Rigid.of_proven(self.to, other.frm, rotation, translation)
        ad = self.adjoint()
        return Rigid(self.to, other.frm, rotation, translation, self.covariance + ad @ other.covariance @ ad.T)

    def apply(self, points_mm: ArrayLike) -> Array:
        """Return points (3,) or (N, 3) given in ``frm`` expressed in ``to``, millimetres."""
        p = np.asarray(points_mm, dtype=np.float64)
        result: Array = p @ self.rotation.T
        result += self.translation_mm
        return result


_set: Final = object.__setattr__


def _check_covariance(covariance: Array, name: str) -> None:
    """Raise ValueError unless it can be a covariance: an error that is not a number would pass every limit unseen."""
    scale = float(np.abs(covariance).max())
    if not math.isfinite(scale):
        raise ValueError(f"not a covariance of {name}: a number is not finite")
    # Sums of congruent products are symmetric and positive only to rounding.
    if float(np.abs(covariance - covariance.T).max()) > 1e-9 * scale:
        raise ValueError(f"not a covariance of {name}: not symmetric")
    if float(np.linalg.eigvalsh(covariance)[0]) < -1e-9 * scale:
        raise ValueError(f"not a covariance of {name}: a variance is negative")


def skew(v: Array) -> Array:
    """Return the (3, 3) matrix with ``skew(v) @ w == cross(v, w)``."""
    return np.array([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])


def rotation_from_vector(vector_rad: ArrayLike) -> Array:
    """Return the rotation (3, 3) of a rotation vector (3,) in radians (Rodrigues)."""
    v = np.asarray(vector_rad, dtype=np.float64)
    angle = float(np.linalg.norm(v))
    if angle < 1e-12:
        return np.eye(3) + skew(v)
    k = skew(v / angle)
    result: Array = np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * (k @ k)
    return result


def rotation_angle_rad(rotation: Array) -> float:
    """Return the angle of a rotation matrix (3, 3) in radians, 0 to pi."""
    return float(np.arctan2(np.linalg.norm(rotation - rotation.T) / np.sqrt(8.0), (np.trace(rotation) - 1.0) / 2.0))


def quaternion_wxyz(rotation: Array) -> tuple[float, float, float, float]:
    """Return the unit quaternion (w, x, y, z) with w >= 0 of a rotation (3, 3) (Shepperd 1978)."""
    (a, b, c), (d, e, f), (g, h, i) = rotation.tolist()
    trace = a + e + i
    if trace >= max(a, e, i):
        q = (1.0 + trace, h - f, c - g, d - b)
    elif a >= max(e, i):
        q = (h - f, 1.0 + a - e - i, b + d, c + g)
    elif e >= i:
        q = (c - g, b + d, 1.0 - a + e - i, f + h)
    else:
        q = (d - b, c + g, f + h, 1.0 - a - e + i)
    scale = math.copysign(1.0 / math.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2 + q[3] ** 2), q[0] if q[0] else 1.0)
    return (q[0] * scale, q[1] * scale, q[2] * scale, q[3] * scale)


def rotation_from_quaternion_wxyz(q_wxyz: ArrayLike) -> Array:
    """Return the rotation (3, 3) of a quaternion (w, x, y, z), normalised; ValueError for one of length zero."""
    q = np.asarray(q_wxyz, dtype=np.float64)
    norm = float(np.linalg.norm(q))
    if not norm > 0.0:
        raise ValueError("a quaternion of length zero is no rotation")
    w, x, y, z = (q / norm).tolist()
    return np.array(
        (
            (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
            (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
            (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
        )
    )


def rotation_z_onto(axis: ArrayLike) -> Array:
    """Return the smallest rotation (3, 3) that takes +z to a unit vector (3,); for -z, half a turn about x."""
    x, y, cosine = np.asarray(axis, dtype=np.float64).tolist()
    # 1 + cosine loses its digits next to -z, (x^2 + y^2) / (1 - cosine) is the same number and does not.
    below = 1.0 + cosine if cosine > 0.0 else (x * x + y * y) / (1.0 - cosine)
    if below == 0.0:
        return np.diag([1.0, -1.0, -1.0])
    v = skew(np.array([-y, x, 0.0]))
    result: Array = np.eye(3) + v + v @ v / below
    return result


def flip_lps_ras(matrix: ArrayLike) -> Array:
    """Return ``F @ matrix`` with F = diag(-1, -1, 1[, 1]): the left (anatomical) side changes between LPS and RAS.

    ``matrix`` is (4, 4), or points as columns (3, N).  A frame of a tool or device on the right side is untouched.
    """
    m: Array = np.array(matrix, dtype=np.float64)
    m[:2] *= -1.0
    return m


def points_ras_from_lps(points_mm: ArrayLike) -> Array:
    """Return points (N, 3) or (3,) with x and y negated: LPS to RAS, and back by the same rule."""
    p: Array = np.array(points_mm, dtype=np.float64)
    p[..., :2] *= -1.0
    return p
