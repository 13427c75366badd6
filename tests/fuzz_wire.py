"""Mutates valid OpenIGTLink messages and watches that nothing but a RemoteProtocolError comes of it.

Check sums are put right again after most mutations, so that the parsers behind them are reached.  As a program it runs
as long as asked for and reports rate and memory; the tests take seeds and mutations from here.

    python tests/fuzz_wire.py --count 1000000 --seed 1
"""

from __future__ import annotations

import argparse
import json
import resource
import struct
import sys
import time

import numpy as np

from navsrv.kernel.errors import LocalProtocolError
from navsrv.wire import openigtlink as igtl

HEADER = 58
NASTY = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1)


def bodies() -> list[igtl.Body]:
    """Return at least one body of each kind that the codec knows."""
    pose = np.eye(4)
    pose[:3, :] = [[0.0, -1.0, 0.0, 12.5], [1.0, 0.0, 0.0, -7.25], [0.0, 0.0, 1.0, 300.0]]
    placed = np.array([[0.5, 0.0, 0.0, -10.0], [0.0, 0.5, 0.0, -20.0], [0.0, 0.0, 2.0, 30.0], [0.0, 0.0, 0.0, 1.0]])
    voxels = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
    element = igtl.PointElement("S1 left", np.array([1.0, 2.0, 3.0]), "Fiducial", (255, 0, 0, 255), 2.0, "CT")
    status = igtl.Status(1, -5, "OK", "all is well")
    children = (igtl.BindChild("Needle", igtl.Transform(pose)), igtl.BindChild("Say", igtl.String("odd")))
    return [
        igtl.Transform(pose),
        igtl.TData((igtl.TDataElement("Needle", pose), igtl.TDataElement("Reference", pose, 1))),
        igtl.QTData((igtl.QTDataElement("Needle", np.ones(3), np.array([0.0, 0.0, 0.6, 0.8])),)),
        igtl.Position(np.ones(3)),
        igtl.Position(np.ones(3), np.array([0.0, 0.0, 0.6])),
        igtl.Position(np.ones(3), np.array([0.0, 0.0, 0.6, 0.8])),
        status,
        igtl.String("Kreuzbein, grüße", 106),
        igtl.Sensor(np.array([36.6, 41.25]), unit=7),
        igtl.Image(voxels, placed, "RAS"),
        igtl.Image(np.zeros((1, 4, 5, 3), np.uint8), placed, "LPS", "big", (9, 8, 7), (4, 4, 6)),
        igtl.NdArray(np.arange(6.0).reshape(2, 3)),
        igtl.NdArray(np.array([1 + 2j])),
        igtl.Point((element, element)),
        igtl.Trajectory((igtl.TrajectoryElement("path", np.zeros(3), np.ones(3), owner="CT"),)),
        igtl.PolyData(
            np.eye(3, dtype=np.float32),
            igtl.Cells.of_rows([[0, 1, 2]]),
            lines=igtl.Cells.of_rows([[0, 1], [1, 2]]),
            attributes=(igtl.PolyAttribute("normals", 2, np.ones((3, 3), np.float32)),),
        ),
        igtl.Command(7, "RequestChannelIds", "<Command/>"),
        igtl.Command(7, "", "<Result success='true'/>", type_name="RTS_COMMAND"),
        igtl.Capability(("TRANSFORM", "GET_TRANS")),
        igtl.ColorTable(3, 3, bytes(range(256))),
        igtl.ImageMeta((igtl.ImageMetaElement("CT", "CT", "CT", "", "", 1 << 32, (4, 3, 2), 4),)),
        igtl.LabelMeta((igtl.LabelMetaElement("Sacrum", "Labels", 3, (1, 2, 3, 4), (4, 3, 2), "CT"),)),
        igtl.VideoMeta((igtl.VideoMetaElement("v", "v", "", "", 1, 35.0, (4, 3, 1), (0.0,) * 12, 3),)),
        igtl.Bind((*children, igtl.BindChild("", status))),
        igtl.Query("GET_POLYDATA"),
        igtl.Query("GET_BIND", children=(("TRANSFORM", "Needle"), ("STRING", "Say"))),
        igtl.Query("STT_TDATA", resolution=20, coordinate="Tracker"),
        igtl.Query.start("POLYDATA", 50_000_000),
        igtl.Query("STT_BIND", resolution=1 << 30, children=(("TRANSFORM", "Needle"),)),
        igtl.Query("STP_TDATA"),
        igtl.Query("RTS_TDATA", status=0),
        igtl.Raw("VENDOR", b"\x01\x02\x03"),
    ]


