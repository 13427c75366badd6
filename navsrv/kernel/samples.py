"""Owns typed samples: what a device said, about which frames, and when.  A pose without frame and age is no pose."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.frames import Array, Rigid


class Tracking(Enum):
    """What a source says of one pose.  UNKNOWN (nothing said) never counts as OK unless the source is trusted."""

    OK = "ok"
    MISSING = "missing"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, eq=False)
class PoseSample:
    """One pose as a source gave it.

    Attributes
    ----------
    name : str
        The transform's name after the source's mapping, ``NeedleToTracker``.
    pose : Rigid or None
        None when the source says that the pose is not valid.
    tracking : Tracking
    reason : str
        Why it is not OK, in words for the operator; empty when OK.
    device_time_ns : int or None
        The source's stamp since the Unix epoch; None when it gave none that means anything.
    pose_time_ns : int
        ``device_time_ns``, or the wall clock at receipt in its place (``stamp_source`` says which).
    received_ns : int
        Monotonic time of the read that completed it.
    late_ns : int
        How much longer it was on its way than the quickest of its source lately, by the device's stamps.
    latency_ns : int
        Declared time from the measurement to the stamp, or to the receipt where stamps mean nothing.
    unknown_ns : int
        How much older than ``taken_ns`` the measurement may be, for all that is known.
    """

    name: str
    pose: Rigid | None
    tracking: Tracking
    reason: str
    device_time_ns: int | None
    pose_time_ns: int
    received_ns: int
    late_ns: int = 0
    latency_ns: int = 0
    unknown_ns: int = 0

    @property
    def due_ns(self) -> int:
        """When it would have been received had nothing held it up: from here its freshness counts."""
        return self.received_ns - self.late_ns

    @property
    def taken_ns(self) -> int:
        """When it was measured, as far as that is known: from here the age that displays see counts."""
        return self.received_ns - self.late_ns - self.latency_ns

    @property
    def stamp_source(self) -> str:
        """Where ``pose_time_ns`` comes from: ``device`` or ``receipt``."""
        return "receipt" if self.device_time_ns is None else "device"


@dataclass(frozen=True, slots=True, eq=False)
class VolumeSample:
    """A reconstructed volume in its own frame.

    Attributes
    ----------
    device : str
        The name that the image came under.
    voxels : (k, j, i) int16 or float32
    index_to_volume_mm : (4, 4)
        Maps (i, j, k, 1) of a voxel's centre to millimetres in the volume's frame.
    """

    device: str
    voxels: NDArray[np.generic]
    index_to_volume_mm: Array
    device_time_ns: int | None
    received_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class ProjectionSample:
    """An X-ray image as its source gave it; where it was taken is told by poses, not by the image.

    Attributes
    ----------
    device : str
        The name that the image came under.
    pixels : (rows, columns)
    index_to_image_mm : (4, 4)
        Maps (column, row, 0, 1) of a pixel's centre to millimetres in the frame of the detector plane.
    """

    device: str
    pixels: NDArray[np.generic]
    index_to_image_mm: Array
    device_time_ns: int | None
    received_ns: int
