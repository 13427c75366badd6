"""Owns the anatomy as displays draw it: meshes, a CT small enough for a browser, and the description of the case."""

from __future__ import annotations

import struct
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.anatomy.case import Case, Volume
from navsrv.anatomy.mesh import Mesh
from navsrv.kernel.frames import Array
from navsrv.server.config_tables import Config
from navsrv.server.setup import limits_of

DISPLAY_VOXELS: Final = 192
"""Longest side of the CT sent to a browser, in voxels."""


class Scenery:
    """Read once per need and kept; nothing here changes during a session."""

    def __init__(self, case: Case, config: Config) -> None:
        self.case = case
        self.config = config
        self._volume: tuple[NDArray[np.int16], Volume, int] | None = None
        self.mesh = cache(self._mesh)
        self.mesh_bytes = cache(self._mesh_bytes)

    def _mesh(self, index: int) -> Mesh:
        return self.case.mesh(self.case.structures[index].name)

    def _mesh_bytes(self, index: int) -> bytes:
        """Return counts (2 x uint32), vertices (float32, LPS mm), indices (uint32), little-endian."""
        mesh = self._mesh(index)
        head = struct.pack("<II", len(mesh.vertices_mm), len(mesh.triangles))
        return head + mesh.vertices_mm.astype("<f4").tobytes() + mesh.triangles.astype("<u4").tobytes()

    def volume(self) -> tuple[NDArray[np.int16], Array] | None:
        """Return (voxels (k, j, i) int16, index-to-CT matrix (4, 4)) thinned by whole strides; None without a CT."""
        if self.case.ct_file is None:
            return None
        if self._volume is None:
            ct = self.case.ct()
            stride = max(1, -(-max(ct.voxels.shape) // DISPLAY_VOXELS))
            thin = np.clip(ct.voxels[::stride, ::stride, ::stride], -32768, 32767).astype("<i2")
            self._volume = (np.ascontiguousarray(thin), ct, stride)
        voxels, ct, stride = self._volume
        matrix = np.eye(4)
        matrix[:3, :3] = ct.direction * (ct.spacing_mm * stride)
        matrix[:3, 3] = ct.origin_mm
        return voxels, matrix

    def description(self) -> dict[str, Any]:
        """Return what a display needs to know of the case before the first frame."""
        plan = self.case.plan
        return {
            "name": self.case.name,
            "structures": [self._structure(i) for i in range(len(self.case.structures))],
            "plan": None
            if plan is None
            else {
                "entry_ct_mm": plan.entry_ct_mm.tolist(),
                "target_ct_mm": plan.target_ct_mm.tolist(),
                "corridor_mm": plan.corridor_mm,
            },
            "volume": self._volume_description(),
            "tools": [
                {"name": name, "gauge": t.gauge, "diameter_mm": 2 * t.radius_mm, "length_mm": t.length_mm}
                for name, t in self.config.tools.items()
                if t.role == "needle"
            ],
        }

    def _structure(self, index: int) -> dict[str, Any]:
        structure = self.case.structures[index]
        limits = limits_of(self.config, structure)
        return {
            "name": structure.name,
            "kind": structure.kind.value,
            "mesh": f"/api/mesh/{index}",
            "triangles": structure.triangles,
            "caution_mm": limits.caution_mm,
            "warning_mm": limits.warning_mm,
        }

    def _volume_description(self) -> dict[str, Any] | None:
        found = self.volume()
        if found is None:
            return None
        voxels, matrix = found
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        return {
            "url": "/api/volume",
            "shape": list(voxels.shape),
            "spacing_mm": spacing.tolist(),
            "origin_ct_mm": matrix[:3, 3].tolist(),
            "direction": (matrix[:3, :3] / spacing).ravel().tolist(),
            "dtype": "int16",
        }
