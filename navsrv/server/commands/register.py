"""``navsrv register``: landmarks, X-rays or a volume to the CT, offline on files, by the same code as live."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import TRACKER, Array
from navsrv.kernel.registration import RegistrationResult, Verdict
from navsrv.server.commands import register_fluoro, register_surface

if TYPE_CHECKING:
    from navsrv.kernel.samples import VolumeSample

REFUSED = 1
"""Exit status when there is a result but its verdict is refuse."""


def add_parser(subparsers: Any) -> None:
    """Add ``register`` with its kinds."""
    parser = subparsers.add_parser(
        "register",
        help="register landmarks, a brushed surface, X-rays or a volume, offline on files",
        epilog="example: navsrv register cbct --case sacrum --volume oarm.mha --overlay overlay.png",
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    landmarks = kinds.add_parser(
        "landmarks",
        help="paired points",
        epilog="example: navsrv register landmarks touched.csv planned.csv --target 0 0 0",
    )
    landmarks.add_argument("touched", type=Path, metavar="FROM.csv", help="x y z in mm a line, in the tracker's frame")
    landmarks.add_argument("planned", type=Path, metavar="CT.csv", help="the same points in the CT, LPS mm")
    landmarks.add_argument("--target", type=float, nargs=3, required=True, metavar=("X", "Y", "Z"), help="LPS mm")
    landmarks.add_argument("--fle", type=float, metavar="MM", help="localisation error, rms length; else estimated")
    sigmas = {"type": float, "nargs": 3, "metavar": ("SX", "SY", "SZ")}
    landmarks.add_argument("--noise-from", **sigmas, help="in its place: one sigma an axis of the touched points, mm")
    landmarks.add_argument("--noise-ct", **sigmas, help="and of the planned ones, mm")
    landmarks.add_argument("--match", action="store_true", help="the order is not known (at most ten points)")
    landmarks.add_argument("--json", action="store_true")
    register_surface.add_kind(kinds)
    register_fluoro.add_parser(kinds)
    cbct = kinds.add_parser(
        "cbct",
        help="a CBCT or O-arm volume",
        epilog="example: navsrv register cbct --case sacrum --volume oarm.mha --json",
    )
    cbct.add_argument("--case", required=True, metavar="DIR", help="a case folder, or sacrum or thoracolumbar")
    cbct.add_argument("--volume", type=Path, required=True, metavar="FILE.mha")
    cbct.add_argument("--target", type=float, nargs=3, metavar=("X", "Y", "Z"), help="LPS mm; else the plan's target")
    cbct.add_argument("--overlay", type=Path, metavar="OUT.png", help="picture to judge by")
    cbct.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Register and print; exit 1 when a verdict is refuse."""
    others: dict[str, RegistrationResult] = {}
    if args.kind == "fluoro":
        result, others = register_fluoro.run(args)
    else:
        result = {"landmarks": _landmarks, "surface": register_surface.register, "cbct": _cbct}[args.kind](args)
    if args.json:
        bones = {"bones": {name: as_json(other) for name, other in others.items()}} if others else {}
        print(json.dumps(as_json(result) | bones))
    else:
        print("\n\n".join([as_text(result), *(f"{name}: {as_text(other)}" for name, other in others.items())]))
    return REFUSED if Verdict.REFUSE in [r.verdict for r in (result, *others.values())] else 0


def _landmarks(args: argparse.Namespace) -> RegistrationResult:
    from calibration.landmarks import solve_landmarks

    touched, planned = read_points(args.touched), read_points(args.planned)
    if len(touched) != len(planned):
        raise InputError(
            f"{args.touched} has {len(touched)} points, {args.planned} has {len(planned)}: each needs its partner"
        )
    return solve_landmarks(
        touched,
        planned,
        frm=TRACKER,
        target_ct_mm=args.target,
        fle_mm=args.fle,
        noise_from_mm2=None if args.noise_from is None else np.diag(args.noise_from) ** 2,
        noise_ct_mm2=None if args.noise_ct is None else np.diag(args.noise_ct) ** 2,
        match=args.match,
    )


