"""Segments of SEG and RTSTRUCT are on the CT where they were drawn; independent programs see the same voxels."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from scipy.spatial import cKDTree

from navsrv.anatomy.case import Case
from navsrv.anatomy.segmentation_objects import Segmentation, find_segmentation, read_segmentation
from navsrv.anatomy.volumes import read_ct
from navsrv.kernel.errors import InputError
from navsrv.server.cli import main
from tests.anatomy.dicom_segments import completed, rtstruct, saved, seg
from tests.dicom_objects import ORIENTATIONS, ct_series, phantom, write


def room(tmp_path: Path, lying: str = "HFS", **options: Any) -> tuple[list[Dataset], Path, Any]:
    """Return slices, their folder and the CT that is read from it."""
    slices = completed(ct_series(ORIENTATIONS[lying], count=12, size=(20, 24), **options))
    write(tmp_path / "ct", slices)
    return slices, tmp_path / "ct", read_ct(tmp_path / "ct")


def masks_of(slices: Sequence[Dataset], count: int, seed: int = 0) -> NDArray[np.bool_]:
    """Return blocks (slices, rows, columns, segments) that overlap each other."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((len(slices), slices[0].Rows, slices[0].Columns, count), dtype=bool)
    for n in range(count):
        k, j, i = rng.integers(1, 5, 3)
        masks[k : k + 5, j : j + 9, i : i + 11, n] = True
        masks[..., n] &= rng.random(masks.shape[:3]) < 0.9
    return masks


def places(slices: Sequence[Dataset], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return where a mask on the slices as they were written has its voxels, (N, 3) LPS mm."""
    found = []
    for k, j, i in np.argwhere(mask):
        ds = slices[k]
        x, y = np.split(np.array(ds.ImageOrientationPatient, dtype=float), 2)
        dj, di = (float(v) for v in ds.PixelSpacing)
        found.append(np.array(ds.ImagePositionPatient, dtype=float) + x * di * i + y * dj * j)
    return np.array(found)


def found_places(segmentation: Segmentation, number: int) -> NDArray[np.float64]:
    inside = np.isin(segmentation.labels.voxels, segmentation.members[number])
    return segmentation.labels.ct_from_index(np.argwhere(inside)[:, ::-1])


def same_places(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Return whether two sets of voxels are the same, each within a hundredth of a millimetre."""
    far = [cKDTree(a).query(b)[0].max() for a, b in ((one, other), (other, one))]
    return len(one) == len(other) and max(far) < 0.01


@pytest.mark.parametrize("lying", ["HFS", "HFP", "sagittal", "oblique"])
def test_overlapping_segments_of_a_seg_are_where_they_were_drawn(tmp_path: Path, lying: str) -> None:
    slices, _, ct = room(tmp_path, lying)
    masks = masks_of(slices, 3)
    assert (masks.sum(axis=-1) == 3).any(), "all three overlap somewhere"
    path = saved(seg(slices, masks), tmp_path / "seg.dcm")
    found = read_segmentation(path, ct, slices[0].FrameOfReferenceUID)
    assert found.names == {1: "segment 1", 2: "segment 2", 3: "segment 3"}
    for n in range(3):
        assert same_places(found_places(found, n + 1), places(slices, masks[..., n]))
    alone = masks[..., 0] & ~masks[..., 1:].any(axis=-1)
    assert np.count_nonzero(found.labels.voxels == 1) == np.count_nonzero(alone)


def test_a_fractional_segment_holds_what_is_at_least_half_full(tmp_path: Path) -> None:
    slices, _, ct = room(tmp_path)
    parts = np.random.default_rng(1).choice([0.0, 0.2, 0.49, 0.51, 1.0], (12, 20, 24, 1))
    ds = seg(slices, parts, "FRACTIONAL", fractional_type="OCCUPANCY")
    found = read_segmentation(saved(ds, tmp_path / "seg.dcm"), ct, None)
    assert same_places(found_places(found, 1), places(slices, parts[..., 0] > 0.5))


def test_a_label_map_seg_is_read(tmp_path: Path) -> None:
    slices, _, ct = room(tmp_path)
    numbers = np.random.default_rng(2).integers(0, 3, (12, 20, 24)).astype(np.uint8)
    one_hot = np.stack([numbers == 1, numbers == 2], axis=-1)
    found = read_segmentation(saved(seg(slices, one_hot, "LABELMAP"), tmp_path / "seg.dcm"), ct, None)
    for n in range(2):
        assert same_places(found_places(found, n + 1), places(slices, one_hot[..., n]))


def test_dcmqi_reads_the_same_voxels(tmp_path: Path) -> None:
    slices, _, ct = room(tmp_path, "FFS")
    masks = masks_of(slices, 3)
    path = saved(seg(slices, masks), tmp_path / "seg.dcm")
    program = Path(sys.executable).with_name("segimage2itkimage")
    words = [str(program), "--inputDICOM", str(path), "--outputDirectory", str(tmp_path), "-t", "nrrd", "-p", "theirs"]
    subprocess.run(words, check=True, capture_output=True)
    ours = read_segmentation(path, ct, slices[0].FrameOfReferenceUID)
    for n in range(1, 4):
        theirs = sitk.ReadImage(str(tmp_path / f"theirs-{n}.nrrd"))
        inside = np.argwhere(sitk.GetArrayFromImage(theirs))[:, ::-1].tolist()
        points = np.array([theirs.TransformIndexToPhysicalPoint(index) for index in inside])
        assert same_places(points, found_places(ours, n))


def ring(x: float, y: float, radius: float, z: float, count: int = 60) -> NDArray[np.float64]:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.column_stack([x + radius * np.cos(angle), y + radius * np.sin(angle), np.full(count, z)])


def winding(points: NDArray[np.float64], centre: NDArray[np.float64]) -> int:
    """Return how often a closed contour turns about a point, by the sum of its angles: no ray is shot."""
    offset = (points - centre)[:, 0] + 1j * (points - centre)[:, 1]
    return round(float(np.angle(np.roll(offset, -1) / offset).sum() / (2 * np.pi)))


def truth(ct: Any, contours: Sequence[Any], z: float) -> NDArray[np.bool_]:
    """Return which voxel centres of the slice at ``z`` have an odd sum of turns."""
    k = round(float(ct.index_from_ct((0, 0, z))[2]))
    inside = np.zeros(ct.voxels.shape[1:], dtype=bool)
    for j, i in np.ndindex(inside.shape):
        centre = ct.ct_from_index((i, j, k))[:2]
        inside[j, i] = sum(winding(points[:, :2], centre) for points in contours) % 2 == 1
    return inside


def keyhole(outer: NDArray[np.float64], inner: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([outer, outer[:1], inner[::-1], inner[-1:]])


def star(seed: int, z: float) -> NDArray[np.float64]:
    """Return a jagged outline whose corners lie on pixel centres and lines: what a fill stumbles over."""
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 17))
    radius = rng.uniform(3.0, 12.0, 17)
    x, y = 1.0 + radius * np.cos(angle), 2.0 + radius * np.sin(angle)
    return np.column_stack([x, y, np.full(17, z)])


