"""Owns where a body was when an image was taken: poses that are kept, and what is between two of them.

An image's stamp falls between two poses.  What the body did between them nobody saw: the pose is interpolated, and the
doubt is that of a body that went the whole way in one step at an unknown moment.  Where poses are known on one side
only, the nearest stands in, and its doubt is the way that its speed makes of the time between; so it is with a latency
that nobody knows.  Refuses to guess: farther away than a bound, where the body was said to be unseen between, or where
no speed is known, there is no pose.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from math import acos, hypot, sin, sqrt
from typing import Final

import numpy as np

from navsrv.kernel.frames import (
    RIGIDITY_TOLERANCE,
    Array,
    Rigid,
    quaternion_wxyz,
    rotation_angle_rad,
    rotation_defect,
    rotation_from_quaternion_wxyz,
)

EXPOSURE_NEAR_NS: Final = 100_000_000
"""A pose farther than this from an exposure, or than two periods of a slow source, says nothing of it."""
LATE_APART_NS: Final = 20_000_000
"""Spacing of poses that are kept for images which arrive long after they were taken."""
SPEED_NS: Final = 200_000_000
"""Over how long to either side a speed is taken."""
_ALIKE: Final = 0.9995
"""Cosine of half the angle between two rotations from which the straight way is as good as the great circle."""


@dataclass(frozen=True, slots=True, eq=False)
class PoseThen:
    """A pose at a moment.

    Attributes
    ----------
    matrix : (4, 4)
    off_ns : int
        To the nearest pose that was seen.
    between : bool
        Poses on both sides were seen.
    sigma_mm, sigma_rad : float
        One sigma, each axis, of what the body may have done in the time between; its noise is not in it.
    """

    matrix: Array
    off_ns: int
    between: bool
    sigma_mm: float
    sigma_rad: float


@dataclass(frozen=True, slots=True)
class Noise:
    """Of one pose, one sigma each axis: so much seems to move at rest."""

    mm: float = 0.0
    rad: float = 0.0


STILL: Final = Noise()
_Timed = tuple[int, Array | Rigid]


class PoseMemory:
    """Poses of one body: the newest ``count``, and one every 20 ms of the last ``seconds``."""

    def __init__(self, count: int, seconds: float = 0.0) -> None:
        self._unknown_s = 0.0
        self._unseen: deque[int] = deque(maxlen=count)
        self._newest: deque[_Timed] = deque(maxlen=count)
        self._late: deque[_Timed] = deque(maxlen=int(seconds * 1e9) // LATE_APART_NS + 1 if seconds > 0.0 else 0)

    def add(self, time_ns: int, pose: Array | Rigid, unknown_ns: int = 0) -> None:
        """Take a pose, (4, 4) if it is an array, when it was, and how much earlier it may have been."""
        self._unknown_s = unknown_ns / 1e9
        self._newest.append((time_ns, pose))
        if self._late.maxlen and (not self._late or not 0 <= time_ns - self._late[-1][0] < LATE_APART_NS):
            self._late.append((time_ns, pose))

    def lose(self, time_ns: int) -> None:
        """Take note that the body was not seen at a time: what was before is not carried on beyond it."""
        self._unseen.append(time_ns)

    def clear(self) -> None:
        """Forget everything, as when another clock's stamps begin."""
        self._unseen.clear()
        self._newest.clear()
        self._late.clear()

    def __len__(self) -> int:
        return len(self._newest)

    def off_ns(self, time_ns: int) -> int | None:
        """Return how far the nearest pose is from a moment; None before the first."""
        return min((abs(t - time_ns) for t, _ in (*self._newest, *self._late)), default=None)

    def then(self, time_ns: int, near_ns: int, noise: Noise = STILL) -> PoseThen | None:
        """Return the pose at a moment; None where none is within ``near_ns``, or nobody knows how the body moved."""
        poses = self._newest
        if self._late and (not poses or time_ns < min(poses[0][0], poses[-1][0])):
            poses = self._late
        before = max((p for p in poses if p[0] <= time_ns), key=_time, default=None)
        after = min((p for p in poses if p[0] >= time_ns), key=_time, default=None)
        if before is not None and after is not None and after[0] - before[0] <= 2 * near_ns:
            matrix, sigma_mm, sigma_rad = _between(before, after, time_ns, noise)
            off_ns = min(time_ns - before[0], after[0] - time_ns)
            if before[0] == after[0] and not self._unknown_s:
                return PoseThen(matrix, off_ns, True, sigma_mm, sigma_rad)
            mm_s, rad_s = _speed(poses, time_ns, max(SPEED_NS, near_ns), noise) or (0.0, 0.0)
            late_s = self._unknown_s / sqrt(3.0)
            return PoseThen(matrix, off_ns, True, hypot(sigma_mm, mm_s * late_s), hypot(sigma_rad, rad_s * late_s))
        nearest = min((p for p in (before, after) if p is not None), key=lambda p: abs(p[0] - time_ns), default=None)
        if nearest is None or abs(nearest[0] - time_ns) > near_ns:
            return None
        if any(min(nearest[0], time_ns) <= unseen <= max(nearest[0], time_ns) for unseen in self._unseen):
            return None
        speed = _speed(poses, nearest[0], max(SPEED_NS, near_ns), noise)
        if speed is None:
            return None
        off_ns = abs(nearest[0] - time_ns)
        away_s = hypot(off_ns / 1e9, self._unknown_s) / sqrt(3.0)
        return PoseThen(_matrix(nearest), off_ns, False, speed[0] * away_s, speed[1] * away_s)


