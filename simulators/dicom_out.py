"""Owns what a simulated imager sends by DICOM: an X-ray as XA, a volume as a CT series, by C-STORE.

What is written follows PS3.3: patient coordinates in LPS mm, the position of a slice that of its first voxel's centre,
X-rays stored as seen from the detector.  Names and numbers of the patient are made up.  pydicom and pynetdicom are
imported when DICOM is asked for, and only then.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array
from simulators.link import parse_address
from simulators.world.imaging import Detector

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pynetdicom.association import Association

XA_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.12.1"
CT_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
FRAME_OF_REFERENCE: Final = 900
"""Number of the patient's frame among a study's UIDs."""
TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Study:
    """What the objects of one procedure share: a name that every UID is derived from."""

    name: str

    @classmethod
    def started(cls, seed: int, time_ns: int) -> Study:
        """Return the study of one start of a simulator: UIDs never name two objects."""
        return cls(f"{seed} {time_ns}")

    def uid(self, *parts: int) -> str:
        """Return the UID of the study, or of what ``parts`` number in it (PS3.5 B.2: derived from a UUID)."""
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{self.name} {parts}').int}"


def xray_object(
    pixels: NDArray[np.uint16],
    detector: Detector,
    angles_deg: tuple[float, float],
    kvp: float,
    stored: tuple[int, bool],
    study: Study,
    number: int,
    time_ns: int,
) -> Dataset:
    """Return an XA object of a picture whose columns run as seen from the source.

    Parameters
    ----------
    pixels : (rows, columns) uint16
    angles_deg : (primary, secondary)
        About the patient: towards LAO and towards cranial, positive.
    stored : (bits, logarithmic)
    """
    dataset = _common(study, XA_STORAGE, "XA", 100 + number, 1, time_ns, "simulated C-arm")
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "SINGLE PLANE"]
    dataset.PixelIntensityRelationship = "LOG" if stored[1] else "LIN"
    dataset.KVP = f"{kvp:g}"
    dataset.RadiationSetting = "GR"
    dataset.ImagerPixelSpacing = [f"{detector.pixel_mm:.6f}"] * 2
    dataset.DistanceSourceToDetector = f"{detector.sdd_mm:.3f}"
    dataset.DistanceSourceToPatient = f"{detector.source_iso_mm:.3f}"
    dataset.PositionerMotion = "STATIC"
    dataset.PositionerPrimaryAngle, dataset.PositionerSecondaryAngle = (f"{a:.3f}" for a in angles_deg)
    dataset.BodyPartExamined = "PELVIS"
    _pixels(dataset, np.ascontiguousarray(pixels[:, ::-1]), stored[0], signed=False)
    return dataset


def volume_objects(
    voxels: NDArray[np.int16],
    index_to_volume_mm: Array,
    study: Study,
    number: int,
    time_ns: int,
    shift_mm: Sequence[float] = (0.0, 0.0, 0.0),
) -> list[Dataset]:
    """Return a CT series, one object for each slice, from the feet up.

    Parameters
    ----------
    voxels : (k, j, i) int16
        HU.
    index_to_volume_mm : (4, 4)
        To the gantry's frame; its axes are the patient's (LPS).
    shift_mm : (3,)
        Where the gantry's origin lies in the patient's coordinates; (0028,9520) tells it, row by row.
    """
    equipment_from_patient = np.eye(4)
    equipment_from_patient[:3, 3] = -np.asarray(shift_mm, dtype=np.float64)
    index_to_patient = np.linalg.inv(equipment_from_patient) @ index_to_volume_mm
    spacing = np.linalg.norm(index_to_patient[:3, :3], axis=0)
    along = index_to_patient[:3, :3] / spacing
    slices = []
    for k, plane in enumerate(voxels):
        dataset = _common(study, CT_STORAGE, "CT", 200 + number, k + 1, time_ns, "simulated O-arm")
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.KVP = "110"
        dataset.PatientPosition = "HFP"
        dataset.FrameOfReferenceUID = study.uid(FRAME_OF_REFERENCE)
        dataset.PositionReferenceIndicator = ""
        dataset.ImagePositionPatient = _decimals(index_to_patient[:3, 3] + k * index_to_patient[:3, 2])
        dataset.ImageOrientationPatient = _decimals([*along[:, 0], *along[:, 1]])
        dataset.PixelSpacing = _decimals([spacing[1], spacing[0]])
        dataset.SliceThickness = _decimals([spacing[2]])[0]
        dataset.ImageToEquipmentMappingMatrix = equipment_from_patient.ravel().tolist()
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "HU"
        dataset.WindowCenter, dataset.WindowWidth = "300", "1500"
        _pixels(dataset, np.ascontiguousarray(plane), 16, signed=True)
        slices.append(dataset)
    return slices


def _decimals(values: Any) -> list[str]:
    """Return decimal strings within DICOM's 16 characters, to a hundred-thousandth."""
    return [f"{float(v) + 0.0:.5f}" for v in values]


