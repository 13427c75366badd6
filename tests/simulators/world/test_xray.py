"""X-ray images against closed forms: where things are, how much they absorb, what overlaps."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from navsrv.anatomy.case import Volume
from navsrv.kernel.frames import CARM, CT, Rigid, rotation_from_vector
from navsrv.kernel.projection import ProjectionModel
from simulators.world.detector import Collimator, Receptor, Scatter, intensifier, signal_of
from simulators.world.xray import Radiographer, Technique, beam_of
from simulators.world.xray_materials import Material, attenuation_per_mm, tube_spectrum
from simulators.world.xray_solids import (
    Solid,
    ball,
    box,
    cannula,
    capsule,
    cylinder,
    ellipsoid,
    grid_phantom,
    needle,
    ring_phantom,
)

Array = NDArray[np.float64]
SDD, PIXEL, PRINCIPAL, SIZE = 1020.0, 0.58, (131.3, 124.8), 256
NOTHING = Radiographer(None)
CLEAN = Technique(focal_spot_mm=0.0, scatter=Scatter(0.0))


def view_from(seed: int, distance_mm: float = 560.0, size: int = SIZE, pixel_mm: float = PIXEL) -> ProjectionModel:
    """Return a view from anywhere onto the origin."""
    rng = np.random.default_rng(seed)
    pose = Rigid(CARM, CT, rotation_from_vector(rng.normal(0.0, 1.0, 3)), [0.0, 0.0, distance_mm])
    return ProjectionModel.flat(pose, (size, size), SDD, pixel_mm, PRINCIPAL)


def rays(view: ProjectionModel) -> tuple[Array, Array]:
    """Return source (3,) and unit directions (rows, columns, 3) in CT, from the pose and similar triangles alone."""
    rows, columns = np.indices((view.rows, view.columns))
    pose = view.T_carm_from_object
    d = np.stack([(columns - PRINCIPAL[0]) * PIXEL, (rows - PRINCIPAL[1]) * PIXEL, np.full(rows.shape, SDD)], axis=-1)
    d = d / np.linalg.norm(d, axis=-1, keepdims=True) @ pose.rotation
    return -pose.rotation.T @ pose.translation_mm, d


def sampled_mm(source: Array, d: Array, inside: object, reach_mm: float) -> Array:
    """Return the length within a body by counting points along the rays, to 0.05 mm."""
    middle = -(d @ source)
    total = np.zeros(d.shape[:2])
    for t in np.arange(-reach_mm, reach_mm, 0.05):
        total += inside(source + (middle + t)[..., None] * d)  # type: ignore[operator]
    return total * 0.05


A, B = np.array([-14.0, 5.0, 8.0]), np.array([11.0, -9.0, -6.0])
TURN = rotation_from_vector([0.4, -0.9, 0.3])


def within_cylinder(p: Array) -> Array:
    u = (B - A) / np.linalg.norm(B - A)
    along = (p - A) @ u
    off = np.linalg.norm(p - A - along[..., None] * u, axis=-1)
    return (off < 6.0) & (along > 0.0) & (along < np.linalg.norm(B - A))


def within_capsule(p: Array) -> Array:
    t = np.clip((p - A) @ (B - A) / ((B - A) @ (B - A)), 0.0, 1.0)
    return np.linalg.norm(p - A - t[..., None] * (B - A), axis=-1) < 6.0


BODIES: dict[str, tuple[Solid, object]] = {
    "cylinder": (cylinder(A, B, 6.0, Material.STEEL), within_cylinder),
    "capsule": (capsule(A, B, 6.0, Material.STEEL), within_capsule),
    "ellipsoid": (
        ellipsoid(A, TURN * [9.0, 4.0, 6.0], Material.STEEL),
        lambda p: ((((p - A) @ TURN) / [9.0, 4.0, 6.0]) ** 2).sum(axis=-1) < 1.0,
    ),
    "box": (
        box(A, (9.0, 4.0, 6.0), Material.STEEL, TURN),
        lambda p: (np.abs(((p - A) @ TURN) / [9.0, 4.0, 6.0]) < 1.0).all(axis=-1),
    ),
}


@pytest.mark.parametrize("seed", range(4))
def test_the_chord_of_a_ball_is_exact_from_anywhere(seed: int) -> None:
    view, centre, radius = view_from(seed), np.array([12.0, -7.0, 18.0]), 5.0
    found = NOTHING.lengths(view, ball(centre, radius, Material.STEEL))[Material.STEEL]
    source, d = rays(view)
    off = np.linalg.norm(np.cross(d, centre - source), axis=-1)
    assert np.abs(found - 2.0 * np.sqrt(np.maximum(radius**2 - off**2, 0.0))).max() < 1e-9
    assert found.max() > 9.9


@pytest.mark.parametrize("name", BODIES)
def test_every_solid_is_as_thick_as_counting_says(name: str) -> None:
    solid, inside = BODIES[name]
    view = view_from(7)
    found = NOTHING.lengths(view, solid)[Material.STEEL]
    rows, columns = np.nonzero(found > 0.0)
    part = slice(rows.min() - 1, rows.max() + 2, 3), slice(columns.min() - 1, columns.max() + 2, 3)
    source, d = rays(view)
    counted = sampled_mm(source, d[part], inside, 40.0)
    assert np.abs(found[part] - counted).max() < 0.11
    assert counted.max() > 8.0


@pytest.mark.parametrize("seed", [1, 2])
def test_beads_lie_within_a_fiftieth_of_a_pixel_of_the_pinhole_model(seed: int) -> None:
    """Centroids of the shadows of every bead of the calibration phantom, against similar triangles."""
    phantom = ring_phantom(radius_mm=30.0, apart_mm=60.0)
    view = view_from(seed, 600.0, 768, 0.2)
    lengths = NOTHING.lengths(view, phantom.solid())[Material.STEEL]
    seen = 0
    for bead, radius in zip(phantom.beads_mm, phantom.radii_mm, strict=True):
        x, y, z = view.T_carm_from_object.apply(bead)
        expected = np.array(PRINCIPAL) + np.array([x, y]) / z * SDD / 0.2
        reach = radius / z * SDD / 0.2
        others = [view.T_carm_from_object.apply(b) for b in phantom.beads_mm if (b != bead).any()]
        near = [np.hypot(*(np.array(PRINCIPAL) + o[:2] / o[2] * SDD / 0.2 - expected)) for o in others]
        if min(near) < 3.0 * reach + 10.0 or (expected < 30.0).any() or (expected > 737.0).any():
            continue
        low = np.floor(expected - reach - 3.0).astype(int)
        high = np.ceil(expected + reach + 3.0).astype(int)
        shadow = lengths[low[1] : high[1], low[0] : high[0]]
        row, column = (np.sum(grid * shadow) / shadow.sum() for grid in np.indices(shadow.shape))
        assert np.abs(np.array([column, row]) + low - expected).max() < 0.02
        seen += 1
    assert seen >= 6


def test_what_comes_later_displaces_what_was_there() -> None:
    view = view_from(3)
    lengths = NOTHING.lengths(view, (*ball([0, 0, 0], 12.0, Material.CEMENT), *ball([0, 0, 0], 5.0, Material.STEEL)))
    row, column = (round(p) for p in PRINCIPAL[::-1])
    assert lengths[Material.STEEL][row, column] == pytest.approx(10.0, abs=0.02)
    assert lengths[Material.CEMENT][row, column] == pytest.approx(14.0, abs=0.02)
    side = cannula([0.0, 0.0, 0.0], np.array([0.0, 0.0, 1.0]), 2.0, 0.5, 60.0)
    across = ProjectionModel.flat(
        Rigid(CARM, CT, np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]), [30.0, 0.0, 560.0]),
        (65, 65), SDD, 0.1, (32.0, 32.0),
    )  # fmt: skip
    wall = NOTHING.lengths(across, side)
    assert wall[Material.STEEL][32, 32] == pytest.approx(1.0, abs=1e-3)
    assert wall[Material.WATER][32, 32] == pytest.approx(3.0, abs=1e-3)


def turned_block(hu: int, direction: Array) -> Volume:
    """Return a block of 44 x 55 x 70 mm about the origin (0.9 x 1.1 x 1.4 mm voxels) with a rim of air."""
    spacing, size = np.array([0.9, 1.1, 1.4]), np.array([70, 70, 70])
    voxels = np.full(tuple(size[::-1]), -1000, np.int16)
    voxels[10:60, 10:60, 10:60] = hu
    return Volume(voxels, -direction @ (0.5 * (size - 1) * spacing), spacing, direction)


@pytest.mark.parametrize("turn", [(0.0, 0.0, 0.0), (0.3, 0.2, -0.4)])
def test_tissue_weakens_the_ct_scanners_own_photons_as_its_hu_say(turn: tuple[float, float, float]) -> None:
    """At the CT's energy the mixture of soft tissue and bone must give back the HU, for every HU."""
    direction = rotation_from_vector(turn)
    view = ProjectionModel.flat(Rigid(CARM, CT, direction.T, [0.0, 0.0, 560.0]), (SIZE, SIZE), SDD, PIXEL, PRINCIPAL)
    row, column = (round(p) for p in PRINCIPAL[::-1])
    energy = np.array([68.0])
    water = float(attenuation_per_mm(Material.WATER, energy)[0])
    for hu in (-100, 0, 60, 200, 700, 1500):
        lengths = Radiographer(turned_block(hu, direction), beyond_mm=0.0).lengths(view)
        total = sum(float(attenuation_per_mm(m, energy)[0]) * lengths[m][row, column] for m in Material)
        assert total == pytest.approx(water * (1.0 + hu / 1000.0) * 70.0, rel=0.01)
        assert (lengths[Material.CORTICAL_BONE][row, column] > 0.0) == (hu > 100)


