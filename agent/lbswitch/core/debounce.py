"""Leaving edits to settle: quiet for a while after the last, and not put off for longer than that after the first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Debounce:
    """The first and the last touch that nothing was done about yet, in seconds of any clock that only goes forward."""

    first: float | None = None
    last: float | None = None

    def touched(self, now: float) -> Debounce:
        """Something was edited."""
        return Debounce(now if self.first is None else self.first, now)

    def due_at(self, quiet_s: float, most_s: float) -> float | None:
        """When to act: after `quiet_s` without a touch, at the latest `most_s` after the first; None: nothing to do."""
        if self.first is None or self.last is None:
            return None
        return min(self.last + quiet_s, self.first + most_s)
