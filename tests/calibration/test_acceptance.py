"""Acceptance in the manner of F2554: figures against known errors, bounds that hold, refusals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from calibration.acceptance import AcceptanceResult, judge_distances, judge_rotation, judge_single_point, report
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array
from navsrv.kernel.registration import Verdict

BLOCK = np.array([[0, 0, 0], [100, 0, 0], [0, 100, 0], [100, 100, 0], [50, 50, 30], [0, 50, 60], [80, 20, 40]], float)
TIP = np.array([0.0, 5.0, 150.0])
WRONG_TIP = np.array([4.0, 5.0, 150.0])


def turning(n: int = 60) -> Array:
    poses = np.tile(np.eye(4), (n, 1, 1))
    turns = Rotation.from_rotvec(0.4 * np.sin(np.outer(np.arange(n) / 10, (2.1, 3.3, 2.7))))
    poses[:, :3, :3] = turns.as_matrix()
    poses[:, :3, 3] = np.array((10.0, 20.0, -900.0)) - turns.apply(TIP)
    return poses


def test_single_point_bound_is_exceeded_once_in_twenty() -> None:
    """Catches a wrong count of degrees of freedom, or the spread of one axis given for that of three."""
    rng = np.random.default_rng(1)
    below = [judge_single_point(rng.normal(0.0, 0.1, (12, 3))).upper95_rms_mm for _ in range(1000)]
    true_rms = 0.1 * np.sqrt(3.0) * np.sqrt(11 / 12)  # about the mean of twelve
    assert 0.93 < np.mean(np.array(below) > true_rms) < 0.97


def test_rotation_shows_an_error_of_the_tip() -> None:
    good = judge_rotation(turning(), TIP)
    assert good.verdict is Verdict.ACCEPT
    assert good.largest_mm < 1e-9
    wrong = judge_rotation(turning(), WRONG_TIP)
    assert wrong.verdict is not Verdict.ACCEPT
    poses = turning()
    tips = poses[:, :3, :3] @ WRONG_TIP + poses[:, :3, 3]
    assert wrong.largest_mm == pytest.approx(max(np.linalg.norm(a - b) for a in tips for b in tips))


def test_distances_know_scale_and_no_frame() -> None:
    turn = Rotation.from_rotvec([0.4, 2.0, -0.3])
    exact = judge_distances(turn.apply(BLOCK + np.array((300.0, 0.0, -1500.0))), BLOCK)
    assert exact.verdict is Verdict.ACCEPT
    assert exact.largest_mm < 1e-9
    assert exact.count == 21
    stretched = judge_distances(turn.apply(BLOCK * 1.01), BLOCK)
    lengths = [float(np.linalg.norm(a - b)) for i, a in enumerate(BLOCK) for b in BLOCK[:i]]
    assert stretched.mean_mm == pytest.approx(0.01 * np.mean(lengths))
    assert stretched.largest_mm == pytest.approx(0.01 * max(lengths))
    assert stretched.verdict is not Verdict.ACCEPT


def test_report_names_each_test_and_claims_no_compliance() -> None:
    tips = np.random.default_rng(2).normal(0.0, 0.05, (20, 3))
    text = report([judge_single_point(tips), judge_rotation(turning(), TIP), judge_distances(BLOCK, BLOCK)])
    assert "in the manner of ASTM F2554; no claim of compliance" in text
    assert [line.split("  ")[0] for line in text.splitlines()[2:]] == ["single point", "rotation", "distance"]


@pytest.mark.parametrize(
    ("judge", "complaint"),
    [
        (lambda: judge_single_point(np.zeros((4, 3))), "4 points, at least 10"),
        (lambda: judge_single_point(np.zeros((20, 3))), "1 different tips of 20"),
        (lambda: judge_single_point(np.full((20, 3), np.nan)), "point 1 is not finite"),
        (lambda: judge_rotation(np.tile(np.eye(4), (20, 1, 1)), TIP), "19 of 20 poses repeat"),
        (lambda: judge_rotation(turning()[:5], TIP), "5 poses"),
        (lambda: judge_rotation(turning() @ np.diag([1.0, -1.0, 1.0, 1.0]), TIP), "mirrors"),
        (lambda: judge_distances(BLOCK[:3], BLOCK[:3]), "3 points, at least 4"),
        (lambda: judge_distances(BLOCK, BLOCK[:6]), "7 measured points against 6"),
        (lambda: judge_distances(BLOCK, BLOCK * 0.1), r"points 5 and 7 are 4\.\d+ mm apart"),
    ],
)
def test_bad_data_is_refused(judge: Callable[[], AcceptanceResult], complaint: str) -> None:
    with pytest.raises(CalibrationError, match=complaint):
        judge()
