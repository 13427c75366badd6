"""Owns NDI trackers (Polaris, Vega, Aurora) by the Combined API: bytes in, typed samples and bytes to send out.

Refuses the serial port, the socket and the clock: a shell hands in what it read with the time, obeys ``take_effects``
and calls ``tick`` when ``next_due_ns`` has come.  The way from a fresh line to tracking is the table
``devices.ndi_states.STATES``.  The frame number is the time base: a stamp is the wall time of the first reply plus
frames over the rate, so it is as regular as the device's clock and late by the first reply's delay.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from devices.clock import SourceClock
from devices.ndi_errors import error_words
from devices.ndi_protocol import (
    Binary,
    Garbled,
    HandleReading,
    HandleState,
    Option,
    Readings,
    ReplyFramer,
    System,
    Text,
    decode_bx,
    decode_tx,
    encode_command,
)
from devices.ndi_readings import NdiCounts, NdiSpec, Sampler, changes
from devices.ndi_startup import Command, StartUp, Unexpected
from devices.ndi_states import STATES, State
from devices.source import Break, Effect, Send, SetLine
from navsrv.kernel.errors import DeviceError, RemoteProtocolError
from navsrv.kernel.samples import PoseSample

S: Final = 1_000_000_000
QUIET_NS: Final = S // 20
"""After garbled bytes the line must be silent so long before it is spoken to again; one of them makes no pose stale."""
SETTLE_NS: Final = S // 10
"""After a change of the line's rate, by COMM or by a reset."""
TIMEOUT_NS: Final = {"INIT": 4 * S, "RESET": 10 * S, "PINIT": 10 * S, "TSTART": 10 * S, "TX": S, "BX": S}
DEFAULT_TIMEOUT_NS: Final = 3 * S
MAX_TROUBLE: Final = 5
"""Garbled or missing replies in a row after which the line is given up."""
REPEATABLE: Final = frozenset(("INIT", "PHSR", "PHINF", "PVWR", "TX", "BX"))
"""Commands that do no harm when the device gets them twice."""
_NOT_READY: Final = (0x0C, 0x10)
_SILENT_STATES: Final = (State.IDLE, State.STOPPED, State.FAILED)


