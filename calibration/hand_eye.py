"""Owns the relation of two bodies that move together but are seen from different places: hand-eye and robot-world.

Both are one statement, ``T_base_from_hand X T_eye_from_world = Z`` at every instant, with ``X = T_hand_from_eye`` and
``Z = T_base_from_world`` unknown.  AX = XB looks at motions between instants first, AX = ZB at poses; the refinement is
the same.  Refuses motion about one axis (translation along it cannot be found) and motions that are not of one body.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

import cv2
import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

from calibration.paired import about_origin
from calibration.poses import (
    Findings,
    checked_poses,
    jackknife_covariance,
    least_spread_deg,
    left_out_shifts,
    rms,
    scores,
    time_blocks,
)
from calibration.template import MeanTransform, mean_transform, paired_poses
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import (
    Array,
    Frame,
    Rigid,
    frozen_array,
    nearest_rotation,
    rotation_from_vector,
    skew,
)
from navsrv.kernel.registration import Verdict, tre_rms_mm

MIN_POSES: Final = 10
SCANS_THAT_CHECK: Final = 3
"""Scans from which their own scatter says how sure the mean is."""
STEPS: Final = 20
START_POSES: Final = 25
"""Poses that the start is found from, spread over the recording."""


class Start(Enum):
    """What the refinement starts from: motions (AX = XB) or poses (AX = ZB)."""

    HAND_EYE = "hand-eye"
    ROBOT_WORLD = "robot-world"


@dataclass(frozen=True, slots=True)
class HandEyeLimits:
    """Thresholds: too little spread and motions of different angle are bad data, the others decide the verdict."""

    spread_refuse_deg: float = 4.0
    spread_accept_deg: float = 8.0
    mismatch_refuse_deg: float = 5.0
    """Largest median difference between the two bodies' angles of turning, which no frame changes."""
    sigma_accept_mm: float = 0.5
    sigma_refuse_mm: float = 2.0
    sigma_accept_deg: float = 0.3
    sigma_refuse_deg: float = 1.5
    residual_accept_mm: float = 1.0
    residual_refuse_mm: float = 5.0
    residual_accept_deg: float = 0.5
    residual_refuse_deg: float = 3.0
    leave_out_accept_mm: float = 0.5
    leave_out_refuse_mm: float = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class HandEyeResult:
    """Both unknown transforms.

    Attributes
    ----------
    hand_from_eye : Rigid
        X with its covariance.
    base_from_world : Rigid
        Z with its covariance; not independent of X.
    residuals : (N, 6)
        Each row's error of Z as (rotation in radians, translation in mm at the world's origin), in the base.
    residual_mm, residual_rad : float
        Root mean square per axis.
    verdict : Verdict
    reason : str
    details : tuple of (str, float)
    """

    hand_from_eye: Rigid
    base_from_world: Rigid
    residuals: Array
    residual_mm: float
    residual_rad: float
    verdict: Verdict
    reason: str
    details: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, eq=False)
class GantryResult:
    """Where a scanner's volume lies against the markers on its gantry.

    Attributes
    ----------
    gantry_from_volume : Rigid
        With covariance.
    residuals : (N, 6)
        Each scan's error (rotation in radians, translation in mm, left, in the gantry's frame).
    tre_mm : float
        Predicted rms error at ``target_volume_mm``.
    verdict : Verdict
    reason : str
    details : tuple of (str, float)
    """

    gantry_from_volume: Rigid
    residuals: Array
    tre_mm: float
    verdict: Verdict
    reason: str
    details: tuple[tuple[str, float], ...]


