"""Scenes that tempt a finder: each gets the right needle or a refusal that says what is wrong; no wrong one, ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from navsrv.imaging.found import FoundNeedle, NeedleError, Why
from navsrv.imaging.in_volume import find_in_volume
from navsrv.imaging.shadow import Radiograph
from navsrv.imaging.two_views import find_in_views
from navsrv.kernel.frames import Array, rotation_from_vector
from simulators.world.imaging import SteelNeedle
from tests.imaging.scenes import (
    DIAMETER_MM,
    SMALL,
    across,
    bent,
    in_round_field,
    in_white,
    under_shutter,
    unit,
    volume,
    xray_of,
)

NEEDLE = tuple[Array, Array]


@dataclass(frozen=True, slots=True)
class Scene:
    """Steel in the beam, the needles (tip, axis) among it, and the orbits it is seen from."""

    steel: list[SteelNeedle]
    needles: list[NEEDLE]
    orbits: tuple[float, float]
    shown: Callable[[Radiograph], Radiograph] = lambda image: image
    """What the screen makes of a picture."""


def start(rng: np.random.Generator) -> tuple[Array, Array, tuple[float, float]]:
    tip, axis, first = rng.uniform(-12, 12, 3), unit(*rng.normal((0.15, -0.85, 0.5), 0.12)), rng.uniform(-40.0, 0.0)
    return tip, axis, (first, first + rng.uniform(55.0, 90.0))


def shaft(tip: Array, axis: Array, length_mm: float = 150.0, radius_mm: float = DIAMETER_MM / 2) -> SteelNeedle:
    return SteelNeedle(tip, axis, length_mm, radius_mm)


def two(rng: np.random.Generator, second: Callable[[Array, Array], NEEDLE]) -> Scene:
    tip, axis, orbits = start(rng)
    other = second(tip, axis)
    return Scene([shaft(tip, axis), shaft(*other)], [(tip, axis), other], orbits)


def touching(rng: np.random.Generator) -> Scene:
    apart = DIAMETER_MM * rng.uniform(1.0, 1.5)
    return two(rng, lambda tip, axis: (tip + apart * across(axis, rng) + rng.uniform(-8, 8) * axis, axis))


def beside(rng: np.random.Generator) -> Scene:
    apart = DIAMETER_MM * rng.uniform(2.0, 4.0)
    return two(rng, lambda tip, axis: (tip + apart * across(axis, rng) + rng.uniform(-8, 8) * axis, axis))


def crossing(rng: np.random.Generator) -> Scene:
    def second(tip: Array, axis: Array) -> NEEDLE:
        normal = across(axis, rng)
        other = rotation_from_vector(normal * rng.uniform(0.3, 1.2)) @ axis
        return tip - rng.uniform(15, 40) * axis + rng.uniform(15, 40) * other + DIAMETER_MM * normal, other

    return two(rng, second)


def tips_together(rng: np.random.Generator) -> Scene:
    def second(tip: Array, axis: Array) -> NEEDLE:
        other = rotation_from_vector(across(axis, rng) * rng.uniform(0.1, 0.6)) @ axis
        return tip + across(axis, rng) * rng.uniform(1.0, 3.0) * DIAMETER_MM, other

    return two(rng, second)


def tip_to_tip(rng: np.random.Generator) -> Scene:
    return two(rng, lambda tip, axis: (tip + rng.uniform(2.0, 15.0) * axis, -axis))


def bowed(rng: np.random.Generator) -> Scene:
    tip, axis, orbits = start(rng)
    return Scene(bent(tip, axis, rng.choice([2.0, 5.0, 10.0]), rng), [(tip, axis)], orbits)


def screw_apart(rng: np.random.Generator) -> Scene:
    tip, axis, orbits = start(rng)
    screw = shaft(tip + np.array([18.0, 25.0, -30.0]), unit(0.7, -0.6, -0.2), 45.0, 3.0)
    return Scene([shaft(tip, axis), screw], [(tip, axis)], orbits)


def screw_over_tip(rng: np.random.Generator) -> Scene:
    tip, axis, orbits = start(rng)
    side = across(axis, rng)
    return Scene([shaft(tip, axis), shaft(tip + 20.0 * side, side, 45.0, 3.0)], [(tip, axis)], orbits)


def screw_only(rng: np.random.Generator) -> Scene:
    tip, axis, orbits = start(rng)
    return Scene([shaft(tip, axis, 45.0, 3.0)], [], orbits)


def lead_over_tip(rng: np.random.Generator) -> Scene:
    """A cable of the needle's width that bends across its tip."""
    tip, axis, orbits = start(rng)
    side = across(axis, rng)
    lead = bent(tip + 50.0 * side - 8.0 * axis, side, rng.uniform(3.0, 12.0), rng, 100.0)
    return Scene([shaft(tip, axis), *lead], [(tip, axis)], orbits)


