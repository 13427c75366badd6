"""C-arm from a bead phantom: centres to 0.1 px, the source to 1 mm, triangulated points to 0.3 mm, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from calibration.bead_phantom import BeadMatch, BeadPhantom, NominalArm, match_beads
from calibration.beads import Beads, Tone, find_beads
from calibration.carm import CarmView, calibrate_view, predicted_point_covariance, solve_view, triangulate
from calibration.carm_table import CarmCalibration, calibrate_table
from calibration.distortion import Bending, Distortion
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import CARM, CT, Array, Rigid
from navsrv.kernel.projection import ProjectionModel
from navsrv.kernel.registration import Verdict
from simulators.world.detector import Receptor, intensifier
from simulators.world.xray import Radiographer, Technique
from simulators.world.xray_materials import Material
from simulators.world.xray_solids import ball, cylinder
from tests.calibration.shadows import Room, arm, helix, plates

HELIX, DIAMETERS = helix()
PHANTOM = BeadPhantom("helix", HELIX, DIAMETERS, 0.0)
ARM = NominalArm(1060.0, 0.45, 512, 512)
"""Six hundredths too long: a C-arm is known to a tenth, not to a millimetre."""


def picture(room: Room, seed: int = 1, photons: float = 20000.0) -> Array:
    return room.picture(HELIX, DIAMETERS / 2, np.random.default_rng(seed), photons=photons)


def paired_off(found: Beads, true: Array) -> tuple[Array, Array]:
    """Return each shadow's error (N, 2) against the nearest true place, and its sigma (N,)."""
    gaps = np.linalg.norm(found.centres_px[:, None] - true[None], axis=2)
    return found.centres_px - true[gaps.argmin(axis=1)], found.sigmas_px


def test_bead_centres_are_found_to_a_tenth_of_a_pixel_and_know_how_well() -> None:
    offs, sigmas, found_share = [], [], []
    for seed, (angle, photons) in enumerate([(-1.2, 20000.0), (-0.3, 4000.0), (0.9, 8000.0)]):
        room = arm(angle, pincushion=0.04, turning=0.03)
        found = find_beads(picture(room, seed, photons), PHANTOM.radii_px(1000.0, 0.45))
        off, sigma = paired_off(found, room.shadow(HELIX))
        offs.append(off)
        sigmas.append(sigma)
        found_share.append(len(off) / len(HELIX))
    off, sigma = np.concatenate(offs), np.concatenate(sigmas)
    lengths = np.linalg.norm(off, axis=1)
    assert np.sqrt((lengths**2).mean()) < 0.06
    assert np.percentile(lengths, 98) < 0.1
    assert lengths.max() < 0.15
    assert min(found_share) > 0.85
    assert np.abs(off.mean(axis=0)).max() < 0.01  # no half-pixel convention
    # The middle of the squares: a few beads have another's shadow near.  A sigma of 1.5 times too little is caught.
    scaled = np.median((off / sigma[:, None]) ** 2) / chi2.ppf(0.5, 1)
    assert 0.65 < scaled < 1.5


def test_two_beads_in_one_shadow_are_left_out() -> None:
    room = arm(0.0)
    beads = np.array([[0.0, 0.0, 0.0], [1.6, 0.0, 0.9], [30.0, 0.0, 20.0]])
    radii = np.array([1.75, 1.0, 1.0])
    found = find_beads(room.picture(beads, radii, np.random.default_rng(1)), (2.0, 10.0))
    true = room.shadow(beads)
    assert np.linalg.norm(found.centres_px - true[2], axis=1).min() < 0.1
    assert np.linalg.norm(found.centres_px - true[0], axis=1).min() > 5.0


@pytest.mark.parametrize("angle", [-1.0, 0.5, 1.6])
def test_beads_are_recognised_without_a_click(angle: float) -> None:
    room = arm(angle, pincushion=0.05, turning=0.04)
    found = find_beads(picture(room), PHANTOM.radii_px(1000.0, 0.45))
    match = match_beads(found, PHANTOM, ARM)
    true = room.shadow(HELIX)
    assert len(match.beads) >= 34
    assert np.linalg.norm(found.centres_px[match.shadows] - true[match.beads], axis=1).max() < 2.0
    assert match.rival_share < 0.75


