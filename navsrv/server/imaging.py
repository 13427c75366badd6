"""Owns what arrives at the devices port: images, the poses of imaging devices, pushed tracker poses, probes' readings.

Refuses to say where an image was taken: that is ``placing``'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from devices.openigtlink import MAX_TRANSLATION_MM, encode_hello, poses_of, tracking_of
from navsrv.kernel.errors import RemoteProtocolError
from navsrv.kernel.frames import Array, rotation_defect
from navsrv.kernel.samples import ProjectionSample, Tracking, VolumeSample
from navsrv.server.config_tables import Config, ImagingConfig
from navsrv.server.half_open import notice_half_open
from navsrv.server.placing import Arrival, Placing
from navsrv.wire.openigtlink import Framer, Image, Message, Position, QTData, Sensor, TData, Transform, encode

END_S = 1.0
"""How long the end of the session waits for its devices' connections."""
MAX_IMAGE_BYTES = 1 << 28
SILENT_S = 0.25
"""Silence after which a device is asked, once, whether it is still there."""
_READ = 1 << 18
_POSES = (Transform, TData, QTData, Position)


@dataclass(slots=True, eq=False)
class _Device:
    """One connection: the sources it spoke for, and the poses of the read that is being worked through, by source."""

    writer: asyncio.StreamWriter
    linked: set[str] = field(default_factory=set)
    pushed: dict[str, list[bytes]] = field(default_factory=dict)
    complained: bool = False


