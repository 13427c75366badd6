"""Owns the sockets and the loop of one simulator process: OpenIGTLink server and client, commands on standard input.

One thread, absolute deadlines, no send that blocks.  What is streamed is *offered*: the newest wins, and a slow peer
misses what it could not take.  What was asked for (an image) is *pushed*: it is sent whole, once more after a
reconnection if it has to be.  Refuses to know what the messages mean.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Any, Final

from navsrv.kernel.errors import InputError, RemoteProtocolError
from navsrv.wire.openigtlink import Framer, Message

STREAM_SEND_BUFFER: Final = 32_768
"""Bytes that the kernel may hold back for a slow client of a stream: a few hundred poses, not seconds of them."""
CHUNK: Final = 1 << 18
BACKOFF_S: Final = (0.1, 2.0)


def emit(event: dict[str, object]) -> None:
    """Print one JSON line for the program that started the simulator; a reader that has gone is no fault."""
    try:
        print(json.dumps(event), flush=True)
    except BrokenPipeError:
        # The interpreter would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(who: str, line: str) -> None:
    """Print one line for people."""
    print(f"simulators {who}: {line}", file=sys.stderr, flush=True)


class Connection:
    """One connected peer: bytes out by ``offer`` and ``push``, whole messages in by ``read``."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.sock = sock
        self.name = name
        self.spoke_version_2 = False
        self.skipped = 0
        self.pushed = 0
        """How many pushed messages the system has taken whole."""
        self._framer = Framer()
        self._rest = memoryview(b"")
        self._rest_pushed = False
        self._queue: deque[bytes] = deque()
        self._newest: bytes | None = None

    @property
    def waiting(self) -> bool:
        """Whether something is still to be sent."""
        return bool(self._rest) or bool(self._queue) or self._newest is not None

    def offer(self, data: bytes) -> None:
        """Send whole messages unless something newer is offered first; OSError when the peer has gone."""
        if self._newest is not None:
            self.skipped += 1
        self._newest = data
        self.flush()

    def push(self, data: bytes) -> None:
        """Send whole messages in their order, before anything offered; OSError when the peer has gone."""
        self._queue.append(data)
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes now."""
        while True:
            if not self._rest:
                if self._queue:
                    self._rest, self._rest_pushed = memoryview(self._queue.popleft()), True
                elif self._newest is not None:
                    self._rest, self._rest_pushed, self._newest = memoryview(self._newest), False, None
                else:
                    return
            try:
                self._rest = self._rest[self.sock.send(self._rest) :]
            except (BlockingIOError, InterruptedError):
                return
            if not self._rest and self._rest_pushed:
                self.pushed += 1

    def read(self) -> list[Message] | None:
        """Return the messages that arrived; None when the peer closed.

        Raises
        ------
        OSError
            The connection broke.
        RemoteProtocolError
            The bytes are not OpenIGTLink.
        """
        try:
            data = self.sock.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return []
        if not data:
            return None
        messages = list(self._framer.feed(data))
        self.spoke_version_2 = self.spoke_version_2 or any(m.version >= 2 for m in messages)
        return messages


class Loop:
    """The one thread of a simulator: a tick at a fixed rate, sockets, commands from standard input, signals.

    Standard input is a channel of JSON lines; its end, ``{"do": "stop"}``, SIGTERM and SIGINT all end the loop.
    """

    def __init__(
        self,
        who: str,
        rate_hz: float,
        tick: Callable[[int], None],
        command: Callable[[Any], None],
        delay_ns: Callable[[int], int] | None = None,
    ) -> None:
        """``delay_ns`` of a tick's number, at least 0 and less than a period, is how late it is on purpose."""
        self.who = who
        self.period_ns = round(1e9 / rate_hz)
        self.late_ticks = 0
        # select() keeps microseconds, where epoll rounds a deadline up to the millisecond; and it takes files as stdin.
        self.selector = selectors.SelectSelector()
        self._tick = tick
        self._command = command
        self._delay_ns = delay_ns
        self._stopping = False
        self._wake_in, self._wake_out = socket.socketpair()
        self._stdin = bytearray()

    def stop(self) -> None:
        """End the loop after what it is doing."""
        self._stopping = True

    def run(self) -> None:
        """Run until stopped; the first tick is one period after the call."""
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        previous = {s: signal.signal(s, self._signalled) for s in (signal.SIGTERM, signal.SIGINT)}
        signal.set_wakeup_fd(self._wake_out.fileno(), warn_on_full_buffer=False)
        self.selector.register(self._wake_in, selectors.EVENT_READ, self._woken)
        self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ, self._read_stdin)
        try:
            self._run()
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def close(self) -> None:
        """Let go of the selector, after every socket has been closed."""
        self.selector.close()
        self._wake_in.close()
        self._wake_out.close()

    def _run(self) -> None:
        start, count = time.monotonic_ns(), 1
        while not self._stopping:
            deadline = start + count * self.period_ns
            due = deadline if self._delay_ns is None else deadline + self._delay_ns(count)
            left = due - time.monotonic_ns()
            for key, mask in self.selector.select(max(left, 0) / 1e9):
                key.data(mask)
            now = time.monotonic_ns()
            if now < due or self._stopping:
                continue
            self._tick(deadline)
            # A tick that came a whole period late is gone; a burst of old poses is no tracker's.
            behind = (time.monotonic_ns() - due) // self.period_ns
            self.late_ticks += behind
            count += 1 + behind

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _woken(self, mask: int) -> None:
        self._wake_in.recv(4096)

    def _read_stdin(self, mask: int) -> None:
        data = os.read(sys.stdin.fileno(), 65_536)
        if not data:
            self.stop()
            return
        self._stdin += data
        *lines, rest = self._stdin.split(b"\n")
        self._stdin = bytearray(rest)
        for line in lines:
            if line.strip():
                self._obey(bytes(line))

    def _obey(self, line: bytes) -> None:
        try:
            order = json.loads(line)
            if not isinstance(order, dict) or "do" not in order:
                raise InputError('expected an object with "do"')
            if order["do"] == "stop":
                self.stop()
            else:
                self._command(order)
        except (ValueError, InputError) as e:
            complain(self.who, f"command {line.decode(errors='replace').strip()!r}: {e}")


