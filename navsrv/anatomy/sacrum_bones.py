"""Owns the bones of the built-in sacrum case: sacrum with coccyx, iliac wings, L5 and the tops of the femurs.

Each bone is a composite (height maps over curved coordinates, smooth unions, differences, organic unevenness), so
its signed distance is approximate away from the surface; its truth is its own zero surface, nothing else.  Tables
read: rows are stations along the sacrum or heights, columns are distances from the midline or depths, values are mm
in the model.  They follow ordinary adult proportions, approximate.  Refuses everything soft.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator, RectBivariateSpline
from scipy.ndimage import distance_transform_edt, gaussian_filter

from navsrv.anatomy.sacrum_curve import SacralCurve

Grid = NDArray[Any]
"""float32 on coarse grids, where four digits are plenty, float64 in tables."""

JOINT_GAP: Final = 2.6
"""Sacroiliac joint space with its cartilage."""

# Half width of the sacrum's front edge along s, and how fast it narrows backward (the joint's obliquity).
WIDTH_S: Final = (
    -4.0,
    0.0,
    10.0,
    20.0,
    30.0,
    42.0,
    54.0,
    62.0,
    72.0,
    82.0,
    92.0,
    100.0,
    105.0,
    109.0,
    118.0,
    130.0,
    140.0,
)
WIDTH: Final = (54.0, 56.0, 57.0, 55.0, 51.5, 48.0, 44.0, 39.5, 34.0, 30.5, 26.5, 20.5, 14.0, 10.0, 8.5, 6.0, 3.0)
TAPER: Final = (0.5, 0.5, 0.5, 0.5, 0.48, 0.42, 0.36, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3)

FRONT_X: Final = (0.0, 10.0, 18.0, 24.0, 30.0, 38.0, 48.0, 58.0)
FRONT_S: Final = (-4.0, 0.0, 12.0, 25.0, 40.0, 54.0, 74.0, 91.0, 104.0, 112.0, 140.0)
FRONT_V: Final = (
    (-17.5, -17.0, -14.5, -9.5, -5.5, -3.5, -3.0, -5.0),
    (-17.0, -16.5, -14.0, -9.5, -5.5, -4.0, -3.5, -5.5),
    (-14.8, -14.3, -12.5, -9.5, -7.0, -6.0, -5.5, -6.0),
    (-13.0, -12.6, -11.5, -10.0, -9.0, -8.0, -7.0, -6.5),
    (-11.2, -11.2, -10.8, -10.0, -9.5, -8.8, -7.0, -5.0),
    (-10.2, -10.3, -10.4, -10.2, -9.8, -8.0, -5.0, -3.0),
    (-8.2, -8.4, -8.8, -8.8, -8.2, -6.0, -4.0, -3.0),
    (-6.5, -6.8, -7.2, -6.8, -5.5, -4.0, -3.0, -3.0),
    (-5.0, -5.2, -5.4, -5.0, -4.5, -4.0, -3.0, -3.0),
    (-4.2, -4.2, -3.5, -3.0, -3.0, -3.0, -3.0, -3.0),
    (-3.0, -3.0, -3.0, -3.0, -3.0, -3.0, -3.0, -3.0),
)
BACK_X: Final = (0.0, 3.5, 9.0, 16.0, 22.0, 30.0, 40.0, 56.0)
BACK_S: Final = (-14.0, 0.0, 12.0, 25.0, 34.0, 46.0, 53.0, 62.0, 74.0, 84.0, 92.0, 102.0, 110.0, 140.0)
BACK_V: Final = (
    (33.0, 32.5, 31.5, 29.0, 27.0, 23.0, 18.0, 10.0),
    (39.0, 37.0, 33.0, 30.0, 28.5, 25.0, 19.0, 12.0),
    (46.0, 42.0, 33.0, 30.5, 29.0, 27.5, 22.0, 14.0),
    (40.0, 35.0, 30.5, 28.0, 26.0, 26.0, 21.0, 13.0),
    (36.0, 31.5, 27.5, 25.5, 23.0, 24.5, 19.5, 12.0),
    (35.0, 30.0, 24.5, 23.0, 21.0, 22.0, 16.5, 10.0),
    (28.0, 24.5, 22.0, 20.5, 18.0, 19.5, 14.0, 8.0),
    (29.0, 25.0, 20.0, 18.5, 16.5, 17.0, 11.5, 7.0),
    (20.5, 19.0, 16.8, 15.0, 12.6, 12.5, 8.0, 5.0),
    (18.5, 17.0, 14.8, 12.8, 10.5, 9.5, 6.0, 4.0),
    (9.0, 9.8, 13.0, 11.0, 8.0, 7.0, 5.0, 3.0),
    (5.5, 6.2, 9.5, 8.0, 6.0, 5.0, 4.0, 3.0),
    (4.5, 4.6, 5.0, 4.0, 3.0, 3.0, 3.0, 3.0),
    (3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0),
)

# The iliac wing seen from the side (y back, z up): the outline of its silhouette, going on below the field of view.
WING_OUTLINE: Final = (
    (66.0, -16.0), (67.5, -26.0), (62.0, -33.0), (60.0, -42.0), (52.0, -50.5), (40.0, -53.0), (28.0, -55.5),
    (19.0, -61.0), (14.5, -72.0), (17.0, -86.0), (25.0, -98.0), (27.0, -106.0), (19.0, -118.0), (20.0, -140.0),
    (-58.0, -140.0), (-66.0, -120.0), (-58.0, -100.0), (-54.0, -88.0), (-61.0, -76.0), (-67.0, -66.0), (-64.0, -57.0),
    (-70.0, -48.0), (-79.0, -40.0), (-79.0, -29.0), (-69.0, -10.0), (-53.0, 10.0), (-32.0, 25.0), (-8.0, 33.0),
    (16.0, 32.0), (36.0, 23.0), (53.0, 5.0),
)  # fmt: skip
WING_Y: Final = (-85.0, -60.0, -35.0, -10.0, 15.0, 35.0, 52.0, 68.0)
WING_Z: Final = (35.0, 10.0, -15.0, -40.0, -60.0, -80.0, -100.0, -140.0)
WING_X: Final = (
    (137.0, 134.0, 130.0, 119.0, 99.0, 78.0, 64.0, 58.0),
    (131.0, 127.0, 118.0, 103.0, 82.0, 66.0, 57.0, 52.0),
    (123.0, 116.0, 103.0, 86.0, 68.0, 58.5, 52.5, 49.5),
    (116.0, 106.0, 91.0, 76.0, 63.0, 56.0, 51.5, 48.5),
    (106.0, 96.0, 84.0, 73.0, 64.0, 58.0, 54.0, 51.0),
    (92.0, 88.0, 79.0, 71.0, 66.0, 63.0, 60.0, 58.0),
    (76.0, 76.0, 73.0, 69.0, 66.5, 65.0, 64.0, 63.0),
    (62.0, 66.0, 69.0, 69.0, 67.0, 66.0, 66.0, 66.0),
)
WING_THICK: Final = (
    (10.0, 12.0, 13.0, 12.0, 11.0, 13.0, 15.0, 15.0),
    (10.0, 9.0, 7.5, 6.5, 9.0, 16.0, 18.0, 16.0),
    (11.0, 9.0, 7.0, 7.5, 14.0, 18.0, 19.0, 16.0),
    (13.0, 13.0, 12.0, 12.0, 16.0, 18.0, 17.0, 14.0),
    (18.0, 19.0, 21.0, 20.0, 17.0, 14.0, 12.0, 10.0),
    (16.0, 15.0, 12.0, 12.0, 14.0, 14.0, 12.0, 10.0),
    (13.0, 9.0, 6.0, 8.0, 13.0, 14.0, 12.0, 10.0),
    (12.0, 10.0, 8.0, 12.0, 18.0, 20.0, 16.0, 10.0),
)
HIP_CENTER: Final = (90.0, -25.0, -107.0)


def smooth_max(a: Grid, b: Grid, width: float) -> Grid:
    """Return the larger of two fields with the corner rounded over ``width`` mm (quadratic blend)."""
    h = np.maximum(width - np.abs(a - b), 0.0)
    result: Grid = np.maximum(a, b) + h * h / (4.0 * width)
    return result


def smooth_min(a: Grid, b: Grid, width: float) -> Grid:
    """Return the smaller of two fields with the corner filled over ``width`` mm."""
    return -smooth_max(-a, -b, width)


def ball(x: Grid, y: Grid, z: Grid, center: tuple[float, float, float], axes: tuple[float, float, float]) -> Grid:
    """Return roughly the signed distance of an ellipsoid: right at the surface, good enough around it."""
    p = [(q - c) / a for q, c, a in zip((x, y, z), center, axes, strict=True)]
    k = np.sqrt(p[0] ** 2 + p[1] ** 2 + p[2] ** 2)
    steep = np.sqrt((p[0] / axes[0]) ** 2 + (p[1] / axes[1]) ** 2 + (p[2] / axes[2]) ** 2)
    result: Grid = k * (k - 1.0) / np.maximum(steep, 1e-6)
    return result


def rod(x: Grid, y: Grid, z: Grid, a: tuple[float, ...], b: tuple[float, ...], ra: float, rb: float) -> Grid:
    """Return roughly the signed distance of a tapering rod with round ends."""
    d = np.subtract(b, a)
    t = np.clip(((x - a[0]) * d[0] + (y - a[1]) * d[1] + (z - a[2]) * d[2]) / float(d @ d), 0.0, 1.0)
    off = np.sqrt((x - a[0] - t * d[0]) ** 2 + (y - a[1] - t * d[1]) ** 2 + (z - a[2] - t * d[2]) ** 2)
    result: Grid = off - (ra + t * (rb - ra))
    return result


def sacrum_field(curve: SacralCurve, x: Grid, y: Grid, z: Grid, uneven: Grid) -> Grid:
    """Return the sacrum with coccyx, foramina and canal not yet cut: (k, j, i) from open model grids x, y, z."""
    s2, v2 = curve.curved(*np.broadcast_arrays(y[:, :, 0], z[:, :, 0]))
    s, v, side = s2[:, :, None].astype(np.float32), v2[:, :, None].astype(np.float32), np.abs(x)
    front = _table(FRONT_S, FRONT_X, FRONT_V, s2, side)
    for ridge in (30.0, 54.0, 74.0, 91.0):  # the lines where the bodies fused
        front -= 0.9 * np.exp(-(((s - ridge) / 2.2) ** 2)) * (side < 16.0)
    back = _table(BACK_S, BACK_X, BACK_V, s2, side)
    width = PchipInterpolator(WIDTH_S, WIDTH)(np.clip(s2, WIDTH_S[0], WIDTH_S[-1]))
    taper = np.interp(s2, WIDTH_S, TAPER)
    edge = (width - taper * np.maximum(v2 - 2.0, -14.0)).astype(np.float32)[:, :, None]
    lateral = (side - edge) / np.sqrt(1.0 + taper**2).astype(np.float32)[:, :, None]
    depth = smooth_max((front - v) * 0.93, (v - back) * 0.9, 2.5)
    bone = smooth_max(depth, lateral, 5.0)
    # The endplate is flat; the alae fall away from it sideways and backward, the canal's roof begins lower still.
    top = 0.6 - s - 0.0 * side + 0.22 * np.maximum(side - 27.0, 0.0) + 0.5 * np.maximum(v - 13.0, 0.0) * (side < 60.0)
    bone = smooth_max(bone, np.broadcast_to(top, bone.shape), 3.0)
    for sign in (-1.0, 1.0):  # upper articular processes, facing back and inward
        a, b = curve.model([(9.0, sign * 22.0, 25.0), (-7.0, sign * 23.0, 27.5)])
        bone = smooth_min(bone, rod(x, y, z, tuple(a), tuple(b), 7.0, 5.0), 4.0)
    tip = smooth_max(s - 139.0, bone, 3.0)
    joint = np.abs(s - 109.5) - 0.9  # sacrococcygeal disc
    return smooth_max(tip, np.broadcast_to(-joint, bone.shape), 0.8) + uneven * 0.8


def wing_sheet(x: Grid, y: Grid, z: Grid) -> tuple[Grid, Grid]:
    """Return the distance sideways from the outer face of the wing's curved sheet, and half the sheet's thickness.

    ``x`` is positive on the side of the wing, the distance outside of it.  The sheet goes on beyond the
    bone's outline: muscles are layered on it.
    """
    yy, zz = y[0, :, 0], z[:, 0, 0]
    sheet = _sheet(WING_X, yy, zz)
    dz, dy = np.gradient(sheet, zz, yy)
    steep = np.sqrt(1.0 + dy**2 + dz**2)
    half = (_sheet(WING_THICK, yy, zz) / 2.0).astype(np.float32)[:, :, None]
    sideways = ((x - sheet[:, :, None]) / steep[:, :, None]).astype(np.float32)
    return sideways - half, half


def wing_field(x: Grid, y: Grid, z: Grid, sacrum: Grid, uneven: Grid) -> Grid:
    """Return the iliac wing with the socket of the hip (k, j, i); ``x`` is positive on its side."""
    outer, half = wing_sheet(x, y, z)
    plate = np.abs(outer + half) - half
    outline = _outline(y[0, :, 0], z[:, 0, 0]).astype(np.float32)
    bone = smooth_max(plate, np.broadcast_to(outline[:, :, None], plate.shape), 7.0)
    hip = np.sqrt((x - HIP_CENTER[0]) ** 2 + (y - HIP_CENTER[1]) ** 2 + (z - HIP_CENTER[2]) ** 2)
    mouth = (x - HIP_CENTER[0]) * 0.76 - (y - HIP_CENTER[1]) * 0.34 - (z - HIP_CENTER[2]) * 0.55
    bone = smooth_min(bone, smooth_max(hip - 34.0, mouth - 4.0, 4.0), 8.0)
    bone = smooth_max(bone, 26.3 - hip, 1.5)
    return smooth_max(bone + uneven * 0.35, JOINT_GAP - sacrum, 1.0)


def femur_field(x: Grid, y: Grid, z: Grid) -> Grid:
    """Return head, neck and the start of the greater trochanter; ``x`` is positive on its side."""
    c = HIP_CENTER
    head = ball(x, y, z, c, (24.0, 24.0, 24.0))
    neck = rod(x, y, z, c, (c[0] + 42.0, c[1] + 9.0, c[2] - 26.0), 15.0, 17.0)
    trochanter = rod(
        x, y, z, (c[0] + 48.0, c[1] + 16.0, c[2] - 8.0), (c[0] + 44.0, c[1] + 12.0, c[2] - 40.0), 9.0, 18.0
    )
    return smooth_min(smooth_min(head, neck, 6.0), trochanter, 8.0)


def l5_field(curve: SacralCurve, x: Grid, y: Grid, z: Grid, uneven: Grid) -> Grid:
    """Return L5: body above a disc, pedicles, arch, spinous, transverse and articular processes."""
    s2, v2 = curve.curved(*np.broadcast_arrays(y[:, :, 0], z[:, :, 0]))
    s, v = s2[:, :, None].astype(np.float32), v2[:, :, None].astype(np.float32)
    waist = 1.0 - 0.09 * np.cos(np.clip((s + 25.0) / 14.0, -1.5, 1.5))
    rim = np.sqrt((x / (26.5 * waist)) ** 2 + ((v + 0.5) / (17.5 * waist)) ** 2)
    body = (rim - 1.0) * 19.0
    body = smooth_max(body, np.broadcast_to(np.abs(s + 24.5 + 0.06 * v) - 13.6, body.shape), 3.0)
    groove = np.hypot(x, v - 26.0) - 11.0
    body = smooth_max(body, -groove, 1.5)
    arch = np.full(body.shape, 50.0)

    def grow(a: tuple[float, float, float], b: tuple[float, float, float], ra: float, rb: float, blend: float) -> None:
        nonlocal arch
        p, q = curve.model([a, b])
        arch = smooth_min(arch, rod(x, y, z, tuple(p), tuple(q), ra, rb), blend)

    for sign in (-1.0, 1.0):
        grow((-29.0, sign * 19.0, 8.0), (-28.0, sign * 19.0, 25.0), 6.2, 6.0, 2.0)  # pedicle
        grow((-29.0, sign * 22.0, 14.0), (-33.0, sign * 46.0, 21.0), 6.5, 4.0, 3.0)  # transverse process
        grow((-26.0, sign * 17.0, 30.0), (-8.0, sign * 17.5, 34.5), 6.0, 4.6, 3.0)  # lower articular process
        grow((-30.0, sign * 19.0, 27.0), (-46.0, sign * 21.0, 30.0), 6.0, 4.0, 3.0)  # upper articular process
        grow((-24.0, sign * 16.0, 31.0), (-19.0, 0.0, 42.0), 3.6, 3.8, 3.0)  # lamina
    grow((-20.0, 0.0, 42.0), (-10.0, 0.0, 61.0), 3.6, 3.2, 3.0)  # spinous process
    grow((-25.0, 0.0, 43.0), (-17.0, 0.0, 61.0), 3.2, 3.2, 3.0)
    return smooth_min(body, arch, 2.0) + uneven * 0.6


def disc_field(curve: SacralCurve, x: Grid, y: Grid, z: Grid) -> Grid:
    """Return the L5/S1 disc: soft, but shaped by the two endplates."""
    s2, v2 = curve.curved(*np.broadcast_arrays(y[:, :, 0], z[:, :, 0]))
    rim = (np.sqrt((x / 26.0) ** 2 + (v2 / 17.5)[:, :, None] ** 2) - 1.0) * 18.0
    return smooth_max(rim, np.broadcast_to((np.abs(s2 + 5.0) - 5.6)[:, :, None], rim.shape), 2.0)


def unevenness(shape: tuple[int, ...], sigma_voxels: float, rng: np.random.Generator) -> Grid:
    """Return smooth noise of unit variance (float32): what keeps bone and muscle from looking turned on a lathe."""
    field = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma_voxels, mode="wrap", truncate=3.0)
    result: Grid = field / field.std()
    return result


def _table(
    rows: tuple[float, ...], columns: tuple[float, ...], values: tuple[tuple[float, ...], ...], s2: Grid, side: Grid
) -> Grid:
    """Values (k, j, i) of a table at stations s2 (k, j) and distances from the midline (1, 1, i)."""
    across = PchipInterpolator(columns, np.asarray(values), axis=1)(np.clip(side.ravel(), columns[0], columns[-1]))
    step = 0.25
    fine = np.arange(rows[0], rows[-1] + step, step)
    dense = PchipInterpolator(rows, across, axis=0)(np.clip(fine, rows[0], rows[-1])).astype(np.float32)
    index = np.clip(np.rint((s2 - rows[0]) / step).astype(np.intp), 0, len(fine) - 1)
    result: Grid = dense[index]
    return result


def _sheet(values: tuple[tuple[float, ...], ...], y: Grid, z: Grid) -> Grid:
    """Values (k, j) of a table at heights z (k) and depths y (j), monotone in between."""
    along = PchipInterpolator(WING_Y, np.asarray(values), axis=1)(np.clip(y, WING_Y[0], WING_Y[-1]))
    result: Grid = PchipInterpolator(WING_Z[::-1], along[::-1], axis=0)(np.clip(z, WING_Z[-1], WING_Z[0]))
    return result


def _outline(y: Grid, z: Grid) -> Grid:
    """Signed distance in mm (k, j) at depths y and heights z to the wing's rounded outline, by a distance transform."""
    step = 0.8
    ys, zs = np.arange(-100.0, 90.0, step), np.arange(-150.0, 50.0, step)
    inside = _polygon_contains(np.asarray(WING_OUTLINE), ys[None, :], zs[:, None])
    distance = distance_transform_edt(~inside) - distance_transform_edt(inside)
    smooth = gaussian_filter(distance * step, 2.5 / step)
    result: Grid = RectBivariateSpline(zs, ys, smooth, kx=1, ky=1)(z, y)
    return result


def _polygon_contains(corners: Grid, y: Grid, z: Grid) -> Grid:
    inside = np.zeros(np.broadcast_shapes(y.shape, z.shape), dtype=bool)
    for (y0, z0), (y1, z1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if z0 != z1:
            inside ^= ((z0 > z) != (z1 > z)) & (y < (y1 - y0) * (z - z0) / (z1 - z0) + y0)
    return inside
