"""Owns the configuration of DICOM: the server, and how the images that a source sends by it are placed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from navsrv.kernel.checking import Checker, rule
from navsrv.kernel.frames import RIGIDITY_TOLERANCE, rotation_defect

PORT: Final = 11112
_AE_TITLE: Final = re.compile(r"[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")
"""PS3.5 6.2: 1 to 16 characters of ASCII without backslash and control characters; outer spaces mean nothing."""


@dataclass(frozen=True, slots=True)
class DicomConfig:
    """The C-STORE and C-ECHO server; off unless this table is there.

    Only callers that an imaging source or ``callers`` names may associate.  ``pose_memory_s``: how long poses are kept
    for an image that arrives long after it was taken.
    """

    port: int = rule(PORT, low=0, high=65535)
    ae_title: str = "NAVSRV"
    callers: tuple[str, ...] = rule(())
    series_quiet_s: float = rule(5.0, low=0.1, high=600.0)
    silent_s: float = rule(30.0, low=0.5, high=3600.0)
    pose_memory_s: float = rule(180.0, low=1.0, high=1800.0)
    max_associations: int = rule(4, low=1, high=32)
    max_object_mb: int = rule(512, low=1, high=4096)
    max_held_mb: int = rule(1024, low=1, high=16384)


@dataclass(frozen=True, slots=True)
class DicomSourceConfig:
    """How the images of one device that come by DICOM are placed in space and time.

    ``pose_of``: whether the source's ``pose`` is that of the image's own frame, or of the equipment, to which
    (0028,9520) or the angles of an Enhanced XA lead; ``T_pose_from_equipment`` is then the calibrated place of the
    equipment's system in the tracked frame.  ``clock_ahead_s``: the device's clock less this server's.
    """

    pose_of: Literal["image", "equipment"] = "image"
    T_pose_from_equipment: tuple[tuple[float, ...], ...] | None = rule(None, length=4, low=-1e5, high=1e5)
    stamps: Literal["acquisition", "receipt"] = "acquisition"
    clock_ahead_s: float = rule(0.0, low=-86400.0, high=86400.0)
    utc_offset_min: int | None = rule(None, low=-840, high=840)
    seen_from: Literal["detector", "source"] = "detector"


def check_dicom(checker: Checker, data: Mapping[str, Any]) -> None:
    """Note faults that only show when the tables of DICOM are held together; ``data`` is the whole configuration."""
    imaging = data.get("imaging")
    sources = {
        name: table
        for name, table in (imaging.items() if isinstance(imaging, Mapping) else ())
        if isinstance(table, Mapping)
    }
    by_dicom = {name: table for name, table in sources.items() if table.get("connect") == "dicom"}
    for name, table in sources.items():
        if "dicom" in table and name not in by_dicom:
            checker.fault(f"imaging.{name}.dicom", "the source does not come by DICOM", 'connect = "dicom" beside it')
    if "dicom" not in data:
        for name in by_dicom:
            checker.fault(f"imaging.{name}.connect", "there is no DICOM server", "a table [dicom]")
        return
    server = Checker("").table(DicomConfig, data["dicom"], "")
    if server is None:
        return
    _check_title(checker, "dicom.ae_title", server.ae_title)
    for n, caller in enumerate(server.callers):
        _check_title(checker, f"dicom.callers[{n}]", caller)
    if not by_dicom and not server.callers:
        checker.fault("dicom.callers", "nobody may call", 'AE titles, or an imaging source with connect = "dicom"')
    if server.max_held_mb < server.max_object_mb:
        wrong = f"{server.max_held_mb} MB are less than one object may have ({server.max_object_mb})"
        checker.fault("dicom.max_held_mb", wrong, "at least dicom.max_object_mb")
    owners: dict[tuple[Any, Any], str] = {}
    for name, table in by_dicom.items():
        _check_title(checker, f"imaging.{name}.image", table.get("image"))
        owner = owners.setdefault((table.get("image"), table.get("kind")), name)
        if owner != name:
            wrong = f"{table.get('image')!r} sends for imaging.{owner} already"
            checker.fault(f"imaging.{name}.image", wrong, "one AE title for each source of a kind")
        own = Checker("").table(DicomSourceConfig, table.get("dicom", {}), "")
        if own is not None:
            _check_source(checker, f"imaging.{name}.dicom.T_pose_from_equipment", own)


def _check_source(checker: Checker, key: str, source: DicomSourceConfig) -> None:
    rows = source.T_pose_from_equipment
    if rows is None:
        return
    if source.pose_of != "equipment":
        checker.fault(key, "the pose is that of the image itself", 'pose_of = "equipment", or no such key')
    matrix = np.array(rows) if all(len(row) == 4 for row in rows) else np.zeros((4, 4))
    if matrix[3].tolist() != [0.0, 0.0, 0.0, 1.0] or rotation_defect(matrix[:3, :3]) > RIGIDITY_TOLERANCE:
        checker.fault(key, "not a rigid motion", "four rows of four numbers, the last 0, 0, 0, 1")


def _check_title(checker: Checker, key: str, title: Any) -> None:
    if isinstance(title, str) and not _AE_TITLE.match(title):
        checker.fault(key, f"{title!r} is no AE title", "1 to 16 characters of ASCII, no backslash")
