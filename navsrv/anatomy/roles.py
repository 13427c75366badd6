"""Owns what the user says about a segmentation: which label, threshold or file is which structure.

Refuses to guess: an unknown key or kind, a label given twice, a file without its space.  All faults of a roles file are
reported at once, each with file, key, what is wrong and what would be right.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from navsrv.anatomy.case import Kind, Plan
from navsrv.kernel.errors import ConfigError, InputError

KINDS: Final = ", ".join(k.value for k in Kind)
NUMBERS: Final = ("sigma_mm", "caution_mm", "warning_mm", "blur_mm")
STRUCTURE_KEYS: Final = ("kind", "label", "threshold_hu", "surface", "space", "follows", *NUMBERS)
PLAN_KEYS: Final = ("entry_ct_mm", "target_ct_mm", "corridor_mm")
SOURCES: Final = "label = 5, threshold_hu = -950 or surface = 'file.stl'"


@dataclass(frozen=True, slots=True)
class Role:
    """One structure as the user asks for it; exactly one of ``labels``, ``threshold_hu`` and ``surface`` is given.

    Attributes
    ----------
    labels : tuple of int
        Several are merged into one structure.
    surface : Path or None
        A surface file, its numbers in ``space`` (LPS or RAS), mm.
    sigma_mm, caution_mm, warning_mm : float or None
        As in ``Structure``; None means the default.
    blur_mm : float or None
        Smoothing of a label's surface.
    """

    name: str
    kind: Kind
    labels: tuple[int, ...] = ()
    threshold_hu: float | None = None
    surface: Path | None = None
    space: str | None = None
    follows: str | None = None
    sigma_mm: float | None = None
    caution_mm: float | None = None
    warning_mm: float | None = None
    blur_mm: float | None = None


@dataclass(frozen=True, slots=True)
class Roles:
    """All that the user says of a case."""

    structures: tuple[Role, ...]
    plan: Plan | None = None
    name: str | None = None


def read_roles(path: Path) -> Roles:
    """Return the roles of a TOML file; surface files are sought beside it.

    Raises
    ------
    InputError
        The file is missing or not TOML.
    ConfigError
        Every other fault, all at once.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: roles: {error.strerror}") from None
    except RecursionError:
        raise InputError(f"{path}: roles: nested too deeply; expected tables of structures") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: roles: not valid TOML: {error}") from None
    reader = _Reader(path)
    roles = reader.roles(table)
    if reader.faults:
        raise ConfigError(reader.faults)
    return roles


def checked_roles(roles: Roles) -> Roles:
    """Return ``roles``, or raise InputError for a name that is there twice or that follows what is not there."""
    names = [r.name for r in roles.structures]
    if not names:
        raise InputError("no structures; give --roles roles.toml, --structure, --surface or --threshold")
    for i, role in enumerate(roles.structures):
        if names.index(role.name) != i:
            raise InputError(f"structure {role.name!r} is given twice; names are unique")
        if role.follows is not None and (role.follows not in names or role.follows == role.name):
            raise InputError(f"structure {role.name!r} follows {role.follows!r}; expected one of {', '.join(names)}")
    return roles


def structure_argument(text: str) -> Role:
    """Return the role of ``NAME=LABEL:KIND[:FOLLOWS]``; LABEL may be several, joined by commas."""
    right = "--structure 'S1 root left=5:critical:Sacrum'"
    name, parts = _split(text, right, 2, 3)
    try:
        labels = tuple(int(v) for v in parts[0].split(","))
    except ValueError:
        raise InputError(f"--structure {text!r}: label {parts[0]!r} is not a whole number; expected {right}") from None
    return Role(name, _kind(parts[1], f"--structure {text!r}"), labels=labels, follows=_third(parts))


def threshold_argument(text: str) -> Role:
    """Return the role of ``NAME=HU:KIND[:FOLLOWS]``: the surface of the CT itself at a threshold."""
    right = "--threshold 'Foam=-950:bone'"
    name, parts = _split(text, right, 2, 3)
    try:
        level = float(parts[0])
    except ValueError:
        level = float("nan")
    if not np.isfinite(level):
        raise InputError(f"--threshold {text!r}: {parts[0]!r} is not a number of HU; expected {right}")
    return Role(name, _kind(parts[1], f"--threshold {text!r}"), threshold_hu=level, follows=_third(parts))


def surface_argument(text: str) -> Role:
    """Return the role of ``NAME=FILE:KIND:LPS|RAS``; the path may hold colons."""
    right = "--surface 'Sacrum=sacrum.stl:bone:LPS'"
    name, equals, rest = text.partition("=")
    parts = rest.rsplit(":", 2)
    if not equals or not name.strip() or len(parts) != 3 or not parts[0]:
        raise InputError(f"--surface {text!r}: expected the form {right}")
    if parts[2] not in ("LPS", "RAS"):
        raise InputError(f"--surface {text!r}: space {parts[2]!r}; expected LPS or RAS, as in {right}")
    kind = _kind(parts[1], f"--surface {text!r}")
    return Role(name.strip(), kind, surface=Path(parts[0]), space=parts[2])


