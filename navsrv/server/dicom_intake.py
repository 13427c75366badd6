"""Owns the session's side of DICOM: the life of the server's process, when images were taken, what they say of where.

An image arrives long after it was taken.  Its stamp is the acquisition's by the device's clock, as configured, and the
poses of that time are still known (``placing``).  Refuses to guess: an image without a time is reported, not used.
When the process ends by itself (a codec that a broken stream brought down), it is started anew: guidance does not
depend on it.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.frames import Array
from navsrv.kernel.samples import ProjectionSample, VolumeSample
from navsrv.server.boots import DicomBoot
from navsrv.server.channel import ChannelClosed
from navsrv.server.config_tables import Config, ImagingConfig
from navsrv.server.placing import Arrival, Placing
from navsrv.server.processes import Child, ChildFailed

START_TIMEOUT_S: Final = 60.0
RESTARTS: Final = 5
RESTART_AFTER_S: Final = 1.0
FUTURE_NS: Final = 1_000_000_000
"""By how much an image may seem to be taken after it arrived: clocks differ a little."""


@dataclass(frozen=True, slots=True)
class Tellings:
    """Whom the intake tells: of images, of what happened, of counts for the metrics."""

    arrival: Callable[[Arrival], None]
    note: Callable[[str, str], None]
    counts: Callable[[dict[str, int]], None]


class DicomIntake:
    """The DICOM server's process, and its images on their way to the session."""

    def __init__(self, config: Config, folder: Path, placing: Placing, tell: Tellings) -> None:
        assert config.dicom is not None
        self._config, self._folder, self._placing, self._tell = config, folder, placing, tell
        self._sources = {name: s for name, s in config.imaging.items() if s.connect == "dicom"}
        self._port = config.dicom.port
        self._failures = 0
        self._ended = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._child = self._spawn()

    async def wait_ready(self) -> int:
        """Return the port once the server listens; ChildFailed with its reason if it cannot."""
        ready = await asyncio.to_thread(self._child.wait_ready, START_TIMEOUT_S)
        self._port = int(ready["dicom"])
        asyncio.get_running_loop().add_reader(self._child.channel.fileno(), self._from_child)
        return self._port

    def stop(self) -> None:
        """End the process."""
        self._ended = True
        asyncio.get_running_loop().remove_reader(self._child.channel.fileno())
        for task in self._tasks:
            task.cancel()
        self._child.stop()

    def _spawn(self) -> Child:
        assert self._config.dicom is not None
        boot = DicomBoot(self._config.dicom, self._sources, self._config.ports.host, self._port, str(self._folder))
        return Child("DICOM", "navsrv.server.dicom_listener", pickle.dumps(boot))

    def _start(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._tell.note("dicom_failed", f"internal error: {error!r}"[:300])

    def _from_child(self) -> None:
        try:
            messages = self._child.channel.receive()
        except ChannelClosed:
            asyncio.get_running_loop().remove_reader(self._child.channel.fileno())
            if not self._ended:
                self._start(self._again())
            return
        for message in messages:
            value = message["value"]
            if message["kind"] == "note":
                self._tell.note(value["event"], value["text"])
            elif message["kind"] == "counts":
                self._tell.counts(value)
            elif message["kind"] == "image":
                self._start(self._image(value))

    async def _again(self) -> None:
        """Start the process anew on the same port; unfinished series are lost, and their senders see it."""
        status = self._child.process.wait()
        self._child.channel.socket.close()
        self._failures += 1
        if self._failures > RESTARTS:
            self._tell.note("dicom_lost", f"the DICOM server ended {self._failures} times by itself; it stays off")
            return
        self._tell.note("dicom_lost", f"the DICOM server ended by itself (status {status}); it is started anew")
        await asyncio.sleep(RESTART_AFTER_S)
        self._child = self._spawn()
        try:
            await self.wait_ready()
        except ChildFailed as failure:
            self._tell.note("dicom_lost", f"the DICOM server cannot be started anew: {failure}")

    async def _image(self, value: dict[str, Any]) -> None:
        source: str = value["source"]
        imaging = self._sources[source]
        voxels = await asyncio.to_thread(_taken_from, self._folder / value["file"])
        stamp, reason = self._stamp_ns(imaging, value)
        if stamp is None:
            self._placing.refuse(source, "image_without_time", f"{value['text']}: {reason}")
            return
        T_pose_from_image = _placed(imaging, value["T_equipment_from_image"])
        if T_pose_from_image is None:
            missing = "(0028,9520) Image to Equipment Mapping Matrix"
            self._placing.refuse(source, "image_without_pose", f"{value['text']}: {missing} is missing")
            return
        detector = value["T_carm_from_image"]
        self._tell.note("dicom_image", f"{source}: {value['text']}")
        matrix, received_ns = np.array(value["index_to_image_mm"]), value["received_ns"]
        image: VolumeSample | ProjectionSample
        if value["kind"] == "volume":
            image = VolumeSample(imaging.image, voxels, matrix, stamp, received_ns)
        else:
            image = ProjectionSample(imaging.image, voxels, matrix, stamp, received_ns)
        detector = None if detector is None else np.array(detector)
        self._tell.arrival(Arrival(source, imaging, image, value["text"], T_pose_from_image, detector))

    def _stamp_ns(self, imaging: ImagingConfig, value: dict[str, Any]) -> tuple[int | None, str]:
        """Return when an image was taken by this server's wall clock, or None and why it is not known."""
        arrived = time.time_ns() - (time.monotonic_ns() - int(value["received_ns"]))
        if imaging.dicom.stamps == "receipt":
            return arrived, ""
        taken = value["device_time_ns"]
        if taken is None:
            return None, 'it does not say when it was taken (dicom.stamps = "receipt" takes its arrival)'
        stamp = int(taken) - int(imaging.dicom.clock_ahead_s * 1e9)
        if stamp > arrived + FUTURE_NS:
            ahead = (stamp - arrived) / 1e9
            return None, f"taken {ahead:.1f} s after it arrived (see dicom.clock_ahead_s and dicom.utc_offset_min)"
        return stamp, ""


def _placed(imaging: ImagingConfig, T_equipment_from_image: list[list[float]] | None) -> Array | None:
    """Return the image's pose (4, 4) in the tracked frame; None where the object had to tell it and does not."""
    if imaging.dicom.pose_of == "image":
        return np.eye(4)
    if T_equipment_from_image is None:
        return None
    rows = imaging.dicom.T_pose_from_equipment
    T_pose_from_equipment = np.eye(4) if rows is None else np.array(rows)
    placed: Array = T_pose_from_equipment @ np.array(T_equipment_from_image)
    return placed


def _taken_from(path: Path) -> NDArray[Any]:
    """Return an array that the server's process wrote, and remove its file."""
    array: NDArray[Any] = np.load(path, allow_pickle=False)
    path.unlink()
    return array
