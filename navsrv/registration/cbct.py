"""Owns the registration of a CBCT or O-arm volume to the CT: pose, covariance, and a verdict on its own work.

The path: search every translation over a lattice of rotations (``search``), refine the best candidates of different
basins, decide between basins at a coarse level, refine the winner at two finer levels with bone weighted up
(``tiles``), then look back: how well do the images agree, how much of the volume lies in the CT, do other starts end
in the same place, how much worse is the next best basin, do the halves of the volume agree.

Where the covariance comes from (``Spread``): the tiles of the volume are dealt into disjoint groups, each group gives
its own small correction of the pose, and the scatter of these corrections, divided by their number, is the variance of
the mean.  It is inflated by a factor found in trials with known truth, half the disagreement of opposite halves of
the volume is added at the target, and a floor for what no subset can see: interpolation, scanner geometry.
It describes the error *within* the right basin; a wrong basin is the verdict's business.

Same inputs, same result, to the bit: no random numbers, one thread, fixed order of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navsrv.kernel.errors import RegistrationError
from navsrv.kernel.frames import CT, VOLUME, Array, Rigid, frozen_array
from navsrv.kernel.registration import RegistrationResult, Verdict, tre_rms_mm
from navsrv.registration.aside import Aside, begun
from navsrv.registration.images import CtImage, Grid, blur, bone_weight, ct_grid, reduce_to, trim, volume_grid
from navsrv.registration.search import FLIPS, band_pass, pose_distance_mm, search
from navsrv.registration.tiles import (
    Level,
    Refined,
    covariance_about_origin,
    cut_tiles,
    demeaned,
    moved,
    normal_equations,
    refine,
)

CANDIDATES: Final = 40
RIVALS: Final = 5
"""Places that are compared at the middle level, where a wrong one stands out far more than at the coarse one."""
MIRROR_CANDIDATES: Final = 8
BRIEF: Final = 8
BRIEF_MM: Final = 0.1
"""Iterations and tolerance of a start's first refinement; what is worth it is taken up again."""
SAME_BASIN_MM: Final = 6.0
ARRIVED_MM: Final = 3.0
"""A refinement that ends so near the best place is taken to have arrived there."""
LEVEL_SHIFTS_MM: Final = (-45.0, -35.0, -25.0, -15.0, 15.0, 25.0, 35.0, 45.0)
"""Shifts along the CT's long axis that the winner is challenged with: a neighbouring vertebra or sacral segment."""
FULL_OVERLAP: Final = 0.4
"""Share of the volume inside the CT from which more adds nothing to a place's rank."""
GROUPS: Final = 8
INFLATION: Final = 2.0
"""Factor on the standard deviation from the scatter of groups; see tests/registration/test_cbct.py for its coverage."""
FLOOR_VOXELS: Final = 0.1
FLOOR_MM: Final = 0.15
"""Standard deviation per axis that no subset can see: interpolation, in voxels of the coarser image, and the scale of
either scanner (0.2 % at 80 mm), in mm."""

Progress = Callable[[float, str], None]


class VolumeLike(Protocol):
    """What is read of a volume: ``kernel.samples.VolumeSample`` has it."""

    @property
    def voxels(self) -> NDArray[np.generic]:
        """Values (k, j, i)."""

    @property
    def index_to_volume_mm(self) -> Array:
        """(4, 4) map of (i, j, k, 1) to millimetres."""


@dataclass(frozen=True, slots=True)
class CbctLimits:
    """Thresholds of the verdict: (accept, refuse) of each figure."""

    correlation: tuple[float, float] = (0.75, 0.6)
    overlap: tuple[float, float] = (0.4, 0.25)
    margin: tuple[float, float] = (0.2, 0.1)
    mirror_margin: tuple[float, float] = (0.02, 0.0)
    spread_mm: tuple[float, float] = (0.5, 2.0)
    halves_mm: tuple[float, float] = (1.5, 4.0)
    tre_mm: tuple[float, float] = (1.5, 4.0)


