"""How fast what is left on a color may be closed, and how often it is counted. Pure arithmetic."""

from __future__ import annotations

import math

_QUICK_S, _SELDOM_S = 0.1, 3.0
_SHARE_OF_AGE = 10.0
_COUNTING_SHARE = 100.0  # at most one percent of a core goes into counting,
_CLOSING_SHARE = 10.0  # ten while connections are closed,
_LEAST_OFTEN_S = 20.0  # unless they would be counted less often than this
_LEAST_PARTS = 4
_ROUNDING = 1e-9


def ceiling(total: int, elapsed_s: float, over_s: float) -> int:
    """How many of `total` connections may still be open so long after closing began: evenly fewer, none at the end."""
    if elapsed_s >= over_s:
        return 0
    return total - math.floor(total * max(0.0, elapsed_s) / over_s + _ROUNDING)


def excess(total: int, still_open: int, elapsed_s: float, over_s: float) -> int:
    """How many to close now, of those that are still open.

    Those that ended by themselves count as closed. One that comes late closes no more than a quarter at once, so that
    clients never come back all together.
    """
    at_once = max(1, math.ceil(total / _LEAST_PARTS))
    return max(0, min(still_open - ceiling(total, elapsed_s, over_s), at_once))


def counting_pause_s(age_s: float, took_s: float) -> float:
    """Until the next count: often at first, more seldom as the drain grows old, and never for more than it is worth."""
    wanted = min(max(_QUICK_S, age_s / _SHARE_OF_AGE), _SELDOM_S)
    return min(max(wanted, took_s * _COUNTING_SHARE), _LEAST_OFTEN_S)


def closing_pause_s(total: int, over_s: float, took_s: float) -> float:
    """Until the next few are closed: one by one if that is slow enough, a count taking `took_s`."""
    wanted = min(max(_QUICK_S, over_s / max(1, total)), 1.0)
    return min(max(wanted, took_s * _CLOSING_SHARE), _LEAST_OFTEN_S)
