"""Clearance against judges that share no code with it: brute force over all triangles in numpy, and VTK."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from navsrv.anatomy.bench_surfaces import bench_meshes
from navsrv.anatomy.bvh import DistanceStructure, Sign
from navsrv.anatomy.mesh import Mesh
from navsrv.guidance._kernels import SAMPLE_VISITS, VISITS, slot_segment
from navsrv.guidance.clearance import ClearanceEngine, Clearances

Array = NDArray[np.float64]
FIELDS = ("tip_distance", "tip_nearest", "tip_error", "shaft_distance", "shaft_nearest", "shaft_error")


def brute_unsigned(mesh: Mesh, points: Array) -> Array:
    """Distances (P,) of points (P, 3) to the nearest of all triangles: barycentric foot, else the three edges."""
    a, b, c = (mesh.vertices_mm[mesh.triangles[:, i]] for i in range(3))
    best = np.full(len(points), np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = b - a, c - a
        uu, uv, vv = (u * u).sum(1), (u * v).sum(1), (v * v).sum(1)
        det = uu * vv - uv * uv
        for i, p in enumerate(points):
            r = p - a
            ru, rv = (r * u).sum(1), (r * v).sum(1)
            s, t = (vv * ru - uv * rv) / det, (uu * rv - uv * ru) / det
            over = (s >= 0) & (t >= 0) & (s + t <= 1) & (det > 1e-14 * uu * vv)
            foot = np.linalg.norm(r - s[:, None] * u - t[:, None] * v, axis=1)
            best[i] = np.where(over, foot, np.inf).min()
            for q, e in ((a, b - a), (b, c - b), (c, a - c)):
                w = np.clip(np.nan_to_num(((p - q) * e).sum(1) / (e * e).sum(1)), 0, 1)
                best[i] = min(best[i], np.linalg.norm(p - q - w[:, None] * e, axis=1).min())
    return best


def brute_winding(mesh: Mesh, points: Array) -> Array:
    """Winding numbers (P,) as the exact sum of solid angles."""
    result = np.empty(len(points))
    for i, p in enumerate(points):
        a, b, c = (mesh.vertices_mm[mesh.triangles[:, k]] - p for k in range(3))
        la, lb, lc = (np.linalg.norm(x, axis=1) for x in (a, b, c))
        det = np.einsum("ij,ij->i", a, np.cross(b, c))
        under = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
        result[i] = (2 * np.arctan2(det, under)).sum() / (4 * np.pi)
    return result


def brute_signed(mesh: Mesh, points: Array) -> Array:
    return np.where(brute_winding(mesh, points) > 0.5, -1.0, 1.0) * brute_unsigned(mesh, points)


def brute_shaft(mesh: Mesh, tip: Array, axis: Array, length: float) -> float:
    """Smallest signed distance over the axis: dense samples, then every interval that could hold less, again."""
    s = np.linspace(0, length, 121)
    f = brute_signed(mesh, tip - s[:, None] * axis)
    best, step = f.min(), s[1] - s[0]
    for _ in range(9):  # 1 mm / 2^9 = 2e-3; the samples then lie within half of that
        keep = np.flatnonzero(0.5 * (f[:-1] + f[1:] - step) < best - 2e-4)
        middle = 0.5 * (s[keep] + s[keep + 1])
        if len(middle) == 0:
            break
        keep_s, keep_f = np.concatenate([s[keep], s[keep + 1]]), np.concatenate([f[keep], f[keep + 1]])
        order = np.argsort(np.concatenate([keep_s, middle]), kind="stable")
        fresh = brute_signed(mesh, tip - middle[:, None] * axis)
        s, first = np.unique(np.concatenate([keep_s, middle])[order], return_index=True)
        f = np.concatenate([keep_f, fresh])[order][first]
        best, step = min(best, f.min()), step / 2
        far = np.diff(s) > 1.5 * step  # gaps that were ruled out
        f = np.insert(f, np.flatnonzero(far) + 1, np.inf)
        s = np.insert(s, np.flatnonzero(far) + 1, s[np.flatnonzero(far)])
    return float(best)


def unit(v: Array) -> Array:
    result: Array = np.asarray(v, float) / np.linalg.norm(v)
    return result


def measured(engine: ClearanceEngine, tip: Array, axis: Array, length: float, radius: float = 0.0) -> Clearances:
    out = Clearances(engine.count)
    engine.measure(tip, axis, length, radius, out)
    return out


def posed(engine: ClearanceEngine, pose: tuple[Array, Array, float]) -> Clearances:
    return measured(engine, pose[0], pose[1], pose[2], 0.5)


def bits(out: Clearances) -> bytes:
    return b"".join(
        np.ascontiguousarray(getattr(out, name)).tobytes()
        for name in [f"{f}_mm" for f in FIELDS] + ["shaft_axis_offset_mm", "tip_visits", "shaft_visits"]
    )


def ball(radius: float, triangles: int, centre: tuple[float, float, float] = (0, 0, 0), squash: float = 1.0) -> Mesh:
    """A closed sphere (or ellipsoid) of about that many triangles, by rings."""
    rings = max(3, int(np.sqrt(triangles / 4)) + 1)
    n = 2 * rings
    theta, phi = np.pi * np.arange(1, rings) / rings, np.pi * np.arange(n) / rings
    t, p = np.meshgrid(theta, phi, indexing="ij")
    ring = np.stack([np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), squash * np.cos(t)], -1).reshape(-1, 3)
    vertices = radius * np.vstack([ring, [[0, 0, squash], [0, 0, -squash]]]) + np.array(centre)
    here = np.arange(len(ring)).reshape(rings - 1, n)
    after = np.roll(here, -1, 1)
    a, b, c, d = here[:-1].ravel(), after[:-1].ravel(), here[1:].ravel(), after[1:].ravel()
    north, south = np.full(n, len(ring)), np.full(n, len(ring) + 1)
    faces = [(a, c, d), (a, d, b), (north, here[0], after[0]), (south, after[-1], here[-1])]
    return Mesh(vertices, np.vstack([np.column_stack(f) for f in faces]).astype(np.int32))


def joined(*meshes: Mesh) -> Mesh:
    starts = np.cumsum([0] + [len(m.vertices_mm) for m in meshes[:-1]])
    faces = [m.triangles + start for m, start in zip(meshes, starts, strict=True)]
    return Mesh(np.vstack([m.vertices_mm for m in meshes]), np.vstack(faces).astype(np.int32))


@pytest.fixture(scope="module")
def organs() -> dict[str, Mesh]:
    return bench_meshes(700)


@pytest.fixture(scope="module")
def engine(organs: dict[str, Mesh]) -> ClearanceEngine:
    return ClearanceEngine([DistanceStructure.build(m) for m in organs.values()])


def test_tip_is_exact_and_signed_against_all_triangles(organs: dict[str, Mesh], engine: ClearanceEngine) -> None:
    rng = np.random.default_rng(5)
    near = [m.vertices_mm[rng.integers(len(m.vertices_mm), size=12)] for m in organs.values()]
    tips = np.vstack([rng.uniform(-150, 150, (40, 3)), np.vstack(near) + rng.normal(0, 3, (72, 3))])
    found = [measured(engine, tip, np.array([0, 0, -1.0]), 10.0) for tip in tips]
    inside = 0
    for i, mesh in enumerate(organs.values()):
        truth = brute_signed(mesh, tips)
        values = np.array([f.tip_distance_mm[i] for f in found])
        nearest = np.array([f.tip_nearest_mm[i] for f in found])
        assert np.abs(values - truth).max() < 1e-6
        assert np.abs(np.linalg.norm(nearest - tips, axis=1) - np.abs(truth)).max() < 1e-6
        assert brute_unsigned(mesh, nearest).max() < 1e-6
        assert max(f.tip_error_mm[i] for f in found) == 0.0
        inside += int((truth < 0).sum())
    assert inside > 20


def test_tip_nearest_to_edges_and_vertices_has_the_right_sign() -> None:
    # a spike: thin tetrahedra are where a face's own normal gives the wrong side
    v = np.array([[0, 0, 0], [30, 1, 0], [30, -1, 0.5], [29, 0, -1.5]], float)
    spike = Mesh(v, np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]], np.int32))
    structure = DistanceStructure.build(spike)
    assert structure.sign is Sign.PSEUDONORMAL
    engine = ClearanceEngine([structure])
    rng = np.random.default_rng(11)
    tips = np.vstack([rng.normal(0, 4, (200, 3)) + v[k % 4] for k in range(4)])
    values = [measured(engine, tip, np.array([0, 0, 1.0]), 0.0).tip_distance_mm[0] for tip in tips]
    assert np.abs(np.array(values) - brute_signed(spike, tips)).max() < 1e-9


def test_tip_agrees_with_vtk() -> None:
    vtk = pytest.importorskip("vtkmodules.vtkFiltersCore")
    from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray
    from vtkmodules.vtkCommonCore import vtkPoints
    from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkPolyData

    mesh = bench_meshes(20_000)["uterus"]
    cells = np.hstack([np.full((len(mesh.triangles), 1), 3), mesh.triangles]).astype(np.int64)
    points, polys, data = vtkPoints(), vtkCellArray(), vtkPolyData()
    points.SetData(numpy_to_vtk(mesh.vertices_mm.copy(), deep=True))
    polys.ImportLegacyFormat(numpy_to_vtkIdTypeArray(cells.ravel(), deep=True))
    data.SetPoints(points)
    data.SetPolys(polys)
    judge = vtk.vtkImplicitPolyDataDistance()
    judge.SetInput(data)
    engine = ClearanceEngine([DistanceStructure.build(mesh)])
    rng = np.random.default_rng(2)
    tips = mesh.vertices_mm.mean(axis=0) + rng.uniform(-45, 45, (300, 3))
    ours = np.array([measured(engine, tip, np.array([1.0, 0, 0]), 5.0).tip_distance_mm[0] for tip in tips])
    theirs = np.array([judge.EvaluateFunction(*tip) for tip in tips])
    assert (theirs < 0).sum() > 20
    assert np.abs(ours - theirs).max() < 1e-6


@settings(max_examples=40, deadline=None)
@given(
    around=st.integers(0, 5),
    offset=st.tuples(*[st.floats(-45, 45)] * 3),
    axis=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda a: np.linalg.norm(a) > 0.1),
    length=st.floats(0, 120),
    radius=st.floats(0, 2),
)
def test_shaft_is_exact_to_a_micron_against_dense_samples(
    organs: dict[str, Mesh],
    engine: ClearanceEngine,
    around: int,
    offset: tuple[float, float, float],
    axis: tuple[float, float, float],
    length: float,
    radius: float,
) -> None:
    mesh = list(organs.values())[around]
    tip, direction = mesh.vertices_mm.mean(axis=0) + np.array(offset), unit(np.array(axis))
    out = measured(engine, tip, direction, length, radius)
    value, along = out.shaft_distance_mm[around], out.shaft_axis_offset_mm[around]
    assert out.shaft_error_mm[around] <= 1e-3
    assert value + radius == pytest.approx(brute_shaft(mesh, tip, direction, length), abs=1e-3)
    assert 0 <= along <= length
    on_axis = tip - along * direction
    assert np.linalg.norm(out.shaft_nearest_mm[around] - on_axis) == pytest.approx(abs(value + radius), abs=1e-9)
    assert brute_unsigned(mesh, out.shaft_nearest_mm[around][None])[0] < 1e-6
    assert value + radius <= out.tip_distance_mm[around] + 1e-9


def test_no_box_hides_the_triangle_nearest_to_the_shaft() -> None:
    structure = DistanceStructure.build(bench_meshes(6000)["sacrum"])
    engine = ClearanceEngine([structure])
    rng = np.random.default_rng(14)
    outside = 0
    for _ in range(150):
        tip, axis, length = rng.uniform(-80, 80, 3), unit(rng.normal(size=3)), rng.uniform(0, 120)
        out = measured(engine, tip, axis, length)
        if out.shaft_distance_mm[0] <= 0:
            continue
        outside += 1
        every = (
            slot_segment(structure.leaf_xyz, leaf, k, *tip, *-axis, length)[0]
            for leaf, k in np.ndindex(len(structure.leaf_xyz), 8)
        )
        assert out.shaft_distance_mm[0] == np.sqrt(min(every))
    assert outside > 60


def test_shaft_that_runs_through_reports_its_depth(organs: dict[str, Mesh], engine: ClearanceEngine) -> None:
    bladder = organs["bladder"]
    centre = bladder.vertices_mm.mean(axis=0)
    axis = unit(np.array([0.2, -0.3, 1.0]))
    out = measured(engine, centre + 60 * axis, axis, 120.0, 0.5)
    assert out.tip_distance_mm[2] > 5
    assert out.shaft_distance_mm[2] < -20
    truth = brute_shaft(bladder, centre + 60 * axis, axis, 120.0) - 0.5
    assert out.shaft_distance_mm[2] == pytest.approx(truth, abs=1e-3)


def test_shaft_beside_a_wall_and_along_it_is_exact() -> None:
    v = np.array([[x, y, z] for x in (-50, 50) for y in (-50, 50) for z in (-50, 50)], float)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    cube = Mesh(v, np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))], np.int32))
    engine = ClearanceEngine([DistanceStructure.build(cube)])
    beside = measured(engine, np.array([52.0, 0, 40]), np.array([0, 0, 1.0]), 80.0, 0.75)
    assert beside.shaft_distance_mm[0] == pytest.approx(1.25, abs=1e-12)
    within = measured(engine, np.array([45.0, 0, 40]), np.array([0, 0, 1.0]), 80.0, 0.75)
    assert within.shaft_distance_mm[0] == pytest.approx(-5.75, abs=1e-3)
    touching = measured(engine, np.array([50.0, 0, 40]), np.array([0, 0, 1.0]), 80.0, 0.75)
    assert touching.shaft_distance_mm[0] == pytest.approx(-0.75, abs=1e-3)
    corner = measured(engine, np.array([53.0, 54.0, 0]), np.array([0, 0, 1.0]), 10.0, 0.0)
    assert corner.shaft_distance_mm[0] == pytest.approx(5.0, abs=1e-12)


def test_history_does_not_change_a_bit(organs: dict[str, Mesh]) -> None:
    structures = [DistanceStructure.build(m) for m in organs.values()]
    rng = np.random.default_rng(8)
    poses = [(rng.uniform(-90, 90, 3), unit(rng.normal(size=3)), rng.uniform(0, 150)) for _ in range(60)]
    poses[7] = (np.array([0.0, -95, -20]), np.array([0, 0, 1.0]), 100.0)
    worn = ClearanceEngine(structures)
    reference = [bits(posed(worn, pose)) for pose in poses]
    for k in rng.permutation(len(poses)):
        assert bits(posed(worn, poses[k])) == reference[k]
        assert bits(posed(ClearanceEngine(structures), poses[k])) == reference[k]


def test_neighbouring_structures_do_not_change_a_bit(organs: dict[str, Mesh], engine: ClearanceEngine) -> None:
    rng = np.random.default_rng(9)
    alone = [ClearanceEngine([DistanceStructure.build(m)]) for m in organs.values()]
    for _ in range(20):
        tip, axis = rng.uniform(-90, 90, 3), unit(rng.normal(size=3))
        together = measured(engine, tip, axis, 100.0, 0.7)
        for i, single in enumerate(alone):
            out = measured(single, tip, axis, 100.0, 0.7)
            for field in (*(f"{f}_mm" for f in FIELDS), "shaft_axis_offset_mm"):
                assert getattr(out, field)[0].tobytes() == getattr(together, field)[i].tobytes()


@pytest.mark.parametrize(("radius", "times"), [(6.0, 300), (50.0, 60)])
def test_a_spheres_centre_is_bounded_in_visits_and_honest_about_it(radius: float, times: float) -> None:
    mesh = ball(radius, 60_000)
    engine = ClearanceEngine([DistanceStructure.build(mesh)])
    rng = np.random.default_rng(4)
    elsewhere = [measured(engine, p, unit(p), 100.0) for p in radius * rng.uniform(-2, 2, (200, 3))]
    median = np.median([e.tip_visits[0] for e in elsewhere])
    for offset in (0.0, 1e-4, 1e-2, 0.1):
        tip = np.array([offset, 0, 0])
        out = measured(engine, tip, np.array([0, 0, 1.0]), 100.0)
        truth = brute_signed(mesh, tip[None])[0]
        assert out.tip_visits[0] <= min(7 * VISITS, times * median)
        assert out.shaft_visits[0] <= SAMPLE_VISITS + 14 * VISITS
        size = -out.tip_distance_mm[0]
        assert size - out.tip_error_mm[0] - 1e-9 <= -truth <= size + 1e-9
        assert abs(out.tip_distance_mm[0] - truth) < 1e-3


def test_a_needle_along_the_middle_of_a_tube_is_bounded_and_honest_about_it() -> None:
    n, rings, radius = 300, 150, 8.0
    phi = 2 * np.pi * np.arange(n) / n
    wall = [
        np.stack([radius * np.cos(phi), radius * np.sin(phi), 0 * phi + z], -1) for z in np.linspace(-70, 70, rings)
    ]
    here = np.arange(n * rings).reshape(rings, n)
    after = np.roll(here, -1, 1)
    a, b, c, d = here[:-1].ravel(), after[:-1].ravel(), here[1:].ravel(), after[1:].ravel()
    low, high = np.full(n, n * rings), np.full(n, n * rings + 1)
    faces = [(a, b, d), (a, d, c), (low, after[0], here[0]), (high, here[-1], after[-1])]
    vertices = np.vstack([*wall, [[0, 0, -70.0], [0, 0, 70.0]]])
    tube = Mesh(vertices, np.vstack([np.column_stack(f) for f in faces]).astype(np.int32))
    engine = ClearanceEngine([DistanceStructure.build(tube)])
    out = measured(engine, np.array([0, 0, 60.0]), np.array([0, 0, 1.0]), 120.0)
    deepest = radius * np.cos(np.pi / n)  # the flats of the polygon
    assert out.shaft_visits[0] <= SAMPLE_VISITS + 14 * VISITS
    assert -deepest - 1e-9 <= out.shaft_distance_mm[0]
    assert -out.shaft_distance_mm[0] + out.shaft_error_mm[0] >= deepest - 1e-9
    assert out.shaft_distance_mm[0] == pytest.approx(-deepest, abs=0.01)


NESTED = joined(ball(20, 800), ball(8, 400))
OVERLAPPING = joined(ball(20, 800), ball(15, 600, (22.3, 1, 2)))
TOUCHING = joined(ball(20, 800), ball(20, 800, (0, 0, 40)))
TWICE = joined(ball(20, 800), ball(20, 800))


@pytest.mark.parametrize(
    "mesh", [NESTED, OVERLAPPING, TOUCHING, TWICE], ids=["nested", "overlapping", "touching", "every triangle twice"]
)
def test_surfaces_in_contact_have_the_sign_of_exact_solid_angles(mesh: Mesh) -> None:
    structure = DistanceStructure.build(mesh)
    assert structure.sign is Sign.WINDING
    engine = ClearanceEngine([structure])
    rng = np.random.default_rng(6)
    tips = rng.uniform(-30, 45, (150, 3))
    values = np.array([measured(engine, t, np.array([0, 0, 1.0]), 1.0).tip_distance_mm[0] for t in tips])
    truth = brute_signed(mesh, tips)
    assert (truth < 0).sum() > 5
    assert np.abs(values - truth).max() < 1e-6
    for tip in tips[:4]:
        axis = unit(rng.normal(size=3))
        out = measured(engine, tip, axis, 60.0)
        assert out.shaft_distance_mm[0] == pytest.approx(brute_shaft(mesh, tip, axis, 60.0), abs=1e-3)


def test_a_bowl_is_inside_where_it_encloses_and_outside_elsewhere() -> None:
    whole = ball(20, 1600)
    centres = whole.vertices_mm[whole.triangles].mean(axis=1)
    bowl = Mesh(whole.vertices_mm, whole.triangles[centres[:, 2] < 8])
    structure = DistanceStructure.build(bowl)
    assert (structure.sign, structure.watertight) == (Sign.WINDING, False)
    engine = ClearanceEngine([structure])
    tips = np.array([[0, 0, -12.0], [10, 0, -8], [0, 0, 25], [0, 0, 60], [0, 0, -24], [30, 0, 0]])
    values = np.array([measured(engine, t, np.array([0, 0, 1.0]), 1.0).tip_distance_mm[0] for t in tips])
    assert (values[:2] < 0).all()
    assert (values[2:] > 0).all()
    assert np.abs(np.abs(values) - brute_unsigned(bowl, tips)).max() < 1e-6
    # through the opening, without crossing a triangle, and out again: the shaft is inside on its way
    out = measured(engine, np.array([0, 0, -10.0]), np.array([0, 0, -1.0]), 100.0)
    assert out.shaft_distance_mm[0] < -9.9


def test_a_void_is_outside() -> None:
    inner = ball(8, 400)
    hollow = joined(ball(20, 800), Mesh(inner.vertices_mm, inner.triangles[:, ::-1].copy()))
    out = measured(ClearanceEngine([DistanceStructure.build(hollow)]), np.zeros(3), np.array([0, 0, 1.0]), 2.0)
    assert out.tip_distance_mm[0] > 7.5


def test_degenerate_triangles_and_duplicate_vertices_change_nothing() -> None:
    mesh = ball(20, 400, squash=0.7)
    soup = mesh.vertices_mm[mesh.triangles].reshape(-1, 3)
    faces = np.arange(len(soup)).reshape(-1, 3)
    needle = np.array([[2, 2, 9], [4, 4, 9], [7, 7, 9]])  # equal corners, and with them corners on one line
    dirty = Mesh(np.vstack([soup, [[50.0, 0, 0], [60, 0, 0], [80, 0, 0]]]), np.vstack([faces, needle]).astype(np.int32))
    line = Mesh(dirty.vertices_mm, np.vstack([faces, np.array([[0, 1, 2]]) + len(soup)]).astype(np.int32))
    clean_engine = ClearanceEngine([DistanceStructure.build(mesh), DistanceStructure.build(dirty)])
    line_engine = ClearanceEngine([DistanceStructure.build(line)])
    rng = np.random.default_rng(12)
    for tip in rng.uniform(-30, 30, (40, 3)):
        out = measured(clean_engine, tip, unit(rng.normal(size=3)), 40.0)
        assert out.tip_distance_mm[0] == pytest.approx(out.tip_distance_mm[1], abs=1e-9)
        assert out.shaft_distance_mm[0] == pytest.approx(out.shaft_distance_mm[1], abs=2e-3)
    # a triangle without area still has a place: the way to it is measured, and no number is lost
    out = measured(line_engine, np.array([70.0, 3, 4]), np.array([1.0, 0, 0]), 5.0)
    assert out.tip_distance_mm[0] == pytest.approx(5.0, abs=1e-9)
    assert out.shaft_distance_mm[0] == pytest.approx(5.0, abs=1e-9)


@pytest.mark.parametrize(
    ("tip", "axis", "length", "radius"),
    [
        ((np.nan, 0, 0), (0, 0, 1), 10, 1),
        ((0, 0, 0), (0, 0, 2), 10, 1),
        ((0, 0, 0), (0, 0, np.inf), 10, 1),
        ((0, 0, 0), (0, 0, 1), -1, 1),
        ((0, 0, 0), (0, 0, 1), 10, np.nan),
    ],
)
def test_a_pose_that_is_no_pose_is_refused_and_writes_nothing(
    engine: ClearanceEngine, tip: tuple[float, ...], axis: tuple[float, ...], length: float, radius: float
) -> None:
    out = Clearances(6)
    with pytest.raises(ValueError, match="unit axis"):
        engine.measure(tip, axis, length, radius, out)
    assert np.isnan(out.tip_distance_mm).all()
    with pytest.raises(ValueError, match="6"):
        engine.measure((0, 0, 0), (0, 0, 1), 10, 1, Clearances(5))


def test_no_structure_is_no_distance() -> None:
    out = measured(ClearanceEngine([]), np.zeros(3), np.array([0, 0, 1.0]), 10.0)
    assert out.tip_distance_mm.shape == (0,)
