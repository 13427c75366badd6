"""Owns what a bead phantom *is* and which of its beads is which in an X-ray, without a click.

Some beads are bigger than the rest: three of them give a pose of a nominal C-arm, the pose says where all others must
be, and the pose that most agree with wins.  Refuses phantoms without such a code, pictures that no pose explains, that
two poses explain alike, or that are mirrored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from calibration.beads import Beads
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array, frozen_array

MIN_BEADS: Final = 12
MIN_DEPTH_MM: Final = 20.0
CODE_BEADS: Final = (4, 12)
CODE_RATIO: Final = 1.25
"""Least ratio of the big beads' diameter to the small ones'."""
TRIPLES: Final = 10
FINALISTS: Final = 40
COARSE_SHARE: Final = 0.035
"""Of the picture's side: what a nominal C-arm and no distortion may put a bead off by."""
FINE_SHARE: Final = 0.006
AGREEMENT: Final = 0.5
"""Least share of pairs among all shadows, and beads that should be in the picture."""
RIVAL_SHARE: Final = 0.75
"""A second pose that agrees so well compared to the best one makes the picture ambiguous."""
SEED: Final = 5


@dataclass(frozen=True, slots=True, eq=False)
class BeadPhantom:
    """A body of metal beads at known places.

    Attributes
    ----------
    name : str
    beads_mm : (N, 3)
        In the phantom's frame.
    diameters_mm : (N,)
        The largest ones are the code.
    made_to_mm : float
        One sigma of a bead's place along one axis.

    Raises
    ------
    CalibrationError
        Too few beads, all in one plane, no code of bigger beads, coincident beads, numbers that are not finite.
    """

    name: str
    beads_mm: Array
    diameters_mm: Array
    made_to_mm: float = 0.02

    def __post_init__(self) -> None:
        beads, diameters = np.asarray(self.beads_mm, dtype=np.float64), np.asarray(self.diameters_mm, dtype=np.float64)
        if beads.ndim != 2 or beads.shape[1] != 3 or diameters.shape != (len(beads),):
            raise CalibrationError(f"phantom {self.name}: beads of shape {beads.shape}, diameters {diameters.shape}")
        if len(beads) < MIN_BEADS:
            raise CalibrationError(f"phantom {self.name}: {len(beads)} beads, at least {MIN_BEADS} are needed")
        if not (np.isfinite(beads).all() and np.isfinite(diameters).all() and (diameters > 0.0).all()):
            raise CalibrationError(f"phantom {self.name}: a bead's place or diameter is not a finite, positive number")
        if not 0.0 <= self.made_to_mm <= 1.0:
            raise CalibrationError(f"phantom {self.name}: made to {self.made_to_mm} mm, 0 to 1 mm expected")
        gaps, nearest = cKDTree(beads).query(beads, k=2)
        if (gaps[:, 1] < diameters).any():
            i = int((gaps[:, 1] - diameters).argmin())
            raise CalibrationError(
                f"phantom {self.name}: beads {i + 1} and {int(nearest[i, 1]) + 1} are {gaps[i, 1]:.2f} mm apart, "
                f"less than their diameter"
            )
        depth = float(np.linalg.svd(beads - beads.mean(axis=0), compute_uv=False)[2]) / np.sqrt(len(beads))
        if 2.0 * depth < MIN_DEPTH_MM / 2.0:
            raise CalibrationError(
                f"phantom {self.name}: its beads lie within {depth:.1f} mm (rms) of one plane, at least "
                f"{MIN_DEPTH_MM / 4.0:g} mm needed to tell the source's distance"
            )
        code = int((diameters >= 0.95 * diameters.max()).sum())
        rest = diameters[diameters < 0.95 * diameters.max()]
        if not CODE_BEADS[0] <= code <= CODE_BEADS[1] or not len(rest) or diameters.max() < CODE_RATIO * rest.max():
            raise CalibrationError(
                f"phantom {self.name}: {code} beads of the largest diameter, {CODE_BEADS[0]} to {CODE_BEADS[1]} "
                f"needed, each at least {CODE_RATIO:g} times as wide as the rest"
            )
        object.__setattr__(self, "beads_mm", frozen_array(beads, beads.shape))
        object.__setattr__(self, "diameters_mm", frozen_array(diameters, diameters.shape))

    @property
    def code(self) -> NDArray[np.intp]:
        """Which beads are the big ones."""
        return np.flatnonzero(self.diameters_mm >= 0.95 * self.diameters_mm.max())

    def radii_px(self, sdd_mm: float, pixel_mm: float) -> tuple[float, float]:
        """Return the least and largest radius of a shadow of a C-arm with the phantom between detector and half way."""
        least, largest = float(self.diameters_mm.min()) / 2.0, float(self.diameters_mm.max()) / 2.0
        return max(1.1 * least / pixel_mm, 1.5), max(2.4 * largest / pixel_mm, 2.0)


