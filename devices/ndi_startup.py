"""Owns the commands that bring an NDI tracker from a fresh line to tracking, state by state, and which tool is where.

Refuses to wait: ``devices.ndi`` sends what is queued here and hands each answer to the command that asked for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from devices.ndi_errors import error_words
from devices.ndi_protocol import BAUD_CODES, decode_handle, decode_phsr
from devices.ndi_readings import NdiSpec, NdiTool
from devices.ndi_states import State
from devices.source import Effect, SetLine

_GONE = (0x2B, 0x2C)
"""Errors that mean that a handle to be freed is free."""


@dataclass(slots=True)
class Command:
    """A command with what to do with its answer; ``failed`` gets an error's number, None makes it a DeviceError."""

    text: str
    done: Callable[[str], None] | None = None
    failed: Callable[[int], None] | None = None
    about: str = ""

    @property
    def name(self) -> str:
        return self.text.split(":", 1)[0]


class StartUp:
    """What is asked of the device in each state; answers add to the queue that was handed in."""

    def __init__(self, spec: NdiSpec, queue: deque[Command], effects: list[Effect]) -> None:
        self.spec = spec
        self.left_out: dict[int, str] = {}
        self.notices: list[str] = []
        """What the log must say of tools that are not used; whoever tells it clears it."""
        self._queue, self._effects = queue, effects
        self._roms: dict[int, NdiTool] = {}
        self._wired: dict[int, NdiTool] = {}
        self._prepared: set[int] = set()

    def tool_of(self, handle: int) -> NdiTool | None:
        """Return the tool of a port handle, None for one that is not used."""
        return self._roms.get(handle) or self._wired.get(handle)

    def commands(self, state: State) -> Iterator[Command]:
        """Return the commands with which a state begins."""
        match state:
            case State.INITIALISING:
                return self._initialising()
            case State.SETTING_LINE:
                return self._setting_line()
            case State.FREEING:
                return self._freeing()
            case State.LOADING:
                return self._loading()
            case State.PREPARING:
                return iter([Command("PHSR:02", self._prepare_all)])
            case State.ENABLING:
                return iter([Command("PHSR:03", self._enable_all)])
            case State.STARTING:
                return iter([Command("TSTART:")])
            case State.PAUSING:
                return iter([Command("TSTOP:"), Command("PHSR:01", self._free_all)])
            case State.STOPPING:
                return iter([Command("TSTOP:")])
            case _:
                return iter(())

    def _initialising(self) -> Iterator[Command]:
        self._roms, self._wired, self._prepared = {}, {}, set()
        self.left_out.clear()
        yield Command("INIT:")

    def _setting_line(self) -> Iterator[Command]:
        if self.spec.baud is not None and self.spec.baud != 9600:
            yield Command(f"COMM:{BAUD_CODES[self.spec.baud]}0000", self._line_set)

    def _line_set(self, _: str) -> None:
        assert self.spec.baud is not None
        self._effects.append(SetLine(self.spec.baud))

    def _freeing(self) -> Iterator[Command]:
        # Without wired tools every handle is a leftover of an earlier session.
        yield Command("PHSR:01" if self.spec.wired else "PHSR:00", self._free_all)

    def _free_all(self, reply: str) -> None:
        for handle, _ in decode_phsr(reply):
            self._forget(handle)
            self._queue.append(Command(f"PHF:{handle:02X}", failed=accept(_GONE)))

    def _forget(self, handle: int) -> None:
        self._wired.pop(handle, None)
        self.left_out.pop(handle, None)
        self._prepared.discard(handle)

    def _loading(self) -> Iterator[Command]:
        for tool in self.spec.tools:
            if tool.rom is not None:
                yield Command("PHRQ:*********1****", self._requested(tool), about=tool.about)

    def _requested(self, tool: NdiTool) -> Callable[[str], None]:
        def done(reply: str) -> None:
            handle = decode_handle(reply, "PHRQ")
            self._roms[handle] = tool
            assert tool.rom is not None
            writes = [
                Command(f"PVWR:{handle:02X}{address:04X}{chunk.hex().upper()}", about=tool.about)
                for address, chunk in tool.rom.chunks()
            ]
            self._queue.extendleft(reversed(writes))

        return done

    def _prepare_all(self, reply: str) -> None:
        new = [h for h, _ in decode_phsr(reply) if h not in self._prepared and h not in self.left_out]
        for handle in new:
            self._prepared.add(handle)
            tool = self._roms.get(handle)
            leave = None if tool is not None else self._leave_out(handle)
            self._queue.append(Command(f"PINIT:{handle:02X}", failed=leave, about=tool.about if tool else ""))
        if new:
            # A wired tool of two sensors shows its second handle only now.
            self._queue.append(Command("PHSR:02", self._prepare_all))

    def _leave_out(self, handle: int) -> Callable[[int], None]:
        return lambda number: self._not_used(handle, error_words(number))

    def _not_used(self, handle: int, why: str) -> None:
        self.left_out[handle] = why
        self.notices.append(f"the wired tool at port handle {handle:02X} is not used: {why}")

    def _enable_all(self, reply: str) -> None:
        for handle, _ in decode_phsr(reply):
            if handle in self._roms:
                self._enable(handle, self._roms[handle])
            elif handle not in self.left_out:
                identify = self._identify(handle)
                self._queue.append(Command(f"PHINF:{handle:02X}0005", identify, self._leave_out(handle)))

    def _enable(self, handle: int, tool: NdiTool) -> None:
        self._queue.append(Command(f"PENA:{handle:02X}{tool.mode}", about=tool.about))

    def _identify(self, handle: int) -> Callable[[str], None]:
        def done(reply: str) -> None:
            # Type 8, maker 12, revision 3, serial number 8, port status 2; then the part number 20.
            serial, part = reply[23:31].strip(), reply[33:53].strip()
            for tool in self.spec.tools:
                if tool.rom is None and tool.identity in (serial, part):
                    self._wired[handle] = tool
                    self._enable(handle, tool)
                    return
            self._not_used(handle, f"part number {part!r}, serial number {serial!r}: not in the configuration")

        return done


class Unexpected(Exception):
    """An error number that a command's own handler does not take."""


def accept(numbers: tuple[int, ...]) -> Callable[[int], None]:
    """Return a handler that lets these errors pass and no other."""

    def failed(number: int) -> None:
        if number not in numbers:
            raise Unexpected

    return failed
