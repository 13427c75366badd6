from __future__ import annotations

import struct

import numpy as np
import pytest

from navsrv.kernel.errors import LocalProtocolError
from navsrv.wire import openigtlink as igtl


def oblique() -> np.ndarray:
    """Index to mm with three different spacings, axes turned, and an origin away from 0."""
    angle = 0.4
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.diag([0.5, 0.75, 2.0])
    matrix[:3, 3] = [-120.0, 35.5, 900.25]
    return matrix


def trip(image: igtl.Image) -> igtl.Image:
    (message,) = igtl.Framer().feed(igtl.encode(igtl.Message("CT", 0, image)))
    assert isinstance(message.body, igtl.Image)
    return message.body


def header(image: igtl.Image) -> tuple[float, ...]:
    raw = igtl.encode(igtl.Message("CT", 0, image, 1))
    return struct.unpack(">HBBBB3H12f3H3H", raw[58 : 58 + 72])


def test_the_wire_gets_the_middle_of_the_voxel_centres() -> None:
    image = igtl.Image(np.zeros((7, 5, 4), np.int16), oblique())
    fields = header(image)
    assert fields[:8] == (1, 1, 4, 2, 2, 4, 5, 7)
    np.testing.assert_allclose(fields[8:17], oblique()[:3, :3].T.ravel(), rtol=1e-6)
    np.testing.assert_allclose(fields[17:20], (oblique() @ [1.5, 2.0, 3.0, 1.0])[:3], rtol=1e-6)


def test_placement_comes_back() -> None:
    got = trip(igtl.Image(np.zeros((7, 5, 4), np.int16), oblique(), "RAS"))
    np.testing.assert_allclose(got.matrix, oblique(), atol=1e-4)
    np.testing.assert_allclose(got.spacing_mm, [0.5, 0.75, 2.0], rtol=1e-6)
    assert got.coordinate == "RAS"


def test_a_box_of_a_volume_lies_where_it_lay_in_the_whole() -> None:
    voxels = np.arange(7 * 5 * 4, dtype=np.int16).reshape(7, 5, 4)
    whole = igtl.Image(voxels, oblique())
    placed = oblique()
    placed[:3, 3] = (oblique() @ [1.0, 2.0, 3.0, 1.0])[:3]
    box = igtl.Image(voxels[3:6, 2:4, 1:4], placed, dims=(4, 5, 7), offset=(1, 2, 3))
    np.testing.assert_allclose(header(box)[8:20], header(whole)[8:20], rtol=1e-6)
    assert header(box)[20:] == (1, 2, 3, 3, 2, 3)
    got = trip(box)
    np.testing.assert_allclose(got.matrix, placed, atol=1e-4)
    np.testing.assert_array_equal(got.voxels, voxels[3:6, 2:4, 1:4])
    assert (got.dims, got.offset, got.size) == ((4, 5, 7), (1, 2, 3), (3, 2, 3))


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("endian", ["little", "big"])
def test_every_scalar_type_in_both_byte_orders(dtype: str, endian: str) -> None:
    values = (np.arange(24) * 5).reshape(2, 3, 4).astype(dtype)
    got = trip(igtl.Image(values, np.eye(4), endian=endian))  # type: ignore[arg-type]
    assert got.voxels.dtype == np.dtype(dtype)
    assert got.voxels.dtype.isnative
    assert got.endian == endian
    np.testing.assert_array_equal(got.voxels, values)


def test_first_index_runs_fastest_on_the_wire() -> None:
    voxels = np.zeros((2, 2, 3), np.uint8)
    voxels[0, 0] = [1, 2, 3]
    voxels[0, 1, 0] = 4
    voxels[1, 0, 0] = 5
    raw = igtl.encode(igtl.Message("CT", 0, igtl.Image(voxels, np.eye(4)), 1))
    assert list(raw[58 + 72 :]) == [1, 2, 3, 4, 0, 0, 5, 0, 0, 0, 0, 0]


def test_views_that_are_not_contiguous_are_sent_right() -> None:
    voxels = np.arange(24, dtype=np.int16).reshape(4, 3, 2).T
    np.testing.assert_array_equal(trip(igtl.Image(voxels, np.eye(4))).voxels, voxels)


