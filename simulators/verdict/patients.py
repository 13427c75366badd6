"""Owns who is in the picture: a CT, its bones, and which of them are next to which.

A patient has a name that says all: ``sacrum:5`` is the generated pelvis of seed 5, ``spine:31:2`` the real spine about
the vertebra with label 31 (L1) with the proportions of variant 2 (0: as they are; negative: strangers, further off).
Variants stretch the three axes by a few per cent, which is the least that tells one adult's bones from another's; they
are stand-ins for patients we have no CT of, and reports say so.  Generated pelves of different seeds are nearly twins
(one shape, sizes within 3 per cent, surfaces 1 to 2 mm apart): strangers among them are stretched, too.  ``hip`` is the
left one of the real hip bones in the folder that ``NAVSRV_DATA`` names, in water; the right one may move against it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy.case import Volume
from navsrv.anatomy.home import made_folder, navsrv_home
from navsrv.kernel.frames import Array
from navsrv.registration.images import CtImage

AROUND_MM: Final = 125.0
"""How much of the CT is kept above and below the bone: more than an oblique beam passes through."""
ABOVE_MM: Final = 75.0
"""And more above: a picture may show the wrong part of the spine."""
STRETCH: Final = 0.05
"""One sigma of a variant's proportions, each axis."""
SPINE_LABELS: Final = range(29, 44)
"""L3 to T1 in TotalSegmentator's label map."""
HIP_FILE: Final = "hip_bones/pelvisVol.mha"
HIP_HU: Final = 100
"""Bone of the hip; around it the file holds 0, water."""
PELVIS_BONES: Final = {"Sacrum": 7, "L5": 4, "Ilium left": 5, "Ilium right": 6}


