"""Owns the writing of a case folder, and how a case is made from a CT, a label map and roles.

A case appears whole or not at all: it is written beside its place under a hidden name and then renamed.  Refuses to
write over a folder that is not a case, and to start long work before everything cheap to check is checked.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np

from navsrv.anatomy.case import CASE_FILE, FORMAT, VERSION, Case, Kind, Plan, Volume, sha256_of
from navsrv.anatomy.mesh import Mesh
from navsrv.anatomy.roles import Role, Roles, checked_roles
from navsrv.anatomy.segmentation_objects import find_segmentation, read_segmentation
from navsrv.kernel.errors import InputError

Progress = Callable[[str, float], None]
"""Told what is being done and which part of the whole is behind, 0 to 1."""

RECORDED_PACKAGES: Final = ("navsrv", "numpy", "scipy", "SimpleITK", "vtk")
SIGMA_IN_VOXELS: Final = 0.5
"""Default sigma of a segmentation, in voxel edges (root mean square of the three): a label is drawn to the voxel."""

SIGMA_WITHOUT_VOXELS_MM: Final = 0.5
"""Default sigma of a surface file without a CT: nothing says better."""


@dataclass(frozen=True, slots=True, eq=False)
class StructureDraft:
    """A structure ready to be written; ``notes`` go to provenance (how its surface was made and how well)."""

    name: str
    kind: Kind
    mesh: Mesh
    sigma_mm: float
    label: int | None = None
    follows: str | None = None
    caution_mm: float | None = None
    warning_mm: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class CaseDraft:
    """A case ready to be written; ``primitives`` and ``provenance`` are plain JSON values."""

    name: str
    structures: tuple[StructureDraft, ...]
    provenance: Mapping[str, Any]
    ct: Volume | None = None
    labels: Volume | None = None
    plan: Plan | None = None
    primitives: Any = None


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a case comes from; ``series`` choose among several DICOM series of a folder."""

    ct: Path | None
    labels: Path | None
    roles: Roles
    ct_series: str | None = None
    labels_series: str | None = None


def silent(text: str, fraction: float) -> None:
    """Take a progress report and do nothing."""


def check_output(folder: Path) -> None:
    """Raise InputError when ``folder`` is something that a case must not replace: a file, or a folder of others."""
    if folder.is_dir():
        if any(folder.iterdir()) and not (folder / CASE_FILE).is_file():
            raise InputError(f"{folder}: exists and is not a case (no {CASE_FILE}); choose another folder or empty it")
    elif folder.exists() or folder.is_symlink():
        raise InputError(f"{folder}: exists and is not a folder; choose another place for the case")


def build_case(sources: Sources, folder: Path, name: str | None = None, progress: Progress = silent) -> Case:
    """Build a case from the user's files into ``folder`` and return it.

    Raises
    ------
    InputError
        Any fault of the files or the roles; ``folder`` is then as it was.
    """
    check_output(folder)
    draft = draft_case(sources, name or sources.roles.name or folder.absolute().name, part(progress, 0.0, 0.5))
    return write_case(draft, folder, part(progress, 0.5, 1.0))


def draft_case(sources: Sources, name: str, progress: Progress = silent) -> CaseDraft:
    """Return the case of the user's files, its surfaces made, nothing written."""
    from navsrv.anatomy import volumes

    roles = checked_roles(sources.roles)
    if sources.labels is None and any(r.labels for r in roles.structures):
        raise InputError("structures with labels need a label map; give --labels FILE")
    if sources.ct is None and any(r.threshold_hu is not None for r in roles.structures):
        raise InputError("structures with a threshold need a CT; give --ct FILE or folder")
    progress("reading the CT", 0.0)
    ct = None if sources.ct is None else volumes.read_ct(sources.ct, sources.ct_series)
    labels = None
    notes: dict[str, Any] = {}
    if sources.labels is not None:
        progress("reading the label map", 0.1)
        segmentation = find_segmentation(sources.labels)
        if segmentation is not None:
            labels, roles, notes = _segmented(segmentation, sources, ct, roles)
        else:
            labels = volumes.read_labels(sources.labels, sources.labels_series)
            if ct is not None:
                volumes.require_same_geometry(ct, labels, sources.labels)
            _require_labels(sources.labels, labels, roles)
    if ct is not None and roles.plan is not None:
        require_plan_within(roles.plan, ct)
    structures = []
    for i, role in enumerate(roles.structures):
        progress(f"surface of {role.name}", 0.2 + 0.8 * i / len(roles.structures))
        structures.append(draft_structure(role, ct, labels))
    read = [p for p in (sources.ct, sources.labels, *(r.surface for r in roles.structures)) if p is not None]
    provenance = {"sources": [volumes.describe_source(p) for p in read], **notes}
    return CaseDraft(name, tuple(structures), provenance, ct, labels, roles.plan)


