"""Owns the trials: results that are right, and results that cannot be, each with what registration said of itself.

A trial is *good* when it ends within ``GOOD_MM`` of the truth (mean target registration error over the bone, in 3D) and
shows the patient that it is registered to; every other is *bad*, near misses included.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np

from navsrv.kernel.errors import RegistrationError
from navsrv.kernel.frames import CT, Array, Rigid, rotation_from_vector
from navsrv.kernel.projection import ProjectionModel
from navsrv.registration.fluoro import PreparedBone, axis_shifts, prepare_bone, register_fluoro
from navsrv.registration.fluoro_views import XrayView
from simulators.verdict.patients import patient
from simulators.verdict.scenes import PAIRS, Scene, SceneSpec, make_scene

GOOD_MM: Final = 2.0
BINS_MM: Final = tuple((float(low), low + 5.0) for low in range(0, 40, 5))
TUNING: Final = ("spine:31:0", "spine:33:1", "sacrum:1", "sacrum:3", "spine:31:4", "sacrum:2")
HELD_OUT: Final = ("spine:30:5", "sacrum:21", "spine:32:3", "sacrum:22", "spine:34:6", "sacrum:23")
"""Vertebrae (L2, T12, T10), proportions, pelves that nothing was set on; an earlier set was looked at, and is left."""
BAD: Final = ("patient", "side", "views", "geometry", "far", "patient", "side", "geometry")


@dataclass(frozen=True, slots=True)
class Trial:
    """One registration to be made: kind ``start`` from a bin of start errors, or one that is meant to go wrong."""

    kind: str
    number: int
    bin_mm: tuple[float, float] = (0.0, 20.0)


@lru_cache(maxsize=40)
def prepared(name: str) -> tuple[PreparedBone, Array]:
    """Return a patient's main bone made ready, with its vertebrae above and below; and points to judge on."""
    who = patient(name)
    near = [n for n in who.others if abs(n - who.main) == 1] if name.startswith("spine") else []
    shifts = axis_shifts([0.0, 0.0, 1.0], who.level_mm)
    bone = prepare_bone(who.image(), who.labels == who.main, shifts, np.isin(who.labels, near))
    return bone, who.points_ct_mm()


def scenes(names: tuple[str, ...], first: int) -> Iterator[SceneSpec]:
    """Return scenes without end: patients in turn, view pairs in turn, every other one out of calibration."""
    number = first
    while True:
        for name in names:
            turn = number + number // len(names)  # or each patient would have one pair of views for ever
            pair = PAIRS[turn % len(PAIRS)]
            wrong = name.startswith("spine") and number % 5 == 4
            offset = 2.7 * patient(name).level_mm if wrong else 0.0
            yield SceneSpec(name, number, pair, calibrated=turn % 2 == 0, offset_mm=offset)
            number += 1


def trials_of(spec: SceneSpec, starts_apart: int = 1) -> list[Trial]:
    """Return the trials made on a scene; ``starts_apart`` takes every so-manieth bin of starts only."""
    if spec.offset_mm:
        return [Trial("level", n) for n in range(6)]
    starts = [Trial("start", n, bin_mm) for n, bin_mm in enumerate(BINS_MM)]
    return starts[spec.seed % starts_apart :: starts_apart] + [Trial(kind, n) for n, kind in enumerate(BAD)]


