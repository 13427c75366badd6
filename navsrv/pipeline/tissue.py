"""Owns whether soft tissue lies where its segmentation shows it: an operator says when the patient was turned.

Bone keeps its shape; vessels, bowel and skin do not when a patient is turned from the back to the belly.  From then on
their clearances are doubted more, and the state is DEGRADED, until an operator confirms the anatomy: by an image that
shows it.  A case that was segmented again begins anew.  Refuses to decide that by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from navsrv.pipeline.links import GOOD, Standing


@dataclass(slots=True)
class Tissue:
    """The soft tissue of one session.

    Attributes
    ----------
    soft : tuple of str
        Names of the structures that can move against bone.
    seen : bool
        Whether they were seen since the patient was last turned.
    """

    soft: tuple[str, ...] = ()
    seen: bool = True

    def turn(self) -> None:
        """Take note that the patient was turned."""
        self.seen = False

    def confirm(self) -> None:
        """Take note that the anatomy is as segmented; ValueError where nobody doubts it: a confirmation is no habit."""
        if self.seen:
            raise ValueError("the anatomy is not in doubt: the patient was not turned since it was confirmed")
        self.seen = True

    def standing(self) -> Standing:
        """Return how the soft tissue stands."""
        if self.seen or not self.soft:
            return GOOD
        return Standing("DEGRADED", f"soft tissue not seen since the patient was turned: {_few(self.soft)}")


def _few(names: tuple[str, ...], most: int = 3) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
