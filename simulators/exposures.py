"""Owns a simulated tracker between its stage and its wire: exposure after exposure, with what operators order.

Exposures are made in small batches ahead of time, which costs a tenth of making them one by one; each is a function of
its number and of the orders, so that an order only throws away what has not been sent.  Refuses sockets and clocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array
from simulators.stages import REFERENCE, Stage, Truths, knocked
from simulators.world.markers import Sight, Sighting, Watcher
from simulators.world.patient import PATIENT
from simulators.world.sight import LENSES_MM, Blocker

HIDDEN: Final = ("identity", "last", "silent")
ARM_MM: Final = 60.0
"""Radius of what stands in the way when a line of sight is blocked."""
FAR_MM: Final = np.array([0.0, 0.0, 1e6])
"""Behind the camera: where what blocks nothing is kept."""
UNSEEN: Final = "OUT_OF_VIEW"
UNPLUGGED: Final = "MISSING"


@dataclass(frozen=True, slots=True)
class Settings:
    """How the tracker behaves.

    Attributes
    ----------
    rate_hz, speed : float
        Exposures per second; how fast the story goes.
    hidden : str
        What is sent for a tool out of view: ``identity``, its ``last`` pose, or nothing (``silent``).
    insert_after_s : float or None
        Start the story by itself.
    """

    rate_hz: float
    speed: float = 1.0
    hidden: str = "identity"
    insert_after_s: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """One tool of one exposure.

    Attributes
    ----------
    matrix, true : (4, 4)
        ``T_tracker_from_tool`` as it goes out, and as it truly was.
    status : str
        ``OK``, ``OUT_OF_VIEW``, ``OUT_OF_VOLUME`` or ``MISSING``, as PLUS words it.
    used : (M,) bool
        Which markers the pose was solved from.
    """

    name: str
    matrix: Array
    status: str
    true: Array
    used: NDArray[np.bool_]
    error_mm: float

    @property
    def visible(self) -> bool:
        """Whether the pose is one."""
        return self.status == "OK"


@dataclass(frozen=True, slots=True, eq=False)
class Exposure:
    """One exposure: its number, its tools in their order, and what was true of the patient."""

    frame: int
    tools: tuple[Shown, ...]
    phase: str
    tip_ct_mm: Array | None
    axis_ct: Array | None


@dataclass(frozen=True, slots=True)
class _Span:
    """Frames from ``first`` on, before ``end``."""

    tool: str
    first: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Exposures made ahead, one after the other from frame ``first``."""

    first: int
    exposures: tuple[Exposure, ...]
    last_before: Mapping[str, Array]
    """The pose in which each tool was last seen before them."""


