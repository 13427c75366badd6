"""Owns how a needle bends in tissue, so that its tip is not where its hub says.

Small deflections of a slender steel beam: a lateral load at the tip (a cantilever, held at the skin), and the steady
curvature that a bevel tip cuts (Webster et al. 2006).  Both from the inserted length and the gauge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array
from simulators.world.scene import Stream

STEEL_N_MM2: Final = 193_000.0
"""Young's modulus of AISI 304."""
GAUGE_MM: Final = {
    8: 4.191, 10: 3.404, 11: 3.048, 12: 2.769, 13: 2.413, 14: 2.108, 15: 1.829,
    16: 1.651, 17: 1.473, 18: 1.270, 19: 1.067, 20: 0.908, 21: 0.819, 22: 0.718,
}  # fmt: skip
"""Outer diameter by Stubs' gauge."""
BEVEL_22_PER_MM: Final = 1e-3
"""Curvature that a bevel gives a 22 G needle: 5 mm over 100 mm.  Stiffer needles bend less, by their stiffness."""
SLOPE_LIMIT: Final = 0.3
"""No needle is bent by more than this part of its inserted length: beyond it the beam's theory does not hold."""


@dataclass(frozen=True, slots=True, eq=False)
class Bending:
    """What bends a needle.

    Attributes
    ----------
    gauge : int
    load_n : (3,)
        Lateral force on the tip when deep in tissue, in CT axes; what of it is along the needle does not bend it.
    bevel : float
        How much of the curvature of a plain bevel there is: 0 for a trocar tip.
    bevel_rad : float
        Direction that the bevel pulls to, about the needle from its x axis.
    full_load_depth_mm : float
        Inserted length from which the whole load acts; less before, in proportion.
    """

    gauge: int = 17
    load_n: tuple[float, float, float] = (0.0, 0.0, 0.0)
    bevel: float = 0.0
    bevel_rad: float = 0.0
    full_load_depth_mm: float = 60.0

    def __post_init__(self) -> None:
        if self.gauge not in GAUGE_MM:
            raise InputError(f"gauge {self.gauge}: expected one of {', '.join(map(str, GAUGE_MM))}")

    @classmethod
    def from_seed(cls, seed: int, gauge: int = 17, load_n: float = 0.15, bevel: float = 1.0) -> Bending:
        """Return a bending drawn from a seed: ``load_n`` is the standard deviation of the force along each axis."""
        rng = np.random.default_rng([seed, int(Stream.NEEDLE)])
        x, y, z = (load_n * rng.normal(size=3)).tolist()
        return cls(gauge, (x, y, z), bevel, float(rng.uniform(-np.pi, np.pi)))

    @property
    def diameter_mm(self) -> float:
        """Outer diameter."""
        return GAUGE_MM[self.gauge]

    @property
    def stiffness_n_mm2(self) -> float:
        """``E I`` of the needle with its stylet in."""
        return STEEL_N_MM2 * np.pi / 64.0 * self.diameter_mm**4

    def shape(self, rotation: Array, depth_mm: Array, along: Array) -> tuple[Array, Array]:
        """Return deflection (N, P, 3) in mm and slope (N, P, 3) of the needle, across its straight axis.

        Parameters
        ----------
        rotation : (N, 3, 3)
            Of the straight needle, +z from hub to tip, in CT.
        depth_mm : (N,)
            Inserted length.
        along : (P,) or (N, P)
            Where on the inserted length: 0 at the skin, 1 at the tip.
        """
        axis = rotation[:, :, 2]
        depth = np.maximum(depth_mm, 0.0)
        load = np.array(self.load_n) * np.minimum(depth / self.full_load_depth_mm, 1.0)[:, None]
        load = load - np.sum(load * axis, axis=1, keepdims=True) * axis
        towards = np.cos(self.bevel_rad) * rotation[:, :, 0] + np.sin(self.bevel_rad) * rotation[:, :, 1]
        curvature = self.bevel * BEVEL_22_PER_MM * (GAUGE_MM[22] / self.diameter_mm) ** 4
        length, s = depth[:, None, None], depth[:, None, None] * np.atleast_2d(along)[:, :, None]
        per_load = load[:, None] / self.stiffness_n_mm2
        bent = per_load * s**2 * (3.0 * length - s) / 6.0 + 0.5 * curvature * s**2 * towards[:, None]
        slope = per_load * s * (2.0 * length - s) / 2.0 + curvature * s * towards[:, None]
        full = per_load * length**3 / 3.0 + 0.5 * curvature * length**2 * towards[:, None]
        ratio = np.linalg.norm(full, axis=-1, keepdims=True) / np.maximum(SLOPE_LIMIT * length, 1e-9)
        held = 1.0 / np.sqrt(1.0 + ratio**2)
        return held * bent, held * slope
