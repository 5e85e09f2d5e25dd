"""What the command line does on this host without an agent: check, render, and the balancer's own life."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbswitch import changes, configfile, showing
from lbswitch.core.config import Config
from lbswitch.core.config_text import notes
from lbswitch.core.model import Intent, Route, ServiceIntent
from lbswitch.errors import StateError
from lbswitch.ports import Balancer, Rendered
from lbswitch.snapshots import files_now
from lbswitch.wiring import archive, make_balancer


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `lbswitch check` found; that there is a report means that all is valid."""

    kind: str
    version: str
    revision: str
    installed: str | None
    services: int
    notes: list[str]


@dataclass(frozen=True, slots=True)
class RenderReport:
    """What would be installed. `files` are (name, text, secret); the text of a secret file is empty."""

    files: list[tuple[str, str, bool]]
    diff: str
    revision: str
    installed: str | None


def check(config_path: Path) -> CheckReport:
    """Read the configuration, render it and let the balancer's own checker judge it. Changes nothing.

    Raises: ConfigError, BalancerError.
    """
    config = configfile.load(config_path)
    balancer = make_balancer(config)
    version = balancer.version()
    rendered = balancer.render(_intent(config, balancer))
    balancer.check(rendered)
    return CheckReport(
        kind=str(config.balancer.kind),
        version=version,
        revision=rendered.revision,
        installed=balancer.installed(),
        services=len(config.services),
        notes=[*notes(config), *balancer.warnings()],
    )


def render(config_path: Path) -> RenderReport:
    """Render the configuration and compare it with what is installed. Raises: ConfigError, BalancerError."""
    config = configfile.load(config_path)
    balancer = make_balancer(config)
    rendered = balancer.render(_intent(config, balancer))
    files = [(file.name, "" if file.secret else file.content.decode(), file.secret) for file in rendered.files]
    installed = balancer.installed()
    before = Rendered((), "") if installed is None else balancer.read(installed)
    return RenderReport(files, changes.unified(before, rendered), rendered.revision, installed)


def _intent(config: Config, balancer: Balancer) -> Intent:
    """What the disk says is served, and `initial` for services that are new."""
    committed = balancer.committed()
    known = {} if committed is None else committed.services
    generation = 1 if committed is None else committed.generation
    services = {
        name: known.get(name) or ServiceIntent(Route(service.initial), generation, service.weights is not None)
        for name, service in config.services.items()
    }
    return Intent(services, generation)


class BalancerHandle:
    """Start, stop and look at the managed balancer, with or without an agent running."""

    def __init__(self, config: Config) -> None:
        """Act on the balancer of this configuration."""
        self._config = config
        self._balancer = make_balancer(config)

    def start(self) -> dict[str, Any]:
        """Start what is installed. Raises: StateError when nothing is; StartFailed, also for one that is not ours."""
        if self._config.balancer.managed and self._balancer.installed() is None:
            raise StateError("nothing is installed yet: lbswitch agent renders, checks and starts the balancer")
        if not self._balancer.is_running():
            self._balancer.start()
        return self.status()

    def stop(self) -> dict[str, Any]:
        """Stop it, and keep the agent from starting it again until somebody does."""
        self._balancer.stop()
        return self.status()

    def restart(self) -> dict[str, Any]:
        """Stop, then start."""
        if self._balancer.is_running():
            self._balancer.stop()
        return self.start()

    def status(self) -> dict[str, Any]:
        """Kind, version, whether it runs, what is installed and which routes are on disk."""
        committed = self._balancer.committed()
        return {
            "kind": str(self._config.balancer.kind),
            "version": self._balancer.version(),
            "running": self._balancer.is_running(),
            "revision": self._balancer.installed(),
            "services": {
                name: {"live": str(intent.route.live), "weight": intent.route.weight, "generation": intent.generation}
                for name, intent in (committed.services.items() if committed is not None else ())
            },
        }


class SnapshotReader:
    """The snapshots of a configuration's state directory, when no agent is there to be asked: as its client reads."""

    def __init__(self, config_path: Path) -> None:
        """Raises: ConfigError."""
        self._path = config_path
        self._config = configfile.load(config_path)

    def snapshots(self, limit: int) -> dict[str, Any]:
        """The newest first. Raises: StateError."""
        with archive(self._config) as found:
            return showing.listing(found.newest(limit))

    def snapshot(self, number: int) -> dict[str, Any]:
        """One, without the content of its files. Raises: UnknownSnapshot, StateError."""
        with archive(self._config) as found:
            return showing.document(found.read(number))

    def snapshot_file(self, number: int, name: str) -> dict[str, Any]:
        """One file of it. Raises: UnknownSnapshot, NotAllowed (secret), StateError."""
        with archive(self._config) as found:
            return showing.file(found, found.read(number), name)

    def snapshot_diff(self, number: int) -> dict[str, Any]:
        """What differs from what is on disk now. Raises: UnknownSnapshot, StateError."""
        balancer = make_balancer(self._config)
        now = files_now(self._config, balancer, self._path, balancer.installed())
        with archive(self._config) as found:
            return showing.diff(found, found.read(number), now, _intent(self._config, balancer))


def balancer(config_path: Path) -> BalancerHandle:
    """The balancer of a configuration file. Raises: ConfigError, BalancerError."""
    return BalancerHandle(configfile.load(config_path))
