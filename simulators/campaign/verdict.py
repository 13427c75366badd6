"""Owns the judgement of one insertion: what the frames said, held against what was true.

Definitions, the same everywhere.  The *bound* of a structure is the least ``lower_mm`` of its rows in a frame; it
*crosses* a limit in the first frame that has it below (at breach: not above).  A *signal* is an alarm of that level or
a higher one for that structure in a frame's alarms.  *Contact* is the true clearance at or below zero at an exposure;
it was *preceded by a warning* when the last frame with geometry that left before that exposure signalled one, or a
breach; ``blind_s`` is how long before the contact that was, where geometry had been lost meanwhile.  A *nuisance* alarm
appears while the true clearance is above its limit by more than two of the row's sigmas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.frames import Array
from navsrv.pipeline.inputs import Input
from navsrv.pipeline.pipeline import Output
from navsrv.pipeline.setup import Setup
from navsrv.wire.guidance import GuidanceFrame
from simulators.campaign.insertion import Insertion

LEVELS: Final = ("caution", "warning", "breach")
WARNING: Final = 2
SIGMAS: Final = 2.0
NEAR_MM: Final = 15.0
"""Bounds of structures farther away than this say nothing about coverage where it matters."""
SETTLE_MM: Final = 0.5
"""An approach is over once the needle is this much farther away than its limit."""

Ints = NDArray[np.signedinteger[Any]]


@dataclass(slots=True)
class FrameLog:
    """What of each frame is judged, taken as it comes, from the first pose after the accepted registration on.

    It keeps no frame: numbers of all rows (frames, rows), to be reduced to structures at once.
    """

    structures: tuple[str, ...]
    times_ns: list[int] = field(default_factory=list)
    pose_times_ns: list[int] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    tips: list[tuple[float, float, float] | None] = field(default_factory=list)
    lower: list[list[float | None]] = field(default_factory=list)
    distance: list[list[float | None]] = field(default_factory=list)
    sigma: list[list[float | None]] = field(default_factory=list)
    signals: list[tuple[tuple[str, str], ...]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    _present: frozenset[str] = frozenset()
    _begun: bool = False
    row_names: tuple[str, ...] | None = None

    def take(self, item: Input, outputs: Sequence[Output]) -> None:
        """Take the outputs of one input."""
        for output in outputs:
            if isinstance(output, GuidanceFrame):
                if not self._begun:
                    self._begun = output.pose_time_ns is not None and output.registration.state == "accepted"
                if self._begun:
                    self._frame(output)

    def _frame(self, frame: GuidanceFrame) -> None:
        self.times_ns.append(frame.received_ns)
        self.pose_times_ns.append(-1 if frame.pose_time_ns is None else frame.pose_time_ns)
        self.states.append(frame.state)
        self.tips.append(frame.tip_ct_mm)
        rows = frame.structures
        if self.row_names is None:
            self.row_names = tuple(row.name for row in rows)
        if frame.tip_ct_mm is not None:
            self.lower.append([row.lower_mm for row in rows])
            self.distance.append([row.distance_mm for row in rows])
            self.sigma.append([row.sigma_mm for row in rows])
        if frame.alarms:
            active = [a for a in frame.alarms if a.phase == "active" or a.phase == "acknowledged"]
            self.signals.append(tuple((a.condition, a.structure or "") for a in active if a.condition in LEVELS))
            present = frozenset(a.id for a in frame.alarms)
            for alarm in frame.alarms:
                if alarm.id not in self._present and alarm.condition not in LEVELS:
                    self.others[alarm.condition] += 1
            self._present = present
        else:
            self.signals.append(())
            self._present = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """The log as arrays over frames (F) and structures (S); numbers are NaN where there was no geometry."""

    times_ns: Ints
    exposure: Ints
    valid: NDArray[np.bool_]
    lower: Array
    sigma: Array
    distance: Array
    rank: Ints
    true: Array


def judge(log: FrameLog, insertion: Insertion, setup: Setup, end_ns: int) -> dict[str, Any]:
    """Return the line of results of one insertion."""
    seen = _arrays(log, insertion)
    limits = {s.name: s.limits for s in setup.structures}
    levels = np.array([[limits[n].caution_mm, limits[n].warning_mm, limits[n].breach_mm] for n in log.structures])
    contacts = _contacts(seen, insertion, log)
    return {
        **insertion.drawn.told(),
        "seconds": round((end_ns - int(insertion.received_ns[0])) / 1e9, 3),
        "frames": len(log.times_ns),
        "least_mm": round(float(insertion.clearance_mm.min()), 3),
        "nearest": log.structures[int(insertion.clearance_mm.min(axis=0).argmin())],
        "registration_error_mm": round(insertion.registration_error_mm, 4),
        "states_s": _states(log, end_ns),
        "contacts": contacts,
        "latency_frames": _latencies(seen, levels),
        **_late(seen, log, levels[:, 1]),
        "alarms": _raised(seen, levels),
        "other_alarms": dict(log.others),
        **_coverage(seen, insertion),
    }


def _arrays(log: FrameLog, insertion: Insertion) -> _Seen:
    frames, count = len(log.times_ns), len(log.structures)
    valid = np.array([tip is not None for tip in log.tips])
    lower, distance, sigma = (np.full((frames, count), np.nan) for _ in range(3))
    if valid.any():
        lower[valid], distance[valid], sigma[valid] = _nearest_rows(log)
    index = {name: i for i, name in enumerate(log.structures)}
    rank = np.zeros((frames, count), dtype=np.int64)
    for n, signals in enumerate(log.signals):
        for condition, structure in signals:
            if structure in index:
                rank[n, index[structure]] = max(rank[n, index[structure]], 1 + LEVELS.index(condition))
    exposure = _exposures(log, insertion)
    true = insertion.clearance_mm[np.maximum(exposure, 0)]
    return _Seen(np.array(log.times_ns), exposure, valid, lower, sigma, distance, rank, true)


def _nearest_rows(log: FrameLog) -> tuple[Array, Array, Array]:
    """Return bound, distance and sigma (F, S) of each structure's row with the least bound: its tip or its shaft."""
    rows = [np.array(numbers, dtype=np.float64) for numbers in (log.lower, log.distance, log.sigma)]
    found = [np.empty((len(log.lower), len(log.structures))) for _ in rows]
    every = np.arange(len(log.lower))
    names = np.array(log.row_names)
    for s, name in enumerate(log.structures):
        of = np.flatnonzero(names == name)
        least = of[rows[0][:, of].argmin(axis=1)]
        for row, out in zip(rows, found, strict=True):
            out[:, s] = row[every, least]
    return found[0], found[1], found[2]


