"""Owns the clearance of a straight instrument from structures: tip and shaft, signed, with nearest points.

Refuses history: each measurement is a function of the pose and the structures alone, so that a recording replays bit
for bit.  Refuses silence about time: a search that takes long (a sphere's centre, the middle line of a tube) is content
with less, and the value then says by how much it can miss the truth.  The bounds, in visits of nodes or leaves of eight
(about 40 ns each): 4 ``VISITS`` for the tip and for a shaft outside, 7 ``VISITS`` within ``ZONE_MM``, and
``SAMPLE_VISITS`` and one search more for a shaft inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navsrv.anatomy._kernels import STACK
from navsrv.anatomy.bvh import ABSENT, DistanceStructure, Sign
from navsrv.anatomy.mesh import Mesh
from navsrv.guidance import _kernels as kernels
from navsrv.guidance import _zone_kernels as zone_kernels
from navsrv.kernel.frames import rotation_defect

Array = NDArray[np.float64]

FARTHEST_MM: Final = 1e7
"""Farther away than any patient; beyond it the cells of a grid have no number that fits."""
TETRAHEDRON: Final = Mesh(
    np.array([[0.0, 0, 0], [10, 0, 0], [0, 10, 0], [0, 0, 10]]),
    np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]], dtype=np.int32),
)
"""Tiny data for ``warm_up``."""


class Clearances:
    """Room for the clearances of S structures, filled in place at every pose; rows in the order of the structures.

    Attributes
    ----------
    tip_distance_mm, shaft_distance_mm : (S,) float64
        Signed, positive outside; the shaft's is that of its axis less its radius.
    tip_nearest_mm, shaft_nearest_mm : (S, 3) float64
        Nearest point of the surface to the tip, and to the closest (inside: the deepest) point of the axis.
    shaft_axis_offset_mm : (S,) float64
        That point of the axis: 0 at the tip, positive towards the hub.
    tip_error_mm, shaft_error_mm : (S,) float64
        How much smaller in size (tip; shaft outside) or deeper (shaft inside) the truth can be than the value,
        certified: 0 for exact, at most 1e-3 inside, more only where the bound on time cut a search short.
    tip_visits, shaft_visits : (S,) int64
        Nodes and leaves visited: the time spent, in a unit that does not depend on the machine.
    """

    __slots__ = (
        "_block",
        "_visits",
        "shaft_axis_offset_mm",
        "shaft_distance_mm",
        "shaft_error_mm",
        "shaft_nearest_mm",
        "shaft_visits",
        "tip_distance_mm",
        "tip_error_mm",
        "tip_nearest_mm",
        "tip_visits",
    )

    def __init__(self, structures: int) -> None:
        s = structures
        self._block: Array = np.full(11 * s, np.nan)
        self._visits = np.zeros(2 * s, np.int64)
        self.tip_distance_mm = self._block[:s]
        self.tip_error_mm = self._block[s : 2 * s]
        self.shaft_distance_mm = self._block[2 * s : 3 * s]
        self.shaft_error_mm = self._block[3 * s : 4 * s]
        self.shaft_axis_offset_mm = self._block[4 * s : 5 * s]
        self.tip_nearest_mm = self._block[5 * s : 8 * s].reshape(s, 3)
        self.shaft_nearest_mm = self._block[8 * s :].reshape(s, 3)
        self.tip_visits = self._visits[:s]
        self.shaft_visits = self._visits[s:]


@dataclass(frozen=True, slots=True, eq=False)
class Zone:
    """An ellipsoid in CT, such as what an ablation is expected to destroy.

    Attributes
    ----------
    centre_ct_mm : (3,)
    R_ct_from_zone : (3, 3)
        Its axes in CT as columns.
    semi_axes_mm : (3,)
        Half its extent along each.
    """

    centre_ct_mm: Array
    R_ct_from_zone: Array
    semi_axes_mm: Array


class ZoneClearances:
    """Room for a zone's clearances of S structures, filled in place.

    Attributes
    ----------
    distance_mm : (S,)
        Where the zone's centre is outside: the least signed distance of the structure's surface from the ellipsoid,
        negative where it reaches into the zone.  Where the centre is inside, ``m`` being that least distance and r the
        smallest half axis: ``-(2 r + m)``, which goes on from ``-r`` at the surface as the zone goes deeper.  For a
        sphere both are the signed distance of the centre less the radius.  Negative if and only if zone and structure
        touch.
    error_mm : (S,)
        How much lower the least distance can be, certified: at most 8e-4, more only where the bound on time was met.
    nearest_mm : (S, 3)
        That point of the structure's surface, CT.
    zone_nearest_mm : (S, 3)
        The point of the ellipsoid nearest to it, CT.
    """

    __slots__ = ("_block", "distance_mm", "error_mm", "nearest_mm", "zone_nearest_mm")

    def __init__(self, structures: int) -> None:
        self._block: Array = np.full((structures, 8), np.nan)
        self.distance_mm = self._block[:, 0]
        self.error_mm = self._block[:, 1]
        self.nearest_mm = self._block[:, 2:5]
        self.zone_nearest_mm = self._block[:, 5:]


class ClearanceEngine:
    """Distances to a fixed set of structures.  One engine serves one thread: its work space is shared by its calls."""

    def __init__(self, structures: Sequence[DistanceStructure]) -> None:
        self.count = len(structures)
        self._meta_f = np.zeros((self.count, 4))
        self._meta_i = np.zeros((self.count, 8), np.int64)
        node = leaf = vertex = cell = dipole = 0
        children, neighbours, corners, slots = [], [], [], []
        for i, s in enumerate(structures):
            c = s.node_child
            children.append(np.where(c == ABSENT, ABSENT, np.where(c >= 0, c + node, c - leaf)).astype(np.int32))
            slots.append((s.grid_slot.ravel() + 8 * leaf).astype(np.int32))
            normal = s.sign is Sign.PSEUDONORMAL
            empty = np.zeros((len(s.leaf_xyz), 3, 8), np.int32)
            neighbours.append((s.leaf_neighbour + 8 * leaf).astype(np.int32) if normal else empty)
            corners.append((s.leaf_vertex + vertex).astype(np.int32) if normal else empty)
            self._meta_f[i] = s.grid_origin_mm
            self._meta_i[i] = (node, s.sign.value, cell, *s.grid_slot.shape, node - dipole, int(s.watertight))
            node, leaf, vertex = node + len(c), leaf + len(s.leaf_xyz), vertex + len(s.vertex_normal)
            cell, dipole = cell + s.grid_slot.size, dipole + len(s.dipole)
        self._trees = (
            _joined([s.node_frame for s in structures], (0, 15, 8), np.float32),
            _joined(children, (0, 8), np.int32),
            _joined([s.leaf_xyz for s in structures], (0, 9, 8), np.float64),
            _joined([s.leaf_triangle for s in structures], (0, 8), np.int32),
        )
        self._signs = (
            _joined(neighbours, (0, 3, 8), np.int32),
            _joined(corners, (0, 3, 8), np.int32),
            _joined([s.vertex_normal for s in structures], (0, 3), np.float64),
            _joined([s.dipole for s in structures], (0, 7, 8), np.float64),
        )
        self._grid_slot = _joined(slots, (0,), np.int32)
        self._grid_distance = _joined([s.grid_distance_mm.ravel() for s in structures], (0,), np.float32)
        room = kernels.SAMPLES + 4
        self._work = (np.zeros(STACK, np.int64), np.zeros(STACK), np.zeros(8), np.zeros((room, 12)))
        self._interval_slot = np.zeros((room, 2), np.int64)
        self._pose = np.zeros(8)
        self._pieces = np.zeros((zone_kernels.PIECES, 9))

    def measure(
        self, tip_ct_mm: ArrayLike, axis_ct: ArrayLike, length_mm: float, radius_mm: float, out: Clearances
    ) -> None:
        """Fill ``out`` for an instrument whose shaft runs from the tip back towards the hub.

        Parameters
        ----------
        tip_ct_mm : (3,)
        axis_ct : (3,)
            Unit vector from hub to tip.
        length_mm, radius_mm : float
            Of the shaft; a length of 0 makes the shaft a sphere at the tip.
        out : Clearances
            Made for as many structures as this engine has.

        Raises
        ------
        ValueError
            Not finite, not a unit axis, a negative length, or ``out`` of another size: the programmer can act.
        """
        pose = self._pose
        pose[0:3] = tip_ct_mm
        pose[3:6] = axis_ct
        pose[6] = length_mm
        pose[7] = radius_mm
        if out.tip_distance_mm.size != self.count:
            raise ValueError(f"clearances for {out.tip_distance_mm.size} structures; this engine has {self.count}")
        ok = bool(np.abs(pose).max() < FARTHEST_MM) and kernels.measure_all(
            pose,
            self._meta_f,
            self._meta_i,
            self._trees,
            self._signs,
            self._grid_slot,
            self._grid_distance,
            self._work,
            self._interval_slot,
            out._block,
            out._visits,
        )
        if not ok:
            right = f"finite numbers below {FARTHEST_MM:g} mm, a unit axis, length and radius >= 0"
            raise ValueError(f"pose {pose.tolist()}: expected {right}")

    def measure_zone(self, zone: Zone, out: ZoneClearances) -> None:
        """Fill ``out`` for an ellipsoid.

        Raises
        ------
        ValueError
            Not finite, a half axis that is not above 0, axes that are no rotation, ``out`` of another size.
        """
        R = np.ascontiguousarray(zone.R_ct_from_zone, np.float64)
        centre = np.asarray(zone.centre_ct_mm, np.float64)
        semi_axes = np.asarray(zone.semi_axes_mm, np.float64)
        ok = (
            out.distance_mm.size == self.count
            and centre.shape == semi_axes.shape == (3,)
            and R.shape == (3, 3)
            and rotation_defect(R) < 1e-6
            and bool(np.abs(centre).max() < FARTHEST_MM)
            and zone_kernels.measure_zone(
                centre,
                R,
                semi_axes,
                self._meta_f,
                self._meta_i,
                self._trees,
                self._signs,
                self._grid_slot,
                self._work,
                self._pieces,
                out._block,
            )
        )
        if not ok:
            found = f"zone at {centre.tolist()} mm, half axes {semi_axes.tolist()} mm"
            raise ValueError(
                f"{found}: expected finite numbers, half axes above 0, a rotation, {self.count} structures"
            )


def _joined(
    parts: Sequence[NDArray[np.generic]], empty: tuple[int, ...], kind: type[np.generic]
) -> NDArray[np.generic]:
    """Return ``parts`` as one writeable C-contiguous array of ``kind``, so that the kernels compile once."""
    if not parts:
        return np.zeros(empty, kind)
    return np.ascontiguousarray(np.concatenate(parts), dtype=kind)


def warm_up() -> None:
    """Compile what building and measuring need but for zones, so that the first pose does not wait for it."""
    engine = ClearanceEngine([DistanceStructure.build(TETRAHEDRON)])
    engine.measure((20.0, 20.0, 20.0), (0.0, 0.0, -1.0), 30.0, 1.0, Clearances(1))
