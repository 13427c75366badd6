"""Owns a needle in a CT or CBCT volume: metal, thin and straight; its axis slice by slice, its tip where it ends.

Metal is what exceeds a threshold by far; of its connected parts those that are thin and long are needles, parts in one
line are one needle.  The axis is refined by the middle of the metal in slices across it, the tip by half the height of
the profile along it, less what the metal blooms by, which its sides tell.  Refuses two needles unless told where to
look, two that touch, a bent one, and which end is the tip where both lie in the volume and nobody says.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, map_coordinates
from scipy.stats import ncx2, norm

from navsrv.imaging.found import TIP_SHAPE, FoundNeedle, NeedleError, Why
from navsrv.imaging.metal import MIN_LENGTH_MM, Part, joined, pieces_of_metal
from navsrv.kernel.frames import Array, skew

METAL_HU: Final = 2200.0
"""Above dense cortical bone; steel is far above it in every scanner, whatever it makes of HU."""
RIVAL: Final = 0.5
"""A second needle of so much of the length of the first makes the volume ambiguous."""
FLOOR_VOXELS: Final = 0.1
END_VOXELS: Final = 0.3
BLURS_MM: Final = np.linspace(0.2, 2.0, 37)
"""One sigma of a scanner's point spread, at least and at most."""
MOST_BLOOM: Final = 1.8
"""In sigma: beyond, the metal is too bright for its sides to tell how bright."""
MAX_BOW_MM: Final = 0.7
MAX_ASIDE_MM: Final = 0.6
MAX_FLAT: Final = 1.4
STREAK_COS: Final = 0.6
"""Metal that is wide within a slice may be so by streaks; across slices, it is not."""
NEAR_MM: Final = 10.0
"""A tip farther from the point that was pointed at is another's."""
EDGE_VOXELS: Final = 1.5


def find_in_volume(
    voxels: NDArray[np.generic],
    index_to_mm: Array,
    diameter_mm: float,
    heading: Array | None = None,
    near_mm: Array | None = None,
    metal_hu: float = METAL_HU,
) -> FoundNeedle:
    """Return the needle that a volume shows.

    Parameters
    ----------
    voxels : (k, j, i)
        HU, or about.
    index_to_mm : (4, 4)
        Maps (i, j, k, 1) of a voxel's centre to millimetres in the frame of the result.
    diameter_mm : float
        Outer diameter of the shaft.
    heading, near_mm : (3,) or None
        As for ``two_views.find_in_views``.

    Raises
    ------
    NeedleError
        No needle, several, or both ends in the volume and no heading.
    """
    matrix = np.asarray(index_to_mm, dtype=np.float64)
    spacing = float(np.abs(np.linalg.det(matrix[:3, :3])) ** (1.0 / 3.0))
    pieces, tangled = pieces_of_metal(np.asarray(voxels), matrix, diameter_mm + 2.0 * spacing, metal_hu)
    parts = joined(pieces)
    if tangled and (not parts or near_mm is None):
        text = "metal that is no single straight needle: two that touch or cross, a bent one, or an implant"
        places = " and ".join("({:.0f}, {:.0f}, {:.0f})".format(*middle) for middle in tangled)
        raise NeedleError(Why.TOUCHING, f"{text}, about {places} mm of the volume")
    if not parts:
        raise NeedleError(Why.NO_NEEDLE, f"no thin straight metal of {MIN_LENGTH_MM:g} mm or more in the volume")
    part = _chosen(parts, near_mm)
    sampler = _Sampler(np.asarray(voxels), np.asarray(np.linalg.inv(matrix), dtype=np.float64))
    middle, axis, cross, rms, bow, wide = _axis(sampler, part, diameter_mm, spacing)
    flat = float(np.linalg.norm(wide))
    if flat > MAX_FLAT and abs(float(wide @ sampler.stack)) > STREAK_COS * flat:
        text = f"the metal in the volume is {flat:.1f} times as wide one way as the other: two needles that touch"
        raise NeedleError(Why.TOUCHING, text)
    if bow > MAX_BOW_MM:
        text = f"the needle in the volume is bent by {bow:.1f} mm (or two touch): at most {MAX_BOW_MM:g} mm tell"
        raise NeedleError(Why.BENT, f"{text} where it points")
    half = 0.5 * part.length
    blur = _blur_mm(sampler, middle, axis, half, diameter_mm, spacing)
    ends = [_end(sampler, middle, way * axis, half, diameter_mm, spacing, blur) for way in (-1.0, 1.0)]
    way = _tipwards(ends, middle, axis, heading, near_mm)
    ahead, end_sigma, _ = ends[0 if way < 0 else 1]
    axis = way * axis
    tip = middle + ahead * axis
    aside = _aside_mm(sampler, tip, axis, diameter_mm, spacing)
    if aside > MAX_ASIDE_MM:
        text = (
            f"the metal near the tip lies {aside:.1f} mm beside the rest of the needle: two that touch, or it is bent"
        )
        raise NeedleError(Why.TOUCHING, text)
    others = [other for other in parts if other is not part]
    _check_clear(sampler, tip, axis, diameter_mm, spacing, metal_hu, others)
    if near_mm is not None and float(np.linalg.norm(tip - near_mm)) > NEAR_MM:
        off = float(np.linalg.norm(tip - near_mm))
        text = f"no needle's tip within {NEAR_MM:g} mm of the point; the next is {off:.0f} mm off"
        raise NeedleError(Why.NO_NEEDLE, text)
    covariance = _covariance(axis, ahead, half, cross, bow, spacing, end_sigma)
    if flat > MAX_FLAT:
        # Streaks, or a second needle within a slice: that would lie so far off, as two sigma.
        covariance[:3, :3] += (diameter_mm / 8.0) ** 2 * (1.0 - flat**-2) * np.outer(wide, wide)
    length = ends[0][0] + ends[1][0]
    text = f"volume of {spacing:.2f} mm voxels, {length:.0f} mm of the shaft, slices off by {rms:.2f} mm rms"
    return FoundNeedle(tip, axis, covariance, rms, length, text)


