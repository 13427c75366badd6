from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def fuzz() -> ModuleType:
    """The mutation program beside the tests: one message of each kind, and ways to break it."""
    if "fuzz_wire" not in sys.modules:
        spec = importlib.util.spec_from_file_location("fuzz_wire", Path(__file__).parents[2] / "fuzz_wire.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["fuzz_wire"] = module
        spec.loader.exec_module(module)
    return sys.modules["fuzz_wire"]