def test_what_lies_beside_the_phantom_does_not_confuse() -> None:
    """A dozen further beads of other things in the field, and a third of the phantom's own gone."""
    rng = np.random.default_rng(3)
    room = arm(0.4)
    true = room.shadow(HELIX)
    keep = np.sort(rng.choice(len(true), 27, replace=False))
    extra = rng.uniform(30, 480, (12, 2))
    seen = np.concatenate([true[keep], extra])
    metal = np.concatenate([DIAMETERS[keep] ** 3, rng.choice([8.0, 40.0], 12, p=[0.8, 0.2])])
    order = rng.permutation(len(seen))
    found = Beads(seen[order], np.full(len(seen), 0.02), np.full(len(seen), 4.0), metal[order])
    match = match_beads(found, PHANTOM, ARM)
    wrong = np.linalg.norm(seen[order][match.shadows] - true[match.beads], axis=1) > 8.0
    assert wrong.sum() <= 1
    assert len(match.beads) >= 24


@pytest.mark.parametrize(
    ("bending", "bent"),
    [
        (Bending.NONE, {}),
        (Bending.INTENSIFIER, {"pincushion": 0.04, "turning": 0.03, "centre": (0.03, -0.02)}),
        (Bending.POLYNOMIAL, {"pincushion": 0.03, "turning": 0.02, "extra": (0.004, -0.003)}),
    ],
)
def test_source_detector_and_bending_are_found(bending: Bending, bent: dict[str, object]) -> None:
    beads, diameters = plates() if bending is Bending.POLYNOMIAL else (HELIX, DIAMETERS)
    room = arm(0.3, **bent)
    image = room.picture(beads, diameters / 2, np.random.default_rng(4))
    view = calibrate_view(image, BeadPhantom("p", beads, diameters, 0.0), ARM, bending=bending)
    assert np.linalg.norm(view.model.source_mm - room.source) < 1.0
    assert view.residual_px < 0.05
    # Places all over the phantom, not only where beads are, land where rays through the bent picture say.
    places = np.random.default_rng(5).uniform(-40, 40, (200, 3))
    off = view.distortion.bent(view.model.project(places)) - room.shadow(places)
    assert np.sqrt((off**2).sum(axis=1).mean()) < 0.12
    assert view.verdict is Verdict.ACCEPT
    if bending is not Bending.POLYNOMIAL:
        assert dict(view.details)["sdd_mm"] == pytest.approx(1000.0, abs=1.5)


def test_two_views_place_points_to_a_third_of_a_millimetre() -> None:
    """End to end: pictures of the phantom calibrate, other pictures of loose beads are found, undone, triangulated."""
    rng = np.random.default_rng(6)
    targets = np.array([[10.0, 5.0, 12.0], [-22.0, 14.0, -30.0], [30.0, -20.0, 35.0], [-8.0, -33.0, 2.0]])
    rooms = [arm(a, pincushion=0.04, turning=0.03, flex=3.0) for a in (-0.75, 0.75)]
    views = [calibrate_view(picture(room, i), PHANTOM, ARM) for i, room in enumerate(rooms)]
    ideal = []
    for room, view in zip(rooms, views, strict=True):
        image = room.picture(targets, np.full(4, 1.0), rng)
        found = find_beads(image, (2.0, 6.0))
        nearest = [int(np.linalg.norm(found.centres_px - place, axis=1).argmin()) for place in room.shadow(targets)]
        ideal.append(view.distortion.straightened(found.centres_px[nearest]))
    errors = []
    for i, target in enumerate(targets):
        point, covariance = triangulate([view.model for view in views], [places[i] for places in ideal])
        errors.append(float(np.linalg.norm(point - target)))
        assert np.linalg.eigvalsh(covariance)[0] > 0.0
    assert max(errors) < 0.3
    predicted = np.sqrt(np.trace(predicted_point_covariance(views, targets[0], 0.03)))
    assert predicted < 0.1


def simulated_shadows(room: Room, rng: np.random.Generator, sigma: float, made_to: float) -> tuple[Beads, BeadMatch]:
    """Return noisy shadows of a phantom whose beads are not quite where they should be, and the true pairs."""
    seen = room.shadow(HELIX + rng.normal(0.0, made_to, HELIX.shape))
    seen = seen + rng.normal(0.0, sigma, seen.shape)
    n = len(seen)
    turn = np.column_stack([room.along_column, room.along_row, np.cross(room.along_column, room.along_row)])
    rotation = (turn / np.linalg.norm(turn, axis=0)).T
    start = np.concatenate(
        [Rotation.from_matrix(rotation).as_rotvec(), -rotation @ room.source, [2250.0, 257.0, 254.0, 0.0]]
    )
    every = np.arange(n)
    found = Beads(seen, np.full(n, sigma), np.full(n, 4.0), DIAMETERS**3)
    return found, BeadMatch(every, every, start, 0.1, 1.0)


