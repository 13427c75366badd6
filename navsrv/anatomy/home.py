"""Owns where this software keeps what it makes for itself: built-in cases, downloads, recordings."""

from __future__ import annotations

import os
from pathlib import Path

from navsrv.kernel.errors import InputError


def navsrv_home() -> Path:
    """Return ``$NAVSRV_HOME``, by default ``navsrv`` in the user's cache folder (XDG base directories)."""
    own = os.environ.get("NAVSRV_HOME")
    if own:
        return Path(own).expanduser().absolute()
    # An XDG variable that is not absolute is to be ignored (XDG Base Directory Specification, "Environment variables").
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "navsrv"


def made_folder(folder: Path) -> Path:
    """Return ``folder``, made with its parents if need be; InputError when that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot make this folder: {error.strerror}; is NAVSRV_HOME writable?") from None
    return folder
