"""A C-arm's video at the running server: real frames over TCP, and what becomes of them."""

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from navsrv.kernel.errors import ConfigError
from navsrv.server.config import load_config
from simulators.scenario.phantom import phantom_case
from simulators.world.video import marker_picture
from tests.server.live import LiveServer, metric
from tests.server.test_snapshots import EXAMPLES, NEEDLE, SEED, check
from tests.simulators.processes import Simulator, running

HELD = 'showing="held",source="video carm"'
LABELS = 'source="images carm",what="{}"'
GRABBER = """
[imaging.carm]
kind = "projection"
connect = "grabber"
image = "CarmVideo"
pose = "CarmToTracker"
detector = "ImageToCarm"
register = false

[imaging.carm.grabber]
source = "{source}"
rate_hz = 15.0
crop = {crop}
pixel_mm = 0.58
noise = 2.0
marker = "marker.png"
marker_at = {marker_at}
unknown_latency_ms = 100.0
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def latest(server: LiveServer, page: str) -> dict[str, Any]:
    """Return what a display would ask for; empty before there is any."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.ports['http']}/api/{page}", timeout=10) as answer:
            told = json.load(answer)
            return dict(told[0] if page == "video" and told else told)
    except urllib.error.HTTPError:
        return {}


def until(server: LiveServer, page: str, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    end = time.monotonic() + 60.0
    while not fits(told := latest(server, page)):
        assert time.monotonic() < end, (told, server.errors())
        time.sleep(0.1)
    return told


def shot(server: LiveServer, carm: Simulator, view: dict[str, Any]) -> dict[str, Any]:
    """Take an X-ray by video; return its facts.  Where frames stall on a crowded machine, it is rightly lost."""
    for _ in range(3):
        carm.tell(do="shoot", needle=NEEDLE, **view)
        held_ns = int(carm.wait_for("held")["time_ns"])
        end = time.monotonic() + 15.0
        while time.monotonic() < end:
            facts = latest(server, "fluoro/latest")
            if abs(int(facts.get("time_ns", 0)) - held_ns) < 300_000_000:
                screen = latest(server, "video")
                assert screen["showing"] != "held" or screen["picture_ns"] in (facts["time_ns"], None)
                return facts
            time.sleep(0.1)
    raise AssertionError((latest(server, "video"), server.errors()))


@pytest.mark.realtime
@pytest.mark.timeout(240)
def test_fluoroscopy_by_a_frame_grabber(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two held pictures show the needle; one that the console turned is refused, and the display can say why."""
    monkeypatch.setenv("NAVSRV_HOME", str(tmp_path_factory.getbasetemp() / "snapshots-home"))
    case, port = phantom_case(), free_port()
    source = f'imaging.carm.grabber.source="http://127.0.0.1:{port}/video"'
    words = ("carm", "--case", case, "--seed", SEED, "--fidelity", "quick", "--orbit-deg-s", 2000, "--video", port)
    example, settings = EXAMPLES / "fluoroscopy_video.toml", [f'server.case="{case}"', "recording.on=false", source]
    with (
        LiveServer(example, tmp_path, settings) as server,
        running(*words, "--server", f"127.0.0.1:{server.ports['devices']}") as carm,
    ):
        until(server, "video", lambda told: bool(told) and told["showing"] == "no signal")
        for view in ({"orbit_deg": 65.0}, {"view": "ap"}):
            facts = shot(server, carm, view)
        assert server.ask("register_xrays", seen="ap")["ok"]
        frame = server.frame(lambda f: f["proposal"] is not None)
        assert server.ask("accept_registration", id=frame["proposal"]["id"])["ok"]
        check(server.frame(lambda f: f["state"] == "SNAPSHOT"))
        carm.tell(do="show", quarters=1)
        carm.tell(do="shoot", view="ap")
        carm.wait_for("held")
        screen = until(server, "video", lambda v: v["showing"] == "held" and bool(v["reason"]))
        assert screen["reason"] == "the picture is turned right by 90 deg; show it as calibrated"
        assert latest(server, "fluoro/latest")["time_ns"] == facts["time_ns"]
        until(server, "video", lambda v: metric(server, "navsrv_source_samples", LABELS.format("refused")) > 0)
        assert metric(server, "navsrv_source_samples", LABELS.format("accepted")) >= 2
        until(server, "video", lambda v: metric(server, "navsrv_video_showing", HELD) == 1.0)


BASE = '[server]\ncase = "sacrum"\n[registration]\nstill_patient = true\n[tools.N]\nimages = ["carm"]\ngauge = 17\n'
GOOD = {"source": "http://127.0.0.1:1/v", "crop": [144, 44, 512, 512], "marker_at": [142, 60]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("crop = [144", "frame = [640, 480]\ncrop = [144"),
            "grabber.crop: reaches to 656, 556; expected within the frame",
        ),
        (("512, 512]", "512, 400]"), "grabber.size: missing, and the crop is not square"),
        (('marker = "marker.png"\n', ""), "grabber.marker: missing: nobody would know how the picture is turned"),
        (("marker.png", "none.png"), "none.png: no picture can be read there; expected an image file"),
        (("[142, 60]", "[500, 60]"), "beyond the picture of 512 x 512"),
        (('connect = "grabber"', ""), "imaging.carm.grabber: the source comes by openigtlink; expected connect"),
        (("noise = 2.0", "noise = -1.0"), "grabber.noise: -1.0 is out of range; expected a number from 0 to 30"),
        (("noise = 2.0", "orientation_trusted = true"), "grabber.orientation_trusted: true beside a marker"),
        (("noise = 2.0", "hold_ms = 100.0"), "grabber.hold_ms: 100 ms are fewer than 3 frames; expected longer"),
        (("imaging.carm", 'imaging."a/b"'), "imaging.a/b: files are named after it"),
        (("noise", "nose"), "grabber.nose: unknown key; expected 'noise'?"),
    ],
    ids=lambda value: value[0][:12] if isinstance(value, tuple) else "",
)
def test_each_fault_of_its_configuration_is_one_clear_line(change: tuple[str, str], said: str, tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "marker.png"), marker_picture(np.full((512, 512), 0.6))[0])
    path = tmp_path / "room.toml"
    path.write_text(BASE + GRABBER.format(**GOOD))
    assert load_config(path).imaging["carm"].grabber is not None
    path.write_text(BASE + GRABBER.format(**GOOD).replace(*change))
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert any(said in fault for fault in refused.value.faults), refused.value.faults
