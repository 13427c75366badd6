"""Owns the picture by which the operator judges a registration to X-rays.  Refuses to judge.

One column for each view, two rows: before and after registration.  Each shows the X-ray with the edges of the bone's
DRR on it; where they are right they run along the edges of the bone in the X-ray.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.errors import RegistrationError
from navsrv.kernel.frames import CT, Rigid
from navsrv.kernel.projection import ProjectionModel
from navsrv.registration.drr import DrrVolume
from navsrv.registration.fluoro_views import XrayView

SIDE_PX: Final = 640
_YELLOW: Final = (40, 220, 255)
_WHITE: Final = (235, 235, 235)
_BAR: Final = 26


def fluoro_overlay_png(bone: DrrVolume, views: list[XrayView], transform: Rigid, before: Rigid) -> bytes:
    """Return a PNG of the bone's edges on every X-ray, before (upper row) and after registration (lower row).

    Parameters
    ----------
    bone : DrrVolume
        ``PreparedBone.fine``.
    transform, before : Rigid
        CT from the views' frame: the result, and the start.
    """
    import cv2

    rows = []
    for pose, title in ((before, "BEFORE"), (transform, "AFTER")):
        panels = [_panel(bone, view, pose, n) for n, view in enumerate(views)]
        body = np.concatenate(panels, axis=1)
        head = np.full((_BAR, body.shape[1], 3), 40, dtype=np.uint8)
        text = f"{title} registration: edges of the CT's bone in yellow; they must run along the bone's in the X-ray"
        cv2.putText(head, text, (8, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _WHITE, 1, cv2.LINE_AA)
        rows.append(np.concatenate([head, body]))
    done, png = cv2.imencode(".png", np.concatenate(rows))
    if not done:
        raise RuntimeError("the picture could not be encoded as PNG")
    return png.tobytes()


def _panel(bone: DrrVolume, view: XrayView, pose: Rigid, number: int) -> NDArray[np.uint8]:
    """Return one view (``SIDE_PX`` square, BGR) with the bone's edges where ``pose`` puts them."""
    import cv2

    picture = cv2.cvtColor(_grey(view), cv2.COLOR_GRAY2BGR)
    factor = max(1, round(view.projection.columns / SIDE_PX))
    model = view.projection.binned(factor).seen_from(Rigid.from_matrix(pose.frm, CT, np.linalg.inv(pose.matrix)))
    edges = cv2.resize(_edges(bone, model), (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA) > 90
    picture[edges] = _YELLOW
    cv2.rectangle(picture, (0, 0), (62, 24), (40, 40, 40), -1)
    cv2.putText(picture, f"view {number}", (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _WHITE, 1, cv2.LINE_AA)
    picture[:, -1] = 80
    result: NDArray[np.uint8] = np.asarray(picture, dtype=np.uint8)
    return result


def _edges(bone: DrrVolume, model: ProjectionModel) -> NDArray[np.uint8]:
    """Return the DRR's edges (rows, columns), 255 on an edge; nothing where the bone is out of the picture."""
    import cv2

    try:
        image = bone.render([model])[0, 0]
    except RegistrationError:  # the start may put the bone behind the source
        return np.zeros((model.rows, model.columns), np.uint8)
    seen = image[image > 0.0]
    if not seen.size:
        return np.zeros((model.rows, model.columns), np.uint8)
    grey = np.clip(image * (255.0 / float(np.percentile(seen, 99))), 0.0, 255.0).astype(np.uint8)
    return np.asarray(cv2.Canny(cv2.GaussianBlur(grey, (0, 0), 1.2), 25, 60), dtype=np.uint8)


def _grey(view: XrayView) -> NDArray[np.uint8]:
    """Return the X-ray for the eye: windowed to its middle, contrast evened out locally, bone bright."""
    import cv2

    whole = np.asarray(view.pixels, dtype=np.float32)
    image = np.asarray(cv2.resize(whole, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA), dtype=np.float32)
    image = -image if view.bright_air else image
    inner = image[SIDE_PX // 6 : -SIDE_PX // 6, SIDE_PX // 6 : -SIDE_PX // 6]
    low, high = np.percentile(inner, (0.5, 99.5))
    scaled = np.clip((image - low) * (255.0 / max(float(high - low), 1e-6)), 0.0, 255.0).astype(np.uint8)
    return np.asarray(cv2.createCLAHE(clipLimit=2.0, tileGridSize=(6, 6)).apply(scaled), dtype=np.uint8)
