"""Views and DRRs against what is known in closed form: a ball, a box, finite differences."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from navsrv.kernel.errors import InputError, RegistrationError
from navsrv.kernel.frames import CARM, CT, Array, Rigid, rotation_from_vector
from navsrv.kernel.projection import ProjectionModel
from navsrv.registration.drr import DrrVolume, bone_volume
from navsrv.registration.fluoro_stretch import STRETCHES
from navsrv.registration.images import CtImage
from simulators.world.imaging import Detector, carm_pose

SDD, PIXEL, N = 1020.0, 1.2, 160
CENTRE = np.array([31.3, -12.7, 204.9])


def view(orbit_deg: float, turn: Array | None = None, n: int = N) -> ProjectionModel:
    """An oblique detector with its principal point off the middle, its isocentre beside the object."""
    pose = carm_pose(orbit_deg, CENTRE + np.array([3.1, -2.2, 4.7]), Detector(), turn)
    return ProjectionModel.flat(
        pose.inverse(), (n, n - 20), SDD * n / N, PIXEL, ((n - 1) / 2 + 3.4, (n - 21) / 2 - 2.6)
    )


def rays(model: ProjectionModel) -> tuple[Array, Array]:
    """Source (3,) and unit directions (rows, columns, 3), from the matrix alone."""
    p = model.matrix
    inverse = np.linalg.inv(p[:, :3])
    v, u = np.mgrid[0 : model.rows, 0 : model.columns].astype(float)
    d = np.stack([u, v, np.ones_like(u)], axis=-1) @ inverse.T
    return -inverse @ p[:, 3], d / np.linalg.norm(d, axis=-1, keepdims=True)


def ball(spacing: tuple[float, float, float], radius: float = 20.0, blur: float = 1.5) -> tuple[DrrVolume, Array]:
    """A ball with a smooth rim, its centre between voxels, on a tilted grid; also its (i, j, k) to mm."""
    place = np.eye(4)
    place[:3, :3] = rotation_from_vector([0.1, -0.2, 0.15]) * spacing
    size = (np.ceil(2.6 * radius / np.array(spacing)) + 3).astype(int)
    place[:3, 3] = CENTRE - place[:3, :3] @ ((size - 1) / 2 + (0.31, -0.17, 0.23))
    k, j, i = np.indices(size[::-1])
    points = np.stack([i, j, k], axis=-1) @ place[:3, :3].T + place[:3, 3]
    depth = (radius - np.linalg.norm(points - CENTRE, axis=-1)) / blur
    return DrrVolume(0.02 / (1.0 + np.exp(-2.0 * depth)), place), place


def ball_integrals(model: ProjectionModel, radius: float = 20.0, blur: float = 1.5) -> Array:
    """The same ball's line integrals by quadrature along the closed form, which knows no voxels."""
    source, d = rays(model)
    along = (d @ (CENTRE - source))[..., None]
    t = np.linspace(-1.4 * radius, 1.4 * radius, 561)
    off2 = ((CENTRE - source) @ (CENTRE - source)) - along**2
    depth = (radius - np.sqrt(off2 + t**2)) / blur
    total: Array = (0.02 / (1.0 + np.exp(-2.0 * depth))).sum(axis=-1) * (t[1] - t[0])
    return total


def shift_px(image: NDArray[np.floating], truth: Array) -> Array:
    """How far (column, row) an image lies from the truth: least squares on its gradient."""
    dv, du = np.gradient(truth)
    a = np.stack([-du.ravel(), -dv.ravel(), truth.ravel()], axis=1)
    answer: Array = np.linalg.lstsq(a, image.ravel() - truth.ravel(), rcond=None)[0][:2]
    return answer


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 2.5), (2.0, 0.9, 1.1)])
@pytest.mark.parametrize(("orbit", "tilt"), [(0.0, 0.0), (90.0, 0.0), (37.0, 0.3), (-60.0, -0.6)])
def test_a_ball_casts_the_shadow_that_it_should(spacing: tuple[float, float, float], orbit: float, tilt: float) -> None:
    """Catches a half pixel or voxel, swapped axes, a wrong path length, and blocks skipped that are not empty."""
    model = view(orbit, rotation_from_vector([tilt, 0.1, 0.0]))
    image = ball(spacing)[0].render([model])[0, 0]
    truth = ball_integrals(model)
    assert np.abs(shift_px(image, truth)).max() < 0.03
    assert abs(image.sum() / truth.sum() - 1.0) < 2e-3
    assert np.abs(image - truth).max() < 0.05 * truth.max()


