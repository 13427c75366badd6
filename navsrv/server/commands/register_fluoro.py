"""``navsrv register fluoro``: X-ray files and a file that says how they were taken, to a case's CT.

The geometry file (TOML, or JSON with the same names) holds one table for each view and one for the start::

    frame = "reference"                 # that all views and the start share

    [[views]]
    image = "ap.png"                    # beside this file; PNG, TIFF or what SimpleITK reads
    bright_air = true                   # false: bone is bright
    sdd_mm = 1020.0
    pixel_mm = 0.58                     # or [along columns, along rows]
    principal_px = [255.5, 255.5]       # (column, row), pixel centres at integers
    T_carm_from_frame = [...]           # 16 numbers, row by row; or, instead of the four: projection = [...] (12)

    [initial]
    T_ct_from_frame = [...]             # 16 numbers, row by row
    sigma_mm = 5.0                      # optional, per axis at the bone: what a single view's depth comes from
    sigma_deg = 3.0
"""

from __future__ import annotations

import argparse
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import CARM, CT, Array, Frame, Rigid, skew
from navsrv.kernel.projection import ProjectionModel
from navsrv.kernel.registration import RegistrationResult
from navsrv.registration.fluoro_views import XrayView

VIEW_KEYS = {"image", "bright_air", "sdd_mm", "pixel_mm", "principal_px", "T_carm_from_frame", "projection"}


