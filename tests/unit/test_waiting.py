"""Who has to wait for whom: what takes long never keeps traffic from being moved away from what died."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lbswitch.core.config import Config
from lbswitch.core.model import Color, Intent, Kind, Observation, OperationState, Route, ServerKey, ServiceIntent
from lbswitch.errors import Busy, CheckFailed
from lbswitch.events import Events
from lbswitch.ports import Difference, Rendered
from lbswitch.serving import Serving
from lbswitch.store.sqlite import SqliteStore
from lbswitch.switch import Request, Switcher
from tests.unit.fakes import FakeBalancer, FakeHealth, config_of

BLUE, GREEN = Color.BLUE, Color.GREEN
FAILOVER = Request(Kind.FAILOVER, ("shop",), to=GREEN, reason="blue died", actor="lbswitch")
DEADLINE_S = 10.0


class SlowChecker(FakeBalancer):
    """Its checker takes as long as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.checks = 0
        self.may_end, self.has_begun = threading.Event(), threading.Event()
        self.may_end.set()

    def check(self, rendered: Rendered) -> None:
        self.checks += 1
        self.has_begun.set()
        assert self.may_end.wait(DEADLINE_S)
        super().check(rendered)


class Desk:
    """A Switcher over a balancer with a slow checker."""

    def __init__(self, directory: Path) -> None:
        self.balancer, self.store, events = SlowChecker(), SqliteStore(directory / "lbswitch.db"), Events(time.time)
        self.config = config_of()
        self.at: dict[str, Callable[[], object]] = {}
        self.serving = Serving(self.config, self.balancer, events, self.step)
        self.switcher = Switcher(self.serving, self.store, FakeHealth(), events, on_step=self.step)
        self.serving.start(Intent({name: ServiceIntent(Route(BLUE), 1) for name in self.config.services}, 1))
        self.balancer.checks = 0

    def step(self, name: str) -> None:
        self.at.pop(name, lambda: None)()

    def while_checking(self, work: Callable[[], object], then: Callable[[], None]) -> None:
        """Do `then` while the checker that `work` called is at it, and see `work` end."""
        self.balancer.has_begun.clear()
        self.balancer.may_end.clear()
        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            assert self.balancer.has_begun.wait(DEADLINE_S)
            then()
        finally:
            self.balancer.may_end.set()
            worker.join(DEADLINE_S)
        assert not worker.is_alive()

    def fail_over(self) -> None:
        """In a thread, since it must not wait for the checker, which ends only after this."""
        done: list[OperationState] = []
        worker = threading.Thread(target=lambda: done.extend(one.state for one in self.switcher.run(FAILOVER)))
        worker.start()
        worker.join(DEADLINE_S / 2)
        is_late = worker.is_alive()
        self.balancer.may_end.set()
        worker.join(DEADLINE_S)
        assert (is_late, done) == (False, [OperationState.DONE])


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.store.close()


def without_blog(config: Config) -> Config:
    return config.model_copy(update={"services": {"shop": config.services["shop"]}})


@pytest.mark.parametrize("what", ["configuration", "templates", "ejection", "dry run"])
def test_a_failover_does_not_wait_for_the_checker(desk: Desk, what: str) -> None:
    """The check of a changed configuration may take a minute; who fails over meanwhile is not kept, nor undone."""
    smaller = without_blog(desk.config)
    key = ServerKey("shop", BLUE, "127.0.0.1:9101")
    works: dict[str, Callable[[], object]] = {
        "configuration": lambda: desk.serving.reconfigure(smaller, desk.balancer),
        "templates": desk.serving.refresh,
        "ejection": lambda: desk.serving.set_ejected(frozenset([key])),
        "dry run": lambda: desk.serving.rehearse(smaller, desk.balancer),
    }
    desk.balancer.template = "two"
    before = desk.balancer.installed()
    desk.while_checking(works[what], desk.fail_over)
    assert desk.balancer.serves is not None
    assert desk.serving.intent.services["shop"].route == desk.balancer.serves.services["shop"].route == Route(GREEN)
    assert (desk.balancer.checks, desk.balancer.installed() == before) == (1, what == "dry run")


