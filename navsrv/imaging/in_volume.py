"""Owns a needle in a CT or CBCT volume: metal, thin and straight; its axis slice by slice, its tip where it ends.

Metal is what exceeds a threshold by far; of its connected parts those that are thin and long are needles, parts in one
line are one needle.  The axis is refined by the middle of the metal in slices across it, the tip by half the height of
the profile along it, less what the metal blooms by, which its sides tell.  Refuses two needles unless told where to
look, two that touch, a bent one, and which end is the tip where both lie in the volume and nobody says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, gaussian_filter1d, label, map_coordinates
from scipy.stats import ncx2, norm

from navsrv.imaging.found import TIP_SHAPE, FoundNeedle, NeedleError, Why
from navsrv.kernel.frames import Array, skew

METAL_HU: Final = 2200.0
"""Above dense cortical bone; steel is far above it in every scanner, whatever it makes of HU."""
MIN_LENGTH_MM: Final = 15.0
THICK: Final = 2.2
"""Blooming makes a needle up to so much thicker than it is."""
SAME_LINE_MM: Final = 3.0
SAME_LINE_COS: Final = 0.985
RIVAL: Final = 0.5
"""A second needle of so much of the length of the first makes the volume ambiguous."""
FEW_NEEDLES: Final = 3.0
MOST_VOXELS: Final = 2_000_000
"""More metal than this is no needle: a threshold below the tissue, or an implant."""
FLOOR_VOXELS: Final = 0.1
END_VOXELS: Final = 0.3
BLURS_MM: Final = np.linspace(0.2, 2.0, 37)
"""One sigma of a scanner's point spread, at least and at most."""
MOST_BLOOM: Final = 1.8
"""In sigma: beyond, the metal is too bright for its sides to tell how bright."""
MAX_BOW_MM: Final = 0.7
NEAR_MM: Final = 15.0
"""A tip farther from the point that was pointed at is another's."""
EDGE_VOXELS: Final = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A thin straight piece of metal: a line in mm, and how far it goes along it."""

    middle: Array
    axis: Array
    low: float
    high: float

    @property
    def length(self) -> float:
        return self.high - self.low


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
    pieces, tangled = _parts(np.asarray(voxels), matrix, diameter_mm + 2.0 * spacing, metal_hu)
    parts = _joined(pieces)
    if tangled and (not parts or near_mm is None):
        text = "metal that is no single straight needle: two that touch or cross, a bent one, or an implant"
        places = " and ".join("({:.0f}, {:.0f}, {:.0f})".format(*middle) for middle in tangled)
        raise NeedleError(Why.TOUCHING, f"{text}, about {places} mm of the volume")
    if not parts:
        raise NeedleError(Why.NO_NEEDLE, f"no thin straight metal of {MIN_LENGTH_MM:g} mm or more in the volume")
    part = _chosen(parts, near_mm)
    sampler = _Sampler(np.asarray(voxels), np.asarray(np.linalg.inv(matrix), dtype=np.float64))
    middle, axis, cross, rms, bow = _axis(sampler, part, diameter_mm, spacing)
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
    _check_clear(sampler, tip, axis, diameter_mm, spacing, metal_hu)
    if near_mm is not None and float(np.linalg.norm(tip - near_mm)) > NEAR_MM:
        off = float(np.linalg.norm(tip - near_mm))
        text = f"no needle's tip within {NEAR_MM:g} mm of the point; the next is {off:.0f} mm off"
        raise NeedleError(Why.NO_NEEDLE, text)
    covariance = _covariance(axis, ahead, half, cross, bow, spacing, end_sigma)
    length = ends[0][0] + ends[1][0]
    text = f"volume of {spacing:.2f} mm voxels, {length:.0f} mm of the shaft, slices off by {rms:.2f} mm rms"
    return FoundNeedle(tip, axis, covariance, rms, length, text)


def _parts(
    voxels: NDArray[np.generic], matrix: Array, diameter_mm: float, metal_hu: float
) -> tuple[list[_Part], list[Array]]:
    """Return the thin and long pieces of metal, the longest first, and the middles of long ones that are not thin."""
    metal: NDArray[np.bool_] = np.greater(voxels, metal_hu)
    count = int(np.count_nonzero(metal))
    if count == 0 or count > min(MOST_VOXELS, metal.size // 20):
        return [], []
    box = tuple(
        slice(int(hit[0]), int(hit[-1]) + 1)
        for hit in (np.flatnonzero(metal.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3))
    )
    first = np.array([s.start for s in box])
    labels, _ = label(metal[box], structure=np.ones((3, 3, 3), dtype=bool))
    found, tangled = [], []
    for n, place in enumerate(find_objects(labels), start=1):
        kji = np.argwhere(labels[place] == n) + [s.start for s in place] + first
        if len(kji) < 8:
            continue
        points = kji[:, ::-1] @ matrix[:3, :3].T + matrix[:3, 3]
        part = _thin(points, diameter_mm)
        if part is not None:
            found.append(part)
        elif _is_tangled(points, len(kji) * float(np.abs(np.linalg.det(matrix[:3, :3]))), diameter_mm):
            tangled.append(points.mean(axis=0))
    return sorted(found, key=lambda part: -part.length), tangled


def _is_tangled(points: Array, volume_mm3: float, diameter_mm: float) -> bool:
    """Say whether metal is as long as a needle, and of a few needles' volume: no implant is so thin."""
    reach = float(np.linalg.norm(np.ptp(points, axis=0)))
    return reach >= MIN_LENGTH_MM and volume_mm3 <= FEW_NEEDLES * reach * diameter_mm**2


