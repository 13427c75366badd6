"""Owns browsers: static files, the case, ``/ws``, ``/metrics`` and ``/health``.

Each socket has a latest-wins slot and at most eight frames that the browser has not acknowledged: what a stalled
browser gets when it wakes is bounded, because nothing piles up in the kernel's buffers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import zmq
import zmq.asyncio
from aiohttp import WSCloseCode, WSMsgType, web
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from navsrv.pipeline.inputs import SHOWINGS
from navsrv.server.boots import HubBoot
from navsrv.server.scenery import Scenery
from navsrv.wire.guidance import STATES

if TYPE_CHECKING:
    from navsrv.server.hub import FrameBoard

STATIC: Final = Path(__file__).parent.parent / "display" / "static"
LOCAL_HOSTS: Final = ("127.0.0.1", "localhost")
"""Names that a browser on this machine knows this server by; there is no other bind yet (config.py)."""
MAX_UNACKNOWLEDGED: Final = 8
COMMAND_TIMEOUT_S: Final = 5.0
MAX_REQUEST_BYTES: Final = 1 << 16
FROZEN_NS: Final = 3_000_000_000
"""A browser that acknowledged nothing for this long shows nobody anything."""


class Browser:
    """One WebSocket's slot."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.unacknowledged: deque[tuple[str, int]] = deque()
        self.sent_seq: dict[str, int] = {}
        self.seen_ns = time.monotonic_ns()
        """When it last acknowledged a frame."""

    def acknowledge(self, seq: Any, tool: Any = None) -> None:
        """Take an acknowledgement: everything up to this frame has been seen.

        Tools number their frames each for itself; without a name the oldest frame of this number is meant, so that
        nothing counts as seen that was not.
        """
        for place, (of, number) in enumerate(self.unacknowledged):
            if number == seq and tool in (None, of):
                for _ in range(place + 1):
                    self.unacknowledged.popleft()
                self.seen_ns = time.monotonic_ns()
                self.wake.set()
                return


