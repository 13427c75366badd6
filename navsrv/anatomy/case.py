"""Owns the reading of a case folder.  Refuses writing one (``build``), computing anything on it, and a file that is not
the very one that the case was built with.

A case is a folder with ``case.json`` and the files that it names.  ``Case.load`` checks the whole of ``case.json`` and
that each file is there; the SHA-256 of a file is checked when the file is first read, or of all files by
``Case.verify``, so that opening a case stays cheap and nothing unchecked is ever computed on.  Volumes are read with
SimpleITK, imported then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navsrv.anatomy.mesh import Mesh
from navsrv.anatomy.record import Record
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array, frozen_array

FORMAT: Final = "navsrv-case"
VERSION: Final = 1
CASE_FILE: Final = "case.json"


class Kind(Enum):
    """What a structure is to the operator."""

    CRITICAL = "critical"
    TARGET = "target"
    BONE = "bone"
    SKIN = "skin"


@dataclass(frozen=True, slots=True)
class Structure:
    """One structure of the case.

    Attributes
    ----------
    name : str
        Unique within the case.
    kind : Kind
    label : int or None
        Its value in the label map; None when its surface came from elsewhere.
    follows : str or None
        The bone whose motion it shares; None when it is bone or moves by itself.
    surface : str
        Path of the surface inside the case folder.
    sigma_mm : float
        One sigma of the segmentation, along the surface normal.
    caution_mm, warning_mm : float or None
        Own alarm limits; None means the server's.
    distance : str or None
        Path of the distance structure inside the case folder.
    """

    name: str
    kind: Kind
    label: int | None
    follows: str | None
    surface: str
    sha256: str
    triangles: int
    sigma_mm: float
    caution_mm: float | None = None
    warning_mm: float | None = None
    distance: str | None = None
    distance_sha256: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A straight path in the frame ``ct``: entry (3,) and target (3,) in LPS mm, and the corridor's radius in mm."""

    entry_ct_mm: Array
    target_ct_mm: Array
    corridor_mm: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "entry_ct_mm", frozen_array(self.entry_ct_mm, (3,)))
        object.__setattr__(self, "target_ct_mm", frozen_array(self.target_ct_mm, (3,)))

    @property
    def length_mm(self) -> float:
        """Distance from entry to target."""
        return float(np.linalg.norm(self.target_ct_mm - self.entry_ct_mm))


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """Voxels with their place in the frame ``ct`` (LPS mm).

    Attributes
    ----------
    voxels : (nz, ny, nx) any scalar type, read-only
        HU for a CT, label values for a label map.
    origin_mm : (3,) float64
        Centre of the voxel with index (0, 0, 0).
    spacing_mm : (3,) float64
        Along i, j, k: the reverse order of ``voxels``' axes.
    direction : (3, 3) float64
        Columns are the directions of i, j, k.
    """

    voxels: NDArray[Any] = field(repr=False)
    origin_mm: Array
    spacing_mm: Array
    direction: Array = field(default_factory=lambda: np.eye(3))

    def __post_init__(self) -> None:
        voxels = np.asarray(self.voxels).view()
        if voxels.ndim != 3:
            raise ValueError(f"voxels of shape {voxels.shape}, expected three axes")
        voxels.flags.writeable = False
        object.__setattr__(self, "voxels", voxels)
        object.__setattr__(self, "origin_mm", frozen_array(self.origin_mm, (3,)))
        object.__setattr__(self, "spacing_mm", frozen_array(self.spacing_mm, (3,)))
        object.__setattr__(self, "direction", frozen_array(self.direction, (3, 3)))

    @property
    def size(self) -> tuple[int, int, int]:
        """Number of voxels along i, j, k."""
        nz, ny, nx = self.voxels.shape
        return nx, ny, nz

    def ct_from_index(self, index_ijk: ArrayLike) -> Array:
        """Return points (N, 3) or (3,) in LPS mm of continuous indices (i, j, k)."""
        scaled = np.asarray(index_ijk, dtype=np.float64) * self.spacing_mm
        result: Array = scaled @ self.direction.T + self.origin_mm
        return result

    def index_from_ct(self, points_ct_mm: ArrayLike) -> Array:
        """Return continuous indices (i, j, k), (N, 3) or (3,), of points in LPS mm."""
        offset = np.asarray(points_ct_mm, dtype=np.float64) - self.origin_mm
        result: Array = (offset @ np.linalg.inv(self.direction).T) / self.spacing_mm
        return result

    def bounds_mm(self) -> Array:
        """Return (2, 3): lower and upper corner in LPS mm of the box around all voxels, their full extent included."""
        n = np.asarray(self.size, dtype=np.float64)
        corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * n - 0.5
        points = self.ct_from_index(corners)
        result: Array = np.stack([points.min(axis=0), points.max(axis=0)])
        return result


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A case on disk, its ``case.json`` checked.

    Attributes
    ----------
    folder : Path
    sha256 : str
        Of ``case.json``, which names the hash of every other file: the identity of the case.
    provenance : mapping
        Sources with file name and SHA-256, parameters, software: as written at the build, for people and records.
    """

    folder: Path
    name: str
    created: str
    software: str
    sha256: str
    structures: tuple[Structure, ...]
    plan: Plan | None
    provenance: Mapping[str, Any] = field(repr=False)
    files: Mapping[str, str] = field(repr=False)
    """SHA-256 of each file of the case, by its path inside the folder."""
    ct_file: str | None = None
    labels_file: str | None = None
    primitives_file: str | None = None

    @classmethod
    def load(cls, folder: str | Path) -> Case:
        """Return the case in ``folder``.

        Raises
        ------
        InputError
            Not a case, another version, a field that is missing or wrong, or a file that is not there.
        """
        root = Path(folder)
        path = root / CASE_FILE
        if not root.is_dir():
            raise InputError(f"{root}: no such case folder")
        if not path.is_file():
            raise InputError(f"{root}: not a case; it has no {CASE_FILE}")
        content = path.read_bytes()
        try:
            record = json.loads(content)
        except ValueError as error:
            raise InputError(f"{path}: not valid JSON: {error}") from None
        case = _parse_case(root, Record(path, record, ""), hashlib.sha256(content).hexdigest())
        for name in case.files:
            if not (root / name).is_file():
                raise InputError(f"{root / name}: missing; {CASE_FILE} names it, so build the case again")
        return case

    def verify(self) -> None:
        """Check the SHA-256 of every file of the case.

        Raises
        ------
        InputError
            The first file whose content is not what the case was built with.
        """
        for name in self.files:
            self._checked(name)

    def structure(self, name: str) -> Structure:
        """Return the structure called ``name``; InputError that lists the names otherwise."""
        for structure in self.structures:
            if structure.name == name:
                return structure
        raise InputError(
            f"case {self.name}: no structure {name!r}; it has {', '.join(s.name for s in self.structures)}"
        )

    def mesh(self, name: str) -> Mesh:
        """Return the surface of a structure, the very triangles that clearance is computed on."""
        structure = self.structure(name)
        path = self._checked(structure.surface)
        mesh = read_npz_mesh(path)
        if len(mesh.triangles) != structure.triangles:
            raise InputError(f"{path}: {len(mesh.triangles)} triangles; {CASE_FILE} says {structure.triangles}")
        return mesh

    def distance_file(self, name: str) -> Path | None:
        """Return the checked file of a structure's distance structure, or None if the case has none."""
        distance = self.structure(name).distance
        return None if distance is None else self._checked(distance)

    def ct(self) -> Volume:
        """Return the CT in HU; InputError when the case has none."""
        if self.ct_file is None:
            raise InputError(f"case {self.name}: has no CT")
        return _read_mha(self._checked(self.ct_file))

    def labels(self) -> Volume:
        """Return the label map, on the grid of the CT; InputError when the case has none."""
        if self.labels_file is None:
            raise InputError(f"case {self.name}: has no label map")
        return _read_mha(self._checked(self.labels_file))

    def primitives(self) -> Any:
        """Return the description of the exact geometry as parsed JSON; InputError when the case has none."""
        if self.primitives_file is None:
            raise InputError(f"case {self.name}: has no primitives")
        return json.loads(self._checked(self.primitives_file).read_bytes())

    def _checked(self, name: str) -> Path:
        path = self.folder / name
        expected = self.files[name]
        try:
            found = sha256_of(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; {CASE_FILE} names it, so build the case again") from None
        if found != expected:
            raise InputError(f"{path}: SHA-256 is {found}, {CASE_FILE} says {expected}: changed since the build")
        return path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_npz_mesh(path: Path) -> Mesh:
    """Return the surface of an ``.npz`` with ``vertices_mm`` and ``triangles``; InputError that names the file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Mesh(arrays["vertices_mm"], arrays["triangles"])
    except (InputError, KeyError, ValueError, OSError) as error:
        raise InputError(f"{path}: not a surface of a case: {error}") from None


def _read_mha(path: Path) -> Volume:
    import SimpleITK as sitk

    try:
        image: Any = sitk.ReadImage(str(path))
    except RuntimeError:
        raise InputError(f"{path}: cannot be read as a volume; build the case again") from None
    direction = np.array(image.GetDirection()).reshape(3, 3)
    return Volume(sitk.GetArrayFromImage(image), image.GetOrigin(), image.GetSpacing(), direction)


def _parse_case(root: Path, record: Record, sha256: str) -> Case:
    if record.value.get("format") != FORMAT:
        raise record.fault("format", repr(FORMAT))
    if record.value.get("version") != VERSION:
        raise record.fault("version", f"{VERSION}, which this software reads")
    for key, right in (("frame", "LPS"), ("units", "mm")):
        if record.value.get(key) != right:
            raise record.fault(key, repr(right))
    files: dict[str, str] = {}
    volumes: dict[str, str | None] = {}
    for key in ("ct", "labels"):
        entry = record.child(key)
        volumes[key] = None if entry is None else entry.inside("file")
        if entry is not None:
            files[entry.inside("file")] = entry.hash("sha256")
    primitives = None if record.value.get("primitives") is None else record.inside("primitives")
    if primitives is not None:
        files[primitives] = record.hash("primitives_sha256")
    structures = _parse_structures(record)
    for structure in structures:
        files[structure.surface] = structure.sha256
        if structure.distance is not None and structure.distance_sha256 is not None:
            files[structure.distance] = structure.distance_sha256
    plan = record.child("plan")
    provenance = record.child("provenance")
    return Case(
        folder=root,
        name=record.text("name"),
        created=record.text("created"),
        software=record.text("software"),
        sha256=sha256,
        structures=structures,
        plan=None if plan is None else _parse_plan(plan),
        provenance={} if provenance is None else provenance.value,
        files=files,
        ct_file=volumes["ct"],
        labels_file=volumes["labels"],
        primitives_file=primitives,
    )


def _parse_plan(record: Record) -> Plan:
    plan = Plan(record.point("entry_ct_mm"), record.point("target_ct_mm"), record.positive("corridor_mm"))
    if plan.length_mm == 0.0:
        raise record.fault("target_ct_mm", "a point other than the entry")
    return plan


def _parse_structures(record: Record) -> tuple[Structure, ...]:
    items = record.value.get("structures")
    if not isinstance(items, list) or not items:
        raise record.fault("structures", "a list with at least one structure")
    structures = tuple(_parse_structure(Record(record.path, item, f"structures[{i}].")) for i, item in enumerate(items))
    names = [s.name for s in structures]
    for i, structure in enumerate(structures):
        if names.index(structure.name) != i:
            raise InputError(
                f"{record.path}: structures[{i}].name: {structure.name!r} is there twice; names are unique"
            )
        if structure.follows is not None and (structure.follows not in names or structure.follows == structure.name):
            raise InputError(
                f"{record.path}: structures[{i}].follows: {structure.follows!r} is not another structure of the case"
            )
    return structures


def _parse_structure(record: Record) -> Structure:
    kinds = [k.value for k in Kind]
    if record.value.get("kind") not in kinds:
        raise record.fault("kind", "one of " + ", ".join(kinds))
    distance = None if record.value.get("distance") is None else record.inside("distance")
    return Structure(
        name=record.text("name"),
        kind=Kind(record.value["kind"]),
        label=None if record.value.get("label") is None else record.whole("label"),
        follows=record.text_or_none("follows"),
        surface=record.inside("surface"),
        sha256=record.hash("sha256"),
        triangles=record.whole("triangles"),
        sigma_mm=record.not_negative("sigma_mm"),
        caution_mm=record.positive_or_none("caution_mm"),
        warning_mm=record.positive_or_none("warning_mm"),
        distance=distance,
        distance_sha256=None if distance is None else record.hash("distance_sha256"),
    )
