"""Owns the table of what registrations are really off by: ``volumes`` makes it, the study of coverage draws from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from navsrv.kernel.frames import Array

TABLE: Final = Path(__file__).with_name("registrations.json")


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """One registration against the truth, about the middle of the bone (CT axes).

    Attributes
    ----------
    error : (6,)
        ``T_found = exp(error) T_true`` about that point: rotation (rad), translation (mm).
    covariance : (6, 6)
        What the registration said of itself, about the same point.
    """

    patient: str
    verdict: str
    error: Array
    covariance: Array


def read_table(path: Path = TABLE) -> list[HeldOut]:
    """Return the registrations of a table, without those that found nothing."""
    rows = [row for row in json.loads(path.read_text("utf-8"))["registrations"] if row["error"]]
    return [
        HeldOut(r["patient"], r["verdict"], np.array(r["error"]), np.array(r["covariance"]).reshape(6, 6)) for r in rows
    ]