def test_source_and_triangulated_points_lie_within_their_covariance() -> None:
    """Catches a bead's error of making that is not counted, a prior that claims knowledge, a wrong frame."""
    rng = np.random.default_rng(7)
    phantom = BeadPhantom("made to 0.05", HELIX, DIAMETERS, 0.05)
    point = np.array([12.0, -8.0, 20.0])
    sources, middles, predicted, placed = [], [], [], []
    for _ in range(50):
        rooms = [arm(a + rng.uniform(-0.2, 0.2), pincushion=0.04, turning=0.03) for a in (-0.7, 0.8)]
        views = [solve_view(*simulated_shadows(room, rng, 0.03, 0.05), phantom, ARM) for room in rooms]
        seen = []
        for room, view in zip(rooms, views, strict=True):
            off = view.model.source_mm - room.source
            sources.append(float(off @ np.linalg.solve(view.source_covariance_mm2, off)))
            middles.append(_miss_mm(view, room))
            predicted.append(view.point_sigma_mm**2)
            seen.append(view.distortion.straightened(room.shadow(point[None]) + rng.normal(0, 0.05, (1, 2)))[0])
        found, _ = triangulate([view.model for view in views], seen)
        covariance = predicted_point_covariance(views, point, 0.05)
        placed.append(float((found - point) @ np.linalg.solve(covariance, found - point)))
    assert np.mean(sources) == pytest.approx(3.0, rel=0.28)
    assert 0.9 <= np.mean(np.array(sources) < chi2.ppf(0.95, 3)) <= 1.0
    assert 0.72 < np.mean(middles) / np.mean(predicted) < 1.38
    assert np.mean(placed) == pytest.approx(3.0, rel=0.3)


def _miss_mm(view: CarmView, room: Room) -> float:
    """Return the squared miss of the ray through the phantom's middle, there."""
    middle = HELIX.mean(axis=0)
    off = view.distortion.bent(view.model.project(middle)[None]) - room.shadow(middle[None])
    depth = float(view.model.T_carm_from_object.apply(middle)[2])
    return float((off**2).sum()) * (depth / float(view.model.intrinsics[0, 0])) ** 2


@pytest.fixture(scope="module")
def table() -> CarmCalibration:
    angles = np.deg2rad(np.arange(-60, 61, 20))
    rng = np.random.default_rng(12)
    views = [solve_view(*simulated_shadows(bending_arm(a), rng, 0.02, 0.0), PHANTOM, ARM) for a in angles]
    return calibrate_table(angles[::-1], views[::-1])


def bending_arm(angle: float) -> Room:
    """A C-arm that sags by 4 mm and an intensifier that feels the earth's field turn."""
    return arm(angle, flex=4.0, pincushion=0.03 + 0.01 * np.sin(angle), turning=0.03 * np.cos(angle))


def test_between_calibrated_angles_the_flex_is_followed(table: CarmCalibration) -> None:
    assert table.verdict is Verdict.ACCEPT
    known = table.left_out_mm[np.isfinite(table.left_out_mm)]
    assert len(known) == 5
    misses = []
    for angle in np.deg2rad([-50.0, -30.0, 10.0, 50.0]):
        room = bending_arm(angle)
        model, distortion = table.projection(angle), table.distortion(angle)
        off = distortion.bent(model.project(HELIX)) - room.shadow(HELIX)
        misses.append(np.sqrt((off**2).sum(axis=1).mean()) * 620.0 / 2222.0)
        assert np.linalg.norm(model.source_mm - room.source) < 1.0
    assert max(misses) < 0.1
    # What leaving angles out says is of the same size, from twice the gap: never less.
    assert known.max() > 0.5 * max(misses)
    assert known.max() < 0.2


