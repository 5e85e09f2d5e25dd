"""What an nginx of ours and one of somebody else's do alike: files, the pointer, drift and draining."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

from lbswitch.balancers import pools
from lbswitch.balancers.nginx_draining import NginxDraining
from lbswitch.balancers.nginx_drift import NginxDrift
from lbswitch.balancers.nginx_pointer import Pointer
from lbswitch.balancers.nginx_shield import NginxShield
from lbswitch.balancers.rendered import RenderedDirectory
from lbswitch.core.model import Color, Intent, ServerKey
from lbswitch.ports import Difference, Rendered


class NginxBalancer(ABC):
    """The common part of `lbswitch.ports.Balancer`."""

    def __init__(
        self,
        rendered: RenderedDirectory,
        pointer: Pointer,
        drift: NginxDrift,
        draining: NginxDraining,
        shield: NginxShield,
    ) -> None:
        """Nothing is looked up, read or written yet."""
        self._rendered = rendered
        self._pointer = pointer
        self._drift = drift
        self._draining = draining
        self._shield = shield

    # -- files -------------------------------------------------------------------------------------------------

    def installed(self) -> str | None:
        """The revision that is on disk now."""
        return self._rendered.installed()

    def intended_revision(self) -> str | None:
        """The revision that was last installed, or found first."""
        return self._rendered.intended

    def read(self, revision: str) -> Rendered:
        """A kept revision. Raises: StateError."""
        return self._rendered.read(revision)

    def reinstall(self, revision: str) -> None:
        """Put a kept revision back. Raises: StateError."""
        self._rendered.reinstall(revision)

    def pools(self, rendered: Rendered) -> Mapping[str, int]:
        """Servers of each `upstream`."""
        return pools.nginx(rendered)

    # -- what is served ----------------------------------------------------------------------------------------

    def why_not_weighted(self, service: str) -> str | None:  # noqa: ARG002 - of the port
        """Every service can be: what draws is ours."""
        return None

    def prepare(self, intent: Intent) -> None:
        """Write the next pointer beside the live one. Raises: CommitFailed."""
        self._pointer.prepare(intent)

    def prepare_ahead(self, intent: Intent) -> None:
        """Write it now; whether anybody has touched it since is looked at before it serves. Raises: CommitFailed."""
        self._pointer.prepare(intent)
        self._pointer.forget()

    def is_ahead(self, intent: Intent) -> bool:
        """Whether the next pointer is on disk, as far as is known without looking."""
        return self._pointer.is_ahead(intent)

    def forget(self) -> None:
        """What was written ahead is the spare of the next commit."""
        self._pointer.forget()

    def commit(self, intent: Intent, changed: Collection[str]) -> None:
        """Move the pointer; every worker sees it with its next request. Raises: CommitFailed."""
        self._pointer.commit(intent, changed)

    def committed(self) -> Intent | None:
        """What the pointer on disk says."""
        return self._pointer.committed()

    def shield(self, services: Mapping[str, Color | None]) -> None:
        """Make and remove files that every worker looks for on each request. Raises: CommitFailed."""
        self._shield.move(services)

    def why_not_shielded(self, service: str) -> str | None:
        """Why nothing stands by for this service."""
        return self._shield.why_not(service)

    def routes(self) -> Mapping[int, Intent]:
        """None: every worker reads the pointer."""
        return {}

    def differences(self, intent: Intent) -> list[Difference]:
        """In the pointer, the rendered files and what the workers run. Never raises."""
        return self._drift.differences(intent)

    def repair(self, intent: Intent, rendered: Rendered | None) -> None:
        """The pointer first, then the files; a reload if others run. Raises: CommitFailed, StateError, ReloadFailed."""
        self._drift.repair(intent, rendered, self.reload)

    def eject(self, ejected: frozenset[ServerKey]) -> bool:  # noqa: ARG002 - of the port
        """Not without a reload: nginx reads its pools from the configuration."""
        return False

    def remind(self) -> None:  # noqa: B027 - of the port
        """Workers read the disk and keep nothing else."""

    @property
    def draining(self) -> NginxDraining:
        """Connections that the workers have to the servers, by what the kernel knows."""
        return self._draining

    @abstractmethod
    def reload(self, *, gently: bool = True) -> None:
        """Have it read what is installed. Raises: ReloadFailed."""
