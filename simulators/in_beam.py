"""Owns what a person puts into the beam by a command: JSON objects to solids, each fault in one clear line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import CT, Array, Frame, Rigid
from simulators.world.xray_solids import (
    BeadPhantom,
    Solid,
    cannula,
    cement_blob,
    grid_phantom,
    moved,
    needle,
    ring_phantom,
    screw,
    table_top,
)

PHANTOM: Final = Frame("phantom")
LONGEST_MM: Final = 2000.0


def parse_solids(given: object) -> Solid:
    """Return the pieces of a list of solids in the frame ``ct``; InputError that names the place otherwise.

    ``{"kind": "needle" | "cannula" | "screw", "tip_ct_mm": [x, y, z], "axis_ct": [x, y, z]}``, with ``length_mm`` and
    ``radius_mm`` where they differ; ``{"kind": "cement", "centre_ct_mm": [..], "volume_ml": v, "seed": n}``;
    ``{"kind": "table", "centre_ct_mm": [..]}``; ``{"kind": "rings" | "grid", "T_ct_from_phantom": 16 numbers}``.
    """
    if not isinstance(given, list):
        raise InputError('"solids": expected a list of objects with "kind"')
    pieces: list[Any] = []
    for n, item in enumerate(given):
        where = f'"solids"[{n}]'
        if not isinstance(item, dict) or item.get("kind") not in MAKERS:
            raise InputError(f'{where}: expected an object with "kind", one of {", ".join(MAKERS)}')
        known, make = MAKERS[item["kind"]]
        unknown = sorted(set(item) - known - {"kind"})
        if unknown:
            raise InputError(f"{where}: {unknown[0]!r} is unknown; a {item['kind']} has {', '.join(sorted(known))}")
        pieces += make(item, where)
    return tuple(pieces)


def parse_needle(given: object) -> Solid:
    """Return the needle of a command's ``needle``; InputError when it is not two triples."""
    right = '"needle": expected {"tip_ct_mm":[x,y,z],"axis_ct":[x,y,z]}'
    if not isinstance(given, dict):
        raise InputError(right)
    tip, axis = _tip_and_axis(given, '"needle"')
    return needle(tip, axis, **_sizes(given, '"needle"'))


def _numbers(item: dict[str, Any], key: str, count: int, where: str) -> Array:
    try:
        found = np.array(item[key], dtype=np.float64).ravel()
    except (KeyError, TypeError, ValueError):
        found = np.empty(0)
    if found.shape != (count,) or not np.isfinite(found).all() or float(np.abs(found).max()) > 1e5:
        raise InputError(f"{where}.{key}: expected {count} numbers")
    return found


def _number(item: dict[str, Any], key: str, default: float, low: float, high: float, where: str) -> float:
    value = item.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{where}.{key}: {value!r}; expected a number from {low:g} to {high:g}")
    return float(value)


def _tip_and_axis(item: dict[str, Any], where: str) -> tuple[Array, Array]:
    tip, axis = _numbers(item, "tip_ct_mm", 3, where), _numbers(item, "axis_ct", 3, where)
    norm = float(np.linalg.norm(axis))
    if norm == 0.0:
        raise InputError(f"{where}.axis_ct: expected a direction from hub to tip, not zeros")
    return tip, axis / norm


def _sizes(item: dict[str, Any], where: str) -> dict[str, float]:
    given = {}
    for key, low, high in (("radius_mm", 0.1, 20.0), ("length_mm", 10.0, LONGEST_MM)):
        if key in item:
            given[key] = _number(item, key, 0.0, low, high, where)
    return given


def _needle(item: dict[str, Any], where: str) -> Solid:
    return needle(*_tip_and_axis(item, where), **_sizes(item, where))


def _cannula(item: dict[str, Any], where: str) -> Solid:
    return cannula(*_tip_and_axis(item, where), **_sizes(item, where))


def _screw(item: dict[str, Any], where: str) -> Solid:
    length = _number(item, "length_mm", 45.0, 15.0, 150.0, where)
    core = _number(item, "radius_mm", 2.1, 0.8, 6.0, where)
    return screw(*_tip_and_axis(item, where), length_mm=length, core_mm=core, thread_mm=1.45 * core)


def _cement(item: dict[str, Any], where: str) -> Solid:
    seed = item.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InputError(f"{where}.seed: {seed!r}; expected a whole number from 0")
    volume = _number(item, "volume_ml", 3.0, 0.1, 50.0, where)
    return cement_blob(_numbers(item, "centre_ct_mm", 3, where), volume, np.random.default_rng(seed))


def _table(item: dict[str, Any], where: str) -> Solid:
    return table_top(_numbers(item, "centre_ct_mm", 3, where))


def _phantom(make: Callable[[], BeadPhantom]) -> Callable[[dict[str, Any], str], Solid]:
    def placed(item: dict[str, Any], where: str) -> Solid:
        matrix = _numbers(item, "T_ct_from_phantom", 16, where).reshape(4, 4)
        try:
            pose = Rigid.from_matrix(CT, PHANTOM, matrix)
        except ValueError as fault:
            raise InputError(f"{where}.T_ct_from_phantom: {fault}") from None
        return moved(make().solid(), pose)

    return placed


_INSTRUMENT: Final = {"tip_ct_mm", "axis_ct", "length_mm", "radius_mm"}

MAKERS: Final[dict[str, tuple[set[str], Callable[[dict[str, Any], str], Solid]]]] = {
    "needle": (_INSTRUMENT, _needle),
    "cannula": (_INSTRUMENT, _cannula),
    "screw": (_INSTRUMENT, _screw),
    "cement": ({"centre_ct_mm", "volume_ml", "seed"}, _cement),
    "table": ({"centre_ct_mm"}, _table),
    "rings": ({"T_ct_from_phantom"}, _phantom(ring_phantom)),
    "grid": ({"T_ct_from_phantom"}, _phantom(grid_phantom)),
}
