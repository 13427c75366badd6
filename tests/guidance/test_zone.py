"""Ellipsoid zones against spheres in closed form, and against dense samples of every triangle by plain bisection."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from navsrv.anatomy.bvh import DistanceStructure
from navsrv.anatomy.mesh import Mesh
from navsrv.guidance.clearance import ClearanceEngine, Clearances, Zone, ZoneClearances
from tests.pipeline.room import icosphere

Array = NDArray[np.float64]

BALL = icosphere((0.0, 0.0, 0.0), 15.0)
SLAB = Mesh(  # a long thin box, of which triangles are far larger than the zone
    np.array([[x, y, z] for x in (-80.0, 80.0) for y in (-30.0, 30.0) for z in (38.0, 42.0)]),
    np.array(
        [
            *([0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]),
            *([2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]),
        ],
        np.int32,
    ),
)
ENGINE = ClearanceEngine([DistanceStructure.build(mesh) for mesh in (BALL, SLAB)])
MESHES = (BALL, SLAB)


def signed(points: Array, r: Array) -> Array:
    """Signed distance of points (N, 3) to an axis-aligned ellipsoid, by 70 halvings of the bracket of its equation."""
    p = np.maximum(np.abs(points), 1e-9)
    low = (r * p - r**2).max(axis=1)
    high = np.linalg.norm(r * p, axis=1) - (r**2).min()
    for _ in range(70):
        t = 0.5 * (low + high)
        above = ((r * p / (t[:, None] + r**2)) ** 2).sum(axis=1) > 1.0
        low, high = np.where(above, t, low), np.where(above, high, t)
    on = r**2 * p / (high[:, None] + r**2)
    inside = ((p / r) ** 2).sum(axis=1) < 1.0
    result: Array = np.where(inside, -1.0, 1.0) * np.linalg.norm(p - on, axis=1)
    return result


def brute(mesh: Mesh, zone: Zone) -> float:
    """Least signed distance over all triangles: a grid on each, then finer grids about the best places."""
    corners = (mesh.vertices_mm[mesh.triangles] - zone.centre_ct_mm) @ zone.R_ct_from_zone
    steps = np.linspace(0.0, 1.0, 9)
    uv = np.array([(u, v) for u in steps for v in steps])
    centre, width = np.zeros((len(corners), 2)), 1.0
    least = np.inf
    for _ in range(14):
        at = np.clip(centre[:, None] + width * (uv - (0.0 if width == 1.0 else 0.5)), 0.0, 1.0)
        over = at.sum(axis=2, keepdims=True)
        at = np.where(over > 1.0, at / np.maximum(over, 1e-12), at)
        u, v = at[..., :1], at[..., 1:]
        points = (1 - u - v) * corners[:, None, 0] + u * corners[:, None, 1] + v * corners[:, None, 2]
        g = signed(points.reshape(-1, 3), zone.semi_axes_mm).reshape(points.shape[:2])
        best = g.argmin(axis=1)
        least = min(least, float(g.min()))
        keep = np.argsort(g.min(axis=1))[:40]
        corners, centre, width = corners[keep], at[keep, best[keep]], 0.5 * width
    return least


def measured(zone: Zone) -> ZoneClearances:
    out = ZoneClearances(2)
    ENGINE.measure_zone(zone, out)
    return out


def random_zone(rng: np.random.Generator, sphere: bool = False) -> Zone:
    r = np.full(3, rng.uniform(2.0, 20.0)) if sphere else rng.uniform(2.0, 25.0, 3)
    return Zone(rng.uniform(-45.0, 45.0, 3), Rotation.random(random_state=rng).as_matrix(), r)


def test_a_sphere_is_the_distance_of_its_centre_less_its_radius() -> None:
    rng = np.random.default_rng(1)
    point = Clearances(2)
    for _ in range(70):
        zone = random_zone(rng, sphere=True)
        ENGINE.measure(zone.centre_ct_mm, (0.0, 0.0, 1.0), 0.0, 0.0, point)
        out = measured(zone)
        np.testing.assert_allclose(out.distance_mm, point.tip_distance_mm - zone.semi_axes_mm[0], atol=1e-3)


def test_ellipsoids_agree_with_brute_force_and_say_how_sure_they_are() -> None:
    rng = np.random.default_rng(2)
    point = Clearances(2)
    for _ in range(8):
        zone = random_zone(rng)
        out = measured(zone)
        ENGINE.measure(zone.centre_ct_mm, (0.0, 0.0, 1.0), 0.0, 0.0, point)
        for i, mesh in enumerate(MESHES):
            least = brute(mesh, zone)
            truth = least if point.tip_distance_mm[i] >= 0.0 else -(2.0 * zone.semi_axes_mm.min() + least)
            assert out.distance_mm[i] == pytest.approx(truth, abs=1e-3)
            assert 0.0 <= out.error_mm[i] <= 1e-3
            local = zone.R_ct_from_zone.T @ (out.nearest_mm[i] - zone.centre_ct_mm)
            assert float(signed(local[None], zone.semi_axes_mm)[0]) == pytest.approx(least, abs=1e-3)


@given(st.integers(0, 10**6), st.floats(0.0, 3.0))
@settings(max_examples=60, deadline=None)
def test_moving_a_zone_moves_its_clearance_no_farther_outside(seed: int, step_mm: float) -> None:
    rng = np.random.default_rng(seed)
    zone = random_zone(rng)
    way = rng.normal(size=3)
    moved = Zone(zone.centre_ct_mm + step_mm * way / np.linalg.norm(way), zone.R_ct_from_zone, zone.semi_axes_mm)
    before, after = measured(zone).distance_mm, measured(moved).distance_mm
    apart = np.abs(after - before)[(before > 0.0) & (after > 0.0)]
    assert (apart <= step_mm + 2e-3).all()


def test_a_zone_that_swallows_a_structure_or_is_swallowed_is_negative() -> None:
    swallowing = Zone(np.zeros(3), np.eye(3), np.array([60.0, 50.0, 20.0]))
    assert measured(swallowing).distance_mm[0] < -15.0
    swallowed = Zone(np.zeros(3), np.eye(3), np.array([3.0, 2.0, 4.0]))
    distance = measured(swallowed).distance_mm[0]
    assert distance == pytest.approx(-(2.0 * 2.0 + brute(BALL, swallowed)), abs=1e-3)
    assert distance < -2.0


@pytest.mark.parametrize(
    "bad",
    [
        {"semi_axes_mm": np.array([0.0, 1.0, 1.0])},
        {"semi_axes_mm": np.array([1.0, np.nan, 1.0])},
        {"centre_ct_mm": np.array([np.inf, 0.0, 0.0])},
        {"R_ct_from_zone": np.diag([1.0, 1.0, -1.0])},
    ],
)
def test_what_is_no_ellipsoid_is_refused(bad: dict[str, Any]) -> None:
    values: dict[str, Any] = {"centre_ct_mm": np.zeros(3), "R_ct_from_zone": np.eye(3), "semi_axes_mm": np.ones(3)}
    with pytest.raises(ValueError, match="expected finite numbers"):
        ENGINE.measure_zone(Zone(**{**values, **bad}), ZoneClearances(2))
