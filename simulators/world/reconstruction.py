"""Owns an O-arm's volume: projections of the case from all around, and their cone-beam reconstruction.

The projections are X-ray images of ``xray`` (spectrum, scatter, noise, solids, motion), the reconstruction is that of
Feldkamp, Davis and Kress (J Opt Soc Am A 1:612, 1984) for a circle and a flat detector, so that cone-beam artefacts,
truncation, shading, noise and metal come of themselves.  Refuses sockets and what registration makes of the volume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from navsrv.kernel.frames import CARM, VOLUME, Array, Rigid
from navsrv.kernel.projection import ProjectionModel
from simulators.world.detector import Receptor, Scatter, detect
from simulators.world.imaging import AIR_HU, OarmVolume
from simulators.world.xray import Radiographer, Technique, beam_of
from simulators.world.xray_materials import Material
from simulators.world.xray_paths import Beam
from simulators.world.xray_solids import Piece

_VIEWS_AT_ONCE: Final = 12
"""Filtered projections that stay in the processor's cache while they are smeared back."""


@dataclass(frozen=True, slots=True)
class Gantry:
    """A cone-beam scanner: source and detector turn about the volume's z axis, at equal steps over a whole turn.

    Attributes
    ----------
    source_iso_mm, sdd_mm : float
    columns, rows : int
    pixel_mm : float
        Detector, binned; columns run along the turn, rows along z.
    views : int
    """

    source_iso_mm: float = 647.0
    sdd_mm: float = 1147.0
    columns: int = 256
    rows: int = 192
    pixel_mm: float = 1.55
    views: int = 360

    def angle_rad(self, view: int) -> float:
        """Return where the source stands at a view: from the volume's +x towards its +y."""
        return 2.0 * np.pi * view / self.views

    def view(self, number: int) -> ProjectionModel:
        """Return the geometry of one projection, object frame ``volume``."""
        c, s = np.cos(self.angle_rad(number)), np.sin(self.angle_rad(number))
        # Columns of the C-arm frame: along the columns, along the rows, towards the detector.
        rotation = np.array([[s, 0.0, -c], [-c, 0.0, -s], [0.0, 1.0, 0.0]])
        pose = Rigid(VOLUME, CARM, rotation, self.source_iso_mm * np.array([c, s, 0.0]))
        return ProjectionModel.flat(pose.inverse(), (self.columns, self.rows), self.sdd_mm, self.pixel_mm)

    @property
    def field_mm(self) -> float:
        """Diameter of the cylinder that every view sees from side to side."""
        half = 0.5 * self.columns * self.pixel_mm
        return float(2.0 * self.source_iso_mm * half / np.hypot(half, self.sdd_mm))


@dataclass(frozen=True, slots=True)
class SpinProtocol:
    """How a volume is taken and what is made of it.

    Attributes
    ----------
    gantry : Gantry
    technique, receptor
        Tube and detector; the receptor's pixel is the gantry's.
    scatter_corrected : float
        Share of the scatter that the scanner's own correction takes off.
    size : (x, y, z)
        Voxels; the volume's middle is the isocentre.
    voxel_mm : float
    cutoff : float
        Of the Hann window on the ramp filter, 1 at the detector's Nyquist frequency.
    """

    gantry: Gantry = field(default_factory=Gantry)
    technique: Technique = field(
        default_factory=lambda: Technique(
            kvp=110.0, aluminium_mm=5.0, copper_mm=0.2, quanta_per_mm2=2.5e5, scatter=Scatter(0.12)
        )
    )
    receptor: Receptor = field(default_factory=lambda: Receptor(1.55, blur_mm=0.45, glare_share=0.01))
    scatter_corrected: float = 0.7
    size: tuple[int, int, int] = (256, 256, 192)
    voxel_mm: float = 0.83
    cutoff: float = 0.9

    @property
    def index_to_volume_mm(self) -> Array:
        """(4, 4): voxel (i, j, k) to the gantry's frame."""
        matrix = np.diag([self.voxel_mm, self.voxel_mm, self.voxel_mm, 1.0])
        matrix[:3, 3] = -0.5 * (np.array(self.size) - 1) * self.voxel_mm
        return matrix