@dataclass(frozen=True, slots=True, eq=False)
class NominalArm:
    """What is known of a C-arm before: enough to recognise beads, not to measure with."""

    sdd_mm: float
    pixel_mm: float
    columns: int
    rows: int

    def __post_init__(self) -> None:
        if not (200.0 <= self.sdd_mm <= 3000.0 and 0.02 <= self.pixel_mm <= 2.0):
            raise CalibrationError(
                f"C-arm of {self.sdd_mm:g} mm from source to detector and {self.pixel_mm:g} mm a pixel: 200 to 3000 mm "
                "and 0.02 to 2 mm expected"
            )

    @property
    def focal_px(self) -> float:
        """Source to detector in pixels."""
        return self.sdd_mm / self.pixel_mm

    @property
    def middle_px(self) -> Array:
        """The middle of the picture, (column, row)."""
        return np.array([(self.columns - 1) / 2.0, (self.rows - 1) / 2.0])


@dataclass(frozen=True, slots=True, eq=False)
class BeadMatch:
    """Which shadow is which bead, with the camera that said so: good enough to start from."""

    shadows: NDArray[np.intp]
    beads: NDArray[np.intp]
    camera: Array
    """(10,): rotation vector, translation in mm, focal length, principal point, radial bending."""
    rms_px: float
    agreement: float
    """Pairs among all shadows, and beads that should be in the picture (Jaccard)."""
    rival_share: float = 0.0
    """Agreement of the best pose that pairs otherwise, compared to this one."""


def match_beads(found: Beads, phantom: BeadPhantom, arm: NominalArm) -> BeadMatch:
    """Return which shadow is which bead.

    Raises
    ------
    CalibrationError
        Too few shadows, no pose that explains them, two poses, or a mirrored picture.
    """
    if len(found.centres_px) < MIN_BEADS // 2:
        raise CalibrationError(
            f"{len(found.centres_px)} beads seen, at least {MIN_BEADS // 2} needed of the {len(phantom.beads_mm)} of "
            f"{phantom.name}"
        )
    finalists = _finalists(found.centres_px, found.metal, phantom, arm)
    if not finalists or finalists[0].agreement < AGREEMENT:
        agreement = finalists[0].agreement if finalists else 0.0
        mirrored = found.centres_px * (-1.0, 1.0) + (arm.columns - 1, 0.0)
        turned = _finalists(mirrored, found.metal, phantom, arm)
        if turned and turned[0].agreement > max(AGREEMENT, agreement + 0.2):
            raise CalibrationError("the picture is mirrored: flip it left to right, as seen from the source")
        raise CalibrationError(
            f"no pose of {phantom.name} explains the picture: {100 * agreement:.0f} % of {len(found.centres_px)} "
            f"shadows and the beads agree, {100 * AGREEMENT:.0f} % needed; are phantom, pixel size and distance right?"
        )
    best = finalists[0]
    pairs = set(zip(best.shadows.tolist(), best.beads.tolist(), strict=True))
    rival = 0.0
    for other in finalists[1:]:
        shared = len(pairs & set(zip(other.shadows.tolist(), other.beads.tolist(), strict=True)))
        if shared < 0.5 * len(other.shadows):
            rival = max(rival, other.agreement / best.agreement)
    if rival > RIVAL_SHARE:
        raise CalibrationError(
            f"two poses of {phantom.name} explain the picture: the second agrees {100 * rival:.0f} % as well as the "
            f"first, at most {100 * RIVAL_SHARE:.0f} %; its code of big beads is too regular, or too little is seen"
        )
    return replace(best, rival_share=rival)


