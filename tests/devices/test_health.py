import pytest

from devices.health import Freshness, FreshnessRule

MS = 1_000_000
FRESH, DEGRADED, STALE, LOST = Freshness

# The contract: degraded beyond 2 periods; stale beyond 100 ms or 3 periods, whichever is longer; lost beyond 500 ms,
# but never before stale.  Rate (Hz), then the last ages (ms) that are fresh, degraded and stale.
CONTRACT = [
    (1000.0, 2, 100, 500),
    (250.0, 8, 100, 500),
    (100.0, 20, 100, 500),
    (50.0, 40, 100, 500),
    (30.0, 66.666666, 100, 500),
    (25.0, 80, 120, 500),
    (10.0, 200, 300, 500),
    (5.0, 400, 600, 600),
    (1.0, 2000, 3000, 3000),
]


@pytest.mark.parametrize(("rate_hz", "fresh_ms", "degraded_ms", "stale_ms"), CONTRACT)
def test_the_contracts_defaults(rate_hz: float, fresh_ms: float, degraded_ms: float, stale_ms: float) -> None:
    rule = FreshnessRule.for_rate(rate_hz)
    ages = {
        0: FRESH,
        int(fresh_ms * MS): FRESH,
        int(fresh_ms * MS) + 1: DEGRADED,
        int(degraded_ms * MS): DEGRADED,
        int(degraded_ms * MS) + 1: STALE if degraded_ms < stale_ms else LOST,
        int(stale_ms * MS): STALE if degraded_ms < stale_ms else DEGRADED,
        int(stale_ms * MS) + 1: LOST,
        10**15: LOST,
    }
    assert {age: rule.judge(age) for age in ages} == ages


@pytest.mark.parametrize("rate_hz", [row[0] for row in CONTRACT])
def test_next_change_is_the_first_age_that_is_judged_worse(rate_hz: float) -> None:
    rule = FreshnessRule.for_rate(rate_hz)
    age, seen = 0, []
    while (then := rule.next_change_ns(age)) is not None:
        assert rule.judge(then - 1) < rule.judge(then)
        assert rule.judge(then - 1) == rule.judge(age)
        age = then
        seen.append(rule.judge(age))
    assert seen[-1] is LOST
    assert seen == sorted(seen)


def test_a_pose_from_the_future_is_fresh() -> None:
    rule = FreshnessRule.for_rate(100.0)
    assert rule.judge(-5 * MS) is FRESH
    assert rule.next_change_ns(-5 * MS) == 20 * MS + 1


def test_a_site_may_choose_other_limits() -> None:
    rule = FreshnessRule.for_rate(100.0, stale_ms=50.0, lost_ms=20.0)
    assert (rule.judge(50 * MS), rule.judge(50 * MS + 1)) == (DEGRADED, LOST)
