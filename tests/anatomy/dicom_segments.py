"""DICOM segmentations for tests: SEG by highdicom, RTSTRUCT by hand, on series of ``tests.dicom_objects``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid


def completed(slices: Sequence[Dataset]) -> list[Dataset]:
    """Return slices with the patient and study attributes that a SEG repeats."""
    study = generate_uid()
    for ds in slices:
        ds.StudyInstanceUID = study
        ds.PatientBirthDate = ds.PatientSex = ds.StudyDate = ds.StudyTime = ds.StudyID = ""
        ds.AccessionNumber = ds.ReferringPhysicianName = ""
    return list(slices)


def seg(slices: Sequence[Dataset], masks: NDArray[Any], kind: str = "BINARY", **options: Any) -> Dataset:
    """Return a SEG of (slices, rows, columns, segments) on its source slices; floats make a fractional one."""
    descriptions = [
        hd.seg.SegmentDescription(
            n + 1,
            f"segment {n + 1}",
            codes.SCT.Organ,
            codes.SCT.Bone,
            hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for n in range(masks.shape[-1])
    ]
    return hd.seg.Segmentation(
        slices,
        masks,
        kind,
        descriptions,
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="tests",
        manufacturer_model_name="tests",
        software_versions="1",
        device_serial_number="1",
        **options,
    )


def rtstruct(frame: str, rois: Mapping[str, Sequence[Any]], kind: str = "CLOSED_PLANAR") -> Dataset:
    """Return an RTSTRUCT: contours (N, 3) in LPS mm of each ROI by name, numbered from 1."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.3", generate_uid()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.Modality, ds.SeriesInstanceUID, ds.StudyInstanceUID = "RTSTRUCT", generate_uid(), generate_uid()
    ds.StructureSetLabel = "tests"
    ds.StructureSetROISequence, ds.ROIContourSequence = Items(), Items()
    for number, (name, contours) in enumerate(rois.items(), start=1):
        roi, outline = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame
        roi.ROIGenerationAlgorithm = "MANUAL"
        outline.ReferencedROINumber, outline.ContourSequence = number, Items()
        for points in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{v:.6f}" for v in np.ravel(points)]
            outline.ContourSequence.append(contour)
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(outline)
    return ds


def saved(ds: Dataset, path: Path) -> Path:
    """Write an object and return its path."""
    ds.save_as(path, enforce_file_format=True)
    return path
