"""Rooms of what is no tracker: the encoders of a C-arm on a serial line, and temperature probes that push."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
import tty
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from devices.carm_encoders import CarmEncoders, EncoderCounts, EncoderSpec, nominal_pose
from devices.source import PoseSource
from devices.thermometer import Probe, ProbeSpec
from navsrv.kernel.errors import RemoteProtocolError
from navsrv.kernel.frames import CARM, Frame, Rigid
from navsrv.kernel.samples import PoseSample, Tracking
from navsrv.wire.openigtlink import Framer, Message, Sensor
from tests.devices.contract_rooms import PATIENCE_S, PoseRoom, Room, Seen
from tests.simulators.processes import Simulator, running


def pose_of(orbit_deg: float, tilt_deg: float) -> Rigid:
    rotation, translation = nominal_pose(orbit_deg, tilt_deg, 530.0)
    return Rigid(Frame("stand"), CARM, np.array(rotation), np.array(translation))


class EncodersRoom(PoseRoom):
    """A C-arm's encoders on a pseudo-terminal behind a name that stays."""

    names = ("CarmToStand",)
    loses = "CarmToStand: the C-arm's encoders say FAULT"

    def __init__(self, folder: Path) -> None:
        self.encoder_counts = EncoderCounts()
        super().__init__(folder, ("encoders", "--rate-hz", 30), self.encoder_counts)

    def make(self) -> PoseSource:
        return CarmEncoders(EncoderSpec("carm", "CarmToStand", 30.0, pose_of), self.encoder_counts)

    def start(self) -> Any:
        self._running = running(*self._arguments)
        self.simulator = self._running.__enter__()
        line = self.folder / "line"
        line.unlink(missing_ok=True)
        line.symlink_to(self.simulator.event()["pty"])
        return line

    def open(self) -> int:
        fd = os.open(self._where, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(fd)
        return fd

    def unplug(self) -> None:
        self._running.__exit__(None, None, None)
        self._running = None

    def replug(self) -> None:
        self._where = self.start()
        self._connect()

    def lose(self) -> None:
        self.simulator.tell(do="say", status="FAULT", seconds=0.4)

    def doubt(self) -> None:
        self.simulator.tell(do="say", status="HOME")

    def vouch(self) -> None:
        self.simulator.tell(do="say", status="OK")

    def noise_counted(self) -> int:
        return self.encoder_counts.garbled

    def _take(self, samples: list[PoseSample]) -> None:
        for sample in samples:
            assert (sample.pose is not None) == (sample.tracking is Tracking.OK)
            assert sample.device_time_ns is None  # the line has no stamps: a pose is as old as its receipt
            self.all.append(Seen(sample.name, sample.pose is not None, sample.reason, sample.pose_time_ns))


class ProbesRoom:
    """A thermometer that pushes SENSOR, as to the devices port."""

    names = ("Nerve",)
    loses = "Nerve: the device says status 13"

    def __init__(self, folder: Path) -> None:
        self._probe = Probe(ProbeSpec("Nerve", "Thermo", 1, 20.0))
        self._all: list[Seen] = []
        self._faults = 0
        self._garble = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._link: socket.socket | None = None
        self._framer = Framer()
        self._start()

    def _start(self) -> None:
        address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        options = ("--device", "Thermo", "--channels", 2, "--rate-hz", 20)
        self._running = running("thermometer", "--server", address, *options)
        self._simulator: Simulator = self._running.__enter__()

    def next(self, fits: Callable[[Seen], bool]) -> Seen:
        start = len(self._all)
        self._serve(lambda: any(fits(one) for one in self._all[start:]))
        return next(one for one in self._all[start:] if fits(one))

    def said_within(self, seconds: float) -> list[Seen]:
        start, end = len(self._all), time.monotonic() + seconds
        self._serve(lambda: time.monotonic() >= end)
        return self._all[start:]

    def lose(self) -> None:
        self._simulator.tell(do="fail", status=13, seconds=0.4)

    def doubt(self) -> None:
        self._simulator.tell(do="wire", broken=True)

    def vouch(self) -> None:
        self._simulator.tell(do="wire", broken=False)

    def freeze(self, frozen: bool) -> None:
        self._simulator.process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def garble(self) -> None:
        self._garble = True

    def unplug(self) -> None:
        self._running.__exit__(None, None, None)

    def replug(self) -> None:
        self._start()

    def down(self) -> bool:
        self._serve(lambda: self._link is None, accept=False)
        return True

    def counted(self) -> Counter[bool]:
        return Counter({True: self._probe.counts.accepted, False: self._probe.counts.refused})

    def heard(self) -> Counter[bool]:
        return Counter(one.usable for one in self._all)

    def noise_counted(self) -> int:
        return self._faults

    def close(self) -> None:
        self._running.__exit__(None, None, None)
        self._hang_up()
        self._listener.close()

    def _serve(self, until: Callable[[], bool], accept: bool = True) -> None:
        end = time.monotonic() + PATIENCE_S
        while not until():
            assert time.monotonic() < end, self._all[-5:]
            waited_for = self._link if self._link is not None else self._listener
            if not select.select([waited_for], [], [], 0.01)[0]:
                continue
            if self._link is None:
                assert accept
                self._link, _ = self._listener.accept()
                self._framer = Framer()
                continue
            self._read(self._link)

    def _read(self, link: socket.socket) -> None:
        try:
            data = link.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._hang_up()
            return
        if self._garble:
            self._garble = False
            data = data[:10] + np.random.default_rng(1).integers(0, 256, 200, np.uint8).tobytes()
        try:
            messages = self._framer.feed(data)
        except RemoteProtocolError:
            self._faults += 1
            self._hang_up()
            return
        for message in messages:
            self._take(message)

    def _take(self, message: Message) -> None:
        assert isinstance(message.body, Sensor)
        before, now_ns = self._probe.counts.accepted, time.monotonic_ns()
        self._probe.take(message.body, message.time_ns, now_ns)
        believed = self._probe.counts.accepted > before
        assert (self._probe.celsius(now_ns) is not None) == believed
        self._all.append(Seen("Nerve", believed, self._probe.reason, message.time_ns))

    def _hang_up(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None


LINES: dict[str, Callable[[Path], Room]] = {
    "C-arm encoders on a serial line": EncodersRoom,
    "temperature probes by SENSOR": ProbesRoom,
}
