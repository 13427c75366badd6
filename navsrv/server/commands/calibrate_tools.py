"""``navsrv calibrate touches / needle / template``: what a pointed tool touched, and a needle's tip and axis."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array


def add_kinds(kinds: Any) -> None:
    """Add ``touches``, ``needle`` and ``template``."""
    touches = kinds.add_parser(
        "touches",
        help="the points that a pointer's tip rested at, one after another",
        epilog="example: navsrv calibrate touches touched.csv --tip 1.2 -0.4 160 --first 1 --points landmarks.csv",
    )
    touches.add_argument("file", type=Path, metavar="FILE", help="poses: .csv, .igs.mha or a recording (.mcap)")
    touches.add_argument("--transform", metavar="NAME", help="which, as AToB; B may be a second tool of the file")
    touches.add_argument(
        "--between", type=float, nargs=2, metavar=("START", "END"), help="seconds since the first pose"
    )
    touches.add_argument(
        "--tip", type=float, nargs=3, required=True, metavar=("X", "Y", "Z"), help="from the pivot, mm in the tool"
    )
    touches.add_argument("--first", type=float, metavar="S", help="count only the first seconds of each rest")
    touches.add_argument("--points", type=Path, metavar="OUT.csv", help="the points, for navsrv register landmarks")
    touches.add_argument("--json", action="store_true")
    needle = kinds.add_parser(
        "needle",
        help="a needle's axis from two pivots: its tip's and that of a shorter stylet in the same cannula",
        epilog="example: navsrv calibrate needle tip.json shorter.json",
    )
    needle.add_argument("tip", type=Path, metavar="TIP.json", help="what navsrv calibrate pivot --json wrote")
    needle.add_argument("other", type=Path, metavar="OTHER.json", help="the same of the second tip")
    needle.add_argument("--json", action="store_true")
    template = kinds.add_parser(
        "template",
        help="tip and axis of a needle that rests in a tracked block, rows of equal stamps",
        epilog="example: navsrv calibrate template tool.csv block.csv --hole 10 40 -15 --axis 0 0 -1",
    )
    template.add_argument("file", type=Path, metavar="TOOL.FILE", help="tracker from tool: .csv, .igs.mha or .mcap")
    template.add_argument("other", type=Path, metavar="BLOCK.FILE", help="tracker from block; may be the same file")
    template.add_argument("--transform", metavar="NAME", help="of TOOL, as AToB")
    template.add_argument("--other-transform", metavar="NAME", help="of BLOCK, as AToB")
    three = {"type": float, "nargs": 3, "metavar": ("X", "Y", "Z"), "required": True}
    template.add_argument("--hole", **three, help="where the tip rests, mm in the block")
    template.add_argument("--axis", **three, help="the shaft's direction toward the tip, in the block")
    template.add_argument(
        "--made-to", type=float, nargs=2, default=[0.05, 0.1], metavar=("MM", "DEG"), help="the block's own sigma"
    )
    template.add_argument("--json", action="store_true")


def touches(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """Return the record and the result of ``navsrv calibrate touches``."""
    from calibration.dwells import touched_points
    from navsrv.server.recordings_io import read_part

    if args.points is not None and not args.points.parent.is_dir():
        raise InputError(f"{args.points}: no such folder to write it in")
    track = read_part(args.file, args.transform, args.between)
    result = touched_points(track.times_ns, track.poses, args.tip, first_s=args.first)
    if args.points is not None:
        rows = [",".join(f"{number:.6f}" for number in place) for place in result.places_mm]
        args.points.write_text("\n".join(("x,y,z", *rows, "")), encoding="utf-8")
    named = zip(result.from_s, result.seconds, result.places_mm, result.wander_mm, strict=True)
    return {
        "touches": [
            {"from_s": float(start), "seconds": float(long), "place_mm": place.tolist(), "wander_mm": float(off)}
            for start, long, place, off in named
        ]
    }, result


def touches_text(record: dict[str, Any]) -> str:
    """Return a row for each touch."""
    lines = [f"{record['verdict']}: {record['reason']}"]
    lines.append("   #   from s  seconds         x         y         z   wander (mm)")
    for i, one in enumerate(record["touches"], 1):
        place = "".join(f"{number:10.3f}" for number in one["place_mm"])
        lines.append(f"{i:4d}{one['from_s']:9.2f}{one['seconds']:9.2f}{place}{one['wander_mm']:9.2f}")
    return "\n".join(lines)


def needle(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """Return the record and the result of ``navsrv calibrate needle``."""
    from calibration.template import axis_from_tips

    result = axis_from_tips(*_pivoted(args.tip), *_pivoted(args.other))
    return _needle_record(result), result


def template(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """Return the record and the result of ``navsrv calibrate template``."""
    from calibration.template import solve_template
    from navsrv.server.recordings_io import paired, read_track

    tool, block = read_track(args.file, args.transform), read_track(args.other, args.other_transform)
    times, tools, blocks = paired(tool, block)
    if not len(times):
        raise InputError(f"{args.file} and {args.other} share no stamp; rows of one instant need equal stamps")
    result = solve_template(
        tools,
        blocks,
        tip_template_mm=args.hole,
        axis_template=args.axis,
        made_to_mm=args.made_to[0],
        made_to_deg=args.made_to[1],
    )
    return {**_needle_record(result), "residual_mm": result.residual_mm}, result


def _needle_record(result: Any) -> dict[str, Any]:
    """Return tip and axis as plain values."""
    return {
        "tip_tool_mm": result.tip_tool_mm.tolist(),
        "tip_covariance_mm2": result.tip_covariance_mm2.tolist(),
        "axis_tool": result.axis_tool.tolist(),
        "axis_covariance_rad2": result.axis_covariance_rad2.tolist(),
    }


def _pivoted(path: Path) -> tuple[Array, Array]:
    """Return tip (3,) and covariance (3, 3) of a pivot's record; one that was refused is no tip."""
    expected = "what navsrv calibrate pivot --json wrote is needed"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {expected}") from None
    except ValueError:
        raise InputError(f"{path}: not JSON; {expected}") from None
    try:
        tip = np.array(record["tip_tool_mm"], dtype=np.float64).reshape(3)
        covariance = np.array(record["covariance_mm2"], dtype=np.float64).reshape(3, 3)
        verdict, reason = record["verdict"], record["reason"]
    except (TypeError, KeyError, ValueError):
        raise InputError(f"{path}: no tip_tool_mm, covariance_mm2 and verdict of a pivot; {expected}") from None
    if verdict == "refuse":
        raise InputError(f"{path}: this pivot was refused: {reason}")
    return tip, covariance
