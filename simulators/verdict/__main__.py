"""Runs trials of the fluoroscopy verdict and writes them down, one JSON line each; run again, it goes on.

python -m simulators.verdict run --set held-out --out trials.jsonl --seconds 1200
python -m simulators.verdict report trials.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import islice
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m simulators.verdict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    todo = parser.add_subparsers(dest="todo", required=True)
    run = todo.add_parser("run", help="make trials until the time is up")
    run.add_argument("--set", choices=["tuning", "held-out"], default="held-out")
    run.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    run.add_argument("--seconds", type=float, default=600.0)
    run.add_argument("--share", default="1/1", metavar="K/N", help="every N-th scene from the K-th: for N processes")
    run.add_argument("--scenes", type=int, default=200, help="at most so many scenes (default %(default)s)")
    report = todo.add_parser("report", help="what trials add up to")
    report.add_argument("trials", type=Path, nargs="+", metavar="FILE.jsonl")
    report.add_argument("--json", action="store_true")
    report.add_argument("--markdown", type=Path, metavar="FILE.md", help="write the report, its plots beside it")
    args = parser.parse_args(argv)
    if args.todo == "report":
        from simulators.verdict.report import as_page, as_svg, as_text, summary

        records = [json.loads(line) for path in args.trials for line in path.read_text().splitlines()]
        found = summary(records)
        if args.markdown is not None:
            plot = args.markdown.parent / "images" / f"{args.markdown.stem}.svg"
            plot.parent.mkdir(parents=True, exist_ok=True)
            plot.write_text(as_svg(records))
            args.markdown.write_text(as_page(found, f"images/{plot.name}"))
            return 0
        print(json.dumps(found) if args.json else as_text(found))
        return 0
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    from simulators.verdict.trials import HELD_OUT, TUNING, run_scene, run_trial, scenes, trials_of

    done = set()
    if args.out.is_file():
        for line in args.out.read_text().splitlines():
            known = json.loads(line)
            done.add((known["patient"], known["seed"], known["kind"], known["number"]))
    end = time.monotonic() + args.seconds
    names, first, apart = (TUNING, 0, 4) if args.set == "tuning" else (HELD_OUT, 6000, 1)
    share, shares = (int(part) for part in args.share.split("/"))
    with args.out.open("a") as out:
        for spec in islice(scenes(names, first), share - 1, args.scenes, shares):
            left = [t for t in trials_of(spec, apart) if (spec.patient, spec.seed, t.kind, t.number) not in done]
            if not left:
                continue
            if time.monotonic() > end:
                return 0
            scene = run_scene(spec)
            for trial in left:
                if time.monotonic() > end:
                    return 0
                out.write(json.dumps(run_trial(scene, trial)) + "\n")
                out.flush()
                if sys.stderr.isatty():
                    print(f"\r{spec.patient} {spec.seed} {trial.kind} {trial.number}   ", end="", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
