"""Owns the one place where simulators build what the server builds: the pipeline of a configuration, and a recording.

In virtual time a simulator stands where the server's shell stands, so it has to compose the same parts: the same
configuration file, the same setup, the same recording that ``navsrv replay`` opens (docs/decisions/0008).  Everything
else here meets the server at its bytes and sockets.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from navsrv.anatomy.case import Case
from navsrv.guidance.clearance import ClearanceEngine
from navsrv.pipeline.inputs import Input, Note, encode_input
from navsrv.pipeline.pipeline import Output, Pipeline
from navsrv.pipeline.setup import Setup
from navsrv.server.config import load_config
from navsrv.server.config_tables import Config
from navsrv.server.recorder import Recording
from navsrv.server.records import FRAME, INPUT, NOTE
from navsrv.server.setup import build_setup
from navsrv.wire.guidance import GuidanceFrame, encode_frame

SESSION: Final = "virtual"
_STAMP: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, eq=False)
class Composition:
    """A configuration, its case and what the pipeline knows of them."""

    config: Config
    case: Case
    setup: Setup
    engine: ClearanceEngine

    @classmethod
    def load(cls, config_file: Path, case_folder: Path, overrides: Sequence[str] = ()) -> Composition:
        """Return what ``navsrv serve`` would make of the same file; ConfigError and InputError as there."""
        config = load_config(config_file, [*overrides, f'server.case="{case_folder}"'])
        case = Case.load(case_folder)
        setup = build_setup(config, case, SESSION)
        return cls(config, case, setup, ClearanceEngine([s.distance for s in setup.structures]))

    def pipeline(self) -> Pipeline:
        """Return a fresh pipeline; all share the engine, which remembers nothing."""
        return Pipeline(self.setup, self.engine)

    def record_to(self, path: Path) -> VirtualRecording:
        """Return a recording of a virtual run, as the server's recorder would write it."""
        metadata = {
            "navsrv": version("navsrv"),
            "session": SESSION,
            "case": self.case.name,
            "case_folder": str(self.case.folder.resolve()),
            "case_sha256": self.case.sha256,
            "config": msgspec.json.encode(self.config).decode(),
        }
        return VirtualRecording(path, metadata)


class VirtualRecording:
    """One MCAP file of a virtual run: every input, and the outputs that it gave."""

    def __init__(self, path: Path, metadata: dict[str, str]) -> None:
        self._recording = Recording(path, metadata)

    def take(self, wall_ns: int, item: Input, outputs: Sequence[Output]) -> None:
        """Write one input and its outputs, stamped with the virtual wall clock."""
        stamp = _STAMP.pack(wall_ns)
        self._recording.add(INPUT + stamp + encode_input(item))
        for output in outputs:
            if isinstance(output, GuidanceFrame):
                self._recording.add(FRAME + stamp + encode_frame(output))
            elif isinstance(output, Note):
                self._recording.add(NOTE + stamp + msgspec.json.encode(output))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._recording.finish()
