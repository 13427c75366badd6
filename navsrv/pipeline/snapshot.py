"""Owns an instrument that only still images show: its place is that of the newest image, and never said to be live.

The place comes in the reference's frame, frozen when the image was taken, and stays with the bone from then on.  The
state is SNAPSHOT with the image's time; clearances, trajectory and alarms are those of a tracked tool, with the doubt
that the image left.  What the operator did since, nobody knows.  Refuses to keep a place that the operator has called
outdated.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Final

import numpy as np

from devices.health import FreshnessRule
from devices.openigtlink import SourceSpec
from navsrv.guidance.alarms import Condition
from navsrv.guidance.clearance import ClearanceEngine
from navsrv.kernel.frames import TIP, Array, Frame, Rigid, rotation_z_onto
from navsrv.kernel.samples import PoseSample, Tracking
from navsrv.pipeline.inputs import NeedleIn, Note
from navsrv.pipeline.links import PoseLink, Standing
from navsrv.pipeline.placement import Pair
from navsrv.pipeline.registrations import Registrations
from navsrv.pipeline.setup import Setup, SourceSetup, ToolSetup
from navsrv.pipeline.tool import ToolGuide

STILL: Final = Frame("still")
"""Where an image's needle meets the reference: both are told in the reference's own axes."""
NOISELESS: Final = SourceSetup(
    SourceSpec("images", rate_hz=1.0), FreshnessRule.for_rate(1.0), noise_mm=0.0, noise_rad=0.0
)
"""The doubt of an image is in what was found in it, link and calibration included; nothing is added here."""


AHEAD: Final = np.array([0.0, 0.0, 1.0])
"""The axis in the frame of the tip."""


class SnapshotLink(PoseLink):
    """The place that the newest image showed; it does not go stale by itself, for it never was live."""

    def judge(self, now_ns: int) -> Standing:
        """Return SNAPSHOT with the image's time, or LOST while no image holds."""
        if self.last is None:
            reason = self.link_down or f"no image has shown {self.label} yet"
            return Standing("LOST", reason, self.lost_condition, self.label)
        return Standing("SNAPSHOT", self.last.reason)

    def next_change_ns(self, after_ns: int) -> None:
        """Nothing changes by itself."""


class SnapshotGuide(ToolGuide):
    """Turns what images show of one instrument into frames."""

    def __init__(self, setup: Setup, tool: ToolSetup, reference: Frame, engine: ClearanceEngine) -> None:
        link = SnapshotLink(tool.name, NOISELESS, Condition.TOOL_LOST, deque(maxlen=1), link_down=None)
        super().__init__(setup, tool, link, None, engine)
        self._own = tool
        self._reference_pose = Rigid(STILL, reference, np.eye(3), np.zeros(3))

    def take(self, item: NeedleIn) -> Note:
        """Take what an image showed, or that it showed nothing; return what the log must say.

        Raises
        ------
        ValueError
            Numbers that are no needle.
        """
        name, link = self.tool.name, self.link
        at = _clock(item.taken_ns - item.began_ns)
        if item.found is None:
            if link.last is not None:
                held = link.last.reason.partition(";")[0]
                link.last = replace(link.last, reason=f"{held}; a newer image at {at} does not tell: {item.text}")
            return Note(item.now_ns, "needle_not_found", f"{name}: image at {at} of {item.source}: {item.text}", {})
        tip, axis, covariance = _checked(item.found.tip_ref_mm, item.found.axis_ref, item.found.covariance)
        tip_mm, axis_rad = _worst_sigma(covariance[:3, :3]), _worst_sigma(covariance[3:, 3:])
        tip_sigma_mm = float(np.hypot(tip_mm, self._own.tip_sigma_mm))
        shown = replace(self._own, tip_mm=np.zeros(3), axis=AHEAD, tip_sigma_mm=tip_sigma_mm, axis_sigma_rad=axis_rad)
        self.refit(shown)
        pose = Rigid(STILL, TIP, rotation_z_onto(axis), tip)
        link.last = PoseSample(name, pose, Tracking.OK, f"image at {at}", item.time_ns, item.time_ns, item.taken_ns)
        text = f"{name}: image at {at} of {item.source}: {item.text}, tip sigma {tip_mm:.2f} mm"
        fields = {"tool": name, "source": item.source, "tip_ref_mm": tip.tolist(), "tip_sigma_mm": tip_mm}
        return Note(item.now_ns, "needle_found", text, fields)

    def forget(self, why: str) -> None:
        """Say that the newest image no longer holds, as when the needle was moved; ValueError if none is held."""
        if self.link.last is None:
            raise ValueError(f"{self.tool.name} is not shown by any image now")
        self.link.disconnect(why)

    def pair(self) -> Pair | None:
        """Return the image's place, at rest in the reference's frame; None while no image holds."""
        sample = self.link.last
        if sample is None:
            return None
        return Pair(sample, replace(sample, name="Reference", pose=self._reference_pose), 0.0)

    def _standings(self, now_ns: int, pair: Pair | None, registrations: Registrations) -> list[Standing]:
        """Return how image and registration stand; a lesser fault than being still is said beside it."""
        shown, _, registered = super()._standings(now_ns, pair, registrations)
        if registered.state == "DEGRADED":
            shown = replace(shown, reason=f"{shown.reason}; {registered.reason}")
        return [shown, registered]


def _clock(since_ns: int) -> str:
    """Return a time as minutes and seconds."""
    seconds = max(since_ns, 0) // 1_000_000_000
    return f"{seconds // 60:02d}:{seconds % 60:02d}"


def _worst_sigma(covariance: Array) -> float:
    """Return one sigma along the worst direction."""
    return float(np.sqrt(max(float(np.linalg.eigvalsh(covariance)[-1]), 0.0)))


def _checked(
    tip: tuple[float, ...], axis: tuple[float, ...], covariance: tuple[float, ...]
) -> tuple[Array, Array, Array]:
    place, direction = np.array(tip, dtype=np.float64), np.array(axis, dtype=np.float64)
    doubt = np.array(covariance, dtype=np.float64).reshape(6, 6)
    finite = np.isfinite(place).all() and np.isfinite(direction).all() and np.isfinite(doubt).all()
    if place.shape != (3,) or direction.shape != (3,) or not finite or abs(np.linalg.norm(direction) - 1.0) > 1e-3:
        raise ValueError(f"tip {tip}, axis {axis}: no needle")
    return place, direction / np.linalg.norm(direction), doubt
