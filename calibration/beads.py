"""Owns the finding of metal beads in an X-ray: where the middle of each shadow is, how sure that is, how much metal.

Refuses pictures that are not of X-rays (wrong shape, one grey value); leaves out what is not round, what another bead
covers and what the picture's edge cuts.  Which bead is which is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import maximum_filter
from scipy.optimize import least_squares
from scipy.special import gamma

from calibration.poses import MAD_TO_SIGMA
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array, frozen_array

SCALES: Final = 6
RESPONSE_NOISES: Final = 6.0
"""A spot answers the filter this many times stronger than noise does."""
RESPONSE_SHARE: Final = 0.08
"""Of the strongest spots' answer; weaker ones are no metal."""
ROUND: Final = 1.35
"""Largest ratio of a shadow's two widths."""
PEAK_NOISES: Final = 5.0
ODD_NOISES: Final = 7.0
ODD_SHARE: Final = 0.04
"""Of the shadow's depth: what a round shadow may differ from its own half turn by."""
SHAPE_SHARE: Final = 0.002
"""Of a shadow's width: how far its middle is from that of its bead by perspective and by bending across it."""
MAX_SIGMA_PX: Final = 0.5
OWN_SHARE: Final = 0.6
"""Of a shadow's surroundings that must be free of other shadows."""
MAX_SPOTS: Final = 400


class Tone(Enum):
    """What a pixel's value means: photons (metal dark), or their logarithm with metal dark or bright."""

    COUNTS = "counts"
    LOG_DARK = "log-dark"
    LOG_BRIGHT = "log-bright"


@dataclass(frozen=True, slots=True, eq=False)
class Beads:
    """Shadows of beads.

    Attributes
    ----------
    centres_px : (N, 2)
        (column, row); pixel centres are at whole numbers.
    sigmas_px : (N,)
        One sigma of a centre along one axis, from the noise about its own fit.
    widths_px : (N,)
        Width of the fitted bell: where it has fallen to 0.61.
    metal : (N,)
        Absorption summed over the shadow: proportional to the bead's volume and to its magnification squared.
    """

    centres_px: Array
    sigmas_px: Array
    widths_px: Array
    metal: Array


def find_beads(image: ArrayLike, radius_px: tuple[float, float], *, tone: Tone = Tone.COUNTS) -> Beads:
    """Return the beads in an X-ray.

    Spots are the maxima over place and scale of the difference of Gaussians; each is then fitted by a bell with two
    widths, an angle, a steepness and a sloping background, whose middle is the shadow's by symmetry.

    Parameters
    ----------
    image : (rows, columns)
    radius_px : (least, largest)
        Of the shadows that are looked for.

    Raises
    ------
    CalibrationError
        No picture: wrong shape, not finite, of one value; or radii that are none.
    """
    absorbed = _absorption(image, tone)
    least, largest = radius_px
    if not 0.5 <= least <= largest <= min(absorbed.shape) / 4:
        raise CalibrationError(
            f"beads of {least:.2f} to {largest:.2f} px radius: 0.5 px to a quarter of the picture can be looked for"
        )
    spots = _spots(absorbed, least, largest)
    fitted = [_fit(absorbed, i, spots) for i in range(len(spots))]
    kept = [one for one in fitted if one is not None]
    # Two spots of one shadow (its own and its halo's) end at one middle.
    kept.sort(key=lambda row: -row[4])
    unique: list[tuple[float, float, float, float, float]] = []
    for row in kept:
        if all(np.hypot(row[0] - u[0], row[1] - u[1]) > max(row[3], u[3]) for u in unique):
            unique.append(row)
    table = np.array(unique, dtype=np.float64).reshape(-1, 5)
    n = len(table)
    return Beads(
        frozen_array(table[:, :2], (n, 2)),
        frozen_array(table[:, 2], (n,)),
        frozen_array(table[:, 3], (n,)),
        frozen_array(table[:, 4], (n,)),
    )


