"""Owns the cases that need no file from the user: ``sacrum`` and ``bench`` are generated, ``thoracolumbar`` is fetched.

Each has a generator version; a stored case of another version is built anew, so that nobody computes on yesterday's
anatomy.  Several processes may ask for the same case at once: one builds, the others wait for it.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from navsrv.anatomy.build import CaseDraft, Progress, StructureDraft, part, silent, write_case
from navsrv.anatomy.case import Case, Kind, Volume
from navsrv.anatomy.home import made_folder, navsrv_home
from navsrv.kernel.errors import InputError

DEFAULT_SEED: Final = 1
if TYPE_CHECKING:
    from navsrv.anatomy.thoracolumbar import Download

SACRUM_VERSION: Final = 2
THORACOLUMBAR_VERSION: Final = 1
BENCH_VERSION: Final = 1
SACRUM_SIGMA_MM: Final = 0.3
"""Of the made-up segmentation: half a voxel of 0.6 mm, though the surfaces are those of the exact solids."""

BENCH_SIGMA_MM: Final = 0.5

Maker = Callable[[int, Progress, "Download | None"], CaseDraft]


def ensure_case(name_or_path: str | Path, progress: Progress = silent, download: Download | None = None) -> Path:
    """Return the folder of a case: a built-in one by its name, made if it is absent or of an older generator.

    Parameters
    ----------
    name_or_path : str or Path
        ``sacrum``, ``thoracolumbar``, ``bench``, or a folder (``./sacrum`` for a folder of that name).
    download : callable, optional
        How ``thoracolumbar`` is fetched (``navsrv.server.fetching``); without it, it must have been fetched.

    Raises
    ------
    InputError
        No such case, or it cannot be built (``thoracolumbar`` is not fetched).
    """
    name = str(name_or_path)
    if name not in BUILTIN:
        folder = Path(name_or_path)
        if not folder.is_dir():
            raise InputError(f"{name}: no such case folder, and no built-in case; those are {', '.join(BUILTIN)}")
        return folder
    folder = builtin_folder(name)
    if _current(name, folder):
        return folder
    with _one_builder(folder):
        if not _current(name, folder):  # another process may have built it while this one waited
            write_builtin(name, folder, DEFAULT_SEED, progress, download)
    return folder


def built_case(name_or_path: str | Path) -> Path | None:
    """Return the folder of a case that is there already; None for a built-in one that would have to be made.

    Raises
    ------
    InputError
        Neither a folder nor a built-in name.
    """
    if str(name_or_path) not in BUILTIN:
        return ensure_case(name_or_path)
    folder = builtin_folder(str(name_or_path))
    return folder if _current(str(name_or_path), folder) else None


def rebuild(name: str, progress: Progress = silent, download: Download | None = None) -> Case:
    """Build a built-in case anew in its own place and return it."""
    folder = builtin_folder(name)
    with _one_builder(folder):
        return write_builtin(name, folder, DEFAULT_SEED, progress, download)


def builtin_folder(name: str) -> Path:
    """Return where the built-in case is kept, whether it is there or not."""
    return navsrv_home() / "cases" / name


def write_builtin(
    name: str,
    folder: Path,
    seed: int = DEFAULT_SEED,
    progress: Progress = silent,
    download: Download | None = None,
) -> Case:
    """Build a built-in case into ``folder`` and return it; the seed matters only to ``sacrum``."""
    version, make = BUILTIN[name]
    draft = make(seed, part(progress, 0.0, 0.6), download)
    generator = {"name": name, "version": version, "seed": seed}
    marked = CaseDraft(
        name=draft.name,
        structures=draft.structures,
        provenance={**draft.provenance, "generator": generator},
        ct=draft.ct,
        labels=draft.labels,
        plan=draft.plan,
        primitives=draft.primitives,
    )
    return write_case(marked, folder, part(progress, 0.6, 1.0))


def _current(name: str, folder: Path) -> bool:
    try:
        case = Case.load(folder)
    except InputError:
        return False
    generator = case.provenance.get("generator", {})
    return bool(generator == {"name": name, "version": BUILTIN[name][0], "seed": DEFAULT_SEED})


@contextmanager
def _one_builder(folder: Path) -> Iterator[None]:
    """Hold the right to build ``folder``; the kernel gives it back even if this process dies."""
    parent = made_folder(folder.parent)
    with (parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in parent.glob(f".{folder.name}.building-*"):  # of a builder that was killed
            shutil.rmtree(left, ignore_errors=True)
        yield


def _sacrum(seed: int, progress: Progress, download: Download | None) -> CaseDraft:
    from navsrv.anatomy.sacrum import generate_sacrum, sacrum_meshes

    progress("generating the CT", 0.0)
    made = generate_sacrum(seed)
    progress("making surfaces", 0.5)
    meshes = sacrum_meshes(made)
    structures = tuple(
        StructureDraft(row.name, row.kind, meshes[row.name], SACRUM_SIGMA_MM, row.label, row.follows)
        for row in made.structures
    )
    parameters = {
        "drift_structure": made.drift_structure,
        "plan": {f"shaft_clearance_mm {name}": round(c.shaft_mm, 2) for name, c in made.clearances.items()},
    }
    return CaseDraft(
        name="sacrum",
        structures=structures,
        provenance={"sources": [], "note": "generated, nobody's anatomy", "parameters": parameters},
        ct=Volume(made.ct, made.origin_mm, made.spacing_mm),
        labels=Volume(made.labels, made.origin_mm, made.spacing_mm),
        plan=made.plan,
        primitives=made.primitives,
    )


def _bench(seed: int, progress: Progress, download: Download | None) -> CaseDraft:
    from navsrv.anatomy.bench_surfaces import bench_meshes

    progress("making surfaces", 0.0)
    structures = tuple(
        StructureDraft(name, Kind.CRITICAL, mesh, BENCH_SIGMA_MM, notes={"generated": "not anatomy"})
        for name, mesh in bench_meshes().items()
    )
    return CaseDraft("bench", structures, {"sources": [], "note": "made-up surfaces for measurements, not anatomy"})


def _thoracolumbar(seed: int, progress: Progress, download: Download | None) -> CaseDraft:
    from navsrv.anatomy.thoracolumbar import draft_thoracolumbar

    return draft_thoracolumbar(progress, download)


BUILTIN: Final[dict[str, tuple[int, Maker]]] = {
    "sacrum": (SACRUM_VERSION, _sacrum),
    "thoracolumbar": (THORACOLUMBAR_VERSION, _thoracolumbar),
    "bench": (BENCH_VERSION, _bench),
}
"""Version and maker of each built-in case; the modules behind them are imported when they are asked for.  A version is
raised with every change of what a maker makes."""
