import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from navsrv.kernel.errors import FrameMismatch
from navsrv.kernel.frames import (
    CT,
    REFERENCE,
    RIGIDITY_TOLERANCE,
    TRACKER,
    Array,
    Frame,
    Rigid,
    flip_lps_ras,
    frozen_array,
    nearest_rotation,
    points_ras_from_lps,
    polished_rotation,
    quaternion_wxyz,
    rotation_angle_rad,
    rotation_defect,
    rotation_from_quaternion_wxyz,
    rotation_from_vector,
    rotation_z_onto,
    skew,
)
from navsrv.kernel.registration import tre_rms_mm

A, B, C, D = (Frame(name) for name in "abcd")
LENGTH = st.floats(-1000.0, 1000.0)
VECTOR = st.tuples(LENGTH, LENGTH, LENGTH).map(np.array)
TURN = st.tuples(*[st.floats(-math.pi, math.pi)] * 3).map(np.array)
"""Rotation vectors, the half turns and beyond included."""


def rigid(to: Frame, frm: Frame, turn: Array, shift: Array, covariance: Array | None = None) -> Rigid:
    return Rigid(to, frm, Rotation.from_rotvec(turn).as_matrix(), shift, covariance)


# -- group laws ------------------------------------------------------------------------------------------------


@given(TURN, VECTOR, TURN, VECTOR, TURN, VECTOR)
def test_product_is_associative_and_agrees_with_4x4(
    r1: Array, t1: Array, r2: Array, t2: Array, r3: Array, t3: Array
) -> None:
    T_a_from_b, T_b_from_c, T_c_from_d = rigid(A, B, r1, t1), rigid(B, C, r2, t2), rigid(C, D, r3, t3)
    left = (T_a_from_b @ T_b_from_c) @ T_c_from_d
    right = T_a_from_b @ (T_b_from_c @ T_c_from_d)
    assert (left.to, left.frm) == (right.to, right.frm) == (A, D)
    np.testing.assert_allclose(left.matrix, right.matrix, atol=1e-9)
    np.testing.assert_allclose(left.matrix, T_a_from_b.matrix @ T_b_from_c.matrix @ T_c_from_d.matrix, atol=1e-9)


