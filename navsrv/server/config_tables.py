"""Owns the tables of the configuration: each key, its bounds, its default.  Refuses to hold them together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from navsrv.guidance.bending import LOAD_N
from navsrv.kernel.checking import rule
from navsrv.pipeline.setup import GAUGE_MM
from navsrv.server.config_dicom import DicomConfig, DicomSourceConfig
from navsrv.server.config_doubt import TissueConfig
from navsrv.server.config_grabber import GrabberConfig
from navsrv.server.config_ndi import NdiConfig


@dataclass(frozen=True, slots=True)
class PortsConfig:
    """Ports, all on ``host``; 0 means any free port."""

    host: str = "127.0.0.1"
    openigtlink: int = rule(18944, low=0, high=65535)
    openigtlink_1: int | None = rule(None, low=0, high=65535)
    """For displays that know header version 1 only and say nothing; off unless set."""
    devices: int = rule(18945, low=0, high=65535)
    zmq: int = rule(18950, low=0, high=65535)
    commands: int = rule(18951, low=0, high=65535)
    http: int = rule(8765, low=0, high=65535)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The case and what holds for the whole server."""

    case: str
    deadline_ms: float = rule(10.0, low=0.1, high=1000.0)
    loop_cpu: int | None = rule(None, low=0, high=1023)
    """The core that the real-time loop keeps to; any, unless set.  Worth it where that core is kept free for it."""


@dataclass(frozen=True, slots=True)
class TrackerConfig:
    """A pose source.

    ``client``: the server connects to host:port.  ``listener``: the device pushes to the devices port.
    """

    rate_hz: float = rule(low=0.5, high=5000.0)
    connect: Literal["client", "listener"] = "client"
    host: str = "127.0.0.1"
    port: int = rule(18944, low=0, high=65535)
    trusted: bool = False
    stamps: Literal["device", "receipt"] = "device"
    names: dict[str, str] = rule(factory=dict)
    stream: Literal["TDATA", "QTDATA"] | None = None
    """What to ask for with STT_ at the declared rate, of a source that sends nothing unasked."""
    header: Literal[1, 2] = 2
    """The header version to speak to it: 1 for a source that loses its place at a version that it does not know."""
    ndi: NdiConfig | None = None
    """Set for a tracker that speaks NDI's Combined API in place of OpenIGTLink."""
    noise_mm: float = rule(0.25, low=0.0, high=20.0)
    noise_deg: float = rule(0.05, low=0.0, high=20.0)
    latency_ms: float | None = rule(None, low=0.0, high=2000.0)
    latency_sigma_ms: float = rule(5.0, low=0.0, high=2000.0)
    unknown_latency_ms: float = rule(50.0, low=0.0, high=2000.0)
    frozen_ms: float | None = rule(None, low=100.0, high=10_000.0)
    """A pose that repeats to the last bit for so long under new stamps is stale; never, unless set: what has no noise
    repeats, too."""


@dataclass(frozen=True, slots=True)
class ZoneConfig:
    """A spheroid at the tip that is measured against every structure, such as what an ablation is expected to destroy.

    Half its extent across the axis and along it; ``ahead_mm`` from the tip to its centre, negative for behind.  It has
    levels in the phase ``ablation`` only.
    """

    across_mm: float = rule(low=0.5, high=100.0)
    along_mm: float = rule(low=0.5, high=100.0)
    ahead_mm: float = rule(0.0, low=-200.0, high=200.0)


@dataclass(frozen=True, slots=True)
class InsertConfig:
    """What goes through a cannula until its depth stop meets the hub.

    ``stop_mm``: from the insert's tip to its depth stop; it reaches beyond the cannula by ``stop_mm`` less the
    cannula's ``length_mm``.  ``sigma_mm``: of its tip against the cannula's, each axis.
    """

    stop_mm: float = rule(low=0.0, high=800.0)
    sigma_mm: float = rule(0.3, low=0.0, high=20.0)
    zone: ZoneConfig | None = None


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """A temperature probe: a reading of a device that pushes OpenIGTLink SENSOR, or sends it on a tracker's link.

    Limits in degrees Celsius, hot and cold.  Defaults are defaults: confirm them locally.
    """

    device: str
    tracker: str = ""
    """On whose link its messages come; empty for a device that pushes to the devices port."""
    channel: int = rule(0, low=0, high=254)
    rate_hz: float = rule(1.0, low=0.01, high=1000.0)
    unit: Literal["celsius", "kelvin"] = "celsius"
    caution_c: float = rule(42.0, low=-210.0, high=400.0)
    warning_c: float = rule(45.0, low=-210.0, high=400.0)
    cold_caution_c: float = rule(15.0, low=-210.0, high=400.0)
    cold_warning_c: float = rule(10.0, low=-210.0, high=400.0)


