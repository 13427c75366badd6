"""What a fresh clone is installed from, and what the wheel carries."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("build", "node", "runtime", "dev")
VENDOR = ROOT / "navsrv" / "display" / "static" / "vendor"


def declared(name: str) -> list[Requirement]:
    """Return what pyproject.toml asks for in one lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups: dict[str, list[str | dict[str, str]]] = project["dependency-groups"]
    runtime: list[str] = project["project"]["dependencies"]
    if name == "runtime":
        return [Requirement(line) for line in runtime]
    lines = [line for line in groups[name] if isinstance(line, str)]
    if name == "dev":
        lines += [line for group in ("build", "node") for line in groups[group] if isinstance(line, str)] + runtime
    return [Requirement(line) for line in lines]


def locked(name: str) -> dict[str, list[tuple[Requirement, int]]]:
    """Return each package of a lock with its pins (one for each range of Pythons) and how many hashes each has."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    pins: dict[str, list[tuple[Requirement, int]]] = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement = Requirement(line.split("--hash")[0])
            pins.setdefault(canonicalize_name(requirement.name), []).append((requirement, line.count("--hash=sha256:")))
    return pins


@pytest.mark.parametrize("name", LOCKS)
def test_lock_pins_all_that_is_declared_within_its_range(name: str) -> None:
    pins = locked(name)
    for wanted in declared(name):
        for pin, _ in pins[canonicalize_name(wanted.name)]:
            (exact,) = pin.specifier
            assert exact.operator == "=="
            assert wanted.specifier.contains(exact.version), f"{wanted} is locked at {exact}: make lock"


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_has_hashes(name: str) -> None:
    pins = [pin for pins in locked(name).values() for pin in pins]
    assert [str(requirement) for requirement, hashes in pins if hashes == 0] == []


@pytest.mark.parametrize("name", ["build", "node", "runtime"])
def test_dev_lock_holds_the_other_locks(name: str) -> None:
    # make test installs dev.txt over runtime.txt: another version there would test what users do not get.
    def versions(lock: str) -> set[tuple[str, str]]:
        return {(package, str(pin.specifier)) for package, pins in locked(lock).items() for pin, _ in pins}

    assert versions(name) - versions("dev") == set()


def test_npm_lock_pins_with_hashes_and_without_addresses() -> None:
    asked: dict[str, str] = json.loads((ROOT / "package.json").read_text(encoding="utf-8"))["dependencies"]
    packages = json.loads((ROOT / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    for name, version in asked.items():
        entry = packages[f"node_modules/{name}"]
        assert entry["version"] == version
        assert entry["integrity"].startswith("sha512-")
    assert [path for path, entry in packages.items() if "resolved" in entry] == []


def test_no_committed_file_names_a_registry() -> None:
    answer = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        pytest.skip("not a git checkout")
    # In parts, so that this file does not name them itself.
    hosts = "|".join(name + re.escape(end) for name in ("pypi", "pythonhosted", "npmjs") for end in (".org", ".com"))
    address = re.compile(
        hosts + r"|https?://[^\s\"]+/(?:simple|packages)/|--(?:extra-)?index-url|registry\s*=\s*\"?http"
    )
    files = [ROOT / name for name in answer.stdout.split("\0") if name]
    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in files if path.is_file()}
    names = [str(path.relative_to(ROOT)) for path, text in texts.items() if address.search(text)]
    assert names == []


def test_wheel_carries_four_packages_and_the_display_but_no_tests(tmp_path: Path) -> None:
    if not VENDOR.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail("make check fills navsrv/display/static/vendor; it is not there")
        pytest.skip("navsrv/display/static/vendor is not filled: make install")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("navsrv-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    info = f"navsrv-{re.split('-', wheel.name)[1]}.dist-info"
    assert {name.split("/")[0] for name in names} == {"navsrv", "devices", "calibration", "simulators", info}
    on_disk = {p.relative_to(ROOT).as_posix() for p in (ROOT / "navsrv" / "display").rglob("*") if p.is_file()}
    assert {name for name in on_disk if "__pycache__" not in name} - set(names) == set()
    assert "navsrv/display/static/vendor/three/three.module.js" in names
    assert f"{info}/licenses/LICENSE" in names
