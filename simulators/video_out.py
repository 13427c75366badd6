"""Owns a simulated video output: frames to whoever connects, as MJPEG by HTTP or bare on TCP, or into a file.

What stands between a console and a frame grabber: a slow client misses frames, as a grabber does.  Refuses to know what
the frames show.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.errors import InputError

QUALITY: Final = 97
_BOUNDARY: Final = b"navsrv-frame"
_HEAD: Final = (
    b"HTTP/1.0 200 OK\r\nCache-Control: no-store\r\nContent-Type: multipart/x-mixed-replace; boundary="
    + _BOUNDARY
    + b"\r\n\r\n"
)
ASK_S: Final = 0.2
"""How long a client may take to ask by HTTP; one that does not gets the frames bare."""


class VideoServer:
    """Sends each frame, as JPEG, to every client; a thread for each."""

    def __init__(self, port: int = 0) -> None:
        try:
            self._listener = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            raise InputError(f"port {port}: {error.strerror}; expected a free port, or 0 for any") from None
        self.port: int = self._listener.getsockname()[1]
        self._news = threading.Condition()
        self._number = 0
        self._newest = b""
        self._ended = False
        self._clients: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def show(self, frame: NDArray[np.uint8]) -> None:
        """Send a frame."""
        if self._clients:
            self.send(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes())

    def send(self, data: bytes) -> None:
        """Send what stands for a frame, whatever it is."""
        with self._news:
            self._newest, self._number = data, self._number + 1
            self._news.notify_all()

    def cut(self) -> None:
        """End every connection."""
        for client in list(self._clients):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End everything."""
        self._ended = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        with self._news:
            self._news.notify_all()

    def _accept(self) -> None:
        while not self._ended:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked = bool(select.select([client], [], [], ASK_S)[0]) and client.recv(4096).startswith(b"GET ")
            if asked:
                client.sendall(_HEAD)
            self._clients.add(client)
            try:
                self._pass_on(client, asked)
            finally:
                self._clients.discard(client)

    def _pass_on(self, client: socket.socket, framed: bool) -> None:
        number = self._number
        while True:
            with self._news:
                while not self._ended and self._number == number:
                    self._news.wait()
                if self._ended:
                    return
                data, number = self._newest, self._number
            if framed:
                head = b"--%s\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % (_BOUNDARY, len(data))
                data = head + data + b"\r\n"
            client.sendall(data)


class VideoFile:
    """Writes frames without loss into a file (FFV1 in AVI or Matroska)."""

    def __init__(self, path: Path, rate_hz: float, size: tuple[int, int]) -> None:
        code = cv2.VideoWriter.fourcc(*"FFV1")
        if path.parent.is_dir():
            self._writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, rate_hz, size)
        if not path.parent.is_dir() or not self._writer.isOpened():
            raise InputError(f"{path}: cannot be written; expected a place for a file such as video.avi")

    def show(self, frame: NDArray[np.uint8]) -> None:
        """Write a frame."""
        self._writer.write(frame)

    def close(self) -> None:
        """Finish the file."""
        self._writer.release()
