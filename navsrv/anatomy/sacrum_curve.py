"""Owns the curved coordinates of the sacrum: along its bodies, sideways, and outward from the curve.

``s`` runs in mm from the middle of the S1 upper endplate (0) down through S5 (about 107) into the coccyx, negative
into L5; ``x`` is the patient's left; ``v`` points backward, square to the curve.  Figures are those of an average
adult (curved length about 11 cm, endplate slope about 40 degrees), approximate.  Refuses everything that is not in
the median plane's bend.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator
from scipy.spatial import cKDTree

from navsrv.kernel.frames import Array, frozen_array

STATIONS_MM: Final = (-90.0, -60.0, -25.0, 0.0, 25.0, 50.0, 75.0, 100.0, 115.0, 140.0, 160.0)
SLOPES_DEG: Final = (2.0, 10.0, 26.0, 40.0, 37.0, 19.0, -4.0, -24.0, -34.0, -52.0, -58.0)
"""Angle of the curve from straight down, backward positive: promontory, kyphosis about S3, the coccyx forward."""

STEP_MM: Final = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class SacralCurve:
    """The patient's sagittal curve, and the similarity from model coordinates to LPS mm.

    Attributes
    ----------
    scale : float
        Size of this patient against the average.
    origin_mm : (3,) float64
        Middle of the S1 upper endplate, LPS mm.
    tilt_deg : float
        Rotation of the whole sacrum in the median plane, added to the slope.
    """

    scale: float
    origin_mm: Array
    tilt_deg: float = 0.0
    stations: Array = field(init=False, repr=False)
    points_yz: Array = field(init=False, repr=False)
    angles: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        stations = np.arange(STATIONS_MM[0], STATIONS_MM[-1] + STEP_MM / 2, STEP_MM)
        angles = np.radians(PchipInterpolator(STATIONS_MM, SLOPES_DEG)(stations) + self.tilt_deg)
        middle = (angles[1:] + angles[:-1]) / 2.0
        steps = np.stack([np.sin(middle), -np.cos(middle)], axis=1) * STEP_MM
        points = np.vstack([np.zeros(2), np.cumsum(steps, axis=0)])
        points -= points[np.searchsorted(stations, 0.0)]
        object.__setattr__(self, "origin_mm", frozen_array(self.origin_mm, (3,)))
        object.__setattr__(self, "stations", frozen_array(stations, stations.shape))
        object.__setattr__(self, "points_yz", frozen_array(points, points.shape))
        object.__setattr__(self, "angles", frozen_array(angles, angles.shape))

    def model(self, sxv: ArrayLike) -> Array:
        """Return model points (N, 3) (x left, y back, z up, from the S1 endplate) of curved coordinates (s, x, v)."""
        s, x, v = np.atleast_2d(np.asarray(sxv, dtype=np.float64)).T
        angle = np.interp(s, self.stations, self.angles)
        y = np.interp(s, self.stations, self.points_yz[:, 0]) + v * np.cos(angle)
        z = np.interp(s, self.stations, self.points_yz[:, 1]) + v * np.sin(angle)
        return np.stack([x, y, z], axis=1)

    def lps(self, model_points: ArrayLike) -> Array:
        """Return LPS mm, rounded to 0.1 micrometre so that a file in plain text carries them exactly."""
        points = np.asarray(model_points, dtype=np.float64) * self.scale + self.origin_mm
        result: Array = np.round(points, 4)
        return result

    def curved(self, y: Array, z: Array) -> tuple[Array, Array]:
        """Return (s, v) in model mm of model coordinates y, z in the median plane (any shape)."""
        tree = cKDTree(self.points_yz)
        _, nearest = tree.query(np.stack([y.ravel(), z.ravel()], axis=1))
        foot, angle = self.points_yz[nearest], self.angles[nearest]
        dy, dz = y.ravel() - foot[:, 0], z.ravel() - foot[:, 1]
        s = self.stations[nearest] + dy * np.sin(angle) - dz * np.cos(angle)
        v = dy * np.cos(angle) + dz * np.sin(angle)
        return s.reshape(y.shape), v.reshape(y.shape)


def smooth_path(points: ArrayLike, step_mm: float = 9.0) -> Array:
    """Return a polyline (N, 3) with chords of about ``step_mm`` on the smooth curve through ``points`` (M, 3)."""
    knots = np.asarray(points, dtype=np.float64)
    chord = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1))])
    count = max(2, int(np.ceil(chord[-1] / step_mm)) + 1)
    if len(knots) == 2:
        result: Array = np.linspace(knots[0], knots[1], 2)
        return result
    # Monotone between its knots: a cubic spline would swing out of the canal where a long span meets a short one.
    result = np.asarray(PchipInterpolator(chord, knots)(np.linspace(0.0, chord[-1], count)))
    return result
