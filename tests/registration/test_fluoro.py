"""Two X-rays to CT. The X-rays come from the simulators' own projector on the native CT, with noise and a needle."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from navsrv.anatomy.case import Volume
from navsrv.kernel.errors import RegistrationError
from navsrv.kernel.frames import CARM, CT, REFERENCE, Array, Frame, Rigid, rotation_from_vector, skew
from navsrv.kernel.projection import ProjectionModel
from navsrv.kernel.registration import RegistrationResult, Verdict
from navsrv.registration.fluoro import (
    FluoroSearch,
    PreparedBone,
    axis_shifts,
    level_shifts,
    prepare_bone,
    register_fluoro,
)
from navsrv.registration.fluoro_views import XrayView
from navsrv.registration.images import CtImage
from simulators.world.imaging import (
    Detector,
    Exposure,
    Projector,
    SteelNeedle,
    carm_pose,
    expose,
    steel_integrals,
)

LEVELS, PITCH_MM = 4, 33.0
SPACING = np.array([0.9, 0.9, 1.6])
DETECTOR = Detector(columns=256, rows=256, pixel_mm=1.16, principal_px=(129.3, 126.4))
TRUTH = Rigid(CT, REFERENCE, rotation_from_vector([0.3, -0.5, 0.8]), [30.0, -40.0, 120.0])


def _ellipsoids(rng: np.random.Generator) -> list[tuple[Array, Array, int]]:
    """Centres and radii (mm) of body, pedicles, processes of vertebrae that resemble each other as neighbours do."""
    model = np.array(
        [
            [0, -12, 0, 20, 14, 11],
            [15, 8, 4, 4, 11, 5],
            [-15, 8, 4, 4, 11, 5],
            [0, 30, -7, 3, 15, 6],
            [28, 14, 2, 12, 4, 4],
            [-28, 14, 2, 12, 4, 4.0],
        ]
    )
    parts = []
    for level in range(LEVELS):
        vertebra = model * rng.normal(1.0, 0.07, model.shape) + rng.normal(0, 1.0, model.shape)
        vertebra[:, 2] += PITCH_MM * (level - (LEVELS - 1) / 2)
        parts += [(row[:3], np.maximum(np.abs(row[3:]), 3.0), level + 1) for row in vertebra]
    return parts


@cache
def spine(seed: int = 3) -> tuple[Volume, CtImage, NDArray[np.uint8], Projector]:
    rng = np.random.default_rng(seed)
    shape = (90, 150, 170)
    place = np.diag([*SPACING, 1.0])
    place[:3, 3] = np.array([-3.0, 14.0, 260.0]) - SPACING * (np.array(shape[::-1]) - 1) / 2
    k, j, i = np.indices(shape, dtype=np.float32)
    x, y, z = ((n - (m - 1) / 2) * s for n, m, s in zip((i, j, k), shape[::-1], SPACING, strict=True))
    labels = np.zeros(shape, dtype=np.uint8)
    body = (x / 72) ** 2 + (y / 62) ** 2 < 1
    hu = np.where(body, 30.0 + 12.0 * ndimage.gaussian_filter(rng.normal(0, 6, shape), 3.0), -1000.0)
    for centre, radii, label in _ellipsoids(rng):
        r = np.sqrt(sum(((n - c) / q) ** 2 for n, c, q in zip((x, y, z), centre, radii, strict=True)))
        depth = (1.0 - r) * radii.min()
        hu = np.where(depth > 0, np.maximum(hu, np.where(depth < 2.0, 700.0, 230.0)), hu)
        labels[depth > 0] = label
    hu = ndimage.gaussian_filter(hu, 0.5) + rng.normal(0, 10, shape)
    ct = Volume(np.round(hu).astype(np.int16), place[:3, 3], SPACING)
    return ct, CtImage(ct.voxels, place), labels, Projector(ct, 0.9)


@cache
def bone() -> PreparedBone:
    """The middle two of four vertebrae, which either neighbour resembles."""
    _, image, labels, _ = spine()
    return prepare_bone(image, (labels == 2) | (labels == 3), axis_shifts([0, 0, 1], PITCH_MM))


def xrays(
    seed: int, orbits: tuple[float, ...] = (0.0, 90.0), calibration: bool = True, quanta: float = 1e5
) -> list[XrayView]:
    """Noisy X-rays with a needle; without calibration the views are told wrong by what C-arms get wrong."""
    rng = np.random.default_rng(seed)
    projector, middle = spine()[3], bone().fine.centre_ct_mm
    views = []
    for orbit in orbits:
        pose = carm_pose(orbit, middle + rng.normal(0, 6, 3), DETECTOR, rotation_from_vector(rng.normal(0, 0.05, 3)))
        axis = np.array([-0.5, -0.8, 0.33]) / np.linalg.norm([-0.5, -0.8, 0.33])
        integrals = projector.line_integrals(pose, DETECTOR) + steel_integrals(
            SteelNeedle(middle + np.array([4.0, 2.0, 3.0]), axis), pose, DETECTOR
        )
        told, sdd, principal = pose.inverse(), DETECTOR.sdd_mm, np.array(DETECTOR.principal_px)
        if not calibration:
            sdd += rng.choice([-1.5, 1.5])
            principal = principal + rng.choice([-0.6, 0.6], 2)
            turn = rotation_from_vector(np.radians(0.2) * rng.choice([-0.6, 0.6], 3))
            told = Rigid(CARM, CT, turn @ told.rotation, told.translation_mm + rng.choice([-0.2, 0.2], 3))
        model = ProjectionModel.flat(told @ TRUTH, (256, 256), sdd, DETECTOR.pixel_mm, principal)
        views.append(XrayView(expose(integrals, Exposure(quanta=quanta), rng), model))
    return views


def start(seed: int, shift_mm: float = 15.0, turn_deg: float = 12.0, levels: float = 0.0) -> Rigid:
    """A pose that lies off the truth by a shift, a turn about the bone's middle and a number of levels."""
    rng = np.random.default_rng(seed)
    shift, turn = rng.normal(size=3), rng.normal(size=3)
    rotation = rotation_from_vector(np.radians(turn_deg) * turn / np.linalg.norm(turn))
    middle = bone().fine.centre_ct_mm
    offset = middle - rotation @ middle + shift_mm * shift / np.linalg.norm(shift) + (0, 0, levels * PITCH_MM)
    return Rigid(CT, CT, rotation, offset) @ TRUTH


