"""Owns how a C-arm stands and bends: angles to poses, sag under gravity, play in the drives, what encoders read.

Two geometries come of every position: the *nominal* one, which the encoders and the drawing of the C tell, and the
*true* one, in which source and detector have sunk and the angle lags behind the drive.  Sag follows the direction of
gravity in the C's own frame, so it repeats (Daly et al., Med Phys 35:2124, 2008, find C-arm geometry reproducible to
tenths of a millimetre).  Refuses clocks, sockets and images.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from navsrv.kernel.frames import CARM, CT, Array, Frame, Rigid, rotation_from_vector
from navsrv.kernel.projection import ProjectionModel
from simulators.world.imaging import Detector

STAND: Final = Frame("stand")
"""The C-arm's base: origin at the isocentre, axes of the patient (LPS) when it stands square to the table."""

_DOWN_PRONE: Final = np.array([0.0, -1.0, 0.0])
"""Gravity for a prone patient: towards the front."""


@dataclass(frozen=True, slots=True)
class Position:
    """Angles of the C, degrees.

    Attributes
    ----------
    orbit_deg : float
        About the patient's long axis: 0 with the beam from front to back, 90 with the beam to the left.
    tilt_deg : float
        About the axis across the patient: positive with the detector towards the head.
    """

    orbit_deg: float = 0.0
    tilt_deg: float = 0.0


def nominal_pose(position: Position, source_iso_mm: float) -> Rigid:
    """Return T_stand_from_carm of a C that does not bend.

    The orbit turns the C in its own plane; the tilt turns that plane, and stands still while the orbit moves.
    """
    angle = np.radians(position.orbit_deg)
    beam = np.array([np.sin(angle), np.cos(angle), 0.0])
    rows = np.array([0.0, 0.0, -1.0])
    level = np.stack([np.cross(rows, beam), rows, beam], axis=1)
    rotation = rotation_from_vector([np.radians(position.tilt_deg), 0.0, 0.0]) @ level
    return Rigid(STAND, CARM, rotation, -source_iso_mm * rotation[:, 2])


@dataclass(frozen=True, slots=True)
class Flex:
    """How far the C bends, for gravity at right angles to the reference direction.

    Attributes
    ----------
    source_mm, detector_mm : (3,)
        Displacement of source and detector along the C-arm frame's x, y and z.
    detector_deg : (3,)
        Turn of the detector about its own x, y and z.
    scatter_mm : float
        One sigma, each axis, of what does not repeat.
    """

    source_mm: tuple[float, float, float] = (1.2, 0.8, 2.0)
    detector_mm: tuple[float, float, float] = (4.0, 2.5, 3.0)
    detector_deg: tuple[float, float, float] = (0.5, 0.4, 0.2)
    scatter_mm: float = 0.1


STIFF: Final = Flex((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.0)


@dataclass(frozen=True, slots=True)
class Encoders:
    """What the drives' encoders make of the true angles.

    Attributes
    ----------
    step_deg : float
        Resolution.
    offset_deg : (orbit, tilt)
        Error of the zero.
    play_deg : float
        Width of the dead band between drive and C: after a reversal the C stands still until the drive has taken it up.
    """

    step_deg: float = 0.1
    offset_deg: tuple[float, float] = (0.0, 0.0)
    play_deg: float = 0.3

    def read(self, drive: Position) -> Position:
        """Return the angles that the encoders tell of the drives'."""
        orbit, tilt = (
            round((angle + off) / self.step_deg) * self.step_deg if self.step_deg > 0.0 else angle + off
            for angle, off in zip((drive.orbit_deg, drive.tilt_deg), self.offset_deg, strict=True)
        )
        return Position(orbit, tilt)


EXACT: Final = Encoders(0.0, (0.0, 0.0), 0.0)


def followed(c_deg: float, drive_deg: float, play_deg: float) -> float:
    """Return where the C stands once the drive has come to ``drive_deg``: dragged along, half the play behind."""
    half = 0.5 * play_deg
    return min(max(c_deg, drive_deg - half), drive_deg + half)


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Where source and detector truly are: the C-arm frame at the true source, and the detector seen from there."""

    T_stand_from_carm: Rigid
    detector: Detector


@dataclass(frozen=True, slots=True, eq=False)
class Gantry:
    """A C-arm with its imperfections; a value: ``moved`` returns the next one.

    Attributes
    ----------
    detector : Detector
        Of the drawing: without sag, at every angle.
    flex : Flex
    encoders : Encoders
    drive : Position
        Where the drives are; what the encoders read.
    c : Position
        Where the C is.
    """

    detector: Detector
    flex: Flex = STIFF
    encoders: Encoders = EXACT
    drive: Position = field(default_factory=Position)
    c: Position = field(default_factory=Position)

    def moved(self, drive: Position) -> Gantry:
        """Return the gantry after its drives have gone straight to a position."""
        play = self.encoders.play_deg
        c = Position(followed(self.c.orbit_deg, drive.orbit_deg, play), followed(self.c.tilt_deg, drive.tilt_deg, play))
        return replace(self, drive=drive, c=c)

    def nominal(self) -> Rigid:
        """Return T_stand_from_carm as encoders and drawing tell it."""
        return nominal_pose(self.encoders.read(self.drive), self.detector.source_iso_mm)

    def true(self, rng: np.random.Generator | None = None) -> Truth:
        """Return the true geometry; ``rng`` adds what does not repeat."""
        return bent(self.c, self.detector, self.flex, rng)


def bent(position: Position, detector: Detector, flex: Flex, rng: np.random.Generator | None = None) -> Truth:
    """Return the geometry of a C at an angle as it hangs.

    Every displacement is its amplitude times how far gravity, in the C's frame, has turned from where it was at orbit
    and tilt 0: the drawing is right there.
    """
    pose = nominal_pose(position, detector.source_iso_mm)
    level = nominal_pose(Position(), detector.source_iso_mm)
    load = (pose.rotation - level.rotation).T @ _DOWN_PRONE
    noise = np.zeros((2, 3)) if rng is None else rng.normal(0.0, flex.scatter_mm, (2, 3))
    source: Array = np.array(flex.source_mm) * load + noise[0]
    turn = rotation_from_vector(np.radians(flex.detector_deg) * load)
    corner = np.asarray(detector.T_carm_from_image.translation_mm)
    middle = np.array([0.0, 0.0, detector.sdd_mm])
    moved = middle + np.array(flex.detector_mm) * load + noise[1] + turn @ (corner - middle)
    # The true C-arm frame: origin at the source, axes of the detector as it hangs.
    rotation = pose.rotation @ turn
    offset = turn.T @ (moved - source)
    principal = (-offset[0] / detector.pixel_mm, -offset[1] / detector.pixel_mm)
    found = replace(detector, sdd_mm=float(offset[2]), principal_px=(float(principal[0]), float(principal[1])))
    return Truth(Rigid(STAND, CARM, rotation, pose.apply(source)), found)


def view_of(truth: Truth, T_ct_from_stand: Rigid) -> ProjectionModel:
    """Return the X-ray view, object frame ``ct``, of a true geometry."""
    d = truth.detector
    pose = T_ct_from_stand @ truth.T_stand_from_carm
    assert pose.to == CT
    return ProjectionModel.flat(pose.inverse(), (d.columns, d.rows), d.sdd_mm, d.pixel_mm, d.principal_px)
