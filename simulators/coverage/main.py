"""Owns the command of the coverage study."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from navsrv.anatomy.builtin import ensure_case
from simulators.arguments import Parser, whole
from simulators.coverage.heldout import read_table
from simulators.coverage.report import report
from simulators.coverage.statistics import tables
from simulators.coverage.trial import Room, Trial, run_trial

CONFIG: Final = Path(__file__).parents[2] / "examples" / "demo.toml"
TELL_EVERY_S: Final = 5.0


def arguments() -> Parser:
    """Return the parser of ``python -m simulators.coverage``."""
    parser = Parser(
        "coverage",
        "How often the lower bounds hold: each trial calibrates and registers anew in a room whose noise is neither\n"
        "normal nor drawn from what the server assumes. Ends with 1 if a coverage lies outside 94 to 99.5 %.",
        "python -m simulators.coverage --trials 200 --seed 1",
    )
    parser.prog = "python -m simulators.coverage"
    parser.add_argument("--trials", type=whole(2, 1_000_000), default=4000, help="trials (4000, three minutes)")
    parser.add_argument("--seed", type=whole(0, 2**40), default=1, help="first seed (1)")
    parser.add_argument("--report", type=Path, metavar="FILE.md", help="write the report here")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the study; return the exit status."""
    args = arguments().parse_args(list(argv))
    room = Room.open(CONFIG, ensure_case("sacrum"), read_table())
    began = told = time.monotonic()
    trials: list[Trial] = []
    for number in range(args.trials):
        trials.append(run_trial(room, args.seed + number))
        if sys.stderr.isatty() and time.monotonic() - told > TELL_EVERY_S:
            told = time.monotonic()
            print(f"{number + 1} of {args.trials} trials", file=sys.stderr)
    rows = tables(trials)
    command = f"python -m simulators.coverage --trials {args.trials} --seed {args.seed}"
    text = report(room, trials, rows, command, time.monotonic() - began)
    print(text)
    if args.report is not None:
        args.report.write_text(text, "utf-8")
    return 0 if all(row.within for row in rows) else 1
