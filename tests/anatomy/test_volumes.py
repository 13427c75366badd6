"""Volumes are placed in LPS whatever order a file stores them in, and another geometry is told apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from navsrv.anatomy.case import Volume
from navsrv.anatomy.volumes import crop, geometry_differences, read_ct, read_labels, write_mha
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import rotation_from_vector


def image(seed: int = 0, shape: tuple[int, int, int] = (6, 7, 8)) -> Any:
    rng = np.random.default_rng(seed)
    result = sitk.GetImageFromArray(rng.integers(-1000, 1500, shape).astype(np.int16))
    result.SetOrigin((-20.5, 30.25, -101.0))
    result.SetSpacing((0.8, 0.9, 2.5))
    return result


@pytest.mark.parametrize("suffix", ["nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize("order", ["LPS", "RAS", "SLA", "PIR"])
def test_a_voxel_keeps_its_place_in_every_format_and_axis_order(tmp_path: Path, suffix: str, order: str) -> None:
    original = image()
    original.SetDirection(rotation_from_vector((0.05, -0.1, 0.08)).ravel().tolist())
    path = tmp_path / f"ct.{suffix}"
    sitk.WriteImage(sitk.DICOMOrient(original, order), str(path))
    volume = read_ct(path)
    point = original.TransformIndexToPhysicalPoint((3, 2, 5))
    i, j, k = np.rint(volume.index_from_ct(point)).astype(int)
    assert volume.voxels[k, j, i] == original[3, 2, 5]
    assert volume.ct_from_index((i, j, k)) == pytest.approx(point, abs=1e-3)


def write_series(folder: Path, slices: list[int], series: str, description: str) -> None:
    """Write axial slices of ``image`` as DICOM files."""
    folder.mkdir(exist_ok=True)
    whole = image()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for n in slices:
        one = whole[:, :, n]
        position = whole.TransformIndexToPhysicalPoint((0, 0, n))
        for key, value in {
            "0008|0060": "CT",
            "0008|103e": description,
            "0008|0018": f"{series}.{n + 1}",
            "0020|000d": "1.2.3",
            "0020|000e": series,
            "0020|0013": str(n + 1),
            "0020|0032": "\\".join(f"{v:.6f}" for v in position),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": "2.5",
        }.items():
            one.SetMetaData(key, value)
        # File names in the opposite order of the slices: place comes from the header.
        writer.SetFileName(str(folder / f"{series}-{99 - n}.dcm"))
        writer.Execute(one)


def test_a_dicom_series_is_read_in_place(tmp_path: Path) -> None:
    write_series(tmp_path / "series", [0, 1, 2, 3, 4, 5], "1.2.3.4", "Pelvis")
    volume = read_ct(tmp_path / "series")
    whole = image()
    assert np.array_equal(volume.voxels, sitk.GetArrayFromImage(whole))
    assert volume.origin_mm == pytest.approx(whole.GetOrigin())
    assert volume.spacing_mm == pytest.approx(whole.GetSpacing())


def test_a_folder_with_two_series_lists_them_and_takes_the_chosen_one(tmp_path: Path) -> None:
    write_series(tmp_path / "two", [0, 1, 2, 3], "1.2.3.4", "Pelvis")
    write_series(tmp_path / "two", [2, 3, 4], "1.2.3.5", "Scout")
    with pytest.raises(InputError) as caught:
        read_ct(tmp_path / "two")
    assert "1.2.3.4 (Pelvis, 4 slices)" in str(caught.value)
    assert "1.2.3.5 (Scout, 3 slices)" in str(caught.value)
    assert read_ct(tmp_path / "two", "1.2.3.5").size == (8, 7, 3)
    with pytest.raises(InputError, match=r"no series 9\.9; it has"):
        read_ct(tmp_path / "two", "9.9")


def test_a_series_with_a_missing_slice_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "gap", [0, 1, 2, 4, 5], "1.2.3.4", "Pelvis")
    with pytest.raises(InputError, match=r"5\.000 mm apart, the others 2\.500 mm; is a slice missing"):
        read_ct(tmp_path / "gap")


GRID = Volume(np.zeros((4, 5, 6)), (1.0, 2.0, 3.0), (0.7, 0.7, 2.5))


@pytest.mark.parametrize(
    ("other", "texts"),
    [
        (Volume(np.zeros((4, 5, 6)), (1.0, 2.0, 3.0), (0.7, 0.7, 2.5)), []),
        (Volume(np.zeros((4, 5, 6)), (1.00002, 2.0, 3.0), (0.7, 0.70001, 2.5)), []),  # a header's rounding
        (Volume(np.zeros((5, 5, 6)), (1.0, 2.0, 3.0), (0.7, 0.7, 2.5)), ["size is 6 x 5 x 5 voxels"]),
        (Volume(np.zeros((4, 5, 6)), (1.0, 2.0, 3.0), (0.7, 0.7, 3.0)), ["spacing is [0.7, 0.7, 3.0] mm"]),
        (Volume(np.zeros((4, 5, 6)), (1.0, 2.0, 13.0), (0.7, 0.7, 2.5)), ["10.000 mm away"]),
        (
            Volume(np.zeros((4, 5, 6)), (1.0, 2.0, 3.0), (0.7, 0.7, 2.5), rotation_from_vector((0, 0, np.radians(5)))),
            ["turned by 5.000 degrees"],
        ),
        (Volume(np.zeros((4, 5, 7)), (1.0, -2.0, 3.0), (0.8, 0.7, 2.5)), ["size", "spacing", "4.000 mm away"]),
    ],
)
def test_geometry_differences_name_what_differs_and_by_how_much(other: Volume, texts: list[str]) -> None:
    found = geometry_differences(GRID, other)
    assert len(found) == len(texts)
    assert all(text in line for text, line in zip(texts, found, strict=True))


def test_crop_keeps_every_voxel_at_its_place(tmp_path: Path) -> None:
    whole = Volume(np.arange(120).reshape(4, 5, 6), (1, 2, 3), (0.7, 0.8, 2.5), rotation_from_vector((0.2, 0.1, 0)))
    part = crop(whole, (2, 1, 1), (6, 5, 3))
    assert part.voxels[1, 2, 3] == whole.voxels[2, 3, 5]
    assert part.ct_from_index((3, 2, 1)) == pytest.approx(whole.ct_from_index((5, 3, 2)))


def test_labels_that_come_as_floats_are_whole_numbers(tmp_path: Path) -> None:
    voxels = np.zeros((4, 5, 6), np.float32)
    voxels[1:3, 2, 3] = 300
    write_mha(Volume(voxels, (0, 0, 0), (1, 1, 1)), tmp_path / "labels.mha")
    labels = read_labels(tmp_path / "labels.mha")
    assert labels.voxels.dtype == np.uint16
    assert labels.voxels[2, 2, 3] == 300


def test_hu_that_do_not_fit_int16_are_kept(tmp_path: Path) -> None:
    voxels = np.zeros((4, 5, 6), np.float32)
    voxels[0, 0, 0], voxels[1, 1, 1] = 0.25, 70000
    write_mha(Volume(voxels, (0, 0, 0), (1, 1, 1)), tmp_path / "ct.mha")
    ct = read_ct(tmp_path / "ct.mha")
    assert ct.voxels[0, 0, 0] == 0.25
    assert ct.voxels[1, 1, 1] == 70000


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "nrrd", "mha", "compressed.mha", "compressed.nrrd"])
@pytest.mark.parametrize("kept", [0.5, 0.97])
def test_a_torn_file_is_refused_whatever_its_format(tmp_path: Path, suffix: str, kept: float) -> None:
    """ITK itself reads the rest of a torn compressed file as zeros: half a structure would be gone."""
    path, torn = tmp_path / f"whole.{suffix}", tmp_path / f"torn.{suffix}"
    sitk.WriteImage(image(shape=(24, 30, 30)), str(path), "compressed" in suffix)
    read_ct(path)
    data = path.read_bytes()
    torn.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(InputError) as refusal:
        read_ct(torn)
    assert str(torn) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_flipped_bit_in_a_compressed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ct.nii.gz"
    sitk.WriteImage(image(shape=(24, 30, 30)), str(path))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match="torn"):
        read_ct(path)