@dataclass(frozen=True, slots=True, eq=False)
class Patient:
    """A CT and its bones.

    Attributes
    ----------
    ct : Volume
        HU at the scanner's resolution.
    labels : (k, j, i) uint8
    main : int
        Label of the bone that is to be found.
    others : tuple of int
        Labels of the bones that may be seen beside it and move against it.
    level_mm : float
        Distance to the bone's like next to it along the spine: a vertebra, or a sacral segment.
    """

    name: str
    ct: Volume
    labels: NDArray[np.uint8]
    main: int
    others: tuple[int, ...]
    level_mm: float

    def image(self) -> CtImage:
        """Return the CT as registration reads it."""
        place = np.eye(4)
        place[:3, :3], place[:3, 3] = self.ct.direction * self.ct.spacing_mm, self.ct.origin_mm
        return CtImage(self.ct.voxels, place)

    def centre_ct_mm(self, label: int | None = None) -> Array:
        """Return the centroid (3,) of a bone, by default the main one."""
        mask = self.labels == (self.main if label is None else label)
        sums = [mask.sum(axis=tuple(a for a in range(3) if a != 2 - axis)) for axis in range(3)]
        index = np.array([(s * np.arange(len(s))).sum() / s.sum() for s in sums])
        return self.ct.ct_from_index(index)

    def points_ct_mm(self, count: int = 300) -> Array:
        """Return points (N, 3) of the main bone's voxels: errors are judged on them."""
        index = np.argwhere(self.labels == self.main)
        chosen = index[:: max(1, len(index) // count), ::-1]
        points: Array = chosen * self.ct.spacing_mm @ self.ct.direction.T + self.ct.origin_mm
        return points


@lru_cache(maxsize=40)
def patient(name: str) -> Patient:
    """Return the patient of a name."""
    kind, *numbers = name.split(":")
    if kind == "sacrum":
        return _pelvis(int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 0)
    if kind == "spine":
        return _spine(int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 0)
    if kind == "hip":
        return _hip()
    raise ValueError(f"no such patient: {name}")


def has_hip() -> bool:
    """Return whether the real hip bones are at hand."""
    return (Path(os.environ.get("NAVSRV_DATA", "")) / HIP_FILE).is_file()


def _hip() -> Patient:
    from navsrv.anatomy import volumes

    ct = volumes.read_ct(Path(os.environ["NAVSRV_DATA"]) / HIP_FILE)
    index = np.argwhere(ct.voxels > HIP_HU)
    side = ct.ct_from_index(index[:, ::-1])[:, 0]
    labels = np.zeros(ct.voxels.shape, np.uint8)
    labels[tuple(index.T)] = np.where(side > side.mean(), 1, 2)  # x runs to the patient's left
    return Patient("hip", ct, labels, 1, (2,), 25.0)


def _pelvis(seed: int, variant: int) -> Patient:
    file = made_folder(navsrv_home() / "verdict") / f"sacrum-{seed}.npz"
    if not file.is_file():
        from navsrv.anatomy.sacrum import generate_sacrum

        made = generate_sacrum(seed)
        _write(file, ct=made.ct, labels=made.labels, origin=made.origin_mm, spacing=made.spacing_mm)
    with np.load(file) as stored:
        ct = Volume(stored["ct"], stored["origin"], stored["spacing"])
        labels = stored["labels"]
    bones = dict(PELVIS_BONES)
    main = bones.pop("Sacrum")
    name = f"sacrum:{seed}:{variant}" if variant else f"sacrum:{seed}"
    return _cut(Patient(name, _stretched(ct, variant), labels, main, tuple(bones.values()), 25.0))


def _spine(label: int, variant: int) -> Patient:
    from navsrv.anatomy import thoracolumbar, volumes

    files = thoracolumbar.fetch()
    ct, labels = volumes.read_ct(files[0]), volumes.read_labels(files[1])
    stretched = _stretched(ct, variant)
    beside = tuple(n for n in (label - 2, label - 1, label + 1, label + 2) if n in SPINE_LABELS)
    whole = Patient(f"spine:{label}:{variant}", stretched, labels.voxels.astype(np.uint8), label, beside, 0.0)
    near = [n for n in (label - 1, label + 1) if n in SPINE_LABELS]
    middle = whole.centre_ct_mm()
    pitch = float(np.mean([np.linalg.norm(whole.centre_ct_mm(n) - middle) for n in near]))
    return _cut(replace(whole, level_mm=pitch))


def _stretched(ct: Volume, variant: int) -> Volume:
    """Return the CT with the proportions of a variant."""
    if not variant:
        return ct
    if variant < 0:  # somebody of clearly other proportions: 6 to 12 per cent along each axis
        rng = np.random.default_rng([78, -variant])
        stretch = 1.0 + rng.uniform(0.06, 0.12, 3) * rng.choice([-1.0, 1.0], 3)
    else:
        stretch = np.clip(np.random.default_rng([77, variant]).normal(1.0, STRETCH, 3), 0.85, 1.15)
    return replace(ct, spacing_mm=ct.spacing_mm * stretch, origin_mm=ct.origin_mm * stretch)


def _cut(whole: Patient) -> Patient:
    """Return the patient without what lies far above and below the main bone."""
    ct = whole.ct
    middle = (whole.centre_ct_mm()[2] - ct.origin_mm[2]) / (ct.direction[2, 2] * ct.spacing_mm[2])
    below, above = AROUND_MM / ct.spacing_mm[2], (AROUND_MM + ABOVE_MM) / ct.spacing_mm[2]
    low, high = max(int(middle - below), 0), min(int(middle + above) + 1, len(ct.voxels))
    kept = np.ascontiguousarray(ct.voxels[low:high].astype(np.int16))
    cut = replace(ct, voxels=kept, origin_mm=ct.ct_from_index([0, 0, low]))
    return replace(whole, ct=cut, labels=np.ascontiguousarray(whole.labels[low:high]))


def _write(file: Path, **arrays: Array | NDArray[np.generic]) -> None:
    unfinished = file.with_name(f".{file.stem}.{os.getpid()}.npz")
    np.savez_compressed(unfinished, **arrays)  # type: ignore[arg-type]
    unfinished.replace(file)
