"""Owns an X-ray image of the case at any pose, with the truth about its geometry.

``Radiographer(ct).shoot(view, solids, technique, receptor, seed)`` is all that a user needs; the same arguments give
the same image.  Rays, materials and the detector have modules of their own.  The server's registration renders with
other code (``navsrv/registration/drr.py``), so that a fault of either shows.  Refuses sockets, clocks, motion.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter

from navsrv.anatomy.case import Volume
from navsrv.kernel.frames import Array
from navsrv.kernel.projection import ProjectionModel
from simulators.world.detector import Collimator, Light, Receptor, Scatter, detect, digitise, shutter
from simulators.world.xray_materials import (
    COMPOSITIONS,
    Material,
    attenuation_per_mm,
    mass_attenuation_cm2_g,
    tube_spectrum,
)
from simulators.world.xray_paths import Beam, Rays, Tissue, path_lengths, rays_of, transmit
from simulators.world.xray_solids import Piece, piece_table

CSI_G_CM3: Final = 4.51 * 0.8
"""Caesium iodide in columns, packed to 80 %."""


@dataclass(frozen=True, slots=True)
class Technique:
    """How an image is taken.

    Attributes
    ----------
    kvp : float
    aluminium_mm, copper_mm : float
        Filtration of the tube.
    quanta_per_mm2 : float
        Photons that the open field's detector sees per mm2: the dose.
    automatic_per_mm2 : float or None
        Brightness control: the dose is set so that as many photons per mm2 are seen in the middle of the image, up to
        ten times ``quanta_per_mm2``, and a linear look-up so that the middle comes out grey.
    focal_spot_mm, object_share : float
        Width of the focal spot; it blurs as for an object at ``object_share`` of the way to the detector.
    scatter : Scatter
    collimator : Collimator or None
    """

    kvp: float = 80.0
    aluminium_mm: float = 3.5
    copper_mm: float = 0.1
    quanta_per_mm2: float = 4e5
    automatic_per_mm2: float | None = None
    focal_spot_mm: float = 0.6
    object_share: float = 0.55
    scatter: Scatter = field(default_factory=Scatter)
    collimator: Collimator | None = None

    @property
    def focal_blur_mm(self) -> float:
        """One sigma of the focal spot's blur on the detector: a square spot, magnified."""
        return float(self.focal_spot_mm * (1.0 / self.object_share - 1.0) / 12.0**0.5)


@dataclass(frozen=True, slots=True, eq=False)
class Radiograph:
    """An X-ray image and the truth about it.

    Attributes
    ----------
    pixels : (rows, columns) uint16
    view : ProjectionModel
        The pinhole, object frame ``ct``; for an intensifier that of the plane detector, before distortion.
    technique : Technique
    receptor : Receptor
        Both as used: brightness control has set dose and white.
    signal : (rows, columns) float32
        What ``pixels`` show before the look-up: 1 in the open field.
    light : Light
        Primary and scatter without noise.
    """

    pixels: NDArray[np.uint16] = field(repr=False)
    view: ProjectionModel
    technique: Technique
    receptor: Receptor
    signal: NDArray[np.float32] = field(repr=False)
    light: Light = field(repr=False)

    def project(self, points_ct_mm: ArrayLike) -> Array:
        """Return the pixels (column, row), (N, 2) or (2,), that show points (N, 3) or (3,) in CT, as distorted."""
        undistorted = self.view.project(points_ct_mm)
        distortion = self.receptor.distortion
        return undistorted if distortion is None else distortion.shown_px(undistorted)


