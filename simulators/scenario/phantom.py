"""Owns the phantom: a small case of tubes and ellipsoids with a CT, so that a scenario needs no patient and no minute.

Anybody can compute its distances: a nerve and a vessel beside the plan, a canal below the target.  Its bones are lumps
without symmetry, so that an image of it shows how it lies.  Another seed is another patient: same plan, other bones.
"""

from __future__ import annotations

import fcntl
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.ndimage import gaussian_filter

from navsrv.anatomy.build import CaseDraft, StructureDraft, write_case
from navsrv.anatomy.case import Case, Kind, Plan, Volume
from navsrv.anatomy.home import made_folder, navsrv_home
from navsrv.anatomy.mesh import Mesh
from navsrv.anatomy.surfaces import field_surface
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array
from simulators.world.batches import rotations
from simulators.world.truth import Surface, Union, read_primitives

VERSION: Final = 1
ENTRY: Final = (0.0, 85.0, 0.0)
TARGET: Final = (0.0, 20.0, 0.0)
CT_VOXEL_MM: Final = 2.0
CT_HALF_MM: Final = 110.0
SURFACE_VOXEL_MM: Final = 0.8
SIGMA_MM: Final = 0.3
LUMPS: Final = 14

PRIMITIVES: Final[dict[str, list[dict[str, Any]]]] = {
    "Nerve": [{"type": "tube", "points_mm": [[14, 30, -45], [15, 26, 0], [13, 22, 45]], "radius_mm": 3.0}],
    "Vessel": [{"type": "tube", "points_mm": [[-20, 36, -45], [-18, 12, 5], [-22, 8, 45]], "radius_mm": 4.0}],
    "Canal": [
        {"type": "round_cone", "start_mm": [3, -12, -45], "end_mm": [2, -14, 0], "start_radius_mm": 7.0,
         "end_radius_mm": 8.0},
        {"type": "round_cone", "start_mm": [2, -14, 0], "end_mm": [0, -20, 45], "start_radius_mm": 8.0,
         "end_radius_mm": 6.0},
    ],
    "Target": [
        {"type": "ellipsoid", "center_mm": [0, 18, 0], "axes_mm": [8, 10, 9],
         "rotation": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}
    ],
}  # fmt: skip
KINDS: Final = {"Nerve": Kind.CRITICAL, "Vessel": Kind.CRITICAL, "Canal": Kind.CRITICAL, "Target": Kind.TARGET}


def phantom_case(seed: int = 1) -> Path:
    """Return the folder of the phantom of a seed, made under the navsrv home if it is not there."""
    place = made_folder(navsrv_home() / "cases") / f"phantom-{seed}"
    with (place.parent / f".{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _current(place, seed):
            write_case(_draft(seed), place)
    return place


def _current(place: Path, seed: int) -> bool:
    try:
        return bool(Case.load(place).provenance.get("phantom") == {"version": VERSION, "seed": seed})
    except InputError:
        return False


def _draft(seed: int) -> CaseDraft:
    primitives = {"frame": "LPS", "units": "mm", "structures": {n: {"primitives": p} for n, p in PRIMITIVES.items()}}
    structures = tuple(StructureDraft(name, KINDS[name], _surface(name), SIGMA_MM) for name in PRIMITIVES)
    return CaseDraft(
        name="phantom",
        structures=structures,
        provenance={"sources": [], "note": "made up, not anatomy", "phantom": {"version": VERSION, "seed": seed}},
        ct=phantom_ct(seed),
        plan=Plan(np.array(ENTRY), np.array(TARGET), 3.0),
        primitives=primitives,
    )


def _surface(name: str) -> Mesh:
    """Return the triangles of one structure, from its distance on a grid around it."""
    low, high = _bounds(PRIMITIVES[name])
    size = np.ceil((high - low) / SURFACE_VOXEL_MM).astype(int) + 1
    axes = [low[i] + SURFACE_VOXEL_MM * np.arange(size[i]) for i in range(3)]
    z, y, x = np.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
    shape = _shape(name)
    field = -shape.distance(np.stack([x, y, z], axis=-1).reshape(-1, 3))[0].reshape(x.shape)
    spacing = np.full(3, SURFACE_VOXEL_MM)
    return field_surface(field, 0.0, Volume(np.zeros(x.shape, np.int16), low, spacing))


def _shape(name: str) -> Union | Surface:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "primitives.json"
        structures = {name: {"primitives": PRIMITIVES[name]}}
        path.write_text(json.dumps({"frame": "LPS", "units": "mm", "structures": structures}))
        return read_primitives(path)[name]


def _bounds(items: Sequence[dict[str, Any]]) -> tuple[Array, Array]:
    points, reach = [], 0.0
    for item in items:
        points += [item[key] for key in ("start_mm", "end_mm", "center_mm") if key in item]
        points += item.get("points_mm", [])
        radii = [item.get(key, 0.0) for key in ("radius_mm", "start_radius_mm", "end_radius_mm")]
        reach = max(reach, *radii, *item.get("axes_mm", [0.0]))
    array = np.array(points, dtype=np.float64)
    return array.min(axis=0) - reach - 2.0, array.max(axis=0) + reach + 2.0


def phantom_ct(seed: int) -> Volume:
    """Return the CT: a body of water with lumps of bone, each of another size, place and turn."""
    rng = np.random.default_rng([seed, 0xF0])
    axis = np.arange(-CT_HALF_MM, CT_HALF_MM + 0.1, CT_VOXEL_MM)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    points = np.stack([x, y, z], axis=-1)
    hu = np.where((x / 105.0) ** 2 + (y / 88.0) ** 2 < 1.0, 30.0, -1000.0)
    texture = gaussian_filter(rng.normal(size=hu.shape), 1.5) * 600.0
    for turn in rotations(rng.normal(size=(LUMPS, 3))):
        centre = rng.uniform([-55.0, -55.0, -60.0], [55.0, 40.0, 60.0])
        local = (points - centre) @ turn / rng.uniform(8.0, 26.0, 3)
        inside = (local**2).sum(axis=-1)
        hu = np.where(inside < 1.0, np.where(inside > 0.6, 900.0, 350.0 + texture), hu)
    origin = np.full(3, -CT_HALF_MM)
    return Volume(np.round(gaussian_filter(hu, 0.6)).astype(np.int16), origin, np.full(3, CT_VOXEL_MM))