def test_a_failover_checks_nothing_that_somebody_edited(desk: Desk) -> None:
    """Templates that are not applied yet are left to those who apply them."""
    desk.balancer.template = "two"
    before = desk.balancer.installed()
    assert desk.switcher.run(FAILOVER)[0].state is OperationState.DONE
    assert (desk.balancer.checks, desk.balancer.installed()) == (0, before)


def test_what_was_checked_ahead_but_is_not_what_is_served_then_is_checked_again(desk: Desk) -> None:
    """Somebody edits a template while the checker looks at the one before."""
    desk.balancer.template = "two"

    def edit() -> None:
        desk.balancer.template = "three"

    desk.while_checking(desk.serving.refresh, edit)
    assert desk.balancer.checks == 2


def test_what_the_checker_refuses_ahead_is_a_problem_of_the_files(desk: Desk) -> None:
    """Status tells of it as if it had been refused later."""
    desk.balancer.template, desk.balancer.refuse = "two", "line 3: no"
    with pytest.raises(CheckFailed):
        desk.serving.refresh()
    assert desk.serving.files_problem == "line 3: no"


def test_a_service_that_is_removed_while_it_is_to_be_switched(desk: Desk) -> None:
    """The switch is reverted, nothing of the service comes back, and the journal keeps nothing open."""
    desk.at["gates"] = lambda: desk.serving.reconfigure(without_blog(desk.config), desk.balancer)
    operation = desk.switcher.run(Request(Kind.SWITCH, ("blog",), to=GREEN))[0]
    assert (operation.state, "taken out" in str(operation.error)) == (OperationState.REVERTED, True)
    assert (set(desk.serving.intent.services), desk.store.unfinished()) == ({"shop"}, [])


def test_a_service_that_is_just_being_added_cannot_be_switched_yet(desk: Desk) -> None:
    """It is configured, and served in a moment."""
    desk.serving.config = config_of()
    desk.serving.intent = Intent({"shop": desk.serving.intent.services["shop"]}, 1)
    with pytest.raises(Busy, match="just being added"):
        desk.switcher.run(Request(Kind.SWITCH, ("blog",), to=GREEN))


def test_after_a_reload_many_services_are_not_asked_as_often_as_one(desk: Desk) -> None:
    """The first one tells that old workers are gone; ten answers of each of a thousand would take long."""
    asked: list[str] = []
    observe = desk.balancer.observe

    def counted(service: str) -> Observation:
        asked.append(service)
        return observe(service)

    desk.balancer.observe = counted  # type: ignore[method-assign]
    desk.serving.verify(desk.serving.intent.services, reloaded=True)
    assert Counter(asked) == {"shop": 10, "blog": 2}


def test_who_looks_while_a_restore_changes_the_configuration_waits_for_its_end(desk: Desk) -> None:
    """In between, the new configuration and the old routes don't fit together."""
    seen: list[tuple[set[str], set[str]]] = []
    looks: list[threading.Thread] = []

    def differences(intent: Intent) -> list[Difference]:
        seen.append((set(desk.serving.config.services), set(intent.services)))
        return []

    def look() -> None:
        looks.append(threading.Thread(target=desk.serving.glance, daemon=True))
        looks[0].start()
        looks[0].join(0.1)  # it would be through by then

    desk.balancer.differences = differences  # type: ignore[method-assign]
    desk.at["commit"] = look
    smaller = without_blog(desk.config)
    after = Intent({"shop": ServiceIntent(Route(GREEN), 2)}, 2)
    with desk.serving.mutex:
        desk.serving.adopt(smaller, desk.balancer, after, {}, None)
    looks[0].join(DEADLINE_S)
    assert seen == [({"shop"}, {"shop"})]
