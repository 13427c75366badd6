"""Owns what becomes of photons at the detector: shutters, distortion, scatter, blur, noise, gain.

The way of a signal: shutters and focal-spot blur shape the primary, a smooth kernel adds scatter, photons are counted
(Poisson, with the noise of mixed energies), the scintillator spreads their light, the read-out adds its own noise, and
a look-up makes 16-bit values.  Refuses rays and patients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter, zoom
from scipy.special import erf

from navsrv.kernel.frames import Array

_BLOCK: Final = 8
"""Scatter is smooth: it is computed on blocks of so many pixels."""


@dataclass(frozen=True, slots=True)
class Distortion:
    """Where an image intensifier shows what meets its screen.

    With ``q`` the offset in mm from ``centre_px`` as displayed and ``rho = |q| / radius_mm``, the undistorted offset is
    ``R(swirl_rad rho^2) q / (1 + pincushion rho^2) + shift``: pincushion from the curved screen magnifies outwards;
    the magnetic field turns electrons by an angle that grows outwards (the S) and shifts all of them.

    Attributes
    ----------
    centre_px : (column, row)
    pixel_mm, radius_mm : float
        Of the image, and the radius at which the figures below hold.
    pincushion : float
        How much farther out a point at the radius is shown, as a fraction.
    swirl_rad : float
    shift_mm : (across, down)
    """

    centre_px: tuple[float, float]
    pixel_mm: float
    radius_mm: float = 115.0
    pincushion: float = 0.06
    swirl_rad: float = 0.03
    shift_mm: tuple[float, float] = (0.0, 0.0)

    def undistorted_px(self, shown_px: ArrayLike) -> Array:
        """Return (..., 2) where the ray meets the plane detector of which the pixels (column, row) are shown."""
        offset = (np.asarray(shown_px, dtype=np.float64) - self.centre_px) * self.pixel_mm
        rho2 = (offset**2).sum(axis=-1) / self.radius_mm**2
        scale, turn = 1.0 / (1.0 + self.pincushion * rho2), self.swirl_rad * rho2
        x = scale * (np.cos(turn) * offset[..., 0] - np.sin(turn) * offset[..., 1]) + self.shift_mm[0]
        y = scale * (np.sin(turn) * offset[..., 0] + np.cos(turn) * offset[..., 1]) + self.shift_mm[1]
        result: Array = np.stack([x, y], axis=-1) / self.pixel_mm + self.centre_px
        return result

    def shown_px(self, undistorted_px: ArrayLike) -> Array:
        """Return (..., 2) the pixels (column, row) that show points of the plane detector; the other way round."""
        wanted = np.asarray(undistorted_px, dtype=np.float64)
        found = wanted.copy()
        for _ in range(60):
            step = wanted - self.undistorted_px(found)
            found += step
            if not step.size or float(np.abs(step).max()) < 1e-9:
                break
        return found


@dataclass(frozen=True, slots=True)
class Collimator:
    """Shutters: a rectangle about a pixel, or a circle when ``iris_mm`` is given; lengths on the detector."""

    half_mm: tuple[float, float] = (1e6, 1e6)
    iris_mm: float | None = None
    centre_px: tuple[float, float] | None = None
    penumbra_mm: float = 1.2


@dataclass(frozen=True, slots=True)
class Receptor:
    """A detector.

    Attributes
    ----------
    pixel_mm : float
    csi_mm : float
        Thickness of the scintillator (packed to 80 %): which photons are seen.
    blur_mm : float
        One sigma of the scintillator's light; MTF(f) = exp(-2 (pi sigma f)^2).
    glare_share, glare_mm : float
        Part of the light that spreads far, and how far (one sigma): small in a flat panel, large in an intensifier.
    electronic : float
        One sigma of the read-out noise, in photons of mean energy.
    bits : int
        Of the stored value; it fills the lower bits of 16.
    logarithmic : bool
        Value linear in ln(I / I0), bright where little is absorbed; else linear in I.
    decades : float
        Range of the logarithm below the open field.
    white : float
        Share of the open field's signal that reaches the largest value.
    field_mm : float or None
        Radius of an intensifier's screen; None: the whole panel.
    vignetting : float
        How much darker the rim of the field is than its middle.
    distortion : Distortion or None
    """

    pixel_mm: float = 0.58
    csi_mm: float = 0.55
    blur_mm: float = 0.20
    glare_share: float = 0.02
    glare_mm: float = 12.0
    electronic: float = 5.0
    bits: int = 16
    logarithmic: bool = True
    decades: float = 4.0
    white: float = 1.1
    field_mm: float | None = None
    vignetting: float = 0.0
    distortion: Distortion | None = None


def intensifier(columns: int, rows: int, field_mm: float = 115.0, distortion: Distortion | None = None) -> Receptor:
    """Return a 9 inch image intensifier whose round field fills the image, with a 10-bit camera."""
    pixel_mm = 2.0 * field_mm / min(columns, rows)
    bent = distortion or Distortion((0.5 * (columns - 1), 0.5 * (rows - 1)), pixel_mm, field_mm)
    return Receptor(
        pixel_mm, 0.40, 0.28, 0.08, 25.0, 6.0, bits=10, logarithmic=False, white=0.35, field_mm=field_mm,
        vignetting=0.12, distortion=bent,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scatter:
    """Smooth scatter: each irradiated point sends out ``share * P * (-ln P)`` in a broad kernel of two Gaussians.

    Behind a wide homogeneous object the scatter-to-primary ratio is therefore ``share * -ln P``: with 0.15 (a grid),
    0.6 behind 20 cm of water.

    Attributes
    ----------
    share : float
    near_mm, far_mm, far_weight : float
        One sigma of the kernels on the detector, and the weight of the broader.
    """

    share: float = 0.15
    near_mm: float = 25.0
    far_mm: float = 70.0
    far_weight: float = 0.5

    def of(self, primary: NDArray[np.float32], pixel_mm: float) -> NDArray[np.float32]:
        """Return the scatter (rows, columns) of a primary (1 in the open field); none comes from beyond the image."""
        if self.share == 0.0:
            return np.zeros_like(primary)
        emitted = self.share * primary * -np.log(np.clip(primary, 1e-6, 1.0))
        rows, columns = primary.shape
        block = min(_BLOCK, rows, columns)
        padded = np.pad(emitted, ((0, -rows % block), (0, -columns % block)), mode="edge")
        coarse = padded.reshape(padded.shape[0] // block, block, -1, block).mean(axis=(1, 3))
        spread = np.zeros_like(coarse)
        for sigma_mm, weight in ((self.near_mm, 1.0 - self.far_weight), (self.far_mm, self.far_weight)):
            spread += weight * gaussian_filter(coarse, sigma_mm / (pixel_mm * block), mode="constant")
        # grid_mode keeps each block where its pixels are.
        fine = zoom(spread, block, order=1, mode="nearest", grid_mode=True)
        result: NDArray[np.float32] = np.maximum(fine[:rows, :columns], 0.0).astype(np.float32)
        return result


def shutter(collimator: Collimator, receptor: Receptor, columns: int, rows: int) -> NDArray[np.float32]:
    """Return (rows, columns) the share of the open field that the shutters let through, with their penumbra."""
    centre = collimator.centre_px or (0.5 * (columns - 1), 0.5 * (rows - 1))
    x = (np.arange(columns) - centre[0]) * receptor.pixel_mm
    y = (np.arange(rows)[:, None] - centre[1]) * receptor.pixel_mm
    width = np.sqrt(2.0) * max(collimator.penumbra_mm / np.sqrt(12.0), 1e-3)
    if collimator.iris_mm is not None:
        inside = [collimator.iris_mm - np.hypot(x, y)]
    else:
        inside = [collimator.half_mm[0] - np.abs(x), collimator.half_mm[1] - np.abs(y)]
    share = np.ones((rows, columns))
    for distance in inside:
        share = share * (0.5 * (1.0 + erf(distance / width)))
    return share.astype(np.float32)


def screen(receptor: Receptor, columns: int, rows: int) -> NDArray[np.float32]:
    """Return (rows, columns) the receptor's own sensitivity: 1, but for an intensifier's round, shaded field."""
    if receptor.field_mm is None:
        return np.ones((rows, columns), np.float32)
    x = np.arange(columns) - 0.5 * (columns - 1)
    y = np.arange(rows)[:, None] - 0.5 * (rows - 1)
    rho = np.hypot(x, y) * receptor.pixel_mm / receptor.field_mm
    return np.where(rho <= 1.0, 1.0 - receptor.vignetting * rho**2, 0.0).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Light:
    """What meets the detector on average: primary and scatter, 1 in the open field, and the noise of one photon.

    ``unit`` is the variance of the signal of one detected photon over its mean: what photons of mixed energies add.
    """

    primary: NDArray[np.float32] = field(repr=False)
    scatter: NDArray[np.float32] = field(repr=False)
    unit: NDArray[np.float32] = field(repr=False)


def detect(light: Light, quanta: float, receptor: Receptor, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the signal (rows, columns), 1 in the open field, with its noise.

    Parameters
    ----------
    quanta : float
        Photons of mean energy that a pixel of the open field detects.
    """
    rows, columns = light.primary.shape
    field_of_view = screen(receptor, columns, rows)
    arriving = np.maximum(light.primary + light.scatter, 0.0) * field_of_view
    # One Poisson number of a unit that makes mean and variance those of the mixed energies.
    unit = np.maximum(light.unit, 1e-6)
    counted = rng.poisson(np.asarray(arriving / unit, dtype=np.float64) * quanta).astype(np.float32) * unit
    core = gaussian_filter(counted, receptor.blur_mm / receptor.pixel_mm) if receptor.blur_mm > 0.0 else counted
    if receptor.glare_share > 0.0:
        core = (1.0 - receptor.glare_share) * core + receptor.glare_share * _broad(
            counted, receptor.glare_mm / receptor.pixel_mm
        )
    noise = rng.standard_normal(core.shape, dtype=np.float32) * np.float32(receptor.electronic)
    signal: NDArray[np.float32] = np.where(field_of_view > 0.0, (core + noise) / np.float32(quanta), 0.0)
    return signal