def error_mm(result: RegistrationResult) -> float:
    """Mean target registration error over the bone."""
    points = bone().points_ct_mm
    found = result.transform.apply(TRUTH.inverse().apply(points))
    return float(np.linalg.norm(found - points, axis=1).mean())


@pytest.mark.parametrize(
    ("seed", "orbits", "levels"),
    [(1, (0.0, 90.0), 0.0), (2, (-20.0, 70.0), 1.0), (3, (0.0, 55.0), -1.0), (4, (10.0, 60.0, 100.0), 0.0)],
)
def test_the_bone_is_found_from_afar(seed: int, orbits: tuple[float, ...], levels: float) -> None:
    """Catches a half pixel between the two renderers, a wrong side of the pose, a neighbour taken for the bone."""
    result = register_fluoro(bone(), xrays(seed, orbits), start(seed, levels=levels))
    assert error_mm(result) < 0.4
    assert result.verdict is Verdict.ACCEPT, result.reason
    assert (str(result.transform.to), str(result.transform.frm)) == ("ct", "reference")
    assert error_mm(result) < 2.0 * result.tre_mm < 2.0


def test_a_c_arm_out_of_calibration_costs_what_was_predicted() -> None:
    """Catches a predicted error that only knows of noise."""
    for seed in (5, 6):
        result = register_fluoro(bone(), xrays(seed, calibration=False), start(seed, 6.0, 5.0))
        assert error_mm(result) < 2.0 * result.tre_mm
        assert error_mm(result) < 1.5


def test_shutters_and_a_low_dose_are_borne() -> None:
    """Catches a similarity that the strongest edges of the picture win: shutters beside the bone, quantum noise."""
    views = []
    for n, view in enumerate(xrays(11, quanta=5e3)):
        pixels = np.array(view.pixels)
        pixels[:, :70], pixels[:, 190:] = 0, 0  # shutters let nothing through: as dark as the densest bone
        pixels[: 40 + 10 * n], pixels[215:] = 0, 0
        views.append(replace(view, pixels=pixels))
    result = register_fluoro(bone(), views, start(11, 10.0, 8.0))
    assert error_mm(result) < 0.6
    assert result.verdict is Verdict.ACCEPT, result.reason


@pytest.mark.parametrize("levels", [-1.0, 1.0])
def test_a_neighbour_is_never_accepted(levels: float) -> None:
    """Catches a verdict that a wrong vertebra passes that looks well by itself when nobody said that others exist."""
    blind = replace(bone(), level_shifts_ct_mm=np.zeros((0, 3)))
    result = register_fluoro(blind, xrays(7), start(7, 3.0, 3.0, levels), search=FluoroSearch(8.0, 7.5))
    assert error_mm(result) > 15.0
    assert result.verdict is not Verdict.ACCEPT, result.reason


