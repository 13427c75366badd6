"""Owns which registration geometry rests on: proposed, accepted, in doubt, rejected, expired.

Only an operator accepts or confirms; a rule may doubt and expire, never the other way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from navsrv.guidance.alarms import Condition
from navsrv.kernel.frames import CT, REFERENCE, Array, Frame, Rigid
from navsrv.pipeline.inputs import RegistrationIn
from navsrv.pipeline.setup import Preset
from navsrv.wire.guidance import RegistrationState

NONE_YET = RegistrationState(None, None, "none", None, None, None)


@dataclass(frozen=True, slots=True, eq=False)
class Registration:
    """One registration and where it stands.

    Attributes
    ----------
    covariance : (6, 6)
        Of ``T_ct_from_ref``; zeros when a preset states none.
    since_ns : int or None
        Monotonic time of its present state; None for a preset, which is older than this server.
    trusted_ns : int or None
        When an operator last accepted or confirmed it.
    doubt : Condition or None
        The alarm that says why an unverified one is in doubt; ``reason`` has the words and the number.
    """

    id: str
    method: str
    state: str
    verdict: str
    reason: str
    tre_mm: float
    T_ct_from_ref: Rigid
    covariance: Array
    since_ns: int | None
    trusted_ns: int | None = None
    doubt: Condition | None = None

    def shown(self, now_ns: int) -> RegistrationState:
        """Return it as the frame says it."""
        age_s = None if self.since_ns is None else max(0.0, (now_ns - self.since_ns) / 1e9)
        return RegistrationState(self.id, self.method, self.state, self.verdict, self.tre_mm, age_s)


class Registrations:
    """The registrations of this session; at most one is accepted, at most one is proposed.

    ``reference`` is the frame of the reference body as its source names it: registrations say "reference", the source
    may say "patient".
    """

    def __init__(self, preset: Preset | None, reference: Frame = REFERENCE) -> None:
        self._reference = reference
        self.accepted: Registration | None = None
        self.proposed: Registration | None = None
        self.last: Registration | None = None
        if preset is not None:
            pose = preset.T_ct_from_ref
            self.accepted = self.last = Registration(
                id="preset",
                method=preset.method,
                state="accepted",
                verdict="accept",
                reason="preset",
                tre_mm=preset.tre_mm,
                T_ct_from_ref=Rigid(CT, reference, pose.rotation, pose.translation_mm, pose.covariance),
                covariance=np.zeros((6, 6)) if pose.covariance is None else np.array(pose.covariance),
                since_ns=None,
            )

    def propose(self, item: RegistrationIn) -> Registration:
        """Take a result; it replaces an older proposal and is not used before it is accepted.

        Raises
        ------
        ValueError
            Not 16 numbers of a rigid motion with the 36 of a covariance.
        """
        matrix = np.array(item.T_ct_from_ref).reshape(4, 4)
        covariance = np.array(item.covariance).reshape(6, 6)
        self.proposed = self.last = Registration(
            id=item.id,
            method=item.method,
            state="proposed",
            verdict=item.verdict,
            reason=item.reason,
            tre_mm=item.tre_mm,
            T_ct_from_ref=Rigid.from_matrix(CT, self._reference, matrix, covariance),
            covariance=covariance,
            since_ns=item.now_ns,
        )
        return self.proposed

    def accept(self, registration_id: str, now_ns: int) -> Registration:
        """Use the proposal of this id from now on; ValueError if there is none, or if its own verdict refuses it."""
        proposal = self._proposal(registration_id)
        if proposal.verdict == "refuse":
            raise ValueError(f"registration {registration_id} was refused by its own verdict: {proposal.reason}")
        self.accepted = self.last = replace(proposal, state="accepted", since_ns=now_ns, trusted_ns=now_ns)
        self.proposed = None
        return self.accepted

    def put_in_doubt(self, registration_id: str, reason: str, cause: Condition, now_ns: int) -> Registration:
        """Keep using the accepted one, as unverified until it is confirmed; ValueError if it is not this one."""
        if self.accepted is None or self.accepted.id != registration_id:
            raise ValueError(f"registration {registration_id!r} is not in use")
        if not reason.strip():
            raise ValueError("args.reason: empty; expected what puts it in doubt")
        self.accepted = self.last = replace(
            self.accepted, state="unverified", reason=reason.strip(), since_ns=now_ns, doubt=cause
        )
        return self.accepted

    def confirm(self, registration_id: str, now_ns: int) -> Registration:
        """Trust one again that is unverified or expired, by the operator's word; ValueError if it is neither."""
        for held in (self.accepted, self.last):
            if held is not None and held.id == registration_id and held.state in ("unverified", "expired"):
                self.accepted = self.last = replace(
                    held, state="accepted", reason="confirmed", since_ns=now_ns, trusted_ns=now_ns, doubt=None
                )
                return self.accepted
        raise ValueError(f"registration {registration_id!r} is neither unverified nor expired")

    def end(self, registration_id: str, reason: str, now_ns: int) -> Registration:
        """Stop using the accepted one, by a rule, until an operator confirms it; ValueError if it is not this one."""
        if self.accepted is None or self.accepted.id != registration_id:
            raise ValueError(f"registration {registration_id!r} is not in use")
        ended = replace(self.accepted, state="expired", reason=reason, since_ns=now_ns, doubt=None)
        self.accepted, self.last = None, ended
        return ended

    def expire(self, now_ns: int, max_age_ns: int) -> Registration | None:
        """Stop using one that was last trusted longer ago than this; return it if that happened now.

        A preset has no age: nobody registered, so that nobody could confirm.
        """
        held = self.accepted
        if held is None or held.trusted_ns is None or now_ns - held.trusted_ns <= max_age_ns:
            return None
        minutes = max_age_ns / 60e9
        reason = f"last confirmed more than {minutes:g} min ago"
        self.last = replace(held, state="expired", reason=reason, since_ns=now_ns)
        self.accepted = None
        return self.last

    def reject(self, registration_id: str, now_ns: int) -> Registration:
        """Drop the proposal, or stop using the accepted one; ValueError if neither has this id."""
        if self.accepted is not None and self.accepted.id == registration_id:
            rejected = replace(self.accepted, state="rejected", since_ns=now_ns)
            self.accepted = None
        else:
            rejected = replace(self._proposal(registration_id), state="rejected", since_ns=now_ns)
            self.proposed = None
        self.last = rejected
        return rejected

    def find(self, registration_id: str) -> Registration:
        """Return the accepted, proposed or last registration of this id; ValueError if none of them has it."""
        for registration in (self.accepted, self.proposed, self.last):
            if registration is not None and registration.id == registration_id:
                return registration
        raise ValueError(f"there is no registration {registration_id!r}")

    def shown(self, now_ns: int) -> RegistrationState:
        """Return the registration that geometry rests on; without one, the newest of any state."""
        current = self.accepted or self.last
        return NONE_YET if current is None else current.shown(now_ns)

    def shown_proposal(self, now_ns: int) -> RegistrationState | None:
        """Return the proposal that waits for the operator, if one does."""
        return None if self.proposed is None else self.proposed.shown(now_ns)

    def _proposal(self, registration_id: str) -> Registration:
        if self.proposed is None or self.proposed.id != registration_id:
            raise ValueError(f"no registration {registration_id!r} is proposed")
        return self.proposed
