"""All sources together: each at its own pace, a slow one delays no other, and a failure is never taken for a value."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lbswitch.core.config import Config
from lbswitch.core.source_config import SourceConfig
from lbswitch.ports import SourceDown
from lbswitch.traffic.sources import Sources
from lbswitch.traffic.sources.polling import make_source
from lbswitch.traffic.sources.thread import Apart
from tests.health.raw import asynchronous
from tests.support.children import child_pids

POOL = {"servers": ["127.0.0.1:1"]}
SHOP = {"bind": "127.0.0.1:3", "blue": POOL, "green": {"servers": ["127.0.0.1:2"]}}


def config(**sources: Any) -> Config:
    return Config.model_validate({"balancer": {"kind": "nginx"}, "services": {"shop": SHOP}, "sources": sources})


def quick(*command: str, **settings: Any) -> dict[str, Any]:
    return {"kind": "command", "command": command or ("a",), "interval": 0.1, "timeout": 0.1, **settings}


class Gauge:
    """A source whose next read a test decides; None hangs."""

    def __init__(self) -> None:
        self.value: float | Exception | None = 1.0
        self.reads = 0
        self.is_open = True

    async def read(self) -> float:
        self.reads += 1
        if self.value is None:
            await asyncio.sleep(3600)
        if isinstance(self.value, Exception):
            raise self.value
        return self.value or 0.0

    async def close(self) -> None:
        self.is_open = False


class Board:
    """Sources made of gauges, and a clock that a test moves."""

    def __init__(self, **sources: Any) -> None:
        self.now = 1000.0
        self.gauges: dict[str, Gauge] = {}
        self.sources = Sources(config(**sources), lambda: self.now, self._make)

    def _make(self, source: SourceConfig) -> Gauge:
        return self.gauges.setdefault(source.command[0], Gauge())

    def shown(self, name: str) -> tuple[float | None, str | None]:
        reading = self.sources.readings[name]
        return reading.value, reading.error


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(sources: Sources) -> AsyncIterator[None]:
    task = asyncio.create_task(sources.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynchronous
async def test_a_slow_one_delays_no_other():
    """A source that hangs is told as one after its timeout; the others are read on."""
    board = Board(a=quick("a"), b=quick("b"))
    board.gauges = {"a": Gauge(), "b": Gauge()}
    board.gauges["a"].value = None
    assert board.shown("a") == (None, "it has not been read yet")
    async with running(board.sources):
        await until(lambda: board.gauges["b"].reads >= 5)
        assert board.shown("b") == (1.0, None)
        await until(lambda: board.gauges["a"].reads >= 2)
        words = "no answer within 100ms: see why it is slow, or allow more with `timeout`"
        assert board.shown("a") == (None, words)
        assert board.sources.problems == {"a": words}
    assert not any(gauge.is_open for gauge in board.gauges.values())


@asynchronous
async def test_down_and_up_again(caplog: pytest.LogCaptureFixture):
    """A failed read voids the value at once; the log says it once."""
    board = Board(a=quick())
    async with running(board.sources):
        await until(lambda: board.shown("a") == (1.0, None))
        board.gauges["a"].value = SourceDown("it is down: look")
        await until(lambda: board.shown("a") == (None, "it is down: look"))
        reads = board.gauges["a"].reads
        await until(lambda: board.gauges["a"].reads > reads + 3)
        board.gauges["a"].value = 2.0
        await until(lambda: board.shown("a") == (2.0, None))
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "sources.a: it is down: look"
    ]


@asynchronous
async def test_a_value_that_may_be_older():
    """With `stale_after` it counts until then, however many reads fail meanwhile."""
    board = Board(a=quick(stale_after=5.0))
    async with running(board.sources):
        await until(lambda: board.shown("a") == (1.0, None))
        board.gauges["a"].value = SourceDown("down")
        await until(lambda: board.sources.problems)
        assert board.shown("a") == (1.0, None)
        assert board.sources.readings["a"].at == 1000.0
        board.now = 1005.1
        assert board.shown("a") == (None, "down")


@asynchronous
async def test_an_agent_that_stood_still():
    """A value that nobody renewed does not count, although no read failed."""
    board = Board(a=quick())
    async with running(board.sources):
        await until(lambda: board.shown("a") == (1.0, None))
    board.now = 1060.0
    assert board.shown("a") == (None, "nothing was read for 60 s: the agent stood still")


@asynchronous
async def test_edits():
    """What stays as it is stays known and is not read anew; what goes is closed."""
    board = Board(a=quick("a"), b=quick("b"))
    async with running(board.sources):
        await until(lambda: board.shown("a") == board.shown("b") == (1.0, None))
        before = board.sources.readings["a"]
        board.sources.update(config(a=quick("a"), c=quick("c")))
        assert board.sources.readings.keys() == {"a", "c"}
        assert board.sources.readings["a"].at == before.at
        assert board.shown("c") == (None, "it has not been read yet")
        await until(lambda: not board.gauges["b"].is_open and board.shown("c") == (1.0, None))
        assert board.gauges["a"].is_open
        board.sources.update(config())
        await until(lambda: not board.gauges["a"].is_open)
    assert board.sources.readings == {}


@asynchronous
async def test_a_fault_of_our_own(caplog: pytest.LogCaptureFixture):
    """It is told, and the source is read on."""
    board = Board(a=quick())
    async with running(board.sources):
        await until(lambda: board.shown("a") == (1.0, None))
        board.gauges["a"].value = ZeroDivisionError()
        await until(
            lambda: board.shown("a")[1] == "the read itself failed (ZeroDivisionError); the log has the details"
        )
        board.gauges["a"].value = 3.0
        await until(lambda: board.shown("a") == (3.0, None))


@asynchronous
async def test_stopping_leaves_nothing_behind():
    """Also in the middle of a read."""
    before = child_pids()
    sources = Sources(config(a=quick("/bin/sleep", "60", interval=60.0, timeout=60.0)))
    async with running(sources):
        await until(lambda: child_pids() != before)
    assert child_pids() == before


@asynchronous
async def test_one_call_at_a_time():
    """Whoever gave up waiting for a thread does not get a second one that hangs."""
    apart = Apart("test")
    end = threading.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await apart.call(end.wait)
    with pytest.raises(SourceDown, match="still hangs"):
        await apart.call(lambda: 1)
    end.set()
    async with asyncio.timeout(15):
        while True:
            try:
                assert await apart.call(lambda: 2) == 2
                break
            except SourceDown:
                await asyncio.sleep(0.01)


@asynchronous
async def test_without_psycopg(monkeypatch: pytest.MonkeyPatch):
    """What is missing is named with what brings it."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    source = make_source(config(db={"kind": "postgres", "dsn": "service=x"}).sources["db"])
    with pytest.raises(SourceDown, match=r"pip install 'lbswitch\[postgres\]'"):
        await source.read()
    await source.close()


def test_nothing_heavy_is_loaded_before_it_is_needed():
    import subprocess

    code = (
        "import sys, lbswitch.traffic.sources; print(*{'httpx', 'psycopg', 'psutil', 'jmespath'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
