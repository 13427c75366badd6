"""Owns the session's side of a C-arm's video: the life of its process, how the screen stands, and its shots.

A shot goes the way of every other X-ray, with the time of its last live picture.  Each transition is noted, and how
the screen stands is kept as a file for displays.  When the process ends by itself (a codec that a broken stream brought
down) it is started anew; until it speaks again nothing is known of the screen.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from devices.frame_grabber import Showing
from navsrv.kernel.samples import ProjectionSample
from navsrv.pipeline.inputs import SourceReport
from navsrv.server.boots import GrabberBoot
from navsrv.server.channel import ChannelClosed
from navsrv.server.config_tables import ImagingConfig
from navsrv.server.placing import Arrival
from navsrv.server.processes import Child

SILENT_S: Final = 1.5
"""A process that says nothing for so long is stuck; it speaks every quarter of a second."""
RESTART_S: Final = (1.0, 30.0)
"""Before it is started anew: the first time, and at most."""
STEADY_S: Final = 60.0
"""A process that ran for so long is started anew as soon as the first."""


class CarmVideo:
    """One C-arm's video, for as long as the session lives."""

    def __init__(
        self,
        name: str,
        imaging: ImagingConfig,
        folder: Path,
        arrived: Callable[[Arrival], None],
        refuse: Callable[[str, str, str], None],
        note: Callable[[str, str], None],
    ) -> None:
        assert imaging.grabber is not None
        self.name, self._imaging, self._grabber, self._folder = name, imaging, imaging.grabber, folder
        self._arrived, self._refuse, self._note = arrived, refuse, note
        self._unknown_s = 1e-3 * self._grabber.unknown_latency_ms if self._grabber.latency_ms is None else 0.0
        self._child: Child | None = None
        self._began_s = self._heard_s = 0.0
        self._wait_s = RESTART_S[0]
        self._standing: dict[str, Any] = {}
        self._said = ""
        self._stopped = False

    def start(self) -> None:
        """Start the process that reads the video."""
        if self._stopped:
            return
        boot = GrabberBoot(self.name, self._grabber, str(self._folder))
        self._began_s = self._heard_s = time.monotonic()
        self._child = Child(f"video {self.name}", "navsrv.server.grabber_reader", pickle.dumps(boot))
        asyncio.get_running_loop().add_reader(self._child.channel.fileno(), self._from_child)

    def stop(self) -> None:
        """End it."""
        self._stopped = True
        child, self._child = self._child, None
        if child is not None:
            asyncio.get_running_loop().remove_reader(child.channel.fileno())
            child.stop()

    def report(self) -> SourceReport:
        """Return how it stands, for metrics; what has not been heard of lately is unknown."""
        silent = time.monotonic() - self._heard_s > SILENT_S
        known = bool(self._standing) and not silent
        showing = self._standing["showing"] if known else Showing.UNKNOWN.value
        connected = known and bool(self._standing["connected"])
        counts = self._standing.get("counts", {})
        return SourceReport(f"video {self.name}", connected, counts, self._unknown_s, showing=showing)

    def _from_child(self) -> None:
        child = self._child
        assert child is not None
        try:
            messages = child.channel.receive()
        except ChannelClosed:
            asyncio.get_running_loop().remove_reader(child.channel.fileno())
            self._lost(child)
            return
        self._heard_s = time.monotonic()
        for message in messages:
            value = message["value"]
            match message["kind"]:
                case "note":
                    self._note(value["event"], value["text"])
                case "standing":
                    self._stands(value)
                case "still":
                    self._still(value)

    def _lost(self, child: Child) -> None:
        """Start the process anew after a while: longer each time, unless it ran for long."""
        status = child.process.wait()
        child.channel.socket.close()
        self._child = None
        if time.monotonic() - self._began_s > STEADY_S:
            self._wait_s = RESTART_S[0]
        self._note("video_lost", f"{self.name}: its process ended by itself (status {status}); it is started anew")
        counts = self._standing.get("counts", {})
        unknown = {"showing": Showing.UNKNOWN.value, "picture_ns": None, "reason": "the video's process ended"}
        self._stands({**unknown, "connected": False, "counts": counts})
        asyncio.get_running_loop().call_later(self._wait_s, self.start)
        self._wait_s = min(2.0 * self._wait_s, RESTART_S[1])

    def _stands(self, value: dict[str, Any]) -> None:
        self._standing = value
        showing, reason = value["showing"], value["reason"]
        said = reason if reason.startswith(showing) else f"{showing}: {reason}" if reason else showing
        if said == self._said:
            return
        self._said = said
        self._note("video", f"{self.name}: {said}")
        # In the session's folder, as the newest X-ray is: the hub serves it to displays.
        picture = value["picture_ns"]
        facts = {
            "source": self.name,
            "showing": value["showing"],
            "reason": value["reason"],
            "picture_ns": None if picture is None else str(picture),
        }
        temporary = self._folder / f"video-{self.name}.part"
        temporary.write_text(json.dumps(facts))
        os.replace(temporary, self._folder / f"video-{self.name}.json")

    def _still(self, value: dict[str, Any]) -> None:
        """Hand on a shot, or say why it is none."""
        if value["file"] is None:
            self._refuse(self.name, "image_refused", value["reason"])
            return
        path = self._folder / value["file"]
        pixels = np.load(path, allow_pickle=False)
        path.unlink()
        spacing = self._grabber.pixel_mm
        matrix = np.diag([spacing, spacing, 1.0, 1.0])
        image = ProjectionSample(self._imaging.image, pixels, matrix, value["time_ns"], value["received_ns"])
        self._arrived(Arrival(self.name, self._imaging, image, unknown_ns=value["unknown_ns"]))
