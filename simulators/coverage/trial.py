"""Owns one trial: calibrate, register, approach, and hold every bound of the last frame against the truth.

Each trial calibrates tip and axis anew from recordings, registers anew, and goes through the whole pipeline from bytes
on, with the shipped configuration.  The truth (``world``, ``simulators.world.truth``) shares no code with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from calibration.landmarks import solve_landmarks
from calibration.pivot import solve_pivot
from calibration.spin import solve_spin
from navsrv.guidance.bending import bending_sigma_mm
from navsrv.guidance.clearance import ClearanceEngine
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import REFERENCE, Array
from navsrv.kernel.registration import Verdict
from navsrv.pipeline.inputs import BytesIn, CommandIn, LinkUp, RegistrationIn
from navsrv.pipeline.pipeline import Pipeline
from navsrv.wire.guidance import GuidanceFrame
from navsrv.wire.openigtlink import Message, Metadata, Transform, encode, timestamp_from_ns
from simulators.composition import Composition
from simulators.coverage.heldout import HeldOut
from simulators.coverage.world import (
    Anatomy,
    Errors,
    Needle,
    Patient,
    Tracker,
    heavy,
    pivot_recording,
    rigid,
    spin_recording,
    turned,
)
from simulators.world.truth import Truth

STRUCTURES: Final = (
    "S1 root left",
    "S2 root right",
    "Lumbosacral trunk left",
    "Sacral canal",
    "S2 foramen right",
    "Common iliac vein left",
    "Internal iliac artery right",
    "Rectum",
)
NEEDLES: Final = ((3.05, 150.0), (2.41, 150.0), (1.47, 120.0), (1.27, 100.0))
"""Diameter and length (mm): bone cannula, 13 G, 17 G and 18 G."""
RATE_HZ: Final = 60.0
POSES: Final = 16
LANDMARKS: Final = 6
EPOCH_NS: Final = 1_700_000_000_000_000_000
START_NS: Final = 1_000_000_000
METHODS: Final = ("landmarks", "cbct")
DIRECTIONS: Final = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One bound of one frame against the truth, mm."""

    structure: str
    part: str
    method: str
    true_mm: float
    distance_mm: float
    sigma_mm: float
    lower_mm: float

    @property
    def covered(self) -> bool:
        """Whether the structure is as far away as was promised."""
        return self.true_mm >= self.lower_mm


@dataclass(frozen=True, slots=True)
class Trial:
    """The bounds of one trial, and the error of its registration over the sigma that it says of itself.

    ``registration_z`` are the errors at the tip along ``DIRECTIONS`` random directions, not inflated by anything;
    ``drawn`` says which of the registrations held out it was, else the trial's own seed.
    """

    seed: int
    method: str
    rows: tuple[Row, ...]
    registration_z: tuple[float, ...]
    drawn: int


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """What all trials share: the case, its truth, and registrations held out that their own verdict did not refuse."""

    composition: Composition
    truth: Truth
    vertices: Mapping[str, Array]
    held_out: Sequence[HeldOut]
    target_ct_mm: Array
    direction_ct: Array
    errors: Errors = field(default_factory=Errors)
    needles: Sequence[tuple[float, float]] = NEEDLES
    methods: Sequence[str] = METHODS
    recording: int = 200
    """Poses of each calibration's recording."""

    @classmethod
    def open(
        cls, config: Path, case_folder: Path, held_out: Sequence[HeldOut], names: Sequence[str] = STRUCTURES
    ) -> Room:
        """Return the room of a case with the structures of these names."""
        composition = Composition.load(config, case_folder)
        setup = replace(composition.setup, structures=tuple(s for s in composition.setup.structures if s.name in names))
        engine = ClearanceEngine([s.distance for s in setup.structures])
        path = setup.path
        used = [h for h in held_out if h.verdict != "refuse"]
        assert path is not None
        meshes = {name: composition.case.mesh(name).vertices_mm for name in names}
        return cls(
            replace(composition, setup=setup, engine=engine),
            Truth.from_case(case_folder),
            meshes,
            used,
            np.array(path.target_ct_mm),
            np.array(path.direction_ct),
        )