def _speed(poses: Iterable[_Timed], time_ns: int, window_ns: int, noise: Noise) -> tuple[float, float] | None:
    """Return how fast (mm/s, rad/s) a body moved about a moment; None where fewer than two poses tell."""
    near = [p for p in poses if abs(p[0] - time_ns) <= window_ns]
    if len(near) < 2:
        return None
    first, last = min(near, key=_time), max(near, key=_time)
    if first[0] == last[0]:
        return None
    moved_mm, moved_rad = _moved(_matrix(first), _matrix(last), noise)
    seconds = (last[0] - first[0]) / 1e9
    return moved_mm / seconds, moved_rad / seconds


def _time(pose: _Timed) -> int:
    return pose[0]


def _matrix(timed: _Timed) -> Array:
    pose = timed[1]
    return pose.matrix if isinstance(pose, Rigid) else pose


def _between(before: _Timed, after: _Timed, time_ns: int, noise: Noise) -> tuple[Array, float, float]:
    """Return the pose (4, 4) between two, and one sigma (mm, rad), each axis, of what was not seen.

    What is no rigid motion, as a detector's place with a scale of its own, is blended.
    """
    one, other, span_ns = _matrix(before), _matrix(after), after[0] - before[0]
    if span_ns == 0:
        return one, 0.0, 0.0
    share = (time_ns - before[0]) / span_ns
    matrix: Array = (1.0 - share) * one + share * other
    if max(rotation_defect(one[:3, :3]), rotation_defect(other[:3, :3])) > RIGIDITY_TOLERANCE:
        return matrix, 0.0, 0.0
    matrix[:3, :3] = _turned(one[:3, :3], other[:3, :3], share)
    moved_mm, moved_rad = _moved(one, other, noise)
    # The deviation of a step of length 1 that was made before now with probability ``share``.
    unseen = sqrt(share * (1.0 - share) / 3.0)
    return matrix, unseen * moved_mm, unseen * moved_rad


def _moved(one: Array, other: Array, noise: Noise) -> tuple[float, float]:
    """Return how far (mm, rad) a body moved between two poses, less what the noise of both makes of rest (3 axes)."""
    mm = float(np.linalg.norm(other[:3, 3] - one[:3, 3]))
    rad = rotation_angle_rad(other[:3, :3] @ one[:3, :3].T)
    return sqrt(max(0.0, mm**2 - 6.0 * noise.mm**2)), sqrt(max(0.0, rad**2 - 6.0 * noise.rad**2))


def _turned(one: Array, other: Array, share: float) -> Array:
    """Return the rotation (3, 3) that far along the shortest way from one to the other (Shoemake 1985)."""
    a, b = np.array(quaternion_wxyz(one)), np.array(quaternion_wxyz(other))
    cosine = float(a @ b)
    if cosine < 0.0:
        b, cosine = -b, -cosine
    if cosine > _ALIKE:
        return rotation_from_quaternion_wxyz((1.0 - share) * a + share * b)
    angle = acos(cosine)
    return rotation_from_quaternion_wxyz((sin((1.0 - share) * angle) * a + sin(share * angle) * b) / sin(angle))
