"""What happens without anybody asking: failover, and servers that leave their pool and return to it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from lbswitch.core.config import Config, ServiceConfig
from lbswitch.core.decide import (
    Action,
    Failover,
    FailoverState,
    Hold,
    Latch,
    Limits,
    Observation,
    PoolFacts,
    PoolState,
    Recovered,
    decide,
)
from lbswitch.core.health import PoolHealth, ServerHealth, servers_to_eject
from lbswitch.core.model import Color, Kind, Operation, OperationState, ServerKey
from lbswitch.errors import Busy, LbswitchError
from lbswitch.events import Events
from lbswitch.ports import HealthView, Store
from lbswitch.serving import Serving
from lbswitch.switch import Request, Switcher

_TICK_S = 0.25
_HOUR_S = 3600.0
_BETWEEN_RELOADS_S = 1.0


class HealthMonitor(Protocol):
    """What the agent needs of the health checks."""

    async def start(self) -> None:
        """Begin to check."""

    async def stop(self) -> None:
        """End all checks."""

    def pool(self, service: str, color: Color) -> PoolHealth:
        """The servers of a color with their health."""

    def update(self, services: Mapping[str, ServiceConfig]) -> None:
        """Check these services from now on."""


class PoolView(HealthView):
    """The monitor as gates and decisions see it."""

    def __init__(self, monitor: HealthMonitor) -> None:
        """Look through `monitor`."""
        self._monitor = monitor

    def facts(self, service: str, color: Color) -> PoolFacts:
        """State of a color with the checks behind it."""
        pool = self._monitor.pool(service, color)
        return PoolFacts(PoolState(pool.state.value), pool.summary())


class Automatic:
    """Decides for every service whose health changed, at once, and for those in trouble at every tick."""

    def __init__(
        self,
        serving: Serving,
        switcher: Switcher,
        store: Store,
        monitor: HealthMonitor,
        events: Events,
        in_thread: Callable[..., Coroutine[Any, Any, Any]],
    ) -> None:
        """`in_thread` runs a blocking call without stopping the event loop."""
        self.problems: dict[str, str] = {}
        self._serving = serving
        self._switcher = switcher
        self._store = store
        self._monitor = monitor
        self._health = PoolView(monitor)
        self._events = events
        self._in_thread = in_thread
        self._states: dict[str, FailoverState] = {}
        self._dirty: set[str] = set()
        self._ailing: set[str] = set()
        self._wake = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._ejecting: asyncio.Task[None] | None = None
        self._next_ejection = 0.0

    @property
    def _config(self) -> Config:
        return self._serving.config

    def remember(self) -> None:
        """Count the automatic switches of the last hour that the history knows."""
        for service in self._config.services:
            times = self._store.automatic_since(service, time.time() - _HOUR_S)
            self._states[service] = FailoverState(tuple(times))
        self.mark(*self._config.services)

    def mark(self, *services: str) -> None:
        """Decide for these services now. Event loop only."""
        self._dirty.update(services)
        self._wake.set()

    def forget(self, service: str) -> None:
        """Begin to count automatic switches anew."""
        self._states[service] = FailoverState()

    def health_changed(self, key: ServerKey, old: ServerHealth, new: ServerHealth) -> None:
        """The monitor's callback."""
        level = "info" if new.state.value == "healthy" else "warning"
        detail = f" ({new.last_error})" if new.last_error and level == "warning" else ""
        message = f"{key.color} {key.address}: {old.state.value} -> {new.state.value}{detail}"
        self._events.emit("health", message, key.service, level)
        self.mark(key.service)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wake.clear()
            services = sorted(self._dirty | self._ailing | set(self.problems))
            for service in services:
                await self._events.guard(f"deciding for {service}", self._decide(service))
            self._eject_beside(services)
            with contextlib.suppress(TimeoutError):
                # not wait_for: before Python 3.12 it can swallow a cancellation that comes with the result
                async with asyncio.timeout(_TICK_S):
                    await self._wake.wait()

    async def finish(self) -> None:
        """Wait for the automatic switches and ejections that are under way."""
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _decide(self, service: str) -> None:
        self._dirty.discard(service)
        if service not in self._config.services:
            self.problems.pop(service, None)
            return
        if self._switcher.holder(service) is not None:
            self._dirty.add(service)  # again at the next tick, when the operation may be over
            return
        before = self._states.get(service, FailoverState())
        after, actions = decide(before, self._observation(service), time.time())
        self._states[service] = after
        self.problems.pop(service, None)
        if after.problem is not None:
            self.problems[service] = after.problem
        for action in actions:
            self._act(service, action, before)

    def _observation(self, service: str) -> Observation:
        settings = self._config.services[service].failover
        return Observation(
            route=self._serving.intent.services[service].route,
            blue=self._health.facts(service, Color.BLUE),
            green=self._health.facts(service, Color.GREEN),
            limits=Limits(settings.enabled, settings.cooldown, settings.max_per_hour),
            frozen=self._store.frozen().get(service),
            quarantined={pool.color: why for pool, why in self._store.quarantined().items() if pool.service == service},
        )

    def _act(self, service: str, action: Action, before: FailoverState) -> None:
        match action:
            case Failover(to, reason):
                task = asyncio.create_task(self._fail_over(service, to, reason, before))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
            case Latch(reason):
                self._store.freeze(service, reason)
                self._events.emit("latched", reason, service, "error")
            case Hold(reason):
                self._events.emit("holding", reason, service, "error")
            case Recovered(was):
                self._events.emit("recovered", f"over: {was}", service)

    async def _fail_over(self, service: str, to: Color, reason: str, before: FailoverState) -> None:
        request = Request(Kind.FAILOVER, (service,), to=to, reason=reason, actor="lbswitch")
        try:
            operations: list[Operation] = await self._in_thread(self._switcher.run, request)
        except Busy:
            self._states[service] = before  # somebody else was quicker: nothing was switched automatically
        except LbswitchError as error:
            self._events.emit("failover-failed", str(error), service, "error")
        else:
            if operations[0].state is not OperationState.DONE:
                self.problems[service] = (
                    f"the failover to {to} was {operations[0].state}, see operation {operations[0].id}"
                )
        self.mark(service)

    def _eject_beside(self, services: list[str]) -> None:
        """One at a time, while decisions go on: it may take a reload, or wait for one."""
        if self._ejecting is not None and not self._ejecting.done():
            self._ailing.update(services)
            return
        self._ejecting = asyncio.create_task(self._events.guard("leaving failing servers out", self._eject(services)))
        self._running.add(self._ejecting)
        self._ejecting.add_done_callback(self._running.discard)

    async def _eject(self, services: list[str]) -> None:
        """Leave failing servers out of their pools, and take them back; reloads keep a distance."""
        before = self._serving.intent.ejected
        others = {key for key in before if key.service in self._config.services and key.service not in services}
        wanted = frozenset(others.union(*(self._failing(service) for service in services)))
        if wanted == before:
            return
        self._ailing.update(key.service for key in wanted ^ before)  # until it is done, whatever comes between
        if time.monotonic() < self._next_ejection:
            return
        self._next_ejection = time.monotonic() + _BETWEEN_RELOADS_S
        await self._in_thread(self._serving.set_ejected, wanted)
        await self._in_thread(self._store.save_ejected, wanted)
        for key in sorted(wanted - before):
            self._events.emit("ejected", f"{key.color} {key.address} is left out of its pool", key.service, "warning")
        for key in sorted(before - wanted):
            self._events.emit("restored", f"{key.color} {key.address} is back in its pool", key.service)

    def _failing(self, service: str) -> frozenset[ServerKey]:
        """The servers of one service to leave out now; it is looked at again while not all are healthy."""
        settings = self._config.services.get(service)
        self._ailing.discard(service)
        if settings is None:
            return frozenset()
        pools = {color: self._monitor.pool(service, color) for color in Color}
        if any(pool.healthy < pool.total for pool in pools.values()):
            self._ailing.add(service)
        patience_s = 0.0 if self._serving.balancer.reload_is_free else settings.health.eject_after
        ejected = self._serving.intent.ejected
        return servers_to_eject(service, pools, now=time.time(), down_for_s=patience_s, ejected=ejected)
