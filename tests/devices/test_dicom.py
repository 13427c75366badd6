"""A volume is where its device says, however the patient lies and its values are stored; what is none is refused."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.pixels.encoders import JPEGLSLosslessEncoder
from pydicom.uid import generate_uid

from devices.dicom import assemble, read_part
from navsrv.wire.dicom import DicomFault
from tests.dicom_objects import (
    ORIENTATIONS,
    ct_series,
    enhanced_ct,
    phantom,
    set_pixels,
    write,
)

EXPLICIT = "1.2.840.10008.1.2.1"
MOST = 10_000_000


def volume_of(slices: list[Dataset], syntax: str = EXPLICIT) -> Any:
    parts = [read_part(ds, syntax, MOST, 0) for ds in slices]
    return assemble(parts, "OARM", 5)


def world_of(volume: Any) -> Any:
    """Return (k, j, i, 3): LPS mm of each voxel's centre, by the sample's matrix."""
    voxels, matrix = volume.sample.voxels, volume.sample.index_to_volume_mm
    k, j, i = np.meshgrid(*(np.arange(n) for n in voxels.shape), indexing="ij")
    return np.stack([i, j, k], axis=-1) @ matrix[:3, :3].T + matrix[:3, 3]


@pytest.mark.parametrize("lying", ORIENTATIONS)
def test_every_voxel_of_an_asymmetric_phantom_is_where_it_was_in_the_patient(lying: str) -> None:
    slices = ct_series(ORIENTATIONS[lying])
    rng = np.random.default_rng(3)
    volume = volume_of([slices[n] for n in rng.permutation(len(slices))])
    assert np.array_equal(volume.sample.voxels, phantom(world_of(volume)))
    assert volume.sample.voxels.max() == 1100, "the phantom is in the field of view"
    assert np.linalg.det(volume.sample.index_to_volume_mm[:3, :3]) > 0


@pytest.mark.parametrize("lying", ["HFS", "FFP", "oblique"])
def test_simpleitk_places_the_same_voxels_at_the_same_points(lying: str, tmp_path: Path) -> None:
    slices = ct_series(ORIENTATIONS[lying])
    write(tmp_path, slices)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    volume = volume_of(slices)
    world = world_of(volume)
    for k, j, i in [(0, 0, 0), (5, 7, 11), (20, 30, 3)]:
        index = image.TransformPhysicalPointToIndex(world[k, j, i].tolist())
        assert image.TransformIndexToPhysicalPoint(index) == pytest.approx(world[k, j, i], abs=1e-4)
        assert image[index] == volume.sample.voxels[k, j, i]


@pytest.mark.parametrize("lying", ["HFS", "HFP", "oblique"])
def test_an_enhanced_object_is_the_same_volume_in_any_order_of_its_frames(lying: str) -> None:
    slices = ct_series(ORIENTATIONS[lying])
    order = np.random.default_rng(4).permutation(len(slices)).tolist()
    ours, classic = volume_of([enhanced_ct(slices, order)]), volume_of(slices)
    assert np.array_equal(ours.sample.voxels, classic.sample.voxels)
    assert ours.sample.index_to_volume_mm == pytest.approx(classic.sample.index_to_volume_mm)


@pytest.mark.parametrize(
    ("signed", "bits", "slope", "intercept"),
    [(False, 16, 1, -1024), (True, 16, 1, 0), (True, 12, 1, 0), (False, 12, 1, -1024), (False, 16, 0.5, -1024.5)],
)
def test_hu_come_back_from_every_way_to_store_them(signed: bool, bits: int, slope: float, intercept: float) -> None:
    slices = ct_series(count=3, signed=signed, bits_stored=bits, slope=slope, intercept=intercept, centre=(12, -3, 4))
    volume = volume_of(slices)
    assert np.array_equal(volume.sample.voxels, phantom(world_of(volume)))


def test_bits_above_the_stored_ones_are_no_value() -> None:
    slices = ct_series(count=3, bits_stored=12)
    clean = volume_of(slices).sample.voxels
    for ds in slices:
        words = np.frombuffer(ds.PixelData, "<u2").copy()
        words[::3] |= 0xA000
        ds.PixelData = words.tobytes()
    assert np.array_equal(volume_of(slices).sample.voxels, clean)


def test_slices_may_differ_in_their_rescale() -> None:
    slices = ct_series(count=6)
    for n, ds in enumerate(slices):
        stored = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns) + 10.0 * n
        ds.RescaleIntercept = -1024 - 10 * n
        set_pixels(ds, stored)
    volume = volume_of(slices)
    assert np.array_equal(volume.sample.voxels, phantom(world_of(volume)))


def test_padding_becomes_air_but_tissue_that_looks_like_padding_stays() -> None:
    slices = ct_series(count=3, signed=True, intercept=0)
    for ds in slices:
        words = np.frombuffer(ds.PixelData, "<i2").copy()
        words[:40] = -3024
        ds.PixelData = words.tobytes()
        ds.add_new("PixelPaddingValue", "SS", -3024)
    assert volume_of(slices).sample.voxels.min() == -1000
    tissue = ct_series(count=3, signed=True, intercept=0, hu=lambda p: np.where(p[..., 0] > 0, 0.0, 50.0))
    for ds in tissue:
        ds.add_new("PixelPaddingValue", "SS", 0)
    assert volume_of(tissue).sample.voxels.min() == 0


@pytest.mark.parametrize("tilt", [(0.0, 0.5, 0.0), (-0.3, -0.7, 0.0)])
def test_a_gantry_tilt_is_straightened(tilt: tuple[float, float, float]) -> None:
    def smooth(points: Any) -> Any:
        return 300.0 * np.exp(-(((points - np.array([3.0, -2.0, 4.0])) / np.array([12.0, 9.0, 7.0])) ** 2).sum(axis=-1))

    volume = volume_of(ct_series(hu=smooth, tilt=np.array(tilt)))
    matrix = volume.sample.index_to_volume_mm
    axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    assert axes.T @ axes == pytest.approx(np.eye(3), abs=1e-9)
    assert volume.tilt_deg == pytest.approx(np.degrees(np.arctan(np.linalg.norm(tilt) / 2.0)), abs=0.01)
    found, wanted = volume.sample.voxels.astype(float), smooth(world_of(volume))
    inside = found > -900
    assert inside.mean() > 0.4
    core = inside & (np.roll(inside, 2, 1) & np.roll(inside, -2, 1) & np.roll(inside, 2, 2) & np.roll(inside, -2, 2))
    assert np.abs(found - wanted)[core].max() < 4.0  # linear between pixels, at most 300 / 8 * (1.5 / 9)^2 and rounding


def test_the_time_is_the_middle_of_the_acquisition_in_utc() -> None:
    slices = ct_series(count=3)
    for ds, clock in zip(slices, ("101112.0", "101113", "101114.0"), strict=True):
        ds.AcquisitionTime = clock
    parts = [read_part(ds, EXPLICIT, MOST, 3600) for ds in slices]
    noon = np.datetime64("2026-11-21T09:11:13", "ns").astype(np.int64)
    assert assemble(parts, "OARM", 5).sample.device_time_ns == noon
    slices[0].TimezoneOffsetFromUTC = "-0330"
    assert read_part(slices[0], EXPLICIT, MOST, 3600).taken_ns == np.datetime64("2026-11-21T13:41:12", "ns").astype(
        np.int64
    )


def test_the_equipment_mapping_is_read_row_by_row() -> None:
    matrix = np.array([[0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1.0]])
    volume = volume_of(ct_series(count=3, ImageToEquipmentMappingMatrix=matrix.ravel().tolist()))
    assert np.array_equal(volume.T_equipment_from_volume, matrix)
    with pytest.raises(DicomFault, match="row by row"):
        volume_of(ct_series(count=3, ImageToEquipmentMappingMatrix=matrix.T.ravel().tolist()))
    mirrored = np.diag([-1.0, 1.0, 1.0, 1.0]).ravel().tolist()
    with pytest.raises(DicomFault, match="right-handed"):
        volume_of(ct_series(count=3, ImageToEquipmentMappingMatrix=mirrored))


def without(keyword: str) -> Any:
    def change(slices: list[Dataset]) -> None:
        delattr(slices[3], keyword)

    return change


def setting(**values: Any) -> Any:
    def change(slices: list[Dataset]) -> None:
        for keyword, found in values.items():
            setattr(slices[3], keyword, found)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop(5), "slices 5 and 7 lie 4.000 mm apart, the others 2.000 mm; is a slice missing"),
        (lambda s: s.append(ct_copy(s[4])), "slices 5 and 5 lie at one place"),
        (setting(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "several orientations: 4 is turned by 90.0 degrees"),
        (setting(ImageOrientationPatient=[1, 0, 0, 0.5, 1, 0]), "two unit vectors at right angles"),
        (setting(PixelSpacing=[1.25, 1.6]), "expected one spacing"),
        (setting(PixelSpacing=[0, 1.5]), "two lengths above 0"),
        (setting(FrameOfReferenceUID="1.2.3"), "different frames of reference"),
        (setting(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
        (setting(ImagePositionPatient=[1, 2]), "expected 3 finite numbers"),
        (setting(PhotometricInterpretation="MONOCHROME1"), "MONOCHROME2"),
        (setting(Rows=5000, Columns=5000), "5000 x 5000 x 1 pixels are 50 MB; at most 10"),
        (setting(Rows=37), "cannot be decoded"),
        (without("ImagePositionPatient"), "ImagePositionPatient is missing"),
        (without("RescaleSlope"), "no HU"),
        (without("PixelData"), "no PixelData"),
        (lambda s: s.__delitem__(slice(1, None)), "one slice only"),
    ],
)
def test_what_makes_no_volume_is_refused_with_its_reason(change: Any, said: str) -> None:
    slices = ct_series(count=10)
    change(slices)
    with pytest.raises(DicomFault) as caught:
        volume_of(slices)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def ct_copy(ds: Dataset) -> Dataset:
    """Return the same slice as an object of its own: another phase of one place."""
    other = copy.deepcopy(ds)
    other.SOPInstanceUID = generate_uid()
    return other


def test_a_broken_compressed_stream_is_refused() -> None:
    slices = ct_series(count=3)
    ds = slices[0]
    ds.compress(JPEGLSLosslessEncoder.UID, encoding_plugin="pyjpegls")
    whole = read_part(ds, "1.2.840.10008.1.2.4.80", MOST, 0)
    assert np.array_equal(whole.hu, read_part(ct_series(count=3)[0], EXPLICIT, MOST, 0).hu)
    ds.PixelData = ds.PixelData[:60] + b"\xff" * 200
    with pytest.raises(DicomFault, match="cannot be decoded"):
        read_part(ds, "1.2.840.10008.1.2.4.80", MOST, 0)
    with pytest.raises(DicomFault, match="is not read"):
        read_part(ds, "1.2.840.10008.1.2.4.100", MOST, 0)