class Radiographer:
    """Takes X-ray images of one CT.

    Parameters
    ----------
    ct : Volume or None
        HU; None: nobody on the table, only solids.
    beyond_mm : float
        How far the patient goes on past the ends of the CT (in its mirror): no beam sees a cut body.
    """

    def __init__(self, ct: Volume | None, beyond_mm: float = 80.0) -> None:
        self.tissue = Tissue.none() if ct is None else Tissue.from_ct(ct, beyond_mm)

    def shoot(
        self,
        view: ProjectionModel,
        solids: Iterable[Piece] = (),
        technique: Technique | None = None,
        receptor: Receptor | None = None,
        seed: int | tuple[int, ...] = 0,
    ) -> Radiograph:
        """Return the image of a view.

        Parameters
        ----------
        view : ProjectionModel
            Its object frame is ``ct``; its focal length in pixels times the receptor's pixel is the SDD.
        solids : pieces in the frame ``ct``
            Later ones displace earlier ones, and all displace tissue.
        technique, receptor
            None: a C-arm's flat panel at 80 kVp with pixels of ``SDD / focal length`` for an SDD of 1020 mm.
        seed : int or several
            Decides the noise, and nothing else.
        """
        technique = technique or Technique()
        receptor = receptor or Receptor(1020.0 / float(view.intrinsics[0, 0]))
        light = self.light(view, solids, technique, receptor)
        technique, receptor = regulated(technique, receptor, light)
        quanta = technique.quanta_per_mm2 * receptor.pixel_mm**2
        signal = detect(light, quanta, receptor, np.random.default_rng(seed))
        return Radiograph(digitise(signal, receptor), view, technique, receptor, signal, light)

    def light(self, view: ProjectionModel, solids: Iterable[Piece], technique: Technique, receptor: Receptor) -> Light:
        """Return primary and scatter of a view without noise."""
        first, second = transmit(
            self.tissue, piece_table(solids), self._rays(view, receptor), beam_of(technique, receptor)
        )
        unit = second / np.maximum(first, 1e-12)
        if technique.collimator is not None:
            first = first * shutter(technique.collimator, receptor, view.columns, view.rows)
        sigma_px = technique.focal_blur_mm / receptor.pixel_mm
        if sigma_px > 0.05:
            first = gaussian_filter(first, sigma_px, mode="nearest")
        return Light(first, technique.scatter.of(first, receptor.pixel_mm), unit.astype(np.float32))

    def lengths(self, view: ProjectionModel, solids: Iterable[Piece] = ()) -> dict[Material, Array]:
        """Return (rows, columns) mm of each material on the ray to each pixel's centre."""
        lengths = path_lengths(self.tissue, piece_table(solids), rays_of(view))
        return {material: lengths[..., material] for material in Material}

    def _rays(self, view: ProjectionModel, receptor: Receptor) -> Rays:
        if receptor.distortion is None:
            return rays_of(view)
        column, row = np.meshgrid(np.arange(view.columns), np.arange(view.rows))
        return rays_of(view, receptor.distortion.undistorted_px(np.stack([column, row], axis=-1)))


def beam_of(technique: Technique, receptor: Receptor) -> Beam:
    """Return what each bin of the spectrum adds to the signal and its noise, and how materials weaken it.

    A photon adds its energy where the scintillator absorbs it; the signal is in units of the open field's, the second
    moment in units of its mean photon.
    """
    spectrum = tube_spectrum(technique.kvp, technique.aluminium_mm, technique.copper_mm)
    energies = spectrum.energies_kev
    stopped = 1.0 - np.exp(-CSI_G_CM3 * receptor.csi_mm / 10.0 * mass_attenuation_cm2_g("caesium iodide", energies))
    seen = spectrum.photons * stopped
    seen = seen / seen.sum()
    weight = energies / float(seen @ energies)
    mu = np.stack([attenuation_per_mm(material, energies) for material in COMPOSITIONS])
    return Beam(seen * weight, seen * weight**2, mu)


def regulated(technique: Technique, receptor: Receptor, light: Light) -> tuple[Technique, Receptor]:
    """Return technique and receptor as brightness control sets them for what arrives in the middle of the image."""
    if technique.automatic_per_mm2 is None:
        return technique, receptor
    rows, columns = light.primary.shape
    part = (slice(rows * 3 // 8, rows * 5 // 8 + 1), slice(columns * 3 // 8, columns * 5 // 8 + 1))
    middle = max(float(np.median(light.primary[part] + light.scatter[part])), 1e-6)
    dose = min(technique.automatic_per_mm2 / middle, 10.0 * technique.quanta_per_mm2)
    white = receptor.white if receptor.logarithmic else 2.2 * middle
    return replace(technique, quanta_per_mm2=dose), replace(receptor, white=white)
