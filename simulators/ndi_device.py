"""Owns a simulated NDI device: command lines in, replies out, with the modes and the errors of the Combined API.

Refuses sockets, terminals and clocks.  Where the tools are comes from a function of the frame number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from navsrv.kernel.errors import InputError
from simulators.exposures import Shown
from simulators.ndi_wire import USED, Seen, build_rom, crc16, encode_bx, encode_tx, reply, rom_fault, rom_markers
from simulators.world.markers import NEEDLE_MARKERS, REFERENCE_MARKERS
from simulators.world.sight import AURORA, POLARIS_VEGA, Frustum

MAX_LINE: Final = 1024
MAX_HANDLES: Final = 15
MAX_ENABLED: Final = 9
RATES: Final = "01234567A"
MODELS: Final = {"vega": "Polaris Vega 024", "polaris": "Polaris Spectra 024", "aurora": "AURORA Rev 010"}
ERROR_MM: Final = 0.05
"""The fit error of a tool of whose markers nothing is known."""
VOLUMES: Final = {"vega": POLARIS_VEGA, "polaris": POLARIS_VEGA, "aurora": AURORA}

Where = Callable[[int], Mapping[str, Shown]]
"""From a frame number to each tool as the cameras see it; the volume is the device's own affair."""


NOTHING: Final = Shown("", np.eye(4), "MISSING", np.eye(4), np.zeros(0, np.bool_), 0.0)
"""Where there is no tool."""