def tip_outside(rng: np.random.Generator) -> Scene:
    """The hub's end is in the pictures, the tip is not."""
    tip, axis, orbits = start(rng)
    return Scene([shaft(tip + 75.0 * axis, axis, 90.0)], [(tip + 75.0 * axis, axis)], orbits)


def along_the_beam(rng: np.random.Generator) -> Scene:
    tip, _, orbits = start(rng)
    beam = np.radians(orbits[0])
    axis = unit(*(np.array([-np.sin(beam), -np.cos(beam), 0.0]) + rng.normal(0.0, 0.05, 3)))
    return Scene([shaft(tip, axis, 90.0)], [(tip, axis)], orbits)


def round_field(rng: np.random.Generator) -> Scene:
    """The shaft leaves the disc at different places in the two pictures."""
    tip, axis, orbits = start(rng)
    return Scene([shaft(tip, axis)], [(tip, axis)], orbits, lambda image: in_round_field(image, rng))


def white_air(rng: np.random.Generator) -> Scene:
    """The shaft goes from the body into air that is clipped white, nearer the tip in one picture than in the other."""
    tip, axis, orbits = start(rng)
    return Scene(
        [shaft(tip, axis)],
        [(tip, axis)],
        orbits,
        lambda image: in_white(image, tip - rng.uniform(40.0, 80.0) * axis, -axis, rng),
    )


def tip_beyond_field(rng: np.random.Generator) -> Scene:
    """The tip is beyond the rim; the shaft crosses the disc's middle, so that it leaves at one place in both."""
    tip, axis, orbits = start(rng)
    tip = 0.1 * tip + 75.0 * axis
    steel = shaft(tip, axis, rng.choice([100.0, 150.0]))
    return Scene([steel], [(tip, axis)], orbits, lambda image: in_round_field(image, rng))


def tip_in_white(rng: np.random.Generator) -> Scene:
    """The shaft fades into white at one point of it in both pictures, as if that were its tip."""
    tip, axis, orbits = start(rng)
    tip = tip + 40.0 * axis
    fades = tip - 35.0 * axis
    return Scene([shaft(tip, axis)], [(tip, axis)], orbits, lambda image: in_white(image, fades, axis, rng))


def through_noisy_field(rng: np.random.Generator) -> Scene:
    """The shaft crosses a disc whose surroundings are of the tissue's grey, with the noise of video."""
    _, axis, orbits = start(rng)
    tip = 75.0 * axis
    return Scene([shaft(tip, axis)], [(tip, axis)], orbits, lambda image: in_round_field(image, rng, noisy_grey=True))


def tip_under_shutter(rng: np.random.Generator) -> Scene:
    tip, axis, orbits = start(rng)
    tip = tip + 40.0 * axis
    rim = tip - 35.0 * axis
    return Scene([shaft(tip, axis)], [(tip, axis)], orbits, lambda image: under_shutter(image, rim, axis, rng))


RIGHT = "right"
REFUSED = {Why.TOUCHING, Why.SEVERAL, Why.DISAGREE, Why.NO_NEEDLE}
TABLE = {
    touching: (REFUSED, REFUSED),
    beside: (REFUSED, REFUSED | {RIGHT}),
    crossing: (REFUSED, REFUSED | {RIGHT}),
    tips_together: (REFUSED, REFUSED | {RIGHT}),
    tip_to_tip: (REFUSED, REFUSED),
    bowed: ({Why.BENT, Why.TOUCHING, Why.DISAGREE, Why.NO_NEEDLE, Why.PARALLEL},) * 2,
    screw_apart: ({RIGHT, Why.TOUCHING},) * 2,
    screw_over_tip: (REFUSED,) * 2,
    screw_only: ({Why.TOUCHING, Why.NO_NEEDLE},) * 2,
    lead_over_tip: (REFUSED | {RIGHT},) * 2,
    tip_outside: ({Why.NO_NEEDLE, Why.DISAGREE},) * 2,
    round_field: ({RIGHT},) * 2,
    white_air: ({RIGHT},) * 2,
    tip_beyond_field: ({Why.NO_NEEDLE},) * 2,
    through_noisy_field: ({Why.NO_NEEDLE},) * 2,
    tip_under_shutter: ({Why.NO_NEEDLE},) * 2,
    tip_in_white: ({Why.NO_NEEDLE},) * 2,
    along_the_beam: ({Why.NO_NEEDLE, Why.TOUCHING, Why.DISAGREE},) * 2,
}
"""What may come of each scene: without a point, and with one near a needle's tip."""


