"""Owns the calibration of a C-arm that flexes: a view for each of some angles, and what it is between them.

Poses and pictures' bending are interpolated by cubic splines of the angle, after the turning itself has been taken out;
leaving out one angle after another says how wrong that is.  Refuses angles outside the table: nothing is extrapolated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import make_interp_spline
from scipy.spatial.transform import Rotation

from calibration.carm import PHANTOM, POSE, CarmView
from calibration.distortion import Distortion
from calibration.poses import Findings
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import CARM, Array, Rigid, frozen_array, nearest_rotation
from navsrv.kernel.projection import ProjectionModel
from navsrv.kernel.registration import Verdict

MIN_GAP_RAD: Final = np.deg2rad(0.5)
MAX_GAP_RAD: Final = np.deg2rad(40.0)
MIN_LEFT_OUT: Final = 4
"""Angles from which one can be left out with a spline still worth its name."""
MAX_TILT_RAD: Final = np.deg2rad(10.0)
"""Largest difference between the turning that the angles state and the one that the pictures show."""


@dataclass(frozen=True, slots=True)
class TableLimits:
    """Thresholds of the verdict on a table."""

    left_out_accept_mm: float = 0.5
    left_out_refuse_mm: float = 2.0
    turning_accept_deg: float = 1.5
    turning_refuse_deg: float = 6.0


@dataclass(frozen=True, slots=True, eq=False)
class CarmCalibration:
    """A C-arm by the angle of its encoder.

    Attributes
    ----------
    angles_rad : (V,)
        Ascending; one angle for a C-arm that was calibrated in one place.
    models : tuple of ProjectionModel
        ``T_carm_from_phantom`` at each angle.
    distortions : tuple of Distortion
    axis_phantom : (3,)
        Unit vector that the arm turns about.
    left_out_mm : (V,)
        How far a ray through the phantom's middle is off where an angle's own picture is left out, rms over the beads;
        NaN at the ends and where there are too few angles.
    view_sigma_mm : (V,)
        Predicted rms error of each picture's own calibration there.
    verdict : Verdict
    reason : str
    details : tuple of (str, float)
    """

    angles_rad: Array
    models: tuple[ProjectionModel, ...]
    distortions: tuple[Distortion, ...]
    axis_phantom: Array
    left_out_mm: Array
    view_sigma_mm: Array
    verdict: Verdict
    reason: str
    details: tuple[tuple[str, float], ...]

    def projection(self, angle_rad: float) -> ProjectionModel:
        """Return the view of the ideal picture at an angle.

        Raises
        ------
        CalibrationError
            An angle outside the table.
        """
        return self._at(angle_rad)[0]

    def distortion(self, angle_rad: float) -> Distortion:
        """Return the bending of the picture at an angle; refuses as ``projection``."""
        return self._at(angle_rad)[1]

    def undistort(self, image: ArrayLike, angle_rad: float) -> Array:
        """Return the ideal picture of one that was seen at an angle; refuses as ``projection``."""
        return np.asarray(self.distortion(angle_rad).undistort(image), dtype=np.float64)

    def _at(self, angle_rad: float) -> tuple[ProjectionModel, Distortion]:
        low, high = float(self.angles_rad[0]), float(self.angles_rad[-1])
        if not low - 0.5 * MIN_GAP_RAD <= angle_rad <= high + 0.5 * MIN_GAP_RAD:
            raise CalibrationError(
                f"angle {np.rad2deg(angle_rad):.1f} deg: calibrated were {np.rad2deg(low):.1f} to "
                f"{np.rad2deg(high):.1f} deg"
            )
        return interpolated(self.angles_rad, self.models, self.distortions, self.axis_phantom, angle_rad)


def calibrate_table(
    angles_rad: ArrayLike, views: list[CarmView], *, limits: TableLimits | None = None
) -> CarmCalibration:
    """Return the table of calibrated views of one phantom that lay still.

    Parameters
    ----------
    angles_rad : (V,)
        What the encoder said at each view, in any order.
    views : list of CarmView
        Of one size, one phantom and one kind of distortion.

    Raises
    ------
    CalibrationError
        Unequal counts, equal angles, gaps that are too wide, pictures of different sizes, turning that the angles do
        not explain, a view that was refused.
    """
    limits = limits or TableLimits()
    angles = np.asarray(angles_rad, dtype=np.float64)
    if angles.shape != (len(views),) or not len(views) or not np.isfinite(angles).all():
        raise CalibrationError(f"{len(views)} views against angles of shape {angles.shape}: one finite angle each")
    order = np.argsort(angles)
    angles, views = angles[order], [views[i] for i in order]
    _check_views(angles, views)
    models, distortions = tuple(view.model for view in views), tuple(view.distortion for view in views)
    axis, mismatch = _axis(angles, models)
    if mismatch > MAX_TILT_RAD:
        raise CalibrationError(
            f"the pictures turn by up to {np.rad2deg(mismatch):.1f} deg more or less than their angles say, at most "
            f"{np.rad2deg(MAX_TILT_RAD):g} deg expected: angles of other pictures, or a phantom that moved"
        )
    left_out = _left_out(angles, views, axis)
    sigmas = np.array([view.point_sigma_mm for view in views])
    known = left_out[np.isfinite(left_out)]
    figures = {
        "angles": float(len(angles)),
        "from_deg": float(np.rad2deg(angles[0])),
        "to_deg": float(np.rad2deg(angles[-1])),
        "widest_gap_deg": float(np.rad2deg(np.diff(angles).max())) if len(angles) > 1 else 0.0,
        "turning_mismatch_deg": float(np.rad2deg(mismatch)),
        "left_out_rms_mm": float(np.sqrt((known**2).mean())) if len(known) else float("nan"),
        "left_out_max_mm": float(known.max()) if len(known) else float("nan"),
        "view_sigma_mm": float(np.sqrt((sigmas**2).mean())),
        "worst_residual_px": max(view.residual_px for view in views),
        "source_path_mm": _source_wander(models, axis),
    }
    verdict, reason = _judge(limits, figures, views)
    return CarmCalibration(
        frozen_array(angles, angles.shape),
        models,
        distortions,
        frozen_array(axis, (3,)),
        frozen_array(left_out, left_out.shape),
        frozen_array(sigmas, sigmas.shape),
        verdict,
        reason,
        tuple(figures.items()),
    )


def interpolated(
    angles: Array,
    models: tuple[ProjectionModel, ...],
    distortions: tuple[Distortion, ...],
    axis: Array,
    angle_rad: float,
) -> tuple[ProjectionModel, Distortion]:
    """Return view and bending at an angle between the table's: cubic splines, of lower degree for few angles.

    Rotation: what is left of it once the turning about the axis is taken out, as a small vector; it hardly changes.
    """
    if len(angles) == 1:
        return models[0], distortions[0]
    middle = float(angles.mean())
    left = [_unturned(model, axis, angle - middle) for angle, model in zip(angles, models, strict=True)]
    mean = nearest_rotation(np.sum(left, axis=0))
    rows = np.array(
        [
            np.concatenate(
                [
                    Rotation.from_matrix(rest @ mean.T).as_rotvec(),
                    model.T_carm_from_object.translation_mm,
                    model.intrinsics[[0, 0, 0, 1, 1], [0, 1, 2, 1, 2]],
                    distortion.coefficients,
                ]
            )
            for rest, model, distortion in zip(left, models, distortions, strict=True)
        ]
    )
    row = make_interp_spline(angles, rows, k=min(3, len(angles) - 1))(angle_rad)
    turn = Rotation.from_rotvec(axis * (angle_rad - middle)).as_matrix()
    rotation = nearest_rotation(Rotation.from_rotvec(row[:3]).as_matrix() @ mean @ turn)
    intrinsics = np.eye(3)
    intrinsics[[0, 0, 0, 1, 1], [0, 1, 2, 1, 2]] = row[POSE : POSE + 5]
    first = models[0]
    model = ProjectionModel(intrinsics, first.columns, first.rows, Rigid(CARM, PHANTOM, rotation, row[3:6]))
    return model, Distortion(distortions[0].kind, row[POSE + 5 :], first.columns, first.rows)


def _check_views(angles: Array, views: list[CarmView]) -> None:
    """Refuse what is no table."""
    sizes = {(view.model.columns, view.model.rows) for view in views}
    kinds = {view.distortion.kind for view in views}
    if len(sizes) > 1 or len(kinds) > 1:
        raise CalibrationError(f"views of {len(sizes)} sizes and {len(kinds)} kinds of distortion: one of each needed")
    for angle, view in zip(angles, views, strict=True):
        if view.verdict is Verdict.REFUSE:
            raise CalibrationError(f"the view at {np.rad2deg(angle):.1f} deg was refused: {view.reason}")
    gaps = np.diff(angles)
    if len(gaps) and gaps.min() < MIN_GAP_RAD:
        at = float(np.rad2deg(angles[int(gaps.argmin())]))
        raise CalibrationError(f"two views at {at:.1f} deg: each angle once")
    if len(gaps) and gaps.max() > MAX_GAP_RAD:
        at = int(gaps.argmax())
        raise CalibrationError(
            f"no view between {np.rad2deg(angles[at]):.1f} and {np.rad2deg(angles[at + 1]):.1f} deg: gaps of at most "
            f"{np.rad2deg(MAX_GAP_RAD):g} deg can be bridged"
        )


def _axis(angles: Array, models: tuple[ProjectionModel, ...]) -> tuple[Array, float]:
    """Return the axis (3,) in the phantom that the arm turns about by its angles, and the largest misfit in radians."""
    if len(angles) == 1:
        return np.array([0.0, 0.0, 1.0]), 0.0
    rotations = [model.T_carm_from_object.rotation for model in models]
    turns = np.array(
        [
            Rotation.from_matrix(a.T @ b).as_rotvec() / step
            for a, b, step in zip(rotations[:-1], rotations[1:], np.diff(angles), strict=True)
        ]
    )
    mean = turns.mean(axis=0)
    axis = mean / max(float(np.linalg.norm(mean)), 1e-12)
    middle = float(angles.mean())
    left = [_unturned(model, axis, angle - middle) for angle, model in zip(angles, models, strict=True)]
    centre = nearest_rotation(np.sum(left, axis=0))
    return axis, max(float(Rotation.from_matrix(rest @ centre.T).magnitude()) for rest in left)


def _unturned(model: ProjectionModel, axis: Array, angle: float) -> Array:
    """Return a view's rotation without the turning about the axis."""
    rest: Array = model.T_carm_from_object.rotation @ Rotation.from_rotvec(-axis * angle).as_matrix()
    return rest


