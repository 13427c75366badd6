"""Owns triangle surfaces in LPS millimetres.  Refuses surfaces that cannot carry a distance, and says why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.errors import InputError

MIN_EXTENT_MM = 0.5
MAX_EXTENT_MM = 5000.0


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """A surface in the frame ``ct``.

    Attributes
    ----------
    vertices_mm : (N, 3) float64
    triangles : (M, 3) int32
        Counter-clockwise seen from outside.

    Raises
    ------
    InputError
        Empty, not finite, indices outside, or an extent that says metres or micrometres instead of millimetres.
    """

    vertices_mm: NDArray[np.float64]
    triangles: NDArray[np.int32]

    def __post_init__(self) -> None:
        vertices = np.ascontiguousarray(self.vertices_mm, dtype=np.float64)
        triangles = np.ascontiguousarray(self.triangles, dtype=np.int32)
        if vertices.ndim != 2 or vertices.shape[1] != 3 or triangles.ndim != 2 or triangles.shape[1] != 3:
            raise InputError(f"surface: shapes {vertices.shape} and {triangles.shape}; expected (N, 3) and (M, 3)")
        if len(vertices) == 0 or len(triangles) == 0:
            raise InputError("surface: empty; expected at least one triangle")
        if not np.isfinite(vertices).all():
            raise InputError("surface: a vertex is not a finite number")
        if triangles.min() < 0 or triangles.max() >= len(vertices):
            raise InputError(f"surface: a triangle names a vertex outside 0..{len(vertices) - 1}")
        extent = float(np.ptp(vertices, axis=0).max())
        if not MIN_EXTENT_MM <= extent <= MAX_EXTENT_MM:
            raise InputError(
                f"surface: extent {extent:.3g} mm is not that of anatomy in millimetres"
                f" ({MIN_EXTENT_MM:g} to {MAX_EXTENT_MM:g}); are its units metres or micrometres?"
            )
        vertices.flags.writeable = False
        triangles.flags.writeable = False
        object.__setattr__(self, "vertices_mm", vertices)
        object.__setattr__(self, "triangles", triangles)
