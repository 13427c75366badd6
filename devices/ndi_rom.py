"""Owns NDI tool definition files (.rom): reading, checking, and the pieces in which a device takes them.

The layout was read off real files and holds on all that the project has.  The checksum is the sum of the bytes behind
it, modulo 65536.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array

ROM_BYTES: Final = 1024
CHUNK_BYTES: Final = 64
MIN_BYTES: Final = 0x2A0
MAX_MARKERS: Final = 20
MAX_EXTENT_MM: Final = 2000.0
_MAGIC: Final = b"NDI\0"
_CHECKED_FROM: Final = 6
_MARKERS_AT: Final = 0x48
_NORMALS_AT: Final = 0x138
_MAKER: Final = slice(0x244, 0x250)
_PART: Final = slice(0x250, 0x264)


@dataclass(frozen=True, slots=True, eq=False)
class RomFile:
    """A tool definition that was checked.

    Attributes
    ----------
    name : str
        Where it came from, for messages.
    data : bytes
        As it is written to the device, before padding.
    kind : int
        NDI's main tool type: 1 reference, 2 pointer, ...
    markers_mm : (n, 3)
        Marker centres in the tool's frame.
    normals : (n, 3)
        Their unit normals; zero where they may be seen from anywhere.
    """

    name: str
    data: bytes = field(repr=False)
    maker: str
    part_number: str
    kind: int
    markers_mm: Array = field(repr=False)
    normals: Array = field(repr=False)
    min_markers: int
    max_error_mm: float
    max_angle_deg: int

    @classmethod
    def parse(cls, data: bytes, name: str) -> RomFile:
        """Return the tool definition in ``data``; InputError with what is wrong when it is none."""
        if len(data) < MIN_BYTES or len(data) > ROM_BYTES:
            raise InputError(f"{name}: {len(data)} bytes; a tool definition has {MIN_BYTES} to {ROM_BYTES}")
        if data[:4] != _MAGIC:
            raise InputError(f"{name}: does not begin with NDI; expected an NDI tool definition (.rom)")
        said = int.from_bytes(data[4:6], "little")
        found = sum(data[_CHECKED_FROM:]) & 0xFFFF
        if said != found:
            raise InputError(f"{name}: checksum {said:04X}, the bytes add up to {found:04X}: the file is damaged")
        angle, count, least, max_error = struct.unpack_from("<IIIf", data, 0x18)
        if not 1 <= count <= MAX_MARKERS or not 1 <= least <= count:
            raise InputError(f"{name}: {count} markers of which {least} are needed; expected 1 to {MAX_MARKERS}")
        markers = _points(data, _MARKERS_AT, count)
        normals = _points(data, _NORMALS_AT, count)
        if not (np.isfinite(markers).all() and np.isfinite(normals).all()) or np.abs(markers).max() > MAX_EXTENT_MM:
            raise InputError(f"{name}: a marker is not within {MAX_EXTENT_MM:.0f} mm of the tool's origin")
        maker, part = (data[s].split(b"\0")[0].decode("latin-1").strip() for s in (_MAKER, _PART))
        return cls(name, bytes(data), maker, part, data[0x0F], markers, normals, least, max_error, angle)

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """Yield (address, 64 bytes) for the whole of the device's memory: what an older tool left is overwritten."""
        padded = self.data.ljust(ROM_BYTES, b"\0")
        for address in range(0, ROM_BYTES, CHUNK_BYTES):
            yield address, padded[address : address + CHUNK_BYTES]


def _points(data: bytes, offset: int, count: int) -> Array:
    """Return ``count`` points (count, 3) of float32."""
    points: Array = np.frombuffer(data, "<f4", 3 * count, offset).reshape(count, 3).astype(np.float64)
    points.flags.writeable = False
    return points


def read_rom(path: Path) -> RomFile:
    """Return the tool definition of a file; InputError when it cannot be read or is none."""
    try:
        with path.open("rb") as file:
            data = file.read(ROM_BYTES + 1)
    except OSError as e:
        raise InputError(f"{path}: {e.strerror}; expected an NDI tool definition (.rom)") from e
    return RomFile.parse(data, str(path))