def _chosen(needles: list[Part], near_mm: Array | None) -> Part:
    if near_mm is not None:
        return min(
            needles,
            key=lambda n: min(float(np.linalg.norm(n.middle + at * n.axis - near_mm)) for at in (n.low, n.high)),
        )
    rivals = [n for n in needles[1:] if n.length > RIVAL * needles[0].length]
    if rivals:
        places = " and ".join("({:.0f}, {:.0f}, {:.0f})".format(*n.middle) for n in (needles[0], *rivals))
        raise NeedleError(Why.SEVERAL, f"{len(rivals) + 1} needles, about {places} mm of the volume: say which one")
    return needles[0]


class _Sampler:
    """Values of the volume at points in mm, and whether they lie in it."""

    def __init__(self, voxels: NDArray[np.generic], mm_to_index: Array) -> None:
        self._voxels, self._matrix = voxels, mm_to_index
        self._most = np.array(voxels.shape[::-1]) - 1.0
        way = np.linalg.inv(mm_to_index[:3, :3])[:, 2]
        self.stack: Array = way / np.linalg.norm(way)

    def values(self, points_mm: Array) -> Array:
        """Return values (...) at points (..., 3), linearly interpolated; the nearest outside."""
        ijk = self.index(points_mm)
        kji = np.moveaxis(ijk[..., ::-1], -1, 0)
        found: Array = map_coordinates(self._voxels, kji, np.float64, order=1, mode="nearest")
        return found

    def inside(self, points_mm: Array) -> NDArray[np.bool_]:
        """Say which points (..., 3) lie in the volume, clear of its edge."""
        ijk = self.index(points_mm)
        clear = (ijk > EDGE_VOXELS) & (ijk < self._most - EDGE_VOXELS)
        return np.asarray(clear.all(axis=-1))

    def index(self, points_mm: Array) -> Array:
        """Return (i, j, k) of points (..., 3)."""
        result: Array = points_mm @ self._matrix[:3, :3].T + self._matrix[:3, 3]
        return result