def test_rays_of_a_table_lie_within_their_stated_error_as_a_distribution() -> None:
    """At the angles that were calibrated as stated; between them less for the averaging, and never the flex on top."""
    rng = np.random.default_rng(21)
    phantom = BeadPhantom("made to 0.05", HELIX, DIAMETERS, 0.05)
    angles = np.deg2rad(np.arange(-60, 61, 20))
    at, between, stated, left_out = [], [], [], []
    for _ in range(12):
        views = [solve_view(*simulated_shadows(bending_arm(a), rng, 0.06, 0.05), phantom, ARM) for a in angles]
        made = calibrate_table(angles, views)
        at += [_table_miss_mm(made, float(a)) for a in angles]
        between += [_table_miss_mm(made, float(a)) for a in np.deg2rad([-30.0, -10.0, 10.0, 30.0])]
        stated.append((made.view_sigma_mm**2).mean())
        left_out.append(np.nanmean(made.left_out_mm**2))
    assert 0.72 < np.mean(at) / np.mean(stated) < 1.38
    assert 0.45 < np.mean(between) / np.mean(stated) < 1.1
    assert np.mean(between) < np.mean(left_out), "leaving an angle out asks more than to look between two"


def _table_miss_mm(made: CarmCalibration, angle: float) -> float:
    """Return the squared miss of the table's ray through the phantom's middle, there."""
    model, middle = made.projection(angle), HELIX.mean(axis=0)
    seen = bending_arm(angle).shadow(middle[None])
    off = made.distortion(angle).bent(model.project(middle)[None]) - seen
    depth = float(model.T_carm_from_object.apply(middle)[2])
    return float((off**2).sum()) * (depth / float(model.intrinsics[0, 0])) ** 2


def test_a_wrong_angle_shows_when_it_is_left_out(table: CarmCalibration) -> None:
    assert dict(table.details)["turning_mismatch_deg"] < 0.3
    with pytest.raises(CalibrationError, match=r"angle 61\.0 deg: calibrated were -60\.0 to 60\.0 deg"):
        table.projection(np.deg2rad(61.0))


def test_undistorted_pictures_show_beads_where_the_projection_says(table: CarmCalibration) -> None:
    angle = float(np.deg2rad(20.0))
    flat = table.undistort(picture(bending_arm(angle), 9), angle)
    found = find_beads(np.maximum(flat[20:-20, 20:-20], 1.0), PHANTOM.radii_px(1000.0, 0.45))
    expected = table.projection(angle).project(HELIX) - 20.0
    gaps = np.linalg.norm(found.centres_px[:, None] - expected[None], axis=2).min(axis=1)
    assert np.median(gaps) < 0.06


def views_of(angles: list[float]) -> list[CarmView]:
    rng = np.random.default_rng(10)
    return [solve_view(*simulated_shadows(arm(a), rng, 0.02, 0.0), PHANTOM, ARM) for a in angles]


def test_tables_that_are_none_are_refused() -> None:
    angles = [-0.4, 0.0, 0.4]
    views = views_of(angles)
    with pytest.raises(CalibrationError, match="3 views against angles"):
        calibrate_table(angles[:2], views)
    with pytest.raises(CalibrationError, match="each angle once"):
        calibrate_table([0.0, 0.0, 0.4], views)
    with pytest.raises(CalibrationError, match="turn by up to"):
        calibrate_table([0.4, -0.4, 0.0], views)
    with pytest.raises(CalibrationError, match="no view between"):
        calibrate_table([-1.0, 0.0, 0.4], views)
    assert calibrate_table(angles, views).verdict is Verdict.DOUBT  # too few to leave one out


def test_a_mirrored_picture_and_another_phantom_are_refused() -> None:
    image = picture(arm(0.2))
    with pytest.raises(CalibrationError, match="the picture is mirrored"):
        calibrate_view(image[:, ::-1], PHANTOM, ARM)
    beads, diameters = plates()
    with pytest.raises(CalibrationError, match="no pose of plates explains the picture"):
        calibrate_view(image, BeadPhantom("plates", beads, diameters), ARM)


def test_a_regular_code_is_ambiguous_and_refused() -> None:
    """Two rings alike, each bead as big as the next step's: any turn fits."""
    turn = np.arange(8) * np.pi / 4
    rings = [np.column_stack([50 * np.cos(turn), 50 * np.sin(turn), np.full(8, z)]) for z in (-50.0, 0.0, 50.0)]
    beads = np.concatenate(rings)
    diameters = np.where(np.arange(24) < 8, 3.5, 2.0)
    phantom = BeadPhantom("rings", beads, diameters)
    image = arm(0.1).picture(beads, diameters / 2, np.random.default_rng(11))
    with pytest.raises(CalibrationError, match="two poses of rings explain the picture"):
        calibrate_view(image, phantom, ARM)