def test_colours_stay_interleaved() -> None:
    voxels = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    got = trip(igtl.Image(voxels, np.eye(4)))
    assert (got.components, got.size) == (3, (4, 2, 1))
    np.testing.assert_array_equal(got.voxels, voxels)


def test_a_large_image_takes_the_piecewise_path_to_the_same_bytes() -> None:
    voxels = np.random.default_rng(3).integers(0, 4000, (30, 40, 50)).astype(np.int16)
    raw = igtl.encode(igtl.Message("CT", 0, igtl.Image(voxels, np.eye(4)), 2, (igtl.Metadata("k", "v"),)))
    assert len(raw) > 1 << 16
    (message,) = igtl.Framer().feed(raw)
    assert isinstance(message.body, igtl.Image)
    np.testing.assert_array_equal(message.body.voxels, voxels)
    assert message.meta("k") == "v"


def test_voxels_do_not_change_when_the_reader_reuses_its_buffer() -> None:
    raw = igtl.encode(igtl.Message("CT", 0, igtl.Image(np.full((2, 2, 2), 7, np.int16), np.eye(4))))
    for cut in (len(raw), 30, 70, 140):
        buffer, framer = bytearray(raw), igtl.Framer()
        messages = framer.feed(memoryview(buffer)[:cut]) + framer.feed(memoryview(buffer)[cut:])
        buffer[:] = bytes(len(buffer))
        body = messages[0].body
        assert isinstance(body, igtl.Image)
        assert (body.voxels == 7).all()
        with pytest.raises(ValueError, match="read-only"):
            body.voxels[0, 0, 0] = 1


def test_ras_to_lps_flips_two_axes_and_comes_back() -> None:
    image = igtl.Image(np.zeros((7, 5, 4), np.int16), oblique(), "RAS")
    lps = image.flipped_ras_lps()
    assert lps.coordinate == "LPS"
    np.testing.assert_allclose(lps.matrix @ [1, 2, 3, 1], np.array([-1, -1, 1, 1]) * (oblique() @ [1, 2, 3, 1]))
    np.testing.assert_array_equal(lps.flipped_ras_lps().matrix, image.matrix)


def broken(**changes: int) -> bytes:
    values = {
        "version": 1,
        "components": 1,
        "scalar": 3,
        "endian": 2,
        "coordinate": 1,
        "i": 2,
        "at": 0,
        "n": 2,
        **changes,
    }
    content = struct.pack(
        ">HBBBB3H12f3H3H",
        *(values[key] for key in ("version", "components", "scalar", "endian", "coordinate")),
        *(values["i"], 2, 1),
        *np.eye(4)[:3].ravel(),
        *(values["at"], 0, 0),
        *(values["n"], 2, 1),
    ) + bytes(4)
    head = struct.pack(">H12s20sQQQ", 1, b"IMAGE", b"CT", 0, len(content), igtl.crc64(content))
    return head + content


def test_the_unbroken_one_is_read() -> None:
    assert len(igtl.Framer().feed(broken())) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "version 2"),
        ({"components": 0}, "0 components"),
        ({"components": 255}, "bytes of content where"),
        ({"scalar": 8}, "scalar type 8"),
        ({"scalar": 11}, "bytes of content where"),
        ({"endian": 0}, "byte order 0"),
        ({"coordinate": 3}, "coordinate 3"),
        ({"at": 1}, "leaves the volume"),
        ({"at": 65535, "n": 65535}, "leaves the volume"),
        ({"i": 65535, "n": 65535}, "bytes of content where"),
        ({"n": 1}, "bytes of content where"),
    ],
)
def test_refuses_headers_that_do_not_fit(changes: dict[str, int], reason: str) -> None:
    with pytest.raises(igtl.RemoteProtocolError, match=reason):
        igtl.Framer().feed(broken(**changes))


def test_refuses_to_make_what_cannot_be_sent() -> None:
    with pytest.raises(LocalProtocolError, match=r"\(k, j, i\)"):
        igtl.Image(np.zeros((2, 2)), np.eye(4))
    with pytest.raises(LocalProtocolError, match="leave the volume"):
        igtl.Image(np.zeros((2, 2, 2)), np.eye(4), dims=(2, 2, 2), offset=(1, 0, 0))
    with pytest.raises(LocalProtocolError, match="no scalar type"):
        igtl.encode(igtl.Message("CT", 0, igtl.Image(np.zeros((1, 1, 1), bool), np.eye(4))))
