"""The compiled way from a matrix to a pose agrees with the kernel's, and refuses what that refuses."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from devices.settling import rigid_of
from navsrv.kernel.frames import CT, VOLUME, Array, Rigid

RNG = np.random.default_rng(5)


def matrix(noise: float) -> Array:
    found = np.eye(4)
    found[:3, :3] = Rotation.random(rng=RNG).as_matrix() + RNG.normal(0.0, noise, (3, 3))
    found[:3, 3] = RNG.normal(0.0, 300.0, 3)
    return found


@pytest.mark.parametrize("noise", [0.0, 3e-8, 1e-5])
def test_a_pose_is_that_of_the_kernel(noise: float) -> None:
    for _ in range(50):
        given = matrix(noise)
        ours, wanted = rigid_of(CT, VOLUME, given), Rigid.from_matrix(CT, VOLUME, given)
        assert (ours.to, ours.frm) == (CT, VOLUME)
        np.testing.assert_allclose(ours.matrix, wanted.matrix, atol=1e-13)
        np.testing.assert_allclose(ours.rotation.T @ ours.rotation, np.eye(3), atol=1e-12)


def broken(kind: str) -> Array:
    given = matrix(0.0)
    match kind:
        case "mirror":
            given[:3, 0] *= -1.0
        case "scaled":
            given[:3, :3] *= 1.01
        case "not a number":
            given[1, 1] = np.nan
        case "nowhere":
            given[0, 3] = np.inf
        case "perspective":
            given[3, 0] = 1e-3
        case _:
            given = given[:3]
    return given


@pytest.mark.parametrize("kind", ["mirror", "scaled", "not a number", "nowhere", "perspective", "three rows"])
def test_what_is_no_rigid_motion_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"not a (rigid|homogeneous)"):
        rigid_of(CT, VOLUME, broken(kind))
