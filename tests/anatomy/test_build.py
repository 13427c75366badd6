"""A case appears whole or not at all, and one builder's work is nobody else's ruin."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from navsrv.anatomy import bvh
from navsrv.anatomy.build import CaseDraft, StructureDraft, default_sigma_mm, write_case
from navsrv.anatomy.builtin import SACRUM_VERSION, ensure_case, write_builtin
from navsrv.anatomy.bvh import DistanceStructure
from navsrv.anatomy.case import Case, Kind
from navsrv.anatomy.home import navsrv_home
from navsrv.anatomy.sacrum import generate_sacrum
from navsrv.anatomy.surfaces import distance_to_surface
from navsrv.kernel.errors import InputError
from tests.anatomy.cases import small_ct, small_draft


def listing(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_the_stored_distance_structure_is_that_of_the_stored_mesh(tmp_path: Path) -> None:
    case = write_case(small_draft(), tmp_path / "small")
    path = case.distance_file("S1 root")
    assert path is not None
    assert DistanceStructure.load(path).belongs_to(case.mesh("S1 root"))


def test_a_new_case_replaces_an_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_case(small_draft("old"), tmp_path / "place")
    write_case(small_draft("new"), tmp_path / "place")
    assert Case.load(tmp_path / "place").name == "new"
    assert listing(tmp_path) == {"place"}


def test_a_build_that_fails_midway_leaves_the_old_case_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_case(small_draft("old"), tmp_path / "place")

    def full_disk(self: DistanceStructure, path: Path) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(bvh.DistanceStructure, "save", full_disk)
    with pytest.raises(InputError, match="cannot write the case: No space left on device"):
        write_case(small_draft("new"), tmp_path / "place")
    case = Case.load(tmp_path / "place")
    case.verify()
    assert case.name == "old"
    assert listing(tmp_path) == {"place"}


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match="exists and is not a case"):
        write_case(small_draft(), tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    assert listing(tmp_path) == {"thesis"}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert write_case(small_draft(), tmp_path / "empty").name == "small"


def test_names_that_look_alike_in_a_file_system_keep_their_own_surfaces(tmp_path: Path) -> None:
    bone, nerve = (s.mesh for s in small_draft().structures)
    names = ("S1 root", "s1-root", "αβγ")
    meshes = (bone, nerve, bone)
    drafts = tuple(StructureDraft(n, Kind.CRITICAL, m, 0.4) for n, m in zip(names, meshes, strict=True))
    case = write_case(CaseDraft("alike", drafts, {}), tmp_path / "alike")
    assert len({s.surface for s in case.structures}) == 3
    for name, mesh in zip(names, meshes, strict=True):
        assert np.array_equal(case.mesh(name).vertices_mm, mesh.vertices_mm)


def test_progress_rises_to_the_end(tmp_path: Path) -> None:
    seen: list[float] = []
    write_case(small_draft(), tmp_path / "small", lambda _, fraction: seen.append(fraction))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_default_sigma_is_half_a_voxel() -> None:
    assert default_sigma_mm(small_ct()) == pytest.approx(0.5 * np.sqrt((1 + 1 + 4) / 3), abs=1e-3)


def test_home_follows_its_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NAVSRV_HOME", str(tmp_path / "own"))
    assert navsrv_home() == tmp_path / "own"
    monkeypatch.delenv("NAVSRV_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert navsrv_home() == tmp_path / "navsrv"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert navsrv_home() == Path.home() / ".cache" / "navsrv"


BUILDER = """
import sys
from navsrv.anatomy import builtin
from tests.anatomy.cases import small_draft
version = int(sys.argv[1])
def make(seed, progress, download):
    print("built", flush=True)
    return small_draft("bench")
builtin.BUILTIN["bench"] = (version, make)
print(builtin.ensure_case("bench"))
"""


def builder(home: Path, version: int) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "NAVSRV_HOME": str(home), "PYTHONPATH": str(root)}
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(version)], stdout=subprocess.PIPE, text=True, env=env, cwd=root
    )


def test_processes_that_ask_at_once_share_one_build(tmp_path: Path) -> None:
    processes = [builder(tmp_path, 5) for _ in range(3)]
    outputs = [p.communicate(timeout=60)[0].split() for p in processes]
    folder = tmp_path / "cases" / "bench"
    assert all(p.returncode == 0 for p in processes)
    assert [o[-1] for o in outputs] == [str(folder)] * 3
    assert sum("built" in o for o in outputs) == 1
    Case.load(folder).verify()


def test_a_case_of_another_generator_version_or_torn_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from navsrv.anatomy import builtin

    built: list[int] = []

    def make(seed: int, progress: object, download: object) -> CaseDraft:
        built.append(seed)
        return small_draft("bench")

    monkeypatch.setenv("NAVSRV_HOME", str(tmp_path))
    monkeypatch.setitem(builtin.BUILTIN, "bench", (1, make))
    folder = ensure_case("bench")
    ensure_case("bench")
    assert len(built) == 1
    monkeypatch.setitem(builtin.BUILTIN, "bench", (2, make))
    ensure_case("bench")
    assert len(built) == 2
    (folder / "ct.mha").unlink()
    (tmp_path / "cases" / ".bench.building-killed").mkdir()
    ensure_case("bench")
    assert len(built) == 3
    Case.load(folder).verify()
    assert listing(tmp_path / "cases") == {"bench", ".bench.lock"}


def test_a_folder_given_is_taken_as_it_is_and_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    assert ensure_case(tmp_path) == tmp_path
    with pytest.raises(InputError, match="no such case folder, and no built-in case; those are sacrum, thoracolumbar"):
        ensure_case("sarcum")


def test_the_sacrum_case_holds_what_its_generator_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = generate_sacrum(2, 3.0)
    monkeypatch.setattr("navsrv.anatomy.sacrum.generate_sacrum", lambda seed: made)
    monkeypatch.setattr(
        "navsrv.anatomy.sacrum.TOLERANCE_MM", 0.5
    )  # coarse voxels and surfaces: seconds, not half a minute
    case = write_builtin("sacrum", tmp_path / "sacrum", seed=2)
    case.verify()
    assert [(s.name, s.kind, s.label, s.follows) for s in case.structures] == [
        (s.name, s.kind, s.label, s.follows) for s in made.structures
    ]
    assert np.array_equal(case.ct().voxels, made.ct)
    assert np.array_equal(case.labels().voxels, made.labels)
    assert case.ct().origin_mm == pytest.approx(made.origin_mm)
    assert case.plan is not None
    assert case.plan.target_ct_mm.tolist() == made.plan.target_ct_mm.tolist()
    assert case.provenance["generator"] == {"name": "sacrum", "version": SACRUM_VERSION, "seed": 2}
    assert case.provenance["parameters"]["drift_structure"] == made.drift_structure
    # The plan's stated clearance, once more on the stored surface, by VTK.
    path = np.linspace(case.plan.target_ct_mm, case.plan.entry_ct_mm, 300)
    least = distance_to_surface(case.mesh(made.drift_structure), path).min() - made.shaft_radius_mm
    assert least == pytest.approx(made.clearances[made.drift_structure].shaft_mm, abs=0.6)
