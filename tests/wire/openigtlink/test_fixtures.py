"""The reference library's own messages: each is read, and written back to the same bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from navsrv.wire import openigtlink as igtl

DATA = Path(os.environ.get("NAVSRV_DATA", Path(__file__).parents[4] / "shared" / "data"))
FIXTURES = DATA / "openigtlink" / "upstream-fixtures.json"
NAMES = [
    "bind",
    "capability",
    "colortable",
    "colortable2",
    "command",
    "commandFormat2",
    "image",
    "imgmeta",
    "lbmeta",
    "ndarray",
    "point",
    "polydata",
    "position",
    "positionFormat2",
    "sensor",
    "status",
    "string",
    "tdata",
    "tdataFormat2",
    "trajectory",
    "trajectoryFormat2",
    "transform",
    "transformFormat2",
    "videometa",
]

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not FIXTURES.exists(), reason=f"no real data at {DATA} (set NAVSRV_DATA)"),
]


def wire(name: str) -> bytes:
    return bytes.fromhex(json.loads(FIXTURES.read_text())["fixtures"][name]["wire_hex"])


def read(name: str) -> igtl.Message:
    (message,) = igtl.Framer().feed(wire(name))
    return message


def test_the_list_of_names_is_complete() -> None:
    assert sorted(json.loads(FIXTURES.read_text())["fixtures"]) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_reads_as_its_type_and_writes_the_same_bytes(name: str) -> None:
    entry = json.loads(FIXTURES.read_text())["fixtures"][name]
    message = read(name)
    assert not isinstance(message.body, igtl.Raw)
    assert (message.type_name, message.version, message.device) == (
        entry["type_id"],
        entry["version"],
        entry["device_name"],
    )
    assert igtl.encode(message).hex() == entry["wire_hex"]


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_anywhere_in_the_body_is_noticed(name: str) -> None:
    raw = wire(name)
    for at in np.linspace(58, len(raw) - 1, 7).astype(int):
        broken = bytearray(raw)
        broken[at] ^= 0x10
        with pytest.raises(igtl.RemoteProtocolError, match="check sum"):
            igtl.Framer().feed(broken)


def test_what_the_messages_say() -> None:
    transform = read("transformFormat2")
    assert isinstance(transform.body, igtl.Transform)
    np.testing.assert_allclose(transform.body.matrix[:3, 3], [46.0531, 19.4709, 46.0531], atol=1e-4)
    np.testing.assert_allclose(transform.body.matrix[:, 0], [-0.954892, 0.196632, -0.222525, 0.0], atol=1e-6)
    assert transform.meta("First patient age") == "22"
    assert transform.message_id == 1
    status = read("status").body
    assert status == igtl.Status(15, 10, "ACTUATOR_DISABLED", "Actuator A is disabled.")
    assert read("string").body == igtl.String("Welcome to OpenIGTLink")
    assert read("command").body == igtl.Command(5, "This is a test command", "Start the tracking machine")
    tdata = read("tdata").body
    assert isinstance(tdata, igtl.TData)
    assert [(e.name, e.kind) for e in tdata.elements] == [("Tracker0", 2), ("Tracker1", 2), ("Tracker2", 2)]
    bind = read("bind").body
    assert isinstance(bind, igtl.Bind)
    assert [(c.device, type(c.body)) for c in bind.children] == [
        ("ChildTrans", igtl.Transform),
        ("ChildImage", igtl.Image),
        ("ChildSensor", igtl.Sensor),
    ]
    array = read("ndarray").body
    assert isinstance(array, igtl.NdArray)
    np.testing.assert_array_equal(array.values, np.arange(60.0).reshape(5, 4, 3))


def test_the_cube_of_the_surface_message() -> None:
    cube = read("polydata").body
    assert isinstance(cube, igtl.PolyData)
    assert cube.points_mm.shape == (8, 3)
    quads = cube.polygons.rows(4)
    assert quads.shape == (6, 4)
    assert np.bincount(quads.ravel()).tolist() == [3] * 8
    assert cube.attributes[0].name == "attr"
    np.testing.assert_array_equal(cube.attributes[0].values.ravel(), np.arange(8.0))
    with pytest.raises(igtl.RemoteProtocolError, match="not all of 3 corners"):
        cube.triangles()


def test_the_middle_of_the_image_is_where_the_wire_says() -> None:
    image = read("image").body
    assert isinstance(image, igtl.Image)
    assert (image.voxels.shape, image.coordinate, image.endian, image.dims) == (
        (1, 50, 50),
        "RAS",
        "little",
        (50, 50, 1),
    )
    np.testing.assert_allclose(image.matrix @ [24.5, 24.5, 0.0, 1.0], [46.0531, 19.4709, 46.0531, 1.0], atol=1e-4)
    np.testing.assert_allclose(image.spacing_mm, [1.0, 1.0, 1.0], atol=1e-6)
