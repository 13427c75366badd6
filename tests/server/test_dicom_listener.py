"""The DICOM server over real associations: what it takes, what it refuses and says why, and what does it no harm."""

import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import generate_uid
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider

from devices.dicom import assemble, read_part
from tests.dicom_objects import ct_series, enhanced_ct, phantom, xa
from tests.server.dicom_room import Listener, associate_request, echo, ended, raw, store

pytestmark = pytest.mark.realtime
EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    with Listener(tmp_path_factory.mktemp("dicom"), silent_s=2.0, max_object_mb=1, max_held_mb=4) as listener:
        yield listener


def expect_volume(listener: Listener, slices: Any) -> dict[str, Any]:
    """Check that the next image is the volume of these slices, and return its facts."""
    wanted = assemble([read_part(ds, EXPLICIT, 10_000_000, 0) for ds in slices], "OARM", 0)
    facts, voxels = listener.image()
    assert facts["kind"] == "volume"
    assert np.array_equal(voxels, wanted.sample.voxels)
    assert np.array(facts["index_to_image_mm"]) == pytest.approx(wanted.sample.index_to_volume_mm, abs=1e-9)
    return facts


@pytest.mark.parametrize("implicit", [False, True])
def test_a_series_sent_out_of_order_becomes_the_volume_after_a_quiet_time(shared: Listener, implicit: bool) -> None:
    slices = ct_series()
    order = np.random.default_rng(1).permutation(len(slices))
    before = time.monotonic_ns()
    answers = store(shared.port, [slices[n] for n in order], implicit=implicit)
    assert {answer.Status for answer in answers} == {0}
    facts = expect_volume(shared, slices)
    assert before < facts["received_ns"] < time.monotonic_ns()
    assert facts["T_equipment_from_image"] is None


def test_two_associations_may_share_one_series_that_is_done_at_its_count(shared: Listener) -> None:
    slices = ct_series(ImagesInAcquisition=24, ImageToEquipmentMappingMatrix=np.eye(4).ravel().tolist())
    store(shared.port, slices[:10])
    store(shared.port, [slices[3], *slices[10:]])
    facts = expect_volume(shared, slices)
    assert facts["T_equipment_from_image"] == np.eye(4).tolist()


def test_an_enhanced_object_and_an_x_ray_arrive(shared: Listener) -> None:
    slices = ct_series()
    store(shared.port, [enhanced_ct(slices)])
    expect_volume(shared, slices)
    pixels = np.random.default_rng(2).integers(0, 4000, (20, 30))
    store(shared.port, [xa(pixels, ImagerPixelSpacing=[0.4, 0.3], DistanceSourceToDetector=1000.0)], "CARM")
    facts, found = shared.image()
    assert np.array_equal(found, pixels)
    assert (facts["source"], facts["kind"]) == ("carm", "projection")
    assert np.array(facts["T_carm_from_image"])[2, 3] == 1000.0


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"RescaleSlope": None}, 0xC000, "RescaleSlope and RescaleIntercept are missing"),
        ({"ImagePositionPatient": None}, 0xC000, "ImagePositionPatient is missing"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, 0xC000, "a localizer"),
        ({"Rows": 900, "Columns": 900}, 0xC000, "900 x 900 x 1 pixels are 2 MB; at most 1"),
    ],
)
def test_an_object_that_is_no_slice_is_refused_with_status_and_reason(
    shared: Listener, change: dict[str, Any], status: int, said: str
) -> None:
    (ds,) = ct_series(count=1)
    for keyword, value in change.items():
        setattr(ds, keyword, value)
    (answer,) = store(shared.port, [ds])
    assert answer.Status == status
    assert said[:40] in answer.ErrorComment
    note = shared.note("dicom_object_refused")
    assert said in note
    assert note.startswith("OARM at 127.0.0.1:")


