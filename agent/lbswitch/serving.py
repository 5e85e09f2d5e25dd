"""What the balancer serves: intended, on disk and running, and the moves from one to the next.

Three facts are kept equal. *Intended* is an `Intent`; *on disk* are the rendered files and the pointer or maps;
*running* is what the listeners answer. Every change prepares an undo, acts, and then looks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from lbswitch import changes
from lbswitch.core import guard
from lbswitch.core.config import Config, Switching
from lbswitch.core.model import Intent, Observation, Route, ServerKey, ServiceIntent
from lbswitch.errors import BalancerError, LbswitchError, NeedsForce, NotSeen, StateError
from lbswitch.events import Events
from lbswitch.ports import Balancer, Difference, Rendered
from lbswitch.usage import Usage

_PAUSE_S = 0.004
_SEEN_AFTER_REPAIR = 10  # services; the disk was looked at for all of them
_ANSWERS_AFTER_RELOAD = 10  # until the master retires them, old workers take new connections too


@dataclass(frozen=True, slots=True)
class Undo:
    """How to return: the services as they were, and the revision that was installed if files change."""

    services: Mapping[str, ServiceIntent]
    revision: str | None


@dataclass(frozen=True, slots=True)
class Standing:
    """All that is served at a moment: configuration, routes, and the revision that is installed."""

    config: Config
    balancer: Balancer
    intent: Intent
    revision: str | None


@dataclass(frozen=True, slots=True)
class Sight:
    """What the last look at a service's listener gave; `at` is in seconds since the epoch."""

    verified: bool
    detail: str
    at: float


