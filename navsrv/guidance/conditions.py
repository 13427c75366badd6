"""Owns the judgement of what holds: from measured rows and the plan to the conditions of ``alarms.py``.

Judged on the one-sided lower bound of each clearance, never on a smoothed value.  Each judgement that has a figure has
hysteresis: what holds already needs a clearer figure to end.  Refuses to judge validity and to remember anything but
what the alarm table of the step before says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from navsrv.guidance.alarm_life import AlarmTable, Present
from navsrv.guidance.alarms import RULES, Condition, Priority
from navsrv.guidance.levels import Limits
from navsrv.guidance.trajectory import Deviation
from navsrv.wire.guidance import StructureRow

Z95: Final = 1.6448536269514722
"""One-sided 95 % quantile of the normal distribution."""
SLOWER: Final = 0.8
"""Closing fast ends below this share of its speed, or above its time divided by this."""
SURER: Final = 0.9
"""Uncertain ends below this share of its limit."""
TARGET_HYSTERESIS_MM: Final = 1.0
LEVEL_CONDITIONS: Final = (None, Condition.CAUTION, Condition.WARNING, Condition.BREACH)
"""By rank of the level."""
NAVIGATING: Final = frozenset(("navigation", "ablation", "cement"))
"""Phases in which somebody must be looking."""
LOSSES: Final = frozenset(
    (Condition.TOOL_LOST, Condition.REFERENCE_LOST, Condition.SOURCE_STALE, Condition.LINK_DOWN),
)


@dataclass(frozen=True, slots=True)
class SiteLimits:
    """Limits that are not of one structure.  All are defaults to be confirmed at each site.

    Only the second for a brief loss has a source (blips shorter than that are what operating rooms do not want to
    hear: facts.md 1.4); the others are the project's own choice, none is from a published series.
    """

    target_reached_mm: float = 2.0
    corridor_watch_mm: float = 30.0
    """A tip farther beside the path than this is not following it."""
    corridor_hysteresis_mm: float = 0.2
    brief_loss_ns: int = 1_000_000_000
    """A loss of line of sight shorter than this stays low in priority: nobody can act on a blip."""
    away_mm: float = 100.0
    """A tool that was last seen farther than this from every structure is outside the volume: its loss is low."""
    rate_fraction: float = 0.8
    jump_mm: float = 5.0
    gap_mm: float = 20.0
    moved_mm: float = 2.0
    deadline_misses: int = 3
    display_gone: bool = True


Watched = Sequence[tuple[int, Limits]]
"""Rows to judge by their place in a step's list, with the limits of their structure."""


def structure_conditions(
    rows: Sequence[StructureRow], ranks: Sequence[int], watched: Watched, held: AlarmTable
) -> list[Present]:
    """Return what holds of the watched rows: levels, closing fast, uncertain; most steps find nothing.

    Parameters
    ----------
    rows, ranks : sequence
        All rows of a placed tool with numbers in them, and the rank (0 to 3) of each one's level.
    held : mapping
        The tool's alarms of the step before, for hysteresis.
    """
    nearest, least, its = -1, math.inf, None
    levelled = False
    closing: list[tuple[StructureRow, Limits]] | None = None
    for i, limits in watched:
        row = rows[i]
        lower = row.lower_mm
        assert lower is not None
        if lower < least:
            nearest, least, its = i, lower, limits
        if ranks[i]:
            levelled = True
        speed = row.closing_mm_s
        if speed is not None and speed >= SLOWER * limits.closing_mm_s and lower < limits.near_mm:
            closing = [(row, limits)] if closing is None else [*closing, (row, limits)]
    found: list[Present] = []
    if levelled:
        found += _levels(rows, ranks, watched)
    if closing is not None:
        found += _closing_fast(closing, held)
    if its is not None and least < its.near_mm:
        found += _uncertain(rows[nearest], its, held)
    return found


def _levels(rows: Sequence[StructureRow], ranks: Sequence[int], watched: Watched) -> list[Present]:
    """Return one condition for each structure with a level: of its parts the worst, of equally bad ones the nearest."""
    worst: dict[str, tuple[int, float, StructureRow, Limits]] = {}
    for i, limits in watched:
        rank, row = ranks[i], rows[i]
        if rank:
            lower = row.lower_mm or 0.0
            said = worst.get(row.name)
            if said is None or (rank, -lower) > (said[0], -said[1]):
                worst[row.name] = (rank, lower, row, limits)
    return [_level(rank, row, limits) for rank, _, row, limits in worst.values()]


