"""Owns what was shown during a scenario, and whether that is what its story expects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from navsrv.wire.guidance import GuidanceFrame
from simulators.scenario.spec import Expectation
from simulators.scenario.stage import Stage

SETTLED_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Shown:
    """One frame, at its time (s) from the start of the story."""

    at_s: float
    frame: GuidanceFrame


@dataclass(frozen=True, slots=True)
class Verdict:
    """One expectation, whether it was met, and what was seen instead."""

    why: str
    met: bool
    said: str


def judged(expectations: Sequence[Expectation], shown: Sequence[Shown]) -> list[Verdict]:
    """Return the verdict on each expectation."""
    return [_judge(expect, [s for s in shown if expect.from_s <= s.at_s < expect.to_s]) for expect in expectations]


def _judge(expect: Expectation, shown: Sequence[Shown]) -> Verdict:
    faults = _faults(expect, shown)
    return Verdict(expect.why, not faults, "; ".join(faults) or "as expected")


def _faults(expect: Expectation, shown: Sequence[Shown]) -> list[str]:
    """Return what was not as expected, in words."""
    if expect.silent:
        return [f"{len(shown)} frames came, the last at {shown[-1].at_s:.2f} s"] if shown else []
    if not shown:
        return ["no frame came"]
    found = []
    states = {s.frame.state for s in shown}
    if expect.state and not states & set(expect.state):
        found.append(f"the state was never {' or '.join(expect.state)}, only {', '.join(sorted(states))}")
    if expect.only:
        other = next((s for s in shown if s.frame.state not in expect.only), None)
        if other is not None:
            found.append(f"{other.frame.state} at {other.at_s:.2f} s: {other.frame.reason}")
    found += _alarm_faults(expect, shown)
    if expect.ok_within_s is not None:
        found += _recovery_faults(expect, shown)
    if expect.proposal:
        verdicts = {_verdict(s.frame) for s in shown} - {None}
        if expect.proposal == ("none",):
            found += [f"a registration was proposed ({v})" for v in verdicts]
        elif not verdicts & set(expect.proposal):
            found.append(f"no proposal with verdict {' or '.join(expect.proposal)}; seen: {sorted(map(str, verdicts))}")
    return found


def _verdict(frame: GuidanceFrame) -> str | None:
    return None if frame.proposal is None else frame.proposal.verdict


def _alarm_faults(expect: Expectation, shown: Sequence[Shown]) -> list[str]:
    found = []
    if expect.alarm is not None:
        seen = [a for s in shown for a in s.frame.alarms if expect.alarm in (a.id, a.condition)]
        if not seen:
            others = sorted({a.id for s in shown for a in s.frame.alarms})
            found.append(f"no alarm {expect.alarm}; seen: {', '.join(others) or 'none'}")
        elif expect.priority is not None and all(a.priority != expect.priority for a in seen):
            found.append(f"{expect.alarm} was never {expect.priority}, only {', '.join({a.priority for a in seen})}")
    for name in expect.no_alarm:
        first = next((s for s in shown if any(name in (a.id, a.condition) for a in s.frame.alarms)), None)
        if first is not None:
            found.append(f"alarm {name} at {first.at_s:.2f} s")
    return found


def _recovery_faults(expect: Expectation, shown: Sequence[Shown]) -> list[str]:
    assert expect.ok_within_s is not None
    bad = [s for s in shown if s.frame.state != "OK"]
    if not bad:
        return []
    last = bad[-1]
    if last is shown[-1]:
        return [f"still {last.frame.state} at {last.at_s:.2f} s: {last.frame.reason}"]
    took_s = last.at_s - expect.from_s
    return [] if took_s <= expect.ok_within_s else [f"OK after {took_s:.2f} s only (last: {last.frame.reason})"]


def recovery_s(expect: Expectation, shown: Sequence[Shown]) -> float:
    """Return how long after the begin of an expectation the last frame came that was not OK; 0 without one."""
    bad = [s.at_s for s in shown if expect.from_s <= s.at_s < expect.to_s and s.frame.state != "OK"]
    return max(bad, default=expect.from_s) - expect.from_s


def against_truth(stage: Stage, stamps_ns: Any, shown: Sequence[Shown]) -> dict[str, Any]:
    """Return how far shown clearances were from the true ones, over frames with geometry."""
    error, least_shown, least_true, judged_frames = 0.0, float("inf"), float("inf"), 0
    names = stage.structures.names
    for item in shown:
        frame = item.frame
        if frame.tip_ct_mm is None or frame.pose_time_ns is None:
            continue
        n = int(np.searchsorted(stamps_ns, frame.pose_time_ns - 1000))
        if n >= len(stamps_ns) or abs(int(stamps_ns[n]) - frame.pose_time_ns) > 1000:
            continue
        judged_frames += 1
        for s, name in enumerate(names):
            distance = min(r.distance_mm for r in frame.structures if r.name == name and r.distance_mm is not None)
            true = float(stage.clearance_mm[n, s])
            least_shown, least_true = min(least_shown, distance), min(least_true, true)
            if true < 15.0:
                error = max(error, abs(distance - true))
    return {
        "frames_judged": judged_frames,
        "largest_error_mm": round(error, 3),
        "least_shown_mm": round(least_shown, 3) if judged_frames else None,
        "least_true_mm": round(least_true, 3) if judged_frames else None,
    }
