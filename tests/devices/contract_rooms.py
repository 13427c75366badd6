"""Drivers on their real lines, each against its simulator, behind one face: what the contract suite asks of all.

A room for another driver is one more row of ``ROOMS``.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import termios
import time
import tty
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from devices.carm_encoders import EncoderCounts
from devices.ndi import NdiTracker
from devices.ndi_readings import NdiCounts, NdiSpec, NdiTool
from devices.ndi_rom import read_rom
from devices.openigtlink import OpenIgtLinkSource, SourceCounts, SourceSpec, encode_hello
from devices.source import Break, PoseSource, Send, SetLine
from navsrv.kernel.errors import DeviceError, RemoteProtocolError
from navsrv.kernel.samples import PoseSample, Tracking
from simulators.dicom_out import Study, volume_objects
from tests.devices.grabber_room import GrabberRoom
from tests.devices.seen import PATIENCE_S, Seen
from tests.server.dicom_room import Listener, associate_request, ended, raw, store
from tests.simulators.processes import Simulator, running

TOOLS = ("NeedleToTracker", "ReferenceToTracker")
SPEEDS = {9600: termios.B9600, 115200: termios.B115200}


class Room(Protocol):
    """A driver and its device."""

    names: tuple[str, ...]
    """What a healthy device shows."""
    loses: str
    """What the driver's words say of a device that cannot tell."""

    def next(self, fits: Callable[[Seen], bool]) -> Seen:
        """Return the next thing said that fits."""

    def said_within(self, seconds: float) -> list[Seen]:
        """Return what is said within a time."""

    def lose(self) -> None:
        """Let the device see nothing for a moment."""

    def doubt(self) -> None:
        """Let the device say something without vouching for it."""

    def vouch(self) -> None:
        """Let it vouch again."""

    def freeze(self, frozen: bool) -> None:
        """Stop the device in the middle of what it does, or let it go on."""

    def garble(self) -> None:
        """Put bytes on the line that are no message."""

    def unplug(self) -> None:
        """Take the device away."""

    def replug(self) -> None:
        """Bring it back, where it was."""

    def down(self) -> bool:
        """Whether the driver knows that its device is gone; waits for it."""

    def counted(self) -> Counter[bool]:
        """How many usable and how many other things the driver counted."""

    def heard(self) -> Counter[bool]:
        """How many usable and how many other things it said."""

    def noise_counted(self) -> int:
        """How often the driver says that bytes were no message."""

    def close(self) -> None:
        """End everything."""


