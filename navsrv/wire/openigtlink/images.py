"""Owns the bodies that carry arrays of voxels and numbers: IMAGE and NDARRAY.

The wire places an IMAGE by the middle of the *whole* volume and three vectors of one voxel's length, and may send a box
of it (the sub-volume).  ``Image.matrix`` places the voxels that came: it maps (i, j, k, 1) of ``Image.voxels`` to mm.
With columns ``t s n`` of the wire, its middle ``p``, extents ``r`` and the box's first voxel ``d``::

    origin = p + [t s n] (d - (r - 1) / 2)

so that the middle is that of the voxels' centres, which is what 3D Slicer and pyigtl take it to be.  The numbers stay
in the anatomical convention that the message names (RAS or LPS): nothing is flipped but on demand.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal

import numpy as np

from navsrv.kernel.errors import LocalProtocolError
from navsrv.wire.openigtlink.fields import (
    SCALARS,
    AnyArray,
    Buffer,
    FloatArray,
    fault,
    frozen,
    need,
    scalar_code,
    settle,
)

_IMAGE: Final = struct.Struct(">HBBBB3H12f3H3H")
_COORDINATES: Final[dict[int, Literal["RAS", "LPS"]]] = {1: "RAS", 2: "LPS"}
_ENDIANS: Final[dict[int, Literal["big", "little"]]] = {1: "big", 2: "little"}
_COMPLEX: Final = 13
_NDARRAY_SCALARS: Final = {**SCALARS, _COMPLEX: np.dtype(np.complex128)}
_MOST_AXES: Final = 64
"""What numpy can hold; the wire could say 255."""


def _readonly(array: AnyArray) -> AnyArray:
    """Return a view that cannot be written through (the caller's own array stays as it is)."""
    view = array.view()
    view.setflags(write=False)
    return view


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """IMAGE: a volume, a slice, or a box of one.

    Attributes
    ----------
    voxels : (k, j, i) or (k, j, i, c), of a type of ``SCALARS``, native byte order
        The array is shared, not copied, and read-only here.
    matrix : (4, 4) float64
        Maps (i, j, k, 1) of ``voxels`` to mm in the convention named by ``coordinate``.
    coordinate : "RAS" or "LPS"
    endian : "little" or "big"
        Byte order of the voxels on the wire.
    dims : (i, j, k)
        Extent of the whole volume; left at zero it is that of ``voxels``.
    offset : (i, j, k)
        Where the first voxel of ``voxels`` lies in the whole volume.
    """

    type_name: ClassVar[str] = "IMAGE"
    voxels: AnyArray
    matrix: FloatArray
    coordinate: Literal["RAS", "LPS"] = "LPS"
    endian: Literal["little", "big"] = "little"
    dims: tuple[int, int, int] = (0, 0, 0)
    offset: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        settle(self, "voxels", _readonly(np.asarray(self.voxels)))
        settle(self, "matrix", frozen(self.matrix, (4, 4), "matrix"))
        if self.voxels.ndim not in (3, 4):
            raise LocalProtocolError(f"voxels has shape {self.voxels.shape} where (k, j, i) or (k, j, i, c) belongs")
        if self.dims == (0, 0, 0):
            settle(self, "dims", self.size)
        box = zip(self.size, self.offset, self.dims, strict=True)
        if any(n < 0 or n + first > extent for n, first, extent in box):
            raise LocalProtocolError(f"voxels of {self.size} at {self.offset} leave the volume of {self.dims}")

    @property
    def size(self) -> tuple[int, int, int]:
        """Extent (i, j, k) of the voxels that came."""
        k, j, i = self.voxels.shape[:3]
        return (i, j, k)

    @property
    def components(self) -> int:
        return int(self.voxels.shape[3]) if self.voxels.ndim == 4 else 1

    @property
    def scalar_type(self) -> int:
        """The wire's number of the voxels' type."""
        return scalar_code(self.voxels.dtype, "IMAGE")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along i, j, k."""
        i, j, k = np.linalg.norm(self.matrix[:3, :3], axis=0).tolist()
        return (i, j, k)

    def flipped_ras_lps(self) -> Image:
        """Return the same image placed in the other anatomical convention (x and y change sign)."""
        other: Literal["RAS", "LPS"] = "LPS" if self.coordinate == "RAS" else "RAS"
        return replace(self, matrix=np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.matrix, coordinate=other)


@dataclass(frozen=True, slots=True, eq=False)
class NdArray:
    """NDARRAY: an array of any shape; of a type of ``SCALARS`` or complex128, native byte order (big on the wire)."""

    type_name: ClassVar[str] = "NDARRAY"
    values: AnyArray

    def __post_init__(self) -> None:
        settle(self, "values", _readonly(np.asarray(self.values)))


def encode_image(body: Image) -> tuple[Buffer, ...]:
    """Return the header and the voxels, which are not copied where they already lie as the wire wants them."""
    if not 1 <= body.components <= 255:
        raise LocalProtocolError(f"IMAGE: {body.components} components where 1 to 255 belong")
    steps = body.matrix[:3, :3]
    half = (np.array(body.dims) - 1) / 2.0
    middle = body.matrix[:3, 3] + _times(steps, half - np.array(body.offset))
    head = _IMAGE.pack(
        1,
        body.components,
        body.scalar_type,
        1 if body.endian == "big" else 2,
        1 if body.coordinate == "RAS" else 2,
        *body.dims,
        *steps.T.ravel(),
        *middle,
        *body.offset,
        *body.size,
    )
    return head, _bytes_of(body.voxels, "<" if body.endian == "little" else ">")


def parse_image(content: Buffer) -> Image:
    """Return the IMAGE of its content."""
    if len(content) < _IMAGE.size:
        fault(f"IMAGE: {len(content)} bytes of content where at least {_IMAGE.size} belong")
    version, components, scalar, endian, coordinate, *numbers = _IMAGE.unpack_from(content)
    dims, steps, middle = tuple(numbers[:3]), numbers[3:12], numbers[12:15]
    offset, size = tuple(numbers[15:18]), tuple(numbers[18:21])
    for name, value, known in (("scalar type", scalar, SCALARS), ("byte order", endian, _ENDIANS)):
        if value not in known:
            fault(f"IMAGE: {name} {value} is none of {sorted(known)}")
    if version != 1 or coordinate not in _COORDINATES or not components:
        fault(f"IMAGE: version {version}, coordinate {coordinate}, {components} components: want 1, 1 or 2, 1 or more")
    if any(o + s > d for o, s, d in zip(offset, size, dims, strict=True)):
        fault(f"IMAGE: the box of {size} at {offset} leaves the volume of {dims}")
    dtype = SCALARS[scalar].newbyteorder("<" if endian == 2 else ">")
    need(content, _IMAGE.size + math.prod(size) * components * dtype.itemsize, "IMAGE")
    shape = size[::-1] if components == 1 else (*size[::-1], components)
    voxels = _array_of(content, _IMAGE.size, dtype, shape)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(steps).reshape(3, 3).T
    matrix[:3, 3] = np.array(middle) + _times(matrix[:3, :3], np.array(offset) - (np.array(dims) - 1) / 2.0)
    return Image(voxels, matrix, _COORDINATES[coordinate], _ENDIANS[endian], dims, offset)


def encode_ndarray(body: NdArray) -> tuple[Buffer, ...]:
    """Return the content of an NDARRAY."""
    values = body.values
    code = _COMPLEX if values.dtype == np.complex128 else scalar_code(values.dtype, "NDARRAY")
    return struct.pack(f">BB{values.ndim}H", code, values.ndim, *values.shape), _bytes_of(values, ">")


def parse_ndarray(content: Buffer) -> NdArray:
    """Return the NDARRAY of its content."""
    if len(content) < 2:
        fault(f"NDARRAY: {len(content)} bytes of content where at least 2 belong")
    scalar, axes = content[0], content[1]
    if scalar not in _NDARRAY_SCALARS or axes > _MOST_AXES:
        fault(
            f"NDARRAY: scalar type {scalar} with {axes} axes; known are {sorted(_NDARRAY_SCALARS)}, {_MOST_AXES} axes"
        )
    head = 2 + 2 * axes
    if len(content) < head:
        fault(f"NDARRAY: {axes} extents do not fit in {len(content)} bytes")
    shape = struct.unpack_from(f">{axes}H", content, 2)
    dtype = _NDARRAY_SCALARS[scalar].newbyteorder(">")
    count = math.prod(shape) if axes else 0
    need(content, head + count * dtype.itemsize, "NDARRAY")
    if not count and math.prod(extent or 1 for extent in shape) >> 56:
        fault(f"NDARRAY: no array has the extents {shape}")
    return NdArray(_array_of(content, head, dtype, shape if axes else (0,)))


def _times(steps: FloatArray, index: FloatArray) -> FloatArray:
    """Return ``steps @ index``; a peer's infinite or undefined numbers go through in silence, for others to judge."""
    with np.errstate(invalid="ignore", over="ignore"):
        product: FloatArray = steps @ index
    return product


def _array_of(content: Buffer, at: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> AnyArray:
    """Return the native-order array that fills ``content`` from ``at``; a view where the order is native already."""
    flat = np.frombuffer(content, np.uint8)[at:].view(dtype)
    return flat.reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _bytes_of(array: AnyArray, order: Literal["<", ">"]) -> Buffer:
    """Return the array's bytes in the byte order asked for; a view where they lie so already."""
    if array.size == 0:
        return b""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder(order)).data.cast("B")
