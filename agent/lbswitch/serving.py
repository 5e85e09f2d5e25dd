"""What the balancer serves: intended, on disk and running, and the moves from one to the next.

Three facts are kept equal. *Intended* is an `Intent`; *on disk* are the rendered files and the pointer or maps;
*running* is what the listeners answer. Every change prepares an undo, acts, and then looks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from lbswitch.core.config import Config, Switching
from lbswitch.core.model import Intent, Observation, Route, ServerKey, ServiceIntent
from lbswitch.errors import BalancerError, LbswitchError, NotSeen, StateError
from lbswitch.events import Events
from lbswitch.ports import Balancer, Rendered

_PAUSE_S = 0.004
_ANSWERS_AFTER_RELOAD = 10  # until the master retires them, old workers take new connections too


@dataclass(frozen=True, slots=True)
class Undo:
    """How to return: the services as they were, and the revision that was installed if files change."""

    services: Mapping[str, ServiceIntent]
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
        """`on_step` is told the name of every step before it is taken."""
        self.config = config
        self.balancer = balancer
        self.mutex = threading.RLock()
        self.intent = Intent({}, 0)
        self.sights: dict[str, Sight] = {}
        self.files_problem: str | None = None
        self._pending: Undo | None = None
        self._moves = 0
        self._refused: str | None = None
        self._events = events
        self._step = on_step or (lambda _name: None)

    # -- looking ---------------------------------------------------------------------------------------------

    def look(self, service: str) -> Sight:
        """Ask the service's listener once and remember whether it shows what is intended."""
        intent, moves = self.intent.services[service], self._moves
        try:
            sight = self._compare(service, intent, self.balancer.observe(service))
        except NotSeen as error:
            sight = Sight(verified=False, detail=str(error), at=time.time())
        if self._moves == moves:  # else it may be about what was served before
            self.sights[service] = sight
        return sight

    def _compare(self, service: str, intent: ServiceIntent, seen: Observation) -> Sight:
        installed = self.balancer.installed() or ""
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
            sight = self._compare(service, intent, self.balancer.observe(service))
        except NotSeen as error:
            return str(error)
        return None if sight.verified else sight.detail

    # -- moving ----------------------------------------------------------------------------------------------

    def changed_files(self, intent: Intent) -> Rendered | None:
        """What would have to be installed for this intent, checked by the balancer; None when nothing differs.

        Raises: RenderFailed, CheckFailed.
        """
        try:
            self._step("render")
            rendered = self.balancer.render(intent)
            changed = rendered.revision != self.balancer.installed()
            if changed:
                self._step("check")
                self.balancer.check(rendered)
        except BalancerError as error:
            self.files_problem = str(error)
            raise
        self.files_problem = None
        return rendered if changed else None

    def undo_for(self, services: Iterable[str], files: Rendered | None) -> Undo:
        """How to return from a move of these services with these files."""
        revision = None if files is None else self.balancer.installed()
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
            self._pending = undo
            self._moves += 1
            self.intent = self.intent.with_services(undo.services)
            if undo.revision is not None and undo.revision != self.balancer.installed():
                self.balancer.reinstall(undo.revision)
                if self.balancer.is_running():
                    self.balancer.reload()
            self.balancer.commit(self.intent, undo.services)
            self._pending = None
        self.verify(undo.services, reloaded=undo.revision is not None)

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
            return self.balancer.observe(first).revision == self.balancer.installed()
        except NotSeen:
            return False

    def set_ejected(self, ejected: frozenset[ServerKey]) -> None:
        """Leave exactly these servers out of their pools. Raises: BalancerError, StateError; then nothing changed."""
        with self.mutex:
            after = self.intent.with_ejected(ejected)
            if self.balancer.eject(ejected):
                self.intent = after
                return
            files = self.changed_files(after)
            if files is not None:
                self._install_or_return(files)
            self.intent = after

    def reconfigure(self, config: Config, balancer: Balancer) -> bool:
        """Serve a changed configuration; False when the rendered files are the same. Gives up nothing on failure.

        Services that stay keep their route, new ones begin on `initial`. Raises: BalancerError, StateError.
        """
        with self.mutex:
            old = (self.config, self.balancer, self.intent)
            services = {name: self._service_intent(config, name) for name in config.services}
            ejected = frozenset(key for key in self.intent.ejected if config.lists(key))
            after = Intent(services, self.intent.generation, ejected)
            self.config, self.balancer = config, balancer
            try:
                files = self.changed_files(after)
                if after.services != self.intent.services:
                    balancer.commit(self.intent.with_services(services), services)
                if files is not None:
                    self._install_or_return(files)
                balancer.commit(after, services)
                self.intent = after
                self.sights = {name: sight for name, sight in self.sights.items() if name in services}
                self.verify(after.services, reloaded=files is not None)
            except LbswitchError:
                self.config, self.balancer, self.intent = old
                self._return_to(old[1], old[2])
                raise
            return files is not None

    def _service_intent(self, config: Config, name: str) -> ServiceIntent:
        service = config.services[name]
        intent = self.intent.services.get(name) or ServiceIntent(Route(service.initial), self.intent.generation)
        return replace(intent, weighted=intent.weighted or service.weights is not None)

    def _return_to(self, balancer: Balancer, intent: Intent) -> None:
        """After a failed change of the configuration: what was rendered and committed before."""
        rendered = balancer.render(intent)
        if rendered.revision != balancer.installed():
            balancer.reinstall(rendered.revision)
            if balancer.is_running():
                balancer.reload()
        balancer.commit(intent, intent.services)

    def _install_or_return(self, files: Rendered) -> None:
        """Install, reload and see the new revision on one service; else return to the revision before."""
        before = self.balancer.installed()
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
                if self.balancer.observe(service).revision == revision:
                    return
                problem = f"{service}: the listener still runs the configuration before {revision}"
            except NotSeen as error:
                problem = str(error)
            if time.monotonic() > deadline:
                raise NotSeen(problem)
            time.sleep(_PAUSE_S)

    def refresh(self) -> bool:
        """Apply edited templates; True when something was installed. A refused edit is not checked over and over.

        Raises: BalancerError, StateError; what served before still serves.
        """
        with self.mutex:
            try:
                rendered = self.balancer.render(self.intent)
            except BalancerError as error:
                self.files_problem = str(error)
                raise
            if rendered.revision == self._refused:
                return False
            self._refused = rendered.revision
            files = self.changed_files(self.intent)
            if files is not None:
                self._install_or_return(files)
            self._refused = None
            return files is not None

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


def _changed(before: Intent, after: Intent) -> set[str]:
    return {name for name, intent in after.services.items() if before.services.get(name) != intent}


def _difference(service: str, intent: ServiceIntent, installed: str, seen: Observation) -> str:
    wanted = f"{intent.route} of generation {intent.generation}"
    if seen.revision != installed:
        return f"{service}: the listener runs configuration {seen.revision}, installed is {installed}"
    return (
        f"{service}: intended is {wanted}, the listener answers {seen.color} (green {seen.share_green}%) of "
        f"generation {seen.generation}"
    )
