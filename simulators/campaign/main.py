"""``navsrv campaign``: the command line of campaigns."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simulators.arguments import Parser, whole
from simulators.campaign.report import worst_seeds, write_page, write_report
from simulators.campaign.run import Order, Results, on_dask, on_processes, prepare, run_seed
from simulators.campaign.spec import Spec, load_spec


def arguments() -> Parser:
    """Return the parser of ``navsrv campaign``."""
    parser = Parser(
        "campaign",
        "Thousands of insertions in virtual time with sampled parameters, judged against the truth.",
        "navsrv campaign examples/campaign.toml --workers 2 --out campaign",
    )
    parser.prog = "navsrv campaign"
    parser.add_argument("spec", type=Path, metavar="SPEC.toml")
    parser.add_argument("--workers", type=whole(1, 1024), default=1, help="processes of this machine (1)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="an existing Dask cluster instead, tcp://HOST:PORT")
    parser.add_argument("--resume", action="store_true", help="go on where a campaign in --out was cut off")
    parser.add_argument("--out", type=Path, default=Path("campaign"), metavar="FOLDER", help="results (campaign)")
    parser.add_argument("--only", type=whole(0, 2**53), metavar="SEED", help="make one insertion again, recorded")
    parser.add_argument("--insertions", type=whole(1, 10_000_000), metavar="N", help="the first N of the spec's only")
    parser.add_argument("--report", type=Path, metavar="FILE.md", help="write the report there too, its plot beside it")
    parser.add_argument("--json", action="store_true", help="end with one JSON line of the figures")
    return parser


def main(argv: list[str]) -> int:
    """Run a campaign; return the exit status."""
    args = arguments().parse_args(argv)
    spec, digest = load_spec(args.spec)
    order = prepare(spec, args.spec, _tell_preparation)
    if args.only is not None:
        return _only(order, args.only, args.out)
    count = spec.insertions if args.insertions is None else min(args.insertions, spec.insertions)
    results = Results(args.out, digest, args.resume)
    try:
        seeds = [s for s in range(spec.first_seed, spec.first_seed + count) if s not in results.lines]
        _run(results, count, _lines_of(order, seeds, args.workers, args.scheduler) if seeds else iter(()))
    except KeyboardInterrupt:
        print(f"navsrv campaign: stopped after {len(results.lines)}; go on with --resume", file=sys.stderr)
        return 130
    finally:
        results.close()
    return _report(args, spec, order, results, count)


def _lines_of(order: Order, seeds: list[int], workers: int, scheduler: str | None) -> Iterator[dict[str, Any]]:
    return on_processes(order, seeds, workers) if scheduler is None else on_dask(order, seeds, scheduler)


def _run(results: Results, count: int, lines: Iterator[dict[str, Any]]) -> None:
    """Keep each line as it comes, and say how far it is on a terminal."""
    begun, before, told = time.monotonic(), len(results.lines), 0.0
    for line in lines:
        results.add(line)
        now = time.monotonic()
        if sys.stderr.isatty() and now - told > 0.5:
            told = now
            done = len(results.lines)
            left_s = (now - begun) / (done - before) * (count - done)
            misses = sum("cause" in c for r in results.lines.values() for c in r["contacts"])
            text = f"{done} of {count} insertions, {left_s / 60:.0f} min left, {misses} contacts without a warning"
            print(f"\rcampaign: {text}", end="", file=sys.stderr, flush=True)
    if told:
        print(file=sys.stderr)


def _report(args: Any, spec: Spec, order: Order, results: Results, count: int) -> int:
    wanted = range(spec.first_seed, spec.first_seed + count)
    lines = [results.lines[seed] for seed in wanted]
    kept = []
    for seed, why in worst_seeds(lines, spec.worst_kept):
        recording = _record(order, seed, args.out)
        kept.append({"seed": seed, "why": why, "recording": str(recording.relative_to(args.out))})
    limit = "" if args.insertions is None else f" --insertions {args.insertions}"
    command = f"navsrv campaign {args.spec}{limit} --workers {args.workers} --out {args.out}"
    figures = write_report(args.out, spec, command, lines, kept)
    if args.report is not None:
        write_page(args.report, spec, figures, lines)
    if args.json:
        print(json.dumps(figures), flush=True)
    else:
        print(f"{count} insertions; report in {args.out / 'report.md'}", flush=True)
    return 0


def _record(order: Order, seed: int, out: Path) -> Path:
    folder = out / "recordings"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"seed-{seed}.mcap"
    run_seed(order, seed, path)
    return path


def _only(order: Order, seed: int, out: Path) -> int:
    path = out / "recordings" / f"seed-{seed}.mcap"
    path.parent.mkdir(parents=True, exist_ok=True)
    line = run_seed(order, seed, path)
    print(json.dumps(line | {"recording": str(path)}), flush=True)
    return 0


def _tell_preparation(what: str, part: float) -> None:
    if sys.stderr.isatty():
        print(f"\rcampaign: {what} {100 * part:3.0f} %   ", end="", file=sys.stderr, flush=True)
