"""Owns what the numbers of an image object are: decoded, with sign and rescale, as HU or as the detector's values.

Sizes are checked before anything is decoded: a small compressed object may claim any size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.wire.dicom.attributes import DicomFault, optional_number, optional_numbers, text, value, whole
from navsrv.wire.dicom.planes import MAX_FRAMES, frames_of, group

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

DECODERS: Final = {
    "1.2.840.10008.1.2": "",  # implicit VR little endian
    "1.2.840.10008.1.2.1": "",  # explicit VR little endian
    "1.2.840.10008.1.2.1.99": "",  # deflated
    "1.2.840.10008.1.2.2": "",  # explicit VR big endian
    "1.2.840.10008.1.2.5": "pydicom",  # RLE
    "1.2.840.10008.1.2.4.50": "gdcm",  # JPEG baseline, 8 bits
    "1.2.840.10008.1.2.4.51": "gdcm",  # JPEG extended, 12 bits
    "1.2.840.10008.1.2.4.57": "gdcm",  # JPEG lossless
    "1.2.840.10008.1.2.4.70": "gdcm",  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": "gdcm",  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.81": "gdcm",  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.90": "gdcm",  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91": "gdcm",  # JPEG 2000
}
"""Transfer syntaxes that are read, and pydicom's plugin that decodes each: named, so that what else is installed on a
machine does not choose another one."""

AIR_HU: Final = -1000
DENSEST_HU: Final = 4000
"""Beyond this lies metal or no tissue at all."""


def stored_values(dataset: Dataset, transfer_syntax: str, max_bytes: int) -> NDArray[Any]:
    """Return the stored values (frames, rows, columns), whole numbers with their sign, before any rescale.

    Raises
    ------
    DicomFault
        Not one value for each pixel, more than ``max_bytes``, no pixels, a codec that is not read, or bad bytes.
    """
    from pydicom.pixels.decoders.base import get_decoder

    if transfer_syntax not in DECODERS:
        raise DicomFault(f"transfer syntax {transfer_syntax} is not read; send explicit VR little endian")
    rows, columns = whole(dataset, "Rows", 1, 65535), whole(dataset, "Columns", 1, 65535)
    frames = whole(dataset, "NumberOfFrames", 1, MAX_FRAMES) if value(dataset, "NumberOfFrames") is not None else 1
    bits = whole(dataset, "BitsAllocated", 1, 64)
    if whole(dataset, "SamplesPerPixel") != 1 or bits not in (8, 16, 32):
        raise DicomFault("a picture in colour or of odd bits; expected one value of 8, 16 or 32 bits for each pixel")
    claimed = rows * columns * frames * (bits // 8)
    if claimed > max_bytes:
        raise DicomFault(
            f"{columns} x {rows} x {frames} pixels are {claimed / 1e6:.0f} MB; at most {max_bytes / 1e6:.0f}"
        )
    if "PixelData" not in dataset:
        raise DicomFault("no PixelData")
    try:
        decoded, _ = get_decoder(transfer_syntax).as_array(dataset, raw=True, decoding_plugin=DECODERS[transfer_syntax])
    except MemoryError:
        raise DicomFault(f"no memory for {columns} x {rows} x {frames} pixels") from None
    except Exception as error:
        # The codecs raise their own kinds, and whatever a broken stream leads them to.
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise DicomFault(f"the pixels cannot be decoded ({reason})") from None
    stored = decoded.reshape(frames, rows, columns)
    return _stored_bits(stored, dataset, bits)


def hounsfield(dataset: Dataset, transfer_syntax: str, max_bytes: int, *, required: bool = True) -> NDArray[Any]:
    """Return HU (frames, rows, columns), int16 where they are whole numbers of its range, else float32.

    Padding (PixelPaddingValue) that reads as no tissue becomes air; where it is a value that tissue has too (0 is
    common, and wrong), the pixels stay as they are.

    Parameters
    ----------
    required : bool
        Whether numbers without a rescale are refused: they are no HU.  Else they stand for themselves.

    Raises
    ------
    DicomFault
        As ``stored_values``; no rescale, or one by a lookup table.
    """
    stored = stored_values(dataset, transfer_syntax, max_bytes)
    if text(dataset, "PhotometricInterpretation") != "MONOCHROME2":
        raise DicomFault("PhotometricInterpretation is not MONOCHROME2; expected HU that grow with density")
    slopes, intercepts = _rescale(dataset, len(stored), required)
    padding = _padding(dataset, stored)
    steady = bool((slopes == slopes[0]).all() and (intercepts == intercepts[0]).all())
    whole_numbers = bool((slopes == np.rint(slopes)).all() and (intercepts == np.rint(intercepts)).all())
    hu: NDArray[Any]
    if whole_numbers and steady:
        slope, intercept = int(slopes[0]), int(intercepts[0])
        ends = sorted((int(stored.min()) * slope + intercept, int(stored.max()) * slope + intercept))
        kind = np.int16 if ends[0] >= -32768 and ends[1] <= 32767 else np.float32
        wide = np.int32 if ends[0] > -(2**30) and ends[1] < 2**30 else np.float64
        hu = (stored.astype(wide) * slope + intercept).astype(kind)
    else:
        hu = (stored * slopes[:, None, None] + intercepts[:, None, None]).astype(np.float32)
    if padding is not None:
        hu[padding & ((hu < AIR_HU) | (hu > DENSEST_HU))] = AIR_HU
    return hu


def _stored_bits(stored: NDArray[Any], dataset: Dataset, bits: int) -> NDArray[Any]:
    """Return the values of the bits that are stored: what lies above them (overlays of old devices) is no value."""
    used = whole(dataset, "BitsStored", 1, bits)
    high = whole(dataset, "HighBit", 0, bits - 1)
    if high != used - 1:
        raise DicomFault(f"HighBit is {high} with {used} bits stored; expected {used - 1}")
    if used == bits:
        return stored
    if value(dataset, "PixelRepresentation") == 1:
        signed = stored.astype(np.int32)
        extended: NDArray[Any] = (signed << (32 - used)) >> (32 - used)
        return extended
    masked: NDArray[Any] = stored & np.array((1 << used) - 1, dtype=stored.dtype)
    return masked


def _rescale(dataset: Dataset, frames: int, required: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if value(dataset, "ModalityLUTSequence") is not None:
        raise DicomFault("values by a Modality LUT; expected RescaleSlope and RescaleIntercept")
    holders: list[Dataset | None] = [dataset] * frames
    if value(dataset, "PerFrameFunctionalGroupsSequence") is not None:
        holders = [group(dataset, frame, "PixelValueTransformationSequence") for frame in frames_of(dataset)]
        holders = [dataset if found is None else found for found in holders]
    pairs = []
    for n, holder in enumerate(holders):
        assert holder is not None
        slope, intercept = (optional_number(holder, f"Rescale{name}") for name in ("Slope", "Intercept"))
        if slope is None and intercept is None and not required:
            slope, intercept = 1.0, 0.0
        if slope is None or intercept is None:
            where = f" of frame {n + 1}" if frames > 1 else ""
            raise DicomFault(
                f"RescaleSlope and RescaleIntercept{where} are missing; the numbers are no HU without them"
            )
        if slope == 0.0:
            raise DicomFault("RescaleSlope is 0")
        pairs.append((slope, intercept))
    array = np.array(pairs)
    return array[:, 0], array[:, 1]


def _padding(dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return where stored values are padding (PS3.3 C.7.5.1.1.2), or None."""
    low = optional_numbers(dataset, "PixelPaddingValue", 1)
    if low is None:
        return None
    high = optional_numbers(dataset, "PixelPaddingRangeLimit", 1)
    ends = sorted((float(low[0]), float(low[0] if high is None else high[0])))
    mask: NDArray[np.bool_] = (stored >= ends[0]) & (stored <= ends[1])
    return mask if mask.any() else None
