"""The video simulator's own truth, and what it refuses."""

import numpy as np
import pytest

from navsrv.kernel.errors import InputError
from simulators.__main__ import main
from simulators.video import shown
from simulators.world.video import Console, Screen, bones, lit_scene

SCREEN = Screen(208, 180, (40, 12), 128, quantum=0.0, digitiser=0.0)


def picture(console: Console) -> np.ndarray:
    return console.next()[0][12:140, 40:168, 0]


def test_without_noise_the_screen_shows_the_scene_and_holds_it() -> None:
    scene = bones(128, 3)
    console = Console(SCREEN, 1, scene, exposing=True)
    live = picture(console)
    assert np.abs(live - 255.0 * lit_scene(scene)).max() <= 0.5 + 1e-9
    console.exposing, console.scene = False, bones(128, 4)
    assert (picture(console) == live).all(), "held, whatever lies in the beam now"
    console.change(mirrored=True, quarters=1)
    assert (picture(console) == np.rot90(live[:, ::-1], -1)).all()


def test_interlaced_rows_are_of_two_moments() -> None:
    console = Console(SCREEN, 1, bones(128, 3), drift_px=(6.0, 0.0), exposing=True)
    console.change(interlaced=True)
    woven = picture(console)
    still = Console(SCREEN, 1, bones(128, 3), drift_px=(6.0, 0.0), exposing=True)
    first = picture(still)
    assert (woven[0::2] == first[0::2]).all()
    assert not (woven[1::2] == first[1::2]).all()


def test_what_is_no_order_or_no_place_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown({"do": "show", "tilt_deg": 3, "mirrored": True}) == {"tilt_deg": 3.0, "mirrored": True}
    for wrong in ({"quarters": 1.5}, {"mirrored": 1}, {"signal": "green"}, {"colour": "red"}):
        with pytest.raises(InputError, match="expected expose or rest, show"):
            shown({"do": "show", **wrong})
    assert main(["video", "--file", "/nonexistent/x.avi", "--size", "64"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "navsrv simulate video: /nonexistent/x.avi: cannot be written; expected a place for a file such as video.avi\n"
    )