class Server:
    """A listening OpenIGTLink server for any number of clients, each with the newest of what is offered.

    ``heard`` is called with each message that a client sends.
    """

    def __init__(
        self, loop: Loop, host: str, port: int, heard: Callable[[Connection, Message], None] | None = None
    ) -> None:
        self._loop, self._heard = loop, heard
        try:
            self._listener = socket.create_server((host, port), backlog=16)
        except OSError as e:
            raise InputError(f"port {port} on {host}: {e.strerror}; choose another, or 0 for any free one") from e
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self.clients: list[Connection] = []
        loop.selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def offer(self, encode: Callable[[Connection], bytes]) -> None:
        """Offer each client the newest messages that are made for it; nothing where there are none."""
        for client in tuple(self.clients):
            data = encode(client)
            if data:
                self._guard(client, lambda c=client, d=data: c.offer(d))  # type: ignore[misc]

    def close(self) -> None:
        """Close every socket."""
        for client in tuple(self.clients):
            self._drop(client)
        self._listener.close()

    def _accept(self, mask: int) -> None:
        try:
            sock, address = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, STREAM_SEND_BUFFER)
        client = Connection(sock, f"{address[0]}:{address[1]}")
        self.clients.append(client)
        self._loop.selector.register(sock, selectors.EVENT_READ, lambda m: self._ready(client, m))

    def _ready(self, client: Connection, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._guard(client, client.flush)
        if mask & selectors.EVENT_READ and client in self.clients:
            self._guard(client, lambda: self._read(client))

    def _read(self, client: Connection) -> None:
        messages = client.read()
        if messages is None:
            self._drop(client)
        elif self._heard is not None:
            for message in messages:
                self._heard(client, message)

    def _guard(self, client: Connection, act: Callable[[], object]) -> None:
        try:
            act()
        except RemoteProtocolError as e:
            complain(self._loop.who, f"client {client.name}: {e}; disconnected")
            self._drop(client)
        except OSError:
            self._drop(client)
        if client in self.clients:
            watch(self._loop.selector, client)

    def _drop(self, client: Connection) -> None:
        if client in self.clients:
            self.clients.remove(client)
            self._loop.selector.unregister(client.sock)
            client.sock.close()


class Client:
    """An OpenIGTLink client that connects, and connects again with growing pauses, until it is closed."""

    def __init__(self, loop: Loop, host: str, port: int) -> None:
        self._loop = loop
        self._address = (host, port)
        self._pushed: deque[bytes] = deque()
        self._taken = 0
        self._connecting: socket.socket | None = None
        self._pause_s, self._not_before_ns = BACKOFF_S[0], 0
        self.connection: Connection | None = None

    def tick(self) -> None:
        """Start connecting when there is no connection and the pause is over."""
        if self.connection is not None or self._connecting is not None or time.monotonic_ns() < self._not_before_ns:
            return
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sock.connect_ex(self._address) not in (0, errno.EINPROGRESS):
            sock.close()
            self._retry()
            return
        self._connecting = sock
        self._loop.selector.register(sock, selectors.EVENT_WRITE, self._connected)

    def offer(self, data: bytes) -> None:
        """Send whole messages if connected, the newest winning."""
        if self.connection is not None:
            self._guard(lambda c: c.offer(data))

    def push(self, data: bytes) -> None:
        """Send whole messages, now or once connected; sent again from the start if the connection breaks within."""
        self._pushed.append(data)
        if self.connection is not None:
            self._guard(lambda c: c.push(data))

    def close(self) -> None:
        """Close the sockets."""
        if self._connecting is not None:
            self._loop.selector.unregister(self._connecting)
            self._connecting.close()
        if self.connection is not None:
            self._loop.selector.unregister(self.connection.sock)
            self.connection.sock.close()

    def _connected(self, mask: int) -> None:
        sock = self._connecting
        assert sock is not None
        self._connecting = None
        self._loop.selector.unregister(sock)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0:
            sock.close()
            self._retry()
            return
        self.connection = Connection(sock, f"{self._address[0]}:{self._address[1]}")
        self._taken = 0
        self._pause_s = BACKOFF_S[0]
        self._loop.selector.register(sock, selectors.EVENT_READ, self._ready)
        emit({"event": "connected", "server": self.connection.name})
        for data in tuple(self._pushed):
            self._guard(lambda c, d=data: c.push(d))  # type: ignore[misc]

    def _ready(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._guard(lambda c: c.flush())
        if mask & selectors.EVENT_READ:
            self._guard(self._read)

    def _read(self, connection: Connection) -> None:
        if connection.read() is None:
            raise ConnectionResetError("the server closed the connection")

    def _guard(self, act: Callable[[Connection], object]) -> None:
        connection = self.connection
        if connection is None:
            return
        try:
            act(connection)
        except RemoteProtocolError as e:
            complain(self._loop.who, f"server {connection.name}: {e}; disconnected")
            self._lost(connection)
            return
        except OSError:
            self._lost(connection)
            return
        while self._taken < connection.pushed:
            self._pushed.popleft()
            self._taken += 1
        watch(self._loop.selector, connection)

    def _lost(self, connection: Connection) -> None:
        self._loop.selector.unregister(connection.sock)
        connection.sock.close()
        self.connection = None
        emit({"event": "disconnected", "server": connection.name})
        self._retry()

    def _retry(self) -> None:
        self._not_before_ns = time.monotonic_ns() + round(self._pause_s * 1e9)
        self._pause_s = min(2.0 * self._pause_s, BACKOFF_S[1])


class Jobs:
    """Slow work beside the loop, one job at a time, so that streaming goes on; its results are collected at a tick."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._running: deque[Future[bytes]] = deque()

    def submit(self, job: Callable[[], bytes]) -> None:
        """Begin a job, after those before it."""
        self._running.append(self._pool.submit(job))

    def done(self) -> list[bytes]:
        """Return the results that are ready, in order."""
        results = []
        while self._running and self._running[0].done():
            results.append(self._running.popleft().result())
        return results

    def close(self) -> None:
        """Wait for the running job only."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def watch(selector: selectors.BaseSelector, connection: Connection) -> None:
    """Ask for write events exactly while something waits to be sent."""
    events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.waiting else 0)
    key = selector.get_key(connection.sock)
    if key.events != events:
        selector.modify(connection.sock, events, key.data)


def parse_address(text: str, option: str = "--server") -> tuple[str, int]:
    """Return the numeric address and port of ``HOST:PORT``; InputError otherwise."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"{option} {text}: expected HOST:PORT, such as 127.0.0.1:18945")
    try:
        # Once, here: a name that is looked up within the loop would stop everything else.
        return socket.gethostbyname(host), int(port)
    except OSError as e:
        raise InputError(f"{option} {text}: host {host!r} is not known here") from e