def _axis(
    sampler: _Sampler, part: Part, diameter_mm: float, spacing: float
) -> tuple[Array, Array, Array, float, float, Array]:
    """Return (middle, axis, covariance (2, 2) of offset and slope per axis across, rms, bow, widest), millimetres.

    Widest: see ``_widest``.
    """
    middle, axis = part.middle, part.axis
    reach = 1.2 * diameter_mm + 1.5 * spacing
    grid = np.arange(-reach, reach + 0.5 * spacing, 0.5 * spacing)
    u, v = np.meshgrid(grid, grid)
    disc = u**2 + v**2 <= reach**2
    u, v = u[disc], v[disc]
    rim = u**2 + v**2 > (0.8 * reach) ** 2
    stations = np.arange(part.low + diameter_mm, part.high - diameter_mm, max(spacing, 0.5))
    if len(stations) < 4:
        stations = np.linspace(part.low, part.high, 4)
    rms, covariance, bow, wide = 0.0, np.zeros((2, 2)), 0.0, np.zeros(3)
    for _ in range(3):
        basis = np.linalg.svd(skew(axis))[0][:, :2]
        points = middle + stations[:, None, None] * axis + (u[:, None] * basis[:, 0] + v[:, None] * basis[:, 1])
        values = sampler.values(points)
        above = np.maximum(values - np.median(values[:, rim], axis=1)[:, None], 0.0)
        above = np.where(above > 0.35 * above.max(axis=1)[:, None], above, 0.0)
        mass = above.sum(axis=1)
        offsets = np.column_stack([above @ u, above @ v]) / np.maximum(mass, 1e-9)[:, None]
        good = (mass > 0.3 * np.median(mass)) & sampler.inside(middle + stations[:, None] * axis)
        if good.sum() > 4:
            bend = np.polyfit(stations[good], offsets[good], 2)[0]
            bow = float(np.hypot(*bend)) * (0.5 * float(np.ptp(stations[good]))) ** 2
        for _ in range(3):
            if good.sum() < 4:
                raise NeedleError(Why.NO_NEEDLE, "the metal in the volume is not straight enough for a needle")
            design = np.column_stack([np.ones(int(good.sum())), stations[good]])
            line = np.linalg.lstsq(design, offsets[good], rcond=None)[0]
            rest = np.hypot(*(offsets - line[0] - stations[:, None] * line[1]).T)
            good &= rest <= max(3.0 * float(np.median(rest[good])), 0.1 * spacing)
        rms = float(np.sqrt((rest[good] ** 2).mean()))
        covariance = np.linalg.inv(design.T @ design) * rms**2
        wide = _widest(above[good], np.column_stack([u, v]) @ basis.T)
        middle = middle + basis @ line[0]
        axis = axis + basis @ line[1]
        axis = axis / np.linalg.norm(axis)
    return middle, axis, covariance, rms, bow, wide


def _widest(above: Array, places: Array) -> Array:
    """Return (3,) the way in which metal (slices, points) at places (points, 3) is widest, as long as its share."""
    mass = np.maximum(above.sum(axis=1), 1e-9)[:, None]
    means = above @ places / mass
    second = np.einsum("np,pi,pj->nij", above, places, places) / mass[:, :, None] - means[:, :, None] * means[:, None]
    values, vectors = np.linalg.eigh(np.median(second, axis=0))
    widest: Array = vectors[:, 2] * np.sqrt(values[2] / max(float(values[1]), 1e-9))
    return widest


def _aside_mm(sampler: _Sampler, tip: Array, axis: Array, diameter_mm: float, spacing: float) -> float:
    """Return how far beside the line the middle of the metal lies shortly before the tip."""
    basis = np.linalg.svd(skew(axis))[0][:, :2]
    reach = 1.2 * diameter_mm + spacing
    grid = np.arange(-reach, reach + 0.5 * spacing, 0.5 * spacing)
    u, v = (a.ravel() for a in np.meshgrid(grid, grid))
    stations = np.arange(diameter_mm, 2.5 * diameter_mm, 0.5 * spacing)
    points = tip - stations[:, None, None] * axis + (u[:, None] * basis[:, 0] + v[:, None] * basis[:, 1])
    values = sampler.values(points)
    above = np.where(values > 0.5 * values.max(axis=1)[:, None], values, 0.0)
    mass = above.sum(axis=1)
    return float(np.hypot(np.median(above @ u / mass), np.median(above @ v / mass)))


