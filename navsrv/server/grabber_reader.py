"""Owns the process of one C-arm's video: frames in, what they are to the session.

A process of its own: codecs decode here, which a broken stream may bring down or hold up, and nothing live waits for
it.  The session is told how the screen stands, what was counted, and of each shot, whose pixels are a file in the
session's folder.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import select
import signal
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from devices.frame_grabber import FrameGrabber, GrabberCounts, Showing, Standing, Still
from navsrv.server.boots import GrabberBoot
from navsrv.server.channel import Channel, ChannelClosed
from navsrv.server.config_grabber import grabber_spec
from navsrv.server.grabber_video import Closed, Event, Frame, Opened, VideoLine

TELL_S: Final = 0.25
"""How often the session is told how it stands, whether it changed or not: silence is no state."""
WAITING: Final = 8
"""Frames that may wait; more are lost, and counted by the time between those that are not."""
STREAM_OPTIONS: Final = "fflags;nobuffer|flags;low_delay|probesize;200000|analyzeduration;200000"
"""For FFmpeg, unless OPENCV_FFMPEG_CAPTURE_OPTIONS says otherwise: a stream must not be buffered."""


class Reader:
    """The frames of one video on their way through the driver."""

    def __init__(self, boot: GrabberBoot, channel: Channel) -> None:
        self._boot, self._channel = boot, channel
        self._spec = grabber_spec(boot.name, boot.config)
        self.counts = GrabberCounts()
        self._driver: FrameGrabber | None = None
        self._events: queue.Queue[Event] = queue.Queue()
        frame = self._spec.framing.frame
        self._line = VideoLine(boot.config.source, boot.config.rate_hz, frame, self._put)
        self._down = "not opened yet"
        self._told: tuple[Any, ...] = ()
        self._told_ns = 0
        self._said_down = ""
        self._written = 0

    def run(self) -> None:
        """Serve until told to stop, or the session is gone (ChannelClosed)."""
        self._line.start()
        while not self._stopped():
            try:
                self._take(self._events.get(timeout=self._patience_s()))
            except queue.Empty:
                if self._driver is not None:
                    self._driver.tick(time.monotonic_ns())
            self._tell()

    def _put(self, event: Event) -> None:
        """Take what happened, from the video's thread."""
        if not isinstance(event, Frame) or self._events.qsize() < WAITING:
            self._events.put(event)

    def _stopped(self) -> bool:
        if not select.select([self._channel.fileno()], [], [], 0)[0]:
            return False
        return any(message["kind"] == "stop" for message in self._channel.receive())

    def _patience_s(self) -> float:
        due = None if self._driver is None else self._driver.next_due_ns()
        return TELL_S if due is None else min(max((due - time.monotonic_ns()) / 1e9, 0.001), TELL_S)

    def _take(self, event: Event) -> None:
        match event:
            case Opened():
                self.counts.connections += 1
                self._driver, self._down, self._said_down = FrameGrabber(self._spec, self.counts), "", ""
                self._note("video_up", f"{self._boot.config.source} is open")
            case Closed(why):
                self._driver, self._down = None, why
                if why != self._said_down:
                    self._said_down = why
                    self._note("video_down", why)
            case Frame(pixels, received_ns, wall_ns):
                if self._driver is None:
                    return
                self._driver.feed(pixels, received_ns, wall_ns)
                for text in self._driver.take_notes():
                    self._note("video_setting", text)
                still = self._driver.take_still()
                if still is not None:
                    self._send_still(still)

    def _standing(self) -> Standing:
        if self._driver is None:
            return Standing(Showing.NO_SIGNAL, None, f"no signal: {self._down}")
        return self._driver.standing

    def _tell(self) -> None:
        standing, now_ns = self._standing(), time.monotonic_ns()
        told = (standing.showing, standing.reason)
        if told == self._told and now_ns - self._told_ns < TELL_S * 1e9:
            return
        self._told, self._told_ns = told, now_ns
        value = {
            "showing": standing.showing.value,
            "picture_ns": standing.picture_ns,
            "reason": standing.reason,
            "connected": self._driver is not None,
            "counts": asdict(self.counts),
        }
        self._channel.send({"kind": "standing", "value": value})

    def _send_still(self, still: Still) -> None:
        value: dict[str, Any] = {
            "reason": still.reason,
            "time_ns": still.time_ns,
            "unknown_ns": still.unknown_ns,
            "received_ns": still.received_ns,
            "file": None,
        }
        if still.pixels is not None:
            self._written += 1
            path = Path(self._boot.folder) / f"video-{self._boot.name}-{self._written}.npy"
            np.save(path, still.pixels, allow_pickle=False)
            value["file"] = path.name
        self._channel.send({"kind": "still", "value": value})

    def _note(self, event: str, text: str) -> None:
        self._channel.send({"kind": "note", "value": {"event": event, "text": f"{self._boot.name}: {text}"}})


def main() -> int:
    """Run as ``python -m navsrv.server.grabber_reader FD``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    boot: GrabberBoot = pickle.loads(channel.receive_one(30.0))
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", STREAM_OPTIONS)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    cv2.setNumThreads(1)  # a picture is small, and the cores are others'
    with contextlib.suppress(ChannelClosed):
        Reader(boot, channel).run()
    os._exit(0)  # the video's thread may hang in a device


if __name__ == "__main__":
    sys.exit(main())
