"""Distance structures: nothing lost, boxes that hold what they bound, sign by the right method, bytes that repeat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from navsrv.anatomy.bench_surfaces import bench_meshes
from navsrv.anatomy.bvh import ABSENT, DistanceStructure, Sign
from navsrv.anatomy.mesh import Mesh
from navsrv.kernel.errors import InputError


def sphere(radius: float = 20.0, centre: tuple[float, float, float] = (0, 0, 0), rings: int = 12) -> Mesh:
    """A closed sphere of about 4 rings^2 triangles."""
    theta = np.pi * np.arange(1, rings) / rings
    phi = np.pi * np.arange(2 * rings) / rings
    ring = np.stack(
        [
            np.outer(np.sin(theta), np.cos(phi)),
            np.outer(np.sin(theta), np.sin(phi)),
            np.outer(np.cos(theta), phi * 0 + 1),
        ],
        axis=-1,
    ).reshape(-1, 3)
    vertices = radius * np.vstack([ring, [[0, 0, 1], [0, 0, -1]]]) + np.array(centre)
    n = 2 * rings
    faces = []
    for i in range(rings - 2):
        for j in range(n):
            a, b, c, d = i * n + j, i * n + (j + 1) % n, (i + 1) * n + j, (i + 1) * n + (j + 1) % n
            faces += [(a, c, d), (a, d, b)]
    for j in range(n):
        faces.append((len(ring), j, (j + 1) % n))
        faces.append((len(ring) + 1, (rings - 2) * n + (j + 1) % n, (rings - 2) * n + j))
    return Mesh(vertices, np.array(faces, dtype=np.int32))


def joined(*meshes: Mesh) -> Mesh:
    """The meshes as one, nothing welded."""
    starts = np.cumsum([0] + [len(m.vertices_mm) for m in meshes[:-1]])
    faces = [m.triangles + start for m, start in zip(meshes, starts, strict=True)]
    return Mesh(np.vstack([m.vertices_mm for m in meshes]), np.vstack(faces).astype(np.int32))


def turned_inside_out(mesh: Mesh) -> Mesh:
    return Mesh(mesh.vertices_mm, mesh.triangles[:, ::-1].copy())


@pytest.fixture(scope="module")
def organ() -> Mesh:
    return bench_meshes(6000)["sacrum"]


def test_every_triangle_sits_in_exactly_one_lane(organ: Mesh) -> None:
    s = DistanceStructure.build(organ)
    used = s.leaf_triangle[s.leaf_triangle >= 0]
    assert np.array_equal(np.sort(used), np.arange(len(organ.triangles)))
    leaf, lane = np.nonzero(s.leaf_triangle >= 0)
    corners = organ.vertices_mm[organ.triangles[s.leaf_triangle[leaf, lane]]].reshape(-1, 9)
    assert np.array_equal(s.leaf_xyz[leaf, :, lane], corners)


def test_tree_reaches_every_leaf_once_and_is_well_filled(organ: Mesh) -> None:
    s = DistanceStructure.build(organ)
    children = s.node_child[s.node_child != ABSENT]
    assert np.array_equal(np.sort(-1 - children[children < 0]), np.arange(len(s.leaf_xyz)))
    assert np.array_equal(np.sort(children[children >= 0]), np.arange(1, len(s.node_child)))
    assert len(s.node_child) < 0.2 * len(s.leaf_xyz)


def test_boxes_never_promise_more_distance_than_their_triangles_have(organ: Mesh) -> None:
    shifted = Mesh(organ.vertices_mm + 1000.0, organ.triangles)  # coordinates where float32 is coarse
    s = DistanceStructure.build(shifted)
    rng = np.random.default_rng(3)
    points = 1000.0 + rng.uniform(-80, 80, (20, 3))

    def leaves_below(child: int) -> list[int]:
        if child < 0:
            return [-1 - child]
        return [leaf for c in s.node_child[child] if c != ABSENT for leaf in leaves_below(int(c))]

    for node in range(len(s.node_child)):
        for k in range(8):
            if s.node_child[node, k] == ABSENT:
                continue
            frame = s.node_frame[node, :, k].astype(float)
            excess = np.abs(points @ frame[:9].reshape(3, 3).T - frame[9:12]) - frame[12:15]
            bound = np.linalg.norm(np.maximum(excess, 0), axis=1)
            corners = s.leaf_xyz[leaves_below(int(s.node_child[node, k]))].transpose(0, 2, 1).reshape(-1, 3)
            assert (bound <= np.linalg.norm(points[:, None] - corners, axis=2).min(axis=1)).all()
            inside = np.abs(corners @ frame[:9].reshape(3, 3).T - frame[9:12]) <= frame[12:15]
            assert inside.all()


def test_grid_distance_is_a_lower_bound_of_the_exact_one(organ: Mesh) -> None:
    s = DistanceStructure.build(organ)
    index = np.argwhere(np.ones(s.grid_slot.shape, bool))[::997]
    centres = s.grid_origin_mm[:3] + (index + 0.5) * s.grid_origin_mm[3]
    to_vertices = np.linalg.norm(centres[:, None] - organ.vertices_mm, axis=2).min(axis=1)
    distance = s.grid_distance_mm[tuple(index.T)]
    assert (distance <= to_vertices).all()
    assert (distance > to_vertices - 3.0).all()  # no triangle is larger than that


def test_memory_for_each_triangle(organ: Mesh) -> None:
    mesh = bench_meshes(100_000)["rectum"]
    s = DistanceStructure.build(mesh)
    assert s.nbytes / len(mesh.triangles) <= 150


def test_same_mesh_gives_same_bytes_and_load_gives_them_back(organ: Mesh, tmp_path: Path) -> None:
    DistanceStructure.build(organ).save(tmp_path / "a.npz")
    DistanceStructure.build(Mesh(organ.vertices_mm.copy(), organ.triangles.copy())).save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    loaded = DistanceStructure.load(tmp_path / "a.npz")
    loaded.save(tmp_path / "c.npz")
    assert (tmp_path / "c.npz").read_bytes() == (tmp_path / "a.npz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz", "c.npz"]


def test_a_stale_cache_is_recognised(organ: Mesh) -> None:
    s = DistanceStructure.build(organ)
    moved = organ.vertices_mm.copy()
    moved[7, 1] += 1e-9
    assert s.belongs_to(organ)
    assert not s.belongs_to(Mesh(moved, organ.triangles))


@pytest.mark.parametrize("damage", ["truncated", "absent", "not npz", "missing array"])
def test_a_damaged_file_is_refused_by_name(organ: Mesh, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "organ.npz"
    DistanceStructure.build(organ).save(path)
    match damage:
        case "truncated":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "absent":
            path.unlink()
        case "not npz":
            path.write_text("surface")
        case _:
            np.savez(path, format=np.int64(1))
    with pytest.raises(InputError, match=r"organ\.npz"):
        DistanceStructure.load(path)


def test_a_closed_surface_takes_the_pseudonormal() -> None:
    s = DistanceStructure.build(sphere())
    assert (s.sign, s.watertight) == (Sign.PSEUDONORMAL, True)


def test_a_soup_of_triangles_is_welded() -> None:
    ball = sphere()
    soup = Mesh(
        ball.vertices_mm[ball.triangles].reshape(-1, 3),
        np.arange(3 * len(ball.triangles), dtype=np.int32).reshape(-1, 3),
    )
    assert DistanceStructure.build(soup).sign is Sign.PSEUDONORMAL


def test_a_void_with_its_wall_turned_inwards_is_closed() -> None:
    hollow = joined(sphere(20), turned_inside_out(sphere(8)))
    assert DistanceStructure.build(hollow).sign is Sign.PSEUDONORMAL


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(joined(sphere(20), sphere(8)), id="nested"),
        pytest.param(joined(sphere(20), sphere(20, (15, 0, 0))), id="overlapping"),
        pytest.param(joined(sphere(20), sphere(20, (0, 0, 40))), id="touching in one vertex"),
        pytest.param(joined(sphere(20), turned_inside_out(sphere(8, (40, 0, 0)))), id="one piece inside out"),
        pytest.param(joined(sphere(20), sphere(20)), id="every triangle twice"),
        pytest.param(Mesh(sphere().vertices_mm, sphere().triangles[:-20]), id="open"),
    ],
)
def test_what_a_pseudonormal_would_get_wrong_takes_the_winding_number(mesh: Mesh) -> None:
    assert DistanceStructure.build(mesh).sign is Sign.WINDING


def test_a_sliver_without_a_plane_takes_the_winding_number() -> None:
    v = np.array([[0, 0, 0], [20, 0, 0], [0, 20, 0], [0, 0, 20], [10, 0, 0]], float)
    # the edge 0-1 is split at 4 on one side only; a triangle without area closes the gap
    faces = np.array([[0, 2, 1], [0, 4, 3], [4, 1, 3], [0, 1, 4], [1, 2, 3], [2, 0, 3]], np.int32)
    s = DistanceStructure.build(Mesh(v, faces))
    assert (s.sign, s.watertight, s.triangles) == (Sign.WINDING, True, 6)


def test_triangles_with_two_equal_corners_are_dropped() -> None:
    ball = sphere()
    faces = np.vstack([ball.triangles, [[3, 3, 4], [5, 5, 5]]]).astype(np.int32)
    s = DistanceStructure.build(Mesh(ball.vertices_mm, faces))
    assert (s.sign, s.triangles) == (Sign.PSEUDONORMAL, len(ball.triangles))
    assert list(s.counts[:2]) == [len(ball.triangles), 2]
    with pytest.raises(InputError, match="corners at the same place"):
        DistanceStructure.build(Mesh(ball.vertices_mm, np.array([[3, 3, 4]], np.int32)))


def test_a_surface_inside_out_is_refused() -> None:
    with pytest.raises(InputError, match="inside out"):
        DistanceStructure.build(turned_inside_out(sphere()))


def test_bench_surfaces_are_closed_apart_and_repeat() -> None:
    first, second = bench_meshes(3000), bench_meshes(3000)
    assert len(first) == 6
    for name, mesh in first.items():
        assert mesh.vertices_mm.tobytes() == second[name].vertices_mm.tobytes()
        assert abs(len(mesh.triangles) - 3000) < 150
        assert np.abs(mesh.vertices_mm).max() < 200
        assert DistanceStructure.build(mesh).sign is Sign.PSEUDONORMAL
    clouds = [m.vertices_mm for m in first.values()]
    for i, a in enumerate(clouds):
        for b in clouds[:i]:
            assert np.linalg.norm(a[::3, None] - b[None, ::3], axis=2).min() > 3.0
