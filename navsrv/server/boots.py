"""Owns what the session hands to its children at their start."""

from __future__ import annotations

from dataclasses import dataclass

from navsrv.server.config_dicom import DicomConfig
from navsrv.server.config_grabber import GrabberConfig
from navsrv.server.config_tables import Config, ImagingConfig


@dataclass(frozen=True, slots=True)
class LoopBoot:
    """For the real-time loop."""

    config: Config
    case_folder: str
    session: str
    record_endpoint: str | None


@dataclass(frozen=True, slots=True)
class HubBoot:
    """For the display hub."""

    config: Config
    case_folder: str
    session_folder: str
    host: str
    zmq_port: int
    commands_port: int


@dataclass(frozen=True, slots=True)
class DicomBoot:
    """For the DICOM server; ``sources`` are those that come by DICOM."""

    config: DicomConfig
    sources: dict[str, ImagingConfig]
    host: str
    port: int
    folder: str


@dataclass(frozen=True, slots=True)
class GrabberBoot:
    """For the process of one C-arm's video; shots are left in ``folder``."""

    name: str
    config: GrabberConfig
    folder: str
