"""``navsrv calibrate carm``: a C-arm's projection, distortion and flex from X-rays of a bead phantom."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from navsrv.kernel.errors import CalibrationError, InputError

if TYPE_CHECKING:
    from calibration.carm import CarmView
    from calibration.carm_table import CarmCalibration
    from navsrv.server.calibration_files import XrayFile

ACROSS: Final = (math.radians(40.0), math.radians(140.0))
"""Two views that a point is placed by look along lines so far apart."""


def add_kind(kinds: Any) -> None:
    """Add ``carm``."""
    carm = kinds.add_parser(
        "carm",
        help="an X-ray's projection and distortion, from pictures of a bead phantom",
        epilog="example: navsrv calibrate carm ap.png --phantom examples/bead_phantom.toml --sdd 1000 --pixel 0.3",
    )
    carm.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help=".png, .tif, .mha or .dcm, one an angle")
    carm.add_argument("--phantom", type=Path, required=True, metavar="P.toml", help="beads: x, y, z, diameter in mm")
    carm.add_argument(
        "--angles", type=float, nargs="+", metavar="DEG", help="the encoder's, one an image; else DICOM's"
    )
    carm.add_argument("--sdd", type=float, metavar="MM", help="source to detector, to a tenth; else DICOM's")
    carm.add_argument("--pixel", type=float, metavar="MM", help="on the detector; else the file's")
    carm.add_argument("--distortion", choices=["none", "intensifier", "polynomial"], default="intensifier")
    carm.add_argument(
        "--tone",
        choices=["counts", "log-dark", "log-bright"],
        default="counts",
        help="what pixels are: photons, or their logarithm with metal dark or bright",
    )
    carm.add_argument("-o", "--output", type=Path, metavar="OUT.npz", help="the calibrated C-arm, for a server")
    carm.add_argument("--json", action="store_true")


def calibrate(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """Return the record and the result of ``navsrv calibrate carm``."""
    from calibration.bead_phantom import NominalArm
    from calibration.beads import Tone
    from calibration.carm import calibrate_view
    from calibration.carm_table import calibrate_table
    from calibration.distortion import Bending
    from navsrv.server.calibration_files import read_phantom, read_xray, write_carm

    phantom = read_phantom(args.phantom)
    files = [read_xray(path) for path in args.images]
    angles = _angles(args, files)
    views: list[CarmView] = []
    for i, (path, file) in enumerate(zip(args.images, files, strict=True), 1):
        if sys.stderr.isatty():
            print(f"\r{i} of {len(files)} pictures", end="\n" if i == len(files) else "", file=sys.stderr, flush=True)
        rows, columns = file.pixels.shape
        arm = NominalArm(_known(args.sdd, file.sdd_mm, path, "sdd"), _known(args.pixel, file.pixel_mm, path, "pixel"),
                         columns, rows)  # fmt: skip
        try:
            views.append(
                calibrate_view(file.pixels, phantom, arm, bending=Bending(args.distortion), tone=Tone(args.tone))
            )
        except CalibrationError as error:
            raise CalibrationError(f"{path}: {error}") from None
    result = calibrate_table(np.deg2rad(angles), views)
    if args.output is not None:
        write_carm(args.output, result)
    rows_of_views = [_view(path, angle, view) for path, angle, view in zip(args.images, angles, views, strict=True)]
    record: dict[str, Any] = {
        "phantom": phantom.name,
        "views": rows_of_views,
        "axis_phantom": result.axis_phantom.tolist(),
    }
    record["left_out_mm"] = [float(v) if math.isfinite(v) else None for v in result.left_out_mm]
    record["predicted_point_mm"] = _predicted(result, np.deg2rad(angles), views, phantom.beads_mm.mean(axis=0))
    return record, result


def _known(stated: float | None, said: float | None, path: Path, option: str) -> float:
    """Return a length that was stated, or that the file says."""
    value = said if stated is None else stated
    if value is None:
        raise InputError(f"{path}: its file does not say it; give --{option}, in mm")
    return value


def _angles(args: argparse.Namespace, files: list[XrayFile]) -> list[float]:
    """Return the angle of each picture in degrees."""
    if args.angles is not None:
        if len(args.angles) != len(files):
            raise InputError(f"{len(args.angles)} angles for {len(files)} images: one each, in their order")
        return [float(angle) for angle in args.angles]
    said = [file.angle_deg for file in files]
    if len(files) > 1 and any(angle is None for angle in said):
        path = args.images[said.index(None)]
        raise InputError(f"{path}: its file does not say the C-arm's angle; give --angles, one an image")
    return [angle or 0.0 for angle in said]


def _view(path: Path, angle_deg: float, view: CarmView) -> dict[str, Any]:
    """Return one view as plain values."""
    return {
        "image": str(path),
        "angle_deg": angle_deg,
        "verdict": view.verdict.value,
        "reason": view.reason,
        "K": view.model.intrinsics.tolist(),
        "T_carm_from_phantom": view.model.T_carm_from_object.matrix.tolist(),
        "source_phantom_mm": view.model.source_mm.tolist(),
        "source_sigma_mm": view.source_sigma_mm,
        "source_covariance_mm2": view.source_covariance_mm2.tolist(),
        "residual_px": view.residual_px,
        "point_sigma_mm": view.point_sigma_mm,
        "distortion": {"kind": view.distortion.kind.value, "coefficients": view.distortion.coefficients.tolist()},
        "details": dict(view.details),
    }


def _predicted(result: CarmCalibration, angles: Any, views: list[CarmView], point_mm: Any) -> float | None:
    """Return the predicted rms error of a point placed by the two views that stand best across, if any do."""
    from calibration.carm import predicted_point_covariance

    pairs = [
        (abs(abs(angles[i] - angles[j]) - math.pi / 2), i, j)
        for i in range(len(views))
        for j in range(i)
        if ACROSS[0] <= abs(angles[i] - angles[j]) <= ACROSS[1]
    ]
    if not pairs:
        return None
    _, i, j = min(pairs)
    return float(np.sqrt(np.trace(predicted_point_covariance([views[i], views[j]], point_mm))))


def as_text(record: dict[str, Any]) -> str:
    """Return the record for a person: the verdict, then a row a view."""
    lines = [f"{record['verdict']}: {record['reason']}"]
    lines.append("  angle  beads  residual  source +-     SDD    bend  left out  verdict")
    lines.append("    deg            px        mm         mm      px        mm")
    for view, off in zip(record["views"], record["left_out_mm"], strict=True):
        d = view["details"]
        lines.append(
            f"{view['angle_deg']:7.1f}{d['beads_used']:7.0f}{view['residual_px']:10.3f}{view['source_sigma_mm']:11.2f}"
            f"{d['sdd_mm']:9.1f}{d['bending_max_px']:8.1f}{'-' if off is None else f'{off:.3f}':>10}  {view['verdict']}"
        )
    if record["predicted_point_mm"] is not None:
        lines.append(f"predicted error of a point placed by two views {record['predicted_point_mm']:.3f} mm (rms)")
    lines += [f"  {name} {value:.4g}" for name, value in record["details"].items() if value is not None]
    return "\n".join(lines)
