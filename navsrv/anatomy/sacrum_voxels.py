"""Owns the voxels of the built-in sacrum case: CT values and label map on one grid, and the fields of its bones.

A voxel has a structure's label if and only if its centre is inside the structure; where several contain it the later
in ``Layout.parts`` wins: skin (the body), bones, metastasis, rectum, veins, arteries, canal, foramina, trunk, roots,
so that thin structures survive.  Bones and soft tissue are computed on a grid twice as coarse and interpolated;
everything with an exact shape is judged at the voxel itself.  Refuses surfaces (``sacrum_surfaces``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from navsrv.anatomy.sacrum_bones import (
    Grid,
    disc_field,
    femur_field,
    l5_field,
    sacrum_field,
    smooth_max,
    unevenness,
    wing_field,
    wing_sheet,
)
from navsrv.anatomy.sacrum_geometry import Layout, Part
from navsrv.anatomy.sacrum_primitives import Ellipsoid, EllipticCylinder, Primitive, Tube, union_bounds_mm
from navsrv.anatomy.sacrum_tissue import soft_tissue
from navsrv.kernel.frames import Array

LOW_MODEL: Final = (-130.0, -84.0, -119.0)
HIGH_MODEL: Final = (130.0, 106.0, 46.0)
"""Field of view in the model, about the S1 endplate: wings to the spines in front, the whole back with its skin."""

AIR: Final = -1000.0
NOISE_HU: Final = 12.0
FAR: Final = np.float32(60.0)
BONES: Final[dict[str, tuple[float, float, float, tuple[tuple[float, float, float], tuple[float, float, float]]]]] = {
    # cortex HU, its thickness in mm, cancellous HU, box in the model
    "Femur left": (1050.0, 1.4, 330.0, ((58.0, -60.0, -119.0), (131.0, 20.0, -75.0))),
    "Femur right": (1050.0, 1.4, 330.0, ((-131.0, -60.0, -119.0), (-58.0, 20.0, -75.0))),
    "L5": (800.0, 1.1, 190.0, ((-56.0, -32.0, -16.0), (56.0, 72.0, 47.0))),
    "Ilium left": (1000.0, 1.9, 250.0, ((24.0, -85.0, -119.0), (131.0, 76.0, 40.0))),
    "Ilium right": (1000.0, 1.9, 250.0, ((-131.0, -85.0, -119.0), (-24.0, 76.0, 40.0))),
    "Sacrum": (780.0, 1.25, 170.0, ((-64.0, -24.0, -119.0), (64.0, 70.0, 40.0))),
}


@dataclass(frozen=True, slots=True, eq=False)
class Lattice:
    """A grid of points in LPS mm: ``origin_mm`` (3,) is point (0, 0, 0), ``size`` counts points along i, j, k."""

    origin_mm: Array
    spacing_mm: float
    size: tuple[int, int, int]

    def axes(self, box: tuple[slice, slice, slice] | None = None) -> tuple[Grid, Grid, Grid]:
        """Return open coordinates x (1, 1, i), y (1, j, 1), z (k, 1, 1) of the grid, or of a (k, j, i) box of it."""
        x, y, z = (self.origin_mm[a] + self.spacing_mm * np.arange(self.size[a]) for a in range(3))
        if box is not None:
            x, y, z = x[box[2]], y[box[1]], z[box[0]]
        return x[None, None, :], y[None, :, None], z[:, None, None]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an array on this grid: (k, j, i)."""
        return self.size[2], self.size[1], self.size[0]

    def box(self, corners_mm: Any, margin_mm: float = 0.0) -> tuple[slice, slice, slice]:
        """Return the (k, j, i) slices of the points within the box of two corners (2, 3), clipped to the grid."""
        low_mm, high_mm = np.asarray(corners_mm)
        low = np.ceil((low_mm - margin_mm - self.origin_mm) / self.spacing_mm - 1e-9).astype(int)
        high = np.floor((high_mm + margin_mm - self.origin_mm) / self.spacing_mm + 1e-9).astype(int) + 1
        i, j, k = (
            slice(int(np.clip(a, 0, n)), int(np.clip(b, 0, n))) for a, b, n in zip(low, high, self.size, strict=True)
        )
        return k, j, i


