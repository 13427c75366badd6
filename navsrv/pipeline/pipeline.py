"""Owns the path of one pose: inputs in, frames out; a deterministic function of its inputs and nothing else.

``Pipeline.handle(input)`` returns what must leave the room because of it: guidance frames, answers to commands,
notes for the log, links to end.  The server feeds it live; replay and the simulators feed it recorded or virtual time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from typing import Any, Final, TypeVar, assert_never

import numpy as np

from devices.openigtlink import OpenIgtLinkSource, SourceCounts
from navsrv.guidance.alarms import Condition, Present, acknowledge
from navsrv.guidance.clearance import ClearanceEngine
from navsrv.kernel.errors import RemoteProtocolError
from navsrv.kernel.frames import REFERENCE
from navsrv.kernel.samples import PoseSample
from navsrv.pipeline.inputs import (
    BytesIn,
    CommandIn,
    EndLink,
    Input,
    LinkDown,
    LinkUp,
    Note,
    RegistrationIn,
    Reply,
    ShellReport,
    SourceReport,
    Tick,
)
from navsrv.pipeline.links import PoseLink
from navsrv.pipeline.registrations import Registrations
from navsrv.pipeline.setup import Setup, SourceSetup, frames_of
from navsrv.pipeline.tool import RoomFacts, ToolGuide
from navsrv.wire.guidance import GEOMETRY_STATES, PHASES, GuidanceFrame

Output = GuidanceFrame | Reply | Note | EndLink

AUDIO_PAUSE_MAX_S: Final = 120.0
"""Longest pause of alarm sounds by one command."""


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
        self.counts = {s.spec.name: SourceCounts() for s in setup.sources}
        self._sources = {s.spec.name: s for s in setup.sources}
        self._drivers: dict[str, OpenIgtLinkSource] = {}
        self.engine = ClearanceEngine([s.distance for s in setup.structures]) if engine is None else engine
        reference = setup.reference
        frame = REFERENCE if reference is None else frames_of(reference.transform)[1]
        self._registrations = Registrations(setup.preset, frame)
        self._room = RoomFacts(setup.session, "navigation" if setup.preset else "setup")
        self._down: dict[str, str] = {}
        self._reference = None
        if reference is not None:
            self._reference = self._link("Reference", reference.source, Condition.REFERENCE_LOST)
        self._links: dict[tuple[str, str], PoseLink] = {}
        if reference is not None and self._reference is not None:
            self._links[reference.source, reference.transform] = self._reference
        self._guides: dict[str, ToolGuide] = {}
        self._guide_of: dict[tuple[str, str], ToolGuide] = {}
        for tool in setup.tools:
            link = self._link(tool.name, tool.source, Condition.TOOL_LOST)
            guide = ToolGuide(setup, tool, link, self._reference, self.engine)
            self._links[tool.source, tool.transform] = link
            self._guides[tool.name] = guide
            self._guide_of[tool.source, tool.transform] = guide

    def _link(self, label: str, source: str, lost: Condition) -> PoseLink:
        return PoseLink(label, self._sources[source], lost, deque(maxlen=self.setup.pose_history))

    # -- inputs ------------------------------------------------------------------------------------------------

    def handle(self, item: Input) -> list[Output]:
        """Return what follows from one input; inputs come in the order of their times."""
        match item:
            case BytesIn():
                return self._bytes(item)
            case Tick():
                return self._due_frames(item.now_ns)
            case LinkUp():
                return self._link_up(item)
            case LinkDown():
                return self._link_down(item)
            case CommandIn():
                return self._command(item)
            case RegistrationIn():
                return self._proposed(item)
            case ShellReport():
                return self._reported(item)
            case _:
                assert_never(item)

    def next_due_ns(self) -> int:
        """Return the monotonic time (ns) at which a ``Tick`` is needed if nothing else arrives."""
        return min(guide.next_due_ns(self.setup.idle_frame_ns) for guide in self._guides.values())

    def report_sources(self, now_ns: int) -> list[SourceReport]:
        """Return how each source stands at ``now_ns``: its counts, and what its stamps tell of its clock."""
        return [self._report_of(source, now_ns) for source in self.setup.sources]

    def _report_of(self, source: SourceSetup, now_ns: int) -> SourceReport:
        name = source.spec.name
        driver, counts = self._drivers.get(name), asdict(self.counts[name])
        unknown_s = source.spec.unknown_latency_ns / 1e9
        clock = None if driver is None else driver.clock.estimate(now_ns)
        if driver is None or clock is None:
            return SourceReport(name, driver is not None, counts, unknown_s)
        return SourceReport(
            name,
            True,
            counts,
            unknown_s + clock.shifted_ns / 1e9,
            driver.clock.late_ns / 1e9,
            clock.offset_ns / 1e9,
            clock.offset_sigma_ns / 1e9,
            clock.drift_ppm,
            clock.drift_sigma_ppm,
        )

    def _link_up(self, item: LinkUp) -> list[Output]:
        self._drivers[item.source] = OpenIgtLinkSource(self._sources[item.source].spec, self.counts[item.source])
        self._down.pop(item.source, None)
        for link in self._links_of(item.source):
            link.connect()
        return [Note(item.now_ns, "link_up", f"source {item.source} is connected", {})]

    def _link_down(self, item: LinkDown) -> list[Output]:
        """Say it once: a source that stays away for the same reason is no news."""
        self._drivers.pop(item.source, None)
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
        if item.missed_deadlines > room.missed_deadlines:
            text = f"{item.missed_deadlines} deadlines missed since the start"
            room.tell(Present(Condition.DEADLINE_MISSED, None, text))
        if item.lost_records > room.lost_records:
            room.tell(Present(Condition.RECORDER_FAILING, None, f"recording: {item.lost_records} records lost"))
        room.missed_deadlines, room.lost_records = item.missed_deadlines, item.lost_records
        return []

    # -- poses -------------------------------------------------------------------------------------------------

    def _bytes(self, item: BytesIn) -> list[Output]:
        driver = self._drivers.get(item.source)
        if driver is None:
            return [Note(item.received_ns, "bytes_without_link", f"bytes of {item.source} before its link", {})]
        tail: list[Output] = []
        try:
            samples = driver.feed(item.data, item.received_ns, item.wall_ns)
        except RemoteProtocolError as fault:
            samples = [s for s in fault.messages if isinstance(s, PoseSample)]
            del self._drivers[item.source]
            tail.append(EndLink(item.source, str(fault)))
        if driver.jumped:
            text = f"the clock of source {item.source} jumped"
            self._room.tell(Present(Condition.CLOCK_JUMP, item.source, text))
            tail.append(Note(item.received_ns, "clock_jump", text, {}))
        return self._guide(item.source, samples, item.received_ns) + tail

    def _guide(self, source: str, samples: list[PoseSample], now_ns: int) -> list[Output]:
        """Return a frame for each tool pose of one read; references first, so that pairs of one read meet."""
        of_tool: dict[str, list[PoseSample]] = {}
        for sample in samples:
            if (source, sample.name) in self._guide_of:
                of_tool.setdefault(sample.name, []).append(sample)
            else:
                link = self._links.get((source, sample.name))
                if link is not None:
                    link.add(sample)
        outputs: list[Output] = []
        for name, poses in of_tool.items():
            guide = self._guide_of[source, name]
            excess = len(poses) - self.setup.max_burst
            if excess > 0:
                guide.skipped += excess
                poses = poses[excess:]
            for sample in poses:
                guide.link.add(sample)
                outputs.append(guide.frame(now_ns, self._room, self._registrations))
        return outputs

    def _due_frames(self, now_ns: int) -> list[Output]:
        return [
            guide.frame(now_ns, self._room, self._registrations)
            for guide in self._guides.values()
            if guide.next_due_ns(self.setup.idle_frame_ns) <= now_ns
        ]

    def _frames(self, now_ns: int) -> list[Output]:
        return [guide.frame(now_ns, self._room, self._registrations) for guide in self._guides.values()]

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
        return [Note(item.now_ns, "registration_proposed", text, fields), *self._frames(item.now_ns)]

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
        alarm_id = _argument(item, "id", str)
        showing = [guide for guide in self._guides.values() if alarm_id in guide.alarms]
        if not showing:
            raise CommandRefused(f"no alarm {alarm_id!r} is present")
        for guide in showing:
            guide.alarms = acknowledge(guide.alarms, alarm_id)
        return None

    def _accept(self, item: CommandIn) -> Any:
        self._registrations.accept(_argument(item, "id", str), item.now_ns)
        if self._room.phase in ("setup", "registration", "verification"):
            self._room.phase = "navigation"
        return None

    def _reject(self, item: CommandIn) -> Any:
        self._registrations.reject(_argument(item, "id", str), item.now_ns)
        if self._registrations.accepted is None:
            self._room.phase = "registration"
        return None

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
        self._room.audio_paused_until_ns = item.now_ns + int(1e9 * seconds)
        return None

    def _set_phase(self, item: CommandIn) -> Any:
        phase = _argument(item, "phase", str)
        if phase not in PHASES:
            raise CommandRefused(f"unknown phase {phase!r}; one of {', '.join(PHASES)}")
        self._room.phase = phase
        return None

    def _park(self, item: CommandIn) -> Any:
        self._named(item).parked = _argument(item, "parked", bool)
        return None

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
        """Return ``T_tracker_from_ref`` (16 numbers) nearest to a device time (ns, decimal), and how far off it is."""
        try:
            time_ns = int(_argument(item, "time_ns", str))  # decimal, as every time that JSON may have carried
        except ValueError:
            raise CommandRefused(f"args.time_ns: {item.args['time_ns']!r}; expected nanoseconds") from None
        link = self._reference
        if link is None or not link.history:
            raise CommandRefused("the reference has not been seen")
        best = min(link.history, key=lambda s: abs(s.pose_time_ns - time_ns))
        off_ns = abs(best.pose_time_ns - time_ns)
        limit_ns = max(int(2e9 / link.source.spec.rate_hz), 100_000_000)
        if off_ns > limit_ns:
            raise CommandRefused(f"the reference was last seen {off_ns / 1e6:.0f} ms away from the exposure")
        assert best.pose is not None  # the history holds valid poses only
        return {"T_tracker_from_ref": np.ravel(best.pose.matrix).tolist(), "off_ms": off_ns / 1e6}


_T = TypeVar("_T")


def _argument(item: CommandIn, name: str, kind: type[_T]) -> _T:
    """Return an argument of a command; CommandRefused if it is missing or of another kind."""
    value = item.args.get(name)
    if not isinstance(value, kind):
        raise CommandRefused(f"args.{name}: {value!r}; expected a {kind.__name__}")
    return value


_OPERATIONS = {
    "acknowledge_alarm": Pipeline._acknowledge,
    "accept_registration": Pipeline._accept,
    "reject_registration": Pipeline._reject,
    "describe_registration": Pipeline._describe,
    "pause_audio": Pipeline._pause_audio,
    "set_phase": Pipeline._set_phase,
    "park_tool": Pipeline._park,
    "sample_tip": Pipeline._sample_tip,
    "reference_at": Pipeline._reference_at,
}
_READING = frozenset(("describe_registration", "sample_tip", "reference_at"))
