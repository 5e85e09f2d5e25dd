"""One server, checked for as long as it is watched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from lbswitch.core.config import HealthConfig
from lbswitch.core.health import HealthState, ServerHealth, advance
from lbswitch.core.model import ServerKey
from lbswitch.health.checking import Inconclusive, Prober
from lbswitch.health.rhythm import Rhythm

_FIRST_INTERVAL_S = 0.1
_FIRST_CHECKS = 5

OnResult = Callable[[ServerKey, ServerHealth, ServerHealth], None]
log = logging.getLogger(__name__)


class Watch:
    """Checks one server and keeps what is known of it.

    Until there is a verdict a check follows every 100 ms, then every `interval` (never later; up to `jitter` of it
    earlier). Times are monotonic; `clock` gives the wall time for `changed_at`.
    """

    def __init__(
        self,
        key: ServerKey,
        config: HealthConfig,
        health: ServerHealth,
        prober: Prober,
        rhythm: Rhythm,
        on_result: OnResult,
        clock: Callable[[], float],
    ) -> None:
        """Go on from `health`; `run` begins."""
        self.key = key
        self.config = config
        self.health = health
        self._prober = prober
        self._rhythm = rhythm
        self._on_result = on_result
        self._clock = clock
        self._trouble: str | None = None

    async def run(self) -> None:
        """Check until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            due = self._rhythm.first(loop.time(), self._interval_s())
            while True:
                await asyncio.sleep(max(0.0, due - loop.time()))
                started, before = loop.time(), self.health.state
                await self._check()
                due = self._following(started, before)
        finally:
            self._prober.close()

    async def _check(self) -> None:
        try:
            result = await self._prober.check()
        except Inconclusive as trouble:
            self._tell(str(trouble))
        except Exception:
            log.exception("%s: the check itself failed; %s stays %s", self.key.service, self.key, self.health.state)
        else:
            self._trouble = None
            before = self.health
            self.health = advance(before, result, self._clock(), self.config.rise, self.config.fall)
            self._on_result(self.key, before, self.health)

    def _tell(self, trouble: str) -> None:
        """Once for each kind of trouble, not once a second."""
        if trouble != self._trouble:
            log.warning("%s %s %s: %s; it stays %s", *self.key, trouble, self.health.state)
        self._trouble = trouble

    def _interval_s(self) -> float:
        is_first = self.health.state is HealthState.UNKNOWN
        soon = is_first and self.health.checks < _FIRST_CHECKS * max(self.config.rise, self.config.fall)
        return min(self.config.interval, _FIRST_INTERVAL_S) if soon else self.config.interval

    def _following(self, started: float, before: HealthState) -> float:
        """When the next check is due; any time in the next interval when the first verdict is in."""
        interval_s = self._interval_s()
        if before is HealthState.UNKNOWN and self.health.state is not HealthState.UNKNOWN:
            return self._rhythm.first(started, interval_s)
        return self._rhythm.following(started, interval_s, self.config.jitter)
