"""A headless Chromium for tests of the display, driven over its own debugging protocol with aiohttp alone.

Owns: starting and ending the program, opening a page, evaluating JavaScript, waiting for a condition, screenshots.
Refuses: to install anything. `find_chromium` returns None where there is none, and the test then skips aloud.
"""

import asyncio
import base64
import json
import shutil
import signal
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

# Software OpenGL, and nothing that talks to the outside or asks questions.
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
]


class BrowserError(Exception):
    """The browser did not start, ended, or the page threw."""


def find_chromium() -> str | None:
    """Path of the first Chromium or Chrome on this machine, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for path in map(shutil.which, names) if path is not None), None)


class Browser:
    """One Chromium with one page; use as ``async with Browser() as browser``."""

    def __init__(self, width: int = 1440, height: int = 900, start_s: float = 30.0) -> None:
        self._size = (width, height)
        self._start_s = start_s
        self._profile = tempfile.TemporaryDirectory(prefix="navsrv-chromium-", ignore_cleanup_errors=True)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next_id = 1
        self.console: list[str] = []
        """Errors that the page printed or threw, oldest first."""

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _start(self) -> None:
        program = find_chromium()
        if program is None:
            raise BrowserError("no chromium on this machine: `make peers` installs it")
        width, height = self._size
        self._process = await asyncio.create_subprocess_exec(
            program,
            *FLAGS,
            f"--window-size={width},{height}",
            f"--user-data-dir={self._profile.name}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        async with asyncio.timeout(self._start_s):
            browser_url = await self._debugging_url()
            self._drain = asyncio.create_task(self._discard_errors())
            self._http = aiohttp.ClientSession()
            host = browser_url.split("/")[2]
            async with self._http.get(f"http://{host}/json/list") as response:
                pages = [target for target in await response.json() if target["type"] == "page"]
            self._socket = await self._http.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
        self._reader = asyncio.create_task(self._read())
        await self.call("Page.enable")
        await self.call("Runtime.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def _debugging_url(self) -> str:
        assert self._process.stderr is not None
        said: list[str] = []
        while line := (await self._process.stderr.readline()).decode(errors="replace"):
            if line.startswith("DevTools listening on "):
                return line.split()[-1]
            said.append(line)
        raise BrowserError(f"chromium ended before it listened: {''.join(said[-5:])}")

    async def _discard_errors(self) -> None:
        assert self._process.stderr is not None
        while await self._process.stderr.read(65536):
            pass

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                break
            self._take(json.loads(message.data))
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(BrowserError("chromium closed its debugging connection"))

    def _take(self, message: dict[str, Any]) -> None:
        waiting = self._waiting.pop(message.get("id", -1), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)
            return
        parameters = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                self.console.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "assert"):
                self.console.append(" ".join(str(a.get("value", a.get("description"))) for a in parameters["args"]))

    async def call(self, method: str, timeout_s: float = 30.0, **parameters: Any) -> dict[str, Any]:
        """The result of one call of the debugging protocol."""
        call_id, self._next_id = self._next_id, self._next_id + 1
        future = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = future
        await self._socket.send_json({"id": call_id, "method": method, "params": parameters})
        async with asyncio.timeout(timeout_s):
            message: dict[str, Any] = await future
        if "error" in message:
            raise BrowserError(f"{method}: {message['error']['message']}")
        result: dict[str, Any] = message["result"]
        return result

    async def open(self, url: str) -> None:
        """Go to ``url``; returns once the navigation has begun, so wait for what the page should show."""
        result = await self.call("Page.navigate", url=url)
        if result.get("errorText"):
            raise BrowserError(f"{url}: {result['errorText']}")

    async def evaluate(self, expression: str, timeout_s: float = 30.0) -> Any:
        """The value of a JavaScript expression (a promise is awaited), as JSON carries it."""
        result = await self.call(
            "Runtime.evaluate", timeout_s, expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description", details["text"]))
        return result["result"].get("value")

    async def wait_for(self, expression: str, timeout_s: float = 20.0) -> Any:
        """The first truthy value of ``expression``; looks after each picture that the page draws.

        Raises
        ------
        TimeoutError
            With the page's ``window.navsrv.shown`` in its text.
        """
        look = f"(() => {{ try {{ return {expression} }} catch (e) {{ return null }} }})()"
        script = f"""new Promise((done) => {{
            const end = performance.now() + {timeout_s * 1000};
            const look = () => {{
                const value = {look};
                if (value || performance.now() > end) done(value || null);
                else setTimeout(look, 10);
            }};
            look();
        }})"""
        value = await self.evaluate(script, timeout_s + 10.0)
        if value is None:
            shown = await self.evaluate("JSON.stringify(window.navsrv?.shown ?? null)")
            raise TimeoutError(f"the page never came to: {expression}; it shows {shown}; errors: {self.console}")
        return value

    async def screenshot(self, path: Path | None = None) -> bytes:
        """The page as PNG, also written to ``path``."""
        result = await self.call("Page.captureScreenshot", format="png")
        png = base64.b64decode(result["data"])
        if path is not None:
            path.write_bytes(png)
        return png

    async def close(self) -> None:
        """End the program and remove its profile; safe to call twice and after a failed start."""
        if hasattr(self, "_socket"):
            await self._socket.close()
        if hasattr(self, "_http"):
            await self._http.close()
        if hasattr(self, "_process") and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(5.0):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        for name in ("_reader", "_drain"):
            task: asyncio.Task[None] | None = getattr(self, name, None)
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._profile.cleanup()
