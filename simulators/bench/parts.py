"""Owns the processes around a measured chain: the tracker that sends, the displays that receive.

``python -m simulators.bench.parts NAME {json}``: each prints one JSON line when it is ready, waits for a line with the
monotonic time (ns) at which all end, and prints one JSON line of what it saw.  Times go to files, not through pipes.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import sys
import time
from typing import Any, Final

import msgspec
import numpy as np
import zmq

from navsrv.wire.openigtlink import Message, Metadata, Transform, encode, ns_from_timestamp, timestamp_from_ns

STAMP_AT: Final = 34
"""Where the stamp stands in an OpenIGTLink header: after version, type name and device name."""
_KEY: Final = b"\xacpose_time_ns\xcf"
"""The key as msgpack writes it, and the mark of an unsigned 64-bit number after it."""
_JSON_STAMP: Final = re.compile(r'"pose_time_ns":\s*"(\d+)"')
_JSON_SEQ: Final = re.compile(r'"seq":\s*(\d+)')


def say(**values: Any) -> None:
    """Print one JSON line."""
    print(json.dumps(values), flush=True)


def told_end_ns() -> int:
    """Return the monotonic time (ns) at which to end, when it has been told."""
    return int(sys.stdin.readline())


def path_poses(steps: int) -> list[np.ndarray[Any, Any]]:
    """Return (4, 4) needle poses of a smooth path past and into the structures and back, about 0.1 mm a step."""
    poses = []
    for t in np.abs(np.linspace(-1.0, 1.0, steps)):
        axis = np.array([0.3 + 0.2 * np.sin(2 * t), 0.8, -0.5 + 0.3 * np.cos(3 * t)])
        axis /= np.linalg.norm(axis)
        side = np.cross(axis, (1.0, 0.0, 0.0))
        side /= np.linalg.norm(side)
        pose = np.eye(4)
        pose[:3, :3] = np.column_stack([side, np.cross(axis, side), axis])
        pose[:3, 3] = (70 * np.sin(3 * t + 1), -60 + 50 * np.cos(2.3 * t), 60 - 100 * t)
        poses.append(pose)
    return poses


def tracker(rate_hz: float, out: str) -> None:
    """Send needle and reference in one write at absolute deadlines; keep (stamp, time of the send)."""
    listener = socket.create_server(("127.0.0.1", 0))
    ok = (Metadata("TransformStatus", "OK"),)
    reference = encode(Message("ReferenceToTracker", 0, Transform(np.eye(4)), metadata=ok))
    needles = [encode(Message("NeedleToTracker", 0, Transform(p), metadata=ok)) for p in path_poses(4000)]
    pairs = [bytearray(needle + reference) for needle in needles]
    second = len(needles[0]) + STAMP_AT
    say(port=listener.getsockname()[1])
    link, _ = listener.accept()
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    say(linked=True)
    end_ns = told_end_ns()
    # The check sum is over the body, so that a stamp may be written into a message that is ready.
    stamp_of = struct.Struct(">Q")
    sent: list[tuple[int, int]] = []
    start_ns, period_ns = time.monotonic_ns() + 10_000_000, 1e9 / rate_hz
    while True:
        due_ns = start_ns + int(len(sent) * period_ns)
        if due_ns > end_ns:
            break
        wait_ns = due_ns - time.monotonic_ns()
        if wait_ns > 0:
            time.sleep(wait_ns / 1e9)
        pair = pairs[len(sent) % len(pairs)]
        raw = timestamp_from_ns(time.time_ns())
        stamp_of.pack_into(pair, STAMP_AT, raw)
        stamp_of.pack_into(pair, second, raw)
        now_ns = time.monotonic_ns()
        link.sendall(pair)
        sent.append((ns_from_timestamp(raw), now_ns))
    np.save(out, np.array(sent, np.int64))
    say(sent=len(sent), late_ms=(time.monotonic_ns() - end_ns) / 1e6)
    sys.stdin.readline()  # the link stays until the others have received what is under way


def subscribe(context: zmq.Context[zmq.Socket[bytes]], port: int) -> zmq.Socket[bytes]:
    """Return a subscriber of everything."""
    subscriber = context.socket(zmq.SUB)
    subscriber.setsockopt(zmq.SUBSCRIBE, b"")
    subscriber.setsockopt(zmq.RCVHWM, 100_000)
    subscriber.setsockopt(zmq.RCVTIMEO, 100)
    subscriber.connect(f"tcp://127.0.0.1:{port}")
    return subscriber


def stamp_in(payload: bytes) -> int | None:
    """Return the pose's stamp in a frame, without decoding the rest of it; None in a frame without a pose."""
    at = payload.find(_KEY)
    return None if at < 0 else int.from_bytes(payload[at + len(_KEY) : at + len(_KEY) + 8])


