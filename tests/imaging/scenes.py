"""A needle in made-up pictures: truth in closed form, by code that the finders do not share."""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from navsrv.imaging.found import FoundNeedle
from navsrv.imaging.shadow import Radiograph
from navsrv.kernel.frames import CT, Array, Frame, Rigid
from navsrv.kernel.projection import ProjectionModel
from simulators.carm_motion import Gantry, Position, view_of
from simulators.world.imaging import Detector, Exposure, SteelNeedle, expose, steel_integrals

STAND = Frame("stand")
DETECTOR = Detector(384, 384, 0.77, principal_px=(193.2, 189.9))
SMALL = Detector(256, 256, 0.77, principal_px=(129.2, 125.9))
"""As fine, and enough for a needle's end."""
DIAMETER_MM = 2.4


def unit(*values: float) -> Array:
    vector = np.array(values)
    return vector / np.linalg.norm(vector)


def soft_tissue(rng: np.random.Generator, detector: Detector = DETECTOR) -> Array:
    """Return (rows, columns) of attenuation without metal: a body, bones with sharp edges, open air on one side."""
    row, column = np.mgrid[0 : detector.rows, 0 : detector.columns] / detector.rows
    total = 3.0 + 1.2 * np.cos(2.0 * (column - rng.uniform(0.3, 0.7))) + 0.5 * row
    for _ in range(5):
        centre, size, turn = rng.uniform(0.1, 0.9, 2), rng.uniform(0.06, 0.3, 2), rng.uniform(0, np.pi)
        x, y = column - centre[0], row - centre[1]
        u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        total += rng.uniform(0.1, 0.45) * np.sqrt(np.maximum(1.0 - (u / size[0]) ** 2 - (v / size[1]) ** 2, 0.0))
    return np.asarray(np.where(column > 0.985 - 0.06 * row, 0.2, gaussian_filter(total, 0.8)))


def xray(
    orbit_deg: float, needles: list[tuple[Array, Array]], rng: np.random.Generator, tilt_deg: float = 0.0, **more: Any
) -> Radiograph:
    """Return the X-ray of needles (tip, axis in CT), taken towards the CT's origin."""
    pieces = [SteelNeedle(tip, axis, radius_mm=DIAMETER_MM / 2, **more) for tip, axis in needles]
    return xray_of(orbit_deg, pieces, rng, tilt_deg=tilt_deg)


def xray_of(
    orbit_deg: float,
    pieces: list[SteelNeedle],
    rng: np.random.Generator,
    detector: Detector = DETECTOR,
    tilt_deg: float = 0.0,
) -> Radiograph:
    """Return the X-ray of steel cylinders, taken towards the CT's origin."""
    stand = Rigid(CT, STAND, np.eye(3), np.zeros(3))
    truth = Gantry(detector).moved(Position(orbit_deg, tilt_deg)).true()
    pose = Rigid(
        CT, Frame("carm"), truth.T_stand_from_carm.rotation, stand.apply(truth.T_stand_from_carm.translation_mm)
    )
    integrals = soft_tissue(rng, detector)
    for piece in pieces:
        integrals += steel_integrals(piece, pose, detector)
    pixels = expose(integrals, Exposure(quanta=3e4), rng)
    view: ProjectionModel = view_of(truth, Rigid(CT, Frame("stand"), np.eye(3), np.zeros(3)))
    return Radiograph(pixels, view)


def in_round_field(image: Radiograph, rng: np.random.Generator, noisy_grey: bool = False) -> Radiograph:
    """Return a picture as an intensifier's screen shows it: 8 bits, in a disc; black, noisy or grey outside."""
    shown = _on_screen(image)
    rows, columns = np.indices(shown.shape)
    middle = 0.5 * (np.array(shown.shape) - 1.0) + rng.uniform(-4.0, 4.0, 2)
    within = np.hypot(rows - middle[0], columns - middle[1]) < rng.uniform(0.40, 0.49) * len(shown)
    outside = np.full(shown.shape, rng.choice([0.0, 110.0]))
    outside += rng.choice([0.0, 1.5]) * rng.normal(size=shown.shape)
    if noisy_grey:
        outside = rng.normal(110.0, 1.5, shown.shape)
    return _of_screen(np.where(gaussian_filter(within * 1.0, 0.6) > 0.5, shown, outside), image.projection)


def in_white(image: Radiograph, start_mm: Array, way: Array, rng: np.random.Generator) -> Radiograph:
    """Return a picture in which the body ends at a point, and the air beyond, ``way`` from it, is clipped white."""
    beyond = _beyond(image, start_mm, way, rng)
    lit = 255.0 / (1.0 + np.exp(-np.clip(beyond / rng.uniform(0.5, 6.0), -40.0, 40.0)))
    return _of_screen(_on_screen(image) + lit, image.projection)


