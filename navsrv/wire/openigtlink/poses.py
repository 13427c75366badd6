"""Owns the bodies that carry poses: TRANSFORM, TDATA, QTDATA, POSITION.  Numbers stay as the wire has them, in mm.

Refuses frames and handedness: a body does not say between which frames it maps; names and configuration do, elsewhere.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from navsrv.kernel.errors import LocalProtocolError
from navsrv.wire.openigtlink.fields import (
    Buffer,
    FloatArray,
    fault,
    field_of,
    frozen,
    need,
    need_elements,
    settle,
    text_of,
)

_MATRIX: Final = struct.Struct(">12f")
_TDATA: Final = struct.Struct(">20sBB12f")
_QTDATA: Final = struct.Struct(">20sBB7f")


@dataclass(frozen=True, slots=True, eq=False)
class Transform:
    """TRANSFORM: one homogeneous transform.

    Attributes
    ----------
    matrix : (4, 4) float64, read-only
        The last row is (0, 0, 0, 1) and does not travel; the rest is rounded to float32 there.  Translation in mm.
    """

    type_name: ClassVar[str] = "TRANSFORM"
    matrix: FloatArray

    def __post_init__(self) -> None:
        settle(self, "matrix", frozen(self.matrix, (4, 4), "matrix"))


@dataclass(frozen=True, slots=True, eq=False)
class TDataElement:
    """One tool of a TDATA; ``kind`` is 1 tracker, 2 six-, 3 three-, 4 five-degree-of-freedom instrument."""

    name: str
    matrix: FloatArray
    kind: int = 2
    reserved: int = 0

    def __post_init__(self) -> None:
        settle(self, "matrix", frozen(self.matrix, (4, 4), "matrix"))


@dataclass(frozen=True, slots=True, eq=False)
class TData:
    """TDATA: the tools of one tracker frame.  A tool that is not seen is left out."""

    type_name: ClassVar[str] = "TDATA"
    elements: tuple[TDataElement, ...]


@dataclass(frozen=True, slots=True, eq=False)
class QTDataElement:
    """One tool of a QTDATA: position (3,) in mm and quaternion (4,) as x, y, z, w, as sent, not normalised."""

    name: str
    position_mm: FloatArray
    q_xyzw: FloatArray
    kind: int = 2
    reserved: int = 0

    def __post_init__(self) -> None:
        settle(self, "position_mm", frozen(self.position_mm, (3,), "position_mm"))
        settle(self, "q_xyzw", frozen(self.q_xyzw, (4,), "q_xyzw"))


@dataclass(frozen=True, slots=True, eq=False)
class QTData:
    """QTDATA: the tools of one tracker frame as position and quaternion."""

    type_name: ClassVar[str] = "QTDATA"
    elements: tuple[QTDataElement, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Position:
    """POSITION: a point, with or without orientation.

    Attributes
    ----------
    position_mm : (3,) float64
    q_xyzw : (0,), (3,) or (4,) float64
        Empty without orientation; three numbers are x, y, z of a unit quaternion whose w is not sent (``q_unit_xyzw``).
    """

    type_name: ClassVar[str] = "POSITION"
    position_mm: FloatArray
    q_xyzw: FloatArray = ()  # type: ignore[assignment]  # made an array below

    def __post_init__(self) -> None:
        settle(self, "position_mm", frozen(self.position_mm, (3,), "position_mm"))
        settle(self, "q_xyzw", frozen(self.q_xyzw, (None,), "q_xyzw"))
        if self.q_xyzw.size not in (0, 3, 4):
            raise LocalProtocolError(f"q_xyzw has {self.q_xyzw.size} numbers where 0, 3 or 4 belong")

    @property
    def q_unit_xyzw(self) -> FloatArray | None:
        """The unit quaternion (4,), a w not sent filled in as the non-negative root; None without orientation."""
        if not self.q_xyzw.size:
            return None
        q = self.q_xyzw
        if q.size == 3:
            q = np.append(q, np.sqrt(max(0.0, 1.0 - float(q @ q))))
        length = float(np.linalg.norm(q))
        return q / length if 0.0 < length < math.inf else None


def _columns(m: FloatArray) -> tuple[float, ...]:
    """Return the twelve numbers of the upper 3x4, column by column, as the wire has them."""
    (a, b, c, d), (e, f, g, h), (i, j, k, x), _ = m.tolist()
    return (a, e, i, b, f, j, c, g, k, d, h, x)


def _matrix(v: tuple[float, ...]) -> list[list[float]]:
    """Return the rows of the homogeneous matrix of twelve wire numbers."""
    return [[v[0], v[3], v[6], v[9]], [v[1], v[4], v[7], v[10]], [v[2], v[5], v[8], v[11]], [0.0, 0.0, 0.0, 1.0]]


def encode_transform(body: Transform) -> bytes:
    """Return the content of a TRANSFORM."""
    return _MATRIX.pack(*_columns(body.matrix))


def parse_transform(content: Buffer) -> Transform:
    """Return the TRANSFORM of its content."""
    need(content, _MATRIX.size, "TRANSFORM")
    return Transform(_matrix(_MATRIX.unpack(content)))  # type: ignore[arg-type]  # made an array there, once


def encode_tdata(body: TData) -> bytes:
    """Return the content of a TDATA."""
    return b"".join(
        _TDATA.pack(field_of(e.name, 20, "tool name"), e.kind, e.reserved, *_columns(e.matrix)) for e in body.elements
    )


def parse_tdata(content: Buffer) -> TData:
    """Return the TDATA of its content."""
    need_elements(content, _TDATA.size, "TDATA")
    return TData(
        tuple(
            TDataElement(text_of(name), _matrix(tuple(numbers)), kind, reserved)  # type: ignore[arg-type]
            for name, kind, reserved, *numbers in _TDATA.iter_unpack(content)
        )
    )


def encode_qtdata(body: QTData) -> bytes:
    """Return the content of a QTDATA."""
    return b"".join(
        _QTDATA.pack(field_of(e.name, 20, "tool name"), e.kind, e.reserved, *e.position_mm, *e.q_xyzw)
        for e in body.elements
    )


def parse_qtdata(content: Buffer) -> QTData:
    """Return the QTDATA of its content."""
    need_elements(content, _QTDATA.size, "QTDATA")
    return QTData(
        tuple(
            QTDataElement(text_of(name), np.array(numbers[:3]), np.array(numbers[3:]), kind, reserved)
            for name, kind, reserved, *numbers in _QTDATA.iter_unpack(content)
        )
    )


def encode_position(body: Position) -> bytes:
    """Return the content of a POSITION."""
    return struct.pack(f">{3 + body.q_xyzw.size}f", *body.position_mm, *body.q_xyzw)


def parse_position(content: Buffer) -> Position:
    """Return the POSITION of its content."""
    if len(content) not in (12, 24, 28):
        fault(f"POSITION: {len(content)} bytes of content where 12, 24 or 28 belong")
    numbers = struct.unpack(f">{len(content) // 4}f", content)
    return Position(np.array(numbers[:3]), np.array(numbers[3:]))
