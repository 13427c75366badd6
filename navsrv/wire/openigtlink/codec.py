"""Owns the way between a message and its bytes.

Layout: header (58), then the body, over which the check sum runs.  With header 2 the body is: extended header (12),
content, metadata index (2 + 8 per item), metadata text.  Every length and count of a peer is held against the bytes at
hand before anything is made of it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from navsrv.kernel.errors import LocalProtocolError
from navsrv.wire.openigtlink import control, images, listings, points, poses, surfaces
from navsrv.wire.openigtlink.crc64 import crc64
from navsrv.wire.openigtlink.fields import ASCII, LATIN_1, UTF_8, Buffer, fault, field_of, need, need_small, text_of
from navsrv.wire.openigtlink.messages import Bind, BindChild, Body, Header, Message, Metadata, Raw, parse_type_name

_EXTENDED: Final = struct.Struct(">HHII")
_ITEM: Final = struct.Struct(">HHI")
_CHILD: Final = struct.Struct(">12sQ")
_QUERY_PREFIXES: Final = ("GET_", "STT_", "STP_", "RTS_")
_ARRAYS: Final = frozenset({"IMAGE", "NDARRAY", "POLYDATA"})
"""Bodies that may be as large as the connection allows."""
_JOIN_BELOW: Final = 1 << 16
"""Bodies smaller than this are joined before the check sum; larger ones are summed piece by piece and copied once."""

_KNOWN_BYTES: Final = 256
"""Metadata up to this size is remembered."""

_Encoder = Callable[[Any], bytes | tuple[Buffer, ...]]
_Parser = Callable[[Buffer], Body]

_CODECS: Final[dict[str, tuple[_Encoder, _Parser]]] = {
    "TRANSFORM": (poses.encode_transform, poses.parse_transform),
    "TDATA": (poses.encode_tdata, poses.parse_tdata),
    "QTDATA": (poses.encode_qtdata, poses.parse_qtdata),
    "POSITION": (poses.encode_position, poses.parse_position),
    "STATUS": (control.encode_status, control.parse_status),
    "STRING": (control.encode_string, control.parse_string),
    "SENSOR": (control.encode_sensor, control.parse_sensor),
    "COMMAND": (control.encode_command, control.parse_command),
    "RTS_COMMAND": (control.encode_command, lambda content: control.parse_command(content, "RTS_COMMAND")),
    "CAPABILITY": (control.encode_capability, control.parse_capability),
    "IMAGE": (images.encode_image, images.parse_image),
    "NDARRAY": (images.encode_ndarray, images.parse_ndarray),
    "POINT": (points.encode_point, points.parse_point),
    "TRAJ": (points.encode_trajectory, points.parse_trajectory),
    "POLYDATA": (surfaces.encode_polydata, surfaces.parse_polydata),
    "COLORT": (listings.encode_color_table, listings.parse_color_table),
    "COLORTABLE": (listings.encode_color_table, lambda content: listings.parse_color_table(content, "COLORTABLE")),
    "IMGMETA": (listings.encode_image_meta, listings.parse_image_meta),
    "LBMETA": (listings.encode_label_meta, listings.parse_label_meta),
    "VIDEOMETA": (listings.encode_video_meta, listings.parse_video_meta),
}
_MAY_BE_EMPTY: Final = frozenset({"TDATA", "QTDATA", "CAPABILITY", "POINT", "TRAJ", "IMGMETA", "LBMETA", "VIDEOMETA"})
"""Bodies that are lists: without content they are an empty list.  Others without content are an answer without data."""


def encode(message: Message) -> bytes:
    """Return the whole message as one bytes object, to be sent in one write.

    Raises
    ------
    LocalProtocolError
        When the wire cannot carry it: a name too long, a number out of range, metadata under header 1.
    """
    try:
        content = _encode_body(message.body)
        pieces = content if isinstance(content, tuple) else (content,)
        if message.version == 2:
            index, text = _encode_metadata(message.metadata)
            pieces = (_EXTENDED.pack(12, len(index), len(text), message.message_id), *pieces, index, text)
        elif message.version != 1 or message.metadata or message.message_id:
            raise LocalProtocolError(f"header {message.version}: 1 carries neither metadata nor message id, 2 both")
        size = sum(map(len, pieces))
        if size < _JOIN_BELOW:
            body = b"".join(pieces)
            pieces, crc = (body,), crc64(body)
        else:
            crc = 0
            for piece in pieces:
                crc = crc64(piece, crc)
        header = Header(message.version, message.body.type_name, message.device, message.timestamp, size, crc)
        return b"".join((header.encode(), *pieces))
    except (struct.error, OverflowError) as error:
        raise LocalProtocolError(f"{message.type_name} {message.device!r}: {error}") from error


def decode(header: Header, body: Buffer) -> Message:
    """Return the message of a header and its whole body, the check sum included.

    ``body`` belongs to the message from here on: arrays may look into it, so nobody may write to it again.
    """
    need(body, header.body_size, header.type_name)
    crc = crc64(body)
    if crc != header.crc:
        fault(f"{header.type_name} {header.device!r}: check sum {crc:016x} where the header says {header.crc:016x}")
    if header.version == 1:
        return Message(header.device, header.timestamp, _parse_body(header.type_name, memoryview(body)), 1)
    if len(body) < _EXTENDED.size:
        fault(f"{header.type_name}: {len(body)} bytes of body where an extended header of {_EXTENDED.size} belongs")
    size, index_size, text_size, message_id = _EXTENDED.unpack_from(body)
    end = len(body) - index_size - text_size
    if not _EXTENDED.size <= size <= end:
        fault(f"{header.type_name}: {size} + {index_size} + {text_size} bytes around the content of {len(body)}")
    view = memoryview(body)
    metadata: tuple[Metadata, ...] = ()
    if index_size or text_size:
        parse = _parse_known_metadata if index_size + text_size <= _KNOWN_BYTES else _parse_metadata
        metadata = parse(bytes(view[end:]), index_size, text_size)
    content = _parse_body(header.type_name, view[size:end])
    return Message(header.device, header.timestamp, content, 2, metadata, message_id)


def _encode_body(body: Body) -> bytes | tuple[Buffer, ...]:
    if isinstance(body, Raw):
        return body.data
    if isinstance(body, control.Query):
        return control.encode_query(body)
    if isinstance(body, Bind):
        return _encode_bind(body)
    return _CODECS[body.type_name][0](body)


def _parse_body(type_name: str, content: memoryview) -> Body:
    codec = _CODECS.get(type_name)
    if codec is not None and (content or type_name in _MAY_BE_EMPTY):
        if type_name not in _ARRAYS:
            need_small(len(content), type_name)
        return codec[1](content)
    if type_name == "BIND" and content:
        return _parse_bind(content)
    if codec is None and type_name.startswith(_QUERY_PREFIXES) and len(type_name) > 4:
        return control.parse_query(content, type_name)
    return Raw(type_name, bytes(content))


def _encode_metadata(items: tuple[Metadata, ...]) -> tuple[bytes, bytes]:
    """Return the index and the text of the metadata."""
    if not items:
        return b"\0\0", b""
    index, text = [struct.pack(">H", len(items))], list[bytes]()
    for item in items:
        key, value, encoding = item.key.encode(), item.value, item.encoding
        if isinstance(value, str):
            if encoding == ASCII and not value.isascii():
                encoding = UTF_8
            value = value.encode("latin-1" if encoding == LATIN_1 else "utf-8")
        index.append(_ITEM.pack(len(key), encoding, len(value)))
        text += (key, value)
    return b"".join(index), b"".join(text)


def _parse_metadata(block: bytes, index_size: int, text_size: int) -> tuple[Metadata, ...]:
    """Return the items of the index and text at the end of a body; both must be exactly as long as the index says."""
    need_small(text_size, "metadata")
    count = int.from_bytes(block[:2])
    if index_size != 2 + _ITEM.size * count:
        fault(f"metadata: an index of {index_size} bytes cannot hold {count} items")
    at, items = index_size, list[Metadata]()
    for key_size, encoding, value_size in _ITEM.iter_unpack(block[2:index_size]):
        middle, end = at + key_size, at + key_size + value_size
        if end > len(block):
            fault(f"metadata: item {len(items)} ends {end - len(block)} bytes after the text of {text_size}")
        value = _metadata_value(block[middle:end], encoding)
        items.append(Metadata(text_of(block[at:middle]), value, encoding))
        at = end
    if at != len(block):
        fault(f"metadata: {len(block) - at} bytes of text belong to no item")
    return tuple(items)


_parse_known_metadata = lru_cache(maxsize=64)(_parse_metadata)
"""A tracker says the same of every pose: what was read once is not read again."""


def _metadata_value(raw: bytes, encoding: int) -> str | bytes:
    try:
        if encoding == UTF_8:
            return raw.decode()
        if encoding == ASCII:
            return raw.decode("ascii")
    except UnicodeDecodeError:
        return raw
    return raw.decode("latin-1") if encoding == LATIN_1 else raw


def _encode_bind(body: Bind) -> bytes:
    if len(body.children) > 0xFFFF:
        raise LocalProtocolError(f"a BIND holds at most 65535 children, not {len(body.children)}")
    index, contents = [struct.pack(">H", len(body.children))], list[Buffer]()
    for child in body.children:
        content = _encode_body(child.body)
        content = b"".join(content) if isinstance(content, tuple) else content
        index.append(_CHILD.pack(field_of(child.body.type_name, 12, "type name"), len(content)))
        contents += (content, b"\0" * (len(content) % 2))
    names = control.encode_names(tuple(child.device for child in body.children))
    return b"".join((*index, names, *contents))


def _parse_bind(content: memoryview) -> Bind:
    if len(content) < 2:
        fault("BIND: one byte of content where a count of children belongs")
    count = int.from_bytes(content[:2])
    end = 2 + _CHILD.size * count
    if len(content) < end + 2:
        fault(f"BIND: {count} children do not fit in {len(content)} bytes")
    kinds = list(_CHILD.iter_unpack(content[2:end]))
    table = 2 + int.from_bytes(content[end : end + 2])
    names, _ = control.parse_names(bytes(content[end : end + table]), count, "BIND")
    at, children = end + table, list[BindChild]()
    need_small(at + sum(size for kind, size in kinds if text_of(kind) not in _ARRAYS), "BIND")
    for (kind, size), name in zip(kinds, names, strict=True):
        if at + size + size % 2 > len(content):
            fault(f"BIND: child {name!r} of {size} bytes leaves the body of {len(content)}")
        type_name = parse_type_name(kind)
        piece = content[at : at + size]
        body = Raw("BIND", bytes(piece)) if type_name == "BIND" else _parse_body(type_name, piece)
        children.append(BindChild(name, body))
        at += size + size % 2
    need(content, at, "BIND")
    return Bind(tuple(children))
