"""Owns distance structures: what is prepared once from a surface so that a distance to it costs microseconds.

Refuses live state and surfaces whose inside cannot be told.  A structure is an eight-wide tree of oriented boxes
(float32, rounded outwards) over leaves of eight triangles (float64, exact), what the sign needs, and a coarse grid that
names for each cell a triangle close by: the first upper bound of every search is looked up, not remembered, so that a
distance depends on the position alone.

Sign, chosen at build and recorded: ``PSEUDONORMAL`` (Baerentzen and Aanaes 2005) where the surface is proved to be a
closed manifold and samples of every piece have winding number 0 outside and 1 inside; else ``WINDING``, the generalised
winding number (Jacobson et al. 2013; Barill et al. 2018), inside above one half: holes, touching and nested pieces.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy import _build_kernels as build_kernels
from navsrv.anatomy._kernels import STACK
from navsrv.anatomy.mesh import Mesh
from navsrv.kernel.errors import InputError

FORMAT: Final = 1
ABSENT: Final = -(2**31)
GRID_CELLS: Final = 32768
GRID_MARGIN_MM: Final = 15.0
SIDE_SAMPLES: Final = 512


class Sign(Enum):
    """How inside is told from outside; the number is what the file and the kernels carry."""

    PSEUDONORMAL = 0
    WINDING = 1


@dataclass(frozen=True, slots=True, eq=False)
class DistanceStructure:
    """A surface prepared for distance queries, in the frame of its mesh (``ct``), mm.

    Attributes
    ----------
    node_frame : (N, 15, 8) float32
        Oriented boxes of the eight children: three axes, middle and half extent along each.
    node_child : (N, 8) int32
        Node (>= 0), leaf (-1 - leaf) or ``ABSENT``.
    leaf_xyz : (L, 9, 8) float64
        Corners a, b, c of eight triangles.
    leaf_triangle : (L, 8) int32
        Number of the triangle in the mesh; -1 where a lane only repeats another.
    leaf_vertex, leaf_neighbour : (L, 3, 8) int32
        Row of ``vertex_normal`` of each corner; slot (leaf * 8 + lane) across each edge, -1 for none.
    vertex_normal : (V, 3) float64
        Angle-weighted normals; empty for ``WINDING``.
    dipole : (N, 7, 8) float64
        For ``winding_number``; empty for ``PSEUDONORMAL``.
    grid_slot, grid_distance_mm : (X, Y, Z) int32, float32
        Slot nearest to the centre of each cell, and its distance rounded down.
    grid_origin_mm : (4,) float64
        Low corner of the grid and the edge of its cells.
    counts : (4,) int64
        Triangles used, triangles dropped because two corners coincide, watertight (0 or 1), sign.
    digest : (32,) uint8
        SHA-256 of the mesh.
    """

    node_frame: NDArray[np.float32]
    node_child: NDArray[np.int32]
    leaf_xyz: NDArray[np.float64]
    leaf_triangle: NDArray[np.int32]
    leaf_vertex: NDArray[np.int32]
    leaf_neighbour: NDArray[np.int32]
    vertex_normal: NDArray[np.float64]
    dipole: NDArray[np.float64]
    grid_slot: NDArray[np.int32]
    grid_distance_mm: NDArray[np.float32]
    grid_origin_mm: NDArray[np.float64]
    counts: NDArray[np.int64]
    digest: NDArray[np.uint8]

    @property
    def sign(self) -> Sign:
        """How inside is told from outside."""
        return Sign(int(self.counts[3]))

    @property
    def watertight(self) -> bool:
        """Whether every edge has as many triangles one way as the other."""
        return bool(self.counts[2])

    @property
    def triangles(self) -> int:
        """Number of triangles that distances are measured to."""
        return int(self.counts[0])

    @property
    def nbytes(self) -> int:
        """Memory of all arrays, bytes."""
        return sum(getattr(self, f.name).nbytes for f in fields(self))

    def belongs_to(self, mesh: Mesh) -> bool:
        """Return whether this structure was built from exactly this mesh: a stale cache must not be believed."""
        return self.digest.tobytes() == mesh_digest(mesh)

    @classmethod
    def build(cls, mesh: Mesh) -> DistanceStructure:
        """Return the distance structure of ``mesh``.

        Raises
        ------
        InputError
            Every triangle is degenerate, or a closed surface is inside out.
        """
        vertices, triangles, kept = _weld(mesh)
        neighbour, watertight, manifold = _edges(triangles, len(vertices))
        if watertight and _signed_volume(vertices, triangles) < 0:
            raise InputError("surface: inside out; expected triangles counter-clockwise seen from outside")
        normals = np.zeros_like(vertices)
        if manifold:
            valence, corner_of = np.zeros(len(vertices), np.int64), np.zeros(len(vertices), np.int64)
            manifold = bool(
                build_kernels.vertex_fans(vertices, triangles, neighbour, normals, valence, corner_of)
            ) and _planes_trustworthy(vertices, triangles)

        centres = np.ascontiguousarray(vertices[triangles].mean(axis=1).T)
        room = len(triangles) // 4 + 2
        node_child, node_range = np.full((room, 8), ABSENT, np.int32), np.zeros((room, 8, 2), np.int64)
        leaf_range = np.zeros((room, 2), np.int64)
        order = np.arange(len(triangles), dtype=np.int32)
        nodes, leaves = build_kernels.build_tree(centres, order, node_child, node_range, leaf_range)
        node_child = np.ascontiguousarray(node_child[:nodes])
        leaf_xyz = np.empty((leaves, 9, 8))
        leaf_triangle = np.empty((leaves, 8), np.int32)
        leaf_vertex = np.empty((leaves, 3, 8), np.int32)
        slot_of = np.empty(len(triangles) + 1, np.int32)
        build_kernels.fill_leaves(
            order, leaf_range[:leaves], vertices, triangles, leaf_xyz, leaf_triangle, leaf_vertex, slot_of
        )
        slot_of[-1] = -1
        node_frame, dipole = np.empty((nodes, 15, 8), np.float32), np.empty((nodes, 7, 8))
        build_kernels.fill_nodes(node_child, node_range, order, vertices, triangles, node_frame, dipole)
        leaf_neighbour = np.ascontiguousarray(slot_of[neighbour][leaf_triangle].transpose(0, 2, 1))
        pseudonormal = manifold and _sides_agree(
            neighbour, slot_of, vertices, node_child, leaf_xyz, leaf_triangle, dipole
        )
        grid_slot, grid_distance, origin = _grid(vertices, node_frame, node_child, leaf_xyz)
        sign = Sign.PSEUDONORMAL if pseudonormal else Sign.WINDING
        counts = (len(triangles), len(mesh.triangles) - len(triangles), int(watertight), sign.value)
        return cls(
            node_frame=node_frame,
            node_child=node_child,
            leaf_xyz=leaf_xyz,
            leaf_triangle=np.where(leaf_triangle >= 0, kept[leaf_triangle], -1).astype(np.int32),
            leaf_vertex=leaf_vertex if pseudonormal else np.zeros((0, 3, 8), np.int32),
            leaf_neighbour=leaf_neighbour if pseudonormal else np.zeros((0, 3, 8), np.int32),
            vertex_normal=normals if pseudonormal else np.zeros((0, 3)),
            dipole=np.zeros((0, 7, 8)) if pseudonormal else dipole,
            grid_slot=grid_slot,
            grid_distance_mm=grid_distance,
            grid_origin_mm=origin,
            counts=np.array(counts, np.int64),
            digest=np.frombuffer(mesh_digest(mesh), np.uint8).copy(),
        )

    def save(self, path: Path) -> None:
        """Write the structure as an uncompressed npz under a temporary name, then rename it to ``path``."""
        path = Path(path)
        temporary = path.with_name(path.name + ".part")
        try:
            with temporary.open("wb") as file:
                np.savez(file, format=np.int64(FORMAT), **{f.name: getattr(self, f.name) for f in fields(self)})
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> DistanceStructure:
        """Return the structure that ``save`` wrote.

        Raises
        ------
        InputError
            The file is absent, damaged, or of another version of the format.
        """
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
                if int(archive["format"]) != FORMAT:
                    raise InputError(f"{path}: distance structure of format {archive['format']}; expected {FORMAT}")
                structure = cls(**{f.name: archive[f.name] for f in fields(cls)})
        except InputError:
            raise
        except Exception as error:  # zip, header, key and OS errors all mean the same to the user
            raise InputError(f"{path}: not a readable distance structure ({error}); delete it to rebuild") from error
        structure._check_shapes(Path(path))
        return structure

    def _check_shapes(self, path: Path) -> None:
        nodes, leaves = len(self.node_child), len(self.leaf_xyz)
        normal = self.counts.shape == (4,) and self.counts[3] == Sign.PSEUDONORMAL.value
        expected = {
            "node_frame": (nodes, 15, 8),
            "node_child": (nodes, 8),
            "leaf_xyz": (leaves, 9, 8),
            "leaf_triangle": (leaves, 8),
            "leaf_vertex": (leaves if normal else 0, 3, 8),
            "leaf_neighbour": (leaves if normal else 0, 3, 8),
            "dipole": (0 if normal else nodes, 7, 8),
            "grid_distance_mm": self.grid_slot.shape,
            "grid_origin_mm": (4,),
            "counts": (4,),
            "digest": (32,),
        }
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if found != shape:
                raise InputError(f"{path}: {name} has shape {found}, expected {shape}; delete the file to rebuild it")


def mesh_digest(mesh: Mesh) -> bytes:
    """Return the SHA-256 (32 bytes) of the vertices and triangles of ``mesh``."""
    digest = hashlib.sha256(mesh.vertices_mm.tobytes())
    digest.update(mesh.triangles.tobytes())
    return digest.digest()


def _weld(mesh: Mesh) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.int32]]:
    """Return vertices (V, 3) without exact duplicates, triangles (M, 3) with three corners, their mesh numbers (M,)."""
    points = mesh.vertices_mm + 0.0  # -0.0 becomes 0.0
    rank = np.lexsort((points[:, 2], points[:, 1], points[:, 0]))
    ordered = points[rank]
    fresh = np.ones(len(points), bool)
    fresh[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    index = np.empty(len(points), np.int32)
    index[rank] = np.cumsum(fresh) - 1
    triangles = index[mesh.triangles]
    a, b, c = triangles.T
    kept = np.flatnonzero((a != b) & (b != c) & (c != a)).astype(np.int32)
    if len(kept) == 0:
        raise InputError("surface: every triangle has two corners at the same place; expected triangles with an area")
    return np.ascontiguousarray(ordered[fresh]), np.ascontiguousarray(triangles[kept]), kept


def _edges(triangles: NDArray[np.int32], vertices: int) -> tuple[NDArray[np.int32], bool, bool]:
    """Return (triangle across each edge (M, 3), watertight, every edge has exactly two triangles of one sense)."""
    start = triangles.astype(np.int64).ravel()
    end = np.roll(triangles, -1, axis=1).astype(np.int64).ravel()
    forward, backward = start * vertices + end, end * vertices + start
    rank = np.argsort(forward)
    keys = forward[rank]
    place = np.minimum(np.searchsorted(keys, backward), len(keys) - 1)
    partner = np.where(keys[place] == backward, rank[place] // 3, -1).astype(np.int32)
    single = not bool((keys[1:] == keys[:-1]).any())
    manifold = single and bool((partner >= 0).all())
    watertight = manifold or np.array_equal(keys, np.sort(backward))
    return partner.reshape(-1, 3), watertight, manifold


def _signed_volume(vertices: NDArray[np.float64], triangles: NDArray[np.int32]) -> float:
    a, b, c = (vertices[triangles[:, i]] - vertices[0] for i in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c))) / 6.0


def _planes_trustworthy(vertices: NDArray[np.float64], triangles: NDArray[np.int32]) -> bool:
    """Return whether no triangle is so thin that the kernels measure it by its edges alone."""
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    n = np.cross(b - a, c - b)
    longest = np.maximum.reduce([((p - q) ** 2).sum(axis=1) for p, q in ((a, b), (b, c), (c, a))])
    return bool(((n * n).sum(axis=1) > 4e-16 * longest * longest).all())


def _sides_agree(
    neighbour: NDArray[np.int32],
    slot_of: NDArray[np.int32],
    vertices: NDArray[np.float64],
    node_child: NDArray[np.int32],
    leaf_xyz: NDArray[np.float64],
    leaf_triangle: NDArray[np.int32],
    dipole: NDArray[np.float64],
) -> bool:
    """Return whether winding numbers beside a triangle of every piece, and beside a sample of all, are 0 and 1."""
    count = len(neighbour)
    label, waiting = np.empty(count, np.int32), np.empty(count + 1, np.int32)
    build_kernels.label_pieces(neighbour, label, waiting)
    _, first = np.unique(label, return_index=True)
    sample = np.union1d(first, np.arange(0, count, max(1, count // SIDE_SAMPLES)))
    step_mm = 1e-6 * float(np.ptp(vertices, axis=0).max())
    stack = np.empty(STACK, np.int64)
    slots = slot_of[sample].astype(np.int64)
    return bool(build_kernels.sides_agree(slots, step_mm, node_child, leaf_xyz, leaf_triangle, dipole, stack))


def _grid(
    vertices: NDArray[np.float64],
    node_frame: NDArray[np.float32],
    node_child: NDArray[np.int32],
    leaf_xyz: NDArray[np.float64],
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float64]]:
    """Return (slot nearest to each cell's centre, distance rounded down, origin and cell in mm)."""
    low, high = vertices.min(axis=0) - GRID_MARGIN_MM, vertices.max(axis=0) + GRID_MARGIN_MM
    cell = float(np.cbrt(np.prod(high - low) / GRID_CELLS))
    shape = np.maximum(np.ceil((high - low) / cell).astype(int), 1)
    origin = np.array([*(0.5 * (low + high - shape * cell)), cell])
    slots, distance = np.empty(shape, np.int32), np.empty(shape, np.float32)
    build_kernels.fill_grid(node_frame, node_child, leaf_xyz, origin, cell, slots, distance)
    return slots, np.maximum(np.nextafter(distance, np.float32(-1)), 0), origin
