"""The DICOM server's process by itself, what it tells, and senders of every kind."""

import pickle
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from navsrv.server.boots import DicomBoot
from navsrv.server.config_dicom import DicomConfig, DicomSourceConfig
from navsrv.server.config_tables import ImagingConfig
from navsrv.server.processes import Child
from simulators.dicom_out import keep_answers

PATIENCE_S = 30.0
SOURCES = {
    "oarm": ImagingConfig("volume", "OARM", "OarmToTracker", connect="dicom"),
    "carm": ImagingConfig("projection", "CARM", "CarmToTracker", connect="dicom"),
    "turned": ImagingConfig(
        "projection", "EQUIPPED", "CarmToTracker", connect="dicom", dicom=DicomSourceConfig(pose_of="equipment")
    ),
}


class Listener:
    """The server's process, with the messages that it sent so far."""

    def __init__(self, folder: Path, sources: dict[str, ImagingConfig] | None = None, **config: Any) -> None:
        settings = DicomConfig(**{"port": 0, "callers": ("TESTER",), "series_quiet_s": 0.5, **config})
        boot = DicomBoot(settings, SOURCES if sources is None else sources, "127.0.0.1", 0, str(folder))
        self.folder = folder
        self.child = Child("DICOM", "navsrv.server.dicom_listener", pickle.dumps(boot))
        self.port: int = self.child.wait_ready(PATIENCE_S)["dicom"]
        self._messages: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.child.stop()

    def until(self, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the next message that fits, and forget those before it."""
        seen: list[dict[str, Any]] = []
        found = self.within(PATIENCE_S, fits, seen)
        assert found is not None, f"no such message within {PATIENCE_S} s: {seen}"
        return found

    def within(
        self, seconds: float, fits: Callable[[dict[str, Any]], bool], others: list[dict[str, Any]] | None = None
    ) -> dict[str, Any] | None:
        """Return the next message that fits within a time, else None; those before it are forgotten."""
        end = time.monotonic() + seconds
        while True:
            for n, message in enumerate(self._messages):
                if fits(message):
                    del self._messages[: n + 1]
                    return message
            if others is not None:
                others += self._messages
            self._messages.clear()
            left = end - time.monotonic()
            if left <= 0.0:
                return None
            if select.select([self.child.channel], [], [], left)[0]:
                self._messages += self.child.channel.receive()

    def note(self, event: str, said: str = "") -> str:
        """Return the text of the next note of an event that says something."""
        fits = self.until(lambda m: m["kind"] == "note" and m["value"]["event"] == event and said in m["value"]["text"])
        text: str = fits["value"]["text"]
        return text

    def image(self) -> tuple[dict[str, Any], Any]:
        """Return the facts and the voxels of the next image."""
        value = self.until(lambda m: m["kind"] == "image")["value"]
        return value, np.load(self.folder / value["file"])

    def counts(self, **wanted: int) -> dict[str, int]:
        """Return the counts as soon as they are these."""

        def fits(message: dict[str, Any]) -> bool:
            return message["kind"] == "counts" and all(message["value"][k] == v for k, v in wanted.items())

        value: dict[str, int] = self.until(fits)["value"]
        return value

    def echo(self) -> bool:
        """Return whether the server answers C-ECHO: it is alive."""
        return echo(self.port)


def echo(port: int) -> bool:
    """Return whether a C-ECHO succeeds."""
    entity = AE("TESTER")
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", port, ae_title="NAVSRV")
    if not association.is_established:
        # The library forgets the socket of an association that was not to be, unclosed.
        connection = association.dul.socket
        if connection is not None and connection.socket is not None:
            connection.socket.close()
        return False
    keep_answers(association)
    status = association.send_c_echo()
    association.release()
    return bool(status.Status == 0x0000)


def store(
    port: int, datasets: Sequence[Dataset], calling: str = "OARM", called: str = "NAVSRV", implicit: bool = False
) -> list[Any]:
    """Send objects in one association; return their answers' data sets."""
    entity = AE(calling)
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    for uid in {ds.SOPClassUID for ds in datasets}:
        entity.add_requested_context(uid, syntax)
    association = entity.associate("127.0.0.1", port, ae_title=called)
    assert association.is_established, "the association was rejected"
    keep_answers(association)
    answers = [association.send_c_store(ds) for ds in datasets]
    association.release()
    return answers


def associate_request(calling: str = "OARM", called: str = "NAVSRV", uid: str = "1.2.840.10008.5.1.4.1.1.2") -> bytes:
    """Return the bytes of an A-ASSOCIATE-RQ for one class, written by hand after PS3.8 9.3.2."""

    def item(kind: int, body: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(body)) + body

    context = bytes([1, 0, 0, 0]) + item(0x30, uid.encode()) + item(0x40, b"1.2.840.10008.1.2.1")
    user = item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3.4")
    titles = called.encode().ljust(16) + calling.encode().ljust(16)
    body = struct.pack(">HH", 1, 0) + titles + bytes(32)
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context) + item(0x50, user)
    return struct.pack(">BBI", 1, 0, len(body)) + body


def raw(port: int) -> socket.socket:
    """Return a plain connection."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    return sock


def ended(sock: socket.socket) -> bool:
    """Return whether the server ends a connection (with or without a word) within the patience."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True
