"""Owns the simulated C-arm's video output: each X-ray as some pictures of live fluoroscopy, then held on the screen."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.errors import InputError
from simulators.link import emit
from simulators.video import shown
from simulators.video_out import VideoServer
from simulators.world.video import Console, Screen, marker_picture, window

RATE_HZ: Final = 15.0
EXPOSED: Final = 12
"""Frames for which the beam is on."""
HELD: Final = 15
"""Frames for which the C-arm stays where it is afterwards: nobody drives away from a picture before it is seen."""


class ScreenPort:
    """The console of one C-arm, with a thread that sends its frames."""

    def __init__(self, port: int, size: int, seed: int, marker: Path | None) -> None:
        screen = Screen(size + 288, size + 88, (144, 44), size)
        # An intensifier's pictures come with their round field; a panel's are square.
        self.console = Console(screen, seed, field_share=None)
        template, at = marker_picture(np.full((size, size), 0.6))
        if marker is not None and not cv2.imwrite(str(marker), template):
            raise InputError(f"{marker}: cannot be written; expected a place for a file such as marker.png")
        self._server = VideoServer(port)
        self.facts = {"video": self._server.port, "crop": [*screen.corner, size, size], "marker_at": list(at)}
        self._end, self._left = threading.Event(), 0
        self._coming = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a picture is awaited or being shown, so that the C-arm must stay."""
        return self._coming or self._left > 0

    def await_picture(self) -> None:
        """Stay busy until a picture has come and was seen."""
        self._coming = True

    def expose(self, pixels: NDArray[np.uint16]) -> None:
        """Show an X-ray (N, N), bright for air: live for a moment, then held."""
        self.console.scene = window(pixels)
        self._left, self._coming = EXPOSED + HELD, False

    def command(self, order: dict[str, Any]) -> None:
        """Show it otherwise, as an order says."""
        self.console.change(**shown(order))

    def close(self) -> None:
        """End the frames, and every client's connection."""
        self._end.set()
        self._thread.join()
        self._server.close()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._end.wait(max(0.0, due - time.monotonic())):
            due = max(due + 1.0 / RATE_HZ, time.monotonic())
            self.console.exposing = self._left > HELD
            frame, _ = self.console.next()
            self._server.show(frame)
            if self._left > 0:
                self._left -= 1
                if self._left == HELD:
                    emit({"event": "held", "time_ns": str(time.time_ns())})
