"""Owns what the pipeline is built from: plain values, parsed and checked by the server before the first pose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from devices.health import FreshnessRule
from devices.ndi_readings import NdiSpec
from devices.openigtlink import SourceSpec, parse_transform_name
from devices.thermometer import ProbeSpec
from navsrv.anatomy.bvh import DistanceStructure
from navsrv.guidance.conditions import SiteLimits
from navsrv.guidance.levels import Limits
from navsrv.guidance.trajectory import PlannedPath
from navsrv.kernel.errors import ConfigError
from navsrv.kernel.frames import Array, Frame, Rigid


@dataclass(frozen=True, slots=True)
class SourceSetup:
    """A pose source, its freshness rule and its noise."""

    spec: SourceSpec | NdiSpec
    rule: FreshnessRule
    noise_mm: float
    noise_rad: float


@dataclass(frozen=True, slots=True)
class ZoneSetup:
    """A spheroid about the shaft's axis, such as what an ablation is expected to destroy.

    Attributes
    ----------
    across_mm, along_mm : float
        Half its extent across the axis and along it.
    ahead_mm : float
        How far its centre lies ahead of the tip; negative for behind.
    """

    across_mm: float
    along_mm: float
    ahead_mm: float


@dataclass(frozen=True, slots=True)
class InsertSetup:
    """What goes through a cannula until its depth stop meets the hub.

    Attributes
    ----------
    reach_mm : float
        How far its tip then lies ahead of the cannula's.
    sigma_mm : float
        Of its tip against the cannula's, each axis.
    zone : ZoneSetup or None
        What it is expected to destroy.
    """

    name: str
    reach_mm: float
    sigma_mm: float
    zone: ZoneSetup | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ToolSetup:
    """A guided instrument.

    Attributes
    ----------
    name, source, transform : str
    tip_mm : (3,)
        Tip in the frame of the tracked body.
    axis : (3,)
        Unit vector from hub to tip in the frame of the tracked body.
    radius_mm, length_mm : float
        Of the shaft, from the tip back towards the hub.
    tip_sigma_mm, axis_sigma_rad : float
        From the tool's calibration.
    bending_sigma_mm : float
        Of the tip, across the axis, when the shaft is bent.
    zone : ZoneSetup or None
        What is measured as a zone at the tip.
    inserts : tuple of InsertSetup
        Of a cannula: what can be in it; the first is in it at the start.
    """

    name: str
    source: str
    transform: str
    tip_mm: Array
    axis: Array
    radius_mm: float
    length_mm: float
    tip_sigma_mm: float
    axis_sigma_rad: float
    bending_sigma_mm: float = 0.0
    zone: ZoneSetup | None = None
    inserts: tuple[InsertSetup, ...] = ()


@dataclass(frozen=True, slots=True)
class ReferenceSetup:
    """The reference body fixed to the patient."""

    source: str
    transform: str


@dataclass(frozen=True, slots=True, eq=False)
class StructureSetup:
    """One structure of the case as guidance needs it."""

    name: str
    kind: str
    sigma_mm: float
    limits: Limits
    distance: DistanceStructure
    motion_mm: float = 0.0
    """One sigma of its motion against the bone that the reference is fixed to."""
    turned_mm: float = 0.0
    """The same while it has not been seen since the patient was turned; 0 for what cannot move against bone."""


@dataclass(frozen=True, slots=True)
class ProbeSetup:
    """A temperature probe and its limits in degrees Celsius, hot and cold."""

    spec: ProbeSpec
    caution_c: float
    warning_c: float
    cold_caution_c: float
    cold_warning_c: float


@dataclass(frozen=True, slots=True, eq=False)
class Preset:
    """An accepted registration from the configuration; only a benchmark may have one."""

    method: str
    T_ct_from_ref: Rigid
    tre_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """Everything that the pipeline knows before the first input.

    Raises
    ------
    ConfigError
        Poses that could never meet: a name that is no ``AToB``, a tool tracked in another frame than the reference,
        one pose for two; no tool at all.
    """

    session: str
    sources: tuple[SourceSetup, ...]
    tools: tuple[ToolSetup, ...]
    reference: ReferenceSetup | None
    structures: tuple[StructureSetup, ...]
    path: PlannedPath | None
    preset: Preset | None = None
    idle_frame_ns: int = 100_000_000
    max_burst: int = 16
    """Poses of one tool in one read that each get a frame; older ones are skipped and counted."""
    pose_history: int = 1500
    site: SiteLimits = field(default_factory=SiteLimits)
    witness: ReferenceSetup | None = None
    """A second body fixed to the patient or the table, that the reference is watched against."""
    registration_max_age_ns: int | None = None
    inflation: Mapping[str, float] = field(default_factory=dict)
    """Factor on the sigma that a registration says of itself, by its method; 1 where none is given."""
    snapshots: tuple[ToolSetup, ...] = ()
    """Tools that only still images show: of no source; tip and axis come with each image."""
    probes: tuple[ProbeSetup, ...] = ()
    bodies: tuple[ReferenceSetup, ...] = ()
    """Bodies on imaging devices, whose poses place their images."""
    remembered_s: float = 0.0
    """How long poses are kept, thinned, for images that arrive long after they were taken."""
    tissue_seen: bool = True
    """Whether soft tissue lay as it does now when the CT was made."""

    def __post_init__(self) -> None:
        faults: list[str] = []
        if not self.tools and not self.snapshots:
            faults.append("tools: no needle; expected at least one")
        streams = [(f"tools.{t.name}", t.source, t.transform) for t in self.tools]
        if self.reference is not None:
            streams.append(("the reference", self.reference.source, self.reference.transform))
        if self.witness is not None:
            streams.append(("the witness", self.witness.source, self.witness.transform))
        streams += [(f"the body {b.transform}", b.source, b.transform) for b in self.bodies]
        taken: dict[tuple[str, str], str] = {}
        into: dict[Frame, str] = {}
        for who, source, transform in streams:
            if (source, transform) in taken:
                faults.append(f"{who}: {transform!r} is already the pose of {taken[source, transform]}")
            taken[source, transform] = who
            try:
                into.setdefault(frames_of(transform)[0], f"{who} in {transform!r}")
            except ConfigError as error:
                faults += [f"{who}: {fault}" for fault in error.faults]
        if len(into) > 1:
            faults.append(f"poses that never meet: {', '.join(into.values())}; expected all in one tracker's frame")
        if faults:
            raise ConfigError(faults)


def frames_of(transform: str) -> tuple[Frame, Frame]:
    """Return (to, from) of a pose's name; ConfigError if it is not one."""
    frames = parse_transform_name(transform)
    if frames is None:
        raise ConfigError([f"transform {transform!r}; expected a name such as 'NeedleToTracker'"])
    return frames


GAUGE_MM: Final = {
    8: 4.19,
    10: 3.40,
    11: 3.05,
    12: 2.77,
    13: 2.41,
    14: 2.11,
    15: 1.83,
    16: 1.65,
    17: 1.47,
    18: 1.27,
    19: 1.07,
    20: 0.91,
    21: 0.82,
    22: 0.72,
}
"""Nominal outer diameter (mm) of a needle gauge (Stubs iron wire; ISO 9626 nominal sizes)."""
