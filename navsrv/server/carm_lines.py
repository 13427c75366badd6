"""Owns the serial lines of C-arms' encoders: opening again and again, reading, and what geometry makes of the angles.

The poses go where those of the devices port go, so that an X-ray meets them the same way.  What the bytes mean is the
driver's business (``devices/carm_encoders.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import serial
from numpy.typing import NDArray

from calibration.carm_table import CarmCalibration
from calibration.distortion import Bending
from devices.carm_encoders import CarmEncoders, EncoderCounts, EncoderSpec, PoseOfAngles, nominal_pose
from navsrv.kernel.errors import CalibrationError, RemoteProtocolError
from navsrv.kernel.frames import CARM, Array, Frame, Rigid
from navsrv.kernel.projection import ProjectionModel
from navsrv.pipeline.inputs import SourceReport
from navsrv.pipeline.sources import counted
from navsrv.server.calibration_files import read_carm
from navsrv.server.config_tables import EncodersConfig, ImagingConfig

STAND: Final = Frame("stand")
RETRY_S: Final = 1.0
_READ: Final = 4096
_MOST_OF_A_READ: Final = _READ // 20
"""Lines that one read may bring."""

Give = Callable[[str, int, Array, int], None]
"""Takes a pose: its name, when it was (wall ns), its (4, 4), and by how much (ns) it may have been earlier."""


class CarmLine:
    """One C-arm's encoders, for as long as the session lives."""

    def __init__(
        self,
        name: str,
        imaging: ImagingConfig,
        give: Give,
        lose: Callable[[str, int, str], None],
        note: Callable[[str, str], None],
    ) -> None:
        assert imaging.encoders is not None
        self.name, self._config, self._give, self._note = name, imaging.encoders, give, note
        self._lose = lose
        self._pose_name, self._detector_name = imaging.pose, imaging.detector
        table = imaging.encoders.table
        self._table = None if table is None else read_carm(Path(table).expanduser())
        pose_of, self._detector_of = geometry_of(imaging.encoders, self._table)
        self._angles: deque[tuple[int, float]] = deque(maxlen=600)
        unknown_ns = int(imaging.encoders.latency_ms * 1e6)
        rate_hz = imaging.encoders.rate_hz
        self._spec = EncoderSpec(name, imaging.pose, rate_hz, self._noting(pose_of), unknown_latency_ns=unknown_ns)
        self._angle_rad = 0.0
        self.counts = EncoderCounts()
        self._driver: CarmEncoders | None = None
        self._port: serial.Serial | None = None
        self._said = ""
        self._stopped = False

    def straightened(self, pixels: NDArray[np.generic], time_ns: int) -> NDArray[np.generic]:
        """Return the ideal picture (rows, columns) of one that was taken at a time, as the table has it bend there.

        Raises
        ------
        CalibrationError
            A picture of another size than those of the table, or no angle is known near that time.
        """
        if self._table is None or self._table.distortions[0].kind is Bending.NONE:
            return pixels
        near = min(tuple(self._angles), key=lambda at: abs(at[0] - time_ns), default=None)
        if near is None or abs(near[0] - time_ns) > 1_000_000_000:
            raise CalibrationError("no angle is known near its time, by which its bending would be")
        straight = self._table.undistort(pixels, near[1])
        if not np.issubdtype(pixels.dtype, np.integer):
            return straight
        limits = np.iinfo(pixels.dtype)  # type: ignore[type-var]  # an integer's, as was asked
        rounded: NDArray[np.generic] = np.clip(np.rint(straight), limits.min, limits.max).astype(pixels.dtype)
        return rounded

    def _noting(self, pose_of: PoseOfAngles) -> PoseOfAngles:
        def noted(orbit_deg: float, tilt_deg: float) -> Rigid:
            self._angle_rad = float(np.radians(orbit_deg))
            return pose_of(orbit_deg, tilt_deg)

        return noted

    def start(self) -> None:
        """Open the line; where that fails, again and again."""
        if self._stopped:
            return
        try:
            self._port = serial.Serial(self._config.device, self._config.baud, timeout=0, exclusive=True)
        except (serial.SerialException, OSError, ValueError) as error:
            said = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            self._lost(f"cannot open {self._config.device}: {said}")
            return
        self._driver = CarmEncoders(self._spec, self.counts)
        self._said = ""
        self._note("encoders_up", f"{self.name}: {self._config.device} is open")
        asyncio.get_running_loop().add_reader(self._port.fileno(), self._read)

    def stop(self) -> None:
        """Leave the line."""
        self._stopped = True
        self._close()

    def report(self) -> SourceReport:
        """Return how it stands, for metrics."""
        return SourceReport(f"encoders {self.name}", self._driver is not None, counted(self.counts), 0.0)

    def _read(self) -> None:
        assert self._port is not None
        assert self._driver is not None
        try:
            data = os.read(self._port.fileno(), _READ)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error.strerror or str(error))
            return
        if not data:
            self._lost("the line ended")
            return
        try:
            samples = self._driver.feed(data, time.monotonic_ns(), time.time_ns())
        except RemoteProtocolError as fault:
            self._lost(f"protocol: {fault}")
            return
        for sample in samples:
            if sample.pose is None:
                self._lose(self._pose_name, sample.pose_time_ns, sample.reason)
                continue
            self._angles.append((sample.pose_time_ns, self._angle_rad))
            self._give(self._pose_name, sample.pose_time_ns, sample.pose.matrix, sample.unknown_ns)
            if self._detector_name is not None:
                self._give(self._detector_name, sample.pose_time_ns, self._detector_of(sample.pose), sample.unknown_ns)

    def _lost(self, why: str) -> None:
        self._close()
        if why != self._said:
            self._said = why
            self._note("encoders_down", f"{self.name}: {why}")
        if not self._stopped:
            asyncio.get_running_loop().call_later(RETRY_S, self.start)

    def _close(self) -> None:
        if self._port is not None:
            with contextlib.suppress(OSError, ValueError, serial.SerialException):
                asyncio.get_running_loop().remove_reader(self._port.fileno())
                self._port.close()
        self._port, self._driver = None, None


