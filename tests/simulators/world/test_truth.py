"""The truth is judged by sampling and by optimisation, never by the code that it will judge."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.spatial import cKDTree

from navsrv.kernel.errors import InputError
from simulators.world.truth import Surface, Truth

Array = NDArray[np.float64]

BENT_TUBE = {"type": "tube", "points_mm": [[0, 0, 0], [20, 0, 0], [28, 14, 3], [28, 30, 3]], "radius_mm": 4.0}
CONE = {
    "type": "round_cone",
    "start_mm": [1, 2, 3],
    "end_mm": [14, -6, 10],
    "start_radius_mm": 7.5,
    "end_radius_mm": 3.0,
}
TURN = 0.6
ELLIPSOID = {
    "type": "ellipsoid",
    "center_mm": [3, -4, 5],
    "axes_mm": [14.0, 9.0, 5.0],
    "rotation": [[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]],
}
CYLINDER = {"type": "elliptic_cylinder", "center_mm": [1, -2, 4], "axes_mm": [30.0, 18.0], "half_length_mm": 25.0}


def written(folder: Path, **structures: list[dict[str, object]]) -> Truth:
    record = {"frame": "LPS", "units": "mm", "seed": 0, "structures": {}}
    for name, solids in structures.items():
        record["structures"][name] = {"kind": "critical", "label": 1, "primitives": solids}  # type: ignore[index]
    path = folder / "primitives.json"
    path.write_text(json.dumps(record))
    return Truth.from_primitives(path)


def sphere(count: int) -> Array:
    k = np.arange(count) + 0.5
    polar, turn = np.arccos(1 - 2 * k / count), np.pi * (1 + 5**0.5) * k
    return np.stack([np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar)], axis=1)


def ball_cloud(centres: Array, radii: Array, corners: Array) -> Array:
    """Points on the wall of a union of balls, denser about the corners, without what lies inside another ball."""
    dense = np.isin(centres, corners).all(axis=1)
    parts = [(c + r * sphere(20_000 if d else 800)) for c, r, d in zip(centres, radii, dense, strict=True)]
    cloud = np.concatenate(parts)
    keep = np.ones(len(cloud), dtype=bool)
    for centre, radius in zip(centres, radii, strict=True):
        keep &= np.linalg.norm(cloud - centre, axis=1) > radius - 0.01
    return cloud[keep]


def balls_of(solid: dict[str, object], step: float = 0.1) -> tuple[Array, Array]:
    if solid["type"] == "tube":
        points = np.asarray(solid["points_mm"], dtype=float)
        parts = [a + np.linspace(0, 1, int(np.linalg.norm(b - a) / step) + 2)[:, None] * (b - a)
                 for a, b in pairwise(points)]  # fmt: skip
        centres = np.concatenate(parts)
        return centres, np.full(len(centres), float(str(solid["radius_mm"])))
    a, b = np.asarray(solid["start_mm"], dtype=float), np.asarray(solid["end_mm"], dtype=float)
    t = np.linspace(0, 1, int(np.linalg.norm(b - a) / step) + 2)
    r0, r1 = float(str(solid["start_radius_mm"])), float(str(solid["end_radius_mm"]))
    return a + t[:, None] * (b - a), r0 + t * (r1 - r0)


@pytest.mark.parametrize("solid", [BENT_TUBE, CONE], ids=["tube", "round cone"])
def test_outside_a_chain_of_balls_the_distance_is_that_to_the_nearest_ball(
    solid: dict[str, object], tmp_path: Path
) -> None:
    truth = written(tmp_path, part=[solid])
    centres, radii = balls_of(solid, 0.01)
    points = np.random.default_rng(1).uniform(-15, 40, (800, 3))
    to_balls = np.array([(np.linalg.norm(p - centres, axis=1) - radii).min() for p in points])
    outside = to_balls > 0.01
    assert outside.sum() > 600
    np.testing.assert_allclose(truth.distance(points)["part"][outside], to_balls[outside], atol=1e-3)


@pytest.mark.parametrize("solid", [BENT_TUBE, CONE], ids=["tube", "round cone"])
def test_inside_the_depth_is_exact_where_it_says_so_and_never_too_large(
    solid: dict[str, object], tmp_path: Path
) -> None:
    truth = written(tmp_path, part=[solid])
    centres, radii = balls_of(solid)
    rng = np.random.default_rng(2)
    pick = rng.integers(len(centres), size=1500)
    points = centres[pick] + rng.uniform(-0.6, 0.6, (1500, 3)) * radii[pick, None]
    found, exact = truth.distance(points)["part"], truth.is_exact(points)["part"]
    inside = found < -0.1
    corners = np.asarray(solid.get("points_mm", [solid.get("start_mm"), solid.get("end_mm")]), dtype=float)
    cloud = ball_cloud(centres, radii, corners)
    sampled = cKDTree(cloud).query(points)[0]  # from above: no sample is nearer than the wall
    assert (-found[inside] <= sampled[inside] + 0.02).all()
    both = exact & (found < -0.5)  # shallower than that the gaps between samples show
    assert both.sum() > 800
    np.testing.assert_allclose(-found[both], sampled[both], atol=0.1)


def test_a_depth_next_to_another_solid_of_the_union_is_called_a_bound(tmp_path: Path) -> None:
    # Two balls 3 mm apart, radius 5: midway the nearest wall of each lies inside the other.
    balls = [{"type": "ellipsoid", "center_mm": [x, 0, 0], "axes_mm": [5, 5, 5], "rotation": np.eye(3).tolist()}
             for x in (-1.5, 1.5)]  # fmt: skip
    truth = written(tmp_path, part=balls)
    assert truth.distance([1.0, 0.0, 0.0])["part"] == pytest.approx(-4.5)
    assert not truth.is_exact([0.2, 0.0, 0.0])["part"]
    assert truth.is_exact([3.0, 0.0, 0.0])["part"]
    assert truth.distance([3.0, 0.0, 0.0])["part"] == pytest.approx(-3.5)


def test_an_ellipsoid_agrees_with_numerical_optimisation(tmp_path: Path) -> None:
    truth = written(tmp_path, part=[ELLIPSOID])
    centre, axes, rotation = (np.asarray(ELLIPSOID[k], dtype=float) for k in ("center_mm", "axes_mm", "rotation"))
    rng = np.random.default_rng(3)
    points = np.concatenate([centre + rng.uniform(-22, 22, (30, 3)), centre + rng.uniform(-3, 3, (15, 3)), [centre]])

    def wall(angles: Array) -> Array:
        u, v = angles
        local = axes * [np.cos(u) * np.cos(v), np.sin(u) * np.cos(v), np.sin(v)]
        result: Array = rotation @ local + centre
        return result

    u, v = np.meshgrid(np.linspace(0, 2 * np.pi, 60), np.linspace(-np.pi / 2, np.pi / 2, 30))
    starts = np.stack([u.ravel(), v.ravel()], axis=1)
    cloud = np.array([wall(a) for a in starts])
    for point in points:
        start = starts[np.linalg.norm(cloud - point, axis=1).argmin()]
        best = minimize(lambda a, point=point: float(((wall(a) - point) ** 2).sum()), start, tol=1e-14).fun ** 0.5
        inside = ((((point - centre) @ rotation) / axes) ** 2).sum() < 1
        assert truth.distance(point)["part"] == pytest.approx(-best if inside else best, abs=1e-3)


def test_a_cylinder_knows_side_end_and_rim(tmp_path: Path) -> None:
    truth = written(tmp_path, part=[CYLINDER])
    # on the long axis of the ellipse, beyond the end, off the rim (3-4-5), deep near the end, deep near the side
    points = [[36, -2, 4], [1, -2, 34], [34, -2, 33], [1, -2, 27], [1, 12, 4]]
    np.testing.assert_allclose(truth.distance(points)["part"], [5, 5, 5, -2, -4], atol=1e-6)


def test_the_shaft_finds_what_lies_between_samples(tmp_path: Path) -> None:
    truth = written(tmp_path, tube=[BENT_TUBE], ball=[ELLIPSOID])
    rng = np.random.default_rng(4)
    tips, hubs = rng.uniform(-30, 50, (12, 3)), rng.uniform(-30, 50, (12, 3))
    found = truth.shaft_distance(tips, hubs, 1.5)
    for n in range(12):
        fine = tips[n] + np.linspace(0, 1, 40_001)[:, None] * (hubs[n] - tips[n])
        for name, values in truth.distance(fine).items():
            assert found[name][n] == pytest.approx(values.min() - 1.5, abs=2e-3)
    alone = truth.shaft_distance(tips[0], hubs[0], 1.5)
    assert alone["tube"] == pytest.approx(found["tube"][0])


def cube() -> Surface:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-2, 2) for z in (-3, 3)], dtype=float)
    quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    triangles = np.array([[q[0], q[i], q[i + 1]] for q in quads for i in (1, 2)])
    return Surface(corners, triangles)


def test_triangles_give_the_closed_form_of_a_box() -> None:
    points = np.random.default_rng(5).uniform(-6, 6, (2000, 3))
    q = np.abs(points) - [1, 2, 3]
    expected = np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(axis=1), 0)
    found, exact = cube().distance(points)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert exact.all()


def test_a_case_takes_solids_where_it_has_them_and_triangles_elsewhere(tmp_path: Path) -> None:
    written(tmp_path, **{"Nerve": [BENT_TUBE]})
    (tmp_path / "surfaces").mkdir()
    box = cube()
    np.savez(tmp_path / "surfaces" / "box.npz", vertices_mm=box.vertices, triangles=box.triangles.astype(np.int32))
    structures = [{"name": "Nerve", "surface": "surfaces/absent.npz"}, {"name": "Box", "surface": "surfaces/box.npz"}]
    (tmp_path / "case.json").write_text(json.dumps({"primitives": "primitives.json", "structures": structures}))
    found = Truth.from_case(tmp_path).distance([0.0, 0.0, 10.0])
    assert found["Nerve"] == pytest.approx(6.0)
    assert found["Box"] == pytest.approx(7.0)


def test_a_solid_that_is_not_known_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"primitives\.json: structures\.part: .*torus"):
        written(tmp_path, part=[{"type": "torus"}])
    with pytest.raises(InputError, match=r"case\.json"):
        Truth.from_case(tmp_path / "absent")
