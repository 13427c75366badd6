"""C-arms that a tracker sees, and C-arms with encoders that bend: where their X-rays are, and where they truly are."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from calibration.bead_phantom import BeadMatch, BeadPhantom, NominalArm
from calibration.beads import Beads
from calibration.carm import solve_view
from calibration.carm_table import calibrate_table
from calibration.distortion import Bending
from navsrv.kernel.frames import CT, Array, Rigid
from navsrv.kernel.projection import ProjectionModel
from navsrv.server.calibration_files import write_carm
from simulators.carm import Stand
from simulators.carm_links import T_CARM_FROM_BODY
from simulators.carm_motion import STAND, Flex, Position, bent, view_of
from simulators.scenario.phantom import TARGET, phantom_case
from simulators.world.imaging import Detector
from simulators.world.scene import Scene
from tests.calibration.shadows import helix
from tests.server.live import LiveServer, metric
from tests.simulators.processes import Simulator, running

pytestmark = pytest.mark.realtime
SEED = 3
ABOUT = np.array(TARGET) + np.vstack([np.zeros(3), 40.0 * np.eye(3)])
"""Points (4, 3) of the CT about the target, mm."""
PER_MM_PX = 1020.0 / 530.0 / 0.58
"""Pixels for a millimetre at the isocentre."""

TRACKED = """
[server]
case = "{case}"
[trackers.main]
rate_hz = 30.0
port = {port}
latency_ms = 0.0
latency_sigma_ms = 0.0
noise_mm = 0.06
noise_deg = 0.02
[tools.Reference]
role = "reference"
tracker = "main"
transform = "ReferenceToTracker"
[tools.Needle]
images = ["carm", "xa"]
gauge = 17
[dicom]
port = 0
[imaging.carm]
kind = "projection"
image = "CarmImage"
pose = "CarmBodyToTracker"
tracker = "main"
T_pose_from_image = {offset}
T_carm_from_image = {detector}
[imaging.xa]
kind = "projection"
image = "CARM"
connect = "dicom"
pose = "CarmBodyToTracker"
tracker = "main"
T_pose_from_image = {offset}
T_carm_from_image = {mirrored}
[recording]
on = false
"""

ENCODED = """
[server]
case = "{case}"
[tools.Needle]
images = ["carm"]
gauge = 17
[imaging.carm]
kind = "projection"
image = "CarmImage"
pose = "CarmToStand"
detector = "ImageToCarm"
[imaging.carm.encoders]
device = "{terminal}"
table = "{table}"
pixel_mm = 0.58
[registration]
still_patient = true
[recording]
on = false
"""


@pytest.fixture
def phantom(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the phantom's folder in a navsrv home of this session's own."""
    monkeypatch.setenv("NAVSRV_HOME", str(tmp_path_factory.getbasetemp() / "snapshots-home"))
    return phantom_case()


def carm(phantom: Path, server_port: int, *more: object) -> Any:
    address = f"127.0.0.1:{server_port}"
    options = ("--case", phantom, "--seed", SEED, "--fidelity", "quick", "--size", 512, "--orbit-deg-s", 400)
    return running("carm", *options, "--server", address, *more)


def shot(simulator: Simulator, server: LiveServer, source: str, orbit_deg: float) -> tuple[Any, Any]:
    """Take an X-ray; return the truth about it and the server's facts of it."""
    simulator.tell(do="move", orbit_deg=orbit_deg)
    simulator.wait_for("moved")
    time.sleep(0.3)  # as staff do: encoders have no stamps, and a pose is as old as its receipt
    simulator.tell(do="shoot", orbit_deg=orbit_deg)
    truth = simulator.wait_for("exposed")
    end = time.monotonic() + 30.0
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(_page(server), timeout=10) as page:
            facts = json.load(page)
            # DICOM's seconds have six places.
            if facts["source"] == source and abs(int(facts["time_ns"]) - int(truth["time_ns"])) < 2000:
                return truth, facts
        time.sleep(0.05)
    raise AssertionError(server.errors())


def _page(server: LiveServer) -> str:
    return f"http://127.0.0.1:{server.ports['http']}/api/fluoro/latest"


def off_mm(truth: dict[str, Any], facts: dict[str, Any], T_ct_from_ref: Rigid) -> float:
    """Return how far rays miss points about the target, rms in mm there, by the true projection and the server's."""
    rays = (np.reshape(facts["T_carm_from_index"], (4, 4)))[:3][:, [0, 1, 3]]
    T_carm_from_ref = np.linalg.inv(np.reshape(facts["T_ref_from_carm"], (4, 4)))
    in_carm = (T_carm_from_ref @ T_ct_from_ref.inverse().matrix @ np.column_stack([ABOUT, np.ones(4)]).T)[:3]
    mine = np.linalg.solve(rays, in_carm)
    true = np.array(truth["projection_ct"]) @ np.column_stack([ABOUT, np.ones(4)]).T
    seen, where = mine[:2] / mine[2], true[:2] / true[2]
    if facts["source"] == "xa":
        seen[0] = 511.0 - seen[0]
    off = seen - where
    return float(np.sqrt((off**2).sum(axis=0).mean())) / PER_MM_PX