def _finalists(centres: Array, metal: Array, phantom: BeadPhantom, arm: NominalArm) -> list[BeadMatch]:
    """Return the poses that most shadows agree with, the best first."""
    big = _big_shadows(metal, phantom)
    code = phantom.beads_mm[phantom.code]
    if len(big) < 4:
        return []
    poses = _poses(centres[big], code, arm)
    if not len(poses):
        return []
    tolerance = COARSE_SHARE * max(arm.columns, arm.rows)
    shape = np.tile([arm.focal_px, *arm.middle_px, 0.0], (len(poses), 1))
    cameras = np.column_stack([poses, shape])
    scores = np.zeros(len(cameras))
    for start in range(0, len(cameras), 2000):
        part = cameras[start : start + 2000]
        gaps = np.linalg.norm(_projected(part, code)[:, None] - centres[big][None, :, None], axis=3)
        # Each shadow must have a bead and each bead a shadow, or a pose far away would please everyone.
        scores[start : start + 2000] = np.minimum(
            np.maximum(1.0 - gaps.min(axis=2) / tolerance, 0.0).sum(axis=1),
            np.maximum(1.0 - gaps.min(axis=1) / tolerance, 0.0).sum(axis=1),
        )
    finalists: list[BeadMatch] = []
    seen: list[Array] = []
    is_big = np.isin(np.arange(len(centres)), big)
    for index in np.argsort(-scores)[:FINALISTS]:
        if scores[index] < 2.5:
            break
        places = _projected(cameras[index][None], phantom.beads_mm)[0]
        if any(float(np.median(np.linalg.norm(places - other, axis=1))) < tolerance / 2 for other in seen):
            continue
        one = _grown(cameras[index], centres, is_big, phantom, arm)
        # Whatever started here or would end there is this one again.
        seen.append(places)
        if one is not None:
            finalists.append(one)
            seen.append(_projected(one.camera[None], phantom.beads_mm)[0])
    finalists.sort(key=lambda one: (-one.agreement, one.rms_px))
    return finalists


def _big_shadows(metal: Array, phantom: BeadPhantom) -> NDArray[np.intp]:
    """Return the shadows of big beads: those above the widest gap in metal, of as many as the code can show."""
    order = np.argsort(-metal)
    steps = -np.diff(np.log(np.maximum(metal[order], 1e-12)))
    most = min(len(phantom.code) + 2, len(steps))
    count = 4 + int(np.argmax(steps[3:most])) if most > 3 else 0
    return np.asarray(order[:count])


def _poses(shadows: Array, code: Array, arm: NominalArm) -> Array:
    """Return poses (P, 6) of a nominal C-arm from every assignment of some triples of shadows to triples of beads."""
    triples = [t for t in combinations(range(len(shadows)), 3)]
    areas = np.array([abs(float(np.linalg.det(shadows[list(t[1:])] - shadows[t[0]]))) for t in triples])
    wide = np.flatnonzero(areas > 0.35 * areas.max())
    chosen = np.random.default_rng(SEED).permutation(wide)[:TRIPLES]
    camera = np.array([[arm.focal_px, 0, arm.middle_px[0]], [0, arm.focal_px, arm.middle_px[1]], [0, 0, 1]])
    poses = []
    for index in chosen:
        seen = shadows[list(triples[int(index)])]
        for beads in permutations(range(len(code)), 3):
            count, turns, shifts = cv2.solveP3P(code[list(beads)], seen, camera, None, flags=cv2.SOLVEPNP_P3P)
            for turn, shift in zip(turns[:count], shifts[:count], strict=True):
                if 0.2 * arm.sdd_mm < float(shift[2, 0]) < 1.1 * arm.sdd_mm:
                    poses.append(np.concatenate([turn.ravel(), shift.ravel()]))
    return np.array(poses, dtype=np.float64).reshape(-1, 6)


