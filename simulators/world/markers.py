"""Owns what a tracker reports of a tool, from its markers up: noise of each marker, what is seen, the pose solved.

How to use it: a ``Watcher`` (``Optical`` with marker bodies, ``Magnetic`` with coils, ``Jittered`` with plain pose
noise) turns true poses into what the tracker would report, thousands at once::

    vega = Optical(seed, Camera(), {"Needle": NEEDLE_MARKERS, "Reference": REFERENCE_MARKERS})
    sighting = vega.observe("Needle", frames, T_tracker_from_tool)   # (N,) int and (N, 4, 4)
    sighting.poses, sighting.sight, sighting.used                    # (N, 4, 4), (N,) Sight, (N, M)

What is drawn is a function of seed, tool and frame number alone: any chunking of the frames, one at a time included,
gives the same numbers to rounding, and a tool that is hidden changes nothing for the others.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.frames import Array
from simulators.world.batches import moved, rigid, rotations
from simulators.world.scene import Stream
from simulators.world.sight import (
    AURORA,
    LENSES_MM,
    POLARIS_VEGA,
    Blocker,
    Flags,
    Frustum,
    hidden_behind,
    overlapped,
    turned_away,
)

Frames = NDArray[np.int64]

BLOCK: Final = 64
"""Frames whose noise is drawn at once."""


class Sight(IntEnum):
    """How a tracker sees a tool."""

    OK = 0
    OUT_OF_VIEW = 1
    """Too few markers are seen."""
    OUT_OF_VOLUME = 2
    """Enough are seen, but too few of them inside the measurement volume."""


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """What a tracker reports of one tool over N exposures.

    Attributes
    ----------
    poses : (N, 4, 4)
        ``T_tracker_from_tool`` as solved; the identity where there is none.
    sight : (N,) int8
        ``Sight``.
    used : (N, M) bool
        Which markers the pose was solved from; no columns for a tracker without markers.
    error_mm : (N,)
        Root-mean-square distance between solved and measured markers; 0 without markers.
    """

    poses: Array
    sight: NDArray[np.int8]
    used: Flags
    error_mm: Array


class Watcher(Protocol):
    """What turns true poses into reported ones."""

    def observe(
        self, tool: str, frames: Frames, T_tracker_from_tool: Array, blockers: Sequence[Blocker] = ()
    ) -> Sighting:
        """Return what is reported of a tool in given frames (N,), truly at (N, 4, 4)."""
        ...


class FrameNoise:
    """Standard normal numbers for frames, each a function of seed, name and frame number alone."""

    def __init__(self, seed: int, name: str, shape: tuple[int, ...]) -> None:
        self._key = (seed, int(Stream.NOISE), zlib.crc32(name.encode()))
        self._shape = shape
        self._drawn: dict[int, Array] = {}

    def of(self, frames: Frames) -> Array:
        """Return (N, *shape) for frames (N,), all at least 0."""
        blocks, inside = np.divmod(frames, BLOCK)
        wanted = np.unique(blocks)
        self._drawn = {b: self._drawn[b] if b in self._drawn else self._draw(b) for b in wanted.tolist()}
        every = np.stack([self._drawn[int(b)] for b in wanted])
        result: Array = every[np.searchsorted(wanted, blocks), inside]
        return result

    def _draw(self, block: int) -> Array:
        return np.random.default_rng([*self._key, block]).normal(size=(BLOCK, *self._shape))


@dataclass(frozen=True, slots=True, eq=False)
class MarkerBody:
    """A rigid body of markers, in the frame of its tool.

    Attributes
    ----------
    markers_mm : (M, 3)
        3 to 20 of them, not on one line.
    facing : (M, 3)
        Unit vector that each marker faces (a disc, or the side of the body that it stands on); 0 for a ball in the
        open, which is seen from everywhere.
    diameter_mm : float
        Of a marker: nearer ones hide those behind them.
    half_angle_deg : float
        How far from where it faces a marker is seen.
    least : int
        Markers without which there is no pose.
    """

    markers_mm: Array
    facing: Array | None = None
    diameter_mm: float = 11.5
    half_angle_deg: float = 80.0
    least: int = 3

    def turned(self, rotation: Array) -> MarkerBody:
        """Return the same body mounted on its tool turned by a rotation (3, 3)."""
        facing = None if self.facing is None else self.facing @ rotation.T
        return MarkerBody(self.markers_mm @ rotation.T, facing, self.diameter_mm, self.half_angle_deg, self.least)


NEEDLE_MARKERS: Final = MarkerBody(
    np.array([[0.0, 0.0, -180.0], [0.0, 28.5, -195.0], [0.0, 0.0, -260.0], [0.0, -44.0, -220.0]])
)
"""On the handle of a needle whose tip is the origin, +z from hub to tip."""
REFERENCE_MARKERS: Final = MarkerBody(
    np.array([[0.0, 0.0, 0.0], [0.0, 47.38, 28.99], [0.0, 0.0, 89.1], [0.0, -35.36, 35.36]])
)


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """A smooth systematic error that depends on the place alone: a sum of plane waves.

    Attributes
    ----------
    waves : (K, 3)
        Radians per mm.
    phases : (K,)
    amplitudes : (K, 3)
        Of each wave, in the unit of what is in error.
    """

    waves: Array
    phases: Array
    amplitudes: Array

    @classmethod
    def from_seed(cls, key: Sequence[int], rms: float, wavelength_mm: float = 900.0, count: int = 4) -> Field:
        """Return a field whose error has root-mean-square length ``rms`` over many wavelengths."""
        rng = np.random.default_rng(list(key))
        directions = rng.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = wavelength_mm * rng.uniform(0.7, 1.4, (count, 1))
        amplitudes = rng.normal(size=(count, 3))
        amplitudes *= rms * np.sqrt(2.0) / np.linalg.norm(amplitudes)
        return cls(2.0 * np.pi * directions / lengths, rng.uniform(0.0, 2.0 * np.pi, count), amplitudes)

    def at(self, points_mm: Array) -> Array:
        """Return the error (..., 3) at points (..., 3)."""
        result: Array = np.sin(points_mm @ self.waves.T + self.phases) @ self.amplitudes
        return result


@dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """An optical tracker's errors and limits.

    The standard deviation of a marker's place is ``across_mm`` in each direction across the line to the camera and
    ``depth_ratio`` times that along it, at the distance ``at_mm``.  With distance d the first grows as
    ``(d / at)^growth`` and the second as ``(d / at)^(2 growth)``, as triangulation has it for growth 1.

    Attributes
    ----------
    systematic_mm : float
        Root-mean-square error that depends on the place alone (calibration of the camera).
    placement_mm : float
        Standard deviation in each direction of where markers truly sit on a body, against its definition; drawn once.
    """

    across_mm: float = 0.03
    depth_ratio: float = 3.0
    at_mm: float = 1500.0
    growth: float = 1.0
    systematic_mm: float = 0.0
    placement_mm: float = 0.0
    volume: Frustum | None = POLARIS_VEGA

    def error(self, points_mm: Array, normal: Array) -> Array:
        """Return the noise (..., 3) of markers at points (..., 3), from standard normal numbers (..., 3)."""
        distance = np.linalg.norm(points_mm, axis=-1, keepdims=True)
        ray = points_mm / distance
        scale = (distance / self.at_mm) ** self.growth
        across = self.across_mm * scale
        along = self.depth_ratio * across * scale
        result: Array = across * normal + (along - across) * np.sum(normal * ray, axis=-1, keepdims=True) * ray
        return result


@dataclass(frozen=True, slots=True)
class _Mounted:
    body: MarkerBody
    true_mm: Array
    """(M, 3) where the markers truly sit."""
    noise: FrameNoise


class Optical:
    """A tracker that sees markers and solves each body's pose from those that it sees."""

    def __init__(self, seed: int, camera: Camera, bodies: Mapping[str, MarkerBody]) -> None:
        self.camera = camera
        self._systematic = Field.from_seed((seed, int(Stream.CAMERA)), camera.systematic_mm)
        self._mounted = {name: _mount(seed, camera, name, body) for name, body in bodies.items()}

    def observe(
        self, tool: str, frames: Frames, T_tracker_from_tool: Array, blockers: Sequence[Blocker] = ()
    ) -> Sighting:
        """Return what is reported of a tool in given frames (N,), truly at (N, 4, 4)."""
        mounted = self._mounted[tool]
        body = mounted.body
        true = moved(T_tracker_from_tool, mounted.true_mm)
        visible = ~self._hidden(body, T_tracker_from_tool, true, blockers)
        volume = self.camera.volume
        used = visible if volume is None else visible & volume.contains(true)
        measured = true + self.camera.error(true, mounted.noise.of(frames))
        if self.camera.systematic_mm > 0.0:
            measured += self._systematic.at(true)
        enough, could = used.sum(axis=1) >= body.least, visible.sum(axis=1) >= body.least
        sight = np.where(enough, Sight.OK, np.where(could, Sight.OUT_OF_VOLUME, Sight.OUT_OF_VIEW)).astype(np.int8)
        poses, error_mm = solve_poses(body.markers_mm, measured, used | ~enough[:, None])
        poses[~enough], error_mm[~enough] = np.eye(4), 0.0
        return Sighting(poses, sight, used & enough[:, None], error_mm)

    def _hidden(self, body: MarkerBody, poses: Array, true_mm: Array, blockers: Sequence[Blocker]) -> Flags:
        hidden = overlapped(true_mm, body.diameter_mm)
        if body.facing is not None:
            facing = body.facing @ np.swapaxes(poses[:, :3, :3], 1, 2)
            hidden |= turned_away(true_mm, facing, np.radians(body.half_angle_deg))
        return hidden | hidden_behind(true_mm, blockers, LENSES_MM) if blockers else hidden


