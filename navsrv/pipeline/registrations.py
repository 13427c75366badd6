"""Owns which registration geometry rests on: proposed, accepted, rejected; only an operator accepts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from navsrv.kernel.frames import CT, REFERENCE, Array, Rigid
from navsrv.pipeline.inputs import RegistrationIn
from navsrv.pipeline.setup import Preset
from navsrv.wire.guidance import RegistrationState

NONE_YET = RegistrationState(None, None, "none", None, None, None)


@dataclass(frozen=True, slots=True, eq=False)
class Registration:
    """One registration and where it stands."""

    id: str
    method: str
    state: str
    verdict: str
    reason: str
    tre_mm: float
    T_ct_from_ref: Rigid
    since_ns: int

    @property
    def covariance(self) -> Array:
        """(6, 6), zeros when the preset states none."""
        known = self.T_ct_from_ref.covariance
        return np.zeros((6, 6)) if known is None else np.array(known)

    def shown(self, now_ns: int) -> RegistrationState:
        """Return it as the frame says it."""
        age_s = max(0.0, (now_ns - self.since_ns) / 1e9)
        return RegistrationState(self.id, self.method, self.state, self.verdict, self.tre_mm, age_s)


class Registrations:
    """The registrations of this session; at most one is accepted, at most one is proposed."""

    def __init__(self, preset: Preset | None) -> None:
        self.accepted: Registration | None = None
        self.proposed: Registration | None = None
        self.last: Registration | None = None
        if preset is not None:
            self.accepted = self.last = Registration(
                "preset", preset.method, "accepted", "accept", "preset", preset.tre_mm, preset.T_ct_from_ref, 0
            )

    def propose(self, item: RegistrationIn) -> Registration:
        """Take a result; it replaces an older proposal and is not used before it is accepted."""
        matrix = np.array(item.T_ct_from_ref).reshape(4, 4)
        covariance = np.array(item.covariance).reshape(6, 6)
        pose = Rigid.from_matrix(CT, REFERENCE, matrix, covariance)
        self.proposed = self.last = Registration(
            item.id, item.method, "proposed", item.verdict, item.reason, item.tre_mm, pose, item.now_ns
        )
        return self.proposed

    def accept(self, registration_id: str, now_ns: int) -> Registration:
        """Use the proposal of this id from now on; KeyError if there is none, ValueError if it was refused."""
        proposal = self._proposal(registration_id)
        if proposal.verdict == "refuse":
            raise ValueError(f"registration {registration_id} was refused by its own verdict: {proposal.reason}")
        self.accepted = self.last = replace(proposal, state="accepted", since_ns=now_ns)
        self.proposed = None
        return self.accepted

    def reject(self, registration_id: str, now_ns: int) -> Registration:
        """Drop the proposal, or stop using the accepted one; KeyError if neither has this id."""
        if self.accepted is not None and self.accepted.id == registration_id:
            rejected = replace(self.accepted, state="rejected", since_ns=now_ns)
            self.accepted = None
        else:
            rejected = replace(self._proposal(registration_id), state="rejected", since_ns=now_ns)
            self.proposed = None
        self.last = rejected
        return rejected

    def find(self, registration_id: str) -> Registration:
        """Return the accepted, proposed or last registration of this id; KeyError if none of them has it."""
        for registration in (self.accepted, self.proposed, self.last):
            if registration is not None and registration.id == registration_id:
                return registration
        raise KeyError(registration_id)

    def shown(self, now_ns: int) -> RegistrationState:
        """Return the registration that geometry rests on; without one, the newest of any state."""
        current = self.accepted or self.last
        return NONE_YET if current is None else current.shown(now_ns)

    def shown_proposal(self, now_ns: int) -> RegistrationState | None:
        """Return the proposal that waits for the operator, if one does."""
        return None if self.proposed is None else self.proposed.shown(now_ns)

    def _proposal(self, registration_id: str) -> Registration:
        if self.proposed is None or self.proposed.id != registration_id:
            raise KeyError(registration_id)
        return self.proposed
