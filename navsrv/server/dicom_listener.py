"""Owns the DICOM server's process: associations, C-ECHO, C-STORE, and what becomes of the objects.

A process of its own: pixels are decoded here, by codecs that a broken stream may bring down, and nothing live waits for
it.  A whole volume goes to the session as a file in the session's folder, and so does an X-ray.  Only allowed callers
associate; every refusal is noted with its reason and answered with a status that tells the sender.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import select
import signal
import socket
import sys
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from devices.dicom import PROJECTION_CLASSES, VOLUME_CLASSES, DicomVolume, read_part
from devices.dicom_series import Event as SeriesEvent
from devices.dicom_series import Limits, SeriesGrouper, VolumeReady
from devices.dicom_xray import read_projection
from navsrv.server.boots import DicomBoot
from navsrv.server.channel import Channel, ChannelClosed
from navsrv.server.config_tables import ImagingConfig
from navsrv.server.dicom_guard import (
    MAX_PDU_BYTES,
    MOST_KEPT,
    ConnectionLimits,
    GuardedHandler,
    GuardedServer,
    caller_of,
)
from navsrv.wire.dicom import DicomFault
from navsrv.wire.dicom.attributes import text
from navsrv.wire.dicom.pixels import DECODERS

if TYPE_CHECKING:
    from pynetdicom.events import Event

SUCCESS: Final = 0x0000
REFUSED_RESOURCES: Final = 0xA700
NOT_OF_ITS_CLASS: Final = 0xA900
NOT_UNDERSTOOD: Final = 0xC000
COUNTS_S: Final = 1.0
"""How often the session is told the counts."""
COUNTED: Final = (
    "associations",
    "associations_rejected",
    "associations_aborted",
    "echoes",
    "objects",
    "objects_refused",
    "objects_repeated",
    "bytes",
    "volumes",
    "series_refused",
    "projections",
)


class DicomServer:
    """The server: associations in threads of pynetdicom, one lock around what they share."""

    def __init__(self, boot: DicomBoot, channel: Channel) -> None:
        self._boot, self._channel = boot, channel
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        config = boot.config
        self._max_bytes = config.max_object_mb * 1_000_000
        self._grouper = SeriesGrouper(Limits(int(config.series_quiet_s * 1e9), config.max_held_mb * 1_000_000))
        self._sources: dict[tuple[str, str], str] = {(s.image, s.kind): name for name, s in boot.sources.items()}
        self._allowed = sorted({s.image for s in boot.sources.values()} | set(config.callers))
        self._counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        self._told: dict[str, int] = {}
        self._written = 0
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)

    def start(self) -> int:
        """Start listening; return the port.  OSError if it is in use."""
        config = self._boot.config
        entity = AE(config.ae_title)
        entity.require_called_aet = True
        entity.require_calling_aet = self._allowed
        entity.maximum_associations = 2 * MOST_KEPT  # pynetdicom would count dead connections too: see _requested
        entity.maximum_pdu_size = MAX_PDU_BYTES
        entity.acse_timeout = min(10.0, config.silent_s)
        entity.dimse_timeout = entity.network_timeout = config.silent_s
        entity.add_supported_context(Verification)
        for uid in (*VOLUME_CLASSES, *PROJECTION_CLASSES):
            entity.add_supported_context(uid, list(DECODERS))
        handlers: list[Any] = [
            (evt.EVT_C_ECHO, self._echo),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_ACCEPTED, self._accepted),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_ABORTED, self._aborted),
            (evt.EVT_CONN_CLOSE, self._closed),
            (evt.EVT_DIMSE_RECV, _message_ended),
        ]
        limits = ConnectionLimits(2 * config.max_associations, self._max_bytes, config.silent_s, self.note)
        GuardedServer.limits = limits
        self._server = entity.make_server(
            (self._boot.host, self._boot.port),
            evt_handlers=handlers,
            server_class=GuardedServer,
            request_handler=GuardedHandler,
        )
        threading.Thread(target=self._server.serve_forever, name="dicom-accept", daemon=True).start()
        return int(self._server.server_address[1])

    def run(self) -> None:
        """Tell the session of series that ended by being quiet, and of counts, until it says stop or is gone."""
        next_counts = time.monotonic()
        while True:
            with self._lock:
                due_ns = self._grouper.next_due_ns()
            left = next_counts - time.monotonic()
            if due_ns is not None:
                left = min(left, (due_ns - time.monotonic_ns()) / 1e9)
            waited_for: list[Any] = [self._channel, self._wake]
            ready, _, _ = select.select(waited_for, [], [], max(0.0, left))
            if self._wake in ready:
                self._wake.recv(1 << 12)
            if self._channel in ready:
                try:
                    if any(message["kind"] == "stop" for message in self._channel.receive()):
                        return
                except ChannelClosed:
                    return
            now_ns = time.monotonic_ns()
            with self._lock:
                events = self._grouper.step(now_ns)
            self._deliver(events)
            if time.monotonic() >= next_counts:
                next_counts = time.monotonic() + COUNTS_S
                self._tell_counts()

    def note(self, event: str, said: str) -> None:
        """Tell the session what happened."""
        self._send("note", {"event": event, "text": said})

    # -- associations ------------------------------------------------------------------------------------------

    def _requested(self, event: Event) -> None:
        """Reject an association that would be one too many (PS3.8 9.3.4: transient, local limit exceeded)."""
        most = self._boot.config.max_associations
        if sum(one.is_established for one in self._server.active_associations) >= most:
            event.assoc.acse.send_reject(0x02, 0x03, 0x02)
            event.assoc.kill()
            self._count("associations_rejected")
            self.note("dicom_refused", f"{caller_of(event.assoc)}: association rejected: {most} are open already")

    def _accepted(self, event: Event) -> None:
        self._count("associations")
        taken = {context.abstract_syntax for context in event.assoc.accepted_contexts}
        left = sorted({c.abstract_syntax for c in event.assoc.rejected_contexts} - taken - {None}, key=str)
        if left:
            names = ", ".join(getattr(uid, "name", str(uid)) for uid in left[:3])
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            self.note("dicom_class_refused", f"{_caller(event)}: objects of {names}{more} are not taken")

    def _rejected(self, event: Event) -> None:
        self._count("associations_rejected")
        called = event.assoc.requestor.primitive.called_ae_title if event.assoc.requestor.primitive else "?"
        calling = event.assoc.requestor.ae_title
        if called != self._boot.config.ae_title:
            why = f"it called {called!r}; we are {self._boot.config.ae_title!r}"
        elif calling not in self._allowed:
            why = f"it is none of {', '.join(self._allowed)}"
        else:
            why = "none of its classes is taken"
        self.note("dicom_refused", f"{_caller(event)}: association rejected: {why}")

    def _aborted(self, event: Event) -> None:
        self._count("associations_aborted")
        self.note("dicom_aborted", f"{_caller(event)}: the association was aborted")

    def _closed(self, event: Event) -> None:
        if getattr(event.assoc.dul.socket, "message_bytes", 0) > 12 and event.assoc.is_established:
            self.note("dicom_aborted", f"{_caller(event)}: the connection ended in the middle of an object")

    def _echo(self, event: Event) -> int:
        self._count("echoes")
        return SUCCESS

    # -- objects -----------------------------------------------------------------------------------------------

    def _store(self, event: Event) -> int | Dataset:
        received_ns, calling = time.monotonic_ns(), event.assoc.requestor.ae_title
        self._count("objects")
        what = "an object"
        try:
            request: Any = event.request
            self._count("bytes", request.DataSet.getbuffer().nbytes)
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            what = f"object {text(dataset, 'InstanceNumber') or request.AffectedSOPInstanceUID}"
            if text(dataset, "SOPClassUID") != str(request.AffectedSOPClassUID):
                return self._refuse(event, what, "its class is not the one that was announced", NOT_OF_ITS_CLASS)
            if text(dataset, "SOPInstanceUID") != str(request.AffectedSOPInstanceUID):
                return self._refuse(event, what, "its UID is not the one that was announced", NOT_OF_ITS_CLASS)
            kind = "volume" if str(request.AffectedSOPClassUID) in VOLUME_CLASSES else "projection"
            name = self._sources.get((calling, kind))
            if name is None:
                reason = f"no imaging source of kind {kind} has image = {calling!r}"
                return self._refuse(event, what, reason, NOT_OF_ITS_CLASS)
            syntax = str(event.context.transfer_syntax)
            if kind == "volume":
                self._take_slice(name, dataset, syntax)
            else:
                self._take_projection(name, dataset, syntax, received_ns)
        except DicomFault as fault:
            return self._refuse(event, what, str(fault), NOT_UNDERSTOOD)
        except MemoryError:
            return self._refuse(event, what, "no memory", REFUSED_RESOURCES)
        except Exception as error:
            # Whatever is in one object, it must not end the association of its sender's other ones.
            return self._refuse(event, what, f"not understood ({error!r:.120})", NOT_UNDERSTOOD)
        return SUCCESS

    def _refuse(self, event: Event, what: str, reason: str, status: int) -> Dataset:
        self._count("objects_refused")
        self.note("dicom_object_refused", f"{_caller(event)}: {what}: {reason}")
        answer = Dataset()
        answer.Status = status
        answer.ErrorComment = reason.encode("ascii", "replace").decode()[:64]
        return answer

    def _take_slice(self, name: str, dataset: Dataset, syntax: str) -> None:
        part = read_part(dataset, syntax, self._max_bytes, _zone_s(self._boot.sources[name]))
        with self._lock:
            before = self._grouper.repeated
            events = self._grouper.add(name, part, time.monotonic_ns())
            repeated = self._grouper.repeated - before
        self._count("objects_repeated", repeated)
        self._deliver(events)
        self._wake_main()  # it counts the quiet time anew

    def _take_projection(self, name: str, dataset: Dataset, syntax: str, received_ns: int) -> None:
        source = self._boot.sources[name]
        seen_from = source.dicom.seen_from
        found = read_projection(dataset, syntax, self._max_bytes, _zone_s(source), source.image, received_ns, seen_from)
        T_equipment_from_carm = None
        if source.dicom.pose_of == "equipment":
            if seen_from != "detector":
                raise DicomFault("the equipment's angles place an image seen from the detector")
            T_equipment_from_carm = found.geometry.T_equipment_from_carm()
        self._count("projections")
        self._send_image(
            name,
            "projection",
            np.asarray(found.sample.pixels),
            {
                "index_to_image_mm": found.sample.index_to_image_mm.tolist(),
                "device_time_ns": found.sample.device_time_ns,
                "received_ns": received_ns,
                "T_equipment_from_image": None if T_equipment_from_carm is None else T_equipment_from_carm.tolist(),
                "T_carm_from_image": None if found.T_carm_from_image is None else found.T_carm_from_image.tolist(),
                "text": f"X-ray {found.instance_uid}, frame {found.frame}",
            },
        )

    def _deliver(self, events: list[SeriesEvent]) -> None:
        for event in events:
            if isinstance(event, VolumeReady):
                self._count("volumes")
                self._send_volume(event.device, event.volume)
            else:
                self._count("series_refused")
                said = f"{event.device}: series {event.series_uid}, {event.objects} objects: {event.reason}"
                self.note("dicom_series_refused", said)

    def _send_volume(self, name: str, volume: DicomVolume) -> None:
        tilt = f", gantry tilt of {volume.tilt_deg:.1f} degrees resampled" if volume.tilt_deg else ""
        equipment = volume.T_equipment_from_volume
        self._send_image(
            name,
            "volume",
            np.asarray(volume.sample.voxels),
            {
                "index_to_image_mm": volume.sample.index_to_volume_mm.tolist(),
                "device_time_ns": volume.sample.device_time_ns,
                "received_ns": volume.sample.received_ns,
                "T_equipment_from_image": None if equipment is None else equipment.tolist(),
                "T_carm_from_image": None,
                "text": f"series {volume.series_uid} ({volume.description or 'no description'}),"
                f" {volume.slices} slices{tilt}",
            },
        )

    def _send_image(self, name: str, kind: str, voxels: NDArray[Any], facts: dict[str, Any]) -> None:
        with self._lock:
            self._written += 1
            path = Path(self._boot.folder) / f"dicom-{self._written}.npy"
        np.save(path, voxels, allow_pickle=False)
        self._send("image", {"source": name, "kind": kind, "file": path.name, **facts})

    # -- the session -------------------------------------------------------------------------------------------

    def _count(self, name: str, by: int = 1) -> None:
        with self._lock:
            self._counts[name] += by

    def _tell_counts(self) -> None:
        with self._lock:
            counts = {**self._counts, "held_bytes": self._grouper.held_bytes}
        if counts != self._told:
            self._told = counts
            self._send("counts", counts)

    def _send(self, kind: str, value: Any) -> None:
        with self._sending:
            try:
                self._channel.send({"kind": kind, "value": value})
            except ChannelClosed:
                self._wake_main()  # it finds out, and ends the process

    def _wake_main(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.send(b"w")


def _message_ended(event: Event) -> None:
    """Begin to count anew: what one message may have is bounded, not what an association may send."""
    event.assoc.dul.socket.message_bytes = 0  # type: ignore[union-attr]


def _caller(event: Event) -> str:
    return caller_of(event.assoc)


def _zone_s(source: ImagingConfig) -> int:
    """Return seconds east of UTC of a device that names no zone: as configured, else this machine's."""
    offset = source.dicom.utc_offset_min
    return 60 * offset if offset is not None else time.localtime().tm_gmtoff


def main() -> int:
    """Run as ``python -m navsrv.server.dicom_listener FD``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    boot: DicomBoot = pickle.loads(channel.receive_one(30.0))
    # What these write about a peer's faults is noted by us, once and in our words.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.simplefilter("ignore")
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
    server = DicomServer(boot, channel)
    try:
        port = server.start()
    except OSError as error:
        reason = error.strerror or str(error)
        fault = f"dicom.port: cannot listen on {boot.host}:{boot.port} ({reason}); expected a free port, or 0 for any"
        channel.send({"kind": "failed", "value": fault})
        return 2
    channel.send({"kind": "ready", "value": {"dicom": port}})
    server.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
