"""Owns the real-time loop: one thread of one process that shares its interpreter with nothing.

It waits for bytes, commands and its own timers, stamps what comes once, runs the pipeline and publishes each frame
on ZeroMQ itself.  Rendering, registration, encoding for browsers and recording live in other processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pickle
import resource
import selectors
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec
import numpy as np
import zmq
from numba.core.event import install_recorder

from navsrv.anatomy.case import Case
from navsrv.kernel.errors import DeviceError, InputError
from navsrv.pipeline.inputs import (
    BytesIn,
    CommandIn,
    EndLink,
    FoundIn,
    Input,
    LinkDown,
    LinkUp,
    NeedleIn,
    Note,
    RegistrationIn,
    Reply,
    SensorIn,
    ShellReport,
    Tick,
    ToDevice,
    encode_input,
    input_time_ns,
)
from navsrv.pipeline.pipeline import Output, Pipeline
from navsrv.pipeline.setup import Setup
from navsrv.server.boots import LoopBoot
from navsrv.server.channel import Channel, ChannelClosed
from navsrv.server.config_tables import Config
from navsrv.server.ndi_lines import Line, open_line
from navsrv.server.records import FRAME, INPUT, NOTE, RecordSink
from navsrv.server.setup import build_setup
from navsrv.server.warmth import Rehearsal
from navsrv.wire.guidance import GuidanceFrame, encode_frame
from navsrv.wire.openigtlink import Message, Metadata, Transform, encode, timestamp_from_ns

READ_BYTES: Final = 1 << 16
REAL_TIME_PRIORITY: Final = 40
SOURCES_NS: Final = 1_000_000_000
"""How often the metrics of the sources are renewed."""
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4  # pages stay once they are touched, and nothing is read in ahead


class Loop:
    """The shell around one pipeline."""

    def __init__(self, setup: Setup, config: Config, channel: Channel, record_endpoint: str | None) -> None:
        self.pipeline = Pipeline(setup)
        self.channel = channel
        self.deadline_ns = int(config.server.deadline_ms * 1e6)
        self.missed = 0
        self.displays: int | None = None
        self._reported: tuple[int, int, int | None] = (0, 0, None)
        self._last_input_ns = 0
        self._sources_due_ns = 0
        context = _context()
        self.publisher = context.socket(zmq.PUB)
        self.publisher.setsockopt(zmq.SNDHWM, 1000)
        self.publisher.setsockopt(zmq.LINGER, 0)
        self.port = self._bind(config.ports.host, config.ports.zmq)
        self.records = RecordSink(context, record_endpoint)
        self.rehearsal = Rehearsal(self.pipeline)
        # Of few sockets, and it waits to the microsecond, where epoll rounds up to milliseconds.
        self.selector = selectors.SelectSelector()
        self.selector.register(channel, selectors.EVENT_READ, None)
        self.clients = [open_line(n, t) for n, t in config.trackers.items() if t.connect == "client"]
        self.running = True

    def _bind(self, host: str, port: int) -> int:
        self.publisher.bind(f"tcp://{host}:{port or '*'}")
        endpoint: bytes = self.publisher.getsockopt(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
        return int(endpoint.rpartition(b":")[2].rstrip(b"\0"))

    def run(self) -> None:
        """Run until the session says stop or is gone."""
        for client in self.clients:
            self._begin(client)
        while self.running:
            timeout_s = max(0.0, (self._next_wake_ns() - time.monotonic_ns()) / 1e9)
            for key, mask in self.selector.select(timeout_s):
                if key.data is None:
                    self._from_session()
                else:
                    self._from_tracker(key.data, mask)
            now_ns = time.monotonic_ns()
            if now_ns >= self.pipeline.next_due_ns():
                self._handle(Tick(now_ns))
            if now_ns >= self.records.due_ns:
                self.records.flush()
            if now_ns >= self.rehearsal.due_ns:
                self.rehearsal.run()
            if now_ns >= self._sources_due_ns:
                self._tell_of_sources(now_ns)
            for client in self.clients:
                if client.socket is not None:
                    client.ask(now_ns)
                elif now_ns >= client.retry_ns:
                    self._begin(client)
        for client in self.clients:
            client.close()
        self.records.close()
        self.publisher.close()

    def _next_wake_ns(self) -> int:
        due = min(self.pipeline.next_due_ns(), self.rehearsal.due_ns, self.records.due_ns)
        return min([due, *(c.retry_ns for c in self.clients if c.socket is None)])

    # -- trackers ----------------------------------------------------------------------------------------------

    def _begin(self, client: Line) -> None:
        try:
            self.selector.register(client.begin(), selectors.EVENT_WRITE, client)
        except DeviceError as fault:
            now_ns = time.monotonic_ns()
            client.drop(now_ns)
            self._handle(LinkDown(now_ns, client.name, str(fault)))

    def _from_tracker(self, client: Line, mask: int) -> None:
        sock = client.socket
        if sock is None:
            return
        if not client.connected:
            why = client.established()
            if why is not None:
                self._lose(client, why)
                return
            self.selector.modify(sock, selectors.EVENT_READ, client)
            self._handle(LinkUp(time.monotonic_ns(), client.name))
            return
        try:
            data = client.read(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(client, str(error))
            return
        received_ns, wall_ns = time.monotonic_ns(), time.time_ns()
        if not data:
            self._lose(client, "the device closed the connection")
            return
        client.heard_ns = received_ns
        self._handle(BytesIn(client.name, received_ns, wall_ns, data))

    def _lose(self, client: Line, reason: str) -> None:
        if client.socket is not None:
            self.selector.unregister(client.socket)
        now_ns = time.monotonic_ns()
        client.drop(now_ns)
        self._handle(LinkDown(now_ns, client.name, reason))

    # -- the session -------------------------------------------------------------------------------------------

    def _from_session(self) -> None:
        try:
            messages = self.channel.receive()
        except ChannelClosed:
            self.running = False
            return
        for message in messages:
            kind = message["kind"]
            if kind == "stop":
                self.running = False
                return
            if kind == "recorder_lost":
                self.records.lost += 1
                self._report()
                continue
            if kind == "displays":
                self.displays = message["value"]
                self._report()
                continue
            self._handle(self._stamped(kind, message["value"]))

    def _stamped(self, kind: str, value: dict[str, Any]) -> Input:
        """Return an input from the session; it happens when it gets here, but bytes keep the time of their read."""
        now_ns = max(time.monotonic_ns(), self._last_input_ns)
        match kind:
            case "command":
                return CommandIn(now_ns, value["id"], value["op"], value["args"], value["role"])
            case "registration":
                return msgspec.convert({**value, "now_ns": now_ns, "type": "registration"}, RegistrationIn)
            case "sensor":
                received_ns = max(value["received_ns"], self._last_input_ns)
                return msgspec.convert({**value, "received_ns": received_ns, "type": "sensor"}, SensorIn)
            case "needle":
                return msgspec.convert({**value, "now_ns": now_ns, "type": "needle"}, NeedleIn)
            case "bytes":
                received_ns = max(value["received_ns"], self._last_input_ns)
                return BytesIn(value["source"], received_ns, value["wall_ns"], value["data"])
            case "link_up":
                return LinkUp(now_ns, value["source"])
            case "link_down":
                return LinkDown(now_ns, value["source"], value["reason"])
        raise ValueError(f"unknown message {kind!r} from the session")

    # -- the pipeline ------------------------------------------------------------------------------------------

    def _handle(self, item: Input) -> None:
        """Run one input through the pipeline; frames leave first, records follow."""
        started_ns = input_time_ns(item)
        self._last_input_ns = started_ns
        payloads: list[bytes] = []
        others: list[Output] = []
        for output in self.pipeline.handle(item):
            if isinstance(output, GuidanceFrame):
                output.sent_ns = time.monotonic_ns()
                payload = encode_frame(output)
                self.publisher.send(payload, zmq.NOBLOCK)
                payloads.append(payload)
                if output.sent_ns - started_ns > self.deadline_ns:
                    self.missed += 1
            else:
                others.append(output)
        self.records.keep(INPUT, encode_input(item))
        for payload in payloads:
            self.records.keep(FRAME, payload)
        for other in others:
            self._other(other)
        self._report()
        self.rehearsal.follow(item)

    def _other(self, output: Output) -> None:
        match output:
            case Reply():
                self.channel.send({"kind": "reply", "value": msgspec.to_builtins(output)})
            case Note():
                self.records.put(NOTE, msgspec.json.encode(output))
                self.channel.send({"kind": "note", "value": msgspec.to_builtins(output)})
            case EndLink():
                self._end_link(output)
            case ToDevice():
                for client in self.clients:
                    if client.name == output.source:
                        client.obey(output.effect)

    def _tell_of_sources(self, now_ns: int) -> None:
        """Tell the session how the sources stand, for metrics; frames never wait for it, for it follows them."""
        self._sources_due_ns = now_ns + SOURCES_NS
        self.channel.send({"kind": "sources", "value": msgspec.to_builtins(self.pipeline.report_sources(now_ns))})

    def _end_link(self, output: EndLink) -> None:
        for client in self.clients:
            if client.name == output.source:
                self._lose(client, f"protocol: {output.reason}")
                return
        self.channel.send({"kind": "end_link", "value": msgspec.to_builtins(output)})

    def _report(self) -> None:
        """Tell the pipeline what the shell counted, as an input of its own, so that replay sees it too."""
        counted = (self.missed, self.records.lost, self.displays)
        if counted != self._reported:
            self._reported = counted
            report = ShellReport(max(time.monotonic_ns(), self._last_input_ns), *counted)
            self.pipeline.handle(report)
            self.records.keep(INPUT, encode_input(report))


def prefer_real_time(cpu: int | None) -> None:
    """Ask for real-time priority, a core and memory that stays; where that is not allowed, go on without."""
    if cpu is not None:
        with contextlib.suppress(OSError, AttributeError):
            os.sched_setaffinity(0, {cpu})
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REAL_TIME_PRIORITY))
    # Under a limit the call could succeed now and make a later allocation fail.
    if os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """Return a ZeroMQ context whose thread, which writes to the sockets, goes before ours where that is allowed.

    Woken on our core it would else wait until we have made the records of the frame that it is to send.  It is tried
    on ourselves first, since libzmq ends the process where it is refused.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with contextlib.suppress(OSError, AttributeError):
        if os.sched_getscheduler(0) == os.SCHED_FIFO:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REAL_TIME_PRIORITY + 1))
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REAL_TIME_PRIORITY))
            context.set(zmq.THREAD_SCHED_POLICY, os.SCHED_FIFO)
            context.set(zmq.THREAD_PRIORITY, REAL_TIME_PRIORITY + 1)
    return context


