"""What an X-ray object tells of its geometry puts points where an independent pinhole puts them."""

from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from devices.dicom_xray import read_projection
from navsrv.wire.dicom import DicomFault
from tests.dicom_objects import Items, functional_groups, xa

EXPLICIT = "1.2.840.10008.1.2.1"
SDD, SOD = 1100.0, 700.0


def read(ds: Dataset, seen_from: Any = "detector") -> Any:
    return read_projection(ds, EXPLICIT, 10_000_000, 0, "CARM", 5, seen_from)


def enhanced(primary: float, secondary: float, turn: float = 0.0, size: tuple[int, int] = (30, 40)) -> Dataset:
    """Return an Enhanced XA of one frame with isocentre angles; pixels of 0.8 mm along columns, 0.5 along rows."""
    ds = xa(np.arange(size[0] * size[1]).reshape(size), enhanced=True)
    ds.SharedFunctionalGroupsSequence = Items(
        [
            functional_groups(
                FramePixelDataPropertiesSequence={"ImagerPixelSpacing": [0.8, 0.5]},
                XRayGeometrySequence={"DistanceSourceToDetector": SDD, "DistanceSourceToIsocenter": SOD},
            )
        ]
    )
    ds.PerFrameFunctionalGroupsSequence = Items(
        [
            functional_groups(
                IsocenterReferenceSystemSequence={
                    "PositionerIsocenterPrimaryAngle": primary,
                    "PositionerIsocenterSecondaryAngle": secondary,
                    "PositionerIsocenterDetectorRotationAngle": turn,
                },
                FrameContentSequence={"FrameAcquisitionDateTime": "20261121101112.25+0000"},
            )
        ]
    )
    return ds


def seen_at(point: Any, primary: float, secondary: float) -> Any:
    """Return (column, row) of a point in the isocentre's system, by a pinhole built from the standard's words alone.

    The detector hangs above the table (-Y); the primary angle carries it to the table's left (+X), the secondary to its
    head (+Z).  Who looks from the detector to the source sees +X on the right and +Z up while both are 0.
    """
    a, b = np.radians((primary, secondary))
    turn_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])  # -Y to +X
    turn_x = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])  # -Y to +Z
    right, towards_detector, up = (turn_z @ turn_x @ axis for axis in np.array([[1, 0, 0], [0, -1, 0], [0, 0, 1.0]]))
    source = -SOD * towards_detector
    ray = np.array(point) - source
    scale = SDD / (ray @ towards_detector)
    return np.array([19.5 + scale * (ray @ right) / 0.5, 14.5 - scale * (ray @ up) / 0.8])


@pytest.mark.parametrize(("primary", "secondary"), [(0, 0), (90, 0), (0, 30), (-35, 20), (160, -15)])
def test_points_of_the_equipment_fall_where_a_pinhole_puts_them(primary: float, secondary: float) -> None:
    found = read(enhanced(primary, secondary))
    T_equipment_from_carm = found.geometry.T_equipment_from_carm()
    assert np.linalg.det(T_equipment_from_carm[:3, :3]) == pytest.approx(1.0)
    T_carm_from_index = found.T_carm_from_image @ found.sample.index_to_image_mm
    for point in ([0, 0, 0], [5.0, 0, 0], [0, 4.0, 0], [0, 0, 3.0], [-2.0, 6.0, 4.0]):
        column, row = seen_at(point, primary, secondary)
        pixel = T_equipment_from_carm @ T_carm_from_index @ np.array([column, row, 0, 1])
        ray, wanted = pixel[:3] - T_equipment_from_carm[:3, 3], np.array(point) - T_equipment_from_carm[:3, 3]
        assert ray / np.linalg.norm(ray) == pytest.approx(wanted / np.linalg.norm(wanted), abs=1e-9)
    assert found.sample.device_time_ns == np.datetime64("2026-11-21T10:11:12.25", "ns").astype(np.int64)


