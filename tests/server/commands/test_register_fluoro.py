"""``navsrv register fluoro`` on files: X-rays as PNG, a geometry file, a case; or one line that says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from navsrv.anatomy.build import CaseDraft, StructureDraft, write_case
from navsrv.anatomy.case import Kind, Volume
from navsrv.anatomy.surfaces import label_surface
from navsrv.kernel.frames import CT, REFERENCE, Rigid
from navsrv.server.cli import main
from tests.registration.test_fluoro import DETECTOR, TRUTH, spine, start
from tests.registration.test_fluoro_bones import LOWER, UPPER, bone, error_mm, motion, xrays

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a case and two X-rays, and what a geometry file of them holds."""
    folder = tmp_path_factory.mktemp("fluoro")
    ct, _, labels, _ = spine()
    drawn = Volume(labels, ct.origin_mm, ct.spacing_mm)
    bones = tuple(
        StructureDraft(name, Kind.BONE, label_surface(drawn, label).mesh, 0.4, label)
        for name, label in (("Lower", LOWER), ("Upper", UPPER))
    )
    write_case(CaseDraft("spine", bones, {"sources": [{"file": "made up"}]}, ct, drawn), folder / "case")
    views = []
    for number, view in enumerate(xrays()):
        cv2.imwrite(str(folder / f"view{number}.png"), np.asarray(view.pixels, np.uint16))
        views.append(
            {
                "image": f"view{number}.png",
                "sdd_mm": DETECTOR.sdd_mm,
                "pixel_mm": DETECTOR.pixel_mm,
                "principal_px": list(DETECTOR.principal_px),
                "T_carm_from_frame": view.projection.T_carm_from_object.matrix.ravel().tolist(),
            }
        )
    rough = start(3, 5.0, 5.0).matrix.ravel().tolist()
    return folder, {"frame": "reference", "views": views, "initial": {"T_ct_from_frame": rough}}


def register(folder: Path, geometry: dict[str, Any], *more: str) -> int:
    (folder / "views.json").write_text(json.dumps(geometry))
    named = ["--case", str(folder / "case"), "--geometry", str(folder / "views.json"), "--bone", "Lower"]
    return main(["register", "fluoro", *named, *more])


def test_bones_are_placed_each_where_it_is(
    room: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a geometry file read otherwise than it was meant, and a second bone given the first one's place."""
    folder, geometry = room
    assert register(folder, geometry, "--with", "Upper", "--overlay", str(folder / "overlay.png"), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    lower, upper = (
        Rigid.from_matrix(CT, REFERENCE, np.array(record["matrix"])) for record in (said, said["bones"]["Upper"])
    )
    assert said["verdict"] == said["bones"]["Upper"]["verdict"] == "accept"
    assert error_mm(lower, TRUTH, bone(LOWER).points_ct_mm) < 0.5
    assert error_mm(upper, motion().inverse() @ TRUTH, bone(UPPER).points_ct_mm) < 0.5
    assert cv2.imread(str(folder / "overlay.png")) is not None


def _mirrored(geometry: dict[str, Any]) -> None:
    geometry["initial"]["T_ct_from_frame"] = np.diag([-1.0, 1.0, 1.0, 1.0]).ravel().tolist()


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        (lambda g: g["views"][1].update(image="none.png"), [], "none.png: no such file"),
        (lambda g: g["views"][0].update(sdd=1020.0), [], "view 0: 'sdd' is not known"),
        (lambda g: g["views"][0].pop("sdd_mm"), [], "view 0: sdd_mm is None; a positive number is needed"),
        (lambda g: g["views"][0]["T_carm_from_frame"].pop(), [], "16 finite numbers are needed"),
        (_mirrored, [], "is not a rigid transform"),
        (lambda g: g.pop("initial"), [], "[initial] with T_ct_from_frame, 16 numbers, is missing"),
        (lambda g: g.update(views=[]), [], "no [[views]]; each X-ray needs one"),
        (lambda g: None, ["--with", "Lower"], "--with Lower: that bone is registered first"),
        (lambda g: None, ["--with", "L9"], "'L9' is no bone of the case with a label; there are: Lower, Upper"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_2(
    room: tuple[Path, dict[str, Any]],
    change: Change,
    more: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, geometry = room
    changed = json.loads(json.dumps(geometry))
    change(changed)
    assert register(folder, changed, *more) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert not said.out
