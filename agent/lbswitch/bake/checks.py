"""How many health checks of a pool failed within a window, from counters that only grow."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from lbswitch.core.model import PoolKey

_KEPT_S = 3600.0
_APART_S = 1.0


class CheckCounts:
    """Remembers the counters of pools once a second for an hour."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._seen: dict[PoolKey, deque[tuple[float, int, int]]] = {}

    def note(self, now: float, counts: Mapping[PoolKey, tuple[int, int]]) -> None:
        """Checks and failures of each pool so far; pools that are not named are forgotten. `now` in seconds."""
        self._seen = {pool: self._seen.get(pool, deque()) for pool in counts}
        for pool, (checks, failed) in counts.items():
            seen = self._seen[pool]
            if seen and (checks < seen[-1][1] or now < seen[-1][0]):
                seen.clear()  # servers were taken out of the pool, or the clock was set back
            if not seen or now - seen[-1][0] >= _APART_S:
                seen.append((now, checks, failed))
            while now - seen[0][0] > _KEPT_S:
                seen.popleft()

    def within(self, pool: PoolKey, checks: int, failed: int, since: float) -> tuple[int, int]:
        """Checks that ended and failed after `since`, given the counters of now; as far back as is remembered."""
        before = next((seen for seen in reversed(self._seen.get(pool, ())) if seen[0] <= since), None)
        if before is None:
            oldest = next(iter(self._seen.get(pool, ())), None)
            before = oldest if oldest is not None else (since, checks, failed)
        return max(0, checks - before[1]), max(0, failed - before[2])