def slice_z(ct: Any, k: int) -> float:
    return float(ct.ct_from_index((0, 0, k))[2])


@pytest.mark.parametrize("shape", ["disc", "hole", "keyhole", "two", "star 1", "star 2", "star 3"])
def test_a_contour_holds_the_voxels_whose_centres_it_turns_about(tmp_path: Path, shape: str) -> None:
    _, _, ct = room(tmp_path)
    z = slice_z(ct, 5)
    disc, hole = ring(1.0, 2.0, 11.3, z), ring(2.5, 1.0, 4.7, z)
    contours = {
        "disc": [disc],
        "hole": [disc, hole],
        "keyhole": [keyhole(disc, hole)],
        "two": [ring(-8.0, 2.0, 4.0, z), ring(8.0, 3.0, 5.0, z)],
    }.get(shape) or [star(int(shape[-1]), z)]
    path = saved(rtstruct("1.2.3", {"thing": contours}), tmp_path / "rs.dcm")
    found = read_segmentation(path, ct, "1.2.3")
    separate = [disc, hole] if shape == "keyhole" else contours
    assert np.array_equal(found.labels.voxels[5] == 1, truth(ct, separate, z))
    assert not found.labels.voxels[[n for n in range(12) if n != 5]].any()


def test_contours_on_every_second_slice_fill_those_between_and_no_more(tmp_path: Path) -> None:
    _, _, ct = room(tmp_path)
    contours = [ring(1, 2, 6.0 + k, slice_z(ct, k)) for k in (2, 4, 6)] + [ring(1, 2, 5.0, slice_z(ct, 10))]
    found = read_segmentation(saved(rtstruct("1.2.3", {"thing": contours}), tmp_path / "rs.dcm"), ct, "1.2.3")
    filled = np.flatnonzero(found.labels.voxels.any(axis=(1, 2))).tolist()
    assert filled == [2, 3, 4, 5, 6, 10], "a wider gap stays one, and nothing is added beyond the ends"
    assert np.array_equal(found.labels.voxels[3], found.labels.voxels[2])