def _common(study: Study, storage: str, modality: str, series: int, number: int, time_ns: int, of: str) -> Dataset:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    taken = datetime.fromtimestamp(time_ns // 1000 / 1e6, UTC)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = storage
    dataset.SOPInstanceUID = study.uid(series, number)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study.uid(), study.uid(series)
    dataset.PatientName, dataset.PatientID = "Simulated^Patient", "NAVSRV-SIM"
    dataset.PatientBirthDate, dataset.PatientSex = "", ""
    dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "1", "", ""
    dataset.Modality, dataset.Manufacturer, dataset.ManufacturerModelName = modality, "navsrv", of
    dataset.SeriesDescription = of
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.AcquisitionNumber = series, number, series
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = f"{taken:%Y%m%d}"
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = f"{taken:%H%M%S.%f}"
    dataset.AcquisitionDateTime = f"{taken:%Y%m%d%H%M%S.%f}+0000"
    dataset.TimezoneOffsetFromUTC = "+0000"
    return dataset


def _pixels(dataset: Dataset, picture: NDArray[Any], bits: int, signed: bool) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = picture.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    dataset.PixelData = picture.astype("<i2" if signed else "<u2").tobytes()


def positioner_angles_deg(orbit_deg: float, tilt_deg: float) -> tuple[float, float]:
    """Return the positioner's primary and secondary angle (PS3.3 C.8.7.5) of a C over a prone patient.

    At orbit 0 the detector is behind the patient, which is a primary angle of 180 degrees; it moves towards the left.
    """
    primary = (180.0 - orbit_deg + 180.0) % 360.0 - 180.0
    return (180.0 if primary == -180.0 else primary), tilt_deg


def keep_answers(association: Association) -> None:
    """Let no answer be lost to pynetdicom's own thread.

    That thread serves requests of a peer and is paused while we send; but between being let go and looking at the queue
    it cannot be paused (3.0), and on a busy machine it then drops our answer as no request.  It puts it back now.
    """

    def put_back(message: Any, context_id: int) -> None:
        association.dimse.msg_queue.put((context_id, message))

    association._serve_request = put_back  # type: ignore[method-assign, assignment]


class DicomSender:
    """Sends objects to one storage server, one association for each lot, beside the loop."""

    def __init__(self, address: str, called: str, calling: str) -> None:
        for title, option in ((called, "--aet"), (calling, "--calling-aet")):
            if not 1 <= len(title.strip()) <= 16 or not title.isascii() or "\\" in title:
                raise InputError(f"{option} {title!r}: an AE title has 1 to 16 ASCII characters")
        self._host, self._port = parse_address(address, "--dicom")
        self._titles = called, calling
        self._pool = ThreadPoolExecutor(1)
        self._running: deque[Future[dict[str, object]]] = deque()

    def submit(self, datasets: Sequence[Dataset]) -> None:
        """Begin sending, after what was submitted before."""
        self._running.append(self._pool.submit(self._send, datasets))

    def done(self) -> list[dict[str, object]]:
        """Return what became of the lots that are through, as events for the program that started the simulator."""
        events = []
        while self._running and self._running[0].done():
            events.append(self._running.popleft().result())
        return events

    def close(self) -> None:
        """Wait for the running lot only."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _send(self, datasets: Sequence[Dataset]) -> dict[str, object]:
        from pynetdicom import AE

        called, calling = self._titles
        entity = AE(ae_title=calling)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = TIMEOUT_S
        for storage in dict.fromkeys(str(d.SOPClassUID) for d in datasets):
            entity.add_requested_context(storage, datasets[0].file_meta.TransferSyntaxUID)
        association = entity.associate(self._host, self._port, ae_title=called)
        event: dict[str, object] = {"event": "dicom", "objects": len(datasets), "stored": 0}
        if not association.is_established:
            return event | {"reason": f"no association with {called} at {self._host}:{self._port}"}
        keep_answers(association)
        stored, reason = 0, ""
        try:
            for dataset in datasets:
                answer = association.send_c_store(dataset)
                status = answer.get("Status")
                if status == 0x0000:
                    stored += 1
                else:
                    said = answer.get("ErrorComment", "")
                    reason = f"status {status:#06x} {said}".strip() if status is not None else "the link was lost"
                    break
        except (RuntimeError, ValueError) as error:
            reason = str(error)
        finally:
            if association.is_established:
                association.release()
        return event | {"stored": stored} | ({"reason": reason} if reason else {})
