"""Keep things as they should be: a balancer that died, a listener that shows something else."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any

from lbswitch.errors import CommitFailed
from lbswitch.events import Events
from lbswitch.pauses import let_operations_pass
from lbswitch.ports import Store
from lbswitch.serving import Serving
from lbswitch.snapshots import Snapshots
from lbswitch.switch import Switcher

_EVERY_S = 1.0
_LOOK_EVERY_S = 3.0
_LOOKS_AT_ONCE = 10
_LOOK_PAUSE_S = 0.1
_COUNT_EVERY_S = 2.0
_COUNT_SHARE = 100.0  # at most one percent of a core goes into counting clients,
_LEAST_COUNT_EVERY_S = 20.0  # unless they would be counted less often than this
_MOST_BACKOFF_S = 30.0
_BREATH_S = 0.03  # after an operation, so that those which follow at once have the disk to themselves
_SNAPSHOT_EVERY_S = 5.0
_PRUNE_EVERY_S = 60.0


class Upkeep:
    """The agent's slower loops."""

    def __init__(
        self,
        serving: Serving,
        switcher: Switcher,
        store: Store,
        events: Events,
        in_thread: Callable[..., Coroutine[Any, Any, Any]],
    ) -> None:
        """`in_thread` runs a blocking call without stopping the event loop."""
        self.balancer_is_down = False
        self._serving = serving
        self._switcher = switcher
        self._store = store
        self._events = events
        self._in_thread = in_thread
        self._moved = asyncio.Event()
        self._revive_at = 0.0
        self._revive_pause_s = _EVERY_S

    async def run(self) -> None:
        """Every second, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await self._events.guard("looking after the balancer", self._in_thread(self._look_after_balancer))
            await self._events.guard("looking again", self._look_at_doubtful())
            await self._in_thread(self._switcher.record_late)

    def _look_after_balancer(self) -> None:
        if self._serving.settle():
            self._events.emit("settled", "what was served before a failed switch is served again", level="warning")
        balancer = self._serving.balancer
        self.balancer_is_down = not balancer.is_running()
        if not self.balancer_is_down or balancer.why_not_started() is not None:
            self._revive_pause_s = _EVERY_S
        elif time.monotonic() >= self._revive_at:
            self._revive_at = time.monotonic() + self._revive_pause_s
            self._revive_pause_s = min(self._revive_pause_s * 2, _MOST_BACKOFF_S)
            if not self._serving.revive():
                return
            self._events.emit("balancer-revived", "the balancer was not running and was started again", level="error")

    def moved(self) -> None:
        """An operation has ended."""
        self._moved.set()

    async def prepare(self) -> None:
        """After every operation write ahead what the way back needs, until cancelled."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            await let_operations_pass(self._switcher.is_at_work, _BREATH_S, float("inf"))
            await self._events.guard("preparing the way back", self._in_thread(self._prepare))

    def _prepare(self) -> None:
        with contextlib.suppress(CommitFailed):  # then the operation does it, and says what is wrong
            self._switcher.prepare_way_back()
        self._store.rest()

    async def count_clients(self) -> None:
        """Remember who uses which service, until cancelled; seldom enough to cost little."""
        while True:
            await let_operations_pass(self._switcher.is_at_work)
            began = time.monotonic()
            services = list(self._serving.config.services)
            await self._events.guard("counting clients", self._in_thread(self._serving.usage.count, services))
            took_s = time.monotonic() - began
            await asyncio.sleep(min(max(_COUNT_EVERY_S, took_s * _COUNT_SHARE), _LEAST_COUNT_EVERY_S))

    async def look(self) -> None:
        """Ask every service's listener now and then, until cancelled: others may have changed what it shows."""
        while True:
            services = list(self._serving.config.services)
            for service in services:
                await asyncio.sleep(max(_LOOK_PAUSE_S, _LOOK_EVERY_S / len(services)))
                if service in self._serving.config.services and self._switcher.holder(service) is None:
                    await self._events.guard(f"looking at {service}", self._look_at(service))

    async def _look_at_doubtful(self) -> None:
        """What was not verified is looked at every second, so that the status does not lag behind."""
        sights = self._serving.sights
        doubtful = [name for name in self._serving.config.services if name in sights and not sights[name].verified]
        for service in doubtful[:_LOOKS_AT_ONCE]:
            if self._switcher.holder(service) is None:
                await self._look_at(service)

    async def _look_at(self, service: str) -> None:
        before = self._serving.sights.get(service)
        sight = await self._in_thread(self._serving.look, service)
        if before is None or before.verified == sight.verified or service not in self._serving.config.services:
            return
        if sight.verified:
            self._events.emit("seen-again", "the listener shows what is intended", service)
        else:
            self._events.emit("not-seen", sight.detail, service, "error")


async def keep_snapshots(
    snapshots: Snapshots, events: Events, in_thread: Callable[..., Coroutine[Any, Any, Any]]
) -> None:
    """Write beforehand what the next snapshot needs, and forget old ones, until cancelled."""
    prune_at = time.monotonic()
    while True:
        await events.guard("preparing a snapshot", in_thread(snapshots.warm))
        if time.monotonic() >= prune_at:
            prune_at = time.monotonic() + _PRUNE_EVERY_S
            await events.guard("removing old snapshots", in_thread(snapshots.prune, time.time()))
        await asyncio.sleep(_SNAPSHOT_EVERY_S)