@given(TURN, VECTOR, VECTOR)
def test_inverse_undoes_and_apply_is_the_matrix(turn: Array, shift: Array, point: Array) -> None:
    T_a_from_b = rigid(A, B, turn, shift)
    back = T_a_from_b.inverse()
    assert (back.to, back.frm) == (B, A)
    np.testing.assert_allclose((T_a_from_b @ back).matrix, np.eye(4), atol=1e-9)
    np.testing.assert_allclose((back @ T_a_from_b).matrix, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(T_a_from_b.apply(point), (T_a_from_b.matrix @ [*point, 1.0])[:3], atol=1e-9)
    np.testing.assert_allclose(T_a_from_b.apply(np.stack([point] * 2))[1], T_a_from_b.apply(point), atol=1e-12)
    same = T_a_from_b @ Rigid.identity(B, B)
    assert (same.matrix == T_a_from_b.matrix).all()


def test_frames_that_do_not_meet_are_refused_by_name() -> None:
    with pytest.raises(FrameMismatch, match=r"T_ct_from_reference @ T_tracker_from_reference.*reference does not meet"):
        Rigid.identity(CT, REFERENCE) @ Rigid.identity(TRACKER, REFERENCE)


# -- what is not a pose ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rotation",
    [
        np.diag([1.0, 1.0, -1.0]),
        np.zeros((3, 3)),
        np.eye(3) * 1.001,
        np.diag([1.0, np.nan, 1.0]),
        np.array([[1.0, 0.0, np.nan], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
        np.diag([np.inf, 1.0, 1.0]),
        np.eye(3)[[1, 0, 2]],
    ],
)
def test_matrices_that_are_no_rotation_are_refused(rotation: Array) -> None:
    with pytest.raises(ValueError, match="not a rigid transform a from b"):
        Rigid(A, B, rotation, np.zeros(3))
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    with pytest.raises(ValueError, match="not a rigid transform a from b"):
        Rigid.from_matrix(A, B, matrix)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_translation_that_is_not_finite_is_refused_for_that(bad: float) -> None:
    with pytest.raises(ValueError, match="translation"):
        Rigid(A, B, np.eye(3), np.array([0.0, bad, 0.0]))


@pytest.mark.parametrize(
    "matrix", [np.eye(3), np.diag([1.0, 1.0, 1.0, 2.0]), np.vstack([np.eye(4)[:3], [[0.0, 0.0, 1e-9, 1.0]]])]
)
def test_matrices_that_are_not_homogeneous_are_refused(matrix: Array) -> None:
    with pytest.raises(ValueError, match="homogeneous"):
        Rigid.from_matrix(A, B, matrix)


def test_covariances_that_are_none_are_refused() -> None:
    skewed = np.eye(6)
    skewed[0, 1] = 0.5
    for bad, why in ((np.eye(6) * np.nan, "finite"), (skewed, "symmetric"), (np.diag([1.0] * 5 + [-1.0]), "negative")):
        with pytest.raises(ValueError, match=why):
            Rigid(A, B, np.eye(3), np.zeros(3), bad)
    Rigid(A, B, np.eye(3), np.zeros(3), np.zeros((6, 6)))


def test_arrays_are_copies_that_nobody_can_change() -> None:
    shift = np.zeros(3)
    T = Rigid(A, B, np.eye(3), shift, np.eye(6))
    shift[0] = 5.0
    assert T.translation_mm[0] == 0.0
    for array in (T.rotation, T.translation_mm, T.covariance):
        assert array is not None
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0
    T.matrix[0, 0] = 2.0
    assert T.matrix[0, 0] == 1.0
    with pytest.raises(ValueError, match="shape"):
        frozen_array([1.0, 2.0], (3,))


# -- rounding --------------------------------------------------------------------------------------------------


@given(TURN, st.lists(st.floats(-1.0, 1.0), min_size=9, max_size=9))
def test_polishing_agrees_with_the_nearest_rotation_by_svd(turn: Array, noise: list[float]) -> None:
    rough = Rotation.from_rotvec(turn).as_matrix() + RIGIDITY_TOLERANCE / 8.0 * np.array(noise).reshape(3, 3)
    assert rotation_defect(rough) <= RIGIDITY_TOLERANCE
    polished = polished_rotation(rough)
    assert rotation_defect(polished) < 1e-10
    np.testing.assert_allclose(polished, nearest_rotation(rough), atol=1e-10)
    assert rotation_defect(Rigid.from_matrix(A, B, _homogeneous(rough)).rotation) < 1e-10


def _homogeneous(rotation: Array) -> Array:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    return matrix


# -- covariance ------------------------------------------------------------------------------------------------


def _random_covariance(rng: np.random.Generator, rad: float, mm: float) -> Array:
    scale = np.diag([rad] * 3 + [mm] * 3)
    half = scale @ (np.eye(6) + 0.5 * rng.standard_normal((6, 6)))
    covariance: Array = half @ half.T
    return covariance


def _perturbed(T: Rigid, xi: Array) -> tuple[Array, Array]:
    """Return rotations (N, 3, 3) and translations (N, 3) of ``exp(xi) T``, first order in the translation."""
    turn = Rotation.from_rotvec(xi[:, :3]).as_matrix()
    return turn @ T.rotation, (turn @ T.translation_mm) + xi[:, 3:]


def _spread(T: Rigid, rotations: Array, translations: Array) -> Array:
    """Return the sample covariance (6, 6) of the left perturbations that lead from T to each sample."""
    turns = rotations @ T.rotation.T
    shifts = translations - np.einsum("nij,j->ni", turns, T.translation_mm)
    xi = np.hstack([Rotation.from_matrix(turns).as_rotvec(), shifts])
    return np.asarray(np.cov(xi.T))


def test_covariance_of_product_and_inverse_against_monte_carlo() -> None:
    rng = np.random.default_rng(7)
    n = 200_000
    c1, c2 = _random_covariance(rng, 1e-3, 0.3), _random_covariance(rng, 2e-3, 0.2)
    T1 = rigid(A, B, np.array([0.5, -0.8, 1.1]), np.array([30.0, -80.0, 45.0]), c1)
    T2 = rigid(B, C, np.array([-1.5, 0.3, 0.2]), np.array([-120.0, 10.0, 60.0]), c2)
    R1, t1 = _perturbed(T1, rng.multivariate_normal(np.zeros(6), c1, n))
    R2, t2 = _perturbed(T2, rng.multivariate_normal(np.zeros(6), c2, n))
    product, inverse = T1 @ T2, T1.inverse()
    of_product = _spread(product, R1 @ R2, np.einsum("nij,nj->ni", R1, t2) + t1)
    backwards = np.swapaxes(R1, 1, 2)
    of_inverse = _spread(inverse, backwards, -np.einsum("nij,nj->ni", backwards, t1))
    for predicted, sampled in ((product.covariance, of_product), (inverse.covariance, of_inverse)):
        assert predicted is not None
        sigma = np.sqrt(np.diag(predicted))
        np.testing.assert_allclose(sampled / np.outer(sigma, sigma), predicted / np.outer(sigma, sigma), atol=0.03)


def test_a_product_with_an_unknown_covariance_has_none() -> None:
    known = Rigid(A, B, np.eye(3), np.zeros(3), np.eye(6))
    assert (known @ Rigid.identity(B, C)).covariance is None
    assert Rigid.identity(A, B).inverse().covariance is None


def test_predicted_target_error_against_monte_carlo() -> None:
    rng = np.random.default_rng(3)
    covariance = _random_covariance(rng, 1e-3, 0.4)
    T = rigid(CT, REFERENCE, np.array([0.2, 0.4, -0.3]), np.array([10.0, 20.0, 30.0]), covariance)
    target_ref = np.array([40.0, -90.0, 15.0])
    R, t = _perturbed(T, rng.multivariate_normal(np.zeros(6), covariance, 100_000))
    errors = R @ target_ref + t - T.apply(target_ref)
    rms = float(np.sqrt((errors**2).sum(1).mean()))
    assert tre_rms_mm(T, T.apply(target_ref)) == pytest.approx(rms, rel=0.01)
    assert math.isnan(tre_rms_mm(Rigid.identity(CT, REFERENCE), target_ref))


# -- rotations and quaternions ---------------------------------------------------------------------------------


@given(TURN)
def test_quaternion_against_scipy_and_back(turn: Array) -> None:
    truth = Rotation.from_rotvec(turn)
    w, x, y, z = quaternion_wxyz(truth.as_matrix())
    assert w >= 0.0
    assert math.hypot(w, x, y, z) == pytest.approx(1.0, abs=1e-12)
    theirs = truth.as_quat()[[3, 0, 1, 2]]
    assert abs(float(np.dot((w, x, y, z), theirs))) == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(rotation_from_quaternion_wxyz((w, x, y, z)), truth.as_matrix(), atol=1e-12)


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.6, 0.0, -0.8)])
@pytest.mark.parametrize("degrees", [0.0, 1e-5, 90.0, 179.9999, 180.0, -180.0])
def test_quaternion_near_half_turns(axis: tuple[float, ...], degrees: float) -> None:
    R = Rotation.from_rotvec(np.radians(degrees) * np.array(axis)).as_matrix()
    np.testing.assert_allclose(rotation_from_quaternion_wxyz(quaternion_wxyz(R)), R, atol=1e-12)


