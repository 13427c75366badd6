"""What every test may ask for, and what no test may do.

Missing data and missing peers are skipped aloud; with CI=true a missing peer is a failure. A test that sleeps (unless
it is marked `realtime`) or leaves a thread or a child process behind fails.
"""

import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
OURS = tuple(str(ROOT / name) + os.sep for name in ("navsrv", "devices", "calibration", "simulators", "tests"))
PEERS = ROOT / ".peers" / "bin"  # what `make peers` compiled
IN_CI = os.environ.get("CI", "").lower() in ("true", "1")
LEAK_GRACE_S = 2.0

# No deadline: the machine is shared, and a slow example is not a wrong one. CI repeats the same examples every time.
settings.register_profile("navsrv", deadline=None, max_examples=50, derandomize=IN_CI, print_blob=True)
settings.load_profile("navsrv")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real data; skips the test, saying where it looked, if there is none."""
    folder = Path(os.environ.get("NAVSRV_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder} (set NAVSRV_DATA)")
    return folder


@pytest.fixture(scope="session")
def require_program() -> Callable[[str], Path]:
    """Return a function from a program's name to its path; it skips the test (with CI=true: fails it) if missing."""

    def find(name: str) -> Path:
        # /usr/sbin (Orthanc) is on root's path only.
        path = os.pathsep.join([str(PEERS), os.environ.get("PATH", os.defpath), "/usr/sbin"])
        found = shutil.which(name, path=path)
        if found is not None:
            return Path(found)
        message = f"the independent peer {name} is not installed: make peers"
        if IN_CI:
            pytest.fail(message, pytrace=False)
        pytest.skip(message)

    return find


@pytest.fixture(autouse=True)
def _no_sleep(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `time.sleep` fail in our own code and tests; libraries, and tests marked realtime, may sleep."""
    if request.node.get_closest_marker("realtime"):
        return
    real = time.sleep

    def guarded(seconds: float) -> None:
        caller = sys._getframe(1).f_code.co_filename
        if caller.startswith(OURS):
            pytest.fail(f"{caller} sleeps {seconds} s: inject the time, or mark the test realtime")
        real(seconds)

    monkeypatch.setattr(time, "sleep", guarded)


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """Fail a test that leaves a thread or a child process running; fixtures of a wider scope may keep theirs."""
    threads = set(threading.enumerate())
    children = set(multiprocessing.active_children())
    yield
    deadline = time.monotonic() + LEAK_GRACE_S
    new: list[threading.Thread | BaseProcess] = [t for t in threading.enumerate() if t not in threads]
    new += [child for child in multiprocessing.active_children() if child not in children]
    for one in new:
        one.join(max(0.0, deadline - time.monotonic()))
    leaked = [one.name for one in new if one.is_alive()]
    if leaked:
        pytest.fail(f"left running: {', '.join(leaked)}")
