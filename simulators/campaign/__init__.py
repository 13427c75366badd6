"""Owns campaigns: thousands of insertions in virtual time with drawn parameters, judged against the truth.

``spec`` says what is drawn, ``insertion`` draws and makes one, ``verdict`` judges it, ``run`` does many (processes,
resuming, Dask), ``report`` says what was found with its confidence.  Refuses sockets: what needs them is a scenario.
"""

from simulators.campaign.main import main

__all__ = ["main"]