def _exposures(log: FrameLog, insertion: Insertion) -> Ints:
    """Return the exposure (F,) that each frame is about, by its stamp; -1 without a pose."""
    stamps = np.array(log.pose_times_ns, dtype=np.int64)
    found = np.clip(np.searchsorted(insertion.stamps_ns, stamps - 1000), 0, len(insertion.stamps_ns) - 1)
    return np.where(stamps < 0, -1, found)


def _states(log: FrameLog, end_ns: int) -> dict[str, float]:
    """Return the seconds in each state: a state stands until the next frame."""
    seconds: dict[str, float] = {}
    for state, at, until in zip(log.states, log.times_ns, [*log.times_ns[1:], end_ns], strict=True):
        seconds[state] = seconds.get(state, 0.0) + (until - at) / 1e9
    return {state: round(s, 4) for state, s in seconds.items()}


def _contacts(seen: _Seen, insertion: Insertion, log: FrameLog) -> list[dict[str, Any]]:
    """Return each structure that was touched: when first, how long a warning had stood, or why there was none."""
    found = []
    for s in np.flatnonzero(insertion.clearance_mm.min(axis=0) <= 0.0).tolist():
        first = int(np.flatnonzero(insertion.clearance_mm[:, s] <= 0.0)[0])
        at_ns = int(insertion.exposed_ns[first])
        before = np.flatnonzero(seen.times_ns < at_ns)
        shown = before[seen.valid[before]]
        at_s = (at_ns - int(insertion.exposed_ns[0])) / 1e9
        entry: dict[str, Any] = {"structure": log.structures[s], "at_s": round(at_s, 3)}
        if len(shown) and seen.rank[shown[-1], s] >= WARNING:
            quiet = np.flatnonzero(seen.rank[shown, s] < WARNING)
            since = shown[0] if not len(quiet) else shown[quiet[-1] + 1]
            entry["warned_s"] = round((at_ns - int(seen.times_ns[since])) / 1e9, 4)
            if shown[-1] != before[-1]:
                entry["blind_s"] = round((at_ns - int(seen.times_ns[shown[-1]])) / 1e9, 3)
        else:
            entry["cause"] = _cause(seen, insertion, log, before, s, at_ns)
        found.append(entry)
    return found


def _cause(seen: _Seen, insertion: Insertion, log: FrameLog, before: Ints, s: int, at_ns: int) -> str:
    """Return why no warning stood when a contact came."""
    if not len(before):
        return "contact before the first frame"
    last = int(before[-1])
    if not seen.valid[last]:
        gone = before[seen.valid[before]]
        since_s = (at_ns - int(seen.times_ns[gone[-1]])) / 1e9 if len(gone) else float("inf")
        return f"no geometry: {log.states[last]} for {since_s:.2f} s, shown as such"
    error = seen.distance[last, s] - seen.true[last, s]
    bound, sigma, true = seen.lower[last, s], seen.sigma[last, s], seen.true[last, s]
    return (
        f"bound {bound:.2f} mm, truth {true:.2f} mm: measured {error:.2f} mm too far, {error / sigma:.1f} sigma;"
        f" drawn were {_drawn(insertion, s)}"
    )


def _drawn(insertion: Insertion, s: int) -> str:
    """Return the lasting errors of an insertion, the largest first."""
    drawn = insertion.drawn
    errors = {
        "registration": drawn.registration_mm,
        "structure larger than its surface": float(insertion.enlarged_mm[s]),
        "bend": drawn.bend_mm,
        "tip": drawn.tip_mm,
        "tracker bias": drawn.tool_bias_mm,
    }
    return ", ".join(f"{name} {mm:.1f} mm" for name, mm in sorted(errors.items(), key=lambda e: -abs(e[1])))


