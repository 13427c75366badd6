"""Owns tool stacks: a tracked body, the cannula on it, and an insert that a depth stop holds in the cannula.

What is guided is the tip of the insert, for it is that which cuts, fills or ablates; the cannula's outer surface stands
for the shaft of both, on the safe side where the insert is thinner.  Refuses inserts that a cannula does not have.
"""

from __future__ import annotations

from dataclasses import replace
from math import hypot

from navsrv.pipeline.setup import InsertSetup, ToolSetup


def with_insert(cannula: ToolSetup, insert: InsertSetup) -> ToolSetup:
    """Return the instrument that a cannula is with an insert against its stop.

    The tip lies ``reach_mm`` ahead along the axis; its sigma combines that of the cannula's tip, of the axis over the
    reach, and of the insert in the cannula (play, length, stop).
    """
    swing_mm = cannula.axis_sigma_rad * insert.reach_mm
    return replace(
        cannula,
        tip_mm=cannula.tip_mm + insert.reach_mm * cannula.axis,
        length_mm=cannula.length_mm + insert.reach_mm,
        tip_sigma_mm=hypot(cannula.tip_sigma_mm, swing_mm, insert.sigma_mm),
        zone=insert.zone,
    )


def insert_named(cannula: ToolSetup, name: str) -> InsertSetup:
    """Return an insert of a cannula; ValueError when it has none of this name."""
    for insert in cannula.inserts:
        if insert.name == name:
            return insert
    names = ", ".join(i.name for i in cannula.inserts) or "none"
    raise ValueError(f"{cannula.name} has no insert {name!r}; one of {names}")
