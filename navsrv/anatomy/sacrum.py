"""Owns the built-in synthetic case ``sacrum``: a pelvis CT generated from a seed, with a lytic metastasis and a
plan.

``generate_sacrum`` gives CT, label map, structures, the exact geometry in plain numbers and a plan;
``sacrum_meshes`` gives the surfaces.  Everything critical, the target and the skin are unions of analytic solids
(``sacrum_geometry``), so that anyone can compute the truth of a distance without this code.  Refuses the case
folder, which ``build`` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy.case import Kind, Plan
from navsrv.anatomy.mesh import Mesh
from navsrv.anatomy.sacrum_geometry import (
    CORRIDOR_MM,
    SHAFT_RADIUS_MM,
    Layout,
    layout,
    primitives_record,
)
from navsrv.anatomy.sacrum_primitives import union_distance
from navsrv.anatomy.sacrum_surfaces import TOLERANCE_MM, Field, contour, union_field, union_mesh
from navsrv.anatomy.sacrum_voxels import BoneField, voxelise
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array

MIN_CLEARANCE_MM: Final = 12.0
"""From the planned needle's surface to everything critical: beyond the default caution limit, with room for error."""

SKIN_TOLERANCE_MM: Final = 0.08
"""In the natal cleft, the only place where it matters; elsewhere the skin is as near as the rest."""

VOXEL_LIMITS_MM: Final = (0.4, 4.0)
BONE_GRID_MM: Final = {"Sacrum": 1.2, "L5": 1.2}
OTHER_BONE_GRID_MM: Final = 1.8
"""Bones are smooth at this scale, and every display has to carry their triangles."""


@dataclass(frozen=True, slots=True)
class SacrumStructure:
    """One row of the table of labels: ``follows`` is the bone whose motion it shares, or None."""

    label: int
    name: str
    kind: Kind
    follows: str | None


@dataclass(frozen=True, slots=True)
class Clearance:
    """What the plan leaves to one critical structure, mm: from the whole shaft's surface, and from the tip."""

    shaft_mm: float
    tip_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class SacrumCase:
    """The generated case.

    Attributes
    ----------
    ct : (nk, nj, ni) int16
        HU.
    labels : (nk, nj, ni) uint8
        ``structures``' labels, 0 outside the body; precedence as in ``sacrum_voxels``.
    origin_mm, spacing_mm : (3,) float64
        Centre of voxel (0, 0, 0) and voxel size along i, j, k, LPS mm; directions are the identity.
    primitives : dict
        Content of ``primitives.json``.
    plan : Plan
        Entry on the back's skin, target in the metastasis, corridor.
    drift_structure : str
        The root towards which the demo's needle strays.
    clearances : mapping
        By critical structure, of the plan with a shaft of ``shaft_radius_mm``.
    """

    seed: int
    ct: NDArray[np.int16] = field(repr=False)
    labels: NDArray[np.uint8] = field(repr=False)
    origin_mm: Array
    spacing_mm: Array
    structures: tuple[SacrumStructure, ...] = field(repr=False)
    primitives: dict[str, Any] = field(repr=False)
    plan: Plan
    drift_structure: str
    clearances: Mapping[str, Clearance] = field(repr=False)
    shaft_radius_mm: float
    patient: Layout = field(repr=False)
    bones: Mapping[str, BoneField] = field(repr=False)

    def structure(self, name: str) -> SacrumStructure:
        """Return the structure called ``name``; InputError that lists the names otherwise."""
        for row in self.structures:
            if row.name == name:
                return row
        raise InputError(f"sacrum: no structure {name!r}; it has {', '.join(s.name for s in self.structures)}")

    def structure_field(self, name: str, spacing_mm: float | None = None) -> Field:
        """Return the signed distance of the complete structure in a box around it, whatever overlaps it.

        For a union of solids the zero and the outside are exact and the depth inside is a lower bound, on a grid of
        ``spacing_mm`` (default: fine enough for its radius).  For bone it is the approximate field on the CT's grid.
        """
        self.structure(name)
        if name in self.bones:
            bone = self.bones[name]
            return Field(bone.values, bone.origin_mm, float(self.spacing_mm[0]))
        return union_field(self.patient.part(name).primitives, spacing_mm)

    def structure_mask(self, name: str) -> NDArray[np.bool_]:
        """Return (nk, nj, ni): voxels whose centre is inside the complete structure, whatever overlaps it."""
        self.structure(name)
        mask = np.zeros(self.labels.shape, dtype=np.bool_)
        if name in self.bones:
            bone = self.bones[name]
            mask[bone.box] = bone.values < 0.0
            return mask
        sizes: tuple[int, ...] = mask.shape[::-1]
        x, y, z = (o + s * np.arange(n) for o, s, n in zip(self.origin_mm, self.spacing_mm, sizes, strict=True))
        for solid in self.patient.part(name).primitives:
            (i0, j0, k0), (i1, j1, k1) = (
                np.clip(np.round((b - self.origin_mm) / self.spacing_mm) + e, 0, sizes).astype(int)
                for b, e in zip(solid.bounds_mm(), (-1, 2), strict=True)
            )
            distance = solid.signed_distance(x[None, None, i0:i1], y[None, j0:j1, None], z[k0:k1, None, None])
            mask[k0:k1, j0:j1, i0:i1] |= distance < 0.0
        return mask


