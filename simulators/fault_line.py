"""Owns what faults do to one device's stream: whole exposures in, deliveries with their times out.

The same line stands in virtual time and between real sockets: time is an argument, nothing here waits.  What it holds
back it gives with the time at which it is due.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from navsrv.kernel.frames import Array
from simulators.faults import FAULTS, ONCE, Episode, Place
from simulators.packets import HEADER, Packet

_SIZE_AT: Final = 42
_TERABYTE: Final = 1 << 40
TORN_BYTES: Final = 20


@dataclass(frozen=True, slots=True)
class Delivery:
    """Bytes that reach the other side at a time."""

    at_ns: int
    data: bytes


@dataclass(slots=True)
class FaultLine:
    """One device's stream on its way.

    Attributes
    ----------
    episodes : tuple of Episode
        Of this device; those that no bytes can do are left to others.
    """

    episodes: tuple[Episode, ...]
    _before: Sequence[bytes] = ()
    _frozen: dict[bytes, Array] = field(default_factory=dict)
    _done: set[int] = field(default_factory=set)
    _held: bytes | None = None
    _free_ns: int = 0

    def exposure(self, now_ns: int, messages: Sequence[bytes]) -> list[Delivery]:
        """Return what becomes of one exposure's messages, sent now in one write."""
        active = [(i, e) for i, e in enumerate(self.episodes) if e.holds(now_ns)]
        moved_s = sum(e.order.size for e in self.episodes if e.order.fault == "restart" and now_ns >= e.end_ns)
        if not (active or moved_s or self._held is not None or now_ns < self._free_ns):
            self._before = messages
            return [Delivery(now_ns, b"".join(messages))] if messages else []
        if not any(e.order.fault == "freeze" for _, e in active):
            self._before, self._frozen = messages, {}
        packets = [Packet.parse(raw).with_stamp_moved(round(moved_s * 1e9)) for raw in messages]
        for _, episode in active:
            packets = self._said(episode, now_ns, packets)
        return self._sent(active, now_ns, [p.sealed() for p in packets])

    def cuts(self) -> list[tuple[int, int]]:
        """Return (begin, end) of the times at which the link is gone."""
        return [(e.begin_ns, e.end_ns) for e in self.episodes if e.order.fault in ("link_cut", "restart")]

    # -- what messages say -------------------------------------------------------------------------------------

    def _said(self, episode: Episode, now_ns: int, packets: list[Packet]) -> list[Packet]:
        order = episode.order

        def touched(packet: Packet) -> bool:
            return packet.is_pose and (order.tool is None or packet.name.startswith(f"{order.tool}To"))

        match order.fault:
            case "freeze":
                if not self._frozen:
                    self._frozen = {p.device: p.matrix for p in map(Packet.parse, self._before) if p.is_pose}
                return [p.with_matrix(self._frozen.get(p.device, p.matrix)) if touched(p) else p for p in packets]
            case "jump":
                return [p.with_matrix(_displaced(p.matrix, order.size)) if touched(p) else p for p in packets]
            case "swapped_tools":
                poses = [p for p in packets if p.is_pose]
                given = iter([p.device for p in poses[1:] + poses[:1]])
                return [replace(p, device=next(given)) if p.is_pose else p for p in packets]
            case "clock_step":
                return [p.with_stamp_moved(round(order.size * 1e9)) for p in packets]
            case "clock_drift":
                return [p.with_stamp_moved(round((now_ns - episode.begin_ns) * order.size * 1e-6)) for p in packets]
            case _:
                return packets

    # -- what happens to bytes ---------------------------------------------------------------------------------

    def _sent(self, active: list[tuple[int, Episode]], now_ns: int, messages: list[bytes]) -> list[Delivery]:
        faults = {e.order.fault: (i, e) for i, e in active if FAULTS[e.order.fault].place is Place.BYTES}
        if "drop_out" in faults:
            order = faults["drop_out"][1].order
            kept = [] if order.tool is None else [m for m in messages if not _of_tool(m, order.tool)]
            messages = kept
        for name in ONCE & faults.keys():
            index, _ = faults[name]
            if index not in self._done and messages:
                self._done.add(index)
                messages = [_broken(name, messages[0]), *messages[1:]]
        data = b"".join(messages)
        if not data and self._held is None:
            return []
        at_ns = now_ns
        if "late" in faults:
            at_ns += round(faults["late"][1].order.size * 1e6)
        if "slow_link" in faults:
            begin = max(at_ns, self._free_ns)
            at_ns = begin + round(len(data) / faults["slow_link"][1].order.size * 1e9)
        at_ns = max(at_ns, self._free_ns)
        self._free_ns = at_ns
        if "out_of_order" in faults and self._held is None:
            self._held = data
            return []
        held, self._held = self._held, None
        return [Delivery(at_ns, data + (held or b""))]


def _displaced(matrix: Array, by_mm: float) -> Array:
    result = np.array(matrix)
    result[0, 3] += by_mm
    return result


def _of_tool(message: bytes, tool: str) -> bool:
    return Packet.parse(message).name.startswith(f"{tool}To")


def _broken(fault: str, message: bytes) -> bytes:
    match fault:
        case "torn_packet":
            return message[:-TORN_BYTES]
        case "bad_crc":
            at = HEADER.size + (len(message) - HEADER.size) // 2
            return message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]
        case _:
            return message[:_SIZE_AT] + struct.pack(">Q", _TERABYTE) + message[_SIZE_AT + 8 :]
