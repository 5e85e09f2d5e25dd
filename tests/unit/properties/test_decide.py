"""What `decide` never does, whatever happens to health, clock, settings and the switches it asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lbswitch.core.decide import (
    Action,
    Failover,
    FailoverState,
    Hold,
    Latch,
    Limits,
    Observation,
    PoolFacts,
    PoolState,
    Recovered,
    decide,
)
from lbswitch.core.health import CheckResult, PoolHealth, ServerHealth, advance
from lbswitch.core.model import Color, Route
from tests.unit.properties.search import TIMES, searching

pytestmark = pytest.mark.timeout(600 if TIMES == 1 else 0)  # a failure is made small before it is shown

RISE, FALL = 2, 2
HOUR_S = 3600.0
colors = st.sampled_from(list(Color))
pauses_s = st.sampled_from([0.0, 0.25, 1.0, 29.0, 31.0, 600.0, 3599.0, 3600.0])
jumps_s = st.sampled_from([0.5, 31.0, 3601.0, 86400.0, 1e9])


@dataclass
class Moved:
    """A failover that was asked for: the time of the clock then, and how much time may seem to have gone by since."""

    at: float
    seemed_s: float = 0.0


class Deciding(RuleBasedStateMachine):
    """A service, its checks, a clock that people set, and whoever carries out what was decided."""

    @initialize(
        live=colors,
        servers=st.integers(1, 3),
        least=st.integers(1, 3),
        cooldown_s=st.sampled_from([0.0, 30.0, 600.0]),
        most=st.integers(1, 3),
    )
    def begin(self, live: Color, servers: int, least: int, cooldown_s: float, most: int) -> None:
        self.now = 1.8e9
        self.route = Route(live)
        self.limits = Limits(enabled=True, cooldown_s=cooldown_s, max_per_hour=most)
        self.pools = {
            color: PoolHealth(tuple(ServerHealth(f"{color}{n}") for n in range(servers)), min(least, servers), RISE)
            for color in Color
        }
        self.state = FailoverState()
        self.before = self.state
        self.frozen: str | None = None
        self.moved: list[Moved] = []
        self.asked: Failover | None = None

    # -- what happens ------------------------------------------------------------------------------------------

    @rule(color=colors, which=st.integers(0, 2), passed=st.booleans(), times=st.integers(1, 2))
    def check(self, color: Color, which: int, passed: bool, times: int) -> None:
        """Results of one server's checks."""
        pool = self.pools[color]
        servers = list(pool.servers)
        index = which % len(servers)
        for _ in range(times):
            servers[index] = advance(servers[index], CheckResult(passed, "seen", 1.0), self.now, RISE, FALL)
        self.pools[color] = replace(pool, servers=tuple(servers))

    @rule(color=colors, passed=st.booleans())
    def check_all(self, color: Color, passed: bool) -> None:
        """A whole color comes or goes."""
        for which in range(len(self.pools[color].servers)):
            self.check(color, which, passed, 2)

    @rule(color=colors)
    def forget(self, color: Color) -> None:
        """An agent that has just started knows nothing of the servers."""
        pool = self.pools[color]
        self.pools[color] = replace(pool, servers=tuple(ServerHealth(server.address) for server in pool.servers))

    @rule(seconds=pauses_s)
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self._seems(seconds)

    @rule(seconds=jumps_s)
    def clock_is_set_forward(self, seconds: float) -> None:
        self.now += seconds
        self._seems(seconds)

    @rule(seconds=jumps_s)
    def clock_is_set_back(self, seconds: float) -> None:
        self.now -= seconds

    def _seems(self, seconds: float) -> None:
        for moved in self.moved:
            moved.seemed_s += seconds

    @precondition(lambda self: self.asked is None)
    @rule(color=colors, weight=st.sampled_from([100, 100, 90, 10]))
    def switch_by_hand(self, color: Color, weight: int) -> None:
        self.route = self.route.with_share(color, weight)

    @rule()
    def freeze_by_hand(self) -> None:
        self.frozen = self.frozen or "inventory"

    @precondition(lambda self: self.asked is None)
    @rule()
    def release(self) -> None:
        """A person has looked; automatic switches are counted anew."""
        self.frozen = None
        self.state = FailoverState()
        self.moved.clear()

    @rule(enabled=st.sampled_from([True, True, False]), cooldown_s=st.sampled_from([0.0, 30.0, 600.0]))
    def edit(self, enabled: bool, cooldown_s: float) -> None:
        """The configuration is changed while all goes on."""
        self.limits = replace(self.limits, enabled=enabled, cooldown_s=cooldown_s)

    @rule()
    def restart(self) -> None:
        """Another agent, which knows the history (as `Store.automatic_since` gives it)."""
        self.state = FailoverState(tuple(moved.at for moved in self.moved if moved.at > self.now - HOUR_S))
        self.asked = None

    @precondition(lambda self: self.asked is not None)
    @rule(outcome=st.sampled_from(["done", "done", "reverted", "busy"]))
    def failover_ends(self, outcome: str) -> None:
        """As `Automatic` does: one that somebody else forestalled does not count, one that failed does."""
        assert self.asked is not None
        if outcome == "done":
            self.route = Route(self.asked.to)
        if outcome == "busy":
            self.state = self.before
            self.moved.pop()
        self.asked = None

    # -- deciding ----------------------------------------------------------------------------------------------

    def _facts(self, color: Color) -> PoolFacts:
        pool = self.pools[color]
        return PoolFacts(PoolState(pool.state.value), pool.summary())

    @precondition(lambda self: self.asked is None)
    @rule()
    def look(self) -> None:
        """One decision, held against what was promised."""
        seen = Observation(self.route, self._facts(Color.BLUE), self._facts(Color.GREEN), self.limits, self.frozen)
        before = self.state
        kept = replace(before)
        after, actions = decide(before, seen, self.now)
        assert before == kept, "the state that was given is not changed"
        assert decide(before, seen, self.now) == (after, actions), "the same gives the same"
        assert len(actions) <= 1
        self.before, self.state = before, after
        action = actions[0] if actions else None
        self._judge(before, after, seen, action)
        if isinstance(action, Failover):
            self.asked = action
            self.moved.append(Moved(self.now))
        elif isinstance(action, Latch):
            self.frozen = action.reason

    def _judge(self, before: FailoverState, after: FailoverState, seen: Observation, action: Action | None) -> None:
        states = {color: seen.pool(color).state for color in Color}
        bad = [color for color in Color if self.route.share(color) > 0 and states[color] is PoolState.UNHEALTHY]
        rescue = [color.other for color in bad if states[color.other] is PoolState.HEALTHY]
        if not rescue:
            assert not isinstance(action, Failover | Latch), "nothing moves to a color that is not known to be healthy"
            assert isinstance(action, Hold) or not bad or before.problem is not None, "what is wrong is said"
        elif self.frozen is not None or not self.limits.enabled:
            assert not isinstance(action, Failover | Latch), "frozen is frozen"
        else:
            self._judge_rescue(rescue[0], action)
        if isinstance(action, Recovered):
            assert not bad
            assert before.problem is not None
        assert (after.problem is None) == (not bad or isinstance(action, Failover))

    def _judge_rescue(self, rescue: Color, action: Action | None) -> None:
        """A failover as soon as the limits allow it, and never before."""
        most, cooldown_s = self.limits.max_per_hour, self.limits.cooldown_s
        if isinstance(action, Failover):
            assert action.to is rescue
            assert self.route.share(rescue) < 100
            assert not self.moved or self.moved[-1].seemed_s >= cooldown_s, "the cooldown holds"
            assert len(self.moved) < most or self.moved[-most].seemed_s >= HOUR_S, "max_per_hour holds"
        elif isinstance(action, Latch):
            assert len(self.moved) >= most
        else:
            assert self.moved, "nothing but an earlier failover holds one up"

    @invariant()
    def memory_is_bounded(self) -> None:
        if hasattr(self, "state"):
            assert len(self.state.automatic) <= self.limits.max_per_hour


TestDeciding = Deciding.TestCase
TestDeciding.settings = searching(150, steps=50)


class Flapping(Deciding):
    """The same where colors come and go all the time: it latches, and stays so until it is released."""

    @rule(color=colors, seconds=st.sampled_from([0.25, 31.0]))
    def die_and_decide(self, color: Color, seconds: float) -> None:
        self.wait(seconds)
        self.check_all(color, passed=False)
        self.check_all(color.other, passed=True)
        was_frozen, route = self.frozen, self.route
        if self.asked is not None:
            self.failover_ends("done")
            route = self.route
        self.look()
        if was_frozen is not None:
            assert self.asked is None
            assert (self.frozen, self.route) == (was_frozen, route)


TestFlapping = Flapping.TestCase
TestFlapping.settings = searching(100, steps=50)
