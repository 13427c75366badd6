"""A real pelvis phantom through the running server: real CT, real optical tracker, independent closest points."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import vtk_to_numpy

from tests.server.live import LiveServer, Tracker

pytestmark = [pytest.mark.realtime, pytest.mark.data]

ORIGIN_MM = np.array([-222.543, -361.543, 11.5])
"""Of the CT's first voxel; the fiducials' file gives voxel index times spacing."""
CONFIG = """
[server]
case = "{case}"
[trackers.main]
rate_hz = 60.0
[tools.Needle]
tracker = "main"
transform = "NeedleToTracker"
diameter_mm = 2.0
length_mm = 100.0
[tools.Reference]
role = "reference"
tracker = "main"
transform = "ReferenceToTracker"
[recording]
folder = "{folder}"
"""

Array = NDArray[np.float64]


def read_points(path: Path) -> Array:
    return np.loadtxt(path).reshape(-1, 3)


def independent_distances(surface: Path, points: Array) -> Array:
    """Unsigned distances by VTK's cell locator on the exported surface, which is not navsrv's search."""
    reader = vtk.vtkPLYReader()
    reader.SetFileName(str(surface))
    reader.Update()
    locator = vtk.vtkStaticCellLocator()
    locator.SetDataSet(reader.GetOutput())
    locator.BuildLocator()
    closest, cell, part, squared = [0.0] * 3, vtk.reference(0), vtk.reference(0), vtk.reference(0.0)
    found = []
    for point in points:
        locator.FindClosestPoint(point, closest, cell, part, squared)
        found.append(float(np.sqrt(float(squared))))
    return np.array(found)


def independent_isosurface_distances(ct: Path, points: Array) -> Array:
    """Unsigned distances to an isosurface that VTK makes from the file itself."""
    image = sitk.ReadImage(str(ct))
    padded = sitk.ConstantPad(image, (1, 1, 1), (1, 1, 1), -1024)
    grid = vtk.vtkImageData()
    grid.SetDimensions(padded.GetSize())
    grid.SetSpacing(padded.GetSpacing())
    grid.SetOrigin(padded.GetOrigin())
    values = sitk.GetArrayFromImage(padded).astype(np.float32).ravel()
    from vtk.util.numpy_support import numpy_to_vtk

    grid.GetPointData().SetScalars(numpy_to_vtk(values, deep=True))
    surface = vtk.vtkFlyingEdges3D()
    surface.SetInputData(grid)
    surface.SetValue(0, -950.0)
    surface.Update()
    distance = vtk.vtkImplicitPolyDataDistance()
    distance.SetInput(surface.GetOutput())
    assert len(vtk_to_numpy(surface.GetOutput().GetPoints().GetData())) > 10_000
    return np.abs([distance.EvaluateFunction(p) for p in points])


@pytest.fixture(scope="module")
def phantom(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("phantom")
    source = data_dir / "pelvis_phantom"
    run = [sys.executable, "-m", "navsrv.server.cli", "case"]
    ct = source / "pelvis_ct_crop_1.5mm_compact.nii.gz"
    build = [*run, "build", "--ct", ct, "--threshold", "Pelvis=-950:bone", "-o", folder / "case"]
    subprocess.run(build, check=True, capture_output=True)
    subprocess.run(
        [*run, "export", folder / "case", folder / "meshes", "--format", "ply"], check=True, capture_output=True
    )
    return {
        "folder": folder,
        "ct": ct,
        "surface": next((folder / "meshes").glob("*.ply")),
        "fiducials_ct": read_points(source / "pelvis_nii_ct_fiducial_markers.txt") + ORIGIN_MM,
        "fiducials_tracker": read_points(source / "Tracker_Fiducial_Markers.txt"),
        "scan": read_points(source / "Tracker_Surface_Scan_odd_rows.txt"),
    }


def translation(point_mm: Array) -> Array:
    pose = np.eye(4)
    pose[:3, 3] = point_mm
    return pose


def touch(server: LiveServer, tracker: Tracker, phantom: dict[str, Any], shift_mm: Array) -> dict[str, Any]:
    """Register by touching the fiducials with the tracked tip; return the server's answer."""
    for i, (touched, point) in enumerate(zip(phantom["fiducials_tracker"], phantom["fiducials_ct"], strict=True)):
        server.frame_of(tracker.pose(translation(touched)))
        # The tracker streams on: the landmark is taken from what is fresh at the command.
        tracker.pose(translation(touched))
        answer = server.ask("collect_landmark", tool="Needle", name=f"F{i}", point_ct_mm=(point + shift_mm).tolist())
        assert answer["ok"], answer
    answer = server.ask("register_landmarks")
    assert answer["ok"], answer
    result: dict[str, Any] = answer["result"]
    accepted = server.ask("accept_registration", id=result["id"])
    assert accepted["ok"], accepted
    return result


