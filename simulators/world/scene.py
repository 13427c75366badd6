"""Owns where things truly are in the simulated room, and the log of that truth.

One seed gives one room, the same for every simulator process: each quantity has a random stream of its own, so that a
new quantity never moves the others.  Refuses anything that the navigation server computes: no registration, no
calibration, no distance of the server's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import ArrayLike

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import CT, REFERENCE, TRACKER, VOLUME, Array, Frame, Rigid, rotation_from_vector

ROOM: Final = Frame("room")
"""Operating table: +x towards the patient's head, +z up, origin at the planned target."""

LOG_FORMAT: Final = "navsrv-truth"


class Stream(IntEnum):
    """One random stream for each quantity that the seed decides."""

    PATIENT = 0
    REFERENCE = 1
    OARM = 2
    CARM = 3
    NOISE = 4
    TREMOR = 5
    CAMERA = 6
    PLACEMENT = 7
    BREATH = 8
    HAND = 9
    NEEDLE = 10
    MOTION = 11


def stream(seed: int, which: Stream) -> np.random.Generator:
    """Return the random generator of one quantity of the room with this seed."""
    return np.random.default_rng([seed, int(which)])


@dataclass(frozen=True, slots=True)
class Breathing:
    """Rise of the back of a prone patient.

    The displacement is ``amplitude (1 - cos^4(pi t / period))`` along the patient's posterior axis: long at exhale,
    short at inhale (Lujan 1999).  The reference is clamped to bone and rises with it.
    """

    amplitude_mm: float
    period_s: float = 4.0

    def displacement_mm(self, t_s: float) -> float:
        """Return the displacement along +P (mm) at a time (s)."""
        return float(self.amplitude_mm * (1.0 - np.cos(np.pi * t_s / self.period_s) ** 4))


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """The room: patient, reference and O-arm, as they truly are.

    Attributes
    ----------
    seed : int
    T_tracker_from_ct : Rigid
        The patient at rest (full exhale).
    T_ct_from_ref : Rigid
        The reference body, rigid to the patient's bone.
    T_tracker_from_volume : Rigid
        Where the O-arm's gantry holds its volume; origin at the isocentre, axes as the staff entered the patient (LPS).
    breathing : Breathing or None
    """

    seed: int
    T_tracker_from_ct: Rigid
    T_ct_from_ref: Rigid
    T_tracker_from_volume: Rigid
    breathing: Breathing | None = None

    @classmethod
    def from_seed(cls, seed: int, target_ct_mm: ArrayLike, breathing: Breathing | None = None) -> Scene:
        """Return the room of a seed, with the patient prone and the target in the camera's volume."""
        target = np.asarray(target_ct_mm, dtype=np.float64)
        T_tracker_from_ct = _patient_pose(stream(seed, Stream.PATIENT), target)
        T_ct_from_ref = _reference_pose(stream(seed, Stream.REFERENCE), target)
        T_ct_from_volume = _oarm_pose(stream(seed, Stream.OARM), target)
        return cls(seed, T_tracker_from_ct, T_ct_from_ref, T_tracker_from_ct @ T_ct_from_volume, breathing)

    def T_tracker_from_ct_at(self, t_s: float) -> Rigid:
        """Return the true pose of the patient's CT in the tracker at a time (s) that every simulator shares."""
        if self.breathing is None:
            return self.T_tracker_from_ct
        rest = self.T_tracker_from_ct
        rise = np.array([0.0, self.breathing.displacement_mm(t_s), 0.0])
        return Rigid(TRACKER, CT, rest.rotation, rest.apply(rise))

    @property
    def T_ct_from_volume(self) -> Rigid:
        """The O-arm's volume in the CT with the patient at rest: what the server must find by registration."""
        return self.T_tracker_from_ct.inverse() @ self.T_tracker_from_volume


def _patient_pose(rng: np.random.Generator, target_ct_mm: Array) -> Rigid:
    """Return T_tracker_from_ct: prone on the table, the camera at any azimuth, 1.5 to 2 m away, looking down at it."""
    # Prone and head along +x: left is room +y, posterior is up, superior is room +x.
    prone = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    lie = rotation_from_vector(rng.uniform(-1.0, 1.0, 3) * np.radians([8.0, 8.0, 8.0])) @ prone
    T_room_from_ct = Rigid(ROOM, CT, lie, -lie @ target_ct_mm)
    azimuth, elevation = rng.uniform(-np.pi, np.pi), np.radians(rng.uniform(25.0, 50.0))
    # An optical camera's +z points from the scene to the camera, so the scene lies at negative z.
    back = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    roll = rotation_from_vector([0.0, 0.0, rng.uniform(-np.pi, np.pi)])
    rotation = roll @ np.stack([right, np.cross(back, right), back])
    # Staff aim the camera at the field to 100 mm, so that hub and reference stay in its volume.
    centre = np.array([rng.uniform(-100.0, 100.0), rng.uniform(-100.0, 100.0), -rng.uniform(1500.0, 2000.0)])
    return Rigid(TRACKER, ROOM, rotation, centre) @ T_room_from_ct


def _reference_pose(rng: np.random.Generator, target_ct_mm: Array) -> Rigid:
    """Return T_ct_from_ref: clamped 100 to 160 mm from the target, above the back and to one side, turned anyhow."""
    side = rng.choice([-1.0, 1.0])
    offset = np.array([side * rng.uniform(40.0, 80.0), rng.uniform(70.0, 110.0), rng.uniform(40.0, 80.0)])
    return Rigid(CT, REFERENCE, _any_rotation(rng), target_ct_mm + offset)


