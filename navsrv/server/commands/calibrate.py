"""``navsrv calibrate``: tips, shafts, clocks and joined bodies from recorded poses, offline on files."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Frame
from navsrv.kernel.registration import Verdict
from navsrv.server.commands import calibrate_carm, calibrate_tools
from navsrv.server.commands.register import REFUSED

if TYPE_CHECKING:
    from navsrv.server.recordings_io import PoseTrack


def add_parser(subparsers: Any) -> None:
    """Add ``calibrate`` with its kinds."""
    parser = subparsers.add_parser(
        "calibrate",
        help="calibrate from recorded poses and X-rays, offline on files",
        epilog="example: navsrv calibrate pivot stylus.csv --json",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    pivot = kinds.add_parser(
        "pivot",
        help="a tool's tip: poses while the tip stood still",
        epilog="example: navsrv calibrate pivot plus.igs.mha --transform StylusToReference --between 35 41",
    )
    _add_file(pivot)
    pivot.add_argument("--method", choices=["algebraic", "ransac", "sphere"], default="algebraic")
    spin = kinds.add_parser(
        "spin",
        help="a tool's shaft: poses while it was turned about the shaft",
        epilog="example: navsrv calibrate spin turned.csv --tip -14.5 394.6 -7.4",
    )
    _add_file(spin)
    spin.add_argument("--tip", type=float, nargs=3, metavar=("X", "Y", "Z"), help="from the pivot, mm in the tool")
    temporal = kinds.add_parser(
        "temporal",
        help="offset and drift between two streams of one motion",
        epilog="example: navsrv calibrate temporal optical.csv magnetic.csv --max-offset 0.5",
    )
    _add_files(temporal, "A", "B")
    temporal.add_argument("--images", action="store_true", help="B is an image sequence (.igs.mha): what moves in it")
    temporal.add_argument("--max-offset", type=float, default=1.0, metavar="S", help="searched to either side")
    hand_eye = kinds.add_parser(
        "hand-eye",
        help="two joined bodies, each seen by its own source, rows of equal stamps",
        epilog="example: navsrv calibrate hand-eye base_from_hand.csv eye_from_world.csv",
    )
    _add_files(hand_eye, "HAND", "EYE")
    hand_eye.add_argument(
        "--robot-world", action="store_true", help="start from the poses (AX = ZB), not their motions"
    )
    gantry = kinds.add_parser(
        "gantry",
        help="a scanner's volume against the markers on its gantry, rows of equal stamps",
        epilog="example: navsrv calibrate gantry gantry.csv reference.csv registered.csv --target 0 0 0",
    )
    gantry.add_argument("file", type=Path, metavar="GANTRY.FILE", help="tracker from gantry at each scan")
    gantry.add_argument("reference", type=Path, metavar="REFERENCE.FILE", help="tracker from reference at each scan")
    gantry.add_argument("volumes", type=Path, metavar="REGISTERED.FILE", help="volume from reference of each scan")
    gantry.add_argument("--target", type=float, nargs=3, default=[0.0, 0.0, 0.0], metavar=("X", "Y", "Z"), help="mm")
    gantry.add_argument(
        "--registered-to",
        type=float,
        nargs=2,
        default=[0.5, 1.0],
        metavar=("DEG", "MM"),
        help="one or two scans: sigma",
    )
    gantry.add_argument("--json", action="store_true")
    acceptance = kinds.add_parser(
        "acceptance",
        help="a tracker in the manner of ASTM F2554: one point, turning, distances",
        epilog="example: navsrv calibrate acceptance touched.csv --tip 1.2 -0.4 160 --block holes.csv --report page.md",
    )
    _add_file(acceptance)
    acceptance.add_argument(
        "--tip", type=float, nargs=3, required=True, metavar=("X", "Y", "Z"), help="from the pivot, mm in the tool"
    )
    acceptance.add_argument("--block", type=Path, metavar="HOLES.csv", help="x y z in mm a line, as it was made")
    acceptance.add_argument("--report", type=Path, metavar="PAGE.md", help="the figures as a page")
    calibrate_tools.add_kinds(kinds)
    calibrate_carm.add_kind(kinds)


def _add_file(parser: Any) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="poses: .csv, .igs.mha or a recording (.mcap)")
    parser.add_argument("--transform", metavar="NAME", help="which, as AToB; B may be a second tool of the file")
    parser.add_argument("--between", type=float, nargs=2, metavar=("START", "END"), help="seconds since the first pose")
    parser.add_argument("--json", action="store_true")


def _add_files(parser: Any, first: str, second: str) -> None:
    parser.add_argument("file", type=Path, metavar=f"{first}.FILE", help="poses: .csv, .igs.mha or .mcap")
    parser.add_argument("other", type=Path, metavar=f"{second}.FILE", help="may be the same file")
    parser.add_argument("--transform", metavar="NAME", help=f"of {first}, as AToB")
    parser.add_argument("--other-transform", metavar="NAME", help=f"of {second}, as AToB")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Calibrate and print; exit 1 when the verdict is refuse."""
    kinds = {
        "pivot": _pivot,
        "spin": _spin,
        "temporal": _temporal,
        "hand-eye": _hand_eye,
        "gantry": _gantry,
        "acceptance": _acceptance,
        "touches": calibrate_tools.touches,
        "needle": calibrate_tools.needle,
        "template": calibrate_tools.template,
        "carm": calibrate_carm.calibrate,
    }
    record, result = kinds[args.kind](args)
    record = {
        "kind": args.kind,
        **record,
        "verdict": result.verdict.value,
        "reason": result.reason,
        "details": {name: float(value) if math.isfinite(value) else None for name, value in result.details},
    }
    print(json.dumps(record) if args.json else TEXTS.get(args.kind, as_text)(record))
    return REFUSED if result.verdict is Verdict.REFUSE else 0


