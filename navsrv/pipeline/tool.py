"""Owns one guided tool: from its newest pose to one guidance frame.

The frame is built from what is valid *now*: a missing or expired link gives a frame that says so, with geometry
null, at full rate.  The last good value is never shown as current.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from navsrv.guidance.alarm_life import (
    NO_ALARMS,
    AlarmTable,
    Change,
    Present,
    acknowledge,
    step_alarms,
    step_audio,
)
from navsrv.guidance.alarms import OF_GEOMETRY, OF_STRUCTURES, RULES, AudioEvent, Condition, Priority
from navsrv.guidance.clearance import ClearanceEngine
from navsrv.guidance.conditions import (
    NAVIGATING,
    Onset,
    Watched,
    loss_priority,
    onset,
    path_conditions,
    structure_conditions,
)
from navsrv.guidance.trajectory import Deviation
from navsrv.kernel.frames import Array
from navsrv.pipeline.alarm_log import alarm_note, audio_note
from navsrv.pipeline.crossings import Crossings
from navsrv.pipeline.inputs import Note
from navsrv.pipeline.links import GOOD, PoseLink, Standing
from navsrv.pipeline.placement import NotPlaced, Pair, Placed, Placement, judged, parts_of
from navsrv.pipeline.probes import Probes
from navsrv.pipeline.registrations import Registrations
from navsrv.pipeline.setup import Setup, ToolSetup
from navsrv.pipeline.stack import insert_named, with_insert
from navsrv.pipeline.tissue import Tissue
from navsrv.pipeline.watches import RateWatch
from navsrv.wire.guidance import (
    GEOMETRY_STATES,
    STATES,
    VERSION,
    AlarmState,
    GuidanceFrame,
    StructureRow,
    TrajectoryState,
)

_RANK = {state: rank for rank, state in enumerate(STATES)}
_NO_REFERENCE = Standing("LOST", "no reference is configured", Condition.REFERENCE_LOST, "Reference")


_NOTHING_UNJUDGED = frozenset[Condition]()
_OF_THE_LOST = OF_GEOMETRY | {Condition.SOURCE_STALE}
_NOTHING_PRESENT: Mapping[str, Present] = {}


@dataclass(slots=True)
class RoomFacts:
    """Facts of the whole room that every tool's frame shows."""

    session: str
    phase: str = "setup"
    missed_deadlines: int = 0
    lost_records: int = 0
    displays: int | None = None
    """Displays connected now; None as long as there never was one."""
    drifting: Present | None = None
    audio_paused_until_ns: int = 0
    tissue: Tissue = field(default_factory=Tissue)
    probes: Probes = field(default_factory=lambda: Probes(()))
    happened: dict[str, tuple[int, Present]] = field(default_factory=dict)
    """Momentary facts by the id of their alarm: how often each happened, and what to say of the last time."""

    def tell(self, fact: Present) -> None:
        """Keep a momentary fact until each tool's next frame has shown it."""
        count, _ = self.happened.get(fact.id, (0, fact))
        self.happened[fact.id] = (count + 1, fact)

    def step_audio(self, event: AudioEvent, now_ns: int, pause_ns: int = 0) -> list[Note]:
        """Pause sounds, or let them be heard again; return what the log must say of a pause that ended by itself."""
        was = self.audio_paused_until_ns
        self.audio_paused_until_ns = step_audio(was, event, now_ns, pause_ns)
        ended = was and not self.audio_paused_until_ns and event in (AudioEvent.ELAPSED, AudioEvent.NEW_HIGH)
        why = "the time is over" if event is AudioEvent.ELAPSED else "a new alarm of high priority"
        return [audio_note(now_ns, why)] if ended else []


