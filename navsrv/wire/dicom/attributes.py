"""Owns the reading of single attributes.  pydicom converts a value when it is asked for, so that is where bad text
shows: here it becomes a ``DicomFault``, and an empty value reads as a missing one.
"""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import RIGIDITY_TOLERANCE, Array, rotation_defect

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_ZONE: Final = re.compile(r"([+-])(\d\d)(\d\d)$")


class DicomFault(InputError):
    """A DICOM object that cannot be used as it is; whoever sent or chose it can act."""


def value(dataset: Dataset, keyword: str) -> Any:
    """Return an attribute's value, or None where it is missing or empty.

    Raises
    ------
    DicomFault
        The value is not one of its kind.
    """
    try:
        found = dataset.get(keyword)
    except Exception as error:
        # pydicom raises whatever its parsers meet, and a sender's bytes reach all of them.
        raise DicomFault(f"{keyword} cannot be read ({_first_line(error)})") from None
    if found is None or (isinstance(found, str) and not found.strip()):
        return None
    return None if hasattr(found, "__len__") and len(found) == 0 else found


def text(dataset: Dataset, keyword: str) -> str:
    """Return an attribute as text; empty where it is missing."""
    found = value(dataset, keyword)
    return "" if found is None else str(found).strip()


def numbers(dataset: Dataset, keyword: str, count: int) -> Array:
    """Return exactly ``count`` finite numbers (count,); DicomFault otherwise."""
    found = optional_numbers(dataset, keyword, count)
    if found is None:
        raise DicomFault(f"{keyword} is missing; expected {count} number{'s' if count > 1 else ''}")
    return found


def optional_numbers(dataset: Dataset, keyword: str, count: int) -> Array | None:
    """Return ``numbers``, or None where the attribute is missing or empty."""
    found = value(dataset, keyword)
    if found is None:
        return None
    try:
        array: Array = np.atleast_1d(np.array(found, dtype=np.float64))
    except (TypeError, ValueError):
        raise DicomFault(f"{keyword} is {str(found)[:60]!r}; expected {count} numbers") from None
    if array.shape != (count,) or not np.isfinite(array).all():
        raise DicomFault(f"{keyword} is {str(found)[:60]}; expected {count} finite numbers")
    return array


def optional_number(dataset: Dataset, keyword: str) -> float | None:
    """Return one finite number, or None where the attribute is missing or empty."""
    found = optional_numbers(dataset, keyword, 1)
    return None if found is None else float(found[0])


def whole(dataset: Dataset, keyword: str, low: int = 1, high: int = 1 << 31) -> int:
    """Return a whole number within [low, high]; DicomFault otherwise."""
    number = float(numbers(dataset, keyword, 1)[0])
    if number != int(number) or not low <= number <= high:
        raise DicomFault(f"{keyword} is {number:g}; expected a whole number of at least {low}")
    return int(number)


def item(dataset: Dataset, keyword: str) -> Dataset | None:
    """Return the only item of a sequence, or None where the sequence is missing or empty."""
    found = value(dataset, keyword)
    if found is None:
        return None
    if len(found) != 1:
        raise DicomFault(f"{keyword} has {len(found)} items; expected one")
    only: Dataset = found[0]
    return only


def equipment_mapping(dataset: Dataset) -> Array | None:
    """Return ``T_equipment_from_patient`` (4, 4) in mm of (0028,9520), row by row (PS3.3 C.7.6.21.1); None if absent.

    Raises
    ------
    DicomFault
        It is not a rigid motion: one written column by column is found out by its last row.
    """
    found = optional_numbers(dataset, "ImageToEquipmentMappingMatrix", 16)
    if found is None:
        return None
    matrix: Array = found.reshape(4, 4)
    if matrix[3].tolist() != [0.0, 0.0, 0.0, 1.0]:
        raise DicomFault("(0028,9520) ends with a row other than 0, 0, 0, 1; expected a rigid motion, row by row")
    if rotation_defect(matrix[:3, :3]) > RIGIDITY_TOLERANCE:
        raise DicomFault("(0028,9520) is not a rigid motion; expected orthonormal axes, right-handed")
    return matrix


def acquired_ns(dataset: Dataset, zone_s: int) -> int | None:
    """Return when an image was taken, ns since the Unix epoch by its device's clock; None where it does not say.

    Parameters
    ----------
    zone_s : int
        Seconds east of UTC for an object that names no zone: DICOM then means the device's local time (PS3.5 6.2).
    """
    stated = text(dataset, "TimezoneOffsetFromUTC")
    zone = _zone_s(stated) if stated else zone_s
    for keyword in ("FrameAcquisitionDateTime", "AcquisitionDateTime"):
        found = text(dataset, keyword)
        if found:
            return _instant_ns(found, zone, keyword)
    for kind in ("Acquisition", "Content"):
        day, clock = text(dataset, f"{kind}Date"), text(dataset, f"{kind}Time")
        if day and clock:
            return _instant_ns(day.replace(".", "") + clock.replace(":", ""), zone, f"{kind}Date and {kind}Time")
    return None


def _zone_s(stated: str) -> int:
    found = _ZONE.match(stated)
    if found is None:
        raise DicomFault(f"time zone {stated[:20]!r}; expected the form +0100")
    seconds = 3600 * int(found[2]) + 60 * int(found[3])
    return -seconds if found[1] == "-" else seconds


def _instant_ns(stated: str, zone_s: int, what: str) -> int:
    """Return the instant of YYYYMMDDHHMMSS with fraction and zone, both optional."""
    zone = _ZONE.search(stated)
    if zone is not None:
        zone_s, stated = _zone_s(zone[0]), stated[: zone.start()]
    whole_part, _, fraction = stated.partition(".")
    try:
        naive = datetime.datetime.strptime(whole_part, "%Y%m%d%H%M%S")
        rest = int((fraction or "0").ljust(9, "0")[:9])
    except ValueError:
        raise DicomFault(f"{what} is {stated[:40]!r}; expected a date and a time to the second") from None
    seconds = int((naive - datetime.datetime(1970, 1, 1)).total_seconds()) - zone_s
    return seconds * 1_000_000_000 + rest


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:120]
