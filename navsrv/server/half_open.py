"""Owns the kernel's help against half-open connections: a peer that went away without saying so.

Two cases, two means.  Bytes of ours that nobody acknowledges, a connection attempt among them, end the connection
after a time that we set.  Where we have nothing to say, the kernel asks by keep-alive, whose clock counts whole
seconds: two seconds at best.  So who must know sooner says something (``TrackerClient.ask``, a display's heartbeat).
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final

NOTICE_MS: Final = 500
"""How long bytes of ours may stay unacknowledged: with the silence before them, a second in all."""
CONNECT_MS: Final = 1000
"""How long a connection attempt may hang; less than that is one lost packet, which the kernel repeats after 1 s."""
_KEEP_ALIVE_S: Final = 1


def notice_half_open(sock: socket.socket, unacknowledged_ms: int = NOTICE_MS) -> None:
    """Let the kernel end a connection whose peer has gone.  What a system does not know is left out.

    Parameters
    ----------
    unacknowledged_ms : int
        How long the peer may leave bytes of ours unacknowledged, or its window closed.
    """
    settings = [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPIDLE", None), _KEEP_ALIVE_S),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPINTVL", None), _KEEP_ALIVE_S),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPCNT", None), 1),
        (socket.IPPROTO_TCP, getattr(socket, "TCP_USER_TIMEOUT", None), unacknowledged_ms),
    ]
    for level, option, value in settings:
        if option is not None:
            # The connection may have ended already: then there is nothing to notice, and the next call on it says so.
            with contextlib.suppress(OSError):
                sock.setsockopt(level, option, value)
