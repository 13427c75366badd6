"""Owns the configuration of NDI trackers: the table ``[trackers.NAME.ndi]`` and what it must not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from devices.ndi_protocol import BAUD_CODES
from devices.ndi_readings import NdiSpec, NdiTool
from devices.ndi_rom import RomFile, read_rom
from devices.openigtlink import parse_transform_name
from navsrv.kernel.checking import Checker, rule
from navsrv.kernel.errors import InputError

INLINE = "hex:"
"""Marks a tool definition that is in the configuration itself, as in every recording: replay needs no other file."""


@dataclass(frozen=True, slots=True)
class NdiConfig:
    """An NDI tracker (Polaris, Vega, Aurora): over a serial line, or over TCP at the tracker's host and port.

    ``tools`` names the ``.rom`` file of each pose; ``wired`` the part or serial number of each tool with a plug.
    """

    device: str | None = None
    """The serial line, such as /dev/ttyUSB0; unset, TCP is used."""
    baud: int = 115200
    tools: dict[str, str] = rule(factory=dict)
    wired: dict[str, str] = rule(factory=dict)
    binary: bool = True
    accept_partly_out: bool = False
    max_error_mm: float = rule(2.0, low=0.0, high=20.0)


def inlined(ndi: NdiConfig, folder: Path) -> NdiConfig:
    """Return the configuration with its tool definitions in it; InputError names a file that is none."""
    texts = {}
    for name, text in ndi.tools.items():
        texts[name] = text if text.startswith(INLINE) else INLINE + read_rom(folder / text).data.hex()
    return replace(ndi, tools=texts)


def ndi_spec(name: str, ndi: NdiConfig, rate_hz: float, latency_ns: int, unknown_latency_ns: int) -> NdiSpec:
    """Return what the driver needs to know; tool definitions are inlined already."""
    tools = [NdiTool(pose, rom=_rom(pose, text)) for pose, text in ndi.tools.items()]
    tools += [NdiTool(pose, identity=identity) for pose, identity in ndi.wired.items()]
    return NdiSpec(
        name,
        tuple(tools),
        rate_hz,
        ndi.baud if ndi.device is not None else None,
        ndi.binary,
        ndi.accept_partly_out,
        ndi.max_error_mm,
        latency_ns=latency_ns,
        unknown_latency_ns=unknown_latency_ns,
    )


def _rom(pose: str, text: str) -> RomFile:
    return RomFile.parse(bytes.fromhex(text.removeprefix(INLINE)), f"the tool definition of {pose}")


def check_ndi(checker: Checker, key: str, ndi: NdiConfig, folder: Path) -> None:
    """Note what is wrong with an NDI tracker's table."""
    if ndi.baud not in BAUD_CODES:
        checker.fault(f"{key}.baud", f"{ndi.baud}", "one of " + ", ".join(map(str, sorted(BAUD_CODES))))
    if not ndi.tools and not ndi.wired:
        checker.fault(f"{key}.tools", "none", 'at least one such as NeedleToTracker = "needle.rom"')
    for name in {**ndi.tools, **ndi.wired}:
        if parse_transform_name(name) is None:
            checker.fault(f"{key}.tools", f"{name!r}", "names such as NeedleToTracker")
    for name in set(ndi.tools) & set(ndi.wired):
        checker.fault(f"{key}.wired.{name}", "also in tools", "a .rom file or a plug, not both")
    for name, text in ndi.tools.items():
        try:
            if text.startswith(INLINE):
                _rom(name, text)
            else:
                read_rom(folder / text)
        except (InputError, ValueError) as fault:
            checker.fault(f"{key}.tools.{name}", str(fault).partition("; ")[0], "an NDI tool definition (.rom)")


def poses_of(ndi: NdiConfig) -> Mapping[str, str]:
    """Return the poses that the tracker gives."""
    return {**ndi.tools, **ndi.wired}
