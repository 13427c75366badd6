"""Owns what a later look makes of the registration in use: a landmark touched again, a newer image registered.

The rules are those of ``registration.health``; here they meet the state.  A rule lets it fall, never rise.
"""

from __future__ import annotations

from typing import Any

from navsrv.guidance.alarms import Condition
from navsrv.kernel.frames import Array, Rigid
from navsrv.kernel.registration import RegistrationResult, Verdict
from navsrv.pipeline.inputs import Note
from navsrv.pipeline.registrations import Registration, Registrations
from navsrv.registration.health import Finding, Health, judge_check_shot, judge_landmark

TOUCH_SIGMA_MM = 0.5
"""One sigma per axis of a touch and of its landmark in the CT, where a command says nothing of it."""
IMAGE_METHODS = ("fluoro", "cbct")
"""Registrations that check the one in use as soon as they come: they are independent of it."""


def checked_by_landmark(
    registrations: Registrations, point_ct_mm: Array, tip_ref_mm: Array, touch_sigma_mm: float
) -> Finding:
    """Return what touching a landmark again says of the registration in use.

    Parameters
    ----------
    point_ct_mm : (3,)
        Where the landmark is in the CT.
    tip_ref_mm : (3,)
        Where the tip touches it, in the reference's frame.

    Raises
    ------
    ValueError
        No registration is in use.
    """
    used = registrations.accepted
    if used is None:
        raise ValueError("no registration is in use: there is nothing to check")
    return judge_landmark(used.T_ct_from_ref, point_ct_mm, tip_ref_mm, touch_sigma_mm)


def checked_by_proposal(
    registrations: Registrations, proposal: Registration, target_ct_mm: Array | None
) -> Finding | None:
    """Return what a new registration by images says of the one in use; None where it says nothing.

    ``target_ct_mm`` (3,): where disagreement counts; None: the origin of the reference.
    """
    used = registrations.accepted
    if used is None or used.trusted_ns is None or proposal.method not in IMAGE_METHODS:
        return None
    check = proposal.T_ct_from_ref
    target = check.translation_mm if target_ct_mm is None else target_ct_mm
    same = Rigid(check.to, used.T_ct_from_ref.frm, check.rotation, check.translation_mm, check.covariance)
    result = RegistrationResult(
        proposal.method, same, target, proposal.tre_mm, None, Verdict(proposal.verdict), proposal.reason
    )
    return judge_check_shot(used.T_ct_from_ref, result)


def applied(registrations: Registrations, finding: Finding, now_ns: int) -> list[Note]:
    """Let the registration in use fall as far as a finding says; return what the log must say."""
    used = registrations.accepted
    if used is None or finding.health is Health.ACCEPTED:
        return []
    fields: dict[str, Any] = {"id": used.id, "source": finding.source.value, "limit_mm": finding.limit_mm}
    if finding.value_mm == finding.value_mm:
        fields["found_mm"] = finding.value_mm
    if finding.health is Health.EXPIRED:
        registrations.end(used.id, finding.reason, now_ns)
        return [Note(now_ns, "registration_expired", f"registration {used.id} expired: {finding.reason}", fields)]
    if used.state == "unverified":
        return []
    registrations.put_in_doubt(used.id, finding.reason, Condition.UNVERIFIED, now_ns)
    text = f"registration {used.id} is unverified: {finding.reason}"
    return [Note(now_ns, "registration_unverified", text, fields)]
