"""An nginx that is somebody else's: lbswitch writes files that its owner includes, and switches by moving others.

state_dir/live -> gen-000042/                   the pointer (nginx_pointer)
output_dir/rendered/REVISION/http.conf          pools and what is drawn by, for the http block
output_dir/rendered/REVISION/NAME.server.conf   the choice of color, for the server blocks of a service
output_dir/rendered/REVISION/traffic.conf       lets the agent see how requests fare, if the owner includes it
output_dir/current -> rendered/...              the installed ones
"""

from __future__ import annotations

import time
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path

from lbswitch.balancers import clients, control, listener, nginx_guest_master, nginx_user, nginx_view
from lbswitch.balancers.neighbors import Neighbors
from lbswitch.balancers.nginx_balancer import NginxBalancer
from lbswitch.balancers.nginx_binary import Program
from lbswitch.balancers.nginx_draining import NginxDraining
from lbswitch.balancers.nginx_drift import NginxDrift
from lbswitch.balancers.nginx_guest_check import Checker
from lbswitch.balancers.nginx_guest_files import HTTP_FILE, TRAFFIC_FILE, GuestFiles, server_file
from lbswitch.balancers.nginx_guest_master import GuestProgram, Master
from lbswitch.balancers.nginx_guest_owner import Owner
from lbswitch.balancers.nginx_guest_shadow import Shadow
from lbswitch.balancers.nginx_pointer import Pointer, make_directory
from lbswitch.balancers.nginx_shield import NginxShield
from lbswitch.balancers.rendered import RenderedDirectory
from lbswitch.balancers.templating import Templates
from lbswitch.core.config import Config
from lbswitch.core.config import Control as Kind
from lbswitch.core.model import Intent, Observation
from lbswitch.core.values import parse_endpoint
from lbswitch.errors import BalancerError, CheckFailed, StartFailed, StateError
from lbswitch.ports import Rendered, RenderedFile

_LOOK_AGAIN_S = {Kind.SIGNAL: 5.0, Kind.SYSTEMD: 5.0, Kind.DOCKER: 60.0}  # an engine is asked once for each file
_HINT = (
    "the server block of verify.host does not include {file}, or redirects or refuses before it, or the pointer in "
    "state_dir is gone"
)


