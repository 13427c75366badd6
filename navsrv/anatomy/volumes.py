"""Owns the intake of volumes: NIfTI, NRRD, MetaImage and DICOM series become ``Volume`` in LPS mm.

Refuses what cannot be a CT or a label map (empty, of one value, not finite, not a grid of equal steps) and label maps
on another grid than their CT, and says which of size, spacing, origin and direction differs and by how much.

Volumes are turned to the axis order that is nearest to LPS before anything compares them: a file that stores the same
voxels feet first or with flipped axes is the same volume, and is compared in physical space, never by index.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy.case import Volume, sha256_of
from navsrv.anatomy.whole_files import require_whole
from navsrv.kernel.errors import InputError

FORMATS: Final = "NIfTI, NRRD, MetaImage or a folder with one DICOM series"

CORNER_TOLERANCE: Final = 0.05
"""Two grids are the same when no corner lies further apart than this part of a voxel: formats round their headers."""


def read_ct(path: Path, series: str | None = None) -> Volume:
    """Return a CT in HU, axes nearest to LPS.

    Parameters
    ----------
    path : Path
        A file, or a folder with a DICOM series.
    series : str, optional
        SeriesInstanceUID, for a folder with several.

    Raises
    ------
    InputError
        The file is missing, empty, not an image, not three-dimensional, not finite or of one value.
    """
    volume = _read(path, series, "CT")
    voxels = volume.voxels
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise InputError(f"{path}: CT: {int((~np.isfinite(voxels)).sum())} voxels are not finite numbers")
    lowest, highest = voxels.min(), voxels.max()
    if lowest == highest:
        raise InputError(f"{path}: CT: every voxel is {lowest:g}; expected HU that differ")
    return Volume(_compact_hu(voxels), volume.origin_mm, volume.spacing_mm, volume.direction)


def read_labels(path: Path, series: str | None = None) -> Volume:
    """Return a label map of unsigned whole numbers, axes nearest to LPS; InputError as ``read_ct`` or for fractions."""
    volume = _read(path, series, "label map")
    voxels = volume.voxels
    if voxels.dtype.kind == "f":
        # NaN is not equal to itself, so it is caught here as well.
        fractions = int((voxels != np.rint(voxels)).sum())
        if fractions:
            raise InputError(f"{path}: label map: {fractions} voxels are not whole numbers; is this the CT?")
    lowest, highest = int(voxels.min()), int(voxels.max())
    if lowest < 0 or highest > 65535:
        raise InputError(f"{path}: label map: values {lowest} to {highest}; expected 0 to 65535; is this the CT?")
    if highest == 0:
        raise InputError(f"{path}: label map: every voxel is 0; expected at least one label")
    compact: NDArray[Any] = voxels.astype(np.uint8 if highest < 256 else np.uint16)
    return Volume(compact, volume.origin_mm, volume.spacing_mm, volume.direction)


def describe_source(path: Path) -> dict[str, Any]:
    """Return what provenance keeps of a source: file name and SHA-256; for a folder the hash over its files' hashes."""
    if path.is_file():
        return {"file": path.name, "sha256": sha256_of(path)}
    hashes = sorted(sha256_of(p) for p in path.iterdir() if p.is_file())
    total = hashlib.sha256("".join(hashes).encode()).hexdigest()
    return {"folder": path.name, "files": len(hashes), "sha256_of_sorted_sha256": total}


def geometry_differences(ct: Volume, labels: Volume) -> tuple[str, ...]:
    """Return what differs between two grids, one text each with the amount; empty when they are the same grid."""
    differences = []
    if ct.size != labels.size:
        differences.append(f"size is {_text(labels.size)} voxels, the CT has {_text(ct.size)}")
    n = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * (np.asarray(ct.size) - 1)
    gap = np.linalg.norm(ct.ct_from_index(n) - labels.ct_from_index(n), axis=1).max()
    if gap <= CORNER_TOLERANCE * ct.spacing_mm.min():
        return tuple(differences)
    spacing = float(np.abs(ct.spacing_mm - labels.spacing_mm).max())
    origin = float(np.linalg.norm(ct.origin_mm - labels.origin_mm))
    turn = labels.direction @ ct.direction.T
    angle = float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))
    if spacing > 1e-4:
        differences.append(f"spacing is {_text(labels.spacing_mm)} mm, the CT has {_text(ct.spacing_mm)}")
    if origin > 1e-3:
        differences.append(
            f"origin is {_text(labels.origin_mm)} mm, {origin:.3f} mm away from the CT's {_text(ct.origin_mm)}"
        )
    if angle > 0.01:
        differences.append(f"direction is turned by {angle:.3f} degrees against the CT")
    return tuple(differences) or (f"corners lie up to {gap:.3f} mm apart",)


