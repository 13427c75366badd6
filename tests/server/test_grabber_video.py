"""What lies between a video and the session: files and devices that come and go, a codec that dies, unknown latency."""

import asyncio
import queue
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.frame_grabber import FrameGrabber, GrabberCounts, Still
from navsrv.kernel.samples import ProjectionSample
from navsrv.server.config import load_config
from navsrv.server.config_grabber import grabber_spec
from navsrv.server.grabber_video import Closed, Event, Frame, Opened, VideoLine
from navsrv.server.grabbers import CarmVideo
from navsrv.server.placing import Arrival, Placing
from simulators.__main__ import main as simulators
from tests.server.test_snapshots import EXAMPLES

EXAMPLE = EXAMPLES / "fluoroscopy_video.toml"


def events(
    line: VideoLine, happened: "queue.Queue[Event]", seconds: float, enough: Callable[[Event], bool]
) -> list[Event]:
    line.start()
    end, found = time.monotonic() + seconds, []
    try:
        while True:
            found.append(happened.get(timeout=end - time.monotonic()))
            if enough(found[-1]):
                return found
    finally:
        line.stop()


def test_a_file_is_played_at_its_rate_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """FFV1, so that what the decoder gives is what the console showed."""
    words = ["--size", "128", "--frames", "40", "--rate-hz", "50", "--marker", str(tmp_path / "marker.png")]
    assert simulators(["video", "--file", str(tmp_path / "video.avi"), *words]) == 0
    capsys.readouterr()
    config = tmp_path / "room.toml"
    text = EXAMPLE.read_text()
    for old, new in (
        ("http://127.0.0.1:8090/video", str(tmp_path / "video.avi")),
        ("fluoroscopy_video_marker.png", "marker.png"),
        ("[144, 44, 512, 512]", "[144, 44, 128, 128]"),
        ("[800, 600]", "[416, 216]"),
        ("[142, 60]", "[34, 14]"),
        ("rate_hz = 15.0", "rate_hz = 50.0"),
        ("hold_ms = 500.0", "hold_ms = 200.0"),
        ("noise = 2.0", "noise = 0.7"),
    ):
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    grabber = load_config(config).imaging["carm"].grabber
    assert grabber is not None
    happened: queue.Queue[Event] = queue.Queue()
    line = VideoLine(grabber.source, grabber.rate_hz, None, happened.put)
    seen = events(
        line, happened, 30.0, lambda e, said=[]: said.append(e) or sum(isinstance(x, Opened) for x in said) == 2
    )
    frames = [event for event in seen if isinstance(event, Frame)]
    assert len(frames) == 40
    assert (frames[-1].received_ns - frames[0].received_ns) / 1e9 >= 39 / 50 * 0.99
    assert any(isinstance(event, Closed) and "ended after 40 frames" in event.why for event in seen)
    driver = FrameGrabber(grabber_spec("carm", grabber), GrabberCounts())
    stills: list[Still | None] = []
    for n, frame in enumerate(frames):
        driver.feed(frame.pixels, n * 20_000_000, n * 20_000_000)
        stills.append(driver.take_still())
    (still,) = filter(None, stills)
    assert (still.reason, still.time_ns) == ("", 19 * 20_000_000)


@pytest.mark.parametrize("source", ["/dev/video97", "97", "none.avi", "http://127.0.0.1:9/video"])
def test_what_cannot_be_opened_is_said_in_one_line_again_and_again(source: str) -> None:
    happened: queue.Queue[Event] = queue.Queue()
    line = VideoLine(source, 25.0, (640, 480), happened.put)
    count = iter(range(2))
    for event in events(line, happened, 20.0, lambda _: next(count) == 1):
        assert isinstance(event, Closed)
        assert event.why.startswith(source)
        assert "\n" not in event.why


def test_a_process_that_dies_is_started_anew_and_nothing_is_known_meanwhile(tmp_path: Path) -> None:
    notes: list[tuple[str, str]] = []
    imaging = load_config(EXAMPLE).imaging["carm"]

    async def until(fits: Callable[[], bool]) -> None:
        async with asyncio.timeout(60.0):
            while not fits():
                await asyncio.sleep(0.02)

    async def run() -> None:
        video = CarmVideo("carm", imaging, tmp_path, lambda _: None, lambda *_: None, lambda *note: notes.append(note))
        video.start()
        await until(lambda: video.report().showing == "no signal")
        assert not video.report().connected
        assert video._child is not None
        first = video._child.process
        first.send_signal(signal.SIGKILL)
        await until(lambda: ("video_lost", f"carm: {LOST}") in notes)
        assert video.report().showing == "unknown"
        await until(lambda: video._child is not None and video.report().showing == "no signal")
        video.stop()

    asyncio.run(run())
    assert ("video", "carm: unknown: the video's process ended") in notes


LOST = "its process ended by itself (status -9); it is started anew"


def test_an_unknown_latency_is_doubt_of_the_place_while_the_carm_moves() -> None:
    """A C-arm that goes at 100 mm/s for the 150 ms that nobody knows of: 15 mm, a third of its square."""
    config = load_config(EXAMPLE)

    async def place(speed_mm_s: float, unknown_ns: int) -> Any:
        notes: list[str] = []
        placing = Placing(config, lambda *_: asyncio.sleep(0), lambda event, text: notes.append(text))
        for ms in range(0, 2001, 20):
            pose = np.eye(4)
            pose[0, 3] = speed_mm_s * ms / 1000.0
            placing.give("CarmToTracker", ms * 1_000_000, pose)
        image = ProjectionSample("CarmVideo", np.zeros((8, 8), np.uint16), np.eye(4), 1_000_000_000, 0)
        placed = await placing.place(Arrival("carm", config.imaging["carm"], image, unknown_ns=unknown_ns))
        return notes if placed is None else placed.covariance

    known, unknown = asyncio.run(place(100.0, 0)), asyncio.run(place(100.0, 150_000_000))
    assert unknown[3, 3] - known[3, 3] == pytest.approx(15.0**2 / 3.0, rel=1e-6)
    assert asyncio.run(place(0.0, 150_000_000)) == pytest.approx(asyncio.run(place(0.0, 0)))
    (refused,) = asyncio.run(place(0.0, 1_900_000_000))
    assert "its latency is unknown to 1900 ms, and so much earlier: no CarmToTracker" in refused
    assert refused.endswith("not used")