def run_trial(room: Room, seed: int) -> Trial:
    """Return the bounds of one trial against the truth."""
    rng, errors = np.random.default_rng([2026, seed]), room.errors
    tracker, patient = Tracker(rng, errors), Patient.lying(rng, room.target_ct_mm, errors.breath_mm)
    needle = _needle(rng, room)
    tip, axis, tip_sigma, axis_sigma = _calibrated(rng, tracker, needle, room)
    method = room.methods[seed % len(room.methods)]
    touch = _Touch(rng, tracker, patient, needle, tip)
    drawn = seed if method == "landmarks" else int(rng.integers(len(room.held_out)))
    registration = (
        _landmarks(rng, room, touch)
        if method == "landmarks"
        else _cbct(rng, room, tracker, patient, room.held_out[drawn])
    )
    tool = replace(
        room.composition.setup.tools[0],
        tip_mm=tip,
        axis=axis,
        tip_sigma_mm=tip_sigma,
        axis_sigma_rad=axis_sigma,
        radius_mm=0.5 * needle.diameter_mm,
        length_mm=needle.length_mm,
        bending_sigma_mm=bending_sigma_mm(needle.diameter_mm, needle.length_mm),
    )
    pipeline = Pipeline(replace(room.composition.setup, tools=(tool,)), room.composition.engine)
    frame, tip_ct, axis_ct = _approach(rng, room, tracker, patient, needle, pipeline, registration)
    anatomy = Anatomy.of_today(rng, errors, {s.name: s.follows is None for s in room.composition.case.structures})
    rows = _judged(room, frame, needle, anatomy, tip_ct, axis_ct, method)
    return Trial(seed, method, tuple(rows), _registration_z(rng, patient, registration, tip_ct), drawn)


def _needle(rng: np.random.Generator, room: Room) -> Needle:
    diameter, length = room.needles[int(rng.integers(len(room.needles)))]
    tip = np.array([4.0, -7.0, length + 30.0]) + rng.normal(0.0, 3.0, 3)
    axis = np.array([0.02, -0.03, 1.0]) + rng.normal(0.0, 0.02, 3)
    return Needle(tip, axis / np.linalg.norm(axis), diameter, length, room.errors.push_n * heavy(rng, (3,)))


def _calibrated(
    rng: np.random.Generator, tracker: Tracker, needle: Needle, room: Room
) -> tuple[Array, Array, float, float]:
    """Return tip, axis and their sigmas from recordings that the verdict did not refuse."""
    while True:
        try:
            pivot = solve_pivot(pivot_recording(rng, tracker, needle, room.recording, room.errors.seat_mm))
            spin = solve_spin(spin_recording(rng, tracker, needle, room.recording), tip_tool_mm=pivot.tip_tool_mm)
        except CalibrationError:
            continue
        if Verdict.REFUSE not in (pivot.verdict, spin.verdict):
            return pivot.tip_tool_mm, spin.axis_tool, pivot.tip_sigma_mm, spin.axis_sigma_rad


@dataclass(frozen=True, slots=True, eq=False)
class _Touch:
    """A pointer that touches points of the CT; what it says of them is in the reference's frame."""

    rng: np.random.Generator
    tracker: Tracker
    patient: Patient
    needle: Needle
    calibrated_tip_mm: Array

    def point(self, point_ct_mm: Array, t_s: float) -> Array:
        """Return the point (3,) in the reference's frame as the calibrated tool has it."""
        stance = turned(self.rng.normal(0.0, 0.35, 3)) @ self.patient.T_tracker_from_ct[:3, :3]
        at = self.patient.at(np.array([t_s]))
        point = (at[0] @ [*point_ct_mm, 1.0])[:3]
        tool = self.tracker.sees(rigid(stance, point - stance @ self.needle.tip_tool_mm)[None])[0]
        reference = self.tracker.sees(at @ self.patient.T_ct_from_ref)[0]
        result: Array = (np.linalg.inv(reference) @ tool @ [*self.calibrated_tip_mm, 1.0])[:3]
        return result


