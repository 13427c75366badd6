"""Owns the peers of the DRR: RTK's Joseph projector where ``itk-rtk`` is installed, plastimatch where Debian has it.

Each projects the very box of voxels that ours projects, in the same view, and its picture is compared with ours before
anything is timed.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from navsrv.kernel.frames import Array
from navsrv.kernel.projection import ProjectionModel
from navsrv.registration.drr import DrrVolume

Image = NDArray[np.float32]
PLASTIMATCH_VIEWS: Final = 40
"""DRRs of one call, so that its start and the reading of the volume can be taken off."""


def rtk_projector(volume: DrrVolume, model: ProjectionModel, source_iso_mm: float) -> Callable[[], Image] | None:
    """Return a function that projects the box by RTK's CPU Joseph filter; None where RTK is not installed."""
    try:
        import itk  # type: ignore[import-not-found,unused-ignore]
        from itk import RTK as rtk  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    size, pixel_mm = model.columns, _pixel_mm(model)
    image: Any = itk.image_view_from_array(np.ascontiguousarray(volume.values))
    spacing = np.linalg.norm(volume.index_to_ct_mm[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    # RTK turns about its own isocentre: the volume is put where the C-arm sees it, the source on RTK's +z.
    to_rtk = np.diag([1.0, -1.0, -1.0])
    axes = to_rtk @ model.T_carm_from_object.rotation @ (volume.index_to_ct_mm[:3, :3] / spacing)
    corner = model.T_carm_from_object.apply(volume.index_to_ct_mm[:3, 3])
    image.SetDirection(np.ascontiguousarray(axes))
    image.SetOrigin((to_rtk @ corner + (0.0, 0.0, source_iso_mm)).tolist())
    geometry = rtk.ThreeDCircularProjectionGeometry.New()
    geometry.AddProjection(source_iso_mm, _sdd_mm(model, pixel_mm), 0.0)
    kind = itk.Image[itk.F, 3]
    start = -(size - 1) / 2 * pixel_mm
    empty = rtk.constant_image_source(
        size=[size, size, 1], spacing=[pixel_mm, pixel_mm, 1.0], origin=[start, start, 0.0], ttype=[kind]
    )
    projector = rtk.JosephForwardProjectionImageFilter[kind, kind].New()
    projector.SetInput(0, empty)
    projector.SetInput(1, image)
    projector.SetGeometry(geometry)
    projector.InPlaceOff()

    def project() -> Image:
        projector.Modified()
        projector.Update()
        result: Image = itk.array_view_from_image(projector.GetOutput())[0, ::-1]  # its rows run up
        return result

    return project


def plastimatch_ms(
    volume: DrrVolume, model: ProjectionModel, source_iso_mm: float, rounds: int
) -> tuple[dict[str, float] | None, Image] | None:
    """Return what one DRR by ``plastimatch drr -i exact`` takes (ms, wall and CPU), and its picture; None without it.

    It is a program: the time of a call for one picture is taken off that of a call for many.  On a machine so loaded
    that this is less than nothing there are no times.
    """
    program = shutil.which("plastimatch")
    if program is None:
        return None
    size, pixel_mm = model.columns, _pixel_mm(model)
    pose = model.T_carm_from_object
    iso = pose.inverse().apply(np.array([0.0, 0.0, source_iso_mm]))
    with tempfile.TemporaryDirectory() as folder:
        image: Any = sitk.GetImageFromArray(volume.values)
        spacing = np.linalg.norm(volume.index_to_ct_mm[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(volume.index_to_ct_mm[:3, 3].tolist())
        image.SetDirection((volume.index_to_ct_mm[:3, :3] / spacing).ravel().tolist())
        sitk.WriteImage(image, f"{folder}/box.mha")
        field = size * pixel_mm
        call = [
            program, "drr", "-i", "exact", "-P", "none", "-t", "pfm", "-r", f"{size} {size}", "-z", f"{field} {field}",
            "--sad", f"{source_iso_mm}", "--sid", f"{_sdd_mm(model, pixel_mm)}", "-o", _words(iso),
            "-y", f"{_gantry_rad(-pose.rotation[2])}",
        ]  # fmt: skip
        many = ["-a", str(PLASTIMATCH_VIEWS + 1), "-N", "0.001"]  # with -n in place of -y it would make but one
        one = np.empty((rounds, 2))
        several = np.empty((rounds, 2))
        for n in range(rounds):
            one[n] = _timed([*call, "-O", f"{folder}/one", f"{folder}/box.mha"])
            several[n] = _timed([*call, *many, "-O", f"{folder}/many", f"{folder}/box.mha"])
        made = len(list(Path(folder).glob("many*.pfm")))
        if made != PLASTIMATCH_VIEWS + 1:
            raise RuntimeError(f"plastimatch made {made} pictures where {PLASTIMATCH_VIEWS + 1} were asked for")
        picture = 10.0 * _read_pfm(sorted(Path(folder).glob("one*.pfm"))[0])  # it integrates along centimetres
    # Of the minima and of the medians, not of pairs: another's load in one call would pass for the projector's time.
    least, middle = several.min(axis=0) - one.min(axis=0), np.median(several, axis=0) - np.median(one, axis=0)
    each_ms = np.array([least, middle]) / PLASTIMATCH_VIEWS * 1e3
    if not (each_ms > 0.0).all():
        return None, picture
    figures = {
        "wall_min_ms": float(each_ms[0, 0]),
        "wall_median_ms": float(each_ms[1, 0]),
        "cpu_min_ms": float(each_ms[0, 1]),
        "cpu_median_ms": float(each_ms[1, 1]),
    }
    return figures, picture


def likeness(ours: Image, theirs: Image) -> dict[str, float]:
    """Return correlation and ratio of means of two pictures, the other turned over as its conventions have it."""
    best, likeliest = -1.0, theirs
    for turned in (theirs, theirs[::-1], theirs[:, ::-1], theirs[::-1, ::-1]):
        correlation = float(np.corrcoef(ours.ravel(), turned.ravel())[0, 1])
        if correlation > best:
            best, likeliest = correlation, turned
    return {"correlation": best, "mean_ratio": float(likeliest.mean() / ours.mean())}


def _gantry_rad(normal: Array) -> float:
    """Return plastimatch's gantry angle of a horizontal beam: called degrees there, but read as radians (1.9.4)."""
    if abs(normal[2]) > 1e-6:
        raise ValueError("plastimatch's gantry turns about the patient's long axis: the beam must lie across it")
    return float(np.arctan2(-normal[1], normal[0]))


def _words(vector: Array) -> str:
    return " ".join(f"{x:.6f}" for x in vector)


def _timed(command: list[str]) -> tuple[float, float]:
    """Return wall and CPU time (s) of a program."""
    import resource

    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _read_pfm(path: Path) -> Image:
    """Return a grey PFM picture (rows, columns), first row first as stored."""
    with path.open("rb") as file:
        kind, size, scale = (file.readline().split() for _ in range(3))
        if kind != [b"Pf"]:
            raise ValueError(f"{path}: no grey PFM")
        order = "<f4" if float(scale[0]) < 0 else ">f4"
        return np.frombuffer(file.read(), order).reshape(int(size[1]), int(size[0])).astype(np.float32)


def _pixel_mm(model: ProjectionModel) -> float:
    """Return the size of a pixel of a view whose focal length is that of ``_sdd_mm``."""
    return PLATE_MM / model.columns


def _sdd_mm(model: ProjectionModel, pixel_mm: float) -> float:
    return float(model.intrinsics[0, 0]) * pixel_mm


PLATE_MM: Final = 300.0
"""Side of the detector that the measurement uses."""
