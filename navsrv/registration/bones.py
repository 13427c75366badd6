"""Owns which bone of a case is looked for in X-rays, with what beside it, and what it may be mistaken for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy.case import Case, Kind, Structure
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array
from navsrv.registration.fluoro import PreparedBone, axis_shifts, prepare_bone
from navsrv.registration.images import CtImage

SEGMENT_MM: Final = 25.0
"""From one sacral segment to the next, where no bone of the case is like the one that is looked for."""
LIKE_VOLUME: Final = (0.4, 2.5)
LEVEL_MM: Final = (12.0, 60.0)
ALONG: Final = 0.7
"""A neighbour along the spine has this share of its distance along z, this ratio of volumes and this distance."""


def chosen_bone(case: Case, name: str | None) -> Structure:
    """Return the bone of a name; by default the one that the target follows.

    Raises
    ------
    InputError
        No such bone, or none with a label in the label map.
    """
    bones = [s for s in case.structures if s.kind is Kind.BONE and s.label is not None]
    names = ", ".join(s.name for s in bones) or "none"
    if name is None:
        name = next((s.follows for s in case.structures if s.kind is Kind.TARGET and s.follows), None)
    if name is None:
        raise InputError(f"the case's target follows no bone: name one with --bone; there are: {names}")
    for structure in bones:
        if structure.name == name:
            return structure
    raise InputError(f"{name!r} is no bone of the case with a label; there are: {names}")


def prepare_case_bone(ct: CtImage, labels: NDArray[np.integer], bones: Sequence[int], label: int) -> PreparedBone:
    """Return the bone of a label ready to be registered, its neighbours along the spine searched for with it.

    Parameters
    ----------
    labels : (k, j, i)
        On the CT's grid.
    bones : sequence of int
        Labels of all bones of the case.
    """
    mask = labels == label
    place = np.asarray(ct.index_to_ct_mm, dtype=np.float64)
    centre, volume = _centroid(mask, place)
    steps, beside = [], []
    for other in bones:
        found, size = _centroid(labels == other, place)
        step = found - centre
        length = float(np.linalg.norm(step))
        like = LIKE_VOLUME[0] < size / max(volume, 1) < LIKE_VOLUME[1]
        if other != label and size and like and LEVEL_MM[0] < length < LEVEL_MM[1] and abs(step[2]) > ALONG * length:
            steps.append(step)
            beside.append(other)
    if not steps:
        return prepare_bone(ct, mask, axis_shifts([0.0, 0.0, 1.0], [SEGMENT_MM]))
    both = np.array(steps if len(steps) > 1 else [steps[0], -steps[0]])
    return prepare_bone(ct, mask, both, np.isin(labels, beside))


def _centroid(mask: NDArray[np.bool_], place: Array) -> tuple[Array, int]:
    """Return the centroid (3,) of a mask in CT mm, and its number of voxels."""
    sums = [mask.sum(axis=tuple(a for a in range(3) if a != 2 - axis)) for axis in range(3)]
    count = int(sums[0].sum())
    index = np.array([(s * np.arange(len(s))).sum() / max(count, 1) for s in sums])
    centre: Array = place[:3, :3] @ index + place[:3, 3]
    return centre, count
