"""Owns a C-arm's pictures that come by a frame grabber: video frames and time in, and what may be believed of them out.

A screen has no stamps and no status.  What a frame is, is told by the frame before it (``frame_grabber_change``): a new
picture is live fluoroscopy, the same one again is the last image held, and a picture held is as old as its last change.
How the console shows it is told by a lead marker (``frame_grabber_orientation``).  When an exposure has ended, the held
picture is the shot: it is given out once (``take_still``), or refused with one clear line.  One change alone is a
picture that somebody called up, not an exposure.  A console that replays a stored run looks as if it were live: no
video can tell.  Refuses devices, codecs and clocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from devices.frame_grabber_change import GRAIN_KEPT, Change, Novelty, change
from devices.frame_grabber_orientation import Marker, facing
from devices.frame_grabber_picture import COMBED_SHARE, UNCOMBED_SHARE, Framing, Grey, Scan, combed_share, no_picture
from devices.health import FreshnessRule

ANALOGUE: Final = 0.25
"""Declared noise (grey levels) from which on a frame that equals the one before it did not come from the input."""
FROZEN_NS: Final = 1_000_000_000
MOVED_SHARE: Final = 0.02
UNCOMBED_MOVES: Final = 15
"""So many pictures that moved without combing are not interlaced."""
TO_16_BITS: Final = 257.0


class Showing(Enum):
    """What the screen shows.  UNKNOWN is never live."""

    LIVE = "live"
    HELD = "held"
    NO_SIGNAL = "no signal"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, eq=False)
class GrabberSpec:
    """What the configuration declares of one C-arm's video.

    Attributes
    ----------
    rate_hz : float
        Frames a second.
    noise : float
        Standard deviation (grey levels) that the digitiser adds; 0 for a digital input.
    hold_ns : int
        A picture that has not changed for so long is held; longer than between two pulses of pulsed fluoroscopy.
    exposure_pictures : int
        So many new pictures make an exposure; fewer may be one that was called up.
    latency_ns, unknown_latency_ns : int
        From the exposure to the frame's receipt, and how much longer it may be.
    marker : Marker or None
        Without one the orientation is unknown, unless ``trusted``.
    """

    name: str
    rate_hz: float
    framing: Framing
    noise: float = 1.0
    hold_ns: int = 500_000_000
    exposure_pictures: int = 3
    latency_ns: int = 0
    unknown_latency_ns: int = 0
    marker: Marker | None = None
    trusted: bool = False


@dataclass(slots=True)
class GrabberCounts:
    """What happened to the frames since the start; each frame has one fate, but for ``lost``, which never came."""

    frames: int = 0
    accepted: int = 0
    repeated: int = 0
    no_signal: int = 0
    wrong_frame: int = 0
    unsure: int = 0
    misoriented: int = 0
    combed: int = 0
    lost: int = 0
    connections: int = 0
    stills: int = 0
    stills_refused: int = 0


@dataclass(frozen=True, slots=True)
class PictureSample:
    """One frame that is not the one before it again: whether it may be used, and when it was taken (wall ns)."""

    name: str
    usable: bool
    reason: str
    time_ns: int
    received_ns: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What the screen shows, since when the picture on it is (wall ns; None when nobody knows), and what is wrong."""

    showing: Showing
    picture_ns: int | None
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Still:
    """A shot: the picture that is held after an exposure, or why it cannot be used.

    Attributes
    ----------
    pixels : (rows, columns) uint16 or None
        The mean of the frames that held it, 257 for each grey level; None when it is refused.
    time_ns : int
        When it was taken at the latest (wall): its last change, less the declared latency.
    unknown_ns : int
        How much earlier it may have been taken.
    received_ns : int
        Monotonic time of the frame that showed it first.
    """

    pixels: NDArray[np.uint16] | None
    reason: str
    time_ns: int
    unknown_ns: int
    received_ns: int


