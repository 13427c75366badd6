"""Owns what shows only when parts of the configuration are held together: names that meet, keys that exclude others."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from devices.openigtlink import parse_transform_name
from navsrv.kernel.checking import Checker
from navsrv.kernel.frames import RIGIDITY_TOLERANCE, rotation_defect
from navsrv.pipeline.setup import GAUGE_MM
from navsrv.server.config_dicom import PORT as DICOM_PORT
from navsrv.server.config_dicom import check_dicom
from navsrv.server.config_doubt import check_inflation
from navsrv.server.config_grabber import check_grabbers
from navsrv.server.config_ndi import check_ndi, poses_of
from navsrv.server.config_tables import (
    AlarmsConfig,
    ImagingConfig,
    PortsConfig,
    ProbeConfig,
    RegistrationConfig,
    ServerConfig,
    ToolConfig,
    TrackerConfig,
)

T = TypeVar("T")


def _sound(cls: type[T], table: Any) -> dict[str, T]:
    """Return the entries of a table of tables that are right by themselves; the others' faults are noted already."""
    entries = table.items() if isinstance(table, dict) else ()
    made = {name: Checker("").table(cls, entry, "") for name, entry in entries}
    return {name: entry for name, entry in made.items() if entry is not None}


def cross_check(checker: Checker, data: dict[str, Any], folder: Path) -> None:
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
