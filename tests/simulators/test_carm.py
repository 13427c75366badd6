"""The C-arm simulator, as a server sees it whose decoder is pyigtl's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import median_filter

from simulators.world.scene import Scene
from tests.simulators.conftest import ENTRY, TARGET, MiniCase
from tests.simulators.processes import accepted, listening, running


@pytest.mark.realtime
@pytest.mark.parametrize(("view", "fidelity"), [("ap", "full"), ("lateral", "full"), ("ap", "quick")])
def test_the_needles_tip_is_in_the_image_where_the_sent_poses_put_it(
    mini_case: MiniCase, view: str, fidelity: str
) -> None:
    """The whole chain of the wire: CarmToTracker, ImageToCarm, spacing, rows and columns, against the room's truth."""
    scene = Scene.from_seed(6, TARGET)
    axis = (TARGET - ENTRY) / np.linalg.norm(TARGET - ENTRY)
    needle = {"tip_ct_mm": TARGET.tolist(), "axis_ct": axis.tolist()}
    with listening() as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        options = ("--case", mini_case.folder, "--seed", 6, "--server", address, "--orbit-deg-s", 2000)
        options += ("--fidelity", fidelity, "--dose", 1e7)
        with running("carm", *options) as carm, accepted(server) as peer:
            assert carm.event()["ready"] is True
            shots = []
            for order in ({}, {"needle": needle}):
                carm.tell(do="shoot", view=view, **order)
                place = peer.wait_for("ImageToCarm")
                shots.append((place, peer.wait_for("CarmImage")))
            pose = peer.wait_for("CarmToTracker")
    assert carm.process.returncode == 0
    (place, clear), (_, image) = shots
    assert image.metadata["View"] == view
    assert all(abs(picture.timestamp - where.timestamp) < 1e-6 for where, picture in shots)
    plain, with_needle = (s.image.reshape(512, 512).astype(np.float64) for s in (clear, image))
    # Two pictures differ by their noise too, and the hub is of plastic.
    rows, columns = np.nonzero(median_filter(with_needle - plain, 3) < -1200.0)
    assert len(rows) > 30
    T_image_from_ct = np.linalg.inv(pose.matrix @ place.matrix) @ scene.T_tracker_from_ct.matrix
    source = np.linalg.inv(place.matrix)[:3, 3]

    def pixel(
        point_ct_mm: np.ndarray[tuple[int], np.dtype[np.float64]],
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Where the ray from the source through a point meets the plane z = 0 of the image's frame."""
        point = (T_image_from_ct @ [*point_ct_mm, 1.0])[:3]
        on_plane = source + (point - source) * (source[2] / (source[2] - point[2]))
        return np.linalg.solve(image.ijk_to_world_matrix, [*on_plane, 1.0])[:2]

    tip, hub = pixel(TARGET), pixel(TARGET - 150.0 * axis)
    along = (tip - hub) / np.linalg.norm(tip - hub)
    offset = np.stack([columns, rows], axis=1) - tip
    offset = offset[offset @ along > -0.7 * np.linalg.norm(tip - hub)]
    across = offset @ np.array([-along[1], along[0]])
    assert abs(across.mean()) < 0.5
    assert np.abs(across).max() < 4.0
    assert abs((offset @ along).max()) < 4.0
