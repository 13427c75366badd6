"""The display in a real browser, judged by what stands on the screen while a scripted server behaves and misbehaves."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import WSMsgType, web

from navsrv.guidance.alarms import SIGNALS, Phase, Priority
from tests.browser import Browser

STATIC = Path(__file__).resolve().parents[2] / "navsrv" / "display" / "static"
SILENCE_MS = 300
TURNS = 40
"""Timers of 5 ms that may run in the page before one of 50 ms must have."""
PERIOD_S = 0.02

pytestmark = [pytest.mark.realtime, pytest.mark.peer]


@pytest.fixture(autouse=True)
def _needs(require_program: Callable[[str], Path]) -> None:
    require_program("chromium")
    if not (STATIC / "vendor" / "three" / "three.module.js").is_file():
        pytest.skip("navsrv/display/static/vendor is not filled: make install")


def row(name: str, part: str, distance_mm: float | None, sigma_mm: float = 1.0) -> dict[str, Any]:
    known = distance_mm is not None
    return {
        "name": name,
        "kind": "critical",
        "part": part,
        "distance_mm": distance_mm,
        "sigma_mm": sigma_mm if known else None,
        "lower_mm": distance_mm - 1.645 * sigma_mm if distance_mm is not None else None,
        "nearest_ct_mm": [10.0, 0.0, 0.0] if known else None,
        "closing_mm_s": 0.0 if known else None,
        "level": "none" if known else "unknown",
    }


class Server:
    """Serves the display and streams ``frame`` at 50 Hz, latest value first, at most eight unacknowledged."""

    def __init__(self) -> None:
        self.frame: dict[str, Any] = self.valid()
        self.streaming = True
        self.sent_ago_ns = 0
        self.step = 1
        self.commands: list[dict[str, Any]] = []
        self.answer: dict[str, Any] = {"ok": True, "result": None}
        self.picture = asyncio.Event()
        """Set when a registration's picture, which this server has not, may be answered."""
        self._seq = 0
        self._socket: web.WebSocketResponse | None = None

    @staticmethod
    def valid() -> dict[str, Any]:
        registration = {
            "id": "r1",
            "method": "cbct",
            "state": "accepted",
            "verdict": "accept",
            "tre_mm": 0.6,
            "age_s": 9,
        }
        return {
            "v": 1,
            "state": "OK",
            "reason": "",
            "phase": "navigation",
            "tool": "Needle",
            "age_ms": 4.0,
            "tip_ct_mm": [0.0, 0.0, 0.0],
            "axis_ct": [0.0, 0.0, 1.0],
            # The tip is nearer to A, but less certain of B: B's lower bound is the least.
            "structures": [row("A", "tip", 8.0), row("B", "tip", 12.0), row("B", "shaft", 9.0, 3.0)],
            "trajectory": None,
            "zone": None,
            "alarms": [],
            "registration": registration,
            "temperatures": [],
            "missed_deadlines": 0,
        }

    def lose(self, state: str, reason: str) -> None:
        alarm: dict[str, Any] = {"id": "lost:Needle", "condition": "tool_lost", "priority": "medium", "phase": "active"}
        alarm |= {"since_ns": str(time.monotonic_ns()), "structure": None, "text": reason}
        self.frame = self.valid() | {"state": state, "reason": reason, "tip_ct_mm": None, "axis_ct": None}
        self.frame |= {"structures": [row("A", "tip", None), row("B", "tip", None)], "alarms": [alarm]}

    async def _ws(self, request: web.Request) -> web.WebSocketResponse:
        ws = self._socket = web.WebSocketResponse()
        await ws.prepare(request)
        unacknowledged: set[int] = set()
        pump = asyncio.create_task(self._pump(ws, unacknowledged))
        async for message in ws:
            if message.type is not WSMsgType.TEXT:
                break
            said = json.loads(message.data)
            if "ack" in said:
                unacknowledged.discard(said["ack"])
                await ws.send_json({"t_client": said["t_client"], "server_ns": str(time.monotonic_ns())})
            else:
                self.commands.append(said)
                await ws.send_json({"id": said["id"], **self.answer})
        pump.cancel()
        return ws

    async def hang_up(self) -> None:
        """End the page's connection; it comes again by itself."""
        assert self._socket is not None
        await self._socket.close()

    async def _overlay(self, request: web.Request) -> web.Response:
        await self.picture.wait()
        raise web.HTTPNotFound

    async def _pump(self, ws: web.WebSocketResponse, unacknowledged: set[int]) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            self._seq += self.step
            if self.streaming and len(unacknowledged) < 8:
                unacknowledged.add(self._seq)
                now = time.monotonic_ns() - self.sent_ago_ns
                await ws.send_json(self.frame | {"seq": self._seq, "received_ns": str(now), "sent_ns": str(now)})

    async def _case(self, request: web.Request) -> web.Response:
        names = [("Bone", "bone"), ("A", "critical"), ("B", "critical")]
        structures = [
            {"name": name, "kind": kind, "mesh": f"/api/mesh/{i}", "triangles": 4, "caution_mm": 10, "warning_mm": 5}
            for i, (name, kind) in enumerate(names)
        ]
        tool = {"name": "Needle", "gauge": 11, "diameter_mm": 3.05, "length_mm": 150}
        return web.json_response(
            {"name": "tiny", "structures": structures, "plan": None, "volume": None, "tools": [tool]}
        )

    async def _mesh(self, request: web.Request) -> web.Response:
        vertices = 30.0 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype="<f4")
        triangles = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], dtype="<u4")
        return web.Response(body=struct.pack("<II", 4, 4) + vertices.tobytes() + triangles.tobytes())

    async def _index(self, request: web.Request) -> web.FileResponse:
        return web.FileResponse(STATIC / "index.html")

    @asynccontextmanager
    async def run(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_get("/", self._index)
        app.router.add_get("/ws", self._ws)
        app.router.add_get("/api/case", self._case)
        app.router.add_get("/api/mesh/{n}", self._mesh)
        app.router.add_get("/api/registration/{id}/overlay", self._overlay)
        app.router.add_static("/static", STATIC)
        runner = web.AppRunner(app, shutdown_timeout=0.5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
        finally:
            await runner.cleanup()


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Server, Browser]]:
    """A server and a browser that has loaded its page and shows current frames."""
    server = Server()
    async with server.run() as url, Browser(1280, 800) as browser:
        await browser.open(url)
        # Loading stalls the page, which is a fault as it should be; begin when it has settled.
        await browser.wait_for(
            "navsrv.shown.caseLoaded && !navsrv.shown.fault && navsrv.shown.closest && navsrv.shown.frameRate > 20",
            40.0,
        )
        yield server, browser
        assert browser.console == []