def _oarm_pose(rng: np.random.Generator, target_ct_mm: Array) -> Rigid:
    """Return T_ct_from_volume: staff centre the target to 20 mm, and the patient lies to 8 degrees as entered."""
    rotation = rotation_from_vector(rng.uniform(-1.0, 1.0, 3) * np.radians(8.0))
    return Rigid(CT, VOLUME, rotation, target_ct_mm + rng.uniform(-20.0, 20.0, 3))


def _any_rotation(rng: np.random.Generator) -> Array:
    """Return a uniformly distributed rotation (3, 3) (QR of a Gaussian matrix, Mezzadri 2007)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    if np.linalg.det(q) < 0:
        q[:, 0] *= -1.0
    result: Array = q
    return result


def jitter(rng: np.random.Generator, pose: Rigid, noise_mm: float, noise_rad: float) -> Rigid:
    """Return a pose as a tracker would report it, turned and moved in its own frame.

    ``noise_mm`` and ``noise_rad`` are the root-mean-square length of the displacement and of the rotation vector.
    """
    turn = rotation_from_vector(rng.normal(0.0, 1.0, 3) * (noise_rad / np.sqrt(3.0)))
    move = rng.normal(0.0, 1.0, 3) * (noise_mm / np.sqrt(3.0))
    return Rigid(pose.to, pose.frm, pose.rotation @ turn, pose.translation_mm + move)


@dataclass(frozen=True, slots=True, eq=False)
class TruthRecord:
    """What was true at one pose: no noise, no latency.

    ``pose_time_ns`` is the stamp on the wire; ``sent_monotonic_ns`` the host's monotonic clock just before the write.
    """

    pose_time_ns: int
    sent_monotonic_ns: int
    phase: str
    visible: bool
    reference_visible: bool
    tip_ct_mm: Array
    axis_ct: Array

    def to_json(self) -> str:
        """Return one line of the log."""
        return json.dumps(
            {
                "pose_time_ns": self.pose_time_ns,
                "sent_monotonic_ns": self.sent_monotonic_ns,
                "phase": self.phase,
                "visible": self.visible,
                "reference_visible": self.reference_visible,
                "tip_ct_mm": [round(float(v), 6) for v in self.tip_ct_mm],
                "axis_ct": [round(float(v), 9) for v in self.axis_ct],
            }
        )


@dataclass(frozen=True, slots=True, eq=False)
class TruthLog:
    """The truth of one run of the tracker simulator."""

    seed: int
    rate_hz: float
    T_ct_from_ref: Rigid
    T_tracker_from_ct: Rigid
    records: tuple[TruthRecord, ...]

    @property
    def tip_ct_mm(self) -> Array:
        """(N, 3) true tips."""
        return np.array([r.tip_ct_mm for r in self.records]).reshape(-1, 3)

    @property
    def axis_ct(self) -> Array:
        """(N, 3) true unit vectors from hub to tip."""
        return np.array([r.axis_ct for r in self.records]).reshape(-1, 3)


def log_header(scene: Scene, rate_hz: float) -> str:
    """Return the first line of a truth log."""
    return json.dumps(
        {
            "format": LOG_FORMAT,
            "version": 1,
            "seed": scene.seed,
            "rate_hz": rate_hz,
            "T_ct_from_ref": scene.T_ct_from_ref.matrix.tolist(),
            "T_tracker_from_ct": scene.T_tracker_from_ct.matrix.tolist(),
        }
    )


def read_truth_log(path: Path) -> TruthLog:
    """Return a truth log; InputError when it is not one, or when a line is torn."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as e:
        raise InputError(f"{path}: {e.strerror}; expected the file that --truth wrote") from e
    number = 1
    records = []
    try:
        head = json.loads(lines[0])
        if head["format"] != LOG_FORMAT:
            raise ValueError(f"format is {head['format']!r}, expected {LOG_FORMAT!r}")
        for line in lines[1:]:
            number += 1
            r = json.loads(line)
            r.pop("tools", None)
            r["tip_ct_mm"], r["axis_ct"] = np.array(r["tip_ct_mm"]), np.array(r["axis_ct"])
            records.append(TruthRecord(**r))
        return TruthLog(
            head["seed"],
            head["rate_hz"],
            Rigid.from_matrix(CT, REFERENCE, head["T_ct_from_ref"]),
            Rigid.from_matrix(TRACKER, CT, head["T_tracker_from_ct"]),
            tuple(records),
        )
    except (IndexError, KeyError, TypeError, ValueError) as e:
        raise InputError(f"{path}: line {number} is not a truth log's: {e}") from e


class ExactDistance(Protocol):
    """Exact signed distances (mm) to each structure of a case, by name: ``Truth``, or closed forms in a test."""

    def distance(self, point_mm: Array, names: tuple[str, ...] | None = None) -> Mapping[str, Array]:
        """Return the distance (N,) of points (N, 3), to all structures or to those named."""
        ...

    def shaft_distance(
        self, tip_mm: Array, hub_mm: Array, radius_mm: float, names: tuple[str, ...] | None = None
    ) -> Mapping[str, Array]:
        """Return the smallest distance (N,) of the axes from hubs (N, 3) to tips (N, 3), less the radius."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class TrueClearance:
    """True distances (N,) mm of tip and shaft to one structure, one for each record of a log."""

    tip_mm: Array
    shaft_mm: Array


def truth_distances(
    log: TruthLog, truth: ExactDistance, radius_mm: float, length_mm: float
) -> dict[str, TrueClearance]:
    """Return the true clearance of the needle to each structure over a log, for a shaft of that radius and length."""
    tips = log.tip_ct_mm
    hubs = tips - length_mm * log.axis_ct
    shaft = truth.shaft_distance(tips, hubs, radius_mm)
    return {name: TrueClearance(tip, shaft[name]) for name, tip in truth.distance(tips).items()}