def test_a_tracked_carm_places_its_xrays_by_network_and_by_dicom(phantom: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    detector = Detector()
    # DICOM has the picture as seen from the detector: the columns run the other way.
    mirrored = np.diag([-1.0, 1.0, -1.0, 1.0])
    u, v = detector.principal_px
    mirrored[:3, 3] = (511.0 - u) * detector.pixel_mm, -v * detector.pixel_mm, detector.sdd_mm
    values = {
        "case": phantom,
        "port": port,
        "offset": T_CARM_FROM_BODY.inverse().matrix.tolist(),
        "detector": detector.T_carm_from_image.matrix.tolist(),
        "mirrored": mirrored.tolist(),
    }
    config = tmp_path / "tracked.toml"
    config.write_text(TRACKED.format(**values))
    T_ct_from_ref = Scene.from_seed(SEED, np.array(TARGET)).T_ct_from_ref
    tracked = ("--tracked", port, "--breathing-mm", 6)
    with LiveServer(config, tmp_path) as server:
        with seen_carm(phantom, server, *tracked) as simulator:
            # 0.3 mrad of the body's turning over a metre to the patient, who breathes.
            offs = [off_mm(*shot(simulator, server, "carm", orbit), T_ct_from_ref) for orbit in (0.0, 35.0)]
        with seen_carm(phantom, server, *tracked, "--dicom", f"127.0.0.1:{server.ports['dicom']}") as simulator:
            offs.append(off_mm(*shot(simulator, server, "xa", 80.0), T_ct_from_ref))
        assert max(offs) < 1.2, offs
        assert images(server, "carm", "accepted") == 3
        assert images(server, "xa", "accepted") == 1
        # Without its tracker the same C-arm's image has no pose.
        with carm(phantom, server.ports["devices"], "--encoders") as blind:
            blind.event()
            blind.wait_for("connected")
            blind.tell(do="shoot", orbit_deg=0.0)
            until(lambda: images(server, "carm", "without_pose") == 1)


@contextlib.contextmanager
def seen_carm(phantom: Path, server: LiveServer, *options: object) -> Iterator[Simulator]:
    """A C-arm that the server's tracker has seen for a moment."""
    with carm(phantom, server.ports["devices"], *options) as simulator:
        assert simulator.event()["T_pose_from_image"] == T_CARM_FROM_BODY.inverse().matrix.tolist()
        before = metric(server, "navsrv_source_samples", 'source="main",what="accepted"')
        until(lambda: metric(server, "navsrv_source_samples", 'source="main",what="accepted"') > before + 20)
        yield simulator


def images(server: LiveServer, source: str, what: str) -> float:
    """Return a count of a source's images."""
    return metric(server, "navsrv_source_samples", f'source="images {source}",what="{what}"')


def until(fits: Callable[[], bool]) -> None:
    """Wait until something holds."""
    end = time.monotonic() + 30.0
    while not fits():
        assert time.monotonic() < end
        time.sleep(0.1)


def shadows(truth: ProjectionModel, beads: Array, rng: np.random.Generator) -> tuple[Beads, BeadMatch]:
    """Return a phantom's shadows as a detector of 0.05 px error would find them, and whose they are."""
    every = np.arange(len(beads))
    seen = truth.project(beads) + rng.normal(0.0, 0.05, (len(beads), 2))
    found = Beads(seen, np.full(len(beads), 0.05), np.full(len(beads), 4.0), np.full(len(beads), 10.0))
    pose, k = truth.T_carm_from_object, truth.intrinsics
    start = np.concatenate(
        [Rotation.from_matrix(pose.rotation).as_rotvec(), pose.translation_mm, [k[0, 0], k[0, 2], k[1, 2], 0.0]]
    )
    return found, BeadMatch(every, every, start, 0.1, 1.0)


def test_an_encoded_carm_that_bends_places_its_xrays_by_its_table(phantom: Path, tmp_path: Path) -> None:
    """The phantom lay at the isocentre, along the stand's axes, so that the table's frame is the stand's."""
    beads, diameters = helix()
    rng, detector = np.random.default_rng(5), Detector()
    arm = NominalArm(detector.sdd_mm, detector.pixel_mm, detector.columns, detector.rows)
    angles, views = np.arange(-15.0, 106.0, 10.0), []
    for angle in angles:
        true = view_of(bent(Position(float(angle)), detector, Flex(), rng), Rigid.identity(CT, STAND))
        found, match = shadows(true, beads, rng)
        views.append(solve_view(found, match, BeadPhantom("helix", beads, diameters, 0.0), arm, bending=Bending.NONE))
    table = calibrate_table(np.radians(angles), views)
    write_carm(tmp_path / "carm.npz", table)
    T_ct_from_stand = Stand.from_seed(SEED, np.array(TARGET)).T_ct_from_stand
    nominal = view_of(bent(Position(37.0), detector, Flex()), Rigid.identity(CT, STAND))
    assert np.linalg.norm(nominal.source_mm - table.projection(np.radians(37.0)).source_mm) < 1.0
    terminal, config = tmp_path / "encoders", tmp_path / "encoded.toml"
    config.write_text(ENCODED.format(case=phantom, terminal=terminal, table=tmp_path / "carm.npz"))
    options = ("--encoders", "--flex", 1, "--encoder-deg", 0.02)
    with LiveServer(config, tmp_path) as server, carm(phantom, server.ports["devices"], *options) as simulator:
        terminal.symlink_to(simulator.event()["pty"])
        until(lambda: metric(server, "navsrv_source_samples", 'source="encoders carm",what="accepted"') > 20)
        offs = [off_mm(*shot(simulator, server, "carm", orbit), T_ct_from_stand) for orbit in (0.0, 37.0, 82.0)]
        # Stated: 0.3 mm each axis and 0.05 deg about the patient.
        assert max(offs) < 2.0 * 0.3 * 2**0.5, offs
        simulator.tell(do="shoot", orbit_deg=150.0)  # where the table says nothing
        until(lambda: images(server, "carm", "without_pose") == 1)
        assert metric(server, "navsrv_source_samples", 'source="encoders carm",what="refused"') > 0