def warm_up(setup: Setup) -> None:
    """Run poses through a pipeline of its own, so that every kernel is compiled before the first real one."""
    pipeline = Pipeline(setup)
    for source in setup.sources:
        pipeline.handle(LinkUp(1, source.spec.name))
    identity = tuple(np.eye(4).ravel().tolist())
    pipeline.handle(RegistrationIn(1, "warm", "bench", identity, tuple(np.eye(6).ravel() * 1e-6), 1.0, "accept", ""))
    pipeline.handle(CommandIn(1, "warm", "accept_registration", {"id": "warm"}, "warm"))
    for tool in setup.snapshots:
        found = FoundIn((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), tuple((np.eye(6) * 1e-2).ravel().tolist()))
        pipeline.handle(NeedleIn(1, tool.name, "warm", 1, 1, 1, "", found))
    for step in range(20):
        now = 1_000_000_000 + step * 4_000_000
        for tool in setup.tools:
            messages = [encode_pose(tool.transform, now)]
            if setup.reference is not None:
                messages.append(encode_pose(setup.reference.transform, now))
            pipeline.handle(BytesIn(tool.source, now, now, b"".join(messages)))


def encode_pose(name: str, time_ns: int) -> bytes:
    """Return an identity TRANSFORM with status OK at a time."""
    ok = (Metadata("TransformStatus", "OK"),)
    return encode(Message(name, timestamp_from_ns(time_ns), Transform(np.eye(4)), metadata=ok))


