"""What a switch promises, whatever is asked in whatever order, and whatever fails, lies or dies meanwhile."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lbswitch.agent import Agent
from lbswitch.core.config import Config
from lbswitch.core.model import Color, Kind, Operation, OperationState, Route, ServiceIntent
from lbswitch.errors import Conflict
from lbswitch.events import Events
from lbswitch.serving import Serving
from lbswitch.switch import STEPS, Request, Switcher
from tests.unit.fakes import FakeHealth, config_of
from tests.unit.properties.search import TIMES, searching
from tests.unit.properties.world import Disk, Faults, Killed, World
from tests.unit.test_api import FakeMonitor

pytestmark = pytest.mark.timeout(600 if TIMES == 1 else 0)  # a failure is made small before it is shown

IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # nothing here is about fsync
SERVICES = ("blog", "shop")
DONE, REFUSED = OperationState.DONE, OperationState.REFUSED

Trouble = tuple[tuple[str, str], int, int]
"""Place and what goes wrong there, how often, and after how many calls that work."""

colors = st.sampled_from(list(Color))
services = st.sampled_from([("shop",), ("shop",), ("blog",), ("blog", "shop")])
fault = st.one_of(
    st.tuples(st.just("commit"), st.just("fails")),
    st.tuples(st.just("finish"), st.just("fails")),
    st.tuples(st.just("commit"), st.sampled_from(["fails", "fails after", "lies"])),
    st.tuples(st.just("install"), st.sampled_from(["fails", "fails after"])),
    st.tuples(st.just("reload"), st.sampled_from(["fails", "fails after", "lies"])),
    st.tuples(st.just("check"), st.just("fails")),
    st.tuples(st.just("observe"), st.just("fails")),
    st.tuples(st.just("begin"), st.just("fails")),
    st.tuples(st.just("finish"), st.sampled_from(["fails", "fails after"])),
    st.tuples(st.just("record"), st.just("fails")),
)
faults = st.lists(st.tuples(fault, st.integers(1, 3), st.sampled_from([0, 0, 0, 1, 2])), min_size=1, max_size=2)
deaths = st.one_of(
    st.tuples(st.just("step"), st.sampled_from(STEPS)),
    st.tuples(
        st.sampled_from(["commit", "install", "reload", "begin", "finish"]),
        st.sampled_from(["killed before", "killed after"]),
    ),
)


@dataclass(frozen=True)
class Wish:
    """What somebody asks for."""

    kind: Kind
    services: tuple[str, ...]
    to: Color | None
    weight: int = 100
    expect: Color | None = None
    force: bool = False
    dry_run: bool = False

    def request(self) -> Request:
        return Request(
            *(self.kind, self.services, self.to, self.weight, self.expect),
            actor="test",
            force=self.force,
            dry_run=self.dry_run,
        )


@st.composite
def wishes(draw: st.DrawFn) -> Wish:
    """Mostly switches."""
    kind = draw(st.sampled_from([Kind.SWITCH, Kind.SWITCH, Kind.SWITCH, Kind.ROLLBACK, Kind.FAILOVER]))
    to = None if kind is Kind.ROLLBACK else draw(colors)
    rarely = st.sampled_from([False, False, False, True])
    if kind is not Kind.SWITCH:
        chosen = draw(services) if kind is Kind.ROLLBACK else draw(services)[:1]
        return Wish(kind, chosen, to, dry_run=kind is Kind.ROLLBACK and draw(rarely))
    return Wish(
        *(kind, draw(services), to, draw(st.sampled_from([100, 100, 100, 0, 10, 50]))),
        expect=draw(st.sampled_from([None, None, None, *Color])),
        force=draw(rarely),
        dry_run=draw(rarely),
    )


class InlineAgent(Agent):
    """Blocking calls are made where they are asked for."""

    async def in_thread(self, call: Callable[..., Any], *arguments: object) -> Any:
        return call(*arguments)


def complete(work: Coroutine[Any, Any, None]) -> None:
    """Run what never really waits."""
    with contextlib.suppress(StopIteration):
        work.send(None)
        raise AssertionError("it waits for something")


def quick_config() -> Config:
    """Two services that are verified at once or not at all."""
    document = config_of().model_dump(mode="json", exclude_unset=True)
    for service in document["services"].values():
        service["verify"] = {"answers": 2, "deadline": "1ms"}
    return Config.model_validate(document)


class Transactions(RuleBasedStateMachine):
    """Two services, people, failing parts, and agents that die and have successors."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="lbs", dir=IN_MEMORY)
        self.config, self.faults = quick_config(), Faults()
        self.world, self.health = World(self.faults), FakeHealth()
        self.now = 1.8e9
        self.dies_at: str | None = None
        self.previous: dict[str, Color | None] = dict.fromkeys(SERVICES)
        self.store: Disk | None = None
        self.unsettled = False
        self.unrecorded = False

    def teardown(self) -> None:
        if self.store is not None:
            self.store.close()
        self.directory.cleanup()

    # -- agents ------------------------------------------------------------------------------------------------

    @initialize()
    def first_agent(self) -> None:
        self._start()

    def _start(self) -> None:
        """What `lbswitch agent` does, up to being ready."""
        if self.store is not None:
            self.store.close()
        self.store = Disk(Path(self.directory.name) / "lbswitch.db", self.faults)
        events = Events(lambda: self.now)
        self.serving = Serving(self.config, self.world, events, self._step)
        self.switcher = Switcher(self.serving, self.store, self.health, events, lambda: self.now, self._step)
        path, monitor = Path("/nonexistent"), FakeMonitor(self.config.services)
        agent = InlineAgent(path, self.store, self.serving, self.switcher, monitor, events, self._no_load)
        complete(agent.start())

    def _no_load(self, path: Path) -> Any:
        raise AssertionError("nobody edits the configuration here")

    def _step(self, name: str) -> None:
        if name == self.dies_at:
            self.dies_at = None
            raise Killed(name)

    def _successor(self, deaths: list[tuple[str, str]]) -> None:
        """The agent is gone; of those that follow some die, too, and the last one lives."""
        routes, died = {name: self.world.route(name) for name in SERVICES}, False
        for death in deaths:
            self._arm_death(death)
            try:
                self._start()
            except Killed:
                died = True
            self._disarm()
        self._start()
        self.unsettled = self.unrecorded = False
        assert self.store is not None
        assert self.store.unfinished() == [], "no operation is left open"
        for name in SERVICES:
            self._relearn(name)
            now, was = self.world.route(name), routes[name]
            if was is not None and now is not None and not died and self.world.running:
                self._never_worse(name, was, now)

    def _never_worse(self, name: str, was: Route, now: Route) -> None:
        """A start of the agent moves no traffic to a color that is sick, unless that had it before the operation."""
        gaining = now.gains_from(was)
        if gaining is not None and (name, gaining) in self.health.sick:
            last = next(each for each in self._history() if each.service == name)
            assert last.state is OperationState.REVERTED

    def _relearn(self, name: str) -> None:
        """What a rollback would go to, from the history as a person reads it."""
        self.previous[name] = None
        for each in reversed(self._history()):
            if each.service == name and each.state is DONE:
                self._learn(each)

    def _history(self) -> list[Operation]:
        assert self.store is not None
        return self.store.history(10_000)

    def _learn(self, done: Operation) -> None:
        """`previous` after a completed operation: what the new live color took over from; nothing after a way back."""
        if done.kind is Kind.WEIGHT or done.weight != 100 or done.source is done.target:
            return
        self.previous[done.service] = None if done.kind.is_way_back else done.source

    # -- what goes wrong ---------------------------------------------------------------------------------------

    def _arm(self, troubles: list[Trouble]) -> None:
        for (place, mode), times, later in troubles:
            self.faults.arm(place, *[""] * later, *[mode] * times)

    def _arm_death(self, death: tuple[str, str]) -> None:
        if death[0] == "step":
            self.dies_at = death[1]
        else:
            self.faults.arm(*death)

    def _disarm(self) -> None:
        self.dies_at = None
        self.faults.clear()

    @rule(service=st.sampled_from(SERVICES), color=colors, sick=st.sampled_from([False, False, True]))
    def health_changes(self, service: str, color: Color, sick: bool) -> None:
        self.health.sick.pop((service, color), None)
        if sick:
            self.health.sick[service, color] = "2 failed checks"

    @rule(
        service=st.sampled_from(SERVICES),
        what=st.sampled_from(["freeze", "release", "release", "edit", "break", "mend", "mend", "end of the balancer"]),
        seconds=st.sampled_from([1.0, 3600.0, -3600.0, 1e9, -1e9]),
    )
    def something_happens(self, service: str, what: str, seconds: float) -> None:
        """Around the agent; and the clock jumps."""
        assert self.store is not None
        self.now += seconds
        if what == "freeze":
            self.store.freeze(service, "inventory")
        elif what == "release":
            self.store.release(service, self.now)
            assert service not in self.store.frozen()
        elif what == "edit":
            self.world.template += "x"
        elif what in ("break", "mend"):
            self.world.refuse = "unknown directive" if what == "break" else None
            self.world.template += "?" if what == "break" else ""
        else:
            self.world.running = False

    @rule()
    def upkeep(self) -> None:
        """What the agent does every second."""
        if not self.world.running:
            self.serving.revive()
        self.serving.settle()
        self.switcher.record_late()
        self.unsettled = self.unrecorded = False

    @rule(deaths=st.lists(deaths, max_size=2))
    def agent_dies_between(self, deaths: list[tuple[str, str]]) -> None:
        self._successor(deaths)

    @rule(deaths=st.lists(deaths, max_size=1))
    def reboot(self, deaths: list[tuple[str, str]]) -> None:
        """Nothing runs any more, and the disk tells what was live."""
        self.world.running = False
        self._successor(deaths)
        assert all(self.world.route(name) is not None for name in SERVICES)

    # -- what people ask for -----------------------------------------------------------------------------------

    @rule(wish=wishes())
    def ask(self, wish: Wish) -> None:
        """Nothing fails: it ends as it should."""
        is_calm = not self.unsettled and self.world.running and self.world.refuse is None
        expected = self._expected(wish) if is_calm else None
        ended = self._ask(wish)
        if expected is not None:
            found = "conflict" if ended is None else {each.service: str(each.state) for each in ended}
            assert found == expected, f"{wish}: {found}, expected {expected}"

    @rule(wish=wishes(), troubles=faults, more=st.lists(wishes(), max_size=2))
    def ask_in_trouble(self, wish: Wish, troubles: list[Trouble], more: list[Wish]) -> None:
        """And then again, before anybody has cleared up."""
        self._arm(troubles)
        self._ask(wish)
        self._disarm()
        for another in more:
            self._ask(another)

    @rule(wish=wishes(), death=deaths, troubles=st.one_of(st.just([]), faults), more=st.lists(deaths, max_size=2))
    def agent_dies_in_an_operation(
        self,
        wish: Wish,
        death: tuple[str, str],
        troubles: list[Trouble],
        more: list[tuple[str, str]],
    ) -> None:
        self._arm(troubles)
        self._arm_death(death)
        try:
            self._ask(wish)
        except Killed:
            self._disarm()
            self._successor(more)
        self._disarm()

    def _ask(self, wish: Wish) -> list[Operation] | None:
        """Ask, and hold the answer against what is so afterwards. None: a conflict."""
        facts, changes, history = self._facts(), self.world.changes(), len(self._history())
        served, newest = self._served(), self._newest()
        try:
            ended = self.switcher.run(wish.request())
        except Conflict:
            assert (self._facts(), self.world.changes(), len(self._history())) == (facts, changes, history)
            assert wish.expect is not None
            return None
        states = {each.state for each in ended}
        moves = [each for each in ended if each.state not in (OperationState.ALREADY,)]
        assert [each.service for each in ended] == list(wish.services)
        if wish.dry_run or states <= {OperationState.ALREADY, REFUSED}:
            assert (self._facts(), self.world.changes()) == (facts, changes), "nothing was changed"
        if wish.dry_run:
            assert len(self._history()) == history
            assert self._newest() == newest
            return ended
        if OperationState.FAILED in states:
            self.unsettled = True
        if OperationState.REVERTED in states and not self.unsettled:
            assert self._served() == served
        self._note_what_is_unrecorded()
        for each in moves:
            self._judge(wish, each, served[each.service], newest)
        return ended

    def _note_what_is_unrecorded(self) -> None:
        assert self.store is not None
        if self.store.unfinished():
            self.unrecorded = True

    def _judge(self, wish: Wish, done: Operation, before: ServiceIntent, newest: int) -> None:
        """One operation that was not `already`."""
        assert self.store is not None
        after = self.serving.intent.services[done.service]
        if done.state is not DONE:
            assert after == before, f"{done.state} changes nothing"
            return
        assert done.generation == after.generation > newest, "generations grow and never come again"
        assert done.gate is None
        target = done.target if wish.to is None else wish.to
        assert after.route == before.route.with_share(target, wish.weight)
        assert self.store.services()[done.service] == after
        assert self.world.route(done.service) == after.route, "what is reported done was served"
        if wish.kind is Kind.ROLLBACK:
            known = before.route.live if before.route.is_split else self.previous[done.service]
            assert after.route == Route(known), "back to what was serving before"
        self._learn(done)

    # -- what should come of it --------------------------------------------------------------------------------

    def _expected(self, wish: Wish) -> object:
        """The state of each service's operation, or that it is a conflict, said independently of the code."""
        assert self.store is not None
        frozen, states, moving, refused = self.store.frozen(), {}, [], False
        for name in wish.services:
            route = self.serving.intent.services[name].route
            to = wish.to or (route.live if route.is_split else self.previous[name])
            if to is None:
                states[name] = "refused"
                continue
            after = route.with_share(to, wish.weight)
            if after == route:
                states[name] = "already"
                continue
            if wish.expect not in (None, route.live):
                return "conflict"
            gaining = next(color for color in Color if after.share(color) > route.share(color))
            is_sick = (name, gaining) in self.health.sick
            is_frozen = name in frozen and wish.kind is not Kind.ROLLBACK
            refused = refused or ((is_sick or is_frozen) and not wish.force)
            moving.append(name)
        return states | dict.fromkeys(moving, "refused" if refused else "done")

    # -- what always holds -------------------------------------------------------------------------------------

    def _served(self) -> dict[str, ServiceIntent]:
        return dict(self.serving.intent.services)

    def _facts(self) -> tuple[object, object]:
        assert self.store is not None
        return self._served(), self.store.services()

    def _newest(self) -> int:
        assert self.store is not None
        return max(self.store.generation(), *(number for _, number in self.world.meaning))

    @invariant()
    def what_is_intended_is_stored_and_served(self) -> None:
        if self.store is None:
            return
        assert self._served() == self.store.services()
        if self.unsettled:
            return
        assert self.world.on_disk is not None
        assert dict(self.world.on_disk.services) == self._served()
        if self.world.running:
            assert {name: self.world.route(name) for name in SERVICES} == {
                name: intent.route for name, intent in self._served().items()
            }
            assert self.world.runs == self.world.revision == self.world.intended

    @precondition(lambda self: not self.unrecorded)
    @invariant()
    def the_journal_is_closed_and_the_history_tells_what_is_live(self) -> None:
        if self.store is None:
            return
        assert self.store.unfinished() == []
        for name, intent in self._served().items():
            last = next((one for one in self._history() if one.service == name and one.state is DONE), None)
            if last is not None:
                assert last.generation == intent.generation
                assert intent.route.share(last.target) == last.weight


TestTransactions = Transactions.TestCase
TestTransactions.settings = searching(50, steps=25)
