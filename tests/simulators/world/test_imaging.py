"""X-ray geometry against the pinhole model, X-ray physics against known lengths, the O-arm against the CT."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from navsrv.anatomy.case import Case, Volume
from navsrv.kernel.frames import Rigid, rotation_from_vector
from simulators.world.imaging import (
    MU_STEEL_PER_MM,
    MU_WATER_PER_MM,
    VIEWS,
    Detector,
    Exposure,
    OarmProtocol,
    Projector,
    SteelNeedle,
    carm_pose,
    expose,
    reconstruct,
    steel_integrals,
)
from simulators.world.scene import Scene, Stream, stream
from tests.simulators.conftest import TARGET, MiniCase

Array = NDArray[np.float64]
DETECTOR = Detector()
ISO = np.array([20.0, -35.0, 110.0])
ASKEW = rotation_from_vector([0.05, -0.03, 0.06])


def pinhole(point_ct_mm: Array, T_ct_from_carm: Rigid, detector: Detector) -> Array:
    """Return (column, row) where a point projects: similar triangles, nothing of the projector's."""
    x, y, z = T_ct_from_carm.inverse().apply(point_ct_mm)
    return np.array(detector.principal_px) + np.array([x, y]) / z * detector.sdd_mm / detector.pixel_mm


def bead_volume(bead_mm: Array, direction: Array) -> Volume:
    """Return a water block with one dense ball of 3 mm radius, on an anisotropic and turned grid."""
    spacing, size = np.array([0.9, 1.1, 1.4]), np.array([100, 90, 80])
    origin = ISO - direction @ (0.5 * (size - 1) * spacing)
    k, j, i = np.meshgrid(*(np.arange(n) for n in size[::-1]), indexing="ij")
    points = np.stack([i, j, k], axis=-1) * spacing @ direction.T + origin
    hu = np.full(points.shape[:3], -1000.0)
    hu[10:-10, 10:-10, 10:-10] = 0.0
    # The ball's edge is graded over a millimetre, so that its centre is not rounded to the voxels.
    distance = np.linalg.norm(points - bead_mm, axis=-1)
    hu += 6000.0 * np.clip(3.5 - distance, 0.0, 1.0)
    return Volume(hu.astype(np.int16), origin, spacing, direction)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("turned", [False, True])
def test_a_dense_bead_lands_on_the_pixel_of_the_pinhole_model(view: str, turned: bool) -> None:
    direction = rotation_from_vector([0.2, 0.1, -0.3]) if turned else np.eye(3)
    bead = ISO + np.array([14.0, -11.0, 9.0])
    pose = carm_pose(VIEWS[view], ISO, DETECTOR, ASKEW)
    with_bead = Projector(bead_volume(bead, direction)).line_integrals(pose, DETECTOR)
    without = Projector(bead_volume(bead + 1e4, direction)).line_integrals(pose, DETECTOR)
    shadow = np.clip(with_bead - without, 0.0, None).astype(np.float64)
    row, column = (np.sum(grid * shadow) / shadow.sum() for grid in np.indices(shadow.shape))
    assert np.linalg.norm([column, row] - pinhole(bead, pose, DETECTOR)) < 0.25


def test_image_columns_and_rows_run_as_they_do_in_the_theatre() -> None:
    """AP of a prone patient: left is to the right, the feet are down; a swapped or mirrored axis fails here."""
    pose = carm_pose(VIEWS["ap"], ISO, DETECTOR)
    centre, left, feet, back = (
        pinhole(ISO + d, pose, DETECTOR) for d in np.array([[0, 0, 0], [10, 0, 0], [0, 0, -10], [0, 10, 0]], float)
    )
    assert left[0] > centre[0] + 10.0
    assert left[1] == pytest.approx(centre[1])
    assert feet[1] > centre[1] + 10.0
    assert np.allclose(back, centre)
    # The beam runs from front to back, and the lateral beam to the patient's left.
    assert pose.rotation[1, 2] == pytest.approx(1.0)
    assert carm_pose(VIEWS["lateral"], ISO, DETECTOR).rotation[0, 2] == pytest.approx(1.0)
    assert np.linalg.norm(pose.translation_mm - ISO) == pytest.approx(DETECTOR.source_iso_mm)


def test_line_integral_of_a_water_block_is_its_thickness() -> None:
    voxels = np.full((60, 70, 80), -1000, dtype=np.int16)
    voxels[10:50, 10:60, 10:70] = 0
    ct = Volume(voxels, ISO - np.array([39.5, 34.5, 29.5]), np.ones(3))
    pose = carm_pose(0.0, ISO, DETECTOR)
    integrals = Projector(ct).line_integrals(pose, DETECTOR)
    column, row = (round(p) for p in DETECTOR.principal_px)
    assert integrals[row, column] == pytest.approx(50.0 * MU_WATER_PER_MM, rel=0.01)
    assert integrals[5, 5] == 0.0


