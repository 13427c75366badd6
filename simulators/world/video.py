"""Owns what a C-arm's video output shows: the console's screen, frame by frame, with the truth about each.

A picture is live while the beam is on (quantum noise anew in every pulse) and held when it is off; the console turns,
mirrors and inverts it; the cable adds its noise and, interlaced, carries rows of two moments.  Signals fail to black,
to blue, or to a frame that is stuck.  Refuses sockets, codecs and clocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from navsrv.kernel.frames import Array

SIGNALS: Final = ("picture", "black", "blue", "stuck")
MARKER: Final = ("#####", "#    ", "#### ", "#    ", "#    ", "#    ", "#    ")
"""The lead letter on the detector's housing, which looks like itself one way only."""
MARKER_CELL: Final = 1 / 80
MARKER_AT: Final = (0.30, 0.14)
"""Side of one of its squares, and its upper left corner, as shares of the picture."""
FIELD: Final = 0.485
"""Radius of the round field, as a share of the picture."""
LEAD: Final = 0.12
"""What of the brightness gets through the letter."""


@dataclass(frozen=True, slots=True)
class Screen:
    """How the console shows its picture, and what cable and digitiser make of it.

    Attributes
    ----------
    width, height : int
        Of a frame.
    corner : (x, y)
        Of the square picture in it.
    size : int
        Side of that square.
    mirrored, quarters, tilt_deg
        Mirrored left to right first, then turned clockwise by quarters and by degrees.
    zoom : float
    inverted : bool
        Black for white.
    interlaced : bool
        Even rows of one moment, odd rows of half a frame later.
    quantum, digitiser : float
        Standard deviation (grey levels): of a pulse's noise at half brightness, and of what the digitiser adds.
    pulse_frames : int
        Frames for each pulse of the beam; between pulses the last picture is shown again.
    signal : str
        One of SIGNALS.
    """

    width: int = 800
    height: int = 600
    corner: tuple[int, int] = (144, 44)
    size: int = 512
    mirrored: bool = False
    quarters: int = 0
    tilt_deg: float = 0.0
    zoom: float = 1.0
    inverted: bool = False
    interlaced: bool = False
    quantum: float = 6.0
    digitiser: float = 0.7
    pulse_frames: int = 1
    signal: str = "picture"


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of one frame: the beam, which pulse's picture it shows, and how it is shown."""

    frame: int
    exposing: bool
    pulse: int
    signal: str
    mirrored: bool
    quarters: int


