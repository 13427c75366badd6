"""Owns the thin straight pieces of metal in a volume, and which are one needle.  Refuses to say where one ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, label

from navsrv.kernel.frames import Array

MIN_LENGTH_MM: Final = 15.0
THICK: Final = 2.2
"""Blooming makes a needle up to so much thicker than it is."""
SAME_LINE_MM: Final = 3.0
SAME_LINE_COS: Final = 0.985
FEW_NEEDLES: Final = 3.0
MOST_VOXELS: Final = 2_000_000
"""More metal than this is no needle: a threshold below the tissue, or an implant."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A thin straight piece of metal: a line in mm, and how far it goes along it."""

    middle: Array
    axis: Array
    low: float
    high: float

    @property
    def length(self) -> float:
        return self.high - self.low


def pieces_of_metal(
    voxels: NDArray[np.generic], matrix: Array, diameter_mm: float, metal_hu: float
) -> tuple[list[Part], list[Array]]:
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


def _thin(points: Array, diameter_mm: float) -> Part | None:
    """Return the line of a cloud of points that is thin and straight, else None."""
    middle = points.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((points - middle).T))
    axis = vectors[:, 2]
    if float(np.sqrt(max(values[1], 0.0))) > 0.25 * THICK * diameter_mm:
        return None
    along = (points - middle) @ axis
    low, high = (float(q) for q in np.quantile(along, (0.005, 0.995)))
    return Part(middle, axis, low, high) if high - low >= 2.0 * diameter_mm else None


def joined(parts: list[Part]) -> list[Part]:
    """Return needles: pieces in one line are one, as where bone or a streak interrupts it; short ones are left out."""
    needles: list[Part] = []
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
                needles[n] = Part(needle.middle, needle.axis, low, high)
                break
        else:
            needles.append(part)
    centred = [
        Part(n.middle + 0.5 * (n.low + n.high) * n.axis, n.axis, -0.5 * n.length, 0.5 * n.length) for n in needles
    ]
    return sorted((n for n in centred if n.length >= MIN_LENGTH_MM), key=lambda part: -part.length)