@dataclass(frozen=True, slots=True, eq=False)
class PreparedCt:
    """A CT made ready once per case: three levels of blur, and the weight of bone."""

    fine: Grid
    middle: Grid
    coarse: Grid
    bone: Grid
    native_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """What disjoint parts of the volume say of the pose: steps (rotation_rad, translation_mm) about ``centre_mm``."""

    covariance: Array
    centre_mm: Array
    halves: tuple[Array, ...]

    def halves_mm(self, target_ct_mm: Array) -> float:
        """Return the largest distance (mm) at the target between the poses of opposite halves."""
        arm = target_ct_mm - self.centre_mm
        return max(float(np.linalg.norm(step[3:] + np.cross(step[:3], arm))) for step in self.halves)


def prepare_ct(ct: CtImage) -> PreparedCt:
    """Return the CT ready for any number of registrations (about a second for 400 x 300 x 330 voxels)."""
    fine = ct_grid(ct)
    bone = bone_weight(fine)
    if not (fine.values > 0.2).any():
        raise RegistrationError("the CT holds nothing above 200 HU: no bone to register to")
    native = float(np.linalg.norm(np.asarray(ct.index_to_ct_mm)[:3, :3], axis=0).max())
    return PreparedCt(
        trim(blur(fine, 0.8), 3.0), trim(blur(fine, 1.3), 4.0), trim(blur(reduce_to(fine, 2.4), 2.5), 7.0), bone, native
    )