def scanned(server: LiveServer, tracker: Tracker, phantom: dict[str, Any]) -> tuple[Array, Array]:
    """Send every tracked surface point as a tool pose; return tips in CT (N, 3) and tip distances (N,) as answered."""
    tips, distances = [], []
    for point in phantom["scan"]:
        frame = server.frame_of(tracker.pose(translation(point)))
        assert frame["state"] == "OK", frame["reason"]
        tips.append(frame["tip_ct_mm"])
        rows = [row for row in frame["structures"] if row["part"] == "tip"]
        distances.append(rows[0]["distance_mm"])
    return np.array(tips), np.array(distances)


def median_is_plausible(distances: Array) -> bool:
    """The surface was touched: a registration that is right leaves 0.9 +- 0.15 mm (median, unsigned)."""
    return abs(float(np.median(np.abs(distances))) - 0.9) <= 0.15


@pytest.fixture(scope="module")
def config(phantom: dict[str, Any]) -> Path:
    path: Path = phantom["folder"] / "phantom.toml"
    path.write_text(CONFIG.format(case=phantom["folder"] / "case", folder=phantom["folder"]))
    return path


def test_the_tracked_surface_lies_where_an_independent_computation_says(phantom: dict[str, Any], config: Path) -> None:
    with Tracker() as tracker, LiveServer(config, phantom["folder"], [f"trackers.main.port={tracker.port}"]) as server:
        tracker.accept()
        result = touch(server, tracker, phantom, np.zeros(3))
        assert result["fre_mm"] == pytest.approx(0.651, abs=0.001)
        tips, distances = scanned(server, tracker, phantom)
    assert len(distances) == 1000
    on_exported = independent_distances(phantom["surface"], tips)
    assert np.abs(np.abs(distances) - on_exported).max() < 0.05
    from_the_file = independent_isosurface_distances(phantom["ct"], tips)
    assert np.abs(np.abs(distances) - from_the_file).max() < 0.05
    assert median_is_plausible(distances)
    worst = np.abs(np.abs(distances) - on_exported).max(), np.abs(np.abs(distances) - from_the_file).max()
    unsigned, signed = np.median(np.abs(distances)), np.median(distances)
    print(f"\nFRE rms {result['fre_mm']:.3f} mm; {len(distances)} scan points:")
    print(f"median {unsigned:.3f} mm unsigned, {signed:.3f} mm signed; largest difference from an independent")
    print(f"closest point {worst[0]:.5f} mm (exported surface), {worst[1]:.5f} mm (made from the file by VTK)")


def test_a_registration_shifted_by_3_mm_is_caught(phantom: dict[str, Any], config: Path) -> None:
    """The same run, with the CT fiducials shifted: FRE cannot see it, the touched surface must."""
    with Tracker() as tracker, LiveServer(config, phantom["folder"], [f"trackers.main.port={tracker.port}"]) as server:
        tracker.accept()
        result = touch(server, tracker, phantom, np.array([0.0, 3.0, 0.0]))
        assert result["fre_mm"] == pytest.approx(0.651, abs=0.001)
        _, distances = scanned(server, tracker, phantom)
    assert not median_is_plausible(distances)
