"""``navsrv simulate SCENARIO.toml``: one story, played and judged."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from simulators.arguments import Parser
from simulators.scenario.spec import Scenario, load_scenario
from simulators.scenario.stage import Stage, make_stage
from simulators.scenario.virtual_run import play_virtual
from simulators.scenario.watched import Shown, against_truth, judged, recovery_s


def arguments() -> Parser:
    """Return the parser of ``navsrv simulate SCENARIO.toml``."""
    parser = Parser(
        "SCENARIO.toml",
        "A story with faults, played against the real server over sockets, or in virtual time through its pipeline;\n"
        "exit 1 when something that the story expects was not shown.",
        "navsrv simulate examples/scenarios/nerve.toml --virtual",
    )
    parser.prog = "navsrv simulate"
    parser.add_argument("scenario", type=Path, metavar="SCENARIO.toml")
    parser.add_argument("--virtual", action="store_true", help="in virtual time, without sockets")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep recording, truth and verdict here")
    parser.add_argument("--show", action="store_true", help="list every change of state and alarms")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    return parser


def main(argv: list[str]) -> int:
    """Play a scenario; return 0 when every expectation was met, 1 when one was not."""
    args = arguments().parse_args(argv)
    scenario = load_scenario(args.scenario)
    stage = make_stage(scenario, args.scenario.parent)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    if args.virtual:
        recording = None if args.out is None else args.out / f"{args.scenario.stem}.mcap"
        result, shown = run_virtual(stage, recording)
    else:
        from simulators.scenario.live_run import play_live

        with tempfile.TemporaryDirectory(prefix="navsrv-scenario-") as folder:
            begun = time.monotonic()
            played = play_live(stage, args.scenario.parent, args.out or Path(folder))
            shown = played.shown
            result = _result(stage, shown, played.stamps_ns, time.monotonic() - begun)
            result |= {"mode": "sockets", "recording": played.recording if args.out else None}
    if args.out is not None:
        write_truth(args.out / f"{args.scenario.stem}.truth.npz", stage, result["stamps_ns"])
    del result["stamps_ns"]
    if args.out is not None:
        (args.out / f"{args.scenario.stem}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.show and not args.json:
        print("\n".join(changes(shown)))
    print(json.dumps(result) if args.json else summary(scenario, result), flush=True)
    return 0 if result["met"] else 1


def run_virtual(stage: Stage, recording: Path | None = None) -> tuple[dict[str, Any], list[Shown]]:
    """Return the result of a scenario in virtual time, and what was shown."""
    begun = time.perf_counter()
    shown, stamps_ns = play_virtual(stage, recording)
    took_s = time.perf_counter() - begun
    result = _result(stage, shown, stamps_ns, took_s)
    return result | {"mode": "virtual", "recording": None if recording is None else str(recording)}, shown


def changes(shown: Sequence[Shown]) -> list[str]:
    """Return a line for each change of state or alarms."""
    lines, before = [], None
    for item in shown:
        frame = item.frame
        alarms = tuple(f"{a.id}({a.priority[0]}{'' if a.phase == 'active' else ' ' + a.phase})" for a in frame.alarms)
        now = (frame.state, alarms)
        if now != before:
            before = now
            lines.append(f"  {item.at_s:7.3f} s  {frame.state:12} {' '.join(alarms)}  {frame.reason}".rstrip())
    return lines


def _result(stage: Stage, shown: list[Shown], stamps_ns: Any, took_s: float) -> dict[str, Any]:
    scenario = stage.scenario
    verdicts = judged(scenario.expect, shown)
    expectations = []
    for expect, verdict in zip(scenario.expect, verdicts, strict=True):
        entry = asdict(verdict)
        if expect.ok_within_s is not None:
            entry["recovered_s"] = round(recovery_s(expect, shown), 3)
        expectations.append(entry)
    return {
        "scenario": scenario.title,
        "met": all(v.met for v in verdicts),
        "expectations": expectations,
        "story_s": scenario.duration_s,
        "took_s": round(took_s, 4),
        "times_real_speed": round(scenario.duration_s / took_s, 1),
        "frames": len(shown),
        "truth": against_truth(stage, stamps_ns, shown),
        "stamps_ns": stamps_ns,
    }


def write_truth(path: Path, stage: Stage, stamps_ns: Any) -> None:
    """Write the truth of a run: needle and clearances at the stamps of the exposures, before any fault."""
    np.savez_compressed(
        path,
        pose_time_ns=stamps_ns,
        tip_ct_mm=stage.tips_ct_mm,
        hub_ct_mm=stage.hubs_ct_mm,
        structures=np.array(stage.structures.names),
        clearance_mm=stage.clearance_mm,
        T_ct_from_ref=stage.scene.T_ct_from_ref.matrix,
    )


def summary(scenario: Scenario, result: dict[str, Any]) -> str:
    """Return the result for a person."""
    lines = [
        f"{scenario.title}: {'met' if result['met'] else 'NOT MET'} ({result['mode']}, {scenario.duration_s:g} s in"
        f" {result['took_s']:.2f} s, {result['frames']} frames)"
    ]
    for entry in result["expectations"]:
        recovered = f" (after {entry['recovered_s']:.2f} s)" if "recovered_s" in entry else ""
        lines.append(f"  {'ok ' if entry['met'] else 'NOT'}  {entry['why']}{recovered}")
        if not entry["met"]:
            lines.append(f"       {entry['said']}")
    truth = result["truth"]
    lines.append(
        f"  shown against true clearance: largest error {truth['largest_error_mm']:.2f} mm below 15 mm,"
        f" least shown {truth['least_shown_mm']} mm, least true {truth['least_true_mm']} mm"
    )
    return "\n".join(lines)
