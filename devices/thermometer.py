"""Owns temperature probes that come by OpenIGTLink SENSOR: which reading is a temperature, and whether it is believed.

A reading that is no number, outside what a body or an ablation can have, or repeated with an old stamp never refreshes
an age.  The device's status byte is 0 when all is well (v3 protocol, SENSOR).  Refuses sockets, clocks and limits.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final, Literal

from devices.health import Freshness, FreshnessRule
from navsrv.wire.openigtlink import Sensor

ZERO_C_IN_K: Final = 273.15
LOWEST_C: Final = -210.0
HIGHEST_C: Final = 400.0
"""Beyond liquid nitrogen and beyond any ablation: a broken wire, not a temperature."""
SLOPE_NS: Final = 5_000_000_000
"""A rate is the slope of the readings of this time, or of the last four of a slow probe."""
SLOPE_COUNT: Final = 4


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """What the configuration declares of one probe.

    Attributes
    ----------
    name : str
        What operators call it.
    source : str
        The tracker on whose link it comes; empty for one that pushes to the devices port.
    device : str
        Device name of the SENSOR message on the wire.
    channel : int
        Which of its readings, from 0.
    rate_hz : float
    unit : {"celsius", "kelvin"}
        Of the readings; the protocol's unit field is rarely filled.
    """

    name: str
    device: str
    channel: int
    rate_hz: float
    unit: Literal["celsius", "kelvin"] = "celsius"
    source: str = ""


@dataclass(slots=True)
class ProbeCounts:
    """What happened to the readings since the start."""

    accepted: int = 0
    refused: int = 0
    repeated: int = 0
    late: int = 0


class Probe:
    """The newest reading of one probe and how it changes."""

    def __init__(self, spec: ProbeSpec) -> None:
        self.spec = spec
        self.counts = ProbeCounts()
        self.rule = FreshnessRule.for_rate(spec.rate_hz, stale_ms=2000.0, lost_ms=10_000.0)
        self.reason = f"{spec.name}: no reading yet"
        """Why the newest message was not believed; empty when it was."""
        self._stamp: int | None = None
        self._readings: deque[tuple[int, float]] = deque(maxlen=64)

    def take(self, body: Sensor, stamp_ns: int | None, received_ns: int) -> None:
        """Take a SENSOR message; ``stamp_ns`` is the device's, None when it means nothing."""
        if stamp_ns is not None and self._stamp is not None and stamp_ns <= self._stamp:
            if stamp_ns == self._stamp:
                self.counts.repeated += 1
            else:
                self.counts.late += 1
            return
        self._stamp = stamp_ns
        value, self.reason = self._celsius(body)
        if value is None:
            self.counts.refused += 1
            self._readings.clear()
            return
        self._readings.append((received_ns, value))
        self.counts.accepted += 1

    def celsius(self, now_ns: int) -> float | None:
        """Return the temperature, None unless a reading is fresh enough to be one."""
        age_ns = self.age_ns(now_ns)
        if age_ns is None or self.rule.judge(age_ns) >= Freshness.STALE:
            return None
        return self._readings[-1][1]

    def age_ns(self, now_ns: int) -> int | None:
        """Return the age of the newest reading that was believed; None before the first, and after a refused one."""
        return now_ns - self._readings[-1][0] if self._readings else None

    def rate_c_s(self, now_ns: int) -> float | None:
        """Return how fast it changes, by least squares over the newest readings; None while nobody can know."""
        if self.celsius(now_ns) is None or len(self._readings) < SLOPE_COUNT:
            return None
        newest = self._readings[-1][0]
        recent = [r for r in self._readings if newest - r[0] <= SLOPE_NS]
        if len(recent) < SLOPE_COUNT:
            recent = list(self._readings)[-SLOPE_COUNT:]
        times = [(t - newest) / 1e9 for t, _ in recent]
        mean_t, mean_c = math.fsum(times) / len(recent), math.fsum(c for _, c in recent) / len(recent)
        spread = math.fsum((t - mean_t) ** 2 for t in times)
        if spread <= 0.0:
            return None
        return math.fsum((t - mean_t) * (c - mean_c) for t, (_, c) in zip(times, recent, strict=True)) / spread

    def _celsius(self, body: Sensor) -> tuple[float | None, str]:
        """Return (the message's reading, ""), or None and why: the device doubts it, or it is none."""
        name, channel = self.spec.name, self.spec.channel
        if body.status != 0:
            return None, f"{name}: the device says status {body.status}"
        if channel >= len(body.values):
            return None, f"{name}: {len(body.values)} readings came, and none of channel {channel}"
        value = float(body.values[channel]) - (ZERO_C_IN_K if self.spec.unit == "kelvin" else 0.0)
        if not LOWEST_C <= value <= HIGHEST_C:  # what is no number fails both
            return None, f"{name}: {value:g} degrees are no temperature: a broken wire?"
        return value, ""
