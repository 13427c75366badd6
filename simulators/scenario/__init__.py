"""Owns scenarios: stories with faults and what the server must answer, in TOML, over sockets or in virtual time.

``spec`` reads a story, ``stage`` makes its world and what its devices send, ``virtual_run`` and ``live_run`` play it,
``watched`` judges what was shown.  ``phantom`` is the small case that most of them play on.
"""

from simulators.scenario.main import main

__all__ = ["main"]