def _mount(seed: int, camera: Camera, name: str, body: MarkerBody) -> _Mounted:
    rng = np.random.default_rng([seed, int(Stream.PLACEMENT), zlib.crc32(name.encode())])
    true = body.markers_mm + camera.placement_mm * rng.normal(size=body.markers_mm.shape)
    return _Mounted(body, true, FrameNoise(seed, name, body.markers_mm.shape))


def solve_poses(model_mm: Array, measured_mm: Array, used: Flags) -> tuple[Array, Array]:
    """Return poses (N, 4, 4) and residuals (N,) that fit a model's markers (M, 3) to those measured (N, M, 3).

    Least squares over the used (N, M), by singular value decomposition of the correlation (Arun 1987), with the sign
    of the smallest value such that the result never mirrors (Umeyama 1991).  At least three used markers that are not
    on one line decide the pose.
    """
    weight = used / used.sum(axis=1, keepdims=True)
    model_mean = weight @ model_mm
    measured_mean = np.einsum("nm,nmi->ni", weight, measured_mm)
    model = model_mm - model_mean[:, None]
    correlation = np.swapaxes((measured_mm - measured_mean[:, None]) * weight[..., None], 1, 2) @ model
    u, _, vt = np.linalg.svd(correlation)
    u[:, :, 2] *= np.sign(np.linalg.det(u) * np.linalg.det(vt))[:, None]
    turn = u @ vt
    place = measured_mean - np.einsum("nij,nj->ni", turn, model_mean)
    left = measured_mm - model_mm @ np.swapaxes(turn, 1, 2) - place[:, None]
    return rigid(turn, place), np.sqrt(np.einsum("nm,nmi,nmi->n", weight, left, left))


