"""Owns the soft tissue of the built-in sacrum case that is there to be seen, not measured: muscle, fat, bowel,
bladder.

Muscles are layered on the outer and inner face of the iliac wing, on the back of the sacrum and under the skin, as
they lie in an average adult (approximate), with fat planes between.  Refuses everything that a distance is computed
to.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from navsrv.anatomy.sacrum_bones import Grid, ball, rod, smooth_max
from navsrv.anatomy.sacrum_curve import SacralCurve

FAT: Final = -102.0
MUSCLE: Final = 54.0

PSOAS: Final = (
    (46.0, 2.0, 50.0),
    (49.0, -14.0, 18.0),
    (58.0, -36.0, -18.0),
    (72.0, -56.0, -56.0),
    (84.0, -66.0, -90.0),
    (88.0, -68.0, -130.0),
)
PSOAS_RADII: Final = (19.0, 19.5, 17.0, 15.0, 15.0, 15.0)
PIRIFORMIS: Final = ((62.0, 24.0, -12.0), (74.0, 48.0, -8.0))
BOWEL_LOOPS: Final = (
    # centre, semi-axes, HU inside
    ((-50.0, -66.0, -14.0), (20.0, 17.0, 24.0), -780.0),
    ((2.0, -46.0, 22.0), (16.0, 10.0, 14.0), 30.0),
    ((-16.0, -44.0, -46.0), (15.0, 11.0, 12.0), -420.0),
)
BOWEL_TUBES: Final = (
    # way, radius, HU inside: descending and sigmoid colon, caecum, small bowel in its bends
    (((92.0, -30.0, 54.0), (84.0, -46.0, 16.0), (70.0, -64.0, -12.0), (46.0, -60.0, -30.0), (26.0, -40.0, -50.0)),
     12.5, -160.0),
    (((-94.0, -38.0, 54.0), (-82.0, -56.0, 14.0)), 19.0, -120.0),
    (((-60.0, -74.0, 40.0), (-30.0, -68.0, 44.0), (0.0, -76.0, 38.0), (32.0, -70.0, 45.0), (62.0, -78.0, 38.0)),
     11.0, 36.0),
    (((54.0, -76.0, 18.0), (24.0, -64.0, 10.0), (-6.0, -74.0, 6.0), (-36.0, -66.0, 12.0)), 10.5, 28.0),
    (((-34.0, -72.0, -34.0), (-8.0, -58.0, -27.0), (20.0, -74.0, -24.0)), 10.0, 33.0),
    (((-40.0, -56.0, -62.0), (-12.0, -68.0, -66.0), (16.0, -60.0, -76.0), (40.0, -70.0, -66.0)), 10.0, 30.0),
)  # fmt: skip


class Paint:
    """Hounsfield units on a coarse grid, painted one tissue over another with soft edges."""

    def __init__(self, shape: tuple[int, ...], edge_mm: float) -> None:
        self.hu = np.full(shape, FAT, dtype=np.float32)
        self.edge_mm = np.float32(edge_mm)

    def over(self, field: Grid, hu: Grid | float) -> None:
        """Paint ``hu`` where the field is negative."""
        cover = np.clip(np.float32(0.5) - field / self.edge_mm, 0.0, 1.0).astype(np.float32)
        self.hu += cover * (np.asarray(hu, dtype=np.float32) - self.hu)


def soft_tissue(
    curve: SacralCurve,
    grid: tuple[Grid, Grid, Grid],
    skin_depth: Grid,
    sacrum: Grid,
    wings: tuple[Grid, Grid],
    noise: tuple[Grid, Grid],
    edge_mm: float,
) -> Grid:
    """Return HU (k, j, i) of everything soft inside the skin but canal, nerves, vessels and rectum.

    Parameters
    ----------
    grid : open model coordinates x (1, 1, i), y (1, j, 1), z (k, 1, 1)
    skin_depth : mm under the skin
    sacrum : signed distance of the sacrum
    wings : for left and right, the distance sideways from the outer face of the wing's sheet, positive outside
    noise : two fields of unit variance, coarse and fine
    edge_mm : width over which a soft edge is blurred
    """
    x, y, z = grid
    slow, fine = noise
    paint = Paint(skin_depth.shape, edge_mm)
    meat = MUSCLE + 5.0 * slow - 70.0 * np.clip(fine - 1.7, 0.0, 1.0)
    depth = skin_depth + 1.6 * slow
    s2, v2 = curve.curved(*np.broadcast_arrays(y[:, :, 0], z[:, :, 0]))
    s, v = s2.astype(np.float32)[:, :, None], v2.astype(np.float32)[:, :, None]
    _bowel(paint, grid, slow, fine)
    for sign, sheet in zip((1.0, -1.0), wings, strict=True):
        _gluteal(paint, sign * x, y, z, sheet + 1.2 * slow, depth, meat)
        _pelvic_wall(paint, curve, sign * x, y, z, sheet + 1.0 * slow, meat)
    _back(paint, x, z, s, v, sacrum, depth, meat, slow)
    return paint.hu


def _gluteal(paint: Paint, x: Grid, y: Grid, z: Grid, sheet: Grid, depth: Grid, meat: Grid) -> None:
    """Minimus, medius and maximus of one side, from the bone outward, fat planes between."""
    fat = 15.0 + 0.07 * np.maximum(y, 0.0) - 0.03 * z
    half = np.maximum(x, 0.0)
    crest = z - 30.0 + 0.004 * (y + 8.0) ** 2
    upper = -4.0 - 0.42 * np.maximum(half - 46.0, 0.0)
    maximus = _all(
        fat - depth,
        depth - fat - 34.0,
        z - upper,
        (26.0 + 0.16 * np.minimum(z + 60.0, 0.0)) - half,
        -22.0 - y,
        np.minimum(2.0 - sheet, z + 44.0),
    )
    lateral_reach = np.maximum(52.0 + 0.35 * np.minimum(z + 20.0, 0.0), 30.0)
    medius = _all(
        14.5 - sheet, sheet - lateral_reach, crest, fat + 1.0 - depth, -56.0 - y, y - 46.0, -106.0 - z, 2.2 - maximus
    )
    minimus = _all(0.8 - sheet, sheet - 12.8, crest + 24.0, -52.0 - y, y - 22.0, -96.0 - z, 2.0 - maximus)
    rear_medius = _all(0.8 - sheet, sheet - 14.5, crest, 24.0 - y, y - 50.0, -48.0 - z, 2.2 - maximus, fat - depth)
    tensor = ball(x, y, z, (118.0, -56.0, -80.0), (14.0, 22.0, 60.0))
    obliques = _all(fat - depth, depth - fat - 21.0, y - 26.0, 14.0 - z, 74.0 - half)
    for muscle in (minimus, medius, rear_medius, _all(tensor, fat - depth), maximus, obliques):
        paint.over(muscle, meat)
    for layer in (7.0, 14.0):
        paint.over(_all(np.abs(depth - fat - layer) - 0.5, obliques + 1.0, corner_mm=0.5), -50.0)


def _pelvic_wall(paint: Paint, curve: SacralCurve, x: Grid, y: Grid, z: Grid, sheet: Grid, meat: Grid) -> None:
    """Psoas, iliacus, piriformis, obturator internus and quadratus lumborum of one side."""
    inner = -sheet  # grows inward from the outer face; the bone itself is painted over later
    iliacus = _all(
        inner - 22.0 - 0.10 * np.maximum(-y, 0.0), -inner, y - 6.0, z - 24.0, -78.0 - y, -0.55 * (y + 40.0) - 62.0 - z
    )
    obturator = _all(inner - 24.0, 8.0 - inner, z + 76.0, -46.0 - y, y - 24.0)
    psoas = _chain(x, y, z, PSOAS, PSOAS_RADII)
    start = [tuple(float(c) for c in p) for p in curve.model(PIRIFORMIS)]
    piriformis = _chain(x, y, z, (*start, (84.0, 22.0, -80.0), (122.0, 8.0, -98.0)), (8.5, 10.0, 9.0, 5.0))
    quadratus = rod(x, y, z, (66.0, 26.0, 60.0), (76.0, 22.0, 30.0), 15.0, 8.0)
    for muscle in (iliacus, obturator, piriformis, quadratus, psoas):
        paint.over(muscle, meat)


def _back(paint: Paint, x: Grid, z: Grid, s: Grid, v: Grid, sacrum: Grid, depth: Grid, meat: Grid, slow: Grid) -> None:
    """Multifidus and erector spinae between the crest and the wings, split by the midline and by one fat plane."""
    side = np.abs(x)
    reach = np.clip(36.0 + 0.30 * z, 9.0, 56.0)
    fat = 15.0 - 0.02 * z
    thick = np.clip(30.0 + 0.26 * z, 3.0, 90.0)
    erector = _all(side - reach + 1.5 * slow, 2.0 - side, 0.6 - sacrum, sacrum - thick, fat - depth, 6.0 - v, s - 82.0)
    plane = np.abs(side - 21.0 - 0.12 * (v - 30.0)) - 0.7
    paint.over(erector, meat)
    paint.over(_all(plane, erector, 14.0 - v, corner_mm=0.5), -60.0)


def _bowel(paint: Paint, grid: tuple[Grid, Grid, Grid], slow: Grid, fine: Grid) -> None:
    """Loops with walls, gas and fluid in front, the bladder below, strands in the mesentery."""
    x, y, z = grid
    strands = np.maximum(y + 24.0, 0.55 - fine)
    paint.over(strands, -84.0)
    for points, radius, hu in BOWEL_TUBES:
        tube = _chain(x, y, z, points, (radius,) * len(points)) + 1.6 * slow
        paint.over(tube, 50.0)
        paint.over(tube + 2.2, hu + 7.0 * slow - (380.0 if hu < 0.0 else 0.0) * np.clip(fine, 0.0, 1.0))
    for center, axes, hu in BOWEL_LOOPS:
        loop = ball(x, y, z, center, axes) + 2.5 * slow
        paint.over(loop, 48.0)
        paint.over(loop + 2.4, hu + 6.0 * slow + (40.0 * np.clip(fine, -1.0, 1.0) if hu > -100.0 else 0.0))
    paint.over(ball(x, y, z, (2.0, -64.0, -118.0), (40.0, 30.0, 27.0)), 38.0)
    paint.over(ball(x, y, z, (2.0, -64.0, -118.0), (37.0, 27.0, 24.0)), 6.0)


def _all(*fields: Grid, corner_mm: float = 9.0) -> Grid:
    """The common part of several regions, its corners rounded: no muscle has an edge."""
    result = fields[0]
    for field in fields[1:]:
        result = smooth_max(result, field, corner_mm)
    return result


def _chain(x: Grid, y: Grid, z: Grid, points: tuple[tuple[float, ...], ...], radii: tuple[float, ...]) -> Grid:
    rods = [rod(x, y, z, points[i], points[i + 1], radii[i], radii[i + 1]) for i in range(len(points) - 1)]
    result: Grid = np.minimum.reduce(rods)
    return result
