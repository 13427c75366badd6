"""Owns the newest X-rays of each C-arm with their geometry in the reference's frame, and which two make a pair."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import REFERENCE, Array
from navsrv.kernel.projection import ProjectionModel
from navsrv.kernel.samples import ProjectionSample
from navsrv.server.config_tables import ImagingConfig
from navsrv.server.placing import Exposure, sigmas_at, with_calibration

KEPT: Final = 6
APART_DEG: Final = (20.0, 160.0)
"""Views nearer to parallel than this say little of depth; the finders have limits of their own."""
NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, eq=False)
class TakenXray:
    """One X-ray: pixels, its view of the reference's frame, and when it was taken (epoch and monotonic ns).

    ``covariance`` (6, 6) of its place by the poses it was placed by (left perturbation in the reference); ``turn_rad``
    and ``shift_mm``: the same about what it looks at, one sigma each.
    """

    source: str
    pixels: NDArray[np.generic]
    view: ProjectionModel
    bright_air: bool
    time_ns: int
    taken_ns: int
    covariance: Array
    turn_rad: float
    shift_mm: float


def taken_xray(exposure: Exposure, taken_ns: int) -> TakenXray:
    """Return an exposure with its view of the reference's frame.

    Raises
    ------
    InputError
        The detector's place is not known, or is none that a detector can have.
    """
    image = exposure.image
    assert isinstance(image, ProjectionSample)
    if exposure.detector is None:
        raise InputError(
            f"{exposure.source}: the place of the detector is not known (imaging.{exposure.source}.detector)"
        )
    T_ref_from_carm = exposure.T_ref_from_image
    T_carm_from_index = exposure.detector @ image.index_to_image_mm
    # A ray of pixel (c, r): M (c, r, 1) in the C-arm's frame, so that the projection is M^-1 (R | t).
    rays = T_carm_from_index[:3][:, [0, 1, 3]]
    if abs(float(np.linalg.det(rays))) < 1e-9:
        raise InputError(f"{exposure.source}: the detector's plane passes through the X-ray source")
    rows, columns = image.pixels.shape
    middle = 0.5 * (rays @ [0.5 * (columns - 1), 0.5 * (rows - 1), 1.0])
    seen = (T_ref_from_carm @ [*middle, 1.0])[:3]
    matrix = np.linalg.inv(rays) @ np.linalg.inv(T_ref_from_carm)[:3]
    view = ProjectionModel.from_matrix(matrix, (columns, rows), REFERENCE, seen)
    stamp = image.device_time_ns
    assert stamp is not None  # an exposure without a time is not used
    doubt = sigmas_at(exposure.covariance, seen)
    bright = exposure.config.bright_air
    return TakenXray(exposure.source, image.pixels, view, bright, stamp, taken_ns, exposure.covariance, *doubt)


class XrayShelf:
    """The newest X-rays of each source."""

    def __init__(self, pair_s: float) -> None:
        self._pair_ns = int(pair_s * NS)
        self._of: dict[str, deque[TakenXray]] = {}

    def put(self, xray: TakenXray) -> None:
        """Keep an X-ray; the oldest of its source goes."""
        self._of.setdefault(xray.source, deque(maxlen=KEPT)).append(xray)

    @property
    def sources(self) -> list[str]:
        """Sources that X-rays came from."""
        return list(self._of)

    def pair(self, source: str) -> tuple[TakenXray, TakenXray] | None:
        """Return the newest X-ray of a source with the newest other one that looks from elsewhere; None without one."""
        newest, *others = reversed(self._of.get(source, deque())) if self._of.get(source) else (None,)
        if newest is None:
            return None
        for other in others:
            near = newest.time_ns - other.time_ns <= self._pair_ns
            if near and APART_DEG[0] <= _apart_deg(other.view, newest.view) <= APART_DEG[1]:
                return other, newest
        return None


def looked_at(a: ProjectionModel, b: ProjectionModel) -> Array:
    """Return the point (3,) of the reference's frame nearest to both views' middle rays."""
    rays = [_middle_ray(view) for view in (a, b)]
    across = [np.eye(3) - np.outer(r, r) / (r @ r) for r in rays]
    right = across[0] @ a.source_mm + across[1] @ b.source_mm
    return np.asarray(np.linalg.lstsq(across[0] + across[1], right, rcond=None)[0], dtype=np.float64)


def pair_covariance(pair: tuple[TakenXray, TakenXray], imaging: ImagingConfig) -> Array:
    """Return (6, 6) of where two X-rays are said to be: the worse one's poses, and their device's calibration."""
    worse = max(pair, key=lambda xray: xray.shift_mm)
    return with_calibration(worse.covariance, imaging, looked_at(pair[0].view, pair[1].view))


def _middle_ray(view: ProjectionModel) -> Array:
    ray: Array = view.directions @ [0.5 * (view.columns - 1), 0.5 * (view.rows - 1), 1.0]
    return ray


def _apart_deg(a: ProjectionModel, b: ProjectionModel) -> float:
    """Return the angle between two views' middle rays."""
    u, v = _middle_ray(a), _middle_ray(b)
    return float(np.degrees(np.arccos(np.clip(u @ v / (np.linalg.norm(u) * np.linalg.norm(v)), -1.0, 1.0))))
