"""Owns the configuration: TOML, parsed once into frozen types; unknown keys refused; every fault listed at once."""

from __future__ import annotations

import math
import os
import socket
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from devices.openigtlink import parse_transform_name
from navsrv.guidance.bending import LOAD_N
from navsrv.kernel.checking import Checker, rule
from navsrv.kernel.errors import ConfigError
from navsrv.kernel.frames import RIGIDITY_TOLERANCE, rotation_defect
from navsrv.pipeline.setup import GAUGE_MM
from navsrv.server.config_dicom import PORT as DICOM_PORT
from navsrv.server.config_dicom import DicomConfig, DicomSourceConfig, check_dicom
from navsrv.server.config_doubt import TissueConfig, check_inflation
from navsrv.server.config_grabber import GrabberConfig, check_grabbers, located
from navsrv.server.config_ndi import NdiConfig, check_ndi, inlined, poses_of

T = TypeVar("T")


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


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a file with ``key=value`` overrides applied.

    Raises
    ------
    ConfigError
        With every fault: file, key, what is wrong, what would be right.
    """
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{path}: there is no such file; expected a TOML configuration"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read ({error}); expected a TOML configuration"]) from None
    except RecursionError:
        raise ConfigError([f"{path}: nested too deeply; expected tables as in examples/demo.toml"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: not TOML: {error}; expected a complete TOML file"]) from None
    checker = Checker(str(path))
    for override in overrides:
        _apply(checker, data, override)
    config = checker.table(Config, data, "")
    _cross_check(checker, data, path.parent)
    if checker.faults or config is None:
        raise ConfigError(checker.faults)
    trackers = {
        name: tracker if tracker.ndi is None else replace(tracker, ndi=inlined(tracker.ndi, path.parent))
        for name, tracker in config.trackers.items()
    }
    imaging = {
        name: source if source.grabber is None else replace(source, grabber=located(source.grabber, path.parent))
        for name, source in config.imaging.items()
    }
    return replace(config, trackers=trackers, imaging=imaging)


def resolved(config: Config) -> Config:
    """Return the configuration with every tracker's host as an address: the loop must never wait for a name.

    Raises
    ------
    ConfigError
        A name that has no address.
    """
    trackers = {}
    for name, tracker in config.trackers.items():
        address = tracker.host
        if tracker.connect == "client":
            try:
                found = socket.getaddrinfo(tracker.host, None, socket.AF_INET, socket.SOCK_STREAM)
                address = str(found[0][4][0])
            except OSError:
                wrong = f"trackers.{name}.host: {tracker.host!r} has no IPv4 address"
                raise ConfigError([f"{wrong}; expected a host's name or address"]) from None
        trackers[name] = replace(tracker, host=address)
    return replace(config, trackers=trackers)


def _apply(checker: Checker, data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        checker.fault(f"--set {override}", "not an assignment", "key=value, such as trackers.main.port=18944")
        return
    table = data
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            checker.fault(f"--set {override}", f"{part!r} is not a table", "a key of the configuration")
            return
    table[parts[-1]] = _literal(text.strip())


def _literal(text: str) -> Any:
    """Return a value as TOML would read it; a bare word is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _sound(cls: type[T], table: Any) -> dict[str, T]:
    """Return the entries of a table of tables that are right by themselves; the others' faults are noted already."""
    entries = table.items() if isinstance(table, dict) else ()
    made = {name: Checker("").table(cls, entry, "") for name, entry in entries}
    return {name: entry for name, entry in made.items() if entry is not None}


