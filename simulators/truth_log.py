"""Owns the log of the truth beside what a simulated tracker sent: one JSON line for each exposure that went out.

The first line says what the log is.  Each other line has ``pose_time_ns`` (the stamp on the wire) or ``frame`` (NDI),
and for each tool its ``status``, the ``true`` and the ``sent`` ``T_tracker_from_tool`` (16 numbers, row by row, mm).
With a case also where the needle truly was in the patient (``tip_ct_mm``, ``axis_ct``).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import msgspec

from navsrv.kernel.errors import InputError
from simulators.exposures import Exposure, Shown
from simulators.world.scene import LOG_FORMAT


def header(rate_hz: float, tools: tuple[str, ...]) -> str:
    """Return the first line of a log without a patient."""
    return json_line({"format": LOG_FORMAT, "version": 1, "rate_hz": rate_hz, "tools": list(tools)})


def json_line(record: dict[str, Any]) -> str:
    """Return a record as one line, without its end."""
    return msgspec.json.encode(record).decode()


def tools_record(tools: Iterable[Shown]) -> dict[str, Any]:
    """Return what the log says of each tool."""
    return {
        tool.name: {
            "status": tool.status,
            "true": tool.true.ravel().tolist(),
            "sent": tool.matrix.ravel().tolist(),
        }
        for tool in tools
    }


def record(exposure: Exposure, pose_time_ns: int, sent_monotonic_ns: int) -> dict[str, Any]:
    """Return the record of one exposure, as ``world.scene.TruthRecord`` reads it, with its tools."""
    seen = {tool.name: tool.visible for tool in exposure.tools}
    made: dict[str, Any] = {"pose_time_ns": pose_time_ns, "sent_monotonic_ns": sent_monotonic_ns}
    if exposure.tip_ct_mm is not None and exposure.axis_ct is not None:
        made |= {"phase": exposure.phase, "visible": seen["Needle"], "reference_visible": seen["Reference"]}
        made |= {"tip_ct_mm": exposure.tip_ct_mm.tolist(), "axis_ct": exposure.axis_ct.tolist()}
    return {**made, "tools": tools_record(exposure.tools)}


class TruthWriter:
    """Writes the log line by line beside its final name, and gives it that name when it is whole."""

    def __init__(self, path: Path, first: str) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        try:
            self._file: TextIO = self._part.open("w", encoding="utf-8")
        except OSError as e:
            raise InputError(f"--truth {path}: {e.strerror}; expected a file in a folder that can be written") from e
        self._file.write(first + "\n")

    def write(self, line: dict[str, Any]) -> None:
        """Add one line."""
        self._file.write(json_line(line) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None:
            self._part.replace(self._path)
