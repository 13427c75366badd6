"""Owns the reading of one video: opening it again and again, frame after frame with the time of its receipt.

A thread of its own, since a codec and a driver may block; it only hands on.  What the frames mean is the driver's
business (``devices/frame_grabber.py``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
from numpy.typing import NDArray

RETRY_S: Final = (0.25, 2.0)
"""Between attempts to open: the first, and the longest."""
OPEN_MS: Final = 3000
READ_MS: Final = 2000
"""How long a stream may take before it counts as gone."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The video is open."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame, and when it was received: monotonic and wall time."""

    pixels: NDArray[Any]
    received_ns: int
    wall_ns: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The video is gone, or cannot be opened, and why."""

    why: str


Event = Opened | Frame | Closed


class VideoLine:
    """One video, for as long as it is wanted; ``put`` is called from its thread with all that happens.

    Parameters
    ----------
    source : str
        A device or its number, a URL, or a file, which is played at ``rate_hz`` from its beginning each time.
    frame : (width, height) or None
        What a device is asked for.
    """

    def __init__(
        self, source: str, rate_hz: float, frame: tuple[int, int] | None, put: Callable[[Event], None]
    ) -> None:
        self._source, self._rate_hz, self._frame, self._put = source, rate_hz, frame, put
        self._ended = threading.Event()
        # A daemon: a device that hangs in a read must not keep the process.
        self._thread = threading.Thread(target=self._run, name="video", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, patience_s: float = 1.0) -> None:
        """End after the frame that is being read, if that comes in time."""
        self._ended.set()
        self._thread.join(patience_s)

    def _run(self) -> None:
        wait_s = RETRY_S[0]
        while not self._ended.is_set():
            capture, why = self._open()
            if capture is not None:
                self._put(Opened())
                frames = self._read(capture)
                capture.release()
                why = f"{self._source}: the video ended after {frames} frames"
                wait_s = RETRY_S[0] if frames else wait_s
            self._put(Closed(why))
            self._ended.wait(wait_s)
            wait_s = min(2.0 * wait_s, RETRY_S[1])

    def _open(self) -> tuple[cv2.VideoCapture | None, str]:
        source, index = self._source, _device(self._source)
        try:
            if index is not None:
                capture = cv2.VideoCapture(index, cv2.CAP_V4L2)
                if self._frame is not None:
                    capture.set(cv2.CAP_PROP_FRAME_WIDTH, self._frame[0])
                    capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self._frame[1])
                capture.set(cv2.CAP_PROP_FPS, self._rate_hz)
                capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
            else:
                if "://" not in source and not Path(source).is_file():
                    return None, f"{source}: no such file"
                limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_MS]
                capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)
        except cv2.error as error:
            return None, f"{source}: {error.err}"
        if capture.isOpened():
            return capture, ""
        capture.release()
        return None, f"{source}: no video can be opened there"

    def _read(self, capture: cv2.VideoCapture) -> int:
        """Hand on frames until there are no more; return how many there were."""
        is_file = _device(self._source) is None and "://" not in self._source
        began_ns, count = time.monotonic_ns(), 0
        try:
            while not self._ended.is_set() and capture.grab():
                if is_file:
                    due_ns = began_ns + int(count * 1e9 / self._rate_hz)
                    self._ended.wait(max(0, due_ns - time.monotonic_ns()) / 1e9)
                received_ns, wall_ns = time.monotonic_ns(), time.time_ns()
                ok, pixels = capture.retrieve()
                if ok:
                    count += 1
                    self._put(Frame(pixels, received_ns, wall_ns))
        except cv2.error:
            pass  # a codec that gave up: the video has ended
        return count


def _device(source: str) -> str | int | None:
    """Return what a capture device is opened by; None for a stream or a file."""
    if source.isdecimal():
        return int(source)
    return source if source.startswith("/dev/") else None
