"""Owns what an OpenIGTLink display is shown: frames and the anatomy as messages, in RAS.  Refuses sockets.

A tool whose place is not known is sent far away and said to be missing: a display that knows no status, or that leaves
an object where it was last seen, must not go on showing it beside a nerve.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

import numpy as np

from navsrv.kernel.frames import Array, flip_lps_ras, points_ras_from_lps, rotation_from_quaternion_wxyz
from navsrv.server.scenery import Scenery
from navsrv.wire.guidance import GEOMETRY_STATES, GuidanceFrame
from navsrv.wire.openigtlink import (
    Image,
    Message,
    Metadata,
    PolyData,
    QTData,
    QTDataElement,
    String,
    TData,
    TDataElement,
    Transform,
    encode,
    timestamp_from_ns,
)

GONE_MM: Final = 10_000.0
"""Where the needle is sent when its place is not known, so that it leaves a display that knows no status."""
CONVENTION: Final = "RAS from tip: diag(-1,-1,1,1) on the left of the LPS transform, tool frame untouched"
UTF8: Final = 106
NAME_BYTES: Final = 20


def transform_name(tool: str) -> str:
    """Return the name by which displays know a tool's tip, ``NeedleTipToCT``."""
    return f"{tool}TipToCT"[:NAME_BYTES]


def matrix_ras_from_tip(frame: GuidanceFrame) -> tuple[Array, bool]:
    """Return (F @ T_ct_from_tip (4, 4) in RAS, whether it is valid); far away where it is not."""
    matrix = np.eye(4)
    valid = frame.state in GEOMETRY_STATES and frame.tip_ct_mm is not None and frame.q_wxyz_ct_from_tip is not None
    if valid:
        matrix[:3, :3] = rotation_from_quaternion_wxyz(frame.q_wxyz_ct_from_tip or ())
        matrix[:3, 3] = frame.tip_ct_mm or ()
        return flip_lps_ras(matrix), True
    matrix[2, 3] = GONE_MM
    return matrix, False


def tip_message(frame: GuidanceFrame, version: int = 2) -> Message:
    """Return ``<Tool>TipToCT`` as TRANSFORM, its status in the metadata: header 1 has no room for that."""
    matrix, valid = matrix_ras_from_tip(frame)
    said = (
        Metadata("TransformStatus", "OK" if valid else "MISSING"),
        Metadata("GuidanceState", frame.state),
        Metadata("Convention", CONVENTION),
    )
    return Message(transform_name(frame.tool), _stamp(frame), Transform(matrix), version, said if version == 2 else ())


def tracking_message(stream: str, frames: Iterable[GuidanceFrame], version: int) -> Message:
    """Return all tools as one TDATA or QTDATA; the status of each, and of all together, in the metadata."""
    shown = [(frame, *matrix_ras_from_tip(frame)) for frame in frames]
    names = [transform_name(frame.tool) for frame, _, _ in shown]
    said = (
        Metadata("TransformStatus", "OK" if all(valid for _, _, valid in shown) else "MISSING"),
        *(
            Metadata(f"{name}Status", "OK" if valid else "MISSING")
            for name, (_, _, valid) in zip(names, shown, strict=True)
        ),
        Metadata("Convention", CONVENTION),
    )
    body: TData | QTData
    if stream == "TDATA":
        body = TData(tuple(TDataElement(name, m) for name, (_, m, _) in zip(names, shown, strict=True)))
    else:
        body = QTData(
            tuple(
                QTDataElement(name, m[:3, 3], _q_xyzw_ras_from_tip(frame, valid))
                for name, (frame, m, valid) in zip(names, shown, strict=True)
            )
        )
    stamp = max((_stamp(frame) for frame, _, _ in shown), default=0)
    return Message("navsrv", stamp, body, version, said if version == 2 else ())


def _q_xyzw_ras_from_tip(frame: GuidanceFrame, valid: bool) -> Array:
    """Return the quaternion of F @ R; F is half a turn about z, (w, x, y, z) = (0, 0, 0, 1)."""
    if not valid or frame.q_wxyz_ct_from_tip is None:
        return np.array([0.0, 0.0, 0.0, 1.0])
    w, x, y, z = frame.q_wxyz_ct_from_tip
    return np.array([-y, x, w, -z])


def guidance_message(frame: GuidanceFrame, json: bytes, version: int) -> Message:
    """Return the whole frame as ``Guidance`` (STRING)."""
    return Message("Guidance", _stamp(frame), String(json.decode(), UTF8), version)


def structure_bytes(scenery: Scenery, index: int, version: int) -> bytes:
    """Return one structure as POLYDATA, the very triangles that clearance is computed on, in RAS."""
    mesh = scenery.mesh(index)
    body = PolyData.of_triangles(points_ras_from_lps(mesh.vertices_mm), mesh.triangles)
    name = scenery.case.structures[index].name[:NAME_BYTES]
    return encode(Message(name, timestamp_from_ns(time.time_ns()), body, version))


def volume_bytes(scenery: Scenery, version: int) -> bytes | None:
    """Return the CT as IMAGE in RAS, thinned for displays; None for a case without one."""
    found = scenery.volume()
    if found is None:
        return None
    voxels, matrix = found
    image = Image(voxels.astype(np.int16), flip_lps_ras(matrix), coordinate="RAS")
    return encode(Message("CT", timestamp_from_ns(time.time_ns()), image, version))


def _stamp(frame: GuidanceFrame) -> int:
    return timestamp_from_ns(frame.pose_time_ns if frame.pose_time_ns is not None else time.time_ns())
