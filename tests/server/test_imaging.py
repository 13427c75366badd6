"""The devices port, over a socket: poses of imaging devices in each message that carries poses, and those refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from navsrv.server.config import load_config
from navsrv.server.imaging import DeviceListener
from navsrv.server.placing import ImageCounts, Placing
from navsrv.wire.openigtlink import (
    Body,
    Message,
    Metadata,
    Position,
    QTData,
    QTDataElement,
    TData,
    TDataElement,
    Transform,
    encode,
    timestamp_from_ns,
)

CONFIG = load_config(Path(__file__).resolve().parents[2] / "examples" / "fluoroscopy.toml")
(SOURCE,) = CONFIG.imaging
POSE = CONFIG.imaging[SOURCE].pose
OK = (Metadata("TransformStatus", "OK"),)
MOVED = np.eye(4)
MOVED[:3, 3] = 10.0, 20.0, 30.0
FLAT = np.array([0.0, 0.0, 0.0, 1.0])


def heard(*messages: Message) -> tuple[ImageCounts, list[tuple[str, str]]]:
    """Send messages to a devices port; return what it counted and noted."""
    notes: list[tuple[str, str]] = []

    async def nobody(op: str, args: dict[str, Any], role: str) -> Any:
        raise AssertionError(op)

    async def story() -> ImageCounts:
        placing = Placing(CONFIG, nobody, lambda event, text: notes.append((event, text)))
        note = notes.append
        port = DeviceListener(CONFIG, placing, print, print, print, lambda event, text: note((event, text)), None)
        server, number = await port.serve("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", number)
        writer.write(b"".join(encode(m) for m in messages))
        writer.write_eof()
        while await reader.read(4096):
            pass
        writer.close()
        await port.end_all()
        server.close()
        await server.wait_closed()
        return placing.counts[SOURCE]

    return asyncio.run(story()), notes


def said(body: Body, device: str = POSE, metadata: tuple[Metadata, ...] = OK) -> Message:
    return Message(device, timestamp_from_ns(1_790_000_000_000_000_000), body, metadata=metadata)


@pytest.mark.parametrize(
    "message",
    [
        said(Transform(MOVED)),
        said(TData((TDataElement(POSE, MOVED),)), "Tracker"),
        said(QTData((QTDataElement(POSE, MOVED[:3, 3], FLAT),)), "Tracker"),
        said(Position(MOVED[:3, 3], FLAT)),
    ],
    ids=["TRANSFORM", "TDATA", "QTDATA", "POSITION"],
)
def test_the_pose_of_an_imaging_device_may_come_in_any_message_that_has_poses(message: Message) -> None:
    counts, notes = heard(message)
    assert counts.poses_accepted == 1
    assert notes == []


def test_what_is_no_pose_of_an_imaging_device_is_refused_with_the_key_that_would_help() -> None:
    far, turned, lost = MOVED.copy(), 1.1 * np.eye(4), said(Transform(MOVED), metadata=())
    far[0, 3], turned[3, 3] = np.nan, 1.0
    counts, notes = heard(lost, said(Transform(far)), said(Transform(turned)))
    assert (counts.poses_accepted, counts.poses_refused, counts.poses_not_rigid) == (0, 1, 2)
    key = f"if this source sends valid poses only, set imaging.{SOURCE}.trusted"
    assert [text for _, text in notes] == [
        f"{POSE}: no status on the wire; {key}",
        f"{POSE}: more than 100 m away",
        f"{POSE}: the matrix is not a rigid motion",
    ]


def test_a_devices_pose_among_others_is_taken() -> None:
    both = TData((TDataElement("SawToTracker", MOVED), TDataElement(POSE, MOVED)))
    counts, notes = heard(said(both, "Tracker"), said(both, "Tracker"))
    assert (counts.poses_accepted, counts.poses_repeated) == (1, 1)
    assert notes == []