def _cross_check(checker: Checker, data: dict[str, Any], folder: Path) -> None:
    """Note what only shows when parts are held together, for all parts that are right by themselves."""
    trackers, tools = _sound(TrackerConfig, data.get("trackers")), _sound(ToolConfig, data.get("tools"))
    if not data.get("trackers") and not all(tool.images for tool in tools.values()):
        checker.fault("trackers", "none", "at least one table such as [trackers.main]")
    named = {} if not isinstance(data.get("tools"), dict) else data["tools"]
    roles = {name: tool.get("role", "needle") for name, tool in named.items() if isinstance(tool, dict)}
    for role in ("reference", "witness"):
        bearers = [name for name, its in roles.items() if its == role]
        if len(bearers) > 1:
            words = "witnesses" if role == "witness" else "references"
            checker.fault("tools", f"{len(bearers)} {words} ({', '.join(bearers)})", "at most one")
    if "needle" not in roles.values():
        checker.fault("tools", "no needle", 'at least one tool with role = "needle"')
    for name, tool in tools.items():
        if tool.images:
            check_pictured(checker, f"tools.{name}", tool, data)
        else:
            _check_tool(checker, f"tools.{name}", tool, data.get("trackers") or {})
    check_still(checker, data, "reference" in roles.values(), any(tool.images for tool in tools.values()))
    _check_streams(checker, {name: tool for name, tool in tools.items() if not tool.images})
    for name, tracker in trackers.items():
        if tracker.connect == "client" and not tracker.host.strip():
            checker.fault(f"trackers.{name}.host", "empty", "a host's name or address")
        if tracker.ndi is not None:
            check_ndi(checker, f"trackers.{name}.ndi", tracker.ndi, folder)
            _check_ndi_use(checker, name, tracker, tools)
    for name, imaging in _sound(ImagingConfig, data.get("imaging")).items():
        check_place(checker, f"imaging.{name}", imaging)
        if imaging.tracker and imaging.tracker not in (data.get("trackers") or {}):
            right = "one of " + (", ".join(data.get("trackers") or {}) or "none")
            checker.fault(f"imaging.{name}.tracker", f"{imaging.tracker!r} is not configured", right)
        elif imaging.tracker in trackers:
            _check_body(checker, f"imaging.{name}.pose", imaging, trackers[imaging.tracker], tools)
        if imaging.encoders is not None and imaging.kind != "projection":
            checker.fault(f"imaging.{name}.encoders", f"encoders of a {imaging.kind}", 'kind = "projection"')
        table = None if imaging.encoders is None else imaging.encoders.table
        if table is not None and not Path(table).expanduser().is_file():
            checker.fault(
                f"imaging.{name}.encoders.table", f"{table}: no such file", "what navsrv calibrate carm wrote"
            )
    check_grabbers(checker, _sound(ImagingConfig, data.get("imaging")), folder)
    probes = _sound(ProbeConfig, data.get("probes"))
    check_probes(checker, probes)
    for name, probe in probes.items():
        if probe.tracker and probe.tracker not in (data.get("trackers") or {}):
            right = "one of " + (", ".join(data.get("trackers") or {}) or "none")
            checker.fault(f"probes.{name}.tracker", f"{probe.tracker!r} is not configured", right)
        elif probe.tracker in trackers and trackers[probe.tracker].ndi is not None:
            checker.fault(f"probes.{name}.tracker", f"{probe.tracker!r} speaks no OpenIGTLink", "a tracker that does")
        elif probe.tracker in trackers and trackers[probe.tracker].connect == "listener":
            checker.fault(f"probes.{name}.tracker", f"{probe.tracker!r} pushes to the devices port", "no such key")
    _check_alarms(checker, data.get("alarms"))
    check_inflation(checker, (data.get("registration") or {}).get("inflation"))
    server = Checker("").table(ServerConfig, data.get("server", {}), "")
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
    if server is not None and server.loop_cpu is not None and server.loop_cpu not in usable:
        found = ", ".join(map(str, sorted(usable))) or "none on this system"
        checker.fault("server.loop_cpu", f"{server.loop_cpu} cannot be used here", f"one of {found}")
    registration = _sound(RegistrationConfig, {"registration": data.get("registration")}).get("registration")
    preset = None if registration is None else registration.preset
    if preset is not None and not _is_rigid(preset.T_ct_from_ref):
        right = "four rows of four numbers, the last 0, 0, 0, 1"
        checker.fault("registration.preset.T_ct_from_ref", "not a rigid motion", right)
    ports = Checker("").table(PortsConfig, data.get("ports", {}), "")
    check_dicom(checker, data)
    if ports is not None:
        _check_ports(checker, ports, data.get("dicom"))


def _check_ndi_use(checker: Checker, name: str, tracker: TrackerConfig, tools: Mapping[str, ToolConfig]) -> None:
    assert tracker.ndi is not None
    if tracker.connect != "client":
        checker.fault(f"trackers.{name}.connect", f"{tracker.connect!r} for an NDI tracker", "'client'")
    poses = poses_of(tracker.ndi)
    for tool_name, tool in tools.items():
        if tool.tracker == name and tool.transform not in poses:
            found = ", ".join(poses) or "none"
            checker.fault(
                f"tools.{tool_name}.transform", f"{tool.transform!r} is no tool of trackers.{name}.ndi", found
            )


