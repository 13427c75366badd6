"""Owns what X-rays are made of and pass through: tube spectra, attenuation of materials, what HU stand for.

Attenuation: J. H. Hubbell and S. M. Seltzer, Tables of X-Ray Mass Attenuation Coefficients, NISTIR 5632 (NIST XCOM
cross sections); tissues by ICRU Report 44.  Between the tabulated energies it is interpolated in log-log, with both
sides of each K edge given.  Refuses geometry.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from navsrv.kernel.frames import Array, frozen_array

_COMMON_KEV: Final = (15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0, 150.0)

_CM2_G: Final[dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "water": (_COMMON_KEV, (1.673, 0.8096, 0.3756, 0.2683, 0.2269, 0.2059, 0.1837, 0.1707, 0.1505)),
    "soft tissue": (_COMMON_KEV, (1.681, 0.8230, 0.3790, 0.2688, 0.2264, 0.2048, 0.1823, 0.1693, 0.1492)),
    "cortical bone": (_COMMON_KEV, (9.032, 4.001, 1.331, 0.6655, 0.4242, 0.3148, 0.2229, 0.1855, 0.1480)),
    "PMMA": (_COMMON_KEV, (1.101, 0.5714, 0.3032, 0.2350, 0.2074, 0.1924, 0.1751, 0.1641, 0.1456)),
    "carbon": (_COMMON_KEV, (0.8071, 0.4420, 0.2562, 0.2076, 0.1871, 0.1753, 0.1610, 0.1514, 0.1347)),
    "aluminium": (_COMMON_KEV, (7.955, 3.441, 1.128, 0.5685, 0.3681, 0.2778, 0.2018, 0.1704, 0.1378)),
    "iron": (_COMMON_KEV, (57.08, 25.68, 8.176, 3.629, 1.958, 1.205, 0.5952, 0.3717, 0.1964)),
    "chromium": (_COMMON_KEV, (45.71, 20.38, 6.434, 2.856, 1.550, 0.9639, 0.4905, 0.3166, 0.1788)),
    "nickel": (_COMMON_KEV, (70.81, 32.20, 10.34, 4.600, 2.474, 1.512, 0.7306, 0.4440, 0.2208)),
    "titanium": (_COMMON_KEV, (35.87, 15.85, 4.972, 2.214, 1.213, 0.7661, 0.4052, 0.2721, 0.1649)),
    "copper": (_COMMON_KEV, (74.05, 33.79, 10.92, 4.862, 2.613, 1.593, 0.7630, 0.4584, 0.2217)),
    "oxygen": (_COMMON_KEV, (1.836, 0.8651, 0.3779, 0.2585, 0.2132, 0.1907, 0.1678, 0.1551, 0.1361)),
    "sulphur": (_COMMON_KEV, (15.53, 6.708, 2.113, 0.9872, 0.5849, 0.4053, 0.2585, 0.2020, 0.1506)),
    "barium": (
        (15.0, 20.0, 30.0, 37.4406, 37.4406, 40.0, 50.0, 60.0, 80.0, 100.0, 150.0),
        (63.47, 29.38, 9.904, 5.498, 29.19, 24.57, 13.79, 8.511, 3.963, 2.196, 0.7828),
    ),
    "caesium iodide": (
        (15.0, 20.0, 30.0, 33.1694, 33.1694, 35.9846, 35.9846, 40.0, 50.0, 60.0, 80.0, 100.0, 150.0),
        (58.25, 26.86, 9.045, 6.923, 21.22, 17.13, 30.27, 22.97, 12.87, 7.921, 3.677, 2.035, 0.7290),
    ),
    "tungsten": (
        (15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 69.525, 69.525, 80.0, 100.0, 150.0),
        (138.9, 65.73, 22.73, 10.67, 5.949, 3.713, 2.552, 11.23, 7.810, 4.438, 1.581),
    ),
}


class Material(IntEnum):
    """What a solid may consist of, or tissue be made of."""

    AIR = 0
    SOFT_TISSUE = 1
    CORTICAL_BONE = 2
    WATER = 3
    PMMA = 4
    STEEL = 5
    TITANIUM = 6
    CEMENT = 7
    CARBON = 8
    ALUMINIUM = 9


@dataclass(frozen=True, slots=True)
class Composition:
    """Density in g/cm3 and mass fractions of what is tabulated."""

    density_g_cm3: float
    fractions: tuple[tuple[str, float], ...]


COMPOSITIONS: Final = {
    Material.AIR: Composition(0.0, ()),
    Material.SOFT_TISSUE: Composition(1.06, (("soft tissue", 1.0),)),
    Material.CORTICAL_BONE: Composition(1.92, (("cortical bone", 1.0),)),
    Material.WATER: Composition(1.0, (("water", 1.0),)),
    Material.PMMA: Composition(1.19, (("PMMA", 1.0),)),
    Material.STEEL: Composition(8.0, (("iron", 0.71), ("chromium", 0.19), ("nickel", 0.10))),  # AISI 304
    Material.TITANIUM: Composition(4.43, (("titanium", 0.94), ("aluminium", 0.06))),  # Ti-6Al-4V, V taken as Ti
    # Vertebroplasty cement: PMMA with 30 % by weight of barium sulphate.
    Material.CEMENT: Composition(
        1.45, (("PMMA", 0.70), ("barium", 0.3 * 0.58840), ("sulphur", 0.3 * 0.13737), ("oxygen", 0.3 * 0.27423))
    ),
    Material.CARBON: Composition(0.45, (("carbon", 1.0),)),  # table top: carbon fibre on foam, seen as one
    Material.ALUMINIUM: Composition(2.70, (("aluminium", 1.0),)),
}

CT_KEV: Final = 68.0
"""Effective energy of the CT that the case was scanned with (120 kVp behind a body)."""

SOFT_LIMIT_HU: Final = 100.0
"""Up to here a voxel is soft tissue of any density; above, a mixture by volume with cortical bone."""


def mass_attenuation_cm2_g(substance: str, energies_kev: ArrayLike) -> Array:
    """Return mu/rho of a tabulated substance at energies within 15 to 150 keV, cm2/g."""
    energies, values = _CM2_G[substance]
    wanted = np.asarray(energies_kev, dtype=np.float64)
    result: Array = np.exp(np.interp(np.log(wanted), np.log(energies), np.log(values)))
    return result


def attenuation_per_mm(material: Material, energies_kev: ArrayLike) -> Array:
    """Return the linear attenuation of a material at energies, 1/mm."""
    composition = COMPOSITIONS[material]
    total: Array = np.zeros(np.shape(energies_kev))
    for substance, fraction in composition.fractions:
        total = total + fraction * mass_attenuation_cm2_g(substance, energies_kev)
    return composition.density_g_cm3 * total / 10.0


@dataclass(frozen=True, slots=True)
class TissueModel:
    """What HU stand for: soft tissue up to ``SOFT_LIMIT_HU``, then its mixture with cortical bone.

    With ``A`` the path integral of ``max(HU + 1000, 0)`` and ``B`` that of ``max(HU - SOFT_LIMIT_HU, 0)``, HU mm:
    cortical bone ``B * bone_per_b`` mm, soft tissue of its tabulated density ``A * soft_per_a - B * soft_per_b`` mm.
    """

    bone_per_b: float
    soft_per_a: float
    soft_per_b: float


def tissue_model() -> TissueModel:
    """Return the mixture whose attenuation at ``CT_KEV`` is the HU's own, for every HU."""
    water, soft, bone = (
        float(attenuation_per_mm(m, CT_KEV)) for m in (Material.WATER, Material.SOFT_TISSUE, Material.CORTICAL_BONE)
    )
    bone_hu = 1000.0 * (bone / water - 1.0)
    per_mm = water / soft / 1000.0
    span = bone_hu - SOFT_LIMIT_HU
    return TissueModel(1.0 / span, per_mm, per_mm * (1.0 + (1000.0 + SOFT_LIMIT_HU) / span))


