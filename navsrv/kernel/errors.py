"""Owns the error types, sorted by who can act on them.

What is expected to happen in a healthy room (no data yet, tool out of view) is a value, never one of these.
"""

from __future__ import annotations


class NavsrvError(Exception):
    """Base of every error of this project; its text is one line that a person can act on."""


class InputError(NavsrvError):
    """A file or an argument that the user gave is wrong: the user can act.  The command line exits with 2."""


class ConfigError(InputError):
    """One or more faults of a configuration, each with file, key, what is wrong and what would be right."""

    def __init__(self, faults: tuple[str, ...] | list[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class FrameMismatch(NavsrvError):
    """Two transforms whose inner frame names do not meet: the programmer can act."""


class LocalProtocolError(NavsrvError):
    """Our own side asked for a message that the protocol cannot carry: the programmer can act."""


class RemoteProtocolError(NavsrvError):
    """The peer sent bytes that break the protocol: the connection ends, nobody else is touched."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.messages: list[object] = []
        """Whole messages of the same read that came before the fault."""


class DeviceError(NavsrvError):
    """A device answered that it cannot do what was asked: the operator can act."""


class CalibrationError(NavsrvError):
    """The data cannot carry a calibration (too few, degenerate, contradictory): the operator can act."""


class RegistrationError(NavsrvError):
    """The data cannot carry a registration (no overlap, degenerate landmarks): the operator can act."""
