"""A series ends by its announced count or by silence; with slices missing, contradictions or too much it is none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.dicom import VolumePart, read_part
from devices.dicom_series import Limits, SeriesGrouper, SeriesRefused, VolumeReady
from navsrv.wire.dicom import DicomFault
from tests.dicom_objects import ct_series, enhanced_ct

SECOND = 1_000_000_000
QUIET = 2 * SECOND
COUNT = 6


def parts_of(**options: object) -> list[VolumePart]:
    slices = ct_series(count=COUNT, size=(16, 18), centre=(12.0, -3.0, 4.0), **options)  # type: ignore[arg-type]
    return [read_part(ds, "1.2.840.10008.1.2.1", 1_000_000, 0) for ds in slices]


def grouper(max_bytes: int = 1_000_000, max_series: int = 3) -> SeriesGrouper:
    return SeriesGrouper(Limits(QUIET, max_bytes, max_series))


@given(st.permutations(range(COUNT)), st.lists(st.integers(0, COUNT - 1), max_size=4))
def test_the_announced_count_completes_a_series_in_any_order_with_any_repeats(
    order: list[int], repeats: list[int]
) -> None:
    parts, series, events = PARTS_WITH_COUNT, grouper(), []
    for n, index in enumerate(order):
        assert events == []
        events = series.add("OARM", parts[index], n * SECOND)
        for again in repeats:
            if again in order[: n + 1] and n + 1 < COUNT:
                assert series.add("OARM", parts[again], n * SECOND) == []
    (ready,) = events
    assert isinstance(ready, VolumeReady)
    assert np.array_equal(ready.volume.sample.voxels, np.concatenate([part.hu for part in parts]))
    assert ready.volume.sample.received_ns == (COUNT - 1) * SECOND
    assert series.next_due_ns() is None
    assert series.held_bytes == 0


PARTS_WITH_COUNT = parts_of(ImagesInAcquisition=COUNT)


def test_silence_completes_a_series_that_announced_nothing() -> None:
    series = grouper()
    for n, part in enumerate(parts_of()):
        assert series.add("OARM", part, n * SECOND) == []
    last = (COUNT - 1) * SECOND
    assert series.next_due_ns() == last + QUIET
    assert series.step(last + QUIET - 1) == []
    (ready,) = series.step(last + QUIET)
    assert isinstance(ready, VolumeReady)
    assert ready.volume.slices == COUNT


def test_a_series_that_lacks_announced_slices_is_refused_even_where_the_rest_would_fit() -> None:
    series = grouper()
    for part in PARTS_WITH_COUNT[:-1]:
        series.add("OARM", part, 0)
    (refused,) = series.step(QUIET)
    assert isinstance(refused, SeriesRefused)
    assert refused.reason == "5 of 6 announced objects came; slices are missing"


def test_a_gap_in_the_middle_is_refused_without_any_announcement() -> None:
    series, parts = grouper(), parts_of()
    for part in parts[:2] + parts[3:]:
        series.add("OARM", part, 0)
    (refused,) = series.step(QUIET)
    assert isinstance(refused, SeriesRefused)
    assert "is a slice missing?" in refused.reason


def test_an_announced_count_that_is_too_small_does_not_cut_a_volume_short_of_its_middle() -> None:
    parts, series = parts_of(ImagesInAcquisition=3), grouper()
    for part in (parts[0], parts[2], parts[5]):
        assert series.add("OARM", part, 0) == []  # three came, but they make no volume: the count was wrong
    for part in (parts[1], parts[3]):
        assert series.add("OARM", part, 0) == []
    (ready,) = series.add("OARM", parts[4], 0)
    assert isinstance(ready, VolumeReady)
    assert ready.volume.slices == COUNT


def test_an_object_after_the_end_is_refused_and_starts_no_second_volume() -> None:
    series = grouper()
    for part in PARTS_WITH_COUNT:
        series.add("OARM", part, 0)
    with pytest.raises(DicomFault, match="has ended already"):
        series.add("OARM", PARTS_WITH_COUNT[0], SECOND)
    assert series.step(100 * SECOND) == []


def test_an_object_that_comes_twice_with_other_content_is_refused_and_the_first_stands() -> None:
    ours, theirs = ct_series(count=COUNT), ct_series(count=COUNT)
    first = read_part(ours[0], "1.2.840.10008.1.2.1", 1_000_000, 0)
    theirs[1].SeriesInstanceUID, theirs[1].SOPInstanceUID = ours[0].SeriesInstanceUID, ours[0].SOPInstanceUID
    series = grouper()
    series.add("OARM", first, 0)
    with pytest.raises(DicomFault, match="twice with different content"):
        series.add("OARM", read_part(theirs[1], "1.2.840.10008.1.2.1", 1_000_000, 0), 0)
    assert series.held_bytes == first.hu.nbytes


def test_two_devices_may_send_one_series_without_mixing() -> None:
    series, parts = grouper(), PARTS_WITH_COUNT
    for part in parts[:-1]:
        series.add("OARM", part, 0)
        series.add("CT", part, 0)
    assert [event.device for event in series.add("CT", parts[-1], 0)] == ["CT"]
    assert [event.device for event in series.add("OARM", parts[-1], 0)] == ["OARM"]


def test_an_enhanced_object_is_whole_at_once() -> None:
    ds = enhanced_ct(ct_series(count=COUNT))
    (ready,) = grouper().add("OARM", read_part(ds, "1.2.840.10008.1.2.1", 1_000_000, 0), 7)
    assert isinstance(ready, VolumeReady)
    assert ready.volume.sample.received_ns == 7


def test_memory_is_bounded_and_free_again_when_series_have_ended() -> None:
    parts = parts_of()
    series = grouper(max_bytes=parts[0].hu.nbytes * 3)
    for part in parts[:3]:
        series.add("OARM", part, 0)
    with pytest.raises(DicomFault, match="are kept for unfinished series"):
        series.add("OARM", parts[3], 0)
    series.step(QUIET)
    assert series.held_bytes == 0
    others = [parts_of()[0] for _ in range(4)]
    wide = grouper(max_series=3)
    for part in others[:3]:
        wide.add("OARM", part, 0)
    with pytest.raises(DicomFault, match="3 series are unfinished"):
        wide.add("OARM", others[3], 0)