@dataclass(slots=True, eq=False)
class _Run:
    """New pictures one after the other: an exposure, as far as it goes."""

    received_ns: int
    """Of the newest picture."""
    ended_ns: int
    ended_wall_ns: int
    """When the newest frame came that was not the same: a console that averages lets its last picture fade in."""
    pictures: int = 0
    flaw: str = ""
    """Of the newest picture that had one."""
    sound_since_ns: int | None = None
    """Since when no picture had a flaw; None from one that has."""
    ever_flawed: bool = False
    held: NDArray[np.float32] | None = None
    frames: int = 0


class FrameGrabber:
    """One connection's worth of a C-arm's video; a new one is made for each connection."""

    def __init__(self, spec: GrabberSpec, counts: GrabberCounts) -> None:
        self.spec, self.counts = spec, counts
        self.rule = FreshnessRule.for_rate(spec.rate_hz)
        self.standing = Standing(Showing.UNKNOWN, None, "no frame yet")
        self._period_ns = int(1e9 / spec.rate_hz)
        self._before: Grey | None = None
        self._received_ns: int | None = None
        self._varied_ns: int | None = None
        """When the newest frame came that was not bit for bit the one before it."""
        self._first_ns = 0
        """When frames began to be compared: since a signal, a gap, or something that nobody could tell."""
        self._run: _Run | None = None
        self._still: Still | None = None
        self._dark = ""
        self._uncombed = 0
        self._notes: list[str] = []

    # -- frames ------------------------------------------------------------------------------------------------

    def feed(self, frame: NDArray[Any], received_ns: int, wall_ns: int) -> list[PictureSample]:
        """Return what a frame says: one sample, or none where it repeats the one before it.

        Parameters
        ----------
        frame : (rows, columns) or (rows, columns, 3) uint8
            As decoded, blue first.
        received_ns, wall_ns : int
            Monotonic and wall time of its receipt.
        """
        self.counts.frames += 1
        self._pace(received_ns)
        self._received_ns = received_ns
        fault = self.spec.framing.fault(frame)
        if fault:
            self.counts.wrong_frame += 1
            return self._nothing(Showing.UNKNOWN, fault, received_ns, wall_ns)
        x, y, across, down = self.spec.framing.crop
        fault = no_picture(frame[y : y + down, x : x + across])
        if fault:
            self.counts.no_signal += 1
            return self._nothing(Showing.NO_SIGNAL, fault, received_ns, wall_ns)
        cut = self.spec.framing.cut(frame)
        samples = self._compared(cut, received_ns, wall_ns)
        self._before = cut
        self._settle(received_ns)
        return samples

    def tick(self, now_ns: int) -> None:
        """Notice that frames have stopped."""
        if self._received_ns is None:
            return
        silent_ns = now_ns - self._received_ns
        if silent_ns > self.rule.lost_ns:
            self._forget()
            reason = f"no signal: no frame for {silent_ns / 1e9:.1f} s"
            self.standing = Standing(Showing.NO_SIGNAL, self.standing.picture_ns, reason)
        elif silent_ns > self.rule.stale_ns:
            self.standing = Standing(Showing.UNKNOWN, self.standing.picture_ns, "frames have stopped")

    def next_due_ns(self) -> int | None:
        """Return the monotonic time at which ``tick`` is needed if no frame comes; None before the first."""
        if self._received_ns is None or self.standing.showing is Showing.NO_SIGNAL:
            return None
        stale = self.standing.showing is Showing.UNKNOWN
        return self._received_ns + (self.rule.lost_ns if stale else self.rule.stale_ns) + 1

    def take_still(self) -> Still | None:
        """Return the shot of an exposure that has ended, once; None when there is none."""
        still, self._still = self._still, None
        return still

    def take_notes(self) -> list[str]:
        """Return what the one who configured this should know, once."""
        notes, self._notes = self._notes, []
        return notes

    # -- what a frame is ---------------------------------------------------------------------------------------

    def _pace(self, received_ns: int) -> None:
        """Count frames that did not come; after a gap nothing before it tells what is new."""
        if self._received_ns is None:
            return
        apart_ns = received_ns - self._received_ns
        self.counts.lost += max(round(apart_ns / self._period_ns) - 1, 0)
        if apart_ns > self.rule.lost_ns:
            self._forget()

    def _nothing(self, showing: Showing, reason: str, received_ns: int, wall_ns: int) -> list[PictureSample]:
        """Note a frame without a picture: what was there before it is over."""
        self._forget()
        self.standing = Standing(showing, self.standing.picture_ns, reason)
        return [self._sample(reason, received_ns, wall_ns)]

    def _forget(self) -> None:
        self._before, self._run, self._varied_ns = None, None, None

    def _compared(self, cut: Grey, received_ns: int, wall_ns: int) -> list[PictureSample]:
        if self._before is None:
            self._first_ns = self._varied_ns = received_ns
            self.counts.unsure += 1
            return [self._sample("the first frame: nothing tells yet whether it is live", received_ns, wall_ns)]
        if self.spec.noise >= ANALOGUE and np.array_equal(cut, self._before):
            self.counts.repeated += 1  # one that the grabber said twice
            return []
        self._varied_ns = received_ns
        seen = change(self._before, cut, self.spec.noise)
        self._watch_noise(seen)
        run = self._run
        match seen.novelty:
            case Novelty.SAME:
                self.counts.repeated += 1
                if run is not None and run.held is not None:
                    run.held += cut
                    run.frames += 1
                return []
            case Novelty.UNSURE:
                self.counts.unsure += 1
                self._first_ns = received_ns
                if run is not None:
                    run.ended_ns, run.ended_wall_ns = received_ns, wall_ns
                    run.held, run.frames = np.zeros(cut.shape, np.float32), 0
                return [self._sample(_unsure(seen), received_ns, wall_ns)]
            case Novelty.NEW:
                return [self._new(cut, seen, received_ns, wall_ns)]

    def _new(self, cut: Grey, seen: Change, received_ns: int, wall_ns: int) -> PictureSample:
        """Take a new picture into the exposure that it belongs to."""
        run = self._run
        if run is None:
            run = self._run = _Run(received_ns, received_ns, wall_ns)
        run.pictures += 1
        run.received_ns = run.ended_ns = received_ns
        run.ended_wall_ns = wall_ns
        run.held, run.frames = cut.astype(np.float32), 1
        flaw = self._combing(cut, seen)
        if flaw:
            self.counts.combed += 1
        else:
            flaw = self._misoriented(self.spec.framing.made(cut))
            self.counts.misoriented += bool(flaw)
        if flaw:
            run.flaw, run.sound_since_ns, run.ever_flawed = flaw, None, True
        elif run.sound_since_ns is None:
            run.sound_since_ns = received_ns
        if not flaw and run.pictures < self.spec.exposure_pictures:
            self.counts.unsure += 1
            flaw = "one change alone: a picture that was called up, or the beginning of an exposure"
        elif not flaw:
            self.counts.accepted += 1
        return self._sample(flaw, received_ns, wall_ns)

    def _sample(self, reason: str, received_ns: int, wall_ns: int) -> PictureSample:
        spec = self.spec
        said = f"{spec.name}: {reason}" if reason else ""
        return PictureSample(spec.name, not reason, said, wall_ns - spec.latency_ns, received_ns)

    def _misoriented(self, picture: NDArray[Any]) -> str:
        """Return why a picture is not known to be shown as calibrated; empty if it is."""
        if self.spec.marker is not None:
            return facing(picture, self.spec.marker).reason
        return "" if self.spec.trusted else "orientation unknown: no marker is configured, and it is not trusted"

    def _combing(self, cut: Grey, seen: Change) -> str:
        """Return why the rows of a picture are not of one moment; empty if nothing speaks against it.

        Of an interlaced input only one field is taken, so that combing is what must be there when something moves.
        """
        share = combed_share(cut)
        if self.spec.framing.scan is Scan.PROGRESSIVE:
            return "its rows are of two moments: the input is interlaced" if share >= COMBED_SHARE else ""
        if share >= COMBED_SHARE:
            self._uncombed = 0
        elif seen.moved_share >= MOVED_SHARE and share <= UNCOMBED_SHARE:
            self._uncombed += 1
            if self._uncombed == UNCOMBED_MOVES:
                text = f"scan is {self.spec.framing.scan.value!r}, but pictures that move are not interlaced"
                self._notes.append(f"{text}: half of their rows are thrown away")
        return ""

    def _watch_noise(self, seen: Change) -> None:
        """Say once that the digitiser is noisier than declared, where the dark beside the field shows it."""
        if seen.digitiser > 2.0 * max(self.spec.noise, 0.5) and not self._dark:
            self._dark = f"the digitiser adds {seen.digitiser:.1f} grey levels of noise, declared {self.spec.noise:g}"
            self._notes.append(self._dark)

    # -- what it comes to --------------------------------------------------------------------------------------

    def _settle(self, now_ns: int) -> None:
        """Say what the screen shows now, and give out the shot when an exposure has ended."""
        spec, run = self.spec, self._run
        known_ns = None if run is None else run.ended_wall_ns - spec.latency_ns
        assert self._varied_ns is not None
        stuck_ns = now_ns - self._varied_ns
        if stuck_ns > FROZEN_NS:
            reason = "no signal: every frame is bit for bit the same, which no analogue input gives"
            self.standing = Standing(Showing.NO_SIGNAL, known_ns, reason)
        elif stuck_ns > self.rule.stale_ns:
            self.standing = Standing(Showing.UNKNOWN, known_ns, "frames repeat bit for bit")
        elif run is not None and now_ns - run.received_ns <= spec.hold_ns:
            exposing = run.pictures >= spec.exposure_pictures
            reason = run.flaw if run.sound_since_ns is None else ""
            if not exposing:
                reason = "one change alone: a picture that was called up, or the beginning of an exposure"
            self.standing = Standing(Showing.LIVE if exposing else Showing.UNKNOWN, known_ns, reason)
        elif now_ns - self._first_ns <= spec.hold_ns:
            self.standing = Standing(Showing.UNKNOWN, known_ns, "not seen for long enough to tell live from held")
        else:
            self._hold(run, known_ns)

    def _hold(self, run: _Run | None, known_ns: int | None) -> None:
        """Say that the picture is held, as old as its last change; the first time after an exposure it is the shot."""
        if run is None:
            reason = "" if known_ns is not None else "held since before it was seen: nobody knows how old it is"
            if self.standing.showing is not Showing.HELD:
                self.standing = Standing(Showing.HELD, None, reason)
            return
        refused = self._refused(run)
        pixels = None
        if not refused:
            assert run.held is not None
            picture = self.spec.framing.made(run.held / np.float32(run.frames))
            pixels = np.clip(np.rint(picture * TO_16_BITS), 0, 65535).astype(np.uint16)
            refused = self._misoriented(picture)
        if refused:
            self.counts.stills_refused += 1
        else:
            self.counts.stills += 1
        time_ns = run.ended_wall_ns - self.spec.latency_ns
        unknown_ns = self.spec.unknown_latency_ns + run.ended_ns - run.received_ns
        self._still = Still(None if refused else pixels, refused, time_ns, unknown_ns, run.received_ns)
        exposed = known_ns if run.pictures >= self.spec.exposure_pictures else None
        self.standing = Standing(Showing.HELD, exposed, refused)
        self._run = None

    def _refused(self, run: _Run) -> str:
        """Return why the end of a run is no shot; empty if it is one.

        A flaw at its beginning is forgiven once pictures were sound for as long as a picture is held: a console that
        turns a held picture shows new ones, too, but does not come to rest so slowly.
        """
        if run.pictures < self.spec.exposure_pictures:
            return "it came by one change: a picture that was called up has no time"
        if run.held is None or not run.frames:
            return "no frame held its picture"
        if run.ended_ns - run.received_ns > self.spec.hold_ns:
            return (
                "nobody can tell when the exposure ended: the noise was that of neither a live picture nor a held one"
            )
        if run.sound_since_ns is None:
            return run.flaw
        if run.ever_flawed and run.received_ns - run.sound_since_ns < self.spec.hold_ns:
            return f"shortly before the exposure ended: {run.flaw}"
        return ""


def _unsure(seen: Change) -> str:
    if seen.grain >= GRAIN_KEPT:
        more = f"{seen.noise:.1f} grey levels of noise, where the input is declared to add less"
        return f"the picture's grain stays, as if held, but with {more}"
    return "the noise is that of neither a live picture nor a held one"
