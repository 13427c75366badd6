"""``navsrv register surface``: points brushed over bone, onto its surface, offline on files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import CT, TRACKER, Array, Rigid
from navsrv.kernel.registration import RegistrationResult

if TYPE_CHECKING:
    from calibration.surface import Surface

DEFAULT_SIGMA_MM = 0.5


def add_kind(kinds: Any) -> None:
    """Add ``surface``."""
    surface = kinds.add_parser(
        "surface",
        help="points brushed over bone",
        epilog="example: navsrv register surface brushed.csv --case sacrum --structure Sacrum --touched touched.csv"
        " --planned planned.csv --target 0 0 0",
    )
    surface.add_argument("scan", type=Path, metavar="SCAN.csv", help="x y z of the tip in mm a line, tracker's frame")
    surface.add_argument("--case", metavar="DIR", help="a case folder, or sacrum or thoracolumbar")
    surface.add_argument("--structure", metavar="NAME", help="which bone of the case")
    surface.add_argument("--surface", type=Path, metavar="FILE", help="in place of a case: .stl, .ply, .obj, .vtp")
    surface.add_argument("--space", choices=["LPS", "RAS"], default="LPS", help="of the surface file")
    surface.add_argument("--touched", type=Path, metavar="FROM.csv", help="landmarks to start from and to check by")
    surface.add_argument("--planned", type=Path, metavar="CT.csv", help="the same landmarks in the CT, LPS mm")
    surface.add_argument("--start", type=Path, metavar="M.txt", help="in place of landmarks: 4 x 4, CT from tracker")
    surface.add_argument("--sigma", type=float, metavar="MM", help="of the whole surface; else the structure's, or 0.5")
    surface.add_argument("--target", type=float, nargs=3, required=True, metavar=("X", "Y", "Z"), help="LPS mm")
    surface.add_argument("--json", action="store_true")


def register(args: argparse.Namespace) -> RegistrationResult:
    """Return the result of ``navsrv register surface``."""
    from calibration.landmarks import solve_landmarks
    from calibration.surface import solve_surface
    from navsrv.server.commands.register import read_points

    if (args.touched is None) != (args.planned is None):
        raise InputError("landmarks need both --touched and --planned")
    if (args.touched is None) == (args.start is None):
        raise InputError("a start is needed: --touched and --planned, or --start")
    scan = read_points(args.scan)
    surface, sigma_mm = _surface(args)
    landmarks = None
    if args.touched is not None:
        touched, planned = read_points(args.touched), read_points(args.planned)
        if len(touched) != len(planned):
            raise InputError(
                f"{args.touched} has {len(touched)} points, {args.planned} has {len(planned)}: each needs its partner"
            )
        landmarks = (touched, planned)
        start = solve_landmarks(touched, planned, frm=TRACKER, target_ct_mm=args.target).transform
    else:
        start = _start(args.start)
    return solve_surface(scan, surface, start, target_ct_mm=args.target, landmarks=landmarks, surface_sigma_mm=sigma_mm)


def _surface(args: argparse.Namespace) -> tuple[Surface, float]:
    """Return the surface and the error of the whole of it."""
    from calibration.surface import Surface
    from navsrv.anatomy.case import Case
    from navsrv.anatomy.surface_files import read_surface
    from navsrv.server.fetching import ensure_case

    if (args.case is None) == (args.surface is None):
        raise InputError("a bone is needed: --case with --structure, or --surface")
    if args.surface is not None:
        mesh, own = read_surface(args.surface, args.space), DEFAULT_SIGMA_MM
    else:
        if args.structure is None:
            raise InputError(f"which bone of {args.case}? give --structure")
        case = Case.load(ensure_case(args.case))
        mesh, own = case.mesh(args.structure), case.structure(args.structure).sigma_mm
    return Surface.of_mesh(mesh.vertices_mm, mesh.triangles), own if args.sigma is None else args.sigma


def _start(path: Path) -> Rigid:
    """Return a matrix of a text file."""
    try:
        matrix: Array = np.loadtxt(path, dtype=np.float64)
        return Rigid.from_matrix(CT, TRACKER, matrix)
    except OSError:
        raise InputError(f"{path}: no such file; four rows of four numbers are needed") from None
    except ValueError as error:
        raise InputError(f"{path}: not a rigid 4 x 4 matrix in mm ({error})") from None
