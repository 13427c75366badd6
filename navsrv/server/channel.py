"""Owns messages between our own processes: msgpack values with a length before them, over a Unix socket pair."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from typing import Any, Final

import msgspec

_LENGTH: Final = struct.Struct("<I")
_READ: Final = 1 << 16


class ChannelClosed(Exception):
    """The other process has gone."""


class Channel:
    """One end of a socket pair.  Sending never blocks for longer than ``patience_s``: a peer that is stuck is gone."""

    def __init__(self, sock: socket.socket, patience_s: float = 2.0) -> None:
        self.socket = sock
        self._patience_s = patience_s
        self._buffer = bytearray()
        sock.setblocking(False)

    def fileno(self) -> int:
        """The descriptor, for a selector."""
        return self.socket.fileno()

    def send(self, value: Any) -> None:
        """Send one value; ChannelClosed when the other side is gone or does not read."""
        body = msgspec.msgpack.encode(value)
        view = memoryview(_LENGTH.pack(len(body)) + body)
        while view:
            try:
                view = view[self.socket.send(view) :]
            except BlockingIOError:
                if not select.select([], [self.socket], [], self._patience_s)[1]:
                    raise ChannelClosed("the other process does not read") from None
            except OSError as error:
                raise ChannelClosed(str(error)) from None

    def receive(self) -> list[Any]:
        """Return the values that have come; never waits.  ChannelClosed at the end of the stream."""
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    data = self.socket.recv(_READ)
                except ConnectionError as error:
                    raise ChannelClosed(str(error)) from None
                if not data:
                    raise ChannelClosed("the other process has ended")
                self._buffer += data
                if len(data) < _READ:
                    break
        return self._take()

    def receive_one(self, timeout_s: float) -> Any:
        """Return the next value, waiting at most ``timeout_s``; TimeoutError after that."""
        while True:
            values = self._take(1)
            if values:
                return values[0]
            if not select.select([self.socket], [], [], timeout_s)[0]:
                raise TimeoutError(f"no answer within {timeout_s:g} s")
            data = self.socket.recv(_READ)
            if not data:
                raise ChannelClosed("the other process has ended")
            self._buffer += data

    def _take(self, most: int | None = None) -> list[Any]:
        values: list[Any] = []
        while len(self._buffer) >= _LENGTH.size and (most is None or len(values) < most):
            (length,) = _LENGTH.unpack_from(self._buffer)
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            values.append(msgspec.msgpack.decode(bytes(self._buffer[_LENGTH.size : end])))
            del self._buffer[:end]
        return values