@dataclass(frozen=True, slots=True)
class ToolConfig:
    """A tracked tool.

    ``needle`` is guided; ``reference`` is fixed to the patient; ``witness`` is a second body fixed to patient or table,
    that the reference is watched against.  A needle is tracked (``tracker``, ``transform``), or shown by ``images``.
    """

    tracker: str = ""
    transform: str = ""
    images: tuple[str, ...] = rule(())
    """Imaging sources that show a needle in place of a tracker: its state is SNAPSHOT, never live."""
    role: Literal["needle", "reference", "witness"] = "needle"
    tip_mm: tuple[float, ...] = rule((0.0, 0.0, 0.0), length=3, low=-2000.0, high=2000.0)
    axis: tuple[float, ...] = rule((0.0, 0.0, 1.0), length=3)
    gauge: int | None = rule(None, low=8, high=22)
    diameter_mm: float | None = rule(None, low=0.1, high=20.0)
    length_mm: float = rule(150.0, low=0.0, high=500.0)
    tip_sigma_mm: float = rule(0.3, low=0.0, high=20.0)
    axis_sigma_deg: float = rule(0.2, low=0.0, high=20.0)
    bending_load_n: float = rule(LOAD_N, low=0.0, high=10.0)
    bending_sigma_mm: float | None = rule(None, low=0.0, high=100.0)
    """In place of what load, length and diameter make; 0 for a tool that is tracked at its tip."""
    bone: str | None = None
    """Of a reference: the bone of the case that it is fixed to; none takes all bones for one."""
    zone: ZoneConfig | None = None
    inserts: dict[str, InsertConfig] = rule(factory=dict)
    """Of a cannula: what can be in it; the first is in it at the start."""

    @property
    def radius_mm(self) -> float:
        """Outer radius of the shaft."""
        if self.diameter_mm is not None:
            return self.diameter_mm / 2.0
        return GAUGE_MM[self.gauge] / 2.0 if self.gauge is not None else 0.0


@dataclass(frozen=True, slots=True)
class EncodersConfig:
    """A C-arm's encoders on a serial line (docs/carm_encoders.md), and its geometry: a table, or the drawing.

    ``device`` and ``table`` are paths, the latter as ``navsrv calibrate carm`` wrote it; ``pixel_mm`` is the spacing
    that the images carry.
    """

    device: str
    baud: int = rule(115200, low=1200, high=4_000_000)
    rate_hz: float = rule(30.0, low=0.5, high=1000.0)
    latency_ms: float = rule(30.0, low=0.0, high=2000.0)
    table: str | None = None
    source_iso_mm: float = rule(530.0, low=100.0, high=3000.0)
    sdd_mm: float = rule(1020.0, low=200.0, high=5000.0)
    pixel_mm: float = rule(0.58, low=0.01, high=10.0)
    principal_px: tuple[float, ...] = rule((255.5, 255.5), length=2, low=-10_000.0, high=10_000.0)


@dataclass(frozen=True, slots=True)
class ImagingConfig:
    """A C-arm or O-arm that pushes images and poses to the devices port, or sends its images by DICOM.

    ``image`` is the device name of its IMAGE, by DICOM the AE title that it calls with; ``pose`` is the device name of
    the image's pose in the tracker's frame, which comes to the devices port either way.
    """

    kind: Literal["volume", "projection"]
    image: str
    pose: str
    tracker: str = ""
    """The tracker that sees the body of ``pose`` on the device; without it, the pose comes to the devices port."""
    detector: str | None = None
    trusted: bool = False
    register: bool = True
    bright_air: bool = True
    """Of X-rays: air is bright and metal dark, as detectors give it."""
    sigma_mm: float = rule(0.3, low=0.0, high=20.0)
    sigma_deg: float = rule(0.05, low=0.0, high=20.0)
    """One sigma, each axis, of where an image is said to be: the calibration of the device."""
    encoders: EncodersConfig | None = None
    """Of a C-arm whose ``pose`` (and ``detector``) come by a serial line."""
    T_pose_from_image: tuple[tuple[float, ...], ...] | None = rule(None, length=4, low=-1e5, high=1e5)
    """Where the image's frame (of X-rays the C-arm's) is in that of ``pose``: calibrated, of a body on the device."""
    T_carm_from_image: tuple[tuple[float, ...], ...] | None = rule(None, length=4, low=-1e5, high=1e5)
    """Of X-rays: where the detector's millimetres are in the C-arm's frame, where no device tells it."""
    connect: Literal["openigtlink", "dicom", "grabber"] = "openigtlink"
    dicom: DicomSourceConfig = rule(factory=DicomSourceConfig)
    grabber: GrabberConfig | None = None
    """Of a C-arm whose pictures come by its video output; ``image`` is then what they are called."""


