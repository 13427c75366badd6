"""Programs of others send to us: DCMTK's echoscu and storescu in every transfer syntax that they write, and Orthanc."""

import json
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.dicom import assemble, read_part
from tests.dicom_objects import ct_series, enhanced_ct, phantom, write, xa
from tests.server.dicom_room import Listener
from tests.server.peers import free_port, running

pytestmark = [pytest.mark.realtime, pytest.mark.peer]
PATIENCE_S = 60.0
Find = Callable[[str], Path]


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    with Listener(tmp_path_factory.mktemp("dicom"), callers=("ECHOSCU",)) as listener:
        yield listener


@pytest.fixture(scope="module")
def series() -> list[Any]:
    return ct_series(count=8, centre=(12.0, -3.0, 4.0), ImagesInAcquisition=8)


def run(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(word) for word in words], capture_output=True, check=False, text=True, timeout=PATIENCE_S
    )


def expect(listener: Listener, slices: list[Any]) -> None:
    """Check that the next volume holds the phantom where it was."""
    wanted = assemble([read_part(ds, "1.2.840.10008.1.2.1", 10_000_000, 0) for ds in slices], "OARM", 0)
    assert {400, 1100} <= set(np.unique(wanted.sample.voxels)), "the phantom is in it"
    facts, voxels = listener.image()
    assert np.array_equal(voxels, wanted.sample.voxels)
    assert np.array(facts["index_to_image_mm"]) == pytest.approx(wanted.sample.index_to_volume_mm, abs=1e-6)


def fresh(tmp_path: Path) -> tuple[list[Any], list[Path]]:
    """Return a new series and its files: each series is taken once."""
    slices = ct_series(count=8, centre=(12.0, -3.0, 4.0), hu=phantom, ImagesInAcquisition=8)
    for ds in slices:
        ds.PatientBirthDate = ds.PatientSex = ds.StudyID = ds.AccessionNumber = ""
        ds.StudyInstanceUID = slices[0].StudyInstanceUID
    return slices, write(tmp_path / "files", slices)


def test_echoscu_is_answered_and_a_stranger_is_not(listener: Listener, require_program: Find) -> None:
    echoscu = require_program("echoscu")
    assert run(echoscu, "-aet", "ECHOSCU", "-aec", "NAVSRV", "127.0.0.1", listener.port).returncode == 0
    refused = run(echoscu, "-aet", "STRANGER", "-aec", "NAVSRV", "127.0.0.1", listener.port)
    assert refused.returncode != 0
    assert "Calling AE Title Not Recognized" in refused.stderr


SYNTAXES: dict[str, tuple[tuple[str, ...] | None, str]] = {
    "explicit little endian": (None, "-xe"),
    "explicit big endian": (None, "-xb"),
    "implicit little endian": (None, "-xi"),
    "deflated": (("dcmconv", "+td"), "-xd"),
    "JPEG lossless SV1": (("dcmcjpeg", "+e1"), "-xs"),
    "JPEG lossless": (("dcmcjpeg", "+el"), "-xf"),
    "JPEG-LS": (("dcmcjpls",), "-xt"),
    "RLE": (("dcmcrle",), "-xr"),
}
LOSSLESS_14 = """[[TransferSyntaxes]]
[lossless]
TransferSyntax1 = 1.2.840.10008.1.2.4.57
[[PresentationContexts]]
[ct]
PresentationContext1 = CTImageStorage\\lossless
[[Profiles]]
[ct]
PresentationContexts = ct
"""
"""DCMTK has no option for this one."""


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_storescu_sends_the_same_volume_in_every_transfer_syntax(
    listener: Listener, tmp_path: Path, require_program: Find, syntax: str
) -> None:
    slices, files = fresh(tmp_path)
    encoder, proposal = SYNTAXES[syntax]
    if encoder is not None:
        for path in files:
            encoded = run(require_program(encoder[0]), *encoder[1:], path, path)
            assert encoded.returncode == 0, encoded.stderr
    # -R: only what these files need.
    proposed: list[Any] = [proposal, "-R"]
    if proposal == "-xf":
        (tmp_path / "lossless.cfg").write_text(LOSSLESS_14)
        proposed = ["-xf", tmp_path / "lossless.cfg", "ct"]
    titles = ("-aet", "OARM", "-aec", "NAVSRV")
    sent = run(require_program("storescu"), *titles, *proposed, "127.0.0.1", listener.port, *files)
    assert sent.returncode == 0, sent.stderr
    expect(listener, slices)


def test_storescu_sends_an_enhanced_ct_and_an_x_ray(listener: Listener, tmp_path: Path, require_program: Find) -> None:
    storescu = require_program("storescu")
    slices, _ = fresh(tmp_path)
    (path,) = write(tmp_path / "enhanced", [enhanced_ct(slices)])
    assert run(storescu, "-aet", "OARM", "-aec", "NAVSRV", "127.0.0.1", listener.port, path).returncode == 0
    expect(listener, slices)
    pixels = np.random.default_rng(1).integers(0, 4000, (20, 30))
    (path,) = write(tmp_path / "xa", [xa(pixels, ImagerPixelSpacing=[0.4, 0.3])])
    assert run(storescu, "-aet", "CARM", "-aec", "NAVSRV", "127.0.0.1", listener.port, path).returncode == 0
    assert np.array_equal(listener.image()[1], pixels)


def test_storescu_sees_why_an_object_is_refused(listener: Listener, tmp_path: Path, require_program: Find) -> None:
    slices, _ = fresh(tmp_path)
    del slices[0].RescaleSlope
    (path,) = write(tmp_path / "bad", slices[:1])
    words = ("-v", "-aet", "OARM", "-aec", "NAVSRV", "127.0.0.1", listener.port, path)
    sent = run(require_program("storescu"), *words)
    assert "(Error: CannotUnderstand)" in sent.stderr


def test_orthanc_forwards_a_series(listener: Listener, tmp_path: Path, require_program: Find) -> None:
    orthanc = require_program("Orthanc")
    slices, files = fresh(tmp_path)
    port = free_port()
    config = {
        "Name": "tests",
        "DicomAet": "OARM",
        "DicomPort": free_port(),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "StorageDirectory": str(tmp_path / "storage"),
        "IndexDirectory": str(tmp_path / "storage"),
        "Plugins": [],
        "DicomModalities": {"navsrv": ["NAVSRV", "127.0.0.1", listener.port]},
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(config))

    def ask(path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body)
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return json.load(answer)

    with running(tmp_path / "orthanc.log", orthanc, tmp_path / "orthanc.json") as program:
        program.wait_for(lambda text: "Orthanc has started" in text)
        for path in files:
            stored = ask("/instances", path.read_bytes())
        report = ask("/modalities/navsrv/store", json.dumps([stored["ParentSeries"]]).encode())
        assert report["FailedInstancesCount"] == 0
        assert report["InstancesCount"] == len(slices)
    expect(listener, slices)
