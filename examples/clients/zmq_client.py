"""A display of guidance frames in a few lines: ZeroMQ and msgpack, nothing of navsrv.

Three duties come with a subscription, because a subscriber cannot acknowledge and nobody waits for it:

1. Frames wait in queues while a program is busy.  Each says when it was sent, by the server's monotonic clock; a frame
   older than the limit is dropped, not shown.  On one machine that clock is ours too.  Elsewhere the offset is unknown
   and taken from the fastest frame seen so far: what is then called the age is the age beyond that one's way.
2. A frame that is no longer OK carries no distances.  The last good ones are not shown in their place.
3. The server never falls silent, not even without a tracker.  Silence for 300 ms means that it is gone: FAULT.

    python zmq_client.py --port 18950
"""

import argparse
import contextlib
import time

import msgspec
import zmq

SILENCE_MS = 300


def age_ms(frame: dict, offset_ns: int) -> float:
    """Return how long ago (ms) a frame was sent, by our own clock."""
    return (time.monotonic_ns() + offset_ns - frame["sent_ns"]) / 1e6


def closest(frame: dict) -> str:
    """Return the row of the critical structure whose lower bound is smallest, as text; empty without geometry."""
    rows = [r for r in frame["structures"] if r["kind"] == "critical" and r["lower_mm"] is not None]
    if not rows:
        return ""
    row = min(rows, key=lambda r: r["lower_mm"])
    return f"{row['name']} {row['part']}  {row['distance_mm']:.1f} mm  at least {row['lower_mm']:.1f}  {row['level']}"


def main() -> None:
    """Show frames until interrupted."""
    parser = argparse.ArgumentParser(description="Prints the state and the closest structure of a navsrv server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=18950)
    parser.add_argument("--limit-ms", type=float, default=100.0, help="frames older than this are dropped")
    parser.add_argument("--every", action="store_true", help="print every frame, not five a second")
    args = parser.parse_args()

    socket = zmq.Context().socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"guidance")
    socket.connect(f"tcp://{args.host}:{args.port}")
    local = args.host in ("127.0.0.1", "localhost", "::1")
    offset_ns = 0  # the server's monotonic clock less ours
    dropped, silent, printed_ns = 0, False, 0
    while True:
        if not socket.poll(SILENCE_MS):
            if not silent:
                print(f"FAULT  no frame for more than {SILENCE_MS} ms", flush=True)
            silent = True
            continue
        frame = msgspec.msgpack.decode(socket.recv()[len(b"guidance") :])
        if not local:
            seen_ns = frame["sent_ns"] - time.monotonic_ns()
            offset_ns = max(offset_ns, seen_ns) if offset_ns else seen_ns
        age = age_ms(frame, offset_ns)
        if age > args.limit_ms:
            dropped += 1
            continue
        silent = False
        if args.every or time.monotonic_ns() - printed_ns > 200_000_000:
            printed_ns = time.monotonic_ns()
            what = closest(frame) or frame["reason"]
            print(f"{frame['state']}  {frame['tool']}  {what}  age {age:.1f} ms  dropped {dropped}", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
