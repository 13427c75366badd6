"""Owns the check that an image file is whole.  ITK reads a torn compressed file without a word and fills the rest with
zeros, so that half of a structure would be gone from a case and nobody would know.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, Final

from navsrv.kernel.errors import InputError

GZIP: Final = b"\x1f\x8b"
PIECE: Final = 1 << 20
HEADER_BYTES: Final = 1 << 16
NIFTI_HEADER: Final = 348


def require_whole(path: Path, what: str) -> None:
    """Return if a NIfTI, NRRD or MetaImage file holds all that its header promises, as far as it can be told.

    Raises
    ------
    InputError
        The compressed data ends early or does not fit its own check sum, or the voxels are fewer than declared.
    """
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
        file.seek(0)
        try:
            if head[:2] == GZIP:
                _require_voxels(_unpacked(file, zlib.MAX_WBITS | 16), path, what)
            elif head[:4] == b"NRRD" and b"gz" in head.partition(b"\n\n")[0].lower():
                file.seek(head.index(b"\n\n") + 2)
                _unpacked(file, zlib.MAX_WBITS | 32)
            elif b"CompressedData = True" in head and b"ElementDataFile = LOCAL" in head:
                file.seek(head.index(b"\n", head.index(b"ElementDataFile = LOCAL")) + 1)
                _unpacked(file, zlib.MAX_WBITS | 32)
            else:
                _require_voxels((head[:NIFTI_HEADER], path.stat().st_size), path, what)
        except (EOFError, zlib.error, ValueError) as error:
            raise InputError(f"{path}: {what}: torn: {error}; expected the whole file, copy it again") from None


def _unpacked(file: BinaryIO, wbits: int) -> tuple[bytes, int]:
    """Return the first bytes and the count of what unpacks; EOFError or zlib.error for a torn stream."""
    head, count, unpacker = b"", 0, zlib.decompressobj(wbits)
    while piece := file.read(PIECE):
        while piece:
            if unpacker.eof:
                if not piece.strip(b"\0"):
                    break
                unpacker = zlib.decompressobj(wbits)
            data = unpacker.decompress(piece)
            count += len(data)
            if len(head) < NIFTI_HEADER:
                head += data[: NIFTI_HEADER - len(head)]
            piece = unpacker.unused_data
    if not unpacker.eof:
        raise EOFError(f"the compressed data ends early, after {count} bytes unpacked")
    return head, count


def _require_voxels(found: tuple[bytes, int], path: Path, what: str) -> None:
    """Compare a NIfTI-1 file's length with its header; nothing else is looked at."""
    head, count = found
    if len(head) < NIFTI_HEADER or head[344:347] != b"n+1":
        return
    order = "<" if struct.unpack_from("<i", head)[0] == NIFTI_HEADER else ">"
    dims = struct.unpack_from(f"{order}8h", head, 40)
    bits = struct.unpack_from(f"{order}h", head, 72)[0]
    offset = struct.unpack_from(f"{order}f", head, 108)[0]
    if not 1 <= dims[0] <= 7 or not math.isfinite(offset):
        return
    wanted = int(offset) + math.prod(max(1, d) for d in dims[1 : dims[0] + 1]) * bits // 8
    if count < wanted:
        raise InputError(f"{path}: {what}: torn: {count} bytes where its header declares {wanted}; copy it again")