async def press(browser: Browser, selector: str) -> None:
    """Press a button as soon as it is there: on a busy machine a late frame may take it away for a moment."""
    await browser.wait_for(f"(button => button && (button.click(), true))(document.querySelector('{selector}'))")


def test_shows_the_servers_numbers_and_takes_them_away_when_the_tool_is_lost() -> None:
    async def story() -> None:
        async with opened() as (server, browser):
            closest = await browser.wait_for("navsrv.shown.closest")
            assert (closest["name"], closest["part"], closest["distance_text"]) == ("B", "shaft", "9.0")
            assert await browser.wait_for("document.querySelector('.closest-bound').textContent.includes('4.1 mm')")
            assert await browser.wait_for("navsrv.shown.needleVisible && navsrv.shown.lineLabel === '9.0 mm'")

            server.lose("LOST", "Needle out of view")
            shown = await browser.wait_for(
                "navsrv.shown.state === 'LOST' && navsrv.shown.closest === null && navsrv.shown"
            )
            assert not shown["needleVisible"]
            assert not shown["fault"]
            assert shown["reason"] == "Needle out of view"
            assert [a["text"] for a in shown["alarms"]] == ["Needle out of view"]
            column = await browser.evaluate("document.querySelector('aside').innerText")
            assert "9.0" not in column
            assert "8.0" not in column
            assert "4.1" not in column

            await press(browser, ".alarm button")
            while not server.commands:
                await asyncio.sleep(0.01)
            said = server.commands[0]
            assert (said["op"], said["args"]) == ("acknowledge_alarm", {"id": "lost:Needle", "tool": "Needle"})

            server.frame = server.valid() | {"state": "SPLENDID"}
            await browser.wait_for("navsrv.shown.state === 'FAULT' && !navsrv.shown.needleVisible")

    asyncio.run(story())


