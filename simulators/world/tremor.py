"""Owns how a hand fails to be still: physiological tremor in a band of frequencies, and slow sway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from navsrv.kernel.frames import Array
from simulators.world.scene import Stream

TREMOR_HZ: Final = (8.0, 12.0)
"""The band of physiological hand tremor."""
SWAY_HZ: Final = (0.1, 1.5)
SINES: Final = 8


@dataclass(frozen=True, slots=True, eq=False)
class Tremor:
    """Displacement of a hand as a sum of sines: smooth, any time can be asked for, the same for the same seed.

    Attributes
    ----------
    hz, phase_rad, amplitude_mm : (3, K)
        Of the sines of each axis.
    """

    hz: Array
    phase_rad: Array
    amplitude_mm: Array

    @classmethod
    def from_seed(
        cls, seed: int, tremor_mm: float, sway_mm: float, which: Stream = Stream.TREMOR, part: int = 0
    ) -> Tremor:
        """Return a hand whose displacement has these root-mean-square lengths in the band of tremor and of sway."""
        rng = np.random.default_rng([seed, int(which), part])
        hz = np.concatenate([rng.uniform(*TREMOR_HZ, (3, SINES)), rng.uniform(*SWAY_HZ, (3, SINES))], axis=1)
        weight = rng.uniform(0.5, 1.5, (2, 3, SINES))
        # A sine of amplitude a has mean square a^2 / 2; the axes add in squares.
        weight *= np.sqrt(2.0) / np.linalg.norm(weight, axis=(1, 2), keepdims=True)
        amplitude = np.concatenate([tremor_mm * weight[0], sway_mm * weight[1]], axis=1)
        return cls(hz, rng.uniform(0.0, 2.0 * np.pi, hz.shape), amplitude)

    def at(self, t_s: Array) -> Array:
        """Return the displacement (N, 3) in mm at times (N,) in s."""
        waves = np.sin(2.0 * np.pi * t_s[:, None, None] * self.hz + self.phase_rad)
        result: Array = np.einsum("nak,ak->na", waves, self.amplitude_mm)
        return result
