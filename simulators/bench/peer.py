"""Owns the peer chain: pyigtl's server to pyigtl's client to vtkImplicitPolyDataDistance to ZeroMQ.

It measures the tips against the six structures and no shaft, and publishes the distances alone: less work than ours.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

import msgspec
import numpy as np
import zmq

from navsrv.anatomy.bench_surfaces import bench_meshes
from simulators.bench.parts import path_poses, say, told_end_ns
from simulators.bench.surface_peers import implicit_distance, poly_data

STAMP_HZ: Final = 65536
"""pyigtl keeps stamps as float seconds: whole parts of this go through it unharmed."""


def tracker(rate_hz: float, out: str) -> None:
    """Send needle poses through pyigtl's server at absolute deadlines; keep (stamp, time of the send)."""
    import pyigtl

    server = pyigtl.OpenIGTLinkServer(port=0, local_server=True)
    poses = path_poses(4000)
    say(port=server.server_address[1])
    while not server.is_connected():
        time.sleep(0.01)
    say(linked=True)
    end_ns = told_end_ns()
    sent: list[tuple[int, int]] = []
    start_ns, period_ns = time.monotonic_ns() + 10_000_000, 1e9 / rate_hz
    while (due_ns := start_ns + int(len(sent) * period_ns)) <= end_ns:
        wait_ns = due_ns - time.monotonic_ns()
        if wait_ns > 0:
            time.sleep(wait_ns / 1e9)
        ticks = time.time_ns() * STAMP_HZ // 1_000_000_000
        message = pyigtl.TransformMessage(
            poses[len(sent) % len(poses)], device_name="NeedleToTracker", timestamp=ticks / STAMP_HZ
        )
        now_ns = time.monotonic_ns()
        server.send_message(message, wait=False)
        sent.append((ticks, now_ns))
    np.save(out, np.array(sent, np.int64))
    say(sent=len(sent))
    sys.stdin.readline()
    server.stop()


def guide(port: int, wait: bool) -> None:
    """Receive (as documented, or by tight polling), measure six tips, publish."""
    import pyigtl

    judges = [implicit_distance(poly_data(mesh)) for mesh in bench_meshes().values()]
    for judge in judges:
        judge.EvaluateFunction(0.0, 0.0, 0.0)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    publisher = context.socket(zmq.PUB)
    zmq_port = publisher.bind_to_random_port("tcp://127.0.0.1")
    client = pyigtl.OpenIGTLinkClient("127.0.0.1", port)
    say(zmq=zmq_port)
    while True:
        if wait:
            message = client.wait_for_message("NeedleToTracker", timeout=-1)
        else:
            with client.lock_incoming_messages:
                message = client.incoming_messages.pop("NeedleToTracker", None)
            if message is None:
                time.sleep(50e-6)
                continue
        x, y, z = message.matrix[:3, 3].tolist()
        distances = [judge.EvaluateFunction(x, y, z) for judge in judges]
        ticks = round(message.timestamp * STAMP_HZ)
        frame = {"pose_time_ns": ticks, "distances_mm": distances}
        publisher.send(b"guidance" + msgspec.msgpack.encode(frame))


PARTS: Final[dict[str, Any]] = {"tracker": tracker, "guide": guide}

if __name__ == "__main__":
    PARTS[sys.argv[1]](**json.loads(sys.argv[2]))