class PoseRoom:
    """A pose source on a terminal or a socket, with the shell that it asks for; connects again when a line ends."""

    names = TOOLS
    loses = "NeedleToTracker"
    longest_s = 0.005

    def __init__(
        self, folder: Path, simulator: tuple[object, ...], counts: SourceCounts | NdiCounts | EncoderCounts
    ) -> None:
        self.folder, self._arguments, self.counts = folder, simulator, counts
        self.all: list[Seen] = []
        self.faults: list[Exception] = []
        self._garble = False
        self._fd = -1
        self._socket: socket.socket | None = None
        self._cable: _Cable | None = None
        self._driver: PoseSource
        self._running: Any = None
        self._where: Any = None
        self._where = self.start()
        self._connect()

    def make(self) -> PoseSource:
        """Return a driver for a new connection."""
        raise NotImplementedError

    def open(self) -> int:
        """Open the line, by a cable that can be pulled; return its file descriptor."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._socket = socket.create_connection(listener.getsockname(), timeout=5.0)
            self._cable = _Cable(socket.create_connection(("127.0.0.1", self._where)), listener.accept()[0])
        return self._socket.fileno()

    def hello(self) -> bytes:
        """Return what is said on a new connection before the driver speaks."""
        return b""

    def start(self) -> Any:
        """Start the simulator where it was; return where that is."""
        self._running = running(*self._arguments, "--port", 0)
        self.simulator: Simulator = self._running.__enter__()
        return self.simulator.event()["port"]

    def unplug(self) -> None:
        assert self._cable is not None
        self._cable.pull()

    def replug(self) -> None:
        self._connect()

    def down(self) -> bool:
        self._serve(lambda: self._fd < 0, reconnect=False)
        return True

    def next(self, fits: Callable[[Seen], bool]) -> Seen:
        start = len(self.all)
        self._serve(lambda: any(fits(one) for one in self.all[start:]))
        return next(one for one in self.all[start:] if fits(one))

    def said_within(self, seconds: float) -> list[Seen]:
        start, end = len(self.all), time.monotonic() + seconds
        self._serve(lambda: time.monotonic() >= end, reconnect=False)
        return self.all[start:]

    def lose(self) -> None:
        self.simulator.tell(do="hide", tool="Needle", seconds=0.4)

    def doubt(self) -> None:
        self.simulator.tell(do="carry", tool="Needle", away_mm=2000)

    def vouch(self) -> None:
        self.simulator.tell(do="carry", tool="Needle", away_mm=0)

    def freeze(self, frozen: bool) -> None:
        self.simulator.process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def garble(self) -> None:
        self._garble = True

    def counted(self) -> Counter[bool]:
        return Counter({True: self.counts.accepted, False: self.counts.invalid})

    def heard(self) -> Counter[bool]:
        return Counter(one.usable for one in self.all)

    def noise_counted(self) -> int:
        return len(self.faults)

    def close(self) -> None:
        self._hang_up()
        if self._running is not None:
            self._running.__exit__(None, None, None)

    def _connect(self) -> None:
        self._driver = self.make()
        self._fd = self.open()
        self._write(self.hello())
        self._driver.start(time.monotonic_ns())

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            if self._cable is not None:
                self._cable.pull()
        elif self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def _serve(self, until: Callable[[], bool], reconnect: bool = True) -> None:
        """Serve the line until something holds; a driver whose line ended is made anew, as the server does."""
        end = time.monotonic() + PATIENCE_S
        while not until():
            assert time.monotonic() < end, (self.all[-5:], self.faults[-3:], self.counts)
            if self._fd < 0:
                assert reconnect, "the line ended"
                self._connect()
            if self._cable is not None:
                self._cable.carry()
            try:
                self._obey()
                due = self._driver.next_due_ns()
                left = self.longest_s if due is None else (due - time.monotonic_ns()) / 1e9
                if not select.select([self._fd], [], [], min(max(0.0, left), self.longest_s))[0]:
                    self._driver.tick(time.monotonic_ns())
                    continue
                data = self._read()
                if data:
                    self._take(self._driver.feed(data, time.monotonic_ns(), time.time_ns()))
                else:
                    self._hang_up()
            except RemoteProtocolError as fault:
                self.faults.append(fault)
                self._take([m for m in fault.messages if isinstance(m, PoseSample)])
                self._hang_up()
            except (DeviceError, OSError) as fault:
                self.faults.append(fault)
                self._hang_up()

    def _read(self) -> bytes:
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # a terminal whose other end is gone
            return b""
        if self._garble and len(data) > 20:
            self._garble = False
            noise = np.random.default_rng(len(data)).integers(0, 256, len(data) - 10, np.uint8).tobytes()
            data = data[:10] + noise
        return data

    def _obey(self) -> None:
        for effect in self._driver.take_effects():
            match effect:
                case Send(data):
                    self._write(data)
                case SetLine(baud):
                    settings = termios.tcgetattr(self._fd)
                    settings[4] = settings[5] = SPEEDS[baud]
                    termios.tcsetattr(self._fd, termios.TCSADRAIN, settings)
                case Break():
                    pass  # a pseudo-terminal carries none

    def _take(self, samples: list[PoseSample]) -> None:
        for sample in samples:
            assert (sample.pose is not None) == (sample.tracking is Tracking.OK)
            self.all.append(Seen(sample.name, sample.pose is not None, sample.reason, sample.device_time_ns))


class NdiRoom(PoseRoom):
    """An NDI tracker on TCP."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, ("ndi", "--roms", folder), NdiCounts())

    def make(self) -> PoseSource:
        assert isinstance(self.counts, NdiCounts)
        tools = tuple(NdiTool(name, read_rom(self.folder / f"{name[:-9].lower()}.rom")) for name in TOOLS)
        return NdiTracker(NdiSpec("main", tools, baud=self.baud), self.counts)

    baud: int | None = None

    def noise_counted(self) -> int:
        assert isinstance(self.counts, NdiCounts)
        return self.counts.garbled + self.counts.timeouts


