"""Owns the bodies that say what a peer has: IMGMETA, LBMETA, VIDEOMETA; and COLORT, the colours of a label map.

This server asks for none of them; they are read so that a peer which sends them is understood, byte for byte.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from navsrv.kernel.errors import LocalProtocolError
from navsrv.wire.openigtlink.fields import Buffer, fault, field_of, need_elements, text_of

_IMAGE_META: Final = struct.Struct(">64s20s32s64s64sQ3HBB")
_LABEL_META: Final = struct.Struct(">64s20sBB4B3H20s")
_VIDEO_META: Final = struct.Struct(">64s64s64s64shd3H12fBB")
_TABLE_LENGTHS: Final = {3: 256, 5: 65536}
_TABLE_WIDTHS: Final = {3: 1, 5: 2, 19: 3}

Extent = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ImageMetaElement:
    """One image that can be asked for; ``timestamp`` is raw 32.32, ``dims`` the extent (i, j, k)."""

    name: str
    device: str
    modality: str
    patient_name: str
    patient_id: str
    timestamp: int
    dims: Extent
    scalar_type: int
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class ImageMeta:
    """IMGMETA: the images that can be asked for."""

    type_name: ClassVar[str] = "IMGMETA"
    elements: tuple[ImageMetaElement, ...]


@dataclass(frozen=True, slots=True)
class LabelMetaElement:
    """One label of a label map; ``owner`` is the image that was segmented."""

    name: str
    device: str
    label: int
    rgba: tuple[int, int, int, int]
    dims: Extent
    owner: str
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class LabelMeta:
    """LBMETA: the labels that can be asked for."""

    type_name: ClassVar[str] = "LBMETA"
    elements: tuple[LabelMetaElement, ...]


@dataclass(frozen=True, slots=True)
class VideoMetaElement:
    """One video source; ``matrix`` is the twelve numbers of an IMAGE header (three steps and the middle), mm."""

    name: str
    device: str
    patient_name: str
    patient_id: str
    zoom_level: int
    focal_length_mm: float
    dims: Extent
    matrix: tuple[float, ...]
    scalar_type: int
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class VideoMeta:
    """VIDEOMETA: the video sources that can be asked for."""

    type_name: ClassVar[str] = "VIDEOMETA"
    elements: tuple[VideoMetaElement, ...]


@dataclass(frozen=True, slots=True)
class ColorTable:
    """COLORT (spelled COLORTABLE by old senders): colours of the labels 0 to 255 or 65535.

    ``index_type`` is 3 or 5 (uint8, uint16), ``map_type`` 3, 5 or 19 (uint8, uint16, three bytes of RGB); ``table``
    holds the entries as the wire has them (uint16 big-endian).
    """

    index_type: int
    map_type: int
    table: bytes
    type_name: str = "COLORT"


def encode_image_meta(body: ImageMeta) -> bytes:
    """Return the content of an IMGMETA."""
    return b"".join(
        _IMAGE_META.pack(
            *_texts((e.name, 64), (e.device, 20), (e.modality, 32), (e.patient_name, 64), (e.patient_id, 64)),
            e.timestamp,
            *e.dims,
            e.scalar_type,
            e.reserved,
        )
        for e in body.elements
    )


def parse_image_meta(content: Buffer) -> ImageMeta:
    """Return the IMGMETA of its content."""
    elements = []
    for *raw, timestamp, i, j, k, scalar, reserved in _elements(_IMAGE_META, content, "IMGMETA"):
        name, device, modality, patient, patient_id = map(text_of, raw)
        elements.append(
            ImageMetaElement(name, device, modality, patient, patient_id, timestamp, (i, j, k), scalar, reserved)
        )
    return ImageMeta(tuple(elements))


def encode_label_meta(body: LabelMeta) -> bytes:
    """Return the content of an LBMETA."""
    packed = []
    for e in body.elements:
        name, device, owner = _texts((e.name, 64), (e.device, 20), (e.owner, 20))
        packed.append(_LABEL_META.pack(name, device, e.label, e.reserved, *e.rgba, *e.dims, owner))
    return b"".join(packed)


def parse_label_meta(content: Buffer) -> LabelMeta:
    """Return the LBMETA of its content."""
    return LabelMeta(
        tuple(
            LabelMetaElement(text_of(v[0]), text_of(v[1]), v[2], v[4:8], v[8:11], text_of(v[11]), v[3])
            for v in _elements(_LABEL_META, content, "LBMETA")
        )
    )


def encode_video_meta(body: VideoMeta) -> bytes:
    """Return the content of a VIDEOMETA."""
    return b"".join(
        _VIDEO_META.pack(
            *_texts((e.name, 64), (e.device, 64), (e.patient_name, 64), (e.patient_id, 64)),
            e.zoom_level,
            e.focal_length_mm,
            *e.dims,
            *e.matrix,
            e.scalar_type,
            e.reserved,
        )
        for e in body.elements
    )


def parse_video_meta(content: Buffer) -> VideoMeta:
    """Return the VIDEOMETA of its content."""
    elements = []
    for v in _elements(_VIDEO_META, content, "VIDEOMETA"):
        name, device, patient, patient_id = map(text_of, v[:4])
        elements.append(VideoMetaElement(name, device, patient, patient_id, v[4], v[5], v[6:9], v[9:21], v[21], v[22]))
    return VideoMeta(tuple(elements))


def encode_color_table(body: ColorTable) -> bytes:
    """Return the content of a COLORT."""
    if len(body.table) != _table_size(body.index_type, body.map_type):
        raise LocalProtocolError(
            f"{body.type_name}: {len(body.table)} bytes of table for types {body.index_type} and {body.map_type}"
        )
    return bytes((body.index_type, body.map_type)) + body.table


def parse_color_table(content: Buffer, type_name: str = "COLORT") -> ColorTable:
    """Return the COLORT of its content."""
    size = _table_size(content[0], content[1]) if len(content) >= 2 else None
    if size is None or len(content) != 2 + size:
        fault(f"{type_name}: {len(content)} bytes of content are no colour table of known types")
    return ColorTable(content[0], content[1], bytes(content[2:]), type_name)


def _table_size(index_type: int, map_type: int) -> int | None:
    length, width = _TABLE_LENGTHS.get(index_type), _TABLE_WIDTHS.get(map_type)
    return length * width if length and width else None


def _texts(*fields: tuple[str, int]) -> list[bytes]:
    return [field_of(text, width, "text") for text, width in fields]


def _elements(layout: struct.Struct, content: Buffer, what: str) -> list[tuple[Any, ...]]:
    """Return the numbers and raw texts of each element of a body that is nothing but elements."""
    need_elements(content, layout.size, what)
    return list(layout.iter_unpack(content))