def solve_hand_eye(
    base_from_hand: ArrayLike,
    eye_from_world: ArrayLike,
    *,
    base: Frame,
    hand: Frame,
    eye: Frame,
    world: Frame,
    start: Start = Start.HAND_EYE,
    limits: HandEyeLimits | None = None,
) -> HandEyeResult:
    """Return ``T_hand_from_eye`` and ``T_base_from_world`` with covariance and verdict.

    Parameters
    ----------
    base_from_hand, eye_from_world : (N, 4, 4)
        Row by row of one instant, millimetres: a tracked or driven body, and what the eye on it sees of the world.

    Raises
    ------
    CalibrationError
        Bad poses, unequal counts, rotations that spread too little, motions that are not of one body.
    """
    limits = limits or HandEyeLimits()
    a, b = paired_poses(base_from_hand, eye_from_world, ("hand", "eye"), MIN_POSES)
    spread_deg = least_spread_deg(a[:, :3, :3])
    if spread_deg < limits.spread_refuse_deg:
        raise CalibrationError(
            f"hand poses: the rotations spread {spread_deg:.2f} deg about the weakest axis, at least "
            f"{limits.spread_refuse_deg:g} deg needed; turn the hand about two axes or more"
        )
    _check_one_body(a, b, limits)
    rotation, offset = _start(a, b, start)
    x, z, residuals, jacobian = _refined(a, b, rotation, offset)
    noise = _channel_noise(residuals)
    blocks, owed = time_blocks(scores(jacobian / noise[:, None], residuals / noise))
    shifts = left_out_shifts(jacobian / noise[:, None], residuals / noise, blocks)
    covariance = jackknife_covariance(shifts) * owed
    covariance = 0.5 * (covariance + covariance.T)
    hand_from_eye = Rigid(hand, eye, x[:3, :3], x[:3, 3], covariance[:6, :6])
    base_from_world = Rigid(base, world, z[:3, :3], z[:3, 3], covariance[6:, 6:])
    # The perturbation is about the hand's origin; the eye's own shift is what a person asks for.
    to_eye = np.hstack([-skew(x[:3, 3]), np.eye(3)])
    figures = {
        "poses": float(len(a)),
        "spread_deg": spread_deg,
        "residual_mm": rms(residuals[:, 3:]),
        "residual_deg": float(np.rad2deg(rms(residuals[:, :3]))),
        "eye_sigma_mm": tre_rms_mm(hand_from_eye, x[:3, 3]),
        "eye_sigma_deg": float(np.rad2deg(np.sqrt(np.trace(covariance[:3, :3])))),
        "world_sigma_mm": tre_rms_mm(base_from_world, z[:3, 3]),
        "world_sigma_deg": float(np.rad2deg(np.sqrt(np.trace(covariance[6:9, 6:9])))),
        "leave_out_mm": float(np.linalg.norm(shifts[:, :6] @ to_eye.T, axis=1).max()),
        "blocks": float(blocks.max() + 1),
    }
    verdict, reason = _judge(limits, figures)
    return HandEyeResult(
        hand_from_eye,
        base_from_world,
        frozen_array(residuals, residuals.shape),
        figures["residual_mm"],
        rms(residuals[:, :3]),
        verdict,
        reason,
        tuple(figures.items()),
    )


def solve_robot_world(
    base_from_hand: ArrayLike,
    eye_from_world: ArrayLike,
    *,
    base: Frame,
    hand: Frame,
    eye: Frame,
    world: Frame,
    limits: HandEyeLimits | None = None,
) -> HandEyeResult:
    """Return the same as ``solve_hand_eye``, started from the poses themselves (AX = ZB) instead of their motions."""
    return solve_hand_eye(
        base_from_hand,
        eye_from_world,
        base=base,
        hand=hand,
        eye=eye,
        world=world,
        start=Start.ROBOT_WORLD,
        limits=limits,
    )


