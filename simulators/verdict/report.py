"""Owns what trials add up to: success by bin, capture range, error, the verdict's confusions with their bounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from scipy.stats import beta

from navsrv.registration.fluoro_verdict import FluoroLimits
from simulators.campaign.plot import Panel, svg_of
from simulators.verdict.trials import BINS_MM, GOOD_MM

SUCCESS: Final = 0.95
VERTEBRAE: Final = {29: "L3", 30: "L2", 31: "L1", **{32 + n: f"T{12 - n}" for n in range(12)}}
"""By the label of the spine's patients."""
Record = dict[str, Any]


def upper_bound(bad: int, of: int, confidence: float = 0.95) -> float:
    """Return the one-sided upper bound of a share by Clopper and Pearson (Biometrika 26:404, 1934)."""
    return 1.0 if bad >= of else float(beta.ppf(confidence, bad + 1, of - bad))


def lower_bound(good: int, of: int, confidence: float = 0.95) -> float:
    """Return the one-sided lower bound of a share by Clopper and Pearson."""
    return 0.0 if good <= 0 else float(beta.ppf(1.0 - confidence, good, of - good + 1))


def summary(records: list[Record]) -> Record:
    """Return every figure of a set of trials."""
    starts = [r for r in records if r["kind"] == "start"]
    groups = {
        "all": starts,
        "calibrated": [r for r in starts if r["calibrated"]],
        "out of calibration": [r for r in starts if not r["calibrated"]],
    }
    for bone in sorted({bone_of(r["patient"]) for r in records}):
        groups[bone] = [r for r in starts if bone_of(r["patient"]) == bone]
        groups[f"{bone}, calibrated"] = [r for r in groups[bone] if r["calibrated"]]
    return {
        "trials": len(records),
        "scenes": len({(r["patient"], r["seed"]) for r in records}),
        "patients": sorted({r["patient"] for r in records}),
        "bins": {name: [_bin(found, low, high) for low, high in BINS_MM] for name, found in groups.items()},
        "errors": {name: _errors([r for r in found if r["start_mm"] < 20.0]) for name, found in groups.items()},
        "capture_range_mm": {name: _capture(found) for name, found in groups.items()},
        "verdict": _verdict(records),
        "verdict_by_kind": {
            kind: dict(Counter(r["verdict"] for r in records if r["kind"] == kind and not r["good"]))
            for kind in sorted({r["kind"] for r in records})
        },
        "good_by_bone": {
            bone: dict(Counter(r["verdict"] for r in records if r["good"] and bone_of(r["patient"]) == bone))
            for bone in sorted({bone_of(r["patient"]) for r in records})
        },
        "tre": _tre(records),
    }


def bone_of(patient: str) -> str:
    """Return the bone that is looked for in a patient of this name."""
    kind, *numbers = patient.split(":")
    return VERTEBRAE[int(numbers[0])] if kind == "spine" else kind


def _bin(records: Iterable[Record], low: float, high: float) -> Record:
    inside = [r for r in records if low <= r["start_mm"] < high]
    found = sum(r["good"] for r in inside)
    return {
        "from_mm": low, "to_mm": high, "trials": len(inside), "success": found / max(len(inside), 1),
        "lower_bound": lower_bound(found, len(inside)) if inside else 0.0,
    }  # fmt: skip


def _capture(records: list[Record]) -> float:
    """Return the end of the last bin up to which each has enough success; 0 when the first has not."""
    reach = 0.0
    for low, high in BINS_MM:
        found = _bin(records, low, high)
        if not found["trials"] or found["success"] < SUCCESS:
            break
        reach = high
    return reach


def _errors(records: list[Record]) -> Record:
    """Return errors (mm) of all trials, failures included, and what they took."""
    errors = [r["error_mm"] for r in records if r["error_mm"] is not None]
    if not errors:
        return {"trials": 0}
    return {
        "trials": len(errors),
        "median_mm": float(np.median(errors)),
        "p95_mm": float(np.percentile(errors, 95)),
        "max_mm": float(np.max(errors)),
        "success": float(np.mean(np.array(errors) <= GOOD_MM)),
        "wall_median_s": float(np.median([r["wall_s"] for r in records if "wall_s" in r])),
        "cpu_median_s": float(np.median([r["cpu_s"] for r in records if "cpu_s" in r])),
    }


def _verdict(records: list[Record]) -> Record:
    good, bad = [r for r in records if r["good"]], [r for r in records if not r["good"]]
    accepted = sum(r["verdict"] == "accept" for r in bad)
    wrong = {_scene(r) for r in bad if r["verdict"] == "accept"}
    refused, doubted = (sum(r["verdict"] == v for r in good) for v in ("refuse", "doubt"))
    return {
        "bad": len(bad), "bad_accepted": accepted, "bad_accepted_upper": upper_bound(accepted, max(len(bad), 1)),
        "good": len(good), "good_refused": refused, "good_doubted": doubted,
        "good_not_accepted_share": (refused + doubted) / max(len(good), 1),
        "good_refused_upper": upper_bound(refused, max(len(good), 1)),
        "scenes": len({_scene(r) for r in bad}), "scenes_accepted": len(wrong), "scenes_accepted_upper": upper_bound(
            len(wrong), max(len({_scene(r) for r in bad}), 1)
        ),
    }  # fmt: skip