def under_shutter(image: Radiograph, start_mm: Array, way: Array, rng: np.random.Generator) -> Radiograph:
    """Return a picture in which a shutter covers what is beyond a point: scattered light only, with its own noise."""
    beyond = _beyond(image, start_mm, way, rng)
    scattered = 20.0 + 10.0 * np.exp(-np.maximum(beyond, 0.0) / 40.0) + rng.normal(0.0, 1.5, beyond.shape)
    open_share = 1.0 / (1.0 + np.exp(np.clip(beyond / 0.7, -40.0, 40.0)))
    return _of_screen(open_share * _on_screen(image) + (1.0 - open_share) * scattered, image.projection)


def _beyond(image: Radiograph, start_mm: Array, way: Array, rng: np.random.Generator) -> Array:
    """Return how far (rows, columns), in pixels, each is beyond an edge through a point, about across ``way``."""
    start, ahead = image.projection.project(start_mm), image.projection.project(start_mm + 5.0 * way)
    turn = np.radians(rng.uniform(-40.0, 40.0))
    normal = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ (ahead - start)
    rows, columns = np.indices(image.pixels.shape)
    far = (columns - start[0]) * normal[0] + (rows - start[1]) * normal[1]
    return np.asarray(far / np.linalg.norm(normal))


def _on_screen(image: Radiograph) -> Array:
    values = np.asarray(image.pixels, dtype=np.float64)
    low, high = np.percentile(values, (0.1, 99.9))
    return 25.0 + 215.0 * np.clip((values - low) / (high - low), 0.0, 1.0)


def _of_screen(shown: Array, view: ProjectionModel) -> Radiograph:
    return Radiograph(np.clip(np.round(shown), 0, 255).astype(np.uint8), view)


def off(needle: FoundNeedle, tip: Array, axis: Array) -> float:
    """Return the squared error in units of the needle's own covariance: chi-square of five."""
    error = np.concatenate([needle.tip_mm - tip, needle.axis - axis])
    return float(error @ np.linalg.pinv(needle.covariance, rcond=1e-7) @ error)


def across(axis: Array, rng: np.random.Generator) -> Array:
    """Return a unit vector across another, whichever."""
    return unit(*np.cross(axis, rng.normal(size=3)))


def bent(tip: Array, axis: Array, sag_mm: float, rng: np.random.Generator, length: float = 150.0) -> list[SteelNeedle]:
    """Return a needle on a circle that strays from its chord by so much on 100 mm, as short straight pieces."""
    side, radius = across(axis, rng), 100.0**2 / (8.0 * sag_mm)
    way = np.linspace(0.0, length, 31) / radius
    points = tip - radius * np.sin(way)[:, None] * axis + radius * (1.0 - np.cos(way))[:, None] * side
    return [
        SteelNeedle(a, (a - b) / np.linalg.norm(a - b), float(np.linalg.norm(a - b)) + 0.3, DIAMETER_MM / 2)
        for a, b in pairwise(points)
    ]


def volume(
    needles: list[tuple[Array, Array, float]], rng: np.random.Generator, spacing: float = 1.0, size: int = 76
) -> tuple[NDArray[np.int16], Array]:
    """Return (voxels, index to mm) of a scan: needles (tip, axis, length) of steel in tissue and bone."""
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn[:, 2] *= np.sign(np.linalg.det(turn))
    matrix = np.eye(4)
    matrix[:3, :3] = turn * spacing
    matrix[:3, 3] = -turn @ np.full(3, 0.5 * (size - 1) * spacing)
    fine = np.indices((size, size, size), dtype=np.float32)
    points = np.stack([fine[2], fine[1], fine[0]], axis=-1) @ matrix[:3, :3].T.astype(np.float32)
    points += matrix[:3, 3].astype(np.float32)
    hu = np.full((size,) * 3, 40.0, np.float32)
    for _ in range(4):
        centre, radii = rng.uniform(-30, 30, 3), rng.uniform(6, 16, 3)
        inside = (((points - centre) / radii) ** 2).sum(axis=-1)
        hu = np.where(inside < 1.0, np.where(inside > 0.7, 1400.0, 400.0), hu).astype(np.float32)
    for tip, axis, length in needles:
        offset = points - tip.astype(np.float32)
        along = offset @ axis.astype(np.float32)
        across = np.linalg.norm(offset - along[..., None] * axis.astype(np.float32), axis=-1)
        edge = np.maximum(across - DIAMETER_MM / 2, np.maximum(along, -length - along)) / spacing
        hu += 14_000.0 * np.clip(0.5 - edge, 0.0, 1.0)
    hu = gaussian_filter(hu, 0.6 / spacing) + rng.normal(0.0, 40.0, hu.shape)
    return np.clip(hu, -1024, 3071).astype(np.int16), matrix