@dataclass(frozen=True, slots=True, eq=False)
class BoneField:
    """Signed distance float32 (k, j, i) of a bone on the CT's grid within a box; point (0, 0, 0) at ``origin_mm``."""

    values: NDArray[np.float32]
    origin_mm: Array
    box: tuple[slice, slice, slice]


def voxelise(
    patient: Layout, label_of: dict[str, int], seed: int, voxel_mm: float
) -> tuple[Lattice, NDArray[np.int16], NDArray[np.uint8], dict[str, BoneField]]:
    """Return the grid, the CT in HU, the label map and the fields of the bones."""
    rng = np.random.default_rng([seed, 2])
    factor = 2 if voxel_mm <= 0.8 else 1
    scale = patient.curve.scale
    low = np.round(np.array(LOW_MODEL) * scale + patient.curve.origin_mm, 2)
    cells = np.ceil((np.array(HIGH_MODEL) - LOW_MODEL) * scale / (voxel_mm * factor)).astype(int)
    coarse = Lattice(low, voxel_mm * factor, (int(cells[0]) + 1, int(cells[1]) + 1, int(cells[2]) + 1))
    ni, nj, nk = (factor * int(n) + 1 for n in cells)
    lattice = Lattice(low, voxel_mm, (ni, nj, nk))
    hu, skin, bones = _coarse_fields(patient, coarse, factor, rng)
    texture = _texture(lattice.shape, rng)
    for name, field in bones.items():
        cut = [
            p for other in patient.parts if "foramen" in other.name or "canal" in other.name for p in other.primitives
        ]
        if name == "Sacrum":
            for box, distance in _near(cut, lattice, 3.0):
                _carve(field, box, distance)
        _paint_bone(hu, field, name, texture, voxel_mm)
    labels = _labels(patient, label_of, lattice, bones)
    _paint_exact(hu, patient, lattice, texture)
    _over(hu, skin, AIR, voxel_mm, outside=True)
    return lattice, _scanned(hu, texture), labels, bones


def _coarse_fields(
    patient: Layout, coarse: Lattice, factor: int, rng: np.random.Generator
) -> tuple[Grid, Grid, dict[str, BoneField]]:
    """Soft tissue in HU and skin distance on the fine grid, and the bones' fields in their boxes."""
    curve = patient.curve
    scale = np.float32(curve.scale)
    x, y, z = (((q - o) / curve.scale).astype(np.float32) for q, o in zip(coarse.axes(), curve.origin_mm, strict=True))
    step = coarse.spacing_mm / curve.scale
    bumps = unevenness(coarse.shape, 5.0 / step, rng)
    slow, fine = unevenness(coarse.shape, 9.0 / step, rng), unevenness(coarse.shape, 2.0 / step, rng)
    fields: dict[str, Grid] = {}
    boxes: dict[str, tuple[slice, slice, slice]] = {}
    sacrum = np.full(coarse.shape, FAR, dtype=np.float32)
    sheets = []
    for name in ("Sacrum", *(n for n in BONES if n != "Sacrum")):
        lo, hi = (np.array(c) * curve.scale + curve.origin_mm for c in BONES[name][3])
        box = coarse.box((lo, hi))
        k, j, i = box
        bx, by, bz = x[:, :, i], y[:, j], z[k]
        mirrored = -bx[:, :, ::-1] if name.endswith("right") else bx
        match name.split()[0]:
            case "Sacrum":
                field = sacrum_field(curve, bx, by, bz, bumps[box])
                sacrum[box] = field
            case "L5":
                field = l5_field(curve, bx, by, bz, bumps[box])
            case "Femur":
                field = femur_field(mirrored, by, bz)
            case _:
                flip = slice(None, None, -1 if name.endswith("right") else 1)
                field = wing_field(mirrored, by, bz, sacrum[box][:, :, flip], bumps[box][:, :, flip])
        fields[name] = field[:, :, ::-1] if name.endswith("right") else field
        boxes[name] = box
    for sign in (1.0, -1.0):
        sheets.append(wing_sheet(sign * x, y, z)[0])
    skin = _skin_distance(patient.part("Skin"), coarse)
    hu = soft_tissue(curve, (x, y, z), -skin / scale, sacrum, (sheets[0], sheets[1]), (slow, fine), 1.2 * step)
    _paint_disc(hu, patient, coarse, (x, y, z))
    bones = {}
    for name in BONES:
        values = _finer(np.asarray(fields[name] * scale, dtype=np.float32), factor)
        box = boxes[name]
        begin = [s.start * factor for s in box]
        wide = tuple(slice(b, b + n) for b, n in zip(begin, values.shape, strict=True))
        origin = coarse.origin_mm + coarse.spacing_mm * np.array([box[2].start, box[1].start, box[0].start])
        bones[name] = BoneField(values, origin, (wide[0], wide[1], wide[2]))
    return _finer(hu, factor), _finer(skin, factor), bones


