"""Owns the path of one pose: inputs in, frames out; a deterministic function of its inputs and nothing else.

``Pipeline.handle(input)`` returns what must leave the room because of it: guidance frames, answers to commands,
notes for the log, links to end.  The server feeds it live; replay and the simulators feed it recorded or virtual time.
"""

from __future__ import annotations

from collections import deque
from typing import Any, TypeVar, assert_never

import numpy as np

from navsrv.guidance.alarm_life import Present
from navsrv.guidance.alarms import AUDIO_PAUSE_MAX_S, RULES, AudioEvent, Condition, Scope
from navsrv.guidance.clearance import ClearanceEngine
from navsrv.kernel.frames import REFERENCE
from navsrv.kernel.samples import PoseSample
from navsrv.pipeline.bystanders import Bystanders
from navsrv.pipeline.inputs import (
    BytesIn,
    CommandIn,
    EndLink,
    Input,
    LinkDown,
    LinkUp,
    NeedleIn,
    Note,
    RegistrationIn,
    Reply,
    SensorIn,
    ShellReport,
    SourceReport,
    Tick,
    ToDevice,
)
from navsrv.pipeline.links import PoseLink
from navsrv.pipeline.pose_memory import EXPOSURE_NEAR_NS, Noise, PoseMemory
from navsrv.pipeline.probes import Probes
from navsrv.pipeline.reference_watch import ReferenceWatch
from navsrv.pipeline.registration_checks import TOUCH_SIGMA_MM, applied, checked_by_landmark, checked_by_proposal
from navsrv.pipeline.registrations import Registrations
from navsrv.pipeline.setup import Setup, frames_of
from navsrv.pipeline.snapshot import SnapshotGuide
from navsrv.pipeline.sources import Driver
from navsrv.pipeline.tissue import Tissue
from navsrv.pipeline.tool import RoomFacts, ToolGuide
from navsrv.pipeline.watches import MissWatch, RateWatch
from navsrv.registration.health import Finding
from navsrv.wire.guidance import GEOMETRY_STATES, PHASES, GuidanceFrame

Output = GuidanceFrame | Reply | Note | EndLink | ToDevice


class CommandRefused(Exception):
    """A command that cannot be carried out; its text says why, for the one who sent it."""


