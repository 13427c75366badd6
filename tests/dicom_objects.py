"""DICOM objects for tests, written with pydicom from arrays and matrices: the truth that the tested code must find.

Places are computed from the definition of PS3.3 C.7.6.2.1.1, not by the code under test.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

Array = NDArray[np.float64]

ORIENTATIONS = {
    "HFS": (1, 0, 0, 0, 1, 0),
    "HFP": (-1, 0, 0, 0, -1, 0),
    "FFS": (-1, 0, 0, 0, 1, 0),
    "FFP": (1, 0, 0, 0, -1, 0),
    "HFDL": (0, -1, 0, 1, 0, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": (0.36, 0.48, -0.8, -0.8, 0.6, 0.0),
}
"""Direction cosines of rows and columns as scanners write them for each way to lie, and for other planes."""


BALLS = (((12.0, -3.0, 4.0), 9.0, 400.0), ((-9.0, 8.0, -5.0), 6.0, 1100.0), ((2.0, 5.0, 13.0), 4.0, 60.0))
"""Centre (LPS mm), radius (mm) and HU."""


def phantom(points: Array) -> Array:
    """Return HU at points (..., 3) in LPS mm: three balls of different size and density, no two axes alike."""
    hu = np.full(points.shape[:-1], -1000.0)
    for centre, radius, value in BALLS:
        hu[np.linalg.norm(points - np.array(centre), axis=-1) <= radius] = value
    return hu


def slice_points(
    position: Array, cosines: Sequence[float], spacing: tuple[float, float], rows: int, columns: int
) -> Array:
    """Return (rows, columns, 3): the centre of each pixel; ``spacing`` is as PixelSpacing, rows' step first."""
    x, y = np.array(cosines[:3], dtype=float), np.array(cosines[3:], dtype=float)
    r, c = np.arange(rows)[:, None, None], np.arange(columns)[None, :, None]
    points: Array = position + x * spacing[1] * c + y * spacing[0] * r
    return points


def ct_series(
    cosines: Sequence[float] = ORIENTATIONS["HFS"],
    step: float = 2.0,
    count: int = 24,
    size: tuple[int, int] = (36, 40),
    spacing: tuple[float, float] = (1.25, 1.5),
    centre: Sequence[float] = (1.0, 2.0, 3.0),
    tilt: Array | None = None,
    hu: Callable[[Array], Array] = phantom,
    **extra: Any,
) -> list[Dataset]:
    """Return the slices of a classic CT series; ``tilt`` (3,) mm is added to the step from slice to slice."""
    rows, columns = size
    x, y = np.array(cosines[:3], dtype=float), np.array(cosines[3:], dtype=float)
    normal = np.cross(x, y)
    per_slice = normal * step + (np.zeros(3) if tilt is None else tilt)
    corner = np.array(centre) - x * spacing[1] * (columns - 1) / 2 - y * spacing[0] * (rows - 1) / 2
    series, frame = generate_uid(), generate_uid()
    slices = []
    for n in range(count):
        position = corner + per_slice * (n - (count - 1) / 2)
        values = hu(slice_points(position, cosines, spacing, rows, columns))
        slices.append(ct_slice(values, position, cosines, spacing, series, frame, n + 1, **extra))
    return slices


def ct_slice(
    hu: Array,
    position: Array,
    cosines: Sequence[float],
    spacing: tuple[float, float],
    series: str,
    frame: str,
    number: int,
    slope: float = 1.0,
    intercept: float = -1024.0,
    signed: bool = False,
    bits_stored: int = 16,
    **extra: Any,
) -> Dataset:
    """Return one CT slice with its values stored as the options say."""
    ds = _image(CTImageStorage, hu.shape, signed, bits_stored)
    ds.SeriesInstanceUID, ds.FrameOfReferenceUID, ds.InstanceNumber = series, frame, number
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.Modality = "CT"
    ds.SeriesDescription = "phantom"
    ds.ImagePositionPatient = [f"{v:.8g}" for v in position]
    ds.ImageOrientationPatient = [f"{v:.8g}" for v in cosines]
    ds.PixelSpacing = list(spacing)
    ds.SliceThickness = 1.0
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = slope, intercept, "HU"
    ds.AcquisitionDate, ds.AcquisitionTime = "20261121", "101112.500000"
    stored = np.rint((hu - intercept) / slope)
    set_pixels(ds, stored)
    for keyword, found in extra.items():
        setattr(ds, keyword, found)
    return ds


