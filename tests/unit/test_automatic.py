"""Decisions go on, whatever else takes long."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lbswitch.automatic import Automatic, PoolView
from lbswitch.core.config import Config
from lbswitch.core.model import Color, Intent, Route, ServiceIntent
from lbswitch.events import Events
from lbswitch.ports import Rendered
from lbswitch.serving import Serving
from lbswitch.store.sqlite import SqliteStore
from lbswitch.switch import Switcher
from tests.unit.fakes import FakeBalancer, config_of
from tests.unit.test_api import FakeMonitor

SICK, DEAD = "127.0.0.1:9103", "127.0.0.1:9104"
DEADLINE_S = 10.0


class StuckChecker(FakeBalancer):
    """Its checker ends when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.checks, self.may_end = 0, threading.Event()
        self.may_end.set()

    def check(self, rendered: Rendered) -> None:
        self.checks += 1
        assert self.may_end.wait(DEADLINE_S)


def two_services() -> Config:
    """`shop` has two blue servers, `blog` has one of its own."""
    config = config_of(blue={"servers": ["127.0.0.1:9101", SICK]})
    blog = config.services["blog"].model_dump(mode="json", exclude_unset=True) | {"blue": {"servers": [DEAD]}}
    document = config.model_dump(mode="json", exclude_unset=True)
    document["services"]["blog"] = blog
    return Config.model_validate(document)


def test_a_failover_is_decided_while_a_failing_server_of_another_service_is_left_out(tmp_path: Path) -> None:
    """Leaving a server out may take a check and a reload; a color that dies meanwhile does not wait for them."""
    config, balancer, events = two_services(), StuckChecker(), Events(time.time)
    store, monitor = SqliteStore(tmp_path / "lbswitch.db"), FakeMonitor(config.services)
    serving = Serving(config, balancer, events)
    serving.start(Intent({name: ServiceIntent(Route(Color.BLUE), 1) for name in config.services}, 1))
    switcher = Switcher(serving, store, PoolView(monitor), events)
    automatic = Automatic(serving, switcher, store, monitor, events, asyncio.to_thread)

    async def until(happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not happened():
                await asyncio.sleep(0.005)

    async def story() -> None:
        automatic.remember()
        checks = balancer.checks
        loop = asyncio.create_task(automatic.run())
        try:
            balancer.may_end.clear()
            monitor.down.add(SICK)
            automatic.mark("shop")
            await until(lambda: balancer.checks > checks)
            monitor.down.add(DEAD)
            automatic.mark("blog")
            await until(lambda: serving.intent.services["blog"].route.live is Color.GREEN)
            assert not serving.intent.ejected
            balancer.may_end.set()
            await until(lambda: {key.address for key in serving.intent.ejected} == {SICK})
            assert serving.intent.services["blog"].route.live is Color.GREEN
        finally:
            balancer.may_end.set()
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
            await automatic.finish()

    asyncio.run(story())
    store.close()
