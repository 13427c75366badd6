"""Compares DRRs of the graphics card's kernel with the CPU's; without a card, run with NUMBA_ENABLE_CUDASIM=1."""

import json

import numpy as np

from navsrv.kernel.frames import CARM, CT, Rigid, rotation_from_vector
from navsrv.kernel.projection import ProjectionModel
from navsrv.registration._drr_cuda import CudaVolume, present
from navsrv.registration.drr import DrrVolume


def main() -> None:
    """Print the largest differences, as shares of the largest value of each channel, and the views' axes."""
    rng = np.random.default_rng(1)
    values = rng.uniform(0.0, 0.02, (7, 6, 5)).astype(np.float32)
    volume = DrrVolume(values, np.array([[2.0, 0, 0, -5], [0, 1.5, 0, 4], [0, 0, 3.0, 20], [0, 0, 0, 1]]))
    centre = volume.centre_ct_mm
    views = []
    for turn in ([0.0, 0.0, 0.2], [np.pi / 2, 0.1, 0.0], [0.1, np.pi / 2, 0.3], [0.3, 1.0, 0.2]):
        rotation = rotation_from_vector(turn)
        pose = Rigid(CARM, CT, rotation, np.array([0.0, 0.0, 60.0]) - rotation @ centre)
        views.append(ProjectionModel(np.array([[70.0, 0, 7.5], [0, 70.0, 6.5], [0, 0, 1]]), 16, 14, pose))
    there = CudaVolume(volume).render(views, derivatives=True, centre_ct_mm=centre)
    here = volume.render(views, derivatives=True, centre_ct_mm=centre)
    scale = np.abs(here).max(axis=(2, 3), keepdims=True)
    worst = (np.abs(there - here) / scale).max(axis=(2, 3))
    axes = [volume.placed(view, centre)[0] for view in views]
    filled = float((here[:, 0] > 0.0).mean())
    print(json.dumps({"present": present(), "worst": worst.tolist(), "axes": axes, "filled": filled}))


if __name__ == "__main__":
    main()
