"""What becomes of a registration with time: each finding against its limits, by numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from navsrv.kernel.frames import CT, REFERENCE, Frame, Rigid, rotation_from_vector
from navsrv.kernel.registration import RegistrationResult, Verdict
from navsrv.registration.health import (
    Health,
    HealthLimits,
    Source,
    judge_check_shot,
    judge_landmark,
    judge_motion,
)

TURN = rotation_from_vector([0.4, -0.2, 1.1])
TARGET = np.array([10.0, -20.0, 300.0])


def registration(sigma_mm: float = 0.0, shift_mm: float = 0.0) -> Rigid:
    covariance = np.zeros((6, 6))
    covariance[3:, 3:] = np.eye(3) * sigma_mm**2
    return Rigid(CT, REFERENCE, TURN, np.array([5.0 + shift_mm, 6.0, 7.0]), covariance)


def check(shift_mm: float, verdict: Verdict, tre_mm: float = 0.0) -> RegistrationResult:
    return RegistrationResult("fluoro", registration(0.0, shift_mm), TARGET, tre_mm, None, verdict, "as told")


@pytest.mark.parametrize("source", [Source.REFERENCE_MOVED, Source.PATIENT_MOVED])
@pytest.mark.parametrize(
    ("moved_mm", "health"),
    [(0.0, "accepted"), (1.0, "accepted"), (1.01, "unverified"), (5.0, "unverified"), (5.01, "expired")],
)
def test_a_motion_counts_from_its_limit_on(source: Source, moved_mm: float, health: str) -> None:
    found = judge_motion(source, moved_mm)
    assert found.health.value == health
    assert f"{moved_mm:.1f} mm" in found.reason


@pytest.mark.parametrize("unknown", [math.nan, math.inf])
def test_what_is_not_known_is_never_healthy(unknown: float) -> None:
    """Catches a comparison that a NaN passes."""
    assert judge_motion(Source.PATIENT_MOVED, unknown).health is not Health.ACCEPTED
    touched = np.array([np.nan, 0.0, 0.0])
    assert judge_landmark(registration(), TARGET, touched, 0.5).health is not Health.ACCEPTED


@pytest.mark.parametrize(
    ("sigma_mm", "touch_mm", "off_mm", "health"),
    [
        (0.0, 0.0, 1.4, "accepted"),
        (0.0, 0.0, 1.6, "unverified"),
        (0.0, 0.0, 6.1, "expired"),
        # 1.5 + 1.645 sqrt(3) sqrt(0.6^2 + 0.8^2) = 4.35 mm
        (0.6, 0.8, 4.3, "accepted"),
        (0.6, 0.8, 4.4, "unverified"),
        (math.nan, 0.0, 1.6, "unverified"),
    ],
)
def test_a_landmark_is_judged_by_what_touch_and_registration_may_be_wrong_by(
    sigma_mm: float, touch_mm: float, off_mm: float, health: str
) -> None:
    """Catches the wrong frame, sigmas added that are independent, and one per axis taken for one in all."""
    transform = registration(0.0 if math.isnan(sigma_mm) else sigma_mm)
    if math.isnan(sigma_mm):
        transform = Rigid(CT, REFERENCE, transform.rotation, transform.translation_mm)
    touched = transform.inverse().apply(TARGET + off_mm * np.array([0.6, 0.0, 0.8]))
    found = judge_landmark(transform, TARGET, touched, touch_mm)
    assert found.value_mm == pytest.approx(off_mm)
    assert found.health.value == health


@pytest.mark.parametrize(
    ("shift_mm", "verdict", "health"),
    [
        (0.5, Verdict.ACCEPT, "accepted"),
        (0.5, Verdict.DOUBT, "accepted"),
        (3.0, Verdict.ACCEPT, "unverified"),
        (9.0, Verdict.DOUBT, "expired"),
        (0.0, Verdict.REFUSE, "unverified"),
        (9.0, Verdict.REFUSE, "unverified"),
    ],
)
def test_a_check_shot_counts_where_it_is_worth_something(shift_mm: float, verdict: Verdict, health: str) -> None:
    """Catches a refused check that confirms, and one that ends a registration which may be right."""
    found = judge_check_shot(registration(), check(shift_mm, verdict))
    assert found.health.value == health
    if verdict is Verdict.REFUSE:
        assert "as told" in found.reason


def test_a_vague_check_shot_says_less() -> None:
    """Catches a predicted error that is left out: 1.5 + 1.645 x 2 = 4.8 mm is what may be said of this one."""
    assert judge_check_shot(registration(), check(4.0, Verdict.ACCEPT, tre_mm=2.0)).health is Health.ACCEPTED
    assert judge_check_shot(registration(), check(5.0, Verdict.ACCEPT, tre_mm=2.0)).health is Health.UNVERIFIED


def test_what_makes_no_sense_is_refused_in_words() -> None:
    other = RegistrationResult(
        "cbct", Rigid.identity(CT, Frame("table")), TARGET, 1.0, None, Verdict.ACCEPT, "another frame"
    )
    with pytest.raises(ValueError, match="cannot check"):
        judge_check_shot(registration(), other)
    with pytest.raises(ValueError, match="no motion"):
        judge_motion(Source.LANDMARK, 1.0)
    with pytest.raises(ValueError, match="the lower one first"):
        HealthLimits(moved_mm=(2.0, 1.0))
