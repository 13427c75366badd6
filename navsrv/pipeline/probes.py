"""Owns what frames say of temperature probes: degrees, their change, age and level, each with a validity of its own.

Geometry that is lost takes no temperature with it, and a probe that fell silent is unknown, never the last value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from devices.thermometer import Probe
from navsrv.pipeline.inputs import SensorIn, SourceReport
from navsrv.pipeline.setup import ProbeSetup
from navsrv.wire.guidance import Temperature
from navsrv.wire.openigtlink import Sensor


def level_of(setup: ProbeSetup, celsius: float | None) -> str:
    """Return the level of a temperature; unknown is one of its own."""
    if celsius is None:
        return "unknown"
    if celsius >= setup.warning_c or celsius <= setup.cold_warning_c:
        return "warning"
    return "caution" if celsius >= setup.caution_c or celsius <= setup.cold_caution_c else "none"


class Probes:
    """The probes of one session."""

    def __init__(self, setups: Sequence[ProbeSetup]) -> None:
        self._setups = [(setup, Probe(setup.spec)) for setup in setups]

    def take(self, item: SensorIn) -> None:
        """Take a SENSOR message: it is for every probe that names its device."""
        body = Sensor(item.values, item.unit, item.status)  # type: ignore[arg-type]  # frozen to an array
        for setup, probe in self._setups:
            if setup.spec.device == item.device:
                probe.take(body, item.stamp_ns, item.received_ns)

    def shown(self, now_ns: int) -> list[Temperature]:
        """Return the probes as frames say them at ``now_ns``."""
        if not self._setups:
            return []
        found = []
        for setup, probe in self._setups:
            celsius, age_ns = probe.celsius(now_ns), probe.age_ns(now_ns)
            age_ms = None if age_ns is None else age_ns / 1e6
            level = level_of(setup, celsius)
            found.append(Temperature(setup.spec.name, celsius, probe.rate_c_s(now_ns), age_ms, level))
        return found

    def reports(self, now_ns: int) -> list[SourceReport]:
        """Return what each probe's readings came to, for metrics."""
        return [
            SourceReport(f"probe {s.spec.name}", probe.celsius(now_ns) is not None, asdict(probe.counts), 0.0)
            for s, probe in self._setups
        ]
