"""Owns solid bodies in the X-ray beam: needles, cannulas, screws, cement, bead phantoms, a table, in closed form.

A solid is made of convex pieces: an ellipsoid, a cylinder or a box, each the image of a unit body under an affine map,
so that a ray meets it in one interval that a quadratic equation or three slabs give exactly.  Of solids that overlap,
the later in a list displaces the earlier, and all displace tissue.  Refuses rays and images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navsrv.kernel.frames import Array, Rigid, frozen_array, rotation_z_onto
from simulators.world.xray_materials import Material


class Shape(IntEnum):
    """The unit body of a piece: ball |p| <= 1; cylinder x2 + y2 <= 1, |z| <= 1; cube |x|, |y|, |z| <= 1."""

    BALL = 0
    CYLINDER = 1
    CUBE = 2


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One convex piece.

    Attributes
    ----------
    shape : Shape
    material : Material
    centre_mm : (3,)
    axes_mm : (3, 3)
        Columns are the half axes: where the unit body's x, y and z go.
    """

    shape: Shape
    material: Material
    centre_mm: Array
    axes_mm: Array = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "centre_mm", frozen_array(self.centre_mm, (3,)))
        object.__setattr__(self, "axes_mm", frozen_array(self.axes_mm, (3, 3)))
        if not abs(np.linalg.det(self.axes_mm)) > 0.0:
            raise ValueError(f"half axes {self.axes_mm.tolist()}: a solid has three extents")

    @property
    def reach_mm(self) -> float:
        """Radius of a ball about the centre that holds the piece."""
        axes = np.linalg.norm(self.axes_mm, axis=0)
        match self.shape:
            case Shape.BALL:
                return float(axes.max())
            case Shape.CYLINDER:
                return float(np.hypot(max(axes[0], axes[1]), axes[2]))
            case Shape.CUBE:
                return float(np.linalg.norm(axes))

    def moved(self, motion: Rigid) -> Piece:
        """Return the piece after a rigid motion, in the motion's ``to`` frame."""
        return Piece(self.shape, self.material, motion.apply(self.centre_mm), motion.rotation @ self.axes_mm)


Solid = tuple[Piece, ...]


def moved(solid: Iterable[Piece], motion: Rigid) -> Solid:
    """Return the pieces of a solid after a rigid motion."""
    return tuple(piece.moved(motion) for piece in solid)


def ball(centre_mm: ArrayLike, radius_mm: float, material: Material) -> Solid:
    """Return a ball."""
    return (Piece(Shape.BALL, material, np.asarray(centre_mm, dtype=np.float64), radius_mm * np.eye(3)),)


def ellipsoid(centre_mm: ArrayLike, axes_mm: ArrayLike, material: Material) -> Solid:
    """Return an ellipsoid; ``axes_mm`` (3,) along the frame's axes, or (3, 3) with half axes as columns."""
    axes = np.asarray(axes_mm, dtype=np.float64)
    return (Piece(Shape.BALL, material, np.asarray(centre_mm), np.diag(axes) if axes.ndim == 1 else axes),)


def cylinder(start_mm: ArrayLike, end_mm: ArrayLike, radius_mm: float, material: Material) -> Solid:
    """Return a cylinder with flat ends."""
    start, end = np.asarray(start_mm, dtype=np.float64), np.asarray(end_mm, dtype=np.float64)
    along = end - start
    length = float(np.linalg.norm(along))
    axes = rotation_z_onto(along / length) * [radius_mm, radius_mm, 0.5 * length]
    return (Piece(Shape.CYLINDER, material, 0.5 * (start + end), axes),)


def capsule(start_mm: ArrayLike, end_mm: ArrayLike, radius_mm: float, material: Material) -> Solid:
    """Return all points within a radius of a segment."""
    return (
        *cylinder(start_mm, end_mm, radius_mm, material),
        *ball(start_mm, radius_mm, material),
        *ball(end_mm, radius_mm, material),
    )


