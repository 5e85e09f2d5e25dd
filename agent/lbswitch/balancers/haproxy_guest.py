"""Somebody else's HAProxy: they write one line into a frontend, lbswitch owns two backends for each service.

OUTPUT/rendered/REVISION/lbswitch.cfg
OUTPUT/current -> rendered/REVISION      HAProxy is given -f OUTPUT/current/lbswitch.cfg, or a symlink to it
OUTPUT/live.map, weights.map             where every service's requests go (`haproxy_maps`)
OUTPUT/state.sock                        tells what services in `mode: tcp` serve

The owner starts, stops and configures it; lbswitch checks the whole of their configuration before it changes its own
file, asks for a reload through `balancer.control`, and switches through `balancer.master_socket`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from lbswitch.balancers import clients, control, listener, pools
from lbswitch.balancers.haproxy_balancer import HAProxyBalancer
from lbswitch.balancers.haproxy_binds import LONGEST_SOCKET_PATH, too_long
from lbswitch.balancers.haproxy_draining import HAProxyDraining
from lbswitch.balancers.haproxy_drift import HAProxyDrift
from lbswitch.balancers.haproxy_guest_rendering import FILE, GuestRendering
from lbswitch.balancers.haproxy_guest_warnings import GuestWarnings
from lbswitch.balancers.haproxy_handover import Handover
from lbswitch.balancers.haproxy_lines import lines
from lbswitch.balancers.haproxy_live import LiveMaps
from lbswitch.balancers.haproxy_maps import MapFiles
from lbswitch.balancers.haproxy_master import MasterSocket
from lbswitch.balancers.haproxy_owner import Owner
from lbswitch.balancers.haproxy_runtime import Runtime, Unanswered
from lbswitch.balancers.haproxy_servers import Servers
from lbswitch.balancers.haproxy_shield import HAProxyShield
from lbswitch.balancers.haproxy_whole import Whole, readable_version
from lbswitch.balancers.neighbors import Neighbors
from lbswitch.balancers.rendered import RenderedDirectory
from lbswitch.core.config import Config, Mode
from lbswitch.core.config import Control as Kind
from lbswitch.core.model import Intent, Observation
from lbswitch.core.names import guest_pool_name
from lbswitch.core.values import Endpoint, parse_endpoint
from lbswitch.errors import BalancerError, CheckFailed, CommitFailed, LbswitchError, ReloadFailed, StartFailed
from lbswitch.ports import Difference, Rendered

_HINT = (
    "no use_backend line sends these requests to lbswitch's backends, or HAProxy has not loaded them: lbswitch check"
)


class HAProxyGuest(HAProxyBalancer):
    """Implements `lbswitch.ports.Balancer` for a HAProxy whose owner lets lbswitch choose between two backends."""

    def __init__(self, config: Config) -> None:
        """Nothing is looked up, written or asked yet."""
        balancer = config.balancer
        directory = Path(balancer.output_dir or "/")
        self._config = config
        self._control = control.make(balancer)
        in_container = self._control.kind is Kind.DOCKER
        self._seen: dict[Path, Path] = {}
        self._runtime = Runtime(Path(balancer.master_socket or "/"), is_alive=_nobody_knows if in_container else None)
        self._files = MapFiles(directory, self._as_seen)
        rendered = RenderedDirectory(directory)
        self._state_socket = directory / "state.sock"
        self._rendering = GuestRendering(config, self._files, self._state_socket, Neighbors(self._control).addresses)
        servers = Servers(config, self._runtime, guest_pool_name, _is_ours)
        live = LiveMaps(self._files, self._runtime, servers, self.is_running)
        drift = HAProxyDrift(
            self._files, rendered, self._runtime, live, servers, self.observe, self.render, self._frontends()
        )
        draining = HAProxyDraining(self._runtime, guest_pool_name, self.is_running, is_ours=False)
        shield = HAProxyShield(config, directory, self._runtime, self.is_running)
        super().__init__(rendered, live, drift, draining, shield)
        self._owner = Owner(self._control, balancer, self._rendered.current / FILE)
        self._whole = Whole(self._control, balancer, self._owner, self._files)
        self._master = MasterSocket(self._runtime, self._control)
        self._warnings = GuestWarnings(config, self._control, self._owner, self._rendered.current / FILE, self._as_seen)

    def _as_seen(self, path: Path) -> Path:
        """As HAProxy has it; the mounts of a container never change. Raises: CheckFailed."""
        if path not in self._seen:
            self._seen[path] = self._control.seen(path)
        return self._seen[path]

    def _frontends(self) -> list[str]:
        """Those that lbswitch wrote."""
        return ["lbswitch.state"] if any(s.mode is Mode.TCP for s in self._config.services.values()) else []

    @property
    def reload_is_free(self) -> bool:
        """Yes, with the settings that `warnings` asks for; ejecting servers needs none anyway."""
        return True

    def version(self) -> str:
        """Of what runs, else of the program on disk. Raises: BalancerMissing, BalancerTooOld."""
        try:
            worker = self._runtime.processes().current[0]
            return readable_version(self._runtime.ask(worker, "show version"))
        except (Unanswered, IndexError):
            return self._whole.version()

    # -- files -----------------------------------------------------------------------------------------------

    def render(self, intent: Intent) -> Rendered:  # noqa: ARG002 - of the port
        """The file for this configuration, whatever the intent. Raises: RenderFailed, CheckFailed."""
        return self._rendering.render()

    def check(self, rendered: Rendered) -> None:
        """Let `haproxy -c` judge the owner's files and this one together.

        Raises: CheckFailed, BalancerMissing, StateError.
        """
        path = too_long([self._as_seen(self._state_socket)] if self._frontends() else [])
        if path is not None:
            raise CheckFailed(
                f"the socket path {path} has {len(str(path))} bytes, and HAProxy can bind {LONGEST_SOCKET_PATH}: "
                "choose a shorter balancer.output_dir"
            )
        self._whole.check(rendered)
        self._warnings.refuse_in_use(self._removed(rendered))

    def _removed(self, rendered: Rendered) -> set[str]:
        """Services that are installed and would not be any more."""
        installed = self.installed()
        if installed is None:
            return set()
        gone = pools.haproxy(self.read(installed)).keys() - pools.haproxy(rendered).keys()
        return {name.removeprefix("lbswitch_").removesuffix("_blue") for name in gone if name.endswith("_blue")}

    def watched(self) -> frozenset[Path]:
        """Templates, and where maps and rendered files lie."""
        return frozenset([*self._rendering.template_directories, self._files.directory])

    # -- what is served --------------------------------------------------------------------------------------

    def prepare(self, intent: Intent) -> None:
        """Write the new maps and hand them to every worker, where they don't count yet. Raises: CommitFailed."""
        with self._mending():
            super().prepare(intent)

    def commit(self, intent: Intent, changed: Collection[str]) -> None:
        """Change the maps on disk and in every worker, the draining ones too. Raises: CommitFailed, CheckFailed."""
        with self._mending():
            super().commit(intent, changed)

    @contextlib.contextmanager
    def _mending(self) -> Iterator[None]:
        """A failure says what to do about a master socket that is not there."""
        try:
            yield
        except CommitFailed as error:
            raise CommitFailed(f"{error}{self._master.mend()}") from error

    def observe(self, service: str) -> Observation:
        """Ask the owner's listener; a `mode: tcp` one is asked for a connection alone. Raises: NotSeen."""
        settings = self._config.services[service]
        bind = parse_endpoint(settings.bind)
        if settings.mode is Mode.TCP:
            listener.accepts(service, bind)
            socket = Endpoint(path=str(self._state_socket))
            return listener.observe(service, socket, path=listener.guest_path(service), hint=_HINT)
        verify = settings.verify
        path = listener.guest_path(service, verify.prefix)
        return listener.observe(service, bind, tls=verify.tls, path=path, host=verify.host, hint=_HINT)

    def why_not_weighted(self, service: str) -> str | None:
        """Which lines the owner's frontend lacks for weights, or the configuration a `weights:` section."""
        return self._warnings.why_not_weighted(service)

    def owner_lines(self, service: str) -> list[str]:
        """What the owner's frontend needs. Raises: CheckFailed."""
        return lines(self._config, service, self._as_seen)

    def differences(self, intent: Intent) -> list[Difference]:
        """In maps and servers of every worker, on disk, and in what runs. Never raises."""
        try:
            return super().differences(intent)
        except BalancerError:  # the container can't be asked where it has the maps
            return []

    def connections(self, services: Collection[str]) -> Mapping[str, int | None]:
        """Open connections at the owner's listeners, whatever they are for; a container's are not counted from here."""
        if self._control.kind is Kind.DOCKER:
            return dict.fromkeys(services)
        return clients.connections({name: parse_endpoint(self._config.services[name].bind) for name in services})

    # -- the process -----------------------------------------------------------------------------------------

    def is_running(self) -> bool:
        """Whether there is a master: one that answers, or one that is seen."""
        return self._master.answers() or self._control.is_running()

    def why_not_started(self) -> str | None:
        """Its owner starts it."""
        return f"HAProxy is its owner's to start: {self._control.trouble() or self._control.how_to('start')}"

    def reload(self, *, gently: bool = True) -> None:  # noqa: ARG002 - of the port
        """Ask for a reload and see a new worker take over. Raises: ReloadFailed."""
        try:
            handover = Handover(self._runtime)
        except ReloadFailed as error:
            raise ReloadFailed(f"{error}{self._master.mend()}") from error
        self._control.reload()
        handover.wait(self._why)
        self._live.eject_again()

    def _why(self) -> str:
        """The daemon tells nobody why it refused; its checker may."""
        try:
            installed = self.installed()
            if installed is not None:
                self._whole.check(self.read(installed))
        except LbswitchError as error:
            return str(error)
        return ""

    def start(self) -> None:
        """Not ours to do. Raises: StartFailed."""
        raise StartFailed(
            f"HAProxy is somebody else's (managed: false), start it as its owner does: {self._how('start')}"
        )

    def stop(self) -> None:
        """Not ours to do. Raises: StartFailed."""
        raise StartFailed(
            f"HAProxy is somebody else's (managed: false), stop it as its owner does: {self._how('stop')}"
        )

    def _how(self, verb: str) -> str:
        return self._control.how_to(verb)

    def warnings(self) -> list[str]:
        """What works but should be mended."""
        return [
            *self._master.warnings(),
            *self._warnings.all(),
            *self._live.many_draining("as the owner's hard-stop-after says"),
            *self._live.hung_workers(),
        ]


def _is_ours(backend: str) -> bool:
    """The owner's servers may be in maintenance, which is theirs to end."""
    return backend.startswith("lbswitch_")


def _nobody_knows(_pid: int) -> bool:
    """A worker in a container has a number that means nothing here: an answer is waited for to the end."""
    return True
