"""Owns the report of the coverage study in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from simulators.coverage.statistics import HIGH, LOW, Coverage, held_out_factor
from simulators.coverage.trial import Room, Trial

_HEAD: Final = """# Coverage of the lower bound

    {command}

{count} trials in {seconds:.0f} s. Each calibrates tip and axis anew from recordings of {recording} poses, registers
anew, and moves a needle for a quarter of a second, as bytes, through the pipeline with the configuration of
`examples/demo.toml`. The last frame's bounds, of tip and shaft against {structures} structures of the built-in sacrum,
are held against where the bent needle and the moved structures truly are **when the frame is made**. The truth
(`simulators/coverage/world.py`, `simulators/world/truth.py`) shares no code with what is judged.

| bounds | rows | held | 95 % interval | within | bias mm | error mm (1 s.d.) | sigma mm (median) |
|---|---|---|---|---|---|---|---|
{rows}

Wanted: the whole interval between {low:.0%} and {high:.1%}. {verdict} Intervals resample whole trials,
since the rows of one share its calibration and registration. Bias is truth less what was shown: below 0, structures are
nearer than shown.

## What registrations are off by

| method | factor found (95 % interval) | default |
|---|---|---|
{factors}

The factor on a method's own sigma with which 95 % of its errors at the tip, along any direction, are bounded. CBCT:
errors are drawn from {held} registrations of simulated O-arm volumes of {patients} patients by the real code
(`python -m simulators.coverage.volumes`): {accepted} accepted, {doubted} doubted; refused ones are not drawn. The
factor's interval resamples these registrations; the intervals of coverage above take them as given.

## The room

Student's t with 4 degrees of freedom where no other distribution is named; standard deviations, each axis.

| error | truth | the server assumes |
|---|---|---|
{errors}

What this does not show: the magnitudes in the middle are taken from publications and judgement, not from patients.
Whoever knows their own tracker, needles and tissue better states it in the configuration.
"""


def report(room: Room, trials: Sequence[Trial], rows: Sequence[Coverage], command: str, seconds: float) -> str:
    """Return the report in Markdown."""
    verdicts = [h.verdict for h in room.held_out]
    outside = [row.what for row in rows if not row.within]
    return _HEAD.format(
        command=command,
        count=len(trials),
        seconds=seconds,
        recording=room.recording,
        structures=len(room.vertices),
        rows="\n".join(map(_row, rows)),
        low=LOW,
        high=HIGH,
        verdict=f"**Not met** by: {', '.join(outside)}." if outside else "Met by every row.",
        factors="\n".join(_factor(room, trials, method) for method in room.methods),
        held=len(verdicts),
        patients=len({h.patient for h in room.held_out}),
        accepted=verdicts.count("accept"),
        doubted=verdicts.count("doubt"),
        errors="\n".join(_errors(room)),
    )


def _row(c: Coverage) -> str:
    within = "yes" if c.within else "**no**"
    spread = f"{c.bias_mm:+.2f} | {c.error_mm:.2f} | {c.sigma_mm:.2f}"
    return f"| {c.what} | {c.count} | {c.share:.2%} | {c.low:.2%} to {c.high:.2%} | {within} | {spread} |"


def _factor(room: Room, trials: Sequence[Trial], method: str) -> str:
    factor, low, high = held_out_factor(trials, method)
    default = room.composition.setup.inflation.get(method, 1.0)
    return f"| {method} | {factor:.2f} ({low:.2f} to {high:.2f}) | {default:g} |"


def _errors(room: Room) -> list[str]:
    """Return a line for each kind of error: what is drawn, and what the server was told."""
    e, source = room.errors, room.composition.setup.sources[0]
    told = f"{source.noise_mm:g} mm, {math.degrees(source.noise_rad):.2g} deg, normal"
    picked = " x ".join(f"{v:g}" for v in e.picked_mm)
    lines = (
        ("tracker, one pose", f"{e.jitter_mm:g} mm, depth 1.6 times the rest; {e.jitter_deg:g} deg", told),
        ("tracker, by position", f"{e.field_mm:g} mm, {e.field_deg:g} deg, smooth over 350 mm", "in the same figures"),
        ("pivot and spin", f"the tracker's; the seat gives way by {e.seat_mm:g} mm", "what the calibration says"),
        (
            "landmarks",
            f"picked {picked} mm, touched {e.touched_mm:g} mm, one off by {e.knocked_mm:g} mm more",
            "what the registration says, inflated",
        ),
        ("needle's load", f"{e.push_n:g} N on a solid beam", "0.05 N on a tube"),
        (
            "time",
            f"up to {e.speed_mm_s:g} mm/s; {1e3 * e.late_s:g} ms late, varying by {1e3 * e.late_spread_s:g} ms",
            "14 ms declared, 5 ms unknown",
        ),
        (
            "pairing",
            f"the last reference late in {e.torn:.0%}; breathing, amplitude {e.breath_mm:g} mm",
            "speed times skew",
        ),
        ("segmentation", f"too small by {e.small_mm:g} mm, varying by {e.segmented_mm:g} mm", "0.3 mm, no bias"),
        (
            "tissue",
            f"{e.following_mm:g} mm and sagging where it follows a bone, {e.free_mm:g} mm where it does not",
            "0.5 and 2 mm",
        ),
    )
    return [f"| {what} | {truth} | {assumed} |" for what, truth, assumed in lines]
