"""Owns the children of the session: starting one with a channel, waiting for its word, ending it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from typing import Any, Final

from navsrv.kernel.errors import InputError
from navsrv.server.channel import Channel, ChannelClosed

NICENESS: Final = 5
"""Of processes that nothing live waits for."""


def give_way() -> None:
    """Let this process go behind the live ones where they want the same core."""
    os.nice(NICENESS)


class ChildFailed(InputError):
    """A child process could not start; its text is what it said."""


class Child:
    """One child process and the channel to it."""

    def __init__(self, name: str, module: str, boot: Any, env: dict[str, str] | None = None) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self.name = name
        self.channel = Channel(ours)
        self.channel.send(boot)

    def wait_ready(self, timeout_s: float) -> dict[str, Any]:
        """Return what the child says when it is ready.

        Raises
        ------
        ChildFailed
            It said why it cannot start, ended, or was silent for ``timeout_s``.
        """
        try:
            message = self.channel.receive_one(timeout_s)
        except (ChannelClosed, ConnectionError, TimeoutError) as error:
            raise ChildFailed(f"the {self.name} process did not start: {error}") from None
        if message["kind"] == "failed":
            raise ChildFailed(message["value"])
        value: dict[str, Any] = message["value"]
        return value

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ask it to end, wait, and make sure."""
        with contextlib.suppress(ChannelClosed):
            self.channel.send({"kind": "stop"})
        with contextlib.suppress(OSError):
            self.channel.socket.shutdown(socket.SHUT_WR)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.channel.socket.close()
