"""Owns the making of a smaller case from a case: some of its structures with the same surfaces, nothing else changed.

A campaign on the structures around the plan costs a fraction of one on all of them, and its recordings need a case on
disk that ``navsrv replay`` can open.  Refuses structures that the case does not have.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from navsrv.anatomy.build import CaseDraft, StructureDraft, write_case
from navsrv.anatomy.case import Case
from navsrv.anatomy.home import made_folder, navsrv_home
from navsrv.kernel.errors import InputError


def subset_case(folder: Path, names: Sequence[str], progress: Callable[[str, float], None]) -> Path:
    """Return the folder of a case with the named structures of another; made once, under the navsrv home.

    Raises
    ------
    InputError
        A name that the case does not have.
    """
    case = Case.load(folder)
    known = [s.name for s in case.structures]
    missing = [name for name in names if name not in known]
    if missing:
        raise InputError(f"structures: {', '.join(missing)}: not in case {case.name}; it has {', '.join(known)}")
    key = hashlib.sha256("\0".join([case.sha256, *sorted(names)]).encode()).hexdigest()[:12]
    place = made_folder(navsrv_home() / "cases") / f"{case.name}-{key}"
    with (place.parent / f".{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "case.json").is_file():
            write_case(_draft(case, names), place, progress)
    return place


def _draft(case: Case, names: Sequence[str]) -> CaseDraft:
    kept = [s for s in case.structures if s.name in names]
    structures = tuple(
        StructureDraft(
            s.name, s.kind, case.mesh(s.name), s.sigma_mm, None, s.follows if s.follows in names else None,
            s.caution_mm, s.warning_mm, {"taken_from": case.name},
        )
        for s in kept
    )  # fmt: skip
    primitives = None
    if case.primitives_file is not None:
        primitives = case.primitives()
        primitives = {**primitives, "structures": {n: v for n, v in primitives["structures"].items() if n in names}}
    draft = CaseDraft(case.name, structures, {"subset_of": case.sha256, "sources": []}, plan=case.plan)
    return replace(draft, primitives=primitives)