class Pipeline:
    """Everything that decides, for one session.

    Parameters
    ----------
    setup : Setup
        Checked by the server; nothing here reads files.
    engine : ClearanceEngine, optional
        Of the same structures: pipelines of one thread may share it, for it remembers nothing.
    """

    def __init__(self, setup: Setup, engine: ClearanceEngine | None = None) -> None:
        self.setup = setup
        self._sources = {s.spec.name: s for s in setup.sources}
        self._drivers = {s.spec.name: Driver(s.spec) for s in setup.sources}
        self.engine = ClearanceEngine([s.distance for s in setup.structures]) if engine is None else engine
        reference = setup.reference
        frame = REFERENCE if reference is None else frames_of(reference.transform)[1]
        self._registrations = Registrations(setup.preset, frame)
        self._room = RoomFacts(setup.session, "navigation" if setup.preset else "setup")
        self._room.tissue = Tissue(tuple(s.name for s in setup.structures if s.turned_mm > 0.0), setup.tissue_seen)
        self._room.probes = Probes(setup.probes)
        self._down: dict[str, str] = {}
        self._reference = None
        if reference is not None:
            self._reference = self._remembering("Reference", reference.source)
        self._links: dict[tuple[str, str], PoseLink] = {}
        if reference is not None and self._reference is not None:
            self._links[reference.source, reference.transform] = self._reference
        witness = None
        if setup.witness is not None:
            witness = self._link("Witness", setup.witness.source, Condition.REFERENCE_LOST)
            self._links[setup.witness.source, setup.witness.transform] = witness
        self._bodies = {b.transform: self._remembering(f"the body {b.transform}", b.source) for b in setup.bodies}
        self._links.update({(b.source, b.transform): self._bodies[b.transform] for b in setup.bodies})
        self._bystanders = Bystanders([*([] if witness is None else [witness]), *self._bodies.values()])
        self._watch = ReferenceWatch(setup, self._reference, witness)
        self._misses = MissWatch(setup.site.deadline_misses)
        self._rates: dict[tuple[str, str], RateWatch] = {}
        self._guides: dict[str, ToolGuide] = {}
        self._guide_of: dict[tuple[str, str], ToolGuide] = {}
        for tool in setup.tools:
            link = self._link(tool.name, tool.source, Condition.TOOL_LOST)
            guide = ToolGuide(setup, tool, link, self._reference, self.engine)
            self._links[tool.source, tool.transform] = link
            self._guides[tool.name] = guide
            self._guide_of[tool.source, tool.transform] = guide
            guide.rates = [self._rate(tool.source, tool.transform)]
            if reference is not None:
                guide.rates.append(self._rate(reference.source, reference.transform))
        self._still = {tool.name: SnapshotGuide(setup, tool, frame, self.engine) for tool in setup.snapshots}
        self._guides.update(self._still)

    def _link(self, label: str, source: str, lost: Condition) -> PoseLink:
        return PoseLink(label, self._sources[source], lost, deque(maxlen=self.setup.pose_history))

    def _remembering(self, label: str, source: str) -> PoseLink:
        link = self._link(label, source, Condition.REFERENCE_LOST)
        link.memory = PoseMemory(self.setup.pose_history, self.setup.remembered_s)
        return link

    def _rate(self, source: str, transform: str) -> RateWatch:
        rate_hz = self._sources[source].spec.rate_hz
        return self._rates.setdefault((source, transform), RateWatch(rate_hz, self.setup.site.rate_fraction))

    # -- inputs ------------------------------------------------------------------------------------------------

    def handle(self, item: Input) -> list[Output]:
        """Return what follows from one input; inputs come in the order of their times."""
        match item:
            case BytesIn():
                return self._bytes(item)
            case Tick():
                return self._tick(item.now_ns)
            case LinkUp():
                return self._link_up(item)
            case LinkDown():
                return self._link_down(item)
            case CommandIn():
                return self._command(item)
            case RegistrationIn():
                return self._proposed(item)
            case NeedleIn():
                return self._shown_needle(item)
            case SensorIn():
                return [*self._room.probes.take(item)]
            case ShellReport():
                return self._reported(item)
            case _:
                assert_never(item)

    def next_due_ns(self) -> int:
        """Return the monotonic time (ns) at which a ``Tick`` is needed if nothing else arrives."""
        frames_ns = min(guide.next_due_ns(self.setup.idle_frame_ns) for guide in self._guides.values())
        return min([frames_ns, *(driver.next_due_ns() for driver in self._drivers.values())])

    def report_sources(self, now_ns: int) -> list[SourceReport]:
        """Return how each source stands at ``now_ns``: its counts, and what its stamps tell of its clock."""
        reports = [driver.report(now_ns) for driver in self._drivers.values()]
        for report in reports:
            report.counts["identical"] = sum(link.identical for link in self._links_of(report.source))
        return reports + self._room.probes.reports(now_ns)

    def _link_up(self, item: LinkUp) -> list[Output]:
        driver = self._drivers[item.source]
        driver.connect(item.now_ns)
        self._down.pop(item.source, None)
        for link in self._links_of(item.source):
            link.connect()
        for (source, _), rate in self._rates.items():
            if source == item.source:
                rate.forget()
        self._watch.forget()
        return [Note(item.now_ns, "link_up", f"source {item.source} is connected", {}), *driver.effects()]

    def _link_down(self, item: LinkDown) -> list[Output]:
        """Say it once: a source that stays away for the same reason is no news."""
        self._drivers[item.source].disconnect()
        if self._down.get(item.source) == item.reason:
            return []
        self._down[item.source] = item.reason
        for link in self._links_of(item.source):
            link.disconnect(item.reason)
        text = f"source {item.source} is down: {item.reason}"
        return [Note(item.now_ns, "link_down", text, {}), *self._frames(item.now_ns)]

    def _links_of(self, source: str) -> list[PoseLink]:
        return [link for (name, _), link in self._links.items() if name == source]

    def _reported(self, item: ShellReport) -> list[Output]:
        room = self._room
        if self._misses.step(item.missed_deadlines, item.now_ns):
            text = f"{item.missed_deadlines} deadlines missed since the start"
            measured = {"missed": item.missed_deadlines, "limit": self.setup.site.deadline_misses}
            room.tell(Present(Condition.DEADLINE_MISSED, None, text, measured=measured))
        if item.lost_records > room.lost_records:
            text = f"recording: {item.lost_records} records lost"
            measured = {"lost": item.lost_records}
            room.tell(Present(Condition.RECORDER_FAILING, None, text, past=text, measured=measured))
        room.missed_deadlines, room.lost_records = item.missed_deadlines, item.lost_records
        if item.displays or room.displays is not None:
            room.displays = item.displays or 0
        return []

    # -- poses -------------------------------------------------------------------------------------------------

    def _bytes(self, item: BytesIn) -> list[Output]:
        driver = self._drivers[item.source]
        source = driver.source
        if source is None:
            return [Note(item.received_ns, "bytes_without_link", f"bytes of {item.source} before its link", {})]
        samples, ended = driver.feed(item.data, item.received_ns, item.wall_ns)
        tail: list[Output] = [*driver.effects(), *ended]
        for device, stamp_ns, body in driver.readings():
            tail += self._room.probes.take_from(item.source, device, stamp_ns, body, item.received_ns)
        for text in source.take_notices():
            tail.append(Note(item.received_ns, "source_notice", f"source {item.source}: {text}", {}))
        if source.jumped:
            text = f"the clock of source {item.source} jumped"
            self._room.tell(Present(Condition.CLOCK_JUMP, item.source, text))
            tail.append(Note(item.received_ns, "clock_jump", text, {}))
        return self._guide(item.source, samples, item.received_ns) + tail

    def _tick(self, now_ns: int) -> list[Output]:
        """Return what is due: orders to devices, links to end, frames."""
        orders: list[Output] = []
        for driver in self._drivers.values():
            orders += driver.tick(now_ns)
            orders += driver.effects()
        return self._due_frames(now_ns) + orders

    def _guide(self, source: str, samples: list[PoseSample], now_ns: int) -> list[Output]:
        """Return a frame for each tool pose of one read; references first, so that pairs of one read meet."""
        of_tool: dict[str, list[PoseSample]] = {}
        noticed: list[Output] = []
        for sample in samples:
            rate = self._rates.get((source, sample.name))
            if rate is not None:
                rate.add(now_ns)
            if (source, sample.name) in self._guide_of:
                of_tool.setdefault(sample.name, []).append(sample)
            else:
                link = self._links.get((source, sample.name))
                if link is not None:
                    link.add(sample)
                    if link is self._reference:
                        noticed += self._watched(sample, now_ns)
                    else:
                        noticed += self._bystanders.changes(now_ns)
        outputs: list[Output] = []
        for name, poses in of_tool.items():
            guide = self._guide_of[source, name]
            excess = len(poses) - self.setup.max_burst
            if excess > 0:
                guide.skipped += excess
                poses = poses[excess:]
            for sample in poses:
                guide.link.add(sample)
                outputs += self._frame(guide, now_ns)
        return outputs + noticed if noticed else outputs

    def _watched(self, reference: PoseSample, now_ns: int) -> list[Note]:
        """Return what the log must say of the reference's newest sample; what it puts in doubt ends exceptions."""
        notes = self._watch.step(reference, now_ns, self._registrations, self._room)
        if notes:
            self._end_exceptions("the registration is in doubt", now_ns)
        return notes

    def _due_frames(self, now_ns: int) -> list[Output]:
        idle_ns = self.setup.idle_frame_ns
        due = [guide for guide in self._guides.values() if guide.next_due_ns(idle_ns) <= now_ns]
        return [output for guide in due for output in self._frame(guide, now_ns)]

    def _frames(self, now_ns: int) -> list[Output]:
        return [output for guide in self._guides.values() for output in self._frame(guide, now_ns)]

    def _frame(self, guide: ToolGuide, now_ns: int) -> list[Output]:
        """Return a tool's next frame, and after it what the log must say of it."""
        max_age_ns = self.setup.registration_max_age_ns
        if max_age_ns is not None:
            self._expire(now_ns, max_age_ns)
        frame = guide.frame(now_ns, self._room, self._registrations)
        changes = self._room.probes.changes(now_ns) + self._bystanders.changes(now_ns)
        if not guide.notes and not changes:
            return [frame]
        notes, guide.notes = guide.notes, []
        return [frame, *notes, *changes]

    def _shown_needle(self, item: NeedleIn) -> list[Output]:
        guide = self._still[item.tool]
        try:
            note = guide.take(item)
        except ValueError as fault:
            return [Note(item.now_ns, "needle_unusable", f"{item.tool}: {fault}", {"source": item.source})]
        return [*self._frame(guide, item.now_ns), note]

    # -- registration and commands -----------------------------------------------------------------------------

    def _proposed(self, item: RegistrationIn) -> list[Output]:
        try:
            registration = self._registrations.propose(item)
        except ValueError as fault:
            text = f"registration {item.id} by {item.method} is unusable: {fault}"
            return [Note(item.now_ns, "registration_unusable", text, {"id": item.id, "method": item.method})]
        if self._room.phase == "setup":
            self._room.phase = "registration"
        text = f"registration {item.id} by {item.method}: {item.verdict}, TRE {item.tre_mm:.2f} mm ({item.reason})"
        fields = {"id": registration.id, "method": item.method, "verdict": item.verdict, "tre_mm": item.tre_mm}
        target = None if self.setup.path is None else self.setup.path.target_ct_mm
        fallen = self._checked(checked_by_proposal(self._registrations, registration, target), item.now_ns)
        return [Note(item.now_ns, "registration_proposed", text, fields), *fallen, *self._frames(item.now_ns)]

    def _checked(self, finding: Finding | None, now_ns: int) -> list[Note]:
        """Let the registration in use fall as far as a finding says; return what the log must say."""
        notes = [] if finding is None else applied(self._registrations, finding, now_ns)
        if notes:
            self._end_exceptions("the registration is in doubt", now_ns)
        return notes

    def _command(self, item: CommandIn) -> list[Output]:
        operation = _OPERATIONS.get(item.op)
        if operation is None:
            return [Reply(item.id, False, f"unknown operation {item.op!r}")]
        try:
            value = operation(self, item)
        except (CommandRefused, ValueError) as refusal:
            text = str(refusal)
            note = Note(item.now_ns, "command_refused", f"{item.op} by {item.role}: {text}", {"args": item.args})
            return [Reply(item.id, False, text), note]
        note = Note(item.now_ns, "command", f"{item.op} by {item.role}", {"args": item.args})
        changed = [] if item.op in _READING else self._frames(item.now_ns)
        return [Reply(item.id, True, value), note, *changed]

    def _acknowledge(self, item: CommandIn) -> Any:
        """Acknowledge an alarm: of the tool that is named, or the only one that shows it; of the room, everywhere."""
        alarm_id = _argument(item, "id", str)
        showing = {name: guide for name, guide in self._guides.items() if alarm_id in guide.alarms}
        tool = item.args.get("tool")
        if tool is not None and self._named(item).tool.name not in showing:
            raise CommandRefused(f"no alarm {alarm_id!r} is present for {tool}")
        if not showing:
            raise CommandRefused(f"no alarm {alarm_id!r} is present")
        condition = next(iter(showing.values())).alarms[alarm_id].present.condition
        if RULES[condition].scope is not Scope.ROOM:
            if tool is None and len(showing) > 1:
                raise CommandRefused(f"alarm {alarm_id!r} is present for {', '.join(showing)}; say which in args.tool")
            showing = {tool: showing[tool]} if tool is not None else showing
        for guide in showing.values():
            guide.acknowledge(alarm_id, item.role, item.now_ns)
        return None

    def _except_structure(self, item: CommandIn) -> Any:
        """Except a structure that the plan crosses from one tool's alarms, or watch it again."""
        structure, reason = _argument(item, "structure", str), _argument(item, "reason", str)
        if item.args.get("tool") is None and len(self._guides) > 1:
            raise CommandRefused(f"there are several tools ({', '.join(self._guides)}); say which in args.tool")
        guide = self._named(item) if item.args.get("tool") is not None else next(iter(self._guides.values()))
        if _argument(item, "on", bool):
            guide.notes.append(guide.crossings.begin(structure, reason, item.role, item.now_ns))
        else:
            guide.notes.append(guide.crossings.end(structure, reason or f"by {item.role}", item.now_ns))
        guide.rewatch()
        return None

    def _end_exceptions(self, why: str, now_ns: int) -> None:
        for guide in self._guides.values():
            guide.notes += guide.crossings.end_all(why, now_ns)
            guide.rewatch()

    def _accept(self, item: CommandIn) -> Any:
        self._registrations.accept(_argument(item, "id", str), item.now_ns)
        self._trust("another registration was accepted", item.now_ns)
        if self._room.phase in ("setup", "registration", "verification"):
            self._enter("navigation", item.now_ns)
        return None

    def _trust(self, why: str, now_ns: int) -> None:
        """Begin anew what is watched since the registration was trusted."""
        self._room.drifting = None
        self._watch.rebase(self._registrations)
        self._end_exceptions(why, now_ns)

    def _reject(self, item: CommandIn) -> Any:
        used = self._registrations.accepted
        self._registrations.reject(_argument(item, "id", str), item.now_ns)
        if self._registrations.accepted is None:
            self._enter("registration", item.now_ns)
        if used is not self._registrations.accepted:
            self._end_exceptions("the registration was rejected", item.now_ns)
        return None

    def _doubt(self, item: CommandIn) -> Any:
        """Put the registration in use in doubt: geometry goes on, DEGRADED, until it is confirmed."""
        name, reason = _argument(item, "id", str), _argument(item, "reason", str)
        self._registrations.put_in_doubt(name, reason, Condition.UNVERIFIED, item.now_ns)
        self._end_exceptions("the registration is in doubt", item.now_ns)
        return None

    def _check_landmark(self, item: CommandIn) -> Any:
        """Compare where a tool touches a landmark with where the registration in use puts it; the state may fall."""
        tip = self._sample_tip(item)
        point, sigma = _argument(item, "point_ct_mm", list), item.args.get("sigma_mm", TOUCH_SIGMA_MM)
        finding = checked_by_landmark(self._registrations, np.array(point), np.array(tip["tip_ref_mm"]), float(sigma))
        self._guides[item.args["tool"]].notes += self._checked(finding, item.now_ns)
        return {
            "away_mm": finding.value_mm,
            "limit_mm": finding.limit_mm,
            "state": finding.health.value,
            "reason": finding.reason,
        }

    def _confirm(self, item: CommandIn) -> Any:
        """Trust a registration again that is unverified or expired: the operator has checked it."""
        self._registrations.confirm(_argument(item, "id", str), item.now_ns)
        self._trust("the registration was confirmed", item.now_ns)
        return None

    def _expire(self, now_ns: int, max_age_ns: int) -> None:
        expired = self._registrations.expire(now_ns, max_age_ns)
        if expired is not None:
            text = f"registration {expired.id} expired: {expired.reason}"
            fields = {"id": expired.id, "max_age_s": max_age_ns / 1e9}
            next(iter(self._guides.values())).notes.append(Note(now_ns, "registration_expired", text, fields))
            self._end_exceptions("the registration expired", now_ns)

    def _describe(self, item: CommandIn) -> Any:
        registration = self._registrations.find(_argument(item, "id", str))
        return {
            "id": registration.id,
            "method": registration.method,
            "state": registration.state,
            "verdict": registration.verdict,
            "reason": registration.reason,
            "tre_mm": registration.tre_mm,
            "T_ct_from_ref": np.ravel(registration.T_ct_from_ref.matrix).tolist(),
            "covariance": registration.covariance.ravel().tolist(),
        }

    def _pause_audio(self, item: CommandIn) -> Any:
        """Pause alarm sounds for a time, never for good; 0 ends a pause.  Every frame shows what is left of it."""
        seconds = item.args.get("seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= AUDIO_PAUSE_MAX_S:
            raise CommandRefused(f"seconds {seconds!r}; expected a number from 0 to {AUDIO_PAUSE_MAX_S:g}")
        event = AudioEvent.PAUSE if seconds else AudioEvent.RESUME
        self._room.step_audio(event, item.now_ns, int(1e9 * seconds))
        return None

    def _set_phase(self, item: CommandIn) -> Any:
        phase = _argument(item, "phase", str)
        if phase not in PHASES:
            raise CommandRefused(f"unknown phase {phase!r}; one of {', '.join(PHASES)}")
        self._enter(phase, item.now_ns)
        return None

    def _enter(self, phase: str, now_ns: int) -> None:
        """Begin a phase; what was excepted was so in the phase before."""
        if phase != self._room.phase:
            self._room.phase = phase
            self._end_exceptions(f"phase {phase} began", now_ns)

    def _patient_turned(self, _: CommandIn) -> Any:
        self._room.tissue.turn()
        return None

    def _anatomy_confirmed(self, _: CommandIn) -> Any:
        self._room.tissue.confirm()
        return None

    def _park(self, item: CommandIn) -> Any:
        self._named(item).parked = _argument(item, "parked", bool)
        return None

    def _forget_needle(self, item: CommandIn) -> Any:
        """Stop showing where an image saw a tool: it was moved since."""
        guide = self._still.get(_argument(item, "tool", str))
        if guide is None:
            raise CommandRefused(f"{item.args['tool']!r} is no tool that images show")
        guide.forget(f"{guide.tool.name} was moved since its last image: take another")
        return None

    def _change_insert(self, item: CommandIn) -> Any:
        """Guide by another insert of a cannula, which the operator has seen to sit against its depth stop."""
        guide, name = self._named(item), _argument(item, "insert", str)
        if not _argument(item, "seated", bool):
            raise CommandRefused("args.seated: false; an insert that is not against its depth stop has no known tip")
        guide.change_insert(name, item.role, item.now_ns)
        return {"insert": name, "length_mm": guide.tool.length_mm, "tip_sigma_mm": guide.tool.tip_sigma_mm}

    def _named(self, item: CommandIn) -> ToolGuide:
        name = _argument(item, "tool", str)
        if name not in self._guides:
            raise CommandRefused(f"there is no tool {name!r}; one of {', '.join(self._guides)}")
        return self._guides[name]

    def _sample_tip(self, item: CommandIn) -> Any:
        """Return the tool's tip in the reference's frame, now; refused when either is not fresh."""
        guide = self._named(item)
        for link in (guide.link, guide.reference):
            if link is None:
                raise CommandRefused("no reference is configured")
            standing = link.judge(item.now_ns)
            if standing.state not in GEOMETRY_STATES:
                raise CommandRefused(standing.reason)
        pair = guide.pair()
        if pair is None:
            raise CommandRefused(f"{guide.tool.name}: no valid pair of tool and reference")
        return {"tip_ref_mm": guide.tip_ref_mm(pair).tolist(), "pose_time_ns": pair.tool.pose_time_ns}

    def _reference_at(self, item: CommandIn) -> Any:
        """Return ``T_tracker_from_ref`` (16 numbers) at a device time (ns, decimal), and what is unsure of it."""
        return _pose_then(self._reference, "the reference", item, "T_tracker_from_ref")

    def _body_at(self, item: CommandIn) -> Any:
        """Return ``T_tracker_from_body`` of an imaging device's body, by its transform, as ``_reference_at`` does."""
        name = _argument(item, "body", str)
        return _pose_then(self._bodies.get(name), name, item, "T_tracker_from_body")


def _pose_then(link: PoseLink | None, name: str, item: CommandIn, key: str) -> dict[str, Any]:
    try:
        time_ns = int(_argument(item, "time_ns", str))  # decimal, as every time that JSON may have carried
    except ValueError:
        raise CommandRefused(f"args.time_ns: {item.args['time_ns']!r}; expected nanoseconds") from None
    if link is None or link.memory is None or (off_ns := link.memory.off_ns(time_ns)) is None:
        raise CommandRefused(f"{name} has not been seen")
    source = link.source
    near_ns = max(int(2e9 / source.spec.rate_hz), EXPOSURE_NEAR_NS)
    found = link.memory.then(time_ns, near_ns, Noise(source.noise_mm, source.noise_rad))
    if found is None:
        raise CommandRefused(f"{name} was last seen {off_ns / 1e6:.0f} ms away from the exposure")
    return {
        key: np.ravel(found.matrix).tolist(),
        "off_ms": found.off_ns / 1e6,
        "between": found.between,
        "sigma_mm": found.sigma_mm,
        "sigma_rad": found.sigma_rad,
    }


_T = TypeVar("_T")


def _argument(item: CommandIn, name: str, kind: type[_T]) -> _T:
    """Return an argument of a command; CommandRefused if it is missing or of another kind."""
    value = item.args.get(name)
    if not isinstance(value, kind):
        raise CommandRefused(f"args.{name}: {value!r}; expected a {kind.__name__}")
    return value


_OPERATIONS = {
    "acknowledge_alarm": Pipeline._acknowledge,
    "except_structure": Pipeline._except_structure,
    "accept_registration": Pipeline._accept,
    "doubt_registration": Pipeline._doubt,
    "check_landmark": Pipeline._check_landmark,
    "confirm_registration": Pipeline._confirm,
    "reject_registration": Pipeline._reject,
    "describe_registration": Pipeline._describe,
    "pause_audio": Pipeline._pause_audio,
    "set_phase": Pipeline._set_phase,
    "park_tool": Pipeline._park,
    "forget_needle": Pipeline._forget_needle,
    "change_insert": Pipeline._change_insert,
    "patient_turned": Pipeline._patient_turned,
    "anatomy_confirmed": Pipeline._anatomy_confirmed,
    "sample_tip": Pipeline._sample_tip,
    "reference_at": Pipeline._reference_at,
    "body_at": Pipeline._body_at,
}
_READING = frozenset(("describe_registration", "sample_tip", "reference_at", "body_at"))