def _projected(cameras: Array, points: Array) -> Array:
    """Return (C, N, 2) places of points (N, 3) for cameras (C, 10)."""
    turns = Rotation.from_rotvec(cameras[:, :3]).as_matrix()
    seen = points @ turns.transpose(0, 2, 1) + cameras[:, None, 3:6]
    x = seen[..., :2] / np.maximum(seen[..., 2:], 1.0)
    bend = 1.0 + cameras[:, None, 9:10] * (x**2).sum(axis=-1, keepdims=True)
    places: Array = cameras[:, None, 6:7] * x * bend + cameras[:, None, 7:9]
    return places


def _grown(
    camera: Array, centres: Array, is_big: NDArray[np.bool_], phantom: BeadPhantom, arm: NominalArm
) -> BeadMatch | None:
    """Return the match that a camera grows into when it is fitted to ever more beads that come ever closer.

    Big shadows are of big beads: without that a regular grid would fit one row further just as well.
    """
    side = max(arm.columns, arm.rows)
    scale = np.array([0.02, 0.02, 0.02, 5.0, 5.0, 30.0, 0.08 * arm.focal_px, 0.03 * side, 0.03 * side, 2.0])
    prior = np.array([arm.focal_px, *arm.middle_px, 0.0])
    coded = np.isin(np.arange(len(phantom.beads_mm)), phantom.code)
    # The sizes as a third coordinate, further apart than any two places.
    labelled = np.column_stack([centres, 10.0 * side * is_big])
    tree = cKDTree(labelled)
    shadows = beads = np.empty(0, dtype=np.intp)
    left = 0.0
    for share in (COARSE_SHARE, COARSE_SHARE / 2, COARSE_SHARE / 3, FINE_SHARE, FINE_SHARE):
        places = _projected(camera[None], phantom.beads_mm)[0]
        gaps, nearest = tree.query(np.column_stack([places, 10.0 * side * coded]))
        back = cKDTree(np.column_stack([places, 10.0 * side * coded])).query(labelled)[1]
        mutual = (gaps < share * side) & (back[nearest] == np.arange(len(places)))
        beads = np.flatnonzero(mutual)
        shadows = nearest[beads]
        if len(beads) < 5:
            return None
        wanted, points = centres[shadows], phantom.beads_mm[beads]

        def off(p: Array, wanted: Array = wanted, points: Array = points, share: float = share) -> Array:
            """Return the scaled misses (C, 2 B + 4) of cameras (C, 10)."""
            misses = (_projected(p, points) - wanted).reshape(len(p), -1) / (0.3 * share * side)
            return np.concatenate([misses, (p[:, 6:] - prior) / scale[6:]], axis=1)

        camera = _settled(off, camera, scale)
        left = float(np.sqrt(((_projected(camera[None], points)[0] - wanted) ** 2).sum(axis=1).mean()))
    places = _projected(camera[None], phantom.beads_mm)[0]
    margin = 0.02 * side
    expected = int(((places > margin) & (places < (arm.columns - margin, arm.rows - margin))).all(axis=1).sum())
    return BeadMatch(shadows, beads, camera, left, len(beads) / max(len(centres) + expected - len(beads), len(beads)))


def _settled(off: Callable[[Array], Array], camera: Array, scale: Array) -> Array:
    """Return the camera (10,) of least misses, of which the far ones count less; derivatives in one call."""
    steps = np.diag(1e-6 * scale)

    def derivative(p: Array) -> Array:
        values = off(np.concatenate([p + steps, p - steps]))
        return np.asarray((values[: len(p)] - values[len(p) :]).T / (2e-6 * scale))

    found = least_squares(
        lambda p: off(p[None])[0], camera, jac=derivative, x_scale=scale, loss="soft_l1", max_nfev=15, ftol=1e-4
    )
    return np.asarray(found.x)
