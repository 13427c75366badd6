"""Where an image is said to be, and how sure, as a distribution over tracked bodies; what is refused and counted."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from navsrv.kernel.frames import Array
from navsrv.kernel.samples import ProjectionSample, VolumeSample
from navsrv.pipeline.pipeline import Pipeline
from navsrv.pipeline.setup import ReferenceSetup
from navsrv.server.config import load_config
from navsrv.server.operations import Refused
from navsrv.server.placing import Arrival, Exposure, Placing, middle_mm, sigmas_at, with_calibration
from navsrv.server.projections import looked_at, pair_covariance, taken_xray
from tests.pipeline.room import EPOCH_NS, MS, Room, make_setup, needle, source

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fluoroscopy_tracked.toml"
CONFIG = load_config(EXAMPLE)
NOISE_MM, NOISE_RAD = CONFIG.trackers["main"].noise_mm, np.radians(CONFIG.trackers["main"].noise_deg)
T_TRACKER_FROM_REF = np.eye(4)
T_TRACKER_FROM_REF[:3, 3] = 100.0, -50.0, -1600.0
T_TRACKER_FROM_BODY = np.eye(4)
T_TRACKER_FROM_BODY[:3, :3] = Rotation.from_rotvec([0.4, -1.1, 0.3]).as_matrix()
T_TRACKER_FROM_BODY[:3, 3] = -500.0, 300.0, -1300.0


def noisy(pose: Array, rng: np.random.Generator) -> Array:
    """A pose as a tracker tells it: turned and moved in the body's own frame."""
    found = pose.copy()
    found[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec(rng.normal(0.0, NOISE_RAD, 3)).as_matrix()
    found[:3, 3] += rng.normal(0.0, NOISE_MM, 3)
    return found


class Desk:
    """Placing over a real pipeline, whose tracker sees reference and body."""

    def __init__(self) -> None:
        setup = make_setup(
            sources=(source(rate_hz=50.0, noise_mm=NOISE_MM, noise_rad=NOISE_RAD),),
            tools=(needle(),),
            bodies=(ReferenceSetup("main", "CarmBodyToTracker"),),
        )
        self.room = Room(setup)
        self.notes: list[tuple[str, str]] = []
        self.placing = Placing(CONFIG, self._ask, lambda event, text: self.notes.append((event, text)))

    @property
    def pipeline(self) -> Pipeline:
        return self.room.pipeline

    async def _ask(self, op: str, args: dict[str, Any], role: str) -> Any:
        reply = self.room.command(op, **args)
        if not reply.ok:
            raise Refused(reply.value)
        return reply.value

    def see(self, reference: Array, body: Array) -> int:
        """Let the tracker see both, 20 ms after the last; return the stamp."""
        self.room.wait(20)
        self.room.read(self.room.pose("Reference", reference), self.room.pose("CarmBody", body))
        return EPOCH_NS + self.room.now_ns

    def shoot(self, stamp: int) -> Exposure | None:
        image = ProjectionSample("CarmImage", np.zeros((4, 4)), np.eye(4), stamp, 0)
        return asyncio.run(self.placing.place(Arrival("carm", CONFIG.imaging["carm"], image)))


def test_the_place_is_as_unsure_as_it_says_at_the_patient_too() -> None:
    """Squared errors of place and turn by the covariance: six degrees of freedom, over a hundred exposures at once."""
    desk, rng = Desk(), np.random.default_rng(4)
    offset = np.array(CONFIG.imaging["carm"].T_pose_from_image)
    truth = np.linalg.inv(T_TRACKER_FROM_REF) @ T_TRACKER_FROM_BODY @ offset
    squares, ways, sigmas = [], [], []
    patient = np.array([30.0, -80.0, 20.0])
    for _ in range(150):
        stamp = desk.see(noisy(T_TRACKER_FROM_REF, rng), noisy(T_TRACKER_FROM_BODY, rng))
        exposure = desk.shoot(stamp)
        assert exposure is not None
        off = exposure.T_ref_from_image @ np.linalg.inv(truth)
        turn = Rotation.from_matrix(off[:3, :3]).as_rotvec()
        error = np.concatenate([turn, off[:3, 3]])
        squares.append(error @ np.linalg.solve(exposure.covariance, error))
        ways.append(off[:3, :3] @ patient + off[:3, 3] - patient)
        sigmas.append(sigmas_at(exposure.covariance, patient)[1])
    # Mean of 150 chi-squares of 6: 6, with a deviation of 0.28; a covariance of twice or half is far outside.
    assert 5.1 < float(np.mean(squares)) < 6.9
    rms = float(np.sqrt(np.mean(np.square(ways))))
    assert (
        0.5 * float(np.mean(sigmas)) < rms < float(np.mean(sigmas))
    )  # the worst direction's sigma is on the safe side
    assert desk.placing.counts["carm"].accepted == 150


def test_between_two_sights_it_is_interpolated() -> None:
    desk = Desk()
    moved = T_TRACKER_FROM_BODY.copy()
    moved[0, 3] += 4.0
    first = desk.see(T_TRACKER_FROM_REF, T_TRACKER_FROM_BODY)
    desk.see(T_TRACKER_FROM_REF, moved)
    exposure = desk.shoot(first + 5 * MS)
    assert exposure is not None
    half = T_TRACKER_FROM_BODY.copy()
    half[0, 3] += 1.0
    truth = np.linalg.inv(T_TRACKER_FROM_REF) @ half @ np.array(CONFIG.imaging["carm"].T_pose_from_image)
    assert exposure.T_ref_from_image == pytest.approx(truth, abs=1e-3)
    still = desk.shoot(first)
    assert still is not None
    assert np.trace(exposure.covariance[3:, 3:]) > np.trace(still.covariance[3:, 3:]) + 2.0  # of 4 mm that nobody saw


def test_what_has_no_pose_is_refused_in_one_line_and_counted() -> None:
    desk = Desk()
    assert desk.shoot(EPOCH_NS) is None
    stamp = desk.see(T_TRACKER_FROM_REF, T_TRACKER_FROM_BODY)
    desk.see(T_TRACKER_FROM_REF, T_TRACKER_FROM_BODY)
    assert desk.shoot(stamp - 500 * MS) is None
    said = [text for event, text in desk.notes if event == "image_without_pose"]
    assert said == [
        "carm: CarmBodyToTracker has not been seen; not used",
        "carm: CarmBodyToTracker was last seen 500 ms away from the exposure; not used",
    ]
    assert desk.placing.counts["carm"].without_pose == 2


def test_the_last_image_held_is_no_new_image() -> None:
    desk = Desk()
    desk.see(T_TRACKER_FROM_REF, T_TRACKER_FROM_BODY)
    stamp = desk.see(T_TRACKER_FROM_REF, T_TRACKER_FROM_BODY)
    assert desk.shoot(stamp) is not None
    assert desk.shoot(stamp) is None
    assert desk.placing.counts["carm"].repeated == 1


def test_a_registration_from_an_image_is_as_unsure_as_the_images_calibration() -> None:
    """Squared errors of places that are turned about the image's middle and shifted, by the covariance that is said."""
    rng, imaging = np.random.default_rng(11), replace(CONFIG.imaging["carm"], sigma_mm=0.7, sigma_deg=0.4)
    place = np.linalg.inv(T_TRACKER_FROM_REF) @ T_TRACKER_FROM_BODY
    volume = VolumeSample("Spin", np.zeros((4, 6, 8), np.int16), np.diag([2.0, 3.0, 5.0, 1.0]), 0, 0)
    middle = middle_mm(volume, place)
    assert middle == pytest.approx((place @ [7.0, 7.5, 7.5, 1.0])[:3])
    poses = np.diag([1e-6] * 3 + [0.04] * 3)
    covariance = with_calibration(poses, imaging, middle)
    squares = []
    for _ in range(400):
        turn = Rotation.from_rotvec(rng.normal(0.0, np.radians(0.4), 3)).as_matrix()
        turn_poses = Rotation.from_rotvec(rng.normal(0.0, 1e-3, 3)).as_matrix()
        shift = middle - turn @ middle + rng.normal(0.0, 0.7, 3)
        off = turn_poses @ turn
        moved = turn_poses @ shift + rng.normal(0.0, 0.2, 3)
        error = np.concatenate([Rotation.from_matrix(off).as_rotvec(), moved])
        squares.append(error @ np.linalg.solve(covariance, error))
    # Mean of 400 chi-squares of 6: 6, with a deviation of 0.17.
    assert 5.4 < float(np.mean(squares)) < 6.6


def test_a_pair_of_x_rays_is_as_unsure_as_the_worse_one_and_the_calibration() -> None:
    imaging = CONFIG.imaging["carm"]
    detector = np.diag([1.0, 1.0, 1.0, 1.0])
    detector[:3, 3] = -10.0, -10.0, 1000.0
    pair = []
    for turned, sigma in ((0.0, 0.2), (90.0, 0.5)):
        place = np.eye(4)
        place[:3, :3] = Rotation.from_euler("y", turned, degrees=True).as_matrix()
        place[:3, 3] = np.array([40.0, 50.0, 60.0]) - 500.0 * place[:3, 2]
        image = ProjectionSample("CarmImage", np.zeros((21, 21)), np.eye(4), EPOCH_NS, 0)
        doubt = np.diag([0.0] * 3 + [sigma**2] * 3)
        pair.append(taken_xray(Exposure("carm", imaging, image, place, doubt, detector, 0.0), 0))
    one, other = pair
    looked = looked_at(one.view, other.view)
    assert looked == pytest.approx([40.0, 50.0, 60.0], abs=1e-6)
    turn, shift = sigmas_at(pair_covariance((one, other), imaging), looked)
    assert (turn, shift) == pytest.approx((np.radians(imaging.sigma_deg), np.hypot(0.5, imaging.sigma_mm)))
