"""A C-arm's video against a simulated console that knows the truth: what is live, how old, and how it is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from devices.frame_grabber import FrameGrabber, GrabberCounts, GrabberSpec, PictureSample, Showing, Still
from devices.frame_grabber_orientation import TURNS, UPRIGHT, Marker, Turn, facing
from devices.frame_grabber_picture import Framing, Scan, one_field
from simulators.world.video import Console, Screen, Truth, bones, marker_picture

SIZE = 128
SCREEN = Screen(208, 180, (40, 12), SIZE)
CROP = (40, 12, SIZE, SIZE)
PERIOD_NS = 40_000_000
WALL_NS = 1_700_000_000_000_000_000
LATENCY_NS = 60_000_000
HOLD = 13
"""Frames after which a picture that stays is held."""


def marker_of(seed: int) -> Marker:
    return Marker(*marker_picture(bones(SIZE, seed)))


def spec(**how: Any) -> GrabberSpec:
    given = {"noise": 0.7, "latency_ns": LATENCY_NS, "marker": marker_of(99), "framing": Framing(CROP), **how}
    return GrabberSpec("carm", 25.0, **given)


@dataclass
class Story:
    """What a driver said of each frame of a console, and what was true of it."""

    driver: FrameGrabber
    truths: list[Truth] = field(default_factory=list)
    showing: list[Showing] = field(default_factory=list)
    samples: list[PictureSample] = field(default_factory=list)
    stills: list[Still] = field(default_factory=list)

    @property
    def why(self) -> str:
        return self.stills[0].reason if self.stills else self.driver.standing.reason


def play(
    frames: int,
    declared: GrabberSpec | None = None,
    seed: int = 1,
    act: Callable[[int, Console], None] = lambda n, console: None,
    line: Callable[[int, NDArray[np.uint8]], NDArray[np.uint8]] = lambda n, frame: frame,
    drift_px: tuple[float, float] = (0.0, 0.0),
    **screen: Any,
) -> Story:
    """Play a console's video into a driver: the beam is on for 20 frames, then off, unless ``act`` says otherwise."""
    console = Console(SCREEN, seed, bones(SIZE, seed), drift_px=drift_px)
    console.change(**screen)
    story = Story(FrameGrabber(declared or spec(), GrabberCounts()))
    for n in range(frames):
        console.exposing = n < 20
        act(n, console)
        frame, truth = console.next()
        now_ns = (n + 1) * PERIOD_NS
        story.samples += story.driver.feed(line(n, frame), now_ns, WALL_NS + now_ns)
        story.truths.append(truth)
        story.showing.append(story.driver.standing.showing)
        still = story.driver.take_still()
        if still is not None:
            story.stills.append(still)
    return story


def test_an_exposure_is_live_then_held_and_as_old_as_its_last_pulse() -> None:
    story = play(60)
    assert story.showing[2:20] == [Showing.LIVE] * 18 or story.showing[3:20] == [Showing.LIVE] * 17
    assert story.showing[-1] is Showing.HELD
    (still,) = story.stills
    assert still.reason == ""
    assert still.time_ns == WALL_NS + 20 * PERIOD_NS - LATENCY_NS
    assert story.driver.standing.picture_ns == still.time_ns
    assert still.pixels is not None
    assert still.pixels.shape == (SIZE, SIZE)
    # Nothing that is held is ever said again.
    assert max(s.time_ns for s in story.samples) == still.time_ns


def test_false_alarms_over_seeds() -> None:
    """Counts, not shares: over 8 exposures each, at three doses, pulsed and not, over an analogue cable."""
    wrong: Counter[str] = Counter()
    frames = 0
    for seed in range(8):
        for quantum, pulse_frames in ((2.5, 1), (6.0, 4), (12.0, 1)):
            story = play(60, seed=seed, quantum=quantum, pulse_frames=pulse_frames)
            last = max(n for n, truth in enumerate(story.truths) if truth.exposing and n % pulse_frames == 0)
            for n, showing in enumerate(story.showing):
                frames += 1
                wrong["live while held"] += showing is Showing.LIVE and n > last + HOLD
                wrong["held while live"] += showing is Showing.HELD and n < 20
            wrong["wrong time"] += [s.time_ns for s in story.stills] != [WALL_NS + (last + 1) * PERIOD_NS - LATENCY_NS]
            wrong["refused"] += any(s.reason for s in story.stills)
    assert frames == 24 * 60
    assert +wrong == Counter()


@pytest.mark.parametrize("turn", TURNS, ids=lambda turn: turn.words)
def test_every_way_a_console_can_show_a_picture_is_told_over_other_anatomy(turn: Turn) -> None:
    """The marker was cut out of one patient's picture; others are shown."""
    for seed in range(6):
        console = Console(SCREEN, seed, bones(SIZE, seed), exposing=True)
        console.change(mirrored=turn.mirrored, quarters=turn.quarters, quantum=3.0 + seed)
        frame = Framing(CROP).cut(console.next()[0])
        told = facing(frame, marker_of(99))
        assert told.turn == turn, (seed, told)
        assert told.upright == (turn == UPRIGHT)


