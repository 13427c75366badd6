from __future__ import annotations

import struct
from types import ModuleType

import numpy as np
import pytest

from navsrv.kernel.errors import LocalProtocolError
from navsrv.wire import openigtlink as igtl

STAMP = igtl.timestamp_from_ns(1_700_000_000_123_456_789)


def frame(type_name: str, content: bytes, version: int = 1) -> bytes:
    """A message laid out by hand, check sum included."""
    head = struct.pack(">H12s20sQQ", version, type_name.encode(), b"Tracker", 0, len(content))
    return head + struct.pack(">Q", igtl.crc64(content)) + content


def extended(content: bytes, index: bytes = b"\0\0", text: bytes = b"", size: int = 12) -> bytes:
    return struct.pack(">HHII", size, len(index), len(text), 1) + content + index + text


def refusal(raw: bytes) -> str:
    with pytest.raises(igtl.RemoteProtocolError) as caught:
        igtl.Framer().feed(raw)
    return str(caught.value)


def read(raw: bytes) -> igtl.Message:
    (message,) = igtl.Framer().feed(raw)
    return message


def test_every_kind_of_body_comes_back_byte_for_byte_under_both_headers(fuzz: ModuleType) -> None:
    for message in fuzz.messages():
        raw = igtl.encode(message)
        again = read(raw)
        assert type(again.body) is type(message.body)
        assert igtl.encode(again) == raw
        assert again.metadata == message.metadata
        assert (again.device, again.timestamp, again.version, again.message_id) == (
            message.device,
            message.timestamp,
            message.version,
            message.message_id,
        )


def test_plain_values_come_back_equal() -> None:
    for body in (
        igtl.Status(7, -(1 << 40), "busy", "näh"),
        igtl.String("x" * 65535),
        igtl.Command(1 << 31, "n", "<a/>", 106),
        igtl.Capability(("TRANSFORM", "GET_TRANS")),
        igtl.Query("STT_TDATA", resolution=50, coordinate="CAMERA"),
        igtl.Query("STT_BIND", resolution=9, children=(("IMAGE", "CT"), ("STRING", ""))),
        igtl.Query("GET_BIND", children=(("IMAGE", "CT"),)),
        igtl.Query("RTS_TDATA", status=1),
        igtl.Query("GET_TDATA", data=b"vendor's own"),
    ):
        assert read(igtl.encode(igtl.Message("A", STAMP, body))).body == body


def test_transform_is_column_major_without_its_last_row() -> None:
    matrix = np.arange(16.0).reshape(4, 4)
    raw = igtl.encode(igtl.Message("A", 0, igtl.Transform(matrix), 1))
    assert struct.unpack(">12f", raw[58:]) == (0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11)
    got = read(raw).body
    assert isinstance(got, igtl.Transform)
    np.testing.assert_array_equal(got.matrix, np.vstack((matrix[:3], [0, 0, 0, 1])))
    with pytest.raises(ValueError, match="read-only"):
        got.matrix[0, 0] = 1.0


def test_a_body_keeps_its_own_copy_of_the_callers_matrix() -> None:
    matrix = np.eye(4)
    body = igtl.Transform(matrix)
    matrix[0, 3] = 99.0
    assert body.matrix[0, 3] == 0.0


def test_metadata_keeps_its_character_set_and_the_last_of_equal_keys() -> None:
    items = (
        igtl.Metadata("TransformStatus", "MISSING"),
        igtl.Metadata("TransformStatus", "OK"),
        igtl.Metadata("grund", "außer Sicht"),
        igtl.Metadata("blob", b"\xff\x00", 0),
    )
    got = read(igtl.encode(igtl.Message("A", 0, igtl.Transform(np.eye(4)), 2, items)))
    assert got.meta("TransformStatus") == "OK"
    assert got.meta("absent") is None
    assert got.metadata[2] == igtl.Metadata("grund", "außer Sicht", 106)
    assert got.metadata[3] == items[3]
    assert got.meta("blob") == "\ufffd\x00"


