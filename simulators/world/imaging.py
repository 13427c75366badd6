"""Owns what X-rays make of the case: projections of the CT with a needle, and the volume of an O-arm.

The projector marches rays with trilinear samples of its own; the server's registration has another, so that a fault of
either shows.  Effective energy 60 keV, no scatter.  Refuses sockets, and any knowledge of how the server registers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter

from navsrv.anatomy.case import Volume
from navsrv.kernel.frames import CARM, CT, Array, Frame, Rigid

IMAGE: Final = Frame("image")
"""The detector plane: origin at the centre of pixel (0, 0), +x along columns, +y along rows, +z off the source."""

VIEWS: Final = {"ap": 0.0, "lateral": 90.0, "oblique": 35.0}
"""Orbit of each view, degrees about the patient's long axis from the beam straight up."""

AIR_HU: Final = -1000
MU_WATER_PER_MM: Final = 0.0206
MU_STEEL_PER_MM: Final = 0.95
"""Water and iron at 60 keV (NIST XCOM mass attenuation times density)."""


@dataclass(frozen=True, slots=True)
class Detector:
    """A flat detector and where it stands.

    Attributes
    ----------
    columns, rows : int
    pixel_mm : float
    sdd_mm : float
        Source to detector, along the normal.
    source_iso_mm : float
    principal_px : (column, row) float
        Where the normal through the source meets the detector.
    """

    columns: int = 512
    rows: int = 512
    pixel_mm: float = 0.58
    sdd_mm: float = 1020.0
    source_iso_mm: float = 530.0
    principal_px: tuple[float, float] = (258.7, 253.1)

    @property
    def T_carm_from_image(self) -> Rigid:
        """The detector plane in the frame of the source."""
        column, row = self.principal_px
        return Rigid(CARM, IMAGE, np.eye(3), np.array([-column * self.pixel_mm, -row * self.pixel_mm, self.sdd_mm]))


@dataclass(frozen=True, slots=True)
class Exposure:
    """How the image is taken.

    Attributes
    ----------
    quanta : float
        Detected per pixel without an object; decides the quantum noise.
    electronic : float
        Standard deviation of the read-out noise, in quanta.
    blur_px : float
        One sigma of the detector's point spread.
    offset, gain : float
        ``value = gain (offset + ln(I / I0))``: linear in the line integral, bright where little is absorbed.
    """

    quanta: float = 2e5
    electronic: float = 4.0
    blur_px: float = 0.7
    offset: float = 10.0
    gain: float = 6000.0


@dataclass(frozen=True, slots=True, eq=False)
class SteelNeedle:
    """A needle in the beam: tip and unit axis from hub to tip in CT, mm."""

    tip_ct_mm: Array
    axis_ct: Array
    length_mm: float = 150.0
    radius_mm: float = 0.75


class Projector:
    """Line integrals of the case's attenuation, from a grid cropped to the body.

    Parameters
    ----------
    ct : Volume
        HU.
    grid_mm : float
        Spacing of the grid that is marched through; a coarser CT keeps its own spacing.
    """

    def __init__(self, ct: Volume, grid_mm: float = 1.0) -> None:
        grid = attenuation(ct, grid_mm)
        self._mu = np.ascontiguousarray(grid.voxels, dtype=np.float32)
        self._linear = (grid.direction * grid.spacing_mm).T
        self._origin = grid.origin_mm
        self._step_mm = 0.8 * float(grid.spacing_mm.min())

    def line_integrals(self, T_ct_from_carm: Rigid, detector: Detector) -> NDArray[np.float32]:
        """Return (rows, columns) of the attenuation summed from the source to each pixel's centre, no unit."""
        inverse = np.linalg.inv(self._linear.T)
        T_ct_from_image = T_ct_from_carm @ detector.T_carm_from_image
        source = inverse @ (T_ct_from_carm.translation_mm - self._origin)
        corner = inverse @ (T_ct_from_image.translation_mm - self._origin)
        steps = inverse @ T_ct_from_image.rotation[:, :2] * detector.pixel_mm
        columns_mm, rows_mm = detector.T_carm_from_image.translation_mm[:2]
        out = np.empty((detector.rows, detector.columns), dtype=np.float32)
        geometry = (columns_mm, rows_mm, detector.pixel_mm, detector.sdd_mm, self._step_mm)
        _march(self._mu, source, corner, steps[:, 0].copy(), steps[:, 1].copy(), geometry, out)
        return out