class ToolGuide:
    """Turns the poses of one tool into frames; all state of the tool lives here.

    ``rates`` are the watches of its own stream and the reference's.  ``notes`` fills with what the log must say;
    whoever asks for a frame takes it away.
    """

    def __init__(
        self, setup: Setup, tool: ToolSetup, link: PoseLink, reference: PoseLink | None, engine: ClearanceEngine
    ) -> None:
        self.tool = tool
        self.link = link
        self.reference = reference
        self.parked = False
        self.alarms: AlarmTable = NO_ALARMS
        self.crossings = Crossings(setup, tool, engine)
        self.rates: Sequence[RateWatch] = ()
        self.notes: list[Note] = []
        self.seq = 0
        self.skipped = 0
        self.last_frame_ns = 0
        self._setup = setup
        self._engine = engine
        path = setup.path
        self._path_mm = 0.0 if path is None else math.dist(path.entry_ct_mm, path.target_ct_mm)
        self._told: dict[str, int] = {}
        self._onsets: dict[int, Onset] = {}
        self._cannula = tool
        self.insert: str | None = tool.inserts[0].name if tool.inserts else None
        """What is in the cannula, by name; None for a tool that takes nothing."""
        self.refit(with_insert(tool, tool.inserts[0]) if tool.inserts else tool)
        self._shown_of: AlarmTable = NO_ALARMS
        self._alarm_states: list[AlarmState] = []

    def refit(self, tool: ToolSetup) -> None:
        """Guide this instrument from now on, as when its insert was changed; levels begin anew, alarms go on."""
        self.tool = tool
        self._placement = Placement(self._setup, tool, self.link.source, self.reference, self._engine)
        self._unknown_rows = [
            StructureRow(s.name, s.kind, part, None, None, None, None, None, "unknown")
            for part in parts_of(tool)
            for s in self._setup.structures
        ]
        self._rows: list[StructureRow] = []
        self._ranks: Sequence[int] = ()
        self._watched: Watched = ()
        self._watched_ablating: Watched = ()
        self.rewatch()

    def change_insert(self, name: str, by: str, now_ns: int) -> None:
        """Guide by another insert from now on; what was excepted was so for the one before.  ValueError: none of it."""
        insert = insert_named(self._cannula, name)
        before, self.insert = self.insert, name
        self.notes += self.crossings.end_all("the insert was changed", now_ns)
        self.refit(with_insert(self._cannula, insert))
        fields = {"tool": self.tool.name, "insert": name, "before": before, "reach_mm": insert.reach_mm, "by": by}
        text = f"{self.tool.name}: {name} is in the cannula, {insert.reach_mm:g} mm beyond its tip, by {by}"
        self.notes.append(Note(now_ns, "insert_changed", text, fields))

    def rewatch(self) -> None:
        """Watch the critical structures that are not excepted now."""
        structures = self._setup.structures
        rows = enumerate((part, s) for part in parts_of(self.tool) for s in structures)
        self._watched_ablating = [
            (i, s.limits) for i, (part, s) in rows if judged(s, part) and s.name not in self.crossings
        ]
        self._watched = [(i, limits) for i, limits in self._watched_ablating if i < 2 * len(structures)]

    # -- one frame ---------------------------------------------------------------------------------------------

    def frame(self, now_ns: int, room: RoomFacts, registrations: Registrations) -> GuidanceFrame:
        """Return the next frame of this tool at ``now_ns``; ``sent_ns`` is left 0 for the shell."""
        sample, pair = self.link.last, self.pair()
        standings = self._standings(now_ns, pair, registrations)
        standings.append(room.tissue.standing())
        placed = None
        if pair is not None and registrations.accepted is not None and _worst(standings).state in GEOMETRY_STATES:
            try:
                placed = self._placement.place(
                    now_ns, pair, registrations.accepted, room.tissue.seen, room.phase == "ablation"
                )
            except NotPlaced as fault:
                reason = f"clearance cannot be computed: {fault}"
                standings.append(Standing("FAULT", reason, Condition.FAULT, self.tool.name))
        if placed is None:
            self._placement.forget(now_ns)
        else:
            self._take_rows(placed)
        worst = _worst(standings)
        self._alert(now_ns, standings, room, registrations, placed)
        self.seq += 1
        self.last_frame_ns = now_ns
        return GuidanceFrame(
            v=VERSION,
            seq=self.seq,
            session=room.session,
            pose_time_ns=None if sample is None else sample.pose_time_ns,
            pose_time_source=None if sample is None else sample.stamp_source,
            received_ns=now_ns,
            sent_ns=0,
            age_ms=self._age_ms(now_ns, pair),
            state=worst.state,
            reason=worst.reason,
            phase=room.phase,
            tool=self.tool.name,
            tip_ct_mm=None if placed is None else _triple(placed.tip_ct_mm),
            axis_ct=None if placed is None else _triple(placed.axis_ct),
            q_wxyz_ct_from_tip=None if placed is None else placed.q_wxyz,
            structures=self._unknown_rows if placed is None else self._rows,
            trajectory=None if placed is None else _trajectory(placed.deviation),
            zone=None,
            alarms=self._shown(),
            registration=registrations.shown(now_ns),
            proposal=registrations.shown_proposal(now_ns),
            temperatures=room.probes.shown(now_ns),
            missed_deadlines=room.missed_deadlines,
            skipped_poses=self.skipped,
            audio_paused_s=max(0.0, (room.audio_paused_until_ns - now_ns) / 1e9),
            parked=self.parked,
            exceptions=self.crossings.shown,
            insert=self.insert,
        )

    def next_due_ns(self, idle_frame_ns: int) -> int:
        """Return when this tool needs a frame even if nothing arrives."""
        due = self.last_frame_ns + idle_frame_ns
        for link in (self.link, self.reference):
            change = None if link is None else link.next_change_ns(self.last_frame_ns)
            if change is not None and change < due:
                due = change
        return due

    def pair(self) -> Pair | None:
        """Return the tool's newest pose with the reference's pose that belongs to it; None while either is lost."""
        sample, reference = self.link.last, self.reference
        if sample is None or sample.pose is None or reference is None:
            return None
        source = self.tool.source
        paired = reference.paired_with(sample, source)
        return None if paired is None else Pair(sample, paired, reference.skew_s(sample, source, paired))

    def tip_ref_mm(self, pair: Pair) -> Array:
        """Return the tip (3,) of a pair in the reference's frame."""
        assert pair.tool.pose is not None
        assert pair.reference.pose is not None
        return (pair.reference.pose.inverse() @ pair.tool.pose).apply(self.tool.tip_mm)

    # -- validity ----------------------------------------------------------------------------------------------

    def _standings(self, now_ns: int, pair: Pair | None, registrations: Registrations) -> list[Standing]:
        """Return how everything stands that geometry depends on; of equally bad ones the first gives the reason."""
        found = [
            self.link.judge(now_ns),
            _NO_REFERENCE if self.reference is None else self.reference.judge(now_ns),
            _registered(registrations, now_ns),
        ]
        period_s = 1.0 / self.link.source.spec.rate_hz
        if pair is not None and pair.skew_s > 2.0 * period_s:
            found.append(Standing("DEGRADED", f"tool and reference are {1e3 * pair.skew_s:.0f} ms apart"))
        return found

    def _age_ms(self, now_ns: int, pair: Pair | None) -> float | None:
        """Return the age (ms) of the older of the two poses that the result depends on, or would."""
        if pair is not None:
            return (now_ns - min(pair.tool.taken_ns, pair.reference.taken_ns)) / 1e6
        links = (self.link, self.reference)
        seen = [link.last.taken_ns for link in links if link is not None and link.last is not None]
        return (now_ns - min(seen)) / 1e6 if seen else None

    def _take_rows(self, placed: Placed) -> None:
        """Keep the rows as frames show them: one excepted keeps its numbers and has no level."""
        self._rows, self._ranks = placed.rows, placed.ranks
        if self.crossings:
            excepted = [row.name in self.crossings for row in placed.rows]
            self._rows = [
                msgspec.structs.replace(row, level="none") if out else row
                for row, out in zip(placed.rows, excepted, strict=True)
            ]
            self._ranks = [0 if out else rank for rank, out in zip(placed.ranks, excepted, strict=True)]

    # -- alarms ------------------------------------------------------------------------------------------------

    def acknowledge(self, alarm_id: str, by: str, now_ns: int) -> None:
        """Take the operator's word that an alarm was seen; KeyError if it is not present."""
        self.alarms, change = acknowledge(self.alarms, alarm_id)
        self.notes.append(alarm_note(now_ns, self.tool.name, change, by))

    def _alert(
        self,
        now_ns: int,
        standings: Sequence[Standing],
        room: RoomFacts,
        registrations: Registrations,
        placed: Placed | None,
    ) -> None:
        """Step the alarms; the quiet way through here is short, for every frame goes it."""
        present = self._present(now_ns, standings, room, registrations, placed)
        unjudged = _NOTHING_UNJUDGED if placed is not None else OF_GEOMETRY
        if any(standing.state == "LOST" for standing in standings):
            unjudged = _OF_THE_LOST  # what is lost was stale before: no need to say both
        self.alarms, changes = step_alarms(self.alarms, present, now_ns, unjudged)
        if changes:
            self._log(now_ns, changes, room)
        if room.audio_paused_until_ns and now_ns >= room.audio_paused_until_ns:
            self.notes += room.step_audio(AudioEvent.ELAPSED, now_ns)

    def _log(self, now_ns: int, changes: Sequence[Change], room: RoomFacts) -> None:
        self.notes += [alarm_note(now_ns, self.tool.name, change) for change in changes]
        if any(change.is_new_high for change in changes):
            self.notes += room.step_audio(AudioEvent.NEW_HIGH, now_ns)

    def _present(
        self,
        now_ns: int,
        standings: Sequence[Standing],
        room: RoomFacts,
        registrations: Registrations,
        placed: Placed | None,
    ) -> Mapping[str, Present]:
        """Return what holds, by the id of its alarm."""
        found: list[Present] = []
        if placed is not None:
            watched = self._watched_ablating if room.phase == "ablation" else self._watched
            found += structure_conditions(self._rows, self._ranks, watched, self.alarms)
            if self.parked and found:
                self._end_parking(now_ns, found)
            path = self._setup.path
            if placed.deviation is not None and path is not None and not self.parked:
                site = self._setup.site
                found += path_conditions(placed.deviation, self._path_mm, path.corridor_mm, site, self.alarms)
        if self._onsets or any(s is not GOOD for s in standings):
            registered = registrations.accepted is not None
            found = self._validity(now_ns, standings, registered) + found
        for place, rate in enumerate(self.rates):
            if rate.is_low(now_ns) and standings[place].condition is None and not (place == 0 and self.parked):
                found.append(self._rate_low(place, rate, now_ns))
        if room.drifting is not None and registrations.accepted is not None:
            found.append(room.drifting)
        if room.displays == 0 and room.phase in NAVIGATING and self._setup.site.display_gone:
            found.append(Present(Condition.DISPLAY_GONE, None, "No display is connected to this server"))
        found += room.probes.present(now_ns, room.phase)
        for key, (count, fact) in room.happened.items():
            if count > self._told.get(key, 0):
                self._told[key] = count
                found.append(fact)
        return {p.id: p for p in reversed(found)} if found else _NOTHING_PRESENT  # of one id, the first speaks

    def _end_parking(self, now_ns: int, found: Sequence[Present]) -> None:
        """Take a parked tool for one in use when it comes near: a forgotten word must not hide a contact."""
        reasons = [p for p in found if p.condition in OF_STRUCTURES and p.signalled is not Priority.LOW]
        if reasons:
            self.parked = False
            text = f"{self.tool.name} was parked and is in use: {reasons[0].text}"
            self.notes.append(Note(now_ns, "parking_ended", text, {"tool": self.tool.name}))

    def _validity(self, now_ns: int, standings: Sequence[Standing], registered: bool) -> list[Present]:
        """Return a condition for each thing that stands badly, not for the worst alone: none hides another."""
        onsets: dict[int, Onset] = {}
        found = []
        site = self._setup.site
        for place, standing in enumerate(standings):
            condition = standing.condition
            began = self._onsets.get(place)
            if condition is None:
                if began is not None and (kept := began.well(now_ns)) is not None:
                    onsets[place] = kept
                continue
            if began is None:
                began = onset(now_ns, self._rows, self._ranks, site)
            onsets[place] = began if began.gone_since_ns is None else replace(began, gone_since_ns=None)
            own = place == 0 or condition is Condition.FAULT
            priority = loss_priority(condition, began, now_ns, site, own=own, parked=self.parked, registered=registered)
            measured = {"lasts_ms": (now_ns - began.since_ns) / 1e6}
            found.append(
                Present(condition, standing.subject, standing.reason, priority, past=_past(standing), measured=measured)
            )
        self._onsets = onsets
        return found

    def _rate_low(self, place: int, rate: RateWatch, now_ns: int) -> Present:
        label = self.link.label if place == 0 or self.reference is None else self.reference.label
        seen_hz = rate.seen_hz(now_ns)
        return Present(
            Condition.RATE_LOW,
            label,
            f"{label}: {seen_hz:.0f} of {rate.rate_hz:g} declared poses a second",
            past=f"{label}: too few poses came",
            measured={"rate_hz": seen_hz, "declared_hz": rate.rate_hz, "fraction": self._setup.site.rate_fraction},
        )

    def _shown(self) -> list[AlarmState]:
        """Return the alarms as the frame says them; made anew only when one changed."""
        if self._shown_of is not self.alarms:
            self._shown_of = self.alarms
            self._alarm_states = [
                AlarmState(
                    key,
                    alarm.present.condition.value,
                    alarm.priority.value,
                    alarm.phase.value,
                    alarm.since_ns,
                    alarm.present.subject if alarm.present.condition in OF_STRUCTURES else None,
                    alarm.present.text,
                    RULES[alarm.present.condition].action,
                )
                for key, alarm in self.alarms.items()
            ]
        return self._alarm_states


