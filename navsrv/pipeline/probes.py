"""Owns what frames say of temperature probes: degrees, their change, age and level, each with a validity of its own.

Geometry that is lost takes no temperature with it, and a probe that fell silent is unknown, never the last value.
What becomes known or unknown, and every change of level, is a note for the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from devices.thermometer import Probe
from navsrv.guidance.alarm_life import Present
from navsrv.guidance.alarms import Condition, Priority
from navsrv.pipeline.inputs import Note, SensorIn, SourceReport
from navsrv.pipeline.setup import ProbeSetup
from navsrv.wire.guidance import Temperature
from navsrv.wire.openigtlink import Sensor

HEATING: Final = frozenset(("ablation", "cement"))
"""Phases in which a temperature that nobody knows is a danger."""


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
        self._levels = ["unknown"] * len(self._setups)

    def take(self, item: SensorIn) -> list[Note]:
        """Take a SENSOR message of the devices port; return what the log must say."""
        body = Sensor(item.values, item.unit, item.status)  # type: ignore[arg-type]  # frozen to an array
        return self.take_from("", item.device, item.stamp_ns, body, item.received_ns)

    def take_from(self, source: str, device: str, stamp_ns: int | None, body: Sensor, received_ns: int) -> list[Note]:
        """Take what a device said on a tracker's link: it is for every probe that names both."""
        mine = [probe for setup, probe in self._setups if (setup.spec.source, setup.spec.device) == (source, device)]
        for probe in mine:
            probe.take(body, stamp_ns, received_ns)
        return self.changes(received_ns) if mine else []

    def changes(self, now_ns: int) -> list[Note]:
        """Return what the log must say of probes whose level, or standing, has changed since it was last asked."""
        notes = []
        for n, (setup, probe) in enumerate(self._setups):
            celsius, before = probe.celsius(now_ns), self._levels[n]
            level = self._levels[n] = level_of(setup, celsius)
            if level != before:
                silent = f"{setup.spec.name}: no reading for {(probe.age_ns(now_ns) or 0) / 1e9:.1f} s"
                now = probe.reason or silent if celsius is None else f"{setup.spec.name}: {celsius:.1f} degrees C"
                fields = {"probe": setup.spec.name, "celsius": celsius, "level": level, "before": before}
                notes.append(Note(now_ns, "temperature", f"{now}, level {level} (was {before})", fields))
        return notes

    def present(self, now_ns: int, phase: str) -> list[Present]:
        """Return what holds of the probes, for alarms: they have a validity of their own, whatever geometry has."""
        found = []
        for setup, probe in self._setups:
            name, celsius = setup.spec.name, probe.celsius(now_ns)
            level = level_of(setup, celsius)
            if celsius is None:
                known = probe.counts.accepted > 0
                if known or phase in HEATING:
                    priority = None if phase in HEATING else Priority.LOW
                    why = probe.reason or f"{name}: it fell silent"
                    text, past = f"Temperature unknown: {why}", f"{name}: its temperature was unknown"
                    found.append(Present(Condition.TEMPERATURE_UNKNOWN, name, text, priority, past=past))
            elif level != "none":
                warm = celsius > setup.cold_caution_c
                warned = setup.warning_c if warm else setup.cold_warning_c
                limit = warned if level == "warning" else setup.caution_c if warm else setup.cold_caution_c
                text = f"{name}: {celsius:.1f} °C, limit {limit:g}"
                priority = None if level == "warning" else Priority.LOW
                past = f"{name}: its temperature was beyond its limit"
                measured = {"celsius": celsius, "limit_c": limit}
                found.append(Present(Condition.TEMPERATURE, name, text, priority, past=past, measured=measured))
        return found

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
