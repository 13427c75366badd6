"""Owns how far a needle that is tracked at its hub bends away from where it seems to be.  Refuses to follow a bend.

A straight tube of stainless steel, held at the hub, with a lateral load at its tip: a cantilever, its tip off by
``F L^3 / (3 E I)``, ``I = pi (D^4 - d^4) / 64`` (Gere and Timoshenko, Mechanics of Materials, beam tables).
Of it the load is the part that nobody knows.  What anchors it: bevelled 22 G needles were 8 to 10 mm off after 80 mm of
ballistic gel, pencil points 0.7 mm (Rand 2016, doi 10.5812/aapm.36607), which in this beam are 0.08 and 0.006 N; the
default of 0.05 N lies between as one sigma.  It makes 0.1 mm of an 11 G bone cannula of 150 mm, 2.8 mm of 18 G.
"""

from __future__ import annotations

import math
from typing import Final

YOUNG_N_MM2: Final = 193_000.0
"""Stainless steel 304, annealed."""
INNER_RATIO: Final = 0.66
"""Inner over outer diameter of a normal-walled tube (ISO 9626; 18 G: 0.84 of 1.27 mm).  A stylet only stiffens it."""
LOAD_N: Final = 0.05
"""Default of the lateral load at the tip, one sigma: to be confirmed for the needles of a site."""


def bending_sigma_mm(diameter_mm: float, free_mm: float, load_n: float = LOAD_N) -> float:
    """Return one sigma (mm, each axis across) of the tip of a needle with ``free_mm`` from the hub to the tip.

    0 without length; ValueError for a needle without thickness, whose bend has no bound.
    """
    if free_mm == 0.0 or load_n == 0.0:
        return 0.0
    if not diameter_mm > 0.0:
        raise ValueError(f"a needle of diameter {diameter_mm} mm bends without bound")
    second_moment_mm4 = math.pi / 64.0 * diameter_mm**4 * (1.0 - INNER_RATIO**4)
    return load_n * free_mm**3 / (3.0 * YOUNG_N_MM2 * second_moment_mm4)