def geometry_of(
    encoders: EncodersConfig, table: CarmCalibration | None
) -> tuple[PoseOfAngles, Callable[[Rigid], Array]]:
    """Return what angles mean: the pose of the C-arm, and the place (4, 4) of the image (mm) in its frame at a pose.

    By the table, or without one by the drawing.
    """
    if table is not None:
        return _calibrated(table, encoders.pixel_mm)
    source_iso_mm = encoders.source_iso_mm

    def pose_of(orbit_deg: float, tilt_deg: float) -> Rigid:
        rotation, translation = nominal_pose(orbit_deg, tilt_deg, source_iso_mm)
        return Rigid(STAND, CARM, np.array(rotation), np.array(translation))

    u, v = encoders.principal_px
    place = np.eye(4)
    place[:3, 3] = -u * encoders.pixel_mm, -v * encoders.pixel_mm, encoders.sdd_mm
    return pose_of, lambda _: place


def _calibrated(table: CarmCalibration, pixel_mm: float) -> tuple[PoseOfAngles, Callable[[Rigid], Array]]:
    newest: dict[bytes, ProjectionModel] = {}

    def pose_of(orbit_deg: float, tilt_deg: float) -> Rigid:
        model = table.projection(float(np.radians(orbit_deg)))
        pose = model.T_carm_from_object.inverse()
        if len(newest) >= _MOST_OF_A_READ:
            newest.pop(next(iter(newest)))
        newest[pose.matrix.tobytes()] = model
        return Rigid(STAND, CARM, pose.rotation, pose.translation_mm)

    def detector_of(pose: Rigid) -> Array:
        model = newest[pose.matrix.tobytes()]
        back = np.linalg.inv(model.intrinsics)
        place = np.eye(4)
        # A plane at distance 1000 stands for the detector: pixels mean rays, and where along them does not matter.
        place[:3, [0, 1, 3]] = 1000.0 * back / [pixel_mm, pixel_mm, 1.0]
        return place

    return pose_of, detector_of