def _split(text: str, right: str, fewest: int, most: int) -> tuple[str, list[str]]:
    name, equals, rest = text.partition("=")
    parts = [p.strip() for p in rest.split(":")]
    if not equals or not name.strip() or not fewest <= len(parts) <= most or not all(parts):
        raise InputError(f"{text!r}: expected the form {right}")
    return name.strip(), parts


def _third(parts: list[str]) -> str | None:
    return parts[2] if len(parts) > 2 else None


def _kind(text: str, where: str) -> Kind:
    try:
        return Kind(text)
    except ValueError:
        raise InputError(f"{where}: unknown kind {text!r}; expected one of {KINDS}") from None


class _Reader:
    """Collects the faults of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[str] = []

    def fault(self, key: str, text: str) -> None:
        self.faults.append(f"{self.path}: {key}: {text}")

    def roles(self, table: Mapping[str, Any]) -> Roles:
        self.known(table, ("name", "structures", "plan"), "")
        name = table.get("name")
        if name is not None and (not isinstance(name, str) or not name):
            self.fault("name", f"expected a text, found {name!r}")
        structures = table.get("structures")
        if not isinstance(structures, dict) or not structures:
            self.fault("structures", "expected at least one table, such as [structures.Sacrum]")
            structures = {}
        roles = [self.role(str(key), value) for key, value in structures.items()]
        plan = self.plan(table["plan"]) if "plan" in table else None
        return Roles(tuple(r for r in roles if r is not None), plan, name)

    def known(self, table: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
        for key in table:
            if key not in keys:
                self.fault(f"{where}{key}", f"unknown key; expected one of {', '.join(keys)}")

    def role(self, name: str, table: Any) -> Role | None:
        where = f"structures.{name}."
        if not isinstance(table, dict):
            self.fault(where[:-1], f"expected a table with kind and {SOURCES}")
            return None
        before = len(self.faults)
        self.known(table, STRUCTURE_KEYS, where)
        if table.get("kind") not in [k.value for k in Kind]:
            self.fault(f"{where}kind", f"unknown kind {table.get('kind')!r}; expected one of {KINDS}")
        if sum(key in table for key in ("label", "threshold_hu", "surface")) != 1:
            self.fault(where[:-1], f"expected exactly one of {SOURCES}")
        for key in NUMBERS:
            if key in table and not _positive(table[key]):
                self.fault(f"{where}{key}", f"expected a number above 0, found {table[key]!r}")
        level = table.get("threshold_hu")
        if level is not None and (not isinstance(level, int | float) or isinstance(level, bool)):
            self.fault(f"{where}threshold_hu", f"expected a number of HU, found {level!r}")
        labels = table.get("label", [])
        labels = labels if isinstance(labels, list) else [labels]
        if not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in labels):
            self.fault(f"{where}label", f"expected whole numbers above 0, found {table['label']!r}")
        self.surface_keys(table, where)
        if len(self.faults) > before:
            return None
        return Role(
            name=name,
            kind=Kind(table["kind"]),
            labels=tuple(labels),
            threshold_hu=None if level is None else float(level),
            surface=self.path.parent / table["surface"] if "surface" in table else None,
            space=table.get("space"),
            follows=table.get("follows"),
            **{key: float(table[key]) for key in NUMBERS if key in table},
        )

    def surface_keys(self, table: Mapping[str, Any], where: str) -> None:
        for key in ("surface", "follows"):
            if key in table and not isinstance(table[key], str):
                self.fault(f"{where}{key}", f"expected a text, found {table[key]!r}")
        if "surface" in table and table.get("space") not in ("LPS", "RAS"):
            self.fault(
                f"{where}space", f"expected LPS or RAS, the space of the surface file, found {table.get('space')!r}"
            )
        if "surface" not in table and "space" in table:
            self.fault(f"{where}space", "only a surface file has a space")

    def plan(self, table: Any) -> Plan | None:
        if not isinstance(table, dict):
            self.fault("plan", f"expected a table with {', '.join(PLAN_KEYS)}")
            return None
        before = len(self.faults)
        self.known(table, PLAN_KEYS, "plan.")
        for key in PLAN_KEYS[:2]:
            value = table.get(key)
            if not isinstance(value, list) or len(value) != 3 or not all(_finite(v) for v in value):
                self.fault(f"plan.{key}", f"expected three numbers, LPS mm, found {value!r}")
        if not _positive(table.get("corridor_mm")):
            self.fault("plan.corridor_mm", f"expected a number above 0, found {table.get('corridor_mm')!r}")
        if len(self.faults) > before:
            return None
        plan = Plan(table["entry_ct_mm"], table["target_ct_mm"], float(table["corridor_mm"]))
        if plan.length_mm == 0.0:
            self.fault("plan.target_ct_mm", "expected a point other than the entry")
        return plan


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _positive(value: Any) -> bool:
    return _finite(value) and value > 0