def test_ap_shows_the_left_of_the_table_on_the_right_of_the_picture_and_the_head_up() -> None:
    centre = seen_at([0, 0, 0], 0, 0)
    assert seen_at([5, 0, 0], 0, 0)[0] > centre[0]
    assert seen_at([0, 0, 5], 0, 0)[1] < centre[1]


def test_a_picture_seen_from_the_source_is_the_mirror_of_one_seen_from_the_detector() -> None:
    one, other = read(enhanced(0, 0)), read(enhanced(0, 0), "source")
    for found, side in ((one, -1.0), (other, 1.0)):
        T_carm_from_index = found.T_carm_from_image @ found.sample.index_to_image_mm
        first, last = T_carm_from_index @ [0, 0, 0, 1], T_carm_from_index @ [39, 29, 0, 1]
        assert first == pytest.approx([-side * 19.5 * 0.5, -14.5 * 0.8, SDD, 1])
        assert last == pytest.approx([side * 19.5 * 0.5, 14.5 * 0.8, SDD, 1])


def plain(**more: Any) -> Dataset:
    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    known = {"ImagerPixelSpacing": [0.4, 0.3], "DistanceSourceToDetector": SDD, "DistanceSourceToPatient": SOD}
    return xa(
        more.pop("pixels", pixels),
        **{**known, "PositionerPrimaryAngle": 10.0, "PositionerSecondaryAngle": -5.0, **more},
    )


def test_plain_xa_tells_its_facts_but_its_angles_are_no_pose() -> None:
    found = read(plain())
    assert found.sample.pixels.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert np.diag(found.sample.index_to_image_mm) == pytest.approx([0.3, 0.4, 1, 1])
    assert (found.geometry.sdd_mm, found.geometry.source_isocentre_mm) == (SDD, SOD)
    assert (found.geometry.primary_deg, found.geometry.secondary_deg) == (10.0, -5.0)
    with pytest.raises(DicomFault, match="about the patient"):
        found.geometry.T_equipment_from_carm()


def test_of_a_run_the_last_frame_counts_with_its_own_angle_and_time() -> None:
    pixels = np.arange(36, dtype=np.uint16).reshape(3, 3, 4)
    motion = {"PositionerMotion": "DYNAMIC", "PositionerPrimaryAngleIncrement": [0.0, 1.5, 3.5]}
    found = read(plain(pixels=pixels, FrameTime=100.0, **motion))
    assert found.sample.pixels[0, 0] == 24
    assert found.frame == 3
    assert found.geometry.primary_deg == 13.5
    assert found.sample.device_time_ns == np.datetime64("2026-11-21T10:11:12.2", "ns").astype(np.int64)


def test_an_inverted_picture_is_turned_bright_side_up() -> None:
    ds = plain()
    ds.PhotometricInterpretation, ds.BitsStored, ds.HighBit = "MONOCHROME1", 12, 11
    assert read(ds).sample.pixels[0, :2].tolist() == [4095, 4094]


@pytest.mark.parametrize(
    ("ds", "said"),
    [
        (plain(ImagerPixelSpacing=None), "ImagerPixelSpacing is missing"),
        (plain(DistanceSourceToPatient=1200.0), "the isocentre lies 1200 mm from the source, the detector 1100 mm"),
        (plain(PhotometricInterpretation="PALETTE COLOR"), "expected MONOCHROME1 or MONOCHROME2"),
    ],
)
def test_what_gives_no_scale_or_contradicts_itself_is_refused(ds: Dataset, said: str) -> None:
    with pytest.raises(DicomFault, match=said):
        read(ds)


def test_a_distance_of_zero_is_no_distance_and_a_turned_detector_no_pose() -> None:
    assert read(plain(DistanceSourceToDetector=0.0, DistanceSourceToPatient=0.0)).T_carm_from_image is None
    with pytest.raises(DicomFault, match="turned by 12 degrees"):
        read(enhanced(0, 0, turn=12.0)).geometry.T_equipment_from_carm()
