"""Owns the session's tools that only still images show: which images to look in, when, and telling the loop.

Each new volume, and each X-ray that makes a pair with an earlier one, is searched by a worker; what it found goes to
the loop as an input.  Refuses to guess: images that show no needle, or two, are said to do so, and the operator may
point at one (``find_needle`` with ``near_ct_mm``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Final

import numpy as np

from navsrv.anatomy.case import Case
from navsrv.imaging.found import FoundNeedle, Why
from navsrv.imaging.two_views import ViewDoubt
from navsrv.kernel.errors import InputError
from navsrv.kernel.frames import Array
from navsrv.kernel.samples import VolumeSample
from navsrv.server.config_tables import Config
from navsrv.server.finding import Search, TakenVolume, Untold, find_needle
from navsrv.server.placing import Exposure, middle_mm, sigmas_at
from navsrv.server.processes import give_way
from navsrv.server.projections import TakenXray, XrayShelf, taken_xray

Images = tuple[TakenXray, TakenXray] | TakenVolume
FUTURE_NS: Final = 1_000_000_000


class NoImages(Exception):
    """There is nothing to look in; the text says what is missing, for the operator."""


@dataclass(frozen=True, slots=True)
class Ways:
    """How snapshots reach the rest: the loop, the log, and the registration that the plan is seen by."""

    to_loop: Callable[[str, Any], None]
    note: Callable[[str, str], None]
    T_ct_from_ref: Callable[[], Awaitable[Array | None]]


class Snapshots:
    """Images of tools that no tracker sees."""

    def __init__(self, config: Config, case: Case, ways: Ways) -> None:
        self.tools = {name: tool for name, tool in config.tools.items() if tool.images}
        self.began_ns = time.monotonic_ns()
        self._config, self._ways = config, ways
        plan = case.plan
        self._heading_ct = None if plan is None else plan.target_ct_mm - plan.entry_ct_mm
        self.shelf = XrayShelf(config.registration.pair_s)
        self._newest: dict[str, Images] = {}
        self._undirected: set[str] = set()
        self._worker: ProcessPoolExecutor | None = None

    async def take(self, exposure: Exposure) -> None:
        """Look at a new image for every tool that its source shows."""
        names = [name for name, tool in self.tools.items() if exposure.source in tool.images]
        if not names and exposure.config.kind == "volume":
            return
        images = self._images(exposure)
        for name in names if images is not None else ():
            assert images is not None
            self._newest[name] = images
            await self._find(name, images, None)

    async def registered(self) -> None:
        """Look again where only the plan, seen through a registration, tells the tip from the hub."""
        for name in list(self._undirected):
            await self._find(name, self._newest[name], None)

    async def find(self, tool: str | None, near_ct_mm: list[float] | None) -> dict[str, Any]:
        """Look again in the newest images, near a point of the CT where one is given; return what was found.

        Raises
        ------
        NoImages
            No such tool, no images yet, a point but no registration to see it by.
        """
        if tool is None and len(self.tools) == 1:
            (tool,) = self.tools
        if tool not in self.tools:
            raise NoImages(f"tool {tool!r}: expected one that images show: {', '.join(self.tools) or 'none'}")
        images = self._newest.get(tool)
        if images is None:
            raise NoImages(f"no volume and no pair of X-rays has come for {tool} yet")
        near = None
        if near_ct_mm is not None:
            T_ct_from_ref = await self._ways.T_ct_from_ref()
            if T_ct_from_ref is None:
                raise NoImages("near_ct_mm: there is no registration yet that a point of the CT could be seen by")
            near = (np.linalg.inv(T_ct_from_ref) @ [*near_ct_mm, 1.0])[:3]
        found = await self._find(tool, images, near)
        if isinstance(found, Untold):
            raise NoImages(found.text)
        return {"text": found.text, "tip_sigma_mm": found.tip_sigma_mm, "residual_mm": found.residual_mm}

    def stop(self) -> None:
        """End the worker."""
        if self._worker is not None:
            processes = list((self._worker._processes or {}).values())
            self._worker.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
                process.join(2.0)

    def _images(self, exposure: Exposure) -> Images | None:
        """Return what there is to look in now that this image came; None for an X-ray without a partner yet."""
        image, source = exposure.image, exposure.source
        assert image.device_time_ns is not None
        wall_ns, now_ns = time.time_ns(), time.monotonic_ns()
        taken_ns = now_ns - max(wall_ns - image.device_time_ns, 0)
        if isinstance(image, VolumeSample):
            matrix = exposure.T_ref_from_image @ image.index_to_volume_mm
            doubt = sigmas_at(exposure.covariance, middle_mm(image, exposure.T_ref_from_image))
            return TakenVolume(source, image.voxels, matrix, image.device_time_ns, taken_ns, *doubt)
        try:
            self.shelf.put(taken_xray(exposure, taken_ns))
        except InputError as fault:
            self._ways.note("xray_unusable", str(fault))
            return None
        pair = self.shelf.pair(source)
        if pair is None:
            self._ways.note("xray_alone", f"{source}: one view; a second from another side will show the needle")
        return pair

    async def _find(self, name: str, images: Images, near: Array | None) -> FoundNeedle | Untold:
        tool = self.tools[name]
        search = Search(2.0 * tool.radius_mm, await self._heading(), near, self._doubt(images))
        loop = asyncio.get_running_loop()
        if self._worker is None:
            self._worker = ProcessPoolExecutor(1, get_context("spawn"), give_way)
        found = await loop.run_in_executor(self._worker, find_needle, images, search)
        self._undirected.discard(name)
        if isinstance(found, Untold) and found.why == Why.UNDIRECTED.value:
            self._undirected.add(name)
        self._ways.to_loop("needle", self._told(name, images, found))
        return found

    def _told(self, name: str, images: Images, found: FoundNeedle | Untold) -> dict[str, Any]:
        """Return the loop's input: a pair is as old as the older of its images."""
        oldest = images if isinstance(images, TakenVolume) else min(images, key=lambda x: x.taken_ns)
        value: dict[str, Any] = {
            "tool": name,
            "source": oldest.source,
            "time_ns": oldest.time_ns,
            "taken_ns": oldest.taken_ns,
            "began_ns": self.began_ns,
            "text": found.text,
            "found": None,
        }
        if isinstance(found, FoundNeedle):
            value["found"] = {
                "tip_ref_mm": found.tip_mm.tolist(),
                "axis_ref": found.axis.tolist(),
                "covariance": found.covariance.ravel().tolist(),
            }
        return value

    async def _heading(self) -> Array | None:
        """Return about where the plan points in the reference's frame, if a registration tells."""
        if self._heading_ct is None:
            return None
        T_ct_from_ref = await self._ways.T_ct_from_ref()
        if T_ct_from_ref is None:
            return None
        heading: Array = T_ct_from_ref[:3, :3].T @ self._heading_ct
        return heading

    def _doubt(self, images: Images) -> ViewDoubt:
        """Return how unsure the images' places are, at worst: the poses they were placed by, and their calibration."""
        taken = (images,) if isinstance(images, TakenVolume) else images
        imaging = self._config.imaging[taken[0].source]
        return ViewDoubt(
            rotation_rad=float(np.hypot(max(x.turn_rad for x in taken), np.radians(imaging.sigma_deg))),
            translation_mm=float(np.hypot(max(x.shift_mm for x in taken), imaging.sigma_mm)),
        )
