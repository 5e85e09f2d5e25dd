"""Since when workers are seen to be old."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping


class FirstSeen:
    """Remembers of each old worker when it was first seen so; may be used from any thread."""

    def __init__(self) -> None:
        """Nobody was seen yet."""
        self._since: dict[int, float] = {}
        self._lock = threading.Lock()

    def ages_s(self, pids: Collection[int]) -> Mapping[int, float]:
        """Seconds since each was first named here; those that are not named any more are forgotten."""
        now = time.monotonic()
        with self._lock:
            self._since = {pid: self._since.get(pid, now) for pid in pids}
            return {pid: now - since for pid, since in self._since.items()}