def test_contours_between_slices_go_to_the_nearest(tmp_path: Path) -> None:
    _, _, ct = room(tmp_path)
    contours = [ring(1, 2, 6.0 + k, slice_z(ct, k) + 0.6) for k in (3, 4, 5)]  # slices are 2 mm apart
    found = read_segmentation(saved(rtstruct("1.2.3", {"thing": contours}), tmp_path / "rs.dcm"), ct, "1.2.3")
    for k in (3, 4, 5):
        expected = truth(ct, [ring(1, 2, 6.0 + k, slice_z(ct, k))], slice_z(ct, k))
        assert np.array_equal(found.labels.voxels[k] == 1, expected)


def test_overlapping_rois_keep_all_their_voxels(tmp_path: Path) -> None:
    _, _, ct = room(tmp_path)
    z = slice_z(ct, 5)
    rois = {"body": [ring(1, 2, 12, z)], "bone": [ring(3, 2, 6, z)], "empty": []}
    found = read_segmentation(saved(rtstruct("1.2.3", rois), tmp_path / "rs.dcm"), ct, "1.2.3")
    assert found.names == {1: "body", 2: "bone", 3: "empty"}
    assert found.members == {1: (1, 4), 2: (4,)}
    for number, name in ((1, "body"), (2, "bone")):
        inside = np.isin(found.labels.voxels[5], found.members[number])
        assert np.array_equal(inside, truth(ct, rois[name], z))


@pytest.fixture
def plastimatch(tmp_path: Path, require_program: Callable[[str], Path]) -> Callable[..., None]:
    """Return plastimatch's conversion, run in the test's folder."""
    program = str(require_program("plastimatch"))

    def run(*words: object) -> None:
        subprocess.run([program, "convert", *map(str, words)], check=True, capture_output=True, cwd=tmp_path)

    return run


def filled_by(plastimatch: Callable[..., None], folder: Path, path: Path, *more: str) -> NDArray[np.bool_]:
    """Return the voxels of the only structure as plastimatch fills it on the CT of the folder."""
    plastimatch("--input", path, "--referenced-ct", "ct", "--output-prefix", "back", "--prefix-format", "mha", *more)
    (back,) = (folder / "back").glob("*.mha")
    voxels: NDArray[np.bool_] = sitk.GetArrayFromImage(sitk.ReadImage(str(back))) > 0
    return voxels


@pytest.mark.peer
def test_plastimatch_s_own_contours_are_filled_voxel_by_voxel_alike(
    tmp_path: Path, plastimatch: Callable[..., None]
) -> None:
    slices = completed(ct_series(count=20, size=(40, 44), spacing=(1.0, 1.0), hu=phantom))
    write(tmp_path / "ct", slices)
    ct = read_ct(tmp_path / "ct")
    mask = ct.voxels > 300
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetOrigin(ct.origin_mm.tolist())
    image.SetSpacing(ct.spacing_mm.tolist())
    sitk.WriteImage(image, str(tmp_path / "mask.mha"))
    plastimatch("--input-ss-img", "mask.mha", "--output-dicom", "rs", "--referenced-ct", "ct")
    (path,) = (tmp_path / "rs").glob("*")
    found = read_segmentation(path, ct, slices[0].FrameOfReferenceUID)
    (number,) = found.members
    ours = np.isin(found.labels.voxels, found.members[number])
    assert np.array_equal(ours, filled_by(plastimatch, tmp_path, path))
    assert np.array_equal(ours, mask)


@pytest.mark.peer
def test_plastimatch_fills_our_contours_alike(tmp_path: Path, plastimatch: Callable[..., None]) -> None:
    slices, _, ct = room(tmp_path)
    drawn = []
    for k in range(2, 9):
        z = slice_z(ct, k)
        drawn += [ring(1.0, 2.0, 11.3, z), ring(2.5, 1.0, 4.7, z)] if k < 5 else [star(k, z)]
    path = saved(rtstruct(slices[0].FrameOfReferenceUID, {"thing": drawn}), tmp_path / "rs.dcm")
    ours = read_segmentation(path, ct, slices[0].FrameOfReferenceUID).labels.voxels == 1
    assert np.array_equal(ours, filled_by(plastimatch, tmp_path, path, "--xor-contours"))
    # Unless told so, plastimatch joins the contours of a slice: the hole is full, and nothing else differs.
    joined = filled_by(plastimatch, tmp_path, path)
    hole = np.zeros_like(ours)
    for k in (2, 3, 4):
        hole[k] = truth(ct, [ring(2.5, 1.0, 4.7, slice_z(ct, k))], slice_z(ct, k))
    assert np.array_equal(joined, ours | hole)


