"""When checks are due."""

from __future__ import annotations

import random

_TOGETHER = 8
_FEWEST_SLOTS = 8


class Rhythm:
    """Spreads checks over their interval, a few at the same instant: waking up costs more than a check.

    An interval has slots, at multiples of its length divided by their number, so that servers with the same interval
    share them. Times are those of the event loop, in seconds.
    """

    def __init__(self, servers: int) -> None:
        """Make slots for about eight servers each."""
        self._slots = max(_FEWEST_SLOTS, servers // _TOGETHER)

    def first(self, now: float, interval_s: float) -> float:
        """Any slot of the interval that begins now."""
        slot_s = interval_s / self._slots
        return (int(now / slot_s) + 1 + int(_random() * self._slots)) * slot_s

    def following(self, started: float, interval_s: float, jitter: float) -> float:
        """A slot up to `jitter` of the interval before the interval is over, and never after that."""
        slot_s = interval_s / self._slots
        last = int((started + interval_s) / slot_s + 0.001)  # the loop may call a nanosecond early
        earlier = int(jitter * _random() * self._slots + _random())  # rounded at random, so that the mean is right
        return (last - min(earlier, self._slots - 1)) * slot_s


def _random() -> float:
    return random.random()  # noqa: S311 - spreads load, guards no secret