def test_a_box_is_as_thick_as_the_path_through_it() -> None:
    """Catches an end plane counted in full or left out: the box is flat across the beam."""
    values = np.full((12, 30, 40), 0.02)
    place = np.diag([1.5, 1.0, 2.0, 1.0])
    place[:3, 3] = CENTRE - place[:3, :3] @ [19.5, 14.5, 5.5]
    for orbit, thickness in ((0.0, 30.0 * 1.0), (90.0, 40 * 1.5)):
        model = view(orbit)
        image = DrrVolume(values, place).render([model])[0, 0]
        column, row = np.rint(model.project(CENTRE)).astype(int)
        slant = 1.0 / (rays(model)[1][row, column] @ model.T_carm_from_object.rotation[2])
        assert image[row, column] == pytest.approx(0.02 * thickness * slant, rel=2e-3)


def test_skipping_what_is_empty_changes_nothing() -> None:
    """Catches an occupancy map that is too tight: thin shells and single voxels are the first to go."""
    rng = np.random.default_rng(2)
    values = np.where(rng.random((50, 40, 60)) < 2e-3, 0.02, 0.0)
    place = np.diag([1.0, 1.2, 1.6, 1.0])
    place[:3, 3] = CENTRE - (30, 24, 40)
    for orbit in (0.0, 25.0, 45.0, 90.0):
        model = view(orbit, rotation_from_vector([0.5, 0.0, 0.2]))
        sparse = DrrVolume(values, place).render([model], derivatives=True)
        whole = DrrVolume(values, place, skip_empty=False).render([model], derivatives=True)
        scale = np.abs(whole).max(axis=(0, 2, 3), keepdims=True)
        assert (whole[:, 0] > 0).sum() > 500
        assert (np.abs(sparse - whole) / scale).max() < 1e-4


@pytest.mark.parametrize("orbit", [0.0, 90.0, 40.0])
def test_derivatives_are_those_of_finite_differences(orbit: float) -> None:
    """Catches a sign, a side of the perturbation, the centre of rotation, and the path length left out."""
    volume, _ = ball((1.0, 1.4, 0.8))
    centre = CENTRE + np.array([25.0, -10.0, 15.0])  # a ball turned about its own middle does not change
    base = view(orbit).T_carm_from_object.inverse()

    def seen(step: Array) -> ProjectionModel:
        turn = rotation_from_vector(step[:3])
        moved = Rigid(CT, CARM, turn @ base.rotation, turn @ (base.translation_mm - centre) + centre + step[3:])
        return ProjectionModel(view(orbit).intrinsics, N, N - 20, moved.inverse())

    found = volume.render([seen(np.zeros(6))], derivatives=True, centre_ct_mm=centre)[0].astype(float)
    for p in range(6):
        h = np.zeros(6)
        h[p] = 5e-4 if p < 3 else 0.02
        ahead, behind = volume.render([seen(h), seen(-h)])[:, 0].astype(float)
        expected = (ahead - behind) / (2.0 * h[p])
        assert np.linalg.norm(found[1 + p] - expected) < 0.02 * np.linalg.norm(expected), p
        assert np.vdot(found[1 + p], expected) / np.vdot(expected, expected) == pytest.approx(1.0, abs=0.01), p


def test_a_stretched_bone_is_a_larger_bone() -> None:
    """Catches a stretch about the wrong point, the wrong way round, and a derivative by it that is another's."""
    volume, _ = ball((1.0, 1.4, 0.8))
    centre, model = CENTRE + np.array([12.0, -5.0, 8.0]), view(25.0)
    longer = volume.stretched(np.array([1.1, 1.1, 1.1]), CENTRE).render([model])[0, 0]
    large = ball((1.0, 1.4, 0.8), radius=22.0, blur=1.65)[0].render([model])[0, 0]
    assert np.abs(longer - large).max() < 0.02 * large.max()
    out = np.empty((1, 7, model.rows, model.columns), np.float32)
    volume.render_into(out, [model], centre, STRETCHES)
    for axis in range(3):
        h = 0.004 * np.eye(3)[axis]
        ahead, behind = (volume.stretched(1.0 + s * h, centre).render([model])[0, 0] for s in (1.0, -1.0))
        expected = (behind - ahead).astype(float) / 0.008  # the rays are stretched: the bone is shorter
        assert np.linalg.norm(out[0, 1 + axis] - expected) < 0.03 * np.linalg.norm(expected), axis


