"""Owns the body that carries surfaces: POLYDATA, after VTK's vtkPolyData.

Cells stay as the wire has them, one flat list of (how many, index, index, ...): that is VTK's own form, and it is cheap
at any size.  ``Cells.rows`` and ``PolyData.triangles`` read them, and check them, when somebody wants them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navsrv.kernel.errors import LocalProtocolError
from navsrv.wire.openigtlink.fields import Buffer, fault, field_of, frozen, need, settle, text_of

_HEAD: Final = struct.Struct(">10I")
_ATTRIBUTE: Final = struct.Struct(">BBI")
_FIXED_COMPONENTS: Final = {1: 3, 2: 3, 3: 9, 4: 4}
"""Components of vectors, normals, tensors and colours (low four bits of ``kind``)."""

_MOST_ATTRIBUTES: Final = 1024
_KINDS: Final = ("vertices", "lines", "polygons", "triangle_strips")


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Cells of one kind: ``flat`` (n,) uint32 is (how many, index, ...) for each of ``count`` cells."""

    flat: NDArray[np.uint32]
    count: int

    def __post_init__(self) -> None:
        settle(self, "flat", frozen(self.flat, (None,), "cells", np.uint32))
        if not 0 <= self.count <= self.flat.size:
            raise LocalProtocolError(f"{self.count} cells cannot lie in {self.flat.size} numbers")

    @classmethod
    def of_rows(cls, rows: ArrayLike) -> Cells:
        """Return the cells of (count, corners) point indices, all with the same number of corners."""
        indices = np.asarray(rows)
        if indices.ndim != 2 or (indices.size and int(indices.min()) < 0):
            raise LocalProtocolError(f"cells of shape {indices.shape} where (count, corners) indices from 0 belong")
        count, corners = indices.shape
        flat = np.concatenate((np.full((count, 1), corners, np.uint32), indices.astype(np.uint32)), axis=1)
        return cls(flat.ravel(), count)

    def rows(self, corners: int) -> NDArray[np.uint32]:
        """Return (count, corners) point indices; refuse cells with another number of corners."""
        table = self.flat.reshape(-1, corners + 1) if self.flat.size == self.count * (corners + 1) else None
        if table is None or bool((table[:, 0] != corners).any()):
            fault(f"POLYDATA: its {self.count} cells are not all of {corners} corners")
        return table[:, 1:]


_NO_CELLS: Final = Cells(np.empty(0, np.uint32), 0)


