"""The stories that only kernels and processes can tell: the real server over real sockets shows what they expect."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulators.scenario.spec import load_scenario

FOLDER = Path(__file__).parents[3] / "examples" / "scenarios"
REAL = [
    path.stem
    for path in sorted(FOLDER.glob("*.toml"))
    if path.stem != "room" and load_scenario(path).needs_server is not None
]


def test_some_stories_need_the_real_server() -> None:
    assert {"half_open", "disk_full", "killed_loop", "killed_recorder", "wrong_volume"} <= set(REAL)


@pytest.mark.realtime
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", REAL)
def test_a_story_on_the_real_server_shows_what_it_expects(name: str, phantom_home: Path) -> None:
    command = [sys.executable, "-m", "simulators", str(FOLDER / f"{name}.toml"), "--json"]
    environment = os.environ | {"NAVSRV_HOME": str(phantom_home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=380, check=False)
    assert done.stdout, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert [e for e in result["expectations"] if not e["met"]] == []
    assert (done.returncode, result["mode"]) == (0, "sockets")
