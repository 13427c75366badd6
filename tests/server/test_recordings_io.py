"""Reading recorded poses: each kind of file gives the poses that were written, and bad rows are named."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from mcap.reader import make_reader
from scipy.spatial.transform import Rotation

from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array
from navsrv.pipeline.inputs import BytesIn, LinkDown, LinkUp, encode_input
from navsrv.server.config_tables import Config, ServerConfig, ToolConfig, TrackerConfig
from navsrv.server.recorder import Recording
from navsrv.server.recordings_io import CSV_COLUMNS, paired, read_track, read_tracks
from navsrv.server.records import FRAME, INPUT, pack
from navsrv.wire.openigtlink import Message, Metadata, Transform, encode, timestamp_from_ns

START_NS = 1_700_000_000_000_000_000


def some_poses(n: int, seed: int = 1) -> Array:
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (n, 1, 1))
    poses[:, :3, :3] = Rotation.random(n, rng=rng).as_matrix()
    poses[:, :3, 3] = rng.uniform(-500, 500, (n, 3))
    return poses


def csv_text(poses: Array) -> str:
    rows = [",".join(map(str, (START_NS + i, *map(float, pose.ravel())))) for i, pose in enumerate(poses)]
    return "\n".join((",".join(CSV_COLUMNS), *rows)) + "\n"


def test_csv_keeps_every_nanosecond_and_number(tmp_path: Path) -> None:
    """Catches stamps that pass through float64, which would round them by 128 ns."""
    poses = some_poses(5)
    path = tmp_path / "stylus.csv"
    path.write_text(csv_text(poses))
    track = read_track(path, None)
    assert track.name == "stylus"
    assert track.times_ns.tolist() == [START_NS + i for i in range(5)]
    assert np.array_equal(track.poses, poses)


def igs_text(poses: dict[str, Array], status: dict[tuple[str, int], str] | None = None) -> bytes:
    lines = ["ObjectType = Image", "NDims = 3"]
    for frame in range(len(next(iter(poses.values())))):
        for name, stack in poses.items():
            numbers = " ".join(repr(float(number)) for number in stack[frame].ravel())
            lines += [f"Seq_Frame{frame:04d}_{name}Transform = {numbers} "]
            lines += [f"Seq_Frame{frame:04d}_{name}TransformStatus = {(status or {}).get((name, frame), 'OK')}"]
        lines += [f"Seq_Frame{frame:04d}_Timestamp = {100 + frame / 50}"]
    # What follows is pixels, whatever they look like.
    return "\n".join([*lines, "ElementDataFile = LOCAL", ""]).encode() + b"\x00\xffSeq_Frame0000_Timestamp = 1\n"


def test_igs_sequence_gives_each_transform_without_invalid_frames(tmp_path: Path) -> None:
    tool, reference = some_poses(6, 1), some_poses(6, 2)
    path = tmp_path / "plus.igs.mha"
    path.write_bytes(
        igs_text({"StylusToTracker": tool, "ReferenceToTracker": reference}, {("StylusToTracker", 2): "INVALID"})
    )
    tracks = read_tracks(path)
    assert sorted(tracks) == ["ReferenceToTracker", "StylusToTracker"]
    assert tracks["StylusToTracker"].invalid == 1
    assert np.array_equal(tracks["StylusToTracker"].poses, np.delete(tool, 2, axis=0))
    assert tracks["ReferenceToTracker"].times_ns.tolist() == [100_000_000_000 + i * 20_000_000 for i in range(6)]
    # Composed by equal stamps: the frame without a stylus has no stylus in the reference either.
    both = read_track(path, "StylusToReference")
    assert np.allclose(both.poses, np.delete(np.linalg.inv(reference) @ tool, 2, axis=0))
    times, _, second = paired(tracks["StylusToTracker"], tracks["ReferenceToTracker"])
    assert len(times) == 5
    assert np.array_equal(second, np.delete(reference, 2, axis=0))
    with pytest.raises(InputError, match="holds ReferenceToTracker, StylusToTracker; say which"):
        read_track(path, None)
    with pytest.raises(InputError, match="no transform NeedleToTracker"):
        read_track(path, "NeedleToTracker")


def recording(path: Path, poses: Array, status: list[str]) -> None:
    """Write a recording as the recorder does, of a source that goes down and comes back."""
    config = Config(
        ServerConfig("sacrum"),
        trackers={"optical": TrackerConfig(60.0, names={"Wand": "StylusToTracker"})},
        tools={"stylus": ToolConfig("optical", "StylusToTracker")},
    )
    file = Recording(path, {"config": msgspec.json.encode(config).decode(), "session": "s"})
    file.add(pack(INPUT, encode_input(LinkUp(0, "optical"))))
    for i, pose in enumerate(poses):
        stamp = START_NS + i * 16_000_000
        message = Message(
            "Wand", timestamp_from_ns(stamp), Transform(pose), metadata=(Metadata("TransformStatus", status[i]),)
        )
        data = encode(message)
        if i == 3:
            file.add(pack(INPUT, encode_input(BytesIn("optical", i, stamp, data[:20]))))
            file.add(pack(INPUT, encode_input(LinkDown(i, "optical", "gone"))))
            file.add(pack(INPUT, encode_input(LinkUp(i, "optical"))))
        for part in (data[:33], data[33:]):
            file.add(pack(INPUT, encode_input(BytesIn("optical", i, stamp, part))))
    file.finish()


@pytest.mark.parametrize(("rate_hz", "most_s"), [(1000.0, 0.7), (60.0, 0.7)])
def test_an_index_grows_with_time_and_not_with_the_rate(tmp_path: Path, rate_hz: float, most_s: float) -> None:
    """Each chunk is 2 kB of memory until the end, and what a torn file loses: neither many nor long ones."""
    path, seconds = tmp_path / "long.mcap", 3
    file = Recording(path, {}, rate_hz)
    for _ in range(seconds * int(rate_hz)):
        file.add(pack(INPUT, b"i" * 400))
        file.add(pack(FRAME, b"f" * 1600))
    file.finish()
    with path.open("rb") as stream:
        summary = make_reader(stream).get_summary()
    assert summary is not None
    chunks = len(summary.chunk_indexes)
    assert seconds / most_s <= chunks <= 4 * seconds


def test_mcap_gives_what_the_driver_made_of_the_bytes(tmp_path: Path) -> None:
    poses = some_poses(8)
    path = tmp_path / "session.mcap"
    recording(path, poses, ["OK"] * 5 + ["MISSING", "OK", "OK"])
    track = read_track(path, "StylusToTracker")
    assert track.invalid == 1
    assert np.allclose(track.poses, np.delete(poses, 5, axis=0), atol=1e-4)  # float32 on the wire
    expected = START_NS + 16_000_000 * np.delete(np.arange(8), 5)
    assert np.abs(track.times_ns - expected).max() <= 1


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", "x,y\n1,2\n", "line 1: expected the columns timestamp_ns,m00"),
        ("a.csv", "", "line 1"),
        ("a.csv", csv_text(some_poses(2)) + "5,1,2\n", "line 4: expected whole nanoseconds and 16 numbers"),
        ("a.csv", csv_text(some_poses(1)).replace(f"{START_NS}", "1.5e9"), "line 2"),
        ("a.csv", csv_text(some_poses(1)).replace(f"{START_NS}", "9" * 30), "line 2"),
        ("a.csv", ",".join(CSV_COLUMNS) + "\n", "holds no valid pose"),
        ("a.igs.mha", "ObjectType = Image\n", "no Seq_FrameNNNN_Timestamp"),
        ("a.igs.mha", "Seq_Frame0000_Timestamp = 1\n", "no frame holds a transform"),
        ("a.igs.mha", "Seq_Frame0000_Timestamp = 1\nSeq_Frame0000_AToBTransform = 1 0\n", "frame 0: AToB"),
        ("a.igs.mha", f"Seq_Frame0007_AToBTransform ={' 1' * 16}\nSeq_Frame0000_Timestamp = 1\n", "frame 7"),
        ("a.igs.mha", f"Seq_Frame0000_AToBTransform ={' 1' * 16}\nSeq_Frame0000_Timestamp = nan\n", "frame 0"),
        ("a.mcap", "hello" * 40, "not a recording"),
        ("a.txt", "", "kind .txt"),
    ],
)
def test_bad_files_are_refused_with_their_line(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError) as refused:
        read_track(path, None)
    assert complaint in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_tracks(tmp_path / "none.csv")
