"""Owns the registration worker: what runs in a process of its own, so that nothing live waits for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from navsrv.anatomy.case import Case, Kind, Volume
from navsrv.kernel.frames import CT, REFERENCE, VOLUME, Array, Rigid
from navsrv.kernel.registration import RegistrationResult, tre_rms_mm
from navsrv.kernel.samples import VolumeSample
from navsrv.registration.aside import Aside
from navsrv.registration.bones import chosen_bone, prepare_case_bone
from navsrv.registration.cbct import PreparedCt, prepare_ct, register_cbct
from navsrv.registration.fluoro import PreparedBone, prepare_bone, register_fluoro
from navsrv.registration.fluoro_views import XrayView
from navsrv.registration.images import CtImage
from navsrv.registration.overlay import overlay_png
from navsrv.registration.overlay_fluoro import fluoro_overlay_png
from navsrv.server.projections import TakenXray, looked_at


@dataclass(frozen=True, slots=True, eq=False)
class VolumeJob:
    """One volume to register.

    Attributes
    ----------
    T_ref_from_volume : (4, 4)
        Frozen at the exposure.
    link_covariance : (6, 6)
        Of ``T_ref_from_volume``: what the tracker, the gantry and the image's calibration leave unsure, left
        perturbation in the reference.
    overlay : str
        Where the picture for the operator goes.
    """

    case_folder: str
    volume: VolumeSample
    T_ref_from_volume: Array
    link_covariance: Array
    overlay: str


BONE_HU: Final = 250
"""What counts as bone in a case without a label map."""

VIEWS_CT: Final[Mapping[str, tuple[tuple[int, int, int], tuple[int, int, int]]]] = {
    "ap": ((0, 1, 0), (0, 0, -1)),
    "pa": ((0, -1, 0), (0, 0, -1)),
    "to_left": ((1, 0, 0), (0, 0, -1)),
    "to_right": ((-1, 0, 0), (0, 0, -1)),
}
"""How an X-ray sees the patient: the beam's way and the way down its columns, LPS, the head at the top."""


@dataclass(frozen=True, slots=True, eq=False)
class PairJob:
    """Two X-rays to register.

    Attributes
    ----------
    xrays : (TakenXray, TakenXray)
    seen : str
        One of ``VIEWS_CT``: about how the second X-ray sees the patient, within 20 degrees.
    link_covariance, overlay
        As for ``VolumeJob``.
    """

    case_folder: str
    xrays: tuple[TakenXray, TakenXray]
    seen: str
    link_covariance: Array
    overlay: str


def prepare(case_folder: str) -> None:
    """Load and prepare the case's CT, so that the first registration does not wait for it."""
    case = Case.load(case_folder)
    if case.ct_file is not None:
        _prepared(case_folder, case.sha256)


def register_volume(job: VolumeJob) -> RegistrationResult:
    """Return ``T_ct_from_ref`` of a volume registered to the case's CT, and write the overlay.

    Raises
    ------
    InputError, RegistrationError
        The case has no CT, or the data cannot carry a registration.
    """
    case = Case.load(job.case_folder)
    ct, prepared = _prepared(job.case_folder, case.sha256)
    target = case.plan.target_ct_mm if case.plan is not None else None
    with helpers(1) as aside:
        found = register_cbct(prepared, job.volume, target_ct_mm=target, aside=aside)
    Path(job.overlay).write_bytes(overlay_png(ct_image(ct), job.volume, found.transform, found.target_ct_mm))
    T_ref_from_volume = Rigid.from_matrix(REFERENCE, VOLUME, job.T_ref_from_volume, job.link_covariance)
    transform = found.transform @ T_ref_from_volume.inverse()
    return replace(found, transform=transform, tre_mm=tre_rms_mm(transform, found.target_ct_mm))


def register_pair(job: PairJob) -> RegistrationResult:
    """Return ``T_ct_from_ref`` of two X-rays registered to the case's CT, and write the overlay.

    Raises
    ------
    InputError, RegistrationError
        The case has no CT, or the data cannot carry a registration.
    """
    case = Case.load(job.case_folder)
    bone = _prepared_bone(job.case_folder, case.sha256)
    views = [XrayView(x.pixels, x.view, x.bright_air) for x in job.xrays]
    beam, down = (np.array(way, dtype=np.float64) for way in VIEWS_CT[job.seen])
    R_ct_from_carm = np.column_stack([np.cross(down, beam), down, beam])
    rotation = R_ct_from_carm @ job.xrays[1].view.T_carm_from_object.rotation
    middle = looked_at(job.xrays[0].view, job.xrays[1].view)
    initial = Rigid(CT, REFERENCE, rotation, bone.fine.centre_ct_mm - rotation @ middle)
    target = case.plan.target_ct_mm if case.plan is not None else None
    found = register_views(bone, views, initial, target)
    Path(job.overlay).write_bytes(fluoro_overlay_png(bone.fine, views, found.transform, initial))
    link = Rigid(REFERENCE, REFERENCE, np.eye(3), np.zeros(3), job.link_covariance)
    transform = found.transform @ link
    return replace(found, transform=transform, tre_mm=tre_rms_mm(transform, found.target_ct_mm))


def register_views(
    bone: PreparedBone, views: list[XrayView], initial: Rigid, target_ct_mm: ArrayLike | None
) -> RegistrationResult:
    """Return ``register_fluoro`` of a bone, each view beyond the first on a thread of its own."""
    with helpers(max(1, len(views) - 1)) as aside:
        return register_fluoro(bone, views, initial, target_ct_mm=target_ct_mm, aside=aside)


@contextmanager
def helpers(count: int) -> Iterator[Aside]:
    """Give threads that take jobs of a registration, as many as ``count``, and end them."""
    with ThreadPoolExecutor(count) as pool:
        yield lambda job: pool.submit(job).result


@lru_cache(maxsize=1)
def _prepared_bone(case_folder: str, sha256: str) -> PreparedBone:
    """Return the bone that X-rays are registered by: that of the target, or all that is dense without a label map."""
    del sha256  # part of the key, as below
    case = Case.load(case_folder)
    ct = case.ct()
    if case.labels_file is None:
        return prepare_bone(ct_image(ct), np.asarray(ct.voxels > BONE_HU))
    label = chosen_bone(case, None).label
    assert label is not None  # a chosen bone has one
    bones = [s.label for s in case.structures if s.kind is Kind.BONE and s.label is not None]
    return prepare_case_bone(ct_image(ct), case.labels().voxels, bones, label)


@lru_cache(maxsize=1)
def _prepared(case_folder: str, sha256: str) -> tuple[Volume, PreparedCt]:
    del sha256  # part of the key: a case that was built again is prepared again
    ct = Case.load(case_folder).ct()
    return ct, prepare_ct(ct_image(ct))


def ct_image(ct: Volume) -> CtImage:
    """Return a case's CT as registration reads it."""
    matrix = np.eye(4)
    matrix[:3, :3] = ct.direction * ct.spacing_mm
    matrix[:3, 3] = ct.origin_mm
    return CtImage(ct.voxels, matrix)