@dataclass(frozen=True, slots=True, eq=False)
class PolyAttribute:
    """Numbers (n, components) float32 on points or cells.

    ``kind`` is 0 scalars, 1 vectors, 2 normals, 3 tensors, 4 colours on points; 16 more on cells.
    """

    name: str
    kind: int
    values: NDArray[np.float32]

    def __post_init__(self) -> None:
        settle(self, "values", frozen(self.values, (None, None), "attribute values", np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class PolyData:
    """POLYDATA.

    Attributes
    ----------
    points_mm : (n, 3) float32
        In the frame that sender and receiver agreed on; displays expect RAS.
    """

    type_name: ClassVar[str] = "POLYDATA"
    points_mm: NDArray[np.float32]
    polygons: Cells = _NO_CELLS
    vertices: Cells = _NO_CELLS
    lines: Cells = _NO_CELLS
    triangle_strips: Cells = _NO_CELLS
    attributes: tuple[PolyAttribute, ...] = ()

    def __post_init__(self) -> None:
        settle(self, "points_mm", frozen(self.points_mm, (None, 3), "points_mm", np.float32))

    @classmethod
    def of_triangles(cls, points_mm: ArrayLike, triangles: ArrayLike) -> PolyData:
        """Return the surface of ``points_mm`` (n, 3) and ``triangles`` (m, 3) indices."""
        return cls(np.asarray(points_mm, dtype=np.float32), Cells.of_rows(triangles))

    def triangles(self) -> NDArray[np.uint32]:
        """Return the polygons as (m, 3) indices into ``points_mm``; refuse other polygons and indices of no point."""
        triangles = self.polygons.rows(3)
        if triangles.size and int(triangles.max()) >= len(self.points_mm):
            fault(f"POLYDATA: a corner {int(triangles.max())} of {len(self.points_mm)} points")
        return triangles


def encode_polydata(body: PolyData) -> bytes:
    """Return the content of a POLYDATA."""
    cells = [getattr(body, kind) for kind in _KINDS]
    counts = [number for part in cells for number in (part.count, 4 * part.flat.size)]
    pieces = [_HEAD.pack(len(body.points_mm), *counts, len(body.attributes)), body.points_mm.astype(">f4").tobytes()]
    pieces += [part.flat.astype(">u4").tobytes() for part in cells]
    names = b""
    for attribute in body.attributes:
        number, components = attribute.values.shape
        pieces.append(_ATTRIBUTE.pack(attribute.kind, components, number))
        names += field_of(attribute.name, 255, "attribute name") + b"\0"
    pieces.append(names + b"\0" * (len(names) % 2))
    pieces += [attribute.values.astype(">f4").tobytes() for attribute in body.attributes]
    return b"".join(pieces)


def parse_polydata(content: Buffer) -> PolyData:
    """Return the POLYDATA of its content."""
    if len(content) < _HEAD.size:
        fault(f"POLYDATA: {len(content)} bytes of content where at least {_HEAD.size} belong")
    points, *counts, attributes = _HEAD.unpack_from(content)
    at = _HEAD.size + 12 * points + sum(counts[1::2])
    if at + _ATTRIBUTE.size * attributes > len(content) or attributes > _MOST_ATTRIBUTES:
        fault(f"POLYDATA: {points} points, {sum(counts[1::2])} bytes of cells and {attributes} attributes do not fit")
    points_mm = np.frombuffer(content, ">f4", 3 * points, _HEAD.size).reshape(-1, 3)
    start, cells = _HEAD.size + 12 * points, {}
    for kind, count, size in zip(_KINDS, counts[::2], counts[1::2], strict=True):
        if size % 4 or count > size // 4:
            fault(f"POLYDATA: {count} {kind} in {size} bytes")
        cells[kind] = Cells(np.frombuffer(content, ">u4", size // 4, start), count)
        start += size
    return PolyData(points_mm, attributes=_parse_attributes(content, at, attributes), **cells)


def _parse_attributes(content: Buffer, at: int, count: int) -> tuple[PolyAttribute, ...]:
    """Return the attributes: their heads, their names (padded to an even length), their numbers."""
    heads = list(_ATTRIBUTE.iter_unpack(content[at : at + _ATTRIBUTE.size * count]))
    at += _ATTRIBUTE.size * count
    sizes = [4 * components * number for _, components, number in heads]
    names_size = len(content) - at - sum(sizes)
    if names_size < 0:
        fault(f"POLYDATA: the attributes need {sum(sizes)} bytes, {len(content) - at} are there")
    table = bytes(content[at : at + names_size])
    names = table.split(b"\0", count)
    used = len(table) - len(names[-1])
    if len(names) != count + 1 or names[-1] != b"\0" * (used % 2):
        fault(f"POLYDATA: the table of names does not hold {count} null-ended names")
    at += names_size
    attributes = []
    for (kind, components, number), name, size in zip(heads, names, sizes, strict=False):
        if _FIXED_COMPONENTS.get(kind & 0x0F, components) != components:
            fault(f"POLYDATA: attribute of kind {kind} with {components} components")
        values = np.frombuffer(content, ">f4", components * number, at)
        attributes.append(PolyAttribute(text_of(name), kind, values.reshape(number, components)))
        at += size
    need(content, at, "POLYDATA")
    return tuple(attributes)
