"""Campaigns: what is judged can be found wrong, a seed means the same to everybody, a campaign cut off goes on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navsrv.kernel.errors import ConfigError, InputError
from navsrv.server.cli import main as navsrv
from simulators.campaign.insertion import Insertion, make_insertion
from simulators.campaign.main import main
from simulators.campaign.run import Order, Stage, play, run_seed, run_seeds, stage_of
from simulators.campaign.spec import Spec, load_spec
from simulators.campaign.statistics import rate, share
from simulators.campaign.verdict import FrameLog, judge
from simulators.world.truth import Truth

ROOM = Path(__file__).parents[3] / "examples" / "scenarios" / "room.toml"
SPEC = """
insertions = {count}
case = "{case}"
config = "{room}"
first_seed = 40
rate_hz = 60.0
worst_kept = 1
[motion]
drift_share = {drift}
closest_mm = {{ kind = "uniform", a = -2.0, b = -0.5 }}
advance_mm_s = {{ kind = "constant", a = 25.0 }}
drift_mm_s = {{ kind = "constant", a = 12.0 }}
bend_mm = {{ kind = "uniform", a = 0.0, b = 0.4 }}
[errors]
registration_mm = {{ kind = "{kind}", a = {error}, b = 5.0 }}
"""


def spec_file(folder: Path, case: Path, count: int = 3, drift: float = 1.0, error: str = "student 0.4") -> Path:
    kind, mm = error.split()
    path = folder / "campaign.toml"
    path.write_text(SPEC.format(count=count, case=case, room=ROOM, drift=drift, kind=kind, error=mm))
    return path


@pytest.fixture
def order(phantom: Path, tmp_path: Path) -> Order:
    """Return an order of insertions that all go into a structure."""
    return Order(str(spec_file(tmp_path, phantom)), str(phantom))


@pytest.fixture
def told(order: Order) -> tuple[Stage, Insertion, FrameLog, int]:
    """Return one of them, played."""
    stage = stage_of(order)
    insertion = make_insertion(stage.spec, stage.room, 40)
    return stage, insertion, *play(stage, insertion)


def verdict(told: tuple[Stage, Insertion, FrameLog, int]) -> dict[str, Any]:
    stage, insertion, log, end_ns = told
    return judge(log, insertion, stage.composition.setup, end_ns)


def test_a_contact_is_warned_of_in_the_very_frame_in_which_the_bound_crosses(
    told: tuple[Stage, Insertion, FrameLog, int],
) -> None:
    line = verdict(told)
    assert line["least_mm"] < 0.0
    assert [c["structure"] for c in line["contacts"]] == [line["structure"]]
    assert line["contacts"][0]["warned_s"] > 0.1
    assert set(line["latency_frames"]) == {"caution", "warning", "breach"}
    assert all(set(counts) == {"0"} for counts in line["latency_frames"].values())
    assert sum(line["states_s"].values()) == pytest.approx(line["seconds"], abs=0.2)


def test_the_truth_of_an_insertion_is_the_slow_truth_of_its_needle(
    phantom: Path, told: tuple[Stage, Insertion, FrameLog, int]
) -> None:
    stage, insertion, log, _ = told
    truth, tool = Truth.from_case(phantom), stage.room.tool
    some = np.linspace(0, len(insertion.sent) - 1, 12).astype(int)
    tips, hubs = insertion.tips_ct_mm[some], insertion.hubs_ct_mm[some]
    assert np.linalg.norm(tips - hubs, axis=1) == pytest.approx(tool.length_mm, abs=0.5)
    of_tip, of_shaft = truth.distance(tips), truth.shaft_distance(tips, hubs, tool.radius_mm)
    for s, name in enumerate(log.structures):
        slow = np.minimum(of_tip[name], of_shaft[name]) - insertion.enlarged_mm[s]
        assert np.abs(slow - insertion.clearance_mm[some, s]).max() < 1e-3


def test_signals_that_come_later_than_they_should_are_found(told: tuple[Stage, Insertion, FrameLog, int]) -> None:
    stage, insertion, log, end_ns = told
    late = replace(log, signals=[(), (), (), *log.signals[:-3]])
    counts = verdict((stage, insertion, late, end_ns))["latency_frames"]
    assert all({"3", "never"} & set(of) for of in counts.values())
    mute = replace(log, signals=[()] * len(log.signals))
    line = verdict((stage, insertion, mute, end_ns))
    assert set(line["latency_frames"]["warning"]) == {"never"}
    assert "measured" in line["contacts"][0]["cause"]
    assert line["late"][0]["frames"] == -1


def test_errors_beyond_what_the_server_was_told_are_misses_and_nuisances(phantom: Path, tmp_path: Path) -> None:
    # 12 mm along each axis, and the server told 0.6: into structures unwarned, and alarms where nothing is near.
    wrong = Order(str(spec_file(tmp_path, phantom, error="constant 12.0")), str(phantom))
    lines = [run_seed(wrong, seed) for seed in range(40, 46)]
    assert any("cause" in c and "registration 20.8 mm" in c["cause"] for line in lines for c in line["contacts"])
    assert sum(line["alarms"]["nuisance warning"] for line in lines) > 0
    assert np.mean([line["held"] / line["near"] for line in lines]) < 0.9


def test_a_seed_is_the_same_insertion_alone_or_among_others_and_its_recording_replays(
    order: Order, tmp_path: Path
) -> None:
    several = run_seeds(order, (40, 41))
    alone = run_seed(order, 41, tmp_path / "alone.mcap")
    assert {**alone, "cost_s": 0.0} == {**several[1], "cost_s": 0.0}
    assert navsrv(["replay", str(tmp_path / "alone.mcap"), "--verify"]) == 0


def test_a_campaign_that_was_cut_off_goes_on_and_ends_as_if_it_had_not_been(
    phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = str(spec_file(tmp_path, phantom, drift=0.5))
    whole, cut, report = tmp_path / "whole", tmp_path / "cut", tmp_path / "campaign.md"
    assert main([spec, "--out", str(whole), "--json"]) == 0
    cut.mkdir()
    lines = (whole / "runs.jsonl").read_text().splitlines(keepends=True)
    (cut / "runs.jsonl").write_text("".join(lines[:2]) + lines[2][:70])
    with pytest.raises(InputError, match="--resume"):
        main([spec, "--out", str(cut)])
    assert main([spec, "--out", str(cut), "--resume", "--json", "--report", str(report)]) == 0
    one, other = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    for figures in (one, other):
        del figures["command"], figures["cost_s"]
    assert one == other
    assert report.read_text().startswith("# 3 simulated insertions")
    assert "![figures](campaign.svg)" in report.read_text()
    assert (tmp_path / "campaign.svg").read_text().startswith("<svg")
    (tmp_path / "campaign.toml").write_text(Path(spec).read_text() + "jitter_ms = 0.7\n")
    with pytest.raises(InputError, match="another spec"):
        main([spec, "--out", str(cut), "--resume"])


def test_every_fault_of_a_spec_is_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(
        'insertions = 0\ncase = "sacrum"\nconfig = "room.toml"\nspeed = 1\n[motion]\ndrift_share = 1.5\n'
        'drift_mm_s = { kind = "normal", a = 5.0, b = 1.0 }\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_spec(path)
    assert {fault.split(": ")[1] for fault in caught.value.faults} == {"insertions", "speed", "motion.drift_share"}
    path.write_text(
        'insertions = 1\ncase = "sacrum"\nconfig = "room.toml"\n'
        '[motion]\ndrift_mm_s = { kind = "normal", a = 5.0, b = 1.0 }\n'
        '[errors]\ntip_mm = { kind = "uniform", a = 2.0, b = 1.0 }\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_spec(path)
    assert [fault.split(": ")[1] for fault in caught.value.faults] == ["errors.tip_mm", "motion.drift_mm_s"]


def test_the_shipped_campaign_has_what_it_is_made_for() -> None:
    spec, _ = load_spec(ROOM.parents[1] / "campaign.toml")
    assert isinstance(spec, Spec)
    assert spec.insertions == 10_000
    assert 0.3 < 1.0 - spec.motion.drift_share < 0.7, "quiet navigation in a share"
    assert spec.motion.closest_mm.a < 0.0, "contact in some"
    assert spec.errors.noise_dof < 10.0, "noise is not Gaussian"


@pytest.mark.parametrize(("count", "of", "low", "high"), [(0, 100, 0.0, 0.036217), (5, 50, 0.033275, 0.218135)])
def test_shares_have_the_exact_interval(count: int, of: int, low: float, high: float) -> None:
    # Published values of the Clopper-Pearson interval: 0 of 100, and 5 of 50.
    found = share(count, of)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize(("count", "low", "high"), [(0, 0.0, 3.6889), (3, 0.6187, 8.7673), (10, 4.7954, 18.3904)])
def test_rates_have_the_exact_interval(count: int, low: float, high: float) -> None:
    # Tables of the Poisson mean (Garwood 1936).
    found = rate(count, 2.0)
    assert (found.low * 2.0, found.high * 2.0) == pytest.approx((low, high), abs=1e-4)