def test_quaternion_order_and_sense_are_as_the_name_says() -> None:
    half = math.sqrt(0.5)
    quarter_about_z = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert quaternion_wxyz(quarter_about_z) == pytest.approx((half, 0.0, 0.0, half))
    np.testing.assert_allclose(rotation_from_quaternion_wxyz((2.0, 0.0, 0.0, 2.0)), quarter_about_z, atol=1e-15)


@pytest.mark.parametrize("q", [(0.0, 0.0, 0.0, 0.0), (np.nan, 0.0, 0.0, 1.0)])
def test_a_quaternion_without_length_is_refused(q: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="length zero"):
        rotation_from_quaternion_wxyz(q)


@given(TURN)
def test_rotation_vector_and_angle_against_scipy(turn: Array) -> None:
    truth = Rotation.from_rotvec(turn)
    np.testing.assert_allclose(rotation_from_vector(turn), truth.as_matrix(), atol=1e-9)
    assert rotation_angle_rad(truth.as_matrix()) == pytest.approx(truth.magnitude(), abs=1e-7)


@given(VECTOR, VECTOR)
def test_skew_is_the_cross_product(v: Array, w: Array) -> None:
    np.testing.assert_allclose(skew(v) @ w, np.cross(v, w), atol=1e-9)


@given(TURN)
def test_rotation_z_onto_is_the_smallest_turn(turn: Array) -> None:
    axis = Rotation.from_rotvec(turn).as_matrix()[:, 2]
    R = rotation_z_onto(axis)
    assert rotation_defect(R) < 1e-12
    np.testing.assert_allclose(R[:, 2], axis, atol=1e-12)
    assert rotation_angle_rad(R) == pytest.approx(math.atan2(math.hypot(axis[0], axis[1]), axis[2]), abs=1e-6)


