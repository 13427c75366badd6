"""Owns where an image was taken: the pose of its device at the exposure, that of the reference then, and their doubt.

The device's pose is pushed to the devices port, made of encoders, or that of a body on it which a tracker sees; the
calibrated place of the image in it follows.  Images of every kind come through here, and each is counted.  Refuses to
guess: an image without a pose near its stamp, or without the reference's, is reported and not used.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import REFERENCE, Array, Frame, Rigid, rotation_angle_rad
from navsrv.kernel.samples import ProjectionSample, VolumeSample
from navsrv.pipeline.inputs import SourceReport
from navsrv.pipeline.pose_memory import EXPOSURE_NEAR_NS, PoseMemory, PoseThen
from navsrv.server.config_tables import Config, ImagingConfig, TrackerConfig
from navsrv.server.operations import Refused

POSE_NEAR_NS: Final = 500_000_000
"""A pushed pose farther than this from an exposure says nothing of it: how often they come, nobody declared."""
WAIT_S: Final = 0.25
"""How long an image waits for the poses after its exposure."""
_AGAIN_S: Final = 0.02
_IMAGE: Final = Frame("image")


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """An image as it came.

    Attributes
    ----------
    image : VolumeSample or ProjectionSample
        With the time of its exposure.
    text : str
        What it is, for the log.
    T_pose_from_image : (4, 4) or None
        Where the image itself says that it is in the frame of the configured ``pose``; an X-ray's frame is the C-arm's.
    detector : (4, 4) or None
        Where the image itself says that an X-ray's detector is in the C-arm's frame.
    unknown_ns : int
        How much earlier than its stamp it may have been taken, for all that is known.
    """

    source: str
    config: ImagingConfig
    image: VolumeSample | ProjectionSample
    text: str = ""
    T_pose_from_image: Array | None = None
    detector: Array | None = None
    unknown_ns: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Exposure:
    """An image and its place in the reference's frame at its stamp.

    Attributes
    ----------
    T_ref_from_image : (4, 4)
        For an X-ray the pose of the C-arm's frame: origin at the source.
    covariance : (6, 6)
        Of ``T_ref_from_image`` by the poses it is made of: left perturbation in the reference's frame.
    detector : (4, 4) or None
        Of an X-ray: the detector plane's millimetres in the C-arm's frame.
    pose_off_ms : float
        From the exposure to the nearest pose of the device.
    """

    source: str
    config: ImagingConfig
    image: VolumeSample | ProjectionSample
    T_ref_from_image: Array
    covariance: Array
    detector: Array | None
    pose_off_ms: float


@dataclass(slots=True)
class ImageCounts:
    """What happened to the images of a source since the start, and to the poses of its device."""

    accepted: int = 0
    refused: int = 0
    repeated: int = 0
    late: int = 0
    poses_accepted: int = 0
    poses_refused: int = 0
    poses_not_rigid: int = 0
    poses_repeated: int = 0
    poses_late: int = 0
    without_time: int = 0
    without_pose: int = 0
    without_reference: int = 0


_COUNT_OF: Final = {
    "image_refused": "refused",
    "image_without_time": "without_time",
    "image_without_pose": "without_pose",
    "image_without_reference": "without_reference",
}


Straighten = Callable[[NDArray[np.generic], int], NDArray[np.generic]]
"""Returns the ideal picture of one that was taken at a time (ns since the epoch); CalibrationError where it cannot."""


class Placing:
    """The poses of a session's imaging devices, and the images placed by them."""

    def __init__(
        self,
        config: Config,
        ask: Callable[[str, dict[str, Any], str], Awaitable[Any]],
        note: Callable[[str, str], None],
    ) -> None:
        self._config, self._ask, self._note = config, ask, note
        self.counts = {name: ImageCounts() for name in config.imaging}
        self._poses: dict[str, PoseMemory] = {}
        self._newest_pose: dict[str, int] = {}
        self._newest_image: dict[str, int] = {}
        self._bad: dict[str, str] = {}
        self.straighten: dict[str, Straighten] = {}
        """Of sources whose pictures bend: what makes ideal ones of them."""
        for imaging in config.imaging.values():
            late = imaging.connect == "dicom" and config.dicom is not None
            seconds = config.dicom.pose_memory_s if late and config.dicom is not None else 0.0
            for pose in filter(None, (imaging.pose, imaging.detector)):
                self._poses[pose] = PoseMemory(600, seconds)

    def give(self, name: str, time_ns: int, matrix: Array, unknown_ns: int = 0) -> None:
        """Take a pose (4, 4) of an imaging device, by its configured name.

        ``time_ns`` since the epoch; it may have been earlier by ``unknown_ns``.
        """
        newest = self._newest_pose.setdefault(name, time_ns - 1)
        if time_ns <= newest:
            self._count(name, "poses_repeated" if time_ns == newest else "poses_late")
            if time_ns == newest:
                return
        self._newest_pose[name] = max(newest, time_ns)
        self._count(name, "poses_accepted")
        self._poses[name].add(time_ns, matrix, unknown_ns)
        if self._bad.pop(name, None) is not None:
            self._note("pose_valid", f"{name} is valid again")

    def lose(self, name: str, time_ns: int, reason: str, what: str = "poses_refused") -> None:
        """Take note that the pose of a name is not to be believed at a time; say so when that is news."""
        self._count(name, what)
        self._poses[name].lose(time_ns)
        if self._bad.get(name) != reason:
            self._bad[name] = reason
            self._note("pose_refused", reason)

    def _count(self, pose: str, what: str) -> None:
        for name, imaging in self._config.imaging.items():
            if pose in (imaging.pose, imaging.detector):
                setattr(self.counts[name], what, getattr(self.counts[name], what) + 1)

    def _is_repeated(self, arrival: Arrival, stamp: int) -> bool:
        """Say whether an image is shown again, as a C-arm does with the last one; one that was overtaken is counted."""
        newest = self._newest_image.get(arrival.source)
        self._newest_image[arrival.source] = stamp if newest is None else max(newest, stamp)
        if newest is None or stamp > newest:
            return False
        counts = self.counts[arrival.source]
        if stamp < newest:
            counts.late += 1
            return False
        counts.repeated += 1
        return arrival.config.connect == "openigtlink"

    def refuse(self, source: str, event: str, text: str) -> None:
        """Count and report an image that is not used; ``event`` is one of those that are counted."""
        counts = self.counts[source]
        what = _COUNT_OF[event]
        setattr(counts, what, getattr(counts, what) + 1)
        self._note(event, f"{source}: {text}; not used")

    def reports(self) -> list[SourceReport]:
        """Return what each source's images came to, for metrics."""
        return [
            SourceReport(f"images {name}", counts.accepted > 0, asdict(counts), 0.0)
            for name, counts in self.counts.items()
        ]

    async def place(self, arrival: Arrival) -> Exposure | None:
        """Return an image in its place; None, with the reason reported, where nobody knows it, or for one repeated."""
        imaging, stamp = arrival.config, arrival.image.device_time_ns
        assert stamp is not None  # an image without a time does not come this far
        if self._is_repeated(arrival, stamp):
            return None
        end = time.monotonic() + WAIT_S
        while True:
            body, reference = await self._body(imaging, stamp), await self._reference(stamp)
            settled = all(isinstance(pose, PoseThen) and pose.between for pose in (body, reference))
            if settled or time.monotonic() > end:
                break
            await asyncio.sleep(_AGAIN_S)
        about = f"{arrival.text}: " if arrival.text else ""
        if isinstance(body, str):
            self.refuse(arrival.source, "image_without_pose", f"{about}{body}")
            return None
        if isinstance(reference, str):
            self.refuse(arrival.source, "image_without_reference", f"{about}{reference}")
            return None
        image = arrival.image
        try:
            if isinstance(image, ProjectionSample) and arrival.source in self.straighten:
                straight = await asyncio.to_thread(self.straighten[arrival.source], image.pixels, stamp)
                image = replace(image, pixels=straight)
        except CalibrationError as refusal:
            self.refuse(arrival.source, "image_refused", f"{about}{refusal}")
            return None
        T_ref_from_pose = np.linalg.inv(reference.matrix) @ body.matrix
        covariance = self._covariance(imaging, T_ref_from_pose, body, reference)
        if arrival.unknown_ns:
            earlier = await self._moved(imaging, stamp - arrival.unknown_ns, T_ref_from_pose)
            if isinstance(earlier, str):
                late_ms = arrival.unknown_ns / 1e6
                why = f"its latency is unknown to {late_ms:g} ms, and so much earlier: {earlier}"
                self.refuse(arrival.source, "image_without_pose", f"{about}{why}")
                return None
            covariance = covariance + earlier
        self.counts[arrival.source].accepted += 1
        T_ref_from_image = T_ref_from_pose
        for place in (imaging.T_pose_from_image, arrival.T_pose_from_image):
            if place is not None:
                T_ref_from_image = T_ref_from_image @ np.array(place)
        return Exposure(
            arrival.source,
            imaging,
            image,
            T_ref_from_image,
            covariance,
            self._detector(arrival, stamp),
            body.off_ns / 1e6,
        )

    async def _moved(self, imaging: ImagingConfig, earliest: int, T_ref_from_pose: Array) -> Array | str:
        """Return (6, 6) of a time of exposure anywhere between ``earliest`` and the stamp, or why nobody knows.

        Whatever of device and reference moved in between went at a steady speed: a third of its square.
        """
        body, reference = await self._body(imaging, earliest), await self._reference(earliest)
        if isinstance(body, str) or isinstance(reference, str):
            return body if isinstance(body, str) else str(reference)
        way = T_ref_from_pose @ np.linalg.inv(np.linalg.inv(reference.matrix) @ body.matrix)
        turn = way[:3, :3]
        angle = max(rotation_angle_rad(turn), 1e-9)
        axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
        twist = np.concatenate([0.5 * axis * angle / np.sin(angle), way[:3, 3]])
        covariance: Array = np.outer(twist, twist) / 3.0
        return covariance

    def _detector(self, arrival: Arrival, stamp: int) -> Array | None:
        """Return an X-ray's detector: as a device told it at the exposure, as configured, or as the image says."""
        name, rows = arrival.config.detector, arrival.config.T_carm_from_image
        if name is not None and (then := self._poses[name].then(stamp, POSE_NEAR_NS)) is not None:
            return then.matrix
        return arrival.detector if rows is None else np.array(rows)

    async def _body(self, imaging: ImagingConfig, stamp: int) -> PoseThen | str:
        """Return the device's pose at a stamp in the tracker's frame, or why there is none."""
        if imaging.tracker:
            return await self._asked("body_at", {"body": imaging.pose, "time_ns": str(stamp)}, "T_tracker_from_body")
        near_ns = _near_ns(imaging)
        found = self._poses[imaging.pose].then(stamp, near_ns)
        if found is not None:
            return found
        ago = (time.time_ns() - stamp) / 1e9
        return f"no {imaging.pose} within {near_ns / 1e9:.1g} s of the exposure, {ago:.1f} s ago"

    async def _reference(self, stamp: int) -> PoseThen | str:
        if self._config.registration.still_patient:
            return PoseThen(np.eye(4), 0, True, 0.0, 0.0)
        return await self._asked("reference_at", {"time_ns": str(stamp)}, "T_tracker_from_ref")

    async def _asked(self, op: str, args: dict[str, Any], key: str) -> PoseThen | str:
        """Return the loop's answer: it has the poses of every tracker."""
        try:
            said = await self._ask(op, args, "session")
        except Refused as refusal:
            return str(refusal)
        matrix = np.array(said[key]).reshape(4, 4)
        return PoseThen(matrix, round(1e6 * said["off_ms"]), said["between"], said["sigma_mm"], said["sigma_rad"])

    def _covariance(self, imaging: ImagingConfig, T_ref_from_pose: Array, body: PoseThen, reference: PoseThen) -> Array:
        """Return (6, 6) of the frozen link between reference and image.

        A body that a tracker sees is turned about its own origin by that tracker's noise, which a lever of a metre
        makes large at the patient.  The noise of a device's own tracking is taken to be that of the reference's.
        """
        references = [t.tracker for t in self._config.tools.values() if t.role == "reference"]
        tracker = self._config.trackers[references[0]] if references else None
        adjoint = Rigid.from_matrix(REFERENCE, _IMAGE, T_ref_from_pose).adjoint()
        of_body = _square(body.sigma_rad, body.sigma_mm)
        total: Array = _noise(tracker) + _square(reference.sigma_rad, reference.sigma_mm)
        if imaging.tracker:
            of_body = of_body + _noise(self._config.trackers[imaging.tracker])
        else:
            total = total + _noise(tracker)
        total = total + adjoint @ of_body @ adjoint.T
        return 0.5 * (total + total.T)


