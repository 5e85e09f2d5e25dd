"""The watch's loop: begins, steps, goes on after a restart, gives way, and is kept up by nothing. With fakes."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lbswitch.bake import Bakes, Canary, Looking
from lbswitch.core.bake import BakeState, OnBreach
from lbswitch.core.config import Config
from lbswitch.core.evidence import Batch, Failure
from lbswitch.core.health import PoolHealth
from lbswitch.core.histogram import Histogram
from lbswitch.core.model import Color, Intent, Kind, Operation, PoolKey, Route, ServiceIntent
from lbswitch.events import Event, Events
from lbswitch.ports import Reading
from lbswitch.serving import Serving
from lbswitch.store.sqlite import SqliteStore
from lbswitch.switch import Request, Switcher
from tests.unit.fakes import FakeBalancer, FakeHealth, config_of

BLUE, GREEN = Color.BLUE, Color.GREEN
CRITERIA = {"error_ratio": {"threshold": 0.05, "window": "10s", "min_samples": 20}}
WATCH = {"duration": "60s", "burst": False}


class FakeReader:
    """`tell` says what came; `read` hands it over once."""

    problem: str | None = None

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.waiting: dict[PoolKey, Batch] = {}

    def start(self) -> None: ...

    def close(self) -> None: ...

    def update(self, config: Config) -> None: ...

    def tell(self, color: Color, requests: int, failures: int = 0) -> None:
        failed = Counter({Failure.STATUS: failures} if failures else {})
        statuses = Counter({200: requests - failures, 500: failures})
        now = self.clock()
        bad_at = now if failures else None
        self.waiting[PoolKey("shop", color)] = Batch(
            requests, failed, statuses, Histogram(), failures, failures == requests, bad_at, bad_at
        )

    def read(self) -> Reading:
        batches, self.waiting = self.waiting, {}
        return Reading(batches=batches, requests=(), lost=0, at=self.clock())


async def at_once(call: Callable[..., Any], *arguments: object) -> Any:
    """No thread, so that rounds are one after the other."""
    return call(*arguments)


class Desk:
    """Bakes and what they act on; `now` moves when a test says so."""

    def __init__(self, directory: Path, **service: Any) -> None:
        self.now = 1000.0
        self.events, self.told = Events(self.clock), list[Event]()
        self.balancer, self.health = FakeBalancer(), FakeHealth()
        self.reader = FakeReader(self.clock)
        self.store = SqliteStore(directory / "lbswitch.db")
        self.config = config_of(**{"bake": WATCH, "criteria": CRITERIA, **service})
        self.serving = Serving(self.config, self.balancer, self.events)
        self.switcher = Switcher(self.serving, self.store, self.health, self.events, self.clock)
        intent = Intent({name: ServiceIntent(Route(BLUE), 1) for name in self.config.services}, 1)
        self.serving.start(intent)
        self.store.save_services(intent.services, 1)
        self.events.listen(self.told.append)
        self.bakes = self.another()

    def clock(self) -> float:
        return self.now

    def another(self) -> Bakes:
        """As an agent that starts makes it."""
        looking = Looking(lambda: self.config, lambda *_: PoolHealth((), 1), self.health)
        return Bakes(
            *(self.serving, self.switcher, self.store, self.health, looking, self.events),
            *(at_once, self.reader, self.clock),
        )

    def move(self, to: Color | None = GREEN, kind: Kind = Kind.SWITCH, **more: Any) -> Operation:
        operation = self.switcher.run(Request(kind, ("shop",), to=to, actor="test", **more))[0]
        assert operation.state == "done", operation
        return operation

    def round(self, *, after_s: float = 1.0, color: Color = GREEN, requests: int = 0, failures: int = 0) -> None:
        """Time goes on, so much is answered every half second, and everything that follows is done."""

        async def rounds() -> None:
            for _ in range(max(1, round(after_s / 0.5))):
                self.now += 0.5
                self.reader.tell(color, requests, failures)
                await self.bakes._round()
                await self.bakes.finish()
                await self.bakes.heard()

        asyncio.run(rounds())

    @property
    def live(self) -> Color:
        return self.serving.intent.services["shop"].route.live

    @property
    def state(self) -> BakeState:
        return self.bakes.bakes["shop"].state

    def saved(self) -> Mapping[str, Any]:
        return self.store.bakes()["shop"]

    def types(self) -> list[str]:
        return [event.type for event in self.told if event.type not in ("switch", "rollback", "weight")]


@pytest.fixture
def make_desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    desks = []

    def make(**service: Any) -> Desk:
        desks.append(Desk(tmp_path, **service))
        return desks[-1]

    yield make
    for desk in desks:
        desk.store.close()


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    return make_desk()


def test_every_switch_begins_a_watch_that_passes(desk: Desk) -> None:
    """Under the shield; what passed is over, and the shield goes to the color that would be next."""
    operation = desk.move()
    desk.round(requests=30)
    bake = desk.bakes.bakes["shop"]
    assert (bake.color, bake.operation, bake.until - bake.since) == (GREEN, operation.id, 60.0)
    assert desk.saved()["state"] == "baking"
    assert desk.bakes.shielded("shop") is GREEN
    desk.round(after_s=60.0, requests=30)
    assert (desk.state, desk.types()) == (BakeState.PASSED, ["bake", "bake-passed"])
    desk.round()
    assert desk.bakes.shielded("shop") is BLUE


def test_a_breach_rolls_back(desk: Desk) -> None:
    """With its reason in the history; the color is quarantined, and no watch begins on the way back."""
    desk.move()
    desk.round(requests=30)
    desk.round(requests=30, failures=30)
    assert (desk.live, desk.state) == (BLUE, BakeState.ROLLED_BACK)
    last = desk.store.history(1, "shop")[0]
    assert (last.kind, last.actor) == (Kind.ROLLBACK, "lbswitch")
    assert "error_ratio of green 0.333 >= 0.05 over 1.0s of 10s (30 of 90 requests failed)" in last.reason
    assert desk.store.quarantined() == {PoolKey("shop", GREEN): last.reason}
    desk.round(after_s=3.0)
    assert desk.state is BakeState.ROLLED_BACK


def test_a_rollback_that_fails_is_tried_again(desk: Desk) -> None:
    """The watch goes on and says why it holds, and the next try, a second later, is done."""
    desk.move()
    desk.round(requests=30)
    desk.balancer.break_commit = ["the disk is full"]
    desk.round(requests=30, failures=30)
    bake = desk.bakes.bakes["shop"]
    assert (desk.live, bake.state) == (GREEN, BakeState.BAKING)
    assert "the disk is full" in str(bake.holding)
    desk.round(after_s=1.5, requests=30, failures=30)
    assert (desk.live, desk.state) == (BLUE, BakeState.ROLLED_BACK)


def test_the_next_agent_goes_on(desk: Desk) -> None:
    """With the watch as it was, canary and all."""
    desk.bakes.plan("shop", Canary((50, 100), 5.0))
    desk.move(weight=10)
    desk.round(requests=30)
    before = desk.bakes.bakes["shop"]
    desk.bakes = desk.another()
    desk.bakes.resume()
    assert desk.bakes.bakes["shop"] == before
    for _ in range(3):
        desk.round(requests=30)
    desk.round(after_s=5.0, requests=30)
    assert desk.serving.intent.services["shop"].route.share(GREEN) == 50


def test_a_canary_takes_its_steps(desk: Desk) -> None:
    """One at a time, each watched; without evidence it waits, and the last one is watched for the whole duration."""
    desk.bakes.plan("shop", Canary((50, 100), 11.0))
    desk.move(weight=10)
    shares = []
    for requests in (30, 30, 0, 0, 0, 0, 30, 30, 30):
        desk.round(after_s=4.0, requests=requests)
        shares.append(desk.serving.intent.services["shop"].route.share(GREEN))
    assert sorted(shares) == shares
    assert set(shares) == {10, 50, 100}
    assert "waiting" in desk.types()
    bake = desk.bakes.bakes["shop"]
    assert (bake.state, bake.until - bake.stepped_at) == (BakeState.BAKING, 60.0)


def test_a_canary_goes_back_from_any_step(desk: Desk) -> None:
    desk.bakes.plan("shop", Canary((50, 100), 2.0))
    desk.move(weight=10)
    desk.round(after_s=3.0, requests=30)
    assert desk.serving.intent.services["shop"].route.share(GREEN) == 50
    desk.round(requests=30, failures=30)
    assert desk.serving.intent.services["shop"].route == Route(BLUE)
    assert desk.state is BakeState.ROLLED_BACK


def test_a_person_wins(desk: Desk) -> None:
    """Rolled back by hand: the watch is over. Switched by hand: another one begins."""
    desk.move()
    desk.round(requests=30)
    desk.move(None, Kind.ROLLBACK)
    desk.round(requests=30, failures=30)
    assert (desk.live, desk.state) == (BLUE, BakeState.SUPERSEDED)
    desk.now += 1.0
    desk.move()
    desk.round(requests=30)
    assert desk.state is BakeState.BAKING
    desk.move(BLUE)
    desk.round(color=BLUE, requests=30)
    assert desk.bakes.bakes["shop"].color is BLUE


def test_a_canary_that_is_given_up_watches_nothing(desk: Desk) -> None:
    """All traffic goes to the color that was live all along: nobody must ever roll back from there to the canary."""
    desk.move(weight=10)
    desk.round(requests=30)
    desk.move(BLUE)
    desk.round(color=BLUE, requests=30, failures=30)
    assert (desk.live, desk.state) == (BLUE, BakeState.SUPERSEDED)
    assert desk.bakes.bakes["shop"].color is GREEN


def test_monitor_attaches_or_begins(desk: Desk) -> None:
    """To the watch there is, for another time; else to one that alerts unless a rollback was asked for."""
    desk.move()
    desk.round(requests=30)
    bake = desk.bakes.watch("shop", 300.0, None)
    assert (bake.until, bake.on_breach) == (desk.now + 300.0, OnBreach.ROLLBACK)
    desk.round(after_s=300.0, requests=30)
    bake = desk.bakes.watch("shop", 30.0, None)
    assert (bake.color, bake.on_breach) == (GREEN, OnBreach.ALERT)
    desk.round(requests=30, failures=30)
    assert (desk.live, desk.state) == (GREEN, BakeState.BAKING)
    assert len(desk.bakes.bakes["shop"].breaches) == 1


def test_monitor_that_comes_too_late_learns_of_the_rollback(desk: Desk) -> None:
    """And does not watch the color that is back, until the bad one is released or a minute is over."""
    desk.move()
    desk.round(requests=30)
    desk.round(requests=30, failures=30)
    assert desk.bakes.watch("shop", 30.0, None).state is BakeState.ROLLED_BACK
    desk.store.release("shop", desk.now)
    bake = desk.bakes.watch("shop", 30.0, None)
    assert (bake.color, bake.state) == (BLUE, BakeState.BAKING)


def test_the_shield_that_fails_keeps_nothing_up(desk: Desk) -> None:
    """It is said once, and tried again."""
    desk.balancer.break_shield = "no"
    desk.move()
    for _ in range(3):
        desk.round(requests=30)
    assert desk.types().count("shield-failed") == 1
    assert desk.state is BakeState.BAKING
    desk.balancer.break_shield = None
    desk.round(requests=30)
    assert desk.bakes.shielded("shop") is GREEN
