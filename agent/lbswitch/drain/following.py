"""One service's drain while it is watched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lbswitch.core.drain import closing_pause_s, counting_pause_s, excess
from lbswitch.core.model import Drain, DrainState, Kind, PoolKey, Remaining
from lbswitch.ports import Held

_SURE = 2  # counts of none in a row: a request may be on its way to its server in the first
_SURE_PAUSE_S = 0.1
_UNKNOWN_PAUSE_S = 20.0
_SETTLED_S = 10.0


@dataclass(frozen=True, slots=True)
class Closing:
    """That `total` connections are being closed, since when (seconds that only grow), and spread over how long."""

    total: int
    since: float
    over_s: float


@dataclass(slots=True)
class Following:
    """What is watched. `since` is when the operation ended, in seconds that only grow.

    Without an operation somebody asked to close what was left on a color without traffic.
    """

    pool: PoolKey
    drain: Drain
    since: float
    kind: Kind | None = None
    operation: int | None = None
    closing: Closing | None = None
    can_close: bool = True
    failures: int = 0
    unknown: int = 0  # counts in a row that gave nothing
    _none: int = 0
    _none_since: float = 0.0

    def count(self, held: Sequence[Held] | None, now: float) -> None:
        """Take in a count; the drain is over when none was open twice in a row."""
        self.unknown = self.unknown + 1 if held is None else 0
        if held is None:
            self._none = 0
            self.drain = replace(self.drain, open=None, workers=(), state=DrainState.UNKNOWN)
            return
        still_open = sum(each.count for each in held)
        if still_open:
            self._none = 0
        elif self._none == 0:
            self._none, self._none_since = 1, now
        else:
            self._none += 1
        self.drain = replace(
            self.drain,
            open=still_open,
            workers=remaining(held),
            state=DrainState.DRAINED if self._none >= _SURE else DrainState.DRAINING,
            most=max(self.drain.most, still_open),
            drained_ms=round((self._none_since - self.since) * 1000, 3) if self._none >= _SURE else None,
        )

    def to_close(self, now: float) -> int:
        """How many connections to end now."""
        if self.closing is None or not self.drain.open:
            return 0
        return excess(self.closing.total, self.drain.open, now - self.closing.since, self.closing.over_s)

    def note_closed(self, closed: int) -> None:
        """So many were ended, old workers' first, as the next count will find."""
        left, workers = closed, []
        for worker in self.drain.workers:
            gone = min(left, worker.open)
            left -= gone
            if worker.open > gone:
                workers.append(worker._replace(open=worker.open - gone))
        still_open = sum(worker.open for worker in workers)
        self.drain = replace(self.drain, open=still_open, workers=tuple(workers), closed=self.drain.closed + closed)

    def pause_s(self, now: float, took_s: float) -> float:
        """How long until somebody should look again, a look taking `took_s`."""
        age_s = now - self.since
        if self.drain.state is DrainState.UNKNOWN and age_s > _SETTLED_S:
            return _UNKNOWN_PAUSE_S
        pause_s = counting_pause_s(age_s, took_s)
        if self._none:
            pause_s = min(pause_s, _SURE_PAUSE_S)
        if self.closing is not None:
            pause_s = min(pause_s, closing_pause_s(self.closing.total, self.closing.over_s, took_s))
        return pause_s

    def ended(self, state: DrainState, note: str | None = None) -> Drain:
        """The drain, over."""
        self.drain = replace(self.drain, state=state, note=note or self.drain.note)
        return self.drain

    def to_json(self) -> dict[str, Any]:
        """As status, events and `GET .../drain` show it: how far, after which operation, and what is being closed."""
        closing = self.closing
        return {
            **self.drain.to_json(),
            "operation": self.operation,
            "closing": None if closing is None else {"total": closing.total, "over_s": closing.over_s},
        }

    # -- words -------------------------------------------------------------------------------------------------

    @property
    def what_ended(self) -> str:
        """`green is drained: the last of 12 connections ended 3.4 s after switch 17, 5 were closed`."""
        drain = self.drain
        after_s = (drain.drained_ms or 0.0) / 1000
        if drain.most == 0:
            return f"{drain.color} is drained: no connection was open {after_s:.1f} s after {self.whence}"
        which = f"the last of {drain.most} connections" if drain.most > 1 else "its one connection"
        closed = f", {drain.closed} {'was' if drain.closed == 1 else 'were'} closed" if drain.closed else ""
        return f"{drain.color} is drained: {which} ended {after_s:.1f} s after {self.whence}{closed}"

    @property
    def left(self) -> str:
        """`12 connections are left on green`."""
        if self.drain.open is None:
            return f"it can't be known how many connections are left on {self.drain.color}"
        one = self.drain.open == 1
        return f"{self.drain.open} connection{' is' if one else 's are'} left on {self.drain.color}"

    @property
    def whence(self) -> str:
        """What took the traffic away: `switch 17`."""
        return "lbswitch drain --close" if self.operation is None else f"{self.kind} {self.operation}"


def remaining(held: Sequence[Held]) -> tuple[Remaining, ...]:
    """By worker, those from before a reload first."""
    ordered = sorted(held, key=lambda each: (not each.is_old, each.pid or 0))
    return tuple(Remaining(each.pid, each.is_old, each.count) for each in ordered if each.count)
