"""What several checks look at, each looked up once: configuration, agent, balancer, the owner's files."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbswitch import configfile
from lbswitch.balancers import control, haproxy_guest_rendering, nginx_config
from lbswitch.balancers.haproxy_owner import Owner
from lbswitch.balancers.nginx_guest_files import GuestFiles
from lbswitch.client import Client, Document
from lbswitch.core.config import BalancerKind, Config, ServiceConfig
from lbswitch.core.model import Color, Intent, Route, ServerKey, ServiceIntent
from lbswitch.doctor import haproxy_text
from lbswitch.doctor.fact import Facts, fact
from lbswitch.doctor.finding import NotChecked
from lbswitch.doctor.host import Host
from lbswitch.errors import ConfigError, LbswitchError, NotSeen, StateError, UnknownService
from lbswitch.ports import Balancer, Rendered
from lbswitch.wiring import make_balancer

if TYPE_CHECKING:
    from lbswitch.balancers.nginx_config import NginxConfig
    from lbswitch.doctor.haproxy_text import HAProxyConfig


class Case(Facts):
    """One host with one configuration. Its facts raise NotChecked when they can't be had."""

    def __init__(
        self, config_path: Path, client: Callable[[], Client], service: str | None = None, host: Host | None = None
    ) -> None:
        """`client` makes a client for the agent, and may raise; `service` is the only one to look at."""
        super().__init__()
        self.config_path = config_path
        self.host = host or Host()
        self._client = client
        self._service = service

    # -- the configuration -------------------------------------------------------------------------------------

    @fact
    def loaded(self) -> Config:
        """The configuration. Raises: ConfigError; UnknownService."""
        config = configfile.load(self.config_path)
        if self._service is not None and self._service not in config.services:
            raise UnknownService(f"there is no service {self._service!r}; known: {', '.join(sorted(config.services))}")
        return config

    @fact
    def config(self) -> Config:
        """The configuration."""
        try:
            return self.loaded
        except ConfigError as error:
            raise NotChecked("there is no valid configuration") from error

    @property
    def services(self) -> Mapping[str, ServiceConfig]:
        """Those that were asked for."""
        return {name: service for name, service in self.config.services.items() if self._service in (None, name)}

    @property
    def state_dir(self) -> Path:
        """Of the configuration."""
        return Path(self.config.agent.state_dir)

    @property
    def is_guest(self) -> bool:
        """Whether the balancer is somebody else's."""
        return not self.config.balancer.managed

    @property
    def is_nginx(self) -> bool:
        """Whether it is nginx."""
        return self.config.balancer.kind is BalancerKind.NGINX

    # -- the agent ---------------------------------------------------------------------------------------------

    @fact
    def asked(self) -> Document:
        """The Status document. Raises: LbswitchError."""
        return self._client().status()

    @property
    def status(self) -> Document:
        """The Status document of a running agent."""
        try:
            return self.asked
        except LbswitchError as error:
            raise NotChecked("the agent does not answer") from error

    @property
    def has_agent(self) -> bool:
        """Whether an agent answers."""
        try:
            return bool(self.asked)
        except LbswitchError:
            return False

    def service_status(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What the agent says of each service."""
        for name, found in self.status["services"].items():
            if self._service in (None, name):
                yield name, found

    # -- the balancer ------------------------------------------------------------------------------------------

    @fact
    def balancer(self) -> Balancer:
        """The adapter."""
        try:
            return make_balancer(self.config)
        except LbswitchError as error:
            raise NotChecked(str(error)) from error

    @fact
    def version(self) -> str:
        """Of the balancer."""
        try:
            return self.balancer.version()
        except LbswitchError as error:
            raise NotChecked(f"there is no {self.config.balancer.kind} to ask") from error

    @property
    def version_number(self) -> tuple[int, ...]:
        """Such as (1, 22, 1)."""
        return tuple(int(part) for part in self.version.split("-")[0].split(".") if part.isdigit())

    @fact
    def intent(self) -> Intent:
        """What should be served: as the agent says, else as the disk says, else `initial`."""
        try:
            committed = self.balancer.committed()
        except (LbswitchError, OSError) as error:
            raise NotChecked(f"what is on disk can't be read: {error}") from error
        known = {} if committed is None else dict(committed.services)
        if self.has_agent:
            known |= _intended(self.status, known)
        newest = max([1, *(one.generation for one in known.values())])
        services = {
            name: known.get(name) or ServiceIntent(Route(service.initial), newest, service.weights is not None)
            for name, service in self.config.services.items()
        }
        return Intent(services, newest, self._ejected())

    def _ejected(self) -> frozenset[ServerKey]:
        """The servers that the agent has left out; none when its journal may not be read."""
        path = self.state_dir / "lbswitch.db"
        try:
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1.0)) as database:
                rows = database.execute("SELECT service, color, address FROM ejected").fetchall()
        except sqlite3.Error:
            return frozenset()
        keys = (ServerKey(service, Color(color), address) for service, color, address in rows)
        return frozenset(key for key in keys if self.config.lists(key))

    @fact
    def rendered(self) -> Rendered:
        """What configuration and templates give now. Raises: BalancerError, NotChecked."""
        return self.balancer.render(self.intent)

    @fact
    def installed(self) -> str:
        """The revision on disk."""
        found = self.balancer.installed()
        if found is None:
            raise NotChecked("nothing is installed yet")
        return found

    @fact
    def is_running(self) -> bool:
        """Whether the balancer runs."""
        try:
            return self.balancer.is_running()
        except (LbswitchError, OSError) as error:
            raise NotChecked(f"whether {self.config.balancer.kind} runs can't be seen: {error}") from error

    @fact
    def unseen(self) -> Mapping[str, str]:
        """The services whose own listener does not answer as lbswitch's would, with the reason."""
        if not self.is_running:
            raise NotChecked(f"{self.config.balancer.kind} does not run")
        found = {}
        for name in self.services:
            try:
                self.balancer.observe(name)
            except NotSeen as failed:
                found[name] = str(failed)
        return found

    @fact
    def control(self) -> control.Control:
        """How the owner's balancer is reached."""
        return control.make(self.config.balancer)

    @fact
    def master(self) -> int:
        """The pid of the balancer's master."""
        found = self.control.pid() if self.is_guest else self._managed_pid()
        if found is None:
            raise NotChecked(f"{self.config.balancer.kind} does not run, or its master can't be told")
        return found

    def _managed_pid(self) -> int | None:
        kind = self.config.balancer.kind
        try:
            pid = int((self.state_dir / str(kind) / f"{kind}.pid").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None
        return pid if self.is_running else None

    # -- its files ---------------------------------------------------------------------------------------------

    @fact
    def nginx(self) -> NginxConfig:
        """Everything that nginx reads: the owner's files, or the installed ones."""
        if self.is_guest:
            main = str((self.config.balancer.config or ("",))[0])
            texts = self._gathered(main)
            return nginx_config.load(texts, main)
        main = str(self.state_dir / "nginx" / "current" / "nginx.conf")
        self.installed  # noqa: B018 - raises NotChecked
        return nginx_config.load(_gathered(main, _read, _names), main)

    def _gathered(self, main: str) -> Mapping[str, str]:
        return _gathered(main, lambda path: self.control.read(Path(path)), lambda path: self.control.names(Path(path)))

    @fact
    def haproxy(self) -> HAProxyConfig:
        """Everything that the owner's HAProxy reads, as it was started, or as balancer.config says."""
        try:
            command = self.haproxy_owner.command_line()
            base = Path(self.haproxy_owner.base(command))
            names = [str(base / name) for name in self.haproxy_owner.files(command)]
            return haproxy_text.load(names, self.control)
        except (OSError, LbswitchError) as error:
            raise NotChecked(_unreadable(error)) from error

    @fact
    def haproxy_owner(self) -> Owner:
        """The owner's HAProxy as the adapter looks at it."""
        return Owner(self.control, self.config.balancer, self.ours(haproxy_guest_rendering.FILE))

    @fact
    def nginx_files(self) -> GuestFiles:
        """Which of nginx's files are ours."""
        try:
            return GuestFiles(self.control, Path(self.config.balancer.output_dir or "/"))
        except LbswitchError as error:
            raise NotChecked(str(error)) from error

    def ours(self, name: str) -> Path:
        """A file of the installed revision, as this host has it."""
        return Path(self.config.balancer.output_dir or "/") / "current" / name


def _intended(status: Document, known: Mapping[str, ServiceIntent]) -> dict[str, ServiceIntent]:
    found = {}
    for name, one in status["services"].items():
        weighted = name in known and known[name].weighted
        found[name] = ServiceIntent(Route(Color(one["live"]), one["weight"]), one["generation"], weighted)
    return found


def _gathered(main: str, read: nginx_config.Read, names: nginx_config.Names) -> Mapping[str, str]:
    try:
        return nginx_config.gather(main, read, names)
    except (OSError, StateError, LbswitchError) as error:
        raise NotChecked(_unreadable(error)) from error


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


def _names(path: str) -> list[str]:
    return sorted(entry.name for entry in Path(path).iterdir())


def _unreadable(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"{error.filename} may only be read by others: run lbswitch doctor as root"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error)