def test_text_that_is_not_what_its_label_says_is_read_and_relabelled() -> None:
    assert read(frame("STRING", b"\0\3\0\4gr\xfc\xdf")).body == igtl.String("grüß", 4)
    assert read(frame("STRING", b"\0\3\0\2\xc3\xbc")).body == igtl.String("ü", 106)
    assert igtl.encode(igtl.Message("A", 0, igtl.String("ü"), 1))[58:] == b"\0\x6a\0\2\xc3\xbc"


def test_names_of_a_peer_in_another_character_set_do_not_end_the_connection() -> None:
    raw = bytearray(frame("GET_STATUS", b""))
    raw[14:34] = b"Nadel \xfc".ljust(20, b"\0")
    assert read(bytes(raw)).device == "Nadel ü"


def test_a_longer_extended_header_is_skipped() -> None:
    content = struct.pack(">12f", *range(12))
    raw = frame("TRANSFORM", extended(b"\xaa" * 4 + content, size=16), 2)
    body = read(raw).body
    assert isinstance(body, igtl.Transform)
    assert body.matrix[2, 3] == 11.0


def test_header_two_without_any_metadata_block_is_read() -> None:
    message = read(frame("STATUS", struct.pack(">HHIIHq20s", 12, 0, 0, 5, 1, 0, b"") + b"\0", 2))
    assert (message.metadata, message.message_id, message.body) == ((), 5, igtl.Status(1))


def test_an_answer_without_data_is_raw_and_an_empty_list_is_a_list() -> None:
    assert read(frame("TRANSFORM", b"")).body == igtl.Raw("TRANSFORM")
    tdata = read(frame("TDATA", b"")).body
    assert isinstance(tdata, igtl.TData)
    assert tdata.elements == ()


def test_status_without_its_closing_null_is_read() -> None:
    assert read(frame("STATUS", struct.pack(">Hq20s", 1, 0, b""))).body == igtl.Status(1)
    assert read(frame("STATUS", struct.pack(">Hq20s", 2, 0, b"E") + b"why")).body == igtl.Status(2, 0, "E", "why")


@pytest.mark.parametrize(
    ("query", "interval_ns", "subject"),
    [
        (igtl.Query.start("TDATA", 50_000_000), 50_000_000, "TDATA"),
        (igtl.Query.start("TDATA", 1), 1_000_000, "TDATA"),
        (igtl.Query.start("QTDATA"), 0, "QTDATA"),
        (igtl.Query.start("POLYDATA", 33_333_333), 33_333_333, "POLYDATA"),
        (igtl.Query.start("TRANSFORM", 16_666_667), 16_666_667, "TRANSFORM"),
        (igtl.Query.start("TRANSFORM"), None, "TRANSFORM"),
    ],
)
def test_the_asked_resolution_survives_the_wire(query: igtl.Query, interval_ns: int | None, subject: str) -> None:
    got = read(igtl.encode(igtl.Message("A", 0, query))).body
    assert isinstance(got, igtl.Query)
    assert (got.verb, got.subject, got.interval_ns) == (igtl.Verb.START, subject, interval_ns)
    answer = igtl.Query.answer(got, ok=True)
    assert (answer.type_name, answer.status) == ("RTS_" + query.type_name[4:], 0)


def test_stt_tdata_by_hand() -> None:
    body = read(frame("STT_TDATA", struct.pack(">I32s", 20, b"Patient"))).body
    assert body == igtl.Query("STT_TDATA", resolution=20, coordinate="Patient")
    assert read(frame("STT_VIDEO", b"H264\0\0\0\x21")).body == igtl.Query("STT_VIDEO", data=b"H264\0\0\0\x21")
    assert read(frame("STT_TDATA", struct.pack(">I", 20))).body == igtl.Query("STT_TDATA", resolution=20)


def test_quaternion_of_three_gets_its_fourth() -> None:
    position = igtl.Position(np.zeros(3), np.array([0.0, 0.0, 0.6]))
    got = read(igtl.encode(igtl.Message("A", 0, position))).body
    assert isinstance(got, igtl.Position)
    assert got.q_unit_xyzw is not None
    np.testing.assert_allclose(got.q_unit_xyzw, [0.0, 0.0, 0.6, 0.8], atol=1e-7)
    assert igtl.Position(np.zeros(3)).q_unit_xyzw is None
    assert igtl.Position(np.zeros(3), np.zeros(4)).q_unit_xyzw is None


