"""Owns the order of landmarks that were touched in any order: which point belongs to which, found by distances.

Refuses an order that a second one explains about as well (a symmetric arrangement), and points that no order explains.
Distances between points are the same in every frame; those of a partial order bound the FRE of every order that it
begins, so that whole branches need not be tried.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import f as fisher_f

from calibration.paired import checked_sets, fit_rigid, residuals_of
from navsrv.kernel.errors import CalibrationError
from navsrv.kernel.frames import Array

MAX_POINTS: Final = 10
AMBIGUOUS_P: Final = 1e-2
"""Chance that noise alone makes the next best order this much worse; above it the order is refused."""
SURE_P: Final = 1e-3
ORDER_MARGIN_MM: Final = 1.0
NOISE_FLOOR_MM: Final = 0.05
FRE_BOUNDS_MM: Final = (1.0, 3.0, 8.0, 25.0)
"""Orders are looked for with an FRE below the first, else below the next; beyond the last none is."""
MAX_TRIES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Match:
    """An order of correspondence: point ``i`` of the first set belongs to point ``order[i]`` of the second."""

    order: tuple[int, ...]
    fre_mm: float
    next_fre_mm: float
    """FRE of the best order that differs, or what it exceeds; the margin is ``next_fre_mm - fre_mm``."""
    chance: float
    """p of the F test that the two orders fit equally well; the smaller, the surer."""


def match_landmarks(points_from_mm: ArrayLike, points_to_mm: ArrayLike) -> Match:
    """Return the order of correspondence with the smallest FRE, for at most ten points.

    Raises
    ------
    CalibrationError
        More than ten points, no order that fits, or a second order that explains the points nearly as well.
    """
    a, b = checked_sets(points_from_mm, points_to_mm)
    if len(a) > MAX_POINTS:
        raise CalibrationError(f"{len(a)} landmarks in unknown order: at most {MAX_POINTS} can be matched")
    for bound_mm in FRE_BOUNDS_MM:
        best = _Search(a, b, len(a) * bound_mm**2, best_only=True)
        best.run()
        if best.found:
            break
    else:
        raise CalibrationError(
            f"no order of the {len(a)} landmarks fits: FRE above {FRE_BOUNDS_MM[-1]:g} mm with each; "
            "are both sets of the same points, in millimetres?"
        )
    cost, order = min(best.found)
    fre, dof = _fre_mm(cost, len(a)), 3 * len(a) - 6
    # Whatever is further than this is surely another order.
    ratio = float(np.sqrt(fisher_f.isf(SURE_P, dof, dof)))
    within = max(fre + ORDER_MARGIN_MM, ratio * max(fre, NOISE_FLOOR_MM)) + NOISE_FLOOR_MM
    rivals = _Search(a, b, len(a) * within**2, best_only=False)
    rivals.run()
    others = [one for one in rivals.found if one[1] != order]
    next_cost, next_order = min(others, default=(len(a) * within**2, None))
    next_fre = _fre_mm(next_cost, len(a))
    chance = float(fisher_f.sf((next_fre / max(fre, NOISE_FLOOR_MM)) ** 2, dof, dof))
    if next_order is not None and (chance > AMBIGUOUS_P or next_fre - fre < ORDER_MARGIN_MM):
        raise CalibrationError(
            f"the order of the landmarks is ambiguous: FRE {fre:.2f} mm with order {_text(order)}, "
            f"{next_fre:.2f} mm with {_text(next_order)}; touch them in the order of the plan"
        )
    return Match(order, fre, next_fre, chance)


@dataclass(slots=True)
class _Search:
    """Depth first over partial orders; ``bound`` is the sum of squares that no order of interest exceeds."""

    a: Array
    b: Array
    bound: float
    best_only: bool
    found: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)
    tries: int = 0

    def run(self) -> None:
        """Fill ``found`` with (sum of squares, order)."""
        lengths_a = np.linalg.norm(self.a[:, None] - self.a[None], axis=2)
        lengths_b = np.linalg.norm(self.b[:, None] - self.b[None], axis=2)
        # Points far from the others first: their distances tell most.
        self._grow(np.argsort(-lengths_a.sum(axis=1)), lengths_a, lengths_b, (), 0.0)

    def _grow(self, rank: NDArray[np.intp], a: Array, b: Array, chosen: tuple[int, ...], squares: float) -> None:
        """Try each partner of the next point, most likely first.

        Residuals e_i, e_j of a rigid fit change a distance by at most |e_i| + |e_j|, so that over k points the sum of
        e^2 is at least the sum of squared differences of distances / (2 (k - 1)).
        """
        depth = len(chosen)
        if depth == len(rank):
            self._weigh(rank, chosen)
            return
        free = np.array([j for j in range(len(rank)) if j not in chosen])
        gaps = a[rank[depth], rank[:depth]] - b[free[:, None], np.array(chosen, dtype=np.intp)]
        sums = squares + (gaps**2).sum(axis=1)
        for i in np.argsort(sums):
            if sums[i] > self.bound * 2.0 * max(depth, 1):
                return
            self.tries += 1
            if self.tries > MAX_TRIES:
                raise CalibrationError(
                    f"the order of the {len(rank)} landmarks stays open after {MAX_TRIES} tries; "
                    "touch them in the order of the plan"
                )
            self._grow(rank, a, b, (*chosen, int(free[i])), float(sums[i]))

    def _weigh(self, rank: NDArray[np.intp], chosen: tuple[int, ...]) -> None:
        """Keep a whole order if its fit is within the bound."""
        partners = np.empty(len(rank), dtype=np.intp)
        partners[rank] = chosen
        b = self.b[partners]
        cost = float((residuals_of(self.a, b, fit_rigid(self.a, b)) ** 2).sum())
        if cost <= self.bound:
            self.found.append((cost, tuple(int(j) for j in partners)))
            if self.best_only:
                self.bound = cost


def _fre_mm(cost: float, count: int) -> float:
    return float(np.sqrt(cost / count))


def _text(order: tuple[int, ...]) -> str:
    """Return an order as people count, from one."""
    return " ".join(str(i + 1) for i in order)
