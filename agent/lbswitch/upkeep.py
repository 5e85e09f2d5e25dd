"""Keep things as they should be: a balancer that died, edited files, a listener that shows something else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from lbswitch.core.config import Config
from lbswitch.errors import ConfigError, LbswitchError, Problem
from lbswitch.events import Events
from lbswitch.ports import Balancer, Store
from lbswitch.serving import Serving
from lbswitch.switch import Switcher

_EVERY_S = 1.0
_LOOK_EVERY_S = 3.0
_LOOKS_AT_ONCE = 10
_RETRY_S = 5.0
_LOOK_PAUSE_S = 0.1
_MOST_BACKOFF_S = 30.0


class Upkeep:
    """The agent's slower loops. `reconfigured` is called in the event loop after a changed configuration is served."""

    def __init__(
        self,
        config_path: Path,
        serving: Serving,
        switcher: Switcher,
        store: Store,
        events: Events,
        load: Callable[[Path], tuple[Config, Balancer]],
        reconfigured: Callable[[Config], None],
        in_thread: Callable[..., Coroutine[Any, Any, Any]],
    ) -> None:
        """`load` reads the configuration file and makes the balancer for it."""
        self.config_error: str | None = None
        self.balancer_is_down = False
        self._retry_at: float | None = None
        self._path = config_path
        self._serving = serving
        self._switcher = switcher
        self._store = store
        self._events = events
        self._load = load
        self._reconfigured = reconfigured
        self._in_thread = in_thread
        self._seen = _stamp(config_path)
        self._revive_at = 0.0
        self._revive_pause_s = _EVERY_S

    async def run(self) -> None:
        """Every second, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await self._events.guard("looking after the balancer", self._in_thread(self._look_after_balancer))
            await self._events.guard("applying changes", self._look_at_files())
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
            self._serving.revive()
            self._events.emit("balancer-revived", "the balancer was not running and was started again", level="error")

    async def _look_at_files(self) -> None:
        stamp = _stamp(self._path)
        if stamp != self._seen or (self._retry_at is not None and time.monotonic() > self._retry_at):
            self._seen = stamp
            await self.reload_configuration()
        elif await self._in_thread(self._serving.refresh):
            self._events.emit("templates-applied", "changed templates were rendered, checked and applied")

    async def reload_configuration(self) -> None:
        """Read the file again and serve what it says; an invalid one is reported and changes nothing.

        One that is valid but could not be served (a port that somebody else holds) is tried again and again.
        """
        try:
            config, balancer = await self._in_thread(self._load, self._path)
            _refuse_what_needs_a_restart(self._serving.config, config)
            reloaded = await self._in_thread(self._serving.reconfigure, config, balancer)
            intent = self._serving.intent
            await self._in_thread(self._store.save_services, intent.services, intent.generation)
        except LbswitchError as error:
            self.config_error = str(error)
            self._retry_at = None if isinstance(error, ConfigError) else time.monotonic() + _RETRY_S
            self._events.once("configuration", "configuration-refused", f"{error}; the running configuration stays")
            return
        self.config_error = self._retry_at = None
        self._events.over("configuration")
        self._reconfigured(config)
        how = "with a reload" if reloaded else "without a reload"
        self._events.emit("configuration-applied", f"{self._path} was read again and applied {how}")

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
        if before is None or before.verified == sight.verified:
            return
        if sight.verified:
            self._events.emit("seen-again", "the listener shows what is intended", service)
        else:
            self._events.emit("not-seen", sight.detail, service, "error")


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _refuse_what_needs_a_restart(old: Config, new: Config) -> None:
    """The agent keeps its own socket, state and kind of balancer while it runs. Raises: ConfigError."""
    pairs = {
        "agent": (old.agent, new.agent),
        "balancer.kind": (old.balancer.kind, new.balancer.kind),
        "balancer.binary": (old.balancer.binary, new.balancer.binary),
    }
    changed = [name for name, (before, after) in pairs.items() if before != after]
    if changed:
        message = "changed, which takes effect only when the agent is restarted; nothing of the file was applied"
        raise ConfigError("configuration", [Problem(message, name) for name in changed])
