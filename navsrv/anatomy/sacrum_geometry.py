"""Owns where everything critical of the built-in sacrum case lies: canal, foramina, roots, vessels, rectum, lesion,
skin.

All of it is stated as analytic solids (``sacrum_primitives``), so that the truth of a distance can be computed by
anyone from ``primitives.json``.  Sizes are ordinary adult anatomy, approximate: S1 foramen about 11 mm wide and 22
mm from the midline, roots 3 to 5 mm thick, common iliac artery 10 mm, vein 13 mm, rectum 28 mm.  Refuses bone
(``sacrum_bones``), which is composite, and voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from navsrv.anatomy.case import Kind
from navsrv.anatomy.sacrum_curve import SacralCurve, smooth_path
from navsrv.anatomy.sacrum_primitives import Ellipsoid, EllipticCylinder, Primitive, RoundCone, Tube
from navsrv.kernel.frames import Array, nearest_rotation

SIDES: Final = (("left", 1.0), ("right", -1.0))
LEVELS: Final = ("S1", "S2", "S3", "S4")

CANAL_STATIONS: Final = (-22.0, -8.0, 5.0, 15.0, 30.0, 45.0, 60.0, 74.0, 87.0, 95.0)
CANAL_V: Final = (27.0, 25.5, 23.5, 21.5, 18.0, 14.8, 12.0, 10.3, 9.0, 8.4)
CANAL_RADII: Final = (8.2, 8.0, 7.6, 7.2, 6.4, 5.4, 4.5, 3.8, 3.2, 2.9)

# One row for each of S1 to S4, in curved coordinates (s, |x|, v): inside the canal's wall, the fork, the two openings.
FORAMEN_INNER: Final = ((20.0, 9.5, 17.0), (44.0, 8.0, 13.5), (65.0, 6.5, 10.5), (82.0, 5.5, 9.0))
FORAMEN_FORK: Final = ((29.0, 17.0, 5.0), (52.5, 15.5, 3.5), (72.5, 14.2, 2.5), (88.5, 13.0, 2.0))
FORAMEN_FRONT: Final = ((33.5, 22.0, -9.5), (56.5, 20.5, -9.5), (76.0, 19.0, -9.0), (91.5, 17.5, -7.0))
FORAMEN_BACK: Final = ((30.0, 21.5, 27.5), (54.0, 19.5, 21.0), (74.0, 18.0, 14.5), (89.5, 16.0, 11.0))
FORAMEN_RADII: Final = (5.4, 5.0, 4.5, 4.0)
FORAMEN_BACK_RADII: Final = (3.4, 3.1, 2.8, 2.5)

ROOT_RADII: Final = (2.4, 2.2, 1.9, 1.6)
ROOT_STARTS: Final = (
    ((-18.0, 5.0, 25.5), (2.0, 7.0, 22.0)),
    ((-18.0, 3.4, 28.0), (25.0, 5.0, 18.5)),
    ((-18.0, 2.0, 30.0), (45.0, 2.4, 15.0), (58.0, 3.2, 12.3)),
    ((-18.0, 1.0, 32.0), (62.0, 1.6, 12.2), (76.0, 2.8, 10.2)),
)
ROOT_ENDS: Final = (
    ((47.0, 31.0, -19.0), (63.0, 43.0, -20.0), (78.0, 54.0, -13.0)),
    ((66.0, 30.0, -17.5), (78.0, 45.0, -13.0), (84.0, 55.0, -7.0)),
    ((83.0, 29.0, -14.5), (88.0, 43.0, -10.0)),
    ((97.0, 25.0, -11.5), (99.0, 35.0, -9.0)),
)

VESSELS: Final[dict[str, tuple[float, tuple[tuple[float, float, float], ...]]]] = {
    # radius, then model points (x, y, z) from the S1 endplate for a left vessel; a right one is mirrored
    "Common iliac artery": (5.0, ((13.0, -47.5, 50.0), (25.0, -43.0, 28.0), (37.0, -29.0, 4.0))),
    "External iliac artery": (
        4.2,
        ((37.0, -29.0, 4.0), (46.0, -40.0, -26.0), (54.0, -58.0, -58.0), (60.0, -74.0, -92.0), (63.0, -80.0, -124.0)),
    ),
    "Internal iliac artery": (
        3.4,
        ((37.0, -28.0, 3.0), (39.0, -18.5, -7.0), (42.0, -9.0, -22.0), (49.0, 3.0, -42.0), (54.0, 16.0, -58.0)),
    ),
    "External iliac vein": (
        5.3,
        (
            (39.0, -8.5, -18.0),
            (42.5, -17.0, -27.0),
            (46.0, -29.0, -36.0),
            (51.0, -47.0, -60.0),
            (54.0, -63.0, -92.0),
            (56.0, -69.0, -124.0),
        ),
    ),
    "Internal iliac vein": (4.3, ((39.0, -7.5, -17.0), (44.0, 6.0, -36.0), (50.0, 14.0, -50.0), (53.5, 21.0, -62.0))),
}
COMMON_VEINS: Final = {
    # The left one crosses behind the right artery to the cava, which lies right of the midline.
    "left": ((39.0, -7.5, -17.0), (33.0, -19.0, 4.0), (12.0, -33.0, 24.0), (-14.0, -37.0, 44.0)),
    "right": ((-39.0, -7.5, -17.0), (-34.0, -16.0, 4.0), (-29.0, -25.0, 24.0), (-24.0, -32.0, 46.0)),
}
RECTUM: Final = (
    (38.0, 17.0, -39.0), (50.0, 11.0, -34.0), (66.0, 5.0, -29.0), (82.0, -1.0, -26.0), (98.0, -1.0, -24.5),
    (116.0, 0.0, -23.5), (134.0, 0.5, -24.0),
)  # fmt: skip

TRUNK: Final = ((-12.0, 26.0, 9.0), (0.0, 34.0, -2.0), (14.0, 41.0, -11.5), (36.0, 45.0, -17.0), (70.0, 55.0, -17.0))

LESION_CENTER: Final = (29.0, 36.0, 6.0)
LESION_AXES: Final = (14.0, 13.4, 12.2)
TARGET: Final = (29.5, 40.0, 6.5)
ENTRY_DIRECTION: Final = (-0.01, 0.86, -0.51)
"""From the target out through the skin, in (x medial negative on the left, y, z): see ``Layout``."""
CORRIDOR_MM: Final = 3.0
SHAFT_RADIUS_MM: Final = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One structure: what it is to the operator, and its solids (none for composite bone)."""

    name: str
    kind: Kind
    follows: str | None
    primitives: tuple[Primitive, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The patient of one seed.

    Attributes
    ----------
    side : float
        +1 when the metastasis is on the patient's left, -1 on the right.
    parts : tuple of Part
        In rising order of precedence in the label map: a later one wins a voxel that both contain.
    """

    curve: SacralCurve
    side: float
    parts: tuple[Part, ...]
    target_mm: Array
    entry_mm: Array
    drift_structure: str

    def part(self, name: str) -> Part:
        """Return the part called ``name``."""
        return next(p for p in self.parts if p.name == name)


def layout(seed: int) -> Layout:
    """Return the patient of a seed: size within 3 %, slope within 2 degrees, side of the lesion and its shape vary."""
    rng = np.random.default_rng([seed, 1])
    scale = round(float(rng.uniform(0.98, 1.04)), 4)
    origin = np.round(np.array([2.5, -18.0, 41.0]) + rng.uniform(-3.0, 3.0, 3), 3)
    curve = SacralCurve(scale, origin, round(float(rng.uniform(-2.0, 2.0)), 3))
    side = 1.0 if seed % 2 else -1.0
    skin = _skin(curve)
    lesion = _lesion(curve, side, rng)
    target = curve.lps(_curved(curve, (TARGET,), side))[0]
    entry = _entry(skin.primitives, target, np.array(ENTRY_DIRECTION) * (side, 1.0, 1.0))
    bones = [Part(n, Kind.BONE, None, ()) for n in BONES]
    parts = (skin, *bones, lesion, _rectum(curve), *_vessels(curve), _canal(curve), *_foramina(curve), *_nerves(curve))
    drift = "S1 root left" if side > 0.0 else "S1 root right"
    return Layout(curve, side, parts, target, entry, drift)


BONES: Final = ("Femur left", "Femur right", "L5", "Ilium left", "Ilium right", "Sacrum")


def _curved(curve: SacralCurve, points: ArrayLike, side: float) -> Array:
    return curve.model(np.asarray(points, dtype=np.float64) * (1.0, side, 1.0))


def _tube(curve: SacralCurve, model_points: Array, radius: float, step_mm: float = 9.0) -> Tube:
    return Tube(curve.lps(smooth_path(model_points, step_mm)), round(radius * curve.scale, 4))


def _skin(curve: SacralCurve) -> Part:
    def size(*values: float) -> Array:
        return np.round(np.array(values) * curve.scale, 4)

    # Ends lie 6 cm beyond the field of view, so that no needle can meet the cut.
    body = EllipticCylinder(curve.lps((0.0, -16.0, -38.0)), size(186.0, 109.0), round(145.0 * curve.scale, 4))
    tilt = np.radians(24.0)
    buttocks = []
    for _, side in SIDES:
        c, s = np.cos(side * tilt), np.sin(side * tilt)
        rotation = nearest_rotation(np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]]))
        buttocks.append(Ellipsoid(curve.lps((side * 66.0, 29.0, -96.0)), size(84.0, 72.0, 92.0), rotation))
    return Part("Skin", Kind.SKIN, None, (body, *buttocks))


def _lesion(curve: SacralCurve, side: float, rng: np.random.Generator) -> Part:
    center = curve.lps(_curved(curve, (LESION_CENTER,), side))[0]
    axes = np.round(np.array(LESION_AXES) * curve.scale * (1.0 + rng.uniform(-0.02, 0.02, 3)), 4)
    a, b = rng.uniform(-0.25, 0.25, 2)
    about_z = np.array([[np.cos(a), -np.sin(a), 0.0], [np.sin(a), np.cos(a), 0.0], [0.0, 0.0, 1.0]])
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, np.cos(b), -np.sin(b)], [0.0, np.sin(b), np.cos(b)]])
    rotation = nearest_rotation(about_z @ about_x)
    return Part("Metastasis", Kind.TARGET, "Sacrum", (Ellipsoid(center, axes[[1, 2, 0]], rotation),))


def _rectum(curve: SacralCurve) -> Part:
    return Part("Rectum", Kind.CRITICAL, None, (_tube(curve, curve.model(RECTUM), 14.0, 5.0),))


def _vessels(curve: SacralCurve) -> list[Part]:
    parts = []
    for name, (radius, points) in VESSELS.items():
        for word, side in SIDES:
            tube = _tube(curve, np.asarray(points) * (side, 1.0, 1.0), radius)
            parts.append(Part(f"{name} {word}", Kind.CRITICAL, "Sacrum", (tube,)))
    for word, points in COMMON_VEINS.items():
        tube = _tube(curve, np.asarray(points), 6.3)
        parts.append(Part(f"Common iliac vein {word}", Kind.CRITICAL, "Sacrum", (tube,)))
    return sorted(parts, key=lambda part: ("artery" in part.name, part.name))


def _canal(curve: SacralCurve) -> Part:
    sxv = np.stack([CANAL_STATIONS, np.zeros(len(CANAL_V)), CANAL_V], axis=1)
    solids: list[Primitive] = []
    _chain(solids, curve.lps(curve.model(sxv)), np.array(CANAL_RADII) * curve.scale)
    # Above S2 the canal is wider than deep: a recess on each side where the S1 root leaves the sac.
    for _, side in SIDES:
        recess = ((-20.0, 4.0, 26.0), (-4.0, 6.0, 23.0), (12.0, 7.0, 20.0), (27.0, 4.5, 17.5), (46.0, 1.5, 14.2))
        _chain(solids, curve.lps(_curved(curve, recess, side)), np.array((7.0, 6.6, 6.0, 5.4, 4.6)) * curve.scale)
    return Part("Sacral canal", Kind.CRITICAL, "Sacrum", tuple(solids))


def _chain(solids: list[Primitive], points: Array, radii: Array) -> None:
    for i in range(len(points) - 1):
        solids.append(RoundCone(points[i], points[i + 1], round(float(radii[i]), 4), round(float(radii[i + 1]), 4)))


def _foramina(curve: SacralCurve) -> list[Part]:
    parts = []
    for i, level in enumerate(LEVELS):
        for word, side in SIDES:
            front = _curved(curve, (FORAMEN_INNER[i], FORAMEN_FORK[i], FORAMEN_FRONT[i]), side)
            back = _curved(curve, (FORAMEN_FORK[i], FORAMEN_BACK[i]), side)
            solids = (
                _tube(curve, front, FORAMEN_RADII[i], 6.0),
                _tube(curve, back, FORAMEN_BACK_RADII[i]),
            )
            parts.append(Part(f"{level} foramen {word}", Kind.CRITICAL, "Sacrum", solids))
    return parts


def _nerves(curve: SacralCurve) -> list[Part]:
    parts = []
    for word, side in SIDES:
        trunk = _tube(curve, _curved(curve, TRUNK, side), 2.7)
        parts.append(Part(f"Lumbosacral trunk {word}", Kind.CRITICAL, "Sacrum", (trunk,)))
    for i, level in enumerate(LEVELS):
        for word, side in SIDES:
            way = (*ROOT_STARTS[i], FORAMEN_INNER[i], FORAMEN_FORK[i], FORAMEN_FRONT[i], *ROOT_ENDS[i])
            root = _tube(curve, _curved(curve, way, side), ROOT_RADII[i], 6.0)
            parts.append(Part(f"{level} root {word}", Kind.CRITICAL, "Sacrum", (root,)))
    return parts


def _entry(skin: tuple[Primitive, ...], target: Array, direction: Array) -> Array:
    """Where the ray from the target along ``direction`` leaves the skin, by bisection on the union."""
    unit = direction / np.linalg.norm(direction)
    low, high = 0.0, 250.0
    for _ in range(60):
        middle = (low + high) / 2.0
        x, y, z = target + middle * unit
        inside = min(float(p.signed_distance(np.array(x), np.array(y), np.array(z))) for p in skin) < 0.0
        low, high = (middle, high) if inside else (low, middle)
    result: Array = np.round(target + low * unit, 3)
    return result


def primitives_record(plan: Layout, seed: int, label_of: dict[str, int]) -> dict[str, Any]:
    """Return the content of ``primitives.json``: every structure with an exact shape, in plain numbers, LPS mm."""
    return {
        "frame": "LPS",
        "units": "mm",
        "seed": seed,
        "structures": {
            part.name: {
                "kind": part.kind.value,
                "label": label_of[part.name],
                "primitives": [p.record() for p in part.primitives],
            }
            for part in plan.parts
            if part.primitives
        },
    }
