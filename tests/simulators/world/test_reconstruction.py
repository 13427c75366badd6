"""The O-arm's reconstruction against bodies whose density and place are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from navsrv.kernel.frames import CT, VOLUME, Rigid, rotation_from_vector
from simulators.world.detector import Receptor, Scatter
from simulators.world.imaging import OarmVolume
from simulators.world.reconstruction import Gantry, SpinProtocol, spin
from simulators.world.xray import Radiographer, Technique
from simulators.world.xray_materials import Material
from simulators.world.xray_solids import Solid, ball, cylinder

COARSE = Gantry(columns=128, rows=40, pixel_mm=3.1, views=120)
THIN = Gantry(columns=128, rows=12, pixel_mm=3.1, views=90)
QUIET = Technique(kvp=110.0, aluminium_mm=5.0, copper_mm=0.2, quanta_per_mm2=1e8, scatter=Scatter(0.0))
PROTOCOL = SpinProtocol(
    COARSE, QUIET, Receptor(3.1, blur_mm=0.0, glare_share=0.0, electronic=0.0), 1.0, (120, 120, 24), 1.6
)
SLICES = replace(PROTOCOL, gantry=THIN, size=(120, 120, 6))
HERE = Rigid(CT, VOLUME, rotation_from_vector([0.1, -0.2, 0.6]), [31.0, -12.0, 250.0])
NOBODY = Radiographer(None)


def scanned(solid: Solid, protocol: SpinProtocol = PROTOCOL, seed: int = 1) -> OarmVolume:
    """Return the volume of a body given in the gantry's frame."""
    return spin(NOBODY, HERE, protocol, seed, tuple(piece.moved(HERE) for piece in solid))


def rod(x: float, y: float, radius: float, material: Material, half: float = 150.0) -> Solid:
    return cylinder([x, y, -half], [x, y, half], radius, material)


def part(volume: OarmVolume, x: float, y: float, z: float, reach: float = 5.0) -> np.ndarray:  # type: ignore[type-arg]
    """Return the values within a distance of a point in the gantry's frame."""
    k, j, i = np.indices(volume.voxels.shape)
    at = np.stack([i, j, k, np.ones_like(i)], axis=-1) @ volume.index_to_volume_mm.T
    return volume.voxels[np.linalg.norm(at[..., :3] - [x, y, z], axis=-1) < reach].astype(float)


def test_water_is_zero_air_is_minus_thousand_and_bone_has_its_density() -> None:
    volume = scanned(
        (*rod(0, 0, 70.0, Material.WATER), *ball([30, 10, 4], 12.0, Material.AIR), *rod(-30, -20, 10.0, Material.PMMA))
    )
    for x, y in ((0.0, 40.0), (0.0, 0.0), (50.0, -20.0)):
        assert part(volume, x, y, 0.0).mean() == pytest.approx(0.0, abs=12.0)
    assert part(volume, 30.0, 10.0, 4.0).mean() == pytest.approx(-1000.0, abs=40.0)
    # PMMA at 60 keV: 1.19 * 0.1924 / 0.2059 of water.
    assert part(volume, -30.0, -20.0, 0.0).mean() == pytest.approx(112.0, abs=25.0)


def test_balls_are_where_they_are_in_the_gantrys_frame() -> None:
    """Mirrored, shifted by half a voxel or turned the wrong way round: each would show."""
    balls = np.array([[38.0, 0.0, 6.0], [0.0, 41.0, -7.0], [-25.0, -18.0, 0.0]])
    solid = rod(0, 0, 60.0, Material.WATER)
    for centre in balls:
        solid += ball(centre, 6.0, Material.CORTICAL_BONE)
    volume = scanned(solid)
    k, j, i = np.indices(volume.voxels.shape)
    at = (np.stack([i, j, k, np.ones_like(i)], axis=-1) @ volume.index_to_volume_mm.T)[..., :3]
    for centre in balls:
        near = np.linalg.norm(at - centre, axis=-1) < 10.0
        weight = np.clip(volume.voxels[near].astype(float) - 300.0, 0.0, None)
        assert np.linalg.norm(weight @ at[near] / weight.sum() - centre) < 0.25


def test_dose_scatter_and_truncation_leave_the_marks_that_they_leave_in_a_scanner() -> None:
    body = rod(0, 0, 70.0, Material.WATER)
    noise = []
    for dose in (1e4, 4e4):
        noisy = replace(SLICES, technique=replace(QUIET, quanta_per_mm2=dose))
        noise.append(part(scanned(body, noisy), 0.0, 0.0, 0.0, 20.0).std())
    assert noise[0] / noise[1] == pytest.approx(2.0, rel=0.2)
    scattered = replace(SLICES, technique=replace(QUIET, scatter=Scatter(0.12)), scatter_corrected=0.0)
    cupped = scanned(body, scattered)
    assert part(cupped, 0.0, 0.0, 0.0).mean() < part(cupped, 60.0, 0.0, 0.0).mean() - 20.0
    # A body wider than the field: the inside is still tissue, and shaded towards the rim.
    wide = scanned(rod(0, 0, 140.0, Material.WATER), SLICES)
    assert abs(part(wide, 0.0, 0.0, 0.0).mean()) < 150.0
    assert abs(part(wide, 92.0, 0.0, 0.0, 3.0).mean() - part(wide, 0.0, 0.0, 0.0).mean()) > 50.0
    assert wide.voxels[3, 0, 0] == -1000


def test_metal_streaks_and_motion_blurs() -> None:
    body = rod(0, 0, 60.0, Material.WATER)
    clean = scanned(body, SLICES)
    pins = scanned((*body, *rod(-25, 0, 3.0, Material.STEEL), *rod(25, 0, 3.0, Material.STEEL)), SLICES)
    between, clear = part(pins, 0.0, 0.0, 0.0, 4.0).mean(), part(clean, 0.0, 0.0, 0.0, 4.0).mean()
    assert between < clear - 60.0
    still = (*body, *ball([20, 15, 0], 5.0, Material.CORTICAL_BONE))
    moving = tuple(piece.moved(HERE) for piece in still)

    def breathing(share: float) -> Rigid:
        shift = np.array([0.0, 4.0 * np.sin(6.0 * np.pi * share), 0.0])
        return Rigid(CT, VOLUME, HERE.rotation, HERE.apply(shift))

    blurred = spin(NOBODY, breathing, SLICES, 1, moving)
    assert part(blurred, 20.0, 15.0, 0.0, 3.0).mean() < 0.9 * part(scanned(still, SLICES), 20.0, 15.0, 0.0, 3.0).mean()