class NginxGuest(NginxBalancer):
    """Files of ours in an nginx of somebody else. Satisfies `lbswitch.ports.Balancer`."""

    def __init__(self, config: Config) -> None:
        """Nothing is looked up, read or written yet."""
        balancer = config.balancer
        self._config = config
        self._main = str((balancer.config or ("",))[0])
        self._state_dir = Path(config.agent.state_dir)
        self._output = Path(str(balancer.output_dir))
        override = balancer.templates
        self._templates = Templates("nginx", None if override is None else Path(override))
        self._control = control.make(balancer)
        self._master = Master(self._control)
        self._program = GuestProgram(balancer.binary, self._control, self._master)
        self._neighbors = Neighbors(self._control)
        self._cache: tuple[Hashable, Rendered] | None = None
        self._paths: tuple[Hashable, Path, Path] | None = None
        self._last_look: tuple[float, Owner] | None = None
        rendered, pointer = RenderedDirectory(self._output), Pointer(self._state_dir)
        drift = NginxDrift(pointer, rendered, self.observe, self._master.workers, self.render)
        is_inside = self._control.kind is Kind.DOCKER
        draining = NginxDraining(config, self._master.pid, is_ours=False, is_inside=is_inside)
        super().__init__(rendered, pointer, drift, draining, NginxShield(config))

    # -- the program -------------------------------------------------------------------------------------------

    @property
    def reload_is_free(self) -> bool:
        """Whether this nginx can keep idle connections open across a reload (1.27.4), and its owner has it do so."""
        try:
            return self._program.program().has_min_timeout and self._owner().keeps_idle_connections()
        except BalancerError:
            return False

    def version(self) -> str:
        """Such as `1.22.1`. Raises: BalancerMissing, BalancerTooOld."""
        return self._program.program().version

    def warnings(self) -> list[str]:
        """What the owner should add or mend, as sentences."""
        try:
            owner = self._owner()
            return [*owner.missing(), *owner.hindrances(), *filter(None, [self._closed(owner)])]
        except BalancerError as error:
            return [str(error)]

    def _owner(self) -> Owner:
        """A look at the owner's configuration that is not old. Raises: CheckFailed."""
        last, now = self._last_look, time.monotonic()
        if last is None or now - last[0] > _LOOK_AGAIN_S[self._control.kind]:
            last = self._last_look = (now, self._look())
        return last[1]

    def _look(self) -> Owner:
        """A new one. Raises: CheckFailed."""
        return Owner.look(self._config, self._main, GuestFiles(self._control, self._output))

    def _closed(self, owner: Owner) -> str | None:
        """Why the workers would never see a switch, if they would not."""
        if self._control.kind is Kind.DOCKER:
            return None  # its users are not this host's
        user = owner.worker_user(self._program.program(), self._master.pid())
        directory = None if user is None else nginx_user.closed_to(user, self._state_dir)
        if user is None or directory is None:
            return None
        return (
            f"nginx's workers run as {user.pw_name}, who can't enter {directory}, so they would never see a switch: "
            f"chmod o+x {directory}, or choose another agent.state_dir"
        )

    # -- the configuration -------------------------------------------------------------------------------------

    def render(self, intent: Intent) -> Rendered:
        """The files for this intent; moving only pointers gives the same. Raises: RenderFailed, CheckFailed."""
        program, (state_dir, output) = self._program.program(), self._seen_paths()
        neighbors = self._neighbors.addresses()
        what_matters = nginx_view.what_matters(self._config, intent)
        key = (self._templates.fingerprint(), program, state_dir, output, tuple(neighbors), what_matters)
        if self._cache is None or self._cache[0] != key:
            seen = nginx_view.guest_variables(self._config, intent, program, state_dir / "live", output, neighbors)
            files = [RenderedFile(HTTP_FILE, self._templates.render("guest_http.conf.j2", seen))]
            for service in seen["services"]:
                content = self._templates.render("guest_server.conf.j2", {**seen, "service": service})
                files.append(RenderedFile(server_file(service["name"]), content))
            files.append(RenderedFile(TRAFFIC_FILE, self._templates.render("guest_traffic.conf.j2", seen)))
            self._cache = (key, Rendered.of(files))
        return self._cache[1]

    def _seen_paths(self) -> tuple[Path, Path]:
        """State and output directory as nginx sees them; asked again when another master runs. Raises: CheckFailed."""
        master = self._master.pid()
        if self._paths is None or self._paths[0] != master:
            self._paths = (master, self._control.seen(self._state_dir), self._control.seen(self._output))
        return self._paths[1:]

    def check(self, rendered: Rendered) -> None:
        """Let `nginx -t` judge the owner's whole configuration with these files in it. Raises: CheckFailed."""
        closed = self._closed(self._look())
        if closed is not None:
            raise CheckFailed(closed)
        shadow = Shadow(self._main, GuestFiles(self._control, self._output, rendered), rendered)
        Checker(self._control, self._program.program(), self._master.options(), self._output).check(shadow, rendered)

    def install(self, rendered: Rendered) -> None:
        """Put it on disk, durably. Raises: StateError."""
        try:
            if not self._output.is_dir():
                make_directory(self._output)
        except OSError as error:
            raise StateError(
                f"balancer.output_dir {self._output}: {error.strerror}; make it, writable for the agent's user and "
                "readable for nginx"
            ) from error
        self._rendered.install(rendered)

    # -- what is served ----------------------------------------------------------------------------------------

    def connections(self, services: Collection[str]) -> Mapping[str, int | None]:
        """Open connections at listeners that services may share with others; a container's are not known."""
        if self._control.kind is Kind.DOCKER:
            return dict.fromkeys(services)
        return clients.connections({name: parse_endpoint(self._config.services[name].bind) for name in services})

    def watched(self) -> frozenset[Path]:
        """Templates, where pointer and rendered files lie, and the owner's files as far as they are on this host."""
        ours = frozenset([*self._templates.directories, self._state_dir, self._output])
        if self._control.kind is Kind.DOCKER:
            return ours
        try:
            return ours | self._owner().paths
        except CheckFailed:
            return ours | {Path(self._main)}

    def observe(self, service: str) -> Observation:
        """Ask the owner's listener for this service. Raises: NotSeen."""
        settings = self._config.services[service]
        return listener.observe(
            service,
            parse_endpoint(settings.bind),
            tls=settings.verify.tls,
            path=listener.guest_path(service),
            host=settings.verify.host,
            hint=_HINT.format(file=server_file(service)),
        )

    # -- the process -------------------------------------------------------------------------------------------

    def is_running(self) -> bool:
        """Whether the owner's master is alive."""
        return self._master.is_running()

    def why_not_started(self) -> str | None:
        """Whose it is, and how that one starts it."""
        how = self._control.trouble() or self._control.how_to("start")
        return f"nginx is somebody else's to start (balancer.managed: false): {how}"

    def start(self) -> None:
        """Raises: StartFailed, always: the owner does that."""
        raise self._not_ours("start")

    def stop(self) -> None:
        """Raises: StartFailed, always: the owner does that."""
        raise self._not_ours("stop")

    def _not_ours(self, verb: str) -> StartFailed:
        return StartFailed(
            f"nginx is somebody else's (balancer.managed: false), so lbswitch does not {verb} it: "
            f"{self._control.how_to(verb)}"
        )

    def reload(self, *, gently: bool = True) -> None:  # noqa: ARG002 - of the port
        """Have it read what is installed, if anything of it is included. Raises: ReloadFailed."""
        if self._control.is_running() and self._is_left_out():
            return
        nginx_guest_master.reload(self._control, self._error_log)

    def _is_left_out(self) -> bool:
        """Whether the owner includes nothing of ours: a reload would cost clients something and bring nothing."""
        try:
            return not self._look().has_ours
        except CheckFailed:
            return False

    def _error_log(self) -> Path | None:
        """Raises: CheckFailed."""
        if self._control.kind is Kind.DOCKER:
            return None
        options = self._master.options()
        prefix = options[1] if options[:1] == ["-p"] else None
        program: Program = self._program.program()
        return self._owner().error_log(program, prefix)