def _cbct(args: argparse.Namespace) -> RegistrationResult:
    from navsrv.anatomy.case import Case
    from navsrv.registration.cbct import register_cbct
    from navsrv.registration.overlay import overlay_png
    from navsrv.server.fetching import ensure_case
    from navsrv.server.registering import ct_image, helpers

    volume = read_volume(args.volume)
    if args.overlay is not None and not args.overlay.parent.is_dir():
        raise InputError(f"{args.overlay}: no such folder to write it in")
    case = Case.load(ensure_case(args.case))
    ct = ct_image(case.ct())
    target = args.target
    if target is None and case.plan is not None:
        target = case.plan.target_ct_mm
    with helpers(1) as aside:
        result = register_cbct(ct, volume, target_ct_mm=target, progress=_progress(), aside=aside)
    if args.overlay is not None:
        picture = overlay_png(ct, volume, result.transform, result.target_ct_mm)
        unfinished = args.overlay.with_name(f".{args.overlay.name}.{os.getpid()}")
        unfinished.write_bytes(picture)
        unfinished.replace(args.overlay)
    return result


def _progress() -> Any:
    """Return a progress line for a terminal; None in a pipe."""
    if not sys.stderr.isatty():
        return None

    def show(fraction: float, word: str) -> None:
        print(f"\r{100 * fraction:3.0f} % {word:<24}", end="", file=sys.stderr, flush=True)

    return show


def read_points(path: Path) -> Array:
    """Return points (N, 3) of a text file, three numbers a line by commas or blanks; ``#`` and one heading are skipped.

    Raises
    ------
    InputError
        Not readable, or a line that is not three finite numbers.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise InputError(f"{path}: {reason}; three numbers a line, x,y,z in mm, are needed") from None
    points: list[list[float]] = []
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].replace(",", " ").replace(";", " ").split()
        if not words:
            continue
        try:
            point = [float(word) for word in words]
        except ValueError:
            if not points and number <= 2 and not any(word[0].isdigit() for word in words):
                continue
            point = []
        if len(point) != 3 or not np.isfinite(point).all():
            raise InputError(f"{path}, line {number}: {line.strip()!r} is not three finite numbers x,y,z in mm")
        points.append(point)
    if not points:
        raise InputError(f"{path}: holds no points; three numbers a line, x,y,z in mm, are needed")
    return np.array(points, dtype=np.float64)


def read_volume(path: Path) -> VolumeSample:
    """Return a volume from a file that SimpleITK reads; its millimetres become the frame ``volume``.

    Raises
    ------
    InputError
        Missing, not a volume, or not of three axes.
    """
    import SimpleITK as sitk

    from navsrv.kernel.samples import VolumeSample

    if not path.is_file():
        raise InputError(f"{path}: no such file; a volume (.mha, .nii.gz, .nrrd) is needed")
    try:
        image: Any = sitk.ReadImage(str(path))
    except RuntimeError:
        raise InputError(f"{path}: cannot be read as a volume; .mha, .nii.gz or .nrrd is needed") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        axes, values = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
        raise InputError(f"{path}: {axes} axes and {values} values a voxel; 3 and 1 are needed")
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    voxels: NDArray[np.generic] = sitk.GetArrayFromImage(image)
    return VolumeSample(path.name, voxels, matrix, None, 0)


def as_json(result: RegistrationResult) -> dict[str, Any]:
    """Return a result as plain JSON values."""
    covariance = result.transform.covariance
    return {
        "method": result.method,
        "to": str(result.transform.to),
        "from": str(result.transform.frm),
        "matrix": result.transform.matrix.tolist(),
        "covariance": None if covariance is None else covariance.tolist(),
        "target_ct_mm": np.asarray(result.target_ct_mm).tolist(),
        "tre_mm": result.tre_mm,
        "residual_mm": result.residual_mm,
        "verdict": result.verdict.value,
        "reason": result.reason,
        "details": dict(result.details),
    }


def as_text(result: RegistrationResult) -> str:
    """Return a result for a person: the verdict first, FRE never as accuracy."""
    lines = [f"{result.verdict.value}: {result.reason}"]
    lines.append(f"predicted TRE (rms) {result.tre_mm:.2f} mm at {np.round(result.target_ct_mm, 1).tolist()} LPS mm")
    lines.append(f"T_{result.transform.to}_from_{result.transform.frm}:")
    lines += ["  " + " ".join(f"{value:12.6f}" for value in row) for row in result.transform.matrix]
    lines += [f"  {name} {value:.4g}" for name, value in result.details]
    return "\n".join(lines)