def test_a_bind_in_a_bind_is_not_opened() -> None:
    inner = igtl.Bind((igtl.BindChild("x", igtl.String("deep")),))
    got = read(igtl.encode(igtl.Message("A", 0, igtl.Bind((igtl.BindChild("in", inner),))))).body
    assert isinstance(got, igtl.Bind)
    assert isinstance(got.children[0].body, igtl.Raw)


def test_surface_of_triangles() -> None:
    points, triangles = np.eye(3), np.array([[0, 1, 2], [2, 1, 0]])
    got = read(igtl.encode(igtl.Message("S1", 0, igtl.PolyData.of_triangles(points, triangles)))).body
    assert isinstance(got, igtl.PolyData)
    np.testing.assert_array_equal(got.points_mm, points)
    np.testing.assert_array_equal(got.triangles(), triangles)
    wrong = igtl.PolyData(np.eye(3, dtype=np.float32), igtl.Cells.of_rows([[0, 1, 3]]))
    with pytest.raises(igtl.RemoteProtocolError, match="a corner 3 of 3 points"):
        wrong.triangles()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (frame("TRANSFORM", bytes(47)), "47 bytes of content where 48"),
        (frame("TRANSFORM", bytes(49)), "49 bytes of content where 48"),
        (frame("POSITION", bytes(20)), "12, 24 or 28"),
        (frame("TDATA", bytes(71)), "elements of 70 bytes"),
        (frame("QTDATA", bytes(50 * 20_972)), "1048600 bytes of lists and texts"),
        (
            frame("BIND", struct.pack(">H12sQH", 1, b"TDATA", 1 << 20, 2) + b"a\0" + bytes(1 << 20)),
            "of lists and texts",
        ),
        (frame("STATUS", bytes(29)), "at least 30"),
        (frame("STRING", b"\0\3\xff\xffabc"), "7 bytes of content where 65539"),
        (frame("STRING", b"\0\3"), "at least 4"),
        (frame("SENSOR", b"\xff" + bytes(9)), "10 bytes of content where 2050"),
        (frame("COMMAND", bytes(134) + b"\xff\xff\xff\xff"), "4294967433 belong"),
        (
            frame("COMMAND", bytes(134) + struct.pack(">I", 1 << 23) + bytes(1 << 23)),
            "bytes of lists and texts; at most",
        ),
        (frame("CAPABILITY", bytes(13)), "elements of 12 bytes"),
        (frame("NDARRAY", b"\x0b\x02\xff\xff\xff\xff"), "34358689806 belong"),
        (frame("NDARRAY", b"\x0b\xff\0\1"), "255 axes"),
        (frame("NDARRAY", b"\x0b\x05\0\1"), "5 extents do not fit"),
        (frame("NDARRAY", b"\x0b\x05" + b"\xff\xff" * 4 + b"\0\0"), "no array has the extents"),
        (frame("NDARRAY", b"\x63\1\0\1a"), "scalar type 99"),
        (frame("POLYDATA", struct.pack(">10I", 0xFFFFFFFF, *[0] * 9)), "do not fit"),
        (frame("POLYDATA", struct.pack(">10I", 0, 0, 0, 0, 0, 9, 4, 0, 0, 0) + bytes(4)), "9 polygons in 4 bytes"),
        (frame("POLYDATA", struct.pack(">10I", 0, 1, 3, *[0] * 7) + bytes(3)), "1 vertices in 3 bytes"),
        (frame("POLYDATA", struct.pack(">10I", *[0] * 9, 0xFFFFFFFF)), "do not fit"),
        (frame("POLYDATA", struct.pack(">10I", *[0] * 9, 1) + struct.pack(">BBI", 0, 255, 1 << 31)), "attributes need"),
        (frame("POLYDATA", struct.pack(">10I", *[0] * 9, 1) + struct.pack(">BBI", 0, 1, 0) + b"ab"), "table of names"),
        (frame("COLORT", b"\3\3" + bytes(255)), "no colour table"),
        (frame("IMGMETA", bytes(259)), "elements of 260 bytes"),
        (frame("BIND", b"\xff\xff"), "65535 children do not fit"),
        (frame("BIND", struct.pack(">H12sQH", 1, b"IMAGE", 1 << 63, 2) + b"a\0"), "leaves the body"),
        (frame("BIND", struct.pack(">H12sQH", 1, b"STRING", 0, 3) + b"ab\0"), "table of names"),
        (frame("BIND", struct.pack(">H12sQH", 1, b"STRING", 0, 2) + b"ab"), "1 null-ended names"),
        (frame("BIND", struct.pack(">H12sQH", 1, b"GET_STRING", 0, 2) + b"a\0junk"), "BIND: 30 bytes"),
        (frame("STT_TDATA", bytes(35)), "35 bytes of content where 36"),
        (frame("GET_BIND", b"\xff\xff"), "65535 children do not fit"),
        (frame("TRANSFORM", bytes(11), 2), "extended header of 12"),
        (frame("STATUS", extended(bytes(31), size=11), 2), "11 + 2 + 0 bytes around"),
        (frame("STATUS", extended(b"", size=0xFFFF), 2), "65535 + 2 + 0 bytes around"),
        (frame("STATUS", struct.pack(">HHII", 12, 0xFFFF, 0xFFFFFFFF, 0), 2), "around the content of 12"),
        (frame("STATUS", extended(bytes(31), b"\0\2" + bytes(8)), 2), "cannot hold 2 items"),
        (frame("STATUS", extended(bytes(31), b"\0\1" + struct.pack(">HHI", 1, 3, 9), b"kv"), 2), "item 0 ends 8 bytes"),
        (frame("STATUS", extended(bytes(31), b"\0\1" + struct.pack(">HHI", 1, 3, 0), b"kv"), 2), "belong to no item"),
        (frame("STATUS", extended(bytes(31), b"", b"kv"), 2), "an index of 0 bytes"),
        (frame("STATUS", bytes(31), 0), "header version 0"),
        (frame("STATUS", extended(bytes(31)), 3), "header version 3"),
        (frame("\x07", b""), "is no name"),
        (frame("", b""), "is no name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_lengths_counts_and_codes_that_cannot_be(raw: bytes, reason: str) -> None:
    assert reason in refusal(raw)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (igtl.Message("a name that is too long", 0, igtl.String("")), "at most 20 bytes"),
        (igtl.Message("A", 1 << 64, igtl.String("")), "STRING 'A'"),
        (igtl.Message("A", 0, igtl.String("x" * 65_536)), "at most 65535 bytes"),
        (igtl.Message("A", 0, igtl.Raw("A_LONG_TYPE_NAME")), "at most 12 bytes"),
        (igtl.Message("A", 0, igtl.Status(1, 0, "", "a\0b")), "cannot hold a null"),
        (igtl.Message("A", 0, igtl.Status(70_000)), "STATUS 'A'"),
        (igtl.Message("A", 0, igtl.Sensor(np.zeros(256))), "at most 255 readings"),
        (igtl.Message("A", 0, igtl.Transform(np.full((4, 4), 1e300))), "TRANSFORM 'A'"),
        (igtl.Message("A", 0, igtl.Query("GET_IMAGE"), 1, (igtl.Metadata("k", "v"),)), "neither metadata"),
        (igtl.Message("A", 0, igtl.Query("GET_IMAGE"), 3), "header 3"),
        (igtl.Message("A", 0, igtl.NdArray(np.array(["text"]))), "no scalar type"),
        (igtl.Message("A", 0, igtl.ColorTable(3, 3, b"short")), "5 bytes of table"),
        (igtl.Message("A", 0, igtl.Query("STT_TDATA", coordinate="x" * 33)), "at most 32 bytes"),
    ],
)
def test_refuses_to_send_what_the_wire_cannot_carry(message: igtl.Message, reason: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        igtl.encode(message)
    assert reason in str(caught.value)


def test_refuses_wrong_shapes_when_a_body_is_made() -> None:
    with pytest.raises(LocalProtocolError, match=r"\(3, 4\) where \(4, 4\)"):
        igtl.Transform(np.zeros((3, 4)))
    with pytest.raises(LocalProtocolError, match="0, 3 or 4"):
        igtl.Position(np.zeros(3), np.zeros(2))
    with pytest.raises(LocalProtocolError, match="indices from 0"):
        igtl.Cells.of_rows([[0, -1, 2]])