def begin_anew(channel: Channel, boot: LoopBoot) -> NoReturn:
    """Replace this process by a fresh one that finds the kernels on disk: a compiler leaves 100 MB behind."""
    with tempfile.TemporaryFile() as told:
        pickle.dump(boot, told)
        told.seek(0)
        for descriptor in (told.fileno(), channel.fileno()):
            os.set_inheritable(descriptor, True)
        words = [sys.executable, "-m", "navsrv.server.loop", str(channel.fileno()), str(told.fileno())]
        os.execv(sys.executable, words)


def main() -> int:
    """Run as ``python -m navsrv.server.loop FD [BOOT_FD]``; the session holds the other end of the socket pair."""
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    anew = len(sys.argv) > 2
    boot: LoopBoot
    if anew:
        with os.fdopen(int(sys.argv[2]), "rb") as told:
            boot = pickle.load(told)
    else:
        boot = pickle.loads(channel.receive_one(30.0))
    try:
        setup = build_setup(boot.config, Case.load(Path(boot.case_folder)), boot.session)
    except InputError as error:
        channel.send({"kind": "failed", "value": str(error)})
        return 2
    with install_recorder("numba:compile") as compiled:
        warm_up(setup)
    if compiled.buffer and not anew:
        begin_anew(channel, boot)
    prefer_real_time(boot.config.server.loop_cpu)
    try:
        loop = Loop(setup, boot.config, channel, boot.record_endpoint)
    except zmq.ZMQError as error:
        address = f"{boot.config.ports.host}:{boot.config.ports.zmq}"
        channel.send({"kind": "failed", "value": f"ports.zmq: cannot bind {address}: {error}"})
        return 2
    channel.send({"kind": "ready", "value": {"zmq": loop.port}})
    gc.collect()
    gc.freeze()
    gc.disable()
    loop.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
