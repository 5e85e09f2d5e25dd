"""Another configuration: services come, go and change, by an edit or by a restore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lbswitch import changes
from lbswitch.core import guard
from lbswitch.core.config import Config
from lbswitch.core.model import Intent, Route, ServiceIntent
from lbswitch.ports import Balancer, Rendered
from lbswitch.serving.installing import Installing
from lbswitch.serving.looking import ANSWERS_AFTER_RELOAD
from lbswitch.serving.moving import Undo, changed, need_force


@dataclass(frozen=True, slots=True)
class Standing:
    """All that is served at a moment: configuration, routes, and the revision that is installed."""

    config: Config
    balancer: Balancer
    intent: Intent
    revision: str | None


class Reconfiguring(Installing):
    """Another configuration, with its own balancer object."""

    def reconfigure(self, config: Config, balancer: Balancer, *, force: bool = False) -> bool:
        """Serve a changed configuration; False when the rendered files are the same. Gives up nothing on failure.

        Services that stay keep their route, new ones begin on `initial`. Without `force` it takes away no pool's last
        server and no listener that clients use. Raises: BalancerError, StateError.
        """
        if not force:
            self._refuse_to_cut_off(config)
        checked = self.check_ahead(balancer, self._intent_for(config))
        with self.mutex:
            if not force:
                self._refuse_to_cut_off(config)
            self.before_change("configuration")
            after, revision = self._intent_for(config), self.balancer.intended_revision()
            before = (self.config, self.balancer, self.intent, self.files_problem)
            has_begun = False
            with self.between():
                self.config, self.balancer = config, balancer
                try:
                    files = self.changed_files(after, may_empty=force, checked=checked)
                    has_begun = True
                    self._serve(after, files)
                except Exception:
                    self.config, self.balancer, self.intent, self.files_problem = before
                    if has_begun:
                        self._return_to(revision)
                    raise
            self._pending = None
            self.usage.keep(config.services)
            return files is not None

    def _serve(self, after: Intent, files: Rendered | None) -> None:
        """Take up an intent with other services, and see it; on disk alone where the balancer is stopped."""
        if after.services != self.intent.services:
            self.balancer.commit(self.intent.with_services(after.services), after.services)
        if files is not None:
            self._install_or_return(files)
        self.balancer.commit(after, after.services)
        self.intent = after
        self.sights = {name: sight for name, sight in self.sights.items() if name in after.services}
        if self.balancer.is_running() or self.balancer.why_not_started() is None:
            self.verify(after.services, reloaded=files is not None)

    def rehearse(self, config: Config, balancer: Balancer, *, force: bool = False) -> tuple[str, str]:
        """The revision that `reconfigure` or `refresh` would install, and what differs from what is installed.

        Changes nothing, and keeps nobody waiting. Raises: BalancerError, StateError.
        """
        with self.mutex:
            serves, after = self.balancer, self._intent_for(config)
            installed = serves.installed()
            before = Rendered((), "") if installed is None else serves.read(installed)
        if not force:
            self._refuse_to_cut_off(config)
        rendered = balancer.render(after)
        if rendered.revision != installed:
            balancer.check(rendered)
            if not force:
                need_force(guard.lost_pools(serves.pools(before), balancer.pools(rendered), config))
        return rendered.revision, changes.unified(before, rendered)

    # -- a restore's, which sees and returns by itself ----------------------------------------------------------

    def stand(self) -> Standing:
        """What to go back to with `forgo`."""
        return Standing(self.config, self.balancer, self.intent, self.balancer.intended_revision())

    def adopt(
        self,
        config: Config,
        balancer: Balancer,
        after: Intent,
        through: Mapping[str, ServiceIntent],
        files: Rendered | None,
    ) -> None:
        """Serve another configuration with other routes from now on; the caller holds `mutex`, and verifies.

        `files` are what has to be installed for it, and `through` what each service serves while they take the place
        of the old ones. Raises: BalancerError, StateError; then `forgo`.
        """
        with self.between():
            self._adopt(config, balancer, after, through, files)
        self.sights = {name: sight for name, sight in self.sights.items() if name in after.services}
        self.usage.keep(config.services)

    def _adopt(
        self,
        config: Config,
        balancer: Balancer,
        after: Intent,
        through: Mapping[str, ServiceIntent],
        files: Rendered | None,
    ) -> None:
        before, both = self.intent, self.intent.with_services(through)
        self._moves += 1
        self.config, self.balancer = config, balancer
        if both != before:
            self._step("prepare")
            balancer.commit(both, changed(before, both))
        if files is not None:
            self._step("install")
            balancer.install(files)
            self._reload_and_see(before, both, after)
        self._step("commit")
        balancer.commit(after, after.services)
        self.intent, self._pending = after, None

    def _reload_and_see(self, before: Intent, both: Intent, after: Intent) -> None:
        """New workers serve before any route moves: the old ones know other pools.

        A service that is switched by reloading has moved with the files already.
        """
        self._step("reload")
        self.balancer.reload()
        for name in [name for name in self.config.services if name in before.services][:1]:
            shows = after if self.needs_files(name) else both
            self._see(name, shows.services[name], ANSWERS_AFTER_RELOAD)

    def forgo(self, standing: Standing) -> None:
        """After a failed `adopt`: serve again what was served, and see it; the caller holds `mutex`.

        Raises: BalancerError, StateError; `settle` then tries again.
        """
        was = self.balancer.installed()
        self.config, self.balancer, self.intent = standing.config, standing.balancer, standing.intent
        self._moves += 1
        self._pending = Undo(standing.intent.services, standing.revision)
        self._step("revert")
        self._return_to(standing.revision)
        self._pending = None
        self.verify(standing.intent.services, reloaded=was != standing.revision)

    # -- what both need -----------------------------------------------------------------------------------------

    def _refuse_to_cut_off(self, config: Config) -> None:
        """Raises: NeedsForce, when a service that has clients would be removed, or its listener moved."""
        if self.balancer.is_running():
            need_force(guard.lost_listeners(self.config, config, self.usage.clients))

    def _intent_for(self, config: Config) -> Intent:
        services = {name: self._service_intent(config, name) for name in config.services}
        ejected = frozenset(key for key in self.intent.ejected if config.lists(key))
        return Intent(services, self.intent.generation, ejected)

    def _service_intent(self, config: Config, name: str) -> ServiceIntent:
        service = config.services[name]
        intent = self.intent.services.get(name) or ServiceIntent(Route(service.initial), self.intent.generation)
        return replace(intent, weighted=intent.weighted or service.weights is not None)

    def _return_to(self, revision: str | None) -> None:
        """After a failed change of the configuration: what was installed and committed before."""
        self._return_files(revision)
        self.balancer.commit(self.intent, self.intent.services)
