"""A needle from two X-rays: within its own covariance, and refused with the reason where the pictures do not tell."""

import numpy as np
import pytest
from scipy.stats import chi2

from navsrv.imaging.found import TIP_SHAPE, FoundNeedle, NeedleError, Why
from navsrv.imaging.shadow import FLOOR_PX, Radiograph, find_shadows
from navsrv.imaging.two_views import ViewDoubt, find_in_views, triangulate
from navsrv.kernel.frames import Array, Rigid, rotation_from_vector
from navsrv.kernel.projection import ProjectionModel
from simulators.world.imaging import SteelNeedle
from tests.imaging.scenes import DIAMETER_MM, SMALL, off, unit, xray, xray_of

WIDTHS_PX = (3.0, 9.0)
TIP, AXIS = np.array([4.0, -6.0, 3.0]), unit(0.15, -0.85, 0.5)


def found(*images: Radiograph, heading: Array | None = AXIS, near: Array | None = None) -> FoundNeedle:
    return find_in_views(images, DIAMETER_MM, None, heading, near)


def refused(*images: Radiograph, heading: Array | None = AXIS) -> NeedleError:
    with pytest.raises(NeedleError) as caught:
        found(*images, heading=heading)
    return caught.value


def test_needles_are_found_within_their_covariance_as_a_distribution() -> None:
    """Other needles, bones and angles; a covariance twice or half as large as it should be fails.

    What no picture shows is drawn as large as the finder allows for it: a tenth of a pixel that calibration leaves,
    and how far the point is from where the metal is seen to end.
    """
    squares, errors = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        tip, axis = rng.uniform(-15, 15, 3), unit(*(AXIS + rng.normal(0, 0.12, 3)))
        first = rng.uniform(-40, 0)
        steel = [SteelNeedle(tip, axis, radius_mm=DIAMETER_MM / 2)]
        images = [xray_of(o, steel, rng, SMALL) for o in (first, first + rng.uniform(50, 90))]
        seen = find_in_views(images, DIAMETER_MM, None, axis)
        errors.append(float(np.linalg.norm(seen.tip_mm - tip)))
        left = [Radiograph(image.pixels, _uncalibrated(image.projection, rng)) for image in images]
        point = tip + rng.normal(0.0, TIP_SHAPE * DIAMETER_MM) * axis
        squares.append(off(find_in_views(left, DIAMETER_MM, None, axis), point, axis))
    assert max(errors) < 0.5
    assert np.median(errors) < 0.15
    assert max(squares) < chi2.ppf(0.9999, 5)
    # Below five: the slopes and the oblique ends that are allowed for are not drawn.
    assert 2.2 < np.mean(squares) < 4.8


def _uncalibrated(view: ProjectionModel, rng: np.random.Generator) -> ProjectionModel:
    """Return a view whose calibration leaves a tenth of a pixel."""
    intrinsics = np.array(view.intrinsics)
    intrinsics[:2, 2] += rng.normal(0.0, FLOOR_PX, 2)
    return ProjectionModel(intrinsics, view.columns, view.rows, view.T_carm_from_object)


def test_the_tip_is_known_without_a_plan_where_a_picture_shows_one_end_only() -> None:
    rng = np.random.default_rng(1)
    needle = found(xray(0.0, [(TIP, AXIS)], rng), xray(90.0, [(TIP, AXIS)], rng), heading=None)
    assert np.linalg.norm(needle.tip_mm - TIP) < 1.0


def test_both_ends_in_both_pictures_are_refused_without_a_plan_and_told_apart_with_one() -> None:
    rng = np.random.default_rng(2)
    images = [xray(o, [(TIP, AXIS)], rng, length_mm=60.0) for o in (-30.0, 50.0)]
    assert refused(*images, heading=None).why is Why.UNDIRECTED
    for sign in (1.0, -1.0):
        needle = found(*images, heading=sign * unit(0.0, -1.0, 1.0))
        expected = TIP if sign > 0 else TIP - 60.0 * AXIS
        assert np.linalg.norm(needle.tip_mm - expected) < 1.2
        assert needle.axis @ AXIS * sign > 0.999


