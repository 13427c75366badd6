"""Owns what every driver of a pose source is: bytes and time in, typed samples out, and what its shell must do.

A driver refuses sockets, serial ports and clocks.  The shell hands in what it read with the time, calls ``tick`` when
``next_due_ns`` has come, and obeys ``take_effects``; so logged bytes drive it offline just as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from devices.clock import SourceClock
from navsrv.kernel.samples import PoseSample


@dataclass(frozen=True, slots=True)
class Send:
    """Write these bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class SetLine:
    """Set the serial line to this rate (8 data bits, no parity, 1 stop bit, no handshake) after what was written."""

    baud: int


@dataclass(frozen=True, slots=True)
class Break:
    """Set the serial line to 9600 and hold a break: the device resets itself."""


Effect = Send | SetLine | Break


class PoseSource(Protocol):
    """One connection's worth of a pose source; a new one is made for each connection.

    Each method may raise DeviceError (the device said no, or nothing) or RemoteProtocolError (its bytes are not the
    protocol's; whole samples before the fault are in its ``messages``): the connection must end then.
    """

    @property
    def clock(self) -> SourceClock:
        """What its stamps tell of its clock."""

    @property
    def jumped(self) -> bool:
        """Whether the last ``feed`` saw the source's clock jump against ours."""

    def start(self, now_ns: int) -> None:
        """Begin on a fresh connection."""

    def stop(self, now_ns: int) -> None:
        """Say what has to be said before the connection ends."""

    def feed(self, data: bytes | memoryview, received_ns: int, wall_ns: int) -> list[PoseSample]:
        """Return the samples that these bytes complete; monotonic and wall time (ns) of the read."""

    def tick(self, now_ns: int) -> None:
        """Do what is due."""

    def next_due_ns(self) -> int | None:
        """Return the monotonic time at which ``tick`` is needed, None when only bytes matter."""

    def take_effects(self) -> list[Effect]:
        """Return what the shell must do now, in order, and forget it."""

    def take_notices(self) -> list[str]:
        """Return what the device said of itself that the log must say, in order, and forget it."""


class UnaskedSource:
    """The face of a driver whose device speaks unasked and is never answered: besides ``feed`` it does nothing."""

    def start(self, now_ns: int) -> None:
        """Nothing has to be said."""

    def stop(self, now_ns: int) -> None:
        """Nothing has to be said."""

    def tick(self, now_ns: int) -> None:
        """Nothing is ever due."""

    def next_due_ns(self) -> int | None:
        """Only bytes matter."""
        return None

    def take_effects(self) -> list[Effect]:
        """Nothing is ever to be done."""
        return []

    def take_notices(self) -> list[str]:
        """It says nothing of itself."""
        return []
