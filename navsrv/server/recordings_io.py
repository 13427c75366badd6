"""Owns the reading of recorded poses for calibration: CSV, ``.igs.mha`` sequences of PLUS, recordings of navsrv.

Refuses files whose rows cannot be read, with the line or frame.  Poses that their source called invalid are left out
and counted; nothing is interpolated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array
from navsrv.kernel.samples import Tracking
from navsrv.pipeline.inputs import BytesIn, LinkDown, LinkUp, Tick, decode_input
from navsrv.pipeline.sources import Driver
from navsrv.server.config_tables import Config
from navsrv.server.replaying import RecordingFile
from navsrv.server.setup import source_spec

CSV_COLUMNS: Final = ("timestamp_ns", *(f"m{row}{column}" for row in range(4) for column in range(4)))
MAX_BYTES: Final = 1 << 30
IGS_VALID: Final = frozenset(("OK",))
_IGS_FIELD: Final = re.compile(r"Seq_Frame(\d+)_(\w+)\s*=\s*(.*)")
_NAME: Final = re.compile(r"(.+)To([A-Z].*)")


@dataclass(frozen=True, slots=True, eq=False)
class PoseTrack:
    """One transform over time.

    Attributes
    ----------
    name : str
        As its file calls it, ``StylusToTracker``.
    times_ns : (N,) int64
    poses : (N, 4, 4) float64
        ``T_<to>_from_<from>`` in millimetres.
    invalid : int
        Rows that the source itself called invalid, left out.
    """

    name: str
    times_ns: NDArray[np.int64]
    poses: Array
    invalid: int = 0

    def between(self, start_s: float, end_s: float) -> PoseTrack:
        """Return the part between two times in seconds since the first pose."""
        since = (self.times_ns - self.times_ns[0]) * 1e-9
        keep = (since >= start_s) & (since <= end_s)
        return PoseTrack(self.name, self.times_ns[keep], self.poses[keep], self.invalid)


def read_tracks(path: Path) -> dict[str, PoseTrack]:
    """Return every transform that a file holds, by name.

    Raises
    ------
    InputError
        Missing, of another kind, or with a row that cannot be read.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; poses as .csv, .igs.mha or .mcap are needed")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: {path.stat().st_size >> 20} MiB, at most {MAX_BYTES >> 20} are read")
    try:
        if path.suffix == ".csv":
            tracks = [_read_csv(path)]
        elif path.suffix == ".mcap":
            tracks = _read_mcap(path)
        elif path.suffix in (".mha", ".mhd"):
            tracks = _read_igs(path)
        else:
            raise InputError(
                f"{path}: kind {path.suffix or 'without suffix'}; poses as .csv, .igs.mha or .mcap are needed"
            )
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return {track.name: track for track in tracks if len(track.times_ns)}


def read_track(path: Path, name: str | None) -> PoseTrack:
    """Return one transform of a file; ``AToB`` is also made from ``AToC`` and ``BToC`` of equal stamps.

    Raises
    ------
    InputError
        As ``read_tracks``; no such transform; several and no name.
    """
    tracks = read_tracks(path)
    if not tracks:
        raise InputError(f"{path}: holds no valid pose")
    listed = ", ".join(sorted(tracks))
    if name is None:
        if len(tracks) > 1:
            raise InputError(f"{path}: holds {listed}; say which by --transform")
        return next(iter(tracks.values()))
    if name in tracks:
        return tracks[name]
    composed = _composed(tracks, name)
    if composed is None or not len(composed.times_ns):
        raise InputError(f"{path}: has no transform {name} and none to make it of; it holds {listed}")
    return composed


def read_part(path: Path, name: str | None, between_s: Sequence[float] | None) -> PoseTrack:
    """Return one transform of a file between two times (None: all of it); refuses as ``read_track``, and nothing."""
    track = read_track(path, name)
    if between_s is None:
        return track
    part = track.between(*between_s)
    if not len(part.times_ns):
        last_s = (int(track.times_ns[-1]) - int(track.times_ns[0])) / 1e9
        raise InputError(f"{path}: no pose between {between_s[0]:g} and {between_s[1]:g} s of {last_s:.1f} s")
    return part


