"""What a HAProxy of ours and one of somebody else's do alike: files, maps, drift and draining."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

from lbswitch.balancers import pools
from lbswitch.balancers.haproxy_draining import HAProxyDraining
from lbswitch.balancers.haproxy_drift import HAProxyDrift
from lbswitch.balancers.haproxy_live import LiveMaps
from lbswitch.balancers.haproxy_shield import HAProxyShield
from lbswitch.balancers.rendered import RenderedDirectory
from lbswitch.core.model import Color, Intent, ServerKey
from lbswitch.ports import Difference, Rendered


class HAProxyBalancer(ABC):
    """The common part of `lbswitch.ports.Balancer`."""

    def __init__(
        self,
        rendered: RenderedDirectory,
        live: LiveMaps,
        drift: HAProxyDrift,
        draining: HAProxyDraining,
        shield: HAProxyShield,
    ) -> None:
        """Nothing is looked up, written or asked yet."""
        self._rendered = rendered
        self._live = live
        self._drift = drift
        self._draining = draining
        self._shield = shield

    # -- files -----------------------------------------------------------------------------------------------

    def installed(self) -> str | None:
        """The revision that is on disk now."""
        return self._rendered.installed()

    def intended_revision(self) -> str | None:
        """The revision that was last installed, or found first."""
        return self._rendered.intended

    def read(self, revision: str) -> Rendered:
        """An installed or previously installed configuration. Raises: StateError."""
        return self._rendered.read(revision)

    def install(self, rendered: Rendered) -> None:
        """Put it on disk, all files at once. Raises: StateError."""
        self._rendered.install(rendered)

    def reinstall(self, revision: str) -> None:
        """Put back what was installed before. Raises: StateError."""
        self._rendered.reinstall(revision)

    def pools(self, rendered: Rendered) -> Mapping[str, int]:
        """Servers of each `backend` of ours."""
        return pools.haproxy(rendered)

    # -- what is served --------------------------------------------------------------------------------------

    def prepare(self, intent: Intent) -> None:
        """Write the new maps and hand them to every worker, where they don't count yet. Raises: CommitFailed."""
        self._live.prepare(intent)

    def prepare_ahead(self, intent: Intent) -> None:
        """Write the new maps; workers get them when they are to count. Raises: CommitFailed."""
        self._live.prepare_ahead(intent)

    def is_ahead(self, intent: Intent) -> bool:
        """Whether the new maps are on disk, as far as is known without looking."""
        return self._live.is_ahead(intent)

    def forget(self) -> None:
        """Take them back."""
        self._live.forget()

    def commit(self, intent: Intent, changed: Collection[str]) -> None:
        """Change the maps on disk and in every worker, the draining ones too. Raises: CommitFailed."""
        self._live.commit(intent, changed)

    def committed(self) -> Intent | None:
        """Routes and generations of the maps on disk, or None. Raises: StateError."""
        return self._live.committed()

    def shield(self, services: Mapping[str, Color | None]) -> None:
        """Change the map of the shield on disk and in every worker. Raises: CommitFailed."""
        self._shield.move(services)

    def why_not_shielded(self, service: str) -> str | None:
        """Why nothing stands by for this service."""
        return self._shield.why_not(service)

    def routes(self) -> Mapping[int, Intent]:
        """What the maps of each worker serve."""
        return self._drift.routes()

    def differences(self, intent: Intent) -> list[Difference]:
        """In maps, servers and listeners of every worker, on disk, and in what runs. Never raises."""
        return self._drift.differences(intent)

    def repair(self, intent: Intent, rendered: Rendered | None) -> None:
        """Maps and servers first, then the files; a reload if others run. Raises: CommitFailed, StateError, ..."""
        self._drift.repair(intent, rendered, self.reload)

    def eject(self, ejected: frozenset[ServerKey]) -> bool:
        """Leave exactly these servers out in every worker, now and after the next reload. Raises: CommitFailed."""
        self._live.eject(ejected)
        return True

    def remind(self) -> None:
        """Tell new workers which servers are left out."""
        self._live.remind()

    @property
    def draining(self) -> HAProxyDraining:
        """Requests that the workers carry to the servers, by the Runtime API."""
        return self._draining

    @abstractmethod
    def reload(self, *, gently: bool = True) -> None:
        """Have a new worker read what is installed. Raises: ReloadFailed."""
