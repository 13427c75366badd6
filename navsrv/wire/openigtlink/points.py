"""Owns the bodies that mark places: POINT and TRAJ.  Coordinates are mm in the frame that both sides agreed on."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from navsrv.wire.openigtlink.fields import (
    Buffer,
    FloatArray,
    field_of,
    frozen,
    need_elements,
    settle,
    text_of,
)

_POINT: Final = struct.Struct(">64s32s4B4f20s")
_TRAJECTORY: Final = struct.Struct(">64s32sbb4B7f20s")

Rgba = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class PointElement:
    """One point.

    Attributes
    ----------
    position_mm : (3,) float64
    size_mm : float
        The last number of the element: the protocol's text says diameter, some programs read a radius.
    owner : str
        Device name of the image that it belongs to, or empty.
    """

    name: str
    position_mm: FloatArray
    group: str = ""
    rgba: Rgba = (255, 255, 0, 255)
    size_mm: float = 0.0
    owner: str = ""

    def __post_init__(self) -> None:
        settle(self, "position_mm", frozen(self.position_mm, (3,), "position_mm"))


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """POINT: a list of points."""

    type_name: ClassVar[str] = "POINT"
    elements: tuple[PointElement, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TrajectoryElement:
    """One path from ``entry_mm`` to ``target_mm``, each (3,); ``kind`` says which count: 1 entry, 2 target, 3 both."""

    name: str
    entry_mm: FloatArray
    target_mm: FloatArray
    kind: int = 3
    group: str = ""
    rgba: Rgba = (255, 255, 0, 255)
    size_mm: float = 0.0
    owner: str = ""
    reserved: int = 0

    def __post_init__(self) -> None:
        settle(self, "entry_mm", frozen(self.entry_mm, (3,), "entry_mm"))
        settle(self, "target_mm", frozen(self.target_mm, (3,), "target_mm"))


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """TRAJ: a list of paths."""

    type_name: ClassVar[str] = "TRAJ"
    elements: tuple[TrajectoryElement, ...]


def _texts(name: str, group: str, owner: str) -> tuple[bytes, bytes, bytes]:
    return field_of(name, 64, "name"), field_of(group, 32, "group name"), field_of(owner, 20, "owner")


def encode_point(body: Point) -> bytes:
    """Return the content of a POINT."""
    packed = []
    for e in body.elements:
        name, group, owner = _texts(e.name, e.group, e.owner)
        packed.append(_POINT.pack(name, group, *e.rgba, *e.position_mm, e.size_mm, owner))
    return b"".join(packed)


def parse_point(content: Buffer) -> Point:
    """Return the POINT of its content."""
    need_elements(content, _POINT.size, "POINT")
    elements = []
    for name, group, r, g, b, a, *xyz, size_mm, owner in _POINT.iter_unpack(content):
        elements.append(
            PointElement(text_of(name), np.array(xyz), text_of(group), (r, g, b, a), size_mm, text_of(owner))
        )
    return Point(tuple(elements))


def encode_trajectory(body: Trajectory) -> bytes:
    """Return the content of a TRAJ."""
    packed = []
    for e in body.elements:
        name, group, owner = _texts(e.name, e.group, e.owner)
        numbers = (*e.entry_mm, *e.target_mm, e.size_mm)
        packed.append(_TRAJECTORY.pack(name, group, e.kind, e.reserved, *e.rgba, *numbers, owner))
    return b"".join(packed)


def parse_trajectory(content: Buffer) -> Trajectory:
    """Return the TRAJ of its content."""
    need_elements(content, _TRAJECTORY.size, "TRAJ")
    elements = []
    for name, group, kind, reserved, r, g, b, a, *xyz, size_mm, owner in _TRAJECTORY.iter_unpack(content):
        texts = text_of(name), text_of(group), text_of(owner)
        entry, target = np.array(xyz[:3]), np.array(xyz[3:])
        elements.append(
            TrajectoryElement(texts[0], entry, target, kind, texts[1], (r, g, b, a), size_mm, texts[2], reserved)
        )
    return Trajectory(tuple(elements))