def test_steel_adds_the_chord_of_a_cylinder_and_its_tip_is_where_the_needle_ends() -> None:
    pose = carm_pose(VIEWS["oblique"], ISO, DETECTOR, ASKEW)
    axis = np.array([0.6, -0.5, 0.62]) / np.linalg.norm([0.6, -0.5, 0.62])
    needle = SteelNeedle(ISO + np.array([3.0, 2.0, -4.0]), axis, length_mm=60.0, radius_mm=1.5)
    steel = steel_integrals(needle, pose, DETECTOR)
    sine = np.linalg.norm(np.cross(axis, pose.rotation[:, 2]))
    assert steel.max() == pytest.approx(2.0 * 1.5 * MU_STEEL_PER_MM / sine, rel=0.05)
    tip, hub = (pinhole(p, pose, DETECTOR) for p in (needle.tip_ct_mm, needle.tip_ct_mm - 60.0 * axis))
    rows, columns = np.nonzero(steel)
    along = (np.stack([columns, rows], axis=1) - hub) @ (tip - hub) / np.linalg.norm(tip - hub) ** 2
    width = 3.0 * DETECTOR.sdd_mm / DETECTOR.source_iso_mm / DETECTOR.pixel_mm / np.linalg.norm(tip - hub)
    assert 1.0 - width < along.max() < 1.0 + width
    assert -width < along.min() < width


def test_the_image_is_linear_in_the_line_integral_with_quantum_noise() -> None:
    exposure = Exposure(blur_px=0.0)
    flat = np.full((200, 200), 3.0)
    image = expose(flat, exposure, np.random.default_rng(0)).astype(np.float64)
    assert image.mean() == pytest.approx(6000.0 * 7.0, abs=6.0)
    assert image.std() == pytest.approx(6000.0 / np.sqrt(2e5 * np.exp(-3.0)), rel=0.05)


def test_an_oarm_volume_put_back_at_its_true_pose_is_the_ct(mini_case: MiniCase) -> None:
    ct = Case.load(mini_case.folder).ct()
    scene = Scene.from_seed(8, TARGET)
    protocol = OarmProtocol(voxel_mm=1.8, noise_hu=10.0)
    volume = reconstruct(ct, scene.T_ct_from_volume, protocol, stream(8, Stream.OARM))
    assert volume.voxels.dtype == np.int16

    def agreement(pose: Rigid) -> float:
        k, j, i = (a[::2, ::2, ::2].ravel() for a in np.indices(volume.voxels.shape))
        index = np.stack([i, j, k, np.ones_like(i)], axis=1)
        in_volume = (index @ volume.index_to_volume_mm.T)[:, :3]
        inside = np.hypot(in_volume[:, 0], in_volume[:, 1]) < 0.5 * protocol.diameter_mm - 3.0
        at = ct.index_from_ct(pose.apply(in_volume[inside]))
        expected = map_coordinates(ct.voxels, at[:, ::-1].T, np.float32, order=1, cval=-1000.0)
        found = volume.voxels[k[inside], j[inside], i[inside]]
        tissue = expected > -500
        return float(np.corrcoef(expected[tissue], found[tissue])[0, 1])

    truth = scene.T_ct_from_volume
    best = agreement(truth)
    assert best > 0.95
    for step in np.concatenate([np.eye(3), -np.eye(3)]):
        beside = Rigid(truth.to, truth.frm, truth.rotation, truth.translation_mm + 2.0 * step)
        turned = Rigid(truth.to, truth.frm, truth.rotation @ rotation_from_vector(0.05 * step), truth.translation_mm)
        assert agreement(beside) < best
        assert agreement(turned) < best


def test_an_oarm_volume_is_cut_to_its_cylinder_and_lies_about_hu(mini_case: MiniCase) -> None:
    ct = Case.load(mini_case.folder).ct()
    protocol = OarmProtocol(voxel_mm=1.8)
    scene = Scene.from_seed(8, TARGET)
    volume = reconstruct(ct, scene.T_ct_from_volume, protocol, stream(8, Stream.OARM))
    _, j, i = np.indices(volume.voxels.shape)
    x, y = (volume.index_to_volume_mm[a, a] * n + volume.index_to_volume_mm[a, 3] for a, n in ((0, i), (1, j)))
    outside = np.hypot(x, y) > 0.5 * protocol.diameter_mm + protocol.voxel_mm
    assert (volume.voxels[outside] == -1000).all()
    assert abs(volume.index_to_volume_mm[2, 2] * (volume.voxels.shape[0] - 1) - protocol.height_mm) <= protocol.voxel_mm
    # The slice through the isocentre is soft tissue (40 HU in the CT) with noise and cupping, not the CT's own numbers.
    middle = volume.voxels[5:15, volume.voxels.shape[1] // 2 - 3 :, volume.voxels.shape[2] // 2 - 3 :][:, :6, :6]
    assert np.median(middle) < 40 - 20
    assert 15.0 < middle.std() < 80.0