def _past(standing: Standing) -> str:
    """Return what is said of something that is well again: no figure of then may look like one of now."""
    if standing.condition is Condition.SOURCE_STALE:
        return f"{standing.subject}: no fresh pose came for a moment"
    return standing.reason


def _worst(standings: list[Standing]) -> Standing:
    return max(standings, key=lambda s: _RANK[s.state])


def _registered(registrations: Registrations, now_ns: int) -> Standing:
    accepted = registrations.accepted
    if accepted is None:
        return _without_registration(registrations, now_ns)
    if accepted.state == "unverified":
        return Standing("DEGRADED", f"registration unverified: {accepted.reason}", accepted.doubt)
    return GOOD


def _without_registration(registrations: Registrations, now_ns: int) -> Standing:
    match registrations.shown(now_ns).state:
        case "rejected":
            return Standing("UNREGISTERED", "registration rejected", Condition.REGISTRATION_REJECTED)
        case "expired":
            why = "" if registrations.last is None else f": {registrations.last.reason}"
            return Standing("UNREGISTERED", f"registration expired{why}", Condition.REGISTRATION_EXPIRED)
        case "proposed":
            return Standing("UNREGISTERED", "a registration waits for acceptance", Condition.UNREGISTERED)
        case _:
            return Standing("UNREGISTERED", "no registration yet", Condition.UNREGISTERED)


def _trajectory(d: Deviation | None) -> TrajectoryState | None:
    return None if d is None else TrajectoryState(*d)


def _triple(values: Array) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return (x, y, z)
