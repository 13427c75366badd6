"""The built-in sacrum case: voxels, surfaces and plan against the exact geometry that it states of itself."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from navsrv.anatomy.case import Kind
from navsrv.anatomy.sacrum import MIN_CLEARANCE_MM, SacrumCase, generate_sacrum, plan_clearances
from navsrv.anatomy.sacrum_geometry import layout
from navsrv.anatomy.sacrum_surfaces import enclosed_volume_mm3, union_mesh
from navsrv.kernel.errors import InputError
from simulators.world.truth import Surface, Truth

VOXEL_MM = 0.8


@pytest.fixture(scope="module")
def case() -> SacrumCase:
    return generate_sacrum(1, VOXEL_MM)


@pytest.fixture(scope="module")
def truth(case: SacrumCase, tmp_path_factory: pytest.TempPathFactory) -> Truth:
    path: Path = tmp_path_factory.mktemp("sacrum") / "primitives.json"
    path.write_text(json.dumps(case.primitives))
    return Truth.from_primitives(path)


def test_a_voxel_has_the_label_of_the_last_structure_that_contains_its_centre(case: SacrumCase, truth: Truth) -> None:
    rng = np.random.default_rng(0)
    kji = np.concatenate([rng.integers(0, case.labels.shape, (2000, 3)), np.argwhere(case.labels >= 8)[::40]])
    points = kji[:, ::-1] * case.spacing_mm + case.origin_mm
    found = case.labels[tuple(kji.T)]
    expected = np.zeros(len(points), dtype=int)
    near = np.zeros(len(points), dtype=bool)  # float32 may decide within a micrometre
    for name, distance in truth.distance(points).items():
        expected = np.where(distance < 0, np.maximum(expected, case.structure(name).label), expected)
        near |= np.abs(distance) < 1e-3
    bone = np.isin(found, [s.label for s in case.structures if s.kind is Kind.BONE])
    skin = case.structure("Skin").label
    assert (found[~bone & ~near] == expected[~bone & ~near]).all()
    assert np.isin(expected[bone & ~near], [0, skin]).all()
    assert len(np.unique(found)) > 25


def test_every_structure_has_voxels_and_a_complete_mask(case: SacrumCase) -> None:
    for row in case.structures:
        mask = case.structure_mask(row.name)
        assert mask.any(), row.name
        assert mask[case.labels == row.label].all(), row.name
    # The S1 root runs through canal and foramen: its own mask is whole, the canal's is larger than its label.
    canal = case.structure_mask("Sacral canal")
    assert canal.sum() > (case.labels == case.structure("Sacral canal").label).sum()
    volume = enclosed_volume_mm3(*_mesh_of(case, "Sacral canal"))
    assert canal.sum() * VOXEL_MM**3 == pytest.approx(volume, rel=0.05)


def _mesh_of(case: SacrumCase, name: str) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    mesh = union_mesh(case.patient.part(name).primitives)
    return mesh.vertices_mm, mesh.triangles


@pytest.mark.parametrize("name", ["S1 root left", "S4 root right", "Sacral canal", "S2 foramen left", "Metastasis"])
def test_surfaces_are_closed_outward_and_follow_the_truth(case: SacrumCase, truth: Truth, name: str) -> None:
    vertices, triangles = _mesh_of(case, name)
    directed = triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    undirected, counts = np.unique(np.sort(directed, axis=1), axis=0, return_counts=True)
    assert (counts == 2).all()
    assert len(np.unique(directed, axis=0)) == 2 * len(undirected)
    assert enclosed_volume_mm3(vertices, triangles) > 0
    corners = vertices[triangles]
    samples = np.concatenate(
        [vertices, corners.mean(axis=1), (corners + np.roll(corners, 1, axis=1)).reshape(-1, 3) / 2]
    )
    assert np.abs(truth.distance(samples, (name,))[name]).max() < 0.07


def test_distances_to_a_mesh_agree_with_the_truth_of_its_solids(case: SacrumCase, truth: Truth) -> None:
    vertices, triangles = _mesh_of(case, "S1 root left")
    rng = np.random.default_rng(1)
    points = vertices[rng.integers(len(vertices), size=60)] + rng.normal(0, 4, (60, 3))
    exact = truth.distance(points, ("S1 root left",))["S1 root left"]
    by_triangles, _ = Surface(vertices, triangles.astype(np.int64)).distance(points)
    outside = exact > 0
    np.testing.assert_allclose(by_triangles[outside], exact[outside], atol=0.05)
    assert (by_triangles[~outside & (exact < -0.1)] < 0).all()


def test_hounsfield_units_are_those_of_the_tissue(case: SacrumCase) -> None:
    def mean(name: str, depth: float) -> float:
        x, y, z = (
            o + s * np.arange(n) for o, s, n in zip(case.origin_mm, case.spacing_mm, case.ct.shape[::-1], strict=True)
        )
        grid = np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1).transpose(2, 1, 0, 3)
        mask = case.labels == case.structure(name).label
        points = grid[mask]
        deep = np.min([p.signed_distance(*points.T) for p in case.patient.part(name).primitives], axis=0) < -depth
        return float(case.ct[mask][deep].mean())

    assert 140 < mean("Common iliac artery left", 2.0) < 185
    assert 20 < mean("Metastasis", 5.0) < 110
    sacrum = case.ct[case.labels == case.structure("Sacrum").label]
    assert 120 < np.median(sacrum) < 450
    assert np.percentile(sacrum, 97) > 500
    assert np.median(case.ct[case.labels == 0]) < -950
    body = case.ct[case.labels == case.structure("Skin").label]
    fat, muscle = ((body > -130) & (body < -70)).mean(), ((body > 20) & (body < 90)).mean()
    assert fat > 0.25
    assert muscle > 0.2


def test_the_plan_enters_the_back_and_ends_in_the_metastasis_clear_of_everything(
    case: SacrumCase, truth: Truth
) -> None:
    entry, target = case.plan.entry_ct_mm, case.plan.target_ct_mm
    assert abs(truth.distance(entry)["Skin"]) < 0.01
    assert entry[1] > target[1] + 40
    assert truth.distance(target)["Metastasis"] < -5
    low, high = case.origin_mm, case.origin_mm + case.spacing_mm * (np.array(case.ct.shape[::-1]) - 1)
    assert (low < entry).all()
    assert (entry < high).all()
    shaft = truth.shaft_distance(target, entry, case.shaft_radius_mm, tuple(case.clearances))
    for name, clearance in case.clearances.items():
        assert clearance.shaft_mm == pytest.approx(float(shaft[name]), abs=0.02)
        assert clearance.shaft_mm >= MIN_CLEARANCE_MM
    assert set(case.clearances) == {s.name for s in case.structures if s.kind is Kind.CRITICAL}
    nearest_root = min((n for n in case.clearances if "root" in n), key=lambda n: case.clearances[n].shaft_mm)
    assert nearest_root == case.drift_structure


def test_the_metastasis_reaches_the_foramen_on_its_side(case: SacrumCase, truth: Truth) -> None:
    vertices, _ = _mesh_of(case, "Metastasis")
    to_foramen = truth.distance(vertices, ("S1 foramen left",))["S1 foramen left"]
    assert -2.0 < to_foramen.min() < 0.5
    bone = case.structure_mask("Sacrum")
    assert (bone & case.structure_mask("Metastasis")).sum() > 0.6 * case.structure_mask("Metastasis").sum()


@pytest.mark.parametrize("level", ["S1", "S2", "S3", "S4"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_root_stays_in_the_canal_until_its_own_foramen(level: str, side: str, case: SacrumCase, truth: Truth) -> None:
    (root,) = case.primitives["structures"][f"{level} root {side}"]["primitives"]
    way = np.asarray(root["points_mm"])
    axis = np.concatenate([a + np.linspace(0, 1, 30)[:, None] * (b - a) for a, b in pairwise(way)])
    foramen = f"{level} foramen {side}"
    opening = case.primitives["structures"][foramen]["primitives"][0]["points_mm"][-1]
    within = axis[: int(np.linalg.norm(axis - opening, axis=1).argmin())]
    distance = truth.distance(within, ("Sacral canal", foramen))
    assert np.minimum(distance["Sacral canal"], distance[foramen]).max() < 0.5


@pytest.mark.parametrize("seed", range(8))
def test_every_patient_has_a_safe_plan_and_left_is_plus_x(seed: int) -> None:
    patient = layout(seed)
    assert min(c.shaft_mm for c in plan_clearances(patient).values()) >= MIN_CLEARANCE_MM
    middle = patient.curve.origin_mm[0]
    for part in patient.parts:
        if part.primitives and part.name.endswith(("left", "right")) and "Common" not in part.name:
            x = float(np.mean([p.bounds_mm()[:, 0].mean() for p in part.primitives]))
            assert (x > middle) == part.name.endswith("left"), part.name
    assert patient.drift_structure.endswith("left" if patient.target_mm[0] > middle else "right")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_patient() -> None:
    one, again, other = (generate_sacrum(seed, 4.0) for seed in (3, 3, 4))
    assert one.ct.tobytes() == again.ct.tobytes()
    assert one.labels.tobytes() == again.labels.tobytes()
    assert one.primitives == again.primitives
    assert one.primitives != other.primitives


def test_bad_arguments_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"voxel size 0\.1 mm; expected 0\.4 to 4"):
        generate_sacrum(1, 0.1)
    with pytest.raises(InputError, match="seed -1"):
        generate_sacrum(-1)
    with pytest.raises(InputError, match="no structure 'S1'"):
        generate_sacrum(1, 4.0).structure_field("S1")