def test_a_solid_takes_the_place_of_tissue() -> None:
    radiographer = Radiographer(turned_block(0, np.eye(3)), beyond_mm=0.0)
    view = ProjectionModel.flat(Rigid(CARM, CT, np.eye(3), [0.0, 0.0, 560.0]), (SIZE, SIZE), SDD, PIXEL, PRINCIPAL)
    row, column = (round(p) for p in PRINCIPAL[::-1])
    clear, hollow = (
        radiographer.lengths(view, solid)[Material.SOFT_TISSUE][row, column]
        for solid in ((), ball([0.0, 0.0, 3.0], 15.0, Material.AIR))
    )
    assert (clear - hollow) / clear == pytest.approx(30.0 / 70.0, rel=0.02)


def test_the_patient_goes_on_beyond_the_ends_of_the_ct() -> None:
    block = turned_block(0, np.eye(3))
    full = np.broadcast_to(block.voxels[30], block.voxels.shape)
    ct = Volume(full, block.origin_mm, block.spacing_mm, block.direction)
    across = Rigid(CARM, CT, np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]), [0.0, 0.0, 560.0])
    view = ProjectionModel.flat(across, (SIZE, SIZE), SDD, 1.0, PRINCIPAL)
    for beyond, there in ((0.0, False), (40.0, True)):
        soft = Radiographer(ct, beyond).lengths(view)[Material.SOFT_TISSUE]
        row = round(PRINCIPAL[1] + 65.0 / 560.0 * SDD)
        assert bool(soft[row, round(PRINCIPAL[0])] > 40.0) is there


