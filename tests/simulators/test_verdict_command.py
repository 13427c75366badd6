"""``python -m simulators.verdict`` on files that are not what they should be: one line, exit 2, nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulators.verdict.__main__ import main

TRIAL = '{"patient": "sacrum:21", "seed": 6001, "kind": "start", "number": 0, "verdict": "accept"}'


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("", "holds no trials"),
        (f"{TRIAL}\nnot json\n", "line 2: no trial"),
        ("[1, 2]\n", "line 1: no trial"),
        (None, "No such file"),
    ],
)
def test_a_report_of_no_trials_is_no_report(
    tmp_path: Path, written: str | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "trials.jsonl"
    if written is not None:
        file.write_text(written)
    with pytest.raises(SystemExit) as ended:
        main(["report", str(file)])
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert words in said.err


def test_a_line_cut_off_in_the_writing_is_made_again(tmp_path: Path) -> None:
    """Catches a run that cannot go on after it was killed, or that writes behind half a line."""
    file = tmp_path / "trials.jsonl"
    file.write_text(f"{TRIAL}\n" + TRIAL[:40])
    assert main(["run", "--out", str(file), "--seconds", "0"]) == 0
    assert file.read_text() == f"{TRIAL}\n"


@pytest.mark.parametrize("share", ["5", "0/2", "3/2", "a/b"])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--out", str(tmp_path / "trials.jsonl"), "--share", share])
    assert ended.value.code == 2
    assert "expected K/N" in capsys.readouterr().err
