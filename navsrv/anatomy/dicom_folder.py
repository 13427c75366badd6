"""Owns the reading of one DICOM series of a folder: the same rules as for a series that is sent to the server.

Refuses to choose among several series, and a series that makes no volume.  Localizers in it are left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from navsrv.wire.dicom.planes import Plane

MAX_BYTES: Final = 1 << 33
"""Largest volume that is read."""
_HEADER: Final = (
    "SeriesInstanceUID",
    "SeriesDescription",
    "ImageType",
    "SOPInstanceUID",
    "Rows",
    "FrameOfReferenceUID",
)


@dataclass(frozen=True, slots=True, eq=False)
class SeriesVolume:
    """A series as one volume: voxels (k, j, i), index to LPS mm (4, 4), and its frame of reference."""

    voxels: NDArray[Any]
    matrix: Array
    frame_of_reference_uid: str


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One file: a slice, or all frames of an enhanced object."""

    name: str
    instance_uid: str
    frame_of_reference_uid: str
    planes: tuple[Plane, ...]
    voxels: NDArray[Any]

    @property
    def names(self) -> list[str]:
        """What each frame is called in a fault."""
        count = len(self.planes)
        return [self.name] if count == 1 else [f"{self.name} frame {n + 1}" for n in range(count)]


def read_series(folder: Path, series: str | None, what: str, hounsfield_only: bool = True) -> SeriesVolume:
    """Return the volume of a folder's series.

    Parameters
    ----------
    series : str or None
        SeriesInstanceUID, for a folder with several.
    what : str
        What it is to the user, for faults.
    hounsfield_only : bool
        Whether numbers without a rescale are refused; else they stand for themselves.

    Raises
    ------
    InputError
        No series, several, an unknown one, or one that makes no volume.
    """
    from navsrv.wire.dicom import DicomFault
    from navsrv.wire.dicom.grid import stack, straighten
    from navsrv.wire.dicom.pixels import AIR_HU

    uid, paths = _chosen(folder, series, what)
    parts: dict[str, _Part] = {}
    for path in paths:
        part = _part(path, what, hounsfield_only)
        known = parts.setdefault(part.instance_uid, part)
        if not np.array_equal(part.voxels, known.voxels):
            raise InputError(f"{path}: {what}: the same object as {known.name} with other content")
    references = {part.frame_of_reference_uid for part in parts.values()}
    if len(references) > 1:
        raise InputError(f"{folder}: {what}: series {uid} has slices of {len(references)} frames of reference")
    names = [name for part in parts.values() for name in part.names]
    try:
        grid = stack([plane for part in parts.values() for plane in part.planes], names)
    except DicomFault as fault:
        raise InputError(f"{folder}: {what}: series {uid}: {fault}") from None
    frames = [frame for part in parts.values() for frame in part.voxels]
    voxels, matrix = straighten(np.stack([frames[n] for n in grid.order]), grid, AIR_HU)
    return SeriesVolume(voxels, matrix, references.pop())


def frame_of_reference(folder: Path, series: str | None) -> str:
    """Return the FrameOfReferenceUID of a folder's series; empty where it has none."""
    _, paths = _chosen(folder, series, "CT")
    return str(_header(paths[0]).get("FrameOfReferenceUID", ""))


@contextmanager
def lenient() -> Iterator[None]:
    """Keep pydicom from warning of what real files do to the standard; what matters of it is checked by us."""
    from pydicom import config

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept, config.settings.reading_validation_mode = config.settings.reading_validation_mode, config.IGNORE
        try:
            yield
        finally:
            config.settings.reading_validation_mode = kept


def _chosen(folder: Path, series: str | None, what: str) -> tuple[str, list[Path]]:
    found, texts = _series_of(folder)
    if not found:
        raise InputError(
            f"{folder}: {what}: no DICOM series in this folder; expected NIfTI, NRRD, MetaImage or a folder with one"
            " DICOM series"
        )
    if series is None and len(found) > 1:
        listed = "; ".join(f"{uid} ({texts[uid]}, {len(paths)} slices)" for uid, paths in found.items())
        raise InputError(f"{folder}: {what}: {len(found)} series; choose one with --series: {listed}")
    uid = series if series is not None else next(iter(found))
    if uid not in found:
        raise InputError(f"{folder}: {what}: no series {uid}; it has {', '.join(found)}")
    return uid, found[uid]


def _series_of(folder: Path) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Return the files and the description of each series of images in a folder, in a steady order."""
    found: dict[str, list[Path]] = {}
    texts: dict[str, str] = {}
    with lenient():
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            header = _header(path)
            uid = str(header.get("SeriesInstanceUID", ""))
            if not uid or "Rows" not in header or "LOCALIZER" in (header.get("ImageType") or ()):
                continue
            if str(header.file_meta.get("MediaStorageSOPClassUID", "")).startswith("1.2.840.10008.5.1.4.1.1.66."):
                continue  # a segmentation beside its CT
            found.setdefault(uid, []).append(path)
            texts.setdefault(uid, str(header.get("SeriesDescription", "")).strip() or "no description")
    return dict(sorted(found.items())), texts


def _header(path: Path) -> Dataset:
    """Return the few attributes that tell series apart; an empty data set for a file of another kind."""
    from pydicom import dcmread
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.errors import InvalidDicomError

    try:
        with lenient():
            return dcmread(path, stop_before_pixels=True, specific_tags=list(_HEADER))
    except (InvalidDicomError, OSError, ValueError, EOFError, KeyError, NotImplementedError):
        empty = Dataset()
        empty.file_meta = FileMetaDataset()
        return empty


def _part(path: Path, what: str, hounsfield_only: bool) -> _Part:
    from pydicom import dcmread

    from navsrv.wire.dicom import DicomFault
    from navsrv.wire.dicom.attributes import text
    from navsrv.wire.dicom.pixels import hounsfield
    from navsrv.wire.dicom.planes import planes_of

    with lenient():
        try:
            dataset = dcmread(path)
            syntax = str(dataset.file_meta.get("TransferSyntaxUID", "1.2.840.10008.1.2"))
            planes = planes_of(dataset)
            voxels = hounsfield(dataset, syntax, MAX_BYTES, required=hounsfield_only)
            if len(voxels) != len(planes):
                raise DicomFault(f"{len(voxels)} frames with {len(planes)} places")
            instance, frame = text(dataset, "SOPInstanceUID"), text(dataset, "FrameOfReferenceUID")
        except DicomFault as fault:
            raise InputError(f"{path}: {what}: {fault}") from None
        except Exception as error:
            # pydicom's parsers raise their own kinds and whatever a torn file leads them to.
            reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise InputError(f"{path}: {what}: not a readable DICOM file ({reason})") from None
    return _Part(path.name, instance or path.name, frame, planes, voxels)
