"""Owns the step from configuration and case to the pipeline's setup; the same for live use and for replay."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import numpy as np

from devices.health import FreshnessRule
from devices.ndi_readings import NdiSpec
from devices.openigtlink import SourceSpec, Stamps
from devices.thermometer import ProbeSpec
from navsrv.anatomy.bvh import DistanceStructure
from navsrv.anatomy.case import Case, Structure
from navsrv.guidance.bending import bending_sigma_mm
from navsrv.guidance.conditions import SiteLimits
from navsrv.guidance.levels import Limits
from navsrv.guidance.trajectory import PlannedPath
from navsrv.kernel.errors import ConfigError
from navsrv.kernel.frames import CT, REFERENCE, Rigid
from navsrv.pipeline.setup import (
    InsertSetup,
    Preset,
    ProbeSetup,
    ReferenceSetup,
    Setup,
    SourceSetup,
    StructureSetup,
    ToolSetup,
    ZoneSetup,
)
from navsrv.server.config_doubt import REGISTRATION_INFLATION, structure_faults
from navsrv.server.config_ndi import ndi_spec
from navsrv.server.config_tables import Config, ProbeConfig, SiteConfig, ToolConfig, TrackerConfig, ZoneConfig


def build_setup(config: Config, case: Case, session: str) -> Setup:
    """Return everything that the pipeline knows before the first input.

    Raises
    ------
    ConfigError
        Alarm limits for a structure that the case does not have.
    InputError
        A file of the case that is missing or changed.
    """
    check_structures(config, case)
    max_age_min = config.registration.max_age_min
    plan = case.plan
    return Setup(
        session=session,
        sources=tuple(_source(name, tracker) for name, tracker in config.trackers.items()),
        tools=tuple(_tool(n, t) for n, t in config.tools.items() if t.role == "needle" and not t.images),
        snapshots=tuple(_tool(n, t) for n, t in config.tools.items() if t.images),
        reference=_body(config, "reference"),
        structures=tuple(_structure(config, case, s) for s in case.structures),
        path=None if plan is None else PlannedPath(plan.entry_ct_mm, plan.target_ct_mm, plan.corridor_mm),
        preset=_preset(config),
        inflation={**REGISTRATION_INFLATION, **config.registration.inflation},
        tissue_seen=config.tissue.seen,
        bodies=_bodies(config),
        remembered_s=0.0 if config.dicom is None else config.dicom.pose_memory_s,
        probes=tuple(_probe(name, probe) for name, probe in config.probes.items()),
        site=_site(config.alarms.site),
        witness=_body(config, "witness"),
        registration_max_age_ns=None if max_age_min is None else int(max_age_min * 60e9),
    )


def _body(config: Config, role: str) -> ReferenceSetup | None:
    """Return the one body of a role, if there is one."""
    return next((ReferenceSetup(t.tracker, t.transform) for t in config.tools.values() if t.role == role), None)


def _bodies(config: Config) -> tuple[ReferenceSetup, ...]:
    """Return the bodies on imaging devices that trackers see, each once: a C-arm may send pictures and volumes."""
    return tuple(dict.fromkeys(ReferenceSetup(i.tracker, i.pose) for i in config.imaging.values() if i.tracker))


def _site(site: SiteConfig) -> SiteLimits:
    """Return the limits of the room: the configuration's keys but for the time, which it has in milliseconds."""
    values = asdict(site)
    return SiteLimits(brief_loss_ns=int(values.pop("brief_loss_ms") * 1e6), **values)


def check_structures(config: Config, case: Case) -> None:
    """Return if every structure named by the configuration is in the case; ConfigError lists those that are not."""
    names = [s.name for s in case.structures]
    unknown = [name for name in config.alarms.structures if name not in names]
    right = f"expected one of {', '.join(names)}"
    faults = [f"alarms.structures.{u}: no such structure in case {case.name}; {right}" for u in unknown]
    faults += structure_faults(config.tissue, _reference_bone(config), case)
    if faults:
        raise ConfigError(faults)


def _source(name: str, tracker: TrackerConfig) -> SourceSetup:
    return SourceSetup(
        spec=source_spec(name, tracker),
        rule=replace(FreshnessRule.for_rate(tracker.rate_hz), frozen_ns=_frozen_ns(tracker)),
        noise_mm=tracker.noise_mm,
        noise_rad=math.radians(tracker.noise_deg),
    )


