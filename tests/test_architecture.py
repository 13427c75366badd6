"""The rules of ARCHITECTURE.md that import-linter cannot say: "nothing but ..."."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("navsrv", "devices", "calibration", "simulators")


def modules(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, f"{folder} holds no module: the rule would pass on nothing"
    return found


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of everything a file imports, also inside functions."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            name = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield node.lineno, f"{name}.{alias.name}"


def is_within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == room or name.startswith(room + ".") for room in rooms)


def test_every_folder_with_modules_is_a_package() -> None:
    # import-linter passes over a folder without __init__.py, and with it over everything inside.
    folders = {path.parent for package in PACKAGES for path in modules(package)}
    assert [str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").is_file()] == []


def test_kernel_imports_standard_library_and_numpy_only() -> None:
    allowed = sys.stdlib_module_names | {"numpy"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules("navsrv/kernel")
        for line, name in imports(path)
        if name.split(".")[0] not in allowed and not is_within(name, ("navsrv.kernel",))
    ]
    assert wrong == []


def test_truth_imports_kernel_wire_and_case_reading_only() -> None:
    allowed = ("simulators.world", "navsrv.kernel", "navsrv.wire", "navsrv.anatomy.case")
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules("simulators/world")
        for line, name in imports(path)
        if name.split(".")[0] in PACKAGES and not is_within(name, allowed)
    ]
    assert wrong == []


def test_linter_keeps_every_room_but_the_server_from_waiting() -> None:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (shell,) = (c for c in configuration["tool"]["importlinter"]["contracts"] if c["id"] == "shell")
    rooms = {f"navsrv.{path.relative_to(ROOT).parts[1].removesuffix('.py')}" for path in modules("navsrv")}
    assert rooms - set(shell["source_modules"]) == {"navsrv.__init__", "navsrv.server"}


def test_relative_and_nested_imports_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "navsrv" / "kernel" / "sample.py"
    path.parent.mkdir(parents=True)
    path.write_text("def f():\n    import scipy.stats\nfrom ..server import loop\nfrom . import frames\n")
    assert [name for _, name in imports(path)] == ["navsrv.server.loop", "navsrv.kernel.frames", "scipy.stats"]
