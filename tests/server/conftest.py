"""A small case of two balls whose distances anybody can compute, built through the command line."""

from pathlib import Path

import pytest
import vtk

from navsrv.server.cli import main

CONFIG = """
[server]
case = "{case}"
[trackers.main]
rate_hz = 60.0
latency_ms = 0.0
latency_sigma_ms = 0.0
[tools.Needle]
tracker = "main"
transform = "NeedleToTracker"
gauge = 11
length_mm = 100.0
[tools.Reference]
role = "reference"
tracker = "main"
transform = "ReferenceToTracker"
[registration.preset]
method = "bench"
tre_mm = 0.3
T_ct_from_ref = [[0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1]]
[recording]
folder = "{folder}"
"""

BALLS = {"Nerve": ((0.0, 0.0, 0.0), 10.0), "Vessel": ((60.0, 0.0, 0.0), 5.0)}


def write_ball(path: Path, centre: tuple[float, float, float], radius: float) -> None:
    ball = vtk.vtkSphereSource()
    ball.SetCenter(*centre)
    ball.SetRadius(radius)
    ball.SetThetaResolution(96)
    ball.SetPhiResolution(96)
    writer = vtk.vtkSTLWriter()
    writer.SetInputConnection(ball.GetOutputPort())
    writer.SetFileName(str(path))
    writer.Write()


@pytest.fixture(scope="session")
def balls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration of a server whose registration is preset, with recordings beside it."""
    folder = tmp_path_factory.mktemp("balls")
    words = []
    for name, (centre, radius) in BALLS.items():
        write_ball(folder / f"{name}.stl", centre, radius)
        words += ["--surface", f"{name}={folder / name}.stl:critical:LPS"]
    assert main(["case", "build", "--no-ct", *words, "-o", str(folder / "case"), "--name", "balls"]) == 0
    config = folder / "balls.toml"
    config.write_text(CONFIG.format(case=folder / "case", folder=folder))
    return config
