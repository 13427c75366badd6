"""Owns segmentations that come as DICOM objects: SEG (binary, fractional, label map) and RTSTRUCT, on their CT's grid.

A label map has one value for each voxel, these objects may have several segments there.  So a voxel's value is its
segment's number where it has one segment; each combination that occurs gets a value of its own above all numbers, and
``Segmentation.members`` tells which values make up a segment.

Refuses a segmentation of another frame of reference than the CT's, and a SEG whose voxels are not the CT's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy.case import Volume
from navsrv.anatomy.contours import Contour, rasterise
from navsrv.anatomy.dicom_folder import lenient
from navsrv.anatomy.roles import Role, Roles
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SEG_CLASSES: Final = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
RTSTRUCT_CLASS: Final = "1.2.840.10008.5.1.4.1.1.481.3"
HALF: Final = 0.5
"""Part of a voxel from which on a fractional segment holds it."""
GRID_TOLERANCE: Final = 0.05
"""Largest distance, in voxels, between a voxel of a SEG and the CT's: formats round their headers."""
MOST_VALUES: Final = 65535


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """Segments on the CT's grid.

    Attributes
    ----------
    labels : Volume
        uint16; see the module.
    names : mapping of int to str
        Of each segment by its number (SEG) or ROI number (RTSTRUCT); empty ones are there too.
    members : mapping of int to tuple of int
        The values of ``labels`` that make up each segment that has voxels.
    """

    labels: Volume
    names: Mapping[int, str]
    members: Mapping[int, tuple[int, ...]]

    def on_values(self, roles: Roles, path: Path) -> Roles:
        """Return roles whose labels are values of the label map instead of segment numbers.

        Raises
        ------
        InputError
            A role asks for a segment that is not there or has no voxel.
        """
        return replace(roles, structures=tuple(self._on_values(role, path) for role in roles.structures))

    def _on_values(self, role: Role, path: Path) -> Role:
        for number in role.labels:
            if number not in self.members:
                listed = ", ".join(f"{n} ({name})" for n, name in self.names.items() if n in self.members)
                empty = f"segment {number} ({self.names[number]}) has no voxel" if number in self.names else ""
                wrong = empty or f"segment {number} is not in the file"
                raise InputError(f"{path}: structure {role.name!r}: {wrong}; those with voxels are {listed or 'none'}")
        values = {value for number in role.labels for value in self.members[number]}
        return replace(role, labels=tuple(sorted(values)))


def find_segmentation(path: Path) -> Path | None:
    """Return the SEG or RTSTRUCT that a path is, or that is alone in the folder; None where it is another kind."""
    if path.is_file():
        return path if _class_of(path) in (*SEG_CLASSES, RTSTRUCT_CLASS) else None
    if not path.is_dir():
        return None
    files = [file for file in path.iterdir() if file.is_file()]
    return find_segmentation(files[0]) if len(files) == 1 else None


def read_segmentation(path: Path, ct: Volume, frame_of_reference_uid: str | None) -> Segmentation:
    """Return the segments of a SEG or RTSTRUCT on a CT's grid.

    Parameters
    ----------
    ct : Volume
        Its grid, in any axis order.
    frame_of_reference_uid : str or None
        The CT's; None where its format has none, and nothing can be checked.

    Raises
    ------
    InputError
        Not readable, another frame of reference, another grid (SEG), contours that are not planar on the CT's slices,
        or no segment with a voxel.
    """
    with lenient():
        if _class_of(path) == RTSTRUCT_CLASS:
            names, masks = _from_rtstruct(path, ct, frame_of_reference_uid)
        else:
            names, masks = _from_seg(path, ct, frame_of_reference_uid)
        labels, members = _combined(masks, ct, max(names, default=0))
    if not members:
        raise InputError(f"{path}: no segment has a voxel on this CT")
    return Segmentation(labels, names, members)


def _class_of(path: Path) -> str:
    """Return a DICOM file's class; empty for a file of another kind."""
    from pydicom import dcmread

    try:
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                return ""
        with lenient():
            return str(dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]).get("SOPClassUID", ""))
    except Exception:
        # Whatever stops its reading, it is no object of ours; the reader of other formats says what it is.
        return ""


def _require_frame(path: Path, theirs: str, ct_frame: str | None) -> None:
    if ct_frame and theirs and theirs != ct_frame:
        raise InputError(
            f"{path}: segmented in the frame of reference {theirs}, the CT has {ct_frame}; expected the very CT that it"
            " was drawn on"
        )


def _combined(
    masks: Iterable[tuple[int, NDArray[np.bool_]]], ct: Volume, largest: int
) -> tuple[Volume, dict[int, tuple[int, ...]]]:
    """Return the label map of masks that may overlap, and which of its values make up each of them.

    ``largest`` is the largest number that any segment has, with voxels or not.
    """
    codes = np.zeros(ct.voxels.shape, dtype=np.uint16)
    held: list[frozenset[int]] = [frozenset()]
    code_of = {held[0]: 0}
    for number, mask in masks:
        inside = codes[mask]
        turned = np.zeros(len(held), dtype=np.uint16)
        for code in np.unique(inside).tolist():
            together = held[code] | {number}
            if together not in code_of:
                code_of[together] = len(held)
                held.append(together)
            turned[code] = code_of[together]
        if len(held) > MOST_VALUES:
            raise InputError(f"more than {MOST_VALUES} combinations of overlapping segments")
        codes[mask] = turned[inside]
    present = np.flatnonzero(np.bincount(codes.ravel(), minlength=len(held)))
    final = np.zeros(len(held), dtype=np.uint16)
    free = largest + 1
    members: dict[int, list[int]] = {}
    for code in present[present > 0].tolist():
        group = held[code]
        value = next(iter(group)) if len(group) == 1 else free
        free += len(group) > 1
        if value > MOST_VALUES:
            raise InputError(f"segment numbers and combinations go beyond {MOST_VALUES}")
        final[code] = value
        for number in group:
            members.setdefault(number, []).append(value)
    volume = Volume(final[codes], ct.origin_mm, ct.spacing_mm, ct.direction)
    return volume, {number: tuple(sorted(values)) for number, values in sorted(members.items())}


