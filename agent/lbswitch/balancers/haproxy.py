"""The managed HAProxy: a switch is an atomic change of maps in every worker and on disk, without a reload.

STATE/haproxy/rendered/REVISION/haproxy.cfg     and SERVICE.pem for services with TLS
STATE/haproxy/current -> rendered/REVISION
STATE/haproxy/live.map, weights.map             where every service's requests go (`haproxy_maps`)
STATE/haproxy/shield.map                        which colors have others standing by (`haproxy_shield`)
STATE/haproxy/master.sock                       reaches every worker (`haproxy_runtime`)
STATE/haproxy/worker.sock                       the current worker's Runtime API, for people and tools
STATE/haproxy/state.sock                        tells what services in `mode: tcp` serve
STATE/haproxy/haproxy.pid
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from lbswitch.balancers import clients, listener, stopmark, tls_files
from lbswitch.balancers.haproxy_balancer import HAProxyBalancer
from lbswitch.balancers.haproxy_binds import LONGEST_SOCKET_PATH, too_long
from lbswitch.balancers.haproxy_draining import HAProxyDraining
from lbswitch.balancers.haproxy_drift import HAProxyDrift
from lbswitch.balancers.haproxy_live import LiveMaps
from lbswitch.balancers.haproxy_maps import MapFiles
from lbswitch.balancers.haproxy_process import Process
from lbswitch.balancers.haproxy_program import Program
from lbswitch.balancers.haproxy_rendering import Rendering
from lbswitch.balancers.haproxy_runtime import Runtime
from lbswitch.balancers.haproxy_servers import Servers
from lbswitch.balancers.haproxy_shield import HAProxyShield, map_of
from lbswitch.balancers.rendered import RenderedDirectory
from lbswitch.balancers.stopmark import StopMark
from lbswitch.core.config import Config, Mode
from lbswitch.core.model import Intent, Observation
from lbswitch.core.names import pool_name
from lbswitch.core.values import Endpoint, parse_endpoint
from lbswitch.errors import CheckFailed, ReloadFailed, StartFailed
from lbswitch.ports import Rendered, RenderedFile

_FILES_BESIDE_CONNECTIONS = 200


class HAProxy(HAProxyBalancer):
    """A HAProxy of our own on this host; implements `lbswitch.ports.Balancer`."""

    def __init__(self, config: Config) -> None:
        """Nothing is looked up, written or started yet."""
        directory = Path(config.agent.state_dir) / "haproxy"
        self._config = config
        self._directory = directory
        self._binds = {name: parse_endpoint(service.bind) for name, service in config.services.items()}
        self._program = Program(config.balancer.binary)
        self._runtime = Runtime(directory / "master.sock", current=directory / "worker.sock")
        self._files = MapFiles(directory)
        self._rendering = Rendering(config, directory, self._files)
        rendered = RenderedDirectory(directory)
        self._process = Process(self._program, directory, rendered.current, self._runtime)
        servers = Servers(config, self._runtime)
        live = LiveMaps(self._files, self._runtime, servers, self.is_running)
        drift = HAProxyDrift(
            self._files, rendered, self._runtime, live, servers, self.observe, self.render, config.services
        )
        draining = HAProxyDraining(self._runtime, pool_name, self.is_running, is_ours=True)
        shield = HAProxyShield(config, directory, self._runtime, self.is_running)
        super().__init__(rendered, live, drift, draining, shield)
        self._state_socket = Endpoint(path=str(directory / "state.sock"))
        self._stopped = StopMark(directory)

    @property
    def reload_is_free(self) -> bool:
        """Yes: `option idle-close-on-response` keeps idle connections through a reload."""
        return True

    def version(self) -> str:
        """Such as `2.6.12`. Raises: BalancerMissing, BalancerTooOld."""
        return self._program.version()

    # -- files -----------------------------------------------------------------------------------------------

    def render(self, intent: Intent) -> Rendered:
        """The configuration for this intent. Raises: RenderFailed."""
        return self._rendering.render(intent)

    def check(self, rendered: Rendered) -> None:
        """Let `haproxy -c` judge it; writes nothing below the state directory.

        Raises: CheckFailed, BalancerMissing, StateError.
        """
        self._refuse_unusable_binds()
        with self._rendered.staged(self._with_maps(rendered)) as staging:
            self._program.check(staging)

    def _with_maps(self, rendered: Rendered) -> Rendered:
        """As the checker needs it: maps that are not there yet, or not for this user, are empty ones beside it."""
        maps = (self._files.live, self._files.weights, map_of(self._directory))
        missing = [path for path in maps if not os.access(path, os.R_OK)]
        files = list(rendered.files)
        for path in missing:
            # HAProxy looks for relative files in the directory that it is told to check (-C).
            files = [replace(file, content=_renamed(file, path)) for file in files]
        return replace(rendered, files=(*files, *(RenderedFile(path.name, b"") for path in missing)))

    def _refuse_unusable_binds(self) -> None:
        """HAProxy's checker does not bind, so it sees neither of these. Raises: CheckFailed."""
        counts = Counter(self._binds.values())
        for endpoint in (endpoint for endpoint, count in counts.items() if count > 1):
            names = ", ".join(name for name, bind in self._binds.items() if bind == endpoint)
            raise CheckFailed(
                f"{names} all bind {endpoint}: the kernel would hand each of them some of the connections"
            )
        unix = [Path(bind.path) for bind in self._binds.values() if bind.is_unix]
        path = too_long([self._directory / "master.sock", self._directory / "worker.sock", *unix])
        if path is not None:
            raise CheckFailed(
                f"the socket path {path} has {len(str(path))} bytes, and HAProxy can bind {LONGEST_SOCKET_PATH} (the "
                "system's 107 less its temporary suffix): choose a shorter agent.state_dir or bind"
            )

    def why_not_weighted(self, service: str) -> str | None:  # noqa: ARG002 - of the port
        """Every service of ours can be."""
        return None

    def connections(self, services: Collection[str]) -> Mapping[str, int | None]:
        """Open connections at the services' listeners."""
        return clients.connections({name: self._binds[name] for name in services})

    def watched(self) -> frozenset[Path]:
        """Templates, certificates and keys, and where maps and rendered files lie."""
        ours = [self._directory, self._rendered.current]
        return frozenset([*self._rendering.template_directories, *tls_files.paths(self._config), *ours])

    # -- what is served --------------------------------------------------------------------------------------

    def observe(self, service: str) -> Observation:
        """Ask the service's own listener; a `mode: tcp` one is asked for a connection alone. Raises: NotSeen."""
        endpoint, settings = self._binds[service], self._config.services[service]
        if settings.mode is Mode.HTTP:
            return listener.observe(service, endpoint, tls=settings.tls is not None)
        listener.accepts(service, endpoint)
        return listener.observe(service, self._state_socket, path=f"{listener.STATE_PATH}/{service}")

    # -- the process -----------------------------------------------------------------------------------------

    def is_running(self) -> bool:
        """Whether the master is alive."""
        return self._process.pid() is not None

    def why_not_started(self) -> str | None:
        """That `stop` was the last thing said, if it was."""
        return stopmark.sentence("HAProxy") if self._stopped.is_set() else None

    def start(self) -> None:
        """Start what is installed; nothing happens when it runs already. Raises: StartFailed, BalancerMissing."""
        self._stopped.clear()
        if self.is_running():
            return
        if self.installed() is None:
            raise StartFailed("nothing is installed that could be started: run the agent once")
        if not self._files.exist():
            raise StartFailed(
                f"{self._files.live} or {self._files.weights} is missing, and says which color is live: start the "
                "agent, which knows it from its journal"
            )
        try:
            self._refuse_unusable_binds()
        except CheckFailed as error:
            raise StartFailed(str(error)) from error
        try:
            self._shield.ensure()
        except OSError as error:
            raise StartFailed(f"{error.filename}: {error.strerror}") from error
        self._process.start(self._binds)
        self._live.eject_again()

    def reload(self, *, gently: bool = True) -> None:  # noqa: ARG002 - of the port
        """Have a new worker read what is installed; the old one finishes its connections. Raises: ReloadFailed."""
        try:
            self._shield.ensure()
        except OSError as error:
            raise ReloadFailed(f"{error.filename}: {error.strerror}; what was loaded before still serves") from error
        self._process.reload(self._binds)
        self._live.eject_again()

    def stop(self) -> None:
        """Let requests in flight finish, for ten seconds at most, then end it. Raises: StartFailed."""
        unmarked: OSError | None = None
        try:
            if self.is_running() or self.installed() is not None:
                self._stopped.set()
        except OSError as error:
            unmarked = error
        self._process.stop()
        if unmarked is not None:
            raise StartFailed(
                f"HAProxy is stopped, but a running agent can't see that this was meant and will start it: {unmarked}"
            ) from unmarked

    def warnings(self) -> list[str]:
        """What works but should be mended."""
        return [
            *self._few_files(),
            *self._readable_keys(),
            *self._live.many_draining("half an hour at most"),
            *self._live.hung_workers(),
        ]

    def _few_files(self) -> Iterator[str]:
        needed = 2 * self._config.balancer.connections + len(self._binds) + _FILES_BESIDE_CONNECTIONS
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if os.geteuid() != 0 and resource.RLIM_INFINITY != limit < needed:
            yield (
                f"balancer.connections {self._config.balancer.connections} needs about {needed} open files, and the "
                f"limit is {limit}: HAProxy serves fewer connections; raise LimitNOFILE or lower the number"
            )

    def _readable_keys(self) -> Iterator[str]:
        for name, service in self._config.services.items():
            with contextlib.suppress(OSError):
                if service.tls is not None and Path(service.tls.key).stat().st_mode & 0o004:
                    yield f"{name}: everybody on this machine can read tls.key {service.tls.key}: chmod o-r"


def _renamed(file: RenderedFile, path: Path) -> bytes:
    """The file's content with a path in it made relative; certificates have no paths."""
    return file.content if file.secret else file.content.replace(os.fsencode(path), os.fsencode(path.name))
