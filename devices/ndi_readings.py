"""Owns what an NDI reading is worth: which tool it is, whether its pose is believed, when it was.

Refuses the protocol: replies come decoded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from devices.clock import SourceClock
from devices.ndi_protocol import BAUD_CODES, SYSTEM_WORDS, HandleReading, HandleState, Port, System
from devices.ndi_rom import RomFile
from devices.openigtlink import MAX_TRANSLATION_MM, parse_transform_name
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Frame, Rigid, rotation_from_quaternion_wxyz
from navsrv.kernel.samples import PoseSample, Tracking

FRAME_WRAP: Final = 1 << 32
QUATERNION_SLACK: Final = 0.01
"""Four decimals leave 1e-4 at most; what is farther from length one is no rounding."""
BAD_FIT: Final = 0x01
TOO_FEW_MARKERS: Final = 0x02
MODES: Final = "SDB"
MOMENTARY: Final = System.PORT_OCCUPIED | System.PORT_UNOCCUPIED | System.HARDWARE_CHANGE
"""Bits of the system's status that tell of an event, not of a fault that lasts."""


@dataclass(frozen=True, slots=True)
class NdiTool:
    """One tool that the configuration declares.

    Attributes
    ----------
    name : str
        The transform's name, ``NeedleToTracker``.
    rom : RomFile or None
        For tools without a plug: their definition is loaded.
    identity : str
        For wired tools: their serial number or part number, as the device reports it.
    mode : str
        D dynamic, S static, B button box.
    """

    name: str
    rom: RomFile | None = None
    identity: str = ""
    mode: str = "D"

    def __post_init__(self) -> None:
        if parse_transform_name(self.name) is None:
            raise InputError(f"tool {self.name!r}: expected a name such as NeedleToTracker")
        if (self.rom is None) == (not self.identity):
            raise InputError(f"tool {self.name}: expected a .rom file or, for a wired tool, its part or serial number")
        if len(self.mode) != 1 or self.mode not in MODES:
            raise InputError(
                f"tool {self.name}: mode {self.mode!r}, expected D (moves), S (hardly moves) or B (buttons)"
            )

    @property
    def about(self) -> str:
        """The tool in words, for errors."""
        return self.name if self.rom is None else f"{self.name}, {self.rom.name}"

    @property
    def frames(self) -> tuple[Frame, Frame]:
        """Frames (to, from) of its pose."""
        frames = parse_transform_name(self.name)
        assert frames is not None
        return frames


@dataclass(frozen=True, slots=True)
class NdiSpec:
    """What the configuration declares of one NDI tracker.

    Attributes
    ----------
    baud : int or None
        Rate of the serial line after start-up; None for TCP.
    binary : bool
        BX instead of TX.
    accept_partly_out : bool
        Believe poses of tools that are partly outside the characterised volume.
    max_error_mm : float
        Poses whose own residual is larger are not believed.
    polls_per_frame : float
        How often a frame's worth of time asks for data; a frame that comes twice counts once.
    latency_ns, unknown_latency_ns : int
        Declared time from a measurement to its first reply, and how much longer it may have been.
    """

    name: str
    tools: tuple[NdiTool, ...]
    rate_hz: float = 60.0
    baud: int | None = None
    binary: bool = True
    accept_partly_out: bool = False
    max_error_mm: float = 2.0
    polls_per_frame: float = 2.0
    latency_ns: int = 0
    unknown_latency_ns: int = 0

    def __post_init__(self) -> None:
        names = [tool.name for tool in self.tools]
        if not names or len(set(names)) < len(names):
            raise InputError(f"tracker {self.name}: expected at least one tool, each name once; got {names}")
        if self.baud is not None and self.baud not in BAUD_CODES:
            raise InputError(f"tracker {self.name}: baud {self.baud}, expected one of {sorted(BAUD_CODES)}")
        if not self.rate_hz > 0.0 or not self.polls_per_frame > 0.0:
            raise InputError(f"tracker {self.name}: expected a rate and polls per frame above 0")

    @property
    def wired(self) -> bool:
        """Whether any tool is wired."""
        return any(tool.rom is None for tool in self.tools)

    @property
    def poll_period_ns(self) -> int:
        """Time between two questions."""
        return round(1e9 / (self.rate_hz * self.polls_per_frame))


@dataclass(slots=True)
class NdiCounts:
    """What happened to the replies and samples of a tracker since the start."""

    accepted: int = 0
    invalid: int = 0
    not_rigid: int = 0
    repeated: int = 0
    lost: int = 0
    clock_jumps: int = 0
    unknown_handles: int = 0
    garbled: int = 0
    timeouts: int = 0
    errors: int = 0
    restarts: int = 0
    replugged: int = 0
    unasked: int = 0


