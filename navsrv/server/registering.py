"""Owns the registration worker: what runs in a process of its own, so that nothing live waits for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from navsrv.anatomy.case import Case, Volume
from navsrv.kernel.frames import REFERENCE, VOLUME, Array, Rigid
from navsrv.kernel.registration import RegistrationResult, tre_rms_mm
from navsrv.kernel.samples import VolumeSample
from navsrv.registration.cbct import PreparedCt, prepare_ct, register_cbct
from navsrv.registration.images import CtImage
from navsrv.registration.overlay import overlay_png


@dataclass(frozen=True, slots=True, eq=False)
class VolumeJob:
    """One volume to register.

    Attributes
    ----------
    T_ref_from_volume : (4, 4)
        Frozen at the exposure.
    link_covariance : (6, 6)
        Of ``T_ref_from_volume``: what the tracker and the gantry leave unsure, left perturbation in the reference.
    overlay : str
        Where the picture for the operator goes.
    """

    case_folder: str
    volume: VolumeSample
    T_ref_from_volume: Array
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
    found = register_cbct(prepared, job.volume, target_ct_mm=target)
    Path(job.overlay).write_bytes(overlay_png(ct_image(ct), job.volume, found.transform, found.target_ct_mm))
    T_ref_from_volume = Rigid.from_matrix(REFERENCE, VOLUME, job.T_ref_from_volume, job.link_covariance)
    transform = found.transform @ T_ref_from_volume.inverse()
    return replace(found, transform=transform, tre_mm=tre_rms_mm(transform, found.target_ct_mm))


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
