"""All servers of all services, watched."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lbswitch.core.config import HealthConfig, HealthType, ServiceConfig
from lbswitch.core.health import HealthState, PoolHealth, ServerHealth
from lbswitch.core.model import Color, ServerKey
from lbswitch.errors import UnknownService
from lbswitch.health.checking import Prober
from lbswitch.health.command import CommandProber
from lbswitch.health.http import HttpProber
from lbswitch.health.resolver import Resolver
from lbswitch.health.rhythm import Rhythm
from lbswitch.health.target import check_endpoint
from lbswitch.health.tcp import TcpProber
from lbswitch.health.watch import Watch

_COMMANDS_AT_ONCE = 16
_NOT_THE_WATCH = {"min_healthy", "eject_after"}
_NOT_THE_CHECK = _NOT_THE_WATCH | {"interval", "jitter", "rise", "fall"}

OnChange = Callable[[ServerKey, ServerHealth, ServerHealth], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Pool:
    """The watched servers of one color."""

    watches: tuple[Watch, ...]
    min_healthy: int
    rise: int

    def health(self) -> PoolHealth:
        return PoolHealth(tuple(watch.health for watch in self.watches), self.min_healthy, self.rise)


class HealthMonitor:
    """Checks every server of both colors of every service, all the time.

    `on_change(key, old, new)` is called in the event loop whenever a server's state changes. `start`, `stop`,
    `update` and `wait_known` belong to the event loop; `pool` and `snapshot` may be called from any thread.
    """

    def __init__(
        self,
        services: Mapping[str, ServiceConfig],
        on_change: OnChange,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Know the servers; nothing is checked before `start`."""
        self._on_change = on_change
        self._clock = clock
        self._resolver = Resolver()
        self._slots = asyncio.Semaphore(_COMMANDS_AT_ONCE)
        self._changed = asyncio.Event()
        self._is_running = False
        self._running: dict[Watch, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._pools = self._planned(services, {})

    async def start(self) -> None:
        """Begin to check."""
        self._is_running = True
        self._start_and_stop()

    async def stop(self) -> None:
        """End all checks; nothing is open or running afterwards."""
        self._is_running = False
        self._start_and_stop()
        await asyncio.gather(*self._ending, return_exceptions=True)

    def update(self, services: Mapping[str, ServiceConfig]) -> None:
        """Check these services from now on; what is known of servers that are checked as before stays known."""
        watches = {watch.key: watch for pool in self._pools.values() for watch in pool.watches}
        self._pools = self._planned(services, watches)
        self._start_and_stop()
        self._wake()

    def pool(self, service: str, color: Color) -> PoolHealth:
        """The servers of a color, in the order of the configuration. Raises: UnknownService."""
        pool = self._pools.get((service, color))
        if pool is None:
            raise UnknownService(f"no service is named {service}")
        return pool.health()

    def snapshot(self) -> dict[tuple[str, Color], PoolHealth]:
        """Every pool."""
        return {name: pool.health() for name, pool in self._pools.items()}

    async def wait_known(self, service: str, color: Color, timeout_s: float) -> PoolHealth:
        """Wait until the pool is healthy or unhealthy, at most `timeout_s`; gives what is known then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.pool(service, color).state is HealthState.UNKNOWN:
                    await self._changed.wait()
        return self.pool(service, color)

    def _planned(
        self, services: Mapping[str, ServiceConfig], before: Mapping[ServerKey, Watch]
    ) -> dict[tuple[str, Color], _Pool]:
        self._rhythm = Rhythm(sum(len(service.pool(color).servers) for service in services.values() for color in Color))
        return {
            (name, color): _Pool(
                tuple(
                    self._watch(ServerKey(name, color, address), service.health, before)
                    for address in service.pool(color).servers
                ),
                service.health.min_healthy,
                service.health.rise,
            )
            for name, service in services.items()
            for color in Color
        }

    def _watch(self, key: ServerKey, config: HealthConfig, before: Mapping[ServerKey, Watch]) -> Watch:
        """The watch there is, one that goes on from what it knows, or one that knows nothing."""
        old = before.get(key)
        if old is not None and _is_same(old.config, config, _NOT_THE_WATCH):
            return old
        health = old.health if old is not None and _is_same(old.config, config, _NOT_THE_CHECK) else None
        health = health or ServerHealth(key.address)
        return Watch(key, config, health, self._prober(key, config), self._rhythm, self._take, self._clock)

    def _prober(self, key: ServerKey, config: HealthConfig) -> Prober:
        endpoint = check_endpoint(key.address, config)
        if config.type is HealthType.COMMAND:
            return CommandProber(key, endpoint, config, self._slots)
        if config.type is HealthType.TCP:
            return TcpProber(endpoint, config, self._resolver)
        return HttpProber(endpoint, config, self._resolver)

    def _start_and_stop(self) -> None:
        """Run what is planned and nothing else."""
        pools = self._pools.values() if self._is_running else ()
        planned = {watch for pool in pools for watch in pool.watches}
        for watch in self._running.keys() - planned:
            task = self._running.pop(watch)
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            task.cancel()
        for watch in planned - self._running.keys():
            self._running[watch] = asyncio.create_task(watch.run(), name=f"health {watch.key}")

    def _take(self, key: ServerKey, old: ServerHealth, new: ServerHealth) -> None:
        if old.state is new.state:
            return
        self._wake()
        try:
            self._on_change(key, old, new)
        except Exception:
            log.exception("what follows from the health of %s failed; its checks go on", key)

    def _wake(self) -> None:
        """Let those in `wait_known` look again."""
        self._changed.set()
        self._changed = asyncio.Event()


def _is_same(old: HealthConfig, new: HealthConfig, apart_from: set[str]) -> bool:
    return old.model_dump(exclude=apart_from) == new.model_dump(exclude=apart_from)