def attenuation(ct: Volume, grid_mm: float) -> Volume:
    """Return the attenuation per mm on a grid along the CT's axes, cropped to what absorbs (> -700 HU)."""
    occupied = ct.voxels > -700
    bounds = []
    for axis in range(3):
        inside = np.flatnonzero(occupied.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = (int(inside[0]), int(inside[-1])) if len(inside) else (0, ct.voxels.shape[axis] - 1)
        bounds.append((max(low - 1, 0), min(high + 2, ct.voxels.shape[axis])))
    del occupied
    box = ct.voxels[tuple(slice(low, high) for low, high in bounds)]
    origin = ct.ct_from_index([bounds[2][0], bounds[1][0], bounds[0][0]])
    # The grid's voxel centres start at those of the box, so that nothing shifts.
    spacing = np.maximum(ct.spacing_mm, grid_mm)
    ratio = (spacing / ct.spacing_mm)[::-1]
    shape = tuple(int((n - 1) / r) + 1 for n, r in zip(box.shape, ratio, strict=True))
    if np.all(ratio == 1.0):
        hu = box.astype(np.float32)
    else:
        hu = affine_transform(box, ratio, output_shape=shape, output=np.float32, order=1, mode="nearest")
    # What is below -900 HU is air or the outside of the scanner's field (-2048 in some files): it absorbs nothing.
    mu = np.where(hu > -900.0, np.float32(MU_WATER_PER_MM) * (1.0 + hu * np.float32(1e-3)), np.float32(0.0))
    return replace(ct, voxels=mu, origin_mm=origin, spacing_mm=spacing)


@njit(parallel=True, nogil=True, cache=True, fastmath=True)
def _march(mu, source, corner, step_column, step_row, geometry, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` with line integrals; all points in continuous indices (i, j, k) of ``mu`` (k, j, i)."""
    nk, nj, ni = mu.shape
    column_mm, row_mm, pixel_mm, sdd_mm, step_mm = geometry
    for row in prange(out.shape[0]):
        for column in range(out.shape[1]):
            dx = corner[0] + column * step_column[0] + row * step_row[0] - source[0]
            dy = corner[1] + column * step_column[1] + row * step_row[1] - source[1]
            dz = corner[2] + column * step_column[2] + row * step_row[2] - source[2]
            u, v = column_mm + column * pixel_mm, row_mm + row * pixel_mm
            length = np.sqrt(u * u + v * v + sdd_mm * sdd_mm)
            enter, leave = 0.0, 1.0
            for axis in range(3):
                d = dx if axis == 0 else (dy if axis == 1 else dz)
                n = ni if axis == 0 else (nj if axis == 1 else nk)
                if abs(d) < 1e-12:
                    if source[axis] < 0.0 or source[axis] > n - 1.0:
                        leave = -1.0
                    continue
                a, b = -source[axis] / d, (n - 1.0 - source[axis]) / d
                enter, leave = max(enter, min(a, b)), min(leave, max(a, b))
            total = 0.0
            if leave > enter:
                count = int(np.ceil((leave - enter) * length / step_mm))
                dt = (leave - enter) / count
                for n in range(count):
                    t = enter + (n + 0.5) * dt
                    x, y, z = source[0] + t * dx, source[1] + t * dy, source[2] + t * dz
                    i, j, k = min(int(x), ni - 2), min(int(y), nj - 2), min(int(z), nk - 2)
                    fx, fy, fz = x - i, y - j, z - k
                    low = (mu[k, j, i] * (1 - fx) + mu[k, j, i + 1] * fx) * (1 - fy)
                    low += (mu[k, j + 1, i] * (1 - fx) + mu[k, j + 1, i + 1] * fx) * fy
                    high = (mu[k + 1, j, i] * (1 - fx) + mu[k + 1, j, i + 1] * fx) * (1 - fy)
                    high += (mu[k + 1, j + 1, i] * (1 - fx) + mu[k + 1, j + 1, i + 1] * fx) * fy
                    total += low * (1 - fz) + high * fz
                total *= dt * length
            out[row, column] = total


def steel_integrals(needle: SteelNeedle, T_ct_from_carm: Rigid, detector: Detector) -> Array:
    """Return (rows, columns) of the attenuation that a steel cylinder adds, no unit.

    The chord of a ray at distance d from the axis is ``2 sqrt(r^2 - d^2) / sin(angle)``; the ends are cut square.
    """
    T_carm_from_ct = T_ct_from_carm.inverse()
    tip = T_carm_from_ct.apply(needle.tip_ct_mm)
    axis = T_carm_from_ct.rotation @ needle.axis_ct
    corner = detector.T_carm_from_image.translation_mm
    x = corner[0] + detector.pixel_mm * np.arange(detector.columns)
    y = corner[1] + detector.pixel_mm * np.arange(detector.rows)[:, None]
    norm = np.sqrt(x * x + y * y + detector.sdd_mm**2)
    ray = np.stack(np.broadcast_arrays(x / norm, y / norm, detector.sdd_mm / norm), axis=-1)
    normal = np.cross(ray, axis)
    sine = np.maximum(np.linalg.norm(normal, axis=-1), 1e-3)
    distance = np.abs(normal @ tip) / sine
    # Where along the shaft the ray passes closest: both lines' common perpendicular, tip at 0, hub at -length.
    cosine = ray @ axis
    along = ((ray @ tip) * cosine - tip @ axis) / sine**2
    hit = (distance < needle.radius_mm) & (along <= 0.0) & (along >= -needle.length_mm)
    chord = 2.0 * np.sqrt(np.maximum(needle.radius_mm**2 - distance**2, 0.0)) / sine
    result: Array = np.where(hit, MU_STEEL_PER_MM * chord, 0.0)
    return result


def expose(integrals: NDArray[np.floating], exposure: Exposure, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Return the image (rows, columns) of line integrals: Beer-Lambert, quantum noise, blur, read-out, logarithm."""
    quanta = rng.poisson(exposure.quanta * np.exp(-integrals.astype(np.float64)))
    signal = gaussian_filter(quanta.astype(np.float64), exposure.blur_px)
    signal += rng.normal(0.0, exposure.electronic, signal.shape)
    logarithm = np.log(np.maximum(signal, 1.0) / exposure.quanta)
    value = exposure.gain * (exposure.offset + logarithm)
    pixels: NDArray[np.uint16] = np.clip(np.rint(value), 0, 65535).astype(np.uint16)
    return pixels


@dataclass(frozen=True, slots=True)
class OarmProtocol:
    """What the O-arm reconstructs, and how badly.

    Attributes
    ----------
    diameter_mm, height_mm, voxel_mm : float
        A cylinder along the volume's z; outside it the value is constant.
    blur_mm : float
        One sigma of the point spread.
    noise_hu, cupping_hu, shading_hu : float
        Noise (one sigma, a little correlated), how much darker the centre is than the rim, a slant across the field.
    scale, offset_hu : float
        What the scanner makes of HU: ``scale HU + offset``.
    """

    diameter_mm: float = 200.0
    height_mm: float = 150.0
    voxel_mm: float = 0.9
    blur_mm: float = 0.6
    noise_hu: float = 40.0
    cupping_hu: float = 80.0
    shading_hu: float = 40.0
    scale: float = 0.93
    offset_hu: float = 35.0


@dataclass(frozen=True, slots=True, eq=False)
class OarmVolume:
    """A reconstructed volume in the frame of the gantry.

    Attributes
    ----------
    voxels : (k, j, i) int16
    index_to_volume_mm : (4, 4)
        Maps (i, j, k, 1) to mm in the frame ``volume``, whose origin is the isocentre.
    """

    voxels: NDArray[np.int16]
    index_to_volume_mm: Array


def reconstruct(ct: Volume, T_ct_from_volume: Rigid, protocol: OarmProtocol, rng: np.random.Generator) -> OarmVolume:
    """Return the O-arm's volume of the case at the volume's true pose."""
    across = int(protocol.diameter_mm / protocol.voxel_mm) + 1
    along = int(protocol.height_mm / protocol.voxel_mm) + 1
    size = np.array([across, across, along])
    index_to_volume = np.diag([protocol.voxel_mm] * 3 + [1.0])
    index_to_volume[:3, 3] = -0.5 * (size - 1) * protocol.voxel_mm
    hu = _resample(ct, T_ct_from_volume.matrix @ index_to_volume, size)
    np.clip(hu, -1024.0, 3071.0, out=hu)
    gaussian_filter(hu, protocol.blur_mm / protocol.voxel_mm, output=hu)
    noise = gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), 0.6)
    noise *= np.float32(protocol.noise_hu / noise.std())
    x = (np.arange(across) - 0.5 * (across - 1)) * (2.0 * protocol.voxel_mm / protocol.diameter_mm)
    radius2 = x[None, :] ** 2 + x[:, None] ** 2
    turn = rng.uniform(-np.pi, np.pi)
    slant = np.cos(turn) * x[None, :] + np.sin(turn) * x[:, None]
    false = protocol.shading_hu * slant - protocol.cupping_hu * (1.0 - radius2)
    hu = protocol.scale * hu + np.float32(protocol.offset_hu) + noise + false.astype(np.float32)
    hu[:, radius2 > 1.0] = AIR_HU
    return OarmVolume(np.clip(np.rint(hu), -1024, 3071).astype(np.int16), index_to_volume)


def _resample(ct: Volume, ct_from_index: Array, size_ijk: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return (k, j, i) HU of the CT on a grid given by its index-to-CT matrix; outside the CT it is air."""
    to_index = np.linalg.inv(ct.direction * ct.spacing_mm)
    linear = to_index @ ct_from_index[:3, :3]
    offset = to_index @ (ct_from_index[:3, 3] - ct.origin_mm)
    shape = tuple(int(n) for n in size_ijk[::-1])
    # scipy's axes are those of the array: (k, j, i), the reverse of ours.
    result: NDArray[np.float32] = affine_transform(
        ct.voxels, linear[::-1, ::-1], offset[::-1], shape, np.float32, order=1, mode="constant", cval=AIR_HU
    )
    return result


def carm_pose(orbit_deg: float, iso_ct_mm: Array, detector: Detector, turn: Array | None = None) -> Rigid:
    """Return T_ct_from_carm with the beam through an isocentre, for a prone patient.

    At orbit 0 the source is below the table and the beam runs from front to back; the orbit turns it about the
    patient's long axis, to the left.  Image rows run to the feet.  ``turn`` (3, 3): how askew the gantry stands in CT.
    """
    angle = np.radians(orbit_deg)
    beam = np.array([np.sin(angle), np.cos(angle), 0.0])
    rows = np.array([0.0, 0.0, -1.0])
    rotation = np.stack([np.cross(rows, beam), rows, beam], axis=1)
    if turn is not None:
        rotation = turn @ rotation
    return Rigid(CT, CARM, rotation, iso_ct_mm - detector.source_iso_mm * rotation[:, 2])