def require_same_geometry(ct: Volume, labels: Volume, path: Path) -> None:
    """Raise InputError unless the label map read from ``path`` lies on the CT's grid."""
    differences = geometry_differences(ct, labels)
    if differences:
        raise InputError(f"{path}: label map of another geometry: {'; '.join(differences)}; resample it to the CT")


def write_mha(volume: Volume, path: Path, *, compress: bool = False) -> None:
    """Write a volume as MetaImage."""
    sitk = _sitk()
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.voxels))
    image.SetOrigin(volume.origin_mm.tolist())
    image.SetSpacing(volume.spacing_mm.tolist())
    image.SetDirection(volume.direction.ravel().tolist())
    try:
        sitk.WriteImage(image, str(path), compress)
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be written ({_reason(error)}); is the disk full?") from None


def crop(volume: Volume, low_ijk: tuple[int, int, int], high_ijk: tuple[int, int, int]) -> Volume:
    """Return the voxels with index ``low_ijk`` <= (i, j, k) < ``high_ijk``, at the same place in the frame ``ct``."""
    (i0, j0, k0), (i1, j1, k1) = low_ijk, high_ijk
    voxels = np.ascontiguousarray(volume.voxels[k0:k1, j0:j1, i0:i1])
    return Volume(voxels, volume.ct_from_index((i0, j0, k0)), volume.spacing_mm, volume.direction)


def _sitk() -> Any:
    """SimpleITK, imported when the first volume is read; its own type hints are partial, so it is untyped here."""
    import SimpleITK

    return SimpleITK


def _text(values: Any) -> str:
    return (
        " x ".join(f"{v:g}" for v in values) if isinstance(values, tuple) else str([round(float(v), 4) for v in values])
    )


def _compact_hu(voxels: NDArray[Any]) -> NDArray[Any]:
    """Whole HU are kept as int16, everything else as float32: HU carry no more than that."""
    if voxels.dtype == np.int16:
        return voxels
    whole = voxels.dtype.kind in "iub" or bool((voxels == np.rint(voxels)).all())
    if whole and voxels.min() >= -32768 and voxels.max() <= 32767:
        return voxels.astype(np.int16)
    return voxels.astype(np.float32)


def _read(path: Path, series: str | None, what: str) -> Volume:
    sitk = _sitk()
    # ITK prints warnings of its own on the terminal; what matters of them is checked here and raised.
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    if not path.exists():
        raise InputError(f"{path}: {what}: no such file or folder; expected {FORMATS}")
    if path.is_dir():
        image = _read_series(path, series, what)
    else:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: {what}: the file is empty (0 bytes); expected {FORMATS}")
        require_whole(path, what)
        try:
            with _no_chatter():
                image = sitk.ReadImage(str(path))
        except RuntimeError as error:
            raise InputError(f"{path}: {what}: not a readable image ({_reason(error)}); expected {FORMATS}") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{path}: {what}: {image.GetDimension()} dimensions with {image.GetNumberOfComponentsPerPixel()} value(s)"
            " for each voxel; expected three dimensions and one value"
        )
    if min(image.GetSize()) < 2:
        raise InputError(f"{path}: {what}: size {_text(image.GetSize())}; expected at least 2 voxels along each axis")
    image = sitk.DICOMOrient(image, "LPS")
    direction = np.array(image.GetDirection()).reshape(3, 3)
    return Volume(sitk.GetArrayFromImage(image), image.GetOrigin(), image.GetSpacing(), direction)


@contextmanager
def _no_chatter() -> Iterator[None]:
    """Keep what ITK's readers print from C++ off the terminal: the exception says the same, in one line."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _reason(error: RuntimeError) -> str:
    """Return the last line of an ITK exception, without its source file and line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else "no reason given"
    return last.split("): ", 1)[-1].removeprefix("sitk::ERROR: ")[:160]


def _read_series(folder: Path, series: str | None, what: str) -> Any:
    from navsrv.anatomy.dicom_folder import read_series

    found = read_series(folder, series, what, hounsfield_only=what == "CT")
    spacing = np.linalg.norm(found.matrix[:3, :3], axis=0)
    image = _sitk().GetImageFromArray(np.ascontiguousarray(found.voxels))
    image.SetOrigin(found.matrix[:3, 3].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection((found.matrix[:3, :3] / spacing).ravel().tolist())
    return image