class Refusal(Exception):
    """The device answers a command with an error's number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ERROR{number:02X}")
        self.number = number


@dataclass(slots=True)
class Handle:
    """One port handle."""

    tool: str | None
    """The tool of the room that it stands for; None for one that is never in view."""
    wired: bool = False
    rom: bytearray = field(default_factory=lambda: bytearray(1024))
    written: bool = False
    occupied: bool = True
    initialised: bool = False
    enabled: bool = False

    @property
    def status(self) -> int:
        """Port status bits."""
        return 0x01 * self.occupied | 0x10 * self.initialised | 0x20 * self.enabled


def standard_rom(tool: str) -> bytes:
    """Return the tool definition of a tool of the room."""
    body = REFERENCE_MARKERS if tool == "Reference" else NEEDLE_MARKERS
    return build_rom(f"NAVSRV-{tool.upper()}", body.markers_mm, 1 if tool == "Reference" else 2)


class Device:
    """The device: its mode, its port handles, and the frame that it has reached.

    Tool definitions that clients load stand for the room's tools in the order of ``tools``, or by the part number of
    ``standard_rom``.  With ``wired`` the tools are plugged in instead.
    """

    def __init__(
        self,
        where: Where,
        tools: tuple[str, ...],
        freeze_tag: str = MODELS["vega"],
        wired: bool = False,
        volume: Frustum = POLARIS_VEGA,
    ) -> None:
        self.frame = 0
        """Frames since the device began; ``reported`` is what replies say."""
        self._zero = 0
        self.tracking = False
        self.initialised = False
        self._where, self._tools, self._freeze_tag, self._wired = where, tools, freeze_tag, wired
        self._volume = volume
        self._handles: dict[int, Handle] = {}
        self._next = 0x0A
        self._system = 0
        self._broken = 0
        self._plugged = dict.fromkeys(tools, wired)
        self._line = bytearray()
        self._fail: dict[str, list[int]] = {}
        self._garble = 0
        self.shown: Mapping[str, Shown] = {}
        """What was behind the last reply to TX or BX, for a log of the truth."""

    @property
    def reported(self) -> int:
        """The frame number that replies say."""
        return self.frame - self._zero

    # Orders of whoever runs the simulator.

    def plug(self, tool: str, plugged: bool) -> None:
        """Plug a wired tool in or out."""
        if not self._wired or tool not in self._plugged:
            raise InputError(f"{tool!r} has no plug; expected --wired and one of {', '.join(self._plugged)}")
        if self._plugged[tool] == plugged:
            return
        self._plugged[tool] = plugged
        self._system |= 0x40 if plugged else 0x80
        for handle in self._handles.values():
            if handle.tool == tool and not plugged:
                handle.occupied = handle.initialised = handle.enabled = False

    def fail(self, command: str, number: int) -> None:
        """Answer the next command of this name with an error."""
        self._fail.setdefault(command, []).append(number)

    def garble(self, count: int) -> None:
        """Damage the next replies."""
        self._garble += count

    def report(self, status: int) -> None:
        """Say these bits of the system's status in every reply from now on, until told otherwise."""
        if not 0 <= status <= 0x3F:
            raise InputError(f"status {status}: expected bits 01 to 20 of the system's status")
        self._broken = status

    def reset(self) -> bytes:
        """Begin again as after a break or a loss of power; return what the device sends then."""
        self._forget_all()
        self.initialised = False
        self._line.clear()
        return reply("RESET")

    # The line.

    def feed(self, data: bytes) -> bytes:
        """Return the replies to the commands that these bytes complete."""
        self._line += data
        out = bytearray()
        while (end := self._line.find(b"\r")) >= 0:
            line = bytes(self._line[:end])
            del self._line[: end + 1]
            out += self._answer(line)
        if len(self._line) > MAX_LINE:
            self._line.clear()
            out += reply("ERROR02")
        return bytes(out)

    def _answer(self, line: bytes) -> bytes:
        try:
            answer = self._obey(line)
        except Refusal as refusal:
            answer = str(refusal)
        data = reply(answer) if isinstance(answer, str) else answer
        if self._garble > 0:
            self._garble -= 1
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 0x01]) + data[middle + 1 :]
        return data

    def _obey(self, line: bytes) -> str | bytes:
        if len(line) > MAX_LINE:
            raise Refusal(0x02)
        if not line.isascii():
            raise Refusal(0x01)
        text = line.decode()
        if ":" in text:
            if len(text) < text.index(":") + 5:
                raise Refusal(0x03)
            text, crc = text[:-4], text[-4:]
            if crc.upper() != f"{crc16(text.encode()):04X}":
                raise Refusal(0x04)
            name, arguments = text.split(":", 1)
        else:
            name, _, arguments = text.partition(" ")
        command = COMMANDS.get(name.upper())
        if command is None:
            raise Refusal(0x01)
        if self._fail.get(name.upper()):
            raise Refusal(self._fail[name.upper()].pop(0))
        act, mode = command
        if mode != "any" and not self.initialised:
            raise Refusal(0x10)
        if (mode == "setup" and self.tracking) or (mode == "tracking" and not self.tracking):
            raise Refusal(0x0C)
        return act(self, arguments)

    # Commands.

    def _init(self, arguments: str) -> str:
        _none(arguments)
        self._forget_all()
        self.initialised = True
        return "OKAY"

    def _reset(self, arguments: str) -> bytes:
        return self.reset()

    def _comm(self, arguments: str) -> str:
        _length(arguments, 5)
        if arguments[0] not in RATES or arguments[1] not in "01" or arguments[2] not in "012":
            raise Refusal(0x23)
        if arguments[3] not in "01" or arguments[4] not in "01":
            raise Refusal(0x23)
        return "OKAY"

    def _beep(self, arguments: str) -> str:
        _length(arguments, 1)
        if arguments not in "123456789":
            raise Refusal(0x23)
        return "1"

    def _ver(self, arguments: str) -> str:
        _length(arguments, 1)
        if arguments not in "0345":
            raise Refusal(0x23)
        return (
            f"Polaris Control Firmware\nNDI S/N: P9-00000\nCharacterization Date: 01/01/26\n"
            f"Freeze Tag: {self._freeze_tag}\nFreeze Date: 01/01/26\n(C) simulated by navsrv\n"
        )

    def _apirev(self, arguments: str) -> str:
        _none(arguments)
        return "G.003.002"

    def _phrq(self, arguments: str) -> str:
        _length(arguments, 14)
        if len(self._handles) >= MAX_HANDLES:
            raise Refusal(0x2D)
        taken = {h.tool for h in self._handles.values()}
        tool = next((t for t in self._tools if t not in taken and not self._wired), None)
        return f"{self._allot(Handle(tool)):02X}"

    def _allot(self, handle: Handle) -> int:
        while self._next in self._handles:
            self._next = self._next % 0xFE + 1
        number = self._next
        self._handles[number] = handle
        self._next = number % 0xFE + 1
        return number

    def _pvwr(self, arguments: str) -> str:
        _length(arguments, 2 + 4 + 128)
        handle = self._handle(arguments[:2])
        address, data = _hex(arguments[2:6]), bytes.fromhex(f"{_hex(arguments[6:]):0128x}")
        if handle.wired:
            raise Refusal(0x32)
        if address % 64 or address >= len(handle.rom):
            raise Refusal(0x23)
        handle.rom[address : address + 64] = data
        handle.written, handle.initialised, handle.enabled = True, False, False
        return "OKAY"

    def _pinit(self, arguments: str) -> str:
        _length(arguments, 2)
        handle = self._handle(arguments)
        if not handle.occupied:
            raise Refusal(0x2C)
        if not handle.wired:
            if not handle.written:
                raise Refusal(0x0D)
            fault = rom_fault(bytes(handle.rom))
            if fault:
                raise Refusal(fault)
            self._recognise(handle)
        handle.initialised = True
        return "OKAY"

    def _recognise(self, handle: Handle) -> None:
        """Let a tool definition with a part number of ours stand for that very tool, whichever came first."""
        part = bytes(handle.rom[0x250:0x264]).split(b"\0")[0].decode("latin-1")
        for tool in self._tools:
            if part == f"NAVSRV-{tool.upper()}":
                for other in self._handles.values():
                    if other is not handle and other.tool == tool:
                        other.tool = handle.tool
                handle.tool = tool

    def _pena(self, arguments: str) -> str:
        _length(arguments, 3)
        handle = self._handle(arguments[:2])
        if arguments[2] not in "SDB":
            raise Refusal(0x09)
        if not handle.initialised:
            raise Refusal(0x0E)
        if sum(h.enabled for h in self._handles.values()) >= MAX_ENABLED:
            raise Refusal(0x28)
        handle.enabled = True
        return "OKAY"

    def _pdis(self, arguments: str) -> str:
        _length(arguments, 2)
        handle = self._handle(arguments)
        if not handle.initialised:
            raise Refusal(0x0E)
        handle.enabled = False
        return "OKAY"

    def _phf(self, arguments: str) -> str:
        _length(arguments, 2)
        handle = self._handle(arguments)
        if handle.wired and handle.occupied:
            raise Refusal(0x32)
        del self._handles[_hex(arguments)]
        return "OKAY"

    def _phsr(self, arguments: str) -> str:
        which = _hex(arguments.strip() or "00")
        if which > 4:
            raise Refusal(0x23)
        for tool, plugged in self._plugged.items():
            if plugged and not any(h.tool == tool and h.occupied for h in self._handles.values()):
                self._allot(Handle(tool, wired=True))
        wanted: dict[int, Callable[[Handle], bool]] = {
            0: lambda h: True,
            1: lambda h: not h.occupied,
            2: lambda h: h.occupied and not h.initialised,
            3: lambda h: h.initialised and not h.enabled,
            4: lambda h: h.enabled,
        }
        rows = [f"{n:02X}{h.status:03X}" for n, h in self._handles.items() if wanted[which](h)]
        return f"{len(rows):02X}" + "".join(rows)

    def _phinf(self, arguments: str) -> str:
        if len(arguments) not in (2, 6):
            raise Refusal(0x07)
        number, option = arguments[:2], _hex(arguments[2:] or "0001")
        handle = self._handle(number)
        if option & ~0x0005:
            raise Refusal(0x33)
        if not handle.occupied:
            return "UNOCCUPIED"
        text = ""
        if option & 0x0001:
            text += f"{'02000000'}{'navsrv':<12.12}{'001'}{_hex(number):08X}{handle.status:02X}"
        if option & 0x0004:
            wired = f"NAVSRV-{handle.tool.upper()}" if handle.tool else ""
            part = wired if handle.wired else bytes(handle.rom[0x250:0x264]).split(b"\0")[0].decode("latin-1")
            text += f"{part:<20.20}"
        return text

    def _tstart(self, arguments: str) -> str:
        if arguments not in ("", "40", "80"):
            raise Refusal(0x23)
        if arguments == "80":
            self._zero = self.frame
        self.tracking = True
        return "OKAY"

    def _tstop(self, arguments: str) -> str:
        _none(arguments)
        self.tracking = False
        return "OKAY"

    def _tx(self, arguments: str) -> str:
        option = _option(arguments)
        return encode_tx(self._seen(option), self._take_system(), option)

    def _bx(self, arguments: str) -> bytes:
        option = _option(arguments)
        return encode_bx(self._seen(option), self._take_system(), option)

    # What is seen.

    def _seen(self, option: int) -> tuple[Seen, ...]:
        self.shown = self._where(self.frame)
        return tuple(self._look(n, h, option) for n, h in self._handles.items() if h.enabled or not h.occupied)

    def _look(self, number: int, handle: Handle, option: int) -> Seen:
        shown = self.shown.get(handle.tool or "", NOTHING)
        matrix, visible = shown.matrix, shown.visible
        tip = np.zeros((1, 3))
        markers = tip if handle.wired else rom_markers(bytes(handle.rom)) if handle.occupied else tip
        inside = self._volume.contains(markers @ matrix[:3, :3].T + matrix[:3, 3])
        status, info = handle.status, 0
        state = "valid" if visible else "missing"
        if visible and not inside.all():
            status |= 0x80 if inside.any() else 0x40
            if not inside.any() and not option & 0x0800:
                state = "missing"
        if not visible:
            info = 0x02
        if not handle.occupied:
            state = "unoccupied"
        # Without a body of as many markers nothing is known of each.
        used = shown.used if len(shown.used) == len(markers) else np.full(len(markers), visible)
        nibbles = tuple(USED if u else 0 for u in used) + (0,) * 20
        return Seen(number, state, matrix, shown.error_mm or ERROR_MM, status, self.reported, nibbles[:20], info)

    def _take_system(self) -> int:
        system, self._system = self._system | self._broken, 0
        return system

    def _handle(self, text: str) -> Handle:
        handle = self._handles.get(_hex(text))
        if handle is None:
            raise Refusal(0x2B)
        return handle

    def _forget_all(self) -> None:
        self._handles.clear()
        self._next, self.tracking, self._system = 0x0A, False, 0


