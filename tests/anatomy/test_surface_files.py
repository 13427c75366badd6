"""Surface files carry the mesh that went in, in the space they say."""

from pathlib import Path

import numpy as np
import pytest

from navsrv.anatomy.mesh import Mesh
from navsrv.anatomy.surface_files import read_surface, write_surface
from navsrv.anatomy.surfaces import signed_volume_mm3
from navsrv.kernel.errors import InputError

CORNERS = np.array([[0, 0, 0], [30.1, 0, 0], [0, 20.2, 0], [0, 0, 10.3]]) + np.array([101.123456789, -50.5, 7.7])
TETRAHEDRON = Mesh(CORNERS, np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]]))


def by_place(mesh: Mesh) -> np.ndarray:
    order = np.lexsort(mesh.vertices_mm.round(1).T)
    return mesh.vertices_mm[order]


@pytest.mark.parametrize("suffix", ["stl", "ply", "obj", "vtp"])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"part.{suffix}"
    write_surface(TETRAHEDRON, path, "näme\nof a structure")
    again = read_surface(path, "LPS")
    # VTK's readers give float32, whatever the file holds.
    assert by_place(again) == pytest.approx(by_place(TETRAHEDRON), abs=2e-5)
    assert signed_volume_mm3(again) == pytest.approx(30.1 * 20.2 * 10.3 / 6, rel=1e-5)
    assert b"SPACE=LPS" in path.read_bytes()


def test_ply_and_obj_hold_every_digit(tmp_path: Path) -> None:
    write_surface(TETRAHEDRON, tmp_path / "a.ply", "")
    body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")[1]
    assert np.array_equal(np.frombuffer(body, "<f8", 12).reshape(4, 3), TETRAHEDRON.vertices_mm)
    write_surface(TETRAHEDRON, tmp_path / "a.obj", "")
    rows = [line.split()[1:] for line in (tmp_path / "a.obj").read_text().splitlines() if line.startswith("v ")]
    assert np.array_equal(np.array(rows, float), TETRAHEDRON.vertices_mm)


def test_a_ras_file_is_turned_to_lps_and_stays_outward(tmp_path: Path) -> None:
    path = tmp_path / "ras.obj"
    write_surface(Mesh(CORNERS * (-1, -1, 1), TETRAHEDRON.triangles), path, "")
    path.write_text(path.read_text().replace("SPACE=LPS", "no space said"))
    again = read_surface(path, "RAS")
    assert by_place(again) == pytest.approx(by_place(TETRAHEDRON), abs=2e-5)
    assert signed_volume_mm3(again) > 0


def test_a_surface_inside_out_is_turned(tmp_path: Path) -> None:
    path = tmp_path / "inside_out.ply"
    write_surface(Mesh(CORNERS, TETRAHEDRON.triangles[:, ::-1]), path, "")
    assert signed_volume_mm3(read_surface(path, "LPS")) > 0


def test_a_header_that_names_the_other_space_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part.stl"
    write_surface(TETRAHEDRON, path, "")
    with pytest.raises(InputError, match="header says SPACE=LPS, but RAS"):
        read_surface(path, "RAS")
