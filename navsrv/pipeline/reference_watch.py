"""Owns what follows when the reference moved: the registration that rests on it falls into doubt, with the number.

Not watched: a preset, which only a benchmark has and nobody could confirm; and anything while nothing is accepted.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from navsrv.guidance.alarm_life import Present
from navsrv.guidance.alarms import Condition
from navsrv.kernel.samples import PoseSample
from navsrv.pipeline.inputs import Note
from navsrv.pipeline.links import PoseLink
from navsrv.pipeline.registrations import Registrations
from navsrv.pipeline.setup import Setup
from navsrv.pipeline.tool import RoomFacts
from navsrv.pipeline.watches import JumpWatch, SlipWatch
from navsrv.registration.health import Finding, Health, HealthLimits, Source, judge_motion

DRIFT_AT: Final = 0.5
"""Share of ``moved_mm`` at which a drift is told."""
DRIFT_ENDS_AT: Final = 0.4
EXPIRES_AT: Final = 2.5
"""Times ``moved_mm``: a registration that is so far off is no longer used, not even in doubt."""


class ReferenceWatch:
    """Watches the reference's poses, alone for jumps and against the witness for slips."""

    def __init__(self, setup: Setup, reference: PoseLink | None, witness: PoseLink | None) -> None:
        self._site = setup.site
        self._path = setup.path
        self._witness = witness
        self._jump = None if reference is None else JumpWatch(reference.source.spec.rate_hz, setup.site)
        self._slip = SlipWatch()
        self._source = "" if reference is None else reference.source.spec.name

    def forget(self) -> None:
        """Begin the search for jumps anew, as at a new connection."""
        if self._jump is not None:
            self._jump.forget()

    def rebase(self, registrations: Registrations) -> None:
        """Measure slips from now on, at the planned target where there is one."""
        accepted = registrations.accepted
        point_mm = np.zeros(3)
        if self._witness is not None and accepted is not None and self._path is not None:
            T_ct_from_ref = accepted.T_ct_from_ref
            point_mm = (self._path.target_ct_mm - T_ct_from_ref.translation_mm) @ T_ct_from_ref.rotation
        self._slip.rebase(point_mm)

    def step(self, sample: PoseSample, now_ns: int, registrations: Registrations, room: RoomFacts) -> list[Note]:
        """Take the reference's newest sample; return what the log must say."""
        said = None if self._jump is None else self._jump.step(sample)
        accepted = registrations.accepted
        if accepted is None or accepted.trusted_ns is None:
            return []
        fields: dict[str, float] = {"jump_mm": self._site.jump_mm, "gap_mm": self._site.gap_mm}
        slip = None if self._witness is None else self._slip_found(sample, room)
        if slip is not None and slip.health is Health.EXPIRED:
            registrations.end(accepted.id, slip.reason, now_ns)
            fields = {"moved_mm": slip.value_mm, "limit_mm": slip.limit_mm}
            text = f"registration {accepted.id} expired: {slip.reason}"
            return [Note(now_ns, "registration_expired", text, {"id": accepted.id, **fields})]
        if said is None and slip is not None and slip.health is Health.UNVERIFIED:
            said, fields = slip.reason, {"moved_mm": slip.value_mm, "limit_mm": slip.limit_mm}
        if said is None or accepted.state == "unverified":
            return []
        registrations.put_in_doubt(accepted.id, said, Condition.REFERENCE_MOVED, now_ns)
        text = f"registration {accepted.id} is unverified: {said}"
        return [Note(now_ns, "registration_unverified", text, {"id": accepted.id, **fields})]

    def _slip_found(self, sample: PoseSample, room: RoomFacts) -> Finding | None:
        """Return what the reference's motion against the witness makes of the registration; None while not known."""
        assert self._witness is not None
        witness = self._witness.paired_with(sample, self._source)
        moved = None if witness is None else self._slip.step(sample, witness)
        if moved is None:
            return None
        limit = self._site.moved_mm
        ends_at = DRIFT_AT if room.drifting is None else DRIFT_ENDS_AT
        room.drifting = None
        if ends_at * limit < moved <= limit:
            text = f"the reference drifts against the witness: {moved:.1f} mm since the registration was trusted"
            past = "the reference drifted against the witness"
            measured = {"moved_mm": moved, "threshold_mm": DRIFT_AT * limit}
            room.drifting = Present(Condition.REGISTRATION_DRIFTING, None, text, past=past, measured=measured)
        return judge_motion(Source.REFERENCE_MOVED, moved, HealthLimits(moved_mm=(limit, EXPIRES_AT * limit)))