def _latencies(seen: _Seen, levels: Array) -> dict[str, dict[str, int]]:
    """Return, by level, how many crossings of the bound were signalled after how many frames; ``never`` if not at all.

    Frames without geometry cross nothing: after them the bound is taken anew.
    """
    found: dict[str, dict[str, int]] = {}
    for k, level in enumerate(LEVELS):
        limit = levels[:, k]
        below = seen.lower <= limit if level == "breach" else seen.lower < limit
        crossed = below.copy()
        crossed[1:] &= ~below[:-1]
        for n, s in zip(*np.nonzero(crossed), strict=True):
            signalled = np.flatnonzero(seen.rank[n:, s] > k)
            gone = np.flatnonzero(~below[n:, s])
            delay = int(signalled[0]) if len(signalled) else -1
            missed = delay < 0 or (len(gone) > 0 and delay >= gone[0])
            key = "never" if missed else str(delay)
            counts = found.setdefault(level, {})
            counts[key] = counts.get(key, 0) + 1
    return found


def _late(seen: _Seen, log: FrameLog, warning_mm: Array) -> dict[str, Any]:
    """Return how often the *true* clearance crossed the warning limit, and each time no warning stood a frame later.

    One for each approach: crossings within ``SETTLE_MM`` of the last are tremor.  ``frames`` is how many later a
    warning came, -1 if none did; ``past_mm`` how far beyond the limit the needle truly was by then.
    """
    late: list[dict[str, Any]] = []
    approaches = 0
    with_pose = np.flatnonzero(seen.exposure >= 0)
    for s, limit in enumerate(warning_mm.tolist()):
        inside, last = False, -2
        for n in with_pose[seen.true[with_pose, s] < limit + SETTLE_MM].tolist():
            if inside and n > last + 1:
                inside = False
            last = n
            if inside or seen.true[n, s] >= limit:
                continue
            inside = True
            approaches += 1
            later = np.flatnonzero(seen.rank[n:, s] >= WARNING)
            delay = int(later[0]) if len(later) else -1
            if 0 <= delay <= 1:
                continue
            cause = "no geometry" if not seen.valid[n] else "bound above the truth"
            during = seen.true[n : n + delay, s] if delay > 0 else seen.true[n:, s]
            past = round(limit - float(during.min()), 3)
            late.append({"structure": log.structures[s], "frames": delay, "past_mm": past, "cause": cause})
    return {"approaches": approaches, "late": late}


def _raised(seen: _Seen, levels: Array) -> dict[str, int]:
    """Return how many alarms of each level appeared, and how many of them were nuisances."""
    found = {f"{kind}{level}": 0 for level in LEVELS for kind in ("", "nuisance ")}
    before = np.zeros(seen.rank.shape[1], dtype=np.int64)
    for n in np.flatnonzero(seen.valid).tolist():
        risen = np.flatnonzero(seen.rank[n] > before)
        for s in risen.tolist():
            k = int(seen.rank[n, s]) - 1
            found[LEVELS[k]] += 1
            if seen.true[n, s] > levels[s, k] + SIGMAS * seen.sigma[n, s]:
                found[f"nuisance {LEVELS[k]}"] += 1
        before = seen.rank[n]
    return found


def _coverage(seen: _Seen, insertion: Insertion) -> dict[str, Any]:
    """Return how often the bound held among near structures, over all frames and for one frame drawn at random; TRE."""
    near = seen.valid[:, None] & (seen.true < NEAR_MM)
    held = near & (seen.true >= seen.lower)
    rng = np.random.default_rng([insertion.drawn.seed, 0xC0])
    pairs = np.argwhere(near)
    one = None
    if len(pairs):
        n, s = pairs[rng.integers(len(pairs))]
        excess = float((seen.lower[n, s] - seen.true[n, s]) / seen.sigma[n, s])
        one = {"held": bool(held[n, s]), "excess_sigma": round(excess, 3)}
    return {"near": int(near.sum()), "held": int(held.sum()), "one": one}


def tip_errors(log: FrameLog, insertion: Insertion) -> dict[str, float]:
    """Return the error (mm) of the shown tip: root mean square over the insertion, and where it came closest."""
    shown = np.array([t if t is not None else (np.nan,) * 3 for t in log.tips], dtype=np.float64)
    exposure = _exposures(log, insertion)
    error = np.linalg.norm(shown - insertion.tips_ct_mm[np.maximum(exposure, 0)], axis=1)
    if not np.isfinite(error).any():
        return {}
    least = insertion.clearance_mm.min(axis=1)[np.maximum(exposure, 0)]
    closest = int(np.nanargmin(np.where(np.isfinite(error), least, np.nan)))
    return {
        "tip_rms_mm": round(float(np.sqrt(np.nanmean(error**2))), 4),
        "tip_at_closest_mm": round(float(error[closest]), 4),
    }
