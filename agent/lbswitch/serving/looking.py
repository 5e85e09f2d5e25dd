"""Looks: what a service's listener answers, and whether that is what is intended."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from lbswitch.core.config import Config
from lbswitch.core.model import Intent, Observation, ServiceIntent
from lbswitch.errors import NotSeen
from lbswitch.events import Events
from lbswitch.ports import Balancer
from lbswitch.usage import Usage

PAUSE_S = 0.004
ANSWERS_AFTER_RELOAD = 10  # until the master retires them, old workers take new connections too


@dataclass(frozen=True, slots=True)
class Sight:
    """What the last look at a service's listener gave; `at` is in seconds since the epoch."""

    verified: bool
    detail: str
    at: float


class Looking:
    """What is served, and what was seen of it."""

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
        self._moves = 0
        self._reconfiguring = False
        self._events = events
        self._step = on_step or (lambda _name: None)

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

    @contextlib.contextmanager
    def between(self) -> Iterator[None]:
        """Configuration and intent don't fit together for as long as this lasts: who looks waits for `mutex`."""
        self._reconfiguring = True
        try:
            yield
        finally:
            self._reconfiguring = False

    def ask(self, service: str) -> Observation:
        """What the service's listener answers now. Raises: NotSeen."""
        return self._observe(service)

    def verify(
        self, services: Mapping[str, ServiceIntent], *, reloaded: bool = False, answers: int | None = None
    ) -> None:
        """See each service's intent at its own listener, `answers` (by default `verify.answers`) times in a row.

        Raises: NotSeen when a service does not show it before its `verify.deadline`.
        """
        self._step("verify")
        least = ANSWERS_AFTER_RELOAD if reloaded else 1
        for service, intent in services.items():
            self._see(service, intent, max(least, answers or self.config.services[service].verify.answers))
            least = 1  # the same workers answer for all services

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
            time.sleep(PAUSE_S)
        self.sights[service] = Sight(verified=True, detail="", at=time.time())

    def _miss(self, service: str, intent: ServiceIntent) -> str | None:
        try:
            sight = self._compare(service, intent, self._observe(service))
        except NotSeen as error:
            return str(error)
        return None if sight.verified else sight.detail

    def _compare(self, service: str, intent: ServiceIntent, seen: Observation) -> Sight:
        installed = self.balancer.intended_revision() or ""
        if seen.shows(intent, installed):
            return Sight(verified=True, detail="", at=time.time())
        return Sight(verified=False, detail=_difference(service, intent, installed, seen), at=time.time())

    def _observe(self, service: str) -> Observation:
        """Ask the listener; not counted among its clients. Raises: NotSeen."""
        with self.usage.own_look():
            try:
                return self.balancer.observe(service)
            except KeyError:
                raise NotSeen(f"{service} is not served any more") from None

    def _connections(self, services: Collection[str]) -> Mapping[str, int | None]:
        try:
            return self.balancer.connections(services)
        except KeyError:  # one of them was removed this instant
            return {}


def _difference(service: str, intent: ServiceIntent, installed: str, seen: Observation) -> str:
    wanted = f"{intent.route} of generation {intent.generation}"
    if seen.revision != installed:
        return f"{service}: the listener runs configuration {seen.revision}, installed is {installed}"
    return (
        f"{service}: intended is {wanted}, the listener answers {seen.color} (green {seen.share_green}%) of "
        f"generation {seen.generation}"
    )
