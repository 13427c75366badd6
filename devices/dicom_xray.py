"""Owns X-ray objects (XA, XRF and their enhanced forms): pixels, and what the object tells of its own geometry.

Two kinds of angles are kept apart.  Plain XA has positioner angles *about the patient*, as the operator told the device
how the patient lies; they are facts for a person, never a pose.  Enhanced XA may have angles in the isocentre's system,
fixed in the equipment: with the distances they give the source's pose there.  The middle of the image is taken as the
principal point: neither form tells it surely.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.frames import Array
from navsrv.kernel.samples import ProjectionSample
from navsrv.wire.dicom import DicomFault
from navsrv.wire.dicom.attributes import (
    acquired_ns,
    item,
    optional_number,
    optional_numbers,
    text,
    value,
)
from navsrv.wire.dicom.pixels import stored_values
from navsrv.wire.dicom.planes import frames_of, group

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SeenFrom = Literal["detector", "source"]
TURNED_DEG: Final = 0.5
"""Detector rotation from which on the angles alone are not taken for a pose."""


@dataclass(frozen=True, slots=True)
class XrayGeometry:
    """What one X-ray tells of its geometry; None where it does not.

    Attributes
    ----------
    sdd_mm, source_isocentre_mm : float or None
        From the source to the detector, and to the isocentre.
    primary_deg, secondary_deg : float or None
        Towards LAO, and towards cranial, positive.
    detector_rotation_deg : float or None
    in_equipment : bool
        The angles are in the isocentre's system; else they are about the patient.
    """

    sdd_mm: float | None
    source_isocentre_mm: float | None
    primary_deg: float | None
    secondary_deg: float | None
    detector_rotation_deg: float | None
    in_equipment: bool

    def T_equipment_from_carm(self) -> Array:
        """Return the C-arm's pose (4, 4), mm, in the isocentre's system, for an image seen from the detector.

        PS3.3 C.8.19.6.13.1: with both angles 0 the detector lies at -Y; the primary angle turns it from -Y to +X, the
        secondary towards +Z.  C-arm frame: origin at the source, +z to the detector, +y along image rows downwards;
        +x then runs against the columns, as an image that is seen from the detector is the mirror of one seen from
        the source.

        Raises
        ------
        DicomFault
            What this needs is not told, is about the patient, or the detector is turned in its plane.
        """
        if not self.in_equipment or self.primary_deg is None or self.secondary_deg is None:
            raise DicomFault("no angles in the isocentre's system (plain XA has them about the patient only)")
        if self.source_isocentre_mm is None:
            raise DicomFault("DistanceSourceToIsocenter is missing")
        if abs(self.detector_rotation_deg or 0.0) > TURNED_DEG:
            raise DicomFault(f"the detector is turned by {self.detector_rotation_deg:g} degrees; give a tracked pose")
        a, b = np.radians((self.primary_deg, self.secondary_deg))
        to_detector = np.array([np.sin(a) * np.cos(b), -np.cos(a) * np.cos(b), np.sin(b)])
        columns = np.array([np.cos(a), np.sin(a), 0.0])
        rows = np.cross(columns, to_detector)  # down the image: from the detector, up is columns x towards the source
        pose = np.eye(4)
        pose[:3, :3] = np.column_stack([-columns, rows, to_detector])
        pose[:3, 3] = -self.source_isocentre_mm * to_detector
        return pose


@dataclass(frozen=True, slots=True, eq=False)
class DicomProjection:
    """One X-ray: its picture, and where its detector stands in the C-arm's frame.

    Attributes
    ----------
    sample : ProjectionSample
        ``index_to_image_mm`` scales by the spacing at the detector.
    T_carm_from_image : (4, 4) or None
        The detector plane; None where no source-to-detector distance is told.
    """

    sample: ProjectionSample
    instance_uid: str
    frame: int
    geometry: XrayGeometry
    T_carm_from_image: Array | None


def read_projection(
    dataset: Dataset,
    transfer_syntax: str,
    max_bytes: int,
    zone_s: int,
    device: str,
    received_ns: int,
    seen_from: SeenFrom = "detector",
) -> DicomProjection:
    """Return the last frame of an X-ray object: what the operator sees when the run has ended.

    Parameters
    ----------
    max_bytes, zone_s
        As in ``dicom.read_part``.
    seen_from : str
        From which side the picture is stored.  X-ray systems store and show it as seen from the detector.

    Raises
    ------
    DicomFault
        No pixel spacing at the detector, or anything unreadable.
    """
    pictures = stored_values(dataset, transfer_syntax, max_bytes)
    n = len(pictures) - 1
    frame: Dataset | None = None
    if value(dataset, "PerFrameFunctionalGroupsSequence") is not None:
        frame = list(frames_of(dataset))[n]
    holder = _group(dataset, frame, "FramePixelDataPropertiesSequence")
    spacing = optional_numbers(holder, "ImagerPixelSpacing", 2)
    if spacing is None or (spacing <= 0.0).any():
        raise DicomFault("ImagerPixelSpacing is missing or not above 0: the picture has no scale at the detector")
    geometry = _geometry(dataset, frame, n)
    pixels = _bright_where_much_arrives(pictures[n], dataset)
    index_to_image = np.diag([spacing[1], spacing[0], 1.0, 1.0])
    sample = ProjectionSample(device, pixels, index_to_image, _taken_ns(dataset, frame, n, zone_s), received_ns)
    plane = None
    if geometry.sdd_mm is not None:
        rows, columns = pixels.shape
        plane = _detector_plane(geometry.sdd_mm, (columns, rows), (spacing[1], spacing[0]), seen_from)
    return DicomProjection(sample, text(dataset, "SOPInstanceUID"), n + 1, geometry, plane)


def _detector_plane(
    sdd_mm: float, size_px: tuple[int, int], pixel_mm: tuple[float, float], seen_from: SeenFrom
) -> Array:
    """Return ``T_carm_from_image``: the middle of the image lies on the C-arm's z axis, ``sdd_mm`` from the source."""
    side = -1.0 if seen_from == "detector" else 1.0
    u, v = ((size - 1) / 2 * mm for size, mm in zip(size_px, pixel_mm, strict=True))
    plane = np.diag([side, 1.0, side, 1.0])
    plane[:3, 3] = -side * u, -v, sdd_mm
    return plane


