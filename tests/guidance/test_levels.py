import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from navsrv.guidance.levels import LEVELS, LevelState, Limits, rank_of, step_level, step_unknown

MS = 1_000_000
LIMITS = Limits()
GAP = None
BOUND = st.one_of(st.floats(-3.0, 14.0), st.sampled_from([0.0, 0.5, 5.0, 5.5, 10.0, 10.5]))
HISTORY = st.lists(
    st.tuples(st.one_of(st.just(GAP), BOUND, BOUND, BOUND), st.sampled_from([1, 4, 100, 499, 500, 501, 2000])),
    max_size=60,
)


def run(history: Sequence[tuple[float | None, int]], limits: Limits = LIMITS) -> list[tuple[int, float | None, int]]:
    """Return (time ns, bound or None, rank) of each step of a history of (bound, ms since the step before)."""
    state, now, steps = LevelState(), 0, []
    for bound, ms in history:
        now += ms * MS
        state = step_unknown(state, now) if bound is None else step_level(state, bound, limits, now)
        steps.append((now, bound, state.rank))
    return steps


@pytest.mark.parametrize(
    ("bound", "level"),
    [
        (math.inf, "none"),
        (10.0, "none"),
        (math.nextafter(10.0, 0), "caution"),
        (5.0, "caution"),
        (math.nextafter(5.0, 0), "warning"),
        (1e-12, "warning"),
        (0.0, "breach"),
        (-0.0, "breach"),
        (-4.0, "breach"),
        (-math.inf, "breach"),
        (math.nan, "breach"),
    ],
)
def test_the_level_of_a_bound(bound: float, level: str) -> None:
    assert LEVELS[rank_of(bound, LIMITS)] == level
    assert step_level(LevelState(), bound, LIMITS, 0).level == level


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("bound", [9.0, 4.0, 0.0, -1.0])
def test_raising_is_immediate_from_every_level(before: int, bound: float) -> None:
    for clearing in (None, -(10**12), 0):
        state = step_level(LevelState(before, clearing, 20.0), bound, LIMITS, 1)
        assert state.rank >= rank_of(bound, LIMITS)


# Rank before, the bound that is held by the hysteresis, the first that is not, the rank it falls to.
EDGES = [
    (1, 10.49, 10.5, 0),
    (2, 5.49, 5.5, 1),
    (2, 5.49, 10.5, 0),
    (3, 0.5, 0.51, 2),
    (3, 0.5, 5.5, 1),
    (3, 0.5, 99.0, 0),
]


@pytest.mark.parametrize(("rank", "held", "clear", "after"), EDGES)
def test_hysteresis_then_hold_then_fall(rank: int, held: float, clear: float, after: int) -> None:
    state = LevelState(rank, None, -9.0)
    state = step_level(state, held, LIMITS, 0)
    for now in range(0, 5000 * MS, 100 * MS):  # held for good
        state = step_level(state, held, LIMITS, now)
    assert (state.rank, state.clearing_since_ns) == (rank, None)
    start = 10_000 * MS
    for after_ms, expected in ((0, rank), (250, rank), (499, rank), (500, after)):
        state = step_level(state, clear, LIMITS, start + after_ms * MS)
        assert state.rank == expected, f"{after_ms} ms after the bound was clear"


def test_a_dip_into_the_hysteresis_starts_the_hold_again() -> None:
    steps = run([(4.0, 1), (6.0, 1), (5.2, 400), (6.0, 200), (6.0, 400), (6.0, 99), (6.0, 1)])
    assert [rank for _, _, rank in steps] == [2, 2, 2, 2, 2, 2, 1]


def test_nothing_falls_on_a_bound_that_falls() -> None:
    away = [(4.0, 1), (20.0, 1), (19.0, 600), (18.0, 600), (18.0, 1)]
    assert [rank for _, _, rank in run(away)] == [2, 2, 2, 2, 0]


def test_a_gap_keeps_the_hysteresis_and_counts_as_clearing() -> None:
    assert run([(4.9, 1), (GAP, 1), (5.2, 5000)])[-1][2] == 2
    assert run([(4.9, 1), (GAP, 1), (300.0, 5000)])[-1][2] == 0
    assert run([(4.9, 1), (GAP, 1), (300.0, 100), (300.0, 300), (300.0, 100)])[-2:][0][2] == 2
    assert run([(4.9, 1), (GAP, 1), (300.0, 100), (300.0, 300), (300.0, 100)])[-1][2] == 0


@given(HISTORY)
def test_no_level_falls_while_the_bound_falls(history: list[tuple[float | None, int]]) -> None:
    known = [(bound, rank) for _, bound, rank in run(history) if bound is not None]
    for (bound, rank), (next_bound, next_rank) in pairwise(known):
        if next_bound < bound:
            assert next_rank >= rank


@given(HISTORY)
def test_a_level_is_never_below_its_bound_and_falls_only_after_the_hold(
    history: list[tuple[float | None, int]],
) -> None:
    steps = run(history)
    shown = 0
    for i, (now, bound, rank) in enumerate(steps):
        if bound is None:
            assert rank == shown
            continue
        assert rank >= rank_of(bound, LIMITS)
        if rank < shown:
            assert rank == rank_of(bound, LIMITS, LIMITS.hysteresis_mm)
            held = [t for t, b, _ in steps[:i] if b is not None and rank_of(b, LIMITS, LIMITS.hysteresis_mm) >= shown]
            assert now - max(held) >= LIMITS.clear_after_ns
        shown = rank


@given(HISTORY)
def test_without_hysteresis_and_hold_a_rising_bound_shows_its_own_level(
    history: list[tuple[float | None, int]],
) -> None:
    last = -math.inf
    for _, bound, rank in run(history, Limits(hysteresis_mm=0.0, clear_after_ns=0)):
        if bound is not None:
            if bound >= last:
                assert rank == rank_of(bound, LIMITS)
            last = bound
