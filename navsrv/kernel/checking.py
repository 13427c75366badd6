"""Owns checking of a parsed TOML table against frozen dataclasses, key by key, so that *every* fault is listed.

A field's type says what is right: ``bool``, ``int``, ``float``, ``str``, ``Literal[...]``, ``tuple[float, ...]``
with a length in ``rule(length=...)``, a nested dataclass, ``dict[str, dataclass]``, or any of them ``| None``.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}


def rule(
    default: Any = dataclasses.MISSING,
    *,
    factory: Any = dataclasses.MISSING,
    low: float = -math.inf,
    high: float = math.inf,
    length: int | None = None,
) -> Any:
    """Return a dataclass field with its limits: numbers within [low, high], lists of exactly ``length``."""
    metadata = {"low": low, "high": high, "length": length}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Checker:
    """Collects faults, each with file, key, what is wrong and what would be right."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.faults: list[str] = []

    def fault(self, key: str, wrong: str, right: str) -> None:
        """Note one fault."""
        self.faults.append(f"{self.file}: {key}: {wrong}; expected {right}")

    def table(self, cls: type[T], data: Any, path: str) -> T | None:
        """Return an instance of a dataclass from a table, or None after noting at least one fault."""
        if not isinstance(data, Mapping):
            self.fault(path or "(top level)", f"{data!r} is not a table", "a table")
            return None
        before = len(self.faults)
        hints = get_type_hints(cls)
        fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for key in data:
            if key not in fields:
                near = get_close_matches(str(key), fields, n=1)
                right = f"{near[0]!r}?" if near else "one of " + ", ".join(sorted(fields))
                self.fault(_join(path, str(key)), "unknown key", right)
        values: dict[str, Any] = {}
        for name, field in fields.items():
            key = _join(path, name)
            if name in data:
                values[name] = self.value(hints[name], data[name], key, field.metadata)
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                self.fault(key, "missing", _describe(hints[name], field.metadata))
        return cls(**values) if len(self.faults) == before else None

    def value(self, kind: Any, data: Any, key: str, limits: Mapping[str, Any]) -> Any:
        """Return a checked value of a type, or None after noting a fault."""
        origin = get_origin(kind)
        if origin in (Union, types.UnionType):
            inner = [a for a in get_args(kind) if a is not type(None)]
            return self.value(inner[0], data, key, limits)
        if dataclasses.is_dataclass(kind):
            return self.table(kind, data, key)  # type: ignore[arg-type]
        if origin is dict:
            return self._dict(get_args(kind)[1], data, key, limits)
        if origin is tuple:
            return self._tuple(get_args(kind)[0], data, key, limits)
        if origin is Literal:
            if data not in get_args(kind):
                self.fault(key, f"{data!r}", _describe(kind, limits))
            return data
        return self._scalar(kind, data, key, limits)

    def _scalar(self, kind: Any, data: Any, key: str, limits: Mapping[str, Any]) -> Any:
        number = isinstance(data, (int, float)) and not isinstance(data, bool)
        fits = number and (kind is float or isinstance(data, int)) if kind in (int, float) else type(data) is kind
        if not fits:
            self.fault(key, f"{data!r}", _describe(kind, limits))
            return data
        if kind in (int, float) and not math.isfinite(data):
            self.fault(key, f"{data!r} is not finite", _describe(kind, limits))
            return data
        if kind in (int, float) and not limits.get("low", -math.inf) <= data <= limits.get("high", math.inf):
            self.fault(key, f"{data!r} is out of range", _describe(kind, limits))
        return float(data) if kind is float else data

    def _tuple(self, kind: Any, data: Any, key: str, limits: Mapping[str, Any]) -> Any:
        length = limits.get("length")
        if not isinstance(data, list) or (length is not None and len(data) != length):
            self.fault(key, f"{data!r}", _describe(tuple[kind, ...], limits))
            return ()
        span = {name: limits[name] for name in ("low", "high") if name in limits}
        return tuple(self.value(kind, item, f"{key}[{i}]", span) for i, item in enumerate(data))

    def _dict(self, kind: Any, data: Any, key: str, limits: Mapping[str, Any]) -> Any:
        if not isinstance(data, Mapping):
            self.fault(key, f"{data!r} is not a table", "a table")
            return {}
        return {str(name): self.value(kind, item, _join(key, str(name)), limits) for name, item in data.items()}


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _describe(kind: Any, limits: Mapping[str, Any]) -> str:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _describe(get_args(kind)[0], limits)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in get_args(kind))
    if origin is tuple:
        length = limits.get("length")
        return f"a list of {length if length is not None else 'some'} items, each {_describe(get_args(kind)[0], {})}"
    if dataclasses.is_dataclass(kind) or origin is dict:
        return "a table"
    low, high = limits.get("low", -math.inf), limits.get("high", math.inf)
    span = ""
    if math.isfinite(low) and math.isfinite(high):
        span = f" from {low:g} to {high:g}"
    elif math.isfinite(low):
        span = f" of at least {low:g}"
    return _WORDS[kind] + span
