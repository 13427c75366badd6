"""Surfaces are closed, outward, where the anatomy is, and say how far they left the voxels."""

import numpy as np
import pytest

from navsrv.anatomy import surfaces
from navsrv.anatomy.bvh import DistanceStructure
from navsrv.anatomy.case import Volume
from navsrv.anatomy.mesh import Mesh
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import rotation_from_vector

CENTER = np.array([12.0, -30.0, 41.0])


def ball_field(radius: float, spacing: tuple[float, float, float], turned: bool = False) -> Volume:
    """Depth below a sphere's surface (mm) on a grid around ``CENTER``, axes turned if asked."""
    direction = rotation_from_vector((0.3, -0.2, 0.4)) if turned else np.eye(3)
    n = [int(2 * (radius + 4) / s) + 1 for s in spacing]
    empty = np.zeros(n[::-1])
    middle = direction @ ((np.array(n) - 1) / 2 * spacing)
    grid = Volume(empty, CENTER - middle, spacing, direction)
    k, j, i = np.indices(empty.shape)
    points = grid.ct_from_index(np.stack([i, j, k], axis=-1).reshape(-1, 3))
    depth = radius - np.linalg.norm(points - CENTER, axis=1)
    return Volume(depth.reshape(empty.shape), grid.origin_mm, spacing, direction)


def radii(mesh: Mesh) -> np.ndarray:
    return np.linalg.norm(mesh.vertices_mm - CENTER, axis=1)


@pytest.mark.parametrize("turned", [False, True])
def test_field_surface_lies_where_the_field_says_on_any_grid(turned: bool) -> None:
    field = ball_field(10.0, (0.8, 0.9, 1.1), turned)
    mesh = surfaces.field_surface(field.voxels, 0.0, field)
    # Linear interpolation of a distance is off by at most step^2 / (8 R).
    assert np.abs(radii(mesh) - 10.0).max() < 1.1**2 / 80 + 0.002
    assert surfaces.open_edges(mesh) == 0
    assert surfaces.signed_volume_mm3(mesh) == pytest.approx(4 / 3 * np.pi * 1000, rel=0.01)


def test_a_surface_through_grid_points_has_no_degenerate_triangles() -> None:
    # A cube whose faces lie exactly on grid points: the usual contour yields zero areas there.
    field = np.minimum.reduce([5.0 - np.abs(a - 8.0) for a in np.indices((17, 17, 17))])
    mesh = surfaces.field_surface(field, 0.0, Volume(field, (0, 0, 0), (1, 1, 1)))
    a, b, c = (mesh.vertices_mm[mesh.triangles[:, i]] for i in range(3))
    assert np.linalg.norm(np.cross(b - a, c - a), axis=1).min() > 1e-8
    assert surfaces.open_edges(mesh) == 0
    assert np.abs(np.abs(mesh.vertices_mm - 8.0).max(axis=1) - 5.0).max() < 0.002


def test_isosurface_is_closed_where_the_anatomy_leaves_the_volume() -> None:
    voxels = np.full((6, 7, 8), -1000, np.int16)
    voxels[:3] = 200
    mesh = surfaces.isosurface(Volume(voxels, (0, 0, 0), (1, 1, 1)), -400.0)
    assert surfaces.open_edges(mesh) == 0
    top = mesh.vertices_mm[:, 2].max()
    assert top == pytest.approx(2.5, abs=0.01)  # half way between 200 and -1000


@pytest.mark.parametrize("radius", [4.0, 15.0])
def test_label_surface_keeps_volume_and_place_on_thick_slices(radius: float) -> None:
    field = ball_field(radius, (0.7, 0.7, 2.5))
    labels = Volume((field.voxels > 0).astype(np.uint8) * 3, field.origin_mm, field.spacing_mm)
    made = surfaces.label_surface(labels, 3)
    assert surfaces.signed_volume_mm3(made.mesh) == pytest.approx(made.label_volume_mm3, rel=0.03)
    error = radii(made.mesh) - radius
    assert abs(error.mean()) < 0.15
    assert np.abs(error).max() < 1.3  # half of the slice distance
    assert made.deviation_rms_mm < made.deviation_max_mm < 2.5
    assert surfaces.open_edges(made.mesh) == 0


def test_a_thin_nerve_of_one_voxel_is_not_smoothed_away() -> None:
    voxels = np.zeros((20, 20, 30), np.uint8)
    voxels[5:15, 5:15, 2:12] = 1  # a block
    voxels[10, 10, 12:26] = 1  # with a fibre of one voxel
    made = surfaces.label_surface(Volume(voxels, (0, 0, 0), (1, 1, 1)), 1)
    assert made.mesh.vertices_mm[:, 0].max() > 24.0
    assert made.deviation_max_mm < 2.0


def test_a_gap_of_several_voxels_between_two_parts_stays_open() -> None:
    voxels = np.zeros((14, 14, 24), np.uint8)
    voxels[3:11, 3:11, 2:10] = 1
    voxels[3:11, 3:11, 13:21] = 1
    made = surfaces.label_surface(Volume(voxels, (0, 0, 0), (1, 1, 1)), 1)
    # The middle of the gap is outside: no vertex, and the two parts are separate pieces.
    assert not ((made.mesh.vertices_mm[:, 0] > 11.0) & (made.mesh.vertices_mm[:, 0] < 12.0)).any()


def test_surfaces_carry_an_exact_sign() -> None:
    field = ball_field(9.0, (1.0, 1.0, 1.0))
    structure = DistanceStructure.build(surfaces.field_surface(field.voxels, 0.0, field))
    assert structure.watertight


def test_open_edges_counts_the_rim_of_a_hole() -> None:
    field = ball_field(6.0, (1.0, 1.0, 1.0))
    mesh = surfaces.field_surface(field.voxels, 0.0, field)
    assert surfaces.open_edges(Mesh(mesh.vertices_mm, mesh.triangles[1:])) == 3


def test_distance_to_surface_is_that_of_the_sphere() -> None:
    field = ball_field(10.0, (0.5, 0.5, 0.5))
    mesh = surfaces.field_surface(field.voxels, 0.0, field)
    points = CENTER + np.array([[0.0, 0.0, 0.0], [13.0, 0.0, 0.0], [0.0, -4.0, 0.0]])
    assert surfaces.distance_to_surface(mesh, points) == pytest.approx([10.0, 3.0, 6.0], abs=0.02)


def test_a_level_that_is_never_reached_is_refused() -> None:
    with pytest.raises(InputError, match="no surface"):
        surfaces.isosurface(Volume(np.arange(27).reshape(3, 3, 3), (0, 0, 0), (1, 1, 1)), 300.0)


def test_a_surface_elsewhere_than_the_ct_names_the_space() -> None:
    field = ball_field(6.0, (1.0, 1.0, 1.0))
    mesh = surfaces.field_surface(field.voxels, 0.0, field)
    surfaces.require_within(mesh, field, "there")
    mirrored = Mesh(mesh.vertices_mm * (-1, -1, 1), mesh.triangles)
    with pytest.raises(InputError, match=r"outside the CT.*LPS and RAS"):
        surfaces.require_within(mirrored, field, "elsewhere")