def _paint_disc(hu: Grid, patient: Layout, coarse: Lattice, grid: tuple[Grid, Grid, Grid]) -> None:
    low, high = (
        np.array(c) * patient.curve.scale + patient.curve.origin_mm for c in ((-32.0, -26.0, -24.0), (32.0, 26.0, 24.0))
    )
    k, j, i = coarse.box((low, high))
    disc = disc_field(patient.curve, grid[0][:, :, i], grid[1][:, j], grid[2][k])
    _over(hu[k, j, i], disc.astype(np.float32), 95.0, coarse.spacing_mm)


def _skin_distance(skin: Part, coarse: Lattice) -> Grid:
    """Distance to the skin (float32, approximate for the buttocks off their surface) on the coarse grid."""
    x, y, z = coarse.axes()
    body = next(p for p in skin.primitives if isinstance(p, EllipticCylinder))
    result = np.repeat(body.signed_distance(x, y, body.center_mm[2] + 0.0 * z[:1]), z.size, axis=0).astype(np.float32)
    for solid in skin.primitives:
        if isinstance(solid, Ellipsoid):
            box = coarse.box(solid.bounds_mm(), 6.0)
            p = [
                q.astype(np.float32) / np.float32(a)
                for q, a in zip(solid.local(*coarse.axes(box)), solid.axes_mm, strict=True)
            ]
            k = np.sqrt(p[0] ** 2 + p[1] ** 2 + p[2] ** 2)
            steep = np.sqrt(sum((q / np.float32(a)) ** 2 for q, a in zip(p, solid.axes_mm, strict=True)))
            result[box] = np.minimum(result[box], k * (k - 1.0) / np.maximum(steep, np.float32(1e-6)))
    return result


def _finer(values: Grid, factor: int) -> Grid:
    """Return a field on a grid twice as fine, by linear interpolation, points at the old ones kept."""
    if factor == 1:
        return values
    for axis in range(3):
        shape = list(values.shape)
        shape[axis] = 2 * shape[axis] - 1
        wide = np.empty(shape, dtype=np.float32)
        at = [slice(None)] * 3
        even, odd, first, last = list(at), list(at), list(at), list(at)
        even[axis], odd[axis] = slice(0, None, 2), slice(1, None, 2)
        first[axis], last[axis] = slice(0, -1), slice(1, None)
        wide[tuple(even)] = values
        wide[tuple(odd)] = (values[tuple(first)] + values[tuple(last)]) * np.float32(0.5)
        values = wide
    return values


