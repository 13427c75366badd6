"""Owns the levels of one structure: caution, warning, breach, judged on the lower bound, with hysteresis.

Raising is immediate and never smoothed.  Falling needs the bound to stay above the limit by the hysteresis for
the hold time (the minimum duration delays only the clearing), and never happens while the bound falls.  A bound that
is not a number is a breach: what cannot be judged is not safe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

LEVELS: Final = ("none", "caution", "warning", "breach")


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds of one structure; those on distance are on its lower bound, millimetres.

    The defaults (caution 10, warning 5, breach 0) are defaults, to be confirmed at each site: 10 mm is the distance
    at which published series begin monitoring (Nakatsuka 2009; Sola 2015), 5 mm is quoted without a primary source.
    Speed, time and doubt (``closing_mm_s``, ``contact_s``, ``margin_mm``) count within ``near_mm`` only, so that a tool
    in the air raises nothing; they are the project's own choice.
    """

    caution_mm: float = 10.0
    warning_mm: float = 5.0
    breach_mm: float = 0.0
    hysteresis_mm: float = 0.5
    clear_after_ns: int = 500_000_000
    near_mm: float = 30.0
    closing_mm_s: float = 20.0
    contact_s: float = 1.0
    margin_mm: float = 5.0


@dataclass(frozen=True, slots=True)
class LevelState:
    """Rank of the level shown (0 to 3); since when a lower one would do, None while it would not; the last bound."""

    rank: int = 0
    clearing_since_ns: int | None = None
    lower_mm: float = math.inf

    @property
    def level(self) -> str:
        """The level's word in the frame."""
        return LEVELS[self.rank]


def rank_of(lower_mm: float, limits: Limits, margin_mm: float = 0.0) -> int:
    """Return 0 to 3 for a lower bound; ``margin_mm`` is added to every limit (for the way down).

    Breach includes its limit (contact possible at exactly 0); caution and warning are strictly below theirs.
    """
    # Asked this way round, so that a bound that is not a number counts as breach.
    if not lower_mm > limits.breach_mm + margin_mm:
        return 3
    if lower_mm < limits.warning_mm + margin_mm:
        return 2
    return 1 if lower_mm < limits.caution_mm + margin_mm else 0


def step_level(state: LevelState, lower_mm: float, limits: Limits, now_ns: int) -> LevelState:
    """Return the next level state for a lower bound at ``now_ns``.

    Raised at once.  Lowered to the rank that the bound has with the hysteresis added, once it stayed there for
    ``clear_after_ns``, and not by a bound that is nearer than the one before it.
    """
    raised = rank_of(lower_mm, limits)
    if raised >= state.rank:
        return LevelState(raised, None, lower_mm)
    held = rank_of(lower_mm, limits, limits.hysteresis_mm)
    if held >= state.rank:
        return LevelState(state.rank, None, lower_mm)
    since = state.clearing_since_ns if state.clearing_since_ns is not None else now_ns
    if now_ns - since >= limits.clear_after_ns and not lower_mm < state.lower_mm:
        return LevelState(held, None, lower_mm)
    return LevelState(state.rank, since, lower_mm)


def step_unknown(state: LevelState, now_ns: int) -> LevelState:
    """Return the level state while no bound is known: hysteresis survives the gap, its time counts as clearing."""
    return state if state.clearing_since_ns is not None else replace(state, clearing_since_ns=now_ns)
