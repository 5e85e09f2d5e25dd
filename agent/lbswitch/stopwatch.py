"""How long the steps of an operation take."""

from __future__ import annotations

import time

from lbswitch.core.model import Timings


class Stopwatch:
    """Milliseconds per phase, from its making on."""

    def __init__(self) -> None:
        """Start."""
        self._began = self._last = time.perf_counter()
        self._phases: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """What passed since the last lap belongs to this phase (a field of `Timings`)."""
        now = time.perf_counter()
        self._phases[phase] = self._phases.get(phase, 0.0) + (now - self._last) * 1000
        self._last = now

    def timings(self) -> Timings:
        """All of it until now."""
        return Timings(**self._phases, total=(time.perf_counter() - self._began) * 1000)