def run_trial(scene: Scene, trial: Trial) -> dict[str, Any]:
    """Register once and return what came of it, as one flat record."""
    spec = scene.spec
    rng = np.random.default_rng([spec.seed, trial.number, sum(map(ord, trial.kind))])
    name, views = spec.patient, scene.views
    bone, points = prepared(name)
    truth: Rigid | None = scene.T_ct_from_ref
    start = start_in_bin(points, scene.T_ct_from_ref, trial.bin_mm, rng)
    match trial.kind:
        case "start":
            pass
        case "level":  # the bone that is meant lies outside the picture; the start puts it where the picture is
            shift = np.array([0.0, 0.0, -spec.offset_mm])
            start = Rigid(CT, CT, np.eye(3), shift) @ start
        case "patient":
            other = stranger(name, trial.number)
            bone = prepared(other)[0]
            shift = patient(other).centre_ct_mm() - patient(name).centre_ct_mm()
            start, truth = Rigid(CT, CT, np.eye(3), shift) @ start, None
        case "side":
            views, truth = [replace(v, pixels=v.pixels[:, ::-1].copy()) for v in views], None
        case "views":
            views, truth = [replace(a, pixels=b.pixels) for a, b in zip(views, views[::-1], strict=True)], None
        case "geometry":
            views = [views[0], XrayView(views[1].pixels, _told_wrong(views[1].projection, rng))]
        case "far":
            start = start_in_bin(points, scene.T_ct_from_ref, (55.0, 90.0), rng, 50.0)
        case _:
            raise ValueError(f"no trial of kind {trial.kind}")
    began, cpu = time.perf_counter(), time.process_time()
    record: dict[str, Any] = {
        "patient": name, "seed": spec.seed, "orbits": list(spec.orbits), "calibrated": spec.calibrated,
        "kind": trial.kind, "number": trial.number, "bin_mm": list(trial.bin_mm),
        "start_mm": error_mm(start, scene.T_ct_from_ref, points),
    }  # fmt: skip
    try:
        result = register_fluoro(bone, views, start)
    except RegistrationError as refusal:
        return record | {"error_mm": None, "good": False, "verdict": "refuse", "reason": str(refusal), "figures": {}}
    record |= {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
    error = None if truth is None else error_mm(result.transform, truth, points)
    return record | {
        "error_mm": error,
        "good": error is not None and error <= GOOD_MM,
        "tre_mm": result.tre_mm,
        "residual_mm": result.residual_mm,
        "verdict": result.verdict.value,
        "reason": result.reason,
        "figures": dict(result.details),
    }


def run_scene(spec: SceneSpec) -> Scene:
    """Return the scene of a specification."""
    return make_scene(patient(spec.patient), spec)


def stranger(name: str, number: int) -> str:
    """Return somebody else: a bone of clearly other proportions; of a spine, in turn with it, another vertebra.

    They stand in for other patients' bones: we have one real spine, and generated pelves are nearly twins.
    """
    kind, first, *_ = name.split(":")
    label = int(first)
    if kind == "sacrum":
        tens, one = divmod(label, 10)
        return f"sacrum:{10 * tens + one % 3 + 1}:{-1 - number % 4}"
    return (
        f"spine:{label}:{-1 - number % 4}" if number % 2 else f"spine:{label + (2 if label < 32 else -2)}:{20 + number}"
    )


def error_mm(pose: Rigid, truth: Rigid, points_ct_mm: Array) -> float:
    """Return the mean target registration error over the bone's points."""
    found = pose.apply(truth.inverse().apply(points_ct_mm))
    return float(np.linalg.norm(found - points_ct_mm, axis=1).mean())


def start_in_bin(
    points: Array, truth: Rigid, bin_mm: tuple[float, float], rng: np.random.Generator, most_deg: float = 15.0
) -> Rigid:
    """Return a pose whose error lies in a bin: a turn of up to ``most_deg`` about the bone, and the shift it takes."""
    wanted = float(rng.uniform(*bin_mm))
    axis, way = rng.normal(size=3), rng.normal(size=3)
    axis, way = axis / np.linalg.norm(axis), way / np.linalg.norm(way)
    angle, middle = np.radians(float(rng.uniform(0.0, most_deg))), points.mean(axis=0)

    def at(shift: float) -> Rigid:
        turn = rotation_from_vector(angle * axis)
        return Rigid(CT, CT, turn, middle - turn @ middle + shift * way) @ truth

    while error_mm(at(0.0), truth, points) > wanted:
        angle *= 0.8
    low, high = 0.0, bin_mm[1] + 5.0
    for _ in range(30):
        half = 0.5 * (low + high)
        low, high = (half, high) if error_mm(at(half), truth, points) < wanted else (low, half)
    return at(low)


def _told_wrong(told: ProjectionModel, rng: np.random.Generator) -> ProjectionModel:
    """Return a view told wrong as after a blow: the pose off by 8-25 mm and 4-12 degrees, or the SDD by a tenth."""
    pose = told.T_carm_from_object
    if rng.random() < 0.3:
        k = told.intrinsics.copy()
        k[[0, 1], [0, 1]] *= 1.0 + float(rng.choice([-1, 1])) * 0.1
        return ProjectionModel(k, told.columns, told.rows, pose)
    axis, way = rng.normal(size=3), rng.normal(size=3)
    turn = rotation_from_vector(np.radians(rng.uniform(4.0, 12.0)) * axis / np.linalg.norm(axis))
    shift = rng.uniform(8.0, 25.0) * way / np.linalg.norm(way)
    # About the isocentre, or the picture would miss the patient, which anybody sees.
    middle = np.array([0.0, 0.0, 530.0])
    wrong = Rigid(pose.to, pose.frm, turn @ pose.rotation, turn @ (pose.translation_mm - middle) + middle + shift)
    return ProjectionModel(told.intrinsics, told.columns, told.rows, wrong)