def test_the_beam_hardens_and_is_weakened_as_its_spectrum_says() -> None:
    spectrum = tube_spectrum(80.0, 3.5, 0.1)
    assert spectrum.photons.sum() == pytest.approx(1.0)
    # SpekPy 2.5 (12 degrees, 3.5 mm Al, 0.1 mm Cu, 80 kVp): mean energy 48.8 keV.
    assert spectrum.mean_kev == pytest.approx(48.8, rel=0.03)
    beam = beam_of(CLEAN, Receptor(PIXEL))
    view = ProjectionModel.flat(Rigid(CARM, CT, np.eye(3), [0.0, 0.0, 560.0]), (33, 33), SDD, PIXEL, (16.0, 16.0))
    logs = []
    for thick in (5.0, 50.0, 200.0):
        slab = box([0.0, 0.0, 0.0], (100.0, 100.0, 0.5 * thick), Material.WATER)
        primary = NOTHING.light(view, slab, CLEAN, Receptor(PIXEL)).primary[16, 16]
        expected = float(beam.first @ np.exp(-thick * attenuation_per_mm(Material.WATER, spectrum.energies_kev)))
        assert primary == pytest.approx(expected, rel=1e-4)
        logs.append(-np.log(primary) / thick)
    assert logs[0] > 1.05 * logs[2] > 0.0
    assert 0.018 < logs[2] < 0.026