@pytest.mark.parametrize(
    ("beads", "diameters", "complaint"),
    [
        (HELIX[:8], DIAMETERS[:8], "8 beads, at least 12"),
        (HELIX * (1, 1, 0.0), DIAMETERS, "less than their diameter|of one plane"),
        (HELIX * (1, 0.02, 1), np.where(DIAMETERS > 3, 0.9, 0.5), "of one plane"),
        (HELIX, np.full(40, 2.0), "40 beads of the largest diameter"),
        (HELIX, np.where(DIAMETERS > 3, 2.3, 2.0), r"at least 1\.25 times as wide"),
        (np.where(HELIX > 60, np.nan, HELIX), DIAMETERS, "not a finite"),
    ],
)
def test_phantoms_that_cannot_be_recognised_are_refused(beads: Array, diameters: Array, complaint: str) -> None:
    with pytest.raises(CalibrationError, match=complaint):
        BeadPhantom("p", beads, diameters)


def test_pictures_that_are_none_are_refused() -> None:
    for image, complaint in (
        (np.zeros((300, 300)), "every pixel is 0"),
        (np.full((300, 300), np.nan), "not finite"),
        (np.zeros((300, 300, 3)), "expected"),
        (np.random.default_rng(1).poisson(1000.0, (300, 300)), "beads seen, at least"),
    ):
        with pytest.raises(CalibrationError, match=complaint):
            calibrate_view(image, PHANTOM, NominalArm(1000.0, 0.3, 300, 300))
    with pytest.raises(CalibrationError, match=r"unknowns of a polynomial view"):
        calibrate_view(picture(arm(0.0)), PHANTOM, ARM, bending=Bending.POLYNOMIAL)


def test_undoing_a_bend_and_bending_are_inverse_and_folds_are_refused() -> None:
    bend = Distortion(Bending.INTENSIFIER, np.array([0.02, -0.01, 0.05, 0.01, 0.0, 0.03, 0.0, 0.0]), 600, 500)
    places = np.random.default_rng(1).uniform((0, 0), (600, 500), (300, 2))
    assert np.abs(bend.bent(bend.straightened(places)) - places).max() < 1e-6
    fold = Distortion(Bending.INTENSIFIER, np.array([0.0, 0.0, -1.5, 0.0, 0.0, 0.0, 0.0, 0.0]), 600, 500)
    with pytest.raises(CalibrationError, match="folds"):
        fold.straightened(places)
    with pytest.raises(CalibrationError, match="calibrated were 600 x 500"):
        bend.undistort(np.zeros((600, 500)))


@pytest.mark.parametrize("kind", ["flat", "intensifier"])
def test_physical_x_rays_of_another_renderer_are_calibrated(kind: str) -> None:
    """Spectrum, scatter, focal spot, glare, vignetting and a tube's walls: the simulated room's own pictures."""
    half = np.array([0.0, 0.0, 77.0])
    solid = [*cylinder(-half, half, 59.0, Material.PMMA), *cylinder(-half, half, 51.0, Material.AIR)]
    for bead, diameter in zip(HELIX, DIAMETERS, strict=True):
        solid += ball(bead, float(diameter) / 2, Material.STEEL)
    size = 512 if kind == "flat" else 400
    receptor = Receptor(pixel_mm=0.45) if kind == "flat" else intensifier(size, size, 115.0)
    turn = (Rotation.from_rotvec([0.0, 0.0, 0.2]) * Rotation.from_rotvec([-1.55, 0.0, 0.05])).as_matrix().T
    principal = ((size - 1) / 2 + 5.0, (size - 1) / 2 - 4.0)
    pose = Rigid(CARM, CT, turn, np.array([2.0, -3.0, 620.0]))
    truth = ProjectionModel.flat(pose, (size, size), 1000.0, receptor.pixel_mm, principal)
    technique = Technique(kvp=70) if kind == "flat" else Technique(kvp=70, automatic_per_mm2=2e4)
    shot = Radiographer(None).shoot(truth, solid, technique, receptor, seed=3)
    tone = Tone.LOG_DARK if kind == "flat" else Tone.COUNTS
    nominal = NominalArm(1050.0, receptor.pixel_mm, size, size)
    bending = Bending.NONE if kind == "flat" else Bending.INTENSIFIER
    view = calibrate_view(shot.pixels, PHANTOM, nominal, bending=bending, tone=tone)
    assert np.linalg.norm(view.model.source_mm - truth.source_mm) < 1.0
    off = view.centres_px - shot.project(HELIX[view.bead_indices])
    assert np.sqrt((off**2).sum(axis=1).mean()) < 0.1
    assert view.verdict is not Verdict.REFUSE
