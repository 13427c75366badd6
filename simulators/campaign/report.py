"""Owns what a campaign found: rates with their confidence, every miss with its cause; as JSON, Markdown and a plot."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from simulators.campaign.insertion import NOTICED_S
from simulators.campaign.plot import Panel, svg_of
from simulators.campaign.spec import Spec
from simulators.campaign.statistics import Estimate, rate, resampled, share
from simulators.campaign.verdict import LEVELS

Line = dict[str, Any]
STATES: Final = ("OK", "DEGRADED", "SNAPSHOT", "STALE", "LOST", "UNREGISTERED", "FAULT")
HALF_HOUR_S: Final = 1800.0
LISTED: Final = 200
"""Misses listed one by one in the report; all of them are in the JSON."""


def figures_of(lines: Sequence[Line]) -> dict[str, Any]:
    """Return every figure of a campaign as plain values, intervals as {value, low, high}."""
    contacts = [(line, contact) for line in lines for contact in line["contacts"]]
    missed = [
        {"seed": line["seed"], "structure": c["structure"], "at_s": c["at_s"], "cause": c["cause"]}
        for line, c in contacts
        if "cause" in c
    ]
    blind = sum(miss["cause"].startswith("no geometry") for miss in missed)
    warned = np.array([c["warned_s"] for _, c in contacts if "warned_s" in c])
    late = [{"seed": line["seed"], **entry} for line in lines for entry in line["late"]]
    approaches = sum(line["approaches"] for line in lines)
    one = [line["one"] for line in lines if line["one"] is not None]
    quiet = [line for line in lines if line["structure"] is None]
    return {
        "insertions": len(lines),
        "quiet_insertions": len(quiet),
        "hours": sum(line["seconds"] for line in lines) / 3600.0,
        "frames": sum(line["frames"] for line in lines),
        "cost_s": {"mean": float(np.mean([line["cost_s"] for line in lines]))},
        "contacts": {
            "count": len(contacts),
            "insertions_with": sum(bool(line["contacts"]) for line in lines),
            "missed_share": share(len(missed), len(contacts)).told(),
            "blind": sum("blind_s" in c for _, c in contacts),
            "missed_blind": blind,
            "missed_seeing_share": share(len(missed) - blind, len(contacts)).told(),
            "warned_s_quantiles": _quantiles(warned),
            "missed": missed,
        },
        "late": {
            "approaches": approaches,
            "late_share": share(len(late), approaches).told(),
            "past_mm_quantiles": {
                cause: _quantiles(np.array([entry["past_mm"] for entry in late if entry["cause"] == cause]))
                for cause in sorted({entry["cause"] for entry in late})
            },
            "causes": dict(Counter(entry["cause"] for entry in late)),
            "late": late,
        },
        "latency": _latency(lines),
        "nuisance": {
            "quiet": _nuisance(quiet),
            "drifting": _nuisance([x for x in lines if x["structure"] is not None]),
        },
        "other_alarms_per_30_min": _others(quiet),
        "coverage": {
            "one_frame_each": share(sum(o["held"] for o in one), len(one)).told(),
            "all_frames": _pooled(lines),
            "excess_sigma_quantiles": _quantiles(np.array([o["excess_sigma"] for o in one])),
        },
        "tre": {name: _error(lines, name) for name in ("registration_error_mm", "tip_rms_mm", "tip_at_closest_mm")},
        "states": _states(lines),
    }


def _quantiles(values: Any) -> dict[str, float] | None:
    if not len(values):
        return None
    names = (0, 1, 5, 50, 95, 99, 100)
    found = np.percentile(values, names).tolist()
    return {f"p{name}": round(value, 4) for name, value in zip(names, found, strict=True)}


def _latency(lines: Sequence[Line]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for level in LEVELS:
        counts: Counter[str] = Counter()
        for line in lines:
            counts.update(line["latency_frames"].get(level, {}))
        total = sum(counts.values())
        beyond = sum(count for frames, count in counts.items() if frames == "never" or int(frames) > 1)
        found[level] = {
            "crossings": total,
            "after_frames": dict(counts),
            "beyond_one_frame": share(beyond, total).told(),
        }
    return found


def _nuisance(lines: Sequence[Line]) -> dict[str, Any]:
    seconds = sum(line["seconds"] for line in lines)
    found: dict[str, Any] = {"hours": seconds / 3600.0}
    for level in LEVELS:
        count = sum(line["alarms"][f"nuisance {level}"] for line in lines)
        raised = sum(line["alarms"][level] for line in lines)
        found[level] = {"raised": raised, "nuisance": count, "per_30_min": rate(count, seconds / HALF_HOUR_S).told()}
    total = sum(found[level]["nuisance"] for level in LEVELS)
    found["all"] = {"nuisance": total, "per_30_min": rate(total, seconds / HALF_HOUR_S).told()}
    return found


def _others(lines: Sequence[Line]) -> dict[str, float]:
    seconds = sum(line["seconds"] for line in lines)
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line["other_alarms"])
    return {name: count / seconds * HALF_HOUR_S for name, count in sorted(counts.items())} if seconds else {}


def _pooled(lines: Sequence[Line]) -> dict[str, float | None]:
    rows = np.array([[line["held"], line["near"]] for line in lines if line["near"]], dtype=np.float64)
    return resampled(rows, lambda r: float(r[:, 0].sum() / r[:, 1].sum())).told()


def _error(lines: Sequence[Line], name: str) -> dict[str, Any]:
    values = np.array([line[name] for line in lines if line.get(name) is not None])
    return {
        "rms": resampled(values, lambda v: float(np.sqrt(np.mean(v**2)))).told(),
        "median": resampled(values, lambda v: float(np.median(v))).told(),
        "p95": resampled(values, lambda v: float(np.percentile(v, 95))).told(),
    }


def _states(lines: Sequence[Line]) -> dict[str, Any]:
    rows = np.array([[line["states_s"].get(state, 0.0) for state in STATES] for line in lines])
    return {
        state: resampled(rows, lambda r, i=i: float(r[:, i].sum() / r.sum())).told()  # type: ignore[misc]
        for i, state in enumerate(STATES)
        if rows[:, i].any()
    }


def worst_seeds(lines: Sequence[Line], count: int) -> list[tuple[int, str]]:
    """Return the seeds of the worst insertions and why: missed contacts, warnings that came late, bounds too high."""

    def badness(line: Line) -> tuple[float, float, float]:
        missed = sum("cause" in c for c in line["contacts"])
        past = max((entry["past_mm"] for entry in line["late"]), default=0.0)
        return (float(missed), float(past), line["one"]["excess_sigma"] if line["one"] else -math.inf)

    ranked = sorted(lines, key=lambda line: (*badness(line), -line["seed"]), reverse=True)[:count]
    return [(line["seed"], _why(badness(line))) for line in ranked]


def _why(badness: tuple[float, float, float]) -> str:
    missed, past, excess = badness
    if missed:
        return f"{missed:.0f} contacts without a warning before"
    if past > 0.0:
        return f"a warning that came {past:.2f} mm late"
    return f"a bound {excess:.1f} sigma above the truth"


def write_report(
    folder: Path, spec: Spec, command: str, lines: Sequence[Line], worst: Sequence[Line]
) -> dict[str, Any]:
    """Write ``report.json``, ``report.md`` and ``report.svg``; return the figures."""
    figures = figures_of(lines)
    figures["command"], figures["worst"] = command, list(worst)
    (folder / "report.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    write_page(folder / "report.md", spec, figures, lines)
    return figures


def write_page(path: Path, spec: Spec, figures: dict[str, Any], lines: Sequence[Line]) -> None:
    """Write the report for people, and its plot beside it."""
    plot = path.with_suffix(".svg")
    plot.write_text(_plot(lines), encoding="utf-8")
    path.write_text(markdown(spec, figures, plot.name), encoding="utf-8")


def _plot(lines: Sequence[Line]) -> str:
    excess = [-line["one"]["excess_sigma"] for line in lines if line["one"] is not None]
    warned = [c["warned_s"] for line in lines for c in line["contacts"] if "warned_s" in c]
    errors = [line["tip_at_closest_mm"] for line in lines if line.get("tip_at_closest_mm") is not None]
    return svg_of(
        (
            Panel("What the 95 % bound left in hand", "(true clearance - bound) / sigma", excess, -3.0, 6.0, mark=0.0),
            Panel("How long a warning stood before contact", "seconds", warned, 0.0, 6.0),
            Panel("Error of the shown tip at its closest", "mm", errors, 0.0, 4.0),
        )
    )


def markdown(spec: Spec, figures: dict[str, Any], plot: str) -> str:
    """Return the report for people."""
    contacts, late, coverage = figures["contacts"], figures["late"], figures["coverage"]
    quiet, drifting = figures["nuisance"]["quiet"], figures["nuisance"]["drifting"]
    out = [
        f"# {figures['insertions']:,} simulated insertions",
        "",
        f"Made by `{figures['command']}`. Virtual time through the server's own pipeline; every number below has its"
        " 95 % interval. Simulated errors are no patient's: what this shows is that the server keeps its promises under"
        " the errors that the spec draws, not that a clinic has those errors.",
        "",
        f"{figures['hours']:.1f} hours of navigation, {figures['frames']:,} frames;"
        f" {figures['quiet_insertions']:,} insertions went along the plan, the others drifted towards a critical"
        f" structure. {contacts['count']:,} structures were truly touched, in {contacts['insertions_with']:,}"
        " insertions."
        f" One insertion cost {figures['cost_s']['mean']:.2f} s of one core on average.",
        "",
        f"![figures]({plot})",
        "",
        "| what | value (95 % interval) |",
        "|---|---|",
        f"| true contacts without a warning before | {len(contacts['missed'])} of {contacts['count']:,}:"
        f" {_percent(contacts['missed_share'])} |",
        f"| contacts whose warning stood until geometry was lost, and which came blindly | {contacts['blind']} |",
        f"| of the misses, with geometry shown until then | {len(contacts['missed']) - contacts['missed_blind']} of"
        f" {contacts['count']:,}: {_percent(contacts['missed_seeing_share'])} |",
        f"| warning before contact, seconds: least, 1st percentile, median | {_pick(contacts['warned_s_quantiles'])} |",
        *[
            f"| bound below the {level} limit to signal | {_frames(row['after_frames'])};"
            f" beyond one frame {_percent(row['beyond_one_frame'])} |"
            for level, row in figures["latency"].items()
        ],
        f"| true clearance below the warning limit, no warning one frame later | {len(late['late'])} of"
        f" {late['approaches']:,} approaches: {_percent(late['late_share'])} |",
        f"| nuisance alarms per 30 min of quiet navigation ({quiet['hours']:.1f} h) |"
        f" {_text(quiet['all']['per_30_min'], '.2f')} |",
        f"| coverage of the 95 % bound, one frame of each insertion | {_percent(coverage['one_frame_each'])} |",
        f"| coverage of the 95 % bound, all frames nearer than 15 mm | {_percent(coverage['all_frames'])} |",
        *[
            f"| {name}, mm: rms; 95th percentile | {_text(figures['tre'][key]['rms'], '.2f')};"
            f" {_text(figures['tre'][key]['p95'], '.2f')} |"
            for name, key in (
                ("registration error at the target (drawn)", "registration_error_mm"),
                ("error of the shown tip", "tip_rms_mm"),
                ("error of the shown tip where it came closest", "tip_at_closest_mm"),
            )
        ],
        *[f"| time in {state} | {_percent(row)} |" for state, row in figures["states"].items()],
        "",
        "## Every miss",
        "",
        *_misses(contacts["missed"]),
        *_blindly(spec, contacts),
        "",
        "## Warnings that came late by the truth",
        "",
        "The limit is judged on the bound, which is above the truth now and then by design (one in twenty); what counts"
        " is how far beyond the limit the needle was by then.",
        "",
        "| cause | how many | beyond the limit, mm |",
        "|---|---|---|",
        *[f"| {cause} | {n} | {_spread(late['past_mm_quantiles'][cause])} |" for cause, n in late["causes"].items()],
        "",
        "## Alarms",
        "",
        "A nuisance appears while the true clearance is above its limit by more than two sigma. In quiet navigation"
        " (along the plan) nothing is near; beside a structure the limit is judged on a bound 1.645 sigma below the"
        " measured distance, so that an alarm which is half a sigma early counts as a nuisance by this definition.",
        "",
        "| level | quiet: raised, nuisance, per 30 min | drifting: raised, nuisance, per 30 min |",
        "|---|---|---|",
        *[f"| {level} | {_alarm_row(quiet[level])} | {_alarm_row(drifting[level])} |" for level in LEVELS],
        "",
        "Other alarms per 30 min of quiet navigation: "
        + ", ".join(f"{name} {value:.1f}" for name, value in figures["other_alarms_per_30_min"].items())
        + ".",
        "",
        "## The worst, kept as recordings",
        "",
        "Each opens with `navsrv replay FILE --verify`; its truth is beside it (`.truth.npz`).",
        "",
        "| seed | why | recording |",
        "|---|---|---|",
        *[f"| {row['seed']} | {row['why']} | {row['recording']} |" for row in figures["worst"]],
        "",
    ]  # fmt: skip
    return "\n".join(out)


def _text(told: dict[str, float | None], form: str, scale: float = 1.0, unit: str = "") -> str:
    value, low, high = told["value"], told["low"], told["high"]
    if value is None or low is None or high is None:
        return "nothing to judge"
    return Estimate(value, low, high).text(form, scale, unit)


def _percent(told: dict[str, float | None]) -> str:
    return _text(told, ".3f", 100.0, " %")


def _pick(quantiles: dict[str, float] | None) -> str:
    return "none" if quantiles is None else f"{quantiles['p0']:.3f}, {quantiles['p1']:.2f}, {quantiles['p50']:.2f}"


def _spread(quantiles: dict[str, float] | None) -> str:
    return (
        "none"
        if quantiles is None
        else f"median {quantiles['p50']:.2f}, 95th percentile {quantiles['p95']:.2f}, largest {quantiles['p100']:.2f}"
    )


def _frames(after: dict[str, int]) -> str:
    return ", ".join(f"{n:,} after {frames} frames" for frames, n in sorted(after.items())) or "no crossing"


def _alarm_row(row: dict[str, Any]) -> str:
    return f"{row['raised']:,}, {row['nuisance']:,}, {_text(row['per_30_min'], '.2f')}"


def _blindly(spec: Spec, contacts: dict[str, Any]) -> list[str]:
    """Return what the misses that came without geometry have in common."""
    if not contacts["missed_blind"]:
        return []
    return [
        "",
        f"{contacts['missed_blind']} of {len(contacts['missed'])} came while nothing was shown: the line of sight was"
        " lost before the warning limit was reached, the display said LOST with its alarm from the next frame on, and"
        f" the needle was moved all the same. In this campaign {100.0 * spec.motion.heeds_share:.0f} % of the operators"
        f" rest {NOTICED_S:g} s after a loss, the others go on blindly. No server can warn of what it does not see; it"
        " can only say so at once.",
    ]


def _misses(missed: Sequence[dict[str, Any]]) -> list[str]:
    if not missed:
        return ["There was none."]
    head = ["| seed | structure | at s | cause |", "|---|---|---|---|"]
    rows = [f"| {m['seed']} | {m['structure']} | {m['at_s']:.2f} | {m['cause']} |" for m in missed[:LISTED]]
    left = [f"| | | | and {len(missed) - LISTED} more in report.json |"] if len(missed) > LISTED else []
    return head + rows + left
