"""The beam against one that is integrated in small steps, and against the measured needles that it was anchored to."""

import math

import numpy as np
import pytest

from navsrv.guidance.bending import bending_sigma_mm


def integrated_mm(diameter_mm: float, length_mm: float, load_n: float) -> float:
    """Return the tip's deflection: the moment of the load, integrated twice from the clamp in small steps."""
    inner = 0.66 * diameter_mm
    stiffness = 193_000.0 * math.pi * ((diameter_mm / 2) ** 4 - (inner / 2) ** 4) / 4.0
    x, dx = np.linspace(0.0, length_mm, 20_001, retstep=True)
    slope = np.cumsum(load_n * (length_mm - x) / stiffness) * dx
    return float(np.sum(slope) * dx)


@pytest.mark.parametrize("diameter_mm", [0.72, 1.27, 3.05])
@pytest.mark.parametrize("length_mm", [60.0, 150.0])
def test_a_needle_bends_as_a_beam_held_at_the_hub(diameter_mm: float, length_mm: float) -> None:
    expected = integrated_mm(diameter_mm, length_mm, 0.05)
    assert bending_sigma_mm(diameter_mm, length_mm) == pytest.approx(expected, rel=1e-3)


def test_measured_needles_lie_within_two_sigma() -> None:
    """22 G, 80 mm deep in ballistic gel, 90 mm long (Rand 2016): bevelled 7.7 to 10 mm, pencil point 0.7 mm."""
    sigma = bending_sigma_mm(0.72, 90.0)
    assert 0.7 < sigma < 7.7
    assert 2.0 * sigma > 10.0


def test_a_bone_cannula_hardly_bends() -> None:
    assert bending_sigma_mm(3.05, 150.0) < 0.1


def test_a_needle_without_thickness_is_refused_and_one_without_length_does_not_bend() -> None:
    assert bending_sigma_mm(0.0, 0.0) == 0.0
    for diameter_mm in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="bends without bound"):
            bending_sigma_mm(diameter_mm, 100.0)