def _level(rank: int, row: StructureRow, limits: Limits) -> Present:
    condition = LEVEL_CONDITIONS[rank]
    assert condition is not None
    distance, lower = row.distance_mm or 0.0, row.lower_mm or 0.0
    limit = (math.inf, limits.caution_mm, limits.warning_mm, limits.breach_mm)[rank]
    figures = f"{distance:.1f} mm, at least {lower:.1f} mm"
    where = f"{row.name} ({row.part})"
    measured = _of_row(row) | {"threshold_mm": limit}
    if rank < 3:
        return Present(condition, row.name, f"{where}: {figures}", measured=measured)
    touches = distance <= 0.0
    fact = "Contact" if touches else "Contact possible" if lower <= limits.breach_mm else "Leaving contact"
    past = f"Contact was {'shown' if touches else 'possible'}: {where}"
    # The fact stands first: a display short of room cuts the end, and "contact" must not be left of "contact possible".
    return Present(condition, row.name, f"{fact}: {where}, {figures}", None, int(touches), past, measured)


def _of_row(row: StructureRow) -> dict[str, float | str | None]:
    return {
        "part": row.part,
        "distance_mm": row.distance_mm,
        "sigma_mm": row.sigma_mm,
        "lower_mm": row.lower_mm,
        "closing_mm_s": row.closing_mm_s,
    }


def _closing_fast(candidates: Sequence[tuple[StructureRow, Limits]], held: AlarmTable) -> list[Present]:
    """Return one condition for each structure that closes fast: of its parts the one that is there first."""
    soonest: dict[str, tuple[float, StructureRow, Limits]] = {}
    for row, limits in candidates:
        speed, lower = row.closing_mm_s or 0.0, row.lower_mm or 0.0
        eased = _holds(held, f"{Condition.CLOSING_FAST.value}:{row.name}")
        contact_s = max(0.0, lower) / speed if speed > 0.0 else math.inf
        if not eased and speed < limits.closing_mm_s:
            continue
        if contact_s > (limits.contact_s / SLOWER if eased else limits.contact_s):
            continue
        if row.name not in soonest or contact_s < soonest[row.name][0]:
            soonest[row.name] = (contact_s, row, limits)
    return [
        Present(
            Condition.CLOSING_FAST,
            name,
            f"Closing fast: {name} ({row.part}), {row.closing_mm_s or 0.0:.0f} mm/s, contact in {contact_s:.1f} s",
            past=f"Was closing fast: {name}",
            measured=_of_row(row)
            | {"contact_s": contact_s, "limit_mm_s": limits.closing_mm_s, "limit_s": limits.contact_s},
        )
        for name, (contact_s, row, limits) in soonest.items()
    ]


def _uncertain(row: StructureRow, limits: Limits, held: AlarmTable) -> list[Present]:
    margin = Z95 * (row.sigma_mm or 0.0)
    limit = limits.margin_mm * (SURER if _holds(held, Condition.UNCERTAIN.value) else 1.0)
    if not margin > limit:
        return []
    return [
        Present(
            Condition.UNCERTAIN,
            None,
            f"Uncertain: {row.name} ({row.part}) is known to {margin:.1f} mm only",
            past=f"Was uncertain near {row.name}",
            measured=_of_row(row) | {"margin_mm": margin, "threshold_mm": limits.margin_mm},
        )
    ]