def loop_times(payload: bytes) -> tuple[int, int]:
    """Return when the loop read the pose and when it sent the frame, by the frame; zeros where it does not say."""
    try:
        frame = msgspec.msgpack.decode(payload[len(b"guidance") :])
        return int(frame["received_ns"]), int(frame["sent_ns"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return 0, 0


def meter(port: int, out: str) -> None:
    """Receive alone in a process; keep (stamp, arrival, read and sent by the loop) of each stamp's first frame."""
    subscriber = subscribe(zmq.Context(), port)
    say(ready=True)
    end_ns = told_end_ns()
    received: list[tuple[int, bytes]] = []
    while time.monotonic_ns() < end_ns:
        try:
            payload = subscriber.recv()
        except zmq.Again:
            continue
        received.append((time.monotonic_ns(), payload))
    first: dict[int, tuple[int, int, int]] = {}
    for arrived_ns, payload in received:
        stamp = stamp_in(payload)
        if stamp is not None and stamp not in first:
            first[stamp] = (arrived_ns, *loop_times(payload))
    np.save(out, np.array([(k, *v) for k, v in first.items()], np.int64).reshape(-1, 4))
    ours = bool(received) and any(loop_times(received[-1][1]))
    last = msgspec.msgpack.decode(received[-1][1][len(b"guidance") :]) if ours else {}
    counts = {name: last.get(name, 0) for name in ("skipped_poses", "missed_deadlines")}
    say(**counts, frames=len(received), bytes=float(np.median([len(p) for _, p in received])) if received else 0.0)


def zeromq(port: int, count: int, stalled: int, out: str) -> None:
    """Receive as ``count`` displays; the last ``stalled`` of them never read.  Keep the stamps of each."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    subscribers = [subscribe(context, port) for _ in range(count)]
    poller = zmq.Poller()
    for subscriber in subscribers[: count - stalled]:
        poller.register(subscriber, zmq.POLLIN)
    seen: dict[zmq.Socket[bytes], set[int]] = {s: set() for s in subscribers[: count - stalled]}
    say(ready=True)
    end_ns = told_end_ns()
    while time.monotonic_ns() < end_ns:
        for subscriber, _ in poller.poll(100):
            stamp = stamp_in(subscriber.recv(zmq.NOBLOCK))
            if stamp is not None:
                seen[subscriber].add(stamp)
    save_stamps(out, list(seen.values()))


def save_stamps(out: str, seen: list[set[int]]) -> None:
    """Write the stamps that each display saw, and say how many."""
    np.savez(out, *[np.array(sorted(s), np.int64) for s in seen])
    say(displays=len(seen))


def websocket(port: int, count: int, stalled: int, out: str) -> None:
    """Receive as ``count`` browsers, acknowledging each frame; the last ``stalled`` never read nor acknowledge."""
    asyncio.run(_websockets(port, count, stalled, out))


async def _websockets(port: int, count: int, stalled: int, out: str) -> None:
    import aiohttp

    seen: list[set[int]] = [set() for _ in range(count - stalled)]
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/ws"
        sockets = [await session.ws_connect(url, max_msg_size=0) for _ in range(count)]

        async def read(ws: aiohttp.ClientWebSocketResponse, stamps: set[int]) -> None:
            async for message in ws:
                found, seq = _JSON_STAMP.search(message.data), _JSON_SEQ.search(message.data)
                if seq is not None:
                    await ws.send_str(f'{{"ack": {seq[1]}, "t_client": 0}}')
                if found is not None:
                    stamps.add(int(found[1]))

        say(ready=True)
        readers = [asyncio.ensure_future(read(ws, s)) for ws, s in zip(sockets[: count - stalled], seen, strict=True)]
        end_ns = await asyncio.to_thread(told_end_ns)
        await asyncio.sleep(max(0.0, (end_ns - time.monotonic_ns()) / 1e9))
        for reader in readers:
            reader.cancel()
        save_stamps(out, seen)


def openigtlink(port: int, count: int, stalled: int, out: str) -> None:
    """Receive as ``count`` OpenIGTLink displays; count the stamps of ``NeedleTipToCT``."""
    asyncio.run(_openigtlink(port, count, stalled, out))


async def _openigtlink(port: int, count: int, stalled: int, out: str) -> None:
    seen: list[set[int]] = [set() for _ in range(count - stalled)]
    links = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]

    async def read(reader: asyncio.StreamReader, stamps: set[int]) -> None:
        while True:
            header = await reader.readexactly(58)
            _, _, device, raw, size, _ = struct.unpack(">H12s20sQQQ", header)
            await reader.readexactly(size)
            if device.rstrip(b"\0") == b"NeedleTipToCT":
                stamps.add(ns_from_timestamp(raw))

    say(ready=True)
    readers = [asyncio.ensure_future(read(link[0], s)) for link, s in zip(links, seen, strict=False)]
    end_ns = await asyncio.to_thread(told_end_ns)
    await asyncio.sleep(max(0.0, (end_ns - time.monotonic_ns()) / 1e9))
    for reader in readers:
        reader.cancel()
    save_stamps(out, seen)


def relay(port: int, payload_bytes: int) -> None:
    """The floor: read the tracker's bytes, send a payload of a frame's size with the stamp in it, nothing else."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    publisher = context.socket(zmq.PUB)
    publisher.setsockopt(zmq.SNDHWM, 1000)
    zmq_port = publisher.bind_to_random_port("tcp://127.0.0.1")
    link = socket.create_connection(("127.0.0.1", port))
    rest = bytes(max(0, payload_bytes - len(_KEY) - 16))
    say(zmq=zmq_port)
    while data := link.recv(1 << 16):
        raw = int.from_bytes(data[STAMP_AT : STAMP_AT + 8])
        publisher.send(b"guidance" + _KEY + ns_from_timestamp(raw).to_bytes(8) + rest, zmq.NOBLOCK)


def echo(port: int) -> None:
    """The other end of the ping-pong."""
    link = socket.create_connection(("127.0.0.1", port))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := link.recv(1 << 16):
        link.sendall(data)


PARTS: Final = {f.__name__: f for f in (tracker, meter, zeromq, websocket, openigtlink, relay, echo)}

if __name__ == "__main__":
    PARTS[sys.argv[1]](**json.loads(sys.argv[2]))
