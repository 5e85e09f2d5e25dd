"""All sources, each read again and again at its own pace."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from lbswitch.core.config import Config
from lbswitch.core.criteria import MetricReading
from lbswitch.core.durations import format_duration
from lbswitch.core.source_config import (
    CommandSource,
    HostSource,
    HttpSource,
    PostgresSource,
    PrometheusSource,
    SourceConfig,
)
from lbswitch.ports import MetricSource, SourceDown
from lbswitch.traffic.sources.command import CommandMetric
from lbswitch.traffic.sources.document import DocumentMetric
from lbswitch.traffic.sources.host import HostMetric
from lbswitch.traffic.sources.postgres import PostgresMetric
from lbswitch.traffic.sources.prometheus import PrometheusMetric

_NOT_READ = "it has not been read yet"
_MISSED = 2  # reads that did not even end: the agent itself stood still

Clock = Callable[[], float]
Make = Callable[[SourceConfig], MetricSource]
log = logging.getLogger(__name__)


def make_source(config: SourceConfig) -> MetricSource:
    """What reads a source of this kind."""
    match config:
        case PrometheusSource():
            return PrometheusMetric(config)
        case HttpSource():
            return DocumentMetric(config)
        case CommandSource():
            return CommandMetric(config)
        case PostgresSource():
            return PostgresMetric(config)
        case HostSource():
            return HostMetric(config)


async def read_once(
    name: str, config: SourceConfig, clock: Clock = time.time, make: Make = make_source, most_s: float = 60.0
) -> MetricReading:
    """Read one source now, for as long as its timeout and `most_s` allow; never raises what the source does."""
    source = make(config)
    try:
        return await _read(name, source, min(config.timeout, most_s), clock)
    finally:
        await source.close()


class Sources:
    """Reads every configured source at its interval; a slow one delays no other.

    `run` and `update` belong to the event loop; `readings` and `problems` may be looked at from any thread.
    """

    def __init__(self, config: Config, clock: Clock = time.time, make: Make = make_source) -> None:
        """Know the sources; nothing is read before `run`. `clock` gives seconds since the epoch."""
        self._clock = clock
        self._make = make
        self._changed = asyncio.Event()
        self._polls: dict[str, _Poll] = {}
        self.update(config)

    async def run(self) -> None:
        """Read until cancelled; nothing is open or running afterwards."""
        running: dict[_Poll, asyncio.Task[None]] = {}
        ending: set[asyncio.Task[None]] = set()
        try:
            while True:
                self._changed.clear()
                wanted = set(self._polls.values())
                for poll in running.keys() - wanted:
                    task = running.pop(poll)
                    ending.add(task)
                    task.add_done_callback(ending.discard)
                    task.cancel()
                for poll in wanted - running.keys():
                    running[poll] = asyncio.create_task(poll.run(), name=f"source {poll.name}")
                await self._changed.wait()
        finally:
            tasks = [*running.values(), *ending]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def update(self, config: Config) -> None:
        """Read these from now on; what is known of those that stay as they are stays known."""
        before = self._polls
        self._polls = {
            name: before[name]
            if name in before and before[name].config == source
            else _Poll(name, source, self._clock, self._make)
            for name, source in config.sources.items()
        }
        self._changed.set()

    @property
    def readings(self) -> Mapping[str, MetricReading]:
        """What each source gave last; value None, with the reason as `error`, where that does not count any more."""
        now = self._clock()
        return {name: poll.reading(now) for name, poll in self._polls.items()}

    @property
    def problems(self) -> Mapping[str, str]:
        """Why the last read of a source failed, also while an older value still counts."""
        polls = self._polls
        return {name: poll.trouble for name, poll in polls.items() if poll.trouble is not None}


class _Poll:
    """One source."""

    def __init__(self, name: str, config: SourceConfig, clock: Clock, make: Make) -> None:
        self.name = name
        self.config = config
        self.trouble: str | None = None
        self._clock = clock
        self._make = make
        self._last = MetricReading(name, None, clock(), _NOT_READ)
        self._good: MetricReading | None = None

    async def run(self) -> None:
        """Read at every interval until cancelled."""
        loop = asyncio.get_running_loop()
        source = self._make(self.config)
        try:
            while True:
                started = loop.time()
                self._take(await _read(self.name, source, self.config.timeout, self._clock))
                await asyncio.sleep(max(0.0, started + self.config.interval - loop.time()))
        finally:
            await source.close()

    def reading(self, now: float) -> MetricReading:
        """The newest that counts."""
        last, good = self._last, self._good
        if good is None or (last is not good and self.config.stale_after is None):
            return last
        most_s = self.config.stale_after or _MISSED * (self.config.interval + self.config.timeout)
        if now - good.at <= most_s:
            return good
        if last is not good:
            return last
        return MetricReading(
            self.name, None, last.at, f"nothing was read for {now - good.at:.0f} s: the agent stood still"
        )

    def _take(self, reading: MetricReading) -> None:
        self._last = reading
        if reading.error is None:
            self._good = reading
        if reading.error != self.trouble:
            if reading.error is not None:
                log.warning("sources.%s: %s", self.name, reading.error)
            else:
                log.info("sources.%s: it is read again: %g", self.name, reading.value)
        self.trouble = reading.error


async def _read(name: str, source: MetricSource, timeout_s: float, clock: Clock) -> MetricReading:
    """One read; `at` is when it began, so that what is from before a switch never seems to be from after it."""
    at = clock()
    try:
        async with asyncio.timeout(timeout_s):
            return MetricReading(name, await source.read(), at)
    except SourceDown as error:
        return MetricReading(name, None, at, str(error))
    except TimeoutError:
        words = f"no answer within {format_duration(timeout_s)}: see why it is slow, or allow more with `timeout`"
        return MetricReading(name, None, at, words)
    except Exception as error:
        log.exception("sources.%s: the read itself failed", name)
        return MetricReading(
            name, None, at, f"the read itself failed ({type(error).__name__}); the log has the details"
        )
