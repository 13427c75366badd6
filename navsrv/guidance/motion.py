"""Owns motion from the recent poses: how fast the instrument moves, closes in, and when it would be there.

Each speed is the slope of a least-squares line over the poses of the last ``WINDOW_NS``.  Of N poses, spaced by dt and
each off by s, it is off by ``s sqrt(12 / (N (N^2 - 1))) / dt`` (Montgomery, Introduction to Linear Regression Analysis,
2.2): at 60 Hz and 0.25 mm by 1.1 mm/s, where the end points alone give 1.8.  It is that of the middle of the window:
**delayed by half of it, 0.1 s**, exactly so for a constant acceleration.  Its noise is taken from the residuals of the
line, so that nothing is assumed of the tracker; a bend in the motion counts as noise too.

What is computed here is shown and counted as doubt; distances, bounds and levels never pass through it.  Refuses time:
stamps come with the poses; a stamp that goes back, or comes from another clock, begins anew.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from navsrv.kernel.frames import Array

WINDOW_NS: Final = 200_000_000
"""Poses of this time give a speed; of a slow source, those of two periods."""
SHORTEST_NS: Final = 20_000_000
"""Poses that span less say more about noise than about speed."""
STEP_NS: Final = WINDOW_NS // 60
"""Of poses that follow one another faster than this, some are left out; never the newest."""
ROOM: Final = 64
"""Most poses remembered: those of a window by steps, and a few."""
SURE: Final = 2.0
"""An approach below this many sigma of its own noise is no approach."""
HORIZON_S: Final = 60.0
"""Beyond it a time to contact says nothing."""
NONE: Final[Array] = np.zeros(0)


class Motion:
    """The recent motion of one instrument against S structures.

    Attributes
    ----------
    closing_mm_s : (2 S,) or (3 S,)
        Of the rows of tip, shaft and zone, positive when coming nearer; not a number while not known.
    contact_s : (2 S,) or (3 S,)
        Time to contact at that speed, delayed like it: 0 in contact; not a number where the row does not close in, not
        surely (``SURE``) or not within ``HORIZON_S``.
    velocity : (6,)
        Of the tip (mm/s) and of the axis (1/s) in CT; zeros while not known.
    """

    __slots__ = (
        "_fresh",
        "_head",
        "_source",
        "_times",
        "_values",
        "_window_ns",
        "closing_mm_s",
        "contact_s",
        "velocity",
    )

    def __init__(self, structures: int, rate_hz: float, *, zone: bool = False) -> None:
        rows = (3 if zone else 2) * structures
        self._window_ns = max(WINDOW_NS, int(2e9 / rate_hz))
        self._times = np.zeros(ROOM, np.int64)
        self._values = np.zeros((ROOM, 6 + rows))
        self._head = np.zeros(2, np.int64)
        self._source = ""
        self.closing_mm_s: Array = np.full(rows, np.nan)
        self.contact_s: Array = np.full(rows, np.nan)
        self.velocity: Array = np.zeros(6)

    def step(
        self, time_ns: int, stamp_source: str, pose: Array, tip_mm: Array, shaft_mm: Array, zone_mm: Array = NONE
    ) -> None:
        """Take a pose of the time ``time_ns``; one of the same time as the last changes nothing.

        Parameters
        ----------
        stamp_source : str
            The clock of ``time_ns``.
        pose : (6,) or longer
            Tip (mm) and axis in CT.
        tip_mm, shaft_mm, zone_mm : (S,)
            Distances of the rows; of the zone empty if there is none.
        """
        if stamp_source != self._source:
            self._source = stamp_source
            self.forget()
        _step(
            time_ns,
            self._window_ns,
            pose,
            tip_mm,
            shaft_mm,
            zone_mm,
            self._times,
            self._values,
            self._head,
            self.closing_mm_s,
            self.contact_s,
            self.velocity,
        )

    def forget(self) -> None:
        """Begin anew: what comes next does not continue what was."""
        self._head[1] = 0


@njit(cache=True, nogil=True)
def _step(
    time_ns: int,
    window_ns: int,
    pose: Array,
    tip_mm: Array,
    shaft_mm: Array,
    zone_mm: Array,
    times: NDArray[np.int64],
    values: Array,
    head: NDArray[np.int64],
    closing: Array,
    contact: Array,
    velocity: Array,
) -> None:
    """Keep the pose in the ring (``head``: newest place, count) and renew the slopes."""
    rows, structures = closing.size, tip_mm.size
    at, count = head[0], head[1]
    if count > 0 and time_ns < times[at]:
        count = 0
    if count == 0 or time_ns > times[at]:
        crowded = count > 1 and time_ns - times[(at - 1) % ROOM] < STEP_NS
        if not crowded:
            at = (at + 1) % ROOM
            count = min(count + 1, ROOM)
        times[at] = time_ns
        for k in range(6):
            values[at, k] = pose[k]
        for k in range(structures):
            values[at, 6 + k] = tip_mm[k]
            values[at, 6 + structures + k] = shaft_mm[k]
        for k in range(zone_mm.size):
            values[at, 6 + 2 * structures + k] = zone_mm[k]
    while time_ns - times[(at - count + 1) % ROOM] > window_ns:
        count -= 1
    head[0], head[1] = at, count
    first = (at - count + 1) % ROOM
    if times[at] - times[first] < SHORTEST_NS:
        for k in range(rows):
            closing[k], contact[k] = np.nan, np.nan
        for k in range(6):
            velocity[k] = 0.0
        return
    mean = 0.0
    for j in range(count):
        mean += 1e-9 * (times[(first + j) % ROOM] - times[first])
    mean /= count
    spread = 0.0
    for j in range(count):
        spread += (1e-9 * (times[(first + j) % ROOM] - times[first]) - mean) ** 2
    for k in range(6 + rows):
        # Against the newest value, so that sums of squares keep their digits.
        newest = values[at, k]
        total, moment, squares = 0.0, 0.0, 0.0
        for j in range(count):
            place = (first + j) % ROOM
            value = values[place, k] - newest
            total += value
            moment += (1e-9 * (times[place] - times[first]) - mean) * value
            squares += value * value
        slope = moment / spread
        if k < 6:
            velocity[k] = slope
            continue
        row = k - 6
        closing[row], contact[row] = -slope, np.nan
        if newest <= 0.0:
            contact[row] = 0.0
        elif count > 2 and slope < 0.0 and newest <= -slope * HORIZON_S:
            residual = max(0.0, squares - total * total / count - slope * moment)
            if slope * slope * spread * (count - 2) > SURE * SURE * residual:
                contact[row] = newest / -slope