def test_the_same_seed_gives_the_same_image_and_another_only_other_noise() -> None:
    view, solid = view_from(2), needle([0.0, 0.0, 0.0], np.array([0.0, 0.6, 0.8]))
    first, again, other = (NOTHING.shoot(view, solid, seed=seed) for seed in (4, 4, 5))
    assert (first.pixels == again.pixels).all()
    assert (first.pixels != other.pixels).mean() > 0.5
    assert (first.light.primary == other.light.primary).all()


def test_an_intensifier_shows_beads_where_its_truth_says_and_not_where_the_pinhole_does() -> None:
    size = 512
    receptor = intensifier(size, size)
    pose = Rigid(CARM, CT, rotation_from_vector([0.0, 0.0, 0.2]), [3.0, -4.0, 900.0])
    view = ProjectionModel.flat(pose, (size, size), SDD, receptor.pixel_mm)
    phantom = grid_phantom(step_mm=14.0, bead_mm=1.5)
    technique = Technique(quanta_per_mm2=1e7, scatter=Scatter(0.0))
    image = NOTHING.shoot(view, phantom.solid(), technique, receptor)
    level = -np.log(np.maximum(signal_of(image.pixels, receptor), 1e-3))
    errors, bends = [], []
    for bead in phantom.beads_mm:
        shown, straight = image.project(bead), view.project(bead)
        if np.hypot(*(shown - 255.5)) > 215.0:
            continue
        c, r = np.rint(shown).astype(int)
        part = level[r - 8 : r + 9, c - 8 : c + 9]
        shadow = np.clip(part - np.median(part) - 0.05, 0.0, None)
        row, column = (np.sum(grid * shadow) / shadow.sum() - 8.0 for grid in np.indices(shadow.shape))
        errors.append(np.hypot(column + c - shown[0], row + r - shown[1]))
        bends.append(np.hypot(*(shown - straight)))
    assert len(errors) > 60
    assert max(errors) < 0.15
    assert max(bends) > 5.0


def test_shutters_leave_only_scatter_and_an_intensifier_nothing_beyond_its_screen() -> None:
    view = view_from(1)
    slab = box([0.0, 0.0, 0.0], (80.0, 80.0, 80.0), Material.WATER)
    technique = Technique(collimator=Collimator(iris_mm=40.0, centre_px=PRINCIPAL))
    light = NOTHING.light(view, slab, technique, Receptor(PIXEL))
    rows, columns = np.indices(light.primary.shape)
    off = np.hypot(columns - PRINCIPAL[0], rows - PRINCIPAL[1]) * PIXEL
    assert light.primary[off > 45.0].max() < 1e-4
    assert light.primary[off < 35.0].min() > 1e-3
    assert light.scatter[(off > 45.0) & (off < 60.0)].min() > 0.0
    image = NOTHING.shoot(view_from(1), (), receptor=intensifier(SIZE, SIZE))
    assert image.pixels[0, 0] == 0
    assert image.pixels[SIZE // 2, SIZE // 2] == 1023


def test_brightness_control_lets_the_same_photons_through_thick_and_thin() -> None:
    view, receptor = view_from(1), Receptor(PIXEL)
    technique = Technique(automatic_per_mm2=2000.0)
    doses = []
    for half in (40.0, 90.0):
        slab = box([0.0, 0.0, 0.0], (150.0, 150.0, half), Material.WATER, view.T_carm_from_object.rotation.T)
        image = NOTHING.shoot(view, slab, technique, receptor)
        middle = slice(SIZE // 2 - 10, SIZE // 2 + 10)
        arrived = float(image.signal[middle, middle].mean()) * image.technique.quanta_per_mm2
        assert arrived == pytest.approx(2000.0, rel=0.1)
        doses.append(image.technique.quanta_per_mm2)
    assert doses[1] > 5.0 * doses[0]