REFUSED: dict[str, tuple[Callable[..., Dataset], str]] = {
    "another frame (SEG)": (
        lambda slices, z: seg(completed(ct_series(count=12, size=(20, 24))), masks_of(slices, 1)),
        "segmented in the frame of reference",
    ),
    "another frame (RTSTRUCT)": (
        lambda slices, z: rtstruct("1.2.3", {"a": [ring(1, 2, 9, z)]}),
        "segmented in the frame",
    ),
    "tilted contour": (
        lambda slices, z: rtstruct("", {"a": [ring(1, 2, 9, z) + ring(0, 0, 1, 0)[:, [2, 2, 0]]]}),
        "contours leave their slice by",
    ),
    "half a point": (lambda slices, z: rtstruct("", {"a": [np.arange(10.0)]}), "a contour of 10 numbers"),
    "nothing drawn": (lambda slices, z: rtstruct("", {"a": []}), "no segment has a voxel on this CT"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_belong_to_the_ct_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    slices, _, ct = room(tmp_path)
    make, said = REFUSED[name]
    path = saved(make(slices, slice_z(ct, 5)), tmp_path / "bad.dcm")
    with pytest.raises(InputError) as caught:
        read_segmentation(path, ct, slices[0].FrameOfReferenceUID)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_seg_on_another_grid_is_refused(tmp_path: Path) -> None:
    slices, _, _ = room(tmp_path)
    path = saved(seg(slices, masks_of(slices, 1)), tmp_path / "seg.dcm")
    coarse = completed(ct_series(count=10, size=(20, 24), spacing=(1.3, 1.5)))
    write(tmp_path / "other", coarse)
    with pytest.raises(InputError, match="lies on another grid than the CT"):
        read_segmentation(path, read_ct(tmp_path / "other"), None)


def test_other_files_are_no_segmentation(tmp_path: Path) -> None:
    slices, folder, _ = room(tmp_path)
    (tmp_path / "notes.txt").write_text("no DICOM")
    assert find_segmentation(tmp_path / "notes.txt") is None
    assert find_segmentation(next(folder.iterdir())) is None
    assert find_segmentation(folder) is None
    alone = tmp_path / "alone"
    alone.mkdir()
    path = saved(seg(slices, masks_of(slices, 1)), alone / "seg.dcm")
    assert find_segmentation(alone) == path


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_a_case_is_built_from_a_series_and_its_segmentation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    slices, folder, ct = room(tmp_path, "HFP")
    masks = np.zeros((12, 20, 24, 2), dtype=bool)
    masks[2:10, 4:16, 4:20, 0] = True
    masks[4:8, 6:12, 8:16, 1] = True
    if kind == "SEG":
        ds = seg(slices, masks)
    else:
        zs = [slice_z(ct, k) for k in range(2, 10)]
        rois = {"outer": [ring(1, 2, 8, z) for z in zs], "inner": [ring(1, 2, 4, z) for z in zs[2:6]]}
        ds = rtstruct(slices[0].FrameOfReferenceUID, rois)
    path = saved(ds, tmp_path / "segments.dcm")
    words = ["case", "build", "--ct", str(folder), "--labels", str(path), "-o", str(tmp_path / "case")]
    assert main([*words, "--structure", "Sacrum=1:bone", "--structure", "Tumour=2:target"]) == 0
    case = Case.load(tmp_path / "case")
    outer, inner = (case.mesh(name).vertices_mm for name in ("Sacrum", "Tumour"))
    assert np.ptp(inner, axis=0).max() < np.ptp(outer, axis=0).max()
    assert (inner.min(axis=0) > outer.min(axis=0)).all()
    record = json.loads((tmp_path / "case" / "case.json").read_text())["provenance"]["segmentation"]
    assert record["label_values"]["2"] == [3]  # 1 and 2 together
    capsys.readouterr()
    assert main([*words, "--structure", "Sacrum=7:bone"]) == 2
    said = capsys.readouterr().err
    names = "1 (segment 1), 2 (segment 2)" if kind == "SEG" else "1 (outer), 2 (inner)"
    assert f"structure 'Sacrum': segment 7 is not in the file; those with voxels are {names}" in said
    assert main(["case", "build", "--no-ct", *words[4:], "--structure", "Sacrum=1:bone"]) == 2
    assert "give --ct, the CT that it was drawn on" in capsys.readouterr().err