def test_a_still_image_an_insert_and_temperatures_say_what_they_are() -> None:
    """Nothing of then looks like now: the image's time beside the needle, and no number for a probe that is silent."""

    async def story() -> None:
        async with opened() as (server, browser):
            warm = {"name": "Nerve", "celsius": 43.42, "rate_c_s": 0.4, "age_ms": 300.0, "level": "caution"}
            silent = {"name": "Skin", "celsius": None, "rate_c_s": None, "age_ms": 4200.0, "level": "unknown"}
            server.frame = server.valid() | {"temperatures": [warm, silent], "insert": "Probe 15G", "age_ms": 94_000.0}
            server.frame |= {"state": "SNAPSHOT", "reason": "image at 12:34; registration unverified: 4 mm off"}
            await browser.wait_for("navsrv.shown.state === 'SNAPSHOT'")
            still = await browser.wait_for("document.querySelector('#still:not([hidden])')?.innerText")
            assert still == "image at 12:34 · not live"
            card = await browser.wait_for("!navsrv.shown.fault && document.querySelector('#state').innerText")
            assert "SNAPSHOT" in card
            assert "image at 12:34; registration unverified: 4 mm off" in card
            assert "1 min 34 s ago" in card
            assert await browser.evaluate("document.querySelector('#tool-name').innerText") == "Needle · Probe 15G"
            probes = await browser.wait_for(
                "!navsrv.shown.fault && [...document.querySelectorAll('#temperatures li')].map(li => li.innerText)"
            )
            assert [text.split("\n") for text in probes] == [["Nerve", "43.4 °C"], ["Skin", "unknown, 4 s old"]]

            server.frame = server.valid() | {"temperatures": [silent | {"age_ms": None}]}
            await browser.wait_for("document.querySelector('#temperatures').innerText.includes('unknown, never read')")
            await browser.wait_for("document.querySelector('#still').hidden")

    asyncio.run(story())


def alarm_of(condition: str, priority: str, phase: str, text: str) -> dict[str, Any]:
    since = str(time.monotonic_ns() - 3_000_000_000)
    words = {"text": text, "action": "Stop."}
    return (
        {"id": f"{condition}:A", "condition": condition, "priority": priority, "phase": phase}
        | words
        | {
            "since_ns": since,
            "structure": "A",
        }
    )


def test_alarms_show_priority_text_action_and_flash_as_the_servers_table_says() -> None:
    async def story() -> None:
        async with opened() as (server, browser):
            server.frame = server.valid() | {
                "alarms": [
                    alarm_of("caution", "low", "active", "A: 8.0 mm"),
                    alarm_of("breach", "high", "active", "Contact possible: A"),
                    alarm_of("warning", "medium", "active", "A: 4.0 mm"),
                    alarm_of("fault", "high", "acknowledged", "Seen"),
                ]
            }
            shown = await browser.wait_for("""navsrv.shown.alarms.length === 4 &&
                [...document.querySelectorAll('.alarm')].map((node) => ({
                text: node.querySelector('.alarm-text').textContent,
                action: node.querySelector('.alarm-action').textContent,
                mark: node.querySelector('.alarm-mark').textContent,
                flash: 1 / (parseFloat(getComputedStyle(node).animationDuration) || Infinity),
                asked: !node.querySelector('button').hidden,
            }))""")
            assert [a["text"] for a in shown] == ["Contact possible: A", "A: 4.0 mm", "A: 8.0 mm", "Seen"]
            assert [a["mark"] for a in shown] == ["!!!", "!!", "!", "!!!"]
            assert {a["action"] for a in shown} == {"Stop."}
            wanted = [SIGNALS[p, Phase.ACTIVE].flash_hz for p in (Priority.HIGH, Priority.MEDIUM, Priority.LOW)]
            assert [a["flash"] for a in shown] == pytest.approx([*wanted, 0.0], rel=0.01)
            assert [a["asked"] for a in shown] == [True, True, True, False]

    asyncio.run(story())


def test_what_is_inactive_is_seen_and_can_be_ended() -> None:
    async def story() -> None:
        async with opened() as (server, browser):
            assert await browser.evaluate("document.querySelector('#exceptions').hidden")
            exception = {"structure": "B", "reason": "planned", "by": "display", "since_ns": "1", "planned_mm": 1.0}
            held = {"exceptions": [exception], "parked": True, "audio_paused_s": 61.0}
            server.frame = server.valid() | held
            server.frame["registration"] |= {"state": "unverified"}
            await browser.wait_for("navsrv.shown.exceptions.includes('B') && navsrv.shown.audio === 'AUDIO PAUSED'")
            words = await browser.wait_for("!navsrv.shown.fault && document.body.innerText")
            assert "No alarms for B planned (display)" in " ".join(words.split())
            assert "AUDIO PAUSED 1:01" in words
            assert "TOOL PARKED" in words
            assert await browser.wait_for("document.querySelector('#structures li.excepted .name')?.textContent") == "B"
            for selector in (".exception button", "#audio-pause", ".registration-confirm"):
                await press(browser, selector)
            while len(server.commands) < 3:
                await asyncio.sleep(0.01)
            said = {c["op"]: c["args"] for c in server.commands}
            ended = {"structure": "B", "tool": "Needle", "reason": "ended at the display", "on": False}
            assert said == {
                "except_structure": ended,
                "pause_audio": {"seconds": 0},
                "confirm_registration": {"id": "r1"},
            }
            server.frame = server.valid()
            await browser.wait_for("navsrv.shown.exceptions.length === 0 && navsrv.shown.audio === 'AUDIO OFF'")

    asyncio.run(story())


