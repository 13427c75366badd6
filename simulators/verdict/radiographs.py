"""Owns how the patient is photographed: dose as automatic exposure sets it, a table, needles, screws, shutters.

The rays, the physics and the detector are those of ``simulators.world.xray``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy.case import Volume
from navsrv.kernel.frames import Array
from navsrv.kernel.projection import ProjectionModel
from simulators.world.detector import Collimator, Receptor, Scatter, detect, digitise
from simulators.world.imaging import Detector
from simulators.world.xray import Radiographer, Technique
from simulators.world.xray_materials import Material
from simulators.world.xray_solids import Piece, box, needle, screw, table_top


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """What is in the beam beside the patient, and how pictures are taken.

    Attributes
    ----------
    quanta : float
        Photons that a pixel behind the patient detects (median of the picture): what automatic exposure keeps.
    """

    solids: tuple[Piece, ...]
    kvp: float
    quanta: float
    scatter_share: float
    collimated: bool
    blur_mm: float


def furnish(middle_ct_mm: Array, rng: np.random.Generator) -> Room:
    """Return a room about a bone's middle: up to two needles, now and then a screw, a table and its rail."""
    solids: list[Piece] = []
    for _ in range(int(rng.integers(0, 3))):
        tip = middle_ct_mm + rng.normal(0.0, 8.0, 3)
        solids += needle(tip, _inward(rng), float(rng.uniform(0.5, 1.6)))
    if rng.random() < 0.25:
        tip = middle_ct_mm + rng.normal(0.0, 25.0, 3)
        solids += screw(tip, _inward(rng))
    if rng.random() < 0.6:
        # The patient lies prone: the table is in front of him, its edge or a rail may cross a lateral picture.
        top = middle_ct_mm + np.array([rng.uniform(-60.0, 60.0), -rng.uniform(110.0, 150.0), 0.0])
        solids += table_top(top, rails=False)  # steel along the spine: nobody would take that picture
        if rng.random() < 0.5:
            rail = middle_ct_mm + np.array([rng.choice([-1.0, 1.0]) * 260.0, rng.uniform(-60.0, 20.0), 0.0])
            solids += box(rail, (5.0, 12.0, 600.0), Material.ALUMINIUM)
    return Room(
        tuple(solids),
        kvp=float(rng.uniform(70.0, 95.0)),
        quanta=float(10.0 ** rng.uniform(2.6, 3.8)),
        scatter_share=float(rng.uniform(0.08, 0.25)),
        collimated=bool(rng.random() < 0.5),
        blur_mm=float(rng.uniform(0.15, 0.35)),
    )


class Radiographs:
    """Pictures of one patient in one room."""

    def __init__(self, ct: Volume, room: Room) -> None:
        self._radiographer = Radiographer(ct)
        self._room = room

    def expose(self, view: ProjectionModel, detector: Detector, rng: np.random.Generator) -> NDArray[np.uint16]:
        """Return the picture (rows, columns) of a view whose object frame is the CT."""
        room = self._room
        collimator = None
        if room.collimated:
            half = 0.5 * detector.pixel_mm * np.array([detector.columns, detector.rows])
            collimator = Collimator(
                tuple((half * rng.uniform(0.72, 1.0, 2)).tolist()),
                centre_px=(0.5 * detector.columns + rng.normal(0, 12.0), 0.5 * detector.rows + rng.normal(0, 12.0)),
            )
        technique = Technique(kvp=room.kvp, scatter=Scatter(room.scatter_share), collimator=collimator)
        receptor = Receptor(detector.pixel_mm, blur_mm=room.blur_mm)
        light = self._radiographer.light(view, room.solids, technique, receptor)
        seen = light.primary + light.scatter
        quarter = seen[detector.rows // 4 : -detector.rows // 4, detector.columns // 4 : -detector.columns // 4]
        quanta = room.quanta / max(float(np.median(quarter)), 1e-5)
        return digitise(detect(light, quanta, receptor, rng), receptor)


def _inward(rng: np.random.Generator) -> Array:
    """Return a direction from the back into the body."""
    axis = rng.normal(size=3) * (0.6, 0.3, 0.4) + np.array([0.0, -1.0, 0.0])
    result: Array = axis / np.linalg.norm(axis)
    return result