class NdiTerminalRoom(NdiRoom):
    """An NDI tracker on a serial line: a pseudo-terminal behind a name that stays."""

    baud = 115200

    def start(self) -> Any:
        self._running = running(*self._arguments, "--pty")
        self.simulator = self._running.__enter__()
        line = self.folder / "line"
        line.unlink(missing_ok=True)
        line.symlink_to(self.simulator.event()["pty"])
        return line

    def unplug(self) -> None:
        self._running.__exit__(None, None, None)
        self._running = None

    def replug(self) -> None:
        self._where = self.start()
        self._connect()

    def open(self) -> int:
        fd = os.open(self._where, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(fd, termios.TCSANOW)
        return fd


class OpenIgtLinkRoom(PoseRoom):
    """An OpenIGTLink tracker that the driver connects to."""

    def __init__(self, folder: Path) -> None:
        self._speaks = True
        super().__init__(folder, ("tracker", "--rate-hz", 60), SourceCounts())

    def make(self) -> PoseSource:
        assert isinstance(self.counts, SourceCounts)
        return OpenIgtLinkSource(SourceSpec("main", 60.0), self.counts)

    def hello(self) -> bytes:
        # PLUS sends no status to a client that has not spoken header version 2.
        return encode_hello() if self._speaks else b""

    def doubt(self) -> None:
        self._speaks = False
        self._hang_up()

    def vouch(self) -> None:
        self._speaks = True
        self._hang_up()


class PushedRoom(OpenIgtLinkRoom):
    """An OpenIGTLink device that connects to the listening driver: the simulator's stream comes in from outside."""

    def open(self) -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            device = socket.create_connection(("127.0.0.1", self._where))
            self._cable = _Cable(device, socket.create_connection(listener.getsockname()))
            self._socket, _ = listener.accept()
        return self._socket.fileno()


class _Cable:
    """Carries bytes between two connections until it is pulled."""

    def __init__(self, one: socket.socket, other: socket.socket) -> None:
        self._ends = {one: other, other: one}

    def carry(self) -> None:
        """Carry what is there."""
        while self._ends and (ready := select.select(list(self._ends), [], [], 0)[0]):
            for end in ready:
                try:
                    data = end.recv(65536)
                    self._ends[end].sendall(data)
                except OSError:
                    data = b""
                if not data:
                    self.pull()
                    return

    def pull(self) -> None:
        """End both connections."""
        for end in self._ends:
            end.close()
        self._ends = {}


class DicomRoom:
    """An O-arm that sends small volumes by C-STORE to the server's own process."""

    names = ("OARM",)
    loses = "ImagePositionPatient is missing"

    def __init__(self, folder: Path) -> None:
        self._all: list[Seen] = []
        self._sent = self._ended = 0
        self._without: str | None = None
        self._stuck: socket.socket | None = None
        self._listener = Listener(folder, series_quiet_s=0.3)

    def next(self, fits: Callable[[Seen], bool]) -> Seen:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            self._send()
            heard = self._hear(PATIENCE_S)
            if heard is not None and fits(heard):
                return heard
        raise AssertionError(self._all[-5:])

    def said_within(self, seconds: float) -> list[Seen]:
        heard = self._hear(seconds)
        return [] if heard is None else [heard]

    def lose(self) -> None:
        self._without = "ImagePositionPatient"

    def doubt(self) -> None:
        self._without = "RescaleSlope"

    def vouch(self) -> None:
        self._without = None

    def freeze(self, frozen: bool) -> None:
        if frozen:
            self._stuck = raw(self._listener.port)
            self._stuck.sendall(associate_request()[:70])
        elif self._stuck is not None:
            self._stuck.close()

    def garble(self) -> None:
        with raw(self._listener.port) as sock:
            sock.sendall(np.random.default_rng(1).integers(0, 256, 4000, np.uint8).tobytes())
            self._ended += ended(sock)

    def unplug(self) -> None:
        with raw(self._listener.port) as sock:
            sock.sendall(associate_request())
            assert sock.recv(1 << 16)[0] == 2, "accepted"
            # In the middle of a unit.
            sock.sendall(struct.pack(">BBI", 4, 0, 500) + bytes(100))

    def replug(self) -> None:
        """Each association is new."""

    def down(self) -> bool:
        return bool(self._listener.note("dicom_aborted"))

    def counted(self) -> Counter[bool]:
        heard = self.heard()
        counts = self._listener.counts(volumes=heard[True], objects_refused=heard[False])
        return Counter({True: counts["volumes"], False: counts["objects_refused"]})

    def heard(self) -> Counter[bool]:
        return Counter(one.usable for one in self._all)

    def noise_counted(self) -> int:
        return self._ended

    def close(self) -> None:
        self._listener.child.stop()

    def _send(self) -> None:
        self._sent += 1
        now_ns = time.time_ns()
        voxels = np.arange(4 * 6 * 8, dtype=np.int16).reshape(4, 6, 8)
        objects = volume_objects(voxels, np.eye(4), Study.started(self._sent, now_ns), 1, now_ns)
        if self._without is not None:
            objects = objects[:1]
            delattr(objects[0], self._without)
            self._without = None
        store(self._listener.port, objects)

    def _hear(self, seconds: float) -> Seen | None:
        """Return the next image or refusal of an object; None when none comes within a time."""

        def fits(message: dict[str, Any]) -> bool:
            return message["kind"] == "image" or (
                message["kind"] == "note" and message["value"]["event"] == "dicom_object_refused"
            )

        value = self._listener.within(seconds, fits)
        if value is None:
            return None
        if value["kind"] == "image":
            facts = value["value"]
            one = Seen("OARM", True, "", facts["device_time_ns"])
        else:
            one = Seen("OARM", False, value["value"]["text"], None)
        self._all.append(one)
        return one


ROOMS: dict[str, Callable[[Path], Room]] = {
    "NDI on a serial line": NdiTerminalRoom,
    "NDI on TCP": NdiRoom,
    "OpenIGTLink client": OpenIgtLinkRoom,
    "OpenIGTLink listener": PushedRoom,
    "DICOM association": DicomRoom,
    "Frame grabber": GrabberRoom,
}
