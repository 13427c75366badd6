"""Owns the DRR on a graphics card: the rays of ``_drr_kernels``, one thread each.  Refuses to decide when it is used.

The volume's layout, the view's description, the range of planes and the writing of a pixel are those of the CPU, which
is the reference; only the walk along the ray is written again, plane by plane, since a thread has no vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numba import cuda as _typed_cuda

from navsrv.kernel.frames import Array
from navsrv.kernel.projection import ProjectionModel
from navsrv.registration._drr_kernels import range_of, write_pixel
from navsrv.registration.drr import DrrVolume, Image

cuda: Any = _typed_cuda
"""It has no types."""
BLOCK_PX: Final = (16, 8)

_range_of: Any = cuda.jit(device=True, inline=True)(range_of.py_func)
_write_pixel: Any = cuda.jit(device=True, inline=True)(write_pixel.py_func)


def present() -> bool:
    """Return whether a graphics card that can be used is there."""
    return bool(cuda.is_available())


@cuda.jit
def _render(volume, scale, views, windows, images, derivatives, out):  # type: ignore[no-untyped-def]
    """Render views of one axis: thread (x, y, z) draws pixel (x, y) of the window of view z."""
    x, y, z = cuda.grid(3)
    if z >= len(images):
        return
    view, window = views[z], windows[z]
    column, row = window[0] + x, window[2] + y
    if column >= window[1] or row >= window[3]:
        return
    da = view[1, 0] * column + view[2, 0] * row + view[3, 0]
    db = view[1, 1] * column + view[2, 1] * row + view[3, 1]
    dc = view[1, 2] * column + view[2, 2] * row + view[3, 2]
    qa, qb = da / dc, db / dc
    a0, b0 = view[0, 0] - view[0, 2] * qa, view[0, 1] - view[0, 2] * qb
    na, nb, nc = volume.shape
    low, high = _range_of(a0, qa, na - 1.001, 0.0, nc - 1.0)
    low, high = _range_of(b0, qb, nb - 1.001, low, high)
    total, ga, gb, ha, hb = 0.0, 0.0, 0.0, 0.0, 0.0
    for k in range(math.ceil(low), math.floor(high) + 1):
        a, b = a0 + k * qa, b0 + k * qb
        i, j = int(a), int(b)
        ra, rb = a - i, b - j
        cell = volume[i, j, k]
        c00, c01 = (cell << 48) >> 48, (cell << 32) >> 48
        c10, c11 = (cell << 16) >> 48, cell >> 48
        low_b, high_b = c00 + rb * (c01 - c00), c10 + rb * (c11 - c10)
        total += low_b + ra * (high_b - low_b)
        if derivatives:
            slope_a = high_b - low_b
            slope_b = (c01 - c00) + ra * ((c11 - c10) - (c01 - c00))
            ga += slope_a
            gb += slope_b
            ha += k * slope_a
            hb += k * slope_b
    if total != 0.0 or ga != 0.0 or gb != 0.0:
        sums = (total, ga, gb, ha, hb)
        _write_pixel(out[images[z]], view, scale, column, row, qa, qb, dc, sums, derivatives)


class CudaVolume:
    """A volume on the graphics card, ready to be projected as ``DrrVolume`` is."""

    def __init__(self, volume: DrrVolume) -> None:
        self._volume = volume
        self._laid: dict[int, Any] = {}

    def render(
        self, views: Sequence[ProjectionModel], *, derivatives: bool = False, centre_ct_mm: Array | None = None
    ) -> Image:
        """Return (V, 1 or 7, rows, columns) as ``DrrVolume.render`` does: line integrals and their derivatives."""
        centre = np.zeros(3) if centre_ct_mm is None else centre_ct_mm
        placed = [self._volume.placed(view, centre) for view in views]
        shape = (len(views), 7 if derivatives else 1, views[0].rows, views[0].columns)
        out: Any = cuda.to_device(np.zeros(shape, np.float32))
        for axis in sorted({p[0] for p in placed}):
            if axis not in self._laid:
                self._laid[axis] = cuda.to_device(self._volume.laid_along(axis))
            images = np.array([n for n, p in enumerate(placed) if p[0] == axis])
            stacked = np.stack([placed[n][2] for n in images])
            windows = np.stack([placed[n][3] for n in images])
            width, height = int((windows[:, 1] - windows[:, 0]).max()), int((windows[:, 3] - windows[:, 2]).max())
            blocks = (-(-width // BLOCK_PX[0]), -(-height // BLOCK_PX[1]), len(images))
            _render[blocks, (*BLOCK_PX, 1)](
                self._laid[axis], self._volume.scale, stacked, windows, images, derivatives, out
            )
        drawn: Image = out.copy_to_host()
        return drawn
