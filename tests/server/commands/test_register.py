"""``navsrv register`` as a user meets it: a result that can be read, or one line that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from navsrv.server.cli import main

POINTS = np.array([[0.0, 0.0, 0.0], [90.0, 10.0, 5.0], [30.0, 110.0, -10.0], [70.0, 60.0, 40.0]])


def write(path: Path, points: object, header: str = "") -> str:
    np.savetxt(path, np.asarray(points), delimiter=",", header=header, comments="")
    return str(path)


def test_landmarks_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rotation = Rotation.from_rotvec([0.3, -0.8, 1.9]).as_matrix()
    touched = write(tmp_path / "touched.csv", (POINTS - (5, 6, 7)) @ rotation, header="x,y,z")
    planned = write(tmp_path / "planned.csv", POINTS)
    assert main(["register", "landmarks", touched, planned, "--target", "10", "20", "-30", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["verdict"] == "accept"
    assert np.allclose(np.array(record["matrix"])[:3, :3], rotation, atol=1e-9)
    assert np.allclose(np.array(record["matrix"])[:3, 3], (5, 6, 7), atol=1e-6)
    assert record["target_ct_mm"] == [10.0, 20.0, -30.0]


def test_a_refused_registration_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touched = write(tmp_path / "touched.csv", POINTS * (-1, 1, 1))
    planned = write(tmp_path / "planned.csv", POINTS)
    assert main(["register", "landmarks", touched, planned, "--target", "0", "0", "0"]) == 1
    assert capsys.readouterr().out.startswith("refuse: a mirror image")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("1,2,3\n4,5\n", "line 2"),
        ("1,2,3\n4,nan,6\n", "line 2"),
        ("", "holds no points"),
        ("0,0,0\n1000,0,0\n2000,0,0\n3000,0,0\n", "lies on a line"),
        ("0,0,0\n10,0,0\n0,20,0\n", "3 points"),
    ],
)
def test_bad_points_are_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, complaint: str
) -> None:
    touched = tmp_path / "touched.csv"
    touched.write_text(content)
    planned = write(tmp_path / "planned.csv", POINTS)
    assert main(["register", "landmarks", str(touched), planned, "--target", "0", "0", "0"]) == 2
    said = capsys.readouterr()
    assert complaint in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_volume_that_cannot_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torn = tmp_path / "torn.mha"
    torn.write_bytes(b"ObjectType = Image\nNDims = 3\n")
    for path, complaint in ((tmp_path / "none.mha", "no such file"), (torn, "cannot be read")):
        assert main(["register", "cbct", "--case", str(tmp_path), "--volume", str(path)]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert complaint in said[-1]
