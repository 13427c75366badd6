"""Owns the reading of a recording and its run through the same pipeline.  Refuses to change either."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from mcap.exceptions import McapError
from mcap.records import Channel, Message, Metadata
from mcap.stream_reader import StreamReader

from navsrv.anatomy.case import Case
from navsrv.kernel.errors import InputError
from navsrv.pipeline.inputs import decode_input
from navsrv.pipeline.pipeline import Pipeline
from navsrv.server.config_tables import Config
from navsrv.server.setup import build_setup
from navsrv.wire.guidance import GuidanceFrame, decode_frame


@dataclass(frozen=True, slots=True)
class Recorded:
    """One message of a recording: its channel's topic, wall time (ns) and content."""

    topic: str
    wall_ns: int
    content: bytes


class RecordingFile:
    """A recording on disk; a torn one is read up to its tear, which ``torn`` then tells."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn: str | None = None
        self.metadata = self._read_metadata()

    def _read_metadata(self) -> dict[str, str]:
        for record in self._records():
            if isinstance(record, Metadata) and record.name == "session":
                return record.metadata
        raise InputError(f"{self.path}: not a recording of navsrv; expected an MCAP file with a 'session' record")

    def _records(self) -> Iterator[Any]:
        try:
            with self.path.open("rb") as file:
                if not file.read(1):
                    raise InputError(f"{self.path}: empty; expected an MCAP file")
                file.seek(0)
                yield from StreamReader(file).records
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}; expected an MCAP file") from None
        except (McapError, EOFError, ValueError, struct.error) as error:
            self.torn = f"{type(error).__name__}: {error}"

    def messages(self) -> Iterator[Recorded]:
        """Yield every message in the order of writing."""
        topics: dict[int, str] = {}
        for record in self._records():
            if isinstance(record, Channel):
                topics[record.id] = record.topic
            elif isinstance(record, Message):
                yield Recorded(topics[record.channel_id], record.log_time, record.data)

    def pipeline(self) -> Pipeline:
        """Return a fresh pipeline of the recorded configuration and case.

        Raises
        ------
        InputError
            The case is not there any more, or is not the one that was recorded.
        """
        case = Case.load(self.metadata["case_folder"])
        if case.sha256 != self.metadata["case_sha256"]:
            raise InputError(
                f"{self.path}: recorded with another build of case {case.name}"
                f" ({self.metadata['case_sha256'][:12]}, now {case.sha256[:12]}); build that one again"
            )
        config = msgspec.json.decode(self.metadata["config"], type=Config)
        return Pipeline(build_setup(config, case, self.metadata["session"]))


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a replay found: frames compared, and the first difference in words, or None."""

    frames: int
    difference: str | None


def compare(recording: RecordingFile) -> Comparison:
    """Run the recorded input through the pipeline and hold every frame against the recorded one."""
    pipeline = recording.pipeline()
    made: deque[GuidanceFrame] = deque()
    count = 0
    for message in recording.messages():
        if message.topic == "input":
            made.extend(f for f in pipeline.handle(decode_input(message.content)) if isinstance(f, GuidanceFrame))
        elif message.topic == "guidance":
            recorded = decode_frame(message.content)
            count += 1
            if not made:
                return Comparison(count, f"frame {recorded.tool} {recorded.seq} was sent but replay makes none")
            difference = difference_of(recorded, made.popleft())
            if difference is not None:
                return Comparison(count, f"frame {recorded.tool} {recorded.seq}: {difference}")
    if made and recording.torn is None:
        return Comparison(count, f"replay makes {len(made)} frames that were not sent, first {made[0].seq}")
    return Comparison(count, None)


def difference_of(recorded: GuidanceFrame, replayed: GuidanceFrame) -> str | None:
    """Return the first field but ``sent_ns`` that differs, with both values, or None."""
    replayed.sent_ns = recorded.sent_ns
    if msgspec.msgpack.encode(recorded) == msgspec.msgpack.encode(replayed):
        return None
    for name in recorded.__struct_fields__:
        a, b = getattr(recorded, name), getattr(replayed, name)
        if msgspec.msgpack.encode(a) != msgspec.msgpack.encode(b):
            return f"{name}: recorded {str(a)[:300]}, replayed {str(b)[:300]}"
    return "the encodings differ"
