"""The shipped stories in virtual time: what each expects is shown; and an expectation that is not met says so."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navsrv.kernel.errors import ConfigError, InputError
from navsrv.server.cli import main as navsrv
from simulators.faults import FAULTS, FaultName, FaultOrder, Place
from simulators.scenario.main import main
from simulators.scenario.spec import Expectation, Scenario, load_scenario
from simulators.scenario.stage import make_stage
from simulators.scenario.virtual_run import play_virtual
from simulators.scenario.watched import Shown, judged

FOLDER = Path(__file__).parents[3] / "examples" / "scenarios"
STORIES = {path.stem: load_scenario(path) for path in sorted(FOLDER.glob("*.toml")) if path.stem != "room"}
VIRTUAL = [name for name, scenario in STORIES.items() if scenario.needs_server is None]


FOR_GOOD = {"disk_full", "killed_process"}
"""Faults that do not pass: what is asserted instead of a recovery must hold until the story's end."""


def said(order: FaultOrder, scenario: Scenario) -> bool:
    """Say whether a story asserts what is shown while a fault is there: a state, an alarm, a proposal or silence."""
    assert order.at_s is not None
    return any(
        order.at_s <= e.from_s <= order.at_s + max(order.for_s, 0.5)
        and (e.state or e.only or e.alarm or e.proposal or e.silent)
        for e in scenario.expect
    )


def recovered(order: FaultOrder, scenario: Scenario) -> bool:
    """Say whether a story asserts how long a fault is felt: OK again within a time, or at no time anything else."""
    assert order.at_s is not None
    end_s = order.at_s + order.for_s
    if order.fault in FOR_GOOD:
        return any(e.to_s == scenario.duration_s and (e.only or e.silent) for e in scenario.expect)
    if FAULTS[order.fault].place is Place.IMAGE:
        return any(e.from_s > end_s and "accept" in e.proposal for e in scenario.expect)
    return any(
        e.to_s > end_s
        and ((e.ok_within_s is not None and e.from_s >= order.at_s) or (e.only == ("OK",) and e.from_s <= order.at_s))
        for e in scenario.expect
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_a_story_that_asserts_the_answer_and_the_recovery(fault: FaultName) -> None:
    told = [
        (order, scenario)
        for scenario in STORIES.values()
        for order in scenario.faults
        if order.fault == fault and order.at_s is not None
    ]
    assert told, "no story has it"
    assert any(said(*each) and recovered(*each) for each in told)


def test_there_are_twelve_stories_at_least() -> None:
    assert len(STORIES) >= 12


@pytest.mark.parametrize("name", VIRTUAL)
def test_a_story_in_virtual_time_shows_what_it_expects(
    name: str, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main([str(FOLDER / f"{name}.toml"), "--virtual", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert [e for e in result["expectations"] if not e["met"]] == []
    assert (status, result["met"]) == (0, True)


def test_what_was_recorded_replays_to_the_same_frames_beside_its_truth(
    phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(FOLDER / "broken_bytes.toml"), "--virtual", "--out", str(tmp_path)]) == 0
    assert navsrv(["replay", str(tmp_path / "broken_bytes.mcap"), "--verify"]) == 0
    assert "frames identical" in capsys.readouterr().out
    with np.load(tmp_path / "broken_bytes.truth.npz") as truth:
        assert truth["structures"].tolist() == ["Nerve", "Vessel", "Canal"]
        assert len(truth["pose_time_ns"]) == len(truth["tip_ct_mm"]) == len(truth["clearance_mm"])


def test_shown_clearances_are_the_true_ones_within_the_noise(phantom: Path) -> None:
    stage = make_stage(STORIES["contact"], FOLDER)
    shown, stamps = play_virtual(stage)
    at = {int(stamp): n for n, stamp in enumerate(stamps.tolist())}
    errors = []
    for item in shown:
        frame = item.frame
        n = at.get(frame.pose_time_ns or 0, at.get((frame.pose_time_ns or 0) + 1))
        if frame.tip_ct_mm is None or n is None:
            continue
        vessel = min(r.distance_mm or 0.0 for r in frame.structures if r.name == "Vessel")
        errors.append(vessel - stage.clearance_mm[n, stage.structures.names.index("Vessel")])
    assert len(errors) > 500
    # 0.3 mm of registration, 0.1 mm of noise with its lever, and the surface's triangles.
    assert np.abs(errors).max() < 1.0


def unmet(shown: list[Shown], **expected: Any) -> str:
    (verdict,) = judged([Expectation(**({"why": "w", "from_s": 0.2, "to_s": 4.0} | expected))], shown)
    return "" if verdict.met else verdict.said


def test_each_kind_of_expectation_can_fail(phantom: Path) -> None:
    shown, _ = play_virtual(make_stage(STORIES["line_of_sight"], FOLDER))
    assert unmet(shown, state=("FAULT",)).startswith("the state was never FAULT")
    assert "LOST at 1.5" in unmet(shown, only=("OK",))
    assert unmet(shown, alarm="breach").startswith("no alarm breach; seen: ")
    assert "was never high" in unmet(shown, alarm="tool_lost:Needle", priority="high")
    assert "alarm tool_lost at 1.5" in unmet(shown, no_alarm=("tool_lost",))
    assert "OK after" in unmet(shown, ok_within_s=0.5)
    assert "still LOST" in unmet(shown, to_s=2.0, ok_within_s=9.0)
    assert "frames came" in unmet(shown, silent=True)
    assert unmet(shown, proposal=("accept",)).startswith("no proposal")
    assert unmet(shown, from_s=3.9, to_s=3.901) == "no frame came"
    assert unmet(shown, alarm="tool_lost:Needle", priority="low", state=("LOST",)) == ""


def test_a_story_that_is_not_met_exits_with_1(
    phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (FOLDER / "line_of_sight.toml").read_text().replace('only = ["LOST"]', 'only = ["OK"]')
    (tmp_path / "room.toml").write_text((FOLDER / "room.toml").read_text())
    (tmp_path / "wrong.toml").write_text(text)
    assert main([str(tmp_path / "wrong.toml"), "--virtual"]) == 1
    assert "NOT  a hidden needle is lost at once" in capsys.readouterr().out


def test_every_fault_of_a_scenario_file_is_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(
        'title = "t"\nstory = "s"\nduration_s = 4.0\nspeed = 3\n[tracker]\nrate_hz = -1.0\n'
        '[[faults]]\nfault = "freze"\nat_s = 1.0\n[[faults]]\nfault = "jump"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_scenario(path)
    assert [fault.split(": ")[1] for fault in caught.value.faults] == ["speed", "tracker.rate_hz", "faults[0].fault"]
    path.write_text(
        'title = "t"\nstory = "s"\nduration_s = 4.0\n[[faults]]\nfault = "jump"\n'
        '[[faults]]\nfault = "disk_full"\ndevice = "main"\nat_s = 1.0\n'
        '[[expect]]\nwhy = "w"\nfrom_s = 3.0\nto_s = 9.0\nalarm = "braech"\n'
        '[[expect]]\nwhy = "w"\nto_s = 1.0\nfrom_s = 0.0\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_scenario(path)
    assert [fault.split(": ")[1] for fault in caught.value.faults] == [
        "expect[0]",
        "expect[0]",
        "expect[1]",
        "faults[0]",
        "faults[1].device",
    ]


def test_a_fault_that_only_a_kernel_can_do_is_refused_in_virtual_time(phantom: Path) -> None:
    with pytest.raises(InputError, match="half_open needs the real server"):
        play_virtual(make_stage(STORIES["half_open"], FOLDER))
