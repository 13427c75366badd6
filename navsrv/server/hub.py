"""Owns the display hub's process: it reads frames from the loop like any subscriber and serves browsers and
OpenIGTLink displays.  A slow display is skipped, never waited for; nothing here can reach the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from navsrv.anatomy.case import Case
from navsrv.pipeline.inputs import SourceReport
from navsrv.server.boots import HubBoot
from navsrv.server.channel import Channel, ChannelClosed
from navsrv.server.display_igtl import IgtlDisplays
from navsrv.server.display_web import WebDisplays
from navsrv.server.scenery import Scenery
from navsrv.wire.guidance import GuidanceFrame, decode_frame, encode_json


class FrameBoard:
    """The newest frame of each tool, with its JSON made at most once, and who wants to know of a new one."""

    def __init__(self) -> None:
        self.newest: dict[str, GuidanceFrame] = {}
        self.received_ns = 0
        self.frames = 0
        self.sources: list[SourceReport] = []
        self.dicom: dict[str, int] = {}
        self.watchers: set[Callable[[], None]] = set()
        self._json: dict[str, tuple[int, bytes]] = {}

    def post(self, frame: GuidanceFrame) -> None:
        """Take a frame and tell every watcher."""
        self.newest[frame.tool] = frame
        self.received_ns = time.monotonic_ns()
        self.frames += 1
        for watcher in tuple(self.watchers):
            watcher()

    def json(self, tool: str) -> bytes:
        """Return the newest frame of a tool as JSON."""
        frame = self.newest[tool]
        held = self._json.get(tool)
        if held is None or held[0] != frame.seq:
            held = (frame.seq, encode_json(frame))
            self._json[tool] = held
        return held[1]


class Hub:
    """The hub's shell."""

    def __init__(self, boot: HubBoot, channel: Channel) -> None:
        self.boot = boot
        self.channel = channel
        self.board = FrameBoard()
        self.scenery = Scenery(Case.load(Path(boot.case_folder)), boot.config)
        self._context: zmq.asyncio.Context = zmq.asyncio.Context()
        self._told_displays: int | None = None

    async def run(self) -> int:
        """Serve until the session says stop or is gone."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def from_session() -> None:
            with contextlib.suppress(ChannelClosed):
                messages = self.channel.receive()
                for message in messages:
                    if message["kind"] == "sources":
                        self.board.sources = msgspec.convert(message["value"], list[SourceReport])
                    elif message["kind"] == "dicom":
                        self.board.dicom = message["value"]
                if not any(m["kind"] == "stop" for m in messages):
                    return
            if not ended.done():
                ended.set_result(None)

        web = WebDisplays(self.boot, self.board, self.scenery, self._context)
        displays = IgtlDisplays(self.board, self.scenery)
        ports = self.boot.config.ports
        bound: dict[str, int] = {}
        try:
            bound["http"] = await web.start(self.boot.host, ports.http)
            bound["openigtlink"] = await displays.start(self.boot.host, ports.openigtlink)
            if ports.openigtlink_1 is not None:
                bound["openigtlink_1"] = await displays.start(self.boot.host, ports.openigtlink_1, version=1)
        except OSError as error:
            name = next(name for name in ("http", "openigtlink", "openigtlink_1") if name not in bound)
            port = getattr(ports, name)
            text = os.strerror(error.errno) if error.errno else str(error)
            fault = (
                f"ports.{name}: cannot listen on {self.boot.host}:{port} ({text}); expected a free port, or 0 for any"
            )
            self.channel.send({"kind": "failed", "value": fault})
            return 2
        reading = asyncio.ensure_future(self._read(web, displays))
        loop.add_reader(self.channel.fileno(), from_session)
        self.channel.send({"kind": "ready", "value": bound})
        await asyncio.wait([ended, reading], return_when=asyncio.FIRST_COMPLETED)
        reading.cancel()
        displays.stop()
        await web.stop()
        return 0

    async def _read(self, web: WebDisplays, displays: IgtlDisplays) -> None:
        subscriber = self._context.socket(zmq.SUB)
        subscriber.setsockopt(zmq.SUBSCRIBE, b"guidance")
        subscriber.setsockopt(zmq.RCVHWM, 64)
        subscriber.connect(f"tcp://{self.boot.host}:{self.boot.zmq_port}")
        while True:
            payloads = [await subscriber.recv()]
            with contextlib.suppress(zmq.Again):
                while True:
                    payloads.append(await subscriber.recv(zmq.NOBLOCK))
            newest: dict[str, GuidanceFrame] = {}
            for payload in payloads:
                frame = decode_frame(payload)
                newest[frame.tool] = frame
            for frame in newest.values():
                self.board.post(frame)
            self._tell_displays(web.showing(self.board.received_ns) + len(displays.displays))

    def _tell_displays(self, count: int) -> None:
        """Tell the session how many displays there are, when that changed: the last one that leaves is an alarm."""
        if count != self._told_displays:
            self._told_displays = count
            with contextlib.suppress(ChannelClosed):
                self.channel.send({"kind": "displays", "value": count})


def main() -> int:
    """Run as ``python -m navsrv.server.hub FD``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    boot: HubBoot = pickle.loads(channel.receive_one(30.0))
    return asyncio.run(Hub(boot, channel).run())


if __name__ == "__main__":
    sys.exit(main())
