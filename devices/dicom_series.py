"""Owns when a DICOM series is whole.

C-STORE has no end of a series: it is whole when as many objects came as one of them announced and they make one volume,
else when nothing more came for a while.
Knows neither sockets nor clocks: objects and times are handed in, events come out.  Memory is bounded: what would
exceed it is refused, never kept.  A series that lacks announced slices is refused, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from devices.dicom import MAX_SLICES, DicomVolume, VolumePart, assemble
from navsrv.wire.dicom import DicomFault

REMEMBERED: Final = 256
"""Finished series that are remembered, to tell a late object from a new series."""


@dataclass(frozen=True, slots=True, eq=False)
class VolumeReady:
    """A series is whole."""

    device: str
    volume: DicomVolume


@dataclass(frozen=True, slots=True)
class SeriesRefused:
    """A series came to its end and cannot be used."""

    device: str
    series_uid: str
    objects: int
    reason: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What a grouper keeps: for ``quiet_ns`` after a series' last object, at most ``max_bytes`` of decoded voxels."""

    quiet_ns: int
    max_bytes: int
    max_series: int = 16


@dataclass(slots=True, eq=False)
class _Series:
    device: str
    last_ns: int
    parts: dict[str, VolumePart] = field(default_factory=dict)
    bytes: int = 0

    @property
    def expected(self) -> int | None:
        """The largest count that an object announced."""
        return max((part.expected for part in self.parts.values() if part.expected is not None), default=None)


Event = VolumeReady | SeriesRefused


class SeriesGrouper:
    """Series under way, by device and SeriesInstanceUID."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: dict[tuple[str, str], _Series] = {}
        self._finished: dict[tuple[str, str], None] = {}
        self.repeated = 0
        """Objects that came again as they were; senders repeat what they are not sure of."""

    @property
    def held_bytes(self) -> int:
        """Decoded voxels that are kept now."""
        return sum(series.bytes for series in self._open.values())

    def next_due_ns(self) -> int | None:
        """Return when ``step`` has something to do at the earliest; None while no series is under way."""
        oldest = min((series.last_ns for series in self._open.values()), default=None)
        return None if oldest is None else oldest + self._limits.quiet_ns

    def add(self, device: str, part: VolumePart, now_ns: int) -> list[Event]:
        """Take one object; return what it completes.

        Raises
        ------
        DicomFault
            This object is refused: it comes after its series' end, contradicts one before, or exceeds the limits.
        """
        key = (device, part.series_uid)
        if key in self._finished:
            raise DicomFault(f"series {part.series_uid} has ended already; send it again as a new series")
        series = self._open.get(key)
        known = None if series is None else series.parts.get(part.instance_uid)
        if series is not None and known is not None:
            if known.digest != part.digest:
                raise DicomFault(f"object {part.name} came twice with different content")
            self.repeated += 1
            series.last_ns = now_ns
            return []
        self._require_room(series, part)
        if series is None:
            series = self._open[key] = _Series(device, now_ns)
        series.parts[part.instance_uid] = part
        series.bytes += part.hu.nbytes
        series.last_ns = now_ns
        if part.whole:
            return [self._finish(key, series, now_ns)]
        if series.expected is not None and len(series.parts) >= series.expected:
            return self._complete_by_count(key, series, now_ns)
        return []

    def step(self, now_ns: int) -> list[Event]:
        """Return what has ended by being quiet."""
        quiet = [(k, s) for k, s in self._open.items() if now_ns - s.last_ns >= self._limits.quiet_ns]
        return [self._finish(key, series, now_ns) for key, series in quiet]

    def _require_room(self, series: _Series | None, part: VolumePart) -> None:
        limits = self._limits
        if self.held_bytes + part.hu.nbytes > limits.max_bytes:
            held = f"{self.held_bytes / 1e6:.0f} MB are kept for unfinished series"
            raise DicomFault(f"{held}, with this object more than {limits.max_bytes / 1e6:.0f} MB")
        if series is None and len(self._open) >= limits.max_series:
            raise DicomFault(f"{len(self._open)} series are unfinished; at most {limits.max_series} at a time")
        if series is not None and len(series.parts) >= MAX_SLICES:
            raise DicomFault(f"the series has {len(series.parts)} objects already; at most {MAX_SLICES}")

    def _complete_by_count(self, key: tuple[str, str], series: _Series, now_ns: int) -> list[Event]:
        """Return the volume if the announced number of slices makes one; else wait: the number may have been wrong."""
        try:
            volume = assemble(list(series.parts.values()), series.device, now_ns)
        except DicomFault:
            return []
        self._forget(key)
        return [VolumeReady(series.device, volume)]

    def _finish(self, key: tuple[str, str], series: _Series, now_ns: int) -> Event:
        self._forget(key)
        count, expected = len(series.parts), series.expected
        if expected is not None and count < expected:
            reason = f"{count} of {expected} announced objects came; slices are missing"
            return SeriesRefused(series.device, key[1], count, reason)
        try:
            return VolumeReady(series.device, assemble(list(series.parts.values()), series.device, now_ns))
        except DicomFault as fault:
            return SeriesRefused(series.device, key[1], count, str(fault))

    def _forget(self, key: tuple[str, str]) -> None:
        del self._open[key]
        self._finished[key] = None
        while len(self._finished) > REMEMBERED:
            del self._finished[next(iter(self._finished))]
