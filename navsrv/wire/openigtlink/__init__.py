"""OpenIGTLink, header versions 1 and 2, without sockets: bytes in, messages out, and back."""

from __future__ import annotations

from navsrv.kernel.errors import RemoteProtocolError
from navsrv.wire.openigtlink.codec import decode, encode
from navsrv.wire.openigtlink.control import Capability, Command, Query, Sensor, Status, StatusCode, String, Verb
from navsrv.wire.openigtlink.crc64 import crc64
from navsrv.wire.openigtlink.framer import Framer
from navsrv.wire.openigtlink.images import Image, NdArray
from navsrv.wire.openigtlink.listings import (
    ColorTable,
    ImageMeta,
    ImageMetaElement,
    LabelMeta,
    LabelMetaElement,
    VideoMeta,
    VideoMetaElement,
)
from navsrv.wire.openigtlink.messages import Bind, BindChild, Body, Header, Message, Metadata, Raw
from navsrv.wire.openigtlink.points import Point, PointElement, Trajectory, TrajectoryElement
from navsrv.wire.openigtlink.poses import Position, QTData, QTDataElement, TData, TDataElement, Transform
from navsrv.wire.openigtlink.surfaces import Cells, PolyAttribute, PolyData
from navsrv.wire.openigtlink.timestamps import ns_from_timestamp, timestamp_from_ns

__all__ = [
    "Bind",
    "BindChild",
    "Body",
    "Capability",
    "Cells",
    "ColorTable",
    "Command",
    "Framer",
    "Header",
    "Image",
    "ImageMeta",
    "ImageMetaElement",
    "LabelMeta",
    "LabelMetaElement",
    "Message",
    "Metadata",
    "NdArray",
    "Point",
    "PointElement",
    "PolyAttribute",
    "PolyData",
    "Position",
    "QTData",
    "QTDataElement",
    "Query",
    "Raw",
    "RemoteProtocolError",
    "Sensor",
    "Status",
    "StatusCode",
    "String",
    "TData",
    "TDataElement",
    "Trajectory",
    "TrajectoryElement",
    "Transform",
    "Verb",
    "VideoMeta",
    "VideoMetaElement",
    "crc64",
    "decode",
    "encode",
    "ns_from_timestamp",
    "timestamp_from_ns",
]
