"""The checks that must pass before anything is changed."""

from __future__ import annotations

import time

from lbswitch.core.decide import PoolState
from lbswitch.core.model import Color, Gate, Kind, PoolKey, Route
from lbswitch.errors import NotSeen
from lbswitch.ports import HealthView, Store
from lbswitch.serving import Serving

_WAIT_FOR_HEALTH_S = 3.0


class Gates:
    """Each gives the Gate that says no, or None."""

    def __init__(self, serving: Serving, store: Store, health: HealthView) -> None:
        """Look through these."""
        self._serving = serving
        self._store = store
        self._health = health

    def balancer(self) -> Gate | None:
        """Nothing can be seen at a balancer that does not run; no force helps."""
        balancer = self._serving.balancer
        if balancer.is_running():
            return None
        why = balancer.why_not_started() or "the agent is about to start it again"
        return Gate("balancer", f"the balancer is not running: {why}")

    def listener(self, service: str) -> Gate | None:
        """In a balancer that somebody else manages, the owner's lines have to be there for a switch to be seen."""
        sight, balancer = self._serving.sights.get(service), self._serving.balancer
        if (sight is not None and sight.verified) or balancer.why_not_started() is None:
            return None
        try:
            self._serving.ask(service)
        except NotSeen as error:
            return Gate("listener", f"{error}; a switch could not be seen (lbswitch doctor says what is missing)")
        return None

    def weights(self, service: str, after: Route) -> Gate | None:
        """A split needs a listener that can split; no force helps."""
        why = self._serving.balancer.why_not_weighted(service) if after.is_split else None
        return None if why is None else Gate("weights", why)

    def freeze(self, service: str, kind: Kind) -> Gate | None:
        """A frozen service takes nothing but a rollback."""
        reason = self._store.frozen().get(service)
        if reason is None or kind is Kind.ROLLBACK:
            return None
        return Gate("freeze", f"{service} is frozen: {reason}; lbswitch release -s {service} ends that")

    def quarantine(self, service: str, before: Route, after: Route) -> Gate | None:
        """A color that was rolled back gets no traffic until a person says that it may."""
        gaining = after.gains_from(before)
        reason = None if gaining is None else self._store.quarantined().get(PoolKey(service, gaining))
        if reason is None:
            return None
        return Gate(
            "quarantine",
            f"{gaining} was rolled back and is quarantined: {reason}; lbswitch release -s {service} ends that",
        )

    def health(self, service: str, before: Route, after: Route) -> Gate | None:
        """The color that gains traffic must be healthy; one that is not known yet gets a moment to show it."""
        gaining = after.gains_from(before)
        if gaining is None:
            return None
        return self.color(service, gaining, before)

    def color(self, service: str, color: Color, serving: Route) -> Gate | None:
        """This color must be healthy; `serving` is what serves until then."""
        deadline = time.monotonic() + _WAIT_FOR_HEALTH_S
        facts = self._health.facts(service, color)
        while facts.state is PoolState.UNKNOWN and time.monotonic() < deadline:
            time.sleep(0.01)
            facts = self._health.facts(service, color)
        if facts.state is PoolState.HEALTHY:
            return None
        return Gate("health", f"{color} is {facts.state}: {facts.summary}; {serving} is still serving")
