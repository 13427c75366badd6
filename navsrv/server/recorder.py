"""Owns the recording: a process of its own that writes what the others send into one MCAP file.

Channels: ``input`` (msgpack, everything that can change a frame), ``guidance`` (the frames as sent), ``note`` (JSON
log), ``image`` (JSON facts of each exposure).  The metadata record ``session`` holds the configuration and the identity
of the case, so that replay builds the same pipeline.  Chunks are small, so that a torn file loses little, but of no
less than ``CHUNK_S``: the index of a chunk, 2 kB, stays in memory until the file is closed.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Final

import zmq
from mcap.writer import CompressionType, Writer

from navsrv.server.channel import Channel, ChannelClosed
from navsrv.server.processes import give_way
from navsrv.server.records import CHANNELS, FRAME, IMAGE, INPUT, NOTE, STOP, unpack

CHUNK_BYTES: Final = 32 * 1024
"""Least size of a chunk."""
MOST_CHUNK_BYTES: Final = 1 << 20
CHUNK_S: Final = 0.3
"""What a chunk holds at least, of poses at the declared rates."""
POSE_BYTES: Final = 2048
"""About what one pose leaves in a recording: the bytes that came, and the frame."""
_ENCODING: Final = {INPUT: "msgpack", FRAME: "msgpack", NOTE: "json", IMAGE: "json"}


class Recording:
    """One MCAP file that is being written; ``rate_hz`` of poses are expected."""

    def __init__(self, path: Path, metadata: dict[str, str], rate_hz: float = 0.0) -> None:
        self._file = path.open("wb")
        chunk = min(max(CHUNK_BYTES, int(CHUNK_S * rate_hz * POSE_BYTES)), MOST_CHUNK_BYTES)
        self._writer = Writer(self._file, chunk_size=chunk, compression=CompressionType.ZSTD)
        self._writer.start(profile="navsrv", library="navsrv")
        self._channels = {
            kind: self._writer.register_channel(topic=topic, message_encoding=_ENCODING[kind], schema_id=0)
            for kind, topic in CHANNELS.items()
        }
        self._sequence = dict.fromkeys(CHANNELS, 0)
        self._writer.add_metadata("session", metadata)

    def add(self, record: bytes) -> None:
        """Write one record as it came from a sink."""
        kind, wall_ns, content = unpack(record)
        self._sequence[kind] += 1
        self._writer.add_message(
            self._channels[kind], log_time=wall_ns, data=content, publish_time=wall_ns, sequence=self._sequence[kind]
        )

    def finish(self) -> None:
        """Write the index and close."""
        self._writer.finish()  # type: ignore[no-untyped-call]
        self._file.close()


def main() -> int:
    """Run as ``python -m navsrv.server.recorder FD``."""
    give_way()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    boot = channel.receive_one(30.0)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    puller = context.socket(zmq.PULL)
    puller.setsockopt(zmq.RCVHWM, 200_000)
    puller.bind(boot["endpoint"])
    try:
        recording = Recording(Path(boot["path"]), boot["metadata"], boot["rate_hz"])
    except OSError as error:
        channel.send({"kind": "failed", "value": f"{boot['path']}: cannot record: {error}"})
        return 2
    channel.send({"kind": "ready", "value": {}})
    try:
        _pump(puller, channel, recording)
    finally:
        recording.finish()
    return 0


def _pump(puller: zmq.Socket[bytes], channel: Channel, recording: Recording) -> None:
    """Write what comes until the session says stop, or is gone and nothing comes any more."""
    poller = zmq.Poller()
    poller.register(puller, zmq.POLLIN)
    poller.register(channel.fileno(), zmq.POLLIN)
    orphan = False
    while True:
        ready = dict(poller.poll(500 if orphan else None))
        if puller in ready:
            for record in puller.recv_multipart():
                if record[:1] == STOP:
                    return
                recording.add(record)
        elif orphan:
            return
        if channel.fileno() in ready and not orphan:
            try:
                channel.receive()
            except ChannelClosed:
                orphan = True
                poller.unregister(channel.fileno())


if __name__ == "__main__":
    sys.exit(main())
