"""Owns the step from a DICOM image object to samples: volumes of CT, O-arm and CBCT, X-rays of a C-arm.

Refuses files, sockets and clocks: datasets and times are handed in.  A slice is decoded when it comes, so that a fault
is told to the one who sent it; ``dicom_series`` decides when a series is whole, and ``assemble`` makes the volume.  The
frame ``volume`` of a sample is the patient's of its series (LPS, mm): only the image tells where that patient lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.frames import Array
from navsrv.kernel.samples import VolumeSample
from navsrv.wire.dicom import DicomFault
from navsrv.wire.dicom.attributes import acquired_ns, equipment_mapping, text, value
from navsrv.wire.dicom.grid import stack, straighten
from navsrv.wire.dicom.pixels import AIR_HU, hounsfield
from navsrv.wire.dicom.planes import Plane, planes_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

VOLUME_CLASSES: Final = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.13.1.1": "X-Ray 3D Angiographic",
}
PROJECTION_CLASSES: Final = {
    "1.2.840.10008.5.1.4.1.1.12.1": "XA",
    "1.2.840.10008.5.1.4.1.1.12.1.1": "Enhanced XA",
    "1.2.840.10008.5.1.4.1.1.12.2": "XRF",
    "1.2.840.10008.5.1.4.1.1.12.2.1": "Enhanced XRF",
}
_COUNTS: Final = ("NumberOfSeriesRelatedInstances", "ImagesInAcquisition", "NumberOfSlices")
"""Attributes that tell how many objects a series has, the surest first."""
MAX_SLICES: Final = 4096


@dataclass(frozen=True, slots=True, eq=False)
class VolumePart:
    """What one object brings to a volume: one slice, or all frames of an enhanced object.

    Attributes
    ----------
    name : str
        What a person calls it: its instance number.
    planes : tuple of Plane
    hu : (frames, rows, columns)
    equipment : (4, 4) or None
        ``T_equipment_from_volume`` in mm.
    taken_ns : int or None
        By the device's clock, since the Unix epoch.
    expected : int or None
        How many objects the series has, where the object tells.
    whole : bool
        The object is the whole volume.
    digest : bytes
        Of place and voxels: an object that is sent twice is the same.
    """

    series_uid: str
    instance_uid: str
    name: str
    frame_of_reference_uid: str
    description: str
    planes: tuple[Plane, ...]
    hu: NDArray[Any]
    equipment: Array | None
    taken_ns: int | None
    expected: int | None
    whole: bool
    digest: bytes


@dataclass(frozen=True, slots=True, eq=False)
class DicomVolume:
    """A whole volume and what its series says of it.

    Attributes
    ----------
    sample : VolumeSample
        Its frame is the patient's (LPS, mm); ``device_time_ns`` is the middle of the acquisition, by its device.
    T_equipment_from_volume : (4, 4) or None
        (0028,9520): VolumeToCarm, VolumeToOarm.
    tilt_deg : float
        Gantry tilt that was resampled away.
    """

    sample: VolumeSample
    series_uid: str
    frame_of_reference_uid: str
    description: str
    slices: int
    T_equipment_from_volume: Array | None
    tilt_deg: float


def read_part(dataset: Dataset, transfer_syntax: str, max_bytes: int, zone_s: int) -> VolumePart:
    """Return what an object brings to its volume.

    Parameters
    ----------
    max_bytes : int
        Largest size of its decoded pixels.
    zone_s : int
        Seconds east of UTC of a device that names no zone.

    Raises
    ------
    DicomFault
        Not a slice of a volume, or anything of it missing, contradictory or unreadable.
    """
    kinds = value(dataset, "ImageType")
    if kinds is not None and "LOCALIZER" in [str(kind).upper() for kind in kinds]:
        raise DicomFault("a localizer, no slice of the volume")
    if value(dataset, "ConcatenationUID") is not None:
        raise DicomFault("part of a concatenation; send the object in one piece")
    series, instance = text(dataset, "SeriesInstanceUID"), text(dataset, "SOPInstanceUID")
    if not series or not instance:
        raise DicomFault("SeriesInstanceUID or SOPInstanceUID is missing")
    planes = planes_of(dataset)
    hu = hounsfield(dataset, transfer_syntax, max_bytes)
    if len(hu) != len(planes):
        raise DicomFault(f"{len(hu)} frames with {len(planes)} places; expected an enhanced object, or single slices")
    whole = value(dataset, "PerFrameFunctionalGroupsSequence") is not None
    return VolumePart(
        series_uid=series,
        instance_uid=instance,
        name=text(dataset, "InstanceNumber") or instance,
        frame_of_reference_uid=text(dataset, "FrameOfReferenceUID"),
        description=text(dataset, "SeriesDescription"),
        planes=planes,
        hu=hu,
        equipment=equipment_mapping(dataset),
        taken_ns=_taken_ns(dataset, zone_s),
        expected=None if whole else _expected(dataset),
        whole=whole,
        digest=hashlib.sha256(repr([p.position_mm.tolist() for p in planes]).encode() + hu.tobytes()).digest(),
    )


def assemble(parts: Sequence[VolumePart], device: str, received_ns: int) -> DicomVolume:
    """Return the volume of a series.

    Raises
    ------
    DicomFault
        Its slices do not make one volume: see ``grid.stack``; or they contradict each other in frame of reference or
        equipment mapping.
    """
    first = parts[0]
    for part in parts[1:]:
        if part.frame_of_reference_uid != first.frame_of_reference_uid:
            raise DicomFault(f"slices {first.name} and {part.name} have different frames of reference")
        if not _same_matrix(part.equipment, first.equipment):
            raise DicomFault(
                f"slices {first.name} and {part.name} have different (0028,9520): the gantry moved between"
            )
    planes = [plane for part in parts for plane in part.planes]
    numbered = len(parts) == 1
    names = [f"{n + 1}" if numbered else part.name for part in parts for n in range(len(part.planes))]
    grid = stack(planes, names)
    frames = np.concatenate([part.hu for part in parts])  # one type for all: int16 unless a slice needs more
    voxels, matrix = straighten(frames[list(grid.order)], grid, AIR_HU)
    if voxels.min() == voxels.max():
        raise DicomFault(f"every voxel is {voxels.min():g} HU")
    taken = [part.taken_ns for part in parts if part.taken_ns is not None]
    middle = (min(taken) + max(taken)) // 2 if len(taken) == len(parts) else None
    voxels.flags.writeable = False
    return DicomVolume(
        VolumeSample(device, voxels, matrix, middle, received_ns),
        first.series_uid,
        first.frame_of_reference_uid,
        first.description,
        len(planes),
        first.equipment,
        float(np.degrees(grid.tilt_rad)),
    )


def _same_matrix(one: Array | None, other: Array | None) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.abs(one - other).max() < 1e-3)


def _expected(dataset: Dataset) -> int | None:
    """Return how many objects the series has, where it says so; what is no sensible number is not believed."""
    for keyword in _COUNTS:
        try:
            count = int(value(dataset, keyword) or 0)
        except (DicomFault, TypeError, ValueError):
            continue
        if 2 <= count <= MAX_SLICES:
            return count
    return None


def _taken_ns(dataset: Dataset, zone_s: int) -> int | None:
    """Return the time of an object: its own, else the middle of its frames'."""
    frames = value(dataset, "PerFrameFunctionalGroupsSequence")
    if frames is not None:
        contents = [value(frame, "FrameContentSequence") for frame in frames]
        times = [acquired_ns(content[0], zone_s) for content in contents if content]
        known = [time for time in times if time is not None]
        if known:
            return (min(known) + max(known)) // 2
    return acquired_ns(dataset, zone_s)