def test_what_is_not_in_the_picture_is_not_accepted() -> None:
    """Catches a verdict that rests on the images' sharpness alone: mirrored, negative, exchanged, out of reach."""
    views = xrays(8)
    mirrored = [replace(v, pixels=v.pixels[:, ::-1]) for v in views]
    negative = [replace(v, bright_air=False) for v in views]
    exchanged = [replace(a, pixels=b.pixels) for a, b in zip(views, views[::-1], strict=True)]
    for name, wrong in (("mirrored", mirrored), ("negative", negative), ("exchanged", exchanged)):
        result = register_fluoro(bone(), wrong, start(8, 5.0, 5.0))
        assert result.verdict is not Verdict.ACCEPT, f"{name}: {result.reason}"


def across_mm(result: RegistrationResult, view: XrayView) -> tuple[float, float]:
    """Mean error over the bone as the view shows it (mm at the bone, by the truth's own projection), and its depth."""
    points = bone().points_ct_mm
    found = result.transform.apply(TRUTH.inverse().apply(points))
    seen = view.projection.T_carm_from_object @ TRUTH.inverse()
    k = view.projection.intrinsics
    there, where = seen.apply(points), seen.apply(found)
    pixels = np.linalg.norm((there / there[:, 2:] - where / where[:, 2:])[:, :2] * k[[0, 1], [0, 1]], axis=1)
    return float((pixels * there[:, 2] / k[0, 0]).mean()), float((where - there)[:, 2].mean())


@pytest.mark.parametrize("orbits", [(0.0,), (90.0,), (0.0, 10.0)])
def test_depth_is_never_made_up(orbits: tuple[float, ...]) -> None:
    """Catches a single view, or two from one side, that pass for a registration in three dimensions."""
    views = xrays(10, orbits)
    alone = register_fluoro(bone(), views, start(10, 6.0, 5.0))
    assert alone.verdict is Verdict.REFUSE
    assert "depth" in alone.reason
    across, depth = across_mm(alone, views[0])
    assert across < 0.5
    assert dict(alone.details)["depth_sigma_mm"] > max(1.0, 0.5 * abs(depth))


def test_a_prior_gives_the_depth_that_one_view_cannot() -> None:
    """Catches a prior on the wrong side or about the wrong centre, and one that overrules what the image shows."""
    views = xrays(10, (0.0,))
    beam = views[0].projection.T_carm_from_object @ TRUTH.inverse()
    off = beam.rotation.T @ np.array([3.0, -3.0, 0.4])  # far off across the beam, nearly right along it
    rough = Rigid(CT, CT, np.eye(3), off) @ TRUTH
    middle = bone().fine.centre_ct_mm
    about = np.diag([*[np.radians(3.0) ** 2] * 3, *[0.0] * 3])
    about[3:, 3:] = beam.rotation.T @ np.diag([25.0, 25.0, 0.25]) @ beam.rotation
    shift = np.eye(6)
    shift[3:, :3] = skew(middle)
    known = Rigid(CT, REFERENCE, rough.rotation, rough.translation_mm, shift @ about @ shift.T)
    result = register_fluoro(bone(), views, known)
    across, depth = across_mm(result, views[0])
    assert across < 0.5
    assert abs(depth) < 1.0
    assert error_mm(result) < 2.0 * result.tre_mm
    assert dict(result.details)["depth_sigma_mm"] < 1.2


def test_the_same_images_give_the_same_result() -> None:
    """Catches sums whose order depends on threads: a replay must come to the same pose."""
    views = xrays(9)
    first, second = (register_fluoro(bone(), views, start(9)) for _ in range(2))
    np.testing.assert_array_equal(first.transform.matrix, second.transform.matrix)
    assert first.details == second.details


def test_what_cannot_be_registered_is_refused_in_words() -> None:
    views = xrays(10)
    with pytest.raises(RegistrationError, match="no X-ray view"):
        register_fluoro(bone(), [], start(1))
    with pytest.raises(RegistrationError, match="the views need ct from reference"):
        register_fluoro(bone(), views, Rigid.identity(CT, Frame("table")))
    with pytest.raises(RegistrationError, match="constant"):
        register_fluoro(bone(), [views[0], replace(views[1], pixels=np.ones((256, 256)))], start(1))
    with pytest.raises(RegistrationError, match="pixels for a detector"):
        replace(views[0], pixels=views[0].pixels[1:])


def test_neighbours_lie_one_step_either_way() -> None:
    """Catches a hypothesis that is forgotten on one side."""
    shifts = level_shifts([[0, 0, 0], [0, 2, 30.0], [0, 0, 61]])
    np.testing.assert_allclose(shifts, [[0, 2, 30], [0, -2, 31], [0, -2, -30], [0, 2, -31]])
    np.testing.assert_allclose(axis_shifts([0, 0, 2], [25.0, 30]), [[0, 0, 25], [0, 0, 30], [0, 0, -25], [0, 0, -30]])
