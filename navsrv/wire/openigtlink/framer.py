"""Owns the cutting of a byte stream into messages: bytes in, messages out, no sockets.

A framer is ready, gathers the rest of one message, or is broken.  It never looks for a next message after a fault: the
connection's bytes mean nothing any more, and a guess could pass a wrong pose as a right one.  What is gathered never
exceeds one message, whose size is judged before its first byte is kept, and grows only with the bytes that came.
"""

from __future__ import annotations

from typing import Final, cast

from navsrv.kernel.errors import RemoteProtocolError
from navsrv.wire.openigtlink.codec import decode
from navsrv.wire.openigtlink.fields import fault
from navsrv.wire.openigtlink.messages import HEADER_SIZE, Header, Message

DEFAULT_CAP_BYTES: Final = 64 * 1024 * 1024


class Framer:
    """Cuts one connection's bytes into messages.

    Parameters
    ----------
    max_body_bytes : int
        The largest body accepted.
    """

    __slots__ = ("_broken", "_gathered", "_header", "_max_body_bytes")

    def __init__(self, max_body_bytes: int = DEFAULT_CAP_BYTES) -> None:
        self._max_body_bytes = max_body_bytes
        self._gathered = bytearray()
        self._header: Header | None = None  # of the message whose body is being gathered
        self._broken = ""

    @property
    def pending_bytes(self) -> int:
        """How many bytes of an unfinished message are held."""
        return len(self._gathered) + (HEADER_SIZE if self._header else 0)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Return the messages that ``data`` completes, in order.  ``data`` may be reused by the caller afterwards.

        Raises
        ------
        RemoteProtocolError
            At the first fault, with the whole messages before it in ``messages``; and at each call after that.
        """
        if self._broken:
            raise RemoteProtocolError(f"the stream broke earlier: {self._broken}")
        messages: list[Message] = []
        try:
            self._cut(data, messages)
        except RemoteProtocolError as error:
            self._broken = str(error)
            self._gathered = bytearray()
            self._header = None
            error.messages = cast(list[object], messages)
            raise
        return messages

    def _cut(self, data: bytes | bytearray | memoryview, messages: list[Message]) -> None:
        at, end = 0, len(data)
        view = memoryview(data)
        while at < end:
            if self._header is None:
                if not self._gathered and end - at >= HEADER_SIZE:
                    header = self._parse_header(view, at)
                    at += HEADER_SIZE
                else:
                    at = self._gather(view, at, HEADER_SIZE)
                    if len(self._gathered) < HEADER_SIZE:
                        return
                    header = self._parse_header(self._gathered, 0)
                    self._gathered = bytearray()
                if end - at >= header.body_size:
                    messages.append(decode(header, bytes(view[at : at + header.body_size])))
                    at += header.body_size
                else:
                    self._header = header
            else:
                at = self._gather(view, at, self._header.body_size)
                if len(self._gathered) < self._header.body_size:
                    return
                header, body = self._header, self._gathered
                self._header, self._gathered = None, bytearray()
                messages.append(decode(header, body))

    def _gather(self, view: memoryview, at: int, size: int) -> int:
        """Keep what is still missing of ``size`` bytes; return where the rest of ``view`` begins."""
        stop = min(at + size - len(self._gathered), len(view))
        self._gathered += view[at:stop]
        return stop

    def _parse_header(self, data: memoryview | bytearray, at: int) -> Header:
        header = Header.parse(data, at)
        if header.body_size > self._max_body_bytes:
            fault(f"{header.type_name}: a body of {header.body_size} bytes; at most {self._max_body_bytes} are taken")
        return header
