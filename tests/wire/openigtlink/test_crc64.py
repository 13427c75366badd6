from __future__ import annotations

import crcmod
import numpy as np
import pytest

from navsrv.wire.openigtlink import crc64

independent = crcmod.mkCrcFun(0x142F0E1EBA9EA3693, initCrc=0, rev=False, xorOut=0)


def test_published_check_value() -> None:
    assert crc64(b"123456789") == 0x6C40DF5F0B497347


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 48, 117, 4096, 100_003])
def test_agrees_with_an_independent_implementation_at_every_tail_length(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    assert crc64(data) == independent(data)


def test_continues_over_pieces_cut_anywhere() -> None:
    data = np.random.default_rng(5).bytes(50)
    for cut in range(51):
        assert crc64(data[cut:], crc64(data[:cut])) == independent(data)


def test_reads_every_kind_of_buffer() -> None:
    data = bytes(range(100))
    assert crc64(bytearray(data)) == crc64(memoryview(data)) == crc64(memoryview(bytearray(data))) == crc64(data)
