"""The configuration of doubt as a site writes it: by the bone that is followed; faults say what is right."""

from pathlib import Path
from typing import Any

import pytest

from navsrv.anatomy.case import Kind, Structure
from navsrv.kernel.errors import ConfigError
from navsrv.server.config import load_config
from navsrv.server.config_doubt import REGISTRATION_INFLATION, TissueConfig, structure_faults

DEMO = (Path(__file__).parents[2] / "examples" / "demo.toml").read_text("utf-8")


def structure(name: str, kind: Kind = Kind.CRITICAL, follows: str | None = None) -> Structure:
    return Structure(name, kind, None, follows, f"surfaces/{name}.npz", "0" * 64, 12, 0.3)


SACRUM = structure("Sacrum", Kind.BONE)
L5 = structure("L5", Kind.BONE)
ROOT = structure("S1 root", follows="Sacrum")
CORD = structure("Cord", follows="L5")
BOWEL = structure("Bowel")


@pytest.mark.parametrize(
    ("one", "bone", "seen_mm", "turned_mm"),
    [
        (SACRUM, None, 0.0, 0.0),
        (SACRUM, "Sacrum", 0.0, 0.0),
        (L5, "Sacrum", 1.5, 0.0),
        (ROOT, "Sacrum", 0.5, 2.0),
        (ROOT, None, 0.5, 2.0),
        (CORD, "Sacrum", (0.5**2 + 1.5**2) ** 0.5, (2.0**2 + 1.5**2) ** 0.5),
        (BOWEL, "Sacrum", 2.0, 8.0),
    ],
)
def test_a_structure_moves_as_what_it_follows(
    one: Structure, bone: str | None, seen_mm: float, turned_mm: float
) -> None:
    assert TissueConfig().motion_mm(one, bone) == pytest.approx((seen_mm, turned_mm))


def test_a_structure_may_be_stated_by_name_and_zero_means_bone() -> None:
    tissue = TissueConfig(structures={"Bowel": 12.0, "S1 root": 0.0})
    assert tissue.motion_mm(BOWEL, None) == (12.0, 12.0)
    assert tissue.motion_mm(ROOT, None) == (0.0, 0.0)


class _Case:
    name = "made up"
    structures = (SACRUM, L5, ROOT)


def test_names_that_the_case_does_not_have_are_told() -> None:
    case: Any = _Case()
    assert structure_faults(TissueConfig(structures={"S1 root": 1.0}), "Sacrum", case) == []
    faults = structure_faults(TissueConfig(structures={"Bowl": 1.0}), "S1 root", case)
    assert "tissue.structures.Bowl" in faults[0]
    assert "Sacrum, L5" in faults[1]


def load(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "site.toml"
    path.write_text(text, "utf-8")
    return load_config(path)


def test_a_site_states_its_own(tmp_path: Path) -> None:
    config = load(tmp_path, DEMO + "\n[tissue]\nfree_mm = 4.0\nseen = false\n[registration.inflation]\ncbct = 2.5\n")
    assert config.tissue.free_mm == 4.0
    assert not config.tissue.seen
    assert config.registration.inflation == {"cbct": 2.5}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[registration.inflation]\ncbct = 0.5\n", ["registration.inflation.cbct", "from 1 to 20"]),
        ("[registration.inflation]\ncbtc = 2.0\n", ["registration.inflation.cbtc", *REGISTRATION_INFLATION]),
        ("[tissue]\nfree_mm = -1.0\n", ["tissue.free_mm", "0 to 50"]),
        ("[tissue.structures]\nBowel = 'much'\n", ["tissue.structures.Bowel", "a number"]),
    ],
)
def test_faults_say_where_and_what_would_be_right(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as fault:
        load(tmp_path, DEMO + "\n" + text)
    for word in words:
        assert word in str(fault.value)
