"""``navsrv replay``: a recording's input through the same code."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add ``replay``."""
    parser = subparsers.add_parser(
        "replay",
        help="a recording's input through the same code",
        epilog="example: navsrv replay recording.mcap --verify",
    )
    parser.add_argument("file", type=Path, metavar="FILE.mcap")
    parser.add_argument("--verify", action="store_true", help="exit 1 at the first frame that differs")


def run(args: argparse.Namespace) -> int:
    """Verify, or print each replayed frame as one JSON line."""
    from navsrv.pipeline.inputs import decode_input
    from navsrv.server.replaying import RecordingFile, compare
    from navsrv.wire.guidance import GuidanceFrame, encode_json

    recording = RecordingFile(args.file)
    if args.verify:
        found = compare(recording)
        if recording.torn is not None:
            print(f"navsrv: {args.file}: torn ({recording.torn}); read up to there", file=sys.stderr)
        if found.difference is not None:
            print(f"{args.file}: differs at frame {found.frames}: {found.difference}")
            return 1
        print(f"{args.file}: {found.frames} frames identical")
        return 0
    pipeline = recording.pipeline()
    for message in recording.messages():
        if message.topic == "input":
            for output in pipeline.handle(decode_input(message.content)):
                if isinstance(output, GuidanceFrame):
                    print(encode_json(output).decode())
    return 0