def _blur_mm(
    sampler: _Sampler, middle: Array, axis: Array, half: float, diameter_mm: float, spacing: float
) -> tuple[float, float]:
    """Return one sigma of the point spread in mm, and the height of the shaft's middle above tissue before clipping.

    Scanners clip metal, so that half of the height that is left lies outside of it.  A disc of the shaft's diameter
    under a Gaussian (a noncentral chi-square's distribution) is fitted to what is not clipped around the shaft.
    """
    stations = np.arange(-half + diameter_mm, half - diameter_mm, max(spacing, 0.5))
    if len(stations) < 2:
        stations = np.array([-0.2 * half, 0.2 * half])
    basis = np.linalg.svd(skew(axis))[0][:, :2]
    radii = np.arange(0.0, 0.5 * diameter_mm + 3.0 * max(spacing, 0.6), 0.25 * spacing)
    turn = np.arange(16) * np.pi / 8
    ring = np.column_stack([np.cos(turn), np.sin(turn)]) @ basis.T
    points = middle + stations[:, None, None, None] * axis + radii[:, None, None] * ring
    values = np.median(sampler.values(points), axis=(0, 2))
    above = values - float(values[-1])
    use = above < 0.9 * float(above.max())
    use[np.argmax(use) :] = True
    best = (np.inf, float(BLURS_MM[0]), float(above.max()))
    for sigma in BLURS_MM:
        shape = ncx2.cdf((0.5 * diameter_mm / sigma) ** 2, 2, (radii / sigma) ** 2)
        height = float(shape[use] @ above[use]) / max(float(shape[use] @ shape[use]), 1e-12)
        miss = float(((above[use] - height * shape[use]) ** 2).sum())
        if miss < best[0]:
            best = (miss, float(sigma), max(height * float(shape[0]), float(above.max())))
    return best[1], best[2]


def _check_clear(
    sampler: _Sampler,
    tip: Array,
    axis: Array,
    diameter_mm: float,
    spacing: float,
    metal_hu: float,
    others: list[Part],
) -> None:
    """Refuse a tip that other metal reaches: a cap ahead of it and to its sides must be free of it, other needles but.

    Those are ``others``: had they touched, they would be no parts of their own.
    """
    basis = np.linalg.svd(skew(axis))[0][:, :2]
    turn, lean = np.meshgrid(np.arange(24) * np.pi / 12, np.radians(np.arange(0.0, 71.0, 10.0)))
    ways = np.cos(lean)[..., None] * axis + np.sin(lean)[..., None] * (
        np.cos(turn)[..., None] * basis[:, 0] + np.sin(turn)[..., None] * basis[:, 1]
    )
    first = 1.5 * diameter_mm + 1.5 * spacing
    hit = 0
    for reach in (first, first + 0.5 * diameter_mm, first + diameter_mm):
        places = tip + reach * ways
        metal = sampler.values(places) > metal_hu
        for other in others:
            offset = places - other.middle
            aside = np.linalg.norm(offset - (offset @ other.axis)[..., None] * other.axis, axis=-1)
            metal &= aside > diameter_mm + 2.0 * spacing
        hit += bool(metal.any())
    if hit >= 2:
        text = "other metal reaches the needle's tip in the volume: two needles that touch or cross, or it is bent"
        raise NeedleError(Why.TOUCHING, text)


