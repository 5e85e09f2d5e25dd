"""The agent: one process that ties health, decisions, operations and upkeep together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from lbswitch.automatic import Automatic, HealthMonitor, PoolView
from lbswitch.bake import Bakes, Looking
from lbswitch.core.alerts import AlertDesk
from lbswitch.core.config import Config
from lbswitch.core.model import Intent, Operation, Route, ServiceIntent
from lbswitch.drain import DrainWatch, OldWorkers
from lbswitch.drift import DriftWatch
from lbswitch.edits import Edits
from lbswitch.errors import Busy, UnknownService
from lbswitch.events import Events
from lbswitch.ports import Balancer, MetricSources, Reader, Store
from lbswitch.restore import Restorer
from lbswitch.serving import Serving
from lbswitch.snapshots import Snapshots
from lbswitch.switch import Request, Switcher
from lbswitch.upkeep import Upkeep, keep_snapshots


class Agent:
    """`start`, then `run` until `stop`, then `close`."""

    def __init__(
        self,
        config_path: Path,
        store: Store,
        serving: Serving,
        switcher: Switcher,
        monitor: HealthMonitor,
        events: Events,
        load: Callable[[Path], tuple[Config, Balancer]],
        snapshots: Snapshots | None = None,
        restorer: Restorer | None = None,
        reader: Reader | None = None,
        sources: MetricSources | None = None,
    ) -> None:
        """`load` reads the configuration file and makes the balancer for it. `snapshots` and `restorer`: both or none.

        `reader` tells what real traffic experiences, `sources` are metrics from elsewhere.
        """
        self.config_path = config_path
        self.store = store
        self.serving = serving
        self.switcher = switcher
        self.monitor = monitor
        self.snapshots = snapshots
        self._restorer = restorer
        self.events = events
        self.alerts: AlertDesk | None = None
        self.started_at = time.time() - _age_s()
        self._threads = ThreadPoolExecutor(max_workers=16, thread_name_prefix="lbswitch")
        self._urgent_threads = ThreadPoolExecutor(max_workers=16, thread_name_prefix="lbswitch-urgent")
        self._stopping = asyncio.Event()
        self._operations: set[asyncio.Future[Any]] = set()
        self.automatic = Automatic(serving, switcher, store, monitor, events, self._in_urgent_thread)
        self.upkeep = Upkeep(serving, switcher, store, events, self.in_thread)
        self.edits = Edits(config_path, serving, store, events, load, self._reconfigured, self.in_thread)
        self.drift = DriftWatch(serving, events, self.in_thread, is_at_work=switcher.is_at_work)
        self.drain = DrainWatch(serving, switcher, store, events, self.in_thread)
        self.old_workers = OldWorkers(serving, events, self.in_thread)
        self.sources = sources
        health = PoolView(monitor)
        looking = Looking(lambda: self.config, monitor.pool, health, lambda: sources.readings if sources else {})
        self.bakes = Bakes(serving, switcher, store, health, looking, events, self._in_urgent_thread, reader)
        self.edits.own_files_changed, self.edits.repair = self.drift.mark, serving.repair
        self.edits.is_at_work = switcher.is_at_work

    @property
    def config(self) -> Config:
        """The configuration that is served; an invalid file on disk does not change it."""
        return self.serving.config

    async def start(self) -> None:
        """Begin to check, end what a crash left open, make the balancer serve what is intended, and look."""
        await self.monitor.start()
        recoveries = await self.in_thread(self.switcher.recover)
        intent = self._first_intent({each.service: each.serves for each in recoveries})
        for difference in await self.in_thread(self.serving.start, intent):
            self.events.emit("differed", difference, level="warning")
        if self.serving.files_problem:
            self.events.once("files", "files-refused", self.serving.files_problem)
        await self.in_thread(self.switcher.conclude, recoveries)
        intent = self.serving.intent
        self.store.save_services(intent.services, intent.generation)
        await self.in_thread(self.drain.resume)
        await self.in_thread(self.bakes.resume)
        if self._restorer is not None:
            await self.in_thread(self._restorer.clean)
        self.automatic.remember()

    def _first_intent(self, recovered: Mapping[str, ServiceIntent]) -> Intent:
        """What the journal says; without it what the disk says; for a new service `initial`."""
        committed = self.serving.balancer.committed()
        on_disk = {} if committed is None else committed.services
        known = {**on_disk, **self.store.services(), **recovered}
        newest = max(1, self.store.generation(), 0 if committed is None else committed.generation)
        services = {}
        for name, service in self.config.services.items():
            intent = known.get(name) or ServiceIntent(Route(service.initial), newest)
            services[name] = replace(intent, weighted=intent.weighted or service.weights is not None)
        ejected = frozenset(key for key in self.store.ejected() if self.config.lists(key))
        return Intent(services, newest, ejected)

    async def run(self) -> None:
        """All loops, until `stop`."""
        loops = [
            *(
                self.automatic.run(),
                self.upkeep.run(),
                self.upkeep.look(),
                self.upkeep.prepare(),
                self.upkeep.count_clients(),
            ),
            *(self.edits.run(), self.drift.run(), self.drain.run(), self.old_workers.run(), self.bakes.run()),
        ]
        if self.sources is not None:
            loops.append(self.sources.run())
        if self.snapshots is not None:
            loops.append(keep_snapshots(self.snapshots, self.events, self.in_thread))
        tasks = [asyncio.create_task(loop) for loop in loops]
        await self._stopping.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.automatic.finish()
        await self.bakes.finish()
        await self.in_thread(self.switcher.record_late)

    def stop(self) -> None:
        """Let `run` end; operations that are under way are completed."""
        self._stopping.set()

    async def close(self) -> None:
        """End the checks and the threads."""
        await self.monitor.stop()
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self._urgent_threads.shutdown)

    async def in_thread(self, call: Callable[..., Any], *arguments: object) -> Any:
        """Run something that blocks; a caller that goes away does not stop it."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments))

    async def _in_urgent_thread(self, call: Callable[..., Any], *arguments: object) -> Any:
        """For what is decided automatically: however many callers wait for a container's engine, it finds a thread."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._urgent_threads, call, *arguments))

    async def operate(self, request: Request) -> list[Operation]:
        """Carry out a request. Raises what `Switcher.run` raises."""
        if self._stopping.is_set():
            raise Busy("the agent is stopping; nothing was changed, ask the next one")
        # At once: a coroutine would wait for its turn in the loop.
        running = asyncio.get_running_loop().run_in_executor(self._threads, self.switcher.run, request)
        self._operations.add(running)
        running.add_done_callback(self._operations.discard)
        try:
            operations: list[Operation] = await asyncio.shield(running)
        finally:
            self.automatic.mark(*request.services)
            self.upkeep.moved()
        return operations

    async def restore(self, number: int, request: Request) -> list[Operation]:
        """Bring back a snapshot. Raises what `Restorer.run` raises."""
        if self._stopping.is_set() or self._restorer is None:
            raise Busy("the agent is stopping; nothing was changed, ask the next one")
        running = asyncio.ensure_future(self._restore(self._restorer, number, request))
        self._operations.add(running)
        running.add_done_callback(self._operations.discard)
        operations: list[Operation] = await asyncio.shield(running)
        return operations

    async def _restore(self, restorer: Restorer, number: int, request: Request) -> list[Operation]:
        async with self.edits.paused():
            before = self.config
            try:
                operations: list[Operation] = await self.in_thread(restorer.run, number, request)
            finally:
                if self.config is not before:
                    self._reconfigured(self.config)
                self.automatic.mark(*self.config.services)
        return operations

    async def finish_operations(self) -> None:
        """Wait for what people and programs asked for; every operation has its own deadlines."""
        await asyncio.gather(*self._operations, return_exceptions=True)

    async def freeze(self, service: str, reason: str) -> None:
        """Latch a service: no automatic switch, and none by hand but a rollback, until `release`."""
        self._known(service)
        before = self.store.frozen().get(service)
        if before is not None:
            reason = f"{reason}; before that: {before}"
        await self.in_thread(self.store.freeze, service, reason)
        self.events.emit("frozen", reason, service, "warning")
        self.automatic.mark(service)

    async def release(self, service: str, actor: str) -> bool:
        """End freeze and quarantine, and forget the automatic switches that led to them; False when there was none."""
        self._known(service)
        frozen = service in self.store.frozen()
        quarantined = any(pool.service == service for pool in self.store.quarantined())
        what = " and the ".join(name for name, is_so in (("freeze", frozen), ("quarantine", quarantined)) if is_so)
        released = bool(await self.in_thread(self.store.release, service, time.time()))
        if released:
            self.automatic.forget(service)
            self.events.emit("released", f"the {what} is over (released by {actor})", service)
        self.automatic.mark(service)
        return released

    def _known(self, service: str) -> None:
        if service not in self.config.services:
            known = ", ".join(sorted(self.config.services))
            raise UnknownService(f"there is no service {service!r}; known: {known}")

    def _reconfigured(self, config: Config) -> None:
        self.monitor.update(config.services)
        self.automatic.mark(*config.services)
        self.bakes.reconfigured(config)
        if self.sources is not None:
            self.sources.update(config)


def _age_s() -> float:
    """For how long this process is there already: on a busy machine it takes a while until it gets here."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()  # proc_pid_stat(5), field 22
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return 0.0
