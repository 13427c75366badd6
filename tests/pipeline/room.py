"""A small real room: spheres as structures, poses as the bytes that a tracker sends, time as an argument."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from devices.health import FreshnessRule
from devices.openigtlink import SourceSpec, Stamps
from navsrv.anatomy.bvh import DistanceStructure
from navsrv.anatomy.mesh import Mesh
from navsrv.guidance.levels import Limits
from navsrv.guidance.trajectory import PlannedPath
from navsrv.kernel.frames import CT, REFERENCE, Array, Rigid
from navsrv.pipeline.inputs import (
    BytesIn,
    CommandIn,
    EndLink,
    Input,
    LinkDown,
    LinkUp,
    Note,
    RegistrationIn,
    Reply,
    ShellReport,
    Tick,
    input_time_ns,
)
from navsrv.pipeline.pipeline import Pipeline
from navsrv.pipeline.setup import Preset, ReferenceSetup, Setup, SourceSetup, StructureSetup, ToolSetup
from navsrv.wire.guidance import GuidanceFrame
from navsrv.wire.openigtlink import Message, Metadata, Transform, encode, timestamp_from_ns

MS = 1_000_000
EPOCH_NS = 1_700_000_000_000_000_000
"""Device time at monotonic 0."""
IDENTITY = np.eye(4)


def icosphere(centre_mm: Iterable[float], radius_mm: float, subdivisions: int = 2) -> Mesh:
    """Return a sphere of triangles, its corners on the sphere, counter-clockwise from outside."""
    g = (1.0 + 5.0**0.5) / 2.0
    corners = [(-1, g, 0), (1, g, 0), (-1, -g, 0), (1, -g, 0), (0, -1, g), (0, 1, g), (0, -1, -g), (0, 1, -g)]
    corners += [(g, 0, -1), (g, 0, 1), (-g, 0, -1), (-g, 0, 1)]
    points = [np.array(c) / np.linalg.norm(c) for c in corners]
    faces = [(0, 11, 5), (0, 5, 1), (0, 1, 7), (0, 7, 10), (0, 10, 11), (1, 5, 9), (5, 11, 4), (11, 10, 2)]
    faces += [(10, 7, 6), (7, 1, 8), (3, 9, 4), (3, 4, 2), (3, 2, 6), (3, 6, 8), (3, 8, 9), (4, 9, 5)]
    faces += [(2, 4, 11), (6, 2, 10), (8, 6, 7), (9, 8, 1)]
    for _ in range(subdivisions):
        middle: dict[tuple[int, int], int] = {}

        def between(a: int, b: int, middle: dict[tuple[int, int], int] = middle) -> int:
            key = (min(a, b), max(a, b))
            if key not in middle:
                point = points[a] + points[b]
                points.append(point / np.linalg.norm(point))
                middle[key] = len(points) - 1
            return middle[key]

        finer = []
        for a, b, c in faces:
            ab, bc, ca = between(a, b), between(b, c), between(c, a)
            finer += [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
        faces = finer
    return Mesh(np.array(points) * radius_mm + np.array(centre_mm), np.array(faces, dtype=np.int32))


@lru_cache
def sphere(x: float, y: float, z: float, radius_mm: float) -> DistanceStructure:
    return DistanceStructure.build(icosphere((x, y, z), radius_mm))


NERVE = StructureSetup("Nerve", "critical", 0.1, Limits(), sphere(0.0, 0.0, 0.0, 10.0))
VESSEL = StructureSetup("Vessel", "critical", 0.1, Limits(), sphere(0.0, 60.0, 0.0, 5.0))
BONE = StructureSetup("Bone", "bone", 0.1, Limits(), sphere(0.0, 0.0, 0.0, 30.0))


def source(name: str = "main", rate_hz: float = 100.0, trusted: bool = False, **more: Any) -> SourceSetup:
    latency_ns, unknown_ns = (int(1e9 * more.pop(key, 0.0)) for key in ("latency_s", "unknown_latency_s"))
    stamps = more.pop("stamps", Stamps.DEVICE)
    spec = SourceSpec(name, rate_hz, trusted, stamps, latency_ns=latency_ns, unknown_latency_ns=unknown_ns)
    values = {"noise_mm": 0.1, "noise_rad": 1e-4} | more
    return SourceSetup(spec, FreshnessRule.for_rate(rate_hz), **values)


def needle(name: str = "Needle", **more: Any) -> ToolSetup:
    values: dict[str, Any] = {
        "source": "main",
        "transform": f"{name}ToTracker",
        "tip_mm": np.zeros(3),
        "axis": np.array([0.0, 0.0, 1.0]),
        "radius_mm": 1.0,
        "length_mm": 100.0,
        "tip_sigma_mm": 0.1,
        "axis_sigma_rad": 1e-3,
    }
    return ToolSetup(name, **(values | more))


def make_setup(**more: Any) -> Setup:
    """Return a room with one needle, a reference and three spheres; no registration unless asked for."""
    values: dict[str, Any] = {
        "session": "test",
        "sources": (source(),),
        "tools": (needle(),),
        "reference": ReferenceSetup("main", "ReferenceToTracker"),
        "structures": (NERVE, VESSEL, BONE),
        "path": PlannedPath(np.array([0.0, 0.0, 150.0]), np.array([0.0, 0.0, 50.0]), 3.0),
    }
    return Setup(**(values | more))


def preset(matrix: Array = IDENTITY) -> Preset:
    return Preset("bench", Rigid.from_matrix(CT, REFERENCE, matrix, np.eye(6) * 1e-6), 0.5)


def at(x: float, y: float, z: float) -> Array:
    """Return the (4, 4) of a tool at a point, its +z pointing down CT's z (the shaft above the tip)."""
    matrix = np.diag([1.0, -1.0, -1.0, 1.0])
    matrix[:3, 3] = x, y, z
    return matrix


