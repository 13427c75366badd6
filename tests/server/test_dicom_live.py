"""A series sent by DICOM to the running server becomes a registration, as one by OpenIGTLink does."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from navsrv.server.cli import main
from navsrv.wire.openigtlink import Message, Metadata, Transform, encode, timestamp_from_ns
from tests.dicom_objects import ct_series, xa
from tests.registration.test_cbct import Anatomy
from tests.server.dicom_room import echo, raw, store
from tests.server.live import LiveServer, Tracker
from tests.server.peers import Feed

pytestmark = pytest.mark.realtime
PATIENCE_S = 60.0
TARGET_CT_MM = np.array([5.0, -8.0, 10.0])

CONFIG = """
[server]
case = "{case}"
[trackers.main]
rate_hz = 60.0
latency_ms = 0.0
[tools.Needle]
tracker = "main"
transform = "NeedleToTracker"
gauge = 11
[tools.Reference]
role = "reference"
tracker = "main"
transform = "ReferenceToTracker"
[dicom]
port = 0
callers = ["TESTER"]
series_quiet_s = 0.5
[imaging.oarm]
kind = "volume"
image = "OARM"
pose = "GantryToTracker"
connect = "dicom"
[imaging.oarm.dicom]
pose_of = "equipment"
T_pose_from_equipment = {T_gantry_from_isocentre}
[imaging.cbct]
kind = "volume"
image = "CBCT"
pose = "VolumeToTracker"
connect = "dicom"
sigma_mm = 2.0
[imaging.carm]
kind = "projection"
image = "CARM"
pose = "CarmToTracker"
connect = "dicom"
[recording]
on = false
"""


def pose(rotvec_deg: tuple[float, float, float], translation: tuple[float, float, float]) -> Any:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(rotvec_deg)).as_matrix()
    matrix[:3, 3] = translation
    return matrix


T_TRACKER_FROM_REF = pose((20, -35, 50), (100, -250, -1200))
T_REF_FROM_CT = pose((10, 20, 130), (40, 25, -60))
T_CT_FROM_VOLUME = pose((4, -7, 9), (6, -3, 8))
T_TRACKER_FROM_GANTRY = pose((-60, 10, 5), (600, 200, -1500))
T_GANTRY_FROM_ISOCENTRE = pose((0, 90, 12), (-300, 50, 20))
T_TRACKER_FROM_VOLUME = T_TRACKER_FROM_REF @ T_REF_FROM_CT @ T_CT_FROM_VOLUME
T_ISOCENTRE_FROM_VOLUME = np.linalg.inv(T_TRACKER_FROM_GANTRY @ T_GANTRY_FROM_ISOCENTRE) @ T_TRACKER_FROM_VOLUME
POSES = {
    "GantryToTracker": T_TRACKER_FROM_GANTRY,
    "VolumeToTracker": T_TRACKER_FROM_VOLUME,
    "CarmToTracker": T_TRACKER_FROM_GANTRY,
}
ANATOMY = Anatomy.random(7, span=(45.0, 40.0, 45.0))


class Gantry:
    """Pushes the imaging devices' poses to the devices port at 20 Hz, within a block."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        said = (Metadata("TransformStatus", "OK"),)
        while not self._end.wait(0.05):
            stamp = timestamp_from_ns(time.time_ns())
            for name, matrix in POSES.items():
                with contextlib.suppress(OSError):
                    self._sock.sendall(encode(Message(name, stamp, Transform(matrix), 2, said)))

    def __enter__(self) -> "Gantry":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._sock.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose case is the anatomy's CT, with tracker and gantry at work."""
    folder = tmp_path_factory.mktemp("dicom")
    index_to_mm = np.diag([1.5, 1.5, 1.5, 1.0])
    index_to_mm[:3, 3] = -70.0
    image = sitk.GetImageFromArray(np.rint(ANATOMY.sampled((94, 94, 94), index_to_mm)).astype(np.int16))
    image.SetSpacing((1.5, 1.5, 1.5))
    image.SetOrigin((-70.0, -70.0, -70.0))
    sitk.WriteImage(image, str(folder / "ct.mha"))
    words = ["--ct", str(folder / "ct.mha"), "--threshold", "Bone=600:bone", "-o", str(folder / "case")]
    assert main(["case", "build", *words, "--name", "ellipsoids"]) == 0
    config = folder / "dicom.toml"
    config.write_text(CONFIG.format(case=folder / "case", T_gantry_from_isocentre=T_GANTRY_FROM_ISOCENTRE.tolist()))
    with Tracker() as tracker, LiveServer(config, folder, [f"trackers.main.port={tracker.port}"]) as server:
        tracker.accept()
        reference = _Reference(tracker)
        with Feed(reference, 60.0), Gantry(server.ports["devices"]):  # type: ignore[arg-type]
            yield server