def generate_sacrum(seed: int = 1, voxel_mm: float = 0.6) -> SacrumCase:
    """Return the case of a seed: the same seed and voxel size give the same bytes.

    Raises
    ------
    InputError
        A voxel size outside 0.4 to 4 mm, or a negative seed.
    """
    if not VOXEL_LIMITS_MM[0] <= voxel_mm <= VOXEL_LIMITS_MM[1]:
        raise InputError(
            f"sacrum: voxel size {voxel_mm:g} mm; expected {VOXEL_LIMITS_MM[0]:g} to {VOXEL_LIMITS_MM[1]:g}"
        )
    if seed < 0:
        raise InputError(f"sacrum: seed {seed}; expected 0 or above")
    patient = layout(seed)
    clearances = plan_clearances(patient)
    name, least = min(((n, c.shaft_mm) for n, c in clearances.items()), key=lambda item: item[1])
    if least < MIN_CLEARANCE_MM:
        raise InputError(f"sacrum: with seed {seed} the plan passes {name} at {least:.1f} mm; choose another seed")
    label_of = {part.name: 1 + i for i, part in enumerate(patient.parts)}
    lattice, ct, labels, bones = voxelise(patient, label_of, seed, voxel_mm)
    for array in (ct, labels):
        array.flags.writeable = False
    return SacrumCase(
        seed=seed,
        ct=ct,
        labels=labels,
        origin_mm=lattice.origin_mm,
        spacing_mm=np.full(3, voxel_mm),
        structures=tuple(SacrumStructure(label_of[p.name], p.name, p.kind, p.follows) for p in patient.parts),
        primitives=primitives_record(patient, seed, label_of),
        plan=Plan(patient.entry_mm, patient.target_mm, CORRIDOR_MM),
        drift_structure=patient.drift_structure,
        clearances=clearances,
        shaft_radius_mm=SHAFT_RADIUS_MM,
        patient=patient,
        bones=bones,
    )


def plan_clearances(patient: Layout) -> dict[str, Clearance]:
    """Return what the plan leaves to each critical structure (path sampled every 0.2 mm)."""
    length = float(np.linalg.norm(patient.entry_mm - patient.target_mm))
    along = np.linspace(0.0, 1.0, int(length / 0.2) + 2)[:, None]
    path = patient.target_mm + along * (patient.entry_mm - patient.target_mm)
    result = {}
    for part in patient.parts:
        if part.kind is Kind.CRITICAL:
            distance = union_distance(part.primitives, path)
            result[part.name] = Clearance(float(distance.min()) - SHAFT_RADIUS_MM, float(distance[0]))
    return result


def sacrum_meshes(case: SacrumCase) -> dict[str, Mesh]:
    """Return the closed, outward oriented surface of each structure; those with an exact shape follow their solids."""
    meshes = {}
    for row in case.structures:
        if row.name in case.bones:
            whole = case.structure_field(row.name)
            stride = max(1, round(BONE_GRID_MM.get(row.name, OTHER_BONE_GRID_MM) / whole.spacing_mm))
            thin = Field(whole.values[::stride, ::stride, ::stride], whole.origin_mm, whole.spacing_mm * stride)
            meshes[row.name] = Mesh(*contour(thin))
        else:
            tolerance = SKIN_TOLERANCE_MM if row.kind is Kind.SKIN else TOLERANCE_MM
            meshes[row.name] = union_mesh(case.patient.part(row.name).primitives, tolerance)
    return meshes
