"""Who uses a service: the connections that clients have at its listener, now and within the last minute.

The agent's own looks at a listener don't count: a count that one of them got into is thrown away and done again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from lbswitch.core.guard import Clients

WINDOW_S = 60.0
_TRIES = 40
_PAUSE_S = 0.005


class Usage:
    """Remembers for each service when clients were last seen, and how many. May be used from several threads."""

    def __init__(
        self,
        count: Callable[[Collection[str]], Mapping[str, int | None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`count` gives the connections at services' listeners, those of this agent too; None where unknown."""
        self._count = count
        self._clock = clock
        self._seen: dict[str, tuple[float, int | None]] = {}
        self._lock = threading.Lock()
        self._looks = self._looking = 0

    @contextlib.contextmanager
    def own_look(self) -> Iterator[None]:
        """The agent connects to a listener itself for as long as this lasts."""
        with self._lock:
            self._looks += 1
            self._looking += 1
        try:
            yield
        finally:
            with self._lock:
                self._looking -= 1

    def sample(self, *services: str) -> bool:
        """Count once, all together, and remember who was there; False when a look of the agent's own got in between."""
        with self._lock:
            looks, is_looking = self._looks, self._looking > 0
        if is_looking:
            return False
        counts = self._count(services)
        with self._lock:
            if looks != self._looks:
                return False
            self._seen |= {name: (self._clock(), count) for name, count in counts.items() if count != 0}
            return True

    def count(self, services: Collection[str]) -> None:
        """Sample these until no look of the agent's own gets in between, for a bounded time."""
        for _ in range(_TRIES):
            if self.sample(*services):
                return
            time.sleep(_PAUSE_S)

    def clients(self, service: str) -> Clients | None:
        """Clients now, else those seen within the last minute; None when nobody was there. Counts first."""
        self.count([service])
        at, count = self._seen.get(service, (float("-inf"), 0))
        ago_s = self._clock() - at
        return Clients(count, ago_s) if ago_s <= WINDOW_S else None

    def keep(self, services: Collection[str]) -> None:
        """Forget all others."""
        with self._lock:
            self._seen = {name: seen for name, seen in self._seen.items() if name in services}
