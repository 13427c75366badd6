"""Temperature probes from SENSOR messages to frames: what is shown, and that what is not known is never a number."""

import math

import numpy as np
import pytest

from devices.thermometer import ProbeSpec
from navsrv.pipeline.inputs import SensorIn
from navsrv.pipeline.setup import ProbeSetup
from navsrv.wire.guidance import Temperature
from navsrv.wire.openigtlink import Message, Sensor, encode, timestamp_from_ns
from tests.pipeline.room import EPOCH_NS, MS, Room, at, make_setup, preset

LIMITS = (42.0, 45.0, 15.0, 10.0)


def room(unit: str = "celsius", rate_hz: float = 2.0) -> Room:
    spec = ProbeSpec("S1 left", "Thermo", 1, rate_hz, unit)  # type: ignore[arg-type]
    return Room(make_setup(preset=preset(), probes=(ProbeSetup(spec, *LIMITS),)))


def read(live: Room, celsius: float, stamp_ns: int | None = -1, device: str = "Thermo", status: int = 0) -> None:
    stamp = EPOCH_NS + live.now_ns if stamp_ns == -1 else stamp_ns
    live.give(SensorIn(live.now_ns, device, stamp, (99.0, celsius), 0, status))


def shown(live: Room) -> Temperature:
    (frame,) = live.tick_when_due()
    (temperature,) = frame.temperatures
    return temperature


def test_before_the_first_reading_it_is_unknown() -> None:
    assert shown(room()) == Temperature("S1 left", None, None, None, "unknown")


@pytest.mark.parametrize(
    ("celsius", "level"),
    [(37.0, "none"), (42.0, "caution"), (44.9, "caution"), (45.0, "warning"), (15.0, "caution"), (9.0, "warning")],
)
def test_a_reading_is_shown_with_its_level_and_age(celsius: float, level: str) -> None:
    live = room()
    read(live, celsius)
    live.wait(100)
    found = shown(live)
    assert (found.celsius, found.level) == (celsius, level)
    assert found.age_ms == pytest.approx(100.0)


def test_kelvin_is_turned_into_celsius() -> None:
    live = room("kelvin")
    read(live, 310.15)
    assert shown(live).celsius == pytest.approx(37.0)


def test_a_probe_that_falls_silent_is_unknown_with_its_age_while_guidance_goes_on() -> None:
    live = room()
    read(live, 37.0)
    live.wait(1900)
    assert live.pair(at(0.0, 0.0, 60.0)).temperatures[0].celsius == 37.0
    live.wait(200)
    frame = live.pair(at(0.0, 0.0, 60.0))
    assert frame.state == "OK"
    assert (frame.temperatures[0].celsius, frame.temperatures[0].level) == (None, "unknown")
    assert frame.temperatures[0].age_ms == pytest.approx(2100.0)


def test_temperatures_go_on_while_geometry_is_lost() -> None:
    live = room()
    live.down()
    read(live, 43.0)
    (frame,) = live.tick_when_due()
    assert frame.state == "LOST"
    assert (frame.temperatures[0].celsius, frame.temperatures[0].level) == (43.0, "caution")


@pytest.mark.parametrize(
    ("celsius", "status"), [(math.nan, 0), (math.inf, 0), (-300.0, 0), (4000.0, 0), (37.0, 13)], ids=str
)
def test_what_is_no_temperature_makes_it_unknown_at_once(celsius: float, status: int) -> None:
    live = room()
    read(live, 37.0)
    live.wait(500)
    read(live, celsius, status=status)
    found = shown(live)
    assert (found.celsius, found.level) == (None, "unknown")
    (report,) = [r for r in live.pipeline.report_sources(live.now_ns) if r.source == "probe S1 left"]
    assert (report.connected, report.counts["refused"], report.counts["accepted"]) == (False, 1, 1)


def test_a_repeated_or_late_reading_does_not_look_fresh() -> None:
    live = room()
    read(live, 37.0)
    stamp = EPOCH_NS + live.now_ns
    for old in (stamp, stamp - 1000 * MS):
        live.wait(1500)
        read(live, 60.0, stamp_ns=old)
    found = shown(live)
    assert (found.celsius, found.level) == (None, "unknown")
    (report,) = [r for r in live.pipeline.report_sources(live.now_ns) if r.source == "probe S1 left"]
    assert (report.counts["repeated"], report.counts["late"]) == (1, 1)


