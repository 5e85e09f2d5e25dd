"""The managed nginx: lbswitch writes its whole configuration, starts it, and switches by moving files.

state_dir/live -> gen-000042/             the pointer (nginx_pointer)
state_dir/shield/                         which colors have others standing by (nginx_shield)
state_dir/nginx/rendered/REVISION/        rendered configurations (rendered)
state_dir/nginx/current -> rendered/...   the installed one
state_dir/nginx/{nginx.pid,error.log,tmp/,stopped}
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path

from lbswitch import procs
from lbswitch.balancers import clients, listener, nginx_user, nginx_view, stopmark, tls_files
from lbswitch.balancers.nginx_balancer import NginxBalancer
from lbswitch.balancers.nginx_binary import Binary, Program
from lbswitch.balancers.nginx_draining import NginxDraining
from lbswitch.balancers.nginx_drift import NginxDrift
from lbswitch.balancers.nginx_pointer import Pointer, make_directory
from lbswitch.balancers.nginx_process import NginxProcess
from lbswitch.balancers.nginx_retiring import Retiring
from lbswitch.balancers.nginx_shield import NginxShield
from lbswitch.balancers.rendered import RenderedDirectory
from lbswitch.balancers.running import children
from lbswitch.balancers.templating import Templates
from lbswitch.core.config import Config, Switching
from lbswitch.core.model import Intent, Observation
from lbswitch.core.values import Endpoint, parse_endpoint
from lbswitch.errors import BalancerTooOld, CheckFailed, StartFailed, StateError
from lbswitch.ports import Rendered, RenderedFile

_FILE = "nginx.conf"
_CHECK_S = 60.0  # a thousand services with host names to resolve
_MAY_NOT_BIND = re.compile(r"\bbind\(\) to .* failed \(13: ")  # EACCES
_LINE = re.compile(rf"{re.escape(_FILE)}:(\d+)")


class Nginx(NginxBalancer):
    """An nginx of our own below the state directory. Satisfies `lbswitch.ports.Balancer`."""

    def __init__(self, config: Config) -> None:
        """Nothing is looked up, read or written yet."""
        self._config = config
        self._state_dir = Path(config.agent.state_dir)
        self._prefix = self._state_dir / "nginx"
        self._binary = Binary(config.balancer.binary)
        override = config.balancer.templates
        self._templates = Templates("nginx", None if override is None else Path(override))
        self._users = nginx_user.Chooser(config.balancer.user, self._state_dir)
        self._process = NginxProcess(self._prefix)
        self._retiring = Retiring(self._prefix)
        self._cache: tuple[Hashable, Rendered] | None = None
        rendered, pointer = RenderedDirectory(self._prefix), Pointer(self._state_dir)
        drift = NginxDrift(pointer, rendered, self.observe, self._workers, self.render)
        draining = NginxDraining(config, self._process.pid, is_ours=True, is_inside=False)
        super().__init__(rendered, pointer, drift, draining, NginxShield(config))

    # -- the program -------------------------------------------------------------------------------------------

    @property
    def reload_is_free(self) -> bool:
        """Whether this nginx keeps idle connections open across a reload (1.27.4 or newer)."""
        return self._program().has_min_timeout

    def version(self) -> str:
        """Such as `1.22.1`. Raises: BalancerMissing, BalancerTooOld."""
        return self._program().version

    def warnings(self) -> list[str]:
        """What works but should be mended, as sentences."""
        warning = self._user().warning
        return [] if warning is None else [warning]

    def _workers(self) -> frozenset[int]:
        return children(self._process.pid())

    def _program(self) -> Program:
        program = self._binary.program()
        for name, service in self._config.services.items():
            if service.tls is not None and not program.has_module("http_ssl"):
                raise BalancerTooOld(
                    f"{program.path} was built without TLS (http_ssl), which services.{name}.tls needs"
                )
            if service.http2 and not program.has_module("http_v2"):
                raise BalancerTooOld(
                    f"{program.path} was built without HTTP/2 (http_v2), which services.{name}.http2 needs"
                )
        return program

    def _user(self) -> nginx_user.WorkerUser:
        return self._users.user()

    # -- the configuration -------------------------------------------------------------------------------------

    def render(self, intent: Intent) -> Rendered:
        """The configuration for this intent; moving only pointers gives the same. Raises: RenderFailed."""
        program, user = self._program(), self._user().directive
        stamps = nginx_view.certificates(self._config)
        key = (
            self._templates.fingerprint(),
            program,
            user,
            nginx_view.what_matters(self._config, intent),
            tuple(stamps.items()),
        )
        if self._cache is None or self._cache[0] != key:
            seen = nginx_view.variables(self._config, intent, program, user, stamps)
            content = self._templates.render(f"{_FILE}.j2", seen)
            self._cache = (key, Rendered.of([RenderedFile(_FILE, content)]))
        return self._cache[1]

    def check(self, rendered: Rendered) -> None:
        """Let `nginx -t` judge it. Writes nothing below the state directory. Raises: CheckFailed with its words."""
        problems = [self._user().problem, *tls_files.problems(self._config, may_be_encrypted=True)]
        if any(problems):
            raise CheckFailed("\n".join(filter(None, problems)))
        with self._rendered.staged(rendered) as staging:
            # Relative paths start from the prefix, so pid, logs and temporary files of the check go with the staging.
            argv = [self._program().path, "-t", "-q", "-p", str(staging), "-c", str(staging / _FILE), "-e", "stderr"]
            try:
                make_directory(staging / "tmp")
                result = procs.run(argv, timeout_s=_CHECK_S)
            except (OSError, procs.TimedOut) as error:
                raise CheckFailed(f"nginx -t could not judge the configuration: {error}") from error
        if not result.ok and not self._is_beyond_this_user(result.output):
            raise CheckFailed(f"nginx refused the configuration: {_explained(result.output, staging, rendered)}")

    def _is_beyond_this_user(self, output: str) -> bool:
        """Whether the one complaint is that this user may not listen there, and it is not the agent's user.

        `nginx -t` binds, as the last thing it does. Who can't write the state directory could not run the agent either,
        so what this user may bind says nothing about the configuration.
        """
        complaints = [line for line in output.splitlines() if "[emerg]" in line]
        is_about_rights = bool(complaints) and all(_MAY_NOT_BIND.search(line) for line in complaints)
        existing = next(path for path in (self._state_dir, *self._state_dir.parents) if os.access(path, os.F_OK))
        return is_about_rights and not os.access(existing, os.W_OK)

    def install(self, rendered: Rendered) -> None:
        """Put it on disk, durably. Raises: StateError."""
        try:
            make_directory(self._state_dir)
            make_directory(self._prefix)
        except OSError as error:
            raise StateError(f"{error.filename}: {error.strerror}; the installed configuration is unchanged") from error
        self._retire_for(rendered.revision)
        self._rendered.install(rendered)

    def reinstall(self, revision: str) -> None:
        """Put a kept revision back. Raises: StateError."""
        self._retire_for(revision)
        super().reinstall(revision)

    def _retire_for(self, revision: str) -> None:
        """Only where switches reload: the test of a file for every request costs too much elsewhere."""
        if any(self._config.switching(name) is Switching.RELOAD for name in self._config.services):
            self._retiring.replaces(self.installed(), revision)

    # -- what is served ----------------------------------------------------------------------------------------

    def connections(self, services: Collection[str]) -> Mapping[str, int | None]:
        """Open connections at the services' listeners."""
        return clients.connections({name: parse_endpoint(self._config.services[name].bind) for name in services})

    def watched(self) -> frozenset[Path]:
        """Templates, certificates and keys, and where pointer and rendered files lie."""
        ours = [self._state_dir, self._prefix, self._rendered.current, *self._pointer.watched(self._config.services)]
        return frozenset([*self._templates.directories, *tls_files.paths(self._config), *ours])

    def observe(self, service: str) -> Observation:
        """Ask the service's own listener. Raises: NotSeen."""
        settings = self._config.services[service]
        return listener.observe(service, parse_endpoint(settings.bind), tls=settings.tls is not None)

    # -- the process -------------------------------------------------------------------------------------------

    def is_running(self) -> bool:
        """Whether our master process is alive."""
        return self._process.pid() is not None

    def why_not_started(self) -> str | None:
        """That `stop` was the last thing said, if it was."""
        return stopmark.sentence("nginx") if self._process.is_stopped_on_purpose() else None

    def start(self) -> None:
        """Start what is installed; it outlives the caller. Raises: StartFailed."""
        if self.installed() is None:
            raise StartFailed(f"nothing is installed below {self._prefix} that could be started")
        self._process.start(self._program().path, self._binds())

    def stop(self) -> None:
        """Stop it gracefully, within a bounded time. Raises: StartFailed."""
        self._process.stop()

    def reload(self, *, gently: bool = True) -> None:
        """Have it read what is installed. Raises: ReloadFailed."""
        if gently and not self.reload_is_free:
            self._retiring.announce()
        self._process.reload(self._binds())

    def _binds(self) -> dict[str, Endpoint]:
        return {name: parse_endpoint(service.bind) for name, service in self._config.services.items()}


def _explained(output: str, staging: Path, rendered: Rendered) -> str:
    """The checker's words without the staging directory, and the line that they are about."""
    said = [line.removeprefix("nginx: ") for line in output.replace(f"{staging}/", "").splitlines()]
    told = "; ".join(line for line in said if line and not line.startswith("configuration file "))
    match = _LINE.search(told)
    lines = rendered.files[0].content.decode(errors="replace").splitlines()
    if match is None or not 1 <= int(match[1]) <= len(lines):
        return told
    return f"{told} (`{lines[int(match[1]) - 1].strip()}`)"