class Sampler:
    """Turns readings into samples; keeps the time base and the last frame of each tool."""

    def __init__(self, spec: NdiSpec, counts: NdiCounts) -> None:
        self.spec, self.counts = spec, counts
        self.jumped = False
        self._frames: dict[str, int] = {}
        self._anchor_frame: int | None = None
        self._anchor_wall_ns = 0
        self.clock = SourceClock(int(1e9 / spec.rate_hz))

    def forget_frames(self) -> None:
        """Begin a new time base: the device has been started again, and its frames with it."""
        self._frames.clear()
        self._anchor_frame = None
        self.clock.forget()

    def sample(
        self, tool: NdiTool, reading: HandleReading, system: System, received_ns: int, wall_ns: int
    ) -> PoseSample | None:
        """Return the sample of a reading, None when it is of a frame that was seen before.

        ``system`` is the device's own status in the same reply: what it measures with broken hardware is no pose.
        """
        stamp = None
        if reading.frame is not None:
            stamp = self._stamp(reading.frame, received_ns, wall_ns)
            if not self._new(tool.name, reading.frame):
                self.counts.repeated += 1
                return None
        reason = why_not(reading, self.spec)
        if not reason and system & System.HARDWARE_FAILURE:
            reason = f"the tracker reports a {SYSTEM_WORDS[System.HARDWARE_FAILURE]}"
        if self.jumped:
            # Every tool of this read: the pose may be old, and the next one has to confirm it.
            reason = f"the tracker's frame numbers left our clock at {self.spec.rate_hz:g} Hz"
        pose = None
        if not reason:
            pose, reason = _pose(tool, reading)
            self.counts.not_rigid += pose is None
        if pose is None:
            self.counts.invalid += 1
        else:
            self.counts.accepted += 1
        tracking = Tracking.MISSING if pose is None else Tracking.OK
        why = f"{tool.name}: {reason}" if reason else ""
        return PoseSample(
            tool.name,
            pose,
            tracking,
            why,
            stamp,
            wall_ns if stamp is None else stamp,
            received_ns,
            0 if stamp is None else self.clock.late_ns,
            self.spec.latency_ns,
            self.spec.unknown_latency_ns + self.clock.shifted_ns,
        )

    def _stamp(self, frame: int, received_ns: int, wall_ns: int) -> int:
        """Return the wall time (ns) of a frame; anchor anew when the counter jumped against our clock."""
        if self._anchor_frame is None:
            self._anchor_frame, self._anchor_wall_ns = frame, wall_ns
        stamp = self._anchor_wall_ns + round(_frames_after(frame, self._anchor_frame) * 1e9 / self.spec.rate_hz)
        if not self.clock.observe(stamp, received_ns):
            return stamp
        self._anchor_frame, self._anchor_wall_ns = frame, wall_ns
        self.clock.restart(wall_ns, received_ns)
        self._frames.clear()
        self.counts.clock_jumps += 1
        self.jumped = True
        return wall_ns

    def _new(self, name: str, frame: int) -> bool:
        last = self._frames.get(name)
        if last is not None:
            after = _frames_after(frame, last)
            if after <= 0:
                return False
            self.counts.lost += after - 1
        self._frames[name] = frame
        return True


def _frames_after(frame: int, last: int) -> int:
    """Return how many frames one is after another, across the counter's end; negative when before."""
    return (frame - last + FRAME_WRAP // 2) % FRAME_WRAP - FRAME_WRAP // 2


_STATE_WORDS: Final[Mapping[HandleState, str]] = MappingProxyType(
    {
        HandleState.DISABLED: "disabled, or unplugged",
        HandleState.UNOCCUPIED: "unplugged",
    }
)


def why_not(reading: HandleReading, spec: NdiSpec) -> str:
    """Return why a reading's pose is not to be believed, in words for the operator; empty when it is."""
    port = Port(0) if reading.port is None else reading.port
    if reading.state in _STATE_WORDS:
        return _STATE_WORDS[reading.state]
    if reading.port is not None and not port & Port.TOOL:
        return "unplugged"
    if port & Port.OUT_OF_VOLUME:
        return "out of the measurement volume"
    info = reading.tool_info or 0
    if reading.state is HandleState.MISSING:
        why = "too few markers in view" if info & TOO_FEW_MARKERS else "bad fit of markers" if info & BAD_FIT else ""
        return f"not in view ({why})" if why else "not in view"
    if port & Port.PARTLY_OUT and not spec.accept_partly_out:
        return "partly out of the measurement volume"
    if info & BAD_FIT:
        return "bad fit of its markers"
    if not reading.error_mm <= spec.max_error_mm:
        return f"residual of its markers {reading.error_mm:.2f} mm, more than {spec.max_error_mm:g} mm"
    return ""


def changes(before: System, now: System) -> list[str]:
    """Return in words what the device's status says now that it did not say before, and which faults are over."""
    told = [words for bit, words in SYSTEM_WORDS.items() if bit & now & ~before]
    return told + [f"{words}: over" for bit, words in SYSTEM_WORDS.items() if bit & before & ~now & ~MOMENTARY]


def _pose(tool: NdiTool, reading: HandleReading) -> tuple[Rigid | None, str]:
    """Return the pose of a reading with its quaternion brought to length one, or None and why it cannot be one."""
    length = math.hypot(*reading.q_wxyz)
    if not abs(length - 1.0) <= QUATERNION_SLACK:
        return None, f"its quaternion has length {length:.3f}"
    if not math.hypot(*reading.translation_mm) <= MAX_TRANSLATION_MM:
        return None, f"not within {MAX_TRANSLATION_MM / 1e3:.0f} m of the tracker"
    to, frm = tool.frames
    return Rigid(to, frm, rotation_from_quaternion_wxyz(reading.q_wxyz), reading.translation_mm), ""  # type: ignore[arg-type]