def set_pixels(ds: Dataset, stored: NDArray[Any]) -> None:
    """Put stored values into an object as 16-bit words."""
    kind = "<i2" if ds.PixelRepresentation else "<u2"
    assert stored.min() >= np.iinfo(kind).min, "the phantom does not fit its words"
    assert stored.max() <= np.iinfo(kind).max, "the phantom does not fit its words"
    mask = (1 << ds.BitsStored) - 1
    words = stored.astype(kind)
    if ds.BitsStored < 16:
        words = (words.astype("<u2") & mask).astype("<u2")
    ds.PixelData = words.tobytes()
    ds["PixelData"].VR = "OW"


def enhanced_ct(slices: list[Dataset], order: Sequence[int] | None = None) -> Dataset:
    """Return one Enhanced CT object of classic slices, its frames in any order; what is the same is shared."""
    order = range(len(slices)) if order is None else order
    first = slices[0]
    ds = _image(
        "1.2.840.10008.5.1.4.1.1.2.1", (first.Rows, first.Columns), bool(first.PixelRepresentation), first.BitsStored
    )
    ds.SeriesInstanceUID, ds.FrameOfReferenceUID = first.SeriesInstanceUID, first.FrameOfReferenceUID
    ds.InstanceNumber, ds.NumberOfFrames = 1, len(slices)
    ds.Modality = "CT"
    ds.AcquisitionDateTime = "20261121101112.5+0000"
    ds.SharedFunctionalGroupsSequence = Items(
        [
            _items(
                PixelMeasuresSequence={"PixelSpacing": first.PixelSpacing, "SliceThickness": 1.0},
                PlaneOrientationSequence={"ImageOrientationPatient": first.ImageOrientationPatient},
            )
        ]
    )
    ds.PerFrameFunctionalGroupsSequence = Items(
        [
            _items(
                PlanePositionSequence={"ImagePositionPatient": slices[n].ImagePositionPatient},
                PixelValueTransformationSequence={
                    "RescaleSlope": slices[n].RescaleSlope,
                    "RescaleIntercept": slices[n].RescaleIntercept,
                    "RescaleType": "HU",
                },
                FrameContentSequence={"FrameAcquisitionDateTime": f"202611211011{10 + k:02d}.0+0000"},
            )
            for k, n in enumerate(order)
        ]
    )
    ds.PixelData = b"".join(slices[n].PixelData for n in order)
    ds["PixelData"].VR = "OW"
    return ds


def xa(pixels: NDArray[Any], enhanced: bool = False, **extra: Any) -> Dataset:
    """Return a plain XA of one or several frames (last two axes), or an Enhanced XA; ``extra`` sets attributes."""
    frames = pixels.reshape(-1, *pixels.shape[-2:])
    uid = "1.2.840.10008.5.1.4.1.1.12.1" + (".1" if enhanced else "")
    ds = _image(uid, pixels.shape[-2:], False, 16)
    ds.SeriesInstanceUID, ds.Modality, ds.InstanceNumber = generate_uid(), "XA", 1
    ds.AcquisitionDate, ds.AcquisitionTime = "20261121", "101112"
    if len(frames) > 1 or enhanced:
        ds.NumberOfFrames = len(frames)
    for keyword, found in extra.items():
        setattr(ds, keyword, found)
    ds.PixelData = frames.astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def _items(**sequences: dict[str, Any]) -> Dataset:
    """Return an item that holds sequences of one item each."""
    holder = Dataset()
    for keyword, attributes in sequences.items():
        inner = Dataset()
        for name, found in attributes.items():
            setattr(inner, name, found)
        setattr(holder, keyword, Items([inner]))
    return holder


functional_groups = _items


def _image(uid: str, size: tuple[int, ...], signed: bool, bits_stored: int) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = uid, generate_uid()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = uid, ds.SOPInstanceUID
    ds.StudyInstanceUID = generate_uid()
    ds.PatientID, ds.PatientName = "phantom", "Phantom^Three Balls"
    ds.Rows, ds.Columns = size
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, bits_stored, bits_stored - 1
    ds.PixelRepresentation = int(signed)
    return ds


def write(folder: Path, datasets: Sequence[Dataset]) -> list[Path]:
    """Write objects as files, named in an order that tells nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for n, ds in enumerate(datasets):
        path = folder / f"{(n * 7919) % 10007:05d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
