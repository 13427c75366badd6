"""Image streams against poses: the offset of a frame grabber from what its pictures show, within its stated error."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, shift

from calibration.image_motion import image_motion
from calibration.temporal import TemporalResult, solve_temporal
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array
from navsrv.kernel.registration import Verdict

EPOCH = 1_700_000_000_000_000_000
SIDE = 96


def ns(seconds: Array) -> NDArray[np.int64]:
    stamps: NDArray[np.int64] = EPOCH + np.round(seconds * 1e9).astype(np.int64)
    return stamps


def hand(t: Array) -> Array:
    """Return where a hand is (N, 3), to and fro, no two turns alike."""
    return np.column_stack(
        [
            26.0 * np.sin(2 * np.pi * 0.5 * t) + 7.0 * np.sin(1.7 * t),
            14.0 * np.sin(2 * np.pi * 0.31 * t + 1.0),
            5.0 * np.sin(2.3 * t),
        ]
    )


def poses(t: Array, rng: np.random.Generator, noise_mm: float) -> Array:
    stack = np.tile(np.eye(4), (len(t), 1, 1))
    stack[:, :3, 3] = hand(t) + rng.normal(0.0, noise_mm, (len(t), 3))
    return stack


SCENE = np.random.default_rng(3).normal(size=(SIDE + 80, SIDE + 80))
ANATOMY = 400.0 * gaussian_filter(SCENE, 3.0)


def needle_in_fluoroscopy(t: Array, rng: np.random.Generator, side: int = SIDE) -> Array:
    """A steel ball of 5 mm, 2 px a millimetre, carried before anatomy that lies still; photon noise."""
    v, u = np.mgrid[0:side, 0:side]
    still = 3000.0 * np.exp(0.3 * ANATOMY[:side, :side] / np.abs(ANATOMY).max())
    middle = 0.9 * side / SIDE * hand(t)[:, :2] + side / 2
    off2 = (u - middle[:, 0, None, None]) ** 2 + (v - middle[:, 1, None, None]) ** 2
    path = np.sqrt(np.maximum(25.0 - off2, 0.0))  # half the chord of radius 5 px, in mm of 2 px
    return rng.poisson(still * np.exp(-0.21 * path)).astype(float)


def anatomy_that_moves(t: Array, rng: np.random.Generator, side: int = SIDE) -> Array:
    """The whole picture moves, by up to a tenth of its side."""
    wide = ANATOMY[: side + 80, : side + 80]
    pictures = [shift(wide, place, order=1)[40:-40, 40:-40] for place in 0.3 * side / SIDE * hand(t)[:, 1::-1]]
    return np.stack(pictures) + rng.normal(0.0, 2.0, (len(t), side, side))


def bone_that_trembles(t: Array, rng: np.random.Generator, side: int = SIDE) -> Array:
    """A wide bright body that moves by less than a pixel."""
    v, u = np.mgrid[0:side, 0:side]
    column = side / 2 + 0.02 * hand(t)[:, 0, None, None]
    body = 100.0 * np.exp(-((u - column) ** 2 + (v - 40.0) ** 2) / 450.0)
    return np.asarray(body + rng.normal(0.0, 1.0, body.shape))


def shown(
    kind: object, rng: np.random.Generator, offset_s: float, rate_hz: float = 60.0, **more: float
) -> TemporalResult:
    """Return the offset found between poses at 60 Hz and pictures whose stamps are early by an offset."""
    assert callable(kind)
    seconds, noise_mm, side = more.get("seconds", 8.0), more.get("noise_mm", 0.1), int(more.get("side", SIDE))
    at_a, at_b = np.arange(0.0, seconds, 1.0 / 60.0), np.arange(0.0, seconds, 1.0 / rate_hz)
    at_b = at_b + rng.uniform(0, 1 / rate_hz)
    values, _ = image_motion(kind(at_b + offset_s, rng, side))
    return solve_temporal(ns(at_a), poses(at_a, rng, noise_mm), ns(at_b), values, max_offset_s=0.4)


@pytest.mark.parametrize("kind", [needle_in_fluoroscopy, anatomy_that_moves, bone_that_trembles])
def test_what_pictures_show_gives_their_offset_to_2_ms(kind: object) -> None:
    rng = np.random.default_rng(7)
    off, scaled = [], []
    for rate_hz in (60.0, 25.0):
        offset = float(rng.uniform(-0.2, 0.2))
        result = shown(kind, rng, offset, rate_hz)
        off.append(result.offset_ns * 1e-9 - offset)
        scaled.append(off[-1] / (result.offset_sigma_ns * 1e-9))
        assert result.verdict is Verdict.ACCEPT
    assert max(map(abs, off)) < 2e-3
    assert np.sqrt(np.mean(np.square(scaled))) < 2.0


def test_the_offset_lies_within_its_stated_error_as_a_distribution() -> None:
    """With a tracker so noisy that noise is the limit, not the share of a period that no stamp is believed to."""
    rng = np.random.default_rng(8)
    scaled = []
    for _ in range(24):
        offset = float(rng.uniform(-0.15, 0.15))
        result = shown(needle_in_fluoroscopy, rng, offset, seconds=6.0, noise_mm=2.5, side=40)
        scaled.append((result.offset_ns * 1e-9 - offset) / (result.offset_sigma_ns * 1e-9))
    assert 0.5 < np.mean(np.square(scaled)) < 1.5
    assert max(map(abs, scaled)) < 3.5


def test_sequences_that_show_no_motion_are_refused() -> None:
    noise = np.random.default_rng(8).normal(0.0, 1.0, (200, 32, 32))
    for images, complaint in (
        (np.ones((60, 32, 32)), "no pixel changes"),
        (noise, "nothing changes but noise"),
        (np.ones((5, 32, 32)), "5 frames, at least 20"),
        (np.ones((60, 32)), "expected"),
        (np.where(np.arange(60)[:, None, None] == 7, np.nan, np.ones((60, 32, 32))), "frame 8 holds a pixel"),
    ):
        with pytest.raises(CalibrationError, match=complaint):
            image_motion(images)