class WebDisplays:
    """The HTTP side of the hub."""

    def __init__(self, boot: HubBoot, board: FrameBoard, scenery: Scenery, context: zmq.asyncio.Context) -> None:
        self.started = False
        self._boot, self._board, self._scenery, self._context = boot, board, scenery, context
        self._browsers: dict[web.WebSocketResponse, Browser] = {}
        self._metrics = Metrics(board, self._browsers)
        app = web.Application()
        app.router.add_get("/", _index)
        app.router.add_get("/ws", self._ws)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics.page)
        app.router.add_get("/api/case", self._case)
        app.router.add_get("/api/mesh/{index:\\d+}", self._mesh)
        app.router.add_get("/api/volume", self._volume)
        app.router.add_get("/api/registration/{name:\\w+}/overlay", self._overlay)
        app.router.add_get("/api/fluoro/latest", self._fluoro)
        app.router.add_get("/api/video", self._video)
        app.router.add_get("/api/fluoro/{name:[\\w-]+\\.png}", self._fluoro_image)
        app.router.add_static("/static", STATIC)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def start(self, host: str, port: int) -> int:
        """Start listening and return the port; OSError if it is in use."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        self.started = True
        return int(self._runner.addresses[0][1])

    def showing(self, now_ns: int) -> int:
        """Return how many browsers show frames at ``now_ns``: connected, and not frozen."""
        return sum(now_ns - browser.seen_ns < FROZEN_NS for browser in self._browsers.values())

    async def stop(self) -> None:
        """Close every browser's socket and the server."""
        for ws in list(self._browsers):
            await ws.close(code=WSCloseCode.GOING_AWAY)
        await self._runner.cleanup()

    # -- pages -------------------------------------------------------------------------------------------------

    async def _health(self, request: web.Request) -> web.Response:
        age_ms = (time.monotonic_ns() - self._board.received_ns) / 1e6 if self._board.frames else None
        alive = age_ms is not None and age_ms < 1000.0
        states = {tool: frame.state for tool, frame in self._board.newest.items()}
        body = {"status": "ok" if alive else "no frames", "last_frame_age_ms": age_ms, "states": states}
        return web.json_response(body, status=200 if alive else 503)

    async def _case(self, request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(self._scenery.description))

    async def _mesh(self, request: web.Request) -> web.Response:
        index = int(request.match_info["index"])
        if index >= len(self._scenery.case.structures):
            raise web.HTTPNotFound(text=f"no structure {index}")
        body = await asyncio.to_thread(self._scenery.mesh_bytes, index)
        return web.Response(body=body, content_type="application/octet-stream")

    async def _volume(self, request: web.Request) -> web.Response:
        found = await asyncio.to_thread(self._scenery.volume)
        if found is None:
            raise web.HTTPNotFound(text="this case has no CT")
        return web.Response(body=found[0].tobytes(), content_type="application/octet-stream")

    async def _overlay(self, request: web.Request) -> web.StreamResponse:
        return self._session_file(f"registration-{request.match_info['name']}.png")

    async def _fluoro(self, request: web.Request) -> web.StreamResponse:
        source = request.query.get("source", "")
        if not re.fullmatch(r"[\w-]*", source):
            raise web.HTTPNotFound(text=f"there is no source {source!r}")
        return self._session_file(f"fluoro-{source}.json" if source else "fluoro.json")

    async def _video(self, request: web.Request) -> web.StreamResponse:
        """Return what each C-arm's screen shows, one map for each video that is configured."""
        files = sorted(Path(self._boot.session_folder).glob("video-*.json"))
        return web.json_response(
            [json.loads(file.read_text()) for file in files], headers={"Cache-Control": "no-store"}
        )

    async def _fluoro_image(self, request: web.Request) -> web.StreamResponse:
        return self._session_file(request.match_info["name"])

    def _session_file(self, name: str) -> web.FileResponse:
        path = Path(self._boot.session_folder) / name
        if not path.is_file():
            raise web.HTTPNotFound(text=f"there is no {name} yet")
        return web.FileResponse(path, headers={"Cache-Control": "no-store"})

    # -- the socket --------------------------------------------------------------------------------------------

    async def _ws(self, request: web.Request) -> web.WebSocketResponse:
        if request.url.host not in LOCAL_HOSTS:
            raise web.HTTPForbidden(text=f"host {request.host} is not this machine: a page may have been rebound here")
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            raise web.HTTPForbidden(text=f"origin {origin} is not this server")
        ws = web.WebSocketResponse(heartbeat=5.0, max_msg_size=MAX_REQUEST_BYTES)
        await ws.prepare(request)
        browser = Browser()
        self._board.watchers.add(browser.wake.set)
        self._browsers[ws] = browser
        commands = self._context.socket(zmq.DEALER)
        commands.setsockopt(zmq.LINGER, 0)
        commands.connect(f"tcp://{self._boot.host}:{self._boot.commands_port}")
        tasks = [asyncio.ensure_future(self._pump(ws, browser)), asyncio.ensure_future(_answers(ws, commands))]
        browser.wake.set()
        try:
            async for message in ws:
                if message.type is WSMsgType.TEXT:
                    await _received(ws, browser, commands, message.data)
        finally:
            self._board.watchers.discard(browser.wake.set)
            self._browsers.pop(ws, None)
            for task in tasks:
                task.cancel()
            commands.close()
        return ws

    async def _pump(self, ws: web.WebSocketResponse, browser: Browser) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await browser.wake.wait()
                browser.wake.clear()
                for tool, frame in list(self._board.newest.items()):
                    if len(browser.unacknowledged) >= MAX_UNACKNOWLEDGED:
                        break
                    if browser.sent_seq.get(tool) != frame.seq:
                        browser.sent_seq[tool] = frame.seq
                        browser.unacknowledged.append((tool, frame.seq))
                        await ws.send_str(self._board.json(tool).decode())