@dataclass(frozen=True, slots=True)
class Coils:
    """A magnetic tracker's errors and limits: noise that grows steeply with distance, a field bent by metal.

    Standard deviations per direction are ``position_mm`` and ``rotation_deg`` at ``at_mm`` from the generator and grow
    as the distance to the power ``growth`` (a dipole's field falls with the third).  The distortions are
    root-mean-square lengths at ``at_mm`` and grow as fast.
    """

    position_mm: float = 0.08
    rotation_deg: float = 0.05
    at_mm: float = 250.0
    growth: float = 3.0
    distortion_mm: float = 0.3
    distortion_deg: float = 0.15
    wavelength_mm: float = 350.0
    volume: Frustum | None = AURORA


class Magnetic:
    """A tracker that senses coils: no line of sight, more noise, distortion."""

    def __init__(self, seed: int, coils: Coils = Coils()) -> None:
        self.coils = coils
        self._seed = seed
        self._noise: dict[str, FrameNoise] = {}
        key = (seed, int(Stream.CAMERA))
        self._shift = Field.from_seed((*key, 1), coils.distortion_mm, coils.wavelength_mm)
        self._turn = Field.from_seed((*key, 2), float(np.radians(coils.distortion_deg)), coils.wavelength_mm)

    def observe(
        self, tool: str, frames: Frames, T_tracker_from_tool: Array, blockers: Sequence[Blocker] = ()
    ) -> Sighting:
        """Return what is reported of a tool in given frames (N,), truly at (N, 4, 4); nothing blocks a field."""
        if tool not in self._noise:
            self._noise[tool] = FrameNoise(self._seed, tool, (6,))
        normal, coils = self._noise[tool].of(frames), self.coils
        place = T_tracker_from_tool[:, :3, 3]
        scale = (np.linalg.norm(place, axis=1, keepdims=True) / coils.at_mm) ** coils.growth
        turn = scale * (np.radians(coils.rotation_deg) * normal[:, :3] + self._turn.at(place))
        shift = scale * (coils.position_mm * normal[:, 3:] + self._shift.at(place))
        poses = rigid(rotations(turn) @ T_tracker_from_tool[:, :3, :3], place + shift)
        inside = np.ones(len(frames), np.bool_) if coils.volume is None else coils.volume.contains(place)
        poses[~inside] = np.eye(4)
        sight = np.where(inside, Sight.OK, Sight.OUT_OF_VOLUME).astype(np.int8)
        return Sighting(poses, sight, np.empty((len(frames), 0), np.bool_), np.zeros(len(frames)))


@dataclass(slots=True)
class Jittered:
    """A tracker of which only the noise of whole poses is known, in the tool's own frame; it sees everything.

    ``noise_mm`` and ``noise_rad`` are the root-mean-square length of the displacement and of the rotation vector.
    """

    seed: int
    noise_mm: float
    noise_rad: float
    _noise: dict[str, FrameNoise] = field(default_factory=dict)

    def observe(
        self, tool: str, frames: Frames, T_tracker_from_tool: Array, blockers: Sequence[Blocker] = ()
    ) -> Sighting:
        """Return what is reported of a tool in given frames (N,), truly at (N, 4, 4)."""
        if tool not in self._noise:
            self._noise[tool] = FrameNoise(self.seed, tool, (6,))
        normal = self._noise[tool].of(frames) / np.sqrt(3.0)
        turn = T_tracker_from_tool[:, :3, :3] @ rotations(self.noise_rad * normal[:, :3])
        poses = rigid(turn, T_tracker_from_tool[:, :3, 3] + self.noise_mm * normal[:, 3:])
        count = len(frames)
        return Sighting(poses, np.zeros(count, np.int8), np.empty((count, 0), np.bool_), np.zeros(count))
