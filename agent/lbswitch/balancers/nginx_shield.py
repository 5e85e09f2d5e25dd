"""The shield of nginx: while a file is there, the other color's servers stand by for a pool's.

    STATE/shield/shop_green      requests for shop_green go to the upstream shop_green_shielded

nginx looks for the file on every request, in all workers, so what is on disk is what is served, after a restart too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lbswitch.balancers import shielding
from lbswitch.balancers.nginx_pointer import make_directory
from lbswitch.core.config import Config
from lbswitch.core.model import Color
from lbswitch.core.names import pool_name
from lbswitch.errors import CommitFailed
from lbswitch.files import sync_directory


def directory_of(config: Config) -> Path:
    """Where the files are."""
    return Path(config.agent.state_dir) / "shield"


class NginxShield:
    """Makes and removes the files."""

    def __init__(self, config: Config) -> None:
        """Nothing is looked at yet."""
        self._config = config
        self._directory = directory_of(config)

    def why_not(self, service: str) -> str | None:
        """Why this service has no shield; None when it has one."""
        return shielding.why_not(self._config, service)

    def shielded(self) -> dict[str, Color]:
        """Who is under it. Raises: OSError."""
        names = self._names()
        return {
            service: color for service in self._config.services for color in Color if pool_name(service, color) in names
        }

    def move(self, services: Mapping[str, Color | None]) -> None:
        """Put these colors under the shield, or nobody; other services stay as they are. Raises: CommitFailed."""
        try:
            self._set(shielding.merged(self._config, self.shielded(), services))
        except OSError as error:
            raise CommitFailed(
                f"the shield was not moved, routes are as they were: {error.strerror or error}: {self._directory}"
            ) from error

    def _set(self, services: Mapping[str, Color]) -> None:
        there, wanted = self._names(), {pool_name(*each) for each in services.items()}
        if there == wanted:
            return
        make_directory(self._directory)
        for name in wanted - there:
            path = self._directory / name
            path.touch()
            path.chmod(0o644)
        for name in there - wanted:
            (self._directory / name).unlink(missing_ok=True)
        sync_directory(self._directory)

    def _names(self) -> set[str]:
        """All that is there, also what is left of services that are gone."""
        try:
            return {path.name for path in self._directory.iterdir()}
        except FileNotFoundError:
            return set()
