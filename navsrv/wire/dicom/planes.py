"""Owns where single image planes lie in the patient: classic slices, and the frames of enhanced multi-frame objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from navsrv.kernel.frames import Array, frozen_array
from navsrv.wire.dicom.attributes import DicomFault, item, numbers, value, whole

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

ORTHONORMAL_TOLERANCE: Final = 1e-3
"""By how much direction cosines may fail to be: they are written as decimals, often few."""
MAX_FRAMES: Final = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """One image plane.

    Attributes
    ----------
    position_mm : (3,)
        Centre of the first pixel, LPS.
    along_row, along_column : (3,)
        Unit vectors of increasing column index and of increasing row index.
    spacing_mm : (2,)
        From pixel to pixel along a row, and along a column: the reverse order of PixelSpacing.
    columns, rows : int
    """

    position_mm: Array
    along_row: Array
    along_column: Array
    spacing_mm: Array
    columns: int
    rows: int

    def __post_init__(self) -> None:
        for name, shape in (("position_mm", 3), ("along_row", 3), ("along_column", 3), ("spacing_mm", 2)):
            object.__setattr__(self, name, frozen_array(getattr(self, name), (shape,)))

    @property
    def normal(self) -> Array:
        """Unit vector (3,) that makes (along_row, along_column, normal) right-handed."""
        result: Array = np.cross(self.along_row, self.along_column)
        return result


def planes_of(dataset: Dataset) -> tuple[Plane, ...]:
    """Return the planes of an image object: one of a classic slice, one for each frame of an enhanced object.

    Raises
    ------
    DicomFault
        An attribute of the plane is missing or not what it should be.
    """
    if value(dataset, "PerFrameFunctionalGroupsSequence") is None:
        return (_plane(dataset, dataset, dataset, dataset),)
    return tuple(
        _plane(
            dataset,
            required_group(dataset, frame, "PlanePositionSequence", n),
            required_group(dataset, frame, "PlaneOrientationSequence", n),
            required_group(dataset, frame, "PixelMeasuresSequence", n),
        )
        for n, frame in enumerate(frames_of(dataset))
    )


def frames_of(dataset: Dataset) -> Iterator[Dataset]:
    """Return the per-frame functional groups, as many as there are frames; DicomFault otherwise."""
    count = whole(dataset, "NumberOfFrames", 1, MAX_FRAMES)
    frames = value(dataset, "PerFrameFunctionalGroupsSequence")
    found = 0 if frames is None else len(frames)
    if found != count:
        raise DicomFault(f"{found} per-frame functional groups for {count} frames; expected one for each")
    return iter(frames)


def group(dataset: Dataset, frame: Dataset, keyword: str) -> Dataset | None:
    """Return a functional group's item: the frame's own, else the one that all frames share, else None."""
    own = item(frame, keyword)
    if own is not None:
        return own
    shared = item(dataset, "SharedFunctionalGroupsSequence")
    return None if shared is None else item(shared, keyword)


def required_group(dataset: Dataset, frame: Dataset, keyword: str, n: int) -> Dataset:
    """Return ``group`` of frame ``n`` (from 0); DicomFault where there is none."""
    found = group(dataset, frame, keyword)
    if found is None:
        raise DicomFault(f"frame {n + 1} has no {keyword}, of its own or shared")
    return found


def _plane(dataset: Dataset, position: Dataset, orientation: Dataset, measures: Dataset) -> Plane:
    cosines = numbers(orientation, "ImageOrientationPatient", 6)
    along_row, along_column = cosines[:3], cosines[3:]
    products = (along_row @ along_row - 1.0, along_column @ along_column - 1.0, along_row @ along_column)
    defect = max(abs(float(product)) for product in products)
    if defect > ORTHONORMAL_TOLERANCE:
        raise DicomFault(f"ImageOrientationPatient is {cosines.tolist()}; expected two unit vectors at right angles")
    along_row = along_row / np.linalg.norm(along_row)
    along_column = along_column - (along_column @ along_row) * along_row
    spacing = numbers(measures, "PixelSpacing", 2)[::-1]
    if (spacing <= 0.0).any():
        raise DicomFault(f"PixelSpacing is {spacing[::-1].tolist()}; expected two lengths above 0")
    return Plane(
        numbers(position, "ImagePositionPatient", 3),
        along_row,
        along_column / np.linalg.norm(along_column),
        spacing,
        whole(dataset, "Columns", 1, 65535),
        whole(dataset, "Rows", 1, 65535),
    )