class Tracker:
    """State between exposures: when the story began, what is hidden until when, the last seen poses."""

    def __init__(self, stage: Stage, watcher: Watcher, settings: Settings) -> None:
        self.stage, self.settings = stage, settings
        self.wall_s = 0.0
        """The wall clock at frame 0, set before that is asked for: breathing goes by it in every simulator."""
        self._watcher = watcher
        self._inserts: list[int] = []
        after = settings.insert_after_s
        if after is not None and stage.story_s:
            self._inserts.append(round(after * settings.rate_hz))
        self._hidden: list[_Span] = []
        self._blocked: list[_Span] = []
        self._unplugged: set[str] = set()
        self._carried_mm = dict.fromkeys(stage.tools, 0.0)
        self._last = {name: np.eye(4) for name in stage.tools}
        self._batch: Batch | None = None
        # Making a batch must not keep the next exposure waiting.
        self._ahead = 64 if settings.rate_hz <= 100.0 else 32 if settings.rate_hz <= 300.0 else 8

    @property
    def story_s(self) -> float:
        """How long one insertion lasts at this speed; a new one starts again from above the skin."""
        return self.stage.story_s / self.settings.speed

    def command(self, order: dict[str, Any], frame: int) -> None:
        """Obey an order from this frame on; InputError, with what would be right, for one that cannot be obeyed."""
        match order:
            case {"do": "insert"}:
                self._insert(frame)
            case {"do": "hide" | "block" as do, "tool": str(tool), "seconds": int() | float() as s} if 0 < s < 1e6:
                spans = self._hidden if do == "hide" else self._blocked
                spans.append(_Span(self._known(tool), frame, frame + round(s * self.settings.rate_hz)))
            case {"do": "unplug", "tool": str(tool)}:
                self._unplugged.add(self._known(tool))
            case {"do": "plug", "tool": str(tool)}:
                self._unplugged.discard(self._known(tool))
            case {"do": "carry", "tool": str(tool), "away_mm": int() | float() as away_mm}:
                self._carried_mm[self._known(tool)] = float(away_mm)
            case {
                "do": "knock" | "shift" as do,
                "mm": [int() | float() as x, int() | float() as y, int() | float() as z],
            }:
                body = order.get("body", REFERENCE if do == "knock" else PATIENT)
                self.stage.push(knocked(str(body)), self.wall_s + frame / self.settings.rate_hz, (x, y, z))
            case _:
                raise InputError(
                    "expected insert, hide or block (tool, seconds), carry (tool, away_mm), unplug or plug (tool), "
                    "knock or shift (mm), or stop (see --help)"
                )
        self._forget(frame)

    def expose(self, frame: int) -> Exposure:
        """Return an exposure; frames come in rising order."""
        batch = self.batch_of(frame)
        return batch.exposures[frame - batch.first]

    def batch_of(self, frame: int) -> Batch:
        """Return the batch that a frame is in; it stays that one until an order comes."""
        batch = self._batch
        if batch is None or not 0 <= frame - batch.first < self._ahead:
            batch = self._batch = self._make(frame)
        return batch

    def inserting(self, frame: int) -> bool:
        """Say whether an insertion has begun."""
        return bool(self._inserts) and self._inserts[0] <= frame

    def _insert(self, frame: int) -> None:
        if not self.stage.story_s:
            raise InputError("without a case there is nothing to insert into; expected --case CASE")
        begun = [n for n in self._inserts if n <= frame]
        if begun and frame - begun[-1] < self.story_s * self.settings.rate_hz:
            raise InputError("an insertion is going on; the next may begin when it has ended")
        self._inserts = [*begun, frame]

    def _known(self, tool: str) -> str:
        if tool not in self.stage.tools:
            raise InputError(f"no tool {tool!r}; expected one of {', '.join(self.stage.tools)}")
        return tool

    def _forget(self, frame: int) -> None:
        """Throw away what was made ahead from a frame on."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        self._last = dict(batch.last_before)
        for exposure in batch.exposures[: max(frame - batch.first, 0)]:
            self._last |= {tool.name: tool.matrix for tool in exposure.tools if tool.visible}

    def _make(self, first: int) -> Batch:
        frames = np.arange(first, first + self._ahead)
        t = frames / self.settings.rate_hz
        since = np.zeros(len(frames))
        for begins in self._inserts:
            since = np.where(frames >= begins, (frames - begins) / self.settings.rate_hz * self.settings.speed, since)
        truths = self.stage.at(t, since, self.wall_s + t)
        poses = {name: self._carried(name, pose) for name, pose in truths.poses.items()}
        blockers = [_arm(poses[span.tool], frames, span) for span in self._blocked if span.end > first]
        sightings = {name: self._watcher.observe(name, frames, pose, blockers) for name, pose in poses.items()}
        before = dict(self._last)
        shown = [self._show(name, frames, truths, sightings[name], poses[name]) for name in self.stage.tools]
        nothing = (None,) * len(frames)
        tips, axes = (nothing if v is None else tuple(v) for v in (truths.tip_ct_mm, truths.axis_ct))
        made = zip(frames.tolist(), zip(*shown, strict=True), truths.phases, tips, axes, strict=True)
        return Batch(first, tuple(Exposure(*each) for each in made), before)

    def _carried(self, name: str, poses: Array) -> Array:
        if not self._carried_mm[name]:
            return poses
        poses = poses.copy()
        poses[:, 2, 3] -= self._carried_mm[name]
        return poses

    def _show(self, name: str, frames: NDArray[np.int64], truths: Truths, seen: Sighting, true: Array) -> list[Shown]:
        """Return one tool of each exposure."""
        unseen = ~truths.visible[name]
        for span in self._hidden:
            if span.tool == name:
                unseen |= (frames >= span.first) & (frames < span.end)
        words = np.where(unseen, UNSEEN, _WORDS[seen.sight])
        if name in self._unplugged:
            words = np.full(len(frames), UNPLUGGED)
        result = []
        for n, status in enumerate(words.tolist()):
            if status == "OK":
                self._last[name] = seen.poses[n]
                result.append(Shown(name, seen.poses[n], status, true[n], seen.used[n], float(seen.error_mm[n])))
            else:
                matrix = self._last[name] if self.settings.hidden == "last" else _IDENTITY
                result.append(Shown(name, matrix, status, true[n], np.zeros_like(seen.used[n]), 0.0))
        return result


_WORDS: Final = np.array([sight.name for sight in Sight])
_IDENTITY: Final = np.eye(4)


def _arm(poses: Array, frames: NDArray[np.int64], span: _Span) -> Blocker:
    """Return an arm between the left lens and a tool during a span of frames, two thirds of the way."""
    across = ((frames >= span.first) & (frames < span.end))[:, None]
    middle = LENSES_MM[0] + (2.0 / 3.0) * (poses[:, :3, 3] - LENSES_MM[0])
    upright = np.array([0.0, 200.0, 0.0])
    return Blocker(
        np.where(across, middle - upright, FAR_MM), np.where(across, middle + upright, FAR_MM + upright), ARM_MM
    )