class DeviceListener:
    """The devices port.  Calls back with exposures, with pushed tracker bytes, and with what went wrong."""

    def __init__(
        self,
        config: Config,
        placing: Placing,
        on_arrival: Callable[[Arrival], None],
        on_bytes: Callable[[str, int, int, bytes], None],
        on_link: Callable[[str, str | None], None],
        on_note: Callable[[str, str], None],
        on_sensor: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._imaging = config.imaging
        self._pushed = [name for name, t in config.trackers.items() if t.connect == "listener"]
        self._source_of = _sources_by_name(config, self._pushed)
        self._device_of = _imaging_by_name(config)
        self._placing = placing
        self._on_arrival, self._on_bytes, self._on_link, self._on_note = on_arrival, on_bytes, on_link, on_note
        self._probed = {p.device for p in config.probes.values() if not p.tracker} if on_sensor is not None else set()
        self._on_sensor = on_sensor
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer_of: dict[str, asyncio.StreamWriter] = {}

    async def serve(self, host: str, port: int) -> tuple[asyncio.Server, int]:
        """Start listening; return the server and the port it got.  OSError if the port is in use."""
        server = await asyncio.start_server(self._connection, host, port)
        return server, server.sockets[0].getsockname()[1]

    def end(self, source: str) -> None:
        """Close the connection that this pushed source comes by, and no other."""
        writer = self._writer_of.pop(source, None)
        if writer is not None:
            writer.close()

    async def end_all(self) -> None:
        """Close every device's connection, and wait until each has said so."""
        for writer in list(self._writers):
            writer.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=END_S)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = "{}:{}".format(*writer.get_extra_info("peername")[:2])
        framer = Framer(max_body_bytes=MAX_IMAGE_BYTES)
        device = _Device(writer)
        self._writers.add(writer)
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        why = "the device closed the connection"
        try:
            sock: socket.socket = writer.get_extra_info("socket")
            notice_half_open(sock)
            writer.write(encode_hello())
            while data := await _read(reader, writer):
                received_ns, wall_ns = time.monotonic_ns(), time.time_ns()
                # Poses of one read stay together: needle and reference of one stamp have to meet as a pair.
                device.pushed.clear()
                for message in framer.feed(data):
                    self._message(message, received_ns, wall_ns, device)
                for source, messages in device.pushed.items():
                    self._on_bytes(source, received_ns, wall_ns, b"".join(messages))
        except RemoteProtocolError as fault:
            why = f"protocol: {fault}"
            self._on_note("device_refused", f"device at {peer}: {fault}; its connection was ended")
        except OSError as error:
            why = error.strerror or str(error)
            self._on_note("device_lost", f"device at {peer}: {why}")
        finally:
            for source in device.linked:
                # A source that another connection has taken over since is not down.
                if self._writer_of.get(source) in (None, writer):
                    self._writer_of.pop(source, None)
                    self._on_link(source, why)
            self._writers.discard(writer)
            writer.close()

    def _message(self, message: Message, received_ns: int, wall_ns: int, device: _Device) -> None:
        if isinstance(message.body, _POSES) and self._imaging_poses(message, wall_ns):
            return
        for source, imaging in self._imaging.items():
            by_igtl = imaging.connect == "openigtlink"
            if by_igtl and message.device == imaging.image and isinstance(message.body, Image):
                self._image(source, imaging, message, received_ns, wall_ns)
                return
        if isinstance(message.body, Sensor) and self._on_sensor is not None and message.device in self._probed:
            self._on_sensor(
                {
                    "received_ns": received_ns,
                    "device": message.device,
                    "stamp_ns": message.time_ns or None,
                    "values": message.body.values.tolist(),
                    "unit": message.body.unit,
                    "status": message.body.status,
                }
            )
            return
        if not self._pushed or not isinstance(message.body, _POSES):
            return
        owner = self._source(message, device)
        if owner is None:
            return
        if self._writer_of.get(owner) is not device.writer:
            if owner in device.linked:
                return  # what was on its way when another connection took the source over
            self._take_over(owner, device.writer)
            device.linked.add(owner)
            self._on_link(owner, None)
        device.pushed.setdefault(owner, []).append(encode(message))

    def _source(self, message: Message, device: _Device) -> str | None:
        """Return the pushed source that a pose belongs to by its names; None for a pose that nobody waits for.

        Only a pose that somebody waits for makes its device the source: what else a second device has to say must not
        end the tracker's connection.
        """
        names = [message.device]
        if isinstance(message.body, (TData, QTData)):
            names += [element.name for element in message.body.elements]
        for name in names:
            if name in self._source_of:
                return self._source_of[name]
        if not device.complained:
            device.complained = True
            known = ", ".join(self._source_of) or "none"
            self._on_note("pose_unknown", f"{message.device}: a pose that no tool is configured for; known: {known}")
        return None

    def _take_over(self, source: str, writer: asyncio.StreamWriter) -> None:
        """Give a source to the connection that speaks for it now; two at once would mix two devices' poses.

        The newer wins: it is most often the same device back, whose old connection ended without a word.
        """
        older = self._writer_of.get(source)
        self._writer_of[source] = writer
        if older is not None:
            text = f"trackers.{source}: another connection sends its poses; the older one was ended"
            self._on_note("device_replaced", text)
            self._on_link(source, "another connection sends its poses now")
            older.close()

    def _imaging_poses(self, message: Message, wall_ns: int) -> bool:
        """Take the poses of imaging devices that a message carries; say whether nobody else waits for any of it."""
        mine = others = False
        for name, matrix in poses_of(message):
            source = self._device_of.get(name)
            if source is None:
                others = True
            else:
                mine = True
                self._pose(message, name, matrix, source, wall_ns)
        return mine and not others

    def _pose(self, message: Message, name: str, matrix: Array, source: str, wall_ns: int) -> None:
        stamp = message.time_ns or wall_ns
        trust_key = None if self._imaging[source].trusted else f"imaging.{source}.trusted"
        tracking, reason = tracking_of(message, name, trust_key)
        if tracking is not Tracking.OK:
            self._placing.lose(name, stamp, reason)
            return
        far = not np.abs(matrix[:3, 3]).max() <= MAX_TRANSLATION_MM  # what is no number is far too
        if far or rotation_defect(matrix[:3, :3]) > 1e-3:
            fault = f"more than {MAX_TRANSLATION_MM / 1e3:.0f} m away" if far else "the matrix is not a rigid motion"
            self._placing.lose(name, stamp, f"{name}: {fault}", "poses_not_rigid")
            return
        self._placing.give(name, stamp, matrix)

    def _image(self, source: str, imaging: ImagingConfig, message: Message, received_ns: int, wall_ns: int) -> None:
        assert isinstance(message.body, Image)
        stamp = message.time_ns or wall_ns
        voxels, matrix = message.body.voxels, message.body.matrix
        if voxels.ndim != 3:
            self._placing.refuse(source, "image_refused", f"{voxels.shape[-1]} components; expected one")
            return
        image: VolumeSample | ProjectionSample
        if imaging.kind == "volume":
            image = VolumeSample(imaging.image, voxels, np.array(matrix), stamp, received_ns)
        else:
            image = ProjectionSample(imaging.image, voxels[0], np.array(matrix), stamp, received_ns)
        self._on_arrival(Arrival(source, imaging, image))


def _imaging_by_name(config: Config) -> dict[str, str]:
    """Return the imaging source of each pose that comes to the devices port; the first that names it says its trust."""
    found: dict[str, str] = {}
    for source, imaging in config.imaging.items():
        own = (imaging.detector,) if imaging.tracker else (imaging.pose, imaging.detector)
        for name in filter(None, own):
            found.setdefault(name, source)
    return found


def _sources_by_name(config: Config, pushed: list[str]) -> dict[str, str]:
    """Return the pushed source of each device name that the configuration knows."""
    known = {tool.transform: tool.tracker for tool in config.tools.values() if tool.tracker in pushed}
    known |= {imaging.pose: imaging.tracker for imaging in config.imaging.values() if imaging.tracker in pushed}
    return known | {name: source for source in pushed for name in config.trackers[source].names}


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Return what came; empty at the end.  A silent device is asked once, and may be silent if its system answers."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SILENT_S):
            return await reader.read(_READ)
    writer.write(encode_hello())
    return await reader.read(_READ)