def _absorption(image: ArrayLike, tone: Tone) -> NDArray[np.float32]:
    """Return what was absorbed on the way, up to a constant; the logarithm makes metal add to what lies behind it."""
    given = np.asarray(image)
    if given.ndim != 2 or min(given.shape) < 32:
        raise CalibrationError(f"X-ray: shape {given.shape}, expected (rows, columns) of 32 or more")
    pixels = given.astype(np.float32)
    if not np.isfinite(pixels).all():
        raise CalibrationError("X-ray: a pixel is not finite")
    if float(np.ptp(pixels)) <= 0.0:
        raise CalibrationError(f"X-ray: every pixel is {float(pixels.flat[0]):g}; no picture")
    if tone is not Tone.COUNTS:
        return pixels if tone is Tone.LOG_BRIGHT else -pixels
    if float(pixels.min()) < 0.0:
        raise CalibrationError(f"X-ray: counts of {float(pixels.min()):g}; say so if its values are logarithms")
    floor = max(float(pixels.max()) * 1e-4, 1e-6)
    absorbed: NDArray[np.float32] = -np.log(np.maximum(pixels, floor)).astype(np.float32)
    return absorbed


def _spots(absorbed: NDArray[np.float32], least: float, largest: float) -> Array:
    """Return (column, row, radius) of spots (N, 3) brighter than what surrounds them."""
    radii = np.geomspace(least, max(largest, 1.2 * least), SCALES)
    responses = []
    for radius in radii:
        sigma = radius / np.sqrt(2.0)
        inner = cv2.GaussianBlur(absorbed, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        outer = cv2.GaussianBlur(absorbed, (0, 0), 1.6 * sigma, borderType=cv2.BORDER_REPLICATE)
        responses.append(inner - outer)
    stack = np.stack(responses)
    scale = MAD_TO_SIGMA * np.median(np.abs(stack - np.median(stack, axis=(1, 2), keepdims=True)), axis=(1, 2))
    best = stack.max(axis=0)
    at_scale = stack.argmax(axis=0)
    size = 2 * int(np.ceil(least)) + 1
    peaks = best == maximum_filter(best, size=size)
    strong = np.sort(best[peaks])[-8:]
    peaks &= best > np.maximum(RESPONSE_NOISES * scale[at_scale], RESPONSE_SHARE * float(np.median(strong)))
    rows, columns = np.nonzero(peaks)
    order = np.argsort(-best[rows, columns])[:MAX_SPOTS]
    spots: Array = np.column_stack([columns, rows, radii[at_scale[rows, columns]]])[order].astype(np.float64)
    return spots


def _fit(absorbed: NDArray[np.float32], index: int, spots: Array) -> tuple[float, float, float, float, float] | None:
    """Return (column, row, sigma, width, metal) of a spot; None where it is no whole round shadow of its own."""
    column, row, radius = spots[index]
    half = int(np.ceil(2.2 * radius + 2.0))
    left, top = int(column) - half, int(row) - half
    if left < 0 or top < 0 or left + 2 * half >= absorbed.shape[1] or top + 2 * half >= absorbed.shape[0]:
        return None
    v, u = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    inside = np.hypot(u, v) <= half
    own = inside.copy()
    for other_column, other_row, other_radius in np.delete(spots, index, axis=0):
        du, dv = other_column - column, other_row - row
        apart = float(np.hypot(du, dv))
        if 1.2 * radius < apart < half + 2.0 * other_radius:
            own &= np.hypot(u - du, v - dv) > 1.7 * other_radius + 1.0
    if own.sum() < OWN_SHARE * inside.sum():
        return None
    u, v = u[own], v[own]
    values = absorbed[top : top + 2 * half + 1, left : left + 2 * half + 1][own].astype(np.float64)
    rim = np.hypot(u, v) > 0.75 * half
    base = float(np.median(values[rim]))
    start = np.array(
        [0.0, 0.0, 0.7 * radius, 0.7 * radius, 0.0, max(float(values.max()) - base, 1e-6), base, 0.0, 0.0, 1.2]
    )

    def model(p: Array) -> tuple[Array, Array]:
        """Return the model and its derivatives; the shape is a symmetric matrix of widths."""
        du, dv = u - p[0], v - p[1]
        a, b, c = 1.0 / p[2], 1.0 / p[3], p[4]
        x, y = a * du + c * dv, c * du + b * dv
        q = np.maximum(x * x + y * y, 1e-12)
        power = q ** p[9]
        bell = np.exp(-0.5 * power)
        seen = p[5] * bell
        slope = seen * p[9] * power / q
        derivatives = np.column_stack(
            [
                slope * (a * x + c * y),
                slope * (c * x + b * y),
                slope * x * du * a * a,
                slope * y * dv * b * b,
                -slope * (x * dv + y * du),
                bell,
                np.ones_like(u),
                u,
                v,
                -0.5 * seen * power * np.log(q),
            ]
        )
        return seen + p[6] + p[7] * u + p[8] * v, derivatives

    low = np.array([-radius - 1, -radius - 1, 0.2 * radius, 0.2 * radius, -1.0, 0.0, -np.inf, -np.inf, -np.inf, 0.7])
    high = np.array([radius + 1, radius + 1, 2.5 * radius, 2.5 * radius, 1.0, np.inf, np.inf, np.inf, np.inf, 4.0])
    found = least_squares(
        lambda p: model(p)[0] - values,
        start,
        jac=lambda p: model(p)[1],
        bounds=(low, high),
        x_scale="jac",
        max_nfev=30,
        ftol=1e-7,
    )
    p = found.x
    noise = float(np.sqrt(2.0 * found.cost / max(len(values) - len(p), 1)))
    shape = np.array([[1.0 / p[2], p[4]], [p[4], 1.0 / p[3]]])
    inverse_widths = np.abs(np.linalg.eigvalsh(shape))
    if inverse_widths.min() < 1e-3 or inverse_widths.max() / inverse_widths.min() > ROUND or p[5] < PEAK_NOISES * noise:
        return None
    lopsided = _lopsided(u, v, p, model(p)[0] - values, noise)
    if lopsided > ODD_SHARE:
        return None
    width = float(1.0 / np.sqrt(inverse_widths.prod()))
    information = found.jac.T @ found.jac
    if np.linalg.cond(information) > 1e14:
        return None
    # Photons are fewest behind metal, where the middle is told: each pixel's own residual weighs (White's estimate).
    gain = np.linalg.solve(information, found.jac.T)[:2]
    spare = len(values) / max(len(values) - len(p), 1)
    sigma = float(np.sqrt(((gain * found.fun) ** 2).sum() * spare / 2.0))
    # What is lopsided by less pulls the middle by some of its width: a wall's edge behind a bead.
    sigma = float(np.hypot(sigma, (0.5 * lopsided + SHAPE_SHARE) * width))
    if sigma > MAX_SIGMA_PX:
        return None
    area = np.pi * width**2 * float(gamma(1.0 / p[9]) * 2.0 ** (1.0 / p[9]) / p[9])
    return column + float(p[0]), row + float(p[1]), sigma, width, float(p[5]) * area


def _lopsided(u: Array, v: Array, p: Array, left: Array, noise: float) -> float:
    """Return how much of a shadow's depth a fit left that is not the same on opposite sides; 0 where noise explains it.

    Two shadows taken for one are lopsided.  Odd functions up to third order are fitted to it;
    a round shadow of any profile on any slope has none.
    """
    du, dv = u - p[0], v - p[1]
    x, y = du / p[2] + p[4] * dv, p[4] * du + dv / p[3]
    bell = np.exp(-0.5 * (x * x + y * y))
    odd = np.column_stack([x * bell, y * bell, x**3 * bell, x * x * y * bell, x * y * y * bell, y**3 * bell])
    amplitudes, *_ = np.linalg.lstsq(odd, left, rcond=None)
    size = float(np.sqrt(((odd @ amplitudes) ** 2).sum()))
    share = float(np.abs(odd @ amplitudes).max()) / float(p[5])
    return share if size > ODD_NOISES * noise else 0.0