async def _index(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-store"})


async def _received(ws: web.WebSocketResponse, browser: Browser, commands: zmq.asyncio.Socket, text: str) -> None:
    try:
        message: Any = json.loads(text)
    except (ValueError, RecursionError):
        await ws.send_json({"id": None, "ok": False, "error": "not JSON"})
        return
    if isinstance(message, dict) and "ack" in message:
        browser.acknowledge(message["ack"], message.get("tool"))
        await ws.send_json({"t_client": message.get("t_client"), "server_ns": str(time.monotonic_ns())})
    elif isinstance(message, dict) and "op" in message:
        try:
            request = msgspec.msgpack.encode({**message, "via": "display"})
        except (ValueError, OverflowError, RecursionError, TypeError) as error:
            await ws.send_json({"id": None, "ok": False, "error": f"cannot be carried: {error}"})
            return
        await commands.send(request)
    else:
        await ws.send_json({"id": None, "ok": False, "error": "expected {ack, t_client} or {id, op, args}"})


async def _answers(ws: web.WebSocketResponse, commands: zmq.asyncio.Socket) -> None:
    while True:
        await ws.send_json(msgspec.msgpack.decode(await commands.recv()))


class Metrics:
    """Prometheus figures, read off the newest frames."""

    def __init__(self, board: FrameBoard, browsers: Mapping[web.WebSocketResponse, Browser]) -> None:
        self._board, self._browsers = board, browsers
        self._registry = CollectorRegistry()
        self._frames = Counter("navsrv_frames_seen", "Frames that reached the hub", registry=self._registry)
        self._counted = 0

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(name, text, labels, registry=self._registry)

        self._displays = gauge("navsrv_browsers", "Browsers connected")
        self._age = gauge("navsrv_pose_age_ms", "Age of the oldest link of the newest frame", ("tool",))
        self._seq = gauge("navsrv_frame_seq", "Sequence number of the newest frame", ("tool",))
        self._missed = gauge("navsrv_missed_deadlines", "Deadlines missed since the start", ("tool",))
        self._skipped = gauge("navsrv_skipped_poses", "Poses skipped since the start", ("tool",))
        of_source = ("source",)
        self._connected = gauge("navsrv_source_connected", "1 while the source is connected", of_source)
        self._samples = gauge("navsrv_source_samples", "Samples of the source since the start", ("source", "what"))
        self._clock = {
            "unknown_latency_s": gauge(
                "navsrv_source_unknown_latency_seconds", "Latency that nobody declared", of_source
            ),
            "late_s": gauge("navsrv_source_late_seconds", "How long the newest message was held up", of_source),
            "offset_s": gauge("navsrv_source_clock_offset_seconds", "Our monotonic clock less the stamp", of_source),
            "offset_sigma_s": gauge("navsrv_source_clock_offset_sigma_seconds", "Of the offset", of_source),
            "drift_ppm": gauge("navsrv_source_clock_drift_ppm", "How much faster the source's clock runs", of_source),
            "drift_sigma_ppm": gauge("navsrv_source_clock_drift_sigma_ppm", "Of the drift", of_source),
        }
        self._showing = gauge("navsrv_video_showing", "1 for what a C-arm's screen shows", ("source", "showing"))
        self._dicom = gauge("navsrv_dicom", "What the DICOM server counted since its start", ("what",))
        of_probe = ("probe",)
        self._celsius = gauge("navsrv_temperature_celsius", "Newest reading; NaN when it is not current", of_probe)
        self._probe_age = gauge(
            "navsrv_temperature_age_ms", "Age of the newest reading; NaN before the first", of_probe
        )
        self._state = gauge("navsrv_state", "1 for the state that holds", ("tool", "state"))

    async def page(self, request: web.Request) -> web.Response:
        """Return the metrics page."""
        self._frames.inc(self._board.frames - self._counted)
        self._counted = self._board.frames
        self._displays.set(len(self._browsers))
        for tool, frame in self._board.newest.items():
            self._age.labels(tool).set(float("nan") if frame.age_ms is None else frame.age_ms)
            self._seq.labels(tool).set(frame.seq)
            self._missed.labels(tool).set(frame.missed_deadlines)
            self._skipped.labels(tool).set(frame.skipped_poses)
            for probe in frame.temperatures:
                self._celsius.labels(probe.name).set(float("nan") if probe.celsius is None else probe.celsius)
                self._probe_age.labels(probe.name).set(float("nan") if probe.age_ms is None else probe.age_ms)
            for state in STATES:
                self._state.labels(tool, state).set(float(state == frame.state))
        for what, count in self._board.dicom.items():
            self._dicom.labels(what).set(count)
        for report in self._board.sources:
            self._connected.labels(report.source).set(float(report.connected))
            for what, count in report.counts.items():
                self._samples.labels(report.source, what).set(count)
            for showing in SHOWINGS if report.showing is not None else ():
                self._showing.labels(report.source, showing).set(float(showing == report.showing))
            for name, gauge in self._clock.items():
                value: float | None = getattr(report, name)
                gauge.labels(report.source).set(float("nan") if value is None else value)
        return web.Response(body=generate_latest(self._registry), content_type="text/plain")