def _end(
    sampler: _Sampler,
    middle: Array,
    heading: Array,
    half: float,
    diameter_mm: float,
    spacing: float,
    blur: tuple[float, float],
) -> tuple[float, float, bool]:
    """Return (mm from the middle to the end of the metal along ``heading``, one sigma, whether the volume shows it)."""
    step = 0.25 * spacing
    stations = np.arange(0.3 * half, half + 4.0 * diameter_mm + 10.0 * spacing, step)
    basis = np.linalg.svd(skew(heading))[0][:, :2]
    ring = np.array([[0.0, 0.0], *([np.cos(a), np.sin(a)] for a in np.arange(6) * np.pi / 3)]) * 0.3 * diameter_mm
    points = middle + stations[:, None, None] * heading + ring @ basis.T
    height = gaussian_filter1d(sampler.values(points).mean(axis=1), 0.5 * spacing / step)
    inside = sampler.inside(middle + stations[:, None] * heading)
    last = len(stations) if inside.all() else int(np.argmin(inside))
    body = stations < half - diameter_mm
    full = float(np.median(height[body])) if body.any() else float(height[0])
    beyond = height[(stations > half + 1.5 * diameter_mm) & inside]
    tissue = float(np.median(beyond)) if len(beyond) else 0.0
    level = 0.5 * (full + tissue)
    bloom = blur[0] * float(np.clip(-norm.ppf(min((level - tissue) / blur[1], 0.5)), 0.0, MOST_BLOOM))
    stay = int(diameter_mm / step)
    for n in range(1, last - stay):
        if (height[n : n + stay] < level).all():
            fall = float(height[n - 1] - height[n])
            share = float(np.clip((height[n - 1] - level) / fall, 0.0, 1.0)) if fall > 0.0 else 0.5
            sigma = float(np.hypot(np.hypot(END_VOXELS * spacing, 0.25 * bloom), TIP_SHAPE * diameter_mm))
            return float(stations[n - 1] + share * step) - bloom, sigma, True
    return float(stations[last - 1]), float("inf"), False


def _tipwards(
    ends: list[tuple[float, float, bool]], middle: Array, axis: Array, heading: Array | None, near_mm: Array | None
) -> float:
    """Return the way along the axis, -1 or 1, on which the tip is."""
    seen = [way for way, (_, _, inside) in zip((-1.0, 1.0), ends, strict=True) if inside]
    if not seen:
        raise NeedleError(Why.NO_NEEDLE, "the needle's tip is not in the volume: it runs from edge to edge")
    if len(seen) == 1:
        if near_mm is None and heading is not None and seen[0] * float(axis @ heading) <= 0.0:
            raise NeedleError(Why.NO_NEEDLE, "only the needle's hub end is in the volume, by where it should point")
        return seen[0]
    if near_mm is not None:
        places = [middle + way * ahead * axis for way, (ahead, _, _) in zip((-1.0, 1.0), ends, strict=True)]
        return min((-1.0, 1.0), key=lambda way: float(np.linalg.norm(places[0 if way < 0 else 1] - near_mm)))
    if heading is not None:
        return 1.0 if float(axis @ heading) >= 0.0 else -1.0
    text = "both ends of the needle are in the volume: which is the tip, the plan or a point near it must tell"
    raise NeedleError(Why.UNDIRECTED, text)


def _covariance(
    axis: Array, ahead: float, half: float, cross: Array, bow: float, spacing: float, end_sigma: float
) -> Array:
    """Return (6, 6) of (tip, axis): the line's over the way to the tip, and the end's along it."""
    floor = FLOOR_VOXELS * spacing
    line = cross * 2.0 + np.diag([floor**2, (floor / max(half, 1.0)) ** 2])
    line += np.diag([bow**2 / 4.0, (2.0 * bow / max(half, 1.0)) ** 2])
    reach = np.array([[1.0, ahead], [0.0, 1.0]])
    at_tip = reach @ line @ reach.T
    across = np.eye(3) - np.outer(axis, axis)
    covariance = np.zeros((6, 6))
    covariance[:3, :3] = at_tip[0, 0] * across + end_sigma**2 * np.outer(axis, axis)
    covariance[:3, 3:] = at_tip[0, 1] * across
    covariance[3:, :3] = at_tip[1, 0] * across
    covariance[3:, 3:] = at_tip[1, 1] * across
    return covariance