def path_conditions(
    d: Deviation, length_mm: float, corridor_mm: float, site: SiteLimits, held: AlarmTable
) -> list[Present]:
    """Return what holds of the tool against a plan of this length and corridor."""
    slack = site.corridor_hysteresis_mm if _holds(held, Condition.OUTSIDE_CORRIDOR.value) else 0.0
    if d.lateral_mm > corridor_mm - slack:
        if d.depth_to_target_mm > length_mm or d.lateral_mm > site.corridor_watch_mm:
            return []
        return [
            Present(
                Condition.OUTSIDE_CORRIDOR,
                None,
                f"{d.lateral_mm:.1f} mm beside the planned path",
                past="Was beside the planned path",
                measured={"lateral_mm": d.lateral_mm, "angle_deg": d.angle_deg, "threshold_mm": corridor_mm},
            )
        ]
    slack = TARGET_HYSTERESIS_MM if _holds(held, Condition.TARGET_REACHED.value) else 0.0
    if abs(d.depth_to_target_mm) > site.target_reached_mm + slack:
        return []
    measured = {"depth_to_target_mm": d.depth_to_target_mm, "threshold_mm": site.target_reached_mm}
    return [
        Present(Condition.TARGET_REACHED, None, "Target reached", past="Target was reached", measured=measured),
    ]


def _holds(held: AlarmTable, alarm_id: str) -> bool:
    """Say whether the condition of an alarm held at the step before."""
    alarm = held.get(alarm_id)
    return alarm is not None and alarm.gone_since_ns is None


@dataclass(frozen=True, slots=True)
class Onset:
    """When something that geometry rests on went bad, and where the instrument was last seen then.

    ``close``: within a warning distance or nearer.  ``away``: far from every structure.  ``gone_since_ns``: since when
    it is well again, None while it is not.
    """

    since_ns: int
    close: bool = False
    away: bool = False
    gone_since_ns: int | None = None

    def well(self, now_ns: int) -> Onset | None:
        """Return the onset of what is well at ``now_ns``; None once that has lasted.

        A source whose age trembles about its limit is not brief time and again.
        """
        gone = now_ns if self.gone_since_ns is None else self.gone_since_ns
        if now_ns - gone >= RULES[Condition.SOURCE_STALE].clear_after_ns:
            return None
        return replace(self, gone_since_ns=gone)


def onset(now_ns: int, rows: Sequence[StructureRow], ranks: Sequence[int], site: SiteLimits) -> Onset:
    """Return the onset of something bad at ``now_ns``; ``rows`` and ``ranks`` are those last shown, empty if none."""
    if not rows:
        return Onset(now_ns)
    nearest = min(math.inf if row.distance_mm is None else row.distance_mm for row in rows)
    return Onset(now_ns, max(ranks) >= 2, nearest > site.away_mm)


def loss_priority(
    condition: Condition, began: Onset, now_ns: int, site: SiteLimits, *, own: bool, parked: bool, registered: bool
) -> Priority | None:
    """Return the priority of something that geometry rests on and that is not there; None for that of its rule.

    Parameters
    ----------
    own : bool
        It is the tool's own doing, not the reference's.
    """
    if condition in LOSSES:
        brief = condition is not Condition.LINK_DOWN and now_ns - began.since_ns < site.brief_loss_ns
        if brief or not registered or (own and (parked or began.away)):
            return Priority.LOW
    elif own and parked:
        return Priority.LOW
    return Priority.HIGH if began.close and not parked and RULES[condition].escalates else None


LIMIT_SOURCES: Final[Mapping[str, str]] = {
    "caution_mm": "10 mm is where published series begin monitoring (Nakatsuka 2009; Sola 2015)",
    "warning_mm": "commonly quoted; no primary source found",
    "breach_mm": "contact possible: the bound itself",
    "hysteresis_mm": "own choice: twice the noise of a clearance at rest",
    "clear_after_ns": "own choice",
    "near_mm": "own choice",
    "closing_mm_s": "own choice; needles are advanced at a few mm/s",
    "contact_s": "own choice: about the time to react and stop",
    "margin_mm": "own choice: doubt as large as the default warning distance",
    "target_reached_mm": "own choice",
    "corridor_watch_mm": "own choice",
    "corridor_hysteresis_mm": "own choice",
    "brief_loss_ns": "line-of-sight blips under 1 s are not wanted (alarm literature)",
    "away_mm": "own choice",
    "rate_fraction": "own choice",
    "jump_mm": "own choice: 100 mm/s over 50 ms; breathing stays below 20 mm/s",
    "gap_mm": "own choice",
    "moved_mm": "navigation loses 2 mm or more by manipulation and distance (series on spine navigation)",
    "deadline_misses": "own choice",
    "display_gone": "own choice; false for a room that reads ZeroMQ alone",
}
"""Where each default comes from, for the printed table."""