def test_many_views_of_a_call_are_those_of_single_calls() -> None:
    """Catches views that draw into each other's image or read the volume of another axis."""
    volume, _ = ball((1.0, 1.0, 1.5))
    views = [view(orbit) for orbit in (0.0, 90.0, 30.0, -70.0)]
    together = volume.render(views, derivatives=True)
    for model, image in zip(views, together, strict=True):
        np.testing.assert_allclose(image, volume.render([model], derivatives=True)[0], rtol=1e-5, atol=1e-5)


def test_bone_is_what_is_left() -> None:
    """Catches a mask that is ignored, a half voxel lost in resampling, soft tissue left in."""
    spacing = np.array([0.7, 0.7, 2.0])
    place = np.diag([*spacing, 1.0])
    k, j, i = np.indices((40, 90, 90))
    centre = np.array([44.3, 45.2, 20.4]) * spacing
    distance = np.linalg.norm(np.stack([i, j, k], axis=-1) * spacing - centre, axis=-1)
    hu = np.where(distance < 14.0, 800.0, 40.0)
    hu[:, :20] = 800.0  # another bone
    volume = bone_volume(CtImage(hu.astype(np.int16), place), distance < 14.0)
    assert np.abs(volume.centre_ct_mm - centre).max() < 0.05
    mass = volume.values.sum() * abs(np.linalg.det(volume.index_to_ct_mm[:3, :3]))
    assert mass == pytest.approx((800 - 60) * 0.0206e-3 * 4 / 3 * np.pi * 14.0**3, rel=0.05)
    with pytest.raises(RegistrationError, match="empty"):
        bone_volume(CtImage(hu, place), distance < -1)


def test_a_view_is_found_again_in_its_matrix() -> None:
    """Catches a sign lost in the decomposition, and a mirrored image that passes for a real one."""
    model = view(37.0, rotation_from_vector([0.2, 0.1, -0.4]))
    again = ProjectionModel.from_matrix(-3.7 * model.matrix, (N, N - 20), CT, CENTRE)
    np.testing.assert_allclose(again.intrinsics, model.intrinsics, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(again.T_carm_from_object.matrix, model.T_carm_from_object.matrix, atol=1e-8)
    points = CENTRE + np.array([[0, 0, 0], [40.0, -20, 10]])
    np.testing.assert_allclose(again.project(points), model.project(points), atol=1e-8)
    source, d = rays(model)
    np.testing.assert_allclose(model.source_mm, source, atol=1e-8)
    np.testing.assert_allclose(model.project(source + 700 * d[11, 23]), (23, 11), atol=1e-8)
    mirrored = np.diag([-1.0, 1.0, 1.0]) @ model.matrix
    with pytest.raises(InputError, match="mirrored"):
        ProjectionModel.from_matrix(mirrored, (N, N - 20), CT, CENTRE)


def test_binning_keeps_points_in_place() -> None:
    """Catches the half pixel between a pixel's corner and its centre."""
    model = view(0.0)
    image = ball_integrals(model)
    blocks = image.reshape(model.rows // 4, 4, model.columns // 4, 4).mean(axis=(1, 3))
    assert np.abs(shift_px(ball_integrals(model.binned(4)), blocks)).max() < 0.01


def test_what_cannot_be_projected_is_refused() -> None:
    volume, _ = ball((2.0, 2.0, 2.0))
    inside = ProjectionModel.flat(Rigid(CARM, CT, np.eye(3), -CENTRE), (64, 64), SDD, PIXEL)
    with pytest.raises(RegistrationError, match="source stands inside"):
        volume.render([inside])
    with pytest.raises(RegistrationError, match="zeros"):
        DrrVolume(np.zeros((4, 4, 4)), np.eye(4))


def test_the_graphics_card_draws_what_the_cpu_draws() -> None:
    """The card's kernel, run by numba's simulator: catches a formula, an axis or a sign that differs from the CPU's."""
    script = Path(__file__).with_name("drr_on_cuda.py")
    env = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["present"]
    assert set(found["axes"]) == {0, 1, 2}
    assert found["filled"] > 0.2
    assert np.max(found["worst"]) < 1e-4
