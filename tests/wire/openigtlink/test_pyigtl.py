"""Against pyigtl's message classes, which share no code with ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyigtl
import pytest

from navsrv.wire import openigtlink as igtl

STAMP_NS = 1_700_000_000_250_000_000


def read_by_peer(raw: bytes) -> Any:
    base = pyigtl.messages.MessageBase
    fields = base.parse_header(raw[:58])
    assert fields["body_size"] == len(raw) - 58
    assert pyigtl.messages.CRC64(raw[58:]) == int.from_bytes(raw[50:58])
    message = base.create_message(fields["message_type"])
    message.unpack(fields, raw[58:])
    return message


def read_by_us(message: Any) -> igtl.Message:
    (got,) = igtl.Framer().feed(message.pack())
    return got


def sent(body: igtl.Body, version: int = 2) -> Any:
    metadata = (igtl.Metadata("TransformStatus", "OK"), igtl.Metadata("note", "grüße", 106)) if version == 2 else ()
    return read_by_peer(
        igtl.encode(igtl.Message("NeedleToTracker", igtl.timestamp_from_ns(STAMP_NS), body, version, metadata))
    )


def turned() -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = [[0.0, -0.8, 0.6], [1.0, 0.0, 0.0], [0.0, 0.6, 0.8]]
    matrix[:3, 3] = [1.5, -20.25, 300.0]
    return matrix


@pytest.mark.parametrize("version", [1, 2])
def test_peer_reads_our_transform(version: int) -> None:
    got = sent(igtl.Transform(turned()), version)
    np.testing.assert_allclose(got.matrix, turned(), atol=1e-6)
    assert got.device_name == "NeedleToTracker"
    assert got.timestamp == pytest.approx(STAMP_NS * 1e-9, abs=1e-6)
    assert got.metadata == ({"TransformStatus": "OK", "note": "grüße"} if version == 2 else {})


@pytest.mark.parametrize("version", [1, 2])
def test_we_read_the_peers_transform(version: int) -> None:
    theirs = pyigtl.TransformMessage(turned(), device_name="ReferenceToTracker", timestamp=1234.5)
    theirs.header_version = version
    if version == 2:
        theirs.metadata = {"TransformStatus": "MISSING"}
        theirs.message_id = 9
    got = read_by_us(theirs)
    assert isinstance(got.body, igtl.Transform)
    np.testing.assert_allclose(got.body.matrix, turned(), atol=1e-6)
    assert (got.device, got.version, got.time_ns) == ("ReferenceToTracker", version, 1_234_500_000_000)
    assert (got.meta("TransformStatus"), got.message_id) == (("MISSING", 9) if version == 2 else (None, 0))


@pytest.mark.parametrize("coordinate", ["RAS", "LPS"])
@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 3, 5, 3)])
def test_images_lie_in_the_same_place_for_both(coordinate: str, shape: tuple[int, ...]) -> None:
    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    matrix = turned()
    matrix[:3, :3] *= [0.5, 0.75, 2.0]
    theirs = sent(igtl.Image(voxels, matrix, coordinate))  # type: ignore[arg-type]
    np.testing.assert_array_equal(theirs.image, voxels)
    np.testing.assert_allclose(theirs.ijk_to_world_matrix, matrix, atol=1e-4)
    assert theirs.world_coordinate_system == coordinate.lower()
    ours = read_by_us(pyigtl.ImageMessage(voxels, matrix, coordinate.lower(), device_name="CT")).body
    assert isinstance(ours, igtl.Image)
    np.testing.assert_array_equal(ours.voxels, voxels)
    np.testing.assert_allclose(ours.matrix, matrix, atol=1e-4)
    assert ours.coordinate == coordinate


def test_strings() -> None:
    assert sent(igtl.String("Guidance, grüße")).string == "Guidance, grüße"
    assert read_by_us(pyigtl.StringMessage("hello", device_name="Say")).body == igtl.String("hello")


def test_points() -> None:
    element = igtl.PointElement("S1 left", np.array([1.5, 2.5, -3.5]), "Fiducial", (255, 0, 10, 255), 2.5, "CT")
    theirs = sent(igtl.Point((element, element)))
    assert theirs.names == ["S1 left", "S1 left"]
    assert theirs.groups == ["Fiducial", "Fiducial"]
    assert theirs.owners == ["CT", "CT"]
    assert theirs.rgba_colors[0] == (255, 0, 10, 255)
    assert theirs.positions[1] == (1.5, 2.5, -3.5)
    assert theirs.diameters == [2.5, 2.5]
    message = pyigtl.PointMessage([[1, 2, 3], [4, 5, 6]], names=["a", "b"], groups="g", owners="o", device_name="F")
    ours = read_by_us(message).body
    assert isinstance(ours, igtl.Point)
    assert [(e.name, e.group, e.owner, *e.position_mm) for e in ours.elements] == [
        ("a", "g", "o", 1.0, 2.0, 3.0),
        ("b", "g", "o", 4.0, 5.0, 6.0),
    ]


def test_the_peers_position_is_not_the_protocols_and_is_refused() -> None:
    """pyigtl 0.3.4 sends 152-byte elements under the name POSITION; the protocol knows 12, 24 and 28 bytes."""
    theirs = pyigtl.PositionMessage([[1.0, 2.0, 3.0]], [[0.0, 0.0, 0.0, 1.0]], device_name="P")
    with pytest.raises(igtl.RemoteProtocolError, match="POSITION: 152 bytes of content where 12, 24 or 28 belong"):
        read_by_us(theirs)