def pose_bytes(name: str, matrix: Array, time_ns: int | None, status: str | None = "OK") -> bytes:
    """Return a TRANSFORM; ``time_ns`` None sends stamp 0."""
    stamp = 0 if time_ns is None else timestamp_from_ns(time_ns)
    metadata = () if status is None else (Metadata("TransformStatus", status),)
    return encode(Message(name, stamp, Transform(matrix), metadata=metadata))


class Room:
    """A pipeline, the inputs it was given and what came out."""

    def __init__(self, setup: Setup, connected: bool = True) -> None:
        self.setup = setup
        self.pipeline = Pipeline(setup)
        self.now_ns = 1_000_000_000
        self.inputs: list[Input] = []
        self.outputs: list[Any] = []
        if connected:
            for one in setup.sources:
                self.give(LinkUp(self.now_ns, one.spec.name))

    def give(self, item: Input) -> list[GuidanceFrame]:
        """Handle one input; return its frames."""
        assert input_time_ns(item) >= self.now_ns or not self.inputs
        self.now_ns = input_time_ns(item)
        self.inputs.append(item)
        found = self.pipeline.handle(item)
        self.outputs += found
        return [f for f in found if isinstance(f, GuidanceFrame)]

    @property
    def frames(self) -> list[GuidanceFrame]:
        return [o for o in self.outputs if isinstance(o, GuidanceFrame)]

    @property
    def notes(self) -> list[Note]:
        return [o for o in self.outputs if isinstance(o, Note)]

    @property
    def ended(self) -> list[EndLink]:
        return [o for o in self.outputs if isinstance(o, EndLink)]

    def wait(self, ms: float) -> None:
        """Let time pass without an input."""
        self.now_ns += int(ms * MS)

    def read(self, *parts: bytes, source: str = "main") -> list[GuidanceFrame]:
        """Give one read of a source."""
        return self.give(BytesIn(source, self.now_ns, EPOCH_NS + self.now_ns, b"".join(parts)))

    def pose(self, name: str, matrix: Array = IDENTITY, status: str | None = "OK", late_ms: float = 0.0) -> bytes:
        """Return the bytes of a pose that was taken now, or ``late_ms`` ago."""
        return pose_bytes(f"{name}ToTracker", matrix, EPOCH_NS + self.now_ns - int(late_ms * MS), status)

    def pair(self, matrix: Array, reference: Array = IDENTITY) -> GuidanceFrame:
        """Give one read with a reference and a needle of the same stamp; return the one frame."""
        (frame,) = self.read(self.pose("Reference", reference), self.pose("Needle", matrix))
        return frame

    def down(self, reason: str = "gone", source: str = "main") -> list[GuidanceFrame]:
        return self.give(LinkDown(self.now_ns, source, reason))

    def up(self, source: str = "main") -> list[GuidanceFrame]:
        return self.give(LinkUp(self.now_ns, source))

    def tick(self) -> list[GuidanceFrame]:
        return self.give(Tick(self.now_ns))

    def tick_when_due(self) -> list[GuidanceFrame]:
        """Give the tick that the pipeline asks for, at the time it asks for."""
        self.now_ns = max(self.now_ns, self.pipeline.next_due_ns())
        return self.tick()

    def command(self, op: str, **args: Any) -> Reply:
        self.give(CommandIn(self.now_ns, f"c{len(self.inputs)}", op, args, "operator"))
        (reply,) = [o for o in self.outputs if isinstance(o, Reply) and o.id == f"c{len(self.inputs) - 1}"]
        return reply

    def propose(self, name: str = "r1", matrix: Array = IDENTITY, **more: Any) -> list[GuidanceFrame]:
        values: dict[str, Any] = {
            "method": "landmarks",
            "T_ct_from_ref": tuple(matrix.ravel().tolist()),
            "covariance": tuple((np.eye(6) * 1e-6).ravel().tolist()),
            "tre_mm": 0.8,
            "verdict": "accept",
            "reason": "good",
        }
        return self.give(RegistrationIn(self.now_ns, name, **(values | more)))

    def report(self, missed: int, lost: int) -> list[GuidanceFrame]:
        return self.give(ShellReport(self.now_ns, missed, lost))


def rot(axis: str, degrees: float) -> Array:
    """Return the (3, 3) rotation about x, y or z, written out."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rows = {"x": [[1, 0, 0], [0, c, -s], [0, s, c]], "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]]}
    return np.array(rows.get(axis, [[c, -s, 0], [s, c, 0], [0, 0, 1]]))