@dataclass(frozen=True, slots=True, eq=False)
class ImageTrack:
    """Images over time: stamps (N,) and frames (N, rows, columns)."""

    times_ns: NDArray[np.int64]
    images: NDArray[np.generic]


def read_images(path: Path) -> ImageTrack:
    """Return the images of an ``.igs.mha`` sequence, those left out that their source called invalid.

    Raises
    ------
    InputError
        Missing, no sequence of grey images, or a frame without a stamp.
    """
    import SimpleITK as sitk

    if not path.is_file():
        raise InputError(f"{path}: no such file; an image sequence (.igs.mha) is needed")
    fields: dict[str, dict[int, str]] = {}
    for frame, name, value in _igs_fields(path):
        fields.setdefault(name, {})[frame] = value
    try:
        images = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError:
        raise InputError(f"{path}: holds no images; a sequence as PLUS writes it, with images, is needed") from None
    if images.ndim != 3:
        raise InputError(f"{path}: images of {images.ndim} axes; grey ones, one a frame, are needed")
    status = fields.get("ImageStatus", {})
    keep = [i for i in range(len(images)) if status.get(i, "OK").strip() in IGS_VALID]
    try:
        times = [round(float(fields.get("Timestamp", {})[i]) * 1e9) for i in keep]
    except (KeyError, ValueError, OverflowError):
        raise InputError(f"{path}: {len(images)} images, but not a Seq_FrameNNNN_Timestamp for each") from None
    return ImageTrack(np.array(times, dtype=np.int64), images[keep])


def paired(first: PoseTrack, second: PoseTrack) -> tuple[NDArray[np.int64], Array, Array]:
    """Return the stamps that two tracks share and both tracks' poses there."""
    times, i, j = np.intersect1d(first.times_ns, second.times_ns, return_indices=True)
    return times, first.poses[i], second.poses[j]


def _composed(tracks: dict[str, PoseTrack], name: str) -> PoseTrack | None:
    """Return ``AToB`` as ``inv(T_C_from_B) @ T_C_from_A``, or None."""
    wanted = _NAME.fullmatch(name)
    if wanted is None:
        return None
    for track in tracks.values():
        found = _NAME.fullmatch(track.name)
        if found is None or found[1] != wanted[1]:
            continue
        other = tracks.get(f"{wanted[2]}To{found[2]}")
        if other is not None:
            times, tool, reference = paired(track, other)
            return PoseTrack(name, times, np.linalg.inv(reference) @ tool, track.invalid + other.invalid)
    return None


def _read_csv(path: Path) -> PoseTrack:
    """Return the poses of a table with the columns of ``CSV_COLUMNS``."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(
            f"{path}: not text; a line {','.join(CSV_COLUMNS[:3])},... and rows of numbers needed"
        ) from None
    if not lines or tuple(word.strip() for word in lines[0].split(",")) != CSV_COLUMNS:
        raise InputError(
            f"{path}, line 1: expected the columns {CSV_COLUMNS[0]},{CSV_COLUMNS[1]},...,{CSV_COLUMNS[-1]}"
        )
    times: list[int] = []
    poses: list[list[float]] = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        words = line.split(",")
        try:
            if len(words) != len(CSV_COLUMNS):
                raise ValueError
            times.append(_stamp(words[0]))
            poses.append([float(word) for word in words[1:]])
        except ValueError:
            raise InputError(
                f"{path}, line {number}: expected whole nanoseconds and 16 numbers, got {line[:60]!r}"
            ) from None
    return _track(path, path.stem, times, poses, 0)


def _read_igs(path: Path) -> list[PoseTrack]:
    """Return the transforms of a sequence file's header; its images are not read."""
    fields: dict[str, dict[int, str]] = {}
    for frame, name, value in _igs_fields(path):
        fields.setdefault(name, {})[frame] = value
    stamps = fields.get("Timestamp", {})
    if not stamps:
        raise InputError(f"{path}: no Seq_FrameNNNN_Timestamp; a sequence as PLUS writes it is needed")
    tracks = []
    for name, rows in fields.items():
        if not name.endswith("Transform"):
            continue
        status = fields.get(name + "Status")
        times: list[int] = []
        poses: list[list[float]] = []
        for frame, text in sorted(rows.items()):
            if status is not None and status.get(frame, "").strip() not in IGS_VALID:
                continue
            try:
                pose = [float(word) for word in text.split()]
                if len(pose) != 16:
                    raise ValueError
                times.append(round(float(stamps[frame]) * 1e9))
            except (ValueError, OverflowError, KeyError):
                raise InputError(
                    f"{path}, frame {frame}: {name} needs 16 numbers and a Timestamp, got {text[:60]!r}"
                ) from None
            poses.append(pose)
        tracks.append(_track(path, name.removesuffix("Transform"), times, poses, len(rows) - len(times)))
    if not tracks:
        raise InputError(f"{path}: no frame holds a transform")
    return tracks


