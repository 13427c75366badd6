"""Owns what the log says of tracked bodies that no tool uses: the witness, and bodies on imaging devices.

A tool or the reference that is lost raises an alarm; a body that only images or checks are held against does not, and
yet an image may be dropped for it minutes later.  So each change of its standing is a note, found or lost, at the time
it is noticed.  Refuses alarms and frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from navsrv.pipeline.inputs import Note
from navsrv.pipeline.links import PoseLink

_AS_SEEN: Final = frozenset(("OK", "DEGRADED"))
"""A late pose is a pose: between these two nothing is lost or found."""


class Bystanders:
    """The standing of each such body when it was last asked for."""

    def __init__(self, links: Iterable[PoseLink]) -> None:
        self._links = list(links)
        self._before = ["LOST"] * len(self._links)

    def changes(self, now_ns: int) -> list[Note]:
        """Return what the log must say of bodies that were lost or found since it was last asked."""
        notes = []
        for n, link in enumerate(self._links):
            standing = link.judge(now_ns)
            state = "OK" if standing.state in _AS_SEEN else standing.state
            before = self._before[n]
            if state == before:
                continue
            self._before[n] = state
            text = f"{link.label} is seen" if state == "OK" else standing.reason
            fields = {"body": link.label, "source": link.source.spec.name, "state": state, "before": before}
            notes.append(Note(now_ns, "body_found" if state == "OK" else "body_lost", text, fields))
        return notes
