"""Workers from before reloads, which go on for as long as one of their connections does: counted, and capped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from lbswitch.core.config import Leftover
from lbswitch.events import Events
from lbswitch.ports import OldWorker
from lbswitch.serving import Serving

_EVERY_S = 5.0
_SHARE = 100.0  # at most one percent of a core goes into looking,
_LEAST_OFTEN_S = 60.0  # unless it would be done less often than this


class OldWorkers:
    """`run` until cancelled. `found` and `why_not_closed` are from the last look."""

    def __init__(self, serving: Serving, events: Events, in_thread: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        """`in_thread` runs a blocking call without stopping the event loop."""
        self.found: tuple[OldWorker, ...] = ()
        self.why_not_closed: str | None = None
        self._serving = serving
        self._events = events
        self._in_thread = in_thread

    async def run(self) -> None:
        """Every few seconds, until cancelled."""
        while True:
            began = time.monotonic()
            await self._events.guard("counting old workers", self._in_thread(self.look))
            took_s = time.monotonic() - began
            await asyncio.sleep(min(max(_EVERY_S, took_s * _SHARE), _LEAST_OFTEN_S))

    def look(self) -> None:
        """Count them, and end the oldest beyond `balancer.old_workers` where the balancer is ours. Blocks."""
        config, draining = self._serving.config, self._serving.balancer.draining
        found = draining.old_workers()
        most = config.balancer.old_workers * draining.crew()
        if config.balancer.managed and len(found) > most:
            ended = draining.end_old_workers(most)
            if ended:
                self._tell(len(found), most, ended)
                gone = {each.pid for each in ended}
                found = tuple(each for each in found if each.pid not in gone)
        self.found = found
        wants_closing = any(
            Leftover.CLOSE in (each.drain.forward, each.drain.back) for each in config.services.values()
        )
        self.why_not_closed = draining.why_not_closed() if wants_closing else None

    def _tell(self, count: int, most: int, ended: Sequence[OldWorker]) -> None:
        kind, reloads = self._serving.config.balancer.kind, self._serving.config.balancer.old_workers
        shown = "; ".join(f"pid {each.pid}, {each.age_s:.0f} s old, {_connections(each)}" for each in ended[:5])
        known = [each.connections for each in ended if each.connections is not None]
        cost = f"{sum(known)} connections" if len(known) == len(ended) else "an unknown number of connections"
        self._events.emit(
            "old-workers-ended",
            f"{count} {kind} workers from before reloads were still there, {most} may be "
            f"(balancer.old_workers: {reloads} reloads): "
            f"{len(ended)} ended, which cost {cost}: {shown}",
            level="warning",
            workers=[{"pid": each.pid, "age_s": each.age_s, "connections": each.connections} for each in ended],
        )


def _connections(worker: OldWorker) -> str:
    if worker.connections is None:
        return "connections unknown"
    return f"{worker.connections} connection{'s' * (worker.connections != 1)}"