PoseAt = Callable[[float], Rigid]
"""T_ct_from_volume at a share (0 to 1) of the turn: the patient may breathe meanwhile."""


def spin(
    radiographer: Radiographer,
    pose: Rigid | PoseAt,
    protocol: SpinProtocol,
    seed: int | tuple[int, ...],
    solids: Iterable[Piece] = (),
    progress: Callable[[float], None] = lambda share: None,
) -> OarmVolume:
    """Return the volume of a turn about the patient.

    Parameters
    ----------
    pose : T_ct_from_volume, or its course over the turn
    seed : int or several
        Decides the noise.
    solids : pieces in the frame ``ct``
    """
    pieces = tuple(solids)
    gantry = protocol.gantry
    beam = beam_of(protocol.technique, protocol.receptor)
    key = (seed,) if isinstance(seed, int) else seed
    lines = np.empty((gantry.views, gantry.columns, gantry.rows), dtype=np.float32)
    for number in range(gantry.views):
        T_ct_from_volume = pose(number / gantry.views) if callable(pose) else pose
        view = gantry.view(number).seen_from(T_ct_from_volume.inverse())
        rng = np.random.default_rng([*key, number])
        lines[number] = _water_mm(radiographer, view, pieces, protocol, beam, rng).T
        progress(0.7 * (number + 1) / gantry.views)
    density = backproject(filtered(lines, gantry, protocol.cutoff), gantry, protocol.size, protocol.voxel_mm)
    progress(1.0)
    hu = 1000.0 * density - 1000.0
    x = (np.arange(protocol.size[0]) - 0.5 * (protocol.size[0] - 1)) * protocol.voxel_mm
    y = (np.arange(protocol.size[1]) - 0.5 * (protocol.size[1] - 1)) * protocol.voxel_mm
    hu[:, np.hypot(x[None, :], y[:, None]) > 0.5 * gantry.field_mm] = AIR_HU
    voxels = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    return OarmVolume(voxels, protocol.index_to_volume_mm)


