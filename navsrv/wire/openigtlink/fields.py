"""Owns what the message bodies share: fixed-width text, character sets, scalar types, array checks, the way to refuse.

Text of a peer is never trusted to be what its label says, and never refused for it: what is not UTF-8 is read as
ISO 8859-1, where every byte means something, so that a name in the wrong character set costs its letters and not the
connection.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navsrv.kernel.errors import LocalProtocolError, RemoteProtocolError

Buffer = bytes | bytearray | memoryview
FloatArray = NDArray[np.float64]
AnyArray = NDArray[Any]

ASCII: Final = 3
LATIN_1: Final = 4
UTF_8: Final = 106
"""Character sets by their IANA MIBenum number."""

MOST_SMALL_BYTES: Final = 1024 * 1024
"""The most of a peer's lists and texts that is ever read: as objects and wide characters they grow up to tenfold, and
take time.  Arrays (IMAGE, NDARRAY, POLYDATA) and bodies of unknown types are bounded by the connection's cap alone."""

SCALARS: Final[dict[int, np.dtype[Any]]] = {
    2: np.dtype(np.int8),
    3: np.dtype(np.uint8),
    4: np.dtype(np.int16),
    5: np.dtype(np.uint16),
    6: np.dtype(np.int32),
    7: np.dtype(np.uint32),
    10: np.dtype(np.float32),
    11: np.dtype(np.float64),
}
"""Scalar types of IMAGE and NDARRAY by their number on the wire."""


def fault(reason: str) -> NoReturn:
    """Raise: the peer's bytes break the protocol."""
    raise RemoteProtocolError(reason)


def need(content: Buffer, size: int, what: str) -> None:
    """Raise unless ``content`` has exactly ``size`` bytes."""
    if len(content) != size:
        fault(f"{what}: {len(content)} bytes of content where {size} belong")


def need_elements(content: Buffer, element: int, what: str) -> None:
    """Raise unless a whole number of elements of ``element`` bytes fills ``content``."""
    if len(content) % element:
        fault(f"{what}: {len(content)} bytes of content are no whole number of elements of {element} bytes")


def need_small(size: int, what: str) -> None:
    """Raise when lists or texts are longer than is ever read."""
    if size > MOST_SMALL_BYTES:
        fault(f"{what}: {size} bytes of lists and texts; at most {MOST_SMALL_BYTES} are read")


@lru_cache(maxsize=1024)
def text_of(field: bytes) -> str:
    """Return the text of a fixed-width field: up to its first null.  The same few names come again and again."""
    raw = field.partition(b"\0")[0]
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def field_of(text: str, width: int, what: str) -> bytes:
    """Return ``text`` in UTF-8 for a field that the caller pads with nulls; refuse what does not fit."""
    raw = text.encode()
    if len(raw) > width or b"\0" in raw:
        raise LocalProtocolError(f"{what} {text!r} does not fit: at most {width} bytes of UTF-8 without a null")
    return raw


def parse_text(raw: bytes, encoding: int) -> tuple[str, int]:
    """Return text and its character set; what is not what its label says comes back as ISO 8859-1, relabelled."""
    if encoding in (ASCII, UTF_8):
        try:
            return raw.decode("ascii" if encoding == ASCII else "utf-8"), encoding
        except UnicodeDecodeError:
            try:
                return raw.decode(), UTF_8
            except UnicodeDecodeError:
                return raw.decode("latin-1"), LATIN_1
    return raw.decode("latin-1"), encoding


def encode_text(text: str, encoding: int) -> tuple[bytes, int]:
    """Return bytes and their character set: UTF-8, said so, where ASCII was asked for and cannot hold the text."""
    if encoding in (ASCII, UTF_8):
        return text.encode(), encoding if encoding == UTF_8 or text.isascii() else UTF_8
    try:
        return text.encode("latin-1"), encoding
    except UnicodeEncodeError:
        return text.encode(), UTF_8


def frozen(values: ArrayLike, shape: tuple[int | None, ...], what: str, dtype: Any = np.float64) -> AnyArray:
    """Return a read-only copy of ``values``; refuse another shape (None stands for any extent)."""
    array: AnyArray = np.array(values, dtype=dtype)
    if array.shape == shape:
        array.setflags(write=False)
        return array
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        raise LocalProtocolError(f"{what} has shape {array.shape} where {shape} belongs")
    array.setflags(write=False)
    return array


def settle(instance: object, name: str, value: object) -> None:
    """Set a field of a frozen dataclass while it is being made."""
    object.__setattr__(instance, name, value)


def scalar_code(dtype: np.dtype[Any], what: str) -> int:
    """Return the wire's number of a scalar type."""
    for code, known in SCALARS.items():
        if known == dtype.newbyteorder("="):
            return code
    raise LocalProtocolError(f"{what}: the wire has no scalar type for {dtype}")