class _Reference:
    """A tracker whose reference stands where the scene has it."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def pose(self, needle: Any, status: str | None = "OK") -> int:
        return self._tracker.pose(needle, T_TRACKER_FROM_REF, status)


def series(taken: datetime, **extra: Any) -> Any:
    """Return an O-arm's series of the anatomy in the volume's own frame, feet first and prone, with noise."""
    rng = np.random.default_rng(11)

    def seen(points: Any) -> Any:
        shape = points.shape[:-1]
        ct = points.reshape(-1, 3) @ T_CT_FROM_VOLUME[:3, :3].T + T_CT_FROM_VOLUME[:3, 3]
        return ANATOMY.hounsfield(ct).reshape(shape) * 0.9 + 30.0 + rng.normal(0, 30, shape)

    stamp = taken.strftime("%Y%m%d%H%M%S.%f+0000")
    return ct_series(
        (1, 0, 0, 0, -1, 0), 1.6, 60, (72, 72), (1.4, 1.4), (2, -3, 1), hu=seen, AcquisitionDateTime=stamp, **extra
    )


def metrics(server: LiveServer) -> dict[str, float]:
    """Return what the DICOM server counted, as the metrics page shows it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports['http']}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    shown = [line for line in lines if line.startswith("navsrv_dicom{")]
    return {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in shown}


def until(said: str, fits: Any) -> None:
    end = time.monotonic() + PATIENCE_S
    while not fits():
        assert time.monotonic() < end, said
        time.sleep(0.2)


@pytest.mark.parametrize("calling", ["OARM", "CBCT"])
def test_a_volume_by_dicom_is_registered_where_the_patient_is(server: LiveServer, calling: str) -> None:
    """The O-arm tells its volume's place in the equipment, (0028,9520); of the CBCT's volume a tracker knows it."""
    server.frame(lambda f: f["tool"] == "Needle")
    known = {"ImageToEquipmentMappingMatrix": T_ISOCENTRE_FROM_VOLUME.round(9).ravel().tolist()}
    time.sleep(1.0)  # poses from before the spin until after it
    slices = series(datetime.now(UTC), **(known if calling == "OARM" else {}))
    time.sleep(0.5)  # the device reconstructs before it sends
    before = metrics(server).get("volumes", 0.0)
    answers = store(server.ports["dicom"], slices, calling)
    assert {answer.Status for answer in answers} == {0}
    seen = set() if before == 0 else {"R1"}
    frame = server.frame(lambda f: f["proposal"] is not None and f["proposal"]["id"] not in seen)
    assert frame["proposal"]["verdict"] == "accept"
    described = server.ask("describe_registration", id=frame["proposal"]["id"])["result"]
    found = np.array(described["T_ct_from_ref"])
    T_ref_from_ct = np.append(TARGET_CT_MM, 1.0) @ T_REF_FROM_CT.T
    error = np.linalg.norm((found.reshape(4, 4) @ T_ref_from_ct)[:3] - TARGET_CT_MM)
    assert error < 1.0, f"the registration is off by {error:.2f} mm at the target"
    calibration_mm = np.sqrt(3.0) * (0.3 if calling == "OARM" else 2.0)
    assert calibration_mm < described["tre_mm"] < np.hypot(calibration_mm, 1.0), "the images' calibration is in it"
    until("the volume is on the metrics page", lambda: metrics(server)["volumes"] == before + 1)
    assert metrics(server)["objects_refused"] == 0


def test_an_x_ray_by_dicom_is_shown_with_its_place(server: LiveServer) -> None:
    time.sleep(1.0)
    taken = datetime.now(UTC).strftime("%Y%m%d%H%M%S.%f+0000")
    pixels = np.random.default_rng(5).integers(0, 4000, (20, 30))
    extra = {"ImagerPixelSpacing": [0.4, 0.3], "DistanceSourceToDetector": 1000.0, "AcquisitionDateTime": taken}
    store(server.ports["dicom"], [xa(pixels, **extra)], "CARM")
    facts: dict[str, Any] = {}

    def shown() -> bool:
        with contextlib.suppress(OSError):
            url = f"http://127.0.0.1:{server.ports['http']}/api/fluoro/latest"
            with urllib.request.urlopen(url, timeout=10) as page:
                facts.update(json.load(page))
        return bool(facts)

    until("the X-ray is shown", shown)
    T_ref_from_carm = np.linalg.inv(T_TRACKER_FROM_REF) @ T_TRACKER_FROM_GANTRY
    assert np.array(facts["T_ref_from_carm"]).reshape(4, 4) == pytest.approx(T_ref_from_carm, abs=1e-3)
    corner = np.array(facts["T_carm_from_index"]).reshape(4, 4) @ [0, 0, 0, 1]
    assert corner == pytest.approx([14.5 * 0.3, -9.5 * 0.4, 1000.0, 1.0])


def test_a_server_that_a_codec_brought_down_is_back_on_its_port_and_guidance_goes_on(server: LiveServer) -> None:
    """The process is killed, as a fault in a codec would."""
    assert echo(server.ports["dicom"])
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    named = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    (listener,) = (int(child) for child, line in named.items() if b"dicom_listener" in line)
    os.kill(listener, signal.SIGSEGV)

    def back() -> bool:
        with contextlib.suppress(OSError), raw(server.ports["dicom"]):
            return True
        return False

    until("the DICOM server is gone", lambda: not Path(f"/proc/{listener}/exe").exists())
    until("the DICOM server is back", back)
    assert echo(server.ports["dicom"])
    server.frame(lambda f: f["tool"] == "Needle" and f["sent_ns"] > time.monotonic_ns() - int(1e9))
    assert server.process.poll() is None


def test_no_dicom_library_is_loaded_by_a_server_that_has_it_off() -> None:
    words = [sys.executable, "-X", "importtime", "-c", "import navsrv.server.session, navsrv.server.loop"]
    loaded = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    assert "navsrv.server.dicom_intake" in loaded
    assert not [line for line in loaded.splitlines() if re.search(r"\b(pydicom|pynetdicom|highdicom|gdcm)\b", line)]