def _thin(points: Array, diameter_mm: float) -> _Part | None:
    """Return the line of a cloud of points that is thin and straight, else None."""
    middle = points.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((points - middle).T))
    axis = vectors[:, 2]
    if float(np.sqrt(max(values[1], 0.0))) > 0.25 * THICK * diameter_mm:
        return None
    along = (points - middle) @ axis
    low, high = (float(q) for q in np.quantile(along, (0.005, 0.995)))
    return _Part(middle, axis, low, high) if high - low >= 2.0 * diameter_mm else None


def _joined(parts: list[_Part]) -> list[_Part]:
    """Return needles: pieces in one line are one, as where bone or a streak interrupts it; short ones are left out."""
    needles: list[_Part] = []
    for part in parts:
        for n, needle in enumerate(needles):
            offset = part.middle - needle.middle
            beside = float(np.linalg.norm(offset - (offset @ needle.axis) * needle.axis))
            at = float(offset @ needle.axis)
            overlap = min(needle.high, at + 0.5 * part.length) - max(needle.low, at - 0.5 * part.length)
            if overlap > 0.3 * part.length:
                continue  # Side by side they are two.
            reach = 1.0 + abs(float(offset @ needle.axis)) / max(needle.length, 1.0)
            if abs(float(part.axis @ needle.axis)) > SAME_LINE_COS and beside < SAME_LINE_MM * min(reach, 2.0):
                low, high = min(needle.low, at - 0.5 * part.length), max(needle.high, at + 0.5 * part.length)
                needles[n] = _Part(needle.middle, needle.axis, low, high)
                break
        else:
            needles.append(part)
    centred = [
        _Part(n.middle + 0.5 * (n.low + n.high) * n.axis, n.axis, -0.5 * n.length, 0.5 * n.length) for n in needles
    ]
    return sorted((n for n in centred if n.length >= MIN_LENGTH_MM), key=lambda part: -part.length)


def _chosen(needles: list[_Part], near_mm: Array | None) -> _Part:
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
    sampler: _Sampler, part: _Part, diameter_mm: float, spacing: float
) -> tuple[Array, Array, Array, float, float]:
    """Return (middle, axis, covariance (2, 2) of offset and slope per axis across, rms, bow), millimetres."""
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
    rms, covariance, bow = 0.0, np.zeros((2, 2)), 0.0
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
        middle = middle + basis @ line[0]
        axis = axis + basis @ line[1]
        axis = axis / np.linalg.norm(axis)
    return middle, axis, covariance, rms, bow


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
    sampler: _Sampler, tip: Array, axis: Array, diameter_mm: float, spacing: float, metal_hu: float
) -> None:
    """Refuse a tip that other metal reaches: a cap ahead of it and to its sides must be free of it."""
    basis = np.linalg.svd(skew(axis))[0][:, :2]
    turn, lean = np.meshgrid(np.arange(24) * np.pi / 12, np.radians(np.arange(0.0, 71.0, 10.0)))
    ways = np.cos(lean)[..., None] * axis + np.sin(lean)[..., None] * (
        np.cos(turn)[..., None] * basis[:, 0] + np.sin(turn)[..., None] * basis[:, 1]
    )
    first = 1.5 * diameter_mm + 1.5 * spacing
    hit = sum(
        bool((sampler.values(tip + reach * ways) > metal_hu).any())
        for reach in (first, first + 0.5 * diameter_mm, first + diameter_mm)
    )
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