def add_parser(kinds: Any) -> None:
    """Add ``fluoro`` to the kinds of ``register``."""
    parser = kinds.add_parser(
        "fluoro",
        help="X-ray images",
        epilog="example: navsrv register fluoro --case thoracolumbar --geometry views.toml --overlay overlay.png",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--case", required=True, metavar="DIR", help="a case folder, or sacrum or thoracolumbar")
    parser.add_argument("--geometry", type=Path, required=True, metavar="FILE", help=".toml or .json, see above")
    parser.add_argument("--bone", metavar="NAME", help="which bone; else the one that the target follows")
    beside = "place this bone, too, which may have moved against the first; as often as needed"
    parser.add_argument("--with", dest="beside", action="append", default=[], metavar="NAME", help=beside)
    parser.add_argument("--target", type=float, nargs=3, metavar=("X", "Y", "Z"), help="LPS mm; else the plan's target")
    parser.add_argument("--overlay", type=Path, metavar="OUT.png", help="picture to judge by")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> tuple[RegistrationResult, dict[str, RegistrationResult]]:
    """Return the registration of the files, and those of other bones where asked, by name."""
    from navsrv.anatomy.case import Case, Kind
    from navsrv.registration.bones import chosen_bone, prepare_case_bone
    from navsrv.registration.fluoro_bones import register_bones
    from navsrv.registration.overlay_fluoro import fluoro_overlay_png
    from navsrv.server.fetching import ensure_case
    from navsrv.server.registering import ct_image, register_views

    if args.overlay is not None and not args.overlay.parent.is_dir():
        raise InputError(f"{args.overlay}: no such folder to write it in")
    written = read_geometry(args.geometry)
    case = Case.load(ensure_case(args.case))
    structure = chosen_bone(case, args.bone)
    beside = [chosen_bone(case, name) for name in args.beside]
    if structure in beside:
        raise InputError(f"--with {structure.name}: that bone is registered first; name those that moved against it")
    labels = case.labels()
    if labels is None or structure.label is None:
        raise InputError(f"{args.case}: the case has no label map, so the bone's place in the CT is not known")
    ct = ct_image(case.ct())
    bones = [s.label for s in case.structures if s.kind is Kind.BONE and s.label is not None]
    made = {
        s.name: prepare_case_bone(ct, labels.voxels, bones, s.label)
        for s in (structure, *beside)
        if s.label is not None
    }
    bone = made[structure.name]
    views, initial = taken(args.geometry, written, bone.fine.centre_ct_mm)
    target = args.target
    if target is None and case.plan is not None:
        target = case.plan.target_ct_mm
    result = register_views(bone, views, initial, target)
    others = register_bones(made, views, structure.name, result) if beside else {}
    others.pop(structure.name, None)
    if args.overlay is not None:
        unfinished = args.overlay.with_name(f".{args.overlay.name}.{os.getpid()}")
        unfinished.write_bytes(fluoro_overlay_png(bone.fine, views, result.transform, initial))
        unfinished.replace(args.overlay)
    return result, others


def read_geometry(path: Path) -> dict[str, Any]:
    """Return a geometry file's table, its keys checked.

    Raises
    ------
    InputError
        Not readable, a key that is missing or not known.
    """
    try:
        text = path.read_text(encoding="utf-8")
        written = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; a geometry file (.toml or .json) is needed") from None
    except ValueError as error:
        raise InputError(f"{path}: neither TOML nor JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(written, dict):
        raise InputError(f"{path}: a table with views and initial is needed")
    unknown = sorted(set(written) - {"frame", "views", "initial"})
    if unknown:
        raise InputError(f"{path}: {unknown[0]!r} is not known; there are frame, views and initial")
    views = written.get("views")
    if not isinstance(views, list) or not views or not all(isinstance(v, dict) for v in views):
        raise InputError(f"{path}: no [[views]]; each X-ray needs one")
    for number, view in enumerate(views):
        unknown = sorted(set(view) - VIEW_KEYS)
        if unknown:
            raise InputError(f"{path}, view {number}: {unknown[0]!r} is not known; there are {', '.join(VIEW_KEYS)}")
        if not isinstance(view.get("image"), str):
            raise InputError(f"{path}, view {number}: image is missing; it names the X-ray's file")
    if not isinstance(written.get("initial"), dict):
        raise InputError(f"{path}: [initial] with T_ct_from_frame, 16 numbers, is missing")
    unknown = sorted(set(written["initial"]) - {"T_ct_from_frame", "sigma_mm", "sigma_deg"})
    if unknown:
        raise InputError(f"{path}, initial: {unknown[0]!r} is not known; T_ct_from_frame, sigma_mm, sigma_deg are")
    return written


def taken(path: Path, written: dict[str, Any], centre_ct_mm: Array) -> tuple[list[XrayView], Rigid]:
    """Return the views and the start of a geometry file; ``centre_ct_mm`` (3,): where the bone is in the CT."""
    frame = Frame(str(written.get("frame", "reference")))
    start = written["initial"]
    where = f"{path}, initial"
    initial = _rigid(f"{where}: T_ct_from_frame", start.get("T_ct_from_frame"), CT, frame)
    if "sigma_mm" in start or "sigma_deg" in start:
        mm, deg = (_positive(f"{where}: {key}", start.get(key)) for key in ("sigma_mm", "sigma_deg"))
        about = np.diag([*[np.radians(deg) ** 2] * 3, *[mm**2] * 3])
        shift = np.eye(6)
        shift[3:, :3] = skew(centre_ct_mm)
        initial = Rigid(CT, frame, initial.rotation, initial.translation_mm, shift @ about @ shift.T)
    seen = initial.inverse().apply(centre_ct_mm)
    return [_view(path, number, view, frame, seen) for number, view in enumerate(written["views"])], initial


def _view(path: Path, number: int, view: dict[str, Any], frame: Frame, seen_mm: Array) -> XrayView:
    where = f"{path}, view {number}"
    pixels = read_xray(path.parent / str(view["image"]))
    rows, columns = pixels.shape
    bright = view.get("bright_air", True)
    if not isinstance(bright, bool):
        raise InputError(f"{where}: bright_air is {bright!r}; true or false is needed")
    if "projection" in view:
        matrix = _numbers(f"{where}: projection", view["projection"], 12).reshape(3, 4)
        return XrayView(pixels, ProjectionModel.from_matrix(matrix, (columns, rows), frame, seen_mm), bright)
    pose = _rigid(f"{where}: T_carm_from_frame", view.get("T_carm_from_frame"), CARM, frame)
    size = view.get("pixel_mm")
    pixel = np.atleast_1d(_numbers(f"{where}: pixel_mm", size, 2 if isinstance(size, list) else 1))
    principal = None
    if "principal_px" in view:
        principal = _numbers(f"{where}: principal_px", view["principal_px"], 2).tolist()
    if not (pixel > 0.0).all():
        raise InputError(f"{where}: pixel_mm is {size}; a positive size is needed")
    sdd = _positive(f"{where}: sdd_mm", view.get("sdd_mm"))
    model = ProjectionModel.flat(pose, (columns, rows), sdd, (float(pixel[0]), float(pixel[-1])), principal)
    return XrayView(pixels, model, bright)


def read_xray(path: Path) -> NDArray[np.generic]:
    """Return the pixels (rows, columns) of an X-ray's file.

    Raises
    ------
    InputError
        Missing, not an image, or one with colours.
    """
    import SimpleITK as sitk

    if not path.is_file():
        raise InputError(f"{path}: no such file; an X-ray image (.png, .tif, .mha, .dcm) is needed")
    try:
        pixels: NDArray[np.generic] = np.squeeze(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    except RuntimeError:
        raise InputError(f"{path}: cannot be read as an image; .png, .tif, .mha or .dcm is needed") from None
    if pixels.ndim != 2:
        raise InputError(f"{path}: its values have shape {pixels.shape}; one grey value a pixel, one frame, is needed")
    return pixels


def _numbers(where: str, value: Any, count: int) -> Array:
    try:
        found = np.asarray(value, dtype=np.float64).ravel()
    except (TypeError, ValueError):
        found = np.empty(0)
    if len(found) != count or not np.isfinite(found).all():
        raise InputError(f"{where} is {value!r}; {count} finite number{'s are' if count > 1 else ' is'} needed")
    return found


def _positive(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < 1e6:
        raise InputError(f"{where} is {value!r}; a positive number is needed")
    return float(value)


def _rigid(where: str, value: Any, to: Frame, frm: Frame) -> Rigid:
    matrix = _numbers(where, value, 16).reshape(4, 4)
    r = matrix[:3, :3]
    if np.abs(r @ r.T - np.eye(3)).max() > 1e-3 or np.linalg.det(r) < 0.0 or matrix[3].tolist() != [0, 0, 0, 1]:
        raise InputError(
            f"{where} is not a rigid transform: a rotation without mirror and a last row 0 0 0 1 is needed"
        )
    u, _, vt = np.linalg.svd(r)
    return Rigid(to, frm, u @ vt, matrix[:3, 3])