def solve_gantry(
    tracker_from_gantry: ArrayLike,
    tracker_from_reference: ArrayLike,
    volume_from_reference: ArrayLike,
    *,
    gantry: Frame,
    volume: Frame,
    target_volume_mm: ArrayLike,
    registration_sigma: tuple[float, float] = (0.01, 1.0),
    limits: HandEyeLimits | None = None,
) -> GantryResult:
    """Return ``T_gantry_from_volume`` for automatic registration: markers on the gantry stand for its volume.

    Afterwards each scan is registered by seeing the gantry: ``T_tracker_from_volume = T_tracker_from_gantry @ result``
    (``Rigid`` carries the covariance along).  One scan is enough to go on with, and leaves nothing to check it by.

    Parameters
    ----------
    tracker_from_gantry, tracker_from_reference : (N, 4, 4)
        At the moment of each scan.
    volume_from_reference : (N, 4, 4)
        How each scan's volume was registered to the reference (landmarks of a phantom, or ``navsrv register``).
    target_volume_mm : (3,)
        Where the error matters, in the volume.
    registration_sigma : (radians, mm)
        Of one scan's registration, an axis, at its middle: believed where fewer than ``SCANS_THAT_CHECK`` scans cannot
        say it themselves.

    Raises
    ------
    CalibrationError
        Bad poses, unequal counts.
    """
    limits = limits or HandEyeLimits()
    a, b = paired_poses(tracker_from_gantry, tracker_from_reference, ("gantry", "reference"), 1)
    target = np.asarray(target_volume_mm, dtype=np.float64)
    if target.shape != (3,) or not np.isfinite(target).all():
        raise CalibrationError(f"target must be three finite millimetres, got {target_volume_mm!r}")
    if len(np.asarray(volume_from_reference)) != len(a):
        raise CalibrationError(
            f"{len(a)} different gantry poses against {len(np.asarray(volume_from_reference))} registrations: "
            "each scan needs both"
        )
    c = checked_poses(volume_from_reference, "registrations", 1)
    seen = np.linalg.inv(a) @ b @ np.linalg.inv(c)
    if len(a) < SCANS_THAT_CHECK:
        mean = _stated_mean(seen, gantry, volume, target, registration_sigma)
    else:
        mean = mean_transform(seen, to=gantry, frm=volume)
    at_target = mean.transform.apply(target)
    tre = tre_rms_mm(mean.transform, at_target) * (_few(mean) if len(a) >= SCANS_THAT_CHECK else 1.0)
    misses = mean.errors @ np.hstack([-skew(at_target), np.eye(3)]).T
    worst = float(np.linalg.norm(misses, axis=1).max())
    found = Findings()
    found.grade("predicted error at the target", tre, limits.sigma_accept_mm, limits.sigma_refuse_mm, "mm")
    found.grade("a scan misses the mean by", worst, limits.residual_accept_mm, limits.residual_refuse_mm, "mm")
    if len(a) < SCANS_THAT_CHECK:
        found.doubt.append(f"{len(a)} scan{'s' * (len(a) > 1)}: too few to say how sure they are; scan a phantom again")
    verdict, reason = found.verdict(f"predicted error at the target {tre:.2f} mm (rms) from {len(a)} scans")
    details = (("scans", float(len(a))), ("tre_mm", tre), ("worst_scan_mm", worst), ("residual_mm", rms(misses)))
    return GantryResult(mean.transform, frozen_array(mean.errors, mean.errors.shape), tre, verdict, reason, details)


def _stated_mean(
    seen: Array, gantry: Frame, volume: Frame, target_mm: Array, sigma: tuple[float, float]
) -> MeanTransform:
    """Return the mean of one or two views with the covariance that a registration is stated to have."""
    if not (sigma[0] > 0.0 and sigma[1] > 0.0):
        raise CalibrationError(f"the error of a registration must be positive, got {sigma[0]} rad and {sigma[1]} mm")
    rotation = nearest_rotation(seen[:, :3, :3].sum(axis=0))
    middle = (seen[:, :3, :3] @ target_mm + seen[:, :3, 3]).mean(axis=0)
    covariance = about_origin(np.diag([sigma[0] ** 2] * 3 + [sigma[1] ** 2] * 3) / len(seen), middle)
    errors = np.zeros((len(seen), 6))
    errors[:, :3] = Rotation.from_matrix(seen[:, :3, :3] @ rotation.T).as_rotvec()
    at = seen[:, :3, :3] @ target_mm + seen[:, :3, 3]
    errors[:, 3:] = at - middle - np.cross(errors[:, :3], middle)
    return MeanTransform(Rigid(gantry, volume, rotation, middle - rotation @ target_mm, covariance), errors, len(seen))


