"""A small case that is whole: a body with bone and balls, a nerve beside the plan, all known in closed form."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from simulators.scenario.phantom import phantom_case

ENTRY: Final = np.array([12.0, 78.0, -310.0])
TARGET: Final = np.array([6.0, 14.0, -318.0])
NERVE: Final = np.array([22.0, 24.0, -330.0])
NERVE_RADIUS_MM: Final = 3.0
VESSEL: Final = np.array([-60.0, 10.0, -300.0])
BODY: Final = np.array([4.0, 0.0])
BODY_SEMI_MM: Final = np.array([110.0, 78.0])
BONE_SEMI_MM: Final = np.array([26.0, 18.0, 30.0])
SPACING_MM: Final = np.array([1.1, 1.2, 1.3])
ORIGIN_MM: Final = np.array([-120.0, -90.0, -420.0])
SIZE: Final = np.array([225, 150, 160])


@dataclass(frozen=True)
class MiniCase:
    """The folder and what is in it."""

    folder: Path
    nerve_ct_mm: NDArray[np.float64]
    nerve_radius_mm: float


def sphere_mesh(centre: NDArray[np.float64], radius: float) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Return an icosahedron refined four times: facets within 0.4 % of the radius."""
    g = (1.0 + 5.0**0.5) / 2.0
    v = [(-1, g, 0), (1, g, 0), (-1, -g, 0), (1, -g, 0), (0, -1, g), (0, 1, g)]
    v += [(0, -1, -g), (0, 1, -g), (g, 0, -1), (g, 0, 1), (-g, 0, -1), (-g, 0, 1)]
    f = [(0, 11, 5), (0, 5, 1), (0, 1, 7), (0, 7, 10), (0, 10, 11), (1, 5, 9), (5, 11, 4), (11, 10, 2), (10, 7, 6)]
    f += [(7, 1, 8), (3, 9, 4), (3, 4, 2), (3, 2, 6), (3, 6, 8), (3, 8, 9), (4, 9, 5), (2, 4, 11), (6, 2, 10)]
    f += [(8, 6, 7), (9, 8, 1)]
    points = [np.array(p) / np.linalg.norm(p) for p in v]
    for _ in range(4):
        seen: dict[tuple[int, int], int] = {}

        def middle(a: int, b: int, seen: dict[tuple[int, int], int] = seen) -> int:
            key = (min(a, b), max(a, b))
            if key not in seen:
                m = points[a] + points[b]
                points.append(m / np.linalg.norm(m))
                seen[key] = len(points) - 1
            return seen[key]

        finer = []
        for a, b, c in f:
            ab, bc, ca = middle(a, b), middle(b, c), middle(c, a)
            finer += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
        f = finer
    return centre + radius * np.array(points), np.array(f, dtype=np.int32)


def body_hu() -> NDArray[np.int16]:
    """Return (k, j, i) HU: air, a soft elliptic cylinder, a bone ellipsoid about the target, a few dense balls."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in SIZE[::-1]), indexing="ij", sparse=True)
    x, y, z = (ORIGIN_MM[a] + SPACING_MM[a] * index for a, index in enumerate((i, j, k)))
    hu = np.where(((x - BODY[0]) / BODY_SEMI_MM[0]) ** 2 + ((y - BODY[1]) / BODY_SEMI_MM[1]) ** 2 < 1.0, 40, -1000)
    hu = np.broadcast_to(hu, SIZE[::-1]).copy()
    d = [(c - t) / s for c, t, s in zip((x, y, z), TARGET, BONE_SEMI_MM, strict=True)]
    hu[d[0] ** 2 + d[1] ** 2 + d[2] ** 2 < 1.0] = 700
    for centre in ([-30.0, 20.0, -290.0], [45.0, -10.0, -340.0], [30.0, 40.0, -285.0]):
        hu[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 < 100.0] = 1200
    return hu.astype(np.int16)


@pytest.fixture(scope="session")
def mini_case(tmp_path_factory: pytest.TempPathFactory) -> MiniCase:
    """Return a case folder written by hand, so that these tests need no case builder."""
    folder = tmp_path_factory.mktemp("mini") / "case"
    (folder / "surfaces").mkdir(parents=True)
    image = sitk.GetImageFromArray(body_hu())
    image.SetSpacing([float(s) for s in SPACING_MM])
    image.SetOrigin([float(o) for o in ORIGIN_MM])
    sitk.WriteImage(image, str(folder / "ct.mha"))
    structures = []
    parts = {
        "Nerve": ("critical", NERVE, NERVE_RADIUS_MM),
        "Vessel": ("critical", VESSEL, 6.0),
        "Lesion": ("target", TARGET, 5.0),
    }
    for name, (kind, centre, radius) in parts.items():
        vertices, triangles = sphere_mesh(centre, radius)
        path = folder / "surfaces" / f"{name.lower()}.npz"
        np.savez(path, vertices_mm=vertices, triangles=triangles)
        structures.append(
            {
                "name": name,
                "kind": kind,
                "label": None,
                "follows": None,
                "surface": f"surfaces/{path.name}",
                "sha256": sha256(path),
                "triangles": len(triangles),
                "sigma_mm": 0.3,
                "caution_mm": None,
                "warning_mm": None,
            }
        )
    record = {
        "format": "navsrv-case",
        "version": 1,
        "name": "mini",
        "frame": "LPS",
        "units": "mm",
        "created": "2026-01-01T00:00:00Z",
        "software": "tests",
        "provenance": {},
        "ct": {"file": "ct.mha", "sha256": sha256(folder / "ct.mha")},
        "labels": None,
        "structures": structures,
        "plan": {"entry_ct_mm": ENTRY.tolist(), "target_ct_mm": TARGET.tolist(), "corridor_mm": 5.0},
        "primitives": None,
    }
    (folder / "case.json").write_text(json.dumps(record))
    return MiniCase(folder, NERVE, NERVE_RADIUS_MM)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def phantom_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a navsrv home in which the scenarios' phantom is made."""
    home = tmp_path_factory.mktemp("phantom-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAVSRV_HOME", str(home))
        phantom_case()
    return home


@pytest.fixture
def phantom(phantom_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the phantom's folder, with its home as this test's navsrv home."""
    monkeypatch.setenv("NAVSRV_HOME", str(phantom_home))
    return phantom_case()