def _none(arguments: str) -> None:
    if arguments:
        raise Refusal(0x07)


def _length(arguments: str, length: int) -> None:
    if len(arguments) != length:
        raise Refusal(0x07)


def _hex(text: str) -> int:
    if not text or any(c not in "0123456789abcdefABCDEF" for c in text):
        raise Refusal(0x23)
    return int(text, 16)


def _option(arguments: str) -> int:
    if not arguments:
        return 0x0001
    _length(arguments, 4)
    option = _hex(arguments)
    if option & ~0x1807:
        raise Refusal(0x09)
    return option


COMMANDS: Final[dict[str, tuple[Callable[[Device, str], str | bytes], str]]] = {
    "INIT": (Device._init, "any"),
    "RESET": (Device._reset, "any"),
    "COMM": (Device._comm, "any"),
    "BEEP": (Device._beep, "any"),
    "VER": (Device._ver, "any"),
    "APIREV": (Device._apirev, "any"),
    "PHRQ": (Device._phrq, "setup"),
    "PVWR": (Device._pvwr, "setup"),
    "PINIT": (Device._pinit, "setup"),
    "PENA": (Device._pena, "setup"),
    "PDIS": (Device._pdis, "setup"),
    "PHF": (Device._phf, "setup"),
    "PHSR": (Device._phsr, "setup"),
    "PHINF": (Device._phinf, "setup"),
    "TSTART": (Device._tstart, "setup"),
    "TSTOP": (Device._tstop, "tracking"),
    "TX": (Device._tx, "tracking"),
    "BX": (Device._bx, "tracking"),
}
"""Each command with the mode in which it is allowed."""