def box(centre_mm: ArrayLike, half_mm: ArrayLike, material: Material, rotation: ArrayLike | None = None) -> Solid:
    """Return a box; ``half_mm`` (3,) along the columns of ``rotation`` (3, 3), or along the frame's axes."""
    turn = np.eye(3) if rotation is None else np.asarray(rotation, dtype=np.float64)
    return (Piece(Shape.CUBE, material, np.asarray(centre_mm), turn * np.asarray(half_mm, dtype=np.float64)),)


def needle(tip_mm: ArrayLike, axis: ArrayLike, radius_mm: float = 0.75, length_mm: float = 150.0) -> Solid:
    """Return a steel needle with a round tip; ``axis`` (3,) unit vector from hub to tip, as a tool's +z."""
    tip, forward = np.asarray(tip_mm, dtype=np.float64), np.asarray(axis, dtype=np.float64)
    hub = tip - length_mm * forward
    shaft = capsule(hub, tip - radius_mm * forward, radius_mm, Material.STEEL)
    return (*cylinder(hub - 25.0 * forward, hub, 4.0, Material.PMMA), *shaft)


def cannula(
    tip_mm: ArrayLike, axis: ArrayLike, radius_mm: float = 1.5, wall_mm: float = 0.25, length_mm: float = 120.0
) -> Solid:
    """Return an open steel tube (11 G by default) filled with water, and a handle."""
    tip, forward = np.asarray(tip_mm, dtype=np.float64), np.asarray(axis, dtype=np.float64)
    hub = tip - length_mm * forward
    return (
        *cylinder(hub - 30.0 * forward, hub, 9.0, Material.PMMA),
        *cylinder(hub, tip, radius_mm, Material.STEEL),
        *cylinder(hub, tip, radius_mm - wall_mm, Material.WATER),
    )


def screw(
    tip_mm: ArrayLike,
    axis: ArrayLike,
    length_mm: float = 45.0,
    core_mm: float = 2.1,
    thread_mm: float = 3.0,
    pitch_mm: float = 2.7,
    material: Material = Material.TITANIUM,
) -> Solid:
    """Return a pedicle screw: core with a round tip, thread as rings of ``pitch_mm``, tulip head; radii in mm."""
    tip, forward = np.asarray(tip_mm, dtype=np.float64), np.asarray(axis, dtype=np.float64)
    head = tip - length_mm * forward
    pieces = list(capsule(head, tip - core_mm * forward, core_mm, material))
    for depth in np.arange(2.0 * core_mm, length_mm - 1.0, pitch_mm):
        at = tip - depth * forward
        pieces += cylinder(at - 0.3 * forward, at + 0.3 * forward, thread_mm, material)
    pieces += cylinder(head - 13.0 * forward, head, 6.0, material)
    # The tulip's slot for the rod.
    turn = rotation_z_onto(forward)
    pieces += box(head - 9.0 * forward, (2.75, 6.5, 4.5), Material.WATER, turn)
    return tuple(pieces)


def cement_blob(centre_mm: ArrayLike, volume_ml: float, rng: np.random.Generator, lobes: int = 6) -> Solid:
    """Return a cloud of cement: overlapping ellipsoids about a point, their summed volume as asked."""
    share = rng.dirichlet(np.full(lobes, 3.0)) * volume_ml * 1000.0
    spread = (volume_ml * 1000.0) ** (1.0 / 3.0) * 0.35
    pieces: list[Piece] = []
    for volume in share:
        radius = (3.0 * volume / (4.0 * np.pi)) ** (1.0 / 3.0)
        stretch = np.exp(rng.normal(0.0, 0.25, 3))
        axes = radius * stretch / np.cbrt(stretch.prod())
        q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        pieces += ellipsoid(np.asarray(centre_mm) + rng.normal(0.0, spread, 3), q * axes, Material.CEMENT)
    return tuple(pieces)


def table_top(centre_mm: ArrayLike, half_mm: ArrayLike = (225.0, 12.0, 600.0), rails: bool = True) -> Solid:
    """Return a carbon table top with round edges; x across, z along the patient; ``rails`` of steel on both sides."""
    centre = np.asarray(centre_mm, dtype=np.float64)
    across, thick, along = (float(h) for h in np.asarray(half_mm))
    reach = np.array([0.0, 0.0, along])
    pieces = list(box(centre, (across, thick, along), Material.CARBON))
    for side in (-1.0, 1.0):
        edge = centre + side * np.array([across, 0.0, 0.0])
        pieces += cylinder(edge - reach, edge + reach, thick, Material.CARBON)
        if rails:
            rail = centre + side * np.array([across + 32.0, 0.0, 0.0])
            pieces += box(rail, (5.0, 12.5, along), Material.STEEL)
    return tuple(pieces)