@pytest.mark.parametrize(
    "axis", [(0.0, 0.0, 1.0), (0.0, 0.0, -1.0), (1e-9, 0.0, -1.0), (2e-6, 1e-6, -1.0), (1e-3, -1e-4, -1.0)]
)
def test_rotation_z_onto_at_its_singular_point(axis: tuple[float, ...]) -> None:
    unit = np.array(axis) / np.linalg.norm(axis)
    R = rotation_z_onto(unit)
    assert rotation_defect(R) < 1e-9
    np.testing.assert_allclose(R[:, 2], unit, atol=1e-12)


# -- LPS and RAS -----------------------------------------------------------------------------------------------


def test_lps_to_ras_negates_the_anatomical_side_alone() -> None:
    T_ct_from_tool = rigid(CT, A, np.array([0.3, -0.7, 1.2]), np.array([1.0, 2.0, 3.0])).matrix
    flipped = flip_lps_ras(T_ct_from_tool)
    np.testing.assert_array_equal(flipped, np.diag([-1.0, -1.0, 1.0, 1.0]) @ T_ct_from_tool)
    np.testing.assert_array_equal(flip_lps_ras(flipped), T_ct_from_tool)
    assert np.linalg.det(flipped[:3, :3]) == pytest.approx(1.0)
    tip_tool = np.array([5.0, -6.0, 7.0, 1.0])
    np.testing.assert_allclose((flipped @ tip_tool)[:3], points_ras_from_lps((T_ct_from_tool @ tip_tool)[:3]))


def test_points_go_to_ras_and_back() -> None:
    points = np.array([[1.0, 2.0, 3.0], [-4.0, 5.0, -6.0]])
    ras = points_ras_from_lps(points)
    assert ras.tolist() == [[-1.0, -2.0, 3.0], [4.0, -5.0, -6.0]]
    np.testing.assert_array_equal(points_ras_from_lps(ras), points)
    np.testing.assert_array_equal(flip_lps_ras(points.T), ras.T)
    assert points[0, 0] == 1.0