def draft_structure(role: Role, ct: Volume | None, labels: Volume | None) -> StructureDraft:
    """Return the structure that a role asks for, with its surface; InputError that names the structure."""
    from navsrv.anatomy import surface_files, surfaces

    grid = ct if ct is not None else labels
    notes: dict[str, Any]
    try:
        if role.surface is not None:
            assert role.space is not None
            mesh = surface_files.read_surface(role.surface, role.space)
            if ct is not None:
                surfaces.require_within(mesh, ct, str(role.surface))
            notes = {"surface_file": role.surface.name, "space": role.space}
        elif role.threshold_hu is not None:
            assert ct is not None
            mesh = surfaces.isosurface(ct, role.threshold_hu)
            notes = {"threshold_hu": role.threshold_hu}
        else:
            assert labels is not None
            made = surfaces.mask_surface(np.isin(labels.voxels, role.labels), labels, role.blur_mm)
            mesh, notes = made.mesh, {"labels": list(role.labels), **surface_notes(made)}
    except InputError as error:
        raise InputError(f"structure {role.name!r}: {error}") from None
    return StructureDraft(
        name=role.name,
        kind=role.kind,
        mesh=mesh,
        sigma_mm=role.sigma_mm if role.sigma_mm is not None else default_sigma_mm(grid),
        label=role.labels[0] if len(role.labels) == 1 else None,
        follows=role.follows,
        caution_mm=role.caution_mm,
        warning_mm=role.warning_mm,
        notes=notes,
    )


def surface_notes(made: Any) -> dict[str, float]:
    """Return what provenance keeps of a smoothed label: its distance from the voxels' faces, and the volume."""
    return {
        "deviation_rms_mm": round(made.deviation_rms_mm, 3),
        "deviation_max_mm": round(made.deviation_max_mm, 3),
        "label_volume_mm3": round(made.label_volume_mm3, 1),
    }


def default_sigma_mm(grid: Volume | None) -> float:
    """Return the sigma of a segmentation of which nothing is known but its voxels."""
    if grid is None:
        return SIGMA_WITHOUT_VOXELS_MM
    return round(SIGMA_IN_VOXELS * float(np.sqrt(np.mean(grid.spacing_mm**2))), 3)


def require_plan_within(plan: Plan, ct: Volume) -> None:
    """Raise InputError when an end of the plan lies outside the CT."""
    low, high = ct.bounds_mm()
    for key, point in (("entry_ct_mm", plan.entry_ct_mm), ("target_ct_mm", plan.target_ct_mm)):
        if (point < low).any() or (point > high).any():
            raise InputError(
                f"plan.{key}: {point.tolist()} lies outside the CT, {low.round(1).tolist()} to"
                f" {high.round(1).tolist()} mm; expected LPS, is it RAS?"
            )


def part(progress: Progress, begin: float, end: float) -> Progress:
    """Return a progress whose 0 to 1 is ``begin`` to ``end`` of ``progress``."""
    return lambda text, fraction: progress(text, begin + (end - begin) * fraction)