def _broad(image: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    """Return the image blurred widely, on blocks of four pixels."""
    rows, columns = image.shape
    padded = np.pad(image, ((0, -rows % 4), (0, -columns % 4)), mode="edge")
    coarse = padded.reshape(padded.shape[0] // 4, 4, -1, 4).mean(axis=(1, 3))
    fine = zoom(gaussian_filter(coarse, sigma_px / 4.0, mode="constant"), 4, order=1, mode="nearest", grid_mode=True)
    result: NDArray[np.float32] = fine[:rows, :columns]
    return result


def digitise(signal: NDArray[np.float32], receptor: Receptor) -> NDArray[np.uint16]:
    """Return 16-bit values of a signal (1 in the open field) by the receptor's look-up."""
    largest = float(2**receptor.bits - 1)
    if receptor.logarithmic:
        floor = 10.0**-receptor.decades
        share = 1.0 + np.log10(np.maximum(signal, floor * receptor.white) / receptor.white) / receptor.decades
    else:
        share = signal / receptor.white
    pixels: NDArray[np.uint16] = np.clip(np.rint(share * largest), 0, largest).astype(np.uint16)
    return pixels


def signal_of(pixels: NDArray[np.uint16], receptor: Receptor) -> Array:
    """Return the signal (1 in the open field) that values stand for: the look-up the other way round."""
    share = pixels.astype(np.float64) / (2**receptor.bits - 1)
    if receptor.logarithmic:
        share = 10.0 ** ((share - 1.0) * receptor.decades)
    result: Array = share * receptor.white
    return result