@given(st.booleans(), st.integers(0, 3), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_a_part_lies_where_its_pixels_are(mirrored: bool, quarters: int, x: int, y: int) -> None:
    picture = np.arange(400).reshape(20, 20)
    turn = Turn(mirrored, quarters)
    part = picture[y : y + 5, x : x + 8]
    at_x, at_y = turn.place((x, y), part.shape, 20)
    shown = turn.shown(part)
    assert (turn.shown(picture)[at_y : at_y + shown.shape[0], at_x : at_x + shown.shape[1]] == shown).all()


def called_up(n: int, console: Console) -> None:
    """Someone recalls a stored picture: it is there at once, and nobody exposed it."""
    console.exposing = n < 20 or n == 45
    console.scene = bones(SIZE, 1 if n < 40 else 2)


def turned_after(n: int, console: Console) -> None:
    if n == 10:
        console.change(quarters=1)


def turned_by_hand(n: int, console: Console) -> None:
    """The held picture is turned round and back by a knob."""
    if 40 <= n < 58:
        console.change(tilt_deg=20.0 * np.sin(np.pi * (n - 40) / 17))


@pytest.mark.parametrize(
    ("said", "how"),
    [
        ("turned right by 90 deg", {"act": turned_after}),
        ("mirrored left to right", {"mirrored": True}),
        ("turned by a few degrees", {"tilt_deg": 8.0}),
        ("black and white are swapped", {"inverted": True}),
        ("no marker is configured", {"declared": spec(marker=None)}),
        ("the input is interlaced", {"interlaced": True, "drift_px": (5.0, 0.0)}),
        ("called up", {"act": called_up}),
        ("shortly before the exposure ended", {"act": turned_by_hand}),
        ("the frame is 208 x 180, declared 640 x 480", {"declared": spec(framing=Framing(CROP, frame=(640, 480)))}),
        ("beyond the frame of 208 x 180", {"declared": spec(framing=Framing((100, 100, 128, 128)))}),
        ("no signal: the screen is black", {"signal": "black"}),
        ("no signal: the screen is coloured", {"signal": "blue"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_measured_in_is_refused_with_one_clear_line(said: str, how: dict[str, Any]) -> None:
    story = play(75, **how)
    why = [still.reason for still in story.stills] or [story.driver.standing.reason]
    assert said in why[-1], why
    assert "\n" not in why[-1]
    assert all(still.pixels is None for still in story.stills if still.reason)


def test_a_picture_without_a_marker_is_believed_only_if_declared_so() -> None:
    assert play(60, spec(marker=None, trusted=True)).stills[0].reason == ""


def test_a_stuck_grabber_is_neither_held_nor_live() -> None:
    def stuck(n: int, console: Console) -> None:
        if n == 15:
            console.change(signal="stuck")

    story = play(60, act=stuck)
    assert story.stills == []
    assert Showing.HELD not in story.showing
    assert story.showing[-1] is Showing.NO_SIGNAL
    assert "bit for bit" in story.driver.standing.reason
    # A digital input shows a held picture that way, and must be declared as one.
    digital = play(60, spec(noise=0.0), digitiser=0.0)
    assert digital.showing[-1] is Showing.HELD


def test_a_held_picture_that_codec_or_window_change_is_not_live() -> None:
    """JPEG turns little noise into more than declared; a window makes each frame another: never live, by the grain."""

    def jpeg(n: int, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 90])[1], 1), np.uint8)

    def turned_window(n: int, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        gain = 1.0 + 0.1 * np.sin(n) if n > 30 else 1.0
        return np.clip(np.rint(frame * gain - 20.0 * (gain - 1.0)), 0, 255).astype(np.uint8)

    coded = play(60, line=jpeg)
    assert Showing.LIVE not in coded.showing[20 + HOLD :]
    assert "declared to add less" in coded.samples[-1].reason
    assert play(60, spec(noise=2.0), line=jpeg).showing[-1] is Showing.HELD
    windowed = play(60, line=turned_window)
    assert set(windowed.showing[20 + HOLD :]) == {Showing.HELD}


@pytest.mark.parametrize("share", [0.7, 0.5])
def test_a_console_that_averages_leaves_the_end_of_the_exposure_in_doubt(share: float) -> None:
    """The last pictures fade in for a while after the beam is off: the truth lies within the stated time."""
    shown: list[NDArray[np.float64]] = []

    def averaged(n: int, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        shown.append(share * frame + (1.0 - share) * shown[-1] if shown else frame.astype(float))
        return np.rint(shown[-1]).astype(np.uint8)

    (still,) = play(60, line=averaged).stills
    assert still.pixels is not None, still.reason
    assert 0 < still.unknown_ns < 400_000_000
    assert still.time_ns - still.unknown_ns <= WALL_NS + 20 * PERIOD_NS - LATENCY_NS <= still.time_ns


def test_a_noisier_cable_than_declared_is_noticed_in_the_dark_beside_the_field() -> None:
    story = play(60, digitiser=2.0, quantum=10.0)
    assert story.showing[-1] is Showing.HELD
    assert "declared 0.7" in story.driver.take_notes()[0]


def test_frames_that_stop_are_never_live_and_what_they_missed_is_counted() -> None:
    driver = play(19).driver
    assert driver.standing.showing is Showing.LIVE
    due_ns = driver.next_due_ns()
    assert due_ns is not None
    driver.tick(due_ns)
    assert driver.standing.showing is Showing.UNKNOWN
    later_ns = driver.next_due_ns()
    assert later_ns is not None
    driver.tick(later_ns)
    assert driver.standing.showing is Showing.NO_SIGNAL
    assert driver.take_still() is None

    story = play(40, line=lambda n, frame: frame)
    console = Console(SCREEN, 1, bones(SIZE, 1))
    console.exposing = True
    story.driver.feed(console.next()[0], 46 * PERIOD_NS, WALL_NS)  # 41 to 45 never came
    assert story.driver.counts.lost == 5


def test_a_picture_that_was_there_before_has_no_time() -> None:
    story = play(80, act=lambda n, console: None)
    late = FrameGrabber(spec(), GrabberCounts())
    console = Console(SCREEN, 1, bones(SIZE, 1), exposing=True)
    console.next()
    console.exposing = False
    for n in range(30):
        late.feed(console.next()[0], n * PERIOD_NS, WALL_NS + n * PERIOD_NS)
    assert story.driver.standing.picture_ns is not None
    assert (late.standing.showing, late.standing.picture_ns) == (Showing.HELD, None)
    assert late.take_still() is None


def test_every_frame_has_one_fate() -> None:
    def rough(n: int, console: Console) -> None:
        console.exposing = n % 40 < 15
        console.change(signal=("picture", "blue")[n % 50 > 45], quarters=int(60 < n < 90))

    counts = play(120, act=rough).driver.counts
    fates = (counts.accepted, counts.repeated, counts.no_signal, counts.wrong_frame, counts.unsure)
    assert counts.frames == 120 == sum(fates) + counts.misoriented + counts.combed
    assert min(counts.accepted, counts.repeated, counts.no_signal, counts.unsure, counts.misoriented) > 0


@pytest.mark.parametrize(("scan", "field"), [(Scan.TOP, 0), (Scan.BOTTOM, 1)])
def test_one_field_shows_one_moment_at_the_places_where_things_are(scan: Scan, field: int) -> None:
    """Two pictures woven: each field by itself gives its own picture back, to what half the rows can tell."""
    moments = [cv2.GaussianBlur(255.0 * bones(SIZE, seed), (0, 0), 3.0) for seed in (1, 2)]
    frame = np.zeros((SIZE + 3, SIZE), np.uint8)
    woven = frame[3:]  # the crop begins on an odd row of the frame
    for first, moment in enumerate(moments):
        rows = (first - 3) % 2
        woven[rows::2] = np.rint(moment[rows::2])
    framing = Framing((0, 3, SIZE, SIZE), scan)
    made = framing.made(framing.cut(frame))
    assert np.abs(made[2:-2] - moments[field][2:-2]).max() < 3.0
    ramp = np.repeat(np.arange(0, 64, dtype=np.uint8)[:, None], 32, axis=1)
    for first in (0, 1):
        assert np.abs(one_field(ramp, first).astype(int) - ramp).max() <= 1


def test_an_input_that_is_not_interlaced_after_all_is_said() -> None:
    story = play(
        70, spec(framing=Framing(CROP, Scan.TOP)), act=lambda n, c: setattr(c, "exposing", True), drift_px=(4, 0)
    )
    assert "not interlaced" in story.driver.take_notes()[0]
    woven = play(
        70,
        spec(framing=Framing(CROP, Scan.TOP)),
        act=lambda n, c: setattr(c, "exposing", True),
        drift_px=(4, 0),
        interlaced=True,
    )
    assert woven.driver.take_notes() == []
    assert woven.showing[-1] is Showing.LIVE


def test_a_marker_that_cannot_tell_the_ways_is_refused() -> None:
    assert marker_of(1).fault(SIZE) == ""
    disc = np.full((21, 21), 200, np.uint8)
    cv2.circle(disc, (10, 10), 6, 20, -1)
    assert "mirrored top to bottom" in Marker(disc, (10, (SIZE - 21) // 2)).fault(SIZE)
    assert Marker(disc, (10, 30)).fault(SIZE) == "", "a round marker tells by its place"
    assert "beyond the picture" in Marker(disc, (120, 0)).fault(SIZE)
    assert "differ by" in Marker(np.full((20, 20), 90, np.uint8), (10, 30)).fault(SIZE)
