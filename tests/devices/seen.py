"""What any driver said, as the contract suite sees it."""

from __future__ import annotations

from dataclasses import dataclass

PATIENCE_S = 30.0


@dataclass(frozen=True)
class Seen:
    """One thing that a driver said: of what, whether it may be used, why not, and the device's time (ns)."""

    name: str
    usable: bool
    reason: str
    time_ns: int | None