class NdiTracker:
    """One connection's worth of an NDI tracker; make a new one for each connection.

    Each method may raise DeviceError (the device said no, or nothing) or RemoteProtocolError (its bytes are not the
    protocol's); the state is FAILED then and the connection must end.
    """

    def __init__(self, spec: NdiSpec, counts: NdiCounts) -> None:
        self.spec, self.counts = spec, counts
        self.state = State.IDLE
        self.readings: dict[str, HandleReading] = {}
        """The newest reading of each tool by its transform's name, with tool and marker information."""
        self.system = System(0)
        self._sampler = Sampler(spec, counts)
        self._framer = ReplyFramer()
        self._effects: list[Effect] = []
        self._notices: list[str] = []
        self._queue: deque[Command] = deque()
        self._asked: Command | None = None
        self._deadline_ns: int | None = None
        self._not_before_ns = 0
        self._quiet_until_ns: int | None = None
        self._trouble = 0
        self._restarts = 0
        self._was_reset = False
        self._missed = False
        self._startup = StartUp(spec, self._queue, self._effects)
        self._option = Option.TRANSFORMS | Option.MARKERS | Option.OUT_OF_VOLUME

    @property
    def jumped(self) -> bool:
        """Whether the last ``feed`` saw the frame counter jump against our clock."""
        return self._sampler.jumped

    @property
    def clock(self) -> SourceClock:
        """The device's frames against our clock."""
        return self._sampler.clock

    @property
    def left_out(self) -> dict[int, str]:
        """Wired tools that are not used: port handle to why."""
        return self._startup.left_out

    def start(self, now_ns: int) -> None:
        """Begin the session on a fresh line."""
        if self.state is State.IDLE:
            self._enter(State.INITIALISING)
            self._speak(now_ns)

    def stop(self, now_ns: int) -> None:
        """Stop tracking after the reply that is awaited; ``state`` becomes STOPPED."""
        if self.state in (State.STOPPED, State.FAILED):
            return
        self._queue.clear()
        if self.state in (State.STARTING, State.TRACKING):
            self._enter(State.STOPPING)
            self._not_before_ns = now_ns
            self._speak(now_ns)
        else:
            self.state = State.STOPPED
            self._asked = None

    def take_effects(self) -> list[Effect]:
        """Return what the shell must do now, in order, and forget it."""
        effects = list(self._effects)
        self._effects.clear()
        return effects

    def take_notices(self) -> list[str]:
        """Return what the log must say: faults that the device reports and their end, tools that are not used."""
        notices = [*self._startup.notices, *self._notices]
        self._startup.notices.clear()
        self._notices.clear()
        return notices

    def next_due_ns(self) -> int | None:
        """Return the monotonic time at which ``tick`` is needed, None when only bytes matter."""
        if self._quiet_until_ns is not None:
            return self._quiet_until_ns
        if self._asked is not None:
            return self._deadline_ns
        return None if self.state in _SILENT_STATES else self._not_before_ns

    def tick(self, now_ns: int) -> None:
        """Send what is due, and judge what did not come in time."""
        if self._quiet_until_ns is not None:
            if now_ns < self._quiet_until_ns:
                return
            self._quiet_until_ns = None
            self._again()
        elif self._asked is not None and self._deadline_ns is not None and now_ns >= self._deadline_ns:
            self._silent(self._asked)
        self._speak(now_ns)

    def feed(self, data: bytes | memoryview, received_ns: int, wall_ns: int) -> list[PoseSample]:
        """Return the samples that these bytes complete.

        Parameters
        ----------
        received_ns : int
            Monotonic time of the read.
        wall_ns : int
            Wall clock of the read, since the Unix epoch; the first one anchors the frame numbers.
        """
        self._sampler.jumped = False
        if self._quiet_until_ns is not None:
            self._quiet_until_ns = received_ns + QUIET_NS
            return []
        samples: list[PoseSample] = []
        for reply in self._framer.feed(data):
            match reply:
                case Garbled(why):
                    self._garbled(why, received_ns)
                    return samples
                case Text("RESET"):
                    self._device_reset(received_ns)
                case Text() if self._asked is not None:
                    samples += self._answered(self._asked, reply, received_ns, wall_ns)
                case Binary(body) if self._asked is not None and self._asked.name == "BX":
                    samples += self._tracked(body, received_ns, wall_ns)
                case _:
                    self.counts.unasked += 1
        self._speak(received_ns)
        return samples

    def _enter(self, state: State) -> None:
        self.state = state
        self._queue.clear()
        self._queue.extend(self._startup.commands(state))

    # Speaking and listening.

    def _speak(self, now_ns: int) -> None:
        """Send the next command if nothing is awaited and it is due; go on to the next state when all is said."""
        if self._quiet_until_ns is not None or self.state is State.RESETTING:
            return
        while self._asked is None and now_ns >= self._not_before_ns:
            if self._queue:
                self._ask(self._queue.popleft(), now_ns)
            elif self.state is State.TRACKING:
                kind = "BX" if self.spec.binary else "TX"
                self._not_before_ns = now_ns + self.spec.poll_period_ns
                self._ask(Command(f"{kind}:{int(self._option):04X}"), now_ns)
            else:
                then = STATES[self.state].then
                if then is None or self.state is State.IDLE:
                    return
                self._enter(then)

    def _ask(self, command: Command, now_ns: int) -> None:
        self._asked = command
        self._deadline_ns = now_ns + TIMEOUT_NS.get(command.name, DEFAULT_TIMEOUT_NS)
        self._effects.append(Send(encode_command(command.text)))

    def _answered(self, asked: Command, reply: Text, received_ns: int, wall_ns: int) -> list[PoseSample]:
        if asked.name == "RESET":
            # Late, to what was asked before the break.
            self.counts.unasked += 1
            return []
        if reply.error is not None:
            self._refused(asked, reply.error)
            return []
        if asked.name == "TX":
            return self._tracked(reply.text, received_ns, wall_ns)
        self._trouble = 0
        self._asked = None
        if asked.done is None and reply.text != "OKAY":
            if not reply.is_warning:
                what = f"{asked.text[:16]} was answered {reply.text[:40]!r}, expected OKAY"
                raise self._fault(RemoteProtocolError(what))
            about = f" ({asked.about})" if asked.about else ""
            self._notices.append(f"{asked.text[:8]}{about} was answered {reply.text}, which is no error; it goes on")
        if asked.name == "COMM":
            self._not_before_ns = received_ns + SETTLE_NS
        if asked.done is not None:
            try:
                asked.done(reply.text)
            except RemoteProtocolError as e:
                raise self._fault(e) from e
        return []

    def _refused(self, asked: Command, number: int) -> None:
        self.counts.errors += 1
        if number == 0x04 and asked.name in REPEATABLE:
            # The command was garbled on its way.
            self._struggle(f"{asked.name}: {error_words(number)}")
            self._again()
            return
        self._asked = None
        if asked.name in ("BX", "TX") and number in _NOT_READY:
            self._restart(f"{asked.name}: {error_words(number)}")
            return
        if asked.failed is not None:
            try:
                asked.failed(number)
            except Unexpected:
                pass
            else:
                return
        about = f" ({asked.about})" if asked.about else ""
        raise self._fault(DeviceError(f"{self.spec.name}: {asked.text[:8]}{about}: {error_words(number)}"))

    def _tracked(self, reply: bytes | str, received_ns: int, wall_ns: int) -> list[PoseSample]:
        self._asked = None
        decoded = self._decoded(reply)
        self._trouble = self._restarts = 0
        self._notices += changes(self.system, decoded.system)
        self.system = decoded.system
        samples = []
        for reading in decoded.handles:
            tool = self._startup.tool_of(reading.handle)
            if tool is None:
                self.counts.unknown_handles += 1
                continue
            self.readings[tool.name] = reading
            sample = self._sampler.sample(tool, reading, decoded.system, received_ns, wall_ns)
            if sample is not None:
                samples.append(sample)
        # The device says it once: after a reply that was lost, a tool that lacks may have been plugged in unnoticed.
        plugged = bool(decoded.system & System.PORT_OCCUPIED) or (self._missed and self._lacks_a_plug())
        self._missed = False
        if plugged and self.spec.wired and self.state is State.TRACKING:
            self.counts.replugged += 1
            self._enter(State.PAUSING)
            self._not_before_ns = received_ns
        return samples

    def _lacks_a_plug(self) -> bool:
        """Say whether a wired tool is not there."""
        wired = [self.readings.get(tool.name) for tool in self.spec.tools if tool.rom is None]
        return any(r is None or r.state in (HandleState.DISABLED, HandleState.UNOCCUPIED) for r in wired)

    def _decoded(self, reply: bytes | str) -> Readings:
        try:
            if isinstance(reply, bytes):
                return decode_bx(reply, self._option)
            return decode_tx(reply, self._option)
        except RemoteProtocolError as e:
            raise self._fault(e) from e

    # Trouble.

    def _garbled(self, why: str, now_ns: int) -> None:
        self.counts.garbled += 1
        if self._asked is None:
            return
        if self._asked.name not in REPEATABLE:
            raise self._fault(RemoteProtocolError(f"{self.spec.name}: {why}, in reply to {self._asked.text[:8]}"))
        self._struggle(f"{self._asked.name}: {why}")
        self._quiet_until_ns = now_ns + QUIET_NS

    def _silent(self, asked: Command) -> None:
        self.counts.timeouts += 1
        self._framer.clear()
        if self.state is State.INITIALISING and self.spec.baud is not None and not self._was_reset:
            self._was_reset = True
            self.state, self._asked = State.RESETTING, Command("RESET")
            self._deadline_ns = (self._deadline_ns or 0) + TIMEOUT_NS["RESET"]
            self._queue.clear()
            self._effects.append(Break())
            return
        if asked.name not in ("BX", "TX"):
            seconds = TIMEOUT_NS.get(asked.name, DEFAULT_TIMEOUT_NS) / S
            about = f" ({asked.about})" if asked.about else ""
            raise self._fault(
                DeviceError(f"{self.spec.name}: no reply to {asked.name}{about} within {seconds:g} s; is it on?")
            )
        self._struggle(f"no reply to {asked.name}")
        self._again()

    def _again(self) -> None:
        """Ask once more what was asked."""
        asked, self._asked = self._asked, None
        if asked is not None and not (asked.name in ("BX", "TX") and self.state is not State.TRACKING):
            self._queue.appendleft(asked)

    def _struggle(self, what: str) -> None:
        self._trouble += 1
        self._missed = True
        if self._trouble >= MAX_TROUBLE:
            raise self._fault(RemoteProtocolError(f"{self.spec.name}: {what}, {MAX_TROUBLE} times in a row"))

    def _device_reset(self, now_ns: int) -> None:
        """Begin again: the device says that it was reset, asked by a break or by its power switch."""
        if self.state in (State.STOPPING, State.STOPPED, State.FAILED, State.IDLE):
            return
        self._asked = None
        if self.state is not State.RESETTING:
            self._restart("the device was reset")
        self._enter(State.INITIALISING)
        if self.spec.baud is not None and self.spec.baud != 9600:
            self._effects.append(SetLine(9600))
            self._not_before_ns = now_ns + SETTLE_NS

    def _restart(self, why: str) -> None:
        self.counts.restarts += 1
        self._restarts += 1
        if self._restarts > MAX_TROUBLE:
            raise self._fault(DeviceError(f"{self.spec.name}: {why}, {self._restarts} times without a pose between"))
        self._sampler.forget_frames()
        self._enter(State.INITIALISING)

    def _fault(self, error: DeviceError | RemoteProtocolError) -> DeviceError | RemoteProtocolError:
        self.state, self._asked = State.FAILED, None
        self._queue.clear()
        return error
