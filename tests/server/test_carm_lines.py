"""A C-arm on a serial line with a table of pictures that bend: lines of one read, and the picture made straight."""

from __future__ import annotations

import asyncio
import os
import pty
import tty
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.carm import PHANTOM
from calibration.carm_table import CarmCalibration
from calibration.distortion import Bending, Distortion
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import CARM, Rigid
from navsrv.kernel.projection import ProjectionModel
from navsrv.kernel.registration import Verdict
from navsrv.server.calibration_files import write_carm
from navsrv.server.carm_lines import CarmLine
from navsrv.server.config_tables import EncodersConfig, ImagingConfig
from simulators.carm_links import encode_line
from simulators.carm_motion import Position, nominal_pose

SIZE = 128
ANGLES = np.radians([-10.0, 0.0, 10.0, 20.0, 30.0])
PINCUSHION = Distortion(Bending.INTENSIFIER, np.array([0.02, -0.01, 0.06, 0.0, 0.0, 0.03, 0.0, 0.0]), SIZE, SIZE)


def table() -> CarmCalibration:
    models = []
    for angle in ANGLES:
        pose = nominal_pose(Position(float(np.degrees(angle))), 530.0)
        T_carm_from_phantom = Rigid(CARM, PHANTOM, pose.rotation.T, -pose.rotation.T @ pose.translation_mm)
        models.append(ProjectionModel.flat(T_carm_from_phantom, (SIZE, SIZE), 1020.0, 2.3))
    none = np.full(len(ANGLES), np.nan)
    bendings = (PINCUSHION,) * len(ANGLES)
    return CarmCalibration(
        ANGLES, tuple(models), bendings, np.array([0.0, 0.0, -1.0]), none, none, Verdict.ACCEPT, "made up", ()
    )


def rings(points: Any) -> Any:
    """A smooth picture at points (..., 2) as (column, row)."""
    away = np.hypot(points[..., 0] - 70.0, points[..., 1] - 58.0)
    return 2000.0 + 800.0 * np.cos(away / 5.0)


def test_lines_of_one_read_are_all_placed_and_their_picture_is_made_straight(tmp_path: Path) -> None:
    write_carm(tmp_path / "carm.npz", table())
    master, slave = pty.openpty()
    tty.setraw(slave)
    encoders = EncodersConfig(os.ttyname(slave), table=str(tmp_path / "carm.npz"), pixel_mm=2.3)
    imaging = ImagingConfig("projection", "CarmImage", "CarmToStand", detector="ImageToCarm", encoders=encoders)
    given: list[tuple[str, int, Any]] = []

    async def story() -> CarmLine:
        line = CarmLine(
            "carm",
            imaging,
            lambda name, time_ns, matrix, unknown_ns: given.append((name, time_ns, matrix)),
            lambda name, time_ns, reason: None,
            lambda event, text: None,
        )
        line.start()
        os.write(master, b"".join(encode_line(n, Position(5.0 * n)) for n in range(4)))
        while len(given) < 8:
            await asyncio.sleep(0.01)
        line.stop()
        return line

    line = asyncio.run(asyncio.wait_for(story(), 20.0))
    os.close(master)
    os.close(slave)
    poses = [matrix for name, _, matrix in given if name == "CarmToStand"]
    for n, pose in enumerate(poses):
        assert pose == pytest.approx(nominal_pose(Position(5.0 * n), 530.0).matrix, abs=0.05)
    v, u = np.mgrid[0:SIZE, 0:SIZE]
    ideal = np.stack([u, v], axis=-1).astype(np.float64)
    # What the tube shows at a place is what the ideal picture has where that place came from: turned round by search.
    came_from = ideal.copy()
    for _ in range(30):
        came_from -= PINCUSHION.bent(came_from.reshape(-1, 2)).reshape(ideal.shape) - ideal
    seen = rings(came_from).astype(np.uint16)
    straight = line.straightened(seen, given[-1][1])
    middle = np.s_[20:-20, 20:-20]
    assert straight.dtype == np.uint16
    assert np.abs(seen[middle].astype(float) - rings(ideal)[middle]).max() > 200.0
    assert np.abs(straight[middle].astype(float) - rings(ideal)[middle]).max() < 25.0
    with pytest.raises(CalibrationError, match="no angle is known near its time"):
        line.straightened(seen, given[-1][1] + 5_000_000_000)
    with pytest.raises(CalibrationError, match="calibrated were 128 x 128"):
        line.straightened(seen[:64], given[-1][1])
