"""The detector against statistics: counting noise, mixed energies, read-out, scatter, blur, distortion, look-up."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import fsolve

from simulators.world.detector import Distortion, Light, Receptor, Scatter, detect, digitise, signal_of
from simulators.world.xray import Technique, beam_of
from simulators.world.xray_materials import Material, attenuation_per_mm, tube_spectrum

PLAIN = Receptor(0.5, blur_mm=0.0, glare_share=0.0, electronic=0.0)
SHAPE = (300, 300)


def flat(value: float, unit: float = 1.0, scatter: float = 0.0) -> Light:
    """Return an even field."""
    return Light(*(np.full(SHAPE, v, np.float32) for v in (value, scatter, unit)))


@pytest.mark.parametrize(("value", "quanta"), [(1.0, 400.0), (0.02, 1e5), (0.0004, 1e4)])
def test_noise_is_that_of_counting_photons(value: float, quanta: float) -> None:
    """Mean and variance of counts agree, from plenty down to a handful of photons."""
    counts = detect(flat(value), quanta, PLAIN, np.random.default_rng(1)).astype(np.float64) * quanta
    expected = value * quanta
    assert counts.mean() == pytest.approx(expected, rel=5.0 / np.sqrt(expected * counts.size))
    assert counts.var() == pytest.approx(expected, rel=0.03)


def test_scatter_brings_its_noise_and_read_out_adds_its_own() -> None:
    quanta = 1e4
    rng = np.random.default_rng(2)
    both = detect(flat(0.02, scatter=0.03), quanta, PLAIN, rng).astype(np.float64) * quanta
    assert both.mean() == pytest.approx(500.0, rel=0.01)
    assert both.var() == pytest.approx(500.0, rel=0.03)
    noisy = Receptor(0.5, blur_mm=0.0, glare_share=0.0, electronic=30.0)
    read = detect(flat(0.05), quanta, noisy, rng).astype(np.float64) * quanta
    assert read.var() == pytest.approx(500.0 + 900.0, rel=0.03)


def test_photons_of_mixed_energies_are_noisier_by_the_spectrums_second_moment() -> None:
    """Energies drawn one photon at a time, weighed and summed: the variance that the shortcut must have."""
    technique = Technique()
    beam = beam_of(technique, PLAIN)
    left = np.exp(-100.0 * attenuation_per_mm(Material.WATER, tube_spectrum(80.0, 3.5, 0.1).energies_kev))
    weight = beam.second / beam.first
    share = beam.first / weight * left
    rng = np.random.default_rng(3)
    drawn = rng.poisson(2000.0 * share, (4000, len(share))) @ weight
    unit = float(beam.second @ left / (beam.first @ left))
    found = detect(flat(float(beam.first @ left), unit), 2000.0, PLAIN, rng).astype(np.float64) * 2000.0
    assert found.mean() == pytest.approx(drawn.mean(), rel=0.01)
    assert found.var() == pytest.approx(drawn.var(), rel=0.08)
    assert unit > 1.02


@pytest.mark.parametrize(("share", "logarithm"), [(0.15, 4.0), (0.3, 2.5)])
def test_scatter_has_the_stated_share_behind_a_wide_object_and_none_of_it_in_the_open(
    share: float, logarithm: float
) -> None:
    scatter = Scatter(share, near_mm=8.0, far_mm=20.0)
    primary = np.full((400, 400), np.exp(-logarithm), np.float32)
    found = scatter.of(primary, 0.58)
    assert found[200, 200] / primary[200, 200] == pytest.approx(share * logarithm, rel=0.02)
    assert found[0, 0] < 0.35 * found[200, 200]
    assert scatter.of(np.ones((64, 64), np.float32), 0.58).max() == 0.0


def test_scatter_is_neither_lost_nor_moved_on_the_way() -> None:
    """A point deep inside the image sends out as much as it should, about itself."""
    primary = np.ones((512, 384), np.float32)
    primary[216:232, 160:184] = np.float32(np.exp(-2.0))
    found = Scatter(0.2, near_mm=6.0, far_mm=12.0).of(primary, 1.0).astype(np.float64)
    assert found.sum() == pytest.approx(0.2 * 2.0 * np.exp(-2.0) * 16 * 24, rel=0.02)
    row, column = (np.sum(grid * found) / found.sum() for grid in np.indices(found.shape))
    assert abs(row - 223.5) < 0.1
    assert abs(column - 171.5) < 0.1


def test_an_edge_is_as_wide_as_the_scintillator_makes_it() -> None:
    """10 to 90 % of an edge under a Gaussian of 0.6 mm: 2.563 sigma."""
    primary = np.full((200, 201), 0.1, np.float32)
    primary[:, 100:] = 1.0
    light = Light(primary, np.zeros_like(primary), np.ones_like(primary))
    receptor = Receptor(0.2, blur_mm=0.6, glare_share=0.0, electronic=0.0)
    profile = detect(light, 1e7, receptor, np.random.default_rng(5)).mean(axis=0)
    level = (profile[60:140] - 0.1) / 0.9
    at = [float(np.interp(v, level, np.arange(60, 140))) * 0.2 for v in (0.1, 0.5, 0.9)]
    assert at[2] - at[0] == pytest.approx(2.563 * 0.6, rel=0.03)
    assert at[1] == pytest.approx(99.5 * 0.2, abs=0.02)


def by_hand(distortion: Distortion, shown: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the undistorted point of one shown point, by complex numbers."""
    q = complex(*(shown - distortion.centre_px)) * distortion.pixel_mm
    rho2 = abs(q) ** 2 / distortion.radius_mm**2
    z = q * np.exp(1j * distortion.swirl_rad * rho2) / (1.0 + distortion.pincushion * rho2)
    z += complex(*distortion.shift_mm)
    return np.array([z.real, z.imag]) / distortion.pixel_mm + distortion.centre_px


@pytest.mark.parametrize("swirl", [0.0, 0.05, -0.08])
def test_distortion_and_its_inverse_belong_together(swirl: float) -> None:
    distortion = Distortion((255.5, 250.0), 0.45, 115.0, 0.08, swirl, (0.8, -1.1))
    rng = np.random.default_rng(6)
    points = rng.uniform(20.0, 490.0, (200, 2))
    undistorted = distortion.undistorted_px(points)
    assert np.abs(distortion.shown_px(undistorted) - points).max() < 1e-6
    for point, straight in zip(points[:10], undistorted[:10], strict=True):
        assert np.abs(by_hand(distortion, point) - straight).max() < 1e-9
        solved = fsolve(lambda p, s=straight: by_hand(distortion, p) - s, straight)
        assert np.abs(distortion.shown_px(straight) - solved).max() < 1e-5
    # Pincushion: the rim is shown farther out than it is.
    assert np.hypot(*(distortion.undistorted_px([490.0, 250.0]) - distortion.centre_px)) < 234.5 - 5.0


@pytest.mark.parametrize("receptor", [Receptor(), Receptor(bits=12, logarithmic=False, white=0.5)])
def test_values_stand_for_signals(receptor: Receptor) -> None:
    signal = np.geomspace(1e-3, 0.49, 200, dtype=np.float32)
    back = signal_of(digitise(signal, receptor), receptor)
    step = 0.5 / 4095 if not receptor.logarithmic else 0.49 * 10 ** (4.0 / 65535) - 0.49
    assert np.abs(back - signal).max() <= 0.51 * step + 1e-7
    assert digitise(np.array([0.0, 9.0], np.float32), receptor).tolist() == [0, 2**receptor.bits - 1]