def _frozen_ns(tracker: TrackerConfig) -> int | None:
    return None if tracker.frozen_ms is None else int(1e6 * tracker.frozen_ms)


def source_spec(name: str, tracker: TrackerConfig) -> SourceSpec | NdiSpec:
    """Return what the driver of a tracker needs to know."""
    unknown_ms = tracker.unknown_latency_ms if tracker.latency_ms is None else tracker.latency_sigma_ms
    latency_ns, unknown_ns = int(1e6 * (tracker.latency_ms or 0.0)), int(1e6 * unknown_ms)
    if tracker.ndi is not None:
        return ndi_spec(name, tracker.ndi, tracker.rate_hz, latency_ns, unknown_ns)
    return SourceSpec(
        name,
        tracker.rate_hz,
        tracker.trusted,
        Stamps(tracker.stamps),
        tracker.names,
        latency_ns=latency_ns,
        unknown_latency_ns=unknown_ns,
    )


def _tool(name: str, tool: ToolConfig) -> ToolSetup:
    axis = np.array(tool.axis)
    return ToolSetup(
        name=name,
        source=tool.tracker,
        transform=tool.transform,
        tip_mm=np.array(tool.tip_mm),
        axis=axis / np.linalg.norm(axis),
        radius_mm=tool.radius_mm,
        length_mm=tool.length_mm,
        tip_sigma_mm=tool.tip_sigma_mm,
        axis_sigma_rad=math.radians(tool.axis_sigma_deg),
        bending_sigma_mm=_bending_mm(tool),
        zone=_zone(tool.zone),
        inserts=tuple(
            InsertSetup(insert_name, insert.stop_mm - tool.length_mm, insert.sigma_mm, _zone(insert.zone))
            for insert_name, insert in tool.inserts.items()
        ),
    )


def _zone(zone: ZoneConfig | None) -> ZoneSetup | None:
    return None if zone is None else ZoneSetup(zone.across_mm, zone.along_mm, zone.ahead_mm)


def _probe(name: str, probe: ProbeConfig) -> ProbeSetup:
    return ProbeSetup(
        ProbeSpec(name, probe.device, probe.channel, probe.rate_hz, probe.unit, probe.tracker),
        probe.caution_c,
        probe.warning_c,
        probe.cold_caution_c,
        probe.cold_warning_c,
    )


def _bending_mm(tool: ToolConfig) -> float:
    if tool.bending_sigma_mm is not None:
        return tool.bending_sigma_mm
    return bending_sigma_mm(2.0 * tool.radius_mm, tool.length_mm, tool.bending_load_n)


def _reference_bone(config: Config) -> str | None:
    return next((tool.bone for tool in config.tools.values() if tool.role == "reference"), None)


def _structure(config: Config, case: Case, structure: Structure) -> StructureSetup:
    path = case.distance_file(structure.name)
    distance = DistanceStructure.build(case.mesh(structure.name)) if path is None else DistanceStructure.load(path)
    return StructureSetup(
        structure.name,
        structure.kind.value,
        structure.sigma_mm,
        limits_of(config, structure),
        distance,
        *config.tissue.motion_mm(structure, _reference_bone(config)),
    )


def limits_of(config: Config, structure: Structure) -> Limits:
    """Return a structure's limits: those by its name at this site win over the case's, which win over the general."""
    own = config.alarms.structures.get(structure.name)
    site = own if own is not None else config.alarms.limits
    caution, warning = site.caution_mm, site.warning_mm
    if own is None:
        caution = structure.caution_mm if structure.caution_mm is not None else caution
        warning = structure.warning_mm if structure.warning_mm is not None else warning
    return Limits(
        caution_mm=caution,
        warning_mm=warning,
        hysteresis_mm=site.hysteresis_mm,
        clear_after_ns=int(site.clear_after_ms * 1e6),
        near_mm=site.near_mm,
        closing_mm_s=site.closing_mm_s,
        contact_s=site.contact_s,
        margin_mm=site.margin_mm,
    )


def _preset(config: Config) -> Preset | None:
    preset = config.registration.preset
    if preset is None:
        return None
    matrix = np.array(preset.T_ct_from_ref)
    variance = preset.tre_mm**2 / 3.0
    covariance = np.diag([0.0, 0.0, 0.0, variance, variance, variance])
    return Preset(preset.method, Rigid.from_matrix(CT, REFERENCE, matrix, covariance), preset.tre_mm)