def _few(mean: MeanTransform) -> float:
    """Return the factor that few scans owe their own scatter: Student's t against a normal, 68 %."""
    from scipy.stats import t

    return float(t.ppf(0.8413, mean.blocks - 1))


def _check_one_body(a: Array, b: Array, limits: HandEyeLimits) -> None:
    """Refuse motions whose angles differ: they are the same in every frame, mirrors and wrong partners change them."""
    lag = max(1, len(a) // 4)
    turns = []
    for p in (a, b):
        turn = np.einsum("nji,njk->nik", p[:-lag, :3, :3], p[lag:, :3, :3])
        turns.append(Rotation.from_matrix(turn).magnitude())
    mismatch_deg = float(np.rad2deg(np.median(np.abs(turns[0] - turns[1]))))
    if mismatch_deg > limits.mismatch_refuse_deg:
        raise CalibrationError(
            f"hand and eye turn by angles that differ by {mismatch_deg:.1f} deg (median), at most "
            f"{limits.mismatch_refuse_deg:g} deg expected of one body: rows of different instants, or one is mirrored"
        )


def _start(a: Array, b: Array, start: Start) -> tuple[Array, Array]:
    """Return X's rotation (3, 3) and translation (3,) in closed form."""
    rows = np.unique(np.linspace(0, len(a) - 1, START_POSES).astype(int))
    a, b = a[rows], b[rows]
    try:
        if start is Start.HAND_EYE:
            rotation, offset = cv2.calibrateHandEye(
                list(a[:, :3, :3]),
                list(a[:, :3, 3]),
                list(b[:, :3, :3]),
                list(b[:, :3, 3]),
                method=cv2.CALIB_HAND_EYE_PARK,
            )
        else:
            inverse = np.linalg.inv(a)
            _, _, gripper_rotation, gripper_offset = cv2.calibrateRobotWorldHandEye(
                list(b[:, :3, :3]),
                list(b[:, :3, 3]),
                list(inverse[:, :3, :3]),
                list(inverse[:, :3, 3]),
                method=cv2.CALIB_ROBOT_WORLD_HAND_EYE_SHAH,
            )
            rotation = np.asarray(gripper_rotation).T
            offset = -rotation @ np.asarray(gripper_offset).ravel()
    except cv2.error as error:
        raise CalibrationError(f"hand and eye poses: no start of the solution ({error.err})") from None
    found_rotation, found_offset = np.asarray(rotation, dtype=np.float64), np.asarray(offset, dtype=np.float64).ravel()
    if not (np.isfinite(found_rotation).all() and np.isfinite(found_offset).all()):
        raise CalibrationError("hand and eye poses: the closed form is not finite; the motions do not determine it")
    return nearest_rotation(found_rotation), found_offset


def _refined(a: Array, b: Array, rotation: Array, offset: Array) -> tuple[Array, Array, Array, Array]:
    """Return X, Z (4, 4), residuals (N, 6) and their derivatives (N, 6, 12) by left perturbations of X and Z.

    Gauss-Newton; rotations and translations are weighed by their own noise, found from the residuals.
    """
    x = np.eye(4)
    x[:3, :3], x[:3, 3] = rotation, offset
    seen = a @ x @ b
    z = np.eye(4)
    z[:3, :3], z[:3, 3] = nearest_rotation(seen[:, :3, :3].sum(axis=0)), seen[:, :3, 3].mean(axis=0)
    for _ in range(STEPS):
        residuals, jacobian = _linearised(a, b, x, z)
        noise = _channel_noise(residuals)
        flat = (jacobian / noise[:, None]).reshape(-1, 12)
        sizes = np.linalg.norm(flat, axis=0)
        step = np.linalg.lstsq(flat / sizes, (residuals / noise).ravel(), rcond=None)[0] / sizes
        x, z = _moved(x, step[:6]), _moved(z, step[6:])
        if float(np.abs(step[:3]).max()) < 1e-10 and float(np.abs(step[3:6]).max()) < 1e-7:
            break
    residuals, jacobian = _linearised(a, b, x, z)
    return x, z, residuals, jacobian


def _linearised(a: Array, b: Array, x: Array, z: Array) -> tuple[Array, Array]:
    """Return residuals (N, 6) ``A X B`` against Z, and the model's derivatives (N, 6, 12): residual = -J step."""
    seen = a @ x @ b
    turned = seen[:, :3, :3] @ z[:3, :3].T
    residuals = np.empty((len(a), 6))
    residuals[:, :3] = -Rotation.from_matrix(turned).as_rotvec()
    residuals[:, 3:] = z[:3, 3] - seen[:, :3, 3]
    jacobian = np.zeros((len(a), 6, 12))
    jacobian[:, :3, :3] = a[:, :3, :3]
    # X moves what the eye saw, in the hand's frame: w x (X B's origin) + t.
    at_hand = (x @ b)[:, :3, 3]
    cross = np.zeros((len(a), 3, 3))
    cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -at_hand[:, 2], at_hand[:, 1], -at_hand[:, 0]
    cross -= cross.transpose(0, 2, 1)
    jacobian[:, 3:, :3] = -a[:, :3, :3] @ cross
    jacobian[:, 3:, 3:6] = a[:, :3, :3]
    jacobian[:, :3, 6:9] = -np.eye(3)
    jacobian[:, 3:, 6:9] = skew(z[:3, 3])
    jacobian[:, 3:, 9:] = -np.eye(3)
    return residuals, jacobian


def _channel_noise(residuals: Array) -> Array:
    """Return the noise (6,) of a row's rotation and translation."""
    turn, shift = max(rms(residuals[:, :3]), 1e-9), max(rms(residuals[:, 3:]), 1e-6)
    return np.array([turn, turn, turn, shift, shift, shift])


def _moved(transform: Array, twist: Array) -> Array:
    """Return a (4, 4) transform after the left perturbation (rotation_rad, translation_mm)."""
    moved = np.eye(4)
    turn = rotation_from_vector(twist[:3])
    moved[:3, :3] = nearest_rotation(turn @ transform[:3, :3])
    moved[:3, 3] = turn @ transform[:3, 3] + twist[3:]
    return moved


def _judge(limits: HandEyeLimits, figures: dict[str, float]) -> tuple[Verdict, str]:
    """Return the verdict and the numbers that decided it."""
    found = Findings()
    rows = (
        ("predicted error of the eye (rms)", "eye_sigma_mm", "mm", limits.sigma_accept_mm, limits.sigma_refuse_mm),
        ("predicted error of the eye (rms)", "eye_sigma_deg", "deg", limits.sigma_accept_deg, limits.sigma_refuse_deg),
        ("noisy: residual per axis", "residual_mm", "mm", limits.residual_accept_mm, limits.residual_refuse_mm),
        ("noisy: rotation per axis", "residual_deg", "deg", limits.residual_accept_deg, limits.residual_refuse_deg),
        (
            "the eye moves when part of the recording is left out:",
            "leave_out_mm",
            "mm",
            limits.leave_out_accept_mm,
            limits.leave_out_refuse_mm,
        ),
    )
    for what, name, unit, accept, refuse in rows:
        found.grade(what, figures[name], accept, refuse, unit)
    if figures["spread_deg"] < limits.spread_accept_deg:
        found.doubt.append(f"rotations spread {figures['spread_deg']:.1f} deg, below {limits.spread_accept_deg:g} deg")
    return found.verdict(
        f"predicted error of the eye {figures['eye_sigma_mm']:.2f} mm, {figures['eye_sigma_deg']:.2f} deg (rms)"
    )
