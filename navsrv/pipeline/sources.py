"""Owns the pose sources of a session: which driver listens to which, what each counted, and when one needs the time."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final, assert_never

from devices.carm_encoders import EncoderCounts
from devices.ndi import NdiTracker
from devices.ndi_readings import NdiCounts, NdiSpec
from devices.openigtlink import OpenIgtLinkSource, SourceCounts, SourceSpec
from devices.source import PoseSource
from navsrv.kernel.errors import DeviceError, RemoteProtocolError
from navsrv.kernel.samples import PoseSample
from navsrv.pipeline.inputs import EndLink, SourceReport, ToDevice
from navsrv.wire.openigtlink import Sensor

NEVER_NS = 1 << 62
_WORDS: Final = {"invalid": "refused", "out_of_order": "late"}


class Driver:
    """One source's driver, new for each connection, and its counts, which go on."""

    def __init__(self, spec: SourceSpec | NdiSpec) -> None:
        self.spec = spec
        self.counts: SourceCounts | NdiCounts = NdiCounts() if isinstance(spec, NdiSpec) else SourceCounts()
        self.source: PoseSource | None = None

    def connect(self, now_ns: int) -> None:
        """Begin on a fresh connection."""
        self.source = open_source(self.spec, self.counts)
        self.source.start(now_ns)

    def disconnect(self) -> None:
        """Forget the connection."""
        self.source = None

    def feed(self, data: bytes, received_ns: int, wall_ns: int) -> tuple[list[PoseSample], list[EndLink]]:
        """Return the samples that these bytes complete, and the order to end the connection when they break it."""
        assert self.source is not None
        try:
            return self.source.feed(data, received_ns, wall_ns), []
        except (RemoteProtocolError, DeviceError) as fault:
            self.source = None
            found = fault.messages if isinstance(fault, RemoteProtocolError) else []
            return [s for s in found if isinstance(s, PoseSample)], [EndLink(self.spec.name, str(fault))]

    def readings(self) -> list[tuple[str, int | None, Sensor]]:
        """Return what sensors said in the bytes last fed: device, its stamp, and what it said."""
        return self.source.readings if isinstance(self.source, OpenIgtLinkSource) else []

    def tick(self, now_ns: int) -> list[EndLink]:
        """Do what is due; return the order to end the connection when the device failed."""
        due_ns = self.next_due_ns()
        if self.source is None or now_ns < due_ns:
            return []
        try:
            self.source.tick(now_ns)
        except (RemoteProtocolError, DeviceError) as fault:
            self.source = None
            return [EndLink(self.spec.name, str(fault))]
        return []

    def effects(self) -> list[ToDevice]:
        """Return what the shell must do at the device."""
        return [] if self.source is None else [ToDevice(self.spec.name, e) for e in self.source.take_effects()]

    def next_due_ns(self) -> int:
        """Return when ``tick`` is needed."""
        due_ns = None if self.source is None else self.source.next_due_ns()
        return NEVER_NS if due_ns is None else due_ns

    def report(self, now_ns: int) -> SourceReport:
        """Return how the source stands at ``now_ns``: its counts, and what its stamps tell of its clock."""
        name, counts, source = self.spec.name, counted(self.counts), self.source
        unknown_s = self.spec.unknown_latency_ns / 1e9
        clock = None if source is None else source.clock.estimate(now_ns)
        if source is None or clock is None:
            return SourceReport(name, source is not None, counts, unknown_s)
        return SourceReport(
            name,
            True,
            counts,
            unknown_s + clock.shifted_ns / 1e9,
            source.clock.late_ns / 1e9,
            clock.offset_ns / 1e9,
            clock.offset_sigma_ns / 1e9,
            clock.drift_ppm,
            clock.drift_sigma_ppm,
        )


def counted(counts: SourceCounts | NdiCounts | EncoderCounts) -> dict[str, int]:
    """Return a driver's counts in the words of the metrics, which are the same for sources of every kind."""
    return {_WORDS.get(name, name): count for name, count in asdict(counts).items()}


def open_source(spec: SourceSpec | NdiSpec, counts: SourceCounts | NdiCounts) -> PoseSource:
    """Return the driver of one connection."""
    match spec:
        case SourceSpec():
            assert isinstance(counts, SourceCounts)
            return OpenIgtLinkSource(spec, counts)
        case NdiSpec():
            assert isinstance(counts, NdiCounts)
            return NdiTracker(spec, counts)
        case _:
            assert_never(spec)