def test_a_class_without_a_source_is_refused(shared: Listener) -> None:
    (answer,) = store(shared.port, [xa(np.zeros((4, 4)), ImagerPixelSpacing=[1, 1])], "OARM")
    assert answer.Status == 0xA900
    assert "no imaging source of kind projection has image = 'OARM'" in shared.note("dicom_object_refused")
    plain = xa(np.zeros((4, 4)), ImagerPixelSpacing=[1, 1])
    (answer,) = store(shared.port, [plain], "EQUIPPED")
    assert answer.Status == 0xC000
    assert "no angles in the isocentre's system" in shared.note("dicom_object_refused")


def test_a_series_with_a_missing_slice_is_refused_when_it_is_quiet(shared: Listener) -> None:
    slices = ct_series()
    del slices[9]
    store(shared.port, slices)
    text = shared.note("dicom_series_refused")
    assert "slices 9 and 11 lie 4.000 mm apart, the others 2.000 mm; is a slice missing?" in text


def test_no_answer_is_lost_to_the_senders_own_thread(shared: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender looks for its answer late, and the library's thread is not paused: so it is on a busy machine."""

    class NeverPaused:
        def wait(self) -> None:
            time.sleep(0.002)

        def set(self) -> None: ...

        def clear(self) -> None: ...

    look = DIMSEServiceProvider.get_msg

    def late(provider: DIMSEServiceProvider, block: bool = False) -> Any:
        time.sleep(0.05 if block else 0.0)
        return look(provider, block)

    never = property(lambda self: NeverPaused(), lambda self, value: None)
    before = set(threading.enumerate())
    monkeypatch.setattr(Association, "_reactor_checkpoint", never, raising=False)
    monkeypatch.setattr(DIMSEServiceProvider, "get_msg", late)
    assert echo(shared.port)
    for thread in set(threading.enumerate()) - before:  # the library's own outlives the association
        thread.join(10.0)


def test_only_known_callers_that_know_our_name_associate(shared: Listener) -> None:
    assert echo(shared.port)
    assert rejected(shared.port, "STRANGER", "NAVSRV")
    text = shared.note("dicom_refused")
    assert text.startswith("STRANGER at 127.0.0.1:")
    assert "it is none of CARM, EQUIPPED, OARM, TESTER" in text
    assert rejected(shared.port, "OARM", "OTHER")
    assert "it called 'OTHER'; we are 'NAVSRV'" in shared.note("dicom_refused")
    assert echo(shared.port)


def rejected(port: int, calling: str, called: str) -> bool:
    with raw(port) as sock:
        sock.sendall(associate_request(calling, called))
        return sock.recv(1 << 16)[0] == 3


HOSTILE = {
    "garbage": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20,
    "zeros": bytes(4096),
    "a unit of 2 GB": struct.pack(">BBI", 4, 0, (1 << 31) - 1) + bytes(1000),
    "a request of 4 GB": struct.pack(">BBI", 1, 0, 0xFFFFFFFF) + bytes(1000),
    "data before associating": struct.pack(">BBI", 4, 0, 6) + bytes(6),
    "a cut request": associate_request()[:70],
    "a garbled request": associate_request()[:80] + b"\xff" * (len(associate_request()) - 80),
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_end_their_own_connection_only(shared: Listener, name: str) -> None:
    with raw(shared.port) as sock:
        sock.sendall(HOSTILE[name])
        assert echo(shared.port), "others are served meanwhile"
        assert ended(sock)
    assert shared.echo()


def pdata(body: bytes, control: int) -> bytes:
    """Return one P-DATA unit of presentation context 1; control 3 is the last of a command, 0 more of an object."""
    value = struct.pack(">IBB", len(body) + 2, 1, control) + body
    return struct.pack(">BBI", 4, 0, len(value)) + value


def command(uid: str = "1.2.840.10008.5.1.4.1.1.2") -> bytes:
    """Return a C-STORE-RQ command set, implicit little endian, written by hand after PS3.7 9.3.1."""

    def element(tag: int, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        return struct.pack("<HHI", 0, tag, len(value)) + value

    elements = element(0x0002, uid.encode()) + element(0x0100, struct.pack("<H", 1))
    elements += element(0x0110, struct.pack("<H", 1)) + element(0x0700, struct.pack("<H", 0))
    elements += element(0x0800, struct.pack("<H", 1)) + element(0x1000, b"1.2.3.4.5")
    return element(0x0000, struct.pack("<I", len(elements))) + elements


def established(listener: Listener) -> Any:
    sock = raw(listener.port)
    sock.sendall(associate_request())
    assert sock.recv(1 << 16)[0] == 2, "accepted"
    return sock


def test_an_object_without_end_is_cut_off_at_its_limit(shared: Listener) -> None:
    with established(shared) as sock:
        sock.sendall(pdata(command(), 3))
        piece = pdata(bytes(60_000), 0)
        try:
            for _ in range(100):
                sock.sendall(piece)
        except ConnectionError:
            pass
        assert ended(sock)
    assert "an object of more than 1 MB; its connection was ended" in shared.note("dicom_refused", "an object")
    assert shared.echo()


def test_a_sender_that_vanishes_or_stalls_in_an_object_hurts_nobody(shared: Listener) -> None:
    slices = ct_series()
    with established(shared) as stalled:
        stalled.sendall(pdata(command(), 3) + pdata(bytes(100), 0)[:50])
        vanished = established(shared)
        vanished.sendall(pdata(command(), 3) + pdata(bytes(100), 0)[:50])
        vanished.close()
        store(shared.port, slices)
        expect_volume(shared, slices)
        assert ended(stalled), "silence ends it"
    assert shared.echo()


def test_an_object_of_nonsense_gets_a_status_and_the_next_is_taken(shared: Listener) -> None:
    with established(shared) as sock:
        sock.sendall(pdata(command(), 3) + pdata(b"\xfe\xff\x00\xe0nonsense" * 9, 2))
        answer = sock.recv(1 << 16)
        assert answer[0] == 4, "a P-DATA unit with the response"
        assert b"\x00\xa9" in answer, "status A900: an object without a class"
        sock.sendall(struct.pack(">BBI4x", 5, 0, 4))
    assert shared.echo()


def test_connections_are_bounded_and_free_again(shared: Listener) -> None:
    many = [raw(shared.port) for _ in range(30)]
    assert shared.note("dicom_refused", "connections already")
    for sock in many:
        sock.close()
    end, in_a_row = time.monotonic() + 30, 0
    while in_a_row < 4:  # those that were still queued take places once more
        in_a_row = in_a_row + 1 if shared.echo() else 0
        assert time.monotonic() < end
        time.sleep(0.1)


def test_what_unfinished_series_may_hold_is_bounded(shared: Listener) -> None:
    big = ct_series(count=2, size=(600, 600), spacing=(0.5, 0.5), hu=lambda p: p[..., 0] * 3 + p[..., 1])
    statuses = []
    for n in range(6):
        for ds in big:
            ds.SeriesInstanceUID, ds.SOPInstanceUID = f"1.2.3.{n}", generate_uid()
            statuses += [answer.Status for answer in store(shared.port, [ds])]
    assert 0 in statuses
    assert 0xC000 in statuses
    assert "are kept for unfinished series" in shared.note("dicom_object_refused")


def test_it_counts_what_came(tmp_path: Path) -> None:
    with Listener(tmp_path) as listener:
        store(listener.port, ct_series(count=4, hu=phantom, centre=(12.0, -3.0, 4.0)))
        counts = listener.counts(associations=1, objects=4, volumes=1, held_bytes=0)
        assert counts["bytes"] > 4 * 36 * 40 * 2
        os.kill(listener.child.process.pid, signal.SIGTERM)
