"""Owns what a scenario's TOML says: the case, the room, the needle's way, the faults, and what must be shown."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from navsrv.guidance.alarms import Condition
from navsrv.kernel.checking import Checker, rule
from navsrv.kernel.errors import ConfigError
from simulators.faults import FAULTS, FaultOrder, Place

State = Literal["OK", "DEGRADED", "SNAPSHOT", "STALE", "LOST", "UNREGISTERED", "FAULT"]
PROCESSES = ("loop", "hub", "recorder")
ACCEPTED = "accepted"


@dataclass(frozen=True, slots=True)
class TrackerStory:
    """The tracker: its noise is a root-mean-square length, its latency from exposure to write."""

    rate_hz: float = rule(60.0, low=1.0, high=1000.0)
    latency_ms: float = rule(14.0, low=0.0, high=500.0)
    noise_mm: float = rule(0.1, low=0.0, high=10.0)
    noise_deg: float = rule(0.02, low=0.0, high=10.0)


@dataclass(frozen=True, slots=True)
class ShiftStory:
    """A body that moves once: ``patient`` (with the reference on it), or ``reference`` (knocked; the bone stays)."""

    body: Literal["patient", "reference"]
    at_s: float = rule(low=0.0, high=86400.0)
    move_mm: tuple[float, ...] = rule((0.0, 0.0, 0.0), length=3, low=-500.0, high=500.0)
    turn_deg: tuple[float, ...] = rule((0.0, 0.0, 0.0), length=3, low=-180.0, high=180.0)


@dataclass(frozen=True, slots=True)
class PatientStory:
    """How the patient moves; breathing carries the reference along."""

    breathing_mm: float = rule(0.0, low=0.0, high=50.0)
    shifts: tuple[ShiftStory, ...] = ()


@dataclass(frozen=True, slots=True)
class NeedleStory:
    """How the needle moves: held at a depth below the skin on the plan, or inserted along it.

    ``towards``: an excursion off the plan to a structure, to a true clearance (below 0 it touches).
    """

    way: Literal["hold", "insert"] = "hold"
    depth_mm: float = rule(30.0, low=-100.0, high=200.0)
    speed_mm_s: float = rule(10.0, low=0.5, high=100.0)
    towards: str | None = None
    closest_mm: float = rule(3.0, low=-10.0, high=50.0)
    leave_depth_mm: float = rule(50.0, low=5.0, high=200.0)
    tremor_mm: float = rule(0.06, low=0.0, high=5.0)


@dataclass(frozen=True, slots=True)
class HiddenStory:
    """A tool that something stands before."""

    tool: str
    at_s: float = rule(low=0.0, high=86400.0)
    for_s: float = rule(low=0.0, high=86400.0)


@dataclass(frozen=True, slots=True)
class CommandStory:
    """What the operator does: an operation of the command port whose arguments are texts and switches.

    The text ``accepted`` for an ``id`` stands for that of the registration with which the story begins.
    """

    op: str
    at_s: float = rule(low=0.0, high=86400.0)
    texts: dict[str, str] = rule(factory=dict)
    switches: dict[str, bool] = rule(factory=dict)

    def args(self, registration_id: str) -> dict[str, Any]:
        """Return the arguments as the command port takes them."""
        texts = dict(self.texts)
        if texts.get("id") == ACCEPTED:
            texts["id"] = registration_id
        return {**texts, **self.switches}


@dataclass(frozen=True, slots=True)
class ImageStory:
    """An O-arm that spins; ``series`` is the seed of the patient whose volume is sent."""

    at_s: float = rule(low=0.0, high=86400.0)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What must be shown between two times of the story (s); each key given is judged by itself.

    Attributes
    ----------
    state : states, one of which at least one frame shows
    only : states that every frame shows one of
    alarm, no_alarm : conditions (or ids) that at least one frame, or no frame, has
    priority : of the alarm, at least once
    ok_within_s : from the begin, the state is OK again after at most so long, and stays so until the end
    proposal : verdicts; at least one frame proposes a registration with one of them; ``none``: no frame proposes one
    silent : no frame comes
    """

    why: str
    from_s: float = rule(low=0.0, high=86400.0)
    to_s: float = rule(low=0.0, high=86400.0)
    state: tuple[State, ...] = ()
    only: tuple[State, ...] = ()
    alarm: str | None = None
    priority: Literal["high", "medium", "low"] | None = None
    no_alarm: tuple[str, ...] = ()
    ok_within_s: float | None = rule(None, low=0.0, high=600.0)
    proposal: tuple[Literal["accept", "doubt", "refuse", "none"], ...] = ()
    silent: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole story.  ``registered``: it begins with a registration accepted that is right to ``registration_mm``."""

    title: str
    story: str
    duration_s: float = rule(low=0.5, high=3600.0)
    case: str = "phantom"
    config: str = "room.toml"
    seed: int = rule(1, low=0, high=2**31)
    registered: bool = True
    registration_mm: float = rule(0.3, low=0.0, high=50.0)
    tracker: TrackerStory = rule(factory=TrackerStory)
    patient: PatientStory = rule(factory=PatientStory)
    needle: NeedleStory = rule(factory=NeedleStory)
    hidden: tuple[HiddenStory, ...] = ()
    commands: tuple[CommandStory, ...] = ()
    images: tuple[ImageStory, ...] = ()
    faults: tuple[FaultOrder, ...] = ()
    expect: tuple[Expectation, ...] = ()

    @property
    def needs_server(self) -> str | None:
        """Why it cannot be played in virtual time, or None."""
        real = [order.fault for order in self.faults if not FAULTS[order.fault].virtual]
        if real:
            return f"the fault {real[0]} needs the real server"
        return "its images need the real server" if self.images else None


def load_scenario(path: Path) -> Scenario:
    """Return a scenario.

    Raises
    ------
    ConfigError
        With every fault: file, key, what is wrong, what would be right.
    """
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read ({error}); expected a scenario in TOML"]) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError([f"{path}: not TOML: {error}; expected a scenario as in examples/scenarios"]) from None
    checker = Checker(str(path))
    scenario = checker.table(Scenario, data, "")
    if scenario is not None:
        _cross_check(checker, scenario)
    if checker.faults or scenario is None:
        raise ConfigError(checker.faults)
    return scenario


def _cross_check(checker: Checker, scenario: Scenario) -> None:
    if not scenario.expect:
        checker.fault("expect", "nothing is expected", "at least one [[expect]]")
    known = {condition.value for condition in Condition}
    for i, expect in enumerate(scenario.expect):
        key = f"expect[{i}]"
        if not expect.from_s < expect.to_s <= scenario.duration_s:
            wrong = f"from {expect.from_s:g} to {expect.to_s:g} s"
            checker.fault(key, wrong, f"a span within the story's {scenario.duration_s:g} s")
        for name in (*((expect.alarm,) if expect.alarm is not None else ()), *expect.no_alarm):
            if name.partition(":")[0] not in known:
                checker.fault(key, f"no alarm is called {name!r}", "one of " + ", ".join(sorted(known)))
        if expect.priority is not None and expect.alarm is None:
            checker.fault(key, "a priority without an alarm", "alarm beside it")
        judged = (expect.state, expect.only, expect.alarm, expect.no_alarm, expect.ok_within_s, expect.proposal)
        if not any(judged) and expect.ok_within_s is None and not expect.silent:
            checker.fault(key, "judges nothing", "state, only, alarm, no_alarm, ok_within_s, proposal or silent")
    for i, order in enumerate(scenario.faults):
        key = f"faults[{i}]"
        if (order.at_s is None) == (order.rate_per_min is None):
            checker.fault(key, "at_s and rate_per_min are both given or both missing", "one of the two")
        if FAULTS[order.fault].place is Place.PROCESS and order.device not in PROCESSES:
            checker.fault(f"{key}.device", f"{order.device!r}", "one of " + ", ".join(PROCESSES))
        if order.fault == "slow_link" and order.size <= 0.0:
            checker.fault(f"{key}.amount", f"{order.size:g} bytes/s", "more than 0")