def _landmarks(rng: np.random.Generator, room: Room, touch: _Touch) -> RegistrationIn:
    """Return a registration by landmarks about the target: picked, touched, one of them wrong; none that is refused."""
    for attempt in range(20):
        true = room.target_ct_mm + rng.normal(size=(LANDMARKS, 3)) * [45.0, 18.0, 45.0]
        picked = true + heavy(rng, (LANDMARKS, 3)) * room.errors.picked_mm
        where = true + room.errors.touched_mm * heavy(rng, (LANDMARKS, 3))
        off = rng.normal(size=3)
        where[0] += room.errors.knocked_mm * off / np.linalg.norm(off)
        touched = np.array([touch.point(p, 0.7 * i) for i, p in enumerate(where)])
        try:
            found = solve_landmarks(touched, picked, frm=REFERENCE, target_ct_mm=room.target_ct_mm)
        except CalibrationError:
            continue
        if found.verdict is Verdict.ACCEPT or (found.verdict is Verdict.DOUBT and attempt % 2):
            break
    assert found.transform.covariance is not None
    return _proposal("landmarks", found.transform.matrix, found.transform.covariance)


def _cbct(rng: np.random.Generator, room: Room, tracker: Tracker, patient: Patient, drawn: HeldOut) -> RegistrationIn:
    """Return a registration by a volume, off by what a real one was off by."""
    middle = room.target_ct_mm + rng.normal(0.0, 15.0, 3)
    mirror = np.diag(rng.choice([-1.0, 1.0], 3))
    turn = np.linalg.det(mirror) * mirror @ drawn.error[:3]  # a mirror image of a turn turns the other way
    wrong = rigid(turned(turn), middle + mirror @ drawn.error[3:] - turned(turn) @ middle)
    about = _about_origin(middle)
    flip = np.zeros((6, 6))
    flip[:3, :3], flip[3:, 3:] = np.linalg.det(mirror) * mirror, mirror
    covariance = about @ flip @ drawn.covariance @ flip.T @ about.T
    # The link: the image's own pose and the reference's, each seen once.
    T_ct_from_volume = rigid(turned(rng.normal(0.0, 0.1, 3)), middle)
    T_tracker_from_ct = patient.at(np.array([2.0]))
    volume = tracker.sees(T_tracker_from_ct @ T_ct_from_volume)[0]
    reference = tracker.sees(T_tracker_from_ct @ patient.T_ct_from_ref)[0]
    T_ct_from_ref = wrong @ T_ct_from_volume @ np.linalg.inv(volume) @ reference
    source = room.composition.setup.sources[0]
    link = np.diag([2.0 * source.noise_rad**2] * 3 + [2.0 * source.noise_mm**2] * 3)
    link_about = _about_origin(T_ct_from_ref[:3, 3])
    return _proposal("cbct", T_ct_from_ref, covariance + link_about @ link @ link_about.T)