def test_the_rate_is_that_of_the_last_seconds() -> None:
    live = room()
    for n in range(12):
        read(live, 37.0 + 0.25 * n)
        live.wait(500)
    assert shown(live).rate_c_s == pytest.approx(0.5)


def test_another_device_is_not_listened_to() -> None:
    live = room()
    read(live, 37.0, device="Other")
    assert shown(live).celsius is None


def sensor(celsius: float, now_ns: int, device: str = "Thermo") -> bytes:
    return encode(Message(device, timestamp_from_ns(EPOCH_NS + now_ns), Sensor(np.array([99.0, celsius]))))


def test_readings_on_a_trackers_own_link_are_read_where_that_is_configured_and_nowhere_else() -> None:
    on_link = ProbeSetup(ProbeSpec("On link", "Thermo", 1, 2.0, source="main"), *LIMITS)
    pushed = ProbeSetup(ProbeSpec("Pushed", "Thermo", 1, 2.0), *LIMITS)
    live = Room(make_setup(preset=preset(), probes=(on_link, pushed)))
    frame = live.read(live.pose("Reference"), sensor(43.0, live.now_ns), live.pose("Needle", at(0.0, 0.0, 60.0)))[-1]
    assert frame.state == "OK"  # in the middle of poses
    live.wait(10)
    frame = live.pair(at(0.0, 0.0, 60.0))
    assert [(t.name, t.celsius, t.level) for t in frame.temperatures] == [
        ("On link", 43.0, "caution"),
        ("Pushed", None, "unknown"),
    ]
    live.down()
    live.wait(2100)
    live.tick()
    assert live.frames[-1].temperatures[0].level == "unknown"


def test_every_change_of_a_probe_is_logged_once_with_its_reason() -> None:
    live = room()
    for celsius, status in ((37.0, 0), (37.1, 0), (46.0, 0), (46.0, 13)):
        read(live, celsius, status=status)
        live.pair(at(0.0, 0.0, 60.0))
        live.wait(100)
    read(live, 37.0)
    for _ in range(30):  # poses go on, readings do not
        live.wait(100)
        live.pair(at(0.0, 0.0, 60.0))
    said = [note.text for note in live.notes if note.event == "temperature"]
    assert said[:4] == [
        "S1 left: 37.0 degrees C, level none (was unknown)",
        "S1 left: 46.0 degrees C, level warning (was none)",
        "S1 left: the device says status 13, level unknown (was warning)",
        "S1 left: 37.0 degrees C, level none (was unknown)",
    ]
    assert said[4:] == ["S1 left: no reading for 2.1 s, level unknown (was none)"]


def alarms(live: Room) -> dict[str, tuple[str, str]]:
    """Return id to (priority, text) of the newest frame's alarms about temperatures."""
    found = live.frames[-1].alarms
    return {a.id: (a.priority, a.text) for a in found if a.condition.startswith("temperature")}


def test_temperatures_have_alarms_of_their_own_and_go_on_while_geometry_is_lost() -> None:
    live = room()
    live.down()
    live.tick_when_due()
    assert alarms(live) == {}  # never read, and nobody heats
    for celsius, priority, limit in ((43.0, "low", 42), (46.0, "medium", 45), (9.0, "medium", 10), (12.0, "low", 15)):
        live.wait(100)
        read(live, celsius)
        live.tick_when_due()
        said = (priority, f"S1 left: {celsius:.1f} °C, limit {limit}")
        assert alarms(live) == {"temperature:S1 left": said}
    live.wait(100)
    read(live, 37.0)
    live.tick_when_due()
    assert "was beyond its limit" in alarms(live)["temperature:S1 left"][1]  # held for two seconds
    for _ in range(5):
        live.wait(500)
        read(live, 37.0)
        live.tick_when_due()
    assert alarms(live) == {}


def test_a_temperature_that_nobody_knows_is_an_alarm_and_graver_while_somebody_heats() -> None:
    live = room()
    live.pair(at(0.0, 0.0, 60.0))
    assert live.command("set_phase", phase="ablation").ok
    assert alarms(live)["temperature_unknown:S1 left"] == (
        "medium",
        "Temperature unknown: S1 left: no reading yet",
    )
    read(live, 37.0)
    live.wait(3000)
    live.pair(at(0.0, 0.0, 60.0))
    assert alarms(live)["temperature_unknown:S1 left"] == ("medium", "Temperature unknown: S1 left: it fell silent")
    assert live.command("set_phase", phase="finished").ok
    assert alarms(live)["temperature_unknown:S1 left"][0] == "low"