def test_silence_is_a_fault_and_a_late_frame_is_never_current() -> None:
    async def story() -> None:
        async with opened() as (server, browser):
            # Judged by the page's own turns, which a busy machine delays but does not reorder: after each look of the
            # page a silence beyond the limit is a fault, and it looks within a few turns of the page's timers.
            watching = f"""new Promise((done) => {{
                const display = navsrv.display, tick = display.tick.bind(display), current = [];
                const silence = (now) => now - display.link.receivedAt;
                display.tick = (now) => {{
                    tick(now);
                    if (silence(now) > {SILENCE_MS} && !navsrv.shown.faultShown) current.push(silence(now));
                }};
                let turns = 0;
                const look = () => {{
                    if (silence(performance.now()) <= {SILENCE_MS}) turns = 0;
                    else if (!navsrv.shown.faultShown) turns += 1;
                    if (silence(performance.now()) < 1000) return setTimeout(look, 5);
                    display.tick = tick;
                    done({{ current, turns }});
                }};
                look();
            }})"""
            server.streaming = False
            watched = await browser.evaluate(watching)
            assert watched["current"] == []
            assert watched["turns"] < TURNS
            shown = await browser.evaluate("navsrv.shown")
            assert shown["closest"] is None
            assert not shown["needleVisible"]
            assert shown["alarms"] == []
            assert "9.0" not in await browser.evaluate("document.querySelector('main').innerText")

            server.sent_ago_ns, server.streaming = 1_000_000_000, True  # frames flow, but each is a second old
            await browser.wait_for("navsrv.shown.reason.includes('late')")
            assert (await browser.evaluate("navsrv.shown"))["faultShown"]

            server.sent_ago_ns = 0
            await browser.wait_for("!navsrv.shown.faultShown && navsrv.shown.closest")
            missed = (await browser.evaluate("navsrv.shown"))["missed"]
            server.step = 3
            await browser.wait_for(f"navsrv.shown.missed > {missed + 5}")

    asyncio.run(story())


def test_after_a_hung_page_no_old_frame_is_shown() -> None:
    async def story() -> None:
        async with opened() as (_server, browser):
            # Every age that the page shows as current is taken down while its thread hangs and after.
            await browser.evaluate("""(() => {
                window.ages = [];
                const show = navsrv.display.show.bind(navsrv.display);
                navsrv.display.show = (view, now) => { if (!view.fault) ages.push(view.ageMs); show(view, now); };
            })()""")
            await browser.evaluate(
                "{ const t = performance.now(); while (performance.now() - t < 1500); ages.length = 0 }"
            )
            await browser.wait_for("ages.length > 5")
            ages = await browser.evaluate("ages")
            assert max(ages) <= SILENCE_MS

    asyncio.run(story())


def test_a_proposed_registration_is_decided_by_the_operator_alone() -> None:
    async def story() -> None:
        async with opened() as (server, browser):
            server.lose("UNREGISTERED", "A registration is proposed")
            server.frame["registration"] |= {"id": "r2", "state": "proposed"}
            server.answer = {"ok": False, "error": "the role viewer may not accept"}
            await browser.wait_for("navsrv.shown.registration.proposalShown")
            await press(browser, "#proposal .accept")
            refused = "document.querySelector('.proposal-error:not([hidden])')?.textContent"
            assert "the role viewer may not accept" in await browser.wait_for(refused)
            assert server.commands[0]["op"] == "accept_registration"
            assert server.commands[0]["args"] == {"id": "r2"}
            # Refused, so it is still asked; it goes only when a frame says that it is decided.
            assert await browser.wait_for("navsrv.shown.registration.proposalShown")

            # Without a current frame nothing is asked, and what the server answered is there when frames flow again.
            server.streaming = False
            await browser.wait_for("navsrv.shown.faultShown && !navsrv.shown.registration.proposalShown")
            server.streaming = True
            assert "the role viewer may not accept" in await browser.wait_for(
                f"navsrv.shown.registration.proposalShown && {refused}"
            )
            # A server that was started again numbers anew: its proposal is another one, whatever it is called.
            await server.hang_up()
            await browser.wait_for("navsrv.display.link.reconnects > 0 && navsrv.shown.registration.proposalShown")
            assert await browser.evaluate("document.querySelector('.proposal-error').hidden")

            # A picture that fails when nothing is asked any more finds nobody to tell, and that is no error.
            await browser.evaluate("""{
                window.failed = false;
                document.querySelector('#proposal img').addEventListener('error', () => (window.failed = true));
            }""")
            server.frame = server.valid()
            await browser.wait_for("!navsrv.shown.registration.proposalShown && navsrv.shown.state === 'OK'")
            server.picture.set()
            assert await browser.wait_for("window.failed")

    asyncio.run(story())