class Serving:
    """Owns the balancer. All methods block and may be called from several threads."""

    def __init__(
        self, config: Config, balancer: Balancer, events: Events, on_step: Callable[[str], None] | None = None
    ) -> None:
        """`on_step` is told the name of every step before it is taken.

        `before_change` is told what is about to change ("configuration", "templates") unless it is an operation's;
        what it raises stops the change.
        """
        self.config = config
        self.balancer = balancer
        self.mutex = threading.RLock()
        self.intent = Intent({}, 0)
        self.sights: dict[str, Sight] = {}
        self.files_problem: str | None = None
        self.usage = Usage(self._connections)
        self.before_change: Callable[[str], object] = lambda _what: None
        self._pending: Undo | None = None
        self._moves = 0
        self._reconfiguring = False
        self._events = events
        self._step = on_step or (lambda _name: None)

    # -- looking ---------------------------------------------------------------------------------------------

    def look(self, service: str) -> Sight:
        """Ask the service's listener once and remember whether it shows what is intended."""
        if self._reconfiguring:  # neither the old services nor the new ones could be judged
            with self.mutex:
                pass
        intent, moves = self.intent.services.get(service), self._moves
        if intent is None:
            return Sight(verified=False, detail=f"{service} is not served any more", at=time.time())
        try:
            sight = self._compare(service, intent, self._observe(service))
        except NotSeen as error:
            sight = Sight(verified=False, detail=str(error), at=time.time())
        if self._moves == moves:  # else it may be about what was served before
            self.sights[service] = sight
        return sight

    def _observe(self, service: str) -> Observation:
        """Ask the listener; not counted among its clients. Raises: NotSeen."""
        with self.usage.own_look():
            try:
                return self.balancer.observe(service)
            except KeyError:
                raise NotSeen(f"{service} is not served any more") from None

    def _connections(self, service: str) -> int | None:
        try:
            return self.balancer.connections(service)
        except KeyError:  # removed this instant
            return 0

    def _compare(self, service: str, intent: ServiceIntent, seen: Observation) -> Sight:
        installed = self.balancer.intended_revision() or ""
        if seen.shows(intent, installed):
            return Sight(verified=True, detail="", at=time.time())
        return Sight(verified=False, detail=_difference(service, intent, installed, seen), at=time.time())

    def verify(
        self, services: Mapping[str, ServiceIntent], *, reloaded: bool = False, answers: int | None = None
    ) -> None:
        """See each service's intent at its own listener, `answers` (by default `verify.answers`) times in a row.

        Raises: NotSeen when a service does not show it before its `verify.deadline`.
        """
        self._step("verify")
        least = _ANSWERS_AFTER_RELOAD if reloaded else 1
        for service, intent in services.items():
            self._see(service, intent, max(least, answers or self.config.services[service].verify.answers))

    def _see(self, service: str, intent: ServiceIntent, wanted: int) -> None:
        if service not in self.config.services:
            raise NotSeen(f"{service} was taken out of the configuration meanwhile")
        settings = self.config.services[service].verify
        deadline = time.monotonic() + settings.deadline
        in_a_row = 0
        while in_a_row < wanted:
            problem = self._miss(service, intent)
            if problem is None:
                in_a_row += 1
                continue
            in_a_row = 0
            if time.monotonic() > deadline:
                self.sights[service] = Sight(verified=False, detail=problem, at=time.time())
                raise NotSeen(f"not seen within {settings.deadline:g} s at the listener: {problem}")
            time.sleep(_PAUSE_S)
        self.sights[service] = Sight(verified=True, detail="", at=time.time())

    def _miss(self, service: str, intent: ServiceIntent) -> str | None:
        try:
            sight = self._compare(service, intent, self._observe(service))
        except NotSeen as error:
            return str(error)
        return None if sight.verified else sight.detail

    # -- moving ----------------------------------------------------------------------------------------------

    def check_ahead(self, balancer: Balancer, intent: Intent) -> str | None:
        """Let the checker judge what would be installed for this intent; gives its revision, None if it is installed.

        That may take as long as the checker likes, so nobody who has to move traffic waits for it: call it without
        `mutex`, and `changed_files` then skips what was judged. Raises: RenderFailed, CheckFailed.
        """
        rendered = balancer.render(intent)
        if rendered.revision == balancer.installed():
            return None
        balancer.check(rendered)
        return rendered.revision

    def changed_files(self, intent: Intent, *, may_empty: bool = False, checked: str | None = None) -> Rendered | None:
        """What would have to be installed for this intent, checked by the balancer; None when nothing differs.

        `may_empty` allows that a pool which has servers would have none; `checked` is the revision that was judged just
        now. Raises: RenderFailed, CheckFailed, NeedsForce.
        """
        try:
            self._step("render")
            rendered = self.balancer.render(intent)
            changed = rendered.revision != self.balancer.installed()
            if changed:
                self._step("check")
                if rendered.revision != checked:
                    self.balancer.check(rendered)
                if not may_empty:
                    self._refuse_to_empty_pools(rendered)
        except BalancerError as error:
            self.files_problem = str(error)
            raise
        self.files_problem = None
        return rendered if changed else None

    def _refuse_to_empty_pools(self, rendered: Rendered) -> None:
        """Raises: NeedsForce. Without anything installed, or when it can't be read, there is nothing to lose."""
        installed = self.balancer.installed()
        if installed is None:
            return
        try:
            before = self.balancer.pools(self.balancer.read(installed))
        except StateError:
            return
        _need_force(guard.lost_pools(before, self.balancer.pools(rendered), self.config))

    def undo_for(self, services: Iterable[str], files: Rendered | None) -> Undo:
        """How to return from a move of these services with these files."""
        revision = None if files is None else self.balancer.intended_revision()
        return Undo({name: self.intent.services[name] for name in services}, revision)

    def move(self, after: Intent, files: Rendered | None) -> None:
        """Serve `after` from now on; the caller verifies. Raises: BalancerError, StateError."""
        before = self.intent
        self._moves += 1
        if files is not None:
            self._install(before, after, files)
        self._step("commit")
        changed = _changed(before, after)
        for name in changed:
            self.sights[name] = Sight(verified=False, detail="a switch is under way", at=time.time())
        self.balancer.commit(after, changed)
        self.intent = after

    def _install(self, before: Intent, after: Intent, files: Rendered) -> None:
        """Install and reload, with old and new workers both finding their way while that lasts.

        So the pointer first holds what both read: the routes as they were, with all that the new files look for.
        """
        both = before.with_services(
            {
                name: replace(before.services[name], weighted=intent.weighted) if name in before.services else intent
                for name, intent in after.services.items()
            }
        )
        if both != before:
            self._step("prepare")
            self.balancer.commit(both, _changed(before, both))
        self._step("install")
        self.balancer.install(files)
        if self.balancer.is_running():
            self._step("reload")
            self.balancer.reload()

    def put_back(self, undo: Undo) -> None:
        """Serve again what was served, and see it. Raises: BalancerError, StateError; `settle` then tries again."""
        self._step("revert")
        with self.mutex:
            services = {name: intent for name, intent in undo.services.items() if name in self.config.services}
            self._pending = undo
            self._moves += 1
            self.intent = self.intent.with_services(services)
            if undo.revision is not None and undo.revision != self.balancer.installed():
                self.balancer.reinstall(undo.revision)
                if self.balancer.is_running():
                    self.balancer.reload()
            self.balancer.commit(self.intent, services)
            self._pending = None
        self.verify(services, reloaded=undo.revision is not None)

    def settle(self) -> bool:
        """Repeat a return that failed. True when there was one and it worked. Raises: BalancerError, StateError."""
        with self.mutex:
            pending = self._pending
            if pending is None:
                return False
            self.put_back(pending)
            return True

    # -- starting, and changes other than switches -----------------------------------------------------------

    def start(self, intent: Intent) -> list[str]:
        """Make disk and balancer agree with `intent`, start the balancer if it is down, and look.

        One that was stopped on purpose stays stopped. Gives what differed, in sentences.

        A configuration that can't be rendered or is refused by the checker is
        reported in `files_problem` while what is installed goes on serving. Raises: BalancerError, StateError when
        there is nothing to go on with.
        """
        with self.mutex:
            self.intent = intent
            differences = self._differences(intent)
            try:
                files = self.changed_files(intent)
            except BalancerError:
                if self.balancer.installed() is None:
                    raise
                files = None
            self.balancer.commit(intent, intent.services)
            if files is not None:
                self.balancer.install(files)
            if not self.balancer.is_running():
                why = self.balancer.why_not_started()
                if why is not None:
                    return [*differences, why]
                self.balancer.start()
                self._events.emit("balancer-started", f"{self.config.balancer.kind} {self.balancer.version()} started")
            elif files is not None or not self._runs_what_is_installed():
                self.balancer.reload()
                self._events.emit("reloaded", "the balancer runs an older configuration: reloaded")
            self.balancer.eject(intent.ejected)
            try:
                self.verify(intent.services, answers=1)
            except NotSeen as error:
                differences.append(str(error))
            return differences

    def _differences(self, intent: Intent) -> list[str]:
        on_disk = self.balancer.committed()
        if on_disk is None:
            return []
        return [
            f"{name}: intended {wanted.route} (generation {wanted.generation}), on disk "
            f"{found.route} (generation {found.generation})"
            for name, wanted in intent.services.items()
            if (found := on_disk.services.get(name)) is not None
            and (found.route, found.generation) != (wanted.route, wanted.generation)
        ]

    def _runs_what_is_installed(self) -> bool:
        first = next(iter(self.intent.services))
        try:
            return self._observe(first).revision == self.balancer.installed()
        except NotSeen:
            # Somebody else's may be up without having our files included, and then needs no reload at every start.
            return self.balancer.why_not_started() is not None

    def set_ejected(self, ejected: frozenset[ServerKey]) -> None:
        """Leave exactly these servers out of their pools. Raises: BalancerError, StateError; then nothing changed."""
        with self.mutex:
            after = self.intent.with_ejected(ejected)
            if self.balancer.eject(ejected):
                self.intent = after
                return
        checked = self._checked_ahead(after)
        with self.mutex:
            after = self.intent.with_ejected(ejected)
            files = self.changed_files(after, checked=checked)
            if files is not None:
                self._install_or_return(files)
            self.intent = after

    def _checked_ahead(self, intent: Intent) -> str | None:
        """With the balancer that is in use. Raises: RenderFailed, CheckFailed, said by `files_problem`, too."""
        try:
            return self.check_ahead(self.balancer, intent)
        except BalancerError as error:
            self.files_problem = str(error)
            raise

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
            self._reconfiguring = True
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
            finally:
                self._reconfiguring = False
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
                _need_force(guard.lost_pools(serves.pools(before), balancer.pools(rendered), config))
        return rendered.revision, changes.unified(before, rendered)

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
        before, both = self.intent, self.intent.with_services(through)
        self._moves += 1
        self.config, self.balancer = config, balancer
        if both != before:
            self._step("prepare")
            balancer.commit(both, _changed(before, both))
        if files is not None:
            self._step("install")
            balancer.install(files)
            self._reload_and_see(before, both, after)
        self._step("commit")
        balancer.commit(after, after.services)
        self.intent = after
        self.sights = {name: sight for name, sight in self.sights.items() if name in after.services}
        self.usage.keep(config.services)

    def _reload_and_see(self, before: Intent, both: Intent, after: Intent) -> None:
        """New workers serve before any route moves: the old ones know other pools.

        A service that is switched by reloading has moved with the files already.
        """
        self._step("reload")
        self.balancer.reload()
        for name in [name for name in self.config.services if name in before.services][:1]:
            shows = after if self.needs_files(name) else both
            self._see(name, shows.services[name], _ANSWERS_AFTER_RELOAD)

    def stand(self) -> Standing:
        """What to go back to with `forgo`."""
        return Standing(self.config, self.balancer, self.intent, self.balancer.intended_revision())

    def forgo(self, standing: Standing) -> None:
        """After a failed `adopt`: serve again what was served, and see it; the caller holds `mutex`.

        Raises: BalancerError, StateError; `settle` then tries again.
        """
        self._step("revert")
        was = self.balancer.installed()
        self.config, self.balancer, self.intent = standing.config, standing.balancer, standing.intent
        self._moves += 1
        self._pending = Undo(standing.intent.services, standing.revision)
        self._return_to(standing.revision)
        self._pending = None
        self.verify(standing.intent.services, reloaded=was != standing.revision)

    def _refuse_to_cut_off(self, config: Config) -> None:
        """Raises: NeedsForce, when a service that has clients would be removed, or its listener moved."""
        if self.balancer.is_running():
            _need_force(guard.lost_listeners(self.config, config, self.usage.clients))

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
        if revision is not None and revision != self.balancer.installed():
            self.balancer.reinstall(revision)
            if self.balancer.is_running():
                self.balancer.reload()
        self.balancer.commit(self.intent, self.intent.services)

    def _install_or_return(self, files: Rendered) -> None:
        """Install, reload and see the new revision on one service; else return to the revision before."""
        before = self.balancer.intended_revision()
        self.balancer.install(files)
        if not self.balancer.is_running():
            return
        try:
            self.balancer.reload()
            known = [name for name in self.config.services if name in self.intent.services]
            for name in known[:1]:
                self._see_revision(name, files.revision)
        except LbswitchError:
            if before is not None:
                self.balancer.reinstall(before)
                self.balancer.reload()
            raise

    def _see_revision(self, service: str, revision: str) -> None:
        deadline = time.monotonic() + self.config.services[service].verify.deadline
        while True:
            try:
                if self._observe(service).revision == revision:
                    return
                problem = f"{service}: the listener still runs the configuration before {revision}"
            except NotSeen as error:
                problem = str(error)
            if time.monotonic() > deadline:
                raise NotSeen(problem)
            time.sleep(_PAUSE_S)

    def refresh(self, *, force: bool = False) -> bool:
        """Apply edited templates and certificates; True when something was installed.

        Without `force` no pool loses its last server. Raises: BalancerError, StateError; then nothing has changed.
        """
        checked = self._checked_ahead(self.intent)
        with self.mutex:
            files = self.changed_files(self.intent, may_empty=force, checked=checked)
            if files is None:
                return False
            self.before_change("templates")
            try:
                self._install_or_return(files)
            except LbswitchError as error:
                self.files_problem = str(error)
                raise
            return True

    def revive(self) -> None:
        """Start the balancer again after it died, with what is installed. Raises: StartFailed, StateError."""
        with self.mutex:
            if self.balancer.installed() is None:
                raise StateError("nothing is installed that could be started")
            self.balancer.start()
            self.balancer.eject(self.intent.ejected)

    def needs_files(self, service: str) -> bool:
        """Whether a switch of this service has to change rendered files."""
        return self.config.switching(service) is Switching.RELOAD

    # -- drift: what is not as intended, although no operation of ours made it so ----------------------------------

    def ask(self, service: str) -> Observation:
        """What the service's listener answers now. Raises: NotSeen."""
        return self._observe(service)

    def glance(self) -> list[Difference]:
        """What differs, looked at without waiting for operations: some of it may be one that is under way."""
        if self._reconfiguring:  # neither the old services nor the new ones could be judged
            with self.mutex:
                return self._differing()
        return self._differing()

    def _differing(self) -> list[Difference]:
        with self.usage.own_look():
            return self.balancer.differences(self.intent)

    def differences(self) -> list[Difference]:
        """What differs, looked at between operations. Never raises."""
        with self.mutex:
            return [] if self._pending is not None else self.glance()

    def repair(self) -> list[str]:
        """Put right what differs and see that at disk and listeners; gives what it was, in sentences.

        Raises: BalancerError, StateError.
        """
        with self.mutex:
            found = self.glance()
            if found:
                self._step("repair")
                self.balancer.repair(self.intent, self._intended_files())
                self._refuse_what_is_left()
            intent = self.intent
        self.verify({name: intent.services[name] for name in self._to_be_seen(found)})
        return list(dict.fromkeys(difference.what for difference in found))

    def _intended_files(self) -> Rendered | None:
        """The content of the intended revision, if that is what the templates still give."""
        try:
            rendered = self.balancer.render(self.intent)
        except BalancerError:
            return None
        return rendered if rendered.revision == self.balancer.intended_revision() else None

    def _refuse_what_is_left(self) -> None:
        left = self.glance()
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            raise StateError(f"repaired, but it differs again or still: {left[0].what}{more}")

    def _to_be_seen(self, found: Sequence[Difference]) -> list[str]:
        """The services to ask: some of those that were named, and some of all when a difference concerns all."""
        named = [difference.service for difference in found if difference.service is not None]
        whole = list(self.intent.services) if any(difference.service is None for difference in found) else []
        asked = [*dict.fromkeys(named)][:_SEEN_AFTER_REPAIR] + whole[:_SEEN_AFTER_REPAIR]
        running = self.balancer.is_running()
        return [name for name in dict.fromkeys(asked) if running and name in self.intent.services]


def _changed(before: Intent, after: Intent) -> set[str]:
    return {name for name, intent in after.services.items() if before.services.get(name) != intent}


def _need_force(lost: list[str]) -> None:
    """Raises: NeedsForce with what would be lost."""
    if lost:
        raise NeedsForce(f"{'; '.join(lost)}. If that is meant: lbswitch apply --force")


def _difference(service: str, intent: ServiceIntent, installed: str, seen: Observation) -> str:
    wanted = f"{intent.route} of generation {intent.generation}"
    if seen.revision != installed:
        return f"{service}: the listener runs configuration {seen.revision}, installed is {installed}"
    return (
        f"{service}: intended is {wanted}, the listener answers {seen.color} (green {seen.share_green}%) of "
        f"generation {seen.generation}"
    )
