"""Owns the configuration of a C-arm's video: the grabber's input, where the picture is in a frame, what is believed.

OpenCV and the driver are imported where a video is configured: the real-time loop reads configurations, too, and shall
not carry them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from navsrv.kernel.checking import Checker, rule

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

if TYPE_CHECKING:
    from devices.frame_grabber import GrabberSpec
    from devices.frame_grabber_picture import Grey


@dataclass(frozen=True, slots=True)
class GrabberConfig:
    """A C-arm's video output, by a frame grabber, a stream or a file.

    ``source``: a device such as ``/dev/video0``, a URL that FFmpeg opens, or a file, which is played at ``rate_hz``.
    ``crop`` is x, y, width and height of the picture in a frame, which must be of size ``frame`` where that is given;
    the picture is scaled to ``size`` squared, and ``pixel_mm`` is the spacing of its pixels then.  ``scan`` says how
    rows came about: all at once, or interlaced, of which one field is taken or both are blended.  ``noise``: standard
    deviation in grey levels that the input shows with the beam off; 0 for a digital input.  ``marker`` is a piece cut
    out of such a picture with the shadow of the lead marker, ``marker_at`` its upper left corner there.
    """

    source: str
    crop: tuple[int, ...] = rule(length=4, low=0, high=8192)
    pixel_mm: float = rule(low=0.01, high=10.0)
    rate_hz: float = rule(25.0, low=1.0, high=240.0)
    frame: tuple[int, ...] | None = rule(None, length=2, low=16, high=8192)
    size: int | None = rule(None, low=64, high=2048)
    scan: Literal["progressive", "top", "bottom", "blend"] = "progressive"
    noise: float = rule(1.0, low=0.0, high=30.0)
    hold_ms: float = rule(500.0, low=50.0, high=5000.0)
    exposure_pictures: int = rule(3, low=1, high=100)
    """So many new pictures make an exposure; 1 takes every change of the screen for one."""
    marker: str | None = None
    marker_at: tuple[int, ...] | None = rule(None, length=2, low=0, high=2048)
    marker_slack_px: int = rule(3, low=0, high=20)
    orientation_trusted: bool = False
    """In place of a marker: nobody can turn or mirror the picture at the console."""
    latency_ms: float | None = rule(None, low=0.0, high=2000.0)
    latency_sigma_ms: float = rule(10.0, low=0.0, high=2000.0)
    unknown_latency_ms: float = rule(150.0, low=0.0, high=2000.0)

    @property
    def side_px(self) -> int | None:
        """Side of the square picture; None if it is none."""
        if self.size is not None:
            return self.size
        return self.crop[2] if self.crop[2] == self.crop[3] else None


def grabber_spec(name: str, config: GrabberConfig) -> GrabberSpec:
    """Return what the driver of a configuration that was checked needs to know."""
    from devices.frame_grabber import GrabberSpec
    from devices.frame_grabber_orientation import Marker
    from devices.frame_grabber_picture import Framing, Scan

    x, y, across, down = config.crop
    frame = None if config.frame is None else (config.frame[0], config.frame[1])
    marker = None
    if config.marker is not None and config.marker_at is not None:
        template = _read(Path(config.marker))
        assert template is not None
        marker = Marker(template, (config.marker_at[0], config.marker_at[1]), config.marker_slack_px)
    unknown_ms = config.unknown_latency_ms if config.latency_ms is None else config.latency_sigma_ms
    return GrabberSpec(
        name,
        config.rate_hz,
        Framing((x, y, across, down), Scan(config.scan), frame, config.size),
        config.noise,
        int(config.hold_ms * 1e6),
        config.exposure_pictures,
        int((config.latency_ms or 0.0) * 1e6),
        int(unknown_ms * 1e6),
        marker,
        config.orientation_trusted,
    )


def located(config: GrabberConfig, folder: Path) -> GrabberConfig:
    """Return it with the marker's path as seen from anywhere; it is written as seen from the configuration's folder."""
    return config if config.marker is None else replace(config, marker=str(_path(config.marker, folder)))


def check_grabbers(checker: Checker, imaging: Mapping[str, Any], folder: Path) -> None:
    """Note faults that only show when the parts of imaging sources with video are held together."""
    for name, source in imaging.items():
        path = f"imaging.{name}.grabber"
        if (source.connect == "grabber") != (source.grabber is not None):
            wrong = "missing" if source.grabber is None else f"the source comes by {source.connect}"
            right = "the table of a grabber" if source.grabber is None else 'connect = "grabber" beside it'
            checker.fault(path, wrong, right)
        elif source.grabber is not None:
            if not _NAME.fullmatch(name):
                checker.fault(f"imaging.{name}", "files are named after it", "letters, digits, _ and - only")
            if source.kind != "projection":
                checker.fault(path, f"video of a {source.kind}", 'kind = "projection"')
            _check(checker, path, source.grabber, folder)


def _check(checker: Checker, path: str, config: GrabberConfig, folder: Path) -> None:
    x, y, across, down = config.crop
    if across < 64 or down < 64:
        checker.fault(f"{path}.crop", f"{across} x {down} pixels", "width and height of at least 64")
    if config.frame is not None and (x + across > config.frame[0] or y + down > config.frame[1]):
        wrong = f"reaches to {x + across}, {y + down}"
        checker.fault(f"{path}.crop", wrong, f"within the frame of {config.frame[0]} x {config.frame[1]}")
    if config.hold_ms * config.rate_hz < 3000.0:
        checker.fault(f"{path}.hold_ms", f"{config.hold_ms:g} ms are fewer than 3 frames", "longer")
    if not config.source.strip():
        checker.fault(f"{path}.source", "empty", "a device such as '/dev/video0', a URL, or a file")
    if config.marker is None:
        if not config.orientation_trusted:
            right = "the shadow of a lead marker, or orientation_trusted = true"
            checker.fault(f"{path}.marker", "missing: nobody would know how the picture is turned", right)
        return
    if config.orientation_trusted:
        checker.fault(f"{path}.orientation_trusted", "true beside a marker", "the one or the other")
    if config.marker_at is None:
        checker.fault(f"{path}.marker_at", "missing", "x and y of the marker's corner in the picture")
    elif config.side_px is None:
        checker.fault(f"{path}.size", "missing, and the crop is not square", "pixels that the picture is scaled to")
    else:
        _check_marker(checker, f"{path}.marker", config, folder)


def _check_marker(checker: Checker, key: str, config: GrabberConfig, folder: Path) -> None:
    from devices.frame_grabber_orientation import Marker

    assert config.marker is not None
    assert config.marker_at is not None
    assert config.side_px is not None
    place = _path(config.marker, folder)
    template = _read(place)
    if template is None:
        checker.fault(key, f"{place}: no picture can be read there", "an image file such as PNG")
        return
    fault = Marker(template, (config.marker_at[0], config.marker_at[1]), config.marker_slack_px).fault(config.side_px)
    if fault:
        checker.fault(key, f"{place}: {fault}", "a shadow that looks, or lies, different every way it may be turned")


def _path(marker: str, folder: Path) -> Path:
    return folder.resolve() / Path(marker).expanduser()


def _read(path: Path) -> Grey | None:
    """Return the grey values of a picture; None where there is none."""
    import cv2

    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError:
        return None
    read = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
    return None if read is None else np.asarray(read, dtype=np.uint8)
