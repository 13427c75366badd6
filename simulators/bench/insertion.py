"""Owns ``navsrv bench insertion``: what an insertion of 60 s at 60 Hz costs in virtual time, part by part.

World and bytes made, the server's pipeline, the judging; on the structures and with the errors of the shipped campaign.
``--workers N`` says how many insertions of that campaign one worker makes in a second, and how many N make together.
Beside them the yardstick of ``bench imagers``, by which a busy or slow machine is known.
"""

from __future__ import annotations

import gc
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from simulators.arguments import Parser, whole
from simulators.bench.imagers import timed, yardstick
from simulators.campaign.insertion import SOURCE, make_insertion
from simulators.campaign.run import Order, Stage, on_processes, play, prepare, stage_of
from simulators.campaign.spec import Distribution, Sight, Spec, load_spec
from simulators.campaign.verdict import judge, tip_errors
from simulators.composition import Composition

SPEC: Final = Path(__file__).parents[2] / "examples" / "campaign.toml"
RATE_HZ: Final = 60.0
STORY_S: Final = 60.0
LIMIT_S: Final = 0.6
ROUNDS: Final = 3
COUNTED: Final = 60
"""Insertions for each worker whose rate is measured, after those that load and compile."""


def arguments() -> Parser:
    """Return the command line."""
    parser = Parser("bench insertion", "What an insertion in virtual time costs.", "navsrv bench insertion")
    parser.prog = "navsrv bench insertion"
    parser.add_argument("--workers", type=whole(0, 64), default=0, metavar="N", help="1 against N processes too (0)")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    return parser


def main(argv: list[str]) -> int:
    """Measure and tell; return 1 when an insertion costs more than it may."""
    args = arguments().parse_args(argv)
    spec, _ = load_spec(SPEC)
    order = prepare(spec, SPEC, lambda what, part: None)
    stage = long_stage(order)
    rounds = [one_insertion(stage, seed) for seed in range(ROUNDS + 1)][1:]
    best = min(rounds, key=lambda r: r["all_s"])
    found: dict[str, Any] = {
        "load_average": round(os.getloadavg()[0], 2),
        "yardstick": timed(yardstick),
        "structures": len(stage.composition.setup.structures),
        "best": best,
        "rounds": rounds,
    }
    if args.workers:
        found["workers"] = {str(n): insertions_per_s(order, n) for n in sorted({1, args.workers})}
    print(json.dumps(found) if args.json else table(found), flush=True)
    return int(best["all_s"] > LIMIT_S)


def long_stage(order: Order) -> Stage:
    """Return a stage whose insertions go along the plan for the whole story, in sight all the time."""
    stage = stage_of(order)
    spec: Spec = stage.spec
    declared = f"trackers.{SOURCE}.rate_hz={RATE_HZ}"
    composition = Composition.load(SPEC.parent / spec.config, Path(order.case_folder), [declared])
    motion = replace(
        spec.motion,
        drift_share=0.0,
        hold_s=Distribution("constant", 0.0),
        advance_mm_s=Distribution("constant", stage.room.plan.depth_mm / (STORY_S - 1.0)),
    )
    return Stage(replace(spec, rate_hz=RATE_HZ, motion=motion, sight=Sight()), composition, stage.room)


def one_insertion(stage: Stage, seed: int) -> dict[str, float]:
    """Return what one insertion costs (s of one processor), part by part."""
    gc.collect()
    gc.disable()
    begun = time.process_time()
    insertion = make_insertion(stage.spec, stage.room, seed)
    made = time.process_time()
    log, end_ns = play(stage, insertion)
    played = time.process_time()
    judge(log, insertion, stage.composition.setup, end_ns)
    tip_errors(log, insertion)
    judged = time.process_time()
    gc.enable()
    parts = {"make_s": made - begun, "pipeline_s": played - made, "judge_s": judged - played, "all_s": judged - begun}
    story_s = float(np.ptp(insertion.exposed_ns)) / 1e9
    return {name: round(s, 3) for name, s in parts.items()} | {"story_s": round(story_s, 1), "frames": len(log.states)}


def insertions_per_s(order: Order, workers: int) -> float:
    """Return how many insertions of the campaign so many processes make in a second, once each has made one."""
    warm = 5 * workers
    lines = on_processes(order, range(1, 1 + 2 * warm + COUNTED * workers), workers)
    for _ in range(2 * warm):
        next(lines)
    begun = time.perf_counter()
    count = sum(1 for _ in lines)
    return round(count / (time.perf_counter() - begun), 2)


def table(found: dict[str, Any]) -> str:
    """Return the figures for a person."""
    best = found["best"]
    lines = [
        f"{found['structures']} structures; load average {found['load_average']};"
        f" yardstick {found['yardstick']['cpu_s']:.2f} s",
        f"{best['story_s']:g} s at {RATE_HZ:g} Hz, {best['frames']} frames, best of {len(found['rounds'])}:"
        f" {best['all_s']:.2f} s of one processor (world {best['make_s']:.2f}, pipeline {best['pipeline_s']:.2f},"
        f" judging {best['judge_s']:.2f})",
    ]
    lines += [f"{n} workers: {rate:.1f} insertions/s" for n, rate in found.get("workers", {}).items()]
    return "\n".join(lines)