def _scene(record: Record) -> tuple[str, int]:
    return record["patient"], record["seed"]


def _tre(records: list[Record]) -> Record:
    """Return how errors of accepted good results compare with what was predicted."""
    ratio = [r["error_mm"] / r["tre_mm"] for r in records if r["good"] and r["verdict"] == "accept"]
    if not ratio:
        return {"trials": 0}
    return {
        "trials": len(ratio),
        "error_over_predicted_median": float(np.median(ratio)),
        "error_over_predicted_p95": float(np.percentile(ratio, 95)),
        "share_within_twice": float(np.mean(np.array(ratio) <= 2.0)),
    }


def as_svg(records: list[Record]) -> str:
    """Return histograms of the errors, and of what tells good results from bad."""
    limits = FluoroLimits()
    near = [
        r["error_mm"] for r in records if r["kind"] == "start" and r["start_mm"] < 20.0 and r["error_mm"] is not None
    ]
    seen = [r for r in records if r["figures"]]

    def figures(name: str, good: bool) -> list[float]:
        return [r["figures"][name] for r in seen if r["good"] is good and name in r["figures"]]

    asked = (
        ("score", "score", limits.score[0]),
        ("margin", "lead over the next place", limits.margin[0]),
        ("sharpness", "sharpness", limits.sharpness[0]),
    )
    panels = []
    for good in (True, False):
        for name, label, limit in asked:
            title = f"{label.capitalize()}, {'good' if good else 'bad'} results"
            panels.append(Panel(title, f"{label} (below the limit: red)", figures(name, good), -0.2, 1.0, limit))
        if good:
            panels.append(Panel("Error, starts below 20 mm", "mTRE over the bone, mm (last bar: more)", near, 0.0, 3.0))
    return svg_of(panels)


def as_text(found: Record) -> str:
    """Return the figures for a person, as Markdown."""
    lines = [f"{found['trials']} trials on {found['scenes']} scenes of {', '.join(found['patients'])}.", ""]
    lines += [
        "| starts below 20 mm | trials | median mm | p95 mm | max mm | success | wall s | CPU s |",
        "|" + "---|" * 8,
    ]
    for name, e in found["errors"].items():
        if e["trials"]:
            lines.append(
                f"| {name} | {e['trials']} | {e['median_mm']:.2f} | {e['p95_mm']:.2f} | {e['max_mm']:.1f}"
                f" | {e['success']:.1%} | {e['wall_median_s']:.2f} | {e['cpu_median_s']:.2f} |"
            )
    bins = [f"{low:.0f}-{high:.0f}" for low, high in BINS_MM]
    lines += [
        "",
        f"| success by start error, mm | {' | '.join(bins)} | capture range |",
        "|" + "---|" * (len(bins) + 2),
    ]
    for name, row in found["bins"].items():
        cells = [f"{b['success']:.0%} of {b['trials']}" for b in row]
        lines.append(f"| {name} | {' | '.join(cells)} | {found['capture_range_mm'][name]:.0f} mm |")
    v = found["verdict"]
    lines += [
        "",
        f"Bad results accepted: {v['bad_accepted']} of {v['bad']} (95 % upper bound {v['bad_accepted_upper']:.2%}).",
        f"Trials of one scene resemble each other. By scenes: a bad result was accepted in {v['scenes_accepted']} of"
        f" {v['scenes']} (upper bound {v['scenes_accepted_upper']:.1%}).",
        f"Good results refused: {v['good_refused']} of {v['good']} (upper bound {v['good_refused_upper']:.2%});"
        f" doubted: {v['good_doubted']}; not accepted in all: {v['good_not_accepted_share']:.1%}.",
        "",
        "| bad results by kind | accept | doubt | refuse |",
        "|---|---|---|---|",
    ]
    for kind, counts in found["verdict_by_kind"].items():
        lines.append(f"| {kind} | {counts.get('accept', 0)} | {counts.get('doubt', 0)} | {counts.get('refuse', 0)} |")
    lines += ["", "| good results by bone | accept | doubt | refuse |", "|---|---|---|---|"]
    for bone, counts in found["good_by_bone"].items():
        lines.append(f"| {bone} | {counts.get('accept', 0)} | {counts.get('doubt', 0)} | {counts.get('refuse', 0)} |")
    t = found["tre"]
    if t["trials"]:
        lines += [
            "",
            f"Error over predicted TRE, accepted results: median {t['error_over_predicted_median']:.2f},"
            f" 95th percentile {t['error_over_predicted_p95']:.2f};"
            f" within twice: {t['share_within_twice']:.1%} of {t['trials']}.",
        ]
    return "\n".join(lines)


def as_page(found: Record, plot: str) -> str:
    """Return the page that is committed: what was tried, and what came of it."""
    head = """# The verdict on held-out trials

Made by `make verdict`; what the trials are is told in [registration.md](registration.md).  A trial is *good* when it
ends within 2 mm of the truth (mTRE over the bone, in 3D) and shows the patient it is registered to; all others are
*bad*: wrong patient, side, view, geometry, level, starts out of reach, and near misses.  Bounds are one-sided, 95 %
(Clopper and Pearson).

"""
    return f"{head}{as_text(found)}\n\n![Errors, scores and leads of good and bad results]({plot})\n"
