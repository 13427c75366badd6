"""Owns the picture by which the operator judges a volume registration.  Refuses to judge.

Three slices through the target, seen as radiologists see them, in three rows: the volume where it would lie without
registration, the volume where registration puts it, both with the bone edges of the CT drawn on top; and a
checkerboard of CT and volume, in which edges of bone must run on from field to field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from navsrv.kernel.frames import CT, VOLUME, Array, Rigid
from navsrv.registration.cbct import VolumeLike
from navsrv.registration.images import CtImage, Voxels, reconstructed_region

FIELD_MM: Final = 160.0
PIXEL_MM: Final = 0.4
CHECKER_MM: Final = 20.0
EDGE_HU: Final = 220.0
WINDOW_HU: Final = (-200.0, 900.0)
_YELLOW: Final = (40, 220, 255)
_WHITE: Final = (235, 235, 235)
_CYAN: Final = (255, 220, 80)
_BAR: Final = 26


@dataclass(frozen=True, slots=True)
class _View:
    """One plane through the target: which LPS axis runs right, which runs down, and the letters at its edges."""

    name: str
    right: int
    down: int
    down_sign: float
    letters: tuple[str, str, str, str]
    """Left, right, top, bottom."""


_VIEWS: Final = (
    _View("axial", 0, 1, 1.0, ("R", "L", "A", "P")),
    _View("coronal", 0, 2, -1.0, ("R", "L", "H", "F")),
    _View("sagittal", 1, 2, -1.0, ("A", "P", "H", "F")),
)


def overlay_png(
    ct: CtImage, volume: VolumeLike, transform: Rigid, target_ct_mm: ArrayLike, before: Rigid | None = None
) -> bytes:
    """Return a PNG with the volume on the CT through the target, before and after registration.

    Parameters
    ----------
    ct, volume
        As given to ``register_cbct``.
    transform : Rigid
        ``T_ct_from_volume``.
    target_ct_mm : (3,)
        Where the three slices meet.
    before : Rigid or None
        The pose of the upper row; None puts the middle of the volume on the middle of the CT, axes parallel.
    """
    import cv2

    target = np.asarray(target_ct_mm, dtype=np.float64)
    voxels = np.asarray(volume.voxels)
    inside = reconstructed_region(voxels)
    place = np.asarray(volume.index_to_volume_mm, dtype=np.float64)
    start = before if before is not None else _centred(ct, voxels, place)
    planes = [_plane(view, target) for view in _VIEWS]
    to_ct = _inverse(np.asarray(ct.index_to_ct_mm, dtype=np.float64))
    ct_slices = [_slice(np.asarray(ct.voxels), to_ct, plane, -1000.0) for plane in planes]
    rows: list[NDArray[np.uint8]] = []
    scale: tuple[float, float] | None = None
    for pose, title in ((transform, "after"), (start, "before")):
        to_index = _inverse(pose.matrix @ place)
        slices = [_slice(voxels, to_index, plane, np.nan) for plane in planes]
        masks = [_slice(inside.view(np.uint8), to_index, plane, 0.0) > 0.5 for plane in planes]
        scale = _hounsfield_scale(ct_slices, slices, masks) if scale is None else scale
        shown = [np.where(m, s * scale[0] + scale[1], np.nan) for s, m in zip(slices, masks, strict=True)]
        if title == "after":
            rows.append(_row([_checker(c, s) for c, s in zip(ct_slices, shown, strict=True)], None,
                             "AFTER registration: checkerboard of CT and volume; edges must run on"))  # fmt: skip
        rows.append(
            _row(shown, ct_slices, f"{title.upper()} registration: volume in grey, bone edge of the CT in yellow")
        )
    picture = np.concatenate(rows[::-1])
    done, png = cv2.imencode(".png", picture)
    if not done:
        raise RuntimeError("the picture could not be encoded as PNG")
    return png.tobytes()


def _inverse(matrix: Array) -> Array:
    """Return the inverse of a (4, 4) matrix."""
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def _centred(ct: CtImage, voxels: NDArray[np.generic], place: Array) -> Rigid:
    """Return the pose with the volume's middle on the CT's and parallel axes."""

    def middle(shape: tuple[int, ...], matrix: Array) -> Array:
        index = (np.array(shape[::-1], dtype=np.float64) - 1.0) / 2.0
        point: Array = matrix[:3, :3] @ index + matrix[:3, 3]
        return point

    ct_place = np.asarray(ct.index_to_ct_mm, dtype=np.float64)
    shift = middle(np.asarray(ct.voxels).shape, ct_place) - middle(voxels.shape, place)
    return Rigid(CT, VOLUME, np.eye(3), shift)


def _plane(view: _View, target: Array) -> Array:
    """Return the points (rows, columns, 3) of a view in CT mm."""
    half = FIELD_MM / 2.0
    across = np.arange(-half, half, PIXEL_MM) + PIXEL_MM / 2.0
    points = np.broadcast_to(target, (len(across), len(across), 3)).copy()
    points[:, :, view.right] += across[None, :]
    points[:, :, view.down] += view.down_sign * across[:, None]
    return points


def _slice(voxels: NDArray[Any], to_index: Array, points_ct_mm: Array, outside: float) -> Voxels:
    """Return values at CT points, ``to_index`` (4, 4) mapping CT mm to (i, j, k)."""
    index = points_ct_mm @ to_index[:3, :3].T + to_index[:3, 3]
    coordinates = np.moveaxis(index[..., ::-1], -1, 0)
    values: Voxels = ndimage.map_coordinates(
        voxels, coordinates, output=np.float32, order=1, mode="constant", cval=outside, prefilter=False
    )
    return values


def _hounsfield_scale(ct: list[Voxels], volume: list[Voxels], masks: list[NDArray[np.bool_]]) -> tuple[float, float]:
    """Return slope and offset that bring the volume's values to the CT's window where both are seen."""
    low, high = WINDOW_HU
    x = np.concatenate([v[m] for v, m in zip(volume, masks, strict=True)]).astype(np.float64)
    y = np.concatenate([c[m] for c, m in zip(ct, masks, strict=True)]).astype(np.float64)
    use = np.isfinite(x) & (y > low) & (y < 2.0 * high)
    if use.sum() < 100 or not np.ptp(x[use]) > 0:
        return 1.0, 0.0
    # Noise in x would flatten an ordinary fit: match the spread instead, which is what a window is.
    p = np.percentile(x[use], (5, 50, 99))
    q = np.percentile(y[use], (5, 50, 99))
    slope = float((q[2] - q[0]) / max(p[2] - p[0], 1e-9))
    return slope, float(q[1] - slope * p[1])


def _checker(ct: Voxels, volume: Voxels) -> Voxels:
    """Return CT and volume in alternating squares; the CT where there is no volume."""
    square = np.arange(len(ct)) // int(CHECKER_MM / PIXEL_MM)
    odd = (square[:, None] + square[None, :]) % 2 == 1
    result: Voxels = np.where(odd & np.isfinite(volume), volume, ct).astype(np.float32)
    return result


def _row(slices: list[Voxels], edges_of: list[Voxels] | None, title: str) -> NDArray[np.uint8]:
    """Return three views side by side under a line of text."""
    import cv2

    panels = []
    for n, (view, values) in enumerate(zip(_VIEWS, slices, strict=True)):
        panel = _grey(values)
        if edges_of is not None:
            _draw_edges(panel, edges_of[n])
        _annotate(panel, view)
        panels.append(panel)
    body = np.concatenate(panels, axis=1)
    head = np.full((_BAR, body.shape[1], 3), 40, dtype=np.uint8)
    cv2.putText(head, title, (8, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _WHITE, 1, cv2.LINE_AA)
    return np.concatenate([head, body])


def _grey(values: Voxels) -> NDArray[np.uint8]:
    """Return a view as BGR in the bone window; dark blue where there is no volume."""
    low, high = WINDOW_HU
    known = np.isfinite(values)
    level = np.clip((np.where(known, values, low) - low) / (high - low), 0.0, 1.0)
    picture = np.repeat((level * 255.0).astype(np.uint8)[:, :, None], 3, axis=2)
    picture[~known] = (60, 30, 20)
    return picture


def _draw_edges(panel: NDArray[np.uint8], ct: Voxels) -> None:
    """Draw the outline of bone in a CT slice."""
    import cv2

    bone = (ndimage.gaussian_filter(ct, 1.2) > EDGE_HU).astype(np.uint8)
    contours, _ = cv2.findContours(bone, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    long = [c for c in contours if len(c) > 30]
    cv2.drawContours(panel, long, -1, _YELLOW, 1, cv2.LINE_AA)


def _annotate(panel: NDArray[np.uint8], view: _View) -> None:
    """Draw directions, the target's cross and a bar of 20 mm."""
    import cv2

    n = len(panel)
    middle, font = n // 2, cv2.FONT_HERSHEY_SIMPLEX
    places = ((6, middle + 5), (n - 18, middle + 5), (middle - 5, 18), (middle - 5, n - 8))
    for letter, place in zip(view.letters, places, strict=True):
        cv2.putText(panel, letter, place, font, 0.5, _WHITE, 1, cv2.LINE_AA)
    for a, b in (((-9, 0), (-4, 0)), ((4, 0), (9, 0)), ((0, -9), (0, -4)), ((0, 4), (0, 9))):
        cv2.line(panel, (middle + a[0], middle + a[1]), (middle + b[0], middle + b[1]), _CYAN, 1, cv2.LINE_AA)
    cv2.putText(panel, view.name, (6, 18), font, 0.45, _WHITE, 1, cv2.LINE_AA)
    bar = int(20.0 / PIXEL_MM)
    cv2.line(panel, (n - 12 - bar, n - 12), (n - 12, n - 12), _WHITE, 2)
    cv2.putText(panel, "20 mm", (n - 12 - bar, n - 18), font, 0.38, _WHITE, 1, cv2.LINE_AA)
    panel[:, -1] = 80