def _igs_fields(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (frame, field, value) of a MetaImage header, which ends at ElementDataFile."""
    with path.open("rb") as file:
        for line in file:
            text = line.decode("latin-1").strip()
            if text.startswith("ElementDataFile"):
                return
            found = _IGS_FIELD.fullmatch(text)
            if found is not None:
                yield int(found[1]), found[2], found[3]


def _read_mcap(path: Path) -> list[PoseTrack]:
    """Return what the drivers make of a recording's input; only poses that count as OK."""
    recording = RecordingFile(path)
    try:
        config = msgspec.json.decode(recording.metadata.get("config", ""), type=Config)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise InputError(f"{path}: its configuration cannot be read ({error}); a recording of navsrv needed") from None
    drivers: dict[str, Driver] = {}
    found: dict[str, tuple[list[int], list[list[float]]]] = {}
    invalid: dict[str, int] = {}
    for message in recording.messages():
        if message.topic != "input":
            continue
        item = decode_input(message.content)
        if isinstance(item, LinkUp) and item.source in config.trackers:
            drivers[item.source] = Driver(source_spec(item.source, config.trackers[item.source]))
            drivers[item.source].connect(item.now_ns)
        elif isinstance(item, LinkDown):
            drivers.pop(item.source, None)
        elif isinstance(item, Tick):
            for driver in drivers.values():
                driver.tick(item.now_ns)
        elif isinstance(item, BytesIn) and item.source in drivers and drivers[item.source].source is not None:
            for sample in drivers[item.source].feed(item.data, item.received_ns, item.wall_ns)[0]:
                times, poses = found.setdefault(sample.name, ([], []))
                if sample.pose is not None and sample.tracking is Tracking.OK:
                    times.append(sample.pose_time_ns)
                    poses.append(sample.pose.matrix.ravel().tolist())
                else:
                    invalid[sample.name] = invalid.get(sample.name, 0) + 1
    return [_track(path, name, times, poses, invalid.get(name, 0)) for name, (times, poses) in found.items()]


def _stamp(word: str) -> int:
    """Return whole nanoseconds that fit 64 bits; ValueError otherwise."""
    stamp = int(word)
    if not -(2**63) <= stamp < 2**63:
        raise ValueError
    return stamp


def _track(path: Path, name: str, times: list[int], poses: list[list[float]], invalid: int) -> PoseTrack:
    """Return a track; what a pose must be is the solvers' to judge, but its stamp must fit."""
    try:
        stamps = np.array(times, dtype=np.int64)
    except OverflowError:
        raise InputError(f"{path}: a stamp of {name} does not fit 64 bits of nanoseconds") from None
    return PoseTrack(name, stamps, np.array(poses, dtype=np.float64).reshape(-1, 4, 4), invalid)