def check_place(checker: Checker, path: str, imaging: ImagingConfig) -> None:
    """Note what is wrong with where an imaging source's images are said to be."""
    for key in ("T_pose_from_image", "T_carm_from_image"):
        rows = getattr(imaging, key)
        if rows is not None and not _is_rigid(rows):
            checker.fault(f"{path}.{key}", "not a rigid motion", "four rows of four numbers, the last 0, 0, 0, 1")
    if imaging.T_pose_from_image is not None and imaging.dicom.T_pose_from_equipment is not None:
        checker.fault(f"{path}.T_pose_from_image", "given beside dicom.T_pose_from_equipment", "the one or the other")
    if imaging.T_carm_from_image is not None:
        if imaging.kind != "projection":
            checker.fault(f"{path}.T_carm_from_image", f"the detector of a {imaging.kind}", 'kind = "projection"')
        if imaging.detector is not None:
            checker.fault(f"{path}.T_carm_from_image", "given beside detector", "the one or the other")
    if imaging.tracker and imaging.encoders is not None:
        checker.fault(f"{path}.tracker", "given beside encoders", "the one or the other")


def _check_body(
    checker: Checker, path: str, imaging: ImagingConfig, tracker: TrackerConfig, tools: Mapping[str, ToolConfig]
) -> None:
    """Note what is wrong with the body on an imaging device that a tracker sees."""
    for name, tool in tools.items():
        if (tool.tracker, tool.transform) == (imaging.tracker, imaging.pose):
            checker.fault(path, f"{imaging.pose!r} is that of tools.{name}", "a body of its own")
    if tracker.ndi is not None and imaging.pose not in poses_of(tracker.ndi):
        found = ", ".join(poses_of(tracker.ndi)) or "none"
        checker.fault(path, f"{imaging.pose!r} is no tool of trackers.{imaging.tracker}.ndi", found)
    parsed = parse_transform_name(imaging.pose)
    frames = [p[0].name for t in tools.values() if (p := parse_transform_name(t.transform)) is not None]
    if parsed is None:
        checker.fault(path, f"{imaging.pose!r}", "a name such as 'CarmToTracker'")
    elif frames and parsed[0].name != frames[0]:
        wrong = f"{imaging.pose!r} is tracked in {parsed[0].name}, the tools in {frames[0]}"
        checker.fault(path, wrong, "all tracked in one frame")


def _check_streams(checker: Checker, tools: Mapping[str, ToolConfig]) -> None:
    """Each tool has a stream of its own, and all are tracked in one frame: else no pair of them has a meaning."""
    owners: dict[tuple[str, str], str] = {}
    frames: dict[str, str] = {}
    for name, tool in tools.items():
        owner = owners.setdefault((tool.tracker, tool.transform), name)
        if owner != name:
            checker.fault(f"tools.{name}.transform", f"{tool.transform!r} is that of tools.{owner}", "one of its own")
        parsed = parse_transform_name(tool.transform)
        if parsed is not None:
            frames.setdefault(parsed[0].name, name)
    if len(frames) > 1:
        found = ", ".join(f"{frame} (tools.{name})" for frame, name in frames.items())
        checker.fault("tools", f"tracked in different frames: {found}", "all tools tracked in one frame")


def _check_alarms(checker: Checker, table: Any) -> None:
    alarms = _sound(AlarmsConfig, {"alarms": table if table is not None else {}}).get("alarms")
    if alarms is None:
        return
    for name, limits in [("limits", alarms.limits), *((f"structures.{n}", x) for n, x in alarms.structures.items())]:
        if limits.warning_mm > limits.caution_mm:
            wrong = f"warning_mm {limits.warning_mm:g} is above caution_mm {limits.caution_mm:g}"
            checker.fault(f"alarms.{name}", wrong, "a warning inside the caution zone")


def _check_ports(checker: Checker, ports: PortsConfig, dicom: Any) -> None:
    if ports.host not in ("127.0.0.1", "localhost"):
        wrong = f"{ports.host!r} is not loopback, and this version has neither authentication nor encryption"
        checker.fault("ports.host", wrong, "'127.0.0.1'")
    used: dict[int, str] = {}
    for name in ("openigtlink", "devices", "zmq", "commands", "http"):
        port = getattr(ports, name)
        if port and port in used:
            checker.fault(f"ports.{name}", f"{port} is taken by ports.{used[port]}", "a port of its own, or 0")
        used.setdefault(port, name)
    port = dicom.get("port", DICOM_PORT) if isinstance(dicom, dict) else 0
    if port and port in used:
        checker.fault("dicom.port", f"{port} is taken by ports.{used[port]}", "a port of its own, or 0")


