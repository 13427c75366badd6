"""Owns one session of the server: its processes, ports, images, registrations and commands.

This process waits for everything that is not a pose; the loop, the hub, the recorder and the registration worker are
its children.  When one of them ends unasked, the session ends too and says so: a display then sees silence, which it
shows as FAULT.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pickle
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zmq
import zmq.asyncio

from calibration.landmarks import solve_landmarks
from navsrv.anatomy.case import Case
from navsrv.anatomy.home import navsrv_home
from navsrv.kernel.errors import CalibrationError, InputError, RegistrationError
from navsrv.kernel.frames import REFERENCE, Array
from navsrv.kernel.registration import RegistrationResult
from navsrv.kernel.samples import VolumeSample
from navsrv.server.boots import HubBoot, LoopBoot
from navsrv.server.carm_lines import CarmLine
from navsrv.server.channel import ChannelClosed
from navsrv.server.config import resolved
from navsrv.server.config_tables import Config
from navsrv.server.dicom_intake import DicomIntake, Tellings
from navsrv.server.fluoroscopy import write_fluoroscopy
from navsrv.server.grabbers import CarmVideo
from navsrv.server.imaging import DeviceListener
from navsrv.server.operations import OPERATIONS, Refused, listing
from navsrv.server.placing import Arrival, Exposure, Placing, middle_mm, with_calibration
from navsrv.server.processes import Child, give_way
from navsrv.server.projections import pair_covariance
from navsrv.server.records import IMAGE, NOTE, STOP, RecordSink
from navsrv.server.registering import VIEWS_CT, PairJob, VolumeJob, prepare, register_pair, register_volume
from navsrv.server.snapshots import NoImages, Snapshots, Ways

log = logging.getLogger("navsrv")

START_TIMEOUT_S = 120.0
REPLY_TIMEOUT_S = 2.0


class Session:
    """Everything of one ``navsrv serve``."""

    def __init__(self, config: Config, case: Case) -> None:
        self.config = config
        self.case = case
        self.id = time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(3)
        self.folder = Path(tempfile.mkdtemp(prefix="navsrv-"))
        self.recording: Path | None = None
        self._recorder: Child | None = None
        self._context: zmq.asyncio.Context = zmq.asyncio.Context()
        self._sync_context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._records = RecordSink(self._sync_context, None)
        self._replies: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._landmarks: dict[str, tuple[list[float], list[float]]] = {}
        self._registrations = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended: asyncio.Future[str | None]
        self._children: list[Child] = []
        self._dicom: DicomIntake | None = None
        self._lines: list[CarmLine | CarmVideo] = []
        self._worker = ProcessPoolExecutor(1, get_context("spawn"), give_way)
        self._placing = Placing(config, self._ask_loop, self._note)
        ways = Ways(self._to_loop, self._note, self._newest_registration)
        self._snapshots = Snapshots(config, case, ways)

    # -- life --------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Start everything, print the ready line, serve until told to stop; return the exit status."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        try:
            ports = await self._start()
        except BaseException:
            self._stop()
            if self.recording is not None:
                self.recording.unlink(missing_ok=True)
            raise
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end, None)
        ready = {"ready": True, "ports": ports, "case": self.case.name, "session": self.id}
        ready["recording"] = None if self.recording is None else str(self.recording)
        print(json.dumps(ready), flush=True)
        try:
            failure = await self._ended
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)  # ending is not to be interrupted: it leaves nothing behind
            await self._listener.end_all()
            self._stop()
        if failure is not None:
            print(f"navsrv: {failure}", file=sys.stderr)
            return 1
        return 0

    async def _start(self) -> dict[str, int | None]:
        loop = asyncio.get_running_loop()
        host, wanted = self.config.ports.host, self.config.ports
        commands = self._bind_commands(host, wanted.commands)
        self._listener = DeviceListener(
            self.config,
            self._placing,
            self._on_arrival,
            self._forward_bytes,
            self._forward_link,
            self._note,
            lambda reading: self._to_loop("sensor", reading),
        )
        try:
            self._device_server, devices = await self._listener.serve(host, wanted.devices)
        except OSError as error:
            raise InputError(_port_fault("devices", host, wanted.devices, error)) from None
        self._lines = [
            CarmLine(name, imaging, self._placing.give, self._placing.lose, self._note)
            for name, imaging in self.config.imaging.items()
            if imaging.encoders is not None
        ]
        self._placing.straighten = {line.name: line.straightened for line in self._lines if isinstance(line, CarmLine)}
        self._lines += [
            CarmVideo(name, imaging, self.folder, self._on_arrival, self._placing.refuse, self._note)
            for name, imaging in self.config.imaging.items()
            if imaging.grabber is not None
        ]
        if self.config.dicom is not None:
            tell = Tellings(self._on_arrival, self._note, self._tell_dicom_counts)
            self._dicom = DicomIntake(self.config, self.folder, self._placing, tell)
        endpoint = self._start_recorder()
        boot = LoopBoot(resolved(self.config), str(self.case.folder), self.id, endpoint)
        self._loop = self._child("loop", "navsrv.server.loop", pickle.dumps(boot))
        zmq_port = (await asyncio.to_thread(self._loop.wait_ready, START_TIMEOUT_S))["zmq"]
        hub = HubBoot(self.config, str(self.case.folder), str(self.folder), host, zmq_port, commands)
        self._hub = self._child("hub", "navsrv.server.hub", pickle.dumps(hub))
        hub_ports = await asyncio.to_thread(self._hub.wait_ready, START_TIMEOUT_S)
        loop.add_reader(self._loop.channel.fileno(), self._from_loop)
        loop.add_reader(self._hub.channel.fileno(), self._from_hub)
        if self._recorder is not None:
            loop.add_reader(self._recorder.channel.fileno(), self._from_recorder)
        for line in self._lines:
            line.start()
        self._spawn(self._serve_commands())
        self._worker.submit(prepare, str(self.case.folder))
        return {
            "openigtlink": hub_ports["openigtlink"],
            "openigtlink_1": hub_ports.get("openigtlink_1"),
            "devices": devices,
            "zmq": zmq_port,
            "commands": commands,
            "http": hub_ports["http"],
            "dicom": None if self._dicom is None else await self._dicom.wait_ready(),
        }

    def _child(self, name: str, module: str, boot: Any) -> Child:
        child = Child(name, module, boot)
        self._children.append(child)
        return child

    def _start_recorder(self) -> str | None:
        if not self.config.recording.on:
            return None
        folder = Path(self.config.recording.folder or navsrv_home() / "recordings").expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"recording.folder: {folder}: {error.strerror}; expected a folder to write in") from None
        path = folder / f"{self.id}.mcap"
        endpoint = f"ipc://{self.folder}/records"
        metadata = {
            "navsrv": version("navsrv"),
            "session": self.id,
            "case": self.case.name,
            "case_folder": str(self.case.folder.resolve()),
            "case_sha256": self.case.sha256,
            "config": msgspec.json.encode(self.config).decode(),
        }
        rate_hz = sum(tracker.rate_hz for tracker in self.config.trackers.values())
        boot = {"endpoint": endpoint, "path": str(path), "metadata": metadata, "rate_hz": rate_hz}
        self._recorder = self._child("recorder", "navsrv.server.recorder", boot)
        self.recording = path
        self._recorder.wait_ready(START_TIMEOUT_S)
        self._records = RecordSink(self._sync_context, endpoint)
        return endpoint

    def _end(self, failure: str | None) -> None:
        if not self._ended.done():
            self._ended.set_result(failure)

    def _stop(self) -> None:
        """End the children in the order that loses nothing: the loop flushes its records before the recorder ends."""
        loop = asyncio.get_running_loop()
        for task in self._tasks:
            task.cancel()
        for child in self._children:
            loop.remove_reader(child.channel.fileno())
        if self._dicom is not None:
            self._dicom.stop()
        for child in reversed([c for c in self._children if c.name != "recorder"]):
            child.stop()
        # Asked before the pool forgets them: a registration that is running must not hold up the end.
        self._snapshots.stop()
        for line in self._lines:
            line.stop()
        workers = list((self._worker._processes or {}).values())
        self._worker.shutdown(wait=False, cancel_futures=True)
        for process in workers:
            process.terminate()
            process.join(2.0)
        if self._recorder is not None:
            self._records.put(STOP, b"")
            self._records.close()
            self._recorder.stop(10.0)
        for path in self.folder.glob("*"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("internal error", exc_info=error)
            self._end(f"internal error: {error!r}")

    # -- the loop and the hub ----------------------------------------------------------------------------------

    def _from_loop(self) -> None:
        try:
            messages = self._loop.channel.receive()
        except ChannelClosed:
            self._end("the loop process ended by itself; restart the server")
            return
        for message in messages:
            value = message["value"]
            if message["kind"] == "reply":
                waiting = self._replies.pop(value["id"], None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(value)
            elif message["kind"] == "note":
                self._log(value["event"], value["text"])
            elif message["kind"] == "sources":
                others = [line.report() for line in self._lines] + self._placing.reports()
                value += [msgspec.to_builtins(report) for report in others]
                with contextlib.suppress(ChannelClosed):
                    self._hub.channel.send(message)
            elif message["kind"] == "end_link":
                self._listener.end(value["source"])

    def _from_hub(self) -> None:
        try:
            for message in self._hub.channel.receive():
                if message["kind"] == "displays":
                    self._to_loop("displays", message["value"])
        except ChannelClosed:
            self._end("the display hub ended by itself; restart the server")

    def _from_recorder(self) -> None:
        """A recording that stops by itself is an alarm; guidance goes on without it."""
        assert self._recorder is not None
        try:
            self._recorder.channel.receive()
        except ChannelClosed:
            asyncio.get_running_loop().remove_reader(self._recorder.channel.fileno())
            print(f"navsrv: the recorder ended by itself; {self.recording} is not complete", file=sys.stderr)
            self._log("recorder_lost", "the recorder ended by itself")
            self._to_loop("recorder_lost", {})

    def _to_loop(self, kind: str, value: Any) -> None:
        try:
            self._loop.channel.send({"kind": kind, "value": value})
        except ChannelClosed as error:
            self._end(f"the loop process is gone: {error}")

    async def _ask_loop(self, op: str, args: dict[str, Any], role: str) -> Any:
        """Return the loop's answer to a command; Refused with its reason."""
        key = secrets.token_hex(6)
        waiting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._replies[key] = waiting
        self._to_loop("command", {"id": key, "op": op, "args": args, "role": role})
        try:
            reply = await asyncio.wait_for(waiting, REPLY_TIMEOUT_S)
        except TimeoutError:
            self._replies.pop(key, None)
            raise Refused("the loop did not answer in time") from None
        if not reply["ok"]:
            raise Refused(reply["value"])
        return reply["value"]

    # -- devices -----------------------------------------------------------------------------------------------

    def _forward_bytes(self, source: str, received_ns: int, wall_ns: int, data: bytes) -> None:
        self._to_loop("bytes", {"source": source, "received_ns": received_ns, "wall_ns": wall_ns, "data": data})

    def _tell_dicom_counts(self, counts: dict[str, int]) -> None:
        with contextlib.suppress(ChannelClosed):
            self._hub.channel.send({"kind": "dicom", "value": counts})

    def _forward_link(self, source: str, down: str | None) -> None:
        if down is None:
            self._to_loop("link_up", {"source": source})
        else:
            self._to_loop("link_down", {"source": source, "reason": down})

    def _on_arrival(self, arrival: Arrival) -> None:
        self._spawn(self._use_image(arrival))

    async def _use_image(self, arrival: Arrival) -> None:
        exposure = await self._placing.place(arrival)
        if exposure is None:
            return
        T_ref_from_image = exposure.T_ref_from_image.ravel().tolist()
        facts = {
            "source": exposure.source,
            "time_ns": exposure.image.device_time_ns,
            "T_ref_from_image": T_ref_from_image,
        }
        self._records.put(IMAGE, json.dumps(facts).encode())
        if exposure.config.kind == "projection":
            written = await asyncio.to_thread(write_fluoroscopy, self.folder, exposure)
            self._note("projection", f"{exposure.source}: X-ray {written}")
        elif exposure.config.register:
            await self._register_volume(exposure)
        await self._snapshots.take(exposure)

    async def _newest_registration(self) -> Array | None:
        """Return T_ct_from_ref (4, 4) of the newest registration, whether accepted or not; None without one."""
        if not self._registrations:
            return None
        try:
            described = await self._ask_loop("describe_registration", {"id": f"R{self._registrations}"}, "session")
        except Refused:
            return None
        return np.array(described["T_ct_from_ref"]).reshape(4, 4)

    # -- registration ------------------------------------------------------------------------------------------

    async def _register_volume(self, exposure: Exposure) -> None:
        self._note("registration_started", f"{exposure.source}: registering the volume to the CT")
        self._registrations += 1
        name = f"R{self._registrations}"
        assert isinstance(exposure.image, VolumeSample)
        overlay = self.folder / f"registration-{name}.png"
        place = exposure.T_ref_from_image
        covariance = with_calibration(exposure.covariance, exposure.config, middle_mm(exposure.image, place))
        job = VolumeJob(str(self.case.folder), exposure.image, place, covariance, str(overlay))
        await self._register(name, exposure.source, register_volume, job)

    async def _register(
        self, name: str, source: str, work: Callable[[Any], RegistrationResult], job: Any
    ) -> str | None:
        """Register in the worker and propose the result; return why there is none."""
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._worker, work, job)
        except (InputError, RegistrationError) as error:
            self._note("registration_failed", f"{source}: {error}")
            return str(error)
        self._propose(name, result)
        return None

    async def _register_xrays(self, source: str | None, seen: str) -> dict[str, Any]:
        """Register the newest pair of X-rays; Refused where there is none or it cannot carry a registration."""
        sources = self._snapshots.shelf.sources
        if source is None and len(sources) == 1:
            (source,) = sources
        if source not in sources:
            raise Refused(
                f"args.source: {source!r}; expected one that X-rays came from: {', '.join(sources) or 'none'}"
            )
        if seen not in VIEWS_CT:
            raise Refused(f"args.seen: {seen!r}; expected one of {', '.join(VIEWS_CT)}")
        pair = self._snapshots.shelf.pair(source)
        if pair is None:
            raise Refused(f"{source}: no two X-rays from clearly different sides yet")
        self._note("registration_started", f"{source}: registering two X-rays to the CT")
        self._registrations += 1
        name = f"R{self._registrations}"
        overlay = self.folder / f"registration-{name}.png"
        covariance = pair_covariance(pair, self.config.imaging[source])
        job = PairJob(str(self.case.folder), pair, seen, covariance, str(overlay))
        failed = await self._register(name, source, register_pair, job)
        if failed is not None:
            raise Refused(failed)
        return {"id": name}

    def _propose(self, name: str, result: RegistrationResult) -> None:
        covariance = result.transform.covariance
        value = {
            "id": name,
            "method": result.method,
            "T_ct_from_ref": result.transform.matrix.ravel().tolist(),
            "covariance": (np.zeros((6, 6)) if covariance is None else covariance).ravel().tolist(),
            "tre_mm": float(result.tre_mm),
            "verdict": result.verdict.value,
            "reason": result.reason,
        }
        self._to_loop("registration", value)
        self._spawn(self._snapshots.registered())

    # -- commands ----------------------------------------------------------------------------------------------

    def _bind_commands(self, host: str, port: int) -> int:
        self._router = self._context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.LINGER, 0)
        try:
            self._router.bind(f"tcp://{host}:{port or '*'}")
        except zmq.ZMQError as error:
            raise InputError(_port_fault("commands", host, port, error)) from None
        endpoint: bytes = self._router.getsockopt(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
        return int(endpoint.rpartition(b":")[2].rstrip(b"\0"))

    async def _serve_commands(self) -> None:
        while True:
            *route, body = await self._router.recv_multipart()
            self._spawn(self._answer(route, body))

    async def _answer(self, route: list[bytes], body: bytes) -> None:
        try:
            answer = msgspec.msgpack.encode(await self._carry_out(body))
        except Exception as error:
            # One request must not end the session, whatever is in it.
            log.exception("a command failed")
            answer = msgspec.msgpack.encode({"id": None, "ok": False, "error": f"internal error: {error!r}"[:200]})
        await self._router.send_multipart([*route, answer])

    async def _carry_out(self, body: bytes) -> dict[str, Any]:
        try:
            request = msgspec.msgpack.decode(body)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return {"id": None, "ok": False, "error": "not msgpack; expected one map {id, op, args, token}"}
        if not isinstance(request, dict) or "id" not in request or not isinstance(request.get("op"), str):
            return {"id": None, "ok": False, "error": "expected a map {id, op, args, token}"}
        op, args = request["op"], request.get("args", {})
        role = "display" if request.get("via") == "display" else "program"
        operation = OPERATIONS.get(op)
        fault = f"unknown operation {op!r}" if operation is None else operation.fault(args)
        if operation is None or fault is not None:
            self._note("command_refused", f"{op} by {role}: {fault}")
            return {"id": request["id"], "ok": False, "error": fault}
        try:
            if operation.by == "loop":
                result = await self._ask_loop(op, args, role)
            else:
                result = await self._own_command(op, args, role)
        except (Refused, CalibrationError) as refusal:
            self._note("command_refused", f"{op} by {role}: {refusal}")
            return {"id": request["id"], "ok": False, "error": str(refusal)}
        return {"id": request["id"], "ok": True, "result": result}

    async def _own_command(self, op: str, args: dict[str, Any], role: str) -> Any:
        if op == "list_operations":
            return listing()
        self._note("command", f"{op} by {role}")
        match op:
            case "collect_landmark":
                tip = await self._ask_loop("sample_tip", {"tool": args["tool"]}, role)
                self._landmarks[args["name"]] = (tip["tip_ref_mm"], [float(x) for x in args["point_ct_mm"]])
                return {"tip_ref_mm": tip["tip_ref_mm"], "collected": len(self._landmarks)}
            case "register_xrays":
                return await self._register_xrays(args.get("source"), args["seen"])
            case "find_needle":
                try:
                    return await self._snapshots.find(args.get("tool"), args.get("near_ct_mm"))
                except NoImages as reason:
                    raise Refused(str(reason)) from None
            case "clear_landmarks":
                self._landmarks.clear()
                return None
            case "register_landmarks":
                return self._register_landmarks()
        raise Refused(f"{op}: not carried out here")

    def _register_landmarks(self) -> dict[str, Any]:
        pairs = list(self._landmarks.values())
        touched = np.array([pair[0] for pair in pairs]).reshape(-1, 3)
        points = np.array([pair[1] for pair in pairs]).reshape(-1, 3)
        target = self.case.plan.target_ct_mm if self.case.plan is not None else points.mean(axis=0)
        result = solve_landmarks(touched, points, frm=REFERENCE, target_ct_mm=target)
        self._registrations += 1
        name = f"R{self._registrations}"
        self._propose(name, result)
        return {
            "id": name,
            "fre_mm": result.residual_mm,
            "tre_mm": result.tre_mm,
            "verdict": result.verdict.value,
            "reason": result.reason,
        }

    # -- the log -----------------------------------------------------------------------------------------------

    def _note(self, event: str, text: str) -> None:
        note = {"now_ns": time.monotonic_ns(), "event": event, "text": text, "fields": {}}
        self._records.put(NOTE, json.dumps(note).encode())
        self._log(event, text)

    def _log(self, event: str, text: str) -> None:
        log.info("%s: %s", event, text)


def _port_fault(name: str, host: str, port: int, error: Exception) -> str:
    text = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return f"ports.{name}: cannot listen on {host}:{port} ({text}); expected a free port, or 0 for any"


async def serve(config: Config, case: Case) -> int:
    """Run one session; return the exit status.

    Raises
    ------
    InputError
        A port in use, a folder that cannot be written: before anything was served.
    """
    return await Session(config, case).run()