def register_cbct(
    ct: CtImage | PreparedCt,
    volume: VolumeLike,
    *,
    initial: Rigid | None = None,
    target_ct_mm: ArrayLike | None = None,
    limits: CbctLimits | None = None,
    progress: Progress | None = None,
    aside: Aside | None = None,
) -> RegistrationResult:
    """Return ``T_ct_from_volume`` with covariance, predicted TRE and a verdict.

    Parameters
    ----------
    ct : CtImage or PreparedCt
    volume : VolumeSample or alike
    initial : Rigid or None
        A rough pose, CT from volume: its rotation is trusted to some 25 degrees, its translation is one more start.
        None: the volume's axes are the CT's to some 25 degrees, or half a turn about one of them (prone, feet first).
    target_ct_mm : (3,) or None
        Where the error matters; None takes the middle of the overlap.
    progress : callable or None
        Called with a fraction and a word.
    aside : Aside or None
        Who looks at the volume's mirror image meanwhile; the result is the same.

    Raises
    ------
    RegistrationError
        The volume or the CT holds nothing to register.
    """
    say: Progress = progress or (lambda fraction, word: None)
    say(0.0, "preparing")
    prepared = prepare_ct(ct) if isinstance(ct, CtImage) else ct
    grid = volume_grid(np.asarray(volume.voxels), np.asarray(volume.index_to_volume_mm, dtype=np.float64))
    say(0.2, "searching")
    orientations = list(FLIPS) if initial is None else [np.asarray(initial.rotation)]
    stages = _Stages.of(grid)
    starts = [c.pose for c in search(prepared.coarse, stages.band, orientations, CANDIDATES)]
    if initial is not None:
        starts.append(initial.matrix)
    if not starts:
        raise RegistrationError("the volume and the CT overlap nowhere enough to be compared")
    say(0.6, "refining")
    basins = _basins(prepared, stages, starts)
    mirrored = begun(aside, partial(_mirrored_correlation, prepared, stages, basins[0].middle.pose))
    middle, spread_mm = _displaced_starts(prepared, stages, basins[0].middle.pose, target_ct_mm)
    say(0.8, "finest level")
    level = _level(prepared.fine, blur(grid, 0.7), 2.4, 16.0, 60_000, prepared, middle.pose)
    final = refine(level, middle.pose)
    parts = _spread(level, final.pose)
    say(0.95, "judging")
    return _result(
        prepared, grid, _Findings(final, middle, basins, mirrored(), spread_mm, parts), target_ct_mm,
        limits or CbctLimits(),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _Stages:
    """The volume as stages before the finest need it: for the search, the comparison of places, the middle level."""

    band: Grid
    coarse: Grid
    middle: Grid

    @classmethod
    def of(cls, grid: Grid) -> _Stages:
        """Return the stages of a volume."""
        return cls(band_pass(grid), blur(reduce_to(grid, 3.0), 2.6), blur(reduce_to(grid, 2.0), 1.3))

    def mirrored(self, flip: Array) -> _Stages:
        """Return the stages of the volume's image under ``flip`` (3, 3) of its millimetres."""

        def turned(grid: Grid) -> Grid:
            matrix = grid.index_to_mm.copy()
            matrix[:3] = flip @ matrix[:3]
            return Grid(grid.values, matrix, grid.valid)

        return _Stages(turned(self.band), turned(self.coarse), turned(self.middle))


@dataclass(frozen=True, slots=True, eq=False)
class _Findings:
    final: Refined
    middle: Refined
    basins: list[_Basin]
    mirrored: float
    spread_mm: float
    parts: Spread


def _level(
    ct: Grid, volume: Grid, spacing_mm: float, tile_mm: float, limit: int, prepared: PreparedCt, pose: Array
) -> Level:
    """Return a level whose points are weighted by bone where ``pose`` puts them in the CT; others are left out."""
    to_index = np.linalg.inv(prepared.bone.index_to_mm) @ pose
    shape = np.array(prepared.bone.values.shape)

    def weigh(points_mm: Array) -> NDArray[np.float32]:
        index = np.rint(points_mm @ to_index[:3, :3].T + to_index[:3, 3]).astype(np.int64)[:, ::-1]
        inside = ((index >= 0) & (index < shape)).all(axis=1)
        weights = np.zeros(len(index), dtype=np.float32)
        weights[inside] = prepared.bone.values[tuple(index[inside].T)]
        return weights

    return Level.make(ct, cut_tiles(volume, spacing_mm, tile_mm, limit, weigh))


@dataclass(frozen=True, slots=True, eq=False)
class _Basin:
    """A place where refinements end: its pose at the coarse and the middle level, and the starts that ended there."""

    coarse: Refined
    middle: Refined
    starts: int

    @property
    def rank(self) -> float:
        """Correlation at the middle level, less where little of the volume overlaps (a sliver correlates easily)."""
        return self.middle.correlation * min(1.0, self.coarse.overlap / FULL_OVERLAP)


def _basins(prepared: PreparedCt, stages: _Stages, starts: list[Array]) -> list[_Basin]:
    """Return the best places for the volume, the best first; they differ by more than ``SAME_BASIN_MM``."""
    level = _coarse_level(prepared, stages)
    ends = [refine(level, start, BRIEF, BRIEF_MM) for start in starts]
    best = max(ends, key=_rank)
    for shift in LEVEL_SHIFTS_MM:
        pose = best.pose.copy()
        pose[2, 3] += shift
        ends.append(refine(level, pose, BRIEF, BRIEF_MM))
    # A slow descent into the best basin must not pass for a rival: carry on until each has arrived.
    centre, best = stages.coarse.centre_mm, _settled(level, best)
    ends = [_arrived(level, end, best, centre) for end in ends]
    places: list[tuple[Refined, int]] = []
    for number in sorted(range(len(ends)), key=lambda n: -_rank(ends[n])):
        end, counts = ends[number], number < len(starts)
        for at, (place, votes) in enumerate(places):
            if pose_distance_mm(end.pose, place.pose, centre) < SAME_BASIN_MM:
                places[at] = (place, votes + counts)
                break
        else:
            places.append((end, int(counts)))
    near = [place for place in places if _rank(place[0]) > 0.5 * _rank(places[0][0])] or places[:1]
    found = [
        _Basin(place, refine(_middle_level(prepared, stages, place.pose), place.pose), votes)
        for place, votes in near[:RIVALS]
    ]
    # The finer level can bring two places together.
    first = max(found, key=lambda basin: basin.rank)
    rest = [b for b in found if pose_distance_mm(b.middle.pose, first.middle.pose, centre) > SAME_BASIN_MM]
    return [first, *sorted(rest, key=lambda basin: -basin.rank)]


def _coarse_level(prepared: PreparedCt, stages: _Stages) -> Level:
    """Return the level on which basins are compared: no bone weights, since these depend on the pose."""
    return Level.make(prepared.coarse, cut_tiles(stages.coarse, 6.0, 32.0, 5000))


def _middle_level(prepared: PreparedCt, stages: _Stages, pose: Array) -> Level:
    """Return the middle level, its points weighted by bone."""
    return _level(prepared.middle, stages.middle, 3.6, 20.0, 30_000, prepared, pose)


def _mirrored_correlation(prepared: PreparedCt, stages: _Stages, pose: Array) -> float:
    """Return the best correlation of the volume's mirror image, at the middle level.

    Near the plain one, left and right may be exchanged.
    A pelvis nearly is its own mirror image, so a volume stored the wrong way round finds a place that looks right; but
    its mirror image then fits better still.
    """
    flip = np.diag([-1.0, 1.0, 1.0])
    image = stages.mirrored(flip)
    orientation = flip @ pose[:3, :3] @ flip
    level = _coarse_level(prepared, image)
    ends = [
        refine(level, start.pose) for start in search(prepared.coarse, image.band, [orientation], MIRROR_CANDIDATES)
    ]
    if not ends:
        return 0.0
    likeliest = max((_settled(level, end) for end in sorted(ends, key=_rank)[-3:]), key=_rank)
    return refine(_middle_level(prepared, image, likeliest.pose), likeliest.pose).correlation


def _arrived(level: Level, end: Refined, best: Refined, centre: Array) -> Refined:
    """Return where an end comes to rest; one that is at the best already, or far worse, is left as it is."""
    if _rank(end) <= 0.5 * _rank(best):
        return end
    return best if pose_distance_mm(end.pose, best.pose, centre) < ARRIVED_MM else _settled(level, end)


def _settled(level: Level, end: Refined) -> Refined:
    """Return where a refinement ends that is taken up again until nothing is gained."""
    for _ in range(8):
        again = refine(level, end.pose, 40)
        if again.correlation < end.correlation + 1e-4:
            return again
        end = again
    return end


def _rank(end: Refined) -> float:
    """Return the correlation, less where little of the volume overlaps (a sliver correlates easily)."""
    return end.correlation * min(1.0, end.overlap / FULL_OVERLAP)


def _displaced_starts(
    prepared: PreparedCt, stages: _Stages, pose: Array, target_ct_mm: ArrayLike | None
) -> tuple[Refined, float]:
    """Return the pose at the middle level and how far apart (mm, at the target) displaced starts end."""
    level = _middle_level(prepared, stages, pose)
    first = refine(level, pose)
    centre = first.pose[:3, :3] @ level.tiles.centre_mm + first.pose[:3, 3]
    target = centre if target_ct_mm is None else np.asarray(target_ct_mm, dtype=np.float64)
    in_volume = first.pose[:3, :3].T @ (target - first.pose[:3, 3])
    ends = [first]
    for sign, axis in ((1.0, 0), (-1.0, 1), (1.0, 2)):
        shift, turn = np.roll([sign * 3.0, 2.0, -2.0], axis), np.roll([sign * 0.05, -0.03, 0.03], axis)
        ends.append(refine(level, moved(first.pose, np.concatenate((turn, shift)), centre)))
    at_target = np.array([end.pose[:3, :3] @ in_volume + end.pose[:3, 3] for end in ends])
    spread = float(np.linalg.norm(at_target - at_target[0], axis=1).max())
    return first, spread


def _spread(level: Level, pose: Array) -> Spread:
    """Return covariance and half-volume steps at a pose from disjoint sets of tiles (one linear step each)."""
    centre = pose[:3, :3] @ level.tiles.centre_mm + pose[:3, 3]
    sums = demeaned(level.sums(pose, centre))
    whole = normal_equations(sums)
    steps = np.array([_step(sums[group::GROUPS], whole.hessian) for group in range(GROUPS)])
    scatter = steps - steps.mean(axis=0)
    sandwich = scatter.T @ scatter / (GROUPS - 1) / GROUPS
    # Eight groups carry too few numbers for 21 of a covariance: keep the shape of the curvature, take the scale.
    shape = np.linalg.inv(whole.hessian + np.eye(6) * 1e-9 * np.trace(whole.hessian))
    scale = float(np.trace(np.linalg.solve(shape, sandwich)) / 6.0)
    offsets = level.tiles.centres_mm - level.tiles.centre_mm
    halves = []
    for axis in range(3):
        upper = offsets[:, axis] > np.median(offsets[:, axis])
        halves.append(_step(sums[upper], whole.hessian) - _step(sums[~upper], whole.hessian))
    return Spread(scale * shape, centre, tuple(halves))


def _step(sums: Array, whole_hessian: Array) -> Array:
    """Return the step that a subset of tiles asks for, held by a trace of the whole where the subset is blind."""
    part = normal_equations(sums)
    return np.asarray(np.linalg.solve(part.hessian + 1e-3 * whole_hessian, part.gradient), dtype=np.float64)


def _result(
    prepared: PreparedCt, grid: Grid, found: _Findings, target_ct_mm: ArrayLike | None, limits: CbctLimits
) -> RegistrationResult:
    """Return the result with its covariance about the CT's origin and the verdict."""
    centre = found.parts.centre_mm
    target = centre if target_ct_mm is None else np.asarray(target_ct_mm, dtype=np.float64)
    halves_mm = found.parts.halves_mm(target)
    floor = float(np.hypot(FLOOR_VOXELS * max(prepared.native_mm, float(grid.spacing_mm.max())), FLOOR_MM))
    scatter = INFLATION**2 * found.parts.covariance
    systematic = np.zeros((6, 6))
    systematic[3:, 3:] = np.eye(3) * (floor**2 + (0.5 * halves_mm) ** 2 / 3.0)
    systematic[:3, :3] = np.eye(3) * (floor / 80.0) ** 2
    covariance = covariance_about_origin(scatter + systematic, centre)
    pose = found.final.pose
    transform = Rigid(CT, VOLUME, pose[:3, :3], pose[:3, 3], 0.5 * (covariance + covariance.T))
    tre = tre_rms_mm(transform, target)
    best = found.basins[0]
    rival = max(found.basins[1].rank, 0.0) if len(found.basins) > 1 else 0.0
    details = (
        ("correlation", found.middle.correlation),
        ("correlation_fine", found.final.correlation),
        ("correlation_coarse", best.coarse.correlation),
        ("overlap", best.coarse.overlap),
        ("next_basin_correlation", rival),
        ("margin", best.rank - rival),
        ("mirrored_correlation", found.mirrored),
        ("mirror_margin", found.middle.correlation - found.mirrored),
        ("starts_agreeing", float(best.starts)),
        ("spread_of_starts_mm", found.spread_mm),
        ("halves_mm", halves_mm),
    )
    verdict, reason = _judge(dict(details), tre, limits)
    return RegistrationResult("cbct", transform, frozen_array(target, (3,)), tre, None, verdict, reason, details)


def _judge(figures: dict[str, float], tre_mm: float, limits: CbctLimits) -> tuple[Verdict, str]:
    """Return the verdict and the numbers that decided it; the worst finding wins."""
    refuse: list[str] = []
    doubt: list[str] = []

    def at_least(what: str, value: float, bounds: tuple[float, float]) -> None:
        if value < bounds[1]:
            refuse.append(f"{what} {value:.2f}, below {bounds[1]:g}")
        elif value < bounds[0]:
            doubt.append(f"{what} {value:.2f}, below {bounds[0]:g}")

    def at_most(what: str, value: float, bounds: tuple[float, float]) -> None:
        if value > bounds[1]:
            refuse.append(f"{what} {value:.2f} mm, above {bounds[1]:g} mm")
        elif value > bounds[0]:
            doubt.append(f"{what} {value:.2f} mm, above {bounds[0]:g} mm")

    at_least("the images agree with correlation", figures["correlation"], limits.correlation)
    at_least("share of the volume inside the CT", figures["overlap"], limits.overlap)
    at_least("lead over the next best place", figures["margin"], limits.margin)
    at_least("lead over the volume's mirror image", figures["mirror_margin"], limits.mirror_margin)
    at_most("displaced starts end apart by", figures["spread_of_starts_mm"], limits.spread_mm)
    at_most("halves of the volume disagree at the target by", figures["halves_mm"], limits.halves_mm)
    at_most("predicted TRE at the target", tre_mm, limits.tre_mm)
    if refuse or doubt:
        return (Verdict.REFUSE if refuse else Verdict.DOUBT), "; ".join(refuse or doubt)
    return (
        Verdict.ACCEPT,
        f"correlation {figures['correlation']:.2f}, {figures['margin']:.2f} ahead of the next best place, "
        f"predicted TRE at the target {tre_mm:.2f} mm",
    )