def check_pictured(checker: Checker, path: str, tool: ToolConfig, data: Mapping[str, Any]) -> None:
    """Note what is wrong with a tool that only images show."""
    imaging = data.get("imaging") or {}
    for source in tool.images:
        if source not in imaging:
            checker.fault(f"{path}.images", f"{source!r} is not configured", "one of " + ", ".join(imaging))
    if tool.tracker or tool.transform:
        checker.fault(f"{path}.images", "given beside tracker or transform", "the one or the other")
    if tool.inserts:
        checker.fault(f"{path}.inserts", "inserts of a tool that images show", "none: an image shows the tip itself")
    if tool.role != "needle":
        checker.fault(f"{path}.images", f"a {tool.role} that images show", "a tracked one")
    _check_shaft(checker, path, tool)


def check_still(checker: Checker, data: Mapping[str, Any], referenced: bool, pictured: bool) -> None:
    """Note when nobody says what the images' places are relative to, or two do."""
    registration = data.get("registration")
    still = isinstance(registration, Mapping) and registration.get("still_patient") is True
    if still and referenced:
        checker.fault("registration.still_patient", "true beside a tracked reference", "the one or the other")
    if pictured and not still and not referenced:
        right = 'a tool with role = "reference", or registration.still_patient = true'
        checker.fault("tools", "images show a needle, and no reference says where the patient is", right)


def _check_tool(checker: Checker, path: str, tool: ToolConfig, trackers: Mapping[str, Any]) -> None:
    if tool.tracker not in trackers:
        checker.fault(f"{path}.tracker", f"{tool.tracker!r} is not configured", "one of " + ", ".join(trackers))
    if parse_transform_name(tool.transform) is None:
        checker.fault(f"{path}.transform", f"{tool.transform!r}", "a name such as 'NeedleToTracker'")
    if abs(math.hypot(*tool.axis) - 1.0) > 1e-3:
        checker.fault(f"{path}.axis", f"length {math.hypot(*tool.axis):.3g}", "a unit vector from hub to tip")
    _check_shaft(checker, path, tool)
    if tool.inserts and tool.zone is not None:
        checker.fault(f"{path}.zone", "given beside inserts", "the zone of each insert")
    if tool.inserts and tool.role != "needle":
        checker.fault(f"{path}.inserts", f"inserts of a {tool.role}", "those of a needle")
    for name, insert in tool.inserts.items():
        if insert.stop_mm < tool.length_mm:
            wrong = f"{insert.stop_mm:g} mm ends inside the cannula of {tool.length_mm:g} mm"
            checker.fault(f"{path}.inserts.{name}.stop_mm", wrong, "at least the cannula's length_mm")


def check_probes(checker: Checker, probes: Mapping[str, ProbeConfig]) -> None:
    """Note limits that are not in their order, and two probes that are one reading."""
    owners: dict[tuple[str, str, int], str] = {}
    for name, probe in probes.items():
        owner = owners.setdefault((probe.tracker, probe.device, probe.channel), name)
        if owner != name:
            wrong = f"{probe.device!r} channel {probe.channel} is that of probes.{owner}"
            checker.fault(f"probes.{name}.channel", wrong, "one of its own")
        if not probe.cold_warning_c < probe.cold_caution_c < probe.caution_c < probe.warning_c:
            right = "cold_warning_c < cold_caution_c < caution_c < warning_c"
            checker.fault(f"probes.{name}", "its limits are not in their order", right)


def _check_shaft(checker: Checker, path: str, tool: ToolConfig) -> None:
    if tool.role == "needle" and tool.gauge is None and tool.diameter_mm is None:
        checker.fault(f"{path}.gauge", "missing", "gauge or diameter_mm of the shaft")
    if tool.gauge is not None and tool.gauge not in GAUGE_MM:
        checker.fault(f"{path}.gauge", f"{tool.gauge}", "one of " + ", ".join(map(str, GAUGE_MM)))
    if tool.gauge is not None and tool.diameter_mm is not None:
        checker.fault(f"{path}.diameter_mm", "given beside gauge", "only one of the two")


def _is_rigid(rows: Sequence[Sequence[float]]) -> bool:
    if any(len(row) != 4 for row in rows):
        return False
    matrix = np.array(rows)
    return matrix[3].tolist() == [0.0, 0.0, 0.0, 1.0] and rotation_defect(matrix[:3, :3]) <= RIGIDITY_TOLERANCE
