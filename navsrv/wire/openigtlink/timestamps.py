"""Owns the stamp of the wire: unsigned 32.32 fixed-point seconds since the Unix epoch; 0 means that none was given.

One unit of it is 0.23 ns, so that each whole nanosecond has a stamp of its own and comes back unchanged.
"""

from __future__ import annotations

from typing import Final

from navsrv.kernel.errors import LocalProtocolError

_NS_PER_S: Final = 1_000_000_000
_HALF_UNIT: Final = 1 << 31
_FRACTION: Final = (1 << 32) - 1
_LIMIT_NS: Final = (1 << 32) * _NS_PER_S


def ns_from_timestamp(timestamp: int) -> int:
    """Return nanoseconds since the Unix epoch, to the nearest, of a raw 32.32 stamp."""
    return (timestamp >> 32) * _NS_PER_S + (((timestamp & _FRACTION) * _NS_PER_S + _HALF_UNIT) >> 32)


def timestamp_from_ns(time_ns: int) -> int:
    """Return the raw 32.32 stamp nearest to ``time_ns`` since the Unix epoch.

    Raises
    ------
    LocalProtocolError
        Before 1970 or after the year 2106, where the wire's 32 bits of seconds end.
    """
    if not 0 <= time_ns <= _LIMIT_NS:
        raise LocalProtocolError(f"time {time_ns} ns is outside what a stamp can say (0 to {_LIMIT_NS})")
    seconds, rest = divmod(time_ns, _NS_PER_S)
    return min((seconds << 32) + ((rest << 32) + _NS_PER_S // 2) // _NS_PER_S, (1 << 64) - 1)