def _from_seg(
    path: Path, ct: Volume, ct_frame: str | None
) -> tuple[dict[int, str], Iterable[tuple[int, NDArray[np.bool_]]]]:
    import highdicom

    try:
        seg = highdicom.seg.segread(path)
        _require_frame(path, str(seg.get("FrameOfReferenceUID", "")), ct_frame)
        names = {n: str(seg.get_segment_description(n).segment_label) for n in seg.segment_numbers}
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: not a readable SEG ({_line(error)})") from None

    def masks() -> Iterable[tuple[int, NDArray[np.bool_]]]:
        for number in names:
            try:
                volume = seg.get_volume(segment_numbers=[number], combine_segments=False, rescale_fractional=True)
            except Exception as error:
                raise InputError(f"{path}: segment {number}: not a volume ({_line(error)})") from None
            inside = np.asarray(volume.array).reshape(volume.array.shape[:3]) >= HALF
            yield number, _on_grid(path, number, inside, np.asarray(volume.affine), ct)

    return names, masks()


def _on_grid(path: Path, number: int, inside: NDArray[np.bool_], affine: Array, ct: Volume) -> NDArray[np.bool_]:
    """Return a segment's mask on the CT's grid; InputError unless its voxels are voxels of the CT.

    ``affine`` maps the mask's array index (slice, row, column) to LPS mm.
    """
    to_ct = np.diag([0.0, 0.0, 0.0, 1.0])
    to_ct[:3, :3] = np.linalg.inv(ct.direction * ct.spacing_mm)[::-1]  # to (k, j, i), the order of ``ct.voxels``
    to_ct[:3, 3] = -to_ct[:3, :3] @ ct.origin_mm
    step = to_ct @ affine
    whole = np.rint(step)
    corners = np.array([[*c, 1] for c in np.ndindex(2, 2, 2)]) * [*(np.array(inside.shape) - 1), 1]
    off = float(np.abs(corners @ (step - whole).T).max())
    turns = np.abs(whole[:3, :3])
    if off > GRID_TOLERANCE or not (turns.sum(axis=0) == 1).all() or not (turns.sum(axis=1) == 1).all():
        spacing = np.linalg.norm(affine[:3, :3], axis=0).round(4).tolist()
        raise InputError(
            f"{path}: segment {number} lies on another grid than the CT (steps of {spacing} mm, up to {off:.2f} voxels"
            " off); resample it to the CT"
        )
    axes = turns.argmax(axis=1)  # the mask's axis that runs along each of the CT's
    turned = inside.transpose(axes)
    start = whole[:3, 3].astype(int)
    for axis in range(3):
        if whole[axis, axes[axis]] < 0:
            turned = np.flip(turned, axis)
            start[axis] -= turned.shape[axis] - 1
    low, high = np.maximum(start, 0), np.minimum(start + turned.shape, ct.voxels.shape)
    mask = np.zeros(ct.voxels.shape, dtype=np.bool_)
    within = tuple(slice(a, max(a, b)) for a, b in zip(low - start, high - start, strict=True))
    mask[tuple(slice(a, max(a, b)) for a, b in zip(low, high, strict=True))] = turned[within]
    lost = int(np.count_nonzero(turned)) - int(np.count_nonzero(mask))
    if lost:
        raise InputError(f"{path}: segment {number}: {lost} voxels lie outside the CT")
    return mask


def _from_rtstruct(
    path: Path, ct: Volume, ct_frame: str | None
) -> tuple[dict[int, str], Iterable[tuple[int, NDArray[np.bool_]]]]:
    from pydicom import dcmread

    try:
        dataset = dcmread(path)
        names = {int(roi.ROINumber): str(roi.get("ROIName", "")) for roi in dataset.StructureSetROISequence}
        frames = {
            int(roi.ROINumber): str(roi.get("ReferencedFrameOfReferenceUID", ""))
            for roi in dataset.StructureSetROISequence
        }
        outlines = {
            int(roi.ReferencedROINumber): _contours(path, roi)
            for roi in dataset.get("ROIContourSequence") or ()
            if roi.get("ContourSequence")
        }
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: not a readable RTSTRUCT ({_line(error)})") from None
    for number in outlines:
        _require_frame(path, frames.get(number, ""), ct_frame)

    def masks() -> Iterable[tuple[int, NDArray[np.bool_]]]:
        for number, contours in outlines.items():
            try:
                yield number, rasterise(contours, ct)
            except InputError as error:
                raise InputError(f"{path}: ROI {number} ({names.get(number, '')}): {error}") from None

    return names, masks()


def _contours(path: Path, roi: Dataset) -> list[Contour]:
    """Return the closed planar contours of an ROI, (N, 3) each, LPS mm; points and open lines hold no volume."""
    found: list[Contour] = []
    for contour in roi.ContourSequence:
        kind = str(contour.get("ContourGeometricType", ""))
        if kind not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
            continue
        points = np.array(contour.ContourData, dtype=np.float64)
        if len(points) % 3 or len(points) < 9 or not np.isfinite(points).all():
            raise InputError(
                f"{path}: ROI {roi.ReferencedROINumber}: a contour of {len(points)} numbers; expected x, y, z"
            )
        found.append(points.reshape(-1, 3))
    return found


def _line(error: Exception) -> str:
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]