def _about_origin(point_mm: Array) -> Array:
    """Return the (6, 6) that takes (turn, shift) about a point to (turn, shift) about the origin: t = s + p x w."""
    x, y, z = point_mm
    result = np.eye(6)
    result[3:, :3] = [[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]
    return result


def _proposal(method: str, matrix: Array, covariance: Array) -> RegistrationIn:
    symmetric = 0.5 * (covariance + covariance.T)
    return RegistrationIn(
        START_NS, "r1", method, tuple(matrix.ravel().tolist()), tuple(symmetric.ravel().tolist()), 1.0, "accept", ""
    )


def _approach(
    rng: np.random.Generator,
    room: Room,
    tracker: Tracker,
    patient: Patient,
    needle: Needle,
    pipeline: Pipeline,
    registration: RegistrationIn,
) -> tuple[GuidanceFrame, Array, Array]:
    """Return the last frame of an approach, and where the unbent tip and axis are in CT when it is made."""
    errors, names = room.errors, tuple(room.vertices)
    vertices = room.vertices[names[int(rng.integers(len(names)))]]
    away = rng.normal(size=3)
    goal = vertices[int(rng.integers(len(vertices)))] + rng.uniform(0.5, 18.0) * away / np.linalg.norm(away)
    axis = room.direction_ct + rng.normal(0.0, 0.35, 3)
    axis /= np.linalg.norm(axis)
    velocity = rng.choice([0.0, 1.0, 1.0]) * (
        errors.speed_mm_s * rng.uniform(-0.5, 1.0) * axis + rng.normal(0.0, 0.13 * errors.speed_mm_s, 3)
    )
    latency_s = float(np.clip(errors.late_s + errors.late_spread_s * heavy(rng, (1,))[0], 0.004, 0.06))
    t = np.arange(POSES) / RATE_HZ
    end_s = t[-1] + latency_s
    T_tracker_from_ct = patient.at(t)
    R_ct_from_tool = _facing(axis, needle.axis_tool, float(rng.uniform(0.0, 6.3)))
    tips = goal + (t - end_s)[:, None] * velocity
    poses = np.tile(np.eye(4), (POSES, 1, 1))
    poses[:, :3, :3] = R_ct_from_tool
    poses[:, :3, 3] = tips - R_ct_from_tool @ needle.tip_tool_mm
    tools = tracker.sees(T_tracker_from_ct @ poses)
    references = tracker.sees(T_tracker_from_ct @ patient.T_ct_from_ref)
    source = room.composition.setup.sources[0].spec.name
    pipeline.handle(LinkUp(START_NS, source))
    pipeline.handle(registration)
    pipeline.handle(CommandIn(START_NS, "c", "accept_registration", {"id": "r1"}, "operator"))
    torn = rng.uniform() < errors.torn
    frame = None
    for i in range(POSES):
        stamp = timestamp_from_ns(EPOCH_NS + round(1e9 * t[i]))
        parts = [] if torn and i == POSES - 1 else [("ReferenceToTracker", references[i])]
        data = b"".join(
            encode(Message(name, stamp, Transform(pose), metadata=(Metadata("TransformStatus", "OK"),)))
            for name, pose in [*parts, ("NeedleToTracker", tools[i])]
        )
        now_ns = START_NS + round(1e9 * (t[i] + latency_s))
        outputs = pipeline.handle(BytesIn(source, now_ns, EPOCH_NS + now_ns - START_NS, data))
        frame = next(o for o in outputs if isinstance(o, GuidanceFrame))
    assert frame is not None
    assert frame.tip_ct_mm is not None, frame.reason
    return frame, goal, axis


def _registration_z(
    rng: np.random.Generator, patient: Patient, registration: RegistrationIn, tip: Array
) -> tuple[float, ...]:
    """Return how far off the registration alone puts the tip, in its own sigmas, along random directions."""
    found = np.array(registration.T_ct_from_ref).reshape(4, 4)
    seen = (found @ np.linalg.inv(patient.T_ct_from_ref) @ [*tip, 1.0])[:3]
    covariance = np.array(registration.covariance).reshape(6, 6)
    z = []
    for direction in rng.normal(size=(DIRECTIONS, 3)):
        n = direction / np.linalg.norm(direction)
        row = np.concatenate([np.cross(seen, n), n])
        z.append(float((seen - tip) @ n / np.sqrt(row @ covariance @ row)))
    return tuple(z)


def _facing(axis_ct: Array, axis_tool: Array, roll_rad: float) -> Array:
    """Return a rotation (3, 3) that takes the tool's axis to the CT's."""
    cross, cosine = np.cross(axis_tool, axis_ct), float(axis_tool @ axis_ct)
    sine = float(np.linalg.norm(cross))
    onto = turned(cross / max(sine, 1e-12) * np.arctan2(sine, cosine))
    result: Array = turned(roll_rad * axis_ct) @ onto
    return result


def _judged(
    room: Room, frame: GuidanceFrame, needle: Needle, anatomy: Anatomy, tip: Array, axis: Array, method: str
) -> list[Row]:
    rows: list[Row] = []
    for row in frame.structures:
        assert row.distance_mm is not None
        assert row.sigma_mm is not None
        assert row.lower_mm is not None
        bias, shift = anatomy.bias_mm[row.name], anatomy.shift_ct_mm[row.name]
        along = np.arange(0.0, needle.length_mm, 1.0) if row.part == "shaft" else np.zeros(1)
        at = room.truth.distance(needle.curve(tip, axis, along) - shift, (row.name,))[row.name]
        if row.part == "shaft":
            best = along[int(np.argmin(at))]
            finer = np.clip(best + np.linspace(-1.2, 1.2, 49), 0.0, needle.length_mm)
            at = room.truth.distance(needle.curve(tip, axis, finer) - shift, (row.name,))[row.name]
        true = float(np.min(at)) - bias - (0.5 * needle.diameter_mm if row.part == "shaft" else 0.0)
        rows.append(Row(row.name, row.part, method, true, row.distance_mm, row.sigma_mm, row.lower_mm))
    return rows
