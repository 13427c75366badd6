"""The example rooms against the simulators: the real server, the real sockets, and where the needle truly is."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from navsrv.server.cli import main
from simulators.scenario.phantom import ENTRY, TARGET, phantom_case
from tests.server.live import LiveServer
from tests.simulators.processes import Simulator, running

pytestmark = pytest.mark.realtime
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SEED = 2
SCAN = ("--fidelity", "quick", "--voxel-mm", 1.2, "--diameter-mm", 150, "--height-mm", 110, "--noise-hu", 30)
"""A patient and a scan that the phantom's smooth lumps register from; others are refused, as they should be."""
TIP = np.add(TARGET, (1.0, 2.0, -1.5))
AXIS = np.array([0.12, -0.9, 0.42]) / np.linalg.norm([0.12, -0.9, 0.42])
NEEDLE = {"tip_ct_mm": TIP.tolist(), "axis_ct": AXIS.tolist()}


@pytest.fixture
def phantom(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the phantom's folder in a navsrv home of this session's own."""
    monkeypatch.setenv("NAVSRV_HOME", str(tmp_path_factory.getbasetemp() / "snapshots-home"))
    return phantom_case()


class Room:
    """One example's server and its simulators."""

    def __init__(self, example: str, case: Path, folder: Path, *overrides: str) -> None:
        self._stack = ExitStack()
        settings = [f'server.case="{case}"', "recording.on=false", *overrides]
        self.server = self._stack.enter_context(LiveServer(EXAMPLES / f"{example}.toml", folder, settings))
        self._case = ("--case", case, "--seed", SEED)

    def __enter__(self) -> "Room":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, name: str, *more: object) -> Simulator:
        """Start a simulator that pushes to the server; return it once it is ready."""
        address = f"127.0.0.1:{self.server.ports['devices']}"
        simulator = self._stack.enter_context(running(name, *self._case, "--server", address, *more))
        assert simulator.event()["ready"] is True
        simulator.wait_for("connected")
        return simulator

    def carm(self) -> Simulator:
        return self.start("carm", "--fidelity", "quick", "--orbit-deg-s", 2000)

    def accept(self) -> None:
        """Accept the registration that is proposed next."""
        frame = self.server.frame(lambda f: f["proposal"] is not None)
        assert frame["proposal"]["verdict"] != "refuse"
        assert self.server.ask("accept_registration", id=frame["proposal"]["id"])["ok"]

    def register(self, spinner: Simulator, **solid: Any) -> None:
        """Spin with the needle in the beam until a registration is proposed, and accept it.

        On a crowded machine the tracker may not be heard at the moment of a spin, which the server then rightly drops.
        """
        for _ in range(3):
            spinner.tell(do="spin", solids=[{"kind": "needle", **NEEDLE, **solid}])
            end = time.monotonic() + 40.0
            while time.monotonic() < end:
                if self.server.frame()["proposal"] is not None:
                    self.accept()
                    return
        raise AssertionError(self.server.errors())

    def snapshot(self, after_ns: int = 0, tool: str = "Needle") -> dict[str, Any]:
        """Return the next frame of a tool in SNAPSHOT whose image was taken after a time."""
        return self.server.frame(
            lambda f: f["tool"] == tool and f["state"] == "SNAPSHOT" and f["pose_time_ns"] > after_ns
        )


def shoot(carm: Simulator, *views: float | str, needle: Any = NEEDLE) -> int:
    """Take X-rays; return when the first was taken."""
    stamps = []
    for view in views:
        where = {"view": view} if isinstance(view, str) else {"orbit_deg": view}
        carm.tell(do="shoot", needle=needle, **where)
        stamps.append(int(carm.wait_for("exposed")["time_ns"]))
        carm.wait_for("image")
    return min(stamps)


def check(frame: dict[str, Any], tip: Any = TIP, limit_mm: float = 2.0) -> None:
    """What is shown is where the needle is, in words that nobody takes for live, with clearances and their doubt."""
    assert frame["state"] == "SNAPSHOT"
    assert frame["reason"].startswith("image at ")
    off = float(np.linalg.norm(np.array(frame["tip_ct_mm"]) - tip))
    assert off < limit_mm, f"tip off by {off:.2f} mm"
    assert np.degrees(np.arccos(np.clip(np.array(frame["axis_ct"]) @ AXIS, -1, 1))) < 2.0
    assert {row["part"] for row in frame["structures"]} == {"tip", "shaft"}
    assert all(row["lower_mm"] < row["distance_mm"] for row in frame["structures"])
    assert frame["trajectory"] is not None
    assert frame["age_ms"] > 0.0


