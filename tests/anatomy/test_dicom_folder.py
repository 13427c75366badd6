"""A folder's series is read by the same rules as one that is sent: tilt, repeats, codecs, enhanced objects."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

from navsrv.anatomy.volumes import read_ct
from navsrv.kernel.errors import InputError
from tests.anatomy.dicom_segments import completed, seg
from tests.dicom_objects import ORIENTATIONS, ct_series, enhanced_ct, phantom, write


def world(volume: Any) -> Any:
    k, j, i = np.meshgrid(*(np.arange(n) for n in volume.voxels.shape), indexing="ij")
    return volume.ct_from_index(np.stack([i, j, k], axis=-1).reshape(-1, 3)).reshape(*volume.voxels.shape, 3)


@pytest.mark.parametrize("lying", ORIENTATIONS)
def test_a_series_in_any_orientation_is_in_place_and_turned_to_lps(tmp_path: Path, lying: str) -> None:
    write(tmp_path, ct_series(ORIENTATIONS[lying], count=16))
    volume = read_ct(tmp_path)
    assert np.array_equal(volume.voxels, phantom(world(volume)))
    if lying != "oblique":
        assert volume.direction == pytest.approx(np.eye(3))


def test_an_enhanced_object_alone_in_a_folder_is_a_series(tmp_path: Path) -> None:
    write(tmp_path, [enhanced_ct(ct_series(ORIENTATIONS["HFP"]))])
    volume = read_ct(tmp_path)
    assert np.array_equal(volume.voxels, phantom(world(volume)))


@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless, JPEG2000Lossless])
def test_compressed_series_are_read(tmp_path: Path, syntax: str) -> None:
    slices = ct_series(count=8, centre=(12, -3, 4))
    for ds in slices:
        if syntax == JPEG2000Lossless:
            to_jpeg2000(ds)
        else:
            ds.compress(syntax)
    write(tmp_path, slices)
    volume = read_ct(tmp_path)
    assert np.array_equal(volume.voxels, phantom(world(volume)))


def to_jpeg2000(ds: Any) -> None:
    """Compress an object with Pillow's encoder: another binding than the one that decodes."""
    words = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns)
    stream = io.BytesIO()
    Image.fromarray(words).save(stream, format="JPEG2000", irreversible=False, no_jp2=True)
    ds.PixelData = encapsulate([stream.getvalue()])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless


def test_a_tilted_series_is_straightened_and_its_volume_can_be_a_case(tmp_path: Path) -> None:
    def smooth(points: Any) -> Any:
        return 300.0 * np.exp(-(((points - np.array([3.0, -2.0, 4.0])) / 9.0) ** 2).sum(axis=-1))

    write(tmp_path, ct_series(hu=smooth, tilt=np.array([0.0, 0.6, 0.0])))
    volume = read_ct(tmp_path)
    assert volume.direction == pytest.approx(np.eye(3), abs=1e-6)
    k, j, i = np.unravel_index(int(volume.voxels.argmax()), volume.voxels.shape)
    assert volume.ct_from_index((i, j, k)) == pytest.approx([3.0, -2.0, 4.0], abs=1.3)


def test_what_lies_beside_the_slices_is_left_out(tmp_path: Path) -> None:
    slices = completed(ct_series(count=8, centre=(12, -3, 4)))
    (scout,) = ct_series(ORIENTATIONS["coronal"], count=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    scout.SeriesInstanceUID = slices[0].SeriesInstanceUID
    mask = np.zeros((8, 36, 40, 1), dtype=bool)
    mask[2:5, 5:9, 5:9] = True
    paths = write(tmp_path, [*slices, scout, seg(slices, mask)])
    (tmp_path / "README.txt").write_text("about the patient")
    (tmp_path / "copy.dcm").write_bytes(paths[3].read_bytes())
    assert read_ct(tmp_path).size == (40, 36, 8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"RescaleSlope": None}, "RescaleSlope and RescaleIntercept are missing"),
        ({"FrameOfReferenceUID": "1.2.3"}, "slices of 2 frames of reference"),
        ({"PixelSpacing": [1.25, 1.6]}, "expected one spacing"),
        ({"ImagePositionPatient": [-27.0, -19.875, 2.0]}, "mm off the line of the others"),
    ],
)
def test_a_series_that_is_no_volume_is_refused_in_one_line(tmp_path: Path, change: Any, said: str) -> None:
    slices = ct_series(count=8)
    for keyword, value in change.items():
        setattr(slices[3], keyword, value)
    write(tmp_path, slices)
    with pytest.raises(InputError) as caught:
        read_ct(tmp_path)
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_torn_slice_and_two_phases_are_refused(tmp_path: Path) -> None:
    paths = write(tmp_path / "torn", ct_series(count=4))
    paths[1].write_bytes(paths[1].read_bytes()[:-500])
    with pytest.raises(InputError, match="cannot be decoded"):
        read_ct(tmp_path / "torn")
    first, second = ct_series(count=4, centre=(12, -3, 4)), ct_series(count=4, centre=(12, -3, 4))
    for ds in second:
        ds.SeriesInstanceUID, ds.SOPInstanceUID = first[0].SeriesInstanceUID, generate_uid()
        ds.FrameOfReferenceUID = first[0].FrameOfReferenceUID
    write(tmp_path / "phases", [*first, *second])
    with pytest.raises(InputError, match="lie at one place; are these several phases"):
        read_ct(tmp_path / "phases")