def messages() -> list[igtl.Message]:
    """Return each body under header 1, and under header 2 with metadata."""
    said = (
        igtl.Metadata("TransformStatus", "OK"),
        igtl.Metadata("note", "grüße", 106),
        igtl.Metadata("raw", b"\xff", 0),
    )
    stamp = igtl.timestamp_from_ns(1_700_000_000_123_456_789)
    plain = [igtl.Message("NeedleToTracker", stamp, body, 1) for body in bodies()]
    return plain + [igtl.Message("NeedleToTracker", stamp, body, 2, said, 42) for body in bodies()]


def repair(raw: bytes) -> bytes:
    """Return the message with size and check sum that fit its body."""
    body = raw[HEADER:]
    return raw[:42] + struct.pack(">QQ", len(body), igtl.crc64(body)) + body


def mutate(rng: np.random.Generator, raw: bytes) -> bytes:
    """Return ``raw`` with one to four faults: numbers at their limits, flipped bits, pieces cut out or doubled."""
    data = bytearray(raw)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(HEADER if len(data) > HEADER and rng.random() < 0.8 else 0, len(data)))
        match int(rng.integers(0, 5)):
            case 0:
                data[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                width = int(rng.choice((1, 2, 4, 8)))
                value = NASTY[int(rng.integers(0, len(NASTY)))] & ((1 << 8 * width) - 1)
                data[at : at + width] = value.to_bytes(width)
            case 2:
                del data[at : at + int(rng.integers(1, 40))]
            case 3:
                data[at:at] = data[at : at + int(rng.integers(1, 40))]
            case _:
                data[at : at + 4] = rng.bytes(4)
        if len(data) < HEADER:
            data += bytes(HEADER - len(data))
    changed = bytes(data)
    return repair(changed) if rng.random() < 0.9 else changed


def trial(rng: np.random.Generator, seeds: list[bytes], cap: int) -> str:
    """Feed one mutated message, cut at random; return what came of it: ``read`` or the reason of the refusal.

    What was read must also go out again, or be refused as ours.  Any other exception is the defect looked for.
    """
    raw = mutate(rng, seeds[int(rng.integers(0, len(seeds)))])
    cut = int(rng.integers(0, len(raw) + 1))
    framer = igtl.Framer(cap)
    try:
        got = framer.feed(raw[:cut]) + framer.feed(raw[cut:])
    except igtl.RemoteProtocolError as error:
        return str(error)
    for message in got:
        try:
            igtl.encode(message)
        except LocalProtocolError:
            continue
    return "read" if got else "incomplete"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cap", type=int, default=1 << 20, help="the framer's largest body")
    parser.add_argument("--json", action="store_true", help="report as one JSON line")
    args = parser.parse_args()
    rng, seeds = np.random.default_rng(args.seed), [igtl.encode(message) for message in messages()]
    outcomes = {"read": 0, "incomplete": 0, "refused": 0}
    slowest, began = 0.0, time.perf_counter()
    early_kib = 0
    for n in range(args.count):
        start = time.perf_counter()
        outcome = trial(rng, seeds, args.cap)
        slowest = max(slowest, time.perf_counter() - start)
        outcomes[outcome if outcome in outcomes else "refused"] += 1
        if n == min(10_000, args.count // 2):
            early_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = time.perf_counter() - began
    late_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = {
        "count": args.count,
        "seed": args.seed,
        **outcomes,
        "seconds": round(seconds, 1),
        "slowest_ms": round(slowest * 1e3, 2),
        "peak_memory_growth_kib": late_kib - early_kib,
    }
    print(json.dumps(report) if args.json else "\n".join(f"{key:24}{value}" for key, value in report.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