def _near(
    solids: list[Primitive] | tuple[Primitive, ...], lattice: Lattice, margin_mm: float
) -> Iterator[tuple[tuple[slice, slice, slice], Grid]]:
    """Yield box and signed distance of each simple piece of a union, each box ``margin_mm`` wider than its piece."""
    for solid in solids:
        pieces: list[Primitive] = [solid]
        if isinstance(solid, Tube):
            pieces = [Tube(solid.points_mm[i : i + 2], solid.radius_mm) for i in range(len(solid.points_mm) - 1)]
        for piece in pieces:
            box = lattice.box(piece.bounds_mm(), margin_mm)
            if all(s.stop > s.start for s in box):
                yield box, piece.signed_distance(*lattice.axes(box))


def union_near(part: Part, lattice: Lattice, margin_mm: float) -> tuple[tuple[slice, slice, slice], Grid] | None:
    """Return box and distance (float32) of a whole part, right up to ``margin_mm`` outside; None outside the grid."""
    box = lattice.box(union_bounds_mm(part.primitives), margin_mm)
    if any(s.stop <= s.start for s in box):
        return None
    result = np.full([s.stop - s.start for s in box], FAR, dtype=np.float32)
    for piece, distance in _near(part.primitives, lattice, margin_mm):
        k, j, i = (slice(p.start - b.start, p.stop - b.start) for p, b in zip(piece, box, strict=True))
        np.minimum(result[k, j, i], distance, out=result[k, j, i], casting="same_kind")
    return box, result


def _carve(field: BoneField, box: tuple[slice, slice, slice], distance: Grid) -> None:
    inner, outer = [], []
    for f, b in zip(field.box, box, strict=True):
        start, stop = max(f.start, b.start), min(f.stop, b.stop)
        if stop <= start:
            return
        inner.append(slice(start - f.start, stop - f.start))
        outer.append(slice(start - b.start, stop - b.start))
    k, j, i = inner
    cut = -distance[outer[0], outer[1], outer[2]].astype(np.float32)
    field.values[k, j, i] = smooth_max(field.values[k, j, i], cut, 0.8)


def _labels(
    patient: Layout, label_of: dict[str, int], lattice: Lattice, bones: dict[str, BoneField]
) -> NDArray[np.uint8]:
    labels = np.zeros(lattice.shape, dtype=np.uint8)
    for part in patient.parts:
        value = label_of[part.name]
        if part.name in bones:
            field = bones[part.name]
            labels[field.box][field.values < 0.0] = value
        for solid in part.primitives:
            if isinstance(solid, EllipticCylinder):
                x, y, z = lattice.axes()
                across = solid.signed_distance(x, y, np.full((1, 1, 1), solid.center_mm[2])) < 0.0
                labels[(np.abs(z[:, 0, 0] - solid.center_mm[2]) < solid.half_length_mm)] |= np.where(
                    across[0], value, 0
                ).astype(np.uint8)
            elif isinstance(solid, Ellipsoid):
                box = lattice.box(solid.bounds_mm())
                labels[box][solid.contains(*lattice.axes(box))] = value
            else:
                for box, distance in _near([solid], lattice, 0.0):
                    labels[box][distance < 0.0] = value
    return labels


def _over(hu: Grid, field: Grid, value: Any, width_mm: float, *, outside: bool = False) -> None:
    """Paint a value where the field is negative (or positive), its edge as wide as a voxel: the partial volume."""
    cover = np.clip(np.float32(0.5) + field * np.float32((1.0 if outside else -1.0) / width_mm), 0.0, 1.0)
    hu += cover * (np.asarray(value, dtype=np.float32) - hu)