def test_fluoroscopy_only(phantom: Path, tmp_path: Path) -> None:
    """Two X-rays register and show the needle; a needle that moved needs two new ones."""
    with Room("fluoroscopy", phantom, tmp_path) as room:
        server, carm = room.server, room.carm()
        assert "expected one that X-rays came from" in server.ask("register_xrays", seen="ap")["error"]
        shoot(carm, 65.0, "ap")
        deadline = time.monotonic() + 60.0
        while not (answer := server.ask("register_xrays", seen="ap"))["ok"]:  # the second is on its way
            assert time.monotonic() < deadline, answer
            time.sleep(0.2)
        room.accept()
        check(room.snapshot())
        assert server.ask("forget_needle", tool="Needle")["ok"]
        assert server.frame(lambda f: f["state"] == "LOST")["tip_ct_mm"] is None
        deeper = {**NEEDLE, "tip_ct_mm": (TIP + 8.0 * AXIS).tolist()}
        first = shoot(carm, 65.0, "ap", needle=deeper)
        check(room.snapshot(first - 1), TIP + 8.0 * AXIS)


def test_ct_with_fluoroscopy(phantom: Path, tmp_path: Path) -> None:
    """A CT series by DICOM registers and shows the needle; X-rays of the same room show it afterwards."""
    with Room("ct_fluoroscopy", phantom, tmp_path, "dicom.port=0", "dicom.series_quiet_s=0.5") as room:
        store = f"127.0.0.1:{room.server.ports['dicom']}"
        scanner = room.start("oarm", *SCAN, "--dicom", store, "--calling-aet", "CT")
        time.sleep(1.0)  # poses of the gantry from before the scan
        room.register(scanner)
        check(room.snapshot())
        deeper = {**NEEDLE, "tip_ct_mm": (TIP + 8.0 * AXIS).tolist()}
        first = shoot(room.carm(), 65.0, "ap", needle=deeper)
        check(room.snapshot(first - 1), TIP + 8.0 * AXIS)


def test_oarm_navigation_is_live_and_its_check_spin_is_not(phantom: Path, tmp_path: Path) -> None:
    with running("tracker", "--case", phantom, "--seed", SEED, "--port", 0) as tracker:
        port = tracker.event()["port"]
        with Room("oarm_navigation", phantom, tmp_path, f"trackers.main.port={port}") as room:
            spinner = room.start("oarm", *SCAN)
            time.sleep(1.0)
            room.register(spinner, radius_mm=1.5)
            live = room.server.frame(lambda f: f["tool"] == "Needle" and f["state"] == "OK")
            assert live["tip_ct_mm"] is not None
            check(room.snapshot(tool="Checked"))


def test_3d_segmentation_follows_the_patient_and_shows_the_needle_in_images(phantom: Path, tmp_path: Path) -> None:
    """The case comes of a label map, as from a segmentation program; the reference is tracked, the needle is not."""
    case = segmented(phantom, tmp_path)
    with running("tracker", "--case", case, "--seed", SEED, "--port", 0) as tracker:
        port = tracker.event()["port"]
        with Room("segmentation_3d", case, tmp_path, f"trackers.main.port={port}") as room:
            spinner = room.start("oarm", *SCAN)
            time.sleep(1.0)
            room.register(spinner)
            frame = room.snapshot()
            check(frame)
            assert {row["name"] for row in frame["structures"]} == {"Bone", "Root"}


def segmented(phantom: Path, folder: Path) -> Path:
    """Build a case from the phantom's CT and a label map of it: all dense bone, and a ball beside the plan."""
    ct = sitk.ReadImage(str(phantom / "ct.mha"))
    hu = sitk.GetArrayFromImage(ct)
    k, j, i = np.indices(hu.shape)
    x, y, z = (ct.GetOrigin()[a] + ct.GetSpacing()[a] * n for a, n in enumerate((i, j, k)))
    labels = (hu > 300).astype(np.uint8)
    labels[(x - 14.0) ** 2 + (y - 26.0) ** 2 + z**2 < 36.0] = 2
    image = sitk.GetImageFromArray(labels)
    image.CopyInformation(ct)
    sitk.WriteImage(image, str(folder / "labels.nii.gz"))
    roles = folder / "roles.toml"
    roles.write_text(
        f"[structures.Bone]\nkind = 'bone'\nlabel = 1\n[structures.Root]\nkind = 'critical'\nlabel = 2\n"
        f"[plan]\nentry_ct_mm = {list(ENTRY)}\ntarget_ct_mm = {list(TARGET)}\ncorridor_mm = 3.0\n"
    )
    words = ["--ct", str(phantom / "ct.mha"), "--labels", str(folder / "labels.nii.gz"), "--roles", str(roles)]
    assert main(["case", "build", *words, "-o", str(folder / "case"), "--name", "segmented"]) == 0
    return folder / "case"
