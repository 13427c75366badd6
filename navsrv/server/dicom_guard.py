"""Owns the bounds of a DICOM connection: no unit, no object and no silence beyond its limit.

pynetdicom reads as many bytes as a unit claims; here the claim is judged before a byte is read for it.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

MAX_PDU_BYTES: Final = 1 << 17
"""What we announce: the largest P-DATA unit that a peer may send."""
MOST_PDU_BYTES: Final = 1 << 20
"""What we read: senders that do not keep to what was announced are common, those that claim gigabytes are none."""
MOST_WAITING: Final = 16
"""Messages that a peer may have sent ahead of our answers."""

MOST_KEPT: Final = 64
"""Connections, ended ones included, that may have threads at a time."""

Note = Callable[[str, str], None]


def caller_of(association: Association) -> str:
    """Return who is at the other end: AE title, as far as it has said it, and address."""
    requestor = association.requestor
    address = "?" if requestor.address_info is None else "{}:{}".format(*requestor.address_info.as_tuple[:2])
    return f"{requestor.ae_title or 'nobody yet'} at {address}"


class GuardedServer(ThreadedAssociationServer):
    """An association server whose connections are bounded in number and in what they may send."""

    limits: ConnectionLimits

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Return whether one more connection is taken.

        What counts is open sockets: pynetdicom keeps a connection that ended without associating until it times out.
        """
        kept = self.active_associations
        connected = sum(one.dul.socket is not None and one.dul.socket.socket is not None for one in kept)
        if connected < self.limits.connections and len(kept) < MOST_KEPT:
            return True
        self.limits.note("dicom_refused", f"{client_address[0]}:{client_address[1]}: {connected} connections already")
        return False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note what a connection did at its very start; the default writes a traceback."""
        self.limits.note("dicom_refused", f"{client_address}: the connection could not be taken")


class ConnectionLimits:
    """What holds for every connection, and who is told when one exceeds it."""

    def __init__(self, connections: int, object_bytes: int, silent_s: float, note: Note) -> None:
        self.connections, self.object_bytes, self.silent_s, self.note = connections, object_bytes, silent_s, note


class GuardedSocket(AssociationSocket):
    """A connection that ends when it claims too much, or is silent in the middle of a unit."""

    def __init__(self, assoc: Association, client_socket: Any, limits: ConnectionLimits) -> None:
        super().__init__(assoc, client_socket=client_socket)
        self._limits = limits
        self.message_bytes = 0
        """Read since the last whole message."""

    def recv(self, nr_bytes: int) -> bytearray:
        """Return exactly ``nr_bytes``, fewer at the end of the connection; OSError ends the association."""
        limits = self._limits
        self.message_bytes += nr_bytes
        if nr_bytes > MOST_PDU_BYTES:
            raise self._fault(f"a unit of {nr_bytes} bytes; at most {MOST_PDU_BYTES}")
        if self.message_bytes > limits.object_bytes:
            raise self._fault(f"an object of more than {limits.object_bytes / 1e6:.0f} MB")
        if self.assoc.dimse.msg_queue.qsize() > MOST_WAITING:
            raise self._fault(f"more than {MOST_WAITING} messages ahead of our answers")
        if self.socket is None:
            raise OSError("closed")
        data = bytearray(nr_bytes)
        view, got, end = memoryview(data), 0, time.monotonic() + limits.silent_s
        while got < nr_bytes:
            left = end - time.monotonic()
            if left <= 0.0:
                raise self._fault(f"silent for {limits.silent_s:g} s in the middle of a unit")
            self.socket.settimeout(left)
            try:
                count = self.socket.recv_into(view[got:])
            except TimeoutError:
                continue
            if count == 0:
                view.release()
                return data[:got]
            got += count
        return data

    def _shutdown_socket(self) -> None:
        """Close the socket whether or not the peer is still there; the base leaves it open where it is gone."""
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()

    def _fault(self, reason: str) -> OSError:
        said = f"{caller_of(self.assoc)}: {reason}; its connection was ended"
        self._limits.note("dicom_refused", said)
        return OSError(reason)


class GuardedHandler(RequestHandler):
    """Makes associations whose socket is guarded."""

    server: GuardedServer

    def _create_association(self) -> Association:
        association = super()._create_association()
        association.dul.event_queue.get_nowait()  # the socket that is replaced has announced the connection
        association.dul.socket = GuardedSocket(association, self.request, self.server.limits)
        return association
