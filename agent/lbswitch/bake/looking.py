"""What is known of a watched service at a moment: traffic, health checks, metrics from elsewhere, and the verdicts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lbswitch.bake.checks import CheckCounts
from lbswitch.core.bake import Bake
from lbswitch.core.bake_config import BakeConfig, PolicyConfig, criteria_of
from lbswitch.core.burst import burst
from lbswitch.core.config import Config
from lbswitch.core.criteria import Checks, Criterion, Facts, JudgeState, MetricReading, Verdict, judge
from lbswitch.core.decide import PoolState
from lbswitch.core.evidence import Evidence, Window
from lbswitch.core.health import PoolHealth
from lbswitch.core.model import Color, PoolKey
from lbswitch.core.rollback import Policy, RollbackDecision, RollbackMonitor
from lbswitch.errors import UnknownService
from lbswitch.ports import HealthView, Reading

BASELINE_S = 300.0
"""How far back the record of an incident shows what the color before was like."""
_LATELY_S = 10.0

Pools = Callable[[str, Color], PoolHealth]
Readings = Callable[[], Mapping[str, MetricReading]]


@dataclass(slots=True)
class _Watched:
    """What is remembered of one watch."""

    state: JudgeState = field(default_factory=dict)
    before: dict[float, Window] = field(default_factory=dict)
    lately: Window | None = None


class Looking:
    """Event loop only."""

    def __init__(
        self, config: Callable[[], Config], pools: Pools, health: HealthView, readings: Readings = lambda: {}
    ) -> None:
        """`pools` gives a color's servers with their health, `readings` the metrics from elsewhere by source."""
        self.evidence = Evidence()
        self.lost = 0
        self._config = config
        self._pools = pools
        self._health = health
        self._readings = readings
        self._checks = CheckCounts()
        self._watched: dict[str, _Watched] = {}
        self._reading_since: float | None = None

    # -- taking in -----------------------------------------------------------------------------------------------

    def take(self, reading: Reading) -> None:
        """What a reader has handed over."""
        self.lost += reading.lost
        if self._reading_since is None:
            self._reading_since = reading.at
        self.evidence.watched(reading.at)
        for pool, batch in reading.batches.items():
            self.evidence.add(pool, reading.at, batch)

    def note_checks(self, now: float) -> None:
        """Remember the counters of the health checks."""
        pools = [PoolKey(name, color) for name in self._config().services for color in Color]
        counts = {}
        for pool in pools:
            with contextlib.suppress(UnknownService):  # just being added or removed
                counts[pool] = self._counts(pool)
        self._checks.note(now, counts)

    def keep(self) -> None:
        """Forget services that are not configured any more."""
        services = self._config().services
        self.evidence.forget(services)
        self._watched = {name: watched for name, watched in self._watched.items() if name in services}

    def begin(self, bake: Bake) -> None:
        """A watch begins: what the other color was like is remembered."""
        old = PoolKey(bake.service, bake.color.other)
        lengths = {one.window_s for one in self.criteria(bake.service) if one.baseline == "before"}
        windows = {length: self.evidence.window(old, bake.since, length) for length in lengths}
        self._watched[bake.service] = _Watched(before=windows, lately=self.evidence.window(old, bake.since, BASELINE_S))

    # -- judging -------------------------------------------------------------------------------------------------

    def criteria(self, service: str) -> tuple[Criterion, ...]:
        """What this service is judged by."""
        return criteria_of(self._config().services[service].criteria)

    def judge(self, bake: Bake, now: float) -> tuple[tuple[Verdict, ...], RollbackDecision]:
        """What all criteria say of the watched color now, and what follows."""
        watched = self._watched.setdefault(bake.service, _Watched())
        watched.state, verdicts = judge(watched.state, self.criteria(bake.service), self._facts(bake, watched, now))
        policy = self._config().services[bake.service].policy or PolicyConfig()
        return verdicts, RollbackMonitor(Policy(policy.trigger, policy.alert_threshold)).decide(verdicts)

    def burst(self, bake: Bake, now: float) -> str | None:
        """Why the color must lose its traffic at once, or None."""
        settings = self._config().services[bake.service].bake or BakeConfig()
        if not settings.burst:
            return None
        pool = PoolKey(bake.service, bake.color)
        down = self._health.facts(bake.service, bake.color).state is PoolState.UNHEALTHY
        return burst(self.evidence, pool, now, since=bake.since, servers_down=down)

    def _facts(self, bake: Bake, watched: _Watched, now: float) -> Facts:
        pool = PoolKey(bake.service, bake.color)

        def before(seconds: float) -> Window:
            return watched.before.get(seconds) or Window(seconds)

        def checks(seconds: float) -> Checks:
            total, failed = self._counts(pool)
            since = max(now - seconds, bake.since)
            ended, lost = self._checks.within(pool, total, failed, since)
            return Checks(lost, ended)

        # What an agent before this one has seen is lost: nobody can ask for more than there was time to see since.
        since = bake.since if self._reading_since is None else max(bake.since, self._reading_since)
        return Facts.of(self.evidence, pool, now, since, before=before, readings=self._readings(), checks=checks)

    def _counts(self, pool: PoolKey) -> tuple[int, int]:
        servers = self._pools(pool.service, pool.color).servers
        return sum(server.checks for server in servers), sum(server.failed for server in servers)

    # -- showing -------------------------------------------------------------------------------------------------

    def before(self, service: str) -> Window | None:
        """What the color before the switch was like."""
        watched = self._watched.get(service)
        return None if watched is None else watched.lately

    def lately(self, pool: PoolKey, now: float, seconds: float = _LATELY_S, since: float | None = None) -> Window:
        """What a color has experienced in the last seconds."""
        return self.evidence.window(pool, now, seconds, since)
