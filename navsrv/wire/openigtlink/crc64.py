"""Owns the check sum of the OpenIGTLink header: CRC-64 with the ECMA-182 polynomial, most significant bit first, zero
initial value, no final exclusive-or.

One compiled kernel takes eight bytes a step from eight tables and releases the interpreter lock, so that a 30 MB image
costs milliseconds and does not hold up a pose in another thread.  Importing this module compiles it (cached on disk):
nothing is compiled when the first message comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

POLYNOMIAL: Final = 0x42F0E1EBA9EA3693

_MASK: Final = (1 << 64) - 1


def _tables() -> NDArray[np.uint64]:
    """Return (8, 256) tables; row n is the effect of a byte that n further bytes follow."""
    rows = [[0] * 256 for _ in range(8)]
    for byte in range(256):
        crc = byte << 56
        for _ in range(8):
            crc = ((crc << 1) & _MASK) ^ (POLYNOMIAL if crc >> 63 else 0)
        rows[0][byte] = crc
    for n in range(1, 8):
        for byte in range(256):
            before = rows[n - 1][byte]
            rows[n][byte] = ((before << 8) & _MASK) ^ rows[0][before >> 56]
    return np.array(rows, dtype=np.uint64)


_TABLES: Final = _tables()


def _fold(data: NDArray[np.uint8], crc: int) -> int:
    """Return ``crc`` continued over ``data`` (numba source; uint64 throughout, never mixed with signed integers)."""
    state = np.uint64(crc)
    whole = data.size - data.size % 8
    for i in range(0, whole, 8):
        state = (
            _TABLES[7, np.uint8(state >> np.uint64(56)) ^ data[i]]
            ^ _TABLES[6, np.uint8(state >> np.uint64(48)) ^ data[i + 1]]
            ^ _TABLES[5, np.uint8(state >> np.uint64(40)) ^ data[i + 2]]
            ^ _TABLES[4, np.uint8(state >> np.uint64(32)) ^ data[i + 3]]
            ^ _TABLES[3, np.uint8(state >> np.uint64(24)) ^ data[i + 4]]
            ^ _TABLES[2, np.uint8(state >> np.uint64(16)) ^ data[i + 5]]
            ^ _TABLES[1, np.uint8(state >> np.uint64(8)) ^ data[i + 6]]
            ^ _TABLES[0, np.uint8(state) ^ data[i + 7]]
        )
    for i in range(whole, data.size):
        state = (state << np.uint64(8)) ^ _TABLES[0, np.uint8(state >> np.uint64(56)) ^ data[i]]
    return state  # type: ignore[return-value]  # a plain int when compiled


# Read-only input is the one signature: bytes are read-only by nature, and a writable buffer is shown as such.
_kernel: Callable[[NDArray[np.uint8], int], int] = njit(
    types.uint64(types.Array(types.uint8, 1, "C", readonly=True), types.uint64), nogil=True, cache=True
)(_fold)


def crc64(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """Return the CRC-64 of ``data`` (contiguous), continuing from ``crc``."""
    if type(data) is not bytes:
        data = memoryview(data).toreadonly()
    return int(_kernel(np.frombuffer(data, np.uint8), crc)) if len(data) else crc