def _pivot(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    from calibration.pivot import PivotMethod, solve_pivot

    result = solve_pivot(_track(args).poses, method=PivotMethod(args.method))
    return {
        "method": result.method.value,
        "tip_tool_mm": result.tip_tool_mm.tolist(),
        "tip_sigma_mm": result.tip_sigma_mm,
        "covariance_mm2": result.covariance_mm2.tolist(),
        "pivot_tracker_mm": result.pivot_tracker_mm.tolist(),
        "residual_mm": result.residual_mm,
    }, result


def _spin(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    from calibration.spin import solve_spin

    result = solve_spin(_track(args).poses, tip_tool_mm=args.tip)
    return {
        "axis_tool": result.axis_tool.tolist(),
        "axis_sigma_deg": math.degrees(result.axis_sigma_rad),
        "covariance_rad2": result.covariance_rad2.tolist(),
        "wobble_deg": math.degrees(result.wobble_rad),
    }, result


def _temporal(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    from calibration.image_motion import image_motion
    from calibration.temporal import solve_temporal
    from navsrv.server.recordings_io import read_images, read_track

    a = read_track(args.file, args.transform)
    shown: dict[str, Any] = {}
    if args.images:
        if args.other_transform is not None:
            raise InputError(f"{args.other}: --images has no --other-transform; give one of them")
        pictures = read_images(args.other)
        values, what = image_motion(pictures.images)
        shown, times = {"images_show": what.value}, pictures.times_ns
    else:
        b = read_track(args.other, args.other_transform)
        values, times = b.poses, b.times_ns
    result = solve_temporal(a.times_ns, a.poses, times, values, max_offset_s=args.max_offset)
    return {
        **shown,
        "offset_ms": result.offset_ns / 1e6,
        "offset_sigma_ms": result.offset_sigma_ns / 1e6,
        "drift_ppm": 1e6 * result.drift,
        "drift_sigma_ppm": 1e6 * result.drift_sigma,
        "at_ns": result.at_ns,
    }, result


def _hand_eye(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    from calibration.hand_eye import Start, solve_hand_eye
    from navsrv.server.recordings_io import paired

    hand, eye = _tracks(args)
    times, hands, eyes = paired(hand, eye)
    if not len(times):
        raise InputError(f"{args.file} and {args.other} share no stamp; rows of one instant need equal stamps")
    result = solve_hand_eye(
        hands,
        eyes,
        base=Frame("base"),
        hand=Frame("hand"),
        eye=Frame("eye"),
        world=Frame("world"),
        start=Start.ROBOT_WORLD if args.robot_world else Start.HAND_EYE,
    )
    record: dict[str, Any] = {"residual_mm": result.residual_mm, "residual_deg": math.degrees(result.residual_rad)}
    for transform in (result.hand_from_eye, result.base_from_world):
        name = f"T_{transform.to}_from_{transform.frm}"
        record[name] = transform.matrix.tolist()
        record[f"{name}_covariance"] = None if transform.covariance is None else transform.covariance.tolist()
    return record, result


def _gantry(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    from calibration.hand_eye import solve_gantry
    from navsrv.server.recordings_io import PoseTrack, paired, read_track

    gantry, reference, volumes = (read_track(path, None) for path in (args.file, args.reference, args.volumes))
    times, gantries, references = paired(gantry, reference)
    both = paired(PoseTrack("gantry", times, gantries), volumes)
    references = paired(PoseTrack("reference", times, references), volumes)[1]
    if not len(both[0]):
        raise InputError(
            f"{args.file}, {args.reference} and {args.volumes} share no stamp: a row of each for each scan"
        )
    result = solve_gantry(
        both[1],
        references,
        both[2],
        gantry=Frame("gantry"),
        volume=Frame("volume"),
        target_volume_mm=args.target,
        registration_sigma=(math.radians(args.registered_to[0]), args.registered_to[1]),
    )
    transform = result.gantry_from_volume
    covariance = None if transform.covariance is None else transform.covariance.tolist()
    return {
        "T_gantry_from_volume": transform.matrix.tolist(),
        "T_gantry_from_volume_covariance": covariance,
        "tre_mm": result.tre_mm,
    }, result


@dataclass(frozen=True, slots=True)
class _Judged:
    """What ``run`` asks of a result."""

    verdict: Verdict
    reason: str
    details: tuple[tuple[str, float], ...]


def _acceptance(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    from calibration.acceptance import judge_recording, markdown, report, worst
    from navsrv.server.commands.register import read_points

    track = _track(args)
    holes = None if args.block is None else read_points(args.block)
    if args.report is not None and not args.report.parent.is_dir():
        raise InputError(f"{args.report}: no such folder to write it in")
    results, missing = judge_recording(track.times_ns, track.poses, args.tip, holes)
    if args.report is not None:
        what = f"Recording `{args.file.name}`, {track.name}, {len(track.times_ns)} poses."
        args.report.write_text(markdown(results, missing, what), encoding="utf-8")
    verdict, reason = worst(results, missing)
    tests = [
        {name: value.value if isinstance(value, Verdict) else value for name, value in asdict(one).items()}
        for one in results
    ]
    details = (("tests", float(len(results))), ("not_tested", float(len(missing))))
    return {"tests": tests, "not_tested": missing, "report": report(results, missing)}, _Judged(
        verdict, reason, details
    )


def _track(args: argparse.Namespace) -> PoseTrack:
    """Return the track of a command of one file."""
    from navsrv.server.recordings_io import read_part

    return read_part(args.file, args.transform, args.between)


def _tracks(args: argparse.Namespace) -> tuple[PoseTrack, PoseTrack]:
    """Return both tracks of a command of two files."""
    from navsrv.server.recordings_io import read_track

    return read_track(args.file, args.transform), read_track(args.other, args.other_transform)


def _acceptance_text(record: dict[str, Any]) -> str:
    """Return the verdict and the table of an acceptance."""
    return f"{record['verdict']}: {record['reason']}\n{record['report']}"


def as_text(record: dict[str, Any]) -> str:
    """Return a record for a person: the verdict first, then each figure on a line, covariances left to the JSON."""
    lines = [f"{record['verdict']}: {record['reason']}"]
    for name, value in record.items():
        if name in ("kind", "verdict", "reason", "details") or "covariance" in name:
            continue
        if name.startswith("T_"):
            lines += [f"{name}:", *("  " + " ".join(f"{number:12.6f}" for number in row) for row in value)]
        elif isinstance(value, list):
            lines.append(f"{name} " + " ".join(f"{number:.4f}" for number in np.asarray(value)))
        else:
            lines.append(f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}")
    lines += [f"  {name} {value:.4g}" for name, value in record["details"].items() if value is not None]
    return "\n".join(lines)


TEXTS: Final = {
    "carm": calibrate_carm.as_text,
    "acceptance": _acceptance_text,
    "touches": calibrate_tools.touches_text,
}
"""How a record is said to a person, where rows of figures would not do."""
