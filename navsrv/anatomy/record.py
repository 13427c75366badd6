"""Owns the reading of a JSON object field by field.  Refuses to guess: each fault names file, key and what is right."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array, frozen_array


class Record:
    """A JSON object whose every field is asked for by name and type.

    Parameters
    ----------
    path : Path
        The file, for messages.
    value : object
        Parsed JSON; InputError unless it is an object.
    where : str
        Prefix of the keys in messages: ``structures[2].``, empty at the top.
    """

    def __init__(self, path: Path, value: Any, where: str) -> None:
        self.path = path
        self.where = where
        if not isinstance(value, dict):
            raise InputError(f"{path}: {where or 'top level'}: expected an object, found {type(value).__name__}")
        self.value: dict[str, Any] = value

    def fault(self, key: str, right: str) -> InputError:
        found = repr(self.value[key])[:60] if key in self.value else "nothing"
        return InputError(f"{self.path}: {self.where}{key}: expected {right}, found {found}")

    def text(self, key: str) -> str:
        value = self.value.get(key)
        if not isinstance(value, str) or not value:
            raise self.fault(key, "a text")
        return value

    def text_or_none(self, key: str) -> str | None:
        return None if self.value.get(key) is None else self.text(key)

    def not_negative(self, key: str) -> float:
        value = self.value.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
            raise self.fault(key, "a finite number, 0 or more")
        return float(value)

    def positive(self, key: str) -> float:
        if self.not_negative(key) == 0.0:
            raise self.fault(key, "a number above 0")
        return float(self.value[key])

    def positive_or_none(self, key: str) -> float | None:
        return None if self.value.get(key) is None else self.positive(key)

    def whole(self, key: str) -> int:
        value = self.value.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.fault(key, "a whole number")
        return value

    def point(self, key: str) -> Array:
        try:
            point = frozen_array(self.value.get(key, ()), (3,))
        except (ValueError, TypeError):
            raise self.fault(key, "three numbers, LPS mm") from None
        if not np.isfinite(point).all():
            raise self.fault(key, "three finite numbers, LPS mm")
        return point

    def inside(self, key: str) -> str:
        """A path that stays inside the case folder."""
        name = self.text(key)
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise self.fault(key, "a path inside the case folder")
        return name

    def hash(self, key: str) -> str:
        value = self.text(key)
        if len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise self.fault(key, "64 hexadecimal digits")
        return value

    def child(self, key: str) -> Record | None:
        value = self.value.get(key)
        return None if value is None else Record(self.path, value, f"{self.where}{key}.")