@dataclass(slots=True, eq=False)
class Console:
    """A C-arm's console between its detector and its video output.

    ``scene`` is what the detector sees without noise: (size, size) brightness from 0 to 1, as the console shows it.
    """

    screen: Screen
    seed: int = 0
    scene: Array | None = None
    """As lit when the beam is on; None until a picture was taken."""
    field_share: float | None = FIELD
    """Radius of the round field as a share of the picture; None for a square one, as of a flat panel."""
    drift_px: tuple[float, float] = (0.0, 0.0)
    """How far the scene moves (across, down) in each frame."""
    exposing: bool = False
    frame: int = 0
    pulse: int = 0
    _picture: Array | None = field(default=None, repr=False)
    """The newest pulse's, with its noise: what is held."""
    _other: Array | None = field(default=None, repr=False)
    """Half a frame later, of an interlaced camera."""
    _stuck: NDArray[np.uint8] | None = field(default=None, repr=False)
    _moved: float = 0.0
    _lit: tuple[Array, Array] | None = field(default=None, repr=False)
    """A scene, and what ``lit_scene`` made of it."""
    _pools: dict[tuple[int, ...], NDArray[np.float32]] = field(default_factory=dict, repr=False)

    def change(self, **how: Any) -> None:
        """Show it otherwise from the next frame on."""
        self.screen = replace(self.screen, **how)

    def call(self) -> None:
        """Show the scene as a stored picture: it is there at once, without the beam."""
        self._moved += 1.0
        self._picture = self._exposed(self._moved, np.random.default_rng((self.seed, 0, self.frame)))
        self._other = None

    def next(self) -> tuple[NDArray[np.uint8], Truth]:
        """Return the next frame, (height, width, 3), and what is true of it."""
        screen, n = self.screen, self.frame
        self.frame += 1
        # Noise is a function of the seed and the number: asking again for a frame gives the same frame.
        rng = np.random.default_rng((self.seed, n))
        if self.exposing and self.scene is not None and n % screen.pulse_frames == 0:
            self.pulse += 1
            self._moved += 1.0
            self._picture = self._exposed(self._moved, rng)
            self._other = self._exposed(self._moved + 0.5, rng) if screen.interlaced else None
        truth = Truth(n, self.exposing, self.pulse, screen.signal, screen.mirrored, screen.quarters)
        if screen.signal == "stuck" and self._stuck is not None:
            return self._stuck, truth
        self._stuck = self._sent(rng)
        return self._stuck, truth

    def _exposed(self, moved: float, rng: np.random.Generator) -> Array:
        """Return the picture of one pulse, grey levels."""
        assert self.scene is not None
        if any(self.drift_px):
            scene = shifted(self.scene, (moved * self.drift_px[0], moved * self.drift_px[1]))
            lit = lit_scene(scene, self.field_share)
        else:
            if self._lit is None or self._lit[0] is not self.scene:
                self._lit = self.scene, lit_scene(self.scene, self.field_share)
            lit = self._lit[1]
        levels = 255.0 * lit + self.screen.quantum * np.sqrt(2.0 * lit) * self._noise(lit.shape, rng)
        return np.clip(levels, 0.0, 255.0)

    def _noise(self, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
        """Return white noise of one frame: a window, somewhere, of a larger field, with either sign.

        Two frames share a window once in ten thousand times; drawing each anew would take most of a frame's time.
        """
        pool = self._pools.get(shape)
        if pool is None:
            larger = (shape[0] + 97, shape[1] + 89)
            pool = self._pools[shape] = np.random.default_rng(self.seed).standard_normal(larger, np.float32)
        y, x = rng.integers(0, 97), rng.integers(0, 89)
        window: NDArray[np.float32] = pool[y : y + shape[0], x : x + shape[1]] * np.float32(rng.choice((-1.0, 1.0)))
        return window

    def _sent(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        screen = self.screen
        frame = np.zeros((screen.height, screen.width), np.float32)
        if screen.signal == "blue":
            frame += 200.0
        elif screen.signal != "black":
            x, y = screen.corner
            if self._picture is not None:
                shown = self._shown(self._picture)
                if screen.interlaced and self._other is not None:
                    later = self._shown(self._other)
                    shown[(1 - y) % 2 :: 2] = later[(1 - y) % 2 :: 2]
                frame[y : y + screen.size, x : x + screen.size] = shown
            # What a console writes beside its picture; the clock goes on.
            words = f"NAVSRV SIM  {self.frame // 25:05d}"
            cv2.putText(frame, words, (6, screen.height - 8), cv2.FONT_HERSHEY_PLAIN, 1.0, 200.0)
        frame += np.float32(screen.digitiser) * self._noise(frame.shape, rng)
        levels = np.clip(np.rint(frame), 0.0, 255.0).astype(np.uint8)
        if screen.signal == "blue":
            return np.stack([levels, levels // 10, levels // 10], axis=-1)
        return np.asarray(cv2.cvtColor(levels, cv2.COLOR_GRAY2BGR), dtype=np.uint8)

    def _shown(self, picture: Array) -> Array:
        screen = self.screen
        if screen.inverted:
            picture = 255.0 - picture
        if screen.mirrored:
            picture = picture[:, ::-1]
        picture = np.rot90(picture, -screen.quarters).astype(np.float64)
        if screen.tilt_deg or screen.zoom != 1.0:
            middle = 0.5 * (screen.size - 1)
            turn = cv2.getRotationMatrix2D((middle, middle), -screen.tilt_deg, screen.zoom)
            picture = np.asarray(cv2.warpAffine(np.ascontiguousarray(picture), turn, (screen.size,) * 2), np.float64)
        return np.array(picture, dtype=np.float64)


def lit_scene(scene: Array, field_share: float | None = FIELD) -> Array:
    """Return a scene (N, N) as the detector sees it: in its round field, if any, with the lead letter's shadow."""
    size = scene.shape[0]
    lit = scene.copy()
    x, y, cell = marker_place(size)
    shadow = np.ones_like(lit)
    for row, line in enumerate(MARKER):
        for column, mark in enumerate(line):
            if mark == "#":
                top, left = y + row * cell, x + column * cell
                shadow[top : top + cell, left : left + cell] = LEAD
    lit *= cv2.GaussianBlur(shadow, (0, 0), max(0.002 * size, 0.5))
    if field_share is not None:
        at = np.arange(size) - 0.5 * (size - 1)
        lit[np.hypot(at, at[:, None]) > field_share * size] = 0.0
    return np.asarray(lit)


def marker_place(size: int) -> tuple[int, int, int]:
    """Return (x, y, cell) of the letter's shadow in a picture of ``size`` squared, in pixels."""
    return round(MARKER_AT[0] * size), round(MARKER_AT[1] * size), max(round(MARKER_CELL * size), 1)


def marker_picture(scene: Array, margin_cells: int = 2) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return (template, place of its corner): what an installer cuts out of an upright picture."""
    lit = lit_scene(scene)
    x, y, cell = marker_place(scene.shape[0])
    margin = margin_cells * cell
    rows, columns = len(MARKER) * cell, len(MARKER[0]) * cell
    part = lit[y - margin : y + rows + margin, x - margin : x + columns + margin]
    return np.clip(np.rint(255.0 * part), 0, 255).astype(np.uint8), (x - margin, y - margin)


def shifted(scene: Array, by_px: tuple[float, float]) -> Array:
    """Return a scene moved by (across, down) pixels; what comes in at the edge is what was there."""
    moved = np.array([[1.0, 0.0, by_px[0]], [0.0, 1.0, by_px[1]]])
    return np.asarray(cv2.warpAffine(scene, moved, scene.shape[::-1], borderMode=cv2.BORDER_REPLICATE))


def bones(size: int, seed: int = 0) -> Array:
    """Return (size, size) a scene like a pelvis for trials of video alone: soft shapes, dense ones, and a needle."""
    rng = np.random.default_rng((seed, 77))
    x, y = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    thick = 0.5 + 0.1 * x * x
    for _ in range(9):
        cx, cy, a, b, turn = *rng.uniform(-0.7, 0.7, 2), *rng.uniform(0.1, 0.35, 2), rng.uniform(0, np.pi)
        u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
        v = -(x - cx) * np.sin(turn) + (y - cy) * np.cos(turn)
        thick = thick + rng.uniform(0.2, 0.5) * np.clip(1.0 - (u / a) ** 2 - (v / b) ** 2, 0.0, 1.0) ** 0.5
    along, across = 0.6 * x + 0.8 * y, 0.8 * x - 0.6 * y
    thick = thick + 1.5 * ((np.abs(across) < 0.012) & (along > -0.4) & (along < 0.3))
    brightness: Array = np.exp(-thick)
    return brightness


def window(pixels: ArrayLike) -> Array:
    """Return X-ray values, bright for air, as a console shows them: brightness 0 to 1, open air just not white."""
    values = np.asarray(pixels, dtype=np.float64)
    low, high = np.percentile(values, (0.2, 99.8))
    shown: Array = np.clip((values - low) / max(float(high - low), 1e-9), 0.0, 1.0) * 0.86 + 0.10
    return shown
