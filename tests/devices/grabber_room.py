"""A frame grabber on a stream, against the simulated console: its row of the contract suite."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from devices.frame_grabber import FrameGrabber, GrabberCounts, GrabberSpec
from devices.frame_grabber_orientation import Marker
from devices.frame_grabber_picture import Framing
from navsrv.server.grabber_video import Closed, Event, Frame, Opened, VideoLine
from tests.devices.seen import PATIENCE_S, Seen
from tests.simulators.processes import Simulator, running


class GrabberRoom:
    """A C-arm's video by HTTP; what a frame repeats is not said, and a picture is as old as its last change."""

    names = ("carm",)
    loses = "no signal: the screen is"

    def __init__(self, folder: Path) -> None:
        self._marker = folder / "marker.png"
        self._all: list[Seen] = []
        self.counts = GrabberCounts()
        self._ends = 0
        self._driver: FrameGrabber | None = None
        self._events: queue.Queue[Event] = queue.Queue()
        self._start(0)
        template = np.asarray(cv2.imread(str(self._marker), cv2.IMREAD_GRAYSCALE), np.uint8)
        x, y, across, down = self._facts["crop"]
        at_x, at_y = self._facts["marker_at"]
        framing = Framing((x, y, across, down))
        # A codec lies between console and grabber: it makes more of little noise.
        self._spec = GrabberSpec("carm", 25.0, framing, 2.0, marker=Marker(template, (at_x, at_y)))
        self._line = VideoLine(f"http://127.0.0.1:{self._port}/video", 25.0, None, self._events.put)
        self._line.start()

    def next(self, fits: Callable[[Seen], bool]) -> Seen:
        start, end = len(self._all), time.monotonic() + PATIENCE_S
        while not (found := [one for one in self._all[start:] if fits(one)]):
            assert time.monotonic() < end, (self._all[-5:], self.counts)
            self._hear(0.2)
        return found[0]

    def said_within(self, seconds: float) -> list[Seen]:
        start, end = len(self._all), time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._hear(left)
        return self._all[start:]

    def lose(self) -> None:
        self.simulator.tell(do="show", signal="blue")
        threading.Timer(0.4, lambda: self.simulator.tell(do="show", signal="picture")).start()

    def doubt(self) -> None:
        self.simulator.tell(do="show", mirrored=True)

    def vouch(self) -> None:
        self.simulator.tell(do="show", mirrored=False)

    def freeze(self, frozen: bool) -> None:
        self.simulator.process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def garble(self) -> None:
        self.simulator.tell(do="garble")

    def unplug(self) -> None:
        self._running.__exit__(None, None, None)

    def replug(self) -> None:
        self._start(self._port)

    def down(self) -> bool:
        end = time.monotonic() + PATIENCE_S
        while self._driver is not None:
            assert time.monotonic() < end
            self._hear(0.2)
        return True

    def counted(self) -> Counter[bool]:
        c = self.counts
        return Counter({True: c.accepted, False: c.frames - c.accepted - c.repeated})

    def heard(self) -> Counter[bool]:
        return Counter(one.usable for one in self._all)

    def noise_counted(self) -> int:
        return self._ends + self.counts.lost

    def close(self) -> None:
        self._line.stop()
        self._running.__exit__(None, None, None)

    def _start(self, port: int) -> None:
        self._running = running("video", "--port", port, "--size", 128, "--marker", self._marker)
        self.simulator: Simulator = self._running.__enter__()
        self._facts = self.simulator.event()
        self._port = self._facts["port"]
        self.simulator.tell(do="expose")

    def _hear(self, seconds: float) -> None:
        try:
            event = self._events.get(timeout=seconds)
        except queue.Empty:
            if self._driver is not None:
                self._driver.tick(time.monotonic_ns())
            return
        match event:
            case Opened():
                self._driver = FrameGrabber(self._spec, self.counts)
            case Closed():
                self._ends += self._driver is not None
                self._driver = None
            case Frame(pixels, received_ns, wall_ns):
                assert self._driver is not None
                for said in self._driver.feed(pixels, received_ns, wall_ns):
                    self._all.append(Seen(said.name, said.usable, said.reason, said.time_ns))
