"""Owns the faults that a device, a link or a machine can have: their names, where each acts, and when.

One table, ``FAULTS``.  A fault acts on bytes on their way (``fault_line``), on a link, on an image before it is sent,
or on a process, and never inside the server or its drivers: nobody there can know.  Times are given, or drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

import numpy as np

from navsrv.kernel.checking import rule


class Place(Enum):
    """Where a fault acts."""

    MESSAGE = "message"
    """What a whole message says, sealed again with a right check sum."""
    BYTES = "bytes"
    """The bytes themselves, or when they come."""
    LINK = "link"
    """The connection."""
    IMAGE = "image"
    """An image before it is sent."""
    PROCESS = "process"
    """A process, by the system's means."""


FaultName = Literal[
    "drop_out",
    "freeze",
    "jump",
    "swapped_tools",
    "late",
    "out_of_order",
    "torn_packet",
    "bad_crc",
    "oversized_length",
    "slow_link",
    "link_cut",
    "half_open",
    "clock_step",
    "clock_drift",
    "restart",
    "wrong_orientation",
    "wrong_series",
    "disk_full",
    "killed_process",
]


@dataclass(frozen=True, slots=True)
class FaultRule:
    """What one fault is.

    Attributes
    ----------
    virtual : bool
        Whether it has a meaning in virtual time: where only a kernel or a process can do it, it needs the real server.
    amount : float
        The size where none is given, in ``unit``.
    """

    place: Place
    virtual: bool
    what: str
    amount: float = 0.0
    unit: str = ""


FAULTS: Final[Mapping[FaultName, FaultRule]] = {
    "drop_out": FaultRule(Place.BYTES, True, "nothing is sent while it lasts; the link stays"),
    "freeze": FaultRule(Place.MESSAGE, True, "the pose of before under new stamps"),
    "jump": FaultRule(Place.MESSAGE, True, "poses displaced along the tracker's x", 20.0, "mm"),
    "swapped_tools": FaultRule(Place.MESSAGE, True, "two tools go under each other's names"),
    "late": FaultRule(Place.BYTES, True, "everything comes later, in order", 150.0, "ms"),
    "out_of_order": FaultRule(Place.BYTES, True, "of every two exposures the later is sent first"),
    "torn_packet": FaultRule(Place.BYTES, True, "one message loses its end, the stream goes on"),
    "bad_crc": FaultRule(Place.BYTES, True, "one bit of one body is turned"),
    "oversized_length": FaultRule(Place.BYTES, True, "one header promises a body of a terabyte"),
    "slow_link": FaultRule(Place.BYTES, True, "bytes pass at a rate that is too low for them", 8000.0, "bytes/s"),
    "link_cut": FaultRule(Place.LINK, True, "the connection is closed, new ones are refused while it lasts"),
    "half_open": FaultRule(Place.LINK, False, "the peer vanishes without a word, as on a loss of power"),
    "clock_step": FaultRule(Place.MESSAGE, True, "stamps jump, and stay so while it lasts", 2.0, "s"),
    "clock_drift": FaultRule(Place.MESSAGE, True, "stamps run fast while it lasts", 500.0, "ppm"),
    "restart": FaultRule(Place.LINK, True, "cut off and away while it lasts; then its clock begins anew", -3600.0, "s"),
    "wrong_orientation": FaultRule(Place.IMAGE, False, "the volume says that the patient lies the other way round"),
    "wrong_series": FaultRule(Place.IMAGE, False, "the volume is another patient's"),
    "disk_full": FaultRule(Place.PROCESS, False, "the recorder can write no more"),
    "killed_process": FaultRule(Place.PROCESS, False, "a process of the server is killed"),
}

ONCE: Final[frozenset[FaultName]] = frozenset(("torn_packet", "bad_crc", "oversized_length"))
"""Faults of one message: the link does not outlive it."""


@dataclass(frozen=True, slots=True)
class FaultOrder:
    """One fault of a story: which, where, when.

    Attributes
    ----------
    device : str
        A pose source, an imaging device, or a process of the server (``loop``, ``hub``, ``recorder``).
    tool : str or None
        Only this tool's poses, for the faults of poses.
    at_s, rate_per_min : float or None
        One of the two: at a time, or as often as drawn.
    amount : float or None
        In the unit of ``FAULTS``.
    """

    fault: FaultName
    device: str = "main"
    tool: str | None = None
    at_s: float | None = rule(None, low=0.0, high=86400.0)
    rate_per_min: float | None = rule(None, low=0.0, high=600.0)
    for_s: float = rule(1.0, low=0.0, high=86400.0)
    amount: float | None = rule(None, low=-1e12, high=1e12)

    @property
    def size(self) -> float:
        """The amount given, else the fault's own."""
        return FAULTS[self.fault].amount if self.amount is None else self.amount


@dataclass(frozen=True, slots=True)
class Episode:
    """One time that a fault is there, in ns on the clock of whoever runs the story."""

    order: FaultOrder
    begin_ns: int
    end_ns: int

    def holds(self, now_ns: int) -> bool:
        """Say whether it is there now."""
        return self.begin_ns <= now_ns < self.end_ns


def episodes_of(
    orders: tuple[FaultOrder, ...], start_ns: int, duration_s: float, rng: np.random.Generator
) -> tuple[Episode, ...]:
    """Return when each fault is there, in the order of beginning; those at a rate as a Poisson process."""
    found = []
    for order in orders:
        if order.at_s is not None:
            begins = [order.at_s]
        else:
            count = int(rng.poisson((order.rate_per_min or 0.0) * duration_s / 60.0))
            begins = np.sort(rng.uniform(0.0, duration_s, count)).tolist()
        for begin_s in begins:
            begin_ns = start_ns + round(begin_s * 1e9)
            found.append(Episode(order, begin_ns, begin_ns + round(order.for_s * 1e9)))
    return tuple(sorted(found, key=lambda episode: episode.begin_ns))
