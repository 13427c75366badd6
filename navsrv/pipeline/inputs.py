"""Owns what goes into the pipeline and what comes out, as values that can be recorded and replayed.

Everything that can change a frame is an input with its time; nothing else may.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from devices.source import Effect


class BytesIn(msgspec.Struct, frozen=True, gc=False, tag="bytes"):
    """One read of one pose source: monotonic and wall time (ns) of the read, and the bytes as they came."""

    source: str
    received_ns: int
    wall_ns: int
    data: bytes


class LinkUp(msgspec.Struct, frozen=True, gc=False, tag="link_up"):
    """A source is connected."""

    now_ns: int
    source: str


class LinkDown(msgspec.Struct, frozen=True, gc=False, tag="link_down"):
    """A source is not connected, and why."""

    now_ns: int
    source: str
    reason: str


class Tick(msgspec.Struct, frozen=True, gc=False, tag="tick"):
    """Nothing arrived until now."""

    now_ns: int


class CommandIn(msgspec.Struct, frozen=True, gc=False, tag="command"):
    """An operator's or a program's command for the pipeline; ``role`` says who."""

    now_ns: int
    id: str
    op: str
    args: dict[str, Any]
    role: str


class RegistrationIn(msgspec.Struct, frozen=True, gc=False, tag="registration"):
    """A registration result that waits for the operator.

    ``T_ct_from_ref`` row-major (16 numbers), covariance row-major (36) as in ``kernel.frames``.
    """

    now_ns: int
    id: str
    method: str
    T_ct_from_ref: tuple[float, ...]
    covariance: tuple[float, ...]
    tre_mm: float
    verdict: str
    reason: str


class FoundIn(msgspec.Struct, frozen=True, gc=False):
    """A needle in the reference's frame: tip and unit axis from hub to tip, covariance of both row-major (36)."""

    tip_ref_mm: tuple[float, ...]
    axis_ref: tuple[float, ...]
    covariance: tuple[float, ...]


class NeedleIn(msgspec.Struct, frozen=True, gc=False, tag="needle"):
    """What still images showed of a tool: ``found``, or None and in ``text`` why they do not tell.

    ``time_ns`` is the image's stamp since the Unix epoch; ``taken_ns`` the same on our monotonic clock, ``began_ns``
    the beginning of the session on it, from which the image's minutes and seconds count.
    """

    now_ns: int
    tool: str
    source: str
    time_ns: int
    taken_ns: int
    began_ns: int
    text: str
    found: FoundIn | None = None


class SensorIn(msgspec.Struct, frozen=True, gc=False, tag="sensor"):
    """One SENSOR message: readings of a device, with its stamp (ns since the Unix epoch; None when it gave none)."""

    received_ns: int
    device: str
    stamp_ns: int | None
    values: tuple[float, ...]
    unit: int = 0
    status: int = 0


class ShellReport(msgspec.Struct, frozen=True, gc=False, tag="shell"):
    """Facts about the shell that frames show: deadlines missed and records lost since the start, displays connected."""

    now_ns: int
    missed_deadlines: int
    lost_records: int
    displays: int | None = None
    """None while nobody counts them."""


Input = BytesIn | LinkUp | LinkDown | Tick | CommandIn | RegistrationIn | NeedleIn | SensorIn | ShellReport


class Reply(msgspec.Struct, frozen=True, gc=False):
    """The answer to a command."""

    id: str
    ok: bool
    value: Any


class Note(msgspec.Struct, frozen=True, gc=False):
    """Something for the log: what happened, with its values."""

    now_ns: int
    event: str
    text: str
    fields: dict[str, Any]


class ToDevice(msgspec.Struct, frozen=True, gc=False):
    """The shell must do this at a source's connection, which its driver asks for."""

    source: str
    effect: Effect


SHOWINGS: Final = ("live", "held", "no signal", "unknown")
"""What the screen of a C-arm's video may show."""


class SourceReport(msgspec.Struct, frozen=True, gc=False):
    """What one source's samples and stamps came to; for metrics, not for frames.

    ``counts`` are since the start.  Clock fields are null while the source's stamps mean nothing: offset (our monotonic
    clock less the stamp, the shortest way included) in seconds, drift in ppm (positive: the source's clock is fast),
    each with its standard deviation; ``unknown_latency_s`` is what no one-way stamp can tell.  ``showing``: of a video,
    what its screen shows.
    """

    source: str
    connected: bool
    counts: dict[str, int]
    unknown_latency_s: float
    late_s: float | None = None
    offset_s: float | None = None
    offset_sigma_s: float | None = None
    drift_ppm: float | None = None
    drift_sigma_ppm: float | None = None
    showing: str | None = None


class EndLink(msgspec.Struct, frozen=True, gc=False):
    """The shell must close this source's connection: the peer broke the protocol."""

    source: str
    reason: str


def input_time_ns(item: Input) -> int:
    """Return the monotonic time (ns) of an input."""
    return item.received_ns if isinstance(item, BytesIn | SensorIn) else item.now_ns


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Input] = msgspec.msgpack.Decoder(Input)


def encode_input(item: Input) -> bytes:
    """Return the record of an input."""
    return _encoder.encode(item)


def decode_input(record: bytes) -> Input:
    """Return the input of a record; ``msgspec.ValidationError`` if it is not one."""
    return _decoder.decode(record)
