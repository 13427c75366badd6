"""The encoders of a C-arm: lines of the simulator's gantry over a pseudo-terminal, and what noise may not do."""

import os
import pty
import tty

import numpy as np
import pytest

from devices.carm_encoders import MOST_BAD, CarmEncoders, EncoderCounts, EncoderSpec, nominal_pose
from navsrv.kernel.errors import CalibrationError, RemoteProtocolError
from navsrv.kernel.frames import CARM, Frame, Rigid
from navsrv.kernel.samples import PoseSample, Tracking
from simulators.carm_motion import Encoders, Gantry, Position
from simulators.world.imaging import Detector

STAND = Frame("stand")


def pose_of(orbit_deg: float, tilt_deg: float) -> Rigid:
    if abs(tilt_deg) > 30.0:
        raise CalibrationError("tilt 31 deg: calibrated were -30 to 30 deg")
    rotation, translation = nominal_pose(orbit_deg, tilt_deg, 530.0)
    return Rigid(STAND, CARM, np.array(rotation), np.array(translation))


def driver() -> CarmEncoders:
    return CarmEncoders(EncoderSpec("carm", "CarmToStand", 30.0, pose_of), EncoderCounts())


def line(counter: int, orbit: float = 0.0, tilt: float = 0.0, status: str = "OK") -> bytes:
    """Write a line as docs/carm_encoders.md says, by hand."""
    body = f"CARM,{counter},{orbit:.2f},{tilt:.2f},{status}".encode()
    total = 0
    for byte in body:
        total ^= byte
    return b"$" + body + f"*{total:02X}\r\n".encode()


def fed(source: CarmEncoders, data: bytes) -> list[PoseSample]:
    return source.feed(data, 1_000, 2_000)


def test_the_documents_example_is_a_line() -> None:
    assert line(17, 35.2, -4.0) == b"$CARM,17,35.20,-4.00,OK*02\r\n"


def test_the_gantrys_angles_over_a_terminal_are_its_nominal_poses() -> None:
    """The simulator's own geometry, with the steps of its encoders, against the pose that the driver makes of them."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    source, gantry = driver(), Gantry(Detector(), encoders=Encoders(0.1, (0.0, 0.0), 0.0))
    try:
        for n, (orbit, tilt) in enumerate([(0.0, 0.0), (35.27, -12.31), (-88.0, 20.0), (120.0, 3.33)]):
            gantry = gantry.moved(Position(orbit, tilt))
            read = gantry.encoders.read(gantry.drive)
            os.write(master, line(n, read.orbit_deg, read.tilt_deg))
            data = b""
            while not data.endswith(b"\n"):
                data += os.read(slave, 4096)
            (sample,) = fed(source, data)
            assert sample.tracking is Tracking.OK
            assert sample.pose is not None
            assert sample.pose.matrix == pytest.approx(gantry.nominal().matrix, abs=1e-6)
            assert (sample.name, sample.stamp_source, sample.received_ns) == ("CarmToStand", "receipt", 1_000)
    finally:
        os.close(master)
        os.close(slave)
    assert source.counts == EncoderCounts(accepted=4)


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
def test_any_chunking_gives_the_same_samples_and_a_half_first_line_is_left_out(chunk: int) -> None:
    data = line(9)[8:] + b"".join(line(n, 10.0 * n) for n in range(5))
    source = driver()
    samples = [s for at in range(0, len(data), chunk) for s in fed(source, data[at : at + chunk])]
    assert len(samples) == 5
    assert source.counts == EncoderCounts(accepted=5)


@pytest.mark.parametrize("status", ["HOME", "FAULT", "MOVING"])
def test_what_is_not_ok_is_never_a_pose_and_says_why(status: str) -> None:
    (sample,) = fed(driver(), line(1, status=status))
    assert (sample.pose, sample.tracking) == (None, Tracking.MISSING)
    assert status in sample.reason


@pytest.mark.parametrize(("orbit", "tilt", "said"), [(0.0, 31.0, "calibrated"), (500.0, 0.0, "none that a C-arm has")])
def test_angles_that_the_geometry_does_not_know_are_refused(orbit: float, tilt: float, said: str) -> None:
    source = driver()
    (sample,) = fed(source, line(1, orbit, tilt))
    assert sample.pose is None
    assert said in sample.reason
    assert source.counts.invalid == 1


def test_lost_repeated_and_late_lines_are_counted_and_old_ones_are_no_news() -> None:
    source = driver()
    given = [1, 2, 2, 5, 3, 6]
    samples = fed(source, b"".join(line(n, float(n)) for n in given))
    assert [round(s.pose.translation_mm[0], 1) for s in samples if s.pose is not None] == [
        round(nominal_pose(float(n), 0.0, 530.0)[1][0], 1) for n in (1, 2, 5, 6)
    ]
    assert source.counts == EncoderCounts(accepted=4, repeated=1, lost=2, out_of_order=1)


def test_a_c_arm_that_was_switched_off_and_on_is_heard_again() -> None:
    source = driver()
    assert len(fed(source, line(4000) + line(0) + line(1))) == 3


@pytest.mark.parametrize("at", range(1, 25))
def test_no_changed_character_passes_the_checksum(at: int) -> None:
    whole = line(17, 35.2, -4.0)
    broken = whole[:at] + bytes([whole[at] ^ 0x01]) + whole[at + 1 :]
    source = driver()
    assert fed(source, line(16) + broken + line(18))[-1].pose is not None
    assert source.counts.garbled == 1
    assert source.counts.accepted == 2


def test_a_wrong_baud_rate_ends_the_connection_with_the_reason() -> None:
    source = driver()
    noise = np.random.default_rng(1).integers(128, 256, 100, dtype=np.uint8).tobytes()
    for _ in range(MOST_BAD - 1):
        assert fed(source, noise) == []
    with pytest.raises(RemoteProtocolError, match="baud"):
        fed(source, noise)
    assert source.counts.garbled == MOST_BAD
