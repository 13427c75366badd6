"""Two vertebrae that have moved against each other since the CT: each is found where it is."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from navsrv.kernel.errors import RegistrationError
from navsrv.kernel.frames import CT, Array, Rigid, rotation_from_vector
from navsrv.kernel.projection import ProjectionModel
from navsrv.kernel.registration import RegistrationResult, Verdict
from navsrv.registration.fluoro import PreparedBone, axis_shifts, prepare_bone, register_fluoro
from navsrv.registration.fluoro_bones import register_bones
from navsrv.registration.fluoro_views import XrayView
from simulators.world.imaging import Exposure, Projector, carm_pose, expose
from tests.registration.test_fluoro import DETECTOR, PITCH_MM, SPACING, TRUTH, spine, start

UPPER, LOWER = 3, 2


def motion() -> Rigid:
    """Where the upper vertebra has gone: about its middle, 4 degrees and 2 mm."""
    middle = bone(UPPER).fine.centre_ct_mm
    turn = rotation_from_vector(np.radians(4.0) * np.array([0.6, 0.0, 0.8]))
    return Rigid(CT, CT, turn, middle - turn @ middle + np.array([1.2, -1.0, 1.2]))


@cache
def bone(label: int) -> PreparedBone:
    _, image, labels, _ = spine()
    return prepare_bone(image, labels == label, axis_shifts([0, 0, 1], PITCH_MM), labels == 5 - label)


def xrays() -> list[XrayView]:
    """X-rays of the spine with its upper vertebra moved: cut out, filled, put down elsewhere."""
    ct, image, labels, _ = spine()
    near = ndimage.binary_dilation(labels == UPPER, iterations=2)
    hole = np.where(near, 30, ct.voxels).astype(np.float32)
    place = np.asarray(image.index_to_ct_mm)
    k, j, i = np.indices(labels.shape)
    points = np.stack([i, j, k], axis=-1).reshape(-1, 3) @ place[:3, :3].T + place[:3, 3]
    index = ((motion().inverse().apply(points) - place[:3, 3]) / SPACING)[:, ::-1].T
    there = ndimage.map_coordinates(np.where(near, ct.voxels, -2000).astype(np.float32), index, order=1, cval=-2000.0)
    moved = np.maximum(hole, there.reshape(labels.shape))
    projector = Projector(replace(ct, voxels=np.round(moved).astype(np.int16)), 0.9)
    rng = np.random.default_rng(4)
    views = []
    for orbit in (0.0, 80.0):
        pose = carm_pose(orbit, bone(LOWER).fine.centre_ct_mm + np.array([2.0, 3.0, 12.0]), DETECTOR)
        pixels = expose(projector.line_integrals(pose, DETECTOR), Exposure(), rng)
        model = ProjectionModel.flat(
            pose.inverse() @ TRUTH, (256, 256), DETECTOR.sdd_mm, DETECTOR.pixel_mm, DETECTOR.principal_px
        )
        views.append(XrayView(pixels, model))
    return views


def error_mm(found: Rigid, truth: Rigid, points: Array) -> float:
    return float(np.linalg.norm(found.apply(truth.inverse().apply(points)) - points, axis=1).mean())


def test_bones_that_moved_are_found_each_where_it_is() -> None:
    """Catches a neighbour taken to be rigid with the bone, a prior that holds too fast, edges taken for another's."""
    views = xrays()
    first = register_fluoro(bone(LOWER), views, start(3, 5.0, 5.0))
    found = register_bones({"lower": bone(LOWER), "upper": bone(UPPER)}, views, "lower", first)
    truth = motion().inverse() @ TRUTH
    points = bone(UPPER).points_ct_mm
    assert error_mm(found["lower"].transform, TRUTH, bone(LOWER).points_ct_mm) < 0.5
    assert error_mm(first.transform, truth, points) > 1.5
    assert error_mm(found["upper"].transform, truth, points) < 0.5
    assert found["upper"].verdict is Verdict.ACCEPT, found["upper"].reason
    assert error_mm(found["upper"].transform, truth, points) < 2.0 * found["upper"].tre_mm
    in_doubt = replace(first, verdict=Verdict.REFUSE, reason="as told")
    again: dict[str, RegistrationResult] = register_bones(
        {"lower": bone(LOWER), "upper": bone(UPPER)}, views, "lower", in_doubt
    )
    assert again["upper"].verdict is Verdict.REFUSE
    assert "as told" in again["upper"].reason
    with pytest.raises(RegistrationError, match="none of the bones"):
        register_bones({"upper": bone(UPPER)}, views, "lower", first)
    with pytest.raises(RegistrationError, match="degrees apart"):
        register_bones({"lower": bone(LOWER)}, views[:1], "lower", first)
