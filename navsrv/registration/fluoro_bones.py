"""Owns the poses of bones that move against each other: sacrum, L5 and ilia, or vertebrae, from the same X-rays.

One bone is registered first (``fluoro``).  Each other starts where that one says, is held there by what joints allow,
and is fitted with everything else that is known drawn beside it, so that a neighbour's edges are not taken for its own;
in two rounds, since each round places the neighbours better.  Refuses to search: a bone whose neighbour was not found
cannot be found this way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from navsrv.kernel.errors import RegistrationError
from navsrv.kernel.frames import CT, Array
from navsrv.kernel.registration import RegistrationResult, Verdict
from navsrv.registration.drr import Image
from navsrv.registration.fluoro import (
    FINE_PX,
    FINE_TILE_PX,
    JOINT_DEG,
    JOINT_MM,
    MIN_ANGLE_DEG,
    SEARCH_PX,
    SEARCH_TILE_PX,
    PreparedBone,
    angle_between_deg,
    displaced_mm,
)
from navsrv.registration.fluoro_stretch import fit_stretch
from navsrv.registration.fluoro_verdict import Findings, FluoroLimits, conclude, score_scale, sharpness
from navsrv.registration.fluoro_views import FixedView, Level, PosePrior, XrayView

ROUNDS: Final = 2
BRIEF: Final = 6
_ORDER: Final = (Verdict.ACCEPT, Verdict.DOUBT, Verdict.REFUSE)


def register_bones(
    bones: Mapping[str, PreparedBone],
    views: list[XrayView],
    first: str,
    found: RegistrationResult,
    *,
    joint_deg: float = JOINT_DEG,
    joint_mm: float = JOINT_MM,
    limits: FluoroLimits | None = None,
) -> dict[str, RegistrationResult]:
    """Return each bone's ``T_ct_from_<frame of the views>``: where that bone of the CT is, each with its own verdict.

    Parameters
    ----------
    bones : mapping of names to PreparedBone
        Bones that move against each other, the first one among them.
    first : str
        The bone that was registered.
    found : RegistrationResult
        What ``register_fluoro`` found for it from the same views.
    joint_deg, joint_mm : float
        One sigma per axis of how each bone may have moved against the first since the CT.

    Raises
    ------
    RegistrationError
        The first bone is not among them, or the views do not tell depth.
    """
    if first not in bones:
        raise RegistrationError(f"{first!r} is none of the bones ({', '.join(bones)})")
    if angle_between_deg(views) < MIN_ANGLE_DEG:
        raise RegistrationError(f"bones are told apart in depth by views {MIN_ANGLE_DEG:g} degrees apart or more")
    poses = {name: found.transform.matrix for name in bones}
    priors: dict[str, PosePrior] = {}
    coarse_views, fine_views = ([FixedView.of(v, px) for v in views] for px in (SEARCH_PX, FINE_PX))
    coarse = {name: Level(bone.coarse, coarse_views, SEARCH_TILE_PX) for name, bone in bones.items()}
    fine = {name: Level(bone.fine, fine_views, FINE_TILE_PX) for name, bone in bones.items()}
    variances = np.repeat([np.radians(joint_deg) ** 2, joint_mm**2], 3)
    for number in range(ROUNDS):
        for name in bones:
            if name == first and not number:
                continue
            coarse[name].beside = _others(coarse, poses, name)
            fine[name].beside = _others(fine, poses, name)
            scale = score_scale(fine[name], poses[name])
            priors[name] = PosePrior(found.transform.matrix, np.diag(scale / variances), scale)
            # The second round starts near: only the finest level is left to say something.
            near = poses[name] if number else coarse[name].refine(poses[name], prior=priors[name]).pose
            poses[name] = fine[name].refine(near, prior=priors[name]).pose
    worst = limits or FluoroLimits()
    return {
        name: found if name == first else _result(bone, fine[name], poses[name], priors[name], found, worst)
        for name, bone in bones.items()
    }


def _others(levels: Mapping[str, Level], poses: Mapping[str, Array], name: str) -> list[Image]:
    """Return, of each view, the picture of all bones but one where they are known to be."""
    here = levels[name]
    pictures = []
    for view in here.views:
        total = np.zeros((view.projection.rows, view.projection.columns), np.float32)
        for other, level in levels.items():
            if other != name:
                total += level.volume.render([level.seen(poses[other], view)])[0, 0]
        pictures.append(total)
    return pictures


def _result(
    bone: PreparedBone,
    fine: Level,
    pose: Array,
    prior: PosePrior,
    first: RegistrationResult,
    limits: FluoroLimits,
) -> RegistrationResult:
    """Return one bone's result; its verdict is no better than that of the bone that led to it."""
    final = fine.refine(pose, BRIEF, prior=prior)
    findings = Findings(
        final=final,
        here=final.score,
        other=0.0,  # no other place is tried: joints exclude them
        displaced_mm=displaced_mm(bone, fine, final, prior),
        agreeing=1.0,
        stretch=fit_stretch(fine, final.pose, score_scale(fine, final.pose)),
        sharpness=sharpness(fine, final.pose),
        levels=len(bone.level_shifts_ct_mm),
        deep=True,
        prior=prior,
    )
    result = conclude(fine, findings, first.transform.frm, None, limits)
    assert result.transform.to == CT
    if _ORDER.index(first.verdict) > _ORDER.index(result.verdict):
        reason = f"the bone that led to it is in doubt: {first.reason}"
        return replace(result, verdict=first.verdict, reason=reason)
    return result