def _near_ns(imaging: ImagingConfig) -> int:
    """Return how far from a pose an exposure may be; a declared rate makes it as strict as for a tracker."""
    if imaging.encoders is None:
        return POSE_NEAR_NS
    return max(int(2e9 / imaging.encoders.rate_hz), EXPOSURE_NEAR_NS)


def _noise(tracker: TrackerConfig | None) -> Array:
    return np.zeros((6, 6)) if tracker is None else _square(np.radians(tracker.noise_deg), tracker.noise_mm)


def _square(rotation_rad: float, translation_mm: float) -> Array:
    return np.diag([rotation_rad**2] * 3 + [translation_mm**2] * 3)


def middle_mm(image: VolumeSample, T_ref_from_image: Array) -> Array:
    """Return the middle (3,) of a volume in the reference's frame."""
    middle = [*(0.5 * (n - 1) for n in reversed(image.voxels.shape)), 1.0]
    seen: Array = (T_ref_from_image @ image.index_to_volume_mm @ middle)[:3]
    return seen


def with_calibration(covariance: Array, imaging: ImagingConfig, about_mm: Array) -> Array:
    """Return (6, 6) of where an image is said to be: by its poses, as given, and by the calibration of its device.

    Left perturbation in the reference.  The calibration's is a turn about what the image shows, ``about_mm`` (3,) in
    the reference's frame, and a shift of it, as for a needle that is found in the image.
    """
    adjoint = Rigid(REFERENCE, _IMAGE, np.eye(3), about_mm).adjoint()
    total: Array = covariance + adjoint @ _square(np.radians(imaging.sigma_deg), imaging.sigma_mm) @ adjoint.T
    return 0.5 * (total + total.T)


def sigmas_at(covariance: Array, point_mm: Array) -> tuple[float, float]:
    """Return one sigma (rad, mm), along the worst direction, of a turn about a point (3,) and of that point's shift.

    ``covariance`` (6, 6): left perturbation in the point's own frame.
    """
    x, y, z = point_mm
    to_shift = np.hstack([[[0.0, z, -y], [-z, 0.0, x], [y, -x, 0.0]], np.eye(3)])
    shift = to_shift @ covariance @ to_shift.T
    turn, way = (float(np.linalg.eigvalsh(part)[-1]) for part in (covariance[:3, :3], shift))
    return np.sqrt(max(turn, 0.0)), np.sqrt(max(way, 0.0))