K_LINES_KEV: Final = ((57.98, 0.30), (59.32, 0.52), (67.24, 0.14), (69.07, 0.04))
"""Characteristic lines of tungsten and their share of the K photons."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Photons that leave the tube, in bins.

    Attributes
    ----------
    energies_kev : (N,) mean energy of each bin
    photons : (N,) share of each bin, sum 1
    """

    energies_kev: Array
    photons: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "energies_kev", frozen_array(self.energies_kev, (len(self.energies_kev),)))
        object.__setattr__(self, "photons", frozen_array(self.photons, (len(self.energies_kev),)))

    @property
    def mean_kev(self) -> float:
        """Mean energy of a photon."""
        return float(self.energies_kev @ self.photons)


@lru_cache(maxsize=16)
def tube_spectrum(kvp: float, aluminium_mm: float, copper_mm: float = 0.0, bins: int = 10) -> Spectrum:
    """Return the spectrum of a tungsten tube behind its filter.

    Bremsstrahlung of a thick target (Kramers 1923), N(E) ~ kVp / E - 1, weakened in the anode along a path that a
    comparison with SpekPy chose, and above 69.5 kVp the K lines, whose share grows as (kVp / 69.5 - 1)^1.63 (Green and
    Cosslett 1968).

    Parameters
    ----------
    kvp : float
        Tube voltage, 40 to 150.
    aluminium_mm, copper_mm : float
        Total filtration.
    bins : int
        At least three.
    """
    if not 40.0 <= kvp <= 150.0 or bins < 3:
        raise ValueError(f"{kvp:g} kVp in {bins} bins: expected 40 to 150 kVp and at least 3 bins")
    step = 0.25
    energies = np.arange(15.0 + step / 2, kvp, step)
    photons = kvp / energies - 1.0
    depth_cm = 1e-4 * ANODE_PATH_UM * (kvp / 100.0) ** 1.5
    photons *= np.exp(-19.3 * depth_cm * mass_attenuation_cm2_g("tungsten", energies))
    edge = 69.525
    if kvp > edge:
        share = K_LINE_SHARE * (kvp / edge - 1.0) ** 1.63 * float(photons.sum())
        for line, part in K_LINES_KEV:
            photons[np.argmin(np.abs(energies - line))] += share * part
    for substance, density, thickness_mm in (("aluminium", 2.70, aluminium_mm), ("copper", 8.96, copper_mm)):
        photons *= np.exp(-density * thickness_mm / 10.0 * mass_attenuation_cm2_g(substance, energies))
    photons /= photons.sum()
    index = np.minimum((np.cumsum(photons) - 0.5 * photons) * bins, bins - 1).astype(int)
    weight: Array = np.bincount(index, photons, bins).astype(np.float64)
    mean: Array = np.bincount(index, photons * energies, bins) / weight
    return Spectrum(mean, weight)


ANODE_PATH_UM: Final = 8.0
K_LINE_SHARE: Final = 0.30