def _left_out(angles: Array, views: list[CarmView], axis: Array) -> Array:
    """Return the rms miss (V,) in mm at the beads of each view's prediction from the other angles; NaN at the ends."""
    errors = np.full(len(angles), np.nan)
    if len(angles) <= MIN_LEFT_OUT:
        return errors
    for i in range(1, len(angles) - 1):
        keep = [j for j in range(len(angles)) if j != i]
        model, distortion = interpolated(
            angles[keep],
            tuple(views[j].model for j in keep),
            tuple(views[j].distortion for j in keep),
            axis,
            float(angles[i]),
        )
        own = views[i]
        points = _bead_places(own)
        off = distortion.bent(model.project(points)) - own.distortion.bent(own.model.project(points))
        depth = own.model.T_carm_from_object.apply(points)[:, 2]
        errors[i] = np.sqrt((((off**2).sum(axis=1)) * (depth / own.model.intrinsics[0, 0]) ** 2).mean())
    return errors


def _bead_places(view: CarmView) -> Array:
    """Return points (8, 3) of the phantom about where a view looks: the corners of a cube about the rays' middle."""
    pose = view.model.T_carm_from_object.inverse()
    depth = float(np.median(view.bead_depths_mm))
    corners = np.stack(np.meshgrid([-30.0, 30.0], [-30.0, 30.0], [depth - 30.0, depth + 30.0]), axis=-1).reshape(-1, 3)
    return pose.apply(corners)


