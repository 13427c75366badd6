"""Owns the files of C-arm calibration: bead phantoms in, X-rays in, the calibrated C-arm out and in again.

Refuses keys that are not known, pictures that are not pictures, and a calibration whose arrays do not belong together.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from calibration.bead_phantom import BeadPhantom
from calibration.carm import PHANTOM
from calibration.carm_table import CarmCalibration
from calibration.distortion import Bending, Distortion
from navsrv.kernel.errors import CalibrationError, InputError
from navsrv.kernel.frames import CARM, Array, Rigid, frozen_array
from navsrv.kernel.projection import ProjectionModel
from navsrv.kernel.registration import Verdict

PHANTOM_KEYS: Final = frozenset(("name", "made_to_mm", "beads"))
FORMAT: Final = 1
DICOM_SDD: Final = "0018|1110"
DICOM_ANGLE: Final = "0018|1510"
DICOM_PIXEL: Final = "0018|1164"


@dataclass(frozen=True, slots=True, eq=False)
class XrayFile:
    """A picture (rows, columns) and what its file says of the C-arm; None where it says nothing."""

    pixels: Array
    pixel_mm: float | None
    sdd_mm: float | None
    angle_deg: float | None


def read_phantom(path: Path) -> BeadPhantom:
    """Return the phantom of a TOML file (``name``, ``made_to_mm``, ``beads = [[x, y, z, diameter], ...]``) or of a CSV.

    Raises
    ------
    InputError
        Missing, not readable, an unknown key, a row that is not four numbers, or no phantom to calibrate with.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise InputError(f"{path}: {reason}; a bead phantom (.toml or .csv) is needed") from None
    name, made_to_mm = path.stem, 0.02
    rows: list[Any]
    if path.suffix == ".toml":
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(
                f"{path}: {error}; a TOML file with beads = [[x, y, z, diameter], ...] is needed"
            ) from None
        unknown = sorted(set(table) - PHANTOM_KEYS)
        if unknown:
            raise InputError(f"{path}: unknown key {unknown[0]}; known are {', '.join(sorted(PHANTOM_KEYS))}")
        name, made_to_mm, rows = (
            str(table.get("name", name)),
            table.get("made_to_mm", made_to_mm),
            table.get("beads", []),
        )
    else:
        lines = [line.split("#")[0].replace(",", " ").split() for line in text.splitlines()]
        rows = [words for words in lines if words and words[0].lstrip("-+.")[:1].isdigit()]
    try:
        beads = np.array([[float(number) for number in row] for row in rows], dtype=np.float64)
        if beads.ndim != 2 or beads.shape[1] != 4:
            raise ValueError
        return BeadPhantom(name, beads[:, :3], beads[:, 3], float(made_to_mm))
    except (TypeError, ValueError):
        raise InputError(f"{path}: beads must be rows of x, y, z and diameter in mm") from None
    except CalibrationError as error:
        raise InputError(f"{path}: {error}") from None


def read_xray(path: Path) -> XrayFile:
    """Return a picture of one frame: PNG, TIFF, MetaImage, NRRD or DICOM.

    Raises
    ------
    InputError
        Missing, not readable, of colours or of several frames.
    """
    import SimpleITK as sitk

    if not path.is_file():
        raise InputError(f"{path}: no such file; an X-ray (.png, .tif, .mha, .dcm) is needed")
    try:
        image: Any = sitk.ReadImage(str(path))
    except RuntimeError:
        raise InputError(f"{path}: cannot be read as a picture; .png, .tif, .mha or .dcm is needed") from None
    size = image.GetSize()
    if image.GetNumberOfComponentsPerPixel() != 1 or (len(size) == 3 and size[2] != 1) or len(size) not in (2, 3):
        raise InputError(
            f"{path}: {size} pixels of {image.GetNumberOfComponentsPerPixel()} values: one grey frame needed"
        )
    pixels = np.asarray(sitk.GetArrayFromImage(image), dtype=np.float64).reshape(size[1], size[0])

    def said(tag: str) -> float | None:
        try:
            return float(image.GetMetaData(tag).split("\\")[0]) if image.HasMetaDataKey(tag) else None
        except ValueError:
            return None

    spacing = said(DICOM_PIXEL)
    if spacing is None and path.suffix.lower() in (".mha", ".mhd", ".nrrd") and image.GetSpacing()[0] != 1.0:
        spacing = float(image.GetSpacing()[0])
    return XrayFile(pixels, spacing, said(DICOM_SDD), said(DICOM_ANGLE))


def write_carm(path: Path, calibration: CarmCalibration) -> None:
    """Write a calibrated C-arm (.npz), beside the place and then renamed.

    Raises
    ------
    InputError
        Another suffix, or no such folder.
    """
    if path.suffix != ".npz" or not path.parent.is_dir():
        raise InputError(f"{path}: a name that ends in .npz, in a folder that exists, is needed")
    first = calibration.models[0]
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with unfinished.open("wb") as file:
        np.savez(
            file,
            format=FORMAT,
            angles_rad=calibration.angles_rad,
            intrinsics=[model.intrinsics for model in calibration.models],
            T_carm_from_phantom=[model.T_carm_from_object.matrix for model in calibration.models],
            size_px=(first.columns, first.rows),
            bending=calibration.distortions[0].kind.value,
            coefficients=[distortion.coefficients for distortion in calibration.distortions],
            axis_phantom=calibration.axis_phantom,
            left_out_mm=calibration.left_out_mm,
            view_sigma_mm=calibration.view_sigma_mm,
            verdict=calibration.verdict.value,
            reason=calibration.reason,
            detail_names=[name for name, _ in calibration.details],
            detail_values=[value for _, value in calibration.details],
        )
    unfinished.replace(path)


def read_carm(path: Path) -> CarmCalibration:
    """Return the C-arm that ``write_carm`` wrote.

    Raises
    ------
    InputError
        Missing, not such a file, of another format, or with arrays that do not belong together.
    """
    try:
        with np.load(path, allow_pickle=False) as table:
            if int(table["format"]) != FORMAT:
                raise InputError(f"{path}: format {int(table['format'])}, {FORMAT} is read; calibrate again")
            columns, rows = (int(n) for n in table["size_px"])
            kind = Bending(str(table["bending"]))
            models = tuple(
                ProjectionModel(k, columns, rows, Rigid.from_matrix(CARM, PHANTOM, pose))
                for k, pose in zip(table["intrinsics"], table["T_carm_from_phantom"], strict=True)
            )
            distortions = tuple(Distortion(kind, row, columns, rows) for row in table["coefficients"])
            angles = np.asarray(table["angles_rad"], dtype=np.float64)
            if not len(angles) == len(models) == len(distortions) or (np.diff(angles) <= 0.0).any():
                raise ValueError
            return CarmCalibration(
                frozen_array(angles, angles.shape),
                models,
                distortions,
                frozen_array(table["axis_phantom"], (3,)),
                frozen_array(table["left_out_mm"], angles.shape),
                frozen_array(table["view_sigma_mm"], angles.shape),
                Verdict(str(table["verdict"])),
                str(table["reason"]),
                tuple((str(n), float(v)) for n, v in zip(table["detail_names"], table["detail_values"], strict=True)),
            )
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'not readable'}; a calibrated C-arm (.npz) is needed") from None
    except (KeyError, ValueError, EOFError):
        raise InputError(f"{path}: not a calibrated C-arm as navsrv calibrate carm writes it") from None
