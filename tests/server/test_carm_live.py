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
from navsrv.wire.openigtlink import Image, Message, encode, timestamp_from_ns
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

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def phantom(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the phantom's folder in a navsrv home of this session's own."""
    monkeypatch.setenv("NAVSRV_HOME", str(tmp_path_factory.getbasetemp() / "snapshots-home"))
    return phantom_case()


def carm(phantom: Path, server_port: int, *more: object) -> Any:
    address = f"127.0.0.1:{server_port}"
    options = ("--case", phantom, "--seed", SEED, "--fidelity", "quick", "--size", 512, "--orbit-deg-s", 400)
    return running("carm", *options, "--server", address, *more)


def shot(simulator: Simulator, orbit_deg: float) -> dict[str, Any]:
    """Take an X-ray at rest; return the truth about it."""
    simulator.tell(do="move", orbit_deg=orbit_deg)
    simulator.wait_for("moved")
    time.sleep(0.3)  # as staff do: encoders have no stamps, and a pose is as old as its receipt
    simulator.tell(do="shoot", orbit_deg=orbit_deg)
    return simulator.wait_for("exposed")


def facts_of(server: LiveServer, source: str, truth: dict[str, Any]) -> dict[str, Any]:
    """Return the server's facts of an X-ray."""
    end = time.monotonic() + 30.0
    page = f"http://127.0.0.1:{server.ports['http']}/api/fluoro/latest?source={source}"
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(page, timeout=10) as told:
            facts: dict[str, Any] = json.load(told)
            # DICOM's seconds have six places.
            if abs(int(facts["time_ns"]) - int(truth["time_ns"])) < 2000:
                return facts
        time.sleep(0.05)
    raise AssertionError(server.errors())


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
    settings = {
        "server.case": f'"{phantom}"',
        "recording.on": "false",
        "trackers.main.port": port,
        "tools.Needle.images": ["carm", "xa"],
        "dicom.port": 0,
        "imaging.xa.kind": "projection",
        "imaging.xa.connect": "dicom",
        "imaging.xa.image": "CARM",
        "imaging.xa.pose": "CarmBodyToTracker",
        "imaging.xa.tracker": "main",
        "imaging.xa.T_pose_from_image": T_CARM_FROM_BODY.inverse().matrix.tolist(),
        "imaging.xa.T_carm_from_image": mirrored.tolist(),
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    T_ct_from_ref = Scene.from_seed(SEED, np.array(TARGET)).T_ct_from_ref
    tracked = ("--tracked", port, "--breathing-mm", 6)
    with LiveServer(EXAMPLES / "fluoroscopy_tracked.toml", tmp_path, overrides) as server:
        dicom = ("--dicom", f"127.0.0.1:{server.ports['dicom']}")
        with seen_carm(phantom, server, *tracked, *dicom) as simulator:
            truth = shot(simulator, 35.0)
            # 0.3 mrad of the body's turning over a metre to the patient, who breathes.
            offs = [off_mm(truth, facts_of(server, source, truth), T_ct_from_ref) for source in ("carm", "xa")]
        assert max(offs) < 1.2, offs
        # Without its tracker an image has no pose.
        with socket.create_connection(("127.0.0.1", server.ports["devices"])) as device:
            black = Image(np.zeros((1, 64, 64), dtype=np.uint16), np.eye(4), "LPS")
            device.sendall(encode(Message("CarmImage", timestamp_from_ns(time.time_ns()), black, 2)))
            until(lambda: images(server, "carm", "without_pose") == 1)
        assert (images(server, "carm", "accepted"), images(server, "xa", "accepted")) == (1, 1)


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
    terminal = tmp_path / "encoders"
    overrides = [f'server.case="{phantom}"', "recording.on=false", f'imaging.carm.encoders.device="{terminal}"']
    overrides.append(f'imaging.carm.encoders.table="{tmp_path / "carm.npz"}"')
    options = ("--encoders", "--flex", 1, "--encoder-deg", 0.02)
    example = EXAMPLES / "fluoroscopy_encoded.toml"
    with (
        LiveServer(example, tmp_path, overrides) as server,
        carm(phantom, server.ports["devices"], *options) as simulator,
    ):
        terminal.symlink_to(simulator.event()["pty"])
        until(lambda: metric(server, "navsrv_source_samples", 'source="encoders carm",what="accepted"') > 20)
        offs = []
        for orbit in (0.0, 37.0, 82.0):
            truth = shot(simulator, orbit)
            offs.append(off_mm(truth, facts_of(server, "carm", truth), T_ct_from_stand))
        # Stated: 0.3 mm each axis and 0.05 deg about the patient.
        assert max(offs) < 2.0 * 0.3 * 2**0.5, offs
        simulator.tell(do="shoot", orbit_deg=150.0)  # where the table says nothing
        until(lambda: images(server, "carm", "without_pose") == 1)
        assert metric(server, "navsrv_source_samples", 'source="encoders carm",what="refused"') > 0
