"""Owns the finding worker: needles in images, in a process of its own, so that nothing live waits for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from navsrv.imaging.found import FoundNeedle, NeedleError
from navsrv.imaging.in_volume import find_in_volume
from navsrv.imaging.shadow import Radiograph
from navsrv.imaging.two_views import ViewDoubt, find_in_views
from navsrv.kernel.frames import Array
from navsrv.server.projections import TakenXray


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """What to look for: the shaft's diameter, about where it points and a point near its tip, in the reference."""

    diameter_mm: float
    heading: Array | None
    near_mm: Array | None
    doubt: ViewDoubt


@dataclass(frozen=True, slots=True, eq=False)
class TakenVolume:
    """A volume with its place in the reference's frame: index (i, j, k, 1) to millimetres.

    ``turn_rad``, ``shift_mm``: one sigma of its place about its middle, by the poses it was placed by.
    """

    source: str
    voxels: NDArray[np.generic]
    index_to_ref_mm: Array
    time_ns: int
    taken_ns: int
    turn_rad: float
    shift_mm: float


@dataclass(frozen=True, slots=True)
class Untold:
    """The images do not tell: why, for programs and for the operator."""

    why: str
    text: str


def find_needle(images: tuple[TakenXray, TakenXray] | TakenVolume, search: Search) -> FoundNeedle | Untold:
    """Return the needle that a pair of X-rays or a volume shows, in the reference's frame, or why they do not."""
    try:
        if isinstance(images, TakenVolume):
            found = find_in_volume(
                images.voxels, images.index_to_ref_mm, search.diameter_mm, search.heading, search.near_mm
            )
            return moved_by(found, search.doubt)
        radiographs = [Radiograph(x.pixels, x.view, x.bright_air) for x in images]
        return find_in_views(radiographs, search.diameter_mm, search.doubt, search.heading, search.near_mm)
    except NeedleError as reason:
        return Untold(reason.why.value, str(reason))


def moved_by(found: FoundNeedle, doubt: ViewDoubt) -> FoundNeedle:
    """Return a needle with the doubt of the whole image's place added: of a turn about the tip, and of a shift."""
    covariance = np.array(found.covariance)
    covariance[:3, :3] += doubt.translation_mm**2 * np.eye(3)
    covariance[3:, 3:] += doubt.rotation_rad**2 * (np.eye(3) - np.outer(found.axis, found.axis))
    return FoundNeedle(found.tip_mm, found.axis, covariance, found.residual_mm, found.length_mm, found.text)