def test_views_that_are_nearly_one_are_refused_with_their_angle() -> None:
    rng = np.random.default_rng(3)
    error = refused(xray(30.0, [(TIP, AXIS)], rng), xray(42.0, [(TIP, AXIS)], rng))
    assert error.why is Why.PARALLEL
    assert "12 degrees" in str(error)


def test_a_needle_in_the_plane_of_both_sources_is_refused() -> None:
    """Its two planes are one, however far apart the views are."""
    rng = np.random.default_rng(4)
    across = unit(1.0, 0.1, 0.0)
    error = refused(*(xray(o, [(np.zeros(3), across)], rng, length_mm=70.0) for o in (-30.0, 30.0)), heading=across)
    assert error.why is Why.PARALLEL
    assert "planes" in str(error)


def test_no_needle_is_said() -> None:
    rng = np.random.default_rng(5)
    assert refused(xray(0.0, [], rng), xray(80.0, [], rng)).why is Why.NO_NEEDLE


def test_a_needle_outside_the_pictures_is_not_found() -> None:
    rng = np.random.default_rng(6)
    away = TIP + np.array([0.0, 0.0, 200.0])
    assert refused(xray(0.0, [(away, AXIS)], rng), xray(80.0, [(away, AXIS)], rng)).why is Why.NO_NEEDLE


def test_two_needles_are_refused_until_somebody_points_at_one() -> None:
    rng = np.random.default_rng(7)
    other = TIP + np.array([25.0, 5.0, -20.0])
    needles = [(TIP, AXIS), (other, unit(-0.1, -0.8, 0.3))]
    images = [xray(o, needles, rng) for o in (-20.0, 60.0)]
    error = refused(*images)
    assert error.why is Why.SEVERAL
    for tip, axis in needles:
        needle = found(*images, near=tip + np.array([2.0, -2.0, 2.0]))
        assert np.linalg.norm(needle.tip_mm - tip) < 1.2
        assert needle.axis @ axis > 0.999


def test_a_needle_that_was_pushed_between_the_pictures_is_refused() -> None:
    rng = np.random.default_rng(8)
    error = refused(xray(-20.0, [(TIP, AXIS)], rng), xray(60.0, [(TIP + 12.0 * AXIS, AXIS)], rng))
    assert error.why is Why.DISAGREE
    assert "mm apart" in str(error)


def test_the_doubt_of_the_views_places_is_that_of_views_which_are_off() -> None:
    """Views displaced by the stated sigmas move the tip as the covariance says."""
    rng = np.random.default_rng(9)
    images = [xray(o, [(TIP, AXIS)], rng) for o in (-30.0, 50.0)]
    shadows = (find_shadows(images[0], WIDTHS_PX)[0], find_shadows(images[1], WIDTHS_PX)[0])
    views = (images[0].projection, images[1].projection)
    doubt = ViewDoubt(np.radians(0.2), 0.5)
    base = triangulate(views, shadows, DIAMETER_MM, None, AXIS)
    told = triangulate(views, shadows, DIAMETER_MM, doubt, AXIS).covariance - base.covariance
    moved = []
    for _ in range(50):
        first, second = (_displaced(view, doubt, rng) for view in views)
        needle = triangulate((first, second), shadows, DIAMETER_MM, doubt, AXIS)
        moved.append(np.concatenate([needle.tip_mm - base.tip_mm, needle.axis - base.axis]))
    spread = np.cov(np.array(moved).T)
    for part in (slice(0, 3), slice(3, 6)):
        assert np.trace(spread[part, part]) == pytest.approx(np.trace(told[part, part]), rel=0.5)


def _displaced(view: ProjectionModel, doubt: ViewDoubt, rng: np.random.Generator) -> ProjectionModel:
    """Return a view whose place is off: turned about the needle, and shifted."""
    frame = view.T_carm_from_object.frm
    turn = rotation_from_vector(rng.normal(0.0, doubt.rotation_rad, 3))
    return view.seen_from(Rigid(frame, frame, turn, TIP - turn @ TIP + rng.normal(0.0, doubt.translation_mm, 3)))