@dataclass(frozen=True, slots=True, eq=False)
class BeadPhantom:
    """Steel beads in a PMMA body.

    Attributes
    ----------
    beads_mm : (N, 3) centres in the phantom's frame
    radii_mm : (N,)
    body : Solid
    """

    beads_mm: Array
    radii_mm: Array
    body: Solid = field(repr=False)

    def solid(self) -> Solid:
        """Return the phantom's pieces in its own frame."""
        pieces = list(self.body)
        for centre, radius in zip(self.beads_mm, self.radii_mm, strict=True):
            pieces += ball(centre, float(radius), Material.STEEL)
        return tuple(pieces)


def ring_phantom(per_ring: int = 8, radius_mm: float = 50.0, apart_mm: float = 100.0) -> BeadPhantom:
    """Return a phantom with two rings of beads on a PMMA tube, as Cho et al. (Med Phys 32:968, 2005) calibrate with.

    The tube's axis is z; the upper ring is turned by half a step, and its first bead is larger, so that no other
    numbering fits.
    """
    angles = np.arange(per_ring) * (2.0 * np.pi / per_ring)
    rings = []
    for z, offset in ((-0.5 * apart_mm, 0.0), (0.5 * apart_mm, np.pi / per_ring)):
        turned = angles + offset
        rings.append(np.stack([radius_mm * np.cos(turned), radius_mm * np.sin(turned), np.full(per_ring, z)], axis=1))
    radii = np.full(2 * per_ring, 1.5)
    radii[per_ring] = 2.5
    half = np.array([0.0, 0.0, 0.5 * apart_mm + 12.0])
    tube = (
        *cylinder(-half, half, radius_mm + 4.0, Material.PMMA),
        *cylinder(-half, half, radius_mm - 4.0, Material.AIR),
    )
    return BeadPhantom(np.concatenate(rings), radii, tube)


def grid_phantom(across: int = 15, step_mm: float = 15.0, bead_mm: float = 1.0, plate_mm: float = 6.0) -> BeadPhantom:
    """Return a plate with a square grid of beads in its plane z = 0, for distortion; the central bead is larger."""
    place = (np.arange(across) - 0.5 * (across - 1)) * step_mm
    x, y = np.meshgrid(place, place)
    beads = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=1)
    radii = np.full(len(beads), bead_mm)
    radii[np.argmin(np.hypot(beads[:, 0], beads[:, 1]))] = 2.0 * bead_mm
    half = 0.5 * (across + 1) * step_mm
    return BeadPhantom(beads, radii, box(np.zeros(3), (half, half, 0.5 * plate_mm), Material.PMMA))


@dataclass(frozen=True, slots=True, eq=False)
class PieceTable:
    """Pieces as arrays, for compiled code; in the order of displacement.

    Attributes
    ----------
    shapes, materials : (N,) int64
    centres_mm : (N, 3)
    inverses : (N, 3, 3)
        Maps an offset from the centre to the unit body's coordinates.
    reach_mm : (N,)
    """

    shapes: NDArray[np.int64]
    materials: NDArray[np.int64]
    centres_mm: Array
    inverses: Array
    reach_mm: Array


def piece_table(pieces: Iterable[Piece]) -> PieceTable:
    """Return the table of pieces."""
    listed = list(pieces)
    return PieceTable(
        np.array([p.shape for p in listed], dtype=np.int64),
        np.array([p.material for p in listed], dtype=np.int64),
        np.array([p.centre_mm for p in listed], dtype=np.float64).reshape(-1, 3),
        np.array([np.linalg.inv(p.axes_mm) for p in listed], dtype=np.float64).reshape(-1, 3, 3),
        np.array([p.reach_mm for p in listed], dtype=np.float64),
    )
