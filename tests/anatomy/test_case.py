"""A case is believed only when every field and every file is what it was built with."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navsrv.anatomy.build import write_case
from navsrv.anatomy.case import Case, Kind
from navsrv.kernel.errors import InputError
from tests.anatomy.cases import NERVE, small_ct, small_draft

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_case(small_draft(), tmp_path / "small").folder


def change(folder: Path, edit: Change) -> None:
    path = folder / "case.json"
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


def test_a_case_gives_back_what_it_was_built_from(folder: Path) -> None:
    case, draft = Case.load(folder), small_draft()
    case.verify()
    assert [(s.name, s.kind) for s in case.structures] == [("Sacrum", Kind.BONE), ("S1 root", Kind.CRITICAL)]
    root = case.structure("S1 root")
    assert (root.label, root.follows, root.sigma_mm, root.caution_mm, root.warning_mm) == (7, "Sacrum", 0.4, 8.0, 4.0)
    mesh = case.mesh("S1 root")
    assert np.array_equal(mesh.vertices_mm, draft.structures[1].mesh.vertices_mm)
    assert np.array_equal(mesh.triangles, draft.structures[1].mesh.triangles)
    ct = case.ct()
    assert np.array_equal(ct.voxels, small_ct().voxels)
    assert ct.origin_mm.tolist() == small_ct().origin_mm.tolist()
    assert ct.spacing_mm.tolist() == small_ct().spacing_mm.tolist()
    assert set(np.unique(case.labels().voxels)) == {0, 3, NERVE}
    assert case.plan is not None
    assert case.plan.target_ct_mm.tolist() == [-2.0, 52.0, -280.0]
    assert case.primitives() == {"balls": [1.5]}
    assert case.provenance["sources"] == [{"file": "made up"}]


def test_every_file_of_the_folder_is_in_the_hash_table(folder: Path) -> None:
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files == {*Case.load(folder).files, "case.json"}


def test_voxels_and_vertices_cannot_be_written(folder: Path) -> None:
    case = Case.load(folder)
    with pytest.raises(ValueError, match="read-only"):
        case.ct().voxels[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        case.mesh("Sacrum").vertices_mm[0, 0] = 1


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda r: r.update(version=2), "version: expected 1, which this software reads, found 2"),
        (lambda r: r.update(format="other"), "format: expected 'navsrv-case', found 'other'"),
        (lambda r: r.update(frame="RAS"), "frame: expected 'LPS', found 'RAS'"),
        (lambda r: r.update(units="m"), "units: expected 'mm'"),
        (lambda r: r.pop("name"), "name: expected a text, found nothing"),
        (lambda r: r.update(structures=[]), "structures: expected a list with at least one structure"),
        (lambda r: r["structures"][1].update(kind="nerve"), "structures[1].kind: expected one of critical, target"),
        (lambda r: r["structures"][1].update(name="Sacrum"), "structures[1].name: 'Sacrum' is there twice"),
        (lambda r: r["structures"][1].update(follows="L5"), "structures[1].follows: 'L5' is not another structure"),
        (lambda r: r["structures"][0].update(sigma_mm=-1), "structures[0].sigma_mm: expected a finite number"),
        (lambda r: r["structures"][0].update(sigma_mm=float("nan")), "structures[0].sigma_mm: expected a finite"),
        (lambda r: r["structures"][0].update(caution_mm=0), "structures[0].caution_mm: expected a number above 0"),
        (lambda r: r["structures"][0].update(triangles="many"), "structures[0].triangles: expected a whole number"),
        (lambda r: r["structures"][0].update(sha256="abc"), "structures[0].sha256: expected 64 hexadecimal digits"),
        (lambda r: r["structures"][0].update(surface="../x.npz"), "expected a path inside the case folder"),
        (lambda r: r["ct"].update(file="/etc/passwd"), "ct.file: expected a path inside the case folder"),
        (lambda r: r["plan"].update(target_ct_mm=[1, 2]), "plan.target_ct_mm: expected three numbers, LPS mm"),
        (lambda r: r["plan"].update(target_ct_mm=r["plan"]["entry_ct_mm"]), "a point other than the entry"),
        (lambda r: r["plan"].update(corridor_mm=0), "plan.corridor_mm: expected a number above 0"),
        (lambda r: r.update(structures={}), "structures: expected a list"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_right(folder: Path, edit: Change, text: str) -> None:
    change(folder, edit)
    with pytest.raises(InputError) as caught:
        Case.load(folder)
    assert text in str(caught.value)
    assert str(folder / "case.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_torn_json_is_one_line(folder: Path) -> None:
    path = folder / "case.json"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"case\.json: not valid JSON") as caught:
        Case.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ct.mha", "labels.mha", "primitives.json", "surfaces/s1_root.npz"])
def test_a_missing_file_is_named_at_load(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match="missing") as caught:
        Case.load(folder)
    assert str(folder / name) in str(caught.value)


READERS: dict[str, Callable[[Case], Any]] = {
    "ct.mha": lambda c: c.ct(),
    "labels.mha": lambda c: c.labels(),
    "primitives.json": lambda c: c.primitives(),
    "surfaces/s1_root.npz": lambda c: c.mesh("S1 root"),
    "distance/s1_root.npz": lambda c: c.distance_file("S1 root"),
}


@pytest.mark.parametrize("name", list(READERS))
def test_a_changed_byte_is_found_by_verify_and_before_the_file_is_used(folder: Path, name: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    case = Case.load(folder)
    for read in (lambda c: c.verify(), READERS[name]):
        with pytest.raises(InputError, match="changed since the build") as caught:
            read(case)
        assert str(path) in str(caught.value)


def test_an_unknown_structure_lists_the_known_ones(folder: Path) -> None:
    with pytest.raises(InputError, match="no structure 'S2 root'; it has Sacrum, S1 root"):
        Case.load(folder).mesh("S2 root")


def test_a_folder_that_is_no_case_and_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a case; it has no case\.json"):
        Case.load(tmp_path)
    with pytest.raises(InputError, match="no such case folder"):
        Case.load(tmp_path / "nowhere")


def test_reading_a_case_imports_nothing_heavy() -> None:
    heavy = ("SimpleITK", "vtkmodules", "numba", "scipy")
    code = f"import sys, navsrv.anatomy.case; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
