"""Progress is one line on a terminal and nothing at all in a pipe."""

import io

import pytest

from navsrv.server.progress import CLEAR, terminal_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_one_line_that_is_cleared_in_the_end_even_after_an_error() -> None:
    stream = Terminal()

    def fail() -> None:
        with terminal_progress(stream) as progress:
            progress("surface of " + "S1 " * 60, 0.25)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    text = stream.getvalue()
    assert " 25%  surface of S1" in text
    assert "\n" not in text
    assert text.endswith(CLEAR)
    assert all(len(line) <= 78 for line in text.split(CLEAR))


def test_a_pipe_sees_nothing() -> None:
    stream = io.StringIO()
    with terminal_progress(stream) as progress:
        progress("working", 0.5)
    assert stream.getvalue() == ""