@dataclass(frozen=True, slots=True)
class PresetConfig:
    """An accepted registration as numbers; only for benchmarks (``method`` reads ``bench``)."""

    method: Literal["bench"]
    T_ct_from_ref: tuple[tuple[float, ...], ...] = rule(length=4, low=-1e5, high=1e5)
    tre_mm: float = rule(0.0, low=0.0, high=20.0)


@dataclass(frozen=True, slots=True)
class RegistrationConfig:
    """How registrations come about, and how long (min) one is used before it must be confirmed; for ever unless set."""

    preset: PresetConfig | None = None
    inflation: dict[str, float] = rule(factory=dict, low=1.0, high=20.0)
    """Factor on the sigma that a registration says of itself, by method, in place of the default."""
    max_age_min: float | None = rule(None, low=0.1, high=1440.0)
    still_patient: bool = False
    """No reference is tracked: the patient lies still, and the frame that the images' poses are told in stands in."""
    pair_s: float = rule(600.0, low=1.0, high=3600.0)
    """Two X-rays farther apart in time are not held together."""


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """Alarm thresholds of structures, distances on the lower bound.  Defaults are defaults: confirm them locally.

    Speed, time and doubt count within ``near_mm`` only.
    """

    caution_mm: float = rule(10.0, low=0.0, high=100.0)
    warning_mm: float = rule(5.0, low=0.0, high=100.0)
    hysteresis_mm: float = rule(0.5, low=0.0, high=10.0)
    clear_after_ms: float = rule(500.0, low=0.0, high=60000.0)
    near_mm: float = rule(30.0, low=0.0, high=1000.0)
    closing_mm_s: float = rule(20.0, low=1.0, high=1000.0)
    contact_s: float = rule(1.0, low=0.0, high=60.0)
    margin_mm: float = rule(5.0, low=0.1, high=100.0)


@dataclass(frozen=True, slots=True)
class SiteConfig:
    """Alarm limits that are not of one structure (docs/alarms.md).  Defaults are defaults: confirm them locally."""

    target_reached_mm: float = rule(2.0, low=0.0, high=50.0)
    corridor_watch_mm: float = rule(30.0, low=0.0, high=500.0)
    corridor_hysteresis_mm: float = rule(0.2, low=0.0, high=10.0)
    brief_loss_ms: float = rule(1000.0, low=0.0, high=5000.0)
    away_mm: float = rule(100.0, low=20.0, high=5000.0)
    rate_fraction: float = rule(0.8, low=0.1, high=1.0)
    jump_mm: float = rule(5.0, low=0.5, high=100.0)
    gap_mm: float = rule(20.0, low=0.5, high=1000.0)
    moved_mm: float = rule(2.0, low=0.2, high=50.0)
    deadline_misses: int = rule(3, low=1, high=1000)
    display_gone: bool = True


@dataclass(frozen=True, slots=True)
class AlarmsConfig:
    """Limits for all critical structures, those of single ones by name, and those of the room."""

    limits: LimitsConfig = rule(factory=LimitsConfig)
    structures: dict[str, LimitsConfig] = rule(factory=dict)
    site: SiteConfig = rule(factory=SiteConfig)


@dataclass(frozen=True, slots=True)
class RecordingConfig:
    """Whether inputs and outputs are recorded, and where (default: recordings under the navsrv home)."""

    on: bool = True
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Config:
    """One server's whole configuration."""

    server: ServerConfig
    tools: dict[str, ToolConfig]
    trackers: dict[str, TrackerConfig] = rule(factory=dict)
    ports: PortsConfig = rule(factory=PortsConfig)
    imaging: dict[str, ImagingConfig] = rule(factory=dict)
    probes: dict[str, ProbeConfig] = rule(factory=dict)
    dicom: DicomConfig | None = None
    registration: RegistrationConfig = rule(factory=RegistrationConfig)
    alarms: AlarmsConfig = rule(factory=AlarmsConfig)
    tissue: TissueConfig = rule(factory=TissueConfig)
    recording: RecordingConfig = rule(factory=RecordingConfig)
