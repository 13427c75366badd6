"""Real X-rays: a wrist between two calibrated cameras, and the CT of its radius.  No pose is known: they must agree.

Each camera is asked alone, from a rough pose, and both together: what they say of the bone is compared.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from navsrv.kernel.frames import CARM, CT, Array, Frame, Rigid, rotation_angle_rad, rotation_from_vector, skew
from navsrv.kernel.projection import ProjectionModel
from navsrv.kernel.registration import Verdict
from navsrv.registration.drr import bone_volume
from navsrv.registration.fluoro import FluoroSearch, PreparedBone, axis_shifts, register_fluoro
from navsrv.registration.fluoro_views import XrayView
from navsrv.registration.images import CtImage

WORLD = Frame("world")
JOINT_MM = np.array([106.0, 131.0, 77.0])
"""Where the wrist's joint is, by eye in both pictures of frame 2."""
DOWN = np.array([0.0, 1.0, 0.0])
SPACING = (0.39625, 0.39625, 0.625)
HALF_PX = 300


@pytest.fixture
def wrist(data_dir: Path) -> Path:
    folder = data_dir / "wrist_biplane"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


def camera(path: Path) -> tuple[Array, Array, Array]:
    """Return K, R, t of a calibration file."""
    blocks = [b.splitlines()[1:] for b in path.read_text().strip().split("\n\n")]
    k, r, t = (np.array([[float(x) for x in line.split(",")] for line in block]) for block in blocks[1:4])
    return k, r, t.ravel()


def views(folder: Path, frame: int) -> list[XrayView]:
    """Return what both cameras show about the end of the radius."""
    found = []
    for number in (1, 2):
        k, r, t = camera(folder / f"xr_calib_wrist_cam0{number}.txt")
        pixels: Any = cv2.imread(str(folder / f"xr_rad_uln_cam0{number}_UND.{frame:04d}.tif"), cv2.IMREAD_UNCHANGED)
        middle = k @ (r @ (JOINT_MM + 20.0 * DOWN) + t)
        column, row = (int(x) - HALF_PX for x in middle[:2] / middle[2])
        k[:2, 2] -= (column, row)
        part = pixels[row : row + 2 * HALF_PX, column : column + 2 * HALF_PX]
        model = ProjectionModel(k, part.shape[1], part.shape[0], Rigid(CARM, WORLD, r, t))
        found.append(XrayView(part, model))
    return found


@cache
def radius(folder: Path) -> PreparedBone:
    """Return the radius: its end is at the first slices, its shaft runs along the last axis."""
    _, slices = cv2.imreadmulti(str(folder / "rad_dcm_cropped.tif"), flags=cv2.IMREAD_UNCHANGED)
    stack = np.array(slices).astype(np.int16)
    image, mask = CtImage(stack - 1000, np.diag([*SPACING, 1.0])), stack > 0
    fine, coarse = bone_volume(image, mask, 0.5), bone_volume(image, mask, 1.0)
    points = np.argwhere(mask)[::2000, ::-1] * SPACING
    return PreparedBone(fine, coarse, coarse, points, axis_shifts([0, 0, 1], [20.0]))


def rough() -> Rigid:
    """Return about where the bone is: the shaft runs down the pictures, its turn about itself is known roughly."""
    turn = np.radians(165.0)
    across = np.array([np.cos(turn), 0.0, np.sin(turn)])
    rotation = np.stack([across, np.cross(DOWN, across), DOWN])
    return Rigid(CT, WORLD, rotation, np.array([13.0, 17.0, 6.0]) - rotation @ JOINT_MM)


def known_to(pose: Rigid, centre_mm: Array, sigma_mm: float, sigma_deg: float) -> Rigid:
    """Return a pose with the covariance of what is known about the bone's middle."""
    about = np.diag([np.radians(sigma_deg) ** 2] * 3 + [sigma_mm**2] * 3)
    shift = np.eye(6)
    shift[3:, :3] = skew(centre_mm)
    return replace(pose, covariance=shift @ about @ shift.T)


def test_two_real_cameras_agree_on_a_bone(wrist: Path) -> None:
    """Catches whatever holds only for simulated images: contrast, noise, conventions of pixels, rows, cameras."""
    bone, both = radius(wrist), views(wrist, 2)
    centre = bone.fine.centre_ct_mm
    result = register_fluoro(bone, both, rough(), search=FluoroSearch(16.0, 15.0))
    assert result.verdict is Verdict.ACCEPT, result.reason
    figures = dict(result.details)
    assert figures["score"] > 0.5
    assert max(figures["view0_residual_mm"], figures["view1_residual_mm"]) < 0.2
    # Each alone, from somewhere near, with the depth no better known than to a centimetre.
    turn = rotation_from_vector([0.05, -0.04, 0.06])
    off = Rigid(CT, CT, turn, centre - turn @ centre + (4.0, -3.0, 3.0)) @ result.transform
    near = FluoroSearch(8.0, 12.0)
    alone = [register_fluoro(bone, [view], known_to(off, centre, 10.0, 6.0), search=near) for view in both]
    rays = []
    for single, view in zip(alone, both, strict=True):
        assert dict(single.details)["depth_sigma_mm"] > 1.0
        turned = rotation_angle_rad(single.transform.rotation @ result.transform.rotation.T)
        assert np.degrees(turned) < 2.5
        source = view.projection.source_mm
        rays.append((source, single.transform.inverse().apply(centre) - source))
    (a, along_a), (b, along_b) = rays
    across = np.cross(along_a, along_b)
    assert abs((b - a) @ across) / np.linalg.norm(across) < 0.5
