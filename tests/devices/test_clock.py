"""A clock is judged against simulated ones: offset, drift, ways that are never shorter than a constant, faults."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from devices.clock import SourceClock

MS = 1_000_000
S = 1_000_000_000
EPOCH_NS = 1_700_000_000 * S


@dataclass
class Device:
    """A device whose clock runs ``drift_ppm`` fast, over a way of 2 ms plus exponential waiting."""

    seed: int = 0
    rate_hz: float = 60.0
    drift_ppm: float = 0.0
    wait_ms: float = 0.3
    way_ms: float = 2.0

    def messages(self, seconds: float, begin_s: float = 0.0) -> Iterator[tuple[int, int]]:
        """Yield (stamp, received), both ns."""
        rng = np.random.default_rng(self.seed)
        received = 0
        for i in range(int(seconds * self.rate_hz)):
            true_ns = begin_s * S + i * S / self.rate_hz
            stamp = EPOCH_NS + round(true_ns * (1.0 + 1e-6 * self.drift_ppm))
            received = max(received, 50 * S + round(true_ns + MS * (self.way_ms + rng.exponential(self.wait_ms))))
            yield stamp, received


def test_offset_and_drift_lie_within_their_uncertainty_as_often_as_they_say() -> None:
    """95 % of errors within 2 sigma; not much less than that share, nor sigmas so wide that they say nothing."""
    offsets, drifts, sigmas = [], [], []
    for seed in range(60):
        drift = float(np.random.default_rng(seed).normal(0.0, 60.0))
        device = Device(seed, drift_ppm=drift)
        clock = SourceClock(int(S / device.rate_hz))
        for stamp, received in device.messages(40.0):
            assert clock.observe(stamp, received) == 0
        found = clock.estimate(received)
        assert found is not None
        elapsed = received - 50 * S
        truth = 50 * S + device.way_ms * MS - EPOCH_NS - 1e-6 * drift * (elapsed - device.way_ms * MS)
        offsets.append((found.offset_ns - truth) / found.offset_sigma_ns)
        drifts.append((found.drift_ppm - drift) / found.drift_sigma_ppm)
        sigmas.append((found.offset_sigma_ns, found.drift_sigma_ppm))
    assert np.mean(np.abs(offsets) < 2.0) >= 0.9
    assert np.mean(np.abs(drifts) < 2.0) >= 0.9
    assert np.std(drifts) > 0.4
    widest = np.max(sigmas, axis=0)
    assert widest[0] < 0.2 * MS
    assert widest[1] < 2.0


@pytest.mark.parametrize("drift_ppm", [-500.0, -100.0, 100.0, 500.0])
def test_drift_never_looks_like_delay(drift_ppm: float) -> None:
    clock = SourceClock(int(S / 60))
    late = []
    for stamp, received in Device(1, drift_ppm=drift_ppm, wait_ms=0.1).messages(600.0):
        assert clock.observe(stamp, received) == 0
        late.append(clock.late_ns)
    assert np.quantile(late[600:], 0.99) < 1.5 * MS


@pytest.mark.parametrize("step_ms", [-3_600_000, -1000, -600, 150, 1000, 3_600_000])
def test_a_step_is_told_once_with_its_size_and_survived(step_ms: int) -> None:
    clock = SourceClock(int(S / 60))
    jumps = []
    for i, (stamp, received) in enumerate(Device(2, drift_ppm=80.0).messages(20.0)):
        jump = clock.observe(stamp + (step_ms * MS if i >= 600 else 0), received)
        if jump:
            jumps.append((i, jump))
    ((at, size),) = jumps
    assert at == 600
    assert size == pytest.approx(step_ms * MS, abs=3 * MS)
    assert clock.late_ns < 3 * MS
    found = clock.estimate(received)
    assert found is not None
    assert found.drift_ppm == pytest.approx(80.0, abs=3.0 * found.drift_sigma_ppm)


@pytest.mark.parametrize("stall_s", [0.3, 2.0, 30.0])
def test_a_stalled_way_is_delay_and_no_step_however_long(stall_s: float) -> None:
    """Everything sent during the stall comes at its end; then all is as before."""
    clock = SourceClock(int(S / 60))
    stall = 50 * S + 10 * S, 50 * S + int((10.0 + stall_s) * S)
    for stamp, received in Device(3).messages(45.0):
        held = stall[0] <= received < stall[1]
        assert clock.observe(stamp, stall[1] if held else received) == 0
        if held:
            assert clock.late_ns == pytest.approx(stall[1] - received, abs=3 * MS)
    assert clock.late_ns < 4 * MS
    assert clock.shifted_ns == 0


def test_a_way_that_stays_a_second_longer_stays_late() -> None:
    """It cannot be told from a clock set back, but poses a second old must never come to look fresh."""
    clock = SourceClock(int(S / 60))
    for i, (stamp, received) in enumerate(Device(4).messages(400.0)):
        clock.observe(stamp, received + (S if i >= 600 else 0))
    assert clock.late_ns > 0.9 * S


@pytest.mark.parametrize("shift_ms", [8.0, 15.0])
def test_a_lasting_shift_below_a_period_becomes_unknown_latency(shift_ms: float) -> None:
    clock = SourceClock(int(S / 60))
    for i, (stamp, received) in enumerate(Device(5).messages(60.0)):
        clock.observe(stamp, received + (int(shift_ms * MS) if i >= 1200 else 0))
    assert clock.late_ns < 4 * MS
    assert clock.shifted_ns == pytest.approx(shift_ms * MS, abs=1.5 * MS)


def test_the_first_messages_may_have_waited() -> None:
    """What piled up before the connection was read is no clock that jumps."""
    clock = SourceClock(int(S / 60))
    for stamp, received in Device(6).messages(5.0):
        assert clock.observe(stamp, max(received, 50 * S + 400 * MS)) == 0
    assert clock.late_ns < 3 * MS


def test_nothing_is_said_before_anything_was_seen() -> None:
    assert SourceClock(10 * MS).estimate(0) is None
