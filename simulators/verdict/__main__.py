"""Runs trials of the fluoroscopy verdict and writes them down, one JSON line each; run again, it goes on.

python -m simulators.verdict run --set held-out --out trials.jsonl --seconds 1200
python -m simulators.verdict report trials.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any


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

        records = [record for path in args.trials for record in _read(parser, path)[0]]
        if not records:
            parser.error(f"{args.trials[0]}: holds no trials; expected what `run --out` wrote")
        found = summary(records)
        if args.markdown is not None:
            plot = args.markdown.parent / "images" / f"{args.markdown.stem}.svg"
            plot.parent.mkdir(parents=True, exist_ok=True)
            plot.write_text(as_svg(records))
            args.markdown.write_text(as_page(found, f"images/{plot.name}"))
            return 0
        print(json.dumps(found) if args.json else as_text(found))
        return 0
    return _run(parser, args)


def _read(parser: argparse.ArgumentParser, path: Path) -> tuple[list[Any], int]:
    """Return the trials of a file, and its length (bytes) without a last line that was cut off in the writing."""
    try:
        written = path.read_bytes()
    except OSError as error:
        parser.error(f"{path}: {error.strerror}; expected what `run --out` wrote")
    whole = written.rfind(b"\n") + 1
    records = []
    for number, line in enumerate(written[:whole].splitlines(), 1):
        try:
            records.append(json.loads(line))
            records[-1]["patient"], records[-1]["verdict"]
        except (ValueError, TypeError, KeyError):
            parser.error(f"{path}, line {number}: no trial; expected one JSON object a line, as `run --out` writes")
    return records, whole


def _share(parser: argparse.ArgumentParser, text: str) -> tuple[int, int]:
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
        parser.error(f"--share {text}: expected K/N with K from 1 to N, such as 2/4")
    return int(parts[0]), int(parts[1])


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from simulators.verdict.trials import HELD_OUT, TUNING, run_scene, run_trial, scenes, trials_of

    share, shares = _share(parser, args.share)
    done = set()
    if args.out.is_file():
        records, whole = _read(parser, args.out)
        done = {(known["patient"], known["seed"], known["kind"], known["number"]) for known in records}
        os.truncate(args.out, whole)
    end = time.monotonic() + args.seconds
    names, first, apart = (TUNING, 0, 4) if args.set == "tuning" else (HELD_OUT, 6000, 1)
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