def _texture(shape: tuple[int, ...], rng: np.random.Generator) -> Grid:
    """Noise of unit variance with the grain of a reconstruction kernel (about two voxels), float32."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    for axis in range(3):
        at = np.moveaxis(noise, axis, 0)
        at[:-1] += at[1:]
    noise *= np.float32(1.0 / noise[::7, ::7, ::7].std())
    return noise


def _paint_bone(hu: Grid, field: BoneField, name: str, texture: Grid, voxel_mm: float) -> None:
    """Cortex outside, cancellous bone with trabecular grain inside; the grain is the texture of another place."""
    cortex, thickness, core, _ = BONES[name]
    near = _elsewhere(texture, field.box)
    depth = -field.values
    shell = np.clip((np.float32(thickness) - depth) / np.float32(1.1) + np.float32(0.5), 0.0, 1.0)
    # Just under the cortex trabeculae are dense, in the middle of an ala nearly only marrow.
    inside = (
        np.float32(core) * (np.float32(0.62) + np.float32(0.9) * np.exp(-depth / np.float32(4.0)))
        + np.float32(0.26 * core) * near
    )
    _over(hu[field.box], field.values, inside + shell * (np.float32(cortex) - inside), voxel_mm)


def _elsewhere(texture: Grid, box: tuple[slice, slice, slice]) -> Grid:
    """A piece of the texture as large as the box, taken from the opposite corner and turned over."""
    k, j, i = (slice(n - s.stop, n - s.start) for s, n in zip(box, texture.shape, strict=True))
    return texture[k, j, i][::-1, :, :]


def _paint_exact(hu: Grid, patient: Layout, lattice: Lattice, texture: Grid) -> None:
    width = lattice.spacing_mm
    for part in patient.parts:
        if part.name in BONES or part.name == "Skin":
            continue
        near = union_near(part, lattice, 3.0)
        if near is None:
            continue
        box, field = near
        here, grain = hu[box], _elsewhere(texture, box)
        _paint_part(here, part.name, field, grain, width)


def _paint_part(hu: Grid, name: str, field: Grid, grain: Grid, width: float) -> None:
    """One structure as a CT in the portal venous phase shows it."""
    match name.split():
        case ["Metastasis"]:
            ragged = field + np.float32(0.9) * grain
            _over(hu, ragged, 58.0 + 14.0 * grain + 230.0 * np.clip(grain - 2.1, 0.0, 1.0), 2.0 * width)
        case ["Rectum"]:
            _over(hu, field, 46.0, width)
            # Stool with bubbles of several voxels.
            clumps = gaussian_filter(grain, 1.6 / width)
            clumps /= clumps.std()
            content = 22.0 + 16.0 * clumps - 520.0 * np.clip(clumps - 0.9, 0.0, 1.0)
            _over(hu, field + np.float32(3.2), content, width)
        case ["Sacral", "canal"]:
            _over(hu, field, -62.0, width)
            _over(hu, field + np.float32(1.9), 14.0, width)
        case [_, "foramen", _]:
            _over(hu, field, -78.0, width)
        case [_, "root", _] | ["Lumbosacral", *_]:
            _over(hu, field - np.float32(1.1), -72.0, 2.0 * width)
            _over(hu, field, 36.0, width)
        case [*_, "artery", _]:
            _over(hu, field - np.float32(0.9), -60.0, 2.0 * width)
            _over(hu, field, 172.0, width)
        case _:
            _over(hu, field, 148.0, width)


def _scanned(hu: Grid, texture: Grid) -> NDArray[np.int16]:
    """The scanner's blur (FWHM about 1.4 voxels) and noise, in whole HU."""
    for axis in range(3):
        at = np.moveaxis(hu, axis, 0)
        blurred = at[:-2] + at[2:]
        blurred *= np.float32(0.18)
        middle = at[1:-1]
        middle *= np.float32(0.64)
        middle += blurred
    hu += np.float32(NOISE_HU) * texture
    np.clip(hu, -1024.0, 3071.0, out=hu)
    np.rint(hu, out=hu)
    return hu.astype(np.int16)