def _group(dataset: Dataset, frame: Dataset | None, keyword: str) -> Dataset:
    """Return a functional group of a frame; the object itself where it has none (plain XA)."""
    found = None if frame is None else group(dataset, frame, keyword)
    return dataset if found is None else found


def _geometry(dataset: Dataset, frame: Dataset | None, n: int) -> XrayGeometry:
    distances = _group(dataset, frame, "XRayGeometrySequence")
    sdd = _length(distances, "DistanceSourceToDetector")
    isocentre = _length(distances, "DistanceSourceToIsocenter")
    if isocentre is None:
        isocentre = _length(dataset, "DistanceSourceToPatient")  # PS3.3 C.8.7.5: to the isocentre, whatever its name
    if sdd is not None and isocentre is not None and isocentre >= sdd:
        raise DicomFault(f"the isocentre lies {isocentre:g} mm from the source, the detector {sdd:g} mm")
    system = None if frame is None else group(dataset, frame, "IsocenterReferenceSystemSequence")
    if system is not None:
        angles = [
            optional_number(system, f"PositionerIsocenter{name}Angle")
            for name in ("Primary", "Secondary", "DetectorRotation")
        ]
        return XrayGeometry(sdd, isocentre, angles[0], angles[1], angles[2], True)
    position = _group(dataset, frame, "PositionerPositionSequence")
    primary = _angle(position, "Primary", n)
    return XrayGeometry(sdd, isocentre, primary, _angle(position, "Secondary", n), None, False)


def _length(dataset: Dataset, keyword: str) -> float | None:
    """Return a length above 0; 0 is how devices say that they do not know."""
    found = optional_number(dataset, keyword)
    if found is not None and found < 0.0:
        raise DicomFault(f"{keyword} is {found:g} mm")
    return found or None


def _angle(dataset: Dataset, name: str, n: int) -> float | None:
    """Return a positioner angle of frame ``n``: the first frame's, and its increment where the run turns."""
    angle = optional_number(dataset, f"Positioner{name}Angle")
    steps = value(dataset, f"Positioner{name}AngleIncrement")
    if angle is None or steps is None or text(dataset, "PositionerMotion") != "DYNAMIC":
        return angle
    try:
        found = np.atleast_1d(np.array(steps, dtype=np.float64))
        return angle + float(found[n] if len(found) > 1 else found[0] * n)
    except (TypeError, ValueError, IndexError):
        raise DicomFault(f"Positioner{name}AngleIncrement does not fit {n + 1} frames") from None


def _taken_ns(dataset: Dataset, frame: Dataset | None, n: int, zone_s: int) -> int | None:
    content = None if frame is None else item(frame, "FrameContentSequence")
    own = None if content is None else acquired_ns(content, zone_s)
    if own is not None:
        return own
    start = acquired_ns(dataset, zone_s)
    step_ms = optional_number(dataset, "FrameTime")
    return start if start is None or step_ms is None else start + int(step_ms * 1e6) * n


def _bright_where_much_arrives(pixels: NDArray[Any], dataset: Dataset) -> NDArray[Any]:
    """Return the picture as MONOCHROME2."""
    kind = text(dataset, "PhotometricInterpretation")
    if kind == "MONOCHROME1":
        return (1 << int(dataset.BitsStored)) - 1 - pixels
    if kind != "MONOCHROME2":
        raise DicomFault(f"PhotometricInterpretation is {kind!r}; expected MONOCHROME1 or MONOCHROME2")
    return pixels