def write_case(draft: CaseDraft, folder: Path, progress: Progress = silent) -> Case:
    """Write a case with its distance structures into ``folder``, whole or not at all, and return it.

    An earlier case in ``folder`` is replaced in the end, by renaming.
    """
    check_output(folder)
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.building-", dir=folder.parent))
    except OSError as error:
        raise InputError(f"{folder}: cannot write here: {error.strerror}") from None
    try:
        building.chmod(0o755)  # mkdtemp makes it for its owner alone
        _write_files(draft, building, progress)
        Case.load(building)
        _put_in_place(building, folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot write the case: {error.strerror or error}") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    progress("done", 1.0)
    return Case.load(folder)


def _put_in_place(building: Path, folder: Path) -> None:
    old = building.with_name(building.name + ".old")
    if folder.exists():
        folder.rename(old)
    try:
        building.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_files(draft: CaseDraft, building: Path, progress: Progress) -> None:
    from navsrv.anatomy.volumes import write_mha

    record: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "name": draft.name,
        "frame": "LPS",
        "units": "mm",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": f"navsrv {_version('navsrv')}",
    }
    for key, volume in (("ct", draft.ct), ("labels", draft.labels)):
        record[key] = None
        if volume is not None:
            progress(f"writing {key}.mha", 0.0)
            path = building / f"{key}.mha"
            write_mha(volume, path, compress=key == "labels")
            record[key] = {"file": path.name, "sha256": sha256_of(path)}
    (building / "surfaces").mkdir()
    (building / "distance").mkdir()
    structures = []
    slugs: set[str] = set()
    for i, structure in enumerate(draft.structures):
        progress(f"distance structure of {structure.name}", 0.1 + 0.9 * i / len(draft.structures))
        slug = _slug(structure.name, slugs)
        slugs.add(slug)
        structures.append(_write_structure(structure, slug, building))
    record["structures"] = structures
    record["plan"] = None
    if draft.plan is not None:
        record["plan"] = {
            "entry_ct_mm": draft.plan.entry_ct_mm.tolist(),
            "target_ct_mm": draft.plan.target_ct_mm.tolist(),
            "corridor_mm": draft.plan.corridor_mm,
        }
    record["primitives"] = None
    if draft.primitives is not None:
        path = building / "primitives.json"
        path.write_text(json.dumps(draft.primitives, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        record["primitives"], record["primitives_sha256"] = path.name, sha256_of(path)
    record["provenance"] = {
        **draft.provenance,
        "surfaces": {s.name: dict(s.notes) for s in draft.structures if s.notes},
        "software": {"python": platform.python_version(), **{p: _version(p) for p in RECORDED_PACKAGES}},
    }
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with (building / CASE_FILE).open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _write_structure(structure: StructureDraft, slug: str, building: Path) -> dict[str, Any]:
    from navsrv.anatomy.bvh import DistanceStructure

    surface = building / "surfaces" / f"{slug}.npz"
    np.savez(surface, vertices_mm=structure.mesh.vertices_mm, triangles=structure.mesh.triangles)
    distance = building / "distance" / f"{slug}.npz"
    try:
        DistanceStructure.build(structure.mesh).save(distance)
    except InputError as error:
        raise InputError(f"structure {structure.name!r}: {error}") from None
    return {
        "name": structure.name,
        "kind": structure.kind.value,
        "label": structure.label,
        "follows": structure.follows,
        "surface": f"surfaces/{slug}.npz",
        "sha256": sha256_of(surface),
        "triangles": len(structure.mesh.triangles),
        "sigma_mm": structure.sigma_mm,
        "caution_mm": structure.caution_mm,
        "warning_mm": structure.warning_mm,
        "distance": f"distance/{slug}.npz",
        "distance_sha256": sha256_of(distance),
    }


def _slug(name: str, taken: set[str]) -> str:
    base = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "structure"
    slug, n = base, 1
    while slug in taken:
        n += 1
        slug = f"{base}_{n}"
    return slug


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _segmented(path: Path, sources: Sources, ct: Volume | None, roles: Roles) -> tuple[Volume, Roles, dict[str, Any]]:
    """Return the label map of a SEG or RTSTRUCT, roles on its values, and what provenance keeps of it."""
    from navsrv.anatomy.dicom_folder import frame_of_reference

    if ct is None or sources.ct is None:
        raise InputError(f"{path}: a DICOM segmentation lies on its CT; give --ct, the CT that it was drawn on")
    frame = frame_of_reference(sources.ct, sources.ct_series) if sources.ct.is_dir() else None
    found = read_segmentation(path, ct, frame)
    notes = {
        "segments": {str(n): name for n, name in found.names.items()},
        "label_values": {str(n): list(values) for n, values in found.members.items()},
        "frame_of_reference": "the CT's" if frame else "not checked: the CT's format has none",
    }
    return found.labels, found.on_values(roles, path), {"segmentation": notes}


def _require_labels(path: Path, labels: Volume, roles: Roles) -> None:
    present = np.flatnonzero(np.bincount(labels.voxels.ravel()))
    present = present[present > 0]
    for role in roles.structures:
        for label in role.labels:
            if label not in present:
                listed = ", ".join(map(str, present[:60])) + (" ..." if len(present) > 60 else "")
                raise InputError(
                    f"{path}: structure {role.name!r}: label {label} is not in the map, which has {listed}"
                )