@pytest.mark.parametrize("make", TABLE, ids=lambda make: make.__name__)
def test_two_views_give_the_needle_or_the_reason(make: Callable[[np.random.Generator], Scene]) -> None:
    for seed in range(2):
        rng = np.random.default_rng((seed, 11))
        scene = make(rng)
        images = [scene.shown(xray_of(orbit, scene.steel, rng, SMALL)) for orbit in scene.orbits]
        alone, pointed = TABLE[make]
        heading = scene.needles[0][1] if scene.needles else unit(0.1, -0.9, 0.4)
        assert outcome(partial(find_in_views, images, DIAMETER_MM, None, heading), scene.needles[:1]) in alone
        for tip, axis in scene.needles:
            near = tip + rng.normal(0.0, 1.5, 3)
            assert outcome(partial(find_in_views, images, DIAMETER_MM, None, axis, near), [(tip, axis)]) in pointed


def test_ends_that_no_needle_joins_are_passed_over() -> None:
    """Of this bow's ends, one picture's point with the other's hub lead the fit away without end."""
    rng = np.random.default_rng((110, 11))
    scene = bowed(rng)
    images = [xray_of(orbit, scene.steel, rng, SMALL) for orbit in scene.orbits]
    assert outcome(partial(find_in_views, images, DIAMETER_MM, None, scene.needles[0][1]), scene.needles) is Why.BENT


def outcome(find: Callable[[], FoundNeedle], asked: list[NEEDLE]) -> str | Why:
    """Return what came of a search for one needle: right, wrong, or why it was refused."""
    try:
        found = find()
    except NeedleError as refusal:
        return refusal.why
    good = [
        np.linalg.norm(found.tip_mm - tip) < max(1.5, 4.0 * found.tip_sigma_mm)
        and np.arccos(np.clip(found.axis @ axis, -1.0, 1.0)) < max(np.radians(2.0), 4.0 * found.axis_sigma_rad)
        for tip, axis in asked
    ]
    return RIGHT if any(good) else f"wrong: tip {found.tip_mm}, axis {found.axis}"


LONG = 200.0
AXIS = unit(0.15, -0.85, 0.5)
TIP = np.array([4.0, -6.0, 3.0])
SIDE = unit(*np.cross(AXIS, (1.0, 0.0, 0.0)))
VOLUMES = {
    # At a millimetre a voxel two that touch look like streaks: one of them, with a doubt that holds the other.
    "touching": ([(TIP, AXIS, LONG), (TIP + 2.6 * SIDE - 5.0 * AXIS, AXIS, LONG)], {Why.TOUCHING, RIGHT}),
    "beside": ([(TIP, AXIS, LONG), (TIP + 7.0 * SIDE - 5.0 * AXIS, AXIS, LONG)], {Why.SEVERAL}),
    "crossing": (
        [(TIP, AXIS, LONG), (TIP - 14.0 * AXIS + 15.0 * unit(*(AXIS + SIDE)), unit(*(AXIS + SIDE)), LONG)],
        {Why.TOUCHING},
    ),
    "screw over the tip": ([(TIP, AXIS, LONG), (TIP + 8.0 * SIDE, SIDE, 16.0)], {Why.TOUCHING}),
    "tip outside": ([(TIP + 80.0 * AXIS, AXIS, 95.0)], {Why.NO_NEEDLE}),
}


@pytest.mark.parametrize("name", VOLUMES)
def test_a_volume_gives_the_needle_or_the_reason(name: str) -> None:
    needles, allowed = VOLUMES[name]
    voxels, matrix = volume(needles, np.random.default_rng(3))
    tip, axis, _ = needles[0]
    assert outcome(partial(find_in_volume, voxels, matrix, DIAMETER_MM, axis), [(tip, axis)]) in allowed


def test_two_parallel_needles_in_a_volume_are_told_apart_by_a_point() -> None:
    needles, _ = VOLUMES["beside"]
    voxels, matrix = volume(needles, np.random.default_rng(3))
    for tip, axis, _ in needles:
        assert outcome(partial(find_in_volume, voxels, matrix, DIAMETER_MM, axis, tip + 1.0), [(tip, axis)]) == RIGHT


@pytest.mark.parametrize("sag_mm", [1.0, 3.0, 8.0])
def test_a_bent_needle_in_a_volume_is_refused_or_within_what_is_stated(sag_mm: float) -> None:
    pieces = bent(TIP, AXIS, sag_mm * 3.0, np.random.default_rng(1), 80.0)
    voxels, matrix = volume([(p.tip_ct_mm, p.axis_ct, p.length_mm) for p in pieces], np.random.default_rng(3))
    told = outcome(partial(find_in_volume, voxels, matrix, DIAMETER_MM, AXIS), [(TIP, AXIS)])
    assert told in ({Why.BENT, RIGHT} if sag_mm < 2.0 else {Why.BENT, Why.TOUCHING})