def _source_wander(models: tuple[ProjectionModel, ...], axis: Array) -> float:
    """Return how far the source strays from a circle about the axis, rms in mm: the flex."""
    if len(models) < 4:
        return 0.0
    sources = np.array([model.source_mm for model in models])
    along = sources @ axis
    across = sources - along[:, None] * axis
    basis = np.linalg.svd(across - across.mean(axis=0))[2][:2]
    plane = across @ basis.T
    a = np.column_stack([2.0 * plane, np.ones(len(plane))])
    centre = np.linalg.lstsq(a, (plane**2).sum(axis=1), rcond=None)[0][:2]
    radius = np.linalg.norm(plane - centre, axis=1)
    return float(np.hypot(radius.std(), along.std()))


def _judge(limits: TableLimits, figures: dict[str, float], views: list[CarmView]) -> tuple[Verdict, str]:
    """Return the verdict and the numbers that decided it."""
    found = Findings()
    doubted = [view.reason for view in views if view.verdict is Verdict.DOUBT]
    if doubted:
        found.doubt.append(f"{len(doubted)} of {len(views)} views in doubt, the first: {doubted[0]}")
    what = "turning that the angles do not say"
    found.grade(what, figures["turning_mismatch_deg"], limits.turning_accept_deg, limits.turning_refuse_deg, "deg")
    if np.isfinite(figures["left_out_max_mm"]):
        what = "an angle that is left out is missed by"
        found.grade(what, figures["left_out_max_mm"], limits.left_out_accept_mm, limits.left_out_refuse_mm, "mm")
    elif len(views) > 1:
        found.doubt.append(f"{len(views)} angles leave none out to check with: more than {MIN_LEFT_OUT} needed")
    if len(views) == 1:
        return found.verdict(views[0].reason)
    return found.verdict(f"an angle that is left out is missed by {figures['left_out_max_mm']:.2f} mm at most")
