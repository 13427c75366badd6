"""Owns X-ray images on their way to displays: a picture, when it was taken, and its projection, frozen then."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from navsrv.kernel.samples import ProjectionSample
from navsrv.server.placing import Exposure


def write_fluoroscopy(folder: Path, exposure: Exposure) -> str:
    """Write the newest X-ray, and the newest of its source, as PNG with its facts beside it; return the picture's name.

    The facts hold ``T_ref_from_carm`` (C-arm frame: origin at the source, +z to the detector) and, where the device
    sent the detector's pose, ``T_carm_from_index``: (column, row, 0, 1) to millimetres in the C-arm's frame.
    """
    image = exposure.image
    assert isinstance(image, ProjectionSample)
    # One exposure may come twice, by network and by DICOM, and then mirrored.
    source = re.sub(r"[^\w-]", "_", exposure.source)
    name = f"fluoro-{source}-{image.device_time_ns}.png"
    ok, encoded = cv2.imencode(".png", _eight_bit(np.asarray(image.pixels)))
    if not ok:
        raise ValueError("the X-ray cannot be encoded as PNG")
    T_carm_from_index = None
    if exposure.detector is not None:
        T_carm_from_index = (exposure.detector @ image.index_to_image_mm).ravel().tolist()
    facts: dict[str, Any] = {
        "image": f"/api/fluoro/{name}",
        "time_ns": str(image.device_time_ns),
        "columns": int(image.pixels.shape[1]),
        "rows": int(image.pixels.shape[0]),
        "source": exposure.source,
        "T_ref_from_carm": exposure.T_ref_from_image.ravel().tolist(),
        "T_carm_from_index": T_carm_from_index,
        "pose_off_ms": exposure.pose_off_ms,
    }
    (folder / name).write_bytes(encoded.tobytes())
    for newest in (f"fluoro-{source}.json", "fluoro.json"):
        temporary = folder / f"{newest}.part"
        temporary.write_text(json.dumps(facts))
        os.replace(temporary, folder / newest)
    return name


def _eight_bit(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the picture for the eye: windowed to its middle, contrast evened out locally (CLAHE).

    Percentiles of the whole would be those of open air beside the patient.
    """
    rows, columns = pixels.shape
    middle = pixels[rows // 6 : -(rows // 6) or None, columns // 6 : -(columns // 6) or None]
    low, high = np.percentile(middle, (0.5, 99.0))
    scaled = (pixels.astype(np.float32) - low) * (255.0 / max(float(high - low), 1e-6))
    picture: NDArray[np.uint8] = np.clip(scaled, 0.0, 255.0).astype(np.uint8)
    evened: NDArray[np.uint8] = np.asarray(cv2.createCLAHE(clipLimit=2.0, tileGridSize=(6, 6)).apply(picture))
    return evened
