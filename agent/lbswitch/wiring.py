"""Puts the parts together; the only place that names concrete adapters."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from lbswitch import configfile, logs, sdnotify
from lbswitch.agent import Agent
from lbswitch.api.app import create_app
from lbswitch.api.server import ApiServer, remove_socket, tcp_listener, unix_listener
from lbswitch.automatic import PoolView
from lbswitch.core.config import BalancerKind, Config
from lbswitch.core.config_text import notes
from lbswitch.core.health import ServerHealth
from lbswitch.core.model import ServerKey
from lbswitch.core.values import parse_endpoint
from lbswitch.edits import refuse_what_needs_a_restart
from lbswitch.errors import NotAllowed, StateError
from lbswitch.events import Events
from lbswitch.health.monitor import HealthMonitor
from lbswitch.health.trial import try_out
from lbswitch.notify.delivery import Alerts
from lbswitch.objects import Objects
from lbswitch.ports import Balancer, Reader
from lbswitch.restore import Restorer
from lbswitch.serving import Serving
from lbswitch.snapshots import CONFIG, Archive, Snapshots
from lbswitch.store.sqlite import SqliteStore
from lbswitch.switch import Switcher
from lbswitch.traffic.sources.polling import Sources

OnStep = Callable[[str], None]

_SWITCH_INTERVAL_S = 0.0005  # how long a slower loop may keep the interpreter from a switch; Python's own is 5 ms


def make_balancer(config: Config) -> Balancer:
    """The adapter that the configuration names."""
    if not config.balancer.managed:
        if config.balancer.kind is BalancerKind.HAPROXY:
            from lbswitch.balancers.haproxy_guest import HAProxyGuest

            return HAProxyGuest(config)
        from lbswitch.balancers.nginx_guest import NginxGuest

        return NginxGuest(config)
    if config.balancer.kind is BalancerKind.NGINX:
        from lbswitch.balancers.nginx import Nginx

        return Nginx(config)
    from lbswitch.balancers.haproxy import HAProxy

    return HAProxy(config)


def load(path: Path) -> tuple[Config, Balancer]:
    """Read a configuration file and make its balancer. Raises: ConfigError, BalancerError."""
    config = configfile.load(path)
    return config, make_balancer(config)


@contextlib.contextmanager
def state_directory(path: Path) -> Iterator[None]:
    """Make the state directory and hold it: one agent at a time. Raises: StateError."""
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = (path / "agent.lock").open("a+")
    except OSError as error:
        kind = NotAllowed if isinstance(error, PermissionError) else StateError
        raise kind(
            f"agent.state_dir {path}: {error.strerror}: traffic is untouched; let the agent's user write there, or set "
            "agent.state_dir to a directory of its own"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StateError(
                f"agent.state_dir {path} is in use by another agent, pid {lock.read().strip() or 'unknown'}; "
                "stop it first (systemctl stop lbswitch; traffic goes on without it), or give this one a state "
                "directory of its own"
            ) from None
        try:
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
        except OSError as error:
            raise StateError(f"agent.state_dir {path}: {error.strerror}: the agent needs room to write") from error
        yield


def run_agent(
    config_path: Path,
    log_format: str = "text",
    log_level: str = "info",
    socket_path: str | None = None,
    on_step: OnStep | None = None,
) -> None:
    """Run an agent until SIGTERM or SIGINT; SIGHUP reads the configuration again. Raises: LbswitchError.

    `on_step` is told the name of every step of every operation before it is taken.
    """
    logs.set_up(log_format, log_level)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    config_path = config_path.absolute()
    config, balancer = load(config_path)
    balancer.version()
    with state_directory(Path(config.agent.state_dir)):
        asyncio.run(_serve(config_path, config, balancer, Path(socket_path or config.agent.socket), on_step))


async def _serve(
    config_path: Path, config: Config, balancer: Balancer, socket_path: Path, on_step: OnStep | None
) -> None:
    events = Events(time.time)
    events.listen(logs.log_event)
    store = SqliteStore(Path(config.agent.state_dir) / "lbswitch.db")
    try:
        agent = make_agent(config_path, config, balancer, store, events, on_step)
        alerts = Alerts(Path(config.agent.state_dir) / "alerts.db", lambda: agent.config.alerts, events)
        agent.alerts = alerts
        events.listen(alerts.heard)
        for note in [*notes(config), *balancer.warnings()]:
            events.emit("note", note, level="warning")
        listeners = [unix_listener(socket_path)]
        try:
            if config.agent.listen is not None:
                listeners.append(tcp_listener(parse_endpoint(config.agent.listen)))
            async with _alerting(agent, alerts):
                await _live(agent, listeners)
        finally:
            for listener in listeners:
                listener.close()
            remove_socket(socket_path)
    finally:
        store.close()


@contextlib.asynccontextmanager
async def _alerting(agent: Agent, alerts: Alerts) -> AsyncIterator[None]:
    """Deliver alerts from before the agent's start until after its end."""
    delivering = asyncio.create_task(alerts.run(agent.store.history))
    try:
        yield
    finally:
        delivering.cancel()
        await asyncio.gather(delivering, return_exceptions=True)