def _water_mm(
    radiographer: Radiographer,
    view: ProjectionModel,
    pieces: tuple[Piece, ...],
    protocol: SpinProtocol,
    beam: Beam,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Return (rows, columns) mm of water that weaken the beam as much, corrected as a scanner corrects."""
    light = radiographer.light(view, pieces, protocol.technique, protocol.receptor)
    quanta = protocol.technique.quanta_per_mm2 * protocol.receptor.pixel_mm**2
    signal = detect(light, quanta, protocol.receptor, rng) - protocol.scatter_corrected * light.scatter
    # Fewer than one photon cannot be told from none.
    return water_of(np.maximum(signal, 1.0 / quanta), beam)


def water_of(signal: NDArray[np.float32], beam: Beam) -> NDArray[np.float32]:
    """Return the mm of water that leave ``signal`` (1 in the open field) of a beam of many energies."""
    mm = np.linspace(0.0, 900.0, 361)
    left = np.exp(-np.outer(mm, beam.mu_per_mm[Material.WATER])) @ beam.first
    found: NDArray[np.float32] = np.interp(-np.log(signal), -np.log(left), mm).astype(np.float32)
    return found


def filtered(lines: NDArray[np.float32], gantry: Gantry, cutoff: float = 1.0) -> NDArray[np.float32]:
    """Return the projections (views, columns, rows) weighted by the rays' cosines and ramp filtered along the columns.

    Projections that end within the patient are carried on by a smooth fall over half their width, as scanners do;
    shading towards the rim remains.  The ramp is that of Kak and Slaney (1988, eq. 3.61), sampled in space, so that
    its mean is right.
    """
    columns, pad = gantry.columns, gantry.columns // 2
    u = (np.arange(columns) - 0.5 * (columns - 1)) * gantry.pixel_mm
    v = (np.arange(gantry.rows) - 0.5 * (gantry.rows - 1)) * gantry.pixel_mm
    cosine = gantry.sdd_mm / np.sqrt(gantry.sdd_mm**2 + u[:, None] ** 2 + v[None, :] ** 2)
    # On a detector through the isocentre.
    step = gantry.pixel_mm * gantry.source_iso_mm / gantry.sdd_mm
    length = 2 ** int(np.ceil(np.log2(2 * (columns + 2 * pad))))
    n = np.arange(length // 2 + 1)
    kernel = np.where(n % 2 == 1, -1.0 / (np.pi * np.maximum(n, 1) * step) ** 2, 0.0)
    kernel[0] = 0.25 / step**2
    ramp = np.fft.rfft(np.concatenate([kernel, kernel[-2:0:-1]])).real * step
    share = np.minimum(n / (0.5 * length * cutoff), 1.0)
    ramp *= 0.5 * (1.0 + np.cos(np.pi * share))
    fall = np.cos(0.5 * np.pi * (np.arange(pad) + 1.0) / pad)[:, None] ** 2
    out = np.empty_like(lines)
    for number, line in enumerate(lines):
        weighted = line * cosine
        wide = np.concatenate([weighted[:1] * fall[::-1], weighted, weighted[-1:] * fall])
        spectrum = np.fft.rfft(wide, length, axis=0)
        out[number] = np.fft.irfft(spectrum * ramp[:, None], length, axis=0)[pad : pad + columns]
    return out


def backproject(
    projections: NDArray[np.float32], gantry: Gantry, size: tuple[int, int, int], voxel_mm: float
) -> NDArray[np.float32]:
    """Return (k, j, i) the density (water 1) of filtered projections (views, columns, rows) in mm of water."""
    out = np.zeros((size[1], size[0], size[2]), dtype=np.float32)
    angles = np.array([gantry.angle_rad(n) for n in range(len(projections))])
    scale = np.pi / len(projections)
    for start in range(0, len(projections), _VIEWS_AT_ONCE):
        part = slice(start, start + _VIEWS_AT_ONCE)
        _smear(
            projections[part], np.cos(angles[part]), np.sin(angles[part]), gantry.source_iso_mm,
            gantry.sdd_mm / gantry.pixel_mm, voxel_mm, 0.5 * gantry.field_mm, scale, out,
        )  # fmt: skip
    return np.ascontiguousarray(out.transpose(2, 0, 1))


@njit(parallel=True, nogil=True, cache=True, fastmath=True)
def _smear(projections, cosines, sines, distance, focal_px, voxel, reach, scale, out):  # type: ignore[no-untyped-def]
    """Add filtered projections along their rays; ``out`` is (j, i, k): one detector column serves all of k."""
    columns, rows = projections.shape[1], projections.shape[2]
    nj, ni, nk = out.shape
    for j in prange(nj):
        y = (j - 0.5 * (nj - 1)) * voxel
        for i in range(ni):
            x = (i - 0.5 * (ni - 1)) * voxel
            if x * x + y * y > (reach + voxel) ** 2:
                continue
            for view in range(projections.shape[0]):
                c, s = cosines[view], sines[view]
                depth = distance - (x * c + y * s)
                u = focal_px * (x * s - y * c) / depth + 0.5 * (columns - 1)
                u = min(max(u, 0.0), columns - 1.001)
                iu = int(u)
                fu = np.float32(u - iu)
                weight = np.float32(scale * (distance / depth) ** 2)
                left, right = projections[view, iu], projections[view, iu + 1]
                dv = np.float32(focal_px * voxel / depth)
                v0 = np.float32(0.5 * (rows - 1) - 0.5 * (nk - 1) * dv)
                last = np.float32(rows - 1.001)
                for k in range(nk):
                    v = min(max(v0 + np.float32(k) * dv, np.float32(0.0)), last)
                    iv = int(v)
                    fv = v - np.float32(iv)
                    low = left[iv] + fu * (right[iv] - left[iv])
                    high = left[iv + 1] + fu * (right[iv + 1] - left[iv + 1])
                    out[j, i, k] += weight * (low + fv * (high - low))