def make_agent(
    config_path: Path,
    config: Config,
    balancer: Balancer,
    store: SqliteStore,
    events: Events,
    on_step: OnStep | None = None,
) -> Agent:
    """An agent with the real parts."""
    agent: Agent | None = None

    def health_changed(key: ServerKey, old: ServerHealth, new: ServerHealth) -> None:
        if agent is not None:
            agent.automatic.health_changed(key, old, new)

    monitor = HealthMonitor(config.services, health_changed)
    serving = Serving(config, balancer, events, on_step)
    snapshots = Snapshots(_snapshot_directory(config), config_path, serving, store, time.time)
    serving.before_change = snapshots.take
    switcher = Switcher(serving, store, PoolView(monitor), events, on_step=on_step, snapshots=snapshots)
    restorer = Restorer(
        *(config_path, serving, store, switcher, snapshots, _load_text, refuse_what_needs_a_restart, try_out),
        on_step=on_step,
    )
    parts = (snapshots, restorer, make_reader(config), Sources(config))
    agent = Agent(config_path, store, serving, switcher, monitor, events, load, *parts)
    return agent


def make_reader(config: Config) -> Reader:
    """What tells of real traffic at the configured balancer."""
    if config.balancer.kind is BalancerKind.NGINX:
        from lbswitch.traffic.nginx import NginxTraffic

        return NginxTraffic(config)
    from lbswitch.traffic.haproxy import HAProxyTraffic

    return HAProxyTraffic(config, time.time)


def _snapshot_directory(config: Config) -> Path:
    return Path(config.agent.state_dir) / "snapshots"


def _load_text(text: str) -> tuple[Config, Balancer]:
    config = configfile.load_text(text, f"the snapshot's {CONFIG}")
    return config, make_balancer(config)


@contextlib.contextmanager
def archive(config: Config) -> Iterator[Archive]:
    """The snapshots of that configuration's state directory, without an agent. Raises: StateError."""
    store = SqliteStore.to_read(Path(config.agent.state_dir) / "lbswitch.db")
    try:
        yield Archive(store, Objects(_snapshot_directory(config)))
    finally:
        store.close()


async def _live(agent: Agent, listeners: list[socket.socket]) -> None:
    loop = asyncio.get_running_loop()
    server = ApiServer(create_app(agent), listeners)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop)
    reloads: set[asyncio.Task[None]] = set()

    def reread() -> None:
        task = asyncio.create_task(agent.events.guard("applying after SIGHUP", agent.edits.apply()))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reread)
    try:
        await agent.start()
        serving = asyncio.create_task(server.serve())
        count = len(agent.config.services)
        agent.events.emit("ready", f"serving {count} service{'s' * (count != 1)} on {agent.config.balancer.kind}")
        sdnotify.notify("READY=1")
        await agent.run()
        sdnotify.notify("STOPPING=1")
        await agent.finish_operations()
        server.stop()
        await serving
        agent.events.emit("stopped", "the balancer goes on serving without the agent")
    finally:
        await agent.close()
